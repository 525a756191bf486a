//! `shred`: blocked at once, gone when its time has come.

use std::time::{Duration, Instant};

use serde_json::json;

use super::super::on_both_stores;
use super::{audited, dek_count, ended};
use crate::support::site::{Daemon, PATIENCE, Site};

on_both_stores![
    a_shred_asks_first_and_refuses_without_a_terminal,
    a_tenant_whose_shred_is_pending_is_blocked_and_comes_back_by_cancelling,
    a_shredded_tenant_cannot_be_read_from_a_warm_cache,
    a_shred_whose_time_came_while_the_daemon_was_away_is_done_at_its_start,
    a_pending_shred_can_be_done_now,
    the_date_at_which_it_is_final_comes_from_the_backups_retention,
    no_shred_is_done_while_the_keys_are_locked,
];

fn shred(daemon: &Daemon, tenant: &str, mode: &str) -> crate::support::site::Answer {
    let body = json!({ "username": tenant, "mode": mode });
    daemon.request("POST", "/v1/admin/shred", body.to_string().as_bytes())
}

fn wrappings(site: &Site, tenant: &str) -> i64 {
    site.number(&format!(
        "SELECT count(*) FROM deks d JOIN kept k ON d.wrapped = k.wrapped WHERE k.tenant = '{tenant}'"
    ))
}

fn a_shred_asks_first_and_refuses_without_a_terminal(site: &Site) {
    let daemon = site.start();
    daemon.set("alice", "KEY", b"one");
    for arguments in [vec!["admin", "shred", "alice"], vec!["admin", "shred", "alice", "--now"]] {
        let (_, err) = ended(&site.cli(&arguments, b"alice\n"), 2);
        assert!(err.contains("no terminal to ask on") && err.contains("--yes"), "{err}");
    }
    ended(&site.cli(["admin", "shred", "alice", "--now", "--cancel", "--yes"], b""), 2);
    assert_eq!(daemon.value("alice", "KEY").unwrap(), b"one");
    let (_, err) = ended(&site.cli(["admin", "shred", "_system", "--yes"], b""), 1);
    assert!(err.contains("the system's own"), "{err}");
    let (_, err) = ended(&site.cli(["admin", "shred", "nobody", "--yes", "--now"], b""), 3);
    assert!(err.contains("tenant nobody is unknown"), "{err}");
    let (_, err) = ended(&site.cli(["admin", "shred", "alice", "--cancel"], b""), 6);
    assert!(err.contains("no shred of tenant alice is pending"), "{err}");
}

fn a_tenant_whose_shred_is_pending_is_blocked_and_comes_back_by_cancelling(site: &Site) {
    let daemon = site.start();
    daemon.set("alice", "KEY", b"one");
    let generation = || site.number("SELECT generation FROM key_state");
    let before = generation();
    let (out, _) = ended(&site.cli(["admin", "shred", "alice", "--yes"], b""), 0);
    assert!(out.contains("blocked until") && out.contains("containarium admin shred alice --cancel"), "{out}");
    assert!(out.contains("unknown: [backup] database_retention"), "{out}");
    assert_eq!(generation(), before + 1);
    let log = std::fs::read_to_string(site.data_dir().join("critical.jsonl")).unwrap();
    assert!(log.contains("alice"), "this node remembers it: {log}");
    let days = "SELECT (shred_at - created_at) / 86400000000 FROM tenants WHERE tenant = 'alice'";
    assert_eq!(site.number(days), 7);
    assert_eq!(daemon.get("/v1/secrets/alice/KEY").status, 403);
    assert_eq!(daemon.set("alice", "KEY", b"two").status, 403);
    assert_eq!(dek_count(site, "alice", "active"), 1, "nothing is destroyed yet");
    let (out, _) = ended(&site.cli(["admin", "tenants"], b""), 0);
    assert!(out.contains("blocked until 20"), "{out}");
    let (_, err) = ended(&site.cli(["admin", "shred", "alice", "--yes"], b""), 6);
    assert!(err.contains("is pending until"), "{err}");
    let (out, _) = ended(&site.cli(["admin", "shred", "alice", "--cancel"], b""), 0);
    assert!(out.contains("active"), "{out}");
    assert_eq!(daemon.value("alice", "KEY").unwrap(), b"one");
    assert_eq!(daemon.set("alice", "KEY", b"two").status, 200);
    assert_eq!(audited(site, "admin.shred.schedule"), ["alice ok", "alice conflict"]);
    assert_eq!(audited(site, "admin.shred.cancel"), ["alice ok"]);
}

