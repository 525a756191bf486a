//! A drill: do the copies of the master keys, and nothing else, open every DEK of a database? In the command's own process, with copies
//! that the operator brings or that are fetched as a restore fetches them, and a store that is open for reading; it looks at no key file
//! of a daemon and changes nothing.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::backup::{BackupError, read_copy};
use crate::clock::{Clock, SystemClock};
use crate::crypto::{self, Content, DekPlace, ImageError, Kek, KeyfileImage, OpenError};
use crate::keys::identity::{AgeIdentity, IdentityError};
use crate::keys::provider::{NotOpened, Provider};
use crate::model::{DekBody, DekRecord, DekState, Kid, MasterKeyRecord, MasterKeyState};
use crate::store::masters::DekCursor;
use crate::store::{Store, StoreError};

use super::backup::fetch::{self, FetchError, Opener, PassedOver};
use super::backup::{self, Destinations, ReadBack, SECRET_MANAGER, kms_versions};

/// DEKs that are read at once.
const PAGE: u32 = 1000;
/// DEKs that are named one by one where they do not open.
const NAMED: usize = 20;

/// The copies of a drill.
pub enum Copies {
    /// Read already.
    Given(DrillKeys),
    /// To be found in these secrets, of every key that the database needs; wrapped ones are opened.
    In(Destinations, Provider),
}

/// What opens DEKs: the keys that came back from copies, and where each was.
pub struct DrillKeys {
    keys: Vec<DrillKey>,
    came: Came,
    /// What was looked at in vain, where copies were looked for.
    in_vain: Option<String>,
    passed_over: Vec<PassedOver>,
}

struct DrillKey {
    from: String,
    kek: Kek,
    read_back: Option<ReadBack>,
}

/// How copies came here.
#[derive(Clone, Copy)]
enum Came {
    Given,
    Fetched,
}

/// How a drill came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drilled {
    pub db_id: [u8; 16],
    pub keys: Vec<TriedKey>,
    /// Keys that DEKs in use need and of which there was no copy, with how many DEKs each.
    pub missing: Vec<(Kid, u64)>,
    /// Secrets that could not be searched, where others had every key.
    pub passed_over: Vec<PassedOver>,
    /// Active and decrypt-only DEKs that opened, and are the ones that their rows name.
    pub opened: u64,
    /// Those that did not, for want of a key too.
    pub failed: u64,
    /// Set aside as damaged; not tried.
    pub quarantined: u64,
    /// Destroyed on purpose; there is nothing to open.
    pub shredded: u64,
    /// What failed, in words; not every DEK, where there are many.
    pub failures: Vec<String>,
    pub took: Duration,
}

/// A key of a drill.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TriedKey {
    pub kid: Kid,
    /// Where its copy was.
    pub from: String,
    /// What the database calls it; absent where it does not know it.
    pub state: Option<MasterKeyState>,
    pub opened: u64,
    /// For a copy that was fetched: it was read back. What lies in a file is a copy off the host because an operator says so with
    /// `backup verify --from`; a drill with the daemon's own key file must not.
    pub read_back: Option<ReadBack>,
}

