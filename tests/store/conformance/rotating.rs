use std::time::Duration;

use containarium::model::{KeyMode, KeyPhase, KeyState, Kid, MasterKeyState};
use containarium::store::masters::{
    Accepted, AtLeast, DekCursor, EscrowStage, Fence, Fenced, FlipOutcome, GivenUp, NewMaster, RetireOutcome,
    StageOutcome, UnderKey,
};
use containarium::store::{DekOutcome, StoreError};

use crate::store::fakes::Deks;
use crate::store::rotation::{
    MINUTE, NEW, ONE, TWO, after, before, copy_of, done, holder, new_master, rewrapped, waiver_of, wrapping,
};
use crate::store::steps::{KID, current, tenant};
use crate::support::stores::Fixture;

/// Fences that do not hold where this one does: each part of it is another.
fn wrong(fence: Fence) -> Vec<(&'static str, Fence)> {
    let other_active = if fence.active == KID { NEW } else { KID };
    let other_phase = if fence.phase == KeyPhase::Idle { KeyPhase::Reencrypting } else { KeyPhase::Idle };
    vec![
        ("another node", Fence { holder: TWO, ..fence }),
        ("another boot", Fence { holder: holder(1, 2), ..fence }),
        ("an earlier epoch", Fence { epoch: fence.epoch - 1, ..fence }),
        ("a later epoch", Fence { epoch: fence.epoch + 1, ..fence }),
        ("another active key", Fence { active: other_active, ..fence }),
        ("another phase", Fence { phase: other_phase, ..fence }),
    ]
}

/// The step is elsewhere under every wrong fence, is told the state as it is, and changes none of it.
macro_rules! is_fenced {
    ($f:ident, $fence:expr, |$wrong:ident| $step:expr) => {
        let state = $f.state().await;
        let keys = $f.store.survey().await.unwrap().master_keys;
        for (what, wrong) in wrong($fence) {
            let $wrong = &wrong;
            let outcome = $step.await.unwrap();
            assert!(matches!(&outcome, Fenced::Elsewhere(found) if *found == state), "{what}: {outcome:?}");
            assert_eq!($f.state().await, state, "{what}");
            assert_eq!($f.store.survey().await.unwrap().master_keys, keys, "{what}");
        }
    };
}

fn phase_of(state: &KeyState) -> (u64, Kid, KeyPhase) {
    (state.epoch, state.active_kid, state.phase)
}

pub(crate) async fn a_key_is_staged_once(f: Fixture) {
    let f = f.ready().await;
    let file = b"wrapped by a kms".as_slice();
    let key = NewMaster { kid: NEW, mode: KeyMode::Compromised, wrapped_file: Some(file) };
    let lease = f.state().await.lease;
    let state = f.stage(&key).await;
    assert_eq!(phase_of(&state), (1, KID, KeyPhase::Staged));
    assert_eq!((state.mode, state.generation, state.lease), (KeyMode::Compromised, 1, lease));
    assert_eq!(f.state().await, state);
    assert_eq!(f.master_state(NEW).await, Some(MasterKeyState::Staged));
    let stored = f.database.bytes(file);
    assert_eq!(f.rows(&format!("master_keys WHERE wrapped_file = {stored} AND activated_at IS NULL")).await, 1);
    assert_eq!(f.store.wrapped_file(NEW).await.unwrap().as_deref(), Some(file));
    assert_eq!(f.store.wrapped_file(KID).await.unwrap(), None, "it came with none");
    assert_eq!(f.store.wrapped_file(Kid::new([3; 16])).await.unwrap(), None, "there is no such key");
    // From staged there is no staging.
    for at in [KeyPhase::Idle, KeyPhase::Staged] {
        let again = f.store.stage(&before(at), &new_master(Kid::new([3; 16]))).await.unwrap();
        assert_eq!(again, Fenced::Elsewhere(state.clone()));
    }
}

