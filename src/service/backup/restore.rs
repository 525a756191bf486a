//! Keys brought back from their copies into the key files, in the command's own process, with its caller's credentials, beside a daemon or
//! without one.
//!
//! Everything is fetched and judged before the key files' lock is taken; what lies on the disk is looked at again under it. A copy that
//! is not the right key touches no file. New copies lie in `secrets.key.d`, durable, before anything in the key file's place moves.
//!
//! A wrapped file is a key that is here only where it opens: one whose KMS key is gone is what a restore is for. And a wrapped copy that does
//! not open takes nothing's place: it may be anybody's.

use std::io::Read;
use std::num::NonZeroU64;
use std::path::PathBuf;

use crate::backup::{BackupError, KeyCopy, Opens};
use crate::clock::Clock;
use crate::crypto::{Content, ImageError};
use crate::keys::identity::AgeIdentity;
use crate::keys::keyfile::{KeyFile, KeyFiles, KeyLock, KeyfileError, MainFile, Scan};
use crate::keys::provider::{NotOpened, Provider};
use crate::model::{EscrowRecord, Kid, MasterKeyRecord, MasterKeyState};
use crate::service::kms;
use crate::store::{Store, StoreError};

use super::fetch::{self, FetchError, Fetched, FetchedKey, Opener, PassedOver};
use super::verify::{self, VerifyError};
use super::{Class, Destinations, kids};

/// What the key files are held against.
pub enum Against<'a> {
    Database(&'a dyn Store),
    /// There is none to ask: a number, a kid or a copy must be given.
    Nothing,
}

/// Where keys are brought back to and from, and what opens the wrapped ones.
pub struct Tools<'a> {
    pub files: &'a KeyFiles,
    pub destinations: &'a Destinations,
    pub provider: &'a Provider,
    pub clock: &'a dyn Clock,
}

/// What is to be brought back.
pub enum Wanted {
    /// Every key that the database needs and that is not here.
    Needed,
    Kid(Kid),
    /// The version of this number, of the one secret that there is.
    Version(NonZeroU64),
    Copy(FromCopy),
}

/// A copy that was read, and where it came from.
pub struct FromCopy {
    copy: KeyCopy,
    from: String,
}

/// What was done.
#[derive(Debug)]
pub struct Restored {
    pub keys: Vec<RestoredKey>,
    /// Where what lay in the key file's place is now.
    pub replaced: Option<PathBuf>,
    /// Where wrapped files are now that lay among the retained ones and had another form.
    pub replaced_retained: Vec<PathBuf>,
    /// Secrets that could not be searched, where others had everything.
    pub passed_over: Vec<PassedOver>,
    /// What was wanted and not found anywhere; what was found is in its place all the same.
    pub unfound: Option<FetchError>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoredKey {
    pub kid: Kid,
    /// What the database calls it; absent where there was none to ask.
    pub state: Option<MasterKeyState>,
    /// The copy; absent for a key that lay among the retained ones.
    pub from: Option<String>,
    pub path: PathBuf,
    /// Why it did not open, where it is wrapped and nothing of this key lay here: it was put back as its copy is.
    pub unopened: Option<String>,
}

/// Why keys were not brought back.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error("there is no database to say which key is needed")]
    NothingToGoBy,
    #[error("the database has never held a key, so no copy belongs to it")]
    NoKey,
    #[error("{count} secrets are configured, and a version's number means another one in each")]
    WhichSecret { count: usize },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Backup(#[from] BackupError),
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("{from} holds master key {found}, which this database {what}; it needs {}. No file was touched", kids(.needed))]
    NotWanted { from: String, found: Kid, what: &'static str, needed: Vec<Kid> },
    #[error(transparent)]
    Copy(VerifyError),
    #[error("{from} is not a master key: {damage}. No file was touched")]
    NoKeyInCopy { from: String, damage: ImageError },
    #[error("{} does not open ({why}), and no copy was found that does: {cause}", .path.display())]
    Closed { path: PathBuf, why: NotOpened, cause: Box<FetchError> },
    #[error(
        "{from} says that it is a wrapped master key that lies in {} already, and it does not open: {why}. What does not open takes \
         nothing's place, and no file was touched", .path.display()
    )]
    Unproven { from: String, path: PathBuf, why: NotOpened },
    #[error(transparent)]
    KeyFile(KeyfileError),
    /// No key is in the key file's place, and what lay there is told of.
    #[error(transparent)]
    NotPutBack(KeyfileError),
}

