//! Up to the flip: the lease, the look at every DEK, the new key's file and row, and the flip itself; or giving it up.

use std::sync::Arc;
use std::time::Duration;

use super::super::plan::Ended;
use super::super::walk;
use super::{Carrier, Renewal, Trouble, elsewhere};
use crate::crypto::MasterKey;
use crate::failpoint;
use crate::model::{Action, KeyMode, KeyState, Kid, NodeId};
use crate::service::Error;
use crate::store::StoreError;
use crate::store::masters::{Fence, Fenced, FlipOutcome, NewMaster, StageOutcome};

/// For how long another node is kept out without a sign of life.
const LEASE: Duration = Duration::from_secs(30);
const RENEW_EVERY: Duration = Duration::from_secs(10);

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
    pub(super) async fn stage(&mut self, fence: &Fence, mode: KeyMode) -> Result<(), Trouble> {
        let master =
            MasterKey::make_random().map_err(|error| Trouble::Failed(Error::Unavailable(error.to_string())))?;
        let staged = self.with_files(move |files| files.lock()?.stage(&master));
        let kid = staged.await?.map_err(|error| {
            Trouble::Failed(Error::Unavailable(format!(
                "the new key was not staged, and nothing happened: {error}. Mend that, then start again with `containarium admin \
                 rotate-master`"
            )))
        })?;
        failpoint::reached("rotation.staged-file");
        self.run.staged = Some(kid);
        let change = self.change(Action::StageMaster, None).await?;
        let entered = change.store().stage(fence, &NewMaster { kid, mode, wrapped_file: None }).await;
        failpoint::reached("rotation.staged-row");
        let in_database = match entered {
            Ok(Fenced::Done(StageOutcome::Staged(_))) => true,
            Ok(Fenced::Done(StageOutcome::KnownKid(_)) | Fenced::Elsewhere(_)) => false,
            Err(StoreError::UnknownOutcome(why)) => self.is_known(kid, &why).await,
            Err(error) => {
                self.unstage(kid).await?;
                return Err(error.into());
            }
        };
        if !in_database {
            self.unstage(kid).await?;
        }
        Ok(())
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

    async fn unstage(&mut self, kid: Kid) -> Result<(), Trouble> {
        self.run.staged = None;
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

    pub(super) async fn abort(&mut self, fence: &Fence, kid: Kid) -> Result<(), Trouble> {
        failpoint::reached("rotation.aborting");
        let change = self.change(Action::AbortRotation, None).await?;
        match change.store().abort(fence, kid).await? {
            Fenced::Done(_) => {
                failpoint::reached("rotation.aborted");
                self.run.ended = Some(Ended::Aborted);
                self.tally.aborted = Some(kid);
            }
            Fenced::Elsewhere(state) => elsewhere(&state),
        }
        Ok(())
    }
}
