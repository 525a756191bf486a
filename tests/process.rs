//! Process hardening, each with a control run that has it off and finds what it prevents; and the data directory's lock.

use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use containarium::process::{self, DataDirError, DataDirLock};

const HARDENED: &str = "PROCESS_TEST_HARDENED";
const ARGUMENT: &str = "PROCESS_TEST_ARGUMENT";
const NOBODY: &str = "65534";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Hardening {
    On,
    Off,
}

fn told(name: &str) -> Option<String> {
    #[expect(clippy::disallowed_methods, reason = "a test's own process is told what to do")]
    std::env::var(name).ok()
}

/// Whether a test started this process; hardened when it said so.
fn is_helper() -> bool {
    let hardened = told(HARDENED);
    if hardened.as_deref() == Some("yes") {
        for warning in process::harden() {
            say(&format!("warning {warning}"));
        }
    }
    hardened.is_some()
}

fn say(line: &str) {
    println!("\nSAID {line}");
}

fn said(out: &str) -> Vec<&str> {
    out.lines().filter_map(|line| line.strip_prefix("SAID ")).collect()
}

fn helper(name: &str, hardening: Hardening, wrapper: &[&str]) -> Command {
    helper_in(&std::env::current_exe().unwrap(), name, hardening, wrapper)
}

