//! What can go wrong with Google, in the words of who has to mend it. No text of an answer is repeated but its status and its reason
//! code (`SERVICE_DISABLED`): a server that refuses a request may quote it, key and all.

use std::fmt;
use std::time::Duration;

use super::names::VersionNumber;
use super::transport::Failure;
use crate::model::SecretPath;

/// Why a call to Google gave nothing. The old key and the old backups are as they were.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GcpError {
    // Who is asking.
    #[error(
        "{call} failed: there are no Google credentials here ({why}). Where this runs, either attach a service account to the machine, \
         or run `gcloud auth application-default login` as this user, or name a credentials file in GOOGLE_APPLICATION_CREDENTIALS"
    )]
    NoCredentials { call: Call, why: String },
    #[error(
        "{call} failed: Google does not accept these credentials (HTTP 401{reason}); they are expired, revoked or another service's. \
         Make new ones: `gcloud auth application-default login`, or a new key for the service account"
    )]
    CredentialsRefused { call: Call, reason: Reason },
    #[error(
        "{call} was denied: these credentials lack {} there, or there is no such secret{reason}. Who administers it grants it: \
         `gcloud secrets add-iam-policy-binding {} --project={} --member=MEMBER --role={}`",
        .call.operation.permission(), .call.secret.secret(), .call.secret.project(), .call.operation.role()
    )]
    Denied { call: Call, reason: Reason },
    #[error(
        "{call} failed: the Secret Manager API is not enabled in its project: \
         `gcloud services enable secretmanager.googleapis.com --project={}`", .call.secret.project()
    )]
    ApiDisabled { call: Call },

    // What was asked for.
    #[error(
        "{call} failed: there is no such secret. `gcloud secrets list --project={0}` shows which there are; \
         `gcloud secrets create {1} --project={0} --replication-policy=automatic` makes it", .call.secret.project(), .call.secret.secret()
    )]
    NoSuchSecret { call: Call },
    #[error(
        "{call} failed: there is no such version. `gcloud secrets versions list {} --project={}` shows which there are",
        .call.secret.secret(), .call.secret.project()
    )]
    NoSuchVersion { call: Call },
    #[error(
        "{call} failed: the version is disabled. `gcloud secrets versions enable {} --secret={} --project={}` makes it readable again",
        Number(.call), .call.secret.secret(), .call.secret.project()
    )]
    VersionDisabled { call: Call },
    #[error(
        "{call} failed: the version is destroyed, and nobody can bring it back. Another version may hold the same key: \
         `gcloud secrets versions list {} --project={}`", .call.secret.secret(), .call.secret.project()
    )]
    VersionDestroyed { call: Call },

    // What came of it.
    #[error(
        "{call} gave version {number}, but Google did not confirm the checksum that was sent with it, so it does not count as a copy. \
         Try again; if it stays so, something between here and Google changes what is sent"
    )]
    NotConfirmed { call: Call, number: VersionNumber },
    #[error(
        "{call} failed: what came does not have its checksum (CRC32C {found:08x}, {}). Try again; if it stays so, something \
         between here and Google changes what is sent", Expected(*.expected)
    )]
    BadChecksum { call: Call, expected: Option<i64>, found: u32 },
    #[error("{call} failed: a version holds 1 to 65536 bytes, and this has {length}")]
    BadLength { call: Call, length: usize },
    #[error(
        "{call} failed: the answer has more than {limit} bytes, which no true one has. Check the configured endpoint ({endpoint})"
    )]
    AnswerTooLong { call: Call, limit: usize, endpoint: String },
    #[error(
        "{call} failed: {endpoint} answered with a redirect (HTTP {status}), and keys are not sent after one. Check the configured endpoint"
    )]
    Redirected { call: Call, status: u16, endpoint: String },
    #[error("{call} failed: {endpoint} did not answer as Secret Manager does ({what}). Check the configured endpoint")]
    NotUnderstood { call: Call, what: &'static str, endpoint: String },
    #[error("{call} failed: Google refused it (HTTP {status}{reason})")]
    Refused { call: Call, status: u16, reason: Reason },

    // Not now.
    #[error(
        "{call} failed: the project's quota for Secret Manager is used up (HTTP 429{reason}). Try again in a minute"
    )]
    QuotaExceeded { call: Call, reason: Reason },
    #[error(
        "{call} failed: Google answers HTTP {status}{reason} and did so when asked again. Try again later; https://status.cloud.google.com tells of outages"
    )]
    Unavailable { call: Call, status: u16, reason: Reason },
    #[error("{call} failed: {endpoint} cannot be reached ({why}). Check this host's network, DNS and proxy")]
    Unreachable { call: Call, endpoint: String, why: String },
    #[error(
        "{call} failed: the connection to {endpoint} broke before the answer was whole, also when asked again. Try again later"
    )]
    Interrupted { call: Call, endpoint: String },
    #[error("{call} was given up: {endpoint} gave no answer within {}. Try again later", Seconds(*.limit))]
    Deadline { call: Call, endpoint: String, limit: Duration },
}

