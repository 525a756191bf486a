//! Copies of wrapped keys that come back: what says that it is a key is believed when it opens.

use std::os::unix::fs::PermissionsExt;

use containarium::model::Wrapping;

use super::*;

/// The key file with every ciphertext changed: it says that it is the key, as whoever may add a version or a file can have it say.
fn junk(site: &Site) -> Vec<u8> {
    let mut file = wrapped(site);
    for recipient in &mut file.recipients {
        let (Wrapping::GcpKms { ciphertext, .. } | Wrapping::Age { ciphertext, .. }) = recipient;
        *ciphertext.last_mut().unwrap() ^= 1;
    }
    file.to_json()
}

fn put_key_file(site: &Site, bytes: &[u8]) {
    let _absent = std::fs::remove_file(site.key_file());
    std::fs::write(site.key_file(), bytes).unwrap();
    std::fs::set_permissions(site.key_file(), PermissionsExt::from_mode(0o400)).unwrap();
}

fn lose_keys(site: &Site) {
    std::fs::remove_dir_all(site.path("etc")).unwrap();
}

fn asides(site: &Site) -> Vec<String> {
    let names = std::fs::read_dir(site.path("etc")).unwrap().map(|entry| entry.unwrap().file_name().into_string());
    names.map(Result::unwrap).filter(|name| name.contains(".replaced-")).collect()
}

fn file(site: &Site, name: &str, bytes: &[u8]) -> String {
    let path = site.path(name);
    std::fs::write(&path, bytes).unwrap();
    path.display().to_string()
}

fn opens(site: &Site) {
    let daemon = site.start();
    assert_eq!(daemon.value("alice", "A").unwrap(), b"one", "{}", site.log());
    daemon.stop();
}

#[test]
fn a_key_file_whose_kms_key_is_gone_makes_room_for_what_opens_the_database() {
    let site = Site::sqlite();
    let cloud = Cloud::of(&site);
    let daemon = site.start();
    assert_eq!(daemon.set("alice", "A", b"one").status, 200);
    let raw = key_file(&site);
    daemon.stop();
    cloud.wrap(&site);
    let (dead, kid) = (key_file(&site), main_kid(&site));
    cloud.runtime.block_on(cloud.google.destroy_kms(KMS_KEY, 1));
    // There is no copy yet: that is said, and not that all is well.
    fails(
        &with(&site, "owner.toml", &["backup", "restore"]),
        3,
        &["does not open", "is destroyed", "no copy was found"],
    );
    assert_eq!(key_file(&site), dead);
    let copy = file(&site, "raw.key", &raw);
    let restored = with(&site, "owner.toml", &["backup", "restore", "--from", &copy]);
    done(&restored);
    assert!(said(&restored).contains("secrets.key.replaced-"), "{}", said(&restored));
    assert_eq!(key_file(&site), raw);
    assert_eq!(asides(&site).len(), 1, "{:?}", asides(&site));
    assert_eq!(std::fs::read(site.path("etc").join(&asides(&site)[0])).unwrap(), dead);
    opens(&site);
    // The same with nothing named: the copy that opens is looked for, and the retained one of the same form makes room too.
    put_key_file(&site, &dead);
    let retained = site.path("etc/secrets.key.d").join(kid.to_string());
    std::fs::remove_file(&retained).unwrap();
    cloud.runtime.block_on(cloud.google.add(SECRET, &raw));
    cloud.runtime.block_on(cloud.google.add(SECRET, &dead));
    let restored = with(&site, "owner.toml", &["backup", "restore", "-o", "json"]);
    done(&restored);
    let answer: Value = serde_json::from_slice(&restored.stdout).unwrap();
    assert_eq!(answer["keys"][0]["from"], format!("{SECRET}/versions/1"), "{answer}");
    assert_eq!((key_file(&site), std::fs::read(&retained).unwrap()), (raw.clone(), raw));
    opens(&site);
}

#[test]
fn a_wrapped_copy_that_opens_takes_the_place_of_one_that_does_not_and_stays_wrapped() {
    let site = Site::sqlite();
    let cloud = Cloud::of(&site);
    let daemon = site.start();
    assert_eq!(daemon.set("alice", "A", b"one").status, 200);
    daemon.stop();
    let raw = key_file(&site);
    cloud.wrap(&site);
    let (dead, kid) = (key_file(&site), main_kid(&site));
    let identity = site.path("identity.txt").display().to_string();
    done(&as_operator(&site, &["kms", "rewrap", "--key", OTHER_KMS_KEY, "--age-identity", &identity]));
    let good = file(&site, "good.json", &key_file(&site));
    put_key_file(&site, &dead);
    cloud.runtime.block_on(cloud.google.destroy_kms(KMS_KEY, 1));
    // A raw copy that was forgotten is not what was asked for.
    let retained = site.path("etc/secrets.key.d").join(kid.to_string());
    put_key_file(&site, &raw);
    let _made = std::fs::create_dir(site.path("etc/secrets.key.d"));
    std::fs::set_permissions(site.path("etc/secrets.key.d"), PermissionsExt::from_mode(0o700)).unwrap();
    let _absent = std::fs::remove_file(&retained);
    std::fs::rename(site.key_file(), &retained).unwrap();
    put_key_file(&site, &dead);
    done(&with(&site, "owner.toml", &["backup", "restore", "--from", &good]));
    assert_eq!(wrapped(&site).kms_keys()[0].as_str(), OTHER_KMS_KEY);
    opens(&site);
    site.logged(READY);
    // What lies there and opens is not given up for an older copy by its kid.
    cloud.runtime.block_on(cloud.google.add(SECRET, &raw));
    let kid = kid.to_string();
    let again = with(&site, "owner.toml", &["backup", "restore", "--kid", &kid]);
    done(&again);
    assert!(said(&again).contains("nothing was changed"), "{}", said(&again));
    assert_eq!(wrapped(&site).kms_keys()[0].as_str(), OTHER_KMS_KEY);
}

