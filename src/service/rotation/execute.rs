//! Carries a rotation: looks, has the next step planned, does it, looks again.
//!
//! Nothing here remembers what must not be lost. A database that is away is waited for; a commit whose outcome is not known is answered
//! by the next look; a fence that does not hold means that somebody else was at work, and the next look shows what they did.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::AbortHandle;

use super::plan::{self, Blocked, Ended, Here, Next, Run, Snapshot, Stale, Step, Stop, Waiver};
use super::report::{self, Report, Tally};
use super::verify::VerifyError;
use super::walk::{self, WalkError, Walked};
use super::{Asked, Damaged, Order, Proof, Told, lock};
use crate::crypto::{self, KeyfileImage, MasterKey};
use crate::failpoint;
use crate::keys::keyfile::{KeyFile, KeyFiles, KeyfileError, MainFile};
use crate::keys::{Keys, KeysError};
use crate::model::{
    EscrowKind, EscrowRecord, KeyMode, KeyPhase, KeyState, Kid, MasterKeyRecord, MasterKeyState, Micros, NodeId,
    NodeRecord, Tenant,
};
use crate::service::job::Reporter;
use crate::service::node::NodeError;
use crate::service::{Error, Service};
use crate::store::StoreError;
use crate::store::masters::{
    DestroyOutcome, EscrowStage, Fence, Fenced, FlipOutcome, NewEscrow, NewMaster, RetireOutcome, StageOutcome,
    UnderKey,
};

/// For how long another node is kept out without a sign of life.
const LEASE: Duration = Duration::from_secs(30);
const RENEW_EVERY: Duration = Duration::from_secs(10);
/// Tenants that are read at a time.
const TENANTS: u32 = 500;
/// Between two looks at what is waited for.
const PAUSE: Duration = Duration::from_secs(1);
/// How often a database that is away is tried before the flip, where an operator can as well ask again.
const PATIENCE: u32 = 30;

/// What ended a step before its time.
pub(super) enum Trouble {
    /// The database is away, or broke off at a commit: look again.
    Away(String),
    /// What was planned does not hold any more, or something needs an operator.
    Failed(Error),
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(_) | StoreError::UnknownOutcome(_) => Self::Away(error.to_string()),
            StoreError::Corrupt { .. } => Self::Failed(Error::Incomplete(format!(
                "{error}. Restore that row from a backup; then go on with `containarium admin rotate-master --resume`"
            ))),
            StoreError::Newer { .. } | StoreError::Unusable(_) | StoreError::Refused(_) => {
                tracing::error!("{error}");
                Self::Failed(Error::Incomplete(error.to_string()))
            }
        }
    }
}

impl From<NodeError> for Trouble {
    fn from(error: NodeError) -> Self {
        match error {
            NodeError::Store(error) => error.into(),
            other => Self::Failed(Error::Unavailable(other.to_string())),
        }
    }
}

impl From<WalkError> for Trouble {
    fn from(error: WalkError) -> Self {
        match error {
            WalkError::Store(error) => error.into(),
            WalkError::Keys(KeysError::NotLoaded(kid)) => Self::Failed(blocked(&Blocked::NotLoaded(kid))),
            WalkError::Keys(error) => Self::Failed(Error::Unavailable(error.to_string())),
            WalkError::Stopping(error) => Self::Failed(error),
            WalkError::Panicked => panicked(),
        }
    }
}

fn panicked() -> Trouble {
    Trouble::Failed(Error::Incomplete("a thread ended with a panic; the daemon's log has its place".to_owned()))
}

/// A reason to stop as an answer: 404 for what is not there, 409 for what the state does not allow, 503 for what must come, else 500.
fn blocked(why: &Blocked) -> Error {
    let text = why.to_string();
    match why {
        Blocked::Regressed(_)
        | Blocked::NotLoaded(_)
        | Blocked::NoStagedFile(_)
        | Blocked::LostNodes { .. }
        | Blocked::Promotion(_) => Error::Unavailable(text),
        Blocked::UnknownNode(_) | Blocked::UnknownKey(_) | Blocked::NothingStaged => Error::NotFound(text),
        Blocked::WrongCopy { .. } => Error::Invalid(text),
        Blocked::Corrupt(_) | Blocked::Damage { .. } | Blocked::NoProgress(_) | Blocked::Verification(_) => {
            Error::Incomplete(text)
        }
        Blocked::Busy { .. }
        | Blocked::StagedAlready(_)
        | Blocked::UnderWay(_)
        | Blocked::GivenUp
        | Blocked::PastTheFlip(_)
        | Blocked::NotRetired { .. }
        | Blocked::TooEarly { .. }
        | Blocked::NotReadBack(_)
        | Blocked::Quarantined { .. } => Error::Conflict(text),
    }
}

