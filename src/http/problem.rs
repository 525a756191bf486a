//! The one mapping from errors to answers: RFC 9457 problems with v1's fields beside them.

use axum::http::StatusCode;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use axum::response::{IntoResponse, Response};

use crate::service::{Error, Failure};
use crate::wire::Problem;

/// A refusal on its way out; [`with_body`] writes it, since only the outermost layer knows the request's id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused {
    status: StatusCode,
    detail: String,
}

impl Refused {
    pub(super) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into() }
    }

    pub(super) fn invalid(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    /// Says what it is about, before its own words.
    pub(super) fn about(self, what: &str) -> Self {
        Self { detail: format!("{what}: {}", self.detail), ..self }
    }

    pub(super) fn render(self, request_id: &str) -> Response {
        with_body(self.into_response(), request_id)
    }

    /// As a problem inside an answer that began well.
    pub(super) fn problem(&self, request_id: &str) -> Problem {
        problem(self.status, &self.detail, request_id)
    }
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        let status = match error {
            Error::Invalid(_) => StatusCode::BAD_REQUEST,
            Error::NotFound(_) => StatusCode::NOT_FOUND,
            Error::Denied(_) => StatusCode::FORBIDDEN,
            Error::Unauthenticated(_) => StatusCode::UNAUTHORIZED,
            Error::Conflict(_) => StatusCode::CONFLICT,
            Error::Precondition(_) => StatusCode::PRECONDITION_FAILED,
            Error::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Error::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            Error::Internal(_) | Error::Incomplete(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self { status, detail: error.to_string() }
    }
}

/// What an error answer will say; nothing where some library made it.
pub(super) fn detail_of(response: &Response) -> &str {
    response.extensions().get::<Refused>().map_or("", |refused| refused.detail.as_str())
}

/// What an error answer is to the service, whoever made it; `None` for any other answer.
pub(super) fn error_of(response: &Response) -> Option<Error> {
    let status = response.status();
    if !status.is_client_error() && !status.is_server_error() {
        return None;
    }
    let detail = detail_of(response).to_owned();
    Some(match status {
        StatusCode::UNAUTHORIZED => Error::Unauthenticated(detail),
        StatusCode::FORBIDDEN => Error::Denied(detail),
        StatusCode::NOT_FOUND => Error::NotFound(detail),
        StatusCode::CONFLICT => Error::Conflict(detail),
        StatusCode::PRECONDITION_FAILED => Error::Precondition(detail),
        StatusCode::PAYLOAD_TOO_LARGE => Error::TooLarge(detail),
        StatusCode::SERVICE_UNAVAILABLE => Error::Unavailable(detail),
        _ if status.is_client_error() => Error::Invalid(detail),
        _ => Error::Internal(Failure::Other),
    })
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// Gives an error answer its problem body. One that some library made has its status's words and nothing else; one that is JSON
/// already (a health answer) stays.
pub(super) fn with_body(response: Response, request_id: &str) -> Response {
    let (mut parts, body) = response.into_parts();
    if parts.headers.get(CONTENT_TYPE).is_some_and(|kind| kind == "application/json") {
        return Response::from_parts(parts, body);
    }
    let detail = parts.extensions.get::<Refused>().map_or(title(parts.status), |refused| refused.detail.as_str());
    let problem = problem(parts.status, detail, request_id);
    let body = serde_json::to_vec(&problem).unwrap_or_default();
    parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    parts.headers.remove(CONTENT_LENGTH);
    if parts.status == StatusCode::UNAUTHORIZED {
        // RFC 9110, section 11.6.1: such an answer says how to authenticate.
        parts.headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    Response::from_parts(parts, body.into())
}

fn problem(status: StatusCode, detail: &str, request_id: &str) -> Problem {
    Problem {
        kind: "about:blank".to_owned(),
        title: title(status).to_owned(),
        status: status.as_u16(),
        detail: detail.to_owned(),
        code: grpc_code(status),
        message: detail.to_owned(),
        request_id: request_id.to_owned(),
    }
}

fn title(status: StatusCode) -> &'static str {
    status.canonical_reason().unwrap_or("error")
}

/// v1's clients read gRPC codes.
const fn grpc_code(status: StatusCode) -> u16 {
    match status {
        StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE => 3,
        StatusCode::REQUEST_TIMEOUT => 4,
        StatusCode::NOT_FOUND => 5,
        StatusCode::FORBIDDEN => 7,
        StatusCode::TOO_MANY_REQUESTS => 8,
        StatusCode::PRECONDITION_FAILED => 9,
        StatusCode::CONFLICT => 10,
        StatusCode::METHOD_NOT_ALLOWED => 12,
        StatusCode::SERVICE_UNAVAILABLE => 14,
        StatusCode::UNAUTHORIZED => 16,
        _ => 13,
    }
}
