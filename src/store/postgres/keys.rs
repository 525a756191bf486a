//! Transactions that make keys: the first master key of a database, and DEKs.

use async_trait::async_trait;
use sqlx::Row;
use sqlx::postgres::PgConnection;

use super::columns;
use super::failure::Failure;
use super::masters::no_key_yet;
use super::tx::{End, Work};
use super::{NOW, locks};
use crate::model::{DekBody, DekRecord, DekVersion, Kid, Tenant, WrappedDek};
use crate::store::rows::{self, DekColumns, KeyStateRow};
use crate::store::{DekMaker, DekOutcome, FirstKey, FirstKeyMaker, FirstKeyOutcome, NewDek};

pub(super) struct MakeFirstKey<'a> {
    pub(super) maker: &'a mut dyn FirstKeyMaker,
    /// The key once it is made: its file is staged by then, so another attempt takes this one and does not stage a second.
    pub(super) made: Option<FirstKey>,
}

#[async_trait]
impl Work for MakeFirstKey<'_> {
    type Output = FirstKeyOutcome;

    async fn run(&mut self, tx: &mut PgConnection) -> Result<End<FirstKeyOutcome>, Failure> {
        locks::master_exclusive(tx).await?;
        let held: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM containarium.key_state) OR EXISTS (SELECT FROM containarium.master_keys) \
                 OR EXISTS (SELECT FROM containarium.tenants) OR EXISTS (SELECT FROM containarium.deks) \
                 OR EXISTS (SELECT FROM containarium.secrets) OR EXISTS (SELECT FROM containarium.secret_versions)",
        )
        .fetch_one(&mut *tx)
        .await?;
        if held {
            return Ok(End::Rollback(FirstKeyOutcome::AlreadyHeld));
        }
        let key = match self.made.take() {
            Some(made) => made,
            None => match self.maker.make() {
                Ok(made) => made,
                Err(why) => return Ok(End::Rollback(FirstKeyOutcome::NotMade(why))),
            },
        };
        let key = self.made.insert(key);
        insert_first_key(tx, key).await?;
        let state: KeyStateRow =
            sqlx::query_as("SELECT db_id, epoch, generation, active_kid, mode, phase, lease_holder, lease_boot, lease_until FROM containarium.key_state")
                .fetch_one(&mut *tx)
                .await?;
        Ok(End::Commit(FirstKeyOutcome::Made(state.record()?)))
    }
}

async fn insert_first_key(tx: &mut PgConnection, key: &FirstKey) -> Result<(), Failure> {
    let system = Tenant::system();
    let (names, ciphertexts): (Vec<_>, Vec<_>) =
        key.system_secrets.iter().map(|(name, ciphertext)| (name.as_str(), ciphertext.as_slice())).unzip();
    let at: i64 = sqlx::query_scalar(NOW).fetch_one(&mut *tx).await?;
    sqlx::query(
        "INSERT INTO containarium.master_keys (kid, state, created_at, activated_at) VALUES ($1, 'active', $2, $2)",
    )
    .bind(key.kid.as_bytes().as_slice())
    .bind(at)
    .execute(&mut *tx)
    .await?;
    sqlx::query(
        "INSERT INTO containarium.key_state (only_row, db_id, epoch, generation, active_kid, mode, phase) \
         VALUES (1, $1, 1, 1, $2, 'normal', 'idle')",
    )
    .bind(key.db_id.as_slice())
    .bind(key.kid.as_bytes().as_slice())
    .execute(&mut *tx)
    .await?;
    insert_tenant(tx, &system, at).await?;
    insert_dek(tx, &system, DekVersion::FIRST, key.kid, &key.system_dek, at).await?;
    sqlx::query(
        "INSERT INTO containarium.secrets (tenant, name, current_version, last_version, delivery, created_at, updated_at) \
         SELECT $1, name, 1, 1, 'env', $3, $3 FROM unnest($2::text[]) AS name",
    )
    .bind(system.as_str())
    .bind(&names)
    .bind(at)
    .execute(&mut *tx)
    .await?;
    sqlx::query(
        "INSERT INTO containarium.secret_versions (tenant, name, version, state, dek_version, ciphertext, created_at) \
         SELECT $1, name, 1, 'live', 1, ciphertext, $4 FROM unnest($2::text[], $3::bytea[]) AS n (name, ciphertext)",
    )
    .bind(system.as_str())
    .bind(&names)
    .bind(&ciphertexts)
    .bind(at)
    .execute(&mut *tx)
    .await?;
    Ok(())
}

async fn insert_tenant(tx: &mut PgConnection, tenant: &Tenant, at: i64) -> Result<(), Failure> {
    sqlx::query("INSERT INTO containarium.tenants (tenant, created_at) VALUES ($1, $2)")
        .bind(tenant.as_str())
        .bind(at)
        .execute(tx)
        .await?;
    Ok(())
}

