//! What opens and makes wrapped key files: Cloud KMS and age identities. The one way from a wrapped master key to the key.
//!
//! What comes back is believed by nobody's word but its own: 32 bytes whose kid is the file's. Where an age identity is configured and
//! the file has a recipient of age, that is tried first: it is on this host, it was given on purpose, and Google may be the reason why.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::identity::AgeIdentity;
use crate::backup::age::{self, AgeError, Recipient};
use crate::crypto::{self, ImageError, KeyfileImage, MasterKey};
use crate::gcp::{Endpoint, EndpointError, Kms, KmsError, KmsTrouble, Limits};
use crate::model::{Kid, KmsKey, WrappedMaster, Wrapping};

/// How long one call to Cloud KMS may take, its retries and waits in it.
pub const KMS_DEADLINE: Duration = Duration::from_secs(10);

/// Who opens wrapped key files here. Each call makes its own connection: it may change while a daemon runs.
#[derive(Debug, Clone, Default)]
pub struct Provider {
    /// Google's own where `None`.
    pub kms_endpoint: Option<String>,
    pub age_identity: Option<AgeIdentity>,
}

/// A key that was opened.
pub struct Opened {
    pub master: MasterKey,
    pub by: OpenedBy,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpenedBy {
    Kms {
        key: KmsKey,
        /// Whether the key's primary version wrapped it.
        used_primary: bool,
    },
    Age,
}

/// Why a wrapped key did not open: what each recipient said, in the order in which they were tried.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("master key {kid} is wrapped, and could not be opened: {}", list(.attempts))]
pub struct NotOpened {
    pub kid: Kid,
    pub attempts: Vec<Attempt>,
}

/// Why one recipient opened nothing. No variant carries a byte of a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Attempt {
    #[error(transparent)]
    Kms(#[from] KmsError),
    #[error("the configured Cloud KMS endpoint is not usable: {0}")]
    Endpoint(#[from] EndpointError),
    /// Nothing but the bytes themselves tells whether they are the key.
    #[error("{by} gave no master key: {damage}")]
    NotAKey { by: String, damage: ImageError },
    #[error("{by} gave another master key, {found}: the key file was changed, or the key was exchanged")]
    AnotherKey { by: String, found: Kid },
    #[error("the age identity {} cannot be used: {why}", .path.display())]
    Identity { path: PathBuf, why: String },
    #[error("age: {0}")]
    Age(String),
    /// It has a recipient of age.
    #[error("an age identity opens it, and none is configured (--age-identity FILE)")]
    NoIdentity,
}

/// KMS keys that did not answer, and what was said of each: one that is away is waited for once in what a command does, and no other key
/// is taken to be away with it.
#[derive(Debug, Default)]
pub struct Away(Mutex<HashMap<KmsKey, KmsError>>);

impl Away {
    fn said(&self, key: &KmsKey) -> Option<KmsError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    fn note(&self, key: &KmsKey, attempt: &Attempt) {
        if let Attempt::Kms(error) = attempt
            && error.trouble() == KmsTrouble::Unavailable
        {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone(), error.clone());
        }
    }
}

/// Why a key was not wrapped. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum NotWrapped {
    #[error(transparent)]
    Kms(#[from] KmsError),
    #[error("the configured Cloud KMS endpoint is not usable: {0}")]
    Endpoint(#[from] EndpointError),
    #[error(transparent)]
    Age(#[from] AgeError),
    #[error("nothing was named to wrap the key with")]
    NoRecipients,
    #[error("what was just made does not open again, so it was not used: {0}")]
    NotProven(#[from] NotOpened),
}

/// What a caller can make of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// A setting or a file that was named.
    Invalid,
    Denied,
    NotFound,
    /// It may work later.
    Unavailable,
    Failed,
}

impl From<KmsTrouble> for Trouble {
    fn from(trouble: KmsTrouble) -> Self {
        match trouble {
            KmsTrouble::Denied => Self::Denied,
            KmsTrouble::NotFound => Self::NotFound,
            KmsTrouble::Unavailable => Self::Unavailable,
            KmsTrouble::Failed => Self::Failed,
        }
    }
}

impl NotOpened {
    /// As the first attempt says that Google refused; what else went wrong is a failure.
    #[must_use]
    pub fn trouble(&self) -> Trouble {
        let googles = self.attempts.iter().find_map(|attempt| match attempt {
            Attempt::Kms(error) => Some(error.trouble().into()),
            _ => None,
        });
        googles.unwrap_or(Trouble::Failed)
    }

    /// Whether each of its recipients was asked, and each said for good that it opens no such thing: what nobody opens is no copy of a key. A
    /// KMS key that is away, that may not be used, or whose answer was damaged says nothing of what was to be opened.
    #[must_use]
    pub fn is_for_good(&self) -> bool {
        let is_verdict = |attempt: &Attempt| match attempt {
            Attempt::Kms(error) => error.is_of_the_ciphertext(),
            Attempt::NotAKey { .. } | Attempt::AnotherKey { .. } => true,
            Attempt::Endpoint(_) | Attempt::Identity { .. } | Attempt::Age(_) | Attempt::NoIdentity => false,
        };
        !self.attempts.is_empty() && self.attempts.iter().all(is_verdict)
    }
}

impl NotWrapped {
    #[must_use]
    pub fn trouble(&self) -> Trouble {
        match self {
            Self::Kms(error) => error.trouble().into(),
            Self::NotProven(cause) => cause.trouble(),
            Self::Endpoint(_) | Self::Age(_) | Self::NoRecipients => Trouble::Invalid,
        }
    }
}

fn list(attempts: &[Attempt]) -> String {
    attempts.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl Provider {
    /// The same with this age identity, where there is one.
    #[must_use]
    pub fn with_identity(&self, identity: Option<&AgeIdentity>) -> Self {
        let age_identity = identity.or(self.age_identity.as_ref()).cloned();
        Self { age_identity, ..self.clone() }
    }

    /// Opens it with whatever opens it: an age identity where one is configured, then each KMS key.
    ///
    /// # Errors
    /// [`NotOpened`].
    pub async fn open(&self, wrapped: &WrappedMaster) -> Result<Opened, NotOpened> {
        self.open_knowing(wrapped, &Away::default()).await
    }

    /// As [`Provider::open`], and asks no KMS key again that is known to be away.
    ///
    /// # Errors
    /// [`NotOpened`].
    pub async fn open_knowing(&self, wrapped: &WrappedMaster, away: &Away) -> Result<Opened, NotOpened> {
        let mut attempts = Vec::new();
        let with_age = self.open_with_age(wrapped).await;
        let untried = with_age.is_none() && wrapped.age().next().is_some();
        match with_age {
            Some(Ok(opened)) => return Ok(opened),
            Some(Err(attempt)) => attempts.push(attempt),
            None => {}
        }
        for (key, ciphertext) in wrapped.kms() {
            if let Some(error) = away.said(key) {
                attempts.push(Attempt::Kms(error));
                continue;
            }
            match self.open_with(key, ciphertext, wrapped.kid).await {
                Ok(opened) => return Ok(opened),
                Err(attempt) => {
                    away.note(key, &attempt);
                    attempts.push(attempt);
                }
            }
        }
        if untried {
            attempts.push(Attempt::NoIdentity);
        }
        Err(NotOpened { kid: wrapped.kid, attempts })
    }

    /// Opens it with each of its KMS recipients and no other: each of them must.
    ///
    /// # Errors
    /// [`NotOpened`], with those that did not.
    pub async fn prove_kms(&self, wrapped: &WrappedMaster) -> Result<Vec<OpenedBy>, NotOpened> {
        self.open_by_each_kms(wrapped).await.map(|opened| opened.into_iter().map(|opened| opened.by).collect())
    }

    /// As [`Provider::prove_kms`], with the keys.
    ///
    /// # Errors
    /// As there.
    pub async fn open_by_each_kms(&self, wrapped: &WrappedMaster) -> Result<Vec<Opened>, NotOpened> {
        let (mut opened, mut attempts) = (Vec::new(), Vec::new());
        for (key, ciphertext) in wrapped.kms() {
            match self.open_with(key, ciphertext, wrapped.kid).await {
                Ok(one) => opened.push(one),
                Err(attempt) => attempts.push(attempt),
            }
        }
        if attempts.is_empty() { Ok(opened) } else { Err(NotOpened { kid: wrapped.kid, attempts }) }
    }

    /// Opens a new key's file as its daemon will have to: with each of its KMS keys, all of which must; one without any, with an age identity.
    ///
    /// # Errors
    /// [`NotOpened`].
    pub async fn open_new(&self, wrapped: &WrappedMaster) -> Result<MasterKey, NotOpened> {
        match self.open_by_each_kms(wrapped).await?.pop() {
            Some(opened) => Ok(opened.master),
            None => self.open(wrapped).await.map(|opened| opened.master),
        }
    }

    /// Opens it with the age identity alone: `None` where none is configured or the file has no recipient of age.
    pub async fn open_with_age(&self, wrapped: &WrappedMaster) -> Option<Result<Opened, Attempt>> {
        let identity = self.age_identity.as_ref()?;
        let mut last = None;
        for ciphertext in wrapped.age() {
            match age_opened(identity, ciphertext, wrapped.kid).await {
                Ok(master) => return Some(Ok(Opened { master, by: OpenedBy::Age })),
                Err(attempt) => last = Some(attempt),
            }
        }
        last.map(Err)
    }

    async fn open_with(&self, key: &KmsKey, ciphertext: &[u8], kid: Kid) -> Result<Opened, Attempt> {
        let kms = self.kms(key).map_err(|error| match error {
            NotWrapped::Endpoint(error) => Attempt::Endpoint(error),
            NotWrapped::Kms(error) => Attempt::Kms(error),
            other => Attempt::Age(other.to_string()),
        })?;
        let decrypted = kms.decrypt(key, ciphertext, &crypto::master_aad(kid)).await?;
        let master = judged(&decrypted.image, kid, &By::Kms(key))?;
        Ok(Opened { master, by: OpenedBy::Kms { key: key.clone(), used_primary: decrypted.used_primary } })
    }

    fn kms(&self, key: &KmsKey) -> Result<Kms, NotWrapped> {
        let endpoint = Endpoint::kms(self.kms_endpoint.as_deref())?;
        Ok(Kms::connect(&endpoint, Limits::within(KMS_DEADLINE), key)?)
    }

    /// Wraps a key for each of these, and proves that each KMS key opens it again. Whether an age identity does is proven where one is
    /// configured, by whoever asks for [`Provider::open_with_age`].
    ///
    /// # Errors
    /// [`NotWrapped`].
    pub async fn wrap(
        &self,
        master: &MasterKey,
        keys: &[KmsKey],
        recipients: &[Recipient],
    ) -> Result<WrappedMaster, NotWrapped> {
        let (kid, image) = (crypto::kid(master), KeyfileImage::of(master));
        let mut wrappings = Vec::with_capacity(keys.len() + recipients.len());
        for key in keys {
            let encrypted = self.kms(key)?.encrypt(key, &image, &crypto::master_aad(kid)).await?;
            let (key, key_version, ciphertext) = (key.clone(), encrypted.key_version, encrypted.ciphertext);
            wrappings.push(Wrapping::GcpKms { key, key_version, ciphertext });
        }
        for recipient in recipients {
            let ciphertext = age::seal(&image, std::slice::from_ref(recipient))?;
            wrappings.push(Wrapping::Age { recipient: recipient.to_string(), ciphertext, proven_at: None });
        }
        if wrappings.is_empty() {
            return Err(NotWrapped::NoRecipients);
        }
        let wrapped = WrappedMaster { kid, recipients: wrappings };
        self.prove_kms(&wrapped).await?;
        Ok(wrapped)
    }
}

enum By<'a> {
    Kms(&'a KmsKey),
    Age(&'a Path),
}

impl fmt::Display for By<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kms(key) => write!(f, "KMS key {key}"),
            Self::Age(path) => write!(f, "the age identity {}", path.display()),
        }
    }
}

fn judged(image: &KeyfileImage, kid: Kid, by: &By<'_>) -> Result<MasterKey, Attempt> {
    let master = image.master().map_err(|damage| Attempt::NotAKey { by: by.to_string(), damage })?;
    let found = crypto::kid(&master);
    if found == kid { Ok(master) } else { Err(Attempt::AnotherKey { by: by.to_string(), found }) }
}

async fn age_opened(identity: &AgeIdentity, ciphertext: &[u8], kid: Kid) -> Result<MasterKey, Attempt> {
    let path = identity.path();
    let unusable = |why: String| Attempt::Identity { path: path.to_owned(), why };
    let identities = identity.identities().await.map_err(|error| unusable(error.to_string()))?;
    let image = age::open(ciphertext, &identities).map_err(|error| Attempt::Age(error.to_string()))?;
    judged(&image, kid, &By::Age(path))
}
