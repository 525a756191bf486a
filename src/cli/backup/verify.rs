//! `containarium backup verify`

use clap::Args;
use serde::Serialize;

use crate::client::{Client, ClientError};
use crate::compose;
use crate::config::Config;
use crate::service::backup::verify::{
    Blame, Brought, Unproven, Verified, VerifyError, verify as read_back, verify_copy,
};
use crate::service::backup::{BadCopy, Class};
use crate::service::kms::OnlyWay;
use crate::wire::backup::{ReadBackItem, ReadBackRequest, TroubleItem, UnreadItem};

use super::super::failure::{Deed, Exit, Failure};
use super::super::output::{Format, Table, note, print_json};
use super::super::settings::{OutputArgs, SettingsArgs};
use super::copy::{Copy, CopyArgs, config};
use super::{exit, read_back_item, trouble_item};

#[derive(Args)]
pub(super) struct VerifyArgs {
    #[command(flatten)]
    copy: CopyArgs,
    /// Let a wrapped copy count although nothing but one KMS key is known to open it
    #[arg(long)]
    kms_is_the_only_way_back: bool,
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// `backup verify -o json`
#[derive(Serialize)]
struct VerifiedAnswer {
    /// Read back and found right.
    good: Vec<ReadBackItem>,
    bad: Vec<BadItem>,
    /// Whether a running daemon recorded it.
    recorded: bool,
}

#[derive(Serialize)]
struct BadItem {
    kid: String,
    secret: String,
    trouble: TroubleItem,
}

pub(super) async fn verify(arguments: VerifyArgs) -> Result<(), Failure> {
    let format = arguments.output.format();
    let copy = arguments.copy.open().await?;
    let config = config(arguments.settings)?;
    let only_way = OnlyWay::of_flag(arguments.kms_is_the_only_way_back);
    let verified = compare(&config, copy, only_way).await?;
    let good: Vec<ReadBackItem> = verified.good.iter().map(read_back_item).collect();
    let request = ReadBackRequest { copies: good.clone(), unread: verified.unread.iter().map(unread_item).collect() };
    let has_news = !(request.copies.is_empty() && request.unread.is_empty());
    let recorded = if has_news { record(&config, &request).await? } else { false };
    match format {
        Format::Json => {
            print_json(&VerifiedAnswer { good, bad: verified.bad.iter().map(bad_item).collect(), recorded })?;
        }
        Format::Table => table(&verified).print()?,
    }
    if has_news && !recorded {
        note("no daemon runs here, so how the copies came out is not recorded; run it again beside the daemon");
    }
    failure(&verified.bad).map_or(Ok(()), Err)
}

async fn compare(config: &Config, copy: Option<Copy>, only_way: OnlyWay) -> Result<Verified, Failure> {
    let reader = compose::reader(config).await.map_err(|error| {
        Failure::new(Exit::Unavailable, error.to_string())
            .mend("run it with the daemon's settings; `containarium config show` prints them")
    })?;
    let verified = match copy {
        None => read_back(&*reader.store, &reader.destinations, &reader.provider, only_way).await,
        Some(mut copy) => {
            let (locator, provider) = (copy.locator(), reader.provider.with_identity(copy.identity.as_deref()));
            let brought = Brought {
                file: &mut copy.file,
                identity: copy.identity.as_deref(),
                provider: &provider,
                only_way,
                locator,
            };
            let one = verify_copy(&*reader.store, &reader.files.path(), brought).await;
            one.map(|good| Verified { good: vec![good], ..Verified::default() })
        }
    };
    reader.store.close().await;
    verified.map_err(|error| failed(&error))
}

fn failed(error: &VerifyError) -> Failure {
    let mend = match error {
        VerifyError::Store(_) | VerifyError::NoKey => {
            "see that the database runs, and that these are the daemon's settings (`containarium config show`)"
        }
        VerifyError::NotConfigured => {
            "name a secret in `[backup.gcp] secrets`, or the copy to read: `containarium backup verify --from FILE`"
        }
        VerifyError::Identity(_) => "name an identity file as age-keygen writes it: --identity FILE",
        VerifyError::Copy(_) => "mend the copy as said, or make another: `containarium backup export`",
        VerifyError::Image(_) => "that copy is worth nothing; make another: `containarium backup export`",
        VerifyError::BesideKeyFile { .. } => {
            "feed it back from where it is kept: `ssh HOST cat FILE | containarium backup verify --from -`"
        }
        VerifyError::NotOpened(_) => {
            "give what opens it: --identity FILE with an identity of its age recipient, or credentials that may decrypt with its KMS key"
        }
        VerifyError::OnlyKms { .. } => {
            "prove it with an age identity that opens it, --identity FILE, or accept it: --kms-is-the-only-way-back"
        }
        VerifyError::Unknown { .. } => {
            "it is another deployment's key, or these are another daemon's settings (`containarium config show`)"
        }
    };
    Failure::new(exit(error.class()), error.to_string()).mend(mend)
}

fn failure(bad: &[Unproven]) -> Option<Failure> {
    let first = bad.first()?;
    let lines: Vec<String> = bad
        .iter()
        .map(|bad| format!("no proven copy of master key {} in {}: {}", bad.kid, bad.secret, bad.trouble.why))
        .collect();
    let mend = match (first.blame, first.trouble.class) {
        (_, Class::Denied) => {
            "run it with credentials that may read the copies (the restore identity), and of wrapped ones with an age identity, --age-identity \
             FILE, or credentials that may decrypt too"
        }
        (_, Class::Unavailable) => "try again; nothing was changed",
        (Blame::Way, Class::NotFound | Class::Invalid) => {
            "see that `[backup.gcp]` names the secret and the endpoint that are meant (`containarium config show`), then verify again"
        }
        (Blame::Way, _) => {
            "nothing was learnt of the copy, which may be good: see what answers there (`containarium config show` prints the endpoint), \
             then verify again"
        }
        (Blame::Opener, _) => {
            "give what opens it, --age-identity FILE, and see how the key files do: `containarium kms status`. What nothing opens any more is \
             no copy: make one that opens while a key file does, `containarium kms rewrap` and `containarium backup push`, then verify again"
        }
        (Blame::OnlyKms, _) => {
            "prove it with an age identity that opens it, --age-identity FILE, or accept it: `containarium backup verify \
             --kms-is-the-only-way-back`"
        }
        (Blame::Copy, _) => "make a good copy: `containarium backup push`, then verify again",
    };
    Some(Failure::new(exit(first.trouble.class), lines.join("\n")).mend(mend))
}

/// False where no daemon runs. What it refuses is a failure.
async fn record(config: &Config, request: &ReadBackRequest) -> Result<bool, Failure> {
    let client = Client::new(config.socket.clone());
    match client.backup_read_back(request).await {
        Ok(_) => Ok(true),
        Err(ClientError::NoDaemon { .. } | ClientError::NoConnection { .. }) => Ok(false),
        Err(error) => {
            let deed = Deed::on_daemon_changing("record how the copies came out", "containarium backup list");
            Err(Failure::of_request(&deed, &error))
        }
    }
}

fn unread_item(bad: &BadCopy) -> UnreadItem {
    UnreadItem { kid: bad.kid.to_string(), locator: bad.locator.clone(), why: bad.why.clone() }
}

fn bad_item(bad: &Unproven) -> BadItem {
    BadItem { kid: bad.kid.to_string(), secret: bad.secret.clone(), trouble: trouble_item(&bad.trouble) }
}

fn table(verified: &Verified) -> Table {
    let mut table = Table::new();
    table.row(["KEY", "READ BACK", "COPY"]);
    for good in &verified.good {
        table.row([&*good.kid.to_string(), "yes", good.locator.as_deref().unwrap_or("standard input")]);
    }
    for bad in &verified.bad {
        table.row([&*bad.kid.to_string(), "NO", &bad.secret]);
    }
    table
}
