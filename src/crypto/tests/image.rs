//! What a key file can hold instead of a key, each told apart.

use super::*;
use proptest::prelude::*;
use std::io::{self, Cursor, Read};

fn image(bytes: &[u8]) -> KeyfileImage {
    KeyfileImage::read_from(&mut Cursor::new(bytes)).unwrap()
}

fn damage(bytes: &[u8]) -> ImageError {
    image(bytes).master().err().unwrap()
}

/// What `to_string` on bytes, a shell variable or an editor does: each byte sequence that is not UTF-8 becomes U+FFFD.
fn text_mode(bytes: &[u8]) -> Vec<u8> {
    String::from_utf8_lossy(bytes).into_owned().into_bytes()
}

#[test]
fn thirty_two_bytes_are_a_master_key_and_come_back_as_they_were() {
    let master = MasterKey::make_random().unwrap();
    let written = {
        let mut out = Vec::new();
        KeyfileImage::of(&master).write_to(&mut out).unwrap();
        out
    };
    assert_eq!(written.as_slice(), master.0.bytes());
    assert_eq!(kid(&image(&written).master().unwrap()), kid(&master));
}

#[test]
fn a_copy_is_known_by_the_sha_256_of_its_bytes() {
    // FIPS 180-2, appendix B.1.
    let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(data_encoding::HEXLOWER.encode(&image(b"abc").sha256()), known);
    assert_eq!((image(b"abc").len(), image(b"abc").is_empty(), image(b"").is_empty()), (3, false, true));
}

#[test]
fn each_damage_has_its_own_name() {
    let hex = b"00112233445566778899aabbccddeeff00112233445566778899AABBCCDDEEFF";
    let base64 = b"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    let url_base64 = b"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwd_-8";
    let with_newline = |text: &[u8]| [text, b"\n"].concat();
    assert_eq!(damage(b""), ImageError::Empty);
    assert_eq!(damage(&[0; 32]), ImageError::AllZero);
    assert_eq!(damage(hex), ImageError::HexText { length: 64 });
    assert_eq!(damage(&with_newline(hex)), ImageError::HexText { length: 65 });
    assert_eq!(damage(base64), ImageError::Base64Text { length: 44 });
    assert_eq!(damage(&with_newline(base64)), ImageError::Base64Text { length: 45 });
    assert_eq!(damage(url_base64), ImageError::Base64Text { length: 43 });
    for length in [1, 16, 31, 33, 43, 44, 56, 61, 64, 65, KeyfileImage::MAX_LEN] {
        assert_eq!(damage(&vec![0xA5; length]), ImageError::WrongLength { length });
    }
    for length in 57..=60 {
        assert_eq!(damage(&vec![0xA5; length]), ImageError::TextModeCopy { length });
    }
    let replaced = [b"\xEF\xBF\xBD".as_slice(), &[b'x'; 9]].concat();
    assert_eq!(damage(&replaced), ImageError::TextModeCopy { length: 12 });
    assert_eq!(damage(&vec![1; KeyfileImage::MAX_LEN + 1]), ImageError::TooLong { limit: KeyfileImage::MAX_LEN });
}

#[test]
fn each_message_says_what_is_wrong_and_repeats_nothing_of_the_file() {
    let messages = [
        damage(b""),
        damage(&[0; 32]),
        damage(&[b'a'; 64]),
        damage(&[b'q'; 44]),
        damage(&[b'q'; 7]),
        damage(&[b'q'; 58]),
        damage(&vec![b'q'; KeyfileImage::MAX_LEN + 1]),
    ]
    .map(|error| error.to_string());
    for (at, message) in messages.iter().enumerate() {
        assert!(!message.contains("qqq") && !message.contains("aaa"), "{message}");
        assert!(!messages[..at].contains(message), "said twice: {message}");
    }
    assert!(damage(&[b'q'; 58]).to_string().contains("--out-file"), "the command that copies exactly");
}

#[test]
fn a_random_key_that_went_through_a_text_mode_copy_is_always_recognised() {
    for _ in 0..20_000 {
        let master = MasterKey::make_random().unwrap();
        let copied = text_mode(master.0.bytes());
        assert_ne!(copied.as_slice(), master.0.bytes(), "32 random bytes are not UTF-8");
        assert_eq!(damage(&copied), ImageError::TextModeCopy { length: copied.len() });
    }
}

