//! The steps of a rotation. Each runs in one writing transaction, where nobody else writes: what it reads first still holds when it
//! writes, so that SQLite needs no lock beside its own.

use std::time::Duration;

use sqlx::{SqliteConnection, SqlitePool};

use super::error::store_error;
use super::sql::now;
use super::write::one_row;
use super::{StoreError, escrows, key_state, nodes, rewrap};
use crate::failpoint;
use crate::model::{KeyMode, KeyPhase, KeyState, Kid, MasterKeyState, Micros, NodeId};
use crate::store::guards;
use crate::store::masters::{
    Accepted, AtLeast, DestroyOutcome, Fence, Fenced, FlipOutcome, GivenUp, NewEscrow, NewMaster, RetireOutcome,
    StageOutcome,
};
use crate::store::rows::{self, master_key_state, micros};

pub(super) async fn stage(
    connection: &mut SqliteConnection,
    fence: &Fence,
    key: &NewMaster<'_>,
) -> Result<Fenced<StageOutcome>, StoreError> {
    const SQL: &str =
        concat!("INSERT INTO master_keys (kid, state, created_at, wrapped_file) SELECT ?1, 'staged', ", now!(), ", ?2");
    let mut state = key_state::held(connection).await?;
    if !fence.holds_in(KeyPhase::Idle, &state) {
        return Ok(Fenced::Elsewhere(state));
    }
    if let Some(known) = master_state(connection, key.kid).await? {
        return Ok(Fenced::Done(StageOutcome::KnownKid(known)));
    }
    let insert = sqlx::query(SQL).bind(key.kid.as_bytes().as_slice()).bind(key.wrapped_file);
    one_row(&insert.execute(&mut *connection).await.map_err(store_error)?)?;
    (state.phase, state.mode) = (KeyPhase::Staged, key.mode);
    key_state::store(connection, &state).await?;
    failpoint::reached("store.stage");
    Ok(Fenced::Done(StageOutcome::Staged(state)))
}

pub(super) async fn wrapped_file(pool: &SqlitePool, kid: Kid) -> Result<Option<Vec<u8>>, StoreError> {
    let query = sqlx::query_scalar("SELECT wrapped_file FROM master_keys WHERE kid = ?1");
    let found: Option<Option<Vec<u8>>> =
        query.bind(kid.as_bytes().as_slice()).fetch_optional(pool).await.map_err(store_error)?;
    Ok(found.flatten())
}

pub(super) async fn abort(
    connection: &mut SqliteConnection,
    fence: &Fence,
    kid: Kid,
    given_up: GivenUp,
) -> Result<Fenced<KeyState>, StoreError> {
    let state = key_state::held(connection).await?;
    if !fence.holds_in(KeyPhase::Staged, &state) || master_state(connection, kid).await? != Some(MasterKeyState::Staged)
    {
        return Ok(Fenced::Elsewhere(state));
    }
    let update = match given_up {
        GivenUp::Aborted => "UPDATE master_keys SET state = 'aborted', wrapped_file = NULL WHERE kid = ?1",
        GivenUp::Retired => concat!(
            "UPDATE master_keys SET state = 'retired', wrapped_file = NULL, retired_at = ",
            now!(),
            " WHERE kid = ?1"
        ),
    };
    let update = sqlx::query(update);
    one_row(&update.bind(kid.as_bytes().as_slice()).execute(&mut *connection).await.map_err(store_error)?)?;
    let state = at_rest(state);
    key_state::store(connection, &state).await?;
    failpoint::reached("store.abort");
    Ok(Fenced::Done(state))
}

