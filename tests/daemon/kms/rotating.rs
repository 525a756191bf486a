//! Rotations while the key file is wrapped: the operator's command makes the new key and wraps it, and each daemon opens it by its own
//! permission.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use containarium::keys::identity::AgeIdentity;
use containarium::keys::provider::Provider;

use super::*;

/// With what the operator proves that a new key opens without KMS.
fn rotate(site: &Site, more: &[&str]) -> Output {
    let identity = site.path("identity.txt").display().to_string();
    let words: Vec<&str> =
        ["admin", "rotate-master", "--age-identity", &identity].into_iter().chain(more.iter().copied()).collect();
    as_operator(site, &words)
}

fn retained(site: &Site, kid: &str) -> PathBuf {
    site.path("etc/secrets.key.d").join(kid)
}

/// What `kms status` says that recorded copies need: versions, and how many copies each.
fn needed_versions(site: &Site) -> Value {
    let status = as_operator(site, &["kms", "status", "-o", "json"]);
    done(&status);
    let answer: Value = serde_json::from_slice(&status.stdout).unwrap();
    let needed = answer["neededVersions"].as_array().unwrap().iter();
    needed.map(|needed| serde_json::json!([needed["keyVersion"], needed["copies"]])).collect()
}

fn staged_kid(site: &Site) -> Option<String> {
    site.texts("SELECT encode(kid, 'hex') FROM master_keys WHERE state = 'staged'").pop()
}

/// Ends what looks at it.
struct Stopped<'a>(&'a AtomicBool);

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[track_caller]
fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < Duration::from_mins(1), "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn active(daemon: &Daemon) -> String {
    daemon.get("/v1/admin/status").json()["keys"]["activeKid"].as_str().unwrap().to_owned()
}

#[test]
fn the_command_makes_and_wraps_the_key_and_the_daemon_asks_kms_twice() {
    let site = Site::sqlite();
    let cloud = wrapped_site(&site);
    let daemon = site.start();
    let (old, before) = (main_kid(&site), cloud.requests("decrypt", "daemon"));
    let (wrapped_before, proven_before) =
        (cloud.requests("encrypt", "operator"), cloud.requests("decrypt", "operator"));
    let report = rotate(&site, &["-o", "json"]);
    done(&report);
    let report: Value = serde_json::from_slice(&report.stdout).unwrap();
    assert_eq!(report["end"], "rotated", "{report}");
    let new = wrapped(&site);
    assert_ne!(new.kid, old);
    assert_eq!(new.kms_keys()[0].as_str(), KMS_KEY);
    assert_eq!(new.age_recipients().collect::<Vec<_>>(), [cloud.recipient.as_str()]);
    assert!(new.has_another_way(), "the identity was seen to open it");
    // Once to prove the new file, once by the other process that verifies; the proof of the day is that of the staging.
    assert_eq!(cloud.requests("decrypt", "daemon") - before, 2);
    assert_eq!(cloud.requests("encrypt", "operator") - wrapped_before, 1);
    assert_eq!(cloud.requests("decrypt", "operator") - proven_before, 1);
    assert_eq!(cloud.requests("encrypt", "daemon"), 0, "it may only decrypt");
    // The copy that was pushed is the whole file.
    assert_eq!(cloud.requests("add", "daemon"), 1);
    assert_eq!(site.number("SELECT count(*) FROM master_keys WHERE wrapped_file IS NOT NULL"), 0);
    assert_eq!(daemon.value("alice", "A").unwrap(), b"one");
    daemon.kill();
    let daemon = site.start();
    site.logged(READY);
    assert_eq!(daemon.value("alice", "A").unwrap(), b"one");
    assert_eq!(active(&daemon), new.kid.to_string());
}

