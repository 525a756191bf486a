//! The master key wrapped by Cloud KMS: real daemons and commands over the fake, whose daemon may only decrypt.

mod changing;
mod returning;
mod rotating;
mod verifying;

use std::path::Path;
use std::process::Output;

use containarium::crypto::KeyfileImage;
use containarium::keys::keyfile::{KeyFiles, MainFile};
use containarium::model::{Kid, WrappedMaster};
use serde_json::Value;

use crate::support::google::{Google, KMS_KEY, OTHER_KMS_KEY, SECRET};
use crate::support::site::{Daemon, Site};

/// Google, and the deployment's configurations: of the daemon, and of an operator who wraps.
struct Cloud {
    google: Google,
    runtime: tokio::runtime::Runtime,
    /// `age1…`, whose identity lies in `identity.txt`.
    recipient: String,
}

impl Cloud {
    fn of(site: &Site) -> Self {
        use ::age::secrecy::ExposeSecret;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let google = runtime.block_on(Google::start());
        let identity = ::age::x25519::Identity::generate();
        write_identity(&site.path("identity.txt"), identity.to_string().expose_secret());
        let cloud = Self { google, runtime, recipient: identity.to_public().to_string() };
        cloud.configure(site);
        cloud
    }

    /// Writes the deployment's configurations for a node.
    fn configure(&self, site: &Site) {
        for (file, identity) in [
            ("config.toml", "daemon"),
            ("operator.toml", "operator"),
            ("nobody.toml", "nobody"),
            ("wrapper.toml", "wrapper"),
            ("restore.toml", "restore"),
            ("owner.toml", "owner"),
        ] {
            let url = self.google.url(identity);
            let backup = format!("[backup.gcp]\nsecrets = [\"{SECRET}\"]\nendpoint = \"{url}\"\n");
            std::fs::write(site.path(file), format!("{backup}[kms.gcp]\nkey = \"{KMS_KEY}\"\nendpoint = \"{url}\"\n"))
                .unwrap();
        }
    }

    fn fault(&self, fault: &str, operation: &str) {
        self.runtime.block_on(self.google.fault(fault, operation));
    }

    fn heal(&self) {
        self.runtime.block_on(self.google.heal());
    }

    /// How often this identity asked.
    fn requests(&self, operation: &str, identity: &str) -> usize {
        let all = self.runtime.block_on(self.google.requests(operation));
        all.iter().filter(|request| request["identity"] == identity).count()
    }

    /// Wraps with the KMS key and for the age recipient, which is proven.
    fn wrap(&self, site: &Site) {
        let identity = site.path("identity.txt").display().to_string();
        done(&as_operator(site, &["kms", "wrap", "--age", &self.recipient, "--age-identity", &identity]));
    }
}

fn write_identity(path: &Path, identity: &str) {
    std::fs::write(path, identity).unwrap();
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
}

/// A command with the operator's credentials.
fn as_operator(site: &Site, words: &[&str]) -> Output {
    with(site, "operator.toml", words)
}

