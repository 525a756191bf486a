//! What handlers take from a request. Authentication is an extractor, so that no handler forgets it; bodies are read by a call, so that
//! authorization comes before them where the path names the target.

use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::{FromRequestParts, RawPathParams};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use super::App;
use super::problem::Refused;
use crate::access::{self, Unauthenticated};
use crate::model::{NameError, SecretName, Tenant};
use crate::service;
use crate::wire::{self, MAX_BODY_BYTES};

/// How long a whole body may take.
const BODY_TIME: Duration = Duration::from_secs(30);

/// The peer of a connection's socket; the listener adds it to each request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer {
    pub(super) uid: u32,
    pub(super) pid: Option<i32>,
}

/// The authenticated caller: the gate found out who it is, once for the request.
pub(super) struct Caller(pub(super) access::Caller);

impl FromRequestParts<App> for Caller {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _app: &App) -> Result<Self, Refused> {
        match parts.extensions.get::<access::Caller>() {
            Some(caller) => Ok(Self(caller.clone())),
            None => Err(service::Error::from(Unauthenticated::Missing).into()),
        }
    }
}

/// Who calls: whoever presents a credential, else the peer of the socket.
pub(super) async fn caller(app: &App, parts: &Parts) -> Result<access::Caller, service::Error> {
    match (bearer(&parts.headers)?, parts.extensions.get::<Peer>()) {
        (Some(credential), _) => app.service.bearer(credential).await,
        (None, Some(peer)) => Ok(app.service.socket_peer(peer.uid, peer.pid)),
        (None, None) => Err(Unauthenticated::Missing.into()),
    }
}

/// The credential of RFC 6750, section 2.1. What is no such header is refused, not passed over: its sender believes in it.
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Unauthenticated> {
    let mut all = headers.get_all(AUTHORIZATION).iter();
    let (Some(header), rest) = (all.next(), all.next()) else { return Ok(None) };
    let text = header.to_str().ok().filter(|_| rest.is_none()).ok_or(Unauthenticated::Malformed)?;
    let (scheme, credential) = text.split_once(' ').ok_or(Unauthenticated::Malformed)?;
    let credential = credential.trim_matches(' ');
    let is_one = scheme.eq_ignore_ascii_case("bearer") && !credential.is_empty() && !credential.contains(' ');
    if is_one { Ok(Some(credential)) } else { Err(Unauthenticated::Malformed) }
}

/// The request's id.
pub(super) struct Id(pub(super) service::Request);

impl FromRequestParts<App> for Id {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _app: &App) -> Result<Self, Refused> {
        match parts.extensions.get::<service::Request>() {
            Some(request) => Ok(Self(request.clone())),
            None => Err(Refused::new(StatusCode::INTERNAL_SERVER_ERROR, "internal error")),
        }
    }
}

/// `{username}` of the path.
pub(super) struct TenantPath(pub(super) Tenant);

impl FromRequestParts<App> for TenantPath {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Refused> {
        let params = raw_params(parts, app).await?;
        Ok(Self(tenant(&params)?))
    }
}

/// `{username}/{name}` of the path.
pub(super) struct SecretPath(pub(super) Tenant, pub(super) SecretName);

impl FromRequestParts<App> for SecretPath {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Refused> {
        let params = raw_params(parts, app).await?;
        let tenant = tenant(&params)?;
        Ok(Self(tenant, secret_name(&params)?))
    }
}

async fn raw_params(parts: &mut Parts, app: &App) -> Result<RawPathParams, Refused> {
    RawPathParams::from_request_parts(parts, app)
        .await
        .map_err(|_| Refused::invalid("the path is not valid UTF-8 after percent-decoding"))
}

pub(super) fn tenant(params: &RawPathParams) -> Result<Tenant, Refused> {
    decoded(params, "username")
        .and_then(|text| Tenant::parse(text).ok())
        .ok_or_else(|| Refused::invalid(NameError::Tenant.to_string()))
}

pub(super) fn secret_name(params: &RawPathParams) -> Result<SecretName, Refused> {
    decoded(params, "name")
        .and_then(|text| SecretName::parse(text).ok())
        .ok_or_else(|| Refused::invalid(NameError::Secret.to_string()))
}

/// A segment after exactly one percent-decoding, which is axum's; then the ASCII rules of names. Never normalised, never decoded twice.
fn decoded<'a>(params: &'a RawPathParams, name: &str) -> Option<&'a str> {
    params.iter().find(|(key, _)| *key == name).map(|(_, text)| text)
}

/// The query, strictly: a repeated parameter is an error. Unknown ones are refused before, on every route.
pub(super) struct Query<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequestParts<App> for Query<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Refused> {
        axum::extract::Query::from_request_parts(parts, app)
            .await
            .map(|axum::extract::Query(query)| Self(query))
            .map_err(|_| {
                Refused::invalid(
                    "the query has a parameter that is repeated or of the wrong type; GET /openapi.json describes it",
                )
            })
    }
}

/// A JSON body, read into memory that is wiped.
pub(super) async fn read_json<T: DeserializeOwned>(body: Body) -> Result<T, Refused> {
    let bytes = read_bytes(body).await?;
    serde_json::from_slice(&bytes).map_err(|error| Refused::invalid(wire::bad_json(&error)))
}

/// As [`read_json`]; an empty body is `T::default()`.
pub(super) async fn read_json_or_default<T: DeserializeOwned + Default>(body: Body) -> Result<T, Refused> {
    let bytes = read_bytes(body).await?;
    if bytes.is_empty() {
        return Ok(T::default());
    }
    serde_json::from_slice(&bytes).map_err(|error| Refused::invalid(wire::bad_json(&error)))
}

/// Refuses a body where none is taken, so that a caller learns that what it says is not heard.
pub(super) async fn read_nothing(body: Body) -> Result<(), Refused> {
    let bytes = read_bytes(body).await?;
    if bytes.is_empty() || bytes.trim_ascii() == b"{}" {
        Ok(())
    } else {
        Err(Refused::invalid("this route takes no body"))
    }
}

async fn read_bytes(body: Body) -> Result<Zeroizing<Vec<u8>>, Refused> {
    match tokio::time::timeout(BODY_TIME, collect(body)).await {
        Ok(read) => read,
        Err(_) => Err(Refused::new(
            StatusCode::REQUEST_TIMEOUT,
            format!("the body did not arrive within {} s", BODY_TIME.as_secs()),
        )),
    }
}

async fn collect(mut body: Body) -> Result<Zeroizing<Vec<u8>>, Refused> {
    let too_large =
        || Refused::new(StatusCode::PAYLOAD_TOO_LARGE, format!("a body may have at most {MAX_BODY_BYTES} bytes"));
    let declared = body.size_hint().lower();
    if declared > MAX_BODY_BYTES as u64 {
        return Err(too_large());
    }
    // A length that is declared is reserved at once: growing would leave parts of a value behind in freed memory.
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(declared).unwrap_or(0)));
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Refused::invalid("the body broke off"))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > MAX_BODY_BYTES {
            return Err(too_large());
        }
        if bytes.len() + data.len() > bytes.capacity() {
            // No length was declared. Room for the largest body at once, and what was read so far is wiped where it was.
            let mut larger = Zeroizing::new(Vec::with_capacity(MAX_BODY_BYTES));
            larger.extend_from_slice(&bytes);
            bytes = larger;
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}
