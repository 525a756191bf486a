//! Nodes and the lease of a rotation. The daemon's lock on the data directory leaves one node here; the rows are kept all the same, so
//! that what a rotation asks of nodes is one thing on both stores.

use std::time::Duration;

use sqlx::{Executor, Sqlite, SqliteConnection};

use super::error::store_error;
use super::sql::now;
use super::write::one_row;
use super::{StoreError, key_state};
use crate::model::{Lease, Micros, NodeId, NodeRecord};
use crate::store::guards;
use crate::store::masters::{Beat, Beaten, ForgetOutcome, Holder, Leased};
use crate::store::rows::{NodeRow, durable_kids_column, micros};

macro_rules! node_columns {
    () => {
        concat!("SELECT node_id, boot_id, durable_kids, epoch, seen_at, ", now!(), " AS now FROM nodes")
    };
}

pub(super) async fn heartbeat(connection: &mut SqliteConnection, beat: &Beat<'_>) -> Result<Beaten, StoreError> {
    const SEEN: &str = concat!("SELECT boot_id, seen_at, ", now!(), " FROM nodes WHERE node_id = ?1");
    const SQL: &str = concat!(
        "INSERT INTO nodes (node_id, boot_id, durable_kids, epoch, seen_at) SELECT ?1, ?2, ?3, ?4, ",
        now!(),
        " WHERE TRUE ON CONFLICT (node_id) DO UPDATE SET boot_id = excluded.boot_id, \
          durable_kids = excluded.durable_kids, epoch = excluded.epoch, seen_at = excluded.seen_at"
    );
    // Its own columns only: a row whose list of kids is damaged is mended by its node.
    let row = sqlx::query_as(SEEN).bind(beat.holder.node.to_string()).fetch_optional(&mut *connection).await;
    let seen: Option<(String, i64, i64)> = row.map_err(store_error)?;
    if let Some((boot, seen_at, now)) = seen
        && let Some(boot) = guards::taken(&boot, Micros(seen_at), Micros(now), beat)
    {
        return Ok(Beaten::Taken { boot, seen_at: Micros(seen_at) });
    }
    let upsert = sqlx::query(SQL)
        .bind(beat.holder.node.to_string())
        .bind(beat.holder.boot.to_string())
        .bind(durable_kids_column(beat.durable_kids))
        .bind(key_state::counter(beat.epoch)?);
    one_row(&upsert.execute(connection).await.map_err(store_error)?)?;
    Ok(Beaten::Seen)
}

pub(super) async fn all<'c>(executor: impl Executor<'c, Database = Sqlite>) -> Result<Vec<NodeRecord>, StoreError> {
    const SQL: &str = concat!(node_columns!(), " ORDER BY node_id");
    let rows: Vec<NodeRow> = sqlx::query_as(SQL).fetch_all(executor).await.map_err(store_error)?;
    rows.into_iter().map(NodeRow::record).collect()
}

pub(super) async fn forget(connection: &mut SqliteConnection, node: NodeId) -> Result<ForgetOutcome, StoreError> {
    const SQL: &str = concat!(node_columns!(), " WHERE node_id = ?1");
    let query = sqlx::query_as(SQL).bind(node.to_string());
    let row: Option<NodeRow> = query.fetch_optional(&mut *connection).await.map_err(store_error)?;
    match row.map(NodeRow::record).transpose()? {
        None => Ok(ForgetOutcome::Unknown),
        Some(record) if record.live => Ok(ForgetOutcome::Live(record)),
        Some(_) => {
            let delete = sqlx::query("DELETE FROM nodes WHERE node_id = ?1").bind(node.to_string());
            one_row(&delete.execute(connection).await.map_err(store_error)?)?;
            Ok(ForgetOutcome::Forgotten)
        }
    }
}

pub(super) async fn take_lease(
    connection: &mut SqliteConnection,
    holder: Holder,
    lasting: Duration,
) -> Result<Leased, StoreError> {
    let mut state = key_state::held(connection).await?;
    let now = key_state::now(connection).await?;
    if let Some(lease) = state.lease.filter(|lease| guards::keeps_out(lease, holder.node, now)) {
        return Ok(Leased::HeldBy(lease));
    }
    let until = Micros(now.0.saturating_add(micros(lasting)));
    state.lease = Some(Lease { node: holder.node, boot: holder.boot, until });
    key_state::store(connection, &state).await?;
    Ok(Leased::Until(until))
}

pub(super) async fn release_lease(connection: &mut SqliteConnection, holder: Holder) -> Result<(), StoreError> {
    let release = sqlx::query(
        "UPDATE key_state SET lease_holder = NULL, lease_boot = NULL, lease_until = NULL \
         WHERE lease_holder = ?1 AND lease_boot = ?2",
    );
    let release = release.bind(holder.node.to_string()).bind(holder.boot.to_string());
    release.execute(connection).await.map(|_| ()).map_err(store_error)
}
