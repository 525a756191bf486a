use super::super::on_both_stores;
use super::*;
use crate::support::google::OFFSITE;

on_both_stores![
    the_drill_identity_needs_the_offsite_copy_alone_and_is_told_what_it_was_denied,
    a_drill_finds_the_right_one_of_ten_versions_and_touches_nothing,
    in_the_middle_of_a_rotation_a_drill_fetches_every_needed_key,
    a_drill_of_a_copy_of_the_database_fetches_what_that_copy_needs,
    a_drill_for_which_no_version_holds_the_key_fails_and_is_remembered,
    a_drill_that_could_not_look_is_none,
];

fn drill(site: &Site, words: &[&str]) -> Output {
    as_identity(site, "drill.toml", words)
}

fn as_identity(site: &Site, file: &str, words: &[&str]) -> Output {
    let config = site.path(file).display().to_string();
    site.cli([&["backup", "drill"], words, &["--config", &config]].concat(), b"")
}

/// Two secrets, the second in a project for offsite copies; the drill identity may read that one alone.
fn two_secrets(site: &Site) -> Cloud {
    let secrets = [SECRET, OFFSITE];
    let cloud = Cloud::with(site, &secrets, "");
    cloud.configure(site, "drill.toml", "drill", &secrets, "");
    cloud
}

fn the_drill_identity_needs_the_offsite_copy_alone_and_is_told_what_it_was_denied(site: &Site) {
    let _cloud = two_secrets(site);
    let daemon = site.start();
    daemon.set("alice", "KEY", b"value");
    answer(&site.cli(["backup", "push", "-o", "json"], b""));

    let done = drill(site, &["--record", "-o", "json"]);
    let drilled = answer(&done);
    assert_eq!((&drilled["opens"], &drilled["deksOpened"]), (&true.into(), &2.into()), "{drilled}");
    assert_eq!(drilled["keys"][0]["from"], format!("{OFFSITE}/versions/1"));
    assert_eq!((&drilled["keys"][0]["kid"], &drilled["keys"][0]["state"]), (&kid(&daemon).into(), &"active".into()));
    assert_eq!(drilled["passedOver"].as_array().unwrap().len(), 1, "{drilled}");
    assert_eq!(drilled["passedOver"][0]["secret"], SECRET);
    assert_eq!(drilled["passedOver"][0]["trouble"]["class"], "denied");
    let told = said(&done);
    assert!(
        told.contains(&format!("{SECRET} was passed over")) && told.contains("secretmanager.versions.list"),
        "{told}"
    );

    assert_eq!(drilled["recorded"], true);
    assert_eq!(site.number("SELECT deks_opened FROM drills"), 2);
    let read_back = site.texts("SELECT locator FROM escrows WHERE read_back_at IS NOT NULL");
    assert_eq!(read_back, [format!("{OFFSITE}/versions/1")], "what was fetched, and nothing else, was read back");

    // Asked for by name, nobody is denied anything; and the primary copy is not this identity's.
    let only = drill(site, &["--secret", OFFSITE]);
    assert!(only.status.success() && !said(&only).contains("passed over"), "{}", said(&only));
    fails(
        &drill(site, &["--secret", SECRET, "--record"]),
        4,
        &["there was no drill", SECRET, "drill or restore identity"],
    );
    // The restore identity may read both, and is content with the first.
    let restorer = as_identity(site, "restore.toml", &["-o", "json"]);
    assert_eq!(answer(&restorer)["keys"][0]["from"], format!("{SECRET}/versions/1"));
    // The daemon's may read neither.
    fails(&as_identity(site, "config.toml", &["--record"]), 4, &[SECRET, OFFSITE, "secretmanager.versions.access"]);
    assert_eq!(site.number("SELECT count(*) FROM drills"), 1, "what was no drill is not remembered as one");
}

fn a_drill_finds_the_right_one_of_ten_versions_and_touches_nothing(site: &Site) {
    let cloud = Cloud::of(site);
    let (key, kid) = populated(site);
    for number in 1..=10 {
        cloud.add(&if number == 7 { key.clone() } else { new_key().0 });
    }
    lose_keys(site);
    let before = site.files();
    let done = answer(&as_identity(site, "restore.toml", &["-o", "json"]));
    assert_eq!((&done["opens"], &done["deksOpened"]), (&true.into(), &3.into()));
    assert_eq!(
        (&done["keys"][0]["kid"], &done["keys"][0]["from"]),
        (&kid.into(), &format!("{SECRET}/versions/7").into())
    );
    assert_eq!(done["keys"].as_array().unwrap().len(), 1, "the strangers are not keys of this drill");
    assert!(site.files() == before, "something was touched");
}

