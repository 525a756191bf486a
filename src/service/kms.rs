//! Key files wrapped, unwrapped and wrapped anew, in the command's own process, with its caller's credentials, beside a daemon or without
//! one.
//!
//! KMS is called before the key files' lock is taken, never under it; what was read is compared again under it. Each new form is proven to
//! open before it takes the place of the old one. The key stays the same, so a daemon that runs has nothing to do but to know the file.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use super::backup::{Class, is_raw_escrowed};
use crate::backup::age::{AgeError, Recipient};
use crate::clock::Clock;
use crate::crypto::{Content, ImageError, KeyfileImage, MasterKey, NoRandom};
use crate::keys::keyfile::{FoundImage, KeyFiles, KeyfileError};
use crate::keys::provider::{Attempt, NotOpened, NotWrapped, Opened, OpenedBy, Provider, Trouble};
use crate::model::{EscrowRecord, KeyPhase, Kid, KmsKey, Micros, WrappedMaster, Wrapping};
use crate::store::{Store, StoreError};

/// What a change of form works on.
pub struct Bench<'a> {
    /// Absent where there is no database.
    pub store: Option<&'a dyn Store>,
    pub files: &'a KeyFiles,
    pub provider: &'a Provider,
    pub clock: &'a dyn Clock,
}

/// What is to become of the key files.
pub enum Form {
    /// Those that are raw are wrapped.
    Wrapped { keys: Vec<KmsKey>, recipients: Vec<String>, only_way: OnlyWay },
    /// Those that are wrapped are wrapped anew: for what is given, else for what they are wrapped for already.
    Rewrapped { keys: Vec<KmsKey>, recipients: Vec<String>, only_way: OnlyWay },
    /// All are raw.
    Raw,
}

/// Whether the operator said `--kms-is-the-only-way-back`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnlyWay {
    Refused,
    Accepted,
}

impl OnlyWay {
    /// Of a command line or a request.
    #[must_use]
    pub const fn of_flag(accepted: bool) -> Self {
        if accepted { Self::Accepted } else { Self::Refused }
    }
}

/// What was done.
#[derive(Debug, Default)]
pub struct Changed {
    /// In the order in which they were exchanged.
    pub files: Vec<ChangedFile>,
    /// Keys that nothing but one KMS key opens, which the operator accepted.
    pub only_kms: Vec<Kid>,
    /// Earlier raw copies on this host, which wrapping does not protect.
    pub raw_copies: Vec<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangedFile {
    pub path: PathBuf,
    pub kid: Kid,
}

/// Why no file was changed, or not every one.
#[derive(Debug, thiserror::Error)]
pub enum KmsWorkError {
    #[error("nothing was named to wrap the key with")]
    NoRecipients,
    #[error("recipient {number}: {cause}")]
    Recipient { number: usize, cause: AgeError },
    #[error("there is no key file at {}", .0.display())]
    NoKeyFile(PathBuf),
    #[error("every key file is {0} already")]
    Already(&'static str),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("a rotation of the master key is under way (phase {0}); key files stay as they are until it is over")]
    Rotating(KeyPhase),
    #[error("{} came while this was prepared, by a rotation or an operator; no file was changed", .0.display())]
    NewFile(PathBuf),
    #[error(transparent)]
    KeyFile(#[from] KeyfileError),
    #[error("{}: {cause}", .path.display())]
    NotOpened { path: PathBuf, cause: NotOpened },
    #[error("the age identity that was given opens nothing of what was just wrapped: {0}")]
    NotProven(NotOpened),
    #[error(transparent)]
    NoRandom(#[from] NoRandom),
    #[error(transparent)]
    NotWrapped(#[from] NotWrapped),
    /// A file that only an unproven identity opens would be no key file.
    #[error(
        "no KMS key is to open it, and whether an age identity does is not proven: give --age-identity FILE, with an identity of a recipient"
    )]
    Unproven,
    #[error(
        "master key {} could then be opened with one KMS key and nothing else: when that key is destroyed, or its project lost, the key \
         file and every copy of it are worthless, and every secret is lost", kids(.0)
    )]
    OnlyKms(Vec<Kid>),
}

impl KmsWorkError {
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::NoRecipients | Self::Recipient { .. } | Self::Unproven => Class::Invalid,
            Self::NoKeyFile(_) => Class::NotFound,
            Self::Store(_) | Self::NoRandom(_) => Class::Unavailable,
            Self::Already(_)
            | Self::Rotating(_)
            | Self::NewFile(_)
            | Self::OnlyKms(_)
            | Self::KeyFile(KeyfileError::LockHeld { .. } | KeyfileError::MainChanged { .. }) => Class::Conflict,
            Self::KeyFile(_) => Class::Failed,
            Self::NotOpened { cause, .. } | Self::NotProven(cause) => class(cause.trouble()),
            Self::NotWrapped(error) => class(error.trouble()),
        }
    }
}

