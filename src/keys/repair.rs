//! DEKs whose rows may be damaged, tried past the cache: with the keys that are loaded, and with those that only lie on disk.

use std::sync::Arc;

use super::keyfile::{KeyFile, Scan};
use super::{Keyring, Keys, KeysError};
use crate::crypto::{self, Dek, DekPlace, Kek, MasterKey};
use crate::model::{DekRecord, Kid};

impl Scan {
    /// Every master key that was found and is not wrapped.
    pub fn masters(&self) -> impl Iterator<Item = &MasterKey> {
        self.files().filter_map(KeyFile::master)
    }
}

impl Keyring {
    /// Whether a row's DEK opens with the master key that the row names, loaded or among the key files, and is the one that it names.
    /// A quarantined one is tried too.
    ///
    /// # Errors
    /// [`KeysError`] `Locked`; `NotLoaded` where the key is nowhere here; `Shredded`, `DoesNotOpen`, `WrongId`.
    pub fn opens(&self, row: &DekRecord, files: &Scan) -> Result<(), KeysError> {
        let wrapped = row.wrapping().ok_or(KeysError::Shredded)?;
        let keks = self.keks(files)?;
        let kek = keks.iter().find(|kek| kek.kid() == wrapped.kid).ok_or(KeysError::NotLoaded(wrapped.kid))?;
        unwrap(row, kek).map(drop)
    }

