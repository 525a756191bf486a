//! `containarium backup drill`

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::{Args, ValueHint};
use serde::Serialize;

use crate::client::Client;
use crate::compose;
use crate::config::Config;
use crate::model::Kid;
use crate::service::backup::fetch::{FetchError, PassedOver};
use crate::service::drill::{Copies, DrillError, Drilled, TriedKey, drill, keys_from};
use crate::wire::backup::{ReadBackRequest, TroubleItem};
use crate::wire::backup_log::RecordDrillRequest;

use super::super::failure::{Deed, Exit, Failure};
use super::super::output::{Format, Table, note, print_json};
use super::super::settings::{OutputArgs, SettingsArgs};
use super::copy::config;
use super::{exit, note_passed_over, read_back_item, trouble_item};

#[derive(Args)]
pub(super) struct DrillArgs {
    /// Try this database instead of the daemon's own: a copy of a SQLite file, or the URL of a PostgreSQL server that a dump was
    /// restored to
    #[arg(long, value_name = "FILE|URL", value_hint = ValueHint::FilePath)]
    database: Option<OsString>,
    /// Fetch from this secret, projects/PROJECT/secrets/SECRET, instead of those of `[backup.gcp]`
    #[arg(long, value_name = "NAME", conflicts_with = "from")]
    secret: Option<String>,
    /// Fetch nothing: take this copy of a master key, the key file's bytes, an age file, or paper typed in; once for each key that the
    /// database needs
    #[arg(long, value_name = "FILE", num_args = 1.., value_hint = ValueHint::FilePath)]
    from: Vec<PathBuf>,
    /// The identities that open age files, as age-keygen writes them
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "from")]
    identity: Option<PathBuf>,
    /// Tell the daemon how it came out
    #[arg(long)]
    record: bool,
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) const EXAMPLES: &str = "\
Examples:
  containarium backup drill --record
  containarium backup drill --secret projects/PROJECT/secrets/SECRET --record
  containarium backup drill --from key.age --identity ./identity.txt
  containarium backup drill --database /backup/containarium.db --from /media/safe/secrets.key";

/// `backup drill -o json`
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Outcome {
    /// Whether every DEK in use opened.
    opens: bool,
    database: String,
    keys: Vec<KeyItem>,
    deks_opened: u64,
    deks_failed: u64,
    deks_quarantined: u64,
    deks_shredded: u64,
    /// Kids of which there was no copy.
    missing_kids: Vec<String>,
    /// Secrets that could not be searched, where others had every key.
    passed_over: Vec<PassedOverItem>,
    failures: Vec<String>,
    milliseconds: u64,
    recorded: bool,
}

#[derive(Serialize)]
struct PassedOverItem {
    secret: String,
    trouble: TroubleItem,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct KeyItem {
    kid: String,
    from: String,
    /// What the database calls it, or `unknown`.
    state: String,
    deks_opened: u64,
}

pub(super) async fn run(arguments: DrillArgs) -> Result<(), Failure> {
    let format = arguments.output.format();
    let DrillArgs { database, secret, from, identity, record: is_to_record, settings, .. } = arguments;
    let config = config(settings)?;
    let client = is_to_record.then(|| Client::new(config.socket.clone()));
    let copies = copies(&config, secret.as_deref(), &from, identity).await?;
    let (source, drilled) = run_drill(&config, database.as_deref(), copies).await?;
    let recorded = match client {
        Some(client) => Some(record(&client, &source, &drilled).await),
        None => None,
    };
    let is_recorded = matches!(recorded, Some(Ok(_)));
    match format {
        Format::Json => print_json(&outcome(&drilled, &source, is_recorded))?,
        Format::Table => table(&drilled, &source).print()?,
    }
    note_passed_over(&drilled.passed_over);
    for failure in &drilled.failures {
        note(failure);
    }
    if drilled.failed > 0 {
        let failure = Failure::new(Exit::Failed, format!("{} DEKs did not open with these copies", drilled.failed));
        return Err(failure.mend(mend(&from)));
    }
    match recorded {
        Some(Err(failure)) => Err(failure),
        Some(Ok(message)) => {
            note(&message);
            Ok(())
        }
        None => Ok(()),
    }
}

async fn copies(
    config: &Config,
    secret: Option<&str>,
    from: &[PathBuf],
    identity: Option<PathBuf>,
) -> Result<Copies, Failure> {
    let provider = compose::provider_of(config);
    if !from.is_empty() {
        return keys_from(from, identity, &provider).await.map(Copies::Given).map_err(|error| failed(&error));
    }
    let configured = compose::destinations(config);
    Ok(Copies::In(secret.map_or_else(|| configured.clone(), |secret| configured.only(secret)), provider))
}

/// What to do where a DEK did not open.
const fn mend(from: &[PathBuf]) -> &'static str {
    if from.is_empty() {
        "make the copies that are missing while the key files are there: `containarium backup push`; a DEK that is damaged is in a \
         backup of the database"
    } else {
        "give a copy of each key that is named with --from; a DEK that is damaged is in a backup of the database"
    }
}

