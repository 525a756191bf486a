//! The vectors are made by tests/reference/audit_ref.py and must never change: old records are verified for as long as they are kept.

use super::*;
use std::io::Write;
use std::process::{Command, Stdio};

const RECORD: &[u8] = br#"{"action":"secret.get","outcome":"ok","n":1}"#;

fn key() -> ChainKey {
    ChainKey::of(version(1), &value(fixed_32(0).bytes())).unwrap()
}

#[test]
fn macs_and_links_are_those_of_the_reference() {
    let key = key();
    let first = key.mac(RECORD);
    assert_eq!(first.to_string(), "254de1a10ce5f900da33b460306a5bd114cde4aa3e029f72fe11cf228c52d6b8");
    let link = key.link(Mac::NONE, first);
    assert_eq!(link.to_string(), "ce18b6f1f5a2a1a8453e9aa51d01cbd71d4b92e25e8d8f37e351398f84168ed7");
    let second = key.mac(b"");
    assert_eq!(second.to_string(), "d38b42096d80f45f826b44a9d5607de72496a415d3f4a1a8c88e3bb9da8dc1cb");
    assert_eq!(key.link(link, second).to_string(), "1d4e4b07667f53cd5173974ad48c5a85dc43a7a339e250b72e0659295e05b2c6");
}

#[test]
fn the_reference_gives_the_same_mac_for_any_record_and_key() {
    const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reference/audit_ref.py");
    if !Command::new("python3").arg("--version").output().is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: python3 is not here");
        return;
    }
    for length in [0, 1, 55, 56, 64, 1000] {
        let secret = Bytes32::random().unwrap();
        let record = vec![b'x'; length];
        let mut reference = Command::new("python3")
            .args([SCRIPT, "mac", &data_encoding::HEXLOWER.encode(secret.bytes())])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        reference.stdin.take().unwrap().write_all(&record).unwrap();
        let said = reference.wait_with_output().unwrap().stdout;
        let ours = ChainKey::of(version(1), &value(secret.bytes())).unwrap().mac(&record);
        assert_eq!(String::from_utf8(said).unwrap().trim(), ours.to_string(), "{length}");
    }
}

#[test]
fn a_changed_record_mac_or_predecessor_does_not_verify_and_a_key_has_32_bytes() {
    let key = key();
    let mac = key.mac(RECORD);
    let link = key.link(Mac::NONE, mac);
    assert!(key.verifies(RECORD, mac) && key.links(Mac::NONE, mac, link));
    let mut changed = RECORD.to_vec();
    for index in 0..changed.len() {
        changed[index] ^= 1;
        assert!(!key.verifies(&changed, mac), "{index}");
        changed[index] ^= 1;
    }
    assert!(!key.links(mac, mac, link) && !key.links(Mac::NONE, link, link) && !key.links(Mac::NONE, mac, mac));
    let other = ChainKey::of(version(1), &value(fixed_32(1).bytes())).unwrap();
    assert!(!other.verifies(RECORD, mac) && !other.links(Mac::NONE, mac, link));
    for wrong in [&[0; 31][..], &[0; 33], &[]] {
        assert!(ChainKey::of(version(1), &value(wrong)).is_none());
    }
}

#[test]
fn a_mac_reads_back_from_what_it_shows_and_from_nothing_else() {
    let mac = key().mac(RECORD);
    assert_eq!(Mac::from_hex(&mac.to_string()), Some(mac));
    for wrong in ["", "ab", &"AB".repeat(32), &"ab".repeat(33)] {
        assert_eq!(Mac::from_hex(wrong), None, "{wrong}");
    }
}
