//! Keys found by their kid among the copies in Secret Manager, in the command's own process, with its caller's credentials: for a restore
//! and for a drill. One secret is searched after the other, the newest version first, until nothing is missing.

use std::fmt;

use crate::backup::KeyCopy;
use crate::crypto::{ImageError, KeyfileImage};
use crate::model::Kid;

use super::{Class, Destinations, Trouble, kids};

/// A key that came back.
pub(in crate::service) struct FetchedKey {
    pub(in crate::service) kid: Kid,
    /// The key file as it was: of a wrapped key, which whoever needs it opens, the kid that it says.
    pub(in crate::service) image: KeyfileImage,
    /// Of the copy.
    pub(in crate::service) sha256: [u8; 32],
    /// Where the copy was.
    pub(in crate::service) from: String,
}

/// What a search came to.
pub(in crate::service) struct Fetched {
    pub(in crate::service) keys: Vec<FetchedKey>,
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
}

impl FetchedKey {
    /// # Errors
    /// [`FetchError::Image`].
    pub(in crate::service) fn of(copy: KeyCopy, from: String) -> Result<Self, FetchError> {
        match copy.kid() {
            Ok(kid) => Ok(Self { kid, sha256: copy.sha256(), image: copy.into_image(), from }),
            Err(damage) => Err(FetchError::Image { from, damage }),
        }
    }
}

/// Looks for these keys in every secret in turn. One that does not answer, or not this identity, stands in nobody's way while another
/// has what is missing.
///
/// # Errors
/// [`FetchError::NotConfigured`]. What was not found is in [`Fetched`], beside what was.
pub(in crate::service) async fn search(
    destinations: &Destinations,
    mut missing: Vec<Kid>,
) -> Result<Fetched, FetchError> {
    let (mut keys, mut looked, mut passed_over) = (Vec::new(), Vec::new(), Vec::new());
    if destinations.secrets().is_empty() && !missing.is_empty() {
        return Err(FetchError::NotConfigured);
    }
    for secret in destinations.secrets() {
        if missing.is_empty() {
            break;
        }
        let search = match destinations.target(secret) {
            Ok(target) => target.search(&missing).await,
            Err(error) => {
                passed_over.push(PassedOver { secret: secret.clone(), trouble: Trouble::from(&error) });
                continue;
            }
        };
        looked.extend(search.looked_at.iter().map(|at| format!("{secret} version {}: {}", at.number, at.was)));
        for found in search.found {
            keys.push(FetchedKey::of(found.copy, found.locator)?);
        }
        missing = search.missing;
        if let Some(error) = search.stopped {
            passed_over.push(PassedOver { secret: secret.clone(), trouble: Trouble::from(&error) });
        }
    }
    Ok(match (missing.is_empty(), passed_over.is_empty()) {
        (true, _) => Fetched { keys, passed_over, unfound: None },
        (false, true) => Fetched { keys, passed_over, unfound: Some(FetchError::NotFound { missing, looked }) },
        (false, false) => {
            let unfound = FetchError::Search { passed_over, missing, looked };
            Fetched { keys, passed_over: Vec::new(), unfound: Some(unfound) }
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
