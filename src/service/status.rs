//! Whether the daemon is ready, and what an operator should know.

use std::time::Duration;

use crate::access::{AdminGrant, Caller};
use crate::audit::Outcome;
use crate::keys::{CacheStats, Keys};
use crate::model::{Action, Counts, KeyState, Kid, MasterKeyRecord, StoreKind, Tenant, TenantRecord};
use crate::store::{Page, StoreError};

use super::{Error, Request, Service, Touched};

/// How long readiness waits for the database's answer.
const PING: Duration = Duration::from_secs(2);

/// What the daemon waits for; ready when nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readiness {
    /// Why the keys are locked, and what opens them.
    pub keys: Option<String>,
    /// Why the database does not answer.
    pub database: Option<String>,
    /// Why audit records cannot be written.
    pub audit: Option<String>,
    /// What this node lacks: the active key, or an operator's word on a restored database.
    pub node: Vec<String>,
}

impl Readiness {
    #[must_use]
    pub const fn is_ready(&self) -> bool {
        self.keys.is_none() && self.database.is_none() && self.audit.is_none() && self.node.is_empty()
    }

    /// A line for each thing that is waited for.
    pub fn waiting_for(&self) -> Vec<String> {
        let parts = [("keys", &self.keys), ("database", &self.database), ("audit", &self.audit)];
        let parts = parts.iter().filter_map(|(part, why)| why.as_ref().map(|why| format!("{part}: {why}")));
        parts.chain(self.node.iter().map(|why| format!("node: {why}"))).collect()
    }
}

/// Everything that `admin status` shows.
#[derive(Debug, Clone)]
pub struct Status {
    pub readiness: Readiness,
    pub store: StoreKind,
    /// `None` where the database answered.
    pub store_error: Option<String>,
    pub loaded: Vec<Kid>,
    pub key_state: Option<KeyState>,
    pub master_keys: Vec<MasterKeyRecord>,
    pub cache: CacheStats,
    pub counts: Option<Counts>,
    /// Whether a copy of the active key off the host has been proven; `None` where it is not known.
    pub backup_proven: Option<bool>,
    /// What is wrong with this node's files or the audit trail, and does not keep it from serving.
    pub problems: Vec<String>,
}

/// Said until the process ends.
fn trail_changed(what: &str) -> String {
    format!("the audit trail in the database was changed: {what}; `containarium audit verify` says what is missing")
}

impl Status {
    /// What an operator should do something about.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = self.readiness.waiting_for();
        warnings.extend(self.problems.iter().cloned());
        if self.backup_proven == Some(false) {
            warnings.push(NO_BACKUP.to_owned());
        }
        warnings
    }
}

/// Said at first start, at every start, by `admin status` and by readiness, until a copy is proven.
pub(super) const NO_BACKUP: &str = "no backup of the master key is proven: without its key file every secret is lost for good. \
     Keep a copy of the key file off this host: `containarium backup push` makes one in Secret Manager where `[backup.gcp]` is configured, \
     `containarium backup export` an age file or a sheet of paper";

