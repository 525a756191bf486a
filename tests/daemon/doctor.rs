//! `admin doctor`, beside a daemon and without one.

use std::os::unix::fs::PermissionsExt;
use std::process::Output;
use std::time::SystemTime;

use serde_json::Value;

use super::on_both_stores;
use crate::support::site::Site;

on_both_stores![
    a_new_deployment_is_warned_of_its_backups_and_fails_nothing,
    backups_age_and_the_doctor_says_so,
    each_configured_secret_without_a_confirmed_copy_is_named,
    a_key_that_a_rotation_left_needed_must_have_a_copy_too,
    a_damaged_key_file_is_a_failure_that_names_its_mend,
    without_a_daemon_the_doctor_says_what_it_can,
    keys_that_the_database_lacks_or_does_not_know_are_told,
    a_key_file_that_holds_another_key_than_the_active_one_is_told_with_what_mends_it,
    a_node_that_is_gone_is_named,
];

const DAY: i64 = 24 * 60 * 60 * 1_000_000;

pub(super) struct Told {
    code: Option<i32>,
    answer: Value,
    stderr: String,
}

impl Told {
    fn of(output: &Output) -> Self {
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        let answer = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{stderr}"));
        Self { code: output.status.code(), answer, stderr }
    }

    fn names(&self) -> Vec<&str> {
        self.answer["checks"].as_array().unwrap().iter().map(|check| check["name"].as_str().unwrap()).collect()
    }

    /// Of one check: verdict, and finding and mend in one text.
    #[track_caller]
    pub(super) fn check(&self, name: &str) -> (String, String) {
        let checks = self.answer["checks"].as_array().unwrap();
        let check = checks.iter().find(|check| check["name"] == name);
        let check = check.unwrap_or_else(|| panic!("no {name} in {}", self.answer));
        let mend = check["mend"].as_str().unwrap_or_default();
        (check["verdict"].as_str().unwrap().to_owned(), format!("{} {mend}", check["finding"].as_str().unwrap()))
    }

    #[track_caller]
    pub(super) fn finds(&self, name: &str, verdict: &str, says: &[&str]) {
        let (found, text) = self.check(name);
        assert_eq!(found, verdict, "{name}: {text}");
        for words in says {
            assert!(text.contains(words), "{words} is not in {name}: {text}");
        }
    }
}

pub(super) fn doctor(site: &Site) -> Told {
    Told::of(&site.cli(["admin", "doctor", "-o", "json"], b""))
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_micros()).unwrap()
}

/// A confirmed copy of every key, read back so many days ago.
fn escrow(site: &Site, read_back_days: i64) {
    let sha = site.sql_bytes(&[7; 32]);
    let at = now() - read_back_days * DAY;
    site.run_sql(&format!(
        "INSERT INTO escrows (id, kid, target, locator, content_sha256, kind, started_at, confirmed_at, read_back_at) \
         SELECT 'e{read_back_days}', kid, 'secret-manager', 'a/safe', {sha}, 'copy', {at}, {at}, {at} FROM master_keys WHERE state = 'active'"
    ));
}

fn a_new_deployment_is_warned_of_its_backups_and_fails_nothing(site: &Site) {
    site.record_in_the_file();
    let daemon = site.start();
    let told = doctor(site);
    let all = [
        "daemon",
        "database",
        "key-file",
        "clock",
        "keys",
        "key-backup",
        "key-backup-read-back",
        "database-backup",
        "drill",
        "rotation",
        "data-disk",
        "key-disk",
        "memory",
        "audit",
        "node",
    ];
    assert_eq!(told.names(), all);
    assert_eq!((told.code, told.stderr.as_str()), (Some(0), ""), "{}", told.answer);
    assert_eq!(told.answer["verdict"], "warning");
    told.finds("key-backup", "warning", &["without it every secret is lost", "containarium backup push"]);
    told.finds("key-backup-read-back", "warning", &["was ever read back", "containarium backup verify"]);
    told.finds(
        "database-backup",
        "warning",
        &["no copy of the database is recorded", "the limit is 2 days", "--record"],
    );
    told.finds("drill", "warning", &["containarium backup drill"]);
    for name in ["daemon", "database", "key-file", "clock", "keys", "rotation", "audit", "node"] {
        told.finds(name, "ok", &[]);
    }
    let metrics = String::from_utf8(daemon.get("/metrics").body).unwrap();
    for check in told.answer["checks"].as_array().unwrap() {
        let number = match check["verdict"].as_str().unwrap() {
            "ok" => 0,
            "warning" => 1,
            _ => 2,
        };
        let line = format!("\ncontainarium_doctor_verdict{{check={}}} {number}\n", check["name"]);
        assert!(metrics.contains(&line), "{line} is not in {metrics}");
        let mend = check["mend"].as_str().unwrap_or_default();
        let names_it = mend.contains("containarium ") || check["finding"].as_str().unwrap().contains("LimitMEMLOCK");
        assert!(number == 0 || names_it, "{check}");
    }
    assert!(metrics.contains("\ncontainarium_key_backup_copies_missing 0\n"), "none is configured: {metrics}");
    let shown = site.cli(["admin", "doctor"], b"");
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("mend: containarium backup push"), "{shown}");
    let audit = std::fs::read_to_string(site.data_dir().join("audit.jsonl")).unwrap();
    assert_eq!(audit.matches("admin.doctor").count(), 2);
    drop(daemon);
}

