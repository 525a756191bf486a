//! The socket's file: made with the right modes, replaced when a crash left it, never taken from a daemon that lives.

use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::process::geteuid;
use tokio::net::UnixListener;

/// Why the socket could not be made. Each message says what mends it.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("another process answers on the socket {}: a daemon runs there already; stop it, or give another --socket", path.display())]
    InUse { path: PathBuf },
    #[error("{} is there and is no socket; move it away, or give another --socket", path.display())]
    NotASocket { path: PathBuf },
    #[error(
        "the directory of the socket, {}, can be written by others, who could put a socket of their own in its place; \
         chmod go-w it, or give another --socket",
        dir.display()
    )]
    OpenDirectory { dir: PathBuf },
    #[error("{what} {}: {cause}", path.display())]
    Io { what: &'static str, path: PathBuf, cause: io::Error },
}

/// A socket that listens, and its file.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) listener: UnixListener,
    pub(super) file: SocketFile,
}

/// The file of a socket that this process made.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    inode: Option<(u64, u64)>,
}

/// Whether the path is free, or a crash left it: asked before a key and a database are made for a daemon that could not be reached.
pub(super) fn check(path: &Path) -> Result<(), SocketError> {
    is_free(path).map(drop)
}

/// Whom the socket's mode lets connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OpenTo {
    /// Root and the daemon's own user: nobody else has anything to ask.
    Owner,
    /// Everybody of the host: peer credentials and tokens decide, and a group would keep out whom the settings let in.
    Everybody,
}

impl OpenTo {
    const fn mode(self) -> u32 {
        match self {
            Self::Owner => 0o600,
            Self::Everybody => 0o666,
        }
    }
}

/// Makes the socket and its directory where that is missing. The caller holds the data directory's lock, so two daemons of one
/// data directory never race here.
pub(super) fn bind(path: &Path, open_to: OpenTo) -> Result<Bound, SocketError> {
    let io = |what, path: &Path| {
        let path = path.to_owned();
        move |cause| SocketError::Io { what, path, cause }
    };
    if let Some(dir) = path.parent() {
        check_directory(dir)?;
    }
    clear_the_way(path)?;
    let listener = std::os::unix::net::UnixListener::bind(path).map_err(io("cannot bind the socket", path))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(open_to.mode()))
        .map_err(io("cannot set the mode of", path))?;
    listener.set_nonblocking(true).map_err(io("cannot use", path))?;
    let listener = UnixListener::from_std(listener).map_err(io("cannot use", path))?;
    let file = SocketFile { path: path.to_owned(), inode: inode(path) };
    Ok(Bound { listener, file })
}

/// 0755, so that users whom the socket admits can reach it; the socket's own mode and the peer's credentials decide.
fn check_directory(dir: &Path) -> Result<(), SocketError> {
    let io = |what| move |cause| SocketError::Io { what, path: dir.to_owned(), cause };
    if !dir.exists() {
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(dir).map_err(io("cannot make the directory"))?;
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).map_err(io("cannot set the mode of"))?;
    }
    let found = std::fs::metadata(dir).map_err(io("cannot look at"))?;
    let sticky = found.mode() & 0o1000 != 0;
    let owner_trusted = found.uid() == 0 || found.uid() == geteuid().as_raw();
    if !owner_trusted || (found.mode() & 0o022 != 0 && !sticky) {
        return Err(SocketError::OpenDirectory { dir: dir.to_owned() });
    }
    Ok(())
}

/// Removes what a crash left.
fn clear_the_way(path: &Path) -> Result<(), SocketError> {
    match is_free(path)? {
        Way::Free => Ok(()),
        Way::Stale => std::fs::remove_file(path).map_err(|cause| SocketError::Io {
            what: "cannot remove the stale socket",
            path: path.to_owned(),
            cause,
        }),
    }
}

enum Way {
    Free,
    /// A socket that nobody answers on.
    Stale,
}

/// A socket that somebody answers on is theirs.
fn is_free(path: &Path) -> Result<Way, SocketError> {
    let found = match std::fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Way::Free),
        Err(cause) => return Err(SocketError::Io { what: "cannot look at", path: path.to_owned(), cause }),
    };
    if !found.file_type().is_socket() {
        return Err(SocketError::NotASocket { path: path.to_owned() });
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(Way::Stale),
        // A full backlog, or no right to connect: somebody lives there.
        Ok(_) | Err(_) => Err(SocketError::InUse { path: path.to_owned() }),
    }
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

impl SocketFile {
    /// Removes the file, unless somebody put another in its place.
    pub(super) fn remove(&self) {
        if inode(&self.path) == self.inode
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!("the socket {} stays behind: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_that_a_crash_left_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let bound = bind(&path, OpenTo::Owner).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        bound.file.remove();
        assert!(!path.exists());
        let _everybody = bind(&path, OpenTo::Everybody).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o666);
    }

    #[tokio::test]
    async fn a_socket_that_answers_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let _living = bind(&path, OpenTo::Owner).unwrap();
        assert!(matches!(bind(&path, OpenTo::Owner), Err(SocketError::InUse { .. })));
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        std::fs::write(&path, "mine").unwrap();
        assert!(matches!(bind(&path, OpenTo::Owner), Err(SocketError::NotASocket { .. })));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
    }

    #[tokio::test]
    async fn a_directory_that_others_can_write_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(bind(&dir.path().join("s.sock"), OpenTo::Owner), Err(SocketError::OpenDirectory { .. })));
    }

    #[tokio::test]
    async fn a_directory_that_is_missing_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/containarium/s.sock");
        bind(&path, OpenTo::Owner).unwrap();
        assert_eq!(std::fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777, 0o755);
    }
}