#[test]
fn a_new_key_that_one_kms_key_alone_opens_is_refused_unless_that_is_accepted() {
    let site = Site::sqlite();
    let cloud = wrapped_site(&site);
    let daemon = site.start();
    let before = key_file(&site);
    // The recipient of the file is there, and nobody has shown that it opens anything.
    let unproven = ["admin", "rotate-master"];
    fails(&as_operator(&site, &unproven), 6, &["one KMS key and nothing else", "--kms-is-the-only-way-back"]);
    assert_eq!((key_file(&site), site.number("SELECT count(*) FROM master_keys")), (before.clone(), 1));
    // What a command said that is not ours.
    let made = containarium::model::WrappedMaster {
        recipients: wrapped(&site).recipients[..1].to_vec(),
        kid: Kid::new([7; 16]),
    };
    let text = String::from_utf8(made.to_json()).unwrap();
    let body = serde_json::json!({"mode": "start", "wrappedKey": text}).to_string();
    let answer = daemon.request("POST", "/v1/admin/rotate-master", body.as_bytes());
    assert!(String::from_utf8_lossy(&answer.body).contains("nothing but one KMS key is known to open"), "{answer:?}");
    // Of another key than it says: the daemon does not open it.
    let body = serde_json::json!({"mode": "start", "wrappedKey": text, "kmsIsTheOnlyWayBack": true}).to_string();
    let answer = daemon.request("POST", "/v1/admin/rotate-master", body.as_bytes());
    assert!(String::from_utf8_lossy(&answer.body).contains("this daemon does not open the new key"), "{answer:?}");
    assert_eq!((key_file(&site), site.number("SELECT count(*) FROM master_keys")), (before, 1));
    let accepted = ["admin", "rotate-master", "--kms-is-the-only-way-back"];
    done(&as_operator(&site, &accepted));
    assert_eq!(cloud.requests("add", "daemon"), 1, "its copy counts, since that was accepted");
    assert!(!wrapped(&site).has_another_way());
    assert_eq!(kms_check(&daemon)["verdict"], "warning");
    fails(&site.cli(["backup", "push"], b""), 6, &["--kms-is-the-only-way-back"]);
    done(&site.cli(["backup", "push", "--kms-is-the-only-way-back"], b""));
    assert_eq!(daemon.value("alice", "A").unwrap(), b"one");
}

