//! `kms wrap`, `unwrap` and `rewrap`, and what copies and rotations make of a wrapped key file.

use std::process::Stdio;
use std::time::{Duration, Instant};

use super::*;

#[test]
fn wrapping_beside_a_running_daemon_changes_the_file_and_nothing_else() {
    let site = Site::sqlite();
    let cloud = Cloud::of(&site);
    let daemon = site.start();
    assert_eq!(daemon.set("alice", "A", b"one").status, 200);
    let (raw, kid) = (key_file(&site), main_kid(&site));
    assert_eq!(raw.len(), 32);
    cloud.wrap(&site);
    let file = wrapped(&site);
    assert_eq!(file.kid, kid);
    assert_eq!(file.kms().map(|(key, _)| key.to_string()).collect::<Vec<_>>(), [KMS_KEY]);
    assert_eq!(file.age().count(), 1);
    let text = key_file(&site);
    let base64 = data_encoding::BASE64.encode(&raw);
    assert!(!text.windows(32).any(|window| window == raw) && !String::from_utf8(text).unwrap().contains(&base64));
    assert_eq!(daemon.value("alice", "A").unwrap(), b"one");
    let status = as_operator(&site, &["kms", "status", "-o", "json"]);
    done(&status);
    let answer: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(answer["files"][0]["form"], "wrapped");
    assert_eq!(answer["files"][0]["recipients"][0]["opens"], true);
    assert_eq!(answer["files"][0]["recipients"][0]["usedPrimary"], true);
    assert_eq!(answer["files"][0]["recipients"][1]["opens"], Value::Null, "no identity was given");
    fails(
        &as_operator(&site, &["kms", "wrap", "--kms-is-the-only-way-back"]),
        6,
        &["every key file is wrapped already"],
    );
    // And back: the same bytes as before.
    done(&as_operator(&site, &["kms", "unwrap"]));
    assert_eq!(key_file(&site), raw);
    fails(&as_operator(&site, &["kms", "unwrap"]), 6, &["every key file is raw already"]);
    fails(&as_operator(&site, &["kms", "rewrap"]), 6, &["every key file is raw already"]);
}

#[test]
fn a_key_that_one_kms_key_alone_would_open_is_wrapped_only_where_that_is_accepted() {
    let site = Site::sqlite();
    let cloud = Cloud::of(&site);
    let daemon = site.start();
    let raw = key_file(&site);
    fails(&as_operator(&site, &["kms", "wrap"]), 6, &["one KMS key and nothing else", "--kms-is-the-only-way-back"]);
    assert_eq!(key_file(&site), raw);
    // A recipient of age that nobody has shown to open anything is none.
    fails(&as_operator(&site, &["kms", "wrap", "--age", &cloud.recipient]), 6, &["one KMS key and nothing else"]);
    let stranger = ::age::x25519::Identity::generate().to_public().to_string();
    let identity = site.path("identity.txt").display().to_string();
    let unproven = ["kms", "wrap", "--age", &stranger, "--age-identity", &identity];
    fails(&as_operator(&site, &unproven), 1, &["none of the 1 identities opens this age file"]);
    assert_eq!(key_file(&site), raw);
    let accepted = as_operator(&site, &["kms", "wrap", "--age", &cloud.recipient, "--kms-is-the-only-way-back"]);
    done(&accepted);
    assert!(said(&accepted).contains("one KMS key is the only way back"), "{}", said(&accepted));
    // And such a file is no backup, and doctor says so.
    let refused = "nothing but one KMS key is known to open the file";
    fails(&site.cli(["backup", "push"], b""), 6, &[refused, "--kms-is-the-only-way-back"]);
    assert_eq!(cloud.requests("add", "daemon"), 0);
    site.logged("listening on");
    let check = kms_check(&daemon);
    assert_eq!(check["verdict"], "warning", "{check}");
    // Once the recipient's identity was seen to open it, it is one; another recipient's is none.
    done(&as_operator(&site, &["kms", "rewrap", "--age-identity", &identity]));
    assert!(wrapped(&site).has_another_way());
    let status: Value = serde_json::from_slice(&as_operator(&site, &["kms", "status", "-o", "json"]).stdout).unwrap();
    assert!(status["files"][0]["recipients"][1]["provenAt"].is_string(), "{status}");
    let check = kms_check(&daemon);
    assert!(!check["finding"].to_string().contains("nothing but one KMS key"), "{check}");
    done(&site.cli(["backup", "push"], b""));
    assert_eq!(cloud.requests("add", "daemon"), 1);
    done(&as_operator(&site, &["kms", "rewrap", "--kms-is-the-only-way-back"]));
    assert!(!wrapped(&site).has_another_way(), "what was proven was another ciphertext");
    // With a raw copy off the host it is another matter.
    done(&as_operator(&site, &["kms", "unwrap"]));
    done(&site.cli(["backup", "push"], b""));
    done(&as_operator(&site, &["kms", "wrap"]));
    done(&site.cli(["backup", "push"], b""));
    assert_eq!(cloud.requests("add", "daemon"), 3, "the proven one, the raw bytes, and the wrapped ones");
}

