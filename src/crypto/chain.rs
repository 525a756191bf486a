//! Authentication of audit records: a MAC for each record, and a link that ties each record to all before it.
//!
//! Both are HMAC-SHA-256 (RFC 2104) under a chain key. A link is over 64 bytes of MACs, a record begins with `{` and is text: no record
//! can be chosen so that its MAC is a link. HMAC and not signatures: whoever may verify could also forge, but that is the administrator
//! with the master key alone, against whom no key on the same host helps (docs/AUDIT.md).

use hmac::{Hmac, KeyInit, Mac as _};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::SecretValue;
use crate::model::SecretVersion;

/// One version of the key that authenticates audit records.
pub struct ChainKey {
    version: SecretVersion,
    /// The state after the key was taken in, so that a record costs two compressions less; wiped on drop.
    keyed: Hmac<Sha256>,
}

/// What authenticates one record, or a record and all before it. Public.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 32]);

impl Mac {
    /// What the first record of all is linked to.
    pub const NONE: Self = Self([0; 32]);

    /// `None` unless there are exactly 64 lower-case hex digits.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        data_encoding::HEXLOWER.decode(text.as_bytes()).ok()?.try_into().ok().map(Self)
    }
}

impl std::fmt::Display for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl ChainKey {
    /// The key that a version of the system's secret is; `None` unless it has 32 bytes.
    #[must_use]
    pub fn of(version: SecretVersion, value: &SecretValue) -> Option<Self> {
        let bytes: &[u8; 32] = value.bytes().try_into().ok()?;
        Some(Self { version, keyed: Hmac::new_from_slice(bytes).ok()? })
    }

    /// Which version it is.
    #[must_use]
    pub const fn version(&self) -> SecretVersion {
        self.version
    }

    /// The MAC of a record's bytes, as they are written without it.
    #[must_use]
    pub fn mac(&self, record: &[u8]) -> Mac {
        self.hmac(&[record])
    }

    /// The link of a record with this MAC to the one before it.
    #[must_use]
    pub fn link(&self, previous: Mac, mac: Mac) -> Mac {
        self.hmac(&[&previous.0, &mac.0])
    }

    /// Whether this is the record's MAC, in constant time.
    #[must_use]
    pub fn verifies(&self, record: &[u8], mac: Mac) -> bool {
        self.mac(record).0.ct_eq(&mac.0).into()
    }

    /// Whether this is the link of a record to the one before it, in constant time.
    #[must_use]
    pub fn links(&self, previous: Mac, mac: Mac, link: Mac) -> bool {
        self.link(previous, mac).0.ct_eq(&link.0).into()
    }

    fn hmac(&self, parts: &[&[u8]]) -> Mac {
        let mut hmac = self.keyed.clone();
        for part in parts {
            hmac.update(part);
        }
        Mac(hmac.finalize().into_bytes().into())
    }
}

/// The SHA-256 of a sealed version, as the record of its write names it. Public.
#[must_use]
pub fn blob_sha256(ciphertext: &[u8]) -> [u8; 32] {
    Sha256::digest(ciphertext).into()
}
