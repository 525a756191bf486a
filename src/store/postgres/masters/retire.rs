//! The end of an old master key: retired, later destroyed.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::Row;
use sqlx::postgres::PgConnection;

use super::escrow::insert_escrow;
use super::fence::{lock_fenced, lock_key_state, master_key_state, one_row};
use super::restore::raise_generation;
use super::rewrap::count_under;
use super::steps::{enter, finish};
use crate::failpoint;
use crate::model::{KeyMode, KeyPhase, Kid, MasterKeyState, Micros};
use crate::store::StoreError;
use crate::store::masters::{DestroyOutcome, Fence, Fenced, NewEscrow, RetireOutcome};
use crate::store::postgres::failure::Failure;
use crate::store::postgres::locks;
use crate::store::postgres::tx::{End, Work};
use crate::store::rows::{self, micros};

pub(super) struct Retire<'a> {
    pub(super) fence: &'a Fence,
    pub(super) old: Kid,
}

#[async_trait]
impl Work for Retire<'_> {
    type Output = Fenced<RetireOutcome>;

    async fn run(&mut self, tx: &mut PgConnection) -> Result<End<Self::Output>, Failure> {
        // Not a guard: a rewrap leaves an index entry of each DEK under its old kid, and whoever scans them first marks them dead. Done
        // here, creators of DEKs do not wait for it, as they do from the lock on. Nor do they for a compiler.
        sqlx::query("SELECT pg_catalog.set_config('jit', 'off', true)").execute(&mut *tx).await?;
        count_under(tx, self.old).await?;
        locks::master_exclusive(tx).await?;
        let state = match lock_fenced(tx, self.fence, KeyPhase::Verified).await? {
            Ok(state) => state,
            Err(state) => return Ok(End::Rollback(Fenced::Elsewhere(state))),
        };
        let of_old = master_key_state(tx, self.old).await?;
        if of_old != Some(MasterKeyState::DecryptOnly) {
            return Ok(End::Rollback(Fenced::Done(RetireOutcome::NotDecryptOnly(of_old))));
        }
        let under = count_under(tx, self.old).await?;
        if under.in_use > 0 {
            return Ok(End::Rollback(Fenced::Done(RetireOutcome::StillUsed(under.in_use))));
        }
        let retired = sqlx::query(
            "UPDATE containarium.master_keys SET state = 'retired', \
                 retired_at = (extract(epoch FROM clock_timestamp()) * 1000000)::bigint WHERE kid = $1",
        )
        .bind(self.old.as_bytes().as_slice())
        .execute(&mut *tx)
        .await?;
        one_row(&retired, "master_keys")?;
        sqlx::query("UPDATE containarium.master_keys SET wrapped_file = NULL WHERE wrapped_file IS NOT NULL")
            .execute(&mut *tx)
            .await?;
        let state = match state.mode {
            KeyMode::Normal => finish(tx).await?,
            KeyMode::Compromised => enter(tx, KeyPhase::Reencrypting, state.mode).await?,
        };
        failpoint::reached("store.retire");
        Ok(End::Commit(Fenced::Done(RetireOutcome::Retired(state))))
    }
}

pub(super) struct DestroyMaster<'a> {
    pub(super) kid: Kid,
    pub(super) age: Duration,
    pub(super) waiver: Option<&'a NewEscrow>,
}

#[async_trait]
impl Work for DestroyMaster<'_> {
    type Output = DestroyOutcome;

    async fn run(&mut self, tx: &mut PgConnection) -> Result<End<DestroyOutcome>, Failure> {
        locks::master_exclusive(tx).await?;
        lock_key_state(tx).await?;
        if let Some(refusal) = self.refusal(tx).await? {
            return Ok(End::Rollback(refusal));
        }
        if let Some(waiver) = self.waiver {
            insert_escrow(tx, waiver).await?;
        }
        let destroyed = sqlx::query(
            "UPDATE containarium.master_keys SET state = 'destroyed', wrapped_file = NULL, \
                 destroyed_at = (extract(epoch FROM clock_timestamp()) * 1000000)::bigint WHERE kid = $1",
        )
        .bind(self.kid.as_bytes().as_slice())
        .execute(&mut *tx)
        .await?;
        one_row(&destroyed, "master_keys")?;
        raise_generation(tx).await?;
        failpoint::reached("store.destroy");
        Ok(End::Commit(DestroyOutcome::Destroyed))
    }
}

impl DestroyMaster<'_> {
    async fn refusal(&self, tx: &mut PgConnection) -> Result<Option<DestroyOutcome>, Failure> {
        let row = sqlx::query(
            "SELECT state, retired_at, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now, EXISTS ( \
                 SELECT FROM containarium.escrows e \
                 WHERE e.kid = m.kid AND e.kind = 'copy' AND e.read_back_at IS NOT NULL AND e.lost_as IS NULL \
                 AND e.unread_at IS NULL \
             ) AS read_back FROM containarium.master_keys m WHERE kid = $1",
        )
        .bind(self.kid.as_bytes().as_slice())
        .fetch_optional(&mut *tx)
        .await?;
        let Some(row) = row else { return Ok(Some(DestroyOutcome::NotRetired(None))) };
        let state = rows::master_key_state(self.kid, row.try_get("state")?)?;
        if state != MasterKeyState::Retired {
            return Ok(Some(DestroyOutcome::NotRetired(Some(state))));
        }
        let retired_at = row.try_get::<Option<i64>, _>("retired_at")?.ok_or_else(|| StoreError::Corrupt {
            table: "master_keys",
            key: self.kid.to_string(),
            what: "retired_at is missing".into(),
        })?;
        let not_before = retired_at.saturating_add(micros(self.age));
        if row.try_get::<i64, _>("now")? < not_before {
            return Ok(Some(DestroyOutcome::NotBefore(Micros(not_before))));
        }
        if !row.try_get::<bool, _>("read_back")? && self.waiver.is_none() {
            return Ok(Some(DestroyOutcome::NotReadBack));
        }
        let quarantined = count_under(tx, self.kid).await?.quarantined;
        Ok((quarantined > 0).then_some(DestroyOutcome::Quarantined(quarantined)))
    }
}
