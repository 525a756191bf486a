//! Issuers of JWTs (RFC 7519): what of one is trusted, and what its tokens are good for here.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::Scope;
use super::access::matches_pattern;

/// How a text breaks the rule of its kind. The messages name the rule and never what was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IssuerError {
    #[error(
        "an issuer's name is 1 to 255 visible ASCII characters without `#`, exactly as its tokens have it in `iss`"
    )]
    Name,
    #[error("a claim is the name of one at the top, or a path that begins with `/` (RFC 6901), of at most 255 bytes")]
    Claim,
    #[error("what a claim must be is 1 to 255 bytes without control characters; `*` stands for any run of characters")]
    Pattern,
    #[error(
        "at least one claim must be asked for by more than stars: the rule would be for everybody whom the issuer knows"
    )]
    Everybody,
}

/// An issuer that tokens are taken from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issuer {
    pub name: IssuerName,
    /// At least one; a token must be for one of them.
    pub audiences: BTreeSet<String>,
    pub keys: IssuerKeys,
    /// How far its clock and this host's may be apart.
    pub leeway: Duration,
    /// The longest that a token may be good, from its issue to its end.
    pub max_lifetime: Duration,
    /// How often the keys are looked for anew; a file is, as soon as it changes.
    pub refresh: Duration,
    /// For how long keys are used after they were last seen at their place.
    pub keep_keys: Duration,
    /// The first that fits counts.
    pub rules: Vec<Rule>,
}

/// What an issuer's tokens are verified with. One has either public keys or a secret: a public key that were taken for a secret would let
/// everybody sign.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IssuerKeys {
    /// A JWK set (RFC 7517), and by which algorithms; at least one.
    Public { set: KeySetPlace, algorithms: BTreeSet<PublicAlgorithm> },
    /// HS256, as v1 signed.
    Secret { file: PathBuf },
}

/// Where a JWK set is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySetPlace {
    File(PathBuf),
    /// `https`, or `http` on a loopback address.
    Url {
        url: String,
        /// The authorities that vouch for the server, instead of the host's own list.
        ca: Option<PathBuf>,
    },
}

impl KeySetPlace {
    /// Whether any user of the host can answer for it as soon as its server is down: by http, on a port that needs no privilege.
    #[must_use]
    pub fn is_anybodys(&self) -> bool {
        const FIRST_UNPRIVILEGED: u16 = 1024;
        let Self::Url { url, .. } = self else { return false };
        let Some(rest) = url.strip_prefix("http://") else { return false };
        let authority = rest.split(['/', '?']).next().unwrap_or_default();
        // Without one it is 80.
        let port = authority.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        port.is_some_and(|port| port >= FIRST_UNPRIVILEGED)
    }
}

/// A signature that anybody can verify and one alone can make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PublicAlgorithm {
    /// Ed25519 (RFC 8037).
    EdDsa,
    /// ECDSA on P-256 with SHA-256 (RFC 7518, section 3.4).
    Es256,
    /// RSASSA-PKCS1-v1_5 with SHA-256, from 2048 bits (RFC 7518, section 3.3).
    Rs256,
}

impl PublicAlgorithm {
    pub const ALL: [Self; 3] = [Self::EdDsa, Self::Es256, Self::Rs256];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::EdDsa => "EdDSA",
            Self::Es256 => "ES256",
            Self::Rs256 => "RS256",
        }
    }
}

/// What a token's `iss` must be, to the byte.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IssuerName(std::sync::Arc<str>);

impl IssuerName {
    /// # Errors
    /// [`IssuerError::Name`].
    pub fn parse(text: &str) -> Result<Self, IssuerError> {
        let visible = |byte: u8| byte.is_ascii_graphic() && byte != b'#';
        let holds = (1..=255).contains(&text.len()) && text.bytes().all(visible);
        if holds { Ok(Self(text.into())) } else { Err(IssuerError::Name) }
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for IssuerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whoever an issuer says to be all of this may do that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    claims: Vec<ClaimTest>,
    scope: Scope,
}

impl Rule {
    /// # Errors
    /// [`IssuerError::Everybody`].
    pub fn new(claims: Vec<ClaimTest>, scope: Scope) -> Result<Self, IssuerError> {
        if claims.iter().any(ClaimTest::tells_apart) { Ok(Self { claims, scope }) } else { Err(IssuerError::Everybody) }
    }

    #[must_use]
    pub fn claims(&self) -> &[ClaimTest] {
        &self.claims
    }

    #[must_use]
    pub const fn scope(&self) -> &Scope {
        &self.scope
    }
}

/// What one claim must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimTest {
    pub place: ClaimPlace,
    pub wanted: Wanted,
}

