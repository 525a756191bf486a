//! The life of tenants' DEKs, over the real binary and on both stores.

mod quarantine;
mod reencrypt;
mod rotate;
mod shred;

use std::io::{BufRead, BufReader, Write};
use std::process::Output;

use serde_json::{Value, json};

use crate::support::site::{Answer, Daemon, Site};

/// Asks for a `rotate-dek` over HTTP and answers its lines. HTTP/1.0, so that the body comes without chunks.
fn rotate_dek(daemon: &Daemon, request: &Value) -> (u16, Vec<Value>) {
    let answer = Answer::parse(&daemon.raw(&post("/v1/admin/rotate-dek", request)));
    (answer.status, lines(&answer))
}

fn post(path: &str, body: &Value) -> Vec<u8> {
    let body = body.to_string();
    format!("POST {path} HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn lines(answer: &Answer) -> Vec<Value> {
    let lines = answer.body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_slice(line).unwrap()).collect()
}

/// The last line of a `rotate-dek` that must end well.
#[track_caller]
fn rotated(daemon: &Daemon, request: &Value) -> Value {
    let (status, lines) = rotate_dek(daemon, request);
    assert_eq!(status, 200, "{lines:?}");
    let last = lines.last().unwrap().clone();
    assert_eq!(last["event"], "done", "{last}");
    assert!(lines[..lines.len() - 1].iter().all(|line| line["event"] == "progress"), "{lines:?}");
    last
}

/// The lines of an answer as they come.
fn following(daemon: &Daemon, message: &[u8]) -> impl Iterator<Item = Value> + use<> {
    let mut stream = daemon.connect();
    stream.write_all(message).unwrap();
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    assert!(lines.next().unwrap().contains("200 OK"));
    lines.skip_while(|line| !line.is_empty()).skip(1).map(|line| serde_json::from_str(&line).unwrap())
}

fn reencrypt(tenant: &str) -> Value {
    json!({ "username": tenant, "mode": "reencrypt" })
}

/// What a command printed, where it ended with this code.
#[track_caller]
fn ended(output: &Output, code: i32) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let said = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{said:?}");
    said
}

/// What a table of names and values has beside a name.
#[track_caller]
fn row<'a>(table: &'a str, name: &str) -> &'a str {
    let row = table.lines().find_map(|line| line.strip_prefix(name));
    row.unwrap_or_else(|| panic!("no {name}: {table}")).trim()
}

fn dek_count(site: &Site, tenant: &str, state: &str) -> i64 {
    site.number(&format!("SELECT count(*) FROM deks WHERE tenant = '{tenant}' AND state = '{state}'"))
}

/// How many live versions of a tenant are sealed under a DEK version.
fn sealed_under(site: &Site, tenant: &str, dek: u32) -> i64 {
    site.number(&format!("SELECT count(*) FROM secret_versions WHERE tenant = '{tenant}' AND dek_version = {dek}"))
}

/// The audit records of an action, `tenant outcome` each.
fn audited(site: &Site, action: &str) -> Vec<String> {
    let records = site.audit();
    let of_action = records.iter().filter(|record| record["action"] == action);
    of_action
        .map(|record| format!("{} {}", record["tenant"].as_str().unwrap_or("-"), record["outcome"].as_str().unwrap()))
        .collect()
}
