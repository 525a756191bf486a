//! What clients saw, and whether a store that loses nothing could have shown it.

use std::collections::HashMap;

/// One secret. One client alone changes it, one change after the other; all read it. Each value is set once.
#[derive(Debug, Default)]
pub(super) struct History {
    pub(super) tenant: String,
    pub(super) name: String,
    pub(super) changes: Vec<Change>,
    pub(super) reads: Vec<Read>,
}

/// Moments are nanoseconds since the round began: before the request was sent, and after its answer was there.
#[derive(Debug, Clone)]
pub(super) struct Change {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) to: To,
    pub(super) outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum To {
    Value(String),
    Deleted,
    Undeleted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Acknowledged; a value with its number.
    Done(Option<u64>),
    /// There was no answer, or 503: it may have been done.
    Unknown,
    /// It was refused, and is not done.
    Refused,
}

#[derive(Debug, Clone)]
pub(super) struct Read {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) saw: Saw,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Saw {
    Value {
        version: u64,
        value: String,
    },
    /// 404: deleted, or never there.
    Nothing,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct State<'a> {
    value: Option<&'a str>,
    deleted: bool,
}

impl State<'_> {
    fn shows(&self, saw: &Saw) -> bool {
        match saw {
            Saw::Value { value, .. } => !self.deleted && self.value == Some(value),
            Saw::Nothing => self.deleted || self.value.is_none(),
        }
    }
}

impl History {
    pub(super) fn is_of(&self, tenant: &str) -> bool {
        self.tenant == tenant
    }

    /// What was acknowledged, by number.
    pub(super) fn acknowledged(&self) -> Vec<(u64, &str)> {
        let acknowledged = |change: &'_ Change| match change.outcome {
            Outcome::Done(version) => version,
            _ => None,
        };
        self.changes
            .iter()
            .filter_map(|change| match &change.to {
                To::Value(value) => acknowledged(change).map(|version| (version, value.as_str())),
                _ => None,
            })
            .collect()
    }

    /// What no store that keeps its word could have shown.
    pub(super) fn violations(&self) -> Vec<String> {
        let mut found = self.numbers();
        let after = self.states();
        for read in &self.reads {
            let last = self.changes.iter().rposition(|change| is_done(change) && change.end < read.start);
            let next = self.changes.iter().position(|change| change.start > read.end).unwrap_or(self.changes.len());
            let from = last.map_or(0, |index| index + 1);
            if !(from..=next.max(from)).any(|index| after[index].iter().any(|state| state.shows(&read.saw))) {
                found.push(format!(
                    "read {read:?} of {}/{}: neither the last acknowledged nor one concurrent with it; changes {:?}",
                    self.tenant,
                    self.name,
                    &self.changes[last.unwrap_or(0)..next]
                ));
            }
        }
        found.extend(self.backwards());
        found
    }

    /// What the secret may be after each number of changes.
    fn states(&self) -> Vec<Vec<State<'_>>> {
        let mut states = vec![vec![State { value: None, deleted: false }]];
        for change in &self.changes {
            let before = states.last().unwrap();
            let changed = before.iter().map(|state| match &change.to {
                To::Value(value) => State { value: Some(value), deleted: false },
                To::Deleted => State { deleted: true, ..state.clone() },
                To::Undeleted => State { deleted: false, ..state.clone() },
            });
            let mut next: Vec<State<'_>> = match change.outcome {
                Outcome::Done(_) => changed.collect(),
                Outcome::Unknown => before.iter().cloned().chain(changed).collect(),
                Outcome::Refused => before.clone(),
            };
            next.dedup();
            states.push(next);
        }
        states
    }

    /// A number is one value's for ever, and numbers rise.
    fn numbers(&self) -> Vec<String> {
        let mut found = Vec::new();
        let acknowledged = self.acknowledged();
        for pair in acknowledged.windows(2) {
            if pair[1].0 <= pair[0].0 {
                found.push(format!("{}/{}: version {} after {}", self.tenant, self.name, pair[1].0, pair[0].0));
            }
        }
        let mut values: HashMap<u64, &str> = acknowledged.into_iter().collect();
        for read in &self.reads {
            if let Saw::Value { version, value } = &read.saw {
                let first = *values.entry(*version).or_insert(value);
                if first != value {
                    found.push(format!("{}/{}: version {version} is {first} and {value}", self.tenant, self.name));
                }
            }
        }
        found
    }

    /// No read shows an older version than one that ended before it began.
    fn backwards(&self) -> Option<String> {
        let versions = || {
            self.reads.iter().filter_map(|read| match read.saw {
                Saw::Value { version, .. } => Some((read.start, read.end, version)),
                Saw::Nothing => None,
            })
        };
        let (mut by_start, mut by_end): (Vec<_>, Vec<_>) = (versions().collect(), versions().collect());
        by_start.sort_by_key(|read| read.0);
        by_end.sort_by_key(|read| read.1);
        let (mut ended, mut newest) = (by_end.into_iter().peekable(), 0);
        for (start, _, version) in by_start {
            while let Some((_, _, earlier)) = ended.next_if(|(_, end, _)| *end < start) {
                newest = newest.max(earlier);
            }
            if version < newest {
                return Some(format!("{}/{}: version {version} was read after {newest}", self.tenant, self.name));
            }
        }
        None
    }
}

