//! Copies pushed to Secret Manager.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::MutexGuard;

use crate::access::AdminGrant;
use crate::audit;
use crate::backup::{CopyState, Lifetime, SecretManagerTarget};
use crate::crypto::{self, Content, KeyfileImage};
use crate::failpoint;
use crate::model::{Action, EscrowKind, EscrowRecord, Kid};
use crate::service::job::{self, Reporter, Watch};
use crate::service::kms::OnlyWay;
use crate::service::{By, Error, Failure, Request, Service, Touched};
use crate::store::Store;
use crate::store::masters::{EscrowStage, NewEscrow};

use super::{
    Class, DEADLINE, SECRET_MANAGER, SEEN_LATELY, SEEN_WITHIN, Trouble, is_raw_escrowed, is_version_of, kms_versions,
    to_copy,
};

/// How long a push waits for another: two calls to Google that are not answered. Whoever asked for it may ask again; a rotation that
/// waited without bound would keep its lease and say nothing.
const PATIENCE: Duration = DEADLINE.saturating_mul(2);

/// What a push came to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PushedKeys {
    /// Of each key in each secret.
    pub copies: Vec<KeyCopyOutcome>,
    /// Keys that the database wants and that lie in none of this node's files.
    pub not_here: Vec<Kid>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyCopyOutcome {
    pub kid: Kid,
    /// `projects/P/secrets/S`
    pub secret: String,
    pub outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Added and confirmed now.
    Pushed { locator: String },
    /// These bytes are there, confirmed before and not destroyed since.
    Before { locator: String },
    /// The secret has no copy that counts.
    Missing(Trouble),
}

impl PushedKeys {
    fn is_whole(&self) -> bool {
        self.not_here.is_empty() && !self.copies.iter().any(|copy| matches!(copy.outcome, Outcome::Missing(_)))
    }
}

impl Service {
    /// Copies every key that the database wants into every configured secret, in the background.
    ///
    /// # Errors
    /// [`Error::Invalid`] where none is configured; [`Error::Conflict`] while another push is under way; [`Error::Unavailable`] when the
    /// daemon is stopping, or writes are closed.
    pub async fn push_keys(
        self: &Arc<Self>,
        request: Request,
        grant: AdminGrant,
        only_way: OnlyWay,
    ) -> Result<Watch<PushedKeys>, Error> {
        self.may_push().await?;
        let service = Arc::clone(self);
        self.pushing_keys.begin(&self.workers, |reporter| async move {
            let result = service.push_all(Some(&reporter), only_way).await;
            let touched = [Touched::nothing(outcome(&result))];
            service.record(&request, grant.identity(), Action::BackupPush, None, touched).await?;
            result
        })
    }

    /// A look at the push that is under way, or was last.
    ///
    /// # Errors
    /// [`Error::NotFound`] where there was none since the start; [`Error::Unavailable`] where the call could not be recorded.
    pub async fn follow_push_keys(&self, request: &Request, grant: &AdminGrant) -> Result<Watch<PushedKeys>, Error> {
        let watch = self.pushing_keys.watch();
        let outcome = watch.as_ref().map_or_else(Error::outcome, |_| audit::Outcome::Ok);
        let touched = [Touched::nothing(outcome)];
        self.record(request, grant.identity(), Action::FollowBackupPush, None, touched).await?;
        watch
    }

    /// Copies one key into every configured secret, one after the other; what each secret said is in the answer, also where none took
    /// it. What counts as a copy is confirmed and recorded by then. Unrecorded in the audit: the rotation that calls it is.
    ///
    /// # Errors
    /// [`Error::Invalid`] where none is configured; [`Error::NotFound`] where the key lies in no file of this node;
    /// [`Error::Unavailable`] where the database is away or writes are closed.
    pub(in crate::service) async fn push_key(&self, kid: Kid, only_way: OnlyWay) -> Result<Vec<KeyCopyOutcome>, Error> {
        self.may_push().await?;
        let pushed = self.push_each(&[kid], None, only_way).await?;
        if !pushed.not_here.is_empty() {
            return Err(Error::NotFound(format!(
                "master key {kid} lies in no key file of this node, so it cannot be copied"
            )));
        }
        Ok(pushed.copies)
    }

