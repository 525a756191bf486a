//! The checks: each from what was found to a verdict. docs/OPERATIONS.md ("Doctor") lists the limits, which are all here.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::access::{KeysState, check_issuers};
use crate::keys::keyfile::{MainFile, Scan};
use crate::keys::unlock::Proof as KmsProof;
use crate::model::{EscrowRecord, Issuer, KeyPhase, Kid, Micros, NodeId, StoreKind, WrappedMaster};
use crate::service::backup::{Destinations, SEEN_LATELY, SEEN_WITHIN, is_raw_escrowed, is_version_of, list};

use super::ledger::{Ledger, Proof};
use super::{Check, Unasked, Verdict};

const ISSUERS: &str = "issuers";
const MEND_ISSUERS: &str = "see to the file or the server that `containarium config show` names under oidc; then kill -HUP the daemon to look at once";

/// A copy of the key that was not read back for longer than this may have gone bad.
const READ_BACK_WARNING: Duration = days(35);
const READ_BACK_FAILURE: Duration = SEEN_WITHIN;
/// It is looked once a day whether copies are still where they were put.
const SEEN_WARNING: Duration = SEEN_LATELY;
/// What is written after the last copy of the database is lost with the database.
const DATABASE_BACKUP_WARNING: Duration = days(2);
/// The drill is monthly.
const DRILL_WARNING: Duration = days(35);
/// A rotation takes minutes, and its waiting for copies and nodes no more than a day.
const ROTATION_WARNING: Duration = days(1);
/// It is proven each day.
const KMS_PROOF_FAILURE: Duration = days(2);
/// Ages are told by comparing the two clocks.
const CLOCK_WARNING: Duration = Duration::from_secs(5);
const CLOCK_FAILURE: Duration = Duration::from_mins(1);

/// Under which free space it warns, and under which it fails, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct RoomLimits {
    warning: u64,
    failure: u64,
}

pub(super) const DATA_ROOM: RoomLimits = RoomLimits { warning: 1024 * MIB, failure: 64 * MIB };
/// A key file has 32 bytes; a rotation, or a key that must come back, still needs a place.
pub(super) const KEY_ROOM: RoomLimits = RoomLimits { warning: 16 * MIB, failure: MIB };

const MIB: u64 = 1024 * 1024;

const fn days(days: u64) -> Duration {
    Duration::from_secs(days * 24 * 60 * 60)
}

pub(super) fn daemon(waiting_for: &[String]) -> Check {
    if waiting_for.is_empty() {
        return Check::ok("daemon", concat!("release ", env!("CARGO_PKG_VERSION"), ", ready"));
    }
    Check::failure("daemon", format!("not ready: {}", waiting_for.join("; "))).mended_by("containarium admin status")
}

pub(super) fn no_daemon(unasked: Unasked, why: &str) -> Check {
    let known = "memory locking, loaded keys and what this node waits for are known to it alone";
    Check::failure("daemon", format!("{why}; {known}")).mended_by(match unasked {
        Unasked::NotThere => {
            "systemctl start containarium.service (`journalctl -u containarium.service` says why it does not)"
        }
        Unasked::NoAnswer => "containarium admin status (`journalctl -u containarium.service` where it says nothing)",
    })
}

pub(super) fn database(ledger: &Result<Ledger, String>) -> Check {
    match ledger {
        Err(why) => Check::failure("database", why.clone()).mended_by("containarium config show"),
        Ok(ledger) => match ledger.state() {
            None => Check::failure("database", format!("{}: it has never held a key", ledger.kind))
                .mended_by("containarium config show (is this the daemon's database?)"),
            Some(state) => Check::ok(
                "database",
                format!("{}, reachable, migrated; epoch {}, generation {}", ledger.kind, state.epoch, state.generation),
            ),
        },
    }
}

pub(super) fn clock(wall: Micros, database: Micros) -> Check {
    let apart = Duration::from_micros(wall.0.abs_diff(database.0));
    let finding = format!("{} s between this host's clock and the database's", apart.as_secs());
    let check = match apart {
        apart if apart >= CLOCK_FAILURE => Check::failure("clock", finding),
        apart if apart >= CLOCK_WARNING => Check::warning("clock", finding),
        _ => return Check::ok("clock", finding),
    };
    check.mended_by("timedatectl set-ntp true (on the host that is wrong)")
}

