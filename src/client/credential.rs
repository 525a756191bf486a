//! The credential that a client presents: a token of the daemon's, or what else it takes as a bearer.

use std::io::Read;
use std::path::{Path, PathBuf};

use http::HeaderValue;
use zeroize::Zeroizing;

/// Far more than a token has; a JWT can have some KiB.
const MAX_BYTES: u64 = 16 * 1024;

/// Why there is no credential. No message holds a byte of one.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    #[error("the token file {} cannot be read: {cause}", path.display())]
    Unreadable { path: PathBuf, cause: std::io::Error },
    #[error("{from} holds no token: it must be one line of visible ASCII characters, at most 16 KiB")]
    Malformed { from: String },
}

/// A bearer credential (RFC 6750).
pub struct Credential(HeaderValue);

impl Credential {
    /// Reads it from a file, where a line's end may follow it. Its mode is not looked at: an orchestrator that mounts one makes it as it
    /// does, and nobody could change it.
    ///
    /// # Errors
    /// [`CredentialError`], each of them.
    pub fn of_file(path: &Path) -> Result<Self, CredentialError> {
        let unreadable = |cause| CredentialError::Unreadable { path: path.to_owned(), cause };
        let mut bytes = Zeroizing::new(Vec::with_capacity(1024));
        let file = std::fs::File::open(path).map_err(unreadable)?;
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        Self::of(&bytes).ok_or_else(|| CredentialError::Malformed { from: path.display().to_string() })
    }

    /// # Errors
    /// [`CredentialError::Malformed`]; `from` says where the text was.
    pub fn of_text(text: &[u8], from: &str) -> Result<Self, CredentialError> {
        Self::of(text).ok_or_else(|| CredentialError::Malformed { from: from.to_owned() })
    }

    fn of(bytes: &[u8]) -> Option<Self> {
        let line = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let fits = !line.is_empty() && line.len() as u64 <= MAX_BYTES && line.iter().all(u8::is_ascii_graphic);
        if !fits {
            return None;
        }
        let header = Zeroizing::new([b"Bearer ", line].concat());
        let mut header = HeaderValue::from_bytes(&header).ok()?;
        // Not in any Debug, and not in a table of HTTP/2's.
        header.set_sensitive(true);
        Some(Self(header))
    }

    pub(super) const fn header(&self) -> &HeaderValue {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_is_one_visible_line_and_is_shown_nowhere() {
        for good in ["ctn_x", "ctn_x\n", "ctn_x\r\n"] {
            let credential = Credential::of_text(good.as_bytes(), "X").ok().unwrap();
            assert_eq!(credential.header().as_bytes(), b"Bearer ctn_x");
            assert!(!format!("{:?}", credential.header()).contains("ctn_x"));
        }
        for bad in ["", "\n", "a b", "a\nb", "a\n\n", "é", &"a".repeat(16 * 1024 + 1)] {
            let error = Credential::of_text(bad.as_bytes(), "CONTAINARIUM_TOKEN").err().unwrap();
            assert!(error.to_string().starts_with("CONTAINARIUM_TOKEN holds no token"), "{error}");
        }
        let missing = Credential::of_file(Path::new("/nowhere/token"));
        assert!(matches!(missing, Err(CredentialError::Unreadable { .. })));
    }
}
