//! One parser for each kind of value. A message says what is allowed, never what was given.

use std::ffi::OsStr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::{Span, SpanRelativeTo};

use super::{AuditCopies, AuditSinks, ExistingKey, LogFormat};

/// A key that is unwrapped once a month is not cached but kept.
const MAX_CACHE_AGE: Duration = Duration::from_hours(30 * 24);

/// Ten years.
const MAX_RETAIN: Duration = Duration::from_hours(3650 * 24);
/// A hundred years: so that a moment plus this stays one that can be written.
const MAX_RETENTION: Duration = Duration::from_hours(36_500 * 24);

pub(super) fn path(given: &OsStr, base: Option<&Path>) -> Result<PathBuf, String> {
    if given.is_empty() {
        return Err("it is empty: give a path, or leave it out".to_owned());
    }
    if given.as_encoded_bytes().contains(&0) {
        return Err("a path cannot hold a NUL".to_owned());
    }
    let given = Path::new(given);
    if given.is_absolute() {
        return Ok(given.to_path_buf());
    }
    let base = base.ok_or("the path is relative, and the working directory is gone: give an absolute one")?;
    // `components` drops what `./` leaves behind.
    Ok(base.join(given).components().collect())
}

pub(super) fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("it must be text or json".to_owned()),
    }
}

pub(super) fn adopt_key(text: &str) -> Result<ExistingKey, String> {
    match text {
        "true" => Ok(ExistingKey::Adopt),
        "false" => Ok(ExistingKey::Refuse),
        _ => Err("it must be true or false".to_owned()),
    }
}

pub(super) fn audit_sinks(text: &str) -> Result<AuditSinks, String> {
    match text.lines().collect::<Vec<_>>().as_slice() {
        ["file"] => Ok(AuditSinks::File),
        ["table", "file"] => Ok(AuditSinks::TableThenFile),
        ["file", "table"] => Ok(AuditSinks::FileThenTable),
        // While the keys are locked there is no table to write into, and the file holds what is asked.
        _ => Err("it must be [\"file\"], [\"table\", \"file\"] or [\"file\", \"table\"]".to_owned()),
    }
}

pub(super) fn audit_journal(text: &str) -> Result<AuditCopies, String> {
    match text {
        "true" => Ok(AuditCopies::Journal),
        "false" => Ok(AuditCopies::None),
        _ => Err("it must be true or false".to_owned()),
    }
}

pub(super) fn audit_retention(text: &str) -> Result<Duration, String> {
    let rule = "it must be a duration from \"1s\" to \"36500d\", such as \"400d\"";
    let allowed = Duration::from_secs(1)..=MAX_RETENTION;
    duration(text).filter(|time| allowed.contains(time)).ok_or_else(|| rule.to_owned())
}

pub(super) fn keep_versions(text: &str) -> Result<NonZeroU32, String> {
    text.parse().map_err(|_| format!("it must be a number from 1 to {}", u32::MAX))
}

pub(super) fn max_entries(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| "it must be a number from 0 (no cache)".to_owned())
}

/// Nothing at all is allowed: who destroys an old key at once has the typed confirmation and the read-back copy to think it over.
pub(super) fn retain_old(text: &str) -> Result<Duration, String> {
    let rule = "it must be a duration from \"0s\" to \"3650d\", such as \"35d\" or \"12h\"";
    duration(text).filter(|time| *time <= MAX_RETAIN).ok_or_else(|| rule.to_owned())
}

pub(super) fn max_age(text: &str) -> Result<Duration, String> {
    let rule = "it must be a duration from \"1s\" to \"30d\", such as \"90s\", \"15m\" or \"1h\"";
    let age = duration(text).filter(|age| (Duration::from_secs(1)..=MAX_CACHE_AGE).contains(age));
    age.ok_or_else(|| rule.to_owned())
}

pub(super) fn database_retention(text: &str) -> Result<Duration, String> {
    let rule = "it must be a duration from \"0s\" (there are no backups) to \"36500d\", such as \"35d\" or \"26w\"";
    duration(text).filter(|kept| *kept <= MAX_RETENTION).ok_or_else(|| rule.to_owned())
}

/// A day is 24 hours and a week seven days; months and years have no length of their own.
#[must_use]
pub fn duration(text: &str) -> Option<Duration> {
    let span = text.parse::<Span>().ok()?.to_duration(SpanRelativeTo::days_are_24_hours()).ok()?;
    Duration::try_from(span).ok()
}
