//! A copy that a command is given: a file or standard input, and the age identity that opens it.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use clap::{Args, ValueHint};

use crate::config::{Config, Environment, load};
use crate::model::Kid;
use crate::service::backup::{BroughtIdentity, open as open_copy};

use super::super::failure::{Exit, Failure};
use super::super::settings::SettingsArgs;

#[derive(Args)]
pub(super) struct CopyArgs {
    /// Take this copy: an age file, a typed sheet of paper, or the 32 bytes themselves; - is standard input
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(super) from: Option<PathBuf>,
    /// Open the age file with the identity in this file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "from")]
    pub(super) identity: Option<PathBuf>,
}

/// An opened copy.
pub(super) struct Copy {
    pub(super) file: File,
    /// Read already: a wrapped key in the copy may have a recipient of it too, and a pipe gives it once.
    pub(super) identity: Option<BroughtIdentity>,
    /// The path; `None` for standard input.
    pub(super) path: Option<PathBuf>,
}

impl CopyArgs {
    /// `None` where no copy is named.
    pub(super) async fn open(self) -> Result<Option<Copy>, Failure> {
        let Some(from) = self.from else { return Ok(None) };
        let identity = match self.identity {
            Some(path) => Some(identity_in(path).await?),
            None => None,
        };
        if from == Path::new("-") {
            // Without Rust's buffer for it, which would keep a copy that nobody wipes.
            let stdin = std::io::stdin().as_fd().try_clone_to_owned().map(File::from);
            let file =
                stdin.map_err(|error| Failure::new(Exit::Failed, format!("cannot read standard input: {error}")))?;
            return Ok(Some(Copy { file, identity, path: None }));
        }
        Ok(Some(Copy { file: open(&from)?, identity, path: Some(from) }))
    }
}

impl Copy {
    /// As messages and records name it.
    pub(super) fn name(&self) -> String {
        self.path.as_ref().map_or_else(|| "standard input".to_owned(), |path| path.display().to_string())
    }

    /// As a record keeps it: whoever looks for the copy years later looks from the root.
    pub(super) fn locator(&self) -> Option<String> {
        let path = self.path.as_ref()?;
        Some(std::path::absolute(path).unwrap_or_else(|_| path.clone()).display().to_string())
    }
}

async fn identity_in(path: PathBuf) -> Result<BroughtIdentity, Failure> {
    let name = path.display().to_string();
    BroughtIdentity::read(path).await.map_err(|error| {
        Failure::usage(format!("the age identity {name} cannot be used: {error}"))
            .mend("name an identity file as age-keygen writes it: --identity FILE")
    })
}

fn open(path: &Path) -> Result<File, Failure> {
    open_copy(path).map_err(|error| {
        Failure::usage(format!("cannot read {}: {error}", path.display()))
            .mend("see with `ls -l` whether it is there and yours")
    })
}

pub(super) fn kid(text: &str) -> Result<Kid, &'static str> {
    Kid::from_hex(text).ok_or("a kid is 32 hex digits, in lower case")
}

pub(super) fn config(settings: SettingsArgs) -> Result<Config, Failure> {
    let effective = load(&settings.into(), &Environment::of_process());
    Ok(effective.map_err(|errors| Failure::of_settings(&errors))?.config)
}
