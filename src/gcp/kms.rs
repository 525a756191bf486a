//! Cloud KMS: Encrypt and Decrypt, and no other call; an identity that may only decrypt runs a daemon.

use std::time::Duration;

use bytes::Bytes;
use data_encoding::BASE64;
use google_cloud_gax::error::Error as SdkError;
use google_cloud_gax::options::RequestOptions;
use google_cloud_gax::response::{Parts, Response};
use google_cloud_kms_v1::client::KeyManagementService;
use google_cloud_kms_v1::model::{DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse};
use google_cloud_kms_v1::stub;
use serde::Serialize;
use zeroize::{Zeroize, Zeroizing};

use super::endpoint::Endpoint;
use super::kms_error::{KmsCall, KmsError, Operation};
use super::persist::{Limits, Retries};
use super::transport::{Failure, Transport};
use crate::crypto::KeyfileImage;
use crate::model::KmsKey;

/// Cloud KMS at one endpoint, with one identity. Made inside a tokio runtime.
pub struct Kms {
    client: KeyManagementService,
    endpoint: String,
    deadline: Duration,
}

/// What Encrypt gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encrypted {
    /// The full name of the version that did it.
    pub key_version: String,
    pub ciphertext: Vec<u8>,
}

/// What Decrypt gave.
pub struct Decrypted {
    /// Not judged: whoever asked knows what it must be.
    pub image: KeyfileImage,
    /// Whether the key's primary version wrapped it; another one did before the last rotation of the KMS key.
    pub used_primary: bool,
}

impl Kms {
    /// Nothing is sent yet. On loopback there are no credentials; elsewhere they are looked for here and fetched when needed.
    ///
    /// # Errors
    /// `NoCredentials` where a credentials file cannot be used, `Unreachable` where TLS cannot be set up; both as of a decryption with
    /// `key`.
    pub fn connect(endpoint: &Endpoint, limits: Limits, key: &KmsKey) -> Result<Self, KmsError> {
        let call = KmsCall { operation: Operation::Decrypt, key: key.clone() };
        let transport = Transport::new(endpoint.clone(), limits.attempt)
            .map_err(|failure| KmsError::of(failure, &call, &endpoint.to_string(), limits.deadline))?;
        let client = KeyManagementService::from_stub::<OverHttp>(OverHttp(transport));
        Ok(Self { client, endpoint: endpoint.to_string(), deadline: limits.deadline })
    }

    /// Encrypts with the key's primary version. It counts only where Google confirms both checksums that were sent.
    ///
    /// # Errors
    /// `NotConfirmed`, and those of every call.
    pub async fn encrypt(&self, key: &KmsKey, image: &KeyfileImage, aad: &[u8]) -> Result<Encrypted, KmsError> {
        let call = KmsCall { operation: Operation::Encrypt, key: key.clone() };
        let plaintext = Zeroizing::new(image.key_bytes().to_vec());
        let sum = i64::from(crc32c::crc32c(&plaintext));
        let plaintext = Bytes::from_owner(plaintext);
        let retries = Retries::new();
        let encrypting = retries.idempotent(|| {
            let (plaintext, aad) = (plaintext.clone(), Bytes::copy_from_slice(aad));
            async move {
                let request = self.client.encrypt().set_name(key.as_str()).set_plaintext(plaintext);
                let request = request.set_plaintext_crc32c(sum);
                let request = request.set_additional_authenticated_data_crc32c(i64::from(crc32c::crc32c(&aad)));
                let request = request.set_additional_authenticated_data(aad);
                encrypted(request.send().await.map_err(|error| cause(&error))?, key)
            }
        });
        match self.ended(retries.until(self.deadline, encrypting).await, &call)? {
            Confirmed::By(encrypted) => Ok(encrypted),
            Confirmed::No => Err(KmsError::NotConfirmed { call }),
        }
    }

    /// Decrypts with whichever version of the key encrypted.
    ///
    /// # Errors
    /// `DoesNotDecrypt`, `BadChecksum`, `VersionDisabled`, `VersionDestroyed`, and those of every call.
    pub async fn decrypt(&self, key: &KmsKey, ciphertext: &[u8], aad: &[u8]) -> Result<Decrypted, KmsError> {
        let call = KmsCall { operation: Operation::Decrypt, key: key.clone() };
        let retries = Retries::new();
        let decrypting = retries.idempotent(|| async move {
            let request = self.client.decrypt().set_name(key.as_str());
            let request = request.set_ciphertext(Bytes::copy_from_slice(ciphertext));
            let request = request.set_ciphertext_crc32c(i64::from(crc32c::crc32c(ciphertext)));
            let request = request.set_additional_authenticated_data(Bytes::copy_from_slice(aad));
            let request = request.set_additional_authenticated_data_crc32c(i64::from(crc32c::crc32c(aad)));
            decrypted(request.send().await.map_err(|error| cause(&error))?)
        });
        self.ended(retries.until(self.deadline, decrypting).await, &call)
    }

