//! The advisory locks: one master lock, and one for each tenant. All are transaction-level and taken in this order: master, tenants
//! (by their hash), then the rows of secrets (by tenant and name). None is ever upgraded: a transaction that holds a lock shared and
//! then wants it exclusively deadlocks with its twin.
//!
//! Advisory locks have two separate spaces of keys. The master lock lies in the one of two integers, under a number that the trigger on
//! `deks` looks for in pg_locks; tenants lie in the one of a single bigint, by a hash of their name. Two tenants of one hash share a
//! lock, which costs them some waiting and nothing else.

use sqlx::Connection;
use sqlx::postgres::{PgConnection, PgPool};

use super::failure::{Failure, describe};
use super::tx::BEGIN;
use crate::model::Tenant;
use crate::store::StoreError;

/// Creators and rewrappers of DEKs hold it shared, whoever changes the active master key exclusively.
pub(super) async fn master_shared(tx: &mut PgConnection) -> Result<(), Failure> {
    sqlx::query("SELECT pg_catalog.pg_advisory_xact_lock_shared(1668247151, 1)").execute(tx).await?;
    Ok(())
}

pub(super) async fn master_exclusive(tx: &mut PgConnection) -> Result<(), Failure> {
    sqlx::query("SELECT pg_catalog.pg_advisory_xact_lock(1668247151, 1)").execute(tx).await?;
    Ok(())
}

/// Whoever seals a value, or changes a secret at all, holds its tenant's lock shared.
///
/// Sorted by hash, so that two batches over the same tenants never wait for each other in a circle. DISTINCT and ORDER BY keep the
/// planner from evaluating the locks before the sort.
pub(super) async fn tenants_shared(tx: &mut PgConnection, tenants: &[&str]) -> Result<(), Failure> {
    sqlx::query(
        "SELECT pg_catalog.pg_advisory_xact_lock_shared(hash) FROM ( \
             SELECT DISTINCT pg_catalog.hashtextextended(tenant, 1668247151) AS hash \
             FROM unnest($1::text[]) AS tenant ORDER BY hash \
         ) AS sorted",
    )
    .bind(tenants)
    .execute(tx)
    .await?;
    Ok(())
}

/// Whoever makes, activates, removes or shreds a tenant's DEK holds its lock exclusively.
pub(super) async fn tenant_exclusive(tx: &mut PgConnection, tenant: &Tenant) -> Result<(), Failure> {
    sqlx::query("SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended($1::text, 1668247151))")
        .bind(tenant.as_str())
        .execute(tx)
        .await?;
    Ok(())
}

/// Asks the server whether it keeps advisory locks at all: some that speak PostgreSQL's protocol accept them and do nothing.
///
/// # Errors
/// [`StoreError::Unusable`] where two transactions held one lock at once.
pub(super) async fn probe(pool: &PgPool) -> Result<(), StoreError> {
    probe_with(pool).await.map_err(|error| describe(&error))?.then_some(()).ok_or_else(|| {
        StoreError::Unusable(
            "it gave one advisory lock to two transactions at once, so it cannot keep a rotation apart from a write; use PostgreSQL"
                .into(),
        )
    })
}

async fn probe_with(pool: &PgPool) -> Result<bool, sqlx::Error> {
    const TRY_EXCLUSIVE: &str = "SELECT pg_catalog.pg_try_advisory_xact_lock(1668247152, $1::int)";
    const TRY_SHARED: &str = "SELECT pg_catalog.pg_try_advisory_xact_lock_shared(1668247152, $1::int)";
    // Not the pool's own release: a transaction left open by a failure goes away with its connection.
    let (mut one, mut two) = (pool.acquire().await?.detach(), pool.acquire().await?.detach());
    let mut first = one.begin_with(BEGIN).await?;
    let mut second = two.begin_with(BEGIN).await?;
    // The first transaction's backend serves nobody else now, so daemons that start together use different keys.
    let key: i32 = sqlx::query_scalar("SELECT pg_catalog.pg_backend_pid()").fetch_one(&mut *first).await?;
    let ask = async |tx: &mut PgConnection, sql: &'static str| -> Result<bool, sqlx::Error> {
        sqlx::query_scalar(sql).bind(key).fetch_one(tx).await
    };
    let taken = ask(&mut first, TRY_EXCLUSIVE).await?;
    let kept = !ask(&mut second, TRY_EXCLUSIVE).await? && !ask(&mut second, TRY_SHARED).await?;
    first.rollback().await?;
    let released = ask(&mut second, TRY_EXCLUSIVE).await?;
    second.rollback().await?;
    one.close().await?;
    two.close().await?;
    Ok(taken && kept && released)
}
