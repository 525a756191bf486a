//! A DEK that does not open is set aside, and taken back when it does.

use async_trait::async_trait;
use sqlx::postgres::PgConnection;

use super::read::{AllDeks, lock_dek};
use crate::model::{DekRecord, DekState, DekVersion, Kid, Tenant, WrappedDek};
use crate::store::StoreError;
use crate::store::deks::QuarantineOutcome;
use crate::store::guards;
use crate::store::postgres::failure::Failure;
use crate::store::postgres::keys::look;
use crate::store::postgres::locks;
use crate::store::postgres::tx::{End, Read, Work};

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
        sqlx::query("UPDATE containarium.deks SET state = 'quarantined' WHERE tenant = $1 AND dek_version = $2")
            .bind(self.tenant.as_str())
            .bind(i64::from(self.version.get()))
            .execute(&mut *tx)
            .await?;
        Ok(End::Commit(QuarantineOutcome::Done(changed(tx, self.tenant, self.version).await?)))
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
        let state = self.state_after(tx).await?;
        sqlx::query(
            "UPDATE containarium.deks SET state = $3, kid = $4, wrapped = $5 WHERE tenant = $1 AND dek_version = $2",
        )
        .bind(self.tenant.as_str())
        .bind(i64::from(self.version.get()))
        .bind(state.as_str())
        .bind(self.active.as_bytes().as_slice())
        .bind(self.after)
        .execute(&mut *tx)
        .await?;
        Ok(End::Commit(QuarantineOutcome::Done(changed(tx, self.tenant, self.version).await?)))
    }
}

impl Release<'_> {
    async fn state_after(&self, tx: &mut PgConnection) -> Result<DekState, Failure> {
        let deks = AllDeks(self.tenant).run(tx).await?;
        let wrapped = WrappedDek { kid: self.active, bytes: self.after.to_vec() };
        Ok(guards::released(self.version, &deks, wrapped).state())
    }
}

/// The row that this transaction has just changed.
async fn changed(tx: &mut PgConnection, tenant: &Tenant, version: DekVersion) -> Result<DekRecord, Failure> {
    let gone = || StoreError::Refused(format!("DEK {version} of tenant {tenant} went while it was changed"));
    Ok(lock_dek(tx, tenant, version).await?.ok_or_else(gone)?)
}
