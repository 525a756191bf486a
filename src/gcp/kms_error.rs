//! What can go wrong with Cloud KMS, in the words of who has to mend it. As with Secret Manager, no text of an answer is repeated but its
//! status and its reason code.

use std::fmt;
use std::time::Duration;

use super::error::{Expected, Reason, Seconds};
use super::transport::Failure;
use crate::model::KmsKey;

/// Why a call to Cloud KMS gave nothing. No file was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KmsError {
    // Who is asking.
    #[error(
        "{call} failed: there are no Google credentials here ({why}). Where this runs, either attach a service account to the machine, \
         or run `gcloud auth application-default login` as this user, or name a credentials file in GOOGLE_APPLICATION_CREDENTIALS"
    )]
    NoCredentials { call: KmsCall, why: String },
    #[error(
        "{call} failed: Google does not accept these credentials (HTTP 401{reason}); they are expired, revoked or another service's. \
         Make new ones: `gcloud auth application-default login`, or a new key for the service account"
    )]
    CredentialsRefused { call: KmsCall, reason: Reason },
    #[error(
        "{call} was denied: these credentials lack {} on it, or there is no such key{reason}. Who administers it grants it: \
         `gcloud kms keys add-iam-policy-binding {} --member=MEMBER --role={}`",
        .call.operation.permission(), Flags(&.call.key), .call.operation.role()
    )]
    Denied { call: KmsCall, reason: Reason },
    #[error(
        "{call} failed: the Cloud KMS API is not enabled in its project: `gcloud services enable cloudkms.googleapis.com --project={}`",
        Project(&.call.key)
    )]
    ApiDisabled { call: KmsCall },

    // The key.
    #[error(
        "{call} failed: there is no such key. `gcloud kms keys list --keyring={} --location={} --project={}` shows which there are",
        .call.key.parts()[2], .call.key.parts()[1], .call.key.parts()[0]
    )]
    NoSuchKey { call: KmsCall },
    #[error(
        "{call} failed: the version of the key that is needed is disabled. Who administers it enables it again: \
         `gcloud kms keys versions enable VERSION --key={} --keyring={} --location={} --project={}` (the key file's keyVersion names it)",
        .call.key.parts()[3], .call.key.parts()[2], .call.key.parts()[1], .call.key.parts()[0]
    )]
    VersionDisabled { call: KmsCall },
    #[error(
        "{call} failed: the version of the key that is needed is destroyed, or scheduled for it. Until the date of its destruction \
         `gcloud kms keys versions restore VERSION --key={} --keyring={} --location={} --project={}` and then `… enable` bring it back; \
         after it only another recipient of the key file, or a copy of the raw key, opens what it wrapped",
        .call.key.parts()[3], .call.key.parts()[2], .call.key.parts()[1], .call.key.parts()[0]
    )]
    VersionDestroyed { call: KmsCall },
    #[error(
        "{call} failed: the version of the key that is needed cannot be used (HTTP 400{reason}): it is disabled, scheduled for destruction \
         or destroyed. `gcloud kms keys versions list --key={} --keyring={} --location={} --project={}` says which",
        .call.key.parts()[3], .call.key.parts()[2], .call.key.parts()[1], .call.key.parts()[0]
    )]
    VersionUnusable { call: KmsCall, reason: Reason },
    #[error(
        "{call} failed: the key did not encrypt this ciphertext, or it was changed, or it belongs to another master key \
         (HTTP 400{reason}). Take the key file from a copy: `containarium backup restore`"
    )]
    DoesNotDecrypt { call: KmsCall, reason: Reason },

    // What came of it.
    #[error(
        "{call} gave a ciphertext, but Google did not confirm the checksums that were sent with the key, so nothing was written. \
         Try again; if it stays so, something between here and Google changes what is sent"
    )]
    NotConfirmed { call: KmsCall },
    #[error(
        "{call} failed: what came does not have its checksum (CRC32C {found:08x}, {}). Try again; if it stays so, something \
         between here and Google changes what is sent", Expected(*.expected)
    )]
    BadChecksum { call: KmsCall, expected: Option<i64>, found: u32 },
    #[error(
        "{call} failed: the answer has more than {limit} bytes, which no true one has. Check the configured endpoint ({endpoint})"
    )]
    AnswerTooLong { call: KmsCall, limit: usize, endpoint: String },
    #[error(
        "{call} failed: {endpoint} answered with a redirect (HTTP {status}), and keys are not sent after one. Check the configured endpoint"
    )]
    Redirected { call: KmsCall, status: u16, endpoint: String },
    #[error("{call} failed: {endpoint} did not answer as Cloud KMS does ({what}). Check the configured endpoint")]
    NotUnderstood { call: KmsCall, what: &'static str, endpoint: String },
    #[error("{call} failed: Google refused it (HTTP {status}{reason})")]
    Refused { call: KmsCall, status: u16, reason: Reason },

    // Not now.
    #[error("{call} failed: the project's quota for Cloud KMS is used up (HTTP 429{reason}). Try again in a minute")]
    QuotaExceeded { call: KmsCall, reason: Reason },
    #[error(
        "{call} failed: Google answers HTTP {status}{reason} and did so when asked again. Try again later; https://status.cloud.google.com tells of outages"
    )]
    Unavailable { call: KmsCall, status: u16, reason: Reason },
    #[error("{call} failed: {endpoint} cannot be reached ({why}). Check this host's network, DNS and proxy")]
    Unreachable { call: KmsCall, endpoint: String, why: String },
    #[error(
        "{call} failed: the connection to {endpoint} broke before the answer was whole, also when asked again. Try again later"
    )]
    Interrupted { call: KmsCall, endpoint: String },
    #[error("{call} was given up: {endpoint} gave no answer within {}. Try again later", Seconds(*.limit))]
    Deadline { call: KmsCall, endpoint: String, limit: Duration },
}

