//! The store on SQLite: one file, in WAL mode, with one connection that writes and a few that read.
//!
//! SQLite has one writer at a time. Here that is one connection, which is also the queue: writers wait for it in turn, instead of
//! polling SQLite's lock and overtaking each other. Every writing transaction is BEGIN IMMEDIATE: a deferred one that read first and
//! writes later fails at once with "database is locked", whatever the busy timeout. The lock that keeps a second daemon out is the data
//! directory's, not this room's.

mod backups;
mod dek_life;
mod deks;
mod error;
mod escrows;
mod key_state;
mod keys;
mod masters;
mod nodes;
mod open;
mod read;
mod reseal;
mod rewrap;
mod rotation;
mod shred;
mod sql;
#[cfg(test)]
mod tests;
mod tokens;
mod trail;
mod write;

use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use sqlx::{Sqlite, SqliteConnection, SqlitePool, Transaction};

use self::error::{commit_error, store_error};
use super::trail::{Scribe, Touched, records_of};
use super::{
    DekMaker, DekOutcome, FirstKeyMaker, FirstKeyOutcome, Found, Intent, Page, Place, Refusal, Sealer, Store,
    StoreError, Survey, Together, Written,
};
use crate::model::{
    Counts, Kid, SecretName, SecretRecord, SecretVersion, StoreKind, Tenant, TenantRecord, VersionRecord,
};

/// A SQLite database.
pub struct SqliteStore {
    writer: SqlitePool,
    readers: SqlitePool,
    /// Who writes the records of changes into their transactions.
    scribe: Option<Arc<dyn Scribe>>,
}

impl SqliteStore {
    /// Opens the database at `path`, making the file (mode 0600) where there is none in a directory that exists, and brings it to this
    /// release's schema. The caller holds the data directory's lock.
    ///
    /// # Errors
    /// [`StoreError::Newer`] where a newer release migrated it; [`StoreError::Unusable`] where it is no database, is damaged, was
    /// migrated by something else, or holds other tables; [`StoreError::Unavailable`] where the file cannot be made, read or written.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        open::open(path).await
    }

    /// Opens the database at `path` for reading only, as another process than the daemon that may have it open. Nothing is migrated; every
    /// change is refused by SQLite itself.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] where there is none; [`StoreError::Newer`] and [`StoreError::Unusable`] where its schema is not this
    /// release's.
    pub async fn open_reading(path: &Path) -> Result<Self, StoreError> {
        open::open_reading(path).await
    }

    /// As [`SqliteStore::open_reading`], for a copy: no file is made beside it.
    ///
    /// # Errors
    /// As [`SqliteStore::open_reading`].
    pub async fn open_copy(path: &Path) -> Result<Self, StoreError> {
        open::open_copy(path).await
    }

    /// Reads the whole file for damage that the rows that are asked for do not show: pages that are torn, lost or of another file. What a
    /// page holds is not judged; ciphertexts and wrapped DEKs say that themselves when they are opened.
    ///
    /// # Errors
    /// [`StoreError::Unusable`] with the first thing that SQLite found.
    pub async fn check_file(&self) -> Result<(), StoreError> {
        open::check_file(&self.readers).await
    }

    /// Copies the database at `from`, which a daemon may have open, into the empty file `to`: one consistent state, whoever writes
    /// meanwhile. The caller makes `to`, with the mode that it is to have, and syncs it. For a process that has neither open.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] where there is no database, or no space; [`StoreError::Unusable`] where it is none or is damaged;
    /// [`StoreError::Refused`] for a name that is not UTF-8, and for a file that is not empty.
    pub async fn copy(from: &Path, to: &Path) -> Result<(), StoreError> {
        backups::copy(from, to).await
    }

    /// Whether the database at `path` holds a key state or rows of tenants; read without changing a byte of it. For a file that this
    /// process has not opened.
    ///
    /// # Errors
    /// As [`SqliteStore::open`].
    pub async fn holds_rows(path: &Path) -> Result<bool, StoreError> {
        open::holds_rows(path).await
    }

    /// A writing transaction. Dropped before its commit it is rolled back, before the writer connection is used again.
    async fn begin(&self) -> Result<Writing, StoreError> {
        let mut transaction = self.writer.begin_with("BEGIN IMMEDIATE").await.map_err(store_error)?;
        let before = if self.scribe.is_some() { changes(&mut transaction).await? } else { 0 };
        Ok(Writing { transaction, before })
    }

    /// Commits, with the record of the change where a scribe writes them and something was changed.
    async fn commit(&self, writing: Writing, touched: &[Touched]) -> Result<(), StoreError> {
        let Writing { mut transaction, before } = writing;
        let Some(scribe) = &self.scribe else { return transaction.commit().await.map_err(commit_error) };
        let is_changed = changes(&mut transaction).await? > before;
        if is_changed {
            trail::insert(&mut transaction, &records_of(&**scribe, touched)?).await?;
        }
        transaction.commit().await.map_err(commit_error)?;
        if is_changed {
            scribe.committed();
        }
        Ok(())
    }

    /// Folds the write-ahead log into the file and empties it: what a change took away stands in the log's older frames until then. A
    /// reader of an older state can hold it up, for no longer than SQLite waits for a lock; the next checkpoint then does it. So a failure
    /// here says nothing of the change, which is committed.
    async fn fold_log(&self) {
        drop(sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&self.writer).await);
    }

    /// A reading transaction: its statements see one state.
    async fn snapshot(&self) -> Result<Transaction<'static, Sqlite>, StoreError> {
        self.readers.begin().await.map_err(store_error)
    }
}

