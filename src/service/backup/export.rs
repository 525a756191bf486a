//! A copy in the operator's own hands: as an age file, on paper, or the raw bytes. In the command's own process.

use std::io::{self, Write};

use crate::backup::age::{self, AgeError, Recipient};
use crate::backup::paper;
use crate::crypto::KeyfileImage;
use crate::keys::keyfile::{KeyFiles, KeyfileError, MainFile};
use crate::model::Kid;
use crate::store::{Store, StoreError};

use super::{Class, kids};

/// How a copy is written.
pub enum As {
    /// For these recipients, `age1…`.
    Age(Vec<String>),
    Paper,
    /// The key file's bytes as they are; for a pipe.
    Raw,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    pub kid: Kid,
    /// Further keys that the database needs; none where it could not be read.
    pub others: Vec<Kid>,
}

/// Why nothing was exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error("recipient {number}: {cause}")]
    Recipient { number: usize, cause: AgeError },
    #[error(transparent)]
    Age(AgeError),
    #[error("there is no key file here: {path}")]
    NoKeyFile { path: String },
    #[error("master key {kid} lies in no key file here")]
    NotHere { kid: Kid },
    #[error(transparent)]
    KeyFile(#[from] KeyfileError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the key in use is not that of the database: {found} lies in the key file's place, and it needs {}", kids(.needed))]
    Other { found: Kid, needed: Vec<Kid> },
    #[error("the copy cannot be written: {0}")]
    Write(#[source] io::Error),
}

impl ExportError {
    #[must_use]
    pub const fn class(&self) -> Class {
        match self {
            Self::Recipient { .. } => Class::Invalid,
            Self::NoKeyFile { .. } | Self::NotHere { .. } => Class::NotFound,
            Self::Store(_) => Class::Unavailable,
            Self::Other { .. } => Class::Conflict,
            Self::Age(_) | Self::KeyFile(_) | Self::Write(_) => Class::Failed,
        }
    }
}

/// Writes a copy of a key: of `kid`, else of the database's active one, or, where there is no database to ask, of the one in the key
/// file's place.
///
/// # Errors
/// [`ExportError`].
pub async fn export(
    store: Option<&dyn Store>,
    files: &KeyFiles,
    kid: Option<Kid>,
    form: As,
    to: &mut (impl Write + Send),
) -> Result<Exported, ExportError> {
    let form = parsed(form)?;
    let needed = match store {
        Some(store) => store.survey().await?.needed(),
        None => Vec::new(),
    };
    let kid = match (kid, needed.first()) {
        (Some(kid), _) => kid,
        (None, Some(active)) => *active,
        (None, None) => in_use(files)?,
    };
    let image = files.image(kid)?.ok_or_else(|| not_here(files, kid, &needed))?;
    write(&image, kid, &form, to)?;
    Ok(Exported { kid, others: needed.into_iter().filter(|other| *other != kid).collect() })
}

enum Parsed {
    Age(Vec<Recipient>),
    Paper,
    Raw,
}

fn parsed(form: As) -> Result<Parsed, ExportError> {
    match form {
        As::Age(recipients) => {
            let recipients = (1..)
                .zip(&recipients)
                .map(|(number, text)| text.parse().map_err(|cause| ExportError::Recipient { number, cause }));
            Ok(Parsed::Age(recipients.collect::<Result<_, _>>()?))
        }
        As::Paper => Ok(Parsed::Paper),
        As::Raw => Ok(Parsed::Raw),
    }
}

fn in_use(files: &KeyFiles) -> Result<Kid, ExportError> {
    match files.scan().main {
        MainFile::Key(key) => Ok(key.kid),
        MainFile::Missing => Err(ExportError::NoKeyFile { path: files.path().display().to_string() }),
        MainFile::Bad(error) => Err(error.into()),
    }
}

fn not_here(files: &KeyFiles, kid: Kid, needed: &[Kid]) -> ExportError {
    match files.scan().main {
        MainFile::Bad(error) => error.into(),
        MainFile::Key(key) if needed.first() == Some(&kid) => {
            ExportError::Other { found: key.kid, needed: needed.to_vec() }
        }
        MainFile::Key(_) | MainFile::Missing => ExportError::NotHere { kid },
    }
}

fn write(image: &KeyfileImage, kid: Kid, form: &Parsed, to: &mut impl Write) -> Result<(), ExportError> {
    let written = match form {
        Parsed::Age(recipients) => to.write_all(age::export(image, recipients).map_err(ExportError::Age)?.as_bytes()),
        Parsed::Paper => to.write_all(paper::write(image, kid).as_bytes()),
        Parsed::Raw => image.write_to(to),
    };
    written.and_then(|()| to.flush()).map_err(ExportError::Write)
}
