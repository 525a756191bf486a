//! What only the SQLite store has: a file, and what may be wrong with it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use containarium::store::{Masters, SqliteStore};
use containarium::store::{Store, StoreError};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};
use tempfile::TempDir;

use super::fakes::Key;

fn a_file() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("containarium.db");
    (directory, file)
}

/// Runs SQL on a file that no store has open.
async fn run(file: &Path, sql: &'static str) {
    let options = SqliteConnectOptions::new().filename(file).create_if_missing(true);
    let mut connection = options.connect().await.unwrap();
    sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

/// A store that was opened once and closed.
async fn closed_store() -> (TempDir, PathBuf) {
    let (directory, file) = a_file();
    SqliteStore::open(&file).await.unwrap().close().await;
    (directory, file)
}

async fn refusal(file: &Path) -> StoreError {
    match SqliteStore::open(file).await {
        Ok(_) => panic!("opened"),
        Err(error) => error,
    }
}

fn unusable(error: &StoreError, word: &str) {
    assert!(matches!(error, StoreError::Unusable(why) if why.contains(word)), "{error}");
}

#[tokio::test]
async fn a_copy_beside_the_log_of_another_database_is_refused_and_neither_is_changed() {
    let (directory, file) = closed_store().await;
    let copy = directory.path().join("copy.db");
    std::fs::write(&copy, "").unwrap();
    SqliteStore::copy(&file, &copy).await.unwrap();
    // A log as a killed daemon leaves it.
    let mut connection = SqliteConnectOptions::new().filename(&file).connect().await.unwrap();
    sqlx::raw_sql("PRAGMA user_version = 7").execute(&mut connection).await.unwrap();
    let log = directory.path().join("containarium.db-wal");
    let kept = std::fs::read(&log).unwrap();
    connection.close().await.unwrap();
    assert!(!kept.is_empty() && !log.exists());
    std::fs::rename(&copy, &file).unwrap();
    std::fs::write(&log, &kept).unwrap();
    let before = std::fs::read(&file).unwrap();

    unusable(&refusal(&file).await, "containarium.db-wal");
    let read = SqliteStore::open_reading(&file).await.err().unwrap();
    unusable(&read, "rm -f ");
    assert!(std::fs::read(&file).unwrap() == before && std::fs::read(&log).unwrap() == kept);
    std::fs::remove_file(&log).unwrap();
    SqliteStore::open(&file).await.unwrap().close().await;
}

#[tokio::test]
async fn the_file_and_its_logs_are_for_their_owner_only() {
    let (directory, file) = a_file();
    let store = SqliteStore::open(&file).await.unwrap();
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory.path()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.path());
        names.push(entry.file_name().into_string().unwrap());
    }
    names.sort();
    assert_eq!(names, ["containarium.db", "containarium.db-shm", "containarium.db-wal"]);
    store.close().await;
}

#[tokio::test]
async fn what_was_stored_is_there_after_a_restart() {
    let (_directory, file) = a_file();
    let store = SqliteStore::open(&file).await.unwrap();
    store.first_key(&mut Key::numbered(1)).await.unwrap();
    let before = store.survey().await.unwrap();
    store.close().await;
    let store = SqliteStore::open(&file).await.unwrap();
    assert_eq!(store.survey().await.unwrap(), before);
}

#[tokio::test]
async fn a_missing_directory_is_named() {
    let (directory, _) = a_file();
    let error = refusal(&directory.path().join("none/containarium.db")).await;
    assert!(matches!(&error, StoreError::Unavailable(why) if why.contains("none/containarium.db")), "{error}");
}

