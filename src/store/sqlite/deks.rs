//! The further life of DEKs, as the trait asks for it; each call that writes is one transaction.

use std::time::Duration;

use async_trait::async_trait;

use super::{DekMaker, SqliteStore, StoreError, committed, dek_life, key_state, reseal, roll_back, shred};
use crate::model::{DekRecord, DekVersion, Kid, Micros, SecretName, SecretVersion, Tenant, TenantRecord, WrappedDek};
use crate::store::deks::{
    Deks, QuarantineOutcome, RemoveDekOutcome, ResealOutcome, Resealer, RotateDekOutcome, SealedVersion, ShredOutcome,
    ShredWhen,
};

#[async_trait]
impl Deks for SqliteStore {
    async fn dek(&self, tenant: &Tenant, version: DekVersion) -> Result<Option<DekRecord>, StoreError> {
        dek_life::one(&self.readers, tenant, version).await
    }

    async fn deks(&self, tenant: &Tenant) -> Result<Vec<DekRecord>, StoreError> {
        dek_life::all(&self.readers, tenant).await
    }

    async fn rotate_dek(
        &self,
        tenant: &Tenant,
        from: DekVersion,
        maker: &dyn DekMaker,
    ) -> Result<RotateDekOutcome, StoreError> {
        committed!(self, |tx| dek_life::rotate(tx, tenant, from, maker))
    }

    async fn sealed_under(
        &self,
        tenant: &Tenant,
        dek: DekVersion,
        after: Option<(&SecretName, SecretVersion)>,
        limit: u32,
    ) -> Result<Vec<SealedVersion>, StoreError> {
        reseal::sealed_under(&self.readers, tenant, dek, after, limit).await
    }

    async fn reseal(
        &self,
        tenant: &Tenant,
        from: DekVersion,
        versions: &[SealedVersion],
        resealer: &dyn Resealer,
    ) -> Result<ResealOutcome, StoreError> {
        let mut transaction = self.begin().await?;
        let (outcome, touched) = reseal::reseal(&mut transaction, tenant, from, versions, resealer).await?;
        match outcome {
            ResealOutcome::Resealed(_) => self.commit(transaction, &touched).await?,
            ResealOutcome::NoActiveDek | ResealOutcome::Blocked | ResealOutcome::Refused(_) => {
                roll_back(transaction).await?;
            }
        }
        Ok(outcome)
    }

    async fn remove_dek(&self, tenant: &Tenant, version: DekVersion) -> Result<RemoveDekOutcome, StoreError> {
        committed!(self, |tx| dek_life::remove(tx, tenant, version))
    }

    async fn quarantine(
        &self,
        tenant: &Tenant,
        version: DekVersion,
        wrapping: &WrappedDek,
    ) -> Result<QuarantineOutcome, StoreError> {
        committed!(self, |tx| dek_life::quarantine(tx, tenant, version, wrapping))
    }

    async fn release(
        &self,
        tenant: &Tenant,
        version: DekVersion,
        before: &WrappedDek,
        after: &[u8],
        active: Kid,
    ) -> Result<QuarantineOutcome, StoreError> {
        committed!(self, |tx| dek_life::release(tx, tenant, version, before, after, active))
    }

    async fn schedule_shred(&self, tenant: &Tenant, wait: Duration) -> Result<ShredOutcome, StoreError> {
        committed!(self, |tx| shred::schedule(tx, tenant, wait))
    }

    async fn cancel_shred(&self, tenant: &Tenant) -> Result<ShredOutcome, StoreError> {
        committed!(self, |tx| shred::cancel(tx, tenant))
    }

    async fn shred(&self, tenant: &Tenant, when: ShredWhen) -> Result<ShredOutcome, StoreError> {
        let outcome = committed!(self, |tx| shred::shred(tx, tenant, when));
        if let Ok(ShredOutcome::Done { .. }) = outcome {
            self.fold_log().await;
        }
        outcome
    }

    async fn blocked_tenants(&self, after: Option<&Tenant>, limit: u32) -> Result<Vec<TenantRecord>, StoreError> {
        shred::blocked(&self.readers, after, limit).await
    }

    async fn due_shreds(&self, limit: u32) -> Result<Vec<Tenant>, StoreError> {
        shred::due(&self.readers, limit).await
    }

    async fn made_before_active(&self, after: Option<&Tenant>, limit: u32) -> Result<Vec<Tenant>, StoreError> {
        dek_life::made_before_active(&self.readers, after, limit).await
    }

    async fn now(&self) -> Result<Micros, StoreError> {
        let mut snapshot = self.snapshot().await?;
        key_state::now(&mut snapshot).await
    }
}
