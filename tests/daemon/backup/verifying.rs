use super::super::on_both_stores;
use super::*;
use crate::daemon::rotation::elsewhere;

on_both_stores![
    what_was_read_back_is_recorded_by_the_daemon,
    a_copy_that_was_uploaded_by_other_means_is_found_and_recorded,
    a_copy_that_cannot_be_read_or_was_changed_is_no_proof,
    an_exported_copy_is_proven_from_its_file,
];

fn verify(site: &Site, words: &[&str]) -> Output {
    as_restorer(site, &[&["backup", "verify", "-o", "json"], words].concat())
}

/// Whatever it exits with: 3 where a needed key has no copy.
fn list(site: &Site) -> Value {
    serde_json::from_slice(&site.cli(["backup", "list", "-o", "json"], b"").stdout).unwrap()
}

fn what_was_read_back_is_recorded_by_the_daemon(site: &Site) {
    let cloud = Cloud::of(site);
    let daemon = site.start();
    answer(&site.cli(["backup", "push", "-o", "json"], b""));
    assert!(list(site)["keys"][0].get("readBackAt").is_none());
    let verified = answer(&verify(site, &[]));
    assert_eq!((&verified["recorded"], &verified["good"][0]["kid"]), (&true.into(), &kid(&daemon).into()));
    let shown = list(site);
    assert!(shown["keys"][0]["readBackAt"].is_string(), "{shown}");
    assert!(shown["secrets"][0]["versions"][0]["readBackAt"].is_string(), "{shown}");
    assert_eq!((cloud.requests("access"), site.number("SELECT count(*) FROM escrows")), (1, 1));
    assert_eq!(daemon.stop().code(), Some(0));
    let beside = verify(site, &[]);
    assert_eq!(answer(&beside)["recorded"], false);
    assert!(said(&beside).contains("is not recorded"), "{}", said(&beside));
}

fn a_copy_that_was_uploaded_by_other_means_is_found_and_recorded(site: &Site) {
    let cloud = Cloud::of(site);
    let (key, kid) = populated(site);
    cloud.add(&key);
    let _daemon = site.start();
    assert_eq!(list(site)["secrets"][0]["versions"][0].get("kid"), None);
    assert_eq!(answer(&verify(site, &[]))["good"][0]["locator"], format!("{SECRET}/versions/1"));
    assert_eq!(list(site)["secrets"][0]["versions"][0]["kid"], kid);
    let pushed = answer(&site.cli(["backup", "push", "-o", "json"], b""));
    assert_eq!(pushed["copies"][0]["state"], "present", "it is as good as one that was pushed");
}

fn a_copy_that_cannot_be_read_or_was_changed_is_no_proof(site: &Site) {
    let cloud = Cloud::of(site);
    let daemon = site.start();
    fails(&verify(site, &[]), 3, &["none of its 0 versions", "containarium backup push"]);
    answer(&site.cli(["backup", "push", "-o", "json"], b""));
    fails(&site.cli(["backup", "verify"], b""), 4, &["secretmanager.versions.access", "restore identity"]);
    for (fault, code) in [("flipped-bit", 1), ("503", 5)] {
        cloud.fault(fault, "access");
        fails(&verify(site, &[]), code, &[&kid(&daemon), SECRET]);
        cloud.heal();
    }
    cloud.add(&new_key().0);
    site.run_sql(&format!("UPDATE escrows SET locator = '{SECRET}/versions/2'"));
    fails(&verify(site, &[]), 1, &["not what was pushed there", &kid(&daemon)]);
    assert_eq!(site.number("SELECT count(*) FROM escrows WHERE read_back_at IS NOT NULL"), 0);
}

