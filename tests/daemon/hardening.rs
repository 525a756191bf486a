//! What `process` promises, seen from outside on the product's own binary as it runs. What each protection prevents: tests/process.rs.

use std::io::{Read, Write};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use crate::support::site::Site;

/// Nobody else's on this machine, since the kernel counts a user's processes.
const USER: u32 = 61_234;

/// The start of a command line that makes the rest of it an ordinary user's: root may read whatever it likes.
fn as_ordinary_user() -> Vec<String> {
    if rustix::process::geteuid().is_root() {
        let user = USER.to_string();
        ["setpriv", "--reuid", &user, "--regid", &user, "--clear-groups"].map(str::to_owned).into()
    } else {
        Vec::new()
    }
}

/// The binary where that user can reach it: the directory that cargo builds in may be closed to them.
fn binary_for_all(dir: &Path) -> PathBuf {
    let path = dir.join("containarium");
    std::fs::copy(env!("CARGO_BIN_EXE_containarium"), &path).unwrap();
    path
}

/// A site that the user owns.
fn site() -> Site {
    let site = Site::sqlite();
    if rustix::process::geteuid().is_root() {
        chown(site.path(""), Some(USER), Some(USER)).unwrap();
    }
    site
}

/// `bash -c SCRIPT` as that user, whose last words are to be `exec "$@"` for this site's binary, with its environment and no other.
fn command(site: &Site, script: &str, arguments: &[&str]) -> Command {
    let mut line = as_ordinary_user();
    line.extend(["bash", "-c", script, "bash"].map(str::to_owned));
    let mut command = Command::new(&line[0]);
    command.args(&line[1..]).arg(binary_for_all(&site.path(""))).args(arguments).env_clear();
    for (name, value) in site.command([""; 0]).get_envs() {
        command.env(name, value.unwrap());
    }
    command
}

fn read_as_ordinary_user(path: &str) -> Output {
    let mut line = as_ordinary_user();
    line.extend(["cat", path].map(str::to_owned));
    Command::new(&line[0]).args(&line[1..]).output().unwrap()
}

/// A process of the same user that has no protection, for comparison.
fn bystander() -> Child {
    let mut line = as_ordinary_user();
    line.push("cat".to_owned());
    let mut child =
        Command::new(&line[0]).args(&line[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // Once it echoes it is cat, and the user's.
    child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    child
}

#[test]
fn a_running_daemon_has_no_core_file_and_its_memory_is_closed_to_its_own_user() {
    let site = site();
    let daemon = site.start_with(command(&site, "ulimit -c unlimited 2>/dev/null; exec \"$@\"", &["daemon"]));
    daemon.set("alice", "KEY", b"value");
    let pid = daemon.pid().as_raw_nonzero();
    let mut bystander = bystander();
    for file in ["environ", "maps"] {
        let control = read_as_ordinary_user(&format!("/proc/{}/{file}", bystander.id()));
        assert!(control.status.success() && !control.stdout.is_empty(), "{file}: {control:?}");
        let refused = read_as_ordinary_user(&format!("/proc/{pid}/{file}"));
        assert!(!refused.status.success() && refused.stdout.is_empty(), "{file} is readable");
        assert!(String::from_utf8_lossy(&refused.stderr).contains("Permission denied"), "{refused:?}");
    }
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().collect::<Vec<_>>(), ["0", "0", "bytes"]);
    drop(bystander.stdin.take());
    bystander.wait().unwrap();
    assert_eq!(daemon.stop().code(), Some(0));
}

/// No thread can be started, which the runtime below the product panics over: with the operating system's words in the message.
#[test]
fn a_panic_of_the_binary_shows_its_place_and_not_its_message() {
    let site = site();
    let output = command(&site, "ulimit -u 1; exec \"$@\"", &["daemon"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(101), "{said}");
    let place = said.trim_end().strip_prefix("panic in thread main at ").unwrap_or_else(|| panic!("{said}"));
    let (_, numbers) = place.split_once(".rs:").unwrap();
    assert!(numbers.split(':').all(|number| number.parse::<u32>().is_ok()), "a line, a column, and no more: {said}");
}
