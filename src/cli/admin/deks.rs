//! `containarium admin rotate-dek`, `shred`, `quarantine`

use clap::Args;

use crate::client::Client;
use crate::model::{DekVersion, NameError, Tenant};
use crate::wire::{
    QuarantineMode, QuarantineRequest, RotateDekAnswer, RotateDekMode, RotateDekRequest, ShredAnswer, ShredMode,
    ShredRequest,
};

use super::super::failure::{Deed, Failure};
use super::super::input::{Consent, confirm};
use super::super::output::{Format, Table, note, print_json};
use super::super::progress;

#[derive(Args)]
pub(super) struct RotateDekArgs {
    /// The tenant; _system for the daemon's own keys
    #[arg(value_parser = any_tenant, required_unless_present = "all", conflicts_with = "all")]
    tenant: Option<Tenant>,
    /// Do it for every tenant and for _system
    #[arg(long)]
    all: bool,
    /// Also seal every version of every secret anew, deleted secrets too, and remove the old DEKs
    #[arg(long)]
    reencrypt: bool,
    /// Make no new DEK: go on with a --reencrypt that was interrupted
    #[arg(long)]
    resume: bool,
}

#[derive(Args)]
pub(super) struct ShredArgs {
    /// The tenant: 1 to 64 of a-z, 0-9, '.', '_' and '-', starting and ending with a letter or digit
    #[arg(value_parser = any_tenant)]
    tenant: Tenant,
    /// Destroy now, not after seven days; a pending shred too
    #[arg(long, conflicts_with = "cancel")]
    now: bool,
    /// Cancel a pending shred: the tenant is as it was
    #[arg(long)]
    cancel: bool,
    /// Do not ask for the tenant's name
    #[arg(long)]
    yes: bool,
}

#[derive(Args)]
pub(super) struct QuarantineArgs {
    /// The tenant; _system for the daemon's own keys
    #[arg(value_parser = any_tenant)]
    tenant: Tenant,
    /// The DEK's version, as the daemon's log and messages name it
    #[arg(value_name = "DEK_VERSION", value_parser = dek_version)]
    version: DekVersion,
    /// Take it back: it must open again
    #[arg(long)]
    release: bool,
}

/// An administrator may name the system's tenant too.
fn any_tenant(text: &str) -> Result<Tenant, NameError> {
    Tenant::from_row(text)
}

fn dek_version(text: &str) -> Result<DekVersion, &'static str> {
    text.parse().ok().and_then(DekVersion::new).ok_or("a DEK version is a number from 1")
}

pub(super) async fn rotate(client: &Client, format: Format, arguments: RotateDekArgs) -> Result<(), Failure> {
    let RotateDekArgs { tenant, all, reencrypt, resume } = arguments;
    let mode = match (resume, reencrypt) {
        (true, _) => RotateDekMode::Resume,
        (false, true) => RotateDekMode::Reencrypt,
        (false, false) => RotateDekMode::Rotate,
    };
    let request = RotateDekRequest { username: tenant.as_ref().map(ToString::to_string), all, mode };
    let answer = progress::shown(|say| {
        let request = &request;
        async move { client.rotate_dek(request, |line| drop(say.send_replace(Some(line)))).await }
    });
    let deed = tenant.as_ref().map_or_else(
        || Deed::on_daemon_changing("rotate the DEKs of all tenants", "containarium admin tenants"),
        |tenant| Deed::to_tenant("rotate the DEK of", tenant),
    );
    let answer = answer.await.map_err(|error| Failure::of_request(&deed, &error))?;
    if let Some(hint) = hint(mode, &answer) {
        note(hint);
    }
    match format {
        Format::Json => print_json(&answer),
        Format::Table => rotated(&answer).print(),
    }
}

