//! `containarium admin nodes`, `install-key` and `accept-restore`

use std::fs::File;
use std::io::IsTerminal;
use std::os::fd::AsFd;

use clap::{Args, Subcommand};
use serde::Serialize;

use crate::client::Client;
use crate::compose;
use crate::config::{Environment, load};
use crate::model::NodeId;
use crate::service::install::{self, InstallError, Placed};
use crate::wire::nodes::{AcceptRestoreRequest, NodesAnswer, ReplayItem, RestorePlanAnswer};

use super::super::failure::{Deed, Exit, Failure};
use super::super::input::{Consent, confirm};
use super::super::output::{Format, Table, note, plain, print, print_json};
use super::super::settings::SettingsArgs;

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
#[command(after_help = NODES_EXAMPLES)]
pub(super) struct NodesArgs {
    #[command(subcommand)]
    command: Option<NodesCommand>,
}

const NODES_EXAMPLES: &str = "\
Examples:
  containarium admin nodes
  containarium admin nodes -o json
  containarium admin nodes forget 0123456789abcdef0123456789abcdef";

#[derive(Subcommand)]
enum NodesCommand {
    /// Forget a node that is gone for good, so that no rotation waits for it
    ///
    /// One that was seen within 30 seconds is refused: stop its daemon first. A node that was forgotten and comes back is known again.
    #[command(after_help = "Examples:\n  containarium admin nodes forget 0123456789abcdef0123456789abcdef --yes")]
    Forget {
        /// The node's id, as `containarium admin nodes` shows it
        #[arg(value_name = "ID", value_parser = node_id)]
        node: NodeId,
        /// Do it without asking for the id
        #[arg(long)]
        yes: bool,
    },
}

fn node_id(text: &str) -> Result<NodeId, &'static str> {
    NodeId::from_hex(text).ok_or("a node's id is 32 hex digits, in lower case")
}

pub(super) async fn nodes(client: &Client, format: Format, arguments: NodesArgs) -> Result<(), Failure> {
    match arguments.command {
        None => list(client, format).await,
        Some(NodesCommand::Forget { node, yes }) => forget(client, format, node, yes_or_ask(yes)).await,
    }
}

const fn yes_or_ask(yes: bool) -> Consent {
    if yes { Consent::Given } else { Consent::Ask }
}

async fn list(client: &Client, format: Format) -> Result<(), Failure> {
    let answer = client.nodes().await;
    let answer = answer.map_err(|error| Failure::of_request(&Deed::on_daemon("list the nodes"), &error))?;
    match format {
        Format::Json => print_json(&answer),
        Format::Table => nodes_table(&answer).print(),
    }
}

fn nodes_table(answer: &NodesAnswer) -> Table {
    let mut table = Table::new();
    table.row(["NODE", "STATE", "EPOCH", "SEEN", "KEYS"]);
    for node in &answer.nodes {
        let state = match (node.this, node.live) {
            (true, _) => "live, this one",
            (false, true) => "live",
            (false, false) => "not seen",
        };
        let keys = if node.durable_kids.is_empty() { "-".to_owned() } else { node.durable_kids.join(", ") };
        table.row([&*node.node_id, state, &node.epoch.to_string(), &node.seen_at, &keys]);
    }
    table
}

async fn forget(client: &Client, format: Format, node: NodeId, consent: Consent) -> Result<(), Failure> {
    confirm(&format!("forget node {node}"), &node.to_string(), consent)?;
    let deed = Deed::on_daemon_changing("forget the node", "containarium admin nodes");
    let answer = client.forget_node(node).await.map_err(|error| Failure::of_request(&deed, &error))?;
    match format {
        Format::Json => print_json(&answer),
        Format::Table => print(format!("{}\n", plain(&answer.message)).as_bytes()),
    }
}

#[derive(Args)]
#[command(after_help = RESTORE_EXAMPLES)]
pub(super) struct AcceptRestoreArgs {
    /// Do it without asking, also where this node's log has gaps
    #[arg(long)]
    yes: bool,
}

const RESTORE_EXAMPLES: &str = "\
Examples:
  containarium admin accept-restore
  containarium admin accept-restore --yes -o json";

pub(super) async fn accept_restore(
    client: &Client,
    format: Format,
    arguments: &AcceptRestoreArgs,
) -> Result<(), Failure> {
    let look = Deed::on_daemon("ask what accepting the database means");
    let plan = client.restore_plan().await.map_err(|error| Failure::of_request(&look, &error))?;
    if !plan.behind {
        note("there is nothing to accept: the database is not behind what this node has seen of it");
        return if format == Format::Json { print_json(&plan) } else { Ok(()) };
    }
    for line in plan_lines(&plan) {
        note(&line);
    }
    let (Some(epoch), Some(generation)) = (plan.epoch, plan.generation) else {
        let failure = Failure::new(Exit::Conflict, "the database holds no key, so there is nothing to accept");
        return Err(failure.mend("restore it from a backup first, or correct --database-url or --data-dir"));
    };
    confirm("accept the database as it is", "accept-restore", yes_or_ask(arguments.yes))?;
    let asked = AcceptRestoreRequest { epoch, generation, accept_gaps: !plan.complete };
    let deed = Deed::on_daemon_changing("accept the database", "containarium admin status");
    let answer = client.accept_restore(&asked).await.map_err(|error| Failure::of_request(&deed, &error))?;
    match format {
        Format::Json => print_json(&answer),
        Format::Table => {
            let replayed = answer.replayed.iter().map(|item| format!("{}\n", plain(&replay_line("done again", item))));
            let retired = answer.retired.iter().map(|kid| format!("{}\n", plain(&retired_line("is retired", kid))));
            let text =
                format!("{}\n{}{}", plain(&answer.message), replayed.collect::<String>(), retired.collect::<String>());
            print(text.as_bytes())
        }
    }
}

