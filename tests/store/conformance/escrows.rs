//! Escrows, and the destruction that they stand guard over.

use std::time::Duration;

use containarium::model::{CopyLoss, EscrowKind, KeyPhase, Kid, MasterKeyState, Micros};
use containarium::store::StoreError;
use containarium::store::masters::{CopyFinding, DestroyOutcome, EscrowStage, FlipOutcome, NewEscrow};

use crate::store::rotation::{MINUTE, NEW, ONE, TWO, after, before, copy_of, done, new_master, waiver_of, wrapping};
use crate::store::steps::KID;
use crate::support::stores::Fixture;

async fn refuses(f: &Fixture, escrow: &NewEscrow) {
    let before = f.rows("escrows").await;
    let refused = f.store.add_escrow(escrow).await;
    assert!(matches!(refused, Err(StoreError::Refused(_))), "{refused:?}");
    assert_eq!(f.rows("escrows").await, before);
}

pub(crate) async fn an_escrow_comes_back_as_it_was_added(f: Fixture) {
    let f = f.ready().await;
    f.stage(&new_master(NEW)).await;
    assert!(f.store.escrows().await.unwrap().is_empty());
    let earlier = f.store.now().await.unwrap();
    let begun = NewEscrow { locator: None, ..copy_of(NEW, "a", EscrowStage::Started) };
    f.store.add_escrow(&begun).await.unwrap();
    f.store.add_escrow(&copy_of(KID, "c", EscrowStage::ReadBack)).await.unwrap();
    f.store.add_escrow(&copy_of(KID, "b", EscrowStage::Confirmed)).await.unwrap();
    f.store.add_escrow(&waiver_of(NEW, "d")).await.unwrap();
    let later = f.store.now().await.unwrap();
    f.database.run("UPDATE escrows SET started_at = started_at + 1000000 WHERE id IN ('b', 'd')").await.unwrap();

    let escrows = f.store.escrows().await.unwrap();
    let ids: Vec<_> = escrows.iter().map(|escrow| escrow.id.as_str()).collect();
    assert_eq!(ids, ["c", "b", "a", "d"], "by kid, then time of start");
    let [read, confirmed, begun, waived] = <[_; 4]>::try_from(escrows).unwrap();
    assert_eq!((begun.kid, begun.kind, begun.target.as_str()), (NEW, EscrowKind::Copy, "file"));
    assert_eq!((begun.locator, begun.content_sha256), (None, Some([7; 32])));
    assert_eq!((begun.confirmed_at, begun.read_back_at), (None, None));
    assert!(begun.started_at >= earlier && begun.started_at <= later);
    assert_eq!(confirmed.locator.as_deref(), Some("a drawer"));
    assert_eq!(confirmed.kms_versions, ["k/cryptoKeyVersions/1", "k/cryptoKeyVersions/2"]);
    assert!(waived.kms_versions.is_empty());
    assert!(confirmed.confirmed_at.is_some() && confirmed.read_back_at.is_none());
    assert!(read.confirmed_at.is_some() && read.read_back_at.is_some());
    assert_eq!((waived.kind, waived.locator, waived.content_sha256), (EscrowKind::Waiver, None, None));
    assert!(waived.confirmed_at.is_some() && waived.read_back_at.is_none());
}

pub(crate) async fn what_is_no_escrow_is_refused(f: Fixture) {
    let f = f.with_key().await;
    let copy = copy_of(KID, "a", EscrowStage::Confirmed);
    refuses(&f, &NewEscrow { kid: Kid::new([9; 16]), ..copy.clone() }).await;
    refuses(&f, &NewEscrow { content_sha256: None, ..copy.clone() }).await;
    let waiver = waiver_of(KID, "a");
    refuses(&f, &NewEscrow { locator: Some("nowhere".to_owned()), ..waiver.clone() }).await;
    refuses(&f, &NewEscrow { content_sha256: Some([7; 32]), ..waiver.clone() }).await;
    refuses(&f, &NewEscrow { stage: EscrowStage::Started, ..waiver.clone() }).await;
    refuses(&f, &NewEscrow { stage: EscrowStage::ReadBack, ..waiver.clone() }).await;
    f.store.add_escrow(&copy).await.unwrap();
    refuses(&f, &copy).await;
    refuses(&f, &waiver).await;
}

