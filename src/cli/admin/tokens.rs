//! `containarium admin token create`, `list`, `revoke`

use std::io::IsTerminal;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::client::Client;
use crate::config::duration;
use crate::model::{Label, NamePattern, Permission, ScopeError, Tenant, TokenError, TokenId};
use crate::wire::tokens::{CreateTokenRequest, RevokeTokensRequest, TokenItem, TokensAnswer};

use super::super::failure::{Deed, Failure};
use super::super::input::{Consent, confirm};
use super::super::output::{Format, Table, note, plain, print, print_json};
use super::super::secrets::endless;
use super::super::settings::invoking_user;

#[derive(Args)]
#[command(subcommand_required = true, arg_required_else_help = true, disable_help_subcommand = true)]
#[command(
    after_help = "Examples:\n  containarium admin token create --name ci --tenant alice --allow read --ttl 90d\n  containarium admin token list"
)]
pub(super) struct TokenArgs {
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Subcommand)]
enum TokenCommand {
    /// Make a token, and print it this once
    ///
    /// A token opens what it is made for, over TCP and on the socket, and never administration. The database keeps a hash of it: one that
    /// was lost is revoked, and another one made.
    #[command(after_help = CREATE_EXAMPLES)]
    Create(CreateArgs),
    /// List the tokens, those that no longer hold too
    #[command(after_help = "Examples:\n  containarium admin token list\n  containarium admin token list -o json")]
    List,
    /// Revoke tokens, on every node within a second
    ///
    /// By id, or all, or those that have a right to a tenant, or those that somebody made. What they have read is known to who had them:
    /// docs/OPERATIONS.md, "Somebody leaves", says what to change.
    #[command(after_help = REVOKE_EXAMPLES)]
    Revoke(RevokeArgs),
}

const CREATE_EXAMPLES: &str = "\
Examples:
  containarium admin token create --name ci --tenant alice --allow read,list --ttl 90d
  containarium admin token create --name app --tenant alice,bob --allow read --names 'DB_*' > /run/app.token";

const REVOKE_EXAMPLES: &str = "\
Examples:
  containarium admin token revoke 1vHcOdlSqGnKyMlf3E5R9P
  containarium admin token revoke --created-by anna
  containarium admin token revoke --all --yes";

#[derive(Args)]
struct CreateArgs {
    /// What people call it: 1 to 64 of A-Z, a-z, 0-9 and . _ - @ : / +
    #[arg(long, value_parser = label)]
    name: Label,
    /// The tenants that it is for
    #[arg(long = "tenant", value_name = "TENANT", required = true, value_delimiter = ',', value_parser = Tenant::parse)]
    tenants: Vec<Tenant>,
    /// What it may do: read (values), list (metadata and versions), write (set and roll back), delete (and undelete), destroy
    #[arg(long, value_name = "PERMISSION", required = true, value_delimiter = ',', value_parser = permission)]
    allow: Vec<Permission>,
    /// For secrets of these names only; * stands for any run of characters [default: every name]
    #[arg(long, value_name = "PATTERN", value_delimiter = ',', value_parser = pattern)]
    names: Vec<NamePattern>,
    /// How long it holds, such as 12h or 90d [default: until it is revoked]
    #[arg(long, value_name = "DURATION", value_parser = ttl)]
    ttl: Option<Duration>,
    /// Who asks for it [default: who called sudo, else the uid]
    #[arg(long, value_name = "WHO", value_parser = label)]
    created_by: Option<Label>,
}

#[derive(Args)]
#[command(group = clap::ArgGroup::new("which").required(true).args(["id", "all", "tenant", "created_by"]))]
struct RevokeArgs {
    /// The token's id: the part between its first and its second _
    #[arg(value_parser = id)]
    id: Option<TokenId>,
    /// Every token
    #[arg(long)]
    all: bool,
    /// Those that have a right to this tenant, others beside it or not
    #[arg(long, value_parser = Tenant::parse)]
    tenant: Option<Tenant>,
    /// Those that this one made
    #[arg(long, value_name = "WHO", value_parser = label)]
    created_by: Option<Label>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

fn label(text: &str) -> Result<Label, TokenError> {
    Label::parse(text)
}

fn permission(text: &str) -> Result<Permission, ScopeError> {
    Permission::parse(text)
}

fn pattern(text: &str) -> Result<NamePattern, ScopeError> {
    NamePattern::parse(text)
}

fn ttl(text: &str) -> Result<Duration, &'static str> {
    let rule = "it must be a duration of at least a second, such as 90s, 12h or 90d";
    duration(text).filter(|ttl| *ttl >= Duration::from_secs(1)).ok_or(rule)
}

/// A whole token in its place would be in the shell's history and in the list of processes.
fn id(text: &str) -> Result<TokenId, String> {
    TokenId::parse(text).map_err(|error| {
        if text.starts_with("ctn_") {
            return "give the id and not the token: the part between its first and its second _".to_owned();
        }
        error.to_string()
    })
}

