use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use containarium::model::{DekBody, Kid};
use containarium::store::{DekOutcome, Intent, PostgresStore, StoreError, Together};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection, Executor};
use tokio::task::JoinSet;

use crate::store::fakes::{Deks, Values};
use crate::store::steps::{copy, current, intent, name, tenant};
use crate::support::stores::postgres::PostgresDatabase;

pub(super) const LEVELS: [&str; 4] = ["read uncommitted", "read committed", "repeatable read", "serializable"];

/// Returns once that many sessions of this database wait for a lock. PostgreSQL tells nobody when one begins to wait, so it is asked.
pub(super) async fn until_waiting(connection: &mut PgConnection, sessions: i64) {
    let sql = "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) \
               WHERE NOT l.granted AND a.datname = current_database()";
    let waiting = async {
        while sqlx::query_scalar::<_, i64>(sql).fetch_one(&mut *connection).await.unwrap() < sessions {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting).await.expect("nobody waits for the lock");
}

#[tokio::test]
async fn a_dek_is_written_under_the_master_lock_only() {
    let database = PostgresDatabase::create().await;
    let f = database.fixture().await.with_alice().await;
    let mut raw = database.connect().await;
    for sql in [
        "INSERT INTO containarium.deks SELECT tenant, 2, kid, dek_id, 'decrypt_only', wrapped, 1 FROM containarium.deks",
        "UPDATE containarium.deks SET state = 'decrypt_only'",
    ] {
        let refusal = raw.execute(sql).await.unwrap_err().to_string();
        assert!(refusal.contains("DEKs are written under the master lock only"), "{refusal}");
        for near_miss in ["pg_advisory_xact_lock(1668247151, 2)", "pg_advisory_xact_lock(1668247151::bigint << 32 | 1)"]
        {
            let mut tx = raw.begin().await.unwrap();
            tx.execute(AssertSqlSafe(format!("SELECT {near_miss}"))).await.unwrap();
            assert!(tx.execute(sql).await.is_err(), "{near_miss} is another lock");
        }
    }
    assert_eq!(f.rows("deks WHERE tenant = 'alice' AND state = 'active'").await, 1);
}

/// At REPEATABLE READ a creator that waited for the flip still sees the old kid, and commits a DEK under a key that is being retired.
#[tokio::test]
async fn a_dek_that_waited_for_a_flip_is_made_under_the_new_key_at_every_default_isolation() {
    for level in LEVELS {
        let database = PostgresDatabase::create().await;
        database.execute(&format!("ALTER DATABASE {{database}} SET default_transaction_isolation = '{level}'")).await;
        let f = database.fixture().await.with_key().await;
        let mut flip = database.connect().await;
        let mut flip = flip.begin().await.unwrap();
        flip.execute("SELECT pg_advisory_xact_lock(1668247151, 1)").await.unwrap();
        let store = Arc::clone(&f.store);
        let creator = tokio::spawn(async move { store.create_dek(&tenant("alice"), &Deks::default()).await.unwrap() });
        until_waiting(&mut database.connect().await, 1).await;
        flip.execute(
            "INSERT INTO containarium.master_keys (kid, state, created_at) VALUES (decode(repeat('02', 16), 'hex'), 'staged', 1); \
             UPDATE containarium.key_state SET active_kid = decode(repeat('02', 16), 'hex'), epoch = 2",
        )
        .await
        .unwrap();
        flip.commit().await.unwrap();
        let outcome = creator.await.unwrap();
        let DekOutcome::Active(dek) = outcome else { panic!("{level}: {outcome:?}") };
        let DekBody::Active(wrapped) = dek.body else { panic!("{level}: {:?}", dek.body) };
        assert_eq!(wrapped.kid, Kid::new([2; 16]), "{level}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_and_creators_come_through_at_every_default_isolation() {
    for level in LEVELS {
        let database = PostgresDatabase::create().await;
        database.execute(&format!("ALTER DATABASE {{database}} SET default_transaction_isolation = '{level}'")).await;
        let f = Arc::new(database.fixture().await.with_key().await);
        let mut users = JoinSet::new();
        for user in 0..12 {
            let f = Arc::clone(&f);
            users.spawn(async move {
                let deks = Deks::default();
                let outcome = f.store.create_dek(&tenant("alice"), &deks).await.unwrap();
                assert!(matches!(outcome, DekOutcome::Active(_)), "{outcome:?}");
                for write in 0..3 {
                    f.write(intent("alice", "A"), &format!("{user} {write}")).await.unwrap();
                }
                deks.asked().len()
            });
        }
        assert_eq!(users.join_all().await.into_iter().sum::<usize>(), 1, "{level}: one DEK");
        assert_eq!(f.secret(current("alice", "A")).await.0.current.get(), 36, "{level}: no gap");
    }
}

#[tokio::test]
async fn every_transaction_names_its_isolation_its_limits_and_its_durability() {
    let database = PostgresDatabase::create().await;
    let f = database.fixture().await;
    database
        .execute(
            "ALTER DATABASE {database} SET default_transaction_isolation = 'serializable'; \
             ALTER DATABASE {database} SET synchronous_commit = off; \
             CREATE FUNCTION containarium.check_settings() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                 IF current_setting('transaction_isolation') <> 'read committed' \
                     OR current_setting('synchronous_commit') <> 'on' OR current_setting('lock_timeout') <> '3s' \
                     OR current_setting('statement_timeout') <> '15s' \
                     OR current_setting('idle_in_transaction_session_timeout') <> '10s' \
                 THEN RAISE EXCEPTION 'settings'; END IF; RETURN NULL; END $$; \
             CREATE TRIGGER settings AFTER INSERT OR UPDATE ON containarium.tenants EXECUTE FUNCTION containarium.check_settings(); \
             CREATE TRIGGER settings AFTER INSERT OR UPDATE ON containarium.secrets EXECUTE FUNCTION containarium.check_settings()",
        )
        .await;
    let refusal = f.database.run("INSERT INTO tenants (tenant, created_at) VALUES ('x', 1)").await.unwrap_err();
    assert!(refusal.contains("settings"), "the trigger would see: {refusal}");
    // The pool's connections are from before the settings; a store of its own has them.
    let f = database.fixture().await.with_alice().await;
    f.set("A", &["one", "two"]).await;
    f.delete("A").await;
    f.store.undelete(&tenant("alice"), &name("A")).await.unwrap().unwrap();
    // And nothing of it stays in a session: no lock, and no transaction.
    let left = "SELECT count(*) FROM pg_stat_activity a LEFT JOIN pg_locks l ON l.pid = a.pid AND l.locktype = 'advisory' \
                WHERE a.datname = current_database() AND (a.state LIKE 'idle in%' OR l.pid IS NOT NULL)";
    assert_eq!(f.database.number(left).await, 0);
}

/// A commit that is only `off` where the server was told so stays what the operator chose where that is more.
#[tokio::test]
async fn a_stricter_durability_is_not_lowered() {
    let database = PostgresDatabase::create().await;
    database.execute("ALTER DATABASE {database} SET synchronous_commit = remote_apply").await;
    let f = database.fixture().await.with_alice().await;
    database
        .execute(
            "CREATE FUNCTION containarium.check_settings() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                 IF current_setting('synchronous_commit') <> 'remote_apply' THEN RAISE EXCEPTION 'settings'; END IF; \
                 RETURN NULL; END $$; \
             CREATE TRIGGER settings AFTER INSERT ON containarium.secrets EXECUTE FUNCTION containarium.check_settings()",
        )
        .await;
    f.set("A", &["one"]).await;
}

/// Batches over old and new names of two tenants, each in an order of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_in_every_order_never_deadlock() {
    const NAMES: usize = 8;
    let database = PostgresDatabase::create().await;
    // The plan that a large table gets: row by row, in the batch's own order unless the statement sorts.
    database
        .execute(
            "ALTER DATABASE {database} SET enable_hashjoin = off; ALTER DATABASE {database} SET enable_mergejoin = off",
        )
        .await;
    let f = database.fixture().await.with_alice().await;
    f.dek("bob").await;
    for round in 0..10 {
        let mut writers = JoinSet::new();
        for writer in 0..8_usize {
            let store = Arc::clone(&f.store);
            writers.spawn(async move {
                // Names of this round are new, those of the one before are there.
                let mut intents: Vec<Intent> = (0..NAMES)
                    .flat_map(|at| [("alice", round, at), ("bob", round + 1, at)])
                    .map(|(of, round, at)| intent(of, &format!("R{round}_{at}")))
                    .collect();
                intents.rotate_left(writer * 3 % (2 * NAMES));
                if writer % 2 == 0 {
                    intents.reverse();
                }
                let value = format!("{round} {writer}");
                let values = Values::of(&vec![value.as_str(); intents.len()]);
                store.write(&intents, Together::AllOrNothing, &values).await.unwrap()
            });
        }
        for outcomes in writers.join_all().await {
            assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
        }
    }
    assert_eq!(f.secret(current("alice", "R0_0")).await.0.current.get(), 8);
    assert_eq!(f.secret(current("bob", "R5_0")).await.0.current.get(), 8);
    // A session reports its deadlocks at the latest when it ends.
    f.store.close().await;
    let others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() \
                  AND backend_type = 'client backend'";
    while f.database.number(others).await > 0 {
        tokio::task::yield_now().await;
    }
    let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    assert_eq!(f.database.number(deadlocks).await, 0);
}

/// Whatever lock a session hangs with: the row, the tenant's or the master's.
#[tokio::test]
async fn a_hung_session_makes_others_unavailable_and_not_wait_for_ever() {
    let database = PostgresDatabase::create().await;
    let f = database.fixture().await.with_alice().await;
    f.set("A", &["one"]).await;
    let write = "SELECT FROM containarium.secrets WHERE name = 'A' FOR UPDATE";
    let seal = "SELECT pg_advisory_xact_lock(hashtextextended('alice', 1668247151))";
    let make = "SELECT pg_advisory_xact_lock(1668247151, 1)";
    let mut hung = database.connect().await;
    for (held, makes_dek) in [(write, false), (seal, false), (make, true)] {
        let mut hold = hung.begin().await.unwrap();
        hold.execute(held).await.unwrap();
        let waits = async {
            if makes_dek {
                f.store.create_dek(&tenant("bob"), &Deks::default()).await.map(drop)
            } else {
                f.store.write(&[intent("alice", "A")], Together::Each, &Values::of(&["two"])).await.map(drop)
            }
        };
        let outcome = tokio::time::timeout(Duration::from_secs(9), waits).await.expect(held);
        assert!(matches!(&outcome, Err(StoreError::Unavailable(why)) if why.contains("lock")), "{held}: {outcome:?}");
        // Reads take no lock.
        assert_eq!(f.value(current("alice", "A")).await, "one");
        hold.rollback().await.unwrap();
    }
    f.dek("bob").await;
    assert_eq!(f.set("A", &["two"]).await.get(), 2);
}

/// The winner of a race for a new name commits after the loser looked and found nothing.
#[tokio::test]
async fn whoever_loses_the_race_for_a_new_name_starts_over() {
    let database = PostgresDatabase::create().await;
    let f = Arc::new(database.fixture().await.with_alice().await);
    let mut winner = database.connect().await;
    let mut winner = winner.begin().await.unwrap();
    winner
        .execute(
            "INSERT INTO containarium.secrets (tenant, name, current_version, last_version, delivery, created_at, updated_at) \
             VALUES ('alice', 'A', 1, 1, 'file', 1, 1); \
             INSERT INTO containarium.secret_versions (tenant, name, version, state, dek_version, ciphertext, created_at) \
             VALUES ('alice', 'A', 1, 'live', 1, decode(repeat('2e', 96), 'hex') || 'winner'::bytea, 1)",
        )
        .await
        .unwrap();
    let loser = tokio::spawn({
        let f = Arc::clone(&f);
        async move { f.set("A", &["loser"]).await }
    });
    until_waiting(&mut database.connect().await, 1).await;
    winner.commit().await.unwrap();
    assert_eq!(loser.await.unwrap().get(), 2);
    assert_eq!(f.version_numbers("A").await, [2, 1]);
    f.write(copy("alice", "A", 1), "").await.unwrap();
    assert_eq!(f.value(current("alice", "A")).await, "winner");
}

/// A request that is given up half-way: whatever it stood in, its session must not go back to the pool inside a transaction.
#[tokio::test]
async fn a_dropped_transaction_leaves_no_session_inside_one() {
    let database = PostgresDatabase::create().await;
    let f = database.fixture().await.with_alice().await;
    let open = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'";
    for polls in 0..40_u32 {
        let values = Values::of(&["dropped"]);
        let intents = [intent("alice", "A")];
        let mut writing = f.store.write(&intents, Together::Each, &values);
        let mut polled = 0;
        std::future::poll_fn(|context| {
            polled += 1;
            match writing.as_mut().poll(context) {
                Poll::Pending if polled <= polls => Poll::Pending,
                _ => Poll::Ready(()),
            }
        })
        .await;
        drop(writing);
        // The server's own limit would end it too, after 10 s.
        let ended = async { while f.database.number(open).await > 0 {} };
        tokio::time::timeout(Duration::from_secs(5), ended).await.unwrap_or_else(|_| panic!("dropped at poll {polls}"));
    }
}

/// Some servers that speak the protocol accept advisory locks and keep none.
#[tokio::test]
async fn a_server_that_keeps_no_locks_is_refused() {
    let database = PostgresDatabase::create().await;
    database
        .execute(
            "CREATE OR REPLACE FUNCTION pg_catalog.pg_try_advisory_xact_lock(int, int) RETURNS bool LANGUAGE sql AS 'SELECT true'",
        )
        .await;
    let outcome = PostgresStore::open(&database.url).await.map(drop);
    assert!(matches!(outcome, Err(StoreError::Unusable(_))), "{outcome:?}");
}
