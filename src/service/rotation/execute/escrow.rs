//! What lets the database depend on a key: the proof of its copy off the host, or a waiver.

use super::super::Proof;
use super::{Carrier, Trouble};
use crate::crypto::{self, KeyfileImage};
use crate::failpoint;
use crate::keys::keyfile::KeyFile;
use crate::model::{Action, EscrowKind, Kid};
use crate::service::Error;
use crate::service::backup::{self, Outcome};
use crate::service::kms::OnlyWay;
use crate::store::masters::{EscrowStage, NewEscrow};

impl Carrier {
    /// One secret that took it is enough; the report and `admin doctor` name each that did not. What was confirmed is seen by the next look.
    pub(super) async fn push(&mut self, kid: Kid, only_way: OnlyWay) -> Result<(), Trouble> {
        failpoint::reached("rotation.pushing");
        let copies = match self.service.push_key(kid, only_way).await {
            Ok(copies) => copies,
            Err(Error::Unavailable(why)) => return Err(Trouble::Away(why)),
            Err(error) => return Err(Trouble::Failed(error)),
        };
        failpoint::reached("rotation.pushed");
        let mut missing = Vec::with_capacity(copies.len());
        for copy in &copies {
            match &copy.outcome {
                Outcome::Pushed { locator } | Outcome::Before { locator } => {
                    tracing::info!("a copy of the new master key is confirmed: {locator}");
                }
                Outcome::Missing(trouble) => missing.push((&copy.secret, trouble)),
            }
        }
        if missing.len() == copies.len()
            && let Some((_, first)) = missing.first()
        {
            let why: Vec<String> =
                missing.iter().map(|(secret, trouble)| format!("{secret}: {}", trouble.why)).collect();
            self.run.unpushed = Some(backup::Trouble { class: first.class, why: why.join("; ") });
        }
        Ok(())
    }

    pub(super) async fn waive(&self, kid: Kid, who: &str) -> Result<(), Trouble> {
        failpoint::reached("rotation.waiving");
        let change = self.change(Action::WaiveCopy, None).await?;
        change.store().add_escrow(&waiver(kid, who)?).await?;
        failpoint::reached("rotation.waived");
        Ok(())
    }

    /// The command says what it read; where the key lies here too, its checksum must be that of the copy.
    pub(super) async fn record(&self, proof: &Proof) -> Result<(), Trouble> {
        let kid = proof.kid;
        let here = self.with_files(move |files| {
            // A wrapped file has other bytes than a copy of the key itself, whose kid is proof enough.
            let found = files.scan().into_files().find(|file| file.kid == kid);
            Ok(found.as_ref().and_then(KeyFile::master).map(|master| KeyfileImage::of(master).sha256()))
        });
        if let Ok(Some(sha256)) = here.await?
            && sha256 != proof.sha256
        {
            return Err(Trouble::Failed(Error::Invalid(format!(
                "the copy of {kid} has another SHA-256 than the key file: it is not a copy of these bytes. Copy the file anew, and feed \
                 that with --prove-from"
            ))));
        }
        failpoint::reached("rotation.recording");
        let escrow = NewEscrow {
            id: random_id()?,
            kid,
            target: "file".to_owned(),
            locator: Some(proof.locator.clone()),
            content_sha256: Some(proof.sha256),
            kms_versions: proof.kms_versions.clone(),
            kind: EscrowKind::Copy,
            stage: EscrowStage::ReadBack,
        };
        let change = self.change(Action::ConfirmCopy, None).await?;
        change.store().add_escrow(&escrow).await?;
        failpoint::reached("rotation.recorded");
        Ok(())
    }
}

fn random_id() -> Result<String, Trouble> {
    crypto::random_id().map_err(|error| Trouble::Failed(Error::Incomplete(error.to_string())))
}

/// The record that an operator wants no copy of this key, with who that is.
pub(super) fn waiver(kid: Kid, who: &str) -> Result<NewEscrow, Trouble> {
    Ok(NewEscrow {
        id: random_id()?,
        kid,
        target: who.to_owned(),
        locator: None,
        content_sha256: None,
        kms_versions: Vec::new(),
        kind: EscrowKind::Waiver,
        stage: EscrowStage::Confirmed,
    })
}
