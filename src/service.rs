//! The use-cases: each takes a grant, sequences store, keys and crypto, and leaves an audit record. No SQL and no HTTP here.

mod backup_log;
pub mod copy;
mod dek;
pub mod deks;
pub mod doctor;
pub mod drill;
mod error;
pub mod install;
pub mod job;
pub mod node;
mod nodes;
pub mod open;
mod secrets;
mod status;

use std::num::NonZeroU32;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::access::{Access, AdminGrant, Caller, Denied, Grant, Identity, Permission};
use crate::audit::{Audit, Outcome, Record};
use crate::clock::Clock;
use crate::keys::Keyring;
use crate::model::{Action, SecretName, SecretVersion, Tenant};
use crate::store::Store;

use deks::RotatedDeks;
use job::{Job, Workers};
use node::Node;

pub use backup_log::{CopiedState, MadeCopy, RanDrill};
pub use error::{Error, Failure};
pub use nodes::Nodes;
pub use secrets::{BatchValues, NewSecret, OpenedSecret};
pub use status::{Readiness, Status};

/// What a request carries besides its grant.
#[derive(Debug, Clone)]
pub struct Request {
    /// Names the request in answers, logs and audit records.
    pub id: String,
}

/// What the service is made of.
pub struct Parts {
    pub store: Arc<dyn Store>,
    pub keys: Arc<Keyring>,
    pub node: Arc<Node>,
    pub access: Access,
    pub audit: Arc<Audit>,
    pub clock: Arc<dyn Clock>,
    /// How many versions of a secret stay.
    pub keep_versions: NonZeroU32,
    /// For how long backups of the database are kept, where that is known.
    pub database_retention: Option<Duration>,
}

/// The one service of a daemon.
pub struct Service {
    store: Arc<dyn Store>,
    keys: Arc<Keyring>,
    node: Arc<Node>,
    access: Access,
    audit: Arc<Audit>,
    clock: Arc<dyn Clock>,
    keep_versions: NonZeroU32,
    database_retention: Option<Duration>,
    workers: Workers,
    rotating_deks: Job<RotatedDeks>,
    /// The protections that the process does not have, once it is known.
    unprotected: OnceLock<Vec<String>>,
}

/// Who does something, as records say it.
struct By<'a> {
    request_id: &'a str,
    identity: String,
    pid: Option<i32>,
}

/// One secret that a call touched, for the audit.
struct Touched {
    name: Option<SecretName>,
    version: Option<SecretVersion>,
    outcome: Outcome,
}

impl Touched {
    /// A call that touched no single secret, or failed before it could say more.
    const fn nothing(outcome: Outcome) -> Self {
        Self { name: None, version: None, outcome }
    }

    fn one(name: &SecretName, version: Option<SecretVersion>, outcome: Outcome) -> Self {
        Self { name: Some(name.clone()), version, outcome }
    }
}

