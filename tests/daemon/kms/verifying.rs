//! Wrapped copies that are read back: what opens them is asked, and what it says is told apart from what the copy is.

use super::*;

const UNREAD: &str = "SELECT count(*) FROM escrows WHERE unread_at IS NOT NULL";
const READ_BACK: &str = "SELECT count(*) FROM escrows WHERE read_back_at IS NOT NULL";
const ALONE: &str = "--kms-is-the-only-way-back";

/// A deployment whose key one KMS key alone opens; no daemon runs.
fn kms_only_site(site: &Site) -> Cloud {
    let cloud = Cloud::of(site);
    site.start().stop();
    done(&as_operator(site, &["kms", "wrap", ALONE]));
    cloud
}

fn verify(site: &Site, words: &[&str]) -> Output {
    with(site, "owner.toml", &[&["backup", "verify"], words].concat())
}

#[test]
fn one_kms_key_that_is_away_is_no_reason_not_to_try_what_another_wrapped() {
    let site = Site::sqlite();
    let cloud = wrapped_site(&site);
    let identity = site.path("identity.txt").display().to_string();
    let daemon = site.start();
    done(&site.cli(["backup", "push"], b""));
    let first = key_file(&site);
    for _ in 0..2 {
        done(&as_operator(&site, &["kms", "rewrap", "--key", OTHER_KMS_KEY, "--age-identity", &identity]));
        done(&site.cli(["backup", "push"], b""));
    }
    cloud.runtime.block_on(cloud.google.fault_of_kms("503", OTHER_KMS_KEY));
    let asked = || {
        let requests = cloud.runtime.block_on(cloud.google.requests("decrypt"));
        requests.iter().filter(|request| request["path"].as_str().unwrap().contains("wrap-2:")).count()
    };
    let verified = verify(&site, &["-o", "json"]);
    done(&verified);
    let verified: Value = serde_json::from_slice(&verified.stdout).unwrap();
    assert_eq!(verified["good"][0]["locator"], format!("{SECRET}/versions/1"), "{verified}");
    assert_eq!(site.number(UNREAD), 0, "of the others nothing was learnt");
    done(&with(&site, "owner.toml", &["backup", "drill"]));
    daemon.stop();
    std::fs::remove_dir_all(site.path("etc")).unwrap();
    let before = asked();
    done(&with(&site, "owner.toml", &["backup", "restore"]));
    assert_eq!(key_file(&site), first);
    assert!((1..=5).contains(&(asked() - before)), "one call and its tries, for two copies: {}", asked() - before);
}

#[test]
fn a_recorded_copy_that_its_kms_key_opens_no_more_is_a_bad_one() {
    let site = Site::sqlite();
    let cloud = kms_only_site(&site);
    let _daemon = site.start();
    done(&site.cli(["backup", "push", ALONE], b""));
    done(&verify(&site, &[ALONE]));
    for (fault, code) in [("503", 5), ("403", 4), ("flipped-bit", 1)] {
        cloud.fault(fault, "decrypt");
        fails(&verify(&site, &[ALONE]), code, &["was not opened, so nothing is proven of it"]);
        cloud.heal();
    }
    assert_eq!((site.number(UNREAD), site.number(READ_BACK)), (0, 1));
    cloud.fault("other-key", "decrypt");
    fails(&verify(&site, &[ALONE]), 1, &["nothing opens it any more", "gave another master key", "kms rewrap"]);
    assert_eq!(site.number(UNREAD), 1);
    cloud.heal();
    done(&verify(&site, &[ALONE]));
    assert_eq!(site.number(UNREAD), 0, "it opens again");
    cloud.runtime.block_on(cloud.google.destroy_kms(KMS_KEY, 1));
    let bad = verify(&site, &[ALONE]);
    fails(&bad, 3, &["nothing opens it any more", "is destroyed", "--age-identity", "kms status", "kms rewrap"]);
    assert_eq!(site.texts("SELECT locator FROM escrows WHERE unread_at IS NOT NULL"), [format!("{SECRET}/versions/1")]);
}

#[test]
fn a_copy_with_a_recipient_that_was_not_asked_is_not_given_up() {
    let site = Site::sqlite();
    let cloud = wrapped_site(&site);
    let identity = site.path("identity.txt").display().to_string();
    let _daemon = site.start();
    done(&site.cli(["backup", "push"], b""));
    cloud.runtime.block_on(cloud.google.destroy_kms(KMS_KEY, 1));
    fails(&verify(&site, &[]), 3, &["nothing is proven of it", "an age identity opens it", "--age-identity"]);
    assert_eq!(site.number(UNREAD), 0);
    // Nor by another identity, which says nothing of it.
    let other = site.path("other.txt");
    {
        use ::age::secrecy::ExposeSecret;
        write_identity(&other, ::age::x25519::Identity::generate().to_string().expose_secret());
    }
    fails(&verify(&site, &["--age-identity", &other.display().to_string()]), 3, &["none of the 1 identities"]);
    assert_eq!(site.number(UNREAD), 0);
    done(&verify(&site, &["--age-identity", &identity]));
}