pub(crate) async fn an_escrow_advances_and_keeps_what_was_stamped(f: Fixture) {
    let f = f.with_key().await;
    assert!(!f.store.advance_escrow("a", EscrowStage::Confirmed, None).await.unwrap());
    f.store.add_escrow(&copy_of(KID, "a", EscrowStage::Started)).await.unwrap();
    f.store.add_escrow(&copy_of(KID, "b", EscrowStage::Started)).await.unwrap();
    assert!(f.store.advance_escrow("a", EscrowStage::Confirmed, Some("a safe")).await.unwrap());
    let stamps = async |id: &str| {
        let escrows = f.store.escrows().await.unwrap();
        let escrow = escrows.into_iter().find(|escrow| escrow.id == id).unwrap();
        (escrow.locator.unwrap(), escrow.started_at.0, escrow.confirmed_at, escrow.read_back_at)
    };
    let (locator, _, confirmed, read) = stamps("a").await;
    assert!(locator == "a safe" && confirmed.is_some() && read.is_none());
    assert!(f.store.has_confirmed_escrow(KID).await.unwrap());
    f.database.run("UPDATE escrows SET started_at = 1, confirmed_at = 2 WHERE id = 'a'").await.unwrap();
    assert!(f.store.advance_escrow("a", EscrowStage::ReadBack, None).await.unwrap());
    let (locator, started, confirmed, read) = stamps("a").await;
    assert_eq!((locator.as_str(), started, confirmed), ("a safe", 1, Some(Micros(2))), "as they were");
    assert!(read.unwrap() > Micros(2));
    // What was read back was there.
    assert_eq!(stamps("b").await.2, None, "another one is another one");
    assert!(f.store.advance_escrow("b", EscrowStage::ReadBack, None).await.unwrap());
    let (_, _, confirmed, read) = stamps("b").await;
    assert!(confirmed.is_some() && confirmed == read);
    // There is nothing to read back of a waiver.
    f.store.add_escrow(&waiver_of(KID, "w")).await.unwrap();
    assert!(!f.store.advance_escrow("w", EscrowStage::ReadBack, None).await.unwrap());
}

/// Two daemons find one begun row, and each makes a copy.
pub(crate) async fn a_confirmed_escrow_is_not_overwritten_by_a_second_answer(f: Fixture) {
    let f = f.with_key().await;
    f.store.add_escrow(&copy_of(KID, "a", EscrowStage::Started)).await.unwrap();
    assert!(f.store.advance_escrow("a", EscrowStage::Confirmed, Some("the first")).await.unwrap());
    f.database.run("UPDATE escrows SET confirmed_at = 2, read_back_at = 3 WHERE id = 'a'").await.unwrap();
    let row = async || f.store.escrows().await.unwrap().remove(0);
    let before = row().await;
    for locator in [Some("the second"), None] {
        assert!(!f.store.advance_escrow("a", EscrowStage::Confirmed, locator).await.unwrap(), "{locator:?}");
        assert_eq!(row().await, before, "{locator:?}");
    }
    // Whoever was not told that it was committed asks again.
    assert!(f.store.advance_escrow("a", EscrowStage::Confirmed, Some("the first")).await.unwrap());
    assert_eq!((row().await.locator, row().await.read_back_at), (before.locator, before.read_back_at));
}

pub(crate) async fn what_became_of_a_copy_is_remembered_until_it_is_read_back(f: Fixture) {
    let f = f.with_key().await;
    f.store.add_escrow(&copy_of(KID, "a", EscrowStage::Confirmed)).await.unwrap();
    f.store.add_escrow(&copy_of(KID, "begun", EscrowStage::Started)).await.unwrap();
    f.store.add_escrow(&waiver_of(KID, "w")).await.unwrap();
    let row = async || f.store.escrows().await.unwrap().into_iter().find(|escrow| escrow.id == "a").unwrap();
    assert_eq!((row().await.looked_at, row().await.lost, row().await.unread), (None, None, None));
    let earlier = f.store.now().await.unwrap();
    for loss in CopyLoss::ALL {
        assert!(f.store.note_copy("a", &CopyFinding::Lost(*loss)).await.unwrap());
        assert_eq!(row().await.lost, Some(*loss));
    }
    assert!(row().await.looked_at >= Some(earlier));
    assert!(f.store.note_copy("a", &CopyFinding::There).await.unwrap());
    assert!(row().await.lost.is_none() && row().await.looked_at >= Some(earlier));
    // That it is there is not that it is good.
    assert!(f.store.note_copy("a", &CopyFinding::Unread("it is another key".to_owned())).await.unwrap());
    assert!(f.store.note_copy("a", &CopyFinding::Lost(CopyLoss::Disabled)).await.unwrap());
    let unread = row().await.unread.unwrap();
    assert!(unread.why == "it is another key" && unread.at >= earlier);
    assert!(!f.store.advance_escrow("a", EscrowStage::Confirmed, None).await.unwrap());
    assert!(row().await.unread.is_some() && row().await.lost.is_some());
    assert!(f.store.advance_escrow("a", EscrowStage::ReadBack, None).await.unwrap());
    let read = row().await;
    assert_eq!((read.lost, read.unread, read.looked_at), (None, None, read.read_back_at));
    for none in ["begun", "w", "nobody"] {
        for finding in [CopyFinding::There, CopyFinding::Unread(String::new())] {
            assert!(!f.store.note_copy(none, &finding).await.unwrap(), "{none}");
        }
    }
}

