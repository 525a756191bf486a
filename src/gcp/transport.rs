//! One exchange over HTTP.
//!
//! Google's client is built on this and not on its own transport, because that one reads an answer whole, however long it is, and
//! leaves copies of requests and answers in freed memory. Here an answer has a bound, redirects end the exchange, and what of ours
//! holds a payload is wiped. Nothing is traced either: the client's own tracing, which an environment variable switches on, prints payloads,
//! and it wraps that other transport only. The client keeps what it is good at: requests and answers as types, and credentials.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use google_cloud_auth::credentials::{self, CacheableResource, Credentials};
use google_cloud_gax::error::rpc::{Status, StatusDetails};
use http::{Extensions, HeaderMap, HeaderValue, StatusCode, header};
use reqwest::redirect;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::endpoint::{Endpoint, Trust};
use super::error::Reason;

/// The most bytes of an answer that are read. A payload of 64 KiB is 88 KiB of JSON; a page of versions is smaller than this, too.
pub(super) const ANSWER_LIMIT: usize = 1 << 20;

/// Why one exchange gave nothing. Nothing in it was sent by the server but a status and a reason code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the exchange failed")]
pub(super) enum Failure {
    NoCredentials { why: String, is_transient: bool },
    Unreachable { why: String },
    Interrupted,
    Slow,
    Redirected { status: u16 },
    TooLong { limit: usize },
    NotUnderstood { what: &'static str },
    BadChecksum { expected: Option<i64>, found: u32 },
    Status { status: u16, reason: Reason },
}

impl Failure {
    /// Whether the same exchange may succeed now.
    pub(super) const fn is_transient(&self) -> bool {
        match self {
            Self::NoCredentials { is_transient, .. } => *is_transient,
            Self::Unreachable { .. } | Self::Interrupted | Self::Slow | Self::BadChecksum { .. } => true,
            Self::Redirected { .. } | Self::TooLong { .. } | Self::NotUnderstood { .. } => false,
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500 | 502 | 503 | 504),
        }
    }
}

/// How a service is spoken to.
pub(super) struct Transport {
    http: reqwest::Client,
    endpoint: Endpoint,
    /// Absent on loopback.
    credentials: Option<Credentials>,
    /// Given up and tried anew after this time.
    attempt: Duration,
}

/// The client of Google's wants its transport to have one; nothing of ours is in it.
impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Transport")
    }
}

impl Transport {
    /// # Errors
    /// `NoCredentials` where a credentials file is there and cannot be used, `Unreachable` where TLS cannot be set up.
    pub(super) fn new(endpoint: Endpoint, attempt: Duration) -> Result<Self, Failure> {
        let builder = reqwest::Client::builder()
            .http1_only()
            .redirect(redirect::Policy::none())
            .user_agent(concat!("containarium/", env!("CARGO_PKG_VERSION")));
        let (builder, credentials) = match endpoint.trust() {
            Trust::Https => (builder.https_only(true), Some(application_default()?)),
            // A proxy of the environment would be sent the key in clear.
            Trust::Loopback => (builder.no_proxy(), None),
        };
        let http = builder.build().map_err(|error| Failure::Unreachable { why: innermost(&error) })?;
        Ok(Self { http, endpoint, credentials, attempt })
    }

    /// # Errors
    /// Each [`Failure`] but `BadChecksum`.
    pub(super) async fn get<A: DeserializeOwned>(&self, path: &str, query: &[(&str, &str)]) -> Result<A, Failure> {
        let url = self.endpoint.at(path, &with_alt(query));
        self.exchange(self.http.get(url)).await
    }

