//! `containarium admin …`

mod deks;
mod doctor;
mod nodes;
mod rotation;
mod tokens;

use clap::{Args, Subcommand};

use crate::client::Client;
use crate::wire::{StatusAnswer, TenantItem, TenantsAnswer};

use super::failure::{Deed, Failure};
use super::output::{Format, Table, print_json};
use super::secrets::endless;
use super::settings::{ClientArgs, SettingsArgs};

#[derive(Args)]
#[command(subcommand_required = true, arg_required_else_help = true, disable_help_subcommand = true)]
#[command(after_help = "Examples:\n  containarium admin status\n  containarium admin tenants")]
pub(super) struct AdminArgs {
    #[command(flatten)]
    client: ClientArgs,
    #[command(subcommand)]
    command: AdminCommand,
}

#[derive(Subcommand)]
enum AdminCommand {
    /// List the tenants
    #[command(after_help = "Examples:\n  containarium admin tenants\n  containarium admin tenants -o json")]
    Tenants,
    /// Tell how the daemon is: store, keys, cache, counts, warnings
    ///
    /// It answers while the keys are locked too, and says why they are.
    #[command(after_help = "Examples:\n  containarium admin status\n  containarium admin status -o json")]
    Status,
    /// Make a new master key, wrap every DEK by it, and retire the old one, while secrets are served
    ///
    /// Where the key file is wrapped, this command makes the new key and wraps it, for what the key file is wrapped for, with the
    /// credentials of who runs it; run it on the daemon's host, with its configuration file. It stages the new key and stops; once a copy of it off the host is proven (--resume --prove-from) it goes on by itself to the
    /// end. Hanging up stops nothing. docs/KEY_ROTATION.md has each step, and each failure with its one command.
    #[command(after_help = rotation::EXAMPLES)]
    RotateMaster(rotation::RotateMasterArgs),
    /// Look for what would cost secrets or sleep: keys, backups, database, clock, disks
    ///
    /// Each check is ok, a warning or a failure, with the command that mends it. The exit code is 1 where one failed, and 0 otherwise.
    /// Without a daemon it looks by itself, with the daemon's settings, at what it can reach; run it as the user that the daemon runs as.
    #[command(after_help = "Examples:\n  containarium admin doctor\n  containarium admin doctor -o json")]
    Doctor(SettingsArgs),
    /// Give a tenant a new DEK, or all tenants
    ///
    /// The new DEK seals from now on; the old one decrypts only. With --reencrypt everything is sealed anew under it, while secrets
    /// are read and written, and the old DEK is removed. Hanging up stops nothing; called again it is told that one is under way.
    #[command(after_help = ROTATE_DEK_EXAMPLES)]
    RotateDek(deks::RotateDekArgs),
    /// Destroy a tenant's DEKs, so that its secrets are gone for good
    ///
    /// The tenant is blocked at once, and its DEKs are destroyed seven days later; until then --cancel brings everything back. Its name
    /// stays reserved. Backups of the database open its secrets until they expire.
    #[command(after_help = SHRED_EXAMPLES)]
    Shred(deks::ShredArgs),
    /// Set a damaged DEK aside, so that a rotation can pass it
    ///
    /// Only one that does not open is set aside. Its secrets answer `quarantined`; nothing is deleted. --release takes it back once it
    /// opens again, with any master key that is among the key files.
    #[command(after_help = QUARANTINE_EXAMPLES)]
    Quarantine(deks::QuarantineArgs),
    /// Make, list and revoke tokens, by which programs and people are let in
    Token(tokens::TokenArgs),
    /// List the daemons that share the database, and which keys each holds
    Nodes(nodes::NodesArgs),
    /// Put a master key into this node's key files
    ///
    /// Reads a key file on standard input, the 32 bytes or the wrapped form, and keeps it in secrets.key.d beside the key file, where the database knows
    /// that key as staged, active or decrypt-only. It works in its own process, with the daemon's settings, beside a running daemon or
    /// without one: run it as the user that the daemon runs as.
    #[command(after_help = INSTALL_EXAMPLES)]
    InstallKey(SettingsArgs),
    /// Accept a restored database, after writes were closed because it went back
    ///
    /// Shows which keys the database needs and which are held, and which shreds are done again; asks; then opens writes.
    AcceptRestore(nodes::AcceptRestoreArgs),
}

const ROTATE_DEK_EXAMPLES: &str = "\
Examples:
  containarium admin rotate-dek alice
  containarium admin rotate-dek alice --reencrypt
  containarium admin rotate-dek --all --reencrypt
  containarium admin rotate-dek --all --resume";

const SHRED_EXAMPLES: &str = "\
Examples:
  containarium admin shred alice
  containarium admin shred alice --cancel
  containarium admin shred alice --now --yes";

const QUARANTINE_EXAMPLES: &str = "\
Examples:
  containarium admin quarantine alice 2
  containarium admin quarantine alice 2 --release";

const INSTALL_EXAMPLES: &str = "\
Examples:
  containarium admin install-key < /media/backup/secrets.key
  ssh OTHER-NODE cat /etc/containarium/secrets.key | containarium admin install-key";

