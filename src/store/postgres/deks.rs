//! The further life of DEKs. Master lock shared, then the tenant's, then the rows: a rewrap holds the master lock shared too and no
//! tenant's, so a DEK that is looked at and then changed is locked by its row as well.

mod read;
mod reseal;
mod rotate;
mod set_aside;
mod shred;

use std::time::Duration;

use async_trait::async_trait;

use self::read::{AllDeks, BlockedTenants, DueShreds, MadeBeforeActive, Now, OneDek, SealedUnder};
use self::reseal::Reseal;
use self::rotate::{RemoveDek, RotateDek};
use self::set_aside::{Quarantine, Release};
use self::shred::{CancelShred, ScheduleShred, Shred};
use super::PostgresStore;
use super::tx::{run_read, run_tx};
use crate::model::{DekRecord, DekVersion, Kid, Micros, SecretName, SecretVersion, Tenant, TenantRecord, WrappedDek};
use crate::store::deks::{
    QuarantineOutcome, RemoveDekOutcome, ResealOutcome, Resealer, RotateDekOutcome, SealedVersion, ShredOutcome,
    ShredWhen,
};
use crate::store::{DekMaker, Deks, StoreError, guards};

#[async_trait]
impl Deks for PostgresStore {
    async fn dek(&self, tenant: &Tenant, version: DekVersion) -> Result<Option<DekRecord>, StoreError> {
        run_read(&self.pool, &OneDek { tenant, version }).await
    }

    async fn deks(&self, tenant: &Tenant) -> Result<Vec<DekRecord>, StoreError> {
        run_read(&self.pool, &AllDeks(tenant)).await
    }

    async fn rotate_dek(
        &self,
        tenant: &Tenant,
        from: DekVersion,
        maker: &dyn DekMaker,
    ) -> Result<RotateDekOutcome, StoreError> {
        run_tx(self, "rotate_dek", &mut RotateDek { tenant, from, maker }).await
    }

    async fn sealed_under(
        &self,
        tenant: &Tenant,
        dek: DekVersion,
        after: Option<(&SecretName, SecretVersion)>,
        limit: u32,
    ) -> Result<Vec<SealedVersion>, StoreError> {
        run_read(&self.pool, &SealedUnder { tenant, dek, after, limit }).await
    }

    async fn reseal(
        &self,
        tenant: &Tenant,
        from: DekVersion,
        versions: &[SealedVersion],
        resealer: &dyn Resealer,
    ) -> Result<ResealOutcome, StoreError> {
        run_tx(self, "reseal", &mut Reseal { tenant, from, versions, resealer, touched: Vec::new() }).await
    }

    async fn remove_dek(&self, tenant: &Tenant, version: DekVersion) -> Result<RemoveDekOutcome, StoreError> {
        run_tx(self, "remove_dek", &mut RemoveDek { tenant, version }).await
    }

    async fn quarantine(
        &self,
        tenant: &Tenant,
        version: DekVersion,
        wrapping: &WrappedDek,
    ) -> Result<QuarantineOutcome, StoreError> {
        run_tx(self, "quarantine", &mut Quarantine { tenant, version, wrapping }).await
    }

    async fn release(
        &self,
        tenant: &Tenant,
        version: DekVersion,
        before: &WrappedDek,
        after: &[u8],
        active: Kid,
    ) -> Result<QuarantineOutcome, StoreError> {
        run_tx(self, "release", &mut Release { tenant, version, before, after, active }).await
    }

    async fn schedule_shred(&self, tenant: &Tenant, wait: Duration) -> Result<ShredOutcome, StoreError> {
        guards::check_shreddable(tenant)?;
        run_tx(self, "schedule_shred", &mut ScheduleShred { tenant, wait }).await
    }

    async fn cancel_shred(&self, tenant: &Tenant) -> Result<ShredOutcome, StoreError> {
        run_tx(self, "cancel_shred", &mut CancelShred(tenant)).await
    }

    async fn shred(&self, tenant: &Tenant, when: ShredWhen) -> Result<ShredOutcome, StoreError> {
        guards::check_shreddable(tenant)?;
        run_tx(self, "shred", &mut Shred { tenant, when }).await
    }

    async fn blocked_tenants(&self, after: Option<&Tenant>, limit: u32) -> Result<Vec<TenantRecord>, StoreError> {
        run_read(&self.pool, &BlockedTenants { after, limit }).await
    }

    async fn due_shreds(&self, limit: u32) -> Result<Vec<Tenant>, StoreError> {
        run_read(&self.pool, &DueShreds(limit)).await
    }

    async fn made_before_active(&self, after: Option<&Tenant>, limit: u32) -> Result<Vec<Tenant>, StoreError> {
        run_read(&self.pool, &MadeBeforeActive { after, limit }).await
    }

    async fn now(&self) -> Result<Micros, StoreError> {
        run_read(&self.pool, &Now).await
    }
}
