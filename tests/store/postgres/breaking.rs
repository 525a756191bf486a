//! A session that ends, or a server that dies, in the middle of each step: nothing half done, and no outcome assumed.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use containarium::model::{DekRecord, KeyPhase, MasterKeyState};
use containarium::store::deks::{Resealer, SealedVersion, ShredWhen};
use containarium::store::masters::{AtLeast, Fenced, FlipOutcome, GivenUp};
use containarium::store::{PostgresStore, SealRefusal, StoreError};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Executor};

use crate::store::fakes::Deks;
use crate::store::rotation::{
    MINUTE, NEW, after, before, dek_version, done, new_master, rewrapped, waiver_of, wrapping,
};
use crate::store::steps::{KID, tenant};
use crate::support::stores::postgres::PostgresDatabase;
use crate::support::stores::postgres::server::Server;
use crate::support::stores::postgres::wire::{Cut, Wire};
use crate::support::stores::{Database, Fixture};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Stage,
    Abort,
    Flip,
    SetPhase,
    Rewrap,
    Retire,
    Destroy,
    AcceptRestore,
    RotateDek,
    RemoveDek,
    Reseal,
    Quarantine,
    Release,
    ScheduleShred,
    CancelShred,
    Shred,
}

/// Every step, and the tables that it changes, in its order.
const STEPS: &[(Step, &[&str])] = &[
    (Step::Stage, &["master_keys", "key_state"]),
    (Step::Abort, &["master_keys", "key_state"]),
    (Step::Flip, &["master_keys", "key_state"]),
    (Step::SetPhase, &["key_state"]),
    (Step::Rewrap, &["deks"]),
    (Step::Retire, &["master_keys", "key_state"]),
    (Step::Destroy, &["escrows", "master_keys", "key_state"]),
    (Step::AcceptRestore, &["key_state"]),
    (Step::RotateDek, &["deks"]),
    (Step::RemoveDek, &["deks"]),
    (Step::Reseal, &["secret_versions"]),
    (Step::Quarantine, &["deks"]),
    (Step::Release, &["deks"]),
    (Step::ScheduleShred, &["tenants", "key_state"]),
    (Step::CancelShred, &["tenants", "key_state"]),
    (Step::Shred, &["deks", "tenants", "key_state"]),
];

/// Seals nothing: the bytes are the same.
struct Same;

impl Resealer for Same {
    fn reseal(&self, _index: usize, version: &SealedVersion, _active: &DekRecord) -> Result<Vec<u8>, SealRefusal> {
        Ok(version.ciphertext.clone())
    }
}

impl Step {
    /// A database in which this step may come.
    async fn prepare(self, f: Fixture) -> Fixture {
        match self {
            Self::Stage => f.ready().await,
            Self::Abort | Self::Flip => f.staged().await,
            Self::SetPhase | Self::Rewrap | Self::AcceptRestore => f.flipped().await,
            Self::Retire => f.verified().await,
            Self::Destroy => f.retired().await,
            Self::RotateDek | Self::Quarantine | Self::ScheduleShred => f.with_alice().await,
            Self::RemoveDek | Self::Reseal => {
                let f = f.with_alice().await;
                f.set("A", &["one"]).await;
                rotate(&f).await;
                if self == Self::RemoveDek {
                    reseal(&f).await.unwrap();
                }
                f
            }
            Self::Release => {
                let f = f.with_alice().await;
                let dek = f.dek_row("alice", 1).await;
                f.store.quarantine(&dek.tenant, dek.version, &wrapping(&dek)).await.unwrap();
                f
            }
            Self::CancelShred | Self::Shred => {
                let f = f.with_alice().await;
                f.schedule_shred("alice", MINUTE).await;
                f
            }
        }
    }

