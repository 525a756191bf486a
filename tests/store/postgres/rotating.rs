//! A rotation between sessions: two nodes, creators that wait for a flip, and a flip that is not starved.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use containarium::model::{KeyPhase, Kid, MasterKeyState};
use containarium::store::deks::RotateDekOutcome;
use containarium::store::masters::{AtLeast, Fence, Fenced, FlipOutcome, RetireOutcome};
use containarium::store::{DekOutcome, Store};
use sqlx::postgres::PgConnection;
use sqlx::{Connection, Executor};
use tokio::task::JoinSet;

use super::locking::{LEVELS, until_waiting};
use crate::store::fakes::Deks;
use crate::store::rotation::{MINUTE, NEW, ONE, TWO, after, copy_of, done, new_master, rewrapped, wrapping};
use crate::store::steps::{KID, tenant};
use crate::support::stores::Fixture;
use crate::support::stores::postgres::PostgresDatabase;
use containarium::store::masters::EscrowStage;

/// With this default isolation.
async fn database_at(level: &str) -> Arc<PostgresDatabase> {
    let database = PostgresDatabase::create().await;
    database.execute(&format!("ALTER DATABASE {{database}} SET default_transaction_isolation = '{level}'")).await;
    database
}

/// Ends, or fails the test: a wait for ever is what it would be without the guard.
async fn ends<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_mins(1), work).await.unwrap_or_else(|_| panic!("{what} does not end"))
}

/// Holds the master lock shared, as a creator does, until it is told to end.
async fn hold_master_shared(connection: &mut PgConnection) -> sqlx::Transaction<'_, sqlx::Postgres> {
    let mut tx = connection.begin().await.unwrap();
    tx.execute("SELECT pg_advisory_xact_lock_shared(1668247151, 1)").await.unwrap();
    tx
}

#[tokio::test]
async fn two_nodes_carry_one_rotation() {
    let database = PostgresDatabase::create().await;
    let one = database.fixture().await.ready().await;
    let two = database.fixture().await;
    one.stage(&new_master(NEW)).await;
    one.store.add_escrow(&copy_of(NEW, "new", EscrowStage::Confirmed)).await.unwrap();
    one.beat(ONE, &[KID, NEW]).await;
    let FlipOutcome::Waiting(waiting) = one.flip(&[]).await else { panic!("it did not wait") };
    assert_eq!(waiting.iter().map(|node| node.node).collect::<Vec<_>>(), [TWO.node]);
    two.beat(TWO, &[KID, NEW]).await;
    assert!(matches!(one.flip(&[]).await, FlipOutcome::Flipped(_)));

    // One falls asleep with a batch in hand; two goes on.
    let asleep = [rewrapped(&one.dek_row("alice", 1).await, 1)];
    one.store.take_lease(ONE, Duration::ZERO).await.unwrap();
    two.lease(TWO).await;
    let by_two = |phase| Fence { holder: TWO, ..after(phase) };
    let deks = two.store.deks_under(KID, None, 1000).await.unwrap();
    let deks: Vec<_> = deks.iter().map(|dek| rewrapped(dek, 2)).collect();
    assert_eq!(done(two.store.rewrap(&by_two(KeyPhase::Rewrapping), &deks).await.unwrap()), 3);
    for late in [
        one.store.rewrap(&after(KeyPhase::Rewrapping), &asleep).await.unwrap(),
        one.store.rewrap(&after(KeyPhase::Rewrapping), &[]).await.unwrap(),
    ] {
        assert!(matches!(late, Fenced::Elsewhere(ref state) if state.lease.unwrap().node == TWO.node), "{late:?}");
    }
    assert_eq!(wrapping(&one.dek_row("alice", 1).await).bytes, [2; 132]);
    done(two.store.set_phase(&by_two(KeyPhase::Rewrapping), KeyPhase::Verified).await.unwrap());
    let outcome = one.store.retire(&after(KeyPhase::Verified), KID).await.unwrap();
    assert!(matches!(outcome, Fenced::Elsewhere(_)), "{outcome:?}");
    let outcome = done(two.store.retire(&by_two(KeyPhase::Verified), KID).await.unwrap());
    assert!(matches!(outcome, RetireOutcome::Retired(_)), "{outcome:?}");
    assert_eq!(one.master_state(KID).await, Some(MasterKeyState::Retired));
    one.lease(ONE).await;
}

