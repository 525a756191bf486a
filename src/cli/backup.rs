//! `containarium backup …`

mod database;
mod drill;

use clap::{Args, Subcommand};

use super::failure::Failure;
use super::settings::ClientArgs;

#[derive(Args)]
#[command(subcommand_required = true, arg_required_else_help = true, disable_help_subcommand = true)]
#[command(after_help = BACKUP_EXAMPLES)]
pub(super) struct BackupArgs {
    #[command(flatten)]
    client: ClientArgs,
    #[command(subcommand)]
    command: BackupCommand,
}

const BACKUP_EXAMPLES: &str = "\
Examples:
  containarium backup database /backup/containarium.db --record
  containarium backup drill --from /media/safe/secrets.key --record";

#[derive(Subcommand)]
enum BackupCommand {
    /// Copy the database to a file, or say how
    ///
    /// SQLite: makes one consistent copy beside the running daemon, or without one, and never with a key. PostgreSQL: prints the line
    /// for pg_dump. It works in its own process, with the daemon's settings. With --record the daemon remembers the copy, and
    /// `containarium admin doctor` tells how old it is; on PostgreSQL give --record when pg_dump has ended.
    #[command(after_help = database::EXAMPLES)]
    Database(database::DatabaseArgs),
    /// Try whether copies of the master keys open the database
    ///
    /// Opens every DEK with the keys of these copies and nothing else, in its own process; it looks at no key file of the daemon, and
    /// changes nothing. It fails where a DEK does not open. With --record the daemon remembers how it came out.
    #[command(after_help = drill::EXAMPLES)]
    Drill(drill::DrillArgs),
}

pub(super) async fn run(arguments: BackupArgs) -> Result<(), Failure> {
    let format = arguments.client.format();
    let client = move || arguments.client.client();
    match arguments.command {
        BackupCommand::Database(arguments) => database::run(client, format, arguments).await,
        BackupCommand::Drill(arguments) => drill::run(client, format, arguments).await,
    }
}