#[test]
fn who_may_not_wrap_rotates_nothing_and_a_key_in_the_wrong_form_is_refused() {
    let site = Site::sqlite();
    let cloud = wrapped_site(&site);
    let daemon = site.start();
    let before = key_file(&site);
    let identity = site.path("identity.txt").display().to_string();
    let words = ["admin", "rotate-master", "--age-identity", &identity];
    fails(&with(&site, "config.toml", &words), 4, &["cloudkms.cryptoKeyVersions.useToEncrypt"]);
    let raw = daemon.request("POST", "/v1/admin/rotate-master", br#"{"mode": "start"}"#);
    assert_eq!(raw.status, 409);
    assert!(raw.problem().contains("the key file is wrapped"), "{}", raw.problem());
    let late = daemon.request("POST", "/v1/admin/rotate-master", br#"{"mode": "resume", "wrappedKey": "{}"}"#);
    assert_eq!(late.status, 400, "{}", late.problem());
    cloud.fault("503", "decrypt");
    fails(&rotate(&site, &[]), 5, &["HTTP 503"]);
    cloud.heal();
    assert_eq!((key_file(&site), site.number("SELECT count(*) FROM master_keys")), (before, 1));
    done(&as_operator(&site, &["kms", "unwrap"]));
    let sent = serde_json::json!({"mode": "start", "wrappedKey": String::from_utf8(wrapped_text(&site)).unwrap()});
    let answer = daemon.request("POST", "/v1/admin/rotate-master", sent.to_string().as_bytes());
    assert_eq!(answer.status, 409);
    assert!(answer.problem().contains("was sent wrapped"), "{}", answer.problem());
    fails(
        &as_operator(&site, &["admin", "rotate-master", "--age", &cloud.recipient]),
        2,
        &["this one is the key itself"],
    );
}

/// Some wrapped key.
fn wrapped_text(site: &Site) -> Vec<u8> {
    let recipient =
        containarium::model::Wrapping::Age { recipient: "age1qqqq".to_owned(), ciphertext: vec![1], proven_at: None };
    WrappedMaster { kid: main_kid(site), recipients: vec![recipient] }.to_json()
}

#[test]
fn a_copy_of_the_wrapped_new_key_is_proven_by_opening_it() {
    let site = Site::sqlite();
    let cloud = wrapped_site(&site);
    let daemon = site.start();
    let report = rotate(&site, &["--escrow", "prove", "-o", "json"]);
    done(&report);
    let report: Value = serde_json::from_slice(&report.stdout).unwrap();
    assert_eq!(report["end"], "staged", "{report}");
    let copy = std::fs::read(retained(&site, report["kid"].as_str().unwrap())).unwrap();
    let config = |file: &str| site.path(file).display().to_string();
    let (nobody, identity) = (config("nobody.toml"), site.path("identity.txt").display().to_string());
    let resume = ["admin", "rotate-master", "--resume", "--prove-from", "-"];
    let words: Vec<&str> = resume.into_iter().chain(["--config", &nobody]).collect();
    fails(&site.cli(&words, &copy), 1, &["was denied"]);
    let old = key_file(&site);
    let words: Vec<&str> = words.into_iter().chain(["--age-identity", &identity]).collect();
    fails(&site.cli(&words, &old), 1, &["and a copy of"]);
    done(&site.cli(&words, &copy));
    assert_eq!(key_file(&site), copy);
    assert_eq!(needed_versions(&site), serde_json::json!([[format!("{KMS_KEY}/cryptoKeyVersions/1"), 1]]));
    assert_eq!(daemon.value("alice", "A").unwrap(), b"one");
    drop(cloud);
}

/// A request that somebody kept and sends again, with a key that the database knows.
#[test]
fn a_wrapped_key_that_comes_again_is_refused_and_the_file_of_a_kept_key_stays() {
    let site = Site::sqlite();
    let cloud = wrapped_site(&site);
    let daemon = site.start();
    let (old, old_file) = (active(&daemon), key_file(&site));
    done(&rotate(&site, &[]));
    let (new, new_file) = (active(&daemon), key_file(&site));
    assert!(retained(&site, &old).exists() && old != new);
    for (kid, file) in [(&old, &old_file), (&new, &new_file)] {
        let body = serde_json::json!({"mode": "start", "escrow": "gcp", "wrappedKey": String::from_utf8_lossy(file)});
        let answer = daemon.request("POST", "/v1/admin/rotate-master", body.to_string().as_bytes());
        let said = String::from_utf8_lossy(&answer.body).into_owned();
        assert!(said.contains("is no new key: the database knows it already"), "{} {said}", answer.status);
        assert!(retained(&site, kid).exists() || kid == &new, "its file stays");
        assert_eq!(site.texts("SELECT phase FROM key_state"), ["idle"]);
    }
    assert!(retained(&site, &old).exists());
    assert_eq!(key_file(&site), new_file);
    assert_eq!(daemon.value("alice", "A").unwrap(), b"one");
    // And the next one goes well.
    done(&rotate(&site, &[]));
    drop(cloud);
}

/// Also where it lies nowhere else by then.
#[test]
fn what_was_set_aside_wrapped_goes_with_a_key_that_was_given_up() {
    let site = Site::sqlite();
    let cloud = wrapped_site(&site);
    let _daemon = site.start();
    let report = rotate(&site, &["--escrow", "prove", "-o", "json"]);
    done(&report);
    let report: Value = serde_json::from_slice(&report.stdout).unwrap();
    let staged = retained(&site, report["kid"].as_str().unwrap());
    let bytes = std::fs::read(&staged).unwrap();
    done(&as_operator(&site, &["admin", "rotate-master", "--abort", "--yes"]));
    until("its file is removed", || (!staged.exists()).then_some(()));
    let aside = site.path("etc/secrets.key.replaced-unreadable-20260517T083000Z");
    std::fs::write(&aside, bytes).unwrap();
    until("it is removed", || (!aside.exists()).then_some(()));
    drop(cloud);
}

/// The new key travels through the database, for KMS alone; each node opens it itself. One node is dead when it begins, and the one that
/// carries the rotation is killed while it waits for that.
#[test]
fn three_daemons_go_through_a_rotation_and_two_of_them_are_killed() {
    let first = Site::postgres();
    let cloud = wrapped_site(&first);
    let one = first.start();
    let others: Vec<Site> = (0..2).map(|_| first.sharing()).collect();
    for site in &others {
        cloud.configure(site);
        done(&site.cli(["admin", "install-key"], &key_file(&first)));
    }
    let (second, third) = (&others[0], &others[1]);
    let (two, three) = (second.start(), third.start());
    let old = active(&two);
    three.kill();
    let before = cloud.requests("decrypt", "daemon");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Both end where an assertion fails: nothing waits for them then.
        let (_stopped, one) = (Stopped(&stop), one);
        let traffic = scope.spawn(|| {
            let mut number = 0_u32;
            while !stop.load(Ordering::Relaxed) {
                number += 1;
                let value = number.to_string();
                assert_eq!(two.set("alice", "B", value.as_bytes()).status, 200);
                assert_eq!(two.value("alice", "B").unwrap(), value.as_bytes());
                assert_eq!(two.value("alice", "A").unwrap(), b"one");
                assert_eq!(two.set(&format!("fresh-{}", number % 50), "C", b"c").status, 200);
            }
        });
        let asked = scope.spawn(|| rotate(&first, &[]));
        let kid = until("the key is staged", || staged_kid(&first));
        until("the second node has it", || retained(second, &kid).exists().then_some(()));
        let travels = first.texts("SELECT convert_from(wrapped_file, 'UTF8') FROM master_keys WHERE state = 'staged'");
        assert!(travels[0].contains("gcp-kms") && !travels[0].contains("\"age\""), "{}", travels[0]);
        let taken = WrappedMaster::parse(&std::fs::read(retained(second, &kid)).unwrap()).unwrap();
        assert_eq!((taken.kid.to_string(), taken.age().count()), (kid.clone(), 0));
        // All that is wanted but the dead node's word.
        until("its copy is confirmed", || {
            (first.number("SELECT count(*) FROM escrows WHERE confirmed_at IS NOT NULL") == 1).then_some(())
        });
        until("the second node's word", || {
            let sql = format!("SELECT count(*) FROM nodes WHERE durable_kids LIKE '%{kid}%'");
            (first.number(&sql) == 2).then_some(())
        });
        one.kill();
        assert!(!asked.join().unwrap().status.success());
        assert_eq!(first.texts("SELECT phase FROM key_state"), ["staged"], "it waited for the third");
        let one = first.start();
        let three = third.start();
        done(&rotate(&first, &["--resume"]));
        stop.store(true, Ordering::Relaxed);
        traffic.join().unwrap();
        for (daemon, site) in [(&one, &first), (&two, second), (&three, third)] {
            until("it is active everywhere", || (active(daemon) == kid).then_some(()));
            assert_eq!(daemon.value("alice", "A").unwrap(), b"one");
            assert_eq!(daemon.set("last", "D", b"d").status, 200);
            until("its file is in place", || (main_kid(site).to_string() == kid).then_some(()));
        }
        assert_eq!(first.number(&format!("SELECT count(*) FROM deks WHERE encode(kid, 'hex') = '{old}'")), 0);
        assert_eq!(first.number("SELECT count(*) FROM master_keys WHERE wrapped_file IS NOT NULL"), 0);
        // At the staging 1, and the second node 1; the two starts 1 each, and the new key 1 each; the verification 1.
        assert_eq!(cloud.requests("decrypt", "daemon") - before, 7);
        assert_eq!(cloud.requests("encrypt", "daemon"), 0);
    });
    let two = {
        two.kill();
        second.start()
    };
    second.logged(READY);
    assert_eq!(two.value("alice", "A").unwrap(), b"one");
}

