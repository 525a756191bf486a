//! Re-encryption: everything moves, nothing changes, and nothing stops it for good.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use super::super::on_both_stores;
use super::{audited, dek_count, ended, following, post, reencrypt, rotated, row, sealed_under};
use crate::support::site::{Daemon, Site};

on_both_stores![
    every_version_of_every_secret_moves_and_the_old_dek_goes,
    of_the_old_deks_nothing_is_left_in_the_database,
    a_kill_in_the_middle_loses_nothing_and_a_second_call_goes_on,
    writes_and_reads_go_on_throughout,
    a_version_that_does_not_open_is_named_and_left,
    a_dek_that_does_not_open_is_named_and_left,
    a_tenant_whose_deks_are_missing_is_named_and_keeps_no_other_from_its_turn,
];

/// Secrets of 2 KiB each, in batches.
pub(super) fn many(daemon: &Daemon, tenant: &str, count: usize) {
    let value = "x".repeat(2 * 1024);
    let names: Vec<usize> = (0..count).collect();
    for names in names.chunks(80) {
        let secrets: Vec<_> = names
            .iter()
            .map(|number| json!({ "name": format!("S{number}"), "value": format!("{number} {value}") }))
            .collect();
        let body = json!({ "secrets": secrets }).to_string();
        let answer = daemon.request("POST", &format!("/v1/secrets/{tenant}/batch-set"), body.as_bytes());
        assert_eq!(answer.status, 200, "{:?}", String::from_utf8_lossy(&answer.body));
    }
}