impl Service {
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let Parts { store, keys, node, access, audit, clock, keep_versions, database_retention } = parts;
        Self {
            store,
            keys,
            node,
            access,
            audit,
            clock,
            keep_versions,
            database_retention,
            workers: Workers::default(),
            rotating_deks: Job::new("rotate-dek"),
            unprotected: OnceLock::new(),
        }
    }

    /// Stops long work where it can be resumed, and waits for that. Called when the daemon stops, before the store is closed.
    pub async fn stop_work(&self) {
        self.workers.stop().await;
    }

    /// Lets a caller at a tenant, before any of the request's body is read where the path names the tenant. A refusal is recorded.
    ///
    /// # Errors
    /// [`Error::Denied`]; [`Error::Unavailable`] where the refusal could not be recorded.
    pub async fn authorize(
        &self,
        request: &Request,
        caller: &Caller,
        permission: Permission,
        action: Action,
        tenant: &Tenant,
    ) -> Result<Grant, Error> {
        let decided = self.access.authorize(caller, permission, tenant);
        self.or_recorded_denial(request, caller, action, Some(tenant), decided).await
    }

    /// Lets a caller at the administration. A refusal is recorded.
    ///
    /// # Errors
    /// As [`Service::authorize`].
    pub async fn authorize_admin(
        &self,
        request: &Request,
        caller: &Caller,
        action: Action,
    ) -> Result<AdminGrant, Error> {
        let decided = self.access.authorize_admin(caller);
        self.or_recorded_denial(request, caller, action, None, decided).await
    }

    /// Turns away a caller without any right, before the body is read that would name the target. A refusal is recorded.
    ///
    /// # Errors
    /// As [`Service::authorize`].
    pub async fn authenticate(&self, request: &Request, caller: &Caller, action: Action) -> Result<(), Error> {
        let decided = self.access.authenticate(caller);
        self.or_recorded_denial(request, caller, action, None, decided).await
    }

    async fn or_recorded_denial<T>(
        &self,
        request: &Request,
        caller: &Caller,
        action: Action,
        tenant: Option<&Tenant>,
        decided: Result<T, Denied>,
    ) -> Result<T, Error> {
        match decided {
            Ok(grant) => Ok(grant),
            Err(denied) => {
                let touched = [Touched::nothing(Outcome::Denied)];
                self.record(request, caller.identity(), action, tenant, touched).await?;
                Err(Error::Denied(denied.to_string()))
            }
        }
    }

    /// Writes a call's records; the answer waits for them.
    async fn record(
        &self,
        request: &Request,
        identity: &Identity,
        action: Action,
        tenant: Option<&Tenant>,
        touched: impl IntoIterator<Item = Touched>,
    ) -> Result<(), Error> {
        let Identity::Socket { pid, .. } = identity;
        let by = By { request_id: &request.id, identity: identity.to_string(), pid: *pid };
        self.write_records(&by, action, tenant, touched).await
    }

    async fn write_records(
        &self,
        by: &By<'_>,
        action: Action,
        tenant: Option<&Tenant>,
        touched: impl IntoIterator<Item = Touched>,
    ) -> Result<(), Error> {
        let at = self.clock.wall();
        let records: Vec<Record> = touched
            .into_iter()
            .map(|touched| Record {
                at,
                request_id: by.request_id.to_owned(),
                identity: by.identity.clone(),
                pid: by.pid,
                action,
                tenant: tenant.cloned(),
                name: touched.name,
                version: touched.version,
                outcome: touched.outcome,
            })
            .collect();
        let made = action.changes() && records.iter().any(|record| record.outcome == Outcome::Ok);
        self.audit.write(&records).await.map_err(|error| {
            // A caller who reads "unavailable" as "not done" would judge a retry by the wrong state.
            let what = if made { "the change was made, but " } else { "" };
            let then = if made { "; read before trying again" } else { "" };
            Error::Unavailable(format!("{what}{error}{then}"))
        })
    }

    /// Refuses a change, before the store, while it could not be recorded.
    async fn may_record(&self) -> Result<(), Error> {
        match self.audit.heal(self.clock.wall()).await {
            None => Ok(()),
            Some(_logged) => Err(Error::Unavailable("audit records cannot be written; nothing was changed".to_owned())),
        }
    }

    /// Records what an administrator did to a tenant, or tried to, and hands its result on.
    async fn recorded_admin<T>(
        &self,
        request: &Request,
        grant: &AdminGrant,
        action: Action,
        tenant: &Tenant,
        result: Result<T, Error>,
    ) -> Result<T, Error> {
        let outcome = result.as_ref().map_or_else(Error::outcome, |_| Outcome::Ok);
        self.record(request, grant.identity(), action, Some(tenant), [Touched::nothing(outcome)]).await?;
        result
    }

    /// Records a call on one secret and hands its result on.
    async fn recorded<T>(
        &self,
        request: &Request,
        grant: &Grant,
        action: Action,
        name: Option<&SecretName>,
        result: Result<T, Error>,
        version: impl FnOnce(&T) -> Option<SecretVersion>,
    ) -> Result<T, Error> {
        let touched = Touched {
            name: name.cloned(),
            version: result.as_ref().ok().and_then(version),
            outcome: result.as_ref().map_or_else(Error::outcome, |_| Outcome::Ok),
        };
        self.record(request, grant.identity(), action, Some(grant.tenant()), [touched]).await?;
        result
    }
}
