use std::time::{Duration, Instant};

use super::super::on_both_stores;
use super::super::rotation::{refused, rotated};
use super::*;
use crate::support::google::OFFSITE;

on_both_stores![
    the_same_bytes_are_pushed_once_and_again_only_when_their_copy_is_gone,
    every_configured_secret_gets_a_copy_and_each_that_has_none_is_named,
    an_answer_that_was_lost_leaves_a_stray_and_one_confirmed_copy,
    a_row_that_another_daemon_confirmed_meanwhile_keeps_its_copy_and_the_second_has_its_own,
    the_first_start_makes_the_backup_where_it_is_told_to,
    a_copy_in_a_secret_that_expires_does_not_count_until_it_lasts,
    an_identity_that_may_not_see_whether_a_secret_expires_is_warned_of_and_pushes,
];

fn push(site: &Site) -> Output {
    site.cli(["backup", "push", "-o", "json"], b"")
}

/// Whatever it exits with: 3 where a needed key has no copy.
fn list(site: &Site) -> Value {
    serde_json::from_slice(&site.cli(["backup", "list", "-o", "json"], b"").stdout).unwrap()
}

fn the_same_bytes_are_pushed_once_and_again_only_when_their_copy_is_gone(site: &Site) {
    let cloud = Cloud::of(site);
    let daemon = site.start();
    let kid = kid(&daemon);
    assert!(list(site)["keys"][0].get("confirmedAt").is_none());
    let first = answer(&push(site));
    let locator = format!("{SECRET}/versions/1");
    assert_eq!((&first["copies"][0]["state"], &first["copies"][0]["kid"]), (&"pushed".into(), &kid.clone().into()));
    assert_eq!(first["copies"][0]["locator"], locator);
    let second = answer(&push(site));
    assert_eq!((&second["copies"][0]["state"], &second["copies"][0]["locator"]), (&"present".into(), &locator.into()));
    assert_eq!((cloud.requests("add"), cloud.requests("access")), (1, 0));

    let shown = list(site);
    assert_eq!(shown["secrets"][0]["versions"][0]["kid"], kid);
    assert!(shown["secrets"][0]["versions"][0]["confirmedAt"].is_string(), "{shown}");
    assert!(shown["keys"][0]["confirmedAt"].is_string() && shown["keys"][0]["needed"] == true, "{shown}");
    let warnings = daemon.get("/v1/admin/status").json()["warnings"].to_string();
    assert!(!warnings.contains("no backup of the master key"), "{warnings}");

    for (number, verb) in [(1, "disable"), (2, "destroy")] {
        cloud.set_state(number, verb);
        assert_eq!(answer(&push(site))["copies"][0]["state"], "pushed", "{verb}");
    }
    assert_eq!(cloud.requests("add"), 3);
}

