//! Rotating the master key, as it is asked for and answered.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `POST /v1/admin/rotate-master`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RotateMasterRequest {
    pub mode: RotateMasterMode,
    /// Absent: `gcp` where the daemon has `[backup.gcp]`, else `prove`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub escrow: Option<EscrowChoice>,
    /// Of `resume`: the copy of the staged key that was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<ProofOfCopy>,
    /// Ids of nodes that are away and get the key later.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub without_nodes: Vec<String>,
    /// Of `start` and `compromised`, and only where the key file is wrapped: the new key's file, made and wrapped by who asks. The JSON of a
    /// wrapped master key, as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wrapped_key: Option<String>,
    /// Goes on although nothing but one KMS key is known to open the new key.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub kms_is_the_only_way_back: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RotateMasterMode {
    /// A new key; every DEK is wrapped by it.
    Start,
    /// The same, for a key that somebody else may have: then every DEK is replaced too, and every version sealed anew.
    Compromised,
    /// Goes on with the one that is staged or under way.
    Resume,
    /// Changes nothing: counts, what would stop it, an estimate.
    DryRun,
}

/// How the key is to be known off the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EscrowChoice {
    /// By a copy in Google Secret Manager whose checksum was confirmed; the daemon makes it.
    Gcp,
    /// A copy is fed back from there.
    Prove,
    /// Not at all; recorded with who said so.
    WaiveOffHostCopy,
}

/// `POST /v1/admin/rotate-master/destroy-old`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DestroyOldRequest {
    /// A retired key's.
    pub kid: String,
    /// Only `waive-off-host-copy` changes anything: otherwise a copy must have been read back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub escrow: Option<EscrowChoice>,
    /// The copy of the old key that was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<ProofOfCopy>,
}

/// A copy of a master key that was read where it lies off the host. The key is not in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProofOfCopy {
    pub kid: String,
    /// Where it was read.
    pub locator: String,
    /// Of its bytes, 64 hex digits.
    pub sha256: String,
}

/// `GET /v1/admin/rotate-master/keys`: what a rotation, or the end of an old key, is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RotationKeysAnswer {
    /// The key file on the daemon's host; a copy on its file system is none off the host.
    pub key_file: String,
    /// What opens that file; absent where it is the key itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wrapped_for: Option<WrappedForAnswer>,
    /// The key that waits for its proof.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub staged: Option<StagedKey>,
    /// Those that wait for their end, the oldest first.
    pub retired: Vec<RetiredKey>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct WrappedForAnswer {
    /// `projects/P/locations/L/keyRings/R/cryptoKeys/K`
    pub kms_keys: Vec<String>,
    /// `age1…`
    pub age_recipients: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StagedKey {
    pub kid: String,
    /// Its file on the daemon's host.
    pub path: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RetiredKey {
    pub kid: String,
    pub retired_at: String,
}

/// The last line of a rotation that ended well, or came to where it waits for its operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RotationReport {
    /// `dry-run`, `staged` (it waits for the proof of a copy), `rotated`, `aborted`, `destroyed`, `nothing`.
    pub end: String,
    /// The key that it was about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kid: Option<String>,
    /// The key that was replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub old_kid: Option<String>,
    /// DEKs that were opened (dry run) or wrapped anew.
    pub deks: u64,
    /// What was done, in words.
    pub did: Vec<String>,
    /// Of a dry run: what would stop a rotation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
    /// What is left to do, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left: Vec<String>,
    /// After a compromise: tenants whose values whoever had the old key may have read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values_to_change: Vec<ValuesToChange>,
    /// Further such tenants, which are not named.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more_tenants: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ValuesToChange {
    pub username: String,
    pub secrets: u64,
    /// When the value was set that has stayed the longest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest_updated_at: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's skip_serializing_if gives a reference")]
const fn is_zero(value: &u64) -> bool {
    *value == 0
}