/// Of several keys at once; each is one line (`keys::start::BringBack` has the words for a single one).
const BRING_BACK: &str =
    "containarium backup restore (from another copy --from COPY), or containarium admin install-key < KEYFILE";

/// Right after a flip a daemon does it by itself, and needs no command.
const PUT_RIGHT: &str = "containarium backup restore (it sets aside what is there)";

/// The error names what mends it.
pub(super) fn key_file(scan: &Scan, active: Option<Kid>) -> Check {
    match &scan.main {
        MainFile::Key(key) if active.is_some_and(|active| active != key.kid) => {
            let active = list(active);
            Check::warning(
                "key-file",
                format!("{} holds master key {}, and the active key is {active}", scan.path.display(), key.kid),
            )
            .mended_by(PUT_RIGHT)
        }
        MainFile::Key(key) => Check::ok("key-file", format!("{} holds master key {}", scan.path.display(), key.kid)),
        MainFile::Missing => {
            Check::failure("key-file", format!("{} is not there", scan.path.display())).mended_by(BRING_BACK)
        }
        MainFile::Bad(error) => Check::failure("key-file", error.to_string()),
    }
}

/// The keys that the database needs, against those that are here.
pub(super) fn keys(scan: &Scan, ledger: &Ledger, loaded: Option<&[Kid]>) -> Check {
    let on_disk: Vec<Kid> = scan.kids().into_iter().collect();
    let lacking = |held: &[Kid]| {
        let lacking: Vec<_> = ledger.needed().iter().map(|key| key.kid).filter(|kid| !held.contains(kid)).collect();
        (!lacking.is_empty()).then(|| list(lacking))
    };
    if let Some(kids) = lacking(&on_disk) {
        return Check::failure("keys", format!("the database needs master keys that are not in the key files: {kids}"))
            .mended_by(BRING_BACK);
    }
    if let Some(kids) = loaded.and_then(lacking) {
        return Check::failure("keys", format!("the database needs master keys that are not loaded: {kids}"))
            .mended_by("containarium admin status (it says why)");
    }
    if let Some(problem) = scan.problems.first() {
        return Check::warning("keys", problem.to_string());
    }
    let known = |kid: &Kid| ledger.survey.master_keys.iter().any(|key| key.kid == *kid);
    let strangers: Vec<Kid> = on_disk.iter().copied().filter(|kid| !known(kid)).collect();
    if !strangers.is_empty() {
        let files: Vec<PathBuf> =
            scan.retained.iter().filter(|key| strangers.contains(&key.kid)).map(|key| key.path.clone()).collect();
        let mend = if files.is_empty() {
            PUT_RIGHT.to_owned()
        } else {
            format!(
                "where an older copy of the database was restored, move them off this host and keep them as long as a newer copy is kept: {};                  else containarium config show (do key files and database belong together?)",
                paths(&files)
            )
        };
        let kids = list(strangers);
        return Check::warning("keys", format!("key files hold master keys that the database does not know: {kids}"))
            .mended_by(mend);
    }
    if !scan.unknown_asides.is_empty() {
        let finding = "a restore set aside what may hold a key, which no destroyed key is removed from";
        return Check::warning("keys", format!("{finding}: {}", paths(&scan.unknown_asides)))
            .mended_by("look, then shred it: `shred -u FILE` (for a directory or a link, what it holds or leads to)");
    }
    Check::ok("keys", format!("needed and here: {}", list(ledger.needed().iter().map(|key| key.kid))))
}

