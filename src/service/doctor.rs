//! `admin doctor`: everything that would cost secrets or sleep later, looked at now. Each check is ok, a warning or a failure, with the
//! command that mends it.
//!
//! In the daemon it knows all; without one the command's own process looks at what it can reach: database, key files, disks.

mod checks;
mod disks;
mod ledger;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::access::AdminGrant;
use crate::audit::Outcome;
use crate::clock::{Clock, SystemClock};
use crate::keys::Keys;
use crate::keys::keyfile::{KeyFile, KeyFiles, MainFile, Scan};
use crate::model::{Action, Issuer, Kid, Micros};
use crate::store::Store;

use super::backup::Destinations;
use super::{Error, Request, Service, Touched};
use disks::OnDisks;
use ledger::Ledger;

pub use disks::Disks;
pub use ledger::BackupTimes;

/// How often it is looked whether a proof is due: a file that was wrapped is proven soon after.
const LOOK_FOR_PROOFS: Duration = Duration::from_secs(10);
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

/// Every check that a daemon makes, in its order; where the database does not answer some are not made, nor is `kms` where no key file is wrapped,
/// nor `issuers` where there is none.
pub const NAMES: [&str; 17] = [
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
    "kms",
    "issuers",
    "memory",
    "audit",
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
        let on_disks = self.disks.look(self.node.data_dir(), self.node.files()).await;
        let loaded = match &*self.keys.state() {
            Keys::Open(ring) => ring.kids(),
            Keys::Locked(_) => Vec::new(),
        };
        let mut checks = vec![checks::daemon(&readiness.waiting_for())];
        checks.extend(common(&Found {
            ledger: &ledger,
            destinations: &self.destinations,
            scan: on_disks.scan,
            loaded: Some(loaded),
            why_rotation_stopped: self.why_rotation_stopped(),
            wall: self.clock.wall(),
        }));
        checks.extend(on_disks.rooms);
        checks.extend(self.kms_check(ledger.as_ref().ok()).await);
        checks.extend(checks::issuers(&self.issuer_keys()));
        checks.push(checks::memory(self.unprotected.get().map_or(&[], Vec::as_slice)));
        checks.push(checks::audit(self.audit.changed().as_deref(), &self.audit.troubles()));
        checks.push(checks::node(&self.node.problems(), ledger.as_ref().ok(), Some(self.node.holder().node)));
        Looked { checks, times: ledger.ok().and_then(|ledger| ledger.times(self.destinations.secrets())) }
    }

    /// Absent where no needed key file is wrapped.
    async fn kms_check(&self, ledger: Option<&Ledger>) -> Option<Check> {
        let scan = self.disks.scan(self.node.files()).await?;
        let ledger = ledger?;
        let needed: Vec<Kid> = ledger.needed().iter().map(|key| key.kid).collect();
        let files: Vec<_> = scan.first_of_each().filter(|file| needed.contains(&file.kid)).collect();
        let proofs: Vec<_> = files
            .iter()
            .filter_map(|file| Some((file.kid, file.wrapped()?, self.unlocker.proof(file.wrapped()?))))
            .collect();
        checks::kms(&proofs, ledger, self.clock.wall(), |kid| self.raw_sha256(kid))
    }

    pub(super) fn raw_sha256(&self, kid: Kid) -> Option<[u8; 32]> {
        match &*self.keys.state() {
            Keys::Open(ring) => ring.raw_sha256(kid),
            Keys::Locked(_) => None,
        }
    }

    /// Proves each day that the wrapped key files that the database needs still open with KMS; until the daemon stops.
    pub fn keep_proving(self: &Arc<Self>) {
        self.workers.spawn(Arc::clone(self).prove_on());
    }

    async fn prove_on(self: Arc<Self>) {
        loop {
            if matches!(&*self.keys.state(), Keys::Open(_))
                && let Ok(survey) = self.store.survey().await
                && let Some(scan) = self.disks.scan(self.node.files()).await
            {
                let needed = survey.needed();
                let wrapped: Vec<_> = scan
                    .first_of_each()
                    .filter(|file| needed.contains(&file.kid))
                    .filter_map(KeyFile::wrapped)
                    .collect();
                self.unlocker.prove(wrapped, &*self.clock).await;
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_FOR_PROOFS) => {}
                () = self.workers.stopping() => return,
            }
        }
    }

    /// When the wrapped key file that is in use was last proven to open with KMS; absent where it is not wrapped, or never was.
    pub async fn kms_proven_at(&self) -> Option<Micros> {
        let scan = self.disks.scan(self.node.files()).await?;
        match &scan.main {
            MainFile::Key(main) => self.unlocker.proof(main.wrapped()?).proven_at,
            MainFile::Missing | MainFile::Bad(_) => None,
        }
    }

    async fn ledger(&self) -> Result<Ledger, String> {
        read_ledger(&*self.store).await
    }
}

