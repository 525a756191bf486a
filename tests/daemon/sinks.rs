//! Where the records of reads and denials go, over the real binary and on both stores.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use serde_json::Value;

use super::on_both_stores;
use crate::support::site::{Daemon, PATIENCE, Site};

on_both_stores!(
    a_read_lies_in_the_table_with_its_place_before_it_is_answered,
    records_of_many_reads_at_once_are_one_whole_chain,
    the_file_takes_what_the_table_does_not_and_the_table_again_what_it_takes,
    the_table_takes_what_the_file_does_not,
    where_no_sink_works_calls_fail_and_heal_by_themselves,
    what_was_answered_before_a_kill_is_recorded,
    a_table_that_somebody_else_wrote_into_takes_no_read_until_it_is_told,
    an_older_database_put_back_under_the_daemon_takes_no_read,
    a_row_that_sits_in_the_next_place_of_the_chain_is_told,
);

const TABLE_FIRST: &str = "[audit]\nsinks = [\"table\", \"file\"]\n";
const FILE_FIRST: &str = "[audit]\nsinks = [\"file\", \"table\"]\n";
const READ: &str = "/v1/secrets/alice/KEY";

fn start(site: &Site, config: &str) -> Daemon {
    std::fs::write(site.path("config.toml"), config).unwrap();
    let daemon = site.start();
    daemon.set("alice", "KEY", b"value");
    daemon
}

fn read(daemon: &Daemon) {
    let answer = daemon.get(READ);
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// Reads that the table holds, each with its place.
fn in_table(site: &Site) -> i64 {
    site.number("SELECT count(*) FROM audit WHERE action = 'secret.get' AND position IS NOT NULL")
}

fn in_file(site: &Site) -> usize {
    site.audit_lines().iter().filter(|line| line.contains("\"secret.get\"")).count()
}

/// Has the database refuse the records that go with no change.
fn refuse_reads(site: &Site) {
    site.run_sql(if site.is_postgres() {
        "CREATE FUNCTION public.no_reads() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''no room''; END'; \
         CREATE TRIGGER no_reads BEFORE INSERT ON containarium.audit FOR EACH ROW \
         WHEN (NEW.position IS NOT NULL) EXECUTE FUNCTION public.no_reads()"
    } else {
        "CREATE TRIGGER no_reads BEFORE INSERT ON audit WHEN NEW.position IS NOT NULL \
         BEGIN SELECT RAISE(ABORT, 'no room'); END"
    });
}

fn take_reads(site: &Site) {
    site.run_sql(if site.is_postgres() {
        "DROP TRIGGER no_reads ON containarium.audit; DROP FUNCTION public.no_reads()"
    } else {
        "DROP TRIGGER no_reads"
    });
}

/// What `/readyz` warns of in the audit.
fn warnings(daemon: &Daemon) -> Vec<String> {
    let ready = daemon.get("/readyz");
    assert_eq!(ready.status, 200, "{ready:?}");
    let all = ready.json()["warnings"].as_array().cloned().unwrap_or_default();
    all.iter().map(|text| text.as_str().unwrap().to_owned()).filter(|text| text.contains("audit")).collect()
}

#[track_caller]
fn until(site: &Site, what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "{what}:\n{}", site.log());
        std::thread::yield_now();
    }
}

#[track_caller]
fn whole(site: &Site) {
    let verified = site.cli(["audit", "verify"], b"");
    assert_eq!(verified.status.code(), Some(0), "{verified:?}");
}

