//! The daemon's place: built on another branch, which replaces this file.

use crate::config::Config;

/// Why the daemon did not start or did not end well.
#[derive(Debug)]
pub struct StartError {
    pub message: String,
    pub exit_code: u8,
}

/// # Errors
/// Always: the daemon is not in this build.
#[expect(clippy::unused_async, reason = "the daemon that takes this place waits")]
pub async fn run(_config: Config) -> Result<(), StartError> {
    Err(StartError { message: "the daemon is not in this build of the command line".to_owned(), exit_code: 1 })
}
