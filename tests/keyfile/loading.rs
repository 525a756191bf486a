use std::os::unix::fs::{OpenOptionsExt, chown, symlink};
use std::os::unix::net::UnixListener;

use containarium::crypto::ImageError;
use containarium::keys::keyfile::KeyfileError;

use super::*;

/// What is wrong with the key file.
fn bad(place: &Place) -> KeyfileError {
    match place.files().scan().main {
        MainFile::Bad(error) => error,
        MainFile::Key(key) => panic!("{} is taken for good", key.kid),
        MainFile::Missing => panic!("taken for missing"),
    }
}

/// Runs the last command of a message as it is printed, beside a file BACKUP that holds a key.
fn mend(error: &KeyfileError) -> Kid {
    let text = error.to_string();
    let command = text.rsplit('`').nth(1).unwrap_or_else(|| panic!("no command in: {text}"));
    let dir = tempfile::tempdir().unwrap();
    let backup = install(&dir.path().join("BACKUP"));
    let out = Command::new("bash").args(["-ec", command]).current_dir(dir.path()).output().unwrap();
    assert!(out.status.success(), "{command}: {}", String::from_utf8_lossy(&out.stderr));
    backup
}

macro_rules! assert_error {
    ($error:expr, $pattern:pat) => {
        let error = $error;
        assert!(matches!(error, $pattern), "{error:?}: {error}");
    };
}

#[test]
fn a_good_key_file_is_loaded_and_the_missing_one_is_no_error() {
    let place = Place::new();
    assert!(matches!(place.files().scan().main, MainFile::Missing));
    let kid = place.install();
    let scan = place.files().scan();
    assert_eq!(main_kid(&scan), kid);
    assert!(scan.retained.is_empty() && scan.problems.is_empty());
    assert!(matches!(
        KeyFiles::at(&place.root.path().join("no/such/secrets.key")).unwrap().scan().main,
        MainFile::Missing
    ));
}

#[test]
fn a_path_without_a_file_name_is_refused() {
    for path in ["/", "/etc/.."] {
        assert_error!(KeyFiles::at(Path::new(path)).unwrap_err(), KeyfileError::NoFileName { .. });
    }
}

#[test]
fn a_symbolic_link_is_refused_also_to_a_good_key() {
    let place = Place::new();
    let target = place.dir().join("real.key");
    let kid = install(&target);
    symlink(&target, place.main()).unwrap();
    let error = bad(&place);
    assert_error!(&error, KeyfileError::IsSymlink { .. });
    mend(&error);
    assert_eq!(main_kid(&place.files().scan()), kid);
}

#[test]
fn a_fifo_is_refused_without_waiting_for_its_writer() {
    let place = Place::new();
    run("mkfifo", &["-m", "0400", place.main().to_str().unwrap()]);
    let error = bad(&place);
    assert_error!(&error, KeyfileError::IsFifo { .. });
    let backup = mend(&error);
    assert_eq!(main_kid(&place.files().scan()), backup);
}

#[test]
fn a_directory_in_place_of_the_file_is_refused() {
    let place = Place::new();
    make_dir(&place.main());
    let error = bad(&place);
    assert_error!(&error, KeyfileError::IsDirectory { .. });
    let backup = mend(&error);
    assert_eq!(main_kid(&place.files().scan()), backup);
}

#[test]
fn a_socket_is_refused() {
    let place = Place::new();
    let _socket = UnixListener::bind(place.main()).unwrap();
    let error = bad(&place);
    assert_error!(&error, KeyfileError::IsSocket { .. });
    let backup = mend(&error);
    assert_eq!(main_kid(&place.files().scan()), backup);
}

#[test]
fn a_device_is_refused() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    run("mknod", &[place.main().to_str().unwrap(), "c", "1", "5"]); // zero
    let error = bad(&place);
    assert_error!(&error, KeyfileError::IsDevice { .. });
    let backup = mend(&error);
    assert_eq!(main_kid(&place.files().scan()), backup);
}

