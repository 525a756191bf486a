//! `containarium backup restore`

use std::num::NonZeroU64;

use clap::Args;
use serde::Serialize;

use crate::compose::{self, Rescued};
use crate::model::Kid;
use crate::service::backup::fetch::FetchError;
use crate::service::backup::restore::{
    Against, RestoreError, Restored, Tools, Wanted, read_copy, restore as bring_back,
};

use super::super::failure::{Exit, Failure};
use super::super::output::{Format, note, plain, print, print_json};
use super::super::settings::{OutputArgs, SettingsArgs};
use super::copy::{CopyArgs, config, kid};
use super::{exit, note_passed_over};

#[derive(Args)]
#[group(id = "which", multiple = false, args = ["version", "kid", "from"])]
pub(super) struct RestoreArgs {
    /// Fetch the version of this number
    #[arg(long, value_name = "N")]
    version: Option<NonZeroU64>,
    /// Find the version that holds this key
    #[arg(long, value_name = "KID", value_parser = kid)]
    kid: Option<Kid>,
    #[command(flatten)]
    copy: CopyArgs,
    /// Fetch from this secret, projects/PROJECT/secrets/SECRET, instead of those of `[backup.gcp]`
    #[arg(long, value_name = "NAME", conflicts_with = "from")]
    secret: Option<String>,
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// `backup restore -o json`
#[derive(Serialize)]
struct RestoredAnswer {
    keys: Vec<RestoredItem>,
    /// Where what lay in the key file's place is now.
    #[serde(skip_serializing_if = "Option::is_none")]
    replaced: Option<String>,
    /// Where wrapped files are now that lay among the retained ones.
    #[serde(rename = "replacedRetained", skip_serializing_if = "Vec::is_empty")]
    replaced_retained: Vec<String>,
}

#[derive(Serialize)]
struct RestoredItem {
    kid: String,
    /// What the database calls it; absent where there was none to ask.
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<String>,
    /// The copy; absent for a key that lay among the retained ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    path: String,
    /// Why it does not open, where it is wrapped and does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    unopened: Option<String>,
}

pub(super) async fn restore(arguments: RestoreArgs) -> Result<(), Failure> {
    let format = arguments.output.format();
    let copy = arguments.copy.open().await?;
    let config = config(arguments.settings)?;
    let mut rescue = compose::rescue(&config).await.map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
    if let Some(secret) = &arguments.secret {
        rescue.destinations = rescue.destinations.only(secret);
    }
    let wanted = match (arguments.version, arguments.kid, copy) {
        (_, _, Some(mut copy)) => {
            rescue.provider = rescue.provider.with_identity(copy.identity.as_deref());
            let (name, identity) = (copy.name(), copy.identity.as_deref());
            let read = read_copy(&mut copy.file, identity, name).await;
            Wanted::Copy(read.map_err(|error| failed(&error))?)
        }
        (Some(number), _, _) => Wanted::Version(number),
        (_, Some(kid), _) => Wanted::Kid(kid),
        _ => Wanted::Needed,
    };
    let against = match &rescue.database {
        Rescued::Store(store) => Against::Database(&**store),
        Rescued::Nothing => Against::Nothing,
        Rescued::Unreadable(error) if matches!(wanted, Wanted::Needed) => return Err(unreadable(error)),
        Rescued::Unreadable(error) => {
            note(&format!("warning: whether the database needs this key was not checked: {error}"));
            Against::Nothing
        }
    };
    let tools = Tools {
        files: &rescue.files,
        destinations: &rescue.destinations,
        provider: &rescue.provider,
        clock: &*rescue.clock,
    };
    let done = bring_back(against, &tools, wanted).await;
    if let Rescued::Store(store) = &rescue.database {
        store.close().await;
    }
    let restored = done.map_err(|error| failed(&error))?;
    show(&restored, format)?;
    restored.unfound.map_or(Ok(()), |error| Err(failed(&error.into())))
}

fn show(restored: &Restored, format: Format) -> Result<(), Failure> {
    note_passed_over(&restored.passed_over);
    let replaced = restored.replaced.as_ref().map(|path| path.display().to_string());
    let replaced_retained: Vec<String> =
        restored.replaced_retained.iter().map(|path| path.display().to_string()).collect();
    for key in &restored.keys {
        if let Some(why) = &key.unopened {
            note(&format!("warning: that this copy is the key that it says is not proven: {why}"));
        }
    }
    if format == Format::Json {
        let items = restored.keys.iter().map(|key| RestoredItem {
            kid: key.kid.to_string(),
            state: key.state.map(|state| state.to_string()),
            from: key.from.clone(),
            path: key.path.display().to_string(),
            unopened: key.unopened.clone(),
        });
        return print_json(&RestoredAnswer { keys: items.collect(), replaced, replaced_retained });
    }
    if restored.keys.is_empty() {
        return print(b"every key that the database needs is here already; nothing was changed\n");
    }
    let mut text = String::new();
    for key in &restored.keys {
        let state = key.state.map(|state| format!(" ({state})")).unwrap_or_default();
        let from = key.from.as_deref().unwrap_or("the retained keys");
        let line = format!("restored master key {}{state} from {from} to {}", key.kid, key.path.display());
        text.push_str(&plain(&line));
        text.push('\n');
    }
    print(text.as_bytes())?;
    if let Some(replaced) = replaced {
        note(&format!("what lay in the key file's place is now {replaced}"));
    }
    for path in &replaced_retained {
        note(&format!("what lay among the retained keys in another form is now {path}"));
    }
    note("start the daemon (`systemctl restart containarium`); one that waits for the key opens by itself");
    Ok(())
}

fn unreadable(error: &impl std::fmt::Display) -> Failure {
    let message = format!("the database cannot be read, so which keys it needs is not known: {error}");
    Failure::new(Exit::Unavailable, message)
        .mend("see that it runs, and that these are the daemon's settings; or say which key: --version N, --kid KID or --from FILE")
}

fn failed(error: &RestoreError) -> Failure {
    let mend = match error {
        RestoreError::NothingToGoBy => {
            "say which key: `containarium backup restore --version N`, --kid KID or --from FILE; or restore the database first"
        }
        RestoreError::NoKey => "restore the database first, or correct --database-url or --data-dir",
        RestoreError::Fetch(FetchError::NotConfigured) => {
            "name the secret: --secret projects/PROJECT/secrets/SECRET, or in `[backup.gcp] secrets`; or give a copy: --from FILE"
        }
        RestoreError::WhichSecret { .. } => "add --secret projects/PROJECT/secrets/SECRET",
        RestoreError::Store(_) => "see that the database runs, and that these are the daemon's settings",
        RestoreError::Backup(_) | RestoreError::Fetch(FetchError::Search { .. }) => {
            "mend that and run it again, with credentials that may read the copies (the restore identity); --version N takes a version that \
             you know to be right"
        }
        RestoreError::Fetch(FetchError::NotFound { .. }) => {
            "look for another copy: --secret NAME for another secret, --from FILE for an age file, a sheet or a key file"
        }
        RestoreError::Fetch(FetchError::Image { .. }) => {
            "take another version; without --version the right one is looked for"
        }
        RestoreError::NoKeyInCopy { .. } => {
            "take another copy: an age file, a sheet, or the key file's bytes as they are; without --from the right version is looked \
             for in Secret Manager"
        }
        RestoreError::NotWanted { .. } => {
            "`containarium backup restore` without --version and --from looks for the right one; if another database is meant, correct \
             --database-url or --data-dir"
        }
        RestoreError::Closed { .. } => {
            "give what opens it, --age-identity FILE or credentials that may decrypt with its KMS key; or a copy that needs neither: \
             `containarium backup restore --from FILE`"
        }
        RestoreError::Unproven { .. } => {
            "give what opens it, --age-identity FILE or credentials that may decrypt with its KMS key; or move the file that is there away \
             and run it again"
        }
        RestoreError::Copy(_) => "mend the copy as said, or take another one",
        RestoreError::NotPutBack(_) => "put it back as said, then run it again",
        RestoreError::KeyFile(error) if error.is_of_the_user() => {
            "run it as the user that the daemon runs as, and with its --key-file"
        }
        RestoreError::KeyFile(_) => "mend that as said, then run it again",
    };
    Failure::new(exit(error.class()), error.to_string()).mend(mend)
}
