//! What the daemon is told of copies of its database and of drills. No key and no content of a copy is ever in it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `POST /v1/admin/backup/database`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RecordDatabaseRequest {
    /// Where the copy is; 1 to 1024 bytes.
    pub target: String,
    /// What was read from the copy. Without it the copy counts as one of this database.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<CopiedStateItem>,
    /// Of a copy that was not read, when it was made, in microseconds since 1970; without it, and for a time to come, it is now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_at_micros: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CopiedStateItem {
    /// 32 hex digits.
    pub db_id: String,
    pub epoch: u64,
    pub generation: u64,
    /// When the copy was begun, in microseconds since 1970.
    pub taken_at_micros: i64,
}

/// `POST /v1/admin/backup/drill`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RecordDrillRequest {
    /// Of the database that was tried: 32 hex digits.
    pub db_id: String,
    /// Which database was tried, in words; 1 to 1024 bytes.
    pub source: String,
    /// The keys that were tried.
    pub kids: Vec<String>,
    pub deks_opened: u64,
    pub deks_failed: u64,
}

/// The answer to both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RecordedAnswer {
    pub message: String,
}