#[tokio::test]
async fn a_directory_in_the_files_place_is_refused() {
    let (directory, _) = a_file();
    let error = refusal(directory.path()).await;
    assert!(matches!(&error, StoreError::Unavailable(why) if why.contains("cannot be opened")), "{error}");
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused_and_left_alone() {
    let (_directory, file) = a_file();
    let text = "not a database, but somebody's letter\n".repeat(200);
    std::fs::write(&file, &text).unwrap();
    unusable(&refusal(&file).await, "not a SQLite database");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
}

#[tokio::test]
async fn a_database_cut_short_is_refused_in_words() {
    let (_directory, file) = closed_store().await;
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    unusable(&refusal(&file).await, "damaged");
}

#[tokio::test]
async fn a_newer_database_is_refused_with_both_numbers() {
    let (_directory, file) = closed_store().await;
    run(
        &file,
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES (20991231000000, 'later', TRUE, x'00', 0)",
    )
    .await;
    let error = refusal(&file).await;
    let StoreError::Newer { found: 20_991_231_000_000, known } = error else { panic!("{error}") };
    assert!(known >= 20_261_124_000_003);
}

#[tokio::test]
async fn a_migration_of_another_content_is_refused_by_its_number() {
    let (_directory, file) = closed_store().await;
    run(&file, "UPDATE _sqlx_migrations SET checksum = x'00' WHERE version = 20261124000002").await;
    unusable(&refusal(&file).await, "migration 20261124000002 was another");
}

#[tokio::test]
async fn a_migration_that_no_release_has_is_refused_by_its_number() {
    let (_directory, file) = closed_store().await;
    run(&file, "UPDATE _sqlx_migrations SET version = 7 WHERE version = 20261124000002").await;
    unusable(&refusal(&file).await, "migration 7,");
}

#[tokio::test]
async fn a_table_of_v1_is_not_migrated_over() {
    let (_directory, file) = a_file();
    run(&file, "CREATE TABLE secrets (username TEXT, name TEXT, nonce BLOB, ciphertext BLOB)").await;
    let before = std::fs::read(&file).unwrap();
    unusable(&refusal(&file).await, "as v1's databases have");
    assert_eq!(tables(&file).await, 1);
    assert_eq!(before.len(), std::fs::read(&file).unwrap().len());
}

#[tokio::test]
async fn another_programs_database_is_not_migrated_over() {
    let (_directory, file) = a_file();
    run(&file, "CREATE TABLE bookmarks (url TEXT)").await;
    unusable(&refusal(&file).await, "`bookmarks`");
    assert_eq!(tables(&file).await, 1);
}

async fn tables(file: &Path) -> i64 {
    let mut connection = SqliteConnectOptions::new().filename(file).connect().await.unwrap();
    let tables = sqlx::query_scalar("SELECT count(*) FROM sqlite_schema").fetch_one(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    tables
}

#[tokio::test]
async fn a_file_opened_for_reading_is_read_beside_its_daemon_and_never_written() {
    let (_directory, file) = a_file();
    let daemon = SqliteStore::open(&file).await.unwrap();
    daemon.first_key(&mut Key::numbered(1)).await.unwrap();
    let reader = SqliteStore::open_reading(&file).await.unwrap();
    assert_eq!(reader.survey().await.unwrap(), daemon.survey().await.unwrap());
    assert!(reader.raise_generation().await.is_err());
    daemon.raise_generation().await.unwrap();
    assert_eq!(reader.survey().await.unwrap(), daemon.survey().await.unwrap(), "what came since is seen");
    reader.close().await;
    daemon.close().await;
    let before = std::fs::read(&file).unwrap();
    let reader = SqliteStore::open_reading(&file).await.unwrap();
    assert_eq!(reader.survey().await.unwrap().key_state.unwrap().generation, 2);
    reader.close().await;
    assert!(std::fs::read(&file).unwrap() == before, "without a daemon too");
}

#[tokio::test]
async fn a_file_of_another_schema_is_not_opened_for_reading_nor_migrated() {
    let reading = async |file: &Path| SqliteStore::open_reading(file).await.map(drop).unwrap_err();
    let (_directory, file) = a_file();
    assert!(matches!(reading(&file).await, StoreError::Unavailable(_)));
    assert!(!file.exists(), "it is not made");
    run(&file, "CREATE TABLE other (a INTEGER)").await;
    unusable(&reading(&file).await, "not a database of this product");
    for damage in [
        "DELETE FROM _sqlx_migrations WHERE version = (SELECT max(version) FROM _sqlx_migrations)",
        "UPDATE _sqlx_migrations SET checksum = x'00' WHERE version = 20261124000002",
        "UPDATE _sqlx_migrations SET success = FALSE WHERE version = 20261124000002",
    ] {
        let (_directory, file) = closed_store().await;
        run(&file, damage).await;
        unusable(&reading(&file).await, "not this release's");
    }
}
