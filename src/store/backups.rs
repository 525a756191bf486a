//! What the database remembers of its own copies, and of drills that tried the copies of the master keys.

use async_trait::async_trait;

use super::StoreError;
use crate::model::{DatabaseBackup, Drill};

/// The record of backups and drills: part of a [`Store`](super::Store). It is a memory for operators, and nothing is decided by it.
#[async_trait]
pub trait BackupLog: Send + Sync {
    /// # Errors
    /// [`StoreError::Refused`] where the id was used.
    async fn add_database_backup(&self, backup: &DatabaseBackup) -> Result<(), StoreError>;

    /// The one that holds the newest state: the last by `taken_at`.
    async fn last_database_backup(&self) -> Result<Option<DatabaseBackup>, StoreError>;

    /// # Errors
    /// [`StoreError::Refused`] where the id was used.
    async fn add_drill(&self, drill: &Drill) -> Result<(), StoreError>;

    /// The last by `ran_at`.
    async fn last_drill(&self) -> Result<Option<Drill>, StoreError>;
}
