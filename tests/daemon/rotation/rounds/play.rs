//! A round as it is played: daemons and a database that die and come back, an operator, and what is asked beside.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::super::{WAIVE, elsewhere, hex_of, rotate, staged_file};
use super::load::{Of, Shared, lock};
use super::plan::{Beside, Draw, Fault, Plan, Urgency, Wanted};
use crate::support::site::{Daemon, PATIENCE, Site, wait_for};
use crate::support::stores::postgres::server::Server;

/// Between two looks at processes that may have died.
const LOOK: Duration = Duration::from_millis(5);
/// How long one sleeps that stopped itself.
const NAP: u64 = 700;

/// The daemons of a round.
pub(super) struct Machines<'a> {
    shared: &'a Shared,
    sites: &'a [Site],
    daemons: Vec<Option<Daemon>>,
    /// When each was last seen alive.
    alive: Vec<u64>,
    /// When one that sleeps is woken.
    wake: Vec<Option<u64>>,
    pub(super) said: Vec<String>,
}

impl<'a> Machines<'a> {
    pub(super) fn new(shared: &'a Shared, sites: &'a [Site], daemons: Vec<Daemon>) -> Self {
        let (count, now) = (daemons.len(), shared.now());
        let daemons = daemons.into_iter().map(Some).collect();
        Self { shared, sites, daemons, alive: vec![now; count], wake: vec![None; count], said: Vec::new() }
    }

    /// Until all that the plan has was done; then whoever sleeps is woken.
    pub(super) fn suffer(&mut self, plan: &Plan, server: Option<&mut Server>, busy: &dyn Fn() -> bool) {
        let mut server = server;
        let begun = self.shared.now();
        for (at, fault) in &plan.faults {
            while self.shared.now() < begun + at * 1_000_000 {
                self.look();
            }
            match fault {
                Fault::Kill { node, down_ms } => self.kill(*node, *down_ms),
                Fault::Stop { node, ms } => self.sleep(*node, *ms),
                Fault::KillServer { down_ms } => self.without_database(server.as_deref_mut().unwrap(), *down_ms),
            }
        }
        while busy() || self.wake.iter().any(Option::is_some) {
            self.look();
        }
    }

    /// The daemons, all of them running.
    pub(super) fn into_daemons(self) -> Vec<Daemon> {
        self.daemons.into_iter().map(Option::unwrap).collect()
    }

    fn look(&mut self) {
        for node in 0..self.daemons.len() {
            let now = self.shared.now();
            match self.daemons[node].as_mut().and_then(Daemon::gone) {
                Some(status) => {
                    if status.signal() != Some(9) {
                        self.said.push(format!("daemon {node} ended by itself: {status}"));
                    }
                    self.shared.away(Of::Daemon(node), self.alive[node]);
                    self.wake[node] = None;
                    self.restart(node);
                }
                None => self.alive[node] = now,
            }
            let sleeps = self.daemons[node].as_ref().is_some_and(Daemon::is_stopped);
            match self.wake[node] {
                None if sleeps => {
                    self.wake[node] = Some(now + NAP * 1_000_000);
                    self.usurp(node);
                }
                Some(at) if now >= at => {
                    self.wake[node] = None;
                    self.daemons[node].as_ref().unwrap().wake();
                }
                _ => {}
            }
        }
        std::thread::sleep(LOOK);
    }

    fn restart(&mut self, node: usize) {
        // A point that was armed is not any more, so it comes up.
        match self.sites[node].try_start(self.sites[node].command(["daemon"])) {
            Ok(daemon) => self.daemons[node] = Some(daemon),
            Err(status) => panic!("daemon {node} does not start: {status}\n{}", self.sites[node].log()),
        }
        self.shared.back(Of::Daemon(node));
        self.alive[node] = self.shared.now();
    }

    fn kill(&mut self, node: usize, down_ms: u64) {
        let is_dead = self.daemons[node].as_mut().is_some_and(|daemon| daemon.gone().is_some());
        let since = if is_dead { self.alive[node] } else { self.shared.now() };
        self.shared.away(Of::Daemon(node), since);
        self.wake[node] = None;
        if let Some(daemon) = self.daemons[node].take().filter(|_| !is_dead) {
            daemon.kill();
        }
        std::thread::sleep(Duration::from_millis(down_ms));
        self.restart(node);
    }

    fn sleep(&mut self, node: usize, ms: u64) {
        // It may be dead by now; the next look sees that.
        self.daemons[node].as_ref().unwrap().signal(Signal::STOP);
        self.wake[node] = Some(self.shared.now() + ms * 1_000_000);
        self.usurp(node);
    }

