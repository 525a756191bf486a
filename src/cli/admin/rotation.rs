//! `containarium admin rotate-master`

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum, ValueHint};

use crate::client::{Client, ClientError, ErrorClass};
use crate::compose;
use crate::config::{Config, Environment, Flags, Setting, load};
use crate::model::{Kid, KmsKey, NodeId};
use crate::service::kms::{self, OnlyWay};
use crate::service::rotation::proof::{self, CopyRead, ProofError};
use crate::wire::{
    DestroyOldRequest, EscrowChoice, ProgressLine, ProofOfCopy, RotateMasterMode, RotateMasterRequest,
    RotationKeysAnswer, RotationReport,
};

use super::super::failure::{Deed, Exit, Failure};
use super::super::input::{Consent, confirm};
use super::super::output::{Format, Table, plain, print, print_json};
use super::super::progress;

#[derive(Args)]
#[group(id = "what", multiple = false)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line, of which one may be given")]
struct What {
    /// Open every DEK, count, and say what would stop a rotation; change nothing
    #[arg(long)]
    dry_run: bool,
    /// Go on with the rotation that is staged or under way, or watch it
    #[arg(long)]
    resume: bool,
    /// Give the staged key up; before the flip only
    #[arg(long)]
    abort: bool,
    /// Destroy the oldest retired key on every node, once `[keys] retain_old` has passed
    #[arg(long)]
    destroy_old: bool,
    /// Rotate a key that somebody else may have: also replace every DEK, and seal every version of every secret anew
    #[arg(long)]
    compromised: bool,
}

#[derive(Args)]
pub(super) struct RotateMasterArgs {
    #[command(flatten)]
    what: What,
    /// How the key is to be known off the host: by a copy that the daemon pushes to Google Secret Manager (gcp), by a copy that you feed back
    /// (prove), or not at all, recorded with who said so. Default: gcp where the daemon has `[backup.gcp]`, else prove
    #[arg(long, value_name = "HOW")]
    escrow: Option<EscrowArg>,
    /// With --resume or --destroy-old: read the copy of the key here, in this process; - is standard input
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    prove_from: Option<PathBuf>,
    /// Do not wait for this node, which is away; it is not ready until it has the key. May be given several times
    #[arg(long = "without-node", value_name = "ID", value_parser = node)]
    without_nodes: Vec<NodeId>,
    /// Where the key file is wrapped: let the identity of this age recipient open the new key too [default: those of the key file]
    #[arg(long, value_name = "RECIPIENT", num_args = 1..)]
    age: Vec<String>,
    /// Where the key file is wrapped: prove with the age identities in this file that they open the new key, or with --prove-from the copy
    /// [default: keys.age_identity of the configuration file] [env: CONTAINARIUM_AGE_IDENTITY]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    age_identity: Option<PathBuf>,
    /// Where the key file is wrapped: go on although nothing but one KMS key is known to open the new key
    #[arg(long)]
    kms_is_the_only_way_back: bool,
    /// Destroy without asking for the kid
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum EscrowArg {
    Gcp,
    Prove,
    WaiveOffHostCopy,
}

impl From<EscrowArg> for EscrowChoice {
    fn from(escrow: EscrowArg) -> Self {
        match escrow {
            EscrowArg::Gcp => Self::Gcp,
            EscrowArg::Prove => Self::Prove,
            EscrowArg::WaiveOffHostCopy => Self::WaiveOffHostCopy,
        }
    }
}

/// The command that shows how things stand.
const SHOWN_BY: &str = "containarium admin status";

pub(super) const EXAMPLES: &str = "\
Examples:
  containarium admin rotate-master --dry-run
  containarium admin rotate-master
  containarium admin rotate-master --resume --prove-from /media/offhost/secrets.key
  containarium admin rotate-master --abort
  containarium admin rotate-master --destroy-old";

fn node(text: &str) -> Result<NodeId, &'static str> {
    NodeId::from_hex(text).ok_or("a node's id is 32 lower-case hex digits; `containarium admin nodes` lists them")
}

/// What a wrapped key needs of the command's own process.
struct Workshop {
    flags: Flags,
    recipients: Vec<String>,
    only_way: OnlyWay,
}

impl Workshop {
    /// Only where it is needed: a raw key asks for no setting of the daemon's.
    fn config(&self) -> Result<Config, Failure> {
        let loaded = load(&self.flags, &Environment::of_process());
        Ok(loaded.map_err(|errors| Failure::of_settings(&errors))?.config)
    }

