//! packaging/containarium.service, as systemd reads it.

use super::{is_here, root, said};
use std::fs;
use std::process::Command;

fn unit() -> String {
    fs::read_to_string(root().join("packaging/containarium.service")).unwrap()
}

#[test]
fn the_unit_keeps_what_the_design_relies_on() {
    let unit = unit();
    let lines: Vec<&str> = unit.lines().collect();
    for line in [
        "Type=notify",
        "NotifyAccess=main",
        "ExecStart=/usr/local/bin/containarium daemon",
        "StateDirectory=containarium",
        "RuntimeDirectory=containarium",
        "ReadWritePaths=/etc/containarium",
        "LimitCORE=0",
        "LimitMEMLOCK=infinity",
        "CapabilityBoundingSet=",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "MemoryDenyWriteExecute=yes",
        "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6",
        "SystemCallFilter=@system-service",
    ] {
        assert!(lines.contains(&line), "the unit lacks {line}");
    }
}

#[test]
fn systemd_takes_every_line_of_the_unit() {
    if !is_here("systemd-analyze", "systemd_takes_every_line_of_the_unit") {
        return;
    }
    // With this build's binary: an ExecStart that is not there is a complaint of its own.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("containarium.service");
    fs::write(&path, unit().replace("/usr/local/bin/containarium", env!("CARGO_BIN_EXE_containarium"))).unwrap();
    let output = Command::new("systemd-analyze").arg("verify").arg(&path).output().unwrap();
    let (status, text) = said(&output);
    // It reads the units that ours is ordered after, too, and says what is wrong with those.
    let ours: Vec<&str> = text.lines().filter(|line| line.contains("containarium")).collect();
    assert!(ours.is_empty() && status == Some(0), "{text}");
}

#[test]
fn systemd_finds_little_exposed() {
    if !is_here("systemd-analyze", "systemd_finds_little_exposed") {
        return;
    }
    // In tenths. What is left is root's uid and a network that may hold the database.
    let arguments = ["security", "--offline=true", "--threshold=20", "--no-pager"];
    let output = Command::new("systemd-analyze")
        .args(arguments)
        .arg(root().join("packaging/containarium.service"))
        .output()
        .unwrap();
    let (status, text) = said(&output);
    if text.contains("unrecognized option") {
        eprintln!("skipped: systemd_finds_little_exposed: this systemd-analyze reads no unit offline");
        return;
    }
    assert!(text.contains("Overall exposure level"), "{text}");
    assert_eq!(status, Some(0), "{text}");
}
