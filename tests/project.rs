//! What holds around the code: the dependencies' reasons, the scripts, the unit.

mod alerts;
mod ci_script;
mod dependencies;
mod machine;
mod migrations_guard;
mod test_script;
mod unit;

use std::path::Path;
use std::process::{Command, Output};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Whether a program is here. CI skips nothing that it could have installed.
fn is_here(program: &str, test: &str) -> bool {
    let here = Command::new(program).arg("--version").output().is_ok();
    if !here {
        eprintln!("skipped: {test}: {program} is not installed");
    }
    here
}

/// A command's status and all that it said.
fn said(output: &Output) -> (Option<i32>, String) {
    let text = [output.stdout.as_slice(), &output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}
