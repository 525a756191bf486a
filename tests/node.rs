//! A node's record written in a process of its own: traced, and killed at every step.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use containarium::model::{BootId, Micros, NodeId, Tenant, TenantRecord};
use containarium::node::{Fate, Mark, NodeFile};

const DIR_VARIABLE: &str = "NODE_TEST_DIR";
const DB: [u8; 16] = [7; 16];

fn mark(generation: u64) -> Mark {
    Mark { db_id: DB, epoch: 1, generation }
}

/// What the database says at a generation: each has one more tenant that is to be shredded.
fn blocked(generation: u64) -> Vec<TenantRecord> {
    let record = |number: u64| TenantRecord {
        tenant: Tenant::parse(&format!("tenant-{number}")).unwrap(),
        created_at: Micros(1),
        shred_at: Some(Micros(2)),
        shredded_at: None,
        secrets: 0,
        active_dek: None,
    };
    (1..=generation).map(record).collect()
}

fn open(dir: &Path) -> NodeFile {
    let (file, notices) = NodeFile::open(dir, NodeId::new([1; 16]), BootId::new([2; 16])).unwrap();
    for notice in notices {
        println!("{notice}");
    }
    file
}

#[test]
#[ignore = "run by other tests, in a process of its own"]
fn note_five_generations() {
    #[expect(clippy::disallowed_methods, reason = "a test's own process is told where to write")]
    let Some(dir) = std::env::var_os(DIR_VARIABLE).map(PathBuf::from) else { return };
    let mut file = open(&dir);
    file.enter().unwrap();
    for generation in 1..=5 {
        file.note(mark(generation), Micros(3), &blocked(generation), &BTreeSet::new()).unwrap();
        println!("\nSAID noted {generation}");
    }
}

fn writer(dir: &Path, strace: &[&str]) -> Command {
    let mut command = Command::new("strace");
    command.args(strace).arg("--").arg(std::env::current_exe().unwrap());
    command.args(["--exact", "node::note_five_generations", "--ignored", "--nocapture"]);
    command.env(DIR_VARIABLE, dir).stdin(Stdio::null());
    command
}

/// The last generation that was acknowledged.
fn noted(out: &Output) -> u64 {
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    text.lines().filter_map(|line| line.strip_prefix("SAID noted ")?.parse().ok()).next_back().unwrap_or(0)
}

#[test]
fn a_line_is_durable_before_the_record_that_relies_on_it_and_both_before_it_is_acknowledged() {
    if !crate::keyfile::has_strace() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("trace");
    let calls = "trace=write,fsync,fdatasync,rename,renameat,renameat2";
    let strace = ["-f", "-y", "-s", "200", "-e", calls, "-o", log.to_str().unwrap()];
    let out = writer(dir.path(), &strace).output().unwrap();
    assert_eq!(noted(&out), 5, "{}", String::from_utf8_lossy(&out.stderr));
    let trace = fs::read_to_string(&log).unwrap();
    let mut lines = trace.lines();
    let place = format!("<{}>", fs::canonicalize(dir.path()).unwrap().display());
    let mut shows = |parts: &[&str]| {
        let found = lines.any(|line| parts.iter().all(|part| line.contains(part)));
        assert!(found, "no {parts:?} in its turn in:\n{trace}");
    };
    for generation in 1..=5 {
        shows(&["write(", "/critical.jsonl>", &format!("\\\"generation\\\":{generation},")]);
        shows(&["fsync(", "/critical.jsonl>", " = 0"]);
        if generation == 1 {
            shows(&["fsync(", &place, " = 0"]);
        }
        shows(&["write(", "/node.json.new>", &format!("\\\"generation\\\":{generation}}}")]);
        shows(&["fsync(", "/node.json.new>", " = 0"]);
        shows(&["rename", "/node.json.new\"", "/node.json\"", " = 0"]);
        shows(&["fsync(", &place, " = 0"]);
        shows(&["write(1", &format!("SAID noted {generation}")]);
    }
}

#[test]
fn a_writer_killed_at_any_step_leaves_a_record_that_says_no_more_than_its_log() {
    if !crate::keyfile::has_strace() {
        return;
    }
    let mut kills = 0;
    for call in ["write", "fsync", "rename", "openat"] {
        for nth in 1.. {
            let dir = tempfile::tempdir().unwrap();
            let inject = format!("inject={call}:signal=KILL:when={nth}");
            let trace = format!("trace={call}");
            let mut strace = vec!["-f", "-o", "/dev/null", "-e", &trace, "-e", &inject];
            let only = dir.path().to_str().unwrap().to_owned();
            let paths =
                [format!("{only}/critical.jsonl"), format!("{only}/node.json"), format!("{only}/node.json.new"), only];
            strace.extend(paths.iter().flat_map(|path| ["-P", path.as_str()]));
            let out = writer(dir.path(), &strace).output().unwrap();
            check(dir.path(), noted(&out), &format!("killed at {call} {nth}"));
            if out.status.success() {
                break;
            }
            kills += 1;
        }
    }
    // Fewer would mean that the kills did not reach the steps.
    assert!(kills >= 30, "only {kills} kills");
}

fn check(dir: &Path, acknowledged: u64, when: &str) {
    let file = open(dir);
    let highest = file.highest().map_or(0, |mark| mark.generation);
    assert!(highest >= acknowledged, "{when}: {acknowledged} was acknowledged, {highest} is remembered");
    assert!(file.is_complete(), "{when}");
    let known = u64::try_from(file.fates(DB).len()).unwrap();
    assert!(known >= highest, "{when}: the record is at {highest}, the log knows {known}");
    let mut file = file;
    file.enter().unwrap();
    file.note(mark(6), Micros(4), &blocked(6), &BTreeSet::new()).unwrap();
    let again = open(dir);
    assert_eq!(again.highest(), Some(mark(6)), "{when}");
    let fates: BTreeMap<Tenant, Fate> =
        blocked(6).into_iter().map(|record| (record.tenant, Fate::Pending { shred_at: Micros(2) })).collect();
    assert_eq!(again.fates(DB), fates, "{when}");
}
