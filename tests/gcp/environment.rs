//! What depends on the environment of a process is tried in one of its own: this test binary, run again.

use std::process::{Command, Output};
use std::time::Instant;

use tracing_subscriber::filter::LevelFilter;

use super::*;

const KEY: [u8; 32] = *b"a canary that must stay unheard!";

#[expect(clippy::disallowed_methods, reason = "a test finds its own binary, and what its parent says")]
fn said_by_parent(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

/// Runs one of the ignored tests below as a process with this environment and no other.
fn child(test: &str, environment: &[(&str, &str)]) -> Output {
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("gcp::environment::{test}"), "--ignored", "--nocapture"]);
    command.env_clear().env("HOME", home.path()).envs(environment.iter().copied());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_tracing_nor_the_client_s_logging_ever_shows_a_payload() {
    let google = Google::start().await;
    google.fault_once("flipped-bit", "access").await;
    google.fault_once("echo", "add").await;
    let output = child(
        "adds_and_reads_with_every_trace_on",
        &[("GOOGLE_CLOUD_RUST_LOGGING", "true"), ("RUST_LOG", "trace"), ("FAKE", &google.url("owner"))],
    );
    let text = [output.stdout, output.stderr].concat();
    let log = String::from_utf8_lossy(&text);
    assert!(log.contains("a trace is seen"), "{log}");
    let base64 = |at: usize| data_encoding::BASE64.encode(&KEY[at..30]);
    let hex = data_encoding::HEXLOWER.encode(&KEY[..8]);
    let numbers = format!("{:?}", &KEY[..8]).trim_matches(['[', ']']).to_owned();
    for form in ["canary that".to_owned(), base64(0), base64(3), hex, numbers] {
        assert!(!log.contains(&form), "{form} in {log}");
    }
}

#[tokio::test]
#[ignore = "run as a process of its own"]
async fn adds_and_reads_with_every_trace_on() {
    tracing_subscriber::fmt().with_max_level(LevelFilter::TRACE).with_writer(std::io::stderr).init();
    tracing::trace!("a trace is seen");
    let client = client_at(&said_by_parent("FAKE"), Limits::default());
    assert!(matches!(error(client.add(&secret(), &image(&KEY)).await), GcpError::Refused { .. }));
    let added = client.add(&secret(), &image(&KEY)).await.unwrap();
    assert_eq!(bytes(&client.access(&secret(), added).await.unwrap()), KEY);
}

#[tokio::test(flavor = "multi_thread")]
async fn on_loopback_a_proxy_of_the_environment_is_not_used() {
    let google = Google::start().await;
    let nobody = "http://127.0.0.1:9";
    child(
        "reads_the_list",
        &[("http_proxy", nobody), ("HTTP_PROXY", nobody), ("ALL_PROXY", nobody), ("FAKE", &google.url("daemon"))],
    );
    assert_eq!(google.requests("list").await.len(), 1);
}

#[tokio::test]
#[ignore = "run as a process of its own"]
async fn reads_the_list() {
    client_at(&said_by_parent("FAKE"), Limits::within(SHORT)).list(&secret()).await.unwrap();
}

#[test]
fn a_credentials_file_that_is_not_there_is_told_at_once() {
    child("has_no_credentials_file", &[("GOOGLE_APPLICATION_CREDENTIALS", "/no/such/file.json")]);
}

#[tokio::test]
#[ignore = "run as a process of its own"]
async fn has_no_credentials_file() {
    let endpoint = Endpoint::secret_manager(None).unwrap();
    let said = error(SecretManager::connect(&endpoint, Limits::default(), &secret()));
    assert!(matches!(said, GcpError::NoCredentials { .. }), "{said:?}");
    assert!(said.to_string().contains("`gcloud auth application-default login`"), "{said}");
}

/// Without a file there may be a metadata server; one that does not answer must not hang a command.
#[test]
fn a_machine_without_credentials_says_so_within_the_deadline() {
    // Listens, and never accepts.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = silent.local_addr().unwrap().to_string();
    child("has_no_credentials", &[("GCE_METADATA_HOST", &silent)]);
    child("has_no_credentials", &[("GCE_METADATA_HOST", "127.0.0.1:9")]);
}

#[tokio::test]
#[ignore = "run as a process of its own"]
#[expect(clippy::disallowed_methods, reason = "a deadline is measured with a clock that nobody sets")]
async fn has_no_credentials() {
    let client = client_at("https://127.0.0.1:9", Limits::within(SHORT));
    let started = Instant::now();
    let said = error(client.list(&secret()).await);
    assert!(matches!(said, GcpError::NoCredentials { .. }), "{said:?}");
    assert!(started.elapsed() < SHORT + Duration::from_millis(500), "{:?}", started.elapsed());
}
