//! Copies as versions of a Secret Manager secret.

use std::fmt;
use std::future::Future;
use std::num::NonZeroU64;
use std::time::Duration;

use super::copy::KeyCopy;
use super::error::BackupError;
use crate::crypto::{ImageError, KeyfileImage};
use crate::gcp::{Endpoint, GcpError, Limits, SecretManager, VersionFacts, VersionNumber, VersionState};
use crate::model::{Kid, Micros, SecretPath, WrappedMaster};

/// One secret that copies are pushed to and fetched from, with the identity of this process. Made inside a tokio runtime.
pub struct SecretManagerTarget {
    google: SecretManager,
    secret: SecretPath,
}

/// A copy that Google confirmed with its checksum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    pub number: NonZeroU64,
    /// The version's full name, as an escrow records it.
    pub locator: String,
    /// Of what was pushed.
    pub sha256: [u8; 32],
}

/// A version as the list shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub number: NonZeroU64,
    pub locator: String,
    pub state: CopyState,
    pub created_at: Option<Micros>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CopyState {
    Enabled,
    Disabled,
    Destroyed,
    Unknown,
}

/// How long the secret itself is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lifetime {
    Lasting,
    /// Google will delete it with all copies in it: it is no place for backups.
    Expires,
    /// This identity may not see it.
    Hidden(GcpError),
}

/// A copy that was fetched.
pub struct Fetched {
    pub number: NonZeroU64,
    pub locator: String,
    pub copy: KeyCopy,
}

/// Opens wrapped copies: what one says of its key anybody may have written who may add a version.
pub trait Opens: Sync {
    /// Why one did not open.
    type Why: fmt::Display + Send;

    /// Whether it opens to the key that it says.
    fn opens(&self, wrapped: &WrappedMaster) -> impl Future<Output = Result<(), Self::Why>> + Send;
}

/// A wrapped copy that says it is a key that was looked for, and that did not open.
pub struct Unopened<W> {
    pub fetched: Fetched,
    pub kid: Kid,
    pub why: W,
}

/// What a search for keys found, and what else it met.
pub struct Search<W> {
    /// One copy for each key, the newest of those that there are: the key itself, or what opened to it.
    pub found: Vec<Fetched>,
    /// Copies of keys that are missing still, as far as can be told of what does not open; the newest first.
    pub unopened: Vec<Unopened<W>>,
    /// Every version that was looked at, the newest first; empty only where there is none.
    pub looked_at: Vec<LookedAt>,
    /// The keys that none of those holds.
    pub missing: Vec<Kid>,
    /// Why something was not looked at, a version or all of them, where that matters: what is missing may be there.
    pub stopped: Option<BackupError>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LookedAt {
    pub number: NonZeroU64,
    pub was: WhatItWas,
}

/// What a version turned out to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WhatItWas {
    Key(Kid),
    /// It says that it is this key, and did not open.
    Unopened {
        kid: Kid,
        why: String,
    },
    NoKey(ImageError),
    /// It cannot be read in this state.
    NotEnabled(CopyState),
    /// Its checksum is not that of what came.
    Damaged,
    /// It did not come, for a reason that is this version's and need not be another's.
    Unread(GcpError),
}

/// How many versions in a row may give no answer until a search ends. A grant may leave out one version and one connection may break, so one
/// is no reason to give up over an older copy.
const UNANSWERED: usize = 2;

impl SecretManagerTarget {
    /// `endpoint` is where Secret Manager is asked, Google's own where `None`; `secret` is `projects/P/secrets/S`; no call of this target
    /// takes longer than `deadline`. Nothing is sent yet.
    ///
    /// # Errors
    /// `Endpoint`, `SecretName`, `NoTime`, and `Google` where this process has no usable credentials file.
    pub fn connect(endpoint: Option<&str>, secret: &str, deadline: Duration) -> Result<Self, BackupError> {
        let endpoint = Endpoint::secret_manager(endpoint).map_err(|cause| BackupError::Endpoint { cause })?;
        let secret = SecretPath::parse(secret)
            .map_err(|cause| BackupError::SecretName { name: secret.escape_debug().to_string(), cause })?;
        if deadline.is_zero() {
            return Err(BackupError::NoTime { deadline });
        }
        Ok(Self { google: SecretManager::connect(&endpoint, Limits::within(deadline), &secret)?, secret })
    }

