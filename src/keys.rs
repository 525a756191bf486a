//! The master keys in memory, and the way from a DEK's row to a DEK.
//!
//! [`Keys`] is locked with a reason or open with a ring of masters by kid, from the first day: a daemon that waits for a key is up and
//! says what it waits for. A DEK in the cache stays valid through a rotation, since a rewrap does not change it; the row read with
//! each ciphertext decides whether it may be used.

mod cache;
pub mod identity;
pub mod keyfile;
pub mod provider;
mod repair;
mod rewrap;
pub mod start;
pub mod unlock;

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::crypto::{self, Dek, DekPlace, Kek, MasterKey, NoRandom, OpenError};
use crate::model::{DekBody, DekId, DekRecord, DekVersion, Kid, Tenant};

pub use cache::{CacheLimits, CacheStats};

/// Why there is no DEK. The messages hold names and public ids.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeysError {
    #[error("the keys are locked: {0}")]
    Locked(String),
    #[error("master key {0} is not loaded")]
    NotLoaded(Kid),
    #[error("the DEK is quarantined")]
    Quarantined,
    #[error("the DEK is shredded")]
    Shredded,
    #[error("the wrapped DEK does not open: {0}")]
    DoesNotOpen(#[from] OpenError),
    /// It opened and is another DEK than the row says: rows were exchanged.
    #[error("the wrapped DEK opens to another DEK than its row names")]
    WrongId,
    #[error(transparent)]
    NoRandom(#[from] NoRandom),
}

/// The state of the master keys.
pub enum Keys {
    /// Why, and what would open them; for operators.
    Locked(String),
    Open(Ring),
}

/// The KEKs by kid. Only KEKs stay in memory: the masters are dropped when they have given theirs.
///
/// The active one may be missing: a node that did not get a new key goes on opening what the old one wraps, and makes no DEK.
pub struct Ring {
    active: Kid,
    keks: HashMap<Kid, Arc<Kek>>,
}

impl Ring {
    #[must_use]
    pub fn new<'a>(active: Kid, masters: impl IntoIterator<Item = &'a MasterKey>) -> Self {
        let keks = masters.into_iter().map(crypto::derive_kek).map(|kek| (kek.kid(), Arc::new(kek))).collect();
        Self { active, keks }
    }

    /// The kid that the database names as the active one, as far as this node knows.
    #[must_use]
    pub const fn active(&self) -> Kid {
        self.active
    }

    #[must_use]
    pub fn holds_active(&self) -> bool {
        self.holds(self.active)
    }

    #[must_use]
    pub fn holds(&self, kid: Kid) -> bool {
        self.keks.contains_key(&kid)
    }

    fn converged(&self, active: Kid, masters: &[&MasterKey], gone: &[Kid]) -> Self {
        let mut keks = self.keks.clone();
        keks.extend(Self::new(active, masters.iter().copied()).keks);
        keks.retain(|kid, _| !gone.contains(kid));
        Self { active, keks }
    }

    /// The loaded kids, sorted.
    #[must_use]
    pub fn kids(&self) -> Vec<Kid> {
        let mut kids: Vec<Kid> = self.keks.keys().copied().collect();
        kids.sort_unstable();
        kids
    }

    /// The SHA-256 of a loaded master key's own bytes: what a raw copy of it is known by.
    #[must_use]
    pub fn raw_sha256(&self, kid: Kid) -> Option<[u8; 32]> {
        self.keks.get(&kid).map(|kek| kek.raw_sha256())
    }

    fn kek(&self, kid: Kid) -> Result<&Kek, KeysError> {
        self.keks.get(&kid).map(Arc::as_ref).ok_or(KeysError::NotLoaded(kid))
    }
}

/// A DEK that was just made, wrapped for its row.
pub struct WrappedNew {
    pub id: DekId,
    pub wrapped: Vec<u8>,
}

/// The process's keys: one for the daemon's life; it locks and opens, and holds the cache of unwrapped DEKs.
pub struct Keyring {
    state: ArcSwap<Keys>,
    cache: cache::DekCache,
}

impl Keyring {
    #[must_use]
    pub fn locked(reason: String, limits: CacheLimits) -> Self {
        Self { state: ArcSwap::from_pointee(Keys::Locked(reason)), cache: cache::DekCache::new(limits) }
    }

    pub fn lock(&self, reason: String) {
        self.state.store(Arc::new(Keys::Locked(reason)));
        self.cache.clear();
    }

    pub fn open(&self, ring: Ring) {
        self.state.store(Arc::new(Keys::Open(ring)));
    }

    /// Takes further masters in, drops those that are gone for good, and learns which one is active. DEKs in the cache stay: a rewrap
    /// does not change them. Locked keys stay locked.
    pub fn converge(&self, active: Kid, masters: &[&MasterKey], gone: &[Kid]) {
        self.change(|ring| ring.converged(active, masters, gone));
    }

