//! `containarium secrets …`

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};

use crate::client::{Client, ClientError};
use crate::model::{Delivery, NameError, SecretName, SecretVersion, Tenant};
use crate::wire::{ChangeAnswer, SecretMetadata, SetBody, ValueAnswer, VersionsAnswer, value_json};

use super::failure::{Deed, DeedKind, Exit, Failure};
use super::input::{Consent, ValueArgs, confirm};
use super::output::{Format, Reader, Table, note, print, print_json, print_json_text, value_bytes};
use super::settings::{ClientArgs, ServerArgs};

#[derive(Args)]
#[command(subcommand_required = true, arg_required_else_help = true, disable_help_subcommand = true)]
#[command(after_help = EXAMPLES)]
pub(super) struct SecretsArgs {
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    server: ServerArgs,
    #[command(subcommand)]
    command: SecretsCommand,
}

/// A secret's place.
#[derive(Args)]
struct Place {
    /// The tenant: 1 to 64 of a-z, 0-9, '.', '_' and '-', starting and ending with a letter or digit
    #[arg(value_parser = tenant)]
    tenant: Tenant,
    /// The secret's name: 1 to 128 of A-Z, 0-9 and '_', not starting with a digit
    #[arg(value_parser = name)]
    name: SecretName,
}

#[derive(Subcommand)]
enum SecretsCommand {
    /// Set a secret's value
    ///
    /// The value is read from standard input, from a file, or from a hidden prompt on a terminal (one line, asked once). It may be any
    /// bytes, at most 65536. Setting the same value again makes no new version.
    #[command(after_help = SET_EXAMPLES)]
    Set(SetArgs),
    /// Print a secret's value
    ///
    /// Prints the bytes as they are, with a newline only on a terminal. With -o json the answer has the metadata too, and the value
    /// as `value` where it is UTF-8, else as `value_base64`.
    #[command(after_help = GET_EXAMPLES)]
    Get {
        #[command(flatten)]
        place: Place,
        /// Print this version instead of the current one
        #[arg(long = "version", value_name = "N", value_parser = version)]
        number: Option<SecretVersion>,
    },
    /// List a tenant's secrets, without their values
    #[command(after_help = "Examples:\n  containarium secrets list alice\n  containarium secrets list alice -o json")]
    List {
        /// The tenant: 1 to 64 of a-z, 0-9, '.', '_' and '-', starting and ending with a letter or digit
        #[arg(value_parser = tenant)]
        tenant: Tenant,
    },
    /// Delete a secret; undelete brings it back
    #[command(after_help = "Examples:\n  containarium secrets delete alice OPENAI_API_KEY")]
    Delete(Place),
    /// Bring a deleted secret back
    #[command(after_help = "Examples:\n  containarium secrets undelete alice OPENAI_API_KEY")]
    Undelete(Place),
    /// List a secret's versions, of a deleted secret too
    #[command(after_help = "Examples:\n  containarium secrets versions alice OPENAI_API_KEY")]
    Versions(Place),
    /// Make an earlier version's value the newest version
    ///
    /// The numbering goes on: rolling back to version 2 of 5 makes version 6.
    #[command(after_help = "Examples:\n  containarium secrets rollback alice OPENAI_API_KEY 2")]
    Rollback {
        #[command(flatten)]
        place: Place,
        /// The version whose value comes back
        #[arg(value_parser = version)]
        version: SecretVersion,
    },
    /// Destroy versions of a secret for good
    ///
    /// Their ciphertexts are removed, of a deleted secret too; nothing brings them back but a backup. Their numbers are never used again.
    #[command(after_help = DESTROY_EXAMPLES)]
    Destroy {
        #[command(flatten)]
        place: Place,
        /// The versions to destroy: all of them, or none where one is unknown
        #[arg(value_name = "VERSION", required = true, num_args = 1..=1000, value_parser = version)]
        versions: Vec<SecretVersion>,
        /// Do it without asking for the name
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Args)]
struct SetArgs {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    value: ValueArgs,
    /// How a deliverer of secrets hands it on; stored and shown, no more [default: what the secret has, or env]
    #[arg(long, value_name = "HOW", value_parser = delivery())]
    delivery: Option<Delivery>,
    /// Set it only if version N is current; 0: only if there is no such secret
    #[arg(long, value_name = "N")]
    cas: Option<u64>,
}