impl Step {
    /// As progress and logs name it.
    const fn name(&self) -> &'static str {
        match self {
            Self::TakeLease => "lease",
            Self::Preflight => "preflight",
            Self::Stage(_) => "stage",
            Self::Waive(_) | Self::Record(_) => "escrow",
            Self::Flip { .. } => "flip",
            Self::Rewrap { .. } => "rewrap",
            Self::Verify => "verify",
            Self::Reopen => "reopen",
            Self::Promote(_) => "promote",
            Self::Retire(_) => "retire",
            Self::Reencrypt => "reencrypt",
            Self::Finish => "finish",
            Self::Abort(_) => "abort",
            Self::Destroy { .. } => "destroy",
        }
    }
}

/// What one look saw.
pub(super) struct Seen {
    pub(super) state: KeyState,
    pub(super) keys: Vec<MasterKeyRecord>,
    pub(super) escrows: Vec<EscrowRecord>,
    pub(super) nodes: Vec<NodeRecord>,
    pub(super) now: Micros,
    pub(super) here: Here,
    under_old: UnderKey,
    stale: Stale,
}

/// One run.
pub(super) struct Carrier {
    service: Arc<Service>,
    told: Told,
    reporter: Reporter,
    run: Run,
    tally: Tally,
    /// The phase that was seen last.
    phase: KeyPhase,
    /// How often in a row the database was away.
    away: u32,
    renewal: Option<Renewal>,
}

/// Renews the lease until it is dropped, in a task of its own: a step may take longer than the lease lasts.
struct Renewal(AbortHandle);

impl Drop for Renewal {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Carrier {
    pub(super) fn new(service: Arc<Service>, told: Told, reporter: Reporter) -> Self {
        let (run, tally) = (Run::default(), Tally::default());
        Self { service, told, reporter, run, tally, phase: KeyPhase::Idle, away: 0, renewal: None }
    }

    /// Until it is done, or cannot go on.
    pub(super) async fn carry(mut self) -> Result<Report, Error> {
        let end = loop {
            match self.once().await {
                Ok(None) => self.away = 0,
                Ok(Some(report)) => break Ok(report),
                Err(Trouble::Failed(error)) => break Err(error),
                Err(Trouble::Away(why)) => {
                    if let Err(error) = self.wait_for_database(why).await {
                        break Err(error);
                    }
                }
            }
        };
        drop(self.renewal.take());
        if let Err(error) = self.service.store.release_lease(self.service.node.holder()).await {
            tracing::debug!("the lease lapses by itself: {error}");
        }
        match &end {
            Err(error) => tracing::error!("the rotation stopped: {error}"),
            Ok(report) => tracing::info!("{}", report.headline()),
        }
        end
    }

    async fn wait_for_database(&mut self, why: String) -> Result<(), Error> {
        self.away += 1;
        let past_the_flip = matches!(self.phase, KeyPhase::Rewrapping | KeyPhase::Verified | KeyPhase::Reencrypting);
        if !past_the_flip && self.away > PATIENCE {
            return Err(Error::Unavailable(format!(
                "{why}. When it is back: `containarium admin rotate-master --resume`"
            )));
        }
        tracing::warn!("the rotation waits: {why}");
        self.reporter.say(format!("waiting: {why}"), 0, None);
        self.pause().await;
        Ok(())
    }

    /// Says how far it is, and whether to go on.
    fn tell(&self, step: impl Into<Cow<'static, str>>, done: u64, total: Option<u64>) -> Result<(), Error> {
        self.reporter.say(step, done, total);
        self.reporter.go_on()
    }

