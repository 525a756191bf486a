//! The daemon's settings, each with where it came from: flag, then environment, then file, then default.
//!
//! Nothing here reads the process's environment but [`Environment::of_process`], so that a test passes its own. Every error is
//! found in one pass, since an operator would rather mend a file once.

mod database_url;
mod error;
mod file;
mod google;
mod layers;
mod network;
mod oidc;
mod places;
mod reading;
mod socket_users;
mod values;

use std::ffi::OsString;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use database_url::DatabaseUrl;
pub use error::ConfigError;
pub use google::{BackupGcp, Endpoint, FirstStart, KmsGcp};
pub use layers::{Environment, Flags, Origin, Setting, User};
pub use network::{Limits, Network, TlsFiles};
pub use reading::{NotText, Reading};
pub use socket_users::SocketUsers;
pub use values::duration;

use crate::model::Issuer;

use file::FileLayer;
use layers::Layers;

/// The longest path that a Unix socket can have: `sun_path` is 108 bytes with the NUL that ends it (unix(7)).
pub const MAX_SOCKET_PATH: usize = 107;

/// What the daemon runs with. Every path is absolute.
pub struct Config {
    pub data_dir: PathBuf,
    pub key_file: PathBuf,
    /// At most [`MAX_SOCKET_PATH`] bytes.
    pub socket: PathBuf,
    pub database: Database,
    pub log_format: LogFormat,
    pub existing_key: ExistingKey,
    /// How many versions of a secret stay, the newest by number.
    pub keep_versions: NonZeroU32,
    pub cache: CacheSettings,
    /// For how long a retired master key is kept.
    pub retain_old: Duration,
    /// For how long backups of the database are kept; only their operator knows.
    pub database_retention: Option<Duration>,
    /// Where copies of the master key go, where that is Secret Manager.
    pub backup_gcp: Option<BackupGcp>,
    pub audit_copies: AuditCopies,
    pub audit_sinks: AuditSinks,
    /// For how long audit records are kept.
    pub audit_retention: Duration,
    pub network: Network,
    pub socket_users: SocketUsers,
    /// Whose JWTs are taken; each issuer once.
    pub issuers: Vec<Issuer>,
    pub limits: Limits,
    /// What wraps the master key at rest, where that is Cloud KMS.
    pub kms_gcp: Option<KmsGcp>,
    /// The age identities that open a wrapped key file too; read when one is opened.
    pub age_identity: Option<PathBuf>,
    /// Of the process's environment what Google's client reads, for a process that is started to do the same: some of it is secret.
    pub google_environment: Vec<(OsString, OsString)>,
}

/// Where rows are kept.
pub enum Database {
    /// A file in the data directory.
    Sqlite {
        path: PathBuf,
    },
    Postgres {
        url: DatabaseUrl,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// Whether audit records are copied into the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuditCopies {
    None,
    Journal,
}

/// Where the audit records of reads and denials go: into the first that takes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuditSinks {
    /// The JSON-lines file in the data directory.
    File,
    /// The database's table before it.
    TableThenFile,
    FileThenTable,
}

impl AuditSinks {
    /// A database on this disk takes nothing that the file cannot; one that is elsewhere outlives this host.
    const fn default_of(database: &Database) -> (&'static str, Self) {
        match database {
            Database::Sqlite { .. } => ("file", Self::File),
            Database::Postgres { .. } => ("table, file", Self::TableThenFile),
        }
    }
}

/// What to do with a key file that lies beside an empty database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExistingKey {
    Refuse,
    Adopt,
}

/// The cache of unwrapped DEKs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheSettings {
    /// 0: no cache.
    pub max_entries: u64,
    /// A DEK is unwrapped anew after this long, however often it is used.
    pub max_age: Duration,
}

/// The settings, and for each what it is and why.
pub struct Effective {
    pub config: Config,
    /// The configuration file that was read, where there is one.
    pub file: Option<PathBuf>,
    /// In the order of [`Setting::ALL`].
    pub settings: Vec<Shown>,
}

/// One setting as `config show` prints it; a database password is not in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    pub setting: Setting,
    /// `None` where the setting is optional and not given.
    pub value: Option<String>,
    pub origin: Origin,
}

