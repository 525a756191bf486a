//! `containarium backup …`

mod copy;
mod daemon;
mod database;
mod drill;
mod dump;
mod export;
mod restore;
mod verify;

use clap::{Args, Subcommand};
use data_encoding::HEXLOWER;

use crate::service::backup::fetch::PassedOver;
use crate::service::backup::{Class, ReadBack, Trouble};
use crate::wire::backup::{ReadBackItem, TroubleItem};

use super::failure::{Exit, Failure};
use super::output::note;
use super::settings::ClientArgs;

#[derive(Args)]
#[command(subcommand_required = true, arg_required_else_help = true, disable_help_subcommand = true)]
#[command(after_help = EXAMPLES)]
pub(super) struct BackupArgs {
    #[command(subcommand)]
    command: BackupCommand,
}

const EXAMPLES: &str = "\
Examples:
  containarium backup push
  containarium backup verify
  containarium backup restore
  containarium backup database /backup/containarium.db --record
  containarium backup drill --record";

#[derive(Subcommand)]
enum BackupCommand {
    /// Copy the master keys to Secret Manager
    ///
    /// The daemon copies every key that its database wants into every secret of `[backup.gcp]`. The same bytes are not copied twice.
    #[command(after_help = "Examples:\n  containarium backup push\n  containarium backup push -o json")]
    Push(daemon::PushArgs),
    /// List the copies in Secret Manager, and how each master key is covered
    ///
    /// The daemon lists without reading any payload. A version that nothing is known of is shown without a kid; `containarium backup
    /// verify` finds out whether it holds a key that is needed. A copy that was destroyed, disabled or deleted is none: where a key that
    /// is needed has no other, it exits with 3.
    #[command(after_help = "Examples:\n  containarium backup list\n  containarium backup list -o json")]
    List(ClientArgs),
    /// Read copies back and compare them
    ///
    /// Reads a copy of every needed key from every secret of `[backup.gcp]`, or the one copy that --from names, in its own process and
    /// with your credentials, which must be allowed to read payloads. A running daemon records which copies were read back, and which were no good.
    #[command(after_help = VERIFY_EXAMPLES)]
    Verify(verify::VerifyArgs),
    /// Bring master keys back from their copies
    ///
    /// Fetches every key that the database needs and that is missing here, the newest versions first, in its own process, with the
    /// daemon's settings and your credentials; it needs no daemon. A copy that does not match touches no file. What lay in the key
    /// file's place is kept as secrets.key.replaced-KID-TIME.
    #[command(after_help = RESTORE_EXAMPLES)]
    Restore(restore::RestoreArgs),
    /// Write a copy of the master key to standard output: an age file, a sheet of paper, or raw
    ///
    /// Keep it where it is reachable when this host is not, and prove it with `containarium backup verify --from`.
    #[command(after_help = EXPORT_EXAMPLES)]
    Export(export::ExportArgs),
    /// Copy the database to a file, or say how
    ///
    /// SQLite: makes one consistent copy beside the running daemon, or without one, and never with a key. PostgreSQL: prints the line
    /// for pg_dump. It works in its own process, with the daemon's settings. With --record the daemon remembers the copy, and
    /// `containarium admin doctor` tells how old it is; on PostgreSQL give --record when pg_dump has ended.
    #[command(after_help = database::EXAMPLES)]
    Database(database::DatabaseArgs),
    /// Try whether copies of the master keys open the database
    ///
    /// Opens every DEK with the keys of copies and nothing else, in its own process; it looks at no key file of the daemon, and changes
    /// nothing. The copies are fetched from the secrets of `[backup.gcp]` with your credentials, the newest versions first, or are those
    /// that --from names. It fails where a DEK does not open. With --record the daemon remembers how it came out, and that the copies that
    /// were fetched were read back.
    #[command(after_help = drill::EXAMPLES)]
    Drill(drill::DrillArgs),
}

const VERIFY_EXAMPLES: &str = "\
Examples:
  containarium backup verify
  containarium backup verify --from key.age --identity identity.txt
  containarium backup verify --from - < sheet.txt";

const RESTORE_EXAMPLES: &str = "\
Examples:
  containarium backup restore
  containarium backup restore --version 7
  containarium backup restore --kid 0123456789abcdef0123456789abcdef
  containarium backup restore --from key.age --identity identity.txt";

const EXPORT_EXAMPLES: &str = "\
Examples:
  containarium backup export --age age1… > key.age
  containarium backup export --paper | lpr
  containarium backup export --stdout-raw | ssh VAULT 'cat > secrets.key'";

pub(super) async fn run(arguments: BackupArgs) -> Result<(), Failure> {
    match arguments.command {
        BackupCommand::Push(client) => daemon::push(client).await,
        BackupCommand::List(client) => daemon::list(client).await,
        BackupCommand::Verify(arguments) => verify::verify(arguments).await,
        BackupCommand::Restore(arguments) => restore::restore(arguments).await,
        BackupCommand::Export(arguments) => export::export(arguments).await,
        BackupCommand::Database(arguments) => database::run(arguments).await,
        BackupCommand::Drill(arguments) => drill::run(arguments).await,
    }
}

pub(super) const fn exit(class: Class) -> Exit {
    match class {
        Class::Invalid => Exit::Usage,
        Class::NotFound => Exit::NotFound,
        Class::Denied => Exit::Denied,
        Class::Conflict => Exit::Conflict,
        Class::Unavailable => Exit::Unavailable,
        Class::Failed => Exit::Failed,
    }
}

/// Secrets that could not be searched while others had everything: nobody should learn of it on the day when those are gone.
fn note_passed_over(passed_over: &[PassedOver]) {
    for PassedOver { secret, trouble } in passed_over {
        note(&format!("warning: {secret} was passed over: {}", trouble.why));
    }
}

fn read_back_item(good: &ReadBack) -> ReadBackItem {
    ReadBackItem {
        kid: good.kid.to_string(),
        target: good.target.clone(),
        locator: good.locator.clone(),
        sha256: HEXLOWER.encode(&good.sha256),
        kms_versions: good.kms_versions.clone(),
    }
}

fn trouble_item(trouble: &Trouble) -> TroubleItem {
    TroubleItem { class: trouble.class.as_str().to_owned(), why: trouble.why.clone() }
}
