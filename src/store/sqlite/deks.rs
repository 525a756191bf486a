//! Placeholder of the integration branch: replaced before it lands.

use std::time::Duration;

use async_trait::async_trait;

use super::SqliteStore;
use crate::model::*;
use crate::store::deks::*;
use crate::store::{DekMaker, StoreError};

#[async_trait]
impl Deks for SqliteStore {
    async fn dek(&self, _tenant: &Tenant, _version: DekVersion) -> Result<Option<DekRecord>, StoreError> {
        Err(StoreError::Refused("to be built".into()))
    }
    async fn deks(&self, _tenant: &Tenant) -> Result<Vec<DekRecord>, StoreError> {
        Err(StoreError::Refused("to be built".into()))
    }
    async fn rotate_dek(
        &self,
        _tenant: &Tenant,
        _from: DekVersion,
        _maker: &dyn DekMaker,
    ) -> Result<RotateDekOutcome, StoreError> {
        Err(StoreError::Refused("to be built".into()))
    }
    async fn sealed_under(
        &self,
        _tenant: &Tenant,
        _dek: DekVersion,
        _after: Option<(&SecretName, SecretVersion)>,
        _limit: u32,
    ) -> Result<Vec<SealedVersion>, StoreError> {
        Err(StoreError::Refused("to be built".into()))
    }
    async fn reseal(
        &self,
        _tenant: &Tenant,
        _from: DekVersion,
        _versions: &[SealedVersion],
        _resealer: &dyn Resealer,
    ) -> Result<ResealOutcome, StoreError> {
        Err(StoreError::Refused("to be built".into()))
    }
    async fn remove_dek(&self, _tenant: &Tenant, _version: DekVersion) -> Result<RemoveDekOutcome, StoreError> {
        Err(StoreError::Refused("to be built".into()))
    }
    async fn quarantine(
        &self,
        _tenant: &Tenant,
        _version: DekVersion,
        _wrapping: &WrappedDek,
    ) -> Result<QuarantineOutcome, StoreError> {
        Err(StoreError::Refused("to be built".into()))
    }
    async fn release(
        &self,
        _tenant: &Tenant,
        _version: DekVersion,
        _before: &WrappedDek,
        _after: &[u8],
        _active: Kid,
    ) -> Result<QuarantineOutcome, StoreError> {
        Err(StoreError::Refused("to be built".into()))
    }
    async fn schedule_shred(&self, _tenant: &Tenant, _wait: Duration) -> Result<ShredOutcome, StoreError> {
        Err(StoreError::Refused("to be built".into()))
    }
    async fn cancel_shred(&self, _tenant: &Tenant) -> Result<ShredOutcome, StoreError> {
        Err(StoreError::Refused("to be built".into()))
    }
    async fn shred(&self, _tenant: &Tenant, _when: ShredWhen) -> Result<ShredOutcome, StoreError> {
        Err(StoreError::Refused("to be built".into()))
    }
    async fn blocked_tenants(&self, _after: Option<&Tenant>, _limit: u32) -> Result<Vec<TenantRecord>, StoreError> {
        Err(StoreError::Refused("to be built".into()))
    }
    async fn due_shreds(&self, _limit: u32) -> Result<Vec<Tenant>, StoreError> {
        Err(StoreError::Refused("to be built".into()))
    }
    async fn now(&self) -> Result<Micros, StoreError> {
        Err(StoreError::Refused("to be built".into()))
    }
}