    /// Whether it is Google that is asked there; of what is no endpoint, not.
    #[must_use]
    pub fn asks_google(endpoint: Option<&str>) -> bool {
        Endpoint::secret_manager(endpoint).is_ok_and(|endpoint| endpoint.is_google())
    }

    /// The secret's full name.
    #[must_use]
    pub fn name(&self) -> String {
        self.secret.to_string()
    }

    /// Adds a copy. Whoever calls this has recorded that it is about to; after any error a copy may have been added all the same, and
    /// the same bytes may be pushed again.
    ///
    /// # Errors
    /// `Google`.
    pub async fn push(&self, image: &KeyfileImage) -> Result<Pushed, BackupError> {
        let number = self.google.add(&self.secret, image).await?;
        Ok(Pushed { number: number.into(), locator: self.secret.version(number), sha256: image.sha256() })
    }

    /// Every version, the newest first. What they hold is not known from a list.
    ///
    /// # Errors
    /// `Google`.
    pub async fn list(&self) -> Result<Vec<Listed>, BackupError> {
        let listed = |version: VersionFacts| Listed {
            number: version.number.into(),
            locator: self.secret.version(version.number),
            state: version.state.into(),
            created_at: version.created_at,
        };
        Ok(self.google.list(&self.secret).await?.into_iter().map(listed).collect())
    }

    /// Whether the secret has an expiry; of its versions nothing is asked.
    ///
    /// # Errors
    /// `Google`, but for a denial.
    pub async fn lifetime(&self) -> Result<Lifetime, BackupError> {
        match self.google.secret(&self.secret).await {
            Ok(facts) if facts.expires => Ok(Lifetime::Expires),
            Ok(_) => Ok(Lifetime::Lasting),
            Err(denial @ GcpError::Denied { .. }) => Ok(Lifetime::Hidden(denial)),
            Err(error) => Err(BackupError::Google(error)),
        }
    }

    /// What takes the secret's expiry away.
    #[must_use]
    pub fn mend_expiry(&self) -> String {
        let (secret, project) = (self.secret.secret(), self.secret.project());
        format!("gcloud secrets update {secret} --project={project} --remove-expiration")
    }

    /// The copy of this number, whatever it holds.
    ///
    /// # Errors
    /// `Google`.
    pub async fn fetch(&self, number: NonZeroU64) -> Result<Fetched, BackupError> {
        let version = VersionNumber::from(number);
        let copy = KeyCopy::new(self.google.access(&self.secret, version).await?);
        Ok(Fetched { number, locator: self.secret.version(version), copy })
    }

    /// Fetches versions, the newest first, until it has every one of these keys or there is none left. A version that is disabled,
    /// destroyed, damaged, unreadable or no key is noted and passed over, so that it does not hide an older one. One that does not come
    /// for a reason that the next may meet too (no right, no connection, no time) is noted as well; two of those in a row end
    /// the search. A wrapped one is the key that it says only once it is opened; until then it hides no older one either. What was found
    /// by then stays found.
    pub async fn search<O: Opens>(&self, wanted: &[Kid], opener: &O) -> Search<O::Why> {
        let mut search = Search {
            found: Vec::new(),
            unopened: Vec::new(),
            looked_at: Vec::new(),
            missing: wanted.to_vec(),
            stopped: None,
        };
        search.missing.sort_unstable();
        search.missing.dedup();
        if let Err(error) = self.look_through(&mut search, opener).await {
            search.stopped = Some(error);
        }
        let missing = &search.missing;
        search.unopened.retain(|copy| missing.contains(&copy.kid));
        if search.missing.is_empty() && !wanted.is_empty() {
            search.stopped = None;
        }
        search
    }

