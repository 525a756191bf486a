//! The new key's copy in Secret Manager, made before the flip: real daemons over a fake of Google that enforces each identity's rights.

use std::time::Instant;

use super::*;
use crate::daemon::backup::{Cloud, as_restorer};
use crate::daemon::doctor::doctor;
use crate::support::google::{OFFSITE, SECRET};
use crate::support::site::PATIENCE;

on_both_stores![
    the_new_key_is_copied_confirmed_and_recorded_before_the_flip,
    a_copy_that_is_refused_stops_it_before_the_flip_and_it_goes_on_once_that_is_mended,
    one_confirmed_copy_of_several_is_enough_and_each_that_is_missing_is_named,
    an_answer_that_was_lost_leaves_a_stray_version_and_the_rotation_goes_on,
    giving_up_leaves_every_version_where_it_is,
    where_no_secret_is_configured_nothing_is_staged_for_one,
    an_old_key_is_destroyed_once_its_copy_in_the_cloud_was_read_back,
    an_old_key_is_not_destroyed_for_a_copy_that_is_gone_or_was_not_seen_lately,
    what_became_of_the_copies_of_an_old_key_that_is_kept_is_told,
];

/// What the fake was asked that would take a version away.
fn taken_away(cloud: &Cloud) -> usize {
    ["destroy", "disable", "delete"].iter().map(|operation| cloud.requests(operation)).sum()
}

fn escrows(site: &Site, kid: &str, of: &str) -> i64 {
    site.number(&format!("SELECT count(*) FROM escrows WHERE {} = '{kid}' AND {of}", hex_of(site, "kid")))
}

fn the_new_key_is_copied_confirmed_and_recorded_before_the_flip(site: &Site) {
    let cloud = Cloud::of(site);
    let daemon = site.start();
    fill(&daemon, 3);
    let report = rotated(site, &[]);
    let kid = report["kid"].as_str().unwrap();
    let at = format!("{SECRET}/versions/1");
    assert_eq!((report["end"].as_str(), active(&daemon).as_str()), (Some("rotated"), kid));
    assert!(report["did"].to_string().contains(&at), "{report}");
    assert!(!report["left"].to_string().contains("no copy of"), "{report}");
    assert_eq!(escrows(site, kid, "kind = 'copy' AND confirmed_at IS NOT NULL AND read_back_at IS NULL"), 1);
    assert_eq!(site.texts("SELECT locator FROM escrows"), [at]);
    let log = site.log();
    let (pushed, flip) = (log.find("a copy of the new master key is confirmed"), log.find("rotation: flip:"));
    assert!(pushed.is_some() && pushed < flip, "{log}");
    assert_eq!((cloud.requests("add"), cloud.requests("access")), (1, 0));
    let warnings = daemon.get("/v1/admin/status").json()["warnings"].to_string();
    assert!(!warnings.contains("no backup of the master key"), "{warnings}");
    assert_eq!(daemon.get("/readyz").json().get("warnings"), None);
    check(&daemon, 3);
    // And it is the key: the other identity reads it back.
    let read = as_restorer(site, &["backup", "verify", "-o", "json"]);
    assert!(read.status.success(), "{read:?}");
    assert_eq!(escrows(site, kid, "read_back_at IS NOT NULL"), 1);
}

