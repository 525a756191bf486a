//! Reading a copy of a master key where it lies off the host, in the command's own process: what comes of it is a kid, a place and a
//! checksum, and the key is wiped.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::Proof;
use crate::crypto::{Content, ImageError, KeyfileImage};
use crate::keys::keyfile::lies_beside;
use crate::keys::provider::{NotOpened, OpenedBy, Provider};
use crate::model::{Kid, WrappedMaster};
use crate::service::backup::{kms_versions, open};
use crate::service::kms::OnlyWay;

/// Why a copy proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    #[error("{} cannot be read: {cause}", .path.display())]
    Unreadable { path: PathBuf, cause: std::io::Error },
    #[error("standard input cannot be read: {0}")]
    Stdin(std::io::Error),
    /// The key is lost with that file system, and so would be its copy.
    #[error("{what} lies on the same file system as the key file, {}: both are lost together, so it is no copy off the host", .key_file.display())]
    SameFileSystem { what: String, key_file: PathBuf },
    #[error(
        "{} cannot be looked at ({cause}), so it is not known whether the copy lies on the same file system: run this on the daemon's \
         host, as root or as its user",
        .key_file.display()
    )]
    NoKeyFile { key_file: PathBuf, cause: std::io::Error },
    #[error("{what} is no copy of a master key: {damage}")]
    NoKey { what: String, damage: ImageError },
    #[error("{what}: {cause}")]
    NotOpened { what: String, cause: NotOpened },
    #[error(
        "{what} is master key {kid} wrapped, and nothing but one KMS key is known to open it: it is lost together with that key"
    )]
    OnlyKms { what: String, kid: Kid },
    #[error("{what} holds master key {found}, and a copy of {} is wanted", .wanted.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or "))]
    AnotherKey { what: String, found: Kid, wanted: Vec<Kid> },
}

/// Reads the copy at a path, or at `-` from standard input. It must be that of one of the keys that are wanted.
///
/// # Errors
/// [`ProofError`].
pub fn read(from: &Path, wanted: &[Kid], key_file: &Path) -> Result<CopyRead, ProofError> {
    if from == Path::new("-") {
        let stdin = std::io::stdin().as_fd().try_clone_to_owned().map(File::from).map_err(ProofError::Stdin)?;
        return judge(stdin, "standard input".to_owned(), wanted, key_file).map_err(|error| match error {
            ProofError::Unreadable { cause, .. } => ProofError::Stdin(cause),
            other => other,
        });
    }
    let unreadable = |cause| ProofError::Unreadable { path: from.to_owned(), cause };
    let path = std::fs::canonicalize(from).map_err(unreadable)?;
    let file = open(&path).map_err(unreadable)?;
    judge(file, path.display().to_string(), wanted, key_file)
}

/// What was opened is what is judged and read.
fn judge(mut file: File, what: String, wanted: &[Kid], key_file: &Path) -> Result<CopyRead, ProofError> {
    let unreadable = |cause| ProofError::Unreadable { path: PathBuf::from(&what), cause };
    let beside = lies_beside(&file, key_file);
    if beside.map_err(|cause| ProofError::NoKeyFile { key_file: key_file.to_owned(), cause })? {
        return Err(ProofError::SameFileSystem { what, key_file: key_file.to_owned() });
    }
    let image = KeyfileImage::read_from(&mut file.by_ref()).map_err(unreadable)?;
    let content = match image.content() {
        Ok(content) => content,
        Err(damage) => return Err(ProofError::NoKey { what, damage }),
    };
    let found = content.kid();
    if !wanted.contains(&found) {
        return Err(ProofError::AnotherKey { what, found, wanted: wanted.to_vec() });
    }
    let kms_versions = kms_versions(&image);
    let proof = Proof { kid: found, locator: what, sha256: image.sha256(), kms_versions };
    Ok(match content {
        Content::Raw(_) => CopyRead::Raw(proof),
        Content::Wrapped(wrapped) => CopyRead::Wrapped(WrappedCopy { proof, wrapped }),
    })
}

/// What a copy holds.
pub enum CopyRead {
    /// The key itself: proven.
    Raw(Proof),
    /// It says whose it is, and is believed once it is opened.
    Wrapped(WrappedCopy),
}

/// A copy of a wrapped key file.
pub struct WrappedCopy {
    proof: Proof,
    wrapped: WrappedMaster,
}

impl WrappedCopy {
    /// Opens it, and drops the key. With an age identity where that opens it; else with KMS, which counts where something else is known to
    /// open it too, or where the operator accepts that nothing is.
    ///
    /// # Errors
    /// [`ProofError::NotOpened`], [`ProofError::OnlyKms`].
    pub async fn opened(self, provider: &Provider, only_way: OnlyWay) -> Result<Proof, ProofError> {
        let Self { proof, wrapped } = self;
        let opened = match provider.open(&wrapped).await {
            Ok(opened) => opened.by,
            Err(cause) => return Err(ProofError::NotOpened { what: proof.locator, cause }),
        };
        let counts = opened == OpenedBy::Age || wrapped.has_another_way() || only_way == OnlyWay::Accepted;
        if counts { Ok(proof) } else { Err(ProofError::OnlyKms { what: proof.locator, kid: proof.kid }) }
    }
}
