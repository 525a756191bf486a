//! The routes that set, read and list secrets. Each: who calls, may they, then the body, then the use-case.

pub(super) mod lifecycle;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::{CONTENT_TYPE, ETAG, IF_MATCH, IF_NONE_MATCH};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::IntoParams;
use zeroize::Zeroizing;

use super::App;
use super::extract::{Caller, Id, Query, SecretPath, TenantPath, read_json, read_json_or_default};
use super::problem::Refused;
use crate::access::Permission;
use crate::model::{
    Action, Delivery, Expect, NameError, SecretName, SecretVersion, Tenant, Which, WriteOutcome, Written,
};
use crate::service::{BatchValues, NewSecret, OpenedSecret, Room};
use crate::wire::{
    self, BatchGetAnswer, BatchGetRequest, BatchSetAnswer, BatchSetItem, BatchSetRequest, ChangeAnswer, GetAnswer,
    ListAnswer, MAX_BATCH, MAX_PAGE, Problem, PutRequest, SecretMetadata, SetRequest, ValueAnswer, page_token,
    page_token_name,
};

#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct PageQuery {
    /// At most 1000, which is also the default; a larger one means 1000.
    page_size: Option<u32>,
    /// `nextPageToken` of the page before.
    page_token: Option<String>,
}

impl PageQuery {
    /// v1's clients send 0 for the default.
    pub(super) fn limit(&self) -> u32 {
        self.page_size.filter(|size| *size > 0).unwrap_or(MAX_PAGE).min(MAX_PAGE)
    }

    pub(super) fn after<T>(&self, parse: impl Fn(&str) -> Result<T, NameError>) -> Result<Option<T>, Refused> {
        // An empty token is v1's first page.
        let Some(token) = self.page_token.as_deref().filter(|token| !token.is_empty()) else { return Ok(None) };
        let name = page_token_name(token).and_then(|name| parse(&name).ok());
        name.map(Some).ok_or_else(|| Refused::invalid("pageToken is not one that this daemon gave"))
    }
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct VersionQuery {
    /// Another version than the current one.
    version: Option<u64>,
}

/// Set a secret.
///
/// An equal value makes no new version. `cas` makes it a compare-and-set.
#[utoipa::path(post, path = "/v1/secrets", tag = "secrets", request_body = SetRequest, responses(
    (status = 200, body = ChangeAnswer),
    (status = 400, body = Problem, content_type = "application/problem+json"),
    (status = 401, description = "Nobody is known by the Authorization header.", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "More requests of one identity or one address than it may make.", body = Problem, content_type = "application/problem+json"),
    (status = 403, body = Problem, content_type = "application/problem+json"),
    (status = 408, description = "The body did not arrive within 30 s.", body = Problem, content_type = "application/problem+json"),
    (status = 412, description = "`cas` does not hold.", body = Problem, content_type = "application/problem+json"),
    (status = 413, description = "The body has more than 409,600 bytes.", body = Problem, content_type = "application/problem+json"),
    (status = 500, body = Problem, content_type = "application/problem+json"),
    (status = 503, body = Problem, content_type = "application/problem+json")))]
pub(super) async fn set(
    State(app): State<App>,
    Id(request): Id,
    Caller(caller): Caller,
    body: Body,
) -> Result<Response, Refused> {
    let body: SetRequest = read_json(body).await?;
    let tenant = Tenant::parse(&body.username).map_err(|error| Refused::invalid(error.to_string()))?;
    let grant = app.service.authorize(&request, &caller, Permission::Write, Action::Set, (&tenant, None)).await?;
    let SetRequest { name, value, value_base64, delivery, cas, .. } = body;
    let new = new_secret(BatchSetItem { name, value, value_base64, delivery, cas })?;
    let written = app.service.set(&request, &grant, new).await?;
    Ok(changed(&written))
}

/// Set a secret, by its path.
///
/// `If-Match: "N"` makes it a compare-and-set; `If-None-Match: *`: the secret must not exist.
#[utoipa::path(put, path = "/v1/secrets/{username}/{name}", tag = "secrets", request_body = PutRequest,
    params(("username" = String, Path), ("name" = String, Path), ("If-Match" = Option<String>, Header), ("If-None-Match" = Option<String>, Header)),
    responses(
    (status = 200, body = ChangeAnswer),
    (status = 400, body = Problem, content_type = "application/problem+json"),
    (status = 401, description = "Nobody is known by the Authorization header.", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "More requests of one identity or one address than it may make.", body = Problem, content_type = "application/problem+json"),
    (status = 403, body = Problem, content_type = "application/problem+json"),
    (status = 408, description = "The body did not arrive within 30 s.", body = Problem, content_type = "application/problem+json"),
    (status = 412, description = "If-Match or If-None-Match does not hold.", body = Problem, content_type = "application/problem+json"),
    (status = 413, body = Problem, content_type = "application/problem+json"),
    (status = 500, body = Problem, content_type = "application/problem+json"),
    (status = 503, body = Problem, content_type = "application/problem+json")))]
