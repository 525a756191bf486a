//! The end of a tenant: its DEKs destroyed, so that its ciphertexts are gone for good.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::postgres::PgConnection;

use super::read;
use crate::model::{Micros, Tenant, TenantRecord};
use crate::store::StoreError;
use crate::store::deks::{ShredOutcome, ShredWhen};
use crate::store::postgres::failure::Failure;
use crate::store::postgres::masters::raise_generation;
use crate::store::postgres::tx::{End, Work};
use crate::store::postgres::{NOW, locks};
use crate::store::rows::micros;

pub(super) struct ScheduleShred<'a> {
    pub(super) tenant: &'a Tenant,
    pub(super) wait: Duration,
}

#[async_trait]
impl Work for ScheduleShred<'_> {
    type Output = ShredOutcome;

    async fn run(&mut self, tx: &mut PgConnection) -> Result<End<ShredOutcome>, Failure> {
        // Exclusively: a write that has begun ends first, and one that begins later sees the tenant blocked.
        locks::tenant_exclusive(tx, self.tenant).await?;
        let Some(tenant) = read::tenant(tx, self.tenant).await? else {
            return Ok(End::Rollback(ShredOutcome::NoTenant));
        };
        if tenant.shred_at.is_some() {
            return Ok(End::Rollback(ShredOutcome::Elsewhere(tenant)));
        }
        let now: i64 = sqlx::query_scalar(NOW).fetch_one(&mut *tx).await?;
        sqlx::query("UPDATE containarium.tenants SET shred_at = $2 WHERE tenant = $1")
            .bind(self.tenant.as_str())
            .bind(now.saturating_add(micros(self.wait)))
            .execute(&mut *tx)
            .await?;
        done(tx, self.tenant).await
    }
}

pub(super) struct CancelShred<'a>(pub(super) &'a Tenant);

#[async_trait]
impl Work for CancelShred<'_> {
    type Output = ShredOutcome;

    async fn run(&mut self, tx: &mut PgConnection) -> Result<End<ShredOutcome>, Failure> {
        locks::tenant_exclusive(tx, self.0).await?;
        let Some(tenant) = read::tenant(tx, self.0).await? else {
            return Ok(End::Rollback(ShredOutcome::NoTenant));
        };
        if pending(&tenant).is_none() {
            return Ok(End::Rollback(ShredOutcome::Elsewhere(tenant)));
        }
        sqlx::query("UPDATE containarium.tenants SET shred_at = NULL WHERE tenant = $1")
            .bind(self.0.as_str())
            .execute(&mut *tx)
            .await?;
        done(tx, self.0).await
    }
}

pub(super) struct Shred<'a> {
    pub(super) tenant: &'a Tenant,
    pub(super) when: ShredWhen,
}

#[async_trait]
impl Work for Shred<'_> {
    type Output = ShredOutcome;

    async fn run(&mut self, tx: &mut PgConnection) -> Result<End<ShredOutcome>, Failure> {
        locks::master_shared(tx).await?;
        locks::tenant_exclusive(tx, self.tenant).await?;
        let Some(tenant) = read::tenant(tx, self.tenant).await? else {
            return Ok(End::Rollback(ShredOutcome::NoTenant));
        };
        let now: i64 = sqlx::query_scalar(NOW).fetch_one(&mut *tx).await?;
        let comes = pending(&tenant).is_some_and(|at| match self.when {
            ShredWhen::Due => at.0 <= now,
            ShredWhen::Now => true,
        });
        if !comes {
            return Ok(End::Rollback(ShredOutcome::Elsewhere(tenant)));
        }
        self.destroy_deks(tx).await?;
        sqlx::query("UPDATE containarium.tenants SET shredded_at = $2 WHERE tenant = $1")
            .bind(self.tenant.as_str())
            .bind(now)
            .execute(&mut *tx)
            .await?;
        done(tx, self.tenant).await
    }
}

impl Shred<'_> {
    /// Locked first, in the order in which a rewrap's batch locks them.
    async fn destroy_deks(&self, tx: &mut PgConnection) -> Result<(), Failure> {
        sqlx::query(
            "SELECT FROM containarium.deks WHERE tenant = $1 AND state <> 'shredded' ORDER BY dek_version FOR NO KEY UPDATE",
        )
        .bind(self.tenant.as_str())
        .execute(&mut *tx)
        .await?;
        sqlx::query(
            "UPDATE containarium.deks SET state = 'shredded', kid = NULL, wrapped = NULL WHERE tenant = $1 AND state <> 'shredded'",
        )
        .bind(self.tenant.as_str())
        .execute(tx)
        .await?;
        Ok(())
    }
}

/// The moment of a shred that is neither done nor cancelled.
fn pending(tenant: &TenantRecord) -> Option<Micros> {
    tenant.shred_at.filter(|_| tenant.shredded_at.is_none())
}

/// The generation last, and the tenant as it is now.
async fn done(tx: &mut PgConnection, tenant: &Tenant) -> Result<End<ShredOutcome>, Failure> {
    let gone = || StoreError::Refused(format!("tenant {tenant} went while it was changed"));
    let after = read::tenant(tx, tenant).await?.ok_or_else(gone)?;
    let generation = raise_generation(tx).await?.generation;
    Ok(End::Commit(ShredOutcome::Done { tenant: after, generation }))
}
