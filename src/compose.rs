//! The only constructor: from settings to store, keys and service; for the daemon, and for commands that work without one.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::access::{Access, IssuerKeysError, Issuers, RevokedHere, TokenKey, Tokens, check_issuers};
use crate::audit::{Audit, Copies as RecordCopies, Origin, Sink};
use crate::clock::{Clock, SystemClock};
use crate::config::{AuditCopies, AuditSinks, Config, Database, ExistingKey, NotText};
use crate::keys::identity::AgeIdentity;
use crate::keys::keyfile::{KeyFiles, KeyfileError};
use crate::keys::provider::Provider;
use crate::keys::start::{Adopt, Copies};
use crate::keys::unlock::Unlocker;
use crate::keys::{CacheLimits, Keyring};
use crate::model::{Issuer, IssuerKeys, KeySetPlace};
use crate::service::backup::Destinations;
use crate::service::node::{Node, NodeError, NodeParts};
use crate::service::open::{Opener, OpenerParts};
use crate::service::rotation::verify::Verifier;
use crate::service::{Parts, Service, SystemKey};

use crate::store::masters::Holder;
use crate::store::{PostgresStore, SqliteStore, Store, StoreError};
use crate::tls::{self, Pair, TlsError};

/// Why the parts could not be put together.
#[derive(Debug, thiserror::Error)]
pub enum ComposeError {
    #[error("Failed to open the database: {0}")]
    Store(#[from] StoreError),
    #[error("the setting --database-url cannot be used: {0}")]
    DatabaseUrl(#[source] StoreError),
    #[error("the key file's path cannot be used: {0}")]
    KeyFile(#[from] KeyfileError),
    #[error("the record of this node cannot be used: {0}")]
    Node(#[from] NodeError),
    #[error("a setting is no text, and so cannot be handed to the process that verifies a rotation: {0}")]
    Settings(#[from] NotText),
    #[error("TLS cannot be served: {0}")]
    Tls(#[from] TlsError),
    #[error("`oidc`: {0}")]
    Issuers(#[from] IssuerKeysError),
    #[error("the audit file cannot be opened: {0}")]
    Audit(#[source] std::io::Error),
    /// A fresh PostgreSQL would hide what the SQLite file holds.
    #[error(
        "{} holds secrets, and the PostgreSQL database that --database-url names is empty: started on it, the daemon \
         would know none of them. To go on with those secrets start without --database-url; to begin with an empty \
         PostgreSQL move that file away, or give another --data-dir",
        sqlite.display()
    )]
    SqliteHoldsSecrets { sqlite: PathBuf },
}

/// A daemon's parts.
pub struct Composed {
    pub store: Arc<dyn Store>,
    pub audit: Arc<Audit>,
    pub clock: Arc<dyn Clock>,
    pub node: Arc<Node>,
    pub service: Arc<Service>,
    pub opener: Opener,
}

/// What can be said of the settings beyond each one's own rules, before anything is started with them: what an operator should be warned
/// of, where they can be used.
///
/// # Errors
/// [`ComposeError::DatabaseUrl`], [`ComposeError::Issuers`], [`ComposeError::Tls`].
pub fn check(config: &Config) -> Result<Vec<String>, ComposeError> {
    if let Database::Postgres { url } = &config.database {
        PostgresStore::check_url(url.text()).map_err(ComposeError::DatabaseUrl)?;
    }
    check_issuers(&config.issuers)?;
    let mut warnings = warnings_of_issuers(config);
    if let Some(pair) = tls_pair(config) {
        warnings.extend(tls::check(&pair)?.warning(SystemClock::new().wall(), &pair.certificate));
    }
    Ok(warnings)
}

/// Of whom an operator should be warned among the issuers.
#[must_use]
pub fn warnings_of_issuers(config: &Config) -> Vec<String> {
    let warning = |issuer: &Issuer| match &issuer.keys {
        IssuerKeys::Public { set: set @ KeySetPlace::Url { url, .. }, .. } if set.is_anybodys() => Some(format!(
            "the keys of the issuer {} come from {url}: while its server is down any user of this host can take that port and be anybody \
             whom its rules let in: use https, a file, or a port below 1024",
            issuer.name
        )),
        _ => None,
    };
    config.issuers.iter().filter_map(warning).collect()
}

/// Where the certificate that TCP is served with lies.
#[must_use]
pub fn tls_pair(config: &Config) -> Option<Pair> {
    let files = config.network.tls.as_ref()?;
    Some(Pair { certificate: files.cert.clone(), key: files.key.clone() })
}

/// Puts a daemon together; its keys are locked until [`Opener::open`]. The data directory must exist and be this process's
/// (its lock taken).
///
/// # Errors
/// [`ComposeError`].
pub async fn daemon(config: &Config) -> Result<Composed, ComposeError> {
    let store = open_store(config).await?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let limits = CacheLimits { max_entries: config.cache.max_entries, max_age: config.cache.max_age };
    let keys = Arc::new(Keyring::locked("not opened yet".to_owned(), limits));
    let adopt = match config.existing_key {
        ExistingKey::Refuse => Adopt::NotAsked,
        ExistingKey::Adopt => Adopt::Asked,
    };
    let files = KeyFiles::at(&config.key_file)?;
    let unlocker = Arc::new(Unlocker::new(provider_of(config)));
    let copies = if config.backup_gcp.is_some() { Copies::InSecretManager } else { Copies::Unknown };
    let revoked = Arc::new(RevokedHere::default());
    let system_key: Arc<dyn TokenKey> = Arc::new(SystemKey::new(Arc::clone(&store), Arc::clone(&keys)));
    let node = Arc::new(Node::open(NodeParts {
        store: Arc::clone(&store),
        keys: Arc::clone(&keys),
        files: files.clone(),
        clock: Arc::clone(&clock),
        unlocker: Arc::clone(&unlocker),
        data_dir: config.data_dir.clone(),
        revoked: Arc::clone(&revoked),
        token_key: Arc::clone(&system_key),
    })?);
    let Holder { node: id, boot } = node.holder();
    let audit = Audit::open(&config.data_dir.join("audit.jsonl"), Origin { node: id, boot }, copies_of_records(config));
    let audit = audit.map_err(ComposeError::Audit)?;
    let audit = match config.audit_sinks {
        AuditSinks::File => audit,
        AuditSinks::TableThenFile => audit.with_table(Sink::Table, Arc::clone(&store)),
        AuditSinks::FileThenTable => audit.with_table(Sink::File, Arc::clone(&store)),
    };
    let audit = Arc::new(audit);
    let socket_users = config.socket_users.iter().map(|(uid, scope)| (*uid, Arc::new(scope.clone()))).collect();
    let tokens = Tokens::new(Arc::clone(&store), system_key, Arc::clone(&clock), revoked);
    let issuers = Issuers::new(config.issuers.clone(), Arc::clone(&clock));
    let opener = Opener::new(OpenerParts {
        store: Arc::clone(&store),
        keys: Arc::clone(&keys),
        files: files.clone(),
        adopt,
        copies,
        node: Arc::clone(&node),
        audit: Arc::clone(&audit),
        unlocker: Arc::clone(&unlocker),
        clock: Arc::clone(&clock),
    });
    let service = Arc::new(Service::new(Parts {
        store: Arc::clone(&store),
        keys,
        files,
        destinations: destinations(config),
        node: Arc::clone(&node),
        unlocker,
        access: Access::new(rustix::process::geteuid().as_raw(), socket_users, tokens, issuers),
        audit: Arc::clone(&audit),
        clock: Arc::clone(&clock),
        keep_versions: config.keep_versions,
        verifier: Verifier::new(config.for_reading()?, config.google_environment.clone()),
        retain_old: config.retain_old,
        database_retention: config.database_retention,
        audit_retention: config.audit_retention,
    }));
    Ok(Composed { store, audit, clock, node, service, opener })
}

/// What a command needs that works without the daemon, beside it or not.
pub struct Reader {
    /// For reading only.
    pub store: Arc<dyn Store>,
    pub files: KeyFiles,
    pub destinations: Destinations,
    pub provider: Provider,
}

/// What a command needs that works also where there is no database: where one was lost, or never was.
pub struct Rescue {
    pub database: Rescued,
    pub files: KeyFiles,
    pub destinations: Destinations,
    pub provider: Provider,
    pub clock: Arc<dyn Clock>,
}

/// The database, as far as there is one.
pub enum Rescued {
    /// For reading only.
    Store(Arc<dyn Store>),
    /// It has never held a key, or there is no file of it.
    Nothing,
    /// It is somewhere, and cannot be read.
    Unreadable(StoreError),
}

/// Names the key files and the places of their copies, and opens the database for reading where there is one.
///
/// # Errors
/// [`ComposeError::KeyFile`].
pub async fn rescue(config: &Config) -> Result<Rescue, ComposeError> {
    let files = KeyFiles::at(&config.key_file)?;
    let opened: Result<Arc<dyn Store>, StoreError> = match &config.database {
        Database::Sqlite { path } if !path.exists() => return Ok(rescued(config, files, Rescued::Nothing)),
        Database::Sqlite { path } => SqliteStore::open_reading(path).await.map(|store| Arc::new(store) as _),
        Database::Postgres { url } => PostgresStore::open_reading(url.text()).await.map(|store| Arc::new(store) as _),
    };
    let surveyed = match opened {
        Ok(store) => store.survey().await.map(|survey| (store, survey.key_state.is_some())),
        Err(error) => Err(error),
    };
    let database = match surveyed {
        Ok((store, true)) => Rescued::Store(store),
        Ok((store, false)) => {
            store.close().await;
            Rescued::Nothing
        }
        Err(error) => Rescued::Unreadable(error),
    };
    Ok(rescued(config, files, database))
}

fn rescued(config: &Config, files: KeyFiles, database: Rescued) -> Rescue {
    let clock = Arc::new(SystemClock::new());
    Rescue { database, files, destinations: destinations(config), provider: provider_of(config), clock }
}

/// Who opens wrapped key files.
#[must_use]
pub fn provider(kms_endpoint: Option<String>, age_identity: Option<PathBuf>) -> Provider {
    Provider { kms_endpoint, age_identity: age_identity.map(AgeIdentity::at) }
}

/// As the settings say.
#[must_use]
pub fn provider_of(config: &Config) -> Provider {
    let endpoint = config.kms_gcp.as_ref().and_then(|kms| kms.endpoint.as_ref());
    provider(endpoint.map(ToString::to_string), config.age_identity.clone())
}

/// Who wraps a new key, and what time it is.
#[must_use]
pub fn wrapper(config: &Config) -> (Provider, Arc<dyn Clock>) {
    (provider_of(config), Arc::new(SystemClock::new()))
}

/// The secrets that the settings name.
#[must_use]
pub fn destinations(config: &Config) -> Destinations {
    let Some(backup) = &config.backup_gcp else { return Destinations::default() };
    let secrets = backup.secrets.iter().map(ToString::to_string).collect();
    Destinations::new(secrets, backup.endpoint.as_ref().map(ToString::to_string))
}

/// Opens the database for reading only, as another process than the daemon, and names the key files and the places of their copies.
///
/// # Errors
/// [`ComposeError::Store`], also for a database whose schema is not this release's; [`ComposeError::KeyFile`].
pub async fn reader(config: &Config) -> Result<Reader, ComposeError> {
    let (store, files) = reader_at(&config.key_file, &config.database).await?;
    Ok(Reader { store, files, destinations: destinations(config), provider: provider_of(config) })
}

/// As [`reader`], of a process that has no other settings.
///
/// # Errors
/// As there.
pub async fn reader_at(key_file: &Path, database: &Database) -> Result<(Arc<dyn Store>, KeyFiles), ComposeError> {
    let files = KeyFiles::at(key_file)?;
    let store: Arc<dyn Store> = match database {
        Database::Sqlite { path } => Arc::new(SqliteStore::open_reading(path).await?),
        Database::Postgres { url } => Arc::new(PostgresStore::open_reading(url.text()).await?),
    };
    Ok((store, files))
}

/// As [`reader`], for commands that promise to touch nothing: no file is made beside a SQLite file that no daemon has open. Should one start
/// meanwhile, what is read may be wrong, so nothing may be decided by it.
///
/// # Errors
/// As [`reader`].
pub async fn untouching_reader(config: &Config) -> Result<Reader, ComposeError> {
    match &config.database {
        Database::Sqlite { path } => {
            let files = KeyFiles::at(&config.key_file)?;
            let store = Arc::new(SqliteStore::open_copy(path).await?);
            Ok(Reader { store, files, destinations: destinations(config), provider: provider_of(config) })
        }
        Database::Postgres { .. } => reader(config).await,
    }
}

/// Opens another database than the settings' for reading only: one that a URL names, or a copy of a SQLite file.
///
/// # Errors
/// [`StoreError`], as the stores' readers.
pub async fn named_reader(name: &OsStr) -> Result<Arc<dyn Store>, StoreError> {
    match name.to_str() {
        // Any URL, so that one with a misspelt scheme is refused as such, and its password is in no message about a file.
        Some(url) if url.contains("://") => Ok(Arc::new(PostgresStore::open_reading(url).await?)),
        _ => {
            let store = SqliteStore::open_copy(Path::new(name)).await?;
            match store.check_file().await {
                Ok(()) => Ok(Arc::new(store)),
                Err(damage) => {
                    store.close().await;
                    Err(damage)
                }
            }
        }
    }
}

async fn open_store(config: &Config) -> Result<Arc<dyn Store>, ComposeError> {
    match &config.database {
        Database::Sqlite { path } => Ok(Arc::new(SqliteStore::open(path).await?)),
        Database::Postgres { url } => {
            let store = PostgresStore::open(url.text()).await?;
            refuse_to_hide_sqlite(&store, &config.data_dir.join("containarium.db")).await?;
            Ok(Arc::new(store))
        }
    }
}

async fn refuse_to_hide_sqlite(postgres: &PostgresStore, sqlite: &Path) -> Result<(), ComposeError> {
    let survey = postgres.survey().await?;
    let empty = survey.key_state.is_none() && !survey.holds_rows;
    if empty && sqlite.exists() && SqliteStore::holds_rows(sqlite).await? {
        return Err(ComposeError::SqliteHoldsSecrets { sqlite: sqlite.to_owned() });
    }
    Ok(())
}

const fn copies_of_records(config: &Config) -> RecordCopies {
    match config.audit_copies {
        AuditCopies::None => RecordCopies::None,
        AuditCopies::Journal => RecordCopies::Journal,
    }
}
