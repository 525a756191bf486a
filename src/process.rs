//! What a process that holds keys does to itself before it holds any: nobody else reads its memory, and nothing of it is written to a
//! disk that was not asked for. docs/threat-model.md says what this does not reach.

mod datadir;

use std::io::Write;
use std::panic::PanicHookInfo;

use rustix::io::Errno;
use rustix::mm::MlockAllFlags;
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use rustix::thread::CapabilitySet;

pub use datadir::{DataDirError, DataDirLock};

/// A protection that this process does not have. It runs all the same: to be logged, not died of.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Warning {
    #[error(
        "other processes of this user may read the memory of this one: the kernel did not make it undumpable ({0})"
    )]
    Dumpable(Errno),
    #[error("a crash may leave a core file: the limit could not be set to 0 ({0}); set LimitCORE=0 for the service")]
    CoreFile(Errno),
    #[error(
        "memory is not locked, so keys may be written to swap: {0}. Run with CAP_IPC_LOCK or an unlimited memlock limit \
         (LimitMEMLOCK=infinity for the service), or encrypt the swap (`swapon --show` lists it)"
    )]
    NotLocked(NotLocked),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotLocked {
    #[error("the memlock limit is {0} bytes")]
    Limit(u64),
    #[error("the kernel refused ({0})")]
    Refused(Errno),
}

/// Takes every protection that can be had. Before the first thread, and before a key is read: a limit and an umask belong to the
/// whole process, and memory is locked from then on. An exec undoes the first of them, so every process of ours calls this.
#[must_use = "what could not be had is to be said"]
pub fn harden() -> Vec<Warning> {
    hide_payloads_of_panics();
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let outcomes = [
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(Warning::Dumpable),
        // For a core_pattern that names a file; to one that is a pipe the kernel hands cores under any limit but those of a
        // process that is not dumpable (core(5)).
        rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
            .map_err(Warning::CoreFile),
        lock_memory().map_err(Warning::NotLocked),
    ];
    outcomes.into_iter().filter_map(Result::err).collect()
}

/// Keeps keys out of swap. Under a finite limit it is not tried: there it succeeds as long as little is mapped, and a thread started
/// later finds no memory for its stack. ONFAULT because locking what was only reserved cost 70 MiB.
fn lock_memory() -> Result<(), NotLocked> {
    let limit = rustix::process::getrlimit(Resource::Memlock).current;
    match limit {
        Some(bytes) if !may_lock_without_limit() => Err(NotLocked::Limit(bytes)),
        _ => rustix::mm::mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT)
            .map_err(NotLocked::Refused),
    }
}

fn may_lock_without_limit() -> bool {
    let has = rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK));
    has && is_initial_user_namespace()
}

/// In any other user namespace root has the capability by name, and the limit holds all the same (capabilities are asked of the
/// initial one in mlock(2)): a container without privileges.
fn is_initial_user_namespace() -> bool {
    std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| map.split_whitespace().eq(["0", "0", "4294967295"]))
}

/// A panic's payload can hold whatever a message was made of, a value too. Its place and thread are enough to find the line.
fn hide_payloads_of_panics() {
    std::panic::set_hook(Box::new(|panic| {
        // Not eprintln!, which would panic again on a stderr that is gone.
        drop(writeln!(std::io::stderr().lock(), "{}", describe(panic)));
    }));
}

fn describe(panic: &PanicHookInfo<'_>) -> String {
    let current = std::thread::current();
    let thread = current.name().unwrap_or("without a name");
    match panic.location() {
        Some(place) => format!("panic in thread {thread} at {place}"),
        None => format!("panic in thread {thread}"),
    }
}
