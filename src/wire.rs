//! The JSON shapes of the API, shared by http and client. v1's routes and field names are kept, so that v1's clients work.
//!
//! Values pass through [`Text`] and [`Base64`], which go straight from the parser into a [`SecretValue`]. An error of serde can quote
//! its input: the rooms that parse a body turn it into [`bad_json`]'s words, which hold a position and nothing else.

mod deks;
pub mod nodes;
mod rotation;
mod stream;

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use utoipa::ToSchema;
use zeroize::Zeroizing;

use crate::crypto::SecretValue;
use crate::model::{Delivery, Micros, SecretName, SecretRecord, SecretVersion, Tenant};

pub use deks::{
    QuarantineAnswer, QuarantineMode, QuarantineRequest, RotateDekAnswer, RotateDekMode, RotateDekRequest, ShredAnswer,
    ShredMode, ShredRequest,
};
pub use rotation::{
    DestroyOldRequest, EscrowChoice, ProofOfCopy, RetiredKey, RotateMasterMode, RotateMasterRequest,
    RotationKeysAnswer, RotationReport, StagedKey, ValuesToChange,
};
pub use stream::{ProgressLine, StreamLine};

/// The most bytes that a request's body may have: a legal value of 65,536 bytes can take 393,218 bytes of JSON.
pub const MAX_BODY_BYTES: usize = 400 * 1024;
/// The default and the maximum of a page.
pub const MAX_PAGE: u32 = 1000;
/// The most secrets that one batch may name.
pub const MAX_BATCH: usize = 1000;

/// A secret's metadata; for one version, where a version was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretMetadata {
    /// The tenant.
    pub username: String,
    pub name: String,
    pub version: u64,
    /// RFC 3339; when the name was first set.
    pub created_at: String,
    /// RFC 3339; when this version was made or the metadata last changed.
    pub updated_at: String,
    /// `env`, `file` or `compose`: stored and echoed.
    pub delivery: String,
    /// v1's name for the same: `SECRET_DELIVERY_ENV` and so on.
    pub delivery_mode: String,
}

impl SecretMetadata {
    /// The metadata of the current version.
    #[must_use]
    pub fn of(secret: &SecretRecord) -> Self {
        Self::of_version(secret, secret.current, secret.updated_at)
    }

    /// The metadata of one version.
    #[must_use]
    pub fn of_version(secret: &SecretRecord, version: SecretVersion, updated_at: Micros) -> Self {
        Self {
            username: secret.tenant.to_string(),
            name: secret.name.to_string(),
            version: version.get(),
            created_at: secret.created_at.to_string(),
            updated_at: updated_at.to_string(),
            delivery: secret.delivery.to_string(),
            delivery_mode: delivery_mode(secret.delivery).to_owned(),
        }
    }
}

const fn delivery_mode(delivery: Delivery) -> &'static str {
    match delivery {
        Delivery::Env => "SECRET_DELIVERY_ENV",
        Delivery::File => "SECRET_DELIVERY_FILE",
        Delivery::Compose => "SECRET_DELIVERY_COMPOSE",
    }
}

/// A value as JSON text: any UTF-8, `\u0000` too.
pub struct Text(pub SecretValue);

