//! The steps of tests that rotate: two nodes, two master keys, and a database at each point of the way.

use std::time::Duration;

use containarium::model::{
    BootId, DekRecord, DekVersion, EscrowKind, KeyMode, KeyPhase, KeyState, Kid, MasterKeyState, NodeId, SecretName,
    SecretVersion, WrappedDek,
};
use containarium::store::deks::{SealedVersion, ShredOutcome};
use containarium::store::masters::{
    Beat, Beaten, EscrowStage, Fence, Fenced, FlipOutcome, Holder, Leased, NewEscrow, NewMaster, RetireOutcome,
    Rewrapped, StageOutcome,
};

use super::steps::{KID, tenant};
use crate::support::stores::Fixture;

/// The key that is rotated to, from [`KID`].
pub(crate) const NEW: Kid = Kid::new([2; 16]);

pub(crate) const ONE: Holder = holder(1, 1);
pub(crate) const TWO: Holder = holder(2, 1);

pub(crate) const MINUTE: Duration = Duration::from_mins(1);

pub(crate) const fn holder(node: u8, boot: u8) -> Holder {
    Holder { node: NodeId::new([node; 16]), boot: BootId::new([boot; 16]) }
}

/// For holder ONE.
pub(crate) const fn fence(epoch: u64, active: Kid, phase: KeyPhase) -> Fence {
    Fence { holder: ONE, epoch, active, phase }
}

/// Before the flip.
pub(crate) const fn before(phase: KeyPhase) -> Fence {
    fence(1, KID, phase)
}

/// After the flip.
pub(crate) const fn after(phase: KeyPhase) -> Fence {
    fence(2, NEW, phase)
}

pub(crate) const fn new_master(kid: Kid) -> NewMaster<'static> {
    NewMaster { kid, mode: KeyMode::Normal, wrapped_file: None }
}

pub(crate) fn copy_of(kid: Kid, id: &str, stage: EscrowStage) -> NewEscrow {
    NewEscrow {
        id: id.to_owned(),
        kid,
        target: "file".to_owned(),
        locator: Some("a drawer".to_owned()),
        content_sha256: Some([7; 32]),
        kms_versions: vec!["k/cryptoKeyVersions/1".to_owned(), "k/cryptoKeyVersions/2".to_owned()],
        kind: EscrowKind::Copy,
        stage,
    }
}

pub(crate) fn waiver_of(kid: Kid, id: &str) -> NewEscrow {
    NewEscrow {
        target: "root".to_owned(),
        locator: None,
        content_sha256: None,
        kms_versions: Vec::new(),
        kind: EscrowKind::Waiver,
        stage: EscrowStage::Confirmed,
        ..copy_of(kid, id, EscrowStage::Confirmed)
    }
}

pub(crate) fn dek_version(number: u32) -> DekVersion {
    DekVersion::new(number).unwrap()
}

pub(crate) fn wrapping(dek: &DekRecord) -> WrappedDek {
    dek.wrapping().unwrap().clone()
}

/// This DEK, wrapped anew.
pub(crate) fn rewrapped(dek: &DekRecord, byte: u8) -> Rewrapped {
    Rewrapped { tenant: dek.tenant.clone(), version: dek.version, before: wrapping(dek), after: vec![byte; 132] }
}

/// What a step that was made answers.
pub(crate) fn done<T: std::fmt::Debug>(fenced: Fenced<T>) -> T {
    match fenced {
        Fenced::Done(value) => value,
        Fenced::Elsewhere(state) => panic!("elsewhere: {state:?}"),
    }
}

impl Fixture {
    pub(crate) async fn state(&self) -> KeyState {
        self.store.survey().await.unwrap().key_state.unwrap()
    }

    pub(crate) async fn master_state(&self, kid: Kid) -> Option<MasterKeyState> {
        let keys = self.store.survey().await.unwrap().master_keys;
        keys.iter().find(|key| key.kid == kid).map(|key| key.state)
    }

    pub(crate) async fn beat(&self, holder: Holder, kids: &[Kid]) {
        let beat = Beat { holder, previous_boot: None, durable_kids: kids, epoch: 1 };
        assert_eq!(self.store.heartbeat(&beat).await.unwrap(), Beaten::Seen);
    }