pub(super) async fn put(
    State(app): State<App>,
    Id(request): Id,
    Caller(caller): Caller,
    SecretPath(tenant, name): SecretPath,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refused> {
    let grant =
        app.service.authorize(&request, &caller, Permission::Write, Action::Set, (&tenant, Some(&name))).await?;
    let expect = expectation(&headers)?;
    let PutRequest { value, value_base64, delivery } = read_json(body).await?;
    let value = wire::one_value(value, value_base64).map_err(|error| Refused::invalid(error.to_string()))?;
    let new = NewSecret { name, value, expect, delivery: parse_delivery(delivery.as_deref())? };
    let written = app.service.set(&request, &grant, new).await?;
    Ok(changed(&written))
}

/// Read a secret's value: the current version, or the one asked for.
#[utoipa::path(get, path = "/v1/secrets/{username}/{name}", tag = "secrets",
    params(("username" = String, Path), ("name" = String, Path), VersionQuery), responses(
    (status = 200, body = GetAnswer),
    (status = 400, body = Problem, content_type = "application/problem+json"),
    (status = 401, description = "Nobody is known by the Authorization header.", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "More requests of one identity or one address than it may make.", body = Problem, content_type = "application/problem+json"),
    (status = 403, body = Problem, content_type = "application/problem+json"),
    (status = 404, body = Problem, content_type = "application/problem+json"),
    (status = 500, description = "`ciphertext authentication failed`, `quarantined`, or `internal error`.", body = Problem, content_type = "application/problem+json"),
    (status = 503, body = Problem, content_type = "application/problem+json")))]
pub(super) async fn get(
    State(app): State<App>,
    Id(request): Id,
    Caller(caller): Caller,
    SecretPath(tenant, name): SecretPath,
    Query(query): Query<VersionQuery>,
) -> Result<Response, Refused> {
    let grant = app.service.authorize(&request, &caller, Permission::Read, Action::Get, (&tenant, Some(&name))).await?;
    let which = query.version.map(version).transpose()?.map_or(Which::Current, Which::Number);
    let opened = app.service.get(&request, &grant, &name, which).await?;
    let tag = etag(opened.version);
    let json = wire::value_json(&value_answer(&opened)).map_err(|_| internal())?;
    Ok(([(ETAG, tag)], value_body(json)).into_response())
}

/// List a tenant's secrets: metadata only.
#[utoipa::path(get, path = "/v1/secrets/{username}", tag = "secrets", params(("username" = String, Path), PageQuery), responses(
    (status = 200, body = ListAnswer),
    (status = 400, body = Problem, content_type = "application/problem+json"),
    (status = 401, description = "Nobody is known by the Authorization header.", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "More requests of one identity or one address than it may make.", body = Problem, content_type = "application/problem+json"),
    (status = 403, body = Problem, content_type = "application/problem+json"),
    (status = 404, description = "The tenant is unknown.", body = Problem, content_type = "application/problem+json"),
    (status = 500, body = Problem, content_type = "application/problem+json"),
    (status = 503, body = Problem, content_type = "application/problem+json")))]
pub(super) async fn list(
    State(app): State<App>,
    Id(request): Id,
    Caller(caller): Caller,
    TenantPath(tenant): TenantPath,
    Query(page): Query<PageQuery>,
) -> Result<Response, Refused> {
    let grant = app.service.authorize(&request, &caller, Permission::List, Action::List, (&tenant, None)).await?;
    let after = page.after(SecretName::parse)?;
    let page = app.service.list(&request, &grant, after.as_ref(), page.limit()).await?;
    let next_page_token = page.items.last().filter(|_| page.more).map(|last| page_token(last.name.as_str()));
    let secrets = page.items.iter().map(SecretMetadata::of).collect();
    Ok(json(StatusCode::OK, &ListAnswer { secrets, next_page_token }))
}

/// Read many values at once: those named, or all of a tenant that has at most 1000.
#[utoipa::path(post, path = "/v1/secrets/{username}/batch-get", tag = "secrets", request_body = BatchGetRequest,
    params(("username" = String, Path)), responses(
    (status = 200, body = BatchGetAnswer),
    (status = 400, body = Problem, content_type = "application/problem+json"),
    (status = 401, description = "Nobody is known by the Authorization header.", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "More requests of one identity or one address than it may make.", body = Problem, content_type = "application/problem+json"),
    (status = 403, body = Problem, content_type = "application/problem+json"),
    (status = 404, description = "The tenant is unknown.", body = Problem, content_type = "application/problem+json"),
    (status = 408, description = "The body did not arrive within 30 s.", body = Problem, content_type = "application/problem+json"),
    (status = 413, description = "The tenant has more than 1000 secrets, or the body more than 409,600 bytes.", body = Problem, content_type = "application/problem+json"),
    (status = 500, body = Problem, content_type = "application/problem+json"),
    (status = 503, body = Problem, content_type = "application/problem+json")))]
