//! Shredding: a tenant is blocked at once, and its DEKs are destroyed when the time has come, so that its ciphertexts are gone for good.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use super::super::{By, Error, Request, Service, Touched};
use crate::access::AdminGrant;
use crate::audit::Outcome;
use crate::crypto;
use crate::model::{Action, Micros, Tenant, TenantRecord};
use crate::store::Store;
use crate::store::deks::{ShredOutcome, ShredWhen};

/// How long a shred can be cancelled.
pub const SHRED_WAIT: Duration = Duration::from_hours(7 * 24);
/// How often shreds are looked for whose time has come.
const LOOK_EVERY: Duration = Duration::from_mins(1);
const PAGE: u32 = 100;

/// What to do with a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShredOrder {
    /// Block it now, destroy its DEKs after [`SHRED_WAIT`].
    Schedule,
    /// Destroy them now, pending or not.
    Now,
    Cancel,
}

impl ShredOrder {
    #[must_use]
    pub const fn action(self) -> Action {
        match self {
            Self::Schedule => Action::ScheduleShred,
            Self::Now => Action::Shred,
            Self::Cancel => Action::CancelShred,
        }
    }
}

/// A tenant after an order, and when its end is final.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shredding {
    pub tenant: TenantRecord,
    /// When the last backup of the database that holds a wrapped DEK of it expires; absent where backups' retention is not known, or
    /// the tenant is not to be shredded.
    pub final_at: Option<Micros>,
}

impl Service {
    /// Carries an order out. When it answers, this node's record on disk has it too.
    ///
    /// # Errors
    /// [`Error::Invalid`] for the system's tenant; [`Error::NotFound`]; [`Error::Conflict`] where the tenant is not in the state that the
    /// order starts from, which the message names; [`Error::Unavailable`].
    pub async fn shred(
        &self,
        request: &Request,
        grant: &AdminGrant,
        tenant: &Tenant,
        order: ShredOrder,
    ) -> Result<Shredding, Error> {
        let change = self.change(request, grant.identity(), order.action(), Some(tenant)).await?;
        let blocking = self.change(request, grant.identity(), Action::ScheduleShred, Some(tenant)).await?;
        let result = self.order_shred(change.store(), blocking.store(), tenant, order).await;
        let touched = |outcome| vec![Touched::nothing(outcome)];
        self.recorded_change(request, grant.identity(), &change, touched, result).await
    }

    /// `blocking`: where a tenant is blocked whose DEKs are destroyed next.
    async fn order_shred(
        &self,
        store: &dyn Store,
        blocking: &dyn Store,
        tenant: &Tenant,
        order: ShredOrder,
    ) -> Result<Shredding, Error> {
        if tenant.is_system() {
            return Err(Error::Invalid(format!("tenant {tenant} is the system's own and cannot be shredded")));
        }
        self.may_change().await?;
        let outcome = match order {
            ShredOrder::Schedule => store.schedule_shred(tenant, SHRED_WAIT).await?,
            ShredOrder::Cancel => store.cancel_shred(tenant).await?,
            ShredOrder::Now => match blocking.schedule_shred(tenant, Duration::ZERO).await? {
                // Blocked first: a crash before the next statement leaves a shred that is due.
                ShredOutcome::Done { .. } | ShredOutcome::Elsewhere(_) => store.shred(tenant, ShredWhen::Now).await?,
                outcome @ ShredOutcome::NoTenant => outcome,
            },
        };
        let record = match outcome {
            ShredOutcome::Done { tenant, .. } => tenant,
            ShredOutcome::NoTenant => return Err(Error::NotFound(format!("tenant {tenant} is unknown"))),
            ShredOutcome::Elsewhere(record) => return Err(not_now(&record)),
        };
        if record.shredded_at.is_some() {
            self.forget_deks(tenant).await;
        }
        self.noted().await?;
        Ok(Shredding { final_at: self.final_at(&record), tenant: record })
    }