#[test]
fn who_may_not_do_it_changes_nothing() {
    let site = Site::sqlite();
    let cloud = Cloud::of(&site);
    site.start().stop();
    let raw = key_file(&site);
    let identity = site.path("identity.txt").display().to_string();
    let wrap = ["kms", "wrap", "--age", &cloud.recipient, "--age-identity", &identity];
    fails(&with(&site, "nobody.toml", &wrap), 4, &["cloudkms.cryptoKeyVersions.useToEncrypt"]);
    fails(&with(&site, "config.toml", &wrap), 4, &["cloudkms.cryptoKeyVersions.useToEncrypt"]);
    // What cannot be proven to open is not put in place.
    fails(&with(&site, "wrapper.toml", &wrap), 4, &["cloudkms.cryptoKeyVersions.useToDecrypt"]);
    cloud.fault("other-key", "decrypt");
    fails(&as_operator(&site, &wrap), 1, &["does not open again", "gave another master key"]);
    cloud.heal();
    cloud.fault("unconfirmed", "encrypt");
    fails(&as_operator(&site, &wrap), 1, &["did not confirm the checksums"]);
    assert_eq!(key_file(&site), raw);
}

#[test]
fn a_rewrap_takes_the_primary_version_and_another_key() {
    let site = Site::sqlite();
    let cloud = wrapped_site(&site);
    cloud.runtime.block_on(cloud.google.rotate_kms(KMS_KEY));
    let status = as_operator(&site, &["kms", "status"]);
    done(&status);
    assert!(said(&status).contains("not primary") && said(&status).contains("kms rewrap"), "{}", said(&status));
    let before = wrapped(&site);
    let identity = site.path("identity.txt").display().to_string();
    done(&as_operator(&site, &["kms", "rewrap", "--age-identity", &identity]));
    let after = wrapped(&site);
    assert_ne!(before, after);
    assert_eq!(after.age().count(), 1, "its recipients stay");
    assert!(!said(&as_operator(&site, &["kms", "status"])).contains("not primary"));
    done(&as_operator(&site, &["kms", "rewrap", "--key", OTHER_KMS_KEY, "--age-identity", &identity]));
    assert_eq!(wrapped(&site).kms_keys()[0].as_str(), OTHER_KMS_KEY);
    // The first key is not needed any more.
    cloud.runtime.block_on(cloud.google.destroy_kms(KMS_KEY, 1));
    cloud.runtime.block_on(cloud.google.destroy_kms(KMS_KEY, 2));
    let daemon = site.start();
    assert_eq!(daemon.value("alice", "A").unwrap(), b"one");
}

#[test]
fn while_a_rotation_runs_the_key_files_stay_as_they_are() {
    let site = Site::sqlite();
    let cloud = wrapped_site(&site);
    let daemon = site.start();
    let identity = site.path("identity.txt").display().to_string();
    // A rotation that waits for the proof of a copy.
    let rotate = ["admin", "rotate-master", "--escrow", "prove", "--age-identity", &identity];
    done(&as_operator(&site, &rotate));
    let before = key_file(&site);
    for words in [&["kms", "unwrap"][..], &["kms", "rewrap", "--age-identity", &identity]] {
        fails(&as_operator(&site, words), 6, &["a rotation of the master key is under way"]);
    }
    done(&site.cli(["admin", "rotate-master", "--abort", "--yes"], b""));
    assert_eq!(key_file(&site), before);
    done(&as_operator(&site, &["kms", "unwrap"]));
    cloud.wrap(&site);
    assert_eq!(daemon.value("alice", "A").unwrap(), b"one");
}

