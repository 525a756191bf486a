//! The keys that authenticate audit records, and the work of each second that the audit needs.

use std::sync::Arc;

use super::node::Node;
use super::open::AUDIT_CHAIN;
use super::secrets::open_sealed;
use super::{Error, Service};
use crate::audit::{Audit, Chained};
use crate::clock::Clock;
use crate::crypto::ChainKey;
use crate::keys::Keyring;
use crate::model::{SecretName, Tenant, VersionBody};
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

impl Service {
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
        // Of a database that went back nothing is changed: it may not be the one that stays.
        if self.node.behind().is_some() {
            return;
        }
        match self.audit.link(&*self.store, self.clock.wall()).await {
            Ok(Chained::AsWritten) => {}
            Ok(Chained::Changed(what)) => self.insist(what).await,
            // What lies there cannot be read: somebody wrote it.
            Err(error @ StoreError::Corrupt { .. }) => self.insist(error.to_string()).await,
            Err(error) => tracing::debug!("the audit's chain waits for the database: {error}"),
        }
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
