//! The layers that a setting can come from, and the one table of names.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};

use super::file::FileLayer;
use super::google;

/// A setting of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Setting {
    /// The configuration file itself.
    Config,
    DataDir,
    KeyFile,
    Socket,
    Listen,
    MetricsListen,
    TlsCert,
    TlsKey,
    AllowPlainHttp,
    DatabaseUrl,
    DatabaseUrlFile,
    LogFormat,
    AdoptKey,
    KeepVersions,
    CacheMaxEntries,
    CacheMaxAge,
    KeysRetainOld,
    AgeIdentity,
    DatabaseRetention,
    BackupGcpSecrets,
    BackupGcpEndpoint,
    BackupGcpPushOnFirstStart,
    AuditJournal,
    AuditSinks,
    AuditRetention,
    SocketUsers,
    Oidc,
    LimitConnections,
    LimitConnectionsPerAddress,
    LimitRequestsPerIdentity,
    LimitRequestsPerAddress,
    LimitHeaderTime,
    LimitBodyTime,
    KmsGcpKey,
    KmsGcpEndpoint,
}

/// Where a setting may be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    Everywhere,
    /// As flag and variable.
    NotInFile,
    FileOnly,
}

/// What TOML type a setting has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Boolean,
    Integer,
    /// A list of strings, of which none has a line break; handed on as one text, a line for each.
    Lines,
    /// Tables, of which `socket_users` has the rules; handed on as one text, a line for each.
    Users,
    /// Tables, of which `oidc` has the rules; handed on as one text, a line of JSON for each.
    Issuers,
}

impl Setting {
    pub const ALL: &[Self] = &[
        Self::Config,
        Self::DataDir,
        Self::KeyFile,
        Self::Socket,
        Self::Listen,
        Self::MetricsListen,
        Self::TlsCert,
        Self::TlsKey,
        Self::AllowPlainHttp,
        Self::DatabaseUrl,
        Self::DatabaseUrlFile,
        Self::LogFormat,
        Self::AdoptKey,
        Self::KeepVersions,
        Self::CacheMaxEntries,
        Self::CacheMaxAge,
        Self::KeysRetainOld,
        Self::AgeIdentity,
        Self::DatabaseRetention,
        Self::BackupGcpSecrets,
        Self::BackupGcpEndpoint,
        Self::BackupGcpPushOnFirstStart,
        Self::AuditJournal,
        Self::AuditSinks,
        Self::AuditRetention,
        Self::SocketUsers,
        Self::Oidc,
        Self::LimitConnections,
        Self::LimitConnectionsPerAddress,
        Self::LimitRequestsPerIdentity,
        Self::LimitRequestsPerAddress,
        Self::LimitHeaderTime,
        Self::LimitBodyTime,
        Self::KmsGcpKey,
        Self::KmsGcpEndpoint,
    ];

    /// As the file has it: `data_dir`, `cache.max_age`.
    #[must_use]
    pub const fn key(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::DataDir => "data_dir",
            Self::KeyFile => "key_file",
            Self::Socket => "socket",
            Self::Listen => "listen",
            Self::MetricsListen => "metrics_listen",
            Self::TlsCert => "tls_cert",
            Self::TlsKey => "tls_key",
            Self::AllowPlainHttp => "allow_plain_http",
            Self::DatabaseUrl => "database_url",
            Self::DatabaseUrlFile => "database_url_file",
            Self::LogFormat => "log_format",
            Self::AdoptKey => "adopt_key",
            Self::KeepVersions => "secrets.keep_versions",
            Self::CacheMaxEntries => "cache.max_entries",
            Self::CacheMaxAge => "cache.max_age",
            Self::KeysRetainOld => "keys.retain_old",
            Self::AgeIdentity => "keys.age_identity",
            Self::DatabaseRetention => "backup.database_retention",
            Self::BackupGcpSecrets => "backup.gcp.secrets",
            Self::BackupGcpEndpoint => "backup.gcp.endpoint",
            Self::BackupGcpPushOnFirstStart => "backup.gcp.push_on_first_start",
            Self::AuditJournal => "audit.journal",
            Self::AuditSinks => "audit.sinks",
            Self::AuditRetention => "audit.retention",
            Self::SocketUsers => "socket_users",
            Self::Oidc => "oidc",
            Self::LimitConnections => "limits.connections",
            Self::LimitConnectionsPerAddress => "limits.connections_per_address",
            Self::LimitRequestsPerIdentity => "limits.requests_per_identity",
            Self::LimitRequestsPerAddress => "limits.requests_per_address",
            Self::LimitHeaderTime => "limits.header_time",
            Self::LimitBodyTime => "limits.body_time",
            Self::KmsGcpKey => "kms.gcp.key",
            Self::KmsGcpEndpoint => "kms.gcp.endpoint",
        }
    }

    /// `--data-dir`; `None` for what the file alone has.
    #[must_use]
    pub fn flag(self) -> Option<String> {
        (self.reach() != Reach::FileOnly).then(|| format!("--{}", self.name().replace('_', "-")))
    }

    /// `CONTAINARIUM_DATA_DIR`; `None` for what the file alone has.
    #[must_use]
    pub fn variable(self) -> Option<String> {
        (self.reach() != Reach::FileOnly).then(|| format!("CONTAINARIUM_{}", self.name().to_ascii_uppercase()))
    }

    /// Of flag and variable: without the file's tables.
    fn name(self) -> &'static str {
        self.key().rsplit('.').next().unwrap_or_default()
    }

    pub(super) const fn reach(self) -> Reach {
        match self {
            Self::Config => Reach::NotInFile,
            Self::DataDir
            | Self::KeyFile
            | Self::Socket
            | Self::Listen
            | Self::MetricsListen
            | Self::TlsCert
            | Self::TlsKey
            | Self::AllowPlainHttp
            | Self::DatabaseUrl
            | Self::DatabaseUrlFile
            | Self::LogFormat
            | Self::AdoptKey
            | Self::AgeIdentity => Reach::Everywhere,
            _ => Reach::FileOnly,
        }
    }

    pub(super) const fn kind(self) -> Kind {
        match self {
            Self::AdoptKey | Self::AllowPlainHttp | Self::BackupGcpPushOnFirstStart | Self::AuditJournal => {
                Kind::Boolean
            }
            Self::KeepVersions
            | Self::CacheMaxEntries
            | Self::LimitConnections
            | Self::LimitConnectionsPerAddress
            | Self::LimitRequestsPerIdentity
            | Self::LimitRequestsPerAddress => Kind::Integer,
            Self::BackupGcpSecrets | Self::AuditSinks => Kind::Lines,
            Self::SocketUsers => Kind::Users,
            Self::Oidc => Kind::Issuers,
            _ => Kind::Text,
        }
    }
}

