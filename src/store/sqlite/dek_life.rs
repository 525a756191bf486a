//! A tenant's DEKs after the first: new versions, removal, quarantine.

use sqlx::{Executor, Sqlite, SqliteConnection, SqlitePool};

use super::error::store_error;
use super::sql::dek_columns;
use super::write::one_row;
use super::{DekMaker, Refusal, StoreError, key_state, keys};
use crate::failpoint;
use crate::model::{DekBody, DekRecord, DekState, DekVersion, Kid, Tenant, WrappedDek};
use crate::store::deks::{QuarantineOutcome, RemoveDekOutcome, RotateDekOutcome};
use crate::store::guards;
use crate::store::rows::{self, DekColumns};

pub(super) async fn one<'c>(
    executor: impl Executor<'c, Database = Sqlite>,
    tenant: &Tenant,
    version: DekVersion,
) -> Result<Option<DekRecord>, StoreError> {
    const SQL: &str = concat!("SELECT ", dek_columns!(), " FROM deks d WHERE d.tenant = ?1 AND d.dek_version = ?2");
    let query = sqlx::query_as(SQL).bind(tenant.as_str()).bind(i64::from(version.get()));
    let row: Option<DekColumns> = query.fetch_optional(executor).await.map_err(store_error)?;
    row.map_or(Ok(None), |row| row.record(tenant))
}

pub(super) async fn all<'c>(
    executor: impl Executor<'c, Database = Sqlite>,
    tenant: &Tenant,
) -> Result<Vec<DekRecord>, StoreError> {
    const SQL: &str = concat!("SELECT ", dek_columns!(), " FROM deks d WHERE d.tenant = ?1 ORDER BY d.dek_version");
    let query = sqlx::query_as(SQL).bind(tenant.as_str());
    let rows: Vec<DekColumns> = query.fetch_all(executor).await.map_err(store_error)?;
    rows.into_iter().filter_map(|row| row.record(tenant).transpose()).collect()
}

pub(super) async fn made_before_active(
    pool: &SqlitePool,
    after: Option<&Tenant>,
    limit: u32,
) -> Result<Vec<Tenant>, StoreError> {
    let names: Vec<String> = sqlx::query_scalar(
        "SELECT DISTINCT d.tenant FROM deks d JOIN tenants t ON t.tenant = d.tenant \
         WHERE d.state IN ('active', 'decrypt_only') AND d.tenant > ?1 AND t.shred_at IS NULL \
             AND coalesce(d.made_in_epoch, 0) < (SELECT epoch FROM key_state) \
         ORDER BY d.tenant LIMIT ?2",
    )
    .bind(after.map_or("", Tenant::as_str))
    .bind(i64::from(limit))
    .fetch_all(pool)
    .await
    .map_err(store_error)?;
    names.iter().map(|name| rows::tenant(name)).collect()
}

pub(super) async fn rotate(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    from: DekVersion,
    maker: &dyn DekMaker,
) -> Result<RotateDekOutcome, StoreError> {
    let (status, active) = keys::tenant_and_dek(connection, tenant).await?;
    match status {
        Err(Refusal::TenantBlocked) => return Ok(RotateDekOutcome::Blocked),
        Err(_) => return Ok(RotateDekOutcome::NoTenant),
        Ok(()) => {}
    }
    let active = active.map(|dek| dek.version);
    if active != Some(from) {
        return Ok(RotateDekOutcome::NotActive(active));
    }
    let kid = key_state::held(connection).await?.active_kid;
    let version = keys::next_version(connection, tenant).await?;
    let new = match maker.make(tenant, version, kid) {
        Ok(new) => new,
        Err(refusal) => return Ok(RotateDekOutcome::Refused(refusal)),
    };
    // The old one first: a tenant never has two active ones, between two statements neither.
    set_state(connection, tenant, from, DekState::DecryptOnly).await?;
    keys::store_dek(connection, tenant, version, kid, &new).await?;
    failpoint::reached("store.rotate-dek");
    let body = DekBody::Active(WrappedDek { kid, bytes: new.wrapped });
    Ok(RotateDekOutcome::Rotated(DekRecord { tenant: tenant.clone(), version, id: new.id, body }))
}

