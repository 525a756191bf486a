//! The keys that authenticate audit records, and the work of each second that the audit needs.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::node::Node;
use super::open::AUDIT_CHAIN;
use super::secrets::open_sealed;
use super::{Error, Service};
use crate::audit::{Audit, Chained, PruneError, Pruned};
use crate::clock::Clock;
use crate::crypto::ChainKey;
use crate::keys::Keyring;
use crate::model::{Micros, SecretName, Tenant, VersionBody};
use crate::store::{Found, Place, Store, StoreError, Which};

/// Why there is no key for the audit although keys are open.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the key that authenticates audit records, {AUDIT_CHAIN} of _system, cannot be used: {0}")]
    Key(String),
}

/// Every version of the chain key, the newest first. One that does not open is an error: what it authenticated could not be verified.
///
/// # Errors
/// [`ChainError`].
pub async fn chain_keys(store: &dyn Store, keys: &Keyring) -> Result<Vec<ChainKey>, ChainError> {
    let failed = |why: String| ChainError::Key(why);
    let (tenant, name) = place()?;
    let (_, versions) = store.versions(&tenant, &name).await?.map_err(|refusal| failed(refusal.to_string()))?;
    let places: Vec<Place> = versions
        .iter()
        .map(|found| Place { tenant: tenant.clone(), name: name.clone(), which: Which::Number(found.version) })
        .collect();
    let found = store.read(&places).await?;
    found.into_iter().map(|found| open(keys, found?)).collect()
}

/// The newest version of the chain key.
async fn newest(store: &dyn Store, keys: &Keyring) -> Result<ChainKey, ChainError> {
    let (tenant, name) = place()?;
    let found = store.read(&[Place { tenant, name, which: Which::Current }]).await?;
    let missing = || ChainError::Key("it is not there".to_owned());
    open(keys, found.into_iter().next().ok_or_else(missing)??)
}

/// Gives the audit its key: at start, when the keys are opened later, and when there is a new one.
///
/// What is wrong is said by the audit, which takes no record then, and is tried again each second.
pub(super) async fn unlock(audit: &Audit, node: &Node, store: &dyn Store, keys: &Keyring, clock: &dyn Clock) {
    let unlocked = async {
        let newest = newest(store, keys).await?;
        // An earlier one that does not open is no reason to record nothing; `audit verify` says so.
        match chain_keys(store, keys).await {
            Ok(all) => all.into_iter().for_each(|key| audit.add_old_key(Arc::new(key))),
            Err(error) => tracing::warn!("{error}"),
        }
        // A failing file is told by the audit itself.
        let _told = audit.unlock(clock.wall(), Arc::new(newest)).await;
        if node.behind().is_none() {
            audit.link(store, clock.wall()).await?;
        }
        Ok::<(), ChainError>(())
    };
    if let Err(error) = unlocked.await {
        audit.refuse(error.to_string()).await;
    }
}

fn place() -> Result<(Tenant, SecretName), ChainError> {
    let name = SecretName::parse(AUDIT_CHAIN).map_err(|error| ChainError::Key(error.to_string()))?;
    Ok((Tenant::system(), name))
}

fn open(keys: &Keyring, found: Found) -> Result<ChainKey, ChainError> {
    let failed = |why: &str| ChainError::Key(why.to_owned());
    let Found::Secret(secret, Some(version)) = found else { return Err(failed("it is not there")) };
    let number = version.version;
    if let VersionBody::Destroyed { .. } = version.body {
        return Err(failed("it is destroyed"));
    }
    let opened = open_sealed(keys, secret, version).map_err(|error| failed(&Error::from(error).to_string()))?;
    ChainKey::of(number, &opened.value).ok_or_else(|| failed("it has not 32 bytes"))
}

/// How often it is looked whether records are older than they are kept for.
const LOOK_FOR_OLD: Duration = Duration::from_hours(1);
/// How soon after a look that came to nothing.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// Into how many files, at least, the records lie that are kept: a file goes once its last record is old.
const PARTS: i64 = 10;
/// Every so many seconds it is looked whether another node renewed the chain key.
const LOOK_FOR_KEY: u64 = 5;

/// What became of a look for old records.
enum Looked {
    Done,
    /// Nothing can be recorded yet, or written.
    NotNow,
}

impl Service {
    /// Removes audit records that are older than they are kept for, until the daemon stops.
    pub fn keep_pruning(self: &Arc<Self>) {
        self.workers.spawn(Arc::clone(self).prune_on());
    }

