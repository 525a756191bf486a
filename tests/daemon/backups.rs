//! Copies of the database, and drills with copies of the keys, beside a daemon and without one.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use ::age::secrecy::ExposeSecret as _;
use containarium::crypto::{self, KeyfileImage, MasterKey};
use serde_json::Value;

use super::on_both_stores;
use crate::support::site::Site;

on_both_stores![
    a_drill_opens_every_dek_with_the_copies_alone_and_touches_nothing,
    a_drill_names_the_key_of_which_no_copy_was_given,
    a_drill_names_the_dek_that_is_damaged,
    what_is_no_copy_of_a_key_is_told_apart,
    a_drill_that_is_recorded_is_remembered,
];

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn answer(output: &Output) -> Value {
    assert!(output.status.success(), "{}", said(output));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[track_caller]
fn fails(output: &Output, code: i32, says: &[&str]) {
    assert_eq!(output.status.code(), Some(code), "{}", said(output));
    for words in says {
        assert!(said(output).contains(words), "{words} is not in {}", said(output));
    }
}

/// A key file's bytes that this database never saw, and their kid.
fn another_key() -> (Vec<u8>, String) {
    let master = MasterKey::make_random().unwrap();
    let mut bytes = Vec::new();
    KeyfileImage::of(&master).write_to(&mut bytes).unwrap();
    (bytes, crypto::kid(&master).to_string())
}

/// A copy of the key file, as an operator keeps it.
fn copy_of_key(site: &Site) -> String {
    let copy = site.path("safe");
    std::fs::write(&copy, std::fs::read(site.key_file()).unwrap()).unwrap();
    copy.to_str().unwrap().to_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn a_copy_that_is_made_beside_writes_is_whole_and_starts_again_with_all_secrets() {
    let site = Site::sqlite();
    let daemon = site.start();
    for number in 0..20 {
        daemon.set("alice", &format!("KEY_{number}"), b"value");
    }
    let copy = site.path("copied.db");
    let stop = AtomicBool::new(false);
    let made = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut number = 0;
            while !stop.load(Ordering::SeqCst) {
                assert_eq!(daemon.set("bob", "COUNTER", format!("{number}").as_bytes()).status, 200);
                number += 1;
            }
        });
        let made = site.cli(["backup", "database", text(&copy), "--record", "-o", "json"], b"");
        stop.store(true, Ordering::SeqCst);
        made
    });
    let made = answer(&made);
    assert_eq!((&made["recorded"], &made["file"]), (&true.into(), &text(&copy).into()));
    assert_eq!(made["bytes"], std::fs::metadata(&copy).unwrap().len());
    assert_eq!(mode(&copy), 0o600);
    assert_eq!(site.number("SELECT count(*) FROM database_backups"), 1);
    let key = std::fs::read(site.key_file()).unwrap();
    let bytes = std::fs::read(&copy).unwrap();
    assert!(!bytes.windows(32).any(|window| window == key), "a copy never holds the key");
    assert!(!site.path(".copied.db.partial").exists());

    // With the database lost.
    daemon.stop();
    for name in ["containarium.db", "containarium.db-wal", "containarium.db-shm"] {
        let _absent = std::fs::remove_file(site.data_dir().join(name));
    }
    std::fs::copy(&copy, site.data_dir().join("containarium.db")).unwrap();
    let daemon = site.start();
    for number in 0..20 {
        assert_eq!(daemon.value("alice", &format!("KEY_{number}")).unwrap(), b"value");
    }
}

#[test]
fn a_copy_that_is_damaged_or_compressed_is_refused_with_what_to_do() {
    let site = Site::sqlite();
    let daemon = site.start();
    for number in 0..60 {
        assert_eq!(daemon.set("alice", &format!("KEY_{number}"), &[b'x'; 3000]).status, 200);
    }
    let copy = site.path("copy.db");
    answer(&site.cli(["backup", "database", text(&copy), "-o", "json"], b""));
    let key = copy_of_key(&site);
    let drill = ["backup", "drill", "--database", text(&copy), "--from", &key];
    assert!(site.cli(drill, b"").status.success());
    let mut bytes = std::fs::read(&copy).unwrap();
    let middle = bytes.len() / 2 / 4096 * 4096;
    bytes[middle..middle + 100].fill(0xFF);
    std::fs::set_permissions(&copy, PermissionsExt::from_mode(0o600)).unwrap();
    std::fs::write(&copy, &bytes).unwrap();
    fails(&site.cli(drill, b""), 5, &["its file is damaged", "make another"]);
    std::fs::write(&copy, [0x1f, 0x8b, 8, 0, 0]).unwrap();
    fails(&site.cli(drill, b""), 5, &["is compressed", "gunzip -c"]);
}