/// One copy of a key is enough not to lose it; a secret without one is one that an operator counts on, and that is not there on the day
/// when the other is gone.
pub(super) fn key_backup(ledger: &Ledger, destinations: &Destinations) -> Check {
    const NAME: &str = "key-backup";
    let secrets = destinations.secrets();
    let proofs = ledger.proofs();
    let mut findings = Vec::new();
    let mut unseen_since = false;
    let unproven: Vec<_> = proofs.iter().filter(|proof| proof.confirmed.is_none()).collect();
    if !unproven.is_empty() {
        let waived = if unproven.iter().any(|proof| proof.waived) { " (waived when it was rotated to)" } else { "" };
        let kids = list(unproven.iter().map(|proof| proof.key.kid));
        findings.push(format!(
            "no copy off this host is proven of master key {kids}{waived}: without it every secret is lost"
        ));
    }
    for proof in &proofs {
        let lacking: Vec<&str> = proof.lacking(secrets).collect();
        if !lacking.is_empty() {
            findings.push(format!("no confirmed copy of master key {} is in {}", proof.key.kid, lacking.join(", ")));
        }
        for (escrow, loss) in proof.missed(secrets).into_iter().filter_map(|escrow| Some((escrow, escrow.lost?))) {
            let at = escrow.looked_at.unwrap_or(ledger.now);
            findings.push(format!("the copy at {} is {loss} there, as was seen at {at}", locator(escrow)));
        }
        if let Some((escrow, seen)) = unseen(proof, secrets, ledger.now) {
            unseen_since = true;
            findings.push(format!(
                "whether the copy of master key {} at {} is still there was last seen at {seen} (the limit is {})",
                proof.key.kid,
                locator(escrow),
                words(SEEN_WARNING)
            ));
        }
    }
    let of_needed = findings.len();
    for proof in &ledger.forlorn() {
        for (escrow, loss) in proof.lost.iter().filter_map(|escrow| Some((escrow, escrow.lost?))) {
            findings.push(format!(
                "the copy of the retired master key {} at {} is {loss} there, and no other is known: backups of the database from its \
                 time need it",
                proof.key.kid,
                locator(escrow)
            ));
        }
    }
    if let Some(endpoint) = destinations.elsewhere() {
        findings.push(format!(
            "copies go to {endpoint} and not to Google: whatever listens there is sent the keys, and counts as their copy off this host"
        ));
    }
    let there: Vec<String> = proofs.iter().filter(|proof| proof.has_good_copy()).map(describe).collect();
    if findings.is_empty() {
        return Check::ok(NAME, there.join("; "));
    }
    let mend = if destinations.elsewhere().is_some() {
        "take `endpoint` out of `[backup.gcp]` and restart the daemon, then containarium backup push"
    } else if secrets.is_empty() {
        "containarium backup push with `[backup.gcp] secrets`, or containarium backup export and then containarium backup verify --from FILE"
    } else if unproven.is_empty() && unseen_since {
        "containarium backup list (it says what keeps a secret from being listed), then containarium backup push"
    } else if of_needed == 0 {
        COPY_RETIRED
    } else if unproven.is_empty() {
        "containarium backup push"
    } else {
        "containarium backup push, or containarium backup export and then containarium backup verify --from FILE"
    };
    Check::warning(NAME, [there, findings].concat().join("; ")).mended_by(mend)
}

/// What is pushed is what the database needs; of another key that lies here a copy is made by hand.
const COPY_RETIRED: &str = "containarium backup export --kid KID, and then containarium backup verify --from FILE";

/// The copy in a configured secret that was seen last, and when, where that is too long ago: nobody would know of its loss.
fn unseen<'a>(proof: &Proof<'a>, secrets: &[String], now: Micros) -> Option<(&'a EscrowRecord, Micros)> {
    let here = proof.copies.iter().copied().filter(|copy| secrets.iter().any(|secret| is_version_of(copy, secret)));
    let (escrow, seen) = here.filter_map(|copy| Some((copy, copy.last_seen_at()?))).max_by_key(|(_, seen)| *seen)?;
    (age(now, seen) > SEEN_WARNING).then_some((escrow, seen))
}

fn locator(escrow: &EscrowRecord) -> &str {
    escrow.locator.as_deref().unwrap_or(&escrow.target)
}

fn describe(proof: &Proof<'_>) -> String {
    let copy = |escrow: &&EscrowRecord| {
        let seen = escrow.looked_at.map(|at| format!(" (seen there at {at})")).unwrap_or_default();
        match &escrow.locator {
            Some(locator) => format!("{} {locator}{seen}", escrow.target),
            None => escrow.target.clone(),
        }
    };
    let copies: Vec<String> = proof.good().map(|escrow| copy(&escrow)).collect();
    format!("master key {}: {}", proof.key.kid, copies.join(", "))
}

