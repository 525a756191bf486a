//! What the daemon does: `backup push` and `backup list`.

use clap::Args;

use crate::client::ClientError;
use crate::service::backup::Class;
use crate::wire::backup::{BackupListAnswer, PushAnswer, PushRequest};

use super::super::failure::{Deed, Exit, Failure};
use super::super::output::{Format, Table, note, print_json};
use super::super::progress;
use super::super::settings::ClientArgs;
use super::exit;

#[derive(Args)]
pub(super) struct PushArgs {
    /// Copy a wrapped key file too that nothing but one KMS key is known to open
    #[arg(long)]
    kms_is_the_only_way_back: bool,
    #[command(flatten)]
    client: ClientArgs,
}

pub(super) async fn push(arguments: PushArgs) -> Result<(), Failure> {
    let request = PushRequest { kms_is_the_only_way_back: arguments.kms_is_the_only_way_back };
    let format = arguments.client.format();
    let client = arguments.client.client()?;
    let answer = progress::shown(|say| {
        let (client, request) = (&client, &request);
        async move { client.backup_push(request, |line| drop(say.send_replace(Some(line)))).await }
    });
    let deed = Deed::on_daemon_changing("copy the master keys", "containarium backup list");
    let answer = answer.await.map_err(|error| {
        let failure = Failure::of_request(&deed, &error);
        // The one thing that can be wrong with what was asked: no secret is configured.
        if matches!(error, ClientError::Problem { status: 400, .. }) { failure.exits(Exit::Usage) } else { failure }
    })?;
    match format {
        Format::Json => print_json(&answer)?,
        Format::Table => pushed(&answer).print()?,
    }
    if let Some(failure) = missing(&answer) {
        return Err(failure);
    }
    note("the copies are confirmed; `containarium backup verify`, with credentials that may read them, proves them");
    Ok(())
}

fn pushed(answer: &PushAnswer) -> Table {
    let mut table = Table::new();
    table.row(["KID", "STATE", "COPY"]);
    for copy in &answer.copies {
        table.row([&*copy.kid, &copy.state, copy.locator.as_deref().unwrap_or(&copy.secret)]);
    }
    for kid in &answer.not_here {
        table.row([kid, "not here", "-"]);
    }
    table
}

/// Each secret that lacks a copy, with its reason; the first one's exit code.
fn missing(answer: &PushAnswer) -> Option<Failure> {
    let troubles: Vec<_> =
        answer.copies.iter().filter_map(|copy| copy.trouble.as_ref().map(|trouble| (copy, trouble))).collect();
    let mut lines: Vec<String> = troubles
        .iter()
        .map(|(copy, trouble)| {
            format!("{} has no confirmed copy of master key {}: {}", copy.secret, copy.kid, trouble.why)
        })
        .collect();
    let not_here = answer.not_here.iter().map(|kid| {
        format!("master key {kid} is wanted by the database and lies in no key file of this node, so it was not copied")
    });
    lines.extend(not_here);
    let exit = troubles.first().map_or(Exit::NotFound, |(_, trouble)| exit(Class::parse(&trouble.class)));
    let mend = if troubles.is_empty() {
        "push on a node that holds the key (`containarium admin nodes`), or give it to this one with `containarium backup restore`"
    } else {
        "when that is mended: `containarium backup push`; what was copied is not copied again"
    };
    (!lines.is_empty()).then(|| Failure::new(exit, lines.join("\n")).mend(mend))
}

pub(super) async fn list(arguments: ClientArgs) -> Result<(), Failure> {
    let format = arguments.format();
    let client = arguments.client()?;
    let answer = client.backup_list().await;
    let answer = answer.map_err(|error| Failure::of_request(&Deed::on_daemon("list the copies"), &error))?;
    match format {
        Format::Json => print_json(&answer)?,
        Format::Table => print_list(&answer)?,
    }
    let trouble = answer.secrets.iter().find_map(|listed| listed.trouble.as_ref().map(|trouble| (listed, trouble)));
    match trouble {
        Some((listed, trouble)) => {
            let message = format!("{} could not be listed: {}", listed.secret, trouble.why);
            Err(Failure::new(exit(Class::parse(&trouble.class)), message))
        }
        None => uncovered(&answer).map_or(Ok(()), Err),
    }
}

/// Of keys that the database needs, those that would be lost together with their files.
fn uncovered(answer: &BackupListAnswer) -> Option<Failure> {
    let kids: Vec<&str> =
        answer.keys.iter().filter(|key| key.needed && key.confirmed_at.is_none()).map(|key| &*key.kid).collect();
    (!kids.is_empty()).then(|| {
        Failure::new(Exit::NotFound, format!("no confirmed copy is there of master key {}, which is needed", kids.join(", ")))
            .mend("`containarium backup push`, or `containarium backup export` and then `containarium backup verify --from FILE`")
    })
}

fn print_list(answer: &BackupListAnswer) -> Result<(), Failure> {
    let dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let mut keys = Table::new();
    keys.row(["KEY", "STATE", "NEEDED", "CONFIRMED", "READ BACK"]);
    for key in &answer.keys {
        let needed = if key.needed { "yes" } else { "no" };
        keys.row([&*key.kid, &key.state, needed, &dash(&key.confirmed_at), &dash(&key.read_back_at)]);
    }
    keys.print()?;
    for listed in &answer.secrets {
        let Some(versions) = &listed.versions else { continue };
        let mut table = Table::new();
        table.row([&*listed.secret]);
        table.row(["VERSION", "STATE", "CREATED", "KEY", "CONFIRMED", "READ BACK"]);
        for version in versions {
            let kid = version.kid.clone().unwrap_or_else(|| "unknown".to_owned());
            let (number, created) = (version.number.to_string(), dash(&version.created_at));
            table.row([
                &*number,
                &version.state,
                &created,
                &kid,
                &dash(&version.confirmed_at),
                &dash(&version.read_back_at),
            ]);
        }
        table.print()?;
    }
    if answer.secrets.is_empty() {
        note("no secret is configured: `[backup.gcp] secrets` names none");
    }
    Ok(())
}