/// A value as standard base64 with padding (RFC 4648, section 4).
pub struct Base64(pub SecretValue);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Text;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Text, E> {
                Ok(Text(SecretValue::new(Zeroizing::new(text.as_bytes().to_vec()))))
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Base64;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("standard base64 with padding")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Base64, E> {
                let input = text.as_bytes();
                let unreadable = || E::custom("not standard base64");
                let length = data_encoding::BASE64.decode_len(input.len()).map_err(|_| unreadable())?;
                let mut bytes = Zeroizing::new(vec![0; length]);
                let decoded = data_encoding::BASE64.decode_mut(input, &mut bytes).map_err(|_| unreadable())?;
                bytes.truncate(decoded);
                Ok(Base64(SecretValue::new(bytes)))
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

/// Which of `value` and `value_base64` were there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    #[error("give the value as `value` (UTF-8) or as `value_base64`")]
    Neither,
    #[error("give `value` or `value_base64`, not both")]
    Both,
}

/// The one value of a body.
///
/// # Errors
/// [`ValueError`] unless exactly one is there.
pub fn one_value(value: Option<Text>, value_base64: Option<Base64>) -> Result<SecretValue, ValueError> {
    match (value, value_base64) {
        (Some(Text(value)), None) | (None, Some(Base64(value))) => Ok(value),
        (None, None) => Err(ValueError::Neither),
        (Some(_), Some(_)) => Err(ValueError::Both),
    }
}

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

/// `POST /v1/secrets`
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetRequest {
    /// The tenant.
    pub username: String,
    pub name: String,
    /// The value, where it is UTF-8; at most 65,536 bytes. Never beside `value_base64`.
    #[schema(value_type = Option<String>)]
    pub value: Option<Text>,
    /// The value in standard base64.
    #[schema(value_type = Option<String>, format = "byte")]
    pub value_base64: Option<Base64>,
    /// `env` (the default of a new secret), `file` or `compose`; absent keeps what the secret has.
    pub delivery: Option<String>,
    /// Compare-and-set: the current version that must be there; 0: the secret must not exist.
    pub cas: Option<u64>,
}

/// [`SetRequest`] as a client writes it, with the value borrowed.
#[derive(Serialize)]
pub struct SetBody<'a> {
    username: &'a str,
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "wiped_text")]
    value_base64: Option<Zeroizing<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delivery: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cas: Option<u64>,
}

impl<'a> SetBody<'a> {
    #[must_use]
    pub fn new(tenant: &'a Tenant, name: &'a SecretName, value: &'a SecretValue) -> Self {
        let (value, value_base64) = as_json_takes_it(value);
        Self { username: tenant.as_str(), name: name.as_str(), value, value_base64, delivery: None, cas: None }
    }

    /// Sets how the secret is delivered; without it the secret keeps what it has.
    #[must_use]
    pub fn delivery(mut self, delivery: Option<Delivery>) -> Self {
        self.delivery = delivery.map(Delivery::as_str);
        self
    }

    /// Demands this current version; 0: the secret must not exist.
    #[must_use]
    pub fn cas(mut self, cas: Option<u64>) -> Self {
        self.cas = cas;
        self
    }

    /// At least as many bytes as its JSON has.
    fn json_len(&self) -> usize {
        let value = self.value.map_or(0, escaped_len);
        let base64 = self.value_base64.as_ref().map_or(0, |text| text.len());
        value + base64 + self.username.len() + self.name.len() + 200
    }
}

/// The request as JSON, in one allocation that is wiped when it goes.
///
/// # Errors
/// serde_json's; its text can hold the value.
pub fn set_json(body: &SetBody<'_>) -> Result<Zeroizing<Vec<u8>>, serde_json::Error> {
    let mut json = Zeroizing::new(Vec::with_capacity(body.json_len()));
    serde_json::to_writer(&mut *json, body)?;
    Ok(json)
}

/// A value as `value` where it is UTF-8, as `value_base64` where it is not.
fn as_json_takes_it(value: &SecretValue) -> (Option<&str>, Option<Zeroizing<String>>) {
    match std::str::from_utf8(value.expose()) {
        Ok(text) => (Some(text), None),
        Err(_) => (None, Some(Zeroizing::new(data_encoding::BASE64.encode(value.expose())))),
    }
}

/// `PUT /v1/secrets/{username}/{name}`
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PutRequest {
    #[schema(value_type = Option<String>)]
    pub value: Option<Text>,
    #[schema(value_type = Option<String>, format = "byte")]
    pub value_base64: Option<Base64>,
    pub delivery: Option<String>,
}

/// `POST /v1/secrets/{username}/batch-set`: all or nothing.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchSetRequest {
    /// 1 to 1000 secrets, each name at most once.
    pub secrets: Vec<BatchSetItem>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchSetItem {
    pub name: String,
    #[schema(value_type = Option<String>)]
    pub value: Option<Text>,
    #[schema(value_type = Option<String>, format = "byte")]
    pub value_base64: Option<Base64>,
    pub delivery: Option<String>,
    pub cas: Option<u64>,
}

