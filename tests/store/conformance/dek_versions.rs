//! A tenant's DEKs after the first: new versions, re-encryption, removal, quarantine.

use std::sync::Mutex;

use containarium::model::{DekBody, DekRecord, Kid, VersionBody};
use containarium::store::deks::{
    QuarantineOutcome, RemoveDekOutcome, ResealOutcome, Resealer, RotateDekOutcome, SealedVersion,
};
use containarium::store::{DekOutcome, Found, Refusal, SealRefusal, StoreError};

use crate::store::fakes::{Deks, OVERHEAD, value_of};
use crate::store::rotation::{NEW, dek_version, wrapping};
use crate::store::steps::{KID, current, intent, name, number, numbered, tenant};
use crate::support::stores::Fixture;

/// "Seals" a value anew: in clear, with the DEK's number before it.
#[derive(Default)]
struct Reseals {
    refused: Option<(usize, SealRefusal)>,
    asked: Mutex<Vec<usize>>,
}

impl Resealer for Reseals {
    fn reseal(&self, index: usize, version: &SealedVersion, active: &DekRecord) -> Result<Vec<u8>, SealRefusal> {
        self.asked.lock().unwrap().push(index);
        match &self.refused {
            Some((refused, refusal)) if *refused == index => Err(refusal.clone()),
            _ => Ok(resealed(value_of(&version.ciphertext), active)),
        }
    }
}

fn resealed(value: &[u8], active: &DekRecord) -> Vec<u8> {
    let mut bytes = format!("resealed under {}", active.version).into_bytes();
    bytes.resize(OVERHEAD, b'.');
    bytes.extend_from_slice(value);
    bytes
}

async fn rotate(f: &Fixture, of: &str, from: u32) -> RotateDekOutcome {
    f.store.rotate_dek(&tenant(of), dek_version(from), &Deks::default()).await.unwrap()
}

async fn rotated(f: &Fixture, of: &str, from: u32) -> DekRecord {
    match rotate(f, of, from).await {
        RotateDekOutcome::Rotated(dek) => dek,
        other => panic!("{other:?}"),
    }
}

/// The DEK that a live version is sealed under, by the row.
async fn under(f: &Fixture, named: &str, version: u64) -> u32 {
    match f.secret(numbered("alice", named, version)).await.1.unwrap().body {
        VersionBody::Live { dek_version, .. } => dek_version.get(),
        VersionBody::Destroyed { .. } => panic!("destroyed"),
    }
}

pub(crate) async fn deks_are_found_by_tenant_and_version(f: Fixture) {
    let f = f.with_alice().await;
    assert_eq!(f.store.dek(&tenant("nobody"), dek_version(1)).await.unwrap(), None);
    assert_eq!(f.store.dek(&tenant("alice"), dek_version(2)).await.unwrap(), None);
    assert!(f.store.deks(&tenant("nobody")).await.unwrap().is_empty());
    let first = f.dek_row("alice", 1).await;
    assert_eq!((first.version, &first.tenant), (dek_version(1), &tenant("alice")));
    let second = rotated(&f, "alice", 1).await;
    assert_eq!(f.store.deks(&tenant("alice")).await.unwrap(), [f.dek_row("alice", 1).await, second]);
}

