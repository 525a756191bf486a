//! `containarium backup database`

use std::fs::File;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use clap::{Args, ValueHint};
use serde::Serialize;

use crate::client::Client;
use crate::config::{Database, DatabaseUrl};
use crate::model::Kid;
use crate::service::copy::{Copied, CopyError, copy_to_file, copy_to_writer};
use crate::wire::backup_log::{CopiedStateItem, RecordDatabaseRequest};

use super::super::failure::{Deed, Exit, Failure};
use super::super::output::{Format, note, plain, print, print_json};
use super::super::settings::{OutputArgs, SettingsArgs};
use super::copy::config;
use super::dump::{self, DumpError};

#[derive(Args)]
pub(super) struct DatabaseArgs {
    /// The new file; one that is there is never written over. - is standard output, which must not be a terminal
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    file: PathBuf,
    /// Tell the daemon that the copy was made
    #[arg(long)]
    record: bool,
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) const EXAMPLES: &str = "\
Examples:
  containarium backup database /backup/containarium.db --record
  containarium backup database - | zstd > /backup/containarium.db.zst
  containarium backup database /backup/containarium.dump             on PostgreSQL: the line for pg_dump
  containarium backup database /backup/containarium.dump --record    on PostgreSQL: after it";

/// `backup database -o json`
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Made {
    /// SQLite: the copy.
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<u64>,
    /// PostgreSQL: the line that makes the copy.
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<String>,
    recorded: bool,
}

impl Made {
    const NOTHING: Self =
        Self { file: None, bytes: None, epoch: None, generation: None, command: None, recorded: false };
}

pub(super) async fn run(arguments: DatabaseArgs) -> Result<(), Failure> {
    let DatabaseArgs { file, record, settings, output } = arguments;
    let format = output.format();
    let config = config(settings)?;
    let client = record.then(|| Client::new(config.socket.clone()));
    match (&config.database, client) {
        (Database::Sqlite { path }, client) => sqlite(path, &file, client.as_ref(), format).await,
        (Database::Postgres { .. }, Some(client)) => record_dump(&client, &file, format).await,
        (Database::Postgres { url }, None) => print_dump_line(url, &file, format),
    }
}

async fn sqlite(from: &Path, file: &Path, client: Option<&Client>, format: Format) -> Result<(), Failure> {
    let to_stdout = file == Path::new("-");
    let copied = if to_stdout { to_output(from, format).await? } else { to_file(from, file).await? };
    let target = if to_stdout { TO_A_PIPE.to_owned() } else { absolute(file) };
    let recorded = match client {
        None => None,
        Some(client) => Some(record_copy(client, &target, &copied).await?),
    };
    let made = Made {
        file: Some(target),
        bytes: Some(copied.bytes),
        epoch: copied.state.map(|state| state.epoch),
        generation: copied.state.map(|state| state.generation),
        recorded: recorded.is_some(),
        ..Made::NOTHING
    };
    let state = copied.state.map_or_else(
        || "it has never held a key".to_owned(),
        |state| format!("epoch {}, generation {}", state.epoch, state.generation),
    );
    let line =
        format!("copied the database, {} bytes ({state}), to {}", copied.bytes, made.file.as_deref().unwrap_or("-"));
    match (to_stdout, format) {
        (true, _) => note(&line),
        (false, Format::Json) => print_json(&made)?,
        (false, Format::Table) => print(format!("{}\n", plain(&line)).as_bytes())?,
    }
    match recorded {
        Some(message) => note(&message),
        None => note(
            "the daemon was not told of it; --record does that, and `containarium admin doctor` then knows its age",
        ),
    }
    Ok(())
}

async fn to_file(from: &Path, file: &Path) -> Result<Copied, Failure> {
    copy_to_file(from, file).await.map_err(|error| failed(&error))
}

async fn to_output(from: &Path, format: Format) -> Result<Copied, Failure> {
    let stdout = std::io::stdout();
    if stdout.is_terminal() {
        let failure = Failure::usage("standard output is a terminal, and a database is not for reading");
        return Err(failure.mend("name a file, or pipe it into a program"));
    }
    if format == Format::Json {
        return Err(Failure::usage("with - the copy itself is on standard output, and JSON has no place there")
            .mend("leave out `-o json`, or name a file"));
    }
    let mut stdout = stdout.as_fd().try_clone_to_owned().map(File::from).map_err(|error| Failure::of_output(&error))?;
    let copied = copy_to_writer(from, &std::env::temp_dir(), &mut stdout).await;
    copied.map_err(|error| failed(&error))
}