/// Whether the wrapped key files still open with KMS, and whether anything else does. `None` where none is wrapped.
pub(super) fn kms(
    files: &[(Kid, &WrappedMaster, KmsProof)],
    ledger: &Ledger,
    wall: Micros,
    raw_sha256: impl Fn(Kid) -> Option<[u8; 32]>,
) -> Option<Check> {
    const NAME: &str = "kms";
    let (kid, _, worst) = files.iter().min_by_key(|(_, _, proof)| proof.proven_at)?;
    let last = match worst.proven_at {
        Some(at) => format!("master key {kid} was last proven to open with its KMS key at {at}"),
        None => format!("that master key {kid} opens with its KMS key was not proven since this daemon started"),
    };
    let failure = files.iter().find_map(|(_, _, proof)| proof.failure.as_ref());
    let is_old = worst.proven_at.is_none_or(|at| age(wall, at) > KMS_PROOF_FAILURE);
    if let Some(why) = failure {
        let finding = format!("{last}; the last try failed: {why}");
        let check = if is_old { Check::failure(NAME, finding) } else { Check::warning(NAME, finding) };
        return Some(check.mended_by("containarium kms status (it tries each recipient with your credentials)"));
    }
    let escrowed = |kid: Kid| is_raw_escrowed(&ledger.escrows, kid, raw_sha256(kid), ledger.now);
    let only = files.iter().filter(|(kid, file, _)| !file.has_another_way() && !escrowed(*kid)).map(|(kid, ..)| *kid);
    let only: Vec<Kid> = only.collect();
    if !only.is_empty() {
        let what = format!(
            "nothing but one KMS key opens master key {}: when it is destroyed, every secret is lost",
            list(only)
        );
        return Some(
            Check::warning(NAME, what).mended_by("containarium kms rewrap --age RECIPIENT --age-identity FILE"),
        );
    }
    if worst.proven_at.is_none() {
        return Some(Check::warning(NAME, last).mended_by("containarium kms status"));
    }
    Some(Check::ok(NAME, last))
}

/// A copy that was never read back ages from when its key was made: from then on only a hope stands for it.
pub(super) fn key_backup_read_back(ledger: &Ledger, secrets: &[String]) -> Check {
    const NAME: &str = "key-backup-read-back";
    let (proofs, forlorn) = (ledger.proofs(), ledger.forlorn());
    let bad: Vec<String> = proofs
        .iter()
        .chain(&forlorn)
        .flat_map(|proof| proof.unread().into_iter().map(move |(escrow, unread)| (proof.key.kid, escrow, unread)))
        .map(|(kid, escrow, unread)| {
            format!("the copy of master key {kid} at {} was no good at {}: {}", locator(escrow), unread.at, unread.why)
        })
        .collect();
    if !bad.is_empty() {
        let is_covered = proofs.iter().all(|proof| proof.unread().is_empty() || proof.has_good_copy());
        let make = if is_covered { Check::warning } else { Check::failure };
        let is_of_needed = proofs.iter().any(|proof| !proof.unread().is_empty());
        let mend =
            if is_of_needed { "containarium backup push, then containarium backup verify" } else { COPY_RETIRED };
        return make(NAME, bad.join("; ")).mended_by(mend);
    }
    let proofs = proofs.into_iter();
    let aged = proofs.map(|proof| (age(ledger.now, proof.read_back.unwrap_or(proof.key.created_at)), proof));
    let worst = aged.max_by_key(|(age, _)| *age);
    let Some((age, proof)) = worst else { return Check::ok(NAME, "no key is needed") };
    let kid = proof.key.kid;
    let finding = match proof.read_back {
        Some(at) => format!("a copy of master key {kid} was last read back {} ago, at {at}", words(age)),
        None => format!("no copy of master key {kid} was ever read back; it was made {} ago", words(age)),
    };
    let check = match (age, proof.read_back) {
        (age, _) if age > READ_BACK_FAILURE => {
            Check::failure(NAME, format!("{finding} (the limit is {})", words(READ_BACK_FAILURE)))
        }
        (age, _) if age > READ_BACK_WARNING => {
            Check::warning(NAME, format!("{finding} (the limit is {})", words(READ_BACK_WARNING)))
        }
        (_, None) => Check::warning(NAME, finding),
        (_, Some(_)) => return Check::ok(NAME, finding),
    };
    check.mended_by(if secrets.is_empty() {
        "containarium backup verify --from COPY"
    } else {
        "containarium backup verify"
    })
}

