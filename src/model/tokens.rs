//! Tokens: their ids, names and rows. A token itself, its secret part, is never in one of these.

use std::fmt;

use super::Micros;

/// How a text breaks the rule of its kind. The messages name the rule and never what was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("a token's id is 22 of 0-9, A-Z and a-z: `containarium admin token list` shows it")]
    Id,
    #[error("a name of a token or of who made it is 1 to 64 of A-Z, a-z, 0-9 and `. _ - @ : / +`")]
    Label,
}

/// A token's public id: 16 random bytes in base62.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenId(std::sync::Arc<str>);

impl TokenId {
    /// How many characters it has.
    pub const LENGTH: usize = 22;

    /// # Errors
    /// [`TokenError::Id`].
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let holds = text.len() == Self::LENGTH && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if holds { Ok(Self(text.into())) } else { Err(TokenError::Id) }
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What people call a token, and who made it: for their eyes, and safe on any terminal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Label(Box<str>);

impl Label {
    /// # Errors
    /// [`TokenError::Label`].
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-@:/+".contains(&byte);
        let holds = (1..=64).contains(&text.len()) && text.bytes().all(allowed);
        if holds { Ok(Self(text.into())) } else { Err(TokenError::Label) }
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A token's row, as it stands there. Its words are not looked at: the MAC over them comes first, and one that somebody forged must not
/// keep the others from being listed and revoked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRecord {
    pub id: String,
    /// SHA-256 of the secret part.
    pub secret_hash: [u8; 32],
    pub name: String,
    /// As [`Scope::to_columns`](super::Scope::to_columns) writes them.
    pub tenants: String,
    pub permissions: String,
    pub names: String,
    pub created_at: Micros,
    /// Not under the MAC: it decides nothing.
    pub created_by: String,
    pub expires_at: Option<Micros>,
    pub revoked_at: Option<Micros>,
    /// Not under the MAC, and at most a minute old.
    pub last_used_at: Option<Micros>,
    pub mac: [u8; 32],
}

/// Which tokens are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WhichTokens {
    Ids(Vec<TokenId>),
    All,
    /// Those that have a right to this tenant, others beside it or not.
    OfTenant(super::Tenant),
    CreatedBy(Label),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_labels_have_their_characters_and_lengths() {
        assert!(TokenId::parse(&"aZ9".repeat(8)[..22]).is_ok());
        for bad in ["", &"a".repeat(21), &"a".repeat(23), "aaaaaaaaaaaaaaaaaaaaa_"] {
            assert_eq!(TokenId::parse(bad), Err(TokenError::Id), "{bad}");
        }
        for good in ["a", "ci/deploy", "anna@example.org", "uid:0", &"x".repeat(64)] {
            assert!(Label::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "a b", "a\n", "\u{1b}[2J", "é", &"x".repeat(65)] {
            assert_eq!(Label::parse(bad), Err(TokenError::Label), "{bad:?}");
        }
    }
}
