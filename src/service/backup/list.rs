//! What there is of copies, as far as the daemon may see it: no payload is read.

use std::num::NonZeroU64;

use tokio::task::JoinSet;

use crate::access::AdminGrant;
use crate::audit::Outcome;
use crate::backup::{CopyState, Listed};
use crate::model::{Action, EscrowRecord, Kid, MasterKeyState, Micros};
use crate::service::{Error, Failure, Request, Service, Touched};
use crate::store::Survey;

use super::Trouble;
use super::look::{Answered, seen_in};

/// Every copy that is known of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupList {
    /// In the order of the settings.
    pub secrets: Vec<ListedSecret>,
    /// Every key that may still open something.
    pub keys: Vec<KeyCopies>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedSecret {
    pub secret: String,
    /// The newest first.
    pub versions: Result<Vec<ListedVersion>, Trouble>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedVersion {
    pub number: NonZeroU64,
    /// `enabled`, `disabled`, `destroyed`
    pub state: CopyState,
    pub created_at: Option<Micros>,
    /// Absent for a stray: nothing here knows what it holds.
    pub kid: Option<Kid>,
    pub confirmed_at: Option<Micros>,
    pub read_back_at: Option<Micros>,
}

/// How a key is covered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyCopies {
    pub kid: Kid,
    pub state: MasterKeyState,
    /// Whether something does not open without it.
    pub needed: bool,
    /// When the newest copy that is still there, as far as is known, was confirmed.
    pub confirmed_at: Option<Micros>,
    /// When a copy that is still there was last read back.
    pub read_back_at: Option<Micros>,
}

impl Service {
    /// # Errors
    /// [`Error::Unavailable`]. What a secret answered is in the list.
    pub async fn list_backups(&self, request: &Request, grant: &AdminGrant) -> Result<BackupList, Error> {
        let result = self.backups().await;
        let outcome = result.as_ref().map_or_else(Error::outcome, |_| Outcome::Ok);
        self.record(request, grant.identity(), Action::BackupList, None, [Touched::nothing(outcome)]).await?;
        result
    }

    async fn backups(&self) -> Result<BackupList, Error> {
        let survey = self.store.survey().await?;
        let recorded = self.store.escrows().await?;
        let listed = self.listed().await?;
        // What is seen is shown, whether it can be written down or not.
        if let Err(error) = self.note_seen(&recorded, &listed).await {
            tracing::warn!("what became of the copies of the master keys was not recorded: {error}");
        }
        let now = self.store.now().await?;
        let escrows: Vec<EscrowRecord> = recorded.into_iter().map(|escrow| seen_in(escrow, &listed, now)).collect();
        let keys = key_copies(&survey, &escrows);
        let secrets = listed.into_iter().map(|(secret, listed)| ListedSecret {
            versions: listed.map(|versions| versions.iter().map(|version| known(version, &escrows)).collect()),
            secret,
        });
        Ok(BackupList { secrets: secrets.collect(), keys })
    }

    /// All at once, so that a slow one keeps the answer for one deadline and no longer.
    pub(super) async fn listed(&self) -> Result<Vec<Answered>, Error> {
        let mut asked = JoinSet::new();
        for (at, secret) in self.destinations.secrets().iter().cloned().enumerate() {
            let destinations = self.destinations.clone();
            asked.spawn(async move {
                let listed = match destinations.target(&secret) {
                    Ok(target) => target.list().await,
                    Err(error) => Err(error),
                };
                (at, secret, listed.map_err(|error| Trouble::from(&error)))
            });
        }
        let mut answers = Vec::new();
        while let Some(answer) = asked.join_next().await {
            answers.push(answer.map_err(|_panicked| Error::Internal(Failure::Other))?);
        }
        answers.sort_by_key(|(at, ..)| *at);
        Ok(answers.into_iter().map(|(_, secret, listed)| (secret, listed)).collect())
    }
}

fn known(version: &Listed, escrows: &[EscrowRecord]) -> ListedVersion {
    let of = |escrow: &&EscrowRecord| escrow.locator.as_deref() == Some(&*version.locator);
    let escrow = escrows.iter().filter(of).max_by_key(|escrow| escrow.confirmed_at);
    ListedVersion {
        number: version.number,
        state: version.state,
        created_at: version.created_at,
        kid: escrow.map(|escrow| escrow.kid),
        confirmed_at: escrow.and_then(|escrow| escrow.confirmed_at),
        read_back_at: escrow.and_then(|escrow| escrow.read_back_at),
    }
}

fn key_copies(survey: &Survey, escrows: &[EscrowRecord]) -> Vec<KeyCopies> {
    let needed = survey.needed();
    let may_open = |state| !matches!(state, MasterKeyState::Aborted | MasterKeyState::Destroyed);
    let keys = survey.master_keys.iter().filter(|key| may_open(key.state) || needed.contains(&key.kid));
    let copies = keys.map(|key| {
        let of_key = || escrows.iter().filter(|escrow| escrow.kid == key.kid && escrow.is_copy_that_stands());
        KeyCopies {
            kid: key.kid,
            state: key.state,
            needed: needed.contains(&key.kid),
            confirmed_at: of_key().filter_map(|escrow| escrow.confirmed_at).max(),
            read_back_at: of_key().filter_map(|escrow| escrow.read_back_at).max(),
        }
    });
    copies.collect()
}
