//! Changes of one secret that seal nothing: delete, undelete, destroy.

use async_trait::async_trait;
use sqlx::postgres::{PgConnection, PgRow};

use super::failure::Failure;
use super::rows::{self, Standing};
use super::tx::{End, Work};
use super::{NOW, locks};
use crate::model::{SecretName, SecretRecord, SecretVersion, Tenant};
use crate::store::Refusal;

// Before its use, as a macro must be.
macro_rules! stamp_sql {
    ($deleted_at:literal) => {
        concat!(
            "WITH n AS MATERIALIZED (SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS at) \
             UPDATE containarium.secrets s SET updated_at = n.at, deleted_at = ",
            $deleted_at,
            " FROM n WHERE s.tenant = $1 AND s.name = $2 RETURNING ",
            rows::secret_columns!()
        )
    };
}

pub(super) enum Change<'a> {
    Delete,
    Undelete,
    Destroy(&'a [SecretVersion]),
}

pub(super) struct ChangeSecret<'a> {
    pub(super) tenant: &'a Tenant,
    pub(super) name: &'a SecretName,
    pub(super) change: Change<'a>,
}

#[async_trait]
impl Work for ChangeSecret<'_> {
    type Output = Result<SecretRecord, Refusal>;

    async fn run(&mut self, tx: &mut PgConnection) -> Result<End<Self::Output>, Failure> {
        // Shared as for a write: a shred that begins waits for this, and this sees one that has begun.
        locks::tenants_shared(tx, &[self.tenant.as_str()]).await?;
        let secret = match self.lock_secret(tx).await? {
            Ok(secret) => secret,
            Err(refusal) => return Ok(End::Rollback(Err(refusal))),
        };
        let changed = match (&self.change, secret.deleted_at) {
            (Change::Delete, None) => self.stamp(tx, Deletion::Set).await?,
            (Change::Delete, Some(_)) => return Ok(End::Rollback(Err(Refusal::Deleted))),
            (Change::Undelete, Some(_)) => self.stamp(tx, Deletion::Clear).await?,
            (Change::Undelete, None) => return Ok(End::Rollback(Err(Refusal::NotDeleted))),
            (Change::Destroy(versions), _) => {
                if let Some(unknown) = self.first_unknown(tx, versions).await? {
                    return Ok(End::Rollback(Err(Refusal::NoVersion(unknown))));
                }
                if self.destroy(tx, versions).await? == 0 {
                    return Ok(End::Rollback(Ok(secret)));
                }
                self.stamp(tx, Deletion::Keep).await?
            }
        };
        Ok(End::Commit(Ok(changed)))
    }
}

/// What a stamp does with `deleted_at`.
#[derive(Clone, Copy)]
enum Deletion {
    Set,
    Clear,
    Keep,
}

impl ChangeSecret<'_> {
    /// The secret, its row locked.
    async fn lock_secret(&self, tx: &mut PgConnection) -> Result<Result<SecretRecord, Refusal>, Failure> {
        let tenant = sqlx::query("SELECT tenant, shred_at FROM containarium.tenants WHERE tenant = $1")
            .bind(self.tenant.as_str())
            .fetch_optional(&mut *tx)
            .await?;
        match tenant.as_ref().map_or(Ok(Standing::Unknown), Standing::of)? {
            Standing::Unknown => return Ok(Err(Refusal::NoTenant)),
            Standing::Blocked => return Ok(Err(Refusal::TenantBlocked)),
            Standing::Open => {}
        }
        let row = sqlx::query(concat!(
            "SELECT ",
            rows::secret_columns!(),
            " FROM containarium.secrets s WHERE s.tenant = $1 AND s.name = $2 FOR NO KEY UPDATE"
        ))
        .bind(self.tenant.as_str())
        .bind(self.name.as_str())
        .fetch_optional(tx)
        .await?;
        let secret = row.as_ref().map(|row| self.record(row)).transpose()?;
        Ok(secret.ok_or(Refusal::NoSecret))
    }

    async fn stamp(&self, tx: &mut PgConnection, deletion: Deletion) -> Result<SecretRecord, Failure> {
        let sql = match deletion {
            Deletion::Set => stamp_sql!("n.at"),
            Deletion::Clear => stamp_sql!("NULL"),
            Deletion::Keep => stamp_sql!("s.deleted_at"),
        };
        let row = sqlx::query(sql).bind(self.tenant.as_str()).bind(self.name.as_str()).fetch_one(tx).await?;
        self.record(&row)
    }

    fn record(&self, row: &PgRow) -> Result<SecretRecord, Failure> {
        Ok(rows::secret(row, self.tenant, self.name)?.ok_or(sqlx::Error::RowNotFound)?)
    }

    async fn first_unknown(
        &self,
        tx: &mut PgConnection,
        versions: &[SecretVersion],
    ) -> Result<Option<SecretVersion>, Failure> {
        let unknown: Option<i64> = sqlx::query_scalar(
            "SELECT p.place FROM unnest($3::bigint[]) WITH ORDINALITY AS p (version, place) \
             WHERE NOT EXISTS (SELECT FROM containarium.secret_versions v \
                 WHERE v.tenant = $1 AND v.name = $2 AND v.version = p.version) \
             ORDER BY p.place LIMIT 1",
        )
        .bind(self.tenant.as_str())
        .bind(self.name.as_str())
        .bind(columns(versions))
        .fetch_optional(tx)
        .await?;
        let place = unknown.and_then(|place| usize::try_from(place).ok()).and_then(|place| place.checked_sub(1));
        Ok(place.and_then(|place| versions.get(place)).copied())
    }

    /// How many were live until now.
    async fn destroy(&self, tx: &mut PgConnection, versions: &[SecretVersion]) -> Result<u64, Failure> {
        let at: i64 = sqlx::query_scalar(NOW).fetch_one(&mut *tx).await?;
        let done = sqlx::query(
            "UPDATE containarium.secret_versions \
             SET state = 'destroyed', ciphertext = NULL, dek_version = NULL, destroyed_at = $4 \
             WHERE tenant = $1 AND name = $2 AND version = ANY ($3::bigint[]) AND state = 'live'",
        )
        .bind(self.tenant.as_str())
        .bind(self.name.as_str())
        .bind(columns(versions))
        .bind(at)
        .execute(tx)
        .await?;
        Ok(done.rows_affected())
    }
}

fn columns(versions: &[SecretVersion]) -> Vec<i64> {
    versions.iter().map(|version| rows::column(*version)).collect()
}
