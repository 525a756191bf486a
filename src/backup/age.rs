//! Copies as age files (age-encryption.org/v1), for whoever holds an age identity. Written with armor, so that one can also lie in a
//! password manager; read with and without. Only X25519 recipients (`age1…`): plugins run other programs, and passphrases need a
//! terminal; `age -d` opens such a file.

use std::fmt;
use std::io::{Read, Write};
use std::str::FromStr;

use ::age::armor::{ArmoredReader, ArmoredWriter, Format};
use ::age::{DecryptError, Decryptor, Encryptor, IdentityFile, NoCallbacks, x25519};

use super::copy::read_bounded;
use super::error::BackupError;
use crate::crypto::KeyfileImage;

/// Whom a copy is made for.
#[derive(Clone)]
pub struct Recipient(x25519::Recipient);

/// The identities that may open a copy. They have no `Debug`: they are keys.
pub struct Identities(Vec<Box<dyn ::age::Identity + Send + Sync>>);

/// Why an age file was not made or not opened.
#[derive(Debug, thiserror::Error)]
pub enum AgeError {
    #[error(
        "not a recipient: it must be an X25519 recipient, age1 and 58 more characters (`age-keygen -y IDENTITY_FILE` prints it)"
    )]
    NotARecipient,
    #[error(
        "this is an identity, the secret half: give the recipient, which begins with age1 (`age-keygen -y IDENTITY_FILE` prints it)"
    )]
    IdentityAsRecipient,
    #[error("no recipient was given, so nobody could open the copy")]
    NoRecipients,
    #[error(
        "line {line} of the identity file is no AGE-SECRET-KEY-1 identity; plugin and SSH identities are opened with `age -d` only"
    )]
    NotAnIdentity { line: usize },
    #[error("the identity file holds no identity")]
    NoIdentities,
    #[error("the identity file is itself encrypted: decrypt it first (`age -d IDENTITY_FILE`)")]
    EncryptedIdentities,
    #[error("the age file is encrypted with a passphrase; `age -d FILE` opens it, and what comes out is the copy")]
    Passphrase,
    #[error("none of the {count} identities opens this age file; it was made for another recipient")]
    NoMatch { count: usize },
    #[error("the age file is damaged, cut short or changed: {what}. Copy it again from where it is kept")]
    Damaged { what: &'static str },
    #[error("what is in the age file has more than {limit} bytes, which no key file has")]
    ContentTooLong { limit: usize },
    #[error("the age file could not be made")]
    NotMade,
}

impl FromStr for Recipient {
    type Err = AgeError;

    fn from_str(text: &str) -> Result<Self, AgeError> {
        let text = text.trim();
        if text.get(..4).is_some_and(|start| start.eq_ignore_ascii_case("age-")) {
            return Err(AgeError::IdentityAsRecipient);
        }
        text.parse().map(Self).map_err(|_| AgeError::NotARecipient)
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Identities {
    /// Reads an identity file, as age-keygen writes it.
    ///
    /// # Errors
    /// `Read`, `TooLong`; `Age` with `NotAnIdentity`, `NoIdentities`, `EncryptedIdentities`.
    pub fn read(reader: &mut impl Read) -> Result<Self, BackupError> {
        let bytes = read_bounded(reader, IDENTITIES_LIMIT)?;
        if is_age(&bytes) {
            return Err(AgeError::EncryptedIdentities.into());
        }
        // Where the line is: the library's error names it in words only.
        let line = bytes.split(|byte| *byte == b'\n').position(|line| {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            !line.is_empty() && line.first() != Some(&b'#') && IdentityFile::from_buffer(line).is_err()
        });
        if let Some(at) = line {
            return Err(AgeError::NotAnIdentity { line: at + 1 }.into());
        }
        let file: IdentityFile<NoCallbacks> =
            IdentityFile::from_buffer(bytes.as_slice()).map_err(|_| AgeError::NoIdentities)?;
        match file.into_identities() {
            Ok(identities) if !identities.is_empty() => Ok(Self(identities)),
            _ => Err(AgeError::NoIdentities.into()),
        }
    }
}

/// The most bytes that an identity file may have: hundreds of identities.
pub const IDENTITIES_LIMIT: usize = 65_536;

/// Whether it begins as an age file does, with or without armor.
pub(super) fn is_age(bytes: &[u8]) -> bool {
    let text = bytes.trim_ascii_start();
    text.starts_with(b"age-encryption.org/") || text.starts_with(b"-----BEGIN AGE ENCRYPTED FILE-----")
}

/// A copy that each of the recipients can open.
///
/// # Errors
/// `NoRecipients`, `NotMade`.
pub fn export(image: &KeyfileImage, recipients: &[Recipient]) -> Result<String, AgeError> {
    if recipients.is_empty() {
        return Err(AgeError::NoRecipients);
    }
    let write = || {
        let armor = ArmoredWriter::wrap_output(Vec::new(), Format::AsciiArmor)?;
        let mut armored = encrypted(image, recipients, armor)?.finish()?;
        armored.flush()?;
        Ok::<_, std::io::Error>(armored)
    };
    let armored = write().map_err(|_| AgeError::NotMade)?;
    String::from_utf8(armored).map_err(|_| AgeError::NotMade)
}

/// The same without armor: for a place that is base64 already.
///
/// # Errors
/// As [`export`].
pub fn seal(image: &KeyfileImage, recipients: &[Recipient]) -> Result<Vec<u8>, AgeError> {
    if recipients.is_empty() {
        return Err(AgeError::NoRecipients);
    }
    encrypted(image, recipients, Vec::new()).map_err(|_| AgeError::NotMade)
}

fn encrypted<W: Write>(image: &KeyfileImage, recipients: &[Recipient], to: W) -> std::io::Result<W> {
    let of = recipients.iter().map(|recipient| &recipient.0 as &dyn ::age::Recipient);
    let encryptor = Encryptor::with_recipients(of).map_err(std::io::Error::other)?;
    let mut file = encryptor.wrap_output(to)?;
    file.write_all(image.key_bytes())?;
    file.finish()
}

/// Opens an age file.
///
/// # Errors
/// `Passphrase`, `NoMatch`, `Damaged`, `ContentTooLong`.
pub fn open(bytes: &[u8], identities: &Identities) -> Result<KeyfileImage, AgeError> {
    let decryptor = Decryptor::new_buffered(ArmoredReader::new(bytes.trim_ascii_start()))
        .map_err(|error| refusal(&error, identities))?;
    if decryptor.is_scrypt() {
        return Err(AgeError::Passphrase);
    }
    let mut content = decryptor
        .decrypt(identities.0.iter().map(|identity| &**identity as &dyn ::age::Identity))
        .map_err(|error| refusal(&error, identities))?;
    let image =
        KeyfileImage::read_from(&mut content).map_err(|_| AgeError::Damaged { what: "its content fails its check" })?;
    if image.len() > KeyfileImage::MAX_LEN {
        return Err(AgeError::ContentTooLong { limit: KeyfileImage::MAX_LEN });
    }
    Ok(image)
}

fn refusal(error: &DecryptError, identities: &Identities) -> AgeError {
    match error {
        DecryptError::NoMatchingKeys => AgeError::NoMatch { count: identities.0.len() },
        DecryptError::InvalidMac => AgeError::Damaged { what: "its header fails its check" },
        DecryptError::UnknownFormat => AgeError::Damaged { what: "its version of the format is not known" },
        DecryptError::Io(_) => AgeError::Damaged { what: "it ends early or its armor is broken" },
        _ => AgeError::Damaged { what: "its header is not readable" },
    }
}
