//! Points at which a test kills or stops the process, to see what a crash there leaves. Without the cargo feature `failpoints` a point is
//! nothing: neither code nor its name is in the program, and CI looks for the names in the release.

/// A place that has a name. What it means to be stopped here is said where it is called.
#[cfg(feature = "failpoints")]
pub fn reached(name: &'static str) {
    fail::fail_point!(name);
}

/// A place that has a name.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub const fn reached(_name: &'static str) {}

/// Time enough for any thread to run, and over when a sleeper is woken later than that.
#[cfg(feature = "failpoints")]
const UNTIL_STOPPED: std::time::Duration = std::time::Duration::from_secs(1);

/// Arms points: `name=kill;other=stop`. `kill` ends the process as a crash does (SIGKILL); `stop` lets it sleep until somebody wakes it
/// (SIGSTOP), and then no more.
///
/// # Errors
/// What is wrong with the setting.
#[cfg(feature = "failpoints")]
#[expect(clippy::disallowed_methods, reason = "a process learns of no event that it is about to be stopped")]
pub fn arm(setting: &str) -> Result<(), String> {
    use rustix::process::{Signal, getpid, kill_process};
    for entry in setting.split(';').filter(|entry| !entry.is_empty()) {
        let (name, action) =
            entry.split_once('=').ok_or_else(|| format!("{entry}: a failpoint is NAME=kill or NAME=stop"))?;
        let signal = match action {
            "kill" => Signal::KILL,
            "stop" => Signal::STOP,
            _ => return Err(format!("{entry}: a failpoint is NAME=kill or NAME=stop")),
        };
        let done = std::sync::atomic::AtomicBool::new(false);
        fail::cfg_callback(name, move || {
            if !done.swap(true, std::sync::atomic::Ordering::SeqCst) {
                // A process may always signal itself.
                let _sent = kill_process(getpid(), signal);
                // SIGKILL ends the caller at once. SIGSTOP may be another thread's to take, and until that one runs this one would go on
                // past the point: it waits to be stopped.
                if signal == Signal::STOP {
                    std::thread::sleep(UNTIL_STOPPED);
                }
            }
        })?;
    }
    Ok(())
}
