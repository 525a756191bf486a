//! First start and every start: looks at database and key files, has the pure decision made, and carries it out.
//!
//! A key is made only for a database that never held one. The order is that of rotation's design: key-file lock; in the store's
//! transaction, under the master lock and after checking again, the key's file staged and fsynced; row; commit; only then the file is
//! promoted to the key file's path. A crash between any two leaves a state that the next start completes.

use std::path::Path;
use std::sync::Arc;

use crate::audit::Audit;
use crate::clock::Clock;
use crate::crypto::{self, DekPlace, MasterKey, NoRandom, SecretPlace, SecretValue};
use crate::keys::keyfile::{KeyFile, KeyFiles, KeyLock, KeyfileError, MainFile, Scan};
use crate::keys::provider::{Attempt, NotOpened};
use crate::keys::start::{self, Adopt, Copies, Decision, Files};
use crate::keys::unlock::Unlocker;
use crate::keys::{Keyring, Ring};
use crate::model::{DekVersion, Kid, NameError, SecretName, SecretVersion, Tenant};
use crate::store::{FirstKey, FirstKeyMaker, FirstKeyOutcome, NewDek, Store, StoreError, Survey};

use super::chain;
use super::node::Node;
use super::status::NO_BACKUP;

/// What the active key lies under, as the line that operators look for says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Root {
    File,
    GcpKms,
    Age,
}

impl Root {
    fn of(file: &KeyFile) -> Self {
        match file.wrapped() {
            None => Self::File,
            Some(wrapped) if wrapped.kms().next().is_some() => Self::GcpKms,
            Some(_) => Self::Age,
        }
    }

    const fn ready(self) -> &'static str {
        match self {
            Self::File => "Secrets store ready (file-keyed, AES-256-GCM)",
            Self::GcpKms => "Secrets store ready (gcp-kms-keyed, AES-256-GCM)",
            Self::Age => "Secrets store ready (age-keyed, AES-256-GCM)",
        }
    }
}
/// The system's own secrets: the keys that authenticate token rows and chain audit records.
pub(super) const SYSTEM_SECRETS: [&str; 2] = [TOKEN_MAC, AUDIT_CHAIN];
pub(super) const TOKEN_MAC: &str = "TOKEN_MAC";
pub(super) const AUDIT_CHAIN: &str = "AUDIT_CHAIN";

/// How an attempt to open the keys ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opened {
    /// Secrets can be served.
    Ready,
    /// The daemon serves, but no secrets; why, and what opens them.
    Locked(String),
}