pub(crate) async fn deks_of_an_earlier_epoch_are_known_by_it_and_not_by_a_clock(f: Fixture) {
    let f = f.with_alice().await;
    f.store.create_dek(&tenant("bob"), &Deks::default()).await.unwrap();
    let before = async |after: Option<&str>, limit| {
        let after = after.map(tenant);
        let found = f.store.made_before_active(after.as_ref(), limit).await.unwrap();
        found.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert!(before(None, 10).await.is_empty(), "all are of this epoch");
    // A clock that was set back must not hide one.
    f.database.run("UPDATE deks SET created_at = 9000000000000000").await.unwrap();
    f.database.run("UPDATE key_state SET epoch = epoch + 1").await.unwrap();
    assert_eq!(before(None, 10).await, ["_system", "alice", "bob"]);
    assert_eq!(before(None, 2).await, ["_system", "alice"]);
    assert_eq!(before(Some("alice"), 10).await, ["bob"]);
    rotated(&f, "alice", 1).await;
    assert_eq!(before(None, 10).await, ["_system", "alice", "bob"], "the old DEK decrypts still");
    assert_eq!(f.store.remove_dek(&tenant("alice"), dek_version(1)).await.unwrap(), RemoveDekOutcome::Removed);
    assert_eq!(before(None, 10).await, ["_system", "bob"]);
    f.store.schedule_shred(&tenant("bob"), std::time::Duration::from_secs(9)).await.unwrap();
    assert_eq!(before(None, 10).await, ["_system"], "a blocked tenant waits for its shred");
}

pub(crate) async fn a_new_dek_version_seals_and_the_old_one_opens(f: Fixture) {
    let f = f.with_alice().await;
    f.set("A", &["one"]).await;
    let deks = Deks::default();
    let outcome = f.store.rotate_dek(&tenant("alice"), dek_version(1), &deks).await.unwrap();
    let RotateDekOutcome::Rotated(dek) = outcome else { panic!("{outcome:?}") };
    assert_eq!(deks.asked(), [(tenant("alice"), dek_version(2), KID)]);
    assert_eq!((dek.version, dek.body.state().as_str(), wrapping(&dek).kid), (dek_version(2), "active", KID));
    assert_eq!(f.dek_row("alice", 2).await, dek);
    assert_eq!(f.dek_states("alice").await, [(1, "decrypt_only"), (2, "active")]);
    assert_eq!(f.value(current("alice", "A")).await, "one");
    f.set("A", &["two"]).await;
    assert_eq!((under(&f, "A", 1).await, under(&f, "A", 2).await), (1, 2));
    assert_eq!(rotated(&f, "alice", 2).await.version, dek_version(3));
}

pub(crate) async fn only_the_active_dek_is_replaced(f: Fixture) {
    let f = f.with_alice().await;
    rotated(&f, "alice", 1).await;
    let before = f.dek_states("alice").await;
    for from in [1, 3] {
        assert_eq!(rotate(&f, "alice", from).await, RotateDekOutcome::NotActive(Some(dek_version(2))));
    }
    assert_eq!(rotate(&f, "nobody", 1).await, RotateDekOutcome::NoTenant);
    let refusing = Deks::refusing(SealRefusal::NotLoaded(KID));
    let outcome = f.store.rotate_dek(&tenant("alice"), dek_version(2), &refusing).await.unwrap();
    assert_eq!(outcome, RotateDekOutcome::Refused(SealRefusal::NotLoaded(KID)));
    assert_eq!(f.dek_states("alice").await, before);
    f.block("alice").await;
    assert_eq!(rotate(&f, "alice", 2).await, RotateDekOutcome::Blocked);
    assert_eq!(f.dek_states("alice").await, before);
    f.dek("bob").await;
    let bob = f.dek_row("bob", 1).await;
    f.store.quarantine(&bob.tenant, bob.version, &wrapping(&bob)).await.unwrap();
    assert_eq!(rotate(&f, "bob", 1).await, RotateDekOutcome::NotActive(None));
}

pub(crate) async fn a_dek_made_after_the_flip_is_under_the_new_key(f: Fixture) {
    let f = f.flipped().await;
    let deks = Deks::default();
    f.store.rotate_dek(&tenant("alice"), dek_version(1), &deks).await.unwrap();
    assert_eq!(deks.asked()[0].2, NEW);
    assert_eq!(wrapping(&f.dek_row("alice", 2).await).kid, NEW);
    assert_eq!(wrapping(&f.dek_row("alice", 1).await).kid, KID);
    assert_eq!(f.rewrap_all().await, 3, "a DEK that decrypts only is rewrapped too");
}

/// Alice with versions under DEK 1: of A two, of B one that is destroyed, of C one that is deleted, of D one; and DEK 2 active.
async fn with_old_versions(f: Fixture) -> Fixture {
    let f = f.with_alice().await;
    f.set("D", &["d"]).await;
    f.set("A", &["one", "two"]).await;
    f.set("B", &["gone"]).await;
    f.destroy("B", &[1]).await;
    f.set("C", &["deleted"]).await;
    f.delete("C").await;
    rotated(&f, "alice", 1).await;
    f.set("D", &["new"]).await;
    f
}

fn places(versions: &[SealedVersion]) -> Vec<(&str, u64)> {
    versions.iter().map(|version| (version.name.as_str(), version.version.get())).collect()
}

pub(crate) async fn versions_under_a_dek_come_in_pages(f: Fixture) {
    let f = with_old_versions(f).await;
    let all = f.sealed(1, None, 10).await;
    assert_eq!(places(&all), [("A", 1), ("A", 2), ("C", 1), ("D", 1)]);
    assert_eq!(value_of(&all[1].ciphertext), b"two");
    assert_eq!(f.sealed(1, None, 3).await, all[..3]);
    assert_eq!(f.sealed(1, Some((&name("A"), number(1))), 2).await, all[1..3]);
    assert_eq!(f.sealed(1, Some((&name("C"), number(1))), 10).await, all[3..]);
    assert!(f.sealed(1, Some((&name("D"), number(1))), 10).await.is_empty());
    assert_eq!(places(&f.sealed(2, None, 10).await), [("D", 2)]);
    let others = f.store.sealed_under(&tenant("nobody"), dek_version(1), None, 10).await.unwrap();
    assert!(others.is_empty());
}

pub(crate) async fn resealing_moves_versions_and_changes_nothing_else(f: Fixture) {
    let f = with_old_versions(f).await;
    let stamps = "UPDATE secrets SET updated_at = 5, created_at = 4 WHERE tenant = 'alice'";
    f.database.run(stamps).await.unwrap();
    f.database.run("UPDATE secret_versions SET created_at = 3 WHERE tenant = 'alice'").await.unwrap();
    let versions = f.sealed(1, None, 10).await;
    let outcome = f.store.reseal(&tenant("alice"), dek_version(1), &versions, &Reseals::default()).await.unwrap();
    assert_eq!(outcome, ResealOutcome::Resealed(4));
    assert!(f.sealed(1, None, 10).await.is_empty());
    let active = f.dek_row("alice", 2).await;
    let moved = f.sealed(2, None, 10).await;
    assert_eq!(places(&moved), [("A", 1), ("A", 2), ("C", 1), ("D", 1), ("D", 2)]);
    assert_eq!(moved[2].ciphertext, resealed(b"deleted", &active), "of a deleted secret too");
    assert_eq!(f.value(numbered("alice", "A", 1)).await, "one");
    let (secret, version) = f.secret(current("alice", "A")).await;
    assert_eq!((secret.current.get(), secret.updated_at.0, secret.created_at.0), (2, 5, 4));
    assert_eq!(version.unwrap().created_at.0, 3);
    let (deleted, _) = f.secret(current("alice", "C")).await;
    assert!(deleted.deleted_at.is_some());
    assert_eq!(f.rows("secret_versions WHERE state = 'destroyed'").await, 1);
    assert_eq!(f.set("A", &["three"]).await.get(), 3);
}

pub(crate) async fn a_version_that_changed_or_went_is_left_alone(f: Fixture) {
    let f = with_old_versions(f).await;
    f.set("E", &["e"]).await;
    let mut versions = f.sealed(1, None, 10).await;
    // A/1 was destroyed meanwhile, A/2 holds other bytes, C/1 is under another DEK by now, and one never was.
    f.destroy("A", &[1]).await;
    versions[1].ciphertext.push(b'!');
    let only_c = versions[2..3].to_vec();
    let resealed = f.store.reseal(&tenant("alice"), dek_version(1), &only_c, &Reseals::default()).await.unwrap();
    assert_eq!(resealed, ResealOutcome::Resealed(1));
    versions.push(SealedVersion { name: name("NEVER"), ..versions[0].clone() });
    versions.push(SealedVersion { name: name("E"), version: number(1), ..versions[0].clone() });
    let before = f.sealed(2, None, 10).await;
    let reseals = Reseals::default();
    let outcome = f.store.reseal(&tenant("alice"), dek_version(1), &versions, &reseals).await.unwrap();
    assert_eq!(outcome, ResealOutcome::Resealed(1));
    assert_eq!(*reseals.asked.lock().unwrap(), [3], "D/1 alone is as it was read");
    assert_eq!(places(&f.sealed(1, None, 10).await), [("A", 2)]);
    let after = f.sealed(2, None, 10).await;
    assert_eq!(after.len(), before.len() + 1);
    assert!(before.iter().all(|version| after.contains(version)));
    assert_eq!(f.store.reseal(&tenant("alice"), dek_version(1), &[], &Reseals::default()).await.unwrap(), {
        ResealOutcome::Resealed(0)
    });
}

pub(crate) async fn a_refused_reseal_replaces_nothing(f: Fixture) {
    let f = with_old_versions(f).await;
    let alice = tenant("alice");
    let versions = f.sealed(1, None, 10).await;
    let refusing = Reseals { refused: Some((2, SealRefusal::DoesNotOpen)), ..Reseals::default() };
    let outcome = f.store.reseal(&alice, dek_version(1), &versions, &refusing).await.unwrap();
    assert_eq!(outcome, ResealOutcome::Refused(SealRefusal::DoesNotOpen));
    assert_eq!(f.sealed(1, None, 10).await, versions);
    let active = f.dek_row("alice", 2).await;
    f.store.quarantine(&alice, active.version, &wrapping(&active)).await.unwrap();
    let reseals = Reseals::default();
    let outcome = f.store.reseal(&alice, dek_version(1), &versions, &reseals).await.unwrap();
    assert_eq!(outcome, ResealOutcome::NoActiveDek);
    f.block("alice").await;
    assert_eq!(f.store.reseal(&alice, dek_version(1), &versions, &reseals).await.unwrap(), ResealOutcome::Blocked);
    assert_eq!(f.sealed(1, None, 10).await, versions);
    assert!(reseals.asked.lock().unwrap().is_empty());
}

pub(crate) async fn a_dek_goes_when_nothing_is_sealed_under_it(f: Fixture) {
    let f = with_old_versions(f).await;
    let alice = tenant("alice");
    let remove = async |version| f.store.remove_dek(&alice, dek_version(version)).await.unwrap();
    assert_eq!(remove(1).await, RemoveDekOutcome::StillUsed(4), "a deleted secret's version counts");
    assert_eq!(remove(2).await, RemoveDekOutcome::NotDecryptOnly);
    assert_eq!(remove(3).await, RemoveDekOutcome::Unknown);
    let versions = f.sealed(1, None, 10).await;
    f.store.reseal(&alice, dek_version(1), &versions, &Reseals::default()).await.unwrap();
    assert_eq!(remove(1).await, RemoveDekOutcome::Removed);
    assert_eq!(f.dek_states("alice").await, [(2, "active")]);
    assert_eq!(remove(1).await, RemoveDekOutcome::Unknown);
    assert_eq!(rotated(&f, "alice", 2).await.version, dek_version(3), "a number is used once");
    f.database.run("UPDATE deks SET state = 'quarantined' WHERE tenant = 'alice' AND dek_version = 2").await.unwrap();
    assert_eq!(remove(2).await, RemoveDekOutcome::NotDecryptOnly);
}

async fn quarantine(f: &Fixture, dek: &DekRecord) -> QuarantineOutcome {
    f.store.quarantine(&dek.tenant, dek.version, &wrapping(dek)).await.unwrap()
}

pub(crate) async fn a_dek_is_set_aside_where_it_is_as_it_was_read(f: Fixture) {
    let f = with_old_versions(f).await;
    let (old, active) = (f.dek_row("alice", 1).await, f.dek_row("alice", 2).await);
    let unknown = f.store.quarantine(&tenant("alice"), dek_version(9), &wrapping(&old)).await.unwrap();
    assert_eq!(unknown, QuarantineOutcome::Unknown);
    let (mut other_bytes, mut other_kid) = (wrapping(&old), wrapping(&old));
    other_bytes.bytes[0] ^= 1;
    other_kid.kid = NEW;
    for other in [other_bytes, other_kid] {
        let outcome = f.store.quarantine(&old.tenant, old.version, &other).await.unwrap();
        assert_eq!(outcome, QuarantineOutcome::Elsewhere(old.clone()));
    }
    for (dek, left) in
        [(&old, [(1, "quarantined"), (2, "active")]), (&active, [(1, "quarantined"), (2, "quarantined")])]
    {
        let aside = DekRecord { body: DekBody::Quarantined(wrapping(dek)), ..dek.clone() };
        assert_eq!(quarantine(&f, dek).await, QuarantineOutcome::Done(aside.clone()));
        assert_eq!(f.dek_states("alice").await, left);
        assert_eq!(quarantine(&f, dek).await, QuarantineOutcome::Elsewhere(aside));
    }
    // Nothing was deleted; without an active DEK a write asks for a new one.
    let Found::Secret(_, Some(version)) = f.found(numbered("alice", "A", 1)).await else { panic!("not found") };
    let VersionBody::Live { dek, .. } = version.body else { panic!("destroyed") };
    assert_eq!(dek.unwrap().body.state().as_str(), "quarantined");
    assert_eq!(f.write(intent("alice", "A"), "three").await, Err(Refusal::NoActiveDek));
    assert_eq!(f.dek("alice").await.version, dek_version(3));
}

pub(crate) async fn a_dek_that_is_released_is_active_only_where_nothing_took_its_place(f: Fixture) {
    let f = with_old_versions(f).await;
    let (old, active) = (f.dek_row("alice", 1).await, f.dek_row("alice", 2).await);
    quarantine(&f, &old).await;
    quarantine(&f, &active).await;
    let release = async |dek: &DekRecord, byte| {
        let outcome = f.store.release(&dek.tenant, dek.version, &wrapping(dek), &[byte; 132], KID).await.unwrap();
        let QuarantineOutcome::Done(dek) = outcome else { panic!("{outcome:?}") };
        assert_eq!((wrapping(&dek).kid, wrapping(&dek).bytes), (KID, vec![byte; 132]));
        assert_eq!(f.dek_row("alice", dek.version.get()).await, dek);
        dek
    };
    // There is no active one, but it is not the highest.
    assert_eq!(release(&old, 0xA1).await.body.state().as_str(), "decrypt_only");
    let back = release(&active, 0xA2).await;
    assert_eq!((back.body.state().as_str(), back.id), ("active", active.id));
    // It is set aside again, and another takes its place.
    quarantine(&f, &back).await;
    f.dek("alice").await;
    release(&back, 0xA3).await;
    assert_eq!(f.dek_states("alice").await, [(1, "decrypt_only"), (2, "decrypt_only"), (3, "active")]);
    // By hand only: the highest is aside, and a lower one is active.
    let highest = f.dek_row("alice", 3).await;
    quarantine(&f, &highest).await;
    f.database.run("UPDATE deks SET state = 'active' WHERE tenant = 'alice' AND dek_version = 1").await.unwrap();
    release(&highest, 0xA4).await;
    assert_eq!(f.dek_states("alice").await, [(1, "active"), (2, "decrypt_only"), (3, "decrypt_only")]);
}

pub(crate) async fn a_dek_is_released_under_the_active_key_only(f: Fixture) {
    let f = f.flipped().await;
    let alice = f.dek_row("alice", 1).await;
    let (of, version, before) = (&alice.tenant, alice.version, wrapping(&alice));
    let release = async |before, active| f.store.release(of, version, before, &[0xAA; 132], active).await.unwrap();
    assert_eq!(release(&before, NEW).await, QuarantineOutcome::Elsewhere(alice.clone()), "it is in use");
    quarantine(&f, &alice).await;
    let aside = f.dek_row("alice", 1).await;
    assert_eq!(release(&before, KID).await, QuarantineOutcome::Elsewhere(aside.clone()), "the flip came between");
    assert_eq!(release(&before, Kid::new([3; 16])).await, QuarantineOutcome::Elsewhere(aside.clone()));
    let mut other = before.clone();
    other.bytes[0] ^= 1;
    assert_eq!(release(&other, NEW).await, QuarantineOutcome::Elsewhere(aside.clone()));
    let unknown = f.store.release(of, dek_version(9), &before, &[0xAA; 132], NEW).await.unwrap();
    assert_eq!(unknown, QuarantineOutcome::Unknown);
    let wrong = f.store.release(of, version, &before, &[0xAA; 131], NEW).await;
    assert!(matches!(wrong, Err(StoreError::Refused(_))), "{wrong:?}");
    assert_eq!(f.dek_row("alice", 1).await, aside);
    let QuarantineOutcome::Done(dek) = release(&before, NEW).await else { panic!() };
    assert_eq!((dek.body.state().as_str(), wrapping(&dek).kid), ("active", NEW));
    let made = f.store.create_dek(of, &Deks::default()).await.unwrap();
    assert_eq!(made, DekOutcome::Active(dek), "found, not made");
}
