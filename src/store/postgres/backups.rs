//! The record of backups and drills.

use async_trait::async_trait;
use sqlx::postgres::PgConnection;

use super::failure::Failure;
use super::tx::{End, Read, Work, run_read, run_tx};
use super::{NOW, PostgresStore};
use crate::model::{DatabaseBackup, Drill};
use crate::store::StoreError;
use crate::store::backups::BackupLog;
use crate::store::rows::{DatabaseBackupRow, DrillRow, column, durable_kids_column};

#[async_trait]
impl BackupLog for PostgresStore {
    async fn add_database_backup(&self, backup: &DatabaseBackup) -> Result<(), StoreError> {
        run_tx(self, "add_database_backup", &mut AddBackup(backup)).await
    }

    async fn last_database_backup(&self) -> Result<Option<DatabaseBackup>, StoreError> {
        run_read(&self.pool, &LastBackup).await
    }

    async fn add_drill(&self, drill: &Drill) -> Result<(), StoreError> {
        run_tx(self, "add_drill", &mut AddDrill(drill)).await
    }

    async fn last_drill(&self) -> Result<Option<Drill>, StoreError> {
        run_read(&self.pool, &LastDrill).await
    }
}

struct AddBackup<'a>(&'a DatabaseBackup);

#[async_trait]
impl Work for AddBackup<'_> {
    type Output = ();

    async fn run(&mut self, tx: &mut PgConnection) -> Result<End<()>, Failure> {
        let at: i64 = sqlx::query_scalar(NOW).fetch_one(&mut *tx).await?;
        sqlx::query(
            "INSERT INTO containarium.database_backups (id, taken_at, recorded_at, target, epoch, generation) \
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(&self.0.id)
        .bind(self.0.taken_at.0)
        .bind(at)
        .bind(&self.0.target)
        .bind(column(self.0.epoch))
        .bind(column(self.0.generation))
        .execute(tx)
        .await?;
        Ok(End::Commit(()))
    }
}

struct LastBackup;

#[async_trait]
impl Read for LastBackup {
    type Output = Option<DatabaseBackup>;

    async fn run(&self, connection: &mut PgConnection) -> Result<Self::Output, Failure> {
        let row: Option<DatabaseBackupRow> = sqlx::query_as(
            "SELECT id, taken_at, target, epoch, generation FROM containarium.database_backups \
             ORDER BY taken_at DESC, recorded_at DESC, id COLLATE \"C\" LIMIT 1",
        )
        .fetch_optional(connection)
        .await?;
        Ok(row.map(DatabaseBackupRow::record).transpose()?)
    }
}

struct AddDrill<'a>(&'a Drill);

#[async_trait]
impl Work for AddDrill<'_> {
    type Output = ();

    async fn run(&mut self, tx: &mut PgConnection) -> Result<End<()>, Failure> {
        let at: i64 = sqlx::query_scalar(NOW).fetch_one(&mut *tx).await?;
        sqlx::query(
            "INSERT INTO containarium.drills (id, ran_at, recorded_at, source, kids, deks_opened, deks_failed) \
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(&self.0.id)
        .bind(self.0.ran_at.0)
        .bind(at)
        .bind(&self.0.source)
        .bind(durable_kids_column(&self.0.kids))
        .bind(column(self.0.deks_opened))
        .bind(column(self.0.deks_failed))
        .execute(tx)
        .await?;
        Ok(End::Commit(()))
    }
}

struct LastDrill;

#[async_trait]
impl Read for LastDrill {
    type Output = Option<Drill>;

    async fn run(&self, connection: &mut PgConnection) -> Result<Self::Output, Failure> {
        let row: Option<DrillRow> = sqlx::query_as(
            "SELECT id, ran_at, source, kids, deks_opened, deks_failed FROM containarium.drills \
             ORDER BY ran_at DESC, recorded_at DESC, id COLLATE \"C\" LIMIT 1",
        )
        .fetch_optional(connection)
        .await?;
        Ok(row.map(DrillRow::record).transpose()?)
    }
}
