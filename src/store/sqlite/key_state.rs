//! The one row of `key_state`, and the database's clock.

use sqlx::SqliteConnection;

use super::StoreError;
use super::error::store_error;
use super::sql::now;
use super::write::one_row;
use crate::model::{KeyState, Micros};
use crate::store::rows::KeyStateRow;

pub(super) async fn read(connection: &mut SqliteConnection) -> Result<Option<KeyState>, StoreError> {
    let query = sqlx::query_as(
        "SELECT db_id, epoch, generation, active_kid, mode, phase, lease_holder, lease_boot, lease_until FROM key_state",
    );
    let row: Option<KeyStateRow> = query.fetch_optional(connection).await.map_err(store_error)?;
    row.map(KeyStateRow::record).transpose()
}

/// The state of a database that has held a key.
///
/// # Errors
/// [`StoreError::Refused`] where it has not.
pub(super) async fn held(connection: &mut SqliteConnection) -> Result<KeyState, StoreError> {
    let state = read(connection).await?;
    state.ok_or_else(|| StoreError::Refused("the database has held no master key yet".to_owned()))
}

/// Puts back a state that was read in the same transaction, which no other writer can have changed since.
pub(super) async fn store(connection: &mut SqliteConnection, state: &KeyState) -> Result<(), StoreError> {
    let update = sqlx::query(
        "UPDATE key_state SET epoch = ?1, generation = ?2, active_kid = ?3, mode = ?4, phase = ?5, lease_holder = ?6, \
         lease_boot = ?7, lease_until = ?8",
    )
    .bind(counter(state.epoch)?)
    .bind(counter(state.generation)?)
    .bind(state.active_kid.as_bytes().as_slice())
    .bind(state.mode.as_str())
    .bind(state.phase.as_str())
    .bind(state.lease.map(|lease| lease.node.to_string()))
    .bind(state.lease.map(|lease| lease.boot.to_string()))
    .bind(state.lease.map(|lease| lease.until.0));
    one_row(&update.execute(connection).await.map_err(store_error)?)
}

/// One generation higher.
pub(super) async fn raise_generation(connection: &mut SqliteConnection) -> Result<KeyState, StoreError> {
    let mut state = held(connection).await?;
    state.generation = state.generation.saturating_add(1);
    store(connection, &state).await?;
    Ok(state)
}

/// A counter as its column holds it.
pub(super) fn counter(number: u64) -> Result<i64, StoreError> {
    i64::try_from(number).map_err(|_| StoreError::Refused(format!("{number} does not fit a column of the database")))
}

/// The database's time.
pub(super) async fn now(connection: &mut SqliteConnection) -> Result<Micros, StoreError> {
    const SQL: &str = concat!("SELECT ", now!());
    sqlx::query_scalar(SQL).fetch_one(connection).await.map(Micros).map_err(store_error)
}
