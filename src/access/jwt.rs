//! JWTs of issuers that the settings name (RFC 7519, RFC 8725): who presents one, and what it is good for.
//!
//! A token names its issuer, and the issuer's settings say everything else: which algorithms, for which audiences, how long a token may be
//! good, and by which rule its claims are worth a scope. Nothing that a token says of its own keys (`jku`, `jwk`, `x5c`) is looked at, and
//! an extension that must be understood (`crit`) is refused, since none is.
//!
//! Signatures and form are the library's business; its clock is not ours, so times are checked here.

mod claims;
mod keys;
mod quiet;
mod ring;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Validation, dangerous, decode, decode_header};
use serde::Deserialize;

use super::{Caller, Identity, Unauthenticated};
use crate::clock::Clock;
use crate::issuer::SourceError;
use crate::model::{Issuer, IssuerName, Rule};

use claims::Claims;
use keys::KeysError;
use quiet::Quiet;
use ring::{NoKey, Ring};

/// How soon it makes sense to present a credential again that could not be checked.
pub const TRY_AGAIN: Duration = ring::AGAIN;

/// As much as the command line sends. A token of Kubernetes or GitHub has one or two KiB.
const MOST_BYTES: usize = 16 * 1024;

/// Why an issuer's keys cannot be used as they lie there.
#[derive(Debug, thiserror::Error)]
pub enum IssuerKeysError {
    #[error("the keys of the issuer {issuer}: {cause}")]
    Source { issuer: IssuerName, cause: SourceError },
    #[error("the keys of the issuer {issuer}: {} {cause}", place)]
    Keys { issuer: IssuerName, place: String, cause: KeysError },
}

/// What keeps a JWT from being somebody. For the log: its bearer is told nothing of it. No message holds a word of the token, but for the subject
/// of one that was signed by its issuer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Wrong {
    #[error("it has more than {MOST_BYTES} bytes")]
    TooLong,
    #[error("it is no JWT, or names an algorithm that is none")]
    NoJwt,
    #[error("its claims are no JSON object, name one twice, or have one of a wrong type")]
    Claims,
    #[error("its issuer is none that the settings name")]
    UnknownIssuer,
    #[error("it has extensions that must be understood (crit), and none is")]
    Critical,
    #[error("its algorithm is none of those that the settings name for the issuer")]
    Algorithm,
    #[error("it does not say which key it is signed with (kid)")]
    NoKid,
    #[error("it is signed with a key that the issuer does not publish")]
    UnknownKid,
    #[error("its signature is not the issuer's")]
    Signature,
    #[error("it is for another audience")]
    Audience,
    #[error("it has no `{0}`")]
    Missing(&'static str),
    #[error("its subject is empty or has more than 255 bytes")]
    Subject,
    #[error("it has expired")]
    Expired,
    #[error("it is not good yet, or was issued in the future: compare the clocks")]
    NotYet,
    #[error("it is good for longer than max_lifetime")]
    TooLongLived,
    #[error("no rule is for it; its subject is {subject}")]
    NoRule { subject: String },
}

enum Refused {
    Wrong(Wrong),
    /// It cannot be told.
    NoKeys,
    /// It cannot be told before the issuer's keys may be looked for again.
    TooSoon,
}

impl From<Wrong> for Refused {
    fn from(wrong: Wrong) -> Self {
        Self::Wrong(wrong)
    }
}

/// How it stands with an issuer's keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeysState {
    pub issuer: IssuerName,
    /// How many tokens can be verified with: none were ever there, were taken away, or were last seen longer than `keep` ago, where it is 0.
    pub usable: usize,
    /// How long ago they were last seen at their place; `None` where there are none.
    pub age: Option<Duration>,
    /// For how long they are used after that.
    pub keep: Duration,
    /// What went wrong at the last look.
    pub failure: Option<String>,
}

/// The issuers of a daemon.
pub struct Issuers {
    known: HashMap<IssuerName, Known>,
    clock: Arc<dyn Clock>,
    quiet: Quiet,
}

struct Known {
    issuer: Issuer,
    ring: Ring,
}

/// The part of a token's claims that is believed before anything is verified: whose keys to hold it against.
#[derive(Deserialize)]
struct Peek {
    iss: String,
}

/// Whether each issuer's keys can be used, as far as that can be told without asking anybody.
///
/// # Errors
/// [`IssuerKeysError`], the first one.
pub fn check_issuers(issuers: &[Issuer]) -> Result<(), IssuerKeysError> {
    issuers.iter().try_for_each(ring::check)
}

impl Issuers {
    /// No keys are there yet: [`Issuers::keep`] gets them.
    #[must_use]
    pub fn new(issuers: Vec<Issuer>, clock: Arc<dyn Clock>) -> Self {
        let known = |issuer: Issuer| {
            let ring = Ring::new(&issuer, Arc::clone(&clock));
            (issuer.name.clone(), Known { issuer, ring })
        };
        Self { known: issuers.into_iter().map(known).collect(), clock: Arc::clone(&clock), quiet: Quiet::new(clock) }
    }

    /// Looks for each issuer's keys again and again. It does not end.
    pub async fn keep(&self) {
        let mut keeping = tokio::task::JoinSet::new();
        for known in self.known.values() {
            keeping.spawn(known.ring.clone().keep());
        }
        while keeping.join_next().await.is_some() {
            tracing::error!("an issuer's keys are no longer looked after: a panic, and a bug");
        }
        std::future::pending::<()>().await;
    }

