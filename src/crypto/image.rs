//! A key file's content as one value that keyfile, provider and backup can carry without seeing its bytes.

use std::io::{self, Read, Write};

use zeroize::Zeroizing;

use super::secret::{Bytes32, MasterKey};

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
}

impl KeyfileImage {
    /// What a key file may have at most; more is not read.
    pub const MAX_LEN: usize = 65_536;

    /// The file image of a master key: its 32 bytes.
    #[must_use]
    pub fn of(master: &MasterKey) -> Self {
        Self(Zeroizing::new(master.0.bytes().to_vec()))
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

    /// The master key that the file holds.
    ///
    /// # Errors
    /// Each [`ImageError`]: what it is instead.
    pub fn master(&self) -> Result<MasterKey, ImageError> {
        let bytes: &[u8; 32] = match self.0.as_slice().try_into() {
            Ok(bytes) => bytes,
            Err(_) => return Err(self.damage()),
        };
        if bytes.iter().all(|byte| *byte == 0) {
            return Err(ImageError::AllZero);
        }
        Ok(MasterKey(Bytes32::filled(|out| out.copy_from_slice(bytes))))
    }

    fn damage(&self) -> ImageError {
        let length = self.0.len();
        // U+FFFD in UTF-8: what a text-mode copy puts for each byte that is not UTF-8. 32 random bytes become 57 to 60.
        let replaced = self.0.windows(3).any(|window| window == [0xEF, 0xBF, 0xBD]);
        let text = self.0.trim_ascii_end();
        if length == 0 {
            ImageError::Empty
        } else if length > Self::MAX_LEN {
            ImageError::TooLong { limit: Self::MAX_LEN }
        } else if replaced || (57..=60).contains(&length) {
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
