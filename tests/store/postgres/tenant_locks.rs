//! The locks of tenants and rows between writes, re-encryptions, rotations of DEKs, rewraps and shreds.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use containarium::model::{DekRecord, KeyPhase};
use containarium::store::deks::{
    RemoveDekOutcome, ResealOutcome, Resealer, RotateDekOutcome, SealedVersion, ShredOutcome, ShredWhen,
};
use containarium::store::{Intent, Keep, Refusal, SealRefusal, Sealer, Sealing, Slot, Store, StoreError, Together};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::store::fakes::{Deks, Values};
use crate::store::rotation::{MINUTE, NEW, after, done, rewrapped};
use crate::store::steps::{current, intent, tenant};
use crate::support::stores::Fixture;
use crate::support::stores::postgres::PostgresDatabase;

const SECRETS: usize = 6;
const TENANTS: [&str; 2] = ["alice", "bob"];

struct Same;

impl Resealer for Same {
    fn reseal(&self, _index: usize, version: &SealedVersion, _active: &DekRecord) -> Result<Vec<u8>, SealRefusal> {
        Ok(version.ciphertext.clone())
    }
}

/// Stands still between the look at the active DEK and the row that is sealed under it, until it is let go on.
struct Halting {
    reached: Mutex<Option<oneshot::Sender<()>>>,
    go_on: Mutex<std::sync::mpsc::Receiver<()>>,
}

impl Halting {
    fn new() -> (Self, oneshot::Receiver<()>, std::sync::mpsc::Sender<()>) {
        let (reached, is_reached) = oneshot::channel();
        let (let_go, go_on) = std::sync::mpsc::channel();
        (Self { reached: Mutex::new(Some(reached)), go_on: Mutex::new(go_on) }, is_reached, let_go)
    }

    fn halt(&self) {
        if let Some(reached) = self.reached.lock().unwrap().take() {
            reached.send(()).unwrap();
            self.go_on.lock().unwrap().recv().unwrap();
        }
    }
}

impl Sealer for Halting {
    fn seal(&self, index: usize, slot: &Slot<'_>) -> Result<Sealing, SealRefusal> {
        self.halt();
        Values::of(&["value"]).seal(index, slot)
    }
}

impl Resealer for Halting {
    fn reseal(&self, index: usize, version: &SealedVersion, active: &DekRecord) -> Result<Vec<u8>, SealRefusal> {
        self.halt();
        Same.reseal(index, version, active)
    }
}

/// Ends when a session waits for an advisory lock of this database.
async fn until_a_lock_is_waited_for(f: &Fixture) {
    let sql = "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database \
               WHERE d.datname = current_database() AND l.locktype = 'advisory' AND NOT l.granted";
    while f.database.number(sql).await == 0 {
        tokio::task::yield_now().await;
    }
}

/// Makes the change while somebody who seals for the tenant stands still: it has to wait for him.
async fn waits_for_who_seals<T: Send + 'static>(
    f: &Fixture,
    seals: impl Future<Output = ()> + Send + 'static,
    reached: oneshot::Receiver<()>,
    let_go: std::sync::mpsc::Sender<()>,
    change: impl Future<Output = Result<T, StoreError>> + Send + 'static,
) -> T {
    let seals = tokio::spawn(seals);
    reached.await.unwrap();
    let mut change = tokio::spawn(change);
    tokio::select! {
        _ = &mut change => panic!("it did not wait for who seals under the DEK that it changes"),
        () = until_a_lock_is_waited_for(f) => {}
    }
    let_go.send(()).unwrap();
    seals.await.unwrap();
    change.await.unwrap().unwrap()
}

