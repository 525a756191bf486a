//! What daemons say of themselves, and who of them carries a rotation. No lock but the rows' own, taken before the look.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::Row;
use sqlx::postgres::PgConnection;

use super::fence::lock_key_state;
use crate::model::{Micros, NodeId, NodeRecord};
use crate::store::masters::{Beat, Beaten, ForgetOutcome, Holder, Leased};
use crate::store::postgres::NOW;
use crate::store::postgres::failure::Failure;
use crate::store::postgres::tx::{End, Read, Work};
use crate::store::rows::{NodeRow, durable_kids_column, micros};
use crate::store::{StoreError, guards};

pub(super) struct Heartbeat<'a>(pub(super) &'a Beat<'a>);

#[async_trait]
impl Work for Heartbeat<'_> {
    type Output = Beaten;

    async fn run(&mut self, tx: &mut PgConnection) -> Result<End<Beaten>, Failure> {
        let Self(beat) = self;
        let new = stamp(
            tx,
            beat,
            "INSERT INTO containarium.nodes (node_id, boot_id, durable_kids, epoch, seen_at) \
             VALUES ($1, $2, $3, $4, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint) ON CONFLICT DO NOTHING",
        )
        .await?;
        if new == 1 {
            return Ok(End::Commit(Beaten::Seen));
        }
        // Locked, then looked at: of two boots that beat at once the later one sees the earlier.
        let row = sqlx::query(
            "SELECT boot_id, seen_at, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now \
             FROM containarium.nodes WHERE node_id = $1 FOR NO KEY UPDATE",
        )
        .bind(beat.holder.node.to_string())
        .fetch_optional(&mut *tx)
        .await?
        // Forgotten between the two statements.
        .ok_or(Failure::Overtaken)?;
        let (seen_at, now) = (Micros(row.try_get("seen_at")?), Micros(row.try_get("now")?));
        if let Some(boot) = guards::taken(row.try_get("boot_id")?, seen_at, now, beat) {
            return Ok(End::Rollback(Beaten::Taken { boot, seen_at }));
        }
        stamp(
            tx,
            beat,
            "UPDATE containarium.nodes SET boot_id = $2, durable_kids = $3, epoch = $4, \
                 seen_at = (extract(epoch FROM clock_timestamp()) * 1000000)::bigint WHERE node_id = $1",
        )
        .await?;
        Ok(End::Commit(Beaten::Seen))
    }
}

/// Runs a statement over what a beat says: node, boot, kids, epoch. Answers the rows that it made or changed.
async fn stamp(tx: &mut PgConnection, beat: &Beat<'_>, sql: &'static str) -> Result<u64, Failure> {
    let epoch = i64::try_from(beat.epoch).map_err(|_| StoreError::Refused("a node's epoch is out of range".into()))?;
    let done = sqlx::query(sql)
        .bind(beat.holder.node.to_string())
        .bind(beat.holder.boot.to_string())
        .bind(durable_kids_column(beat.durable_kids))
        .bind(epoch)
        .execute(tx)
        .await?;
    Ok(done.rows_affected())
}

/// What `NodeRow` reads.
macro_rules! node_columns {
    () => {
        "node_id, boot_id, durable_kids, epoch, seen_at, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now"
    };
}

/// Every node, by id.
pub(super) async fn all_nodes(connection: &mut PgConnection) -> Result<Vec<NodeRecord>, Failure> {
    let found: Vec<NodeRow> =
        sqlx::query_as(concat!("SELECT ", node_columns!(), " FROM containarium.nodes ORDER BY node_id COLLATE \"C\""))
            .fetch_all(connection)
            .await?;
    Ok(found.into_iter().map(NodeRow::record).collect::<Result<_, _>>()?)
}

pub(super) struct ListNodes;

#[async_trait]
impl Read for ListNodes {
    type Output = Vec<NodeRecord>;

    async fn run(&self, connection: &mut PgConnection) -> Result<Vec<NodeRecord>, Failure> {
        all_nodes(connection).await
    }
}

pub(super) struct ForgetNode(pub(super) NodeId);

#[async_trait]
impl Work for ForgetNode {
    type Output = ForgetOutcome;

    async fn run(&mut self, tx: &mut PgConnection) -> Result<End<ForgetOutcome>, Failure> {
        let row: Option<NodeRow> = sqlx::query_as(concat!(
            "SELECT ",
            node_columns!(),
            " FROM containarium.nodes WHERE node_id = $1 FOR UPDATE"
        ))
        .bind(self.0.to_string())
        .fetch_optional(&mut *tx)
        .await?;
        let Some(row) = row else { return Ok(End::Rollback(ForgetOutcome::Unknown)) };
        let node = row.record()?;
        if node.live {
            return Ok(End::Rollback(ForgetOutcome::Live(node)));
        }
        sqlx::query("DELETE FROM containarium.nodes WHERE node_id = $1").bind(self.0.to_string()).execute(tx).await?;
        Ok(End::Commit(ForgetOutcome::Forgotten))
    }
}

pub(super) struct TakeLease {
    pub(super) holder: Holder,
    pub(super) lasting: Duration,
}

#[async_trait]
impl Work for TakeLease {
    type Output = Leased;

    async fn run(&mut self, tx: &mut PgConnection) -> Result<End<Leased>, Failure> {
        let state = lock_key_state(tx).await?;
        let now = Micros(sqlx::query_scalar(NOW).fetch_one(&mut *tx).await?);
        if let Some(lease) = state.lease.filter(|lease| guards::keeps_out(lease, self.holder.node, now)) {
            return Ok(End::Rollback(Leased::HeldBy(lease)));
        }
        let until = now.0.saturating_add(micros(self.lasting));
        sqlx::query("UPDATE containarium.key_state SET lease_holder = $1, lease_boot = $2, lease_until = $3")
            .bind(self.holder.node.to_string())
            .bind(self.holder.boot.to_string())
            .bind(until)
            .execute(tx)
            .await?;
        Ok(End::Commit(Leased::Until(Micros(until))))
    }
}

pub(super) struct ReleaseLease(pub(super) Holder);

#[async_trait]
impl Work for ReleaseLease {
    type Output = ();

    async fn run(&mut self, tx: &mut PgConnection) -> Result<End<()>, Failure> {
        sqlx::query(
            "UPDATE containarium.key_state SET lease_holder = NULL, lease_boot = NULL, lease_until = NULL \
             WHERE lease_holder = $1 AND lease_boot = $2",
        )
        .bind(self.0.node.to_string())
        .bind(self.0.boot.to_string())
        .execute(tx)
        .await?;
        Ok(End::Commit(()))
    }
}
