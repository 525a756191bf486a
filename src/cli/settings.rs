//! The flags of the settings. Each says its variable in words and does not let clap read it: `config` knows the layers, and clap would
//! read the process's environment in tests too, and blame a flag for a variable's value.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::{Args, ValueHint};

use crate::client::{Client, Credential, Remote};
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
    /// Serve the API over TCP too, on this address and port [default: none] [env: CONTAINARIUM_LISTEN]
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<OsString>,
    /// Serve metrics and health, and nothing else, on this address and port; no credential is asked for [default: none] [env:
    /// CONTAINARIUM_METRICS_LISTEN]
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics_listen: Option<OsString>,
    /// Serve TCP with TLS and this certificate: PEM, the server's own first, then those between it and the root. SIGHUP reads it
    /// and its key anew [env: CONTAINARIUM_TLS_CERT]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    tls_cert: Option<PathBuf>,
    /// The certificate's private key: PEM, without a passphrase, and not readable by every user [env: CONTAINARIUM_TLS_KEY]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    tls_key: Option<PathBuf>,
    /// Serve TCP without TLS on other addresses than 127.0.0.1 and [::1], where something else encrypts [default: false] [env:
    /// CONTAINARIUM_ALLOW_PLAIN_HTTP]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    allow_plain_http: Option<bool>,
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
        flags.give(Setting::Listen, arguments.listen);
        flags.give(Setting::MetricsListen, arguments.metrics_listen);
        flags.give(Setting::TlsCert, arguments.tls_cert);
        flags.give(Setting::TlsKey, arguments.tls_key);
        flags.give(Setting::AllowPlainHttp, arguments.allow_plain_http.map(|allow| allow.to_string()));
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

/// Where a command finds a daemon that is not on this host.
#[derive(Args)]
pub(super) struct ServerArgs {
    /// Ask this daemon over TCP instead of the one of this host: https://HOST[:PORT], or http on this host [default: the socket] [env:
    /// CONTAINARIUM_SERVER]
    #[arg(long, global = true, help_heading = COMMON, value_name = "URL", value_hint = ValueHint::Url, conflicts_with = "socket")]
    server: Option<OsString>,
    /// Trust what this authority signed, and nothing else: PEM [default: the authorities of this host] [env: CONTAINARIUM_CA_CERT]
    #[arg(long, global = true, help_heading = COMMON, value_name = "FILE", value_hint = ValueHint::FilePath)]
    ca_cert: Option<PathBuf>,
    /// Present the token in this file, as a caller who has the token's rights and no others; a token itself is given in
    /// CONTAINARIUM_TOKEN, and never as a flag, which other users of the host can see [default: none] [env: CONTAINARIUM_TOKEN_FILE]
    #[arg(long, global = true, help_heading = COMMON, value_name = "FILE", value_hint = ValueHint::FilePath)]
    token_file: Option<PathBuf>,
}

impl ServerArgs {
    /// The daemon that is named, or the one of this host: a flag that names its socket is stronger than a variable that names a server.
    pub(super) fn client(mut self, local: ClientArgs) -> Result<Client, Failure> {
        let credential = credential(self.token_file.take(), &Environment::of_process())?;
        self.unknown_client(local).map(|client| client.presenting(credential))
    }

    fn unknown_client(self, local: ClientArgs) -> Result<Client, Failure> {
        let environment = Environment::of_process();
        let of = |name: &str| environment.variable(name).map(OsStr::to_owned);
        let from_variable = if local.socket.is_some() { None } else { of("CONTAINARIUM_SERVER") };
        let Some(url) = self.server.or(from_variable) else {
            if self.ca_cert.is_some() {
                return Err(Failure::usage("--ca-cert is of no use without --server: the socket has no certificate"));
            }
            return local.client();
        };
        let ca = self.ca_cert.or_else(|| of("CONTAINARIUM_CA_CERT").map(PathBuf::from));
        let remote = Remote::new(url.to_str().unwrap_or_default(), ca.as_deref());
        let mend = "give --server and --ca-cert, or CONTAINARIUM_SERVER and CONTAINARIUM_CA_CERT, or neither";
        remote.map(Client::of_remote).map_err(|error| Failure::usage(error.to_string()).mend(mend))
    }
}

/// The credential that is given: a flag is stronger than a variable, and a file and a token at once are a mistake of one of them.
fn credential(file: Option<PathBuf>, environment: &Environment) -> Result<Option<Credential>, Failure> {
    const TOKEN: &str = "CONTAINARIUM_TOKEN";
    let text = if file.is_some() { None } else { environment.variable(TOKEN) };
    let file = file.or_else(|| environment.variable("CONTAINARIUM_TOKEN_FILE").map(PathBuf::from));
    let credential = match (file, text) {
        (None, None) => return Ok(None),
        (Some(_), Some(_)) => {
            return Err(Failure::usage("give CONTAINARIUM_TOKEN or CONTAINARIUM_TOKEN_FILE, not both"));
        }
        (Some(path), None) => Credential::of_file(&path),
        (None, Some(text)) => Credential::of_text(text.as_encoded_bytes(), TOKEN),
    };
    let mend = "`containarium admin token create` on the daemon's host makes one";
    credential.map(Some).map_err(|error| Failure::usage(error.to_string()).mend(mend))
}

/// Who called sudo, where somebody did: a name for people, which proves nothing.
#[expect(clippy::disallowed_methods, reason = "what sudo says is no setting of ours")]
pub(super) fn invoking_user() -> Option<String> {
    std::env::var("SUDO_USER").ok().filter(|user| !user.is_empty())
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
