//! What ends a step before its time, and how it is answered.

use super::super::plan::Blocked;
use super::super::walk::WalkError;
use crate::keys::KeysError;
use crate::service::node::NodeError;
use crate::service::{Error, backup};
use crate::store::StoreError;

/// What ended a step before its time.
pub(in crate::service::rotation) enum Trouble {
    /// The database is away, or broke off at a commit: look again.
    Away(String),
    /// What was planned does not hold any more, or something needs an operator.
    Failed(Error),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        match error {
            Error::Unavailable(why) => Self::Away(why),
            error => Self::Failed(error),
        }
    }
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(_) | StoreError::UnknownOutcome(_) => Self::Away(error.to_string()),
            StoreError::Corrupt { .. } => Self::Failed(Error::Incomplete(format!(
                "{error}. Restore that row from a backup; then go on with `containarium admin rotate-master --resume`"
            ))),
            StoreError::Newer { .. } | StoreError::Unusable(_) | StoreError::Refused(_) => {
                tracing::error!("{error}");
                Self::Failed(Error::Incomplete(error.to_string()))
            }
        }
    }
}

impl From<NodeError> for Trouble {
    fn from(error: NodeError) -> Self {
        match error {
            NodeError::Store(error) => error.into(),
            other => Self::Failed(Error::Unavailable(other.to_string())),
        }
    }
}

impl From<WalkError> for Trouble {
    fn from(error: WalkError) -> Self {
        match error {
            WalkError::Store(error) => error.into(),
            WalkError::Keys(KeysError::NotLoaded(kid)) => Self::Failed(blocked(&Blocked::NotLoaded(kid))),
            WalkError::Keys(error) => Self::Failed(Error::Unavailable(error.to_string())),
            WalkError::Stopping(error) => Self::Failed(error),
            WalkError::Panicked => panicked(),
            WalkError::NoThread(error) => Self::Failed(Error::Unavailable(format!(
                "no thread was started: {error}. Then go on with `containarium admin rotate-master --resume`"
            ))),
        }
    }
}

pub(super) fn panicked() -> Trouble {
    Trouble::Failed(Error::Incomplete("a thread ended with a panic; the daemon's log has its place".to_owned()))
}

/// A reason to stop as an answer: 404 for what is not there, 409 for what the state does not allow, 503 for what must come, else 500.
pub(in crate::service::rotation) fn blocked(why: &Blocked) -> Error {
    let text = why.to_string();
    match why {
        Blocked::NotPushed { trouble, .. } => backup::Trouble { class: trouble.class, why: text }.into_error(),
        Blocked::Regressed(_)
        | Blocked::NotLoaded(_)
        | Blocked::NoStagedFile(_)
        | Blocked::LostNodes { .. }
        | Blocked::Promotion(_) => Error::Unavailable(text),
        Blocked::UnknownNode(_) | Blocked::UnknownKey(_) | Blocked::NothingStaged => Error::NotFound(text),
        Blocked::WrongCopy { .. } => Error::Invalid(text),
        Blocked::Corrupt(_) | Blocked::Damage { .. } | Blocked::NoProgress(_) | Blocked::Verification(_) => {
            Error::Incomplete(text)
        }
        Blocked::Busy { .. }
        | Blocked::StagedAlready(_)
        | Blocked::UnderWay(_)
        | Blocked::GivenUp
        | Blocked::PastTheFlip(_)
        | Blocked::NotRetired { .. }
        | Blocked::TooEarly { .. }
        | Blocked::NotReadBack(_)
        | Blocked::NotSeen { .. }
        | Blocked::Quarantined { .. } => Error::Conflict(text),
    }
}