pub(super) async fn flip(
    connection: &mut SqliteConnection,
    fence: &Fence,
    to: Kid,
    without: &[NodeId],
) -> Result<Fenced<FlipOutcome>, StoreError> {
    const ACTIVATE: &str =
        concat!("UPDATE master_keys SET state = 'active', activated_at = ", now!(), " WHERE kid = ?1");
    let mut state = key_state::held(connection).await?;
    if !fence.holds_in(KeyPhase::Staged, &state) {
        return Ok(Fenced::Elsewhere(state));
    }
    if master_state(connection, to).await? != Some(MasterKeyState::Staged) {
        return Ok(Fenced::Done(FlipOutcome::NotStaged));
    }
    if !escrows::allows_flip(connection, to).await? {
        return Ok(Fenced::Done(FlipOutcome::NoEscrow));
    }
    let waiting = guards::waiting(nodes::all(&mut *connection).await?, to, without);
    if !waiting.is_empty() {
        return Ok(Fenced::Done(FlipOutcome::Waiting(waiting)));
    }
    // The old one first: there is never more than one active key, between two statements neither.
    let old = sqlx::query("UPDATE master_keys SET state = 'decrypt_only' WHERE kid = ?1 AND state = 'active'");
    let old = old.bind(state.active_kid.as_bytes().as_slice()).execute(&mut *connection);
    one_row(&old.await.map_err(store_error)?)?;
    failpoint::reached("store.flip-half");
    let new = sqlx::query(ACTIVATE).bind(to.as_bytes().as_slice()).execute(&mut *connection);
    one_row(&new.await.map_err(store_error)?)?;
    state.active_kid = to;
    state.epoch = state.epoch.saturating_add(1);
    state.generation = state.generation.saturating_add(1);
    state.phase = KeyPhase::Rewrapping;
    key_state::store(connection, &state).await?;
    failpoint::reached("store.flip");
    Ok(Fenced::Done(FlipOutcome::Flipped(state)))
}

pub(super) async fn set_phase(
    connection: &mut SqliteConnection,
    fence: &Fence,
    to: KeyPhase,
) -> Result<Fenced<KeyState>, StoreError> {
    let mut state = key_state::held(connection).await?;
    if !fence.holds(&state) {
        return Ok(Fenced::Elsewhere(state));
    }
    guards::check_phase(state.phase, to)?;
    if to == KeyPhase::Idle {
        state = at_rest(state);
    }
    state.phase = to;
    key_state::store(connection, &state).await?;
    failpoint::reached("store.phase");
    Ok(Fenced::Done(state))
}

pub(super) async fn retire(
    connection: &mut SqliteConnection,
    fence: &Fence,
    old: Kid,
) -> Result<Fenced<RetireOutcome>, StoreError> {
    const RETIRE: &str = concat!("UPDATE master_keys SET state = 'retired', retired_at = ", now!(), " WHERE kid = ?1");
    let mut state = key_state::held(connection).await?;
    if !fence.holds_in(KeyPhase::Verified, &state) {
        return Ok(Fenced::Elsewhere(state));
    }
    let found = master_state(connection, old).await?;
    if found != Some(MasterKeyState::DecryptOnly) {
        return Ok(Fenced::Done(RetireOutcome::NotDecryptOnly(found)));
    }
    let under = rewrap::count_under(&mut *connection, old).await?;
    if under.in_use > 0 {
        return Ok(Fenced::Done(RetireOutcome::StillUsed(under.in_use)));
    }
    let retire = sqlx::query(RETIRE).bind(old.as_bytes().as_slice()).execute(&mut *connection);
    one_row(&retire.await.map_err(store_error)?)?;
    // Every node has the new key by now, so the file that handed it on goes too.
    let files = sqlx::query("UPDATE master_keys SET wrapped_file = NULL WHERE wrapped_file IS NOT NULL");
    files.execute(&mut *connection).await.map_err(store_error)?;
    match state.mode {
        KeyMode::Normal => state = at_rest(state),
        KeyMode::Compromised => state.phase = KeyPhase::Reencrypting,
    }
    key_state::store(connection, &state).await?;
    failpoint::reached("store.retire");
    Ok(Fenced::Done(RetireOutcome::Retired(state)))
}

