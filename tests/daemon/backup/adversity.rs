//! What goes wrong around a restore: each time a clear error in its time, its exit code, and the old key as it was.

use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use super::super::on_both_stores;
use super::super::rotation::{WAIVE, rotate, rotated};
use super::*;

on_both_stores![
    a_restore_beside_a_rotation_loses_no_key_that_is_needed,
    a_restore_beside_an_installed_key_loses_no_key_that_is_needed,
];

/// What a command may take beyond the 10 s that it gives to Google: starting, the database, the machine's other work.
const DEADLINE: Duration = Duration::from_secs(15);

fn restore(site: &Site, words: &[&str]) -> Output {
    as_restorer(site, &[&["backup", "restore"], words].concat())
}

#[test]
fn without_credentials_each_command_says_so_in_time() {
    let site = Site::sqlite();
    // Google's own endpoint, which is asked nothing: a machine that has no credentials, or whose metadata server is silent, ends before.
    let config = format!("[backup.gcp]\nsecrets = [\"{SECRET}\"]\n");
    std::fs::write(site.path("config.toml"), config).unwrap();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = silent.local_addr().unwrap().to_string();
    let (key, kid) = populated(&site);
    let mut daemon = site.command(["daemon"]);
    daemon.env("GCE_METADATA_HOST", "127.0.0.1:9");
    let daemon = site.start_with(daemon);
    fails(&site.cli(["backup", "push"], b""), 4, &["no Google credentials", &kid]);
    assert_eq!(daemon.stop().code(), Some(0));
    std::fs::remove_file(site.key_file()).unwrap();
    std::fs::remove_dir_all(site.path("etc/secrets.key.d")).unwrap();
    for metadata in ["127.0.0.1:9", &silent] {
        for command in ["restore", "verify"] {
            let begun = Instant::now();
            let done = site.command(["backup", command]).env("GCE_METADATA_HOST", metadata).output().unwrap();
            fails(&done, 4, &["no Google credentials", "gcloud auth application-default login"]);
            assert!(begun.elapsed() < DEADLINE, "{command} {:?}", begun.elapsed());
        }
    }
    let mut absent = site.command(["backup", "restore"]);
    let absent = absent.env("GOOGLE_APPLICATION_CREDENTIALS", "/no/such/file.json").output().unwrap();
    fails(&absent, 4, &["no Google credentials", "/no/such/file.json"]);
    assert!(names(&site).is_empty(), "{:?}", names(&site));
    put(&site.key_file(), &key);
    opens(&site);
}

#[test]
fn of_two_versions_with_the_same_kid_the_one_that_can_be_read_is_taken() {
    let site = Site::sqlite();
    let cloud = Cloud::of(&site);
    let (key, _) = populated(&site);
    cloud.add(&key);
    cloud.add(&key);
    let taken = || {
        lose_keys(&site);
        let restored = answer(&restore(&site, &["-o", "json"]));
        assert!(std::fs::read(site.key_file()).unwrap() == key);
        restored["keys"][0]["from"].as_str().unwrap().rsplit('/').next().unwrap().to_owned()
    };
    assert_eq!(taken(), "2");
    for verb in ["disable", "destroy"] {
        cloud.set_state(2, verb);
        assert_eq!(taken(), "1", "{verb}");
    }
    opens(&site);
}

#[test]
fn the_stray_of_a_push_whose_answer_was_lost_is_a_copy_like_another() {
    let site = Site::sqlite();
    let cloud = Cloud::of(&site);
    let (key, _) = populated(&site);
    let daemon = site.start();
    cloud.fault_once("lost-answer", "add");
    answer(&site.cli(["backup", "push", "-o", "json"], b""));
    assert_eq!(daemon.stop().code(), Some(0));
    cloud.set_state(2, "destroy");
    lose_keys(&site);
    let restored = answer(&restore(&site, &["-o", "json"]));
    assert_eq!(restored["keys"][0]["from"], format!("{SECRET}/versions/1"));
    assert!(std::fs::read(site.key_file()).unwrap() == key);
    opens(&site);
}