impl From<KeyfileError> for RestoreError {
    fn from(error: KeyfileError) -> Self {
        match error {
            KeyfileError::NotPutBack { .. } => Self::NotPutBack(error),
            _ => Self::KeyFile(error),
        }
    }
}

impl RestoreError {
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::NothingToGoBy | Self::WhichSecret { .. } => Class::Invalid,
            Self::NoKey => Class::NotFound,
            Self::Store(_) => Class::Unavailable,
            Self::Backup(error) => error.kind().into(),
            Self::Fetch(error) => error.class(),
            Self::NotWanted { .. } | Self::KeyFile(KeyfileError::LockHeld { .. }) => Class::Conflict,
            Self::Copy(error) => error.class(),
            Self::Closed { why, .. } | Self::Unproven { why, .. } => kms::class(why.trouble()),
            Self::NoKeyInCopy { .. } | Self::KeyFile(_) | Self::NotPutBack(_) => Class::Failed,
        }
    }
}

/// Reads a copy of whatever form from a file or a pipe.
///
/// # Errors
/// [`RestoreError::Copy`].
pub async fn read_copy(
    copy: &mut (impl Read + Send),
    identity: Option<&AgeIdentity>,
    from: String,
) -> Result<FromCopy, RestoreError> {
    let read = verify::read(copy, identity).await.map_err(RestoreError::Copy)?;
    Ok(FromCopy { copy: read.copy, from })
}

/// Brings keys back.
///
/// # Errors
/// [`RestoreError`]: no file was touched, but where it says so of key files.
pub async fn restore(against: Against<'_>, tools: &Tools<'_>, wanted: Wanted) -> Result<Restored, RestoreError> {
    let (plan, escrows) = match against {
        Against::Database(store) => {
            let survey = store.survey().await?;
            let active = survey.key_state.as_ref().ok_or(RestoreError::NoKey)?.active_kid;
            let plan = Plan { active, needed: survey.needed(), known: survey.master_keys };
            (Some(plan), store.escrows().await?)
        }
        Against::Nothing => (None, Vec::new()),
    };
    let (opener, scan) = (Opener::new(tools.provider), tools.files.scan());
    let asked = match &wanted {
        Wanted::Needed => plan.as_ref().map(|plan| plan.needed.clone()).unwrap_or_default(),
        Wanted::Kid(kid) => vec![*kid],
        Wanted::Version(_) | Wanted::Copy(_) => Vec::new(),
    };
    let here = Here::of(&scan, &asked, &opener).await;
    let found = fetch(plan.as_ref(), &here, tools.destinations, &opener, wanted).await;
    let found = match (found, here.closed.into_iter().next()) {
        (Ok(found), closed) => found.with_unopened(&scan, &escrows).map_err(|cause| match closed {
            Some((path, why)) => RestoreError::Closed { path, why, cause: Box::new(cause) },
            None => cause.into(),
        })?,
        (Err(RestoreError::Fetch(cause)), Some((path, why))) => {
            return Err(RestoreError::Closed { path, why, cause: Box::new(cause) });
        }
        (Err(error), _) => return Err(error),
    };
    for key in &found.keys {
        if let Some(why) = &key.unopened
            && let Some(file) = scan.files().find(|file| file.kid == key.kid)
        {
            let (from, path, why) = (key.from.clone(), file.path.clone(), why.clone());
            return Err(RestoreError::Unproven { from, path, why });
        }
    }
    let installer = Installer { files: tools.files, clock: tools.clock, plan: plan.as_ref() };
    let Installed { keys, replaced, replaced_retained } = installer.install(&found.keys)?;
    Ok(Restored { keys, replaced, replaced_retained, passed_over: found.passed_over, unfound: found.unfound })
}

/// How the keys that are asked for lie here: each by the one file of it that a daemon opens. Another one does not stand in for it.
#[derive(Default)]
struct Here {
    raw: Vec<Kid>,
    /// Wrapped, and opened.
    wrapped: Vec<Kid>,
    closed: Vec<(PathBuf, NotOpened)>,
}

