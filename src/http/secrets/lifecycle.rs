//! What becomes of a secret after it was set: its versions listed, rolled back and destroyed; deleted and brought back.

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;

use super::super::App;
use super::super::extract::{Caller, Id, SecretPath, read_json, read_nothing};
use super::super::problem::Refused;
use super::{batch_size, changed, json, version};
use crate::access::Permission;
use crate::model::{Action, SecretRecord, VersionBody, VersionRecord};
use crate::wire::{
    ChangeAnswer, DestroyRequest, Problem, RollbackRequest, SecretMetadata, VersionItem, VersionsAnswer,
};

/// Delete a secret: recoverable until its versions are destroyed.
#[utoipa::path(delete, path = "/v1/secrets/{username}/{name}", tag = "secrets",
    params(("username" = String, Path), ("name" = String, Path)), responses(
    (status = 200, body = ChangeAnswer),
    (status = 400, body = Problem, content_type = "application/problem+json"),
    (status = 401, description = "Nobody is known by the Authorization header.", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "More requests of one identity or one address than it may make.", body = Problem, content_type = "application/problem+json"),
    (status = 403, body = Problem, content_type = "application/problem+json"),
    (status = 404, body = Problem, content_type = "application/problem+json"),
    (status = 408, description = "The body did not arrive within 30 s.", body = Problem, content_type = "application/problem+json"),
    (status = 413, description = "The body has more than 409,600 bytes.", body = Problem, content_type = "application/problem+json"),
    (status = 500, body = Problem, content_type = "application/problem+json"),
    (status = 503, body = Problem, content_type = "application/problem+json")))]
pub(in crate::http) async fn delete(
    State(app): State<App>,
    Id(request): Id,
    Caller(caller): Caller,
    SecretPath(tenant, name): SecretPath,
    body: Body,
) -> Result<Response, Refused> {
    let grant =
        app.service.authorize(&request, &caller, Permission::Delete, Action::Delete, (&tenant, Some(&name))).await?;
    read_nothing(body).await?;
    let secret = app.service.delete(&request, &grant, &name).await?;
    Ok(change("secret deleted".to_owned(), &secret))
}

/// Bring a deleted secret back.
#[utoipa::path(post, path = "/v1/secrets/{username}/{name}/undelete", tag = "secrets",
    params(("username" = String, Path), ("name" = String, Path)), responses(
    (status = 200, body = ChangeAnswer),
    (status = 400, body = Problem, content_type = "application/problem+json"),
    (status = 401, description = "Nobody is known by the Authorization header.", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "More requests of one identity or one address than it may make.", body = Problem, content_type = "application/problem+json"),
    (status = 403, body = Problem, content_type = "application/problem+json"),
    (status = 404, body = Problem, content_type = "application/problem+json"),
    (status = 408, description = "The body did not arrive within 30 s.", body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "It is not deleted.", body = Problem, content_type = "application/problem+json"),
    (status = 413, description = "The body has more than 409,600 bytes.", body = Problem, content_type = "application/problem+json"),
    (status = 500, body = Problem, content_type = "application/problem+json"),
    (status = 503, body = Problem, content_type = "application/problem+json")))]
pub(in crate::http) async fn undelete(
    State(app): State<App>,
    Id(request): Id,
    Caller(caller): Caller,
    SecretPath(tenant, name): SecretPath,
    body: Body,
) -> Result<Response, Refused> {
    let grant =
        app.service.authorize(&request, &caller, Permission::Delete, Action::Undelete, (&tenant, Some(&name))).await?;
    read_nothing(body).await?;
    let secret = app.service.undelete(&request, &grant, &name).await?;
    Ok(change("secret undeleted".to_owned(), &secret))
}

/// List a secret's versions, newest first; of a deleted secret too.
#[utoipa::path(get, path = "/v1/secrets/{username}/{name}/versions", tag = "secrets",
    params(("username" = String, Path), ("name" = String, Path)), responses(
    (status = 200, body = VersionsAnswer),
    (status = 400, body = Problem, content_type = "application/problem+json"),
    (status = 401, description = "Nobody is known by the Authorization header.", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "More requests of one identity or one address than it may make.", body = Problem, content_type = "application/problem+json"),
    (status = 403, body = Problem, content_type = "application/problem+json"),
    (status = 404, body = Problem, content_type = "application/problem+json"),
    (status = 500, body = Problem, content_type = "application/problem+json"),
    (status = 503, body = Problem, content_type = "application/problem+json")))]
