//! A DEK that does not open is set aside, and taken back when it does.

use async_trait::async_trait;
use sqlx::postgres::PgConnection;

use super::read::{self, lock_dek};
use crate::model::{DekBody, DekRecord, DekState, DekVersion, Kid, Tenant, WrappedDek};
use crate::store::deks::QuarantineOutcome;
use crate::store::guards;
use crate::store::postgres::failure::Failure;
use crate::store::postgres::keys::look;
use crate::store::postgres::locks;
use crate::store::postgres::tx::{End, Work};

pub(super) struct Quarantine<'a> {
    pub(super) tenant: &'a Tenant,
    pub(super) version: DekVersion,
    pub(super) wrapping: &'a WrappedDek,
}

#[async_trait]
impl Work for Quarantine<'_> {
    type Output = QuarantineOutcome;

    async fn run(&mut self, tx: &mut PgConnection) -> Result<End<QuarantineOutcome>, Failure> {
        locks::master_shared(tx).await?;
        locks::tenant_exclusive(tx, self.tenant).await?;
        let Some(dek) = lock_dek(tx, self.tenant, self.version).await? else {
            return Ok(End::Rollback(QuarantineOutcome::Unknown));
        };
        let in_use = matches!(dek.body.state(), DekState::Active | DekState::DecryptOnly);
        if !in_use || dek.wrapping() != Some(self.wrapping) {
            return Ok(End::Rollback(QuarantineOutcome::Elsewhere(dek)));
        }
        let body = DekBody::Quarantined(self.wrapping.clone());
        sqlx::query("UPDATE containarium.deks SET state = 'quarantined' WHERE tenant = $1 AND dek_version = $2")
            .bind(self.tenant.as_str())
            .bind(i64::from(self.version.get()))
            .execute(tx)
            .await?;
        Ok(End::Commit(QuarantineOutcome::Done(DekRecord { body, ..dek })))
    }
}

pub(super) struct Release<'a> {
    pub(super) tenant: &'a Tenant,
    pub(super) version: DekVersion,
    pub(super) before: &'a WrappedDek,
    /// The wrapping by `active`.
    pub(super) after: &'a [u8],
    pub(super) active: Kid,
}

#[async_trait]
impl Work for Release<'_> {
    type Output = QuarantineOutcome;

    async fn run(&mut self, tx: &mut PgConnection) -> Result<End<QuarantineOutcome>, Failure> {
        locks::master_shared(tx).await?;
        locks::tenant_exclusive(tx, self.tenant).await?;
        let (_, active_kid) = look(tx, self.tenant).await?;
        let Some(dek) = lock_dek(tx, self.tenant, self.version).await? else {
            return Ok(End::Rollback(QuarantineOutcome::Unknown));
        };
        let set_aside = dek.body.state() == DekState::Quarantined && dek.wrapping() == Some(self.before);
        if !set_aside || active_kid != self.active {
            return Ok(End::Rollback(QuarantineOutcome::Elsewhere(dek)));
        }
        let wrapped = WrappedDek { kid: self.active, bytes: self.after.to_vec() };
        let body = guards::released(self.version, &read::deks(tx, self.tenant).await?, wrapped);
        sqlx::query(
            "UPDATE containarium.deks SET state = $3, kid = $4, wrapped = $5 WHERE tenant = $1 AND dek_version = $2",
        )
        .bind(self.tenant.as_str())
        .bind(i64::from(self.version.get()))
        .bind(body.state().as_str())
        .bind(self.active.as_bytes().as_slice())
        .bind(self.after)
        .execute(tx)
        .await?;
        Ok(End::Commit(QuarantineOutcome::Done(DekRecord { body, ..dek })))
    }
}
