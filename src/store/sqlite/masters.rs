//! Placeholder of the integration branch: replaced before it lands.

use std::time::Duration;

use async_trait::async_trait;

use super::SqliteStore;
use crate::model::*;
use crate::store::StoreError;
use crate::store::masters::*;

#[async_trait]
impl Masters for SqliteStore {
    async fn heartbeat(&self, _beat: &Beat<'_>) -> Result<Beaten, StoreError> {
        Err(StoreError::Refused("to be built".into()))
    }
    async fn nodes(&self) -> Result<Vec<NodeRecord>, StoreError> {
        Err(StoreError::Refused("to be built".into()))
    }

    async fn forget_node(&self, _node: NodeId) -> Result<ForgetOutcome, StoreError> {
        Err(StoreError::Refused("to be built".into()))
    }
    async fn take_lease(&self, _holder: Holder, _lasting: Duration) -> Result<Leased, StoreError> {
        Err(StoreError::Refused("to be built".into()))
    }
    async fn release_lease(&self, _holder: Holder) -> Result<(), StoreError> {
        Err(StoreError::Refused("to be built".into()))
    }
    async fn stage(&self, _fence: &Fence, _key: &NewMaster<'_>) -> Result<Fenced<StageOutcome>, StoreError> {
        Err(StoreError::Refused("to be built".into()))
    }
    async fn abort(&self, _fence: &Fence, _kid: Kid) -> Result<Fenced<KeyState>, StoreError> {
        Err(StoreError::Refused("to be built".into()))
    }
    async fn flip(&self, _fence: &Fence, _to: Kid, _without: &[NodeId]) -> Result<Fenced<FlipOutcome>, StoreError> {
        Err(StoreError::Refused("to be built".into()))
    }
    async fn deks_under(
        &self,
        _kid: Kid,
        _after: Option<&DekCursor>,
        _limit: u32,
    ) -> Result<Vec<DekRecord>, StoreError> {
        Err(StoreError::Refused("to be built".into()))
    }
    async fn count_under(&self, _kid: Kid) -> Result<UnderKey, StoreError> {
        Err(StoreError::Refused("to be built".into()))
    }
    async fn rewrap(&self, _fence: &Fence, _deks: &[Rewrapped]) -> Result<Fenced<u64>, StoreError> {
        Err(StoreError::Refused("to be built".into()))
    }
    async fn set_phase(&self, _fence: &Fence, _to: KeyPhase) -> Result<Fenced<KeyState>, StoreError> {
        Err(StoreError::Refused("to be built".into()))
    }
    async fn retire(&self, _fence: &Fence, _old: Kid) -> Result<Fenced<RetireOutcome>, StoreError> {
        Err(StoreError::Refused("to be built".into()))
    }
    async fn destroy_master(
        &self,
        _kid: Kid,
        _age: Duration,
        _waiver: Option<&NewEscrow>,
    ) -> Result<DestroyOutcome, StoreError> {
        Err(StoreError::Refused("to be built".into()))
    }
    async fn add_escrow(&self, _escrow: &NewEscrow) -> Result<(), StoreError> {
        Err(StoreError::Refused("to be built".into()))
    }
    async fn advance_escrow(&self, _id: &str, _stage: EscrowStage, _locator: Option<&str>) -> Result<bool, StoreError> {
        Err(StoreError::Refused("to be built".into()))
    }
    async fn escrows(&self) -> Result<Vec<EscrowRecord>, StoreError> {
        Err(StoreError::Refused("to be built".into()))
    }
    async fn raise_generation(&self) -> Result<KeyState, StoreError> {
        Err(StoreError::Refused("to be built".into()))
    }
    async fn accept_restore(&self, _at_least: AtLeast) -> Result<KeyState, StoreError> {
        Err(StoreError::Refused("to be built".into()))
    }
}
