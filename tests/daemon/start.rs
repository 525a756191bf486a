//! First start, and every start: what is made, what is refused, and that a refusal changes nothing.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::on_both_stores;
use crate::support::site::{Daemon, Site};

on_both_stores![
    the_first_start_makes_a_key_and_says_so_and_the_second_uses_it,
    a_populated_database_without_its_key_is_refused_and_nothing_changes,
    a_populated_database_with_another_key_is_refused_naming_both,
    a_key_beside_an_empty_database_is_taken_only_when_asked_for,
    a_key_that_is_no_longer_active_leaves_the_daemon_up_and_not_ready_until_the_right_one_comes,
    a_key_file_that_was_copied_as_text_is_named_as_such,
    a_second_daemon_is_refused,
    of_two_first_starts_that_race_for_one_key_file_one_wins_and_its_database_opens_with_the_file,
];

const READY: &str = "Secrets store ready (file-keyed, AES-256-GCM)";

fn the_first_start_makes_a_key_and_says_so_and_the_second_uses_it(site: &Site) {
    let daemon = site.start();
    let key = std::fs::metadata(site.key_file()).unwrap();
    assert_eq!((key.len(), key.mode() & 0o7777, key.nlink()), (32, 0o400, 1));
    assert_eq!(std::fs::metadata(site.socket()).unwrap().mode() & 0o777, 0o600);
    assert_eq!(std::fs::metadata(site.data_dir()).unwrap().mode() & 0o777, 0o700);
    assert!(site.log().contains(READY), "{}", site.log());
    assert!(site.log().contains("no backup of the master key is proven"), "{}", site.log());
    let warnings = daemon.get("/v1/admin/status").json()["warnings"].to_string();
    assert!(warnings.contains("no backup of the master key is proven"), "{warnings}");
    let ready = daemon.get("/readyz");
    assert_eq!(ready.status, 200);
    assert!(ready.json()["warnings"].to_string().contains("no backup of the master key is proven"), "{ready:?}");
    daemon.set("alice", "KEY", b"value");
    let before = std::fs::read(site.key_file()).unwrap();
    assert_eq!(daemon.stop().code(), Some(0));
    assert!(!site.socket().exists(), "the socket goes with the daemon");
    let daemon = site.start();
    assert!(std::fs::read(site.key_file()).unwrap() == before);
    assert_eq!(site.log().matches(READY).count(), 2);
    assert_eq!(daemon.value("alice", "KEY").unwrap(), b"value");
}

fn populated(site: &Site) -> Vec<u8> {
    let daemon = site.start();
    daemon.set("alice", "KEY", b"value");
    assert_eq!(daemon.stop().code(), Some(0));
    std::fs::read(site.key_file()).unwrap()
}

fn kid_of_the_database(site: &Site) -> String {
    let daemon = site.start();
    let kid = daemon.get("/v1/admin/status").json()["keys"]["activeKid"].as_str().unwrap().to_owned();
    assert_eq!(daemon.stop().code(), Some(0));
    kid
}

pub(super) fn put_key(site: &Site, bytes: &[u8]) {
    let _absent = std::fs::remove_file(site.key_file());
    std::fs::write(site.key_file(), bytes).unwrap();
    std::fs::set_permissions(site.key_file(), PermissionsExt::from_mode(0o400)).unwrap();
}

fn a_populated_database_without_its_key_is_refused_and_nothing_changes(site: &Site) {
    let key = populated(site);
    let kid = kid_of_the_database(site);
    std::fs::remove_dir_all(site.key_file().parent().unwrap()).unwrap();
    let before = site.files();
    let (code, said) = site.refused();
    assert_eq!(code, Some(5));
    assert!(said.contains("Failed to load secrets master key: "), "{said}");
    assert!(said.contains(&kid), "{said}");
    assert!(said.contains("install -m 0400"), "the command that mends it: {said}");
    let after = site.files();
    for (path, content) in &before {
        if !path.ends_with("daemon.log") && !path.ends_with("daemon.lock") {
            assert!(after.get(path) == Some(content), "{} changed", path.display());
        }
    }
    assert!(!site.key_file().exists(), "no key is made over a full database");
    std::fs::create_dir(site.key_file().parent().unwrap()).unwrap();
    std::fs::set_permissions(site.key_file().parent().unwrap(), PermissionsExt::from_mode(0o700)).unwrap();
    put_key(site, &key);
    assert_eq!(site.start().value("alice", "KEY").unwrap(), b"value");
}

fn a_populated_database_with_another_key_is_refused_naming_both(site: &Site) {
    let key = populated(site);
    let kid = kid_of_the_database(site);
    let other = Site::sqlite();
    let strange = populated(&other);
    let strange_kid = kid_of_the_database(&other);
    std::fs::remove_dir_all(site.path("etc/secrets.key.d")).unwrap();
    put_key(site, &strange);
    let (code, said) = site.refused();
    assert_eq!(code, Some(5));
    assert!(said.contains(&kid) && said.contains(&strange_kid), "{said}");
    assert!(std::fs::read(site.key_file()).unwrap() == strange, "a strange key is kept");
    put_key(site, &key);
    assert_eq!(site.start().value("alice", "KEY").unwrap(), b"value");
}

