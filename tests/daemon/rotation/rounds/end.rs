//! What must hold when a round is over.

use std::collections::HashMap;
use std::io::Write;
use std::process::{Command, Stdio};

use super::super::{hex_of, not_under, phase, python_can_run_it, staged_file};
use super::history::History;
use super::load::{Failed, Of, Shared, What, lock};
use super::plan::{Beside, Plan, Urgency, Wanted};
use crate::support::site::{Daemon, Site};

/// What is wrong with what clients saw.
pub(super) fn of_clients(shared: &Shared, plan: &Plan) -> Vec<String> {
    let mut found: Vec<String> = lock(&shared.histories).iter().flat_map(History::violations).collect();
    found.extend(
        lock(&shared.failed).iter().filter(|failed| !is_excused(shared, plan, failed)).map(ToString::to_string),
    );
    if let (Some(tenant), Some((_, acknowledged))) = (plan.shredded(), *lock(&shared.shred)) {
        let histories = lock(&shared.histories);
        let of_tenant = histories.iter().filter(|history| history.is_of(&tenant));
        let late = of_tenant.flat_map(|history| &history.reads).filter(|read| read.start > acknowledged);
        found.extend(late.map(|read| format!("read after the shred of {tenant}: {read:?}")));
    }
    found
}

/// The kernel closes a dying process's connections before its parent can see it dead: 11 ms before, at the most that was seen. A
/// daemon that died at a point of its own is noted when it is seen dead, so its outage may have begun this much before.
const DYING: u64 = 500_000_000;

/// A read may fail with the daemon or the database it needs, and in no other way; a write also while a daemon sleeps on a lock.
fn is_excused(shared: &Shared, plan: &Plan, failed: &Failed) -> bool {
    let overlaps = |of: Of| {
        let outages = lock(&shared.outages);
        outages.iter().any(|outage| {
            let from = if matches!(of, Of::Daemon(_)) { outage.from.saturating_sub(DYING) } else { outage.from };
            outage.of == of && from <= failed.end && failed.start <= outage.until
        })
    };
    let (What::Read { tenant } | What::Change { tenant }) = &failed.what;
    match failed.status {
        0 => overlaps(Of::Daemon(failed.node)),
        503 => overlaps(Of::Database) || (matches!(failed.what, What::Change { .. }) && plan.has_stops()),
        403 => {
            plan.shredded().as_ref() == Some(tenant)
                && lock(&shared.shred).is_some_and(|(asked, _)| asked <= failed.end)
        }
        _ => false,
    }
}

/// What is wrong with the database.
pub(super) fn of_the_state(shared: &Shared, site: &Site, plan: &Plan, first: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut want = |holds: bool, what: String| {
        if !holds {
            found.push(what);
        }
    };
    let kid = site.texts(&format!("SELECT {} FROM key_state", hex_of(site, "active_kid"))).remove(0);
    let count = |state: &str| site.number(&format!("SELECT count(*) FROM master_keys WHERE state = '{state}'"));
    want(phase(site) == "idle", format!("phase {}", phase(site)));
    want(site.number("SELECT count(*) FROM key_state WHERE mode = 'normal'") == 1, "the mode stays".to_owned());
    for (state, number) in [("active", 1), ("staged", 0), ("decrypt_only", 0)] {
        want(count(state) == number, format!("{} master keys are {state}", count(state)));
    }
    let others_retired = site.number("SELECT epoch FROM key_state") - 1 == count("retired") && count("destroyed") == 0;
    want(others_retired, format!("{} keys are retired", count("retired")));
    for (end, of) in lock(&shared.ends).iter() {
        let wanted: &[&str] = if end == "rotated" { &["active", "retired"] } else { &["aborted"] };
        let sql = format!("SELECT state FROM master_keys WHERE {} = '{of}'", hex_of(site, "kid"));
        let state = site.texts(&sql).pop().unwrap_or_default();
        want(wanted.contains(&&*state), format!("{of}, reported as {end}, is {state}"));
    }
    match (plan.wanted, plan.beside) {
        // Whether the other rotation came through, or met what was then given up, is chance; what was reported of it is not.
        (Wanted::GivenUp, Beside::SecondRotation) => {}
        (Wanted::GivenUp, _) => {
            want(kid == first, format!("{kid} is active, and was given up"));
            want(count("aborted") >= 1, "no key is aborted".to_owned());
        }
        _ => want(kid != first, "the first key is active still".to_owned()),
    }
    want(not_under(site, &kid) == 0, format!("{} DEKs are under another key than {kid}", not_under(site, &kid)));
    if plan.urgency == Urgency::Compromised && plan.wanted != Wanted::GivenUp && plan.beside != Beside::SecondRotation {
        let old = site.number(
            "SELECT count(*) FROM deks WHERE state IN ('active', 'decrypt_only') AND coalesce(made_in_epoch, 0) < 2",
        );
        want(old == 0, format!("{old} DEKs are from before the compromise"));
    }
    if let (Some(tenant), true) = (plan.shredded(), lock(&shared.shred).is_some()) {
        let left = site.number(&format!(
            "SELECT count(*) FROM deks WHERE tenant = '{tenant}' AND (state <> 'shredded' OR wrapped IS NOT NULL OR kid IS NOT NULL)"
        ));
        want(left == 0, format!("{left} DEKs of {tenant} are left after its shred"));
    }
    found
}

