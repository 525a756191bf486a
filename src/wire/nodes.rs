//! Nodes of a database, and what accepting a restored one means.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `GET /v1/admin/nodes`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodesAnswer {
    /// By id.
    pub nodes: Vec<NodeItem>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeItem {
    pub node_id: String,
    /// The process that spoke for it last.
    pub boot_id: String,
    /// Whether it is the node that answers.
    pub this: bool,
    /// Whether it was seen within 30 seconds.
    pub live: bool,
    /// RFC 3339.
    pub seen_at: String,
    /// The epoch that it serves; 0 while it does not hold the active key.
    pub epoch: u64,
    /// The master keys that lie in its key files, durable.
    pub durable_kids: Vec<String>,
}

/// `POST /v1/admin/nodes/{node}/forget`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ForgetAnswer {
    pub message: String,
}

/// `GET /v1/admin/accept-restore`: what accepting the database as it is would mean.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RestorePlanAnswer {
    /// Whether there is anything to accept: the database is behind what this node has seen of it.
    pub behind: bool,
    /// What is wrong, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Where the database is; absent where it holds no key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// The keys that the database needs, the active one first.
    pub needed: Vec<NeededKeyItem>,
    /// The kid of the key that is staged: it is retired, and its rotation ends. Absent where none is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retires: Option<String>,
    /// What is done again, by tenant.
    pub replay: Vec<ReplayItem>,
    /// The ids of the tokens that are revoked again.
    pub revokes: Vec<String>,
    /// Whether this node's log holds everything up to what it saw last.
    pub complete: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NeededKeyItem {
    pub kid: String,
    pub state: String,
    /// Whether this node holds it.
    pub held: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReplayItem {
    /// The tenant.
    pub username: String,
    /// `shred`, `schedule-shred` or `cancel-shred`.
    pub deed: String,
    /// RFC 3339; of `schedule-shred`, when its keys are destroyed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
}

/// `POST /v1/admin/accept-restore`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AcceptRestoreRequest {
    /// Where the database was when the plan was shown.
    pub epoch: u64,
    pub generation: u64,
    /// Accept it also where this node's log is not complete.
    #[serde(default)]
    pub accept_gaps: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AcceptRestoreAnswer {
    pub message: String,
    /// Where the database is now: above all that this node had seen.
    pub epoch: u64,
    pub generation: u64,
    /// What was done again.
    pub replayed: Vec<ReplayItem>,
    /// The ids of the tokens that were revoked again.
    pub revoked: Vec<String>,
    /// The kid of the key that was staged, and is retired now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retired: Option<String>,
}