fn a_read_lies_in_the_table_with_its_place_before_it_is_answered(site: &Site) {
    let daemon = start(site, TABLE_FIRST);
    // The first call begins the chain, which gets its first place within a second.
    until(site, "the chain does not begin", || {
        site.number("SELECT count(*) FROM audit_chains WHERE kind = 'table'") == 1
    });
    let before = in_file(site);
    for round in 1..=20 {
        read(&daemon);
        assert_eq!(in_table(site), round);
    }
    let twice = br#"{"names":["KEY","NONE"]}"#;
    assert_eq!(daemon.request("POST", "/v1/secrets/alice/batch-get", twice).status, 200);
    assert_eq!(daemon.get("/v1/secrets/alice/NONE").status, 404);
    let shown = site.texts(
        "SELECT identity || ' ' || action || ' ' || name || ' ' || outcome FROM audit \
         WHERE position IS NOT NULL AND name = 'NONE' ORDER BY position",
    );
    let who = format!("uid:{}", rustix::process::geteuid().as_raw());
    assert_eq!(shown, [format!("{who} secret.batch-get NONE not_found"), format!("{who} secret.get NONE not_found")]);
    assert_eq!(in_file(site), before, "none is recorded twice");
    until(site, "a change has no place", || site.number("SELECT count(*) FROM audit WHERE position IS NULL") == 0);
    whole(site);
    let found = site.cli(["audit", "search", "--name", "KEY", "--action", "secret.get", "-o", "json"], b"");
    assert_eq!(String::from_utf8_lossy(&found.stdout).matches("\"requestId\"").count(), 20, "{found:?}");
    assert_eq!(daemon.stop().code(), Some(0));
    whole(site);
}

fn records_of_many_reads_at_once_are_one_whole_chain(site: &Site) {
    const CALLERS: usize = 32;
    const EACH: usize = 20;
    let daemon = start(site, TABLE_FIRST);
    let answered = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for caller in 0..CALLERS {
            let (daemon, answered) = (&daemon, &answered);
            scope.spawn(move || {
                for call in 0..EACH {
                    // Changes among them, whose records get their places later.
                    if (caller + call) % 8 == 0 {
                        daemon.set("bob", &format!("KEY_{caller}"), call.to_string().as_bytes());
                    } else {
                        read(daemon);
                        answered.fetch_add(1, Ordering::SeqCst);
                    }
                }
            });
        }
    });
    let recorded = usize::try_from(in_table(site)).unwrap() + in_file(site);
    assert_eq!(recorded as u64, answered.load(Ordering::SeqCst));
    assert!(warnings(&daemon).is_empty());
    assert_eq!(daemon.stop().code(), Some(0));
    let places = "SELECT count(*) FROM audit_chains c WHERE c.kind = 'table' AND c.position = \
                  (SELECT count(*) FROM audit a WHERE a.boot_id = c.boot_id) AND c.position = \
                  (SELECT max(a.position) FROM audit a WHERE a.boot_id = c.boot_id)";
    assert_eq!(site.number(places), 1, "one place for each, without holes");
    whole(site);
}

fn the_file_takes_what_the_table_does_not_and_the_table_again_what_it_takes(site: &Site) {
    let daemon = start(site, TABLE_FIRST);
    until(site, "the table takes no reads", || {
        read(&daemon);
        in_table(site) > 0
    });
    refuse_reads(site);
    let (table, file) = (in_table(site), in_file(site));
    for _ in 0..5 {
        read(&daemon);
    }
    assert_eq!((in_table(site), in_file(site)), (table, file + 5));
    assert!(warnings(&daemon).iter().any(|text| text.contains("no room")), "{:?}", warnings(&daemon));
    let told = site.cli(["admin", "doctor", "-o", "json"], b"");
    let told: Value = serde_json::from_slice(&told.stdout).unwrap();
    let check = told["checks"].as_array().unwrap().iter().find(|check| check["name"] == "audit").unwrap();
    assert_eq!(check["verdict"], "warning", "{check}");
    take_reads(site);
    until(site, "the warning stays", || warnings(&daemon).is_empty());
    let (table, file) = (in_table(site), in_file(site));
    read(&daemon);
    assert_eq!((in_table(site), in_file(site)), (table + 1, file));
    let told = site.log().matches("cannot be written into the database").count();
    assert_eq!(told, 1, "one line when it begins:\n{}", site.log());
    assert_eq!(site.number("SELECT count(*) FROM audit WHERE action = 'audit.resumed'"), 1);
    assert_eq!(daemon.stop().code(), Some(0));
    whole(site);
}