    /// Takes in a key that is about to be staged, and was opened for that.
    pub fn take_in(&self, master: &MasterKey) {
        self.change(|ring| ring.converged(ring.active, &[master], &[]));
    }

    /// Drops a key that was taken in for nothing.
    pub fn give_up(&self, kid: Kid) {
        self.change(|ring| ring.converged(ring.active, &[], &[kid]));
    }

    fn change(&self, change: impl Fn(&Ring) -> Ring) {
        self.state.rcu(|keys| match &**keys {
            Keys::Locked(_) => Arc::clone(keys),
            Keys::Open(ring) => Arc::new(Keys::Open(change(ring))),
        });
    }

    #[must_use]
    pub fn state(&self) -> Arc<Keys> {
        self.state.load_full()
    }

    /// The DEK of a row: from the cache, or by one unwrap that all who wait share.
    ///
    /// # Errors
    /// [`KeysError`]: `Locked`; `Shredded` and `Quarantined` by the row, also where the DEK is cached; `NotLoaded`, `DoesNotOpen` and
    /// `WrongId` from the unwrap. An error is never cached.
    pub fn dek(&self, row: &DekRecord) -> Result<Arc<Dek>, KeysError> {
        let keys = self.state.load();
        let ring = match &**keys {
            Keys::Locked(reason) => return Err(KeysError::Locked(reason.clone())),
            Keys::Open(ring) => ring,
        };
        let wrapped = match &row.body {
            DekBody::Active(wrapped) | DekBody::DecryptOnly(wrapped) => wrapped,
            DekBody::Quarantined(_) => return Err(KeysError::Quarantined),
            DekBody::Shredded => return Err(KeysError::Shredded),
        };
        self.cache.get_or_unwrap(row, || {
            let place = DekPlace { tenant: &row.tenant, version: row.version };
            let dek = crypto::unwrap(ring.kek(wrapped.kid)?, place, &wrapped.bytes)?;
            if crypto::dek_id(&dek) == row.id { Ok(dek) } else { Err(KeysError::WrongId) }
        })
    }

    /// Makes a DEK wrapped by `active`: the kid that the database holds under its lock. The ring may not have heard yet that it became
    /// the active one; the database's word counts.
    ///
    /// # Errors
    /// [`KeysError::Locked`], [`KeysError::NotLoaded`], [`KeysError::NoRandom`].
    pub fn make_dek(&self, tenant: &Tenant, version: DekVersion, active: Kid) -> Result<WrappedNew, KeysError> {
        let keys = self.state.load();
        match &**keys {
            Keys::Locked(reason) => Err(KeysError::Locked(reason.clone())),
            Keys::Open(ring) => {
                let kek = ring.kek(active)?;
                let place = DekPlace { tenant, version };
                let dek = crypto::make_dek(place)?;
                Ok(WrappedNew { id: crypto::dek_id(&dek), wrapped: crypto::wrap(kek, place, &dek)? })
            }
        }
    }

    /// Drops a DEK that nothing will ask for again, before it expires.
    pub fn forget(&self, row: &DekRecord) {
        self.cache.forget(row);
    }

    /// Drops what has expired: moka does nothing of its own while idle, and an expired DEK must not stay in memory. Once a second.
    pub fn tick(&self) {
        self.cache.tick();
    }