fn a_shredded_tenant_cannot_be_read_from_a_warm_cache(site: &Site) {
    let daemon = site.start();
    daemon.set("alice", "KEY", b"one");
    daemon.request("POST", "/v1/admin/rotate-dek", br#"{"username":"alice"}"#);
    daemon.set("alice", "KEY", b"two");
    daemon.set("bob", "KEY", b"bob's");
    site.run_sql("CREATE TABLE kept AS SELECT * FROM deks");
    assert_eq!(daemon.value("alice", "KEY").unwrap(), b"two", "the cache is warm");
    assert_eq!(wrappings(site, "alice"), 2);
    let cached = || daemon.get("/v1/admin/status").json()["cache"]["entries"].as_u64().unwrap();
    let before = cached();
    let (out, _) = ended(&site.cli(["admin", "shred", "alice", "--now", "--yes", "-o", "json"], b""), 0);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&json["tenant"]["state"], &json["message"]), (&json!("shredded"), &json!("tenant shredded")), "{json}");
    assert_eq!(cached(), before - 2, "its DEKs are not in memory either");
    for path in ["KEY", "KEY?version=1", "KEY/versions"] {
        assert_eq!(daemon.get(&format!("/v1/secrets/alice/{path}")).status, 403, "{path}");
    }
    assert_eq!(daemon.request("POST", "/v1/secrets/alice/batch-get", b"").status, 403);
    assert_eq!(daemon.set("alice", "NEW", b"three").status, 403, "the name stays reserved");
    assert_eq!((wrappings(site, "alice"), wrappings(site, "bob")), (0, 1), "the wrapped bytes are in no row");
    assert_eq!((dek_count(site, "alice", "shredded"), dek_count(site, "alice", "active")), (2, 0));
    // The rows alone decide, also where somebody takes the block away.
    site.damage_sql("UPDATE tenants SET shred_at = NULL, shredded_at = NULL WHERE tenant = 'alice'");
    assert_eq!(daemon.get("/v1/secrets/alice/KEY").problem(), "ciphertext authentication failed");
    site.damage_sql("UPDATE tenants SET shred_at = 1, shredded_at = 1 WHERE tenant = 'alice'");
    for mode in ["schedule", "now", "cancel"] {
        let answer = shred(&daemon, "alice", mode);
        assert!(answer.status == 409 && answer.problem().contains("nothing brings it back"), "{mode}: {answer:?}");
    }
    let (out, _) = ended(&site.cli(["admin", "tenants"], b""), 0);
    assert!(out.contains("shredded 1970-01-01"), "{out}");
    assert_eq!(daemon.value("bob", "KEY").unwrap(), b"bob's");
    let all = super::rotated(&daemon, &json!({ "all": true, "mode": "reencrypt" }));
    assert_eq!(all["blocked"], 1, "a rotation passes over it: {all}");
}

