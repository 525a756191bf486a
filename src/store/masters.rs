//! What a rotation of the master key asks of the store: nodes, the lease, escrows, and each step as one transaction.
//!
//! Every step reads its guards again under the master lock and answers with what it found where they do not hold; nothing is left
//! half done. A [`Fence`] says for whom the caller takes itself: a rotator that slept through another's work finds that it no longer
//! holds, and stops.

use std::time::Duration;

use async_trait::async_trait;

use super::StoreError;
use crate::model::{
    BootId, CopyLoss, DekBody, DekRecord, DekState, DekVersion, EscrowKind, EscrowRecord, KeyMode, KeyPhase, KeyState,
    Kid, Lease, MasterKeyState, Micros, NodeId, NodeRecord, Tenant, WrappedDek,
};

/// A process of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    pub node: NodeId,
    pub boot: BootId,
}

/// What a node says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beat<'a> {
    pub holder: Holder,
    /// The boot that this node's own record names as its last: that process is gone for certain, since the data directory's lock is
    /// ours.
    pub previous_boot: Option<BootId>,
    /// What lies fsynced in its key files.
    pub durable_kids: &'a [Kid],
    pub epoch: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beaten {
    Seen,
    /// Another live boot uses this node's id: a copied data directory. Nothing was written.
    Taken {
        boot: BootId,
        seen_at: Micros,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leased {
    Until(Micros),
    /// Another node carries the rotation.
    HeldBy(Lease),
}

/// For whom, and in which state of the database, a step is meant: its transaction compares all of it. A step that starts from one phase
/// only is [`Fenced::Elsewhere`] for a fence that names another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fence {
    /// Must hold the lease. It may have lapsed, as long as nobody took it.
    pub holder: Holder,
    pub epoch: u64,
    pub active: Kid,
    pub phase: KeyPhase,
}

/// The answer of a fenced step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fenced<T> {
    Done(T),
    /// The fence does not hold; the state that was found instead. Nothing changed.
    Elsewhere(KeyState),
}

/// A new master key on its way into the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewMaster<'a> {
    pub kid: Kid,
    pub mode: KeyMode,
    /// The wrapped file that other nodes take over; only for keys that a KMS opens.
    pub wrapped_file: Option<&'a [u8]>,
}

/// What becomes of a staged key that is not to be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GivenUp {
    /// It was never in use: nodes unlink it.
    Aborted,
    /// It may have been in use in a state that was lost: it is kept as long as any key that was.
    Retired,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StageOutcome {
    Staged(KeyState),
    /// A kid that was ever seen is never staged again.
    KnownKid(MasterKeyState),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FlipOutcome {
    Flipped(KeyState),
    /// No staged key of that kid.
    NotStaged,
    /// Neither a confirmed copy of the new key nor a waiver.
    NoEscrow,
    /// These do not hold the new key durably: live ones, named or not, and ones that are not live and were not named.
    Waiting(Vec<NodeRecord>),
}

/// Where a walk over DEKs goes on; it follows the index, so states come one after another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DekCursor {
    pub state: DekState,
    pub tenant: Tenant,
    pub version: DekVersion,
}

impl DekCursor {
    #[must_use]
    pub fn of(dek: &DekRecord) -> Self {
        Self { state: dek.body.state(), tenant: dek.tenant.clone(), version: dek.version }
    }
}

/// One DEK, wrapped anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewrapped {
    pub tenant: Tenant,
    pub version: DekVersion,
    /// What was read; a row that holds another wrapping by now is left alone.
    pub before: WrappedDek,
    /// The wrapping by the fence's active key.
    pub after: Vec<u8>,
}

