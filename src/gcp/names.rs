//! The names of versions.

use std::fmt;
use std::num::NonZeroU64;

use crate::model::SecretPath;

/// The number of a version, from 1. There is no type for `latest`: it is the most recently created version, so the upload of a
/// rotation that failed is what it names, and it may lag behind; reads by number do neither.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VersionNumber(NonZeroU64);

impl VersionNumber {
    /// Of a name in an answer, where it is a version of this secret. The project is not compared: asked by its id, Google answers
    /// with its number.
    pub(super) fn from_answer(name: &str, secret: &SecretPath) -> Option<Self> {
        let mut parts = name.split('/');
        match (parts.next(), parts.next(), parts.next(), parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some("projects"), Some(_), Some("secrets"), Some(id), Some("versions"), Some(number), None)
                if id == secret.secret() && number.bytes().all(|b| b.is_ascii_digit()) =>
            {
                number.parse().ok().map(Self)
            }
            _ => None,
        }
    }
}

impl From<NonZeroU64> for VersionNumber {
    fn from(number: NonZeroU64) -> Self {
        Self(number)
    }
}

impl From<VersionNumber> for NonZeroU64 {
    fn from(number: VersionNumber) -> Self {
        number.0
    }
}

impl fmt::Display for VersionNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_in_an_answer_counts_for_the_secret_that_was_asked_for_only() {
        let secret = SecretPath::parse("projects/p/secrets/s").unwrap();
        let number = |name| VersionNumber::from_answer(name, &secret).map(|number| number.0.get());
        assert_eq!(number("projects/987/secrets/s/versions/7"), Some(7));
        for wrong in [
            "projects/987/secrets/t/versions/7",
            "projects/987/secrets/s/versions/latest",
            "projects/987/secrets/s/versions/+7",
            "projects/987/secrets/s/versions/0",
            "projects/987/secrets/s/versions/",
            "projects/987/secrets/s",
            "projects/987/secrets/s/versions/7/x",
            "projects/987/secrets/s/versions/99999999999999999999",
        ] {
            assert_eq!(number(wrong), None, "{wrong}");
        }
    }
}
