//! `admin doctor`: everything that would cost secrets or sleep later, looked at now. Each check is ok, a warning or a failure, with the
//! command that mends it.
//!
//! In the daemon it knows all; without one the command's own process looks at what it can reach: database, key files, disks.

mod checks;
mod ledger;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::access::AdminGrant;
use crate::audit::Outcome;
use crate::clock::{Clock, SystemClock};
use crate::keys::Keys;
use crate::keys::keyfile::{KeyFiles, Scan};
use crate::model::{Action, Kid, Micros};
use crate::store::Store;

use super::{Error, Request, Service, Touched};
use checks::{DATA_ROOM, KEY_ROOM};
use ledger::Ledger;

pub use ledger::BackupTimes;

/// How long the database may take to say what it knows.
const DATABASE: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    Ok,
    /// Nothing is lost yet.
    Warning,
    Failure,
}

impl Verdict {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failure => "failure",
        }
    }
}

/// Every check that a daemon makes, in its order; where the database does not answer some are not made.
pub const NAMES: [&str; 14] = [
    "daemon",
    "database",
    "key-file",
    "clock",
    "keys",
    "key-backup",
    "key-backup-read-back",
    "database-backup",
    "drill",
    "rotation",
    "data-disk",
    "key-disk",
    "memory",
    "node",
];

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// Stable, for monitors.
    pub name: &'static str,
    pub verdict: Verdict,
    /// What was found.
    pub finding: String,
    /// The command that mends it; absent where nothing is to be mended, and where the finding names it.
    pub mend: Option<String>,
}

impl Check {
    fn ok(name: &'static str, finding: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Ok, finding: finding.into(), mend: None }
    }

    fn warning(name: &'static str, finding: impl Into<String>) -> Self {
        Self { verdict: Verdict::Warning, ..Self::ok(name, finding) }
    }

    fn failure(name: &'static str, finding: impl Into<String>) -> Self {
        Self { verdict: Verdict::Failure, ..Self::ok(name, finding) }
    }

    fn mended_by(self, command: impl Into<String>) -> Self {
        Self { mend: Some(command.into()), ..self }
    }
}

/// Everything at once.
pub struct Looked {
    pub checks: Vec<Check>,
    /// When keys and database were last backed up; absent where the database does not answer or holds no key.
    pub times: Option<BackupTimes>,
}

/// The worst of them.
#[must_use]
pub fn verdict(checks: &[Check]) -> Verdict {
    checks.iter().map(|check| check.verdict).max().unwrap_or(Verdict::Ok)
}

impl Service {
    /// What keeps this process from being as protected as it should be; said once, when the daemon starts.
    pub fn know_unprotected(&self, unprotected: Vec<String>) {
        // Only a second start of the same service would say it twice.
        let _known = self.unprotected.set(unprotected);
    }

    /// Looks at everything.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where the call could not be recorded: that the audit fails is found in `admin status`.
    pub async fn doctor(&self, request: &Request, grant: &AdminGrant) -> Result<Vec<Check>, Error> {
        let Looked { checks, .. } = self.look().await;
        self.record(request, grant.identity(), Action::AdminDoctor, None, [Touched::nothing(Outcome::Ok)]).await?;
        Ok(checks)
    }

    /// Looks at everything, for metrics: nobody asked who would be recorded.
    pub async fn look(&self) -> Looked {
        let readiness = self.readiness().await;
        let ledger = self.ledger().await;
        let scan = scan(self.node.files().clone()).await;
        let loaded = match &*self.keys.state() {
            Keys::Open(ring) => ring.kids(),
            Keys::Locked(_) => Vec::new(),
        };
        let mut checks = vec![checks::daemon(&readiness.waiting_for())];
        checks.extend(common(&Found {
            ledger: &ledger,
            secrets: self.destinations.secrets(),
            scan,
            loaded: Some(loaded),
            wall: self.clock.wall(),
        }));
        checks.extend(rooms(self.node.data_dir(), self.node.files()).await);
        checks.push(checks::memory(self.unprotected.get().map_or(&[], Vec::as_slice)));
        checks.push(checks::node(&self.node.problems(), ledger.as_ref().ok(), Some(self.node.holder().node)));
        Looked { checks, times: ledger.ok().and_then(|ledger| ledger.times(self.destinations.secrets())) }
    }