    /// What it answers, in words.
    async fn run(self, f: &Fixture) -> Result<String, StoreError> {
        let alice = tenant("alice");
        let words = |outcome: &dyn Debug| format!("{outcome:?}");
        Ok(match self {
            Self::Stage => words(&f.store.stage(&before(KeyPhase::Idle), &new_master(NEW)).await?),
            Self::Abort => words(&f.store.abort(&before(KeyPhase::Staged), NEW, GivenUp::Aborted).await?),
            Self::Flip => words(&f.store.flip(&before(KeyPhase::Staged), NEW, &[]).await?),
            Self::SetPhase => words(&f.store.set_phase(&after(KeyPhase::Rewrapping), KeyPhase::Verified).await?),
            Self::Rewrap => {
                let deks = f.store.deks_under(KID, None, 1000).await?;
                let deks: Vec<_> = deks.iter().map(|dek| rewrapped(dek, 0xAA)).collect();
                words(&f.store.rewrap(&after(KeyPhase::Rewrapping), &deks).await?)
            }
            Self::Retire => words(&f.store.retire(&after(KeyPhase::Verified), KID).await?),
            Self::Destroy => {
                words(&f.store.destroy_master(KID, Duration::ZERO, Some(&waiver_of(KID, "waived"))).await?)
            }
            Self::AcceptRestore => words(&f.store.accept_restore(AtLeast { epoch: 9, generation: 9 }).await?),
            Self::RotateDek => words(&f.store.rotate_dek(&alice, dek_version(1), &Deks::default()).await?),
            Self::RemoveDek => words(&f.store.remove_dek(&alice, dek_version(1)).await?),
            Self::Reseal => reseal(f).await?,
            Self::Quarantine => {
                let dek = f.dek_row("alice", 1).await;
                words(&f.store.quarantine(&alice, dek.version, &wrapping(&dek)).await?)
            }
            Self::Release => {
                let dek = f.dek_row("alice", 1).await;
                words(&f.store.release(&alice, dek.version, &wrapping(&dek), &[0xAA; 132], KID).await?)
            }
            Self::ScheduleShred => words(&f.store.schedule_shred(&alice, MINUTE).await?),
            Self::CancelShred => words(&f.store.cancel_shred(&alice).await?),
            Self::Shred => words(&f.store.shred(&alice, ShredWhen::Now).await?),
        })
    }
}

async fn rotate(f: &Fixture) {
    f.store.rotate_dek(&tenant("alice"), dek_version(1), &Deks::default()).await.unwrap();
}

async fn reseal(f: &Fixture) -> Result<String, StoreError> {
    let versions = f.sealed(1, None, 100).await;
    let outcome = f.store.reseal(&tenant("alice"), dek_version(1), &versions, &Same).await?;
    Ok(format!("{outcome:?}"))
}

/// The next so many changes of this table end the session that makes them, once they are made.
async fn kill_at(database: &PostgresDatabase, table: &str, times: u32) {
    database
        .execute(&format!(
            "CREATE SEQUENCE IF NOT EXISTS containarium.kills; \
             CREATE OR REPLACE FUNCTION containarium.kill() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                 IF nextval('containarium.kills') <= {times} THEN \
                     PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(10); \
                 END IF; RETURN NULL; END $$; \
             SELECT setval('containarium.kills', 1, false); \
             CREATE OR REPLACE TRIGGER kill AFTER INSERT OR UPDATE OR DELETE ON containarium.{table} \
                 FOR EACH STATEMENT EXECUTE FUNCTION containarium.kill()"
        ))
        .await;
}

/// Every row of every table that a step may change, as text.
async fn everything(connection: &mut PgConnection) -> Vec<String> {
    let mut rows = Vec::new();
    for table in ["master_keys", "key_state", "escrows", "tenants", "deks", "secrets", "secret_versions"] {
        let sql = format!("SELECT '{table} ' || t::text FROM containarium.{table} t ORDER BY 1");
        rows.extend(sqlx::query_scalar::<_, String>(AssertSqlSafe(sql)).fetch_all(&mut *connection).await.unwrap());
    }
    rows
}

#[tokio::test]
async fn a_session_that_is_ended_in_a_step_leaves_nothing_half_done() {
    for (step, tables) in STEPS {
        for table in *tables {
            let database = PostgresDatabase::create().await;
            let f = step.prepare(database.fixture().await).await;
            let mut raw = database.connect().await;
            let before = everything(&mut raw).await;
            // Ended each time: the store tried again once, and says that nothing was done.
            kill_at(&database, table, u32::MAX).await;
            let outcome = step.run(&f).await;
            assert!(matches!(outcome, Err(StoreError::Unavailable(_))), "{step:?} at {table}: {outcome:?}");
            assert_eq!(everything(&mut raw).await, before, "{step:?} at {table}");
            // Ended once: nobody sees it, and the step is made once.
            kill_at(&database, table, 1).await;
            let outcome = step.run(&f).await.unwrap();
            let ended = f.database.number("SELECT last_value FROM kills").await;
            assert!(ended > 1, "{step:?} at {table}: {outcome}");
            assert!(
                !["Elsewhere", "Not", "Blocked", "Refused", "(0)"].iter().any(|word| outcome.contains(word)),
                "{step:?} at {table}: {outcome}"
            );
            let after = everything(&mut raw).await;
            assert_ne!(after, before, "{step:?} at {table}");
            let generation = f.state().await.generation;
            assert!(*step == Step::AcceptRestore || generation <= 3, "{step:?} at {table}: twice");
        }
    }
}

