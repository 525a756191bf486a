//! Copies of master keys: made, read back, found; and what damaged ones say.

mod age;
mod paper;
mod target;

use containarium::backup::{BackupError, KeyCopy, ReadCopy, read_copy};
use containarium::crypto::{self, KeyfileImage, MasterKey};
use containarium::model::Kid;

/// What is no wrapped key file though it looks like one; a copy carries it as it is.
const WRAPPED: &[u8] = br#"{"format": "containarium/wrapped-master/1", "kid": "00", "recipients": []}"#;

fn image(bytes: &[u8]) -> KeyfileImage {
    KeyfileImage::read_from(&mut &*bytes).unwrap()
}

fn bytes(image: &KeyfileImage) -> Vec<u8> {
    let mut bytes = Vec::new();
    image.write_to(&mut bytes).unwrap();
    bytes
}

fn new_key() -> (Vec<u8>, Kid) {
    let master = MasterKey::make_random().unwrap();
    (bytes(&KeyfileImage::of(&master)), crypto::kid(&master))
}

fn kid_of(bytes: &[u8]) -> Kid {
    KeyCopy::new(image(bytes)).kid().unwrap()
}

fn read(text: &[u8]) -> Result<ReadCopy, BackupError> {
    read_copy(&mut &*text, None)
}

fn refusal(text: &[u8]) -> BackupError {
    read(text).err().expect("an error")
}

#[test]
fn a_plain_copy_is_read_as_it_is_and_says_what_it_is() {
    let (key, kid) = new_key();
    let read_back = read(&key).unwrap();
    assert_eq!((bytes(read_back.copy.image()), read_back.copy.kid()), (key.clone(), Ok(kid)));
    assert_eq!(read_back.copy.sha256(), image(&key).sha256());
    for wrong in [&key[..31], &[&key[..], b"\n"].concat(), b"", WRAPPED] {
        let read_back = read(wrong).unwrap();
        assert_eq!(bytes(read_back.copy.image()), wrong);
        assert!(read_back.copy.kid().is_err());
    }
}

#[test]
fn more_than_any_copy_has_is_not_read() {
    let refused = read_copy(&mut std::io::repeat(b'A'), None).err().unwrap();
    assert!(matches!(refused, BackupError::TooLong { limit: 262_144 }), "{refused}");
}
