//! Key files opened one after the other as a daemon needs them, and no wrapped one asked for again too soon after it did not open.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;

use super::keyfile::{KeyFile, MainFile, Scan};
use super::provider::{NotOpened, Opened, OpenedBy, Provider};
use crate::clock::Clock;
use crate::crypto::{self, Content, MasterKey};
use crate::model::{Kid, Micros, WrappedMaster};

/// The wait after the first failure; doubled with each further one.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// The longest wait: a daemon comes back within a minute after KMS did.
const LONGEST_WAIT: Duration = Duration::from_mins(1);
/// How long a file that is opened in a task of its own is waited for: as long as an answer takes as a rule.
const A_MOMENT: Duration = Duration::from_secs(1);
/// Failures that are remembered; a deployment has a few wrapped files.
const REMEMBERED: usize = 64;

/// Opens wrapped keys for a daemon, which looks again and again: a file that did not open is left alone for a while that grows, and has
/// jitter, so that a fleet that lost KMS together does not come back all at once. Another file is tried at once.
pub struct Unlocker {
    provider: Provider,
    failed: Mutex<HashMap<[u8; 32], Failed>>,
    proofs: Mutex<HashMap<[u8; 32], Proof>>,
    opening: Mutex<HashMap<[u8; 32], Opening>>,
}

/// A file that is being opened, in a task of its own.
type Opening = JoinHandle<Result<Opened, NotOpened>>;

/// What is known of whether a wrapped key file still opens with KMS.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proof {
    /// The last time that it did, by the wall clock; absent where it has not since this process knows it.
    pub proven_at: Option<Micros>,
    /// Why it did not, the last time that it was tried.
    pub failure: Option<String>,
    /// Monotonic: when it is to be tried again.
    next: Duration,
}

/// How often it is proven that a wrapped key file still opens with KMS.
pub const PROVE_EVERY: Duration = Duration::from_hours(24);
/// How soon it is tried again after a proof that failed.
const PROVE_AGAIN: Duration = Duration::from_hours(1);

struct Failed {
    times: u32,
    /// Monotonic.
    next: Duration,
    why: NotOpened,
}

/// What there is of a key that was asked for and not waited for.
pub enum Soon {
    Open(MasterKey),
    Closed(NotOpened),
    /// Who is to open it has not answered yet; whoever asks again has the answer when it is there.
    Asked,
}

/// How a key came to be open.
pub struct Unlocked {
    pub kid: Kid,
    pub master: MasterKey,
    /// `None`: the file is the key itself.
    pub by: Option<OpenedBy>,
}

impl Unlocker {
    #[must_use]
    pub fn new(provider: Provider) -> Self {
        Self { provider, failed: Mutex::default(), proofs: Mutex::default(), opening: Mutex::default() }
    }

    #[must_use]
    pub const fn provider(&self) -> &Provider {
        &self.provider
    }

    /// Opens the key in a file.
    ///
    /// # Errors
    /// [`NotOpened`]; within the wait after a failure that failure again, without a call.
    pub async fn open(&self, file: KeyFile, clock: &dyn Clock) -> Result<Unlocked, NotOpened> {
        let kid = file.kid;
        match file.content {
            Content::Raw(master) => Ok(Unlocked { kid, master, by: None }),
            Content::Wrapped(wrapped) => {
                let opened = self.open_wrapped(&wrapped, clock).await?;
                Ok(Unlocked { kid, master: opened.0, by: Some(opened.1) })
            }
        }
    }

    /// Opens a wrapped key.
    ///
    /// # Errors
    /// As [`Unlocker::open`].
    pub async fn open_wrapped(
        &self,
        wrapped: &WrappedMaster,
        clock: &dyn Clock,
    ) -> Result<(MasterKey, OpenedBy), NotOpened> {
        let id = id_of(wrapped);
        if let Some(why) = self.waiting(&id, clock.monotonic()) {
            return Err(why);
        }
        let opened = self.provider.open(wrapped).await;
        self.noted(id, opened, clock).map(|opened| (opened.master, opened.by))
    }

    /// As [`Unlocker::open_wrapped`], in a task of its own, for which it waits a moment: who has a heartbeat to give waits for no KMS.
    pub async fn open_soon(&self, wrapped: &WrappedMaster, clock: &dyn Clock) -> Soon {
        let id = id_of(wrapped);
        if let Some(why) = self.waiting(&id, clock.monotonic()) {
            return Soon::Closed(why);
        }
        let begun = self.with_opening(|opening| {
            // What was opened and not asked for again is nobody's.
            opening.retain(|other, task| *other == id || !task.is_finished());
            opening.remove(&id)
        });
        let mut task = begun.unwrap_or_else(|| {
            let (provider, wrapped) = (self.provider.clone(), wrapped.clone());
            tokio::spawn(async move { provider.open(&wrapped).await })
        });
        match tokio::time::timeout(A_MOMENT, &mut task).await {
            Err(_) => {
                self.with_opening(|opening| opening.insert(id, task));
                Soon::Asked
            }
            Ok(Err(_)) => Soon::Asked,
            Ok(Ok(opened)) => match self.noted(id, opened, clock) {
                Ok(opened) => Soon::Open(opened.master),
                Err(why) => Soon::Closed(why),
            },
        }
    }