/// As it is when no rotation runs.
const fn at_rest(mut state: KeyState) -> KeyState {
    state.phase = KeyPhase::Idle;
    state.mode = KeyMode::Normal;
    state.lease = None;
    state
}

pub(super) async fn destroy(
    connection: &mut SqliteConnection,
    kid: Kid,
    age: Duration,
    waiver: Option<&NewEscrow>,
) -> Result<DestroyOutcome, StoreError> {
    const DESTROY: &str =
        concat!("UPDATE master_keys SET state = 'destroyed', destroyed_at = ", now!(), " WHERE kid = ?1");
    if let Some(waiver) = waiver {
        guards::check_waiver(waiver, kid)?;
    }
    let found = master_state(connection, kid).await?;
    if found != Some(MasterKeyState::Retired) {
        return Ok(DestroyOutcome::NotRetired(found));
    }
    let earliest = Micros(retired_at(connection, kid).await?.saturating_add(micros(age)));
    if key_state::now(connection).await? < earliest {
        return Ok(DestroyOutcome::NotBefore(earliest));
    }
    if waiver.is_none() && !escrows::was_read_back(connection, kid).await? {
        return Ok(DestroyOutcome::NotReadBack);
    }
    let under = rewrap::count_under(&mut *connection, kid).await?;
    if under.quarantined > 0 {
        return Ok(DestroyOutcome::Quarantined(under.quarantined));
    }
    if let Some(waiver) = waiver {
        escrows::add(connection, waiver).await?;
    }
    let destroy = sqlx::query(DESTROY).bind(kid.as_bytes().as_slice()).execute(&mut *connection);
    one_row(&destroy.await.map_err(store_error)?)?;
    key_state::raise_generation(connection).await?;
    failpoint::reached("store.destroy");
    Ok(DestroyOutcome::Destroyed)
}

/// When this retired key was retired. A row that does not say is damaged, and its key is kept.
async fn retired_at(connection: &mut SqliteConnection, kid: Kid) -> Result<i64, StoreError> {
    let query = sqlx::query_scalar("SELECT retired_at FROM master_keys WHERE kid = ?1");
    let at: Option<i64> = query.bind(kid.as_bytes().as_slice()).fetch_one(connection).await.map_err(store_error)?;
    at.ok_or_else(|| rows::retired_without_time(kid))
}

pub(super) async fn accept_restore(
    connection: &mut SqliteConnection,
    at_least: AtLeast,
) -> Result<Accepted, StoreError> {
    let mut state = key_state::held(connection).await?;
    state.epoch = state.epoch.max(at_least.epoch);
    state.generation = state.generation.max(at_least.generation);
    let retired = retire_staged(connection).await?;
    if retired.is_some() {
        state = at_rest(state);
    }
    key_state::store(connection, &state).await?;
    Ok(Accepted { state, retired })
}

/// A later state than the restored one may have had this key in use, so it is kept as long as any that was.
async fn retire_staged(connection: &mut SqliteConnection) -> Result<Option<Kid>, StoreError> {
    const RETIRE: &str = concat!(
        "UPDATE master_keys SET state = 'retired', wrapped_file = NULL, retired_at = ",
        now!(),
        " WHERE state = 'staged' RETURNING kid"
    );
    let staged: Option<Vec<u8>> = sqlx::query_scalar(RETIRE).fetch_optional(connection).await.map_err(store_error)?;
    staged.map(|bytes| rows::staged_kid(&bytes)).transpose()
}

async fn master_state(connection: &mut SqliteConnection, kid: Kid) -> Result<Option<MasterKeyState>, StoreError> {
    let query = sqlx::query_scalar("SELECT state FROM master_keys WHERE kid = ?1");
    let text: Option<String> =
        query.bind(kid.as_bytes().as_slice()).fetch_optional(connection).await.map_err(store_error)?;
    text.map(|text| master_key_state(kid, &text)).transpose()
}
