//! An issuer's keys as they change: found in the background, kept for a while when their place is away, and looked for at once when a
//! token names one that is new. A token whose key is known waits for nothing.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use jsonwebtoken::{Algorithm, DecodingKey};
use tokio::sync::{Mutex as Turn, Notify, Semaphore};
use tokio::time::sleep;

use super::IssuerKeysError;
use super::keys::{Keys, KeysError, public};
use crate::clock::Clock;
use crate::issuer::{Source, Stamp};
use crate::model::{Issuer, IssuerKeys, IssuerName, KeySetPlace};

/// How soon a look follows one that was in vain, and one that a token caused: what strangers make up as names of keys must not become a flood
/// for the issuer.
const AGAIN: Duration = Duration::from_secs(5);
/// How often it is looked whether a file changed.
const LOOK: Duration = Duration::from_secs(1);

/// How many tokens' looks may wait for their turn: anybody can name a key that nobody knows, and a request outlives its connection.
const MOST_WAITING: usize = 64;

/// Why there is no key for a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoKey {
    Algorithm,
    NoKid,
    UnknownKid,
    /// Nobody can tell now.
    Away,
}

/// Shared by its clones.
#[derive(Clone)]
pub(super) struct Ring(Arc<Inner>);

struct Inner {
    issuer: IssuerName,
    keys: IssuerKeys,
    source: Source,
    refresh: Duration,
    keep_keys: Duration,
    clock: Arc<dyn Clock>,
    held: ArcSwapOption<Held>,
    /// Whoever looks holds it: when the last look ended, since boot.
    turn: Turn<Option<Duration>>,
    waiting: Semaphore,
    last: Mutex<Last>,
    wake: Notify,
}

/// Keys, and when they were last seen at their place, since boot.
struct Held {
    keys: Arc<Keys>,
    seen: Duration,
}

/// How the last look went.
#[derive(Default)]
struct Last {
    /// The bytes of what is held, as their hash.
    bytes: Option<[u8; 32]>,
    stamp: Option<Stamp>,
    /// What went wrong.
    failure: Option<String>,
}

/// # Errors
/// [`IssuerKeysError`].
pub(super) fn check(issuer: &Issuer) -> Result<(), IssuerKeysError> {
    let source = source(&issuer.keys);
    let read = source.look().map_err(|cause| IssuerKeysError::Source { issuer: issuer.name.clone(), cause })?;
    let Some(bytes) = read else { return Ok(()) };
    let checked = parse(&issuer.keys, &bytes);
    checked.map(drop).map_err(|cause| IssuerKeysError::Keys {
        issuer: issuer.name.clone(),
        place: place(&source),
        cause,
    })
}

fn source(keys: &IssuerKeys) -> Source {
    match keys {
        IssuerKeys::Public { set: KeySetPlace::File(path), .. } => Source::File(path.clone()),
        IssuerKeys::Public { set: KeySetPlace::Url { url, ca }, .. } => {
            Source::Url { url: url.clone(), ca: ca.clone() }
        }
        IssuerKeys::Secret { file } => Source::Secret(file.clone()),
    }
}

fn place(source: &Source) -> String {
    match source {
        Source::File(path) | Source::Secret(path) => path.display().to_string(),
        Source::Url { url, .. } => url.clone(),
    }
}

fn parse(keys: &IssuerKeys, bytes: &[u8]) -> Result<Keys, KeysError> {
    match keys {
        IssuerKeys::Public { algorithms, .. } => Keys::of_set(bytes, algorithms),
        IssuerKeys::Secret { .. } => Keys::of_secret(bytes),
    }
}

impl Ring {
    pub(super) fn new(issuer: &Issuer, clock: Arc<dyn Clock>) -> Self {
        Self(Arc::new(Inner {
            issuer: issuer.name.clone(),
            source: source(&issuer.keys),
            keys: issuer.keys.clone(),
            refresh: issuer.refresh,
            keep_keys: issuer.keep_keys,
            clock,
            held: ArcSwapOption::empty(),
            turn: Turn::new(None),
            waiting: Semaphore::new(MOST_WAITING),
            last: Mutex::default(),
            wake: Notify::new(),
        }))
    }

    /// The key that a token's header names. Only one that is not known is looked for, and then together with all others who ask.
    pub(super) async fn key(&self, algorithm: Algorithm, kid: Option<&str>) -> Result<DecodingKey, NoKey> {
        let inner = &*self.0;
        let (algorithm, kid) = match (&inner.keys, public(algorithm)) {
            (IssuerKeys::Secret { .. }, None) if algorithm == Algorithm::HS256 => (None, ""),
            (IssuerKeys::Public { algorithms, .. }, Some(of)) if algorithms.contains(&of) => {
                (Some(of), kid.ok_or(NoKey::NoKid)?)
            }
            _ => return Err(NoKey::Algorithm),
        };
        let find = || inner.fresh().and_then(|keys| keys.find(algorithm, kid));
        if let Some(key) = find() {
            return Ok(key);
        }
        let Ok(_place) = inner.waiting.try_acquire() else { return Err(NoKey::Away) };
        inner.look(Asked::ByToken).await;
        find().ok_or_else(|| if inner.is_certain() { NoKey::UnknownKid } else { NoKey::Away })
    }

