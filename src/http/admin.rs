//! Administration, on the socket only.

pub(super) mod backup;
pub(super) mod backup_log;
pub(super) mod deks;
pub(super) mod doctor;
pub(super) mod nodes;
pub(super) mod rotation;
pub(super) mod tokens;

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;

use super::App;
use super::extract::{Caller, Id, Query};
use super::problem::Refused;
use super::secrets::{PageQuery, json};
use crate::model::{Action, Counts, DekVersion, Tenant, TenantRecord};
use crate::service::Status;
use crate::wire::{
    CacheStatus, CountsStatus, KeysStatus, MasterKeyItem, Problem, StatusAnswer, StoreStatus, TenantItem,
    TenantsAnswer, page_token,
};

/// Store, keys, counts, cache, and what an operator should do something about.
#[utoipa::path(get, path = "/v1/admin/status", tag = "administration", responses(
    (status = 200, body = StatusAnswer),
    (status = 400, body = Problem, content_type = "application/problem+json"),
    (status = 401, description = "Nobody is known by the Authorization header.", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "More requests of one identity or one address than it may make.", body = Problem, content_type = "application/problem+json"),
    (status = 403, body = Problem, content_type = "application/problem+json"),
    (status = 500, body = Problem, content_type = "application/problem+json"),
    (status = 503, body = Problem, content_type = "application/problem+json")))]
pub(super) async fn status(
    State(app): State<App>,
    Id(request): Id,
    Caller(caller): Caller,
) -> Result<Response, Refused> {
    let grant = app.service.authorize_admin(&request, &caller, Action::AdminStatus).await?;
    let status = app.service.status(&request, &grant).await;
    Ok(json(StatusCode::OK, &status_answer(&status)))
}

fn status_answer(status: &Status) -> StatusAnswer {
    let state = status.key_state.as_ref();
    StatusAnswer {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ready: status.readiness.is_ready(),
        store: StoreStatus {
            kind: status.store.to_string(),
            state: status.store_error.clone().unwrap_or_else(|| "reachable".to_owned()),
        },
        keys: KeysStatus {
            state: if status.readiness.keys.is_some() { "locked" } else { "open" }.to_owned(),
            reason: status.readiness.keys.clone(),
            loaded_kids: status.loaded.iter().map(ToString::to_string).collect(),
            active_kid: state.map(|state| state.active_kid.to_string()),
            epoch: state.map(|state| state.epoch),
            generation: state.map(|state| state.generation),
            phase: state.map(|state| state.phase.to_string()),
            master_keys: status
                .master_keys
                .iter()
                .map(|key| MasterKeyItem {
                    kid: key.kid.to_string(),
                    state: key.state.to_string(),
                    created_at: key.created_at.to_string(),
                })
                .collect(),
        },
        cache: CacheStatus {
            entries: status.cache.entries,
            max_entries: status.cache.limits.max_entries,
            max_age_seconds: status.cache.limits.max_age.as_secs(),
            hits: status.cache.hits,
            misses: status.cache.misses,
        },
        counts: status.counts.as_ref().map(counts),
        warnings: status.warnings(),
    }
}

fn counts(counts: &Counts) -> CountsStatus {
    let deks: BTreeMap<String, u64> = counts.deks.iter().map(|(state, count)| (state.to_string(), *count)).collect();
    CountsStatus { tenants: counts.tenants, secrets: counts.secrets, versions: counts.versions, deks }
}

/// Tenants by name.
#[utoipa::path(get, path = "/v1/admin/tenants", tag = "administration", params(PageQuery), responses(
    (status = 200, body = TenantsAnswer),
    (status = 400, body = Problem, content_type = "application/problem+json"),
    (status = 401, description = "Nobody is known by the Authorization header.", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "More requests of one identity or one address than it may make.", body = Problem, content_type = "application/problem+json"),
    (status = 403, body = Problem, content_type = "application/problem+json"),
    (status = 500, body = Problem, content_type = "application/problem+json"),
    (status = 503, body = Problem, content_type = "application/problem+json")))]
pub(super) async fn tenants(
    State(app): State<App>,
    Id(request): Id,
    Caller(caller): Caller,
    Query(page): Query<PageQuery>,
) -> Result<Response, Refused> {
    let grant = app.service.authorize_admin(&request, &caller, Action::AdminTenants).await?;
    let after = page.after(Tenant::parse)?;
    let page = app.service.tenants(&request, &grant, after.as_ref(), page.limit()).await?;
    let next_page_token = page.items.last().filter(|_| page.more).map(|last| page_token(last.tenant.as_str()));
    let tenants = page.items.iter().map(tenant_item).collect();
    Ok(json(StatusCode::OK, &TenantsAnswer { tenants, next_page_token }))
}

fn tenant_item(tenant: &TenantRecord) -> TenantItem {
    let state = match (tenant.shred_at, tenant.shredded_at) {
        (_, Some(_)) => "shredded",
        (Some(_), None) => "blocked",
        (None, None) => "active",
    };
    TenantItem {
        username: tenant.tenant.to_string(),
        created_at: tenant.created_at.to_string(),
        state: state.to_owned(),
        shred_at: tenant.shred_at.map(|at| at.to_string()),
        shredded_at: tenant.shredded_at.map(|at| at.to_string()),
        secrets: tenant.secrets,
        dek_version: tenant.active_dek.map(DekVersion::get),
    }
}
