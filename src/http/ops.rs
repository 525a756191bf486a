//! What operators and their machines ask: alive, ready, metrics.

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};

use super::secrets::json;
use super::{App, Surface};
use crate::model::KeyPhase;
use crate::service::doctor::{BackupTimes, NAMES};
use crate::telemetry::{BackupGauges, KeyGauges, backup_gauges, check_gauges, issuer_keys, key_gauges, kms_proven};
use crate::wire::HealthAnswer;

/// The process serves.
#[utoipa::path(get, path = "/livez", tag = "operations",
    responses(
    (status = 200, description = "The process serves.", body = HealthAnswer),
    (status = 400, body = crate::wire::Problem, content_type = "application/problem+json"),
    (status = 429, description = "More requests of one identity or one address than it may make.", body = crate::wire::Problem, content_type = "application/problem+json")))]
pub(super) async fn livez() -> Response {
    json(StatusCode::OK, &HealthAnswer { status: "ok".to_owned(), waiting_for: Vec::new(), warnings: Vec::new() })
}

/// Secrets can be read and written; if not, what is waited for. Until a copy of the master key off the host is confirmed it warns, and
/// where somebody wrote into the audit trail or one of its sinks fails.
#[utoipa::path(get, path = "/readyz", tag = "operations", responses(
    (status = 200, description = "Secrets can be read and written.", body = HealthAnswer),
    (status = 400, body = crate::wire::Problem, content_type = "application/problem+json"),
    (status = 429, description = "More requests of one identity or one address than it may make.", body = crate::wire::Problem, content_type = "application/problem+json"),
    (status = 503, description = "Not yet, or not now.", body = HealthAnswer)))]
pub(super) async fn readyz(State(app): State<App>) -> Response {
    let readiness = app.service.readiness().await;
    let (status, word) =
        if readiness.is_ready() { (StatusCode::OK, "ok") } else { (StatusCode::SERVICE_UNAVAILABLE, "unavailable") };
    // The reasons name hosts, paths and errors of the database: for who may know them. So does the warning, which tells a
    // stranger that the host's key has no copy.
    let known = app.surface == Surface::Socket;
    let waiting_for = if known { readiness.waiting_for() } else { Vec::new() };
    let unproven = if known && readiness.is_ready() { app.service.unproven().await } else { None };
    let of_trail = if known { app.service.trail_warnings() } else { Vec::new() };
    let warnings = unproven.into_iter().map(str::to_owned).chain(of_trail).collect();
    json(status, &HealthAnswer { status: word.to_owned(), waiting_for, warnings })
}

/// Metrics in Prometheus's text format.
#[utoipa::path(get, path = "/metrics", tag = "operations", responses(
    (status = 200, description = "Metrics; no label names a tenant or a secret.", body = String, content_type = "text/plain; version=0.0.4"),
    (status = 400, body = crate::wire::Problem, content_type = "application/problem+json"),
    (status = 429, description = "More requests of one identity or one address than it may make.", body = crate::wire::Problem, content_type = "application/problem+json"),
    (status = 403, description = "Root and the daemon's own user only.", body = crate::wire::Problem, content_type = "application/problem+json")))]
pub(super) async fn metrics(State(app): State<App>) -> Response {
    let cache = app.service.cache_stats();
    key_gauges(&KeyGauges {
        open: app.service.keys_are_open(),
        cache_entries: cache.entries,
        cache_hits: cache.hits,
        cache_misses: cache.misses,
        unwraps: cache.unwraps,
    });
    let looked = app.service.look().await;
    check_gauges(NAMES.map(|name| {
        let check = looked.checks.iter().find(|check| check.name == name);
        (name, check.map(|check| check.verdict as u8))
    }));
    // Where the database does not answer they stay as they were: old times look old.
    if let Some(times) = looked.times {
        backup_gauges(&gauges(&times));
    }
    if let Some(at) = app.service.kms_proven_at().await {
        kms_proven(at.0);
    }
    let now = app.clock.wall().0;
    let at = |age: Duration| now.saturating_sub(i64::try_from(age.as_micros()).unwrap_or(i64::MAX));
    for state in app.service.issuer_keys() {
        issuer_keys(state.issuer.as_str(), state.age.map_or(0, at), state.keep);
    }
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], app.metrics.render()).into_response()
}

fn gauges(times: &BackupTimes) -> BackupGauges {
    let micros = |at: Option<crate::model::Micros>| at.map_or(0, |at| at.0);
    BackupGauges {
        key_created: times.key_created.0,
        key_confirmed: micros(times.key_confirmed),
        key_verified: micros(times.key_read_back),
        copies_missing: times.copies_missing,
        copies_unread: times.copies_unread,
        database: micros(times.database),
        drill: micros(times.drill),
        drill_failed: times.drill_failed,
        phases: KeyPhase::ALL.iter().map(|phase| (phase.as_str(), *phase == times.phase)).collect(),
        rotating_for: times.rotating_for_micros,
    }
}