#[test]
fn a_link_or_a_pipe_in_the_key_files_place_is_set_aside_and_neither_followed_nor_waited_for() {
    let site = Site::sqlite();
    let cloud = Cloud::of(&site);
    let (key, _) = populated(&site);
    cloud.add(&key);
    let elsewhere = site.path("elsewhere");
    let in_the_way: [fn(&Path, &Path); 2] = [
        |place, elsewhere| symlink(elsewhere, place).unwrap(),
        |place, _| assert!(std::process::Command::new("mkfifo").arg(place).status().unwrap().success()),
    ];
    for make in in_the_way {
        lose_keys(&site);
        put(&site.key_file(), b"");
        std::fs::remove_file(site.key_file()).unwrap();
        std::fs::write(&elsewhere, b"another's").unwrap();
        make(&site.key_file(), &elsewhere);
        let begun = Instant::now();
        let restored = answer(&restore(&site, &["-o", "json"]));
        assert!(begun.elapsed() < DEADLINE, "{:?}", begun.elapsed());
        let aside = restored["replaced"].as_str().unwrap();
        assert!(aside.contains("secrets.key.replaced-unreadable-"), "{aside}");
        assert!(!std::fs::symlink_metadata(aside).unwrap().is_file(), "it is what lay there");
        assert_eq!(std::fs::read(&elsewhere).unwrap(), b"another's");
        assert!(std::fs::symlink_metadata(site.key_file()).unwrap().is_file());
        opens(&site);
    }
}

#[test]
fn a_restore_gives_up_in_time_where_every_version_is_slow() {
    let site = Site::sqlite();
    let cloud = Cloud::of(&site);
    let (key, kid) = populated(&site);
    for _ in 0..3 {
        cloud.add(&new_key().0);
    }
    cloud.add(&key);
    lose_keys(&site);
    cloud.fault("slow", "access");
    let begun = Instant::now();
    fails(&restore(&site, &[]), 5, &["10 s", SECRET, &kid, "help:"]);
    assert!(begun.elapsed() < DEADLINE, "{:?}", begun.elapsed());
    assert!(names(&site).is_empty(), "{:?}", names(&site));
    cloud.heal();
    assert!(restore(&site, &[]).status.success());
    opens(&site);
}

#[test]
fn a_full_disk_is_said_and_leaves_the_old_key_and_no_half_copy() {
    if !rustix::process::geteuid().is_root() {
        eprintln!(
            "skipped: a_full_disk_is_said_and_leaves_the_old_key_and_no_half_copy: only root can mount a small file system"
        );
        return;
    }
    let site = Site::sqlite();
    let cloud = Cloud::of(&site);
    let (key, _) = populated(&site);
    cloud.add(&key);
    lose_keys(&site);
    let etc = site.path("etc");
    std::fs::create_dir(&etc).unwrap();
    let _small = SmallDisk::at(&etc);
    let (stranger, _) = new_key();
    put(&site.key_file(), &stranger);
    let filler = fill(&etc);
    let refused = said(&restore(&site, &[]));
    assert!(refused.contains("mend that as said") && !refused.contains("run it as the user"), "{refused}");
    for output in [restore(&site, &[]), restore(&site, &["--version", "1"]), site.cli(["admin", "install-key"], &key)] {
        let told = said(&output).to_lowercase();
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(told.contains("no space") && told.contains("help:"), "{told}");
        assert!(std::fs::read(site.key_file()).unwrap() == stranger, "the old key is as it was");
        let left = site.files().into_keys().filter(|path| path.starts_with(&etc)).count();
        assert!(left <= 3, "the key, the filler, the lock: {:?}", names(&site));
    }
    let copy = etc.join("copy.db");
    let output = site.cli(["backup", "database", copy.to_str().unwrap()], b"");
    let told = said(&output).to_lowercase();
    assert!(output.status.code() == Some(5) && told.contains("no space") && told.contains("df -h"), "{told}");
    assert!(!copy.exists() && !etc.join(".copy.db.partial").exists(), "{:?}", names(&site));
    std::fs::remove_file(filler).unwrap();
    answer(&restore(&site, &["-o", "json"]));
    assert!(std::fs::read(site.key_file()).unwrap() == key);
    opens(&site);
}

