use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::super::on_both_stores;
use super::*;
use crate::support::google::OFFSITE;

on_both_stores![
    a_lost_key_file_is_restored_by_the_command_that_the_refusal_names,
    in_the_middle_of_a_rotation_every_needed_key_comes_back,
    a_copy_that_does_not_match_touches_no_file,
    what_lay_in_the_key_files_place_is_kept_under_its_name_and_the_time,
    a_key_comes_back_from_age_from_paper_and_as_it_is,
];

fn restore(site: &Site, words: &[&str]) -> Output {
    as_restorer(site, &[&["backup", "restore"], words].concat())
}

fn a_lost_key_file_is_restored_by_the_command_that_the_refusal_names(site: &Site) {
    let _cloud = Cloud::of(site);
    let daemon = site.start();
    answer(&site.cli(["backup", "push", "-o", "json"], b""));
    assert_eq!(daemon.stop().code(), Some(0));
    let (key, kid) = populated(site);
    lose_keys(site);
    let (code, log) = site.refused();
    assert_eq!(code, Some(5));
    assert!(log.contains("`containarium backup restore`") && log.contains(&kid), "{log}");

    fails(&site.cli(["backup", "restore"], b""), 4, &["secretmanager.versions.access", &kid]);
    assert!(names(site).is_empty(), "{:?}", names(site));

    let restored = answer(&restore(site, &["-o", "json"]));
    assert_eq!(restored["keys"][0]["kid"], kid);
    assert_eq!(restored["keys"][0]["from"], format!("{SECRET}/versions/1"));
    assert!(std::fs::read(site.key_file()).unwrap() == key);
    assert_eq!(std::fs::metadata(site.key_file()).unwrap().mode() & 0o7777, 0o400);
    opens(site);
    let again = restore(site, &[]);
    assert!(again.status.success() && String::from_utf8_lossy(&again.stdout).contains("nothing was changed"));
}

fn in_the_middle_of_a_rotation_every_needed_key_comes_back(site: &Site) {
    let cloud = Cloud::of(site);
    let daemon = site.start();
    assert_eq!(daemon.set("alice", "KEY", b"alice").status, 200);
    let (old, old_bytes) = (kid(&daemon), std::fs::read(site.key_file()).unwrap());
    let (bytes, new) = new_key();
    let sql = site.sql_bytes(new.as_bytes());
    // What a rotation's stage and flip do.
    site.run_sql(&format!("INSERT INTO master_keys (kid, state, created_at) VALUES ({sql}, 'staged', 1)"));
    answer(&site.cli(["admin", "install-key", "-o", "json"], &bytes));
    site.run_sql("UPDATE master_keys SET state = 'decrypt_only' WHERE state = 'active'");
    site.run_sql(&format!("UPDATE master_keys SET state = 'active' WHERE kid = {sql}"));
    // Another node carries it: this one would end it meanwhile, and then the old key is needed no more.
    let (node, boot) = ("ab".repeat(16), "cd".repeat(16));
    site.run_sql(&format!(
        "UPDATE key_state SET active_kid = {sql}, epoch = epoch + 1, generation = generation + 1, phase = 'rewrapping', \
         lease_holder = '{node}', lease_boot = '{boot}', lease_until = 9000000000000000"
    ));
    assert_eq!(daemon.set("bob", "KEY", b"bob").status, 200);
    let pushed = answer(&site.cli(["backup", "push", "-o", "json"], b""));
    assert_eq!(pushed["copies"].as_array().unwrap().len(), 2, "{pushed}");
    assert_eq!(daemon.stop().code(), Some(0));

    lose_keys(site);
    let of = |version: usize| pushed["copies"][version - 1]["kid"].as_str().unwrap();
    cloud.fault_of_version("403", SECRET, 1);
    let half = restore(site, &["-o", "json"]);
    fails(&half, 4, &[of(1), "not found", "secretmanager.versions.access", "help:"]);
    let half: Value = serde_json::from_slice(&half.stdout).unwrap();
    assert_eq!((half["keys"].as_array().unwrap().len(), &half["keys"][0]["kid"]), (1, &pushed["copies"][1]["kid"]));
    assert!(site.path("etc/secrets.key.d").join(of(2)).exists(), "what was found is in its place all the same");
    cloud.heal();

    lose_keys(site);
    let restored = answer(&restore(site, &["-o", "json"]));
    let mut kids: Vec<&str> =
        restored["keys"].as_array().unwrap().iter().map(|key| key["kid"].as_str().unwrap()).collect();
    kids.sort_unstable();
    let mut both = [old.clone(), new.to_string()];
    both.sort();
    assert_eq!(kids, both);
    assert!(std::fs::read(site.key_file()).unwrap() == bytes, "the active one is the key file");
    opens(site);

    std::fs::remove_file(site.path(&format!("etc/secrets.key.d/{old}"))).unwrap();
    let (code, log) = site.refused();
    assert!(code == Some(5) && log.contains("`containarium backup restore`"), "{log}");
    assert_eq!(answer(&restore(site, &["-o", "json"]))["keys"][0]["kid"], old, "the missing one alone");
    opens(site);

    lose_keys(site);
    put(&site.key_file(), &old_bytes);
    assert!(restore(site, &[]).status.success());
    assert!(std::fs::read(site.key_file()).unwrap() == bytes);
    assert!(
        names(site).iter().any(|name| name.starts_with(&format!("secrets.key.replaced-{old}-"))),
        "{:?}",
        names(site)
    );
    opens(site);
}

