use std::sync::Arc;

use containarium::store::{FirstKeyOutcome, PostgresStore, Store, StoreError, Together};
use tokio::task::JoinSet;

use crate::store::fakes::{Key, OVERHEAD, Values};
use crate::store::steps::{current, intent};
use crate::support::stores::postgres::PostgresDatabase;
use crate::support::stores::postgres::server::Server;
use crate::support::stores::postgres::wire::{Cut, Wire};
use crate::support::stores::{Database, Fixture};

/// Opens several connections, so that a restart leaves several dead ones.
async fn warm(store: &Arc<dyn Store>) {
    let mut pings = JoinSet::new();
    for _ in 0..10 {
        let store = Arc::clone(store);
        pings.spawn(async move { store.ping().await.unwrap() });
    }
    pings.join_all().await;
}

#[tokio::test]
async fn the_store_comes_back_by_itself_after_the_server_does() {
    let mut server = Server::start().await;
    let store: Arc<dyn Store> = Arc::new(PostgresStore::open(&server.url()).await.unwrap());
    let f = Fixture { store, database: Box::new(NoDatabase) }.with_alice().await;
    f.set("A", &["one"]).await;

    // Restarted unseen: no request meets the dead connections, neither a read nor a write.
    for (restart, value) in ["two", "three"].into_iter().enumerate() {
        warm(&f.store).await;
        server.kill();
        server.run().await;
        if restart == 0 {
            assert_eq!(f.value(current("alice", "A")).await, "one");
        }
        f.set("A", &[value]).await;
    }

    // Away: said so. Back: works.
    warm(&f.store).await;
    server.kill();
    let outcome = f.store.read(&[current("alice", "A")]).await;
    assert!(matches!(outcome, Err(StoreError::Unavailable(_))), "{outcome:?}");
    let outcome = f.store.write(&[intent("alice", "A")], Together::Each, &Values::of(&["four"])).await;
    assert!(matches!(outcome, Err(StoreError::Unavailable(_))), "{outcome:?}");
    server.run().await;
    assert_eq!(f.value(current("alice", "A")).await, "three");
    assert_eq!(f.set("A", &["four"]).await.get(), 4);
}

#[tokio::test]
async fn sessions_that_an_administrator_ends_are_replaced_unseen() {
    let database = PostgresDatabase::create().await;
    let f = database.fixture().await.with_alice().await;
    f.set("A", &["one"]).await;
    for value in ["two", "three"] {
        warm(&f.store).await;
        database
            .execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
            .await;
        if value == "two" {
            assert_eq!(f.value(current("alice", "A")).await, "one");
        }
        f.set("A", &[value]).await;
    }
}

#[tokio::test]
async fn a_connection_that_breaks_at_commit_leaves_an_unknown_outcome() {
    for (cut, stored) in [(Cut::BeforeThem, false), (Cut::AfterThem, true)] {
        let database = PostgresDatabase::create().await;
        let wire = Wire::to(database.options());
        let f = database.fixture_at(&format!("&{}", wire.host())).await.with_alice().await;
        wire.cut(b"COMMIT\0", cut);
        let outcome = f.store.write(&[intent("alice", "A")], Together::Each, &Values::of(&["one"])).await;
        assert!(wire.was_cut());
        assert!(matches!(outcome, Err(StoreError::UnknownOutcome(_))), "{cut:?}: {outcome:?}");
        // Written again it is there once, whatever had become of it.
        assert_eq!(f.set("A", &["two"]).await.get(), if stored { 2 } else { 1 }, "{cut:?}");
    }
}

#[tokio::test]
async fn a_connection_that_breaks_before_commit_costs_nothing() {
    for cut in [Cut::BeforeThem, Cut::AfterThem] {
        let database = PostgresDatabase::create().await;
        let wire = Wire::to(database.options());
        let f = database.fixture_at(&format!("&{}", wire.host())).await.with_alice().await;
        // The bytes of the ciphertext itself, inside of the statement that stores it.
        wire.cut(&[b"....".as_slice(), b"cut here"].concat(), cut);
        assert_eq!(f.set("A", &["cut here"]).await.get(), 1, "{cut:?}");
        assert!(wire.was_cut());
        assert_eq!(f.version_numbers("A").await, [1]);
    }
}

/// Its file is staged by then: a second call would stage a second key.
#[tokio::test]
async fn a_first_key_is_made_once_even_where_its_transaction_runs_twice() {
    let database = PostgresDatabase::create().await;
    let wire = Wire::to(database.options());
    let f = database.fixture_at(&format!("&{}", wire.host())).await;
    wire.cut(&[b't'; OVERHEAD], Cut::AfterThem);
    let mut key = Key::numbered(1);
    let outcome = f.store.first_key(&mut key).await.unwrap();
    assert!(matches!(outcome, FirstKeyOutcome::Made(_)), "{outcome:?}");
    assert!(wire.was_cut());
    assert_eq!(key.calls, 1);
}

/// The server of [`Server`] is asked through the store alone.
struct NoDatabase;

#[async_trait::async_trait]
impl Database for NoDatabase {
    async fn run(&self, _sql: &str) -> Result<u64, String> {
        unreachable!()
    }

    async fn damage(&self, _sql: &str) {
        unreachable!()
    }

    async fn number(&self, _sql: &str) -> i64 {
        unreachable!()
    }

    fn bytes(&self, _bytes: &[u8]) -> String {
        unreachable!()
    }
}
