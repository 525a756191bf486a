//! Clients that read and write until they are told to stop, and note all that they see.

use std::fmt;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::history::{Change, History, Outcome, Read, Saw, To};
use super::plan::Draw;
use crate::support::site::{Answer, PATIENCE};

/// Secrets that each client has in each tenant.
const NAMES: usize = 2;

/// Between two requests of a client: enough of them to meet every step, and few enough that two processors get to the steps.
const PACE: Duration = Duration::from_millis(4);

/// When something was away that a request may have needed.
#[derive(Debug, Clone)]
pub(super) struct Outage {
    pub(super) of: Of,
    pub(super) from: u64,
    /// The end of time while it lasts.
    pub(super) until: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    Daemon(usize),
    Database,
}

/// What a client noted that is none of [`History`]'s.
#[derive(Debug, Clone)]
pub(super) struct Failed {
    pub(super) node: usize,
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) what: What,
    /// 0 without an answer.
    pub(super) status: u16,
    pub(super) detail: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    Read { tenant: String },
    Change { tenant: String },
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, start, end, what, status, detail } = self;
        write!(f, "{what:?} from {start} to {end} on node {node} failed with {status}: {detail}")
    }
}

/// What a round's threads share.
pub(super) struct Shared {
    began: Instant,
    sockets: Vec<PathBuf>,
    pub(super) histories: Mutex<Vec<History>>,
    pub(super) failed: Mutex<Vec<Failed>>,
    pub(super) outages: Mutex<Vec<Outage>>,
    /// When the shred was asked for, and when it was acknowledged.
    pub(super) shred: Mutex<Option<(u64, u64)>>,
    /// What commands reported: how a rotation ended, and the kid that it was about.
    pub(super) ends: Mutex<Vec<(String, String)>>,
    pub(super) stop: AtomicBool,
}

/// A panic of one thread is the round's end anyway.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn new(sockets: Vec<PathBuf>) -> Self {
        Self {
            began: Instant::now(),
            sockets,
            histories: Mutex::default(),
            failed: Mutex::default(),
            outages: Mutex::default(),
            shred: Mutex::default(),
            ends: Mutex::default(),
            stop: AtomicBool::new(false),
        }
    }

    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap()
    }

    pub(super) const fn nodes(&self) -> usize {
        self.sockets.len()
    }

    /// Asks a node; nothing where there was no whole answer.
    pub(super) fn ask(&self, node: usize, method: &str, path: &str, body: &[u8]) -> Option<Answer> {
        ask(&self.sockets[node], method, path, body)
    }

    pub(super) fn away(&self, of: Of, from: u64) {
        lock(&self.outages).push(Outage { of, from, until: u64::MAX });
    }

    pub(super) fn back(&self, of: Of) {
        let now = self.now();
        let mut outages = lock(&self.outages);
        for outage in outages.iter_mut().filter(|outage| outage.of == of && outage.until == u64::MAX) {
            outage.until = now;
        }
    }

    /// Enters a secret, owned by whoever asks.
    fn enter(&self, tenant: String, name: String) -> usize {
        let mut histories = lock(&self.histories);
        histories.push(History { tenant, name, ..History::default() });
        histories.len() - 1
    }

    fn place(&self, index: usize) -> (String, String) {
        let histories = lock(&self.histories);
        (histories[index].tenant.clone(), histories[index].name.clone())
    }

    /// Reads what is there now.
    pub(super) fn read(&self, node: usize, index: usize) {
        let (tenant, name) = self.place(index);
        let start = self.now();
        let answer = self.ask(node, "GET", &format!("/v1/secrets/{tenant}/{name}"), b"");
        let end = self.now();
        let saw = match answer.as_ref().map(|answer| answer.status) {
            Some(200) => {
                let answer = answer.as_ref().unwrap();
                let version = answer.json()["secret"]["version"].as_u64().unwrap();
                Saw::Value { version, value: String::from_utf8_lossy(&answer.value()).into_owned() }
            }
            Some(404) => Saw::Nothing,
            _ => return self.note(node, start, end, What::Read { tenant }, answer.as_ref()),
        };
        lock(&self.histories)[index].reads.push(Read { start, end, saw });
    }

    /// Changes a secret of one's own.
    pub(super) fn change(&self, node: usize, index: usize, to: To) {
        let (tenant, name) = self.place(index);
        let path = format!("/v1/secrets/{tenant}/{name}");
        let start = self.now();
        let answer = match &to {
            To::Value(value) => {
                let body = serde_json::json!({ "value": value }).to_string();
                self.ask(node, "PUT", &path, body.as_bytes())
            }
            To::Deleted => self.ask(node, "DELETE", &path, b""),
            To::Undeleted => self.ask(node, "POST", &format!("{path}/undelete"), b""),
        };
        let end = self.now();
        let outcome = match answer.as_ref().map(|answer| answer.status) {
            Some(200) => {
                let version = answer.as_ref().unwrap().json()["secret"]["version"].as_u64();
                Outcome::Done(version.filter(|_| matches!(to, To::Value(_))))
            }
            // It is as it was to become, or was never there.
            Some(404 | 409) if !matches!(to, To::Value(_)) => Outcome::Refused,
            Some(503) | None => {
                self.note(node, start, end, What::Change { tenant }, answer.as_ref());
                Outcome::Unknown
            }
            Some(_) => {
                self.note(node, start, end, What::Change { tenant }, answer.as_ref());
                Outcome::Refused
            }
        };
        lock(&self.histories)[index].changes.push(Change { start, end, to, outcome });
    }

    /// Notes what a command reported.
    pub(super) fn ended(&self, report: &serde_json::Value) {
        if let (Some(end @ ("rotated" | "aborted")), Some(kid)) = (report["end"].as_str(), report["kid"].as_str()) {
            lock(&self.ends).push((end.to_owned(), kid.to_owned()));
        }
    }

    fn note(&self, node: usize, start: u64, end: u64, what: What, answer: Option<&Answer>) {
        let status = answer.map_or(0, |answer| answer.status);
        let detail = answer.map_or_else(String::new, |answer| String::from_utf8_lossy(&answer.body).into_owned());
        lock(&self.failed).push(Failed { node, start, end, what, status, detail });
    }
}