pub(super) fn database_backup(ledger: &Ledger) -> Check {
    const NAME: &str = "database-backup";
    let limit = words(DATABASE_BACKUP_WARNING);
    let mend = match ledger.kind {
        StoreKind::Sqlite => "containarium backup database FILE --record",
        StoreKind::Postgres => {
            "containarium backup database FILE (prints the pg_dump line), and containarium backup database FILE --record after it"
        }
    };
    let Some(backup) = &ledger.database_backup else {
        return Check::warning(NAME, format!("no copy of the database is recorded (the limit is {limit})"))
            .mended_by(mend);
    };
    let age = age(ledger.now, backup.taken_at);
    let finding = format!("the last copy is {} old: {}", words(age), backup.target);
    if age > DATABASE_BACKUP_WARNING {
        return Check::warning(NAME, format!("{finding} (the limit is {limit})")).mended_by(mend);
    }
    Check::ok(NAME, finding)
}

pub(super) fn drill(ledger: &Ledger, secrets: &[String]) -> Check {
    const NAME: &str = "drill";
    let mend = if secrets.is_empty() {
        "containarium backup drill --from COPY --record"
    } else {
        "containarium backup drill --record"
    };
    let Some(drill) = &ledger.drill else {
        return Check::warning(NAME, "no drill is recorded: whether the copies open this database is a hope")
            .mended_by(mend);
    };
    let age = age(ledger.now, drill.ran_at);
    let finding = format!("the last drill, {} ago on {}, opened {} DEKs", words(age), drill.source, drill.deks_opened);
    if drill.deks_failed > 0 {
        return Check::failure(NAME, format!("{finding}, and {} did not open", drill.deks_failed)).mended_by(mend);
    }
    if age > DRILL_WARNING {
        return Check::warning(NAME, format!("{finding} (the limit is {})", words(DRILL_WARNING))).mended_by(mend);
    }
    Check::ok(NAME, finding)
}

/// Before the flip a rotation that stopped waits for an operator; past it a daemon goes on by itself, again and again.
pub(super) fn rotation(ledger: &Ledger, why_stopped: Option<&str>) -> Check {
    const NAME: &str = "rotation";
    const STAGED_MEND: &str =
        "containarium admin rotate-master --resume, or containarium admin rotate-master --abort to give it up";
    let phase = ledger.state().map_or(KeyPhase::Idle, |state| state.phase);
    let Some(since) = ledger.rotating_since() else { return Check::ok(NAME, "none runs") };
    let age = age(ledger.now, since);
    let finding = format!("a rotation is {phase}, begun {} ago", words(age));
    if !ledger.is_carried() {
        match (phase, why_stopped) {
            (KeyPhase::Staged, Some(why)) => {
                return Check::warning(NAME, format!("{finding}, and stopped: {why}")).mended_by(STAGED_MEND);
            }
            (KeyPhase::Staged, None) => {
                return Check::warning(NAME, format!("{finding}, and nobody carries it on")).mended_by(STAGED_MEND);
            }
            (_, Some(why)) => {
                return Check::warning(NAME, format!("{finding}, and stopped: {why}"))
                    .mended_by("containarium admin rotate-master --resume");
            }
            (_, None) => {}
        }
    }
    if age > ROTATION_WARNING {
        return Check::warning(NAME, finding).mended_by("containarium admin status");
    }
    Check::ok(NAME, finding)
}

/// How much is free on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) bytes: u64,
    /// Absent on file systems that do not count them.
    pub(super) files: Option<u64>,
}

impl Room {
    pub(super) fn of(dir: &Path) -> Result<Self, String> {
        let stat = rustix::fs::statvfs(dir).map_err(|errno| errno.to_string())?;
        let files = (stat.f_files > 0).then_some(stat.f_favail);
        Ok(Self { bytes: stat.f_bavail.saturating_mul(stat.f_frsize), files })
    }
}

pub(super) fn disk(name: &'static str, dir: &Path, room: Result<Room, String>, limits: RoomLimits) -> Check {
    let dir = dir.display();
    let room = match room {
        Ok(room) => room,
        Err(why) => return Check::failure(name, format!("{dir}: {why}")).mended_by(format!("ls -ld {dir}")),
    };
    if room.files == Some(0) {
        return Check::failure(name, format!("{dir}: no file can be made, all inodes are used"))
            .mended_by(format!("df -i {dir}"));
    }
    let finding = format!("{dir}: {} MiB free", room.bytes / MIB);
    let check = match room.bytes {
        bytes if bytes < limits.failure => Check::failure(name, finding),
        bytes if bytes < limits.warning => Check::warning(name, finding),
        _ => return Check::ok(name, finding),
    };
    check.mended_by(format!("df -h {dir}"))
}

