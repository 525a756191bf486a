//! One request, HTTP/1.1, and its bounded answer.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, RETRY_AFTER, USER_AGENT};
use http::{Method, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use zeroize::Zeroizing;

use super::remote::Remote;
use super::{ClientError, Credential};

/// All but the unreserved characters of RFC 3986, section 2.3.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Where requests go.
pub(super) enum Place {
    Socket(PathBuf),
    Remote(Box<Remote>),
}

impl Place {
    fn authority(&self) -> &str {
        match self {
            Self::Socket(_) => "localhost",
            Self::Remote(remote) => remote.authority(),
        }
    }

    async fn connect(&self) -> Result<Box<dyn Stream>, ClientError> {
        match self {
            Self::Socket(socket) => {
                let stream = UnixStream::connect(socket).await.map_err(|error| not_connected(socket, error))?;
                Ok(Box::new(stream))
            }
            Self::Remote(remote) => remote.connect().await,
        }
    }
}

/// What a request is written to and its answer read from.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A method and a path, whose segments are percent-encoded here and nowhere else.
pub(super) struct Target {
    method: Method,
    path: String,
}

impl Target {
    pub(super) fn new<const N: usize>(method: Method, segments: [&str; N]) -> Self {
        let mut path = String::new();
        for segment in segments {
            path.push('/');
            path.extend(utf8_percent_encode(segment, SEGMENT));
        }
        Self { method, path }
    }

    #[cfg(test)]
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// The target's one parameter, where it is given.
    pub(super) fn query(mut self, name: &str, value: Option<&str>) -> Self {
        if let Some(value) = value {
            self.path.push('?');
            self.path.push_str(name);
            self.path.push('=');
            self.path.extend(utf8_percent_encode(value, SEGMENT));
        }
        self
    }
}

pub(super) struct Request {
    pub target: Target,
    pub json: Option<Zeroizing<Vec<u8>>>,
    /// The most bytes that the answer may have.
    pub max_bytes: usize,
}

pub(super) struct Answer {
    pub status: StatusCode,
    pub retry_after: Option<u64>,
    pub body: Zeroizing<Vec<u8>>,
}

pub(super) async fn exchange(
    place: &Place,
    credential: Option<&Credential>,
    request: Request,
) -> Result<Answer, ClientError> {
    let max_bytes = request.max_bytes;
    // The caller gives all of it a time together.
    with_response(place, credential, request, Duration::MAX, async |response| read(response, max_bytes).await).await
}

/// As [`exchange`], for an answer of lines: each is handed to `line` as it comes. An answer that is no success is read whole. A line,
/// as such an answer, may have `max_bytes`; `quiet` is the longest that nothing may come.
pub(super) async fn exchange_lines(
    place: &Place,
    credential: Option<&Credential>,
    request: Request,
    quiet: Duration,
    mut line: impl FnMut(&[u8]) -> Result<(), ClientError>,
) -> Result<Lines, ClientError> {
    let max_bytes = request.max_bytes;
    let answered = async |response: Response<Incoming>| {
        if !response.status().is_success() {
            return read(response, max_bytes).await.map(Lines::Refused);
        }
        read_lines(response.into_body(), max_bytes, quiet, &mut line).await.map(|()| Lines::Ended)
    };
    with_response(place, credential, request, quiet, answered).await
}

/// How an answer of lines went.
pub(super) enum Lines {
    /// There were none.
    Refused(Answer),
    Ended,
}

async fn with_response<T>(
    place: &Place,
    credential: Option<&Credential>,
    request: Request,
    head_time: Duration,
    read: impl AsyncFnOnce(Response<Incoming>) -> Result<T, ClientError>,
) -> Result<T, ClientError> {
    let connected = tokio::time::timeout(head_time, place.connect()).await;
    let stream = connected.map_err(|_| ClientError::Deadline { after: head_time })??;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|_| ClientError::Broken)?;
    let request = http_request(request.target, place.authority(), credential, request.json)?;
    let answer = async move {
        let response = tokio::time::timeout(head_time, sender.send_request(request)).await;
        let response = response.map_err(|_| ClientError::Deadline { after: head_time })?;
        read(response.map_err(|_| ClientError::Broken)?).await
    };
    // The connection must be polled for the request to move. Should it end first, what it has read is still to be had.
    let mut answer = pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        _ = connection => answer.await,
    }
}

async fn read_lines(
    mut incoming: Incoming,
    max_bytes: usize,
    quiet: Duration,
    line: &mut impl FnMut(&[u8]) -> Result<(), ClientError>,
) -> Result<(), ClientError> {
    let mut rest: Vec<u8> = Vec::new();
    loop {
        let frame = tokio::time::timeout(quiet, incoming.frame()).await;
        let Some(frame) = frame.map_err(|_| ClientError::Deadline { after: quiet })? else { break };
        let frame = frame.map_err(|_| ClientError::Broken)?;
        let Some(data) = frame.data_ref() else { continue };
        rest.extend_from_slice(data);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let whole: Vec<u8> = rest.drain(..=end).collect();
            line(&whole)?;
        }
        if rest.len() > max_bytes {
            return Err(ClientError::TooLarge { max_bytes });
        }
    }
    if rest.is_empty() { Ok(()) } else { Err(ClientError::Broken) }
}

pub(super) fn not_connected(socket: &Path, cause: std::io::Error) -> ClientError {
    let socket = socket.to_path_buf();
    match cause.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => ClientError::NoDaemon { socket },
        ErrorKind::PermissionDenied => ClientError::SocketDenied { socket },
        _ => ClientError::NoConnection { socket, cause },
    }
}

fn http_request(
    target: Target,
    host: &str,
    credential: Option<&Credential>,
    json: Option<Zeroizing<Vec<u8>>>,
) -> Result<http::Request<Full<Bytes>>, ClientError> {
    let mut request = http::Request::builder()
        .method(target.method)
        .uri(target.path)
        .header(HOST, host)
        .header(USER_AGENT, concat!("containarium/", env!("CARGO_PKG_VERSION")))
        .header(ACCEPT, "application/json, application/problem+json");
    if let Some(credential) = credential {
        request = request.header(AUTHORIZATION, credential.header().clone());
    }
    if json.is_some() {
        request = request.header(CONTENT_TYPE, "application/json");
    }
    // The bytes stay where they are, and are wiped when hyper lets go of them.
    let body = json.map_or_else(Bytes::new, Bytes::from_owner);
    request.body(Full::new(body)).map_err(|_| ClientError::Unsendable)
}

async fn read(response: Response<Incoming>, max_bytes: usize) -> Result<Answer, ClientError> {
    let status = response.status();
    let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let mut incoming = response.into_body();
    // With a length announced, one allocation holds all of it. A length may lie, so it is no reason to allocate past the limit.
    let announced = incoming.size_hint().exact().and_then(|length| usize::try_from(length).ok());
    if announced.is_some_and(|length| length > max_bytes) {
        return Err(ClientError::TooLarge { max_bytes });
    }
    let mut body = Zeroizing::new(Vec::with_capacity(announced.unwrap_or(max_bytes)));
    while let Some(frame) = incoming.frame().await {
        let frame = frame.map_err(|_| ClientError::Broken)?;
        let Some(data) = frame.data_ref() else { continue };
        if body.len() + data.len() > max_bytes {
            return Err(ClientError::TooLarge { max_bytes });
        }
        body.extend_from_slice(data);
    }
    Ok(Answer { status, retry_after, body })
}