pub(super) const fn class(trouble: Trouble) -> Class {
    match trouble {
        Trouble::Invalid => Class::Invalid,
        Trouble::Denied => Class::Denied,
        Trouble::NotFound => Class::NotFound,
        Trouble::Unavailable => Class::Unavailable,
        Trouble::Failed => Class::Failed,
    }
}

fn kids(kids: &[Kid]) -> String {
    kids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// A file that is to be exchanged, and for what.
struct Exchange {
    before: FoundImage,
    after: Arc<KeyfileImage>,
}

impl Bench<'_> {
    /// Gives every key file its new form.
    ///
    /// # Errors
    /// [`KmsWorkError`]. Where it is one of a file in the middle, those before it have their new form and all the others the old one, and
    /// the same command again completes it.
    pub async fn change(&self, form: Form) -> Result<Changed, KmsWorkError> {
        let form = Asked::of(form)?;
        self.check_idle().await?;
        let found = self.files.images()?;
        if found.is_empty() {
            return Err(KmsWorkError::NoKeyFile(self.files.path()));
        }
        let before: Vec<PathBuf> = found.iter().map(|file| file.path.clone()).collect();
        let escrows = match self.store {
            Some(store) => store.escrows().await?,
            None => Vec::new(),
        };
        let (mut exchanges, mut changed) = (Vec::<Exchange>::new(), Changed::default());
        for before in found {
            let content = before.image.content().map_err(|damage| damaged(&before, damage))?;
            // A key that lies in two files has the same bytes in both: one ciphertext to keep, to copy and to prove.
            let same = exchanges.iter().find(|made| made.before.kid == before.kid && form.concerns(&content));
            let after = match same.map(|made| Arc::clone(&made.after)) {
                Some(after) => Some(after),
                None => self.made(&form, &before, content, &escrows, &mut changed.only_kms).await?.map(Arc::new),
            };
            exchanges.extend(after.map(|after| Exchange { before, after }));
        }
        if exchanges.is_empty() {
            return Err(KmsWorkError::Already(if matches!(form, Asked::Wrapped { .. }) { "wrapped" } else { "raw" }));
        }
        changed.only_kms.sort_unstable();
        changed.only_kms.dedup();
        if form.only_way() == OnlyWay::Refused && !changed.only_kms.is_empty() {
            return Err(KmsWorkError::OnlyKms(changed.only_kms));
        }
        let lock = self.files.lock()?;
        // A rotation that began meanwhile stages its key's file under this lock, and looks under it whether the key file is wrapped: either
        // that file is seen here, or the rotation comes after us.
        self.check_idle().await?;
        if let Some(new) = self.files.images()?.into_iter().find(|file| !before.contains(&file.path)) {
            return Err(KmsWorkError::NewFile(new.path));
        }
        for Exchange { before, after } in exchanges {
            lock.exchange(&before, &after)?;
            changed.files.push(ChangedFile { path: before.path, kid: before.kid });
        }
        drop(lock);
        if !matches!(form, Asked::Raw) {
            changed.raw_copies = self.files.raw_copies()?;
        }
        Ok(changed)
    }

    async fn check_idle(&self) -> Result<(), KmsWorkError> {
        let Some(store) = self.store else { return Ok(()) };
        match store.survey().await?.key_state {
            Some(state) if state.phase != KeyPhase::Idle => Err(KmsWorkError::Rotating(state.phase)),
            _ => Ok(()),
        }
    }

    /// The new form of a file; `None` where it has it already.
    async fn made(
        &self,
        form: &Asked,
        before: &FoundImage,
        content: Content,
        escrows: &[EscrowRecord],
        only_kms: &mut Vec<Kid>,
    ) -> Result<Option<KeyfileImage>, KmsWorkError> {
        let (master, keys, recipients) = match (form, content) {
            (Asked::Wrapped { .. }, Content::Wrapped(_)) | (Asked::Raw | Asked::Rewrapped { .. }, Content::Raw(_)) => {
                return Ok(None);
            }
            (Asked::Raw, Content::Wrapped(wrapped)) => {
                let master = self.open(before, &wrapped).await?;
                return Ok(Some(KeyfileImage::of(&master)));
            }
            (Asked::Wrapped { keys, recipients, .. }, Content::Raw(master)) => {
                (master, keys.clone(), recipients.clone())
            }
            (Asked::Rewrapped { keys, recipients, .. }, Content::Wrapped(wrapped)) => {
                let keys =
                    if keys.is_empty() { wrapped.kms_keys().into_iter().cloned().collect() } else { keys.clone() };
                let recipients = if recipients.is_empty() { its_recipients(&wrapped)? } else { recipients.clone() };
                (self.open(before, &wrapped).await?, keys, recipients)
            }
        };
        let wrapped = wrap(self.provider, self.clock, &master, &keys, &recipients).await?;
        let raw_sha256 = Some(KeyfileImage::of(&master).sha256());
        if !wrapped.has_another_way() && !is_raw_escrowed(escrows, before.kid, raw_sha256, self.clock.wall()) {
            only_kms.push(before.kid);
        }
        Ok(Some(KeyfileImage::of_wrapped(&wrapped)))
    }

    async fn open(&self, file: &FoundImage, wrapped: &WrappedMaster) -> Result<MasterKey, KmsWorkError> {
        match self.provider.open(wrapped).await {
            Ok(opened) => Ok(opened.master),
            Err(cause) => Err(KmsWorkError::NotOpened { path: file.path.clone(), cause }),
        }
    }

    /// How each key file is kept, and whether it opens: one decryption for each KMS key of a wrapped file.
    ///
    /// # Errors
    /// [`KmsWorkError`] `KeyFile`, `NoKeyFile`, `Store`.
    pub async fn status(&self) -> Result<Vec<FileStatus>, KmsWorkError> {
        let escrows = match self.store {
            Some(store) => store.escrows().await?,
            None => Vec::new(),
        };
        let mut files = Vec::new();
        for found in self.files.images()? {
            let content = found.image.content().map_err(|damage| damaged(&found, damage))?;
            let (kept, only_kms) = match content {
                Content::Raw(_) => (Kept::Raw, false),
                Content::Wrapped(wrapped) => {
                    let has_another_way = wrapped.has_another_way();
                    let (recipients, raw_sha256) = self.looked_at(wrapped).await;
                    let is_escrowed = is_raw_escrowed(&escrows, found.kid, raw_sha256, self.clock.wall());
                    (Kept::Wrapped(recipients), !has_another_way && !is_escrowed)
                }
            };
            files.push(FileStatus { path: found.path, kid: found.kid, kept, only_kms });
        }
        if files.is_empty() {
            return Err(KmsWorkError::NoKeyFile(self.files.path()));
        }
        files.reverse();
        Ok(files)
    }

    /// The versions of KMS keys that copies off this host need, as far as they are recorded: those that the daemon pushed. Absent where there
    /// is no database to ask.
    ///
    /// # Errors
    /// [`KmsWorkError::Store`].
    pub async fn needed_versions(&self) -> Result<Option<Vec<NeededVersion>>, KmsWorkError> {
        let Some(store) = self.store else { return Ok(None) };
        let mut needed: Vec<NeededVersion> = Vec::new();
        let is_copy = |escrow: &&EscrowRecord| escrow.may_be_needed();
        for escrow in store.escrows().await?.iter().filter(is_copy) {
            for name in &escrow.kms_versions {
                match needed.iter_mut().find(|needed| needed.name == *name && needed.kid == escrow.kid) {
                    Some(known) => known.copies += 1,
                    None => needed.push(NeededVersion { name: name.clone(), kid: escrow.kid, copies: 1 }),
                }
            }
        }
        needed.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(Some(needed))
    }

    /// Its recipients, and of the key itself, where one opened it, the sum that a raw copy is known by.
    async fn looked_at(&self, wrapped: WrappedMaster) -> (Vec<RecipientStatus>, Option<[u8; 32]>) {
        let mut raw_sha256 = None;
        let mut recipients = Vec::with_capacity(wrapped.recipients.len());
        for wrapping in &wrapped.recipients {
            recipients.push(match wrapping {
                Wrapping::Age { recipient, proven_at, .. } => RecipientStatus {
                    name: recipient.clone(),
                    key_version: None,
                    used_primary: None,
                    proven_at: *proven_at,
                    opens: self
                        .provider
                        .open_with_age(&wrapped.alone(wrapping))
                        .await
                        .map(|opened| opened.map(drop).map_err(|why| why.to_string())),
                },
                Wrapping::GcpKms { key, key_version, .. } => {
                    let opened = self.provider.open_by_each_kms(&wrapped.alone(wrapping)).await;
                    let used_primary = match opened.as_deref() {
                        Ok([Opened { by: OpenedBy::Kms { used_primary, .. }, master }]) => {
                            raw_sha256 = Some(KeyfileImage::of(master).sha256());
                            Some(*used_primary)
                        }
                        _ => None,
                    };
                    let opens = Some(opened.map(drop).map_err(|why| list(&why.attempts)));
                    RecipientStatus {
                        name: key.to_string(),
                        key_version: Some(key_version.clone()),
                        used_primary,
                        proven_at: None,
                        opens,
                    }
                }
            });
        }
        // One identity is not to open every recipient's: one that opens a file is the right one.
        let is_age = |recipient: &RecipientStatus| recipient.key_version.is_none();
        if recipients.iter().any(|recipient| is_age(recipient) && matches!(recipient.opens, Some(Ok(())))) {
            recipients
                .iter_mut()
                .filter(|recipient| is_age(recipient) && matches!(recipient.opens, Some(Err(_))))
                .for_each(|recipient| recipient.opens = None);
        }
        (recipients, raw_sha256)
    }
}

