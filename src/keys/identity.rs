//! The age identities that open wrapped key files here, and how they are read.
//!
//! A file is read anew for each key that is opened: it may be laid there, or exchanged, while a daemon runs. What a program writes into a pipe
//! is there once, so it is kept; and a pipe in which nothing comes is given up, never waited for by a thread that does other work too.

use std::fmt;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::OnceCell;
use zeroize::Zeroizing;

use crate::backup::age::{IDENTITIES_LIMIT, Identities};

/// How long it is waited for all that a pipe gives.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where the identities are. Clones share what was read from a pipe.
#[derive(Clone)]
pub struct AgeIdentity {
    path: PathBuf,
    kept: Arc<OnceCell<Arc<Identities>>>,
}

/// Why there are no identities. No variant carries a byte of one.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("{0}")]
    Read(#[from] io::Error),
    #[error("it is a pipe, and nobody has written an identity into it within {} s", .0.as_secs_f64())]
    Silent(Duration),
    #[error("{why}: `chmod 0600 {}`", .path.display())]
    Open { path: PathBuf, why: &'static str },
    #[error("{0}")]
    Bad(String),
}

impl AgeIdentity {
    /// Those in a file of this host, or in a pipe; nothing is read yet.
    #[must_use]
    pub fn at(path: PathBuf) -> Self {
        Self { path, kept: Arc::default() }
    }

    /// Those that an operator brought, read here once for all that a command opens. Its mode is not looked at: on a stick that was made for
    /// every computer no file has one.
    ///
    /// # Errors
    /// [`IdentityError`], all but `Open`.
    pub async fn brought(path: PathBuf) -> Result<Self, IdentityError> {
        let identities = match std::fs::metadata(&path)? {
            found if found.file_type().is_fifo() => from_pipe(&path, PATIENCE).await?,
            _ => read(&mut File::open(&path)?)?,
        };
        Ok(Self { path, kept: Arc::new(OnceCell::new_with(Some(Arc::new(identities)))) })
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// # Errors
    /// [`IdentityError`].
    pub async fn identities(&self) -> Result<Arc<Identities>, IdentityError> {
        if let Some(kept) = self.kept.get() {
            return Ok(Arc::clone(kept));
        }
        let found = std::fs::metadata(&self.path)?;
        if found.file_type().is_fifo() {
            let once = || async { from_pipe(&self.path, PATIENCE).await.map(Arc::new) };
            return self.kept.get_or_try_init(once).await.map(Arc::clone);
        }
        let mut file = File::open(&self.path)?;
        self.check(&file.metadata()?)?;
        Ok(Arc::new(read(&mut file)?))
    }

    /// As of a TLS key and for its reasons: a link and a group's are somebody's choice, but nothing hands a key to a whole host on purpose.
    fn check(&self, found: &Metadata) -> Result<(), IdentityError> {
        let why = match found.mode() {
            mode if mode & 0o004 != 0 => "it can be read by every user of the host",
            mode if mode & 0o022 != 0 => "it can be written by others than its owner",
            _ => return Ok(()),
        };
        Err(IdentityError::Open { path: self.path.clone(), why })
    }
}

/// They are keys: where they are is all that is shown.
impl fmt::Debug for AgeIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AgeIdentity").field(&self.path).finish()
    }
}

/// Not by `File::open`, which waits for a writer for ever.
async fn from_pipe(path: &Path, patience: Duration) -> Result<Identities, IdentityError> {
    let pipe = pipe::OpenOptions::new().open_receiver(path)?;
    // More than is read, so that the bytes are never moved.
    let mut bytes = Zeroizing::new(Vec::with_capacity(2 * IDENTITIES_LIMIT));
    let most = u64::try_from(IDENTITIES_LIMIT + 1).unwrap_or(u64::MAX);
    match tokio::time::timeout(patience, pipe.take(most).read_to_end(&mut bytes)).await {
        Ok(read) => read?,
        Err(_) => return Err(IdentityError::Silent(patience)),
    };
    read(&mut bytes.as_slice())
}

fn read(reader: &mut impl Read) -> Result<Identities, IdentityError> {
    Identities::read(reader).map_err(|error| IdentityError::Bad(error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use ::age::secrecy::ExposeSecret;

    use super::*;

    fn identity() -> String {
        ::age::x25519::Identity::generate().to_string().expose_secret().to_owned()
    }

    fn fifo(dir: &Path) -> PathBuf {
        let path = dir.join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        path
    }

    #[tokio::test]
    async fn what_came_through_a_pipe_is_read_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = fifo(dir.path());
        let identity_at = AgeIdentity::at(path.clone());
        let writer = std::thread::spawn(move || std::fs::write(path, identity()));
        assert!(identity_at.identities().await.is_ok());
        writer.join().unwrap().unwrap();
        // Its writer is gone; a clone knows what came too.
        for again in [identity_at.clone(), identity_at] {
            assert!(again.identities().await.is_ok());
        }
    }

    #[tokio::test]
    async fn a_pipe_in_which_nothing_comes_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = fifo(dir.path());
        let patience = Duration::from_millis(20);
        assert!(matches!(from_pipe(&path, patience).await, Err(IdentityError::Silent(_))));
        // Nor is a writer waited for that writes nothing.
        let _writer = File::options().read(true).write(true).open(&path).unwrap();
        let error = from_pipe(&path, patience).await.err().unwrap().to_string();
        assert!(error.contains("nobody has written an identity into it within 0.02 s"), "{error}");
    }

    #[tokio::test]
    async fn an_identity_that_every_user_can_read_or_others_can_write_opens_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity.txt");
        std::fs::write(&path, identity()).unwrap();
        let at = AgeIdentity::at(path.clone());
        for (mode, is_good) in [(0o400, true), (0o600, true), (0o640, true), (0o644, false), (0o620, false)] {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            match at.identities().await {
                Ok(_) => assert!(is_good, "{mode:o}"),
                Err(error) => {
                    assert!(!is_good && error.to_string().contains("`chmod 0600 "), "{mode:o}: {error}");
                }
            }
            assert!(AgeIdentity::brought(path.clone()).await.is_ok(), "{mode:o}, brought by an operator");
        }
    }
}
