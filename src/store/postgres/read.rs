//! Reads: each is one statement, outside of a transaction.

use async_trait::async_trait;
use sqlx::Row;
use sqlx::postgres::{PgConnection, PgRow};

use super::failure::Failure;
use super::rows::{self, Standing};
use super::tx::Read;
use crate::model::{Counts, DekState, Kid, SecretName, SecretRecord, Tenant, TenantRecord, VersionRecord};
use crate::store::{Found, Page, Place, Refusal, Survey, Which};

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
    type Output = Vec<Found>;

    async fn run(&self, connection: &mut PgConnection) -> Result<Vec<Found>, Failure> {
        let places = self.0;
        let tenants: Vec<_> = places.iter().map(|place| place.tenant.as_str()).collect();
        let names: Vec<_> = places.iter().map(|place| place.name.as_str()).collect();
        let versions: Vec<_> = places
            .iter()
            .map(|place| match place.which {
                Which::Current => None,
                Which::Number(version) => Some(rows::column(version)),
            })
            .collect();
        // UNNEST of the columns side by side keeps the places apart; two `= ANY` would answer every tenant with every name.
        // Nothing of a blocked tenant is fetched.
        let found = sqlx::query(concat!(
            "SELECT t.tenant, t.shred_at, p.name, ",
            rows::secret_columns!(),
            ", ",
            rows::version_columns!(),
            ", ",
            rows::dek_columns!(),
            " FROM unnest($1::text[], $2::text[], $3::bigint[]) WITH ORDINALITY AS p (tenant, name, version, place) \
             LEFT JOIN containarium.tenants t ON t.tenant = p.tenant \
             LEFT JOIN containarium.secrets s ON s.tenant = t.tenant AND s.name = p.name AND t.shred_at IS NULL \
             LEFT JOIN containarium.secret_versions v ON v.tenant = s.tenant AND v.name = s.name \
                 AND v.version = COALESCE(p.version, s.current_version) \
             LEFT JOIN containarium.deks d ON d.tenant = v.tenant AND d.dek_version = v.dek_version \
             ORDER BY p.place"
        ))
        .bind(tenants)
        .bind(names)
        .bind(versions)
        .fetch_all(connection)
        .await?;
        places.iter().zip(&found).map(|(place, row)| place_found(place, row)).collect()
    }
}

fn place_found(place: &Place, row: &PgRow) -> Result<Found, Failure> {
    match Standing::of(row)? {
        Standing::Unknown => return Ok(Found::NoTenant),
        Standing::Blocked => return Ok(Found::TenantBlocked),
        Standing::Open => {}
    }
    let Some(secret) = rows::secret(row, &place.tenant, &place.name)? else { return Ok(Found::NoSecret) };
    let version = rows::version(row, &place.tenant, &place.name)?;
    if place.which == Which::Current && version.is_none() {
        return Err(rows::no_current_version(&place.tenant, &place.name).into());
    }
    Ok(Found::Secret(secret, version))
}

pub(super) struct ReadTenant<'a> {
    pub(super) tenant: &'a Tenant,
    pub(super) limit: u32,
}

