//! The secret routes: what they take and what they answer.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use zeroize::Zeroizing;

use super::value::{Base64, Text, as_json_takes_it, escaped_len, wiped_text};
use crate::crypto::SecretValue;
use crate::model::{Delivery, Micros, SecretName, SecretRecord, SecretVersion, Tenant};

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{MAX_BODY_BYTES, one_value};

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
}
