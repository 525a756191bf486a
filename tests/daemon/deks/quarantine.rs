//! `quarantine`: a damaged DEK is set aside, and taken back once it is mended.

use serde_json::json;

use super::super::on_both_stores;
use super::{audited, dek_count, ended, rotated, sealed_under};
use crate::support::site::Site;

on_both_stores![
    a_dek_that_opens_is_not_quarantined,
    a_damaged_dek_is_set_aside_and_taken_back_when_it_is_mended,
    a_row_that_names_no_key_of_this_node_is_not_judged,
];

const ASIDE: [&str; 4] = ["admin", "quarantine", "alice", "1"];
const RELEASE: [&str; 5] = ["admin", "quarantine", "alice", "1", "--release"];

fn damage(site: &Site) {
    site.run_sql("CREATE TABLE kept AS SELECT * FROM deks");
    let broken = site.sql_bytes(&[7; 132]);
    site.run_sql(&format!("UPDATE deks SET wrapped = {broken} WHERE tenant = 'alice'"));
}

fn mend(site: &Site) {
    site.run_sql("UPDATE deks SET wrapped = (SELECT k.wrapped FROM kept k WHERE k.tenant = 'alice') WHERE tenant = 'alice' AND dek_version = 1");
}

fn a_dek_that_opens_is_not_quarantined(site: &Site) {
    let daemon = site.start();
    daemon.set("alice", "KEY", b"one");
    let (_, err) = ended(&site.cli(ASIDE, b""), 6);
    assert!(
        err.contains("DEK version 1 of tenant alice opens with master key") && err.contains("not set aside"),
        "{err}"
    );
    let (_, err) = ended(&site.cli(RELEASE, b""), 6);
    assert!(err.contains("DEK version 1 of tenant alice is active"), "{err}");
    let (_, err) = ended(&site.cli(["admin", "quarantine", "alice", "2"], b""), 3);
    assert!(err.contains("there is no DEK version 2 of tenant alice"), "{err}");
    ended(&site.cli(["admin", "quarantine", "alice", "0"], b""), 2);
    assert_eq!(daemon.value("alice", "KEY").unwrap(), b"one");
    assert_eq!(dek_count(site, "alice", "active"), 1);
    ended(&site.cli(["admin", "quarantine", "_system", "1"], b""), 6);
    assert_eq!(audited(site, "admin.quarantine"), ["alice conflict", "alice not_found", "_system conflict"]);
}

fn a_damaged_dek_is_set_aside_and_taken_back_when_it_is_mended(site: &Site) {
    let daemon = site.start();
    daemon.set("alice", "KEY", b"one");
    assert_eq!(daemon.value("alice", "KEY").unwrap(), b"one", "the cache is warm");
    damage(site);
    // Past the cache, which would still open it.
    let (out, _) = ended(&site.cli(ASIDE, b""), 0);
    assert!(out.contains("quarantined"), "{out}");
    let answer = daemon.get("/v1/secrets/alice/KEY");
    assert_eq!((answer.status, answer.problem().as_str()), (500, "quarantined"));
    let (_, err) = ended(&site.cli(ASIDE, b""), 6);
    assert!(err.contains("is quarantined"), "{err}");
    let (_, err) = ended(&site.cli(RELEASE, b""), 6);
    assert!(err.contains("does not open with any master key that is here"), "{err}");
    assert_eq!(dek_count(site, "alice", "quarantined"), 1, "still set aside");
    // Life goes on under a new one.
    assert_eq!(daemon.set("alice", "NEW", b"two").status, 200);
    let done = rotated(&daemon, &json!({ "username": "alice", "mode": "reencrypt" }));
    assert_eq!((done["quarantined"].as_u64(), done["reencrypted"].as_u64()), (Some(1), Some(1)), "{done}");
    assert_eq!(sealed_under(site, "alice", 1), 1, "nothing of it is deleted");
    mend(site);
    let (out, _) = ended(&site.cli(RELEASE, b""), 0);
    assert!(out.contains("decrypt_only"), "another is active by now: {out}");
    assert_eq!(daemon.value("alice", "KEY").unwrap(), b"one");
    assert_eq!(daemon.value("alice", "NEW").unwrap(), b"two");
    assert_eq!(rotated(&daemon, &json!({ "username": "alice", "mode": "resume" }))["removed"], 1);
    assert_eq!(daemon.value("alice", "KEY").unwrap(), b"one");
    assert_eq!(audited(site, "admin.quarantine.release"), ["alice conflict", "alice ok"]);
}

fn a_row_that_names_no_key_of_this_node_is_not_judged(site: &Site) {
    let daemon = site.start();
    daemon.set("alice", "KEY", b"one");
    let other = site.sql_bytes(&[9; 16]);
    site.run_sql(&format!("INSERT INTO master_keys (kid, state, created_at) VALUES ({other}, 'decrypt_only', 1)"));
    // PostgreSQL's triggers are off while it is damaged.
    if site.database_url().is_none() {
        site.run_sql("DROP TRIGGER deks_update_under_active_kid");
    }
    site.damage_sql(&format!("UPDATE deks SET kid = {other} WHERE tenant = 'alice'"));
    let (_, err) = ended(&site.cli(ASIDE, b""), 5);
    assert!(err.contains(&"09".repeat(16)) && err.contains("install-key"), "{err}");
    assert_eq!(dek_count(site, "alice", "active"), 1);
    // A key that nobody has any more is damage, and the key that does open it is found.
    if site.database_url().is_none() {
        site.run_sql("DROP TRIGGER master_keys_in_use");
    }
    site.damage_sql("UPDATE master_keys SET state = 'destroyed' WHERE created_at = 1");
    ended(&site.cli(ASIDE, b""), 0);
    assert_eq!(daemon.get("/v1/secrets/alice/KEY").problem(), "quarantined");
    let (out, _) = ended(&site.cli(RELEASE, b""), 0);
    assert!(out.contains("active"), "{out}");
    assert_eq!(daemon.value("alice", "KEY").unwrap(), b"one");
    assert_eq!(
        site.number("SELECT count(*) FROM deks d JOIN key_state s ON d.kid = s.active_kid WHERE d.tenant = 'alice'"),
        1
    );
}