/// Why the daemon cannot start on what it found. Nothing was generated, changed or deleted.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("Failed to load secrets master key: {0}")]
    Refused(Box<start::Reason>),
    #[error("Failed to load secrets master key: {0}")]
    KeyFile(#[from] KeyfileError),
    /// The first key could not be made.
    #[error("Failed to load secrets master key: the first key was not made: {0}")]
    NotMade(String),
    #[error("Failed to load secrets master key: its kid could not be read from the database: {0}")]
    Store(#[from] StoreError),
}

/// Opens the keys: at start, and again while they are locked.
pub struct Opener {
    store: Arc<dyn Store>,
    keys: Arc<Keyring>,
    files: KeyFiles,
    adopt: Adopt,
    copies: Copies,
    node: Arc<Node>,
    audit: Arc<Audit>,
    unlocker: Arc<Unlocker>,
    clock: Arc<dyn Clock>,
}

/// What opening needs.
pub struct OpenerParts {
    pub store: Arc<dyn Store>,
    pub keys: Arc<Keyring>,
    pub files: KeyFiles,
    pub adopt: Adopt,
    pub copies: Copies,
    pub node: Arc<Node>,
    pub audit: Arc<Audit>,
    pub unlocker: Arc<Unlocker>,
    pub clock: Arc<dyn Clock>,
}

impl Opener {
    /// The node has ticked: it knows whether the database went back.
    pub fn new(parts: OpenerParts) -> Self {
        let OpenerParts { store, keys, files, adopt, copies, node, audit, unlocker, clock } = parts;
        Self { store, keys, files, adopt, copies, node, audit, unlocker, clock }
    }

    /// Looks, decides, and carries the decision out; says so in the log once it is ready.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open(&self) -> Result<Opened, OpenError> {
        let survey = self.store.survey().await?;
        let scan = self.files.scan();
        match self.decide(&survey, &scan) {
            Decision::CreateKey => self.create_key().await,
            Decision::AdoptKey(kid) => self.adopt_key(kid).await,
            Decision::Open { needed, active, promote } => {
                for problem in &scan.problems {
                    tracing::warn!("{problem}");
                }
                if let MainFile::Bad(error) = &scan.main {
                    tracing::error!("the key file cannot be used; its copy among the retained keys is: {error}");
                }
                let opened = self.unlock(active, &needed, scan).await?;
                // Of a database that went back no file is changed: it may not be the one that stays.
                if let Some(kid) = promote.filter(|_| opened == Opened::Ready && self.node.behind().is_none()) {
                    self.promote(kid);
                }
                Ok(opened)
            }
            Decision::Locked(reason) => Ok(self.locked(reason.to_string())),
            Decision::Refuse(reason) => Err(OpenError::Refused(Box::new(reason))),
        }
    }

    fn locked(&self, reason: String) -> Opened {
        self.keys.lock(reason.clone());
        Opened::Locked(reason)
    }

    /// Opens the file of each needed key, once; one that does not open is tried again at a later look.
    async fn unlock(&self, active: Kid, needed: &[Kid], scan: Scan) -> Result<Opened, OpenError> {
        let (mut masters, mut root) = (Vec::with_capacity(needed.len()), Root::File);
        for file in first_of_each(scan, needed) {
            if file.kid == active {
                root = Root::of(&file);
            }
            let path = file.path.clone();
            match self.unlocker.open(file, &*self.clock).await {
                Ok(unlocked) => masters.push(unlocked.master),
                Err(why) => return Ok(self.locked(waiting(&path, &why))),
            }
        }
        self.open_ring(active, masters, root).await
    }

    /// Locks the keys with another reason.
    pub fn lock(&self, reason: String) {
        self.keys.lock(reason);
    }

    fn decide(&self, survey: &Survey, scan: &Scan) -> Decision {
        let database = start::Database {
            key_state: survey.key_state.as_ref(),
            master_keys: &survey.master_keys,
            holds_rows: survey.holds_rows,
            v1_table: survey.v1_table,
        };
        start::decide(&database, &Files::of(scan, rustix::process::geteuid().as_raw(), self.copies), self.adopt)
    }

    async fn create_key(&self) -> Result<Opened, OpenError> {
        let lock = self.files.lock()?;
        // Another deployment's first start may have put its key there while this one waited for the lock: look again under it.
        if self.decide(&self.store.survey().await?, &self.files.scan()) != Decision::CreateKey {
            drop(lock);
            return self.after_a_lost_race().await;
        }
        let mut maker = StagingMaker { lock: &lock, made: None };
        let outcome = self.store.first_key(&mut maker).await;
        let made = maker.made.take();
        let in_database = match outcome {
            Ok(FirstKeyOutcome::Made(_)) => true,
            Ok(FirstKeyOutcome::AlreadyHeld) => false,
            Ok(FirstKeyOutcome::NotMade(why)) => {
                unstage(&lock, made.as_ref());
                return Err(OpenError::NotMade(why));
            }
            // Whether the commit came through is read, never assumed; what cannot be read leaves the staged file, which harms nothing.
            Err(StoreError::UnknownOutcome(_)) => self.is_active(made.as_ref()).await?,
            Err(error) => {
                unstage(&lock, made.as_ref());
                return Err(error.into());
            }
        };
        let Some(master) = made.filter(|_| in_database) else {
            drop(lock);
            return self.after_a_lost_race().await;
        };
        let kid = crypto::kid(&master);
        lock.promote(kid)?;
        drop(lock);
        tracing::info!("made the first master key, kid {kid}, in {}", self.files.path().display());
        self.open_ring(kid, vec![master], Root::File).await
    }

    async fn is_active(&self, master: Option<&MasterKey>) -> Result<bool, StoreError> {
        let survey = self.store.survey().await?;
        Ok(survey.key_state.is_some_and(|state| master.map(crypto::kid) == Some(state.active_kid)))
    }

    /// Another node made the first key. This one needs that key's file: the same decision as at any start says so.
    async fn after_a_lost_race(&self) -> Result<Opened, OpenError> {
        let survey = self.store.survey().await?;
        match self.decide(&survey, &self.files.scan()) {
            Decision::Open { needed, active, .. } => self.unlock(active, &needed, self.files.scan()).await,
            Decision::Refuse(reason) | Decision::Locked(reason) => Err(OpenError::Refused(Box::new(reason))),
            Decision::CreateKey | Decision::AdoptKey(_) => {
                Err(OpenError::NotMade("the database holds rows that name no master key".to_owned()))
            }
        }
    }

    /// KMS is asked before the lock is taken, never under it; what was opened is then held against the file.
    async fn adopt_key(&self, kid: Kid) -> Result<Opened, OpenError> {
        let changed = || OpenError::NotMade("the key file changed while it was read; start again".to_owned());
        let MainFile::Key(file) = self.files.scan().main else { return Err(changed()) };
        let (path, root, wrapped) = (file.path.clone(), Root::of(&file), file.wrapped().cloned());
        let master = match self.unlocker.open(file, &*self.clock).await {
            Ok(unlocked) => unlocked.master,
            Err(why) => return Ok(self.locked(waiting(&path, &why))),
        };
        let _lock = self.files.lock()?;
        match self.files.scan().main {
            MainFile::Key(now) if now.kid == kid && now.wrapped() == wrapped.as_ref() => {}
            MainFile::Key(_) | MainFile::Missing | MainFile::Bad(_) => return Err(changed()),
        }
        if crypto::kid(&master) != kid {
            return Err(changed());
        }
        let mut maker = AdoptingMaker { master: &master };
        let in_database = match self.store.first_key(&mut maker).await {
            Ok(FirstKeyOutcome::Made(_)) => true,
            Ok(FirstKeyOutcome::AlreadyHeld) => false,
            Ok(FirstKeyOutcome::NotMade(why)) => return Err(OpenError::NotMade(why)),
            Err(StoreError::UnknownOutcome(_)) => self.is_active(Some(&master)).await?,
            Err(error) => return Err(error.into()),
        };
        if !in_database {
            return self.after_a_lost_race().await;
        }
        tracing::warn!(
            "took the key that was there, kid {kid}: whoever has a copy of it can open what is stored from now on"
        );
        self.open_ring(kid, vec![master], root).await
    }

    /// Completes what a crash or a missing key file left undone. Secrets can be served without it, so a failure is said and no more.
    fn promote(&self, kid: Kid) {
        let promoted = self.files.try_lock().and_then(|lock| match lock {
            Some(lock) => lock.promote(kid).map(|()| true),
            None => Ok(false),
        });
        match promoted {
            Ok(true) => tracing::info!("the active key, kid {kid}, is now in {}", self.files.path().display()),
            Ok(false) => {
                tracing::info!("another process writes key files; {} stays as it is", self.files.path().display());
            }
            Err(error) => tracing::warn!("the active key was not put into {}: {error}", self.files.path().display()),
        }
    }

    async fn open_ring(&self, active: Kid, masters: Vec<MasterKey>, root: Root) -> Result<Opened, OpenError> {
        let ring = Ring::new(active, &masters);
        if !ring.holds_active() {
            return Err(OpenError::NotMade(format!("the key file of {active} changed while it was read; start again")));
        }
        self.keys.open(ring);
        chain::unlock(&self.audit, &self.node, &*self.store, &self.keys, &*self.clock).await;
        tracing::info!("{}", root.ready());
        if !self.store.has_confirmed_escrow(active).await? {
            tracing::warn!("{NO_BACKUP}: {}", self.files.path().display());
        }
        Ok(Opened::Ready)
    }
}

