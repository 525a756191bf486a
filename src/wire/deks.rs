//! The JSON shapes of a DEK's later life: `rotate-dek`, `shred`, `quarantine`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::TenantItem;

/// `POST /v1/admin/rotate-dek`
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RotateDekRequest {
    /// The tenant; `_system` for the daemon's own secrets. Either this or `all`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// Every tenant, and `_system`.
    #[serde(default)]
    pub all: bool,
    #[serde(default)]
    pub mode: RotateDekMode,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum RotateDekMode {
    /// A new DEK becomes active; the old one decrypts only.
    #[default]
    Rotate,
    /// And every version is sealed anew under it, and the old DEKs are removed.
    Reencrypt,
    /// No new DEK: an interrupted re-encryption goes on.
    Resume,
}

/// The result of a `rotate-dek`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RotateDekAnswer {
    /// Tenants that were gone through; `_system` is one.
    pub tenants: u64,
    /// New DEKs.
    pub rotated: u64,
    /// Versions that were sealed anew.
    pub reencrypted: u64,
    /// Old DEKs that are gone.
    pub removed: u64,
    /// Quarantined DEKs, which were left with what they sealed.
    pub quarantined: u64,
    /// Tenants that a shred blocks, which were passed over.
    pub blocked: u64,
}

/// `POST /v1/admin/shred`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ShredRequest {
    /// The tenant.
    pub username: String,
    #[serde(default)]
    pub mode: ShredMode,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ShredMode {
    /// Blocks the tenant now and destroys its DEKs after seven days.
    #[default]
    Schedule,
    /// Destroys its DEKs now, whether a shred is pending or not.
    Now,
    /// Cancels a pending one.
    Cancel,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ShredAnswer {
    pub message: String,
    pub tenant: TenantItem,
    /// RFC 3339; when the last backup of the database that can open the tenant's secrets has expired. Absent where
    /// `[backup] database_retention` is not set, and after a cancel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub final_at: Option<String>,
}

/// `POST /v1/admin/quarantine`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct QuarantineRequest {
    /// The tenant; `_system` for the daemon's own secrets.
    pub username: String,
    pub dek_version: u32,
    #[serde(default)]
    pub mode: QuarantineMode,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum QuarantineMode {
    /// Sets a DEK aside that does not open.
    #[default]
    Quarantine,
    /// Takes one back that opens.
    Release,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct QuarantineAnswer {
    pub message: String,
    /// The tenant.
    pub username: String,
    pub dek_version: u32,
    /// `quarantined`; after a release `active` or `decrypt_only`.
    pub state: String,
}