/// What a writer to the database puts there as the new key's file is not taken.
#[test]
fn a_node_takes_no_file_from_the_database_that_it_does_not_open() {
    let first = Site::postgres();
    let cloud = wrapped_site(&first);
    let _one = first.start();
    let second = first.sharing();
    cloud.configure(&second);
    done(&second.cli(["admin", "install-key"], &key_file(&first)));
    let two = second.start();
    // The second node's permission is taken away while the first one stages.
    done(&rotate(&first, &["--escrow", "prove"]));
    let kid = staged_kid(&first).unwrap();
    until("it is taken", || retained(&second, &kid).exists().then_some(()));
    done(&as_operator(&first, &["admin", "rotate-master", "--abort", "--yes"]));
    until("it is removed", || (!retained(&second, &kid).exists()).then_some(()));
    let another = String::from_utf8(key_file(&first)).unwrap();
    for (file, words) in [
        (Some("{"), "whole and with exactly its fields"),
        (Some(&*another), "is another key's"),
        // As by who may write there and owns a KMS key.
        (None, "is not wrapped as this node's own key file is"),
    ] {
        let staged = rotate(&first, &["--escrow", "prove"]);
        done(&staged);
        assert!(!said(&staged).contains("install-key"), "the other node takes it by itself: {}", said(&staged));
        let kid = staged_kid(&first).unwrap();
        let travels =
            first.texts("SELECT convert_from(wrapped_file, 'UTF8') FROM master_keys WHERE state = 'staged'").remove(0);
        let file = file.map_or_else(|| travels.replace(KMS_KEY, OTHER_KMS_KEY), str::to_owned);
        let hex = data_encoding::HEXLOWER.encode(file.as_bytes());
        until("it is taken", || retained(&second, &kid).exists().then_some(()));
        first.run_sql(&format!("UPDATE master_keys SET wrapped_file = decode('{hex}', 'hex') WHERE state = 'staged'"));
        std::fs::remove_file(retained(&second, &kid)).unwrap();
        until("it says why", || {
            let checks = two.get("/v1/admin/doctor").json()["checks"].to_string();
            checks.contains(words).then_some(())
        });
        assert!(!retained(&second, &kid).exists());
        done(&as_operator(&first, &["admin", "rotate-master", "--abort", "--yes"]));
    }
}

