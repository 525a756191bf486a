//! Writers in processes of their own: raced, traced, and killed at every step.

use std::process::{Output, Stdio};

use super::*;

const DIR_VARIABLE: &str = "KEYFILE_TEST_DIR";

/// What a test tells a writer; `None` when the writer was not started by one.
fn told() -> Option<PathBuf> {
    #[expect(clippy::disallowed_methods, reason = "a test's own process is told where to write")]
    std::env::var_os(DIR_VARIABLE).map(PathBuf::from)
}

/// A line that the parent finds among the test harness's own.
fn say(line: &str) {
    println!("\nSAID {line}");
}

fn said(out: &Output) -> Vec<String> {
    let text = String::from_utf8_lossy(&out.stdout);
    text.lines().filter_map(|line| line.strip_prefix("SAID ")).map(str::to_owned).collect()
}

fn writer(helper: &str, place: &Place, wrapper: &[&str]) -> Command {
    let test = std::env::current_exe().unwrap();
    let mut words = wrapper.iter().map(OsString::from).chain([test.into_os_string()]);
    let mut command = Command::new(words.next().unwrap());
    command.args(words).args(["--exact", &format!("keyfile::crash::{helper}"), "--ignored", "--nocapture"]);
    command.env(DIR_VARIABLE, place.dir()).stdin(Stdio::null());
    command
}

#[test]
#[ignore = "run by other tests, in a process of its own"]
fn stage_and_promote_one_key() {
    let Some(dir) = told() else { return };
    let lock = KeyFiles::at(&dir.join("secrets.key")).unwrap().lock().unwrap();
    let kid = lock.stage(&MasterKey::make_random().unwrap()).unwrap();
    say(&format!("staged {kid}"));
    lock.promote(kid).unwrap();
    say(&format!("promoted {kid}"));
}

#[test]
#[ignore = "run by other tests, in a process of its own"]
fn promote_many_keys_and_unstage_some() {
    let Some(dir) = told() else { return };
    for _ in 0..20 {
        let lock = KeyFiles::at(&dir.join("secrets.key")).unwrap().lock().unwrap();
        let lost = lock.stage(&MasterKey::make_random().unwrap()).unwrap();
        let kid = lock.stage(&MasterKey::make_random().unwrap()).unwrap();
        lock.promote(kid).unwrap();
        lock.unstage(lost).unwrap();
        say(&format!("promoted {kid}"));
    }
}

