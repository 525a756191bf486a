//! A populated deployment loses its key files: the daemon refuses and names a command, and that very command brings them back.

use super::super::on_both_stores;
use super::super::rotation::refusals::{damage, put as put_dek};
use super::super::rotation::{WAIVE, phase, refused, rotated};
use super::shell::{Shell, is_here, named, refusal};
use super::*;

on_both_stores![
    the_right_one_of_ten_versions_is_found_by_its_kid,
    in_the_middle_of_a_rotation_both_needed_keys_come_back_and_it_goes_on,
    an_age_file_brings_the_key_back,
    a_sheet_of_paper_brings_the_key_back_and_a_mistyped_character_is_named_by_its_line,
];

/// Runs the command that the refusal names, with these words for those that it leaves to the reader.
fn as_named(site: &Site, words: &str, fill_in: &[(&str, &str)]) -> Output {
    let command = named(&refusal(site), words);
    let command = fill_in.iter().fold(command, |text, (word, with)| text.replace(word, with));
    let config = if site.path("restore.toml").exists() { "restore.toml" } else { "config.toml" };
    Shell::at(site).run(config, &command, &[])
}

#[track_caller]
fn restores(output: &Output, kids: &[&str]) {
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", said(output));
    let found: Vec<&str> = told.lines().filter_map(|line| line.strip_prefix("restored master key ")).collect();
    assert_eq!(found.len(), kids.len(), "{told}");
    for kid in kids {
        assert!(found.iter().any(|line| line.starts_with(kid)), "{kid} in {told}");
    }
}

fn the_right_one_of_ten_versions_is_found_by_its_kid(site: &Site) {
    let cloud = Cloud::of(site);
    let (key, kid) = populated(site);
    for number in 1..=10 {
        cloud.add(&if number == 7 { key.clone() } else { new_key().0 });
    }
    lose_keys(site);
    let restored = as_named(site, "containarium backup restore", &[]);
    restores(&restored, &[&kid]);
    assert!(String::from_utf8_lossy(&restored.stdout).contains(&format!("{SECRET}/versions/7")));
    assert!(std::fs::read(site.key_file()).unwrap() == key);
    opens(site);
    lose_keys(site);
    cloud.add(&key);
    let restored = answer(&as_restorer(site, &["backup", "restore", "--kid", &kid, "-o", "json"]));
    assert_eq!(restored["keys"][0]["from"], format!("{SECRET}/versions/11"), "of two copies the newest");
    opens(site);
}

fn in_the_middle_of_a_rotation_both_needed_keys_come_back_and_it_goes_on(site: &Site) {
    let _cloud = Cloud::of(site);
    let (_, old) = populated(site);
    let daemon = site.start();
    let new = rotated(site, &["--escrow", "prove"])["kid"].as_str().unwrap().to_owned();
    let whole = damage(site, "alice");
    let (code, told) = refused(site, &[&["--resume"], &WAIVE[..]].concat());
    assert_eq!((code, phase(site).as_str()), (Some(1), "rewrapping"), "{told}");
    assert_eq!(daemon.value("bob", "KEY").unwrap(), b"bob");
    let pushed = answer(&site.cli(["backup", "push", "-o", "json"], b""));
    assert_eq!(pushed["copies"].as_array().unwrap().len(), 2, "{pushed}");
    assert_eq!(daemon.stop().code(), Some(0));

    lose_keys(site);
    put_dek(site, "alice", &data_encoding::HEXLOWER_PERMISSIVE.decode(whole.as_bytes()).unwrap());
    let restored = as_named(site, "containarium backup restore", &[]);
    restores(&restored, &[&old, &new]);
    let daemon = site.start();
    assert_eq!(kid(&daemon), new);
    for tenant in ["alice", "bob"] {
        assert_eq!(daemon.value(tenant, "KEY").unwrap(), tenant.as_bytes());
    }
    // The daemon goes on with it by itself: what is left to ask is whether it is still at it, or done.
    let (output, report) = super::super::rotation::rotate(site, &["--resume"]);
    let is_over = report.is_some_and(|report| report["end"] == "rotated" || report["end"] == "nothing");
    assert!(is_over || output.status.code() == Some(3), "{output:?}");
    assert_eq!(phase(site), "idle");
    assert_eq!(daemon.stop().code(), Some(0));
    opens(site);
}