/// Why the daemon itself does not say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unasked {
    NotThere,
    /// It runs, and refuses, or is late.
    NoAnswer,
}

/// What a process beside or without the daemon finds. Copies of the keys go to `destinations`; `store` is open for reading, or why it is
/// not; `unasked` and why are of the daemon.
pub async fn without_daemon(
    store: Result<Arc<dyn Store>, String>,
    destinations: &Destinations,
    key_file: &Path,
    data_dir: &Path,
    issuers: &[Issuer],
    (unasked, why): (Unasked, &str),
) -> Vec<Check> {
    let mut checks = vec![checks::no_daemon(unasked, why)];
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
    let OnDisks { scan, rooms } = Disks::default().look(data_dir, &files).await;
    checks.extend(common(&Found {
        ledger: &ledger,
        destinations,
        scan,
        loaded: None,
        why_rotation_stopped: None,
        wall: SystemClock::new().wall(),
    }));
    checks.extend(rooms);
    checks.extend(checks::files_of_issuers(issuers));
    checks.push(checks::node(&[], ledger.as_ref().ok(), None));
    if let Ok(store) = store {
        store.close().await;
    }
    checks
}

/// What both kinds of process see.
struct Found<'a> {
    ledger: &'a Result<Ledger, String>,
    /// Where copies of the keys go.
    destinations: &'a Destinations,
    /// What lies in the key files, or why that is not known.
    scan: Result<Scan, String>,
    /// The keys that the daemon has loaded.
    loaded: Option<Vec<Kid>>,
    /// Of the daemon's last run.
    why_rotation_stopped: Option<String>,
    wall: Micros,
}

fn common(found: &Found<'_>) -> Vec<Check> {
    let mut all = vec![checks::database(found.ledger)];
    match &found.scan {
        Ok(scan) => {
            let state = found.ledger.as_ref().ok().and_then(Ledger::state);
            all.push(checks::key_file(scan, state.map(|state| state.active_kid)));
        }
        Err(why) => all.push(Check::failure("key-file", format!("the key files could not be looked at: {why}"))),
    }
    if let Ok(ledger) = found.ledger {
        all.push(checks::clock(found.wall, ledger.now));
        if let Ok(scan) = &found.scan {
            all.push(checks::keys(scan, ledger, found.loaded.as_deref()));
        }
        all.push(checks::key_backup(ledger, found.destinations));
        all.push(checks::key_backup_read_back(ledger, found.destinations.secrets()));
        all.push(checks::database_backup(ledger));
        all.push(checks::drill(ledger, found.destinations.secrets()));
        all.push(checks::rotation(ledger, found.why_rotation_stopped.as_deref()));
    }
    all
}

async fn read_ledger(store: &dyn Store) -> Result<Ledger, String> {
    match tokio::time::timeout(DATABASE, Ledger::read(store)).await {
        Ok(read) => read.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {} s", DATABASE.as_secs())),
    }
}
