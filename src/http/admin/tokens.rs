//! Tokens: make, list, revoke.

use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;

use super::super::App;
use super::super::extract::{Caller, Id, Query, read_json};
use super::super::problem::Refused;
use super::super::secrets::{PageQuery, json};
use crate::model::{Action, Label, NamePattern, Names, Permission, Scope, Tenant, TokenId, TokenRecord, WhichTokens};
use crate::service::{TokenOrder, TokenState};
use crate::wire::tokens::{
    CreateTokenAnswer, CreateTokenRequest, RevokeTokensAnswer, RevokeTokensRequest, TokenItem, TokensAnswer,
};
use crate::wire::{Problem, page_token};

/// Make a token. It is told in the answer, and never again.
#[utoipa::path(post, path = "/v1/admin/tokens", tag = "administration", request_body = CreateTokenRequest, responses(
    (status = 200, body = CreateTokenAnswer),
    (status = 400, body = Problem, content_type = "application/problem+json"),
    (status = 401, description = "Nobody is known by the Authorization header.", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "More requests of one identity or one address than it may make.", body = Problem, content_type = "application/problem+json"),
    (status = 403, body = Problem, content_type = "application/problem+json"),
    (status = 408, body = Problem, content_type = "application/problem+json"),
    (status = 413, body = Problem, content_type = "application/problem+json"),
    (status = 500, body = Problem, content_type = "application/problem+json"),
    (status = 503, body = Problem, content_type = "application/problem+json")))]
pub(in crate::http) async fn create(
    State(app): State<App>,
    Id(request): Id,
    Caller(caller): Caller,
    body: Body,
) -> Result<Response, Refused> {
    let grant = app.service.authorize_admin(&request, &caller, Action::TokenCreate).await?;
    let order = order(&read_json(body).await?)?;
    let made = app.service.create_token(&request, &grant, order).await?;
    let answer = CreateTokenAnswer {
        message: format!("token {} made; it is told this once", made.token.id),
        token: made.text.to_string(),
        details: item(&made.token, TokenState::Good),
    };
    Ok(json(StatusCode::OK, &answer))
}

fn order(request: &CreateTokenRequest) -> Result<TokenOrder, Refused> {
    let invalid = |error: String| Refused::invalid(error);
    let label = |text: &str| Label::parse(text).map_err(|error| invalid(error.to_string()));
    let tenants: Result<Vec<_>, _> = request.tenants.iter().map(|tenant| Tenant::parse(tenant)).collect();
    let tenants = tenants.map_err(|error| invalid(error.to_string()))?;
    let allow: Result<Vec<_>, _> = request.allow.iter().map(|word| Permission::parse(word)).collect();
    let allow = allow.map_err(|error| invalid(error.to_string()))?;
    let names = match &request.names {
        None => Names::Any,
        Some(patterns) => {
            let patterns: Result<_, _> = patterns.iter().map(|pattern| NamePattern::parse(pattern)).collect();
            Names::Like(patterns.map_err(|error| invalid(error.to_string()))?)
        }
    };
    Ok(TokenOrder {
        name: label(&request.name)?,
        scope: Scope::new(tenants, allow, names).map_err(|error| invalid(error.to_string()))?,
        ttl: request.ttl_seconds.map(Duration::from_secs),
        created_by: request.created_by.as_deref().map(label).transpose()?,
    })
}

/// Tokens by id, those that no longer hold too.
#[utoipa::path(get, path = "/v1/admin/tokens", tag = "administration", params(PageQuery), responses(
    (status = 200, body = TokensAnswer),
    (status = 400, body = Problem, content_type = "application/problem+json"),
    (status = 401, description = "Nobody is known by the Authorization header.", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "More requests of one identity or one address than it may make.", body = Problem, content_type = "application/problem+json"),
    (status = 403, body = Problem, content_type = "application/problem+json"),
    (status = 500, body = Problem, content_type = "application/problem+json"),
    (status = 503, body = Problem, content_type = "application/problem+json")))]