/// What a caller can make of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KmsTrouble {
    Denied,
    NotFound,
    /// It may work later.
    Unavailable,
    Failed,
}

impl KmsError {
    #[must_use]
    pub const fn trouble(&self) -> KmsTrouble {
        match self {
            Self::NoCredentials { .. } | Self::CredentialsRefused { .. } | Self::Denied { .. } => KmsTrouble::Denied,
            Self::NoSuchKey { .. } | Self::VersionDestroyed { .. } => KmsTrouble::NotFound,
            Self::QuotaExceeded { .. }
            | Self::Unavailable { .. }
            | Self::Unreachable { .. }
            | Self::Interrupted { .. }
            | Self::Deadline { .. } => KmsTrouble::Unavailable,
            _ => KmsTrouble::Failed,
        }
    }

    /// Whether it is an answer about what was to be opened: that this key does not open it, or not any more. One whose version is disabled opens
    /// nothing until somebody changes that.
    #[must_use]
    pub const fn is_of_the_ciphertext(&self) -> bool {
        matches!(
            self,
            Self::NoSuchKey { .. }
                | Self::VersionDisabled { .. }
                | Self::VersionDestroyed { .. }
                | Self::VersionUnusable { .. }
                | Self::DoesNotDecrypt { .. }
        )
    }

    pub(super) fn of(failure: Failure, call: &KmsCall, endpoint: &str, limit: Duration) -> Self {
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

    fn of_status(status: u16, reason: Reason, call: KmsCall) -> Self {
        match status {
            // google.rpc.PreconditionFailure's type, as Cloud KMS gives it.
            400 if reason.is("KEY_DISABLED") => Self::VersionDisabled { call },
            400 if reason.is("KEY_DESTROYED") || reason.is("KEY_DESTROY_SCHEDULED") => Self::VersionDestroyed { call },
            400 if reason.is("FAILED_PRECONDITION") => Self::VersionUnusable { call, reason },
            400 if call.operation == Operation::Decrypt => Self::DoesNotDecrypt { call, reason },
            401 => Self::CredentialsRefused { call, reason },
            403 if reason.is("SERVICE_DISABLED") => Self::ApiDisabled { call },
            403 => Self::Denied { call, reason },
            404 => Self::NoSuchKey { call },
            429 => Self::QuotaExceeded { call, reason },
            500..=599 => Self::Unavailable { call, status, reason },
            _ => Self::Refused { call, status, reason },
        }
    }
}

/// What is being done with which key; reads as the beginning of a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KmsCall {
    pub(super) operation: Operation,
    pub(super) key: KmsKey,
}

impl fmt::Display for KmsCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let doing = match self.operation {
            Operation::Encrypt => "encrypting with",
            Operation::Decrypt => "decrypting with",
        };
        write!(f, "{doing} KMS key {}", self.key)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Encrypt,
    Decrypt,
}

impl Operation {
    const fn permission(self) -> &'static str {
        match self {
            Self::Encrypt => "cloudkms.cryptoKeyVersions.useToEncrypt",
            Self::Decrypt => "cloudkms.cryptoKeyVersions.useToDecrypt",
        }
    }

    const fn role(self) -> &'static str {
        match self {
            Self::Encrypt => "roles/cloudkms.cryptoKeyEncrypter",
            Self::Decrypt => "roles/cloudkms.cryptoKeyDecrypter",
        }
    }
}

/// A key as gcloud is given it.
struct Flags<'a>(&'a KmsKey);

impl fmt::Display for Flags<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [project, location, ring, key] = self.0.parts();
        write!(f, "{key} --keyring={ring} --location={location} --project={project}")
    }
}

struct Project<'a>(&'a KmsKey);

impl fmt::Display for Project<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.parts()[0])
    }
}
