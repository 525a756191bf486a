//! Primitives: HKDF-SHA-256 (RFC 5869) and AES-256-GCM (NIST SP 800-38D), and the committing construction made of both. Private
//! to crypto: outside it there is no call that takes a key, a nonce or a salt.

use aes_gcm::{AeadInOut, Aes256Gcm, KeyInit};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::NoRandom;

pub(super) const SALT_LEN: usize = 32;
pub(super) const COMMITMENT_LEN: usize = 32;
pub(super) const TAG_LEN: usize = 16;
const NONCE_LEN: usize = 12;

/// Why a body did not open.
pub(super) enum Refusal {
    NotCommitted,
    Corrupted,
}

/// Bytes from the operating system: the only source of randomness in the program.
#[expect(clippy::disallowed_methods, reason = "the one place that draws random bytes")]
pub(super) fn fill_random(out: &mut [u8]) -> Result<(), NoRandom> {
    getrandom::fill(out).map_err(|_| NoRandom)
}

/// Fresh for every message: with it the message gets a key and a nonce of its own.
pub(super) fn make_salt() -> Result<[u8; SALT_LEN], NoRandom> {
    let mut salt = [0; SALT_LEN];
    fill_random(&mut salt)?;
    Ok(salt)
}

/// RFC 5869 with SHA-256; no salt is the RFC's default of 32 zero bytes.
///
/// Fails for more than 255 × 32 bytes of output only, and every length here is a constant far below. Going on after a failure
/// would mean an all-zero key, so this is the one place that would rather stop the program.
#[expect(
    clippy::expect_used,
    reason = "the lengths are constants within the RFC's limit; an all-zero key must be impossible"
)]
pub(super) fn hkdf<const N: usize>(ikm: &[u8], salt: Option<&[u8]>, info: &[u8], out: &mut [u8; N]) {
    const { assert!(N <= 255 * 32, "RFC 5869, section 2.3") };
    hkdf_into(ikm, salt, info, out).expect("a length within RFC 5869's limit");
}

/// The same for a length known at run time only, which is what test vectors have.
pub(super) fn hkdf_into(
    ikm: &[u8],
    salt: Option<&[u8]>,
    info: &[u8],
    out: &mut [u8],
) -> Result<(), hkdf::InvalidLength> {
    hkdf::Hkdf::<sha2::Sha256>::new(salt, ikm).expand(info, out)
}

/// Encrypts in place and gives the tag.
///
/// Fails for more than 64 GiB of text only (SP 800-38D, section 5.2.1.1); callers hold at most 64 KiB. Going on would store a
/// plaintext as if it were sealed.
#[expect(clippy::expect_used, reason = "callers hold at most 64 KiB; a plaintext must never pass for a ciphertext")]
pub(super) fn aes_256_gcm_encrypt(
    key: &[u8; 32],
    nonce: &[u8; NONCE_LEN],
    aad: &[u8],
    text: &mut [u8],
) -> [u8; TAG_LEN] {
    let cipher = Aes256Gcm::new(key.into());
    cipher.encrypt_inout_detached(nonce.into(), aad, text.into()).expect("a text within AES-GCM's limit").into()
}

/// Decrypts in place; `false`, with the text as it was, unless the tag matches.
pub(super) fn aes_256_gcm_decrypt(
    key: &[u8; 32],
    nonce: &[u8; NONCE_LEN],
    aad: &[u8],
    text: &mut [u8],
    tag: &[u8; TAG_LEN],
) -> bool {
    let cipher = Aes256Gcm::new(key.into());
    cipher.decrypt_inout_detached(nonce.into(), aad, text.into(), tag.into()).is_ok()
}

/// What one message uses, in the order of HKDF's output.
struct MessageKeys {
    commitment: [u8; COMMITMENT_LEN],
    key: Zeroizing<[u8; 32]>,
    nonce: [u8; NONCE_LEN],
}

impl MessageKeys {
    fn derive(ikm: &[u8; 32], salt: &[u8; SALT_LEN], info: &[u8]) -> Self {
        let mut okm = Zeroizing::new([0; COMMITMENT_LEN + 32 + NONCE_LEN]);
        hkdf(ikm, Some(salt), info, &mut okm);
        let mut keys = Self { commitment: [0; COMMITMENT_LEN], key: Zeroizing::new([0; 32]), nonce: [0; NONCE_LEN] };
        let (commitment, rest) = okm.split_at(COMMITMENT_LEN);
        let (key, nonce) = rest.split_at(32);
        keys.commitment.copy_from_slice(commitment);
        keys.key.copy_from_slice(key);
        keys.nonce.copy_from_slice(nonce);
        keys
    }
}

/// header ‖ salt ‖ commitment ‖ AES-256-GCM(text) ‖ tag. `info` binds key and ciphertext to their place; it is HKDF's info and
/// AES-GCM's additional data.
pub(super) fn seal(ikm: &[u8; 32], header: &[u8], salt: &[u8; SALT_LEN], info: &[u8], text: &[u8]) -> Vec<u8> {
    let keys = MessageKeys::derive(ikm, salt, info);
    let mut sealed = Vec::with_capacity(header.len() + SALT_LEN + COMMITMENT_LEN + text.len() + TAG_LEN);
    sealed.extend_from_slice(header);
    sealed.extend_from_slice(salt);
    sealed.extend_from_slice(&keys.commitment);
    let body = sealed.len();
    // The plaintext is encrypted where it lies, so that no second copy of it is left in freed memory.
    sealed.extend_from_slice(text);
    let (_, body) = sealed.split_at_mut(body);
    let tag = aes_256_gcm_encrypt(&keys.key, &keys.nonce, info, body);
    sealed.extend_from_slice(&tag);
    sealed
}

/// Opens what [`seal`] made: `body` is all after the header. Commitment first, in constant time; then the tag.
pub(super) fn open(ikm: &[u8; 32], info: &[u8], body: SealedBody<'_>) -> Result<Zeroizing<Vec<u8>>, Refusal> {
    let keys = MessageKeys::derive(ikm, body.salt, info);
    if !bool::from(keys.commitment.ct_eq(body.commitment)) {
        return Err(Refusal::NotCommitted);
    }
    let mut text = Zeroizing::new(body.ciphertext.to_vec());
    if aes_256_gcm_decrypt(&keys.key, &keys.nonce, info, &mut text, body.tag) {
        Ok(text)
    } else {
        Err(Refusal::Corrupted)
    }
}

/// The parts of a sealed body, cut once.
#[derive(Clone, Copy)]
pub(super) struct SealedBody<'a> {
    salt: &'a [u8; SALT_LEN],
    commitment: &'a [u8; COMMITMENT_LEN],
    ciphertext: &'a [u8],
    tag: &'a [u8; TAG_LEN],
}

impl<'a> SealedBody<'a> {
    /// `None` where it is too short to hold salt, commitment and tag.
    pub(super) fn split(body: &'a [u8]) -> Option<Self> {
        let (salt, rest) = body.split_first_chunk()?;
        let (commitment, rest) = rest.split_first_chunk()?;
        let (ciphertext, tag) = rest.split_last_chunk()?;
        Some(Self { salt, commitment, ciphertext, tag })
    }
}
