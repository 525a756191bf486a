//! Copies that were there, and are not any more.

use super::super::on_both_stores;
use super::*;
use crate::daemon::doctor::doctor;

on_both_stores![
    a_copy_that_is_disabled_or_destroyed_is_missed_everywhere_and_found_again,
    the_daemon_looks_by_itself_where_a_day_has_gone_by,
    a_list_that_is_not_answered_changes_nothing_and_doctor_says_when_it_last_looked,
    an_answer_that_names_an_impossible_version_is_no_copy,
    a_copy_that_failed_to_be_read_back_is_told_until_one_is,
];

const LOST: &str = "without it every secret is lost";
const HOUR: i64 = 60 * 60 * 1_000_000;

/// As if that much time had gone by since the copies were made and looked at.
fn age(site: &Site, by: i64) {
    site.run_sql(&format!("UPDATE escrows SET confirmed_at = confirmed_at - {by}, looked_at = looked_at - {by}"));
}

fn push(site: &Site) -> Output {
    site.cli(["backup", "push", "-o", "json"], b"")
}

fn list(site: &Site) -> Output {
    site.cli(["backup", "list"], b"")
}

#[track_caller]
fn is_missed(site: &Site, daemon: &Daemon, how: &str) {
    let locator = format!("{SECRET}/versions/1");
    doctor(site).finds(
        "key-backup",
        "warning",
        &[LOST, &format!("{locator} is {how} there"), "containarium backup push"],
    );
    let warnings = daemon.get("/readyz").json()["warnings"].to_string();
    assert!(warnings.contains("no backup of the master key is proven"), "{warnings}");
    let warnings = daemon.get("/v1/admin/status").json()["warnings"].to_string();
    assert!(warnings.contains("no backup of the master key is proven"), "{warnings}");
    has_metrics(daemon, 1, "0");
}

#[track_caller]
fn is_there(site: &Site, daemon: &Daemon) {
    no_copy_is_missed(site, &["seen there at"]);
    assert!(daemon.get("/readyz").json().get("warnings").is_none_or(|warnings| warnings == &serde_json::json!([])));
    has_metrics(daemon, 0, "1");
}

/// The fake's endpoint is told of in any case.
#[track_caller]
fn no_copy_is_missed(site: &Site, says: &[&str]) {
    let told = doctor(site);
    told.finds("key-backup", "warning", says);
    let (_, text) = told.check("key-backup");
    assert!(!text.contains(LOST) && !text.contains("no confirmed copy"), "{text}");
}

#[track_caller]
fn has_metrics(daemon: &Daemon, missing: u64, confirmed: &str) {
    let metrics = String::from_utf8(daemon.get("/metrics").body).unwrap();
    for begins in [
        format!("\ncontainarium_key_backup_copies_missing {missing}\n"),
        format!("\ncontainarium_key_backup_confirmed_timestamp_seconds {confirmed}"),
    ] {
        assert!(metrics.contains(&begins), "{begins} is not in {metrics}");
    }
}

fn a_copy_that_is_disabled_or_destroyed_is_missed_everywhere_and_found_again(site: &Site) {
    let cloud = Cloud::of(site);
    let daemon = site.start();
    fails(&list(site), 3, &["no confirmed copy", &kid(&daemon), "containarium backup push"]);
    answer(&push(site));
    assert_eq!(list(site).status.code(), Some(0));
    is_there(site, &daemon);
    cloud.set_state(1, "disable");
    fails(&list(site), 3, &["no confirmed copy", &kid(&daemon)]);
    is_missed(site, &daemon, "disabled");
    cloud.set_state(1, "enable");
    assert_eq!(list(site).status.code(), Some(0));
    is_there(site, &daemon);
    cloud.set_state(1, "destroy");
    fails(&list(site), 3, &[]);
    is_missed(site, &daemon, "destroyed");
    daemon.stop();
    doctor(site).finds("key-backup", "warning", &[LOST, "is destroyed there"]);
    let daemon = site.start();
    is_missed(site, &daemon, "destroyed");
    assert_eq!(answer(&push(site))["copies"][0]["state"], "pushed");
    no_copy_is_missed(site, &[&format!("{SECRET}/versions/2")]);
}