fn hint(mode: RotateDekMode, answer: &RotateDekAnswer) -> Option<&'static str> {
    if answer.quarantined > 0 {
        return Some("quarantined DEKs were left, with what they sealed: docs/OPERATIONS.md, \"A damaged DEK\"");
    }
    let only_rotated = mode == RotateDekMode::Rotate && answer.rotated > 0;
    only_rotated.then_some("what was sealed before stays under the DEK before; --reencrypt seals it anew")
}

fn rotated(answer: &RotateDekAnswer) -> Table {
    let mut table = Table::new();
    for (name, count) in [
        ("tenants", answer.tenants),
        ("new DEKs", answer.rotated),
        ("versions re-encrypted", answer.reencrypted),
        ("old DEKs removed", answer.removed),
        ("quarantined DEKs left", answer.quarantined),
        ("blocked tenants passed over", answer.blocked),
    ] {
        table.row([name, &count.to_string()]);
    }
    table
}

pub(super) async fn shred(client: &Client, format: Format, arguments: ShredArgs) -> Result<(), Failure> {
    let ShredArgs { tenant, now, cancel, yes } = arguments;
    let consent = if yes { Consent::Given } else { Consent::Ask };
    let (mode, verb) = match (now, cancel) {
        (true, _) => (ShredMode::Now, "shred"),
        (_, true) => (ShredMode::Cancel, "cancel the shred of"),
        _ => (ShredMode::Schedule, "shred"),
    };
    match mode {
        ShredMode::Now => {
            confirm(&format!("destroy every secret of tenant {tenant} for good, now"), tenant.as_str(), consent)?;
        }
        ShredMode::Schedule => {
            let what = format!("block tenant {tenant} now, and destroy every secret of it for good in seven days");
            confirm(&what, tenant.as_str(), consent)?;
        }
        // It takes nothing away.
        ShredMode::Cancel => {}
    }
    let answer = client.shred(&ShredRequest { username: tenant.to_string(), mode }).await;
    let answer = answer.map_err(|error| Failure::of_request(&Deed::to_tenant(verb, &tenant), &error))?;
    match format {
        Format::Json => print_json(&answer),
        Format::Table => shredded(&answer).print(),
    }
}

fn shredded(answer: &ShredAnswer) -> Table {
    let tenant = &answer.tenant;
    let mut table = Table::new();
    table.row(["tenant", &tenant.username]);
    table.row(["state", &state(tenant)]);
    if tenant.shred_at.is_none() {
        return table;
    }
    if tenant.shredded_at.is_none() {
        let cancel = format!("containarium admin shred {} --cancel", tenant.username);
        table.row(["until then", &cancel]);
    }
    let unknown = "unknown: [backup] database_retention is not set; until the last backup of the database is gone";
    table.row(["final", answer.final_at.as_deref().unwrap_or(unknown)]);
    table
}

/// A tenant's state in words.
pub(super) fn state(tenant: &crate::wire::TenantItem) -> String {
    match (&tenant.shred_at, &tenant.shredded_at) {
        (_, Some(at)) => format!("shredded {at}"),
        (Some(at), None) => format!("blocked until {at}"),
        (None, None) => tenant.state.clone(),
    }
}

pub(super) async fn quarantine(client: &Client, format: Format, arguments: QuarantineArgs) -> Result<(), Failure> {
    let QuarantineArgs { tenant, version, release } = arguments;
    let (mode, verb) = if release {
        (QuarantineMode::Release, "release a DEK of")
    } else {
        (QuarantineMode::Quarantine, "quarantine a DEK of")
    };
    let request = QuarantineRequest { username: tenant.to_string(), dek_version: version.get(), mode };
    let answer = client.quarantine(&request).await;
    let answer = answer.map_err(|error| Failure::of_request(&Deed::to_tenant(verb, &tenant), &error))?;
    if format == Format::Json {
        return print_json(&answer);
    }
    let mut table = Table::new();
    table.row(["tenant", &answer.username]);
    table.row(["DEK version", &answer.dek_version.to_string()]);
    table.row(["state", &answer.state]);
    table.print()
}