/// The flip waits for a creator that is there, and creators that come later wait for the flip: what they read, they read after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn creators_that_wait_for_the_flip_make_deks_under_the_new_key_at_every_default_isolation() {
    for level in LEVELS {
        let database = database_at(level).await;
        let f = Arc::new(database.fixture().await.staged().await);
        let other = database.fixture().await.store;
        let (mut holder, mut watcher) = (database.connect().await, database.connect().await);
        let earlier = hold_master_shared(&mut holder).await;
        let flip = tokio::spawn({
            let f = Arc::clone(&f);
            async move { f.flip(&[]).await }
        });
        until_waiting(&mut watcher, 1).await;
        let from = f.dek_row("alice", 1).await.version;
        let create = tokio::spawn({
            let store = Arc::clone(&other);
            async move { store.create_dek(&tenant("carol"), &Deks::default()).await.unwrap() }
        });
        let rotate =
            tokio::spawn(async move { other.rotate_dek(&tenant("alice"), from, &Deks::default()).await.unwrap() });
        until_waiting(&mut watcher, 3).await;
        earlier.commit().await.unwrap();
        assert!(matches!(flip.await.unwrap(), FlipOutcome::Flipped(_)), "{level}");
        let DekOutcome::Active(created) = create.await.unwrap() else { panic!("{level}: not created") };
        let RotateDekOutcome::Rotated(rotated) = rotate.await.unwrap() else { panic!("{level}: not rotated") };
        assert_eq!((wrapping(&created).kid, wrapping(&rotated).kid), (NEW, NEW), "{level}");
        assert_eq!(wrapping(&f.dek_row("carol", 1).await).kid, NEW, "{level}");
        assert_eq!(f.store.count_under(KID).await.unwrap().in_use, 3, "{level}: those from before");
    }
}

/// A batch that waited for the lock reads its fence after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rewrap_that_waits_for_a_change_of_epoch_is_elsewhere_at_every_default_isolation() {
    for level in LEVELS {
        let database = database_at(level).await;
        let f = database.fixture().await.flipped().await;
        let other = database.fixture().await.store;
        let (mut holder, mut watcher) = (database.connect().await, database.connect().await);
        let earlier = hold_master_shared(&mut holder).await;
        let store = Arc::clone(&f.store);
        let restore =
            tokio::spawn(async move { store.accept_restore(AtLeast { epoch: 9, generation: 9 }).await.unwrap() });
        until_waiting(&mut watcher, 1).await;
        let batch = [rewrapped(&f.dek_row("alice", 1).await, 0xAA)];
        let rewrap = tokio::spawn(async move { other.rewrap(&after(KeyPhase::Rewrapping), &batch).await.unwrap() });
        until_waiting(&mut watcher, 2).await;
        earlier.commit().await.unwrap();
        let accepted = restore.await.unwrap();
        assert_eq!(rewrap.await.unwrap(), Fenced::Elsewhere(accepted.state), "{level}");
        assert_eq!(f.store.count_under(NEW).await.unwrap().in_use, 0, "{level}");
    }
}

/// One creator: DEKs of new tenants until it is told to stop; the kids that it got, and how many so far.
async fn hammer(store: Arc<dyn Store>, number: usize, stop: Arc<AtomicBool>, made: Arc<[AtomicUsize; 6]>) -> Vec<Kid> {
    let mut kids = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let name = tenant(&format!("t{number}-{}", kids.len()));
        let DekOutcome::Active(dek) = store.create_dek(&name, &Deks::default()).await.unwrap() else {
            panic!("{name}")
        };
        kids.push(wrapping(&dek).kid);
        made[number].fetch_add(1, Ordering::Relaxed);
    }
    kids
}