fn a_copy_that_is_refused_stops_it_before_the_flip_and_it_goes_on_once_that_is_mended(site: &Site) {
    let cloud = Cloud::of(site);
    let daemon = site.start();
    fill(&daemon, 3);
    let old = active(&daemon);
    cloud.fault("403", "add");
    let (code, said) = refused(site, &[]);
    assert_eq!(code, Some(4), "{said}");
    for part in [SECRET, "so it was not made active", "--resume`", "--resume --escrow prove`", "--abort`"] {
        assert!(said.contains(part), "{said}");
    }
    assert!(!said.contains("sudo"), "it is Google that denied: {said}");
    let why = ["is staged", "and stopped:", SECRET, "so it was not made active", "rotate-master --abort"];
    doctor(site).finds("rotation", "warning", &why);
    let kid = site.texts(&format!("SELECT {} FROM master_keys WHERE state = 'staged'", hex_of(site, "kid"))).remove(0);
    assert_eq!((phase(site).as_str(), active(&daemon)), ("staged", old.clone()));
    assert_eq!(site.number("SELECT epoch FROM key_state"), 1, "nothing was flipped");
    assert_eq!(escrows(site, &kid, "confirmed_at IS NULL"), 1, "its row came before the call");
    daemon.set("late", "KEY", b"value");
    assert_eq!(not_under(site, &old), 0, "it serves on the old key");
    assert_eq!(daemon.stop().code(), Some(0));
    let mend = ["nobody carries it on", "containarium admin rotate-master --resume"];
    doctor(site).finds("rotation", "warning", &mend);
    let daemon = site.start();
    doctor(site).finds("rotation", "warning", &mend);
    let (code, said) = refused(site, &["--resume"]);
    assert_eq!((code, phase(site).as_str()), (Some(4), "staged"), "{said}");
    cloud.heal();
    let report = rotated(site, &["--resume"]);
    assert_eq!((report["end"].as_str(), report["kid"].as_str()), (Some("rotated"), Some(kid.as_str())), "{report}");
    assert_eq!(escrows(site, &kid, "confirmed_at IS NOT NULL"), 1, "the same row is confirmed");
    doctor(site).finds("rotation", "ok", &["none runs"]);
    check(&daemon, 3);
}

fn one_confirmed_copy_of_several_is_enough_and_each_that_is_missing_is_named(site: &Site) {
    let gone = "projects/acme-prod/secrets/not-there";
    let _cloud = Cloud::with(site, &[gone, SECRET, OFFSITE], "");
    let daemon = site.start();
    fill(&daemon, 2);
    let report = rotated(site, &[]);
    let kid = report["kid"].as_str().unwrap();
    assert_eq!(report["end"], "rotated");
    let (did, left) = (report["did"].to_string(), report["left"].to_string());
    assert!(did.contains(&format!("{SECRET}/versions/1")) && did.contains(&format!("{OFFSITE}/versions/1")), "{did}");
    let missing = format!("no copy of {kid} is confirmed in {gone}: `containarium backup push` makes it");
    assert!(left.contains(&missing), "{left}");
    assert!(!left.contains("is the loss of every secret"), "{left}");
    check(&daemon, 2);
}

fn an_answer_that_was_lost_leaves_a_stray_version_and_the_rotation_goes_on(site: &Site) {
    let cloud = Cloud::of(site);
    let daemon = site.start();
    fill(&daemon, 2);
    cloud.fault_once("lost-answer", "add");
    let report = rotated(site, &[]);
    let kid = report["kid"].as_str().unwrap();
    assert_eq!(cloud.requests("add"), 2);
    assert_eq!(escrows(site, kid, "confirmed_at IS NOT NULL"), 1);
    assert_eq!(site.texts("SELECT locator FROM escrows"), [format!("{SECRET}/versions/2")]);
    check(&daemon, 2);
}

fn giving_up_leaves_every_version_where_it_is(site: &Site) {
    let cloud = Cloud::of(site);
    let daemon = site.start();
    fill(&daemon, 2);
    let old = active(&daemon);
    let kid = rotated(site, &["--escrow", "prove"])["kid"].as_str().unwrap().to_owned();
    // Of the active key, and of the staged one.
    let pushed = site.cli(["backup", "push"], b"");
    assert!(pushed.status.success(), "{pushed:?}");
    let report = rotated(site, &["--abort"]);
    assert_eq!((report["end"].as_str(), report["kid"].as_str()), (Some("aborted"), Some(kid.as_str())));
    let stays = format!("{SECRET}/versions/2 holds the key that was given up and stays there");
    assert!(report["left"].to_string().contains(&stays), "{report}");
    assert_eq!((phase(site).as_str(), active(&daemon), taken_away(&cloud)), ("idle", old, 0));
    let shown: Value = serde_json::from_slice(&site.cli(["backup", "list", "-o", "json"], b"").stdout).unwrap();
    let versions = shown["secrets"][0]["versions"].as_array().unwrap();
    assert!(versions.len() == 2 && versions.iter().all(|version| version["state"] == "enabled"), "{shown}");
    assert_eq!(rotated(site, &[])["end"], "rotated", "another key can be staged then");
    assert_eq!(taken_away(&cloud), 0);
    check(&daemon, 2);
}