impl Here {
    async fn of(scan: &Scan, asked: &[Kid], opener: &Opener<'_>) -> Self {
        let mut here = Self::default();
        for file in scan.first_of_each().filter(|file| asked.contains(&file.kid)) {
            match file.wrapped() {
                None => here.raw.push(file.kid),
                Some(wrapped) => match opener.opens(wrapped).await {
                    Ok(()) => here.wrapped.push(file.kid),
                    Err(why) => here.closed.push((file.path.clone(), why)),
                },
            }
        }
        here
    }
}

impl Fetched {
    /// Where nothing of a missing key lies here, a copy that does not open is better than none: the one that is known to have been
    /// pushed, else the newest.
    fn with_unopened(mut self, scan: &Scan, escrows: &[EscrowRecord]) -> Result<Self, FetchError> {
        let is_here = |kid: Kid| scan.files().any(|file| file.kid == kid);
        let is_known = |key: &FetchedKey| {
            escrows.iter().any(|escrow| {
                escrow.kid == key.kid && escrow.confirmed_at.is_some() && escrow.content_sha256 == Some(key.sha256)
            })
        };
        let mut unopened = std::mem::take(&mut self.unopened);
        unopened.retain(|key| !is_here(key.kid));
        // Stable: among equals the newest stays first.
        unopened.sort_by_key(|key| !is_known(key));
        for key in unopened {
            if !self.keys.iter().any(|chosen| chosen.kid == key.kid) {
                self.keys.push(key);
            }
        }
        let keys = &self.keys;
        self.unfound = self.unfound.and_then(|unfound| unfound.without(|kid| keys.iter().any(|key| key.kid == kid)));
        match self.unfound.take() {
            Some(unfound) if self.keys.is_empty() => Err(unfound),
            unfound => Ok(Self { unfound, ..self }),
        }
    }
}

/// What the database says.
struct Plan {
    active: Kid,
    needed: Vec<Kid>,
    known: Vec<MasterKeyRecord>,
}

impl Plan {
    fn state(&self, kid: Kid) -> Option<MasterKeyState> {
        self.known.iter().find(|key| key.kid == kid).map(|key| key.state)
    }

    /// Whether the database may still open something with it.
    fn check(&self, from: &str, kid: Kid) -> Result<(), RestoreError> {
        let what = match self.state(kid) {
            None => "has never had",
            Some(MasterKeyState::Aborted) => "gave up before it was used",
            Some(MasterKeyState::Destroyed) => "has destroyed for good",
            Some(_) => return Ok(()),
        };
        Err(RestoreError::NotWanted { from: from.to_owned(), found: kid, what, needed: self.needed.clone() })
    }

    fn keeps(&self, kid: Kid) -> bool {
        self.check("", kid).is_ok()
    }
}

async fn fetch(
    plan: Option<&Plan>,
    here: &Here,
    destinations: &Destinations,
    opener: &Opener<'_>,
    wanted: Wanted,
) -> Result<Fetched, RestoreError> {
    let check = |key: &FetchedKey| plan.map_or(Ok(()), |plan| plan.check(&key.from, key.kid));
    let one = |key: FetchedKey| check(&key).map(|()| Fetched { keys: vec![key], ..Fetched::default() });
    match wanted {
        Wanted::Needed => {
            let plan = plan.ok_or(RestoreError::NothingToGoBy)?;
            let is_here = |kid: &&Kid| here.raw.contains(kid) || here.wrapped.contains(kid);
            let missing = plan.needed.iter().filter(|kid| !is_here(kid)).copied().collect();
            Ok(fetch::search(destinations, missing, opener).await?)
        }
        Wanted::Kid(kid) => {
            if let Some(plan) = plan {
                plan.check("what was asked for", kid)?;
            }
            // A copy from before it was wrapped would take its root away.
            if here.wrapped.contains(&kid) {
                return Ok(Fetched::default());
            }
            Ok(fetch::search(destinations, vec![kid], opener).await?)
        }
        Wanted::Version(number) => {
            let secret = match destinations.secrets() {
                [] => return Err(FetchError::NotConfigured.into()),
                [secret] => secret,
                several => return Err(RestoreError::WhichSecret { count: several.len() }),
            };
            let fetched = destinations.target(secret)?.fetch(number).await?;
            one(FetchedKey::of(fetched.copy, fetched.locator, opener).await?)
        }
        Wanted::Copy(FromCopy { copy, from }) => match FetchedKey::of(copy, from, opener).await {
            Ok(key) => one(key),
            Err(FetchError::Image { from, damage }) => Err(RestoreError::NoKeyInCopy { from, damage }),
            Err(error) => Err(error.into()),
        },
    }
}

