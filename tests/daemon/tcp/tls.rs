//! Certificates: real clients, real handshakes, and what an operator can give wrongly.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use super::{Served, command};
use crate::support::site::{PATIENCE, Site};

/// A certificate and key of its own making, for localhost and 127.0.0.1.
fn make(site: &Site, name: &str) {
    let (certificate, key) = (site.path(&format!("{name}.pem")), site.path(&format!("{name}.key")));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"])
        .args(["-subj", &format!("/CN={name}"), "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    set_mode(&key, 0o600);
}

/// A certificate of the same key that ended yesterday.
fn make_old(site: &Site, name: &str) {
    let key = site.path(&format!("{name}.key"));
    let request = Command::new("openssl").args(["req", "-new", "-subj", "/CN=old", "-key"]).arg(&key).output().unwrap();
    std::fs::write(site.path("request.pem"), request.stdout).unwrap();
    std::fs::write(site.path("extensions"), "subjectAltName=DNS:localhost,IP:127.0.0.1\n").unwrap();
    let made = Command::new("openssl")
        .args(["x509", "-req", "-days", "-1", "-in"])
        .arg(site.path("request.pem"))
        .arg("-extfile")
        .arg(site.path("extensions"))
        .arg("-signkey")
        .arg(&key)
        .arg("-out")
        .arg(site.path(&format!("{name}.pem")))
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
}

fn flags(site: &Site, name: &str) -> [String; 4] {
    let path = |end: &str| site.path(&format!("{name}.{end}")).display().to_string();
    ["--tls-cert".to_owned(), path("pem"), "--tls-key".to_owned(), path("key")]
}

fn serve() -> Served {
    let site = Site::sqlite();
    make(&site, "one");
    let given = flags(&site, "one");
    let daemon = site.start_with(command(&site, &given.each_ref().map(String::as_str)));
    Served { daemon, site }
}

impl Served {
    fn curl(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("curl");
        command.args(["-sS", "--max-time", "30", "-w", "%{http_code}", "--cacert"]).arg(self.site.path("one.pem"));
        command.args(arguments).arg(format!("https://{}/livez", self.address(""))).output().unwrap()
    }

    /// The name in the certificate that a new connection gets, or what openssl said.
    fn greeted(&self, options: &[&str]) -> String {
        let output = Command::new("openssl")
            .args(["s_client", "-connect", &self.address("")])
            .args(options)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    }
}

#[test]
fn tls_1_3_and_1_2_are_spoken_and_nothing_older_and_no_plain_http() {
    let served = serve();
    for version in [&["--tlsv1.3"][..], &["--tlsv1.2", "--tls-max", "1.2"]] {
        let output = served.curl(version);
        assert!(String::from_utf8_lossy(&output.stdout).ends_with("200"), "{version:?}: {output:?}");
    }
    assert!(served.greeted(&["-tls1_3"]).contains("CN = one") || served.greeted(&["-tls1_3"]).contains("CN=one"));
    // Level 0: else this openssl does not even offer it.
    let old = served.greeted(&["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"]);
    assert!(old.contains("no peer certificate available") && old.contains("alert"), "{old}");
    let newer = served.greeted(&["-tls1_2", "-cipher", "ALL:@SECLEVEL=0"]);
    assert!(newer.contains("BEGIN CERTIFICATE"), "the version was the reason: {newer}");
    let plain = super::exchange(served.connect(), b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(!plain.starts_with(b"HTTP/"), "{plain:?}");
    assert!(served.turned_away("handshake") >= 2);
}

#[test]
fn a_certificate_is_renewed_under_load_without_a_dropped_connection_and_a_bad_one_changes_nothing() {
    let served = serve();
    make(&served.site, "two");
    let trusted = served.site.path("both.pem");
    let read = |name: &str| std::fs::read(served.site.path(name)).unwrap();
    std::fs::write(&trusted, [read("one.pem"), read("two.pem")].concat()).unwrap();
    let url = format!("https://{}", served.address(""));
    let (done, asked) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    // Over TLS with a certificate of either kind; the refusal of a caller whom nobody knows is an answer.
                    let output = served
                        .site
                        .command(["secrets", "get", "alice", "KEY", "--server", &url, "--ca-cert"])
                        .arg(&trusted)
                        .output()
                        .unwrap();
                    let said = String::from_utf8_lossy(&output.stderr).into_owned();
                    assert!(output.status.code() == Some(4) && said.contains("the caller is not known"), "{said}");
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        // One that stays over the reload.
        let mut long = Command::new("openssl")
            .args(["s_client", "-quiet", "-connect", &served.address("")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (mut to, mut from) = (long.stdin.take().unwrap(), long.stdout.take().unwrap());
        std::io::Write::write_all(&mut to, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut head = [0; 12];
        std::io::Read::read_exact(&mut from, &mut head).unwrap();
        assert_eq!(&head, b"HTTP/1.1 200");
        for (certificate, says) in
            [(read("two.pem"), "new connections get"), (b"no certificate".to_vec(), "stays as it was")]
        {
            std::fs::write(served.site.path("one.pem"), certificate).unwrap();
            std::fs::copy(served.site.path("two.key"), served.site.path("one.key")).unwrap();
            served.daemon.signal(rustix::process::Signal::HUP);
            served.site.logged(says);
            let greeted = served.greeted(&[]);
            assert!(greeted.contains("CN = two") || greeted.contains("CN=two"), "{says}: {greeted}");
            let (before, begun) = (asked.load(Ordering::Relaxed), Instant::now());
            while asked.load(Ordering::Relaxed) < before + 6 {
                assert!(begun.elapsed() < PATIENCE);
                std::thread::yield_now();
            }
        }
        done.store(true, Ordering::Relaxed);
        // What is left of the first answer, and all of the second.
        std::io::Write::write_all(&mut to, b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut from, &mut rest).unwrap();
        assert!(rest.contains("HTTP/1.1 200"), "{rest}");
        long.wait().unwrap();
    });
}

#[test]
fn each_thing_that_can_be_wrong_with_a_certificate_is_named_at_the_start_and_by_config_check() {
    let site = Site::sqlite();
    make(&site, "good");
    make(&site, "other");
    let read = |name: &str| std::fs::read(site.path(name)).unwrap();
    let write = |name: &str, bytes: &[u8]| {
        std::fs::write(site.path(name), bytes).unwrap();
        set_mode(&site.path(name), 0o600);
    };
    let pair = |name: &str, certificate: &[u8], key: &[u8]| {
        write(&format!("{name}.pem"), certificate);
        write(&format!("{name}.key"), key);
    };
    pair("mismatch", &read("good.pem"), &read("other.key"));
    pair("empty", b"", &read("good.key"));
    pair("swapped", &read("good.key"), &read("good.pem"));
    pair("keyless", &read("good.pem"), &read("good.pem"));
    pair("cut", &read("good.pem")[..200], &read("good.key"));
    pair("garbage", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", &read("good.key"));
    pair("readable", &read("good.pem"), &read("good.key"));
    set_mode(&site.path("readable.key"), 0o644);
    pair("writable", &read("good.pem"), &read("good.key"));
    set_mode(&site.path("writable.key"), 0o620);
    for (name, says) in [
        ("absent", "the TLS certificate"),
        ("mismatch", "is not that of the first certificate"),
        ("empty", "has no section BEGIN CERTIFICATE"),
        ("swapped", "has no section BEGIN CERTIFICATE"),
        ("keyless", "has no private key without a passphrase"),
        ("cut", "is no PEM file"),
        ("garbage", "cannot be read as X.509"),
        ("readable", "can be read by every user"),
        ("writable", "can be written by others"),
    ] {
        let given = flags(&site, name);
        let given = given.each_ref().map(String::as_str);
        let (code, said) = site.refused_with(command(&site, &given));
        assert!(code == Some(2) && said.contains(says), "{name}: {code:?} {said}");
        let checked = site.cli(["config", "check", "--listen", "127.0.0.1:0"].into_iter().chain(given), b"");
        let said = String::from_utf8_lossy(&checked.stderr).into_owned();
        assert!(checked.status.code() == Some(2) && said.contains(says), "{name}: {said}");
    }
    assert!(!site.key_file().exists(), "no key was made for any of them");
    // A group may have the key.
    set_mode(&site.path("good.key"), 0o640);
    let given = flags(&site, "good");
    assert!(site.start_with(command(&site, &given.each_ref().map(String::as_str))).stop().success());
    for (alone, other) in [("--tls-cert", "tls_key"), ("--tls-key", "tls_cert")] {
        let checked = site.cli(["config", "check", "--listen", "127.0.0.1:0", alone, "/x"], b"");
        assert!(String::from_utf8_lossy(&checked.stderr).contains(other), "{checked:?}");
    }
}

#[test]
fn an_expired_certificate_is_served_with_a_warning_and_refused_by_the_client_by_name() {
    let site = Site::sqlite();
    make(&site, "one");
    make_old(&site, "one");
    let given = flags(&site, "one");
    let given = given.each_ref().map(String::as_str);
    let daemon = site.start_with(command(&site, &given));
    let checked =
        site.cli(["config", "check", "-o", "json"].into_iter().chain(given).chain(["--listen", "127.0.0.1:0"]), b"");
    let verdict: serde_json::Value = serde_json::from_slice(&checked.stdout).unwrap();
    assert!(verdict["ok"] == true && verdict["warnings"][0].as_str().unwrap().contains("has expired"), "{verdict}");
    assert!(site.log().contains("has expired, and clients will refuse it"), "{}", site.log());
    let served = Served { daemon, site };
    let url = format!("https://{}", served.address(""));
    let ca = served.site.path("one.pem").display().to_string();
    let output = served.site.cli(["secrets", "list", "alice", "--server", &url, "--ca-cert", &ca], b"");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("is not trusted"), "{said}");
}

#[test]
fn the_client_trusts_whom_it_is_told_to_and_nobody_else() {
    let served = serve();
    make(&served.site, "other");
    let url = format!("https://{}", served.address(""));
    let ask = |ca: &str| {
        let ca = served.site.path(ca).display().to_string();
        served.site.cli(["secrets", "list", "alice", "--server", &url, "--ca-cert", &ca], b"")
    };
    let (good, bad) = (ask("one.pem"), ask("other.pem"));
    assert_eq!(good.status.code(), Some(4), "{good:?}");
    assert!(bad.status.code() == Some(1) && String::from_utf8_lossy(&bad.stderr).contains("is not trusted"), "{bad:?}");
    let by_host = served.site.cli(["secrets", "list", "alice", "--server", &url], b"");
    assert!(String::from_utf8_lossy(&by_host.stderr).contains("--ca-cert"), "{by_host:?}");
    // A variable, and a flag that is stronger than it.
    let mut command = served.site.command(["secrets", "list", "alice"]);
    command.env("CONTAINARIUM_SERVER", &url).env("CONTAINARIUM_CA_CERT", served.site.path("one.pem"));
    assert_eq!(command.output().unwrap().status.code(), Some(4));
    let mut command = served.site.command(["secrets", "list", "alice", "--socket"]);
    command.arg(served.site.socket()).env("CONTAINARIUM_SERVER", &url);
    assert_eq!(command.output().unwrap().status.code(), Some(3), "the socket's answer: no such tenant");
    let nobody = served.site.cli(["secrets", "list", "alice", "--server", "https://127.0.0.1:1"], b"");
    assert!(
        nobody.status.code() == Some(5) && String::from_utf8_lossy(&nobody.stderr).contains("--listen"),
        "{nobody:?}"
    );
}
