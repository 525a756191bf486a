//! The keys that an issuer's tokens are verified with.

use std::collections::{BTreeSet, HashMap};

use data_encoding::BASE64URL_NOPAD;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;

use crate::model::PublicAlgorithm;

/// An issuer that rolls its keys over has two or three.
const MOST_KEYS: usize = 100;
const MOST_OF_KID: usize = 255;
/// RFC 7518, section 3.2: a key of HS256 is at least as long as the hash.
const SHORTEST_SECRET: usize = 32;

/// Why bytes are no keys. No message holds one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeysError {
    #[error("is no JWK set (RFC 7517): JSON with a list `keys`")]
    NoSet,
    #[error("has more than {MOST_KEYS} keys")]
    TooMany,
    #[error("has two keys with the same kid for the same algorithm")]
    Twice,
    #[error("has no key with a kid for an algorithm that the settings name")]
    NoKey,
    #[error("holds a secret of less than {SHORTEST_SECRET} bytes")]
    Short,
}

/// What tokens are verified with.
pub(super) enum Keys {
    Public(HashMap<(PublicAlgorithm, Box<str>), DecodingKey>),
    /// HS256.
    Secret(DecodingKey),
}

impl Keys {
    /// The keys of a set that can be used: others are passed over, as a reader must (RFC 7517, section 5).
    ///
    /// # Errors
    /// [`KeysError`], all but `Short`.
    pub(super) fn of_set(bytes: &[u8], algorithms: &BTreeSet<PublicAlgorithm>) -> Result<Self, KeysError> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<serde_json::Value>,
        }
        let set: Set = serde_json::from_slice(bytes).map_err(|_| KeysError::NoSet)?;
        if set.keys.len() > MOST_KEYS {
            return Err(KeysError::TooMany);
        }
        let mut keys = HashMap::new();
        for jwk in set.keys {
            let Some((algorithm, kid, key)) = usable(jwk) else { continue };
            if algorithms.contains(&algorithm) && keys.insert((algorithm, kid), key).is_some() {
                return Err(KeysError::Twice);
            }
        }
        if keys.is_empty() { Err(KeysError::NoKey) } else { Ok(Self::Public(keys)) }
    }

    /// A secret, without the one line end that an editor may have put after it.
    ///
    /// # Errors
    /// [`KeysError::Short`].
    pub(super) fn of_secret(bytes: &[u8]) -> Result<Self, KeysError> {
        let secret = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        let secret = secret.strip_suffix(b"\r").unwrap_or(secret);
        if secret.len() < SHORTEST_SECRET {
            return Err(KeysError::Short);
        }
        Ok(Self::Secret(DecodingKey::from_secret(secret)))
    }

    /// The one secret needs no name.
    pub(super) fn find(&self, algorithm: Option<PublicAlgorithm>, kid: &str) -> Option<DecodingKey> {
        match (self, algorithm) {
            (Self::Public(keys), Some(algorithm)) => keys.get(&(algorithm, kid.into())).cloned(),
            (Self::Secret(key), None) => Some(key.clone()),
            _ => None,
        }
    }

    pub(super) fn count(&self) -> usize {
        match self {
            Self::Public(keys) => keys.len(),
            Self::Secret(_) => 1,
        }
    }
}

/// As a token's header names them. `None` for one that no issuer of public keys is ever asked for.
pub(super) const fn public(algorithm: Algorithm) -> Option<PublicAlgorithm> {
    match algorithm {
        Algorithm::EdDSA => Some(PublicAlgorithm::EdDsa),
        Algorithm::ES256 => Some(PublicAlgorithm::Es256),
        Algorithm::RS256 => Some(PublicAlgorithm::Rs256),
        _ => None,
    }
}

/// A key for signatures, with a name, and of the one algorithm that its kind stands for here.
fn usable(jwk: serde_json::Value) -> Option<(PublicAlgorithm, Box<str>, DecodingKey)> {
    let jwk: Jwk = serde_json::from_value(jwk).ok()?;
    let kid = jwk.common.key_id.as_deref().filter(|kid| (1..=MOST_OF_KID).contains(&kid.len()))?;
    let is_for_signatures = jwk.common.public_key_use.as_ref().is_none_or(|of| *of == PublicKeyUse::Signature)
        && jwk.common.key_operations.as_ref().is_none_or(|all| all.contains(&KeyOperations::Verify));
    let length = |text: &str| BASE64URL_NOPAD.decode(text.as_bytes()).ok().map(|bytes| bytes.len());
    let (algorithm, named) = match &jwk.algorithm {
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 && length(&key.x) == Some(32) => {
            (PublicAlgorithm::EdDsa, KeyAlgorithm::EdDSA)
        }
        AlgorithmParameters::EllipticCurve(key)
            if key.curve == EllipticCurve::P256 && length(&key.x) == Some(32) && length(&key.y) == Some(32) =>
        {
            (PublicAlgorithm::Es256, KeyAlgorithm::ES256)
        }
        // Fewer than 2048 bits, and more than 8192, the library refuses when it verifies.
        AlgorithmParameters::RSA(key) if length(&key.n).is_some_and(|length| (256..=1024).contains(&length)) => {
            (PublicAlgorithm::Rs256, KeyAlgorithm::RS256)
        }
        _ => return None,
    };
    let is_of_its_kind = jwk.common.key_algorithm.is_none_or(|stated| stated == named);
    if !is_for_signatures || !is_of_its_kind {
        return None;
    }
    let key = DecodingKey::from_jwk(&jwk).ok()?;
    Some((algorithm, kid.into(), key))
}
