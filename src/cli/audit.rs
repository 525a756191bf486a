//! `containarium audit …`: reads files and database in this process, with the keys as they are on disk; the daemon is not asked.

use std::collections::VecDeque;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};
use serde::Serialize;
use serde_json::Value;

use crate::compose::{self, Reader};
use crate::config::{Config, Environment, load};
use crate::service::trail::{TrailError, records, verify};

use super::failure::{Exit, Failure};
use super::output::{Format, Table, note, plain, print, print_json};
use super::settings::{OutputArgs, SettingsArgs};

#[derive(Args)]
#[command(subcommand_required = true, arg_required_else_help = true, disable_help_subcommand = true)]
#[command(
    after_help = "Examples:\n  containarium audit tail\n  containarium audit search --tenant alice --name DB_URL --since 2026-03-01 --until 2026-04-01\n  containarium audit verify"
)]
pub(super) struct AuditArgs {
    #[command(flatten)]
    output: OutputArgs,
    #[command(subcommand)]
    command: AuditCommand,
}

#[derive(Subcommand)]
enum AuditCommand {
    /// Print the last records
    #[command(after_help = "Examples:\n  containarium audit tail\n  containarium audit tail --lines 100 -o json")]
    Tail(TailArgs),
    /// Print the records that match every condition given
    #[command(
        after_help = "Examples:\n  containarium audit search --tenant alice --name DB_URL --since 2026-03-01 --until 2026-04-01\n  containarium audit search --identity uid:0 --action secret.get -o json"
    )]
    Search(SearchArgs),
    /// Say whether records or secrets were changed, removed or put back
    ///
    /// Checks every record of the files and the database against the chain keys, each chain against the heads in the database, and the
    /// ciphertext of each secret version against the record of its write, and tokens against the record of their revocation. Ends with 1
    /// where something is found. A record that is removed within a second of being written may leave no trace. Another node's file that
    /// was not given is named as not looked at, which is no finding.
    #[command(
        after_help = "Examples:\n  containarium audit verify\n  containarium audit verify --file ./from-other-node/audit.jsonl -o json"
    )]
    Verify(VerifyArgs),
}

#[derive(Args)]
struct TailArgs {
    /// How many
    #[arg(long, value_name = "N", default_value_t = 20)]
    lines: usize,
    #[command(flatten)]
    settings: SettingsArgs,
}

#[derive(Args)]
struct SearchArgs {
    /// Of this tenant
    #[arg(long)]
    tenant: Option<String>,
    /// Of the secret of this name
    #[arg(long)]
    name: Option<String>,
    /// By this identity, such as uid:0
    #[arg(long)]
    identity: Option<String>,
    /// Of this action, such as secret.get
    #[arg(long)]
    action: Option<String>,
    /// Not before this time: RFC 3339, or a date in UTC
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<jiff::Timestamp>,
    /// Before this time: RFC 3339, or a date in UTC
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<jiff::Timestamp>,
    #[command(flatten)]
    settings: SettingsArgs,
}