/// Batches over both tenants, in an order of the writer's own, until bob is shredded; how many of alice's were written.
async fn write(store: Arc<dyn Store>, writer: usize) -> usize {
    let mut intents: Vec<_> = (0..SECRETS)
        .flat_map(|at| TENANTS.map(|of| Intent { keep: Keep::Newest(2), ..intent(of, &format!("S{at}")) }))
        .collect();
    intents.rotate_left(writer * 3 % (2 * SECRETS));
    if writer.is_multiple_of(2) {
        intents.reverse();
    }
    for round in 0.. {
        let value = format!("{round} {writer}");
        let values = Values::of(&vec![value.as_str(); intents.len()]);
        let outcomes = store.write(&intents, Together::Each, &values).await.unwrap();
        let mut shredded = false;
        for (intent, outcome) in intents.iter().zip(&outcomes) {
            match (intent.tenant.as_str(), outcome) {
                (_, Ok(_)) => {}
                ("bob", Err(Refusal::TenantBlocked)) => shredded = true,
                other => panic!("{other:?}"),
            }
        }
        if shredded {
            return round;
        }
    }
    unreachable!()
}

/// A new DEK for the tenant, and everything that is under the one before sealed with it, and that one removed.
async fn rotate(store: &dyn Store, of: &str) {
    let of = tenant(of);
    let deks = store.deks(&of).await.unwrap();
    let from = deks.iter().find(|dek| dek.body.state().as_str() == "active").unwrap().version;
    let outcome = store.rotate_dek(&of, from, &Deks::default()).await.unwrap();
    assert!(matches!(outcome, RotateDekOutcome::Rotated(_)), "{outcome:?}");
    loop {
        let mut versions = store.sealed_under(&of, from, None, 50).await.unwrap();
        if versions.is_empty() {
            break;
        }
        // Any order: the store sorts.
        versions.reverse();
        let outcome = store.reseal(&of, from, &versions, &Same).await.unwrap();
        assert!(matches!(outcome, ResealOutcome::Resealed(_)), "{outcome:?}");
    }
    assert_eq!(store.remove_dek(&of, from).await.unwrap(), RemoveDekOutcome::Removed);
}

/// Batches over every DEK, until it is told to stop.
async fn rewrap(store: Arc<dyn Store>, stop: Arc<AtomicBool>) {
    for byte in (1..=u8::MAX).cycle() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let deks = store.deks_under(NEW, None, 1000).await.unwrap();
        let mut deks: Vec<_> = deks.iter().map(|dek| rewrapped(dek, byte)).collect();
        if byte % 2 == 0 {
            deks.reverse();
        }
        done(store.rewrap(&after(KeyPhase::Rewrapping), &deks).await.unwrap());
    }
}