fn backups_age_and_the_doctor_says_so(site: &Site) {
    let daemon = site.start();
    // In whole seconds.
    let metric = |name: &str| -> i64 {
        let text = String::from_utf8(daemon.get("/metrics").body).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
        let number = line.unwrap_or_else(|| panic!("no {name} in {text}"));
        number.split('.').next().unwrap().parse().unwrap()
    };
    let is_days_ago = |name: &str, days: i64| {
        let wanted = (now() - days * DAY) / 1_000_000;
        assert!((metric(name) - wanted).abs() < 120, "{name} is {}, not {wanted}", metric(name));
    };
    assert_eq!(metric("containarium_key_backup_verified_timestamp_seconds"), 0);
    assert_eq!(metric("containarium_key_backup_confirmed_timestamp_seconds"), 0);
    assert_eq!(metric("containarium_database_backup_timestamp_seconds"), 0);
    is_days_ago("containarium_master_key_created_timestamp_seconds", 0);
    for (age, verdict, code) in [(101, "failure", 1), (36, "warning", 0), (34, "ok", 0)] {
        escrow(site, age);
        let told = doctor(site);
        told.finds("key-backup-read-back", verdict, &[&format!("{age} days ago")]);
        told.finds("key-backup", "ok", &["secret-manager a/safe"]);
        assert_eq!(told.code, Some(code), "{}", told.answer);
        is_days_ago("containarium_key_backup_verified_timestamp_seconds", age);
        is_days_ago("containarium_key_backup_confirmed_timestamp_seconds", age);
    }
    for (hours, verdict) in [(49, "warning"), (47, "ok")] {
        let at = now() - hours * DAY / 24;
        site.run_sql(&format!("INSERT INTO database_backups VALUES ('b{hours}', {at}, {at}, 'a safe', 1, 1)"));
        doctor(site).finds("database-backup", verdict, &["a safe"]);
        site.run_sql(&format!("INSERT INTO drills VALUES ('d{hours}', {at}, {at}, 'a copy', '', 5, 0)"));
        doctor(site).finds("drill", "ok", &["opened 5 DEKs"]);
        assert_eq!(metric("containarium_database_backup_timestamp_seconds"), at / 1_000_000);
    }
    let old = now() - 36 * DAY;
    site.run_sql(&format!("UPDATE drills SET ran_at = {old}"));
    doctor(site).finds("drill", "warning", &["36 days ago", "the limit is 35 days"]);
    site.run_sql("UPDATE drills SET deks_failed = 2");
    let told = doctor(site);
    told.finds("drill", "failure", &["2 did not open"]);
    assert_eq!(told.code, Some(1));
    assert!(told.stderr.contains("failed: drill"), "{}", told.stderr);
    // Never read back: from then on that the key was made.
    site.run_sql("UPDATE escrows SET read_back_at = NULL");
    site.run_sql(&format!("UPDATE master_keys SET created_at = {}", now() - 101 * DAY));
    doctor(site).finds("key-backup-read-back", "failure", &["was ever read back", "101 days", "the limit is 100 days"]);
}