/// How many DEKs a master key wraps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UnderKey {
    /// Active and decrypt-only ones.
    pub in_use: u64,
    pub quarantined: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RetireOutcome {
    Retired(KeyState),
    /// DEKs in use are still wrapped by it.
    StillUsed(u64),
    /// It is not decrypt-only.
    NotDecryptOnly(Option<MasterKeyState>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DestroyOutcome {
    Destroyed,
    /// Only a retired key is destroyed; `None` for a kid that the database does not know.
    NotRetired(Option<MasterKeyState>),
    /// It was retired too short a time ago.
    NotBefore(Micros),
    /// No copy off the host was read back, and it was not waived.
    NotReadBack,
    /// Quarantined DEKs under it would be lost.
    Quarantined(u64),
}

/// How far an escrow has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum EscrowStage {
    /// Somebody is about to make the copy.
    Started,
    /// It is there.
    Confirmed,
    /// It was fetched and compared, so it is there and right.
    ReadBack,
}

/// What was found of a copy where it was put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyFinding {
    There,
    /// It stands for nothing until it is found there, or read back.
    Lost(CopyLoss),
    /// It was there, and it is no good copy: why. Never bytes of it.
    Unread(String),
}

/// A new escrow or waiver; a waiver is `Confirmed` and has neither locator nor digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEscrow {
    pub id: String,
    pub kid: Kid,
    pub target: String,
    pub locator: Option<String>,
    pub content_sha256: Option<[u8; 32]>,
    /// As in [`EscrowRecord`].
    pub kms_versions: Vec<String>,
    pub kind: EscrowKind,
    pub stage: EscrowStage,
}

/// The least that epoch and generation are after a restore was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AtLeast {
    pub epoch: u64,
    pub generation: u64,
}

/// A restored database that was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    pub state: KeyState,
    /// The key that was staged in it, and is retired now.
    pub retired: Option<Kid>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ForgetOutcome {
    Forgotten,
    Unknown,
    /// It was seen a moment ago.
    Live(NodeRecord),
}

