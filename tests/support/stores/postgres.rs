//! Databases on the PostgreSQL server of DATABASE_URL, one for each test.

pub(crate) mod server;
pub(crate) mod wire;

use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use containarium::store::PostgresStore;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor};

use super::{Database, Fixture};

/// A store on a database of its own.
pub(crate) async fn postgres() -> Fixture {
    PostgresDatabase::create().await.fixture().await
}

/// An empty database, dropped at the end whoever is still connected.
pub(crate) struct PostgresDatabase {
    pub(crate) url: String,
    name: String,
    server: PgConnectOptions,
}

impl PostgresDatabase {
    pub(crate) async fn create() -> Arc<Self> {
        Self::create_on(&environment("DATABASE_URL")).await
    }

    /// On a server of the test's own.
    pub(crate) async fn create_on(server: &str) -> Arc<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}_{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let separator = if server.contains('?') { '&' } else { '?' };
        let url = format!("{server}{separator}dbname={name}");
        let server = PgConnectOptions::from_str(server).unwrap();
        let mut connection = server.connect().await.unwrap();
        connection.execute(AssertSqlSafe(format!("CREATE DATABASE {name} TEMPLATE template0"))).await.unwrap();
        connection.close().await.unwrap();
        Arc::new(Self { url, name, server })
    }

    pub(crate) async fn fixture(self: &Arc<Self>) -> Fixture {
        self.fixture_at("").await
    }

    /// Keeps the database as it is now, under another name; nobody else may be connected.
    pub(crate) async fn keep_copy(&self) {
        let name = &self.name;
        self.on_server(&[format!("CREATE DATABASE {name}_copy TEMPLATE {name}")]).await;
    }

    /// Puts the copy in the database's place, whoever is connected.
    pub(crate) async fn put_copy_back(&self) {
        let name = &self.name;
        let forced = format!("DROP DATABASE {name} WITH (FORCE)");
        self.on_server(&[forced, format!("ALTER DATABASE {name}_copy RENAME TO {name}")]).await;
    }

    /// Puts the copy in the database's place, and keeps that as the copy; nobody may be connected.
    pub(crate) async fn swap_with_copy(&self) {
        let name = &self.name;
        let turns = [("", "_aside"), ("_copy", ""), ("_aside", "_copy")];
        let rename = |(from, to): &(&str, &str)| format!("ALTER DATABASE {name}{from} RENAME TO {name}{to}");
        self.on_server(&turns.iter().map(rename).collect::<Vec<_>>()).await;
    }

    async fn on_server(&self, statements: &[String]) {
        let mut connection = self.server.connect().await.unwrap();
        for statement in statements {
            connection.execute(AssertSqlSafe(statement.clone())).await.unwrap();
        }
        connection.close().await.unwrap();
    }

    /// With further parameters for the URL.
    pub(crate) async fn fixture_at(self: &Arc<Self>, parameters: &str) -> Fixture {
        let store = PostgresStore::open(&format!("{}{parameters}", self.url)).await.unwrap();
        Fixture { store: Arc::new(store), database: Box::new(Arc::clone(self)) }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) const fn options(&self) -> &PgConnectOptions {
        &self.server
    }

    /// A connection past the store, without any of its settings.
    pub(crate) async fn connect(&self) -> PgConnection {
        self.server.clone().database(&self.name).connect().await.unwrap()
    }

    /// Statements, each by itself, without a lock and with full names.
    pub(crate) async fn execute(&self, sql: &str) {
        let mut connection = self.connect().await;
        connection.execute(AssertSqlSafe(sql.replace("{database}", &self.name))).await.unwrap();
        connection.close().await.unwrap();
    }
}

/// # Panics
/// Without it: a run that skipped the database would be green for nothing.
#[expect(clippy::disallowed_methods, reason = "tests are started by a script that says where the server is")]
pub(crate) fn environment(name: &str) -> String {
    std::env::var(name)
        .unwrap_or_else(|_| panic!("{name} is not set: run ./scripts/test, or this command under ./scripts/with-pg"))
}

/// In one transaction: the master lock, short names, and the statement.
async fn run(connection: &mut PgConnection, before: &'static str, sql: &str) -> Result<u64, sqlx::Error> {
    let mut tx = connection.begin().await?;
    tx.execute("SELECT pg_advisory_xact_lock(1668247151, 1); SET LOCAL search_path = containarium").await?;
    tx.execute(before).await?;
    let done = tx.execute(AssertSqlSafe(sql.to_owned())).await?;
    tx.commit().await?;
    Ok(done.rows_affected())
}

#[async_trait]
impl Database for Arc<PostgresDatabase> {
    async fn run(&self, sql: &str) -> Result<u64, String> {
        run(&mut self.connect().await, "", sql).await.map_err(|error| error.to_string())
    }

    /// The constraints go for good: PostgreSQL cannot switch a CHECK off.
    async fn damage(&self, sql: &str) {
        let without_guards = "DO $$ DECLARE c record; BEGIN \
                FOR c IN SELECT conrelid::regclass AS of, conname FROM pg_constraint \
                    WHERE contype IN ('c', 'f') AND connamespace = 'containarium'::regnamespace \
                LOOP EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', c.of, c.conname); END LOOP; \
            END $$; \
            SET LOCAL session_replication_role = replica";
        run(&mut self.connect().await, without_guards, sql).await.unwrap();
    }

    async fn number(&self, sql: &str) -> i64 {
        let mut connection = self.connect().await;
        let mut tx = connection.begin().await.unwrap();
        tx.execute("SET LOCAL search_path = containarium").await.unwrap();
        sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(&mut *tx).await.unwrap()
    }

    async fn texts(&self, sql: &str) -> Vec<String> {
        let mut connection = self.connect().await;
        let mut tx = connection.begin().await.unwrap();
        tx.execute("SET LOCAL search_path = containarium").await.unwrap();
        sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_all(&mut *tx).await.unwrap()
    }

    fn bytes(&self, bytes: &[u8]) -> String {
        format!("'\\x{}'::bytea", data_encoding::HEXLOWER.encode(bytes))
    }
}

impl Drop for PostgresDatabase {
    /// On a thread of its own: a drop cannot wait for a future, and the test's runtime may be going down.
    fn drop(&mut self) {
        let (server, name) = (self.server.clone(), self.name.clone());
        let dropped = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let mut connection = server.connect().await?;
                connection.execute(AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)"))).await?;
                connection.close().await
            })
        });
        // A test that failed has more to say than this.
        if !std::thread::panicking() {
            dropped.join().unwrap().unwrap();
        }
    }
}
