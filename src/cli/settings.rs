//! The flags of the settings. Each says its variable in words and does not let clap read it: `config` knows the layers, and clap would
//! read the process's environment in tests too, and blame a flag for a variable's value.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueHint};

use crate::client::Client;
use crate::config::{Environment, Flags, Setting, client_socket};

use super::failure::Failure;
use super::output::Format;

/// The daemon's settings.
#[derive(Args)]
pub(super) struct SettingsArgs {
    /// Read settings from this TOML file, which must be there [default: /etc/containarium/config.toml as root, else under
    /// XDG_CONFIG_HOME] [env: CONTAINARIUM_CONFIG]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    config: Option<PathBuf>,
    /// Keep the database here [default: /var/lib/containarium as root, else under XDG_DATA_HOME] [env: CONTAINARIUM_DATA_DIR]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    data_dir: Option<PathBuf>,
    /// Keep the master key here [default: /etc/containarium/secrets.key as root, else under XDG_CONFIG_HOME] [env:
    /// CONTAINARIUM_KEY_FILE]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    key_file: Option<PathBuf>,
    /// Listen on this Unix socket [default: /run/containarium/containarium.sock as root, else under XDG_RUNTIME_DIR or the data
    /// directory] [env: CONTAINARIUM_SOCKET]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    socket: Option<PathBuf>,
    /// Use this PostgreSQL database instead of SQLite; other users of the host can see a flag, so a URL with a password is better
    /// kept in a file [env: CONTAINARIUM_DATABASE_URL]
    #[arg(long, value_name = "URL", value_hint = ValueHint::Url)]
    database_url: Option<OsString>,
    /// Read the database's URL from this file, which only its owner may be able to read [env: CONTAINARIUM_DATABASE_URL_FILE]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    database_url_file: Option<PathBuf>,
    /// Write logs as text or as JSON lines [default: text] [env: CONTAINARIUM_LOG_FORMAT]
    #[arg(long, value_name = "FORMAT", value_parser = ["text", "json"])]
    log_format: Option<String>,
    /// Take a key file that already lies beside an empty database [default: false] [env: CONTAINARIUM_ADOPT_KEY]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    adopt_key: Option<bool>,
    /// Open a wrapped key file with the age identities in this file, where it has a recipient of age [default: none; a wrapped key file
    /// is opened by its KMS key] [env: CONTAINARIUM_AGE_IDENTITY]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    age_identity: Option<PathBuf>,
}

impl From<SettingsArgs> for Flags {
    fn from(arguments: SettingsArgs) -> Self {
        let mut flags = Self::default();
        flags.give(Setting::Config, arguments.config);
        flags.give(Setting::DataDir, arguments.data_dir);
        flags.give(Setting::KeyFile, arguments.key_file);
        flags.give(Setting::Socket, arguments.socket);
        flags.give(Setting::DatabaseUrl, arguments.database_url);
        flags.give(Setting::DatabaseUrlFile, arguments.database_url_file);
        flags.give(Setting::LogFormat, arguments.log_format);
        flags.give(Setting::AdoptKey, arguments.adopt_key.map(|adopt| adopt.to_string()));
        flags.give(Setting::AgeIdentity, arguments.age_identity);
        flags
    }
}

/// Over the flags that every command of a group has.
const COMMON: &str = "Common options";

/// How a client command finds the daemon and prints its answer.
#[derive(Args)]
pub(super) struct ClientArgs {
    /// The daemon's socket [default: as the configuration file says, else /run/containarium/containarium.sock as root, else under
    /// XDG_RUNTIME_DIR or the data directory] [env: CONTAINARIUM_SOCKET]
    #[arg(long, global = true, help_heading = COMMON, value_name = "PATH", value_hint = ValueHint::FilePath)]
    socket: Option<PathBuf>,
    /// The daemon's configuration file, for its socket [env: CONTAINARIUM_CONFIG]
    #[arg(long, global = true, help_heading = COMMON, value_name = "FILE", value_hint = ValueHint::FilePath)]
    config: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

/// How a result is printed.
#[derive(Args)]
pub(super) struct OutputArgs {
    /// Print results for people, or as JSON, whose fields are the HTTP API's and stable
    #[arg(short, long, global = true, help_heading = COMMON, value_name = "FORMAT", default_value = "table")]
    output: Format,
}

impl OutputArgs {
    pub(super) const fn format(&self) -> Format {
        self.output
    }
}

impl ClientArgs {
    pub(super) const fn format(&self) -> Format {
        self.output.format()
    }

    /// For a command that needs other settings of the daemon, too.
    pub(super) fn flags(&self) -> Flags {
        let mut flags = Flags::default();
        flags.give(Setting::Socket, self.socket.clone());
        flags.give(Setting::Config, self.config.clone());
        flags
    }

    pub(super) fn client(self) -> Result<Client, Failure> {
        let socket = client_socket(&self.flags(), &Environment::of_process());
        socket.map(Client::new).map_err(|errors| Failure::of_settings(&errors))
    }
}