fn in_the_middle_of_a_rotation_a_drill_fetches_every_needed_key(site: &Site) {
    let _cloud = Cloud::of(site);
    let daemon = site.start();
    daemon.set("alice", "KEY", b"value");
    let old = kid(&daemon);
    let (bytes, new) = new_key();
    let sql = site.sql_bytes(new.as_bytes());
    // What a rotation's stage and flip do.
    site.run_sql(&format!("INSERT INTO master_keys (kid, state, created_at) VALUES ({sql}, 'staged', 1)"));
    answer(&site.cli(["admin", "install-key", "-o", "json"], &bytes));
    site.run_sql("UPDATE master_keys SET state = 'decrypt_only' WHERE state = 'active'");
    site.run_sql(&format!("UPDATE master_keys SET state = 'active' WHERE kid = {sql}"));
    site.run_sql(&format!(
        "UPDATE key_state SET active_kid = {sql}, epoch = epoch + 1, generation = generation + 1, phase = 'rewrapping'"
    ));
    assert_eq!(daemon.set("bob", "KEY", b"value").status, 200);
    answer(&site.cli(["backup", "push", "-o", "json"], b""));
    let done = answer(&as_identity(site, "restore.toml", &["-o", "json"]));
    let mut kids: Vec<&str> = done["keys"].as_array().unwrap().iter().map(|key| key["kid"].as_str().unwrap()).collect();
    kids.sort_unstable();
    let mut both = [old, new.to_string()];
    both.sort();
    assert_eq!((&done["deksOpened"], &done["deksFailed"]), (&3.into(), &0.into()), "{done}");
    assert_eq!(kids, both);
}

fn a_drill_of_a_copy_of_the_database_fetches_what_that_copy_needs(site: &Site) {
    let cloud = two_secrets(site);
    let (key, kid) = populated(site);
    cloud.runtime.block_on(cloud.google.add(OFFSITE, &key));
    let copy = if let Some(url) = site.database_url() {
        // As good as one that a dump was restored to.
        url.to_owned()
    } else {
        let copy = site.path("copy.db").display().to_string();
        answer(&site.cli(["backup", "database", &copy, "-o", "json"], b""));
        copy
    };
    let daemon = site.start();
    daemon.set("carol", "KEY", b"a DEK that a copy of a file does not have");
    let done = drill(site, &["--database", &copy, "--record", "-o", "json"]);
    let drilled = answer(&done);
    let deks = if site.is_postgres() { 4 } else { 3 };
    assert_eq!((&drilled["opens"], &drilled["deksOpened"]), (&true.into(), &deks.into()), "{drilled}");
    assert_eq!(drilled["keys"][0]["kid"], kid);
    assert_eq!(site.number("SELECT deks_opened FROM drills"), deks);
    let source = site.texts("SELECT source FROM drills").remove(0);
    assert_eq!(source, if site.is_postgres() { "a PostgreSQL database" } else { &copy });
    assert_eq!(site.number("SELECT count(*) FROM escrows WHERE read_back_at IS NOT NULL"), 1);
    let metrics = String::from_utf8(daemon.get("/metrics").body).unwrap();
    assert!(!metrics.contains("\ncontainarium_key_backup_verified_timestamp_seconds 0\n"), "{metrics}");
    let seconds = metrics.lines().find_map(|line| line.strip_prefix("containarium_drill_timestamp_seconds "));
    assert!(seconds.unwrap().parse::<f64>().unwrap() > 0.0, "{metrics}");
}

fn a_drill_for_which_no_version_holds_the_key_fails_and_is_remembered(site: &Site) {
    let cloud = Cloud::of(site);
    let daemon = site.start();
    let kid = kid(&daemon);
    fails(&as_identity(site, "restore.toml", &[]), 1, &["There is no version at all", "containarium backup push"]);
    let (stranger, strange) = new_key();
    cloud.add(&stranger);
    let failed = as_identity(site, "restore.toml", &["--record", "-o", "json"]);
    let found = format!("version 1: master key {strange}");
    fails(&failed, 1, &[&format!("no copy of master key {kid} was found"), &found, "1 DEKs did not open"]);
    let shown: Value = serde_json::from_slice(&failed.stdout).unwrap();
    assert_eq!(
        (&shown["opens"], &shown["missingKids"][0], &shown["recorded"]),
        (&false.into(), &kid.into(), &true.into())
    );
    assert_eq!(site.number("SELECT count(*) FROM drills WHERE deks_failed = 1 AND deks_opened = 0"), 1);
    assert_eq!(site.number("SELECT count(*) FROM escrows"), 0);
}

fn a_drill_that_could_not_look_is_none(site: &Site) {
    let cloud = Cloud::of(site);
    let daemon = site.start();
    answer(&site.cli(["backup", "push", "-o", "json"], b""));
    for (fault, code) in [("503", 5), ("401", 4), ("cut", 5)] {
        cloud.fault(fault, "access");
        let none = as_identity(site, "restore.toml", &["--record"]);
        fails(&none, code, &["there was no drill", SECRET, &kid(&daemon)]);
        cloud.heal();
    }
    fails(&as_identity(site, "restore.toml", &["--secret", "nonsense"]), 2, &["projects/PROJECT/secrets/SECRET"]);
    assert_eq!(site.number("SELECT count(*) FROM drills"), 0);
    let both = as_identity(site, "restore.toml", &["--secret", SECRET, "--from", "key"]);
    fails(&both, 2, &["cannot be used with"]);
}

#[test]
fn a_restore_that_passed_a_secret_over_says_so() {
    let site = Site::sqlite();
    let cloud = two_secrets(&site);
    let (key, _) = populated(&site);
    cloud.runtime.block_on(cloud.google.add(OFFSITE, &key));
    lose_keys(&site);
    let config = site.path("drill.toml").display().to_string();
    let restored = site.cli(["backup", "restore", "--config", &config], b"");
    assert!(restored.status.success(), "{}", said(&restored));
    assert!(said(&restored).contains(&format!("warning: {SECRET} was passed over")), "{}", said(&restored));
    opens(&site);
}
