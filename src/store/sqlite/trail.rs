//! The audit trail's tables.

use std::sync::Arc;

use async_trait::async_trait;
use sqlx::SqliteConnection;

use super::error::store_error;
use super::sql::now;
use super::write::one_row;
use super::{SqliteStore, StoreError, committed};
use crate::model::{BootId, NodeId};
use crate::store::Store;
use crate::store::rows::{ChainColumns, StartColumns, TrailColumns, keyset, trail_column};
use crate::store::trail::{ChainHead, Linked, Scribe, Trail, TrailRow, head_is_elsewhere};

macro_rules! trail_columns {
    () => {
        "SELECT node_id, boot_id, record_no, at, identity, action, tenant, name, version, blob_sha256, outcome, record, mac, position, \
         link FROM audit "
    };
}

#[async_trait]
impl Trail for SqliteStore {
    fn recorded(&self, scribe: Arc<dyn Scribe>) -> Arc<dyn Store> {
        Arc::new(Self { writer: self.writer.clone(), readers: self.readers.clone(), scribe: Some(scribe) })
    }

    async fn insert(&self, rows: &[TrailRow]) -> Result<(), StoreError> {
        committed!(self, |tx| insert(tx, rows))
    }

    async fn unlinked(
        &self,
        node: NodeId,
        after: Option<(BootId, u64)>,
        limit: u32,
    ) -> Result<Vec<TrailRow>, StoreError> {
        const SQL: &str = concat!(
            trail_columns!(),
            "WHERE node_id = ?1 AND position IS NULL AND (boot_id, record_no) > (?2, ?3) ORDER BY boot_id, record_no LIMIT ?4"
        );
        let (boot, number) = keyset(after)?;
        let query = sqlx::query_as(SQL).bind(node.to_string()).bind(boot).bind(number).bind(i64::from(limit));
        let rows: Vec<TrailColumns> = query.fetch_all(&self.readers).await.map_err(store_error)?;
        rows.into_iter().map(TrailColumns::row).collect()
    }

    async fn link(&self, places: &[(u64, Linked)], head: &ChainHead) -> Result<(), StoreError> {
        committed!(self, |tx| link(tx, places, head))
    }

    async fn append(&self, rows: &[TrailRow], from: Linked, head: &ChainHead) -> Result<(), StoreError> {
        committed!(self, |tx| append(tx, rows, from, head))
    }

    async fn chains(&self) -> Result<Vec<ChainHead>, StoreError> {
        let rows: Vec<ChainColumns> = sqlx::query_as(
            "SELECT node_id, boot_id, kind, started_at, previous_boot_id, previous_link, position, link FROM audit_chains \
             ORDER BY started_at, node_id, boot_id, kind",
        )
        .fetch_all(&self.readers)
        .await
        .map_err(store_error)?;
        rows.into_iter().map(ChainColumns::head).collect()
    }

    async fn trail(
        &self,
        node: NodeId,
        boot: BootId,
        after: Option<u64>,
        limit: u32,
    ) -> Result<Vec<TrailRow>, StoreError> {
        const SQL: &str = concat!(
            trail_columns!(),
            "WHERE node_id = ?1 AND boot_id = ?2 AND record_no > ?3 ORDER BY record_no LIMIT ?4"
        );
        let query = sqlx::query_as(SQL)
            .bind(node.to_string())
            .bind(boot.to_string())
            .bind(after.map_or(Ok(-1), trail_column)?)
            .bind(i64::from(limit));
        let rows: Vec<TrailColumns> = query.fetch_all(&self.readers).await.map_err(store_error)?;
        rows.into_iter().map(TrailColumns::row).collect()
    }

    async fn linked(&self, node: NodeId, boot: BootId, after: u64, limit: u32) -> Result<Vec<TrailRow>, StoreError> {
        const SQL: &str = concat!(
            trail_columns!(),
            "WHERE node_id = ?1 AND boot_id = ?2 AND position > ?3 ORDER BY position LIMIT ?4"
        );
        let query = sqlx::query_as(SQL)
            .bind(node.to_string())
            .bind(boot.to_string())
            .bind(trail_column(after)?)
            .bind(i64::from(limit));
        let rows: Vec<TrailColumns> = query.fetch_all(&self.readers).await.map_err(store_error)?;
        rows.into_iter().map(TrailColumns::row).collect()
    }

    async fn trail_of(&self, action: &str) -> Result<Vec<TrailRow>, StoreError> {
        const SQL: &str = concat!(trail_columns!(), "WHERE action = ?1 ORDER BY node_id, boot_id, record_no");
        let rows: Vec<TrailColumns> =
            sqlx::query_as(SQL).bind(action).fetch_all(&self.readers).await.map_err(store_error)?;
        rows.into_iter().map(TrailColumns::row).collect()
    }

    async fn prune(&self, of: (NodeId, BootId), upto: u64, record: &TrailRow) -> Result<u64, StoreError> {
        committed!(self, |tx| prune(tx, of, upto, record))
    }

