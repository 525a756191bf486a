//! Transactions and single reads: isolation, time limits and retries, in one place.
//!
//! Every transaction names READ COMMITTED itself. The protocol of locks takes a lock in one statement and reads what it guards in a
//! later one; at REPEATABLE READ the later statement would still see the world from before the wait. The server's, the
//! database's and the role's default isolation are not ours to rely on.
//!
//! Nothing here outlives a transaction: locks are transaction-level and settings are SET LOCAL, so a pooler in transaction mode may
//! give each transaction another session.

use std::future::Future;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnection, PgPool};
use sqlx::{Connection, Postgres};
use tokio::time::{sleep, timeout};
use tracing::debug;

use super::failure::{Failure, is_certain_at_commit, is_conflict, is_disconnection};
use super::{PostgresStore, trail};
use crate::store::StoreError;
use crate::store::trail::{Scribe, Touched, records_of};

/// BEGIN with its limits, as one message to the server.
///
/// `lock_timeout` bounds what one hung session can do to the rest, `idle_in_transaction_session_timeout` what this daemon can do when
/// it is the one that hangs. synchronous_commit is raised where somebody turned it off, and never lowered: an acknowledged write is on
/// disk, and `remote_apply` stays `remote_apply`.
pub(super) const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; \
    SET LOCAL lock_timeout = '3s'; \
    SET LOCAL statement_timeout = '15s'; \
    SET LOCAL idle_in_transaction_session_timeout = '10s'; \
    SELECT pg_catalog.set_config('synchronous_commit', 'on', true) \
    WHERE pg_catalog.current_setting('synchronous_commit') = 'off'";

/// What the server's own limits cannot bound: a network that swallows packets.
const LONGEST_TRANSACTION: Duration = Duration::from_secs(30);
const LONGEST_COMMIT: Duration = Duration::from_secs(15);
const LONGEST_READ: Duration = Duration::from_secs(15);

/// For conflicts that PostgreSQL finds; with sorted locks there should be none.
const MOST_CONFLICTS: u32 = 8;
/// Each time, at least one name of the batch has come to exist for good, so this is bounded by the batch; the limit is against a bug.
const MOST_OVERTAKINGS: u32 = 100;
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// How a transaction ends.
pub(super) enum End<T> {
    Commit(T),
    /// What was found makes the change wrong or needless: nothing of it stays.
    Rollback(T),
}

/// The body of a transaction; it may run several times, each time from a clean slate.
#[async_trait]
pub(super) trait Work: Send {
    type Output: Send;

    async fn run(&mut self, tx: &mut PgConnection) -> Result<End<Self::Output>, Failure>;

    /// The versions of secrets that the last run touched, for the record of the change.
    fn touched(&self) -> &[Touched] {
        &[]
    }
}

/// One read, a single statement outside of a transaction.
#[async_trait]
pub(super) trait Read: Send + Sync {
    type Output: Send;

    async fn run(&self, connection: &mut PgConnection) -> Result<Self::Output, Failure>;
}

enum AttemptError {
    /// Nothing was committed.
    Before(Failure),
    AtCommit(StoreError),
}

/// Runs `work` in a transaction of its own.
///
/// # Errors
/// [`StoreError::Unavailable`] where nothing was done, [`StoreError::UnknownOutcome`] where the connection broke at COMMIT, and what
/// `work` fails with.
pub(super) async fn run_tx<W: Work>(
    store: &PostgresStore,
    name: &'static str,
    work: &mut W,
) -> Result<W::Output, StoreError> {
    let pool = &store.pool;
    let mut reconnected = false;
    let mut attempt = 1;
    loop {
        let failure = match attempt_tx(store, work).await {
            Ok(output) => return Ok(output),
            Err(AttemptError::AtCommit(error)) => return Err(error),
            Err(AttemptError::Before(failure)) => failure,
        };
        let again = match &failure {
            Failure::Overtaken => attempt <= MOST_OVERTAKINGS,
            Failure::Sql(error) if is_conflict(error) => attempt <= MOST_CONFLICTS,
            // Once, and on a connection that is certainly new: after a restart of the server every pooled one is dead.
            Failure::Sql(error) if is_disconnection(error) && !reconnected => {
                reconnected = true;
                discard_idle(pool);
                true
            }
            Failure::Sql(_) | Failure::Store(_) => false,
        };
        if !again {
            return Err(failure.into_store_error());
        }
        debug!(transaction = name, attempt, "the transaction is tried again");
        // The first retry at once (a deadlock's victim is alone by now), later ones a little apart.
        sleep(LONGEST_PAUSE.min(Duration::from_millis(u64::from(attempt - 1) * 5))).await;
        attempt += 1;
    }
}

