//! What a run says at its end: what it did, and what is left for an operator to do.

use std::time::Duration;

use super::Order;
use super::execute::{Seen, Trouble};
use super::plan::Stop;
use super::walk::Walked;
use crate::keys::keyfile::KeyFiles;
use crate::model::{KeyMode, Kid, MasterKeyRecord, MasterKeyState, Micros, NodeRecord, SecretName, Tenant};
use crate::service::backup::confirmed_in;
use crate::store::Store;

/// Tenants whose values are named; more are counted.
const NAMED: usize = 1_000;
const PAGE: u32 = 1_000;

/// How a run ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    DryRun,
    /// It waits for the proof of a copy.
    Staged,
    Rotated,
    Aborted,
    Destroyed,
    /// There was nothing to do.
    Nothing,
}

impl End {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::DryRun => "dry-run",
            Self::Staged => "staged",
            Self::Rotated => "rotated",
            Self::Aborted => "aborted",
            Self::Destroyed => "destroyed",
            Self::Nothing => "nothing",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub end: End,
    /// The key that it was about: the new one, or the one that was given up or destroyed.
    pub kid: Option<Kid>,
    /// The key that was replaced.
    pub old: Option<Kid>,
    /// DEKs that were opened (dry run) or wrapped anew.
    pub deks: u64,
    /// What was done, a sentence each.
    pub did: Vec<String>,
    /// What would stop a rotation; of a dry run only.
    pub problems: Vec<String>,
    /// What is left to do, a sentence each.
    pub left: Vec<String>,
    /// After a compromise: what whoever had the old key may have read.
    pub values: Values,
}

/// Values to change, tenant by tenant.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Values {
    pub tenants: Vec<TenantValues>,
    /// Tenants that are not named.
    pub more: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantValues {
    pub tenant: Tenant,
    pub secrets: u64,
    /// When the value was set that has stayed the longest.
    pub oldest: Option<Micros>,
}

/// What a run gathers for its report.
#[derive(Debug)]
pub(super) struct Tally {
    pub(super) mode: KeyMode,
    pub(super) old: Option<Kid>,
    pub(super) rewrapped: u64,
    pub(super) verified: u64,
    pub(super) reencrypted: u64,
    checked: u64,
    quarantined: u64,
    damaged: Vec<String>,
    took: Duration,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            mode: KeyMode::Normal,
            old: None,
            rewrapped: 0,
            verified: 0,
            reencrypted: 0,
            checked: 0,
            quarantined: 0,
            damaged: Vec::new(),
            took: Duration::ZERO,
        }
    }
}

impl Tally {
    pub(super) fn preflight(&mut self, walked: &Walked, quarantined: u64, took: Duration) {
        (self.checked, self.quarantined, self.took) = (walked.done, quarantined, took);
        self.damaged = walked.damaged.iter().map(ToString::to_string).collect();
        if walked.more_damaged > 0 {
            self.damaged.push(format!("{} more DEKs do not open", walked.more_damaged));
        }
    }
}

impl Report {
    pub(super) fn make(
        stop: Stop,
        seen: &Seen,
        tally: &Tally,
        order: &Order,
        files: &KeyFiles,
        retain: Duration,
        secrets: &[String],
    ) -> Self {
        match stop {
            Stop::Looked => dry_run(seen, tally, order),
            Stop::NeedsCopy(kid) => staged(kid, files),
            Stop::Rotated => rotated(seen, tally, files, retain, secrets),
            Stop::Aborted(kid) => aborted(kid, seen, secrets),
            Stop::Destroyed(kid) => destroyed(kid, seen, files),
            Stop::Nothing => {
                Self { did: vec!["no rotation is under way; nothing was done".to_owned()], ..Self::empty(End::Nothing) }
            }
        }
    }

    const fn empty(end: End) -> Self {
        Self {
            end,
            kid: None,
            old: None,
            deks: 0,
            did: Vec::new(),
            problems: Vec::new(),
            left: Vec::new(),
            values: Values { tenants: Vec::new(), more: 0 },
        }
    }

    /// Says of each node that lacks the staged key how it gets it, before what gives that up.
    pub(super) fn hand_over(&mut self, kid: Kid, seen: &Seen) {
        let lacking = seen.nodes.iter().filter(|node| !node.durable_kids.contains(&kid)).map(install);
        let at = self.left.len().saturating_sub(1);
        self.left.splice(at..at, lacking);
    }

    /// One line for the log.
    pub(super) fn headline(&self) -> String {
        let kid = self.kid.map_or_else(String::new, |kid| format!(", kid {kid}"));
        format!("rotation: {}{kid}, {} DEKs", self.end.as_str(), self.deks)
    }
}