pub(in crate::http) async fn versions(
    State(app): State<App>,
    Id(request): Id,
    Caller(caller): Caller,
    SecretPath(tenant, name): SecretPath,
) -> Result<Response, Refused> {
    let grant =
        app.service.authorize(&request, &caller, Permission::List, Action::Versions, (&tenant, Some(&name))).await?;
    let (secret, versions) = app.service.versions(&request, &grant, &name).await?;
    let answer = VersionsAnswer {
        secret: SecretMetadata::of(&secret),
        deleted: secret.deleted_at.is_some(),
        versions: versions.iter().map(version_item).collect(),
    };
    Ok(json(StatusCode::OK, &answer))
}

/// Make a new version with the value of an earlier one.
#[utoipa::path(post, path = "/v1/secrets/{username}/{name}/rollback", tag = "secrets", request_body = RollbackRequest,
    params(("username" = String, Path), ("name" = String, Path)), responses(
    (status = 200, body = ChangeAnswer),
    (status = 400, body = Problem, content_type = "application/problem+json"),
    (status = 401, description = "Nobody is known by the Authorization header.", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "More requests of one identity or one address than it may make.", body = Problem, content_type = "application/problem+json"),
    (status = 403, body = Problem, content_type = "application/problem+json"),
    (status = 404, body = Problem, content_type = "application/problem+json"),
    (status = 408, description = "The body did not arrive within 30 s.", body = Problem, content_type = "application/problem+json"),
    (status = 413, description = "The body has more than 409,600 bytes.", body = Problem, content_type = "application/problem+json"),
    (status = 500, body = Problem, content_type = "application/problem+json"),
    (status = 503, body = Problem, content_type = "application/problem+json")))]
pub(in crate::http) async fn rollback(
    State(app): State<App>,
    Id(request): Id,
    Caller(caller): Caller,
    SecretPath(tenant, name): SecretPath,
    body: Body,
) -> Result<Response, Refused> {
    let grant =
        app.service.authorize(&request, &caller, Permission::Write, Action::Rollback, (&tenant, Some(&name))).await?;
    let RollbackRequest { version: number } = read_json(body).await?;
    let written = app.service.rollback(&request, &grant, &name, version(number)?).await?;
    Ok(changed(&written))
}

/// Destroy versions for good: all that are named, or none.
#[utoipa::path(post, path = "/v1/secrets/{username}/{name}/destroy", tag = "secrets", request_body = DestroyRequest,
    params(("username" = String, Path), ("name" = String, Path)), responses(
    (status = 200, body = ChangeAnswer),
    (status = 400, body = Problem, content_type = "application/problem+json"),
    (status = 401, description = "Nobody is known by the Authorization header.", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "More requests of one identity or one address than it may make.", body = Problem, content_type = "application/problem+json"),
    (status = 403, body = Problem, content_type = "application/problem+json"),
    (status = 404, body = Problem, content_type = "application/problem+json"),
    (status = 408, description = "The body did not arrive within 30 s.", body = Problem, content_type = "application/problem+json"),
    (status = 413, description = "The body has more than 409,600 bytes.", body = Problem, content_type = "application/problem+json"),
    (status = 500, body = Problem, content_type = "application/problem+json"),
    (status = 503, body = Problem, content_type = "application/problem+json")))]
pub(in crate::http) async fn destroy(
    State(app): State<App>,
    Id(request): Id,
    Caller(caller): Caller,
    SecretPath(tenant, name): SecretPath,
    body: Body,
) -> Result<Response, Refused> {
    let grant =
        app.service.authorize(&request, &caller, Permission::Destroy, Action::Destroy, (&tenant, Some(&name))).await?;
    let DestroyRequest { versions } = read_json(body).await?;
    batch_size(versions.len(), "versions")?;
    let mut versions = versions.into_iter().map(version).collect::<Result<Vec<_>, _>>()?;
    versions.sort_unstable();
    versions.dedup();
    let secret = app.service.destroy(&request, &grant, &name, &versions).await?;
    let numbers: Vec<String> = versions.iter().map(ToString::to_string).collect();
    Ok(change(format!("destroyed: version {}", numbers.join(", ")), &secret))
}

fn version_item(version: &VersionRecord) -> VersionItem {
    let (state, destroyed_at) = match &version.body {
        VersionBody::Live { .. } => ("live", None),
        VersionBody::Destroyed { at } => ("destroyed", Some(at.to_string())),
    };
    VersionItem {
        version: version.version.get(),
        state: state.to_owned(),
        created_at: version.created_at.to_string(),
        destroyed_at,
    }
}

fn change(message: String, secret: &SecretRecord) -> Response {
    json(StatusCode::OK, &ChangeAnswer { message, secret: SecretMetadata::of(secret) })
}