/// `POST /v1/secrets/{username}/batch-get`
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchGetRequest {
    /// 1 to 1000 names, each at most once; absent: every secret of the tenant, where it has at most 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub names: Option<Vec<String>>,
}

/// `POST …/rollback`
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RollbackRequest {
    pub version: u64,
}

/// `POST …/destroy`
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DestroyRequest {
    /// 1 to 1000 versions.
    pub versions: Vec<u64>,
}

/// What a change answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChangeAnswer {
    /// `secret created`, `secret updated to version N`, `secret unchanged at version N`, `secret deleted`, …
    pub message: String,
    pub secret: SecretMetadata,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BatchSetAnswer {
    /// In the order of the request.
    pub results: Vec<ChangeAnswer>,
}

/// What a read answers, on the client's side; http writes the same shape with [`crate::wire::ValueAnswer`].
#[derive(Deserialize, ToSchema)]
pub struct GetAnswer {
    pub secret: SecretMetadata,
    /// The value, where its bytes are UTF-8.
    #[schema(value_type = Option<String>)]
    pub value: Option<Text>,
    /// The value in standard base64, where they are not.
    #[schema(value_type = Option<String>, format = "byte")]
    pub value_base64: Option<Base64>,
}

#[derive(Deserialize, ToSchema)]
pub struct BatchGetAnswer {
    pub secrets: Vec<GetAnswer>,
    /// The names that were asked for and are not there.
    pub missing: Vec<String>,
}

/// One secret with its value, borrowed for writing an answer.
#[derive(Serialize)]
pub struct ValueAnswer<'a> {
    secret: SecretMetadata,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "wiped_text")]
    value_base64: Option<Zeroizing<String>>,
}

#[expect(clippy::ref_option, reason = "serde's serialize_with gives the field as it is")]
fn wiped_text<S: Serializer>(text: &Option<Zeroizing<String>>, serializer: S) -> Result<S::Ok, S::Error> {
    text.as_ref().map(|text| text.as_str()).serialize(serializer)
}

impl<'a> ValueAnswer<'a> {
    #[must_use]
    pub fn new(secret: SecretMetadata, value: &'a SecretValue) -> Self {
        let (value, value_base64) = as_json_takes_it(value);
        Self { secret, value, value_base64 }
    }

    /// At least as many bytes as its JSON has, so that writing it never moves a value about in memory.
    fn json_len(&self) -> usize {
        let value = self.value.map_or(0, escaped_len);
        let base64 = self.value_base64.as_ref().map_or(0, |text| text.len());
        let names = self.secret.username.len() + self.secret.name.len();
        value + base64 + names + 400
    }
}

/// One answer with a value as JSON, in one allocation that is wiped when it goes.
///
/// # Errors
/// serde_json's; its text can hold the value.
pub fn value_json(answer: &ValueAnswer<'_>) -> Result<Zeroizing<Vec<u8>>, serde_json::Error> {
    let mut json = Zeroizing::new(Vec::with_capacity(answer.json_len()));
    serde_json::to_writer(&mut *json, answer)?;
    Ok(json)
}

/// Several, as [`BatchGetAnswer`] reads them.
///
/// # Errors
/// serde_json's; its text can hold a value.
pub fn batch_json(secrets: &[ValueAnswer<'_>], missing: &[String]) -> Result<Zeroizing<Vec<u8>>, serde_json::Error> {
    #[derive(Serialize)]
    struct Answer<'a> {
        secrets: &'a [ValueAnswer<'a>],
        missing: &'a [String],
    }
    let values: usize = secrets.iter().map(|secret| secret.json_len() + 1).sum();
    let names: usize = missing.iter().map(|name| name.len() + 3).sum();
    let mut json = Zeroizing::new(Vec::with_capacity(values + names + 100));
    serde_json::to_writer(&mut *json, &Answer { secrets, missing })?;
    Ok(json)
}

