//! Reads: each is one statement, outside of a transaction.

use async_trait::async_trait;
use sqlx::Row;
use sqlx::postgres::PgConnection;

use super::columns::{self, column, one_more};
use super::failure::Failure;
use super::tx::Read;
use crate::model::{Counts, Kid, SecretName, SecretRecord, Tenant, TenantRecord, VersionRecord};
use crate::store::rows::{self, KeyStateRow, MasterKeyRow, PlaceRow, SecretRow, TenantRow, VersionRow};
use crate::store::{Found, Page, Place, Refusal, StoreError, Survey, Which};

pub(super) struct Ping;

#[async_trait]
impl Read for Ping {
    type Output = ();

    async fn run(&self, connection: &mut PgConnection) -> Result<(), Failure> {
        sqlx::query("SELECT 1").execute(connection).await?;
        Ok(())
    }
}

pub(super) struct ReadPlaces<'a>(pub(super) &'a [Place]);

#[async_trait]
impl Read for ReadPlaces<'_> {
    type Output = Vec<Result<Found, StoreError>>;

    async fn run(&self, connection: &mut PgConnection) -> Result<Self::Output, Failure> {
        if self.0.is_empty() {
            return Ok(Vec::new());
        }
        let rows = place_rows(connection, self.0).await?;
        Ok(self.0.iter().zip(rows).map(|(place, row)| row.found(place)).collect())
    }
}

/// A row for each place, in their order.
///
/// UNNEST of the columns side by side keeps the places apart; two `= ANY` would answer every tenant with every name. Nothing of a
/// blocked tenant is fetched.
pub(super) async fn place_rows(connection: &mut PgConnection, places: &[Place]) -> Result<Vec<PlaceRow>, Failure> {
    let version = |place: &Place| match place.which {
        Which::Current => None,
        Which::Number(version) => Some(column(version)),
    };
    Ok(sqlx::query_as(concat!(
        "SELECT p.place - 1 AS place, ",
        columns::tenant_columns!(),
        ", ",
        columns::secret_columns!(),
        ", ",
        columns::version_columns!("v.ciphertext"),
        ", ",
        columns::dek_columns!(),
        " FROM unnest($1::text[], $2::text[], $3::bigint[]) WITH ORDINALITY AS p (tenant, name, version, place) \
         LEFT JOIN containarium.tenants t ON t.tenant = p.tenant \
         LEFT JOIN containarium.secrets s ON s.tenant = t.tenant AND s.name = p.name AND t.shred_at IS NULL \
         LEFT JOIN containarium.secret_versions v ON v.tenant = s.tenant AND v.name = s.name \
             AND v.version = COALESCE(p.version, s.current_version) \
         LEFT JOIN containarium.deks d ON d.tenant = v.tenant AND d.dek_version = v.dek_version \
         ORDER BY p.place"
    ))
    .bind(places.iter().map(|place| place.tenant.as_str()).collect::<Vec<_>>())
    .bind(places.iter().map(|place| place.name.as_str()).collect::<Vec<_>>())
    .bind(places.iter().map(version).collect::<Vec<_>>())
    .fetch_all(connection)
    .await?)
}

pub(super) struct ReadTenant<'a> {
    pub(super) tenant: &'a Tenant,
    pub(super) limit: u32,
}

#[async_trait]
impl Read for ReadTenant<'_> {
    type Output = Result<Page<(SecretRecord, VersionRecord)>, Refusal>;

    async fn run(&self, connection: &mut PgConnection) -> Result<Self::Output, Failure> {
        // A secret whose current version has no row is damaged, not absent: it is kept in, here and in the lists.
        let rows = sqlx::query_as(concat!(
            "SELECT ",
            columns::tenant_columns!(),
            ", i.* FROM containarium.tenants t LEFT JOIN LATERAL ( \
                 SELECT ",
            columns::secret_columns!(),
            ", ",
            columns::version_columns!("v.ciphertext"),
            ", ",
            columns::dek_columns!(),
            "    FROM containarium.secrets s \
                 LEFT JOIN containarium.secret_versions v \
                     ON v.tenant = s.tenant AND v.name = s.name AND v.version = s.current_version \
                 LEFT JOIN containarium.deks d ON d.tenant = v.tenant AND d.dek_version = v.dek_version \
                 WHERE s.tenant = t.tenant AND t.shred_at IS NULL AND s.deleted_at IS NULL \
                     AND v.state IS DISTINCT FROM 'destroyed' \
                 ORDER BY s.name LIMIT $2 \
             ) i ON true WHERE t.tenant = $1 ORDER BY i.s_name"
        ))
        .bind(self.tenant.as_str())
        .bind(one_more(self.limit))
        .fetch_all(connection)
        .await?;
        Ok(VersionRow::page(rows, self.tenant, self.limit)?)
    }
}

