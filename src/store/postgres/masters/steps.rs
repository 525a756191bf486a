//! The steps of a rotation up to the flip, and the phases. Each takes the master lock first, and only in later statements reads what the
//! lock guards.

use async_trait::async_trait;
use sqlx::postgres::PgConnection;

use super::fence::{key_state_columns, lock_fenced, master_key_state, one_row};
use super::nodes::all_nodes;
use crate::failpoint;
use crate::model::{KeyMode, KeyPhase, KeyState, Kid, MasterKeyState, NodeId};
use crate::store::guards;
use crate::store::masters::{Fence, Fenced, FlipOutcome, GivenUp, NewMaster, StageOutcome};
use crate::store::postgres::failure::Failure;
use crate::store::postgres::tx::{End, Read, Work};
use crate::store::postgres::{NOW, locks};
use crate::store::rows::KeyStateRow;

pub(super) struct Stage<'a> {
    pub(super) fence: &'a Fence,
    pub(super) key: &'a NewMaster<'a>,
}

#[async_trait]
impl Work for Stage<'_> {
    type Output = Fenced<StageOutcome>;

    async fn run(&mut self, tx: &mut PgConnection) -> Result<End<Self::Output>, Failure> {
        locks::master_exclusive(tx).await?;
        if let Err(state) = lock_fenced(tx, self.fence, KeyPhase::Idle).await? {
            return Ok(End::Rollback(Fenced::Elsewhere(state)));
        }
        if let Some(known) = master_key_state(tx, self.key.kid).await? {
            return Ok(End::Rollback(Fenced::Done(StageOutcome::KnownKid(known))));
        }
        let at: i64 = sqlx::query_scalar(NOW).fetch_one(&mut *tx).await?;
        sqlx::query(
            "INSERT INTO containarium.master_keys (kid, state, created_at, wrapped_file) VALUES ($1, 'staged', $2, $3)",
        )
        .bind(self.key.kid.as_bytes().as_slice())
        .bind(at)
        .bind(self.key.wrapped_file)
        .execute(&mut *tx)
        .await?;
        let state = enter(tx, KeyPhase::Staged, self.key.mode).await?;
        failpoint::reached("store.stage");
        Ok(End::Commit(Fenced::Done(StageOutcome::Staged(state))))
    }
}

pub(super) struct WrappedFile(pub(super) Kid);

#[async_trait]
impl Read for WrappedFile {
    type Output = Option<Vec<u8>>;

    async fn run(&self, connection: &mut PgConnection) -> Result<Option<Vec<u8>>, Failure> {
        let found: Option<Option<Vec<u8>>> =
            sqlx::query_scalar("SELECT wrapped_file FROM containarium.master_keys WHERE kid = $1")
                .bind(self.0.as_bytes().as_slice())
                .fetch_optional(connection)
                .await?;
        Ok(found.flatten())
    }
}

pub(super) struct Abort<'a> {
    pub(super) fence: &'a Fence,
    pub(super) kid: Kid,
    pub(super) given_up: GivenUp,
}

#[async_trait]
impl Work for Abort<'_> {
    type Output = Fenced<KeyState>;

    async fn run(&mut self, tx: &mut PgConnection) -> Result<End<Self::Output>, Failure> {
        locks::master_exclusive(tx).await?;
        let state = match lock_fenced(tx, self.fence, KeyPhase::Staged).await? {
            Ok(state) => state,
            Err(state) => return Ok(End::Rollback(Fenced::Elsewhere(state))),
        };
        let sql = match self.given_up {
            GivenUp::Aborted => {
                "UPDATE containarium.master_keys SET state = 'aborted', wrapped_file = NULL WHERE kid = $1 AND state = 'staged'"
            }
            GivenUp::Retired => {
                "UPDATE containarium.master_keys SET state = 'retired', wrapped_file = NULL, \
                     retired_at = (extract(epoch FROM clock_timestamp()) * 1000000)::bigint WHERE kid = $1 AND state = 'staged'"
            }
        };
        let aborted = sqlx::query(sql).bind(self.kid.as_bytes().as_slice()).execute(&mut *tx).await?.rows_affected();
        if aborted == 0 {
            return Ok(End::Rollback(Fenced::Elsewhere(state)));
        }
        let state = finish(tx).await?;
        failpoint::reached("store.abort");
        Ok(End::Commit(Fenced::Done(state)))
    }
}

pub(super) struct Flip<'a> {
    pub(super) fence: &'a Fence,
    pub(super) to: Kid,
    pub(super) without: &'a [NodeId],
}