fn helper_in(test: &Path, name: &str, hardening: Hardening, wrapper: &[&str]) -> Command {
    let mut command = match wrapper {
        [] => Command::new(test),
        [program, args @ ..] => {
            let mut command = Command::new(program);
            command.args(args).arg(test);
            command
        }
    };
    command.args(["--exact", &format!("process::{name}"), "--ignored", "--nocapture", "--test-threads=1"]);
    command.env(HARDENED, if hardening == Hardening::On { "yes" } else { "no" });
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// As root, what an ordinary user is kept from must be tried as one.
fn as_ordinary_user() -> &'static [&'static str] {
    if rustix::process::geteuid().is_root() {
        &["setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]
    } else {
        &[]
    }
}

#[test]
#[ignore = "run by other tests, in a process of its own"]
fn show_limits() {
    if !is_helper() {
        return;
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    let core = rustix::process::getrlimit(rustix::process::Resource::Core);
    say(&format!("umask {}", field("Umask:")));
    say(&format!("locked {}", field("VmLck:") != "0"));
    say(&format!("core {:?} {:?}", core.current, core.maximum));
    say(&format!("dumpable {:?}", rustix::process::dumpable_behavior().unwrap()));
    // The trap that a finite limit is: a thread that finds no memory for its stack.
    let thread = std::thread::Builder::new().stack_size(64 << 20).spawn(|| ());
    say(&format!("thread {}", thread.is_ok_and(|thread| thread.join().is_ok())));
}

fn limits(hardening: Hardening, wrapper: &[&str]) -> Vec<String> {
    limits_in(helper("show_limits", hardening, wrapper))
}

fn limits_in(mut helper: Command) -> Vec<String> {
    let out = helper.output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    said(&String::from_utf8_lossy(&out.stdout)).iter().map(|line| (*line).to_owned()).collect()
}

#[test]
fn a_hardened_process_has_no_core_file_no_dump_and_a_private_umask() {
    let script = "umask 022; ulimit -c unlimited 2>/dev/null; exec \"$@\"";
    let wrapper = ["bash", "-c", script, "bash"];
    let control = limits(Hardening::Off, &wrapper);
    assert!(control.contains(&"umask 0022".to_owned()), "{control:?}");
    assert!(control.contains(&"dumpable Dumpable".to_owned()), "{control:?}");
    let hardened = limits(Hardening::On, &wrapper);
    for line in ["umask 0077", "core Some(0) Some(0)", "dumpable NotDumpable"] {
        assert!(hardened.contains(&line.to_owned()), "{line} is not in {hardened:?}");
    }
}

#[test]
fn memory_is_locked_with_the_capability_or_without_a_limit_and_otherwise_only_warned_about() {
    let user = as_ordinary_user();
    let limited = [&["bash", "-c", "ulimit -l 4096; exec \"$@\"", "bash"], user].concat();
    let lines = limits(Hardening::On, &limited);
    assert!(lines.contains(&"locked false".to_owned()) && lines.contains(&"thread true".to_owned()), "{lines:?}");
    assert!(lines.iter().any(|line| line.starts_with("warning memory is not locked")), "{lines:?}");
    if user.is_empty() {
        println!("skipped: raising the memlock limit and having CAP_IPC_LOCK need root");
        return;
    }
    let unlimited = [&["bash", "-c", "ulimit -l unlimited; exec \"$@\"", "bash"], user].concat();
    let capable = ["bash", "-c", "ulimit -l 8192; exec \"$@\"", "bash"];
    let mut wrappers = vec![&capable[..]];
    if Command::new("bash").args(["-c", "ulimit -l unlimited"]).status().unwrap().success() {
        wrappers.push(&unlimited);
    } else {
        println!("skipped in part: raising the memlock limit needs CAP_SYS_RESOURCE");
    }
    for wrapper in wrappers {
        let lines = limits(Hardening::On, wrapper);
        assert!(lines.contains(&"locked true".to_owned()) && lines.contains(&"thread true".to_owned()), "{lines:?}");
        assert!(!lines.iter().any(|line| line.starts_with("warning")), "{lines:?}");
    }
}

#[test]
fn a_capability_of_another_user_namespace_locks_nothing() {
    let wrapper = [as_ordinary_user(), &["unshare", "--user", "--map-root-user"]].concat();
    let probe = Command::new("unshare").args(["--user", "--map-root-user", "true"]).status();
    if !probe.is_ok_and(|status| status.success()) {
        println!("skipped: user namespaces are not available");
        return;
    }
    // A user without any capability must reach the test's binary, and the directory that cargo builds in may be closed to them.
    let open = tempfile::tempdir().unwrap();
    std::fs::set_permissions(open.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let test = open.path().join("integration");
    std::fs::copy(std::env::current_exe().unwrap(), &test).unwrap();
    let lines = limits_in(helper_in(&test, "show_limits", Hardening::On, &wrapper));
    assert!(lines.contains(&"locked false".to_owned()) && lines.contains(&"thread true".to_owned()), "{lines:?}");
    // Not tried, rather than refused: with a limit above what is mapped now the kernel would not refuse.
    assert!(lines.iter().any(|line| line.contains("the memlock limit is")), "{lines:?}");
}

#[test]
#[ignore = "run by other tests, in a process of its own"]
fn hold_a_canary() {
    if !is_helper() {
        return;
    }
    let canary = canary();
    say(&format!("ready {}", std::process::id()));
    std::io::stdin().read_line(&mut String::new()).unwrap();
    assert_eq!(canary.len(), 32);
}

/// Made at run time, so that only this process's memory has it whole: the program file has its parts.
fn canary() -> Vec<u8> {
    b"canary-in-the-memory-of-a-daemon".iter().map(|byte| std::hint::black_box(byte ^ 0x5A)).collect()
}

#[test]
#[ignore = "run by other tests, in a process of its own"]
fn search_the_memory_of_another_process() {
    if !is_helper() {
        return;
    }
    let pid = told(ARGUMENT).unwrap();
    let found = match search(&pid) {
        Ok(true) => "found".to_owned(),
        Ok(false) => "not there".to_owned(),
        Err(error) => format!("refused {:?}", error.kind()),
    };
    say(&found);
}

fn search(pid: &str) -> std::io::Result<bool> {
    let canary = canary();
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let mut memory = std::fs::File::open(format!("/proc/{pid}/mem"))?;
    for line in maps.lines().filter(|line| line.contains(" rw-p ")) {
        let (from, rest) = line.split_once('-').unwrap();
        let address = |hex: &str| u64::from_str_radix(hex, 16).unwrap();
        let (from, to) = (address(from), address(rest.split(' ').next().unwrap()));
        let mut bytes = vec![0; usize::try_from(to - from).unwrap()];
        memory.seek(SeekFrom::Start(from))?;
        if memory.read_exact(&mut bytes).is_ok() && bytes.windows(canary.len()).any(|window| window == canary) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn wait_until_ready(child: &mut Child) -> String {
    let out = BufReader::new(child.stdout.as_mut().unwrap());
    let ready = out.lines().map_while(Result::ok).find_map(|line| line.strip_prefix("SAID ready ").map(str::to_owned));
    ready.unwrap_or_else(|| panic!("the helper ended early"))
}

fn search_result(hardening: Hardening) -> String {
    let mut holder = helper("hold_a_canary", hardening, as_ordinary_user()).spawn().unwrap();
    let pid = wait_until_ready(&mut holder);
    let mut searcher = helper("search_the_memory_of_another_process", Hardening::Off, as_ordinary_user());
    let out = searcher.env(ARGUMENT, pid).output().unwrap();
    holder.stdin.take().unwrap().write_all(b"\n").unwrap();
    holder.wait().unwrap();
    said(&String::from_utf8_lossy(&out.stdout)).concat()
}

#[test]
fn the_same_user_cannot_read_a_hardened_process() {
    let control = search_result(Hardening::Off);
    if control.starts_with("refused") {
        // Yama, for one, keeps siblings apart already.
        println!("skipped: this kernel refuses even the control run");
        return;
    }
    assert_eq!(control, "found");
    assert_eq!(search_result(Hardening::On), "refused PermissionDenied");
}

#[test]
#[ignore = "run by other tests, in a process of its own"]
fn crash() {
    if !is_helper() {
        return;
    }
    let own = rustix::process::getpid();
    // std's handler for stack overflows takes the first and gives the signal its default back; which thread gets one, and whether two
    // become one, is the kernel's choice.
    loop {
        rustix::process::kill_process(own, rustix::process::Signal::SEGV).unwrap();
    }
}

fn crash_with(hardening: Hardening, dir: &Path) -> ExitStatus {
    let wrapper = ["bash", "-c", "ulimit -c unlimited; exec \"$@\"", "bash"];
    helper("crash", hardening, &wrapper).current_dir(dir).output().unwrap().status
}

#[test]
fn a_hardened_process_that_crashes_leaves_no_core() {
    let dir = tempfile::tempdir().unwrap();
    let control = crash_with(Hardening::Off, dir.path());
    assert_eq!(control.signal(), Some(11), "{control}");
    if !control.core_dumped() {
        println!("skipped: this system makes no core even in the control run");
        return;
    }
    let clean = tempfile::tempdir().unwrap();
    let hardened = crash_with(Hardening::On, clean.path());
    assert_eq!(hardened.signal(), Some(11), "{hardened}");
    assert!(!hardened.core_dumped());
    assert_eq!(std::fs::read_dir(clean.path()).unwrap().count(), 0);
}

#[test]
#[ignore = "run by other tests, in a process of its own"]
fn panic_with_a_secret() {
    if !is_helper() {
        return;
    }
    let secret = String::from_utf8(canary().iter().map(|byte| byte ^ 0x5A).collect()).unwrap();
    let worker = std::thread::Builder::new().name("worker".to_owned());
    drop(worker.spawn(move || panic!("cannot parse {secret}")).unwrap().join());
}

#[test]
fn a_panic_shows_its_place_and_thread_and_not_what_it_was_about() {
    let stderr = |hardening| {
        let out = helper("panic_with_a_secret", hardening, &[]).output().unwrap();
        String::from_utf8_lossy(&out.stderr).into_owned()
    };
    assert!(stderr(Hardening::Off).contains("canary-in-the-memory"));
    let hardened = stderr(Hardening::On);
    assert!(!hardened.contains("canary"), "{hardened}");
    assert!(hardened.contains("panic in thread worker at tests/process.rs:"), "{hardened}");
}

#[test]
#[ignore = "run by other tests, in a process of its own"]
fn hold_the_data_directory() {
    if !is_helper() {
        return;
    }
    let _lock = DataDirLock::take(Path::new(&told(ARGUMENT).unwrap())).unwrap();
    say(&format!("ready {}", std::process::id()));
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

#[test]
fn a_second_daemon_is_told_which_process_has_the_data_directory_until_that_is_killed() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("a/b");
    let mut first = helper("hold_the_data_directory", Hardening::Off, &[]).env(ARGUMENT, &dir).spawn().unwrap();
    let pid = wait_until_ready(&mut first);
    match DataDirLock::take(&dir) {
        Err(DataDirError::Held { pid: holder, .. }) => assert_eq!(holder.map(|pid| pid.to_string()), Some(pid)),
        other => panic!("{other:?}"),
    }
    first.kill().unwrap();
    first.wait().unwrap();
    drop(DataDirLock::take(&dir).unwrap());
}

#[test]
fn a_data_directory_is_made_private_and_locked_once() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("share/containarium");
    let lock = DataDirLock::take(&dir).unwrap();
    for made in [root.path().join("share"), dir.clone()] {
        assert_eq!(std::fs::metadata(made).unwrap().permissions().mode() & 0o7777, 0o700);
    }
    assert_eq!(std::fs::metadata(dir.join("daemon.lock")).unwrap().permissions().mode() & 0o7777, 0o600);
    assert!(matches!(DataDirLock::take(&dir), Err(DataDirError::Held { .. })));
    drop(lock);
    // Another test's fork holds a copy of the lock until its exec, so the next taker may have to ask more than once.
    let taken_soon = |dir: &Path| (0..1_000_000).find_map(|_| DataDirLock::take(dir).ok());
    let link = root.path().join("link");
    symlink(&dir, &link).unwrap();
    assert!(taken_soon(&link).is_some());
}

#[test]
fn a_data_directory_that_others_own_or_can_write_to_is_refused() {
    let root = tempfile::tempdir().unwrap();
    std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o720)).unwrap();
    assert!(matches!(DataDirLock::take(root.path()), Err(DataDirError::Writable { mode: 0o720, .. })));
    std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let file = root.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert!(matches!(DataDirLock::take(&file), Err(DataDirError::NotADirectory { .. })));
    symlink("nowhere", root.path().join("daemon.lock")).unwrap();
    let error = DataDirLock::take(root.path()).unwrap_err();
    assert!(matches!(error, DataDirError::LockUnusable { why: "it is a symbolic link", .. }), "{error}");
    assert!(!root.path().join("nowhere").exists());
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(root.path(), Some(65_534), None).unwrap();
        assert!(matches!(DataDirLock::take(root.path()), Err(DataDirError::Owner { owner: 65_534, .. })));
    } else {
        println!("skipped in part: giving a directory away needs root");
    }
}
