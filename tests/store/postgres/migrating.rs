use std::collections::BTreeSet;

use containarium::store::{PostgresStore, SqliteStore, Store, StoreError};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, Row};
use tokio::task::JoinSet;

use crate::support::stores::postgres::PostgresDatabase;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn daemons_that_start_at_once_on_a_new_database_all_come_up() {
    let database = PostgresDatabase::create().await;
    let mut starts = JoinSet::new();
    for _ in 0..6 {
        let url = database.url.clone();
        starts.spawn(async move { PostgresStore::open(&url).await.map(drop) });
    }
    for outcome in starts.join_all().await {
        outcome.unwrap();
    }
    let mut raw = database.connect().await;
    let outside: i64 = sqlx::query_scalar("SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace")
        .fetch_one(&mut raw)
        .await
        .unwrap();
    assert_eq!(outside, 0, "everything lies in our schema");
}

#[tokio::test]
async fn a_database_of_a_newer_release_is_refused() {
    let database = PostgresDatabase::create().await;
    drop(database.fixture().await);
    database
        .execute("INSERT INTO containarium._sqlx_migrations VALUES (99991231235959, 'later', now(), true, '', 0)")
        .await;
    let outcome = PostgresStore::open(&database.url).await.map(drop);
    let newest = migration_names("postgres").last().unwrap()[..14].parse().unwrap();
    assert_eq!(outcome, Err(StoreError::Newer { found: 99_991_231_235_959, known: newest }));
}

#[tokio::test]
async fn a_changed_migration_is_refused_by_its_number() {
    let database = PostgresDatabase::create().await;
    drop(database.fixture().await);
    database.execute("UPDATE containarium._sqlx_migrations SET checksum = 'x' WHERE version = 20261124000002").await;
    let outcome = PostgresStore::open(&database.url).await.map(drop);
    let Err(StoreError::Refused(why)) = outcome else { panic!("{outcome:?}") };
    assert!(why.contains("20261124000002") && why.contains("changed"), "{why}");
}

#[tokio::test]
async fn a_failed_migration_leaves_nothing_behind() {
    let database = PostgresDatabase::create().await;
    // The second migration meets a table of its name.
    database.execute("CREATE SCHEMA containarium; CREATE TABLE containarium.secret_versions ()").await;
    let outcome = PostgresStore::open(&database.url).await.map(drop);
    assert!(matches!(outcome, Err(StoreError::Refused(_))), "{outcome:?}");
    let left = "SELECT count(*) FROM pg_class WHERE relnamespace = 'containarium'::regnamespace";
    let left: i64 = sqlx::query_scalar(left).fetch_one(&mut database.connect().await).await.unwrap();
    assert_eq!(left, 1, "only what was there before");
}

#[tokio::test]
async fn a_role_that_may_not_create_is_told_so_and_works_once_nothing_is_pending() {
    let database = PostgresDatabase::create().await;
    let role = format!("role_{}", database.name());
    database.execute(&format!("CREATE ROLE {role} LOGIN")).await;
    let url = format!("{}&user={role}", database.url);
    let outcome = PostgresStore::open(&url).await.map(drop);
    let Err(StoreError::Refused(why)) = outcome else { panic!("{outcome:?}") };
    assert!(why.contains(" migrations are pending") && why.contains("CREATE"), "{why}");

    drop(database.fixture().await);
    let outcome = PostgresStore::open(&url).await.map(drop);
    assert!(matches!(&outcome, Err(StoreError::Refused(why)) if why.contains("USAGE")), "{outcome:?}");
    database
        .execute(&format!(
            "GRANT USAGE ON SCHEMA containarium TO {role}; \
             GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA containarium TO {role}"
        ))
        .await;
    let store = PostgresStore::open(&url).await.unwrap();
    let mut key = crate::store::fakes::Key::numbered(1);
    store.first_key(&mut key).await.unwrap();
    assert!(store.survey().await.unwrap().key_state.is_some());
    store.close().await;
    database.execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

#[tokio::test]
async fn a_table_of_the_old_product_is_seen_in_any_other_schema() {
    let database = PostgresDatabase::create().await;
    let f = database.fixture().await;
    assert!(!f.store.survey().await.unwrap().v1_table, "our own table is not it");
    database.execute("CREATE TABLE public.secrets (username text)").await;
    assert!(f.store.survey().await.unwrap().v1_table);
    database.execute("CREATE SCHEMA elsewhere; ALTER TABLE public.secrets SET SCHEMA elsewhere").await;
    assert!(f.store.survey().await.unwrap().v1_table);
}

fn migration_names(kind: &str) -> Vec<String> {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations").join(kind);
    let names = std::fs::read_dir(directory).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

/// Table, column, and whether it may be NULL.
type Columns = BTreeSet<(String, String, bool)>;

#[tokio::test]
async fn both_databases_have_the_same_tables_columns_and_nullability() {
    assert_eq!(migration_names("sqlite"), migration_names("postgres"));

    let database = PostgresDatabase::create().await;
    drop(database.fixture().await);
    let found = sqlx::query(
        "SELECT table_name::text, column_name::text, is_nullable = 'YES' FROM information_schema.columns \
         WHERE table_schema = 'containarium' AND table_name NOT LIKE '\\_sqlx%'",
    )
    .fetch_all(&mut database.connect().await)
    .await
    .unwrap();
    let in_postgres: Columns = found.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();

    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("containarium.db");
    SqliteStore::open(&file).await.unwrap().close().await;
    let mut sqlite = SqliteConnectOptions::new().filename(&file).connect().await.unwrap();
    let mut in_sqlite = Columns::new();
    for table in in_postgres.iter().map(|(table, ..)| table.clone()).collect::<BTreeSet<_>>() {
        let sql = AssertSqlSafe(format!("SELECT name, \"notnull\" = 0 FROM pragma_table_info('{table}')"));
        for row in sqlx::query(sql).fetch_all(&mut sqlite).await.unwrap() {
            in_sqlite.insert((table.clone(), row.get(0), row.get(1)));
        }
    }
    let others = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE '\\_sqlx%' ESCAPE '\\' AND name NOT LIKE 'sqlite%'";
    for row in sqlite.fetch_all(others).await.unwrap() {
        let table: String = row.get(0);
        assert!(in_postgres.iter().any(|(known, ..)| *known == table), "{table} is in SQLite only");
    }
    assert!(in_postgres.len() > 60, "{in_postgres:?}");
    assert_eq!(in_sqlite.symmetric_difference(&in_postgres).collect::<Vec<_>>(), Vec::<&(String, String, bool)>::new());
}
