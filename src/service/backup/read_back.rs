//! That a copy was read back, as the command that read it tells the daemon.

use crate::access::AdminGrant;
use crate::crypto;
use crate::model::{Action, EscrowKind, EscrowRecord, Kid};
use crate::service::{Error, Failure, Request, Service, Touched};
use crate::store::Store;
use crate::store::masters::{CopyFinding, EscrowStage, NewEscrow};

/// The longest locator that is kept: a path, or the name of a version.
const MAX_LOCATOR: usize = 4096;
/// The longest reason that is kept.
pub(super) const MAX_WHY: usize = 2048;
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

/// A recorded copy in Secret Manager that is not the key, or cannot be had for a reason of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadCopy {
    pub kid: Kid,
    /// The version's full name.
    pub locator: String,
    pub why: String,
}

impl Service {
    /// Records copies that were read back, those too that nothing was known of before, and those that were no good.
    ///
    /// # Errors
    /// [`Error::Invalid`]; [`Error::NotFound`] for a key that the database does not know, or a bad copy that it does not (nothing is
    /// recorded then); [`Error::Unavailable`].
    pub async fn note_read_back(
        &self,
        request: &Request,
        grant: &AdminGrant,
        copies: &[ReadBack],
        unread: &[BadCopy],
    ) -> Result<(), Error> {
        let change = self.change(request, grant.identity(), Action::BackupReadBack, None).await?;
        let result = self.mark_read_back(change.store(), copies, unread).await;
        let touched = |outcome| vec![Touched::nothing(outcome)];
        self.recorded_change(request, grant.identity(), &change, touched, result).await
    }

    async fn mark_read_back(&self, store: &dyn Store, copies: &[ReadBack], unread: &[BadCopy]) -> Result<(), Error> {
        self.may_change().await?;
        let known = self.store.survey().await?.master_keys;
        for copy in copies {
            check(copy)?;
            if !known.iter().any(|key| key.kid == copy.kid) {
                return Err(Error::NotFound(format!("the database knows no master key {}", copy.kid)));
            }
        }
        let bad = bad_rows(unread, &self.store.escrows().await?)?;
        // First: where a secret has a good copy too, it was read after the bad one, and covers it.
        for (id, why) in bad {
            store.note_copy(&id, &CopyFinding::Unread(why)).await?;
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
        self.heard_of_copies.notify_one();
        Ok(())
    }
}

/// The rows of these copies, each with why it is no good.
fn bad_rows(unread: &[BadCopy], escrows: &[EscrowRecord]) -> Result<Vec<(String, String)>, Error> {
    let row = |bad: &BadCopy| {
        if bad.why.len() > MAX_WHY || bad.why.chars().any(char::is_control) {
            return Err(Error::Invalid(format!("a reason has at most {MAX_WHY} bytes and no control characters")));
        }
        let is_it = |escrow: &&EscrowRecord| {
            escrow.kind == EscrowKind::Copy && escrow.kid == bad.kid && escrow.is_at(&bad.locator)
        };
        let row = escrows.iter().filter(|escrow| escrow.confirmed_at.is_some()).find(is_it);
        let row = row.ok_or_else(|| Error::NotFound(format!("no copy of master key {} is recorded there", bad.kid)))?;
        Ok((row.id.clone(), bad.why.clone()))
    };
    unread.iter().map(row).collect()
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