/// A new master key, made here and wrapped for these: what a rotation is given where the key in use is wrapped. The key itself goes no
/// further than this process.
///
/// # Errors
/// [`KmsWorkError`] `NoRandom`, `NoRecipients`, `Recipient`, `NotWrapped`, `NotOpened`, `Unproven`, `OnlyKms`.
pub async fn make_wrapped(
    provider: &Provider,
    clock: &dyn Clock,
    keys: &[KmsKey],
    recipients: &[String],
    only_way: OnlyWay,
) -> Result<WrappedMaster, KmsWorkError> {
    let recipients = parsed(recipients)?;
    let master = MasterKey::make_random()?;
    let wrapped = wrap(provider, clock, &master, keys, &recipients).await?;
    if only_way == OnlyWay::Refused && !wrapped.has_another_way() {
        return Err(KmsWorkError::OnlyKms(vec![wrapped.kid]));
    }
    Ok(wrapped)
}

/// Wraps a key, proves that each KMS key opens it, and notes which recipients of age the configured identity is.
async fn wrap(
    provider: &Provider,
    clock: &dyn Clock,
    master: &MasterKey,
    keys: &[KmsKey],
    recipients: &[Recipient],
) -> Result<WrappedMaster, KmsWorkError> {
    let mut wrapped = provider.wrap(master, keys, recipients).await?;
    let (mut proven, mut failed) = (Vec::new(), Vec::new());
    for recipient in &wrapped.recipients {
        match provider.open_with_age(&wrapped.alone(recipient)).await {
            Some(Ok(_)) => proven.push(recipient.clone()),
            Some(Err(attempt)) => failed.push(attempt),
            None => {}
        }
    }
    // An identity that was given and opens nothing is the wrong one.
    if proven.is_empty() && !failed.is_empty() {
        return Err(KmsWorkError::NotProven(NotOpened { kid: wrapped.kid, attempts: failed }));
    }
    if keys.is_empty() && proven.is_empty() {
        return Err(KmsWorkError::Unproven);
    }
    let now = clock.wall();
    for recipient in &mut wrapped.recipients {
        let is_proven = proven.contains(recipient);
        if let Wrapping::Age { proven_at, .. } = recipient
            && is_proven
        {
            *proven_at = Some(now);
        }
    }
    Ok(wrapped)
}

