//! What can be wrong with the settings. No message holds a value: a database URL has a password in it.

use std::path::PathBuf;

use super::{Origin, Setting};

/// One thing that is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A file that was asked for by name.
    #[error("the configuration file {} ({origin}) is not there", .path.display())]
    NoFile { path: PathBuf, origin: Origin },
    #[error("the configuration file {} cannot be read: {why}", .path.display())]
    Unreadable { path: PathBuf, why: String },
    #[error("{}:{line}: {what}", .path.display())]
    Syntax { path: PathBuf, line: usize, what: String },
    #[error("{}:{line}: unknown key `{key}`", .path.display())]
    UnknownKey { path: PathBuf, line: usize, key: String },
    #[error("{}:{line}: `{key}` must be {expected}, and is {found}", .path.display())]
    WrongType { path: PathBuf, line: usize, key: String, expected: &'static str, found: &'static str },
    #[error("`{}` ({origin}): {why}", .setting.key())]
    Invalid { setting: Setting, origin: Origin, why: String },
    #[error("give `database_url` ({url}) or `database_url_file` ({file}), not both")]
    TwoDatabases { url: Origin, file: Origin },
}
