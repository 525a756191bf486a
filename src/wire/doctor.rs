//! What `admin doctor` finds.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `GET /v1/admin/doctor`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DoctorAnswer {
    /// The worst of the checks: `ok`, `warning` or `failure`.
    pub verdict: String,
    pub checks: Vec<CheckItem>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CheckItem {
    /// Stable: `daemon`, `database`, `key-file`, `clock`, `keys`, `key-backup`, `key-backup-read-back`, `database-backup`, `drill`,
    /// `rotation`, `data-disk`, `key-disk`, `kms`, `issuers`, `memory`, `node`. One that cannot be made is left out.
    pub name: String,
    /// `ok`, `warning` or `failure`.
    pub verdict: String,
    /// What was found, in words.
    pub finding: String,
    /// The command that mends it; absent where the finding names it, or there is nothing to mend.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}
