//! An issuer's keys as they change: found in the background, kept for a while when their place is away, and looked for at once when a
//! token names one that is new. A token whose key is known waits for nothing.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use jsonwebtoken::{Algorithm, DecodingKey};
use tokio::sync::{Mutex as Turn, Notify, Semaphore};
use tokio::time::sleep;

use super::keys::{Keys, KeysError, public};
use super::{IssuerKeysError, KeysState};
use crate::clock::Clock;
use crate::issuer::{Found, Reader, Source, SourceError, Stamp};
use crate::model::{Issuer, IssuerKeys, IssuerName, KeySetPlace};

/// How soon a look follows one that was in vain, and a token's one that another token caused: what strangers make up as names of keys must not
/// become a flood for the issuer.
pub(super) const AGAIN: Duration = Duration::from_secs(5);
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
    /// It was not there at the last look, which was before the token came, and it is too soon for another: the issuer may have begun to sign
    /// with it since.
    TooSoon,
    /// Nobody can tell now.
    Away,
}

/// What a look found amiss.
struct Amiss {
    why: String,
    held: Fate,
}

/// What that makes of the keys that are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Nobody could be asked, or what was there says nothing: they count for `keep_keys`.
    Kept,
    /// They were taken away.
    Gone,
}

impl Amiss {
    fn of_source(error: &SourceError) -> Self {
        let held = if error.takes_away() { Fate::Gone } else { Fate::Kept };
        Self { why: error.to_string(), held }
    }

    fn of_keys(source: &Source, error: KeysError) -> Self {
        let held = match error {
            // A file that is being written, or a page of a server on the way: no issuer says by it what its keys are.
            KeysError::NoSet | KeysError::Short => Fate::Kept,
            // It says what its keys are now, and those that are held are not among what can be used of it.
            KeysError::NoKey | KeysError::TooMany | KeysError::Twice => Fate::Gone,
        };
        Self { why: format!("{source} {error}"), held }
    }
}

/// Shared by its clones.
#[derive(Clone)]
pub(super) struct Ring(Arc<Inner>);

struct Inner {
    issuer: IssuerName,
    keys: IssuerKeys,
    reader: Reader,
    refresh: Duration,
    keep_keys: Duration,
    clock: Arc<dyn Clock>,
    held: ArcSwapOption<Held>,
    /// Whoever looks holds it.
    turn: Turn<Looks>,
    waiting: Semaphore,
    last: Mutex<Last>,
    wake: Notify,
}

/// Keys, and when they were last seen at their place, since boot.
struct Held {
    keys: Arc<Keys>,
    seen: Duration,
}