impl GcpError {
    /// What was being done.
    #[must_use]
    pub const fn call(&self) -> &Call {
        match self {
            Self::NoCredentials { call, .. }
            | Self::CredentialsRefused { call, .. }
            | Self::Denied { call, .. }
            | Self::ApiDisabled { call }
            | Self::NoSuchSecret { call }
            | Self::NoSuchVersion { call }
            | Self::VersionDisabled { call }
            | Self::VersionDestroyed { call }
            | Self::NotConfirmed { call, .. }
            | Self::BadChecksum { call, .. }
            | Self::BadLength { call, .. }
            | Self::AnswerTooLong { call, .. }
            | Self::Redirected { call, .. }
            | Self::NotUnderstood { call, .. }
            | Self::Refused { call, .. }
            | Self::QuotaExceeded { call, .. }
            | Self::Unavailable { call, .. }
            | Self::Unreachable { call, .. }
            | Self::Interrupted { call, .. }
            | Self::Deadline { call, .. } => call,
        }
    }

    pub(super) fn of(failure: Failure, call: &Call, endpoint: &str, limit: Duration) -> Self {
        let (call, endpoint) = (call.clone(), endpoint.to_owned());
        match failure {
            Failure::NoCredentials { why, .. } => Self::NoCredentials { call, why },
            Failure::Unreachable { why } => Self::Unreachable { call, endpoint, why },
            Failure::Interrupted => Self::Interrupted { call, endpoint },
            Failure::Slow => Self::Deadline { call, endpoint, limit },
            Failure::Redirected { status } => Self::Redirected { call, status, endpoint },
            Failure::TooLong { limit } => Self::AnswerTooLong { call, limit, endpoint },
            Failure::NotUnderstood { what } => Self::NotUnderstood { call, what, endpoint },
            Failure::BadChecksum { expected, found } => Self::BadChecksum { call, expected, found },
            Failure::Status { status, reason } => Self::of_status(status, reason, call),
        }
    }

    fn of_status(status: u16, reason: Reason, call: Call) -> Self {
        match status {
            401 => Self::CredentialsRefused { call, reason },
            403 if reason.is("SERVICE_DISABLED") => Self::ApiDisabled { call },
            403 => Self::Denied { call, reason },
            404 if call.number.is_some() => Self::NoSuchVersion { call },
            404 => Self::NoSuchSecret { call },
            429 => Self::QuotaExceeded { call, reason },
            500..=599 => Self::Unavailable { call, status, reason },
            _ => Self::Refused { call, status, reason },
        }
    }
}

/// What is being done to what; reads as the beginning of a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub(super) operation: Operation,
    pub(super) secret: SecretPath,
    pub(super) number: Option<VersionNumber>,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.operation.doing())?;
        match self.number {
            Some(number) => f.write_str(&self.secret.version(number)),
            None => self.secret.fmt(f),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Add,
    List,
    Access,
    DescribeSecret,
}

impl Operation {
    const fn doing(self) -> &'static str {
        match self {
            Self::Add => "adding a version to ",
            Self::List => "listing the versions of ",
            Self::Access => "reading ",
            Self::DescribeSecret => "looking up ",
        }
    }

    const fn permission(self) -> &'static str {
        match self {
            Self::Add => "secretmanager.versions.add",
            Self::List => "secretmanager.versions.list",
            Self::Access => "secretmanager.versions.access",
            Self::DescribeSecret => "secretmanager.secrets.get",
        }
    }

    /// The smallest predefined role with that permission.
    const fn role(self) -> &'static str {
        match self {
            Self::Add => "roles/secretmanager.secretVersionAdder",
            Self::Access => "roles/secretmanager.secretAccessor",
            Self::List | Self::DescribeSecret => "roles/secretmanager.viewer",
        }
    }
}

/// Google's own word for a refusal, where it is one: capitals, digits and underscores.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reason(Option<String>);

impl Reason {
    pub(super) fn of(word: &str) -> Self {
        let allowed = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_';
        Self(((1..=63).contains(&word.len()) && word.bytes().all(allowed)).then(|| word.to_owned()))
    }

    pub(super) fn is(&self, word: &str) -> bool {
        self.0.as_deref() == Some(word)
    }

    pub(super) const fn is_known(&self) -> bool {
        self.0.is_some()
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_ref().map_or(Ok(()), |word| write!(f, ", {word}"))
    }
}

struct Number<'a>(&'a Call);

impl fmt::Display for Number<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.number {
            Some(number) => number.fmt(f),
            None => f.write_str("VERSION"),
        }
    }
}

pub(super) struct Expected(pub(super) Option<i64>);

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(sum) => write!(f, "and {sum:08x} was promised"),
            None => f.write_str("and none was promised"),
        }
    }
}

pub(super) struct Seconds(pub(super) Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} s", self.0.as_secs_f64())
    }
}