/// The length of a text as `serde_json` escapes it.
fn escaped_len(text: &str) -> usize {
    let one = |byte: u8| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0C => 2,
        0..0x20 => 6,
        _ => 1,
    };
    text.bytes().map(one).sum()
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ListAnswer {
    pub secrets: Vec<SecretMetadata>,
    /// Give it as `pageToken` for the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_page_token: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VersionsAnswer {
    pub secret: SecretMetadata,
    /// Whether the secret is deleted (and can be undeleted).
    pub deleted: bool,
    /// Newest first.
    pub versions: Vec<VersionItem>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct VersionItem {
    pub version: u64,
    /// `live` or `destroyed`.
    pub state: String,
    pub created_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destroyed_at: Option<String>,
}

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
pub struct HealthAnswer {
    /// `ok` or `unavailable`.
    pub status: String,
    /// Why it is not ready; on the socket only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting_for: Vec<String>,
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

    fn value(bytes: &[u8]) -> SecretValue {
        SecretValue::new(Zeroizing::new(bytes.to_vec()))
    }

    fn metadata() -> SecretMetadata {
        SecretMetadata::of(&SecretRecord {
            tenant: Tenant::parse(&"t".repeat(64)).unwrap(),
            name: SecretName::parse(&"N".repeat(128)).unwrap(),
            current: SecretVersion::new(i64::MAX as u64).unwrap(),
            delivery: Delivery::Compose,
            created_at: Micros(1_764_000_000_123_456),
            updated_at: Micros(1_764_000_000_123_456),
            deleted_at: None,
        })
    }

    #[test]
    fn an_answer_is_written_into_one_allocation_that_never_grows() {
        let control: String = (0..0x80_u8).map(char::from).cycle().take(65_536).collect();
        let everything = (0..=255_u8).cycle().take(65_536).collect::<Vec<_>>();
        for bytes in [b"".as_slice(), b"plain", "\0".repeat(65_536).as_bytes(), control.as_bytes(), &everything] {
            let value = value(bytes);
            let answer = ValueAnswer::new(metadata(), &value);
            let capacity = answer.json_len();
            let json = value_json(&answer).unwrap();
            assert!(json.len() <= capacity, "{} of {capacity}", json.len());
            let back: GetAnswer = serde_json::from_slice(&json).unwrap();
            assert_eq!(one_value(back.value, back.value_base64).unwrap().expose(), bytes);
        }
    }

    #[test]
    fn a_request_is_written_into_one_allocation_that_never_grows_and_reads_back() {
        let (tenant, name) = (Tenant::parse(&"t".repeat(64)).unwrap(), SecretName::parse(&"N".repeat(128)).unwrap());
        let everything = (0..=255_u8).cycle().take(65_536).collect::<Vec<_>>();
        for bytes in [b"".as_slice(), b"plain", "\0".repeat(65_536).as_bytes(), &everything] {
            let value = value(bytes);
            let body = SetBody::new(&tenant, &name, &value).delivery(Some(Delivery::Compose)).cas(Some(u64::MAX));
            let capacity = body.json_len();
            let json = set_json(&body).unwrap();
            assert!(json.len() <= capacity && json.len() <= MAX_BODY_BYTES, "{} of {capacity}", json.len());
            let back: SetRequest = serde_json::from_slice(&json).unwrap();
            assert_eq!((back.username.as_str(), back.name.as_str()), (tenant.as_str(), name.as_str()));
            assert_eq!((back.delivery.as_deref(), back.cas), (Some("compose"), Some(u64::MAX)));
            assert_eq!(one_value(back.value, back.value_base64).unwrap().expose(), bytes);
        }
    }

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
    fn exactly_one_of_value_and_value_base64_is_taken() {
        assert_eq!(one_value(None, None).err(), Some(ValueError::Neither));
        let both = one_value(Some(Text(value(b"a"))), Some(Base64(value(b"b"))));
        assert_eq!(both.err(), Some(ValueError::Both));
    }

    #[test]
    fn a_page_token_gives_back_its_name() {
        assert_eq!(page_token_name(&page_token("DB_URL")).as_deref(), Some("DB_URL"));
        assert_eq!(page_token_name("!"), None);
    }
}