#[async_trait]
impl Work for Flip<'_> {
    type Output = Fenced<FlipOutcome>;

    async fn run(&mut self, tx: &mut PgConnection) -> Result<End<Self::Output>, Failure> {
        locks::master_exclusive(tx).await?;
        if let Err(state) = lock_fenced(tx, self.fence, KeyPhase::Staged).await? {
            return Ok(End::Rollback(Fenced::Elsewhere(state)));
        }
        if let Some(missing) = self.missing(tx).await? {
            return Ok(End::Rollback(Fenced::Done(missing)));
        }
        // One after the other: there is one active key at any moment.
        let mut turn = async |sql: &'static str, kid: Kid| {
            one_row(&sqlx::query(sql).bind(kid.as_bytes().as_slice()).execute(&mut *tx).await?, "master_keys")
        };
        turn(
            "UPDATE containarium.master_keys SET state = 'decrypt_only' WHERE kid = $1 AND state = 'active'",
            self.fence.active,
        )
        .await?;
        failpoint::reached("store.flip-half");
        turn(
            "UPDATE containarium.master_keys SET state = 'active', \
                 activated_at = (extract(epoch FROM clock_timestamp()) * 1000000)::bigint WHERE kid = $1 AND state = 'staged'",
            self.to,
        )
        .await?;
        let row: KeyStateRow = sqlx::query_as(concat!(
            "UPDATE containarium.key_state \
             SET active_kid = $1, epoch = epoch + 1, generation = generation + 1, phase = 'rewrapping' RETURNING ",
            key_state_columns!()
        ))
        .bind(self.to.as_bytes().as_slice())
        .fetch_one(&mut *tx)
        .await?;
        failpoint::reached("store.flip");
        Ok(End::Commit(Fenced::Done(FlipOutcome::Flipped(row.record()?))))
    }
}

impl Flip<'_> {
    /// What the flip still lacks.
    async fn missing(&self, tx: &mut PgConnection) -> Result<Option<FlipOutcome>, Failure> {
        if master_key_state(tx, self.to).await? != Some(MasterKeyState::Staged) {
            return Ok(Some(FlipOutcome::NotStaged));
        }
        let escrowed: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM containarium.escrows WHERE kid = $1 AND confirmed_at IS NOT NULL AND lost_as IS NULL AND unread_at IS NULL)",
        )
        .bind(self.to.as_bytes().as_slice())
        .fetch_one(&mut *tx)
        .await?;
        if !escrowed {
            return Ok(Some(FlipOutcome::NoEscrow));
        }
        let waiting = guards::waiting(all_nodes(tx).await?, self.to, self.without);
        Ok((!waiting.is_empty()).then_some(FlipOutcome::Waiting(waiting)))
    }
}

pub(super) struct SetPhase<'a> {
    pub(super) fence: &'a Fence,
    pub(super) to: KeyPhase,
}

#[async_trait]
impl Work for SetPhase<'_> {
    type Output = Fenced<KeyState>;

    async fn run(&mut self, tx: &mut PgConnection) -> Result<End<Self::Output>, Failure> {
        // Shared: a phase keeps nobody from anything; the row's lock keeps two changes of it apart.
        locks::master_shared(tx).await?;
        let state = match lock_fenced(tx, self.fence, self.fence.phase).await? {
            Ok(state) => state,
            Err(state) => return Ok(End::Rollback(Fenced::Elsewhere(state))),
        };
        guards::check_phase(state.phase, self.to)?;
        let state = if self.to == KeyPhase::Idle { finish(tx).await? } else { enter(tx, self.to, state.mode).await? };
        failpoint::reached("store.phase");
        Ok(End::Commit(Fenced::Done(state)))
    }
}

/// The next phase of a rotation that goes on.
pub(super) async fn enter(tx: &mut PgConnection, phase: KeyPhase, mode: KeyMode) -> Result<KeyState, Failure> {
    let row: KeyStateRow = sqlx::query_as(concat!(
        "UPDATE containarium.key_state SET phase = $1, mode = $2 RETURNING ",
        key_state_columns!()
    ))
    .bind(phase.as_str())
    .bind(mode.as_str())
    .fetch_one(tx)
    .await?;
    Ok(row.record()?)
}

/// The end of a rotation, whichever: idle, normal, and nobody's.
pub(super) async fn finish(tx: &mut PgConnection) -> Result<KeyState, Failure> {
    let row: KeyStateRow = sqlx::query_as(concat!(
        "UPDATE containarium.key_state \
         SET phase = 'idle', mode = 'normal', lease_holder = NULL, lease_boot = NULL, lease_until = NULL RETURNING ",
        key_state_columns!()
    ))
    .fetch_one(tx)
    .await?;
    Ok(row.record()?)
}
