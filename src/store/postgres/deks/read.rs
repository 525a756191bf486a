//! Reads: DEKs of a tenant, what is sealed under one, and tenants that are blocked.

use async_trait::async_trait;
use sqlx::postgres::PgConnection;

use crate::model::{DekRecord, DekVersion, Micros, SecretName, SecretVersion, Tenant, TenantRecord};
use crate::store::StoreError;
use crate::store::deks::SealedVersion;
use crate::store::postgres::NOW;
use crate::store::postgres::columns::{column, dek_columns};
use crate::store::postgres::failure::Failure;
use crate::store::postgres::tx::Read;
use crate::store::rows::{DekColumns, SealedVersionRow, TenantRow};

pub(super) struct OneDek<'a> {
    pub(super) tenant: &'a Tenant,
    pub(super) version: DekVersion,
}

#[async_trait]
impl Read for OneDek<'_> {
    type Output = Option<DekRecord>;

    async fn run(&self, connection: &mut PgConnection) -> Result<Self::Output, Failure> {
        let row: Option<DekColumns> = sqlx::query_as(concat!(
            "SELECT ",
            dek_columns!(),
            " FROM containarium.deks d WHERE d.tenant = $1 AND d.dek_version = $2"
        ))
        .bind(self.tenant.as_str())
        .bind(i64::from(self.version.get()))
        .fetch_optional(connection)
        .await?;
        Ok(row.map_or(Ok(None), |row| row.record(self.tenant))?)
    }
}

pub(super) struct AllDeks<'a>(pub(super) &'a Tenant);

#[async_trait]
impl Read for AllDeks<'_> {
    type Output = Vec<DekRecord>;

    async fn run(&self, connection: &mut PgConnection) -> Result<Self::Output, Failure> {
        deks(connection, self.0).await
    }
}

/// All of a tenant, by version.
pub(super) async fn deks(connection: &mut PgConnection, tenant: &Tenant) -> Result<Vec<DekRecord>, Failure> {
    let found: Vec<DekColumns> = sqlx::query_as(concat!(
        "SELECT ",
        dek_columns!(),
        " FROM containarium.deks d WHERE d.tenant = $1 ORDER BY d.dek_version"
    ))
    .bind(tenant.as_str())
    .fetch_all(connection)
    .await?;
    Ok(found.into_iter().filter_map(|row| row.record(tenant).transpose()).collect::<Result<_, _>>()?)
}

/// A DEK of this tenant, its row locked: a rewrap that is in it has ended, and none begins.
pub(super) async fn lock_dek(
    tx: &mut PgConnection,
    tenant: &Tenant,
    version: DekVersion,
) -> Result<Option<DekRecord>, Failure> {
    let row: Option<DekColumns> = sqlx::query_as(concat!(
        "SELECT ",
        dek_columns!(),
        " FROM containarium.deks d WHERE d.tenant = $1 AND d.dek_version = $2 FOR NO KEY UPDATE"
    ))
    .bind(tenant.as_str())
    .bind(i64::from(version.get()))
    .fetch_optional(tx)
    .await?;
    Ok(row.map_or(Ok(None), |row| row.record(tenant))?)
}

pub(super) struct SealedUnder<'a> {
    pub(super) tenant: &'a Tenant,
    pub(super) dek: DekVersion,
    pub(super) after: Option<(&'a SecretName, SecretVersion)>,
    pub(super) limit: u32,
}

#[async_trait]
impl Read for SealedUnder<'_> {
    type Output = Vec<SealedVersion>;

    async fn run(&self, connection: &mut PgConnection) -> Result<Self::Output, Failure> {
        let query = sqlx::query_as(
            "SELECT name, version, ciphertext FROM containarium.secret_versions \
             WHERE tenant = $1 AND dek_version = $2 AND (name, version) > ($3, $4) ORDER BY name, version LIMIT $5",
        );
        // Planned for each page: by the DEK's index where few are left, along the primary key where a sort would read them all.
        let found: Vec<SealedVersionRow> = query
            .persistent(false)
            .bind(self.tenant.as_str())
            .bind(i64::from(self.dek.get()))
            .bind(self.after.map_or("", |(name, _)| name.as_str()))
            .bind(self.after.map_or(0, |(_, version)| column(version)))
            .bind(i64::from(self.limit))
            .fetch_all(connection)
            .await?;
        Ok(found.into_iter().map(|row| row.record(self.tenant)).collect::<Result<_, _>>()?)
    }
}

