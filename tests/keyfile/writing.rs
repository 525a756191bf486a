use std::os::unix::fs::MetadataExt;
use std::sync::mpsc;
use std::time::Duration;

use containarium::keys::keyfile::{KeyfileError, Synced};

use super::*;

fn key() -> MasterKey {
    MasterKey::make_random().unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn a_first_start_makes_its_directories_private_and_its_key_0400() {
    let root = tempfile::tempdir().unwrap();
    let files = KeyFiles::at(&root.path().join("config/containarium/secrets.key")).unwrap();
    let lock = files.lock().unwrap();
    let kid = lock.stage(&key()).unwrap();
    lock.promote(kid).unwrap();
    assert_eq!(main_kid(&files.scan()), kid);
    let dir = root.path().join("config/containarium");
    for private in [root.path().join("config"), dir.clone(), dir.join("secrets.key.d")] {
        assert_eq!(mode(&private), 0o700, "{private:?}");
    }
    assert_eq!(mode(&dir.join("secrets.key")), 0o400);
    assert_eq!(mode(&dir.join("secrets.key.lock")), 0o600);
    assert_eq!(names(&dir), ["secrets.key", "secrets.key.d", "secrets.key.lock"]);
}

#[test]
fn a_promotion_keeps_the_old_key_and_a_second_one_changes_nothing() {
    let place = Place::new();
    let old = place.install();
    let lock = place.files().lock().unwrap();
    let new = lock.stage(&key()).unwrap();
    assert_eq!(main_kid(&place.files().scan()), old);
    lock.promote(new).unwrap();
    let inode = fs::metadata(place.main()).unwrap().ino();
    lock.promote(new).unwrap();
    assert_eq!(fs::metadata(place.main()).unwrap().ino(), inode);
    let scan = place.files().scan();
    assert_eq!(main_kid(&scan), new);
    assert!(kids(&scan).contains(&old) && scan.problems.is_empty());
    assert_eq!(mode(&place.retained().join(old.to_string())), 0o400);
}

#[test]
fn staging_the_same_key_again_is_fine_and_another_file_in_its_place_is_not_written_over() {
    let place = Place::new();
    let lock = place.files().lock().unwrap();
    let (first, second) = (key(), key());
    let kid = lock.stage(&first).unwrap();
    assert_eq!(lock.stage(&first).unwrap(), kid);
    let taken = place.retained().join(crypto::kid(&second).to_string());
    let other = install(&taken);
    let error = lock.stage(&second).unwrap_err();
    assert!(matches!(error, KeyfileError::NameTaken { .. }), "{error}");
    assert!(kids(&place.files().scan()).contains(&other));
}

#[test]
fn only_a_staged_key_is_promoted() {
    let place = Place::new();
    let old = place.install();
    let lock = place.files().lock().unwrap();
    let kid = crypto::kid(&key());
    let error = lock.promote(kid).unwrap_err();
    assert!(matches!(error, KeyfileError::NotStaged { .. }), "{error}");
    make_dir(&place.retained());
    install(&place.retained().join(kid.to_string()));
    let error = lock.promote(kid).unwrap_err();
    assert!(matches!(error, KeyfileError::NameLies { .. }), "{error}");
    assert_eq!(main_kid(&place.files().scan()), old);
}

#[test]
fn a_key_file_that_cannot_be_read_is_never_written_over() {
    let place = Place::new();
    let old = place.install();
    set_mode(&place.main(), 0o440);
    let lock = place.files().lock().unwrap();
    let new = lock.stage(&key()).unwrap();
    for error in [lock.promote(new).unwrap_err(), lock.unstage(new).unwrap_err()] {
        assert!(matches!(error, KeyfileError::MainIsBad { .. }), "{error}");
        assert!(error.to_string().contains("chmod 0400"), "{error}");
    }
    set_mode(&place.main(), 0o400);
    assert_eq!(main_kid(&place.files().scan()), old);
}

#[test]
fn what_lost_a_race_is_unstaged_but_never_the_key_in_use_nor_one_under_a_false_name() {
    let place = Place::new();
    let lock = place.files().lock().unwrap();
    let winner = lock.stage(&key()).unwrap();
    lock.promote(winner).unwrap();
    let loser = lock.stage(&key()).unwrap();
    lock.unstage(loser).unwrap();
    lock.unstage(loser).unwrap();
    let error = lock.unstage(winner).unwrap_err();
    assert!(matches!(error, KeyfileError::IsMain { .. }), "{error}");
    let hidden = install(&place.retained().join(loser.to_string()));
    let error = lock.unstage(loser).unwrap_err();
    assert!(matches!(error, KeyfileError::NameLies { .. }), "{error}");
    let scan = place.files().scan();
    assert!(kids(&scan).contains(&hidden) && !kids(&scan).contains(&loser));
}

#[test]
fn leftovers_of_a_crashed_writer_are_removed_by_the_next_and_nothing_else_is() {
    let place = Place::new();
    place.install();
    make_dir(&place.retained());
    install(&place.dir().join(".secrets.key.new"));
    install(&place.retained().join(format!(".{}.new", "a".repeat(32))));
    install(&place.retained().join(".mine.new"));
    install(&place.dir().join("secrets.key.new"));
    drop(place.files().lock().unwrap());
    assert_eq!(names(&place.dir()), ["secrets.key", "secrets.key.d", "secrets.key.lock", "secrets.key.new"]);
    assert_eq!(names(&place.retained()), [".mine.new"]);
}

#[test]
fn a_second_writer_waits_its_turn_or_is_told_who_holds_the_lock() {
    let place = Place::new();
    let held = place.files().lock().unwrap();
    assert!(place.files().try_lock().unwrap().is_none());
    let Err(error) = place.files().lock_within(Duration::from_millis(50)) else { panic!("two hold the lock") };
    let KeyfileError::LockHeld { holder, .. } = &error else { panic!("{error}") };
    assert_eq!(*holder, Some(std::process::id()));
    let (send, receive) = mpsc::channel();
    let files = place.files();
    let waiter = std::thread::spawn(move || {
        send.send("waiting").unwrap();
        drop(files.lock().unwrap());
        send.send("had it").unwrap();
    });
    assert_eq!(receive.recv().unwrap(), "waiting");
    drop(held);
    assert_eq!(receive.recv().unwrap(), "had it");
    waiter.join().unwrap();
}

#[test]
fn a_lock_that_cannot_be_one_is_refused_and_an_open_one_is_closed() {
    let place = Place::new();
    let lock = place.dir().join("secrets.key.lock");
    fs::write(&lock, "").unwrap();
    set_mode(&lock, 0o666);
    drop(place.files().lock().unwrap());
    assert_eq!(mode(&lock), 0o600);
    fs::remove_file(&lock).unwrap();
    for make in [
        (|path: &Path| make_dir(path)) as fn(&Path),
        |path| std::os::unix::fs::symlink("elsewhere", path).unwrap(),
        |path| run("mkfifo", &[path.to_str().unwrap()]),
    ] {
        make(&lock);
        let Err(error) = place.files().lock() else { panic!("locked") };
        assert!(matches!(error, KeyfileError::LockUnusable { .. }), "{error}");
        run("rm", &["-r", lock.to_str().unwrap()]);
    }
}

#[test]
fn a_full_disk_leaves_nothing_half_done_and_goes_on_when_there_is_space() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let _tmpfs = Tmpfs::mount(&place.dir(), "size=64k,mode=0700");
    let old = place.install();
    let lock = place.files().lock().unwrap();
    let staged = lock.stage(&key()).unwrap();
    let filler = place.dir().join("filler");
    drop(fs::write(&filler, vec![0; 65_536]).unwrap_err());
    let late = key();
    for error in [lock.stage(&late).unwrap_err(), lock.promote(staged).unwrap_err()] {
        assert!(matches!(error, KeyfileError::NoSpace { .. }), "{error}");
    }
    assert_eq!(names(&place.retained()), [staged.to_string().as_str()]);
    assert_eq!(names(&place.dir()), ["filler", "secrets.key", "secrets.key.d", "secrets.key.lock"]);
    assert_eq!(main_kid(&place.files().scan()), old);
    fs::remove_file(&filler).unwrap();
    lock.promote(staged).unwrap();
    assert_eq!(main_kid(&place.files().scan()), staged);
}