#[async_trait]
impl Read for ReadTenant<'_> {
    type Output = Result<Page<(SecretRecord, VersionRecord)>, Refusal>;

    async fn run(&self, connection: &mut PgConnection) -> Result<Self::Output, Failure> {
        let found = sqlx::query(concat!(
            "SELECT t.tenant, t.shred_at, s.name, ",
            rows::secret_columns!(),
            ", ",
            rows::version_columns!(),
            ", ",
            rows::dek_columns!(),
            " FROM containarium.tenants t \
             LEFT JOIN (containarium.secrets s \
                 JOIN containarium.secret_versions v ON v.tenant = s.tenant AND v.name = s.name \
                     AND v.version = s.current_version AND v.state = 'live' \
                 LEFT JOIN containarium.deks d ON d.tenant = v.tenant AND d.dek_version = v.dek_version) \
                 ON s.tenant = t.tenant AND s.deleted_at IS NULL AND t.shred_at IS NULL \
             WHERE t.tenant = $1 ORDER BY s.name LIMIT $2"
        ))
        .bind(self.tenant.as_str())
        .bind(one_more(self.limit))
        .fetch_all(connection)
        .await?;
        listed(self.tenant, &found, self.limit, |name, row| {
            let Some(secret) = rows::secret(row, self.tenant, name)? else { return Ok(None) };
            let version = rows::version(row, self.tenant, name)?;
            Ok(version.map(|version| (secret, version)))
        })
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
        let found = sqlx::query(concat!(
            "SELECT t.tenant, t.shred_at, s.name, ",
            rows::secret_columns!(),
            " FROM containarium.tenants t \
             LEFT JOIN (containarium.secrets s \
                 JOIN containarium.secret_versions v ON v.tenant = s.tenant AND v.name = s.name \
                     AND v.version = s.current_version AND v.state = 'live') \
                 ON s.tenant = t.tenant AND s.deleted_at IS NULL AND t.shred_at IS NULL AND s.name > $2 \
             WHERE t.tenant = $1 ORDER BY s.name LIMIT $3"
        ))
        .bind(self.tenant.as_str())
        .bind(self.after.map_or("", SecretName::as_str))
        .bind(one_more(self.limit))
        .fetch_all(connection)
        .await?;
        listed(self.tenant, &found, self.limit, |name, row| rows::secret(row, self.tenant, name))
    }
}

/// Items of a tenant from rows that hold its standing beside each of them; a tenant without items is one row without a name.
fn listed<T>(
    tenant: &Tenant,
    found: &[PgRow],
    limit: u32,
    item: impl Fn(&SecretName, &PgRow) -> Result<Option<T>, Failure>,
) -> Result<Result<Page<T>, Refusal>, Failure> {
    let Some(first) = found.first() else { return Ok(Err(Refusal::NoTenant)) };
    match Standing::of(first)? {
        Standing::Unknown => return Ok(Err(Refusal::NoTenant)),
        Standing::Blocked => return Ok(Err(Refusal::TenantBlocked)),
        Standing::Open => {}
    }
    let mut items = Vec::with_capacity(found.len());
    for row in found {
        let Some(name) = rows::name(row, tenant)? else { continue };
        items.extend(item(&name, row)?);
    }
    Ok(Ok(page(items, limit)))
}

/// One row more than asked for tells whether there are more.
fn one_more(limit: u32) -> i64 {
    i64::from(limit) + 1
}

fn page<T>(mut items: Vec<T>, limit: u32) -> Page<T> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = items.len() > limit;
    items.truncate(limit);
    Page { items, more }
}

pub(super) struct Versions<'a> {
    pub(super) tenant: &'a Tenant,
    pub(super) name: &'a SecretName,
}

