use std::sync::Arc;
use std::time::Duration;

use containarium::store::{Found, Reads, StoreError};
use sqlx::{Connection, Executor};
use tokio::task::JoinSet;

use super::locking::until_waiting;
use crate::store::steps::current;
use crate::support::stores::postgres::PostgresDatabase;

/// Two queries of one read each are held up; whatever comes then waits for the third, which takes all of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_that_wait_are_answered_by_one_query() {
    let database = PostgresDatabase::create().await;
    let f = database.fixture().await.with_alice().await;
    f.set("A", &["one"]).await;
    let reads = Reads::new(Arc::clone(&f.store));
    let mut watcher = database.connect().await;
    let mut holder = database.connect().await;
    let mut hold = holder.begin().await.unwrap();
    hold.execute("LOCK TABLE containarium.secrets IN ACCESS EXCLUSIVE MODE").await.unwrap();

    let mut readers = JoinSet::new();
    for session in 1..=2 {
        let reads = reads.clone();
        readers.spawn(async move { reads.read(current("alice", "A")).await });
        until_waiting(&mut watcher, session).await;
    }
    let queries =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    for _ in 0..50 {
        let reads = reads.clone();
        readers.spawn(async move { reads.read(current("alice", "A")).await });
    }
    while reads.waiting() < 50 {
        tokio::task::yield_now().await;
    }
    let queries: i64 = sqlx::query_scalar(queries).fetch_one(&mut watcher).await.unwrap();
    assert_eq!(queries, 2, "the others sent no query of their own");
    hold.rollback().await.unwrap();
    let all = async {
        while let Some(read) = readers.join_next().await {
            assert!(matches!(read.unwrap().unwrap(), Found::Secret(..)));
        }
    };
    tokio::time::timeout(Duration::from_secs(10), all).await.expect("a read was forgotten");
    assert_eq!(reads.waiting(), 0);
}

/// As a value whose pages on disk are damaged: the server fails the whole query over it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_the_server_cannot_read_fails_those_who_read_it_and_nobody_else() {
    let database = PostgresDatabase::create().await;
    let f = database.fixture().await.with_alice().await;
    f.set("A", &["one"]).await;
    f.set("B", &["two"]).await;
    let mut raw = database.connect().await;
    raw.execute(
        "ALTER TABLE containarium.secret_versions RENAME TO kept; \
         CREATE VIEW containarium.secret_versions AS SELECT tenant, name, version, state, dek_version, created_at, destroyed_at, \
         CASE WHEN 1 / (name <> 'A')::int = 1 THEN ciphertext END AS ciphertext FROM containarium.kept",
    )
    .await
    .unwrap();
    let reads = Reads::new(Arc::clone(&f.store));
    let mut readers = JoinSet::new();
    for reader in 0..100 {
        let (reads, named) = (reads.clone(), if reader % 2 == 0 { "A" } else { "B" });
        readers.spawn(async move { (named, reads.read(current("alice", named)).await) });
    }
    while let Some(read) = readers.join_next().await {
        match read.unwrap() {
            ("A", Err(StoreError::Refused(_))) | ("B", Ok(Found::Secret(..))) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Of two queries one hangs on a connection that then breaks, twice; the other's connection is well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_connection_fails_those_whose_query_it_had_and_nobody_who_waits() {
    let database = PostgresDatabase::create().await;
    let f = database.fixture().await.with_alice().await;
    for name in ["A", "B", "C"] {
        f.set(name, &["one"]).await;
    }
    let mut holder = database.connect().await;
    holder
        .execute(
            // STABLE, or the planner would ask it for rows that nobody reads too.
            "ALTER TABLE containarium.secret_versions RENAME TO kept; \
             CREATE FUNCTION containarium.held(name text, ciphertext bytea) RETURNS bytea LANGUAGE plpgsql STABLE AS $$ BEGIN \
                 PERFORM pg_advisory_xact_lock(CASE name WHEN 'A' THEN 77 ELSE 78 END) WHERE name <> 'B'; RETURN ciphertext; \
             END $$; \
             CREATE VIEW containarium.secret_versions AS SELECT tenant, name, version, state, dek_version, created_at, destroyed_at, \
             containarium.held(name, ciphertext) AS ciphertext FROM containarium.kept; \
             SELECT pg_advisory_lock(77), pg_advisory_lock(78)",
        )
        .await
        .unwrap();
    let mut watcher = database.connect().await;
    let reads = Reads::new(Arc::clone(&f.store));
    let read = |named: &'static str| {
        let reads = reads.clone();
        tokio::spawn(async move { reads.read(current("alice", named)).await })
    };
    let broken = read("A");
    until_waiting(&mut watcher, 1).await;
    let other = read("B").await.unwrap();
    assert!(matches!(other, Ok(Found::Secret(..))), "the other connection is well: {other:?}");
    let held = read("C");
    until_waiting(&mut watcher, 2).await;
    let waiting: Vec<_> = (0..20).map(|_| read("B")).collect();
    while reads.waiting() < 20 {
        tokio::task::yield_now().await;
    }
    let end =
        "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objid = 77 AND NOT granted";
    while !broken.is_finished() {
        watcher.execute(end).await.unwrap();
    }
    assert!(matches!(broken.await.unwrap(), Err(StoreError::Unavailable(_))));
    for read in waiting {
        assert!(matches!(read.await.unwrap(), Ok(Found::Secret(..))));
    }
    holder.execute("SELECT pg_advisory_unlock_all()").await.unwrap();
    assert!(matches!(held.await.unwrap(), Ok(Found::Secret(..))));
}
