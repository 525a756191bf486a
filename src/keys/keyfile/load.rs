//! One key file, opened once and judged by its open descriptor: what was checked is what is read.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::{self, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::KeyFile;
use super::durable::Stamp;
use super::error::{KeyfileError, euid};
use super::place::{Place, is_trusted};
use crate::crypto::KeyfileImage;

const KEY_MODE: u32 = 0o400;
/// How often a file may be replaced under the reader's hands.
const ATTEMPTS: u32 = 5;

/// A good key file, with its image for a copy.
pub(super) struct Loaded {
    pub(super) key: KeyFile,
    pub(super) image: KeyfileImage,
}

/// `None`: nothing of that name is there.
pub(super) fn load(place: &Place, name: &OsStr) -> Result<Option<Loaded>, KeyfileError> {
    for _ in 0..ATTEMPTS {
        let Some(file) = open(place, name)? else { return Ok(None) };
        if let Some(loaded) = judge(file, place.of(name))? {
            return Ok(Some(loaded));
        }
    }
    Err(KeyfileError::Unsteady { path: place.of(name) })
}

/// `None`: the file has no name any more, since a promotion renamed another over it after it was opened.
fn judge(mut file: File, path: PathBuf) -> Result<Option<Loaded>, KeyfileError> {
    let stat = fs::fstat(&file).map_err(|errno| KeyfileError::from_system("look at", path.clone(), errno))?;
    check_kind(FileType::from_raw_mode(stat.st_mode), &path)?;
    if stat.st_nlink == 0 {
        return Ok(None);
    }
    check_access(&stat, &path)?;
    let image = read(&mut file, &path)?;
    let content = image.content().map_err(|damage| KeyfileError::Damaged { path: path.clone(), damage })?;
    let stamp = Stamp::of(&stat);
    Ok(Some(Loaded { key: KeyFile { kid: content.kid(), content, path, stamp }, image }))
}

fn open(place: &Place, name: &OsStr) -> Result<Option<File>, KeyfileError> {
    let path = place.of(name);
    match place.open_entry(name, OFlags::RDONLY, Mode::empty()) {
        Ok(file) => Ok(Some(file)),
        Err(Errno::NOENT) => Ok(None),
        Err(Errno::LOOP) => Err(KeyfileError::IsSymlink { path }),
        // A socket, and a device that nobody drives, do not open; what they are is known by name only, and enough to refuse.
        Err(errno @ (Errno::NXIO | Errno::NODEV | Errno::ACCESS)) => Err(why_not_opened(place, name, errno)),
        Err(errno) => Err(KeyfileError::from_system("open", path, errno)),
    }
}

fn why_not_opened(place: &Place, name: &OsStr, errno: Errno) -> KeyfileError {
    let path = place.of(name);
    match place.stat_entry(name) {
        Ok(stat) => {
            match check_kind(FileType::from_raw_mode(stat.st_mode), &path) {
                Err(kind) => kind,
                Ok(()) if errno == Errno::ACCESS => check_access(&stat, &path)
                    .err()
                    .unwrap_or(KeyfileError::Unreadable { path, owner: stat.st_uid, euid: euid() }),
                Ok(()) => KeyfileError::from_system("open", path, errno),
            }
        }
        Err(_) => KeyfileError::from_system("open", path, errno),
    }
}

fn check_kind(kind: FileType, path: &Path) -> Result<(), KeyfileError> {
    let path = path.to_owned();
    Err(match kind {
        FileType::RegularFile => return Ok(()),
        FileType::Symlink => KeyfileError::IsSymlink { path },
        FileType::Fifo => KeyfileError::IsFifo { path },
        FileType::Directory => KeyfileError::IsDirectory { path },
        FileType::Socket => KeyfileError::IsSocket { path },
        FileType::CharacterDevice | FileType::BlockDevice | FileType::Unknown => KeyfileError::IsDevice { path },
    })
}

fn check_access(stat: &Stat, path: &Path) -> Result<(), KeyfileError> {
    let (path, euid, mode) = (path.to_owned(), euid(), stat.st_mode & 0o7777);
    if !is_trusted(stat.st_uid, euid) {
        Err(KeyfileError::WrongOwner { path, owner: stat.st_uid, euid })
    } else if mode != KEY_MODE {
        // With an access list the group's bits are its mask, so this holds for lists too (acl(5)).
        Err(KeyfileError::WrongMode { path, mode })
    } else if stat.st_nlink != 1 {
        Err(KeyfileError::HardLinked { path, links: stat.st_nlink.to_string() })
    } else {
        Ok(())
    }
}

fn read(file: &mut File, path: &Path) -> Result<KeyfileImage, KeyfileError> {
    KeyfileImage::read_from(file).map_err(|cause| KeyfileError::from_io("read", path.to_owned(), cause))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_replaced_after_it_was_opened_is_opened_anew_and_not_called_bad() {
        let root = tempfile::tempdir().expect("a directory");
        let path = root.path().join("secrets.key");
        std::fs::write(&path, [7; 32]).expect("written");
        let opened = File::open(&path).expect("opened");
        std::fs::remove_file(&path).expect("removed");
        assert!(matches!(judge(opened, path), Ok(None)));
    }
}
