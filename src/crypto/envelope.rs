//! The written formats: wrapped DEK and sealed secret, to the byte (docs/envelope-format.md).

use super::aead::{self, COMMITMENT_LEN, Refusal, SALT_LEN, SealedBody, TAG_LEN};
use super::secret::{Bytes32, Dek, Kek, MasterKey, SecretValue};
use super::{DekPlace, KeyfileImage, NoRandom, SecretPlace};
use crate::model::{DekId, DekVersion, Kid, SecretVersion};

/// The prefix of every label: the product and its format's version.
const LABEL_PREFIX: &[u8] = b"containarium/v2/";
/// Format 2, suite 1 (HKDF-SHA-256, AES-256-GCM with commitment), then the type and a reserved byte.
const TYPE_WRAPPED: [u8; 4] = [0x02, 0x01, b'W', 0x00];
const TYPE_SECRET: [u8; 4] = [0x02, 0x01, b'S', 0x00];
const WRAP_HEADER_LEN: usize = 4 + 16;
const SECRET_HEADER_LEN: usize = 4 + 4 + 8;

/// A wrapped DEK's exact length: header 20, salt 32, commitment 32, key 32, tag 16.
pub const WRAPPED_LEN: usize = WRAP_HEADER_LEN + SALT_LEN + COMMITMENT_LEN + 32 + TAG_LEN;
/// What a sealed secret has more than its value: header 16, salt 32, commitment 32, tag 16.
pub const SECRET_OVERHEAD: usize = SECRET_HEADER_LEN + SALT_LEN + COMMITMENT_LEN + TAG_LEN;

/// Why a blob was refused. Four reasons inside, so that an operator can be told what is wrong; callers of the API get one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Wrong length, version, suite, type or reserved byte, or a header that is not the row's.
    #[error("malformed: not a blob of this format for this row")]
    Malformed,
    /// The wrapped DEK names another master key.
    #[error("wrapped by another master key")]
    WrongMaster,
    /// Wrong key, or the blob was moved to another tenant, name or version.
    #[error("not committed to this key and place")]
    NotCommitted,
    /// The authentication tag does not match.
    #[error("corrupted")]
    Corrupted,
}

impl From<Refusal> for OpenError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotCommitted => Self::NotCommitted,
            Refusal::Corrupted => Self::Corrupted,
        }
    }
}

/// Bytes that are authenticated and not secret, built of length-prefixed parts so that no two contexts can be read alike.
struct Info(Vec<u8>);

impl Info {
    /// `label(s)` = LP(prefix ‖ s).
    fn label(name: &[u8]) -> Self {
        let mut info = Self(Vec::with_capacity(160));
        info.length(LABEL_PREFIX.len() + name.len());
        info.raw(LABEL_PREFIX).raw(name);
        info
    }

    fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// LP(x) = u32 big-endian length ‖ x.
    fn prefixed(&mut self, bytes: &[u8]) -> &mut Self {
        self.length(bytes.len());
        self.raw(bytes)
    }

