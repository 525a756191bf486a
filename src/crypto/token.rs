//! What tokens take: random bytes, the hash of a secret part, and the MAC over a row. Comparisons are in constant time.

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::aead::fill_random;
use super::secret::Bytes32;
use super::{NoRandom, SecretValue};

/// The key under which token rows are authenticated: the system's secret TOKEN_MAC.
pub struct TokenMacKey(Bytes32);

impl TokenMacKey {
    /// `None` for a value that has not 32 bytes.
    #[must_use]
    pub fn of(value: &SecretValue) -> Option<Self> {
        let bytes: &[u8; 32] = value.bytes().try_into().ok()?;
        Some(Self(Bytes32::filled(|key| key.copy_from_slice(bytes))))
    }

    /// HMAC-SHA256 over the length-prefixed fields, in their order.
    #[must_use]
    pub fn mac(&self, fields: &[&[u8]]) -> [u8; 32] {
        self.over(fields).finalize().into_bytes().into()
    }

    /// Whether this is the fields' MAC, in constant time.
    #[must_use]
    pub fn holds(&self, fields: &[&[u8]], mac: &[u8; 32]) -> bool {
        self.over(fields).verify(mac.into()).is_ok()
    }

    fn over(&self, fields: &[&[u8]]) -> Hmac<Sha256> {
        // RFC 2104: a key shorter than the hash's block is padded with zeros.
        let mut block = Zeroizing::new([0; 64]);
        let (key, _) = block.split_at_mut(32);
        key.copy_from_slice(self.0.bytes());
        let mut mac = <Hmac<Sha256> as KeyInit>::new((&*block).into());
        for field in fields {
            // No field has 4 GiB; one that had would only fail to verify.
            mac.update(&u32::try_from(field.len()).unwrap_or(u32::MAX).to_be_bytes());
            mac.update(field);
        }
        mac
    }
}

/// The random bytes of a new token: its id and its secret part.
///
/// # Errors
/// [`NoRandom`].
pub fn make_token() -> Result<([u8; 16], Zeroizing<[u8; 32]>), NoRandom> {
    let (mut id, mut secret) = ([0; 16], Zeroizing::new([0; 32]));
    fill_random(&mut id)?;
    fill_random(secret.as_mut_slice())?;
    Ok((id, secret))
}

/// SHA-256. Enough for a credential of 256 random bits: there is nothing to guess that a slow hash would slow down.
#[must_use]
pub fn hash_credential(text: &[u8]) -> [u8; 32] {
    Sha256::digest(text).into()
}

/// Whether two hashes are the same, in constant time.
#[must_use]
pub fn same_hash(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.ct_eq(b).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> TokenMacKey {
        TokenMacKey::of(&SecretValue::new(Zeroizing::new(vec![byte; 32]))).unwrap()
    }

    #[test]
    fn a_mac_is_hmac_sha_256_over_length_prefixed_fields() {
        let mut expected = <Hmac<Sha256> as KeyInit>::new_from_slice(&[7; 32]).unwrap();
        expected.update(b"\0\0\0\x02ab\0\0\0\0\0\0\0\x01c");
        assert_eq!(key(7).mac(&[b"ab", b"", b"c"]), <[u8; 32]>::from(expected.finalize().into_bytes()));
    }

    #[test]
    fn a_mac_holds_for_its_fields_and_its_key_only() {
        let mac = key(7).mac(&[b"ab", b"c"]);
        assert!(key(7).holds(&[b"ab", b"c"], &mac));
        assert!(!key(7).holds(&[b"a", b"bc"], &mac));
        assert!(!key(7).holds(&[b"ab", b"c", b""], &mac));
        assert!(!key(8).holds(&[b"ab", b"c"], &mac));
    }

    #[test]
    fn a_key_has_32_bytes() {
        for length in [0, 31, 33] {
            assert!(TokenMacKey::of(&SecretValue::new(Zeroizing::new(vec![7; length]))).is_none());
        }
    }
}
