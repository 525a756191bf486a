//! What runs beside a rotation. Each race ends by itself: whoever runs beside goes on until the other is through.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use containarium::model::{DekId, DekRecord, DekVersion, KeyPhase, Kid, Tenant, VersionBody};
use containarium::store::deks::{
    RemoveDekOutcome, ResealOutcome, Resealer, RotateDekOutcome, SealedVersion, ShredWhen,
};
use containarium::store::masters::{Fenced, FlipOutcome, RetireOutcome};
use containarium::store::{DekMaker, DekOutcome, NewDek, Refusal, SealRefusal, Store, Together};
use tokio::task::JoinSet;

use crate::store::fakes::{Deks, OVERHEAD, Values, value_of};
use crate::store::rotation::{MINUTE, NEW, after, before, dek_version, done, rewrapped};
use crate::store::steps::{KID, intent, name, tenant};
use crate::support::stores::Fixture;

/// Wraps in clear: each byte of the wrapping is the first of the kid.
struct Honest;

impl DekMaker for Honest {
    fn make(&self, _: &Tenant, version: DekVersion, active: Kid) -> Result<NewDek, SealRefusal> {
        let id = DekId::new([u8::try_from(version.get() % 251).unwrap(); 16]);
        Ok(NewDek { id, wrapped: vec![active.as_bytes()[0]; 132] })
    }
}

/// Does the thing over and over until told to stop, at least once; answers how often.
fn over_and_over<F, T>(stop: &Arc<AtomicBool>, mut thing: F) -> tokio::task::JoinHandle<u32>
where
    F: FnMut(u32) -> T + Send + 'static,
    T: Future<Output = ()> + Send,
{
    let stop = Arc::clone(stop);
    tokio::spawn(async move {
        let mut times = 0;
        loop {
            thing(times).await;
            times += 1;
            if stop.load(Ordering::Relaxed) {
                return times;
            }
        }
    })
}

/// Wraps everything under the old key anew until nothing is left, then verifies and retires.
async fn rewrap_and_retire(store: &Arc<dyn Store>) {
    loop {
        let deks = store.deks_under(KID, None, 10).await.unwrap();
        if deks.is_empty() {
            break;
        }
        let deks: Vec<_> = deks.iter().map(|dek| rewrapped(dek, NEW.as_bytes()[0])).collect();
        done(store.rewrap(&after(KeyPhase::Rewrapping), &deks).await.unwrap());
    }
    done(store.set_phase(&after(KeyPhase::Rewrapping), KeyPhase::Verified).await.unwrap());
    let retired = done(store.retire(&after(KeyPhase::Verified), KID).await.unwrap());
    assert!(matches!(retired, RetireOutcome::Retired(_)), "{retired:?}");
}

pub(crate) async fn no_dek_that_is_made_during_a_rotation_lands_under_the_retired_key(f: Fixture) {
    let f = f.staged().await;
    let stop = Arc::new(AtomicBool::new(false));
    let creators: Vec<_> = (0..6)
        .map(|creator| {
            let store = Arc::clone(&f.store);
            over_and_over(&stop, move |times| {
                let (store, of) = (Arc::clone(&store), tenant(&format!("t{creator}-{times}")));
                async move {
                    let made = store.create_dek(&of, &Honest).await.unwrap();
                    assert!(matches!(made, DekOutcome::Active(_)), "{made:?}");
                    let rotated = store.rotate_dek(&of, DekVersion::FIRST, &Honest).await.unwrap();
                    assert!(matches!(rotated, RotateDekOutcome::Rotated(_)), "{rotated:?}");
                }
            })
        })
        .collect();
    assert!(matches!(f.flip(&[]).await, FlipOutcome::Flipped(_)));
    rewrap_and_retire(&f.store).await;
    stop.store(true, Ordering::Relaxed);
    let mut made = 0;
    for creator in creators {
        made += i64::from(creator.await.unwrap());
    }
    assert_eq!(f.store.count_under(KID).await.unwrap().in_use, 0);
    let (kid, wrapped) = (f.database.bytes(NEW.as_bytes()), f.database.bytes(&[NEW.as_bytes()[0]; 132]));
    // alice and bob were rewrapped to the same bytes, and so was the system's.
    let right = f.rows(&format!("deks WHERE kid = {kid} AND wrapped = {wrapped}")).await;
    assert_eq!(right, 3 + 2 * made, "each under the new key, with the bytes of the new key");
    assert_eq!(f.rows("deks").await, 3 + 2 * made);
}