fn a_copy_that_does_not_match_touches_no_file(site: &Site) {
    let cloud = Cloud::of(site);
    let (key, kid) = populated(site);
    let (stranger, strange) = new_key();
    for bytes in [&stranger[..], &key[..31], &[&key[..], b"\n"].concat(), &key, &key] {
        cloud.add(bytes);
    }
    cloud.set_state(4, "disable");
    cloud.set_state(5, "destroy");
    put(&site.key_file(), &stranger);
    std::fs::remove_dir_all(site.path("etc/secrets.key.d")).unwrap();
    let before = key_files(site);
    for (version, code, words) in [
        ("1", 6, vec![strange.to_string(), kid.clone(), "has never had".to_owned()]),
        ("2", 1, vec!["31 bytes".to_owned(), "exactly 32".to_owned()]),
        ("3", 1, vec!["33 bytes".to_owned()]),
        ("4", 1, vec!["disabled".to_owned(), "gcloud secrets versions enable 4".to_owned()]),
        ("5", 3, vec!["destroyed".to_owned()]),
        ("6", 3, vec!["no such version".to_owned()]),
    ] {
        let words: Vec<&str> = words.iter().map(String::as_str).chain(["help:"]).collect();
        fails(&restore(site, &["--version", version]), code, &words);
    }
    fails(&restore(site, &[]), 3, &[&kid, "version 4: disabled", "version 3: no master key", &strange.to_string()]);
    fails(&restore(site, &["--kid", &strange.to_string()]), 6, &["has never had"]);
    fails(&restore(site, &["--secret", "projects/acme-prod/secrets/other"]), 3, &["there is no such secret"]);
    fails(&restore(site, &["--secret", "nonsense"]), 2, &["projects/PROJECT/secrets/SECRET"]);
    for (fault, code) in [("503", 5), ("401", 4), ("flipped-bit", 3), ("cut", 5)] {
        cloud.heal();
        cloud.fault(fault, "access");
        fails(&restore(site, &[]), code, &[&kid]);
    }
    assert!(key_files(site) == before, "some file was touched");
}

fn key_files(site: &Site) -> HashMap<PathBuf, Vec<u8>> {
    site.files().into_iter().filter(|(path, _)| path.starts_with(site.path("etc"))).collect()
}

fn what_lay_in_the_key_files_place_is_kept_under_its_name_and_the_time(site: &Site) {
    let cloud = Cloud::of(site);
    let (key, _) = populated(site);
    cloud.add(&key);
    let text = String::from_utf8_lossy(&key).into_owned().into_bytes();
    let (stranger, strange) = new_key();
    for (content, called) in [(text, "unreadable".to_owned()), (stranger, strange.to_string())] {
        lose_keys(site);
        put(&site.key_file(), &content);
        let restored = answer(&restore(site, &["-o", "json"]));
        let replaced = restored["replaced"].as_str().unwrap();
        assert!(
            replaced.contains(&format!("secrets.key.replaced-{called}-20")) && replaced.ends_with('Z'),
            "{replaced}"
        );
        assert!(std::fs::read(replaced).unwrap() == content);
        opens(site);
    }
    lose_keys(site);
    std::fs::create_dir_all(site.key_file()).unwrap();
    std::fs::set_permissions(site.path("etc"), PermissionsExt::from_mode(0o700)).unwrap();
    assert!(answer(&restore(site, &["-o", "json"]))["replaced"].as_str().unwrap().contains("unreadable"));
    opens(site);
}