/// A writing transaction.
struct Writing {
    transaction: Transaction<'static, Sqlite>,
    /// How many rows its connection had changed before, where somebody wants to know whether it changed any.
    before: i64,
}

impl Deref for Writing {
    type Target = SqliteConnection;

    fn deref(&self) -> &SqliteConnection {
        &self.transaction
    }
}

impl DerefMut for Writing {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        &mut self.transaction
    }
}

async fn changes(connection: &mut SqliteConnection) -> Result<i64, StoreError> {
    sqlx::query_scalar("SELECT total_changes()").fetch_one(connection).await.map_err(store_error)
}

async fn roll_back(writing: Writing) -> Result<(), StoreError> {
    writing.transaction.rollback().await.map_err(store_error)
}

/// The work in a writing transaction of its own, committed unless it fails.
macro_rules! committed {
    ($store:ident, |$connection:ident| $work:expr) => {{
        let mut transaction = $store.begin().await?;
        let $connection = &mut *transaction;
        let outcome = $work.await?;
        $store.commit(transaction, &[]).await?;
        Ok(outcome)
    }};
}
use committed;

#[async_trait]
impl Store for SqliteStore {
    fn kind(&self) -> StoreKind {
        StoreKind::Sqlite
    }

    async fn ping(&self) -> Result<(), StoreError> {
        read::ping(&self.readers).await
    }

    async fn survey(&self) -> Result<Survey, StoreError> {
        let mut snapshot = self.snapshot().await?;
        keys::survey(&mut snapshot).await
    }

    async fn first_key(&self, maker: &mut dyn FirstKeyMaker) -> Result<FirstKeyOutcome, StoreError> {
        let mut transaction = self.begin().await?;
        let outcome = keys::first_key(&mut transaction, maker).await?;
        match outcome {
            FirstKeyOutcome::Made(_) => self.commit(transaction, &[]).await?,
            FirstKeyOutcome::AlreadyHeld | FirstKeyOutcome::NotMade(_) => roll_back(transaction).await?,
        }
        Ok(outcome)
    }

    async fn read(&self, places: &[Place]) -> Result<Vec<Result<Found, StoreError>>, StoreError> {
        read::places(&self.readers, places).await
    }

    async fn read_tenant(
        &self,
        tenant: &Tenant,
        limit: u32,
    ) -> Result<Result<Page<(SecretRecord, VersionRecord)>, Refusal>, StoreError> {
        read::tenant(&self.readers, tenant, limit).await
    }