fn a_shred_whose_time_came_while_the_daemon_was_away_is_done_at_its_start(site: &Site) {
    let daemon = site.start();
    for tenant in ["alice", "bob", "carol"] {
        daemon.set(tenant, "KEY", b"one");
    }
    site.run_sql("CREATE TABLE kept AS SELECT * FROM deks");
    assert_eq!((shred(&daemon, "alice", "schedule").status, shred(&daemon, "bob", "schedule").status), (200, 200));
    assert_eq!(daemon.stop().code(), Some(0));
    site.run_sql("UPDATE tenants SET shred_at = 1000000 WHERE tenant = 'alice'");
    let daemon = site.start();
    until(|| audited(site, "admin.shred") == ["alice ok"]);
    assert_eq!((wrappings(site, "alice"), wrappings(site, "bob"), wrappings(site, "carol")), (0, 1, 1));
    assert_eq!(site.number("SELECT count(*) FROM tenants WHERE tenant = 'alice' AND shredded_at IS NOT NULL"), 1);
    assert_eq!(daemon.value("carol", "KEY").unwrap(), b"one");
    assert_eq!(shred(&daemon, "bob", "cancel").status, 200, "the other is still pending");
    assert_eq!(daemon.value("bob", "KEY").unwrap(), b"one");
}

fn a_pending_shred_can_be_done_now(site: &Site) {
    let daemon = site.start();
    daemon.set("alice", "KEY", b"one");
    assert_eq!(shred(&daemon, "alice", "schedule").status, 200);
    assert_eq!(dek_count(site, "alice", "active"), 1);
    assert_eq!(shred(&daemon, "alice", "now").json()["tenant"]["state"], "shredded");
    assert_eq!((dek_count(site, "alice", "active"), dek_count(site, "alice", "shredded")), (0, 1));
}

fn the_date_at_which_it_is_final_comes_from_the_backups_retention(site: &Site) {
    std::fs::write(site.config_file(), "[backup]\ndatabase_retention = \"35d\"\n").unwrap();
    let daemon = site.start();
    daemon.set("alice", "KEY", b"one");
    let micros = |text: &serde_json::Value| text.as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_microsecond();
    let pending = shred(&daemon, "alice", "schedule").json();
    let days = |json: &serde_json::Value, from: &str| {
        (micros(&json["finalAt"]) - micros(&json["tenant"][from])) / 86_400_000_000
    };
    assert_eq!(days(&pending, "shredAt"), 35, "{pending}");
    let done = shred(&daemon, "alice", "now").json();
    assert_eq!(days(&done, "shreddedAt"), 35, "{done}");
    assert_eq!(shred(&daemon, "nobody", "cancel").status, 404);
    let (out, _) = ended(&site.cli(["config", "show", "--config", &site.config_file().to_string_lossy()], b""), 0);
    let line = out.lines().find(|line| line.starts_with("backup.database_retention")).unwrap();
    assert_eq!(line.split_whitespace().nth(1), Some("35d"), "{out}");
}

fn no_shred_is_done_while_the_keys_are_locked(site: &Site) {
    let daemon = site.start();
    daemon.set("alice", "KEY", b"one");
    assert_eq!(shred(&daemon, "alice", "schedule").status, 200);
    assert_eq!(daemon.stop().code(), Some(0));
    site.run_sql("UPDATE tenants SET shred_at = 1000000 WHERE tenant = 'alice'");
    // A key that this database has retired is all that is left.
    let other = Site::sqlite();
    let kid = other.start().get("/v1/admin/status").json()["keys"]["activeKid"].as_str().unwrap().to_owned();
    let kid = site.sql_bytes(&data_encoding::HEXLOWER.decode(kid.as_bytes()).unwrap());
    site.run_sql(&format!("INSERT INTO master_keys (kid, state, created_at) VALUES ({kid}, 'retired', 1)"));
    std::fs::remove_dir_all(site.path("etc/secrets.key.d")).unwrap();
    std::fs::remove_file(site.key_file()).unwrap();
    std::fs::copy(other.key_file(), site.key_file()).unwrap();
    let mut daemon = site.start();
    daemon.told("STATUS=Waiting for keys");
    for _ in 0..20 {
        assert_eq!(daemon.get("/v1/admin/status").json()["keys"]["state"], "locked");
    }
    assert_eq!(dek_count(site, "alice", "active"), 1, "it would have been done at the start");
}

/// Waits for another process to have done something.
#[track_caller]
fn until(done: impl Fn() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "it never came");
        std::thread::sleep(Duration::from_millis(10));
    }
}
