//! Shreds: scheduled, cancelled, done.

use std::time::Duration;

use sqlx::{SqliteConnection, SqlitePool};

use super::error::store_error;
use super::sql::{now, readable, tenant_record};
use super::write::one_row;
use super::{StoreError, key_state};
use crate::model::{Micros, Tenant, TenantRecord};
use crate::store::deks::{ShredOutcome, ShredWhen};
use crate::store::guards;
use crate::store::rows::{self, TenantRow, micros};

pub(super) async fn schedule(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    wait: Duration,
) -> Result<ShredOutcome, StoreError> {
    guards::check_shreddable(tenant)?;
    let Some(record) = record(connection, tenant).await? else { return Ok(ShredOutcome::NoTenant) };
    if record.shred_at.is_some() {
        return Ok(ShredOutcome::Elsewhere(record));
    }
    let at = Micros(key_state::now(connection).await?.0.saturating_add(micros(wait)));
    change(connection, TenantRecord { shred_at: Some(at), ..record }).await
}

pub(super) async fn cancel(connection: &mut SqliteConnection, tenant: &Tenant) -> Result<ShredOutcome, StoreError> {
    let Some(record) = record(connection, tenant).await? else { return Ok(ShredOutcome::NoTenant) };
    if !is_pending(&record) {
        return Ok(ShredOutcome::Elsewhere(record));
    }
    change(connection, TenantRecord { shred_at: None, ..record }).await
}

pub(super) async fn shred(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    when: ShredWhen,
) -> Result<ShredOutcome, StoreError> {
    guards::check_shreddable(tenant)?;
    let Some(record) = record(connection, tenant).await? else { return Ok(ShredOutcome::NoTenant) };
    let now = key_state::now(connection).await?;
    let early = when == ShredWhen::Due && record.shred_at.is_some_and(|at| at > now);
    if early || !is_pending(&record) {
        return Ok(ShredOutcome::Elsewhere(record));
    }
    let deks = sqlx::query("UPDATE deks SET state = 'shredded', kid = NULL, wrapped = NULL WHERE tenant = ?1");
    deks.bind(tenant.as_str()).execute(&mut *connection).await.map_err(store_error)?;
    change(connection, TenantRecord { shredded_at: Some(now), active_dek: None, ..record }).await
}

const fn is_pending(record: &TenantRecord) -> bool {
    record.shred_at.is_some() && record.shredded_at.is_none()
}

/// Stores the tenant's times as they are to be, and raises the generation.
async fn change(connection: &mut SqliteConnection, tenant: TenantRecord) -> Result<ShredOutcome, StoreError> {
    let update = sqlx::query("UPDATE tenants SET shred_at = ?2, shredded_at = ?3 WHERE tenant = ?1")
        .bind(tenant.tenant.as_str())
        .bind(tenant.shred_at.map(|at| at.0))
        .bind(tenant.shredded_at.map(|at| at.0));
    one_row(&update.execute(&mut *connection).await.map_err(store_error)?)?;
    let generation = key_state::raise_generation(connection).await?.generation;
    Ok(ShredOutcome::Done { tenant, generation })
}

async fn record(connection: &mut SqliteConnection, tenant: &Tenant) -> Result<Option<TenantRecord>, StoreError> {
    const SQL: &str = concat!("SELECT ", tenant_record!(), " FROM tenants t WHERE t.tenant = ?1");
    let query = sqlx::query_as(SQL).bind(tenant.as_str());
    let row: Option<TenantRow> = query.fetch_optional(connection).await.map_err(store_error)?;
    row.map(TenantRow::record).transpose()
}

pub(super) const BLOCKED: &str = concat!(
    "SELECT ",
    tenant_record!(),
    " FROM tenants t WHERE t.shred_at IS NOT NULL AND t.tenant > ?1 ORDER BY t.tenant LIMIT ?2"
);

pub(super) async fn blocked(
    pool: &SqlitePool,
    after: Option<&Tenant>,
    limit: u32,
) -> Result<Vec<TenantRecord>, StoreError> {
    let query = sqlx::query_as(BLOCKED).bind(after.map_or("", Tenant::as_str)).bind(i64::from(limit));
    let rows: Vec<TenantRow> = query.fetch_all(pool).await.map_err(store_error)?;
    rows.into_iter().map(TenantRow::record).collect()
}

pub(super) async fn due(pool: &SqlitePool, limit: u32) -> Result<Vec<Tenant>, StoreError> {
    const SQL: &str = concat!(
        "SELECT t.tenant FROM tenants t WHERE t.shred_at <= ",
        now!(),
        " AND t.shredded_at IS NULL ORDER BY t.shred_at, t.tenant LIMIT ?1"
    );
    let names: Vec<String> =
        sqlx::query_scalar(SQL).bind(i64::from(limit)).fetch_all(pool).await.map_err(store_error)?;
    names.iter().map(|name| rows::tenant(name)).collect()
}
