//! How many of the connections each peer may have, so that none takes them all.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

/// How many connections each peer has: an address, or a user of this host.
pub(super) struct Shares<P: Eq + Hash + Copy> {
    most: u32,
    taken: Arc<Mutex<HashMap<P, u32>>>,
}

/// One connection of a peer, until it is dropped.
pub(super) struct Share<P: Eq + Hash + Copy> {
    peer: P,
    taken: Arc<Mutex<HashMap<P, u32>>>,
}

impl<P: Eq + Hash + Copy> Shares<P> {
    pub(super) fn of(most: u32) -> Self {
        Self { most, taken: Arc::default() }
    }

    /// `None` where the peer has all that it may.
    pub(super) fn take(&self, peer: P) -> Option<Share<P>> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(peer).or_insert(0);
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Share { peer, taken: Arc::clone(&self.taken) })
    }
}

impl<P: Eq + Hash + Copy> Drop for Share<P> {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut entry) = taken.entry(self.peer) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_has_its_share_and_gives_it_back_and_leaves_nothing_behind() {
        let shares = Shares::of(2);
        let first = shares.take("one").unwrap();
        let second = shares.take("one");
        assert!(second.is_some() && shares.take("one").is_none());
        let third = shares.take("other");
        assert!(third.is_some());
        drop(first);
        let fourth = shares.take("one");
        assert!(fourth.is_some());
        drop((second, third, fourth));
        assert!(shares.taken.lock().unwrap().is_empty());
    }
}