/// Why there was no drill.
#[derive(Debug, thiserror::Error)]
pub enum DrillError {
    #[error("cannot read {}: {cause}", path.display())]
    File { path: PathBuf, cause: std::io::Error },
    #[error("the age identity {} cannot be used: {cause}", path.display())]
    Identity { path: PathBuf, cause: IdentityError },
    #[error("{}: {cause}", path.display())]
    Copy { path: PathBuf, cause: Box<BackupError> },
    #[error("{} is not a copy of a master key: {cause}", path.display())]
    Image { path: PathBuf, cause: ImageError },
    #[error("{}: {cause}", path.display())]
    Wrapped { path: PathBuf, cause: NotOpened },
    #[error("there was no drill: {0}")]
    Fetch(#[from] FetchError),
    #[error("the database has never held a key, so there is nothing to open")]
    NoKey,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The keys from copies in files of whatever form; age files are opened with the identities in `identity`, which is read once, and wrapped
/// key files by `provider`, with those identities too.
///
/// # Errors
/// [`DrillError`] `File`, `Identity`, `Copy`, `Image`, `Wrapped`.
pub async fn keys_from(
    files: &[PathBuf],
    identity: Option<PathBuf>,
    provider: &Provider,
) -> Result<DrillKeys, DrillError> {
    let identity = match identity {
        Some(path) => {
            Some(AgeIdentity::brought(path.clone()).await.map_err(|cause| DrillError::Identity { path, cause })?)
        }
        None => None,
    };
    let provider = provider.with_identity(identity.as_ref());
    let open = |path: &Path| backup::open(path).map_err(|cause| DrillError::File { path: path.to_owned(), cause });
    let identities = match &identity {
        Some(identity) => {
            let path = identity.path().to_owned();
            Some(identity.identities().await.map_err(|cause| DrillError::Identity { path, cause })?)
        }
        None => None,
    };
    let mut keys = Vec::with_capacity(files.len());
    for path in files {
        let read = read_copy(&mut open(path)?, identities.as_deref()).map_err(|cause| of_copy(path, cause))?;
        let kek = opened(read.copy.image(), path, &provider).await?;
        keys.push(DrillKey { from: path.display().to_string(), kek, read_back: None });
    }
    Ok(DrillKeys { keys, came: Came::Given, in_vain: None, passed_over: Vec::new() })
}

async fn opened(image: &KeyfileImage, path: &Path, provider: &Provider) -> Result<Kek, DrillError> {
    match image.content().map_err(|cause| DrillError::Image { path: path.to_owned(), cause })? {
        Content::Raw(master) => Ok(crypto::derive_kek(&master)),
        Content::Wrapped(wrapped) => {
            let opened = provider.open(&wrapped).await;
            let opened = opened.map_err(|cause| DrillError::Wrapped { path: path.to_owned(), cause })?;
            Ok(crypto::derive_kek(&opened.master))
        }
    }
}

fn of_copy(path: &Path, cause: BackupError) -> DrillError {
    DrillError::Copy { path: path.to_owned(), cause: Box::new(cause) }
}

/// Opens every active and decrypt-only DEK of the database with the keys of these copies.
///
/// # Errors
/// [`DrillError`] `NoKey`, `Store`, `Fetch`. A DEK that does not open is a result, not an error.
pub async fn drill(store: &dyn Store, copies: Copies) -> Result<Drilled, DrillError> {
    match copies {
        Copies::Given(keys) => drill_with(store, &keys).await,
        Copies::In(destinations, provider) => drill_with(store, &fetched(store, &destinations, &provider).await?).await,
    }
}

/// The keys that the database needs, from copies in these secrets. Where no version holds a key the drill says so; but where one may lie
/// in a secret that could not be searched, nothing was learnt of it.
async fn fetched(store: &dyn Store, destinations: &Destinations, provider: &Provider) -> Result<DrillKeys, DrillError> {
    let survey = store.survey().await?;
    if survey.key_state.is_none() {
        return Err(DrillError::NoKey);
    }
    let mut found = fetch::search(destinations, survey.needed(), &Opener::new(provider)).await?;
    // Of a key that no copy opens to it matters more why the newest one does not than that none does.
    if let Some(first) = found.unopened.first_mut()
        && let Some(cause) = first.unopened.take()
    {
        return Err(DrillError::Wrapped { path: PathBuf::from(&first.from), cause });
    }
    let in_vain = match found.unfound {
        None => None,
        Some(error @ FetchError::NotFound { .. }) => Some(error.to_string()),
        Some(error) => return Err(error.into()),
    };
    let mut keys = Vec::with_capacity(found.keys.len());
    for key in found.keys {
        let kek = opened(&key.image, Path::new(&key.from), provider).await?;
        let (target, locator) = (SECRET_MANAGER.to_owned(), Some(key.from.clone()));
        let kms_versions = kms_versions(&key.image);
        let read_back = Some(ReadBack { kid: key.kid, target, locator, sha256: key.sha256, kms_versions });
        keys.push(DrillKey { from: key.from, kek, read_back });
    }
    Ok(DrillKeys { keys, came: Came::Fetched, in_vain, passed_over: found.passed_over })
}

async fn drill_with(store: &dyn Store, keys: &DrillKeys) -> Result<Drilled, DrillError> {
    let clock = SystemClock::new();
    let survey = store.survey().await?;
    let state = survey.key_state.as_ref().ok_or(DrillError::NoKey)?;
    let before = store.counts().await?;
    let mut tally = Tally::new(keys);
    let mut masters: Vec<&MasterKeyRecord> = survey.master_keys.iter().collect();
    // The active key last: a rotation moves DEKs towards it, and one that moves meanwhile is met twice rather than never.
    masters.sort_unstable_by_key(|key| (key.state == MasterKeyState::Active, key.kid));
    for key in masters {
        let mut after: Option<DekCursor> = None;
        loop {
            let page = store.deks_under(key.kid, after.as_ref(), PAGE).await?;
            after = page.last().map(DekCursor::of);
            for dek in &page {
                tally.look(dek);
            }
            if page.len() < PAGE as usize {
                break;
            }
        }
    }
    let counts = store.counts().await?;
    let of = |counts: &crate::model::Counts, state| {
        counts.deks.iter().find(|(of, _)| *of == state).map_or(0, |(_, count)| *count)
    };
    let in_use = |counts| of(counts, DekState::Active) + of(counts, DekState::DecryptOnly);
    tally.unlisted(in_use(&before).min(in_use(&counts)));
    let known = |kid| survey.master_keys.iter().find(|key| key.kid == kid).map(|key| key.state);
    let tried = keys.keys.iter().map(|DrillKey { from, kek, read_back }| TriedKey {
        kid: kek.kid(),
        from: from.clone(),
        state: known(kek.kid()),
        opened: tally.opened_by.get(&kek.kid()).copied().unwrap_or(0),
        read_back: read_back.clone(),
    });
    let mut missing: Vec<(Kid, u64)> = tally.missing.iter().map(|(kid, count)| (*kid, *count)).collect();
    missing.sort_unstable();
    let came = match keys.came {
        Came::Given => "given",
        Came::Fetched => "found",
    };
    let no_copy =
        missing.iter().map(|(kid, count)| format!("no copy of master key {kid} was {came}; it wraps {count} DEKs"));
    Ok(Drilled {
        db_id: state.db_id,
        keys: tried.collect(),
        failures: keys.in_vain.iter().cloned().chain(no_copy).chain(tally.failures).collect(),
        missing,
        passed_over: keys.passed_over.clone(),
        opened: tally.opened_by.values().sum(),
        failed: tally.failed,
        quarantined: of(&counts, DekState::Quarantined),
        shredded: of(&counts, DekState::Shredded),
        took: clock.monotonic(),
    })
}

struct Tally<'a> {
    keks: HashMap<Kid, &'a Kek>,
    opened_by: HashMap<Kid, u64>,
    missing: HashMap<Kid, u64>,
    failed: u64,
    failures: Vec<String>,
}

impl<'a> Tally<'a> {
    fn new(keys: &'a DrillKeys) -> Self {
        Self {
            keks: keys.keys.iter().map(|key| (key.kek.kid(), &key.kek)).collect(),
            opened_by: HashMap::new(),
            missing: HashMap::new(),
            failed: 0,
            failures: Vec::new(),
        }
    }