pub(crate) async fn a_kid_that_was_ever_seen_is_never_staged_again(f: Fixture) {
    let f = f.ready().await;
    let idle = before(KeyPhase::Idle);
    let known = |state| Fenced::Done(StageOutcome::KnownKid(state));
    assert_eq!(f.store.stage(&idle, &new_master(KID)).await.unwrap(), known(MasterKeyState::Active));
    f.stage(&new_master(NEW)).await;
    done(f.store.abort(&before(KeyPhase::Staged), NEW, GivenUp::Aborted).await.unwrap());
    f.lease(ONE).await;
    assert_eq!(f.store.stage(&idle, &new_master(NEW)).await.unwrap(), known(MasterKeyState::Aborted));
    assert_eq!(f.state().await.phase, KeyPhase::Idle);
}

pub(crate) async fn staging_is_fenced(f: Fixture) {
    let f = f.ready().await;
    is_fenced!(f, before(KeyPhase::Idle), |fence| f.store.stage(fence, &new_master(NEW)));
}

pub(crate) async fn a_staged_key_is_given_up_whole(f: Fixture) {
    let f = f.ready().await;
    f.stage(&NewMaster { kid: NEW, mode: KeyMode::Compromised, wrapped_file: Some(b"wrapped") }).await;
    let elsewhere = f.store.abort(&before(KeyPhase::Staged), KID, GivenUp::Aborted).await.unwrap();
    assert_eq!(elsewhere, Fenced::Elsewhere(f.state().await), "not the staged key");
    is_fenced!(f, before(KeyPhase::Staged), |fence| f.store.abort(fence, NEW, GivenUp::Aborted));
    let state = done(f.store.abort(&before(KeyPhase::Staged), NEW, GivenUp::Aborted).await.unwrap());
    assert_eq!(phase_of(&state), (1, KID, KeyPhase::Idle));
    assert_eq!((state.mode, state.lease), (KeyMode::Normal, None));
    assert_eq!(f.state().await, state);
    assert_eq!(f.master_state(NEW).await, Some(MasterKeyState::Aborted));
    assert_eq!(f.rows("master_keys WHERE wrapped_file IS NOT NULL").await, 0);
}

pub(crate) async fn after_the_flip_there_is_no_way_back(f: Fixture) {
    let f = f.flipped().await;
    let state = f.state().await;
    for at in [KeyPhase::Staged, KeyPhase::Rewrapping] {
        assert_eq!(f.store.abort(&after(at), NEW, GivenUp::Aborted).await.unwrap(), Fenced::Elsewhere(state.clone()));
        assert_eq!(f.store.abort(&after(at), KID, GivenUp::Aborted).await.unwrap(), Fenced::Elsewhere(state.clone()));
    }
}

pub(crate) async fn a_flip_makes_the_new_key_the_active_one(f: Fixture) {
    let f = f.staged().await;
    let lease = f.state().await.lease;
    let FlipOutcome::Flipped(state) = f.flip(&[]).await else { panic!("not flipped") };
    assert_eq!(phase_of(&state), (2, NEW, KeyPhase::Rewrapping));
    assert_eq!((state.generation, state.lease), (2, lease), "the generation rises");
    assert_eq!(f.state().await, state);
    assert_eq!(f.master_state(KID).await, Some(MasterKeyState::DecryptOnly));
    assert_eq!(f.master_state(NEW).await, Some(MasterKeyState::Active));
    assert_eq!(f.rows("master_keys WHERE activated_at IS NULL").await, 0);
    // No DEK moved, and the next one is made under the new key.
    assert_eq!(wrapping(&f.dek_row("alice", 1).await).kid, KID);
    let deks = Deks::default();
    let DekOutcome::Active(dek) = f.store.create_dek(&tenant("carol"), &deks).await.unwrap() else { panic!() };
    assert_eq!((wrapping(&dek).kid, deks.asked()[0].2), (NEW, NEW));
}

pub(crate) async fn a_flip_is_fenced(f: Fixture) {
    let f = f.staged().await;
    is_fenced!(f, before(KeyPhase::Staged), |fence| f.store.flip(fence, NEW, &[]));
}

