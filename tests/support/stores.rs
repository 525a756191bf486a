//! Fresh stores for tests, each with a way past the store to the same database.

pub(crate) mod postgres;
pub(crate) mod sqlite;

pub(crate) use postgres::postgres;
pub(crate) use sqlite::sqlite;

use std::sync::Arc;

use async_trait::async_trait;
use containarium::store::Store;

/// A store on an empty, migrated database of its own, which goes away with the fixture.
pub(crate) struct Fixture {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) database: Box<dyn Database>,
}

/// The database behind a store, for changes and damage that the store itself would not do. Tables are named without a schema.
#[async_trait]
pub(crate) trait Database: Send + Sync {
    /// Runs one statement in a transaction of its own with every guard on, under the locks that the store's own writers hold (so that
    /// only the statement itself can be refused). Answers the rows that it affected, or the database's refusal.
    async fn run(&self, sql: &str) -> Result<u64, String>;

    /// Runs one statement with foreign keys and CHECKs off. Triggers may stay on. Guards may stay off for later statements of `damage`
    /// and `run` alike.
    async fn damage(&self, sql: &str);

    /// The one number that a query answers.
    async fn number(&self, sql: &str) -> i64;

    /// The first column of a query, as texts; where a test needs it.
    async fn texts(&self, sql: &str) -> Vec<String> {
        unreachable!("{sql}")
    }

    /// Bytes as a literal of this database's SQL.
    fn bytes(&self, bytes: &[u8]) -> String;
}