async fn deadlocks(f: &Fixture) -> i64 {
    // A session reports its deadlocks at the latest when it ends.
    f.store.close().await;
    let others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() \
                  AND backend_type = 'client backend'";
    while f.database.number(others).await > 0 {
        tokio::task::yield_now().await;
    }
    f.database.number("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotations_of_deks_rewraps_and_shreds_never_deadlock_with_writes() {
    let database = PostgresDatabase::create().await;
    // The plans that large tables get.
    database
        .execute(
            "ALTER DATABASE {database} SET enable_hashjoin = off; ALTER DATABASE {database} SET enable_mergejoin = off; \
             ALTER DATABASE {database} SET enable_seqscan = off; ALTER DATABASE {database} SET jit = off",
        )
        .await;
    let f = database.fixture().await.flipped().await;
    f.rewrap_all().await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = JoinSet::new();
    for writer in 0..4 {
        writers.spawn(write(Arc::clone(&f.store), writer));
    }
    let mut others = JoinSet::new();
    for _ in 0..2 {
        others.spawn(rewrap(Arc::clone(&f.store), Arc::clone(&stop)));
    }
    let rounds = async {
        for _ in 0..10 {
            rotate(&*f.store, "alice").await;
            f.store
                .rotate_dek(
                    &tenant("bob"),
                    f.store.deks(&tenant("bob")).await.unwrap().last().unwrap().version,
                    &Deks::default(),
                )
                .await
                .unwrap();
        }
        f.schedule_shred("bob", MINUTE).await;
        f.store.shred(&tenant("bob"), ShredWhen::Now).await.unwrap();
    };
    tokio::time::timeout(Duration::from_mins(1), rounds).await.expect("it does not end");
    assert!(writers.join_all().await.into_iter().all(|rounds| rounds > 0), "they wrote meanwhile");
    stop.store(true, Ordering::Relaxed);
    others.join_all().await;
    for at in 0..SECRETS {
        let (_, version) = f.secret(current("alice", &format!("S{at}"))).await;
        assert!(version.is_some());
    }
    assert_eq!(f.dek_states("alice").await, [(11, "active")]);
    assert!(f.dek_states("bob").await.iter().all(|(_, state)| *state == "shredded"));
    assert_eq!(deadlocks(&f).await, 0);
}

/// Else a value would be sealed under the DEK before, after all that lie under it were counted: it would be lost with that DEK.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_rotation_and_a_shred_of_a_tenants_dek_wait_for_a_write_under_way() {
    let database = PostgresDatabase::create().await;
    let f = database.fixture().await.with_alice().await;
    for at in 1..=2 {
        let (sealer, reached, let_go) = Halting::new();
        let store = Arc::clone(&f.store);
        let write = async move {
            let outcomes = store.write(&[intent("alice", &format!("S{at}"))], Together::Each, &sealer).await.unwrap();
            assert!(outcomes[0].is_ok());
        };
        let store = Arc::clone(&f.store);
        if at == 1 {
            let from = f.store.deks(&tenant("alice")).await.unwrap()[0].version;
            let rotate = async move { store.rotate_dek(&tenant("alice"), from, &Deks::default()).await };
            let outcome = waits_for_who_seals(&f, write, reached, let_go, rotate).await;
            assert!(matches!(outcome, RotateDekOutcome::Rotated(_)), "{outcome:?}");
            let under = f.store.sealed_under(&tenant("alice"), from, None, 10).await.unwrap();
            assert_eq!(under.len(), 1, "what was written meanwhile is seen to be under the DEK before");
        } else {
            let shred = async move { store.schedule_shred(&tenant("alice"), MINUTE).await };
            let outcome = waits_for_who_seals(&f, write, reached, let_go, shred).await;
            assert!(matches!(outcome, ShredOutcome::Done { .. }), "{outcome:?}");
        }
    }
}

/// Else the DEK would be gone under a version that a re-encryption is about to put under it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_rotation_of_a_tenants_dek_waits_for_a_reencryption_under_way() {
    let database = PostgresDatabase::create().await;
    let f = database.fixture().await.with_alice().await;
    f.set("A", &["one"]).await;
    let deks = f.store.deks(&tenant("alice")).await.unwrap();
    f.store.rotate_dek(&tenant("alice"), deks[0].version, &Deks::default()).await.unwrap();
    let second = f.store.deks(&tenant("alice")).await.unwrap()[1].version;
    let versions = f.store.sealed_under(&tenant("alice"), deks[0].version, None, 10).await.unwrap();
    let (resealer, reached, let_go) = Halting::new();
    let (store, from) = (Arc::clone(&f.store), deks[0].version);
    let reencrypt = async move {
        let outcome = store.reseal(&tenant("alice"), from, &versions, &resealer).await.unwrap();
        assert!(matches!(outcome, ResealOutcome::Resealed(_)), "{outcome:?}");
    };
    let store = Arc::clone(&f.store);
    let rotate = async move { store.rotate_dek(&tenant("alice"), second, &Deks::default()).await };
    let outcome = waits_for_who_seals(&f, reencrypt, reached, let_go, rotate).await;
    assert!(matches!(outcome, RotateDekOutcome::Rotated(_)), "{outcome:?}");
    assert_eq!(f.store.sealed_under(&tenant("alice"), second, None, 10).await.unwrap().len(), 1);
}
