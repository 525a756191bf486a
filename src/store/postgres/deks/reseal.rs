//! Versions sealed under a tenant's active DEK instead of an older one.

use async_trait::async_trait;
use sqlx::postgres::PgConnection;

use crate::failpoint;
use crate::model::{DekRecord, DekVersion, Tenant};
use crate::store::deks::{ResealOutcome, Resealer, SealedVersion};
use crate::store::postgres::columns::column;
use crate::store::postgres::failure::Failure;
use crate::store::postgres::keys::{Standing, active_dek, look};
use crate::store::postgres::locks;
use crate::store::postgres::tx::{End, Work};
use crate::store::trail::Touched;

pub(super) struct Reseal<'a> {
    pub(super) tenant: &'a Tenant,
    pub(super) from: DekVersion,
    pub(super) versions: &'a [SealedVersion],
    pub(super) resealer: &'a dyn Resealer,
    pub(super) touched: Vec<Touched>,
}

#[async_trait]
impl Work for Reseal<'_> {
    type Output = ResealOutcome;

    async fn run(&mut self, tx: &mut PgConnection) -> Result<End<ResealOutcome>, Failure> {
        locks::tenants_shared(tx, &[self.tenant.as_str()]).await?;
        let (standing, _) = look(tx, self.tenant).await?;
        if standing == Standing::Blocked {
            return Ok(End::Rollback(ResealOutcome::Blocked));
        }
        let Some(active) = active_dek(tx, self.tenant).await? else {
            return Ok(End::Rollback(ResealOutcome::NoActiveDek));
        };
        self.lock_secrets(tx).await?;
        let mut resealed = Vec::with_capacity(self.versions.len());
        for (index, version) in self.unchanged(tx).await? {
            match self.resealer.reseal(index, version, &active) {
                Ok(ciphertext) => resealed.push((version, ciphertext)),
                Err(refusal) => return Ok(End::Rollback(ResealOutcome::Refused(refusal))),
            }
        }
        if resealed.is_empty() {
            return Ok(End::Rollback(ResealOutcome::Resealed(0)));
        }
        let replaced = self.replace(tx, &active, &resealed).await?;
        failpoint::reached("store.reseal");
        let touched = resealed.into_iter().map(|(version, ciphertext)| version.resealed(self.tenant, ciphertext));
        self.touched = touched.collect();
        Ok(End::Commit(ResealOutcome::Resealed(replaced)))
    }

    fn touched(&self) -> &[Touched] {
        &self.touched
    }
}

impl Reseal<'_> {
    /// As a write does, and in its order: whoever makes, prunes or destroys a version of these holds their lock.
    async fn lock_secrets(&self, tx: &mut PgConnection) -> Result<(), Failure> {
        sqlx::query(
            "SELECT FROM containarium.secrets WHERE tenant = $1 AND name = ANY ($2::text[]) ORDER BY name FOR NO KEY UPDATE",
        )
        .bind(self.tenant.as_str())
        .bind(self.versions.iter().map(|version| version.name.as_str()).collect::<Vec<_>>())
        .execute(tx)
        .await?;
        Ok(())
    }

    /// Those that still are what was read, with their indices, in their order: only they are opened and sealed, so that one that
    /// changed cannot be what the resealer refuses.
    async fn unchanged(&self, tx: &mut PgConnection) -> Result<Vec<(usize, &SealedVersion)>, Failure> {
        let places: Vec<i64> = sqlx::query_scalar(
            "SELECT p.place - 1 FROM unnest($3::text[], $4::bigint[], $5::bytea[]) WITH ORDINALITY AS p (name, version, ciphertext, place) \
             JOIN containarium.secret_versions v ON v.tenant = $1 AND v.name = p.name AND v.version = p.version \
             WHERE v.dek_version = $2 AND v.ciphertext = p.ciphertext ORDER BY p.place",
        )
        .bind(self.tenant.as_str())
        .bind(i64::from(self.from.get()))
        .bind(self.versions.iter().map(|version| version.name.as_str()).collect::<Vec<_>>())
        .bind(self.versions.iter().map(|version| column(version.version)).collect::<Vec<_>>())
        .bind(self.versions.iter().map(|version| version.ciphertext.as_slice()).collect::<Vec<_>>())
        .fetch_all(tx)
        .await?;
        let indices = places.into_iter().filter_map(|place| usize::try_from(place).ok());
        Ok(indices.filter_map(|index| Some((index, self.versions.get(index)?))).collect())
    }

    /// Nothing of a secret's row changes, and none of the numbers.
    async fn replace(
        &self,
        tx: &mut PgConnection,
        active: &DekRecord,
        resealed: &[(&SealedVersion, Vec<u8>)],
    ) -> Result<u64, Failure> {
        let done = sqlx::query(
            "UPDATE containarium.secret_versions v SET ciphertext = n.ciphertext, dek_version = $3 \
             FROM unnest($4::text[], $5::bigint[], $6::bytea[]) AS n (name, version, ciphertext) \
             WHERE v.tenant = $1 AND v.name = n.name AND v.version = n.version AND v.dek_version = $2",
        )
        .bind(self.tenant.as_str())
        .bind(i64::from(self.from.get()))
        .bind(i64::from(active.version.get()))
        .bind(resealed.iter().map(|(version, _)| version.name.as_str()).collect::<Vec<_>>())
        .bind(resealed.iter().map(|(version, _)| column(version.version)).collect::<Vec<_>>())
        .bind(resealed.iter().map(|(_, ciphertext)| ciphertext.as_slice()).collect::<Vec<_>>())
        .execute(tx)
        .await?;
        Ok(done.rows_affected())
    }
}