fn each_configured_secret_without_a_confirmed_copy_is_named(site: &Site) {
    let secrets = ["projects/acme-prod/secrets/key", "projects/acme-offsite/secrets/key"];
    let text = format!("[backup.gcp]\nsecrets = {}\n", serde_json::to_string(&secrets).unwrap());
    std::fs::write(site.path("config.toml"), text).unwrap();
    let daemon = site.start();
    let missing = |count: u64| {
        let metrics = String::from_utf8(daemon.get("/metrics").body).unwrap();
        let line = format!("\ncontainarium_key_backup_copies_missing {count}\n");
        assert!(metrics.contains(&line), "{line} is not in {metrics}");
    };
    doctor(site).finds("key-backup", "warning", &["without it every secret is lost", secrets[0], secrets[1]]);
    missing(2);
    escrow(site, 1);
    // A copy of another target is no copy in a secret; neither is one that nobody confirmed, or one of a secret whose name begins alike.
    doctor(site).finds("key-backup", "warning", &[secrets[0], secrets[1], "containarium backup push"]);
    let (sha, at) = (site.sql_bytes(&[7; 32]), now());
    let copy = |id: &str, locator: &str, confirmed: &str| {
        site.run_sql(&format!(
            "INSERT INTO escrows (id, kid, target, locator, content_sha256, kind, started_at, confirmed_at) \
             SELECT '{id}', kid, 'secret-manager', '{locator}', {sha}, 'copy', {at}, {confirmed} FROM master_keys WHERE state = 'active'"
        ));
    };
    copy("first", &format!("{}/versions/1", secrets[0]), &at.to_string());
    copy("alike", &format!("{}-old/versions/1", secrets[1]), &at.to_string());
    let told = doctor(site);
    told.finds("key-backup", "warning", &[&format!("is in {} containarium backup push", secrets[1])]);
    assert_eq!(told.code, Some(0), "one copy is there, so nothing is lost yet: {}", told.answer);
    missing(1);
    copy("second", &format!("{}/versions/3", secrets[1]), &at.to_string());
    doctor(site).finds("key-backup", "ok", &[&format!("{}/versions/3", secrets[1])]);
    missing(0);
    site.run_sql("DELETE FROM escrows WHERE id = 'second'");
    daemon.stop();
    doctor(site).finds("key-backup", "warning", &[&format!("is in {} containarium backup push", secrets[1])]);
}

fn a_key_that_a_rotation_left_needed_must_have_a_copy_too(site: &Site) {
    let daemon = site.start();
    escrow(site, 1);
    doctor(site).finds("key-backup", "ok", &[]);
    // In the middle of a rotation: DEKs are under the old key, and the new one is active.
    let new = site.sql_bytes(&[3; 16]);
    site.run_sql("UPDATE master_keys SET state = 'decrypt_only' WHERE state = 'active'");
    let two_days = now() - 2 * DAY;
    site.run_sql(&format!("INSERT INTO master_keys (kid, state, created_at) VALUES ({new}, 'active', {two_days})"));
    site.run_sql(&format!(
        "UPDATE key_state SET active_kid = {new}, epoch = epoch + 1, generation = generation + 1, phase = 'rewrapping'"
    ));
    let told = doctor(site);
    told.finds("key-backup", "warning", &[&"03".repeat(16)]);
    told.finds("keys", "failure", &[&"03".repeat(16), "containarium admin install-key"]);
    told.finds("rotation", "warning", &["rewrapping", "begun 2 days ago"]);
    let metrics = String::from_utf8(daemon.get("/metrics").body).unwrap();
    for line in [
        r#"containarium_rotation_phase{phase="rewrapping"} 1"#,
        r#"containarium_rotation_phase{phase="idle"} 0"#,
        "containarium_key_backup_confirmed_timestamp_seconds 0",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is missing:\n{metrics}");
    }
    let age = metrics.lines().find_map(|line| line.strip_prefix("containarium_rotation_age_seconds ")).unwrap();
    assert!(age.parse::<f64>().unwrap() > 172_700.0, "{age}");
}

fn a_damaged_key_file_is_a_failure_that_names_its_mend(site: &Site) {
    let _daemon = site.start();
    let path = site.key_file();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
    let told = doctor(site);
    told.finds("key-file", "failure", &["0644", "chmod 0400"]);
    assert_eq!(told.code, Some(1));
    std::fs::remove_file(&path).unwrap();
    // The first key lies there too, and the daemon would put it back.
    std::fs::remove_dir_all(site.path("etc/secrets.key.d")).unwrap();
    let told = doctor(site);
    told.finds("key-file", "failure", &["is not there", "containarium admin install-key"]);
    told.finds("keys", "failure", &["not in the key files"]);
}