#[test]
fn a_copy_that_one_kms_key_alone_opens_is_an_escrow_where_a_raw_one_is_or_the_operator_says_so() {
    let site = Site::sqlite();
    let cloud = kms_only_site(&site);
    // Uploaded by other means.
    cloud.runtime.block_on(cloud.google.add(SECRET, &key_file(&site)));
    let daemon = site.start();
    fails(&verify(&site, &[]), 6, &["nothing but one KMS key", "backup verify --kms-is-the-only-way-back"]);
    assert_eq!(site.number("SELECT count(*) FROM escrows"), 0);
    done(&verify(&site, &[ALONE]));
    assert_eq!(site.number(READ_BACK), 1);
    daemon.stop();

    let site = Site::sqlite();
    let cloud = Cloud::of(&site);
    let daemon = site.start();
    done(&site.cli(["backup", "push"], b""));
    done(&as_operator(&site, &["kms", "wrap"]));
    done(&site.cli(["backup", "push"], b""));
    done(&verify(&site, &[]));
    assert_eq!(
        site.texts("SELECT locator FROM escrows WHERE read_back_at IS NOT NULL"),
        [format!("{SECRET}/versions/2")]
    );
    // Lost with the raw copy is what made the wrapped one an escrow.
    cloud.runtime.block_on(cloud.google.set_state(SECRET, 1, "disable"));
    let _seen = site.cli(["backup", "list"], b"");
    fails(&verify(&site, &[]), 6, &["nothing but one KMS key"]);
    daemon.stop();
}

#[test]
fn a_raw_copy_that_is_gone_or_was_not_seen_lately_makes_no_backup_of_what_one_kms_key_opens() {
    let site = Site::sqlite();
    let cloud = Cloud::of(&site);
    let _daemon = site.start();
    let push = || site.cli(["backup", "push"], b"");
    done(&push());
    done(&as_operator(&site, &["kms", "wrap"]));
    // Nobody has told the daemon.
    cloud.runtime.block_on(cloud.google.set_state(SECRET, 1, "disable"));
    fails(&push(), 6, &["nothing but one KMS key"]);
    cloud.runtime.block_on(cloud.google.set_state(SECRET, 1, "enable"));
    cloud.fault("403", "list");
    let days = 4_i64 * 24 * 60 * 60 * 1_000_000;
    site.run_sql(&format!("UPDATE escrows SET confirmed_at = confirmed_at - {days}, looked_at = NULL, lost_as = NULL"));
    fails(&push(), 6, &["nothing but one KMS key", "not seen for 3 days", "cannot be looked at now", "was denied"]);
    site.run_sql(&format!("UPDATE escrows SET confirmed_at = confirmed_at + {days}"));
    cloud.heal();
    done(&push());
    assert_eq!(site.number("SELECT count(*) FROM escrows WHERE confirmed_at IS NOT NULL"), 2);
}

#[test]
fn an_identity_that_comes_through_a_pipe_opens_all_that_a_command_opens() {
    let site = Site::sqlite();
    let cloud = wrapped_site(&site);
    let _daemon = site.start();
    let sealed = site.cli(["backup", "export", "--age", &cloud.recipient], b"");
    done(&sealed);
    let copy = site.path("sealed.age").display().to_string();
    std::fs::write(&copy, sealed.stdout).unwrap();
    let identity = std::fs::read(site.path("identity.txt")).unwrap();
    let pipe = site.path("pipe").display().to_string();
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let through_a_pipe = |config: &str, words: &[&str]| {
        std::thread::scope(|scope| {
            scope.spawn(|| std::fs::write(&pipe, &identity).unwrap());
            with(&site, config, words)
        })
    };
    for command in ["verify", "restore", "drill"] {
        done(&through_a_pipe("nobody.toml", &["backup", command, "--from", &copy, "--identity", &pipe]));
    }
    // Of two key files too, by the setting of that name.
    done(&through_a_pipe("owner.toml", &["kms", "status", "--age-identity", &pipe]));
    done(&site.cli(["backup", "push"], b""));
    let drilled = with(&site, "restore.toml", &["backup", "drill", "--age-identity", &pipe]);
    fails(&drilled, 1, &["nobody has written an identity into it within 10 s"]);
    std::fs::set_permissions(site.path("identity.txt"), std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let identity = site.path("identity.txt").display().to_string();
    let open = with(&site, "restore.toml", &["backup", "drill", "--age-identity", &identity]);
    fails(&open, 1, &["it can be read by every user of the host: `chmod 0600"]);
}
