//! Carries a rotation: looks, has the next step planned, does it, looks again.
//!
//! Nothing here remembers what must not be lost. A database that is away is waited for; a commit whose outcome is not known is answered
//! by the next look; a fence that does not hold means that somebody else was at work, and the next look shows what they did.

mod after;
mod before;
mod escrow;
mod look;
mod trouble;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::AbortHandle;

use super::plan::{self, Next, Run, Snapshot, Step, Stop, Tried};
use super::report::{self, Report, Tally};
use super::told::{Told, unless_late};
use super::walk::Walked;
use super::{Order, is_past_the_flip};
use crate::failpoint;
use crate::keys::keyfile::{KeyFiles, KeyfileError};
use crate::model::{Action, KeyMode, KeyPhase, KeyState, Kid, NodeRecord, Tenant};
use crate::service::change::Change;
use crate::service::job::Reporter;
use crate::service::{Error, Service};
use crate::store::masters::Fence;

use trouble::panicked;

pub(super) use look::Seen;
pub(super) use trouble::{Trouble, blocked};

/// Between two looks at what is waited for.
const PAUSE: Duration = Duration::from_secs(1);
/// How often a database that is away is tried before the flip, where an operator can as well ask again.
const PATIENCE: u32 = 30;

impl Step {
    /// As progress and logs name it.
    const fn name(&self) -> &'static str {
        match self {
            Self::TakeLease => "lease",
            Self::Preflight => "preflight",
            Self::Stage(_) => "stage",
            Self::Push(_) | Self::Waive(_) | Self::Record(_) => "escrow",
            Self::Flip { .. } => "flip",
            Self::Rewrap { .. } => "rewrap",
            Self::Verify => "verify",
            Self::Reopen => "reopen",
            Self::Promote(_) => "promote",
            Self::Retire(_) => "retire",
            Self::Reencrypt => "reencrypt",
            Self::Finish => "finish",
            Self::Abort(..) => "abort",
            Self::Destroy { .. } => "destroy",
        }
    }
}

/// One run.
pub(super) struct Carrier {
    service: Arc<Service>,
    /// What this run was begun for.
    own: Order,
    told: Told,
    /// The order that was read last.
    read: Option<Order>,
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
    pub(super) fn new(service: Arc<Service>, own: Order, told: Told, reporter: Reporter) -> Self {
        let (run, tally) = (Run::of(&own.asked), Tally::default());
        Self { service, own, told, read: None, reporter, run, tally, phase: KeyPhase::Idle, away: 0, renewal: None }
    }

    /// Until it is done, or cannot go on.
    pub(super) async fn carry(mut self) -> Result<Report, Error> {
        let end = loop {
            let end = match self.once().await {
                Ok(None) => {
                    self.away = 0;
                    continue;
                }
                Ok(Some(report)) => Ok(report),
                Err(Trouble::Failed(error)) => Err(error),
                Err(Trouble::Away(why)) => match self.wait_for_database(why).await {
                    Ok(()) => continue,
                    Err(error) => Err(error),
                },
            };
            // Whoever asks for something from here on is told that this run is over, not how it ended.
            if self.told.close(self.read.as_ref()) {
                break end;
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
        if !is_past_the_flip(self.phase) && self.away > PATIENCE {
            let again = self.read.as_ref().map_or("--resume", |order| order.asked.again());
            let unknown = match self.run.tried {
                None => String::new(),
                Some(Tried::Abort(kid)) => format!("Whether the staged key {kid} is given up is not known. "),
                Some(Tried::Destroy(kid)) => format!("Whether master key {kid} is destroyed is not known. "),
            };
            return Err(Error::Unavailable(format!(
                "{why}. {unknown}When it is back, `containarium admin status` shows the keys; then go on with `containarium admin \
                 rotate-master {again}`"
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
        self.read = self.told.order();
        self.reporter.go_on().map_err(Trouble::Failed)?;
        let Some(order) = self.read.clone() else {
            return Err(Trouble::Failed(Error::Incomplete("nothing was asked".to_owned())));
        };
        self.service.node.tick().await?;
        let seen = self.look(&order).await?;
        let order = unless_late(order, &self.own, seen.state.phase);
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
            without: &order.terms.without,
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
        let fetch = match self.service.copied_to() {
            [] => String::new(),
            _ => format!(", or fetch it there: `containarium backup restore --kid {kid}`"),
        };
        // What travels through the database is taken by each node that may open it.
        let by_itself = match self.service.store.wrapped_file(kid).await {
            Ok(Some(_)) => {
                "Each takes the new key from the database, once KMS opens it for that node; `containarium admin doctor` there says why it does \
                 not. Or: "
            }
            Ok(None) | Err(_) => "",
        };
        let step = format!(
            "waiting for nodes: {}. {by_itself}Feed each of them the new key, {kid}: `ssh NODE containarium admin install-key < FILE`{fetch}. \
             Nodes that hold it",
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

    /// Key files are read and written on threads that may block.
    async fn with_files<T: Send + 'static>(
        &self,
        work: impl FnOnce(&KeyFiles) -> Result<T, KeyfileError> + Send + 'static,
    ) -> Result<Result<T, KeyfileError>, Trouble> {
        let files = self.service.node.files().clone();
        tokio::task::spawn_blocking(move || work(&files)).await.map_err(|_| panicked())
    }

    /// Where a step makes its change; the record of the order says at whose word.
    async fn change(&self, action: Action, tenant: Option<&Tenant>) -> Result<Change, Trouble> {
        match self.service.own_change(action, tenant).await {
            Err(Error::Unavailable(why)) => Err(Trouble::Away(why)),
            change => change.map_err(Trouble::Failed),
        }
    }

    async fn act(&mut self, step: Step, seen: &Seen, order: &Order) -> Result<(), Trouble> {
        let holder = self.service.node.holder();
        let fence = Fence { holder, epoch: seen.state.epoch, active: seen.state.active_kid, phase: seen.state.phase };
        match step {
            Step::TakeLease => return self.take_lease().await,
            Step::Preflight => return self.preflight(&seen.state).await,
            Step::Stage(mode) => self.stage(&fence, mode, order).await?,
            Step::Push(kid) => self.push(kid, order.terms.only_way).await?,
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
            Step::Abort(kid, given_up) => self.abort(&fence, kid, given_up).await?,
            Step::Destroy { kid, waiver } => self.destroy(kid, waiver, order).await?,
        }
        self.run.carried = true;
        Ok(())
    }

    fn note_damage(&mut self, walked: Walked) {
        for damaged in &walked.damaged {
            tracing::error!(tenant = %damaged.tenant, "{damaged}");
        }
        self.run.damaged = walked.damaged;
        self.run.more_damaged = walked.more_damaged;
    }

    async fn report(&self, stop: Stop, order: &Order, seen: &Seen) -> Result<Report, Trouble> {
        let mut report = Report::make(
            stop,
            seen,
            &self.tally,
            order,
            self.service.node.files(),
            self.service.rotation.retain_old,
            self.service.copied_to(),
        );
        // One that travels through the database is taken there by each node itself.
        if let Stop::NeedsCopy(kid) = stop
            && self.service.store.wrapped_file(kid).await?.is_none()
        {
            report.hand_over(kid, seen);
        }
        if self.tally.mode == KeyMode::Compromised && stop == Stop::Rotated {
            report.values = report::values_to_change(&*self.service.store).await?;
        }
        Ok(report)
    }
}

/// The fence did not hold: what was planned is not done, and the next look shows why.
fn elsewhere(state: &KeyState) {
    tracing::warn!("somebody else was at work: epoch {}, phase {}", state.epoch, state.phase);
}