fn every_version_of_every_secret_moves_and_the_old_dek_goes(site: &Site) {
    let daemon = site.start();
    for number in 1..=300 {
        daemon.set("alice", &format!("S{}", number % 60), format!("value {number}").as_bytes());
    }
    daemon.set("alice", "EMPTY", b"");
    daemon.set("alice", "GONE", b"gone");
    daemon.request("DELETE", "/v1/secrets/alice/GONE", b"");
    daemon.request("POST", "/v1/secrets/alice/S1/destroy", br#"{"versions":[1]}"#);
    daemon.set("bob", "KEY", b"bob's");
    let live = sealed_under(site, "alice", 1);
    assert_eq!(live, 301);
    site.run_sql("CREATE TABLE kept AS SELECT name, version, ciphertext FROM secret_versions");
    let updated_at = "SELECT CAST(sum(updated_at % 1000003) AS BIGINT) FROM secrets";
    let before = site.number(updated_at);
    assert_eq!(daemon.value("alice", "S1").unwrap(), b"value 241", "the cache is warm");

    let (out, _) = ended(&site.cli(["admin", "rotate-dek", "alice", "--reencrypt"], b""), 0);
    assert_eq!(row(&out, "versions re-encrypted"), live.to_string());
    assert_eq!(row(&out, "old DEKs removed"), "1");
    assert_eq!((sealed_under(site, "alice", 1), sealed_under(site, "alice", 2)), (0, live));
    assert_eq!(site.number("SELECT count(*) FROM deks WHERE tenant = 'alice' AND dek_version = 1"), 0);
    let same =
        "SELECT count(*) FROM secret_versions v JOIN kept k ON v.ciphertext = k.ciphertext WHERE v.tenant = 'alice'";
    assert_eq!(site.number(same), 0, "no old blob is left");
    assert_eq!(site.number(updated_at), before, "to a reader nothing changed");
    assert_eq!(sealed_under(site, "bob", 1), 1, "another tenant's are not touched");
    for number in 1..=300 {
        if number == 1 {
            continue;
        }
        let path = format!("/v1/secrets/alice/S{}?version={}", number % 60, (number - 1) / 60 + 1);
        assert_eq!(daemon.get(&path).value(), format!("value {number}").as_bytes(), "{path}");
    }
    assert_eq!(daemon.value("alice", "EMPTY").unwrap(), b"");
    assert_eq!(daemon.set("alice", "S1", b"value 241").json()["message"], "secret unchanged at version 5");
    daemon.request("POST", "/v1/secrets/alice/GONE/undelete", b"");
    assert_eq!(daemon.value("alice", "GONE").unwrap(), b"gone");
    assert_eq!(audited(site, "admin.reencrypt"), ["alice ok"]);
    assert_eq!(daemon.stop().code(), Some(0));
    assert_eq!(site.start().value("alice", "S1").unwrap(), b"value 241", "after a restart too");
}

fn of_the_old_deks_nothing_is_left_in_the_database(site: &Site) {
    let daemon = site.start();
    for number in 1..=20 {
        daemon.set("alice", "KEY", format!("value {number}").as_bytes());
    }
    assert_eq!(rotated(&daemon, &json!({ "all": true, "mode": "reencrypt" }))["removed"], 2);
    assert_eq!(daemon.stop().code(), Some(0));
    if site.database_url().is_some() {
        // PostgreSQL keeps dead rows until it is vacuumed, which the documentation says.
        return;
    }
    // Type, and the DEK's version (docs/envelope-format.md).
    let sealed_under = |version: u8| [0x02, 0x01, b'S', 0x00, 0, 0, 0, version];
    let count = |needle: &[u8]| {
        let files = site.files().into_iter().filter(|(path, _)| path.to_string_lossy().contains("containarium.db"));
        files.map(|(_, bytes)| bytes.windows(needle.len()).filter(|window| *window == needle).count()).sum::<usize>()
    };
    assert_eq!(count(&sealed_under(1)), 0, "old blobs are overwritten, pruned ones too");
    assert_eq!(count(&sealed_under(2)), 12);
    assert_eq!(count(&[0x02, 0x01, b'W', 0x00]), 2, "so are the old DEKs");
}

fn a_kill_in_the_middle_loses_nothing_and_a_second_call_goes_on(site: &Site) {
    let daemon = site.start();
    many(&daemon, "alice", 640);
    let mut lines = following(&daemon, &post("/v1/admin/rotate-dek", &reencrypt("alice")));
    assert!(lines.any(|line| line["done"].as_u64() > Some(0)));
    daemon.kill();
    let (old, new) = (sealed_under(site, "alice", 1), sealed_under(site, "alice", 2));
    assert!(old > 0 && new > 0 && old + new == 640, "killed in the middle: {old} {new}");
    let daemon = site.start();
    for number in (0..640).step_by(9) {
        let value = daemon.value("alice", &format!("S{number}")).unwrap();
        assert!(value.starts_with(format!("{number} xxx").as_bytes()), "S{number}");
    }
    // Called as before: a third DEK, and both old ones go.
    let done = rotated(&daemon, &reencrypt("alice"));
    assert_eq!((done["reencrypted"].as_u64(), done["removed"].as_u64()), (Some(640), Some(2)), "{done}");
    assert_eq!((sealed_under(site, "alice", 3), dek_count(site, "alice", "decrypt_only")), (640, 0));
    assert_eq!(rotated(&daemon, &json!({ "username": "alice", "mode": "resume" }))["reencrypted"], 0);
    assert!(daemon.value("alice", "S639").unwrap().starts_with(b"639 xxx"));
}

fn writes_and_reads_go_on_throughout(site: &Site) {
    let daemon = site.start();
    daemon.set("alice", "FIRST", b"x");
    let ended = AtomicBool::new(false);
    let rounds = std::thread::scope(|scope| {
        let (daemon, ended) = (&daemon, &ended);
        let users: Vec<_> = (0..3)
            .map(|user| {
                scope.spawn(move || {
                    let name = format!("COUNTER_{user}");
                    let mut number = 0_u32;
                    while !ended.load(Ordering::SeqCst) {
                        number += 1;
                        let answer = daemon.set("alice", &name, number.to_string().as_bytes());
                        assert_eq!(answer.json()["secret"]["version"], number, "no gap, no twin");
                        assert_eq!(daemon.value("alice", &name).unwrap(), number.to_string().as_bytes());
                    }
                    number
                })
            })
            .collect();
        for _ in 0..40 {
            let done = rotated(daemon, &reencrypt("alice"));
            assert_eq!(done["rotated"], 1, "{done}");
        }
        ended.store(true, Ordering::SeqCst);
        users.into_iter().map(|user| user.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(rounds.iter().all(|rounds| *rounds > 1), "{rounds:?}");
    rotated(&daemon, &reencrypt("alice"));
    assert_eq!((dek_count(site, "alice", "active"), dek_count(site, "alice", "decrypt_only")), (1, 0));
    for (user, number) in rounds.iter().enumerate() {
        assert_eq!(daemon.value("alice", &format!("COUNTER_{user}")).unwrap(), number.to_string().as_bytes());
    }
}

fn a_version_that_does_not_open_is_named_and_left(site: &Site) {
    let daemon = site.start();
    for number in 1..=200 {
        daemon.set("alice", &format!("S{}", number % 40), format!("{number}").as_bytes());
    }
    let broken = site.sql_bytes(&[7; 200]);
    site.run_sql(&format!(
        "UPDATE secret_versions SET ciphertext = {broken} WHERE tenant = 'alice' AND name = 'S7' AND version = 2"
    ));
    let (out, err) = ended(&site.cli(["admin", "rotate-dek", "alice", "--reencrypt"], b""), 1);
    assert_eq!(out, "");
    for words in ["1 versions do not open", "alice/S7 version 2", "199 versions re-encrypted", "--resume"] {
        assert!(err.contains(words), "{words}: {err}");
    }
    assert!(site.log().contains("the version stays under DEK version 1"), "{}", site.log());
    assert_eq!((sealed_under(site, "alice", 1), sealed_under(site, "alice", 2)), (1, 199), "nothing is lost");
    let kept = format!(
        "SELECT count(*) FROM secret_versions WHERE dek_version = 1 AND tenant = 'alice' AND ciphertext = {broken}"
    );
    assert_eq!(site.number(&kept), 1, "not even what is broken");
    assert_eq!(dek_count(site, "alice", "decrypt_only"), 1, "its DEK stays");
    assert_eq!(daemon.value("alice", "S7").unwrap(), b"167");
    daemon.request("POST", "/v1/secrets/alice/S7/destroy", br#"{"versions":[2]}"#);
    let (out, _) = ended(&site.cli(["admin", "rotate-dek", "alice", "--resume"], b""), 0);
    assert_eq!(row(&out, "old DEKs removed"), "1");
    assert_eq!(dek_count(site, "alice", "decrypt_only"), 0);
}

fn a_dek_that_does_not_open_is_named_and_left(site: &Site) {
    let daemon = site.start();
    daemon.set("alice", "OLD", b"one");
    daemon.set("bob", "KEY", b"bob's");
    site.run_sql("CREATE TABLE kept AS SELECT * FROM deks");
    assert_eq!(daemon.stop().code(), Some(0));
    let broken = site.sql_bytes(&[7; 132]);
    site.run_sql(&format!("UPDATE deks SET wrapped = {broken} WHERE tenant = 'alice'"));
    let daemon = site.start();
    let (_, err) = ended(&site.cli(["admin", "rotate-dek", "--all", "--reencrypt"], b""), 1);
    assert!(err.contains("DEK version 1 of tenant alice, which sealed 1 versions"), "{err}");
    assert_eq!(sealed_under(site, "bob", 2), 1, "it keeps no other tenant from its turn");
    assert_eq!(daemon.set("alice", "NEW", b"two").status, 200, "what is new goes under the new DEK");
    assert_eq!((sealed_under(site, "alice", 1), dek_count(site, "alice", "decrypt_only")), (1, 1));
    site.run_sql("UPDATE deks SET wrapped = (SELECT k.wrapped FROM kept k WHERE k.tenant = 'alice') WHERE tenant = 'alice' AND dek_version = 1");
    assert_eq!(rotated(&daemon, &json!({ "all": true, "mode": "resume" }))["reencrypted"], 1);
    assert_eq!(daemon.value("alice", "OLD").unwrap(), b"one");
}

fn a_tenant_whose_deks_are_missing_is_named_and_keeps_no_other_from_its_turn(site: &Site) {
    let daemon = site.start();
    daemon.set("alice", "KEY", b"one");
    daemon.set("bob", "KEY", b"bob's");
    site.run_sql("CREATE TABLE kept AS SELECT * FROM deks");
    site.damage_sql("DELETE FROM deks WHERE tenant = 'alice'");
    let (_, err) = ended(&site.cli(["admin", "rotate-dek", "--all", "--reencrypt"], b""), 1);
    assert!(err.contains("1 tenants failed") && err.contains("tenant alice: it has secrets"), "{err}");
    assert_eq!((sealed_under(site, "bob", 2), dek_count(site, "alice", "active")), (1, 0), "nothing is made over them");
    site.damage_sql("INSERT INTO deks SELECT * FROM kept WHERE tenant = 'alice'");
    assert_eq!(rotated(&daemon, &json!({ "all": true, "mode": "reencrypt" }))["reencrypted"], 4);
    assert_eq!(daemon.value("alice", "KEY").unwrap(), b"one");
}