    /// Another node may take a sleeper's rotation at once: its lease is let lapse, as it does within half a minute. One that sleeps in a
    /// transaction of its own may hold the row.
    fn usurp(&self, sleeper: usize) {
        if self.sites.len() > 1 {
            self.sites[sleeper].run_sql(
                "UPDATE key_state SET lease_until = 1 WHERE lease_holder IS NOT NULL \
                 AND db_id IN (SELECT db_id FROM key_state FOR UPDATE SKIP LOCKED)",
            );
        }
    }

    fn without_database(&mut self, server: &mut Server, down_ms: u64) {
        self.shared.away(Of::Database, self.shared.now());
        server.kill();
        std::thread::sleep(Duration::from_millis(down_ms));
        wait_for(server.run());
        self.shared.back(Of::Database);
    }
}

/// Who rotates: asks, looks at what came of it, and asks again until it is done. The last faults are before the end.
pub(super) struct Operator<'a> {
    pub(super) shared: &'a Shared,
    pub(super) sites: &'a [Site],
    pub(super) plan: &'a Plan,
    /// The key that was there first.
    pub(super) first: &'a str,
    pub(super) draw: Draw,
    /// What each command came to.
    pub(super) said: &'a Mutex<Vec<String>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    Start,
    Resume,
    Abort,
}

impl Operator<'_> {
    pub(super) fn rotate(mut self) {
        let begun = Instant::now();
        let (mut ask, mut node) = (Ask::Start, self.plan.home);
        loop {
            let end = self.command(ask, node);
            match (ask, end.as_deref()) {
                (_, Some("rotated" | "aborted")) => return,
                (_, Some("staged")) => ask = if self.plan.wanted == Wanted::GivenUp { Ask::Abort } else { Ask::Resume },
                _ => match self.look(node) {
                    Some(Ask::Resume) if self.is_over() => return,
                    Some(next) => ask = next,
                    None => {}
                },
            }
            assert!(begun.elapsed() < 2 * PATIENCE, "it comes to no end: {:?}", lock(self.said));
            node = self.draw.below(self.sites.len());
        }
    }

    /// Whatever somebody left is brought to its end.
    pub(super) fn settle(mut self) {
        let begun = Instant::now();
        while super::super::phase(&self.sites[0]) != "idle" {
            let node = self.draw.below(self.sites.len());
            self.command(Ask::Resume, node);
            assert!(begun.elapsed() < 2 * PATIENCE, "it comes to no end: {:?}", lock(self.said));
        }
        // Each by itself, and maybe by way of the point at which it dies.
        while let Some(site) = self.sites.iter().find(|site| !has_converged(site)) {
            assert!(begun.elapsed() < 2 * PATIENCE, "{} does not converge", site.path("etc").display());
            std::thread::sleep(LOOK);
        }
    }

    /// What a command came to: its end, where it went well.
    fn command(&self, ask: Ask, node: usize) -> Option<String> {
        let mut arguments: Vec<String> = Vec::new();
        let off_host = elsewhere();
        match ask {
            Ask::Abort => arguments.push("--abort".to_owned()),
            Ask::Start if self.plan.urgency == Urgency::Compromised => arguments.push("--compromised".to_owned()),
            Ask::Resume => arguments.push("--resume".to_owned()),
            Ask::Start => {}
        }
        match (ask, self.plan.wanted) {
            (Ask::Abort, _) | (Ask::Start, Wanted::Proven | Wanted::GivenUp) => {}
            (Ask::Resume, Wanted::Proven) => {
                if let Some(file) = self.staged_file(node) {
                    let copy = off_host.path().join("copy");
                    std::fs::copy(file, &copy).unwrap();
                    arguments.extend(["--prove-from".to_owned(), copy.to_str().unwrap().to_owned()]);
                }
            }
            _ => arguments.extend(WAIVE.map(str::to_owned)),
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let start = self.shared.now();
        let (output, report) = rotate(&self.sites[node], &arguments);
        if let Some(report) = &report {
            self.shared.ended(report);
        }
        let end = report.and_then(|report| report["end"].as_str().map(str::to_owned));
        let errors = String::from_utf8_lossy(&output.stderr);
        let took = (self.shared.now() - start) / 1_000_000;
        lock(self.said).push(format!(
            "{} ms, node {node}: {arguments:?} → {:?} {end:?} {} ({took} ms)",
            start / 1_000_000,
            output.status.code(),
            errors.lines().next().unwrap_or_default()
        ));
        end.filter(|_| output.status.success())
    }

    /// Where the staged key lies, on whichever node.
    fn staged_file(&self, node: usize) -> Option<PathBuf> {
        let keys = self.shared.ask(node, "GET", "/v1/admin/rotate-master/keys", b"")?;
        let kid = keys.json()["staged"]["kid"].as_str()?.to_owned();
        self.sites.iter().map(|site| staged_file(site, &kid)).find(|path| path.exists())
    }

    /// What is to be asked next, as the database has it.
    fn look(&self, node: usize) -> Option<Ask> {
        let answer = |path| self.shared.ask(node, "GET", path, b"").filter(|answer| answer.status == 200);
        let keys = answer("/v1/admin/rotate-master/keys")?.json();
        if keys["staged"]["kid"].is_string() {
            return Some(if self.plan.wanted == Wanted::GivenUp { Ask::Abort } else { Ask::Resume });
        }
        let active = active_kid(&answer("/v1/admin/status")?.json())?;
        Some(if active == self.first { Ask::Start } else { Ask::Resume })
    }

    /// Past the flip, and nothing under way.
    fn is_over(&self) -> bool {
        let last = lock(self.said).last().cloned().unwrap_or_default();
        last.contains("Some(\"nothing\")") && last.contains("--resume")
    }
}

