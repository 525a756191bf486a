//! The store on PostgreSQL, for production: several daemons may share one database.
//!
//! Everything lies in schema `containarium`, every name is qualified, and no session keeps any state but its prepared statements.

mod backups;
mod change;
mod columns;
mod deks;
mod failure;
mod keys;
mod locks;
mod masters;
mod migrate;
mod read;
mod tokens;
mod trail;
mod tx;
mod write;

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{ConnectOptions, Connection};
use tokio::time::timeout;

use self::change::{Change, ChangeSecret};
use self::keys::{CreateDek, MakeFirstKey};
use self::read::{ConfirmedEscrow, Count, List, Ping, ReadPlaces, ReadTenant, TakeSurvey, Tenants, Versions};
use self::tx::{run_read, run_tx};
use self::write::WriteBatch;
use super::trail::Scribe;
use super::{
    DekMaker, DekOutcome, FirstKeyMaker, FirstKeyOutcome, Found, Intent, Page, Place, Refusal, Sealer, Store,
    StoreError, Survey, Together, Written,
};
use crate::model::{
    Counts, Kid, SecretName, SecretRecord, SecretVersion, StoreKind, Tenant, TenantRecord, VersionRecord,
};

/// Microseconds by the database's clock, which goes on during a transaction (now() does not).
const NOW: &str = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";

/// Two cores of a database serve about this many busy connections well; several daemons share its max_connections.
const MOST_CONNECTIONS: u32 = 10;
const LONGEST_CONNECT: Duration = Duration::from_secs(5);

/// The parameters that sqlx reads; it logs the value of any other, which may be a password under a misspelt name.
const URL_PARAMETERS: &[&str] = &[
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
    "statement-cache-capacity",
];

/// A PostgreSQL database.
pub struct PostgresStore {
    pool: PgPool,
    /// Who writes the records of changes into their transactions.
    scribe: Option<Arc<dyn Scribe>>,
}

impl PostgresStore {
    /// Connects, brings the schema up to date, and makes sure that the server keeps advisory locks.
    ///
    /// The URL is `postgres://USER:PASSWORD@HOST:PORT/DATABASE`, with libpq's `sslmode` and so on as parameters. It is in no error and
    /// no log.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] where the server cannot be reached or does not let this user in; [`StoreError::Newer`] for a
    /// database of a newer release; [`StoreError::Unusable`] for a server without working locks; [`StoreError::Refused`] for a URL that
    /// is none, missing rights, and a database whose migrations are not this release's.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        let options = connected(parse(url)?).await?;
        let pool = PgPoolOptions::new()
            .max_connections(MOST_CONNECTIONS)
            .acquire_timeout(LONGEST_CONNECT)
            .test_before_acquire(false)
            .connect_lazy_with(options);
        locks::probe(&pool).await?;
        let store = Self { pool, scribe: None };
        migrate::migrate(&store).await?;
        Ok(store)
    }

    /// Connects for reading only, beside daemons or without one. Nothing is migrated; every change is refused by the server itself.
    ///
    /// # Errors
    /// As [`PostgresStore::open`]; [`StoreError::Unusable`] where the schema is not this release's.
    pub async fn open_reading(url: &str) -> Result<Self, StoreError> {
        // As a parameter of the connection's start: a SET would stay in a pooler's session, and hit whoever gets that next.
        let options = parse(url)?.options([("default_transaction_read_only", "on")]);
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(LONGEST_CONNECT)
            .test_before_acquire(false)
            .connect_lazy_with(connected(options).await?);
        migrate::check_current(&pool).await?;
        Ok(Self { pool, scribe: None })
    }

    /// Whether a URL can be used, before anything is started with it. Nothing is connected to.
    ///
    /// # Errors
    /// What is wrong with it, without a word of it.
    pub fn check_url(url: &str) -> Result<(), StoreError> {
        parse(url).map(drop)
    }

    async fn change(
        &self,
        name: &'static str,
        mut change: ChangeSecret<'_>,
    ) -> Result<Result<SecretRecord, Refusal>, StoreError> {
        run_tx(self, name, &mut change).await
    }
}

/// The options again, after one connection by them. Alone first: the pool would retry a refused connection until its time is up, and then
/// not know why.
async fn connected(options: PgConnectOptions) -> Result<PgConnectOptions, StoreError> {
    match timeout(LONGEST_CONNECT, options.connect()).await {
        Ok(Ok(connection)) => drop(connection.close().await),
        Ok(Err(error)) => return Err(failure::describe(&error)),
        Err(_) => return Err(StoreError::Unavailable("the server did not answer within 5 seconds".into())),
    }
    Ok(options)
}