async fn run_drill(config: &Config, database: Option<&OsStr>, copies: Copies) -> Result<(String, Drilled), Failure> {
    let (source, store) = if let Some(name) = database {
        let opened = compose::named_reader(name).await.map_err(|error| failed(&DrillError::Store(error)));
        // A URL may hold a password.
        let text = name.to_string_lossy();
        let source = if text.contains("://") { "a PostgreSQL database".to_owned() } else { text.into_owned() };
        (source, opened?)
    } else {
        let opened = compose::untouching_reader(config).await;
        let reader = opened.map_err(|error| Failure::new(Exit::Unavailable, error.to_string()).mend(SETTINGS))?;
        ("the daemon's database".to_owned(), reader.store)
    };
    let drilled = drill(&*store, copies).await;
    store.close().await;
    Ok((source, drilled.map_err(|error| failed(&error))?))
}

const SETTINGS: &str =
    "see that the database runs, and that these are the daemon's settings (`containarium config show`)";

fn failed(error: &DrillError) -> Failure {
    let (exit, mend) = match error {
        DrillError::File { .. } => (Exit::NotFound, "name a file that is there and may be read"),
        DrillError::Identity { .. } => (Exit::Usage, "name an identity file as age-keygen writes it: --identity FILE"),
        DrillError::Copy { .. } => (Exit::Usage, "give the copy as it was made; an age file needs --identity FILE"),
        DrillError::Image { .. } => (
            Exit::Failed,
            "this copy would not restore the key: make another one of the key file while it is there, and throw this one away",
        ),
        DrillError::Wrapped { .. } => (
            Exit::Failed,
            "give credentials that may decrypt with its KMS key, or the identity of its age recipient: --identity FILE",
        ),
        DrillError::Fetch(FetchError::NotConfigured) => (
            Exit::Usage,
            "name the secret: --secret projects/PROJECT/secrets/SECRET, or in `[backup.gcp] secrets`; or give a copy: --from FILE",
        ),
        DrillError::Fetch(error) => (
            exit(error.class()),
            "mend that and run it again, with credentials that may read the copies (the drill or restore identity)",
        ),
        DrillError::NoKey => (Exit::NotFound, "give the database that the daemon runs on, or a copy of it"),
        DrillError::Store(_) => (
            Exit::Unavailable,
            "name a copy of a database of this release with --database, whole and restored if it is a dump; a copy that is damaged is none: \
             make another",
        ),
    };
    Failure::new(exit, error.to_string()).mend(mend)
}

async fn record(client: &Client, source: &str, drilled: &Drilled) -> Result<String, Failure> {
    let mut kids: Vec<String> = drilled.keys.iter().map(|key| key.kid.to_string()).collect();
    kids.sort_unstable();
    kids.dedup();
    let asked = RecordDrillRequest {
        db_id: Kid::new(drilled.db_id).to_string(),
        source: source.to_owned(),
        kids,
        deks_opened: drilled.opened,
        deks_failed: drilled.failed,
    };
    let deed = Deed::on_daemon_changing("record the drill", "containarium admin doctor");
    let recorded = client.record_drill(&asked).await.map_err(|error| Failure::of_request(&deed, &error))?;
    // The daemon knows none but the keys of its database; and that a copy was read back is true however the DEKs came out.
    let known = drilled.keys.iter().filter(|key| key.state.is_some());
    let copies: Vec<_> = known.filter_map(|key| key.read_back.as_ref()).map(read_back_item).collect();
    if !copies.is_empty() {
        let told = client.backup_read_back(&ReadBackRequest { copies, unread: Vec::new() }).await;
        let deed = Deed::on_daemon_changing("record that the copies were read back", "containarium backup list");
        told.map_err(|error| Failure::of_request(&deed, &error))?;
    }
    Ok(recorded.message)
}

fn outcome(drilled: &Drilled, source: &str, recorded: bool) -> Outcome {
    let item = |key: &TriedKey| KeyItem {
        kid: key.kid.to_string(),
        from: key.from.clone(),
        state: state(key),
        deks_opened: key.opened,
    };
    Outcome {
        opens: drilled.failed == 0,
        database: source.to_owned(),
        keys: drilled.keys.iter().map(item).collect(),
        deks_opened: drilled.opened,
        deks_failed: drilled.failed,
        deks_quarantined: drilled.quarantined,
        deks_shredded: drilled.shredded,
        missing_kids: drilled.missing.iter().map(|(kid, _)| kid.to_string()).collect(),
        passed_over: drilled.passed_over.iter().map(passed_over_item).collect(),
        failures: drilled.failures.clone(),
        milliseconds: u64::try_from(drilled.took.as_millis()).unwrap_or(u64::MAX),
        recorded,
    }
}

fn passed_over_item(passed_over: &PassedOver) -> PassedOverItem {
    PassedOverItem { secret: passed_over.secret.clone(), trouble: trouble_item(&passed_over.trouble) }
}

fn state(key: &TriedKey) -> String {
    key.state.map_or_else(|| "unknown".to_owned(), |state| state.to_string())
}

fn table(drilled: &Drilled, source: &str) -> Table {
    let mut table = Table::new();
    table.row(["KID", "STATE", "OPENED", "FROM"]);
    for key in &drilled.keys {
        table.row([&*key.kid.to_string(), &state(key), &key.opened.to_string(), &key.from]);
    }
    let (opened, failed) = (drilled.opened, drilled.failed);
    let passed_over = format!("{} quarantined, {} shredded", drilled.quarantined, drilled.shredded);
    let took = format!("{} ms", drilled.took.as_millis());
    table.row([&*format!("{source}: {opened} DEKs opened, {failed} did not; not tried: {passed_over}; {took}")]);
    table
}