    /// Where copies of the master keys go, the primary place first.
    pub(in crate::service) fn copied_to(&self) -> &[String] {
        self.destinations.secrets()
    }

    /// Pushes in the background where no copy of the active key is confirmed: what `push_on_first_start` asks for. A start that comes
    /// after one whose push failed, or that crashed before it, does it again.
    pub fn push_at_start(self: &Arc<Self>) {
        let service = Arc::clone(self);
        self.workers.spawn(async move {
            match service.push_unproven().await {
                Ok(None) => {}
                Ok(Some(pushed)) if pushed.is_whole() => {
                    tracing::info!("the master key is backed up: a copy is confirmed in each configured secret");
                }
                Ok(Some(pushed)) => {
                    for copy in &pushed.copies {
                        if let Outcome::Missing(trouble) = &copy.outcome {
                            tracing::warn!("no copy of master key {} in {}: {}", copy.kid, copy.secret, trouble.why);
                        }
                    }
                    tracing::warn!("the backup at the first start is not whole; `containarium backup push` does it again");
                }
                Err(error) => tracing::warn!(
                    "no backup of the master key was made at the first start: {error}; `containarium backup push` does it again"
                ),
            }
        });
    }

    async fn push_unproven(&self) -> Result<Option<PushedKeys>, Error> {
        let survey = self.store.survey().await?;
        let Some(state) = survey.key_state.filter(|_| self.keys_are_open()) else { return Ok(None) };
        if self.store.has_confirmed_escrow(state.active_kid).await? {
            return Ok(None);
        }
        self.may_push().await?;
        let result = self.push_all(None, OnlyWay::Refused).await;
        let id = crypto::random_id().map_err(|_| Error::Internal(Failure::Other))?;
        let by = By::daemon(&id);
        self.write_records(&by, Action::BackupPush, None, [Touched::nothing(outcome(&result))]).await?;
        result.map(Some)
    }

    async fn may_push(&self) -> Result<(), Error> {
        if self.destinations.secrets().is_empty() {
            return Err(Error::Invalid(
                "no secret is configured to push to: name one in `[backup.gcp] secrets` and restart the daemon, or make a copy with \
                 `containarium backup export`"
                    .to_owned(),
            ));
        }
        self.node.may_write().await?;
        self.may_record().await
    }

    async fn push_all(&self, reporter: Option<&Reporter>, only_way: OnlyWay) -> Result<PushedKeys, Error> {
        let survey = self.store.survey().await?;
        if survey.key_state.is_none() {
            return Err(Error::Conflict(
                "the database has never held a key, so there is nothing to back up".to_owned(),
            ));
        }
        self.push_each(&to_copy(&survey), reporter, only_way).await
    }

    async fn push_each(
        &self,
        kids: &[Kid],
        reporter: Option<&Reporter>,
        only_way: OnlyWay,
    ) -> Result<PushedKeys, Error> {
        let _turn = self.turn(reporter).await?;
        // Asked again: what allowed it when it was asked for may have changed while another one was waited for.
        self.may_push().await?;
        let (mut pushed, total) = (PushedKeys::default(), (kids.len() * self.destinations.secrets().len()) as u64);
        for kid in kids {
            let Some(image) = self.image(*kid).await? else {
                pushed.not_here.push(*kid);
                continue;
            };
            if only_way == OnlyWay::Refused
                && let Some(trouble) = self.only_with_kms(*kid, &image).await?
            {
                pushed.copies.extend(self.destinations.secrets().iter().map(|secret| KeyCopyOutcome {
                    kid: *kid,
                    secret: secret.clone(),
                    outcome: Outcome::Missing(trouble.clone()),
                }));
                continue;
            }
            for secret in self.destinations.secrets() {
                self.workers.go_on()?;
                if let Some(reporter) = reporter {
                    reporter.say(
                        format!("copying master key {kid} to {secret}"),
                        pushed.copies.len() as u64,
                        Some(total),
                    );
                }
                let outcome = self.copy_to(secret, *kid, &image).await?;
                if let Outcome::Missing(trouble) = &outcome {
                    tracing::warn!(%kid, secret, "a copy was not confirmed: {}", trouble.why);
                }
                pushed.copies.push(KeyCopyOutcome { kid: *kid, secret: secret.clone(), outcome });
            }
        }
        Ok(pushed)
    }