impl ClaimTest {
    fn tells_apart(&self) -> bool {
        // Each of an issuer's tokens has these alike.
        if ["iss", "aud", "/iss", "/aud"].contains(&self.place.as_str()) {
            return false;
        }
        match &self.wanted {
            Wanted::Like(pattern) => pattern.0.bytes().any(|byte| byte != b'*'),
            Wanted::Is(_) => false,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// A string of this pattern, or a list that has one.
    Like(ClaimPattern),
    Is(bool),
}

/// Where a claim is: the name of one at the top, whatever characters it has, or a JSON pointer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimPlace(Box<str>);

impl ClaimPlace {
    /// # Errors
    /// [`IssuerError::Claim`].
    pub fn parse(text: &str) -> Result<Self, IssuerError> {
        let escapes = |text: &str| text.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
        let is_path = text.starts_with('/');
        let holds = (1..=255).contains(&text.len())
            && !text.contains(char::is_control)
            && (!is_path || (text.len() > 1 && escapes(text)));
        if holds { Ok(Self(text.into())) } else { Err(IssuerError::Claim) }
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    #[must_use]
    pub fn is_path(&self) -> bool {
        self.0.starts_with('/')
    }
}

/// `*` stands for any run of characters, none too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimPattern(Box<str>);

impl ClaimPattern {
    /// # Errors
    /// [`IssuerError::Pattern`].
    pub fn parse(text: &str) -> Result<Self, IssuerError> {
        let holds = (1..=255).contains(&text.len()) && !text.contains(char::is_control);
        if holds { Ok(Self(text.into())) } else { Err(IssuerError::Pattern) }
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        matches_pattern(&self.0, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Names, Permission, Tenant};

    #[test]
    fn a_loopback_port_from_1024_by_http_is_anybodys_who_binds_it() {
        for (url, is_anybodys) in [
            ("http://127.0.0.1:1024/keys", true),
            ("http://[::1]:8081", true),
            ("http://127.0.0.1:65535?a=b:1", true),
            ("http://127.0.0.1:1023/keys", false),
            ("http://127.0.0.1/keys:8081", false),
            ("http://[::1]/keys", false),
            ("https://127.0.0.1:8443/keys", false),
        ] {
            assert_eq!(KeySetPlace::Url { url: url.to_owned(), ca: None }.is_anybodys(), is_anybodys, "{url}");
        }
        assert!(!KeySetPlace::File("/keys".into()).is_anybodys());
    }

    #[test]
    fn names_claims_and_patterns_have_their_characters_and_lengths() {
        for good in ["https://issuer.example", "v1", &"x".repeat(255)] {
            assert!(IssuerName::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "a b", "a#b", "a\n", "é", &"x".repeat(256)] {
            assert_eq!(IssuerName::parse(bad), Err(IssuerError::Name), "{bad:?}");
        }
        for good in
            ["sub", "kubernetes.io", "https://example.com/role", "/kubernetes.io/serviceaccount/name", "/a~1b~0c"]
        {
            assert!(ClaimPlace::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "/", "/a~2", "/a~", "a\n", &"x".repeat(256)] {
            assert_eq!(ClaimPlace::parse(bad), Err(IssuerError::Claim), "{bad:?}");
        }
        for bad in ["", "a\n", &"x".repeat(256)] {
            assert_eq!(ClaimPattern::parse(bad), Err(IssuerError::Pattern), "{bad:?}");
        }
        assert!(ClaimPattern::parse("repo:acme/*").unwrap().matches("repo:acme/shop:ref:refs/heads/main"));
        assert!(!ClaimPattern::parse("repo:acme/*").unwrap().matches("repo:acme-evil/shop"));
    }

    #[test]
    fn a_rule_asks_for_something_that_not_everybody_has() {
        let made = |claims: &[(&str, Wanted)]| {
            let claims = claims.iter();
            let claims = claims
                .map(|(place, wanted)| ClaimTest { place: ClaimPlace::parse(place).unwrap(), wanted: wanted.clone() });
            let alice = Tenant::parse("alice").unwrap();
            Rule::new(claims.collect(), Scope::new([alice], [Permission::Read], Names::Any).unwrap())
        };
        let like = |pattern| Wanted::Like(ClaimPattern::parse(pattern).unwrap());
        for everybody in [
            &[][..],
            &[("sub", like("*"))],
            &[("a", like("**")), ("email_verified", Wanted::Is(true))],
            &[("iss", like("https://issuer.example"))],
            &[("/aud", like("containarium")), ("sub", like("*"))],
        ] {
            assert_eq!(made(everybody), Err(IssuerError::Everybody));
        }
        assert!(made(&[("sub", like("*")), ("repository", like("acme/*"))]).is_ok());
    }
}
