//! Rotations, as the trait asks for them; each call that writes is one transaction.

use std::time::Duration;

use async_trait::async_trait;

use super::{SqliteStore, StoreError, committed, escrows, key_state, nodes, rewrap, rotation};
use crate::model::{DekRecord, EscrowRecord, KeyPhase, KeyState, Kid, NodeId, NodeRecord};
use crate::store::masters::{
    Accepted, AtLeast, Beat, Beaten, CopyFinding, DekCursor, DestroyOutcome, EscrowStage, Fence, Fenced, FlipOutcome,
    ForgetOutcome, GivenUp, Holder, Leased, Masters, NewEscrow, NewMaster, RetireOutcome, Rewrapped, StageOutcome,
    UnderKey,
};

#[async_trait]
impl Masters for SqliteStore {
    async fn heartbeat(&self, beat: &Beat<'_>) -> Result<Beaten, StoreError> {
        committed!(self, |tx| nodes::heartbeat(tx, beat))
    }

    async fn nodes(&self) -> Result<Vec<NodeRecord>, StoreError> {
        nodes::all(&self.readers).await
    }

    async fn forget_node(&self, node: NodeId) -> Result<ForgetOutcome, StoreError> {
        committed!(self, |tx| nodes::forget(tx, node))
    }

    async fn take_lease(&self, holder: Holder, lasting: Duration) -> Result<Leased, StoreError> {
        committed!(self, |tx| nodes::take_lease(tx, holder, lasting))
    }

    async fn release_lease(&self, holder: Holder) -> Result<(), StoreError> {
        committed!(self, |tx| nodes::release_lease(tx, holder))
    }

    async fn stage(&self, fence: &Fence, key: &NewMaster<'_>) -> Result<Fenced<StageOutcome>, StoreError> {
        committed!(self, |tx| rotation::stage(tx, fence, key))
    }

    async fn wrapped_file(&self, kid: Kid) -> Result<Option<Vec<u8>>, StoreError> {
        rotation::wrapped_file(&self.readers, kid).await
    }

    async fn abort(&self, fence: &Fence, kid: Kid, given_up: GivenUp) -> Result<Fenced<KeyState>, StoreError> {
        committed!(self, |tx| rotation::abort(tx, fence, kid, given_up))
    }

    async fn flip(&self, fence: &Fence, to: Kid, without: &[NodeId]) -> Result<Fenced<FlipOutcome>, StoreError> {
        committed!(self, |tx| rotation::flip(tx, fence, to, without))
    }

    async fn deks_under(&self, kid: Kid, after: Option<&DekCursor>, limit: u32) -> Result<Vec<DekRecord>, StoreError> {
        rewrap::deks_under(&self.readers, kid, after, limit).await
    }

    async fn count_under(&self, kid: Kid) -> Result<UnderKey, StoreError> {
        rewrap::count_under(&self.readers, kid).await
    }

    async fn rewrap(&self, fence: &Fence, deks: &[Rewrapped]) -> Result<Fenced<u64>, StoreError> {
        committed!(self, |tx| rewrap::rewrap(tx, fence, deks))
    }

    async fn set_phase(&self, fence: &Fence, to: KeyPhase) -> Result<Fenced<KeyState>, StoreError> {
        committed!(self, |tx| rotation::set_phase(tx, fence, to))
    }

    async fn retire(&self, fence: &Fence, old: Kid) -> Result<Fenced<RetireOutcome>, StoreError> {
        let outcome = committed!(self, |tx| rotation::retire(tx, fence, old));
        if let Ok(Fenced::Done(RetireOutcome::Retired(_))) = outcome {
            self.fold_log().await;
        }
        outcome
    }

    async fn destroy_master(
        &self,
        kid: Kid,
        age: Duration,
        waiver: Option<&NewEscrow>,
    ) -> Result<DestroyOutcome, StoreError> {
        committed!(self, |tx| rotation::destroy(tx, kid, age, waiver))
    }

    async fn add_escrow(&self, escrow: &NewEscrow) -> Result<(), StoreError> {
        committed!(self, |tx| escrows::add(tx, escrow))
    }

    async fn advance_escrow(&self, id: &str, stage: EscrowStage, locator: Option<&str>) -> Result<bool, StoreError> {
        committed!(self, |tx| escrows::advance(tx, id, stage, locator))
    }

    async fn note_copy(&self, id: &str, finding: &CopyFinding) -> Result<bool, StoreError> {
        committed!(self, |tx| escrows::note(tx, id, finding))
    }

    async fn escrows(&self) -> Result<Vec<EscrowRecord>, StoreError> {
        escrows::all(&self.readers).await
    }

    async fn raise_generation(&self) -> Result<KeyState, StoreError> {
        committed!(self, |tx| key_state::raise_generation(tx))
    }

    async fn accept_restore(&self, at_least: AtLeast) -> Result<Accepted, StoreError> {
        committed!(self, |tx| rotation::accept_restore(tx, at_least))
    }
}
