//! The record of backups and drills, and the copy of a database itself.

use std::path::Path;

use async_trait::async_trait;
use sqlx::sqlite::SqliteConnection;
use sqlx::{ConnectOptions, Connection};

use super::error::store_error;
use super::open::reading;
use super::sql::now;
use super::{SqliteStore, StoreError, committed};
use crate::model::{DatabaseBackup, Drill};
use crate::store::backups::BackupLog;
use crate::store::rows::{DatabaseBackupRow, DrillRow, column, durable_kids_column};

/// Copies the database at `from` into `to`, an empty file that is there: VACUUM INTO reads one state of it, whoever writes meanwhile.
/// In this process `from` must not be open in any other way.
pub(super) async fn copy(from: &Path, to: &Path) -> Result<(), StoreError> {
    // The target is named as text: a path that is not UTF-8 would become another one.
    let name = to.to_str().ok_or_else(|| StoreError::Refused(format!("{} is not UTF-8", to.display())))?;
    let mut connection = reading(from)?.connect().await.map_err(store_error)?;
    let copied = sqlx::query("VACUUM INTO ?1").bind(name).execute(&mut connection).await.map_err(store_error);
    let closed = connection.close().await.map_err(store_error);
    copied.map(drop).and(closed)
}

#[async_trait]
impl BackupLog for SqliteStore {
    async fn add_database_backup(&self, backup: &DatabaseBackup) -> Result<(), StoreError> {
        committed!(self, |tx| add_backup(tx, backup))
    }

    async fn last_database_backup(&self) -> Result<Option<DatabaseBackup>, StoreError> {
        let query = sqlx::query_as(
            "SELECT id, taken_at, target, epoch, generation FROM database_backups ORDER BY taken_at DESC, recorded_at DESC, id LIMIT 1",
        );
        let row: Option<DatabaseBackupRow> = query.fetch_optional(&self.readers).await.map_err(store_error)?;
        row.map(DatabaseBackupRow::record).transpose()
    }

    async fn add_drill(&self, drill: &Drill) -> Result<(), StoreError> {
        committed!(self, |tx| add_drill(tx, drill))
    }

    async fn last_drill(&self) -> Result<Option<Drill>, StoreError> {
        let query = sqlx::query_as(
            "SELECT id, ran_at, source, kids, deks_opened, deks_failed FROM drills ORDER BY ran_at DESC, recorded_at DESC, id LIMIT 1",
        );
        let row: Option<DrillRow> = query.fetch_optional(&self.readers).await.map_err(store_error)?;
        row.map(DrillRow::record).transpose()
    }
}

async fn add_backup(connection: &mut SqliteConnection, backup: &DatabaseBackup) -> Result<(), StoreError> {
    const SQL: &str = concat!(
        "INSERT INTO database_backups (id, taken_at, recorded_at, target, epoch, generation) SELECT ?1, ?2, ",
        now!(),
        ", ?3, ?4, ?5"
    );
    let insert = sqlx::query(SQL)
        .bind(&backup.id)
        .bind(backup.taken_at.0)
        .bind(&backup.target)
        .bind(column(backup.epoch))
        .bind(column(backup.generation));
    insert.execute(connection).await.map(drop).map_err(store_error)
}

async fn add_drill(connection: &mut SqliteConnection, drill: &Drill) -> Result<(), StoreError> {
    const SQL: &str = concat!(
        "INSERT INTO drills (id, ran_at, recorded_at, source, kids, deks_opened, deks_failed) SELECT ?1, ?2, ",
        now!(),
        ", ?3, ?4, ?5, ?6"
    );
    let insert = sqlx::query(SQL)
        .bind(&drill.id)
        .bind(drill.ran_at.0)
        .bind(&drill.source)
        .bind(durable_kids_column(&drill.kids))
        .bind(column(drill.deks_opened))
        .bind(column(drill.deks_failed));
    insert.execute(connection).await.map(drop).map_err(store_error)
}