pub(super) async fn remove(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    version: DekVersion,
) -> Result<RemoveDekOutcome, StoreError> {
    match one(&mut *connection, tenant, version).await? {
        None => return Ok(RemoveDekOutcome::Unknown),
        Some(dek) if dek.body.state() != DekState::DecryptOnly => return Ok(RemoveDekOutcome::NotDecryptOnly),
        Some(_) => {}
    }
    let used = sqlx::query_scalar("SELECT count(*) FROM secret_versions WHERE tenant = ?1 AND dek_version = ?2");
    let used = used.bind(tenant.as_str()).bind(i64::from(version.get())).fetch_one(&mut *connection);
    match rows::count(used.await.map_err(store_error)?) {
        0 => {}
        used => return Ok(RemoveDekOutcome::StillUsed(used)),
    }
    let delete = sqlx::query("DELETE FROM deks WHERE tenant = ?1 AND dek_version = ?2")
        .bind(tenant.as_str())
        .bind(i64::from(version.get()));
    one_row(&delete.execute(connection).await.map_err(store_error)?)?;
    failpoint::reached("store.remove-dek");
    Ok(RemoveDekOutcome::Removed)
}

pub(super) async fn quarantine(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    version: DekVersion,
    wrapping: &WrappedDek,
) -> Result<QuarantineOutcome, StoreError> {
    let Some(dek) = one(&mut *connection, tenant, version).await? else { return Ok(QuarantineOutcome::Unknown) };
    match dek.body {
        DekBody::Active(wrapped) | DekBody::DecryptOnly(wrapped) if wrapped == *wrapping => {
            set_state(connection, tenant, version, DekState::Quarantined).await?;
            Ok(QuarantineOutcome::Done(DekRecord { body: DekBody::Quarantined(wrapped), ..dek }))
        }
        body => Ok(QuarantineOutcome::Elsewhere(DekRecord { body, ..dek })),
    }
}

pub(super) async fn release(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    version: DekVersion,
    before: &WrappedDek,
    after: &[u8],
    active: Kid,
) -> Result<QuarantineOutcome, StoreError> {
    let deks = all(&mut *connection, tenant).await?;
    let Some(dek) = deks.iter().find(|dek| dek.version == version).cloned() else {
        return Ok(QuarantineOutcome::Unknown);
    };
    let as_read = matches!(&dek.body, DekBody::Quarantined(wrapped) if wrapped == before);
    if !as_read || key_state::held(connection).await?.active_kid != active {
        return Ok(QuarantineOutcome::Elsewhere(dek));
    }
    let body = guards::released(version, &deks, WrappedDek { kid: active, bytes: after.to_vec() });
    let update =
        sqlx::query("UPDATE deks SET state = ?3, kid = ?4, wrapped = ?5 WHERE tenant = ?1 AND dek_version = ?2")
            .bind(tenant.as_str())
            .bind(i64::from(version.get()))
            .bind(body.state().as_str())
            .bind(active.as_bytes().as_slice())
            .bind(after);
    one_row(&update.execute(connection).await.map_err(store_error)?)?;
    Ok(QuarantineOutcome::Done(DekRecord { body, ..dek }))
}

async fn set_state(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    version: DekVersion,
    state: DekState,
) -> Result<(), StoreError> {
    let update = sqlx::query("UPDATE deks SET state = ?3 WHERE tenant = ?1 AND dek_version = ?2")
        .bind(tenant.as_str())
        .bind(i64::from(version.get()))
        .bind(state.as_str());
    one_row(&update.execute(connection).await.map_err(store_error)?)
}
