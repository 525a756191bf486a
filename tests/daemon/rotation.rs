//! Rotating the master key of a real daemon, on both stores.

mod disks;
mod escrow;
mod kills;
mod lost;
mod nodes;
pub(super) mod refusals;
#[cfg(feature = "failpoints")]
mod rounds;

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::Value;

use super::on_both_stores;
use crate::support::site::{Daemon, Site};

on_both_stores![
    a_rotation_goes_through_while_secrets_are_read_and_written,
    with_a_cache_of_no_entries_a_rotation_goes_through_all_the_same,
    a_copy_off_the_host_is_asked_for_and_proven,
    a_dry_run_changes_nothing,
    what_is_staged_can_be_given_up,
    a_key_that_was_staged_before_this_nodes_record_began_is_kept_when_it_is_given_up,
    a_second_rotation_follows_the_first,
    a_compromised_key_opens_nothing_after_its_rotation,
    an_old_key_is_destroyed_once_its_time_has_come,
    two_old_keys_are_kept_for_their_time_and_destroyed_one_after_the_other,
];

/// A place on another file system than the site's, as a copy off the host is. In memory: Linux has it everywhere.
pub(super) fn elsewhere() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

/// `admin rotate-master` with its answer as JSON, where it has one.
pub(super) fn rotate(site: &Site, arguments: &[&str]) -> (Output, Option<Value>) {
    let all = ["admin", "rotate-master", "-o", "json"].iter().chain(arguments);
    let output = site.cli(all, b"");
    let report = serde_json::from_slice(&output.stdout).ok();
    (output, report)
}

/// The same, where it must go well.
pub(super) fn rotated(site: &Site, arguments: &[&str]) -> Value {
    let (output, report) = rotate(site, arguments);
    assert_eq!(output.status.code(), Some(0), "{output:?}\n{}", site.log());
    report.unwrap()
}

