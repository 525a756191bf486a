//! What an operator types, in a shell whose machine is the site and nothing else.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::*;

/// Programs that a runbook's reader has, as far as they concern a site: another host, a printer, the journal.
const PROGRAMS: [(&str, &str); 4] = [
    ("lpr", "exec cat > \"$HOME/sheet.txt\""),
    ("ssh", "shift; mkdir -p \"$HOME/safe\"; cd \"$HOME/safe\"; exec sh -c \"$*\""),
    ("sudo", "exec \"$@\""),
    ("journalctl", "exec cat \"$HOME/daemon.log\""),
];

pub(super) struct Shell<'a> {
    site: &'a Site,
    bin: PathBuf,
}

impl<'a> Shell<'a> {
    pub(super) fn at(site: &'a Site) -> Self {
        let bin = site.path("bin");
        std::fs::create_dir_all(&bin).unwrap();
        for (name, body) in PROGRAMS {
            std::fs::write(bin.join(name), format!("#!/bin/sh\n{body}\n")).unwrap();
            std::fs::set_permissions(bin.join(name), PermissionsExt::from_mode(0o755)).unwrap();
        }
        let _there = std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_containarium"), bin.join("containarium"));
        Self { site, bin }
    }

    /// One command or several, with the settings in this file and more of an environment.
    pub(super) fn run(&self, config: &str, script: &str, more: &[(&str, String)]) -> Output {
        let like = self.site.command(["unused"]);
        let mut shell = Command::new("bash");
        shell.args(["-euo", "pipefail", "-c", script]).env_clear().current_dir(self.home());
        for (name, value) in like.get_envs() {
            shell.env(name, value.unwrap_or_default());
        }
        let inherited = like.get_envs().find(|(name, _)| *name == "PATH").and_then(|(_, value)| value).unwrap();
        let postgres = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
        let postgres = postgres.map(|version| version.unwrap().path().join("bin"));
        let path = std::iter::once(self.bin.clone()).chain(std::env::split_paths(inherited)).chain(postgres);
        shell.env("PATH", std::env::join_paths(path).unwrap());
        shell.env("CONTAINARIUM_CONFIG", self.site.path(config)).env("LANG", "C.UTF-8");
        shell.envs(more.iter().map(|(name, value)| (name, value)));
        shell.output().unwrap()
    }

    fn home(&self) -> &Path {
        self.bin.parent().unwrap()
    }
}

/// The command in backquotes that a message names, from these words on.
#[track_caller]
pub(super) fn named(message: &str, words: &str) -> String {
    let at = message.find(&format!("`{words}")).unwrap_or_else(|| panic!("no `{words} in: {message}"));
    message[at + 1..].split('`').next().unwrap().to_owned()
}

/// The daemon refuses to start; what it says.
#[track_caller]
pub(super) fn refusal(site: &Site) -> String {
    let (code, log) = site.refused();
    assert_eq!(code, Some(5), "{log}");
    assert!(log.contains("Failed to load secrets master key"), "{log}");
    log
}

/// Whether a program is here. CI skips nothing that scripts/test could have named.
#[expect(clippy::disallowed_methods, reason = "a test asks where it runs")]
pub(super) fn is_here(program: &str, test: &str) -> bool {
    let here = Command::new(program).arg("--version").output().is_ok();
    if !here {
        assert!(program == "gcloud" || std::env::var_os("CI").is_none(), "{program} must be there in CI");
        eprintln!("skipped: {test}: {program} is not installed");
    }
    here
}