pub(super) async fn batch_get(
    State(app): State<App>,
    Id(request): Id,
    Caller(caller): Caller,
    TenantPath(tenant): TenantPath,
    body: Body,
) -> Result<Response, Refused> {
    let grant = app.service.authorize(&request, &caller, Permission::Read, Action::BatchGet, (&tenant, None)).await?;
    let BatchGetRequest { names } = read_json_or_default(body).await?;
    let names = names.map(|names| distinct_names(&names)).transpose()?;
    let values = app.service.batch_get(&request, &grant, names.as_deref(), MAX_PAGE).await?;
    // The largest takes a second, which no thread that answers others has.
    let answer = tokio::task::spawn_blocking(move || batch_answer(values)).await;
    answer.unwrap_or_else(|_panicked| Err(internal()))
}

fn batch_answer(values: BatchValues) -> Result<Response, Refused> {
    let answers: Vec<ValueAnswer<'_>> = values.secrets.iter().map(value_answer).collect();
    let missing: Vec<String> = values.missing.iter().map(ToString::to_string).collect();
    let json = wire::batch_json(&answers, &missing).map_err(|_| internal())?;
    drop(answers);
    let BatchValues { secrets, mut room, .. } = values;
    drop(secrets);
    room.shrink(json.len());
    Ok(value_body(Roomy { json, room: Some(room) }))
}

/// The JSON of a batch, whose room is free when the connection has taken it.
struct Roomy {
    json: Zeroizing<Vec<u8>>,
    room: Option<Room>,
}

impl Drop for Roomy {
    /// Elsewhere: to wipe the largest takes as long as to make it.
    fn drop(&mut self) {
        let (json, room) = (std::mem::take(&mut self.json), self.room.take());
        // Outside a runtime, at the process's end, it is wiped here.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(move || drop((json, room)));
        }
    }
}

impl AsRef<[u8]> for Roomy {
    fn as_ref(&self) -> &[u8] {
        &self.json
    }
}

/// Set several secrets of one tenant: all, or none.
#[utoipa::path(post, path = "/v1/secrets/{username}/batch-set", tag = "secrets", request_body = BatchSetRequest,
    params(("username" = String, Path)), responses(
    (status = 200, body = BatchSetAnswer),
    (status = 400, body = Problem, content_type = "application/problem+json"),
    (status = 401, description = "Nobody is known by the Authorization header.", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "More requests of one identity or one address than it may make.", body = Problem, content_type = "application/problem+json"),
    (status = 403, body = Problem, content_type = "application/problem+json"),
    (status = 408, description = "The body did not arrive within 30 s.", body = Problem, content_type = "application/problem+json"),
    (status = 412, description = "A `cas` does not hold.", body = Problem, content_type = "application/problem+json"),
    (status = 413, body = Problem, content_type = "application/problem+json"),
    (status = 500, body = Problem, content_type = "application/problem+json"),
    (status = 503, body = Problem, content_type = "application/problem+json")))]
pub(super) async fn batch_set(
    State(app): State<App>,
    Id(request): Id,
    Caller(caller): Caller,
    TenantPath(tenant): TenantPath,
    body: Body,
) -> Result<Response, Refused> {
    let grant = app.service.authorize(&request, &caller, Permission::Write, Action::BatchSet, (&tenant, None)).await?;
    let BatchSetRequest { secrets } = read_json(body).await?;
    batch_size(secrets.len(), "secrets")?;
    let secrets = secrets.into_iter().enumerate().map(batch_item).collect::<Result<Vec<_>, _>>()?;
    all_distinct(secrets.iter().map(|new| &new.name))?;
    let written = app.service.batch_set(&request, &grant, secrets).await?;
    Ok(json(StatusCode::OK, &BatchSetAnswer { results: written.iter().map(change_answer).collect() }))
}

/// A refusal says which item it is about: by its index, and by its name where that is one.
fn batch_item((index, item): (usize, BatchSetItem)) -> Result<NewSecret, Refused> {
    let name = item.name.clone();
    new_secret(item).map_err(|refused| match SecretName::parse(&name) {
        Ok(name) => refused.about(&format!("secrets[{index}], {name}")),
        Err(_) => refused.about(&format!("secrets[{index}]")),
    })
}

