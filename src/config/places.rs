//! Where things lie by default: the host's directories for root, the XDG base directories for anyone else.

use std::path::{Path, PathBuf};

use super::{Environment, User};

pub(super) fn config_file(environment: &Environment) -> Result<PathBuf, String> {
    config_dir(environment).map(|dir| dir.join("config.toml"))
}

pub(super) fn key_file(environment: &Environment) -> Result<PathBuf, String> {
    config_dir(environment).map(|dir| dir.join("secrets.key"))
}

pub(super) fn data_dir(environment: &Environment) -> Result<PathBuf, String> {
    match environment.user() {
        User::Root => Ok(PathBuf::from("/var/lib/containarium")),
        User::Other => xdg(environment, "XDG_DATA_HOME", ".local/share"),
    }
}

/// The directory for sockets; `None` for a user who has none, such as in cron.
pub(super) fn runtime_dir(environment: &Environment) -> Option<PathBuf> {
    match environment.user() {
        User::Root => Some(PathBuf::from("/run/containarium")),
        User::Other => absolute(environment, "XDG_RUNTIME_DIR").map(|dir| dir.join("containarium")),
    }
}

/// The socket: in the runtime directory, or else in the data directory.
pub(super) fn socket(environment: &Environment, data_dir: Option<&Path>) -> PathBuf {
    let dir = runtime_dir(environment).or_else(|| data_dir.map(Path::to_path_buf)).unwrap_or_default();
    dir.join("containarium.sock")
}

fn config_dir(environment: &Environment) -> Result<PathBuf, String> {
    match environment.user() {
        User::Root => Ok(PathBuf::from("/etc/containarium")),
        User::Other => xdg(environment, "XDG_CONFIG_HOME", ".config"),
    }
}

fn xdg(environment: &Environment, variable: &str, below_home: &str) -> Result<PathBuf, String> {
    let base =
        absolute(environment, variable).or_else(|| absolute(environment, "HOME").map(|home| home.join(below_home)));
    let base = base.ok_or_else(|| {
        format!("its default needs {variable} or HOME, and neither holds an absolute path: set one, or give the path")
    })?;
    Ok(base.join("containarium"))
}

/// "If an implementation encounters a relative path in any of these variables it should consider the path invalid and ignore it"
/// (XDG Base Directory Specification, basics).
fn absolute(environment: &Environment, variable: &str) -> Option<PathBuf> {
    environment.variable(variable).map(PathBuf::from).filter(|path| path.is_absolute())
}