    /// A copy that one KMS key opens and nothing else is lost together with the file: no escrow.
    async fn only_with_kms(&self, kid: Kid, image: &KeyfileImage) -> Result<Option<Trouble>, Error> {
        match image.content() {
            Ok(Content::Wrapped(wrapped)) if !wrapped.has_another_way() => {}
            _ => return Ok(None),
        }
        let (seen, raw_sha256) = (self.copies_now().await?, self.raw_sha256(kid));
        if is_raw_escrowed(&seen.seen_lately(), kid, raw_sha256, seen.now) {
            return Ok(None);
        }
        let unseen = if is_raw_escrowed(&seen.escrows, kid, raw_sha256, seen.now) {
            format!(
                " (a raw copy in Secret Manager was not seen for {} days, and cannot be looked at now: {})",
                SEEN_LATELY.as_secs() / 86_400,
                seen.why_unseen()
            )
        } else {
            String::new()
        };
        Ok(Some(Trouble {
            class: Class::Conflict,
            why: format!(
                "nothing but one KMS key is known to open the file of master key {kid}, so a copy of it is lost with that key and is no backup{unseen}. \
                 Add a recipient of age and prove it, `containarium kms rewrap --age RECIPIENT --age-identity FILE`; or, where a raw copy of \
                 the key is kept, read it back, which counts for {} days: `containarium backup verify --from FILE`; or accept it: \
                 `containarium backup push --kms-is-the-only-way-back`",
                SEEN_WITHIN.as_secs() / 86_400
            ),
        }))
    }

    /// One push at a time, so that the same bytes are not pushed twice. Another node may push too: a spare copy harms nobody.
    async fn turn(&self, reporter: Option<&Reporter>) -> Result<MutexGuard<'_, ()>, Error> {
        if let Ok(turn) = self.push_lock.try_lock() {
            return Ok(turn);
        }
        tracing::info!("a push of master keys waits for another one of this daemon");
        if let Some(reporter) = reporter {
            reporter.say("waiting for another push of this daemon to end", 0, None);
        }
        tokio::select! {
            biased;
            () = self.workers.stopping() => Err(job::stopping()),
            turn = tokio::time::timeout(PATIENCE, self.push_lock.lock()) => turn.map_err(|_elapsed| Error::Conflict(format!(
                "another push of master keys is under way in this daemon (that of `containarium backup push`, of the first start or of a \
                 rotation), and it did not end within {} s; nothing of this one was sent. Do the same again when it has ended; a rotation \
                 goes on with `containarium admin rotate-master --resume`",
                PATIENCE.as_secs()
            ))),
        }
    }

    async fn image(&self, kid: Kid) -> Result<Option<KeyfileImage>, Error> {
        let files = self.files.clone();
        let image = tokio::task::spawn_blocking(move || files.image(kid)).await;
        let image = image.map_err(|_panicked| Error::Internal(Failure::Other))?;
        image.map_err(|error| Error::Incomplete(error.to_string()))
    }

    async fn copy_to(&self, secret: &str, kid: Kid, image: &KeyfileImage) -> Result<Outcome, Error> {
        let target = match self.destinations.target(secret) {
            Ok(target) => target,
            Err(error) => return Ok(Outcome::Missing((&error).into())),
        };
        if let Some(trouble) = no_place(&target).await {
            return Ok(Outcome::Missing(trouble));
        }
        let sha256 = image.sha256();
        let same = |escrow: &EscrowRecord| escrow.kid == kid && escrow.content_sha256 == Some(sha256);
        let mut escrows = self.store.escrows().await?;
        escrows.retain(same);

        let confirmed: Vec<&EscrowRecord> = escrows.iter().filter(|escrow| is_version_of(escrow, secret)).collect();
        if !confirmed.is_empty() {
            // A copy that somebody has destroyed since, or disabled, would be missed when it is needed.
            let listed = match target.list().await {
                Ok(listed) => listed,
                Err(error) => return Ok(Outcome::Missing((&error).into())),
            };
            let answered = [(secret.to_owned(), Ok(listed.clone()))];
            self.note_seen(&escrows, &answered).await?;
            let readable = listed.iter().filter(|v| matches!(v.state, CopyState::Enabled | CopyState::Unknown));
            let is_confirmed =
                |locator: &str| confirmed.iter().any(|escrow| escrow.is_at(locator) && escrow.unread.is_none());
            if let Some(there) = readable.map(|version| &version.locator).find(|locator| is_confirmed(locator)) {
                return Ok(Outcome::Before { locator: there.clone() });
            }
        }

        let id = match escrows.iter().find(|escrow| is_pending(escrow, secret)) {
            Some(pending) => pending.id.clone(),
            // The locator is that of the version once it has a number.
            None => add_escrow(&*self.store, secret.to_owned(), kid, image, EscrowStage::Started).await?,
        };
        failpoint::reached("backup.begun");
        match target.push(image).await {
            Ok(pushed) => {
                failpoint::reached("backup.added");
                let locator = pushed.locator;
                // Another daemon found the same begun row, and was quicker: its copy keeps it, and this one has a row of its own.
                // The row that the call was begun with says nothing yet; from here on a rotation may rely on it.
                let change = self.own_change(Action::ConfirmCopy, None).await?;
                if !change.store().advance_escrow(&id, EscrowStage::Confirmed, Some(&locator)).await? {
                    add_escrow(change.store(), locator.clone(), kid, image, EscrowStage::Confirmed).await?;
                }
                Ok(Outcome::Pushed { locator })
            }
            Err(error) => Ok(Outcome::Missing((&error).into())),
        }
    }
}

