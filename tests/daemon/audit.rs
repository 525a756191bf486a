//! The audit trail, over the real binary and on both stores.

use std::time::Instant;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{on_both_stores, tokens};
use crate::support::site::{Daemon, PATIENCE, Site};

on_both_stores!(
    a_change_lies_in_the_database_with_its_record_and_is_linked_within_a_second,
    a_token_that_is_made_or_revoked_is_named_by_the_record_in_the_changes_transaction,
    whoever_asks_over_tcp_is_recorded_with_their_address,
    strangers_are_counted_by_address_and_second,
    a_daemon_that_stops_leaves_no_record_without_its_place,
    a_start_goes_on_after_the_one_before_it,
    a_whole_trail_verifies_with_the_daemon_and_without_it,
    what_is_done_to_the_file_is_found,
    what_is_done_to_the_database_is_found,
    a_record_taken_out_from_under_a_running_daemon_is_missed_and_the_hole_is_never_closed,
    a_head_that_was_set_back_under_a_running_daemon_is_refused,
    what_is_cut_off_the_table_with_its_head_while_no_daemon_runs_is_found_by_the_file,
    a_token_that_was_revoked_and_put_back_is_found,
    what_is_older_than_it_is_kept_for_is_removed_and_the_trail_stays_whole,
    a_file_with_a_hole_does_not_go_by_age,
    a_start_that_was_taken_out_whole_with_its_heads_is_found_by_the_next,
    an_old_row_of_a_secret_put_back_is_found,
    a_trail_verifies_after_an_older_database_was_put_back_and_accepted,
    names_of_a_batch_that_are_not_there_share_a_record,
    records_are_found_by_what_they_say,
    records_are_copied_into_the_log_where_that_is_asked_for,
);

/// Waits until no record waits for its place.
fn linked(site: &Site) {
    let begun = Instant::now();
    while site.number("SELECT count(*) FROM audit WHERE position IS NULL") > 0 {
        assert!(begun.elapsed() < PATIENCE, "records are not linked:\n{}", site.log());
        std::thread::yield_now();
    }
}

