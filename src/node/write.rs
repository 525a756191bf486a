//! Files that are replaced whole, and read only where nobody else can have written them.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::NodeFileError;

pub(super) fn failed(doing: &'static str, path: &Path, cause: io::Error) -> NodeFileError {
    NodeFileError::Io { doing, path: path.to_owned(), cause }
}

/// Temporary name, write, fsync, rename, fsync of the directory: a crash leaves the old file or the new one.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<(), NodeFileError> {
    let temporary = temporary_of(path);
    let written = write_new(&temporary, bytes).and_then(|()| std::fs::rename(&temporary, path));
    written.map_err(|cause| {
        // Left behind it would harm nobody: the next writer begins by removing it.
        let _gone = std::fs::remove_file(&temporary);
        failed("write", path, cause)
    })?;
    sync_directory(path)
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(cause) if cause.kind() != ErrorKind::NotFound => return Err(cause),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

pub(super) fn temporary_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

pub(super) fn sync_directory(path: &Path) -> Result<(), NodeFileError> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(|cause| failed("make durable", path, cause))
}

/// The file's content; `None` where there is none.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, NodeFileError> {
    let Some(mut file) = open(path, OpenOptions::new().read(true))? else { return Ok(None) };
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(|cause| failed("read", path, cause))?;
    Ok(Some(bytes))
}

/// Opens a file that is there, after looking at whose it is; `None` where there is none.
pub(super) fn open(path: &Path, options: &mut OpenOptions) -> Result<Option<File>, NodeFileError> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    let file = match options.custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(cause) if cause.kind() == ErrorKind::NotFound => return Ok(None),
        Err(cause) => {
            return Err(match Errno::from_io_error(&cause) {
                Some(Errno::LOOP | Errno::ISDIR | Errno::NXIO) => NodeFileError::NotAFile { path: path.to_owned() },
                _ => failed("open", path, cause),
            });
        }
    };
    let found = file.metadata().map_err(|cause| failed("look at", path, cause))?;
    let (path, euid) = (path.to_owned(), rustix::process::geteuid().as_raw());
    if !found.is_file() || found.nlink() > 1 {
        return Err(NodeFileError::NotAFile { path });
    }
    if found.uid() != euid {
        return Err(NodeFileError::Owner { path, owner: found.uid(), euid });
    }
    if found.mode() & 0o022 != 0 {
        return Err(NodeFileError::Writable { path, mode: found.mode() & 0o7777 });
    }
    if found.mode() & 0o7777 != 0o600 {
        let tightened = file.set_permissions(PermissionsExt::from_mode(0o600));
        tightened.map_err(|cause| failed("protect", &path, cause))?;
    }
    Ok(Some(file))
}
