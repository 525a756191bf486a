//! Completions and manual pages.

use std::path::Path;

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

use super::failure::{Exit, Failure};
use super::output::print;

pub(super) fn completions(shell: Shell, mut command: Command) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "containarium", &mut script);
    print(&script)
}

/// The main page on standard output, or all of them in a directory.
pub(super) fn man(dir: Option<&Path>, command: Command) -> Result<(), Failure> {
    let Some(dir) = dir else {
        let mut page = Vec::new();
        Man::new(command).render(&mut page).map_err(|error| Failure::of_output(&error))?;
        return print(&page);
    };
    let written = std::fs::create_dir_all(dir).and_then(|()| clap_mangen::generate_to(command, dir));
    written.map_err(|error| {
        Failure::new(Exit::Failed, format!("cannot write the manual pages to {}: {error}", dir.display()))
            .mend("name a directory of your own with --dir")
    })
}
