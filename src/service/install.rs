//! A master key put into a node's key files by an operator: in the command's own process, beside a daemon or without one.

use std::io::{self, Read};
use std::path::PathBuf;

use crate::crypto::{ImageError, KeyfileImage};
use crate::keys::keyfile::{KeyFiles, KeyfileError, MainFile, Scan};
use crate::model::{Kid, MasterKeyRecord, MasterKeyState};
use crate::store::{Store, StoreError};

/// The key, and what was done with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    pub kid: Kid,
    /// What the database calls it.
    pub state: MasterKeyState,
    /// Where it lies, durable.
    pub path: PathBuf,
    pub placed: Placed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placed {
    Now,
    /// It lay there already.
    Before,
}

/// Why no key was installed. Nothing was written; no message holds a byte of what was read.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    #[error("standard input cannot be read: {0}")]
    Read(#[source] io::Error),
    #[error("what came on standard input is not a master key: {0}")]
    Image(#[from] ImageError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the database has never held a key, so no key belongs to it")]
    NoKey,
    #[error("the database does not know this key (kid {kid}); it waits for {}", list(.wanted))]
    Unknown { kid: Kid, wanted: Vec<Kid> },
    #[error("the database knows this key (kid {kid}) as {state}, and needs it no more; it waits for {}", list(.wanted))]
    NotWanted { kid: Kid, state: MasterKeyState, wanted: Vec<Kid> },
    #[error(transparent)]
    KeyFile(#[from] KeyfileError),
}

/// Reads a master key, itself or wrapped, and keeps it in `secrets.key.d`, under the key files' lock, where the database knows it as staged, active or
/// decrypt-only; a daemon takes it from there within seconds. A retired one is kept where a quarantined DEK is under it, which is
/// released with it.
///
/// # Errors
/// [`InstallError`].
pub async fn install_key(
    store: &dyn Store,
    files: &KeyFiles,
    input: &mut (impl Read + Send),
) -> Result<Installed, InstallError> {
    let image = KeyfileImage::read_from(input).map_err(InstallError::Read)?;
    let kid = image.content()?.kid();
    wanted_state(store, kid).await?;
    let lock = files.lock()?;
    // Once more: it may have been given up while another writer had the lock. It is one read, and another writer that waits for it is
    // told of this one after its patience; looked at after the write, a crash in between would leave the file.
    let state = wanted_state(store, kid).await?;
    if let Some(path) = main_of(&files.scan(), kid) {
        return Ok(Installed { kid, state, path, placed: Placed::Before });
    }
    let path = files.retained_path(kid);
    let placed = if files.scan().retained.iter().any(|key| key.path == path) { Placed::Before } else { Placed::Now };
    lock.stage_image(&image)?;
    Ok(Installed { kid, state, path, placed })
}

/// What the database calls a key that it wants.
async fn wanted_state(store: &dyn Store, kid: Kid) -> Result<MasterKeyState, InstallError> {
    let survey = store.survey().await?;
    if survey.key_state.is_none() {
        return Err(InstallError::NoKey);
    }
    let mut wanted = Vec::with_capacity(survey.master_keys.len());
    for key in &survey.master_keys {
        if is_wanted(store, key).await? {
            wanted.push(key.kid);
        }
    }
    match survey.master_keys.iter().find(|key| key.kid == kid) {
        None => Err(InstallError::Unknown { kid, wanted }),
        Some(key) if wanted.contains(&kid) => Ok(key.state),
        Some(key) => Err(InstallError::NotWanted { kid, state: key.state, wanted }),
    }
}

async fn is_wanted(store: &dyn Store, key: &MasterKeyRecord) -> Result<bool, StoreError> {
    Ok(match key.state {
        MasterKeyState::Staged | MasterKeyState::Active | MasterKeyState::DecryptOnly => true,
        MasterKeyState::Retired => store.count_under(key.kid).await?.quarantined > 0,
        MasterKeyState::Aborted | MasterKeyState::Destroyed => false,
    })
}

fn main_of(scan: &Scan, kid: Kid) -> Option<PathBuf> {
    match &scan.main {
        MainFile::Key(key) if key.kid == kid => Some(key.path.clone()),
        _ => None,
    }
}

fn list(kids: &[Kid]) -> String {
    kids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
