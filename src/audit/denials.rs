//! Callers that are turned away, counted: the first few of an identity and an action, or of an address where nobody is known, are recorded
//! at once, those that follow within the same second by one record together, when the second is over. Their answers wait for it, so that
//! none leaves unrecorded, and so that a flood fills no disk and is slowed down.

use std::collections::HashMap;
use std::mem;
use std::net::IpAddr;
use std::sync::Mutex;

use tokio::sync::oneshot;

use super::file::lock;
use super::{AuditError, Record};
use crate::model::{Action, network};

/// How many denials of one kind have a record of their own within a second: a program with a wrong token or path that asks a few times is
/// shown with the names that it asked for, and does not wait.
const OWN_RECORDS: u32 = 4;
/// How many places of strangers are told apart within a second. An address costs whoever has many of them nothing, and a record for each
/// would fill the disk after all: the others are counted together.
const MOST_PLACES: usize = 16;

/// How many records of strangers a minute has, before all of them are counted together by the second: what one place makes at most.
const MOST_A_MINUTE: u32 = 300;
const MINUTE: u32 = 60;

type Waiter = oneshot::Sender<Result<(), AuditError>>;

/// Where somebody whom nobody knows is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stranger {
    /// A network, as addresses are limited by it; see [`network`].
    At(IpAddr),
    /// A user of this host, on the socket, with a credential that does not hold.
    Uid(u32),
}

impl Stranger {
    /// Whoever is at this address.
    #[must_use]
    pub fn at(address: IpAddr) -> Self {
        Self::At(network(address))
    }
}

/// What is counted together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Kind {
    /// So many as there are identities, whatever they ask for.
    Of(String, Action),
    Stranger(Stranger),
    /// Strangers at further places.
    Crowd,
}

#[derive(Default)]
pub(super) struct Denials(Mutex<Counted>);

#[derive(Default)]
struct Counted {
    /// What came in this second.
    seconds: HashMap<Kind, Second>,
    /// Records of strangers in this minute.
    of_strangers: u32,
    /// Seconds of this minute that are over.
    over: u32,
}

#[derive(Default)]
struct Second {
    own_records: u32,
    /// The last of those that wait, which stands for them.
    last: Option<Record>,
    waiters: Vec<Waiter>,
}

/// What is to be done with a denial.
pub(super) enum Turn {
    /// It is one of the first: record it now.
    Record(Box<Record>),
    /// It is counted; the answer comes with the second's record.
    Wait(oneshot::Receiver<Result<(), AuditError>>),
}

impl Denials {
    /// Somebody who is known, and may not do it.
    pub(super) fn take(&self, record: Record) -> Turn {
        let kind = Kind::Of(record.identity.clone(), record.action);
        turn(lock(&self.0).seconds.entry(kind).or_default(), record, OWN_RECORDS)
    }

    /// Somebody whom nobody knows.
    pub(super) fn take_stranger(&self, stranger: Stranger, record: Record) -> Turn {
        let mut counted = lock(&self.0);
        let Counted { seconds, of_strangers, .. } = &mut *counted;
        let is_spent = *of_strangers >= MOST_A_MINUTE;
        let kind = Kind::Stranger(stranger);
        let places = || seconds.keys().filter(|kind| matches!(kind, Kind::Stranger(_))).count();
        let is_known = seconds.contains_key(&kind) || places() < MOST_PLACES;
        let kind = if is_known && !is_spent { kind } else { Kind::Crowd };
        let turn = turn(seconds.entry(kind).or_default(), record, if is_spent { 0 } else { OWN_RECORDS });
        if let Turn::Record(_) = turn {
            *of_strangers += 1;
        }
        turn
    }

    /// Ends the second: the records that stand for it, and who waits for them.
    pub(super) fn end(&self) -> (Vec<Record>, Vec<Waiter>) {
        let (mut records, mut waiters) = (Vec::new(), Vec::new());
        let mut counted = lock(&self.0);
        for (kind, second) in mem::take(&mut counted.seconds) {
            let count = second.waiters.len() as u64;
            if second.last.is_some() && !matches!(kind, Kind::Of(..)) {
                counted.of_strangers += 1;
            }
            records.extend(second.last.map(|last| stand_in(&kind, last, count)));
            waiters.extend(second.waiters);
        }
        counted.over += 1;
        if counted.over >= MINUTE {
            (counted.over, counted.of_strangers) = (0, 0);
        }
        drop(counted);
        (records, waiters)
    }
}

