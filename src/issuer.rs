//! What issuers of JWTs publish, or share: the bytes of their keys, from a file or a URL. What they mean is access's.
//!
//! Whoever can change these bytes can be anybody whom a rule names. So a file must be nobody else's to write, a secret nobody else's to read, and a
//! server is trusted over TLS alone, or on this host. An answer has a bound and a time, and a redirect ends it: where keys come from is what
//! the settings say.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Certificate, Client, redirect};
use rustix::fs::{Mode, OFlags};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use zeroize::Zeroizing;

/// A set of a hundred keys of 8192 bits has less.
pub const MOST_BYTES: usize = 256 * 1024;
/// From the first packet to the last byte, and for a file.
const LONGEST: Duration = Duration::from_secs(5);

/// Where an issuer's keys are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A JWK set, which anybody may read.
    File(PathBuf),
    /// A secret that its owner alone may read.
    Secret(PathBuf),
    Url {
        /// `https`, or `http` on a loopback address.
        url: String,
        /// PEM; replaces the host's own list of authorities.
        ca: Option<PathBuf>,
    },
}

/// Why they were not to be had. Nothing in it was sent by a server but a status.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("{} cannot be read: {cause}", path.display())]
    Unreadable { path: PathBuf, cause: io::Error },
    #[error("{} {why}", path.display())]
    Exposed { path: PathBuf, why: &'static str },
    #[error("{} holds no certificate: it must have a section BEGIN CERTIFICATE, as PEM", path.display())]
    NoCertificate { path: PathBuf },
    #[error("{what} has more than {} KiB", MOST_BYTES / 1024)]
    TooLong { what: String },
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
    #[error("{url} cannot be reached: {why}")]
    Unreachable { url: String, why: String },
    #[error("{url} did not answer whole within {} s", LONGEST.as_secs())]
    Slow { url: String },
    #[error("{what} could not be read within {} s: does its file system answer?", LONGEST.as_secs())]
    Stuck { what: String },
    #[error("{url} answered {status}, and a redirect is not followed: give the address that it leads to")]
    Redirected { url: String, status: u16 },
    #[error("{url} answered {status}")]
    Status { url: String, status: u16 },
    #[error("reading was cut short")]
    Interrupted,
}

impl SourceError {
    /// Whether somebody took the keys away, and not only nobody could be asked: a file that the settings name is gone, is not the daemon's to
    /// read, or is open to others. Whoever removes a file means it, and one that others can write vouches for nobody.
    #[must_use]
    pub fn takes_away(&self) -> bool {
        match self {
            Self::Exposed { .. } => true,
            // Of what is no regular file, such as a link to /dev/null, `InvalidInput` is said here.
            Self::Unreadable { cause, .. } => matches!(
                cause.kind(),
                io::ErrorKind::NotFound
                    | io::ErrorKind::NotADirectory
                    | io::ErrorKind::PermissionDenied
                    | io::ErrorKind::InvalidInput
            ),
            _ => false,
        }
    }
}

/// How a file was, as far as can be told without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds, of the bytes and of the inode.
    times: [i64; 4],
}

/// The path, or the URL.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) | Self::Secret(path) => path.display().fmt(f),
            Self::Url { url, .. } => f.write_str(url),
        }
    }
}

impl Source {
    /// Reads a file, or looks whether a URL could be asked. What a server says shows later: a daemon whose issuer is away starts all the same.
    ///
    /// # Errors
    /// [`SourceError`], of a URL `Unreadable`, `NoCertificate` or `Tls`.
    pub fn look(&self) -> Result<Option<Zeroizing<Vec<u8>>>, SourceError> {
        match self {
            Self::File(path) => read_file(path, public).map(Some),
            Self::Secret(path) => read_file(path, secret).map(Some),
            Self::Url { url, ca } => client(url, ca.as_deref()).map(|_| None),
        }
    }

    /// Of a file that is there.
    fn stamp(&self) -> Option<Stamp> {
        let (Self::File(path) | Self::Secret(path)) = self else { return None };
        let metadata = std::fs::metadata(path).ok()?;
        Some(Stamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            times: [metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec()],
        })
    }

    #[must_use]
    pub const fn is_file(&self) -> bool {
        !matches!(self, Self::Url { .. })
    }
}

/// Reads a source, each time within a bound. What hangs in a file system takes one thread with it, and not one more with each look.
#[derive(Debug)]
pub struct Reader {
    source: Source,
    /// Whoever is in the file system holds it, also after nobody waits for it any more.
    turn: Arc<Semaphore>,
}

/// What a reader found.
pub struct Found {
    /// Of a file, from before its bytes: a change in between is seen next time.
    pub stamp: Option<Stamp>,
    pub bytes: Result<Zeroizing<Vec<u8>>, SourceError>,
}

impl Reader {
    #[must_use]
    pub fn new(source: Source) -> Self {
        Self { source, turn: Arc::new(Semaphore::new(1)) }
    }

    #[must_use]
    pub const fn source(&self) -> &Source {
        &self.source
    }