fn aborted(kid: Option<Kid>, seen: &Seen, secrets: &[String]) -> Report {
    let is_kept = seen.keys.iter().any(|key| Some(key.kid) == kid && key.state == MasterKeyState::Retired);
    let did = match kid {
        Some(_) if is_kept => {
            "gave the staged key up; this node's record is younger than that key, so whether a state of the database that was lost had it in \
             use is not known: it is retired and kept, and destroyed as any old key is, with --destroy-old. The active key is what it was"
        }
        Some(_) => "gave the staged key up; its file is removed, and the active key is what it was",
        None => "gave the rotation up before anything was staged; the active key is what it was",
    };
    Report {
        kid,
        did: vec![did.to_owned()],
        left: kid.map(|kid| strays(kid, seen, secrets)).unwrap_or_default(),
        ..Report::empty(End::Aborted)
    }
}

fn dry_run(seen: &Seen, tally: &Tally, order: &Order) -> Report {
    let mut problems = tally.damaged.clone();
    let lost = seen.nodes.iter().filter(|node| !node.live && !order.terms.without.contains(&node.node));
    problems.extend(lost.map(|node| {
        let id = node.node;
        format!("node {id} is not live (last seen {}): start it, add --without-node {id}, or `containarium admin nodes forget {id}`", node.seen_at)
    }));
    let mut did = vec![format!("opened {} DEKs with the active key in {}", tally.checked, seconds(tally.took))];
    if tally.quarantined > 0 {
        did.push(format!(
            "{} quarantined DEKs would stay under the old key and keep it from being destroyed",
            tally.quarantined
        ));
    }
    did.push(format!("{} nodes would have to hold the new key", seen.nodes.len()));
    // A rewrap unwraps twice and wraps once, and the verification unwraps once more; writing takes about as long as that again.
    did.push(format!("from flip to retirement a rotation takes about {}", seconds(tally.took * 8)));
    let (kid, deks) = (Some(seen.state.active_kid), tally.checked);
    Report { kid, deks, did, problems, ..Report::empty(End::DryRun) }
}

fn seconds(time: Duration) -> String {
    if time < Duration::from_secs(10) {
        format!("{:.1} s", time.as_secs_f64())
    } else {
        format!("{} s", time.as_secs())
    }
}

fn staged(kid: Kid, files: &KeyFiles) -> Report {
    let path = files.retained_path(kid);
    let did = vec![format!("staged a new master key, kid {kid}, in {}; the active key is what it was", path.display())];
    let left = vec![
        format!("copy {} off this host, as bytes, to where it can be reached when this host cannot", path.display()),
        "prove the copy by feeding it back from there: `containarium admin rotate-master --resume --prove-from FILE`"
            .to_owned(),
        "or give it up: `containarium admin rotate-master --abort`".to_owned(),
    ];
    Report { kid: Some(kid), did, left, ..Report::empty(End::Staged) }
}

fn install(node: &NodeRecord) -> String {
    format!("give it to node {}: `ssh NODE containarium admin install-key < FILE`", node.node)
}

/// Copies of a key that was given up. Nothing here destroys a version: the identity cannot, and a mistake would be one for good.
fn strays(kid: Kid, seen: &Seen, secrets: &[String]) -> Vec<String> {
    let copies = secrets.iter().filter_map(|secret| confirmed_in(&seen.escrows, kid, secret));
    copies.map(|at| format!("{at} holds the key that was given up and stays there; it opens nothing")).collect()
}

fn rotated(seen: &Seen, tally: &Tally, files: &KeyFiles, retain: Duration, secrets: &[String]) -> Report {
    let kid = seen.state.active_kid;
    let last_retired = || {
        let retired = seen.keys.iter().filter(|key| key.retired_at.is_some());
        retired.max_by_key(|key| key.retired_at).map(|key| key.kid)
    };
    let old = tally.old.or_else(last_retired);
    let mut did = vec![format!("master key {kid} is active, epoch {}", seen.state.epoch)];
    if tally.rewrapped > 0 {
        did.push(format!("wrapped {} DEKs by it", tally.rewrapped));
    }
    if tally.verified > 0 {
        did.push(format!("another process opened {} DEKs with the keys as they are on disk", tally.verified));
    }
    if tally.reencrypted > 0 {
        did.push(format!(
            "gave {} tenants a new DEK, and sealed every version of their secrets under it",
            tally.reencrypted
        ));
    }
    let mut left = Vec::new();
    left.extend(seen.nodes.iter().filter(|node| !node.durable_kids.contains(&kid)).map(install));
    for secret in secrets {
        match confirmed_in(&seen.escrows, kid, secret) {
            Some(at) => did.push(format!("a copy of it is confirmed: {at}")),
            None => {
                left.push(format!("no copy of {kid} is confirmed in {secret}: `containarium backup push` makes it"));
            }
        }
    }
    let proven = seen.escrows.iter().any(|escrow| escrow.kid == kid && escrow.is_copy_that_stands());
    if !proven {
        left.push(format!(
            "no copy of {kid} off this host is proven: the loss of {} is the loss of every secret",
            files.path().display()
        ));
    }
    let key = seen.keys.iter().find(|key| Some(key.kid) == old);
    if let Some(key) = key {
        did.push(format!("master key {} is {}: the database refuses it", key.kid, key.state));
        left.extend(old_key(key, retain));
    }
    left.push("take a database backup: those from before need the old key".to_owned());
    if tally.mode == KeyMode::Compromised {
        left.extend(compromised());
    }
    let deks = tally.rewrapped;
    Report { kid: Some(kid), old, deks, did, left, ..Report::empty(End::Rotated) }
}