/// A small file system, unmounted with its guard.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn at(place: &Path) -> Self {
        let options = ["-t", "tmpfs", "-o", "size=64k,mode=0700", "none"];
        assert!(std::process::Command::new("mount").args(options).arg(place).status().unwrap().success());
        Self(place.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _left = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Leaves no room.
fn fill(place: &Path) -> std::path::PathBuf {
    let filler = place.join("filler");
    std::fs::write(&filler, vec![0; 65_536]).unwrap_err();
    filler
}

/// Every key that the database needs lies here, whole, and the daemon opens all with them.
#[track_caller]
fn nothing_is_lost(site: &Site) {
    let needed = if site.is_postgres() { "encode(kid, 'hex')" } else { "lower(hex(kid))" };
    let needed = site.texts(&format!("SELECT {needed} FROM master_keys WHERE state IN ('active', 'decrypt_only')"));
    let scan = containarium::keys::keyfile::KeyFiles::at(&site.key_file()).unwrap().scan();
    let here: Vec<String> = scan.retained.iter().map(|key| key.kid.to_string()).collect();
    for kid in needed {
        assert!(here.contains(&kid), "{kid} of {here:?}");
    }
    opens(site);
}

/// Done, or told that another one writes.
#[track_caller]
fn done_or_conflict(output: &Output) {
    let code = output.status.code();
    assert!(code == Some(0) || code == Some(6), "{}", said(output));
}

fn a_restore_beside_a_rotation_loses_no_key_that_is_needed(site: &Site) {
    let _cloud = Cloud::of(site);
    populated(site);
    let daemon = site.start();
    for _ in 0..3 {
        answer(&site.cli(["backup", "push", "-o", "json"], b""));
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                    // The key file goes again and again, and comes back by whoever is first.
                    let _gone = std::fs::remove_file(site.key_file());
                    let output = restore(site, &[]);
                    // The new key has no copy yet where it alone is missing.
                    let code = output.status.code();
                    assert!(matches!(code, Some(0 | 3 | 6)), "{}", said(&output));
                }
            });
            let (output, report) = rotate(site, &WAIVE);
            stop.store(true, std::sync::atomic::Ordering::SeqCst);
            // The file that went is missed where it was to be made durable: said, and gone on with.
            let resumed = report.unwrap_or_else(|| {
                assert!(said(&output).contains("rotate-master --resume`"), "{}", said(&output));
                rotated(site, &["--resume"])
            });
            assert_eq!(resumed["end"], "rotated", "{}\n{}", said(&output), site.log());
        });
    }
    for tenant in ["alice", "bob"] {
        assert_eq!(daemon.value(tenant, "KEY").unwrap(), tenant.as_bytes());
    }
    answer(&site.cli(["backup", "push", "-o", "json"], b""));
    assert_eq!(daemon.stop().code(), Some(0));
    answer(&restore(site, &["-o", "json"]));
    nothing_is_lost(site);
}

fn a_restore_beside_an_installed_key_loses_no_key_that_is_needed(site: &Site) {
    let cloud = Cloud::of(site);
    let (key, _) = populated(site);
    cloud.add(&key);
    for round in 0..10 {
        lose_keys(site);
        if round % 2 == 0 {
            put(&site.key_file(), &new_key().0);
        }
        let (restored, installed) = std::thread::scope(|scope| {
            let installing = scope.spawn(|| site.cli(["admin", "install-key"], &key));
            (restore(site, &[]), installing.join().unwrap())
        });
        done_or_conflict(&restored);
        done_or_conflict(&installed);
        nothing_is_lost(site);
    }
}