    pub async fn read(&self) -> Found {
        let until = Instant::now() + LONGEST;
        if let Source::Url { url, ca } = &self.source {
            return Found { stamp: None, bytes: self.ask(url, ca.clone(), until).await };
        }
        let source = self.source.clone();
        let read = self.in_file_system(until, move || (source.stamp(), source.look())).await;
        match read {
            Ok((stamp, look)) => Found { stamp, bytes: look.and_then(|bytes| bytes.ok_or(SourceError::Interrupted)) },
            Err(error) => Found { stamp: None, bytes: Err(error) },
        }
    }

    /// Of a file that is there, and whose file system answers.
    pub async fn stamp(&self) -> Option<Stamp> {
        let source = self.source.clone();
        self.in_file_system(Instant::now() + LONGEST, move || source.stamp()).await.ok()?
    }

    async fn ask(&self, url: &str, ca: Option<PathBuf>, until: Instant) -> Result<Zeroizing<Vec<u8>>, SourceError> {
        // Anew each time, with its file of authorities: it is seldom, and a connection that is kept would outlive what it was trusted for.
        let of = url.to_owned();
        let client = self.in_file_system(until, move || client(&of, ca.as_deref())).await??;
        timeout_at(until, fetch(&client, url)).await.map_err(|_| SourceError::Slow { url: url.to_owned() })?
    }

    async fn in_file_system<T: Send + 'static>(
        &self,
        until: Instant,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, SourceError> {
        let stuck = |_| SourceError::Stuck { what: self.source.to_string() };
        let turn = timeout_at(until, Arc::clone(&self.turn).acquire_owned()).await.map_err(stuck)?;
        let turn = turn.map_err(|_| SourceError::Interrupted)?;
        let working = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            work()
        });
        timeout_at(until, working).await.map_err(stuck)?.map_err(|_| SourceError::Interrupted)
    }
}

fn client(url: &str, ca: Option<&Path>) -> Result<Client, SourceError> {
    let builder = Client::builder()
        .http1_only()
        .redirect(redirect::Policy::none())
        .user_agent(concat!("containarium/", env!("CARGO_PKG_VERSION")));
    // A proxy of the environment has no part in what is on this host.
    let builder = if url.starts_with("https:") { builder.https_only(true) } else { builder.no_proxy() };
    let builder = match ca {
        Some(path) => builder.tls_certs_only(certificates(path)?),
        None => builder,
    };
    builder.build().map_err(|error| SourceError::Tls(innermost(&error)))
}

fn certificates(path: &Path) -> Result<Vec<Certificate>, SourceError> {
    let pem = read_file(path, public)?;
    let none = || SourceError::NoCertificate { path: path.to_owned() };
    let certificates = Certificate::from_pem_bundle(&pem).map_err(|_| none())?;
    if certificates.is_empty() { Err(none()) } else { Ok(certificates) }
}

async fn fetch(client: &Client, url: &str) -> Result<Zeroizing<Vec<u8>>, SourceError> {
    let unreachable = |error: reqwest::Error| SourceError::Unreachable { url: url.to_owned(), why: innermost(&error) };
    let mut response = client.get(url).header("accept", "application/json").send().await.map_err(unreachable)?;
    let status = response.status();
    if status.is_redirection() {
        return Err(SourceError::Redirected { url: url.to_owned(), status: status.as_u16() });
    }
    if !status.is_success() {
        return Err(SourceError::Status { url: url.to_owned(), status: status.as_u16() });
    }
    let mut body = Zeroizing::new(Vec::new());
    while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
        if body.len() + chunk.len() > MOST_BYTES {
            return Err(SourceError::TooLong { what: url.to_owned() });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Why a file's mode and owner will not do.
type Rule = fn(mode: u32, owner: u32) -> Option<&'static str>;

/// Whoever can write it can let anybody in.
fn public(mode: u32, owner: u32) -> Option<&'static str> {
    if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        Some("belongs to another user than root and the daemon's own, who could let anybody in")
    } else if mode & 0o022 != 0 {
        Some("can be written by others than its owner, who could let anybody in: chmod go-w it")
    } else {
        None
    }
}

/// Whoever reads it can sign for anybody.
fn secret(mode: u32, owner: u32) -> Option<&'static str> {
    if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        Some("belongs to another user than root and the daemon's own")
    } else if mode & 0o7777 != 0o400 {
        Some("must be its owner's to read and nobody's to write: chmod 0400 it")
    } else {
        None
    }
}