    fn length(&mut self, length: usize) {
        // Labels and names have at most 128 bytes.
        self.raw(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    }
}

/// label("master") ‖ kid.
pub(super) fn master_aad(kid: Kid) -> Vec<u8> {
    let mut info = Info::label(b"master");
    info.raw(kid.as_bytes());
    info.0
}

pub(super) fn kid(master: &MasterKey) -> Kid {
    let mut id = [0; 16];
    aead::hkdf(master.0.bytes(), None, &Info::label(b"master/kid").0, &mut id);
    Kid::new(id)
}

pub(super) fn derive_kek(master: &MasterKey) -> Kek {
    let info = Info::label(b"master/kek");
    let key = Bytes32::filled(|out| aead::hkdf(master.0.bytes(), None, &info.0, out));
    Kek { key, kid: kid(master), raw_sha256: KeyfileImage::of(master).sha256() }
}

pub(super) fn make_dek(place: DekPlace<'_>) -> Result<Dek, NoRandom> {
    Ok(derive_dek(&Bytes32::random()?, place))
}

/// Tenant and version go into the derivation, so that even repeated entropy gives two tenants two keys.
pub(super) fn derive_dek(entropy: &Bytes32, place: DekPlace<'_>) -> Dek {
    let mut info = Info::label(b"dek");
    info.prefixed(place.tenant.as_str().as_bytes()).raw(&place.version.get().to_be_bytes());
    Dek(Bytes32::filled(|out| aead::hkdf(entropy.bytes(), None, &info.0, out)))
}

pub(super) fn dek_id(dek: &Dek) -> DekId {
    let mut id = [0; 16];
    aead::hkdf(dek.0.bytes(), None, &Info::label(b"dek/id").0, &mut id);
    DekId::new(id)
}

pub(super) fn wrap(kek: &Kek, place: DekPlace<'_>, dek: &Dek, salt: &[u8; SALT_LEN]) -> Vec<u8> {
    let header = wrap_header(kek.kid);
    aead::seal(kek.key.bytes(), &header, salt, &wrap_info(&header, place).0, dek.0.bytes())
}

pub(super) fn unwrap(kek: &Kek, place: DekPlace<'_>, wrapped: &[u8]) -> Result<Dek, OpenError> {
    let (header, body) = wrapped.split_first_chunk::<WRAP_HEADER_LEN>().ok_or(OpenError::Malformed)?;
    if wrapped.len() != WRAPPED_LEN || !header.starts_with(&TYPE_WRAPPED) {
        return Err(OpenError::Malformed);
    }
    if *header != wrap_header(kek.kid) {
        return Err(OpenError::WrongMaster);
    }
    let body = SealedBody::split(body).ok_or(OpenError::Malformed)?;
    let text = aead::open(kek.key.bytes(), &wrap_info(header, place).0, body)?;
    let bytes: &[u8; 32] = text.as_slice().try_into().map_err(|_| OpenError::Malformed)?;
    Ok(Dek(Bytes32::filled(|out| out.copy_from_slice(bytes))))
}

pub(super) fn seal(dek: &Dek, place: SecretPlace<'_>, value: &SecretValue, salt: &[u8; SALT_LEN]) -> Vec<u8> {
    let header = secret_header(place.dek_version, place.version);
    aead::seal(dek.0.bytes(), &header, salt, &secret_info(&header, place).0, value.bytes())
}

pub(super) fn open(dek: &Dek, place: SecretPlace<'_>, sealed: &[u8]) -> Result<SecretValue, OpenError> {
    let (header, body) = sealed.split_first_chunk::<SECRET_HEADER_LEN>().ok_or(OpenError::Malformed)?;
    if *header != secret_header(place.dek_version, place.version) {
        return Err(OpenError::Malformed);
    }
    let body = SealedBody::split(body).ok_or(OpenError::Malformed)?;
    Ok(SecretValue::new(aead::open(dek.0.bytes(), &secret_info(header, place).0, body)?))
}

fn wrap_header(kid: Kid) -> [u8; WRAP_HEADER_LEN] {
    let mut header = [0; WRAP_HEADER_LEN];
    header[..4].copy_from_slice(&TYPE_WRAPPED);
    header[4..].copy_from_slice(kid.as_bytes());
    header
}

fn secret_header(dek_version: DekVersion, version: SecretVersion) -> [u8; SECRET_HEADER_LEN] {
    let mut header = [0; SECRET_HEADER_LEN];
    header[..4].copy_from_slice(&TYPE_SECRET);
    header[4..8].copy_from_slice(&dek_version.get().to_be_bytes());
    header[8..].copy_from_slice(&version.get().to_be_bytes());
    header
}

fn wrap_info(header: &[u8; WRAP_HEADER_LEN], place: DekPlace<'_>) -> Info {
    let mut info = Info::label(b"wrap");
    info.raw(header).prefixed(place.tenant.as_str().as_bytes()).raw(&place.version.get().to_be_bytes());
    info
}

fn secret_info(header: &[u8; SECRET_HEADER_LEN], place: SecretPlace<'_>) -> Info {
    let mut info = Info::label(b"secret");
    info.raw(header).prefixed(place.tenant.as_str().as_bytes()).prefixed(place.name.as_str().as_bytes());
    info
}