    async fn ledger(&self) -> Result<Ledger, String> {
        read_ledger(&*self.store).await
    }
}

/// What a process beside or without the daemon finds. `secrets` are those that copies of the keys go to; `store` is open for reading, or why it is not; `without` says why the daemon was
/// not asked.
pub async fn without_daemon(
    store: Result<Arc<dyn Store>, String>,
    secrets: &[String],
    key_file: &Path,
    data_dir: &Path,
    without: &str,
) -> Vec<Check> {
    let mut checks = vec![checks::no_daemon(without)];
    let files = match KeyFiles::at(key_file) {
        Ok(files) => files,
        Err(error) => {
            checks.push(Check::failure("key-file", error.to_string()));
            return checks;
        }
    };
    let ledger = match &store {
        Ok(store) => read_ledger(&**store).await,
        Err(why) => Err(why.clone()),
    };
    let scan = scan(files.clone()).await;
    checks.extend(common(&Found { ledger: &ledger, secrets, scan, loaded: None, wall: SystemClock::new().wall() }));
    checks.extend(rooms(data_dir, &files).await);
    checks.push(checks::node(&[], ledger.as_ref().ok(), None));
    if let Ok(store) = store {
        store.close().await;
    }
    checks
}

/// What both kinds of process see.
struct Found<'a> {
    ledger: &'a Result<Ledger, String>,
    /// Those that copies of the keys go to.
    secrets: &'a [String],
    /// Absent where the thread that looks at key files was lost.
    scan: Option<Scan>,
    /// The keys that the daemon has loaded.
    loaded: Option<Vec<Kid>>,
    wall: Micros,
}

fn common(found: &Found<'_>) -> Vec<Check> {
    let mut all = vec![checks::database(found.ledger)];
    match &found.scan {
        Some(scan) => all.push(checks::key_file(scan)),
        None => all.push(Check::failure("key-file", "the key files could not be looked at")),
    }
    if let Ok(ledger) = found.ledger {
        all.push(checks::clock(found.wall, ledger.now));
        if let Some(scan) = &found.scan {
            all.push(checks::keys(scan, ledger, found.loaded.as_deref()));
        }
        all.push(checks::key_backup(ledger, found.secrets));
        all.push(checks::key_backup_read_back(ledger, found.secrets));
        all.push(checks::database_backup(ledger));
        all.push(checks::drill(ledger, found.secrets));
        all.push(checks::rotation(ledger));
    }
    all
}

async fn read_ledger(store: &dyn Store) -> Result<Ledger, String> {
    match tokio::time::timeout(DATABASE, Ledger::read(store)).await {
        Ok(read) => read.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {} s", DATABASE.as_secs())),
    }
}

async fn scan(files: KeyFiles) -> Option<Scan> {
    tokio::task::spawn_blocking(move || files.scan()).await.ok()
}

/// The disks: asked on a thread that may block, since a network file system can.
async fn rooms(data_dir: &Path, files: &KeyFiles) -> [Check; 2] {
    let keys: PathBuf = files.path().parent().unwrap_or(Path::new("/")).to_owned();
    let (data, data_dir) = (data_dir.to_owned(), data_dir.to_owned());
    let keys_dir = keys.clone();
    let asked = tokio::task::spawn_blocking(move || (checks::Room::of(&data), checks::Room::of(&keys)));
    let (data, keys) =
        asked.await.unwrap_or((Err("the thread was lost".to_owned()), Err("the thread was lost".to_owned())));
    [checks::disk("data-disk", &data_dir, data, DATA_ROOM), checks::disk("key-disk", &keys_dir, keys, KEY_ROOM)]
}
