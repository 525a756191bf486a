//! A key file exchanged for another form of the same key: raw for wrapped, and back. At every moment one of the two is there, whole.

use std::ffi::OsStr;
use std::path::PathBuf;

use super::error::KeyfileError;
use super::load::{Loaded, load};
use super::place::Place;
use super::write::Temporary;
use super::{KeyFiles, KeyLock, is_temporary, temporary_of};
use crate::crypto::KeyfileImage;
use crate::model::Kid;

/// A good key file as it was read.
pub struct FoundImage {
    pub path: PathBuf,
    pub kid: Kid,
    pub image: KeyfileImage,
}

impl KeyFiles {
    /// Every key file's bytes, those of `secrets.key.d` first and the key file's own last: so that whatever is done to each in turn is
    /// complete when it has come to the one in use.
    ///
    /// # Errors
    /// What is wrong with any of them: nothing may be done to some of them only.
    pub fn images(&self) -> Result<Vec<FoundImage>, KeyfileError> {
        let Some(dir) = Place::open(&self.dir)? else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        if let Some(place) = dir.child(&self.names.retained)? {
            for name in place.names()?.iter().filter(|name| !is_temporary(name)) {
                found.extend(load(&place, name)?);
            }
        }
        found.extend(load(&dir, &self.names.main)?);
        let image = |Loaded { key, image }: Loaded| FoundImage { path: key.path, kid: key.kid, image };
        Ok(found.into_iter().map(image).collect())
    }
}

impl KeyLock {
    /// Puts another form of the same key in a file's place, durable when this returns. A retained file that was removed meanwhile stays so.
    ///
    /// # Errors
    /// [`KeyfileError::MainChanged`] where the file is not what was read any more; [`KeyfileError::ReadBack`] too where `after` is not of
    /// the same key; those of the file system. The file is then as it was.
    pub fn exchange(&self, before: &FoundImage, after: &KeyfileImage) -> Result<(), KeyfileError> {
        let name = before.path.file_name().unwrap_or(OsStr::new(""));
        let is_main = before.path == self.dir.of(&self.names.main);
        let retained = if is_main { None } else { self.dir.child(&self.names.retained)? };
        let place = retained.as_ref().unwrap_or(&self.dir);
        // Aborted and destroyed keys' files are removed by the daemon.
        if !is_main && load(place, name)?.is_none() {
            return Ok(());
        }
        check_is_still(place, name, before)?;
        if !matches!(after.content(), Ok(content) if content.kid() == before.kid) {
            return Err(KeyfileError::ReadBack { path: before.path.clone() });
        }
        let temporary = if is_main { self.names.temporary.clone() } else { temporary_of(before.kid) };
        let temporary = Temporary::write(place, temporary, after)?;
        // Only somebody who ignores the lock can have changed it since.
        check_is_still(place, name, before)?;
        temporary.rename_over(name)?;
        place.sync()
    }
}

fn check_is_still(place: &Place, name: &OsStr, before: &FoundImage) -> Result<(), KeyfileError> {
    match load(place, name)? {
        Some(now) if now.image.same_as(&before.image) => Ok(()),
        now => Err(KeyfileError::MainChanged { path: before.path.clone(), found: now.map(|now| now.key.kid) }),
    }
}
