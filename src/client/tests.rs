use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::*;
use crate::wire::MAX_PAGE;

const GET_ANSWER: &str = r#"{"secret":{"username":"alice","name":"KEY","version":1,"createdAt":"t","updatedAt":"t",
    "delivery":"env","deliveryMode":"SECRET_DELIVERY_ENV"},"value":"canary"}"#;

fn names() -> (Tenant, SecretName) {
    (Tenant::parse("alice").unwrap(), SecretName::parse("KEY").unwrap())
}

async fn read_request(stream: &mut UnixStream) -> Vec<u8> {
    let mut request = Vec::new();
    loop {
        let mut chunk = [0; 4096];
        let read = stream.read(&mut chunk).await.unwrap();
        request.extend_from_slice(&chunk[..read]);
        let text = String::from_utf8_lossy(&request);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                return request;
            }
        }
    }
}

/// Answers one request with these bytes, then closes.
async fn answering<T>(answer: impl Into<Vec<u8>>, ask: impl AsyncFnOnce(Client) -> T) -> (T, String) {
    let answer = answer.into();
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    let client = Client::with_deadline(socket, Duration::from_secs(5));
    let server = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let request = read_request(&mut stream).await;
        // A client that has seen enough may hang up first.
        let _ = stream.write_all(&answer).await;
        request
    };
    let (result, request) = tokio::join!(ask(client), server);
    (result, String::from_utf8(request).unwrap())
}

fn http(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

fn problem(status: u16) -> String {
    format!(
        r#"{{"type":"about:blank","title":"t","status":{status},"detail":"why","code":1,"message":"why","requestId":"r1"}}"#
    )
}

async fn get_error(answer: impl Into<Vec<u8>>) -> ClientError {
    let (tenant, name) = names();
    let (result, _) = answering(answer, async |client| client.get(&tenant, &name, None).await).await;
    result.err().unwrap()
}

#[tokio::test]
async fn a_value_comes_back_as_it_was_sent() {
    let (tenant, name) = names();
    let version = SecretVersion::new(7);
    let (fetched, request) =
        answering(http("200 OK", GET_ANSWER), async |client| client.get(&tenant, &name, version).await).await;
    assert_eq!(fetched.unwrap().value.expose(), b"canary");
    assert!(request.starts_with("GET /v1/secrets/alice/KEY?version=7 HTTP/1.1\r\n"), "{request}");
}

#[tokio::test]
async fn a_set_sends_the_value_in_one_body_with_its_length() {
    let (tenant, name) = names();
    let value = SecretValue::new(Zeroizing::new(vec![0xFF; 65_536]));
    let body = SetBody::new(&tenant, &name, &value).cas(Some(0));
    let (result, request) = answering(http("201 Created", "{}"), async |client| client.set(&body).await).await;
    assert!(matches!(result, Err(ClientError::Unreadable { status: 201 })));
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("POST /v1/secrets HTTP/1.1\r\n") && head.contains("content-type: application/json"));
    let back: crate::wire::SetRequest = serde_json::from_str(body).unwrap();
    assert_eq!(one_value(back.value, back.value_base64).unwrap().expose(), value.expose());
}

#[test]
fn each_segment_and_parameter_is_encoded_once() {
    let target = |segment| Target::new(Method::GET, ["v1", segment]);
    for (segment, path) in [
        ("a.b-c_d~", "/v1/a.b-c_d~"),
        ("../x", "/v1/..%2Fx"),
        ("%2F", "/v1/%252F"),
        ("a b?c#d", "/v1/a%20b%3Fc%23d"),
        ("é", "/v1/%C3%A9"),
    ] {
        assert_eq!(target(segment).path(), path);
    }
    assert_eq!(target("x").query("pageToken", Some("a&b=c")).path(), "/v1/x?pageToken=a%26b%3Dc");
    assert_eq!(target("x").query("pageToken", None).path(), "/v1/x");
}

#[tokio::test]
async fn each_status_has_its_class() {
    for (status, class) in [
        (400, ErrorClass::Failed),
        (401, ErrorClass::Denied),
        (403, ErrorClass::Denied),
        (404, ErrorClass::NotFound),
        (409, ErrorClass::Conflict),
        (412, ErrorClass::Conflict),
        (413, ErrorClass::Failed),
        (429, ErrorClass::Unavailable),
        (500, ErrorClass::Failed),
        (503, ErrorClass::Unavailable),
    ] {
        let error = get_error(http(&format!("{status} X"), &problem(status))).await;
        assert_eq!((error.class(), error.effect()), (class, Effect::None), "{status}");
        assert!(matches!(&error, ClientError::Problem { request_id, .. } if request_id == "r1"), "{error:?}");
        assert_eq!(error.to_string(), "why");
    }
}

