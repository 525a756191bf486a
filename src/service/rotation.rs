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

use tokio::sync::Notify;

use super::Error;
use super::job::{Job, Watch, Workers};
use super::node::Node;
use crate::clock::Clock;
use crate::keys::Keyring;
use crate::model::{DekVersion, KeyMode, KeyPhase, Kid, NodeId, Tenant};
use crate::store::Store;

use execute::Carrier;
use verify::Verifier;

pub use report::{Outcome, Report, TenantValues};

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
/// How soon one is taken up again that stopped for a reason that did not go away.
const AGAIN_AFTER: Duration = Duration::from_mins(1);

/// The rotations of a daemon: one run at a time.
pub struct Rotation {
    parts: Arc<RotationParts>,
    job: Job<Report>,
    workers: Workers,
    /// What the run that is under way, or was last, goes by.
    told: Mutex<Told>,
}

/// An order that may change while it is carried out: what is staged and waits can be given up.
#[derive(Clone, Default)]
struct Told {
    order: Arc<Mutex<Option<Order>>>,
    /// What waits looks again.
    changed: Arc<Notify>,
}

impl Rotation {
    #[must_use]
    pub fn new(parts: RotationParts, workers: Workers) -> Self {
        Self { parts: Arc::new(parts), job: Job::new("rotate-master"), workers, told: Mutex::default() }
    }

    /// Begins a run in a task of its own: whoever asked may hang up.
    ///
    /// # Errors
    /// [`Error::Conflict`] while one is under way here; [`Error::Unavailable`] when the daemon is stopping.
    pub fn begin(&self, order: Order) -> Result<Watch<Report>, Error> {
        let told = Told { order: Arc::new(Mutex::new(Some(order))), changed: Arc::default() };
        let (parts, given) = (Arc::clone(&self.parts), told.clone());
        let watch = self.job.begin(&self.workers, |reporter| Carrier::new(parts, given, reporter).carry())?;
        *lock(&self.told) = told;
        Ok(watch)
    }

    /// Gives the staged key up; a run that waits while it is staged turns to that.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the daemon is stopping.
    pub fn abort(&self, order: Order) -> Result<Watch<Report>, Error> {
        match self.begin(order.clone()) {
            Err(Error::Conflict(_)) => {
                let told = lock(&self.told).clone();
                *lock(&told.order) = Some(order);
                told.changed.notify_one();
                self.job.watch()
            }
            begun => begun,
        }
    }

    /// The run that is under way, or the last one since this daemon started.
    ///
    /// # Errors
    /// [`Error::NotFound`] where there was none.
    pub fn attach(&self) -> Result<Watch<Report>, Error> {
        self.job.watch()
    }

    /// Carries on what a crash left past the flip, on this node at once and on another when the lease lapsed. One that was stopped by
    /// something that an operator must mend is begun once and left to them.
    pub async fn watch(&self) {
        let mut tried: Option<((u64, KeyPhase), Duration)> = None;
        loop {
            let now = self.parts.clock.monotonic();
            let again = |at| tried.is_none_or(|(before, when)| before != at || now.saturating_sub(when) >= AGAIN_AFTER);
            if let Some(at) = self.left_behind().await.filter(|at| again(*at)) {
                let asked = Asked::Resume { proof: None, escrow: Escrow::Prove };
                let order = Order { asked, without: Vec::new(), who: "daemon".to_owned() };
                if self.begin(order).is_ok() {
                    tracing::info!("going on with the rotation that is under way, phase {}", at.1);
                    tried = Some((at, now));
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// A rotation past the flip that no other node carries: its epoch and phase.
    async fn left_behind(&self) -> Option<(u64, KeyPhase)> {
        self.parts.node.may_write().await.ok()?;
        let state = self.parts.store.survey().await.ok()?.key_state?;
        let past = matches!(state.phase, KeyPhase::Rewrapping | KeyPhase::Verified | KeyPhase::Reencrypting);
        let lease = state.lease.filter(|lease| past && lease.node != self.parts.node.holder().node);
        let is_carried = match lease {
            Some(lease) => lease.until > self.parts.store.now().await.ok()?,
            None => false,
        };
        (past && !is_carried).then_some((state.epoch, state.phase))
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