fn with(site: &Site, config: &str, words: &[&str]) -> Output {
    let config = site.path(config).display().to_string();
    let words: Vec<&str> = words.iter().copied().chain(["--config", &config]).collect();
    site.cli(words, b"")
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[track_caller]
fn done(output: &Output) {
    assert!(output.status.success(), "{}", said(output));
}

#[track_caller]
fn fails(output: &Output, code: i32, words: &[&str]) {
    assert_eq!(output.status.code(), Some(code), "{}", said(output));
    for word in words {
        assert!(said(output).contains(word), "no {word:?} in: {}", said(output));
    }
}

fn key_file(site: &Site) -> Vec<u8> {
    std::fs::read(site.key_file()).unwrap()
}

fn wrapped(site: &Site) -> WrappedMaster {
    WrappedMaster::parse(&key_file(site)).unwrap()
}

fn main_kid(site: &Site) -> Kid {
    match KeyFiles::at(&site.key_file()).unwrap().scan().main {
        MainFile::Key(key) => key.kid,
        MainFile::Missing => panic!("no key file"),
        MainFile::Bad(error) => panic!("{error}"),
    }
}

/// A deployment with one secret, whose key is wrapped; no daemon runs.
fn wrapped_site(site: &Site) -> Cloud {
    let cloud = Cloud::of(site);
    let daemon = site.start();
    assert_eq!(daemon.set("alice", "A", b"one").status, 200);
    daemon.stop();
    cloud.wrap(site);
    cloud
}

fn readyz(daemon: &Daemon) -> (u16, String) {
    let answer = daemon.get("/readyz");
    (answer.status, String::from_utf8_lossy(&answer.body).into_owned())
}

fn kms_check(daemon: &Daemon) -> Value {
    let checks = daemon.get("/v1/admin/doctor").json()["checks"].clone();
    let found = checks.as_array().unwrap().iter().find(|check| check["name"] == "kms").cloned();
    found.unwrap_or(Value::Null)
}

const READY: &str = "Secrets store ready (gcp-kms-keyed, AES-256-GCM)";

#[test]
fn a_start_asks_kms_once_and_reads_and_writes_ask_it_for_nothing() {
    let site = Site::sqlite();
    let cloud = wrapped_site(&site);
    let before = cloud.requests("decrypt", "daemon");
    let daemon = site.start();
    site.logged(READY);
    // A hundred thousand values in a hundred answers, and two thousand one by one.
    let many: Vec<Value> = (0..1_000).map(|n| serde_json::json!({"name": format!("N{n}"), "value": "v"})).collect();
    let body = serde_json::json!({"secrets": many}).to_string();
    assert_eq!(daemon.request("POST", "/v1/secrets/many/batch-set", body.as_bytes()).status, 200);
    let mut read = 0;
    for _ in 0..100 {
        read += daemon.request("POST", "/v1/secrets/many/batch-get", b"").json()["secrets"].as_array().unwrap().len();
    }
    assert_eq!(read, 100_000);
    for _ in 0..2_000 {
        assert_eq!(daemon.value("alice", "A").unwrap(), b"one");
    }
    for number in 0..50 {
        assert_eq!(daemon.set(&format!("tenant-{number}"), "B", b"two").status, 200);
    }
    assert_eq!(cloud.requests("decrypt", "daemon") - before, 1, "one needed kid");
    assert_eq!(cloud.requests("encrypt", "daemon"), 0);
    let metrics = String::from_utf8(daemon.get("/metrics").body).unwrap();
    let proven = metrics.lines().find_map(|line| line.strip_prefix("containarium_kms_proven_timestamp_seconds "));
    assert!(proven.unwrap().parse::<f64>().unwrap() > 1.7e9, "the opening is the first proof");
    assert_eq!(kms_check(&daemon)["verdict"], "ok");
    // However long it is away from now on, nothing changes.
    cloud.fault("503", "decrypt");
    for _ in 0..20 {
        assert_eq!(daemon.value("alice", "A").unwrap(), b"one");
    }
    assert_eq!(daemon.set("new", "C", b"three").status, 200);
    assert_eq!(readyz(&daemon).0, 200);
}

#[test]
fn kms_away_at_start_is_waited_for_and_the_daemon_opens_by_itself() {
    let site = Site::postgres();
    let cloud = wrapped_site(&site);
    cloud.fault("503", "decrypt");
    let mut daemon = site.start();
    let (status, why) = readyz(&daemon);
    assert_eq!(status, 503);
    assert!(why.contains("HTTP 503") && why.contains(KMS_KEY) && why.contains("--age-identity"), "{why}");
    assert_eq!(daemon.get("/livez").status, 200);
    let read = daemon.get("/v1/secrets/alice/A");
    assert_eq!(read.status, 503);
    assert!(read.problem().contains("the master key is wrapped, and does not open yet"), "{}", read.problem());
    assert!(!read.problem().contains("projects/"), "{}", read.problem());
    daemon.told("Waiting for keys: the master key is wrapped");
    let tried = cloud.requests("decrypt", "daemon");
    cloud.heal();
    daemon.told("Secrets store ready");
    site.logged(READY);
    assert_eq!(daemon.value("alice", "A").unwrap(), b"one");
    assert_eq!(readyz(&daemon).0, 200);
    // Five tries of a call, and calls ever further apart: not one a second.
    assert!(tried <= 15, "{tried}");
}

#[test]
fn an_age_identity_opens_it_while_kms_is_away() {
    let site = Site::sqlite();
    let cloud = wrapped_site(&site);
    cloud.fault("cut", "decrypt");
    let identity = site.path("identity.txt").display().to_string();
    let daemon = site.start_with(site.command(["daemon", "--age-identity", &identity]));
    assert_eq!(readyz(&daemon).0, 200, "{}", site.log());
    assert_eq!(daemon.value("alice", "A").unwrap(), b"one");
    // That KMS does not open it is found all the same.
    site.logged("could not be proven to open with KMS");
    let check = kms_check(&daemon);
    assert_eq!(check["verdict"], "failure", "{check}");
    daemon.stop();
    write_identity(identity.as_ref(), "AGE-SECRET-KEY-1");
    let daemon = site.start_with(site.command(["daemon", "--age-identity", &identity]));
    let (status, why) = readyz(&daemon);
    assert_eq!(status, 503);
    assert!(why.contains("the age identity") && why.contains("the connection to"), "both are said: {why}");
}

#[test]
fn audit_verify_opens_the_wrapped_key_by_itself_and_says_where_that_does_not_open() {
    let site = Site::sqlite();
    let cloud = wrapped_site(&site);
    let whole = with(&site, "config.toml", &["audit", "verify"]);
    done(&whole);
    assert!(said(&whole).contains(": whole"), "{}", said(&whole));
    cloud.fault("cut", "decrypt");
    fails(&with(&site, "config.toml", &["audit", "verify"]), 5, &["secrets.key: ", KMS_KEY, "--age-identity FILE"]);
    let identity = site.path("identity.txt").display().to_string();
    done(&with(&site, "config.toml", &["audit", "verify", "--age-identity", &identity]));
}

#[test]
fn each_wrong_answer_is_said_and_nothing_is_opened_by_other_means() {
    let site = Site::sqlite();
    let cloud = wrapped_site(&site);
    // A raw copy of the key, forgotten among the retained ones, does not stand in for KMS.
    let kid = wrapped(&site).kid;
    let raw = {
        let identity = site.path("identity.txt").display().to_string();
        done(&as_operator(&site, &["kms", "unwrap", "--age-identity", &identity]));
        let raw = key_file(&site);
        cloud.wrap(&site);
        raw
    };
    let retained = site.path("etc/secrets.key.d");
    std::fs::create_dir_all(&retained).unwrap();
    let permissions = |mode| std::os::unix::fs::PermissionsExt::from_mode(mode);
    std::fs::set_permissions(&retained, permissions(0o700)).unwrap();
    std::fs::write(retained.join(kid.to_string()), &raw).unwrap();
    std::fs::set_permissions(retained.join(kid.to_string()), permissions(0o400)).unwrap();
    for (fault, words) in [
        ("flipped-bit", "does not have its checksum"),
        ("other-key", "gave another master key"),
        ("short", "gave no master key: it has 31 bytes"),
        ("oversized", "which no true one has"),
        ("redirect", "answered with a redirect"),
        ("cut", "broke before the answer was whole"),
        ("truncated", "broke before the answer was whole"),
        ("slow", "gave no answer within 10 s"),
        ("garbage", "did not answer as Cloud KMS does"),
        ("403", "was denied"),
        ("404", "there is no such key"),
    ] {
        cloud.heal();
        cloud.fault(fault, "decrypt");
        let daemon = site.start();
        let (status, why) = readyz(&daemon);
        assert_eq!(status, 503, "{fault}");
        assert!(why.contains(words), "{fault}: {why}");
        assert_eq!(daemon.get("/v1/secrets/alice/A").status, 503, "{fault}");
        daemon.kill();
    }
    cloud.heal();
    cloud.runtime.block_on(cloud.google.set_kms_state(KMS_KEY, 1, "DISABLED"));
    let daemon = site.start();
    assert!(readyz(&daemon).1.contains("is disabled"), "{}", readyz(&daemon).1);
    cloud.runtime.block_on(cloud.google.set_kms_state(KMS_KEY, 1, "ENABLED"));
    site.logged(READY);
    daemon.stop();
    cloud.runtime.block_on(cloud.google.destroy_kms(KMS_KEY, 1));
    let daemon = site.start();
    assert!(readyz(&daemon).1.contains("is destroyed, or scheduled for it"), "{}", readyz(&daemon).1);
}

#[test]
fn a_stolen_copy_of_file_and_database_opens_nothing_without_kms() {
    let site = Site::sqlite();
    let cloud = wrapped_site(&site);
    let thief = site.command(["daemon", "--config", &site.path("nobody.toml").display().to_string()]);
    let daemon = site.start_with(thief);
    let (status, why) = readyz(&daemon);
    assert_eq!(status, 503);
    assert!(why.contains("was denied") && why.contains("cloudkms.cryptoKeyVersions.useToDecrypt"), "{why}");
    assert_eq!(daemon.get("/v1/secrets/alice/A").status, 503);
    assert!(cloud.requests("decrypt", "nobody") > 0);
}

#[test]
fn a_wrapped_file_that_was_changed_does_not_open() {
    let site = Site::sqlite();
    let cloud = wrapped_site(&site);
    let good = wrapped(&site);
    let other = Site::sqlite();
    let _other_cloud = wrapped_site(&other);
    let mut exchanged = wrapped(&other);
    exchanged.kid = good.kid;
    exchanged.recipients.truncate(1);
    std::fs::remove_file(site.key_file()).unwrap();
    let mut bytes = Vec::new();
    KeyfileImage::of_wrapped(&exchanged).write_to(&mut bytes).unwrap();
    std::fs::write(site.key_file(), &bytes).unwrap();
    std::fs::set_permissions(site.key_file(), std::os::unix::fs::PermissionsExt::from_mode(0o400)).unwrap();
    let daemon = site.start();
    assert!(readyz(&daemon).1.contains("did not encrypt this ciphertext"), "{}", readyz(&daemon).1);
    drop(cloud);
}
