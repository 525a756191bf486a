//! Opening the file: made where there is none, looked at before anything is changed, migrated, then opened for readers.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::migrate::Migrator;
use sqlx::pool::PoolOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, Sqlite, SqliteConnection, SqlitePool};

use super::error::{migrate_error, store_error};
use super::{SqliteStore, StoreError};

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");

/// How long SQLite waits for a lock that another process holds (a backup tool, an operator's shell).
const BUSY: Duration = Duration::from_secs(5);

/// How long a caller waits for a connection: longer than [`BUSY`], so that one slow writer does not fail all who wait behind it.
const ACQUIRE: Duration = Duration::from_secs(15);

/// Readers answer from the page cache in microseconds, and each is a thread with a cache of its own.
const READERS: u32 = 4;

pub(super) async fn open(path: &Path) -> Result<SqliteStore, StoreError> {
    make_file(path)?;
    check_log(path)?;
    let writing = options(path).journal_mode(SqliteJournalMode::Wal).synchronous(SqliteSynchronous::Full);
    let writer = pool(1).connect_with(writing).await.map_err(store_error)?;
    match prepare(&writer, path).await {
        Ok(readers) => Ok(SqliteStore { writer, readers, scribe: None }),
        Err(error) => {
            writer.close().await;
            Err(error)
        }
    }
}

pub(super) async fn open_reading(path: &Path) -> Result<SqliteStore, StoreError> {
    reader(reading(path)?).await
}

/// A file that lies there alone is read as one that nobody changes, so that SQLite makes no file beside it (a copy of a database in WAL
/// mode would get two). One with a log or a journal beside it is only whole together with that.
pub(super) async fn open_copy(path: &Path) -> Result<SqliteStore, StoreError> {
    let is_beside = |suffix: &str| beside(path, suffix).exists();
    check_form(path)?;
    reader(reading(path)?.immutable(!is_beside("-wal") && !is_beside("-journal"))).await
}

/// Names what mends a copy in a form that SQLite does not read.
fn check_form(path: &Path) -> Result<(), StoreError> {
    const GZIP: [u8; 2] = [0x1f, 0x8b];
    let mut begins = [0; 2];
    let read = File::open(path).and_then(|file| file.read_exact_at(&mut begins, 0));
    if read.is_err() || begins != GZIP {
        return Ok(());
    }
    let path = path.display();
    Err(StoreError::Unusable(format!(
        "{path} is compressed. Unpack it beside: `(umask 077; gunzip -c {path} > {path}.unpacked)`, and name that file"
    )))
}

/// The file that SQLite keeps beside a database under this ending.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

/// Refuses a copy that was put in the place of a database whose write-ahead log still lies there: SQLite plays any log that has the right
/// name, and the pages of one database in the other are a damaged one, or silently the old one. A copy that VACUUM INTO made says in its
/// header that no log belongs to it (bytes 18 and 19, sqlite.org/fileformat.html 1.3.3), which a database that has one never does.
///
/// Nothing of this process may have the file open: closing it here would drop SQLite's locks on it.
fn check_log(path: &Path) -> Result<(), StoreError> {
    const WITHOUT_LOG: [u8; 2] = [1, 1];
    let log = beside(path, "-wal");
    if !std::fs::metadata(&log).is_ok_and(|log| log.len() > 0) {
        return Ok(());
    }
    let mut says = [0; 2];
    // A file that cannot be read, or is shorter, is SQLite's to refuse.
    let read = File::open(path).and_then(|file| file.read_exact_at(&mut says, 18));
    if read.is_err() || says != WITHOUT_LOG {
        return Ok(());
    }
    let (path, log, index) = (path.display(), log.display(), beside(path, "-shm"));
    Err(StoreError::Unusable(format!(
        "{path} is a copy that was put there, and {log} is the log of the database that was there before; together they would be a \
         damaged one, and nothing was read or changed. Remove what belongs to the old one: `rm -f {log} {}`",
        index.display()
    )))
}

async fn reader(options: SqliteConnectOptions) -> Result<SqliteStore, StoreError> {
    let readers = pool(1).connect_with(options.pragma("query_only", "ON")).await.map_err(store_error)?;
    match check_current(&readers).await {
        Ok(()) => Ok(SqliteStore { writer: readers.clone(), readers, scribe: None }),
        Err(error) => {
            readers.close().await;
            Err(error)
        }
    }
}

/// Of a database that is there and that nothing of this process writes to. (`query_only` is not among them: VACUUM INTO, which writes
/// to another file, is refused under it.)
pub(super) fn reading(path: &Path) -> Result<SqliteConnectOptions, StoreError> {
    if !path.exists() {
        let none = format!("there is no database at {}; the daemon makes it at its first start", path.display());
        return Err(StoreError::Unavailable(none));
    }
    check_log(path)?;
    Ok(options(path).read_only(true))
}