pub(super) async fn run(arguments: AdminArgs) -> Result<(), Failure> {
    let (format, flags) = (arguments.client.format(), arguments.client.flags());
    let client = move || arguments.client.client();
    match arguments.command {
        AdminCommand::RotateMaster(arguments) => rotation::run(&client()?, flags, format, arguments).await,
        AdminCommand::Tenants => tenants(&client()?, format).await,
        AdminCommand::Status => status(&client()?, format).await,
        AdminCommand::Doctor(settings) => doctor::doctor(&client()?, format, settings).await,
        AdminCommand::Token(arguments) => tokens::token(&client()?, format, arguments).await,
        AdminCommand::Nodes(arguments) => nodes::nodes(&client()?, format, arguments).await,
        AdminCommand::InstallKey(settings) => nodes::install_key(format, settings).await,
        AdminCommand::AcceptRestore(arguments) => nodes::accept_restore(&client()?, format, &arguments).await,
        AdminCommand::RotateDek(arguments) => deks::rotate(&client()?, format, arguments).await,
        AdminCommand::Shred(arguments) => deks::shred(&client()?, format, arguments).await,
        AdminCommand::Quarantine(arguments) => deks::quarantine(&client()?, format, arguments).await,
    }
}

async fn tenants(client: &Client, format: Format) -> Result<(), Failure> {
    let failed = |error| Failure::of_request(&Deed::on_daemon("list the tenants"), &error);
    let mut page = client.tenants(None).await.map_err(failed)?;
    let mut all = Vec::new();
    let mut table = Table::new();
    table.row(["TENANT", "STATE", "SECRETS", "DEK", "CREATED"]);
    loop {
        match format {
            Format::Json => all.append(&mut page.tenants),
            Format::Table => std::mem::replace(&mut table, Table::new()).with_tenants(&page.tenants).print()?,
        }
        let Some(token) = page.next_page_token else { break };
        page = client.tenants(Some(&token)).await.map_err(failed)?;
        if page.next_page_token.as_ref() == Some(&token) {
            return Err(endless());
        }
    }
    match format {
        Format::Json => print_json(&TenantsAnswer { tenants: all, next_page_token: None }),
        Format::Table => Ok(()),
    }
}

impl Table {
    fn with_tenants(mut self, tenants: &[TenantItem]) -> Self {
        for tenant in tenants {
            let secrets = tenant.secrets.to_string();
            let dek = tenant.dek_version.map_or_else(|| "-".to_owned(), |version| version.to_string());
            self.row([&*tenant.username, &deks::state(tenant), &secrets, &dek, &tenant.created_at]);
        }
        self
    }
}

async fn status(client: &Client, format: Format) -> Result<(), Failure> {
    let status = client.status().await;
    let status = status.map_err(|error| Failure::of_request(&Deed::on_daemon("ask for the status"), &error))?;
    match format {
        Format::Json => print_json(&status),
        Format::Table => status_table(&status).print(),
    }
}

pub(super) fn status_table(status: &StatusAnswer) -> Table {
    let mut table = Table::new();
    // A reason has lines of its own, commands among them: each is a row, so that it can be copied.
    let mut row = |name: &str, value: &str| {
        for (index, line) in value.lines().enumerate() {
            table.row([if index == 0 { name } else { "" }, line]);
        }
    };
    row("release", &status.version);
    row("ready", if status.ready { "yes" } else { "no" });
    row("store", &format!("{}, {}", status.store.kind, status.store.state));
    let keys = &status.keys;
    row("keys", &keys.reason.as_ref().map_or_else(|| keys.state.clone(), |reason| format!("{}: {reason}", keys.state)));
    row("active kid", keys.active_kid.as_deref().unwrap_or("-"));
    row("loaded kids", &none_as_dash(keys.loaded_kids.join(", ")));
    row("epoch", &number(keys.epoch));
    row("generation", &number(keys.generation));
    row("phase", keys.phase.as_deref().unwrap_or("-"));
    for key in &keys.master_keys {
        row("master key", &format!("{}, {}, since {}", key.kid, key.state, key.created_at));
    }
    let cache = &status.cache;
    let (entries, max, age) = (cache.entries, cache.max_entries, cache.max_age_seconds);
    row("cache", &format!("{entries} of {max} entries, {age} s at most; {} hits, {} misses", cache.hits, cache.misses));
    match &status.counts {
        Some(counts) => {
            row("tenants", &counts.tenants.to_string());
            row("secrets", &counts.secrets.to_string());
            row("versions", &counts.versions.to_string());
            for (state, count) in &counts.deks {
                row(&format!("DEKs {state}"), &count.to_string());
            }
        }
        None => row("counts", "unknown while the store cannot be read"),
    }
    // That of the keys is above, whole.
    for warning in &status.warnings {
        row("WARNING", warning.lines().next().unwrap_or_default());
    }
    table
}

fn number(number: Option<u64>) -> String {
    number.map_or_else(|| "-".to_owned(), |number| number.to_string())
}

fn none_as_dash(text: String) -> String {
    if text.is_empty() { "-".to_owned() } else { text }
}