#[test]
fn a_read_only_file_system_is_said_and_changes_nothing() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let old = place.install();
    let lock = place.files().lock().unwrap();
    make_dir(&place.retained());
    let tmpfs = Tmpfs::mount(&place.retained(), "ro,mode=0700");
    let error = lock.stage(&key()).unwrap_err();
    assert!(matches!(error, KeyfileError::ReadOnly { .. }), "{error}");
    drop((tmpfs, lock));
    let tmpfs = Tmpfs::mount(&place.dir(), "ro,mode=0700");
    let Err(error) = place.files().lock() else { panic!("locked") };
    assert!(matches!(error, KeyfileError::ReadOnly { .. }), "{error}");
    drop(tmpfs);
    assert_eq!(main_kid(&place.files().scan()), old);
}

#[test]
fn every_copy_of_a_key_is_removed_under_whatever_name_it_lies_and_no_other_file_is() {
    let place = Place::new();
    place.install();
    let lock = place.files().lock().unwrap();
    let (gone, kept) = (key(), key());
    let (kid, other) = (lock.stage(&gone).unwrap(), lock.stage(&kept).unwrap());
    install_key(&place.retained().join("by-hand"), &gone);
    install_key(&place.retained().join("unreadable"), &gone);
    set_mode(&place.retained().join("unreadable"), 0o600);
    let mut removed = lock.unlink_copies(kid).unwrap();
    removed.sort();
    let mut expected = vec![place.retained().join(kid.to_string()), place.retained().join("by-hand")];
    expected.sort();
    assert_eq!(removed, expected);
    let mut left = vec![OsString::from(other.to_string()), "unreadable".into()];
    left.sort();
    assert_eq!(names(&place.retained()), left, "what cannot be read may be another key's only copy");
    assert!(lock.unlink_copies(kid).unwrap().is_empty(), "again is fine");
}

