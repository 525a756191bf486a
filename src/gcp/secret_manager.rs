//! Secret Manager: what backups need of it, and no more. Nothing here updates, disables, destroys or deletes.

use std::cmp::Reverse;

use bytes::Bytes;
use google_cloud_gax::error::Error as SdkError;
use google_cloud_gax::options::RequestOptions;
use google_cloud_gax::response::{Parts, Response};
use google_cloud_secretmanager_v1::client::SecretManagerService;
use google_cloud_secretmanager_v1::model::secret_version::State;
use google_cloud_secretmanager_v1::model::{
    AccessSecretVersionRequest, AccessSecretVersionResponse, AddSecretVersionRequest, GetSecretRequest,
    GetSecretVersionRequest, ListSecretVersionsRequest, ListSecretVersionsResponse, Secret, SecretPayload,
    SecretVersion,
};
use google_cloud_secretmanager_v1::stub;
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::{Zeroize, Zeroizing};

use super::endpoint::Endpoint;
use super::error::{Call, GcpError, Operation};
use super::names::VersionNumber;
use super::persist::{Limits, Retries};
use super::transport::{Failure, Transport};
use crate::crypto::KeyfileImage;
use crate::model::{Micros, SecretPath};

/// Secret Manager at one endpoint, with one identity. Cheap to keep; made inside a tokio runtime.
pub struct SecretManager {
    client: SecretManagerService,
    endpoint: String,
    limits: Limits,
}

/// What is known of a secret, without its payloads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretFacts {
    /// Whether Google deletes it, backups and all, at some time: a secret for backups should have none.
    pub expires: bool,
}

/// What is known of a version, without its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionFacts {
    pub number: VersionNumber,
    pub state: VersionState,
    pub created_at: Option<Micros>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VersionState {
    Enabled,
    Disabled,
    Destroyed,
    /// One that this release does not know; it is tried as an enabled one is.
    Unknown,
}

impl SecretManager {
    /// Nothing is sent yet. On loopback there are no credentials; elsewhere they are looked for here and fetched when needed.
    ///
    /// # Errors
    /// `NoCredentials` where a credentials file cannot be used, `Unreachable` where TLS cannot be set up; both as of a look at
    /// `secret`.
    pub fn connect(endpoint: &Endpoint, limits: Limits, secret: &SecretPath) -> Result<Self, GcpError> {
        let call = Call { operation: Operation::DescribeSecret, secret: secret.clone(), number: None };
        let transport = Transport::new(endpoint.clone(), limits.attempt)
            .map_err(|failure| GcpError::of(failure, &call, &endpoint.to_string(), limits.deadline))?;
        let client = SecretManagerService::from_stub::<OverHttp>(OverHttp(transport));
        Ok(Self { client, endpoint: endpoint.to_string(), limits })
    }

    /// Adds a version, and answers with its number once Google has confirmed the checksum of what it keeps. After an answer that was
    /// lost it is added again: a spare copy harms nobody, and a missing one might.
    ///
    /// # Errors
    /// `BadLength`, `NotConfirmed`, and those of every call.
    pub async fn add(&self, secret: &SecretPath, image: &KeyfileImage) -> Result<VersionNumber, GcpError> {
        let call = Call { operation: Operation::Add, secret: secret.clone(), number: None };
        if !(1..=KeyfileImage::MAX_LEN).contains(&image.len()) {
            return Err(GcpError::BadLength { call, length: image.len() });
        }
        let payload = &payload(image);
        let retries = Retries::new();
        let adding = retries.idempotent(|| async move {
            let request = self.client.add_secret_version().set_parent(secret.to_string());
            let added = request.set_payload(payload.clone()).send().await.map_err(|error| cause(&error))?;
            let number = VersionNumber::from_answer(&added.name, secret).ok_or(WRONG_NAME)?;
            Ok((number, added.client_specified_payload_checksum))
        });
        let outcome = retries.until(self.limits.deadline, adding).await;
        let (number, confirmed) = outcome.map_err(|failure| self.error(failure, &call))?;
        if confirmed { Ok(number) } else { Err(GcpError::NotConfirmed { call, number }) }
    }

    /// Every version, the newest first.
    ///
    /// # Errors
    /// Those of every call; `NotUnderstood` also where the pages do not end.
    pub async fn list(&self, secret: &SecretPath) -> Result<Vec<VersionFacts>, GcpError> {
        let call = Call { operation: Operation::List, secret: secret.clone(), number: None };
        let retries = Retries::new();
        let outcome = retries.until(self.limits.deadline, self.pages(secret, &retries)).await;
        outcome.map_err(|failure| self.error(failure, &call))
    }