#[tokio::test]
async fn a_problem_says_when_to_come_back() {
    let body = problem(429);
    let answer = format!("HTTP/1.1 429 X\r\nretry-after: 7\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    assert!(matches!(get_error(answer).await, ClientError::Problem { retry_after: Some(7), .. }));
}

#[tokio::test]
async fn a_body_that_is_no_problem_is_told_by_its_status_alone() {
    for body in ["<html>canary</html>", "", r#"{"detail":"canary"}"#, "\u{1b}[2Jcanary", "null"] {
        let error = get_error(http("503 X", body)).await;
        assert!(matches!(error, ClientError::Unreadable { status: 503 }), "{error:?}");
        assert!(error.class() == ErrorClass::Unavailable && !format!("{error:?}{error}").contains("canary"));
    }
}

#[tokio::test]
async fn an_answer_that_does_not_parse_shows_nothing_of_itself() {
    let both = GET_ANSWER.replace("\"value\":", "\"value_base64\":\"\",\"value\":");
    let bad_base64 = GET_ANSWER.replace("\"value\":", "\"value_base64\":");
    for body in [GET_ANSWER.trim_end_matches('}'), "canary", &both, &bad_base64, "{}"] {
        let error = get_error(http("200 OK", body)).await;
        assert!(matches!(error, ClientError::Unreadable { status: 200 }), "{error:?}");
        assert!(!format!("{error:?}{error}").contains("canary") && error.effect() == Effect::Unknown);
    }
    let error = get_error(http("302 Found", "")).await;
    assert!(matches!(error, ClientError::Unreadable { status: 302 }), "{error:?}");
}

#[tokio::test]
async fn an_answer_past_the_limit_is_not_read() {
    let announced = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", u64::MAX);
    assert!(matches!(get_error(announced).await, ClientError::TooLarge { .. } | ClientError::Broken));
    let announced = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", MAX_BODY_BYTES + 1);
    assert!(matches!(get_error(announced).await, ClientError::TooLarge { .. }));
    let chunk = format!("10000\r\n{}\r\n", "a".repeat(0x10000));
    let endless = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{}", chunk.repeat(10));
    assert!(matches!(get_error(endless).await, ClientError::TooLarge { .. }));
}

#[tokio::test]
async fn a_connection_that_ends_early_is_told_and_leaves_the_outcome_open() {
    for answer in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{", "SSH-2.0-x\r\n"] {
        let error = get_error(answer).await;
        assert!(matches!(error, ClientError::Broken), "{error:?}");
        assert_eq!((error.class(), error.effect()), (ErrorClass::Unavailable, Effect::Unknown));
    }
}

#[tokio::test]
async fn a_whole_answer_counts_although_the_connection_ends_with_it() {
    let (tenant, name) = names();
    let answer = format!("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{GET_ANSWER}");
    let (fetched, _) = answering(answer, async |client| client.get(&tenant, &name, None).await).await;
    assert!(fetched.is_ok());
}

#[tokio::test]
async fn a_daemon_that_never_answers_costs_no_more_than_the_deadline() {
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("s");
    let _listener = UnixListener::bind(&socket).unwrap();
    let error = Client::with_deadline(socket, Duration::from_millis(50)).status().await.err().unwrap();
    assert!(matches!(error, ClientError::Deadline { .. }), "{error:?}");
    assert_eq!((error.class(), error.effect()), (ErrorClass::Unavailable, Effect::Unknown));
}

#[tokio::test]
async fn a_missing_and_an_abandoned_socket_are_no_daemon() {
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("s");
    for _ in 0..2 {
        let error = Client::new(socket.clone()).status().await.err().unwrap();
        assert!(matches!(error, ClientError::NoDaemon { .. }), "{error:?}");
        assert_eq!((error.class(), error.effect()), (ErrorClass::Unavailable, Effect::None));
        // The second time the socket is there, and nobody listens.
        drop(std::os::unix::net::UnixListener::bind(&socket));
    }
}

#[tokio::test]
async fn a_full_page_of_the_longest_names_fits_the_limit() {
    let secret = SecretMetadata {
        username: "t".repeat(64),
        name: "N".repeat(128),
        version: u64::MAX,
        created_at: "2025-11-24T16:00:00.123456Z".to_owned(),
        updated_at: "2025-11-24T16:00:00.123456Z".to_owned(),
        delivery: "compose".to_owned(),
        delivery_mode: "SECRET_DELIVERY_COMPOSE".to_owned(),
    };
    let page = ListAnswer { secrets: vec![secret; MAX_PAGE as usize], next_page_token: Some("N".repeat(172)) };
    let answer = http("200 OK", &serde_json::to_string(&page).unwrap());
    let (tenant, _) = names();
    let (listed, request) = answering(answer, async |client| client.list(&tenant, Some("TkFNRQ")).await).await;
    assert_eq!(listed.unwrap(), page);
    assert!(request.starts_with("GET /v1/secrets/alice?pageToken=TkFNRQ HTTP/1.1\r\n"), "{request}");
}

#[test]
fn a_socket_without_permission_is_denied_and_not_absent() {
    // Root, who often runs the tests, has permission everywhere; so the error is made here.
    let error = transport::not_connected(std::path::Path::new("/s"), std::io::ErrorKind::PermissionDenied.into());
    assert_eq!(error.class(), ErrorClass::Denied);
    assert_eq!(error.to_string(), "no permission for the socket /s");
    let error = transport::not_connected(std::path::Path::new("/s"), std::io::ErrorKind::NotADirectory.into());
    assert_eq!(error.class(), ErrorClass::Unavailable);
}