#[test]
fn a_wrapped_copy_that_does_not_open_takes_nothings_place() {
    let site = Site::sqlite();
    let cloud = wrapped_site(&site);
    let (before, copy) = (key_file(&site), file(&site, "junk.json", &junk(&site)));
    let refused = with(&site, "owner.toml", &["backup", "restore", "--from", &copy]);
    fails(&refused, 1, &["takes nothing's place", "did not encrypt this ciphertext"]);
    assert_eq!((key_file(&site), asides(&site)), (before, Vec::new()));
    opens(&site);
    drop(cloud);
}

#[test]
fn a_newest_version_that_only_says_it_is_the_key_hides_no_older_one() {
    let site = Site::sqlite();
    let cloud = wrapped_site(&site);
    let daemon = site.start();
    done(&site.cli(["backup", "push"], b""));
    daemon.stop();
    let (good, identity) = (key_file(&site), site.path("identity.txt").display().to_string());
    cloud.runtime.block_on(cloud.google.add(SECRET, &junk(&site)));
    for config in ["owner.toml", "restore.toml"] {
        lose_keys(&site);
        let words: &[&str] = if config == "owner.toml" { &[] } else { &["--age-identity", &identity] };
        done(&with(&site, config, &[&["backup", "restore"], words].concat()));
        assert_eq!(key_file(&site), good, "{config}");
    }
    // Who can open neither takes what is known to have been pushed, and is told that it is not proven.
    lose_keys(&site);
    let restored = with(&site, "restore.toml", &["backup", "restore"]);
    done(&restored);
    assert!(said(&restored).contains("is not proven") && said(&restored).contains("was denied"), "{}", said(&restored));
    assert_eq!(key_file(&site), good);
    done(&with(&site, "restore.toml", &["backup", "drill", "--age-identity", &identity]));
    fails(&with(&site, "restore.toml", &["backup", "drill"]), 1, &["was denied"]);
    opens(&site);
}

#[test]
fn a_wrapped_copy_is_verified_by_opening_it_and_by_nothing_else() {
    let site = Site::sqlite();
    let cloud = wrapped_site(&site);
    let _daemon = site.start();
    done(&site.cli(["backup", "push"], b""));
    let read_back = || site.number("SELECT count(*) FROM escrows WHERE read_back_at IS NOT NULL");
    let identity = site.path("identity.txt").display().to_string();
    let copy = key_file(&site);
    fails(&with(&site, "restore.toml", &["backup", "verify"]), 4, &["nothing is proven of it", "was denied"]);
    // Uploaded by other means, and not what it says.
    fails(&with(&site, "owner.toml", &["backup", "verify", "--from", "-"]), 1, &["not a master key"]);
    let from = |config: &str, more: &[&str], bytes: &[u8]| {
        let config = site.path(config).display().to_string();
        site.cli([&["backup", "verify", "--from", "-", "--config", &config], more].concat(), bytes)
    };
    fails(&from("owner.toml", &[], &junk(&site)), 1, &["was not opened", "nothing was recorded"]);
    fails(&from("nobody.toml", &[], &copy), 4, &["was not opened", "was denied"]);
    assert_eq!(read_back(), 0);
    done(&from("nobody.toml", &["--identity", &identity], &copy));
    assert_eq!(read_back(), 1);
    // What was exported and proven needs its version of the KMS key as what was pushed does.
    let status = as_operator(&site, &["kms", "status", "-o", "json"]);
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["neededVersions"][0]["copies"], 2, "{status}");
    done(&with(&site, "restore.toml", &["backup", "verify", "--age-identity", &identity]));
    assert_eq!(read_back(), 2);
    // What one KMS key alone is known to open is lost with it.
    done(&as_operator(&site, &["kms", "rewrap", "--kms-is-the-only-way-back"]));
    let alone = key_file(&site);
    fails(&from("operator.toml", &[], &alone), 6, &["nothing but one KMS key", "--kms-is-the-only-way-back"]);
    assert_eq!(read_back(), 2);
    done(&from("operator.toml", &["--kms-is-the-only-way-back"], &alone));
    assert_eq!(read_back(), 3);
    drop(cloud);
}