    /// The new key's file, where the one in use is wrapped.
    async fn new_key(&self, client: &Client) -> Result<Option<String>, Failure> {
        let Some(wrapped_for) = keys(client).await?.wrapped_for else {
            if self.recipients.is_empty() && self.only_way == OnlyWay::Refused {
                return Ok(None);
            }
            return Err(Failure::usage(
                "--age and --kms-is-the-only-way-back are about a wrapped key file, and this one is the key itself; nothing was asked of the \
                 daemon",
            )
            .mend("leave them out; or wrap the key files first: `containarium kms wrap`"));
        };
        let (provider, clock) = compose::wrapper(&self.config()?);
        let parsed = wrapped_for.kms_keys.iter().map(|key| KmsKey::parse(key)).collect::<Result<Vec<_>, _>>();
        let kms_keys = parsed.map_err(|error| Failure::new(Exit::Failed, format!("the daemon's KMS key: {error}")))?;
        let recipients = if self.recipients.is_empty() { &wrapped_for.age_recipients } else { &self.recipients };
        let made = kms::make_wrapped(&provider, &*clock, &kms_keys, recipients, self.only_way).await;
        let made = made.map_err(|error| super::super::kms::failed(&error))?;
        Ok(Some(String::from_utf8_lossy(&made.to_json()).into_owned()))
    }
}

pub(super) async fn run(
    client: &Client,
    mut flags: Flags,
    format: Format,
    arguments: RotateMasterArgs,
) -> Result<(), Failure> {
    let RotateMasterArgs { what, escrow, prove_from, without_nodes, age, age_identity, kms_is_the_only_way_back, yes } =
        arguments;
    flags.give(Setting::AgeIdentity, age_identity);
    let workshop = Workshop { flags, recipients: age, only_way: OnlyWay::of_flag(kms_is_the_only_way_back) };
    let escrow = escrow.map(EscrowChoice::from);
    if prove_from.is_some() && !(what.resume || what.destroy_old) {
        let failure =
            Failure::usage("--prove-from goes with --resume or --destroy-old; nothing was asked of the daemon");
        return Err(failure.mend("`containarium admin rotate-master` stages the key that is then to be proven"));
    }
    if what.destroy_old {
        let consent = if yes { Consent::Given } else { Consent::Ask };
        return destroy_old(client, &workshop, format, escrow, prove_from.as_deref(), consent).await;
    }
    if what.abort {
        let answer = followed(|say| async move { client.abort_rotation(say).await }).await;
        return render(format, &given_up(of_request("give the staged key up", answer)?)?);
    }
    let mode = match (what.dry_run, what.resume, what.compromised) {
        (true, _, _) => RotateMasterMode::DryRun,
        (_, true, _) => RotateMasterMode::Resume,
        (_, _, true) => RotateMasterMode::Compromised,
        _ => RotateMasterMode::Start,
    };
    let proof = match &prove_from {
        Some(from) => Some(staged_copy(&keys(client).await?, &workshop, from).await?),
        None => None,
    };
    let wrapped_key = match mode {
        RotateMasterMode::Start | RotateMasterMode::Compromised => workshop.new_key(client).await?,
        RotateMasterMode::Resume | RotateMasterMode::DryRun => None,
    };
    let without_nodes = without_nodes.iter().map(ToString::to_string).collect();
    let request = RotateMasterRequest {
        mode,
        escrow,
        proof,
        without_nodes,
        wrapped_key,
        kms_is_the_only_way_back: workshop.only_way == OnlyWay::Accepted,
    };
    render(format, &of_request("rotate the master key", rotate(client, &request).await)?)
}

/// The run that was to be given up may have ended otherwise in the same moment.
fn given_up(report: RotationReport) -> Result<RotationReport, Failure> {
    if report.end == "aborted" {
        return Ok(report);
    }
    let failure = Failure::new(Exit::Conflict, format!("the key was not given up: the run ended as `{}`", report.end));
    Err(failure.mend(format!("`{SHOWN_BY}` shows the phase; while it is `staged`, ask again")))
}

/// A rotation that is under way and is asked to go on is watched.
async fn rotate(client: &Client, request: &RotateMasterRequest) -> Result<RotationReport, ClientError> {
    let answer = followed(|say| async move { client.rotate_master(request, say).await }).await;
    let watches = request.mode == RotateMasterMode::Resume && request.proof.is_none();
    match answer {
        Err(conflict) if watches && conflict.class() == ErrorClass::Conflict => {
            let seen = followed(|say| async move { client.follow_rotation(say).await }).await;
            seen.map_err(|error| if error.class() == ErrorClass::NotFound { conflict } else { error })
        }
        answer => answer,
    }
}

async fn followed<T, F: Future<Output = T>>(ask: impl FnOnce(Box<dyn FnMut(ProgressLine)>) -> F) -> T {
    progress::shown(|say| ask(Box::new(move |line| drop(say.send_replace(Some(line)))))).await
}

fn of_request<T>(verb: &str, answer: Result<T, ClientError>) -> Result<T, Failure> {
    answer.map_err(|error| {
        let failure = Failure::of_request(&Deed::on_daemon_changing(verb, SHOWN_BY), &error);
        // What stopped it names its own way on; what mends a caller's 403 or a daemon's 503 would lead away from that.
        let mended =
            matches!(&error, ClientError::Problem { detail, .. } if detail.contains("rotate-master --resume`"));
        if mended { failure.mend(format!("`{SHOWN_BY}` shows the phase")) } else { failure }
    })
}

async fn keys(client: &Client) -> Result<RotationKeysAnswer, Failure> {
    let keys = client.rotation_keys().await;
    keys.map_err(|error| Failure::of_request(&Deed::on_daemon("ask for the keys of the rotation"), &error))
}