fn new_secret(item: BatchSetItem) -> Result<NewSecret, Refused> {
    let name = SecretName::parse(&item.name).map_err(|error| Refused::invalid(error.to_string()))?;
    let value = wire::one_value(item.value, item.value_base64).map_err(|error| Refused::invalid(error.to_string()))?;
    let expect = match item.cas {
        None => Expect::Anything,
        Some(0) => Expect::Absent,
        Some(number) => Expect::Current(version(number)?),
    };
    Ok(NewSecret { name, value, expect, delivery: parse_delivery(item.delivery.as_deref())? })
}

fn parse_delivery(text: Option<&str>) -> Result<Option<Delivery>, Refused> {
    // v1's clients send an empty text for none.
    text.filter(|text| !text.is_empty())
        .map(|text| Delivery::parse(text).map_err(|_| Refused::invalid("delivery is env, file or compose")))
        .transpose()
}

/// RFC 9110, sections 13.1.1 and 13.1.2; versions are the entity tags.
fn expectation(headers: &HeaderMap) -> Result<Expect, Refused> {
    let one = |name| {
        let mut values = headers.get_all(name).iter();
        match (values.next(), values.next()) {
            (None, _) => Ok(None),
            (Some(value), None) => Ok(Some(value.as_bytes())),
            (Some(_), Some(_)) => Err(Refused::invalid("give If-Match and If-None-Match at most once")),
        }
    };
    match (one(IF_MATCH)?, one(IF_NONE_MATCH)?) {
        (None, None) => Ok(Expect::Anything),
        (None, Some(b"*")) => Ok(Expect::Absent),
        (Some(tag), None) => quoted_version(tag)
            .map(Expect::Current)
            .ok_or_else(|| Refused::invalid("If-Match takes one version in quotes, as the ETag has it: \"3\"")),
        (None, Some(_)) => Err(Refused::invalid("If-None-Match takes * only")),
        (Some(_), Some(_)) => Err(Refused::invalid("give If-Match or If-None-Match, not both")),
    }
}

fn quoted_version(tag: &[u8]) -> Option<SecretVersion> {
    let digits = tag.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    SecretVersion::new(std::str::from_utf8(digits).ok()?.parse().ok()?)
}

fn version(number: u64) -> Result<SecretVersion, Refused> {
    SecretVersion::new(number).ok_or_else(|| Refused::invalid("a version is a number from 1"))
}

fn distinct_names(names: &[String]) -> Result<Vec<SecretName>, Refused> {
    batch_size(names.len(), "names")?;
    let parse = |name: &String| SecretName::parse(name).map_err(|error| Refused::invalid(error.to_string()));
    let names = names.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    all_distinct(names.iter())?;
    Ok(names)
}

fn batch_size(size: usize, what: &str) -> Result<(), Refused> {
    if (1..=MAX_BATCH).contains(&size) {
        Ok(())
    } else {
        Err(Refused::invalid(format!("{what} takes 1 to {MAX_BATCH}")))
    }
}

fn all_distinct<'a>(names: impl Iterator<Item = &'a SecretName>) -> Result<(), Refused> {
    let mut seen = std::collections::HashSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(Refused::invalid(format!("{name} is named twice")));
        }
    }
    Ok(())
}

fn value_answer(opened: &OpenedSecret) -> ValueAnswer<'_> {
    // A change of the metadata alone is younger than the version, and the secret's own time is what every other route shows.
    let metadata = if opened.version == opened.secret.current {
        SecretMetadata::of(&opened.secret)
    } else {
        SecretMetadata::of_version(&opened.secret, opened.version, opened.made_at)
    };
    ValueAnswer::new(metadata, &opened.value)
}

fn change_answer(written: &Written) -> ChangeAnswer {
    let version = written.secret.current;
    let message = match written.outcome {
        WriteOutcome::Created => "secret created".to_owned(),
        WriteOutcome::Updated => format!("secret updated to version {version}"),
        WriteOutcome::Unchanged => format!("secret unchanged at version {version}"),
    };
    ChangeAnswer { message, secret: SecretMetadata::of(&written.secret) }
}

fn changed(written: &Written) -> Response {
    let answer = json(StatusCode::OK, &change_answer(written));
    ([(ETAG, etag(written.secret.current))], answer).into_response()
}

fn etag(version: SecretVersion) -> String {
    format!("\"{version}\"")
}

fn internal() -> Refused {
    Refused::new(StatusCode::INTERNAL_SERVER_ERROR, "internal error")
}

/// An answer with values, in memory that is wiped when the connection has taken it.
fn value_body(json: impl AsRef<[u8]> + Send + 'static) -> Response {
    let mut response = Body::from(Bytes::from_owner(json)).into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// An answer without values.
pub(super) fn json(status: StatusCode, answer: &impl Serialize) -> Response {
    match serde_json::to_vec(answer) {
        Ok(body) => (status, [(CONTENT_TYPE, "application/json")], body).into_response(),
        Err(_) => internal().into_response(),
    }
}
