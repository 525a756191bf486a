//! What daemons say of themselves, and who of them carries a rotation. No lock but the rows' own: each change is one statement that
//! compares and sets, and PostgreSQL looks at the row again when it had to wait for it.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::postgres::PgConnection;

use super::fence::read_key_state;
use crate::model::{Micros, NODE_LIVE, NodeId, NodeRecord};
use crate::store::StoreError;
use crate::store::masters::{Beat, Beaten, ForgetOutcome, Holder, Leased};
use crate::store::postgres::failure::Failure;
use crate::store::postgres::tx::{End, Read, Work};
use crate::store::rows::{NodeRow, durable_kids_column, micros};

pub(super) struct Heartbeat<'a>(pub(super) &'a Beat<'a>);

#[async_trait]
impl Work for Heartbeat<'_> {
    type Output = Beaten;

    async fn run(&mut self, tx: &mut PgConnection) -> Result<End<Beaten>, Failure> {
        let Self(beat) = self;
        let epoch =
            i64::try_from(beat.epoch).map_err(|_| StoreError::Refused("a node's epoch is out of range".into()))?;
        // Overwritten: one's own row, that of one's own boot before, and that of a boot that is not live (NodeRecord::live's rule).
        let stamped = sqlx::query(
            "INSERT INTO containarium.nodes AS n (node_id, boot_id, durable_kids, epoch, seen_at) \
             VALUES ($1, $2, $3, $4, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint) \
             ON CONFLICT (node_id) DO UPDATE SET boot_id = excluded.boot_id, durable_kids = excluded.durable_kids, \
                 epoch = excluded.epoch, seen_at = (extract(epoch FROM clock_timestamp()) * 1000000)::bigint \
             WHERE n.boot_id IN (excluded.boot_id, $5) \
                 OR abs((extract(epoch FROM clock_timestamp()) * 1000000)::bigint - n.seen_at) > $6",
        )
        .bind(beat.holder.node.to_string())
        .bind(beat.holder.boot.to_string())
        .bind(durable_kids_column(beat.durable_kids))
        .bind(epoch)
        .bind(beat.previous_boot.map(|boot| boot.to_string()))
        .bind(micros(NODE_LIVE))
        .execute(&mut *tx)
        .await?
        .rows_affected();
        if stamped == 1 {
            return Ok(End::Commit(Beaten::Seen));
        }
        let other = node(tx, beat.holder.node).await?.ok_or(Failure::Overtaken)?;
        Ok(End::Rollback(Beaten::Taken { boot: other.boot, seen_at: other.seen_at }))
    }
}

/// What `NodeRow` reads.
macro_rules! node_columns {
    () => {
        "node_id, boot_id, durable_kids, epoch, seen_at, (extract(epoch FROM statement_timestamp()) * 1000000)::bigint AS now"
    };
}

async fn node(tx: &mut PgConnection, node: NodeId) -> Result<Option<NodeRecord>, Failure> {
    let row: Option<NodeRow> =
        sqlx::query_as(concat!("SELECT ", node_columns!(), " FROM containarium.nodes WHERE node_id = $1"))
            .bind(node.to_string())
            .fetch_optional(tx)
            .await?;
    Ok(row.map(NodeRow::record).transpose()?)
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
        let forgotten = sqlx::query(
            "DELETE FROM containarium.nodes \
             WHERE node_id = $1 AND abs((extract(epoch FROM clock_timestamp()) * 1000000)::bigint - seen_at) > $2",
        )
        .bind(self.0.to_string())
        .bind(micros(NODE_LIVE))
        .execute(&mut *tx)
        .await?
        .rows_affected();
        if forgotten == 1 {
            return Ok(End::Commit(ForgetOutcome::Forgotten));
        }
        Ok(End::Rollback(match node(tx, self.0).await? {
            Some(node) if node.live => ForgetOutcome::Live(node),
            // Its time ran out, or it came, between the two statements.
            Some(_) => return Err(Failure::Overtaken),
            None => ForgetOutcome::Unknown,
        }))
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
        let until: Option<i64> = sqlx::query_scalar(
            "UPDATE containarium.key_state SET lease_holder = $1, lease_boot = $2, \
                 lease_until = (extract(epoch FROM clock_timestamp()) * 1000000)::bigint + $3 \
             WHERE lease_holder IS NULL OR lease_holder = $1 \
                 OR lease_until <= (extract(epoch FROM clock_timestamp()) * 1000000)::bigint \
             RETURNING lease_until",
        )
        .bind(self.holder.node.to_string())
        .bind(self.holder.boot.to_string())
        .bind(micros(self.lasting))
        .fetch_optional(&mut *tx)
        .await?;
        if let Some(until) = until {
            return Ok(End::Commit(Leased::Until(Micros(until))));
        }
        // Given back between the two statements: it can be taken now.
        let lease = read_key_state(tx).await?.lease.ok_or(Failure::Overtaken)?;
        Ok(End::Rollback(Leased::HeldBy(lease)))
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
