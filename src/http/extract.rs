//! What handlers take from a request. Authentication is an extractor, so that no handler forgets it; bodies are read by a call, so that
//! authorization comes before them where the path names the target.

use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{FromRequestParts, RawPathParams};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use http_body_util::BodyExt;
use hyper::body::{Frame, SizeHint};
use serde::de::DeserializeOwned;
use tokio::time::{Sleep, sleep};
use zeroize::Zeroizing;

use super::App;
use super::problem::Refused;
use crate::access::{self, Unauthenticated};
use crate::model::{Kid, NameError, NodeId, SecretName, Tenant};
use crate::service;
use crate::wire::{self, MAX_BODY_BYTES};

/// The peer of a connection's socket; the listener adds it to each request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer {
    pub(super) uid: u32,
    pub(super) pid: Option<i32>,
}

/// Whence a request came over TCP; the listener adds it to each.
#[derive(Debug, Clone, Copy)]
pub(super) struct Address(pub(super) IpAddr);

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

async fn read_bytes(mut body: Body) -> Result<Zeroizing<Vec<u8>>, Refused> {
    let too_large =
        || Refused::new(StatusCode::PAYLOAD_TOO_LARGE, format!("a body may have at most {MAX_BODY_BYTES} bytes"));
    let declared = body.size_hint().lower();
    if declared > MAX_BODY_BYTES as u64 {
        return Err(too_large());
    }
    // A length that is declared is reserved at once: growing would leave parts of a value behind in freed memory.
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(declared).unwrap_or(0)));
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| not_whole(&error))?;
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

fn not_whole(error: &axum::Error) -> Refused {
    let mut causes = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    match causes.find_map(|cause| cause.downcast_ref::<Late>()) {
        Some(late) => Refused::new(StatusCode::REQUEST_TIMEOUT, late.to_string()),
        None => Refused::invalid("the body broke off"),
    }
}

pub(super) fn kid(text: &str) -> Result<Kid, Refused> {
    Kid::from_hex(text).ok_or_else(|| Refused::invalid("a kid is 32 hex digits, in lower case"))
}

pub(super) fn node_id(text: &str) -> Result<NodeId, Refused> {
    NodeId::from_hex(text).ok_or_else(|| Refused::invalid("a node's id is 32 hex digits, in lower case"))
}

/// A body that did not come in time.
#[derive(Debug, thiserror::Error)]
#[error("the body did not arrive within {} s", .0.as_secs())]
struct Late(Duration);

/// A body that fails once all of it has taken too long; the time runs from when it is first asked for.
pub(super) struct TimedBody {
    body: Body,
    time: Duration,
    left: Option<Pin<Box<Sleep>>>,
}

impl TimedBody {
    pub(super) fn within(time: Duration, body: Body) -> Body {
        Body::new(Self { body, time, left: None })
    }
}

impl HttpBody for TimedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            return Poll::Ready(frame);
        }
        let time = self.time;
        let left = self.left.get_or_insert_with(|| Box::pin(sleep(time)));
        ready!(left.as_mut().poll(context));
        Poll::Ready(Some(Err(axum::Error::new(Late(time)))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