/// Where a setting's value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    Flag(String),
    Environment(String),
    File {
        path: PathBuf,
        /// From 1.
        line: usize,
    },
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => write!(f, "flag {flag}"),
            Self::Environment(variable) => write!(f, "environment {variable}"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

/// The settings that the command line gave.
#[derive(Default)]
pub struct Flags(BTreeMap<Setting, OsString>);

impl Flags {
    /// Notes a flag that was given; `None` is one that was not.
    pub fn give(&mut self, setting: Setting, value: Option<impl Into<OsString>>) {
        if let Some(value) = value {
            self.0.insert(setting, value.into());
        }
    }
}

/// Whose defaults apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum User {
    /// uid 0: the host's own directories.
    Root,
    /// Anyone else: the XDG base directories.
    Other,
}

/// What the process was started with, as far as settings are concerned.
pub struct Environment {
    user: User,
    working_dir: Option<PathBuf>,
    variables: BTreeMap<OsString, OsString>,
}

impl Environment {
    /// This process's.
    #[must_use]
    pub fn of_process() -> Self {
        let user = if rustix::process::geteuid().is_root() { User::Root } else { User::Other };
        Self::new(user, std::env::current_dir().ok(), std::env::vars_os())
    }

    /// One of the caller's making. Only the variables that mean something here are kept.
    #[must_use]
    pub fn new(
        user: User,
        working_dir: Option<PathBuf>,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Self {
        let ours = |name: &OsStr| {
            let bytes = name.as_encoded_bytes();
            bytes.starts_with(b"XDG_")
                || bytes.starts_with(b"CONTAINARIUM_")
                || google::VARIABLES.iter().any(|of| name == *of)
        };
        let variables = variables.into_iter().filter(|(name, _)| ours(name)).collect();
        Self { user, working_dir, variables }
    }

    pub(super) const fn user(&self) -> User {
        self.user
    }

    pub(super) fn working_dir(&self) -> Option<&Path> {
        self.working_dir.as_deref()
    }

    /// What Google's credentials and their way there are found by.
    pub(super) fn google(&self) -> Vec<(OsString, OsString)> {
        let of = |name: &&str| self.variables.get_key_value(OsStr::new(name));
        google::VARIABLES.iter().filter_map(of).map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    /// A variable that the process was started with, of those that mean something here.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<&OsStr> {
        self.variables.get(OsStr::new(name)).map(OsString::as_os_str)
    }
}

/// A value as a layer gave it.
pub(super) struct Given<'a> {
    pub value: &'a OsStr,
    pub origin: Origin,
}

impl<'a> Given<'a> {
    /// # Errors
    /// Why it cannot be read as text. An empty one is refused: `CONTAINARIUM_DATABASE_URL=` from a broken deployment would
    /// otherwise quietly mean the default, here another database.
    pub(super) fn text(&self) -> Result<&'a str, String> {
        let text = self.value.to_str().ok_or("it is not UTF-8")?;
        if text.is_empty() { Err("it is empty: give a value, or leave it out".to_owned()) } else { Ok(text) }
    }
}

/// All that was given, by precedence.
#[derive(Clone, Copy)]
pub(super) struct Layers<'a> {
    pub flags: &'a Flags,
    pub environment: &'a Environment,
    pub file: &'a FileLayer,
}

impl<'a> Layers<'a> {
    /// The value that counts; `None` where only the default is left.
    pub(super) fn find(&self, setting: Setting) -> Option<Given<'a>> {
        self.flag(setting).or_else(|| self.variable(setting)).or_else(|| self.file.find(setting))
    }

    fn flag(&self, setting: Setting) -> Option<Given<'a>> {
        let value = self.flags.0.get(&setting)?;
        Some(Given { value, origin: Origin::Flag(setting.flag()?) })
    }

    fn variable(&self, setting: Setting) -> Option<Given<'a>> {
        let name = setting.variable()?;
        let value = self.environment.variable(&name)?;
        Some(Given { value, origin: Origin::Environment(name) })
    }
}
