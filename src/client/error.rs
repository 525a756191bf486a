//! Why a request has no good answer.

use std::path::PathBuf;
use std::time::Duration;

use super::transport::Answer;
use crate::wire::Problem;

/// The most characters of a daemon's words that go on.
const MAX_DETAIL: usize = 2000;

/// The messages hold paths, numbers and a problem's `detail` (which has control characters, if the daemon sent some), and no other
/// part of an answer: one that could not be read may hold a value.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no socket, or nobody listens on it.
    #[error("no daemon listens on {}", .socket.display())]
    NoDaemon { socket: PathBuf },
    /// The socket is another's.
    #[error("no permission for the socket {}", .socket.display())]
    SocketDenied { socket: PathBuf },
    #[error("cannot connect to {}: {cause}", .socket.display())]
    NoConnection { socket: PathBuf, cause: std::io::Error },
    #[error("cannot reach {server}: {cause}")]
    NoServer { server: String, cause: std::io::Error },
    /// It answers, and there is no speaking TLS with it.
    #[error("no TLS with {server}: {why}")]
    NoTls { server: String, why: String },
    #[error("the certificate of {server} is not trusted: {why}")]
    Untrusted { server: String, why: String },
    #[error("the request could not be written")]
    Unsendable,
    #[error("the daemon did not answer within {} seconds", .after.as_secs_f32())]
    Deadline { after: Duration },
    #[error("the connection broke before the answer was complete")]
    Broken,
    #[error("the answer has more than {max_bytes} bytes, and was not read")]
    TooLarge { max_bytes: usize },
    /// The body is not what the API answers. Some other program on the socket, or another release.
    #[error(
        "the answer (status {status}) is not one of this API: does another program or another release listen there?"
    )]
    Unreadable { status: u16 },
    /// A problem (RFC 9457).
    #[error("{detail}")]
    Problem {
        status: u16,
        detail: String,
        request_id: String,
        /// Seconds, from Retry-After.
        retry_after: Option<u64>,
    },
}

/// What kind of failure it is: the command line has an exit code for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorClass {
    Failed,
    NotFound,
    Denied,
    Unavailable,
    Conflict,
}

/// Whether a change that was asked for may have been made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    None,
    Unknown,
}

impl ClientError {
    pub(super) fn of_answer(answer: &Answer) -> Self {
        let status = answer.status.as_u16();
        match serde_json::from_slice::<Problem>(&answer.body) {
            Ok(problem) => Self::of_problem(Problem { status, ..problem }, answer.retry_after),
            Err(_) => Self::Unreadable { status },
        }
    }

    pub(super) fn of_problem(problem: Problem, retry_after: Option<u64>) -> Self {
        let cut = |text: String| text.chars().take(MAX_DETAIL).collect();
        Self::Problem {
            status: problem.status,
            detail: cut(problem.detail),
            request_id: cut(problem.request_id),
            retry_after,
        }
    }

    #[must_use]
    pub const fn class(&self) -> ErrorClass {
        match self {
            Self::SocketDenied { .. } => ErrorClass::Denied,
            Self::NoDaemon { .. }
            | Self::NoConnection { .. }
            | Self::NoServer { .. }
            | Self::Deadline { .. }
            | Self::Broken => ErrorClass::Unavailable,
            // Trying again does not help these.
            Self::NoTls { .. } | Self::Untrusted { .. } | Self::Unsendable | Self::TooLarge { .. } => {
                ErrorClass::Failed
            }
            Self::Unreadable { status } | Self::Problem { status, .. } => match *status {
                404 => ErrorClass::NotFound,
                401 | 403 => ErrorClass::Denied,
                409 | 412 => ErrorClass::Conflict,
                429 | 503 => ErrorClass::Unavailable,
                _ => ErrorClass::Failed,
            },
        }
    }

    /// What became of a change: a problem says itself what it left behind.
    #[must_use]
    pub const fn effect(&self) -> Effect {
        match self {
            Self::Deadline { .. } | Self::Broken | Self::TooLarge { .. } | Self::Unreadable { status: 200..=299 } => {
                Effect::Unknown
            }
            _ => Effect::None,
        }
    }
}
