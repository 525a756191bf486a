//! Reading: one statement for each call.

use sqlx::{Executor, Sqlite, SqliteConnection, SqlitePool};

use super::error::store_error;
use super::sql::{
    dek_columns, readable, secret_columns, tenant_columns, tenant_record, version_columns, version_metadata,
};
use super::{Found, Page, Place, Refusal, StoreError};
use crate::model::{Counts, SecretName, SecretRecord, Tenant, TenantRecord, VersionRecord};
use crate::store::Which;
use crate::store::rows::{self, PlaceRow, SecretRow, TenantRow, VersionRow};

/// A LEFT JOIN keeps its sides' order, so that the places drive and everything else is a look-up by primary key. Nothing of a blocked
/// tenant is joined.
const PLACES: &str = concat!(
    "SELECT j.key AS place, ",
    tenant_columns!(),
    ", ",
    secret_columns!(),
    ", ",
    version_columns!(),
    ", ",
    dek_columns!(),
    " FROM json_each(?1) j \
      LEFT JOIN tenants t ON t.tenant = j.value ->> 0 \
      LEFT JOIN secrets s ON s.tenant = t.tenant AND s.name = j.value ->> 1 AND t.shred_at IS NULL \
      LEFT JOIN secret_versions v ON v.tenant = s.tenant AND v.name = s.name \
           AND v.version = coalesce(j.value ->> 2, s.current_version) \
      LEFT JOIN deks d ON d.tenant = v.tenant AND d.dek_version = v.dek_version"
);

const TENANT: &str = concat!(
    "SELECT ",
    tenant_columns!(),
    ", ",
    secret_columns!(),
    ", ",
    version_columns!(),
    ", ",
    dek_columns!(),
    " FROM tenants t \
      LEFT JOIN secrets s ON s.tenant = t.tenant AND t.shred_at IS NULL AND ",
    readable!(),
    " LEFT JOIN secret_versions v ON v.tenant = s.tenant AND v.name = s.name AND v.version = s.current_version \
      LEFT JOIN deks d ON d.tenant = v.tenant AND d.dek_version = v.dek_version \
      WHERE t.tenant = ?1 ORDER BY s.name LIMIT ?2"
);

const LIST: &str = concat!(
    "SELECT ",
    tenant_columns!(),
    ", ",
    secret_columns!(),
    " FROM tenants t LEFT JOIN secrets s ON s.tenant = t.tenant AND t.shred_at IS NULL AND s.name > ?2 AND ",
    readable!(),
    " WHERE t.tenant = ?1 ORDER BY s.name LIMIT ?3"
);

/// A live version's ciphertext is not read, only said to be there.
const VERSIONS: &str = concat!(
    "SELECT ",
    tenant_columns!(),
    ", ",
    secret_columns!(),
    ", ",
    version_metadata!(),
    ", CASE WHEN v.ciphertext IS NOT NULL THEN x'' END AS v_ciphertext, ",
    dek_columns!(),
    " FROM tenants t \
      LEFT JOIN secrets s ON s.tenant = t.tenant AND s.name = ?2 AND t.shred_at IS NULL \
      LEFT JOIN secret_versions v ON v.tenant = s.tenant AND v.name = s.name \
      LEFT JOIN deks d ON d.tenant = v.tenant AND d.dek_version = v.dek_version \
      WHERE t.tenant = ?1 ORDER BY v.version DESC"
);

const TENANTS: &str = concat!(
    "SELECT ",
    tenant_record!(),
    " FROM tenants t WHERE t.tenant > ?1 AND substr(t.tenant, 1, 1) <> '_' ORDER BY t.tenant LIMIT ?2"
);

const COUNTS: &str = concat!(
    "SELECT (SELECT count(*) FROM tenants WHERE substr(tenant, 1, 1) <> '_'), \
     (SELECT count(*) FROM secrets s WHERE substr(s.tenant, 1, 1) <> '_' AND ",
    readable!(),
    "), (SELECT count(*) FROM secret_versions WHERE state = 'live' AND substr(tenant, 1, 1) <> '_')"
);

pub(super) async fn ping(pool: &SqlitePool) -> Result<(), StoreError> {
    sqlx::query("SELECT 1").execute(pool).await.map(|_| ()).map_err(store_error)
}