fn parse(url: &str) -> Result<PgConnectOptions, StoreError> {
    let refused = |words: String| Err(StoreError::Refused(words));
    let known = |pair: &str| {
        let key = pair.split_once('=').map_or(pair, |(key, _)| key);
        key.is_empty() || key.starts_with("options[") || URL_PARAMETERS.contains(&key)
    };
    let query = url.split_once('?').map_or("", |(_, query)| query);
    if !query.split('&').all(known) {
        return refused(format!("the database URL has an unknown parameter; known are {}", URL_PARAMETERS.join(", ")));
    }
    let has_scheme = url.starts_with("postgres://") || url.starts_with("postgresql://");
    match PgConnectOptions::from_str(url) {
        Ok(options) if has_scheme => Ok(options.application_name("containarium").disable_statement_logging()),
        // Not the parser's own words: they quote what they could not read, and any part of it may be the password.
        _ => refused(
            "the database URL is not of the form postgres://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=… \
             (special characters of a password are percent-encoded)"
                .into(),
        ),
    }
}

#[async_trait]
impl Store for PostgresStore {
    fn kind(&self) -> StoreKind {
        StoreKind::Postgres
    }

    async fn ping(&self) -> Result<(), StoreError> {
        run_read(&self.pool, &Ping).await
    }

    async fn survey(&self) -> Result<Survey, StoreError> {
        run_read(&self.pool, &TakeSurvey).await
    }

    async fn first_key(&self, maker: &mut dyn FirstKeyMaker) -> Result<FirstKeyOutcome, StoreError> {
        run_tx(self, "first_key", &mut MakeFirstKey { maker, made: None }).await
    }

    async fn read(&self, places: &[Place]) -> Result<Vec<Result<Found, StoreError>>, StoreError> {
        run_read(&self.pool, &ReadPlaces(places)).await
    }

    async fn read_tenant(
        &self,
        tenant: &Tenant,
        limit: u32,
    ) -> Result<Result<Page<(SecretRecord, VersionRecord)>, Refusal>, StoreError> {
        run_read(&self.pool, &ReadTenant { tenant, limit }).await
    }

    async fn write(
        &self,
        intents: &[Intent],
        together: Together,
        sealer: &dyn Sealer,
    ) -> Result<Vec<Result<Written, Refusal>>, StoreError> {
        write::check_distinct(intents)?;
        run_tx(self, "write", &mut WriteBatch { intents, together, sealer, touched: Vec::new() }).await
    }

    async fn create_dek(&self, tenant: &Tenant, maker: &dyn DekMaker) -> Result<DekOutcome, StoreError> {
        run_tx(self, "create_dek", &mut CreateDek { tenant, maker }).await
    }

    async fn list(
        &self,
        tenant: &Tenant,
        after: Option<&SecretName>,
        limit: u32,
    ) -> Result<Result<Page<SecretRecord>, Refusal>, StoreError> {
        run_read(&self.pool, &List { tenant, after, limit }).await
    }

    async fn versions(
        &self,
        tenant: &Tenant,
        name: &SecretName,
    ) -> Result<Result<(SecretRecord, Vec<VersionRecord>), Refusal>, StoreError> {
        run_read(&self.pool, &Versions { tenant, name }).await
    }

    async fn delete(&self, tenant: &Tenant, name: &SecretName) -> Result<Result<SecretRecord, Refusal>, StoreError> {
        self.change("delete", ChangeSecret { tenant, name, change: Change::Delete, touched: Vec::new() }).await
    }

    async fn undelete(&self, tenant: &Tenant, name: &SecretName) -> Result<Result<SecretRecord, Refusal>, StoreError> {
        self.change("undelete", ChangeSecret { tenant, name, change: Change::Undelete, touched: Vec::new() }).await
    }

    async fn destroy(
        &self,
        tenant: &Tenant,
        name: &SecretName,
        versions: &[SecretVersion],
    ) -> Result<Result<SecretRecord, Refusal>, StoreError> {
        self.change("destroy", ChangeSecret { tenant, name, change: Change::Destroy(versions), touched: Vec::new() })
            .await
    }

    async fn tenants(&self, after: Option<&Tenant>, limit: u32) -> Result<Page<TenantRecord>, StoreError> {
        run_read(&self.pool, &Tenants { after, limit }).await
    }

    async fn counts(&self) -> Result<Counts, StoreError> {
        run_read(&self.pool, &Count).await
    }

    async fn has_confirmed_escrow(&self, kid: Kid) -> Result<bool, StoreError> {
        run_read(&self.pool, &ConfirmedEscrow(kid)).await
    }

    async fn close(&self) {
        self.pool.close().await;
    }
}