fn a_key_comes_back_from_age_from_paper_and_as_it_is(site: &Site) {
    let (key, kid) = populated(site);
    let identity = age::x25519::Identity::generate();
    let secret = age::secrecy::ExposeSecret::expose_secret(&identity.to_string()).to_owned();
    std::fs::write(site.path("identity.txt"), secret).unwrap();
    let recipient = identity.to_public().to_string();
    let identity = site.path("identity.txt").display().to_string();
    let copy = site.path("copy").display().to_string();
    for (export, more) in [
        (vec!["--age", &recipient], vec!["--identity", &identity]),
        (vec!["--paper"], vec![]),
        (vec!["--stdout-raw"], vec![]),
    ] {
        let exported = site.cli([vec!["backup", "export"], export.clone()].concat(), b"");
        assert!(exported.status.success(), "{}", said(&exported));
        assert!(said(&exported).contains(&kid), "{}", said(&exported));
        std::fs::write(&copy, &exported.stdout).unwrap();
        lose_keys(site);
        let words = [vec!["backup", "restore", "-o", "json", "--from", &copy], more.clone()].concat();
        assert_eq!(answer(&site.cli(words, b""))["keys"][0]["from"], copy.as_str());
        assert!(std::fs::read(site.key_file()).unwrap() == key, "{export:?}");
        opens(site);
        lose_keys(site);
        let words = [vec!["backup", "restore", "--from", "-"], more].concat();
        assert!(site.cli(words, &exported.stdout).status.success(), "{export:?}");
        opens(site);
    }
}

#[test]
fn a_bad_copy_in_a_file_is_named_and_touches_nothing() {
    let site = Site::sqlite();
    let (key, _) = populated(&site);
    let sheet = String::from_utf8(site.cli(["backup", "export", "--paper"], b"").stdout).unwrap();
    let recipient = age::x25519::Identity::generate().to_public().to_string();
    let sealed = site.cli(["backup", "export", "--age", &recipient], b"").stdout;
    lose_keys(&site);
    let stranger = age::x25519::Identity::generate();
    let secret = age::secrecy::ExposeSecret::expose_secret(&stranger.to_string()).to_owned();
    std::fs::write(site.path("identity.txt"), secret).unwrap();
    let identity = site.path("identity.txt").display().to_string();
    let third = sheet.lines().position(|line| line.starts_with("2:")).unwrap();
    let mistyped: Vec<String> = sheet
        .lines()
        .enumerate()
        .map(|(at, line)| if at == third { swap_two(line) } else { line.to_owned() })
        .collect();
    let from = |input: &[u8], more: &[&str]| site.cli([&["backup", "restore", "--from", "-"], more].concat(), input);
    fails(&from(mistyped.join("\n").as_bytes(), &[]), 2, &["line 2"]);
    fails(&from(&sealed, &[]), 2, &["identity"]);
    fails(&from(&sealed, &["--identity", &identity]), 2, &["none of the 1 identities opens"]);
    let short = from(&key[..31], &[]);
    fails(&short, 1, &["31 bytes", "standard input", "help: take another copy", "without --from"]);
    assert!(!said(&short).contains("--version"), "{}", said(&short));
    fails(&from(b"", &[]), 1, &["it is empty"]);
    fails(&from(&new_key().0, &[]), 6, &["has never had"]);
    fails(&site.cli(["backup", "restore", "--from", "/nowhere"], b""), 2, &["/nowhere"]);
    fails(&site.cli(["backup", "restore", "--from", "-", "--version", "1"], b""), 2, &["cannot be used with"]);
    fails(&site.cli(["backup", "restore"], b""), 2, &["no secret is configured", "--from FILE"]);
    assert!(names(&site).is_empty(), "{:?}", names(&site));
}

/// The first two characters of a sheet's line that differ, typed the other way round.
fn swap_two(line: &str) -> String {
    let (number, rest) = line.split_once(": ").unwrap();
    let mut text: Vec<char> = rest.chars().collect();
    let at = (0..3).find(|at| text[*at] != text[at + 1]).unwrap();
    text.swap(at, at + 1);
    format!("{number}: {}", text.iter().collect::<String>())
}

#[test]
fn a_key_that_the_first_secret_cannot_give_comes_from_the_second() {
    let site = Site::sqlite();
    let cloud = Cloud::with(&site, &["projects/acme-prod/secrets/not-there", SECRET, OFFSITE], "");
    let (key, kid) = populated(&site);
    lose_keys(&site);
    fails(&restore(&site, &[]), 3, &["not-there", &kid, "not found"]);
    fails(&restore(&site, &["--version", "1"]), 2, &["3 secrets are configured", "--secret"]);
    cloud.runtime.block_on(cloud.google.add(OFFSITE, &key));
    let restored = answer(&restore(&site, &["-o", "json"]));
    assert_eq!(restored["keys"][0]["from"], format!("{OFFSITE}/versions/1"));
    opens(&site);
    lose_keys(&site);
    assert!(restore(&site, &["--version", "1", "--secret", OFFSITE]).status.success());
    opens(&site);
}

