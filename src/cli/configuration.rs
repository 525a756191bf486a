//! `containarium config …`

use clap::{Args, Subcommand};
use serde::Serialize;

use crate::compose;
use crate::config::{Config, Effective, Environment, load};
use crate::daemon;

use super::failure::Failure;
use super::output::{Format, Table, note, plain, print, print_json};
use super::settings::{OutputArgs, SettingsArgs};

#[derive(Args)]
#[command(subcommand_required = true, arg_required_else_help = true, disable_help_subcommand = true)]
#[command(after_help = "Examples:\n  containarium config show\n  containarium config check")]
pub(super) struct ConfigArgs {
    #[command(flatten)]
    output: OutputArgs,
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Print each setting and where it came from; a database password is hidden
    #[command(after_help = SHOW_EXAMPLES)]
    Show(SettingsArgs),
    /// Check the settings without starting anything
    ///
    /// Says ok, or every error. With -o json both are on standard output, as {"ok", "file", "errors", "warnings"}.
    #[command(after_help = CHECK_EXAMPLES)]
    Check(SettingsArgs),
}

const SHOW_EXAMPLES: &str = "\
Examples:
  containarium config show
  containarium config show --config ./config.toml -o json";

const CHECK_EXAMPLES: &str = "\
Examples:
  containarium config check
  containarium config check --config ./config.toml && systemctl restart containarium";

pub(super) fn run(arguments: ConfigArgs) -> Result<(), Failure> {
    let format = arguments.output.format();
    match arguments.command {
        ConfigCommand::Show(settings) => show(format, settings),
        ConfigCommand::Check(settings) => check(format, settings),
    }
}

/// `config show -o json`
#[derive(Serialize)]
struct Settings {
    /// In the order of the table.
    settings: Vec<Item>,
}

#[derive(Serialize)]
struct Item {
    key: &'static str,
    /// `null` where an optional setting is not given.
    value: Option<String>,
    /// `flag --x`, `environment X`, `FILE:LINE` or `default`.
    origin: String,
}

/// `config check -o json`
#[derive(Serialize)]
struct Verdict {
    ok: bool,
    /// The configuration file that was read; `null` where there is none or it could not be.
    file: Option<String>,
    errors: Vec<String>,
    /// What is allowed, and seldom meant.
    warnings: Vec<String>,
}

fn show(format: Format, arguments: SettingsArgs) -> Result<(), Failure> {
    let effective = load(&arguments.into(), &Environment::of_process());
    let effective = effective.map_err(|errors| Failure::of_settings(&errors))?;
    let settings: Vec<_> = effective
        .settings
        .into_iter()
        .map(|shown| Item { key: shown.setting.key(), value: shown.value, origin: shown.origin.to_string() })
        .collect();
    if format == Format::Json {
        return print_json(&Settings { settings });
    }
    let mut table = Table::new();
    table.row(["SETTING", "VALUE", "ORIGIN"]);
    for item in &settings {
        table.row([item.key, item.value.as_deref().unwrap_or("-"), &item.origin]);
    }
    table.print()
}

fn check(format: Format, arguments: SettingsArgs) -> Result<(), Failure> {
    let result = load(&arguments.into(), &Environment::of_process());
    let checked = result.as_ref().ok().map(|effective| beyond(&effective.config));
    let (warnings, beyond) = match checked {
        None => (Vec::new(), None),
        Some(Ok(warnings)) => (warnings, None),
        Some(Err(error)) => (Vec::new(), Some(error)),
    };
    if format == Format::Json {
        let errors = result.as_ref().err().into_iter().flatten().map(ToString::to_string);
        let errors: Vec<String> = errors.chain(beyond.clone()).collect();
        let (ok, file) = (errors.is_empty(), result.as_ref().ok().and_then(file));
        print_json(&Verdict { ok, file, errors, warnings })?;
    } else {
        for warning in warnings {
            note(&format!("warning: {warning}"));
        }
    }
    let effective = result.map_err(|errors| Failure::of_settings(&errors))?;
    if let Some(error) = beyond {
        return Err(Failure::usage(error).mend("`containarium config show` tells where it is set"));
    }
    match (format, file(&effective)) {
        (Format::Json, _) => Ok(()),
        (Format::Table, Some(file)) => print(format!("ok: {}\n", plain(&file)).as_bytes()),
        (Format::Table, None) => print(b"ok: no configuration file\n"),
    }
}

/// What the settings' own rules do not say: what is wrong with what they name, and warnings. A port that is taken counts only where no
/// daemon answers on the socket: one that does is most likely the one that has it, about to be restarted.
fn beyond(config: &Config) -> Result<Vec<String>, String> {
    let warnings = compose::check(config).map_err(|error| error.to_string())?;
    if std::os::unix::net::UnixStream::connect(&config.socket).is_err() {
        daemon::probe(config).map_err(|error| error.to_string())?;
    }
    Ok(warnings)
}

fn file(effective: &Effective) -> Option<String> {
    effective.file.as_ref().map(|path| path.display().to_string())
}
