//! The key hierarchy: the first key, the key state, tenants' DEKs.

use sqlx::{SqliteConnection, SqlitePool};

use super::error::store_error;
use super::sql::{dek_columns, now, tenant_columns};
use super::write::one_row;
use super::{DekMaker, DekOutcome, FirstKeyMaker, FirstKeyOutcome, StoreError, Survey, key_state};
use crate::model::{DekBody, DekRecord, DekVersion, Delivery, Kid, MasterKeyRecord, SecretName, Tenant, WrappedDek};
use crate::store::rows::{self, DekColumns, MasterKeyRow, TenantColumns};
use crate::store::{FirstKey, NewDek, Refusal};

pub(super) async fn survey(connection: &mut SqliteConnection) -> Result<Survey, StoreError> {
    Ok(Survey {
        key_state: key_state::read(connection).await?,
        master_keys: master_keys(connection).await?,
        holds_rows: holds_rows(connection).await?,
        // A database with a table of that name beside ours cannot be: opening refuses v1's, and then the name is taken.
        v1_table: false,
    })
}

async fn master_keys(connection: &mut SqliteConnection) -> Result<Vec<MasterKeyRecord>, StoreError> {
    let query = sqlx::query_as(
        "SELECT m.kid, m.state, m.created_at, m.retired_at, EXISTS (SELECT 1 FROM deks d WHERE d.kid = m.kid \
         AND d.state IN ('active', 'decrypt_only')) AS in_use FROM master_keys m ORDER BY m.created_at, m.kid",
    );
    let rows: Vec<MasterKeyRow> = query.fetch_all(connection).await.map_err(store_error)?;
    rows.into_iter().map(MasterKeyRow::record).collect()
}

async fn holds_rows(connection: &mut SqliteConnection) -> Result<bool, StoreError> {
    let query = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM tenants) OR EXISTS (SELECT 1 FROM deks) OR EXISTS (SELECT 1 FROM secrets) \
         OR EXISTS (SELECT 1 FROM secret_versions)",
    );
    query.fetch_one(connection).await.map_err(store_error)
}

/// The caller rolls back unless the key was made.
pub(super) async fn first_key(
    connection: &mut SqliteConnection,
    maker: &mut dyn FirstKeyMaker,
) -> Result<FirstKeyOutcome, StoreError> {
    // A master key's row without a key state is what is left of a damaged database: it has held a key.
    let survey = survey(connection).await?;
    if survey.key_state.is_some() || survey.holds_rows || !survey.master_keys.is_empty() {
        return Ok(FirstKeyOutcome::AlreadyHeld);
    }
    let key = match maker.make() {
        Ok(key) => key,
        Err(message) => return Ok(FirstKeyOutcome::NotMade(message)),
    };
    store_first_key(connection, &key).await?;
    let made = key_state::read(connection).await?;
    made.map(FirstKeyOutcome::Made)
        .ok_or_else(|| StoreError::Refused("the key state that was stored is not there".to_owned()))
}

async fn store_first_key(connection: &mut SqliteConnection, key: &FirstKey) -> Result<(), StoreError> {
    const MASTER_KEY: &str = concat!(
        "INSERT INTO master_keys (kid, state, created_at, activated_at) SELECT ?1, 'active', now, now FROM (SELECT ",
        now!(),
        " AS now)"
    );
    const KEY_STATE: &str = "INSERT INTO key_state (only_row, db_id, epoch, generation, active_kid, mode, phase) \
                             VALUES (1, ?1, 1, 1, ?2, 'normal', 'idle')";
    let kid = key.kid.as_bytes().as_slice();
    let insert = sqlx::query(MASTER_KEY).bind(kid).execute(&mut *connection);
    one_row(&insert.await.map_err(store_error)?)?;
    let insert = sqlx::query(KEY_STATE).bind(key.db_id.as_slice()).bind(kid).execute(&mut *connection);
    one_row(&insert.await.map_err(store_error)?)?;

    let system = Tenant::system();
    store_tenant(connection, &system).await?;
    store_dek(connection, &system, DekVersion::FIRST, key.kid, &key.system_dek).await?;
    for (name, ciphertext) in &key.system_secrets {
        store_system_secret(connection, &system, name, ciphertext).await?;
    }
    Ok(())
}

/// Version 1, under DEK version 1.
async fn store_system_secret(
    connection: &mut SqliteConnection,
    system: &Tenant,
    name: &SecretName,
    ciphertext: &[u8],
) -> Result<(), StoreError> {
    const SECRET: &str = concat!(
        "INSERT INTO secrets (tenant, name, current_version, last_version, delivery, created_at, updated_at) \
         SELECT ?1, ?2, 1, 1, ?3, now, now FROM (SELECT ",
        now!(),
        " AS now)"
    );
    const VERSION: &str = concat!(
        "INSERT INTO secret_versions (tenant, name, version, state, dek_version, ciphertext, created_at) \
         SELECT ?1, ?2, 1, 'live', ?3, ?4, ",
        now!()
    );
    let secret = sqlx::query(SECRET).bind(system.as_str()).bind(name.as_str()).bind(Delivery::Env.as_str());
    one_row(&secret.execute(&mut *connection).await.map_err(store_error)?)?;
    let version = sqlx::query(VERSION)
        .bind(system.as_str())
        .bind(name.as_str())
        .bind(i64::from(DekVersion::FIRST.get()))
        .bind(ciphertext);
    one_row(&version.execute(connection).await.map_err(store_error)?)
}

