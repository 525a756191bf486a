//! What a route does not take is refused, not ignored: a precondition or a misspelt parameter that nobody hears would let a caller
//! believe in a guard that is not there.

use std::borrow::Cow;

use axum::extract::MatchedPath;
use axum::http::Method;
use axum::http::header::{IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE};
use axum::http::request::Parts;
use percent_encoding::percent_decode_str;

use super::problem::Refused;

const SECRET: &str = "/v1/secrets/{username}/{name}";

/// The query parameters of the routes that take any, all of them GET's.
pub(super) const QUERIES: [(&str, &[&str]); 4] = [
    (SECRET, &["version"]),
    ("/v1/secrets/{username}", &["pageSize", "pageToken"]),
    ("/v1/admin/tenants", &["pageSize", "pageToken"]),
    ("/v1/admin/tokens", &["pageSize", "pageToken"]),
];

/// The longest name of a parameter that an answer repeats.
const MAX_SHOWN: usize = 40;

/// Refuses a request to a known route that says what the route does not take.
///
/// GET ignores If-None-Match: answers are `no-store`, so that nobody keeps a copy which a 304 could confirm, and an answer in full
/// is right in any case; so it does with If-Modified-Since and If-Range. It does not ignore If-Match and If-Unmodified-Since: who
/// sends one would take any answer for the version that was asked for. No route compares times: two versions may share one second,
/// which is as fine as a date is (RFC 9110, section 8.8.2.2).
pub(super) fn refuse(parts: &Parts) -> Result<(), Refused> {
    let Some(route) = parts.extensions.get::<MatchedPath>() else { return Ok(()) };
    let (route, method, headers) = (route.as_str(), &parts.method, &parts.headers);
    let reads = matches!(*method, Method::GET | Method::HEAD);
    if !(route == SECRET && *method == Method::PUT) {
        if headers.contains_key(IF_MATCH) {
            return Err(no_precondition("If-Match"));
        }
        if headers.contains_key(IF_NONE_MATCH) && !reads {
            return Err(no_precondition("If-None-Match"));
        }
    }
    for (header, name, when_reading) in [
        (IF_UNMODIFIED_SINCE, "If-Unmodified-Since", Ignored::No),
        (IF_MODIFIED_SINCE, "If-Modified-Since", Ignored::Yes),
        (IF_RANGE, "If-Range", Ignored::Yes),
    ] {
        if headers.contains_key(header) && !(reads && when_reading == Ignored::Yes) {
            return Err(no_precondition(name));
        }
    }
    let taken = QUERIES.iter().find(|(path, _)| *path == route && reads).map_or(&[][..], |(_, keys)| keys);
    refuse_query(parts.uri.query().unwrap_or_default(), taken)
}

/// Whether a GET may do as if a header were not there.
#[derive(PartialEq, Eq)]
enum Ignored {
    Yes,
    No,
}

fn no_precondition(header: &str) -> Refused {
    Refused::invalid(format!(
        "this route does not take {header}; PUT {SECRET} takes If-Match and If-None-Match, and POST /v1/secrets and batch-set take `cas`"
    ))
}

fn refuse_query(query: &str, taken: &[&str]) -> Result<(), Refused> {
    let keys = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| key(pair.split('=').next().unwrap_or(pair)));
    for key in keys {
        if !taken.contains(&&*key) {
            let offered = if taken.is_empty() { "none".to_owned() } else { taken.join(" and ") };
            return Err(Refused::invalid(format!("the query has {}; this route takes {offered}", shown(&key))));
        }
    }
    Ok(())
}

/// As the query's own parser reads it (application/x-www-form-urlencoded).
fn key(encoded: &str) -> String {
    percent_decode_str(&encoded.replace('+', " ")).decode_utf8_lossy().into_owned()
}

/// A name that could be one of a parameter is repeated; anything else may be a value that went astray.
fn shown(key: &str) -> Cow<'static, str> {
    let plain = |byte: u8| byte.is_ascii_alphabetic() || matches!(byte, b'_' | b'-');
    if (1..=MAX_SHOWN).contains(&key.len()) && key.bytes().all(plain) {
        format!("the parameter `{key}`").into()
    } else {
        "a parameter that no route takes".into()
    }
}