/// Every setting, from all layers.
///
/// # Errors
/// Every [`ConfigError`] that there is.
pub fn load(flags: &Flags, environment: &Environment) -> Result<Effective, Vec<ConfigError>> {
    let mut errors = Vec::new();
    let read = file::find(flags, environment).and_then(|place| file::read(place, &mut errors));
    let layer = read.unwrap_or_else(|error| {
        errors.push(error);
        FileLayer::default()
    });
    let layers = Layers { flags, environment, file: &layer };
    let mut resolver = Resolver { layers, errors, shown: Vec::new() };
    let config = resolver.config();
    match config {
        Some(config) if resolver.errors.is_empty() => {
            Ok(Effective { config, file: layer.path.clone(), settings: resolver.shown })
        }
        _ => Err(resolver.errors),
    }
}

/// The socket that a client command talks to: as the daemon finds it, from the same layers. The file is read only where neither flag
/// nor environment names the socket.
///
/// # Errors
/// What is wrong with the configuration file, the socket's path, or the directories that its default needs.
pub fn client_socket(flags: &Flags, environment: &Environment) -> Result<PathBuf, Vec<ConfigError>> {
    let without_file = FileLayer::default();
    let named = Layers { flags, environment, file: &without_file }.find(Setting::Socket).is_some();
    let mut errors = Vec::new();
    let layer = if named {
        FileLayer::default()
    } else {
        let place = file::find(flags, environment).map_err(|error| vec![error])?;
        file::read(place, &mut errors).map_err(|error| vec![error])?
    };
    if !errors.is_empty() {
        return Err(errors);
    }
    let layers = Layers { flags, environment, file: &layer };
    let mut resolver = Resolver { layers, errors, shown: Vec::new() };
    let socket = resolver.client_socket();
    match socket {
        Some(socket) if resolver.errors.is_empty() => Ok(socket),
        _ => Err(resolver.errors),
    }
}

/// Works through the settings, keeping what went wrong and what to show.
struct Resolver<'a> {
    layers: Layers<'a>,
    errors: Vec<ConfigError>,
    shown: Vec<Shown>,
}

