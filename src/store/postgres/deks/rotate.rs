//! A tenant's next DEK, and the removal of one that nothing needs.

use async_trait::async_trait;
use sqlx::postgres::PgConnection;

use super::read::lock_dek;
use crate::failpoint;
use crate::model::{DekBody, DekRecord, DekState, DekVersion, Tenant, WrappedDek};
use crate::store::deks::{RemoveDekOutcome, RotateDekOutcome};
use crate::store::postgres::failure::Failure;
use crate::store::postgres::keys::{Next, Standing, active_dek, insert_dek, look, next_version};
use crate::store::postgres::tx::{End, Work};
use crate::store::postgres::{NOW, locks};
use crate::store::{DekMaker, StoreError, rows};

pub(super) struct RotateDek<'a> {
    pub(super) tenant: &'a Tenant,
    pub(super) from: DekVersion,
    pub(super) maker: &'a dyn DekMaker,
}

#[async_trait]
impl Work for RotateDek<'_> {
    type Output = RotateDekOutcome;

    async fn run(&mut self, tx: &mut PgConnection) -> Result<End<RotateDekOutcome>, Failure> {
        locks::master_shared(tx).await?;
        locks::tenant_exclusive(tx, self.tenant).await?;
        let (standing, active_kid) = look(tx, self.tenant).await?;
        match standing {
            Standing::Unknown => return Ok(End::Rollback(RotateDekOutcome::NoTenant)),
            Standing::Blocked => return Ok(End::Rollback(RotateDekOutcome::Blocked)),
            Standing::Open => {}
        }
        let active = active_dek(tx, self.tenant).await?.map(|dek| dek.version);
        if active != Some(self.from) {
            return Ok(End::Rollback(RotateDekOutcome::NotActive(active)));
        }
        let version = match next_version(tx, self.tenant).await? {
            Next::Version(version) => version,
            Next::Orphans(orphaned) => return Err(self.orphans(orphaned).into()),
        };
        let new = match self.maker.make(self.tenant, version, active_kid) {
            Ok(new) => new,
            Err(refusal) => return Ok(End::Rollback(RotateDekOutcome::Refused(refusal))),
        };
        let at: i64 = sqlx::query_scalar(NOW).fetch_one(&mut *tx).await?;
        sqlx::query(
            "UPDATE containarium.deks SET state = 'decrypt_only' WHERE tenant = $1 AND dek_version = $2 AND state = 'active'",
        )
        .bind(self.tenant.as_str())
        .bind(i64::from(self.from.get()))
        .execute(&mut *tx)
        .await?;
        // Two active ones are refused by the index, should the one before not have gone.
        insert_dek(tx, self.tenant, version, active_kid, &new, at).await?;
        let wrapped = WrappedDek { kid: active_kid, bytes: new.wrapped };
        let dek = DekRecord { tenant: self.tenant.clone(), version, id: new.id, body: DekBody::Active(wrapped) };
        failpoint::reached("store.rotate-dek");
        Ok(End::Commit(RotateDekOutcome::Rotated(dek)))
    }
}

impl RotateDek<'_> {
    /// A new DEK could take the number of the one that is missing, and bury what it sealed.
    fn orphans(&self, version: DekVersion) -> StoreError {
        StoreError::Refused(format!(
            "live versions of tenant {} need its DEK {version}, whose row is missing: restore table deks first",
            self.tenant
        ))
    }
}

pub(super) struct RemoveDek<'a> {
    pub(super) tenant: &'a Tenant,
    pub(super) version: DekVersion,
}

#[async_trait]
impl Work for RemoveDek<'_> {
    type Output = RemoveDekOutcome;

    async fn run(&mut self, tx: &mut PgConnection) -> Result<End<RemoveDekOutcome>, Failure> {
        locks::master_shared(tx).await?;
        locks::tenant_exclusive(tx, self.tenant).await?;
        let Some(dek) = lock_dek(tx, self.tenant, self.version).await? else {
            return Ok(End::Rollback(RemoveDekOutcome::Unknown));
        };
        if dek.body.state() != DekState::DecryptOnly {
            return Ok(End::Rollback(RemoveDekOutcome::NotDecryptOnly));
        }
        let sealed: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM containarium.secret_versions WHERE tenant = $1 AND dek_version = $2",
        )
        .bind(self.tenant.as_str())
        .bind(i64::from(self.version.get()))
        .fetch_one(&mut *tx)
        .await?;
        if sealed > 0 {
            return Ok(End::Rollback(RemoveDekOutcome::StillUsed(rows::count(sealed))));
        }
        sqlx::query("DELETE FROM containarium.deks WHERE tenant = $1 AND dek_version = $2")
            .bind(self.tenant.as_str())
            .bind(i64::from(self.version.get()))
            .execute(tx)
            .await?;
        failpoint::reached("store.remove-dek");
        Ok(End::Commit(RemoveDekOutcome::Removed))
    }
}
