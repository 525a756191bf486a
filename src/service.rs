//! The use-cases: each takes a grant, sequences store, keys and crypto, and leaves an audit record. No SQL and no HTTP here.

pub mod backup;
mod backup_log;
pub mod chain;
mod change;
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
pub mod trail;

use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::access::{Access, AdminGrant, Caller, Denied, Grant, Identity, Permission};
use crate::audit::{self, Audit, Outcome, Record, Stranger};
use crate::clock::Clock;
use crate::keys::Keyring;
use crate::keys::keyfile::KeyFiles;
use crate::keys::unlock::Unlocker;
use crate::model::{Action, Micros, SecretName, SecretVersion, Tenant};
use crate::store::{Reads, Store};

use backup::{Destinations, PushedKeys};
use change::Change;
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
    address: Option<IpAddr>,
    /// Shared by the clones: whether a record of the request was written, or counted as missing.
    recorded: Arc<AtomicBool>,
}

impl Request {
    /// `id` names the request in answers, logs and audit records; `address` is whence it came over TCP.
    #[must_use]
    pub fn new(id: String, address: Option<IpAddr>) -> Self {
        Self { id, address, recorded: Arc::default() }
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
    /// For how long audit records are kept.
    pub audit_retention: Duration,
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
    audit_retention: Duration,
    /// Counts the seconds in which the audit had its work.
    seconds: AtomicU64,
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
    address: Option<IpAddr>,
}

impl<'a> By<'a> {
    fn request(request: &'a Request, identity: &Identity) -> Self {
        let (identity, pid) = (identity.to_string(), identity.pid());
        Self { request_id: &request.id, identity, pid, address: request.address }
    }

    /// The daemon, by itself; `id` stands for a request's.
    fn daemon(id: &'a str) -> Self {
        Self { request_id: id, identity: "daemon".to_owned(), pid: None, address: None }
    }

    fn record(&self, at: Micros, action: Action, tenant: Option<&Tenant>, touched: Touched) -> Record {
        let Touched { name, version, token, outcome, count } = touched;
        Record {
            at,
            request_id: self.request_id.to_owned(),
            identity: self.identity.clone(),
            pid: self.pid,
            address: self.address,
            action,
            tenant: tenant.cloned(),
            name,
            version,
            token,
            blob: None,
            replaces: None,
            outcome,
            count,
        }
    }
}

/// One secret that a call touched, for the audit.
struct Touched {
    name: Option<SecretName>,
    version: Option<SecretVersion>,
    /// A token's public id.
    token: Option<String>,
    outcome: Outcome,
    /// How many it stands for.
    count: u64,
}

impl Touched {
    /// A call that touched no single secret, or failed before it could say more.
    const fn nothing(outcome: Outcome) -> Self {
        Self { name: None, version: None, token: None, outcome, count: 1 }
    }

    fn one(name: &SecretName, version: Option<SecretVersion>, outcome: Outcome) -> Self {
        Self { name: Some(name.clone()), version, ..Self::nothing(outcome) }
    }

    /// Names of which nothing came: one record, since whoever may read one tenant could fill the disk with names that are not there.
    fn none_of<'a>(names: impl ExactSizeIterator<Item = &'a SecretName>, outcome: Outcome) -> Option<Self> {
        let count = names.len() as u64;
        let name = names.last().filter(|_| count == 1).cloned();
        (count > 0).then(|| Self { name, count, ..Self::nothing(outcome) })
    }

    fn token(id: &str, outcome: Outcome) -> Self {
        Self { token: Some(id.to_owned()), ..Self::nothing(outcome) }
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
            audit_retention,
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
            audit_retention,
            seconds: AtomicU64::new(0),
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
                self.record_denial(request, caller.identity(), action, (Some(tenant), name)).await?;
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
                self.record_denial(request, caller.identity(), action, (tenant, None)).await?;
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
        let touched = Touched { name: name.cloned(), ..Touched::nothing(error.outcome()) };
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
        self.write_records(&By::request(request, identity), action, tenant, touched).await
    }

    /// Counted where it happens again within the second: strangers cannot fill a disk.
    async fn record_denial(
        &self,
        request: &Request,
        identity: &Identity,
        action: Action,
        (tenant, name): (Option<&Tenant>, Option<&SecretName>),
    ) -> Result<(), Error> {
        request.recorded.store(true, Ordering::Relaxed);
        let touched = Touched { name: name.cloned(), ..Touched::nothing(Outcome::Denied) };
        let record = By::request(request, identity).record(self.clock.wall(), action, tenant, touched);
        self.audit.write_denial(record).await.map_err(|error| Error::Unavailable(error.to_string()))
    }

    /// Records that nobody is known to call. `peer`: the process at the socket's other end, which is not whom its credential claims.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where that could not be recorded.
    pub async fn unauthenticated(
        &self,
        request: &Request,
        peer: Option<&Identity>,
        (tenant, name): (Option<&Tenant>, Option<&SecretName>),
    ) -> Result<(), Error> {
        request.recorded.store(true, Ordering::Relaxed);
        let (stranger, by) = match (peer, request.address) {
            (Some(peer @ Identity::Socket { uid, .. }), _) => (Stranger::Uid(*uid), By::request(request, peer)),
            (_, address) => {
                let by = By { request_id: &request.id, identity: audit::UNKNOWN.to_owned(), pid: None, address };
                // Without a socket's peer there is an address; were there none, all are one place.
                (Stranger::at(address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))), by)
            }
        };
        let touched = Touched { name: name.cloned(), ..Touched::nothing(Outcome::Denied) };
        let record = by.record(self.clock.wall(), Action::Authenticate, tenant, touched);
        let written = self.audit.write_stranger(stranger, record).await;
        written.map_err(|error| Error::Unavailable(error.to_string()))
    }

    async fn write_records(
        &self,
        by: &By<'_>,
        action: Action,
        tenant: Option<&Tenant>,
        touched: impl IntoIterator<Item = Touched>,
    ) -> Result<(), Error> {
        let at = self.clock.wall();
        let records: Vec<Record> = touched.into_iter().map(|touched| by.record(at, action, tenant, touched)).collect();
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

    /// Hands a change's result on, whose record lies in its transaction; where nothing was changed, or it failed, that is recorded.
    async fn recorded_change<T>(
        &self,
        request: &Request,
        identity: &Identity,
        change: &Change,
        touched: impl FnOnce(Outcome) -> Vec<Touched>,
        result: Result<T, Error>,
    ) -> Result<T, Error> {
        if result.is_ok() && change.is_recorded() {
            request.recorded.store(true, Ordering::Relaxed);
            return result;
        }
        let outcome = result.as_ref().map_or_else(Error::outcome, |_| Outcome::Ok);
        self.record(request, identity, change.action(), change.tenant(), touched(outcome)).await?;
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
            ..Touched::nothing(result.as_ref().map_or_else(Error::outcome, |_| Outcome::Ok))
        };
        self.record(request, grant.identity(), action, Some(grant.tenant()), [touched]).await?;
        result
    }
}