fn plan_lines(plan: &RestorePlanAnswer) -> Vec<String> {
    let mut lines = vec![plan.reason.clone().unwrap_or_default()];
    let held = |held: bool| if held { "held" } else { "NOT HELD: `containarium admin install-key` takes it" };
    lines.extend(
        plan.needed.iter().map(|key| format!("needs master key {}, {}: {}", key.kid, key.state, held(key.held))),
    );
    lines.extend(plan.retires.iter().map(|kid| retired_line("will be retired", kid)));
    lines.extend(plan.replay.iter().map(|item| replay_line("will be done again", item)));
    if !plan.revokes.is_empty() {
        lines.push(format!("{} tokens that were revoked will be revoked again", plan.revokes.len()));
    }
    if plan.replay.is_empty() {
        lines.push("no shred has to be done again".to_owned());
    }
    if !plan.complete {
        lines.push(
            "WARNING: this node's log (critical.jsonl) does not reach to what it saw last: a shred or a revocation that was made since the restored state \
             may be undone. Look on the other nodes too, and accept on the one that saw most"
                .to_owned(),
        );
    }
    lines.push("what was written after the restored state is not there; accepting does not bring it back".to_owned());
    lines
}

fn retired_line(what: &str, kid: &str) -> String {
    format!(
        "the staged master key {kid} {what}, and its rotation ends: a state that was lost may have had it in use, and its backups need it. \
         Its file is kept like that of any old key; begin anew with `containarium admin rotate-master`"
    )
}

fn replay_line(when: &str, item: &ReplayItem) -> String {
    let at = item.at.as_ref().map(|at| format!(", at {at}")).unwrap_or_default();
    format!("{when}: {} of tenant {}{at}", item.deed, item.username)
}

/// `install-key -o json`
#[derive(Serialize)]
struct InstalledAnswer {
    kid: String,
    /// What the database calls it: `staged`, `active` or `decrypt_only`.
    state: String,
    path: String,
    /// Whether it lay there before.
    present: bool,
}

pub(super) async fn install_key(format: Format, arguments: SettingsArgs) -> Result<(), Failure> {
    if std::io::stdin().is_terminal() {
        let failure = Failure::usage("a master key is 32 raw bytes and is not typed; nothing was read");
        return Err(failure.mend("give its file on standard input: `containarium admin install-key < KEYFILE`"));
    }
    let effective = load(&arguments.into(), &Environment::of_process());
    let config = effective.map_err(|errors| Failure::of_settings(&errors))?.config;
    let reader = compose::reader(&config).await.map_err(|error| {
        Failure::new(Exit::Unavailable, error.to_string())
            .mend("run it with the daemon's settings, as the user that the daemon runs as; `containarium config show` prints them")
    })?;
    // Without Rust's buffer for it, which would keep a copy that nobody wipes.
    let stdin = std::io::stdin().as_fd().try_clone_to_owned().map(File::from);
    let mut stdin = stdin.map_err(|error| failed(&InstallError::Read(error)))?;
    let done = install::install_key(&*reader.store, &reader.files, &mut stdin).await;
    reader.store.close().await;
    let installed = done.map_err(|error| failed(&error))?;
    if format == Format::Json {
        return print_json(&InstalledAnswer {
            kid: installed.kid.to_string(),
            state: installed.state.to_string(),
            path: installed.path.display().to_string(),
            present: installed.placed == Placed::Before,
        });
    }
    let did = match installed.placed {
        Placed::Now => "installed",
        Placed::Before => "already there:",
    };
    let (kid, state, path) = (installed.kid, installed.state, installed.path.display().to_string());
    print(format!("{did} master key {kid} ({state}) in {}\n", plain(&path)).as_bytes())?;
    note(
        "a running daemon takes it within seconds, and needs no restart; `containarium admin status` shows it among the loaded kids",
    );
    Ok(())
}

fn failed(error: &InstallError) -> Failure {
    let (exit, mend) = match error {
        InstallError::Image(_) | InstallError::Read(_) => {
            (Exit::Usage, "copy the key file as bytes: `containarium admin install-key < KEYFILE`")
        }
        InstallError::Unknown { .. } | InstallError::NoKey => (
            Exit::NotFound,
            "give the key file of a node that is ready, or its backup; if that is what it was, the daemon of these settings uses another \
             database: `containarium config show`",
        ),
        InstallError::NotWanted { .. } => (Exit::Conflict, "give the key file of a node that is ready, or its backup"),
        InstallError::Store(_) => {
            (Exit::Unavailable, "see that the database runs, and that these are the daemon's settings")
        }
        InstallError::KeyFile(_) => {
            (Exit::Failed, "run it as the user that the daemon runs as, and with its --key-file")
        }
    };
    Failure::new(exit, error.to_string()).mend(mend)
}