fn damaged(file: &FoundImage, damage: ImageError) -> KeyfileError {
    KeyfileError::Damaged { path: file.path.clone(), damage }
}

fn list(attempts: &[Attempt]) -> String {
    attempts.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// A key file, as `kms status` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileStatus {
    pub path: PathBuf,
    pub kid: Kid,
    pub kept: Kept,
    /// Whether nothing but one KMS key is known to open it, a copy of the raw key included.
    pub only_kms: bool,
}

/// A version of a KMS key that copies need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NeededVersion {
    /// As Google names it.
    pub name: String,
    /// The master key that the copies hold.
    pub kid: Kid,
    pub copies: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept {
    Raw,
    Wrapped(Vec<RecipientStatus>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecipientStatus {
    /// The KMS key, or `age1…`.
    pub name: String,
    /// Of KMS: the version that wrapped it.
    pub key_version: Option<String>,
    /// Of KMS, where it opened: whether that version is the primary one still.
    pub used_primary: Option<bool>,
    /// Of age: when an identity was seen to open it, as the file has it noted.
    pub proven_at: Option<Micros>,
    /// Whether it opens; absent for age where no identity is configured.
    pub opens: Option<Result<(), String>>,
}

/// What was asked, its recipients read.
enum Asked {
    Wrapped { keys: Vec<KmsKey>, recipients: Vec<Recipient>, only_way: OnlyWay },
    Rewrapped { keys: Vec<KmsKey>, recipients: Vec<Recipient>, only_way: OnlyWay },
    Raw,
}

impl Asked {
    fn of(form: Form) -> Result<Self, KmsWorkError> {
        Ok(match form {
            Form::Wrapped { keys, recipients, .. } if keys.is_empty() && recipients.is_empty() => {
                return Err(KmsWorkError::NoRecipients);
            }
            Form::Wrapped { keys, recipients, only_way } => {
                Self::Wrapped { keys, recipients: parsed(&recipients)?, only_way }
            }
            Form::Rewrapped { keys, recipients, only_way } => {
                Self::Rewrapped { keys, recipients: parsed(&recipients)?, only_way }
            }
            Form::Raw => Self::Raw,
        })
    }

    /// Whether a file that holds this is to be changed.
    const fn concerns(&self, content: &Content) -> bool {
        matches!(
            (self, content),
            (Self::Wrapped { .. }, Content::Raw(_)) | (Self::Raw | Self::Rewrapped { .. }, Content::Wrapped(_))
        )
    }

    const fn only_way(&self) -> OnlyWay {
        match self {
            Self::Wrapped { only_way, .. } | Self::Rewrapped { only_way, .. } => *only_way,
            Self::Raw => OnlyWay::Accepted,
        }
    }
}

fn parsed(recipients: &[String]) -> Result<Vec<Recipient>, KmsWorkError> {
    let parse =
        |(number, text): (usize, &String)| text.parse().map_err(|cause| KmsWorkError::Recipient { number, cause });
    (1..).zip(recipients).map(parse).collect()
}

/// The recipients of age that a file has, for the next one.
fn its_recipients(wrapped: &WrappedMaster) -> Result<Vec<Recipient>, KmsWorkError> {
    parsed(&wrapped.age_recipients().map(str::to_owned).collect::<Vec<_>>())
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Wrapped(_) => "wrapped",
        })
    }
}