/// Whether key files and record are where the database is.
fn has_converged(site: &Site) -> bool {
    let kids =
        |state: &str| site.texts(&format!("SELECT {} FROM master_keys WHERE state = '{state}'", hex_of(site, "kid")));
    let read = |path: PathBuf| std::fs::read(path).ok();
    let is_promoted = kids("active").iter().all(|kid| {
        let copy = read(staged_file(site, kid));
        copy.is_some() && copy == read(site.key_file())
    });
    let record = read(site.data_dir().join("node.json")).unwrap_or_default();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap_or_default();
    is_promoted
        && !kids("aborted").iter().any(|kid| staged_file(site, kid).exists())
        && record["highest"]["generation"].as_i64() == Some(site.number("SELECT generation FROM key_state"))
}

pub(super) fn active_kid(status: &serde_json::Value) -> Option<String> {
    let keys = &status["keys"];
    keys["active_kid"].as_str().or_else(|| keys["activeKid"].as_str()).map(str::to_owned)
}

/// What is asked beside the rotation.
pub(super) fn beside(shared: &Shared, sites: &[Site], plan: &Plan, mut draw: Draw, said: &Mutex<Vec<String>>) {
    std::thread::sleep(Duration::from_millis(plan.beside_at_ms));
    let node = draw.below(sites.len());
    match plan.beside {
        Beside::Nothing => {}
        Beside::RotateDeks => {
            let output = sites[node].cli(["admin", "rotate-dek", "--all", "--reencrypt"], b"");
            lock(said).push(format!("rotate-dek on node {node}: {output:?}"));
        }
        Beside::SecondRotation => {
            let (output, report) = rotate(&sites[node], &WAIVE);
            if let Some(report) = &report {
                shared.ended(report);
            }
            lock(said).push(format!("a second rotation on node {node}: {:?} {report:?}", output.status.code()));
        }
        Beside::Shred => shred(shared, &plan.shredded().unwrap(), &mut draw),
    }
}

fn shred(shared: &Shared, tenant: &str, draw: &mut Draw) {
    let body = serde_json::json!({ "username": tenant, "mode": "now" }).to_string();
    *lock(&shared.shred) = Some((shared.now(), u64::MAX));
    loop {
        let node = draw.below(shared.nodes());
        let answer = shared.ask(node, "POST", "/v1/admin/shred", body.as_bytes());
        // 409: it is shredded already, by a call whose answer was lost.
        if answer.is_some_and(|answer| [200, 409].contains(&answer.status)) {
            break;
        }
        std::thread::sleep(LOOK);
    }
    let now = shared.now();
    if let Some((_, end)) = lock(&shared.shred).as_mut() {
        *end = now;
    }
}

/// Brings every key file to the nodes that lack it, as an operator does who is shown the line for it.
pub(super) fn spread(sites: &[Site], over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        for from in sites {
            let files = std::fs::read_dir(from.path("etc/secrets.key.d")).into_iter().flatten().flatten();
            for file in files.filter(|file| file.file_name().len() == 32) {
                let lacking = |site: &&Site| !site.path("etc/secrets.key.d").join(file.file_name()).exists();
                for to in sites.iter().filter(lacking) {
                    if let Ok(key) = std::fs::read(file.path()) {
                        to.cli(["admin", "install-key"], &key);
                    }
                }
            }
        }
        std::thread::sleep(20 * LOOK);
    }
}
