//! SIGKILL at every named point of a rotation, restart, finish, check. The daemon under test is built with the feature `failpoints`
//! (`scripts/test` does that in a second build); which points there are is read from the source, in every build.

use std::collections::BTreeSet;
use std::path::Path;

/// Each point, and what the daemon is asked so that it comes there.
const ROUNDS: &[(&str, Round)] = &[
    ("rotation.leased", Round::Waived),
    ("rotation.checked-page", Round::Waived),
    ("rotation.preflighted", Round::Waived),
    ("rotation.staged-file", Round::Waived),
    ("rotation.staged-row", Round::Waived),
    ("rotation.waiving", Round::Waived),
    ("rotation.waived", Round::Waived),
    ("rotation.pushing", Round::Pushed),
    ("backup.begun", Round::Pushed),
    ("backup.added", Round::Pushed),
    ("rotation.pushed", Round::Pushed),
    ("rotation.recording", Round::Proven),
    ("rotation.recorded", Round::Proven),
    ("rotation.flipping", Round::Waived),
    ("rotation.flipped", Round::Waived),
    ("rotation.page-wrapped", Round::Waived),
    ("rotation.page-applied", Round::Waived),
    ("rotation.rewrapped", Round::Waived),
    ("rotation.verifying", Round::Waived),
    ("rotation.verified", Round::Waived),
    ("rotation.verified-phase", Round::Waived),
    ("rotation.promoting", Round::LockHeld),
    ("rotation.promoted", Round::LockHeld),
    ("rotation.retiring", Round::Waived),
    ("rotation.retired", Round::Waived),
    ("rotation.renewing-dek", Round::Compromised),
    ("rotation.renewed-dek", Round::Compromised),
    ("rotation.renewed-system-keys", Round::Compromised),
    ("rotation.reencrypted-tenant", Round::Compromised),
    ("rotation.reencrypted", Round::Compromised),
    ("rotation.finished", Round::Compromised),
    ("rotation.aborting", Round::Abort),
    ("rotation.aborted", Round::Abort),
    ("rotation.destroying", Round::Destroy),
    ("rotation.destroyed", Round::Destroy),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Round {
    Waived,
    Proven,
    /// The copy goes to a fake of Secret Manager.
    Pushed,
    Compromised,
    /// Somebody holds the key files' lock from the staging to the promotion, so that the promotion is left to its own step.
    LockHeld,
    Abort,
    Destroy,
}

#[test]
fn every_failpoint_of_the_source_has_its_kill_round_and_no_other() {
    let mut named = BTreeSet::new();
    collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut named);
    let rounds: BTreeSet<String> = ROUNDS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(rounds.len(), ROUNDS.len());
    assert_eq!(named, rounds);
    assert!(ROUNDS.iter().any(|(_, round)| *round == Round::Abort));
}

fn collect(dir: &Path, named: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, named);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let source = std::fs::read_to_string(&path).unwrap();
            let found = source.split("failpoint::reached(\"").skip(1).filter_map(|rest| rest.split('"').next());
            named.extend(found.map(str::to_owned));
        }
    }
}

#[cfg(feature = "failpoints")]
mod rounds {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Output;
    use std::time::Instant;

    use rustix::fs::FlockOperation;

    use super::super::*;
    use super::{ROUNDS, Round};
    use crate::daemon::backup::Cloud;
    use crate::support::google::SECRET;
    use crate::support::site::PATIENCE;

    const TENANTS: usize = 5;

    #[test]
    fn a_kill_at_any_point_loses_nothing_on_sqlite() {
        for (name, round) in ROUNDS {
            killed_at(&Site::sqlite(), name, *round);
        }
    }

    #[test]
    fn a_kill_at_any_point_loses_nothing_on_postgresql() {
        for (name, round) in ROUNDS {
            killed_at(&Site::postgres(), name, *round);
        }
    }

    /// A rotator that sleeps through another's work finds that it is no longer meant, and changes nothing.
    #[test]
    fn a_zombie_rotator_that_wakes_finds_the_rotation_done_and_does_no_harm() {
        for point in ["rotation.page-wrapped", "rotation.verified", "rotation.retiring"] {
            let site = Site::postgres();
            let other = site.sharing();
            let first = site.start();
            fill(&first, TENANTS);
            let key = std::fs::read(site.key_file()).unwrap();
            assert!(other.cli(["admin", "install-key"], &key).status.success());
            let kid = rotated(&site, &[])["kid"].as_str().unwrap().to_owned();
            let staged = std::fs::read(staged_file(&site, &kid)).unwrap();
            assert!(other.cli(["admin", "install-key"], &staged).status.success());
            assert_eq!(first.stop().code(), Some(0));
            let mut command = site.command(["daemon"]);
            command.env("CONTAINARIUM_FAILPOINTS", format!("{point}=stop"));
            let zombie = site.start_with(command);
            std::thread::scope(|scope| {
                let asked = scope.spawn(|| rotate(&site, &["--resume", WAIVE[0], WAIVE[1]]));
                zombie.stopped();
                site.run_sql("UPDATE key_state SET lease_until = 1");
                let second = other.start();
                let begun = Instant::now();
                while phase(&other) != "idle" {
                    assert!(begun.elapsed() < PATIENCE, "{point}: {}", other.log());
                    std::thread::yield_now();
                }
                let before = other.texts("SELECT encode(wrapped, 'hex') FROM deks ORDER BY 1");
                zombie.wake();
                let (output, _) = asked.join().unwrap();
                assert!(output.status.code().is_some_and(|code| [0, 6].contains(&code)), "{point}: {output:?}");
                assert_eq!(other.texts("SELECT encode(wrapped, 'hex') FROM deks ORDER BY 1"), before, "{point}");
                assert_eq!((phase(&other).as_str(), not_under(&other, &kid)), ("idle", 0), "{point}");
                check(&second, TENANTS);
                check(&zombie, TENANTS);
            });
        }
    }