/// One file for each needed key, the key file's own before a retained one. Another file of the same key does not stand in for one that does
/// not open: it may be a raw copy that was forgotten, and a daemon that is to be rooted in KMS would quietly not be.
fn first_of_each(scan: Scan, needed: &[Kid]) -> Vec<KeyFile> {
    let mut files: Vec<KeyFile> = Vec::with_capacity(needed.len());
    for file in scan.into_files() {
        if needed.contains(&file.kid) && !files.iter().any(|before| before.kid == file.kid) {
            files.push(file);
        }
    }
    files
}

/// The first line is what everybody is told, and names neither files nor keys of Google's.
fn waiting(path: &Path, why: &NotOpened) -> String {
    let mut reason = format!("the master key is wrapped, and does not open yet\n  {}: {why}", path.display());
    reason.push_str("\nIt is tried again by itself, at least once a minute, and the daemon opens when it succeeds");
    if !why
        .attempts
        .iter()
        .any(|attempt| matches!(attempt, Attempt::NoIdentity | Attempt::Identity { .. } | Attempt::Age(_)))
    {
        reason.push_str(
            ". Meanwhile an age identity opens it, where the file has a recipient of age: start with --age-identity FILE",
        );
    }
    reason
}

fn unstage(lock: &KeyLock, made: Option<&MasterKey>) {
    if let Some(master) = made
        && let Err(error) = lock.unstage(crypto::kid(master))
    {
        tracing::warn!("the key that was staged for nothing stays behind: {error}");
    }
}