#[test]
fn a_second_name_is_refused() {
    let place = Place::new();
    let kid = place.install();
    fs::hard_link(place.main(), place.dir().join("other")).unwrap();
    let error = bad(&place);
    assert_error!(&error, KeyfileError::HardLinked { .. });
    mend(&error);
    assert_eq!(main_kid(&place.files().scan()), kid);
}

#[test]
fn any_mode_but_0400_is_refused() {
    for mode in [0o440, 0o600, 0o404, 0o500, 0o000, 0o644, 0o4400] {
        let place = Place::new();
        let kid = place.install();
        set_mode(&place.main(), mode);
        let error = bad(&place);
        assert_error!(&error, KeyfileError::WrongMode { .. });
        assert!(error.to_string().contains(&format!("{mode:04o}")), "{error}");
        mend(&error);
        assert_eq!(main_kid(&place.files().scan()), kid);
    }
}

#[test]
fn another_owner_is_refused() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let kid = place.install();
    chown(place.main(), Some(NOBODY), None).unwrap();
    let error = bad(&place);
    assert_error!(&error, KeyfileError::WrongOwner { owner: NOBODY, .. });
    mend(&error);
    assert_eq!(main_kid(&place.files().scan()), kid);
}

#[test]
fn a_directory_that_others_can_write_to_is_refused_sticky_or_not() {
    for mode in [0o770, 0o702, 0o1777] {
        let place = Place::new();
        let kid = place.install();
        set_mode(&place.dir(), mode);
        let error = bad(&place);
        assert_error!(&error, KeyfileError::DirectoryWritable { .. });
        mend(&error);
        assert_eq!(main_kid(&place.files().scan()), kid);
    }
}

#[test]
fn a_directory_of_another_owner_is_refused() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let kid = place.install();
    chown(place.dir(), Some(NOBODY), None).unwrap();
    let error = bad(&place);
    assert_error!(&error, KeyfileError::DirectoryOwner { owner: NOBODY, .. });
    mend(&error);
    assert_eq!(main_kid(&place.files().scan()), kid);
}

#[test]
fn a_directory_that_is_a_link_is_refused() {
    let place = Place::new();
    let kid = place.install();
    let real = place.root.path().join("real");
    fs::rename(place.dir(), &real).unwrap();
    symlink(&real, place.dir()).unwrap();
    let error = bad(&place);
    assert_error!(&error, KeyfileError::DirectoryIsSymlink { .. });
    mend(&error);
    assert_eq!(main_kid(&place.files().scan()), kid);
}

#[test]
fn a_file_in_place_of_the_directory_is_refused() {
    let place = Place::new();
    fs::remove_dir(place.dir()).unwrap();
    fs::write(place.dir(), "").unwrap();
    let error = bad(&place);
    assert_error!(&error, KeyfileError::NotADirectory { .. });
    mend(&error);
    assert!(matches!(place.files().scan().main, MainFile::Missing));
}

#[test]
fn an_ancestor_that_others_can_write_to_is_refused_unless_it_is_sticky() {
    let place = Place::new();
    let kid = place.install();
    set_mode(place.root.path(), 0o1777);
    assert_eq!(main_kid(&place.files().scan()), kid);
    set_mode(place.root.path(), 0o777);
    let error = bad(&place);
    assert_error!(&error, KeyfileError::AncestorWritable { .. });
    mend(&error);
    assert_eq!(main_kid(&place.files().scan()), kid);
}

#[test]
fn an_ancestor_of_another_owner_is_refused() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let kid = place.install();
    chown(place.root.path(), Some(NOBODY), None).unwrap();
    let error = bad(&place);
    assert_error!(&error, KeyfileError::AncestorOwner { owner: NOBODY, .. });
    mend(&error);
    assert_eq!(main_kid(&place.files().scan()), kid);
}

#[test]
fn a_link_above_the_directory_is_followed_when_its_owner_is_trusted() {
    let place = Place::new();
    let kid = place.install();
    let link = place.root.path().join("link");
    for target in [place.root.path(), Path::new("."), Path::new("keys/..")] {
        symlink(target, &link).unwrap();
        let through = KeyFiles::at(&link.join("keys/secrets.key")).unwrap();
        assert_eq!(main_kid(&through.scan()), kid);
        fs::remove_file(&link).unwrap();
    }
    symlink(&link, &link).unwrap();
    let endless = KeyFiles::at(&link.join("keys/secrets.key")).unwrap();
    let MainFile::Bad(error) = endless.scan().main else { panic!() };
    assert_error!(error, KeyfileError::TooManyLinks { .. });
}