pub(super) async fn token(client: &Client, format: Format, arguments: TokenArgs) -> Result<(), Failure> {
    match arguments.command {
        TokenCommand::Create(arguments) => create(client, format, arguments).await,
        TokenCommand::List => list(client, format).await,
        TokenCommand::Revoke(arguments) => revoke(client, format, arguments).await,
    }
}

async fn create(client: &Client, format: Format, arguments: CreateArgs) -> Result<(), Failure> {
    let names = arguments.names.iter().map(ToString::to_string).collect::<Vec<_>>();
    // A uid that sudo does not name is the daemon's to find out. A name that breaks the rule is no reason to make no token.
    let created_by = arguments.created_by.or_else(|| Label::parse(&invoking_user()?).ok());
    let request = CreateTokenRequest {
        name: arguments.name.to_string(),
        tenants: arguments.tenants.iter().map(ToString::to_string).collect(),
        allow: arguments.allow.iter().map(ToString::to_string).collect(),
        names: (!names.is_empty()).then_some(names),
        ttl_seconds: arguments.ttl.map(|ttl| ttl.as_secs()),
        created_by: created_by.map(|who| who.to_string()),
    };
    let deed = Deed::on_daemon_changing("make the token", "containarium admin token list");
    let answer = client.create_token(&request).await.map_err(|error| Failure::of_request(&deed, &error))?;
    if format == Format::Json {
        return print_json(&answer);
    }
    let details = &answer.details;
    let until =
        details.expires_at.as_ref().map_or_else(|| "until it is revoked".to_owned(), |at| format!("until {at}"));
    let told = if std::io::stdout().is_terminal() { "the token below" } else { "the token on standard output" };
    note(&plain(&format!("{told} is told this once; it holds {until}, and its id is {}", details.id)));
    print(format!("{}\n", plain(&answer.token)).as_bytes())
}

async fn list(client: &Client, format: Format) -> Result<(), Failure> {
    let failed = |error| Failure::of_request(&Deed::on_daemon("list the tokens"), &error);
    let mut page = client.tokens(None).await.map_err(failed)?;
    let mut all = std::mem::take(&mut page.tokens);
    while let Some(token) = page.next_page_token {
        page = client.tokens(Some(&token)).await.map_err(failed)?;
        if page.next_page_token.as_ref() == Some(&token) {
            return Err(endless());
        }
        all.append(&mut page.tokens);
    }
    match format {
        Format::Json => print_json(&TokensAnswer { tokens: all, next_page_token: None }),
        Format::Table => table(&all).print(),
    }
}

fn table(tokens: &[TokenItem]) -> Table {
    let mut table = Table::new();
    table.row(["ID", "NAME", "STATE", "TENANTS", "ALLOW", "NAMES", "EXPIRES", "USED", "BY"]);
    for token in tokens {
        let names = token.names.as_ref().map_or_else(|| "*".to_owned(), |names| names.join(","));
        let time = |at: &Option<String>| at.clone().unwrap_or_else(|| "-".to_owned());
        table.row([
            &*token.id,
            &token.name,
            &token.state,
            &token.tenants.join(","),
            &token.allow.join(","),
            &names,
            &time(&token.expires_at),
            &time(&token.last_used_at),
            &token.created_by,
        ]);
    }
    table
}

async fn revoke(client: &Client, format: Format, arguments: RevokeArgs) -> Result<(), Failure> {
    let RevokeArgs { id, all, tenant, created_by, yes } = arguments;
    let consent = if yes { Consent::Given } else { Consent::Ask };
    // One token is named by an id that nobody types by accident.
    match (&tenant, &created_by) {
        _ if all => confirm("revoke every token", "all", consent)?,
        (Some(tenant), _) => confirm(&format!("revoke every token of tenant {tenant}"), tenant.as_str(), consent)?,
        (_, Some(who)) => confirm(&format!("revoke every token that {who} made"), who.as_str(), consent)?,
        _ => {}
    }
    let request = RevokeTokensRequest {
        id: id.map(|id| id.to_string()),
        all,
        tenant: tenant.map(|tenant| tenant.to_string()),
        created_by: created_by.map(|who| who.to_string()),
    };
    let deed = Deed::on_daemon_changing("revoke tokens", "containarium admin token list");
    let answer = client.revoke_tokens(&request).await.map_err(|error| Failure::of_request(&deed, &error))?;
    for id in &answer.forged {
        note(&plain(&format!(
            "{id} was not revoked: somebody else than a daemon wrote its row, and it is good for nothing"
        )));
    }
    if format == Format::Json {
        return print_json(&answer);
    }
    let revoked = answer.revoked.iter().map(|token| format!("{}  {}\n", plain(&token.id), plain(&token.name)));
    print(format!("{}\n{}", plain(&answer.message), revoked.collect::<String>()).as_bytes())
}