    async fn pages(&self, secret: &SecretPath, retries: &Retries) -> Result<Vec<VersionFacts>, Failure> {
        let mut versions = Vec::new();
        let mut token = String::new();
        for _ in 0..MAX_PAGES {
            let of = token.as_str();
            let page = retries.idempotent(|| async move {
                let request = self.client.list_secret_versions().set_parent(secret.to_string());
                request.set_page_size(PAGE_SIZE).set_page_token(of).send().await.map_err(|error| cause(&error))
            });
            let page = page.await?;
            for version in page.versions {
                versions.push(facts(&version, secret)?);
            }
            if page.next_page_token.is_empty() {
                versions.sort_by_key(|version: &VersionFacts| Reverse(version.number));
                return Ok(versions);
            }
            if page.next_page_token == token {
                break;
            }
            token = page.next_page_token;
        }
        Err(Failure::NotUnderstood { what: "a list of versions that does not end" })
    }

    /// The payload of one version.
    ///
    /// # Errors
    /// `BadChecksum`, `VersionDisabled`, `VersionDestroyed`, `BadLength` (too long), and those of every call.
    pub async fn access(&self, secret: &SecretPath, number: VersionNumber) -> Result<KeyfileImage, GcpError> {
        let call = Call { operation: Operation::Access, secret: secret.clone(), number: Some(number) };
        let retries = Retries::new();
        let outcome = retries.until(self.limits.deadline, self.payload_of(secret, number, &retries)).await;
        match outcome.map_err(|failure| self.error(failure, &call))? {
            Accessed::Payload(bytes) if bytes.len() > KeyfileImage::MAX_LEN => {
                Err(GcpError::BadLength { call, length: bytes.len() })
            }
            Accessed::Payload(bytes) => Ok(KeyfileImage::new(bytes)),
            Accessed::Disabled => Err(GcpError::VersionDisabled { call }),
            Accessed::Destroyed => Err(GcpError::VersionDestroyed { call }),
        }
    }

    async fn payload_of(
        &self,
        secret: &SecretPath,
        number: VersionNumber,
        retries: &Retries,
    ) -> Result<Accessed, Failure> {
        let read = retries.idempotent(|| async move {
            let request = self.client.access_secret_version().set_name(secret.version(number));
            checked(request.send().await.map_err(|error| cause(&error))?, secret, number)
        });
        match read.await {
            // FAILED_PRECONDITION: it is there and not enabled, and its state says why. Where that cannot be had, the refusal stands.
            Err(refusal @ Failure::Status { status: 400, .. }) => {
                match retries.idempotent(|| self.describe(secret, number)).await {
                    Ok(VersionFacts { state: VersionState::Disabled, .. }) => Ok(Accessed::Disabled),
                    Ok(VersionFacts { state: VersionState::Destroyed, .. }) => Ok(Accessed::Destroyed),
                    _ => Err(refusal),
                }
            }
            read => read.map(Accessed::Payload),
        }
    }

    /// What is known of the secret.
    ///
    /// # Errors
    /// Those of every call.
    pub async fn secret(&self, secret: &SecretPath) -> Result<SecretFacts, GcpError> {
        let call = Call { operation: Operation::DescribeSecret, secret: secret.clone(), number: None };
        let retries = Retries::new();
        let looking = retries.idempotent(|| async move {
            self.client.get_secret().set_name(secret.to_string()).send().await.map_err(|error| cause(&error))
        });
        let found = retries.until(self.limits.deadline, looking).await.map_err(|failure| self.error(failure, &call))?;
        Ok(SecretFacts { expires: found.expiration.is_some() })
    }

    async fn describe(&self, secret: &SecretPath, number: VersionNumber) -> Result<VersionFacts, Failure> {
        let name = secret.version(number);
        let version = self.client.get_secret_version().set_name(name).send().await.map_err(|error| cause(&error))?;
        facts(&version, secret).and_then(|found| if found.number == number { Ok(found) } else { Err(WRONG_NAME) })
    }

    fn error(&self, failure: Failure, call: &Call) -> GcpError {
        GcpError::of(failure, call, &self.endpoint, self.limits.deadline)
    }
}

/// What came of reading a version.
enum Accessed {
    Payload(Zeroizing<Vec<u8>>),
    Disabled,
    Destroyed,
}

const PAGE_SIZE: i32 = 250;
/// 25,000 versions; no secret for backups has so many.
const MAX_PAGES: usize = 100;
const WRONG_NAME: Failure = Failure::NotUnderstood { what: "an answer about another version or secret" };