async fn add_escrow(
    store: &dyn Store,
    locator: String,
    kid: Kid,
    image: &KeyfileImage,
    stage: EscrowStage,
) -> Result<String, Error> {
    let id = crypto::random_id().map_err(|_| Error::Internal(Failure::Other))?;
    let escrow = NewEscrow {
        id: id.clone(),
        kid,
        target: SECRET_MANAGER.to_owned(),
        locator: Some(locator),
        content_sha256: Some(image.sha256()),
        kms_versions: kms_versions(image),
        kind: EscrowKind::Copy,
        stage,
    };
    store.add_escrow(&escrow).await?;
    Ok(id)
}

/// Why no copy in this secret counts, new or old: Google deletes a secret with an expiry together with every version of it. An identity
/// that may not look is warned of and pushes all the same, since a copy that may go is worth more than none, and who granted less than the
/// terraform module does must not lose the copies that there were until now. Any other trouble would meet the push too, or leaves it open
/// whether its copy stays: then nothing is sent, and a later push asks again.
async fn no_place(target: &SecretManagerTarget) -> Option<Trouble> {
    match target.lifetime().await {
        Ok(Lifetime::Lasting) => None,
        Ok(Lifetime::Expires) => Some(Trouble {
            class: Class::Failed,
            why: format!(
                "the secret expires: Google will delete it with every copy in it, so none in it counts. `{}` makes it last",
                target.mend_expiry()
            ),
        }),
        Ok(Lifetime::Hidden(denial)) => {
            tracing::warn!("whether {} expires, and its copies with it, is not known: {denial}", target.name());
            None
        }
        Err(error) => Some((&error).into()),
    }
}

/// Begun, and not known to have come to its end: the answer was lost, or there was none.
fn is_pending(escrow: &EscrowRecord, secret: &str) -> bool {
    escrow.kind == EscrowKind::Copy
        && escrow.target == SECRET_MANAGER
        && escrow.confirmed_at.is_none()
        && escrow.locator.as_deref() == Some(secret)
}

fn outcome(result: &Result<PushedKeys, Error>) -> audit::Outcome {
    match result {
        Ok(pushed) if pushed.is_whole() => audit::Outcome::Ok,
        Ok(_) => audit::Outcome::Failed,
        Err(error) => error.outcome(),
    }
}
