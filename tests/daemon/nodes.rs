//! A daemon as a node: keys that come and go beside it, copies of it, and databases that went back.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Instant;

use containarium::crypto::{self, KeyfileImage, MasterKey};
use containarium::model::{Kid, Tenant};
use containarium::store::deks::ShredWhen;
use serde_json::Value;

use super::backup::{Cloud, as_restorer};
use super::on_both_stores;
use super::rotation::{WAIVE, phase, refused, rotated};
use crate::support::site::{Daemon, PATIENCE, Site, wait_for};

on_both_stores![
    a_node_that_lacks_the_active_key_and_has_secret_manager_names_the_command_that_fetches_it,
    a_node_that_lacks_the_new_active_key_serves_what_it_can_until_install_key_gives_it,
    a_node_without_any_key_is_refused_and_starts_once_install_key_gave_it_the_key,
    install_key_takes_nothing_but_a_key_that_the_database_wants,
    install_key_leaves_a_key_that_was_given_up_while_it_waited_for_the_lock,
    an_older_database_closes_writes_until_it_is_accepted_and_shreds_are_done_again,
    a_key_that_is_staged_in_a_restored_database_is_kept_for_the_backups_of_what_was_lost,
    a_log_with_gaps_is_told_of_before_a_database_is_accepted,
    a_key_file_that_was_replaced_by_an_older_one_is_put_right,
    files_of_aborted_and_destroyed_keys_disappear_and_no_others,
    a_daemon_that_was_killed_starts_at_once,
    a_node_whose_record_cannot_be_written_says_so_and_is_seen_still,
    the_generation_rises_when_an_hour_went_by,
];

const TOKEN: &str = r#"{"name":"ci","tenants":["alice"],"allow":["read"]}"#;

/// A key that an operator has, and its kid.
struct Key {
    kid: Kid,
    bytes: Vec<u8>,
}

impl Key {
    fn new() -> Self {
        let master = MasterKey::make_random().unwrap();
        let mut bytes = Vec::new();
        KeyfileImage::of(&master).write_to(&mut bytes).unwrap();
        Self { kid: crypto::kid(&master), bytes }
    }

    fn sql(&self, site: &Site) -> String {
        site.sql_bytes(self.kid.as_bytes())
    }

    fn put(&self, path: &Path) {
        let _absent = std::fs::remove_file(path);
        std::fs::write(path, &self.bytes).unwrap();
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o400)).unwrap();
    }
}

/// Enters a key in this state.
fn enter(site: &Site, key: &Key, state: &str) {
    site.run_sql(&format!("INSERT INTO master_keys (kid, state, created_at) VALUES ({}, '{state}', 1)", key.sql(site)));
}

/// What a rotation's flip does, without asking this node.
fn flip(site: &Site, to: &Key) {
    site.run_sql("UPDATE master_keys SET state = 'decrypt_only' WHERE state = 'active'");
    enter(site, to, "active");
    let kid = to.sql(site);
    site.run_sql(&format!("UPDATE key_state SET active_kid = {kid}, epoch = epoch + 1, generation = generation + 1"));
}