/// A client: what is its own it changes, and it reads whatever there is.
pub(super) struct Client {
    number: usize,
    draw: Draw,
    own: Vec<usize>,
    /// Each value is another.
    values: u64,
    tenants: u64,
}

impl Client {
    pub(super) fn new(shared: &Shared, number: usize, tenants: usize, draw: Draw) -> Self {
        let place = |at: usize| (format!("t{}", at / NAMES), format!("C{number}_{}", at % NAMES));
        let own = (0..tenants * NAMES).map(place).map(|(tenant, name)| shared.enter(tenant, name)).collect();
        Self { number, draw, own, values: 0, tenants: 0 }
    }

    /// The first values: all nodes are there.
    pub(super) fn fill(&mut self, shared: &Shared) {
        for index in self.own.clone() {
            let value = self.value();
            shared.change(0, index, value);
        }
    }

    pub(super) fn run(mut self, shared: &Shared) -> Self {
        while !shared.stop.load(Ordering::Relaxed) {
            self.once(shared);
            std::thread::sleep(PACE);
        }
        self
    }

    fn once(&mut self, shared: &Shared) {
        let node = self.draw.below(shared.nodes());
        let all = lock(&shared.histories).len();
        let own = *self.draw.of(&self.own);
        match self.draw.below(12) {
            0..=7 => shared.read(node, self.draw.below(all)),
            8 | 9 => {
                let value = self.value();
                shared.change(node, own, value);
            }
            10 => shared.change(node, own, if self.draw.once_in(2) { To::Deleted } else { To::Undeleted }),
            // A tenant's first secret makes its DEK.
            _ => {
                self.tenants += 1;
                let index = shared.enter(format!("c{}-{}", self.number, self.tenants), "FIRST".to_owned());
                self.own.push(index);
                let value = self.value();
                shared.change(node, index, value);
            }
        }
    }

    /// So that everything can be read that was ever acknowledged.
    pub(super) fn undelete_all(&self, shared: &Shared) {
        for index in &self.own {
            shared.change(0, *index, To::Undeleted);
        }
    }

    fn value(&mut self) -> To {
        self.values += 1;
        To::Value(format!("client {} value {}", self.number, self.values))
    }
}

fn ask(socket: &Path, method: &str, path: &str, body: &[u8]) -> Option<Answer> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let length = body.len();
    let head =
        format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all(&[head.as_bytes(), body].concat()).ok()?;
    let mut raw = Vec::new();
    stream.read_to_end(&mut raw).ok()?;
    raw.windows(4).any(|window| window == b"\r\n\r\n").then_some(())?;
    let answer = Answer::parse(&raw);
    let length: usize = answer.headers.get("content-length")?.parse().ok()?;
    (answer.body.len() == length).then_some(answer)
}
