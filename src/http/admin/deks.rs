//! The life of tenants' DEKs: rotate, shred, quarantine.

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;

use super::super::App;
use super::super::extract::{Caller, Id, read_json};
use super::super::problem::Refused;
use super::super::secrets::json;
use super::super::stream;
use super::tenant_item;
use crate::model::{Action, DekVersion, Tenant};
use crate::service::deks::{QuarantineOrder, Renewal, RotatedDeks, ShredOrder, Shredding, Whose};
use crate::wire::{
    Problem, QuarantineAnswer, QuarantineMode, QuarantineRequest, RotateDekAnswer, RotateDekMode, RotateDekRequest,
    ShredAnswer, ShredMode, ShredRequest, StreamLine,
};

/// Give a tenant, or all, a new DEK; with `reencrypt` also seal everything anew under it.
///
/// Answers NDJSON, a line for each look at it, the last one `done` or `failed`. Hanging up stops nothing; GET follows it.
#[utoipa::path(post, path = "/v1/admin/rotate-dek", tag = "administration", request_body = RotateDekRequest, responses(
    (status = 200, description = "It is under way.", body = StreamLine<RotateDekAnswer>, content_type = "application/x-ndjson"),
    (status = 400, body = Problem, content_type = "application/problem+json"),
    (status = 401, description = "Nobody is known by the Authorization header.", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "More requests of one identity or one address than it may make.", body = Problem, content_type = "application/problem+json"),
    (status = 403, body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "Another one is under way in this daemon.", body = Problem, content_type = "application/problem+json"),
    (status = 503, body = Problem, content_type = "application/problem+json"),
    (status = 408, body = Problem, content_type = "application/problem+json"),
    (status = 413, body = Problem, content_type = "application/problem+json"),
    (status = 500, body = Problem, content_type = "application/problem+json")))]
pub(in crate::http) async fn rotate(
    State(app): State<App>,
    Id(request): Id,
    Caller(caller): Caller,
    body: Body,
) -> Result<Response, Refused> {
    let grant = app.service.authorize_admin(&request, &caller, Action::RotateDek).await?;
    let body: RotateDekRequest = read_json(body).await?;
    let how = match body.mode {
        RotateDekMode::Rotate => Renewal::Rotate,
        RotateDekMode::Reencrypt => Renewal::RotateAndReencrypt,
        RotateDekMode::Resume => Renewal::Reencrypt,
    };
    let whose = whose(&body)?;
    let id = request.id().to_owned();
    let watch = app.service.rotate_deks(request, grant, whose, how).await?;
    Ok(stream::follow(id, watch, rotated))
}

/// Follow the `rotate-dek` that is under way, or see how the last one ended.
#[utoipa::path(get, path = "/v1/admin/rotate-dek", tag = "administration", responses(
    (status = 200, body = StreamLine<RotateDekAnswer>, content_type = "application/x-ndjson"),
    (status = 403, body = Problem, content_type = "application/problem+json"),
    (status = 404, description = "There was none since the daemon started.", body = Problem, content_type = "application/problem+json"),
    (status = 400, body = Problem, content_type = "application/problem+json"),
    (status = 401, description = "Nobody is known by the Authorization header.", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "More requests of one identity or one address than it may make.", body = Problem, content_type = "application/problem+json"),
    (status = 500, body = Problem, content_type = "application/problem+json"),
    (status = 503, body = Problem, content_type = "application/problem+json")))]
pub(in crate::http) async fn follow_rotate(
    State(app): State<App>,
    Id(request): Id,
    Caller(caller): Caller,
) -> Result<Response, Refused> {
    let grant = app.service.authorize_admin(&request, &caller, Action::FollowRotateDek).await?;
    let watch = app.service.follow_rotate_deks(&request, &grant).await?;
    Ok(stream::follow(request.id().to_owned(), watch, rotated))
}

fn whose(body: &RotateDekRequest) -> Result<Whose, Refused> {
    match (&body.username, body.all) {
        (Some(name), false) => any_tenant(name).map(Whose::Tenant),
        (None, true) => Ok(Whose::All),
        _ => Err(Refused::invalid("give `username`, or `all`: true, and not both")),
    }
}

/// An administrator may name the system's tenant too.
fn any_tenant(name: &str) -> Result<Tenant, Refused> {
    Tenant::from_row(name).map_err(|error| Refused::invalid(error.to_string()))
}

