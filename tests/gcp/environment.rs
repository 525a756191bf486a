//! What depends on the environment of a process is tried in one of its own: this test binary, run again.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
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

/// What Google is in production: TLS with a certificate of an authority that the host trusts, and a bearer token.
struct TlsServer {
    directory: tempfile::TempDir,
    process: Child,
    port: String,
}

/// Answers every request with an empty list, and writes what authorized it to `seen`.
const SERVER: &str = r#"
import http.server, ssl
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        with open("seen", "a") as seen: seen.write(self.headers.get("Authorization", "nothing") + "\n")
        self.send_response(200); self.send_header("Content-Length", "2"); self.end_headers(); self.wfile.write(b"{}")
    def log_message(self, *_): pass
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER); tls.load_cert_chain("cert.pem", "tls.pem")
server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
print(server.server_address[1], flush=True)
server.serve_forever()
"#;

impl TlsServer {
    /// `None` where openssl or python3 is missing.
    fn start() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let run = |program: &str, arguments: &[&str]| {
            let output = Command::new(program).args(arguments).current_dir(directory.path()).output().ok()?;
            output.status.success().then_some(())
        };
        let certificate = [
            "-subj",
            "/CN=127.0.0.1",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
            "-days",
            "2",
            "-nodes",
        ];
        let request = ["req", "-x509", "-newkey", "rsa:2048", "-keyout", "tls.pem", "-out", "cert.pem"];
        run("openssl", &[&request[..], &certificate].concat())?;
        run("openssl", &["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", "account.pem"])?;
        let account = serde_json::json!({
            "type": "service_account",
            "project_id": "acme-prod",
            "private_key_id": "1",
            "private_key": std::fs::read_to_string(directory.path().join("account.pem")).unwrap(),
            "client_email": "backup@acme-prod.iam.gserviceaccount.com",
            "token_uri": "https://127.0.0.1:9/token",
        });
        std::fs::write(directory.path().join("account.json"), account.to_string()).unwrap();
        let mut python = Command::new("python3");
        python.args(["-c", SERVER]).current_dir(directory.path()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = python.spawn().ok()?;
        let mut port = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut port).unwrap();
        Some(Self { directory, process, port: port.trim().to_owned() })
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    fn child(&self, test: &str, authorities: &Path) {
        let account = self.file("account.json");
        let endpoint = format!("https://127.0.0.1:{}", self.port);
        let environment = [
            ("GOOGLE_APPLICATION_CREDENTIALS", account.to_str().unwrap()),
            ("SSL_CERT_FILE", authorities.to_str().unwrap()),
            ("FAKE", &endpoint),
        ];
        child(test, &environment);
    }
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

#[test]
fn elsewhere_than_on_loopback_the_service_is_proven_by_tls_and_the_caller_by_a_token() {
    let Some(server) = TlsServer::start() else {
        eprintln!("skipped: elsewhere_than_on_loopback_…: openssl or python3 is not installed");
        return;
    };
    server.child("lists_nothing", &server.file("cert.pem"));
    let seen = std::fs::read_to_string(server.file("seen")).unwrap();
    assert!(seen.starts_with("Bearer ey"), "{seen}");

    // An authority that did not sign the server's certificate: the token must not get there.
    std::fs::remove_file(server.file("seen")).unwrap();
    let strangers = TlsServer::start().unwrap();
    server.child("meets_a_stranger", &strangers.file("cert.pem"));
    assert!(!server.file("seen").exists());
}

#[tokio::test]
#[ignore = "run as a process of its own"]
async fn lists_nothing() {
    assert_eq!(client_at(&said_by_parent("FAKE"), Limits::default()).list(&secret()).await, Ok(vec![]));
}

#[tokio::test]
#[ignore = "run as a process of its own"]
async fn meets_a_stranger() {
    let said = error(client_at(&said_by_parent("FAKE"), Limits::within(SHORT)).list(&secret()).await);
    assert!(matches!(said, GcpError::Unreachable { .. }), "{said:?}");
    assert!(said.to_string().to_lowercase().contains("certificate"), "{said}");
}
