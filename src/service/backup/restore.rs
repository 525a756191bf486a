//! Keys brought back from their copies into the key files, in the command's own process, with its caller's credentials, beside a daemon or
//! without one.
//!
//! Everything is fetched and judged before the key files' lock is taken; what lies on the disk is looked at again under it. A copy that
//! is not the right key touches no file. New copies lie in `secrets.key.d`, durable, before anything in the key file's place moves.

use std::collections::BTreeSet;
use std::io::Read;
use std::num::NonZeroU64;
use std::path::PathBuf;

use crate::backup::{BackupError, KeyCopy};
use crate::clock::Clock;
use crate::crypto::ImageError;
use crate::keys::keyfile::{KeyFiles, KeyLock, KeyfileError, MainFile};
use crate::model::{Kid, MasterKeyRecord, MasterKeyState};
use crate::store::{Store, StoreError};

use super::fetch::{self, FetchError, Fetched, FetchedKey, PassedOver};
use super::verify::{self, VerifyError};
use super::{Class, Destinations, kids};

/// What the key files are held against.
pub enum Against<'a> {
    Database(&'a dyn Store),
    /// There is none to ask: a number, a kid or a copy must be given.
    Nothing,
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
            Self::NoKeyInCopy { .. } | Self::KeyFile(_) | Self::NotPutBack(_) => Class::Failed,
        }
    }
}

/// Reads a copy of whatever form from a file or a pipe.
///
/// # Errors
/// [`RestoreError::Copy`].
pub fn read_copy(
    copy: &mut (impl Read + Send),
    identities: Option<&mut (dyn Read + Send)>,
    from: String,
) -> Result<FromCopy, RestoreError> {
    let read = verify::read(copy, identities).map_err(RestoreError::Copy)?;
    Ok(FromCopy { copy: read.copy, from })
}

/// Brings keys back.
///
/// # Errors
/// [`RestoreError`]: no file was touched, but where it says so of key files.
pub async fn restore(
    against: Against<'_>,
    files: &KeyFiles,
    destinations: &Destinations,
    clock: &dyn Clock,
    wanted: Wanted,
) -> Result<Restored, RestoreError> {
    let plan = match against {
        Against::Database(store) => {
            let survey = store.survey().await?;
            let active = survey.key_state.as_ref().ok_or(RestoreError::NoKey)?.active_kid;
            Some(Plan { active, needed: survey.needed(), known: survey.master_keys })
        }
        Against::Nothing => None,
    };
    let here = files.scan().kids();
    let Fetched { keys, passed_over, unfound } = fetch(plan.as_ref(), &here, destinations, wanted).await?;
    if keys.is_empty()
        && let Some(unfound) = unfound
    {
        return Err(unfound.into());
    }
    let (keys, replaced) = install(files, clock, plan.as_ref(), &keys)?;
    Ok(Restored { keys, replaced, passed_over, unfound })
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
    here: &BTreeSet<Kid>,
    destinations: &Destinations,
    wanted: Wanted,
) -> Result<Fetched, RestoreError> {
    let check = |key: &FetchedKey| plan.map_or(Ok(()), |plan| plan.check(&key.from, key.kid));
    let one =
        |key: FetchedKey| check(&key).map(|()| Fetched { keys: vec![key], passed_over: Vec::new(), unfound: None });
    match wanted {
        Wanted::Needed => {
            let plan = plan.ok_or(RestoreError::NothingToGoBy)?;
            let missing = plan.needed.iter().filter(|kid| !here.contains(kid)).copied().collect();
            Ok(fetch::search(destinations, missing).await?)
        }
        Wanted::Kid(kid) => {
            if let Some(plan) = plan {
                plan.check("what was asked for", kid)?;
            }
            Ok(fetch::search(destinations, vec![kid]).await?)
        }
        Wanted::Version(number) => {
            let secret = match destinations.secrets() {
                [] => return Err(FetchError::NotConfigured.into()),
                [secret] => secret,
                several => return Err(RestoreError::WhichSecret { count: several.len() }),
            };
            let fetched = destinations.target(secret)?.fetch(number).await?;
            one(FetchedKey::of(fetched.copy, fetched.locator)?)
        }
        Wanted::Copy(FromCopy { copy, from }) => match FetchedKey::of(copy, from) {
            Ok(key) => one(key),
            Err(FetchError::Image { from, damage }) => Err(RestoreError::NoKeyInCopy { from, damage }),
            Err(error) => Err(error.into()),
        },
    }
}

fn install(
    files: &KeyFiles,
    clock: &dyn Clock,
    plan: Option<&Plan>,
    keys: &[FetchedKey],
) -> Result<(Vec<RestoredKey>, Option<PathBuf>), RestoreError> {
    let lock = files.lock()?;
    let mut restored = Vec::with_capacity(keys.len());
    for key in keys {
        lock.stage_image(&key.image)?;
        restored.push(RestoredKey {
            kid: key.kid,
            state: plan.and_then(|plan| plan.state(key.kid)),
            from: Some(key.from.clone()),
            path: files.retained_path(key.kid),
        });
    }
    let in_use = match plan {
        Some(plan) => Some(plan.active),
        None => keys.first().map(|key| key.kid),
    };
    let scan = files.scan();
    let Some(kid) = in_use.filter(|kid| scan.kids().contains(kid)) else { return Ok((restored, None)) };
    let replaced = match &scan.main {
        MainFile::Key(main) if main.kid == kid => None,
        MainFile::Missing => {
            lock.promote(kid)?;
            None
        }
        MainFile::Key(main) => {
            // Another key of this database that lies nowhere else would be gone from where keys are looked for. Where no database can say
            // whose key it is, it may be the active one.
            if plan.is_none_or(|plan| plan.keeps(main.kid)) {
                lock.keep_main()?;
            }
            replace(&lock, clock, kid)?
        }
        MainFile::Bad(_) => replace(&lock, clock, kid)?,
    };
    match restored.iter_mut().find(|key| key.kid == kid) {
        Some(key) => key.path = files.path(),
        // It lay among the retained ones, and is the key in use again.
        None if !matches!(&scan.main, MainFile::Key(main) if main.kid == kid) => restored.push(RestoredKey {
            kid,
            state: plan.and_then(|plan| plan.state(kid)),
            from: None,
            path: files.path(),
        }),
        None => {}
    }
    Ok((restored, replaced))
}

fn replace(lock: &KeyLock, clock: &dyn Clock, kid: Kid) -> Result<Option<PathBuf>, KeyfileError> {
    let aside = lock.set_aside(clock.wall())?;
    match lock.promote(kid) {
        Ok(()) => Ok(aside),
        Err(error) => Err(match &aside {
            Some(aside) => lock.put_back(aside, error),
            None => error,
        }),
    }
}
