//! What SQLite and sqlx answer, as a [`StoreError`] in words for an operator.

use sqlx::Error;
use sqlx::error::DatabaseError;
use sqlx::migrate::MigrateError;

use super::StoreError;

/// An error of any statement but COMMIT: what it belongs to is rolled back.
pub(super) fn store_error(error: Error) -> StoreError {
    match error {
        Error::Database(answer) => database_error(&*answer),
        Error::Io(cause) => StoreError::Unavailable(cause.to_string()),
        Error::PoolTimedOut => StoreError::Unavailable("no connection became free in time".to_owned()),
        Error::PoolClosed => StoreError::Unavailable("the database is closed".to_owned()),
        Error::WorkerCrashed => StoreError::Unavailable("the connection's thread ended".to_owned()),
        other => StoreError::Refused(other.to_string()),
    }
}

/// An error of COMMIT. Where the disk failed under it, the change may be found in the write-ahead log by the next who opens it.
pub(super) fn commit_error(error: Error) -> StoreError {
    let unknown = match &error {
        Error::Database(answer) => primary_code(&**answer) == Some(codes::IOERR),
        Error::Io(_) | Error::WorkerCrashed => true,
        _ => false,
    };
    if unknown { StoreError::UnknownOutcome(error.to_string()) } else { store_error(error) }
}

pub(super) fn migrate_error(error: MigrateError) -> StoreError {
    match error {
        MigrateError::Execute(cause) | MigrateError::ExecuteMigration(cause, _) => store_error(cause),
        MigrateError::VersionMissing(version) => StoreError::Unusable(format!(
            "it has migration {version}, which no release of this line has; it was migrated by something else"
        )),
        MigrateError::VersionMismatch(version) => StoreError::Unusable(format!(
            "its migration {version} was another than this release's of that number; it was migrated by something else"
        )),
        MigrateError::Dirty(version) => {
            StoreError::Unusable(format!("its migration {version} was begun and not finished"))
        }
        other => StoreError::Refused(other.to_string()),
    }
}

/// SQLite's primary result codes (sqlite.org/rescode.html) that an operator can do something about.
mod codes {
    pub(super) const BUSY: i32 = 5;
    pub(super) const LOCKED: i32 = 6;
    pub(super) const NOMEM: i32 = 7;
    pub(super) const READONLY: i32 = 8;
    pub(super) const IOERR: i32 = 10;
    pub(super) const CORRUPT: i32 = 11;
    pub(super) const FULL: i32 = 13;
    pub(super) const CANTOPEN: i32 = 14;
    pub(super) const NOTADB: i32 = 26;
}

fn primary_code(answer: &dyn DatabaseError) -> Option<i32> {
    answer.code()?.parse::<i32>().ok().map(|extended| extended & 0xFF)
}

fn database_error(answer: &dyn DatabaseError) -> StoreError {
    let said = answer.message();
    match primary_code(answer) {
        Some(codes::BUSY | codes::LOCKED) => {
            StoreError::Unavailable(format!("another process holds the lock of the database file ({said})"))
        }
        Some(codes::FULL) => StoreError::Unavailable(format!("no space is left for the database file ({said})")),
        Some(codes::READONLY) => StoreError::Unavailable(format!("the database file cannot be written ({said})")),
        Some(codes::IOERR) => StoreError::Unavailable(format!("the disk failed under the database file ({said})")),
        Some(codes::CANTOPEN) => StoreError::Unavailable(format!("the database file cannot be opened ({said})")),
        Some(codes::NOMEM) => StoreError::Unavailable(format!("no memory is left ({said})")),
        Some(codes::CORRUPT) => {
            StoreError::Unusable(format!("the database file is damaged ({said}); restore it from a backup"))
        }
        Some(codes::NOTADB) => {
            StoreError::Unusable("the file is not a SQLite database, or its first page is damaged".to_owned())
        }
        _ => StoreError::Refused(said.to_owned()),
    }
}