fn the_table_takes_what_the_file_does_not(site: &Site) {
    let daemon = start(site, FILE_FIRST);
    read(&daemon);
    assert_eq!((in_table(site), in_file(site)), (0, 1));
    until(site, "the chain does not begin", || {
        site.number("SELECT count(*) FROM audit_chains WHERE kind = 'table'") == 1
    });
    let (audit, aside) = (site.data_dir().join("audit.jsonl"), site.data_dir().join("audit-00000001.jsonl"));
    std::fs::rename(&audit, &aside).unwrap();
    std::fs::create_dir(&audit).unwrap();
    for _ in 0..5 {
        read(&daemon);
    }
    assert_eq!(in_table(site), 5);
    assert!(warnings(&daemon).iter().any(|text| text.contains("audit file")), "{:?}", warnings(&daemon));
    assert_eq!(daemon.set("alice", "KEY", b"another").status, 200, "a change needs no file");
    std::fs::remove_dir(&audit).unwrap();
    until(site, "the warning stays", || warnings(&daemon).is_empty());
    let table = in_table(site);
    read(&daemon);
    assert_eq!((in_table(site), in_file(site)), (table, 1));
    assert_eq!(daemon.stop().code(), Some(0));
    whole(site);
}

fn where_no_sink_works_calls_fail_and_heal_by_themselves(site: &Site) {
    let daemon = start(site, TABLE_FIRST);
    until(site, "the table takes no reads", || {
        read(&daemon);
        in_table(site) > 0
    });
    refuse_reads(site);
    let (audit, aside) = (site.data_dir().join("audit.jsonl"), site.data_dir().join("audit-00000001.jsonl"));
    std::fs::rename(&audit, &aside).unwrap();
    std::fs::create_dir(&audit).unwrap();
    let refused = daemon.get(READ);
    assert_eq!((refused.status, &*refused.problem()), (503, "the audit record could not be written"));
    let refused = daemon.set("alice", "KEY", b"another");
    assert_eq!((refused.status, &*refused.problem()), (503, "audit records cannot be written; nothing was changed"));
    let ready = daemon.get("/readyz");
    assert_eq!(ready.status, 503, "{ready:?}\n{}", site.log());
    let why = ready.json()["waitingFor"][0].as_str().unwrap().to_owned();
    assert!(why.contains("the file: ") && why.contains("the table: "), "{why}");
    take_reads(site);
    until(site, "it does not heal", || daemon.get("/readyz").status == 200);
    read(&daemon);
    std::fs::remove_dir(&audit).unwrap();
    until(site, "the warning stays", || warnings(&daemon).is_empty());
    assert_eq!(daemon.stop().code(), Some(0));
    whole(site);
}

