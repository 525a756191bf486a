use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use containarium::store::SqliteStore;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, SqliteConnection};
use tempfile::TempDir;

use super::{Database, Fixture};

/// A store on a file in a directory of its own.
pub(crate) async fn sqlite() -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&directory.path().join("containarium.db")).await.unwrap();
    let path = directory.path().join("containarium.db");
    Fixture { store: Arc::new(store), database: Box::new(File { path, _directory: Some(directory) }) }
}

/// A database file, which another process may have open.
pub(crate) struct File {
    path: PathBuf,
    _directory: Option<TempDir>,
}

impl File {
    pub(crate) const fn at(path: PathBuf) -> Self {
        Self { path, _directory: None }
    }

    async fn connect(&self) -> SqliteConnection {
        SqliteConnectOptions::new()
            .filename(&self.path)
            .busy_timeout(Duration::from_secs(10))
            .foreign_keys(true)
            .connect()
            .await
            .unwrap()
    }
}

#[async_trait]
impl Database for File {
    async fn run(&self, sql: &str) -> Result<u64, String> {
        let mut connection = self.connect().await;
        let outcome = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await;
        connection.close().await.unwrap();
        outcome.map(|done| done.rows_affected()).map_err(|refusal| refusal.to_string())
    }

    async fn damage(&self, sql: &str) {
        let mut connection = self.connect().await;
        let sql = format!("PRAGMA foreign_keys = OFF; PRAGMA ignore_check_constraints = ON; {sql}");
        let done = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        assert!(done.rows_affected() > 0, "nothing was damaged");
    }

    async fn number(&self, sql: &str) -> i64 {
        let mut connection = self.connect().await;
        let number = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        number
    }

    async fn texts(&self, sql: &str) -> Vec<String> {
        let mut connection = self.connect().await;
        let texts = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        texts
    }

    fn bytes(&self, bytes: &[u8]) -> String {
        bytes.iter().fold("x'".to_owned(), |mut text, byte| {
            write!(text, "{byte:02x}").unwrap();
            text
        }) + "'"
    }
}
