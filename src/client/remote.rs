//! A daemon elsewhere, by its URL: over TLS, or over plain HTTP on this host alone.

use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::Uri;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::ClientError;
use super::transport::Stream;

/// Why a server cannot be asked as it was named.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    #[error(
        "the server must be https://HOST or https://HOST:PORT, or http on 127.0.0.1, [::1] or localhost, and nothing after that"
    )]
    Url,
    #[error("the CA certificate {} cannot be read: {cause}", path.display())]
    Unreadable { path: PathBuf, cause: std::io::Error },
    #[error("the CA certificate {} holds none: it must have a section BEGIN CERTIFICATE, as PEM", path.display())]
    NoCertificate { path: PathBuf },
    #[error("a CA certificate is of no use with a server over http, which has none")]
    CaForPlain,
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

/// A server, and how it is trusted.
pub struct Remote {
    /// As the URL has it, for the Host header and for messages.
    authority: String,
    /// Without brackets.
    host: String,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Remote {
    /// `ca` replaces the host's own list of authorities: what a private authority signed is then trusted, and nothing else.
    ///
    /// # Errors
    /// [`RemoteError`], each of them.
    pub fn new(url: &str, ca: Option<&Path>) -> Result<Self, RemoteError> {
        let uri: Uri = url.parse().map_err(|_| RemoteError::Url)?;
        let bare = matches!(uri.path(), "" | "/") && uri.query().is_none() && !url.contains(['@', '#']);
        let authority = uri.authority().filter(|_| bare).ok_or(RemoteError::Url)?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let (port, tls) = match uri.scheme_str() {
            Some("https") => {
                let name = ServerName::try_from(host.clone()).map_err(|_| RemoteError::Url)?;
                (443, Some((TlsConnector::from(Arc::new(trusting(ca)?)), name)))
            }
            // What is sent has values and credentials in it.
            Some("http") if is_this_host(&host) => (80, None),
            _ => return Err(RemoteError::Url),
        };
        if tls.is_none() && ca.is_some() {
            return Err(RemoteError::CaForPlain);
        }
        let port = authority.port_u16().unwrap_or(port);
        Ok(Self { authority: authority.to_string(), host, port, tls })
    }

    pub(super) fn authority(&self) -> &str {
        &self.authority
    }

    pub(super) async fn connect(&self) -> Result<Box<dyn Stream>, ClientError> {
        let connected = TcpStream::connect((self.host.as_str(), self.port)).await;
        let stream = connected.map_err(|cause| ClientError::NoServer { server: self.authority.clone(), cause })?;
        // A request is written whole; it is slower where this cannot be set, no more.
        let _slower = stream.set_nodelay(true);
        let Some((connector, name)) = &self.tls else { return Ok(Box::new(stream)) };
        match connector.connect(name.clone(), stream).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(cause) => Err(self.not_greeted(cause)),
        }
    }

    fn not_greeted(&self, cause: std::io::Error) -> ClientError {
        let server = self.authority.clone();
        let tls = cause.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match tls {
            Some(error @ rustls::Error::InvalidCertificate(_)) => {
                ClientError::Untrusted { server, why: error.to_string() }
            }
            Some(error) => ClientError::NoTls { server, why: error.to_string() },
            None if cause.kind() == ErrorKind::UnexpectedEof => {
                ClientError::NoTls { server, why: "the server closed the connection".to_owned() }
            }
            None => ClientError::NoServer { server, cause },
        }
    }
}

fn is_this_host(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn trusting(ca: Option<&Path>) -> Result<ClientConfig, RemoteError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?;
    let builder = match ca {
        Some(path) => builder.with_root_certificates(roots(path)?),
        None => builder.with_platform_verifier()?,
    };
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn roots(path: &Path) -> Result<RootCertStore, RemoteError> {
    let pem = std::fs::read(path).map_err(|cause| RemoteError::Unreadable { path: path.to_owned(), cause })?;
    let none = || RemoteError::NoCertificate { path: path.to_owned() };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        roots.add(certificate.map_err(|_| none())?).map_err(|_| none())?;
    }
    if roots.is_empty() { Err(none()) } else { Ok(roots) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_https_or_on_this_host_and_has_no_path() {
        for (url, authority, port) in [
            ("https://vault.example", "vault.example", 443),
            ("https://vault.example:8443/", "vault.example:8443", 8443),
            ("https://[2001:db8::1]:1", "[2001:db8::1]:1", 1),
            ("http://127.0.0.1:8080", "127.0.0.1:8080", 8080),
            ("http://localhost", "localhost", 80),
        ] {
            let remote = Remote::new(url, None).ok().unwrap();
            assert_eq!(
                (remote.authority(), remote.port, remote.tls.is_some()),
                (authority, port, url.contains("s://"))
            );
        }
        for url in [
            "",
            "vault.example",
            "http://vault.example",
            "http://127.0.0.1.example",
            "https://vault.example/v1",
            "https://vault.example?x=1",
            "https://user:password@vault.example",
            "ftp://vault.example",
            "https://",
        ] {
            assert!(matches!(Remote::new(url, None), Err(RemoteError::Url)), "{url}");
        }
    }

    #[test]
    fn a_ca_file_must_be_there_and_hold_a_certificate_and_be_of_use() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        let new = |url| Remote::new(url, Some(&path));
        assert!(matches!(new("https://vault.example"), Err(RemoteError::Unreadable { .. })));
        std::fs::write(&path, "none").unwrap();
        assert!(matches!(new("https://vault.example"), Err(RemoteError::NoCertificate { .. })));
        assert!(matches!(new("http://127.0.0.1"), Err(RemoteError::CaForPlain)));
    }
}
