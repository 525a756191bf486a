//! The audit trail's tables.

use std::sync::Arc;

use async_trait::async_trait;
use sqlx::postgres::PgConnection;

use super::failure::Failure;
use super::tx::{End, Read, Work, run_read, run_tx};
use super::{NOW, PostgresStore};
use crate::model::{BootId, NodeId};
use crate::store::rows::{ChainColumns, StartColumns, TrailColumns, keyset, trail_column};
use crate::store::trail::{ChainHead, Linked, Scribe, Trail, TrailRow, head_is_elsewhere};
use crate::store::{Store, StoreError};

macro_rules! trail_columns {
    () => {
        "SELECT node_id, boot_id, record_no, at, identity, action, tenant, name, version, blob_sha256, outcome, record, mac, position, \
         link FROM containarium.audit "
    };
}

#[async_trait]
impl Trail for PostgresStore {
    fn recorded(&self, scribe: Arc<dyn Scribe>) -> Arc<dyn Store> {
        Arc::new(Self { pool: self.pool.clone(), scribe: Some(scribe) })
    }

    async fn insert(&self, rows: &[TrailRow]) -> Result<(), StoreError> {
        run_tx(self, "audit", &mut Insert(rows)).await
    }

    async fn unlinked(
        &self,
        node: NodeId,
        after: Option<(BootId, u64)>,
        limit: u32,
    ) -> Result<Vec<TrailRow>, StoreError> {
        run_read(&self.pool, &Unlinked { node, after, limit }).await
    }

    async fn link(&self, places: &[(u64, Linked)], head: &ChainHead) -> Result<(), StoreError> {
        run_tx(self, "link", &mut Link { places, head }).await
    }

    async fn append(&self, rows: &[TrailRow], from: Linked, head: &ChainHead) -> Result<(), StoreError> {
        run_tx(self, "audit", &mut Append { rows, from, head }).await
    }

    async fn chains(&self) -> Result<Vec<ChainHead>, StoreError> {
        run_read(&self.pool, &Chains).await
    }

    async fn trail(
        &self,
        node: NodeId,
        boot: BootId,
        after: Option<u64>,
        limit: u32,
    ) -> Result<Vec<TrailRow>, StoreError> {
        run_read(&self.pool, &Rows { node, boot, after, limit }).await
    }

    async fn linked(&self, node: NodeId, boot: BootId, after: u64, limit: u32) -> Result<Vec<TrailRow>, StoreError> {
        run_read(&self.pool, &Placed { node, boot, after, limit }).await
    }

    async fn trail_of(&self, action: &str) -> Result<Vec<TrailRow>, StoreError> {
        run_read(&self.pool, &OfAction(action)).await
    }

    async fn prune(&self, of: (NodeId, BootId), upto: u64, record: &TrailRow) -> Result<u64, StoreError> {
        run_tx(self, "prune", &mut Prune { of, upto, record }).await
    }

    async fn starts(&self) -> Result<Vec<(NodeId, BootId)>, StoreError> {
        run_read(&self.pool, &Starts).await
    }
}

struct Insert<'a>(&'a [TrailRow]);

#[async_trait]
impl Work for Insert<'_> {
    type Output = ();

    async fn run(&mut self, tx: &mut PgConnection) -> Result<End<()>, Failure> {
        insert(tx, self.0).await?;
        Ok(End::Commit(()))
    }
}

struct Append<'a> {
    rows: &'a [TrailRow],
    from: Linked,
    head: &'a ChainHead,
}

#[async_trait]
impl Work for Append<'_> {
    type Output = ();

    async fn run(&mut self, tx: &mut PgConnection) -> Result<End<()>, Failure> {
        const MOVE: &str = "UPDATE containarium.audit_chains SET position = $4, link = $5, \
             updated_at = (extract(epoch FROM clock_timestamp()) * 1000000)::bigint \
             WHERE node_id = $1 AND boot_id = $2 AND kind = $3 AND position = $6 AND link = $7";
        let Self { rows, from, head } = *self;
        let moved = sqlx::query(MOVE)
            .bind(head.node.to_string())
            .bind(head.boot.to_string())
            .bind(head.kind.column())
            .bind(trail_column(head.end.position)?)
            .bind(head.end.link.as_slice())
            .bind(trail_column(from.position)?)
            .bind(from.link.as_slice())
            .execute(&mut *tx)
            .await?
            .rows_affected();
        if moved != 1 {
            return Err(head_is_elsewhere().into());
        }
        insert(tx, rows).await?;
        Ok(End::Commit(()))
    }
}

