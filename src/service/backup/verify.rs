//! Copies read back and compared, in the command's own process and with its caller's credentials. Nothing is written.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::backup::{BackupError, Form, KeyCopy, ReadCopy, WhatItWas, read_copy};
use crate::crypto::{Content, ImageError, KeyfileImage};
use crate::keys::identity::{AgeIdentity, IdentityError};
use crate::keys::keyfile::lies_beside;
use crate::keys::provider::{NotOpened, OpenedBy, Provider};
use crate::model::{EscrowRecord, Kid, MasterKeyRecord, MasterKeyState, Micros};
use crate::service::kms::{self, OnlyWay};
use crate::store::{Store, StoreError, Survey};

use super::fetch::Opener;
use super::read_back::MAX_WHY;
use super::{
    BadCopy, Class, Destinations, ReadBack, SECRET_MANAGER, Trouble, is_raw_escrowed, is_version_of, kids,
    kms_versions, version_number,
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
    /// What is to open it, where it is wrapped.
    Opener,
    /// Nothing but one KMS key is known to open it, and nobody accepted that.
    OnlyKms,
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
    #[error("the age identity cannot be used: {0}")]
    Identity(#[from] IdentityError),
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
            Self::NotConfigured | Self::Identity(_) => Class::Invalid,
            Self::Copy(error) => error.kind().into(),
            Self::Image(_) | Self::BesideKeyFile { .. } => Class::Failed,
            Self::NotOpened(why) => kms::class(why.trouble()),
            Self::Unknown { .. } | Self::OnlyKms { .. } => Class::Conflict,
        }
    }
}