#[derive(Args)]
struct VerifyArgs {
    /// Another node's audit file, or one that was moved away; a chain's files in the order in which they were written
    #[arg(long = "file", value_name = "FILE", value_hint = ValueHint::FilePath)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Printed with each verdict: whoever relies on it must know.
const WINDOW: &str = "what was removed within a second of being written leaves no trace; nor does what was cut off this node's file and the \
     database both, to the same moment, heads included (hold it against records that were shipped)";

/// `audit verify -o json`
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Verdict {
    ok: bool,
    chains: u64,
    records: u64,
    /// Lines that a release before chains wrote.
    before_chains: u64,
    findings: Vec<Place>,
    notes: Vec<Place>,
    /// Other nodes of which no file was given.
    not_looked_at: Vec<Place>,
    /// What no verification finds.
    cannot_be_found: &'static str,
}

#[derive(Serialize)]
struct Place {
    place: String,
    what: String,
}

fn time(text: &str) -> Result<jiff::Timestamp, String> {
    let midnight = || format!("{text}T00:00:00Z").parse();
    text.parse()
        .or_else(|_| midnight())
        .map_err(|_: jiff::Error| "give a date, such as 2026-03-01, or a time, such as 2026-03-01T12:00:00Z".to_owned())
}

pub(super) async fn run(arguments: AuditArgs) -> Result<(), Failure> {
    let format = arguments.output.format();
    match arguments.command {
        AuditCommand::Tail(arguments) => tail(format, arguments).await,
        AuditCommand::Search(arguments) => search(format, arguments).await,
        AuditCommand::Verify(arguments) => check(format, arguments).await,
    }
}

async fn open(settings: SettingsArgs) -> Result<(Config, Reader), Failure> {
    let effective = load(&settings.into(), &Environment::of_process());
    let config = effective.map_err(|errors| Failure::of_settings(&errors))?.config;
    let reader = compose::reader(&config).await.map_err(|error| {
        let failure = Failure::new(Exit::Unavailable, error.to_string());
        failure.mend("run it as the daemon's user, with the daemon's settings; `containarium config show` prints them")
    })?;
    Ok((config, reader))
}

fn failed(error: &TrailError) -> Failure {
    match error {
        TrailError::Store(_) | TrailError::NoKey => Failure::new(Exit::Unavailable, error.to_string()),
        TrailError::NotOpened { .. } => Failure::new(Exit::Unavailable, error.to_string()).mend(
            "try again once the key opens; an age identity that it is wrapped for opens it too: --age-identity FILE",
        ),
        TrailError::Chain(_) => Failure::new(Exit::Unavailable, error.to_string())
            .mend("give the key file with --key-file; `containarium admin status` names the key that is needed"),
        TrailError::File { .. } => Failure::new(Exit::Failed, error.to_string()),
    }
}

async fn check(format: Format, arguments: VerifyArgs) -> Result<(), Failure> {
    let (config, reader) = open(arguments.settings).await?;
    let file = config.data_dir.join("audit.jsonl");
    let verified =
        verify(&*reader.store, (&reader.files, &compose::provider_of(&config)), &file, &arguments.files).await;
    reader.store.close().await;
    let verified = verified.map_err(|error| failed(&error))?;
    let found = verified.findings.len();
    if format == Format::Json {
        let findings = verified.findings.into_iter().map(|found| Place { place: found.place, what: found.what });
        let notes = verified.notes.into_iter().map(|known| Place { place: known.place, what: known.what });
        let elsewhere = verified.not_looked_at.into_iter().map(|node| Place { place: node.place, what: node.what });
        print_json(&Verdict {
            ok: found == 0,
            chains: verified.chains,
            records: verified.records,
            before_chains: verified.before_chains,
            findings: findings.collect(),
            notes: notes.collect(),
            not_looked_at: elsewhere.collect(),
            cannot_be_found: WINDOW,
        })?;
    } else {
        for known in &verified.notes {
            note(&format!("note: {known}"));
        }
        if verified.before_chains > 0 {
            let before = verified.before_chains;
            note(&format!(
                "note: {before} lines were written by a release before chains; nothing says that they are whole"
            ));
        }
        for node in &verified.not_looked_at {
            note(&format!("not looked at: {node}"));
        }
        for finding in &verified.findings {
            print(format!("{}\n", plain(&finding.to_string())).as_bytes())?;
        }
        let counts = format!("{} records in {} chains", verified.records, verified.chains);
        note(&format!("{counts}: {}", if found == 0 { "whole".to_owned() } else { format!("{found} findings") }));
        note(&format!("not to be found: {WINDOW}"));
    }
    if found == 0 { Ok(()) } else { Err(Failure::new(Exit::Failed, "the audit trail is not as it was written")) }
}

async fn tail(format: Format, arguments: TailArgs) -> Result<(), Failure> {
    show(format, matching(arguments.settings, Some(arguments.lines), |_| true).await?)
}

async fn search(format: Format, arguments: SearchArgs) -> Result<(), Failure> {
    let SearchArgs { tenant, name, identity, action, since, until, settings } = arguments;
    let is = |record: &Value, member: &str, wanted: Option<&String>| {
        wanted.is_none_or(|wanted| record.get(member).and_then(Value::as_str) == Some(wanted))
    };
    let found = matching(settings, None, |found| {
        is(&found.record, "tenant", tenant.as_ref())
            && is(&found.record, "name", name.as_ref())
            && is(&found.record, "identity", identity.as_ref())
            && is(&found.record, "action", action.as_ref())
            && since.is_none_or(|since| found.at >= since)
            && until.is_none_or(|until| found.at < until)
    });
    show(format, found.await?)
}

struct Found {
    at: jiff::Timestamp,
    record: Value,
}

/// By time; the last so many, where that is said.
async fn matching(
    settings: SettingsArgs,
    last: Option<usize>,
    is_wanted: impl Fn(&Found) -> bool,
) -> Result<VecDeque<Found>, Failure> {
    let (config, reader) = open(settings).await?;
    let (mut all, mut unreadable) = (Vec::new(), 0_u64);
    let file = config.data_dir.join("audit.jsonl");
    let read = records(&*reader.store, &file, |line| {
        let record = serde_json::from_slice::<Value>(line).ok();
        let at = record.as_ref().and_then(|record| record.get("time")?.as_str()?.parse().ok());
        match record.zip(at) {
            Some((record, at)) => all.push(Found { at, record }),
            None => unreadable += 1,
        }
        if all.last().is_some_and(|last| !is_wanted(last)) {
            all.pop();
        }
        // No more is kept in memory than twice what is asked for.
        if let Some(last) = last
            && all.len() > last.saturating_mul(2).max(1000)
        {
            keep_last(&mut all, last);
        }
    });
    let read = read.await;
    reader.store.close().await;
    read.map_err(|error| failed(&error))?;
    if unreadable > 0 {
        note(&format!("{unreadable} lines are no records; `containarium audit verify` names them"));
    }
    keep_last(&mut all, last.unwrap_or(usize::MAX));
    Ok(all.into())
}

fn keep_last(all: &mut Vec<Found>, last: usize) {
    all.sort_by_key(|found| found.at);
    all.drain(..all.len().saturating_sub(last));
}

fn show(format: Format, found: VecDeque<Found>) -> Result<(), Failure> {
    if format == Format::Json {
        for Found { record, .. } in found {
            print_json(&record)?;
        }
        return Ok(());
    }
    let mut table = Table::new();
    table.row(["TIME", "IDENTITY", "ADDRESS", "ACTION", "TENANT", "NAME", "VERSION", "OUTCOME"]);
    for Found { record, .. } in found {
        let text = |member: &str| match record.get(member) {
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
            None => "-".to_owned(),
        };
        let cells = ["time", "identity", "address", "action", "tenant", "name", "version", "outcome"].map(text);
        table.row(cells.iter().map(String::as_str));
    }
    table.print()
}
