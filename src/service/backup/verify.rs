//! Copies read back and compared, in the command's own process and with its caller's credentials. Nothing is written.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::backup::age::Identities;
use crate::backup::{BackupError, Form, KeyCopy, Opens, ReadCopy, WhatItWas, read_copy};
use crate::crypto::{Content, ImageError};
use crate::keys::keyfile::lies_beside;
use crate::keys::provider::{NotOpened, OpenedBy, Provider};
use crate::model::{EscrowRecord, Kid, MasterKeyRecord, MasterKeyState};
use crate::service::kms::{self, OnlyWay};
use crate::store::{Store, StoreError, Survey};

use super::fetch::Opener;
use super::{
    BadCopy, Class, Destinations, ReadBack, SECRET_MANAGER, Trouble, is_version_of, kids, kms_versions, version_number,
};

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
    /// What it says of its key is anybody's word.
    #[error("the copy is wrapped and was not opened, so nothing is proven of it and nothing was recorded: {0}")]
    NotOpened(NotOpened),
    #[error(
        "the copy is master key {kid} wrapped, and nothing but one KMS key is known to open it: it is lost together with that key, so it is \
         no escrow, and nothing was recorded"
    )]
    OnlyKms { kid: Kid },
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
            Self::NotOpened(why) => kms::class(why.trouble()),
            Self::Unknown { .. } | Self::OnlyKms { .. } => Class::Conflict,
        }
    }
}

/// Reads back a copy of every needed key from every secret: those that are recorded by their number, the newest first, and where none
/// is recorded (it was uploaded by other means) whichever version holds the key. Of a retired key the recorded copies: backups of the
/// database from its time need it, and it is not destroyed here before a copy was read back. A wrapped copy is opened.
///
/// # Errors
/// [`VerifyError`] `Store`, `NoKey`, `NotConfigured`.
pub async fn verify(
    store: &dyn Store,
    destinations: &Destinations,
    provider: &Provider,
) -> Result<Verified, VerifyError> {
    if destinations.secrets().is_empty() {
        return Err(VerifyError::NotConfigured);
    }
    let survey = store.survey().await?;
    if survey.key_state.is_none() {
        return Err(VerifyError::NoKey);
    }
    let escrows = store.escrows().await?;
    let (mut verified, opener) = (Verified::default(), Opener::new(provider));
    for secret in destinations.secrets() {
        for kid in survey.needed().into_iter().chain(retired(&survey, secret, &escrows)) {
            match read_back(destinations, secret, kid, &escrows, (&opener, &mut verified.unread)).await {
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
    (opener, unread): (&Opener<'_>, &mut Vec<BadCopy>),
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
                    match opened(&fetched.copy, opener).await {
                        Ok(()) => return Ok(in_secret_manager(kid, fetched.locator, &fetched.copy)),
                        Err(why) => (unopened(&fetched.locator, &why), Blame::Way),
                    }
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
    let search = target.search(&[kid], opener).await;
    if let Some(found) = search.found.into_iter().next() {
        return Ok(in_secret_manager(kid, found.locator, &found.copy));
    }
    if let Some(copy) = search.unopened.first() {
        return Err((unopened(&copy.fetched.locator, &copy.why), Blame::Way));
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

/// Whether it is the key that it says: a wrapped one once it is opened.
async fn opened(copy: &KeyCopy, opener: &Opener<'_>) -> Result<(), NotOpened> {
    match copy.image().content() {
        Ok(Content::Wrapped(wrapped)) => opener.opens(&wrapped).await,
        Ok(Content::Raw(_)) | Err(_) => Ok(()),
    }
}

fn unopened(locator: &str, why: &NotOpened) -> Trouble {
    let class = kms::class(why.trouble());
    Trouble { class, why: format!("{locator} is wrapped and was not opened, so nothing is proven of it: {why}") }
}

fn in_secret_manager(kid: Kid, locator: String, copy: &KeyCopy) -> ReadBack {
    let (sha256, kms_versions) = (copy.sha256(), kms_versions(copy.image()));
    ReadBack { kid, target: SECRET_MANAGER.to_owned(), locator: Some(locator), sha256, kms_versions }
}

const fn failed(why: String) -> Trouble {
    Trouble { class: Class::Failed, why }
}

/// A copy that an operator brought, and how it is to be judged.
pub struct Brought<'a> {
    pub file: &'a mut File,
    /// What opens an age file.
    pub identities: Option<&'a mut (dyn Read + Send)>,
    /// What opens a wrapped key.
    pub provider: &'a Provider,
    pub only_way: OnlyWay,
    /// Where it came from, for the record.
    pub locator: Option<String>,
}

/// Reads a copy of whatever form. One of the bare bytes must lie elsewhere than the key file; an age file and a typed sheet are made
/// things, and where the sheet was typed says nothing of the paper. A wrapped key is opened, and is an escrow where more than one KMS key
/// is known to open it.
///
/// # Errors
/// [`VerifyError`], all but `NotConfigured`.
pub async fn verify_copy(store: &dyn Store, key_file: &Path, brought: Brought<'_>) -> Result<ReadBack, VerifyError> {
    let Brought { file, identities, provider, only_way, locator } = brought;
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
    if let Content::Wrapped(wrapped) = copy.image().content()? {
        let by = provider.open(&wrapped).await.map_err(VerifyError::NotOpened)?.by;
        let counts = by == OpenedBy::Age || wrapped.has_another_way() || only_way == OnlyWay::Accepted;
        if !counts {
            return Err(VerifyError::OnlyKms { kid });
        }
    }
    let target = match form {
        Form::Plain => "file",
        Form::Age => "age",
        Form::Paper => "paper",
    };
    Ok(ReadBack { kid, target: target.to_owned(), locator, sha256, kms_versions: kms_versions(copy.image()) })
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
