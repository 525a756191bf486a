//! `containarium admin …`

use clap::{Args, Subcommand};

use crate::client::Client;
use crate::wire::{StatusAnswer, TenantItem, TenantsAnswer};

use super::failure::{Deed, Failure};
use super::output::{Format, Table, print_json};
use super::secrets::endless;
use super::settings::ClientArgs;

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
}

pub(super) async fn run(arguments: AdminArgs) -> Result<(), Failure> {
    let format = arguments.client.format();
    let client = arguments.client.client()?;
    match arguments.command {
        AdminCommand::Tenants => tenants(&client, format).await,
        AdminCommand::Status => status(&client, format).await,
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
            self.row([&*tenant.username, &tenant.state, &secrets, &dek, &tenant.created_at]);
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
