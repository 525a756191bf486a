//! Tokens. No shape but [`CreateTokenAnswer`] ever holds one, and that has no `Debug`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `POST /v1/admin/tokens`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct CreateTokenRequest {
    /// What people call it: 1 to 64 of A-Z, a-z, 0-9 and `. _ - @ : / +`.
    pub name: String,
    pub tenants: Vec<String>,
    /// Of `read`, `list`, `write`, `delete` and `destroy`.
    pub allow: Vec<String>,
    /// Patterns of secrets' names, in which `*` stands for any run of characters; absent for every name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub names: Option<Vec<String>>,
    /// Absent for a token that never expires.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
    /// Who asked for it, by the rule of `name`; absent for the caller's uid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
}

/// The token, told this once.
#[derive(Serialize, Deserialize, ToSchema)]
pub struct CreateTokenAnswer {
    pub message: String,
    pub token: String,
    pub details: TokenItem,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TokenItem {
    /// Public; a token has it between its first and its second `_`.
    pub id: String,
    pub name: String,
    /// `good`, `expired`, `revoked`, or `forged`: written or changed by somebody else than a daemon, and good for nothing.
    pub state: String,
    pub tenants: Vec<String>,
    pub allow: Vec<String>,
    /// Absent for every name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub names: Option<Vec<String>>,
    /// RFC 3339.
    pub created_at: String,
    pub created_by: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<String>,
    /// Up to a minute late; absent where it was never used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<String>,
}

/// `GET /v1/admin/tokens`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TokensAnswer {
    /// By id.
    pub tokens: Vec<TokenItem>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_page_token: Option<String>,
}

/// `POST /v1/admin/tokens/revoke`: one of these.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RevokeTokensRequest {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(default)]
    pub all: bool,
    /// Those that have a right to this tenant, others beside it or not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RevokeTokensAnswer {
    pub message: String,
    /// Those that were good, or had expired, until now.
    pub revoked: Vec<TokenItem>,
    /// Ids of rows that somebody else than a daemon wrote: they are good for nothing, and stay as they are.
    pub forged: Vec<String>,
}
