//! Keys found by their kid among the copies in Secret Manager, in the command's own process, with its caller's credentials: for a restore
//! and for a drill. One secret is searched after the other, the newest version first, until nothing is missing.

use std::fmt;

use crate::backup::{KeyCopy, Opens, Unopened};
use crate::crypto::{Content, ImageError, KeyfileImage};
use crate::keys::provider::{Away, NotOpened, Opened, Provider};
use crate::model::{Kid, WrappedMaster};

use super::{Class, Destinations, Trouble, kids};

/// A key that came back.
pub(in crate::service) struct FetchedKey {
    pub(in crate::service) kid: Kid,
    /// The key file as it was, raw or wrapped.
    pub(in crate::service) image: KeyfileImage,
    /// Why it did not open, where it is wrapped and did not: the kid is then what it says, and no more.
    pub(in crate::service) unopened: Option<NotOpened>,
    /// Of the copy.
    pub(in crate::service) sha256: [u8; 32],
    /// Where the copy was.
    pub(in crate::service) from: String,
}

/// What a search came to.
#[derive(Default)]
pub(in crate::service) struct Fetched {
    pub(in crate::service) keys: Vec<FetchedKey>,
    /// Wrapped copies that say they are one of the missing keys, and did not open: the newest first, of each secret in turn.
    pub(in crate::service) unopened: Vec<FetchedKey>,
    /// Secrets that could not be searched, where others had everything.
    pub(in crate::service) passed_over: Vec<PassedOver>,
    /// Why something is missing.
    pub(in crate::service) unfound: Option<FetchError>,
}

/// A secret that could not be searched, to its end or at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PassedOver {
    pub secret: String,
    pub trouble: Trouble,
}

/// Why keys were not found.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("no secret is configured to fetch from: `[backup.gcp] secrets` names none")]
    NotConfigured,
    /// Some secret did not answer, or not this identity: what is missing may be there.
    #[error("{}; not found: {}{}", each(.passed_over), kids(.missing), Looked::partly(.looked))]
    Search { passed_over: Vec<PassedOver>, missing: Vec<Kid>, looked: Vec<String> },
    #[error("no version that can be read holds master key {}{}", kids(.missing), Looked::all(.looked))]
    NotFound { missing: Vec<Kid>, looked: Vec<String> },
    #[error("{from} is not a master key: {damage}. No file was touched")]
    Image { from: String, damage: ImageError },
}

impl FetchError {
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::NotConfigured => Class::Invalid,
            Self::Search { passed_over, .. } => {
                passed_over.first().map_or(Class::Failed, |passed_over| passed_over.trouble.class)
            }
            Self::NotFound { .. } => Class::NotFound,
            Self::Image { .. } => Class::Failed,
        }
    }

    /// The same of what is missing still; `None` where nothing is.
    pub(super) fn without(mut self, is_there: impl Fn(Kid) -> bool) -> Option<Self> {
        match &mut self {
            Self::Search { missing, .. } | Self::NotFound { missing, .. } => {
                missing.retain(|kid| !is_there(*kid));
                if missing.is_empty() { None } else { Some(self) }
            }
            Self::NotConfigured | Self::Image { .. } => Some(self),
        }
    }
}

impl FetchedKey {
    /// A copy that was brought or asked for by its number.
    ///
    /// # Errors
    /// [`FetchError::Image`].
    pub(in crate::service) async fn of(copy: KeyCopy, from: String, opener: &Opener<'_>) -> Result<Self, FetchError> {
        let unopened = match copy.image().content() {
            Ok(Content::Raw(_)) => None,
            Ok(Content::Wrapped(wrapped)) => opener.opens(&wrapped).await.err(),
            Err(damage) => return Err(FetchError::Image { from, damage }),
        };
        Self::judged(copy, from, unopened)
    }

    fn judged(copy: KeyCopy, from: String, unopened: Option<NotOpened>) -> Result<Self, FetchError> {
        match copy.kid() {
            Ok(kid) => Ok(Self { kid, sha256: copy.sha256(), image: copy.into_image(), unopened, from }),
            Err(damage) => Err(FetchError::Image { from, damage }),
        }
    }
}