fn failed(error: &CopyError) -> Failure {
    let (exit, mend) = match error {
        CopyError::Exists(_) => (Exit::Conflict, "give the name of a new file"),
        CopyError::Partial(path) => {
            let mend = format!("wait for it, or remove what is left of it: `rm {}`", path.display());
            return Failure::new(Exit::Conflict, error.to_string()).mend(mend);
        }
        CopyError::NoName(_) => (Exit::Usage, "give the path of a new file"),
        CopyError::Output(_) | CopyError::File { .. } => {
            (Exit::Failed, "see that its directory is there, may be written to and has room (`df -h`)")
        }
        CopyError::Store(_) => {
            (Exit::Unavailable, "see that these are the daemon's settings, and that both disks have room (`df -h`)")
        }
        CopyError::NoRandom(_) => (Exit::Failed, "look at the host: the kernel gave no random bytes"),
    };
    Failure::new(exit, error.to_string()).mend(mend)
}

/// Tells the daemon; what it answered.
async fn record_copy(client: &Client, target: &str, copied: &Copied) -> Result<String, Failure> {
    let state = copied.state.map(|state| CopiedStateItem {
        db_id: Kid::new(state.db_id).to_string(),
        epoch: state.epoch,
        generation: state.generation,
        taken_at_micros: state.taken_at.0,
    });
    let verb = format!("record the copy, which was made ({target})");
    record(client, &verb, &RecordDatabaseRequest { target: target.to_owned(), state, made_at_micros: None }).await
}

async fn record(client: &Client, verb: &str, asked: &RecordDatabaseRequest) -> Result<String, Failure> {
    let deed = Deed::on_daemon_changing(verb, "containarium admin doctor");
    client.record_database(asked).await.map(|answer| answer.message).map_err(|error| Failure::of_request(&deed, &error))
}

/// What a pipe's other end did with it is not known here, and a record that named a place would be believed.
const TO_A_PIPE: &str = "standard output (whether it was kept is not known)";
const NOT_SEEN: &str = "elsewhere (nobody looked at it)";

/// A dump that somebody else made: what can be seen of it is, and of one that is not on this host only its maker's word is recorded.
async fn record_dump(client: &Client, file: &Path, format: Format) -> Result<(), Failure> {
    let (target, made_at_micros) = if file == Path::new("-") {
        (NOT_SEEN.to_owned(), None)
    } else {
        let made_at = dump::made_at(file).map_err(|error| {
            let exit = if matches!(error, DumpError::NotThere(_)) { Exit::NotFound } else { Exit::Failed };
            Failure::new(exit, format!("{} is no copy to record: {error}", file.display())).mend(
                "make it with the line that this command prints without --record; if it is not on this host, give -",
            )
        })?;
        (absolute(file), Some(made_at.0))
    };
    let asked = RecordDatabaseRequest { target, state: None, made_at_micros };
    let message = record(client, "record the copy", &asked).await?;
    match format {
        Format::Json => print_json(&Made { file: Some(asked.target), recorded: true, ..Made::NOTHING }),
        Format::Table => print(format!("{}\n", plain(&message)).as_bytes()),
    }
}

fn print_dump_line(url: &DatabaseUrl, file: &Path, format: Format) -> Result<(), Failure> {
    let name = quoted(&file.display().to_string());
    let command = if file == Path::new("-") {
        dump_line("", url)
    } else {
        // pg_dump empties the file that it is given before it has so much as connected.
        refuse_taken(file)?;
        let partial = quoted(&format!("{}.partial", file.display()));
        format!("{} && mv -n -- {partial} {name}", dump_line(&format!(" --file={partial}"), url))
    };
    match format {
        Format::Json => print_json(&Made { command: Some(command), ..Made::NOTHING })?,
        Format::Table => print(format!("{}\n", plain(&command)).as_bytes())?,
    }
    note(&format!(
        "a password is not in it: pg_dump takes it from ~/.pgpass or PGPASSWORD. When it has ended: `containarium backup database {name} \
         --record`"
    ));
    Ok(())
}

fn dump_line(to: &str, url: &DatabaseUrl) -> String {
    format!("pg_dump --schema=containarium --format=custom{to} {}", quoted(&url.for_libpq()))
}

fn refuse_taken(file: &Path) -> Result<(), Failure> {
    // A link is something too, whatever it leads to.
    match std::fs::symlink_metadata(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Ok(_) => Err(failed(&CopyError::Exists(file.to_owned()))),
        Err(error) => {
            let why = format!("{} cannot be looked at: {error}", file.display());
            Err(Failure::new(Exit::Failed, why).mend(format!("namei -l {}", quoted(&file.display().to_string()))))
        }
    }
}

/// For a shell.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:@%=".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

fn absolute(file: &Path) -> String {
    std::path::absolute(file).unwrap_or_else(|_| file.to_owned()).display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_reaches_a_shell_as_it_is() {
        for text in ["/a/b.db", "", "a b", "it's", "$(id)", "postgres://u@h/d?a=b&c=d"] {
            let shown = std::process::Command::new("sh").args(["-c", &format!("printf %s {}", quoted(text))]).output();
            assert_eq!(shown.unwrap().stdout, text.as_bytes());
        }
    }
}
