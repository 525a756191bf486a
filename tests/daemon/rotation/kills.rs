//! SIGKILL at every named point of a rotation, restart, finish, check. The daemon under test is built with the feature `failpoints`
//! (`scripts/test` does that in a second build); which points there are is read from the source, in every build.
//!
//! A step has a point before it, one after it, and where it is more than one write, points between its writes. There is none
//! - inside a COMMIT, which is the database's own: it is killed itself there, and at random moments (`rounds`);
//! - inside the write of a temporary file: nobody reads that name, and the next writer removes it. A disk that is full in the middle
//!   of it is a test of its own (`disks`);
//! - between two rows of one transaction, but for the flip's two: none of them is there before the COMMIT, and a point at its end
//!   shows that;
//! - in taking and renewing a lease, in a heartbeat, and in the replacement of node.json: each is one write, of what the next start
//!   writes anew.

use std::collections::BTreeSet;
use std::path::Path;

/// Each point, and what the daemon is asked so that it comes there.
pub(super) const ROUNDS: &[(&str, Round)] = &[
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
    // Inside the steps that write a key file: whole under its temporary name; named, and the directory not yet durable. First the new
    // key's copy, then the old key's.
    ("keyfile.kept-unnamed", Round::Waived),
    ("keyfile.kept-unsynced", Round::Waived),
    ("keyfile.kept-unnamed", Round::Proven),
    ("keyfile.kept-unsynced", Round::Proven),
    ("keyfile.old-kept", Round::Waived),
    ("keyfile.main-unnamed", Round::Waived),
    ("keyfile.main-unsynced", Round::Waived),
    ("keyfile.unlinked-unsynced", Round::Abort),
    ("keyfile.unlinked-unsynced", Round::Destroy),
    // Inside a transaction: all is written, and nothing committed.
    ("store.stage", Round::Waived),
    ("store.escrow", Round::Waived),
    ("store.escrow", Round::Proven),
    ("store.flip-half", Round::Waived),
    ("store.flip", Round::Waived),
    ("store.rewrap", Round::Waived),
    ("store.phase", Round::Waived),
    ("store.retire", Round::Waived),
    ("store.rotate-dek", Round::Compromised),
    ("store.reseal", Round::Compromised),
    ("store.remove-dek", Round::Compromised),
    ("store.abort", Round::Abort),
    ("store.escrow", Round::Destroy),
    ("store.destroy", Round::Destroy),
    // Between the two files of the node's record.
    ("node.log-written", Round::Waived),
    ("node.log-written", Round::Destroy),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Round {
    Waived,
    /// The new key was staged before, and the old one lies nowhere but in the key file.
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
    assert_eq!(ROUNDS.iter().collect::<BTreeSet<_>>().len(), ROUNDS.len(), "none twice");
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
    use crate::support::site::{PATIENCE, wait_for};
    use crate::support::stores::postgres::PostgresDatabase;
    use crate::support::stores::postgres::server::Server;

    const TENANTS: usize = 5;

    #[test]
    fn a_kill_at_any_point_loses_nothing_on_sqlite() {
        for (name, round) in ROUNDS {
            killed_at(&Site::sqlite(), name, *round, 2);
        }
    }

    #[test]
    fn a_kill_at_any_point_loses_nothing_on_sqlite_without_a_cache() {
        for (name, round) in ROUNDS {
            killed_at(&Site::sqlite(), name, *round, 0);
        }
    }

    #[test]
    fn a_kill_at_any_point_loses_nothing_on_postgresql() {
        for (name, round) in ROUNDS {
            killed_at(&Site::postgres(), name, *round, 2);
        }
    }

    #[test]
    fn a_kill_at_any_point_loses_nothing_on_postgresql_without_a_cache() {
        for (name, round) in ROUNDS {
            killed_at(&Site::postgres(), name, *round, 0);
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

    /// PostgreSQL itself dies, with fsync on: while the transaction is open, and when it is committed and the daemon has not looked yet.
    #[test]
    fn a_kill_of_postgresql_at_the_flip_in_a_batch_and_at_the_end_loses_nothing() {
        let mut server = wait_for(Server::start());
        for (point, epoch) in [
            ("store.flip", 1),
            ("rotation.flipped", 2),
            ("store.rewrap", 2),
            ("rotation.page-applied", 2),
            ("store.retire", 2),
            ("rotation.retired", 2),
        ] {
            let site = Site::on_database(wait_for(PostgresDatabase::create_on(&server.url())));
            let first = site.start();
            fill(&first, TENANTS);
            assert_eq!(first.stop().code(), Some(0));
            let mut command = site.command(["daemon"]);
            command.env("CONTAINARIUM_FAILPOINTS", format!("{point}=stop"));
            let daemon = site.start_with(command);
            std::thread::scope(|scope| {
                // A server that comes back slowly outlasts the command's patience; the daemon goes on without it.
                scope.spawn(|| rotate(&site, &WAIVE));
                daemon.stopped();
                server.kill();
                wait_for(server.run());
                assert_eq!(site.number("SELECT epoch FROM key_state"), epoch, "{point}");
                daemon.wake();
            });
            let begun = Instant::now();
            while (phase(&site).as_str(), site.number("SELECT epoch FROM key_state")) != ("idle", 2) {
                assert!(begun.elapsed() < PATIENCE, "{point}: {}", site.log());
                std::thread::yield_now();
            }
            assert_eq!(not_under(&site, &active(&daemon)), 0, "{point}");
            check(&daemon, TENANTS);
            assert_eq!(daemon.stop().code(), Some(0));
            check(&site.start(), TENANTS);
        }
    }

    fn killed_at(site: &Site, name: &str, round: Round, cache: u32) {
        let store = if site.is_postgres() { "PostgreSQL" } else { "SQLite" };
        println!("{name} ({round:?}) on {store}, cache of {cache}");
        let settings = format!("[keys]\nretain_old = \"0s\"\n[cache]\nmax_entries = {cache}\n");
        std::fs::write(site.path("config.toml"), &settings).unwrap();
        let cloud = (round == Round::Pushed).then(|| Cloud::with(site, &[SECRET], &settings));
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
        if round == Round::Proven {
            // As a key lies that an operator put into its place; the promotion keeps it before it is replaced.
            std::fs::remove_file(staged_file(site, &old)).unwrap();
        }

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
        let kids = |state: &str| {
            site.texts(&format!("SELECT {} FROM master_keys WHERE state = '{state}'", hex_of(site, "kid")))
        };
        for kept in kids("retired") {
            assert!(staged_file(site, &kept).exists(), "{name}: {kept} is retired, and kept");
        }
        for gone in kids("aborted") {
            assert!(!staged_file(site, &gone).exists(), "{name}: {gone} was given up");
        }
        if round == Round::Compromised {
            assert_eq!(site.number("SELECT count(*) FROM deks WHERE coalesce(made_in_epoch, 0) < 2"), 0);
        }
        for path in key_files(site).iter().filter(|path| path.extension().is_none_or(|extension| extension != "key")) {
            let name = path.file_name().unwrap();
            assert!(name.len() == 32, "{name:?} is left half done");
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