fn old_key(key: &MasterKeyRecord, retain: Duration) -> Vec<String> {
    let Some(retired_at) = key.retired_at else { return Vec::new() };
    let retain = i64::try_from(retain.as_micros()).unwrap_or(i64::MAX);
    let due = Micros(retired_at.0.saturating_add(retain));
    vec![
        format!(
            "keep the off-host copy of {} for as long as any database backup from before {retired_at} is kept",
            key.kid
        ),
        format!("not before {due}: `containarium admin rotate-master --destroy-old`"),
    ]
}

/// What no program does for an operator.
fn compromised() -> [String; 3] {
    [
        "remove what the database keeps of replaced rows: `VACUUM FULL containarium.deks, containarium.secret_versions` on PostgreSQL, \
         `VACUUM` on SQLite"
            .to_owned(),
        "let WAL archives, replicas and database backups from before expire or destroy them: the old key opens what they hold".to_owned(),
        "change the values themselves: whoever had the old key and the database may have read them".to_owned(),
    ]
}

fn destroyed(kid: Kid, seen: &Seen, files: &KeyFiles) -> Report {
    let holding: Vec<String> =
        seen.nodes.iter().filter(|node| node.durable_kids.contains(&kid)).map(|node| node.node.to_string()).collect();
    let did =
        vec![format!("marked master key {kid} as destroyed; each node removes every copy of it when it sees that")];
    let retired_at = seen.keys.iter().find(|key| key.kid == kid).and_then(|key| key.retired_at);
    let mut left = Vec::new();
    if holding.is_empty() {
        left.push(format!("no known node holds {kid} any more: it is done"));
    } else {
        left.push(format!(
            "these nodes hold it still, and remove it when they are up: {}; `containarium admin nodes` shows them",
            holding.join(", ")
        ));
    }
    let asides = files.scan().unknown_asides;
    left.extend(asides.iter().map(|path| {
        format!("{} was set aside by a restore and may hold a key: look, then shred it (`shred -u`)", path.display())
    }));
    if let Some(retired_at) = retired_at {
        left.push(format!(
            "keep its off-host copy for as long as any database backup from before {retired_at} is kept"
        ));
    }
    Report { kid: Some(kid), did, left, ..Report::empty(End::Destroyed) }
}

/// Every tenant that has secrets, with the age of its oldest value.
pub(super) async fn values_to_change(store: &dyn Store) -> Result<Values, Trouble> {
    let mut values = Values::default();
    let mut after: Option<Tenant> = None;
    loop {
        let page = store.tenants(after.as_ref(), PAGE).await?;
        for tenant in page.items.iter().filter(|tenant| tenant.secrets > 0) {
            if values.tenants.len() < NAMED {
                let oldest = oldest(store, &tenant.tenant).await?;
                values.tenants.push(TenantValues { tenant: tenant.tenant.clone(), secrets: tenant.secrets, oldest });
            } else {
                values.more += 1;
            }
        }
        after = page.items.last().filter(|_| page.more).map(|last| last.tenant.clone());
        if after.is_none() {
            return Ok(values);
        }
    }
}

async fn oldest(store: &dyn Store, tenant: &Tenant) -> Result<Option<Micros>, Trouble> {
    let (mut oldest, mut after): (Option<Micros>, Option<SecretName>) = (None, None);
    loop {
        // Blocked since: nothing of it is read any more, by anybody.
        let Ok(page) = store.list(tenant, after.as_ref(), PAGE).await? else { return Ok(oldest) };
        oldest = page.items.iter().map(|secret| secret.updated_at).chain(oldest).min();
        after = page.items.last().filter(|_| page.more).map(|last| last.name.clone());
        if after.is_none() {
            return Ok(oldest);
        }
    }
}
