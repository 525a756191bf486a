//! The API over HTTP: the one list of routes, and what every request passes.

mod admin;
mod extract;
mod gate;
mod limits;
pub mod listen;
mod openapi;
mod ops;
mod patience;
mod problem;
mod secrets;
mod stream;
mod unheard;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{CACHE_CONTROL, HeaderName, HeaderValue};
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use crate::clock::Clock;
use crate::crypto::random_id;
use crate::service::{self, Service};
use crate::telemetry::{self, Metrics};

use problem::Refused;

pub use limits::Rates;

/// Where requests come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Surface {
    /// The Unix socket: everything.
    Socket,
    /// TCP: secrets and health. Administration has no routes there.
    Network,
    /// TCP for those who watch: metrics and health, for anybody who reaches it.
    Watchers,
}

/// What the handlers share.
#[derive(Clone)]
pub struct App {
    pub service: Arc<Service>,
    pub metrics: Arc<Metrics>,
    pub clock: Arc<dyn Clock>,
    /// Requests under way, which outlive their connections.
    pub requests: TaskTracker,
    pub surface: Surface,
    pub rates: Arc<Rates>,
    /// How long a whole body may take.
    pub body_time: Duration,
}

/// The routes of a surface; together they are every route there is. openapi.rs describes them, and a test holds the two together.
pub fn router(app: App) -> Router {
    let routes = match app.surface {
        Surface::Socket => health().merge(secret_routes()).merge(watching()).merge(administration()),
        Surface::Network => health().merge(secret_routes()),
        Surface::Watchers => health().merge(watching()),
    };
    routes
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(middleware::from_fn_with_state(app.clone(), every_request))
        .with_state(app)
}

fn health() -> Router<App> {
    Router::new().route("/livez", get(ops::livez)).route("/readyz", get(ops::readyz))
}

fn watching() -> Router<App> {
    Router::new().route("/metrics", get(ops::metrics))
}

fn secret_routes() -> Router<App> {
    Router::new()
        .route("/v1/secrets", post(secrets::set))
        .route("/v1/secrets/{username}", get(secrets::list))
        .route("/v1/secrets/{username}/batch-get", post(secrets::batch_get))
        .route("/v1/secrets/{username}/batch-set", post(secrets::batch_set))
        .route("/v1/secrets/{username}/{name}", get(secrets::get).put(secrets::put).delete(secrets::lifecycle::delete))
        .route("/v1/secrets/{username}/{name}/versions", get(secrets::lifecycle::versions))
        .route("/v1/secrets/{username}/{name}/undelete", post(secrets::lifecycle::undelete))
        .route("/v1/secrets/{username}/{name}/rollback", post(secrets::lifecycle::rollback))
        .route("/v1/secrets/{username}/{name}/destroy", post(secrets::lifecycle::destroy))
}

fn administration() -> Router<App> {
    Router::new()
        .route("/v1/admin/status", get(admin::status))
        .route("/v1/admin/tenants", get(admin::tenants))
        .route("/v1/admin/rotate-master", get(admin::rotation::follow).post(admin::rotation::rotate))
        .route("/v1/admin/rotate-master/abort", post(admin::rotation::abort))
        .route("/v1/admin/rotate-master/destroy-old", post(admin::rotation::destroy_old))
        .route("/v1/admin/rotate-master/keys", get(admin::rotation::keys))
        .route("/v1/admin/rotate-dek", get(admin::deks::follow_rotate).post(admin::deks::rotate))
        .route("/v1/admin/shred", post(admin::deks::shred))
        .route("/v1/admin/quarantine", post(admin::deks::quarantine))
        .route("/v1/admin/nodes", get(admin::nodes::list))
        .route("/v1/admin/nodes/{node}/forget", post(admin::nodes::forget))
        .route("/v1/admin/accept-restore", get(admin::nodes::restore_plan).post(admin::nodes::accept_restore))
        .route("/v1/admin/backup", get(admin::backup::list))
        .route("/v1/admin/backup/push", get(admin::backup::follow_push).post(admin::backup::push))
        .route("/v1/admin/backup/read-back", post(admin::backup::read_back))
        .route("/v1/admin/doctor", get(admin::doctor::doctor))
        .route("/v1/admin/backup/database", post(admin::backup_log::record_database))
        .route("/v1/admin/backup/drill", post(admin::backup_log::record_drill))
        .route("/v1/admin/tokens", get(admin::tokens::list).post(admin::tokens::create))
        .route("/v1/admin/tokens/revoke", post(admin::tokens::revoke))
        .route("/openapi.json", get(openapi::document))
}

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Names the request, lets it finish, counts it, and gives a refusal its body.
///
/// The request runs in a task of its own: a caller who hangs up must not stop a change between its commit and its audit record, and a
/// panic costs one request.
async fn every_request(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let started = app.clock.monotonic();
    let Ok(id) = random_id() else {
        return Refused::new(StatusCode::INTERNAL_SERVER_ERROR, "internal error").render("");
    };
    let method = method_label(request.method());
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let address = request.extensions().get::<extract::Address>().map(|address| address.0);
    let named = service::Request::new(id.clone(), address);
    request.extensions_mut().insert(named.clone());

    // Whatever is logged on the way has the id that the caller is told.
    let span = tracing::info_span!("request", %id);
    let answered = app.requests.spawn(gate::pass(app.clone(), named, request, next).instrument(span)).await;
    let mut response = answered.unwrap_or_else(|_panicked| {
        tracing::error!(request_id = %id, route, "a request ended with a panic");
        Refused::new(StatusCode::INTERNAL_SERVER_ERROR, "internal error").into_response()
    });
    if response.status() == StatusCode::INTERNAL_SERVER_ERROR {
        // Some causes are logged where they are turned into these words; callers are sent here for all of them.
        tracing::error!(request_id = %id, route, "answered 500: {}", problem::detail_of(&response));
    }
    if response.status().is_client_error() || response.status().is_server_error() {
        response = problem::with_body(response, &id);
    }
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, id);
    }
    let took = app.clock.monotonic().saturating_sub(started);
    telemetry::request_answered(&route, method, response.status().as_u16(), took);
    response
}

/// A method as a metric's label: a closed set, since callers choose the text.
const fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}

/// No route: a path with empty or dot segments is a mistake in a name, and is told so. Nothing is normalised.
async fn no_route(State(app): State<App>, uri: Uri) -> Refused {
    let mut segments = uri.path().split('/').skip(1);
    if segments.any(|segment| matches!(segment, "" | "." | "..")) {
        return Refused::new(
            StatusCode::BAD_REQUEST,
            "the path has an empty or a dot segment; a '/' inside a name is never part of one",
        );
    }
    let detail = match app.surface {
        Surface::Socket => "there is no such route; GET /openapi.json lists them",
        Surface::Network => "there is no such route here; administration is on the daemon's Unix socket only",
        Surface::Watchers => "there is no such route here; this address has /metrics, /livez and /readyz",
    };
    Refused::new(StatusCode::NOT_FOUND, detail)
}

async fn no_method() -> Refused {
    Refused::new(StatusCode::METHOD_NOT_ALLOWED, "the route does not take this method; GET /openapi.json lists them")
}