fn what_was_answered_before_a_kill_is_recorded(site: &Site) {
    for round in 0..3 {
        let daemon = start(site, TABLE_FIRST);
        let before = in_table(site) + i64::try_from(in_file(site)).unwrap();
        let answered = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while answered.load(Ordering::SeqCst) < 50 + round {
                        read(&daemon);
                        answered.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        daemon.kill();
        let recorded = in_table(site) + i64::try_from(in_file(site)).unwrap() - before;
        assert!(recorded.unsigned_abs() >= answered.load(Ordering::SeqCst), "{recorded} of {answered:?}");
    }
    let daemon = start(site, TABLE_FIRST);
    until(site, "what was left has no place", || site.number("SELECT count(*) FROM audit WHERE position IS NULL") == 0);
    assert_eq!(daemon.stop().code(), Some(0));
    whole(site);
}

fn a_table_that_somebody_else_wrote_into_takes_no_read_until_it_is_told(site: &Site) {
    let daemon = start(site, TABLE_FIRST);
    until(site, "the table takes no reads", || {
        read(&daemon);
        in_table(site) > 1
    });
    site.run_sql("DELETE FROM audit WHERE position = (SELECT max(position) FROM audit)");
    site.run_sql(
        "UPDATE audit_chains SET position = (SELECT max(position) FROM audit), \
         link = (SELECT link FROM audit WHERE position = (SELECT max(position) FROM audit)) WHERE kind = 'table'",
    );
    read(&daemon);
    until(site, "nobody is told", || warnings(&daemon).iter().any(|text| text.contains("was changed")));
    until(site, "the table takes no reads any more", || {
        let before = in_table(site);
        read(&daemon);
        in_table(site) > before
    });
    assert_eq!(daemon.stop().code(), Some(0));
    let verified = site.cli(["audit", "verify"], b"");
    let text = String::from_utf8_lossy(&verified.stdout).into_owned();
    assert!(verified.status.code() == Some(1) && text.contains("removed"), "the hole stays: {verified:?}");
}

fn an_older_database_put_back_under_the_daemon_takes_no_read(site: &Site) {
    let daemon = start(site, TABLE_FIRST);
    daemon.set("bob", "KEY", b"value");
    until(site, "the table takes no reads", || {
        read(&daemon);
        in_table(site) > 0
    });
    assert_eq!(daemon.stop().code(), Some(0));
    site.keep_copy();
    let mut daemon = site.start();
    let shred = site.cli(["admin", "shred", "bob", "--yes"], b"");
    assert_eq!(shred.status.code(), Some(0), "{shred:?}");
    until(site, "the table takes no reads", || {
        let before = in_table(site);
        read(&daemon);
        in_table(site) > before
    });
    if site.is_postgres() {
        site.put_copy_back();
    } else {
        assert_eq!(daemon.stop().code(), Some(0));
        site.put_copy_back();
        daemon = site.start();
    }
    let before = in_table(site);
    until(site, "it does not notice", || {
        read(&daemon);
        String::from_utf8_lossy(&daemon.get("/readyz").body).contains("accept-restore")
    });
    read(&daemon);
    assert_eq!(in_table(site), before, "records would be cut off with the state that is not accepted");
    let accepted = site.cli(["admin", "accept-restore", "--yes"], b"");
    assert_eq!(accepted.status.code(), Some(0), "{accepted:?}");
    until(site, "the table takes no reads", || {
        let before = in_table(site);
        read(&daemon);
        in_table(site) > before
    });
    assert_eq!(daemon.stop().code(), Some(0));
    whole(site);
}

/// Records of changes would lie without their places, and be removable, for as long as it sits there.
fn a_row_that_sits_in_the_next_place_of_the_chain_is_told(site: &Site) {
    let daemon = start(site, "[audit]\nsinks = [\"file\"]\n");
    until(site, "a change has no place", || site.number("SELECT count(*) FROM audit WHERE position IS NULL") == 0);
    site.run_sql(
        "INSERT INTO audit (node_id, boot_id, record_no, at, identity, action, outcome, record, mac, position, link) \
         SELECT node_id, boot_id, 999999, at, identity, action, outcome, record, mac, position + 1, link FROM audit \
         WHERE position = (SELECT max(position) FROM audit)",
    );
    daemon.set("alice", "KEY", b"another");
    until(site, "nobody is told", || warnings(&daemon).iter().any(|text| text.contains("no places")));
    site.run_sql("DELETE FROM audit WHERE record_no = 999999");
    until(site, "it does not go on", || warnings(&daemon).is_empty());
    assert_eq!(site.number("SELECT count(*) FROM audit WHERE position IS NULL"), 0);
    assert_eq!(daemon.stop().code(), Some(0));
    whole(site);
}

/// The server commits, and answers when nobody waits any more.
#[test]
fn a_commit_whose_answer_came_too_late_is_taken_for_what_it_was() {
    let site = Site::postgres();
    let daemon = start(&site, TABLE_FIRST);
    until(&site, "the table takes no reads", || {
        read(&daemon);
        in_table(&site) > 0
    });
    site.run_sql(
        "CREATE FUNCTION public.slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(5); RETURN NULL; END'; \
         CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON containarium.audit DEFERRABLE INITIALLY DEFERRED FOR EACH ROW \
         WHEN (NEW.position IS NOT NULL) EXECUTE FUNCTION public.slow()",
    );
    let (table, file) = (in_table(&site), in_file(&site));
    read(&daemon);
    assert_eq!((in_table(&site), in_file(&site)), (table, file + 1), "the file took it when the time was over");
    // It waits for the transaction that is still under way.
    site.run_sql("DROP TRIGGER slow ON containarium.audit");
    assert!(in_table(&site) > table, "it is in the table too");
    until(&site, "the table takes no reads any more", || {
        let before = in_table(&site);
        read(&daemon);
        in_table(&site) > before
    });
    assert!(!warnings(&daemon).iter().any(|text| text.contains("was changed")), "{}", site.log());
    assert_eq!(daemon.stop().code(), Some(0));
    whole(&site);
}
