//! An issuer's keys: rolled over, away, slow, huge, elsewhere, and of a file.

use std::time::{Duration, Instant};

use serde_json::json;

use super::{GITHUB, github, make_certificate, start};
use crate::daemon::doctor::doctor;
use crate::daemon::tokens::ask;
use crate::support::issuer::{Server, Serves, Signer, set};
use crate::support::site::{PATIENCE, Site};

/// GitHub's, with these times.
fn settings(place: &str, times: &str) -> String {
    format!(
        "[[oidc]]\nissuer = \"{GITHUB}\"\naudiences = [\"containarium\"]\n{place}\nalgorithms = [\"RS256\", \"EdDSA\"]\n{times}\n\
         [[oidc.rules]]\nclaims = {{ repository = \"acme/shop\" }}\ntenants = [\"shop\"]\npermissions = [\"read\"]\n"
    )
}

fn get(site: &Site, signer: &Signer) -> u16 {
    ask(site, &signer.sign(&github(&json!({}))), "GET", "/v1/secrets/shop/KEY", "").status
}

/// Asks until it is answered so.
fn until(site: &Site, signer: &Signer, status: u16) {
    let begun = Instant::now();
    loop {
        let found = get(site, signer);
        if found == status {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{found} and not {status}:\n{}", site.log());
    }
}

#[test]
fn keys_roll_over_without_a_restart_and_a_flood_of_unknown_ones_does_not_reach_the_issuer() {
    let site = Site::sqlite();
    let (old, new) = (Signer::rsa("1"), Signer::ed("2"));
    let server = Server::start(Serves::Text(set(&[&old])));
    let url = format!("jwks_url = \"{}\"", server.url());
    std::fs::write(site.config_file(), settings(&url, "refresh = \"1h\"")).unwrap();
    let daemon = start(&site);
    daemon.set("shop", "KEY", b"1");
    assert_eq!(get(&site, &old), 200);
    server.serve(Serves::Text(set(&[&old, &new])));
    // Not by time: a token that names it has it looked for.
    until(&site, &new, 200);
    assert_eq!(get(&site, &old), 200);
    let before = server.asked();
    assert!(before <= 3, "{before}");
    let (unknown, begun) = (Signer::other_ed("3"), Instant::now());
    for _ in 0..50 {
        let answer = ask(&site, &unknown.sign(&github(&json!({}))), "GET", "/v1/secrets/shop/KEY", "");
        // Between two looks nobody can tell whether the issuer has this key by now.
        match answer.status {
            401 => assert!(!answer.headers.contains_key("retry-after"), "{answer:?}"),
            503 => assert_eq!(&*answer.headers["retry-after"], "5", "{answer:?}"),
            _ => panic!("{answer:?}"),
        }
    }
    let most = 1 + usize::try_from(begun.elapsed().as_secs() / 5).unwrap();
    assert!(server.asked() - before <= most, "{} times", server.asked() - before);
    until(&site, &unknown, 401);
    server.serve(Serves::Text(set(&[&new])));
    daemon.signal(rustix::process::Signal::HUP);
    until(&site, &old, 401);
    assert_eq!(get(&site, &new), 200);
    site.logged("SIGHUP: the keys of issuers are read anew");
}

#[test]
fn an_issuer_that_is_away_or_misbehaves_costs_nobody_whose_key_is_known_anything() {
    let site = Site::sqlite();
    let (known, unknown) = (Signer::rsa("1"), Signer::ed("2"));
    let server = Server::start(Serves::Text(set(&[&known])));
    let elsewhere = Server::start(Serves::Text(set(&[&known, &unknown])));
    let url = format!("jwks_url = \"{}\"", server.url());
    std::fs::write(site.config_file(), settings(&url, "refresh = \"1s\"\nkeep_keys = \"1h\"")).unwrap();
    let daemon = start(&site);
    daemon.set("shop", "KEY", b"1");
    assert_eq!(get(&site, &known), 200);
    for (serves, words) in [
        (Serves::Nothing, "cannot be reached"),
        (Serves::Failure, "answered 500"),
        (Serves::Silence, "did not answer whole within 5 s"),
        (Serves::Flood, "has more than 256 KiB"),
        (Serves::Redirect(elsewhere.url()), "answered 302, and a redirect is not followed"),
        (Serves::Text("<html>".to_owned()), "is no JWK set"),
    ] {
        server.serve(serves);
        site.logged(words);
        let begun = Instant::now();
        assert_eq!(get(&site, &known), 200, "{words}");
        assert!(begun.elapsed() < Duration::from_secs(3), "{words}: it waited {:?}", begun.elapsed());
        // Whether the issuer has this key by now, nobody can tell.
        assert_eq!(get(&site, &unknown), 503, "{words}");
    }
    assert_eq!(elsewhere.asked(), 0);
    server.serve(Serves::Text(set(&[&known, &unknown])));
    until(&site, &unknown, 200);
    let rss = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid().as_raw_nonzero())).unwrap();
    let peak = rss.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    let kilobytes: u64 = peak.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(kilobytes < 300 * 1024, "{peak}");
}

