//! Copies of the master key off the host: the real daemon and the real commands over a fake of Google that enforces each identity's rights.

mod adversity;
mod drilling;
mod losses;
mod missed;
mod pushing;
mod rendered;
mod restoring;
mod runbook;
mod shell;
mod verifying;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;

use containarium::crypto::{self, KeyfileImage, MasterKey};
use containarium::model::Kid;
use serde_json::Value;

use crate::support::google::{Google, SECRET};
use crate::support::site::{Daemon, Site};

/// Google, and the deployment's two configurations: the daemon's identity may add and list, the restore identity may list and read.
pub(super) struct Cloud {
    google: Google,
    runtime: tokio::runtime::Runtime,
}

impl Cloud {
    /// With one secret.
    pub(super) fn of(site: &Site) -> Self {
        Self::with(site, &[SECRET], "")
    }

    pub(super) fn with(site: &Site, secrets: &[&str], more: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let google = runtime.block_on(Google::start());
        let cloud = Self { google, runtime };
        cloud.configure(site, "config.toml", "daemon", secrets, more);
        cloud.configure(site, "restore.toml", "restore", secrets, "");
        cloud
    }

    pub(super) fn configure(&self, site: &Site, file: &str, identity: &str, secrets: &[&str], more: &str) {
        let (secrets, url) = (serde_json::to_string(secrets).unwrap(), self.google.url(identity));
        let text = format!("[backup.gcp]\nsecrets = {secrets}\nendpoint = \"{url}\"\n{more}");
        std::fs::write(site.path(file), text).unwrap();
    }

    /// Makes a secret that is not configured.
    fn make(&self, secret: &str) {
        self.runtime.block_on(self.google.make(secret));
    }

    pub(super) fn add(&self, bytes: &[u8]) {
        self.runtime.block_on(self.google.add(SECRET, bytes));
    }

    pub(super) fn set_state(&self, number: u64, verb: &str) {
        self.runtime.block_on(self.google.set_state(SECRET, number, verb));
    }

    fn expire(&self, ttl: Option<&str>) {
        self.runtime.block_on(self.google.expire(SECRET, ttl));
    }

    pub(super) fn fault(&self, fault: &str, operation: &str) {
        self.runtime.block_on(self.google.fault(fault, operation));
    }

    pub(super) fn fault_once(&self, fault: &str, operation: &str) {
        self.runtime.block_on(self.google.fault_once(fault, operation));
    }

    pub(super) fn fault_of_version(&self, fault: &str, secret: &str, number: u64) {
        self.runtime.block_on(self.google.fault_of_version(fault, secret, number));
    }

    pub(super) fn heal(&self) {
        self.runtime.block_on(self.google.heal());
    }

    pub(super) fn requests(&self, operation: &str) -> usize {
        self.runtime.block_on(self.google.requests(operation)).len()
    }
}

/// A command with the restore identity.
pub(super) fn as_restorer(site: &Site, words: &[&str]) -> Output {
    with_input(site, words, b"")
}

fn with_input(site: &Site, words: &[&str], input: &[u8]) -> Output {
    let config = site.path("restore.toml").display().to_string();
    let words: Vec<&str> = words.iter().copied().chain(["--config", &config]).collect();
    site.cli(words, input)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn answer(output: &Output) -> Value {
    assert!(output.status.success(), "{}", said(output));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[track_caller]
fn fails(output: &Output, code: i32, words: &[&str]) {
    let said = said(output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    for word in words {
        assert!(said.contains(word), "no {word:?} in: {said}");
    }
}

/// The bytes of a key, and its kid.
fn new_key() -> (Vec<u8>, Kid) {
    let master = MasterKey::make_random().unwrap();
    let mut bytes = Vec::new();
    KeyfileImage::of(&master).write_to(&mut bytes).unwrap();
    (bytes, crypto::kid(&master))
}

fn kid(daemon: &Daemon) -> String {
    daemon.get("/v1/admin/status").json()["keys"]["activeKid"].as_str().unwrap().to_owned()
}

/// A deployment with secrets, stopped: its key's bytes and its kid.
fn populated(site: &Site) -> (Vec<u8>, String) {
    let daemon = site.start();
    for tenant in ["alice", "bob"] {
        assert_eq!(daemon.set(tenant, "KEY", tenant.as_bytes()).status, 200);
    }
    let kid = kid(&daemon);
    assert_eq!(daemon.stop().code(), Some(0));
    (std::fs::read(site.key_file()).unwrap(), kid)
}

#[track_caller]
fn opens(site: &Site) {
    let daemon = site.start();
    for tenant in ["alice", "bob"] {
        assert_eq!(daemon.value(tenant, "KEY").unwrap(), tenant.as_bytes());
    }
    assert_eq!(daemon.stop().code(), Some(0));
}

fn lose_keys(site: &Site) {
    std::fs::remove_dir_all(site.path("etc")).unwrap();
}

fn put(path: &Path, bytes: &[u8]) {
    let _absent = std::fs::remove_file(path);
    let dir = path.parent().unwrap();
    std::fs::create_dir_all(dir).unwrap();
    std::fs::set_permissions(dir, PermissionsExt::from_mode(0o700)).unwrap();
    std::fs::write(path, bytes).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o400)).unwrap();
}

/// The names in the key's directory, but for the lock.
fn names(site: &Site) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(site.path("etc")) else { return Vec::new() };
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name != "secrets.key.lock");
    names.sort();
    names
}