pub(super) struct List<'a> {
    pub(super) tenant: &'a Tenant,
    pub(super) after: Option<&'a SecretName>,
    pub(super) limit: u32,
}

#[async_trait]
impl Read for List<'_> {
    type Output = Result<Page<SecretRecord>, Refusal>;

    async fn run(&self, connection: &mut PgConnection) -> Result<Self::Output, Failure> {
        let rows = sqlx::query_as(concat!(
            "SELECT ",
            columns::tenant_columns!(),
            ", i.* FROM containarium.tenants t LEFT JOIN LATERAL ( \
                 SELECT ",
            columns::secret_columns!(),
            "    FROM containarium.secrets s \
                 LEFT JOIN containarium.secret_versions v \
                     ON v.tenant = s.tenant AND v.name = s.name AND v.version = s.current_version \
                 WHERE s.tenant = t.tenant AND t.shred_at IS NULL AND s.deleted_at IS NULL \
                     AND v.state IS DISTINCT FROM 'destroyed' AND s.name > $2 \
                 ORDER BY s.name LIMIT $3 \
             ) i ON true WHERE t.tenant = $1 ORDER BY i.s_name"
        ))
        .bind(self.tenant.as_str())
        .bind(self.after.map_or("", SecretName::as_str))
        .bind(one_more(self.limit))
        .fetch_all(connection)
        .await?;
        Ok(SecretRow::page(rows, self.tenant, self.limit)?)
    }
}

pub(super) struct Versions<'a> {
    pub(super) tenant: &'a Tenant,
    pub(super) name: &'a SecretName,
}

#[async_trait]
impl Read for Versions<'_> {
    type Output = Result<(SecretRecord, Vec<VersionRecord>), Refusal>;

    async fn run(&self, connection: &mut PgConnection) -> Result<Self::Output, Failure> {
        let rows = sqlx::query_as(concat!(
            "SELECT ",
            columns::tenant_columns!(),
            ", ",
            columns::secret_columns!(),
            ", ",
            columns::version_columns!("CASE WHEN v.state = 'live' THEN ''::bytea END"),
            ", ",
            columns::dek_columns!(),
            " FROM containarium.tenants t \
             LEFT JOIN containarium.secrets s ON s.tenant = t.tenant AND s.name = $2 AND t.shred_at IS NULL \
             LEFT JOIN containarium.secret_versions v ON v.tenant = s.tenant AND v.name = s.name \
             LEFT JOIN containarium.deks d ON d.tenant = v.tenant AND d.dek_version = v.dek_version \
             WHERE t.tenant = $1 ORDER BY v.version DESC"
        ))
        .bind(self.tenant.as_str())
        .bind(self.name.as_str())
        .fetch_all(connection)
        .await?;
        Ok(VersionRow::versions(rows, self.tenant)?)
    }
}

pub(super) struct Tenants<'a> {
    pub(super) after: Option<&'a Tenant>,
    pub(super) limit: u32,
}

#[async_trait]
impl Read for Tenants<'_> {
    type Output = Page<TenantRecord>;

    async fn run(&self, connection: &mut PgConnection) -> Result<Page<TenantRecord>, Failure> {
        // starts_with, not LIKE: `_` is a wildcard there.
        let found: Vec<TenantRow> = sqlx::query_as(
            "SELECT t.tenant, t.created_at, t.shred_at, t.shredded_at, d.dek_version AS active_dek, ( \
                 SELECT count(*) FROM containarium.secrets s \
                 LEFT JOIN containarium.secret_versions v \
                     ON v.tenant = s.tenant AND v.name = s.name AND v.version = s.current_version \
                 WHERE s.tenant = t.tenant AND s.deleted_at IS NULL AND v.state IS DISTINCT FROM 'destroyed' \
             ) AS secrets \
             FROM containarium.tenants t \
             LEFT JOIN containarium.deks d ON d.tenant = t.tenant AND d.state = 'active' \
             WHERE t.tenant > $1 AND NOT starts_with(t.tenant, '_') ORDER BY t.tenant LIMIT $2",
        )
        .bind(self.after.map_or("", Tenant::as_str))
        .bind(one_more(self.limit))
        .fetch_all(connection)
        .await?;
        let tenants = found.into_iter().map(TenantRow::record).collect::<Result<_, _>>()?;
        Ok(rows::page(tenants, self.limit))
    }
}