#[test]
fn writers_that_race_lose_no_key() {
    let place = Place::new();
    let first = place.install();
    let mut writers: Vec<_> = (0..4)
        .map(|_| {
            writer("promote_many_keys_and_unstage_some", &place, &[])
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let mut promoted = vec![first];
    // Readers take no lock, and always find a whole key all the same.
    while writers.iter_mut().any(|writer| writer.try_wait().unwrap().is_none()) {
        main_kid(&place.files().scan());
    }
    for writer in writers {
        let out = writer.wait_with_output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        promoted.extend(said(&out).iter().map(|line| kid_in(line)));
    }
    assert_eq!(promoted.len(), 81);
    let scan = place.files().scan();
    let found = kids(&scan);
    assert!(promoted.iter().all(|kid| found.contains(kid)));
    assert!(scan.problems.is_empty(), "{:?}", scan.problems);
    assert_eq!(names(&place.retained()).len(), promoted.len());
}

#[test]
fn modes_are_as_they_must_be_whatever_the_umask_is() {
    for umask in ["000", "777"] {
        let place = Place::new();
        let wrapper = ["bash", "-c", &format!("umask {umask}; exec \"$@\""), "bash"];
        let out = writer("stage_and_promote_one_key", &place, &wrapper).output().unwrap();
        let [staged, _] = &said(&out)[..] else { panic!("{}", String::from_utf8_lossy(&out.stdout)) };
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(&place.main()), 0o400, "{umask}");
        assert_eq!(mode(&place.retained()), 0o700, "{umask}");
        assert_eq!(mode(&place.retained().join(kid_in(staged).to_string())), 0o400, "{umask}");
        assert_eq!(mode(&place.dir().join("secrets.key.lock")), 0o600, "{umask}");
    }
}

fn kid_in(line: &str) -> Kid {
    Kid::from_hex(line.rsplit(' ').next().unwrap()).unwrap()
}

/// One system call of a trace, as strace -y shows it.
struct Trace(Vec<String>);

impl Trace {
    /// The first line after `from` that holds all of these.
    fn find(&self, from: usize, parts: &[&str]) -> usize {
        let line = self.0.iter().skip(from).position(|line| parts.iter().all(|part| line.contains(part)));
        from + line.unwrap_or_else(|| panic!("no {parts:?} after line {from} of:\n{}", self.0.join("\n")))
    }

    /// Each of these, one after the other.
    fn shows_in_order(&self, steps: &[&[&str]]) {
        let mut at = 0;
        for step in steps {
            at = self.find(at, step) + 1;
        }
    }
}

#[test]
fn a_write_is_durable_before_its_name_and_its_name_before_it_is_acknowledged() {
    if !has_strace() {
        return;
    }
    let place = Place::new();
    let old = place.install();
    let log = place.root.path().join("trace");
    let calls = "trace=write,fsync,renameat,renameat2,rename,link,linkat,mkdirat,mkdir,openat";
    let wrapper = ["strace", "-f", "-y", "-s", "200", "-e", calls, "-o", log.to_str().unwrap()];
    let out = writer("stage_and_promote_one_key", &place, &wrapper).output().unwrap();
    let said = said(&out);
    let [_, promoted] = &said[..] else { panic!("{said:?} {}", String::from_utf8_lossy(&out.stderr)) };
    let new = kid_in(promoted);
    let trace = Trace(fs::read_to_string(&log).unwrap().lines().map(str::to_owned).collect());

    let dir = format!("<{}>", fs::canonicalize(place.dir()).unwrap().display());
    let kept = dir.replace('>', "/secrets.key.d>");
    let temporary = |kid: Kid| (format!("/secrets.key.d/.{kid}.new>"), format!("\".{kid}.new\""), format!("\"{kid}\""));
    let (new_file, new_temporary, new_name) = temporary(new);
    let (old_file, old_temporary, old_name) = temporary(old);
    trace.shows_in_order(&[
        &["mkdirat(", "\"secrets.key.d\"", " = 0"],
        &["fsync(", &dir, " = 0"],
        &["openat(", &new_temporary, "O_WRONLY|O_CREAT|O_EXCL|", "O_NOFOLLOW", "0400"],
        &["write(", &new_file, " = 32"],
        &["fsync(", &new_file, " = 0"],
        &["openat(", &new_temporary, "O_RDONLY", "O_NOFOLLOW"],
        &["renameat2(", &kept, &new_temporary, &new_name, "RENAME_NOREPLACE) = 0"],
        &["fsync(", &kept, " = 0"],
        &["write(1", &format!("SAID staged {new}")],
        &["write(", &old_file, " = 32"],
        &["fsync(", &old_file, " = 0"],
        &["renameat2(", &kept, &old_temporary, &old_name, "RENAME_NOREPLACE) = 0"],
        &["fsync(", &kept, " = 0"],
        &["openat(", "\".secrets.key.new\"", "O_WRONLY|O_CREAT|O_EXCL|", "O_NOFOLLOW", "0400"],
        &["write(", "/.secrets.key.new>", " = 32"],
        &["fsync(", "/.secrets.key.new>", " = 0"],
        &["openat(", "\".secrets.key.new\"", "O_RDONLY", "O_NOFOLLOW"],
        &["openat(", "\"secrets.key\"", "O_RDONLY", "O_NOFOLLOW"],
        &["rename", &dir, "\".secrets.key.new\"", "\"secrets.key\"", " = 0"],
        &["fsync(", &dir, " = 0"],
        &["write(1", &format!("SAID promoted {new}")],
    ]);
    let links = trace.0.iter().filter(|line| line.contains(" link(") || line.contains(" linkat(")).count();
    assert_eq!(links, 0);
}

#[test]
fn a_writer_killed_at_any_step_loses_no_key_and_the_next_one_finishes() {
    if !has_strace() {
        return;
    }
    let mut kills = 0;
    for call in ["mkdirat", "fchmod", "write", "fsync", "renameat", "renameat2", "unlinkat"] {
        for nth in 1.. {
            let place = Place::new();
            let old = place.install();
            let inject = format!("inject={call}:signal=KILL:when={nth}");
            let wrapper = ["strace", "-f", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e", &inject];
            let out = writer("stage_and_promote_one_key", &place, &wrapper).output().unwrap();
            check_and_finish(&place, old, &said(&out), &format!("killed at {call} {nth}"));
            if out.status.success() {
                break;
            }
            kills += 1;
        }
    }
    // Fewer would mean that the kills did not reach the steps.
    assert!(kills >= 25, "only {kills} kills");
}

fn check_and_finish(place: &Place, old: Kid, said: &[String], when: &str) {
    let scan = place.files().scan();
    let (found, main) = (kids(&scan), main_kid(&scan));
    assert!(scan.problems.is_empty(), "{when}: {:?}", scan.problems);
    assert!(found.contains(&old), "{when}: the old key is lost");
    let acknowledged: Vec<Kid> = said.iter().map(|line| kid_in(line)).collect();
    assert!(acknowledged.iter().all(|kid| found.contains(kid)), "{when}: an acknowledged key is lost");
    assert!(main == old || acknowledged.contains(&main), "{when}: {main} is in use before it was staged");
    if said.iter().any(|line| line.starts_with("promoted")) {
        assert_ne!(main, old, "{when}: an acknowledged promotion is lost");
    }
    let Some(new) = acknowledged.first() else { return };
    let lock = place.files().lock().unwrap();
    lock.promote(*new).unwrap();
    let scan = place.files().scan();
    assert_eq!(main_kid(&scan), *new, "{when}");
    assert!(kids(&scan).contains(&old), "{when}");
    assert_eq!(names(&place.dir()), ["secrets.key", "secrets.key.d", "secrets.key.lock"], "{when}");
    assert_eq!(names(&place.retained()).len(), 2, "{when}");
}