/// A link is followed, as orchestrators make them: the rules are held against what was opened.
fn read_file(path: &Path, refusal: Rule) -> Result<Zeroizing<Vec<u8>>, SourceError> {
    let unreadable = |cause| SourceError::Unreadable { path: path.to_owned(), cause };
    // Not blocking: a pipe would hold the daemon until somebody writes to it.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| unreadable(error.into()))?;
    let file = File::from(file);
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(unreadable(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")));
    }
    if let Some(why) = refusal(metadata.mode(), metadata.uid()) {
        return Err(SourceError::Exposed { path: path.to_owned(), why });
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(8 * 1024));
    file.take(MOST_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() > MOST_BYTES {
        return Err(SourceError::TooLong { what: path.display().to_string() });
    }
    Ok(bytes)
}

/// The last cause, which says most, as one line for a terminal.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let last = std::iter::successors(Some(error), |error| error.source()).last().unwrap_or(error);
    last.to_string().chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn written(mode: u32) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        std::fs::write(&path, "keys").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        (dir, path)
    }

    #[test]
    fn a_secret_is_its_owners_alone_and_a_set_is_nobody_elses_to_write() {
        for (mode, public, secret) in [
            (0o400, true, true),
            (0o444, true, false),
            (0o600, true, false),
            (0o440, true, false),
            (0o644, true, false),
            (0o664, false, false),
            (0o646, false, false),
        ] {
            let (_dir, path) = written(mode);
            assert_eq!(Source::File(path.clone()).look().is_ok(), public, "{mode:o}");
            assert_eq!(Source::Secret(path).look().is_ok(), secret, "{mode:o}");
        }
    }

    #[test]
    fn a_file_is_roots_or_the_daemons_own() {
        let own = rustix::process::geteuid().as_raw();
        for (owner, is_taken) in [(0, true), (own, true), (own.wrapping_add(1), false)] {
            assert_eq!(
                (public(0o644, owner).is_none(), secret(0o400, owner).is_none()),
                (is_taken, is_taken),
                "{owner}"
            );
        }
    }

    #[test]
    fn a_file_is_regular_and_has_a_bound_and_a_link_is_followed() {
        let (dir, path) = written(0o400);
        let link = dir.path().join("link");
        symlink(&path, &link).unwrap();
        assert_eq!(**Source::Secret(link).look().unwrap().unwrap(), *b"keys");
        assert!(matches!(Source::File(dir.path().into()).look(), Err(SourceError::Unreadable { .. })));
        assert!(matches!(Source::File("/nowhere/keys".into()).look(), Err(SourceError::Unreadable { .. })));
        let (_dir, path) = written(0o600);
        std::fs::write(&path, vec![b' '; MOST_BYTES]).unwrap();
        assert!(Source::File(path.clone()).look().is_ok());
        std::fs::write(&path, vec![b' '; MOST_BYTES + 1]).unwrap();
        assert!(matches!(Source::File(path).look(), Err(SourceError::TooLong { .. })));
    }

    #[test]
    fn what_is_gone_or_open_to_others_was_taken_away_and_what_cannot_be_asked_was_not() {
        let (dir, path) = written(0o666);
        let null = dir.path().join("null");
        symlink("/dev/null", &null).unwrap();
        for taken in [path, null, dir.path().join("nothing"), "/etc/passwd/keys".into()] {
            let error = Source::File(taken).look().unwrap_err();
            assert!(error.takes_away(), "{error}");
        }
        let (_dir, path) = written(0o644);
        std::fs::write(&path, vec![b' '; MOST_BYTES + 1]).unwrap();
        let url = || "https://issuer.example/keys".to_owned();
        for away in [
            Source::File(path).look().unwrap_err(),
            SourceError::Unreadable { path: "keys".into(), cause: io::ErrorKind::StaleNetworkFileHandle.into() },
            SourceError::Slow { url: url() },
            SourceError::Status { url: url(), status: 503 },
            SourceError::Redirected { url: url(), status: 302 },
            SourceError::Unreachable { url: url(), why: String::new() },
            SourceError::Stuck { what: url() },
        ] {
            assert!(!away.takes_away(), "{away}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_file_system_that_hangs_holds_one_thread_and_nobody_who_asks() {
        let (_dir, path) = written(0o644);
        let reader = Reader::new(Source::File(path));
        let (release, hangs) = std::sync::mpsc::channel::<()>();
        let soon = Instant::now() + Duration::from_millis(50);
        let hung = reader.in_file_system(soon, move || hangs.recv()).await;
        assert!(matches!(hung, Err(SourceError::Stuck { .. })));
        let soon = Instant::now() + Duration::from_millis(50);
        let next = reader.in_file_system(soon, || panic!("another thread went in")).await;
        assert!(matches!(next, Err::<(), _>(SourceError::Stuck { .. })));
        let reading = reader.read();
        release.send(()).unwrap();
        let found = reading.await;
        assert_eq!(**found.bytes.unwrap(), *b"keys");
        assert!(found.stamp.is_some() && found.stamp == reader.stamp().await);
    }

    #[test]
    fn a_file_of_authorities_holds_one() {
        let (_dir, path) = written(0o644);
        let url = |ca| Source::Url { url: "https://issuer.example/keys".to_owned(), ca };
        assert!(matches!(url(None).look(), Ok(None)));
        assert!(matches!(url(Some(path)).look(), Err(SourceError::NoCertificate { .. })));
        assert!(matches!(url(Some("/nowhere/ca".into())).look(), Err(SourceError::Unreadable { .. })));
    }
}
