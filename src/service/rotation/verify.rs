//! The verification by another process: it shares neither memory nor a cache nor a loaded key with the daemon, and finds what will be
//! found after the next start.
//!
//! The daemon executes its own program, by the link that the kernel keeps to it, so that a release that was replaced on disk meanwhile
//! is not the one that judges. Settings go over standard input, since a database's URL holds a password and a command line is read by
//! everybody; no key is passed: the other process opens the key files itself. Of the daemon's environment it gets what Google's credentials
//! are found by, which a wrapped key file needs, and nothing else: a setting there, such as the database's URL, is none of its business.

use std::ffi::OsString;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use zeroize::Zeroizing;

use super::Damaged;
use super::walk::{self, WalkError, Walked};
use crate::crypto::{self, Content};
use crate::keys::keyfile::KeyFiles;
use crate::keys::provider::Provider;
use crate::keys::{CacheLimits, Keyring, Ring};
use crate::model::{DekVersion, Kid, Tenant};
use crate::service::Error;
use crate::store::{Store, StoreError};

/// The hidden subcommand.
pub const SUBCOMMAND: &str = "verify-deks";
/// The most that is kept of what the process says when it fails.
const MAX_WORDS: u64 = 2_000;

/// Starts the other process.
pub struct Verifier {
    settings: Zeroizing<Vec<u8>>,
    environment: Vec<(OsString, OsString)>,
}

pub(super) enum VerifyError {
    /// The daemon stops.
    Stopping(Error),
    /// It could not be done; it says nothing of the DEKs.
    Failed(String),
}

/// What the other process says, a line each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Line {
    Opened(u64),
    Damaged {
        tenant: String,
        version: Option<u32>,
        why: String,
    },
    /// The last one.
    Done {
        opened: u64,
        more: u64,
    },
}

impl Verifier {
    /// `settings`: what the subcommand reads on its standard input. `environment`: all that it has of one.
    #[must_use]
    pub const fn new(settings: Zeroizing<Vec<u8>>, environment: Vec<(OsString, OsString)>) -> Self {
        Self { settings, environment }
    }

    fn process(&self, program: &str) -> Command {
        let mut process = Command::new(program);
        process
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        process
    }

    pub(super) async fn run(&self, progress: impl FnMut(u64) -> Result<(), Error>) -> Result<Walked, VerifyError> {
        let failed = |what: &str, error: std::io::Error| VerifyError::Failed(format!("{what}: {error}"));
        let mut child = self
            .process("/proc/self/exe")
            .arg(SUBCOMMAND)
            .spawn()
            .map_err(|error| failed("the process that verifies did not start", error))?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that refuses to read says why, and how it ended tells that it refused.
            let _refused = stdin.write_all(&self.settings).await;
        }
        let mut words = child.stderr.take();
        let walked = read(&mut child, progress).await?;
        let mut said = String::new();
        if let Some(words) = &mut words {
            // What is no text is no message.
            let _unreadable = words.take(MAX_WORDS).read_to_string(&mut said).await;
        }
        let status = child.wait().await.map_err(|error| failed("the process that verifies did not end", error))?;
        match walked {
            Some(walked) if status.success() => Ok(walked),
            _ => Err(VerifyError::Failed(format!("the process that verifies ended with {status}: {}", said.trim()))),
        }
    }
}

/// `None` where it ended without its last line.
async fn read(
    child: &mut Child,
    mut progress: impl FnMut(u64) -> Result<(), Error>,
) -> Result<Option<Walked>, VerifyError> {
    let Some(stdout) = child.stdout.take() else { return Ok(None) };
    let mut lines = BufReader::new(stdout).lines();
    let mut walked = Walked::default();
    while let Ok(Some(line)) = lines.next_line().await {
        let line = serde_json::from_str(&line)
            .map_err(|_| VerifyError::Failed("the process that verifies said what it never says".to_owned()))?;
        match line {
            Line::Opened(done) => progress(done).map_err(VerifyError::Stopping)?,
            Line::Damaged { tenant, version, why } => {
                let tenant = Tenant::from_row(&tenant).map_err(|error| VerifyError::Failed(error.to_string()))?;
                walked.damaged.push(Damaged { tenant, version: version.and_then(DekVersion::new), why });
            }
            Line::Done { opened, more } => {
                (walked.done, walked.more_damaged) = (opened, more);
                return Ok(Some(walked));
            }
        }
    }
    Ok(None)
}

/// Why the other process could not judge.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the database has held no master key yet")]
    NoKey,
    #[error("{0}")]
    Keys(String),
}

/// In the other process, which gives way to all others: opens every DEK in use with the keys as they are on disk. `say` is given each line.
///
/// # Errors
/// [`CheckError`]; a DEK that does not open is no error but a line.
pub async fn check(
    store: &dyn Store,
    files: &KeyFiles,
    provider: &Provider,
    mut say: impl FnMut(&Line),
) -> Result<(), CheckError> {
    walk::give_way();
    let survey = store.survey().await?;
    let state = survey.key_state.ok_or(CheckError::NoKey)?;
    let scan = files.scan();
    let is_in_use = |kid: Kid| survey.master_keys.iter().any(|key| key.kid == kid && key.in_use);
    let (mut masters, mut wrapped) = (Vec::new(), Vec::new());
    for file in scan.into_files() {
        let is_first = !wrapped.contains(&file.kid) && !masters.iter().any(|master| crypto::kid(master) == file.kid);
        match file.content {
            Content::Raw(master) => masters.push(master),
            Content::Wrapped(found) if is_in_use(file.kid) && is_first => {
                wrapped.push(file.kid);
                masters.push(provider.open(&found).await.map_err(|error| CheckError::Keys(error.to_string()))?.master);
            }
            Content::Wrapped(_) => {}
        }
    }
    let ring = Ring::new(state.active_kid, &masters);
    drop(masters);
    let keys =
        Arc::new(Keyring::locked(String::new(), CacheLimits { max_entries: 0, max_age: Duration::from_secs(1) }));
    keys.open(ring);
    let (mut opened, mut more) = (0, 0);
    for key in survey.master_keys.iter().filter(|key| key.in_use) {
        let progress = |done| {
            say(&Line::Opened(opened + done));
            Ok(())
        };
        let walked = walk::check(store, &keys, key.kid, progress).await.map_err(|error| match error {
            WalkError::Store(error) => CheckError::Store(error),
            WalkError::Keys(error) => CheckError::Keys(error.to_string()),
            WalkError::Stopping(error) => CheckError::Keys(error.to_string()),
            WalkError::Panicked => CheckError::Keys("a thread ended with a panic".to_owned()),
            WalkError::NoThread(error) => CheckError::Keys(format!("no thread was started: {error}")),
        })?;
        for damaged in walked.damaged {
            let (tenant, version) = (damaged.tenant.to_string(), damaged.version.map(DekVersion::get));
            say(&Line::Damaged { tenant, version, why: damaged.why });
        }
        opened += walked.done;
        more += walked.more_damaged;
    }
    say(&Line::Done { opened, more });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_other_process_has_nothing_of_the_environment_but_what_it_is_given() {
        let given = vec![(OsString::from("GOOGLE_APPLICATION_CREDENTIALS"), OsString::from("/etc/sa.json"))];
        let mut process = Verifier::new(Zeroizing::default(), given).process("/usr/bin/env");
        let said = process.output().await.unwrap().stdout;
        assert_eq!(String::from_utf8(said).unwrap(), "GOOGLE_APPLICATION_CREDENTIALS=/etc/sa.json\n");
    }
}