/// A tenant's row and what its listing counts.
macro_rules! select_tenants {
    ($rest:literal) => {
        concat!(
            "SELECT t.tenant, t.created_at, t.shred_at, t.shredded_at, d.dek_version AS active_dek, ( \
                 SELECT count(*) FROM containarium.secrets s \
                 LEFT JOIN containarium.secret_versions v \
                     ON v.tenant = s.tenant AND v.name = s.name AND v.version = s.current_version \
                 WHERE s.tenant = t.tenant AND s.deleted_at IS NULL AND v.state IS DISTINCT FROM 'destroyed' \
             ) AS secrets \
             FROM containarium.tenants t LEFT JOIN containarium.deks d ON d.tenant = t.tenant AND d.state = 'active' ",
            $rest
        )
    };
}

pub(super) async fn tenant(tx: &mut PgConnection, tenant: &Tenant) -> Result<Option<TenantRecord>, Failure> {
    let row: Option<TenantRow> =
        sqlx::query_as(select_tenants!("WHERE t.tenant = $1")).bind(tenant.as_str()).fetch_optional(tx).await?;
    Ok(row.map(TenantRow::record).transpose()?)
}

pub(super) struct BlockedTenants<'a> {
    pub(super) after: Option<&'a Tenant>,
    pub(super) limit: u32,
}

#[async_trait]
impl Read for BlockedTenants<'_> {
    type Output = Vec<TenantRecord>;

    async fn run(&self, connection: &mut PgConnection) -> Result<Self::Output, Failure> {
        let sql = select_tenants!("WHERE t.tenant > $1 AND t.shred_at IS NOT NULL ORDER BY t.tenant LIMIT $2");
        let found: Vec<TenantRow> = sqlx::query_as(sql)
            .bind(self.after.map_or("", Tenant::as_str))
            .bind(i64::from(self.limit))
            .fetch_all(connection)
            .await?;
        Ok(found.into_iter().map(TenantRow::record).collect::<Result<_, _>>()?)
    }
}

pub(super) struct DueShreds(pub(super) u32);

#[async_trait]
impl Read for DueShreds {
    type Output = Vec<Tenant>;

    async fn run(&self, connection: &mut PgConnection) -> Result<Vec<Tenant>, Failure> {
        let found: Vec<String> = sqlx::query_scalar(
            "SELECT tenant FROM containarium.tenants WHERE shredded_at IS NULL \
                 AND shred_at <= (extract(epoch FROM statement_timestamp()) * 1000000)::bigint \
             ORDER BY shred_at, tenant LIMIT $1",
        )
        .bind(i64::from(self.0))
        .fetch_all(connection)
        .await?;
        tenants(found, "tenants")
    }
}

fn tenants(found: Vec<String>, table: &'static str) -> Result<Vec<Tenant>, Failure> {
    let parse = |text: String| {
        Tenant::from_row(&text).map_err(|error| StoreError::Corrupt { table, what: error.to_string(), key: text })
    };
    Ok(found.into_iter().map(parse).collect::<Result<_, _>>()?)
}

pub(super) struct MadeBeforeActive<'a> {
    pub(super) after: Option<&'a Tenant>,
    pub(super) limit: u32,
}

#[async_trait]
impl Read for MadeBeforeActive<'_> {
    type Output = Vec<Tenant>;

    async fn run(&self, connection: &mut PgConnection) -> Result<Vec<Tenant>, Failure> {
        let found: Vec<String> = sqlx::query_scalar(
            "SELECT DISTINCT d.tenant FROM containarium.deks d JOIN containarium.tenants t ON t.tenant = d.tenant \
             WHERE d.state IN ('active', 'decrypt_only') AND d.tenant > $1 AND t.shred_at IS NULL \
                 AND coalesce(d.made_in_epoch, 0) < (SELECT epoch FROM containarium.key_state) \
             ORDER BY d.tenant LIMIT $2",
        )
        .bind(self.after.map_or("", Tenant::as_str))
        .bind(i64::from(self.limit))
        .fetch_all(connection)
        .await?;
        tenants(found, "deks")
    }
}

pub(super) struct Now;

#[async_trait]
impl Read for Now {
    type Output = Micros;

    async fn run(&self, connection: &mut PgConnection) -> Result<Micros, Failure> {
        Ok(Micros(sqlx::query_scalar(NOW).fetch_one(connection).await?))
    }
}