pub(crate) async fn of_many_flips_one_is_made(f: Fixture) {
    let f = f.staged().await;
    let mut flips = JoinSet::new();
    for _ in 0..8 {
        let store = Arc::clone(&f.store);
        flips.spawn(async move { store.flip(&before(KeyPhase::Staged), NEW, &[]).await.unwrap() });
    }
    let (mut made, mut elsewhere) = (0, 0);
    for outcome in flips.join_all().await {
        match outcome {
            Fenced::Done(FlipOutcome::Flipped(_)) => made += 1,
            Fenced::Elsewhere(state) if state.epoch == 2 => elsewhere += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((made, elsewhere, f.state().await.epoch), (1, 7, 2));
}

pub(crate) async fn of_many_that_replace_a_dek_one_does(f: Fixture) {
    let f = f.with_alice().await;
    let mut rotations = JoinSet::new();
    for _ in 0..8 {
        let store = Arc::clone(&f.store);
        rotations.spawn(async move {
            store.rotate_dek(&tenant("alice"), DekVersion::FIRST, &Deks::default()).await.unwrap()
        });
    }
    let outcomes = rotations.join_all().await;
    let made = outcomes.iter().filter(|outcome| matches!(outcome, RotateDekOutcome::Rotated(_))).count();
    let late = outcomes.iter().filter(|outcome| **outcome == RotateDekOutcome::NotActive(Some(dek_version(2)))).count();
    assert_eq!((made, late), (1, 7));
    assert_eq!(f.dek_states("alice").await, [(1, "decrypt_only"), (2, "active")]);
}

pub(crate) async fn writes_go_on_while_deks_are_replaced(f: Fixture) {
    let f = f.with_alice().await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let store = Arc::clone(&f.store);
            over_and_over(&stop, move |times| {
                let store = Arc::clone(&store);
                let intent = intent("alice", &format!("W{writer}"));
                async move {
                    let value = times.to_string();
                    let written = store.write(&[intent], Together::Each, &Values::of(&[&value])).await.unwrap();
                    assert!(written[0].is_ok(), "{written:?}");
                }
            })
        })
        .collect();
    for from in 1..=20 {
        let rotated = f.store.rotate_dek(&tenant("alice"), dek_version(from), &Deks::default()).await.unwrap();
        assert!(matches!(rotated, RotateDekOutcome::Rotated(_)), "{rotated:?}");
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(f.rows("deks WHERE tenant = 'alice' AND state = 'active'").await, 1);
    // Each version was sealed under the DEK that its row names.
    for version in 1..=21 {
        for sealed in f.sealed(version, None, 10_000).await {
            let head = String::from_utf8_lossy(&sealed.ciphertext[..OVERHEAD]);
            assert!(head.trim_end_matches('.').ends_with(&format!("dek {version}")), "{head} under {version}");
        }
    }
}

/// Keeps the value, under the active DEK.
struct Moves;

impl Resealer for Moves {
    fn reseal(&self, _: usize, version: &SealedVersion, active: &DekRecord) -> Result<Vec<u8>, SealRefusal> {
        let mut bytes = format!("moved to dek {}", active.version).into_bytes();
        bytes.resize(OVERHEAD, b'.');
        bytes.extend_from_slice(value_of(&version.ciphertext));
        Ok(bytes)
    }
}

pub(crate) async fn a_reencryption_beside_writes_loses_nothing(f: Fixture) {
    let f = f.with_alice().await;
    let secrets: Vec<_> = (0..20).map(|secret| format!("S{secret}")).collect();
    for named in &secrets {
        f.set(named, &["first"]).await;
    }
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let store = Arc::clone(&f.store);
        over_and_over(&stop, move |times| {
            let (store, named) = (Arc::clone(&store), format!("S{}", times % 20));
            async move {
                let value = times.to_string();
                let values = Values::of(&[&value]);
                let written = store.write(&[intent("alice", &named)], Together::Each, &values).await.unwrap();
                assert!(written[0].is_ok(), "{written:?}");
            }
        })
    };
    f.store.rotate_dek(&tenant("alice"), DekVersion::FIRST, &Deks::default()).await.unwrap();
    loop {
        let page = f.sealed(1, None, 7).await;
        if page.is_empty() {
            break;
        }
        let resealed = f.store.reseal(&tenant("alice"), DekVersion::FIRST, &page, &Moves).await.unwrap();
        assert!(matches!(resealed, ResealOutcome::Resealed(_)), "{resealed:?}");
    }
    let removed = f.store.remove_dek(&tenant("alice"), DekVersion::FIRST).await.unwrap();
    assert_eq!(removed, RemoveDekOutcome::Removed, "nothing new is sealed under it");
    stop.store(true, Ordering::Relaxed);
    let times = writer.await.unwrap();
    assert_eq!(f.rows("secret_versions WHERE tenant = 'alice'").await, 20 + i64::from(times));
    for named in &secrets {
        let (_, versions) = f.store.versions(&tenant("alice"), &name(named)).await.unwrap().unwrap();
        assert!(versions.iter().all(|version| matches!(version.body, VersionBody::Live { dek: Some(_), .. })));
    }
}

pub(crate) async fn nothing_is_written_after_a_shred(f: Fixture) {
    let f = f.with_alice().await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let store = Arc::clone(&f.store);
            over_and_over(&stop, move |times| {
                let store = Arc::clone(&store);
                let intent = intent("alice", &format!("W{writer}"));
                async move {
                    let value = times.to_string();
                    let written = store.write(&[intent], Together::Each, &Values::of(&[&value])).await.unwrap();
                    assert!(matches!(written[0], Ok(_) | Err(Refusal::TenantBlocked)), "{written:?}");
                    let made = store.create_dek(&tenant("alice"), &Deks::default()).await.unwrap();
                    assert!(matches!(made, DekOutcome::Active(_) | DekOutcome::Blocked), "{made:?}");
                }
            })
        })
        .collect();
    f.schedule_shred("alice", MINUTE).await;
    f.store.shred(&tenant("alice"), ShredWhen::Now).await.unwrap();
    let versions = f.rows("secret_versions WHERE tenant = 'alice'").await;
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(f.rows("secret_versions WHERE tenant = 'alice'").await, versions);
    assert_eq!(f.dek_states("alice").await, [(1, "shredded")]);
}
