//! From the flip on: every DEK under the new key, proven, promoted, and the old key retired; and at last destroyed.

use std::sync::Arc;

use super::super::plan::{Blocked, Tried, Waiver};
use super::super::verify::VerifyError;
use super::super::walk::{self, Walked};
use super::super::{Damaged, Escrow, Order};
use super::escrow::waiver;
use super::trouble::blocked;
use super::{Carrier, Trouble, elsewhere};
use crate::failpoint;
use crate::model::{Action, KeyPhase, Kid, Tenant};
use crate::service::Error;
use crate::service::backup::Standing;
use crate::store::masters::{DestroyOutcome, Fence, Fenced, NewEscrow, RetireOutcome};

/// Tenants that are read at a time.
const TENANTS: u32 = 500;

impl Carrier {
    pub(super) async fn rewrap(&mut self, fence: &Fence, old: Kid, left: u64) -> Result<(), Trouble> {
        let (store, keys) = (Arc::clone(&self.service.store), Arc::clone(&self.service.keys));
        let before = self.tally.rewrapped;
        let total = Some(before + left);
        let tell = |done| self.tell("rewrap", before + done, total);
        match walk::rewrap(&*store, &keys, fence, old, tell).await? {
            Ok(walked) => {
                self.tally.old = Some(old);
                self.tally.rewrapped += walked.done;
                self.run.idle_passes = if walked.done == 0 { self.run.idle_passes + 1 } else { 0 };
                self.note_damage(walked);
                failpoint::reached("rotation.rewrapped");
            }
            Err(state) => elsewhere(&state),
        }
        Ok(())
    }

    pub(super) async fn set_phase(&self, fence: &Fence, to: KeyPhase) -> Result<(), Trouble> {
        if let Fenced::Elsewhere(state) = self.service.store.set_phase(fence, to).await? {
            elsewhere(&state);
        }
        Ok(())
    }

    pub(super) async fn verify(&mut self, fence: &Fence) -> Result<(), Trouble> {
        failpoint::reached("rotation.verifying");
        let tell = |done| self.tell("verify", done, None);
        match self.service.rotation.verifier.run(tell).await {
            Err(VerifyError::Stopping(error)) => return Err(Trouble::Failed(error)),
            Err(VerifyError::Failed(why)) => self.run.verification = Some(why),
            Ok(walked) if walked.damaged.is_empty() => {
                self.tally.verified = walked.done;
                failpoint::reached("rotation.verified");
                self.set_phase(fence, KeyPhase::Verified).await?;
                failpoint::reached("rotation.verified-phase");
            }
            Ok(walked) => self.note_damage(walked),
        }
        Ok(())
    }

    pub(super) async fn promote(&mut self, kid: Kid) -> Result<(), Trouble> {
        failpoint::reached("rotation.promoting");
        match self.with_files(move |files| files.lock()?.promote(kid)).await? {
            Ok(()) => failpoint::reached("rotation.promoted"),
            Err(error) => self.run.promotion = Some(format!("the active key was not put into the key file: {error}")),
        }
        Ok(())
    }

    pub(super) async fn retire(&mut self, fence: &Fence, old: Kid) -> Result<(), Trouble> {
        failpoint::reached("rotation.retiring");
        let change = self.change(Action::RetireMaster, None).await?;
        let retired = change.store().retire(fence, old).await?;
        failpoint::reached("rotation.retired");
        match retired {
            Fenced::Done(RetireOutcome::Retired(_)) => {
                tracing::info!("master key {old} is retired: the database refuses it from now on");
                self.tally.old = Some(old);
            }
            Fenced::Done(other) => tracing::warn!("not retired: {other:?}"),
            Fenced::Elsewhere(state) => elsewhere(&state),
        }
        Ok(())
    }

    /// Every tenant with a DEK from before, one after the other; what is wrong with one keeps no other from its turn.
    pub(super) async fn reencrypt(&mut self) -> Result<(), Trouble> {
        let (mut walked, mut after) = (Walked::default(), None);
        let total = self.service.store.counts().await?.tenants;
        loop {
            let page = self.service.store.made_before_active(after.as_ref(), TENANTS).await?;
            for tenant in &page {
                self.tell("reencrypt", self.tally.reencrypted, Some(total)).map_err(Trouble::Failed)?;
                if let Some(damaged) = self.reencrypt_tenant(tenant).await? {
                    walked.damaged.push(damaged);
                }
            }
            after = page.into_iter().next_back();
            if after.is_none() {
                break;
            }
        }
        self.note_damage(walked);
        Ok(())
    }