fn where_no_secret_is_configured_nothing_is_staged_for_one(site: &Site) {
    let daemon = site.start();
    let files = key_files(site);
    let (code, said) = refused(site, &["--escrow", "gcp"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("`[backup.gcp] secrets`") && said.contains("--prove-from FILE"), "{said}");
    assert_eq!((phase(site).as_str(), key_files(site)), ("idle", files));
    assert_eq!(rotated(site, &[])["end"], "staged", "without one a copy is to be proven");
    let (code, said) = refused(site, &["--resume", "--escrow", "gcp"]);
    assert_eq!((code, phase(site).as_str()), (Some(1), "staged"), "{said}");
    drop(daemon);
}

fn an_old_key_is_destroyed_once_its_copy_in_the_cloud_was_read_back(site: &Site) {
    let cloud = Cloud::with(site, &[SECRET], "[keys]\nretain_old = \"0s\"\n");
    let daemon = site.start();
    fill(&daemon, 2);
    let old = active(&daemon);
    let pushed = site.cli(["backup", "push"], b"");
    assert!(pushed.status.success(), "{pushed:?}");
    rotated(site, &[]);
    for arguments in [&["--destroy-old", "--yes"][..], &["--destroy-old", "--yes", "--escrow", "gcp"]] {
        let (code, said) = refused(site, arguments);
        assert_eq!(code, Some(6), "confirmed is not read back: {said}");
        assert!(said.contains("`containarium backup verify`"), "{said}");
    }
    assert!(staged_file(site, &old).exists());
    let read = as_restorer(site, &["backup", "verify", "-o", "json"]);
    assert!(read.status.success(), "{read:?}");
    assert_eq!(escrows(site, &old, "read_back_at IS NOT NULL"), 1, "a retired key's copy is read back too");
    let report = rotated(site, &["--destroy-old", "--yes"]);
    assert_eq!((report["end"].as_str(), report["kid"].as_str()), (Some("destroyed"), Some(old.as_str())));
    assert!(!staged_file(site, &old).exists());
    assert_eq!(taken_away(&cloud), 0, "the copy off the host outlives it");
    check(&daemon, 2);
}

fn an_old_key_is_not_destroyed_for_a_copy_that_is_gone_or_was_not_seen_lately(site: &Site) {
    let cloud = Cloud::with(site, &[SECRET], "[keys]\nretain_old = \"0s\"\n");
    let daemon = site.start();
    fill(&daemon, 2);
    let away = elsewhere();
    let copied = away.path().join("key").display().to_string();
    let days = 4_i64 * 24 * 60 * 60 * 1_000_000;
    for round in ["looked", "verified", "fed", "waived"] {
        let old = active(&daemon);
        let raw = std::fs::read(site.key_file()).unwrap();
        assert!(site.cli(["backup", "push"], b"").status.success());
        let at = site
            .texts(&format!(
                "SELECT locator FROM escrows WHERE {} = '{old}' AND target = 'secret-manager'",
                hex_of(site, "kid")
            ))
            .remove(0);
        let number: u64 = at.rsplit_once('/').unwrap().1.parse().unwrap();
        rotated(site, &[]);
        assert!(as_restorer(site, &["backup", "verify"]).status.success());
        if round == "looked" {
            // Nobody has told the daemon.
            cloud.set_state(number, "disable");
            let (code, said) = refused(site, &["--destroy-old", "--yes"]);
            assert_eq!(code, Some(6), "{said}");
            assert!(said.contains("was read back: read the one in Secret Manager back"), "{said}");
            assert_eq!(escrows(site, &old, "lost_as IS NOT NULL"), 1, "what was seen is written down");
            cloud.set_state(number, "enable");
        } else {
            // Where it cannot be looked, what was seen lately will do, and what was seen long ago will not.
            cloud.fault("403", "list");
            site.run_sql(&format!(
                "UPDATE escrows SET confirmed_at = confirmed_at - {days}, read_back_at = read_back_at - {days}, looked_at = NULL"
            ));
            let (code, said) = refused(site, &["--destroy-old", "--yes"]);
            assert_eq!(code, Some(6), "{said}");
            for words in
                [&*at, "was last seen at", "cannot be looked at", "was denied", "within 3 days", "--prove-from FILE"]
            {
                assert!(said.contains(words), "{words}: {said}");
            }
            assert!(staged_file(site, &old).exists());
        }
        let mut words = vec!["--destroy-old", "--yes"];
        match round {
            "verified" => assert!(as_restorer(site, &["backup", "verify"]).status.success()),
            "fed" => {
                std::fs::write(&copied, &raw).unwrap();
                words.extend(["--prove-from", &copied]);
            }
            "waived" => words.extend(["--escrow", "waive-off-host-copy"]),
            _ => {}
        }
        assert_eq!(rotated(site, &words)["kid"], old.as_str(), "{round}");
        assert!(!staged_file(site, &old).exists());
        assert_eq!(escrows(site, &old, "kind = 'waiver'"), i64::from(round == "waived"));
        if round != "looked" {
            site.run_sql(&format!(
                "UPDATE escrows SET confirmed_at = confirmed_at + {days}, read_back_at = read_back_at + {days}"
            ));
        }
        cloud.heal();
    }
    check(&daemon, 2);
}

fn what_became_of_the_copies_of_an_old_key_that_is_kept_is_told(site: &Site) {
    let cloud = Cloud::of(site);
    let daemon = site.start();
    fill(&daemon, 2);
    let old = active(&daemon);
    let push = || assert!(site.cli(["backup", "push"], b"").status.success());
    let list = || assert_eq!(site.cli(["backup", "list"], b"").status.code(), Some(0));
    let verify = || as_restorer(site, &["backup", "verify"]).status.success();
    let unread = |count: u64| {
        let metrics = String::from_utf8(daemon.get("/metrics").body).unwrap();
        let line = format!("\ncontainarium_key_backup_copies_unread {count}\n");
        assert!(metrics.contains(&line), "{line} is not in {metrics}");
    };
    push();
    rotated(site, &[]);
    let at = format!("{SECRET}/versions/1");
    let told = format!("the copy of the retired master key {old} at {at}");
    let is_told = || doctor(site).check("key-backup").1.contains(&told);
    list();
    assert!(!is_told());
    cloud.set_state(1, "disable");
    list();
    doctor(site).finds("key-backup", "warning", &[&told, "is disabled there", "backups of the database from its time"]);
    cloud.set_state(1, "enable");
    list();
    assert!(!is_told() && verify());
    unread(0);
    cloud.fault_of_version("flipped-bit", SECRET, 1);
    assert!(!verify());
    let bad = format!("the copy of master key {old} at {at} was no good");
    doctor(site).finds("key-backup-read-back", "warning", &[&bad, "containarium backup export --kid KID"]);
    unread(1);
    // Another copy of it, wherever, is as good.
    let sheet = site.cli(["backup", "export", "--paper", "--kid", &old], b"").stdout;
    assert!(site.cli(["backup", "verify", "--from", "-"], &sheet).status.success());
    doctor(site).finds("key-backup-read-back", "ok", &[]);
    unread(0);
    cloud.set_state(1, "destroy");
    list();
    assert!(!is_told());
    // Of the key in use a bad copy is told by the metrics too, and stands for nothing in them.
    cloud.fault_of_version("flipped-bit", SECRET, 2);
    assert!(!verify());
    unread(1);
    let metrics = String::from_utf8(daemon.get("/metrics").body).unwrap();
    for gauge in ["confirmed_timestamp_seconds", "verified_timestamp_seconds"] {
        assert!(metrics.contains(&format!("\ncontainarium_key_backup_{gauge} 0\n")), "{metrics}");
    }
    assert!(metrics.contains("\ncontainarium_key_backup_copies_missing 1\n"), "{metrics}");
}

#[test]
fn a_secret_manager_that_does_not_answer_ends_it_within_the_deadline() {
    let site = Site::sqlite();
    let cloud = Cloud::of(&site);
    let daemon = site.start();
    fill(&daemon, 1);
    cloud.fault("slow", "add");
    let begun = Instant::now();
    let (code, said) = refused(&site, &[]);
    assert_eq!(code, Some(5), "{said}");
    assert!(said.contains("10 s") && said.contains("--resume`"), "{said}");
    assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
    assert_eq!(phase(&site), "staged");
    cloud.heal();
    assert_eq!(rotated(&site, &["--resume"])["end"], "rotated");
}

#[test]
fn without_credentials_it_stops_before_the_flip_and_can_be_given_up() {
    let site = Site::sqlite();
    std::fs::write(site.path("config.toml"), format!("[backup.gcp]\nsecrets = [\"{SECRET}\"]\n")).unwrap();
    let mut command = site.command(["daemon"]);
    command.env("GOOGLE_APPLICATION_CREDENTIALS", site.path("no-such-file"));
    let daemon = site.start_with(command);
    let old = active(&daemon);
    let (code, said) = refused(&site, &[]);
    assert!(code.is_some_and(|code| [4, 5].contains(&code)), "{code:?} {said}");
    assert!(said.contains("credentials") && said.contains("--resume`"), "{said}");
    assert_eq!((phase(&site).as_str(), active(&daemon)), ("staged", old));
    assert_eq!(rotated(&site, &["--abort"])["end"], "aborted");
}

/// A second node, with the first one's key and the same secret.
fn beside(cloud: &Cloud, first: &Site) -> Site {
    let second = nodes::beside(first);
    cloud.configure(&second, "config.toml", "daemon", &[SECRET], "");
    cloud.configure(&second, "restore.toml", "restore", &[SECRET], "");
    second
}

#[test]
fn a_node_that_is_waited_for_fetches_the_staged_key_with_the_command_that_is_printed() {
    let first = Site::postgres();
    let cloud = Cloud::of(&first);
    let one = first.start();
    fill(&one, 2);
    let second = beside(&cloud, &first);
    let two = second.start();
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| rotated(&first, &[]));
        first.logged("a copy of the new master key is confirmed");
        let mut follower = one.connect();
        follower.write_all(b"GET /v1/admin/rotate-master HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        refusals::waits_for(&mut follower, "or fetch it there: `containarium backup restore --kid ");
        assert_eq!(phase(&first), "staged");
        let staged = format!("SELECT {} FROM master_keys WHERE state = 'staged'", hex_of(&first, "kid"));
        let kid = first.texts(&staged).remove(0);
        let restored = as_restorer(&second, &["backup", "restore", "--kid", &kid]);
        assert!(restored.status.success(), "{restored:?}");
        assert_eq!(asked.join().unwrap()["end"], "rotated");
    });
    check(&two, 2);
}

#[test]
fn a_node_that_was_away_during_the_flip_names_the_command_that_fetches_the_key_and_that_works() {
    let first = Site::postgres();
    let cloud = Cloud::of(&first);
    let one = first.start();
    fill(&one, 2);
    let second = beside(&cloud, &first);
    second.start().kill();
    let away = nodes::id_of(&first, &second);
    first.run_sql(&format!("UPDATE nodes SET seen_at = 1 WHERE node_id = '{away}'"));
    let kid = rotated(&first, &["--without-node", &away])["kid"].as_str().unwrap().to_owned();
    let two = second.start();
    let waits = two.get("/readyz");
    assert_eq!(waits.status, 503);
    let why = String::from_utf8_lossy(&waits.body).into_owned();
    for part in [&*kid, "`containarium backup restore`", "containarium admin install-key"] {
        assert!(why.contains(part), "{part}: {why}");
    }
    let restored = as_restorer(&second, &["backup", "restore"]);
    assert!(restored.status.success(), "{restored:?}");
    let begun = Instant::now();
    while two.get("/readyz").status != 200 {
        assert!(begun.elapsed() < PATIENCE, "{}", second.log());
        std::thread::yield_now();
    }
    check(&two, 2);
}