/// The answer to COMMIT is lost: the store does not guess, and whoever reads finds one or the other, whole.
#[tokio::test]
async fn a_step_whose_commit_is_not_answered_is_unknown_and_then_read() {
    for step in [Step::Stage, Step::Flip, Step::Rewrap, Step::Retire, Step::RotateDek, Step::Shred] {
        for (cut, made) in [(Cut::BeforeThem, false), (Cut::AfterThem, true)] {
            let database = PostgresDatabase::create().await;
            let wire = Wire::to(database.options());
            let f = step.prepare(database.fixture_at(&format!("&{}", wire.host())).await).await;
            let mut raw = database.connect().await;
            let before = everything(&mut raw).await;
            wire.cut(b"COMMIT\0", cut);
            let outcome = step.run(&f).await;
            assert!(wire.was_cut(), "{step:?}");
            assert!(matches!(outcome, Err(StoreError::UnknownOutcome(_))), "{step:?} {cut:?}: {outcome:?}");
            assert_eq!(everything(&mut raw).await != before, made, "{step:?} {cut:?}");
            // Asked for again with the same fence, it is made or it is elsewhere: never a second time.
            let generation = f.state().await.generation;
            let again = step.run(&f).await.unwrap();
            let refused = ["Elsewhere", "NotActive", "(0)"].iter().any(|word| again.contains(word));
            assert_eq!(refused, made, "{step:?} {cut:?}: {again}");
            assert_eq!(f.state().await.generation > generation, !made && matches!(step, Step::Flip | Step::Shred));
        }
    }
}

/// The server of [`Server`] is asked through the store and by hand.
struct ByHand;

#[async_trait]
impl Database for ByHand {
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

async fn connect(server: &Server) -> PgConnection {
    server.url().parse::<PgConnectOptions>().unwrap().connect().await.unwrap()
}

/// Returns once a session waits for this.
async fn until_waiting_for(connection: &mut PgConnection, event: &str) {
    let waiting = async {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = $1";
        while sqlx::query_scalar::<_, i64>(sql).bind(event).fetch_one(&mut *connection).await.unwrap() == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap_or_else(|_| panic!("nobody waits for {event}"));
}

/// Before its commit record is written, and after.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_at_the_flips_commit_leaves_an_outcome_to_be_read() {
    for flipped in [false, true] {
        let mut server = Server::start().await;
        let store = Arc::new(PostgresStore::open(&server.url()).await.unwrap());
        let f = Arc::new(Fixture { store, database: Box::new(ByHand) }.staged().await);
        let mut raw = connect(&server).await;
        if flipped {
            // A COMMIT that is on disk and waits for a replica that never comes.
            raw.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'").await.unwrap();
            raw.execute("SELECT pg_reload_conf()").await.unwrap();
            while sqlx::query_scalar::<_, String>("SHOW synchronous_standby_names").fetch_one(&mut raw).await.unwrap()
                != "nobody"
            {}
        } else {
            raw.execute(
                "CREATE FUNCTION containarium.hang() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(60); RETURN NULL; END $$; \
                 CREATE CONSTRAINT TRIGGER hang AFTER UPDATE ON containarium.key_state DEFERRABLE INITIALLY DEFERRED \
                     FOR EACH ROW EXECUTE FUNCTION containarium.hang()",
            )
            .await
            .unwrap();
        }
        let flip = tokio::spawn({
            let f = Arc::clone(&f);
            async move { f.store.flip(&before(KeyPhase::Staged), NEW, &[]).await }
        });
        until_waiting_for(&mut raw, if flipped { "SyncRep" } else { "PgSleep" }).await;
        server.kill();
        let outcome = flip.await.unwrap();
        assert!(matches!(outcome, Err(StoreError::UnknownOutcome(_))), "{flipped}: {outcome:?}");
        server.run().await;

        let mut raw = connect(&server).await;
        raw.execute("ALTER SYSTEM RESET synchronous_standby_names").await.unwrap();
        raw.execute("SELECT pg_reload_conf()").await.unwrap();
        while !sqlx::query_scalar::<_, String>("SHOW synchronous_standby_names")
            .fetch_one(&mut raw)
            .await
            .unwrap()
            .is_empty()
        {}
        raw.execute("DROP TRIGGER IF EXISTS hang ON containarium.key_state").await.unwrap();
        let state = f.state().await;
        let masters = (f.master_state(KID).await.unwrap(), f.master_state(NEW).await.unwrap());
        if flipped {
            assert_eq!((state.epoch, state.active_kid, state.phase), (2, NEW, KeyPhase::Rewrapping));
            assert_eq!(masters, (MasterKeyState::DecryptOnly, MasterKeyState::Active));
            let again = f.store.flip(&before(KeyPhase::Staged), NEW, &[]).await.unwrap();
            assert_eq!(again, Fenced::Elsewhere(state), "the same call again says what is");
        } else {
            assert_eq!((state.epoch, state.active_kid, state.phase), (1, KID, KeyPhase::Staged));
            assert_eq!(masters, (MasterKeyState::Active, MasterKeyState::Staged));
            let again = done(f.store.flip(&before(KeyPhase::Staged), NEW, &[]).await.unwrap());
            assert!(matches!(again, FlipOutcome::Flipped(_)), "{again:?}");
        }
        assert_eq!(f.rewrap_all().await, 3, "and on it goes");
    }
}
