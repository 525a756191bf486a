//! Google's side: names of resources, and endpoints that key bytes may be sent to.

use std::fmt;
use std::net::IpAddr;

use http::Uri;

use crate::model::{KmsKey, SecretPath};

/// The variables that Google's credentials are found by, and the way to Google: what google-cloud-auth 1.18 and the transport under it read.
/// `HOME` is where `gcloud auth application-default login` writes; the last ones are of a workload identity that AWS vouches for.
pub(super) const VARIABLES: [&str; 22] = [
    "HOME",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "GOOGLE_CLOUD_QUOTA_PROJECT",
    "GOOGLE_CLOUD_UNIVERSE_DOMAIN",
    "GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES",
    "GCE_METADATA_HOST",
    "HTTPS_PROXY",
    "https_proxy",
    "HTTP_PROXY",
    "http_proxy",
    "ALL_PROXY",
    "all_proxy",
    "NO_PROXY",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "PATH",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
];

/// `[backup.gcp]`: where copies of the master key go.
pub struct BackupGcp {
    /// At least one, each once; the primary one first.
    pub secrets: Vec<SecretPath>,
    /// Google's own where absent.
    pub endpoint: Option<Endpoint>,
    pub first_start: FirstStart,
}

/// What the start that makes the master key does about its backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstStart {
    Warn,
    Push,
}

/// `[kms.gcp]`: what wraps the master key at rest.
pub struct KmsGcp {
    pub key: KmsKey,
    /// Google's own where absent.
    pub endpoint: Option<Endpoint>,
}

/// Where a client of Google's speaks to: https, or http on this machine. Nothing else keeps a key that is sent there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint(Box<str>);

impl Endpoint {
    /// # Errors
    /// The rule, where it does not hold.
    pub fn parse(text: &str) -> Result<Self, String> {
        let holds = text.parse::<Uri>().is_ok_and(|uri| {
            let bare = matches!(uri.path(), "" | "/") && uri.query().is_none() && !text.contains(['@', '#']);
            let host = uri.host().unwrap_or_default();
            bare && !host.is_empty()
                && match uri.scheme_str() {
                    Some("https") => true,
                    Some("http") => is_loopback(host),
                    _ => false,
                }
        });
        let rule =
            "it must be https://HOST or https://HOST:PORT, or http on 127.0.0.1 or [::1], and nothing after that";
        if holds { Ok(Self(text.trim_end_matches('/').into())) } else { Err(rule.to_owned()) }
    }
}

/// A line for each.
pub(super) fn secrets(lines: &str) -> Result<Vec<SecretPath>, String> {
    let mut places = Vec::new();
    for line in lines.lines() {
        let rule = |_| "each must be projects/PROJECT/secrets/SECRET, without a version";
        let place = SecretPath::parse(line).map_err(rule)?;
        if places.contains(&place) {
            return Err("one of them is there twice: a second copy in the same place is no second copy".to_owned());
        }
        places.push(place);
    }
    Ok(places)
}

pub(super) fn kms_key(text: &str) -> Result<KmsKey, String> {
    KmsKey::parse(text).map_err(|error| error.to_string())
}

pub(super) fn first_start(text: &str) -> Result<FirstStart, String> {
    match text {
        "true" => Ok(FirstStart::Push),
        "false" => Ok(FirstStart::Warn),
        _ => Err("it must be true or false".to_owned()),
    }
}

impl Endpoint {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// By address: a name is whatever a resolver says.
pub(super) fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}