impl Service {
    /// Whether secrets can be read and written now. An audit that failed is tried again: a daemon that gets no requests because it is
    /// not ready would never become so otherwise.
    pub async fn readiness(&self) -> Readiness {
        let keys = self.lock_reason();
        let database = match tokio::time::timeout(PING, self.store.ping()).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no answer within {} s", PING.as_secs())),
        };
        let audit = self.audit.heal(self.clock.wall()).await;
        Readiness { keys, database, audit, node: self.node.waiting_for() }
    }

    /// The warning that no copy of the active key off the host is confirmed; nothing where one is, or where it is not known.
    pub async fn unproven(&self) -> Option<&'static str> {
        let active = match &*self.keys.state() {
            Keys::Open(ring) => ring.active(),
            Keys::Locked(_) => return None,
        };
        let proven = tokio::time::timeout(PING, self.store.has_confirmed_escrow(active)).await;
        matches!(proven, Ok(Ok(false))).then_some(NO_BACKUP)
    }

    /// What is wrong with the audit trail, and keeps nobody from being served: somebody wrote into it, or one of its sinks fails.
    #[must_use]
    pub fn trail_warnings(&self) -> Vec<String> {
        self.audit.changed().as_deref().map(trail_changed).into_iter().chain(self.audit.troubles()).collect()
    }

    #[must_use]
    pub fn cache_stats(&self) -> CacheStats {
        self.keys.cache_stats()
    }

    /// Lets a caller at metrics and the API description. Not recorded: a scraper asks every few seconds and touches nothing.
    ///
    /// # Errors
    /// [`Error::Denied`].
    pub fn may_observe(&self, caller: &Caller) -> Result<(), Error> {
        self.access.authorize_admin(caller).map(drop).map_err(Error::from)
    }

    /// The caller at the other end of a socket.
    #[must_use]
    pub fn socket_peer(&self, uid: u32, pid: Option<i32>) -> Caller {
        self.access.socket_peer(uid, pid)
    }

    /// What a call is told while the keys are locked; `None` while they are open. In one line: the whole reason holds paths and
    /// commands, which are for the operator who asks for the status.
    #[must_use]
    pub fn why_locked(&self) -> Option<String> {
        let reason = self.lock_reason()?;
        let headline = reason.lines().next().unwrap_or_default();
        Some(format!("the keys are locked: {headline}; `containarium admin status` says what opens them"))
    }

    fn lock_reason(&self) -> Option<String> {
        match &*self.keys.state() {
            Keys::Locked(reason) => Some(reason.clone()),
            Keys::Open(_) => None,
        }
    }

    #[must_use]
    pub fn keys_are_open(&self) -> bool {
        matches!(&*self.keys.state(), Keys::Open(_))
    }

    /// Drops expired DEKs; the daemon calls it once a second.
    pub fn tick(&self) {
        self.keys.tick();
    }

    /// What an operator asks first. Answers as much as it can when database, key or audit are away: it is the one call that is
    /// answered unrecorded, since it says why nothing can be recorded.
    pub async fn status(&self, request: &Request, grant: &AdminGrant) -> Status {
        let readiness = self.readiness().await;
        let from_store = match &readiness.database {
            Some(why) => Err(StoreError::Unavailable(why.clone())),
            None => self.store_status().await,
        };
        let loaded = match &*self.keys.state() {
            Keys::Locked(_) => Vec::new(),
            Keys::Open(ring) => ring.kids(),
        };
        let mut status = Status {
            readiness,
            store: self.store.kind(),
            store_error: None,
            loaded,
            key_state: None,
            master_keys: Vec::new(),
            cache: self.keys.cache_stats(),
            counts: None,
            backup_proven: None,
            problems: self.node.problems().into_iter().chain(self.trail_warnings()).collect(),
        };
        match from_store {
            Ok((key_state, master_keys, counts, backup_proven)) => {
                status.key_state = key_state;
                status.master_keys = master_keys;
                status.counts = Some(counts);
                status.backup_proven = backup_proven;
            }
            Err(error) => status.store_error = Some(error.to_string()),
        }
        let touched = [Touched::nothing(Outcome::Ok)];
        if self.record(request, grant.identity(), Action::AdminStatus, None, touched).await.is_err() {
            status.readiness.audit = self.audit.failing();
        }
        status
    }

    async fn store_status(&self) -> Result<(Option<KeyState>, Vec<MasterKeyRecord>, Counts, Option<bool>), StoreError> {
        let survey = self.store.survey().await?;
        let counts = self.store.counts().await?;
        let backup_proven = match &survey.key_state {
            Some(state) => Some(self.store.has_confirmed_escrow(state.active_kid).await?),
            None => None,
        };
        Ok((survey.key_state, survey.master_keys, counts, backup_proven))
    }

    /// Tenants by name.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn tenants(
        &self,
        request: &Request,
        grant: &AdminGrant,
        after: Option<&Tenant>,
        limit: u32,
    ) -> Result<Page<TenantRecord>, Error> {
        let result = self.store.tenants(after, limit).await.map_err(Error::from);
        let outcome = result.as_ref().map_or_else(Error::outcome, |_| Outcome::Ok);
        self.record(request, grant.identity(), Action::AdminTenants, None, [Touched::nothing(outcome)]).await?;
        result
    }
}
