//! Stand-ins for crypto: the store knows none, so bytes that a test can recognise do.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, Ordering};

use containarium::model::{DekId, DekVersion, Kid, SecretVersion, Tenant};
use containarium::store::{DekMaker, FirstKey, FirstKeyMaker, NewDek, SealRefusal, Sealer, Sealing, Slot};

use super::steps;

/// What a sealed value has before the value: the length of the real envelope.
pub(crate) const OVERHEAD: usize = 96;

/// A "sealed" value: its place in clear, padded, then the value.
pub(crate) fn sealed(slot: &Slot<'_>, value: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{}/{}/{} dek {}", slot.tenant, slot.name, slot.version, slot.dek.version).into_bytes();
    bytes.resize(OVERHEAD, b'.');
    bytes.extend_from_slice(value);
    bytes
}

/// The value in a ciphertext that [`sealed`] made.
pub(crate) fn value_of(ciphertext: &[u8]) -> &[u8] {
    &ciphertext[OVERHEAD..]
}

/// What a sealer was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) index: usize,
    pub(crate) version: SecretVersion,
    pub(crate) dek: DekVersion,
    /// The current version, its value and its DEK.
    pub(crate) current: Option<(SecretVersion, Vec<u8>, Option<DekId>)>,
    pub(crate) source: Option<SecretVersion>,
}

/// Seals a value for each index; a copy's value is its source's. Equal to the current one: unchanged.
pub(crate) struct Values {
    by_index: Vec<Vec<u8>>,
    refused: Option<(usize, SealRefusal)>,
    seen: Mutex<Vec<Seen>>,
}

impl Values {
    pub(crate) fn of(values: &[&str]) -> Self {
        let values = values.iter().map(|value| value.as_bytes().to_vec()).collect();
        Self { by_index: values, refused: None, seen: Mutex::default() }
    }

    /// Refuses the intent of this index.
    pub(crate) fn refusing(mut self, index: usize, refusal: SealRefusal) -> Self {
        self.refused = Some((index, refusal));
        self
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

impl Sealer for Values {
    fn seal(&self, index: usize, slot: &Slot<'_>) -> Result<Sealing, SealRefusal> {
        self.seen.lock().unwrap().push(Seen {
            index,
            version: slot.version,
            dek: slot.dek.version,
            current: slot
                .current
                .map(|row| (row.version, value_of(row.ciphertext).to_vec(), row.dek.map(|dek| dek.id))),
            source: slot.source.map(|row| row.version),
        });
        if let Some((refused, refusal)) = &self.refused
            && *refused == index
        {
            return Err(refusal.clone());
        }
        if let Some(source) = slot.source {
            return Ok(Sealing::Sealed(sealed(slot, value_of(source.ciphertext))));
        }
        let value = &self.by_index[index];
        if slot.current.is_some_and(|current| value_of(current.ciphertext) == value) {
            return Ok(Sealing::Unchanged);
        }
        Ok(Sealing::Sealed(sealed(slot, value)))
    }
}

/// A sealer that breaks its word.
pub(crate) struct AlwaysUnchanged;

impl Sealer for AlwaysUnchanged {
    fn seal(&self, _index: usize, _slot: &Slot<'_>) -> Result<Sealing, SealRefusal> {
        Ok(Sealing::Unchanged)
    }
}

/// Makes DEKs, each unlike the others, and counts them.
#[derive(Default)]
pub(crate) struct Deks {
    refused: Option<SealRefusal>,
    made: AtomicU8,
    asked: Mutex<Vec<(Tenant, DekVersion, Kid)>>,
}

impl Deks {
    pub(crate) fn refusing(refusal: SealRefusal) -> Self {
        Self { refused: Some(refusal), ..Self::default() }
    }

    pub(crate) fn asked(&self) -> Vec<(Tenant, DekVersion, Kid)> {
        self.asked.lock().unwrap().clone()
    }
}

impl DekMaker for Deks {
    fn make(&self, tenant: &Tenant, version: DekVersion, active: Kid) -> Result<NewDek, SealRefusal> {
        self.asked.lock().unwrap().push((tenant.clone(), version, active));
        if let Some(refusal) = &self.refused {
            return Err(refusal.clone());
        }
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let mut id = [number; 16];
        for (byte, letter) in id.iter_mut().zip(tenant.as_str().bytes().chain([u8::try_from(version.get()).unwrap()])) {
            *byte ^= letter;
        }
        Ok(NewDek { id: DekId::new(id), wrapped: vec![number; 132] })
    }
}

/// Makes a database's first key.
pub(crate) struct Key {
    pub(crate) kid: Kid,
    pub(crate) calls: usize,
    failure: Option<String>,
}

impl Key {
    pub(crate) fn numbered(number: u8) -> Self {
        Self { kid: Kid::new([number; 16]), calls: 0, failure: None }
    }

    pub(crate) fn failing(message: &str) -> Self {
        Self { failure: Some(message.to_owned()), ..Self::numbered(1) }
    }
}

impl FirstKeyMaker for Key {
    fn make(&mut self) -> Result<FirstKey, String> {
        self.calls += 1;
        if let Some(message) = &self.failure {
            return Err(message.clone());
        }
        Ok(FirstKey {
            kid: self.kid,
            db_id: [0xDB; 16],
            system_dek: NewDek { id: DekId::new([0x5D; 16]), wrapped: vec![0x5D; 132] },
            system_secrets: vec![
                (steps::name("TOKEN_MAC"), vec![b't'; OVERHEAD + 32]),
                (steps::name("AUDIT_CHAIN"), vec![b'a'; OVERHEAD + 32]),
            ],
        })
    }
}