/// One statement for all of them.
pub(super) async fn insert(tx: &mut PgConnection, rows: &[TrailRow]) -> Result<(), Failure> {
    let numbers = |number: fn(&TrailRow) -> Option<u64>| {
        rows.iter().map(|row| number(row).map(trail_column).transpose()).collect::<Result<Vec<_>, _>>()
    };
    sqlx::query(
        "INSERT INTO containarium.audit (node_id, boot_id, record_no, at, identity, action, tenant, name, version, blob_sha256, outcome, \
         record, mac, position, link) SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::text[], $6::text[], \
         $7::text[], $8::text[], $9::bigint[], $10::bytea[], $11::text[], $12::bytea[], $13::bytea[], $14::bigint[], $15::bytea[])",
    )
    .bind(rows.iter().map(|row| row.node.to_string()).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.boot.to_string()).collect::<Vec<_>>())
    .bind(numbers(|row| Some(row.number))?)
    .bind(rows.iter().map(|row| row.at.0).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.identity.as_str()).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.action.as_str()).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.tenant.as_deref()).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.name.as_deref()).collect::<Vec<_>>())
    .bind(numbers(|row| row.version)?)
    .bind(rows.iter().map(|row| row.blob_sha256.as_ref().map(<[u8; 32]>::as_slice)).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.outcome.as_str()).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.record.as_slice()).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.mac.as_slice()).collect::<Vec<_>>())
    .bind(numbers(|row| row.place.map(|place| place.position))?)
    .bind(rows.iter().map(|row| row.place.as_ref().map(|place| place.link.as_slice())).collect::<Vec<_>>())
    .execute(tx)
    .await?;
    Ok(())
}

struct Unlinked {
    node: NodeId,
    after: Option<(BootId, u64)>,
    limit: u32,
}

#[async_trait]
impl Read for Unlinked {
    type Output = Vec<TrailRow>;

    async fn run(&self, connection: &mut PgConnection) -> Result<Vec<TrailRow>, Failure> {
        const SQL: &str = concat!(
            trail_columns!(),
            "WHERE node_id = $1 AND position IS NULL AND (boot_id, record_no) > ($2, $3) ORDER BY boot_id, record_no LIMIT $4"
        );
        let (boot, number) = keyset(self.after)?;
        let query = sqlx::query_as(SQL).bind(self.node.to_string()).bind(boot).bind(number).bind(i64::from(self.limit));
        records(query.fetch_all(connection).await?)
    }
}

struct Rows {
    node: NodeId,
    boot: BootId,
    after: Option<u64>,
    limit: u32,
}

#[async_trait]
impl Read for Rows {
    type Output = Vec<TrailRow>;

    async fn run(&self, connection: &mut PgConnection) -> Result<Vec<TrailRow>, Failure> {
        const SQL: &str = concat!(
            trail_columns!(),
            "WHERE node_id = $1 AND boot_id = $2 AND record_no > $3 ORDER BY record_no LIMIT $4"
        );
        let query = sqlx::query_as(SQL)
            .bind(self.node.to_string())
            .bind(self.boot.to_string())
            .bind(self.after.map_or(Ok(-1), trail_column)?)
            .bind(i64::from(self.limit));
        records(query.fetch_all(connection).await?)
    }
}

struct Placed {
    node: NodeId,
    boot: BootId,
    after: u64,
    limit: u32,
}

#[async_trait]
impl Read for Placed {
    type Output = Vec<TrailRow>;

    async fn run(&self, connection: &mut PgConnection) -> Result<Vec<TrailRow>, Failure> {
        const SQL: &str = concat!(
            trail_columns!(),
            "WHERE node_id = $1 AND boot_id = $2 AND position > $3 ORDER BY position LIMIT $4"
        );
        let query = sqlx::query_as(SQL)
            .bind(self.node.to_string())
            .bind(self.boot.to_string())
            .bind(trail_column(self.after)?)
            .bind(i64::from(self.limit));
        records(query.fetch_all(connection).await?)
    }
}

struct OfAction<'a>(&'a str);

#[async_trait]
impl Read for OfAction<'_> {
    type Output = Vec<TrailRow>;

    async fn run(&self, connection: &mut PgConnection) -> Result<Vec<TrailRow>, Failure> {
        const SQL: &str = concat!(trail_columns!(), "WHERE action = $1 ORDER BY node_id, boot_id, record_no");
        records(sqlx::query_as(SQL).bind(self.0).fetch_all(connection).await?)
    }
}

struct Prune<'a> {
    of: (NodeId, BootId),
    upto: u64,
    record: &'a TrailRow,
}