    async fn reencrypt_tenant(&mut self, tenant: &Tenant) -> Result<Option<Damaged>, Trouble> {
        failpoint::reached("rotation.renewing-dek");
        let change = self.change(Action::RotateDek, Some(tenant)).await?;
        if let Err(error) = self.service.renew_dek(change.store(), tenant).await {
            return unless_away(tenant, error);
        }
        failpoint::reached("rotation.renewed-dek");
        if tenant.is_system() {
            // The versions before stay: records of their time are verified with them.
            self.service.renew_system_keys().await.map_err(Trouble::Failed)?;
            failpoint::reached("rotation.renewed-system-keys");
        }
        let change = self.change(Action::Reseal, Some(tenant)).await?;
        let sealed = match self.service.reencrypt_tenant(change.store(), tenant, &self.reporter, &|_, _| ()).await {
            Ok(sealed) => sealed,
            Err(error) => return unless_away(tenant, error),
        };
        failpoint::reached("rotation.reencrypted-tenant");
        self.tally.reencrypted += 1;
        let why = || format!("{} versions do not open: {}", sealed.left, sealed.damaged.join("; "));
        Ok((sealed.left > 0 || !sealed.damaged.is_empty()).then(|| Damaged {
            tenant: tenant.clone(),
            version: None,
            why: why(),
        }))
    }

    pub(super) async fn destroy(&mut self, kid: Kid, by: Waiver, order: &Order) -> Result<(), Trouble> {
        failpoint::reached("rotation.destroying");
        let waiver = match by {
            Waiver::None => self.unless_seen(kid, order).await?,
            Waiver::ByOperator => Some(waiver(kid, &order.who)?),
        };
        let change = self.change(Action::DestroyMaster, None).await?;
        self.run.tried = Some(Tried::Destroy(kid));
        let outcome = change.store().destroy_master(kid, self.service.rotation.retain_old, waiver.as_ref()).await?;
        failpoint::reached("rotation.destroyed");
        match outcome {
            DestroyOutcome::Destroyed => Ok(()),
            DestroyOutcome::NotRetired(state) => Err(match state {
                Some(state) => Blocked::NotRetired { kid, state },
                None => Blocked::UnknownKey(kid),
            }),
            DestroyOutcome::NotBefore(at) => Err(Blocked::TooEarly { kid, at }),
            DestroyOutcome::NotReadBack => Err(Blocked::NotReadBack(kid)),
            DestroyOutcome::Quarantined(deks) => Err(Blocked::Quarantined { kid, deks }),
        }
        .map_err(|why| Trouble::Failed(blocked(&why)))
    }
}

impl Carrier {
    /// Nothing where a copy that was read back is there now: what the daemon saw of it may be a day old, and a key is destroyed for good. The
    /// operator's waiver where one was given.
    async fn unless_seen(&self, kid: Kid, order: &Order) -> Result<Option<NewEscrow>, Trouble> {
        self.reporter.say(format!("looking for the copies of master key {kid}"), 0, None);
        let why = match self.service.proven_copies(kid).await? {
            Standing::Stands => return Ok(None),
            _ if order.asked.escrow() == Escrow::Waive => return waiver(kid, &order.who).map(Some),
            Standing::Lost => Blocked::NotReadBack(kid),
            Standing::Unseen { locator, seen, why } => Blocked::NotSeen { kid, locator, seen, why },
        };
        Err(Trouble::Failed(blocked(&why)))
    }
}

/// What concerns one tenant is kept for the end; a database that is away is waited for.
fn unless_away(tenant: &Tenant, error: Error) -> Result<Option<Damaged>, Trouble> {
    match error {
        Error::Unavailable(why) => Err(Trouble::Away(why)),
        // Blocked or gone since: nothing of it is read any more.
        Error::Denied(_) | Error::NotFound(_) => Ok(None),
        error => Ok(Some(Damaged { tenant: tenant.clone(), version: None, why: error.to_string() })),
    }
}