/// Reads back a copy of every needed key from every secret: those that are recorded by their number, the newest first, and where none
/// is recorded (it was uploaded by other means) whichever version holds the key. Of a retired key the recorded copies: backups of the
/// database from its time need it, and it is not destroyed here before a copy was read back. A wrapped copy is opened, and is an escrow
/// where more than one KMS key is known to open it, a raw copy is known, or the operator accepts that nothing else does.
///
/// # Errors
/// [`VerifyError`] `Store`, `NoKey`, `NotConfigured`.
pub async fn verify(
    store: &dyn Store,
    destinations: &Destinations,
    provider: &Provider,
    only_way: OnlyWay,
) -> Result<Verified, VerifyError> {
    if destinations.secrets().is_empty() {
        return Err(VerifyError::NotConfigured);
    }
    let survey = store.survey().await?;
    if survey.key_state.is_none() {
        return Err(VerifyError::NoKey);
    }
    let escrows = store.escrows().await?;
    let judge = Judge { opener: Opener::new(provider), escrows: &escrows, now: store.now().await?, only_way };
    let mut verified = Verified::default();
    for secret in destinations.secrets() {
        for kid in survey.needed().into_iter().chain(retired(&survey, secret, &escrows)) {
            match read_back(destinations, secret, kid, &judge, &mut verified.unread).await {
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
    judge: &Judge<'_>,
    unread: &mut Vec<BadCopy>,
) -> Result<ReadBack, (Trouble, Blame)> {
    let target = destinations.target(secret).map_err(|error| of_the_way(&error))?;
    let mut recorded: Vec<&EscrowRecord> =
        judge.escrows.iter().filter(|escrow| escrow.kid == kid && is_version_of(escrow, secret)).collect();
    recorded.sort_by_key(|escrow| std::cmp::Reverse(version_number(escrow, secret)));
    let mut first = None;
    for escrow in recorded {
        let Some(number) = version_number(escrow, secret) else { continue };
        let fault = match target.fetch(number).await {
            Ok(fetched) => match fetched.copy.kid() {
                Ok(found) if found == kid && escrow.content_sha256 == Some(fetched.copy.sha256()) => {
                    match judge.prove(kid, &fetched.locator, &fetched.copy).await {
                        Ok(()) => return Ok(in_secret_manager(kid, fetched.locator, &fetched.copy)),
                        Err(fault) => fault,
                    }
                }
                Ok(found) => Fault::of_the_copy(format!(
                    "{} holds master key {found}, and not what was pushed there of {kid}; somebody changed it",
                    fetched.locator
                )),
                Err(damage) => Fault::of_the_copy(format!("{} is not master key {kid}: {damage}", fetched.locator)),
            },
            Err(error) if error.is_of_the_copy() => {
                Fault { trouble: Trouble::from(&error), blame: Blame::Copy, is_for_good: true }
            }
            Err(error) => Fault::of_the_way(&error),
        };
        if fault.is_for_good
            && let Some(locator) = escrow.locator.clone()
        {
            unread.push(BadCopy { kid, locator, why: shortened(&fault.trouble.why) });
        }
        // Who may read nothing is told so once, by the newest.
        first.get_or_insert((fault.trouble, fault.blame));
    }
    if let Some(trouble) = first {
        return Err(trouble);
    }
    let search = target.search(&[kid], &judge.opener).await;
    if let Some(found) = search.found.into_iter().next() {
        return match judge.prove(kid, &found.locator, &found.copy).await {
            Ok(()) => Ok(in_secret_manager(kid, found.locator, &found.copy)),
            Err(fault) => Err((fault.trouble, fault.blame)),
        };
    }
    if let Some(copy) = search.unopened.first() {
        let fault = Fault::of_the_opener(&copy.fetched.locator, &copy.why);
        return Err((fault.trouble, fault.blame));
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

/// Tells whether a copy is an escrow.
struct Judge<'a> {
    opener: Opener<'a>,
    escrows: &'a [EscrowRecord],
    now: Micros,
    only_way: OnlyWay,
}

/// Why a copy is no proof.
struct Fault {
    trouble: Trouble,
    blame: Blame,
    /// Whether the copy is no good, and not only unproven.
    is_for_good: bool,
}

impl Judge<'_> {
    /// Of a copy that says it is this key. A wrapped one is opened.
    async fn prove(&self, kid: Kid, locator: &str, copy: &KeyCopy) -> Result<(), Fault> {
        let Some(wrapped) = copy.image().wrapped() else { return Ok(()) };
        let opened = self.opener.open(&wrapped).await.map_err(|why| Fault::of_the_opener(locator, &why))?;
        let raw_sha256 = Some(KeyfileImage::of(&opened.master).sha256());
        let counts = opened.by == OpenedBy::Age
            || wrapped.has_another_way()
            || self.only_way == OnlyWay::Accepted
            || is_raw_escrowed(self.escrows, kid, raw_sha256, self.now);
        if counts { Ok(()) } else { Err(Fault::of_one_way(kid, locator)) }
    }
}

impl Fault {
    const fn of_the_copy(why: String) -> Self {
        Self { trouble: failed(why), blame: Blame::Copy, is_for_good: true }
    }

    fn of_the_way(error: &BackupError) -> Self {
        Self { trouble: error.into(), blame: Blame::Way, is_for_good: false }
    }

    fn of_the_opener(locator: &str, why: &NotOpened) -> Self {
        let is_for_good = why.is_for_good();
        let what = if is_for_good { "nothing opens it any more" } else { "was not opened, so nothing is proven of it" };
        let trouble =
            Trouble { class: kms::class(why.trouble()), why: format!("{locator} is wrapped and {what}: {why}") };
        Self { trouble, blame: Blame::Opener, is_for_good }
    }

    fn of_one_way(kid: Kid, locator: &str) -> Self {
        let why = format!("{locator}: {}", VerifyError::OnlyKms { kid });
        Self { trouble: Trouble { class: Class::Conflict, why }, blame: Blame::OnlyKms, is_for_good: false }
    }
}

/// As long as a record keeps it: a file may have sixteen recipients, and each says why.
fn shortened(why: &str) -> String {
    why.char_indices().take_while(|(at, letter)| at + letter.len_utf8() <= MAX_WHY).map(|(_, letter)| letter).collect()
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
    pub identity: Option<&'a AgeIdentity>,
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
    let Brought { file, identity, provider, only_way, locator } = brought;
    let ReadCopy { form, copy, .. } = read(file, identity).await?;
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

pub(super) async fn read(
    copy: &mut (impl Read + Send),
    identity: Option<&AgeIdentity>,
) -> Result<ReadCopy, VerifyError> {
    let identities = match identity {
        Some(identity) => Some(identity.identities().await?),
        None => None,
    };
    Ok(read_copy(copy, identities.as_deref())?)
}
