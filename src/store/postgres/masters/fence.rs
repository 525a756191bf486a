//! The key state under the locks, and the master keys' rows.

use sqlx::postgres::PgConnection;

use crate::model::{KeyPhase, KeyState, Kid, MasterKeyState};
use crate::store::StoreError;
use crate::store::masters::Fence;
use crate::store::postgres::failure::Failure;
use crate::store::rows::{self, KeyStateRow};

/// What `KeyStateRow` reads, of `key_state` itself.
macro_rules! key_state_columns {
    () => {
        "db_id, epoch, generation, active_kid, mode, phase, lease_holder, lease_boot, lease_until"
    };
}
pub(super) use key_state_columns;

pub(in crate::store::postgres) fn no_key_yet() -> StoreError {
    StoreError::Refused("the database has held no key yet".into())
}

/// The key state, its row locked to the end of the transaction: the lease and the phase are changed by whoever has that lock, with the
/// master lock or without. Of the row locks this is the last that anybody waits for with a tenant's lock in hand.
///
/// # Errors
/// [`StoreError::Refused`] where there is none yet.
pub(super) async fn lock_key_state(tx: &mut PgConnection) -> Result<KeyState, Failure> {
    let row: Option<KeyStateRow> =
        sqlx::query_as(concat!("SELECT ", key_state_columns!(), " FROM containarium.key_state FOR NO KEY UPDATE"))
            .fetch_optional(tx)
            .await?;
    Ok(row.ok_or_else(no_key_yet)?.record()?)
}

/// For the rewrap, which changes nothing of the key state: unlocked, so that neither the lease nor a shred waits for a batch. The master
/// lock keeps epoch and active key; a lease that another takes meanwhile makes the batch its last one.
pub(super) async fn read_key_state(tx: &mut PgConnection) -> Result<KeyState, Failure> {
    let row: Option<KeyStateRow> =
        sqlx::query_as(concat!("SELECT ", key_state_columns!(), " FROM containarium.key_state"))
            .fetch_optional(tx)
            .await?;
    Ok(row.ok_or_else(no_key_yet)?.record()?)
}

/// The key state, locked, where the fence holds and names the phase that the step starts from; else the state that was found.
pub(super) async fn lock_fenced(
    tx: &mut PgConnection,
    fence: &Fence,
    from: KeyPhase,
) -> Result<Result<KeyState, KeyState>, Failure> {
    let state = lock_key_state(tx).await?;
    Ok(if fence.holds_in(from, &state) { Ok(state) } else { Err(state) })
}

/// `None` for a kid that the database does not know.
pub(super) async fn master_key_state(tx: &mut PgConnection, kid: Kid) -> Result<Option<MasterKeyState>, Failure> {
    let text: Option<String> = sqlx::query_scalar("SELECT state FROM containarium.master_keys WHERE kid = $1")
        .bind(kid.as_bytes().as_slice())
        .fetch_optional(tx)
        .await?;
    Ok(text.map(|text| rows::master_key_state(kid, &text)).transpose()?)
}

/// For a change of one row that the step has just seen.
///
/// # Errors
/// [`StoreError::Refused`] where it is another number.
pub(super) fn one_row(done: &sqlx::postgres::PgQueryResult, table: &str) -> Result<(), Failure> {
    match done.rows_affected() {
        1 => Ok(()),
        rows => Err(StoreError::Refused(format!("{rows} rows of {table} were changed instead of one")).into()),
    }
}
