//! That a copy was read back, as the command that read it tells the daemon.

use crate::access::AdminGrant;
use crate::crypto;
use crate::model::{Action, EscrowKind, EscrowRecord, Kid};
use crate::service::{Error, Failure, Request, Service, Touched};
use crate::store::Store;
use crate::store::masters::{EscrowStage, NewEscrow};

/// The longest locator that is kept: a path, or the name of a version.
const MAX_LOCATOR: usize = 4096;
/// What a copy can be.
const TARGETS: [&str; 4] = [super::SECRET_MANAGER, "age", "paper", "file"];

/// A copy that was read, and found to hold this key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadBack {
    pub kid: Kid,
    /// `secret-manager`, `age`, `paper` or `file`.
    pub target: String,
    /// The version's full name, or the path as it was given; absent for standard input.
    pub locator: Option<String>,
    /// Of the copy's bytes.
    pub sha256: [u8; 32],
    /// The versions of KMS keys that it needs, by their names; none of a copy of the key itself.
    pub kms_versions: Vec<String>,
}

impl Service {
    /// Records copies that were read back, those too that nothing was known of before.
    ///
    /// # Errors
    /// [`Error::Invalid`]; [`Error::NotFound`] for a key that the database does not know (nothing is recorded then);
    /// [`Error::Unavailable`].
    pub async fn note_read_back(
        &self,
        request: &Request,
        grant: &AdminGrant,
        copies: &[ReadBack],
    ) -> Result<(), Error> {
        let change = self.change(request, grant.identity(), Action::BackupReadBack, None).await?;
        let result = self.mark_read_back(change.store(), copies).await;
        let touched = |outcome| vec![Touched::nothing(outcome)];
        self.recorded_change(request, grant.identity(), &change, touched, result).await
    }

    async fn mark_read_back(&self, store: &dyn Store, copies: &[ReadBack]) -> Result<(), Error> {
        self.may_change().await?;
        let known = self.store.survey().await?.master_keys;
        for copy in copies {
            check(copy)?;
            if !known.iter().any(|key| key.kid == copy.kid) {
                return Err(Error::NotFound(format!("the database knows no master key {}", copy.kid)));
            }
        }
        for copy in copies {
            let escrows = self.store.escrows().await?;
            let advanced = match escrows.iter().find(|escrow| is_of(escrow, copy)) {
                Some(escrow) => store.advance_escrow(&escrow.id, EscrowStage::ReadBack, None).await?,
                None => false,
            };
            if !advanced {
                store.add_escrow(&read_back(copy)?).await?;
            }
        }
        Ok(())
    }
}

fn check(copy: &ReadBack) -> Result<(), Error> {
    if !TARGETS.contains(&&*copy.target) {
        return Err(Error::Invalid(format!("target must be one of {}", TARGETS.join(", "))));
    }
    let is_good = |locator: &String| locator.len() <= MAX_LOCATOR && !locator.chars().any(char::is_control);
    if copy.locator.as_ref().is_some_and(|locator| !is_good(locator)) {
        return Err(Error::Invalid(format!("a locator has at most {MAX_LOCATOR} bytes and no control characters")));
    }
    Ok(())
}

fn is_of(escrow: &EscrowRecord, copy: &ReadBack) -> bool {
    escrow.kind == EscrowKind::Copy
        && escrow.kid == copy.kid
        && escrow.target == copy.target
        && escrow.locator == copy.locator
        && escrow.content_sha256 == Some(copy.sha256)
}

fn read_back(copy: &ReadBack) -> Result<NewEscrow, Error> {
    Ok(NewEscrow {
        id: crypto::random_id().map_err(|_| Error::Internal(Failure::Other))?,
        kid: copy.kid,
        target: copy.target.clone(),
        locator: copy.locator.clone(),
        content_sha256: Some(copy.sha256),
        kms_versions: copy.kms_versions.clone(),
        kind: EscrowKind::Copy,
        stage: EscrowStage::ReadBack,
    })
}
