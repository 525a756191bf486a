//! This daemon as a node: what it knows of the database, what its key files are, and whether it may write.
//!
//! Each tick reads the state of the database and holds it against what this node has seen before. A database that went back closes the
//! gate: nothing is written, no file is touched, and no DEK is made until an operator accepts it; reads go on where keys fit. Otherwise
//! the node's record is carried on, its keys and key files converge to what the database says, and its heartbeat says what it holds.
//! Every step can be the last before a crash: the next tick does it again.

mod beat;
mod converge;
mod mark;
mod restore;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;

use super::Error;
use crate::access::{RevokedHere, TokenKey};
use crate::clock::Clock;
use crate::crypto::{self, NoRandom};
use crate::keys::keyfile::{KeyFiles, Synced};
use crate::keys::start::BringBack;
use crate::keys::unlock::Unlocker;
use crate::keys::{Keyring, Keys};
use crate::model::{BootId, Kid, Micros, NodeId};
use crate::node::{Behind, Mark, NodeFile, NodeFileError, Notice};
use crate::store::masters::Holder;
use crate::store::{Store, StoreError, Survey};

use converge::Taken;

pub use restore::{AcceptedRestore, Agreed, Deed, Gaps, NeededKey, Replay, RestorePlan};

/// How often the daemon ticks.
pub const TICK: Duration = Duration::from_secs(2);
/// How long a key that is not there is not looked for again.
const MISSED: Duration = Duration::from_secs(1);

/// Why a tick did not come to its end. What it did before stays done.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error(
        "another process (boot {boot}, last seen {seen_at}) uses this node's id, {node}: its data directory was copied, or this one is \
         the copy. Two nodes need a data directory each: stop the other, or start this one with another --data-dir (if the other is \
         gone for good, start again in 30 seconds)"
    )]
    Taken { node: NodeId, boot: BootId, seen_at: Micros },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("what this node has seen of the database could not be recorded: {0}")]
    File(#[from] NodeFileError),
    #[error(transparent)]
    NoRandom(#[from] NoRandom),
    #[error("a thread of this node ended with a panic")]
    Panicked,
}

/// What the last ticks found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// Nothing is known yet, or the database was away since: it may be another when it is back.
    Nothing,
    Good,
    Behind(Behind),
    /// This process is one too many.
    Taken,
}

/// The database, held against what was seen of it.
struct Judged {
    survey: Survey,
    behind: Option<Behind>,
    /// Whether that it is behind could be written down.
    recorded: Result<(), NodeError>,
}

#[derive(Debug, Clone)]
struct Standing {
    seen: Seen,
    /// What is wrong with files, and does not keep the node from serving.
    problems: Vec<String>,
}

/// A daemon's node.
pub struct Node {
    store: Arc<dyn Store>,
    keys: Arc<Keyring>,
    files: KeyFiles,
    data_dir: PathBuf,
    clock: Arc<dyn Clock>,
    unlocker: Arc<Unlocker>,
    revoked: Arc<RevokedHere>,
    token_key: Arc<dyn TokenKey>,
    holder: Holder,
    /// Behind a lock of threads: its files are written on threads that may block.
    file: Arc<Mutex<NodeFile>>,
    /// One tick at a time.
    ticking: tokio::sync::Mutex<Progress>,
    /// How many ticks began.
    begun: AtomicU64,
    /// The epoch at which this node's record was last held against the database's tokens and tenants; 0 at none.
    compared: AtomicU64,
    /// Keys that were looked for in vain, and when. No more than the database has ever known.
    missed: Mutex<HashMap<Kid, Duration>>,
    standing: ArcSwap<Standing>,
}

/// What one tick tells the next.
#[derive(Default)]
struct Progress {
    synced: Synced,
    /// What the last heartbeat said, and when.
    beaten: Option<(Vec<Kid>, u64, Duration)>,
    /// The generation that was last seen, and since when.
    generation: Option<(u64, Duration)>,
}

/// What a node is made of.
pub struct NodeParts {
    pub store: Arc<dyn Store>,
    pub keys: Arc<Keyring>,
    pub files: KeyFiles,
    pub clock: Arc<dyn Clock>,
    pub unlocker: Arc<Unlocker>,
    /// The daemon's own, its lock taken.
    pub data_dir: PathBuf,
    /// What the node's record says of tokens, for whoever checks them.
    pub revoked: Arc<RevokedHere>,
    /// What tells a token's row that a daemon wrote from any other.
    pub token_key: Arc<dyn TokenKey>,
}

