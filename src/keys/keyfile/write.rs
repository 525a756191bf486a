//! Writing key files, under the lock. Every step can be the last before a crash: what is there then is either the old state or the
//! new one, and the same call again completes it.
//!
//! A file comes to be in one order: temporary name, write, fsync, read back, rename, fsync of the directory. Links are never used
//! (`link` and `unlink` leave a moment with two names, which the loader refuses), and a rename from `secrets.key.d` would leave one
//! in which the new key has no copy there.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::PathBuf;

use rustix::fs::{self, Mode, OFlags};
use rustix::io::Errno;

use super::error::KeyfileError;
use super::load::{Loaded, load};
use super::place::Place;
use super::{KeyLock, temporary_of};
use crate::crypto::{self, Content, KeyfileImage, MasterKey};
use crate::failpoint;
use crate::model::Kid;

const KEY_MODE: Mode = Mode::RUSR;

impl KeyLock {
    /// Puts a key into `secrets.key.d`, durable when this returns. One that is there already is fine.
    ///
    /// # Errors
    /// [`KeyfileError::NameTaken`] where its place holds something else; [`KeyfileError::ReadBack`]; those of the directories and
    /// the file system. Nothing is left half done.
    pub fn stage(&self, master: &MasterKey) -> Result<Kid, KeyfileError> {
        let kid = crypto::kid(master);
        self.keep(kid, &KeyfileImage::of(master))?;
        Ok(kid)
    }

    /// Makes a staged key the one in use. The key that was is kept in `secrets.key.d`, and so is the staged copy. Doing it again
    /// changes nothing.
    ///
    /// # Errors
    /// [`KeyfileError::NotStaged`]; [`KeyfileError::NameLies`] where the staged file holds another key; [`KeyfileError::MainIsBad`]
    /// where what would be replaced cannot be read, and so cannot be kept; [`KeyfileError::MainChanged`]; as [`Self::stage`].
    pub fn promote(&self, kid: Kid) -> Result<(), KeyfileError> {
        let before = self.main()?;
        if before.as_ref().is_some_and(|main| main.key.kid == kid) {
            // A crash may have come between the rename and its fsync.
            return sync_entry(&self.dir, &self.names.main).map(drop);
        }
        let new = self.staged(kid)?;
        if let Some(old) = &before {
            self.keep(old.key.kid, &old.image)?;
        }
        failpoint::reached("keyfile.old-kept");
        let copy = Temporary::write(&self.dir, self.names.temporary.clone(), &new.image)?;
        failpoint::reached("keyfile.main-unnamed");
        self.check_main_is_still(before.as_ref().map(|main| main.key.kid))?;
        self.replace_main(copy, before.as_ref())?;
        failpoint::reached("keyfile.main-unsynced");
        self.dir.sync()
    }

    /// Removes a staged key, such as that of a first start that somebody else won. One that is not there is fine.
    ///
    /// # Errors
    /// [`KeyfileError::IsMain`]; [`KeyfileError::MainIsBad`], as it may be this very key; [`KeyfileError::NameLies`] where the file
    /// of that name holds another key; what is wrong with the file; those of the file system.
    pub fn unstage(&self, kid: Kid) -> Result<(), KeyfileError> {
        self.check_is_not_main(kid)?;
        let Some(place) = self.dir.child(&self.names.retained)? else { return Ok(()) };
        if load_as(&place, kid)?.is_some() {
            place.unlink(&name_of(kid))?;
        }
        // Also where it was gone: by an unlink, perhaps, that no fsync followed.
        place.sync()
    }

    /// Removes every copy of a key that is aborted or destroyed from `secrets.key.d` and from what restores set aside, under whatever
    /// name it lies there, and answers which they were. A file that cannot be read stays: it may be the only copy of another key.
    ///
    /// # Errors
    /// [`KeyfileError::IsMain`], as for a key in use; [`KeyfileError::MainIsBad`], as it may be this very key; those of the file system.
    pub fn unlink_copies(&self, kid: Kid) -> Result<Vec<PathBuf>, KeyfileError> {
        self.check_is_not_main(kid)?;
        let mut removed = self.unlink_replaced(kid)?;
        let Some(place) = self.dir.child(&self.names.retained)? else { return Ok(removed) };
        for name in place.names()? {
            if matches!(load(&place, &name), Ok(Some(loaded)) if loaded.key.kid == kid) && place.unlink(&name)? {
                removed.push(place.of(&name));
            }
        }
        failpoint::reached("keyfile.unlinked-unsynced");
        place.sync()?;
        Ok(removed)
    }

    fn check_is_not_main(&self, kid: Kid) -> Result<(), KeyfileError> {
        match self.main()? {
            Some(main) if main.key.kid == kid => Err(KeyfileError::IsMain { path: main.key.path, kid }),
            _ => Ok(()),
        }
    }