    /// How long ago the keys were last seen at their place.
    pub(super) fn age(&self) -> Option<Duration> {
        let held = self.0.held.load_full()?;
        Some(self.0.clock.since_boot().saturating_sub(held.seen))
    }

    pub(super) fn reread(&self) {
        self.0.wake.notify_one();
    }

    /// Looks again and again. It does not end.
    pub(super) async fn keep(self) {
        let inner = &*self.0;
        loop {
            inner.look(Asked::ByTime).await;
            let failed = !inner.is_certain();
            let next = if failed { inner.refresh.min(AGAIN) } else { inner.refresh };
            tokio::select! {
                () = sleep(next) => {}
                () = inner.changed() => {}
                () = inner.wake.notified() => {}
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    ByTime,
    ByToken,
}

impl Inner {
    /// The keys, as long as they count.
    fn fresh(&self) -> Option<Arc<Keys>> {
        let held = self.held.load_full()?;
        let age = self.clock.since_boot().saturating_sub(held.seen);
        (age <= self.keep_keys).then(|| Arc::clone(&held.keys))
    }

    /// Whether the last look found keys: what is not among them then is not the issuer's.
    fn is_certain(&self) -> bool {
        self.last().failure.is_none() && self.fresh().is_some()
    }

    /// One at a time. A token's look after one that has just ended is spared: its answer is that one's.
    async fn look(&self, asked: Asked) {
        let mut ended = self.turn.lock().await;
        let is_news = ended.is_none_or(|at| self.clock.since_boot().saturating_sub(at) >= AGAIN);
        if asked == Asked::ByTime || is_news {
            // Before the bytes: a change in between is seen next time.
            let stamp = self.source.stamp().await;
            let found = self.source.read().await.map_err(|error| error.to_string());
            self.take(found.as_deref().map(Vec::as_slice).map_err(Clone::clone), stamp);
            *ended = Some(self.clock.since_boot());
        }
    }

    fn take(&self, found: Result<&[u8], String>, stamp: Option<Stamp>) {
        let mut last = self.last();
        last.stamp = stamp;
        let parsed = found.and_then(|bytes| {
            let hash = crate::crypto::hash_credential(bytes);
            let known = self.held.load_full().filter(|_| last.bytes == Some(hash));
            let keys = known.map_or_else(|| parse(&self.keys, bytes).map(Arc::new), |held| Ok(Arc::clone(&held.keys)));
            keys.map(|keys| (keys, hash)).map_err(|error| format!("{} {error}", place(&self.source)))
        });
        match parsed {
            Ok((keys, hash)) => {
                if last.bytes != Some(hash) || last.failure.is_some() {
                    let (issuer, count) = (&self.issuer, keys.count());
                    tracing::info!(%issuer, "the issuer's keys are there: {count}");
                }
                *last = Last { bytes: Some(hash), stamp, failure: None };
                self.held.store(Some(Arc::new(Held { keys, seen: self.clock.since_boot() })));
            }
            Err(why) => {
                if last.failure.as_ref() != Some(&why) {
                    let issuer = &self.issuer;
                    let until = match self.held.load_full() {
                        Some(held) => {
                            let left = (held.seen + self.keep_keys).saturating_sub(self.clock.since_boot());
                            format!("those that were there are used for {} s more", left.as_secs())
                        }
                        None => "its tokens let nobody in".to_owned(),
                    };
                    tracing::error!(%issuer, "the issuer's keys are not to be had, and {until}: {why}");
                }
                last.failure = Some(why);
            }
        }
    }

    /// Returns once a file is another one than was read.
    async fn changed(&self) {
        if !self.source.is_file() {
            return std::future::pending().await;
        }
        loop {
            sleep(LOOK).await;
            if self.source.stamp().await != self.last().stamp {
                return;
            }
        }
    }

    fn last(&self) -> std::sync::MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::ring_of_one;
    use super::*;

    #[tokio::test]
    async fn those_who_wait_for_a_look_are_so_many_and_no_more() {
        let (_dir, ring) = ring_of_one();
        let turn = ring.0.turn.lock().await;
        let waiting: Vec<_> = (0..MOST_WAITING)
            .map(|_| {
                let ring = ring.clone();
                tokio::spawn(async move { ring.key(Algorithm::EdDSA, Some("made up")).await.map(drop) })
            })
            .collect();
        while ring.0.waiting.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let one_more = ring.key(Algorithm::EdDSA, Some("made up"));
        let one_more = tokio::time::timeout(Duration::from_secs(10), one_more).await.expect("it waits too");
        assert_eq!(one_more.map(drop), Err(NoKey::Away), "nobody can tell");
        drop(turn);
        for waited in waiting {
            assert_eq!(waited.await.unwrap(), Err(NoKey::UnknownKid));
        }
    }
}
