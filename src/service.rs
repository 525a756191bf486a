//! The use-cases: each takes a grant, sequences store, keys and crypto, and leaves an audit record. No SQL and no HTTP here.

pub mod backup;
mod backup_log;
pub mod copy;
mod dek;
pub mod deks;
pub mod doctor;
pub mod drill;
mod error;
pub mod install;
pub mod job;
pub mod kms;
pub mod node;
mod nodes;
pub mod open;
mod room;
pub mod rotation;
mod secrets;
mod status;
mod tokens;

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::access::{Access, AdminGrant, Caller, Denied, Grant, Identity, Permission};
use crate::audit::{Audit, Outcome, Record};
use crate::clock::Clock;
use crate::keys::Keyring;
use crate::keys::keyfile::KeyFiles;
use crate::keys::unlock::Unlocker;
use crate::model::{Action, SecretName, SecretVersion, Tenant};
use crate::store::{Reads, Store};

use backup::{Destinations, PushedKeys};
use deks::RotatedDeks;
use job::{Job, Workers};
use node::Node;
use rotation::Rotation;
use rotation::verify::Verifier;

pub use backup_log::{CopiedState, Known, MadeCopy, RanDrill};
pub use error::{Error, Failure};
pub use nodes::Nodes;
pub use room::Room;
pub use secrets::{BatchValues, NewSecret, OpenedSecret};
pub use status::{Readiness, Status};
pub use tokens::{CreatedToken, ListedToken, SystemKey, TokenOrder, TokenState};

/// What a request carries besides its grant.
#[derive(Debug, Clone)]
pub struct Request {
    id: String,
    /// Shared by the clones: whether a record of the request was written, or counted as missing.
    recorded: Arc<AtomicBool>,
}

impl Request {
    /// `id` names the request in answers, logs and audit records.
    #[must_use]
    pub fn new(id: String) -> Self {
        Self { id, recorded: Arc::default() }
    }

    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    #[must_use]
    pub fn is_recorded(&self) -> bool {
        self.recorded.load(Ordering::Relaxed)
    }
}

/// What the service is made of.
pub struct Parts {
    pub store: Arc<dyn Store>,
    pub keys: Arc<Keyring>,
    /// Where the key files lie, whose bytes are copied.
    pub files: KeyFiles,
    pub destinations: Destinations,
    pub node: Arc<Node>,
    pub unlocker: Arc<Unlocker>,
    pub access: Access,
    pub audit: Arc<Audit>,
    pub clock: Arc<dyn Clock>,
    /// How many versions of a secret stay.
    pub keep_versions: NonZeroU32,
    pub verifier: Verifier,
    /// For how long a retired master key is kept.
    pub retain_old: Duration,
    /// For how long backups of the database are kept, where that is known.
    pub database_retention: Option<Duration>,
}

/// The one service of a daemon.
pub struct Service {
    store: Arc<dyn Store>,
    /// The store's front for single secrets.
    reads: Reads,
    keys: Arc<Keyring>,
    files: KeyFiles,
    destinations: Destinations,
    node: Arc<Node>,
    unlocker: Arc<Unlocker>,
    access: Access,
    audit: Arc<Audit>,
    clock: Arc<dyn Clock>,
    keep_versions: NonZeroU32,
    rotation: Rotation,
    database_retention: Option<Duration>,
    workers: Workers,
    rotating_deks: Job<RotatedDeks>,
    rooms: room::Rooms,
    pushing_keys: Job<PushedKeys>,
    push_lock: tokio::sync::Mutex<()>,
    /// Somebody else looked at copies: what was found is worth a look.
    heard_of_copies: tokio::sync::Notify,
    disks: doctor::Disks,
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
        let Parts {
            store,
            keys,
            files,
            destinations,
            node,
            unlocker,
            access,
            audit,
            clock,
            keep_versions,
            verifier,
            retain_old,
            database_retention,
        } = parts;
        Self {
            reads: Reads::new(Arc::clone(&store)),
            store,
            keys,
            files,
            destinations,
            node,
            unlocker,
            access,
            audit,
            clock,
            keep_versions,
            rotation: Rotation::new(verifier, retain_old),
            database_retention,
            workers: Workers::default(),
            rotating_deks: Job::new("rotate-dek"),
            rooms: room::Rooms::new(),
            pushing_keys: Job::new("backup push"),
            push_lock: tokio::sync::Mutex::new(()),
            heard_of_copies: tokio::sync::Notify::new(),
            disks: doctor::Disks::default(),
            unprotected: OnceLock::new(),
        }
    }

    /// Stops long work where it can be resumed, and waits for that. Called when the daemon stops, before the store is closed.
    pub async fn stop_work(&self) {
        self.workers.stop().await;
    }

    /// Lets a caller at a tenant, and at a secret of it where the path names one, before any of the request's body is read. What a body
    /// names, the use-case asks the grant for. A refusal is recorded.
    ///
    /// # Errors
    /// [`Error::Denied`]; [`Error::Unavailable`] where the refusal could not be recorded.
    pub async fn authorize(
        &self,
        request: &Request,
        caller: &Caller,
        permission: Permission,
        action: Action,
        (tenant, name): (&Tenant, Option<&SecretName>),
    ) -> Result<Grant, Error> {
        match self.access.authorize(caller, permission, tenant, name) {
            Ok(grant) => Ok(grant),
            Err(denied) => {
                let touched = Touched { name: name.cloned(), version: None, outcome: Outcome::Denied };
                self.record(request, caller.identity(), action, Some(tenant), [touched]).await?;
                Err(denied.into())
            }
        }
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

    /// Turns away a caller without any right, before anything else of the request is looked at; `tenant` is the one that its path
    /// names, for the record. A refusal is recorded.
    ///
    /// # Errors
    /// As [`Service::authorize`].
    pub async fn authenticate(
        &self,
        request: &Request,
        caller: &Caller,
        action: Action,
        tenant: Option<&Tenant>,
    ) -> Result<(), Error> {
        let decided = self.access.authenticate(caller);
        self.or_recorded_denial(request, caller, action, tenant, decided).await
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
                Err(denied.into())
            }
        }
    }

    /// Records a call that was refused before it reached a use-case, or by one that would not begin.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where that could not be recorded.
    pub async fn refused(
        &self,
        request: &Request,
        caller: &Caller,
        action: Action,
        tenant: Option<&Tenant>,
        name: Option<&SecretName>,
        error: &Error,
    ) -> Result<(), Error> {
        let touched = Touched { name: name.cloned(), version: None, outcome: error.outcome() };
        self.record(request, caller.identity(), action, tenant, [touched]).await
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
        request.recorded.store(true, Ordering::Relaxed);
        let by = By { request_id: &request.id, identity: identity.to_string(), pid: identity.pid() };
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

    /// Refuses a change of keys, before anything of it is done, where it could not be recorded or this node may not write.
    async fn may_change(&self) -> Result<(), Error> {
        self.may_record().await?;
        self.node.may_write().await
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
