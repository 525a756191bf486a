//! Changing secrets, inside the caller's transaction. What a write does is decided in `decide`; here it is read and stored.

use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteQueryResult;

use super::error::store_error;
use super::sql::{dek_columns, now, secret_columns, tenant_columns};
use super::{Found, Intent, Place, Refusal, Sealer, StoreError, Together, Written, read};
use crate::model::{DekRecord, Micros, SecretName, SecretRecord, SecretVersion, Tenant, VersionRecord};
use crate::store::decide::{self, Change, Decision, Ground};
use crate::store::rows::{DekColumns, PlaceRow, SecretRow};
use crate::store::trail::Touched;
use crate::store::{Keep, Source, Which};

/// How a batch came out, and what is to be done with its transaction.
pub(super) enum Batch {
    /// With what it touched, for the record.
    Keep(Vec<Result<Written, Refusal>>, Vec<Touched>),
    Undo(Vec<Result<Written, Refusal>>),
}

/// Each intent in turn: a refusal is decided before anything of that intent is stored, so that there is nothing to undo for it alone. One
/// at a time, so that a batch holds the ciphertexts of one secret in memory, not of all.
pub(super) async fn batch(
    connection: &mut SqliteConnection,
    intents: &[Intent],
    together: Together,
    sealer: &dyn Sealer,
) -> Result<Batch, StoreError> {
    let mut outcomes = Vec::with_capacity(intents.len());
    let (mut touched, mut without_dek) = (Vec::new(), None);
    for (index, intent) in intents.iter().enumerate() {
        let ground = ground(connection, intent).await?;
        let outcome = match decide::decide(index, intent, &ground, sealer)? {
            Ok(decision) => {
                store(connection, intent, &decision).await?;
                touched.push(decision.touched());
                Ok(decision.written)
            }
            Err(Refusal::NoActiveDek) if together == Together::AllOrNothing => {
                without_dek.get_or_insert(index);
                Err(Refusal::NoActiveDek)
            }
            Err(refusal) if together == Together::AllOrNothing => {
                return Ok(Batch::Undo(decide::all_refused(intents.len(), index, &refusal)));
            }
            Err(refusal) => Err(refusal),
        };
        outcomes.push(outcome);
    }
    Ok(match without_dek {
        Some(index) => Batch::Undo(decide::all_refused(intents.len(), index, &Refusal::NoActiveDek)),
        None => Batch::Keep(outcomes, touched),
    })
}

async fn ground(connection: &mut SqliteConnection, intent: &Intent) -> Result<Ground, StoreError> {
    let place = |which| Place { tenant: intent.tenant.clone(), name: intent.name.clone(), which };
    let mut places = vec![place(Which::Current)];
    if let Source::CopyOf(number) = intent.source {
        places.push(place(Which::Number(number)));
    }
    let rows = read::place_rows(&mut *connection, &places).await?;
    let last_version = rows.first().map_or(0, PlaceRow::last_version);
    let mut found = rows.into_iter().zip(&places).map(|(row, place)| row.found(place));
    let current = found.next().unwrap_or(Ok(Found::NoTenant))?;
    let source = match found.next().transpose()? {
        Some(Found::Secret(_, version)) => version,
        _ => None,
    };
    let (now, dek) = now_and_dek(connection, &intent.tenant).await?;
    Ok(Ground { found: current, last_version, source, dek, now })
}

#[derive(sqlx::FromRow)]
struct NowAndDek {
    now: i64,
    #[sqlx(flatten)]
    dek: DekColumns,
}

/// The database's time, and the tenant's active DEK.
async fn now_and_dek(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
) -> Result<(Micros, Option<DekRecord>), StoreError> {
    const SQL: &str = concat!(
        "SELECT ",
        now!(),
        " AS now, ",
        dek_columns!(),
        " FROM (SELECT 1) LEFT JOIN deks d ON d.tenant = ?1 AND d.state = 'active'"
    );
    let row: NowAndDek = sqlx::query_as(SQL).bind(tenant.as_str()).fetch_one(connection).await.map_err(store_error)?;
    Ok((Micros(row.now), row.dek.record(tenant)?))
}