    async fn look_through<O: Opens>(&self, search: &mut Search<O::Why>, opener: &O) -> Result<(), BackupError> {
        let mut unanswered = 0;
        for version in self.list().await? {
            if search.missing.is_empty() && !search.looked_at.is_empty() {
                break;
            }
            let was = match version.state {
                CopyState::Disabled | CopyState::Destroyed => WhatItWas::NotEnabled(version.state),
                CopyState::Enabled | CopyState::Unknown => match self.look_at(version.number, search, opener).await {
                    Ok(was) => was,
                    Err(BackupError::Google(error)) => {
                        // One that was waited for to the end is as long as an operator waits.
                        unanswered += if matches!(error, GcpError::Deadline { .. }) { UNANSWERED } else { 1 };
                        search
                            .looked_at
                            .push(LookedAt { number: version.number, was: WhatItWas::Unread(error.clone()) });
                        search.stopped = Some(BackupError::Google(error));
                        if unanswered >= UNANSWERED {
                            break;
                        }
                        continue;
                    }
                    Err(error) => return Err(error),
                },
            };
            unanswered = 0;
            search.looked_at.push(LookedAt { number: version.number, was });
        }
        Ok(())
    }

    async fn look_at<O: Opens>(
        &self,
        number: NonZeroU64,
        search: &mut Search<O::Why>,
        opener: &O,
    ) -> Result<WhatItWas, BackupError> {
        let fetched = match self.fetch(number).await {
            Ok(fetched) => fetched,
            Err(BackupError::Google(error)) => return of_one_version(error).map_err(BackupError::Google),
            Err(error) => return Err(error),
        };
        let kid = match fetched.copy.kid() {
            Ok(kid) => kid,
            Err(damage) => return Ok(WhatItWas::NoKey(damage)),
        };
        let Some(at) = search.missing.iter().position(|missing| *missing == kid) else {
            return Ok(WhatItWas::Key(kid));
        };
        if let Some(wrapped) = fetched.copy.image().wrapped()
            && let Err(why) = opener.opens(&wrapped).await
        {
            let was = WhatItWas::Unopened { kid, why: why.to_string() };
            search.unopened.push(Unopened { fetched, kid, why });
            return Ok(was);
        }
        search.missing.remove(at);
        search.found.push(fetched);
        Ok(WhatItWas::Key(kid))
    }
}

/// What an error says of the version that was read; an error where the next version would meet it too.
fn of_one_version(error: GcpError) -> Result<WhatItWas, GcpError> {
    match error {
        // Changed since the list was made.
        GcpError::VersionDisabled { .. } => Ok(WhatItWas::NotEnabled(CopyState::Disabled)),
        GcpError::VersionDestroyed { .. } => Ok(WhatItWas::NotEnabled(CopyState::Destroyed)),
        GcpError::BadChecksum { .. } => Ok(WhatItWas::Damaged),
        GcpError::NoSuchVersion { .. }
        | GcpError::NotConfirmed { .. }
        | GcpError::AnswerTooLong { .. }
        | GcpError::NotUnderstood { .. } => Ok(WhatItWas::Unread(error)),
        _ => Err(error),
    }
}

impl From<VersionState> for CopyState {
    fn from(state: VersionState) -> Self {
        match state {
            VersionState::Enabled => Self::Enabled,
            VersionState::Disabled => Self::Disabled,
            VersionState::Destroyed => Self::Destroyed,
            VersionState::Unknown => Self::Unknown,
        }
    }
}

impl fmt::Display for CopyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Enabled => "enabled",
            Self::Disabled => "disabled",
            Self::Destroyed => "destroyed",
            Self::Unknown => "unknown",
        })
    }
}

impl fmt::Display for WhatItWas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(kid) => write!(f, "master key {kid}"),
            Self::Unopened { kid, why } => write!(f, "it says master key {kid}, and does not open: {why}"),
            Self::NoKey(damage) => write!(f, "no master key: {damage}"),
            Self::NotEnabled(state) => state.fmt(f),
            Self::Damaged => f.write_str("damaged: its checksum is not that of what came"),
            Self::Unread(error) => error.fmt(f),
        }
    }
}
