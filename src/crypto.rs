//! The envelope: the only room that sees key bytes.
//!
//! The hierarchy, from the top (docs/envelope-format.md has the bytes):
//!
//! - [`MasterKey`], 32 random bytes, gives a public [`Kid`] and a [`Kek`]; the KEK wraps DEKs and nothing else;
//! - [`Dek`], one per tenant and DEK version, made from fresh entropy and never from the master; it encrypts nothing itself;
//! - a key for each sealed value, derived from the DEK and a fresh salt, used once.
//!
//! `make_` and `wrap`/`seal` draw random bytes from the operating system; everything else is deterministic. No call takes a nonce
//! or a salt: a pair of key and nonce used twice would break AES-GCM (NIST SP 800-38D, section 8).

mod aead;
mod chain;
mod envelope;
mod image;
mod secret;
#[cfg(test)]
mod tests;
mod token;

use crate::model::{DekId, DekVersion, Kid, SecretName, SecretVersion, Tenant};

pub use chain::{ChainKey, Mac, blob_sha256};
pub use envelope::{OpenError, SECRET_OVERHEAD, WRAPPED_LEN};
pub use image::{Content, ImageError, KeyfileImage};
pub use secret::{Dek, Kek, MasterKey, SecretValue};
pub use token::{TokenMacKey, hash_credential, make_token, same_hash};

/// The operating system gave no random bytes. Nothing was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the operating system gave no random bytes")]
pub struct NoRandom;

/// Where a DEK belongs; sealed into its wrapping.
#[derive(Debug, Clone, Copy)]
pub struct DekPlace<'a> {
    pub tenant: &'a Tenant,
    pub version: DekVersion,
}

/// Where a secret's version belongs; sealed into its ciphertext.
#[derive(Debug, Clone, Copy)]
pub struct SecretPlace<'a> {
    pub tenant: &'a Tenant,
    pub name: &'a SecretName,
    pub dek_version: DekVersion,
    pub version: SecretVersion,
}

/// The public id of a master key.
#[must_use]
pub fn kid(master: &MasterKey) -> Kid {
    envelope::kid(master)
}

/// What is sealed with a master key where something else wraps it, so that one ciphertext cannot stand in for another.
#[must_use]
pub fn master_aad(kid: Kid) -> Vec<u8> {
    envelope::master_aad(kid)
}

/// The wrapping key of a master key.
#[must_use]
pub fn derive_kek(master: &MasterKey) -> Kek {
    envelope::derive_kek(master)
}

/// A new DEK from 32 fresh random bytes.
///
/// # Errors
/// [`NoRandom`].
pub fn make_dek(place: DekPlace<'_>) -> Result<Dek, NoRandom> {
    envelope::make_dek(place)
}

/// The public id of a DEK; a rewrap must not change it.
#[must_use]
pub fn dek_id(dek: &Dek) -> DekId {
    envelope::dek_id(dek)
}

/// Wraps a DEK: exactly [`WRAPPED_LEN`] bytes.
///
/// # Errors
/// [`NoRandom`].
pub fn wrap(kek: &Kek, place: DekPlace<'_>, dek: &Dek) -> Result<Vec<u8>, NoRandom> {
    Ok(envelope::wrap(kek, place, dek, &aead::make_salt()?))
}

/// Unwraps a DEK.
///
/// # Errors
/// Each [`OpenError`]: the blob's shape, its kid, its commitment, its tag, in this order.
pub fn unwrap(kek: &Kek, place: DekPlace<'_>, wrapped: &[u8]) -> Result<Dek, OpenError> {
    envelope::unwrap(kek, place, wrapped)
}

/// Seals a value: [`SECRET_OVERHEAD`] bytes more than the value has.
///
/// # Errors
/// [`NoRandom`].
pub fn seal(dek: &Dek, place: SecretPlace<'_>, value: &SecretValue) -> Result<Vec<u8>, NoRandom> {
    Ok(envelope::seal(dek, place, value, &aead::make_salt()?))
}

/// Opens a sealed value.
///
/// # Errors
/// [`OpenError`] `Malformed`, `NotCommitted` or `Corrupted`, in this order.
pub fn open(dek: &Dek, place: SecretPlace<'_>, sealed: &[u8]) -> Result<SecretValue, OpenError> {
    envelope::open(dek, place, sealed)
}

/// Whether two values are the same bytes, in time that depends on their lengths only.
#[must_use]
pub fn same_value(a: &SecretValue, b: &SecretValue) -> bool {
    use subtle::ConstantTimeEq;
    a.bytes().ct_eq(b.bytes()).into()
}

/// Whether two DEKs are the same key, in constant time.
#[must_use]
pub fn same_dek(a: &Dek, b: &Dek) -> bool {
    use subtle::ConstantTimeEq;
    a.0.bytes().ct_eq(b.0.bytes()).into()
}

/// 16 random bytes, for a public identifier.
///
/// # Errors
/// [`NoRandom`].
pub fn random_id_bytes() -> Result<[u8; 16], NoRandom> {
    let mut id = [0; 16];
    aead::fill_random(&mut id)?;
    Ok(id)
}

/// A public identifier for a request, a boot or a row: 32 hex digits.
///
/// # Errors
/// [`NoRandom`].
pub fn random_id() -> Result<String, NoRandom> {
    Ok(data_encoding::HEXLOWER.encode(&random_id_bytes()?))
}
