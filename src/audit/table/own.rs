//! What a process knows of its own chain in the database, whatever that says.

use std::collections::BTreeMap;

use crate::crypto::Mac;
use crate::store::trail::{ChainHead, Linked, TrailRow};

/// Records that were handed out and have no place: those of transactions that were rolled back never get one, and must not be kept
/// for ever. So many are newer than any transaction that can still commit.
pub(super) const MOST_WAITING: usize = 65_536;
/// Links whose outcome is not known; a database that fails each of them answers no more questions soon.
const MOST_ATTEMPTS: usize = 64;

#[derive(Default)]
pub(super) struct Own {
    /// Where the chain ends.
    end: Option<ChainHead>,
    next: Next,
    /// What links would have made it, whose outcome is not known.
    attempts: Vec<(ChainHead, Vec<u64>)>,
    /// By number, the MACs of records that have no place yet.
    waiting: BTreeMap<u64, Mac>,
    /// The chain's first record, once it was tried to insert it.
    pub(super) start: Option<TrailRow>,
    /// Whether it has grown by more than records of heads since the file was told.
    grown: bool,
    /// What was found that this process did not write.
    pub(super) changed: Option<String>,
    /// Whether that was handed on.
    told: bool,
    /// That the database says another end, where that was seen by who does not hand it on.
    pub(super) elsewhere: Option<String>,
}

/// From where the next link goes on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Next {
    /// From where both agree.
    #[default]
    Agreed,
    /// From what the database says: it was put back, and an operator accepted that.
    Adopted,
    /// From what is known: what the database says was refused.
    Insisted,
}

/// Where to go on.
pub(super) enum Stand {
    NotBegun,
    At(ChainHead),
    /// The database says something else.
    Elsewhere(String),
}

impl Own {
    pub(super) fn hand_out(&mut self, number: u64, mac: Mac) {
        self.waiting.insert(number, mac);
        while self.waiting.len() > MOST_WAITING {
            self.waiting.pop_first();
        }
    }

    /// Whether it is a record of this process that has never had a place.
    pub(super) fn waits(&self, row: &TrailRow) -> bool {
        self.waiting.get(&row.number).is_some_and(|mac| mac.0 == row.mac)
    }

    pub(super) fn adopts(&self) -> bool {
        self.next == Next::Adopted
    }

    /// The database was put back: what it holds is what is known.
    pub(super) fn forget(&mut self) {
        (self.end, self.start, self.next, self.elsewhere) = (None, None, Next::Adopted, None);
        self.attempts.clear();
    }

    /// Takes note of what is wrong; the first says enough.
    pub(super) fn found(&mut self, what: String) {
        if self.changed.is_none() {
            tracing::error!("the audit trail in the database was changed: {what}");
            self.changed = Some(what);
        }
    }

    /// What is wrong, where nobody has been told.
    pub(super) fn untold(&self) -> Option<String> {
        self.changed.clone().filter(|_| !self.told)
    }

    /// Whether that is news.
    pub(super) fn insist(&mut self, what: String) -> bool {
        self.next = Next::Insisted;
        self.found(what);
        !std::mem::replace(&mut self.told, true)
    }

    /// The chain's end, where the database is known to have the same, unless somebody else changed it.
    pub(super) fn certain_end(&self) -> Option<ChainHead> {
        self.end.clone().filter(|_| self.attempts.is_empty() && self.next == Next::Agreed)
    }

    pub(super) fn grew(&mut self) {
        self.grown = true;
    }

    /// Where the chain ends, if the file has not been told.
    pub(super) fn news(&self) -> Option<Linked> {
        self.end.as_ref().filter(|_| self.grown).map(|head| head.end)
    }

    pub(super) fn was_told(&mut self, end: Linked) {
        self.grown &= self.end.as_ref().map(|head| head.end) != Some(end);
    }

    /// Holds what the database says against what is known.
    pub(super) fn stand(&mut self, found: Option<&ChainHead>) -> Stand {
        if self.adopts() {
            self.end = found.cloned();
        } else if let Some(found) = found
            && self.attempts.iter().any(|(head, _)| head == found)
        {
            self.settle(&found.clone());
        }
        let known = self.end.as_ref().map(|head| head.end);
        let is_known = known == found.map(|head| head.end);
        if self.next == Next::Insisted || is_known {
            return self.end.clone().map_or(Stand::NotBegun, Stand::At);
        }
        let place = |end: Option<Linked>| end.map_or(0, |end| end.position);
        Stand::Elsewhere(format!(
            "it holds another end of this daemon's chain, at record {}, than the one at record {} that was written",
            place(found.map(|head| head.end)),
            place(known)
        ))
    }

    pub(super) fn attempt(&mut self, head: &ChainHead, numbers: Vec<u64>) {
        if self.attempts.len() >= MOST_ATTEMPTS {
            self.attempts.remove(0);
        }
        self.attempts.push((head.clone(), numbers));
    }

    /// The chain ends there now.
    pub(super) fn settle(&mut self, head: &ChainHead) {
        let made = self.attempts.iter().find(|(attempted, _)| attempted == head);
        for number in made.iter().flat_map(|(_, numbers)| numbers) {
            self.waiting.remove(number);
        }
        self.attempts.clear();
        self.next = Next::Agreed;
        self.end = Some(head.clone());
    }
}