async fn store(connection: &mut SqliteConnection, intent: &Intent, decision: &Decision) -> Result<(), StoreError> {
    let secret = &decision.written.secret;
    match &decision.change {
        Change::Nothing => Ok(()),
        Change::Delivery => store_delivery(connection, secret).await,
        Change::Version { ciphertext, dek_version } => {
            store_secret(connection, secret).await?;
            let insert = sqlx::query(
                "INSERT INTO secret_versions (tenant, name, version, state, dek_version, ciphertext, created_at) \
                 VALUES (?1, ?2, ?3, 'live', ?4, ?5, ?6)",
            )
            .bind(secret.tenant.as_str())
            .bind(secret.name.as_str())
            .bind(column(secret.current)?)
            .bind(i64::from(dek_version.get()))
            .bind(ciphertext.as_slice())
            .bind(secret.updated_at.0);
            one_row(&insert.execute(&mut *connection).await.map_err(store_error)?)?;
            prune(connection, secret, intent.keep).await
        }
    }
}

/// The secret's row with its new current version, made or changed.
async fn store_secret(connection: &mut SqliteConnection, secret: &SecretRecord) -> Result<(), StoreError> {
    let upsert = sqlx::query(
        "INSERT INTO secrets (tenant, name, current_version, last_version, delivery, created_at, updated_at) \
         VALUES (?1, ?2, ?3, ?3, ?4, ?5, ?6) \
         ON CONFLICT (tenant, name) DO UPDATE SET current_version = excluded.current_version, \
         last_version = excluded.last_version, delivery = excluded.delivery, updated_at = excluded.updated_at, \
         deleted_at = NULL",
    )
    .bind(secret.tenant.as_str())
    .bind(secret.name.as_str())
    .bind(column(secret.current)?)
    .bind(secret.delivery.as_str())
    .bind(secret.created_at.0)
    .bind(secret.updated_at.0);
    one_row(&upsert.execute(connection).await.map_err(store_error)?)
}

async fn store_delivery(connection: &mut SqliteConnection, secret: &SecretRecord) -> Result<(), StoreError> {
    let update = sqlx::query("UPDATE secrets SET delivery = ?3, updated_at = ?4 WHERE tenant = ?1 AND name = ?2")
        .bind(secret.tenant.as_str())
        .bind(secret.name.as_str())
        .bind(secret.delivery.as_str())
        .bind(secret.updated_at.0);
    one_row(&update.execute(connection).await.map_err(store_error)?)
}

/// Removes what is older than the newest versions that stay. The newest is the current one, which always stays.
async fn prune(connection: &mut SqliteConnection, secret: &SecretRecord, keep: Keep) -> Result<(), StoreError> {
    let Keep::Newest(newest) = keep else { return Ok(()) };
    let prune = sqlx::query(
        "DELETE FROM secret_versions WHERE tenant = ?1 AND name = ?2 AND version < \
         (SELECT min(version) FROM (SELECT version FROM secret_versions WHERE tenant = ?1 AND name = ?2 \
          ORDER BY version DESC LIMIT ?3))",
    )
    .bind(secret.tenant.as_str())
    .bind(secret.name.as_str())
    .bind(i64::from(newest.max(1)));
    prune.execute(connection).await.map(|_| ()).map_err(store_error)
}

pub(super) async fn delete(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    name: &SecretName,
) -> Result<Result<SecretRecord, Refusal>, StoreError> {
    match secret(connection, tenant, name).await? {
        Ok((secret, _)) if secret.deleted_at.is_some() => Ok(Err(Refusal::Deleted)),
        Ok((mut secret, now)) => {
            (secret.deleted_at, secret.updated_at) = (Some(now), now);
            store_deletion(connection, &secret).await?;
            Ok(Ok(secret))
        }
        Err(refusal) => Ok(Err(refusal)),
    }
}