pub(crate) async fn a_zombie_rotator_finds_the_lease_taken(f: Fixture) {
    let f = f.staged().await;
    // It lapses; as long as nobody took it, the step goes on.
    f.store.take_lease(ONE, Duration::ZERO).await.unwrap();
    f.lease(TWO).await;
    let state = f.state().await;
    assert_eq!(f.store.flip(&before(KeyPhase::Staged), NEW, &[]).await.unwrap(), Fenced::Elsewhere(state));
    // The other gives it back: still the sleeper has none.
    f.store.release_lease(TWO).await.unwrap();
    let state = f.state().await;
    assert_eq!(f.store.flip(&before(KeyPhase::Staged), NEW, &[]).await.unwrap(), Fenced::Elsewhere(state));
}

pub(crate) async fn a_lapsed_lease_holds_as_long_as_nobody_took_it(f: Fixture) {
    let f = f.staged().await;
    f.store.take_lease(ONE, Duration::ZERO).await.unwrap();
    assert!(f.state().await.lease.unwrap().until <= f.store.now().await.unwrap());
    assert!(matches!(f.flip(&[]).await, FlipOutcome::Flipped(_)));
}

pub(crate) async fn a_flip_needs_its_staged_key(f: Fixture) {
    let f = f.staged().await;
    let state = f.state().await;
    let staged = before(KeyPhase::Staged);
    for kid in [KID, Kid::new([3; 16])] {
        assert_eq!(f.store.flip(&staged, kid, &[]).await.unwrap(), Fenced::Done(FlipOutcome::NotStaged));
    }
    assert_eq!(f.state().await, state);
}

pub(crate) async fn a_flip_needs_a_confirmed_copy_or_a_waiver(f: Fixture) {
    let f = f.ready().await;
    f.stage(&new_master(NEW)).await;
    // Nodes come after: what is missing first is said first.
    let state = f.state().await;
    assert_eq!(f.flip(&[]).await, FlipOutcome::NoEscrow);
    f.store.add_escrow(&copy_of(NEW, "begun", EscrowStage::Started)).await.unwrap();
    f.store.add_escrow(&copy_of(KID, "another", EscrowStage::ReadBack)).await.unwrap();
    f.store.add_escrow(&waiver_of(KID, "another waiver")).await.unwrap();
    assert_eq!(f.flip(&[]).await, FlipOutcome::NoEscrow, "begun is not proven, and another key's is another's");
    assert_eq!(f.state().await, state);
    f.beat(ONE, &[NEW]).await;
    f.beat(TWO, &[NEW]).await;
    assert!(f.store.advance_escrow("begun", EscrowStage::Confirmed, None).await.unwrap());
    assert!(matches!(f.flip(&[]).await, FlipOutcome::Flipped(_)));
}

pub(crate) async fn a_waiver_stands_for_a_copy_at_the_flip(f: Fixture) {
    let f = f.ready().await;
    f.stage(&new_master(NEW)).await;
    f.beat(ONE, &[NEW]).await;
    f.beat(TWO, &[NEW]).await;
    assert_eq!(f.flip(&[]).await, FlipOutcome::NoEscrow);
    f.store.add_escrow(&waiver_of(NEW, "waived")).await.unwrap();
    assert!(matches!(f.flip(&[]).await, FlipOutcome::Flipped(_)));
}

