//! .ci/run with a cargo that does as it is told: each check can fail the run, and none is passed over in silence.

use super::machine::Machine;

const DOORS: &str = "doors::every_path_in_src_goes_through_a_door_of_the_architecture";
const REFERENCE: &str = "crypto::tests::with_reference::the_vectors_are_what_the_reference_prints";
const KILLS: &str = "daemon::rotation::kills::rounds::a_kill_at_any_point_loses_nothing_on_sqlite";
const ROUNDS: &str = "daemon::rotation::rounds::random_rounds_of_load_kills_and_rotations_lose_nothing";
const ALL: [&str; 4] = [DOORS, REFERENCE, KILLS, ROUNDS];

/// All that it would install is there, and every check passes.
fn machine() -> Machine {
    let machine = Machine::new();
    for tool in ["strace", "age", "openssl", "python3", "cargo-deny"] {
        machine.program(&format!("bin/{tool}"), "");
    }
    machine.program("clone/scripts/check-migrations", "");
    std::fs::create_dir_all(machine.path("clone/src")).unwrap();
    std::fs::write(
        machine.path("clone/src/points.rs"),
        r#"failpoint::reached("a.point"); failpoint::reached("b.point");"#,
    )
    .unwrap();
    released(&machine, b"\x7fELF and all else");
    cargo(&machine, "", &ALL, 3);
    machine
}

/// What the release build leaves.
fn released(machine: &Machine, binary: &[u8]) {
    let dir = machine.path("home/.cache/containarium-ci/target/release");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("containarium"), binary).unwrap();
}

#[test]
fn a_failpoint_in_the_release_fails_the_run() {
    let machine = machine();
    released(&machine, b"\x7fELF\0 and b.point\0");
    let (status, text) = run(&machine);
    assert_eq!(status, Some(1), "{text}");
    assert!(text.contains("ci: FAILED  release ") && text.contains("b.point"), "{text}");
    std::fs::write(machine.path("clone/src/points.rs"), "").unwrap();
    assert_eq!(run(&machine).0, Some(1), "a check that looks for nothing is none");
}

/// A cargo whose arguments are matched by `cases` first.
fn cargo(machine: &Machine, cases: &str, ran: &[&str], passed: u32) {
    let lines = ran.iter().map(|name| format!("echo 'test {name} ... ok';")).collect::<Vec<_>>().join(" ");
    let result = format!("echo 'test result: ok. {passed} passed; 0 failed; 0 ignored'");
    machine.program("bin/cargo", &format!("case \"$*\" in {cases} test*) {lines} {result};; esac"));
}

fn run(machine: &Machine) -> (Option<i32>, String) {
    machine.run(".ci/run", &[])
}

#[test]
fn it_names_every_check_and_passes_when_all_do() {
    let (status, text) = run(&machine());
    assert_eq!(status, Some(0), "{text}");
    for step in ["tools", "format", "migrations", "dependencies", "clippy", "tests", "release", "documentation"] {
        assert!(text.contains(&format!("ci: ok      {step} ")), "{step}: {text}");
    }
    assert!(text.contains("all passed: 6 tests"), "{text}");
    assert!(!text.contains("advisories were NOT checked"), "{text}");
    assert_eq!(text.matches("for gcloud were NOT tried: gcloud is not installed").count(), 1, "{text}");
}

/// With what checks terraform/ beside the clone.
fn with_offline_check(machine: Machine) -> Machine {
    std::fs::create_dir_all(machine.path("shared/terraform")).unwrap();
    machine.program("shared/terraform/offline-check", "");
    machine.program("bin/terraform", "");
    machine.program("clone/scripts/check-terraform", r#"[ -x "$1" ] && echo why; exit 1"#);
    machine
}

#[test]
fn terraform_is_checked_where_it_can_be_and_else_a_line_says_that_it_was_not() {
    let (status, text) = run(&with_offline_check(machine()));
    assert_eq!(status, Some(1), "{text}");
    assert!(text.contains("ci: FAILED  terraform ") && text.contains("why\n"), "{text}");
    let machine_with = with_offline_check(machine());
    machine_with.program("clone/scripts/check-terraform", "");
    let (status, text) = run(&machine_with);
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains("ci: ok      terraform ") && !text.contains("NOT checked"), "{text}");
    for missing in ["bin/terraform", "shared/terraform/offline-check"] {
        let (status, text) = run(&with_offline_check(machine()).without(missing));
        assert_eq!(status, Some(0), "{text}");
        assert!(text.contains("terraform/ was NOT checked: it needs terraform, and ../shared/"), "{text}");
    }
}

#[test]
fn each_check_that_fails_fails_the_run_and_shows_why() {
    for (cases, step) in [
        ("'fmt --all --check') echo why; exit 1;;", "format"),
        ("*'check --hide-inclusion-graph bans licenses sources') echo why; exit 1;;", "dependencies"),
        ("*advisories) echo why; exit 1;;", "dependencies"),
        ("clippy*-D\\ warnings) echo why; exit 1;;", "clippy"),
        ("test*) echo why; exit 101;;", "tests"),
        ("build*--release) echo why; exit 101;;", "release"),
        ("doc*--no-deps) echo why; exit 101;;", "documentation"),
    ] {
        let machine = machine();
        cargo(&machine, cases, &ALL, 3);
        let (status, text) = run(&machine);
        assert_eq!(status, Some(1), "{step}: {text}");
        assert!(text.contains(&format!("ci: FAILED  {step} ")) && text.contains("why\n"), "{step}: {text}");
    }
    let machine = machine();
    machine.program("clone/scripts/check-migrations", "exit 1");
    assert_eq!(run(&machine).0, Some(1));
}

#[test]
fn advisories_that_could_not_be_fetched_are_said() {
    let machine = machine();
    cargo(&machine, "*'fetch db') exit 1;; *advisories) exit 1;;", &ALL, 3);
    let (status, text) = run(&machine);
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains("advisories were NOT checked"), "{text}");
}

#[test]
fn a_run_without_its_tests_is_a_failure() {
    for (ran, passed, document, words) in [
        (&ALL[..], 0, None, "ci: FAILED  tests"),
        (&ALL[1..], 3, None, "no test of this name ran: doors::"),
        (&[DOORS, KILLS, ROUNDS][..], 3, None, "no test of this name ran: crypto::"),
        (&[DOORS, REFERENCE, ROUNDS][..], 3, None, "no test of this name ran: daemon::rotation::kills::"),
        (&ALL[..3], 3, None, "no test of this name ran: daemon::rotation::rounds::"),
        (&ALL[..], 3, Some("README.md"), "no test of this name ran: readme::"),
        (&ALL[..], 3, Some("docs/OPERATIONS.md"), "no test of this name ran: daemon::backup::runbook::"),
    ] {
        let machine = machine();
        cargo(&machine, "", ran, passed);
        if let Some(document) = document {
            std::fs::create_dir_all(machine.path("clone/docs")).unwrap();
            std::fs::write(machine.path("clone").join(document), "").unwrap();
        }
        let (status, text) = run(&machine);
        assert_eq!(status, Some(1), "{text}");
        assert!(text.contains(words), "{text}");
    }
}

#[test]
fn what_it_cannot_install_fails_the_run() {
    let machine = machine().without("bin/strace");
    machine.program("bin/apt-get", "echo no network; exit 100");
    machine.program("bin/sudo", "exit 1");
    let (status, text) = run(&machine);
    assert_eq!(status, Some(1), "{text}");
    assert!(text.contains("ci: FAILED  tools ") && text.contains("installing strace"), "{text}");
}
