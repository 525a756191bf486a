//! The schema: brought up to date at start, in one transaction under the master lock.
//!
//! sqlx's own runner is not used, only its parts: it locks the session, which a pooler in transaction mode makes worthless, commits
//! each migration by itself, and asks for the right to CREATE even where nothing is pending.

use async_trait::async_trait;
use sqlx::Executor;
use sqlx::migrate::{Migrate, MigrateError, Migrator};
use sqlx::postgres::{PgConnection, PgPool};

use super::PostgresStore;
use super::failure::Failure;
use super::locks;
use super::tx::{End, Read, Work, run_read, run_tx};
use crate::store::StoreError;

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");

/// sqlx's bookkeeping, inside our schema.
const BOOKKEEPING: &str = "containarium._sqlx_migrations";

/// # Errors
/// [`StoreError::Newer`] for a database of a newer release, [`StoreError::Refused`] for one whose migrations are not this release's and
/// where rights are missing.
pub(super) async fn migrate(store: &PostgresStore) -> Result<(), StoreError> {
    // Looked at without the lock first: a start beside a working fleet then waits for nobody, and needs no right to CREATE.
    if run_read(&store.pool, &Applied).await?.is_complete() {
        return Ok(());
    }
    run_tx(store, "migrate", &mut Apply).await
}

/// # Errors
/// As [`migrate`]; [`StoreError::Unusable`] where migrations are pending.
pub(super) async fn check_current(pool: &PgPool) -> Result<(), StoreError> {
    let standing = run_read(pool, &Applied).await?;
    if standing.is_complete() {
        return Ok(());
    }
    // To start a daemon on it, as one that is behind needs it, would make a new key.
    if standing.is_new {
        return Err(StoreError::Unusable(
            "it holds nothing of this product: no dump was restored to it, and no daemon was started on it".to_owned(),
        ));
    }
    Err(StoreError::Unusable("its schema is not this release's; start a daemon of this release on it once".to_owned()))
}

struct Applied;

#[async_trait]
impl Read for Applied {
    type Output = Standing;

    async fn run(&self, connection: &mut PgConnection) -> Result<Standing, Failure> {
        standing(connection).await
    }
}

/// How far a database is.
struct Standing {
    pending: Vec<i64>,
    /// Nothing of ours is in it.
    is_new: bool,
}

impl Standing {
    fn is_complete(&self) -> bool {
        self.pending.is_empty()
    }
}

/// What is applied, held against what this release knows.
async fn standing(connection: &mut PgConnection) -> Result<Standing, Failure> {
    let known = || MIGRATIONS.iter().map(|migration| migration.version);
    // By the catalogue: to_regclass() is itself refused to a role that may not use the schema.
    let exists: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE n.nspname = 'containarium' AND c.relname = '_sqlx_migrations')",
    )
    .fetch_one(&mut *connection)
    .await?;
    if !exists {
        return Ok(Standing { pending: known().collect(), is_new: true });
    }
    let applied = connection.list_applied_migrations(BOOKKEEPING).await.map_err(failure)?;
    let newest = known().max().unwrap_or(0);
    for row in &applied {
        let Some(migration) = MIGRATIONS.iter().find(|migration| migration.version == row.version) else {
            if row.version > newest {
                return Err(StoreError::Newer { found: row.version, known: newest }.into());
            }
            return Err(StoreError::Refused(format!(
                "the database has migration {}, which this release does not have: another build made it",
                row.version
            ))
            .into());
        };
        if migration.checksum != row.checksum {
            return Err(StoreError::Refused(format!(
                "migration {} was changed after it was applied to this database: start the release that applied it, or restore its file",
                row.version
            ))
            .into());
        }
    }
    let pending = known().filter(|version| applied.iter().all(|row| row.version != *version)).collect();
    Ok(Standing { pending, is_new: false })
}

struct Apply;

#[async_trait]
impl Work for Apply {
    type Output = ();

    async fn run(&mut self, tx: &mut PgConnection) -> Result<End<()>, Failure> {
        locks::master_exclusive(tx).await?;
        // DDL of a large table may take longer than a request may.
        tx.execute("SET LOCAL statement_timeout = '25s'").await?;
        // Again, in a statement after the lock: somebody else may have been faster.
        let standing = standing(tx).await?;
        if standing.is_complete() {
            return Ok(End::Rollback(()));
        }
        create(tx).await.map_err(|failure| lacks_rights(failure, &standing))?;
        for migration in MIGRATIONS.iter().filter(|migration| standing.pending.contains(&migration.version)) {
            tx.apply(BOOKKEEPING, migration).await.map_err(|error| lacks_rights(failure(error), &standing))?;
        }
        Ok(End::Commit(()))
    }
}

/// The schema and the bookkeeping, each only where it is missing: IF NOT EXISTS asks for the right to CREATE all the same.
async fn create(tx: &mut PgConnection) -> Result<(), Failure> {
    let schema: bool =
        sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = 'containarium')")
            .fetch_one(&mut *tx)
            .await?;
    if !schema {
        tx.create_schema_if_not_exists("containarium").await.map_err(failure)?;
    }
    tx.ensure_migrations_table(BOOKKEEPING).await.map_err(failure)
}

fn failure(error: MigrateError) -> Failure {
    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => Failure::Sql(error),
        other => StoreError::Refused(format!("the schema could not be brought up to date: {other}")).into(),
    }
}

fn lacks_rights(failure: Failure, standing: &Standing) -> Failure {
    match &failure {
        Failure::Sql(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42501") => {
            StoreError::Refused(format!(
                "{} migrations are pending, and this database user may not make them: start once as the owner of schema containarium \
                 (for a new database: with GRANT CREATE ON DATABASE), or let CREATE SCHEMA containarium AUTHORIZATION this user",
                standing.pending.len()
            ))
            .into()
        }
        _ => failure,
    }
}