/// Made and opened by another implementation where it is here.
fn an_age_file_brings_the_key_back(site: &Site) {
    let (key, kid) = populated(site);
    let shell = Shell::at(site);
    let typed = |command: &str| {
        let done = shell.run("config.toml", command, &[]);
        assert!(done.status.success(), "{command}: {}", said(&done));
        String::from_utf8_lossy(&done.stdout).trim().to_owned()
    };
    let by_age = is_here("age", "an_age_file_brings_the_key_back");
    let recipient = if by_age {
        typed("age-keygen -o identity.txt 2>/dev/null; age-keygen -y identity.txt")
    } else {
        let identity = age::x25519::Identity::generate();
        let secret = age::secrecy::ExposeSecret::expose_secret(&identity.to_string()).to_owned();
        std::fs::write(site.path("identity.txt"), secret).unwrap();
        identity.to_public().to_string()
    };
    typed(&format!("containarium backup export --age {recipient} > ours.age"));
    let mut copies = vec!["ours.age"];
    if by_age {
        typed("age -d -i identity.txt ours.age > opened");
        assert!(std::fs::read(site.path("opened")).unwrap() == key, "age opens what we made");
        typed(&format!("containarium backup export --stdout-raw | age -r {recipient} > theirs.age"));
        copies.push("theirs.age");
    }
    for copy in copies {
        lose_keys(site);
        let without = as_named(site, "containarium backup restore --from", &[("COPY", copy)]);
        fails(&without, 2, &["--identity"]);
        assert!(names(site).is_empty(), "{:?}", names(site));
        let more = named(&refusal(site), "--identity").replace("FILE", "identity.txt");
        let restored = as_named(site, "containarium backup restore --from", &[("COPY", &format!("{copy} {more}"))]);
        restores(&restored, &[&kid]);
        assert!(std::fs::read(site.key_file()).unwrap() == key);
        opens(site);
    }
}

fn a_sheet_of_paper_brings_the_key_back_and_a_mistyped_character_is_named_by_its_line(site: &Site) {
    let (key, kid) = populated(site);
    let sheet = site.cli(["backup", "export", "--paper"], b"").stdout;
    let sheet = String::from_utf8(sheet).unwrap();
    lose_keys(site);
    let numbered: Vec<usize> = (0..sheet.lines().count())
        .filter(|at| sheet.lines().nth(*at).unwrap().split_once(": ").is_some_and(|(n, _)| n.parse::<u8>().is_ok()))
        .collect();
    assert!(numbered.len() > 1, "{sheet}");
    for at in numbered {
        let number = sheet.lines().nth(at).unwrap().split(':').next().unwrap();
        let lines: Vec<String> =
            sheet.lines().enumerate().map(|(n, line)| if n == at { mistyped(line) } else { line.to_owned() }).collect();
        std::fs::write(site.path("sheet.txt"), lines.join("\n")).unwrap();
        let wrong = as_named(site, "containarium backup restore --from", &[("COPY", "sheet.txt")]);
        fails(&wrong, 2, &[&format!("line {number}")]);
        assert!(names(site).is_empty(), "{:?}", names(site));
    }
    std::fs::write(site.path("sheet.txt"), &sheet).unwrap();
    restores(&as_named(site, "containarium backup restore --from", &[("COPY", "sheet.txt")]), &[&kid]);
    assert!(std::fs::read(site.key_file()).unwrap() == key);
    opens(site);
}

/// With one character of its text another one.
fn mistyped(line: &str) -> String {
    let (number, rest) = line.split_once(": ").unwrap();
    let first = rest.chars().next().unwrap();
    let other = if first == 'a' { 'b' } else { 'a' };
    format!("{number}: {other}{}", &rest[first.len_utf8()..])
}