#[test]
fn keys_are_used_for_a_stated_time_after_they_were_last_seen() {
    let site = Site::sqlite();
    let known = Signer::rsa("1");
    let server = Server::start(Serves::Text(set(&[&known])));
    let url = format!("jwks_url = \"{}\"", server.url());
    std::fs::write(site.config_file(), settings(&url, "refresh = \"1s\"\nkeep_keys = \"10s\"")).unwrap();
    let daemon = start(&site);
    daemon.set("shop", "KEY", b"1");
    assert_eq!(get(&site, &known), 200);
    let begun = Instant::now();
    server.serve(Serves::Nothing);
    site.logged("those that were there are used for");
    until(&site, &known, 503);
    // Ten seconds after the last good look, which came at most one before this and what a busy machine adds.
    assert!(begun.elapsed() > Duration::from_secs(3), "{:?}", begun.elapsed());
    server.serve(Serves::Text(set(&[&known])));
    until(&site, &known, 200);
}

/// It took them back, and says so: that they were good a second ago counts no more.
#[test]
fn an_issuer_that_publishes_no_key_any_more_has_withdrawn_those_that_were_there() {
    let site = Site::sqlite();
    let known = Signer::rsa("1");
    let server = Server::start(Serves::Text(set(&[&known])));
    let url = format!("jwks_url = \"{}\"", server.url());
    std::fs::write(site.config_file(), settings(&url, "refresh = \"1s\"\nkeep_keys = \"1d\"")).unwrap();
    let daemon = start(&site);
    daemon.set("shop", "KEY", b"1");
    assert_eq!(get(&site, &known), 200);
    doctor(&site).finds("issuers", "ok", &[GITHUB, "has 1 keys, seen "]);
    server.serve(Serves::Nothing);
    site.logged("those that were there are used for");
    doctor(&site).finds("issuers", "warning", &["has 1 keys, seen ", "cannot be reached", "kill -HUP"]);
    server.serve(Serves::Text(r#"{"keys":[]}"#.to_owned()));
    until(&site, &known, 503);
    doctor(&site).finds("issuers", "failure", &["its tokens let nobody in", "has no key with a kid"]);
    site.logged("those that were there were taken away and count no more: http");
    // Nor are they back when it is away afterwards.
    server.serve(Serves::Failure);
    site.logged("and its tokens let nobody in: http");
    assert_eq!(get(&site, &known), 503);
    server.serve(Serves::Text(set(&[&known])));
    until(&site, &known, 200);
}

#[test]
fn a_daemon_starts_while_its_issuer_is_away() {
    let site = Site::sqlite();
    let known = Signer::rsa("1");
    let server = Server::start(Serves::Nothing);
    let url = format!("jwks_url = \"{}\"", server.url());
    std::fs::write(site.config_file(), settings(&url, "refresh = \"1s\"")).unwrap();
    let daemon = start(&site);
    daemon.set("shop", "KEY", b"1");
    assert_eq!(get(&site, &known), 503);
    assert_eq!(daemon.value("shop", "KEY").unwrap(), b"1", "others are served");
    let seen = || {
        let metrics = String::from_utf8(daemon.get("/metrics").body).unwrap();
        let line = format!("containarium_oidc_keys_seen_timestamp_seconds{{issuer=\"{GITHUB}\"}} ");
        metrics.lines().find_map(|found| found.strip_prefix(&line)).unwrap().parse::<f64>().unwrap()
    };
    assert!(seen() < 1.0);
    // Whoever else binds this port could pose as it.
    let warning = "while its server is down any user of this host can take that port";
    site.logged(&format!("come from {}: {warning}", server.url()));
    let checked = site.cli(["config", "check"], b"");
    assert!(String::from_utf8_lossy(&checked.stderr).contains(warning), "{checked:?}");
    server.serve(Serves::Text(set(&[&known])));
    until(&site, &known, 200);
    assert!(seen() > 1.7e9);
    let metrics = String::from_utf8(daemon.get("/metrics").body).unwrap();
    assert!(
        metrics.contains(&format!("containarium_oidc_keys_keep_seconds{{issuer=\"{GITHUB}\"}} 86400\n")),
        "{metrics}"
    );
}

#[test]
fn keys_come_over_tls_from_a_server_that_the_named_authority_vouches_for() {
    let site = Site::sqlite();
    make_certificate(&site);
    let pair = containarium::tls::Pair { certificate: site.path("tls.pem"), key: site.path("tls.key") };
    let (certificates, _) = containarium::tls::Certificates::open(pair).unwrap();
    let known = Signer::rsa("1");
    let server = Server::start_tls(Serves::Text(set(&[&known])), certificates.present());
    let url = format!("jwks_url = \"{}\"", server.url());
    std::fs::write(site.config_file(), settings(&url, "refresh = \"1s\"")).unwrap();
    let daemon = start(&site);
    daemon.set("shop", "KEY", b"1");
    assert_eq!(get(&site, &known), 503, "the host's own list does not have it");
    assert!(daemon.stop().success());
    std::fs::write(site.config_file(), settings(&format!("{url}\njwks_ca = \"tls.pem\""), "")).unwrap();
    let _daemon = start(&site);
    assert_eq!(get(&site, &known), 200, "{}", site.log());
    assert!(!site.log().contains("can take that port"), "{}", site.log());
}

#[test]
fn a_file_of_keys_is_read_anew_when_it_changes_and_takes_its_keys_along_when_it_goes() {
    let site = Site::sqlite();
    let (old, new) = (Signer::rsa("1"), Signer::ed("2"));
    let file = site.path("keys.json");
    let put = |text: &str| {
        // As those who know how do it.
        std::fs::write(site.path("keys.new"), text).unwrap();
        std::fs::rename(site.path("keys.new"), &file).unwrap();
    };
    std::fs::write(site.config_file(), settings("jwks_file = \"keys.json\"", "refresh = \"1h\"")).unwrap();
    let (code, log) = site.refused();
    assert!(code == Some(2) && log.contains("keys.json cannot be read"), "{log}");
    put("{}");
    let checked = site.cli(["config", "check"], b"");
    let said = String::from_utf8_lossy(&checked.stderr).into_owned();
    assert!(checked.status.code() == Some(2) && said.contains("keys.json is no JWK set"), "{said}");
    put(&set(&[&old]));
    assert!(site.cli(["config", "check"], b"").status.success());
    let daemon = start(&site);
    daemon.set("shop", "KEY", b"1");
    assert_eq!(get(&site, &old), 200);
    put("{}");
    site.logged("is no JWK set");
    assert_eq!(get(&site, &old), 200);
    put(&set(&[&new]));
    until(&site, &new, 200);
    until(&site, &old, 401);
    // In place, and for a moment empty.
    std::fs::write(&file, "").unwrap();
    let empty = Instant::now();
    while site.log().matches("is no JWK set").count() < 2 {
        assert!(empty.elapsed() < PATIENCE, "{}", site.log());
        std::thread::yield_now();
    }
    assert_eq!(get(&site, &new), 200);
    let set_mode = |mode| {
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    };
    for take in [&(|| set_mode(0o666)) as &dyn Fn(), &|| std::fs::remove_file(&file).unwrap()] {
        take();
        until(&site, &new, 503);
        doctor(&site).finds("issuers", "failure", &["its tokens let nobody in", "keys.json"]);
        put(&set(&[&new]));
        until(&site, &new, 200);
    }
    assert!(daemon.stop().success());
    doctor(&site).finds("issuers", "ok", &["as far as files go"]);
    set_mode(0o666);
    doctor(&site).finds("issuers", "failure", &["keys.json can be written by others than its owner"]);
}
