//! Key files: every bad one refused in its own words, every write in its order, no needed key lost.

mod crash;
mod exchanging;
mod loading;
mod writing;

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use containarium::crypto::{self, KeyfileImage, MasterKey};
use containarium::keys::keyfile::{KeyFiles, MainFile, Scan};
use containarium::model::Kid;
use tempfile::TempDir;

const NOBODY: u32 = 65_534;

/// A key's directory of its own, as an operator would have it.
struct Place {
    root: TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { root: tempfile::tempdir().unwrap() };
        make_dir(&place.dir());
        place
    }

    fn dir(&self) -> PathBuf {
        self.root.path().join("keys")
    }

    fn main(&self) -> PathBuf {
        self.dir().join("secrets.key")
    }

    fn retained(&self) -> PathBuf {
        self.dir().join("secrets.key.d")
    }

    fn files(&self) -> KeyFiles {
        KeyFiles::at(&self.main()).unwrap()
    }

    /// Puts a new key in the key file's place, as `install` would.
    fn install(&self) -> Kid {
        install(&self.main())
    }
}

fn make_dir(path: &Path) {
    fs::create_dir(path).unwrap();
    set_mode(path, 0o700);
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn install(path: &Path) -> Kid {
    let master = MasterKey::make_random().unwrap();
    install_key(path, &master);
    crypto::kid(&master)
}

fn install_key(path: &Path, master: &MasterKey) {
    let mut file = fs::File::create_new(path).unwrap();
    KeyfileImage::of(master).write_to(&mut file).unwrap();
    set_mode(path, 0o400);
}

fn main_kid(scan: &Scan) -> Kid {
    match &scan.main {
        MainFile::Key(key) => key.kid,
        MainFile::Missing => panic!("no key file"),
        MainFile::Bad(error) => panic!("{error}"),
    }
}

/// Every key that was found, by kid.
fn kids(scan: &Scan) -> Vec<Kid> {
    let main = match &scan.main {
        MainFile::Key(key) => Some(key.kid),
        _ => None,
    };
    main.into_iter().chain(scan.retained.iter().map(|key| key.kid)).collect()
}

fn names(dir: &Path) -> Vec<OsString> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names
}

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: this test needs root");
    }
    root
}

/// Whether strace is there; in CI it must be.
pub(crate) fn has_strace() -> bool {
    let there = Command::new("strace").arg("-V").output().is_ok_and(|out| out.status.success());
    #[expect(clippy::disallowed_methods, reason = "a test asks where it runs")]
    let in_ci = std::env::var_os("CI").is_some_and(|value| value == "true");
    assert!(there || !in_ci, "strace is not installed, and in CI a skip is a failure");
    if !there {
        println!("skipped: strace is not installed");
    }
    there
}

fn run(program: &str, args: &[&str]) {
    let out = Command::new(program).args(args).output().unwrap();
    assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// A small file system of its own, unmounted with its guard.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(at: &Path, options: &str) -> Self {
        run("mount", &["-t", "tmpfs", "-o", options, "none", at.to_str().unwrap()]);
        Self(at.to_owned())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.0).status());
    }
}