fn an_exported_copy_is_proven_from_its_file(site: &Site) {
    let daemon = site.start();
    let sheet = site.cli(["backup", "export", "--paper"], b"").stdout;
    let path = site.path("sheet.txt").display().to_string();
    std::fs::write(&path, &sheet).unwrap();
    let good = answer(&site.cli(["backup", "verify", "--from", &path, "-o", "json"], b""));
    assert_eq!((&good["good"][0]["target"], &good["good"][0]["locator"]), (&"paper".into(), &path.into()));
    assert_eq!(good["recorded"], true);
    let warnings = daemon.get("/v1/admin/status").json()["warnings"].to_string();
    assert!(!warnings.contains("no backup of the master key"), "{warnings}");
    let [main, beside] = [site.key_file().display().to_string(), site.path("copied.key").display().to_string()];
    std::fs::copy(&main, &beside).unwrap();
    for path in [&main, &beside] {
        let refused = site.cli(["backup", "verify", "--from", path], b"");
        fails(&refused, 1, &["lies on the same file system as the key file", "backup verify --from -"]);
    }
    assert_eq!(site.number("SELECT count(*) FROM escrows"), 1, "the sheet, and not the key file as its own backup");
    let away = elsewhere();
    let copied = away.path().join("key").display().to_string();
    std::fs::copy(&main, &copied).unwrap();
    assert!(site.cli(["backup", "verify", "--from", &copied], b"").status.success());
    for _ in 0..2 {
        let raw = std::fs::read(site.key_file()).unwrap();
        assert!(site.cli(["backup", "verify", "--from", "-"], &raw).status.success());
    }
    assert_eq!(
        site.number("SELECT count(*) FROM escrows"),
        3,
        "the sheet, the copy elsewhere, and what came on standard input"
    );
    fails(&site.cli(["backup", "verify", "--from", "-"], &new_key().0), 6, &["has never had"]);
    fails(&site.cli(["backup", "verify", "--from", "-"], &[7; 31]), 1, &["31 bytes"]);
    fails(&site.cli(["backup", "verify"], b""), 2, &["no secret is configured"]);
}

#[test]
fn a_fifo_is_read_where_somebody_writes_and_nobody_waits_where_not() {
    let site = Site::sqlite();
    let _daemon = site.start();
    let sheet = site.cli(["backup", "export", "--paper"], b"").stdout;
    let fifo = site.path("fifo").display().to_string();
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    std::thread::scope(|scope| {
        scope.spawn(|| std::fs::write(&fifo, &sheet).unwrap());
        answer(&site.cli(["backup", "verify", "--from", &fifo, "-o", "json"], b""));
    });
    for command in ["verify", "restore", "drill"] {
        let refused = site.cli(["backup", command, "--from", &fifo], b"");
        let code = if command == "drill" { 3 } else { 2 };
        fails(&refused, code, &["it is a FIFO, and nobody has opened it to write within 10 s"]);
    }
}

#[test]
fn a_sheet_is_not_written_to_a_terminal() {
    let site = Site::sqlite();
    let _daemon = site.start();
    let words = format!("{} backup export --paper", env!("CARGO_BIN_EXE_containarium"));
    let of_site = site.command(["version"]);
    let variables = of_site.get_envs().filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())));
    let mut script = std::process::Command::new("script");
    let Ok(output) = script.args(["-qec", &words, "/dev/null"]).envs(variables).output() else {
        eprintln!("skipped: a_sheet_is_not_written_to_a_terminal: there is no `script` here");
        return;
    };
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(shown.contains("not written to a terminal") && !shown.contains("kid"), "{shown}");
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn the_daemon_records_nothing_that_it_cannot_know() {
    let site = Site::sqlite();
    let daemon = site.start();
    let known = kid(&daemon);
    let body = |kid: &str, target: &str, sum: &str| {
        serde_json::json!({"copies": [{"kid": kid, "target": target, "sha256": sum}]}).to_string()
    };
    let sum = "0".repeat(64);
    for (text, status) in [
        (body(&"f".repeat(32), "age", &sum), 404),
        (body("x", "age", &sum), 400),
        (body(&known, "elsewhere", &sum), 400),
        (body(&known, "age", "00"), 400),
        (body(&known, "age", &sum), 200),
    ] {
        assert_eq!(daemon.request("POST", "/v1/admin/backup/read-back", text.as_bytes()).status, status, "{text}");
    }
    assert_eq!(site.number("SELECT count(*) FROM escrows"), 1);
    let unread = |kid: &str, why: &str| {
        let unread = serde_json::json!([{"kid": kid, "locator": format!("{SECRET}/versions/1"), "why": why}]);
        serde_json::json!({"copies": [], "unread": unread}).to_string()
    };
    for (text, status) in [(unread(&known, "x"), 404), (unread("x", "x"), 400), (unread(&known, "a\u{7}"), 400)] {
        assert_eq!(daemon.request("POST", "/v1/admin/backup/read-back", text.as_bytes()).status, status, "{text}");
    }
}
