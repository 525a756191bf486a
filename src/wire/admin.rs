//! What administration and health answer.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TenantsAnswer {
    pub tenants: Vec<TenantItem>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_page_token: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TenantItem {
    pub username: String,
    pub created_at: String,
    /// `active`; `blocked` while a shred is pending; `shredded`.
    pub state: String,
    /// RFC 3339; when a pending shred destroys its DEKs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shred_at: Option<String>,
    /// RFC 3339; when that was done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shredded_at: Option<String>,
    /// Secrets that can be read.
    pub secrets: u64,
    /// The active DEK's version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dek_version: Option<u32>,
}

/// `GET /v1/admin/status`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StatusAnswer {
    /// The daemon's release.
    pub version: String,
    pub ready: bool,
    pub store: StoreStatus,
    pub keys: KeysStatus,
    pub cache: CacheStatus,
    /// Absent when the store cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counts: Option<CountsStatus>,
    /// What an operator should do something about.
    pub warnings: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoreStatus {
    /// `sqlite` or `postgres`.
    pub kind: String,
    /// `reachable`, or why not.
    pub state: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeysStatus {
    /// `open` or `locked`.
    pub state: String,
    /// Why they are locked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The kids of the master keys in memory.
    pub loaded_kids: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active_kid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// Every master key that the database has known.
    pub master_keys: Vec<MasterKeyItem>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MasterKeyItem {
    pub kid: String,
    pub state: String,
    pub created_at: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CacheStatus {
    pub entries: u64,
    pub max_entries: u64,
    pub max_age_seconds: u64,
    pub hits: u64,
    pub misses: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CountsStatus {
    pub tenants: u64,
    pub secrets: u64,
    pub versions: u64,
    /// DEKs by state.
    pub deks: std::collections::BTreeMap<String, u64>,
}

/// `GET /livez` and `GET /readyz`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct HealthAnswer {
    /// `ok` or `unavailable`.
    pub status: String,
    /// Why it is not ready; on the socket only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting_for: Vec<String>,
    /// What an operator should do something about although it is ready; on the socket only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}
