//! The command line: parses, asks, renders; it decides nothing.
//!
//! Results go to standard output, all else to standard error. Nothing that an operator types in a value's place is ever echoed, and no
//! control character of anybody else's text reaches a terminal.

mod admin;
mod audit;
mod backup;
mod configuration;
mod failure;
mod input;
mod kms;
mod output;
mod progress;
mod refusal;
mod secrets;
mod settings;
mod shell;
mod verify;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::config;
use crate::process::Warning;
use failure::{Exit, Failure};

/// What was asked for on the command line.
pub struct Invocation(Command);

/// What kind of runtime an invocation needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// A client command waits for one answer.
    One,
    Many,
}

impl Invocation {
    #[must_use]
    pub const fn threads(&self) -> Threads {
        match self.0 {
            Command::Daemon(_) | Command::VerifyDeks => Threads::Many,
            _ => Threads::One,
        }
    }
}

/// Parses this process's command line.
///
/// # Errors
/// The exit code, after help, a version or what is wrong has been printed.
pub fn parse() -> Result<Invocation, ExitCode> {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    Arguments::try_parse_from(&arguments).map(|arguments| Invocation(arguments.command)).map_err(|error| {
        let refused = refusal::without_values(error, &arguments);
        // There is nobody left to tell when even this cannot be printed.
        let _ = refused.print();
        u8::try_from(refused.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from)
    })
}

/// Does what was asked for, and says how it went.
///
/// `unprotected` is what hardening the process could not do; the daemon logs it.
pub async fn run(invocation: Invocation, unprotected: &[Warning]) -> ExitCode {
    let done = match invocation.0 {
        Command::Daemon(settings) => daemon(settings, unprotected).await,
        Command::VerifyDeks => verify::run().await,
        Command::Secrets(arguments) => secrets::run(arguments).await,
        Command::Admin(arguments) => admin::run(arguments).await,
        Command::Audit(arguments) => audit::run(arguments).await,
        Command::Backup(arguments) => backup::run(arguments).await,
        Command::Kms(arguments) => kms::run(arguments).await,
        Command::Config(arguments) => configuration::run(arguments),
        Command::Completions { shell } => shell::completions(shell, Arguments::command()),
        Command::Man { dir } => shell::man(dir.as_deref(), Arguments::command()),
    };
    done.map_or_else(|failure| failure.report(), |()| ExitCode::SUCCESS)
}

/// Reports that the operating system gave no runtime.
#[must_use]
pub fn no_runtime(error: &std::io::Error) -> ExitCode {
    let failure = Failure::new(Exit::Failed, format!("cannot start: {error}"));
    failure.mend("look for a limit on threads or open files with `ulimit -a`").report()
}

/// Points at which a test kills or stops the daemon; a setting that exists with the feature only.
#[cfg(feature = "failpoints")]
fn arm_failpoints() -> Result<(), Failure> {
    #[expect(clippy::disallowed_methods, reason = "the command line reads the environment")]
    let setting = std::env::var("CONTAINARIUM_FAILPOINTS").unwrap_or_default();
    crate::failpoint::arm(&setting).map_err(Failure::usage)
}

async fn daemon(arguments: settings::SettingsArgs, unprotected: &[Warning]) -> Result<(), Failure> {
    #[cfg(feature = "failpoints")]
    arm_failpoints()?;
    let effective = config::load(&arguments.into(), &config::Environment::of_process());
    let config = effective.map_err(|errors| Failure::of_settings(&errors))?.config;
    crate::daemon::run(config, unprotected).await.map_err(|error| Failure::logged(error.exit_code()))
}

/// Keeps secrets: per-tenant envelope encryption, one daemon, one command line
///
/// The daemon keeps API keys, database passwords and certificates encrypted under a key hierarchy in SQLite or PostgreSQL, and gives them
/// to the programs that may have them. All other commands talk to it over its Unix socket.
#[derive(Parser)]
#[command(name = "containarium", version, arg_required_else_help = true, max_term_width = 100)]
#[command(subcommand_required = true, disable_help_subcommand = true)]
#[command(after_help = EXAMPLES, after_long_help = EXAMPLES_AND_EXITS)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  containarium daemon
  printf %s \"$KEY\" | containarium secrets set alice OPENAI_API_KEY
  containarium secrets get alice OPENAI_API_KEY";

const EXAMPLES_AND_EXITS: &str = "\
Examples:
  containarium daemon
  printf %s \"$KEY\" | containarium secrets set alice OPENAI_API_KEY
  containarium secrets get alice OPENAI_API_KEY

Exit codes:
  0  done
  1  failed
  2  usage: the command line or the settings are wrong, and nothing was asked of the daemon
  3  not found
  4  denied
  5  unavailable: the daemon, the database or the key
  6  conflict: something else changed first";

#[derive(Subcommand)]
enum Command {
    /// Run the daemon
    ///
    /// The first start creates what is missing: the data directory, the database and the master key. Settings come from flags, then
    /// the environment, then the configuration file, then defaults; `containarium config show` prints them.
    #[command(after_help = DAEMON_EXAMPLES)]
    Daemon(settings::SettingsArgs),
    /// Set, get and manage secrets
    Secrets(secrets::SecretsArgs),
    /// Look at the daemon
    Admin(admin::AdminArgs),
    /// Read and verify the audit trail, without the daemon
    Audit(audit::AuditArgs),
    /// Copy the master keys and the database, prove the copies, and bring keys back
    Backup(backup::BackupArgs),
    /// Wrap the master key with Cloud KMS, and see whether it opens
    Kms(kms::KmsArgs),
    /// Show or check the daemon's settings
    Config(configuration::ConfigArgs),
    /// Open every DEK with the keys as they are on disk: run by the daemon during a rotation
    #[command(hide = true, name = crate::service::rotation::verify::SUBCOMMAND)]
    VerifyDeks,
    /// Print a completion script for a shell
    #[command(after_help = COMPLETIONS_EXAMPLES)]
    Completions { shell: clap_complete::Shell },
    /// Print the manual page, or write all of them
    #[command(after_help = MAN_EXAMPLES)]
    Man {
        /// Write the pages of all commands into this directory, made if it is missing
        #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
        dir: Option<std::path::PathBuf>,
    },
}

const DAEMON_EXAMPLES: &str = "\
Examples:
  containarium daemon
  containarium daemon --data-dir ./data --key-file ./secrets.key --socket ./containarium.sock
  containarium daemon --database-url-file /etc/containarium/database-url --log-format json";

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  containarium completions bash > /etc/bash_completion.d/containarium
  containarium completions zsh > ~/.zfunc/_containarium";

const MAN_EXAMPLES: &str = "\
Examples:
  containarium man | man -l -
  containarium man --dir /usr/local/share/man/man1";

#[cfg(test)]
mod tests;