    async fn write(
        &self,
        intents: &[Intent],
        together: Together,
        sealer: &dyn Sealer,
    ) -> Result<Vec<Result<Written, Refusal>>, StoreError> {
        if intents.is_empty() {
            return Ok(Vec::new());
        }
        let mut transaction = self.begin().await?;
        match write::batch(&mut transaction, intents, together, sealer).await? {
            write::Batch::Keep(outcomes, touched) => {
                self.commit(transaction, &touched).await?;
                Ok(outcomes)
            }
            write::Batch::Undo(outcomes) => {
                roll_back(transaction).await?;
                Ok(outcomes)
            }
        }
    }

    async fn create_dek(&self, tenant: &Tenant, maker: &dyn DekMaker) -> Result<DekOutcome, StoreError> {
        let mut transaction = self.begin().await?;
        let outcome = keys::create_dek(&mut transaction, tenant, maker).await?;
        match outcome {
            DekOutcome::Active(_) => self.commit(transaction, &[]).await?,
            DekOutcome::Blocked | DekOutcome::Orphans { .. } | DekOutcome::Refused(_) => roll_back(transaction).await?,
        }
        Ok(outcome)
    }

    async fn list(
        &self,
        tenant: &Tenant,
        after: Option<&SecretName>,
        limit: u32,
    ) -> Result<Result<Page<SecretRecord>, Refusal>, StoreError> {
        read::list(&self.readers, tenant, after, limit).await
    }

    async fn versions(
        &self,
        tenant: &Tenant,
        name: &SecretName,
    ) -> Result<Result<(SecretRecord, Vec<VersionRecord>), Refusal>, StoreError> {
        read::versions(&self.readers, tenant, name).await
    }

    async fn delete(&self, tenant: &Tenant, name: &SecretName) -> Result<Result<SecretRecord, Refusal>, StoreError> {
        let mut transaction = self.begin().await?;
        let outcome = write::delete(&mut transaction, tenant, name).await?;
        let touched: Vec<Touched> =
            outcome.iter().map(|secret| Touched::version(secret, secret.current, None)).collect();
        self.commit(transaction, &touched).await?;
        Ok(outcome)
    }

    async fn undelete(&self, tenant: &Tenant, name: &SecretName) -> Result<Result<SecretRecord, Refusal>, StoreError> {
        let mut transaction = self.begin().await?;
        let outcome = write::undelete(&mut transaction, tenant, name).await?;
        let touched: Vec<Touched> =
            outcome.iter().map(|secret| Touched::version(secret, secret.current, None)).collect();
        self.commit(transaction, &touched).await?;
        Ok(outcome)
    }

    async fn destroy(
        &self,
        tenant: &Tenant,
        name: &SecretName,
        versions: &[SecretVersion],
    ) -> Result<Result<SecretRecord, Refusal>, StoreError> {
        let mut transaction = self.begin().await?;
        let outcome = write::destroy(&mut transaction, tenant, name, versions).await?;
        let touched: Vec<Touched> = outcome
            .iter()
            .flat_map(|secret| versions.iter().map(|version| Touched::version(secret, *version, None)))
            .collect();
        self.commit(transaction, &touched).await?;
        Ok(outcome)
    }

    async fn tenants(&self, after: Option<&Tenant>, limit: u32) -> Result<Page<TenantRecord>, StoreError> {
        read::tenants(&self.readers, after, limit).await
    }

    async fn counts(&self) -> Result<Counts, StoreError> {
        let mut snapshot = self.snapshot().await?;
        read::counts(&mut snapshot).await
    }

    async fn has_confirmed_escrow(&self, kid: Kid) -> Result<bool, StoreError> {
        keys::has_confirmed_escrow(&self.readers, kid).await
    }

    async fn close(&self) {
        // The last connection to close folds the write-ahead log in and removes it; that must be the writer.
        self.readers.close().await;
        self.writer.close().await;
    }
}
