//! The locks of tenants and rows between writes, re-encryptions, rotations of DEKs, rewraps and shreds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use containarium::model::{DekRecord, KeyPhase};
use containarium::store::deks::{
    RemoveDekOutcome, ResealOutcome, Resealer, RotateDekOutcome, SealedVersion, ShredWhen,
};
use containarium::store::{Intent, Keep, Refusal, SealRefusal, Store, Together};
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
