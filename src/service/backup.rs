//! Copies of the master keys off the host: pushed and listed by the daemon, with an identity that can read none of them; proven and
//! brought back in a command's own process, with its caller's credentials.
//!
//! What is copied is the key file's bytes, and they are known by their SHA-256. A row in `escrows` comes before each call, and only an
//! answer with a confirmed checksum makes it a copy. That a copy was confirmed and that it was read back are two facts.

pub mod export;
pub mod fetch;
mod list;
mod look;
mod push;
mod read_back;
pub mod restore;
pub mod verify;

use std::fs::File;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::backup::{BackupError, Kind, SecretManagerTarget};
use crate::crypto::{Content, KeyfileImage};
use crate::keys::identity::AgeIdentity;
use crate::model::{EscrowKind, EscrowRecord, Kid, MasterKeyRecord, MasterKeyState, Micros};
use crate::store::Survey;

use super::Error;

pub(super) use look::Standing;

pub use list::{BackupList, KeyCopies, ListedSecret, ListedVersion};
pub use push::{KeyCopyOutcome, Outcome, PushedKeys};
pub use read_back::{BadCopy, ReadBack};

/// How long one call to Google may take, its retries and waits in it.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// How long after a copy was last seen (confirmed, or read back) it is still taken for one. Doctor fails by then.
pub(super) const SEEN_WITHIN: Duration = Duration::from_hours(100 * 24);

/// How long after a copy in Secret Manager was last seen what cannot be undone still goes by it. The daemon looks once a day.
pub(super) const SEEN_LATELY: Duration = Duration::from_hours(3 * 24);

/// `escrows.target` of a copy in Secret Manager.
pub(super) const SECRET_MANAGER: &str = "secret-manager";

/// The secrets that copies go to, and where they are asked for. Each call makes its own connection: credentials may come and go while
/// a daemon runs.
#[derive(Debug, Clone, Default)]
pub struct Destinations {
    secrets: Vec<String>,
    endpoint: Option<String>,
}

impl Destinations {
    /// `projects/P/secrets/S` each, the primary one first; `endpoint` is Google's own where `None`.
    #[must_use]
    pub const fn new(secrets: Vec<String>, endpoint: Option<String>) -> Self {
        Self { secrets, endpoint }
    }

    /// The same endpoint, and one secret alone.
    #[must_use]
    pub fn only(&self, secret: &str) -> Self {
        Self { secrets: vec![secret.to_owned()], endpoint: self.endpoint.clone() }
    }

    #[must_use]
    pub fn secrets(&self) -> &[String] {
        &self.secrets
    }

    /// The endpoint, where it is not Google's: whatever listens there is what counts as a copy off this host.
    #[must_use]
    pub fn elsewhere(&self) -> Option<&str> {
        self.endpoint.as_deref().filter(|endpoint| !SecretManagerTarget::asks_google(Some(endpoint)))
    }

    fn target(&self, secret: &str) -> Result<SecretManagerTarget, BackupError> {
        SecretManagerTarget::connect(self.endpoint.as_deref(), secret, DEADLINE)
    }
}

/// Opens a copy in a file, or what a program writes into a FIFO; nobody waits for a writer that does not come.
///
/// # Errors
/// The system's, and `TimedOut`.
pub fn open(path: &Path) -> std::io::Result<File> {
    crate::backup::open(path, DEADLINE)
}

/// The age identities that an operator brought, read already.
pub struct BroughtIdentity(AgeIdentity);

impl BroughtIdentity {
    /// # Errors
    /// Why they cannot be used.
    pub async fn read(path: PathBuf) -> Result<Self, String> {
        AgeIdentity::brought(path).await.map(Self).map_err(|error| error.to_string())
    }
}

impl Deref for BroughtIdentity {
    type Target = AgeIdentity;

    fn deref(&self) -> &AgeIdentity {
        &self.0
    }
}

/// What a caller can make of trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    Invalid,
    NotFound,
    Denied,
    Conflict,
    Unavailable,
    Failed,
}

/// Why something with one copy did not work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    pub class: Class,
    pub why: String,
}

impl From<Kind> for Class {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Invalid => Self::Invalid,
            Kind::NotFound => Self::NotFound,
            Kind::Denied => Self::Denied,
            Kind::Unavailable => Self::Unavailable,
            Kind::Failed => Self::Failed,
        }
    }
}