/// The master keys' part of a [`Store`](super::Store).
#[async_trait]
pub trait Masters: Send + Sync {
    /// Stamps the node's row with the database's clock, making it where it is missing.
    async fn heartbeat(&self, beat: &Beat<'_>) -> Result<Beaten, StoreError>;

    /// Every node, by id.
    async fn nodes(&self) -> Result<Vec<NodeRecord>, StoreError>;

    async fn forget_node(&self, node: NodeId) -> Result<ForgetOutcome, StoreError>;

    /// Takes or renews the lease, `lasting` from now by the database's clock: where there is none, where it lapsed, and at once where
    /// it is the same node's (another boot of it is dead: the data directory's lock is ours).
    ///
    /// # Errors
    /// [`StoreError::Refused`] where the database has held no key yet.
    async fn take_lease(&self, holder: Holder, lasting: Duration) -> Result<Leased, StoreError>;

    /// Gives the lease back where this process holds it.
    async fn release_lease(&self, holder: Holder) -> Result<(), StoreError>;

    /// Enters a key as staged, whose file is durable on this node: phase idle → staged. Master lock exclusive.
    async fn stage(&self, fence: &Fence, key: &NewMaster<'_>) -> Result<Fenced<StageOutcome>, StoreError>;

    /// The wrapped file that came with a key, until the rotation to it ends.
    async fn wrapped_file(&self, kid: Kid) -> Result<Option<Vec<u8>>, StoreError>;

    /// Gives the staged key up: its row aborted or retired, and without its wrapped file, phase staged → idle, mode normal, the lease
    /// given back. Master lock exclusive. [`Fenced::Elsewhere`] also where this is not the staged key.
    async fn abort(&self, fence: &Fence, kid: Kid, given_up: GivenUp) -> Result<Fenced<KeyState>, StoreError>;

    /// Makes the staged key the active one and the active one decrypt-only; epoch and generation rise; phase staged → rewrapping.
    /// Master lock exclusive; guards, in this order: fence, staged row, escrow, nodes. `without` names nodes that are not live.
    async fn flip(&self, fence: &Fence, to: Kid, without: &[NodeId]) -> Result<Fenced<FlipOutcome>, StoreError>;

    /// Active and decrypt-only DEKs under this key, in the order of the index, after the cursor.
    async fn deks_under(&self, kid: Kid, after: Option<&DekCursor>, limit: u32) -> Result<Vec<DekRecord>, StoreError>;

    /// Scans the index.
    async fn count_under(&self, kid: Kid) -> Result<UnderKey, StoreError>;

    /// Puts the new wrappings in, one statement for all, where kid and wrapping are still what was read; answers how many that were.
    /// Master lock shared, then the fence, in a statement of its own.
    async fn rewrap(&self, fence: &Fence, deks: &[Rewrapped]) -> Result<Fenced<u64>, StoreError>;

    /// From the fence's phase to another. From `reencrypting` or `verified` to `idle` also the mode becomes normal and the lease is
    /// given back.
    ///
    /// # Errors
    /// [`StoreError::Refused`] for a change that another step makes, behind its guards.
    async fn set_phase(&self, fence: &Fence, to: KeyPhase) -> Result<Fenced<KeyState>, StoreError>;

    /// The old key retired, where no DEK in use is under it; wrapped files are removed. The phase goes verified → idle (lease given
    /// back, mode normal), or verified → reencrypting in compromised mode. Master lock exclusive; guards, in this order: fence, its state,
    /// DEKs in use.
    async fn retire(&self, fence: &Fence, old: Kid) -> Result<Fenced<RetireOutcome>, StoreError>;

    /// Marks a retired key destroyed, `age` after it was retired at the earliest; nodes then unlink its files. `waiver` stands for a
    /// copy that was read back, and is recorded once nothing else stands in the way. Master lock exclusive; guards in the order of the
    /// outcomes. It raises the generation.
    ///
    /// # Errors
    /// [`StoreError::Refused`] where the waiver is none, or another key's.
    async fn destroy_master(
        &self,
        kid: Kid,
        age: Duration,
        waiver: Option<&NewEscrow>,
    ) -> Result<DestroyOutcome, StoreError>;

    /// # Errors
    /// [`StoreError::Refused`] where the kid has no row, where the id was used, and for a waiver that is not as [`NewEscrow`] says, or a
    /// copy without a digest.
    async fn add_escrow(&self, escrow: &NewEscrow) -> Result<(), StoreError>;

    /// Stamps the stage with now (but never the start, which has its time), and those before it that are not stamped; gives it a locator
    /// where one is given. A copy that is confirmed keeps its place and time: it is confirmed again with the same locator only (the
    /// answer to a commit was lost). False: nothing was changed, there is no such copy or it is another one by now; a waiver does not
    /// advance.
    async fn advance_escrow(&self, id: &str, stage: EscrowStage, locator: Option<&str>) -> Result<bool, StoreError>;

    /// Remembers what became of a confirmed copy. False: there is no such copy. Reading it back takes back what was found before.
    async fn note_copy(&self, id: &str, finding: &CopyFinding) -> Result<bool, StoreError>;

    /// By kid, then time of start.
    async fn escrows(&self) -> Result<Vec<EscrowRecord>, StoreError>;

    /// One higher; for the hourly mark, so that last night's dump is noticed. It answers the state after.
    async fn raise_generation(&self) -> Result<KeyState, StoreError>;

    /// After a restore: epoch and generation become at least these. A rotation that is only staged in it ends, and its key is retired: a
    /// state that was lost may have flipped to it, so a later backup may need it, and a key that is given up is unlinked at once. Whether
    /// a flip was lost is asked of nobody: epochs rise at an accepted restore too, and the node that accepts may not be the one that saw
    /// most. Master lock exclusive.
    async fn accept_restore(&self, at_least: AtLeast) -> Result<Accepted, StoreError>;
}

impl DekRecord {
    /// The wrapping, where there is one.
    #[must_use]
    pub const fn wrapping(&self) -> Option<&WrappedDek> {
        match &self.body {
            DekBody::Active(wrapped) | DekBody::DecryptOnly(wrapped) | DekBody::Quarantined(wrapped) => Some(wrapped),
            DekBody::Shredded => None,
        }
    }
}