    /// As [`Self::stage`], of a file as it is: of a wrapped key, which is staged as wrapped.
    ///
    /// # Errors
    /// As there; [`KeyfileError::Damaged`] where it is no key file.
    pub fn stage_image(&self, image: &KeyfileImage) -> Result<Kid, KeyfileError> {
        let content = image.content();
        let kid = content.map_err(|damage| KeyfileError::Damaged { path: self.path(), damage })?.kid();
        self.keep(kid, image)?;
        Ok(kid)
    }

    /// Keeps the key in use in `secrets.key.d` too, as its file is; where there is none nothing is done.
    ///
    /// # Errors
    /// [`KeyfileError::MainIsBad`]; as [`Self::stage`].
    pub fn keep_main(&self) -> Result<(), KeyfileError> {
        match self.main()? {
            Some(main) => self.keep(main.key.kid, &main.image),
            None => Ok(()),
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.of(&self.names.main)
    }

    /// Keeps a key in `secrets.key.d`.
    fn keep(&self, kid: Kid, image: &KeyfileImage) -> Result<(), KeyfileError> {
        let place = self.dir.child_or_create(&self.names.retained)?;
        let kept = kept(&place, kid, image)?;
        if kept == Kept::Already {
            return sync_entry(&place, &name_of(kid)).map(drop);
        }
        let temporary = Temporary::write(&place, temporary_of(kid), image)?;
        failpoint::reached("keyfile.kept-unnamed");
        if kept == Kept::Less {
            temporary.rename_over(&name_of(kid))?;
            failpoint::reached("keyfile.kept-unsynced");
            return place.sync();
        }
        match temporary.rename_to_free(&name_of(kid))? {
            Renamed::Done => {
                failpoint::reached("keyfile.kept-unsynced");
                place.sync()
            }
            Renamed::Taken => Err(KeyfileError::NameTaken { path: place.of(&name_of(kid)), kid }),
        }
    }

    /// The key in use; `None` where there is none yet.
    fn main(&self) -> Result<Option<Loaded>, KeyfileError> {
        load(&self.dir, &self.names.main)
            .map_err(|cause| KeyfileError::MainIsBad { path: self.dir.of(&self.names.main), cause: Box::new(cause) })
    }

    fn staged(&self, kid: Kid) -> Result<Loaded, KeyfileError> {
        let staged = match self.dir.child(&self.names.retained)? {
            Some(place) => load_as(&place, kid)?,
            None => None,
        };
        let path = || self.dir.of(&self.names.retained).join(name_of(kid));
        staged.ok_or_else(|| KeyfileError::NotStaged { path: path(), kid })
    }

    /// Only somebody who ignores the lock can have changed it: an operator with `install`, say. That key is not ours to bury.
    fn check_main_is_still(&self, before: Option<Kid>) -> Result<(), KeyfileError> {
        let found = self.main()?.map(|main| main.key.kid);
        if found == before { Ok(()) } else { Err(self.main_changed(found)) }
    }

    fn main_changed(&self, found: Option<Kid>) -> KeyfileError {
        KeyfileError::MainChanged { path: self.dir.of(&self.names.main), found }
    }

    fn replace_main(&self, copy: Temporary<'_>, before: Option<&Loaded>) -> Result<(), KeyfileError> {
        if before.is_some() {
            return copy.rename_over(&self.names.main);
        }
        match copy.rename_to_free(&self.names.main)? {
            Renamed::Done => Ok(()),
            Renamed::Taken => Err(self.main_changed(self.main()?.map(|main| main.key.kid))),
        }
    }
}

fn name_of(kid: Kid) -> OsString {
    kid.to_string().into()
}

/// The key of that kid at its place. A file that holds another one under its name is not what is asked for.
fn load_as(place: &Place, kid: Kid) -> Result<Option<Loaded>, KeyfileError> {
    match load(place, &name_of(kid))? {
        Some(loaded) if loaded.key.kid != kid => {
            Err(KeyfileError::NameLies { path: loaded.key.path, kid: loaded.key.kid })
        }
        loaded => Ok(loaded),
    }
}

/// What lies in a key's place in `secrets.key.d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    Not,
    Already,
    /// The same key wrapped, where the key itself is to be kept: that opens when nothing else does.
    Less,
}

fn kept(place: &Place, kid: Kid, image: &KeyfileImage) -> Result<Kept, KeyfileError> {
    let name = name_of(kid);
    let Some(there) = load(place, &name)? else { return Ok(Kept::Not) };
    let is_raw = |image: &KeyfileImage| matches!(image.content(), Ok(Content::Raw(_)));
    match (there.key.kid == kid, there.key.master().is_some(), is_raw(image)) {
        (false, ..) => Err(KeyfileError::NameTaken { path: place.of(&name), kid }),
        // Wrapped twice in different ways, as a crash of `kms rewrap` leaves it: both were proven to open before they were written.
        (true, true, _) | (true, false, false) => Ok(Kept::Already),
        (true, false, true) => Ok(Kept::Less),
    }
}

