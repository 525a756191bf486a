//! What only the inside can show: the state of the connections.

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, Row};

use std::time::Duration;

use super::*;
use crate::model::{BootId, DekId, DekVersion, EscrowKind, KeyMode, KeyPhase, NodeId};
use crate::store::deks::{Deks, ShredOutcome, ShredWhen};
use crate::store::masters::{
    EscrowStage, Fence, Fenced, Holder, Masters, NewEscrow, NewMaster, RetireOutcome, Rewrapped,
};
use crate::store::{Expect, FirstKey, Keep, NewDek, SealRefusal, Sealing, Slot, Source};

struct Fake;

impl FirstKeyMaker for Fake {
    fn make(&mut self) -> Result<FirstKey, String> {
        let system_dek = NewDek { id: DekId::new([1; 16]), wrapped: vec![1; 132] };
        Ok(FirstKey { kid: Kid::new([1; 16]), db_id: [1; 16], system_dek, system_secrets: Vec::new() })
    }
}

impl DekMaker for Fake {
    fn make(&self, _: &Tenant, _: DekVersion, _: Kid) -> Result<NewDek, SealRefusal> {
        Ok(NewDek { id: DekId::new([2; 16]), wrapped: vec![2; 132] })
    }
}

/// Seals to this many bytes, which hold the mark.
struct Bytes(usize);

const MARK: &[u8] = b"a-mark-that-is-nowhere-else";

impl Sealer for Bytes {
    fn seal(&self, _: usize, _: &Slot<'_>) -> Result<Sealing, SealRefusal> {
        let mut bytes = MARK.repeat(self.0 / MARK.len() + 1);
        bytes.truncate(self.0);
        Ok(Sealing::Sealed(bytes))
    }
}

fn names() -> (Tenant, SecretName) {
    (Tenant::parse("alice").unwrap(), SecretName::parse("A").unwrap())
}

async fn with_alice(directory: &Path) -> SqliteStore {
    let store = SqliteStore::open(&directory.join("containarium.db")).await.unwrap();
    store.first_key(&mut Fake).await.unwrap();
    store.create_dek(&names().0, &Fake).await.unwrap();
    store
}

async fn write(store: &SqliteStore, bytes: usize) -> Result<u64, StoreError> {
    let (tenant, name) = names();
    let intent =
        Intent { tenant, name, source: Source::Value, expect: Expect::Anything, delivery: None, keep: Keep::All };
    let mut written = store.write(&[intent], Together::Each, &Bytes(bytes)).await?;
    Ok(written.remove(0).unwrap().secret.current.get())
}

async fn pragma(pool: &SqlitePool, sql: &'static str) -> String {
    let row = sqlx::query(sql).fetch_one(pool).await.unwrap();
    row.try_get::<i64, _>(0).map_or_else(|_| row.get::<String, _>(0), |number| number.to_string())
}

#[tokio::test]
async fn connections_are_set_for_durability_and_distrust() {
    let directory = tempfile::tempdir().unwrap();
    let store = with_alice(directory.path()).await;
    for pool in [&store.writer, &store.readers] {
        assert_eq!(pragma(pool, "PRAGMA journal_mode").await, "wal");
        assert_eq!(pragma(pool, "PRAGMA synchronous").await, "2", "FULL");
        assert_eq!(pragma(pool, "PRAGMA foreign_keys").await, "1");
        assert_eq!(pragma(pool, "PRAGMA trusted_schema").await, "0");
        assert_eq!(pragma(pool, "PRAGMA secure_delete").await, "1");
    }
    assert_eq!(pragma(&store.readers, "PRAGMA query_only").await, "1");
    assert_eq!(store.writer.options().get_max_connections(), 1);
    let refused = sqlx::query("DELETE FROM tenants").execute(&store.readers).await.unwrap_err();
    assert!(refused.to_string().contains("readonly"), "{refused}");
}

#[tokio::test]
async fn a_writing_transaction_holds_the_lock_from_its_first_word() {
    let directory = tempfile::tempdir().unwrap();
    let store = with_alice(directory.path()).await;
    let impatient =
        SqliteConnectOptions::new().filename(directory.path().join("containarium.db")).busy_timeout(Duration::ZERO);
    let mut other = impatient.connect().await.unwrap();
    let transaction = store.begin().await.unwrap();
    // A deferred one would let another process write between what it reads and what it writes, and then fail.
    let refused = sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut other).await.map(|_| ()).map_err(store_error);
    assert!(matches!(&refused, Err(StoreError::Unavailable(why)) if why.contains("another process")), "{refused:?}");
    roll_back(transaction).await.unwrap();
    sqlx::raw_sql("BEGIN IMMEDIATE; COMMIT").execute(&mut other).await.unwrap();
    other.close().await.unwrap();
}

