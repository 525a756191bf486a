//! A key file's content as one value that keyfile, provider and backup can carry without seeing its bytes.

use std::io::{self, Read, Write};

use zeroize::Zeroizing;

use super::secret::{Bytes32, MasterKey};
use crate::model::{Kid, WrappedError, WrappedMaster};

/// The bytes of a key file, wiped on drop. Their owner can read them in, write them out and ask what they are.
pub struct KeyfileImage(Zeroizing<Vec<u8>>);

/// What a key file holds instead of a key. No variant carries a byte of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    #[error("it is empty (0 bytes); a copy that failed leaves such a file")]
    Empty,
    #[error(
        "it has {length} bytes and was damaged by a copy made in text mode: bytes that are not UTF-8 were replaced \
         (as `gcloud secrets versions access … | tee` does; `--out-file=FILE` copies exactly)"
    )]
    TextModeCopy { length: usize },
    #[error(
        "it has {length} bytes and looks like base64 text; a key file holds the 32 bytes themselves (`base64 -d` gives them)"
    )]
    Base64Text { length: usize },
    #[error(
        "it has {length} bytes and looks like hexadecimal text; a key file holds the 32 bytes themselves (`xxd -r -p` gives them)"
    )]
    HexText { length: usize },
    #[error("it has more than {limit} bytes; a master key has exactly 32")]
    TooLong { limit: usize },
    #[error("it has {length} bytes; a master key has exactly 32")]
    WrongLength { length: usize },
    #[error("its 32 bytes are all zero; a file system that lost its content leaves such a file")]
    AllZero,
    #[error("it begins as the JSON of a wrapped master key, and is none: {0}")]
    BadWrapped(#[from] WrappedError),
    /// It is good, and not the key itself.
    #[error("it holds master key {kid} wrapped, and not the 32 bytes of the key itself")]
    Wrapped { kid: Kid },
}

/// What a good key file holds.
pub enum Content {
    /// The key itself.
    Raw(MasterKey),
    /// What opens to it.
    Wrapped(WrappedMaster),
}

impl Content {
    /// Of a raw key its own; of a wrapped one the kid that it says.
    #[must_use]
    pub fn kid(&self) -> Kid {
        match self {
            Self::Raw(master) => super::kid(master),
            Self::Wrapped(wrapped) => wrapped.kid,
        }
    }
}

impl KeyfileImage {
    /// What a key file may have at most; more is not read.
    pub const MAX_LEN: usize = 65_536;

    /// The file image of a master key: its 32 bytes.
    #[must_use]
    pub fn of(master: &MasterKey) -> Self {
        Self(Zeroizing::new(master.0.bytes().to_vec()))
    }

    /// The file image of a wrapped master key.
    #[must_use]
    pub fn of_wrapped(wrapped: &WrappedMaster) -> Self {
        Self(Zeroizing::new(wrapped.to_json()))
    }

    /// What came from a copy, in the allocation that it came in.
    #[must_use]
    pub const fn new(bytes: Zeroizing<Vec<u8>>) -> Self {
        Self(bytes)
    }

    /// Reads at most [`Self::MAX_LEN`] bytes and one more, into one allocation that is never moved.
    ///
    /// # Errors
    /// The reader's.
    pub fn read_from(reader: &mut impl Read) -> io::Result<Self> {
        let mut bytes = Zeroizing::new(vec![0; Self::MAX_LEN + 1]);
        let mut filled = 0;
        while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match reader.read(rest) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        bytes.truncate(filled);
        Ok(Self(bytes))
    }

    /// The bytes, for gcp (which sends them) and backup (which writes them in another form) only; the doors test holds that.
    #[must_use]
    pub fn key_bytes(&self) -> &[u8] {
        &self.0
    }

    /// # Errors
    /// The writer's.
    pub fn write_to(&self, writer: &mut impl Write) -> io::Result<()> {
        writer.write_all(&self.0)
    }

    /// How many bytes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The SHA-256 of the bytes: what a copy is known by, whatever form of key it holds (raw, or later wrapped). Public: a key has
    /// 256 bits that nobody guesses.
    #[must_use]
    pub fn sha256(&self) -> [u8; 32] {
        use sha2::{Digest, Sha256};
        Sha256::digest(self.0.as_slice()).into()
    }

    /// Whether both hold the same bytes, in constant time.
    #[must_use]
    pub fn same_as(&self, other: &Self) -> bool {
        use subtle::ConstantTimeEq;
        self.0.ct_eq(&other.0).into()
    }

    /// What the file holds. Exactly 32 bytes are the key itself; anything else must be a wrapped one.
    ///
    /// # Errors
    /// Each [`ImageError`] but `Wrapped`: what it is instead.
    pub fn content(&self) -> Result<Content, ImageError> {
        match self.0.as_slice().try_into() {
            Ok(bytes) => raw(bytes).map(Content::Raw),
            Err(_) if self.is_meant_as_wrapped() => Ok(Content::Wrapped(WrappedMaster::parse(&self.0)?)),
            Err(_) => Err(self.damage()),
        }
    }

    /// The master key that the file holds, where it is the key itself.
    ///
    /// # Errors
    /// Each [`ImageError`]: what it is instead.
    pub fn master(&self) -> Result<MasterKey, ImageError> {
        match self.content()? {
            Content::Raw(master) => Ok(master),
            Content::Wrapped(wrapped) => Err(ImageError::Wrapped { kid: wrapped.kid }),
        }
    }

    /// Good or not. A raw key that went through a text-mode copy may begin as JSON does.
    fn is_meant_as_wrapped(&self) -> bool {
        self.0.len() <= Self::MAX_LEN && !self.has_replacements() && WrappedMaster::is_meant_by(&self.0)
    }

    /// U+FFFD in UTF-8: what a text-mode copy puts for each byte that is not UTF-8. 32 random bytes become 57 to 60.
    fn has_replacements(&self) -> bool {
        self.0.windows(3).any(|window| window == [0xEF, 0xBF, 0xBD])
    }

    /// The master key that is still whole in a file that is no good key file: an editor's newline came after it. For finding what has to be
    /// destroyed, never for use.
    #[must_use]
    pub fn remains(&self) -> Option<MasterKey> {
        let bytes = self.0.as_slice();
        let key = bytes.strip_suffix(b"\r\n").or_else(|| bytes.strip_suffix(b"\n")).filter(|key| key.len() == 32);
        let key: &[u8; 32] = key.unwrap_or(bytes).try_into().ok()?;
        key.iter().any(|byte| *byte != 0).then(|| MasterKey(Bytes32::filled(|out| out.copy_from_slice(key))))
    }

    fn damage(&self) -> ImageError {
        let length = self.0.len();
        let text = self.0.trim_ascii_end();
        if length == 0 {
            ImageError::Empty
        } else if length > Self::MAX_LEN {
            ImageError::TooLong { limit: Self::MAX_LEN }
        } else if self.has_replacements() || (57..=60).contains(&length) {
            ImageError::TextModeCopy { length }
        } else if text.len() == 64 && text.iter().all(u8::is_ascii_hexdigit) {
            ImageError::HexText { length }
        } else if matches!(text.len(), 43 | 44)
            && text.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'-' | b'_' | b'='))
        {
            ImageError::Base64Text { length }
        } else {
            ImageError::WrongLength { length }
        }
    }
}

fn raw(bytes: &[u8; 32]) -> Result<MasterKey, ImageError> {
    if bytes.iter().all(|byte| *byte == 0) {
        return Err(ImageError::AllZero);
    }
    Ok(MasterKey(Bytes32::filled(|out| out.copy_from_slice(bytes))))
}
