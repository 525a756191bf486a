//! README's tour, run as it stands there.

use std::process::Command;

use crate::support::site::Site;

#[test]
fn the_tour_works_when_pasted() {
    let readme = include_str!("../README.md");
    let steps: Vec<&str> = readme.split("```sh tour\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert_eq!(steps.len(), 5);
    let site = Site::sqlite();
    let data = site.path(".local/share/containarium");
    std::fs::create_dir_all(data.parent().unwrap()).unwrap();
    let daemon = || {
        let mut command = site.command(["daemon"]);
        command.env("CONTAINARIUM_DATA_DIR", &data);
        site.start_with(command)
    };
    let run = |step: &str| {
        let directory = std::path::Path::new(env!("CARGO_BIN_EXE_containarium")).parent().unwrap().to_owned();
        let mut like = site.command(["--version"]);
        like.env("CONTAINARIUM_DATA_DIR", &data);
        let mut shell = Command::new("bash");
        shell.args(["-euo", "pipefail", "-c", step]).env_clear();
        for (name, value) in like.get_envs() {
            shell.env(name, value.unwrap_or_default());
        }
        let path = like.get_envs().find(|(name, _)| *name == "PATH").and_then(|(_, value)| value).unwrap();
        shell.env("PATH", std::env::join_paths(std::iter::once(directory).chain(std::env::split_paths(path))).unwrap());
        let output = shell.output().unwrap();
        assert!(output.status.success(), "{step}\n{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let running = daemon();
    let said = run(steps[0]);
    assert!(said.contains("postgres://app:correct-horse@db/app") && said.contains("DB_URL"), "{said}");
    let said = run(steps[1]);
    assert!(said.contains("correct-horse") && said.contains("live"), "{said}");
    assert_eq!(running.stop().code(), Some(0));
    let _running = daemon();
    let said = run(steps[2]);
    assert!(said.contains("postgres://app:battery-staple@db/app"), "{said}");
    assert!(data.join("containarium.db").exists(), "the tour looks where the data lies");
    assert_eq!(run(steps[3]), "nothing readable\n");
    run(steps[4]);
    assert!(run("containarium secrets get alice DB_URL").contains("battery-staple"));
}