    fn killed_at(site: &Site, name: &str, round: Round) {
        println!("{name} ({round:?}) on {}", if site.is_postgres() { "PostgreSQL" } else { "SQLite" });
        let settings = "[keys]\nretain_old = \"0s\"\n[cache]\nmax_entries = 2\n";
        std::fs::write(site.path("config.toml"), settings).unwrap();
        let cloud = (round == Round::Pushed).then(|| Cloud::with(site, &[SECRET], settings));
        let first = site.start();
        fill(&first, TENANTS);
        let old = active(&first);
        let off_host = elsewhere();
        let copy = off_host.path().join("copy");
        match round {
            Round::Waived | Round::Compromised | Round::Pushed => {}
            Round::Proven | Round::LockHeld | Round::Abort => {
                let kid = rotated(site, &[])["kid"].as_str().unwrap().to_owned();
                std::fs::copy(staged_file(site, &kid), &copy).unwrap();
            }
            Round::Destroy => drop(rotated(site, &WAIVE)),
        }
        assert_eq!(first.stop().code(), Some(0));

        let mut command = site.command(["daemon"]);
        command.env("CONTAINARIUM_FAILPOINTS", format!("{name}=kill"));
        let daemon = site.start_with(command);
        let output = ask(site, round, &copy);
        assert!(!output.status.success(), "{name} was not reached: {output:?}\n{}", site.log());
        assert_eq!(daemon.ended().signal(), Some(9), "{name}: {}", site.log());

        let daemon = site.start();
        check(&daemon, TENANTS);
        finish(site, round);
        assert_eq!(phase(site), "idle");
        assert_eq!(site.number("SELECT count(*) FROM key_state WHERE lease_holder IS NULL AND mode = 'normal'"), 1);
        let kid = active(&daemon);
        assert_eq!(kid == old, round == Round::Abort, "{name}");
        assert_eq!(not_under(site, &kid), 0);
        check(&daemon, TENANTS);
        assert_eq!(daemon.set("fresh", "KEY", b"value").status, 200);
        if round == Round::Destroy {
            assert!(!staged_file(site, &old).exists(), "{name}");
        }
        if let Some(cloud) = cloud {
            let of = hex_of(site, "kid");
            let begun = site.number("SELECT count(*) FROM escrows WHERE confirmed_at IS NULL");
            let confirmed = site.number(&format!("SELECT count(*) FROM escrows WHERE {of} = '{kid}'"));
            assert_eq!((begun, confirmed), (0, 1), "{name}: the row that was begun is the one that was confirmed");
            assert_eq!(cloud.requests("add"), if name == "backup.added" { 2 } else { 1 }, "{name}");
        }
        if round == Round::Compromised {
            assert_eq!(site.number("SELECT count(*) FROM deks WHERE coalesce(made_in_epoch, 0) < 2"), 0);
        }
        assert_eq!(daemon.stop().code(), Some(0));
        check(&site.start(), TENANTS);
    }

    fn ask(site: &Site, round: Round, copy: &std::path::Path) -> Output {
        let copy = copy.to_str().unwrap();
        match round {
            Round::Waived => rotate(site, &WAIVE).0,
            Round::Pushed => rotate(site, &[]).0,
            Round::Compromised => rotate(site, &["--compromised", WAIVE[0], WAIVE[1]]).0,
            Round::Proven => rotate(site, &["--resume", "--prove-from", copy]).0,
            Round::Abort => rotate(site, &["--abort"]).0,
            Round::Destroy => rotate(site, &["--destroy-old", "--yes", WAIVE[0], WAIVE[1]]).0,
            Round::LockHeld => std::thread::scope(|scope| {
                let lock = std::fs::File::open(site.path("etc/secrets.key.lock")).unwrap();
                rustix::fs::flock(&lock, FlockOperation::LockExclusive).unwrap();
                let asked = scope.spawn(|| rotate(site, &["--resume", "--prove-from", copy]).0);
                let begun = Instant::now();
                // The daemon's own loop skips a lock that is held; the step waits for it.
                while !site.log().contains("rotation: promote:") {
                    assert!(begun.elapsed() < PATIENCE, "{}", site.log());
                    std::thread::yield_now();
                }
                drop(lock);
                asked.join().unwrap()
            }),
        }
    }

    /// Whatever the kill left, one command ends it; past the flip none is needed.
    fn finish(site: &Site, round: Round) {
        match (round, phase(site).as_str()) {
            (Round::Abort, "staged") => assert_eq!(rotated(site, &["--abort"])["end"], "aborted"),
            (Round::Abort, _) => {}
            (Round::Destroy, _) => {
                if site.number("SELECT count(*) FROM master_keys WHERE state = 'destroyed'") == 0 {
                    rotated(site, &["--destroy-old", "--yes", WAIVE[0], WAIVE[1]]);
                }
            }
            (Round::Pushed, "staged") => assert_eq!(rotated(site, &["--resume"])["end"], "rotated"),
            (_, "staged") => assert_eq!(rotated(site, &["--resume", WAIVE[0], WAIVE[1]])["end"], "rotated"),
            (_, "idle") => {
                if site.number("SELECT epoch FROM key_state") == 1 {
                    let start = if round == Round::Compromised { "--compromised" } else { "--yes" };
                    rotated(site, &[start, WAIVE[0], WAIVE[1]]);
                }
            }
            _ => {
                let begun = Instant::now();
                while phase(site) != "idle" {
                    assert!(begun.elapsed() < PATIENCE, "{}", site.log());
                    std::thread::yield_now();
                }
            }
        }
    }
}
