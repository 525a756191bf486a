//! A database that somebody changed: nothing that was moved, changed or removed is ever served as if it were right.

use super::on_both_stores;
use crate::support::site::Site;

on_both_stores![
    a_ciphertext_moved_to_another_place_is_refused,
    a_changed_ciphertext_is_refused_and_a_new_value_mends_it,
    a_dek_that_is_gone_is_not_made_anew_and_comes_back_by_repair,
    deks_exchanged_between_tenants_open_nothing,
    a_quarantined_dek_says_so_and_a_shredded_tenant_is_not_read,
    what_failed_inside_is_in_the_log_under_the_id_that_the_caller_was_told,
];

fn what_failed_inside_is_in_the_log_under_the_id_that_the_caller_was_told(site: &Site) {
    let daemon = site.start_with(site.command(["daemon", "--log-format", "json"]));
    daemon.set("alice", "KEY", b"one");
    site.run_sql(&format!("UPDATE secret_versions SET ciphertext = {}", site.sql_bytes(&[7; 100])));
    let answer = daemon.get("/v1/secrets/alice/KEY");
    refused(&answer);
    let id = &answer.headers["x-request-id"];
    let log = site.log();
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let cause = lines.iter().find(|line| line["message"].as_str().unwrap().starts_with(REFUSED)).unwrap();
    assert_eq!((&cause["span"]["id"], &cause["tenant"]), (&id.as_str().into(), &"alice".into()), "{log}");
    let answered = lines.iter().find(|line| line["message"] == format!("answered 500: {REFUSED}")).unwrap();
    assert_eq!(answered["request_id"], id.as_str(), "{log}");
    let output = site.cli(["secrets", "get", "alice", "KEY"], b"");
    let said = String::from_utf8(output.stderr).unwrap();
    let (_, id) = said.split_once("`journalctl -u containarium | grep ").unwrap_or_else(|| panic!("{said}"));
    let id = id.trim_end_matches("`\n");
    assert_eq!(site.log().matches(id).count(), 2, "the cause and the answer: {id}\n{}", site.log());
}

const REFUSED: &str = "ciphertext authentication failed";

fn refused(answer: &crate::support::site::Answer) {
    assert_eq!((answer.status, answer.json()["code"].as_u64()), (500, Some(13)), "{answer:?}");
    assert_eq!(answer.problem(), REFUSED);
}

fn a_ciphertext_moved_to_another_place_is_refused(site: &Site) {
    let daemon = site.start();
    for (tenant, name) in [("alice", "A"), ("alice", "B"), ("bob", "A")] {
        daemon.set(tenant, name, format!("{tenant} {name} 1").as_bytes());
        daemon.set(tenant, name, format!("{tenant} {name} 2").as_bytes());
    }
    let places =
        [("alice", "A", 1), ("alice", "A", 2), ("alice", "B", 1), ("alice", "B", 2), ("bob", "A", 1), ("bob", "A", 2)];
    site.run_sql("CREATE TABLE kept AS SELECT * FROM secret_versions");
    for (tenant, name, version) in places {
        for (from_tenant, from_name, from_version) in places {
            site.run_sql(&format!(
                "UPDATE secret_versions SET ciphertext = (SELECT k.ciphertext FROM kept k WHERE k.tenant = '{from_tenant}' \
                 AND k.name = '{from_name}' AND k.version = {from_version}) \
                 WHERE tenant = '{tenant}' AND name = '{name}' AND version = {version}"
            ));
            let answer = daemon.get(&format!("/v1/secrets/{tenant}/{name}?version={version}"));
            if (tenant, name, version) == (from_tenant, from_name, from_version) {
                assert_eq!(answer.value(), format!("{tenant} {name} {version}").as_bytes());
            } else {
                refused(&answer);
            }
        }
        site.run_sql(&format!(
            "UPDATE secret_versions SET ciphertext = (SELECT k.ciphertext FROM kept k WHERE k.tenant = '{tenant}' \
             AND k.name = '{name}' AND k.version = {version}) WHERE tenant = '{tenant}' AND name = '{name}' AND version = {version}"
        ));
    }
    for reason in ["malformed", "not committed to this key and place"] {
        assert!(site.log().contains(reason), "the log tells the operator which: {}", site.log());
    }
}

