//! What a rotation refuses, and what stops it on the way.

use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use super::*;
use crate::support::site::PATIENCE;

on_both_stores![
    two_rotations_at_once_are_one_too_many,
    past_the_flip_giving_up_is_refused_and_stops_nothing,
    a_copy_that_is_none_proves_nothing,
    a_dek_that_does_not_open_is_named_and_stops_it_before_anything_is_staged,
    a_dek_that_is_damaged_after_the_flip_stops_it_by_name_and_it_goes_on_once_mended,
    a_dek_that_is_damaged_after_the_flip_stops_it_without_a_cache_too,
    a_dek_that_is_set_aside_in_a_rotation_is_released_with_the_retired_key_on_a_node_that_lost_it,
    a_directory_that_takes_no_file_stops_the_staging_and_nothing_happened,
];

fn two_rotations_at_once_are_one_too_many(site: &Site) {
    let daemon = site.start();
    let kid = rotated(site, &[])["kid"].as_str().unwrap().to_owned();
    for arguments in [&[][..], &["--compromised"], &["--dry-run"]] {
        let (code, said) = refused(site, arguments);
        assert_eq!(code, Some(6), "{said}");
        assert!(said.contains(&kid) && said.contains("--resume`") && said.contains("--abort`"), "{said}");
    }
    // A node that is not there is waited for, so the run stays; a second POST meanwhile is refused, and GET follows.
    let now =
        if site.is_postgres() { "(extract(epoch FROM now()) * 1000000)::bigint" } else { "unixepoch() * 1000000" };
    let (node, boot) = ("ab".repeat(16), "cd".repeat(16));
    site.run_sql(&format!(
        "INSERT INTO nodes (node_id, boot_id, durable_kids, epoch, seen_at) VALUES ('{node}', '{boot}', '', 1, {now})"
    ));
    let resume = br#"{"mode":"resume","escrow":"waive-off-host-copy"}"#;
    let mut stream = daemon.connect();
    let head = format!(
        "POST /v1/admin/rotate-master HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        resume.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(resume).unwrap();
    waits_for(&mut stream, "waiting for nodes");
    let answer = daemon.request("POST", "/v1/admin/rotate-master", resume);
    assert_eq!((answer.status, answer.problem().contains("under way")), (409, true));
    let (code, said) = refused(site, &[]);
    assert_eq!(code, Some(6), "{said}");
    // Hanging up stops nothing; giving up does, and the run that waits turns to it.
    drop(stream);
    let mut follower = daemon.connect();
    follower.write_all(b"GET /v1/admin/rotate-master HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    waits_for(&mut follower, "waiting for nodes");
    assert_eq!(rotated(site, &["--abort"])["end"], "aborted");
    waits_for(&mut follower, r#""event":"done","end":"aborted""#);
    assert_eq!(phase(site), "idle");
}

fn past_the_flip_giving_up_is_refused_and_stops_nothing(site: &Site) {
    let daemon = site.start();
    fill(&daemon, 3);
    rotated(site, &[]);
    let report = held_at_the_promotion(site, &["--resume", WAIVE[0], WAIVE[1]], || {
        let answer = daemon.request("POST", "/v1/admin/rotate-master/abort", b"");
        assert_eq!((answer.status, answer.problem().contains("the way is forward")), (409, true), "{answer:?}");
        let (code, said) = refused(site, &["--abort"]);
        assert_eq!(code, Some(6), "{said}");
        assert!(said.contains("phase verified: after the flip the way is forward"), "{said}");
    });
    assert_eq!(report["end"], "rotated", "it went on, and whoever asked for it was told");
    check(&daemon, 3);
}

/// Asks for this, does that while the run waits to put the new key into its place, and lets it end.
pub(super) fn held_at_the_promotion(site: &Site, arguments: &[&str], meanwhile: impl FnOnce()) -> Value {
    std::thread::scope(|scope| {
        let lock = std::fs::File::open(site.path("etc/secrets.key.lock")).unwrap();
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let asked = scope.spawn(|| rotated(site, arguments));
        let begun = Instant::now();
        while !site.log().contains("rotation: promote:") {
            assert!(begun.elapsed() < PATIENCE, "{}", site.log());
            std::thread::yield_now();
        }
        meanwhile();
        drop(lock);
        asked.join().unwrap()
    })
}

pub(super) fn waits_for(stream: &mut std::os::unix::net::UnixStream, text: &str) {
    use std::io::Read;
    let (mut said, mut buffer) = (String::new(), [0; 4096]);
    while !said.contains(text) {
        let read = stream.read(&mut buffer).unwrap();
        assert!(read > 0, "it ended without {text}: {said}");
        said.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
}

fn a_copy_that_is_none_proves_nothing(site: &Site) {
    let daemon = site.start();
    let off_host = elsewhere();
    let at = |name: &str| off_host.path().join(name).to_str().unwrap().to_owned();
    let (code, said) = refused(site, &["--resume", "--prove-from", &at("nothing")]);
    assert_eq!(code, Some(3), "nothing is staged yet: {said}");
    let (code, said) = refused(site, &["--prove-from", &at("nothing")]);
    assert_eq!(code, Some(2), "{said}");
    let kid = rotated(site, &[])["kid"].as_str().unwrap().to_owned();
    let staged = staged_file(site, &kid);
    std::fs::copy(site.key_file(), at("another")).unwrap();
    std::fs::write(at("short"), &std::fs::read(&staged).unwrap()[..31]).unwrap();
    std::fs::write(at("zero"), b"").unwrap();
    let beside = site.path("beside");
    std::fs::copy(&staged, &beside).unwrap();
    for (file, part) in [
        (at("nothing"), "cannot be read"),
        (at("another"), "holds master key"),
        (at("short"), "has 31 bytes"),
        (at("zero"), "is empty"),
        (beside.to_str().unwrap().to_owned(), "same file system"),
        (staged.to_str().unwrap().to_owned(), "same file system"),
    ] {
        let (code, said) = refused(site, &["--resume", "--prove-from", &file]);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(part) && said.contains("--prove-from"), "{file}: {said}");
    }
    // From standard input, which a shell can connect to a file beside the key just as well.
    let from_stdin = |input: std::fs::File| {
        let arguments = ["admin", "rotate-master", "--resume", "--prove-from", "-", "-o", "json"];
        site.command(arguments).stdin(input).output().unwrap()
    };
    let refused = from_stdin(std::fs::File::open(&beside).unwrap());
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("same file system"), "{refused:?}");
    assert_eq!(phase(site), "staged");
    assert_eq!(site.number("SELECT count(*) FROM escrows"), 0);
    // What only claims to be a proof is held against the key file.
    let claim =
        format!(r#"{{"mode":"resume","proof":{{"kid":"{kid}","locator":"x","sha256":"{}"}}}}"#, "00".repeat(32));
    let answer = daemon.request("POST", "/v1/admin/rotate-master", claim.as_bytes());
    assert!(String::from_utf8_lossy(&answer.body).contains("another SHA-256"), "{answer:?}");
    let key = std::fs::read(&staged).unwrap();
    let mut arguments = vec!["admin", "rotate-master", "--resume", "--prove-from", "-", "-o", "json"];
    let output = site.cli(arguments.drain(..), &key);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(site.texts("SELECT locator FROM escrows"), ["standard input"]);
    assert_eq!(active(&daemon), kid);
}

pub(in crate::daemon) fn damage(site: &Site, tenant: &str) -> String {
    let wrapped = if site.is_postgres() { "encode(wrapped, 'hex')" } else { "hex(wrapped)" };
    let whole = site.texts(&format!("SELECT {wrapped} FROM deks WHERE tenant = '{tenant}'")).remove(0);
    let mut bytes = data_encoding::HEXLOWER_PERMISSIVE.decode(whole.as_bytes()).unwrap();
    bytes[131] ^= 1;
    put(site, tenant, &bytes);
    whole
}

pub(in crate::daemon) fn put(site: &Site, tenant: &str, wrapped: &[u8]) {
    let wrapped = site.sql_bytes(wrapped);
    site.run_sql(&format!("UPDATE deks SET wrapped = {wrapped} WHERE tenant = '{tenant}'"));
}

fn a_dek_that_does_not_open_is_named_and_stops_it_before_anything_is_staged(site: &Site) {
    let daemon = site.start();
    fill(&daemon, 3);
    let files = key_files(site);
    damage(site, "t1");
    for arguments in [&WAIVE[..], &[]] {
        let (code, said) = refused(site, arguments);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("DEK t1 1 does not open: the wrapped DEK does not open: corrupted"), "{said}");
        assert!(said.contains("admin quarantine t1 1"), "{said}");
    }
    let (output, report) = rotate(site, &["--dry-run"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(report.unwrap()["problems"].to_string().contains("DEK t1 1"), "{output:?}");
    assert_eq!((phase(site).as_str(), key_files(site)), ("idle", files));
    assert_eq!(site.cli(["admin", "quarantine", "t1", "1"], b"").status.code(), Some(0));
    assert_eq!(rotated(site, &WAIVE)["end"], "rotated", "a quarantined one is passed over");
    assert_eq!(daemon.value("t2", "KEY").unwrap(), b"value 2");
}

fn a_dek_that_is_damaged_after_the_flip_stops_it_by_name_and_it_goes_on_once_mended(site: &Site) {
    let daemon = site.start();
    fill(&daemon, 3);
    rotated(site, &[]);
    let whole = damage(site, "t1");
    let mut resume = vec!["--resume"];
    resume.extend(WAIVE);
    let (code, said) = refused(site, &resume);
    assert_eq!(code, Some(1), "{said}");
    for part in ["DEK t1 1 does not open", "Restore that row", "admin quarantine t1 1"] {
        assert!(said.contains(part), "{said}");
    }
    assert_eq!(phase(site), "rewrapping");
    assert_eq!(not_under(site, &active(&daemon)), 1, "all others were rewrapped");
    let (code, said) = refused(site, &["--abort"]);
    assert_eq!(code, Some(6));
    assert!(said.contains("the way is forward"), "{said}");
    assert_eq!(daemon.value("t2", "KEY").unwrap(), b"value 2");
    put(site, "t1", &data_encoding::HEXLOWER_PERMISSIVE.decode(whole.as_bytes()).unwrap());
    assert_eq!(rotated(site, &["--resume"])["end"], "rotated");
    check(&daemon, 3);
}

fn a_dek_that_is_damaged_after_the_flip_stops_it_without_a_cache_too(site: &Site) {
    std::fs::write(site.path("config.toml"), "[cache]\nmax_entries = 0\n").unwrap();
    a_dek_that_is_damaged_after_the_flip_stops_it_by_name_and_it_goes_on_once_mended(site);
}

fn a_dek_that_is_set_aside_in_a_rotation_is_released_with_the_retired_key_on_a_node_that_lost_it(site: &Site) {
    std::fs::write(site.path("config.toml"), "[keys]\nretain_old = \"0s\"\n").unwrap();
    let daemon = site.start();
    fill(&daemon, 3);
    let (old, old_file) = (active(&daemon), std::fs::read(site.key_file()).unwrap());
    rotated(site, &[]);
    let whole = damage(site, "t1");
    let (code, said) = refused(site, &["--resume", WAIVE[0], WAIVE[1]]);
    assert_eq!(code, Some(1), "{said}");
    assert_eq!(site.cli(["admin", "quarantine", "t1", "1"], b"").status.code(), Some(0));
    assert_eq!(rotated(site, &["--resume"])["end"], "rotated");
    assert_eq!(daemon.get("/v1/secrets/t1/KEY").problem(), "quarantined");
    assert_eq!(site.texts("SELECT state FROM master_keys WHERE retired_at IS NOT NULL"), ["retired"]);
    // The DEK would be lost with it.
    let (code, said) = refused(site, &["--destroy-old", "--yes", WAIVE[0], WAIVE[1]]);
    assert_eq!(code, Some(6), "{said}");
    assert!(said.contains("1 quarantined DEKs are under master key"), "{said}");
    assert_eq!(daemon.stop().code(), Some(0));
    std::fs::remove_file(staged_file(site, &old)).unwrap();
    let daemon = site.start();
    put(site, "t1", &data_encoding::HEXLOWER_PERMISSIVE.decode(whole.as_bytes()).unwrap());
    let release = ["admin", "quarantine", "t1", "1", "--release"];
    let output = site.cli(release, b"");
    assert_eq!(output.status.code(), Some(6), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("install-key"), "{output:?}");
    let installed = site.cli(["admin", "install-key"], &old_file);
    assert_eq!(installed.status.code(), Some(0), "{installed:?}");
    assert_eq!(site.cli(release, b"").status.code(), Some(0));
    check(&daemon, 3);
    assert_eq!(not_under(site, &active(&daemon)), 0);
    // Nothing needs it any more.
    let again = site.cli(["admin", "install-key"], &old_file);
    assert_eq!(again.status.code(), Some(6), "{again:?}");
    assert_eq!(rotated(site, &["--destroy-old", "--yes", WAIVE[0], WAIVE[1]])["end"], "destroyed");
    assert!(!staged_file(site, &old).exists());
}

fn a_directory_that_takes_no_file_stops_the_staging_and_nothing_happened(site: &Site) {
    let daemon = site.start();
    fill(&daemon, 2);
    // Root writes anywhere, so what stops it is a file in the directory's place: ENOTDIR for everybody.
    let retained = site.path("etc/secrets.key.d");
    let aside = site.path("etc/aside");
    std::fs::rename(&retained, &aside).unwrap();
    std::fs::write(&retained, b"").unwrap();
    std::fs::set_permissions(&retained, std::fs::Permissions::from_mode(0o600)).unwrap();
    let before = site.number("SELECT count(*) FROM master_keys");
    let (code, said) = refused(site, &WAIVE);
    assert_eq!(code, Some(5), "{said}");
    assert!(said.contains("nothing happened") && said.contains("secrets.key.d"), "{said}");
    assert_eq!((phase(site).as_str(), site.number("SELECT count(*) FROM master_keys")), ("idle", before));
    std::fs::remove_file(&retained).unwrap();
    std::fs::rename(&aside, &retained).unwrap();
    assert_eq!(rotated(site, &WAIVE)["end"], "rotated");
    check(&daemon, 2);
}
