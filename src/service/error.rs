//! The one error that http knows, and how the errors of the layers below become it. What a caller may read is in the message; causes
//! that could help an attacker go to the log, at the place where they are turned into [`Failure`].

use crate::access::{Denied, Unauthenticated};
use crate::audit::Outcome;
use crate::keys::KeysError;
use crate::store::{Refusal, SealRefusal, StoreError};

use super::node::NodeError;

/// Why a call failed. Each message is for the caller and holds no value and no cause that is not theirs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Denied(String),
    /// Nobody is known to call.
    #[error("{0}")]
    Unauthenticated(String),
    #[error("{0}")]
    Conflict(String),
    #[error("{0}")]
    Precondition(String),
    #[error("{0}")]
    TooLarge(String),
    /// Database, key or audit are not available; trying again later helps.
    #[error("{0}")]
    Unavailable(String),
    #[error("{0}")]
    Internal(Failure),
    /// An administrator's work came to its end and left something undone: what, and what mends it. Never for other callers.
    #[error("{0}")]
    Incomplete(String),
}

/// The only words that an internal failure says outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("ciphertext authentication failed")]
    Authentication,
    #[error("quarantined")]
    Quarantined,
    #[error("internal error")]
    Other,
}

impl Error {
    pub(super) const fn outcome(&self) -> Outcome {
        match self {
            Self::Invalid(_) => Outcome::Invalid,
            Self::NotFound(_) => Outcome::NotFound,
            Self::Denied(_) | Self::Unauthenticated(_) => Outcome::Denied,
            Self::Conflict(_) => Outcome::Conflict,
            Self::Precondition(_) => Outcome::Precondition,
            Self::TooLarge(_) => Outcome::TooLarge,
            Self::Unavailable(_) => Outcome::Unavailable,
            Self::Internal(_) | Self::Incomplete(_) => Outcome::Failed,
        }
    }
}

impl From<Denied> for Error {
    fn from(denied: Denied) -> Self {
        Self::Denied(denied.to_string())
    }
}

impl From<Unauthenticated> for Error {
    fn from(unknown: Unauthenticated) -> Self {
        match unknown {
            Unauthenticated::Unavailable(_) => Self::Unavailable(unknown.to_string()),
            Unauthenticated::Missing | Unauthenticated::Malformed | Unauthenticated::Invalid => {
                Self::Unauthenticated(unknown.to_string())
            }
        }
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(_) => {
                tracing::warn!("{error}");
                Self::Unavailable("the database is not available".to_owned())
            }
            StoreError::UnknownOutcome(_) => {
                tracing::error!("{error}");
                Self::Unavailable(
                    "the database broke off at commit: whether the change was made is not known; read before trying again"
                        .to_owned(),
                )
            }
            StoreError::Corrupt { .. }
            | StoreError::Newer { .. }
            | StoreError::Unusable(_)
            | StoreError::Refused(_) => {
                tracing::error!("{error}");
                Self::Internal(Failure::Other)
            }
        }
    }
}

/// A [`KeysError`] without its context, as a sealer may say it from inside the store.
pub(super) fn seal_refusal(error: &KeysError) -> SealRefusal {
    match error {
        KeysError::Locked(_) => SealRefusal::Locked,
        KeysError::NotLoaded(kid) => SealRefusal::NotLoaded(*kid),
        KeysError::Quarantined => SealRefusal::Quarantined,
        KeysError::Shredded | KeysError::DoesNotOpen(_) | KeysError::WrongId => SealRefusal::DoesNotOpen,
        KeysError::NoRandom(_) => SealRefusal::NoRandom,
    }
}

impl From<NodeError> for Error {
    fn from(error: NodeError) -> Self {
        match error {
            NodeError::Store(error) => error.into(),
            error => {
                tracing::error!("{error}");
                Self::Unavailable(error.to_string())
            }
        }
    }
}

impl From<SealRefusal> for Error {
    fn from(refusal: SealRefusal) -> Self {
        match refusal {
            SealRefusal::Locked => Self::Unavailable("the keys are locked".to_owned()),
            SealRefusal::NotLoaded(kid) => Self::Unavailable(format!("master key {kid} is not loaded")),
            SealRefusal::Quarantined => Self::Internal(Failure::Quarantined),
            SealRefusal::DoesNotOpen => Self::Internal(Failure::Authentication),
            SealRefusal::NoRandom => Self::Internal(Failure::Other),
        }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NoTenant | Refusal::NoSecret | Refusal::NoVersion(_) | Refusal::Destroyed(_) => {
                Self::NotFound(refusal.to_string())
            }
            Refusal::Deleted => Self::NotFound("the secret is deleted; undelete it, or set it anew".to_owned()),
            Refusal::TenantBlocked => Self::Denied(refusal.to_string()),
            Refusal::NotDeleted | Refusal::Exhausted | Refusal::Batch => Self::Conflict(refusal.to_string()),
            Refusal::Precondition { current: Some(version) } => {
                Self::Precondition(format!("the current version is {version}"))
            }
            Refusal::Precondition { current: None } => Self::Precondition("the secret does not exist".to_owned()),
            Refusal::Seal(refusal) => refusal.into(),
            Refusal::NoActiveDek => {
                tracing::error!("a tenant's DEK was made and is not there");
                Self::Internal(Failure::Other)
            }
        }
    }
}