/// Each warning names what mends it.
/// Absent where there is none.
pub(super) fn issuers(states: &[KeysState]) -> Option<Check> {
    let each: Vec<Check> = states.iter().map(issuer).collect();
    let verdict = each.iter().map(|check| check.verdict).max()?;
    let finding = each.into_iter().map(|check| check.finding).collect::<Vec<_>>().join("; ");
    let check = Check { verdict, ..Check::ok(ISSUERS, finding) };
    Some(if verdict == Verdict::Ok { check } else { check.mended_by(MEND_ISSUERS) })
}

fn issuer(state: &KeysState) -> Check {
    let KeysState { issuer, usable, age, keep, failure } = state;
    let seconds = |time: &Duration| format!("{} s", time.as_secs());
    let why = failure.as_deref().map_or(String::new(), |why| format!(": {why}"));
    match age {
        Some(age) if *usable > 0 => {
            let finding = format!("{issuer} has {usable} keys, seen {} ago", seconds(age));
            let left = keep.saturating_sub(*age);
            if failure.is_none() && left >= *keep / 2 {
                return Check::ok(ISSUERS, finding);
            }
            Check::warning(ISSUERS, format!("{finding}, which lapse in {}{why}", seconds(&left)))
        }
        Some(age) => {
            let lapsed = format!("the keys of {issuer} were last seen {} ago and have lapsed", seconds(age));
            Check::failure(ISSUERS, format!("{lapsed}, and its tokens let nobody in{why}"))
        }
        None => Check::failure(ISSUERS, format!("{issuer} has no keys, and its tokens let nobody in{why}")),
    }
}

/// What a process without the daemon sees of issuers: whether the files that the settings name can be used. Absent where there is none.
pub(super) fn files_of_issuers(issuers: &[Issuer]) -> Option<Check> {
    if issuers.is_empty() {
        return None;
    }
    Some(match check_issuers(issuers) {
        Ok(()) => Check::ok(ISSUERS, "what the settings name for their keys can be used, as far as files go"),
        Err(error) => Check::failure(ISSUERS, error.to_string()).mended_by(MEND_ISSUERS),
    })
}

pub(super) fn memory(unprotected: &[String]) -> Check {
    if unprotected.is_empty() {
        return Check::ok("memory", "locked, and closed to other processes");
    }
    Check::warning("memory", unprotected.join("; "))
}

/// Whether it can be written is `daemon`'s.
pub(super) fn audit(changed: Option<&str>, troubles: &[String]) -> Check {
    match changed {
        Some(what) => Check::failure("audit", format!("the trail in the database was changed: {what}"))
            .mended_by("containarium audit verify"),
        None if troubles.is_empty() => Check::ok("audit", "the trail in the database is as this daemon wrote it"),
        None => Check::warning("audit", troubles.join("; ")),
    }
}

pub(super) fn node(problems: &[String], ledger: Option<&Ledger>, this: Option<NodeId>) -> Check {
    const NAME: &str = "node";
    if !problems.is_empty() {
        return Check::warning(NAME, problems.join("; "));
    }
    let nodes = ledger.map_or(&[][..], |ledger| &ledger.nodes);
    let gone: Vec<_> = nodes.iter().filter(|node| !node.live && Some(node.node) != this).collect();
    // Without a daemon its own node is one of them, and which one is not known here.
    if this.is_some()
        && let Some(node) = gone.first()
    {
        let more = if gone.len() > 1 { format!(", and {} more", gone.len() - 1) } else { String::new() };
        let finding = format!("node {} was last seen at {}{more}; a rotation waits for it", node.node, node.seen_at);
        return Check::warning(NAME, finding).mended_by(format!(
            "start its daemon, or containarium admin nodes forget {} where it is gone for good",
            node.node
        ));
    }
    let live = nodes.iter().filter(|node| node.live).count();
    Check::ok(NAME, format!("{live} of {} nodes live", nodes.len()))
}

fn paths(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn age(now: Micros, then: Micros) -> Duration {
    Duration::from_micros(u64::try_from(now.0.saturating_sub(then.0)).unwrap_or(0))
}

fn words(age: Duration) -> String {
    let hours = age.as_secs() / 3600;
    match hours {
        0 => format!("{} minutes", age.as_secs() / 60),
        1..48 => format!("{hours} hours"),
        _ => format!("{} days", hours / 24),
    }
}

#[cfg(test)]
mod tests;