/// Bytes and checksum; the bytes are wiped with the last request that shares them.
fn payload(image: &KeyfileImage) -> SecretPayload {
    let bytes = Zeroizing::new(image.key_bytes().to_vec());
    let checksum = crc32c::crc32c(&bytes);
    SecretPayload::new().set_data(Bytes::from_owner(bytes)).set_data_crc32c(i64::from(checksum))
}

/// The payload of an answer, where it is the one that was asked for and has its checksum.
fn checked(
    answer: AccessSecretVersionResponse,
    secret: &SecretPath,
    number: VersionNumber,
) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let payload = answer.payload.ok_or(Failure::NotUnderstood { what: "an answer without a payload" })?;
    let bytes = Zeroizing::new(payload.data.to_vec());
    if let Ok(mut received) = payload.data.try_into_mut() {
        received.as_mut().zeroize();
    }
    if VersionNumber::from_answer(&answer.name, secret) != Some(number) {
        return Err(WRONG_NAME);
    }
    let (expected, found) = (payload.data_crc32c, crc32c::crc32c(&bytes));
    if expected == Some(i64::from(found)) { Ok(bytes) } else { Err(Failure::BadChecksum { expected, found }) }
}

fn facts(version: &SecretVersion, secret: &SecretPath) -> Result<VersionFacts, Failure> {
    Ok(VersionFacts {
        number: VersionNumber::from_answer(&version.name, secret).ok_or(WRONG_NAME)?,
        state: match version.state {
            State::Enabled => VersionState::Enabled,
            State::Disabled => VersionState::Disabled,
            State::Destroyed => VersionState::Destroyed,
            _ => VersionState::Unknown,
        },
        created_at: version.create_time.map(|at| micros(at.seconds(), at.nanos())),
    })
}

fn micros(seconds: i64, nanos: i32) -> Micros {
    Micros(seconds.saturating_mul(1_000_000).saturating_add(i64::from(nanos) / 1_000))
}

/// What our transport said, out of the error of Google's client that carried it.
fn cause(error: &SdkError) -> Failure {
    use std::error::Error as _;
    let ours = error.source().and_then(|source| source.downcast_ref::<Failure>());
    ours.cloned().unwrap_or(Failure::NotUnderstood { what: "a request that Google's client did not send" })
}

/// The methods of Google's client that are used, over our transport. A method that is not here is answered by the client with a panic, so
/// a call of it does not survive its first test.
#[derive(Debug)]
struct OverHttp(Transport);

impl OverHttp {
    async fn get<A: DeserializeOwned>(&self, path: String, query: &[(&str, &str)]) -> Result<Response<A>, SdkError> {
        self.0.get(&path, query).await.map(response).map_err(SdkError::exhausted)
    }
}

fn response<A>(answer: A) -> Response<A> {
    Response::from_parts(Parts::new(), answer)
}

#[derive(Serialize)]
struct AddBody<'a> {
    payload: Option<&'a SecretPayload>,
}

impl stub::SecretManagerService for OverHttp {
    async fn add_secret_version(
        &self,
        request: AddSecretVersionRequest,
        _: RequestOptions,
    ) -> Result<Response<SecretVersion>, SdkError> {
        let body = AddBody { payload: request.payload.as_ref() };
        let path = format!("/v1/{}:addVersion", request.parent);
        self.0.post(&path, &body).await.map(response).map_err(SdkError::exhausted)
    }

    async fn list_secret_versions(
        &self,
        request: ListSecretVersionsRequest,
        _: RequestOptions,
    ) -> Result<Response<ListSecretVersionsResponse>, SdkError> {
        let size = request.page_size.to_string();
        let query = [("pageSize", size.as_str()), ("pageToken", request.page_token.as_str())];
        self.get(format!("/v1/{}/versions", request.parent), &query).await
    }

    async fn access_secret_version(
        &self,
        request: AccessSecretVersionRequest,
        _: RequestOptions,
    ) -> Result<Response<AccessSecretVersionResponse>, SdkError> {
        self.get(format!("/v1/{}:access", request.name), &[]).await
    }

    async fn get_secret_version(
        &self,
        request: GetSecretVersionRequest,
        _: RequestOptions,
    ) -> Result<Response<SecretVersion>, SdkError> {
        self.get(format!("/v1/{}", request.name), &[]).await
    }

    async fn get_secret(&self, request: GetSecretRequest, _: RequestOptions) -> Result<Response<Secret>, SdkError> {
        self.get(format!("/v1/{}", request.name), &[]).await
    }
}
