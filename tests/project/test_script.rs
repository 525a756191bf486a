//! scripts/test on a machine that lacks what it needs. The machine is a directory of programs: its PATH holds nothing else.

use super::{root, said};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

struct Machine(TempDir);

impl Machine {
    /// Has a C compiler, a PostgreSQL server, and a cargo that runs no test but says what it was given.
    fn new() -> Self {
        let machine = Self(tempfile::tempdir().unwrap());
        for directory in ["bin", "pg", "clone/scripts"] {
            fs::create_dir_all(machine.path(directory)).unwrap();
        }
        for tool in ["bash", "cat", "dirname", "grep", "id", "mktemp", "rm", "tee"] {
            let real = ["/usr/bin", "/bin"].map(|bin| Path::new(bin).join(tool)).into_iter().find(|path| path.exists());
            symlink(real.unwrap_or_else(|| panic!("{tool} is not in /usr/bin")), machine.path("bin").join(tool))
                .unwrap();
        }
        fs::copy(root().join("scripts/test"), machine.path("clone/scripts/test")).unwrap();
        machine.program("clone/scripts/with-pg", r#"exec "$@""#);
        machine.program("bin/cc", "");
        machine.program("pg/initdb", "");
        machine.program("bin/cargo", r#"echo "cargo $*"; echo "test result: ok. 3 passed; 0 failed;""#);
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn program(&self, name: &str, body: &str) {
        fs::write(self.path(name), format!("#!{}\n{body}\n", self.path("bin/bash").display())).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn without(self, program: &str) -> Self {
        fs::remove_file(self.path(program)).unwrap();
        self
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.path("bin/bash"));
        command.arg(self.path("clone/scripts/test")).args(arguments).current_dir("/").env_clear();
        command.env("PATH", self.path("bin")).env("PG_BIN", self.path("pg"));
        command
    }

    fn test(&self, arguments: &[&str]) -> (Option<i32>, String) {
        said(&self.command(arguments).output().unwrap())
    }
}

#[test]
fn it_hands_its_arguments_to_cargo_and_cargos_status_back() {
    let machine = Machine::new();
    let (status, text) = machine.test(&["a_test", "--", "--exact"]);
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains("cargo test a_test -- --exact"), "{text}");
    machine.program("bin/cargo", "echo 'test result: FAILED. 3 passed; 1 failed;'; exit 101");
    assert_eq!(machine.test(&[]).0, Some(101));
}

#[test]
fn a_run_in_which_no_test_ran_is_a_failure() {
    let machine = Machine::new();
    machine.program(
        "bin/cargo",
        "echo 'test result: ok. 0 passed; 0 failed;'; echo 'test result: ok. 0 passed; 0 failed;'",
    );
    let (status, text) = machine.test(&["no_such_test"]);
    assert_eq!(status, Some(69), "{text}");
    assert!(text.contains("no test ran"), "{text}");
    machine.program(
        "bin/cargo",
        "echo 'test result: ok. 0 passed; 0 failed;'; echo 'test result: ok. 10 passed; 0 failed;'",
    );
    assert_eq!(machine.test(&[]).0, Some(0));
}

#[test]
fn what_is_missing_is_named_with_the_way_to_get_it() {
    for (program, words) in [
        ("bin/cargo", "cargo is missing: install Rust"),
        ("bin/cc", "apt-get install gcc"),
        ("pg/initdb", "apt-get install postgresql"),
    ] {
        let (status, text) = Machine::new().without(program).test(&[]);
        assert_eq!(status, Some(69), "{program}: {text}");
        assert!(text.contains(words), "{program}: {text}");
        assert!(!text.contains("cargo test"), "{program}: {text}");
    }
}

#[test]
fn postgresql_is_installed_where_that_needs_no_question() {
    let machine = Machine::new().without("pg/initdb");
    let server = machine.path("pg/initdb");
    machine.program("bin/sudo", r#"[ "$1" = -n ] && shift && exec "$@""#);
    machine.program("bin/env", r#"shift; exec "$@""#);
    let install = format!(": >{0}; [ $1 = update ] || echo >>{0}; ", server.display());
    machine.program("bin/apt-get", &format!("echo noise; {install} {} +x {}", "/bin/chmod", server.display()));
    let (status, text) = machine.test(&[]);
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains("installing postgresql") && !text.contains("noise"), "{text}");
}

#[test]
fn a_tool_of_the_tests_may_be_missing_but_not_in_ci() {
    let machine = Machine::new();
    let (status, text) = machine.test(&[]);
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains("skip: apt-get install strace age python3-cryptography"), "{text}");
    let (status, text) = said(&machine.command(&[]).env("CI", "1").output().unwrap());
    assert_eq!(status, Some(69), "{text}");
    assert!(text.contains("CI does not skip: apt-get install strace age python3-cryptography"), "{text}");
    for tool in ["strace", "age", "python3"] {
        machine.program(&format!("bin/{tool}"), "");
    }
    let (status, text) = said(&machine.command(&[]).env("CI", "1").output().unwrap());
    assert_eq!((status, text.contains("apt-get")), (Some(0), false), "{text}");
}

#[test]
fn a_closed_standard_input_is_no_trouble() {
    let machine = Machine::new();
    // As scripts that start a server in the background do, which fails on a closed descriptor.
    machine.program("clone/scripts/with-pg", r#""$@" <&0 & wait $!"#);
    let mut shell = Command::new(machine.path("bin/bash"));
    shell.args(["-c", r#"exec "$0" "$1" <&-"#]).arg(machine.path("bin/bash")).arg(machine.path("clone/scripts/test"));
    shell.env_clear().env("PATH", machine.path("bin")).env("PG_BIN", machine.path("pg")).stdin(Stdio::null());
    let (status, text) = said(&shell.output().unwrap());
    assert_eq!(status, Some(0), "{text}");
}