/// When there were looks, since boot.
#[derive(Default)]
struct Looks {
    /// The last one began.
    began: Option<Duration>,
    /// The last one ended, where it was in vain.
    in_vain: Option<Duration>,
    /// The last one that a token caused ended.
    by_token: Option<Duration>,
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
        place: source.to_string(),
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
            reader: Reader::new(source(&issuer.keys)),
            keys: issuer.keys.clone(),
            refresh: issuer.refresh,
            keep_keys: issuer.keep_keys,
            clock,
            held: ArcSwapOption::empty(),
            turn: Turn::default(),
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
        let presented = inner.clock.since_boot();
        let Ok(_place) = inner.waiting.try_acquire() else { return Err(NoKey::Away) };
        let mut looks = inner.turn.lock().await;
        if let Some(key) = find() {
            return Ok(key);
        }
        if !looks.answer(presented) && looks.may_follow(inner.clock.since_boot()) {
            inner.look(&mut looks).await;
            looks.by_token = Some(inner.clock.since_boot());
        }
        find().ok_or_else(|| match inner.is_certain() {
            true if looks.answer(presented) => NoKey::UnknownKid,
            true => NoKey::TooSoon,
            false => NoKey::Away,
        })
    }

    pub(super) fn state(&self) -> KeysState {
        let inner = &*self.0;
        let held = inner.held.load_full();
        KeysState {
            issuer: inner.issuer.clone(),
            usable: inner.fresh().map_or(0, |keys| keys.count()),
            age: held.map(|held| inner.clock.since_boot().saturating_sub(held.seen)),
            keep: inner.keep_keys,
            failure: inner.last().failure.clone(),
        }
    }

    pub(super) fn reread(&self) {
        self.0.wake.notify_one();
    }

    /// Looks again and again. It does not end.
    pub(super) async fn keep(self) {
        let inner = &*self.0;
        loop {
            inner.look(&mut *inner.turn.lock().await).await;
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

impl Looks {
    /// Whether the last one's answer is one for a token that came then: an issuer has a key at its place before it signs with it.
    fn answer(&self, presented: Duration) -> bool {
        self.began.is_some_and(|began| began >= presented)
    }

    /// Whether a token may cause one.
    fn may_follow(&self, now: Duration) -> bool {
        [self.in_vain, self.by_token].into_iter().flatten().all(|ended| now.saturating_sub(ended) >= AGAIN)
    }
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

    /// One at a time.
    async fn look(&self, looks: &mut Looks) {
        looks.began = Some(self.clock.since_boot());
        let Found { stamp, bytes } = self.reader.read().await;
        let hashed = bytes.map_err(|error| Amiss::of_source(&error)).and_then(|bytes| self.keys_of(&bytes));
        looks.in_vain = hashed.is_err().then(|| self.clock.since_boot());
        self.take(hashed, stamp);
    }

    /// The keys that some bytes are, with the bytes' hash: those that are held, where the bytes are the same.
    fn keys_of(&self, bytes: &[u8]) -> Result<(Arc<Keys>, [u8; 32]), Amiss> {
        let hash = crate::crypto::hash_credential(bytes);
        let held = self.held.load_full().filter(|_| self.last().bytes == Some(hash));
        let keys = match held {
            Some(held) => Arc::clone(&held.keys),
            None => Arc::new(parse(&self.keys, bytes).map_err(|error| Amiss::of_keys(self.reader.source(), error))?),
        };
        Ok((keys, hash))
    }

    fn take(&self, found: Result<(Arc<Keys>, [u8; 32]), Amiss>, stamp: Option<Stamp>) {
        let mut last = self.last();
        last.stamp = stamp;
        match found {
            Ok((keys, hash)) => {
                if last.bytes != Some(hash) || last.failure.is_some() {
                    let (issuer, count) = (&self.issuer, keys.count());
                    tracing::info!(%issuer, "the issuer's keys are there: {count}");
                }
                *last = Last { bytes: Some(hash), stamp, failure: None };
                self.held.store(Some(Arc::new(Held { keys, seen: self.clock.since_boot() })));
            }
            Err(amiss) => {
                let held = self.held.load_full();
                if amiss.held == Fate::Gone {
                    self.held.store(None);
                    last.bytes = None;
                }
                if last.failure.as_ref() != Some(&amiss.why) {
                    let (issuer, why) = (&self.issuer, &amiss.why);
                    let until = self.until(held.as_deref(), amiss.held);
                    tracing::error!(%issuer, "the issuer's keys are not to be had, and {until}: {why}");
                }
                last.failure = Some(amiss.why);
            }
        }
    }

    /// What becomes of what was held, in words.
    fn until(&self, held: Option<&Held>, fate: Fate) -> String {
        match (held, fate) {
            (Some(held), Fate::Kept) => {
                let left = (held.seen + self.keep_keys).saturating_sub(self.clock.since_boot());
                format!("those that were there are used for {} s more", left.as_secs())
            }
            (Some(_), Fate::Gone) => "those that were there were taken away and count no more".to_owned(),
            (None, _) => "its tokens let nobody in".to_owned(),
        }
    }

    /// Returns once a file is another one than was read.
    async fn changed(&self) {
        if !self.reader.source().is_file() {
            return std::future::pending().await;
        }
        loop {
            sleep(LOOK).await;
            if self.reader.stamp().await != self.last().stamp {
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

    async fn look_by_time(ring: &Ring) {
        ring.0.look(&mut *ring.0.turn.lock().await).await;
    }

    async fn found(ring: &Ring, kid: &str) -> Result<(), NoKey> {
        ring.key(Algorithm::EdDSA, Some(kid)).await.map(drop)
    }

    /// With a short `refresh` a token with a key that is gone would be told 503 for ever, and a new key be found late.
    #[tokio::test]
    async fn a_look_by_time_does_not_stand_for_one_that_a_token_causes() {
        let (_dir, hand, ring) = ring_of_one();
        for _ in 0..3 {
            look_by_time(&ring).await;
            hand.pass(Duration::from_secs(1));
            assert_eq!(found(&ring, "made up").await, Err(NoKey::UnknownKid), "it was looked for");
            hand.pass(Duration::from_secs(1));
            look_by_time(&ring).await;
            hand.pass(Duration::from_secs(1));
            assert_eq!(found(&ring, "made up").await, Err(NoKey::TooSoon));
            assert_eq!(found(&ring, "ed-1").await, Ok(()));
            hand.pass(Duration::from_secs(3));
        }
    }

    #[tokio::test]
    async fn a_look_in_vain_is_not_made_again_by_a_token_for_five_seconds() {
        let (dir, hand, ring) = ring_of_one();
        let file = dir.path().join("set");
        let set = std::fs::read(&file).unwrap();
        std::fs::write(&file, "").unwrap();
        look_by_time(&ring).await;
        std::fs::write(&file, set).unwrap();
        hand.pass(Duration::from_millis(4_999));
        assert_eq!(found(&ring, "ed-1").await, Err(NoKey::Away));
        hand.pass(Duration::from_millis(1));
        assert_eq!(found(&ring, "ed-1").await, Ok(()));
    }

    #[tokio::test]
    async fn those_who_wait_for_a_look_are_so_many_and_no_more() {
        let (_dir, _hand, ring) = ring_of_one();
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
        assert_eq!(ring.0.waiting.available_permits(), MOST_WAITING);
    }
}
