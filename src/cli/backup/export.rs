//! `containarium backup export`

use std::fs::File;
use std::io::IsTerminal;
use std::os::fd::AsFd;

use clap::Args;

use crate::compose::{self, Rescued};
use crate::model::Kid;
use crate::service::backup::export::{As, ExportError, export as write};

use super::super::failure::{Exit, Failure};
use super::super::output::note;
use super::super::settings::SettingsArgs;
use super::copy::{config, kid};
use super::exit;

#[derive(Args)]
#[group(id = "form", required = true, multiple = false, args = ["age", "paper", "stdout_raw"])]
pub(super) struct ExportArgs {
    /// Write an age file that each of these recipients can open
    #[arg(long, value_name = "RECIPIENT", num_args = 1..)]
    age: Vec<String>,
    /// Write lines of text with a check each, for a printer and never to a terminal; whoever reads them has the key
    #[arg(long)]
    paper: bool,
    /// Write the key file's bytes as they are, to a pipe or a file and never to a terminal
    #[arg(long)]
    stdout_raw: bool,
    /// Copy this key [default: the active one]
    #[arg(long, value_name = "KID", value_parser = kid)]
    kid: Option<Kid>,
    #[command(flatten)]
    settings: SettingsArgs,
}

pub(super) async fn export(arguments: ExportArgs) -> Result<(), Failure> {
    let form = match (arguments.paper, arguments.stdout_raw) {
        // It stays in the scrollback, and in what records the session.
        (true, _) if std::io::stdout().is_terminal() => {
            return Err(Failure::usage("a sheet that holds the key is not written to a terminal; nothing was written")
                .mend("print it: `containarium backup export --paper | lpr`, or to a file that nobody else reads and that you shred"));
        }
        (true, _) => As::Paper,
        (_, true) if std::io::stdout().is_terminal() => {
            return Err(Failure::usage("raw key bytes are not written to a terminal; nothing was written")
                .mend("pipe them: `containarium backup export --stdout-raw | COMMAND`, or use --age or --paper"));
        }
        (_, true) => As::Raw,
        _ => As::Age(arguments.age),
    };
    let config = config(arguments.settings)?;
    let rescue = compose::rescue(&config).await.map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
    let store = match &rescue.database {
        Rescued::Store(store) => Some(&**store),
        Rescued::Nothing => None,
        Rescued::Unreadable(error) => {
            note(&format!("warning: whether this is the database's active key was not checked: {error}"));
            None
        }
    };
    // Without Rust's buffer for it, which would keep a copy that nobody wipes.
    let stdout = std::io::stdout().as_fd().try_clone_to_owned().map(File::from);
    let mut stdout = stdout.map_err(|error| Failure::of_output(&error))?;
    let done = write(store, &rescue.files, arguments.kid, form, &mut stdout).await;
    if let Rescued::Store(store) = &rescue.database {
        store.close().await;
    }
    let exported = done.map_err(|error| failed(&error))?;
    note(&format!(
        "wrote a copy of master key {}; prove it once it is in its place: `containarium backup verify --from FILE`",
        exported.kid
    ));
    for other in exported.others {
        note(&format!("the database needs master key {other} too: `containarium backup export --kid {other} …`"));
    }
    Ok(())
}

fn failed(error: &ExportError) -> Failure {
    let mend = match error {
        ExportError::Recipient { .. } | ExportError::Age(_) => {
            "`age-keygen -o identity.txt` makes an identity and prints its recipient"
        }
        ExportError::Write(cause) => return Failure::of_output(cause),
        ExportError::NoKeyFile { .. } | ExportError::NotHere { .. } | ExportError::Other { .. } => {
            "see which keys are here with `containarium admin status`; `containarium backup restore` brings missing ones back"
        }
        ExportError::KeyFile(error) if error.is_of_the_user() => {
            "run it as the user that the daemon runs as, and with its --key-file"
        }
        ExportError::KeyFile(_) => "mend that as said, then run it again",
        ExportError::Store(_) => "see that the database runs, and that these are the daemon's settings",
    };
    Failure::new(exit(error.class()), error.to_string()).mend(mend)
}