/// Whether daemons that started anew have the active key in their key files, keep every key that was, and none that was given up.
pub(super) fn of_the_files(sites: &[Site]) -> Vec<String> {
    let kids = |state: &str| {
        sites[0].texts(&format!("SELECT {} FROM master_keys WHERE state = '{state}'", hex_of(&sites[0], "kid")))
    };
    let (active, retired, aborted) = (kids("active").remove(0), kids("retired"), kids("aborted"));
    let mut found = Vec::new();
    for site in sites {
        let place = site.path("etc").display().to_string();
        match std::fs::read(staged_file(site, &active)) {
            Ok(copy) if copy != std::fs::read(site.key_file()).unwrap() => {
                found.push(format!("{place}: the key file is not {active}, which is active"));
            }
            Err(_) => found.push(format!("{place} has no copy of {active}, which is active")),
            _ => {}
        }
        let lost = retired.iter().filter(|kid| !staged_file(site, kid).exists());
        found.extend(lost.map(|kid| format!("{place} has lost {kid}, which is retired, and not destroyed")));
        let left = aborted.iter().filter(|kid| staged_file(site, kid).exists());
        found.extend(left.map(|kid| format!("{place} still has {kid}, which was given up")));
    }
    found
}

/// Whether every acknowledged value opens by daemons that started anew; each version is asked of one node.
pub(super) fn of_the_values(shared: &Shared, plan: &Plan, daemons: &[Daemon]) -> Vec<String> {
    let mut found = Vec::new();
    let histories = lock(&shared.histories);
    for (index, history) in histories.iter().enumerate() {
        let is_gone = plan.shredded().is_some_and(|tenant| history.is_of(&tenant));
        for (version, value) in history.acknowledged() {
            let path = format!("/v1/secrets/{}/{}?version={version}", history.tenant, history.name);
            let answer = daemons[index % daemons.len()].get(&path);
            let holds =
                if is_gone { answer.status == 403 } else { answer.status == 200 && answer.value() == value.as_bytes() };
            if !holds {
                found.push(format!("{path}: {value} was acknowledged, and now: {answer:?}"));
            }
        }
    }
    found
}

/// The same by the reference implementation, with the key file and the rows alone.
pub(super) fn by_the_reference(shared: &Shared, site: &Site, plan: &Plan) -> Vec<String> {
    const PROGRAM: &str = "
import sys, importlib.util
spec = importlib.util.spec_from_file_location('ref', sys.argv[1]); ref = importlib.util.module_from_spec(spec); spec.loader.exec_module(ref)
master, deks = bytes.fromhex(sys.argv[2]), {}
for line in sys.stdin:
    kind, *row = line.split()
    if kind == 'dek':
        tenant, version, wrapped = row
        deks[tenant, version] = ref.unwrap_dek(master, tenant.encode(), int(version), bytes.fromhex(wrapped))
    else:
        tenant, name, dek, version, blob = row
        value = ref.open_secret(deks[tenant, dek], tenant.encode(), name.encode(), int(dek), int(version), bytes.fromhex(blob))
        print(tenant, name, version, value.decode() if tenant[0] != '_' else '')
";
    if !python_can_run_it() {
        return Vec::new();
    }
    let mut rows = site.texts(&format!(
        "SELECT 'dek ' || tenant || ' ' || dek_version || ' ' || {} FROM deks WHERE wrapped IS NOT NULL",
        hex_of(site, "wrapped")
    ));
    let of_live = plan.shredded().map_or_else(String::new, |tenant| format!(" AND tenant <> '{tenant}'"));
    rows.extend(site.texts(&format!(
        "SELECT 'secret ' || tenant || ' ' || name || ' ' || dek_version || ' ' || version || ' ' || {} FROM secret_versions \
         WHERE ciphertext IS NOT NULL{of_live}",
        hex_of(site, "ciphertext")
    )));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reference/envelope_ref.py");
    let key = data_encoding::HEXLOWER.encode(&std::fs::read(site.key_file()).unwrap());
    let mut child = Command::new("python3")
        .args(["-c", PROGRAM, script, &key])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(rows.join("\n").as_bytes()));
        child.wait_with_output().unwrap()
    });
    if !output.status.success() {
        return vec![format!("the reference opens not all of it: {}", String::from_utf8_lossy(&output.stderr))];
    }
    let printed = String::from_utf8(output.stdout).unwrap();
    let opened: HashMap<(&str, &str, u64), &str> = printed
        .lines()
        .map(|line| {
            let mut parts = line.splitn(4, ' ');
            let (tenant, name) = (parts.next().unwrap(), parts.next().unwrap());
            ((tenant, name, parts.next().unwrap().parse().unwrap()), parts.next().unwrap())
        })
        .collect();
    let histories = lock(&shared.histories);
    let lives = histories.iter().filter(|history| !plan.shredded().is_some_and(|tenant| history.is_of(&tenant)));
    lives
        .flat_map(|history| history.acknowledged().into_iter().map(move |(version, value)| (history, version, value)))
        .filter(|(history, version, value)| opened.get(&(&*history.tenant, &*history.name, *version)) != Some(value))
        .map(|(history, version, value)| {
            format!("the reference finds no {value} at {}/{} version {version}", history.tenant, history.name)
        })
        .collect()
}