fn rotated(done: &RotatedDeks) -> RotateDekAnswer {
    let RotatedDeks { tenants, rotated, reencrypted, removed, quarantined, blocked } = *done;
    RotateDekAnswer { tenants, rotated, reencrypted, removed, quarantined, blocked }
}

/// Block a tenant and destroy its DEKs: after seven days, or now; or cancel that.
#[utoipa::path(post, path = "/v1/admin/shred", tag = "administration", request_body = ShredRequest, responses(
    (status = 200, body = ShredAnswer),
    (status = 400, body = Problem, content_type = "application/problem+json"),
    (status = 401, description = "Nobody is known by the Authorization header.", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "More requests of one identity or one address than it may make.", body = Problem, content_type = "application/problem+json"),
    (status = 403, body = Problem, content_type = "application/problem+json"),
    (status = 404, body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "The tenant is not in a state that this starts from.", body = Problem, content_type = "application/problem+json"),
    (status = 503, body = Problem, content_type = "application/problem+json"),
    (status = 408, body = Problem, content_type = "application/problem+json"),
    (status = 413, body = Problem, content_type = "application/problem+json"),
    (status = 500, body = Problem, content_type = "application/problem+json")))]
pub(in crate::http) async fn shred(
    State(app): State<App>,
    Id(request): Id,
    Caller(caller): Caller,
    body: Body,
) -> Result<Response, Refused> {
    let grant = app.service.authorize_admin(&request, &caller, Action::Shred).await?;
    let body: ShredRequest = read_json(body).await?;
    let tenant = any_tenant(&body.username)?;
    let order = match body.mode {
        ShredMode::Schedule => ShredOrder::Schedule,
        ShredMode::Now => ShredOrder::Now,
        ShredMode::Cancel => ShredOrder::Cancel,
    };
    let shredding = app.service.shred(&request, &grant, &tenant, order).await?;
    Ok(json(StatusCode::OK, &shred_answer(&shredding)))
}

fn shred_answer(shredding: &Shredding) -> ShredAnswer {
    let Shredding { tenant, final_at } = shredding;
    let message = match (tenant.shred_at, tenant.shredded_at) {
        (_, Some(_)) => "tenant shredded".to_owned(),
        (Some(at), None) => format!("tenant blocked until its shred at {at}"),
        (None, None) => "shred cancelled".to_owned(),
    };
    ShredAnswer { message, tenant: tenant_item(tenant), final_at: final_at.map(|at| at.to_string()) }
}

/// Set a DEK aside that does not open, or take one back that does.
#[utoipa::path(post, path = "/v1/admin/quarantine", tag = "administration", request_body = QuarantineRequest, responses(
    (status = 200, body = QuarantineAnswer),
    (status = 400, body = Problem, content_type = "application/problem+json"),
    (status = 401, description = "Nobody is known by the Authorization header.", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "More requests of one identity or one address than it may make.", body = Problem, content_type = "application/problem+json"),
    (status = 403, body = Problem, content_type = "application/problem+json"),
    (status = 404, body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "It opens and was to be set aside, or does not and was to be released.", body = Problem, content_type = "application/problem+json"),
    (status = 503, body = Problem, content_type = "application/problem+json"),
    (status = 408, body = Problem, content_type = "application/problem+json"),
    (status = 413, body = Problem, content_type = "application/problem+json"),
    (status = 500, body = Problem, content_type = "application/problem+json")))]
pub(in crate::http) async fn quarantine(
    State(app): State<App>,
    Id(request): Id,
    Caller(caller): Caller,
    body: Body,
) -> Result<Response, Refused> {
    let grant = app.service.authorize_admin(&request, &caller, Action::QuarantineDek).await?;
    let body: QuarantineRequest = read_json(body).await?;
    let tenant = any_tenant(&body.username)?;
    let version = DekVersion::new(body.dek_version).ok_or_else(|| Refused::invalid("a DEK version is at least 1"))?;
    let (order, done) = match body.mode {
        QuarantineMode::Quarantine => (QuarantineOrder::SetAside, "DEK quarantined"),
        QuarantineMode::Release => (QuarantineOrder::Release, "DEK released"),
    };
    let dek = app.service.quarantine(&request, &grant, &tenant, version, order).await?;
    let answer = QuarantineAnswer {
        message: done.to_owned(),
        username: dek.tenant.to_string(),
        dek_version: dek.version.get(),
        state: dek.body.state().to_string(),
    };
    Ok(json(StatusCode::OK, &answer))
}