fn a_key_beside_an_empty_database_is_taken_only_when_asked_for(site: &Site) {
    let other = Site::sqlite();
    let key = populated(&other);
    let kid = kid_of_the_database(&other);
    std::fs::create_dir(site.key_file().parent().unwrap()).unwrap();
    std::fs::set_permissions(site.key_file().parent().unwrap(), PermissionsExt::from_mode(0o700)).unwrap();
    put_key(site, &key);
    let (code, said) = site.refused();
    assert_eq!(code, Some(5));
    assert!(said.contains("--adopt-key"), "{said}");
    let daemon = site.start_with(site.command(["daemon", "--adopt-key"]));
    assert_eq!(daemon.get("/v1/admin/status").json()["keys"]["activeKid"], kid);
    daemon.set("alice", "KEY", b"value");
    assert_eq!(daemon.stop().code(), Some(0));
    assert_eq!(site.start().value("alice", "KEY").unwrap(), b"value", "the flag is needed once");
}

/// A daemon that is up with locked keys, over a database that holds `value` as alice's KEY; and the key that opens it.
pub(super) fn lock(site: &Site) -> (Daemon, Vec<u8>) {
    let (key, _) = give_an_older_key(site);
    (site.start(), key)
}

/// Puts a key in place that the database knows and that is no longer active; answers the active one, and the older one's kid.
fn give_an_older_key(site: &Site) -> (Vec<u8>, String) {
    let key = populated(site);
    let other = Site::sqlite();
    let older = populated(&other);
    let older_kid = kid_of_the_database(&other);
    site.run_sql(&format!(
        "INSERT INTO master_keys (kid, state, created_at) VALUES ({}, 'retired', 1)",
        site.sql_bytes(&data_encoding::HEXLOWER.decode(older_kid.as_bytes()).unwrap())
    ));
    std::fs::remove_dir_all(site.path("etc/secrets.key.d")).unwrap();
    put_key(site, &older);
    (key, older_kid)
}

fn a_key_that_is_no_longer_active_leaves_the_daemon_up_and_not_ready_until_the_right_one_comes(site: &Site) {
    let (key, older_kid) = give_an_older_key(site);
    let mut daemon = site.start();
    daemon.told("STATUS=Waiting for keys");
    assert_eq!(daemon.get("/livez").status, 200);
    let ready = daemon.get("/readyz");
    assert_eq!(ready.status, 503);
    assert!(ready.json()["waitingFor"][0].as_str().unwrap().contains(&older_kid), "{ready:?}");
    let answer = daemon.get("/v1/secrets/alice/KEY");
    assert!(answer.status == 503 && answer.problem().starts_with("the keys are locked: "), "{answer:?}");
    assert_eq!(daemon.set("alice", "KEY", b"new").status, 503);
    assert_eq!(daemon.get("/v1/admin/status").json()["keys"]["state"], "locked");
    put_key(site, &key);
    daemon.told("STATUS=Secrets store ready");
    assert_eq!(daemon.get("/readyz").status, 200);
    assert_eq!(daemon.value("alice", "KEY").unwrap(), b"value");
}

fn a_key_file_that_was_copied_as_text_is_named_as_such(site: &Site) {
    let key = populated(site);
    std::fs::remove_dir_all(site.path("etc/secrets.key.d")).unwrap();
    put_key(site, String::from_utf8_lossy(&key).as_bytes());
    let (code, said) = site.refused();
    assert_eq!(code, Some(5));
    assert!(said.contains("Failed to load secrets master key: "), "{said}");
    assert!(said.contains("text mode"), "{said}");
}

fn a_second_daemon_is_refused(site: &Site) {
    let daemon = site.start();
    let (code, said) = site.refused();
    assert_eq!(code, Some(6), "{said}");
    let mut elsewhere = site.command(["daemon"]);
    elsewhere.env("CONTAINARIUM_DATA_DIR", site.path("data-2"));
    let (code, said) = site.refused_with(elsewhere);
    assert_eq!(code, Some(6), "{said}");
    let mut stranger = site.command(["daemon"]);
    for (setting, path) in [("CONTAINARIUM_DATA_DIR", "data-3"), ("CONTAINARIUM_KEY_FILE", "etc-3/secrets.key")] {
        stranger.env(setting, site.path(path));
    }
    stranger.env_remove("CONTAINARIUM_DATABASE_URL");
    let (code, said) = site.refused_with(stranger);
    assert_eq!(code, Some(6), "{said}");
    assert!(!site.path("etc-3").exists(), "no key is made for a daemon that could not be reached");
    assert!(!site.path("data-3/containarium.db").exists() && !said.contains(READY), "{said}");
    assert_eq!(daemon.get("/readyz").status, 200);
}

