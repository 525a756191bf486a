//! Crashes and outages: what was acknowledged is there, and what was away comes back by itself.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::on_both_stores;
use crate::support::site::{Answer, Daemon, PATIENCE, Site, wait_for};
use crate::support::stores::postgres::server::Server;

on_both_stores![
    every_acknowledged_write_is_there_after_a_kill_in_the_middle_of_a_thousand,
    sigterm_finishes_what_is_under_way,
    while_records_cannot_be_written_nothing_is_changed_and_the_first_call_after_heals_it,
    a_full_disk_under_the_audit_fails_calls_under_load_and_heals_by_itself,
];

fn every_acknowledged_write_is_there_after_a_kill_in_the_middle_of_a_thousand(site: &Site) {
    let daemon = site.start();
    daemon.set("alice", "FIRST", b"x");
    let acknowledged = AtomicU32::new(0);
    let socket = site.socket();
    // Each writer counts up in a secret of its own, and stops at the first write that is not acknowledged.
    let last: Vec<(usize, u32)> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let (acknowledged, socket) = (&acknowledged, &socket);
                scope.spawn(move || {
                    let mut last = 0;
                    for number in 1..=250 {
                        if !try_set(socket, &format!("COUNTER_{writer}"), number) {
                            break;
                        }
                        last = number;
                        acknowledged.fetch_add(1, Ordering::SeqCst);
                    }
                    (writer, last)
                })
            })
            .collect();
        while acknowledged.load(Ordering::SeqCst) < 400 {
            std::thread::yield_now();
        }
        daemon.kill();
        writers.into_iter().map(|writer| writer.join().unwrap()).collect()
    });
    let total: u32 = last.iter().map(|(_, last)| last).sum();
    assert!((400..1000).contains(&total), "killed in the middle: {total}");
    let daemon = site.start();
    for (writer, last) in last {
        let value = daemon.value("alice", &format!("COUNTER_{writer}")).unwrap();
        let found: u32 = String::from_utf8(value).unwrap().parse().unwrap();
        assert!(found == last || found == last + 1, "writer {writer}: acknowledged {last}, found {found}");
    }
}

