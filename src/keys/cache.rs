//! Unwrapped DEKs, bounded in number and age, each wiped when the last user drops it.
//!
//! The key is (tenant, DEK version, DEK id): a row that borrows another tenant's id finds nothing here and goes the long way, where it
//! is refused. moka's blocking cache is enough: an unwrap is microseconds of CPU.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use moka::sync::Cache;

use super::KeysError;
use crate::crypto::Dek;
use crate::model::{DekId, DekRecord, DekVersion, Tenant};

/// How many DEKs stay, and for how long after they were unwrapped: both are hard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheLimits {
    /// 0: no DEK is kept.
    pub max_entries: u64,
    pub max_age: Duration,
}

/// Counts since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheStats {
    pub entries: u64,
    pub limits: CacheLimits,
    pub hits: u64,
    pub misses: u64,
    /// Unwraps that were done; fewer than misses where several waited for one.
    pub unwraps: u64,
}

type Key = (Tenant, DekVersion, DekId);

pub(super) struct DekCache {
    deks: Cache<Key, Arc<Dek>>,
    limits: CacheLimits,
    hits: AtomicU64,
    misses: AtomicU64,
    unwraps: AtomicU64,
}

impl DekCache {
    pub(super) fn new(limits: CacheLimits) -> Self {
        let deks = Cache::builder().max_capacity(limits.max_entries).time_to_live(limits.max_age).build();
        Self { deks, limits, hits: AtomicU64::new(0), misses: AtomicU64::new(0), unwraps: AtomicU64::new(0) }
    }

    pub(super) fn get_or_unwrap(
        &self,
        row: &DekRecord,
        unwrap: impl FnOnce() -> Result<Dek, KeysError>,
    ) -> Result<Arc<Dek>, KeysError> {
        let key = (row.tenant.clone(), row.version, row.id);
        if let Some(dek) = self.deks.get(&key) {
            self.hits.fetch_add(1, Ordering::Relaxed);
            return Ok(dek);
        }
        self.misses.fetch_add(1, Ordering::Relaxed);
        let counted = || {
            self.unwraps.fetch_add(1, Ordering::Relaxed);
            unwrap().map(Arc::new)
        };
        self.deks.try_get_with(key, counted).map_err(|error: Arc<KeysError>| (*error).clone())
    }

    pub(super) fn forget(&self, row: &DekRecord) {
        self.deks.invalidate(&(row.tenant.clone(), row.version, row.id));
        self.tick();
    }

    pub(super) fn clear(&self) {
        self.deks.invalidate_all();
        self.tick();
    }

    pub(super) fn tick(&self) {
        self.deks.run_pending_tasks();
    }

    pub(super) fn stats(&self) -> CacheStats {
        // moka counts an entry once its pending work is done.
        self.tick();
        CacheStats {
            entries: self.deks.entry_count(),
            limits: self.limits,
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            unwraps: self.unwraps.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::{self, DekPlace};
    use crate::model::DekBody;

    #[test]
    fn the_number_of_entries_never_exceeds_the_limit_for_long() {
        let cache = DekCache::new(CacheLimits { max_entries: 10, max_age: Duration::from_hours(1) });
        let tenant = Tenant::parse("alice").unwrap();
        for number in 1..=100 {
            let version = DekVersion::new(number).unwrap();
            let dek = crypto::make_dek(DekPlace { tenant: &tenant, version }).unwrap();
            let row = DekRecord { tenant: tenant.clone(), version, id: crypto::dek_id(&dek), body: DekBody::Shredded };
            cache.get_or_unwrap(&row, || Ok(dek)).unwrap();
        }
        cache.tick();
        assert!(cache.stats().entries <= 10, "{:?}", cache.stats());
    }

    #[test]
    fn an_expired_dek_is_dropped_by_ticks_alone() {
        let cache = DekCache::new(CacheLimits { max_entries: 10, max_age: Duration::from_millis(1) });
        let tenant = Tenant::parse("alice").unwrap();
        let dek = crypto::make_dek(DekPlace { tenant: &tenant, version: DekVersion::FIRST }).unwrap();
        let row = DekRecord { tenant, version: DekVersion::FIRST, id: crypto::dek_id(&dek), body: DekBody::Shredded };
        let weak = Arc::downgrade(&cache.get_or_unwrap(&row, || Ok(dek)).unwrap());
        while weak.upgrade().is_some() {
            cache.tick();
        }
    }
}