    /// When the last backup expires that can hold a wrapped DEK of a tenant: one that was made just before they were destroyed.
    #[must_use]
    pub fn final_at(&self, tenant: &TenantRecord) -> Option<Micros> {
        let destroyed = tenant.shredded_at.or(tenant.shred_at)?;
        let retention = i64::try_from(self.database_retention?.as_micros()).ok()?;
        destroyed.0.checked_add(retention).map(Micros)
    }

    /// Brings the change onto this node's disk, so that a restored database does not undo it unnoticed.
    async fn noted(&self) -> Result<(), Error> {
        self.node.tick().await.map_err(|error| {
            tracing::error!("a shred was entered in the database, and this node could not record it: {error}");
            Error::Unavailable(
                "the change was made, but this node could not record it yet; `containarium admin tenants` shows it"
                    .to_owned(),
            )
        })
    }

    /// Unwrapped DEKs of a shredded tenant are refused by their rows; they need not stay in memory either. On other nodes they expire.
    async fn forget_deks(&self, tenant: &Tenant) {
        match self.store.deks(tenant).await {
            Ok(deks) => deks.iter().for_each(|dek| self.keys.forget(dek)),
            Err(error) => tracing::warn!("unwrapped DEKs of a shredded tenant stay cached until they expire: {error}"),
        }
    }

    /// Destroys the DEKs of tenants whose time has come: now, and at least each minute until the daemon stops.
    pub fn keep_shredding(self: &Arc<Self>) {
        let service = Arc::clone(self);
        self.workers.spawn(async move {
            let mut looks = tokio::time::interval(LOOK_EVERY);
            looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    biased;
                    () = service.workers.stopping() => return,
                    _ = looks.tick() => service.shred_due().await,
                }
            }
        });
    }

    /// What cannot be done now is said, and tried again a minute later.
    async fn shred_due(&self) {
        // A closed gate was said where it closed, and the database's absence too. While the keys are locked nothing is changed: this may
        // not even be the database that is meant.
        if !self.keys_are_open() || self.node.may_write().await.is_err() {
            return;
        }
        if let Err(error) = self.shred_a_page().await {
            tracing::warn!("shreds that are due wait for the next minute: {error}");
        }
    }

    async fn shred_a_page(&self) -> Result<(), Error> {
        let due = self.store.due_shreds(PAGE).await?;
        let mut shredded = 0_u32;
        for tenant in &due {
            let change = self.own_change(Action::Shred, Some(tenant)).await?;
            match change.store().shred(tenant, ShredWhen::Due).await {
                Ok(ShredOutcome::Done { .. }) => {
                    shredded += 1;
                    tracing::info!(%tenant, "the tenant's time had come: its DEKs are destroyed");
                    self.forget_deks(tenant).await;
                }
                // Cancelled, or done by another node.
                Ok(ShredOutcome::Elsewhere(_) | ShredOutcome::NoTenant) => {}
                Err(error) => {
                    tracing::error!(%tenant, "a shred that is due failed: {error}");
                    self.record_own(Action::Shred, tenant, Outcome::Failed).await?;
                }
            }
        }
        if shredded > 0 { self.noted().await } else { Ok(()) }
    }

    async fn record_own(&self, action: Action, tenant: &Tenant, outcome: Outcome) -> Result<(), Error> {
        let id = crypto::random_id().map_err(|_| Error::Unavailable("no random bytes for a record's id".to_owned()))?;
        let by = By::daemon(&id);
        self.write_records(&by, action, Some(tenant), [Touched::nothing(outcome)]).await
    }
}

fn not_now(record: &TenantRecord) -> Error {
    let tenant = &record.tenant;
    Error::Conflict(match (record.shred_at, record.shredded_at) {
        (_, Some(at)) => format!("tenant {tenant} was shredded at {at}; nothing brings it back"),
        (Some(at), None) => format!(
            "a shred of tenant {tenant} is pending until {at}: `containarium admin shred {tenant} --cancel` cancels it, --now does it now"
        ),
        (None, None) => format!("no shred of tenant {tenant} is pending"),
    })
}
