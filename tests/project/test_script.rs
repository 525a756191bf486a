//! scripts/test on a machine that lacks what it needs.

use super::machine::Machine;
use super::said;
use std::process::{Command, Stdio};

const SCRIPT: &str = "scripts/test";

#[test]
fn it_hands_its_arguments_to_cargo_and_cargos_status_back() {
    let machine = Machine::new();
    let (status, text) = machine.run(SCRIPT, &["a_test", "--", "--exact"]);
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains("cargo test a_test -- --exact"), "{text}");
    machine.program("bin/cargo", "echo 'test result: FAILED. 3 passed; 1 failed;'; exit 101");
    assert_eq!(machine.run(SCRIPT, &[]).0, Some(101));
}

#[test]
fn the_tests_that_kill_the_daemon_run_in_a_build_of_their_own() {
    let second = "cargo test --locked --features failpoints --test integration -- daemon::rotation::kills daemon::rotation::rounds";
    for (arguments, runs) in [
        (&["--locked"][..], true),
        (&["--locked", "a_kill"], true),
        (&["--locked", "random_rounds"], true),
        (&["--locked", "a_test"], false),
    ] {
        let machine = Machine::new();
        let (status, text) = machine.run(SCRIPT, arguments);
        assert_eq!((status, text.contains(second)), (Some(0), runs), "{text}");
    }
    let machine = Machine::new();
    machine.program("bin/cargo", r#"echo 'test result: ok. 3 passed;'; case "$*" in *failpoints*) exit 101;; esac"#);
    assert_eq!(machine.run(SCRIPT, &[]).0, Some(101));
}

#[test]
fn a_run_in_which_no_test_ran_is_a_failure() {
    let machine = Machine::new();
    machine.program(
        "bin/cargo",
        "echo 'test result: ok. 0 passed; 0 failed;'; echo 'test result: ok. 0 passed; 0 failed;'",
    );
    let (status, text) = machine.run(SCRIPT, &["no_such_test"]);
    assert_eq!(status, Some(69), "{text}");
    assert!(text.contains("no test ran"), "{text}");
    machine.program(
        "bin/cargo",
        "echo 'test result: ok. 0 passed; 0 failed;'; echo 'test result: ok. 10 passed; 0 failed;'",
    );
    assert_eq!(machine.run(SCRIPT, &[]).0, Some(0));
}

#[test]
fn what_is_missing_is_named_with_the_way_to_get_it() {
    for (program, words) in [
        ("bin/cargo", "cargo is missing: install Rust"),
        ("bin/cc", "apt-get install gcc"),
        ("pg/initdb", "apt-get install postgresql"),
    ] {
        let (status, text) = Machine::new().without(program).run(SCRIPT, &[]);
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
    let install = format!(": >{0}; [ $1 = update ] || echo >>{0}; ", server.display());
    machine.program("bin/apt-get", &format!("echo noise; {install} chmod +x {}", server.display()));
    let (status, text) = machine.run(SCRIPT, &[]);
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains("installing postgresql") && !text.contains("noise"), "{text}");
}

#[test]
fn a_tool_of_the_tests_may_be_missing_but_not_in_ci() {
    let machine = Machine::new();
    let (status, text) = machine.run(SCRIPT, &[]);
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains("skip: apt-get install strace age openssl python3-cryptography"), "{text}");
    let (status, text) = said(&machine.command(SCRIPT, &[]).env("CI", "1").output().unwrap());
    assert_eq!(status, Some(69), "{text}");
    assert!(text.contains("CI does not skip: apt-get install strace age openssl python3-cryptography"), "{text}");
    for tool in ["strace", "age", "openssl", "python3"] {
        machine.program(&format!("bin/{tool}"), "");
    }
    let (status, text) = said(&machine.command(SCRIPT, &[]).env("CI", "1").output().unwrap());
    assert_eq!((status, text.contains("apt-get")), (Some(0), false), "{text}");
}

#[test]
fn a_closed_standard_input_is_no_trouble() {
    let machine = Machine::new();
    // Not only open: at its end, so that what asks something is answered.
    machine.program("clone/scripts/with-pg", r#"[ /proc/self/fd/0 -ef /dev/null ] && exec "$@""#);
    let mut shell = Command::new(machine.path("bin/bash"));
    shell.args(["-c", r#"exec "$0" "$1" <&-"#]).arg(machine.path("bin/bash")).arg(machine.path("clone/scripts/test"));
    shell.env_clear().env("PATH", machine.path("bin")).env("PG_BIN", machine.path("pg")).stdin(Stdio::null());
    let (status, text) = said(&shell.output().unwrap());
    assert_eq!(status, Some(0), "{text}");
}

/// A terraform that says what it does and where; `cases` are matched with its first argument first.
fn terraform(machine: &Machine, cases: &str) {
    machine.program("bin/terraform", &format!("echo \"terraform $1 in ${{PWD##*/}}\"; case $1 in {cases} *) ;; esac"));
}

#[test]
fn terraform_is_tested_in_the_module_and_each_example_and_leaves_nothing_there() {
    let machine = Machine::new();
    terraform(&machine, "init) : >.terraform.lock.hcl;;");
    for arguments in [&[][..], &["--locked"]] {
        let (status, text) = machine.run(SCRIPT, arguments);
        assert_eq!(status, Some(0), "{text}");
        assert!(text.contains("terraform test in module\nterraform test in one\n"), "{text}");
    }
    assert!(!machine.path("clone/terraform/.terraform.lock.hcl").exists());
    let (status, text) = machine.run(SCRIPT, &["a_word"]);
    assert_eq!((status, text.contains("terraform")), (Some(0), false), "{text}");
}

#[test]
fn terraform_that_is_missing_or_finds_no_provider_is_one_line() {
    let machine = Machine::new();
    let (status, text) = machine.run(SCRIPT, &[]);
    assert_eq!(status, Some(0), "{text}");
    assert_eq!(text.matches("terraform/ is not tested: terraform is not installed").count(), 1, "{text}");
    for said in ["Failed to query available provider packages", "Failed to install provider"] {
        terraform(&machine, &format!("init) echo 'Error: {said}' >&2; exit 1;;"));
        let (status, text) = machine.run(SCRIPT, &[]);
        assert_eq!(status, Some(0), "{text}");
        assert_eq!(text.matches("terraform").count(), 1, "{text}");
        assert!(text.contains("terraform/ is not tested: its provider cannot be fetched here"), "{text}");
    }
}

#[test]
fn a_module_that_is_wrong_fails_the_run() {
    let machine = Machine::new();
    terraform(&machine, "init) echo 'Error: Unsupported block type' >&2; exit 1;;");
    let (status, text) = machine.run(SCRIPT, &[]);
    assert_eq!(status, Some(69), "{text}");
    assert!(text.contains("Unsupported block type") && text.contains("terraform init failed"), "{text}");
    terraform(&machine, "test) exit 1;;");
    assert_eq!(machine.run(SCRIPT, &[]).0, Some(1));
}