    async fn starts(&self) -> Result<Vec<(NodeId, BootId)>, StoreError> {
        let rows: Vec<StartColumns> =
            sqlx::query_as("SELECT DISTINCT node_id, boot_id FROM audit ORDER BY node_id, boot_id")
                .fetch_all(&self.readers)
                .await
                .map_err(store_error)?;
        rows.into_iter().map(StartColumns::start).collect()
    }
}

pub(super) async fn insert(connection: &mut SqliteConnection, rows: &[TrailRow]) -> Result<(), StoreError> {
    for row in rows {
        let place = row.place.as_ref();
        let insert = sqlx::query(
            "INSERT INTO audit (node_id, boot_id, record_no, at, identity, action, tenant, name, version, blob_sha256, outcome, record, \
             mac, position, link) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
        )
        .bind(row.node.to_string())
        .bind(row.boot.to_string())
        .bind(trail_column(row.number)?)
        .bind(row.at.0)
        .bind(row.identity.as_str())
        .bind(row.action.as_str())
        .bind(row.tenant.as_deref())
        .bind(row.name.as_deref())
        .bind(row.version.map(trail_column).transpose()?)
        .bind(row.blob_sha256.as_ref().map(<[u8; 32]>::as_slice))
        .bind(row.outcome.as_str())
        .bind(row.record.as_slice())
        .bind(row.mac.as_slice())
        .bind(place.map(|place| trail_column(place.position)).transpose()?)
        .bind(place.map(|place| place.link.as_slice()));
        one_row(&insert.execute(&mut *connection).await.map_err(store_error)?)?;
    }
    Ok(())
}

async fn append(
    connection: &mut SqliteConnection,
    rows: &[TrailRow],
    from: Linked,
    head: &ChainHead,
) -> Result<(), StoreError> {
    const MOVE: &str = concat!(
        "UPDATE audit_chains SET position = ?4, link = ?5, updated_at = ",
        now!(),
        " WHERE node_id = ?1 AND boot_id = ?2 AND kind = ?3 AND position = ?6 AND link = ?7"
    );
    let moved = sqlx::query(MOVE)
        .bind(head.node.to_string())
        .bind(head.boot.to_string())
        .bind(head.kind.column())
        .bind(trail_column(head.end.position)?)
        .bind(head.end.link.as_slice())
        .bind(trail_column(from.position)?)
        .bind(from.link.as_slice());
    let moved = moved.execute(&mut *connection).await.map_err(store_error)?.rows_affected();
    if moved != 1 {
        return Err(head_is_elsewhere());
    }
    insert(connection, rows).await
}

async fn prune(
    connection: &mut SqliteConnection,
    (node, boot): (NodeId, BootId),
    upto: u64,
    record: &TrailRow,
) -> Result<u64, StoreError> {
    insert(connection, std::slice::from_ref(record)).await?;
    let removed = sqlx::query(
        "DELETE FROM audit WHERE node_id = ?1 AND boot_id = ?2 AND position <= ?3 AND action NOT IN ('audit.prune', 'token.revoke', 'admin.accept-restore') \
         AND NOT (blob_sha256 IS NOT NULL AND EXISTS (SELECT 1 FROM secret_versions v WHERE v.tenant = audit.tenant AND v.name = audit.name \
         AND v.version = audit.version AND v.ciphertext IS NOT NULL))",
    )
    .bind(node.to_string())
    .bind(boot.to_string())
    .bind(trail_column(upto)?)
    .execute(connection)
    .await
    .map_err(store_error)?;
    Ok(removed.rows_affected())
}

async fn link(connection: &mut SqliteConnection, places: &[(u64, Linked)], head: &ChainHead) -> Result<(), StoreError> {
    const HEAD: &str = concat!(
        "INSERT INTO audit_chains (node_id, boot_id, kind, started_at, previous_boot_id, previous_link, position, link, updated_at) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ",
        now!(),
        ") ON CONFLICT (node_id, boot_id, kind) DO UPDATE SET position = excluded.position, link = excluded.link, \
         updated_at = excluded.updated_at"
    );
    let (node, boot) = (head.node.to_string(), head.boot.to_string());
    for (number, place) in places {
        let update = sqlx::query(
            "UPDATE audit SET position = ?4, link = ?5 WHERE node_id = ?1 AND boot_id = ?2 AND record_no = ?3 AND position IS NULL",
        )
        .bind(node.as_str())
        .bind(boot.as_str())
        .bind(trail_column(*number)?)
        .bind(trail_column(place.position)?)
        .bind(place.link.as_slice());
        one_row(&update.execute(&mut *connection).await.map_err(store_error)?)?;
    }
    let previous = head.previous.as_ref();
    let upsert = sqlx::query(HEAD)
        .bind(node.as_str())
        .bind(boot.as_str())
        .bind(head.kind.column())
        .bind(head.started_at.0)
        .bind(previous.map(|(boot, _)| boot.to_string()))
        .bind(previous.map(|(_, link)| link.as_slice()))
        .bind(trail_column(head.end.position)?)
        .bind(head.end.link.as_slice());
    one_row(&upsert.execute(connection).await.map_err(store_error)?)
}