/// Makes a key and stages its file, inside the store's transaction.
struct StagingMaker<'a> {
    lock: &'a KeyLock,
    made: Option<MasterKey>,
}

impl FirstKeyMaker for StagingMaker<'_> {
    fn make(&mut self) -> Result<FirstKey, String> {
        let master = MasterKey::make_random().map_err(|error| error.to_string())?;
        let first = first_rows(&master)?;
        let staged = self.lock.stage(&master).map_err(|error| error.to_string());
        self.made = Some(master);
        staged.map(|_| first)
    }
}

/// Takes the key that lies there.
struct AdoptingMaker<'a> {
    master: &'a MasterKey,
}

impl FirstKeyMaker for AdoptingMaker<'_> {
    fn make(&mut self) -> Result<FirstKey, String> {
        first_rows(self.master)
    }
}

fn first_rows(master: &MasterKey) -> Result<FirstKey, String> {
    make_first_rows(master).map_err(|error| error.to_string())
}

#[derive(Debug, thiserror::Error)]
enum RowsError {
    #[error(transparent)]
    NoRandom(#[from] NoRandom),
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("there is no first version")]
    Version,
}

/// The first rows of a database: the system's DEK and its keys, sealed as any secret is.
fn make_first_rows(master: &MasterKey) -> Result<FirstKey, RowsError> {
    let tenant = Tenant::system();
    let place = DekPlace { tenant: &tenant, version: DekVersion::FIRST };
    let dek = crypto::make_dek(place)?;
    let version = SecretVersion::new(1).ok_or(RowsError::Version)?;
    let mut system_secrets = Vec::with_capacity(SYSTEM_SECRETS.len());
    for name in SYSTEM_SECRETS {
        let name = SecretName::parse(name)?;
        let place = SecretPlace { tenant: &tenant, name: &name, dek_version: DekVersion::FIRST, version };
        let sealed = crypto::seal(&dek, place, &SecretValue::make_key()?)?;
        system_secrets.push((name, sealed));
    }
    let wrapped = crypto::wrap(&crypto::derive_kek(master), place, &dek)?;
    Ok(FirstKey {
        kid: crypto::kid(master),
        db_id: crypto::random_id_bytes()?,
        system_dek: NewDek { id: crypto::dek_id(&dek), wrapped },
        system_secrets,
    })
}