#[async_trait]
impl Read for Versions<'_> {
    type Output = Result<(SecretRecord, Vec<VersionRecord>), Refusal>;

    async fn run(&self, connection: &mut PgConnection) -> Result<Self::Output, Failure> {
        let found = sqlx::query(concat!(
            "SELECT t.tenant, t.shred_at, ",
            rows::secret_columns!(),
            ", ",
            rows::version_columns!(without ciphertext),
            ", ",
            rows::dek_columns!(),
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
        let Some(first) = found.first() else { return Ok(Err(Refusal::NoTenant)) };
        if let Standing::Blocked = Standing::of(first)? {
            return Ok(Err(Refusal::TenantBlocked));
        }
        let Some(secret) = rows::secret(first, self.tenant, self.name)? else { return Ok(Err(Refusal::NoSecret)) };
        let mut versions = Vec::with_capacity(found.len());
        for row in &found {
            versions.extend(rows::version(row, self.tenant, self.name)?);
        }
        Ok(Ok((secret, versions)))
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
        let found = sqlx::query(
            "SELECT t.tenant, t.created_at, t.shred_at, d.dek_version, ( \
                 SELECT count(*) FROM containarium.secrets s \
                 JOIN containarium.secret_versions v ON v.tenant = s.tenant AND v.name = s.name AND v.version = s.current_version \
                 WHERE s.tenant = t.tenant AND s.deleted_at IS NULL AND v.state = 'live' \
             ) AS secrets \
             FROM containarium.tenants t \
             LEFT JOIN containarium.deks d ON d.tenant = t.tenant AND d.state = 'active' \
             WHERE t.tenant > $1 AND NOT starts_with(t.tenant, '_') ORDER BY t.tenant LIMIT $2",
        )
        .bind(self.after.map_or("", Tenant::as_str))
        .bind(one_more(self.limit))
        .fetch_all(connection)
        .await?;
        let items = found.iter().map(rows::tenant).collect::<Result<_, _>>()?;
        Ok(page(items, self.limit))
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
                      JOIN containarium.secret_versions v ON v.tenant = s.tenant AND v.name = s.name AND v.version = s.current_version \
                      WHERE s.deleted_at IS NULL AND v.state = 'live' AND NOT starts_with(s.tenant, '_')) AS secrets, \
                 (SELECT count(*) FROM containarium.secret_versions \
                      WHERE state = 'live' AND NOT starts_with(tenant, '_')) AS versions, \
                 (SELECT COALESCE(array_agg(state), '{}') FROM (SELECT state FROM containarium.deks GROUP BY state ORDER BY state) g) AS states, \
                 (SELECT COALESCE(array_agg(n), '{}') FROM (SELECT count(*) AS n FROM containarium.deks GROUP BY state ORDER BY state) g) AS numbers",
        )
        .fetch_one(connection)
        .await?;
        let states: Vec<String> = row.try_get("states")?;
        let numbers: Vec<i64> = row.try_get("numbers")?;
        let deks = DekState::ALL.iter().map(|state| {
            let counted = states.iter().zip(&numbers).find(|(counted, _)| counted.as_str() == state.as_str());
            (*state, counted.map_or(0, |(_, number)| rows::count(*number)))
        });
        Ok(Counts {
            tenants: rows::count(row.try_get("tenants")?),
            secrets: rows::count(row.try_get("secrets")?),
            versions: rows::count(row.try_get("versions")?),
            deks: deks.collect(),
        })
    }
}

pub(super) struct ConfirmedEscrow(pub(super) Kid);

#[async_trait]
impl Read for ConfirmedEscrow {
    type Output = bool;

    async fn run(&self, connection: &mut PgConnection) -> Result<bool, Failure> {
        Ok(sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM containarium.escrows WHERE kid = $1 AND kind = 'copy' AND confirmed_at IS NOT NULL)",
        )
        .bind(self.0.as_bytes().as_slice())
        .fetch_one(connection)
        .await?)
    }
}

pub(super) struct TakeSurvey;

#[async_trait]
impl Read for TakeSurvey {
    type Output = Survey;

    async fn run(&self, connection: &mut PgConnection) -> Result<Survey, Failure> {
        // One statement, so one snapshot; a row for each master key, or one without.
        let found = sqlx::query(concat!(
            "SELECT ",
            rows::key_state_columns!(),
            ", m.kid AS master_kid, m.state AS master_state, m.created_at AS master_created_at, \
             EXISTS (SELECT FROM containarium.deks WHERE kid = m.kid AND state IN ('active', 'decrypt_only')) AS master_in_use, \
             EXISTS (SELECT FROM containarium.tenants) OR EXISTS (SELECT FROM containarium.deks) \
                 OR EXISTS (SELECT FROM containarium.secrets) OR EXISTS (SELECT FROM containarium.secret_versions) AS holds_rows, \
             EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                 WHERE c.relname = 'secrets' AND c.relkind IN ('r', 'p', 'f') AND n.nspname <> 'containarium' \
                     AND NOT starts_with(n.nspname, 'pg_')) AS v1_table \
             FROM (SELECT) AS always LEFT JOIN containarium.key_state k ON true LEFT JOIN containarium.master_keys m ON true \
             ORDER BY m.created_at, m.kid"
        ))
        .fetch_all(connection)
        .await?;
        let first = found.first().ok_or(sqlx::Error::RowNotFound)?;
        let mut master_keys = Vec::with_capacity(found.len());
        for row in &found {
            master_keys.extend(rows::master_key(row)?);
        }
        Ok(Survey {
            key_state: rows::key_state(first)?,
            master_keys,
            holds_rows: first.try_get("holds_rows")?,
            v1_table: first.try_get("v1_table")?,
        })
    }
}