    fn noted(&self, id: [u8; 32], opened: Result<Opened, NotOpened>, clock: &dyn Clock) -> Result<Opened, NotOpened> {
        match &opened {
            Ok(opened) => {
                self.with_failed(|failed| failed.remove(&id));
                if matches!(opened.by, OpenedBy::Kms { .. }) {
                    self.note_proof(id, Ok(()), clock);
                }
            }
            Err(why) => self.remember(id, why.clone(), clock.monotonic()),
        }
        opened
    }

    /// Opens a new key's file as [`Provider::open_new`] does, which is its first proof.
    ///
    /// # Errors
    /// [`NotOpened`].
    pub async fn open_new(&self, wrapped: &WrappedMaster, clock: &dyn Clock) -> Result<MasterKey, NotOpened> {
        let master = self.provider.open_new(wrapped).await?;
        if wrapped.kms().next().is_some() {
            self.note_proof(id_of(wrapped), Ok(()), clock);
        }
        Ok(master)
    }

    /// The same files, each of these kids' wrapped ones opened where it opens.
    pub async fn opened(&self, mut scan: Scan, is_wanted: impl Fn(Kid) -> bool, clock: &dyn Clock) -> Scan {
        let main = match &mut scan.main {
            MainFile::Key(file) => Some(file),
            MainFile::Missing | MainFile::Bad(_) => None,
        };
        for file in main.into_iter().chain(&mut scan.retained).filter(|file| is_wanted(file.kid)) {
            if let Content::Wrapped(wrapped) = &file.content
                && let Ok((master, _)) = self.open_wrapped(wrapped, clock).await
            {
                file.content = Content::Raw(master);
            }
        }
        scan
    }

