use std::process::ExitCode;

use containarium::cli::{self, Threads};
use containarium::process;
use tokio::runtime::Builder;

fn main() -> ExitCode {
    let invocation = match cli::parse() {
        Ok(invocation) => invocation,
        Err(exit) => return exit,
    };
    // Before the first thread, and before a key or a value is read.
    let unprotected = process::harden();
    let mut builder = match invocation.threads() {
        Threads::Many => Builder::new_multi_thread(),
        Threads::One => Builder::new_current_thread(),
    };
    match builder.enable_all().build() {
        Ok(runtime) => runtime.block_on(cli::run(invocation, &unprotected)),
        Err(error) => cli::no_runtime(&error),
    }
}
