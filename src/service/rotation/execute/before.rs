//! Up to the flip: the lease, the look at every DEK, the new key's file and row, and the flip itself; or giving it up.

use std::sync::Arc;
use std::time::Duration;

use super::super::plan::Tried;
use super::super::walk;
use super::super::{Order, misfit};
use super::{Carrier, Renewal, Trouble, elsewhere};
use crate::crypto::{self, KeyfileImage, MasterKey};
use crate::failpoint;
use crate::keys::keyfile::MainFile;
use crate::model::{Action, KeyMode, KeyState, Kid, NodeId, WrappedMaster};
use crate::service::kms::{self, OnlyWay};
use crate::service::{Error, backup};
use crate::store::StoreError;
use crate::store::masters::{Fence, Fenced, FlipOutcome, GivenUp, NewMaster, StageOutcome};

/// For how long another node is kept out without a sign of life.
const LEASE: Duration = Duration::from_secs(30);
const RENEW_EVERY: Duration = Duration::from_secs(10);

/// A key that is about to be staged.
enum New {
    Raw(MasterKey),
    Wrapped { file: WrappedMaster, master: MasterKey },
}

/// Whether a key's file lay here when it was staged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Not,
    Before,
}

fn known(kid: Kid) -> Error {
    Error::Conflict(format!(
        "master key {kid} is no new key: the database knows it already, and nothing was changed. Each rotation has a key of its own: start \
         again with `containarium admin rotate-master`"
    ))
}

impl Carrier {
    pub(super) async fn take_lease(&mut self) -> Result<(), Trouble> {
        let (store, holder) = (Arc::clone(&self.service.store), self.service.node.holder());
        store.take_lease(holder, LEASE).await?;
        failpoint::reached("rotation.leased");
        let renewing = async move {
            loop {
                tokio::time::sleep(RENEW_EVERY).await;
                // Where it is another's by now, the next step's fence says so.
                if let Err(error) = store.take_lease(holder, LEASE).await {
                    tracing::debug!("the lease was not renewed: {error}");
                }
            }
        };
        self.renewal = Some(Renewal(tokio::spawn(renewing).abort_handle()));
        Ok(())
    }

    pub(super) async fn preflight(&mut self, state: &KeyState) -> Result<(), Trouble> {
        let began = self.service.clock.monotonic();
        let total = self.service.store.count_under(state.active_kid).await?;
        let (store, keys) = (Arc::clone(&self.service.store), Arc::clone(&self.service.keys));
        let tell = |done| self.tell("preflight", done, Some(total.in_use));
        let walked = walk::check(&*store, &keys, state.active_kid, tell).await?;
        self.tally.preflight(&walked, total.quarantined, self.service.clock.monotonic().saturating_sub(began));
        self.run.preflighted = true;
        self.note_damage(walked);
        failpoint::reached("rotation.preflighted");
        Ok(())
    }

    /// The file first: a row without a file would be a promise that this node cannot keep. A file without a row is nobody's.
    pub(super) async fn stage(&mut self, fence: &Fence, mode: KeyMode, order: &Order) -> Result<(), Trouble> {
        let new = self.new_key(order).await?;
        let (image, travels) = match &new {
            New::Raw(master) => (KeyfileImage::of(master), None),
            New::Wrapped { file, .. } => (KeyfileImage::of_wrapped(file), file.for_kms_only()),
        };
        let (is_wrapped, kid) = match &new {
            New::Raw(master) => (false, crypto::kid(master)),
            New::Wrapped { file, .. } => (true, file.kid),
        };
        // Under the lock: `kms wrap` may be at work. A raw key beside a wrapped one would take its root away without a word.
        let staged = self.with_files(move |files| {
            let lock = files.lock()?;
            let scan = files.scan();
            let main_is_wrapped = matches!(&scan.main, MainFile::Key(main) if main.wrapped().is_some());
            let found = if scan.files().any(|file| file.kid == kid) { Found::Before } else { Found::Not };
            match misfit(main_is_wrapped, is_wrapped) {
                Some(misfit) => Ok(Err(misfit)),
                None => lock.stage_image(&image).map(|_| Ok(found)),
            }
        });
        let staged = staged.await?.map_err(|error| {
            Trouble::Failed(Error::Unavailable(format!(
                "the new key was not staged, and nothing happened: {error}. Mend that, then start again with `containarium admin \
                 rotate-master`"
            )))
        })?;
        let found = staged.map_err(Trouble::Failed)?;
        failpoint::reached("rotation.staged-file");
        self.run.staged = Some(kid);
        if let New::Wrapped { master, .. } = &new {
            // It is open already: it is asked of KMS once.
            self.service.keys.take_in(master);
        }
        drop(new);
        let travels = travels.map(|file| file.to_json());
        let change = self.change(Action::StageMaster, None).await?;
        let entered = change.store().stage(fence, &NewMaster { kid, mode, wrapped_file: travels.as_deref() }).await;
        failpoint::reached("rotation.staged-row");
        let in_database = match entered {
            Ok(Fenced::Done(StageOutcome::Staged(_))) => true,
            // Entered since it was looked for: what becomes of its file is the database's to say from now on.
            Ok(Fenced::Done(StageOutcome::KnownKid(_))) => {
                self.run.staged = None;
                return Err(Trouble::Failed(known(kid)));
            }
            Ok(Fenced::Elsewhere(_)) => false,
            Err(StoreError::UnknownOutcome(why)) => self.is_known(kid, &why).await,
            Err(error) => {
                self.unstage(kid, found).await?;
                return Err(error.into());
            }
        };
        if !in_database {
            self.unstage(kid, found).await?;
        }
        Ok(())
    }