impl Node {
    /// Opens the node's record, and makes it where this is a new node.
    ///
    /// # Errors
    /// [`NodeError::File`], [`NodeError::NoRandom`].
    pub fn open(parts: NodeParts) -> Result<Self, NodeError> {
        let NodeParts { store, keys, files, clock, unlocker, data_dir, revoked, token_key } = parts;
        let (node, boot) = (NodeId::new(crypto::random_id_bytes()?), BootId::new(crypto::random_id_bytes()?));
        let (file, notices) = NodeFile::open(&data_dir, node, boot)?;
        for notice in notices {
            if notice == Notice::Copied { tracing::info!("{notice}") } else { tracing::warn!("{notice}") }
        }
        revoked.remember(file.ever_revoked());
        let seen = file.behind().map_or(Seen::Nothing, Seen::Behind);
        let standing = Standing { seen, problems: Vec::new() };
        Ok(Self {
            store,
            keys,
            files,
            data_dir,
            clock,
            unlocker,
            revoked,
            token_key,
            holder: Holder { node: file.node(), boot: file.boot() },
            file: Arc::new(Mutex::new(file)),
            ticking: tokio::sync::Mutex::default(),
            begun: AtomicU64::new(0),
            compared: AtomicU64::new(0),
            missed: Mutex::default(),
            standing: ArcSwap::from_pointee(standing),
        })
    }

    /// This process, as the database knows it.
    #[must_use]
    pub const fn holder(&self) -> Holder {
        self.holder
    }

    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    #[must_use]
    pub const fn files(&self) -> &KeyFiles {
        &self.files
    }

    /// Since when this node would have noticed that the database was restored, by the database's clock.
    pub(super) async fn remembers_since(&self) -> Result<Option<Micros>, NodeError> {
        self.with_file(|file| file.since()).await
    }

