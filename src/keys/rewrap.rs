//! DEKs past the cache, by the thousand: opened to see that they open, and wrapped anew.

use super::{Keyring, Keys, KeysError, Ring};
use crate::crypto::{self, Dek, DekPlace};
use crate::model::{DekRecord, Kid};

impl Keyring {
    /// Whether a DEK opens and is the one that its row names. Past the cache: the cache would hide what is wrong with a row.
    ///
    /// # Errors
    /// [`KeysError`] `Locked`, `Shredded` for a row without a wrapping, `NotLoaded`, `DoesNotOpen`, `WrongId`. A quarantined one is
    /// tried too.
    pub fn check(&self, row: &DekRecord) -> Result<(), KeysError> {
        self.with_ring(|ring| ring.unwrap(row).map(drop))
    }

    /// Wraps a row's DEK by another master key: unwrapped, known by its id, wrapped, unwrapped again and compared.
    ///
    /// # Errors
    /// As [`Self::check`]; `NotLoaded` for either key; [`KeysError::WrongId`] too where what was wrapped opens to something else, which
    /// would be a fault of this program or of its memory; [`KeysError::NoRandom`].
    pub fn rewrap(&self, row: &DekRecord, to: Kid) -> Result<Vec<u8>, KeysError> {
        self.with_ring(|ring| {
            let (dek, kek) = (ring.unwrap(row)?, ring.kek(to)?);
            let place = DekPlace { tenant: &row.tenant, version: row.version };
            let wrapped = crypto::wrap(kek, place, &dek)?;
            // The same key has the same id, and costs no further derivation.
            if crypto::same_dek(&crypto::unwrap(kek, place, &wrapped)?, &dek) {
                Ok(wrapped)
            } else {
                Err(KeysError::WrongId)
            }
        })
    }

    fn with_ring<T>(&self, work: impl FnOnce(&Ring) -> Result<T, KeysError>) -> Result<T, KeysError> {
        match &**self.state.load() {
            Keys::Locked(reason) => Err(KeysError::Locked(reason.clone())),
            Keys::Open(ring) => work(ring),
        }
    }
}

impl Ring {
    fn unwrap(&self, row: &DekRecord) -> Result<Dek, KeysError> {
        let wrapped = row.wrapping().ok_or(KeysError::Shredded)?;
        let place = DekPlace { tenant: &row.tenant, version: row.version };
        let dek = crypto::unwrap(self.kek(wrapped.kid)?, place, &wrapped.bytes)?;
        if crypto::dek_id(&dek) == row.id { Ok(dek) } else { Err(KeysError::WrongId) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::crypto::{MasterKey, OpenError};
    use crate::keys::CacheLimits;
    use crate::model::{DekBody, DekVersion, Tenant, WrappedDek};

    struct TwoKeys {
        keyring: Keyring,
        old: Kid,
        new: Kid,
        row: DekRecord,
    }

    fn two_keys() -> TwoKeys {
        let masters = [MasterKey::make_random().unwrap(), MasterKey::make_random().unwrap()];
        let [old, new] = [&masters[0], &masters[1]].map(crypto::kid);
        let limits = CacheLimits { max_entries: 0, max_age: Duration::from_secs(1) };
        let keyring = Keyring::locked(String::new(), limits);
        keyring.open(Ring::new(new, &masters));
        let tenant = Tenant::parse("alice").unwrap();
        let made = keyring.make_dek(&tenant, DekVersion::FIRST, old).unwrap();
        let body = DekBody::Active(WrappedDek { kid: old, bytes: made.wrapped });
        TwoKeys { keyring, old, new, row: DekRecord { tenant, version: DekVersion::FIRST, id: made.id, body } }
    }

    fn with(row: &DekRecord, kid: Kid, bytes: Vec<u8>) -> DekRecord {
        DekRecord { body: DekBody::Active(WrappedDek { kid, bytes }), ..row.clone() }
    }

    #[test]
    fn a_rewrapped_dek_is_the_same_dek_under_the_other_key() {
        let TwoKeys { keyring, old, new, row } = two_keys();
        let wrapped = keyring.rewrap(&row, new).unwrap();
        keyring.check(&with(&row, new, wrapped.clone())).unwrap();
        let by_old = keyring.check(&with(&row, old, wrapped));
        assert_eq!(by_old, Err(KeysError::DoesNotOpen(OpenError::WrongMaster)));
    }

    #[test]
    fn a_dek_that_is_not_what_its_row_says_is_not_wrapped_anew() {
        let TwoKeys { keyring, old, new, row } = two_keys();
        let mut damaged = row.wrapping().unwrap().bytes.clone();
        damaged[100] ^= 1;
        let damaged = keyring.rewrap(&with(&row, old, damaged), new);
        assert_eq!(damaged.err(), Some(KeysError::DoesNotOpen(OpenError::Corrupted)));
        let exchanged = keyring.make_dek(&row.tenant, row.version, old).unwrap().wrapped;
        assert_eq!(keyring.rewrap(&with(&row, old, exchanged), new).err(), Some(KeysError::WrongId));
        let shredded = DekRecord { body: DekBody::Shredded, ..row.clone() };
        assert_eq!(keyring.rewrap(&shredded, new).err(), Some(KeysError::Shredded));
        let elsewhere = Kid::new([9; 16]);
        assert_eq!(keyring.rewrap(&row, elsewhere).err(), Some(KeysError::NotLoaded(elsewhere)));
    }
}