/// One write over a connection of its own; `false` unless it was acknowledged.
fn try_set(socket: &std::path::Path, name: &str, number: u32) -> bool {
    let body = format!(r#"{{"username":"alice","name":"{name}","value":"{number}"}}"#);
    let head =
        format!("POST /v1/secrets HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    let Ok(mut stream) = UnixStream::connect(socket) else { return false };
    if stream.write_all(format!("{head}{body}").as_bytes()).is_err() {
        return false;
    }
    let mut answer = Vec::new();
    let _reset = stream.read_to_end(&mut answer);
    answer.starts_with(b"HTTP/1.1 200")
}

fn sigterm_finishes_what_is_under_way(site: &Site) {
    let daemon = site.start();
    let mut stream = daemon.connect();
    let body = br#"{"username":"alice","name":"KEY","value":"late"}"#;
    stream
        .write_all(format!("POST /v1/secrets HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes())
        .unwrap();
    stream.write_all(&body[..10]).unwrap();
    // The head was read once another request, sent after it, is answered.
    assert_eq!(daemon.get("/livez").status, 200);
    let stopping = std::thread::spawn(move || daemon.stop());
    site.logged("stopping");
    stream.write_all(&body[10..]).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(stopping.join().unwrap().code(), Some(0));
    assert_eq!(site.start().value("alice", "KEY").unwrap(), b"late");
}

/// Well under the 20 s that requests under way have.
const SOON: Duration = Duration::from_secs(10);

/// A connection that has sent half of a head: its first, or its second after an answer, which the HTTP library treats otherwise.
fn half_a_head(daemon: &Daemon, before: &str) -> UnixStream {
    let mut stream = daemon.connect();
    stream.write_all(format!("{before}GET /livez HTTP/1.1\r\nHo").as_bytes()).unwrap();
    let mut answer = Vec::new();
    while !before.is_empty() && !answer.ends_with(b"}") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        answer.push(byte[0]);
    }
    // Connections are accepted in their order, so this one was once a later one is answered.
    assert_eq!(daemon.get("/livez").status, 200);
    stream
}

#[test]
fn a_stop_does_not_wait_for_connections_that_are_in_no_request() {
    let site = Site::sqlite();
    let daemon = site.start();
    let silent = daemon.connect();
    let early = half_a_head(&daemon, "");
    let late = half_a_head(&daemon, "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n");
    let begun = Instant::now();
    assert_eq!(daemon.stop().code(), Some(0));
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    assert!(!site.log().contains("were cut off"), "nothing was: {}", site.log());
    drop((silent, early, late));
}

#[test]
fn a_stop_waits_for_an_answer_that_is_read_slowly() {
    let site = Site::sqlite();
    let daemon = site.start();
    let value = vec![7; 65_536];
    for number in 0..40 {
        daemon.set("alice", &format!("KEY_{number}"), &value);
    }
    let mut slow = daemon.connect();
    slow.write_all(b"POST /v1/secrets/alice/batch-get HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").unwrap();
    let mut answer = vec![0];
    slow.read_exact(&mut answer).unwrap();
    let mut idle = half_a_head(&daemon, "");
    let stopping = std::thread::spawn(move || daemon.stop());
    // It is closed once the grace of connections without a request is over.
    let _closed = idle.read_to_end(&mut Vec::new());
    slow.read_to_end(&mut answer).unwrap();
    let answer = Answer::parse(&answer);
    assert_eq!(answer.headers["content-length"], answer.body.len().to_string());
    assert_eq!(answer.json()["secrets"].as_array().unwrap().len(), 40);
    assert_eq!(stopping.join().unwrap().code(), Some(0));
    assert!(!site.log().contains("were cut off"), "nothing was: {}", site.log());
}

#[test]
fn a_second_signal_ends_the_drain_at_once_and_says_that_requests_were_cut_off() {
    for signal in [Signal::TERM, Signal::INT] {
        let site = Site::sqlite();
        let daemon = site.start();
        let mut stream = daemon.connect();
        stream.write_all(b"POST /v1/secrets HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{").unwrap();
        assert_eq!(daemon.get("/livez").status, 200, "the head was read before this was answered");
        daemon.signal(Signal::TERM);
        site.logged("stopping");
        let begun = Instant::now();
        daemon.signal(signal);
        assert_eq!(daemon.ended().code(), Some(0));
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
        assert!(site.log().contains("requests under way were cut off\n"), "{}", site.log());
        assert!(!site.socket().exists());
    }
}

fn while_records_cannot_be_written_nothing_is_changed_and_the_first_call_after_heals_it(site: &Site) {
    site.record_in_the_file();
    let daemon = site.start();
    daemon.set("alice", "KEY", b"one");
    daemon.set("alice", "GONE", b"value");
    daemon.request("DELETE", "/v1/secrets/alice/GONE", b"");
    let audit = site.data_dir().join("audit.jsonl");
    for (round, heal) in ["POST", "GET"].into_iter().enumerate() {
        std::fs::rename(&audit, site.path(&format!("audit-{round}.jsonl"))).unwrap();
        std::fs::create_dir(&audit).unwrap();
        // A change's record lies in the database with it: it is whole.
        let value = format!("late {round}");
        assert_eq!(daemon.set("alice", "KEY", value.as_bytes()).status, 200);
        // Nothing has failed yet, so that the first call cannot know.
        let late = daemon.get("/v1/secrets/alice/KEY");
        assert_eq!((late.status, late.problem().as_str()), (503, "the audit record could not be written"));
        let before = daemon.get("/v1/admin/status");
        assert_eq!((before.status, &before.json()["ready"]), (200, &serde_json::json!(false)), "{before:?}");
        assert!(before.json()["warnings"].to_string().contains("audit: "), "{before:?}");
        let calls: [(&str, &str, &[u8]); 7] = [
            ("POST", "/v1/secrets", br#"{"username":"alice","name":"KEY","value":"two"}"#),
            ("PUT", "/v1/secrets/alice/KEY", br#"{"value":"two"}"#),
            ("POST", "/v1/secrets/alice/batch-set", br#"{"secrets":[{"name":"NEW","value":"x"}]}"#),
            ("POST", "/v1/secrets/alice/KEY/rollback", br#"{"version":1}"#),
            ("POST", "/v1/secrets/alice/KEY/destroy", br#"{"versions":[1]}"#),
            ("DELETE", "/v1/secrets/alice/KEY", b""),
            ("POST", "/v1/secrets/alice/GONE/undelete", b""),
        ];
        for (method, path, body) in calls {
            let refused = daemon.request(method, path, body);
            assert_eq!((refused.status, refused.json()["code"].as_u64()), (503, Some(14)), "{method} {path}");
            assert_eq!(refused.problem(), "audit records cannot be written; nothing was changed", "{method} {path}");
        }
        let of_keys: [(&str, &[u8]); 4] = [
            ("rotate-master", br#"{"mode":"start"}"#),
            ("rotate-dek", br#"{"username":"alice"}"#),
            ("shred", br#"{"username":"alice"}"#),
            ("quarantine", br#"{"username":"alice","dekVersion":1}"#),
        ];
        for (route, body) in of_keys {
            let refused = daemon.request("POST", &format!("/v1/admin/{route}"), body);
            assert_eq!((refused.status, refused.json()["code"].as_u64()), (503, Some(14)), "{route}: {refused:?}");
            assert!(refused.problem().contains("audit record"), "{route}: {refused:?}");
        }
        let read = daemon.get("/v1/secrets/alice/KEY");
        assert_eq!((read.status, read.problem().as_str()), (503, "the audit record could not be written"));
        let wrong = daemon.get("/v1/secrets/alice/KEY?x=1");
        assert_eq!((wrong.status, wrong.problem().as_str()), (503, "the audit record could not be written"));
        let ready = daemon.get("/readyz");
        assert_eq!(ready.status, 503);
        let why = ready.json()["waitingFor"][0].as_str().unwrap().to_owned();
        assert!(why.starts_with("audit: ") && why.contains("Is a directory"), "{why}");
        let shown = site.cli(["admin", "status"], b"");
        assert!(String::from_utf8_lossy(&shown.stdout).contains(&why), "{shown:?}");
        assert_eq!(daemon.get("/livez").status, 200);
        assert_eq!(daemon.get("/v1/admin/status").json()["counts"], before.json()["counts"], "nothing was made");

        std::fs::remove_dir(&audit).unwrap();
        let healed = match heal {
            "POST" => daemon.request("POST", "/v1/secrets/alice/KEY/undelete", b"").status == 409,
            _ => daemon.get("/readyz").status == 200,
        };
        assert!(healed, "{}", site.log());
        assert_eq!(daemon.get("/readyz").json()["status"], "ok");
        assert_eq!(daemon.value("alice", "KEY").unwrap(), value.as_bytes());
        let text = std::fs::read_to_string(&audit).unwrap();
        let records: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        // The first read, seven and four that were refused, three questions for the status, the read, and a call that was wrong anyway.
        assert_eq!((&records[0]["action"], &records[0]["records"]), (&"audit.gap".into(), &17.into()), "{text}");
        assert_eq!(records.iter().filter(|record| record["action"] == "audit.gap").count(), 1, "{text}");
    }
    assert_eq!(daemon.stop().code(), Some(0));
}

#[test]
fn the_status_whose_own_record_is_the_first_to_fail_says_so() {
    let site = Site::sqlite();
    let daemon = site.start();
    let audit = site.data_dir().join("audit.jsonl");
    std::fs::remove_file(&audit).unwrap();
    std::fs::create_dir(&audit).unwrap();
    let status = daemon.get("/v1/admin/status");
    assert_eq!((status.status, &status.json()["ready"]), (200, &serde_json::json!(false)), "{status:?}");
    assert!(status.json()["warnings"].to_string().contains("audit: "), "{status:?}");
}

fn a_full_disk_under_the_audit_fails_calls_under_load_and_heals_by_itself(site: &Site) {
    site.record_in_the_file();
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can mount a small file system");
        return;
    }
    let data = site.data_dir();
    std::fs::create_dir(&data).unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=8m,mode=0700", "tmpfs"])
        .arg(&data)
        .status()
        .unwrap();
    assert!(mounted.success());
    let _unmount = Unmount(data.clone());
    let daemon = site.start();
    daemon.set("alice", "KEY", b"value");
    let (answered, refused, is_over) = (AtomicU32::new(0), AtomicU32::new(0), AtomicBool::new(false));
    let until = |counter: &AtomicU32, more: u32| {
        let (begun, aim) = (Instant::now(), counter.load(Ordering::SeqCst) + more);
        while counter.load(Ordering::SeqCst) < aim {
            assert!(begun.elapsed() < PATIENCE, "answered {answered:?}, refused {refused:?}\n{}", site.log());
            std::thread::yield_now();
        }
    };
    let filler = data.join("filler");
    std::thread::scope(|scope| {
        let _over = Over(&is_over);
        for _ in 0..4 {
            scope.spawn(|| {
                while !is_over.load(Ordering::SeqCst) {
                    let answer = daemon.get("/v1/secrets/alice/KEY");
                    let counter = if answer.status == 200 { &answered } else { &refused };
                    counter.fetch_add(1, Ordering::SeqCst);
                    if answer.status != 200 {
                        assert_eq!((answer.status, &*answer.problem()), (503, "the audit record could not be written"));
                    }
                }
            });
        }
        until(&answered, 50);
        let mut file = std::fs::File::create(&filler).unwrap();
        while Write::write_all(&mut file, &[0; 4096]).is_ok() {}
        // The audit file's last page may have room for a few records more.
        until(&refused, 50);
        // The audit file's last page may have room for a shorter record, more than once; then no change is made that could not be
        // followed by a read.
        let begun = Instant::now();
        while (daemon.set("alice", "OTHER", &vec![7; 60_000]).status, daemon.get("/readyz").status) != (503, 503) {
            assert!(begun.elapsed() < PATIENCE, "{}", site.log());
        }
        assert_eq!(daemon.get("/livez").status, 200);
        drop(file);
        std::fs::remove_file(&filler).unwrap();
        until(&answered, 50);
    });
    assert_eq!(daemon.set("alice", "OTHER", &vec![7; 60_000]).status, 200);
    let records: Vec<serde_json::Value> =
        site.audit_lines().iter().map(|line| serde_json::from_str(line).expect("every line is whole")).collect();
    let reads = records.iter().filter(|record| record["action"] == "secret.get" && record["outcome"] == "ok").count();
    let gaps = records.iter().filter_map(|record| record["records"].as_u64()).sum::<u64>();
    assert!(reads >= answered.load(Ordering::SeqCst) as usize, "{reads} records of {answered:?} answers");
    assert!(
        gaps >= u64::from(refused.load(Ordering::SeqCst)),
        "{gaps} are missing by the records, {refused:?} by the callers"
    );
    let verified = site.cli(["audit", "verify"], b"");
    assert_eq!(verified.status.code(), Some(0), "{verified:?}");
    assert_eq!(daemon.stop().code(), Some(0));
}

/// Lets threads end where a test fails before it tells them to.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

struct Unmount(std::path::PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _left = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_database_that_goes_away_is_503_and_comes_back_by_itself() {
    let mut server = wait_for(Server::start());
    let site = Site::on_server(server.url());
    let daemon = site.start();
    daemon.set("alice", "KEY", b"value");
    server.kill();
    let answer = daemon.get("/v1/secrets/alice/KEY");
    assert_eq!((answer.status, answer.problem().as_str()), (503, "the database is not available"));
    assert_eq!(daemon.set("alice", "KEY", b"new").status, 503);
    let ready = daemon.get("/readyz");
    assert_eq!(ready.status, 503);
    assert!(ready.json()["waitingFor"][0].as_str().unwrap().starts_with("database:"), "{ready:?}");
    assert_eq!(daemon.get("/livez").status, 200);
    assert_eq!(daemon.get("/v1/admin/status").status, 200, "status answers what it can");
    let output = site.cli(["secrets", "get", "alice", "KEY"], b"");
    assert_eq!(output.status.code(), Some(5));
    wait_for(server.run());
    assert_eq!(daemon.value("alice", "KEY").unwrap(), b"value");
    assert_eq!(daemon.get("/readyz").status, 200);
    assert_eq!(daemon.set("alice", "KEY", b"new").status, 200);
}