    /// A new key has a kid that was never seen. One that comes again is a request sent twice, or somebody's who kept what travelled: taken
    /// for new, the file of a key that is still needed would be removed as staged for nothing.
    async fn check_unknown(&self, kid: Kid) -> Result<(), Trouble> {
        let survey = self.service.store.survey().await?;
        if survey.master_keys.iter().any(|key| key.kid == kid) { Err(Trouble::Failed(known(kid))) } else { Ok(()) }
    }

    /// Made here, or by who asked; then this daemon opens it as it will have to at every start. Nothing is called under the key files' lock.
    async fn new_key(&self, order: &Order) -> Result<New, Trouble> {
        let Some(file) = &order.terms.new_key else {
            let made = MasterKey::make_random().map_err(|error| Trouble::Failed(Error::Unavailable(error.to_string())));
            return made.map(New::Raw);
        };
        if order.terms.only_way == OnlyWay::Refused && !file.has_another_way() {
            return Err(Trouble::Failed(Error::Conflict(format!(
                "nothing but one KMS key is known to open the new master key, {}: when that key is destroyed, every secret is lost. Nothing \
                 was changed. Add a recipient of age and prove it, `containarium admin rotate-master --age RECIPIENT --age-identity FILE`, or \
                 accept it: `--kms-is-the-only-way-back`",
                file.kid
            ))));
        }
        self.check_unknown(file.kid).await?;
        match self.service.unlocker.open_new(file, &*self.service.clock).await {
            Ok(master) => Ok(New::Wrapped { file: file.clone(), master }),
            Err(why) => {
                let class = kms::class(why.trouble());
                let why = format!(
                    "this daemon does not open the new key, so it was not staged, and nothing happened: {why}. Mend that, then start again with \
                     `containarium admin rotate-master`"
                );
                Err(Trouble::Failed(backup::Trouble { class, why }.into_error()))
            }
        }
    }

    /// Whether a commit came through is read, for as long as it takes.
    async fn is_known(&self, kid: Kid, why: &str) -> bool {
        loop {
            match self.service.store.survey().await {
                Ok(survey) => return survey.master_keys.iter().any(|key| key.kid == kid),
                Err(error) => {
                    self.reporter.say(format!("waiting: {why}; {error}"), 0, None);
                    self.pause().await;
                }
            }
        }
    }

    /// What lay there before is not this rotation's to remove.
    async fn unstage(&mut self, kid: Kid, found: Found) -> Result<(), Trouble> {
        self.run.staged = None;
        if found == Found::Before {
            return Ok(());
        }
        self.service.keys.give_up(kid);
        if let Err(error) = self.with_files(move |files| files.lock()?.unstage(kid)).await? {
            tracing::warn!("the key that was staged for nothing stays behind: {error}");
        }
        Ok(())
    }

    pub(super) async fn flip(&mut self, fence: &Fence, to: Kid, without: &[NodeId]) -> Result<(), Trouble> {
        failpoint::reached("rotation.flipping");
        let change = self.change(Action::FlipMaster, None).await?;
        let flipped = change.store().flip(fence, to, without).await?;
        failpoint::reached("rotation.flipped");
        match flipped {
            Fenced::Done(FlipOutcome::Flipped(state)) => {
                tracing::info!("master key {to} is active, epoch {}; new DEKs are wrapped by it", state.epoch);
                self.tally.old = Some(fence.active);
            }
            // A node came or went in between: the next look sees it.
            other => {
                tracing::info!("not flipped: {other:?}");
                self.pause().await;
            }
        }
        Ok(())
    }

    pub(super) async fn abort(&mut self, fence: &Fence, kid: Kid, given_up: GivenUp) -> Result<(), Trouble> {
        failpoint::reached("rotation.aborting");
        let change = self.change(Action::AbortRotation, None).await?;
        self.run.tried = Some(Tried::Abort(kid));
        match change.store().abort(fence, kid, given_up).await? {
            Fenced::Done(_) => failpoint::reached("rotation.aborted"),
            Fenced::Elsewhere(state) => elsewhere(&state),
        }
        Ok(())
    }
}
