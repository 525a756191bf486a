//! Copies of the master keys off the host.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `POST /v1/admin/backup/push`; the body may be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PushRequest {
    /// Copies a wrapped key file too that nothing but one KMS key is known to open.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub kms_is_the_only_way_back: bool,
}

/// The last line of `POST /v1/admin/backup/push`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PushAnswer {
    /// Of each key in each configured secret.
    pub copies: Vec<PushedCopy>,
    /// Keys that the database wants and that lie in none of this node's key files.
    pub not_here: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PushedCopy {
    pub kid: String,
    /// `projects/P/secrets/S`
    pub secret: String,
    /// `pushed`, `present` (the same bytes, confirmed before) or `missing`.
    pub state: String,
    /// The version's full name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locator: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<TroubleItem>,
}

/// What one secret answered instead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TroubleItem {
    /// `invalid`, `not-found`, `denied`, `conflict`, `unavailable` or `failed`.
    pub class: String,
    pub why: String,
}

/// `GET /v1/admin/backup`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BackupListAnswer {
    /// In the order of the settings.
    pub secrets: Vec<BackupSecretItem>,
    /// Every master key that may still open something.
    pub keys: Vec<BackupKeyItem>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BackupSecretItem {
    pub secret: String,
    /// The newest first; absent where it could not be listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub versions: Option<Vec<BackupVersionItem>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<TroubleItem>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupVersionItem {
    pub number: u64,
    /// `enabled`, `disabled`, `destroyed` or `unknown`.
    pub state: String,
    /// RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at: Option<String>,
    /// Absent where nothing is known of what it holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kid: Option<String>,
    /// When Google confirmed the checksum of what was pushed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confirmed_at: Option<String>,
    /// When it was last read back and compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_back_at: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupKeyItem {
    pub kid: String,
    pub state: String,
    /// Whether something does not open without it.
    pub needed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confirmed_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_back_at: Option<String>,
}

/// `POST /v1/admin/backup/read-back`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReadBackRequest {
    pub copies: Vec<ReadBackItem>,
    /// Copies that were no good.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unread: Vec<UnreadItem>,
}

/// A recorded copy in Secret Manager that is not the key, or cannot be had for a reason of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UnreadItem {
    pub kid: String,
    /// The version's full name.
    pub locator: String,
    pub why: String,
}

/// A copy that was read, and found to hold this key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReadBackItem {
    pub kid: String,
    /// `secret-manager`, `age`, `paper` or `file`.
    pub target: String,
    /// The version's full name, or the file's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locator: Option<String>,
    /// Of the copy's bytes, 64 hex digits.
    pub sha256: String,
    /// Of a wrapped key: the versions of KMS keys that it is wrapped with, by their names.
    #[serde(rename = "kmsVersions", default, skip_serializing_if = "Vec::is_empty")]
    pub kms_versions: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReadBackAnswer {
    pub message: String,
}