impl Class {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::NotFound => "not-found",
            Self::Denied => "denied",
            Self::Conflict => "conflict",
            Self::Unavailable => "unavailable",
            Self::Failed => "failed",
        }
    }

    /// What [`Class::as_str`] wrote; another release's words are a failure.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let all = [Self::Invalid, Self::NotFound, Self::Denied, Self::Conflict, Self::Unavailable];
        all.into_iter().find(|class| class.as_str() == text).unwrap_or(Self::Failed)
    }
}

impl From<&BackupError> for Trouble {
    fn from(error: &BackupError) -> Self {
        Self { class: error.kind().into(), why: error.to_string() }
    }
}

impl Trouble {
    pub(super) fn into_error(self) -> Error {
        match self.class {
            Class::Invalid => Error::Invalid(self.why),
            Class::NotFound => Error::NotFound(self.why),
            Class::Denied => Error::Denied(self.why),
            Class::Conflict => Error::Conflict(self.why),
            Class::Unavailable => Error::Unavailable(self.why),
            Class::Failed => Error::Incomplete(self.why),
        }
    }
}

/// Keys of which copies are wanted: those, and ones that are on their way in or out.
fn to_copy(survey: &Survey) -> Vec<Kid> {
    let mut kids = survey.needed();
    let is_loaded = |key: &&MasterKeyRecord| matches!(key.state, MasterKeyState::Staged | MasterKeyState::DecryptOnly);
    for key in survey.master_keys.iter().filter(is_loaded) {
        if !kids.contains(&key.kid) {
            kids.push(key.kid);
        }
    }
    kids
}

/// Whether the row is a version of this secret that was confirmed, whatever became of it.
pub(super) fn is_version_of(escrow: &EscrowRecord, secret: &str) -> bool {
    escrow.kind == EscrowKind::Copy
        && escrow.target == SECRET_MANAGER
        && escrow.confirmed_at.is_some()
        && version_number(escrow, secret).is_some()
}

/// Where the copy of this key in this secret is, if one is confirmed there and was not lost since.
pub(super) fn confirmed_in<'a>(escrows: &'a [EscrowRecord], kid: Kid, secret: &str) -> Option<&'a str> {
    escrows
        .iter()
        .find(|escrow| escrow.kid == kid && escrow.stands() && is_version_of(escrow, secret))?
        .locator
        .as_deref()
}

/// Whether a copy of the key itself lies off this host, as far as is known: the other way to a key whose file KMS alone opens. Copies from
/// before the key was wrapped are thrown away some day, as they should be, and nobody tells us; so one counts only as long as it was
/// seen lately. An unknown sum is no copy's.
pub(super) fn is_raw_escrowed(escrows: &[EscrowRecord], kid: Kid, raw_sha256: Option<[u8; 32]>, now: Micros) -> bool {
    let is_recent = |escrow: &EscrowRecord| is_within(SEEN_WITHIN, escrow.confirmed_at.max(escrow.read_back_at), now);
    raw_sha256.is_some()
        && escrows.iter().any(|escrow| {
            escrow.kind == EscrowKind::Copy
                && escrow.can_be_relied_on()
                && escrow.kid == kid
                && escrow.content_sha256 == raw_sha256
                && is_recent(escrow)
        })
}

fn is_within(limit: Duration, at: Option<Micros>, now: Micros) -> bool {
    let limit = i64::try_from(limit.as_micros()).unwrap_or(i64::MAX);
    at.is_some_and(|at| now.0.saturating_sub(at.0) <= limit)
}

/// The versions of KMS keys that a copy needs; none where it is the key itself.
pub(super) fn kms_versions(image: &KeyfileImage) -> Vec<String> {
    match image.content() {
        Ok(Content::Wrapped(wrapped)) => wrapped.kms_versions().map(str::to_owned).collect(),
        Ok(Content::Raw(_)) | Err(_) => Vec::new(),
    }
}

fn version_number(escrow: &EscrowRecord, secret: &str) -> Option<std::num::NonZeroU64> {
    escrow.locator.as_deref()?.strip_prefix(secret)?.strip_prefix("/versions/")?.parse().ok()
}

fn kids(kids: &[Kid]) -> String {
    if kids.is_empty() { "none".to_owned() } else { list(kids.iter().copied()) }
}

/// Kids in a sentence.
pub(super) fn list(kids: impl IntoIterator<Item = Kid>) -> String {
    kids.into_iter().map(|kid| kid.to_string()).collect::<Vec<_>>().join(", ")
}