    #[must_use]
    pub fn cache_stats(&self) -> CacheStats {
        self.cache.stats()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::time::Duration;

    use super::*;
    use crate::model::WrappedDek;

    fn limits(max_entries: u64) -> CacheLimits {
        CacheLimits { max_entries, max_age: Duration::from_hours(1) }
    }

    struct Deployment {
        keyring: Keyring,
        kid: Kid,
        row: DekRecord,
    }

    fn deployment(max_entries: u64) -> Deployment {
        let master = MasterKey::make_random().unwrap();
        let kid = crypto::kid(&master);
        let keyring = Keyring::locked("not opened yet".to_owned(), limits(max_entries));
        keyring.open(Ring::new(kid, &[master]));
        let tenant = Tenant::parse("alice").unwrap();
        let new = keyring.make_dek(&tenant, DekVersion::FIRST, kid).unwrap();
        let body = DekBody::Active(WrappedDek { kid, bytes: new.wrapped });
        Deployment { keyring, kid, row: DekRecord { tenant, version: DekVersion::FIRST, id: new.id, body } }
    }

    #[test]
    fn a_thousand_cold_readers_of_one_tenant_cause_one_unwrap() {
        let Deployment { keyring, row, .. } = deployment(100);
        let barrier = Barrier::new(8);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    barrier.wait();
                    for _ in 0..125 {
                        keyring.dek(&row).unwrap();
                    }
                });
            }
        });
        assert_eq!(keyring.cache_stats().unwraps, 1);
    }

    #[test]
    fn a_cache_of_no_entries_unwraps_each_time_and_works() {
        let Deployment { keyring, row, .. } = deployment(0);
        keyring.dek(&row).unwrap();
        keyring.tick();
        keyring.dek(&row).unwrap();
        assert_eq!(keyring.cache_stats().unwraps, 2);
    }

    #[test]
    fn a_cached_dek_is_refused_once_its_row_says_shredded_or_quarantined() {
        let Deployment { keyring, row, .. } = deployment(100);
        keyring.dek(&row).unwrap();
        let DekBody::Active(wrapped) = row.body.clone() else { unreachable!() };
        let shredded = DekRecord { body: DekBody::Shredded, ..row.clone() };
        assert_eq!(keyring.dek(&shredded).err(), Some(KeysError::Shredded));
        let quarantined = DekRecord { body: DekBody::Quarantined(wrapped), ..row };
        assert_eq!(keyring.dek(&quarantined).err(), Some(KeysError::Quarantined));
    }

    #[test]
    fn a_warm_dek_is_not_handed_to_a_row_of_another_tenant_that_names_it() {
        let Deployment { keyring, row, .. } = deployment(100);
        keyring.dek(&row).unwrap();
        let moved = DekRecord { tenant: Tenant::parse("bob").unwrap(), ..row.clone() };
        assert_eq!(keyring.dek(&moved).err(), Some(KeysError::DoesNotOpen(OpenError::NotCommitted)));
        let moved = DekRecord { version: DekVersion::new(2).unwrap(), ..row };
        assert_eq!(keyring.dek(&moved).err(), Some(KeysError::DoesNotOpen(OpenError::NotCommitted)));
    }

    #[test]
    fn a_wrapped_dek_that_opens_to_another_id_is_refused_and_not_cached() {
        let Deployment { keyring, kid, row } = deployment(100);
        let other = keyring.make_dek(&row.tenant, row.version, kid).unwrap();
        let exchanged = DekRecord { body: DekBody::Active(WrappedDek { kid, bytes: other.wrapped }), ..row.clone() };
        assert_eq!(keyring.dek(&exchanged).err(), Some(KeysError::WrongId));
        assert_eq!(keyring.dek(&exchanged).err(), Some(KeysError::WrongId));
        keyring.dek(&row).unwrap();
    }

    #[test]
    fn locked_keys_hand_out_no_dek_and_open_again() {
        let Deployment { keyring, kid, row } = deployment(100);
        keyring.dek(&row).unwrap();
        keyring.lock("taken away".to_owned());
        assert_eq!(keyring.dek(&row).err(), Some(KeysError::Locked("taken away".to_owned())));
        assert!(keyring.make_dek(&row.tenant, row.version, kid).is_err());
        assert_eq!(keyring.cache_stats().entries, 0);
    }

    #[test]
    fn a_ring_without_its_active_key_opens_what_it_can_and_makes_no_dek() {
        let Deployment { keyring, kid, row } = deployment(0);
        let next = MasterKey::make_random().unwrap();
        let active = crypto::kid(&next);
        keyring.converge(active, &[], &[]);
        keyring.dek(&row).unwrap();
        assert_eq!(keyring.make_dek(&row.tenant, row.version, active).err(), Some(KeysError::NotLoaded(active)));
        let holds_active = || matches!(&*keyring.state(), Keys::Open(ring) if ring.holds_active());
        assert!(!holds_active());
        keyring.converge(active, &[&next], &[]);
        assert!(holds_active());
        keyring.make_dek(&row.tenant, row.version, active).unwrap();
        keyring.converge(active, &[], &[kid]);
        assert_eq!(keyring.dek(&row).err(), Some(KeysError::NotLoaded(kid)), "it is gone for good");
    }

    #[test]
    fn a_key_that_comes_leaves_the_cache_warm_and_locked_keys_locked() {
        let Deployment { keyring, row, .. } = deployment(100);
        keyring.dek(&row).unwrap();
        let next = MasterKey::make_random().unwrap();
        keyring.converge(crypto::kid(&next), &[&next], &[]);
        keyring.dek(&row).unwrap();
        assert_eq!(keyring.cache_stats().unwraps, 1);
        keyring.lock("taken away".to_owned());
        keyring.converge(crypto::kid(&next), &[&next], &[]);
        assert!(matches!(&*keyring.state(), Keys::Locked(_)));
    }

    #[test]
    fn a_dek_under_a_master_key_that_is_not_loaded_names_that_key() {
        let Deployment { keyring, row, .. } = deployment(100);
        let other = Kid::new([7; 16]);
        let DekBody::Active(wrapped) = row.body.clone() else { unreachable!() };
        let row = DekRecord { body: DekBody::Active(WrappedDek { kid: other, ..wrapped }), ..row };
        assert_eq!(keyring.dek(&row).err(), Some(KeysError::NotLoaded(other)));
        assert_eq!(keyring.make_dek(&row.tenant, row.version, other).err(), Some(KeysError::NotLoaded(other)));
    }

    impl PartialEq for WrappedNew {
        fn eq(&self, other: &Self) -> bool {
            self.id == other.id
        }
    }

    impl std::fmt::Debug for WrappedNew {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            self.id.fmt(f)
        }
    }
}
