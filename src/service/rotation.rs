//! A new master key for every DEK while the daemon serves (docs/KEY_ROTATION.md).
//!
//! [`plan`] says what comes next, [`execute`] does it: a loop of look, plan, one step, look again. There is no state but the database's
//! and the key files', so a crash between or inside any two steps leaves what the next look goes on from.

mod execute;
mod plan;
mod report;
pub mod verify;
mod walk;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::Error;
use super::node::Node;
use crate::clock::Clock;
use crate::keys::Keyring;
use crate::model::{DekVersion, KeyMode, KeyPhase, Kid, NodeId, Tenant};
use crate::store::Store;

use execute::Carrier;
use verify::Verifier;

pub use report::{Dated, DryRun, Report, TenantValues};

/// What an operator asks of the rotation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// Counts, what would stop it, an estimate.
    DryRun,
    Start {
        mode: KeyMode,
        escrow: Escrow,
    },
    /// Goes on from where it is.
    Resume {
        proof: Option<Proof>,
        escrow: Escrow,
    },
    /// Gives the staged key up.
    Abort,
    /// Destroys a retired key.
    DestroyOld {
        kid: Kid,
        proof: Option<Proof>,
        escrow: Escrow,
    },
}

impl Asked {
    const fn proof(&self) -> Option<&Proof> {
        match self {
            Self::Resume { proof, .. } | Self::DestroyOld { proof, .. } => proof.as_ref(),
            Self::DryRun | Self::Start { .. } | Self::Abort => None,
        }
    }

    const fn escrow(&self) -> Escrow {
        match self {
            Self::Start { escrow, .. } | Self::Resume { escrow, .. } | Self::DestroyOld { escrow, .. } => *escrow,
            Self::DryRun | Self::Abort => Escrow::Prove,
        }
    }
}

/// How the key is to be known off the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Escrow {
    /// A copy is fed back from there.
    Prove,
    /// Not at all, and the operator says so.
    Waive,
}

/// A copy that was read off the host, in the command's own process. The key itself stays there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    pub kid: Kid,
    /// Where it was read: a path, or standard input.
    pub locator: String,
    pub sha256: [u8; 32],
}

/// What an operator asked, and who that was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    pub asked: Asked,
    /// Nodes that are away and may get the key later.
    pub without: Vec<NodeId>,
    /// For the record of a waiver, as audit records name callers.
    pub who: String,
}

/// How far it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    pub step: &'static str,
    pub done: u64,
    /// Absent where it is not known.
    pub total: Option<u64>,
    /// What is waited for, and the command that ends the wait.
    pub detail: Option<String>,
}

/// What a run tells who watches.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    Progress(Progress),
    Done(Box<Report>),
    Failed(Error),
}

impl Event {
    #[must_use]
    pub const fn is_last(&self) -> bool {
        !matches!(self, Self::Progress(_))
    }
}

/// What the rotation is made of.
pub struct RotationParts {
    pub store: Arc<dyn Store>,
    pub keys: Arc<Keyring>,
    pub node: Arc<Node>,
    pub clock: Arc<dyn Clock>,
    pub verifier: Verifier,
    /// For how long a retired key is kept.
    pub retain_old: Duration,
}

/// How often it is looked for a rotation that nobody carries.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// The rotations of a daemon: one run at a time.
pub struct Rotation {
    parts: Arc<RotationParts>,
    current: Mutex<Option<Current>>,
}

/// The run that is under way, or the last one.
struct Current {
    events: watch::Receiver<Event>,
    order: Arc<Mutex<Order>>,
    /// The order changed: what waits looks again.
    changed: Arc<Notify>,
    task: tokio::task::AbortHandle,
}

impl Current {
    fn is_under_way(&self) -> bool {
        !self.task.is_finished() && !self.events.borrow().is_last()
    }
}

impl Rotation {
    #[must_use]
    pub fn new(parts: RotationParts) -> Self {
        Self { parts: Arc::new(parts), current: Mutex::new(None) }
    }