/// And where it must not: its exit code and what it said.
pub(super) fn refused(site: &Site, arguments: &[&str]) -> (Option<i32>, String) {
    let (output, report) = rotate(site, arguments);
    assert!(!output.status.success(), "{report:?}");
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

pub(super) const WAIVE: [&str; 2] = ["--escrow", "waive-off-host-copy"];

pub(super) fn staged_file(site: &Site, kid: &str) -> PathBuf {
    site.path("etc/secrets.key.d").join(kid)
}

pub(super) fn keys(daemon: &Daemon) -> Value {
    daemon.get("/v1/admin/status").json()["keys"].clone()
}

pub(super) fn active(daemon: &Daemon) -> String {
    keys(daemon)["active_kid"].as_str().or(keys(daemon)["activeKid"].as_str()).unwrap().to_owned()
}

fn hex_of(site: &Site, column: &str) -> String {
    if site.is_postgres() { format!("encode({column}, 'hex')") } else { format!("lower(hex({column}))") }
}

/// DEKs in use that are under another key than this one.
pub(super) fn not_under(site: &Site, kid: &str) -> i64 {
    let of = hex_of(site, "kid");
    site.number(&format!("SELECT count(*) FROM deks WHERE state IN ('active', 'decrypt_only') AND {of} <> '{kid}'"))
}

pub(super) fn phase(site: &Site) -> String {
    site.texts("SELECT phase FROM key_state").remove(0)
}

fn fill(daemon: &Daemon, tenants: usize) {
    for tenant in 0..tenants {
        assert_eq!(daemon.set(&format!("t{tenant}"), "KEY", format!("value {tenant}").as_bytes()).status, 200);
    }
}

pub(super) fn check(daemon: &Daemon, tenants: usize) {
    for tenant in 0..tenants {
        let value = daemon.value(&format!("t{tenant}"), "KEY");
        assert_eq!(value.unwrap(), format!("value {tenant}").as_bytes());
    }
}

/// Reads and writes until the rotation is over; every answer must be right.
fn under_load(daemon: &Daemon, work: impl FnOnce() -> Value) -> Value {
    let (stop, reads, writes) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for reader in 0..2 {
            let (stop, reads) = (&stop, &reads);
            scope.spawn(move || {
                let mut tenant = reader;
                while !stop.load(Ordering::Relaxed) {
                    tenant = (tenant + 7) % 40;
                    let answer = daemon.get(&format!("/v1/secrets/t{tenant}/KEY"));
                    assert_eq!(answer.status, 200, "no read fails because of a rotation: {answer:?}");
                    assert_eq!(answer.value(), format!("value {tenant}").as_bytes());
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let (stopped, written) = (&stop, &writes);
        scope.spawn(move || {
            // Each a tenant of its own: its DEK is made while the key changes.
            for number in 0.. {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let answer = daemon.set(&format!("new{number}"), "KEY", b"fresh");
                assert_eq!(answer.status, 200, "{answer:?}");
                written.fetch_add(1, Ordering::Relaxed);
            }
        });
        let done = work();
        stop.store(true, Ordering::Relaxed);
        done
    })
    .tap(|_| {
        assert!(reads.load(Ordering::Relaxed) > 0 && writes.load(Ordering::Relaxed) > 0);
        for number in 0..writes.load(Ordering::Relaxed) {
            assert_eq!(daemon.value(&format!("new{number}"), "KEY").unwrap(), b"fresh");
        }
    })
}

trait Tap: Sized {
    fn tap(self, look: impl FnOnce(&Self)) -> Self {
        look(&self);
        self
    }
}
impl Tap for Value {}

fn a_rotation_goes_through_while_secrets_are_read_and_written(site: &Site) {
    let daemon = site.start();
    goes_through(site, &daemon);
}

fn with_a_cache_of_no_entries_a_rotation_goes_through_all_the_same(site: &Site) {
    std::fs::write(site.path("config.toml"), "[cache]\nmax_entries = 0\n").unwrap();
    let daemon = site.start();
    goes_through(site, &daemon);
}

fn goes_through(site: &Site, daemon: &Daemon) {
    fill(daemon, 40);
    let old_file = std::fs::read(site.key_file()).unwrap();
    let old = active(daemon);
    let report = under_load(daemon, || rotated(site, &WAIVE));
    assert_eq!((report["end"].as_str(), report["oldKid"].as_str()), (Some("rotated"), Some(old.as_str())), "{report}");
    let new = report["kid"].as_str().unwrap();
    assert_eq!(active(daemon), new);
    assert_ne!(new, old);
    assert_eq!(not_under(site, new), 0);
    assert_eq!(phase(site), "idle");
    assert_eq!(site.number("SELECT count(*) FROM key_state WHERE lease_holder IS NULL"), 1);
    assert_eq!(site.number("SELECT epoch FROM key_state"), 2);
    assert_eq!(std::fs::read(staged_file(site, &old)).unwrap(), old_file, "the old key is kept");
    let new_file = std::fs::read(site.key_file()).unwrap();
    assert_eq!(new_file, std::fs::read(staged_file(site, new)).unwrap());
    only_the_new_key_opens(site, &old_file, &new_file);
    let left = report["left"].to_string();
    for part in ["--destroy-old", "database backup", "is the loss of every secret"] {
        assert!(left.contains(part), "{left}");
    }
    check(daemon, 40);
    assert_eq!(daemon.set("t0", "KEY", b"value 0").status, 200);
}

/// By the reference implementation, with the kid check bypassed: the old key opens no wrapped DEK of the database, the new one all.
fn only_the_new_key_opens(site: &Site, old: &[u8], new: &[u8]) {
    const PROGRAM: &str = "
import sys, importlib.util
spec = importlib.util.spec_from_file_location('ref', sys.argv[1]); ref = importlib.util.module_from_spec(spec); spec.loader.exec_module(ref)
old, new = bytes.fromhex(sys.argv[2]), bytes.fromhex(sys.argv[3])
import struct
def opens(master, tenant, version, blob, kid):
    header = blob[:4] + kid
    info = ref.label('wrap') + header + ref.lp(tenant) + struct.pack('>I', version)
    try:
        ref.open_(ref.master_kek(master), 20, blob, info); return True
    except (ref.NotCommitted, ref.Corrupted): return False
rows = [line.split() for line in sys.stdin if line.strip()]
assert rows
for tenant, version, wrapped in rows:
    tenant, version, blob = tenant.encode(), int(version), bytes.fromhex(wrapped)
    ref.unwrap_dek(new, tenant, version, blob)
    for kid in (blob[4:20], ref.master_kid(old)):
        assert not opens(old, tenant, version, blob, kid), tenant
print(len(rows))
";
    if !python_can_run_it() {
        return;
    }
    let wrapped = hex_of(site, "wrapped");
    let rows = site.texts(&format!("SELECT tenant || ' ' || dek_version || ' ' || {wrapped} FROM deks"));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reference/envelope_ref.py");
    let hex = |bytes: &[u8]| data_encoding::HEXLOWER.encode(bytes);
    let mut child = Command::new("python3")
        .args(["-c", PROGRAM, script, &hex(old), &hex(new)])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(rows.join("\n").as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), rows.len().to_string());
}

/// Whether python3 can run the reference. In CI it must: a skip there would be a hole that nobody sees.
#[expect(clippy::disallowed_methods, reason = "whether this is CI is known by the environment only")]
fn python_can_run_it() -> bool {
    let can = Command::new("python3")
        .args(["-c", "import cryptography.hazmat.primitives.ciphers.aead"])
        .output()
        .is_ok_and(|output| output.status.success());
    assert!(can || std::env::var_os("CI").is_none(), "python3 with `cryptography` must be there in CI");
    if !can {
        eprintln!("skipped: python3 lacks `cryptography` (apt-get install python3-cryptography)");
    }
    can
}

fn a_copy_off_the_host_is_asked_for_and_proven(site: &Site) {
    let daemon = site.start();
    fill(&daemon, 3);
    let old = active(&daemon);
    let report = rotated(site, &[]);
    assert_eq!(report["end"], "staged");
    let kid = report["kid"].as_str().unwrap();
    let left = report["left"].to_string();
    for part in [staged_file(site, kid).to_str().unwrap(), "--resume --prove-from FILE", "--abort"] {
        assert!(left.contains(part), "{left}");
    }
    assert_eq!((phase(site).as_str(), active(&daemon)), ("staged", old.clone()));
    daemon.set("late", "KEY", b"value");
    assert_eq!(not_under(site, &old), 0, "it serves on the old key");

    let off_host = elsewhere();
    let copy = off_host.path().join("copy");
    std::fs::copy(staged_file(site, kid), &copy).unwrap();
    let report = rotated(site, &["--resume", "--prove-from", copy.to_str().unwrap()]);
    assert_eq!((report["end"].as_str(), active(&daemon).as_str()), (Some("rotated"), kid));
    assert!(!report["left"].to_string().contains("is the loss of every secret"), "{report}");
    assert_eq!(site.number("SELECT count(*) FROM escrows WHERE kind = 'copy' AND read_back_at IS NOT NULL"), 1);
    assert_eq!(site.texts("SELECT locator FROM escrows"), [copy.to_str().unwrap()]);
    let status = daemon.get("/v1/admin/status").json();
    assert!(!status["warnings"].to_string().contains("no backup"), "{status}");
    check(&daemon, 3);
}

fn a_dry_run_changes_nothing(site: &Site) {
    let daemon = site.start();
    fill(&daemon, 3);
    let rows = |site: &Site| {
        let (kid, wrapped) = (hex_of(site, "kid"), hex_of(site, "wrapped"));
        let mut rows = site.texts(&format!("SELECT tenant || {kid} || {wrapped} FROM deks ORDER BY 1"));
        rows.extend(site.texts(&format!("SELECT {kid} || state FROM master_keys ORDER BY 1")));
        rows.extend(site.texts("SELECT phase || mode || epoch || coalesce(lease_holder, '-') FROM key_state"));
        rows
    };
    let (before, files) = (rows(site), key_files(site));
    let report = rotated(site, &["--dry-run"]);
    assert_eq!((report["end"].as_str(), report["deks"].as_u64()), (Some("dry-run"), Some(4)), "{report}");
    assert_eq!((rows(site), key_files(site)), (before, files));
}

/// The key files, the lock aside.
fn key_files(site: &Site) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = site.files().into_keys().filter(|path| path.starts_with(site.path("etc"))).collect();
    files.retain(|path| path.extension().is_none_or(|extension| extension != "lock"));
    files.sort();
    files
}

fn what_is_staged_can_be_given_up(site: &Site) {
    let daemon = site.start();
    fill(&daemon, 3);
    let (old, files) = (active(&daemon), key_files(site));
    let kid = rotated(site, &[])["kid"].as_str().unwrap().to_owned();
    assert!(staged_file(site, &kid).exists());
    let report = rotated(site, &["--abort"]);
    assert_eq!((report["end"].as_str(), report["kid"].as_str()), (Some("aborted"), Some(kid.as_str())));
    assert_eq!((phase(site).as_str(), active(&daemon)), ("idle", old));
    assert_eq!(key_files(site), files, "its file is gone");
    let (code, said) = refused(site, &["--abort"]);
    assert_eq!(code, Some(3));
    assert!(said.contains("nothing is staged"), "{said}");
    assert_eq!(rotated(site, &WAIVE)["end"], "rotated", "another key can be staged then");
    check(&daemon, 3);
}

/// As after a restore onto a new host: nothing there tells that the database went back.
fn a_key_that_was_staged_before_this_nodes_record_began_is_kept_when_it_is_given_up(site: &Site) {
    std::fs::write(site.path("config.toml"), "[keys]\nretain_old = \"0s\"\n").unwrap();
    let daemon = site.start();
    fill(&daemon, 3);
    let before = active(&daemon);
    let kid = rotated(site, &[])["kid"].as_str().unwrap().to_owned();
    assert_eq!(daemon.stop().code(), Some(0));
    for name in ["node.json", "critical.jsonl"] {
        std::fs::remove_file(site.data_dir().join(name)).unwrap();
    }
    if site.is_postgres() {
        // Gone for good with its record.
        site.run_sql("DELETE FROM nodes");
    }
    let daemon = site.start();
    let report = rotated(site, &["--abort"]);
    assert_eq!((report["end"].as_str(), report["kid"].as_str()), (Some("aborted"), Some(&*kid)));
    assert!(report["did"].to_string().contains("retired and kept"), "{report}");
    assert!(staged_file(site, &kid).exists(), "a later state may have had it in use");
    assert_eq!((phase(site).as_str(), active(&daemon)), ("idle", before));
    check(&daemon, 3);
    // It goes as any old key does.
    let (code, said) = refused(site, &["--destroy-old", "--yes"]);
    assert_eq!(code, Some(6), "{said}");
    assert_eq!(rotated(site, &["--destroy-old", "--yes", WAIVE[0], WAIVE[1]])["kid"], *kid);
    assert!(!staged_file(site, &kid).exists());
}

fn a_second_rotation_follows_the_first(site: &Site) {
    let daemon = site.start();
    fill(&daemon, 3);
    let first = active(&daemon);
    let second = rotated(site, &WAIVE)["kid"].as_str().unwrap().to_owned();
    let third = rotated(site, &WAIVE)["kid"].as_str().unwrap().to_owned();
    assert_eq!(site.number("SELECT epoch FROM key_state"), 3);
    assert_eq!(site.number("SELECT count(*) FROM master_keys WHERE state = 'retired'"), 2);
    for kid in [&first, &second, &third] {
        assert!(staged_file(site, kid).exists(), "both old keys are kept for their backups");
    }
    check(&daemon, 3);
    assert_eq!(daemon.stop().code(), Some(0));
    let daemon = site.start();
    check(&daemon, 3);
    assert_eq!(active(&daemon), third);
}

fn a_compromised_key_opens_nothing_after_its_rotation(site: &Site) {
    let daemon = site.start();
    fill(&daemon, 3);
    daemon.set("t0", "KEY", b"value 0 again");
    daemon.set("t0", "KEY", b"value 0");
    daemon.set("t1", "GONE", b"deleted");
    assert_eq!(daemon.request("DELETE", "/v1/secrets/t1/GONE", b"").status, 200);
    let deks = hex_of(site, "dek_id");
    let before = site.texts(&format!("SELECT {deks} FROM deks"));
    let blobs = hex_of(site, "ciphertext");
    let sealed = site.texts(&format!("SELECT {blobs} FROM secret_versions WHERE ciphertext IS NOT NULL"));
    let mut arguments = vec!["--compromised"];
    arguments.extend(WAIVE);
    let report = rotated(site, &arguments);
    assert_eq!(report["end"], "rotated");
    let after = site.texts(&format!("SELECT {deks} FROM deks"));
    assert!(before.iter().all(|dek| !after.contains(dek)), "no DEK from before is left");
    let resealed = site.texts(&format!("SELECT {blobs} FROM secret_versions WHERE ciphertext IS NOT NULL"));
    assert!(sealed.iter().all(|blob| !resealed.contains(blob)), "nothing sealed before is left");
    assert_eq!((phase(site).as_str(), site.texts("SELECT mode FROM key_state").remove(0).as_str()), ("idle", "normal"));
    for name in ["TOKEN_MAC", "AUDIT_CHAIN"] {
        let versions = format!("SELECT count(*) FROM secret_versions WHERE tenant = '_system' AND name = '{name}'");
        assert_eq!(site.number(&versions), 2, "a new one beside the old");
    }
    check(&daemon, 3);
    assert_eq!(daemon.get("/v1/secrets/t0/KEY?version=2").value(), b"value 0 again");
    assert_eq!(daemon.request("POST", "/v1/secrets/t1/GONE/undelete", b"").status, 200);
    assert_eq!(daemon.value("t1", "GONE").unwrap(), b"deleted");
    let left = report["left"].to_string();
    for part in ["VACUUM", "WAL", "change the values themselves"] {
        assert!(left.contains(part), "{left}");
    }
    let values = report["valuesToChange"].as_array().unwrap();
    let t0 = values.iter().find(|values| values["username"] == "t0").unwrap();
    assert_eq!(t0["secrets"], 1);
    assert!(t0["oldestUpdatedAt"].as_str().unwrap().starts_with("20"), "{t0}");
}

fn an_old_key_is_destroyed_once_its_time_has_come(site: &Site) {
    let daemon = site.start();
    fill(&daemon, 2);
    let old = active(&daemon);
    let off_host = elsewhere();
    let copy = off_host.path().join("old");
    std::fs::copy(site.key_file(), &copy).unwrap();
    let (code, said) = refused(site, &["--destroy-old", "--yes"]);
    assert_eq!(code, Some(3), "{said}");
    rotated(site, &WAIVE);
    let (code, said) = refused(site, &["--destroy-old", "--yes"]);
    assert_eq!(code, Some(6), "{said}");
    assert!(said.contains("not before 20"), "{said}");
    assert_eq!(daemon.stop().code(), Some(0));

    std::fs::write(site.path("config.toml"), "[keys]\nretain_old = \"0s\"\n").unwrap();
    let daemon = site.start();
    let (code, said) = refused(site, &["--destroy-old"]);
    assert_eq!(code, Some(2), "there is no terminal to type the kid on: {said}");
    assert!(said.contains(&old), "{said}");
    let (code, said) = refused(site, &["--destroy-old", "--yes"]);
    assert_eq!(code, Some(6), "{said}");
    assert!(said.contains("--destroy-old --prove-from"), "{said}");
    let key = std::fs::read(&copy).unwrap();
    let [newline, foreign, damaged] =
        ["20260101T000000Z", "20260102T000000Z", "20260103T000000Z"].map(|at| set_aside(site, at));
    std::fs::write(&newline, [&key[..], b"\n"].concat()).unwrap();
    std::fs::write(&foreign, &key).unwrap();
    std::fs::write(&damaged, [b'x'; 57]).unwrap();
    let report = rotated(site, &["--destroy-old", "--yes", "--prove-from", copy.to_str().unwrap()]);
    assert!(
        !newline.exists() && !foreign.exists(),
        "what a restore set aside held it, whatever was wrong with the file"
    );
    assert!(damaged.exists(), "which key it may hold is not known");
    let told = [
        report["left"].to_string(),
        site.cli(["admin", "doctor", "-o", "json"], b"").stdout.escape_ascii().to_string(),
    ];
    for told in told {
        assert!(told.contains(damaged.to_str().unwrap()) && told.contains("shred"), "{told}");
    }
    assert_eq!((report["end"].as_str(), report["kid"].as_str()), (Some("destroyed"), Some(old.as_str())));
    assert!(!staged_file(site, &old).exists(), "no copy of it is left here");
    assert!(report["left"].to_string().contains("it is done"), "{report}");
    check(&daemon, 2);
    assert_eq!(daemon.stop().code(), Some(0));
    check(&site.start(), 2);
}

/// Where a restore keeps what was no good key file.
fn set_aside(site: &Site, at: &str) -> std::path::PathBuf {
    site.key_file().with_file_name(format!("secrets.key.replaced-unreadable-{at}"))
}

fn two_old_keys_are_kept_for_their_time_and_destroyed_one_after_the_other(site: &Site) {
    let destroy = ["--destroy-old", "--yes", WAIVE[0], WAIVE[1]];
    let daemon = site.start();
    fill(&daemon, 2);
    let mut kids = vec![active(&daemon)];
    for _ in 0..2 {
        kids.push(rotated(site, &WAIVE)["kid"].as_str().unwrap().to_owned());
    }
    let on_disk = |site: &Site| kids.iter().map(|kid| staged_file(site, kid).exists()).collect::<Vec<_>>();
    let whole: Vec<Vec<u8>> = kids.iter().map(|kid| std::fs::read(staged_file(site, kid)).unwrap()).collect();
    let (code, said) = refused(site, &destroy);
    assert_eq!(code, Some(6), "{said}");
    assert!(said.contains(&kids[0]) && said.contains("not before 20"), "the older one is asked for first: {said}");
    assert_eq!(daemon.stop().code(), Some(0));

    std::fs::write(site.path("config.toml"), "[keys]\nretain_old = \"0s\"\n").unwrap();
    let daemon = site.start();
    let kept: Vec<Vec<u8>> = kids.iter().map(|kid| std::fs::read(staged_file(site, kid)).unwrap()).collect();
    assert_eq!((kept, std::fs::read(site.key_file()).unwrap()), (whole.clone(), whole[2].clone()));
    for (index, rest) in [(0, [false, true, true]), (1, [false, false, true])] {
        let report = rotated(site, &destroy);
        assert_eq!((report["end"].as_str(), report["kid"].as_str()), (Some("destroyed"), Some(kids[index].as_str())));
        assert_eq!(on_disk(site), rest);
        check(&daemon, 2);
    }
    let (code, said) = refused(site, &destroy);
    assert_eq!(code, Some(3), "the active one is no old one: {said}");
    assert_eq!(on_disk(site), [false, false, true]);
    assert_eq!(daemon.stop().code(), Some(0));
    let daemon = site.start();
    check(&daemon, 2);
    assert_eq!(active(&daemon), kids[2]);
}
