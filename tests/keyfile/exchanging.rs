//! One form of a key exchanged for another in its file.

use containarium::crypto::{Content, KeyfileImage};
use containarium::keys::keyfile::{FoundImage, KeyfileError};
use containarium::model::{WrappedMaster, Wrapping};

use super::*;

/// A wrapped form of a key; what it is wrapped with does not matter here.
fn wrapped(kid: Kid, with: u8) -> KeyfileImage {
    let recipient = Wrapping::Age { recipient: "age1qqqq".to_owned(), ciphertext: vec![with; 9], proven_at: None };
    KeyfileImage::of_wrapped(&WrappedMaster { kid, recipients: vec![recipient] })
}

fn is_wrapped(path: &Path) -> bool {
    let image = KeyfileImage::read_from(&mut std::fs::File::open(path).unwrap()).unwrap();
    matches!(image.content(), Ok(Content::Wrapped(_)))
}

/// A place with a key in use and the one before it.
fn two_keys() -> (Place, Kid, Kid) {
    let place = Place::new();
    let (old, new) = (MasterKey::make_random().unwrap(), MasterKey::make_random().unwrap());
    let lock = place.files().lock().unwrap();
    for master in [&old, &new] {
        let kid = lock.stage(master).unwrap();
        lock.promote(kid).unwrap();
    }
    drop(lock);
    (place, crypto::kid(&old), crypto::kid(&new))
}

fn found(place: &Place) -> Vec<FoundImage> {
    place.files().images().unwrap()
}

#[test]
fn every_file_is_found_with_the_one_in_use_last_and_each_can_be_exchanged() {
    let (place, old, new) = two_keys();
    let files = found(&place);
    let kids: Vec<Kid> = files.iter().map(|file| file.kid).collect();
    assert_eq!((kids.last(), kids.len(), kids.contains(&old)), (Some(&new), 3, true), "the staged copies stay");
    let lock = place.files().lock().unwrap();
    for file in &files {
        lock.exchange(file, &wrapped(file.kid, 1)).unwrap();
        assert!(is_wrapped(&file.path));
        assert_eq!(std::fs::metadata(&file.path).unwrap().permissions().mode() & 0o7777, 0o400);
    }
    assert_eq!(main_kid(&place.files().scan()), new);
    assert_eq!(place.files().scan().problems.len(), 0);
    // And a promotion of what is there already finds nothing in its way.
    lock.promote(old).unwrap();
    assert_eq!(main_kid(&place.files().scan()), old);
    assert!(is_wrapped(&place.files().path()));
}

#[test]
fn what_is_not_what_was_read_or_is_another_key_is_not_exchanged() {
    let (place, old, new) = two_keys();
    let files = found(&place);
    let main = files.last().unwrap();
    let lock = place.files().lock().unwrap();
    assert!(matches!(lock.exchange(main, &wrapped(old, 1)), Err(KeyfileError::ReadBack { .. })));
    lock.exchange(main, &wrapped(new, 1)).unwrap();
    match lock.exchange(main, &wrapped(new, 2)) {
        Err(KeyfileError::MainChanged { found, .. }) => assert_eq!(found, Some(new)),
        other => panic!("{other:?}"),
    }
    std::fs::remove_file(&files[0].path).unwrap();
    lock.exchange(&files[0], &wrapped(files[0].kid, 1)).unwrap();
    assert!(!files[0].path.exists(), "a retained file that was removed stays so");
}

#[test]
fn a_key_that_is_kept_wrapped_is_kept_raw_where_that_is_to_be_kept_and_never_the_other_way_round() {
    let place = Place::new();
    let master = MasterKey::make_random().unwrap();
    let kid = crypto::kid(&master);
    let lock = place.files().lock().unwrap();
    lock.stage_image(&wrapped(kid, 1)).unwrap();
    let path = place.files().retained_path(kid);
    assert!(is_wrapped(&path));
    lock.stage_image(&wrapped(kid, 2)).unwrap();
    lock.stage(&master).unwrap();
    assert!(!is_wrapped(&path));
    lock.stage_image(&wrapped(kid, 1)).unwrap();
    assert!(!is_wrapped(&path));
    assert!(lock.stage_image(&KeyfileImage::read_from(&mut &b"{"[..]).unwrap()).is_err());
}