    /// The wrapping with which a damaged row is whole again: under `active`, of the very DEK that the row names, opened with whichever
    /// key opens it. It may be the one that is there.
    ///
    /// # Errors
    /// [`KeysError`] `Locked`; `Shredded`; `NotLoaded` where `active` is not here; of the key that came closest, `WrongId` or
    /// `DoesNotOpen`; `NoRandom`.
    pub fn mended(&self, row: &DekRecord, files: &Scan, active: Kid) -> Result<Vec<u8>, KeysError> {
        let wrapped = row.wrapping().ok_or(KeysError::Shredded)?;
        let keks = self.keks(files)?;
        let kek = keks.iter().find(|kek| kek.kid() == active).ok_or(KeysError::NotLoaded(active))?;
        let mut failed = KeysError::NotLoaded(wrapped.kid);
        for candidate in &keks {
            match unwrap(row, candidate) {
                // It opens as it is under the active key; should the row name another, the row alone is wrong.
                Ok(_) if candidate.kid() == active => return Ok(wrapped.bytes.clone()),
                Ok(dek) => return wrapped_again(row, kek, &dek),
                // The other keys say so of every DEK that is not theirs.
                Err(KeysError::DoesNotOpen(crypto::OpenError::WrongMaster)) => {}
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    /// The loaded keys, and those that only lie on disk: retired ones, which nothing has needed until now.
    fn keks(&self, files: &Scan) -> Result<Vec<Arc<Kek>>, KeysError> {
        match &**self.state.load() {
            Keys::Locked(reason) => Err(KeysError::Locked(reason.clone())),
            Keys::Open(ring) => {
                let loaded = ring.keks.values().map(Arc::clone);
                let on_disk = files.masters().map(crypto::derive_kek).filter(|kek| !ring.holds(kek.kid()));
                Ok(loaded.chain(on_disk.map(Arc::new)).collect())
            }
        }
    }
}

fn place(row: &DekRecord) -> DekPlace<'_> {
    DekPlace { tenant: &row.tenant, version: row.version }
}

fn unwrap(row: &DekRecord, kek: &Kek) -> Result<Dek, KeysError> {
    let wrapped = row.wrapping().ok_or(KeysError::Shredded)?;
    let dek = crypto::unwrap(kek, place(row), &wrapped.bytes)?;
    if crypto::dek_id(&dek) == row.id { Ok(dek) } else { Err(KeysError::WrongId) }
}

fn wrapped_again(row: &DekRecord, kek: &Kek, dek: &Dek) -> Result<Vec<u8>, KeysError> {
    let bytes = crypto::wrap(kek, place(row), dek)?;
    let back = crypto::unwrap(kek, place(row), &bytes)?;
    if crypto::dek_id(&back) == row.id { Ok(bytes) } else { Err(KeysError::WrongId) }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use super::*;
    use crate::crypto::OpenError;
    use crate::keys::keyfile::KeyFiles;
    use crate::keys::{CacheLimits, Ring};
    use crate::model::{DekBody, DekVersion, Tenant, WrappedDek};

    /// A keyring that has loaded `active`; `retired` lies on disk alone.
    struct Setting {
        keyring: Keyring,
        active: Kid,
        retired: Kid,
        files: Scan,
        _dir: tempfile::TempDir,
    }

    fn setting() -> Setting {
        let dir = tempfile::tempdir().unwrap();
        let files = KeyFiles::at(&dir.path().join("secrets.key")).unwrap();
        let masters = [MasterKey::make_random().unwrap(), MasterKey::make_random().unwrap()];
        let [active, retired] = [crypto::kid(&masters[0]), crypto::kid(&masters[1])];
        let lock = files.lock().unwrap();
        lock.stage(&masters[1]).unwrap();
        drop(lock);
        let keyring = Keyring::locked(String::new(), CacheLimits { max_entries: 9, max_age: Duration::from_secs(9) });
        keyring.open(Ring::new(active, &masters[..1]));
        Setting { keyring, active, retired, files: files.scan(), _dir: dir }
    }

    /// A DEK wrapped by the retired key.
    fn old_row(setting: &Setting) -> DekRecord {
        let both = Keyring::locked(String::new(), CacheLimits { max_entries: 0, max_age: Duration::from_secs(9) });
        both.open(Ring::new(setting.retired, setting.files.masters()));
        let tenant = Tenant::parse("alice").unwrap();
        let new = both.make_dek(&tenant, DekVersion::FIRST, setting.retired).unwrap();
        let body = DekBody::Quarantined(WrappedDek { kid: setting.retired, bytes: new.wrapped });
        DekRecord { tenant, version: DekVersion::FIRST, id: new.id, body }
    }

    fn with(row: &DekRecord, kid: Kid, bytes: Vec<u8>) -> DekRecord {
        DekRecord { body: DekBody::Quarantined(WrappedDek { kid, bytes }), ..row.clone() }
    }

    #[test]
    fn a_dek_under_a_key_that_only_lies_on_disk_opens_and_is_mended_under_the_active_one() {
        let setting = setting();
        let row = old_row(&setting);
        setting.keyring.opens(&row, &setting.files).unwrap();
        let mended = setting.keyring.mended(&row, &setting.files, setting.active).unwrap();
        let mended = with(&row, setting.active, mended);
        setting.keyring.opens(&mended, &setting.files).unwrap();
        let again = setting.keyring.mended(&mended, &setting.files, setting.active).unwrap();
        assert_eq!(again, mended.wrapping().unwrap().bytes, "what is whole stays as it is");
    }

    #[test]
    fn a_row_that_names_the_wrong_key_is_mended_by_the_one_that_opens_it() {
        let setting = setting();
        let row = old_row(&setting);
        let wrong = with(&row, setting.active, row.wrapping().unwrap().bytes.clone());
        let opens = setting.keyring.opens(&wrong, &setting.files);
        assert_eq!(opens, Err(KeysError::DoesNotOpen(OpenError::WrongMaster)));
        let mended = setting.keyring.mended(&wrong, &setting.files, setting.active).unwrap();
        setting.keyring.opens(&with(&row, setting.active, mended), &setting.files).unwrap();
    }

    #[test]
    fn neither_a_damaged_wrapping_nor_another_dek_is_mended() {
        let setting = setting();
        let row = old_row(&setting);
        let mut damaged = row.wrapping().unwrap().bytes.clone();
        damaged[100] ^= 1;
        let damaged = with(&row, setting.retired, damaged);
        let corrupted = KeysError::DoesNotOpen(OpenError::Corrupted);
        assert_eq!(setting.keyring.opens(&damaged, &setting.files), Err(corrupted.clone()));
        assert_eq!(setting.keyring.mended(&damaged, &setting.files, setting.active), Err(corrupted));
        let other = setting.keyring.make_dek(&row.tenant, row.version, setting.active).unwrap();
        let exchanged = with(&row, setting.active, other.wrapped);
        assert_eq!(setting.keyring.opens(&exchanged, &setting.files), Err(KeysError::WrongId));
        assert_eq!(setting.keyring.mended(&exchanged, &setting.files, setting.active), Err(KeysError::WrongId));
    }

    #[test]
    fn a_key_that_is_nowhere_is_said_to_be_missing() {
        let mut setting = setting();
        let row = old_row(&setting);
        setting.files.retained.retain(|file: &KeyFile| file.path == PathBuf::new());
        let missing = KeysError::NotLoaded(setting.retired);
        assert_eq!(setting.keyring.opens(&row, &setting.files), Err(missing.clone()));
        assert_eq!(setting.keyring.mended(&row, &setting.files, setting.active), Err(missing));
    }
}
