//! Key and value types: boxed bytes, wiped on drop; no `Clone`, no `Debug`, no `Serialize`, no `PartialEq`. They derive nothing and
//! are filled in place, so no copy is left on a stack. Reading key bytes takes [`Bytes32::bytes`], visible inside `crypto` only.

use zeroize::{Zeroize, Zeroizing};

use super::NoRandom;
use super::aead::fill_random;
use crate::model::Kid;

/// 32 secret bytes on the heap: moving the owner moves a pointer and copies no key.
pub(super) struct Bytes32(Box<[u8; 32]>);

impl Bytes32 {
    pub(super) fn filled(fill: impl FnOnce(&mut [u8; 32])) -> Self {
        let mut bytes = Self(Box::new([0; 32]));
        fill(&mut bytes.0);
        bytes
    }

    pub(super) fn random() -> Result<Self, NoRandom> {
        let mut bytes = Self(Box::new([0; 32]));
        fill_random(bytes.0.as_mut_slice())?;
        Ok(bytes)
    }

    pub(super) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl Drop for Bytes32 {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// The root of the hierarchy in this process: 32 random bytes.
pub struct MasterKey(pub(super) Bytes32);

impl MasterKey {
    /// # Errors
    /// [`NoRandom`].
    pub fn make_random() -> Result<Self, NoRandom> {
        Bytes32::random().map(Self)
    }
}

/// A master key's wrapping key; it wraps DEKs and nothing else, and is never stored.
pub struct Kek {
    pub(super) key: Bytes32,
    pub(super) kid: Kid,
    pub(super) raw_sha256: [u8; 32],
}

impl Kek {
    /// The public id of the master key that this KEK comes from.
    #[must_use]
    pub const fn kid(&self) -> Kid {
        self.kid
    }

    /// By which a copy of the master key itself is known.
    #[must_use]
    pub const fn raw_sha256(&self) -> [u8; 32] {
        self.raw_sha256
    }
}

/// A tenant's data key; it encrypts nothing itself.
pub struct Dek(pub(super) Bytes32);

/// A secret's value: any bytes.
///
/// Only crypto and the wire's edge read it ([`SecretValue::expose`]; the doors test holds that); every other room passes it on.
pub struct SecretValue(Zeroizing<Vec<u8>>);

impl SecretValue {
    #[must_use]
    pub const fn new(bytes: Zeroizing<Vec<u8>>) -> Self {
        Self(bytes)
    }

    /// A value of 32 random bytes: a key that is kept as a secret.
    ///
    /// # Errors
    /// [`NoRandom`].
    pub fn make_key() -> Result<Self, NoRandom> {
        let mut bytes = Zeroizing::new(vec![0; 32]);
        fill_random(&mut bytes)?;
        Ok(Self(bytes))
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes, for the wire's edge: http's secret routes, wire, client, cli.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}