#[tokio::test]
async fn a_transaction_that_sqlite_rolled_back_by_itself_does_not_spoil_the_writer() {
    let directory = tempfile::tempdir().unwrap();
    let store = with_alice(directory.path()).await;
    let mut transaction = store.begin().await.unwrap();
    // As SQLite does on some errors of disk: sqlx goes on to think that a transaction is open.
    sqlx::raw_sql("ROLLBACK").execute(&mut *transaction).await.unwrap();
    drop(transaction);
    assert_eq!(write(&store, 96).await, Ok(1));
}

#[tokio::test]
async fn a_full_disk_fails_in_words_leaves_nothing_and_heals_by_itself() {
    let directory = tempfile::tempdir().unwrap();
    let store = with_alice(directory.path()).await;
    assert_eq!(write(&store, 96).await, Ok(1));
    sqlx::query("PRAGMA max_page_count = 1").fetch_one(&store.writer).await.unwrap();
    let refused = write(&store, 65_632).await.unwrap_err();
    assert!(matches!(&refused, StoreError::Unavailable(why) if why.contains("no space")), "{refused}");
    let (tenant, name) = names();
    assert_eq!(
        store.versions(&tenant, &name).await.unwrap().unwrap().1.len(),
        1,
        "readers go on, and nothing is half there"
    );
    sqlx::query("PRAGMA max_page_count = 1000000").fetch_one(&store.writer).await.unwrap();
    assert_eq!(write(&store, 65_632).await, Ok(2), "no number is lost");
}

#[tokio::test]
async fn a_dropped_transaction_is_rolled_back_before_the_next() {
    let directory = tempfile::tempdir().unwrap();
    let store = with_alice(directory.path()).await;
    let mut transaction = store.begin().await.unwrap();
    sqlx::query("INSERT INTO tenants (tenant, created_at) VALUES ('bob', 1)").execute(&mut *transaction).await.unwrap();
    drop(transaction);
    assert_eq!(write(&store, 96).await, Ok(1));
    assert_eq!(store.tenants(None, 10).await.unwrap().items.len(), 1);
}

#[tokio::test]
async fn readers_do_not_wait_for_a_writer() {
    let directory = tempfile::tempdir().unwrap();
    let store = with_alice(directory.path()).await;
    let mut transaction = store.begin().await.unwrap();
    sqlx::query("INSERT INTO tenants (tenant, created_at) VALUES ('bob', 1)").execute(&mut *transaction).await.unwrap();
    assert_eq!(store.tenants(None, 10).await.unwrap().items.len(), 1, "what was committed");
    store.commit(transaction, &[]).await.unwrap();
    assert_eq!(store.tenants(None, 10).await.unwrap().items.len(), 2);
}

#[tokio::test]
async fn a_destroyed_ciphertext_is_nowhere_in_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("containarium.db");
    let holds_mark = || std::fs::read(&file).unwrap().windows(MARK.len()).any(|window| window == MARK);
    let (tenant, name) = names();
    for destroys in [false, true] {
        let store = with_alice(directory.path()).await;
        let number = write(&store, 20_000).await.unwrap();
        if destroys {
            let all: Vec<_> = (1..=number).map(|number| SecretVersion::new(number).unwrap()).collect();
            store.destroy(&tenant, &name, &all).await.unwrap().unwrap();
        }
        store.close().await;
        assert_eq!(holds_mark(), !destroys);
        assert!(!directory.path().join("containarium.db-wal").exists(), "closing folds the log in");
    }
}