    /// Begins a run in a task of its own: whoever asked may hang up.
    ///
    /// # Errors
    /// [`Error::Conflict`] while one is under way here.
    pub fn begin(&self, order: Order) -> Result<watch::Receiver<Event>, Error> {
        let mut current = lock(&self.current);
        if current.as_ref().is_some_and(Current::is_under_way) {
            return Err(Error::Conflict(
                "a rotation is under way in this daemon; watch it with `containarium admin rotate-master --resume`".to_owned(),
            ));
        }
        let (sender, events) = watch::channel(Event::Progress(Progress { step: "look", done: 0, total: None, detail: None }));
        let (order, changed) = (Arc::new(Mutex::new(order)), Arc::new(Notify::new()));
        let carrier = Carrier::new(Arc::clone(&self.parts), Arc::clone(&order), Arc::clone(&changed), sender);
        let task = tokio::spawn(carrier.carry()).abort_handle();
        *current = Some(Current { events: events.clone(), order, changed, task });
        Ok(events)
    }

    /// Gives the staged key up; a run that waits while it is staged turns to that.
    ///
    /// # Errors
    /// Those of [`Self::begin`] never come: where a run is under way, it is told.
    pub fn abort(&self, order: Order) -> Result<watch::Receiver<Event>, Error> {
        if let Some(current) = lock(&self.current).as_ref().filter(|current| current.is_under_way()) {
            *lock(&current.order) = order;
            current.changed.notify_one();
            return Ok(current.events.clone());
        }
        self.begin(order)
    }

    /// The run that is under way, or the last one since this daemon started.
    #[must_use]
    pub fn attach(&self) -> Option<watch::Receiver<Event>> {
        lock(&self.current).as_ref().map(|current| current.events.clone())
    }

    /// Carries on what a crash left past the flip, on this node at once and on another when the lease lapsed. One that was stopped by
    /// something that an operator must mend is begun once and left to them.
    pub async fn watch(&self) {
        let mut seen = None;
        loop {
            if let Some(at) = self.left_behind().await
                && seen != Some(at)
            {
                let asked = Asked::Resume { proof: None, escrow: Escrow::Prove };
                let order = Order { asked, without: Vec::new(), who: "daemon".to_owned() };
                if self.begin(order).is_ok() {
                    tracing::info!("going on with the rotation that is under way, phase {}", at.1);
                    seen = Some(at);
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// A rotation past the flip that nobody carries: its epoch and phase.
    async fn left_behind(&self) -> Option<(u64, KeyPhase)> {
        if lock(&self.current).as_ref().is_some_and(Current::is_under_way) || self.parts.node.may_write().await.is_err() {
            return None;
        }
        let state = self.parts.store.survey().await.ok()?.key_state?;
        let past = matches!(state.phase, KeyPhase::Rewrapping | KeyPhase::Verified | KeyPhase::Reencrypting);
        let now = self.parts.store.now().await.ok()?;
        let is_carried =
            state.lease.is_some_and(|lease| lease.node != self.parts.node.holder().node && lease.until > now);
        (past && !is_carried).then_some((state.epoch, state.phase))
    }

    /// Stops what is under way, as a crash would: it goes on from there at the next start.
    pub fn stop(&self) {
        if let Some(current) = lock(&self.current).as_ref() {
            current.task.abort();
        }
    }

    /// The key that waits for its proof.
    ///
    /// # Errors
    /// [`Error::NotFound`] where none is staged; [`Error::Unavailable`].
    pub async fn staged(&self) -> Result<Staged, Error> {
        let survey = self.parts.store.survey().await?;
        let staged = survey.master_keys.iter().find(|key| key.state == crate::model::MasterKeyState::Staged);
        let Some(key) = staged else {
            return Err(Error::NotFound("no master key is staged; `containarium admin status` shows the phase".to_owned()));
        };
        Ok(Staged { kid: key.kid, path: self.parts.node.files().retained_path(key.kid) })
    }

    /// Where the daemon keeps its key files: a copy there is none off the host.
    #[must_use]
    pub fn key_directory(&self) -> std::path::PathBuf {
        let path = self.parts.node.files().path();
        path.parent().map_or_else(|| path.clone(), std::path::Path::to_path_buf)
    }
}

/// A staged key, and its file on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Staged {
    pub kid: Kid,
    pub path: std::path::PathBuf,
}

/// The mutexes guard single values; a panic while one is held cannot leave half a change.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A DEK that does not open, or what of a tenant does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damaged {
    pub tenant: Tenant,
    /// Absent where it is not known which.
    pub version: Option<DekVersion>,
    pub why: String,
}

impl fmt::Display for Damaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.version {
            Some(version) => write!(f, "DEK {} {version} does not open: {}", self.tenant, self.why),
            None => write!(f, "tenant {}: {}", self.tenant, self.why),
        }
    }
}