fn without_a_daemon_the_doctor_says_what_it_can(site: &Site) {
    let fresh = doctor(site);
    assert_eq!(fresh.code, Some(1));
    fresh.finds("daemon", "failure", &["systemctl start"]);
    fresh.finds("database", "failure", &[]);
    fresh.finds("key-file", "failure", &["is not there"]);
    fresh.finds("data-disk", "failure", &[]);
    let daemon = site.start();
    escrow(site, 1);
    daemon.stop();
    let before = site.files();
    let told = doctor(site);
    assert_eq!(told.code, Some(1));
    assert_eq!(told.stderr.trim(), "error: failed: daemon");
    for name in ["database", "key-file", "clock", "keys", "key-backup", "key-backup-read-back", "rotation", "node"] {
        told.finds(name, "ok", &[]);
    }
    assert!(!told.names().contains(&"memory"), "only a daemon knows");
    assert!(site.files() == before, "it touches nothing");
}

fn keys_that_the_database_lacks_or_does_not_know_are_told(site: &Site) {
    let _daemon = site.start();
    let retained = site.path("etc/secrets.key.d");
    let master = containarium::crypto::MasterKey::make_random().unwrap();
    let kid = containarium::crypto::kid(&master);
    let mut bytes = Vec::new();
    containarium::crypto::KeyfileImage::of(&master).write_to(&mut bytes).unwrap();
    let path = retained.join(kid.to_string());
    std::fs::create_dir_all(&retained).unwrap();
    std::fs::set_permissions(&retained, PermissionsExt::from_mode(0o700)).unwrap();
    std::fs::write(&path, &bytes).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o400)).unwrap();
    let told = doctor(site);
    told.finds("keys", "warning", &["the database does not know", &kid.to_string()]);
    assert_eq!(told.code, Some(0), "{}", told.answer);
    told.finds("keys", "warning", &["move them off this host", path.to_str().unwrap()]);
    std::fs::rename(&path, retained.join("misnamed")).unwrap();
    doctor(site).finds("keys", "warning", &["which is not what its name says", "mv -n"]);
}

fn a_key_file_that_holds_another_key_than_the_active_one_is_told_with_what_mends_it(site: &Site) {
    site.start().stop();
    let key = site.key_file();
    let (right, active) = (std::fs::read(&key).unwrap(), kid_of(site));
    std::fs::remove_file(&key).unwrap();
    std::fs::write(&key, [7; 32]).unwrap();
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o400)).unwrap();
    let told = doctor(site);
    told.finds("key-file", "warning", &["and the active key is", &active, "containarium backup restore"]);
    told.finds("keys", "warning", &["the database does not know", "containarium backup restore"]);
    let restored = site.cli(["backup", "restore"], b"");
    assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
    assert!(std::fs::read(&key).unwrap() == right);
    let told = doctor(site);
    told.finds("key-file", "ok", &[&active]);
    told.finds("keys", "ok", &[&active]);
}

fn kid_of(site: &Site) -> String {
    let told = doctor(site);
    let (_, text) = told.check("key-file");
    text.split_whitespace().last().unwrap().to_owned()
}

#[test]
fn a_daemon_that_runs_and_refuses_is_not_said_to_be_down() {
    let site = Site::sqlite();
    let _daemon = site.start();
    let audit = site.data_dir().join("audit.jsonl");
    std::fs::rename(&audit, site.path("audit-before.jsonl")).unwrap();
    std::fs::create_dir(&audit).unwrap();
    let told = doctor(&site);
    told.finds("daemon", "failure", &["audit record", "containarium admin status"]);
    let (_, text) = told.check("daemon");
    assert!(!text.contains("systemctl start"), "{text}");
}

fn a_node_that_is_gone_is_named(site: &Site) {
    let _daemon = site.start();
    let gone = "0f".repeat(16);
    site.run_sql(&format!("INSERT INTO nodes VALUES ('{gone}', '{gone}', '', 1, 1)"));
    let told = doctor(site);
    told.finds("node", "warning", &[&format!("containarium admin nodes forget {gone}")]);
    assert_eq!(told.code, Some(0), "{}", told.answer);
}

#[test]
fn a_database_that_is_away_is_a_failure_and_the_rest_is_still_looked_at() {
    let site = Site::sqlite();
    site.start().stop();
    std::fs::write(site.data_dir().join("containarium.db"), b"no database at all").unwrap();
    let told = doctor(&site);
    told.finds("database", "failure", &["containarium config show"]);
    told.finds("key-file", "ok", &[]);
    told.finds("data-disk", "ok", &[]);
    assert!(!told.names().contains(&"key-backup"), "nothing is said of what is not known");
}

#[test]
fn settings_that_are_wrong_are_a_usage_error() {
    let site = Site::sqlite();
    std::fs::write(site.path("config.toml"), "nonsense = 1\n").unwrap();
    let done = site.cli(["admin", "doctor"], b"");
    assert_eq!(done.status.code(), Some(2), "{}", String::from_utf8_lossy(&done.stderr));
}