fn of_two_first_starts_that_race_for_one_key_file_one_wins_and_its_database_opens_with_the_file(site: &Site) {
    type Fresh = fn() -> Site;
    let (fresh, rounds): (Fresh, usize) =
        if site.database_url().is_some() { (Site::postgres, 3) } else { (Site::sqlite, 8) };
    for round in 0..rounds {
        let sites = [fresh(), fresh()];
        let key_file = sites[round % 2].key_file();
        let command = |site: &Site| {
            let mut command = site.command(["daemon"]);
            command.env("CONTAINARIUM_KEY_FILE", &key_file);
            command
        };
        let at_once = std::sync::Barrier::new(2);
        let [first, second] = std::thread::scope(|scope| {
            let starts = sites.each_ref().map(|site| {
                scope.spawn(|| {
                    let command = command(site);
                    at_once.wait();
                    site.try_start(command)
                })
            });
            starts.map(|start| start.join().unwrap())
        });
        let (winner, daemon, loser, status) = match (first, second) {
            (Ok(daemon), Err(status)) => (&sites[0], daemon, &sites[1], status),
            (Err(status), Ok(daemon)) => (&sites[1], daemon, &sites[0], status),
            (first, second) => {
                let started = [first.is_ok(), second.is_ok()];
                panic!("round {round}: {started:?}\n{}\n{}", sites[0].log(), sites[1].log());
            }
        };
        assert_eq!(status.code(), Some(5), "{}", loser.log());
        assert!(loser.log().contains("the database is new, but a master key is here already"), "{}", loser.log());
        daemon.set("alice", "KEY", b"value");
        assert_eq!(daemon.stop().code(), Some(0));
        let daemon = winner.start_with(command(winner));
        assert_eq!(daemon.value("alice", "KEY").unwrap(), b"value");
        assert_eq!(loser.number("SELECT count(*) FROM master_keys"), 0, "the loser's database is still new");
        assert_eq!(loser.refused_with(command(loser)).0, Some(5));
    }
}

#[test]
fn a_populated_sqlite_is_not_hidden_by_an_empty_postgresql() {
    let site = Site::postgres();
    let mut on_sqlite = site.command(["daemon"]);
    on_sqlite.env_remove("CONTAINARIUM_DATABASE_URL");
    let daemon = site.start_with(on_sqlite);
    daemon.set("alice", "KEY", b"value");
    assert_eq!(daemon.stop().code(), Some(0));
    let (code, said) = site.refused();
    assert_eq!(code, Some(5));
    assert!(said.contains("containarium.db"), "{said}");
}

#[test]
fn a_database_that_is_away_at_the_start_is_exit_5() {
    let site = Site::sqlite();
    let mut command = site.command(["daemon"]);
    command.env("CONTAINARIUM_DATABASE_URL", "postgres://nobody:canary-password@localhost:1/nothing");
    let (code, said) = site.refused_with(command);
    assert_eq!(code, Some(5), "{said}");
    assert!(!said.contains("canary-password"), "{said}");
    assert!(!site.key_file().exists());
}

#[test]
fn a_database_url_that_cannot_be_used_is_a_wrong_setting_and_told_by_config_check() {
    for url in ["postgres://u:canary@localhost:port/db", "postgres://u@localhost/db?canary=1"] {
        let site = Site::sqlite();
        let with_url = |arguments: &[&str]| {
            let mut command = site.command(arguments);
            command.env("CONTAINARIUM_DATABASE_URL", url);
            command
        };
        // 2 is what systemd does not start again after.
        let (code, said) = site.refused_with(with_url(&["daemon"]));
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains("the setting --database-url cannot be used: "), "{said}");
        assert!(!site.data_dir().exists(), "nothing was made");
        let checked = with_url(&["config", "check", "-o", "json"]).output().unwrap();
        let (shown, error) = (String::from_utf8_lossy(&checked.stdout), String::from_utf8_lossy(&checked.stderr));
        assert_eq!(checked.status.code(), Some(2), "{error}");
        assert!(shown.contains(r#""ok":false"#) && error.contains("--database-url"), "{shown}{error}");
        assert!(!format!("{said}{shown}{error}").contains("canary"), "{said}{shown}{error}");
    }
}

#[test]
fn a_database_host_that_does_not_resolve_is_named_as_that() {
    let site = Site::sqlite();
    let mut command = site.command(["daemon"]);
    command.env("CONTAINARIUM_DATABASE_URL", "postgres://u@nowhere.invalid/db");
    let (code, said) = site.refused_with(command);
    assert_eq!(code, Some(5), "{said}");
    assert!(said.contains("the host's name does not resolve"), "{said}");
}

#[test]
fn a_socket_that_a_crash_left_is_replaced() {
    let site = Site::sqlite();
    site.start().kill();
    assert!(site.socket().exists());
    assert_eq!(site.start().get("/readyz").status, 200);
}

#[test]
fn logs_can_be_json() {
    let site = Site::sqlite();
    let _daemon = site.start_with(site.command(["daemon", "--log-format", "json"]));
    let lines: Vec<serde_json::Value> = site.log().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.iter().any(|line| line["message"] == READY), "{lines:?}");
}