pub(crate) async fn a_flip_waits_for_every_node(f: Fixture) {
    let f = f.staged().await;
    let three = holder(3, 1);
    f.beat(TWO, &[KID]).await;
    f.beat(three, &[KID]).await;
    f.unseen_for(three, 31).await;
    let waiting = async |without: &[_]| match f.flip(without).await {
        FlipOutcome::Waiting(nodes) => nodes.iter().map(|node| (node.node, node.live)).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    assert_eq!(waiting(&[]).await, [(TWO.node, true), (three.node, false)]);
    assert_eq!(waiting(&[three.node]).await, [(TWO.node, true)], "named, and gone");
    assert_eq!(waiting(&[three.node, TWO.node]).await, [(TWO.node, true)], "a live node cannot be left out");
    assert_eq!(phase_of(&f.state().await), (1, KID, KeyPhase::Staged));
    f.beat(TWO, &[NEW, KID]).await;
    assert!(matches!(f.flip(&[three.node]).await, FlipOutcome::Flipped(_)));
}

pub(crate) async fn a_node_that_is_gone_with_the_new_key_is_not_waited_for(f: Fixture) {
    let f = f.staged().await;
    f.unseen_for(TWO, 31).await;
    assert!(matches!(f.flip(&[]).await, FlipOutcome::Flipped(_)));
}

pub(crate) async fn deks_under_a_key_come_in_pages_in_the_order_of_the_index(f: Fixture) {
    let f = f.ready().await;
    for of in ["carol", "dave", "erin"] {
        f.dek(of).await;
    }
    f.store.rotate_dek(&tenant("bob"), f.dek_row("bob", 1).await.version, &Deks::default()).await.unwrap();
    f.database.run("UPDATE deks SET state = 'quarantined' WHERE tenant = 'dave'").await.unwrap();
    let shred = "UPDATE deks SET state = 'shredded', kid = NULL, wrapped = NULL WHERE tenant = 'erin'";
    f.database.run(shred).await.unwrap();
    let (mut all, mut cursor) = (Vec::new(), None);
    loop {
        let page = f.store.deks_under(KID, cursor.as_ref(), 2).await.unwrap();
        assert!(page.len() <= 2);
        let Some(last) = page.last() else { break };
        cursor = Some(DekCursor::of(last));
        all.extend(page);
    }
    let named: Vec<_> = all.iter().map(|dek| (dek.tenant.as_str(), dek.version.get())).collect();
    assert_eq!(named, [("_system", 1), ("alice", 1), ("bob", 2), ("carol", 1), ("bob", 1)]);
    assert_eq!(all[1], f.dek_row("alice", 1).await);
    assert!(f.store.deks_under(NEW, None, 10).await.unwrap().is_empty());
    assert_eq!(f.store.count_under(KID).await.unwrap(), UnderKey { in_use: 5, quarantined: 1 });
    assert_eq!(f.store.count_under(NEW).await.unwrap(), UnderKey::default());
}

pub(crate) async fn a_rewrap_replaces_what_is_still_as_it_was_read(f: Fixture) {
    let f = f.flipped().await;
    let alice = f.dek_row("alice", 1).await;
    let bob = f.dek_row("bob", 1).await;
    let (mut stale, mut other_key, mut nobody) =
        (rewrapped(&bob, 1), rewrapped(&bob, 2), rewrapped(&f.dek_row("_system", 1).await, 3));
    stale.before.bytes = vec![0x77; 132];
    other_key.before.kid = NEW;
    nobody.tenant = tenant("nobody");
    let batch = [stale, rewrapped(&alice, 0xAA), other_key, nobody];
    let rewrapping = after(KeyPhase::Rewrapping);
    assert_eq!(f.store.rewrap(&rewrapping, &batch).await.unwrap(), Fenced::Done(1));
    let now = f.dek_row("alice", 1).await;
    assert_eq!((now.id, now.body.state()), (alice.id, alice.body.state()), "the DEK is the same");
    assert_eq!((wrapping(&now).kid, wrapping(&now).bytes), (NEW, vec![0xAA; 132]));
    assert_eq!(f.dek_row("bob", 1).await, bob);
    assert_eq!(f.store.rewrap(&rewrapping, &batch).await.unwrap(), Fenced::Done(0), "a second time there is nothing");
    assert_eq!(f.store.rewrap(&rewrapping, &[]).await.unwrap(), Fenced::Done(0));
}

pub(crate) async fn a_rewrap_is_fenced(f: Fixture) {
    let f = f.flipped().await;
    let batch = [rewrapped(&f.dek_row("alice", 1).await, 0xAA), rewrapped(&f.dek_row("bob", 1).await, 0xBB)];
    is_fenced!(f, after(KeyPhase::Rewrapping), |fence| f.store.rewrap(fence, &batch));
    assert_eq!(f.store.count_under(NEW).await.unwrap().in_use, 0);
    // A rotator that slept through the flip of another rotation.
    f.lease(holder(1, 9)).await;
    let outcome = f.store.rewrap(&after(KeyPhase::Rewrapping), &batch).await.unwrap();
    assert!(matches!(outcome, Fenced::Elsewhere(_)), "{outcome:?}");
}

pub(crate) async fn a_rewrap_of_wrong_length_changes_nothing_of_its_batch(f: Fixture) {
    let f = f.flipped().await;
    let mut short = rewrapped(&f.dek_row("bob", 1).await, 0xBB);
    short.after.pop();
    let batch = [rewrapped(&f.dek_row("alice", 1).await, 0xAA), short];
    let outcome = f.store.rewrap(&after(KeyPhase::Rewrapping), &batch).await;
    assert!(matches!(outcome, Err(StoreError::Refused(_))), "{outcome:?}");
    assert_eq!(f.store.count_under(NEW).await.unwrap().in_use, 0);
}

pub(crate) async fn secrets_are_read_and_written_at_every_step(f: Fixture) {
    let f = f.staged().await;
    f.set("A", &["staged"]).await;
    assert!(matches!(f.flip(&[]).await, FlipOutcome::Flipped(_)));
    assert_eq!(f.value(current("alice", "A")).await, "staged");
    f.set("A", &["flipped"]).await;
    assert_eq!(f.rewrap_all().await, 3);
    assert_eq!(f.value(current("alice", "A")).await, "flipped");
    f.set("A", &["rewrapped"]).await;
    done(f.store.set_phase(&after(KeyPhase::Rewrapping), KeyPhase::Verified).await.unwrap());
    done(f.store.retire(&after(KeyPhase::Verified), KID).await.unwrap());
    assert_eq!(f.value(current("alice", "A")).await, "rewrapped");
    assert_eq!(f.set("A", &["retired"]).await.get(), 4);
}

pub(crate) async fn the_phase_changes_only_where_no_step_does_it(f: Fixture) {
    let f = f.flipped().await;
    let rewrapping = after(KeyPhase::Rewrapping);
    for to in [KeyPhase::Idle, KeyPhase::Staged, KeyPhase::Reencrypting] {
        let refused = f.store.set_phase(&rewrapping, to).await;
        assert!(matches!(refused, Err(StoreError::Refused(_))), "{to}: {refused:?}");
    }
    is_fenced!(f, rewrapping, |fence| f.store.set_phase(fence, KeyPhase::Verified));
    let state = done(f.store.set_phase(&rewrapping, KeyPhase::Verified).await.unwrap());
    assert_eq!(phase_of(&state), (2, NEW, KeyPhase::Verified));
    assert!(state.lease.is_some());
    assert_eq!(f.state().await, state);
    // What verifying found is mended, and it is verified again.
    done(f.store.set_phase(&after(KeyPhase::Verified), KeyPhase::Rewrapping).await.unwrap());
    done(f.store.set_phase(&rewrapping, KeyPhase::Verified).await.unwrap());
}

pub(crate) async fn a_rotation_for_a_compromised_key_ends_after_reencrypting(f: Fixture) {
    let f = f.ready().await;
    f.stage(&NewMaster { kid: NEW, mode: KeyMode::Compromised, wrapped_file: None }).await;
    f.store.add_escrow(&waiver_of(NEW, "waived")).await.unwrap();
    f.beat(ONE, &[NEW]).await;
    f.beat(TWO, &[NEW]).await;
    assert!(matches!(f.flip(&[]).await, FlipOutcome::Flipped(_)));
    f.rewrap_all().await;
    done(f.store.set_phase(&after(KeyPhase::Rewrapping), KeyPhase::Verified).await.unwrap());
    let retired = done(f.store.retire(&after(KeyPhase::Verified), KID).await.unwrap());
    let RetireOutcome::Retired(state) = retired else { panic!("{retired:?}") };
    assert_eq!((state.phase, state.mode), (KeyPhase::Reencrypting, KeyMode::Compromised));
    assert!(state.lease.is_some(), "there is work left");
    let state = done(f.store.set_phase(&after(KeyPhase::Reencrypting), KeyPhase::Idle).await.unwrap());
    assert_eq!((state.phase, state.mode, state.lease), (KeyPhase::Idle, KeyMode::Normal, None));
    assert_eq!(f.state().await, state);
}

pub(crate) async fn a_key_is_retired_when_no_dek_in_use_is_under_it(f: Fixture) {
    let f = f.flipped().await;
    let verified = after(KeyPhase::Verified);
    let early = f.store.retire(&after(KeyPhase::Rewrapping), KID).await.unwrap();
    assert_eq!(early, Fenced::Elsewhere(f.state().await), "it was not verified");
    done(f.store.set_phase(&after(KeyPhase::Rewrapping), KeyPhase::Verified).await.unwrap());
    assert_eq!(f.store.retire(&verified, KID).await.unwrap(), Fenced::Done(RetireOutcome::StillUsed(3)));
    f.database.run("UPDATE deks SET state = 'decrypt_only' WHERE tenant = 'alice'").await.unwrap();
    assert_eq!(f.store.retire(&verified, KID).await.unwrap(), Fenced::Done(RetireOutcome::StillUsed(3)));
    assert_eq!(f.master_state(KID).await, Some(MasterKeyState::DecryptOnly));
    for kid in [NEW, Kid::new([3; 16])] {
        let state = f.master_state(kid).await;
        assert_eq!(f.store.retire(&verified, kid).await.unwrap(), Fenced::Done(RetireOutcome::NotDecryptOnly(state)));
    }
    done(f.store.set_phase(&verified, KeyPhase::Rewrapping).await.unwrap());
    f.rewrap_all().await;
    done(f.store.set_phase(&after(KeyPhase::Rewrapping), KeyPhase::Verified).await.unwrap());
    let file = f.database.bytes(b"wrapped");
    f.database.run(&format!("UPDATE master_keys SET wrapped_file = {file} WHERE state = 'active'")).await.unwrap();
    let RetireOutcome::Retired(state) = done(f.store.retire(&verified, KID).await.unwrap()) else { panic!() };
    assert_eq!(phase_of(&state), (2, NEW, KeyPhase::Idle));
    assert_eq!((state.mode, state.lease), (KeyMode::Normal, None));
    assert_eq!(f.state().await, state);
    assert_eq!(f.rows("master_keys WHERE wrapped_file IS NOT NULL").await, 0);
    let keys = f.store.survey().await.unwrap().master_keys;
    let old = keys.iter().find(|key| key.kid == KID).unwrap();
    assert!(old.state == MasterKeyState::Retired && old.retired_at.is_some() && !old.in_use, "{old:?}");
}

pub(crate) async fn retiring_is_fenced(f: Fixture) {
    let f = f.verified().await;
    is_fenced!(f, after(KeyPhase::Verified), |fence| f.store.retire(fence, KID));
}

pub(crate) async fn a_quarantined_dek_does_not_keep_a_key_from_retiring(f: Fixture) {
    let f = f.flipped().await;
    let alice = f.dek_row("alice", 1).await;
    f.store.quarantine(&alice.tenant, alice.version, &wrapping(&alice)).await.unwrap();
    assert_eq!(f.rewrap_all().await, 2);
    done(f.store.set_phase(&after(KeyPhase::Rewrapping), KeyPhase::Verified).await.unwrap());
    let retired = done(f.store.retire(&after(KeyPhase::Verified), KID).await.unwrap());
    assert!(matches!(retired, RetireOutcome::Retired(_)), "{retired:?}");
    assert_eq!(f.store.count_under(KID).await.unwrap(), UnderKey { in_use: 0, quarantined: 1 });
}

pub(crate) async fn two_rotations_follow_each_other(f: Fixture) {
    let f = f.retired().await;
    let third = Kid::new([3; 16]);
    f.lease(ONE).await;
    done(f.store.stage(&after(KeyPhase::Idle), &new_master(third)).await.unwrap());
    f.store.add_escrow(&waiver_of(third, "third")).await.unwrap();
    f.beat(ONE, &[NEW, third]).await;
    f.beat(TWO, &[NEW, third]).await;
    let flipped = done(f.store.flip(&after(KeyPhase::Staged), third, &[]).await.unwrap());
    let FlipOutcome::Flipped(state) = flipped else { panic!("{flipped:?}") };
    assert_eq!((state.epoch, state.generation, state.active_kid), (3, 3, third));
    assert_eq!(f.master_state(KID).await, Some(MasterKeyState::Retired));
    assert_eq!(f.store.count_under(NEW).await.unwrap().in_use, 3);
}

pub(crate) async fn the_generation_rises_by_one(f: Fixture) {
    let f = f.ready().await;
    let before = f.state().await;
    let state = f.store.raise_generation().await.unwrap();
    assert_eq!(state, KeyState { generation: before.generation + 1, ..before });
    assert_eq!(f.state().await, state);
}

pub(crate) async fn an_accepted_restore_lowers_nothing(f: Fixture) {
    let f = f.flipped().await;
    let before = f.state().await;
    let Accepted { state: low, .. } = f.store.accept_restore(AtLeast { epoch: 1, generation: 1 }).await.unwrap();
    assert_eq!(low, before);
    let Accepted { state: high, .. } = f.store.accept_restore(AtLeast { epoch: 7, generation: 1 }).await.unwrap();
    assert_eq!(high, KeyState { epoch: 7, ..before.clone() });
    let Accepted { state: high, .. } = f.store.accept_restore(AtLeast { epoch: 2, generation: 40 }).await.unwrap();
    assert_eq!(high, KeyState { epoch: 7, generation: 40, ..before });
    assert_eq!(f.state().await, high);
    // Whoever worked under the numbers from before is elsewhere.
    let outcome = f.store.rewrap(&after(KeyPhase::Rewrapping), &[]).await.unwrap();
    assert_eq!(outcome, Fenced::Elsewhere(high));
    assert!(f.store.take_lease(ONE, MINUTE).await.is_ok());
}

/// Given up it would be unlinked; and which state it was that used it, if any did, the numbers do not tell.
pub(crate) async fn an_accepted_restore_retires_a_key_that_was_staged(f: Fixture) {
    let f = f.staged().await;
    let file = f.database.bytes(b"wrapped");
    f.database.run(&format!("UPDATE master_keys SET wrapped_file = {file} WHERE state = 'staged'")).await.unwrap();
    let staged = f.state().await;
    let Accepted { state, retired } = f.store.accept_restore(AtLeast { epoch: 1, generation: 5 }).await.unwrap();
    assert_eq!(retired, Some(NEW));
    assert_eq!(phase_of(&state), (1, KID, KeyPhase::Idle));
    assert_eq!((state.generation, state.mode, state.lease), (5, KeyMode::Normal, None));
    assert_ne!(staged.lease, None);
    assert_eq!(f.state().await, state);
    assert_eq!(f.rows("master_keys WHERE wrapped_file IS NOT NULL").await, 0);
    let keys = f.store.survey().await.unwrap().master_keys;
    let new = keys.iter().find(|key| key.kid == NEW).unwrap();
    assert!(new.state == MasterKeyState::Retired && new.retired_at.is_some(), "{new:?}");
    assert_eq!(f.master_state(KID).await, Some(MasterKeyState::Active));
    // Neither way goes on from where it was.
    let fence = before(KeyPhase::Staged);
    assert!(matches!(f.store.abort(&fence, NEW, GivenUp::Aborted).await.unwrap(), Fenced::Elsewhere(_)));
    assert!(matches!(f.store.flip(&fence, NEW, &[]).await.unwrap(), Fenced::Elsewhere(_)));
    let again = f.store.accept_restore(AtLeast { epoch: 1, generation: 6 }).await.unwrap();
    assert_eq!(again.retired, None);
}