#[test]
fn a_terminal_is_given_no_raw_key() {
    let site = Site::sqlite();
    let (key, _) = populated(&site);
    let command = format!("{} backup export --stdout-raw", env!("CARGO_BIN_EXE_containarium"));
    let mut terminal = site.command(["unused"]);
    let variables: Vec<_> =
        terminal.get_envs().map(|(name, value)| (name.to_owned(), value.map(ToOwned::to_owned))).collect();
    terminal = std::process::Command::new("script");
    terminal.args(["--quiet", "--return", "--command", &command, "/dev/null"]).env_clear();
    terminal.envs(variables.into_iter().filter_map(|(name, value)| Some((name, value?))));
    let shown = terminal.output().unwrap();
    assert_eq!(shown.status.code(), Some(2), "{shown:?}");
    assert!(String::from_utf8_lossy(&shown.stdout).contains("not written to a terminal"), "{shown:?}");
    assert!(!shown.stdout.windows(32).any(|window| window == key));
}

#[test]
fn with_no_database_a_number_or_a_kid_says_which_key_comes_back() {
    let site = Site::sqlite();
    let cloud = Cloud::of(&site);
    let (key, kid) = populated(&site);
    cloud.add(&key);
    cloud.add(&new_key().0);
    let kept = std::fs::read(site.data_dir().join("containarium.db")).unwrap();
    for words in [["--version", "1"], ["--kid", &kid]] {
        lose_keys(&site);
        std::fs::remove_dir_all(site.data_dir()).unwrap();
        fails(&restore(&site, &[]), 2, &["there is no database", "--version N", "--kid KID"]);
        assert!(names(&site).is_empty());
        let restored = answer(&restore(&site, &[&words[..], &["-o", "json"]].concat()));
        assert!(restored["keys"][0]["kid"] == kid && restored["keys"][0].get("state").is_none(), "{restored}");
        assert!(std::fs::read(site.key_file()).unwrap() == key);
        std::fs::create_dir(site.data_dir()).unwrap();
        std::fs::write(site.data_dir().join("containarium.db"), &kept).unwrap();
        opens(&site);
    }
}

#[test]
fn a_database_that_cannot_be_read_stops_a_restore_that_would_go_by_it() {
    let site = Site::on_server("postgres://nobody@127.0.0.1:1/none".to_owned());
    let cloud = Cloud::of(&site);
    let (key, kid) = new_key();
    cloud.add(&key);
    fails(&restore(&site, &[]), 5, &["the database cannot be read", "--kid KID"]);
    let restored = restore(&site, &["--kid", &kid.to_string()]);
    assert!(restored.status.success() && said(&restored).contains("was not checked"), "{}", said(&restored));
    assert!(std::fs::read(site.key_file()).unwrap() == key);

    // What lay there may be the key in use: it stays where a daemon looks for keys.
    std::fs::remove_file(site.path("etc/secrets.key.d").join(kid.to_string())).unwrap();
    let (other, wanted) = new_key();
    cloud.add(&other);
    let restored = restore(&site, &["--kid", &wanted.to_string()]);
    assert!(restored.status.success(), "{}", said(&restored));
    assert!(std::fs::read(site.key_file()).unwrap() == other);
    assert!(std::fs::read(site.path("etc/secrets.key.d").join(kid.to_string())).unwrap() == key);
}

#[test]
fn a_second_writer_of_key_files_is_waited_for_and_then_named() {
    let site = Site::sqlite();
    let cloud = Cloud::of(&site);
    let (key, _) = populated(&site);
    cloud.add(&key);
    std::fs::remove_file(site.key_file()).unwrap();
    std::fs::remove_dir_all(site.path("etc/secrets.key.d")).unwrap();
    let files = containarium::keys::keyfile::KeyFiles::at(&site.key_file()).unwrap();
    let lock = files.lock().unwrap();
    fails(&restore(&site, &[]), 6, &["another writer of key files"]);
    assert!(names(&site).is_empty(), "{:?}", names(&site));
    drop(lock);
    answer(&restore(&site, &["-o", "json"]));
    opens(&site);
}
