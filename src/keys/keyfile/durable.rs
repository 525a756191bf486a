//! Which keys are on the disk for certain: what an operator copied into place may still be in memory only.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::path::PathBuf;

use rustix::fs::{self, Stat};

use super::place::Place;
use super::write::sync_entry;
use super::{KeyFile, KeyFiles, KeyfileError, MainFile, Scan};
use crate::model::Kid;

/// Tells one state of a file from another: any change of content, mode or name moves its ctime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    changed: (i64, u64),
}

impl Stamp {
    #[expect(clippy::unnecessary_cast, reason = "the types of these fields differ between platforms")]
    pub(super) const fn of(stat: &Stat) -> Self {
        Self {
            device: stat.st_dev as u64,
            inode: stat.st_ino as u64,
            changed: (stat.st_ctime as i64, stat.st_ctime_nsec as u64),
        }
    }
}

/// The files that were synced, so that each is synced once.
#[derive(Debug, Default)]
pub struct Synced(HashMap<PathBuf, Stamp>);

impl KeyFiles {
    /// The kids of the scan's files that will still be there after a power cut: accepted by the loader, and synced with their directory
    /// entries, in this call where that is not known. Sorted. What cannot be synced is no acknowledged key, and is said beside them.
    #[must_use]
    pub fn durable(&self, scan: &Scan, synced: &mut Synced) -> (Vec<Kid>, Vec<KeyfileError>) {
        let main = match &scan.main {
            MainFile::Key(key) => Some(key),
            MainFile::Missing | MainFile::Bad(_) => None,
        };
        let files: Vec<&KeyFile> = main.into_iter().chain(&scan.retained).collect();
        synced.0.retain(|path, stamp| files.iter().any(|file| file.path == *path && file.stamp == *stamp));
        let (mut kids, mut problems) = (BTreeSet::new(), Vec::new());
        for file in files {
            let known = synced.0.contains_key(&file.path);
            match if known { Ok(true) } else { self.sync(file) } {
                Ok(true) => {
                    synced.0.insert(file.path.clone(), file.stamp);
                    kids.insert(file.kid);
                }
                Ok(false) => {} // Another by now: the next scan sees it.
                Err(error) => problems.push(error),
            }
        }
        (kids.into_iter().collect(), problems)
    }

    /// Whether the very file of the scan was synced.
    fn sync(&self, file: &KeyFile) -> Result<bool, KeyfileError> {
        let Some(dir) = Place::open(&self.dir)? else { return Ok(false) };
        let name = file.path.file_name().unwrap_or(OsStr::new(""));
        let place = if file.path == self.path() { Some(dir) } else { dir.child(&self.names.retained)? };
        let Some(place) = place else { return Ok(false) };
        let synced = sync_entry(&place, name)?;
        let stat =
            fs::fstat(&synced).map_err(|errno| KeyfileError::from_system("look at", file.path.clone(), errno))?;
        Ok(Stamp::of(&stat) == file.stamp)
    }
}