fn every_configured_secret_gets_a_copy_and_each_that_has_none_is_named(site: &Site) {
    let cloud = Cloud::with(site, &[SECRET, "projects/acme-prod/secrets/not-there", OFFSITE], "");
    let daemon = site.start();
    let output = push(site);
    fails(&output, 3, &["projects/acme-prod/secrets/not-there has no confirmed copy", &kid(&daemon), "help:"]);
    let pushed: Value = serde_json::from_slice(&output.stdout).unwrap();
    let states: Vec<&str> =
        pushed["copies"].as_array().unwrap().iter().map(|copy| copy["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["pushed", "missing", "pushed"]);
    assert_eq!(cloud.requests("add"), 2, "where there is no secret nothing is sent");
    fails(&site.cli(["backup", "list"], b""), 3, &["not-there could not be listed"]);
    cloud.configure(site, "config.toml", "nobody", &[SECRET], "");
    drop(daemon);
    let _daemon = site.start();
    fails(&push(site), 4, &["secretmanager.versions.list"]);
}

fn an_answer_that_was_lost_leaves_a_stray_and_one_confirmed_copy(site: &Site) {
    let cloud = Cloud::of(site);
    let daemon = site.start();
    cloud.fault_once("lost-answer", "add");
    assert_eq!(answer(&push(site))["copies"][0]["locator"], format!("{SECRET}/versions/2"));
    let shown = list(site);
    let versions = shown["secrets"][0]["versions"].as_array().unwrap();
    assert_eq!((&versions[0]["kid"], versions[1].get("kid")), (&kid(&daemon).into(), None), "{shown}");
    assert!(String::from_utf8(site.cli(["backup", "list"], b"").stdout).unwrap().contains("unknown"));
    assert_eq!(site.number("SELECT count(*) FROM escrows"), 1);
}

fn a_row_that_another_daemon_confirmed_meanwhile_keeps_its_copy_and_the_second_has_its_own(site: &Site) {
    let cloud = Cloud::of(site);
    let _daemon = site.start();
    cloud.fault("503", "add");
    let pushed = std::thread::scope(|scope| {
        let pushing = scope.spawn(|| push(site));
        while cloud.requests("add") == 0 {
            std::thread::yield_now();
        }
        // What the other daemon does with the row that this one began.
        site.run_sql(&format!("UPDATE escrows SET confirmed_at = 5, locator = '{SECRET}/versions/99'"));
        cloud.heal();
        answer(&pushing.join().unwrap())
    });
    let first = format!("{SECRET}/versions/1");
    assert_eq!(
        (&pushed["copies"][0]["state"], &pushed["copies"][0]["locator"]),
        (&"pushed".into(), &first.clone().into())
    );
    assert_eq!(
        site.texts("SELECT locator FROM escrows ORDER BY started_at, confirmed_at"),
        [format!("{SECRET}/versions/99"), first]
    );
    assert_eq!(site.number("SELECT count(*) FROM escrows WHERE confirmed_at = 5"), 1);
}

const EXPIRY_MEND: &str = "`gcloud secrets update containarium-master --project=acme-prod --remove-expiration`";

fn a_copy_in_a_secret_that_expires_does_not_count_until_it_lasts(site: &Site) {
    let cloud = Cloud::of(site);
    let _daemon = site.start();
    cloud.expire(Some("864000s"));
    fails(&push(site), 1, &["the secret expires", "every copy in it", EXPIRY_MEND, "containarium backup push"]);
    assert_eq!((cloud.requests("add"), site.number("SELECT count(*) FROM escrows")), (0, 0));
    let (code, told) = refused(site, &[]);
    assert!(code == Some(1) && told.contains(EXPIRY_MEND), "{code:?}: {told}");
    assert_eq!(site.number("SELECT count(*) FROM master_keys WHERE state = 'staged'"), 1, "nothing depends on it");

    cloud.expire(None);
    let copies = answer(&push(site));
    assert!(copies["copies"].as_array().unwrap().iter().all(|copy| copy["state"] == "pushed"), "{copies}");
    // Nor does one that was confirmed while the secret lasted.
    cloud.expire(Some("864000s"));
    fails(&push(site), 1, &["the secret expires", EXPIRY_MEND]);
}

fn an_identity_that_may_not_see_whether_a_secret_expires_is_warned_of_and_pushes(site: &Site) {
    let cloud = Cloud::of(site);
    cloud.fault("403", "get");
    let _daemon = site.start();
    assert_eq!(answer(&push(site))["copies"][0]["state"], "pushed");
    site.logged("expires, and its copies with it, is not known");
    site.logged("secretmanager.secrets.get");
    // That nobody answers is no leave to count a copy that may go.
    cloud.heal();
    cloud.fault("503", "get");
    fails(&push(site), 5, &["looking up projects/acme-prod/secrets/containarium-master"]);
    assert_eq!(cloud.requests("add"), 1);
}

fn the_first_start_makes_the_backup_where_it_is_told_to(site: &Site) {
    let cloud = Cloud::with(site, &[SECRET], "push_on_first_start = true\n");
    cloud.fault("403", "add");
    let daemon = site.start();
    site.logged("`containarium backup push` does it again");
    site.logged("and not to Google: `[backup.gcp] endpoint` says so");
    let doctor = || answer(&site.cli(["admin", "doctor", "-o", "json"], b""))["checks"].to_string();
    assert!(doctor().contains("and not to Google: whatever listens there"), "{}", doctor());
    assert!(doctor().contains("take `endpoint` out of `[backup.gcp]`"), "{}", doctor());
    assert_eq!(
        site.number("SELECT count(*) FROM escrows WHERE confirmed_at IS NULL"),
        1,
        "its row came before the call"
    );
    assert_eq!(daemon.stop().code(), Some(0));
    cloud.heal();
    let daemon = site.start();
    site.logged("a copy is confirmed in each configured secret");
    assert_eq!(site.number("SELECT count(*) FROM escrows WHERE confirmed_at IS NULL"), 0, "the same row is confirmed");
    assert_eq!(daemon.stop().code(), Some(0));
    let adds = cloud.requests("add");
    let _daemon = site.start();
    assert_eq!(answer(&push(site))["copies"][0]["state"], "present");
    assert_eq!(cloud.requests("add"), adds);
}

/// Google answers no push, and the first start's is under way.
fn pushing_at_start(site: &Site, secrets: &[&str]) -> (Cloud, Daemon) {
    let cloud = Cloud::with(site, secrets, "push_on_first_start = true\n");
    // One that is not there is told at once, and holds no push up.
    secrets.iter().filter(|secret| ![SECRET, OFFSITE].contains(secret)).for_each(|secret| cloud.make(secret));
    cloud.fault("slow", "add");
    let daemon = site.start();
    while cloud.requests("add") == 0 {
        std::thread::yield_now();
    }
    (cloud, daemon)
}

const WAITS: &str = "a push of master keys waits for another one";

#[test]
fn a_push_that_waits_for_another_says_so_and_ends_when_the_daemon_stops() {
    let site = Site::sqlite();
    let (cloud, daemon) = pushing_at_start(&site, &[SECRET, OFFSITE]);
    std::thread::scope(|scope| {
        let pushing = scope.spawn(|| {
            let answer = daemon.request("POST", "/v1/admin/backup/push", b"");
            (String::from_utf8(answer.body).unwrap(), Instant::now())
        });
        site.logged(WAITS);
        let asked = Instant::now();
        daemon.signal(rustix::process::Signal::TERM);
        let (lines, ended) = pushing.join().unwrap();
        for words in ["waiting for another push", "the daemon is stopping"] {
            assert!(lines.contains(words), "no {words:?} in: {lines}");
        }
        // The other one's call, which nobody answers, has its ten seconds.
        assert!(ended.duration_since(asked) < Duration::from_secs(5), "{:?}", ended.duration_since(asked));
    });
    assert_eq!(daemon.ended().code(), Some(0));
    let adds = cloud.runtime.block_on(cloud.google.requests("add"));
    let offsite = adds.iter().filter(|add| add["path"].as_str().unwrap().contains("acme-offsite")).count();
    assert_eq!(offsite, 0, "the call that was under way comes to its end, and no other is begun");
}

#[test]
fn a_push_that_waited_asks_again_whether_it_may_write() {
    let site = Site::sqlite();
    let (cloud, daemon) = pushing_at_start(&site, &[SECRET]);
    std::thread::scope(|scope| {
        let pushing = scope.spawn(|| push(&site));
        site.logged(WAITS);
        site.run_sql("UPDATE key_state SET generation = 6");
        let record = site.data_dir().join("node.json");
        while !std::fs::read_to_string(&record).unwrap().contains("\"generation\":6") {
            std::thread::yield_now();
        }
        site.run_sql("UPDATE key_state SET generation = 2");
        while !String::from_utf8_lossy(&daemon.get("/readyz").body).contains("accept-restore") {
            std::thread::yield_now();
        }
        cloud.heal();
        fails(&pushing.join().unwrap(), 5, &["containarium admin accept-restore"]);
    });
}

#[test]
fn a_rotation_does_not_wait_for_another_push_without_bound_and_goes_on_later() {
    let site = Site::sqlite();
    let (cloud, daemon) = pushing_at_start(&site, &[SECRET, OFFSITE, "projects/acme-prod/secrets/third"]);
    let (code, told) = refused(&site, &[]);
    assert_eq!(code, Some(6), "{told}");
    for words in ["another push of master keys is under way", "within 20 s", "rotate-master --resume"] {
        assert!(told.contains(words), "no {words:?} in: {told}");
    }
    assert_eq!(site.number("SELECT count(*) FROM master_keys WHERE state = 'staged'"), 1);
    cloud.heal();
    let report = rotated(&site, &["--resume"]);
    assert_eq!((report["end"].as_str(), report["kid"].as_str().unwrap()), (Some("rotated"), &*kid(&daemon)));
}

#[test]
fn without_a_secret_or_a_daemon_a_push_says_what_is_missing() {
    let site = Site::sqlite();
    fails(&push(&site), 5, &["help:"]);
    let _daemon = site.start();
    fails(
        &push(&site),
        2,
        &["no secret is configured to push to", "`[backup.gcp] secrets`", "containarium backup export"],
    );
    assert_eq!(list(&site)["secrets"], serde_json::json!([]));
}

#[test]
fn a_push_ends_within_its_deadline_where_google_does_not_answer() {
    let site = Site::sqlite();
    let cloud = Cloud::of(&site);
    let _daemon = site.start();
    cloud.fault("slow", "add");
    let begun = Instant::now();
    fails(&push(&site), 5, &["10 s", SECRET]);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}