proptest! {
    /// Whatever the bytes: none that a text-mode copy made longer or shorter is taken for a key.
    #[test]
    fn a_text_mode_copy_is_named_whatever_the_key(key in prop::array::uniform32(any::<u8>())) {
        let copied = text_mode(&key);
        prop_assume!(copied.len() != 32);
        prop_assert_eq!(damage(&copied), ImageError::TextModeCopy { length: copied.len() });
    }

    #[test]
    fn no_content_but_thirty_two_bytes_is_a_key(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert_eq!(image(&bytes).master().is_ok(), bytes.len() == 32 && bytes.iter().any(|byte| *byte != 0));
    }
}

#[test]
fn images_are_the_same_only_when_every_byte_is() {
    assert!(image(b"abc").same_as(&image(b"abc")));
    for other in [b"".as_slice(), b"ab", b"abd", b"abcd"] {
        assert!(!image(b"abc").same_as(&image(other)));
    }
}

/// A reader that gives one byte a call, is interrupted between them, and then fails or ends.
struct Dribble {
    left: usize,
    interrupted: bool,
    end: Option<io::ErrorKind>,
}

impl Read for Dribble {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.interrupted = !self.interrupted;
        if self.interrupted {
            return Err(io::ErrorKind::Interrupted.into());
        }
        if self.left == 0 {
            return self.end.map_or(Ok(0), |kind| Err(kind.into()));
        }
        self.left -= 1;
        out[0] = 7;
        Ok(1)
    }
}

#[test]
fn a_key_that_comes_byte_by_byte_is_read_whole() {
    let mut reader = Dribble { left: 32, interrupted: false, end: None };
    assert!(KeyfileImage::read_from(&mut reader).unwrap().master().is_ok());
}

#[test]
fn a_read_that_fails_gives_no_image() {
    let mut reader = Dribble { left: 31, interrupted: false, end: Some(io::ErrorKind::UnexpectedEof) };
    assert_eq!(KeyfileImage::read_from(&mut reader).err().map(|e| e.kind()), Some(io::ErrorKind::UnexpectedEof));
}

#[test]
fn an_endless_file_is_read_to_the_limit_and_refused() {
    let mut reader = Dribble { left: usize::MAX, interrupted: false, end: None };
    let error = KeyfileImage::read_from(&mut reader).unwrap().master().err();
    assert_eq!(error, Some(ImageError::TooLong { limit: KeyfileImage::MAX_LEN }));
    assert_eq!(usize::MAX - reader.left, KeyfileImage::MAX_LEN + 1, "one byte past the limit and no more");
}

fn wrapped_json() -> String {
    r#"{"format": "containarium/wrapped-master/1", "kid": "000102030405060708090a0b0c0d0e0f", "recipients": [
    {"type": "age", "recipient": "age1qqqq", "ciphertext": "YWdl"}]}"#
        .to_owned()
}

#[test]
fn a_wrapped_key_is_told_from_a_raw_one_and_is_not_taken_for_the_key() {
    let kid = crate::model::Kid::new(std::array::from_fn(|at| u8::try_from(at).unwrap()));
    let wrapped = image(wrapped_json().as_bytes());
    let Ok(Content::Wrapped(read)) = wrapped.content() else { panic!() };
    assert_eq!(read.kid, kid);
    assert_eq!(wrapped.master().err(), Some(ImageError::Wrapped { kid }));
    assert!(matches!(KeyfileImage::of_wrapped(&read).content(), Ok(Content::Wrapped(again)) if again == read));
    // 32 bytes are the key itself, whatever they look like.
    assert!(matches!(image(b"{\"format\": \"containarium/wrappe").content(), Err(ImageError::BadWrapped(_))));
    assert!(matches!(image(b"{\"format\": \"containarium/wrapped").content(), Ok(Content::Raw(_))));
}

#[test]
fn a_damaged_wrapped_key_is_said_to_be_one_and_a_damaged_raw_key_is_not() {
    let json = wrapped_json();
    for length in (1..json.len()).filter(|length| *length != 32) {
        assert!(matches!(damage(&json.as_bytes()[..length]), ImageError::BadWrapped(_)), "{length}");
    }
    // A raw key may begin with a brace.
    for length in [31, 33] {
        let mut bytes = vec![0xA5; length];
        bytes[0] = b'{';
        assert_eq!(damage(&bytes), ImageError::WrongLength { length });
    }
    let mut long = json.into_bytes();
    long.resize(KeyfileImage::MAX_LEN + 1, b' ');
    assert_eq!(damage(&long), ImageError::TooLong { limit: KeyfileImage::MAX_LEN });
}

#[test]
fn what_is_sealed_with_a_wrapped_key_is_its_label_and_its_kid() {
    let kid = crate::model::Kid::new([7; 16]);
    let expected = [b"\0\0\0\x16containarium/v2/master".as_slice(), &[7; 16]].concat();
    assert_eq!(crate::crypto::master_aad(kid), expected);
}