    async fn prune_on(self: Arc<Self>) {
        let mut told = None;
        loop {
            let wait = match self.prune_audit().await {
                Ok(Looked::Done) => LOOK_FOR_OLD,
                Ok(Looked::NotNow) => LOOK_AGAIN,
                Err(error) => {
                    let why = error.to_string();
                    if told.as_ref() != Some(&why) {
                        tracing::error!("audit records that are older than they are kept for cannot be removed: {why}");
                        told = Some(why);
                    }
                    LOOK_FOR_OLD
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.workers.stopping() => return,
            }
        }
    }

    async fn prune_audit(&self) -> Result<Looked, PruneError> {
        if self.audit.lacks_key() || !self.audit.takes_changes() || self.node.may_write().await.is_err() {
            return Ok(Looked::NotNow);
        }
        // By the clock that is behind: one that is ahead would remove for good what is not old.
        let at = self.clock.wall();
        let now = at.min(self.store.now().await?);
        let kept = i64::try_from(self.audit_retention.as_micros()).unwrap_or(i64::MAX);
        let ago = |time: i64| Micros(now.0.saturating_sub(time));
        let pruned = self.audit.prune(&*self.store, (at, ago(kept), ago(kept / PARTS))).await?;
        if pruned != Pruned::default() {
            tracing::info!(
                "removed {} audit records and {} audit files that are older than they are kept for",
                pruned.rows,
                pruned.files
            );
        }
        Ok(Looked::Done)
    }

    /// Takes the chain key that another node renewed: the old one may be in foreign hands.
    async fn follow_key(&self) {
        if !self.seconds.fetch_add(1, Ordering::Relaxed).is_multiple_of(LOOK_FOR_KEY) {
            return;
        }
        let Ok((tenant, name)) = place() else { return };
        let found = self.store.read(&[Place { tenant, name, which: Which::Current }]).await;
        let version = found.ok().and_then(|found| match found.into_iter().next() {
            Some(Ok(Found::Secret(_, Some(version)))) => Some(version.version),
            _ => None,
        });
        if let Some(version) = version
            && self.audit.key_version().is_some_and(|own| own < version.get())
            && let Err(error) = self.renew_chain_key().await
        {
            tracing::warn!("the renewed key of the audit could not be taken: {error}");
        }
    }

    /// Records the callers that were turned away and counted in the second that is over, and lets them have their answers. To be called each
    /// second; waits for the sinks alone.
    pub async fn end_second(&self) {
        self.audit.end_second().await;
    }

    /// What else the audit needs each second: its key where that was missing, and the chains' ends in the database.
    pub async fn tick_audit(&self) {
        if self.keys_are_open() && self.audit.lacks_key() {
            unlock(&self.audit, &self.node, &*self.store, &self.keys, &*self.clock).await;
        }
        if self.keys_are_open() {
            self.follow_key().await;
        }
        // Of a database that went back nothing is changed: it may not be the one that stays.
        if self.node.behind().is_some() {
            return;
        }
        match self.audit.link(&*self.store, self.clock.wall()).await {
            Ok(Chained::AsWritten) => {}
            Ok(Chained::Changed(what)) => self.insist(what).await,
            // What lies there cannot be read: somebody wrote it.
            Err(error @ StoreError::Corrupt { .. }) => self.insist(error.to_string()).await,
            Err(error @ (StoreError::Unavailable(_) | StoreError::UnknownOutcome(_))) => {
                tracing::debug!("the audit's chain waits for the database: {error}");
                return;
            }
            // A database that answers and takes no places leaves the records of changes without theirs, and so removable.
            Err(error) => {
                self.audit.note_held_up(Some(error.to_string()));
                return;
            }
        }
        self.audit.note_held_up(None);
    }

    /// The database's part of the trail is not as this process wrote it. That of one that was put back to an earlier state is not,
    /// and whether it was, the node knows once it has looked.
    async fn insist(&self, what: String) {
        if self.node.tick().await.is_err() || self.node.behind().is_some() {
            return;
        }
        if self.audit.insist(self.clock.wall(), what).await.is_err() {
            tracing::error!("that the audit trail in the database was changed could not be recorded");
        }
        if let Err(error) = self.audit.link(&*self.store, self.clock.wall()).await {
            tracing::debug!("the audit's chain waits for the database: {error}");
        }
    }

    /// Goes on under a new version of the chain key.
    pub(super) async fn renew_chain_key(&self) -> Result<(), Error> {
        let key = newest(&*self.store, &self.keys).await.map_err(|error| Error::Incomplete(error.to_string()))?;
        self.audit.unlock(self.clock.wall(), Arc::new(key)).await.map_err(|error| Error::Unavailable(error.to_string()))
    }
}