    fn look(&mut self, dek: &DekRecord) {
        let (DekBody::Active(wrapped) | DekBody::DecryptOnly(wrapped)) = &dek.body else { return };
        let Some(kek) = self.keks.get(&wrapped.kid) else {
            self.failed += 1;
            *self.missing.entry(wrapped.kid).or_default() += 1;
            return;
        };
        match opens(dek, kek, &wrapped.bytes) {
            Ok(()) => *self.opened_by.entry(wrapped.kid).or_default() += 1,
            Err(why) => {
                let what =
                    format!("DEK version {} of tenant {} under master key {}", dek.version, dek.tenant, wrapped.kid);
                self.fail(1, format!("{what}: {why}"));
            }
        }
    }

    /// A damaged database may name keys in `deks` that `master_keys` does not list.
    fn unlisted(&mut self, in_use: u64) {
        let seen = self.opened_by.values().sum::<u64>() + self.failed;
        let unseen = in_use.saturating_sub(seen);
        if unseen > 0 {
            self.fail(unseen, format!("{unseen} DEKs are under master keys that the database does not list"));
        }
    }

    fn fail(&mut self, count: u64, why: String) {
        self.failed += count;
        if self.failures.len() < NAMED {
            self.failures.push(why);
        } else if self.failures.len() == NAMED {
            self.failures.push("and more".to_owned());
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum Unopened {
    #[error("it does not open: {0}")]
    DoesNotOpen(#[from] OpenError),
    #[error("it opens to another DEK than its row names")]
    WrongId,
}

fn opens(dek: &DekRecord, kek: &Kek, wrapped: &[u8]) -> Result<(), Unopened> {
    let place = DekPlace { tenant: &dek.tenant, version: dek.version };
    let opened = crypto::unwrap(kek, place, wrapped)?;
    if crypto::dek_id(&opened) == dek.id { Ok(()) } else { Err(Unopened::WrongId) }
}
