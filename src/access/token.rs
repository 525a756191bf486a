//! Tokens: `ctn_` ID `_` SECRET CHECKSUM.
//!
//! ID is 16 random bytes and public; SECRET is 32 random bytes, of which the database has a hash only. Both are base62, so that a double
//! click takes the whole token, and no shell and no URL minds it. CHECKSUM is the CRC32C of all before it: a scanner of source code can
//! tell a token from an accident without asking anybody, and one that was cut off in copying is refused without a look at the database.

use zeroize::Zeroizing;

use super::bearer::TOKEN_PREFIX;
use crate::crypto::{self, NoRandom};
use crate::model::TokenId;

const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// 62^43 is more than 2^256, and 62^42 is less.
const SECRET_LENGTH: usize = 43;
/// 62^6 is more than 2^32.
const CHECKSUM_LENGTH: usize = 6;

/// A new token, of which the text is told once and never kept.
pub struct MadeToken {
    pub id: TokenId,
    pub text: Zeroizing<String>,
    /// Of the secret part.
    pub secret_hash: [u8; 32],
}

/// A token as somebody presents it. Its form and its checksum are right; nothing else is known.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Presented {
    pub(super) id: TokenId,
    pub(super) secret_hash: [u8; 32],
}

/// # Errors
/// [`NoRandom`].
pub fn make_token() -> Result<MadeToken, NoRandom> {
    let (id, mut secret) = crypto::make_token()?;
    let mut text = Zeroizing::new(String::with_capacity(128));
    text.push_str(TOKEN_PREFIX);
    push_base62(&mut text, &mut { id }, TokenId::LENGTH);
    text.push('_');
    let start = text.len();
    push_base62(&mut text, secret.as_mut_slice(), SECRET_LENGTH);
    let secret_hash = crypto::hash_credential(text.get(start..).unwrap_or_default().as_bytes());
    let checksum = crc32c::crc32c(text.as_bytes());
    push_base62(&mut text, &mut checksum.to_be_bytes(), CHECKSUM_LENGTH);
    let id = text.get(TOKEN_PREFIX.len()..).and_then(|rest| rest.get(..TokenId::LENGTH)).unwrap_or_default();
    let id = TokenId::parse(id).map_err(|_| NoRandom)?;
    Ok(MadeToken { id, text, secret_hash })
}

/// `None` for what is no token: of another form, or mistyped.
pub(super) fn parse(text: &str) -> Option<Presented> {
    let rest = text.strip_prefix(TOKEN_PREFIX)?;
    let (id, rest) = rest.split_at_checked(TokenId::LENGTH)?;
    let rest = rest.strip_prefix('_')?;
    let (secret, checksum) = rest.split_at_checked(SECRET_LENGTH)?;
    let id = TokenId::parse(id).ok()?;
    let is_base62 = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if checksum.len() != CHECKSUM_LENGTH || !is_base62(secret) {
        return None;
    }
    let mut expected = String::with_capacity(CHECKSUM_LENGTH);
    let sum = crc32c::crc32c(text.get(..text.len() - CHECKSUM_LENGTH)?.as_bytes());
    push_base62(&mut expected, &mut sum.to_be_bytes(), CHECKSUM_LENGTH);
    let secret_hash = crypto::hash_credential(secret.as_bytes());
    (expected == checksum).then_some(Presented { id, secret_hash })
}

/// Writes a big-endian number with that many digits, and uses it up: schoolbook division, which takes microseconds for 32 bytes.
fn push_base62(text: &mut String, number: &mut [u8], digits: usize) {
    let mut reversed = Zeroizing::new(Vec::with_capacity(digits));
    for _ in 0..digits {
        let mut rest = 0_u16;
        for byte in number.iter_mut() {
            let value = rest * 256 + u16::from(*byte);
            // Both below 256, as `rest` is below 62.
            *byte = u8::try_from(value / 62).unwrap_or(u8::MAX);
            rest = value % 62;
        }
        reversed.push(DIGITS.get(usize::from(rest)).copied().unwrap_or(b'0'));
    }
    text.extend(reversed.iter().rev().map(|digit| char::from(*digit)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_76_characters_and_comes_back_as_its_id_and_the_hash_of_its_secret() {
        let made = make_token().unwrap();
        assert_eq!(made.text.len(), 76);
        assert_eq!(&made.text[..27], format!("ctn_{}_", made.id));
        assert_eq!(made.secret_hash, crypto::hash_credential(&made.text.as_bytes()[27..70]));
        assert_eq!(parse(&made.text), Some(Presented { id: made.id, secret_hash: made.secret_hash }));
        assert!(make_token().unwrap().text != made.text);
    }

    #[test]
    fn a_token_with_one_character_changed_or_missing_is_none() {
        let text = make_token().unwrap().text;
        for at in 0..text.len() {
            let mut other = text.as_bytes().to_vec();
            other[at] = if other[at] == b'x' { b'y' } else { b'x' };
            assert_eq!(parse(std::str::from_utf8(&other).unwrap()), None, "{at}");
            other.remove(at);
            assert_eq!(parse(std::str::from_utf8(&other).unwrap()), None, "{at} removed");
        }
        for other in ["", "ctn_", "ctn_é", &format!("{}x", *text), &text.to_uppercase(), &"ctn_é".repeat(16)] {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn base_62_is_the_number_with_leading_zeros() {
        let digits = |number: &[u8], length| {
            let mut text = String::new();
            push_base62(&mut text, &mut number.to_vec(), length);
            text
        };
        assert_eq!(digits(&[0], 2), "00");
        assert_eq!(digits(&[61], 1), "z");
        assert_eq!(digits(&[62], 3), "010");
        assert_eq!(digits(&[0xFF; 4], 6), "4gfFC3");
        assert_eq!(digits(&[0xFF; 16], 22), "7n42DGM5Tflk9n8mt7Fhc7");
        assert_eq!(digits(&[0xFF; 32], 43).len(), 43);
    }
}
