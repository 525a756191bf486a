//! Tenant and secret names: ASCII rules, checked once, never normalised.

use std::fmt;

/// Why a name was refused. The message names the rule and never the input: a name can be a value pasted in the wrong place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("a tenant is 1 to 64 of a-z, 0-9, '.', '_' and '-', and starts and ends with a letter or digit")]
    Tenant,
    #[error("a secret's name is 1 to 128 of A-Z, 0-9 and '_', and does not start with a digit")]
    Secret,
}

/// A tenant's name: `^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$`, or one of the system's own, which start with `_`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tenant(Box<str>);

impl Tenant {
    /// A tenant that a caller names; the system's own cannot be named.
    ///
    /// # Errors
    /// [`NameError::Tenant`] where the rule does not hold.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let bytes = text.as_bytes();
        let edge = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let inner = |b: &u8| edge(b) || matches!(b, b'.' | b'_' | b'-');
        let holds = bytes.len() <= 64
            && bytes.first().is_some_and(edge)
            && bytes.last().is_some_and(edge)
            && bytes.iter().all(inner);
        if holds { Ok(Self(text.into())) } else { Err(NameError::Tenant) }
    }

    /// The tenant of the daemon's own secrets.
    #[must_use]
    pub fn system() -> Self {
        Self("_system".into())
    }

    /// A tenant as a database row holds it: a caller's or the system's.
    ///
    /// # Errors
    /// [`NameError::Tenant`] where it is neither.
    pub fn from_row(text: &str) -> Result<Self, NameError> {
        if text == "_system" { Ok(Self::system()) } else { Self::parse(text) }
    }

    #[must_use]
    pub fn is_system(&self) -> bool {
        self.0.starts_with('_')
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A secret's name: `^[A-Z_][A-Z0-9_]*$`, at most 128.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SecretName(Box<str>);

impl SecretName {
    /// # Errors
    /// [`NameError::Secret`] where the rule does not hold.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let bytes = text.as_bytes();
        let first = |b: &u8| b.is_ascii_uppercase() || *b == b'_';
        let holds = bytes.len() <= 128
            && bytes.first().is_some_and(first)
            && bytes.iter().all(|b| first(b) || b.is_ascii_digit());
        if holds { Ok(Self(text.into())) } else { Err(NameError::Secret) }
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SecretName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_that_follow_the_rule_are_taken() {
        for good in ["a", "7", "alice", "a.b", "a-b_c.d", "0x", &"a".repeat(64)] {
            assert!(Tenant::parse(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn tenants_that_break_the_rule_are_refused() {
        let long = "a".repeat(65);
        for bad in [
            "", "_system", "_a", ".a", "a.", "-a", "a-", "a_", "A", "a b", "a/b", "a\0", "é", "ａ", "..", "a%2f", &long,
        ] {
            assert_eq!(Tenant::parse(bad), Err(NameError::Tenant), "{bad}");
        }
    }

    #[test]
    fn secret_names_that_follow_the_rule_are_taken() {
        for good in ["A", "_", "_A1", "OPENAI_API_KEY", &"A".repeat(128)] {
            assert!(SecretName::parse(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn secret_names_that_break_the_rule_are_refused() {
        let long = "A".repeat(129);
        for bad in ["", "1A", "my-key", "a", "A-B", "A/B", "../B", "A B", "A\0", "Á", "Ａ", "A%2F", &long] {
            assert_eq!(SecretName::parse(bad), Err(NameError::Secret), "{bad}");
        }
    }

    #[test]
    fn a_row_may_name_the_system_tenant_and_no_other_of_its_kind() {
        assert_eq!(Tenant::from_row("_system"), Ok(Tenant::system()));
        assert!(Tenant::system().is_system());
        assert!(Tenant::from_row("_other").is_err());
    }

    #[test]
    fn a_refusal_does_not_repeat_what_was_given() {
        let error = SecretName::parse("sk-live-canary").unwrap_err();
        assert!(!error.to_string().contains("canary"));
    }
}
