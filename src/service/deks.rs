//! The life of a tenant's DEKs after the first: a new one and what that leaves to re-encrypt, shredding, quarantine.

mod quarantine;
mod reencrypt;
mod shred;

use std::sync::Arc;

use super::change::Change;
use super::dek::RingDekMaker;
use super::job::{Reporter, Watch};
use super::{Error, Request, Service, Touched};
use crate::access::AdminGrant;
use crate::audit::Outcome;
use crate::model::{Action, DekBody, DekRecord, DekVersion, Tenant};
use crate::store::deks::RotateDekOutcome;
use crate::store::{Page, SealRefusal, Store};

pub use quarantine::QuarantineOrder;
pub use reencrypt::Reencrypted;
pub use shred::{SHRED_WAIT, ShredOrder, Shredding};

/// Tenants that are read at a time.
const TENANTS: u32 = 500;
/// How often a rotation starts anew because somebody else's came first.
const ATTEMPTS: u32 = 8;
/// How many damaged things a message names; the log names all.
const NAMED: usize = 5;

/// Whose DEK.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whose {
    /// One tenant's; the system's too.
    Tenant(Tenant),
    /// Every tenant's, and the system's.
    All,
}

/// What becomes of a DEK and of what it sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// A new one becomes active; the old one decrypts only.
    Rotate,
    /// And every version is sealed anew, and the old DEKs are removed.
    RotateAndReencrypt,
    /// The latter without the former: goes on with one that was interrupted.
    Reencrypt,
}

/// What a `rotate-dek` did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RotatedDeks {
    /// Tenants that were gone through, the system's own among them.
    pub tenants: u64,
    /// New DEKs.
    pub rotated: u64,
    /// Versions that were sealed anew.
    pub reencrypted: u64,
    /// Old DEKs that are gone.
    pub removed: u64,
    /// Quarantined DEKs, which were left as they are, with what they sealed.
    pub quarantined: u64,
    /// Tenants that are blocked by a shred, which were passed over.
    pub blocked: u64,
}

/// What is left undone, as a message says it.
#[derive(Default)]
struct Left {
    versions: u64,
    tenants: u64,
    named: Vec<String>,
}

impl Left {
    fn add(&mut self, reencrypted: &Reencrypted) {
        self.versions += reencrypted.left;
        self.name(reencrypted.damaged.iter().cloned());
    }

    fn add_tenant(&mut self, tenant: &Tenant, why: &str) {
        tracing::error!(%tenant, "its DEK was not rotated: {why}");
        self.tenants += 1;
        self.name([format!("tenant {tenant}: {why}")]);
    }

    fn name(&mut self, what: impl IntoIterator<Item = String>) {
        let room = NAMED.saturating_sub(self.named.len());
        self.named.extend(what.into_iter().take(room));
    }

    fn into_result(self, done: RotatedDeks) -> Result<RotatedDeks, Error> {
        if self.versions == 0 && self.tenants == 0 {
            return Ok(done);
        }
        let RotatedDeks { rotated, reencrypted, removed, .. } = done;
        let Self { versions, tenants, named } = self;
        let named = named.join("; ");
        let failed = if tenants == 0 { String::new() } else { format!("; {tenants} tenants failed") };
        Err(Error::Incomplete(format!(
            "{versions} versions do not open and stay as they are, with the DEKs that sealed them{failed}; all else is done ({rotated} new \
             DEKs, {reencrypted} versions re-encrypted, {removed} old DEKs removed). Set such a secret anew and destroy the version, or \
             quarantine a DEK that does not open; then --resume. The daemon's log names each, such as: {named}"
        )))
    }
}

impl Service {
    /// Gives tenants new DEKs, in the background.
    ///
    /// # Errors
    /// [`Error::Conflict`] while another is under way; [`Error::Unavailable`] when the daemon is stopping, or writes are closed.
    pub async fn rotate_deks(
        self: &Arc<Self>,
        request: Request,
        grant: AdminGrant,
        whose: Whose,
        how: Renewal,
    ) -> Result<Watch<RotatedDeks>, Error> {
        self.may_change().await?;
        let service = Arc::clone(self);
        self.rotating_deks.begin(&self.workers, |reporter| async move {
            let walk = DekWalk { service: &service, request, grant, how, reporter };
            match whose {
                Whose::Tenant(tenant) => walk.one(&tenant).await,
                Whose::All => walk.all().await,
            }
        })
    }

    /// A look at the one that is under way, or was last.
    ///
    /// # Errors
    /// [`Error::NotFound`] where there was none since the start; [`Error::Unavailable`] where the call could not be recorded.
    pub async fn follow_rotate_deks(&self, request: &Request, grant: &AdminGrant) -> Result<Watch<RotatedDeks>, Error> {
        let watch = self.rotating_deks.watch();
        let outcome = watch.as_ref().map_or_else(Error::outcome, |_| Outcome::Ok);
        let touched = [Touched::nothing(outcome)];
        self.record(request, grant.identity(), Action::FollowRotateDek, None, touched).await?;
        watch
    }