#[test]
fn no_copy_of_the_key_in_use_is_removed() {
    let place = Place::new();
    let kid = place.install();
    let lock = place.files().lock().unwrap();
    assert!(matches!(lock.unlink_copies(kid), Err(KeyfileError::IsMain { .. })));
    set_mode(&place.main(), 0o600);
    assert!(matches!(lock.unlink_copies(kid), Err(KeyfileError::MainIsBad { .. })), "it may be this very key");
    assert!(place.main().exists());
}

#[test]
fn a_key_counts_as_durable_once_its_file_is_good_and_synced() {
    let place = Place::new();
    let main = place.install();
    let staged = place.files().lock().unwrap().stage(&key()).unwrap();
    let bad = install(&place.retained().join("bad"));
    set_mode(&place.retained().join("bad"), 0o600);
    let mut synced = Synced::default();
    let mut expected = vec![main, staged];
    expected.sort();
    for _ in 0..2 {
        let (kids, problems) = place.files().durable(&place.files().scan(), &mut synced);
        assert_eq!(kids, expected);
        assert!(!kids.contains(&bad) && problems.is_empty());
    }
    let scan = place.files().scan();
    fs::remove_file(place.retained().join(staged.to_string())).unwrap();
    let (kids, _) = place.files().durable(&scan, &mut Synced::default());
    assert_eq!(kids, [main], "what went since the scan is no acknowledged key");
    let (kids, _) = place.files().durable(&place.files().scan(), &mut synced);
    assert_eq!(kids, [main]);
}
