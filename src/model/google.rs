//! Names of Google's resources, checked when they are made, so that they go into a path and into a message as they are.

use std::fmt;

/// `projects/PROJECT/secrets/SECRET`: where a key's backups lie.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SecretPath {
    project: String,
    secret: String,
}

/// Not the name of a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a Secret Manager secret is named projects/PROJECT/secrets/SECRET: PROJECT is a project's id or number, SECRET has 1 to 255 of \
     A-Z a-z 0-9 _ -"
)]
pub struct SecretPathError;

impl SecretPath {
    /// # Errors
    /// [`SecretPathError`]. A version, an alias or a location in it is refused too: versions are given by number.
    pub fn parse(text: &str) -> Result<Self, SecretPathError> {
        let mut parts = text.split('/');
        match (parts.next(), parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some("projects"), Some(project), Some("secrets"), Some(secret), None)
                if is_project(project) && is_secret(secret) =>
            {
                Ok(Self { project: project.to_owned(), secret: secret.to_owned() })
            }
            _ => Err(SecretPathError),
        }
    }

    #[must_use]
    pub fn project(&self) -> &str {
        &self.project
    }

    /// The secret's id, without its project.
    #[must_use]
    pub fn secret(&self) -> &str {
        &self.secret
    }

    /// The full name of one of its versions, by its number.
    #[must_use]
    pub fn version(&self, number: impl fmt::Display) -> String {
        format!("{self}/versions/{number}")
    }
}

impl fmt::Display for SecretPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "projects/{}/secrets/{}", self.project, self.secret)
    }
}

/// Ids (`my-project`), numbers, and the old ids with a domain (`example.com:my-project`). How long an id is, Google says by knowing it.
fn is_project(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.' | b':');
    let starts_well = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    starts_well && text.len() <= 128 && text.bytes().all(allowed)
}

fn is_secret(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
    (1..=255).contains(&text.len()) && text.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_named_by_project_and_id_and_by_nothing_else() {
        for good in ["projects/p-1/secrets/s_A-9", "projects/123456/secrets/s", "projects/example.com:p/secrets/s"] {
            assert_eq!(SecretPath::parse(good).map(|path| path.to_string()), Ok(good.to_owned()));
        }
        for wrong in [
            "",
            "projects/p",
            "projects/p/secrets/",
            "projects//secrets/s",
            "projects/p/secrets/s/versions/1",
            "projects/p/locations/l/secrets/s",
            "projects/p/secrets/s/",
            "/projects/p/secrets/s",
            "projects/../secrets/s",
            "projects/-p/secrets/s",
            "projects/P/secrets/s",
            "projects/p/secrets/a b",
            "projects/p/secrets/a%2Fb",
            "projects/p/secrets/a:access",
            "projects/p/secrets/schlüssel",
            "projects/p/secrets/s?x=1",
            "projects/p\n/secrets/s",
        ] {
            assert_eq!(SecretPath::parse(wrong), Err(SecretPathError), "{wrong}");
        }
    }
}
