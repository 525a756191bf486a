//! Random rounds of load, kills and rotations, each drawn from a seed that is printed first; with a checker
//! (`scripts/crash-rotation N [SEED]`, docs/development.md).
//!
//! A round's plan is the seed's and its number's; the moments at which its threads meet are the machine's.

mod end;
mod history;
mod load;
mod plan;
mod play;

use std::hash::{BuildHasher, Hasher};
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use load::{Client, Shared, lock};
use plan::{Draw, Plan, Where};
use play::{Machines, Operator};

use super::active;
use crate::support::site::{Daemon, Site, wait_for};
use crate::support::stores::postgres::PostgresDatabase;
use crate::support::stores::postgres::server::Server;

/// Rounds that every run of the tests plays, but for those that would begin late.
const ROUNDS: u64 = 12;
const LATE: Duration = Duration::from_mins(2);
/// Rounds at a time. Much of a round is waiting; each thread has a server of its own, to kill.
const THREADS: u64 = 3;
const CLIENTS: usize = 3;

#[test]
fn random_rounds_of_load_kills_and_rotations_lose_nothing() {
    let asked = setting("CRASH_ROTATION_ROUNDS");
    let (rounds, begun) = (asked.unwrap_or(ROUNDS), Instant::now());
    let seed =
        setting("CRASH_ROTATION_SEED").unwrap_or_else(|| std::hash::RandomState::new().build_hasher().finish() >> 16);
    let only = setting("CRASH_ROTATION_ONLY");
    say(&format!("seed {seed}, {rounds} rounds; one of them again: scripts/crash-rotation {rounds} {seed} ROUND"));
    let (next, played, failed) = (AtomicU64::new(1), AtomicU64::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..setting("CRASH_ROTATION_THREADS").unwrap_or(THREADS) {
            scope.spawn(|| {
                let mut server = None;
                loop {
                    let round = next.fetch_add(1, Ordering::Relaxed);
                    if round > rounds || (asked.is_none() && begun.elapsed() > LATE) {
                        break;
                    }
                    if only.is_some_and(|only| only != round) {
                        continue;
                    }
                    played.fetch_add(1, Ordering::Relaxed);
                    if !passes(seed, round, &mut server) {
                        lock(&failed).push(round);
                        // What a failed round left of it is not the next one's.
                        server = None;
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    let (played, took) = (played.into_inner(), begun.elapsed().as_secs());
    say(&format!("seed {seed}: {played} of {rounds} rounds played in {took} s, {} failed {failed:?}", failed.len()));
    assert!(played > 0);
    assert!(failed.is_empty(), "seed {seed}: rounds {failed:?} failed");
}

/// Also where the tests' output is kept back, as that of those that pass is.
fn say(line: &str) {
    writeln!(std::io::stderr(), "crash-rotation: {line}").unwrap();
}

#[expect(clippy::disallowed_methods, reason = "scripts/crash-rotation says by the environment how many")]
fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

fn passes(seed: u64, round: u64, server: &mut Option<Server>) -> bool {
    let begun = Instant::now();
    let mut draw = Draw::new(seed, round);
    let plan = Plan::draw(&mut draw);
    println!("round {round}: {plan:?}");
    let played = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| play(&plan, &mut draw, server)));
    let took = begun.elapsed().as_secs_f32();
    match played {
        Ok(Ok(told)) => {
            println!("round {round}: ok, {took:.1} s, {told}");
            true
        }
        Ok(Err(found)) => {
            println!("round {round} of seed {seed} FAILED, {took:.1} s, {plan:?}\n{found}");
            false
        }
        Err(_) => {
            println!("round {round} of seed {seed} FAILED with a panic, {took:.1} s, {plan:?}");
            false
        }
    }
}

fn play(plan: &Plan, draw: &mut Draw, server: &mut Option<Server>) -> Result<String, String> {
    let sites = sites(plan, server);
    let config = format!("[cache]\nmax_entries = {}\n[secrets]\nkeep_versions = 100000\n", plan.cache_entries);
    for site in &sites {
        std::fs::write(site.path("config.toml"), &config).unwrap();
    }
    let daemons = started(&sites, plan);
    let first = active(&daemons[0]);
    let shared = Shared::new(sites.iter().map(Site::socket).collect());
    let mut clients: Vec<Client> =
        (0..CLIENTS).map(|number| Client::new(&shared, number, plan.tenants, draw.split())).collect();
    for client in &mut clients {
        client.fill(&shared);
    }

    let said = Mutex::new(Vec::new());
    let mut machines = Machines::new(&shared, &sites, daemons);
    let operator = |draw: Draw| Operator { shared: &shared, sites: &sites, plan, first: &first, draw, said: &said };
    let (asked, besides) = (draw.split(), draw.split());
    let settling = draw.split();
    let over = AtomicBool::new(false);
    let clients: Vec<Client> = std::thread::scope(|scope| {
        let reading: Vec<_> = clients.into_iter().map(|client| scope.spawn(|| client.run(&shared))).collect();
        scope.spawn(|| play::spread(&sites, &over));
        // Whatever happens, the other threads come to their end.
        let ended = OnDrop([&shared.stop, &over]);
        let at_work = [
            scope.spawn(|| operator(asked).rotate()),
            scope.spawn(|| play::beside(&shared, &sites, plan, besides, &said)),
        ];
        machines.suffer(plan, server.as_mut(), &|| at_work.iter().any(|work| !work.is_finished()));
        let settled = scope.spawn(|| operator(settling).settle());
        machines.suffer(&Plan { faults: Vec::new(), ..plan.clone() }, None, &|| !settled.is_finished());
        drop(ended);
        reading.into_iter().map(|client| client.join().unwrap()).collect()
    });

    let mut found = std::mem::take(&mut machines.said);
    for client in &clients {
        client.undelete_all(&shared);
    }
    let all = lock(&shared.histories).len();
    for index in 0..all {
        shared.read(index % sites.len(), index);
    }
    for daemon in machines.into_daemons() {
        let status = daemon.stop();
        if status.code() != Some(0) {
            found.push(format!("a daemon that was told to stop ended with {status}"));
        }
    }
    found.extend(end::of_clients(&shared, plan));
    found.extend(end::of_the_state(&shared, &sites[0], plan, &first));
    let fresh: Vec<Daemon> = sites.iter().map(Site::start).collect();
    found.extend(end::of_the_files(&sites));
    found.extend(end::of_the_values(&shared, plan, &fresh));
    if plan.with_reference {
        found.extend(end::by_the_reference(&shared, &sites[0], plan));
    }
    if found.is_empty() { Ok(told(&shared)) } else { Err(report(&found, &shared, &said, &sites)) }
}

/// Sets its flags when it goes.
struct OnDrop<'a>([&'a AtomicBool; 2]);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        for flag in self.0 {
            flag.store(true, Ordering::Relaxed);
        }
    }
}

