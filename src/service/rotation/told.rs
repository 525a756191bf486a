//! The order that a run goes by, and what may still become of it while it is carried out.

use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use super::{Asked, Order, is_past_the_flip, lock};
use crate::model::KeyPhase;
use crate::service::Error;

/// An order that may change while it is carried out: what is staged and waits can be given up. None once the run ends.
#[derive(Clone, Default)]
pub(super) struct Told {
    order: Arc<Mutex<Option<Order>>>,
    /// What waits looks again.
    pub(super) changed: Arc<Notify>,
}

impl Told {
    pub(super) fn new(order: Order) -> Self {
        Self { order: Arc::new(Mutex::new(Some(order))), changed: Arc::default() }
    }

    /// What the run goes by now.
    pub(super) fn order(&self) -> Option<Order> {
        lock(&self.order).clone()
    }

    /// Turns a run that can be given up to that, and no other.
    ///
    /// # Errors
    /// [`Error::Conflict`]
    pub(super) fn turn(&self, to: Order) -> Result<(), Error> {
        let mut order = lock(&self.order);
        let why_not = match order.as_ref().map(|order| &order.asked) {
            Some(Asked::Start { .. } | Asked::Resume { .. } | Asked::Abort) => {
                *order = Some(to);
                self.changed.notify_one();
                return Ok(());
            }
            Some(Asked::DryRun) => "a dry run is under way in this daemon, which changes nothing",
            Some(Asked::DestroyOld { .. }) => {
                "the end of an old key (--destroy-old) is under way in this daemon, and cannot be given up"
            }
            None => "a run in this daemon is just ending",
        };
        Err(Error::Conflict(format!(
            "{why_not}: nothing was given up. Ask again once it has ended: `containarium admin rotate-master --abort`"
        )))
    }

    /// Ends the run where nothing else was asked since it read this; false: it looks again.
    pub(super) fn close(&self, read: Option<&Order>) -> bool {
        let mut order = lock(&self.order);
        let is_same = order.as_ref() == read;
        if is_same {
            *order = None;
        }
        is_same
    }
}

/// What the run goes by in this phase. To give up may have been asked for a moment before the flip was seen: that stops nothing, and
/// whoever asked reads how the run ends.
pub(super) fn unless_late(order: Order, own: &Order, phase: KeyPhase) -> Order {
    if order.asked == Asked::Abort && is_past_the_flip(phase) { own.clone() } else { order }
}

#[cfg(test)]
mod tests {
    use super::super::{Escrow, Terms};
    use super::*;
    use crate::model::{KeyMode, Kid};

    fn order(asked: Asked) -> Order {
        Order { asked, terms: Terms::default(), who: "root".to_owned() }
    }

    const START: Asked = Asked::Start { mode: KeyMode::Normal, escrow: Escrow::Waive };

    #[test]
    fn only_what_may_be_staged_is_turned_to_giving_up() {
        for asked in [START, Asked::Resume { proof: None, escrow: Escrow::Prove }, Asked::Abort] {
            let told = Told::new(order(asked));
            told.turn(order(Asked::Abort)).unwrap();
            assert_eq!(told.order(), Some(order(Asked::Abort)));
        }
        let destroy = Asked::DestroyOld { kid: Kid::new([1; 16]), proof: None, escrow: Escrow::Waive };
        for (asked, word) in [(Asked::DryRun, "dry run"), (destroy, "--destroy-old")] {
            let told = Told::new(order(asked.clone()));
            let Err(Error::Conflict(why)) = told.turn(order(Asked::Abort)) else { panic!("{asked:?} was turned") };
            assert!(why.contains(word), "{why}");
            assert_eq!(told.order(), Some(order(asked)));
        }
    }

    #[test]
    fn past_the_flip_a_run_goes_by_what_it_was_begun_for() {
        let own = order(START);
        for phase in [KeyPhase::Rewrapping, KeyPhase::Verified, KeyPhase::Reencrypting] {
            assert_eq!(unless_late(order(Asked::Abort), &own, phase), own);
        }
        for phase in [KeyPhase::Idle, KeyPhase::Staged] {
            assert_eq!(unless_late(order(Asked::Abort), &own, phase), order(Asked::Abort));
        }
        assert_eq!(unless_late(own.clone(), &order(Asked::Abort), KeyPhase::Verified), own);
    }

    #[test]
    fn a_run_that_ends_takes_no_order_and_one_that_was_given_an_order_does_not_end() {
        let told = Told::new(order(START));
        let read = told.order();
        told.turn(order(Asked::Abort)).unwrap();
        assert!(!told.close(read.as_ref()), "the order has changed since");
        assert!(told.close(told.order().as_ref()));
        let Err(Error::Conflict(why)) = told.turn(order(Asked::Abort)) else { panic!("an ended run was turned") };
        assert!(why.contains("just ending"), "{why}");
        assert_eq!(told.order(), None);
    }
}