/// The caller rolls back unless there is an active DEK.
pub(super) async fn create_dek(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    maker: &dyn DekMaker,
) -> Result<DekOutcome, StoreError> {
    let (status, dek) = tenant_and_dek(connection, tenant).await?;
    match (status, dek) {
        (Err(Refusal::TenantBlocked), _) => return Ok(DekOutcome::Blocked),
        (Ok(()), Some(dek)) => return Ok(DekOutcome::Active(dek)),
        (status, _) => {
            if let Some(dek_version) = orphan(connection, tenant).await? {
                return Ok(DekOutcome::Orphans { dek_version });
            }
            if status.is_err() {
                store_tenant(connection, tenant).await?;
            }
        }
    }
    let Some(active) = active_kid(connection).await? else {
        return Err(StoreError::Refused("no DEK is made in a database that has held no master key".to_owned()));
    };
    let version = next_version(connection, tenant).await?;
    let new = match maker.make(tenant, version, active) {
        Ok(new) => new,
        Err(refusal) => return Ok(DekOutcome::Refused(refusal)),
    };
    store_dek(connection, tenant, version, active, &new).await?;
    let body = DekBody::Active(WrappedDek { kid: active, bytes: new.wrapped });
    Ok(DekOutcome::Active(DekRecord { tenant: tenant.clone(), version, id: new.id, body }))
}

/// One above the highest of the tenant's.
pub(super) async fn next_version(connection: &mut SqliteConnection, tenant: &Tenant) -> Result<DekVersion, StoreError> {
    let highest = sqlx::query_scalar("SELECT max(dek_version) FROM deks WHERE tenant = ?1").bind(tenant.as_str());
    rows::next_dek_version(tenant, highest.fetch_one(connection).await.map_err(store_error)?)
}

#[derive(sqlx::FromRow)]
struct TenantAndDek {
    #[sqlx(flatten)]
    tenant: TenantColumns,
    #[sqlx(flatten)]
    dek: DekColumns,
}

/// Whether the tenant is there and open, and its active DEK.
pub(super) async fn tenant_and_dek(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
) -> Result<(Result<(), Refusal>, Option<DekRecord>), StoreError> {
    const SQL: &str = concat!(
        "SELECT ",
        tenant_columns!(),
        ", ",
        dek_columns!(),
        " FROM tenants t LEFT JOIN deks d ON d.tenant = t.tenant AND d.state = 'active' WHERE t.tenant = ?1"
    );
    let query = sqlx::query_as(SQL).bind(tenant.as_str());
    let row: Option<TenantAndDek> = query.fetch_optional(connection).await.map_err(store_error)?;
    match row {
        None => Ok((Err(Refusal::NoTenant), None)),
        Some(row) => Ok((row.tenant.open(), row.dek.record(tenant)?)),
    }
}

/// The DEK version of a live version of this tenant whose DEK has no row.
async fn orphan(connection: &mut SqliteConnection, tenant: &Tenant) -> Result<Option<DekVersion>, StoreError> {
    let query = sqlx::query_scalar(
        "SELECT v.dek_version FROM secret_versions v WHERE v.tenant = ?1 AND v.dek_version IS NOT NULL \
         AND NOT EXISTS (SELECT 1 FROM deks d WHERE d.tenant = v.tenant AND d.dek_version = v.dek_version) \
         ORDER BY v.dek_version LIMIT 1",
    );
    let number = query.bind(tenant.as_str()).fetch_optional(connection).await.map_err(store_error)?;
    number.map(|number: i64| rows::orphaned_dek_version(tenant, number)).transpose()
}

async fn active_kid(connection: &mut SqliteConnection) -> Result<Option<Kid>, StoreError> {
    let query = sqlx::query_scalar("SELECT active_kid FROM key_state");
    let bytes: Option<Vec<u8>> = query.fetch_optional(connection).await.map_err(store_error)?;
    bytes.map(|bytes| rows::active_kid(&bytes)).transpose()
}

async fn store_tenant(connection: &mut SqliteConnection, tenant: &Tenant) -> Result<(), StoreError> {
    const SQL: &str = concat!("INSERT INTO tenants (tenant, created_at) SELECT ?1, ", now!());
    let insert = sqlx::query(SQL).bind(tenant.as_str()).execute(connection);
    one_row(&insert.await.map_err(store_error)?)
}

pub(super) async fn store_dek(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    version: DekVersion,
    kid: Kid,
    dek: &NewDek,
) -> Result<(), StoreError> {
    const SQL: &str = concat!(
        "INSERT INTO deks (tenant, dek_version, kid, dek_id, state, wrapped, made_in_epoch, created_at) \
         SELECT ?1, ?2, ?3, ?4, 'active', ?5, (SELECT epoch FROM key_state), ",
        now!()
    );
    let insert = sqlx::query(SQL)
        .bind(tenant.as_str())
        .bind(i64::from(version.get()))
        .bind(kid.as_bytes().as_slice())
        .bind(dek.id.as_bytes().as_slice())
        .bind(dek.wrapped.as_slice());
    one_row(&insert.execute(connection).await.map_err(store_error)?)
}

pub(super) async fn has_confirmed_escrow(pool: &SqlitePool, kid: Kid) -> Result<bool, StoreError> {
    let query = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM escrows WHERE kid = ?1 AND kind = 'copy' AND confirmed_at IS NOT NULL AND lost_as IS NULL)",
    );
    query.bind(kid.as_bytes().as_slice()).fetch_one(pool).await.map_err(store_error)
}
