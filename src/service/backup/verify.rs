//! Copies read back and compared, in the command's own process and with its caller's credentials. Nothing is written.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::backup::age::Identities;
use crate::backup::{BackupError, Form, ReadCopy, WhatItWas, read_copy};
use crate::crypto::ImageError;
use crate::keys::keyfile::lies_beside;
use crate::model::{EscrowRecord, Kid, MasterKeyRecord, MasterKeyState};
use crate::store::{Store, StoreError, Survey};

use super::{BadCopy, Class, Destinations, ReadBack, SECRET_MANAGER, Trouble, is_version_of, kids, version_number};

/// What reading back came to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verified {
    pub good: Vec<ReadBack>,
    pub bad: Vec<Unproven>,
    /// Recorded copies that are no good, also of keys that another copy proves.
    pub unread: Vec<BadCopy>,
}

/// A key of which a secret has no copy that was proven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unproven {
    pub kid: Kid,
    pub secret: String,
    pub trouble: Trouble,
    /// Whose fault it is.
    pub blame: Blame,
}

/// What to mend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The copy: there is none, or it is no good.
    Copy,
    /// The way to it: of the copy nothing was learnt.
    Way,
}

/// Why nothing was compared.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the database has never held a key, so no copy belongs to it")]
    NoKey,
    #[error("no secret is configured: `[backup.gcp] secrets` names none")]
    NotConfigured,
    #[error("the identity file: {0}")]
    Identities(#[source] BackupError),
    #[error(transparent)]
    Copy(#[from] BackupError),
    #[error("the copy is not a master key: {0}")]
    Image(#[from] ImageError),
    /// The key file would pass as its own backup.
    #[error(
        "the copy lies on the same file system as the key file, {}: both are lost together, so it is no copy off the host", key_file.display()
    )]
    BesideKeyFile { key_file: PathBuf },
    #[error("the copy holds master key {kid}, which this database has never had; it needs {}", kids(.needed))]
    Unknown { kid: Kid, needed: Vec<Kid> },
}

impl VerifyError {
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Store(_) => Class::Unavailable,
            Self::NoKey => Class::NotFound,
            Self::NotConfigured | Self::Identities(_) => Class::Invalid,
            Self::Copy(error) => error.kind().into(),
            Self::Image(_) | Self::BesideKeyFile { .. } => Class::Failed,
            Self::Unknown { .. } => Class::Conflict,
        }
    }
}

/// Reads back a copy of every needed key from every secret: those that are recorded by their number, the newest first, and where none
/// is recorded (it was uploaded by other means) whichever version holds the key. Of a retired key the recorded copies: backups of the
/// database from its time need it, and it is not destroyed here before a copy was read back.
///
/// # Errors
/// [`VerifyError`] `Store`, `NoKey`, `NotConfigured`.
pub async fn verify(store: &dyn Store, destinations: &Destinations) -> Result<Verified, VerifyError> {
    if destinations.secrets().is_empty() {
        return Err(VerifyError::NotConfigured);
    }
    let survey = store.survey().await?;
    if survey.key_state.is_none() {
        return Err(VerifyError::NoKey);
    }
    let escrows = store.escrows().await?;
    let mut verified = Verified::default();
    for secret in destinations.secrets() {
        for kid in survey.needed().into_iter().chain(retired(&survey, secret, &escrows)) {
            match read_back(destinations, secret, kid, &escrows, &mut verified.unread).await {
                Ok(good) => verified.good.push(good),
                Err((trouble, blame)) => {
                    verified.bad.push(Unproven { kid, secret: secret.clone(), trouble, blame });
                }
            }
        }
    }
    Ok(verified)
}

fn retired(survey: &Survey, secret: &str, escrows: &[EscrowRecord]) -> Vec<Kid> {
    let has_copy = |kid| escrows.iter().any(|escrow| escrow.kid == kid && is_version_of(escrow, secret));
    let retired = survey.master_keys.iter().filter(|key| key.state == MasterKeyState::Retired);
    retired.map(|key| key.kid).filter(|kid| has_copy(*kid)).collect()
}