/// Makes a file durable that is there already, and its name.
pub(super) fn sync_entry(place: &Place, name: &OsStr) -> Result<File, KeyfileError> {
    let failed = |errno| KeyfileError::from_system("make durable", place.of(name), errno);
    let file = place.open_entry(name, OFlags::RDONLY, Mode::empty()).map_err(failed)?;
    fs::fsync(&file).map_err(failed)?;
    place.sync()?;
    Ok(file)
}

/// A whole key file, durable, under a name that nobody reads; removed when it is dropped before its rename.
pub(super) struct Temporary<'a> {
    place: &'a Place,
    name: OsString,
}

impl<'a> Temporary<'a> {
    pub(super) fn write(place: &'a Place, name: OsString, image: &KeyfileImage) -> Result<Self, KeyfileError> {
        let failed = |errno| KeyfileError::from_system("create", place.of(&name), errno);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let mut file = place.open_entry(&name, flags, KEY_MODE).map_err(failed)?;
        let temporary = Self { place, name };
        temporary.fill(&mut file, image)?;
        drop(file);
        temporary.read_back(image)?;
        Ok(temporary)
    }

    fn fill(&self, file: &mut File, image: &KeyfileImage) -> Result<(), KeyfileError> {
        let failed = |errno| KeyfileError::from_system("write", self.place.of(&self.name), errno);
        fs::fchmod(&*file, KEY_MODE).map_err(failed)?; // Whatever the umask took away.
        image.write_to(file).map_err(|cause| KeyfileError::from_io("write", self.place.of(&self.name), cause))?;
        // After an fsync that failed the pages may be lost and marked clean, so it is never tried twice: the file is removed.
        fs::fsync(&*file).map_err(failed)
    }

    fn read_back(&self, image: &KeyfileImage) -> Result<(), KeyfileError> {
        match load(self.place, &self.name)? {
            Some(read) if read.image.same_as(image) => Ok(()),
            _ => Err(KeyfileError::ReadBack { path: self.place.of(&self.name) }),
        }
    }

    fn rename_to_free(self, to: &OsStr) -> Result<Renamed, KeyfileError> {
        match self.place.rename_to_free(&self.name, to) {
            Ok(()) => Ok(Renamed::Done),
            Err(Errno::EXIST) => Ok(Renamed::Taken),
            Err(errno) => Err(KeyfileError::from_system("rename a new key to", self.place.of(to), errno)),
        }
    }

    pub(super) fn rename_over(self, to: &OsStr) -> Result<(), KeyfileError> {
        self.place
            .rename_over(&self.name, to)
            .map_err(|errno| KeyfileError::from_system("rename a new key to", self.place.of(to), errno))
    }
}

enum Renamed {
    Done,
    /// Something else has the name; nothing was renamed.
    Taken,
}

impl Drop for Temporary<'_> {
    /// After a rename there is nothing of that name, and after a failure the error is already on its way; a leftover is removed by
    /// the next writer.
    fn drop(&mut self) {
        drop(self.place.unlink(&self.name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::keyfile::KeyFiles;

    /// A key file put there by somebody who knows no lock.
    fn install(lock: &KeyLock) -> Kid {
        let master = MasterKey::make_random().expect("random bytes");
        let image = KeyfileImage::of(&master);
        let installed = Temporary::write(&lock.dir, "installed".into(), &image).expect("written");
        installed.rename_over(&lock.names.main).expect("renamed");
        crypto::kid(&master)
    }

    #[test]
    fn a_key_that_an_operator_installed_during_a_promotion_is_not_buried() {
        let root = tempfile::tempdir().expect("a directory");
        let lock = KeyFiles::at(&root.path().join("secrets.key")).and_then(|files| files.lock()).expect("the lock");
        let before = install(&lock);
        assert!(lock.check_main_is_still(Some(before)).is_ok());
        let after = install(&lock);
        for seen in [Some(before), None] {
            match lock.check_main_is_still(seen) {
                Err(KeyfileError::MainChanged { found, .. }) => assert_eq!(found, Some(after)),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_first_key_is_not_renamed_over_one_that_came_between() {
        let root = tempfile::tempdir().expect("a directory");
        let lock = KeyFiles::at(&root.path().join("secrets.key")).and_then(|files| files.lock()).expect("the lock");
        let master = MasterKey::make_random().expect("random bytes");
        let copy = Temporary::write(&lock.dir, lock.names.temporary.clone(), &KeyfileImage::of(&master));
        let came = install(&lock);
        match lock.replace_main(copy.expect("written"), None) {
            Err(KeyfileError::MainChanged { found, .. }) => assert_eq!(found, Some(came)),
            other => panic!("{other:?}"),
        }
        assert_eq!(lock.main().expect("read").map(|main| main.key.kid), Some(came));
    }
}
