use std::sync::Arc;

use zeroize::Zeroizing;

use super::*;
use crate::audit::chain::{Chain, Origin};
use crate::audit::{Outcome, Record};
use crate::crypto::SecretValue;
use crate::model::{Action, SecretVersion, Tenant};
use crate::store::trail::Linked;

const ORIGIN: Origin = Origin { node: NodeId::new([1; 16]), boot: BootId::new([2; 16]) };

fn key() -> ChainKey {
    version(1)
}

fn version(version: u64) -> ChainKey {
    ChainKey::of(SecretVersion::new(version).unwrap(), &SecretValue::new(Zeroizing::new(vec![7; 32]))).unwrap()
}

/// The table's chain with records of these actions, each under a version of the key, and its head. `extra`: what the last says besides.
fn table(records: &[(&str, u64)], extra: &str) -> (Vec<TrailRow>, ChainHead) {
    let (mut rows, mut link) = (Vec::new(), Mac::NONE);
    for (at, (action, of)) in records.iter().enumerate() {
        let (key, n) = (version(*of), at as u64);
        let extra = if at + 1 == records.len() { extra } else { "" };
        let open =
            format!(r#"{{"time":"2026-01-01T00:00:00Z","identity":"daemon","action":"{action}","outcome":"ok"{extra}"#);
        let members = crate::audit::chain::members(ORIGIN, &key);
        let record = [open.as_bytes(), &members[..], format!("{n}}}").as_bytes()].concat();
        let mac = key.mac(&record);
        link = key.link(link, mac);
        rows.push(TrailRow {
            node: ORIGIN.node,
            boot: ORIGIN.boot,
            number: n,
            at: Micros(0),
            identity: "daemon".to_owned(),
            action: (*action).to_owned(),
            tenant: None,
            name: None,
            version: None,
            blob_sha256: None,
            outcome: "ok".to_owned(),
            record,
            mac: mac.0,
            place: Some(Linked { position: n + 1, link: link.0 }),
        });
    }
    let end = rows.last().unwrap().place.unwrap();
    let (Origin { node, boot }, kind) = (ORIGIN, ChainKind::Table);
    (rows, ChainHead { node, boot, kind, started_at: Micros(0), previous: None, end })
}

/// A file's bytes, and the head that the database holds.
fn written(records: u64) -> (Vec<u8>, ChainHead) {
    let (mut chain, mut file) = (Chain::new(ORIGIN, Arc::new(key()), None), Vec::new());
    chain.start(Micros(0), &mut file);
    for number in 1..records {
        let mut line = Vec::new();
        let record = Record {
            at: Micros(0),
            request_id: format!("r{number}"),
            identity: "uid:0".to_owned(),
            pid: None,
            address: None,
            action: Action::Get,
            tenant: Some(Tenant::parse("alice").unwrap()),
            name: None,
            version: SecretVersion::new(number),
            token: None,
            blob: None,
            replaces: None,
            outcome: Outcome::Ok,
            count: 1,
        };
        record.write_line(&mut line);
        chain.add(&line, &mut file);
    }
    let head = chain.head().unwrap();
    let end = Linked { position: head.end.n, link: head.end.link.0 };
    let (Origin { node, boot }, kind) = (ORIGIN, ChainKind::File);
    (file, ChainHead { node, boot, kind, started_at: head.started_at, previous: None, end })
}

fn findings(file: &[u8], head: &ChainHead) -> Vec<Finding> {
    let mut verifier = Verifier::new(vec![key()], vec![head.clone()]);
    let lines = file.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.enumerate().for_each(|(at, line)| verifier.line(&format!("line {}", at + 1), line));
    verifier.finish(None).findings
}

#[test]
fn each_byte_of_a_file_that_is_changed_is_found() {
    let (file, head) = written(3);
    assert_eq!(findings(&file, &head), []);
    for at in 0..file.len() - 1 {
        for bit in [1, 0x20] {
            let mut changed = file.clone();
            changed[at] ^= bit;
            assert_ne!(findings(&changed, &head), [], "{}", String::from_utf8_lossy(&changed[at..]));
        }
    }
}

#[test]
fn a_file_that_is_cut_anywhere_is_found() {
    let (file, head) = written(3);
    for at in 0..file.len() - 1 {
        assert_ne!(findings(&file[..at], &head), [], "{at}");
    }
}

#[test]
fn lines_of_a_release_before_chains_are_counted_where_a_file_begins_and_found_elsewhere() {
    let (file, head) = written(3);
    let old =
        br#"{"time":"2026-01-01T00:00:00Z","requestId":"r","identity":"uid:0","action":"secret.get","outcome":"ok"}"#;
    let verified = |lines: &[&[u8]]| {
        let mut verifier = Verifier::new(vec![key()], vec![head.clone()]);
        verifier.begin_file();
        for (at, line) in lines.iter().enumerate() {
            verifier.line(&format!("line {}", at + 1), line);
        }
        verifier.finish(None)
    };
    let lines: Vec<&[u8]> = file.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
    let first = verified(&[&[&old[..], old], &lines[..]].concat());
    assert_eq!((first.findings, first.before_chains), (vec![], 2));
    let behind = verified(&[&lines[..], &[&old[..]]].concat());
    assert!(behind.findings[0].what.contains("is no record of a chain"), "{:?}", behind.findings);
}

#[test]
fn a_file_that_is_cut_back_with_its_head_is_found_by_the_tables_chain() {
    let (file, was) = written(5);
    let told = format!(r#","chain":"file","position":5,"positionLink":"{}""#, Mac(was.end.link));
    let (rows, table_head) = table(&[(START, 1), (HEAD, 1)], &told);
    let lines: Vec<&[u8]> = file.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
    let verified = |left: usize| {
        let (_, head) = written(left as u64);
        let mut verifier = Verifier::new(vec![key()], vec![head, table_head.clone()]);
        for line in &lines[..left] {
            verifier.line("a line", line);
        }
        for row in &rows {
            verifier.row(row);
        }
        verifier.finish(None).findings
    };
    assert_eq!(verified(5), []);
    let found = verified(4);
    assert!(found.len() == 1 && found[0].what.contains("it has 4 records, and had 5"), "{found:?}");
}

#[test]
fn a_record_under_an_old_key_behind_one_under_a_newer_is_found() {
    let verified = |records: &[(&str, u64)]| {
        let (rows, head) = table(records, "");
        let mut verifier = Verifier::new(vec![version(1), version(2)], vec![head]);
        for row in &rows {
            verifier.row(row);
        }
        verifier.finish(None).findings
    };
    assert_eq!(verified(&[(START, 1), ("secret.set", 1), ("secret.set", 2), ("secret.set", 2)]), []);
    let found = verified(&[(START, 1), ("secret.set", 2), ("secret.set", 1)]);
    assert!(found.len() == 1 && found[0].what.contains("under version 1 of the chain key"), "{found:?}");
}