#[test]
fn a_node_waits_for_no_kms_where_it_has_a_heartbeat_to_give() {
    let first = Site::postgres();
    let cloud = wrapped_site(&first);
    let _one = first.start();
    let second = first.sharing();
    cloud.configure(&second);
    done(&second.cli(["admin", "install-key"], &key_file(&first)));
    let config = second.path("owner.toml").display().to_string();
    let two = second.start_with(second.command(["daemon", "--config", &config]));
    cloud.runtime.block_on(cloud.google.fault_for("slow", "decrypt", "owner"));
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| rotate(&first, &[]));
        let kid = until("the key is staged", || staged_kid(&first));
        // Its tick came to its end while the answer is waited for.
        until("it says what it waits for", || {
            let checks = two.get("/v1/admin/doctor").json()["checks"].to_string();
            checks.contains("was asked, and has not answered yet").then_some(())
        });
        cloud.heal();
        done(&asked.join().unwrap());
        until("it is active there", || (active(&two) == kid).then_some(()));
    });
    assert_eq!(two.value("alice", "A").unwrap(), b"one");
}

/// Whether it has the file or not: who cannot open the new key does not count as holding it.
#[test]
fn a_node_whose_permission_was_taken_away_is_waited_for() {
    let first = Site::postgres();
    let cloud = wrapped_site(&first);
    let one = first.start();
    let second = first.sharing();
    cloud.configure(&second);
    done(&second.cli(["admin", "install-key"], &key_file(&first)));
    let config = second.path("owner.toml").display().to_string();
    let two = second.start_with(second.command(["daemon", "--config", &config]));
    cloud.runtime.block_on(cloud.google.fault_for("403", "decrypt", "owner"));
    let durable = |kid: &str| first.number(&format!("SELECT count(*) FROM nodes WHERE durable_kids LIKE '%{kid}%'"));
    std::thread::scope(|scope| {
        // Gone where an assertion fails, and with it what waits for the rotation.
        let (one, two) = (one, two);
        let asked = scope.spawn(|| rotate(&first, &[]));
        let kid = until("the key is staged", || staged_kid(&first));
        let doctor = || two.get("/v1/admin/doctor").json()["checks"].to_string();
        until("it says why", || doctor().contains("is not taken over from the database").then_some(()));
        assert!(doctor().contains("cloudkms.cryptoKeyVersions.useToDecrypt"), "{}", doctor());
        assert!(!retained(&second, &kid).exists());
        until("the first node's word", || (durable(&kid) == 1).then_some(()));
        // The file by hand: it is there, and says nothing.
        let staged = std::fs::read(retained(&first, &kid)).unwrap();
        done(&second.cli(["admin", "install-key"], &staged));
        until("it is looked at", || doctor().contains(&format!("{kid}: ")).then_some(()));
        // Nor does a raw copy of the key beside it stand in for it.
        let identity = AgeIdentity::at(first.path("identity.txt"));
        let provider = Provider { age_identity: Some(identity), ..Provider::default() };
        let opened = cloud.runtime.block_on(provider.open_with_age(&WrappedMaster::parse(&staged).unwrap())).unwrap();
        let mut raw = Vec::new();
        KeyfileImage::of(&opened.ok().unwrap().master).write_to(&mut raw).unwrap();
        let beside = retained(&second, "zz-raw");
        std::fs::write(&beside, raw).unwrap();
        std::fs::set_permissions(&beside, std::os::unix::fs::PermissionsExt::from_mode(0o400)).unwrap();
        until("it is seen", || doctor().contains("zz-raw").then_some(()));
        let seen = || first.number("SELECT min(seen_at) FROM nodes");
        let ticked = seen();
        until("both nodes ticked twice", || (seen() > ticked + 10_000_000).then_some(()));
        assert_eq!((durable(&kid), first.texts("SELECT phase FROM key_state")), (1, vec!["staged".to_owned()]));
        cloud.heal();
        done(&asked.join().unwrap());
        until("it is active there", || (active(&two) == kid).then_some(()));
        for daemon in [&one, &two] {
            assert_eq!(daemon.value("alice", "A").unwrap(), b"one");
        }
    });
}
