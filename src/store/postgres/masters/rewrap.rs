//! The walk over the DEKs of a master key, and a batch of them wrapped anew.

use async_trait::async_trait;
use sqlx::Row;
use sqlx::postgres::PgConnection;

use super::fence::read_key_state;
use crate::failpoint;
use crate::model::{DekRecord, DekState, Kid};
use crate::store::masters::{DekCursor, Fence, Fenced, Rewrapped, UnderKey};
use crate::store::postgres::columns::dek_columns;
use crate::store::postgres::failure::Failure;
use crate::store::postgres::locks;
use crate::store::postgres::tx::{End, Read, Work};
use crate::store::rows::{self, DekRow};

/// The states of DEKs in use, in the order of the index, which is that of their words.
const IN_USE: [DekState; 2] = [DekState::Active, DekState::DecryptOnly];

pub(super) struct DeksUnder<'a> {
    pub(super) kid: Kid,
    pub(super) after: Option<&'a DekCursor>,
    pub(super) limit: u32,
}

#[async_trait]
impl Read for DeksUnder<'_> {
    type Output = Vec<DekRecord>;

    /// A statement for each state, and most pages need one: with `state IN (…)` PostgreSQL sorts, as it does not know that a scan of
    /// several values comes in their order.
    async fn run(&self, connection: &mut PgConnection) -> Result<Vec<DekRecord>, Failure> {
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        let from = self.after.map_or(DekState::Active.as_str(), |cursor| cursor.state.as_str());
        let mut deks = Vec::new();
        for state in IN_USE.into_iter().filter(|state| state.as_str() >= from) {
            let left = limit.saturating_sub(deks.len());
            if left == 0 {
                break;
            }
            let after = self.after.filter(|cursor| cursor.state == state);
            for row in page(connection, self.kid, state, after, left).await? {
                deks.push(row.record()?);
            }
        }
        Ok(deks)
    }
}

async fn page(
    connection: &mut PgConnection,
    kid: Kid,
    state: DekState,
    after: Option<&DekCursor>,
    limit: usize,
) -> Result<Vec<DekRow>, Failure> {
    let query = sqlx::query_as(concat!(
        "SELECT d.tenant AS d_tenant, ",
        dek_columns!(),
        " FROM containarium.deks d \
         WHERE d.kid = $1 AND d.state = $2 AND (d.tenant, d.dek_version) > ($3, $4) \
         ORDER BY d.tenant, d.dek_version LIMIT $5"
    ));
    // Planned for each page, with the limit in sight: a plan for any limit may well sort the whole rest of the table each time.
    Ok(query
        .persistent(false)
        .bind(kid.as_bytes().as_slice())
        .bind(state.as_str())
        .bind(after.map_or("", |cursor| cursor.tenant.as_str()))
        .bind(after.map_or(0, |cursor| i64::from(cursor.version.get())))
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(connection)
        .await?)
}

pub(super) struct CountUnder(pub(super) Kid);

#[async_trait]
impl Read for CountUnder {
    type Output = UnderKey;

    async fn run(&self, connection: &mut PgConnection) -> Result<UnderKey, Failure> {
        count_under(connection, self.0).await
    }
}

pub(super) async fn count_under(connection: &mut PgConnection, kid: Kid) -> Result<UnderKey, Failure> {
    let row = sqlx::query(
        "SELECT count(*) FILTER (WHERE state IN ('active', 'decrypt_only')) AS in_use, \
             count(*) FILTER (WHERE state = 'quarantined') AS quarantined FROM containarium.deks WHERE kid = $1",
    )
    .bind(kid.as_bytes().as_slice())
    .fetch_one(connection)
    .await?;
    Ok(UnderKey { in_use: rows::count(row.try_get("in_use")?), quarantined: rows::count(row.try_get("quarantined")?) })
}

pub(super) struct Rewrap<'a> {
    fence: &'a Fence,
    /// Sorted, so that a batch locks its rows in the order in which a shred does, and another batch.
    deks: Vec<&'a Rewrapped>,
}

impl<'a> Rewrap<'a> {
    pub(super) fn new(fence: &'a Fence, deks: &'a [Rewrapped]) -> Self {
        let mut deks: Vec<_> = deks.iter().collect();
        deks.sort_unstable_by_key(|dek| (dek.tenant.as_str(), dek.version));
        Self { fence, deks }
    }
}

/// The plan for arrays of any length takes them for short: row after row by the primary key, in their order. A plan for these very arrays
/// reads the whole table for a hash join, batch after batch. (Not enable_hashjoin: the trigger's plan would be made without it as well.)
const ROW_BY_ROW: &str = "SELECT pg_catalog.set_config('plan_cache_mode', 'force_generic_plan', true)";

/// One that was quarantined meanwhile is left alone as well: its release compares the wrapping.
const REWRAP: &str = "UPDATE containarium.deks d SET kid = $6, wrapped = n.after \
     FROM unnest($1::text[], $2::bigint[], $3::bytea[], $4::bytea[], $5::bytea[]) AS n (tenant, dek_version, kid, before, after) \
     WHERE d.tenant = n.tenant AND d.dek_version = n.dek_version AND d.kid = n.kid AND d.wrapped = n.before \
         AND d.state IN ('active', 'decrypt_only')";

#[async_trait]
impl Work for Rewrap<'_> {
    type Output = Fenced<u64>;

    async fn run(&mut self, tx: &mut PgConnection) -> Result<End<Self::Output>, Failure> {
        locks::master_shared(tx).await?;
        let state = read_key_state(tx).await?;
        if !self.fence.holds(&state) {
            return Ok(End::Rollback(Fenced::Elsewhere(state)));
        }
        sqlx::query(ROW_BY_ROW).execute(&mut *tx).await?;
        let done = sqlx::query(REWRAP)
            .bind(self.deks.iter().map(|dek| dek.tenant.as_str()).collect::<Vec<_>>())
            .bind(self.deks.iter().map(|dek| i64::from(dek.version.get())).collect::<Vec<_>>())
            .bind(self.deks.iter().map(|dek| dek.before.kid.as_bytes().as_slice()).collect::<Vec<_>>())
            .bind(self.deks.iter().map(|dek| dek.before.bytes.as_slice()).collect::<Vec<_>>())
            .bind(self.deks.iter().map(|dek| dek.after.as_slice()).collect::<Vec<_>>())
            .bind(self.fence.active.as_bytes().as_slice())
            .execute(tx)
            .await?;
        failpoint::reached("store.rewrap");
        Ok(End::Commit(Fenced::Done(done.rows_affected())))
    }
}