/// Opens wrapped copies with what this process has. A KMS key that is away is waited for once, not again for each copy.
pub(in crate::service) struct Opener<'a> {
    provider: &'a Provider,
    away: Away,
}

impl<'a> Opener<'a> {
    pub(in crate::service) fn new(provider: &'a Provider) -> Self {
        Self { provider, away: Away::default() }
    }

    /// The key itself.
    ///
    /// # Errors
    /// [`NotOpened`].
    pub(in crate::service) async fn open(&self, wrapped: &WrappedMaster) -> Result<Opened, NotOpened> {
        self.provider.open_knowing(wrapped, &self.away).await
    }
}

impl Opens for Opener<'_> {
    type Why = NotOpened;

    async fn opens(&self, wrapped: &WrappedMaster) -> Result<(), NotOpened> {
        self.open(wrapped).await.map(drop)
    }
}

/// Looks for these keys in every secret in turn, until there is one of each that is the key itself or opens to it. One that does not answer, or not this identity, stands in nobody's way while another
/// has what is missing.
///
/// # Errors
/// [`FetchError::NotConfigured`]. What was not found is in [`Fetched`], beside what was.
pub(in crate::service) async fn search(
    destinations: &Destinations,
    mut missing: Vec<Kid>,
    opener: &Opener<'_>,
) -> Result<Fetched, FetchError> {
    let (mut keys, mut unopened, mut looked, mut passed_over) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    if destinations.secrets().is_empty() && !missing.is_empty() {
        return Err(FetchError::NotConfigured);
    }
    for secret in destinations.secrets() {
        if missing.is_empty() {
            break;
        }
        let search = match destinations.target(secret) {
            Ok(target) => target.search(&missing, opener).await,
            Err(error) => {
                passed_over.push(PassedOver { secret: secret.clone(), trouble: Trouble::from(&error) });
                continue;
            }
        };
        looked.extend(search.looked_at.iter().map(|at| format!("{secret} version {}: {}", at.number, at.was)));
        for found in search.found {
            keys.push(FetchedKey::judged(found.copy, found.locator, None)?);
        }
        for Unopened { fetched, why, .. } in search.unopened {
            unopened.push(FetchedKey::judged(fetched.copy, fetched.locator, Some(why))?);
        }
        missing = search.missing;
        if let Some(error) = search.stopped {
            passed_over.push(PassedOver { secret: secret.clone(), trouble: Trouble::from(&error) });
        }
    }
    unopened.retain(|copy: &FetchedKey| missing.contains(&copy.kid));
    Ok(match (missing.is_empty(), passed_over.is_empty()) {
        (true, _) => Fetched { keys, unopened, passed_over, unfound: None },
        (false, true) => {
            Fetched { keys, unopened, passed_over, unfound: Some(FetchError::NotFound { missing, looked }) }
        }
        (false, false) => {
            let unfound = FetchError::Search { passed_over, missing, looked };
            Fetched { keys, unopened, passed_over: Vec::new(), unfound: Some(unfound) }
        }
    })
}

/// Google's errors name the secret.
fn each(passed_over: &[PassedOver]) -> String {
    passed_over.iter().map(|passed_over| passed_over.trouble.why.as_str()).collect::<Vec<_>>().join("; ")
}

/// What was looked at in vain, a line each.
struct Looked<'a> {
    at: &'a [String],
    /// Whether there is nothing else.
    all: bool,
}

impl<'a> Looked<'a> {
    const fn all(at: &'a [String]) -> Self {
        Self { at, all: true }
    }

    const fn partly(at: &'a [String]) -> Self {
        Self { at, all: false }
    }
}

impl fmt::Display for Looked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at {
            [] if self.all => f.write_str(". There is no version at all")?,
            [] => {}
            looked => write!(f, ". Looked at: {}", looked.join("; "))?,
        }
        if self.all { Ok(()) } else { f.write_str(". What else is there is not known") }
    }
}