    /// As if this node had not been seen for so many seconds more.
    pub(crate) async fn unseen_for(&self, holder: Holder, seconds: i64) {
        let past = seconds * 1_000_000;
        let age = format!("UPDATE nodes SET seen_at = seen_at - {past} WHERE node_id = '{}'", holder.node);
        assert_eq!(self.database.run(&age).await.unwrap(), 1);
    }

    pub(crate) async fn lease(&self, holder: Holder) {
        let leased = self.store.take_lease(holder, MINUTE).await.unwrap();
        assert!(matches!(leased, Leased::Until(_)), "{leased:?}");
    }

    /// Alice and bob have DEKs, ONE has the lease, and both nodes are seen with the old key.
    pub(crate) async fn ready(self) -> Self {
        let f = self.with_alice().await;
        f.dek("bob").await;
        f.lease(ONE).await;
        f.beat(ONE, &[KID]).await;
        f.beat(TWO, &[KID]).await;
        f
    }

    pub(crate) async fn stage(&self, key: &NewMaster<'_>) -> KeyState {
        match done(self.store.stage(&before(KeyPhase::Idle), key).await.unwrap()) {
            StageOutcome::Staged(state) => state,
            other @ StageOutcome::KnownKid(_) => panic!("{other:?}"),
        }
    }

    /// Staged, with a copy, and with the new key on both nodes: the flip may come.
    pub(crate) async fn staged(self) -> Self {
        let f = self.ready().await;
        f.stage(&new_master(NEW)).await;
        f.store.add_escrow(&copy_of(NEW, "new", EscrowStage::Confirmed)).await.unwrap();
        f.beat(ONE, &[KID, NEW]).await;
        f.beat(TWO, &[KID, NEW]).await;
        f
    }

    pub(crate) async fn flip(&self, without: &[NodeId]) -> FlipOutcome {
        done(self.store.flip(&before(KeyPhase::Staged), NEW, without).await.unwrap())
    }

    pub(crate) async fn flipped(self) -> Self {
        let f = self.staged().await;
        let flipped = f.flip(&[]).await;
        assert!(matches!(flipped, FlipOutcome::Flipped(_)), "{flipped:?}");
        f
    }

    /// Every DEK in use under the old key, wrapped anew; answers how many.
    pub(crate) async fn rewrap_all(&self) -> u64 {
        let deks = self.store.deks_under(KID, None, 1000).await.unwrap();
        let deks: Vec<_> = deks.iter().map(|dek| rewrapped(dek, 0xEE)).collect();
        done(self.store.rewrap(&after(KeyPhase::Rewrapping), &deks).await.unwrap())
    }

    pub(crate) async fn verified(self) -> Self {
        let f = self.flipped().await;
        f.rewrap_all().await;
        done(f.store.set_phase(&after(KeyPhase::Rewrapping), KeyPhase::Verified).await.unwrap());
        f
    }

    pub(crate) async fn retired(self) -> Self {
        let f = self.verified().await;
        let retired = done(f.store.retire(&after(KeyPhase::Verified), KID).await.unwrap());
        assert!(matches!(retired, RetireOutcome::Retired(_)), "{retired:?}");
        f
    }

    pub(crate) async fn dek_row(&self, of: &str, version: u32) -> DekRecord {
        self.store.dek(&tenant(of), dek_version(version)).await.unwrap().unwrap()
    }

    /// The states of a tenant's DEKs, by version.
    pub(crate) async fn dek_states(&self, of: &str) -> Vec<(u32, &'static str)> {
        let deks = self.store.deks(&tenant(of)).await.unwrap();
        deks.iter().map(|dek| (dek.version.get(), dek.body.state().as_str())).collect()
    }

    /// Versions of alice under this DEK, after the cursor.
    pub(crate) async fn sealed(
        &self,
        dek: u32,
        after: Option<(&SecretName, SecretVersion)>,
        limit: u32,
    ) -> Vec<SealedVersion> {
        self.store.sealed_under(&tenant("alice"), dek_version(dek), after, limit).await.unwrap()
    }

    pub(crate) async fn schedule_shred(&self, of: &str, wait: Duration) {
        let outcome = self.store.schedule_shred(&tenant(of), wait).await.unwrap();
        assert!(matches!(outcome, ShredOutcome::Done { .. }), "{outcome:?}");
    }
}
