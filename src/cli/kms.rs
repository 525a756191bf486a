//! `containarium kms …`

use clap::{Args, Subcommand};
use serde::Serialize;

use crate::compose::{self, Rescue, Rescued};
use crate::config::{Config, Environment, load};
use crate::model::KmsKey;
use crate::service::kms::{
    Bench, Changed, FileStatus, Form, Kept, KmsWorkError, NeededVersion, OnlyWay, RecipientStatus,
};

use super::backup::exit;
use super::failure::{Exit, Failure};
use super::output::{Format, Table, note, plain, print, print_json};
use super::settings::{OutputArgs, SettingsArgs};

#[derive(Args)]
#[command(subcommand_required = true, arg_required_else_help = true, disable_help_subcommand = true)]
#[command(after_help = EXAMPLES)]
pub(super) struct KmsArgs {
    #[command(subcommand)]
    command: KmsCommand,
}

const EXAMPLES: &str = "\
Examples:
  containarium kms wrap --age age1… --age-identity ./identity.txt
  containarium kms status
  containarium kms rewrap
  containarium kms unwrap";

#[derive(Subcommand)]
enum KmsCommand {
    /// Wrap the key files with a Cloud KMS key
    ///
    /// Every raw key file, retained ones too, becomes JSON that the KMS key opens, and each age identity whose recipient is named. It
    /// works in its own process, with the daemon's settings and your credentials, beside a daemon or without one, and only while no
    /// rotation runs. Earlier raw copies of a key are not protected by it: for that rotate to a new one.
    #[command(after_help = WRAP_EXAMPLES)]
    Wrap(WrapArgs),
    /// Turn wrapped key files into raw ones
    ///
    /// From then on whoever copies the key file can open every secret.
    #[command(
        after_help = "Examples:\n  containarium kms unwrap\n  containarium kms unwrap --age-identity ./identity.txt"
    )]
    Unwrap(UnwrapArgs),
    /// Wrap wrapped key files anew, with the KMS key's primary version or with another key
    ///
    /// What is not named stays as it is: the KMS keys of each file, and its recipients of age.
    #[command(after_help = REWRAP_EXAMPLES)]
    Rewrap(WrapArgs),
    /// Show how the key files are kept, and whether they open
    ///
    /// Decrypts each wrapped file once with each of its KMS keys, in its own process and with your credentials. It lists the versions of KMS
    /// keys that the copies need which the daemon pushed: destroy none of them.
    #[command(after_help = "Examples:\n  containarium kms status\n  containarium kms status -o json")]
    Status(StatusArgs),
}

const WRAP_EXAMPLES: &str = "\
Examples:
  containarium kms wrap --age age1… --age-identity ./identity.txt
  containarium kms wrap --key projects/P/locations/L/keyRings/R/cryptoKeys/K --kms-is-the-only-way-back";

const REWRAP_EXAMPLES: &str = "\
Examples:
  containarium kms rewrap
  containarium kms rewrap --key projects/P/locations/L/keyRings/R/cryptoKeys/K2";