#[test]
fn a_drill_on_an_empty_postgresql_gives_no_advice_that_would_make_a_new_key() {
    let (site, empty) = (Site::sqlite(), Site::postgres());
    drop(site.start());
    let key = copy_of_key(&site);
    let refused = site.cli(["backup", "drill", "--database", empty.database_url().unwrap(), "--from", &key], b"");
    fails(&refused, 5, &["it holds nothing of this product", "restored if it is a dump"]);
    assert!(!said(&refused).contains("start a daemon"), "{}", said(&refused));
}

#[test]
fn a_copy_is_never_written_over_anything() {
    let site = Site::sqlite();
    let _daemon = site.start();
    let there = site.path("there");
    std::fs::write(&there, b"precious").unwrap();
    std::os::unix::fs::symlink(site.path("nowhere"), site.path("link")).unwrap();
    let refused = site.cli(["backup", "database", text(&there)], b"");
    fails(&refused, 6, &["is there already", "give the name of a new file"]);
    assert_eq!(std::fs::read(&there).unwrap(), b"precious");
    fails(&site.cli(["backup", "database", text(&site.path("link"))], b""), 6, &["is there already"]);
    let partial = site.path(".new.partial");
    std::fs::write(&partial, b"half").unwrap();
    let refused = site.cli(["backup", "database", text(&site.path("new"))], b"");
    fails(&refused, 6, &["another copy is being made, or one was cut off", "rm "]);
    assert_eq!(std::fs::read(&partial).unwrap(), b"half", "it may be another's");
    assert!(!site.path("new").exists());
    let nowhere = site.path("missing/new");
    fails(&site.cli(["backup", "database", text(&nowhere)], b""), 1, &["cannot make", "No such file"]);
    fails(&site.cli(["backup", "database", "/"], b""), 2, &["names no file"]);
}

#[test]
fn a_copy_goes_to_a_pipe_and_leaves_nothing_behind() {
    let site = Site::sqlite();
    let _daemon = site.start();
    let scratch = site.path("tmp");
    std::fs::create_dir(&scratch).unwrap();
    let mut command = site.command(["backup", "database", "-"]);
    let piped = command.env("TMPDIR", &scratch).stdin(Stdio::null()).output().unwrap();
    assert!(piped.status.success(), "{}", said(&piped));
    assert!(piped.stdout.starts_with(b"SQLite format 3\0"));
    assert_eq!(std::fs::read_dir(&scratch).unwrap().count(), 0);
    let copy = site.path("piped.db");
    std::fs::write(&copy, &piped.stdout).unwrap();
    let drill = ["backup", "drill", "--database", text(&copy), "--from", &copy_of_key(&site), "-o", "json"];
    assert_eq!(answer(&site.cli(drill, b""))["deksOpened"], 1);
    fails(&site.cli(["backup", "database", "-", "-o", "json"], b""), 2, &["JSON has no place there"]);
}

#[test]
fn a_copy_needs_no_daemon_but_to_be_remembered() {
    let site = Site::sqlite();
    fails(&site.cli(["backup", "database", text(&site.path("early"))], b""), 5, &["there is no database"]);
    assert!(!site.path("early").exists() && !site.path(".early.partial").exists());
    site.start().stop();
    answer(&site.cli(["backup", "database", text(&site.path("one")), "-o", "json"], b""));
    let second = site.cli(["backup", "database", text(&site.path("two")), "--record"], b"");
    fails(&second, 5, &["cannot record the copy, which was made"]);
    assert!(site.path("two").exists());
    assert_eq!(site.number("SELECT count(*) FROM database_backups"), 0);
}

#[test]
fn a_copy_of_another_database_is_not_recorded() {
    let (site, other) = (Site::sqlite(), Site::sqlite());
    let (_daemon, _other) = (site.start(), other.start());
    let socket = site.socket();
    let copied =
        other.cli(["backup", "database", text(&other.path("copy")), "--record", "--socket", text(&socket)], b"");
    fails(&copied, 6, &["of another database than this daemon's"]);
    assert_eq!(site.number("SELECT count(*) FROM database_backups"), 0);
}