async fn until_each_made(made: &[AtomicUsize; 6], more: usize) {
    let from: Vec<_> = made.iter().map(|made| made.load(Ordering::Relaxed)).collect();
    let behind = || made.iter().zip(&from).any(|(made, from)| made.load(Ordering::Relaxed) < from + more);
    ends("a creator", async {
        while behind() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flip_comes_through_six_creators_that_keep_going() {
    let database = PostgresDatabase::create().await;
    let f = database.fixture().await.staged().await;
    let stores = [Arc::clone(&f.store), database.fixture().await.store];
    let (stop, made) = (Arc::new(AtomicBool::new(false)), Arc::new(std::array::from_fn(|_| AtomicUsize::new(0))));
    let mut creators = JoinSet::new();
    for (number, store) in (0..6).zip(stores.iter().cycle()) {
        creators.spawn(hammer(Arc::clone(store), number, Arc::clone(&stop), Arc::clone(&made)));
    }
    until_each_made(&made, 3).await;
    let flipped = ends("the flip", f.flip(&[])).await;
    assert!(matches!(flipped, FlipOutcome::Flipped(_)), "{flipped:?}");
    let under_old = f.store.count_under(KID).await.unwrap().in_use;
    until_each_made(&made, 3).await;

    // To the end of the rotation while they go on.
    let rewrapping = after(KeyPhase::Rewrapping);
    let deks = f.store.deks_under(KID, None, 10_000).await.unwrap();
    let deks: Vec<_> = deks.iter().map(|dek| rewrapped(dek, 0xAA)).collect();
    assert_eq!(done(ends("the rewrap", f.store.rewrap(&rewrapping, &deks)).await.unwrap()), under_old);
    done(f.store.set_phase(&rewrapping, KeyPhase::Verified).await.unwrap());
    let retired = done(ends("the end", f.store.retire(&after(KeyPhase::Verified), KID)).await.unwrap());
    assert!(matches!(retired, RetireOutcome::Retired(_)), "no DEK came under the old key since: {retired:?}");
    until_each_made(&made, 1).await;
    stop.store(true, Ordering::Relaxed);
    for kids in creators.join_all().await {
        assert!(kids.is_sorted(), "once the new key, never again the old one");
        assert_eq!((kids.first(), kids.last()), (Some(&KID), Some(&NEW)), "before and after");
    }
    assert_eq!(f.store.count_under(KID).await.unwrap().in_use, 0);
}

#[tokio::test]
async fn a_rewrap_without_the_master_lock_is_refused_by_the_database() {
    let database = PostgresDatabase::create().await;
    let f = database.fixture().await.flipped().await;
    let rewrap = "UPDATE containarium.deks SET kid = decode(repeat('02', 16), 'hex'), wrapped = decode(repeat('aa', 132), 'hex')";
    let refusal = database.connect().await.execute(rewrap).await.unwrap_err().to_string();
    assert!(refusal.contains("DEKs are written under the master lock only"), "{refusal}");
    assert_eq!(f.store.count_under(KID).await.unwrap().in_use, 3);
    let mut connection = database.connect().await;
    let mut tx = hold_master_shared(&mut connection).await;
    assert_eq!(tx.execute(rewrap).await.unwrap().rows_affected(), 3, "the statement is right");
}

/// A tenant's lock is no part of it: a rewrap goes on while a writer has one, and a shred that waits for the writer holds nobody up.
#[tokio::test]
async fn a_rewrap_waits_for_no_tenant() {
    let database = PostgresDatabase::create().await;
    let f: Fixture = database.fixture().await.flipped().await;
    let mut writer = database.connect().await;
    let mut writing = writer.begin().await.unwrap();
    writing.execute("SELECT pg_advisory_xact_lock_shared(hashtextextended('alice', 1668247151))").await.unwrap();
    let store = Arc::clone(&f.store);
    let shred = tokio::spawn(async move { store.schedule_shred(&tenant("alice"), MINUTE).await.unwrap() });
    until_waiting(&mut database.connect().await, 1).await;
    assert_eq!(ends("the rewrap", f.rewrap_all()).await, 3);
    writing.rollback().await.unwrap();
    shred.await.unwrap();
}