impl Resolver<'_> {
    fn config(&mut self) -> Option<Config> {
        self.show_config_file();
        let environment = self.layers.environment;
        let data_dir = self.path(Setting::DataDir, || places::data_dir(environment));
        let key_file = self.path(Setting::KeyFile, || places::key_file(environment));
        let socket = self.socket(data_dir.as_deref());
        let network = self.network();
        let database = self.database(data_dir.as_deref());
        let log_format = self.value(Setting::LogFormat, ("text", LogFormat::Text), values::log_format);
        let existing_key = self.value(Setting::AdoptKey, ("false", ExistingKey::Refuse), values::adopt_key);
        let keep_versions = self.value(Setting::KeepVersions, ("10", DEFAULT_KEEP_VERSIONS), values::keep_versions);
        let max_entries = self.value(Setting::CacheMaxEntries, ("100000", 100_000), values::max_entries);
        let max_age = self.value(Setting::CacheMaxAge, ("1h", Duration::from_hours(1)), values::max_age);
        let retain_old = self.value(Setting::KeysRetainOld, ("35d", DEFAULT_RETAIN_OLD), values::retain_old);
        let age_identity = self.optional_path(Setting::AgeIdentity);
        let database_retention = self.optional(Setting::DatabaseRetention, values::database_retention);
        let backup_gcp = self.backup_gcp();
        let audit_copies = self.value(Setting::AuditJournal, ("false", AuditCopies::None), values::audit_journal);
        let default_sinks = database.as_ref().map_or(("file", AuditSinks::File), AuditSinks::default_of);
        let audit_sinks = self.lines(Setting::AuditSinks, default_sinks, values::audit_sinks);
        let audit_retention =
            self.value(Setting::AuditRetention, ("400d", DEFAULT_AUDIT_RETENTION), values::audit_retention);
        let socket_users = self.socket_users();
        let issuers = self.oidc();
        let limits = self.limits();
        let kms_gcp = self.kms_gcp();
        Some(Config {
            data_dir: data_dir?,
            key_file: key_file?,
            socket: socket?,
            database: database?,
            log_format: log_format?,
            existing_key: existing_key?,
            keep_versions: keep_versions?,
            cache: CacheSettings { max_entries: max_entries?, max_age: max_age? },
            retain_old: retain_old?,
            database_retention,
            backup_gcp,
            audit_copies: audit_copies?,
            audit_sinks: audit_sinks?,
            audit_retention: audit_retention?,
            network: network?,
            socket_users: socket_users?,
            issuers: issuers?,
            limits: limits?,
            kms_gcp,
            age_identity,
            google_environment: environment.google(),
        })
    }

    fn backup_gcp(&mut self) -> Option<BackupGcp> {
        let secrets = self.optional(Setting::BackupGcpSecrets, google::secrets);
        let endpoint = self.optional(Setting::BackupGcpEndpoint, Endpoint::parse);
        let first_start =
            self.value(Setting::BackupGcpPushOnFirstStart, ("false", FirstStart::Warn), google::first_start);
        self.needs(Setting::BackupGcpEndpoint, Setting::BackupGcpSecrets);
        self.needs(Setting::BackupGcpPushOnFirstStart, Setting::BackupGcpSecrets);
        Some(BackupGcp { secrets: secrets?, endpoint, first_start: first_start? })
    }

    fn kms_gcp(&mut self) -> Option<KmsGcp> {
        let key = self.optional(Setting::KmsGcpKey, google::kms_key);
        let endpoint = self.optional(Setting::KmsGcpEndpoint, Endpoint::parse);
        self.needs(Setting::KmsGcpEndpoint, Setting::KmsGcpKey);
        Some(KmsGcp { key: key?, endpoint })
    }

    /// A setting that means nothing without another is more likely a line that was lost than one too many.
    fn needs(&mut self, setting: Setting, other: Setting) {
        if self.layers.find(setting).is_some() && self.layers.find(other).is_none() {
            self.invalid(setting, format!("it needs `{}` beside it", other.key()));
        }
    }

    fn show_config_file(&mut self) {
        let origin = self.layers.find(Setting::Config).map_or(Origin::Default, |given| given.origin);
        let value = self.layers.file.path.as_deref().map(display);
        self.shown.push(Shown { setting: Setting::Config, value, origin });
    }

    /// The socket alone. The data directory, which its default may need, is looked up without being a setting of the client.
    fn client_socket(&mut self) -> Option<PathBuf> {
        let environment = self.layers.environment;
        if self.layers.find(Setting::Socket).is_some() || places::runtime_dir(environment).is_some() {
            return self.socket(None);
        }
        let data_dir = self.path(Setting::DataDir, || places::data_dir(environment));
        self.socket(data_dir.as_deref())
    }

    fn socket(&mut self, data_dir: Option<&Path>) -> Option<PathBuf> {
        let environment = self.layers.environment;
        // Without a data directory there is an error already, and the socket's would only repeat it.
        if self.layers.find(Setting::Socket).is_none()
            && data_dir.is_none()
            && places::runtime_dir(environment).is_none()
        {
            return None;
        }
        let socket = self.path(Setting::Socket, || Ok(places::socket(environment, data_dir)))?;
        let length = socket.as_os_str().len();
        if length <= MAX_SOCKET_PATH {
            return Some(socket);
        }
        let why = format!(
            "the path has {length} bytes, and a Unix socket's can have {MAX_SOCKET_PATH}: give a shorter one with --socket"
        );
        self.invalid(Setting::Socket, why);
        None
    }

    fn database(&mut self, data_dir: Option<&Path>) -> Option<Database> {
        match (self.url(), self.url_from_file()) {
            (Asked::No, Asked::No) => data_dir.map(|dir| Database::Sqlite { path: dir.join("containarium.db") }),
            (Asked::For(url), Asked::No) | (Asked::No, Asked::For(url)) => Some(Database::Postgres { url }),
            (Asked::Wrongly, Asked::No) | (Asked::No, Asked::Wrongly) => None,
            _ => {
                let (url, file) = (self.origin(Setting::DatabaseUrl), self.origin(Setting::DatabaseUrlFile));
                self.errors.push(ConfigError::TwoDatabases { url, file });
                None
            }
        }
    }

    fn url(&mut self) -> Asked {
        let Some(given) = self.layers.find(Setting::DatabaseUrl) else {
            self.show(Setting::DatabaseUrl, None, Origin::Default);
            return Asked::No;
        };
        let url = given.text().and_then(DatabaseUrl::parse);
        self.show(Setting::DatabaseUrl, url.as_ref().ok().map(DatabaseUrl::redacted), given.origin);
        self.keep(Setting::DatabaseUrl, url).map_or(Asked::Wrongly, Asked::For)
    }

    fn url_from_file(&mut self) -> Asked {
        if self.layers.find(Setting::DatabaseUrlFile).is_none() {
            self.show(Setting::DatabaseUrlFile, None, Origin::Default);
            return Asked::No;
        }
        let path = self.path(Setting::DatabaseUrlFile, || Err("it has no default".to_owned()));
        let url = path.and_then(|path| self.keep(Setting::DatabaseUrlFile, DatabaseUrl::from_file(&path)));
        url.map_or(Asked::Wrongly, Asked::For)
    }

    /// A path, absolute: one in the file is relative to the file's directory (a daemon's own directory is seldom what its operator
    /// means), any other to the working directory.
    fn path(&mut self, setting: Setting, default: impl FnOnce() -> Result<PathBuf, String>) -> Option<PathBuf> {
        let (path, origin) = match self.layers.find(setting) {
            Some(given) => {
                let base = self.base(&given.origin);
                (values::path(given.value, base.as_deref()), given.origin)
            }
            None => (default(), Origin::Default),
        };
        self.show(setting, path.as_deref().ok().map(display), origin);
        self.keep(setting, path)
    }

    /// What a relative path is relative to.
    fn base(&self, origin: &Origin) -> Option<PathBuf> {
        match origin {
            Origin::File { path, .. } => path.parent().map(Path::to_path_buf),
            _ => self.layers.environment.working_dir().map(Path::to_path_buf),
        }
    }

    fn optional_path(&mut self, setting: Setting) -> Option<PathBuf> {
        if self.layers.find(setting).is_none() {
            self.show(setting, None, Origin::Default);
            return None;
        }
        self.path(setting, || Err("it has no default".to_owned()))
    }

    fn value<T>(
        &mut self,
        setting: Setting,
        (text, default): (&str, T),
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let Some(given) = self.layers.find(setting) else {
            self.show(setting, Some(text.to_owned()), Origin::Default);
            return Some(default);
        };
        let text = given.text();
        self.show(setting, text.as_ref().ok().map(|text| (*text).to_owned()), given.origin);
        self.keep(setting, text.and_then(parse))
    }

    /// As [`Self::value`], of a list.
    fn lines<T>(
        &mut self,
        setting: Setting,
        default: (&str, T),
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let Some(given) = self.layers.find(setting) else { return self.value(setting, default, parse) };
        let text = given.text();
        self.show(setting, text.as_ref().ok().map(|text| text.replace('\n', ", ")), given.origin);
        self.keep(setting, text.and_then(parse))
    }

    /// A setting without a default.
    fn optional<T>(&mut self, setting: Setting, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let Some(given) = self.layers.find(setting) else {
            self.show(setting, None, Origin::Default);
            return None;
        };
        let text = given.text();
        self.show(setting, text.as_ref().ok().map(|text| text.replace('\n', ", ")), given.origin);
        self.keep(setting, text.and_then(parse))
    }

    fn show(&mut self, setting: Setting, value: Option<String>, origin: Origin) {
        self.shown.push(Shown { setting, value, origin });
    }

    fn keep<T>(&mut self, setting: Setting, result: Result<T, String>) -> Option<T> {
        result.map_err(|why| self.invalid(setting, why)).ok()
    }

    fn invalid(&mut self, setting: Setting, why: String) {
        self.errors.push(ConfigError::Invalid { setting, origin: self.origin(setting), why });
    }

    fn origin(&self, setting: Setting) -> Origin {
        self.layers.find(setting).map_or(Origin::Default, |given| given.origin)
    }
}

/// One of the two ways to name a server.
enum Asked {
    No,
    /// There is an error already.
    Wrongly,
    For(DatabaseUrl),
}

/// A month of database backups and a few days.
/// What a yearly audit asks for, and some time to hold it.
const DEFAULT_AUDIT_RETENTION: Duration = Duration::from_hours(400 * 24);
const DEFAULT_RETAIN_OLD: Duration = Duration::from_hours(35 * 24);
const DEFAULT_KEEP_VERSIONS: NonZeroU32 = NonZeroU32::new(10).unwrap();

fn display(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests;