fn turn(second: &mut Second, record: Record, own_records: u32) -> Turn {
    if second.own_records < own_records {
        second.own_records += 1;
        return Turn::Record(Box::new(record));
    }
    let (waiter, counted) = oneshot::channel();
    second.waiters.push(waiter);
    second.last = Some(record);
    Turn::Wait(counted)
}

/// The record that stands for so many. What they asked for differs between them, and in a crowd where they are: then it has none of it.
fn stand_in(kind: &Kind, last: Record, count: u64) -> Record {
    if count == 1 {
        return last;
    }
    let last = Record { tenant: None, name: None, version: None, count, ..last };
    match kind {
        Kind::Of(..) | Kind::Stranger(_) => last,
        Kind::Crowd => Record { identity: super::UNKNOWN.to_owned(), pid: None, address: None, ..last },
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::audit::Outcome;
    use crate::model::{Micros, SecretName, Tenant};

    fn record(address: IpAddr) -> Record {
        Record {
            at: Micros(0),
            request_id: "r".to_owned(),
            identity: super::super::UNKNOWN.to_owned(),
            pid: None,
            address: Some(address),
            action: Action::Authenticate,
            tenant: Some(Tenant::parse("alice").unwrap()),
            name: Some(SecretName::parse("KEY").unwrap()),
            version: None,
            token: None,
            blob: None,
            replaces: None,
            outcome: Outcome::Denied,
            count: 1,
        }
    }

    /// Strangers from these addresses: how many records were made at once, and those of the second's end.
    fn strangers(addresses: impl Iterator<Item = IpAddr>) -> (usize, Vec<Record>) {
        let denials = Denials::default();
        let mut at_once = 0;
        let mut waiting = Vec::new();
        for address in addresses {
            match denials.take_stranger(Stranger::at(address), record(address)) {
                Turn::Record(_) => at_once += 1,
                Turn::Wait(counted) => waiting.push(counted),
            }
        }
        let (records, waiters) = denials.end();
        assert_eq!(waiters.len(), waiting.len(), "each hears of the record that it is counted in");
        assert!(denials.end().0.is_empty(), "a second ends once");
        (at_once, records)
    }

    #[test]
    fn an_address_has_so_many_records_in_a_second_however_often_it_asks() {
        let (at_once, records) = strangers((0..1000).map(|_| Ipv4Addr::LOCALHOST.into()));
        assert_eq!((at_once, records.len()), (4, 1));
        assert_eq!((records[0].count, records[0].address), (996, Some(Ipv4Addr::LOCALHOST.into())));
        assert_eq!((&records[0].tenant, &records[0].name), (&None, &None));
    }

    #[test]
    fn a_lone_denial_beyond_the_first_keeps_what_it_asked_for() {
        let (at_once, records) = strangers((0..5).map(|_| Ipv4Addr::LOCALHOST.into()));
        assert_eq!((at_once, records), (4, vec![record(Ipv4Addr::LOCALHOST.into())]));
    }

    #[test]
    fn however_many_addresses_there_are_a_second_has_so_many_records_and_counts_each() {
        let asked = 10_000;
        let (at_once, records) = strangers((0..asked).map(|n| Ipv4Addr::from_bits(n).into()));
        assert!(at_once + records.len() <= 16 * 5 + 5, "{at_once} and {}", records.len());
        let counted: u64 = records.iter().map(|record| record.count).sum();
        assert_eq!(counted + at_once as u64, u64::from(asked));
        assert!(records.iter().any(|record| record.address.is_none() && record.count > 9000), "the crowd: {records:?}");
    }

    #[test]
    fn however_long_it_goes_on_a_minute_has_so_many_records_and_the_next_begins_anew() {
        let denials = Denials::default();
        let second = |second: u32| {
            let (mut at_once, mut waiting) = (0, Vec::new());
            for address in (0..100).map(|n| IpAddr::from(Ipv4Addr::from_bits(second * 100 + n))) {
                match denials.take_stranger(Stranger::at(address), record(address)) {
                    Turn::Record(_) => at_once += 1,
                    Turn::Wait(counted) => waiting.push(counted),
                }
            }
            let records = denials.end().0;
            let counted: u64 = records.iter().map(|record| record.count).sum();
            assert_eq!(counted + at_once, 100, "each is counted");
            at_once + records.len() as u64
        };
        let minute: u64 = (0..60).map(second).sum();
        assert!((300..=400).contains(&minute), "{minute}");
        assert!(second(60) > 10, "the next one has its own");
    }

    #[test]
    fn addresses_of_one_network_are_one_place() {
        let hosts = (0..100_u128).map(|host| std::net::Ipv6Addr::from_bits((0x2001_0db8 << 96) | host).into());
        assert_eq!(strangers(hosts).0, 4);
    }
}