    /// One step; the report where there is none left.
    async fn once(&mut self) -> Result<Option<Report>, Trouble> {
        self.reporter.go_on().map_err(Trouble::Failed)?;
        let Some(order) = lock(&self.told.order).clone() else {
            return Err(Trouble::Failed(Error::Incomplete("nothing was asked".to_owned())));
        };
        self.service.node.tick().await?;
        let seen = self.look(&order).await?;
        self.phase = seen.state.phase;
        if seen.state.phase != KeyPhase::Idle {
            self.tally.mode = seen.state.mode;
        }
        let snapshot = Snapshot {
            asked: &order.asked,
            me: self.service.node.holder(),
            state: &seen.state,
            keys: &seen.keys,
            escrows: &seen.escrows,
            nodes: &seen.nodes,
            without: &order.without,
            now: seen.now,
            retain_old: self.service.rotation.retain_old,
            here: &seen.here,
            under_old: seen.under_old,
            stale: seen.stale,
            run: &self.run,
        };
        match plan::next(&snapshot) {
            Next::Do(step, reason) => {
                tracing::info!("rotation: {}: {reason}", step.name());
                self.reporter.say(step.name(), 0, None);
                self.act(step, &seen, &order).await?;
                Ok(None)
            }
            Next::WaitForNodes { kid, nodes } => {
                self.wait_for_nodes(kid, &nodes, seen.nodes.len()).await;
                Ok(None)
            }
            Next::Stop(stop) => self.report(stop, &order, &seen).await.map(Some),
            Next::Blocked(why) => Err(Trouble::Failed(blocked(&why))),
        }
    }

    async fn wait_for_nodes(&self, kid: Kid, nodes: &[NodeRecord], all: usize) {
        let ids: Vec<String> = nodes.iter().map(|node| node.node.to_string()).collect();
        let step = format!(
            "waiting for nodes: {}. Feed each of them the new key, {kid}: `ssh NODE containarium admin install-key < FILE`. Nodes that hold \
             it",
            ids.join(", ")
        );
        self.reporter.say(step, (all - nodes.len()) as u64, Some(all as u64));
        self.pause().await;
    }

    /// Until something may have changed.
    async fn pause(&self) {
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = self.told.changed.notified() => {}
        }
    }

    async fn look(&self, order: &Order) -> Result<Seen, Trouble> {
        let parts = &self.service;
        let refused = parts.node.may_write().await.err();
        let survey = parts.store.survey().await?;
        let Some(state) = survey.key_state else {
            return Err(Trouble::Failed(Error::Unavailable("the database has held no master key yet".to_owned())));
        };
        let nodes = parts.store.nodes().await?;
        let me = parts.node.holder().node;
        let durable = nodes.iter().find(|node| node.node == me).map_or_else(Vec::new, |node| node.durable_kids.clone());
        let loaded = match &*parts.keys.state() {
            Keys::Open(ring) => ring.kids(),
            Keys::Locked(_) => Vec::new(),
        };
        let here = Here { durable, main: self.main().await?, loaded, refused: refused.map(|error| error.to_string()) };
        let counted = match (&order.asked, state.phase) {
            (Asked::DestroyOld { kid, .. }, _) => Some(*kid),
            (_, KeyPhase::Rewrapping | KeyPhase::Verified) => {
                let old = survey.master_keys.iter().find(|key| key.state == MasterKeyState::DecryptOnly);
                old.map(|key| key.kid)
            }
            _ => None,
        };
        let under_old = match counted {
            Some(kid) => parts.store.count_under(kid).await?,
            None => UnderKey::default(),
        };
        let from_before = match state.phase {
            KeyPhase::Reencrypting => self.stale().await?,
            _ => Stale::None,
        };
        Ok(Seen {
            state,
            keys: survey.master_keys,
            escrows: parts.store.escrows().await?,
            nodes,
            now: parts.store.now().await?,
            here,
            under_old,
            stale: from_before,
        })
    }

    async fn stale(&self) -> Result<Stale, Trouble> {
        let some = self.service.store.made_before_active(None, 1).await?;
        Ok(if some.is_empty() { Stale::None } else { Stale::Some })
    }

    async fn main(&self) -> Result<Option<Kid>, Trouble> {
        let scan = self.with_files(|files| Ok(files.scan())).await?;
        Ok(match scan {
            Ok(scan) => match scan.main {
                MainFile::Key(key) => Some(key.kid),
                MainFile::Missing | MainFile::Bad(_) => None,
            },
            Err(_) => None,
        })
    }