#[test]
fn a_record_that_makes_no_sense_is_refused() {
    let site = Site::sqlite();
    let daemon = site.start();
    let post = |body: &str| daemon.request("POST", "/v1/admin/backup/database", body.as_bytes());
    for target in ["", "a\\nb", &"x".repeat(1025)] {
        let refused = post(&format!(r#"{{"target":"{target}"}}"#));
        assert_eq!(refused.status, 400, "{target}");
        assert!(refused.problem().contains("1 to 1024 bytes"), "{}", refused.problem());
    }
    assert_eq!(post(r#"{"target":"a","when":1}"#).status, 400);
    let two = r#"{"dbId":"00000000000000000000000000000000","epoch":1,"generation":1,"takenAtMicros":1}"#;
    let both = post(&format!(r#"{{"target":"a","madeAtMicros":1,"state":{two}}}"#));
    assert!(both.status == 400 && both.problem().contains("madeAtMicros"), "{}", both.problem());
    let copied = answer(&site.cli(["backup", "database", text(&site.path("copy")), "-o", "json"], b""));
    let generation = copied["generation"].as_u64().unwrap();
    let id = database_id(&site);
    let of = |generation: u64, id: &str, at: i64| {
        let state = format!(r#"{{"dbId":"{id}","epoch":1,"generation":{generation},"takenAtMicros":{at}}}"#);
        post(&format!(r#"{{"target":"a","state":{state}}}"#))
    };
    let future = of(generation + 1, &id, 1);
    assert_eq!(future.status, 409);
    assert!(future.problem().contains("has only come to"), "{}", future.problem());
    assert_eq!(of(generation, "zz", 1).status, 400);
    assert_eq!(of(generation, &id, i64::MAX).status, 200);
    assert_eq!(
        site.number("SELECT taken_at <= recorded_at FROM database_backups"),
        1,
        "a copy from the future would look young for too long"
    );
}

/// As the drill's answer of a daemon would have it; SQLite only.
fn database_id(site: &Site) -> String {
    let half = |from: u32| {
        let digits = format!("substr(hex(db_id), {from}, 1)");
        site.number(&format!("SELECT instr('0123456789ABCDEF', {digits}) - 1 FROM key_state"))
    };
    (1..=32).map(|from| char::from_digit(u32::try_from(half(from)).unwrap(), 16).unwrap()).collect()
}

#[test]
fn on_postgresql_the_line_for_pg_dump_is_printed_and_works() {
    let site = Site::postgres();
    let daemon = site.start();
    let dump = site.path("it's a.dump");
    let printed = site.cli(["backup", "database", text(&dump)], b"");
    assert!(printed.status.success(), "{}", said(&printed));
    assert!(said(&printed).contains("--record"), "{}", said(&printed));
    let line = String::from_utf8(printed.stdout).unwrap();
    assert!(line.starts_with("pg_dump --schema=containarium --format=custom --file='"), "{line}");
    fails(&site.cli(["backup", "database", text(&dump), "--record"], b""), 3, &["is no copy to record"]);
    std::fs::write(&dump, b"").unwrap();
    fails(&site.cli(["backup", "database", text(&dump), "--record"], b""), 1, &["it is empty"]);
    std::fs::write(&dump, b"pg_dump: error: connection failed").unwrap();
    fails(
        &site.cli(["backup", "database", text(&dump), "--record"], b""),
        1,
        &["is no copy to record", "--format=custom"],
    );
    assert_eq!(site.number("SELECT count(*) FROM database_backups"), 0);
    fails(&site.cli(["backup", "database", text(&dump)], b""), 6, &["help: give the name of a new file"]);
    let run = |line: &str| {
        let line = format!("PATH=$PATH:$(echo /usr/lib/postgresql/*/bin | tr ' ' :); {line}");
        Command::new("bash").args(["-c", &line]).output().unwrap()
    };
    // Some releases of mv say so where they move nothing, some do not.
    let _either = run(&line);
    assert_eq!(std::fs::read(&dump).unwrap(), b"pg_dump: error: connection failed", "nothing is written over");
    std::fs::remove_file(&dump).unwrap();
    let failing = line.replace("--schema=containarium", "--schema=nothing");
    assert!(!run(&failing).status.success() && !dump.exists(), "a dump that failed gets no name");
    let done = run(&line);
    assert!(done.status.success(), "{line}: {}", said(&done));
    assert!(!site.path("it's a.dump.partial").exists());
    answer(&site.cli(["backup", "database", text(&dump), "--record", "-o", "json"], b""));
    assert_eq!(site.number("SELECT count(*) FROM database_backups"), 1);
    // One of last week is not fresh because it is told of today, and one of tomorrow is not younger than now.
    let (week, now) = (std::time::Duration::from_hours(7 * 24), std::time::SystemTime::now());
    let micros = |at: std::time::SystemTime| at.duration_since(std::time::UNIX_EPOCH).unwrap().as_micros();
    for at in [now - week, now + week] {
        site.run_sql("DELETE FROM database_backups");
        std::fs::File::options().write(true).open(&dump).unwrap().set_modified(at).unwrap();
        answer(&site.cli(["backup", "database", text(&dump), "--record", "-o", "json"], b""));
        let taken = u128::try_from(site.number("SELECT taken_at FROM database_backups")).unwrap();
        if at < now {
            assert_eq!(taken, micros(at));
        } else {
            assert!((micros(now)..micros(std::time::SystemTime::now())).contains(&taken), "{taken}");
        }
    }
    site.run_sql("DELETE FROM database_backups");
    answer(&site.cli(["backup", "database", "-", "--record", "-o", "json"], b""));
    assert_eq!(site.texts("SELECT target FROM database_backups"), ["elsewhere (nobody looked at it)"]);
    let piped = site.cli(["backup", "database", "-"], b"");
    assert!(!String::from_utf8(piped.stdout).unwrap().contains("--file"));
    drop(daemon);
}

#[test]
fn the_line_for_pg_dump_holds_no_password() {
    let site = Site::on_server("postgres://u:canary@h:5432/d?sslmode=require&password=canary".to_owned());
    let printed = site.cli(["backup", "database", "f"], b"");
    assert!(printed.status.success(), "{}", said(&printed));
    let line = String::from_utf8(printed.stdout.clone()).unwrap();
    let url = " 'postgres://u@h:5432/d?sslmode=require' ";
    assert!(line.ends_with(&format!("{url}&& mv -n -- f.partial f\n")), "{line}");
    assert!(!line.contains("canary") && !said(&printed).contains("canary"));
}

#[test]
fn a_database_url_with_a_misspelt_scheme_is_shown_to_nobody() {
    let site = Site::sqlite();
    drop(site.start());
    let copy = copy_of_key(&site);
    let refused = site.cli(["backup", "drill", "--from", &copy, "--database", "Postgres://u:canary@h/d"], b"");
    fails(&refused, 5, &["the database URL is not of the form postgres://"]);
    assert!(!said(&refused).contains("canary"), "{}", said(&refused));
}

fn a_drill_opens_every_dek_with_the_copies_alone_and_touches_nothing(site: &Site) {
    let daemon = site.start();
    daemon.set("alice", "KEY", b"value");
    daemon.set("bob", "KEY", b"value");
    let copy = copy_of_key(site);
    let beside = answer(&site.cli(["backup", "drill", "--from", &copy, "-o", "json"], b""));
    assert_eq!((&beside["opens"], &beside["deksOpened"], &beside["deksFailed"]), (&true.into(), &3.into(), &0.into()));
    assert_eq!(beside["keys"][0]["state"], "active");
    daemon.stop();
    // The live key is of no use to a drill.
    std::fs::remove_file(site.key_file()).unwrap();
    let before = site.files();
    let done = answer(&site.cli(["backup", "drill", "--from", &copy, "-o", "json"], b""));
    assert_eq!((&done["opens"], &done["deksOpened"]), (&true.into(), &3.into()));
    let after = site.files();
    let changed: Vec<_> = after.iter().filter(|(path, bytes)| before.get(*path) != Some(bytes)).collect();
    assert!(changed.is_empty() && before.len() == after.len(), "{:?}", changed.iter().map(|c| c.0).collect::<Vec<_>>());
    let shown = site.cli(["backup", "drill", "--from", &copy], b"");
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("3 DEKs opened, 0 did not"), "{shown}");
}

fn a_drill_names_the_key_of_which_no_copy_was_given(site: &Site) {
    let daemon = site.start();
    daemon.set("alice", "KEY", b"value");
    let (bytes, other) = another_key();
    std::fs::write(site.path("other"), bytes).unwrap();
    let failed = site.cli(["backup", "drill", "--from", text(&site.path("other")), "-o", "json"], b"");
    let status = daemon.get("/v1/admin/status").json();
    let active = &status["keys"]["activeKid"];
    fails(&failed, 1, &["2 DEKs did not open", "no copy of master key"]);
    let shown: Value = serde_json::from_slice(&failed.stdout).unwrap();
    assert_eq!((&shown["opens"], &shown["deksFailed"]), (&false.into(), &2.into()));
    assert_eq!((&shown["keys"][0]["kid"], &shown["keys"][0]["state"]), (&other.into(), &"unknown".into()));
    assert_eq!(&shown["missingKids"][0], active);
    // Both together open all: one that is of no use does no harm.
    let copy = copy_of_key(site);
    answer(&site.cli(["backup", "drill", "--from", text(&site.path("other")), "--from", &copy, "-o", "json"], b""));
}

fn a_drill_names_the_dek_that_is_damaged(site: &Site) {
    let daemon = site.start();
    daemon.set("alice", "KEY", b"value");
    daemon.stop();
    let zeros = site.sql_bytes(&[0; 132]);
    site.damage_sql(&format!("UPDATE deks SET wrapped = {zeros} WHERE tenant = 'alice'"));
    let failed = site.cli(["backup", "drill", "--from", &copy_of_key(site)], b"");
    fails(&failed, 1, &["DEK version 1 of tenant alice under master key", "1 DEKs did not open"]);
    // Keys that master_keys does not list.
    site.damage_sql("DELETE FROM master_keys");
    let failed = site.cli(["backup", "drill", "--from", &copy_of_key(site)], b"");
    fails(&failed, 1, &["2 DEKs are under master keys that the database does not list"]);
}

fn what_is_no_copy_of_a_key_is_told_apart(site: &Site) {
    site.start().stop();
    let key = std::fs::read(site.key_file()).unwrap();
    let drill = |content: &[u8]| {
        std::fs::write(site.path("copy"), content).unwrap();
        site.cli(["backup", "drill", "--from", text(&site.path("copy"))], b"")
    };
    fails(&drill(&key[..31]), 1, &["is not a copy of a master key", "31"]);
    fails(&drill(b""), 1, &["is not a copy of a master key"]);
    fails(&drill(&vec![b'x'; 300 * 1024]), 2, &["more than"]);
    fails(&site.cli(["backup", "drill", "--from", text(&site.path("none"))], b""), 3, &["cannot read"]);
    fails(&site.cli(["backup", "drill"], b""), 2, &["--from"]);
    let copy = copy_of_key(site);
    let none = site.path("no.db");
    fails(
        &site.cli(["backup", "drill", "--database", text(&none), "--from", &copy], b""),
        5,
        &["there is no database"],
    );
    std::fs::write(&none, b"no database at all, and no header of one").unwrap();
    fails(&site.cli(["backup", "drill", "--database", text(&none), "--from", &copy], b""), 5, &[]);

    let identity = ::age::x25519::Identity::generate();
    std::fs::write(site.path("identity"), identity.to_string().expose_secret()).unwrap();
    let image = KeyfileImage::read_from(&mut key.as_slice()).unwrap();
    let recipient = identity.to_public().to_string().parse().unwrap();
    let age = containarium::backup::age::export(&image, &[recipient]).unwrap();
    fails(&drill(age.as_bytes()), 2, &["--identity"]);
    let (copy, identity) = (site.path("copy"), site.path("identity"));
    let opened = ["backup", "drill", "--from", text(&copy), "--identity", text(&identity)];
    assert!(site.cli(opened, b"").status.success());
}

fn a_drill_that_is_recorded_is_remembered(site: &Site) {
    let daemon = site.start();
    let copy = copy_of_key(site);
    answer(&site.cli(["backup", "drill", "--from", &copy, "--record", "-o", "json"], b""));
    assert_eq!(site.number("SELECT deks_opened FROM drills"), 1);
    let (bytes, _) = another_key();
    std::fs::write(site.path("other"), bytes).unwrap();
    let failed = site.cli(["backup", "drill", "--from", text(&site.path("other")), "--record", "-o", "json"], b"");
    fails(&failed, 1, &["1 DEKs did not open"]);
    let shown: Value = serde_json::from_slice(&failed.stdout).unwrap();
    assert_eq!(shown["recorded"], true, "one that failed is worth remembering");
    assert_eq!(site.number("SELECT count(*) FROM drills WHERE deks_failed = 1"), 1);
    let audit = site.audit();
    assert_eq!(audit.iter().filter(|record| record["action"] == "backup.record-drill").count(), 2);
    let metrics = String::from_utf8(daemon.get("/metrics").body).unwrap();
    assert!(metrics.contains("\ncontainarium_drill_deks_failed 1\n"), "{metrics}");
    daemon.stop();
    fails(&site.cli(["backup", "drill", "--from", &copy, "--record"], b""), 5, &["cannot record the drill"]);
}