    /// # Errors
    /// As [`Self::get`].
    pub(super) async fn post<A: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<A, Failure> {
        // Room for the largest payload, so that no part of it is left behind where the buffer was before it grew.
        let mut json = Zeroizing::new(Vec::with_capacity(100 * 1024));
        serde_json::to_writer(&mut *json, body)
            .map_err(|_| Failure::NotUnderstood { what: "a request that is no JSON" })?;
        let request = self
            .http
            .post(self.endpoint.at(path, &with_alt(&[])))
            .header(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .body(Bytes::from_owner(json));
        self.exchange(request).await
    }

    async fn exchange<A: DeserializeOwned>(&self, request: reqwest::RequestBuilder) -> Result<A, Failure> {
        let request = request.headers(self.authorization().await?);
        let whole = async {
            let response = request.send().await.map_err(|error| failure(&error))?;
            let status = response.status();
            if status.is_redirection() {
                return Err(Failure::Redirected { status: status.as_u16() });
            }
            Ok((status, read(response).await?))
        };
        let (status, body) = timeout(self.attempt, whole).await.map_err(|_| Failure::Slow)??;
        if status.is_success() {
            // The parser's error is dropped: it may quote what it read.
            serde_json::from_slice(&body)
                .map_err(|_| Failure::NotUnderstood { what: "an answer that is no JSON of its kind" })
        } else {
            Err(refusal(status, body))
        }
    }

    async fn authorization(&self) -> Result<HeaderMap, Failure> {
        let Some(credentials) = &self.credentials else { return Ok(HeaderMap::new()) };
        match timeout(self.attempt, credentials.headers(Extensions::new())).await {
            Ok(Ok(CacheableResource::New { data, .. })) => Ok(data),
            Ok(Ok(CacheableResource::NotModified)) => {
                Err(Failure::NoCredentials { why: "the library gave none".to_owned(), is_transient: false })
            }
            Ok(Err(error)) => {
                Err(Failure::NoCredentials { why: innermost(&error), is_transient: error.is_transient() })
            }
            Err(_) => Err(Failure::NoCredentials {
                why: format!("no token came within {} s", self.attempt.as_secs_f64()),
                is_transient: true,
            }),
        }
    }
}

/// Application Default Credentials: GOOGLE_APPLICATION_CREDENTIALS, then gcloud's file, then the metadata server. The library reads
/// them, and renews them in the background.
fn application_default() -> Result<Credentials, Failure> {
    credentials::Builder::default()
        .build()
        .map_err(|error| Failure::NoCredentials { why: innermost(&error), is_transient: false })
}

/// As Google's own clients ask: closed sets come as numbers, so that a new name breaks nothing.
fn with_alt<'a>(query: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [query, &[("$alt", "json;enum-encoding=int")]].concat()
}

/// The body into one allocation of the largest size, which is wiped and never moved.
async fn read(mut response: reqwest::Response) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let mut body = Zeroizing::new(Vec::with_capacity(ANSWER_LIMIT));
    while let Some(chunk) = response.chunk().await.map_err(|error| failure(&error))? {
        if body.len() + chunk.len() > ANSWER_LIMIT {
            return Err(Failure::TooLong { limit: ANSWER_LIMIT });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn refusal(status: StatusCode, body: Zeroizing<Vec<u8>>) -> Failure {
    let reason =
        Status::try_from(&Bytes::from_owner(body)).map_or_else(|_| Reason::default(), |status| reason(&status));
    Failure::Status { status: status.as_u16(), reason }
}

/// The reason that an error names (google.rpc.ErrorInfo, or the condition of a google.rpc.PreconditionFailure), else its code.
fn reason(status: &Status) -> Reason {
    let named = status.details.iter().find_map(|detail| match detail {
        StatusDetails::ErrorInfo(info) => Some(Reason::of(&info.reason)).filter(Reason::is_known),
        StatusDetails::PreconditionFailure(failure) => {
            failure.violations.iter().map(|violation| Reason::of(&violation.r#type)).find(Reason::is_known)
        }
        _ => None,
    });
    named.unwrap_or_else(|| Reason::of(status.code.name()))
}

fn failure(error: &reqwest::Error) -> Failure {
    if error.is_connect() && !error.is_timeout() {
        Failure::Unreachable { why: innermost(error) }
    } else if error.is_timeout() {
        Failure::Slow
    } else {
        Failure::Interrupted
    }
}

/// The last cause, which says most, as one line for a terminal.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    // Of what is no JSON of its kind the parser quotes what it met, which may be a token; where it was says enough.
    let text = match cause.downcast_ref::<serde_json::Error>() {
        Some(error) => {
            format!("what came is not the JSON that it should be, at line {} column {}", error.line(), error.column())
        }
        None => cause.to_string(),
    };
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the token could not be had")]
    struct Outer(#[source] serde_json::Error);

    #[test]
    fn an_answer_that_does_not_parse_is_told_without_a_word_of_it() {
        let parsed = serde_json::from_str::<u32>("\n \"ya29.canary\"").unwrap_err();
        assert!(parsed.to_string().contains("canary"), "the parser's own words are not what this is about: {parsed}");
        let why = innermost(&Outer(parsed));
        assert!(!why.contains("canary") && why.contains("line 2 column 14"), "{why}");
    }
}
