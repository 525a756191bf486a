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
    ChainKey::of(SecretVersion::new(1).unwrap(), &SecretValue::new(Zeroizing::new(vec![7; 32]))).unwrap()
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
        lines.iter().enumerate().for_each(|(at, line)| verifier.line(&format!("line {}", at + 1), line));
        verifier.finish(None)
    };
    let lines: Vec<&[u8]> = file.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
    let first = verified(&[&[&old[..], old], &lines[..]].concat());
    assert_eq!((first.findings, first.before_chains), (vec![], 2));
    let behind = verified(&[&lines[..], &[&old[..]]].concat());
    assert!(behind.findings[0].what.contains("is no record of a chain"), "{:?}", behind.findings);
}
