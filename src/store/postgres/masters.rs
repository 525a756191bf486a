//! The master keys' part of the store: nodes and the lease, the steps of a rotation, the rewrap, escrows.

mod escrow;
mod fence;
mod nodes;
mod restore;
mod retire;
mod rewrap;
mod steps;

use std::time::Duration;

use async_trait::async_trait;

use self::escrow::{AddEscrow, AdvanceEscrow, ListEscrows, NoteCopy};
use self::nodes::{ForgetNode, Heartbeat, ListNodes, ReleaseLease, TakeLease};
use self::restore::{AcceptRestore, RaiseGeneration};
use self::retire::{DestroyMaster, Retire};
use self::rewrap::{CountUnder, DeksUnder, Rewrap};
use self::steps::{Abort, Flip, SetPhase, Stage, WrappedFile};
use super::PostgresStore;
use super::tx::{run_read, run_tx};
use crate::model::{DekRecord, EscrowRecord, KeyPhase, KeyState, Kid, NodeId, NodeRecord};
use crate::store::masters::{
    Accepted, AtLeast, Beat, Beaten, CopyFinding, DekCursor, DestroyOutcome, EscrowStage, Fence, Fenced, FlipOutcome,
    ForgetOutcome, GivenUp, Holder, Leased, NewEscrow, NewMaster, RetireOutcome, Rewrapped, StageOutcome, UnderKey,
};
use crate::store::{Masters, StoreError, guards};

pub(super) use self::fence::no_key_yet;
pub(super) use self::restore::raise_generation;

#[async_trait]
impl Masters for PostgresStore {
    async fn heartbeat(&self, beat: &Beat<'_>) -> Result<Beaten, StoreError> {
        run_tx(self, "heartbeat", &mut Heartbeat(beat)).await
    }

    async fn nodes(&self) -> Result<Vec<NodeRecord>, StoreError> {
        run_read(&self.pool, &ListNodes).await
    }

    async fn forget_node(&self, node: NodeId) -> Result<ForgetOutcome, StoreError> {
        run_tx(self, "forget_node", &mut ForgetNode(node)).await
    }

    async fn take_lease(&self, holder: Holder, lasting: Duration) -> Result<Leased, StoreError> {
        run_tx(self, "take_lease", &mut TakeLease { holder, lasting }).await
    }

    async fn release_lease(&self, holder: Holder) -> Result<(), StoreError> {
        run_tx(self, "release_lease", &mut ReleaseLease(holder)).await
    }

    async fn stage(&self, fence: &Fence, key: &NewMaster<'_>) -> Result<Fenced<StageOutcome>, StoreError> {
        run_tx(self, "stage", &mut Stage { fence, key }).await
    }

    async fn wrapped_file(&self, kid: Kid) -> Result<Option<Vec<u8>>, StoreError> {
        run_read(&self.pool, &WrappedFile(kid)).await
    }

    async fn abort(&self, fence: &Fence, kid: Kid, given_up: GivenUp) -> Result<Fenced<KeyState>, StoreError> {
        run_tx(self, "abort", &mut Abort { fence, kid, given_up }).await
    }

    async fn flip(&self, fence: &Fence, to: Kid, without: &[NodeId]) -> Result<Fenced<FlipOutcome>, StoreError> {
        run_tx(self, "flip", &mut Flip { fence, to, without }).await
    }

    async fn deks_under(&self, kid: Kid, after: Option<&DekCursor>, limit: u32) -> Result<Vec<DekRecord>, StoreError> {
        run_read(&self.pool, &DeksUnder { kid, after, limit }).await
    }

    async fn count_under(&self, kid: Kid) -> Result<UnderKey, StoreError> {
        run_read(&self.pool, &CountUnder(kid)).await
    }

    async fn rewrap(&self, fence: &Fence, deks: &[Rewrapped]) -> Result<Fenced<u64>, StoreError> {
        run_tx(self, "rewrap", &mut Rewrap::new(fence, deks)).await
    }

    async fn set_phase(&self, fence: &Fence, to: KeyPhase) -> Result<Fenced<KeyState>, StoreError> {
        run_tx(self, "set_phase", &mut SetPhase { fence, to }).await
    }

    async fn retire(&self, fence: &Fence, old: Kid) -> Result<Fenced<RetireOutcome>, StoreError> {
        run_tx(self, "retire", &mut Retire { fence, old }).await
    }

    async fn destroy_master(
        &self,
        kid: Kid,
        age: Duration,
        waiver: Option<&NewEscrow>,
    ) -> Result<DestroyOutcome, StoreError> {
        if let Some(waiver) = waiver {
            guards::check_waiver(waiver, kid)?;
        }
        run_tx(self, "destroy_master", &mut DestroyMaster { kid, age, waiver }).await
    }

    async fn add_escrow(&self, escrow: &NewEscrow) -> Result<(), StoreError> {
        guards::check_escrow(escrow)?;
        run_tx(self, "add_escrow", &mut AddEscrow(escrow)).await
    }

    async fn advance_escrow(&self, id: &str, stage: EscrowStage, locator: Option<&str>) -> Result<bool, StoreError> {
        run_tx(self, "advance_escrow", &mut AdvanceEscrow { id, stage, locator }).await
    }

    async fn note_copy(&self, id: &str, finding: &CopyFinding) -> Result<bool, StoreError> {
        run_tx(self, "note_copy", &mut NoteCopy { id, finding }).await
    }

    async fn escrows(&self) -> Result<Vec<EscrowRecord>, StoreError> {
        run_read(&self.pool, &ListEscrows).await
    }

    async fn raise_generation(&self) -> Result<KeyState, StoreError> {
        run_tx(self, "raise_generation", &mut RaiseGeneration).await
    }

    async fn accept_restore(&self, at_least: AtLeast) -> Result<Accepted, StoreError> {
        run_tx(self, "accept_restore", &mut AcceptRestore(at_least)).await
    }
}
