//! The JSON shapes of the API, shared by http and client. v1's routes and field names are kept, so that v1's clients work.
//!
//! Values pass through [`Text`] and [`Base64`], which go straight from the parser into a [`crate::crypto::SecretValue`]. An error of serde can quote
//! its input: the rooms that parse a body turn it into [`bad_json`]'s words, which hold a position and nothing else.

mod admin;
pub mod backup;
pub mod backup_log;
mod deks;
pub mod doctor;
pub mod nodes;
mod rotation;
mod secrets;
mod stream;
pub mod tokens;
mod value;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use admin::{
    CacheStatus, CountsStatus, HealthAnswer, KeysStatus, MasterKeyItem, StatusAnswer, StoreStatus, TenantItem,
    TenantsAnswer,
};
pub use secrets::{
    BatchGetAnswer, BatchGetRequest, BatchSetAnswer, BatchSetItem, BatchSetRequest, ChangeAnswer, DestroyRequest,
    GetAnswer, ListAnswer, PutRequest, RollbackRequest, SecretMetadata, SetBody, SetRequest, ValueAnswer, VersionItem,
    VersionsAnswer, batch_json, set_json, value_json,
};
pub use value::{Base64, Text, ValueError, one_value};

pub use deks::{
    QuarantineAnswer, QuarantineMode, QuarantineRequest, RotateDekAnswer, RotateDekMode, RotateDekRequest, ShredAnswer,
    ShredMode, ShredRequest,
};
pub use rotation::{
    DestroyOldRequest, EscrowChoice, ProofOfCopy, RetiredKey, RotateMasterMode, RotateMasterRequest,
    RotationKeysAnswer, RotationReport, StagedKey, ValuesToChange, WrappedForAnswer,
};
pub use stream::{ProgressLine, StreamLine};

/// The most bytes that a request's body may have: a legal value of 65,536 bytes can take 393,218 bytes of JSON.
pub const MAX_BODY_BYTES: usize = 400 * 1024;
/// The default and the maximum of a page.
pub const MAX_PAGE: u32 = 1000;
/// The most secrets that one batch may name.
pub const MAX_BATCH: usize = 1000;

/// What may be said of JSON that did not parse: where, and nothing of what.
#[must_use]
pub fn bad_json(error: &serde_json::Error) -> String {
    let what = match error.classify() {
        serde_json::error::Category::Data => "a field is unknown, missing, given twice or of the wrong type",
        serde_json::error::Category::Eof => "it ends too early",
        serde_json::error::Category::Syntax | serde_json::error::Category::Io => "it is not JSON",
    };
    format!("the body could not be read: {what} (line {}, column {})", error.line(), error.column())
}

/// RFC 9457 `application/problem+json`, with v1's fields beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// `about:blank`: the status says which problem it is (RFC 9457, section 4.2.1).
    #[serde(rename = "type")]
    pub kind: String,
    pub title: String,
    pub status: u16,
    pub detail: String,
    /// v1's gRPC code.
    pub code: u16,
    /// v1's name for `detail`.
    pub message: String,
    pub request_id: String,
}

/// A page token is base64url of the last name of the page before.
#[must_use]
pub fn page_token(last: &str) -> String {
    data_encoding::BASE64URL_NOPAD.encode(last.as_bytes())
}

/// The name in a page token; `None` where it is none.
#[must_use]
pub fn page_token_name(token: &str) -> Option<String> {
    String::from_utf8(data_encoding::BASE64URL_NOPAD.decode(token.as_bytes()).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_that_does_not_parse_is_described_without_a_word_of_it() {
        for body in [
            r#"{"username":"a","name":"A","value":"canary""#,
            r#"{"username":"a","name":"A","canary":1}"#,
            r#"{"username":"a","name":"A","value":{"canary":1}}"#,
            r#"{"username":"a","name":"A","value_base64":"canary!"}"#,
            "canary",
        ] {
            let error = serde_json::from_str::<SetRequest>(body).err().unwrap();
            assert!(!bad_json(&error).contains("canary"), "{body}");
        }
    }

    #[test]
    fn a_page_token_gives_back_its_name() {
        assert_eq!(page_token_name(&page_token("DB_URL")).as_deref(), Some("DB_URL"));
        assert_eq!(page_token_name("!"), None);
    }
}