#[async_trait]
impl Work for Prune<'_> {
    type Output = u64;

    async fn run(&mut self, tx: &mut PgConnection) -> Result<End<u64>, Failure> {
        insert(&mut *tx, std::slice::from_ref(self.record)).await?;
        let removed = sqlx::query(
            "DELETE FROM containarium.audit a WHERE node_id = $1 AND boot_id = $2 AND position <= $3 \
             AND action NOT IN ('audit.prune', 'token.revoke', 'admin.accept-restore') AND NOT (blob_sha256 IS NOT NULL AND EXISTS (SELECT 1 FROM containarium.secret_versions v \
             WHERE v.tenant = a.tenant AND v.name = a.name AND v.version = a.version AND v.ciphertext IS NOT NULL))",
        )
        .bind(self.of.0.to_string())
        .bind(self.of.1.to_string())
        .bind(trail_column(self.upto)?)
        .execute(tx)
        .await?;
        Ok(End::Commit(removed.rows_affected()))
    }
}

fn records(rows: Vec<TrailColumns>) -> Result<Vec<TrailRow>, Failure> {
    Ok(rows.into_iter().map(TrailColumns::row).collect::<Result<_, _>>()?)
}

struct Starts;

#[async_trait]
impl Read for Starts {
    type Output = Vec<(NodeId, BootId)>;

    async fn run(&self, connection: &mut PgConnection) -> Result<Self::Output, Failure> {
        let rows: Vec<StartColumns> =
            sqlx::query_as("SELECT DISTINCT node_id, boot_id FROM containarium.audit ORDER BY node_id, boot_id")
                .fetch_all(connection)
                .await?;
        Ok(rows.into_iter().map(StartColumns::start).collect::<Result<_, _>>()?)
    }
}

struct Chains;

#[async_trait]
impl Read for Chains {
    type Output = Vec<ChainHead>;

    async fn run(&self, connection: &mut PgConnection) -> Result<Vec<ChainHead>, Failure> {
        let rows: Vec<ChainColumns> = sqlx::query_as(
            "SELECT node_id, boot_id, kind, started_at, previous_boot_id, previous_link, position, link \
             FROM containarium.audit_chains ORDER BY started_at, node_id, boot_id, kind",
        )
        .fetch_all(connection)
        .await?;
        Ok(rows.into_iter().map(ChainColumns::head).collect::<Result<_, _>>()?)
    }
}

struct Link<'a> {
    places: &'a [(u64, Linked)],
    head: &'a ChainHead,
}

#[async_trait]
impl Work for Link<'_> {
    type Output = ();

    async fn run(&mut self, tx: &mut PgConnection) -> Result<End<()>, Failure> {
        let Self { places, head } = *self;
        let (node, boot) = (head.node.to_string(), head.boot.to_string());
        let numbers: Vec<i64> = places.iter().map(|(number, _)| trail_column(*number)).collect::<Result<_, _>>()?;
        let positions: Vec<i64> =
            places.iter().map(|(_, place)| trail_column(place.position)).collect::<Result<_, _>>()?;
        let linked = sqlx::query(
            "UPDATE containarium.audit a SET position = p.position, link = p.link \
             FROM unnest($3::bigint[], $4::bigint[], $5::bytea[]) AS p (record_no, position, link) \
             WHERE a.node_id = $1 AND a.boot_id = $2 AND a.record_no = p.record_no AND a.position IS NULL",
        )
        .bind(node.as_str())
        .bind(boot.as_str())
        .bind(numbers)
        .bind(positions)
        .bind(places.iter().map(|(_, place)| place.link.as_slice()).collect::<Vec<_>>())
        .execute(&mut *tx)
        .await?
        .rows_affected();
        if linked != places.len() as u64 {
            return Err(StoreError::Refused(
                "an audit record that was to be linked is gone, or has a place".to_owned(),
            )
            .into());
        }
        let now: i64 = sqlx::query_scalar(NOW).fetch_one(&mut *tx).await?;
        let previous = head.previous.as_ref();
        sqlx::query(
            "INSERT INTO containarium.audit_chains \
             (node_id, boot_id, kind, started_at, previous_boot_id, previous_link, position, link, updated_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (node_id, boot_id, kind) DO UPDATE \
             SET position = excluded.position, link = excluded.link, updated_at = excluded.updated_at",
        )
        .bind(node)
        .bind(boot)
        .bind(head.kind.column())
        .bind(head.started_at.0)
        .bind(previous.map(|(boot, _)| boot.to_string()))
        .bind(previous.map(|(_, link)| link.as_slice()))
        .bind(trail_column(head.end.position)?)
        .bind(head.end.link.as_slice())
        .bind(now)
        .execute(tx)
        .await?;
        Ok(End::Commit(()))
    }
}