    fn ended<T>(&self, outcome: Result<T, Failure>, call: &KmsCall) -> Result<T, KmsError> {
        outcome.map_err(|failure| KmsError::of(failure, call, &self.endpoint, self.deadline))
    }
}

/// Whether Google saw what was sent.
enum Confirmed {
    By(Encrypted),
    No,
}

fn encrypted(answer: EncryptResponse, key: &KmsKey) -> Result<Confirmed, Failure> {
    if !key.is_of_version(&answer.name) {
        return Err(Failure::NotUnderstood { what: "an answer about another key" });
    }
    check(&answer.ciphertext, answer.ciphertext_crc32c)?;
    if answer.ciphertext.is_empty() {
        return Err(Failure::NotUnderstood { what: "an answer without a ciphertext" });
    }
    // Without these it may have encrypted what a fault on the way made of it, and nobody could open that again.
    if !answer.verified_plaintext_crc32c || !answer.verified_additional_authenticated_data_crc32c {
        return Ok(Confirmed::No);
    }
    Ok(Confirmed::By(Encrypted { key_version: answer.name, ciphertext: answer.ciphertext.to_vec() }))
}

fn decrypted(answer: DecryptResponse) -> Result<Decrypted, Failure> {
    let bytes = Zeroizing::new(answer.plaintext.to_vec());
    let checked = check(&bytes, answer.plaintext_crc32c);
    if let Ok(mut received) = answer.plaintext.try_into_mut() {
        received.as_mut().zeroize();
    }
    checked?;
    Ok(Decrypted { image: KeyfileImage::new(bytes), used_primary: answer.used_primary })
}

fn check(bytes: &[u8], expected: Option<i64>) -> Result<(), Failure> {
    let found = crc32c::crc32c(bytes);
    if expected == Some(i64::from(found)) { Ok(()) } else { Err(Failure::BadChecksum { expected, found }) }
}

/// What our transport said, out of the error of Google's client that carried it.
fn cause(error: &SdkError) -> Failure {
    use std::error::Error as _;
    let ours = error.source().and_then(|source| source.downcast_ref::<Failure>());
    ours.cloned().unwrap_or(Failure::NotUnderstood { what: "a request that Google's client did not send" })
}

/// The two methods of Google's client that are used, over our transport. A method that is not here is answered by the client with a
/// panic, so a call of it does not survive its first test.
#[derive(Debug)]
struct OverHttp(Transport);

/// Bodies with standard base64 and checksums as text, as Google's JSON has them. The plaintext's text is wiped.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EncryptBody<'a> {
    plaintext: &'a str,
    plaintext_crc32c: Option<String>,
    additional_authenticated_data: String,
    additional_authenticated_data_crc32c: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DecryptBody {
    ciphertext: String,
    ciphertext_crc32c: Option<String>,
    additional_authenticated_data: String,
    additional_authenticated_data_crc32c: Option<String>,
}

impl stub::KeyManagementService for OverHttp {
    async fn encrypt(&self, request: EncryptRequest, _: RequestOptions) -> Result<Response<EncryptResponse>, SdkError> {
        let plaintext = Zeroizing::new(BASE64.encode(&request.plaintext));
        let body = EncryptBody {
            plaintext: &plaintext,
            plaintext_crc32c: request.plaintext_crc32c.map(|sum| sum.to_string()),
            additional_authenticated_data: BASE64.encode(&request.additional_authenticated_data),
            additional_authenticated_data_crc32c: request
                .additional_authenticated_data_crc32c
                .map(|sum| sum.to_string()),
        };
        let path = format!("/v1/{}:encrypt", request.name);
        self.0.post(&path, &body).await.map(response).map_err(SdkError::exhausted)
    }

    async fn decrypt(&self, request: DecryptRequest, _: RequestOptions) -> Result<Response<DecryptResponse>, SdkError> {
        let body = DecryptBody {
            ciphertext: BASE64.encode(&request.ciphertext),
            ciphertext_crc32c: request.ciphertext_crc32c.map(|sum| sum.to_string()),
            additional_authenticated_data: BASE64.encode(&request.additional_authenticated_data),
            additional_authenticated_data_crc32c: request
                .additional_authenticated_data_crc32c
                .map(|sum| sum.to_string()),
        };
        let path = format!("/v1/{}:decrypt", request.name);
        self.0.post(&path, &body).await.map(response).map_err(SdkError::exhausted)
    }
}

fn response<A>(answer: A) -> Response<A> {
    Response::from_parts(Parts::new(), answer)
}
