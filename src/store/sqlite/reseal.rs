//! Re-encryption: versions of a tenant's secrets from one DEK to its active one.

use sqlx::{Executor, Sqlite, SqliteConnection};

use super::error::store_error;
use super::write::{column, one_row};
use super::{Refusal, StoreError, keys};
use crate::failpoint;
use crate::model::{DekRecord, DekVersion, SecretName, SecretVersion, Tenant};
use crate::store::deks::{ResealOutcome, Resealer, SealedVersion};
use crate::store::rows::SealedVersionRow;
use crate::store::trail::Touched;

/// By the primary key, in whose order the versions are wanted: in that of the index by DEK each page would sort all that is left.
pub(super) const SEALED_UNDER: &str = "SELECT name, version, ciphertext FROM secret_versions \
    WHERE tenant = ?1 AND dek_version = ?2 AND (name, version) > (?3, ?4) ORDER BY name, version LIMIT ?5";

pub(super) async fn sealed_under<'c>(
    executor: impl Executor<'c, Database = Sqlite>,
    tenant: &Tenant,
    dek: DekVersion,
    after: Option<(&SecretName, SecretVersion)>,
    limit: u32,
) -> Result<Vec<SealedVersion>, StoreError> {
    let query = sqlx::query_as(SEALED_UNDER)
        .bind(tenant.as_str())
        .bind(i64::from(dek.get()))
        .bind(after.map_or("", |(name, _)| name.as_str()))
        .bind(after.map_or(Ok(0), |(_, version)| column(version))?)
        .bind(i64::from(limit));
    let rows: Vec<SealedVersionRow> = query.fetch_all(executor).await.map_err(store_error)?;
    rows.into_iter().map(|row| row.record(tenant)).collect()
}

/// The caller rolls back where it is refused: versions before the refused one are replaced by then.
pub(super) async fn reseal(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    from: DekVersion,
    versions: &[SealedVersion],
    resealer: &dyn Resealer,
) -> Result<(ResealOutcome, Vec<Touched>), StoreError> {
    let (status, active) = keys::tenant_and_dek(connection, tenant).await?;
    let active = match (status, active) {
        (Err(Refusal::TenantBlocked), _) => return Ok((ResealOutcome::Blocked, Vec::new())),
        (_, None) => return Ok((ResealOutcome::NoActiveDek, Vec::new())),
        (_, Some(active)) => active,
    };
    let mut touched = Vec::new();
    for (index, version) in versions.iter().enumerate() {
        if !is_as_read(connection, tenant, from, version).await? {
            continue;
        }
        match resealer.reseal(index, version, &active) {
            Ok(ciphertext) => {
                replace(connection, version, &active, &ciphertext).await?;
                touched.push(version.resealed(tenant, ciphertext));
            }
            Err(refusal) => return Ok((ResealOutcome::Refused(refusal), Vec::new())),
        }
    }
    failpoint::reached("store.reseal");
    Ok((ResealOutcome::Resealed(touched.len() as u64), touched))
}

async fn is_as_read(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    from: DekVersion,
    version: &SealedVersion,
) -> Result<bool, StoreError> {
    let query = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM secret_versions WHERE tenant = ?1 AND name = ?2 AND version = ?3 \
         AND dek_version = ?4 AND ciphertext = ?5)",
    )
    .bind(tenant.as_str())
    .bind(version.name.as_str())
    .bind(column(version.version)?)
    .bind(i64::from(from.get()))
    .bind(version.ciphertext.as_slice());
    query.fetch_one(connection).await.map_err(store_error)
}

async fn replace(
    connection: &mut SqliteConnection,
    version: &SealedVersion,
    active: &DekRecord,
    ciphertext: &[u8],
) -> Result<(), StoreError> {
    let update = sqlx::query(
        "UPDATE secret_versions SET dek_version = ?4, ciphertext = ?5 WHERE tenant = ?1 AND name = ?2 AND version = ?3",
    )
    .bind(active.tenant.as_str())
    .bind(version.name.as_str())
    .bind(column(version.version)?)
    .bind(i64::from(active.version.get()))
    .bind(ciphertext);
    one_row(&update.execute(connection).await.map_err(store_error)?)
}