    /// Looks whether the database went back, and changes nothing in it: the first thing that a start asks.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn look_back(&self) -> Result<(), NodeError> {
        let _alone = self.ticking.lock().await;
        self.survey().await?.recorded
    }

    /// Looks at the database, and brings record, keys, key files and heartbeat up to it. Who changed the state of the master keys or
    /// raised the generation calls it before they answer: when it returns, the change is on this node's disk too.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn tick(&self) -> Result<(), NodeError> {
        let mut progress = self.ticking.lock().await;
        self.tick_alone(&mut progress).await
    }

    /// Makes sure that a tick began after this call; of those who wait, the first does it for all.
    async fn catch_up(&self) {
        let next = self.begun.load(Ordering::Acquire) + 1;
        let mut progress = self.ticking.lock().await;
        if self.begun.load(Ordering::Acquire) < next
            && let Err(error) = self.tick_alone(&mut progress).await
        {
            tracing::debug!("{error}");
        }
    }

    /// Looks for a master key that was not loaded: in the key files, and whether the database still asks for it. In vain at most once a
    /// second, so that a thousand readers under a missing key do not become a thousand surveys.
    pub(super) async fn look_for(&self, kid: Kid) {
        let now = self.clock.monotonic();
        let missed = self.missed.lock().unwrap_or_else(PoisonError::into_inner).get(&kid).copied();
        if missed.is_some_and(|at| now.saturating_sub(at) < MISSED) {
            return;
        }
        self.catch_up().await;
        let found = matches!(&*self.keys.state(), Keys::Open(ring) if ring.holds(kid));
        let mut missed = self.missed.lock().unwrap_or_else(PoisonError::into_inner);
        if found {
            missed.remove(&kid);
        } else {
            missed.insert(kid, now);
        }
    }

    /// Lets a change of the database through, or says why none is made. It is asked before each: by use-cases, before a DEK is made, and
    /// by work in the background. Where the database was away it is looked at first, as it may be another by now.
    ///
    /// # Errors
    /// [`Error::Unavailable`], naming what opens the gate.
    pub async fn may_write(&self) -> Result<(), Error> {
        if matches!(self.standing.load().seen, Seen::Nothing) {
            self.catch_up().await;
        }
        match &self.standing.load().seen {
            Seen::Good => Ok(()),
            Seen::Nothing => Err(Error::Unavailable("the database is not available".to_owned())),
            Seen::Behind(behind) => Err(Error::Unavailable(closed(behind))),
            Seen::Taken => {
                Err(Error::Unavailable("another process uses this node's id; this one is stopping".to_owned()))
            }
        }
    }

    /// As far as is known without a look: for what is left out where it is not certain.
    pub(super) fn may_write_now(&self) -> bool {
        self.standing.load().seen == Seen::Good
    }

    /// What keeps the node from being ready, for operators.
    #[must_use]
    pub fn waiting_for(&self) -> Vec<String> {
        let behind = match &self.standing.load().seen {
            Seen::Behind(behind) => Some(closed(behind)),
            Seen::Taken => Some("another process uses this node's id".to_owned()),
            Seen::Nothing | Seen::Good => None,
        };
        let active = match &*self.keys.state() {
            Keys::Open(ring) if !ring.holds_active() => Some(self.lacks(ring.active())),
            _ => None,
        };
        behind.into_iter().chain(active).collect()
    }

    /// What is wrong and does not keep the node from serving.
    pub(super) fn problems(&self) -> Vec<String> {
        self.standing.load().problems.clone()
    }

    /// Whether the database was found behind what this node has seen.
    #[must_use]
    pub fn behind(&self) -> Option<Behind> {
        match &self.standing.load().seen {
            Seen::Behind(behind) => Some(*behind),
            _ => None,
        }
    }

    fn lacks(&self, active: Kid) -> String {
        format!(
            "the active master key, {active}, is not here, in {}; what other keys open is served, and no tenant gets its first secret. Bring it \
             here: {}",
            self.files.path().display(),
            BringBack(active)
        )
    }

    /// The state of the database, held against what this node has seen.
    async fn survey(&self) -> Result<Judged, NodeError> {
        let survey = match self.store.survey().await {
            Ok(survey) => survey,
            Err(error) => {
                // A database that is away is not one that was accepted.
                let behind = self.with_file(|file| file.behind()).await?;
                self.stand(behind.map_or(Seen::Nothing, Seen::Behind));
                return Err(error.into());
            }
        };
        let mark = survey.key_state.as_ref().map(Mark::of);
        let (judged, behind) = self.with_file(move |file| (file.judge(mark), file.behind())).await?;
        self.stand(behind.map_or(Seen::Good, Seen::Behind));
        Ok(Judged { survey, behind, recorded: judged.map_err(NodeError::from) })
    }

    async fn tick_alone(&self, progress: &mut Progress) -> Result<(), NodeError> {
        self.begun.fetch_add(1, Ordering::AcqRel);
        let Judged { survey, behind, mut recorded } = self.survey().await?;
        let state = survey.key_state.as_ref();
        let mut look = self.look(progress).await?;
        let taken = match behind {
            None => self.take_staged(&survey, &mut look).await,
            Some(_) => Taken::default(),
        };
        if !taken.masters.is_empty() {
            let problems = std::mem::take(&mut look.problems);
            look = self.look(progress).await?;
            look.problems.extend(problems);
        }
        let unopened = self.load_keys(&survey, &look.scan, &taken).await;
        drop(taken);
        look.problems.extend(unopened);
        if let Some(state) = state.filter(|_| behind.is_none()) {
            recorded = recorded.and(self.note(progress, state).await);
        }
        // No file goes while what is known of the database is not on the disk.
        if behind.is_none() && recorded.is_ok() && self.converge_files(&survey, &mut look).await? {
            let problems = std::mem::take(&mut look.problems);
            look = self.look(progress).await?;
            look.problems.extend(problems);
        }
        look.problems.extend(recorded.as_ref().err().map(ToString::to_string));
        let durable = self.acknowledged(&survey, &look);
        self.tell(look.problems);
        // A full disk is no reason to fall silent: other nodes would take this one for dead.
        self.beat(progress, durable, self.epoch_served(state)).await?;
        recorded
    }

    fn stand(&self, seen: Seen) {
        let before = self.standing.load_full();
        if before.seen == seen || before.seen == Seen::Taken {
            return;
        }
        if let Seen::Behind(behind) = &seen {
            tracing::error!("{}", closed(behind));
        }
        if matches!((&before.seen, &seen), (Seen::Behind(_), Seen::Good)) {
            tracing::info!("the database was accepted as it is; writes are open again");
        }
        self.standing.store(Arc::new(Standing { seen, problems: before.problems.clone() }));
    }

    /// Says what is new among the problems, once.
    fn tell(&self, problems: Vec<String>) {
        let before = self.standing.load_full();
        if before.problems == problems {
            return;
        }
        for problem in problems.iter().filter(|problem| !before.problems.contains(problem)) {
            tracing::warn!("{problem}");
        }
        self.standing.store(Arc::new(Standing { seen: before.seen, problems }));
    }

    /// The record's files are written on a thread that may block.
    async fn with_file<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut NodeFile) -> T + Send + 'static,
    ) -> Result<T, NodeError> {
        let file = Arc::clone(&self.file);
        let done = tokio::task::spawn_blocking(move || work(&mut file.lock().unwrap_or_else(PoisonError::into_inner)));
        done.await.map_err(|_| NodeError::Panicked)
    }
}

/// Why the gate is closed, and what opens it.
fn closed(behind: &Behind) -> String {
    format!(
        "writes are closed: {behind}. `containarium admin accept-restore` says what accepting it means, and opens them"
    )
}