fn a_changed_ciphertext_is_refused_and_a_new_value_mends_it(site: &Site) {
    let daemon = site.start();
    daemon.set("alice", "KEY", b"one");
    daemon.set("alice", "KEY", b"two");
    let broken = site.sql_bytes(&[7; 100]);
    site.run_sql(&format!("UPDATE secret_versions SET ciphertext = {broken} WHERE tenant = 'alice' AND version = 2"));
    refused(&daemon.get("/v1/secrets/alice/KEY"));
    refused(&daemon.request("POST", "/v1/secrets/alice/batch-get", b""));
    let output = site.cli(["secrets", "get", "alice", "KEY"], b"");
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    assert!(String::from_utf8_lossy(&output.stderr).contains(REFUSED), "{output:?}");
    assert_eq!(daemon.get("/v1/secrets/alice/KEY?version=1").value(), b"one", "older versions still open");
    assert_eq!(daemon.set("alice", "KEY", b"two").json()["secret"]["version"], 3);
    assert_eq!(daemon.value("alice", "KEY").unwrap(), b"two");
}

fn a_dek_that_is_gone_is_not_made_anew_and_comes_back_by_repair(site: &Site) {
    let daemon = site.start();
    daemon.set("alice", "KEY", b"value");
    site.run_sql("CREATE TABLE kept AS SELECT * FROM deks");
    site.damage_sql("DELETE FROM deks WHERE tenant = 'alice'");
    refused(&daemon.get("/v1/secrets/alice/KEY"));
    refused(&daemon.set("alice", "OTHER", b"value"));
    assert!(site.log().contains("restore the table `deks`"), "{}", site.log());
    assert_eq!(site.number("SELECT count(*) FROM deks WHERE tenant = 'alice'"), 0, "no new DEK over old ciphertexts");
    site.damage_sql("INSERT INTO deks SELECT * FROM kept WHERE tenant = 'alice'");
    assert_eq!(daemon.value("alice", "KEY").unwrap(), b"value");
    assert_eq!(daemon.set("alice", "OTHER", b"value").status, 200);
}

fn deks_exchanged_between_tenants_open_nothing(site: &Site) {
    let daemon = site.start();
    daemon.set("alice", "KEY", b"alice's");
    daemon.set("bob", "KEY", b"bob's");
    let one = "SELECT wrapped FROM kept WHERE tenant =";
    site.run_sql("CREATE TABLE kept AS SELECT * FROM deks");
    site.damage_sql(&format!("UPDATE deks SET wrapped = ({one} 'bob') WHERE tenant = 'alice'"));
    site.damage_sql(&format!("UPDATE deks SET wrapped = ({one} 'alice') WHERE tenant = 'bob'"));
    assert_eq!(daemon.stop().code(), Some(0));
    let daemon = site.start();
    refused(&daemon.get("/v1/secrets/alice/KEY"));
    refused(&daemon.get("/v1/secrets/bob/KEY"));
    refused(&daemon.set("alice", "KEY", b"new"));
}

fn a_quarantined_dek_says_so_and_a_shredded_tenant_is_not_read(site: &Site) {
    let daemon = site.start();
    daemon.set("alice", "KEY", b"value");
    daemon.set("bob", "KEY", b"value");
    assert_eq!(daemon.value("bob", "KEY").unwrap(), b"value", "the cache is warm");
    site.run_sql("UPDATE deks SET state = 'quarantined' WHERE tenant = 'alice'");
    let answer = daemon.get("/v1/secrets/alice/KEY");
    assert_eq!((answer.status, answer.problem().as_str()), (500, "quarantined"));
    site.run_sql("UPDATE deks SET state = 'shredded', kid = NULL, wrapped = NULL WHERE tenant = 'bob'");
    refused(&daemon.get("/v1/secrets/bob/KEY"));
    site.run_sql("UPDATE tenants SET shred_at = 1 WHERE tenant = 'bob'");
    assert_eq!(daemon.get("/v1/secrets/bob/KEY").status, 403);
    assert_eq!(daemon.set("bob", "KEY", b"value").status, 403);
    assert_eq!(daemon.get("/v1/admin/tenants").json()["tenants"][1]["state"], "blocked");
}