fn sites(plan: &Plan, server: &mut Option<Server>) -> Vec<Site> {
    match plan.place {
        Where::Sqlite => vec![Site::sqlite()],
        Where::Postgres { nodes } => {
            let url = server.get_or_insert_with(|| wait_for(Server::start())).url();
            let first = Site::on_database(wait_for(PostgresDatabase::create_on(&url)));
            let others: Vec<Site> = (1..nodes).map(|_| first.sharing()).collect();
            std::iter::once(first).chain(others).collect()
        }
    }
}

/// The daemons, of which the operator's own has its failpoint: from its second start on, as a first one writes a key too.
fn started(sites: &[Site], plan: &Plan) -> Vec<Daemon> {
    let start = |node: usize| {
        let daemon = sites[node].start();
        let Some(point) = plan.failpoint.as_ref().filter(|_| node == plan.home) else { return daemon };
        assert_eq!(daemon.stop().code(), Some(0));
        let mut command = sites[node].command(["daemon"]);
        command.env("CONTAINARIUM_FAILPOINTS", point);
        sites[node].start_with(command)
    };
    let first = start(0);
    let key = std::fs::read(sites[0].key_file()).unwrap();
    let others = (1..sites.len()).map(|node| {
        let output = sites[node].cli(["admin", "install-key"], &key);
        assert!(output.status.success(), "{output:?}");
        start(node)
    });
    std::iter::once(first).chain(others).collect()
}

fn told(shared: &Shared) -> String {
    let histories = lock(&shared.histories);
    let reads: usize = histories.iter().map(|history| history.reads.len()).sum();
    let changes: usize = histories.iter().map(|history| history.acknowledged().len()).sum();
    let (failed, outages) = (lock(&shared.failed).len(), lock(&shared.outages).len());
    format!("{reads} reads, {changes} values, {failed} without an answer or refused, {outages} outages")
}

fn report(found: &[String], shared: &Shared, said: &Mutex<Vec<String>>, sites: &[Site]) -> String {
    const SHOWN: usize = 10;
    let mut lines: Vec<String> = found.iter().take(SHOWN).map(|what| format!("  ✗ {what}")).collect();
    if found.len() > SHOWN {
        lines.push(format!("  … and {} more", found.len() - SHOWN));
    }
    lines.extend(lock(said).iter().map(|what| format!("  operator: {what}")));
    lines.extend(lock(&shared.outages).iter().map(|outage| format!("  {outage:?}")));
    for (node, site) in sites.iter().enumerate() {
        let log = site.log();
        // While the database is away, each request says so.
        let told = log.lines().filter(|line| !line.contains("WARN the database is not available"));
        lines.extend(told.map(|line| format!("  daemon {node}: {line}")));
    }
    lines.join("\n")
}