/// Runs one read, once more on a new connection where the first was dead or the server asks to try again.
///
/// # Errors
/// [`StoreError::Unavailable`], and what `read` fails with.
pub(super) async fn run_read<R: Read>(pool: &PgPool, read: &R) -> Result<R::Output, StoreError> {
    match attempt_read(pool, read).await {
        Err(Failure::Sql(error)) if is_disconnection(&error) => discard_idle(pool),
        Err(Failure::Sql(error)) if is_conflict(&error) => {}
        done => return done.map_err(Failure::into_store_error),
    }
    attempt_read(pool, read).await.map_err(Failure::into_store_error)
}

async fn attempt_read<R: Read>(pool: &PgPool, read: &R) -> Result<R::Output, Failure> {
    let mut lease = Lease::take(pool).await?;
    let result = within(LONGEST_READ, read.run(lease.connection()?)).await;
    if result.as_ref().err().is_none_or(keeps_step) {
        lease.give_back();
    }
    result
}

async fn attempt_tx<W: Work>(store: &PostgresStore, work: &mut W) -> Result<W::Output, AttemptError> {
    let mut lease = Lease::take(&store.pool).await.map_err(AttemptError::Before)?;
    let scribe = store.scribe.as_deref();
    let result = run_on(lease.connection().map_err(AttemptError::Before)?, scribe, work).await;
    let clean = match &result {
        Ok(_) => true,
        Err(AttemptError::Before(failure)) => keeps_step(failure),
        Err(AttemptError::AtCommit(_)) => false,
    };
    if clean {
        lease.give_back();
    }
    result
}

async fn run_on<W: Work>(
    connection: &mut PgConnection,
    scribe: Option<&dyn Scribe>,
    work: &mut W,
) -> Result<W::Output, AttemptError> {
    let body = async {
        let mut tx = connection.begin_with(BEGIN).await?;
        let end = work.run(&mut tx).await?;
        if let (End::Commit(_), Some(scribe)) = (&end, scribe) {
            trail::insert(&mut tx, &records_of(scribe, work.touched())?).await?;
        }
        Ok((tx, end))
    };
    let (tx, end) = within(LONGEST_TRANSACTION, body).await.map_err(AttemptError::Before)?;
    match end {
        End::Rollback(output) => {
            within(LONGEST_COMMIT, async { Ok(tx.rollback().await?) }).await.map_err(AttemptError::Before)?;
            Ok(output)
        }
        End::Commit(output) => match timeout(LONGEST_COMMIT, tx.commit()).await {
            Ok(Ok(())) => {
                if let Some(scribe) = scribe {
                    scribe.committed();
                }
                Ok(output)
            }
            Ok(Err(error)) if is_certain_at_commit(&error) => Err(AttemptError::Before(error.into())),
            Ok(Err(error)) => Err(AttemptError::AtCommit(unknown_outcome(&error))),
            Err(_) => {
                Err(AttemptError::AtCommit(StoreError::UnknownOutcome("the server did not answer in time".into())))
            }
        },
    }
}

fn unknown_outcome(error: &sqlx::Error) -> StoreError {
    match super::failure::describe(error) {
        StoreError::Unavailable(words) | StoreError::Refused(words) => StoreError::UnknownOutcome(words),
        other => other,
    }
}

async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, Failure>> + Send) -> Result<T, Failure> {
    match timeout(limit, work).await {
        Ok(result) => result,
        Err(_) => Err(StoreError::Unavailable("the server did not answer in time".into()).into()),
    }
}

/// Whether the session is still in step after this failure. Errors are rare; where there is doubt, a new connection is cheap.
fn keeps_step(failure: &Failure) -> bool {
    match failure {
        Failure::Overtaken => true,
        Failure::Sql(error) => is_conflict(error),
        Failure::Store(error) => matches!(error, StoreError::Corrupt { .. }),
    }
}

/// A pooled connection that goes back only when its user says that it is in step. Otherwise, when a future is dropped half-way too, its
/// socket is closed and the server rolls back: sqlx keeps no account of a BEGIN that it did not see answered, and would hand the open
/// transaction to the next user.
struct Lease(Option<PoolConnection<Postgres>>);

impl Lease {
    async fn take(pool: &PgPool) -> Result<Self, Failure> {
        Ok(Self(Some(pool.acquire().await?)))
    }

    fn connection(&mut self) -> Result<&mut PgConnection, Failure> {
        match &mut self.0 {
            Some(connection) => Ok(connection),
            None => Err(sqlx::Error::PoolClosed.into()),
        }
    }

    fn give_back(mut self) {
        drop(self.0.take());
    }
}

impl Drop for Lease {
    /// Without a word to the server: a farewell to a dead one could hang, and a permit of the pool with it.
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            drop(connection.detach());
        }
    }
}

fn discard_idle(pool: &PgPool) {
    while let Some(connection) = pool.try_acquire() {
        drop(connection.detach());
    }
}
