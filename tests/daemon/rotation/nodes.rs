//! Several daemons on one PostgreSQL.

use super::*;

/// A second node, with the first one's key.
pub(super) fn beside(site: &Site) -> Site {
    let other = site.sharing();
    let key = std::fs::read(site.key_file()).unwrap();
    assert!(other.cli(["admin", "install-key"], &key).status.success());
    other
}

pub(super) fn id_of(site: &Site, of: &Site) -> String {
    let record: Value = serde_json::from_slice(&std::fs::read(of.data_dir().join("node.json")).unwrap()).unwrap();
    let ids = site.texts("SELECT node_id FROM nodes");
    ids.into_iter().find(|id| record.to_string().contains(id)).unwrap()
}

#[test]
fn each_live_node_is_waited_for_until_it_holds_the_key_and_then_all_serve_with_it() {
    let first = Site::postgres();
    let one = first.start();
    fill(&one, 5);
    let second = beside(&first);
    let two = second.start();
    let kid = rotated(&first, &[])["kid"].as_str().unwrap().to_owned();
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| rotated(&first, &["--resume", WAIVE[0], WAIVE[1]]));
        let mut follower = one.connect();
        follower.write_all(b"GET /v1/admin/rotate-master HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        refusals::waits_for(&mut follower, "containarium admin install-key");
        assert_eq!(phase(&first), "staged", "no flip before the second node holds the key");
        let staged = std::fs::read(staged_file(&first, &kid)).unwrap();
        assert!(second.cli(["admin", "install-key"], &staged).status.success());
        assert_eq!(asked.join().unwrap()["end"], "rotated");
    });
    check(&one, 5);
    check(&two, 5);
    assert_eq!(two.set("fresh", "KEY", b"value").status, 200);
    assert_eq!(not_under(&first, &kid), 0);
}

#[test]
fn a_node_that_is_away_must_be_named_and_its_name_stops_nothing_else() {
    let first = Site::postgres();
    let one = first.start();
    fill(&one, 5);
    let second = beside(&first);
    second.start().kill();
    let away = id_of(&first, &second);
    first.run_sql(&format!("UPDATE nodes SET seen_at = 1 WHERE node_id = '{away}'"));
    for arguments in [&WAIVE[..], &["--dry-run"]] {
        let (output, report) = rotate(&first, arguments);
        let said = format!("{report:?} {}", String::from_utf8_lossy(&output.stderr));
        assert!(!output.status.success() && said.contains(&format!("--without-node {away}")), "{said}");
    }
    assert_eq!(first.number("SELECT count(*) FROM master_keys"), 1, "nothing was staged");
    let unknown = "0".repeat(32);
    let (code, said) = refused(&first, &[WAIVE[0], WAIVE[1], "--without-node", &unknown]);
    assert_eq!((code, said.contains(&unknown)), (Some(3), true), "{said}");
    let report = rotated(&first, &[WAIVE[0], WAIVE[1], "--without-node", &away]);
    assert_eq!(report["end"], "rotated");
    assert!(report["left"].to_string().contains(&format!("give it to node {away}")), "{report}");
    check(&one, 5);
}

#[test]
fn a_node_that_was_named_may_be_forgotten_while_the_rotation_goes_on() {
    let first = Site::postgres();
    let one = first.start();
    fill(&one, 3);
    let second = beside(&first);
    second.start().kill();
    let away = id_of(&first, &second);
    first.run_sql(&format!("UPDATE nodes SET seen_at = 1 WHERE node_id = '{away}'"));
    assert_eq!(rotated(&first, &["--without-node", &away])["end"], "staged");
    let resume = ["--resume", WAIVE[0], WAIVE[1], "--without-node", &away];
    let report = refusals::held_at_the_promotion(&first, &resume, || {
        let forgotten = first.cli(["admin", "nodes", "forget", &away, "--yes"], b"");
        assert_eq!(forgotten.status.code(), Some(0), "{forgotten:?}");
    });
    assert_eq!(report["end"], "rotated");
    check(&one, 3);
}

#[test]
fn another_node_takes_a_rotation_over_when_the_lease_of_a_dead_one_lapses() {
    let first = Site::postgres();
    let one = first.start();
    fill(&one, 5);
    let second = beside(&first);
    let two = second.start();
    let kid = rotated(&first, &[])["kid"].as_str().unwrap().to_owned();
    let staged = std::fs::read(staged_file(&first, &kid)).unwrap();
    assert!(second.cli(["admin", "install-key"], &staged).status.success());
    // What a crash after the flip leaves: it stopped at a DEK that does not open, and then the node died.
    let whole = refusals::damage(&first, "t1");
    let (code, said) = refused(&first, &["--resume", WAIVE[0], WAIVE[1]]);
    assert_eq!(code, Some(1), "{said}");
    let id = id_of(&first, &first);
    one.kill();
    refusals::put(&first, "t1", &data_encoding::HEXLOWER_PERMISSIVE.decode(whole.as_bytes()).unwrap());
    let lease =
        |until| format!("UPDATE key_state SET lease_holder = '{id}', lease_boot = '{id}', lease_until = {until}");
    first.run_sql(&lease("9000000000000000"));
    let (code, said) = refused(&second, &["--resume"]);
    assert_eq!(code, Some(6), "{said}");
    assert!(said.contains(&id), "{said}");
    first.run_sql(&lease("1"));
    assert_eq!(rotated(&second, &["--resume"])["end"], "rotated");
    check(&two, 5);
    let one = first.start();
    check(&one, 5);
    assert_eq!(active(&one), kid);
}
