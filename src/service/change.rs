//! A change and its record, in one transaction.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{By, Error, Request, Service};
use crate::access::Identity;
use crate::audit::{Audit, Outcome, Record};
use crate::clock::Clock;
use crate::crypto;
use crate::model::{Action, Tenant};
use crate::store::Store;
use crate::store::trail::{Scribe, Touched, TouchedVersion, TrailRow};

/// A store whose every transaction that changes something holds the record of it.
pub(super) struct Change {
    store: Arc<dyn Store>,
    scribe: Arc<ChangeScribe>,
}

impl Change {
    pub(super) fn store(&self) -> &dyn Store {
        &*self.store
    }

    /// The same change's part that is about this tenant.
    pub(super) fn about(&self, tenant: &Tenant) -> Self {
        let scribe = Arc::new(ChangeScribe {
            audit: Arc::clone(&self.scribe.audit),
            clock: Arc::clone(&self.scribe.clock),
            request_id: self.scribe.request_id.clone(),
            identity: self.scribe.identity.clone(),
            pid: self.scribe.pid,
            address: self.scribe.address,
            action: self.scribe.action,
            tenant: Some(tenant.clone()),
            committed: AtomicBool::new(false),
            rows: Mutex::default(),
        });
        Self { store: self.store.recorded(Arc::clone(&scribe) as Arc<dyn Scribe>), scribe }
    }

    pub(super) fn action(&self) -> Action {
        self.scribe.action
    }

    pub(super) fn tenant(&self) -> Option<&Tenant> {
        self.scribe.tenant.as_ref()
    }

    /// Whether something was changed, and so recorded.
    pub(super) fn is_recorded(&self) -> bool {
        self.scribe.committed.load(Ordering::Acquire)
    }
}

struct ChangeScribe {
    audit: Arc<Audit>,
    clock: Arc<dyn Clock>,
    request_id: String,
    identity: String,
    pid: Option<i32>,
    address: Option<IpAddr>,
    action: Action,
    tenant: Option<Tenant>,
    committed: AtomicBool,
    /// Of the transaction under way, where they are copied.
    rows: Mutex<Vec<TrailRow>>,
}

impl ChangeScribe {
    /// Each lock guards one statement that cannot leave half a change.
    fn rows(&self) -> MutexGuard<'_, Vec<TrailRow>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Scribe for ChangeScribe {
    fn records(&self, touched: &[Touched]) -> Vec<TrailRow> {
        let blank = Record {
            at: self.clock.wall(),
            request_id: self.request_id.clone(),
            identity: self.identity.clone(),
            pid: self.pid,
            address: self.address,
            action: self.action,
            tenant: self.tenant.clone(),
            name: None,
            version: None,
            token: None,
            blob: None,
            replaces: None,
            outcome: Outcome::Ok,
            count: 1,
        };
        let record = |touched: &Touched| match touched {
            Touched::Version(TouchedVersion { tenant, name, version, ciphertext, replaced }) => Record {
                tenant: Some(tenant.clone()),
                name: Some(name.clone()),
                version: Some(*version),
                blob: ciphertext.as_deref().map(crypto::blob_sha256),
                replaces: replaced.as_deref().map(crypto::blob_sha256),
                ..blank.clone()
            },
            Touched::Token(id) => Record { token: Some(id.clone()), ..blank.clone() },
        };
        let records: Vec<Record> = if touched.is_empty() { vec![blank] } else { touched.iter().map(record).collect() };
        let rows: Vec<TrailRow> = records.iter().filter_map(|record| self.audit.row(record)).collect();
        if self.audit.is_copied() {
            self.rows().clone_from(&rows);
        }
        rows
    }

    fn committed(&self) {
        self.audit.copy(&std::mem::take(&mut *self.rows()));
        self.committed.store(true, Ordering::Release);
    }
}

impl Service {
    /// Where a call makes its changes.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while this node may not write, or the database takes no records.
    pub(super) async fn change(
        &self,
        request: &Request,
        identity: &Identity,
        action: Action,
        tenant: Option<&Tenant>,
    ) -> Result<Change, Error> {
        self.node.may_write().await?;
        self.change_by(&By::request(request, identity), action, tenant).await
    }

    /// As [`Service::change`], where the change is the one that opens the gate to a database that went back.
    pub(super) async fn change_that_opens(
        &self,
        request: &Request,
        identity: &Identity,
        action: Action,
    ) -> Result<Change, Error> {
        if self.node.behind().is_some() {
            self.audit.begin_again();
        }
        self.change_by(&By::request(request, identity), action, None).await
    }

    /// As [`Service::change_that_opens`], by the daemon itself.
    pub(super) async fn own_change_that_opens(&self, action: Action) -> Result<Change, Error> {
        self.audit.begin_again();
        let id = crypto::random_id().map_err(|_| Error::Unavailable("no random bytes for a record's id".to_owned()))?;
        self.change_by(&By::daemon(&id), action, None).await
    }

    /// As [`Service::change`], by the daemon itself.
    pub(super) async fn own_change(&self, action: Action, tenant: Option<&Tenant>) -> Result<Change, Error> {
        self.node.may_write().await?;
        let id = crypto::random_id().map_err(|_| Error::Unavailable("no random bytes for a record's id".to_owned()))?;
        self.change_by(&By::daemon(&id), action, tenant).await
    }

    async fn change_by(&self, by: &By<'_>, action: Action, tenant: Option<&Tenant>) -> Result<Change, Error> {
        if !self.audit.takes_changes() {
            // Each call tries, so that it heals without waiting for the next second.
            self.audit.link(&*self.store, self.clock.wall()).await?;
        }
        if !self.audit.takes_changes() {
            return Err(Error::Unavailable("audit records cannot be written; nothing was changed".to_owned()));
        }
        let scribe = Arc::new(ChangeScribe {
            audit: Arc::clone(&self.audit),
            clock: Arc::clone(&self.clock),
            request_id: by.request_id.to_owned(),
            identity: by.identity.clone(),
            pid: by.pid,
            address: by.address,
            action,
            tenant: tenant.cloned(),
            committed: AtomicBool::new(false),
            rows: Mutex::default(),
        });
        let store = self.store.recorded(Arc::clone(&scribe) as Arc<dyn Scribe>);
        Ok(Change { store, scribe })
    }
}