pub(crate) async fn a_lost_copy_stands_for_nothing(f: Fixture) {
    let f = f.ready().await;
    f.stage(&new_master(NEW)).await;
    f.beat(ONE, &[KID, NEW]).await;
    f.beat(TWO, &[KID, NEW]).await;
    f.store.add_escrow(&copy_of(NEW, "new", EscrowStage::Confirmed)).await.unwrap();
    f.store.note_copy("new", &CopyFinding::Lost(CopyLoss::Destroyed)).await.unwrap();
    assert!(!f.store.has_confirmed_escrow(NEW).await.unwrap());
    let fence = before(KeyPhase::Staged);
    let flip = done(f.store.flip(&fence, NEW, &[]).await.unwrap());
    assert!(matches!(flip, FlipOutcome::NoEscrow), "{flip:?}");
    f.store.note_copy("new", &CopyFinding::There).await.unwrap();
    assert!(f.store.has_confirmed_escrow(NEW).await.unwrap());
    f.store.note_copy("new", &CopyFinding::Unread("another key".to_owned())).await.unwrap();
    let flip = done(f.store.flip(&fence, NEW, &[]).await.unwrap());
    assert!(matches!(flip, FlipOutcome::NoEscrow), "nothing comes to depend on a copy that was found bad: {flip:?}");
    f.store.advance_escrow("new", EscrowStage::ReadBack, None).await.unwrap();
    let flip = done(f.store.flip(&fence, NEW, &[]).await.unwrap());
    assert!(matches!(flip, FlipOutcome::Flipped(_)), "{flip:?}");
}

pub(crate) async fn only_a_retired_key_is_destroyed(f: Fixture) {
    let f = f.flipped().await;
    f.store.add_escrow(&copy_of(KID, "old", EscrowStage::ReadBack)).await.unwrap();
    f.store.add_escrow(&copy_of(NEW, "active", EscrowStage::ReadBack)).await.unwrap();
    for kid in [KID, NEW, Kid::new([3; 16])] {
        let state = f.master_state(kid).await;
        let waiver = waiver_of(kid, "waiver");
        for waiver in [None, Some(&waiver)] {
            let outcome = f.store.destroy_master(kid, Duration::ZERO, waiver).await.unwrap();
            assert_eq!(outcome, DestroyOutcome::NotRetired(state));
        }
        assert_eq!(f.master_state(kid).await, state);
    }
    assert_eq!((f.state().await.generation, f.rows("escrows WHERE kind = 'waiver'").await), (2, 0));
}