async fn read_back(
    destinations: &Destinations,
    secret: &str,
    kid: Kid,
    escrows: &[EscrowRecord],
    unread: &mut Vec<BadCopy>,
) -> Result<ReadBack, (Trouble, Blame)> {
    let target = destinations.target(secret).map_err(|error| of_the_way(&error))?;
    let mut recorded: Vec<&EscrowRecord> =
        escrows.iter().filter(|escrow| escrow.kid == kid && is_version_of(escrow, secret)).collect();
    recorded.sort_by_key(|escrow| std::cmp::Reverse(version_number(escrow, secret)));
    let mut first = None;
    for escrow in recorded {
        let Some(number) = version_number(escrow, secret) else { continue };
        let (trouble, blame) = match target.fetch(number).await {
            Ok(fetched) => match fetched.copy.kid() {
                Ok(found) if found == kid && escrow.content_sha256 == Some(fetched.copy.sha256()) => {
                    return Ok(in_secret_manager(kid, fetched.locator, fetched.copy.sha256()));
                }
                Ok(found) => (
                    failed(format!(
                        "{} holds master key {found}, and not what was pushed there of {kid}; somebody changed it",
                        fetched.locator
                    )),
                    Blame::Copy,
                ),
                Err(damage) => (failed(format!("{} is not master key {kid}: {damage}", fetched.locator)), Blame::Copy),
            },
            Err(error) if error.is_of_the_copy() => (Trouble::from(&error), Blame::Copy),
            Err(error) => of_the_way(&error),
        };
        if blame == Blame::Copy
            && let Some(locator) = escrow.locator.clone()
        {
            unread.push(BadCopy { kid, locator, why: trouble.why.clone() });
        }
        // Who may read nothing is told so once, by the newest.
        first.get_or_insert((trouble, blame));
    }
    if let Some(trouble) = first {
        return Err(trouble);
    }
    let search = target.search(&[kid]).await;
    if let Some(found) = search.found.into_iter().next() {
        return Ok(in_secret_manager(kid, found.locator, found.copy.sha256()));
    }
    if let Some(error) = &search.stopped {
        return Err(of_the_way(error));
    }
    let not_read = search.looked_at.iter().find(|at| matches!(at.was, WhatItWas::Unread(_)));
    let not_read = not_read.map(|at| format!(" (version {} was not read: {})", at.number, at.was)).unwrap_or_default();
    let why = format!("none of its {} versions holds master key {kid}{not_read}", search.looked_at.len());
    Err((Trouble { class: Class::NotFound, why }, Blame::Copy))
}

fn of_the_way(error: &BackupError) -> (Trouble, Blame) {
    (error.into(), Blame::Way)
}

fn in_secret_manager(kid: Kid, locator: String, sha256: [u8; 32]) -> ReadBack {
    ReadBack { kid, target: SECRET_MANAGER.to_owned(), locator: Some(locator), sha256 }
}

const fn failed(why: String) -> Trouble {
    Trouble { class: Class::Failed, why }
}

/// Reads a copy of whatever form; `locator` is where it came from, for the record. One of the bare bytes must lie elsewhere than the key
/// file; an age file and a typed sheet are made things, and where the sheet was typed says nothing of the paper.
///
/// # Errors
/// [`VerifyError`], all but `NotConfigured`.
pub async fn verify_copy(
    store: &dyn Store,
    key_file: &Path,
    file: &mut File,
    identities: Option<&mut (dyn Read + Send)>,
    locator: Option<String>,
) -> Result<ReadBack, VerifyError> {
    let ReadCopy { form, copy, .. } = read(file, identities)?;
    let (kid, sha256) = (copy.kid()?, copy.sha256());
    // Where there is no key file, or none that may be looked at, this is not it.
    if matches!(form, Form::Plain) && lies_beside(file, key_file).unwrap_or(false) {
        return Err(VerifyError::BesideKeyFile { key_file: key_file.to_owned() });
    }
    let survey = store.survey().await?;
    if survey.key_state.is_none() {
        return Err(VerifyError::NoKey);
    }
    if !survey.master_keys.iter().any(|key: &MasterKeyRecord| key.kid == kid) {
        return Err(VerifyError::Unknown { kid, needed: survey.needed() });
    }
    let target = match form {
        Form::Plain => "file",
        Form::Age => "age",
        Form::Paper => "paper",
    };
    Ok(ReadBack { kid, target: target.to_owned(), locator, sha256 })
}

pub(super) fn read(
    copy: &mut (impl Read + Send),
    identities: Option<&mut (dyn Read + Send)>,
) -> Result<ReadCopy, VerifyError> {
    let identities = match identities {
        Some(mut reader) => Some(Identities::read(&mut reader).map_err(VerifyError::Identities)?),
        None => None,
    };
    Ok(read_copy(copy, identities.as_ref())?)
}
