//! Rows of backups and drills.

use sqlx::FromRow;

use super::RowName;
use super::rotation::durable_kids;
use crate::model::{DatabaseBackup, Drill, Micros};
use crate::store::StoreError;

#[derive(FromRow)]
pub(in crate::store) struct DatabaseBackupRow {
    id: String,
    taken_at: i64,
    target: String,
    epoch: i64,
    generation: i64,
}

impl DatabaseBackupRow {
    /// # Errors
    /// [`StoreError::Corrupt`]
    pub(in crate::store) fn record(self) -> Result<DatabaseBackup, StoreError> {
        let row = RowName::DatabaseBackup(&self.id);
        let epoch = row.need(u64::try_from(self.epoch).ok(), "epoch")?;
        let generation = row.need(u64::try_from(self.generation).ok(), "generation")?;
        let taken_at = Micros(self.taken_at);
        Ok(DatabaseBackup { taken_at, target: self.target, epoch, generation, id: self.id })
    }
}

#[derive(FromRow)]
pub(in crate::store) struct DrillRow {
    id: String,
    ran_at: i64,
    source: String,
    kids: String,
    deks_opened: i64,
    deks_failed: i64,
}

impl DrillRow {
    /// # Errors
    /// [`StoreError::Corrupt`]
    pub(in crate::store) fn record(self) -> Result<Drill, StoreError> {
        let row = RowName::Drill(&self.id);
        let kids = row.need(durable_kids(&self.kids), "kids")?;
        let deks_opened = row.need(u64::try_from(self.deks_opened).ok(), "deks_opened")?;
        let deks_failed = row.need(u64::try_from(self.deks_failed).ok(), "deks_failed")?;
        Ok(Drill { ran_at: Micros(self.ran_at), source: self.source, kids, deks_opened, deks_failed, id: self.id })
    }
}

/// A count as a column holds it. No count of ours comes near the end of it.
pub(in crate::store) fn column(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