async fn staged_copy(keys: &RotationKeysAnswer, workshop: &Workshop, from: &Path) -> Result<ProofOfCopy, Failure> {
    let Some(staged) = &keys.staged else {
        let failure = Failure::new(Exit::NotFound, "no master key is staged, so there is nothing to prove");
        return Err(failure.mend("`containarium admin status` shows the phase"));
    };
    copy(from, workshop, &[&staged.kid], &keys.key_file).await
}

/// Reads the copy in this process; the key goes no further.
async fn copy(from: &Path, workshop: &Workshop, wanted: &[&str], key_file: &str) -> Result<ProofOfCopy, Failure> {
    let failed = |error: &ProofError| {
        Failure::new(Exit::Failed, format!("the copy proves nothing: {error}")).mend(match error {
            ProofError::OnlyKms { .. } => {
                "prove it with an age identity that opens it, --age-identity FILE, or accept it: --kms-is-the-only-way-back"
            }
            _ => "copy the key's file off the host, as bytes, and feed that copy back from there with --prove-from FILE",
        })
    };
    let wanted: Vec<Kid> = wanted.iter().filter_map(|kid| Kid::from_hex(kid)).collect();
    let read = match proof::read(from, &wanted, Path::new(key_file)).map_err(|error| failed(&error))? {
        CopyRead::Raw(proof) => proof,
        CopyRead::Wrapped(copy) => {
            let (provider, _) = compose::wrapper(&workshop.config()?);
            copy.opened(&provider, workshop.only_way).await.map_err(|error| failed(&error))?
        }
    };
    let sha256 = data_encoding::HEXLOWER.encode(&read.sha256);
    Ok(ProofOfCopy { kid: read.kid.to_string(), locator: read.locator, sha256 })
}

async fn destroy_old(
    client: &Client,
    workshop: &Workshop,
    format: Format,
    escrow: Option<EscrowChoice>,
    prove_from: Option<&Path>,
    consent: Consent,
) -> Result<(), Failure> {
    let keys = keys(client).await?;
    let Some(oldest) = keys.retired.first() else {
        let failure = Failure::new(Exit::NotFound, "no master key is retired, so there is none to destroy");
        return Err(failure.mend("`containarium admin status` lists the keys"));
    };
    let retired: Vec<&str> = keys.retired.iter().map(|key| key.kid.as_str()).collect();
    let proof = match prove_from {
        Some(from) => Some(copy(from, workshop, &retired, &keys.key_file).await?),
        None => None,
    };
    let kid = proof.as_ref().map_or(&oldest.kid, |proof| &proof.kid).clone();
    let without =
        if escrow == Some(EscrowChoice::WaiveOffHostCopy) { ", without a copy that was read back" } else { "" };
    confirm(&format!("destroy master key {kid} on every node for good{without}"), &kid, consent)?;
    let request = DestroyOldRequest { kid, escrow, proof };
    let answer = followed(|say| {
        let request = &request;
        async move { client.destroy_old_master(request, say).await }
    });
    render(format, &of_request("destroy the old master key", answer.await)?)
}

fn render(format: Format, report: &RotationReport) -> Result<(), Failure> {
    match format {
        Format::Json => print_json(report)?,
        Format::Table => {
            print(text(report).as_bytes())?;
            values(report).print()?;
        }
    }
    if report.problems.is_empty() {
        return Ok(());
    }
    let count = report.problems.len();
    Err(Failure::new(Exit::Failed, format!("a rotation would be stopped by {count} of these"))
        .mend("mend each, as its line says, and try again with `containarium admin rotate-master --dry-run`"))
}

fn text(report: &RotationReport) -> String {
    let mut text = format!("{}\n", plain(&report.end));
    for (title, lines) in [("Done", &report.did), ("Would stop it", &report.problems), ("Left to do", &report.left)] {
        if !lines.is_empty() {
            text.extend([title, ":\n"]);
            text.extend(lines.iter().map(|line| format!("  - {}\n", plain(line))));
        }
    }
    text
}

fn values(report: &RotationReport) -> Table {
    let mut table = Table::new();
    if report.values_to_change.is_empty() {
        return table;
    }
    table.row(["TENANT", "VALUES TO CHANGE", "OLDEST SINCE"]);
    for tenant in &report.values_to_change {
        let oldest = tenant.oldest_updated_at.as_deref().unwrap_or("-");
        table.row([&*tenant.username, &tenant.secrets.to_string(), oldest]);
    }
    if report.more_tenants > 0 {
        table.row(["and further tenants", &report.more_tenants.to_string(), "`containarium admin tenants` lists them"]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_key_that_was_given_up_is_told_as_that() {
        let report = |end: &str| -> RotationReport {
            serde_json::from_value(serde_json::json!({"end": end, "deks": 0, "did": []})).unwrap()
        };
        assert!(given_up(report("aborted")).is_ok());
        for end in ["staged", "rotated", "destroyed", "nothing", "dry-run"] {
            assert!(given_up(report(end)).is_err(), "{end}");
        }
    }
}