#[test]
fn copies_of_a_wrapped_file_are_pushed_restored_and_tried_as_they_are() {
    let site = Site::sqlite();
    let cloud = wrapped_site(&site);
    let daemon = site.start();
    let file = key_file(&site);
    done(&site.cli(["backup", "push"], b""));
    // What that copy needs stays known when the file does not need it any more.
    cloud.runtime.block_on(cloud.google.rotate_kms(KMS_KEY));
    let identity = site.path("identity.txt").display().to_string();
    done(&as_operator(&site, &["kms", "rewrap", "--age-identity", &identity]));
    let status = as_operator(&site, &["kms", "status", "-o", "json"]);
    done(&status);
    let answer: Value = serde_json::from_slice(&status.stdout).unwrap();
    let needed = format!("{KMS_KEY}/cryptoKeyVersions/1");
    assert_eq!(
        answer["neededVersions"],
        serde_json::json!([{"keyVersion": needed, "kid": wrapped(&site).kid.to_string(), "copies": 1}])
    );
    assert!(wrapped(&site).kms_versions().all(|version| version.ends_with("/2")));
    assert!(said(&as_operator(&site, &["kms", "status"])).contains("IS NEEDED BY COPIES"));
    let file = {
        let newer = key_file(&site);
        assert_ne!(newer, file);
        newer
    };
    done(&site.cli(["backup", "push"], b""));
    done(&with(&site, "restore.toml", &["backup", "verify"]));
    daemon.stop();
    std::fs::remove_file(site.key_file()).unwrap();
    std::fs::remove_dir_all(site.path("etc/secrets.key.d")).unwrap();
    done(&with(&site, "restore.toml", &["backup", "restore"]));
    assert_eq!(key_file(&site), file);
    let daemon = site.start();
    assert_eq!(daemon.value("alice", "A").unwrap(), b"one");
    let copy = site.path("copy.json").display().to_string();
    std::fs::write(&copy, &file).unwrap();
    done(&as_operator(&site, &["backup", "drill", "--from", &copy]));
    fails(&with(&site, "nobody.toml", &["backup", "drill", "--from", &copy]), 1, &["was denied"]);
    let identity = site.path("identity.txt").display().to_string();
    done(&with(&site, "nobody.toml", &["backup", "drill", "--from", &copy, "--identity", &identity]));
    drop(cloud);
}

/// Between a raw file, one KMS key and another, with kills at any moment, while secrets are read and written.
#[test]
fn moving_between_raw_and_two_kms_keys_with_kills_never_leaves_a_moment_without_an_openable_file() {
    move_with_kills(&Site::sqlite());
}

#[test]
fn the_same_moves_and_kills_beside_postgresql() {
    move_with_kills(&Site::postgres());
}

fn move_with_kills(site: &Site) {
    let cloud = Cloud::of(site);
    let daemon = site.start();
    let kid = main_kid(site);
    let identity = site.path("identity.txt").display().to_string();
    let config = site.path("operator.toml").display().to_string();
    let moves: [&[&str]; 4] = [
        &["kms", "wrap", "--age", &cloud.recipient],
        &["kms", "rewrap", "--key", OTHER_KMS_KEY],
        &["kms", "rewrap", "--key", KMS_KEY],
        &["kms", "unwrap"],
    ];
    let mut number = 0_u32;
    for round in 0..3_u32 {
        for words in moves {
            let words: Vec<&str> =
                words.iter().copied().chain(["--age-identity", &identity, "--config", &config]).collect();
            for attempt in 0..6_u32 {
                let mut command = site.command(&words);
                let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
                let patience = Duration::from_millis(u64::from(7 + 23 * attempt + 5 * round));
                let begun = Instant::now();
                // Reads and writes go on; each looks at the file too, which is whole at every moment.
                while begun.elapsed() < patience && child.try_wait().unwrap().is_none() {
                    number += 1;
                    let value = number.to_string();
                    assert_eq!(daemon.set("alice", "A", value.as_bytes()).status, 200);
                    assert_eq!(daemon.value("alice", "A").unwrap(), value.as_bytes());
                    assert_eq!(main_kid(site), kid);
                }
                let _gone = child.kill();
                child.wait().unwrap();
                assert_eq!(main_kid(site), kid);
            }
            // Whether a killed one came to its end or not: now it does, or says that there is nothing left to do.
            let output = site.cli(&words, b"");
            assert!(matches!(output.status.code(), Some(0 | 6)), "{}", said(&output));
        }
    }
    daemon.kill();
    let daemon = site.start();
    assert_eq!(daemon.value("alice", "A").unwrap(), number.to_string().as_bytes());
    assert_eq!(key_file(site).len(), 32);
}
