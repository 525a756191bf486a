use std::path::PathBuf;
use std::process::Command;
use std::task::{Context, Waker};

use zeroize::Zeroizing;

use super::super::{Audit, Copies, Outcome, Record};
use super::*;
use crate::crypto::SecretValue;
use crate::model::{Action, BootId, NodeId, SecretName, SecretVersion, Tenant};

fn record(request_id: &str) -> Record {
    Record {
        at: Micros(0),
        request_id: request_id.to_owned(),
        identity: "uid:0".to_owned(),
        pid: Some(7),
        address: None,
        action: Action::Get,
        tenant: Some(Tenant::parse("alice").unwrap()),
        name: Some(SecretName::parse("DB_URL").unwrap()),
        version: SecretVersion::new(3),
        token: None,
        blob: None,
        replaces: None,
        outcome: Outcome::Ok,
        count: 1,
    }
}

fn origin(boot: u8) -> Origin {
    Origin { node: NodeId::new([1; 16]), boot: BootId::new([boot; 16]) }
}

fn key(version: u64) -> Arc<ChainKey> {
    let value = SecretValue::new(Zeroizing::new(vec![u8::try_from(version).unwrap(); 32]));
    Arc::new(ChainKey::of(SecretVersion::new(version).unwrap(), &value).unwrap())
}

/// A directory with an audit file, whose chain is verified by the reference in Python.
struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("audit.jsonl")
    }

    /// A node's start, its keys open.
    async fn boot(&self, boot: u8) -> Audit {
        let audit = Audit::open(&self.path(), origin(boot), Copies::None).unwrap();
        audit.unlock(Micros(0), key(1)).await.unwrap();
        audit
    }

    /// Lines without the starts of chains.
    fn records(&self) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(self.path()).unwrap();
        let all = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        all.filter(|record| record["action"] != "audit.start").collect()
    }

    /// What the reference says of these files: how many records each chain has, or the first line that is wrong.
    fn verified(&self, names: &[&str]) -> Option<Result<String, String>> {
        let keys = [1_u8, 2].map(|byte| data_encoding::HEXLOWER.encode(&[byte; 32]));
        let done = Command::new("python3")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reference/audit_ref.py"))
            .arg("verify")
            .args(keys)
            .arg("--")
            .args(names.iter().map(|name| self.0.path().join(name)))
            .output();
        let Ok(done) = done else {
            eprintln!("skipped: python3 is not here");
            return None;
        };
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Some(if done.status.success() { Ok(text(done.stdout)) } else { Err(text(done.stderr)) })
    }

    fn counts(&self, names: &[&str]) -> Option<Vec<String>> {
        let counts = |said: String| said.lines().map(|line| line.rsplit(' ').next().unwrap().to_owned()).collect();
        self.verified(names).map(|said| counts(said.unwrap()))
    }
}