#[test]
fn a_link_above_the_directory_is_refused_when_it_is_a_strangers() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let kid = place.install();
    let link = place.root.path().join("link");
    symlink(place.root.path(), &link).unwrap();
    std::os::unix::fs::lchown(&link, Some(NOBODY), None).unwrap();
    let through = KeyFiles::at(&link.join("keys/secrets.key")).unwrap();
    let MainFile::Bad(error) = through.scan().main else { panic!() };
    assert_error!(&error, KeyfileError::AncestorLink { owner: NOBODY, .. });
    mend(&error);
    assert_eq!(main_kid(&through.scan()), kid);
}

#[test]
fn damaged_contents_are_named_for_what_they_are_and_the_backup_mends_them() {
    let replaced: Vec<u8> = [&[7; 10][..], &[0xEF, 0xBF, 0xBD], &[9; 20]].concat();
    let is = |expected: ImageError, content: &[u8]| {
        let place = Place::new();
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o400).open(place.main()).unwrap();
        std::io::Write::write_all(&mut file, content).unwrap();
        let error = bad(&place);
        let KeyfileError::Damaged { damage, .. } = &error else { panic!("{error:?}") };
        assert_eq!(*damage, expected);
        let backup = mend(&error);
        assert_eq!(main_kid(&place.files().scan()), backup);
    };
    is(ImageError::Empty, b"");
    is(ImageError::WrongLength { length: 31 }, &[7; 31]);
    is(ImageError::WrongLength { length: 33 }, &[7; 33]);
    is(ImageError::TextModeCopy { length: 57 }, &[7; 57]);
    is(ImageError::TextModeCopy { length: 60 }, &[7; 60]);
    is(ImageError::TextModeCopy { length: 33 }, &replaced);
    is(ImageError::AllZero, &[0; 32]);
    is(ImageError::Base64Text { length: 45 }, b"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n");
    is(ImageError::HexText { length: 64 }, "0f".repeat(32).as_bytes());
    is(ImageError::TooLong { limit: 65_536 }, &vec![7; 70_000]);
}

#[test]
fn every_retained_file_is_known_by_what_it_holds_and_a_name_that_lies_is_reported() {
    let place = Place::new();
    make_dir(&place.retained());
    let honest = MasterKey::make_random().unwrap();
    install_key(&place.retained().join(crypto::kid(&honest).to_string()), &honest);
    let liar = install(&place.retained().join("0".repeat(32)));
    let wide = place.retained().join("wide");
    install(&wide);
    set_mode(&wide, 0o644);
    install(&place.retained().join(format!(".{}.new", "0".repeat(32))));
    let scan = place.files().scan();
    let mut expected = [crypto::kid(&honest), liar];
    expected.sort();
    let mut found = kids(&scan);
    found.sort();
    assert_eq!(found, expected);
    let [lie, mode] = &scan.problems[..] else { panic!("{:?}", scan.problems) };
    assert_error!(lie, KeyfileError::NameLies { .. });
    assert_error!(mode, KeyfileError::WrongMode { .. });
    mend(lie);
    mend(mode);
    let wide = place.files().scan();
    assert_eq!(wide.retained.len(), 3);
    assert!(matches!(&wide.problems[..], [KeyfileError::NameLies { .. }]), "{:?}", wide.problems);
}

#[test]
fn a_retained_directory_that_others_can_write_to_is_not_read() {
    let place = Place::new();
    make_dir(&place.retained());
    install(&place.retained().join("a"));
    set_mode(&place.retained(), 0o730);
    let scan = place.files().scan();
    assert!(scan.retained.is_empty());
    assert!(matches!(&scan.problems[..], [KeyfileError::DirectoryWritable { .. }]), "{:?}", scan.problems);
}