pub(crate) async fn a_retired_key_is_destroyed_when_its_time_has_come_and_its_copy_was_read_back(f: Fixture) {
    let f = f.retired().await;
    let keys = f.store.survey().await.unwrap().master_keys;
    let retired_at = keys.iter().find(|key| key.kid == KID).unwrap().retired_at.unwrap();
    let not_before = DestroyOutcome::NotBefore(Micros(retired_at.0 + 60_000_000));
    assert_eq!(f.store.destroy_master(KID, MINUTE, None).await.unwrap(), not_before);
    assert_eq!(f.store.destroy_master(KID, MINUTE, Some(&waiver_of(KID, "w"))).await.unwrap(), not_before);
    f.database.run("UPDATE master_keys SET retired_at = retired_at - 60000000 WHERE state = 'retired'").await.unwrap();
    f.store.add_escrow(&copy_of(KID, "old", EscrowStage::Confirmed)).await.unwrap();
    f.store.add_escrow(&copy_of(NEW, "another's", EscrowStage::ReadBack)).await.unwrap();
    assert_eq!(f.store.destroy_master(KID, MINUTE, None).await.unwrap(), DestroyOutcome::NotReadBack);
    assert_eq!((f.master_state(KID).await, f.state().await.generation), (Some(MasterKeyState::Retired), 2));
    f.store.advance_escrow("old", EscrowStage::ReadBack, None).await.unwrap();
    f.store.note_copy("old", &CopyFinding::Lost(CopyLoss::Absent)).await.unwrap();
    assert_eq!(f.store.destroy_master(KID, MINUTE, None).await.unwrap(), DestroyOutcome::NotReadBack);
    f.store.note_copy("old", &CopyFinding::There).await.unwrap();
    f.store.note_copy("old", &CopyFinding::Unread("another key".to_owned())).await.unwrap();
    assert_eq!(f.store.destroy_master(KID, MINUTE, None).await.unwrap(), DestroyOutcome::NotReadBack);
    f.store.advance_escrow("old", EscrowStage::ReadBack, None).await.unwrap();
    assert_eq!(f.store.destroy_master(KID, MINUTE, None).await.unwrap(), DestroyOutcome::Destroyed);
    assert_eq!((f.master_state(KID).await, f.state().await.generation), (Some(MasterKeyState::Destroyed), 3));
    assert_eq!(f.rows("master_keys WHERE destroyed_at IS NOT NULL").await, 1);
    let again = f.store.destroy_master(KID, MINUTE, None).await.unwrap();
    assert_eq!(again, DestroyOutcome::NotRetired(Some(MasterKeyState::Destroyed)));
    assert_eq!(f.state().await.generation, 3);
}

pub(crate) async fn a_waiver_stands_for_a_copy_that_was_read_back(f: Fixture) {
    let f = f.retired().await;
    // One that was given for the flip says nothing of the destruction.
    f.store.add_escrow(&waiver_of(KID, "earlier")).await.unwrap();
    let none = Duration::ZERO;
    assert_eq!(f.store.destroy_master(KID, none, None).await.unwrap(), DestroyOutcome::NotReadBack);
    for wrong in [waiver_of(NEW, "w"), copy_of(KID, "w", EscrowStage::ReadBack)] {
        let refused = f.store.destroy_master(KID, none, Some(&wrong)).await;
        assert!(matches!(refused, Err(StoreError::Refused(_))), "{refused:?}");
    }
    assert_eq!(f.master_state(KID).await, Some(MasterKeyState::Retired));
    let waiver = waiver_of(KID, "w");
    assert_eq!(f.store.destroy_master(KID, none, Some(&waiver)).await.unwrap(), DestroyOutcome::Destroyed);
    assert_eq!(f.rows("escrows WHERE id = 'w' AND kind = 'waiver' AND confirmed_at IS NOT NULL").await, 1);
}

pub(crate) async fn a_key_with_quarantined_deks_is_not_destroyed(f: Fixture) {
    let f = f.flipped().await;
    let alice = f.dek_row("alice", 1).await;
    f.store.quarantine(&alice.tenant, alice.version, &wrapping(&alice)).await.unwrap();
    f.rewrap_all().await;
    done(f.store.set_phase(&after(KeyPhase::Rewrapping), KeyPhase::Verified).await.unwrap());
    done(f.store.retire(&after(KeyPhase::Verified), KID).await.unwrap());
    f.store.add_escrow(&copy_of(KID, "old", EscrowStage::ReadBack)).await.unwrap();
    for waiver in [None, Some(&waiver_of(KID, "w"))] {
        let outcome = f.store.destroy_master(KID, Duration::ZERO, waiver).await.unwrap();
        assert_eq!(outcome, DestroyOutcome::Quarantined(1));
    }
    assert_eq!((f.state().await.generation, f.rows("escrows WHERE kind = 'waiver'").await), (2, 0));
    f.store.release(&alice.tenant, alice.version, &wrapping(&alice), &[0xAA; 132], NEW).await.unwrap();
    assert_eq!(f.store.destroy_master(KID, Duration::ZERO, None).await.unwrap(), DestroyOutcome::Destroyed);
}
