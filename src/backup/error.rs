//! Why there is no copy.

use std::io;
use std::time::Duration;

use super::age::AgeError;
use super::paper::PaperError;
use crate::gcp::{EndpointError, GcpError};
use crate::model::SecretPathError;

/// Why a copy was not made, not found or not read. No variant carries a byte of a key.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error(transparent)]
    Google(#[from] GcpError),
    #[error("{name:?} is no secret to back up to: {cause}")]
    SecretName { name: String, cause: SecretPathError },
    #[error("the configured Secret Manager endpoint is not usable: {cause}")]
    Endpoint { cause: EndpointError },
    #[error("a deadline of {} s leaves no time for a call", .deadline.as_secs_f64())]
    NoTime { deadline: Duration },
    #[error(transparent)]
    Age(#[from] AgeError),
    #[error("this is an age file; name the file with the identity that opens it: --identity FILE")]
    NeedsIdentity,
    #[error(transparent)]
    Paper(#[from] PaperError),
    #[error("it cannot be read: {cause}")]
    Read { cause: io::Error },
    #[error("it has more than {limit} bytes, which no copy of a master key has")]
    TooLong { limit: usize },
}

/// What a caller can make of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A name, a file or a setting is not what it must be.
    Invalid,
    /// There is no such secret or version.
    NotFound,
    /// No credentials, or not their right.
    Denied,
    /// It may work later.
    Unavailable,
    /// It was tried, and failed.
    Failed,
}

impl BackupError {
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Google(error) => google(error),
            Self::SecretName { .. }
            | Self::Endpoint { .. }
            | Self::NoTime { .. }
            | Self::Age(_)
            | Self::NeedsIdentity
            | Self::Paper(_)
            | Self::TooLong { .. } => Kind::Invalid,
            Self::Read { .. } => Kind::Failed,
        }
    }
}

impl BackupError {
    /// Whether it is the copy that is no good, and not the way to it.
    #[must_use]
    pub const fn is_of_the_copy(&self) -> bool {
        matches!(
            self,
            Self::Google(
                GcpError::NoSuchVersion { .. }
                    | GcpError::VersionDisabled { .. }
                    | GcpError::VersionDestroyed { .. }
                    | GcpError::BadChecksum { .. }
                    | GcpError::BadLength { .. }
            )
        )
    }
}

const fn google(error: &GcpError) -> Kind {
    match error {
        GcpError::NoCredentials { .. } | GcpError::CredentialsRefused { .. } | GcpError::Denied { .. } => Kind::Denied,
        GcpError::NoSuchSecret { .. } | GcpError::NoSuchVersion { .. } | GcpError::VersionDestroyed { .. } => {
            Kind::NotFound
        }
        GcpError::QuotaExceeded { .. }
        | GcpError::Unavailable { .. }
        | GcpError::Unreachable { .. }
        | GcpError::Interrupted { .. }
        | GcpError::Deadline { .. } => Kind::Unavailable,
        GcpError::BadLength { .. } => Kind::Invalid,
        GcpError::ApiDisabled { .. }
        | GcpError::VersionDisabled { .. }
        | GcpError::NotConfirmed { .. }
        | GcpError::BadChecksum { .. }
        | GcpError::AnswerTooLong { .. }
        | GcpError::Redirected { .. }
        | GcpError::NotUnderstood { .. }
        | GcpError::Refused { .. } => Kind::Failed,
    }
}
