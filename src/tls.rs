//! The certificate that TCP is served with: read, checked as a whole, and replaced while the daemon serves.
//!
//! TLS 1.3 and 1.2 and nothing older (RFC 8996), with aws-lc-rs named as the provider: rustls's own choice of a default is a process's
//! global, which another library may have set.

use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{InconsistentKeys, ServerConfig};
use x509_cert::der::Decode;
use zeroize::Zeroizing;

use crate::model::Micros;

/// A certificate chain has a few KiB; what has more is no such file.
const MAX_BYTES: u64 = 1024 * 1024;

/// Why the certificate cannot be served with. No message holds a byte of either file.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("the {what} {} cannot be read: {cause}", path.display())]
    Unreadable { what: &'static str, path: PathBuf, cause: io::Error },
    #[error("the TLS key {} {why}: chmod 0600 it, or 0640 for a group that may have it", path.display())]
    OpenKey { path: PathBuf, why: &'static str },
    #[error("the {what} {} is no PEM file: a section of it is broken", path.display())]
    BrokenPem { what: &'static str, path: PathBuf },
    #[error(
        "the TLS certificate {} has no section BEGIN CERTIFICATE: it must hold the server's own certificate first, then \
         those of the authorities between it and the root, as PEM",
        path.display()
    )]
    NoCertificate { path: PathBuf },
    #[error("the first certificate in {} cannot be read as X.509", path.display())]
    BadCertificate { path: PathBuf },
    #[error(
        "the TLS key {} has no private key without a passphrase: it must hold a section BEGIN PRIVATE KEY, as PEM \
         (`openssl pkey -in IT -out KEY` makes one)",
        path.display()
    )]
    NoKey { path: PathBuf },
    #[error("the TLS key {} is of a kind that is not supported: use ECDSA P-256 or P-384, Ed25519, or RSA from 2048 bits", path.display())]
    UnsupportedKey { path: PathBuf },
    #[error(
        "the TLS key {} is not that of the first certificate in {}: give the pair that was made together, the server's own \
         certificate first",
        key.display(), certificate.display()
    )]
    Mismatch { certificate: PathBuf, key: PathBuf },
    #[error("TLS cannot be set up: {0}")]
    Unusable(#[source] rustls::Error),
}

/// Where certificate and key lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// From when to when a certificate is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// Both since 1970.
    not_before: Duration,
    not_after: Duration,
}

/// How a certificate stands at some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Good,
    NotYet,
    Expired,
}

impl Validity {
    #[must_use]
    pub fn at(&self, now: Micros) -> Standing {
        let now = Duration::from_micros(u64::try_from(now.0).unwrap_or(0));
        if now < self.not_before {
            Standing::NotYet
        } else if now > self.not_after {
            Standing::Expired
        } else {
            Standing::Good
        }
    }

    /// Seconds since 1970.
    #[must_use]
    pub const fn ends(&self) -> u64 {
        self.not_after.as_secs()
    }

    /// What an operator should be told of it. No reason to refuse: clients decide what they trust, and a daemon that does not come
    /// back from a restart for a date would take the socket's users with it.
    #[must_use]
    pub fn warning(&self, now: Micros, certificate: &Path) -> Option<String> {
        let what = match self.at(now) {
            Standing::Good => return None,
            Standing::NotYet => "is not valid yet (is the host's clock right?)",
            Standing::Expired => "has expired",
        };
        Some(format!(
            "the TLS certificate {} {what}, and clients will refuse it: put a new one there, and send the daemon SIGHUP",
            certificate.display()
        ))
    }
}

/// Whose turn it is: the certificate that new connections are greeted with.
pub struct Certificates {
    pair: Pair,
    present: ArcSwap<ServerConfig>,
}

impl Certificates {
    /// Reads and checks both files.
    ///
    /// # Errors
    /// [`TlsError`], each of them.
    pub fn open(pair: Pair) -> Result<(Self, Validity), TlsError> {
        let (config, validity) = read(&pair)?;
        Ok((Self { pair, present: ArcSwap::from_pointee(config) }, validity))
    }

    /// Reads both files anew: connections from now on get what they hold, those that there are go on as they began.
    ///
    /// # Errors
    /// As [`Certificates::open`]; the certificate stays as it was.
    pub fn reload(&self) -> Result<Validity, TlsError> {
        let (config, validity) = read(&self.pair)?;
        self.present.store(Arc::new(config));
        Ok(validity)
    }

    #[must_use]
    pub fn present(&self) -> Arc<ServerConfig> {
        self.present.load_full()
    }