    /// Key files are read and written on threads that may block.
    async fn with_files<T: Send + 'static>(
        &self,
        work: impl FnOnce(&KeyFiles) -> Result<T, KeyfileError> + Send + 'static,
    ) -> Result<Result<T, KeyfileError>, Trouble> {
        let files = self.service.node.files().clone();
        tokio::task::spawn_blocking(move || work(&files)).await.map_err(|_| panicked())
    }

    async fn act(&mut self, step: Step, seen: &Seen, order: &Order) -> Result<(), Trouble> {
        let holder = self.service.node.holder();
        let fence = Fence { holder, epoch: seen.state.epoch, active: seen.state.active_kid, phase: seen.state.phase };
        match step {
            Step::TakeLease => return self.take_lease().await,
            Step::Preflight => return self.preflight(&seen.state).await,
            Step::Stage(mode) => self.stage(&fence, mode).await?,
            Step::Waive(kid) => self.waive(kid, &order.who).await?,
            Step::Record(proof) => self.record(&proof).await?,
            Step::Flip { to, without } => self.flip(&fence, to, &without).await?,
            Step::Rewrap { old, left } => self.rewrap(&fence, old, left).await?,
            Step::Verify => self.verify(&fence).await?,
            Step::Reopen => self.set_phase(&fence, KeyPhase::Rewrapping).await?,
            Step::Promote(kid) => self.promote(kid).await?,
            Step::Retire(old) => self.retire(&fence, old).await?,
            Step::Reencrypt => self.reencrypt().await?,
            Step::Finish => {
                failpoint::reached("rotation.reencrypted");
                self.set_phase(&fence, KeyPhase::Idle).await?;
                failpoint::reached("rotation.finished");
            }
            Step::Abort(kid) => self.abort(&fence, kid).await?,
            Step::Destroy { kid, waiver } => self.destroy(kid, waiver, &order.who).await?,
        }
        self.run.carried = true;
        Ok(())
    }

    async fn take_lease(&mut self) -> Result<(), Trouble> {
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

    async fn preflight(&mut self, state: &KeyState) -> Result<(), Trouble> {
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

    fn note_damage(&mut self, walked: Walked) {
        for damaged in &walked.damaged {
            tracing::error!(tenant = %damaged.tenant, "{damaged}");
        }
        self.run.damaged = walked.damaged;
        self.run.more_damaged = walked.more_damaged;
    }

    /// The file first: a row without a file would be a promise that this node cannot keep. A file without a row is nobody's.
    async fn stage(&mut self, fence: &Fence, mode: KeyMode) -> Result<(), Trouble> {
        let master =
            MasterKey::make_random().map_err(|error| Trouble::Failed(Error::Unavailable(error.to_string())))?;
        // Under the lock: `kms wrap` may be at work.
        let staged = self.with_files(move |files| {
            let lock = files.lock()?;
            let is_wrapped = matches!(files.scan().main, MainFile::Key(main) if main.wrapped().is_some());
            if is_wrapped { Ok(None) } else { lock.stage(&master).map(Some) }
        });
        let staged = staged.await?.map_err(|error| {
            Trouble::Failed(Error::Unavailable(format!(
                "the new key was not staged, and nothing happened: {error}. Mend that, then start again with `containarium admin \
                 rotate-master`"
            )))
        })?;
        // A raw key beside a wrapped one would take its root away without a word.
        let Some(kid) = staged else {
            return Err(Trouble::Failed(Error::Conflict(
                "the key file is wrapped, and a new key would be written raw: nothing was changed. Unwrap it, rotate, and wrap the new key: \
                 `containarium kms unwrap`, then `containarium admin rotate-master`, then `containarium kms wrap`"
                    .to_owned(),
            )));
        };
        failpoint::reached("rotation.staged-file");
        self.run.staged = Some(kid);
        let entered = self.service.store.stage(fence, &NewMaster { kid, mode, wrapped_file: None }).await;
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

    async fn waive(&self, kid: Kid, who: &str) -> Result<(), Trouble> {
        failpoint::reached("rotation.waiving");
        self.service.store.add_escrow(&waiver(kid, who)?).await?;
        failpoint::reached("rotation.waived");
        Ok(())
    }

    /// The command says what it read; where the key lies here too, its checksum must be that of the copy.
    async fn record(&self, proof: &Proof) -> Result<(), Trouble> {
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
            kind: EscrowKind::Copy,
            stage: EscrowStage::ReadBack,
        };
        self.service.store.add_escrow(&escrow).await?;
        failpoint::reached("rotation.recorded");
        Ok(())
    }

    async fn flip(&mut self, fence: &Fence, to: Kid, without: &[NodeId]) -> Result<(), Trouble> {
        failpoint::reached("rotation.flipping");
        let flipped = self.service.store.flip(fence, to, without).await?;
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

    async fn rewrap(&mut self, fence: &Fence, old: Kid, left: u64) -> Result<(), Trouble> {
        let (store, keys) = (Arc::clone(&self.service.store), Arc::clone(&self.service.keys));
        let before = self.tally.rewrapped;
        let total = Some(before + left);
        let tell = |done| self.tell("rewrap", before + done, total);
        match walk::rewrap(&*store, &keys, fence, old, tell).await? {
            Ok(walked) => {
                self.tally.old = Some(old);
                self.tally.rewrapped += walked.done;
                self.run.idle_passes = if walked.done == 0 { self.run.idle_passes + 1 } else { 0 };
                self.note_damage(walked);
                failpoint::reached("rotation.rewrapped");
            }
            Err(state) => elsewhere(&state),
        }
        Ok(())
    }

    async fn set_phase(&self, fence: &Fence, to: KeyPhase) -> Result<(), Trouble> {
        if let Fenced::Elsewhere(state) = self.service.store.set_phase(fence, to).await? {
            elsewhere(&state);
        }
        Ok(())
    }

    async fn verify(&mut self, fence: &Fence) -> Result<(), Trouble> {
        failpoint::reached("rotation.verifying");
        let tell = |done| self.tell("verify", done, None);
        match self.service.rotation.verifier.run(tell).await {
            Err(VerifyError::Stopping(error)) => return Err(Trouble::Failed(error)),
            Err(VerifyError::Failed(why)) => self.run.verification = Some(why),
            Ok(walked) if walked.damaged.is_empty() => {
                self.tally.verified = walked.done;
                failpoint::reached("rotation.verified");
                self.set_phase(fence, KeyPhase::Verified).await?;
                failpoint::reached("rotation.verified-phase");
            }
            Ok(walked) => self.note_damage(walked),
        }
        Ok(())
    }

    async fn promote(&mut self, kid: Kid) -> Result<(), Trouble> {
        failpoint::reached("rotation.promoting");
        match self.with_files(move |files| files.lock()?.promote(kid)).await? {
            Ok(()) => failpoint::reached("rotation.promoted"),
            Err(error) => self.run.promotion = Some(format!("the active key was not put into the key file: {error}")),
        }
        Ok(())
    }

    async fn retire(&mut self, fence: &Fence, old: Kid) -> Result<(), Trouble> {
        failpoint::reached("rotation.retiring");
        let retired = self.service.store.retire(fence, old).await?;
        failpoint::reached("rotation.retired");
        match retired {
            Fenced::Done(RetireOutcome::Retired(_)) => {
                tracing::info!("master key {old} is retired: the database refuses it from now on");
                self.tally.old = Some(old);
            }
            Fenced::Done(other) => tracing::warn!("not retired: {other:?}"),
            Fenced::Elsewhere(state) => elsewhere(&state),
        }
        Ok(())
    }

    /// Every tenant with a DEK from before, one after the other; what is wrong with one keeps no other from its turn.
    async fn reencrypt(&mut self) -> Result<(), Trouble> {
        let (mut walked, mut after) = (Walked::default(), None);
        let total = self.service.store.counts().await?.tenants;
        loop {
            let page = self.service.store.made_before_active(after.as_ref(), TENANTS).await?;
            for tenant in &page {
                self.tell("reencrypt", self.tally.reencrypted, Some(total)).map_err(Trouble::Failed)?;
                if let Some(damaged) = self.reencrypt_tenant(tenant).await? {
                    walked.damaged.push(damaged);
                }
            }
            after = page.into_iter().next_back();
            if after.is_none() {
                break;
            }
        }
        self.note_damage(walked);
        Ok(())
    }

    async fn reencrypt_tenant(&mut self, tenant: &Tenant) -> Result<Option<Damaged>, Trouble> {
        failpoint::reached("rotation.renewing-dek");
        if let Err(error) = self.service.renew_dek(tenant).await {
            return unless_away(tenant, error);
        }
        failpoint::reached("rotation.renewed-dek");
        if tenant.is_system() {
            // The versions before stay: records of their time are verified with them.
            self.service.renew_system_keys().await.map_err(Trouble::Failed)?;
            failpoint::reached("rotation.renewed-system-keys");
        }
        let sealed = match self.service.reencrypt_tenant(tenant, &self.reporter, &|_, _| ()).await {
            Ok(sealed) => sealed,
            Err(error) => return unless_away(tenant, error),
        };
        failpoint::reached("rotation.reencrypted-tenant");
        self.tally.reencrypted += 1;
        let why = || format!("{} versions do not open: {}", sealed.left, sealed.damaged.join("; "));
        Ok((sealed.left > 0 || !sealed.damaged.is_empty()).then(|| Damaged {
            tenant: tenant.clone(),
            version: None,
            why: why(),
        }))
    }

    async fn abort(&mut self, fence: &Fence, kid: Kid) -> Result<(), Trouble> {
        failpoint::reached("rotation.aborting");
        match self.service.store.abort(fence, kid).await? {
            Fenced::Done(_) => {
                failpoint::reached("rotation.aborted");
                self.run.ended = Some(Ended::Aborted);
                self.tally.aborted = Some(kid);
            }
            Fenced::Elsewhere(state) => elsewhere(&state),
        }
        Ok(())
    }

    async fn destroy(&mut self, kid: Kid, by: Waiver, who: &str) -> Result<(), Trouble> {
        failpoint::reached("rotation.destroying");
        let waiver = match by {
            Waiver::None => None,
            Waiver::ByOperator => Some(waiver(kid, who)?),
        };
        let outcome = self.service.store.destroy_master(kid, self.service.rotation.retain_old, waiver.as_ref()).await?;
        failpoint::reached("rotation.destroyed");
        match outcome {
            DestroyOutcome::Destroyed => {
                self.run.ended = Some(Ended::Destroyed);
                Ok(())
            }
            DestroyOutcome::NotRetired(state) => Err(match state {
                Some(state) => Blocked::NotRetired { kid, state },
                None => Blocked::UnknownKey(kid),
            }),
            DestroyOutcome::NotBefore(at) => Err(Blocked::TooEarly { kid, at }),
            DestroyOutcome::NotReadBack => Err(Blocked::NotReadBack(kid)),
            DestroyOutcome::Quarantined(deks) => Err(Blocked::Quarantined { kid, deks }),
        }
        .map_err(|why| Trouble::Failed(blocked(&why)))
    }

    async fn report(&self, stop: Stop, order: &Order, seen: &Seen) -> Result<Report, Trouble> {
        let mut report =
            Report::make(stop, seen, &self.tally, order, self.service.node.files(), self.service.rotation.retain_old);
        if self.tally.mode == KeyMode::Compromised && stop == Stop::Rotated {
            report.values = report::values_to_change(&*self.service.store).await?;
        }
        Ok(report)
    }
}

/// What concerns one tenant is kept for the end; a database that is away is waited for.
fn unless_away(tenant: &Tenant, error: Error) -> Result<Option<Damaged>, Trouble> {
    match error {
        Error::Unavailable(why) => Err(Trouble::Away(why)),
        // Blocked or gone since: nothing of it is read any more.
        Error::Denied(_) | Error::NotFound(_) => Ok(None),
        error => Ok(Some(Damaged { tenant: tenant.clone(), version: None, why: error.to_string() })),
    }
}

/// The fence did not hold: what was planned is not done, and the next look shows why.
fn elsewhere(state: &KeyState) {
    tracing::warn!("somebody else was at work: epoch {}, phase {}", state.epoch, state.phase);
}

fn random_id() -> Result<String, Trouble> {
    crypto::random_id().map_err(|error| Trouble::Failed(Error::Incomplete(error.to_string())))
}

/// The record that an operator wants no copy of this key, with who that is.
fn waiver(kid: Kid, who: &str) -> Result<NewEscrow, Trouble> {
    Ok(NewEscrow {
        id: random_id()?,
        kid,
        target: who.to_owned(),
        locator: None,
        content_sha256: None,
        kind: EscrowKind::Waiver,
        stage: EscrowStage::Confirmed,
    })
}