fn is_done(change: &Change) -> bool {
    matches!(change.outcome, Outcome::Done(_))
}

/// The checker itself must be able to fail.
mod tests {
    use super::*;

    fn set(start: u64, value: &str, outcome: Outcome) -> Change {
        Change { start, end: start + 10, to: To::Value(value.to_owned()), outcome }
    }

    fn saw(start: u64, version: u64, value: &str) -> Read {
        Read { start, end: start + 5, saw: Saw::Value { version, value: value.to_owned() } }
    }

    fn found(changes: &[Change], reads: &[Read]) -> usize {
        let history = History { changes: changes.to_vec(), reads: reads.to_vec(), ..History::default() };
        history.violations().len()
    }

    #[test]
    fn the_last_acknowledged_value_or_one_concurrent_with_it_may_be_read_and_no_other() {
        let changes = [set(0, "a", Outcome::Done(Some(1))), set(100, "b", Outcome::Done(Some(2)))];
        for (read, violations) in [
            (saw(50, 1, "a"), 0),
            (saw(103, 1, "a"), 0),
            (saw(98, 2, "b"), 0),
            (saw(111, 1, "a"), 1),
            (saw(50, 2, "b"), 1),
        ] {
            assert_eq!(found(&changes, std::slice::from_ref(&read)), violations, "{read:?}");
        }
        let nothing = Read { start: 50, end: 60, saw: Saw::Nothing };
        assert_eq!(found(&changes, &[nothing]), 1, "a secret is lost");
    }

    #[test]
    fn a_change_without_an_answer_may_be_there_or_not_and_is_overtaken_by_the_next() {
        let changes = [set(0, "a", Outcome::Done(Some(1))), set(100, "b", Outcome::Unknown)];
        assert_eq!(found(&changes, &[saw(200, 1, "a"), saw(300, 2, "b")]), 0);
        let changes = [changes[0].clone(), changes[1].clone(), set(400, "c", Outcome::Done(Some(3)))];
        assert_eq!(found(&changes, &[saw(500, 2, "b")]), 1);
        let refused = [changes[0].clone(), set(100, "b", Outcome::Refused)];
        assert_eq!(found(&refused, &[saw(200, 2, "b")]), 1);
    }

    #[test]
    fn a_deleted_secret_is_not_read_until_it_is_undeleted() {
        let deleted = Change { start: 100, end: 110, to: To::Deleted, outcome: Outcome::Done(None) };
        let back = Change { start: 200, end: 210, to: To::Undeleted, outcome: Outcome::Done(None) };
        let changes = [set(0, "a", Outcome::Done(Some(1))), deleted, back];
        assert_eq!(found(&changes, &[saw(150, 1, "a")]), 1);
        assert_eq!(found(&changes, &[saw(105, 1, "a"), saw(300, 1, "a")]), 0);
    }

    #[test]
    fn a_number_of_two_values_and_one_that_falls_are_found() {
        let twice = [set(0, "a", Outcome::Done(Some(1))), set(100, "b", Outcome::Done(Some(1)))];
        assert_eq!(found(&twice, &[]), 1);
        let unknown = [set(0, "a", Outcome::Done(Some(1))), set(100, "b", Outcome::Unknown)];
        assert_eq!(found(&unknown, &[saw(200, 1, "b")]), 1);
        assert_eq!(found(&unknown, &[saw(200, 2, "b"), saw(300, 1, "a")]), 1, "it was there, and then not");
    }
}