fn the_daemon_looks_by_itself_where_a_day_has_gone_by(site: &Site) {
    let cloud = Cloud::of(site);
    let daemon = site.start();
    answer(&push(site));
    assert_eq!(list(site).status.code(), Some(0));
    cloud.set_state(1, "destroy");
    daemon.stop();
    age(site, 25 * HOUR);
    let daemon = site.start();
    site.logged("is destroyed there, and counts no more");
    is_missed(site, &daemon, "destroyed");
}

fn a_list_that_is_not_answered_changes_nothing_and_doctor_says_when_it_last_looked(site: &Site) {
    let cloud = Cloud::of(site);
    let daemon = site.start();
    answer(&push(site));
    assert_eq!(list(site).status.code(), Some(0));
    daemon.stop();
    cloud.set_state(1, "destroy");
    cloud.fault("403", "list");
    age(site, 25 * HOUR);
    let daemon = site.start();
    site.logged("whether the copies of the master keys are still there is not known");
    is_there(site, &daemon);
    fails(&list(site), 4, &["could not be listed"]);
    is_there(site, &daemon);
    age(site, 48 * HOUR);
    doctor(site).finds("key-backup", "warning", &["was last seen at", "the limit is 3 days"]);
    has_metrics(&daemon, 0, "1");
}

fn an_answer_that_names_an_impossible_version_is_no_copy(site: &Site) {
    let cloud = Cloud::of(site);
    let _daemon = site.start();
    cloud.fault_once("other-version", "add");
    answer(&push(site));
    // Google's lists may lag behind its answers for a while.
    assert_eq!(list(site).status.code(), Some(0));
    age(site, 2 * HOUR);
    fails(&list(site), 3, &["no confirmed copy"]);
    doctor(site).finds("key-backup", "warning", &[LOST, "is absent there"]);
    assert_eq!(answer(&push(site))["copies"][0]["state"], "pushed");
    assert_eq!(list(site).status.code(), Some(0));
}

fn a_copy_that_failed_to_be_read_back_is_told_until_one_is(site: &Site) {
    let cloud = Cloud::of(site);
    let daemon = site.start();
    answer(&push(site));
    answer(&as_restorer(site, &["backup", "verify", "-o", "json"]));
    doctor(site).finds("key-backup-read-back", "ok", &[]);
    for fault in ["503", "garbage", "redirect"] {
        cloud.fault(fault, "access");
        let output = as_restorer(site, &["backup", "verify"]);
        assert!(!output.status.success() && !said(&output).contains("backup push"), "{fault}: {}", said(&output));
        cloud.heal();
        doctor(site).finds("key-backup-read-back", "ok", &[]);
    }
    cloud.fault("flipped-bit", "access");
    fails(&as_restorer(site, &["backup", "verify"]), 1, &["make a good copy"]);
    cloud.heal();
    let told = doctor(site);
    told.finds("key-backup-read-back", "failure", &[&format!("{SECRET}/versions/1 was no good"), "checksum"]);
    told.finds("key-backup-read-back", "failure", &["containarium backup push, then containarium backup verify"]);
    answer(&as_restorer(site, &["backup", "verify", "-o", "json"]));
    doctor(site).finds("key-backup-read-back", "ok", &[]);

    cloud.fault_of_version("flipped-bit", SECRET, 1);
    fails(&as_restorer(site, &["backup", "verify"]), 1, &[]);
    assert_eq!(answer(&push(site))["copies"][0]["state"], "pushed", "a copy that is no good is none");
    doctor(site).finds("key-backup-read-back", "warning", &["was no good"]);
    answer(&as_restorer(site, &["backup", "verify", "-o", "json"]));
    doctor(site).finds("key-backup-read-back", "ok", &[]);
    // What a verification meets the daemon looks for itself.
    cloud.set_state(2, "destroy");
    cloud.heal();
    answer(&as_restorer(site, &["backup", "verify", "-o", "json"]));
    site.logged("versions/2 is destroyed there, and counts no more");
    no_copy_is_missed(site, &[&format!("{SECRET}/versions/1")]);
    drop(daemon);
}