    /// Has every issuer's keys read anew, soon.
    pub fn reread(&self) {
        self.known.values().for_each(|known| known.ring.reread());
    }

    /// How it stands with each issuer's keys, by the issuers' names.
    #[must_use]
    pub fn states(&self) -> Vec<KeysState> {
        let mut states: Vec<_> = self.known.values().map(|known| known.ring.state()).collect();
        states.sort_by(|one, other| one.issuer.cmp(&other.issuer));
        states
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Whoever presents this text, which is no token of this daemon's.
    pub(super) async fn check(&self, text: &str) -> Result<Caller, Unauthenticated> {
        if self.known.is_empty() {
            return Err(Unauthenticated::Invalid);
        }
        let known = match self.issuer_of(text) {
            Ok(known) => known,
            Err(wrong) => {
                self.quiet.warn(|| tracing::warn!("a JWT was refused: {wrong}"));
                return Err(Unauthenticated::Invalid);
            }
        };
        match known.caller(text, &*self.clock).await {
            Ok(caller) => Ok(caller),
            Err(Refused::Wrong(wrong)) => {
                let issuer = &known.issuer.name;
                self.quiet.warn(|| tracing::warn!(%issuer, "a JWT was refused: {wrong}"));
                Err(Unauthenticated::Invalid)
            }
            Err(Refused::TooSoon) => {
                let (issuer, again) = (&known.issuer.name, ring::AGAIN.as_secs());
                self.quiet.warn(|| {
                    tracing::warn!(
                        %issuer,
                        "a JWT cannot be checked now: it names a key that was not there less than {again} s ago, when keys were last looked for"
                    );
                });
                Err(Unauthenticated::Unavailable)
            }
            Err(Refused::NoKeys) => Err(Unauthenticated::Unavailable),
        }
    }

    /// Who a token says that it is of. Sizes are bounded before anything is parsed.
    fn issuer_of(&self, text: &str) -> Result<&Known, Wrong> {
        if text.len() > MOST_BYTES {
            return Err(Wrong::TooLong);
        }
        if text.split('.').count() != 3 {
            return Err(Wrong::NoJwt);
        }
        let peek: Peek = dangerous::insecure_decode_claims(text).map_err(|_| Wrong::Claims)?;
        let name = IssuerName::parse(&peek.iss).map_err(|_| Wrong::UnknownIssuer)?;
        self.known.get(&name).ok_or(Wrong::UnknownIssuer)
    }
}

impl Known {
    async fn caller(&self, text: &str, clock: &dyn Clock) -> Result<Caller, Refused> {
        let header = decode_header(text).map_err(|_| Wrong::NoJwt)?;
        if header.crit.is_some() {
            return Err(Wrong::Critical.into());
        }
        let key = self.ring.key(header.alg, header.kid.as_deref()).await.map_err(|no_key| match no_key {
            NoKey::Algorithm => Wrong::Algorithm.into(),
            NoKey::NoKid => Wrong::NoKid.into(),
            NoKey::UnknownKid => Wrong::UnknownKid.into(),
            NoKey::TooSoon => Refused::TooSoon,
            NoKey::Away => Refused::NoKeys,
        })?;
        let verified = decode::<Claims>(text, &key, &self.validation(header.alg));
        let claims = verified.map_err(|error| wrong(error.kind()))?.claims;
        claims.times()?.hold(clock.wall(), &self.issuer)?;
        let subject = claims.subject(names_of_subject(header.alg)).ok_or(Wrong::Subject)?;
        let issuer = self.issuer.name.clone();
        let Some(rule) = self.issuer.rules.iter().find(|rule| claims.fit(rule)) else {
            return Err(Wrong::NoRule { subject }.into());
        };
        Ok(Caller::scoped(Identity::Issued { issuer, subject: subject.into() }, Arc::new(Rule::scope(rule).clone())))
    }

    fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        validation.set_issuer(&[self.issuer.name.as_str()]);
        validation.aud = Some(self.issuer.audiences.iter().cloned().collect());
        validation.set_required_spec_claims(match names_of_subject(algorithm) {
            ["sub"] => &["iss", "aud", "sub"][..],
            _ => &["iss", "aud"],
        });
        // By our clock, afterwards.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation
    }
}

/// Which claim says who it is of. v1's tokens, which are signed with a shared secret, have `username` and no `sub`.
const fn names_of_subject(algorithm: Algorithm) -> &'static [&'static str] {
    match algorithm {
        Algorithm::HS256 => &["sub", "username"],
        _ => &["sub"],
    }
}

fn wrong(kind: &ErrorKind) -> Wrong {
    match kind {
        ErrorKind::InvalidSignature => Wrong::Signature,
        ErrorKind::InvalidAudience => Wrong::Audience,
        ErrorKind::InvalidIssuer => Wrong::UnknownIssuer,
        ErrorKind::InvalidAlgorithm => Wrong::Algorithm,
        ErrorKind::MissingRequiredClaim(claim) => {
            Wrong::Missing(["iss", "aud", "sub"].into_iter().find(|name| claim == name).unwrap_or("claim"))
        }
        ErrorKind::InvalidToken | ErrorKind::Base64(_) => Wrong::NoJwt,
        _ => Wrong::Claims,
    }
}

#[cfg(test)]
mod tests;