fn a_change_lies_in_the_database_with_its_record_and_is_linked_within_a_second(site: &Site) {
    site.record_in_the_file();
    let daemon = site.start();
    daemon.set("alice", "KEY", b"one");
    daemon.set("alice", "KEY", b"two");
    daemon.set("alice", "KEY", b"two");
    daemon.request("POST", "/v1/secrets/alice/KEY/destroy", br#"{"versions":[1]}"#);
    daemon.request("DELETE", "/v1/secrets/alice/KEY", b"");
    daemon.request("DELETE", "/v1/secrets/alice/KEY", b"");
    let shown: Vec<String> = site
        .audit()
        .iter()
        .map(|r| format!("{} {} {}", r["action"].as_str().unwrap(), r["version"], r["outcome"].as_str().unwrap()))
        .collect();
    assert_eq!(
        shown,
        [
            "secret.set 1 ok",
            "secret.set 2 ok",
            "secret.set 2 ok",
            "secret.destroy 1 ok",
            "secret.delete 2 ok",
            "secret.delete null not_found"
        ]
    );
    assert_eq!(site.audit_lines().len(), 2, "what changed nothing is the file's");
    let hex = if site.is_postgres() { "encode(ciphertext, 'hex')" } else { "lower(hex(ciphertext))" };
    let blob = site.texts(&format!("SELECT {hex} FROM secret_versions WHERE tenant = 'alice' AND version = 2"));
    let blob = data_encoding::HEXLOWER.decode(blob[0].as_bytes()).unwrap();
    assert_eq!(site.audit()[1]["blobSha256"], data_encoding::HEXLOWER.encode(&Sha256::digest(&blob)));
    linked(site);
    assert_eq!(site.number("SELECT max(position) FROM audit"), 5, "the beginning and four changes");
    let head = "SELECT count(*) FROM audit_chains c JOIN audit a ON a.boot_id = c.boot_id \
                AND a.position = c.position AND a.link = c.link WHERE c.kind = 'table'";
    assert_eq!(site.number(head), 1);
    headed(site);
    assert_eq!(daemon.stop().code(), Some(0));
}

fn a_token_that_is_made_or_revoked_is_named_by_the_record_in_the_changes_transaction(site: &Site) {
    site.record_in_the_file();
    let daemon = site.start();
    let ids: Vec<String> = (0..3).map(|_| tokens::make(&daemon, &json!({})).1).collect();
    let revoke = |order: Value| {
        let answer = daemon.request("POST", "/v1/admin/tokens/revoke", order.to_string().as_bytes());
        assert_eq!(answer.status, 200, "{answer:?}");
    };
    revoke(json!({ "id": ids[0] }));
    revoke(json!({ "all": true }));
    let rows = |action: &str| {
        let text = if site.is_postgres() { "convert_from(record, 'UTF8')" } else { "CAST(record AS TEXT)" };
        let rows = site.texts(&format!("SELECT {text} FROM audit WHERE action = '{action}' ORDER BY record_no"));
        let id = |row: &String| serde_json::from_str::<Value>(row).unwrap()["token"].as_str().unwrap().to_owned();
        rows.iter().map(id).collect::<Vec<_>>()
    };
    assert_eq!(rows("token.create"), ids);
    let mut others = ids[1..].to_vec();
    others.sort();
    assert_eq!(rows("token.revoke"), [&ids[..1], &others].concat(), "each of them is named");
    assert_eq!(site.audit_lines(), Vec::<String>::new(), "no call has a second record");
    // What changes nothing is the file's, and names what was asked for.
    revoke(json!({ "id": ids[0] }));
    let lines = site.audit_lines();
    assert!(lines.len() == 1 && lines[0].contains(&format!(r#""token":"{}","outcome":"ok""#, ids[0])), "{lines:?}");
    assert_eq!(rows("token.revoke").len(), 3);
    headed(site);
    whole(site);
    assert_eq!(daemon.stop().code(), Some(0));
}

fn whoever_asks_over_tcp_is_recorded_with_their_address(site: &Site) {
    let daemon = tokens::start(site);
    let (token, id) = tokens::make(&daemon, &json!({ "allow": ["read", "write"] }));
    assert_eq!(tokens::ask(site, &token, "PUT", "/v1/secrets/alice/KEY", r#"{"value":"1"}"#).status, 200);
    assert_eq!(tokens::ask(site, &token, "GET", "/v1/secrets/alice/KEY", "").status, 200);
    assert_eq!(tokens::ask(site, &token, "GET", "/v1/secrets/bob/KEY", "").status, 403);
    assert_eq!(daemon.get("/v1/secrets/alice/KEY").status, 200);
    let shown: Vec<Value> = site
        .audit()
        .iter()
        .map(|record| json!([record["identity"], record["address"], record["action"], record["outcome"]]))
        .collect();
    let who = format!("token:{id}");
    assert_eq!(
        shown,
        [
            json!(["uid:0", null, "token.create", "ok"]),
            json!([who, "127.0.0.1", "secret.set", "ok"]),
            json!([who, "127.0.0.1", "secret.get", "ok"]),
            json!([who, "127.0.0.1", "secret.get", "denied"]),
            json!(["uid:0", null, "secret.get", "ok"]),
        ]
    );
}

fn strangers_are_counted_by_address_and_second(site: &Site) {
    const CALLERS: u64 = 32;
    const CALLS_EACH: u64 = 8;
    site.record_in_the_file();
    let daemon = tokens::start(site);
    let guess = containarium::access::make_token().unwrap().text.to_string();
    let headers = [("authorization", &*format!("Bearer {guess}"))];
    assert_eq!(daemon.request_with("GET", "/v1/secrets/alice/KEY", &headers, b"").status, 401);
    let first: Value = serde_json::from_str(&site.audit_lines()[0]).unwrap();
    let uid = format!("uid:{}", rustix::process::geteuid().as_raw());
    // Not as that user: nobody was let in as anybody.
    let expected = json!([uid, null, "authenticate", "alice", "KEY", "denied"]);
    let shown = |r: &Value| json!([r["identity"], r["address"], r["action"], r["tenant"], r["name"], r["outcome"]]);
    assert_eq!(shown(&first), expected);

    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..CALLERS {
            scope.spawn(|| {
                for (method, path) in
                    [("GET", "/v1/secrets/alice/KEY"), ("GET", "/v1/secrets/bob")].iter().cycle().take(8)
                {
                    assert_eq!(tokens::ask(site, &guess, method, path, "").status, 401);
                }
            });
        }
    });
    let most = 5 * (begun.elapsed().as_secs() + 2);
    let lines = site.audit_lines().split_off(1);
    let records: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let is_strangers = |r: &Value| {
        (&r["identity"], &r["address"], &r["action"])
            == (&json!("unknown"), &json!("127.0.0.1"), &json!("authenticate"))
    };
    assert!(records.iter().all(is_strangers), "{lines:?}");
    assert!(!lines.concat().contains(&guess), "a guess may be nearly right");
    let counted: u64 = records.iter().map(|record| record["count"].as_u64().unwrap_or(1)).sum();
    assert_eq!(counted, CALLERS * CALLS_EACH, "each is counted: {lines:?}");
    assert!(lines.len() as u64 <= most, "{} lines, of which {most} would be enough: {lines:?}", lines.len());
    headed(site);
    whole(site);
}

fn a_daemon_that_stops_leaves_no_record_without_its_place(site: &Site) {
    for _ in 0..3 {
        let daemon = site.start();
        daemon.set("alice", "KEY", b"one");
        daemon.get("/v1/secrets/alice/KEY");
        assert_eq!(daemon.stop().code(), Some(0));
        assert_eq!(site.number("SELECT count(*) FROM audit WHERE position IS NULL"), 0);
        assert_eq!(site.number(&heads_of_the_files_end(site)), 1, "what is cut off while no daemon runs is missed");
    }
    whole(site);
}

fn a_start_goes_on_after_the_one_before_it(site: &Site) {
    let mut daemon = site.start();
    for number in 0..3 {
        daemon.set("alice", "KEY", format!("value {number}").as_bytes());
        daemon.kill();
        daemon = site.start();
    }
    linked(site);
    // Each start but the first is linked to the end of the one before it, whatever was unlinked when that was killed.
    let follows = "SELECT count(*) FROM audit_chains c JOIN audit_chains p ON p.boot_id = c.previous_boot_id \
                   AND p.kind = c.kind AND p.link = c.previous_link WHERE c.kind = 'table'";
    assert_eq!(site.number(follows), 3);
    assert_eq!(site.number("SELECT count(*) FROM audit_chains WHERE kind = 'table' AND previous_boot_id IS NULL"), 1);
    assert_eq!(daemon.stop().code(), Some(0));
}

/// Exit code, and what was found.
fn verify(site: &Site, more: &[&str]) -> (Option<i32>, Vec<String>) {
    let output = site.cli(["audit", "verify", "-o", "json"].iter().chain(more), b"");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let said: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{output:?}"));
    let found = said["findings"].as_array().unwrap().iter();
    let found: Vec<String> = found.map(|f| format!("{}: {}", f["place"], f["what"])).collect();
    assert_eq!(said["ok"], found.is_empty());
    (output.status.code(), found)
}

#[track_caller]
fn whole(site: &Site) {
    assert_eq!(verify(site, &[]), (Some(0), vec![]));
}

/// Exactly one finding, which says this.
#[track_caller]
fn finds(site: &Site, what: &str) {
    let (code, found) = verify(site, &[]);
    assert!(code == Some(1) && found.len() == 1 && found[0].contains(what), "{what:?} is not {found:?}");
}

/// A daemon with some reads and changes, heads entered.
fn used(site: &Site) -> Daemon {
    let daemon = site.start();
    daemon.set("alice", "KEY", b"one");
    daemon.set("alice", "KEY", b"two");
    daemon.set("bob", "KEY", b"three");
    for _ in 0..3 {
        daemon.get("/v1/secrets/alice/KEY");
    }
    headed(site);
    daemon
}

/// Waits until the heads are those of what was written.
fn headed(site: &Site) {
    linked(site);
    let begun = Instant::now();
    // Looked for anew: the file goes on by itself where the table did.
    while site.number(&heads_of_the_files_end(site)) == 0 {
        assert!(begun.elapsed() < PATIENCE, "the file's head is not entered");
        std::thread::yield_now();
    }
}

/// Counts the heads that are the last record of the file.
fn heads_of_the_files_end(site: &Site) -> String {
    let lines = std::fs::read_to_string(site.data_dir().join("audit.jsonl")).unwrap();
    let last: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    format!(
        "SELECT count(*) FROM audit_chains WHERE kind = 'file' AND boot_id = '{}' AND position = {}",
        last["boot"].as_str().unwrap(),
        last["n"]
    )
}

fn a_whole_trail_verifies_with_the_daemon_and_without_it(site: &Site) {
    let daemon = used(site);
    whole(site);
    let rotated = site.cli(["admin", "rotate-dek", "alice", "--reencrypt"], b"");
    assert_eq!(rotated.status.code(), Some(0), "{rotated:?}");
    daemon.request("POST", "/v1/secrets/alice/KEY/destroy", br#"{"versions":[1]}"#);
    whole(site);
    daemon.kill();
    let daemon = site.start();
    daemon.get("/v1/secrets/alice/KEY");
    headed(site);
    whole(site);
    assert_eq!(daemon.stop().code(), Some(0));
    whole(site);
}

fn what_is_done_to_the_file_is_found(site: &Site) {
    site.record_in_the_file();
    let daemon = used(site);
    assert_eq!(daemon.stop().code(), Some(0));
    let file = site.data_dir().join("audit.jsonl");
    let text = std::fs::read_to_string(&file).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    // The beginning, three reads, and how far the other chain had come.
    let all = lines.len();
    assert!((5..=8).contains(&all), "{text}");
    let joined = |lines: &[&str]| lines.join("\n") + "\n";
    let cut = format!("its chain was cut: it has {} records, and had {all}", all - 1);
    let cases = [
        ("was changed", text.replacen("alice", "alicf", 1)),
        ("records 3 to 3 were removed", joined(&[&lines[..2], &lines[3..]].concat())),
        ("records 2 to 2 were removed", joined(&[&lines[..1], &[lines[2], lines[1]], &lines[3..]].concat())),
        ("those before it are missing", joined(&lines[1..])),
        (&*cut, joined(&lines[..all - 1])),
        ("is no record of a chain", format!("{text}{{}}\n")),
        ("the file is missing", String::new()),
    ];
    for (what, changed) in cases {
        std::fs::write(&file, changed).unwrap();
        finds(site, what);
    }
    // A file that was moved away is given by its path.
    let moved = site.path("moved.jsonl");
    std::fs::write(&moved, &text).unwrap();
    std::fs::remove_file(&file).unwrap();
    finds(site, "the file is missing");
    assert_eq!(verify(site, &["--file", moved.to_str().unwrap()]), (Some(0), vec![]));
}

/// As JSON: the nodes that were not looked at.
fn not_looked_at(site: &Site, more: &[&str]) -> Vec<Value> {
    let output = site.cli(["audit", "verify", "-o", "json"].iter().chain(more), b"");
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((said["ok"].as_bool(), output.status.code()), (Some(true), Some(0)), "{said}");
    assert!(said["cannotBeFound"].as_str().unwrap().contains("within a second"));
    said["notLookedAt"].as_array().unwrap().clone()
}

#[test]
fn another_nodes_file_that_was_not_given_is_not_looked_at_and_named() {
    let first = Site::postgres();
    first.record_in_the_file();
    let one = first.start();
    one.set("alice", "KEY", b"value");
    let second = super::nodes::beside(&first);
    second.record_in_the_file();
    let two = second.start();
    assert_eq!(two.value("alice", "KEY").unwrap(), b"value");
    headed(&first);
    headed(&second);
    let found = not_looked_at(&first, &[]);
    let id = first.texts("SELECT node_id FROM nodes ORDER BY seen_at").len();
    assert_eq!((found.len(), id), (1, 2), "{found:?}");
    assert!(found[0]["what"].as_str().unwrap().contains("--file"), "{found:?}");
    let file = second.data_dir().join("audit.jsonl");
    assert_eq!(not_looked_at(&first, &["--file", file.to_str().unwrap()]), Vec::<Value>::new());
    assert_eq!((one.stop().code(), two.stop().code()), (Some(0), Some(0)));
}

#[test]
fn a_chain_key_that_one_node_renewed_is_taken_by_the_others() {
    let first = Site::postgres();
    first.record_in_the_file();
    let one = first.start();
    one.set("alice", "KEY", b"value");
    let second = super::nodes::beside(&first);
    second.record_in_the_file();
    let two = second.start();
    let nodes = two.get("/v1/admin/nodes").json();
    let this = |node: &&Value| node["this"] == true;
    let id = nodes["nodes"].as_array().unwrap().iter().find(this).unwrap()["nodeId"].as_str().unwrap().to_owned();
    two.signal(rustix::process::Signal::STOP);
    first.run_sql(&format!("UPDATE nodes SET seen_at = seen_at - 31000000 WHERE node_id = '{id}'"));
    let mut arguments = vec!["--compromised", "--without-node", &*id];
    arguments.extend(super::rotation::WAIVE);
    assert_eq!(super::rotation::rotated(&first, &arguments)["end"], "rotated");
    two.signal(rustix::process::Signal::CONT);
    let key = std::fs::read(first.key_file()).unwrap();
    assert!(second.cli(["admin", "install-key"], &key).status.success());
    let begun = Instant::now();
    while !second.audit_lines().iter().any(|line| line.contains(r#""key":2,"#)) {
        two.get("/v1/secrets/alice/KEY");
        assert!(begun.elapsed() < PATIENCE, "it goes on under the old key:\n{}", second.log());
        std::thread::yield_now();
    }
    assert_eq!(one.stop().code(), Some(0));
}

fn what_is_done_to_the_database_is_found(site: &Site) {
    site.record_in_the_file();
    let daemon = used(site);
    assert_eq!(daemon.stop().code(), Some(0));
    let cases = [
        ("DELETE FROM audit WHERE position = 2", "records 2 to 2 were removed"),
        ("DELETE FROM audit WHERE position = 4", "its chain was cut: it has 3 records, and had 4"),
        ("UPDATE audit SET tenant = 'carol' WHERE position = 4", "its columns say something else"),
        ("DELETE FROM audit", "all of its 4 records were removed"),
    ];
    for (sql, what) in cases {
        site.keep_copy();
        site.run_sql(sql);
        let (code, found) = verify(site, &[]);
        assert!(
            code == Some(1) && found.iter().any(|found| found.contains(what)),
            "{sql}: {what:?} is not in {found:?}"
        );
        site.put_copy_back();
        whole(site);
    }
}

/// Removes what was written at the third place, frees the places behind it, and sets the head back to the second.
fn take_out_the_third(site: &Site) {
    site.run_sql("DELETE FROM audit WHERE position = 3");
    site.run_sql("UPDATE audit SET position = NULL, link = NULL WHERE position > 3");
    set_head_back(site);
}

fn set_head_back(site: &Site) {
    site.run_sql(
        "UPDATE audit_chains SET position = 2, link = (SELECT link FROM audit WHERE position = 2) WHERE kind = 'table'",
    );
}

/// Waits until the daemon says that somebody else wrote into its trail, and that this stands in its file.
fn told(site: &Site, daemon: &Daemon) {
    let begun = Instant::now();
    let warned =
        || String::from_utf8_lossy(&daemon.get("/readyz").body).contains("the audit trail in the database was changed");
    while !(warned() && site.audit_lines().iter().any(|line| line.contains("\"audit.changed\""))) {
        assert!(begun.elapsed() < PATIENCE, "it does not say so:\n{}", site.log());
        std::thread::yield_now();
    }
    assert_eq!(daemon.get("/readyz").status, 200, "it serves on");
    let doctor = site.cli(["admin", "doctor"], b"");
    assert_eq!(doctor.status.code(), Some(1), "{doctor:?}");
    let status = site.cli(["admin", "status"], b"");
    let shown = String::from_utf8_lossy(&status.stdout).into_owned() + &String::from_utf8_lossy(&status.stderr);
    assert!(shown.contains("the audit trail in the database was changed"), "{shown}");
    let metrics = String::from_utf8(daemon.get("/metrics").body).unwrap();
    assert!(metrics.contains("containarium_doctor_verdict{check=\"audit\"} 2"), "{metrics}");
}

fn a_record_taken_out_from_under_a_running_daemon_is_missed_and_the_hole_is_never_closed(site: &Site) {
    site.record_in_the_file();
    let daemon = used(site);
    take_out_the_third(site);
    told(site, &daemon);
    assert_eq!(daemon.set("alice", "KEY", b"later").status, 200);
    let begun = Instant::now();
    while site.number("SELECT count(*) FROM audit WHERE position = 5") == 0 {
        assert!(begun.elapsed() < PATIENCE, "it does not go on:\n{}", site.log());
        std::thread::yield_now();
    }
    assert_eq!(site.number("SELECT count(*) FROM audit WHERE position IS NULL"), 1, "what had a place gets no other");
    let (code, found) = verify(site, &[]);
    assert_eq!(code, Some(1));
    for what in ["records 3 to 4 were removed", "found the trail in the database changed by somebody else"] {
        assert!(found.iter().any(|found| found.contains(what)), "{what} is not in {found:?}");
    }
    assert_eq!(daemon.stop().code(), Some(0));
    // Nor by the next start.
    assert_eq!(site.start().stop().code(), Some(0));
    assert!(verify(site, &[]).1.iter().any(|found| found.contains("records 3 to 4 were removed")));
}

fn a_head_that_was_set_back_under_a_running_daemon_is_refused(site: &Site) {
    site.record_in_the_file();
    let daemon = used(site);
    site.run_sql("DELETE FROM audit WHERE position > 2");
    set_head_back(site);
    assert_eq!(daemon.set("alice", "KEY", b"later").status, 200);
    told(site, &daemon);
    let begun = Instant::now();
    while site.number("SELECT count(*) FROM audit_chains WHERE kind = 'table' AND position = 5") == 0 {
        assert!(begun.elapsed() < PATIENCE, "it does not go on:\n{}", site.log());
        std::thread::yield_now();
    }
    let (code, found) = verify(site, &[]);
    assert_eq!(code, Some(1));
    assert!(found.iter().any(|found| found.contains("records 3 to 4 were removed")), "{found:?}");
}

fn what_is_cut_off_the_table_with_its_head_while_no_daemon_runs_is_found_by_the_file(site: &Site) {
    site.record_in_the_file();
    assert_eq!(used(site).stop().code(), Some(0));
    whole(site);
    site.keep_copy();
    site.run_sql("DELETE FROM audit WHERE position > 2");
    set_head_back(site);
    finds(site, "its chain was cut: it has 2 records, and had 4 at least");
    site.put_copy_back();
    site.run_sql("DELETE FROM audit");
    site.run_sql("DELETE FROM audit_chains WHERE kind = 'table'");
    let (code, found) = verify(site, &[]);
    assert_eq!(code, Some(1));
    assert!(found.iter().any(|found| found.contains("its chain and its head were removed")), "{found:?}");
}

fn a_token_that_was_revoked_and_put_back_is_found(site: &Site) {
    let daemon = tokens::start(site);
    let (_, id) = tokens::make(&daemon, &json!({}));
    site.run_sql("CREATE TABLE kept AS SELECT * FROM tokens");
    let order = json!({ "id": id }).to_string();
    assert_eq!(daemon.request("POST", "/v1/admin/tokens/revoke", order.as_bytes()).status, 200);
    headed(site);
    whole(site);
    assert_eq!(daemon.stop().code(), Some(0));
    site.damage_sql("DELETE FROM tokens");
    site.damage_sql("INSERT INTO tokens SELECT * FROM kept");
    finds(site, &format!("token {id}\": \"was revoked, and is good again"));
}

/// Lets so much time go by that what was written is older than it is kept for.
fn let_a_second_go_by() {
    std::thread::sleep(std::time::Duration::from_millis(1100));
}

fn a_file_with_a_hole_does_not_go_by_age(site: &Site) {
    site.record_in_the_file();
    assert_eq!(used(site).stop().code(), Some(0));
    let (file, aside) = (site.data_dir().join("audit.jsonl"), site.data_dir().join("audit-00000001.jsonl"));
    let text = std::fs::read_to_string(&file).unwrap();
    let without: Vec<&str> = text.lines().enumerate().filter(|(at, _)| *at != 2).map(|(_, line)| line).collect();
    std::fs::write(&aside, without.join("\n") + "\n").unwrap();
    std::fs::remove_file(&file).unwrap();
    std::fs::write(site.config_file(), "[audit]\nretention = \"1s\"\nsinks = [\"file\"]\n").unwrap();
    let_a_second_go_by();
    let daemon = site.start();
    site.logged("audit-00000001.jsonl line 3 is not as it was written");
    assert!(aside.exists(), "who cut it would only have to wait");
    assert_eq!(daemon.stop().code(), Some(0));
}

fn what_is_older_than_it_is_kept_for_is_removed_and_the_trail_stays_whole(site: &Site) {
    site.record_in_the_file();
    let daemon = used(site);
    daemon.request("POST", "/v1/secrets/alice/KEY/destroy", br#"{"versions":[1]}"#);
    headed(site);
    assert_eq!(daemon.stop().code(), Some(0));
    let boot = site.texts("SELECT boot_id FROM audit_chains WHERE kind = 'table'").remove(0);
    let left = format!("SELECT count(*) FROM audit WHERE boot_id = '{boot}'");
    assert_eq!(site.number(&left), 5);
    std::fs::write(site.config_file(), "[audit]\nretention = \"1s\"\nsinks = [\"file\"]\n").unwrap();
    let_a_second_go_by();
    let daemon = site.start();
    let begun = Instant::now();
    while site.number(&left) > 2 || !site.data_dir().join("audit-00000001.jsonl").exists() {
        assert!(begun.elapsed() < PATIENCE, "nothing is removed:\n{}", site.log());
        std::thread::yield_now();
    }
    let kept = format!("SELECT count(*) FROM audit WHERE boot_id = '{boot}' AND action = 'secret.set'");
    assert_eq!((site.number(&left), site.number(&kept)), (2, 2), "the writes of the versions that are there stay");
    daemon.get("/v1/secrets/alice/KEY");
    headed(site);
    whole(site);
    assert_eq!(daemon.stop().code(), Some(0));
    let_a_second_go_by();
    let daemon = site.start();
    let begun = Instant::now();
    while site.data_dir().join("audit-00000001.jsonl").exists() {
        assert!(begun.elapsed() < PATIENCE, "the file is not removed:\n{}", site.log());
        std::thread::yield_now();
    }
    daemon.get("/v1/secrets/alice/KEY");
    headed(site);
    assert_eq!(daemon.stop().code(), Some(0));
    whole(site);
    // What stays is needed still, and what is behind what was removed is followed on.
    site.keep_copy();
    site.run_sql(&format!(
        "DELETE FROM audit WHERE boot_id <> '{boot}' AND action NOT IN ('audit.prune', 'audit.start')"
    ));
    site.run_sql("DELETE FROM audit WHERE action = 'audit.prune'");
    assert_eq!(verify(site, &[]).0, Some(1));
    site.put_copy_back();
    whole(site);
    let file = std::fs::read_dir(site.data_dir()).unwrap().map(|entry| entry.unwrap().path());
    for path in file.filter(|path| path.extension().is_some_and(|extension| extension == "jsonl")) {
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("audit")) {
            std::fs::remove_file(path).unwrap();
        }
    }
    assert!(verify(site, &[]).1.iter().any(|found| found.contains("the file is missing")));
}

fn a_start_that_was_taken_out_whole_with_its_heads_is_found_by_the_next(site: &Site) {
    assert_eq!(used(site).stop().code(), Some(0));
    let boot = site.texts("SELECT boot_id FROM audit_chains WHERE kind = 'table'").remove(0);
    let daemon = site.start();
    daemon.set("alice", "KEY", b"later");
    headed(site);
    assert_eq!(daemon.stop().code(), Some(0));
    whole(site);
    site.run_sql(&format!("DELETE FROM audit WHERE boot_id = '{boot}'"));
    site.run_sql(&format!("DELETE FROM audit_chains WHERE boot_id = '{boot}' AND kind = 'table'"));
    let (code, found) = verify(site, &[]);
    assert_eq!((code, found.len()), (Some(1), 2), "{found:?}");
    for what in ["its file says that they were there", "of which no record is there"] {
        assert!(found.iter().any(|found| found.contains(what)), "{what} is not in {found:?}");
    }
}

fn an_old_row_of_a_secret_put_back_is_found(site: &Site) {
    let daemon = used(site);
    site.run_sql("CREATE TABLE kept AS SELECT * FROM secret_versions WHERE tenant = 'alice'");
    let rotated = site.cli(["admin", "rotate-dek", "bob", "--reencrypt"], b"");
    assert_eq!(rotated.status.code(), Some(0), "{rotated:?}");
    // Another's ciphertext in its place.
    site.run_sql(
        "UPDATE secret_versions SET ciphertext = (SELECT ciphertext FROM kept WHERE version = 1) \
         WHERE tenant = 'alice' AND version = 2",
    );
    finds(site, "alice/KEY version 2\": \"is not what was written");
    site.run_sql(
        "UPDATE secret_versions SET ciphertext = (SELECT ciphertext FROM kept WHERE version = 2) \
         WHERE tenant = 'alice' AND version = 2",
    );
    whole(site);
    // One that was destroyed.
    daemon.request("POST", "/v1/secrets/alice/KEY/destroy", br#"{"versions":[1]}"#);
    whole(site);
    site.damage_sql("DELETE FROM secret_versions WHERE tenant = 'alice' AND version = 1");
    site.damage_sql("INSERT INTO secret_versions SELECT * FROM kept WHERE version = 1");
    finds(site, "alice/KEY version 1\": \"was destroyed, and is there again");
}

/// On PostgreSQL under a running daemon, whose chain may not have begun in what was put back.
fn a_trail_verifies_after_an_older_database_was_put_back_and_accepted(site: &Site) {
    assert_eq!(used(site).stop().code(), Some(0));
    site.keep_copy();
    let mut daemon = site.start();
    daemon.set("alice", "KEY", b"lost");
    let shred = site.cli(["admin", "shred", "bob", "--yes"], b"");
    assert_eq!(shred.status.code(), Some(0), "{shred:?}");
    if site.is_postgres() {
        site.put_copy_back();
    } else {
        assert_eq!(daemon.stop().code(), Some(0));
        site.put_copy_back();
        daemon = site.start();
    }
    let begun = Instant::now();
    while !String::from_utf8_lossy(&daemon.get("/readyz").body).contains("accept-restore") {
        assert!(begun.elapsed() < PATIENCE, "it does not notice:\n{}", site.log());
        std::thread::yield_now();
    }
    assert_eq!(daemon.set("alice", "KEY", b"refused").status, 503);
    let accepted = site.cli(["admin", "accept-restore", "--yes"], b"");
    assert_eq!(accepted.status.code(), Some(0), "{accepted:?}");
    let again = site.number("SELECT count(*) FROM audit WHERE action = 'admin.accept-restore' AND tenant = 'bob'");
    assert_eq!(again, 1, "the record of the shred that was done again names whose");
    assert_eq!(daemon.set("alice", "KEY", b"new").status, 200);
    headed(site);
    whole(site);
    assert_eq!(daemon.stop().code(), Some(0));
    let daemon = site.start();
    daemon.get("/v1/secrets/alice/KEY");
    headed(site);
    whole(site);
    assert_eq!(daemon.stop().code(), Some(0));
}

fn names_of_a_batch_that_are_not_there_share_a_record(site: &Site) {
    site.record_in_the_file();
    let daemon = site.start();
    daemon.set("alice", "KEY", b"one");
    let before = site.audit_lines().len();
    let names: Vec<String> = (0..1000).map(|number| format!("NONE_{number}")).collect();
    let ask = |names: &[String]| {
        let body = json!({ "names": names }).to_string();
        assert_eq!(daemon.request("POST", "/v1/secrets/alice/batch-get", body.as_bytes()).status, 200);
    };
    ask(&names);
    ask(&names[..1]);
    let records: Vec<Value> =
        site.audit_lines()[before..].iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let shown: Vec<Value> = records.iter().map(|r| json!([r["name"], r["count"], r["outcome"]])).collect();
    assert_eq!(shown, [json!([null, 1000, "not_found"]), json!(["NONE_0", null, "not_found"])]);
}

fn records_are_found_by_what_they_say(site: &Site) {
    let daemon = used(site);
    daemon.get("/v1/secrets/alice/NONE");
    let searched = |arguments: &[&str]| {
        let output = site.cli(["audit", "search", "-o", "json"].iter().chain(arguments), b"");
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        String::from_utf8(output.stdout).unwrap().lines().count()
    };
    assert_eq!(searched(&["--tenant", "alice"]), 6);
    assert_eq!(searched(&["--tenant", "alice", "--action", "secret.get"]), 4);
    assert_eq!(searched(&["--tenant", "alice", "--name", "NONE"]), 1);
    assert_eq!(searched(&["--tenant", "alice", "--since", "2000-01-01", "--until", "2001-01-01"]), 0);
    assert_eq!(searched(&["--tenant", "bob", "--since", "2000-01-01"]), 1);
    assert_eq!(searched(&["--identity", "uid:4711"]), 0);
    let tail = site.cli(["audit", "tail", "--lines", "1"], b"");
    let tail = String::from_utf8(tail.stdout).unwrap();
    assert!(tail.lines().count() == 2 && tail.contains("NONE") && tail.contains("not_found"), "{tail}");
    let wrong = site.cli(["audit", "search", "--since", "yesterday"], b"");
    assert_eq!(wrong.status.code(), Some(2));
}

fn records_are_copied_into_the_log_where_that_is_asked_for(site: &Site) {
    site.record_in_the_file();
    let daemon = used(site);
    assert_eq!(daemon.stop().code(), Some(0));
    assert!(!site.log().contains("secret.get"), "{}", site.log());
    std::fs::write(site.config_file(), "[audit]\njournal = true\nsinks = [\"file\"]\n").unwrap();
    let daemon = site.start();
    daemon.set("alice", "KEY", b"four");
    daemon.get("/v1/secrets/alice/KEY");
    let begun = Instant::now();
    let copied =
        || site.log().lines().filter(|line| line.contains("audit {\"time\":")).map(str::to_owned).collect::<Vec<_>>();
    let holds = |action: &str| copied().iter().any(|line| line.contains(action));
    while !(holds("\"secret.set\"") && holds("\"secret.get\"")) {
        assert!(begun.elapsed() < PATIENCE, "{}", site.log());
        std::thread::yield_now();
    }
    assert!(copied().iter().filter(|line| line.contains("secret.get")).all(|line| line.contains("\"mac\":")));
    assert_eq!(daemon.stop().code(), Some(0));
}