/// Refuses a database whose migrations are not exactly this release's.
async fn check_current(readers: &SqlitePool) -> Result<(), StoreError> {
    let mut connection = readers.acquire().await.map_err(store_error)?;
    let bookkeeping = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = '_sqlx_migrations'";
    let ours: i64 = sqlx::query_scalar(bookkeeping).fetch_one(&mut *connection).await.map_err(store_error)?;
    if ours == 0 {
        return Err(StoreError::Unusable("it is not a database of this product, or was never started on".to_owned()));
    }
    check_not_newer(&mut connection).await?;
    let applied: Vec<(i64, Vec<u8>)> =
        sqlx::query_as("SELECT version, checksum FROM _sqlx_migrations WHERE success ORDER BY version")
            .fetch_all(&mut *connection)
            .await
            .map_err(store_error)?;
    let known = MIGRATIONS.iter().map(|migration| (migration.version, migration.checksum.to_vec()));
    if applied.into_iter().eq(known) {
        return Ok(());
    }
    Err(StoreError::Unusable(
        "its schema is not this release's; start the daemon of this release on it once".to_owned(),
    ))
}

pub(super) async fn check_file(readers: &SqlitePool) -> Result<(), StoreError> {
    let found: String =
        sqlx::query_scalar("PRAGMA integrity_check(1)").fetch_one(readers).await.map_err(store_error)?;
    if found == "ok" {
        return Ok(());
    }
    Err(StoreError::Unusable(format!("its file is damaged, and would restore less than it should: {}", found.trim())))
}

pub(super) async fn holds_rows(path: &Path) -> Result<bool, StoreError> {
    let mut connection = options(path).read_only(true).connect().await.map_err(store_error)?;
    let ours = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name IN ('key_state', 'tenants')";
    let tables: i64 = sqlx::query_scalar(ours).fetch_one(&mut connection).await.map_err(store_error)?;
    let rows = "SELECT EXISTS (SELECT 1 FROM key_state) OR EXISTS (SELECT 1 FROM tenants)";
    let holds = tables == 2 && sqlx::query_scalar(rows).fetch_one(&mut connection).await.map_err(store_error)?;
    connection.close().await.map_err(store_error)?;
    Ok(holds)
}

/// Brings the schema up, and opens the readers on it.
async fn prepare(writer: &SqlitePool, path: &Path) -> Result<SqlitePool, StoreError> {
    let mut connection = writer.acquire().await.map_err(store_error)?;
    check_ours(&mut connection).await?;
    MIGRATIONS.run_direct(None, &mut *connection, false).await.map_err(migrate_error)?;
    drop(connection);
    // Readers cannot write, whatever a statement says.
    pool(READERS).connect_with(options(path).pragma("query_only", "ON")).await.map_err(store_error)
}

/// Makes an empty file that only its owner may read, before SQLite would make one as the umask says. With O_EXCL, so that a file that is
/// there is not opened: closing it would drop the locks that SQLite holds on it in this process (sqlite.org/howtocorrupt.html, 2.2).
fn make_file(path: &Path) -> Result<(), StoreError> {
    let failed =
        |what: &str, cause: std::io::Error| StoreError::Unavailable(format!("{what} {}: {cause}", path.display()));
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(_) => {}
        Err(cause) if cause.kind() == ErrorKind::AlreadyExists => return Ok(()),
        Err(cause) => return Err(failed("cannot make the database file", cause)),
    }
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(|cause| failed("cannot make durable the directory entry of", cause))
}

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(false)
        .busy_timeout(BUSY)
        .foreign_keys(true)
        // A schema that somebody else wrote into the file calls no function that could do harm.
        .pragma("trusted_schema", "OFF")
        // Destroyed ciphertexts and shredded DEKs are overwritten with zeros, not left in free pages.
        .pragma("secure_delete", "ON")
        .disable_statement_logging()
}

fn pool(connections: u32) -> PoolOptions<Sqlite> {
    SqlitePoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(ACQUIRE)
        .idle_timeout(None)
        .max_lifetime(None)
        // A file needs no ping before each use.
        .test_before_acquire(false)
        .after_release(|connection, _| Box::pin(is_clean(connection)))
}

/// Whether a connection that comes back to its pool has no transaction open. SQLite rolls back by itself on some errors (disk full, I/O);
/// sqlx's ROLLBACK then fails, and its count of open transactions stays up, so that no BEGIN would ever work again on this connection.
/// Such a one is closed, and the pool opens another. The ping waits for a rollback that a dropped transaction left in the queue.
async fn is_clean(connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    connection.ping().await?;
    Ok(!connection.is_in_transaction())
}

/// Refuses a database that a newer release migrated, and one that is somebody else's, before anything is written to it.
async fn check_ours(connection: &mut SqliteConnection) -> Result<(), StoreError> {
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY name",
    )
    .fetch_all(&mut *connection)
    .await
    .map_err(store_error)?;
    if tables.iter().any(|table| *table == MIGRATIONS.table_name) {
        return check_not_newer(connection).await;
    }
    if tables.iter().any(|table| table == "secrets") {
        return Err(StoreError::Unusable(
            "it has a table `secrets` that this product did not make, as v1's databases have; nothing was changed in it".to_owned(),
        ));
    }
    match tables.first() {
        None => Ok(()),
        Some(table) => Err(StoreError::Unusable(format!(
            "it is another program's: it has a table `{table}` and no migrations of this product; nothing was changed in it"
        ))),
    }
}

async fn check_not_newer(connection: &mut SqliteConnection) -> Result<(), StoreError> {
    let found: Option<i64> = sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations")
        .fetch_one(connection)
        .await
        .map_err(store_error)?;
    let known = MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0);
    match found {
        Some(found) if found > known => Err(StoreError::Newer { found, known }),
        _ => Ok(()),
    }
}