const EXAMPLES: &str = "\
Examples:
  printf %s \"$KEY\" | containarium secrets set alice OPENAI_API_KEY
  containarium secrets get alice OPENAI_API_KEY
  containarium secrets list alice";

const SET_EXAMPLES: &str = "\
Examples:
  printf %s \"$KEY\" | containarium secrets set alice OPENAI_API_KEY
  containarium secrets set alice TLS_KEY --from-file key.pem
  containarium secrets set alice DB_PASSWORD --cas 3";

const GET_EXAMPLES: &str = "\
Examples:
  containarium secrets get alice OPENAI_API_KEY
  containarium secrets get alice TLS_KEY --version 2 > key.pem";

const DESTROY_EXAMPLES: &str = "\
Examples:
  containarium secrets destroy alice OPENAI_API_KEY 1 2
  containarium secrets destroy alice OPENAI_API_KEY 3 --yes";

// A parser's error is the rule itself: clap writes it, and the word that broke it is left out.

fn tenant(text: &str) -> Result<Tenant, NameError> {
    Tenant::parse(text)
}

fn name(text: &str) -> Result<SecretName, NameError> {
    SecretName::parse(text)
}

fn version(text: &str) -> Result<SecretVersion, &'static str> {
    text.parse().ok().and_then(SecretVersion::new).ok_or("a version is a number from 1")
}

fn delivery() -> impl TypedValueParser<Value = Delivery> {
    let words = Delivery::ALL.iter().map(|delivery| delivery.as_str());
    PossibleValuesParser::new(words).try_map(|word| Delivery::parse(&word))
}

pub(super) async fn run(arguments: SecretsArgs) -> Result<(), Failure> {
    let format = arguments.client.format();
    let client = arguments.server.client(arguments.client)?;
    match arguments.command {
        SecretsCommand::Set(arguments) => set(&client, format, arguments).await,
        SecretsCommand::Get { place, number } => get(&client, format, &place, number).await,
        SecretsCommand::List { tenant } => list(&client, format, &tenant).await,
        SecretsCommand::Delete(place) => {
            let answer = client.delete(&place.tenant, &place.name).await;
            changed(format, &place.deed(DeedKind::Change, "delete"), answer)
        }
        SecretsCommand::Undelete(place) => {
            let answer = client.undelete(&place.tenant, &place.name).await;
            changed(format, &place.deed(DeedKind::Change, "undelete"), answer)
        }
        SecretsCommand::Versions(place) => versions(&client, format, &place).await,
        SecretsCommand::Rollback { place, version } => {
            let answer = client.rollback(&place.tenant, &place.name, version).await;
            changed(format, &place.deed(DeedKind::Change, "roll back"), answer)
        }
        SecretsCommand::Destroy { place, versions, yes } => {
            let consent = if yes { Consent::Given } else { Consent::Ask };
            destroy(&client, format, &place, &versions, consent).await
        }
    }
}

impl Place {
    fn deed(&self, kind: DeedKind, verb: &str) -> Deed<'_> {
        Deed::on_secret(kind, verb, &self.tenant, &self.name)
    }
}

async fn set(client: &Client, format: Format, arguments: SetArgs) -> Result<(), Failure> {
    let SetArgs { place, value, delivery, cas } = arguments;
    let value = value.read(&place.tenant, &place.name)?;
    let body = SetBody::new(&place.tenant, &place.name, &value).delivery(delivery).cas(cas);
    let answer = client.set(&body).await;
    changed(format, &place.deed(DeedKind::Change, "set"), answer)
}