fn retained(site: &Site) -> PathBuf {
    site.path("etc/secrets.key.d")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn answer(output: &Output) -> Value {
    assert!(output.status.success(), "{}", said(output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Asks the daemon until this holds: its own ticks are what is waited for.
fn until(daemon: &Daemon, what: &str, holds: impl Fn(&Daemon) -> bool) {
    let begun = Instant::now();
    while !holds(daemon) {
        assert!(begun.elapsed() < PATIENCE, "never: {what}");
        daemon.get("/livez");
    }
}

fn waiting_for(daemon: &Daemon) -> String {
    let ready = daemon.get("/readyz");
    if ready.status == 200 { String::new() } else { ready.json()["waitingFor"].to_string() }
}

fn a_node_that_lacks_the_active_key_and_has_secret_manager_names_the_command_that_fetches_it(site: &Site) {
    let cloud = Cloud::of(site);
    let mut daemon = site.start();
    daemon.set("alice", "KEY", b"value");
    let key = Key::new();
    flip(site, &key);
    daemon.told("STATUS=Not ready");
    let waiting = waiting_for(&daemon);
    for part in [&*key.kid.to_string(), "`containarium backup restore --kid", "containarium admin install-key"] {
        assert!(waiting.contains(part), "{part}: {waiting}");
    }
    cloud.add(&key.bytes);
    daemon.hush();
    let restored = as_restorer(site, &["backup", "restore"]);
    assert!(restored.status.success(), "{}", said(&restored));
    daemon.told("STATUS=Secrets store ready");
    assert_eq!(daemon.set("bob", "KEY", b"value").status, 200);
}

fn a_node_that_lacks_the_new_active_key_serves_what_it_can_until_install_key_gives_it(site: &Site) {
    let mut daemon = site.start();
    daemon.set("alice", "KEY", b"value");
    let key = Key::new();
    flip(site, &key);
    let told = daemon.told("STATUS=Not ready");
    assert!(told.contains(&key.kid.to_string()) && told.contains("containarium admin install-key"), "{told}");
    assert!(waiting_for(&daemon).contains("containarium admin install-key"), "{}", waiting_for(&daemon));
    assert_eq!(daemon.value("alice", "KEY").unwrap(), b"value", "the old key opens what it wraps");
    assert_eq!(daemon.set("alice", "OTHER", b"new").status, 200, "no DEK is made for this");
    let first = daemon.set("bob", "KEY", b"value");
    assert_eq!(first.status, 503);
    assert!(first.problem().contains(&key.kid.to_string()), "{}", first.problem());
    assert_eq!(site.number("SELECT count(*) FROM deks WHERE tenant = 'bob'"), 0);

    daemon.hush();
    let installed = site.cli(["admin", "install-key", "-o", "json"], &key.bytes);
    let installed = answer(&installed);
    assert_eq!(installed["kid"], key.kid.to_string());
    assert_eq!((&installed["state"], &installed["present"]), (&"active".into(), &false.into()));
    daemon.told("STATUS=Secrets store ready");
    assert_eq!(daemon.get("/readyz").status, 200);
    assert_eq!(daemon.set("bob", "KEY", b"value").status, 200);
    assert!(std::fs::read(site.key_file()).unwrap() == key.bytes, "it is the key in use now");
    let again = answer(&site.cli(["admin", "install-key", "-o", "json"], &key.bytes));
    assert_eq!(again["present"], true);
    assert_eq!(daemon.stop().code(), Some(0));
    let daemon = site.start();
    assert_eq!(daemon.value("alice", "KEY").unwrap(), b"value");
    assert_eq!(daemon.value("bob", "KEY").unwrap(), b"value");
}

fn a_node_without_any_key_is_refused_and_starts_once_install_key_gave_it_the_key(site: &Site) {
    let daemon = site.start();
    daemon.set("alice", "KEY", b"value");
    assert_eq!(daemon.stop().code(), Some(0));
    let key = std::fs::read(site.key_file()).unwrap();
    std::fs::remove_dir_all(site.key_file().parent().unwrap()).unwrap();
    let (code, said_at_start) = site.refused();
    assert_eq!(code, Some(5));
    assert!(said_at_start.contains("containarium admin install-key"), "{said_at_start}");
    let installed = site.cli(["admin", "install-key"], &key);
    assert!(installed.status.success(), "{}", said(&installed));
    assert_eq!(site.start().value("alice", "KEY").unwrap(), b"value");
    assert!(std::fs::read(site.key_file()).unwrap() == key);
}

fn install_key_takes_nothing_but_a_key_that_the_database_wants(site: &Site) {
    let nothing = site.cli(["admin", "install-key"], &Key::new().bytes);
    assert_eq!(nothing.status.code(), Some(5), "there is no database yet: {}", said(&nothing));
    let daemon = site.start();
    let (strange, old) = (Key::new(), Key::new());
    enter(site, &old, "retired");
    let files = || {
        let mut files = site.files();
        files.retain(|path, _| path.starts_with(site.path("etc")) && !path.ends_with("secrets.key.lock"));
        files
    };
    let before = files();
    let text = data_encoding::HEXLOWER.encode(&old.bytes);
    let cases: [(&[u8], i32, &str); 6] = [
        (b"", 2, "0 bytes"),
        (&old.bytes[1..], 2, "31 bytes"),
        (text.as_bytes(), 2, "hexadecimal"),
        (&[0; 32], 2, "all zero"),
        (&strange.bytes, 3, "does not know"),
        (&old.bytes, 6, "retired"),
    ];
    for (input, code, words) in cases {
        let refused = site.cli(["admin", "install-key"], input);
        assert_eq!((refused.status.code(), refused.stdout.len()), (Some(code), 0), "{}", said(&refused));
        assert!(said(&refused).contains(words) && said(&refused).contains("help: "), "{words}: {}", said(&refused));
        assert!(!said(&refused).contains(&text), "the key is not repeated");
    }
    assert!(files() == before, "nothing was written");
    assert_eq!(daemon.get("/readyz").status, 200);
}

fn install_key_leaves_a_key_that_was_given_up_while_it_waited_for_the_lock(site: &Site) {
    assert_eq!(site.start().stop().code(), Some(0));
    let key = Key::new();
    enter(site, &key, "staged");
    let lock = site.path("etc/secrets.key.lock");
    let held = std::fs::File::open(&lock).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let mut command = site.command(["admin", "install-key"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(&key.bytes).unwrap();
    // It opens the lock once it has seen that the key is wanted.
    let open = format!("/proc/{}/fd", child.id());
    let waits = || {
        let mut open = std::fs::read_dir(&open).unwrap().flatten();
        open.any(|fd| std::fs::read_link(fd.path()).is_ok_and(|file| file == lock))
    };
    let begun = Instant::now();
    while !waits() {
        assert!(begun.elapsed() < PATIENCE && child.try_wait().unwrap().is_none(), "it never waited for the lock");
        std::thread::yield_now();
    }
    site.run_sql(&format!("UPDATE master_keys SET state = 'aborted' WHERE kid = {}", key.sql(site)));
    drop(held);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(6), "{output:?}");
    assert!(said(&output).contains("aborted"), "{}", said(&output));
    assert!(!retained(site).join(key.kid.to_string()).exists(), "nothing was written");
}

/// A daemon that shredded one tenant, plans to shred another, and spared a third, after the copy was made.
fn with_an_older_copy(site: &Site) {
    let daemon = site.start();
    for tenant in ["alice", "gone", "going", "spared"] {
        assert_eq!(daemon.set(tenant, "KEY", b"value").status, 200);
    }
    let shred = |tenant: &str, days: u64| {
        let tenant = Tenant::parse(tenant).unwrap();
        wait_for(async {
            let store = site.store().await;
            let wait = std::time::Duration::from_hours(24 * days);
            store.schedule_shred(&tenant, wait).await.unwrap();
            store.close().await;
        });
    };
    shred("spared", 7);
    assert_eq!(daemon.stop().code(), Some(0));
    site.keep_copy();
    let daemon = site.start();
    daemon.set("alice", "LATER", b"value");
    shred("gone", 0);
    shred("going", 7);
    wait_for(async {
        let store = site.store().await;
        store.shred(&Tenant::parse("gone").unwrap(), ShredWhen::Now).await.unwrap();
        store.cancel_shred(&Tenant::parse("spared").unwrap()).await.unwrap();
        store.close().await;
    });
    let generation = u64::try_from(site.number("SELECT generation FROM key_state")).unwrap();
    let log = site.data_dir().join("critical.jsonl");
    let noted = format!("\"generation\":{generation},");
    until(&daemon, "the log has it", |_| std::fs::read_to_string(&log).unwrap().contains(&noted));
    until(&daemon, "the record has it", |_| {
        std::fs::read_to_string(site.data_dir().join("node.json"))
            .unwrap()
            .contains(&format!("\"generation\":{generation}"))
    });
    assert_eq!(daemon.stop().code(), Some(0));
    site.put_copy_back();
}

fn an_older_database_closes_writes_until_it_is_accepted_and_shreds_are_done_again(site: &Site) {
    with_an_older_copy(site);
    let mut daemon = site.start();
    assert!(daemon.told("STATUS=Not ready").contains("containarium admin accept-restore"));
    assert!(waiting_for(&daemon).contains("containarium admin accept-restore"));
    let is_closed = |daemon: &Daemon| {
        let refused = daemon.set("alice", "KEY", b"new");
        assert_eq!(refused.status, 503);
        assert!(refused.problem().contains("containarium admin accept-restore"), "{}", refused.problem());
        assert_eq!(daemon.set("new", "KEY", b"value").status, 503);
        assert_eq!(daemon.request("DELETE", "/v1/secrets/alice/KEY", b"").status, 503);
        let destroy = daemon.request("POST", "/v1/secrets/alice/KEY/destroy", b"{\"versions\":[1]}");
        assert_eq!(destroy.status, 503);
        assert_eq!(daemon.value("alice", "KEY").unwrap(), b"value", "reads go on");
    };
    is_closed(&daemon);
    assert_eq!(daemon.stop().code(), Some(0));
    let mut daemon = site.start();
    is_closed(&daemon);

    let unasked = site.cli(["admin", "accept-restore"], b"");
    assert_eq!(unasked.status.code(), Some(2), "no terminal, no --yes: {}", said(&unasked));
    for line in
        ["shred of tenant gone", "schedule-shred of tenant going", "cancel-shred of tenant spared", "active: held"]
    {
        assert!(said(&unasked).contains(line), "{line}: {}", said(&unasked));
    }
    is_closed(&daemon);

    daemon.hush();
    let before = site.number("SELECT generation FROM key_state");
    let accepted = answer(&site.cli(["admin", "accept-restore", "--yes", "-o", "json"], b""));
    assert_eq!(accepted["replayed"].as_array().unwrap().len(), 3, "{accepted}");
    assert!(accepted["generation"].as_i64().unwrap() > before && accepted["epoch"] == 2, "{accepted}");
    assert_eq!(daemon.get("/readyz").status, 200);
    daemon.told("STATUS=Secrets store ready");
    assert_eq!(daemon.set("alice", "KEY", b"new").status, 200);
    assert_eq!(daemon.get("/v1/secrets/gone/KEY").status, 403);
    assert_eq!(daemon.get("/v1/secrets/going/KEY").status, 403);
    assert_eq!(daemon.value("spared", "KEY").unwrap(), b"value");
    assert_eq!(site.number("SELECT count(*) FROM deks WHERE tenant = 'gone' AND wrapped IS NOT NULL"), 0);
    assert_eq!(site.number("SELECT count(*) FROM deks WHERE tenant = 'going' AND wrapped IS NOT NULL"), 1);
    let again = site.cli(["admin", "accept-restore", "--yes"], b"");
    assert!(again.status.success() && said(&again).contains("nothing to accept"), "{}", said(&again));
    assert_eq!(daemon.stop().code(), Some(0));
    assert_eq!(site.start().get("/readyz").status, 200, "and so it stays");
}

/// The key was in use in the state that was lost: nobody can give it up any more, and a later dump opens after all.
fn a_key_that_is_staged_in_a_restored_database_is_kept_for_the_backups_of_what_was_lost(site: &Site) {
    let daemon = site.start();
    daemon.set("alice", "KEY", b"value");
    let kid = rotated(site, &[])["kid"].as_str().unwrap().to_owned();
    assert_eq!(daemon.stop().code(), Some(0));
    site.keep_copy();
    let daemon = site.start();
    assert_eq!(rotated(site, &["--resume", WAIVE[0], WAIVE[1]])["end"], "rotated");
    assert_eq!(daemon.set("late", "KEY", b"late").status, 200);
    assert_eq!(daemon.stop().code(), Some(0));
    site.swap_with_copy();

    let daemon = site.start();
    let (code, told) = refused(site, &["--abort"]);
    assert_eq!(code, Some(5), "{told}");
    assert!(told.contains("containarium admin accept-restore"), "{told}");
    let accepted = site.cli(["admin", "accept-restore", "--yes"], b"");
    assert!(accepted.status.success(), "{accepted:?}");
    let (asked, answered) =
        (format!("staged master key {kid} will be retired"), String::from_utf8(accepted.stdout.clone()));
    assert!(said(&accepted).contains(&asked), "{}", said(&accepted));
    assert!(answered.unwrap().contains(&format!("staged master key {kid} is retired")));
    assert_eq!(phase(site), "idle");
    let (code, told) = refused(site, &["--abort"]);
    assert_eq!(code, Some(3), "{told}");
    assert!(told.contains("nothing is staged"), "{told}");
    let (code, told) = refused(site, &["--destroy-old", "--yes", WAIVE[0], WAIVE[1]]);
    assert_eq!(code, Some(6), "{told}");
    assert!(told.contains(&kid) && told.contains("not before 20"), "{told}");
    // The old key is the one in use again, and in its place.
    until(&daemon, "the old key is promoted", |_| crypto::kid(&main_key(site)).to_string() != kid);
    assert_eq!(daemon.value("alice", "KEY").unwrap(), b"value");
    assert_eq!(rotated(site, &WAIVE)["end"], "rotated", "another key can be staged");
    assert_eq!(daemon.stop().code(), Some(0));
    assert!(retained(site).join(&kid).exists());

    site.swap_with_copy();
    let daemon = site.start();
    assert_eq!(daemon.value("late", "KEY").unwrap(), b"late");
    assert_eq!(daemon.value("alice", "KEY").unwrap(), b"value");
}

fn main_key(site: &Site) -> MasterKey {
    let mut bytes: &[u8] = &std::fs::read(site.key_file()).unwrap();
    KeyfileImage::read_from(&mut bytes).unwrap().master().unwrap()
}

fn a_log_with_gaps_is_told_of_before_a_database_is_accepted(site: &Site) {
    with_an_older_copy(site);
    std::fs::remove_file(site.data_dir().join("critical.jsonl")).unwrap();
    let daemon = site.start();
    let plan = daemon.get("/v1/admin/accept-restore").json();
    assert_eq!((&plan["behind"], &plan["complete"]), (&true.into(), &false.into()), "{plan}");
    let body = serde_json::json!({ "epoch": plan["epoch"], "generation": plan["generation"] });
    let refused = daemon.request("POST", "/v1/admin/accept-restore", body.to_string().as_bytes());
    assert_eq!(refused.status, 409, "gaps were not agreed to");
    let elsewhere = serde_json::json!({ "epoch": plan["epoch"], "generation": 1_000_000, "acceptGaps": true });
    let refused = daemon.request("POST", "/v1/admin/accept-restore", elsewhere.to_string().as_bytes());
    assert_eq!(refused.status, 409, "not as it was shown");
    assert_eq!(daemon.set("alice", "KEY", b"new").status, 503);
    let unasked = site.cli(["admin", "accept-restore"], b"");
    assert!(said(&unasked).contains("WARNING"), "{}", said(&unasked));
    let accepted = site.cli(["admin", "accept-restore", "--yes"], b"");
    assert!(accepted.status.success(), "{}", said(&accepted));
    assert_eq!(daemon.set("alice", "KEY", b"new").status, 200);
}

fn a_key_file_that_was_replaced_by_an_older_one_is_put_right(site: &Site) {
    let daemon = site.start();
    daemon.set("alice", "KEY", b"value");
    let old = std::fs::read(site.key_file()).unwrap();
    let key = Key::new();
    flip(site, &key);
    assert!(site.cli(["admin", "install-key"], &key.bytes).status.success());
    let is_new = |_: &Daemon| std::fs::read(site.key_file()).unwrap() == key.bytes;
    until(&daemon, "the new key is in use", is_new);
    let older = Key { kid: key.kid, bytes: old.clone() };
    older.put(&site.path("etc/by-hand"));
    std::fs::rename(site.path("etc/by-hand"), site.key_file()).unwrap();
    until(&daemon, "the new key is in use again", is_new);
    assert_eq!(daemon.stop().code(), Some(0));
    older.put(&site.path("etc/by-hand"));
    std::fs::rename(site.path("etc/by-hand"), site.key_file()).unwrap();
    let daemon = site.start();
    assert!(is_new(&daemon), "at the start too");
    assert_eq!(daemon.value("alice", "KEY").unwrap(), b"value");
    let kept: Vec<Vec<u8>> =
        std::fs::read_dir(retained(site)).unwrap().map(|e| std::fs::read(e.unwrap().path()).unwrap()).collect();
    assert!(kept.contains(&old) && kept.contains(&key.bytes));
}

fn files_of_aborted_and_destroyed_keys_disappear_and_no_others(site: &Site) {
    let daemon = site.start();
    let [aborted, destroyed, retired, staged, unknown] = [(); 5].map(|()| Key::new());
    for key in [&aborted, &destroyed, &retired, &staged, &unknown] {
        key.put(&retained(site).join(key.kid.to_string()));
    }
    destroyed.put(&retained(site).join("an-older-name"));
    enter(site, &retired, "retired");
    enter(site, &staged, "staged");
    enter(site, &aborted, "aborted");
    enter(site, &destroyed, "destroyed");
    let there = |key: &Key| retained(site).join(key.kid.to_string()).exists();
    until(&daemon, "both are gone", |_| {
        !there(&aborted) && !there(&destroyed) && !retained(site).join("an-older-name").exists()
    });
    assert!(there(&retired) && there(&staged) && there(&unknown));
    assert_eq!(daemon.get("/readyz").status, 200);
    // The files go first, and the heartbeat follows.
    until(&daemon, "the heartbeat says so", |_| {
        let nodes = answer(&site.cli(["admin", "nodes", "-o", "json"], b""));
        let durable = nodes["nodes"][0]["durableKids"].to_string();
        durable.contains(&staged.kid.to_string()) && !durable.contains(&destroyed.kid.to_string())
    });
}

fn a_daemon_that_was_killed_starts_at_once(site: &Site) {
    for _ in 0..3 {
        let daemon = site.start();
        assert_eq!(daemon.get("/readyz").status, 200);
        daemon.kill();
    }
    let nodes = site.start().get("/v1/admin/nodes").json();
    assert_eq!(nodes["nodes"].as_array().unwrap().len(), 1, "{nodes}");
    assert_eq!((&nodes["nodes"][0]["this"], &nodes["nodes"][0]["live"]), (&true.into(), &true.into()));
}

fn a_node_whose_record_cannot_be_written_says_so_and_is_seen_still(site: &Site) {
    let daemon = site.start();
    let in_the_way = site.data_dir().join("node.json.new");
    std::fs::create_dir(&in_the_way).unwrap();
    site.run_sql("UPDATE nodes SET epoch = 7");
    site.run_sql("UPDATE key_state SET epoch = epoch + 1, generation = generation + 1");
    until(&daemon, "it warns", |daemon| {
        daemon.get("/v1/admin/status").json()["warnings"].to_string().contains("could not be recorded")
    });
    until(&daemon, "it is seen in the new epoch", |daemon| {
        daemon.get("/v1/admin/nodes").json()["nodes"][0]["epoch"] == 2
    });
    assert_eq!(daemon.set("alice", "KEY", b"value").status, 200);
    std::fs::remove_dir(&in_the_way).unwrap();
    let record = site.data_dir().join("node.json");
    until(&daemon, "it is recorded", |_| std::fs::read_to_string(&record).unwrap().contains("\"generation\":2"));
    until(&daemon, "the warning goes", |daemon| {
        !daemon.get("/v1/admin/status").json()["warnings"].to_string().contains("could not be recorded")
    });
}

fn the_generation_rises_when_an_hour_went_by(site: &Site) {
    assert_eq!(site.start().stop().code(), Some(0));
    let generation = || site.number("SELECT generation FROM key_state");
    let before = generation();
    assert_eq!(site.start().stop().code(), Some(0));
    assert_eq!(generation(), before, "not at each start");
    let log = site.data_dir().join("critical.jsonl");
    let mut line: Value = serde_json::from_str(std::fs::read_to_string(&log).unwrap().lines().last().unwrap()).unwrap();
    line["at"] = (line["at"].as_i64().unwrap() - 3_601_000_000).into();
    std::fs::write(&log, format!("{line}\n")).unwrap();
    assert_eq!(site.start().stop().code(), Some(0));
    assert_eq!(generation(), before + 1);
}

/// A second node on the same PostgreSQL, with the first one's key.
pub(super) fn beside(site: &Site) -> Site {
    let other = site.sharing();
    let key = std::fs::read(site.key_file()).unwrap();
    let installed = other.cli(["admin", "install-key"], &key);
    assert!(installed.status.success(), "{}", said(&installed));
    other
}

#[test]
fn three_nodes_share_a_database_and_each_says_what_it_holds() {
    let first = Site::postgres();
    let one = first.start();
    one.set("alice", "KEY", b"value");
    let (second, third) = (beside(&first), beside(&first));
    let (two, three) = (second.start(), third.start());
    for daemon in [&one, &two, &three] {
        assert_eq!(daemon.value("alice", "KEY").unwrap(), b"value");
        assert_eq!(daemon.get("/v1/admin/nodes").json()["nodes"].as_array().unwrap().len(), 3);
    }
    let nodes = answer(&second.cli(["admin", "nodes", "-o", "json"], b""));
    let nodes = nodes["nodes"].as_array().unwrap();
    assert!(nodes.iter().all(|node| node["live"] == true && node["durableKids"].as_array().unwrap().len() == 1));
    let id = |this: bool| nodes.iter().find(|node| node["this"] == this).unwrap()["nodeId"].as_str().unwrap();

    let live = second.cli(["admin", "nodes", "forget", id(false), "--yes"], b"");
    assert_eq!(live.status.code(), Some(6), "{}", said(&live));
    let unasked = second.cli(["admin", "nodes", "forget", id(false)], b"");
    assert_eq!(unasked.status.code(), Some(2), "{}", said(&unasked));
    let unknown = second.cli(["admin", "nodes", "forget", &"ab".repeat(16), "--yes"], b"");
    assert_eq!(unknown.status.code(), Some(3), "{}", said(&unknown));
    let third_id = three.get("/v1/admin/nodes").json()["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .find(|node| node["this"] == true)
        .unwrap()["nodeId"]
        .as_str()
        .unwrap()
        .to_owned();
    three.kill();
    first.run_sql(&format!("UPDATE nodes SET seen_at = seen_at - 31000000 WHERE node_id = '{third_id}'"));
    let forgotten = second.cli(["admin", "nodes", "forget", &third_id, "--yes"], b"");
    assert!(forgotten.status.success(), "{}", said(&forgotten));
    assert_eq!(one.get("/v1/admin/nodes").json()["nodes"].as_array().unwrap().len(), 2);
}

#[test]
fn of_three_nodes_the_one_that_lacks_the_new_key_is_not_ready() {
    let first = Site::postgres();
    let one = first.start();
    let (second, third) = (beside(&first), beside(&first));
    let (two, three) = (second.start(), third.start());
    let key = Key::new();
    enter(&first, &key, "staged");
    for site in [&first, &second] {
        assert!(site.cli(["admin", "install-key"], &key.bytes).status.success());
    }
    let holders =
        |daemon: &Daemon| daemon.get("/v1/admin/nodes").json().to_string().matches(&key.kid.to_string()).count();
    until(&three, "two nodes hold it", |daemon| holders(daemon) == 2);
    first.run_sql("UPDATE master_keys SET state = 'decrypt_only' WHERE state = 'active'");
    first.run_sql("UPDATE master_keys SET state = 'active' WHERE state = 'staged'");
    let kid = key.sql(&first);
    first.run_sql(&format!("UPDATE key_state SET active_kid = {kid}, epoch = epoch + 1, generation = generation + 1"));
    assert_eq!(one.set("bob", "KEY", b"value").status, 200, "the moment of the flip finds the key loaded");
    assert_eq!(two.set("carol", "KEY", b"value").status, 200);
    until(&three, "it notices", |daemon| waiting_for(daemon).contains("containarium admin install-key"));
    assert_eq!(three.get("/v1/secrets/bob/KEY").status, 503);
    assert_eq!((one.get("/readyz").status, two.get("/readyz").status), (200, 200));
    assert!(third.cli(["admin", "install-key"], &key.bytes).status.success());
    until(&three, "it is ready", |daemon| daemon.get("/readyz").status == 200);
    assert_eq!(three.value("bob", "KEY").unwrap(), b"value");
}

#[test]
fn a_copied_data_directory_is_exit_6_and_the_node_goes_on() {
    let site = Site::postgres();
    let daemon = site.start();
    let copy = beside(&site);
    std::fs::create_dir(copy.data_dir()).unwrap();
    std::fs::set_permissions(copy.data_dir(), PermissionsExt::from_mode(0o700)).unwrap();
    for name in ["node.json", "critical.jsonl"] {
        std::fs::copy(site.data_dir().join(name), copy.data_dir().join(name)).unwrap();
    }
    for _ in 0..2 {
        let (code, said) = copy.refused();
        assert_eq!(code, Some(6), "{said}");
        assert!(said.contains("data directory was copied"), "{said}");
    }
    assert_eq!(daemon.get("/readyz").status, 200);
    daemon.kill();
    assert_eq!(copy.refused().0, Some(6), "it may come back");
    let daemon = site.start();
    daemon.kill();
    site.run_sql("UPDATE nodes SET seen_at = seen_at - 31000000");
    assert_eq!(copy.start().get("/readyz").status, 200, "the node moved house");
}

#[test]
fn a_second_process_under_ones_node_id_is_noticed_at_a_later_heartbeat() {
    let site = Site::postgres();
    let daemon = site.start();
    let boot = "ab".repeat(16);
    site.run_sql(&format!("UPDATE nodes SET boot_id = '{boot}', seen_at = seen_at + 5000000"));
    let status = daemon.ended();
    assert_eq!(status.code(), Some(6), "{}", site.log());
    assert!(site.log().contains(&boot), "{}", site.log());
    assert!(!site.socket().exists(), "it stopped in order");
}

/// Two nodes on a database of which there is an older copy. Both have seen more than that; the second alone, which runs, has seen a token
/// revoked (its id) and a tenant shredded.
fn one_that_knows_more() -> (Site, Site, Daemon, String) {
    let first = Site::postgres();
    let daemon = first.start();
    for tenant in ["alice", "gone"] {
        daemon.set(tenant, "KEY", b"value");
    }
    let made = daemon.request("POST", "/v1/admin/tokens", TOKEN.as_bytes()).json();
    let id = made["details"]["id"].as_str().unwrap().to_owned();
    let second = beside(&first);
    assert_eq!(daemon.stop().code(), Some(0));
    first.keep_copy();
    let (one, two) = (first.start(), second.start());
    first.run_sql("UPDATE key_state SET generation = generation + 5");
    let record = |site: &Site| std::fs::read_to_string(site.data_dir().join("node.json")).unwrap();
    let generation = |site: &Site| {
        let state: Value = serde_json::from_str(&record(site)).unwrap();
        state["highest"]["generation"].as_i64().unwrap()
    };
    let now = first.number("SELECT generation FROM key_state");
    until(&one, "the first has seen it", |_| generation(&first) >= now);
    assert_eq!(one.stop().code(), Some(0));
    let revoked = two.request("POST", "/v1/admin/tokens/revoke", format!("{{\"id\":\"{id}\"}}").as_bytes());
    assert_eq!(revoked.status, 200, "{revoked:?}");
    wait_for(async {
        let (store, tenant) = (first.store().await, Tenant::parse("gone").unwrap());
        store.schedule_shred(&tenant, std::time::Duration::ZERO).await.unwrap();
        store.shred(&tenant, ShredWhen::Now).await.unwrap();
        store.close().await;
    });
    let now = first.number("SELECT generation FROM key_state");
    until(&two, "the second has written it down", |_| generation(&second) >= now);
    (first, second, two, id)
}

#[test]
fn what_only_another_node_remembers_is_done_again_when_a_restored_database_was_accepted() {
    let (first, second, two, id) = one_that_knows_more();
    first.put_copy_back();
    until(&two, "it notices", |daemon| waiting_for(daemon).contains("containarium admin accept-restore"));
    let one = first.start();
    until(&one, "it notices", |daemon| waiting_for(daemon).contains("containarium admin accept-restore"));

    let accepted = first.cli(["admin", "accept-restore", "--yes"], b"");
    assert!(accepted.status.success(), "{}", said(&accepted));
    assert_eq!(two.get("/readyz").status, 503, "the second has seen more than was accepted");
    // Time goes by at the first: rotations, revocations, hourly marks.
    first.run_sql("UPDATE key_state SET generation = generation + 10");
    until(&two, "it is ready", |daemon| daemon.get("/readyz").status == 200);
    let revoked = format!("SELECT count(*) FROM tokens WHERE id = '{id}' AND revoked_at IS NOT NULL");
    assert_eq!(first.number(&revoked), 1);
    assert_eq!(one.get("/v1/secrets/gone/KEY").status, 403, "it is blocked");
    assert_eq!(
        first.number("SELECT count(*) FROM deks WHERE tenant = 'gone' AND wrapped IS NOT NULL"),
        1,
        "and not destroyed yet"
    );
    assert!(second.log().contains("is shredded in 7 days"), "{}", second.log());
    assert_eq!(one.value("alice", "KEY").unwrap(), b"value");
    let spared = first.cli(["admin", "shred", "gone", "--cancel"], b"");
    assert!(spared.status.success(), "{}", said(&spared));
    assert_eq!(two.value("gone", "KEY").unwrap(), b"value");
}

#[test]
fn what_only_a_node_remembers_that_was_away_is_done_again_at_its_next_start() {
    let (first, second, two, id) = one_that_knows_more();
    assert_eq!(two.stop().code(), Some(0));
    first.put_copy_back();
    let one = first.start();
    let accepted = first.cli(["admin", "accept-restore", "--yes"], b"");
    assert!(accepted.status.success(), "{}", said(&accepted));
    first.run_sql("UPDATE key_state SET generation = generation + 10");
    let revoked = format!("SELECT count(*) FROM tokens WHERE id = '{id}' AND revoked_at IS NOT NULL");
    assert_eq!(first.number(&revoked), 0, "nobody here knows better");
    let two = second.start();
    until(&two, "it revokes again", |_| first.number(&revoked) == 1);
    until(&two, "it blocks the tenant", |_| one.get("/v1/secrets/gone/KEY").status == 403);
    assert_eq!(two.get("/readyz").status, 200);
    assert_eq!(two.value("alice", "KEY").unwrap(), b"value");
}

#[test]
fn a_restored_database_closes_every_node_and_one_acceptance_opens_all() {
    let first = Site::postgres();
    let daemon = first.start();
    daemon.set("alice", "KEY", b"value");
    let second = beside(&first);
    assert_eq!(daemon.stop().code(), Some(0));
    first.keep_copy();
    let (one, two) = (first.start(), second.start());
    first.run_sql("UPDATE key_state SET generation = generation + 5");
    let noted =
        |site: &Site| std::fs::read_to_string(site.data_dir().join("node.json")).unwrap().contains("\"generation\":6");
    until(&one, "both have seen it", |_| noted(&first) && noted(&second));
    first.put_copy_back();
    for daemon in [&one, &two] {
        until(daemon, "it notices", |daemon| waiting_for(daemon).contains("containarium admin accept-restore"));
        assert_eq!(daemon.set("alice", "KEY", b"new").status, 503);
        assert_eq!(daemon.value("alice", "KEY").unwrap(), b"value");
    }
    let accepted = second.cli(["admin", "accept-restore", "--yes"], b"");
    assert!(accepted.status.success(), "{}", said(&accepted));
    for daemon in [&two, &one] {
        until(daemon, "it is ready", |daemon| daemon.get("/readyz").status == 200);
        assert_eq!(daemon.set("alice", "KEY", b"new").status, 200);
    }
}
