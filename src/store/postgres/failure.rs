//! What the server answered, in the store's words. No message repeats a bound value, a row's detail or the connection's URL: of a
//! database error only the code, the primary message and the constraint's name pass, and of an unknown error only its kind.

use std::io::ErrorKind;

use sqlx::error::DatabaseError;
use sqlx::postgres::{PgDatabaseError, PgSeverity};

use crate::store::StoreError;

/// Why a statement or a transaction stopped, while it can still be tried again.
#[derive(Debug)]
pub(super) enum Failure {
    Sql(sqlx::Error),
    Store(StoreError),
    /// Somebody else made what this transaction was about to make: what it read is stale, and another attempt will find it.
    Overtaken,
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Failure {
    pub(super) fn into_store_error(self) -> StoreError {
        match self {
            Self::Sql(error) => describe(&error),
            Self::Store(error) => error,
            Self::Overtaken => StoreError::Unavailable(
                "others kept changing the same rows; the transaction was given up after several attempts".into(),
            ),
        }
    }
}

/// Whether the transaction failed only because of others, and the same one may succeed now (40001, 40P01).
pub(super) fn is_conflict(error: &sqlx::Error) -> bool {
    code_of(error).is_some_and(|code| code == "40001" || code == "40P01")
}

/// Whether the connection is gone, as after a restart of the server: a fresh one may work.
pub(super) fn is_disconnection(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Protocol(_) => true,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| is_disconnection_code(&code)),
        _ => false,
    }
}

/// Whether an error that COMMIT met says for certain that nothing was committed. An ERROR ends the transaction and nothing more;
/// FATAL and PANIC may follow a commit record that is written already (a wait for a replica that is cut off, for one).
pub(super) fn is_certain_at_commit(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(error) => error
            .try_downcast_ref::<PgDatabaseError>()
            .is_some_and(|error| error.severity() == PgSeverity::Error && !is_disconnection_code(error.code())),
        _ => false,
    }
}

/// Class 08 (connection exceptions, which poolers answer too) and the shutdown codes of class 57.
fn is_disconnection_code(code: &str) -> bool {
    code.starts_with("08") || matches!(code, "57P01" | "57P02" | "57P03" | "57P05" | "25P03")
}

fn code_of(error: &sqlx::Error) -> Option<String> {
    error.as_database_error().and_then(DatabaseError::code).map(std::borrow::Cow::into_owned)
}

pub(super) fn describe(error: &sqlx::Error) -> StoreError {
    let unavailable = |words: &str| StoreError::Unavailable(words.to_owned());
    match error {
        sqlx::Error::Database(error) => describe_answer(&error.code().unwrap_or_default(), &**error),
        sqlx::Error::Io(error) => StoreError::Unavailable(describe_io(error)),
        sqlx::Error::PoolTimedOut => unavailable(
            "no connection within 5 seconds: the server is down, still starting or out of connections, or every connection of \
             this daemon is busy",
        ),
        sqlx::Error::PoolClosed => unavailable("the store is closed"),
        sqlx::Error::Protocol(_) => unavailable("the server broke off in the middle of an answer"),
        // rustls names certificates and alerts, never a credential.
        sqlx::Error::Tls(error) => StoreError::Unavailable(format!("TLS with the server failed: {error}")),
        sqlx::Error::ColumnDecode { index, .. } => {
            StoreError::Refused(format!("column {index} of an answer does not have the type that it should"))
        }
        _ => StoreError::Refused("an answer of the server could not be read".into()),
    }
}

fn describe_io(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::ConnectionRefused => {
            "the connection was refused: is the server running, on this host and port?".into()
        }
        ErrorKind::NotFound => "there is no socket at the server's path: is the server running?".into(),
        ErrorKind::PermissionDenied => "this user may not open the server's socket".into(),
        ErrorKind::TimedOut => "the server did not answer".into(),
        // The standard library has no kind for it.
        _ if error.to_string().starts_with("failed to lookup address") => {
            "the host's name does not resolve: mend it in the database URL, or its DNS".into()
        }
        kind => format!("the connection broke ({kind})"),
    }
}

/// The codes: PostgreSQL's manual, appendix A.
fn describe_answer(code: &str, error: &dyn DatabaseError) -> StoreError {
    let said = error.message();
    let unavailable = |words: &str| StoreError::Unavailable(format!("{words} ({code})"));
    let refused = |words: &str| StoreError::Refused(format!("{words} ({code})"));
    match code {
        "28P01" | "28000" => unavailable("the server did not accept this user or password"),
        "3D000" => unavailable("the server has no such database: create it, or mend the database URL"),
        "25006" => {
            unavailable("the server is read-only: it is a replica or is being handed over; connect to the primary")
        }
        "53100" => unavailable("the server's disk is full"),
        "53200" => unavailable("the server is out of memory"),
        "53300" => {
            unavailable("the server has no connection left for this daemon: raise max_connections or close others")
        }
        "55P03" => unavailable("another session kept a lock for too long (look for it in pg_stat_activity)"),
        "57014" => unavailable("a statement took too long and was cancelled"),
        "57P01" | "57P02" | "57P03" => unavailable("the server is shutting down or starting"),
        "25P03" | "57P05" => unavailable("the server ended this session for being idle"),
        "40001" | "40P01" => unavailable("the transaction kept running into others and was given up"),
        "26000" | "42P05" => refused(
            "a pooler between here and the server loses prepared statements: use PgBouncer 1.21 or later with \
             max_prepared_statements, or session pooling",
        ),
        "42501" => refused(
            "this database user lacks a right in schema containarium (it needs USAGE, and on its tables SELECT, INSERT, UPDATE and DELETE)",
        ),
        "42P01" | "3F000" => refused("tables of schema containarium are missing: were they dropped under the daemon?"),
        "P0001" => refused(said),
        _ if code.starts_with("08") => unavailable("the connection to the server was lost"),
        // A constraint's name says which rule broke; the message of these would quote nothing either, but the detail does.
        _ if code.starts_with("23") => {
            let rule = error.constraint().unwrap_or("of a column");
            let table = error.table().unwrap_or("unknown");
            refused(&format!("constraint {rule} of table {table} does not hold"))
        }
        // Class 22 (bad data) quotes what it was given.
        _ if code.starts_with("22") => refused("a value does not fit its column"),
        _ => refused(said),
    }
}