#[tokio::test]
async fn a_record_is_one_line_of_json_and_is_there_when_the_call_returns() {
    let dir = Dir::new();
    let audit = dir.boot(1).await;
    audit.write(&[record("r1"), record("r2")]).await.unwrap();
    let text = std::fs::read_to_string(dir.path()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let start = concat!(
        r#"{"time":"1970-01-01T00:00:00Z","action":"audit.start","chain":"file","outcome":"ok","#,
        r#""node":"01010101010101010101010101010101","boot":"01010101010101010101010101010101","key":1,"n":1,"mac":""#
    );
    assert!(lines[0].starts_with(start), "{text}");
    let first = concat!(
        r#"{"time":"1970-01-01T00:00:00Z","requestId":"r1","identity":"uid:0","pid":7,"action":"secret.get","tenant":"alice","#,
        r#""name":"DB_URL","version":3,"outcome":"ok","node":"01010101010101010101010101010101","#,
        r#""boot":"01010101010101010101010101010101","key":1,"n":2,"mac":""#
    );
    assert!(lines[1].starts_with(first), "{text}");
    assert_eq!(lines.len(), 3);
    if let Some(counts) = dir.counts(&["audit.jsonl"]) {
        assert_eq!(counts, ["3"]);
    }
    assert_eq!(audit.head().unwrap().end.n, 3);
    audit.close().await;
    assert_eq!(audit.write(&[record("r3")]).await, Err(AuditError));
}

#[tokio::test]
async fn a_line_that_is_changed_removed_or_moved_breaks_the_chain() {
    let dir = Dir::new();
    let audit = dir.boot(1).await;
    for number in 0..4 {
        audit.write(&[record(&format!("r{number}"))]).await.unwrap();
    }
    let text = std::fs::read_to_string(dir.path()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let edited = text.replace("r1", "r9");
    let removed = [lines[0], lines[1], lines[3], lines[4], ""].join("\n");
    let swapped = [lines[0], lines[2], lines[1], lines[3], lines[4], ""].join("\n");
    for (what, changed) in [("wrong mac", edited), ("n is 4 after 2", removed), ("n is 3 after 1", swapped)] {
        std::fs::write(dir.path(), changed).unwrap();
        let Some(said) = dir.verified(&["audit.jsonl"]) else { return };
        assert!(said.as_ref().unwrap_err().contains(what), "{what}: {said:?}");
    }
}

#[tokio::test]
async fn each_start_has_a_chain_that_is_linked_to_the_one_before_it() {
    let dir = Dir::new();
    let first = dir.boot(1).await;
    first.write(&[record("r1")]).await.unwrap();
    let end = first.head().unwrap().end;
    first.close().await;
    // What a crash of the machine left of a line that nobody was answered on.
    let mut text = std::fs::read(dir.path()).unwrap();
    text.extend_from_slice(b"{\"time\":\"half");
    std::fs::write(dir.path(), text).unwrap();
    let second = dir.boot(2).await;
    second.write(&[record("r2")]).await.unwrap();
    assert_eq!(second.head().unwrap().previous, Some(end));
    if let Some(counts) = dir.counts(&["audit.jsonl"]) {
        assert_eq!(counts, ["2", "2"]);
    }
    second.close().await;
    // Another node's end is none of this one's.
    let other = Origin { node: NodeId::new([9; 16]), ..origin(3) };
    let third = Audit::open(&dir.path(), other, Copies::None).unwrap();
    third.unlock(Micros(0), key(1)).await.unwrap();
    assert_eq!(third.head().unwrap().previous, None);
}

#[tokio::test]
async fn a_large_file_is_put_aside_and_the_chain_goes_on() {
    let dir = Dir::new();
    let mut place = Place::open(&dir.path()).unwrap();
    place.put_aside_at(4000);
    let mut chain = Chain::new(origin(1), key(1), None);
    for number in 0..12 {
        let (mut line, mut out) = (Vec::new(), Vec::new());
        record(&format!("r{number}")).write_line(&mut line);
        chain.start(Micros(0), &mut out);
        chain.add(&line, &mut out);
        place.append(&out).unwrap();
    }
    let names = ["audit-00000001.jsonl", "audit.jsonl"];
    assert!(names.iter().all(|name| dir.0.path().join(name).exists()));
    if let Some(counts) = dir.counts(&names) {
        assert_eq!(counts, ["13"]);
    }
    // A start that finds the current file empty goes on from the one that was put aside.
    std::fs::write(dir.path(), b"").unwrap();
    let text = std::fs::read_to_string(dir.0.path().join(names[0])).unwrap();
    let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    let next = dir.boot(2).await;
    assert_eq!(next.head().unwrap().previous.unwrap().link.to_string(), last["link"].as_str().unwrap());
}

#[tokio::test]
async fn the_chain_goes_on_under_a_new_version_of_the_key() {
    let dir = Dir::new();
    let audit = dir.boot(1).await;
    audit.write(&[record("r1")]).await.unwrap();
    audit.unlock(Micros(1), key(2)).await.unwrap();
    audit.write(&[record("r2")]).await.unwrap();
    if let Some(counts) = dir.counts(&["audit.jsonl"]) {
        assert_eq!(counts, ["3"]);
    }
    let keys: Vec<_> = dir.records().iter().map(|record| record["key"].as_u64().unwrap()).collect();
    assert_eq!(keys, [1, 2]);
}

#[tokio::test]
async fn what_is_recorded_while_keys_are_locked_is_written_once_they_are_open() {
    let dir = Dir::new();
    let audit = Audit::open(&dir.path(), origin(1), Copies::None).unwrap();
    audit.write(&[record("r1")]).await.unwrap();
    assert_eq!(std::fs::read(dir.path()).unwrap(), b"");
    // More than is held is counted.
    let large = Record { request_id: "x".repeat(HELD), ..record("") };
    audit.write(&[large]).await.unwrap();
    audit.unlock(Micros(1_000_000), key(1)).await.unwrap();
    let records = dir.records();
    assert_eq!((&records[0]["action"], &records[0]["records"]), (&"audit.gap".into(), &1.into()));
    assert_eq!((records.len(), &records[1]["requestId"]), (2, &"r1".into()), "{records:?}");
}

#[tokio::test]
async fn without_a_key_that_should_be_there_no_record_is_taken_until_it_is() {
    let dir = Dir::new();
    let audit = Audit::open(&dir.path(), origin(1), Copies::None).unwrap();
    audit.refuse("no key".to_owned()).await;
    assert_eq!(audit.write(&[record("r1")]).await, Err(AuditError));
    assert!(audit.lacks_key());
    assert_eq!(audit.heal(Micros(0)).await.unwrap(), "no key");
    audit.unlock(Micros(0), key(1)).await.unwrap();
    assert_eq!((audit.heal(Micros(0)).await, audit.lacks_key()), (None, false));
    assert_eq!(dir.records()[0]["records"], 1);
    // An open chain is not closed by a look that failed.
    audit.refuse("no key".to_owned()).await;
    audit.write(&[record("r2")]).await.unwrap();
}

#[tokio::test]
async fn a_file_that_is_replaced_or_moved_away_is_noticed_and_what_is_missing_is_said() {
    let dir = Dir::new();
    let path = dir.path();
    let audit = dir.boot(1).await;
    audit.write(&[record("r1")]).await.unwrap();
    std::fs::rename(&path, dir.0.path().join("first")).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert_eq!(audit.heal(Micros(1)).await, None, "what has not failed is not tried");
    assert_eq!(audit.write(&[record("r2"), record("r3")]).await, Err(AuditError));
    assert!(audit.heal(Micros(1)).await.unwrap().contains("audit.jsonl: Is a directory"));
    assert_eq!(audit.write(&[record("r4")]).await, Err(AuditError));
    std::fs::remove_dir(&path).unwrap();
    assert_eq!(audit.heal(Micros(2_000_000)).await, None);
    audit.write(&[record("r5")]).await.unwrap();
    std::fs::rename(&path, dir.0.path().join("moved")).unwrap();
    audit.write(&[record("r6")]).await.unwrap();

    let moved = std::fs::read_to_string(dir.0.path().join("moved")).unwrap();
    let lines: Vec<&str> = moved.lines().collect();
    let gap = r#"{"time":"1970-01-01T00:00:02Z","action":"audit.gap","since":"1970-01-01T00:00:00Z","records":3,"outcome":"failed","#;
    assert!(lines[0].starts_with(gap), "{moved}");
    assert!(lines.len() == 2 && lines[1].contains("r5"), "{moved}");
    assert_eq!(dir.records().len(), 1);
    if let Some(counts) = dir.counts(&["first", "moved", "audit.jsonl"]) {
        assert_eq!(counts, ["5"], "a gap is a record like any other");
    }
}

#[tokio::test]
async fn callers_who_are_turned_away_again_within_a_second_share_a_record_and_wait_for_it() {
    let dir = Dir::new();
    let audit = dir.boot(1).await;
    let denied = |identity: &str| Record { identity: identity.to_owned(), outcome: Outcome::Denied, ..record("r") };
    for _ in 0..4 {
        audit.write_denial(denied("uid:7")).await.unwrap();
    }
    let mut waiting: Vec<_> = (0..1000).map(|_| Box::pin(audit.write_denial(denied("uid:7")))).collect();
    let mut context = Context::from_waker(Waker::noop());
    for one in &mut waiting {
        assert!(one.as_mut().poll(&mut context).is_pending(), "no answer leaves before its record");
    }
    audit.write_denial(denied("uid:8")).await.unwrap();
    audit.end_second().await;
    for one in waiting {
        one.await.unwrap();
    }
    let records = dir.records();
    let shown: Vec<_> = records.iter().map(|r| (r["identity"].as_str().unwrap(), r["count"].as_u64())).collect();
    let own = [("uid:7", None); 4];
    assert_eq!(shown, [&own[..], &[("uid:8", None), ("uid:7", Some(1000))]].concat());
    assert!(records[5].get("name").is_none() && records[3].get("name").is_some());
    audit.end_second().await;
    assert_eq!(dir.records().len(), 6, "a second in which nothing came leaves nothing");
    audit.write_denial(denied("uid:7")).await.unwrap();
    assert_eq!(dir.records().len(), 7);
}

#[tokio::test]
async fn a_pipe_in_the_files_place_is_refused_and_holds_nobody_up() {
    let dir = Dir::new();
    let made = Command::new("mkfifo").arg(dir.path()).status().unwrap();
    assert!(made.success());
    assert!(
        Audit::open(&dir.path(), origin(1), Copies::None).err().unwrap().to_string().contains("not a regular file")
    );
}

#[tokio::test]
async fn a_symbolic_link_in_the_files_place_is_not_followed() {
    let dir = Dir::new();
    std::os::unix::fs::symlink(dir.0.path().join("elsewhere"), dir.path()).unwrap();
    assert!(Audit::open(&dir.path(), origin(1), Copies::None).is_err());
}

#[tokio::test]
async fn a_disk_that_hangs_fails_calls_and_hangs_none() {
    let (jobs, _taken_by_nobody) = mpsc::channel(1);
    let writer = Writer { jobs: Mutex::new(Some(jobs)), thread: Mutex::default(), shown: Arc::default() };
    let asked = writer.ask_for(Duration::ZERO, |done| Job::Refuse { why: String::new(), done }).await;
    assert!(asked.is_err());
    assert!(writer.failing().is_some_and(|why| why.contains("hangs")), "{:?}", writer.failing());
}