pub(super) struct Count;

#[async_trait]
impl Read for Count {
    type Output = Counts;

    async fn run(&self, connection: &mut PgConnection) -> Result<Counts, Failure> {
        let row = sqlx::query(
            "SELECT \
                 (SELECT count(*) FROM containarium.tenants WHERE NOT starts_with(tenant, '_')) AS tenants, \
                 (SELECT count(*) FROM containarium.secrets s \
                      LEFT JOIN containarium.secret_versions v \
                          ON v.tenant = s.tenant AND v.name = s.name AND v.version = s.current_version \
                      WHERE s.deleted_at IS NULL AND v.state IS DISTINCT FROM 'destroyed' AND NOT starts_with(s.tenant, '_') \
                 ) AS secrets, \
                 (SELECT count(*) FROM containarium.secret_versions \
                      WHERE state = 'live' AND NOT starts_with(tenant, '_')) AS versions, \
                 ARRAY (SELECT state FROM containarium.deks GROUP BY state ORDER BY state) AS states, \
                 ARRAY (SELECT count(*) FROM containarium.deks GROUP BY state ORDER BY state) AS numbers",
        )
        .fetch_one(connection)
        .await?;
        let (states, numbers): (Vec<String>, Vec<i64>) = (row.try_get("states")?, row.try_get("numbers")?);
        Ok(Counts {
            tenants: rows::count(row.try_get("tenants")?),
            secrets: rows::count(row.try_get("secrets")?),
            versions: rows::count(row.try_get("versions")?),
            deks: rows::dek_counts(states.into_iter().zip(numbers).collect())?,
        })
    }
}

pub(super) struct ConfirmedEscrow(pub(super) Kid);

#[async_trait]
impl Read for ConfirmedEscrow {
    type Output = bool;

    async fn run(&self, connection: &mut PgConnection) -> Result<bool, Failure> {
        Ok(sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM containarium.escrows \
             WHERE kid = $1 AND kind = 'copy' AND confirmed_at IS NOT NULL AND lost_as IS NULL)",
        )
        .bind(self.0.as_bytes().as_slice())
        .fetch_one(connection)
        .await?)
    }
}

pub(super) struct TakeSurvey;

/// One snapshot: the statement answers a row for each master key, or one without any, each with all the rest beside it. The one row of
/// `key_state` is asked for by its key: by `ON true` a server that never analyzed these tables expects 400,000 rows, and compiles the
/// query for half a second each time (jit_above_cost).
const SURVEY: &str = "SELECT k.db_id, k.epoch, k.generation, k.active_kid, k.mode, k.phase, \
     k.lease_holder, k.lease_boot, k.lease_until, m.kid, m.state, m.created_at, m.retired_at, \
     EXISTS (SELECT FROM containarium.deks WHERE kid = m.kid AND state IN ('active', 'decrypt_only')) AS in_use, \
     EXISTS (SELECT FROM containarium.tenants) OR EXISTS (SELECT FROM containarium.deks) \
         OR EXISTS (SELECT FROM containarium.secrets) OR EXISTS (SELECT FROM containarium.secret_versions) AS holds_rows, \
     EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relname = 'secrets' AND c.relkind IN ('r', 'p', 'f') AND n.nspname <> 'containarium' \
             AND NOT starts_with(n.nspname, 'pg_')) AS v1_table \
     FROM (SELECT) AS always LEFT JOIN containarium.key_state k ON k.only_row = 1 LEFT JOIN containarium.master_keys m ON true \
     ORDER BY m.created_at, m.kid";

#[async_trait]
impl Read for TakeSurvey {
    type Output = Survey;

    async fn run(&self, connection: &mut PgConnection) -> Result<Survey, Failure> {
        use sqlx::FromRow;

        let found = sqlx::query(SURVEY).fetch_all(connection).await?;
        let first = found.first().ok_or(sqlx::Error::RowNotFound)?;
        let has_state = first.try_get::<Option<&[u8]>, _>("db_id")?.is_some();
        let key_state = has_state.then(|| KeyStateRow::from_row(first)).transpose()?;
        let mut master_keys = Vec::with_capacity(found.len());
        for row in &found {
            if row.try_get::<Option<&[u8]>, _>("kid")?.is_some() {
                master_keys.push(MasterKeyRow::from_row(row)?.record()?);
            }
        }
        Ok(Survey {
            key_state: key_state.map(KeyStateRow::record).transpose()?,
            master_keys,
            holds_rows: first.try_get("holds_rows")?,
            v1_table: first.try_get("v1_table")?,
        })
    }
}