pub(super) async fn insert_dek(
    tx: &mut PgConnection,
    tenant: &Tenant,
    version: DekVersion,
    kid: Kid,
    dek: &NewDek,
    at: i64,
) -> Result<(), Failure> {
    sqlx::query(
        "INSERT INTO containarium.deks (tenant, dek_version, kid, dek_id, state, wrapped, created_at, made_in_epoch) \
         VALUES ($1, $2, $3, $4, 'active', $5, $6, (SELECT epoch FROM containarium.key_state))",
    )
    .bind(tenant.as_str())
    .bind(i64::from(version.get()))
    .bind(kid.as_bytes().as_slice())
    .bind(dek.id.as_bytes().as_slice())
    .bind(&dek.wrapped)
    .bind(at)
    .execute(tx)
    .await?;
    Ok(())
}

pub(super) struct CreateDek<'a> {
    pub(super) tenant: &'a Tenant,
    pub(super) maker: &'a dyn DekMaker,
}

#[async_trait]
impl Work for CreateDek<'_> {
    type Output = DekOutcome;

    async fn run(&mut self, tx: &mut PgConnection) -> Result<End<DekOutcome>, Failure> {
        locks::master_shared(tx).await?;
        locks::tenant_exclusive(tx, self.tenant).await?;
        // Everything is read in statements after both locks: the flip of a rotation may have been what this waited for.
        let (standing, active_kid) = look(tx, self.tenant).await?;
        if standing == Standing::Blocked {
            return Ok(End::Rollback(DekOutcome::Blocked));
        }
        if let Some(dek) = active_dek(tx, self.tenant).await? {
            return Ok(End::Rollback(DekOutcome::Active(dek)));
        }
        let version = match next_version(tx, self.tenant).await? {
            Next::Version(version) => version,
            Next::Orphans(dek_version) => return Ok(End::Rollback(DekOutcome::Orphans { dek_version })),
        };
        let new = match self.maker.make(self.tenant, version, active_kid) {
            Ok(new) => new,
            Err(refusal) => return Ok(End::Rollback(DekOutcome::Refused(refusal))),
        };
        let at: i64 = sqlx::query_scalar(NOW).fetch_one(&mut *tx).await?;
        if standing == Standing::Unknown {
            insert_tenant(tx, self.tenant, at).await?;
        }
        insert_dek(tx, self.tenant, version, active_kid, &new, at).await?;
        let wrapped = WrappedDek { kid: active_kid, bytes: new.wrapped };
        let dek = DekRecord { tenant: self.tenant.clone(), version, id: new.id, body: DekBody::Active(wrapped) };
        Ok(End::Commit(DekOutcome::Active(dek)))
    }
}

pub(super) enum Next {
    Version(DekVersion),
    /// Live versions need a DEK of this number, and its row is gone.
    Orphans(DekVersion),
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Unknown,
    Blocked,
    Open,
}

/// How the tenant stands, and the active master key.
///
/// # Errors
/// [`StoreError::Refused`](crate::store::StoreError::Refused) where the database has held no key yet.
pub(super) async fn look(tx: &mut PgConnection, tenant: &Tenant) -> Result<(Standing, Kid), Failure> {
    let row = sqlx::query(
        "SELECT k.active_kid, t.tenant, t.shred_at \
         FROM containarium.key_state k LEFT JOIN containarium.tenants t ON t.tenant = $1",
    )
    .bind(tenant.as_str())
    .fetch_optional(tx)
    .await?
    .ok_or_else(no_key_yet)?;
    let (known, shred_at): (Option<&str>, Option<i64>) = (row.try_get("tenant")?, row.try_get("shred_at")?);
    let standing = match (known, shred_at) {
        (None, _) => Standing::Unknown,
        (Some(_), Some(_)) => Standing::Blocked,
        (Some(_), None) => Standing::Open,
    };
    Ok((standing, rows::active_kid(row.try_get("active_kid")?)?))
}

pub(super) async fn active_dek(tx: &mut PgConnection, tenant: &Tenant) -> Result<Option<DekRecord>, Failure> {
    let row: Option<DekColumns> = sqlx::query_as(concat!(
        "SELECT ",
        columns::dek_columns!(),
        " FROM containarium.deks d WHERE d.tenant = $1 AND d.state = 'active'"
    ))
    .bind(tenant.as_str())
    .fetch_optional(tx)
    .await?;
    Ok(row.map_or(Ok(None), |row| row.record(tenant))?)
}

pub(super) async fn next_version(tx: &mut PgConnection, tenant: &Tenant) -> Result<Next, Failure> {
    let row = sqlx::query(
        "SELECT \
             (SELECT max(dek_version) FROM containarium.deks WHERE tenant = $1) AS highest, \
             (SELECT min(v.dek_version) FROM containarium.secret_versions v \
                  WHERE v.tenant = $1 AND v.dek_version IS NOT NULL AND NOT EXISTS ( \
                      SELECT FROM containarium.deks d WHERE d.tenant = v.tenant AND d.dek_version = v.dek_version)) AS orphaned",
    )
    .bind(tenant.as_str())
    .fetch_one(tx)
    .await?;
    if let Some(orphaned) = row.try_get("orphaned")? {
        return Ok(Next::Orphans(rows::orphaned_dek_version(tenant, orphaned)?));
    }
    // Every live version has its DEK's row here, so the rows alone know the highest number.
    Ok(Next::Version(rows::next_dek_version(tenant, row.try_get("highest")?)?))
}