#[derive(Args)]
struct WrapArgs {
    /// Wrap with this Cloud KMS key [default: of `wrap` that of `[kms.gcp] key`, of `rewrap` each file's own]
    #[arg(long, value_name = "NAME", value_parser = KmsKey::parse)]
    key: Option<KmsKey>,
    /// Let the identity of this age recipient open it too
    #[arg(long, value_name = "RECIPIENT", num_args = 1..)]
    age: Vec<String>,
    /// Do it although nothing but one KMS key would open the key file and its copies
    #[arg(long)]
    kms_is_the_only_way_back: bool,
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Args)]
struct UnwrapArgs {
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Args)]
struct StatusArgs {
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// `kms wrap`, `unwrap` and `rewrap -o json`
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ChangedAnswer {
    files: Vec<ChangedItem>,
    /// Kids that nothing but one KMS key opens.
    only_kms: Vec<String>,
    /// Raw copies on this host that stay as they are.
    raw_copies: Vec<String>,
}

#[derive(Serialize)]
struct ChangedItem {
    kid: String,
    path: String,
}

/// `kms status -o json`
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct StatusAnswer {
    files: Vec<StatusItem>,
    /// Versions of KMS keys that copies need which the daemon pushed; absent where the database was not read.
    #[serde(skip_serializing_if = "Option::is_none")]
    needed_versions: Option<Vec<NeededItem>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NeededItem {
    key_version: String,
    kid: String,
    copies: u64,
}

#[derive(Serialize)]
struct StatusItem {
    kid: String,
    path: String,
    /// `raw` or `wrapped`
    form: String,
    recipients: Vec<RecipientItem>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RecipientItem {
    /// A KMS key's name, or an age recipient.
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_version: Option<String>,
    /// Whether that version is the primary one still.
    #[serde(skip_serializing_if = "Option::is_none")]
    used_primary: Option<bool>,
    /// Of age: when an identity was seen to open it.
    #[serde(skip_serializing_if = "Option::is_none")]
    proven_at: Option<String>,
    /// Absent where it was not tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    opens: Option<bool>,
    /// Why it does not open.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

pub(super) async fn run(arguments: KmsArgs) -> Result<(), Failure> {
    match arguments.command {
        KmsCommand::Wrap(arguments) => wrap(arguments).await,
        KmsCommand::Rewrap(arguments) => rewrap(arguments).await,
        KmsCommand::Unwrap(UnwrapArgs { settings, output }) => {
            change(&config(settings)?, Form::Raw, output.format()).await?;
            note(
                "warning: from now on whoever copies a key file can open every secret; `containarium kms wrap` changes it back",
            );
            Ok(())
        }
        KmsCommand::Status(StatusArgs { settings, output }) => status(&config(settings)?, output.format()).await,
    }
}

async fn wrap(arguments: WrapArgs) -> Result<(), Failure> {
    let config = config(arguments.settings)?;
    let configured = config.kms_gcp.as_ref().map(|kms| kms.key.clone());
    let keys = arguments.key.or(configured).into_iter().collect();
    let only_way = OnlyWay::of_flag(arguments.kms_is_the_only_way_back);
    let form = Form::Wrapped { keys, recipients: arguments.age, only_way };
    let changed = change(&config, form, arguments.output.format()).await?;
    note(
        "earlier raw copies of these keys, on disks, in backups or in Secret Manager, are as good as before: to end what they open, \
         rotate with `containarium admin rotate-master --compromised`, whose new key is wrapped from the first",
    );
    for path in &changed.raw_copies {
        note(&format!("a raw copy lies on this host: {}", path.display()));
    }
    Ok(())
}

async fn rewrap(arguments: WrapArgs) -> Result<(), Failure> {
    let config = config(arguments.settings)?;
    let (keys, only_way) = (arguments.key.into_iter().collect(), OnlyWay::of_flag(arguments.kms_is_the_only_way_back));
    let form = Form::Rewrapped { keys, recipients: arguments.age, only_way };
    change(&config, form, arguments.output.format()).await.map(drop)
}

fn config(settings: SettingsArgs) -> Result<Config, Failure> {
    let effective = load(&settings.into(), &Environment::of_process());
    Ok(effective.map_err(|errors| Failure::of_settings(&errors))?.config)
}

async fn change(config: &Config, form: Form, format: Format) -> Result<Changed, Failure> {
    let rescue = rescue(config).await?;
    let bench = bench(&rescue)?;
    let done = bench.change(form).await;
    close(&rescue).await;
    let changed = done.map_err(|error| failed(&error))?;
    show(&changed, format)?;
    if !changed.only_kms.is_empty() {
        note(
            "warning: one KMS key is the only way back: when it is destroyed, or its project lost, every secret is lost",
        );
    }
    Ok(changed)
}

async fn rescue(config: &Config) -> Result<Rescue, Failure> {
    compose::rescue(config).await.map_err(|error| Failure::new(Exit::Failed, error.to_string()))
}

fn bench(rescue: &Rescue) -> Result<Bench<'_>, Failure> {
    let store = match &rescue.database {
        Rescued::Store(store) => Some(&**store),
        Rescued::Nothing => None,
        Rescued::Unreadable(error) => {
            let message = format!("the database cannot be read, so whether a rotation runs is not known: {error}");
            return Err(Failure::new(Exit::Unavailable, message)
                .mend("see that it runs, and that these are the daemon's settings (`containarium config show`)"));
        }
    };
    Ok(Bench { store, files: &rescue.files, provider: &rescue.provider, clock: &*rescue.clock })
}

async fn close(rescue: &Rescue) {
    if let Rescued::Store(store) = &rescue.database {
        store.close().await;
    }
}

fn show(changed: &Changed, format: Format) -> Result<(), Failure> {
    if format == Format::Json {
        let items = changed
            .files
            .iter()
            .map(|file| ChangedItem { kid: file.kid.to_string(), path: file.path.display().to_string() });
        return print_json(&ChangedAnswer {
            files: items.collect(),
            only_kms: changed.only_kms.iter().map(ToString::to_string).collect(),
            raw_copies: changed.raw_copies.iter().map(|path| path.display().to_string()).collect(),
        });
    }
    let mut text = String::new();
    for file in &changed.files {
        text.push_str(&plain(&format!(
            "master key {} in {}: changed, and proven to open",
            file.kid,
            file.path.display()
        )));
        text.push('\n');
    }
    print(text.as_bytes())
}

async fn status(config: &Config, format: Format) -> Result<(), Failure> {
    let rescue = rescue(config).await?;
    let store = match &rescue.database {
        Rescued::Store(store) => Some(&**store),
        Rescued::Nothing => None,
        Rescued::Unreadable(error) => {
            note(&format!("the database cannot be read, so what copies need is not shown: {error}"));
            None
        }
    };
    let bench = Bench { store, files: &rescue.files, provider: &rescue.provider, clock: &*rescue.clock };
    let looked = bench.status().await;
    let needed = bench.needed_versions().await;
    close(&rescue).await;
    let files = looked.map_err(|error| failed(&error))?;
    let needed = needed.map_err(|error| failed(&error))?;
    match format {
        Format::Json => print_json(&StatusAnswer {
            files: files.iter().map(item).collect(),
            needed_versions: needed.map(|needed| needed.iter().map(needed_item).collect()),
        })?,
        Format::Table => {
            table(&files).print()?;
            needed_table(needed.as_deref().unwrap_or_default()).print()?;
        }
    }
    let recipients = || files.iter().flat_map(|file| recipients(&file.kept));
    if recipients().any(|recipient| recipient.used_primary == Some(false)) {
        note(
            "a file was wrapped by a version that is not the KMS key's primary one any more: `containarium kms rewrap`",
        );
    }
    let closed: Vec<&RecipientStatus> =
        recipients().filter(|recipient| matches!(recipient.opens, Some(Err(_)))).collect();
    for recipient in &closed {
        if let Some(Err(why)) = &recipient.opens {
            note(&format!("{} does not open: {why}", recipient.name));
        }
    }
    if closed.is_empty() {
        Ok(())
    } else {
        Err(Failure::new(Exit::Failed, format!("{} recipients do not open their key file", closed.len())).mend(
            "mend each as said above; a file that another recipient opens is put right with `containarium kms rewrap`",
        ))
    }
}

fn recipients(kept: &Kept) -> &[RecipientStatus] {
    match kept {
        Kept::Raw => &[],
        Kept::Wrapped(recipients) => recipients,
    }
}

fn item(file: &FileStatus) -> StatusItem {
    let recipient = |recipient: &RecipientStatus| RecipientItem {
        name: recipient.name.clone(),
        key_version: recipient.key_version.clone(),
        used_primary: recipient.used_primary,
        proven_at: recipient.proven_at.map(|at| at.to_string()),
        opens: recipient.opens.as_ref().map(Result::is_ok),
        problem: recipient.opens.as_ref().and_then(|opens| opens.as_ref().err().cloned()),
    };
    StatusItem {
        kid: file.kid.to_string(),
        path: file.path.display().to_string(),
        form: file.kept.to_string(),
        recipients: recipients(&file.kept).iter().map(recipient).collect(),
    }
}

fn needed_item(needed: &NeededVersion) -> NeededItem {
    NeededItem { key_version: needed.name.clone(), kid: needed.kid.to_string(), copies: needed.copies }
}

/// A version that copies need must not be destroyed; empty where no copy needs any.
fn needed_table(needed: &[NeededVersion]) -> Table {
    let mut table = Table::new();
    if needed.is_empty() {
        return table;
    }
    table.row(["KMS KEY VERSION", "IS NEEDED BY COPIES", "OF KID"]);
    for needed in needed {
        table.row([&*needed.name, &needed.copies.to_string(), &needed.kid.to_string()]);
    }
    table
}

fn table(files: &[FileStatus]) -> Table {
    let mut table = Table::new();
    table.row(["KID", "FORM", "OPENS", "RECIPIENT", "VERSION", "FILE"]);
    for file in files {
        let (kid, path) = (file.kid.to_string(), file.path.display().to_string());
        if matches!(file.kept, Kept::Raw) {
            table.row([&*kid, "raw", "-", "-", "-", &path]);
        }
        for recipient in recipients(&file.kept) {
            let opens = match &recipient.opens {
                None if recipient.proven_at.is_some() => "proven before",
                None => "not tried",
                Some(Ok(())) => "yes",
                Some(Err(_)) => "no",
            };
            let version = match (&recipient.key_version, recipient.used_primary) {
                (Some(name), primary) => {
                    let number = name.rsplit('/').next().unwrap_or_default();
                    format!("{number}{}", if primary == Some(false) { ", not primary" } else { "" })
                }
                (None, _) => "-".to_owned(),
            };
            table.row([&*kid, "wrapped", opens, &recipient.name, &version, &path]);
        }
    }
    table
}

pub(super) fn failed(error: &KmsWorkError) -> Failure {
    let mend = match error {
        KmsWorkError::NoRecipients => {
            "name a KMS key: --key projects/P/locations/L/keyRings/R/cryptoKeys/K, or `[kms.gcp] key` in the configuration file"
        }
        KmsWorkError::Recipient { .. } => "give what `age-keygen -y IDENTITY_FILE` prints",
        KmsWorkError::NoKeyFile(_) => "run it with the daemon's settings (`containarium config show`), on its host",
        KmsWorkError::Already("raw") => "`containarium kms wrap` wraps them",
        KmsWorkError::Already(_) => "`containarium kms rewrap` wraps them anew; `containarium kms status` shows them",
        KmsWorkError::Store(_) => "see that the database runs, and that these are the daemon's settings",
        KmsWorkError::NewFile(_) => "run it again; `containarium admin status` tells whether a rotation is under way",
        KmsWorkError::Rotating(_) => {
            "`containarium admin rotate-master --resume` goes on with it, or --abort gives it up; then run this again"
        }
        KmsWorkError::KeyFile(_) => {
            "mend that, as the user that the daemon runs as; nothing was lost; then run this again"
        }
        KmsWorkError::NotOpened { .. }
        | KmsWorkError::NotWrapped(_)
        | KmsWorkError::NotProven(_)
        | KmsWorkError::NoRandom(_) => {
            "no file was changed: mend that, with credentials that may encrypt and decrypt with the KMS key, and run it again"
        }
        KmsWorkError::Unproven => {
            "the identity file is needed once, to prove that what is written opens; keep it off this host then"
        }
        KmsWorkError::OnlyKms(_) => {
            "add an age recipient and prove it: --age RECIPIENT --age-identity FILE; or copy the raw key off this host first: `containarium \
             backup push`; or accept it: --kms-is-the-only-way-back"
        }
    };
    Failure::new(exit(error.class()), error.to_string()).mend(mend)
}
