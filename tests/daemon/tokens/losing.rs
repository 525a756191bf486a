//! Two nodes on one PostgreSQL, one of which can lose it.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;

use super::{SOON, ask, ask_with, make, start};
use crate::support::site::{PATIENCE, Site};

/// A PostgreSQL socket that hands on to another, and that can fall silent: nothing is closed, and no byte comes through.
struct Relay {
    dir: tempfile::TempDir,
    gate: Arc<Mutex<()>>,
}

impl Relay {
    fn to(server: PathBuf) -> Self {
        let (dir, gate) = (tempfile::tempdir().unwrap(), Arc::new(Mutex::new(())));
        let listener = UnixListener::bind(dir.path().join(SOCKET)).unwrap();
        let passing = Arc::clone(&gate);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = UnixStream::connect(&server) else { continue };
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (from, to, gate) = (from.try_clone().unwrap(), to.try_clone().unwrap(), Arc::clone(&passing));
                    std::thread::spawn(move || pass(from, to, &gate));
                }
            }
        });
        Self { dir, gate }
    }
}

const SOCKET: &str = ".s.PGSQL.5432";

fn pass(mut from: UnixStream, mut to: UnixStream, gate: &Mutex<()>) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        drop(gate.lock().unwrap_or_else(PoisonError::into_inner));
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _gone = to.shutdown(std::net::Shutdown::Both);
}

/// Another node on the same database, and the relay that it reaches it through.
fn second(site: &Site) -> (Site, Relay) {
    let url = site.database_url().unwrap();
    let host = url.split("host=").nth(1).unwrap().split('&').next().unwrap();
    let relay = Relay::to(Path::new(host).join(SOCKET));
    let other = Site::on_server(url.replace(host, relay.dir.path().to_str().unwrap()));
    let installed = other.cli(["admin", "install-key"], &std::fs::read(site.key_file()).unwrap());
    assert!(installed.status.success(), "{installed:?}");
    (other, relay)
}

#[test]
fn a_revocation_holds_on_another_node_within_a_second() {
    let site = Site::postgres();
    let first = start(&site);
    first.set("alice", "KEY", b"1");
    let (other, _relay) = second(&site);
    let _second = start(&other);
    let (token, id) = make(&first, &json!({}));
    assert_eq!(ask(&other, &token, "GET", "/v1/secrets/alice/KEY", "").status, 200);
    let revoked = first.request("POST", "/v1/admin/tokens/revoke", json!({ "id": id }).to_string().as_bytes());
    assert_eq!(revoked.status, 200, "{revoked:?}");
    assert_eq!(ask(&site, &token, "GET", "/v1/secrets/alice/KEY", "").status, 401, "here at once");
    let begun = Instant::now();
    while ask(&other, &token, "GET", "/v1/secrets/alice/KEY", "").status == 200 {
        assert!(begun.elapsed() < SOON, "it goes on");
    }
    assert_eq!(ask(&other, &token, "GET", "/v1/secrets/alice/KEY", "").status, 401);
}

#[test]
fn whoever_is_turned_away_waits_no_longer_where_the_database_falls_silent() {
    let site = Site::postgres();
    let _first = start(&site);
    let (other, relay) = second(&site);
    let _second = start(&other);
    let lost = relay.gate.lock().unwrap();
    // The first few of a second go at once, and the next waits for its end.
    for _ in 0..10 {
        let asked = Instant::now();
        assert_eq!(ask_with(&other, "", "GET", "/v1/secrets/alice/KEY", "").status, 401);
        assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
    }
    drop(lost);
}

#[test]
fn a_node_that_lost_its_database_lets_no_token_in_after_a_second_and_lets_it_in_again() {
    let site = Site::postgres();
    let first = start(&site);
    first.set("alice", "KEY", b"1");
    let (other, relay) = second(&site);
    let _second = start(&other);
    let (token, _) = make(&first, &json!({}));
    // What the token has no right to is refused without the database, once it is known whose token it is.
    let known = || ask(&other, &token, "GET", "/v1/secrets/bob/KEY", "").status == 403;
    assert!(known());
    let lost = relay.gate.lock().unwrap();
    let begun = Instant::now();
    // When it was asked counts: an answer waits for its record, up to a second where there are many.
    let mut asked = begun.elapsed();
    while known() {
        assert!(asked < SOON, "it goes on");
        asked = begun.elapsed();
    }
    let refused = ask(&other, &token, "GET", "/v1/secrets/alice/KEY", "");
    assert_eq!(refused.status, 503, "{refused:?}");
    drop(lost);
    let begun = Instant::now();
    while ask(&other, &token, "GET", "/v1/secrets/alice/KEY", "").status != 200 {
        assert!(begun.elapsed() < PATIENCE, "it never came back");
    }
}