async fn get(client: &Client, format: Format, place: &Place, version: Option<SecretVersion>) -> Result<(), Failure> {
    let fetched = client.get(&place.tenant, &place.name, version).await;
    let fetched = fetched.map_err(|error| Failure::of_request(&place.deed(DeedKind::Read, "get"), &error))?;
    match format {
        Format::Table => print(&value_bytes(&fetched.value, Reader::of_stdout())?),
        Format::Json => {
            let json = value_json(&ValueAnswer::new(fetched.secret, &fetched.value));
            // serde_json's error could quote the value.
            print_json_text(&json.map_err(|_| Failure::new(Exit::Failed, "the answer cannot be written as JSON"))?)
        }
    }
}

async fn list(client: &Client, format: Format, tenant: &Tenant) -> Result<(), Failure> {
    let failed = |error| Failure::of_request(&Deed::on_tenant("list the secrets of", tenant), &error);
    let mut page = client.list(tenant, None).await.map_err(failed)?;
    let mut all = Vec::new();
    let mut table = Table::new();
    table.row(["NAME", "VERSION", "DELIVERY", "CREATED", "UPDATED"]);
    loop {
        match format {
            Format::Json => all.append(&mut page.secrets),
            // A page at a time: the first rows are there before the last have been asked for.
            Format::Table => std::mem::replace(&mut table, Table::new()).with_secrets(&page.secrets).print()?,
        }
        let Some(token) = page.next_page_token else { break };
        page = client.list(tenant, Some(&token)).await.map_err(failed)?;
        if page.next_page_token.as_ref() == Some(&token) {
            return Err(endless());
        }
    }
    match format {
        Format::Json => print_json(&crate::wire::ListAnswer { secrets: all, next_page_token: None }),
        Format::Table => Ok(()),
    }
}

/// A page that names itself as the next would be asked for until the end of time.
pub(super) fn endless() -> Failure {
    Failure::new(Exit::Failed, "the daemon's pages go in a circle; the list is not complete")
        .mend("compare `containarium --version` with the daemon's release")
}

impl Table {
    fn with_secrets(mut self, secrets: &[SecretMetadata]) -> Self {
        for secret in secrets {
            let version = secret.version.to_string();
            self.row([&*secret.name, &version, &secret.delivery, &secret.created_at, &secret.updated_at]);
        }
        self
    }
}

async fn versions(client: &Client, format: Format, place: &Place) -> Result<(), Failure> {
    let answer = client.versions(&place.tenant, &place.name).await;
    let deed = place.deed(DeedKind::Read, "list the versions of");
    let answer = answer.map_err(|error| Failure::of_request(&deed, &error))?;
    if format == Format::Json {
        return print_json(&answer);
    }
    versions_table(&answer).print()?;
    if answer.deleted {
        let Place { tenant, name } = place;
        note(&format!("the secret is deleted; `containarium secrets undelete {tenant} {name}` brings it back"));
    }
    Ok(())
}

pub(super) fn versions_table(answer: &VersionsAnswer) -> Table {
    let mut table = Table::new();
    table.row(["VERSION", "STATE", "CREATED", "DESTROYED"]);
    for item in &answer.versions {
        let version = item.version.to_string();
        table.row([&*version, &item.state, &item.created_at, item.destroyed_at.as_deref().unwrap_or("-")]);
    }
    table
}

async fn destroy(
    client: &Client,
    format: Format,
    place: &Place,
    versions: &[SecretVersion],
    consent: Consent,
) -> Result<(), Failure> {
    let Place { tenant, name } = place;
    let numbers = versions.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    confirm(&format!("destroy version {numbers} of {tenant}/{name} for good"), name.as_str(), consent)?;
    let answer = client.destroy(tenant, name, versions).await;
    changed(format, &place.deed(DeedKind::Change, "destroy versions of"), answer)
}

fn changed(format: Format, deed: &Deed<'_>, answer: Result<ChangeAnswer, ClientError>) -> Result<(), Failure> {
    let answer = answer.map_err(|error| Failure::of_request(deed, &error))?;
    match format {
        Format::Json => print_json(&answer),
        Format::Table => {
            let secret = &answer.secret;
            let line = format!("{}/{}: {}", secret.username, secret.name, answer.message);
            print(format!("{}\n", super::output::plain(&line)).as_bytes())
        }
    }
}