/// Puts what was found into the key files.
struct Installer<'a> {
    files: &'a KeyFiles,
    clock: &'a dyn Clock,
    plan: Option<&'a Plan>,
}

#[derive(Default)]
struct Installed {
    keys: Vec<RestoredKey>,
    replaced: Option<PathBuf>,
    replaced_retained: Vec<PathBuf>,
}

impl Installer<'_> {
    fn install(&self, keys: &[FetchedKey]) -> Result<Installed, RestoreError> {
        let lock = self.files.lock()?;
        let mut done = Installed::default();
        for key in keys {
            done.replaced_retained.extend(lock.stage_over(&key.image, self.clock.wall())?);
            done.keys.push(RestoredKey {
                kid: key.kid,
                state: self.state(key.kid),
                from: Some(key.from.clone()),
                path: self.files.retained_path(key.kid),
                unopened: key.unopened.as_ref().map(ToString::to_string),
            });
        }
        let in_use = match self.plan {
            Some(plan) => Some(plan.active),
            None => keys.first().map(|key| key.kid),
        };
        let scan = self.files.scan();
        let Some(kid) = in_use.filter(|kid| scan.files().any(|file| file.kid == *kid)) else { return Ok(done) };
        let found = keys.iter().find(|key| key.kid == kid);
        let changed = match &scan.main {
            MainFile::Key(main) if main.kid == kid && !found.is_some_and(|found| takes_place_of(found, main)) => false,
            MainFile::Missing => {
                promote(&lock, kid, found)?;
                true
            }
            MainFile::Key(main) => {
                // Another key of this database that lies nowhere else would be gone from where keys are looked for. Where no database can
                // say whose key it is, it may be the active one.
                if main.kid != kid && self.plan.is_none_or(|plan| plan.keeps(main.kid)) {
                    lock.keep_main()?;
                }
                done.replaced = self.replace(&lock, kid, found)?;
                true
            }
            MainFile::Bad(_) => {
                done.replaced = self.replace(&lock, kid, found)?;
                true
            }
        };
        match done.keys.iter_mut().find(|key| key.kid == kid) {
            Some(key) => key.path = self.files.path(),
            // It lay among the retained ones, and is the key in use again.
            None if changed => done.keys.push(RestoredKey {
                kid,
                state: self.state(kid),
                from: None,
                path: self.files.path(),
                unopened: None,
            }),
            None => {}
        }
        Ok(done)
    }

    fn state(&self, kid: Kid) -> Option<MasterKeyState> {
        self.plan.and_then(|plan| plan.state(kid))
    }

    fn replace(&self, lock: &KeyLock, kid: Kid, found: Option<&FetchedKey>) -> Result<Option<PathBuf>, KeyfileError> {
        let aside = lock.set_aside(self.clock.wall())?;
        match promote(lock, kid, found) {
            Ok(()) => Ok(aside),
            Err(error) => Err(match &aside {
                Some(aside) => lock.put_back(aside, error),
                None => error,
            }),
        }
    }
}

/// What was found is what becomes the key file, also where another form of the key lies among the retained ones.
fn promote(lock: &KeyLock, kid: Kid, found: Option<&FetchedKey>) -> Result<(), KeyfileError> {
    match found {
        Some(found) => lock.promote_image(&found.image),
        None => lock.promote(kid),
    }
}

/// Of a raw key file every copy is one; a wrapped one makes room for another form of its key.
fn takes_place_of(found: &FetchedKey, main: &KeyFile) -> bool {
    let Some(wrapped) = main.wrapped() else { return false };
    match found.image.content() {
        Ok(Content::Raw(_)) => true,
        Ok(Content::Wrapped(found)) => found != *wrapped,
        Err(_) => false,
    }
}