    #[must_use]
    pub fn certificate(&self) -> &Path {
        &self.pair.certificate
    }
}

/// Whether a pair could be served with, and how long its certificate is good.
///
/// # Errors
/// As [`Certificates::open`].
pub fn check(pair: &Pair) -> Result<Validity, TlsError> {
    read(pair).map(|(_, validity)| validity)
}

fn read(pair: &Pair) -> Result<(ServerConfig, Validity), TlsError> {
    let chain = read_chain(&pair.certificate)?;
    let validity = validity(&chain, &pair.certificate)?;
    let key = read_key(&pair.key)?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let certified = CertifiedKey::from_der(chain, key, &provider).map_err(|error| refusal(error, pair))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(TlsError::Unusable)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok((config, validity))
}

fn refusal(error: rustls::Error, pair: &Pair) -> TlsError {
    match error {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            TlsError::Mismatch { certificate: pair.certificate.clone(), key: pair.key.clone() }
        }
        rustls::Error::InvalidCertificate(_) => TlsError::BadCertificate { path: pair.certificate.clone() },
        // The provider says that it knows no such key in words only.
        rustls::Error::General(_) => TlsError::UnsupportedKey { path: pair.key.clone() },
        error => TlsError::Unusable(error),
    }
}

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    const WHAT: &str = "TLS certificate";
    let file = open(WHAT, path)?;
    let pem = contents(WHAT, path, &file)?;
    let chain: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(&pem).collect();
    let chain = chain.map_err(|_| TlsError::BrokenPem { what: WHAT, path: path.to_owned() })?;
    if chain.is_empty() {
        return Err(TlsError::NoCertificate { path: path.to_owned() });
    }
    Ok(chain)
}

fn validity(chain: &[CertificateDer<'static>], path: &Path) -> Result<Validity, TlsError> {
    let bad = || TlsError::BadCertificate { path: path.to_owned() };
    let first = chain.first().ok_or_else(bad)?;
    let certificate = x509_cert::Certificate::from_der(first).map_err(|_| bad())?;
    let validity = certificate.tbs_certificate().validity();
    Ok(Validity {
        not_before: validity.not_before.to_unix_duration(),
        not_after: validity.not_after.to_unix_duration(),
    })
}

/// The key may be a link and its group's, which the master key may not: certbot and Kubernetes give links, and Debian a group
/// (`ssl-cert`). A TLS key is replaced in minutes; the master key never is, by itself. What others may read or write is refused all the same:
/// nothing hands a key to a whole host on purpose.
fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    const WHAT: &str = "TLS key";
    let file = open(WHAT, path)?;
    let mode = file.metadata().map_err(|cause| unreadable(WHAT, path, cause))?.mode();
    let open_key = |why| TlsError::OpenKey { path: path.to_owned(), why };
    if mode & 0o004 != 0 {
        return Err(open_key("can be read by every user of the host"));
    }
    if mode & 0o022 != 0 {
        return Err(open_key("can be written by others than its owner"));
    }
    let pem = contents(WHAT, path, &file)?;
    match PrivateKeyDer::from_pem_slice(&pem) {
        Ok(key) => Ok(key),
        Err(pem::Error::NoItemsFound) => Err(TlsError::NoKey { path: path.to_owned() }),
        Err(_) => Err(TlsError::BrokenPem { what: WHAT, path: path.to_owned() }),
    }
}

fn open(what: &'static str, path: &Path) -> Result<std::fs::File, TlsError> {
    let unreadable = |cause| unreadable(what, path, cause);
    // Not blocking: a pipe would hold the daemon until somebody writes to it.
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC | rustix::fs::OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, rustix::fs::Mode::empty()).map_err(|error| unreadable(error.into()))?;
    let file = std::fs::File::from(file);
    if !file.metadata().map_err(unreadable)?.is_file() {
        return Err(unreadable(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")));
    }
    Ok(file)
}

fn contents(what: &'static str, path: &Path, file: &std::fs::File) -> Result<Zeroizing<Vec<u8>>, TlsError> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(64 * 1024));
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|cause| unreadable(what, path, cause))?;
    if bytes.len() as u64 > MAX_BYTES {
        let cause = io::Error::new(io::ErrorKind::FileTooLarge, "it has more than 1 MiB");
        return Err(unreadable(what, path, cause));
    }
    Ok(bytes)
}

fn unreadable(what: &'static str, path: &Path, cause: io::Error) -> TlsError {
    TlsError::Unreadable { what, path: path.to_owned(), cause }
}