pub(super) async fn places(pool: &SqlitePool, places: &[Place]) -> Result<Vec<Result<Found, StoreError>>, StoreError> {
    if places.is_empty() {
        return Ok(Vec::new());
    }
    Ok(place_rows(pool, places).await?.into_iter().zip(places).map(|(row, place)| row.found(place)).collect())
}

/// One row for each place, in their order.
pub(super) async fn place_rows<'c>(
    executor: impl Executor<'c, Database = Sqlite>,
    places: &[Place],
) -> Result<Vec<PlaceRow>, StoreError> {
    let asked: Vec<_> = places
        .iter()
        .map(|place| match place.which {
            Which::Current => (place.tenant.as_str(), place.name.as_str(), None),
            Which::Number(number) => (place.tenant.as_str(), place.name.as_str(), Some(number.get())),
        })
        .collect();
    let asked = serde_json::to_string(&asked).map_err(|e| StoreError::Refused(e.to_string()))?;
    let mut rows: Vec<PlaceRow> = sqlx::query_as(PLACES).bind(asked).fetch_all(executor).await.map_err(store_error)?;
    // json_each goes by index, but no page of SQLite's documentation says that a join must.
    rows.sort_by_key(PlaceRow::index);
    if rows.len() != places.len() {
        return Err(StoreError::Refused(format!("{} places were answered with {} rows", places.len(), rows.len())));
    }
    Ok(rows)
}

pub(super) async fn tenant(
    pool: &SqlitePool,
    tenant: &Tenant,
    limit: u32,
) -> Result<Result<Page<(SecretRecord, VersionRecord)>, Refusal>, StoreError> {
    let query = sqlx::query_as(TENANT).bind(tenant.as_str()).bind(one_past(limit));
    VersionRow::page(query.fetch_all(pool).await.map_err(store_error)?, tenant, limit)
}

pub(super) async fn list(
    pool: &SqlitePool,
    tenant: &Tenant,
    after: Option<&SecretName>,
    limit: u32,
) -> Result<Result<Page<SecretRecord>, Refusal>, StoreError> {
    let after = after.map_or("", SecretName::as_str);
    let query = sqlx::query_as(LIST).bind(tenant.as_str()).bind(after).bind(one_past(limit));
    SecretRow::page(query.fetch_all(pool).await.map_err(store_error)?, tenant, limit)
}

pub(super) async fn versions<'c>(
    executor: impl Executor<'c, Database = Sqlite>,
    tenant: &Tenant,
    name: &SecretName,
) -> Result<Result<(SecretRecord, Vec<VersionRecord>), Refusal>, StoreError> {
    let query = sqlx::query_as(VERSIONS).bind(tenant.as_str()).bind(name.as_str());
    VersionRow::versions(query.fetch_all(executor).await.map_err(store_error)?, tenant)
}

pub(super) async fn tenants(
    pool: &SqlitePool,
    after: Option<&Tenant>,
    limit: u32,
) -> Result<Page<TenantRecord>, StoreError> {
    let query = sqlx::query_as(TENANTS).bind(after.map_or("", Tenant::as_str)).bind(one_past(limit));
    let rows = query.fetch_all(pool).await.map_err(store_error)?;
    let tenants = rows.into_iter().map(TenantRow::record).collect::<Result<_, _>>()?;
    Ok(rows::page(tenants, limit))
}

pub(super) async fn counts(connection: &mut SqliteConnection) -> Result<Counts, StoreError> {
    let (tenants, secrets, versions): (i64, i64, i64) =
        sqlx::query_as(COUNTS).fetch_one(&mut *connection).await.map_err(store_error)?;
    let deks = sqlx::query_as("SELECT state, count(*) FROM deks GROUP BY state").fetch_all(connection).await;
    Ok(Counts {
        tenants: rows::count(tenants),
        secrets: rows::count(secrets),
        versions: rows::count(versions),
        deks: rows::dek_counts(deks.map_err(store_error)?)?,
    })
}

/// A page is read one past its limit, to know whether more follow.
fn one_past(limit: u32) -> i64 {
    i64::from(limit) + 1
}