pub(in crate::http) async fn list(
    State(app): State<App>,
    Id(request): Id,
    Caller(caller): Caller,
    Query(page): Query<PageQuery>,
) -> Result<Response, Refused> {
    let grant = app.service.authorize_admin(&request, &caller, Action::TokenList).await?;
    // Any text: the id of a row that somebody else wrote may be anything, and the page after it is to be had too.
    let after = page.after(|text| Ok(text.to_owned()))?;
    let page = app.service.tokens(&request, &grant, after.as_deref(), page.limit()).await?;
    let next_page_token = page.items.last().filter(|_| page.more).map(|last| page_token(&last.token.id));
    let tokens = page.items.iter().map(|listed| item(&listed.token, listed.state)).collect();
    Ok(json(StatusCode::OK, &TokensAnswer { tokens, next_page_token }))
}

/// Revoke one token, or all, or those of a tenant or of who made them. Within a second no node lets one of them in.
#[utoipa::path(post, path = "/v1/admin/tokens/revoke", tag = "administration", request_body = RevokeTokensRequest, responses(
    (status = 200, description = "They are revoked; those that were so before are not named.", body = RevokeTokensAnswer),
    (status = 400, body = Problem, content_type = "application/problem+json"),
    (status = 401, description = "Nobody is known by the Authorization header.", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "More requests of one identity or one address than it may make.", body = Problem, content_type = "application/problem+json"),
    (status = 403, body = Problem, content_type = "application/problem+json"),
    (status = 404, description = "No token has this id.", body = Problem, content_type = "application/problem+json"),
    (status = 408, body = Problem, content_type = "application/problem+json"),
    (status = 413, body = Problem, content_type = "application/problem+json"),
    (status = 500, body = Problem, content_type = "application/problem+json"),
    (status = 503, body = Problem, content_type = "application/problem+json")))]
pub(in crate::http) async fn revoke(
    State(app): State<App>,
    Id(request): Id,
    Caller(caller): Caller,
    body: Body,
) -> Result<Response, Refused> {
    let grant = app.service.authorize_admin(&request, &caller, Action::TokenRevoke).await?;
    let which = which(&read_json(body).await?)?;
    let done = app.service.revoke_tokens(&request, &grant, &which).await?;
    let message = match done.tokens.len() {
        0 => "no token was revoked: there was none, or it was revoked before".to_owned(),
        1 => "1 token revoked".to_owned(),
        number => format!("{number} tokens revoked"),
    };
    let revoked = done.tokens.iter().map(|token| item(token, TokenState::Revoked)).collect();
    Ok(json(StatusCode::OK, &RevokeTokensAnswer { message, revoked, forged: done.forged }))
}

fn which(request: &RevokeTokensRequest) -> Result<WhichTokens, Refused> {
    let RevokeTokensRequest { id, all, tenant, created_by } = request;
    match (id, all, tenant, created_by) {
        (Some(id), false, None, None) => {
            TokenId::parse(id).map(|id| WhichTokens::Ids(vec![id])).map_err(|error| error.to_string())
        }
        (None, true, None, None) => Ok(WhichTokens::All),
        (None, false, Some(tenant), None) => {
            Tenant::parse(tenant).map(WhichTokens::OfTenant).map_err(|error| error.to_string())
        }
        (None, false, None, Some(who)) => {
            Label::parse(who).map(WhichTokens::CreatedBy).map_err(|error| error.to_string())
        }
        _ => Err("give one of `id`, `all`: true, `tenant` and `createdBy`".to_owned()),
    }
    .map_err(Refused::invalid)
}

fn item(token: &TokenRecord, state: TokenState) -> TokenItem {
    let words = |column: &str| column.split(',').map(str::to_owned).collect();
    let time = |at: Option<crate::model::Micros>| at.map(|at| at.to_string());
    TokenItem {
        id: token.id.clone(),
        name: token.name.clone(),
        state: state.as_str().to_owned(),
        tenants: words(&token.tenants),
        allow: words(&token.permissions),
        names: (!token.names.is_empty()).then(|| words(&token.names)),
        created_at: token.created_at.to_string(),
        created_by: token.created_by.clone(),
        expires_at: time(token.expires_at),
        revoked_at: time(token.revoked_at),
        last_used_at: time(token.last_used_at),
    }
}
