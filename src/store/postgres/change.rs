//! Changes of one secret that seal nothing: delete, undelete, destroy.

use async_trait::async_trait;
use sqlx::postgres::PgConnection;

use super::columns::{self, column};
use super::failure::Failure;
use super::tx::{End, Work};
use super::{NOW, locks};
use crate::model::{SecretName, SecretRecord, SecretVersion, Tenant};
use crate::store::Refusal;
use crate::store::rows::SecretRow;
use crate::store::trail::Touched;

pub(super) enum Change<'a> {
    Delete,
    Undelete,
    Destroy(&'a [SecretVersion]),
}

pub(super) struct ChangeSecret<'a> {
    pub(super) tenant: &'a Tenant,
    pub(super) name: &'a SecretName,
    pub(super) change: Change<'a>,
    pub(super) touched: Vec<Touched>,
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
        let deletion = match (&self.change, secret.deleted_at) {
            (Change::Delete, None) => Deletion::Set,
            (Change::Delete, Some(_)) => return Ok(End::Rollback(Err(Refusal::Deleted))),
            (Change::Undelete, Some(_)) => Deletion::Clear,
            (Change::Undelete, None) => return Ok(End::Rollback(Err(Refusal::NotDeleted))),
            (Change::Destroy(versions), _) => {
                if let Some(unknown) = self.first_unknown(tx, versions).await? {
                    return Ok(End::Rollback(Err(Refusal::NoVersion(unknown))));
                }
                if self.destroy(tx, versions).await? == 0 {
                    return Ok(End::Rollback(Ok(secret)));
                }
                Deletion::Keep
            }
        };
        self.stamp(tx, deletion).await?;
        let versions = match self.change {
            Change::Destroy(versions) => versions.to_vec(),
            Change::Delete | Change::Undelete => vec![secret.current],
        };
        self.touched = versions.into_iter().map(|version| Touched::version(&secret, version, None)).collect();
        Ok(End::Commit(self.secret(tx).await?))
    }

    fn touched(&self) -> &[Touched] {
        &self.touched
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
        let locked = sqlx::query("SELECT FROM containarium.secrets WHERE tenant = $1 AND name = $2 FOR NO KEY UPDATE")
            .bind(self.tenant.as_str())
            .bind(self.name.as_str())
            .execute(&mut *tx)
            .await?
            .rows_affected();
        let secret = self.secret(tx).await?;
        // One that appeared between the two statements is not locked: this came before it.
        Ok(secret.and_then(|secret| if locked == 1 { Ok(secret) } else { Err(Refusal::NoSecret) }))
    }

    async fn secret(&self, tx: &mut PgConnection) -> Result<Result<SecretRecord, Refusal>, Failure> {
        let row: Option<SecretRow> = sqlx::query_as(concat!(
            "SELECT ",
            columns::tenant_columns!(),
            ", ",
            columns::secret_columns!(),
            " FROM containarium.tenants t \
             LEFT JOIN containarium.secrets s ON s.tenant = t.tenant AND s.name = $2 AND t.shred_at IS NULL WHERE t.tenant = $1"
        ))
        .bind(self.tenant.as_str())
        .bind(self.name.as_str())
        .fetch_optional(tx)
        .await?;
        Ok(SecretRow::secret(row, self.tenant)?)
    }

    /// Marks the secret changed now.
    async fn stamp(&self, tx: &mut PgConnection, deletion: Deletion) -> Result<(), Failure> {
        let sql = match deletion {
            Deletion::Set => {
                "UPDATE containarium.secrets SET updated_at = $3, deleted_at = $3 WHERE tenant = $1 AND name = $2"
            }
            Deletion::Clear => {
                "UPDATE containarium.secrets SET updated_at = $3, deleted_at = NULL WHERE tenant = $1 AND name = $2"
            }
            Deletion::Keep => "UPDATE containarium.secrets SET updated_at = $3 WHERE tenant = $1 AND name = $2",
        };
        let at: i64 = sqlx::query_scalar(NOW).fetch_one(&mut *tx).await?;
        sqlx::query(sql).bind(self.tenant.as_str()).bind(self.name.as_str()).bind(at).execute(tx).await?;
        Ok(())
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
    versions.iter().map(|version| column(*version)).collect()
}