#[tokio::test]
async fn an_escaped_panic_in_a_sealer_leaves_the_writer_usable() {
    struct Panics;
    impl Sealer for Panics {
        fn seal(&self, _: usize, _: &Slot<'_>) -> Result<Sealing, SealRefusal> {
            panic!("a sealer's panic");
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let store = std::sync::Arc::new(with_alice(directory.path()).await);
    let (tenant, name) = names();
    let intent =
        Intent { tenant, name, source: Source::Value, expect: Expect::Anything, delivery: None, keep: Keep::All };
    let writing = std::sync::Arc::clone(&store);
    let panicked = tokio::spawn(async move {
        let _ = writing.write(&[intent], Together::Each, &Panics).await;
    });
    assert!(panicked.await.unwrap_err().is_panic());
    assert_eq!(write(&store, 96).await, Ok(1));
}

/// Whether the file or its write-ahead log holds the wrapping of alice's DEK, as [`Fake`] made it.
fn holds_wrapping(directory: &Path) -> bool {
    let holds = |file: &str| std::fs::read(directory.join(file)).unwrap().windows(132).any(|bytes| bytes == [2; 132]);
    holds("containarium.db") || holds("containarium.db-wal")
}

#[tokio::test]
async fn a_shredded_wrapping_is_nowhere_in_the_files_from_that_moment_on() {
    let directory = tempfile::tempdir().unwrap();
    let store = with_alice(directory.path()).await;
    let (alice, _) = names();
    store.schedule_shred(&alice, Duration::ZERO).await.unwrap();
    assert!(holds_wrapping(directory.path()));
    let shredded = store.shred(&alice, ShredWhen::Now).await.unwrap();
    assert!(matches!(shredded, ShredOutcome::Done { .. }), "{shredded:?}");
    assert!(!holds_wrapping(directory.path()));
}

#[tokio::test]
async fn a_wrapping_by_a_retired_key_is_nowhere_in_the_files() {
    let directory = tempfile::tempdir().unwrap();
    let store = with_alice(directory.path()).await;
    let (old, new) = (Kid::new([1; 16]), Kid::new([2; 16]));
    let holder = Holder { node: NodeId::new([1; 16]), boot: BootId::new([1; 16]) };
    store.take_lease(holder, Duration::from_mins(1)).await.unwrap();
    let fence = |epoch, active, phase| Fence { holder, epoch, active, phase };
    let key = NewMaster { kid: new, mode: KeyMode::Normal, wrapped_file: None };
    store.stage(&fence(1, old, KeyPhase::Idle), &key).await.unwrap();
    let waiver = NewEscrow {
        id: "waiver".to_owned(),
        kid: new,
        target: "root".to_owned(),
        locator: None,
        content_sha256: None,
        kms_versions: Vec::new(),
        kind: EscrowKind::Waiver,
        stage: EscrowStage::Confirmed,
    };
    store.add_escrow(&waiver).await.unwrap();
    store.flip(&fence(1, old, KeyPhase::Staged), new, &[]).await.unwrap();
    let deks = store.deks_under(old, None, 10).await.unwrap();
    let rewrapped = deks.into_iter().map(|dek| Rewrapped {
        before: dek.wrapping().unwrap().clone(),
        after: vec![9; 132],
        tenant: dek.tenant,
        version: dek.version,
    });
    store.rewrap(&fence(2, new, KeyPhase::Rewrapping), &rewrapped.collect::<Vec<_>>()).await.unwrap();
    store.set_phase(&fence(2, new, KeyPhase::Rewrapping), KeyPhase::Verified).await.unwrap();
    assert!(holds_wrapping(directory.path()));
    let retired = store.retire(&fence(2, new, KeyPhase::Verified), old).await.unwrap();
    assert!(matches!(retired, Fenced::Done(RetireOutcome::Retired(_))), "{retired:?}");
    assert!(!holds_wrapping(directory.path()));
}

/// A million DEKs are read a page at a time: each page must find its place and stop.
#[tokio::test]
async fn pages_are_found_by_an_index_and_not_sorted() {
    let directory = tempfile::tempdir().unwrap();
    let store = with_alice(directory.path()).await;
    let pages = [
        (rewrap::UNDER, "deks_by_kid (kid=? AND (state,tenant,dek_version)>"),
        (reseal::SEALED_UNDER, "sqlite_autoindex_secret_versions_1 (tenant=? AND (name,version)>"),
        (shred::BLOCKED, "tenants_blocked (tenant>"),
    ];
    for (page, index) in pages {
        let explain = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {page}"));
        let plan: Vec<String> =
            sqlx::query(explain).fetch_all(&store.readers).await.unwrap().iter().map(|row| row.get(3)).collect();
        assert!(plan[0].starts_with("SEARCH") && plan[0].contains(index), "{page}: {plan:#?}");
        assert!(plan.iter().all(|step| !step.contains("SCAN") && !step.contains("B-TREE")), "{page}: {plan:#?}");
    }
}