    /// Proves again, where it is time to, that KMS still opens these files; what is known of files that are not among them is forgotten.
    pub async fn prove<'a>(&self, files: impl IntoIterator<Item = &'a WrappedMaster>, clock: &dyn Clock) {
        let files: Vec<_> = files.into_iter().filter(|file| file.kms().next().is_some()).collect();
        let ids: Vec<_> = files.iter().map(|file| id_of(file)).collect();
        self.with_proofs(|proofs| proofs.retain(|id, _| ids.contains(id)));
        for (file, id) in files.iter().zip(ids) {
            if self.with_proofs(|proofs| proofs.get(&id).is_none_or(|proof| proof.next <= clock.monotonic())) {
                let proven = self.provider.prove_kms(file).await;
                self.note_proof(id, proven.map(drop), clock);
            }
        }
    }

    /// What is known of this file; nothing where it was not tried yet.
    #[must_use]
    pub fn proof(&self, file: &WrappedMaster) -> Proof {
        self.with_proofs(|proofs| proofs.get(&id_of(file)).cloned()).unwrap_or_default()
    }

    fn note_proof(&self, id: [u8; 32], proven: Result<(), NotOpened>, clock: &dyn Clock) {
        let now = clock.monotonic();
        self.with_proofs(|proofs| {
            let proof = proofs.entry(id).or_default();
            match proven {
                Ok(()) => *proof = Proof { proven_at: Some(clock.wall()), failure: None, next: now + PROVE_EVERY },
                Err(why) => {
                    tracing::warn!("a key file that lies here could not be proven to open with KMS: {why}");
                    proof.failure = Some(why.to_string());
                    proof.next = now + PROVE_AGAIN;
                }
            }
        });
    }

    fn with_proofs<T>(&self, work: impl FnOnce(&mut HashMap<[u8; 32], Proof>) -> T) -> T {
        work(&mut self.proofs.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn with_opening<T>(&self, work: impl FnOnce(&mut HashMap<[u8; 32], Opening>) -> T) -> T {
        work(&mut self.opening.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn waiting(&self, id: &[u8; 32], now: Duration) -> Option<NotOpened> {
        self.with_failed(|failed| failed.get(id).filter(|failed| now < failed.next).map(|failed| failed.why.clone()))
    }

    fn remember(&self, id: [u8; 32], why: NotOpened, now: Duration) {
        self.with_failed(|failed| {
            if failed.len() >= REMEMBERED && !failed.contains_key(&id) {
                failed.clear();
            }
            let times = failed.get(&id).map_or(0, |before| before.times).saturating_add(1);
            failed.insert(id, Failed { times, next: now + wait(times, dice()), why });
        });
    }

    fn with_failed<T>(&self, work: impl FnOnce(&mut HashMap<[u8; 32], Failed>) -> T) -> T {
        work(&mut self.failed.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A wrapped key file, by its bytes.
fn id_of(wrapped: &WrappedMaster) -> [u8; 32] {
    crypto::KeyfileImage::of_wrapped(wrapped).sha256()
}

/// The wait after so many failures: doubled each time up to the longest, then between half of that and all of it.
fn wait(times: u32, dice: u8) -> Duration {
    let doubled = FIRST_WAIT.saturating_mul(2_u32.saturating_pow(times.saturating_sub(1).min(16)));
    let half = doubled.min(LONGEST_WAIT) / 2;
    half + half.mul_f64(f64::from(dice) / 255.0)
}

/// Without random bytes the longest wait: there is no key without them either.
fn dice() -> u8 {
    crypto::random_id_bytes().map_or(u8::MAX, |bytes| bytes[0])
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::atomic::{AtomicU64, Ordering};

    use ::age::secrecy::ExposeSecret;

    use super::*;
    use crate::keys::identity::AgeIdentity;
    use crate::keys::provider::Attempt;
    use crate::model::Wrapping;

    struct Hands(AtomicU64);

    impl Clock for Hands {
        fn wall(&self) -> Micros {
            Micros(0)
        }

        fn monotonic(&self) -> Duration {
            Duration::from_millis(self.0.load(Ordering::Relaxed))
        }

        fn since_boot(&self) -> Duration {
            self.monotonic()
        }
    }

    #[test]
    fn the_wait_doubles_up_to_a_minute_and_has_jitter() {
        let spans: Vec<_> = (1..=8).map(|times| (wait(times, 0).as_millis(), wait(times, 255).as_millis())).collect();
        let expected =
            [(500, 1000), (1000, 2000), (2000, 4000), (4000, 8000), (8000, 16000), (16000, 32000), (30000, 60000)];
        assert_eq!(spans[..7], expected);
        assert_eq!(spans[7], expected[6]);
        assert_eq!(wait(u32::MAX, 255), LONGEST_WAIT);
    }

    #[tokio::test]
    async fn a_kms_that_does_not_answer_is_asked_once_and_not_waited_for() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let asked = std::sync::Arc::new(AtomicU64::new(0));
        let counted = std::sync::Arc::clone(&asked);
        tokio::spawn(async move {
            let mut kept = Vec::new();
            loop {
                kept.push(listener.accept().await.unwrap());
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        let unlocker = Unlocker::new(Provider { kms_endpoint: Some(endpoint), ..Provider::default() });
        let key = "projects/acme-prod/locations/europe-west1/keyRings/r/cryptoKeys/k";
        let (key, key_version) = (crate::model::KmsKey::parse(key).unwrap(), format!("{key}/cryptoKeyVersions/1"));
        let recipients = vec![Wrapping::GcpKms { key, key_version, ciphertext: vec![1] }];
        let wrapped = WrappedMaster { kid: Kid::new([1; 16]), recipients };
        let clock = Hands(AtomicU64::new(0));
        for _ in 0..2 {
            assert!(matches!(unlocker.open_soon(&wrapped, &clock).await, Soon::Asked));
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn a_file_that_did_not_open_is_left_alone_for_a_while_and_another_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let identity = dir.path().join("identity.txt");
        let provider = Provider { age_identity: Some(AgeIdentity::at(identity.clone())), ..Provider::default() };
        let unlocker = Unlocker::new(provider);
        let clock = Hands(AtomicU64::new(0));
        let made = ::age::x25519::Identity::generate();
        let recipient: crate::backup::age::Recipient = made.to_public().to_string().parse().unwrap();
        let master = MasterKey::make_random().unwrap();
        let wrapped = Provider::default().wrap(&master, &[], &[recipient]).await.unwrap();
        let why = unlocker.open_wrapped(&wrapped, &clock).await.err().unwrap();
        assert!(matches!(&why.attempts[..], [Attempt::Identity { .. }]), "{why}");
        // Now it would open, and is not tried before its time.
        std::fs::write(&identity, made.to_string().expose_secret()).unwrap();
        std::fs::set_permissions(&identity, PermissionsExt::from_mode(0o600)).unwrap();
        assert_eq!(unlocker.open_wrapped(&wrapped, &clock).await.err(), Some(why));
        let mut other = wrapped.clone();
        other.recipients.push(Wrapping::Age { recipient: "age1q".to_owned(), ciphertext: vec![1], proven_at: None });
        assert!(unlocker.open_wrapped(&other, &clock).await.is_ok(), "another file");
        clock.0.store(1001, Ordering::Relaxed);
        let (opened, by) = unlocker.open_wrapped(&wrapped, &clock).await.ok().unwrap();
        assert_eq!((crypto::kid(&opened), by), (crypto::kid(&master), OpenedBy::Age));
    }
}