    /// Gives a tenant a new active DEK. One that has none, since its DEK was set aside, gets one too.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a tenant without a DEK; [`Error::Denied`] for a blocked one; [`Error::Unavailable`].
    pub(super) async fn renew_dek(&self, store: &dyn Store, tenant: &Tenant) -> Result<(), Error> {
        for _ in 0..ATTEMPTS {
            let deks = self.store.deks(tenant).await?;
            if deks.is_empty() {
                return Err(Error::NotFound(format!("tenant {tenant} is unknown, or has no secret yet")));
            }
            let Some(active) = deks.iter().find(|dek| matches!(dek.body, DekBody::Active(_))) else {
                return self.make_dek(tenant).await;
            };
            self.node.may_write().await?;
            match store.rotate_dek(tenant, active.version, &RingDekMaker(&self.keys)).await? {
                RotateDekOutcome::Rotated(_) => return Ok(()),
                // Another call was faster; what it made is as new, but was not made at this call's word.
                RotateDekOutcome::NotActive(_) => {}
                RotateDekOutcome::NoTenant => return Err(Error::NotFound(format!("tenant {tenant} is unknown"))),
                RotateDekOutcome::Blocked => return Err(blocked(tenant)),
                RotateDekOutcome::Refused(SealRefusal::NotLoaded(kid)) => self.node.look_for(kid).await,
                RotateDekOutcome::Refused(refusal) => return Err(refusal.into()),
            }
        }
        Err(Error::Unavailable(format!("the DEK of tenant {tenant} changed again and again; try once more")))
    }

    async fn quarantined(&self, tenant: &Tenant) -> Result<u64, Error> {
        let deks = self.store.deks(tenant).await?;
        Ok(deks.iter().filter(|dek| matches!(dek.body, DekBody::Quarantined(_))).count() as u64)
    }
}

/// One `rotate-dek` on its way.
struct DekWalk<'a> {
    service: &'a Service,
    request: Request,
    grant: AdminGrant,
    how: Renewal,
    reporter: Reporter,
}

impl DekWalk<'_> {
    async fn one(&self, tenant: &Tenant) -> Result<RotatedDeks, Error> {
        let (mut done, mut left) = (RotatedDeks::default(), Left::default());
        let step = format!("re-encrypting the versions of {tenant}");
        let say = |versions, total| self.reporter.say(step.clone(), versions, Some(total));
        self.tenant(tenant, &say, &mut done, &mut left).await?;
        done.tenants = 1;
        left.into_result(done)
    }

    /// One tenant after the other, by name. What is wrong with one is told at the end and keeps no other from its turn.
    async fn all(&self) -> Result<RotatedDeks, Error> {
        let (mut done, mut left) = (RotatedDeks::default(), Left::default());
        let store = &self.service.store;
        let total = store.counts().await?.tenants + 1;
        let mut after: Option<Tenant> = None;
        let mut next = vec![(Tenant::system(), 0)];
        loop {
            for (tenant, secrets) in &next {
                self.reporter.say("rotating the DEKs of tenants", done.tenants, Some(total));
                match self.tenant(tenant, &|_, _| (), &mut done, &mut left).await {
                    Err(Error::NotFound(_)) if *secrets > 0 => {
                        left.add_tenant(tenant, "it has secrets, and its DEKs are missing from the database");
                    }
                    // A tenant that has no DEK needs no new one.
                    Ok(()) | Err(Error::NotFound(_)) => {}
                    Err(Error::Internal(failure)) => left.add_tenant(tenant, &failure.to_string()),
                    Err(Error::Denied(_)) => done.blocked += 1,
                    Err(error) => return Err(error),
                }
                done.tenants += 1;
            }
            let Page { items, more: _ } = store.tenants(after.as_ref(), TENANTS).await?;
            let Some(last) = items.last() else { break };
            after = Some(last.tenant.clone());
            next = items.into_iter().map(|record| (record.tenant, record.secrets)).collect();
        }
        left.into_result(done)
    }

    async fn tenant(
        &self,
        tenant: &Tenant,
        say: &(dyn Fn(u64, u64) + Send + Sync),
        done: &mut RotatedDeks,
        left: &mut Left,
    ) -> Result<(), Error> {
        self.reporter.go_on()?;
        if self.how != Renewal::Reencrypt {
            let change = self.change(Action::RotateDek, tenant).await?;
            let renewed = self.service.renew_dek(change.store(), tenant).await;
            let touched = |outcome| vec![Touched::nothing(outcome)];
            self.service.recorded_change(&self.request, self.grant.identity(), &change, touched, renewed).await?;
            done.rotated += 1;
        }
        if self.how == Renewal::Rotate {
            return Ok(());
        }
        let change = self.change(Action::Reseal, tenant).await?;
        let reencrypted = self.service.reencrypt_tenant(change.store(), tenant, &self.reporter, say).await;
        let reencrypted = self.recorded(Action::Reencrypt, tenant, reencrypted).await?;
        done.reencrypted += reencrypted.versions;
        done.removed += reencrypted.removed;
        done.quarantined += self.service.quarantined(tenant).await?;
        left.add(&reencrypted);
        Ok(())
    }

    async fn change(&self, action: Action, tenant: &Tenant) -> Result<Change, Error> {
        self.service.change(&self.request, self.grant.identity(), action, Some(tenant)).await
    }

    async fn recorded<T>(&self, action: Action, tenant: &Tenant, result: Result<T, Error>) -> Result<T, Error> {
        self.service.recorded_admin(&self.request, &self.grant, action, tenant, result).await
    }
}

fn blocked(tenant: &Tenant) -> Error {
    Error::Denied(format!("tenant {tenant} is blocked: a shred is pending or done"))
}

/// As messages name a DEK.
fn named(tenant: &Tenant, version: DekVersion) -> String {
    format!("DEK version {version} of tenant {tenant}")
}

fn unknown(tenant: &Tenant, version: DekVersion) -> Error {
    Error::NotFound(format!("there is no {}", named(tenant, version)))
}

/// What else a DEK is than what a call starts from.
fn elsewhere(dek: &DekRecord) -> Error {
    Error::Conflict(format!("{} is {}", named(&dek.tenant, dek.version), dek.body.state()))
}