pub(super) async fn undelete(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    name: &SecretName,
) -> Result<Result<SecretRecord, Refusal>, StoreError> {
    match secret(connection, tenant, name).await? {
        Ok((secret, _)) if secret.deleted_at.is_none() => Ok(Err(Refusal::NotDeleted)),
        Ok((mut secret, now)) => {
            (secret.deleted_at, secret.updated_at) = (None, now);
            store_deletion(connection, &secret).await?;
            Ok(Ok(secret))
        }
        Err(refusal) => Ok(Err(refusal)),
    }
}

pub(super) async fn destroy(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    name: &SecretName,
    versions: &[SecretVersion],
) -> Result<Result<SecretRecord, Refusal>, StoreError> {
    let (mut secret, now) = match secret(connection, tenant, name).await? {
        Ok(found) => found,
        Err(refusal) => return Ok(Err(refusal)),
    };
    // The rules of the rows are checked here too: a damaged one is named, not destroyed.
    let there = match read::versions(&mut *connection, tenant, name).await? {
        Ok((_, there)) => there,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let is_there = |number: &SecretVersion| there.iter().any(|version: &VersionRecord| version.version == *number);
    if let Some(unknown) = versions.iter().find(|number| !is_there(number)) {
        return Ok(Err(Refusal::NoVersion(*unknown)));
    }
    let mut destroyed = 0;
    for version in versions {
        let update = sqlx::query(
            "UPDATE secret_versions SET state = 'destroyed', ciphertext = NULL, dek_version = NULL, destroyed_at = ?4 \
             WHERE tenant = ?1 AND name = ?2 AND version = ?3 AND state = 'live'",
        )
        .bind(tenant.as_str())
        .bind(name.as_str())
        .bind(column(*version)?)
        .bind(now.0);
        destroyed += update.execute(&mut *connection).await.map_err(store_error)?.rows_affected();
    }
    if destroyed > 0 {
        secret.updated_at = now;
        store_deletion(connection, &secret).await?;
    }
    Ok(Ok(secret))
}

/// The secret of this name, deleted or not, and the database's time.
async fn secret(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    name: &SecretName,
) -> Result<Result<(SecretRecord, Micros), Refusal>, StoreError> {
    const SQL: &str = concat!(
        "SELECT ",
        tenant_columns!(),
        ", ",
        secret_columns!(),
        " FROM tenants t LEFT JOIN secrets s ON s.tenant = t.tenant AND s.name = ?2 WHERE t.tenant = ?1"
    );
    const NOW: &str = concat!("SELECT ", now!());
    let query = sqlx::query_as(SQL).bind(tenant.as_str()).bind(name.as_str());
    let row = query.fetch_optional(&mut *connection).await.map_err(store_error)?;
    let now = Micros(sqlx::query_scalar(NOW).fetch_one(connection).await.map_err(store_error)?);
    Ok(SecretRow::secret(row, tenant)?.map(|secret| (secret, now)))
}

async fn store_deletion(connection: &mut SqliteConnection, secret: &SecretRecord) -> Result<(), StoreError> {
    let update = sqlx::query("UPDATE secrets SET deleted_at = ?3, updated_at = ?4 WHERE tenant = ?1 AND name = ?2")
        .bind(secret.tenant.as_str())
        .bind(secret.name.as_str())
        .bind(secret.deleted_at.map(|at| at.0))
        .bind(secret.updated_at.0);
    one_row(&update.execute(connection).await.map_err(store_error)?)
}

/// A version number as a column holds it; its type promises that it fits.
pub(super) fn column(version: SecretVersion) -> Result<i64, StoreError> {
    i64::try_from(version.get()).map_err(|_| StoreError::Refused(format!("version {version} does not fit")))
}

/// A statement that must change one row did.
pub(super) fn one_row(result: &SqliteQueryResult) -> Result<(), StoreError> {
    match result.rows_affected() {
        1 => Ok(()),
        rows => Err(StoreError::Refused(format!("a statement that changes one row changed {rows}"))),
    }
}
