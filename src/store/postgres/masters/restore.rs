//! The counters that say how new a database is.

use async_trait::async_trait;
use sqlx::postgres::PgConnection;

use super::fence::{key_state_columns, no_key_yet};
use super::steps::finish;
use crate::model::{KeyState, Kid};
use crate::store::StoreError;
use crate::store::masters::{Accepted, AtLeast};
use crate::store::postgres::failure::Failure;
use crate::store::postgres::locks;
use crate::store::postgres::tx::{End, Work};
use crate::store::rows::{KeyStateRow, staged_kid};

pub(super) struct RaiseGeneration;

#[async_trait]
impl Work for RaiseGeneration {
    type Output = KeyState;

    async fn run(&mut self, tx: &mut PgConnection) -> Result<End<KeyState>, Failure> {
        Ok(End::Commit(raise_generation(tx).await?))
    }
}

/// One higher; the state after. Last in a transaction: whoever else raises it waits from here on to its commit.
pub(in crate::store::postgres) async fn raise_generation(tx: &mut PgConnection) -> Result<KeyState, Failure> {
    let row: Option<KeyStateRow> = sqlx::query_as(concat!(
        "UPDATE containarium.key_state SET generation = generation + 1 RETURNING ",
        key_state_columns!()
    ))
    .fetch_optional(tx)
    .await?;
    Ok(row.ok_or_else(no_key_yet)?.record()?)
}

pub(super) struct AcceptRestore(pub(super) AtLeast);

#[async_trait]
impl Work for AcceptRestore {
    type Output = Accepted;

    async fn run(&mut self, tx: &mut PgConnection) -> Result<End<Accepted>, Failure> {
        let column = |number: u64, what: &str| {
            i64::try_from(number).map_err(|_| StoreError::Refused(format!("{what} {number} is out of range")))
        };
        let (epoch, generation) = (column(self.0.epoch, "epoch")?, column(self.0.generation, "generation")?);
        locks::master_exclusive(tx).await?;
        let row: Option<KeyStateRow> = sqlx::query_as(concat!(
            "UPDATE containarium.key_state SET epoch = greatest(epoch, $1), generation = greatest(generation, $2) RETURNING ",
            key_state_columns!()
        ))
        .bind(epoch)
        .bind(generation)
        .fetch_optional(&mut *tx)
        .await?;
        let state = row.ok_or_else(no_key_yet)?.record()?;
        let retired = retire_staged(tx).await?;
        let state = if retired.is_some() { finish(tx).await? } else { state };
        Ok(End::Commit(Accepted { state, retired }))
    }
}

/// A later state than the restored one may have had this key in use, so it is kept as long as any that was.
async fn retire_staged(tx: &mut PgConnection) -> Result<Option<Kid>, Failure> {
    let staged: Option<Vec<u8>> = sqlx::query_scalar(
        "UPDATE containarium.master_keys SET state = 'retired', wrapped_file = NULL, \
             retired_at = (extract(epoch FROM clock_timestamp()) * 1000000)::bigint WHERE state = 'staged' RETURNING kid",
    )
    .fetch_optional(tx)
    .await?;
    Ok(staged.map(|bytes| staged_kid(&bytes)).transpose()?)
}
