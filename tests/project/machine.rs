//! A machine of its own for a script: a directory of programs, and its PATH holds nothing else.

use super::{root, said};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

const TOOLS: [&str; 15] = [
    "awk", "bash", "cat", "chmod", "cp", "dirname", "env", "grep", "id", "mkdir", "mktemp", "rm", "tail", "tee",
    "timeout",
];

pub(crate) struct Machine(TempDir);

impl Machine {
    /// Has a C compiler, a PostgreSQL server, and a cargo that runs no test but says what it was given.
    pub(crate) fn new() -> Self {
        let machine = Self(tempfile::tempdir().unwrap());
        for directory in ["bin", "pg", "clone/scripts", "clone/.ci", "clone/terraform/examples/one"] {
            fs::create_dir_all(machine.path(directory)).unwrap();
        }
        for tool in TOOLS {
            let real = ["/usr/bin", "/bin"].map(|bin| Path::new(bin).join(tool)).into_iter().find(|path| path.exists());
            symlink(real.unwrap_or_else(|| panic!("{tool} is not in /usr/bin")), machine.path("bin").join(tool))
                .unwrap();
        }
        for script in ["scripts/test", ".ci/run"] {
            fs::copy(root().join(script), machine.path("clone").join(script)).unwrap();
        }
        machine.program("clone/scripts/with-pg", r#"exec "$@""#);
        machine.program("bin/cc", "");
        machine.program("pg/initdb", "");
        machine.program("bin/cargo", r#"echo "cargo $*"; echo "test result: ok. 3 passed; 0 failed;""#);
        machine
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn program(&self, name: &str, body: &str) {
        fs::write(self.path(name), format!("#!{}\n{body}\n", self.path("bin/bash").display())).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o755)).unwrap();
    }

    pub(crate) fn without(self, program: &str) -> Self {
        fs::remove_file(self.path(program)).unwrap();
        self
    }

    /// A script of the clone, started from elsewhere.
    pub(crate) fn command(&self, script: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.path("bin/bash"));
        command.arg(self.path("clone").join(script)).args(arguments).current_dir("/").env_clear();
        command.env("PATH", self.path("bin")).env("PG_BIN", self.path("pg")).env("HOME", self.path("home"));
        command
    }

    pub(crate) fn run(&self, script: &str, arguments: &[&str]) -> (Option<i32>, String) {
        said(&self.command(script, arguments).output().unwrap())
    }
}
