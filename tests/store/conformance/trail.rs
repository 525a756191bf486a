//! The audit trail: the record of a change lies in the change's own transaction.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use containarium::model::{BootId, Micros, NodeId};
use containarium::store::StoreError;
use containarium::store::deks::ShredOutcome;
use containarium::store::trail::{ChainHead, ChainKind, Linked, Scribe, Touched, TrailRow};

use crate::store::fakes::Values;
use crate::store::steps::{current, intent, name, number, tenant};
use crate::support::stores::Fixture;
use containarium::store::{Store, Together};

const NODE: NodeId = NodeId::new([1; 16]);
const BOOT: BootId = BootId::new([2; 16]);

fn row(number: u64) -> TrailRow {
    TrailRow {
        node: NODE,
        boot: BOOT,
        number,
        at: Micros(7),
        identity: "uid:0".to_owned(),
        action: "secret.set".to_owned(),
        tenant: Some("alice".to_owned()),
        name: None,
        version: Some(3),
        blob_sha256: Some([5; 32]),
        outcome: "ok".to_owned(),
        record: b"{}".to_vec(),
        mac: [6; 32],
        place: None,
    }
}

/// Numbers its records, and remembers what it was told.
#[derive(Default)]
struct Notes {
    next: AtomicU64,
    /// How many rows each change gets.
    rows: AtomicUsize,
    touched: Mutex<Vec<Vec<Touched>>>,
    committed: AtomicUsize,
}

impl Notes {
    fn new() -> Arc<Self> {
        Arc::new(Self { rows: AtomicUsize::new(1), ..Self::default() })
    }

    fn committed(&self) -> usize {
        self.committed.load(Ordering::SeqCst)
    }

    /// What the last change touched: name, version, whether it put a ciphertext there and whether it replaced one.
    fn last(&self) -> Vec<(String, u64, bool, bool)> {
        let touched = self.touched.lock().unwrap();
        let shown = |touched: &Touched| match touched {
            Touched::Version(t) => (t.name.to_string(), t.version.get(), t.ciphertext.is_some(), t.replaced.is_some()),
            Touched::Token(id) => (id.clone(), 0, false, false),
        };
        touched.last().unwrap().iter().map(shown).collect()
    }
}

impl Scribe for Notes {
    fn records(&self, touched: &[Touched]) -> Vec<TrailRow> {
        self.touched.lock().unwrap().push(touched.to_vec());
        (0..self.rows.load(Ordering::SeqCst)).map(|_| row(self.next.fetch_add(1, Ordering::SeqCst))).collect()
    }

    fn committed(&self) {
        self.committed.fetch_add(1, Ordering::SeqCst);
    }
}

async fn recording(f: Fixture) -> (Fixture, Arc<Notes>, Arc<dyn Store>) {
    let f = f.with_alice().await;
    let notes = Notes::new();
    let store = f.store.recorded(Arc::clone(&notes) as Arc<dyn Scribe>);
    (f, notes, store)
}

async fn set(store: &dyn Store, named: &str, value: &str) -> Result<(), StoreError> {
    store.write(&[intent("alice", named)], Together::AllOrNothing, &Values::of(&[value])).await.map(drop)
}

pub(crate) async fn every_change_tells_what_it_touched_and_has_its_record(f: Fixture) {
    let (f, notes, store) = recording(f).await;
    set(&*store, "A", "one").await.unwrap();
    assert_eq!(notes.last(), [("A".to_owned(), 1, true, false)]);
    set(&*store, "A", "two").await.unwrap();
    assert_eq!(notes.last(), [("A".to_owned(), 2, true, false)]);
    let both = [intent("alice", "A"), intent("alice", "B")];
    store.write(&both, Together::AllOrNothing, &Values::of(&["two", "b"])).await.unwrap();
    assert_eq!(notes.last(), [("A".to_owned(), 2, false, false), ("B".to_owned(), 1, true, false)]);
    store.destroy(&tenant("alice"), &name("A"), &[number(1)]).await.unwrap().unwrap();
    assert_eq!(notes.last(), [("A".to_owned(), 1, false, false)]);
    store.delete(&tenant("alice"), &name("A")).await.unwrap().unwrap();
    store.undelete(&tenant("alice"), &name("A")).await.unwrap().unwrap();
    assert_eq!(notes.last(), [("A".to_owned(), 2, false, false)]);
    let shred = store.schedule_shred(&tenant("alice"), std::time::Duration::from_secs(9)).await.unwrap();
    assert!(matches!(shred, ShredOutcome::Done { .. }));
    assert_eq!(notes.last(), []);
    assert_eq!((notes.committed(), f.rows("audit").await), (7, 7));
}

pub(crate) async fn a_call_that_changes_nothing_has_no_record(f: Fixture) {
    let (f, notes, store) = recording(f).await;
    set(&*store, "A", "one").await.unwrap();
    set(&*store, "A", "one").await.unwrap();
    assert!(store.delete(&tenant("alice"), &name("NONE")).await.unwrap().is_err());
    assert!(store.undelete(&tenant("alice"), &name("A")).await.unwrap().is_err());
    store.cancel_shred(&tenant("alice")).await.unwrap();
    store.forget_node(NODE).await.unwrap();
    assert_eq!((notes.committed(), f.rows("audit").await), (1, 1));
}

pub(crate) async fn a_change_that_cannot_be_recorded_is_not_made(f: Fixture) {
    let (f, notes, store) = recording(f).await;
    set(&*store, "A", "one").await.unwrap();
    let before = f.all_rows().await;
    // A number that was used, and then no record at all.
    notes.next.store(0, Ordering::SeqCst);
    assert!(set(&*store, "A", "two").await.is_err());
    assert!(store.delete(&tenant("alice"), &name("A")).await.is_ok(), "the next number is free");
    assert!(store.undelete(&tenant("alice"), &name("A")).await.is_ok());
    notes.rows.store(0, Ordering::SeqCst);
    assert!(set(&*store, "A", "two").await.is_err());
    assert!(store.delete(&tenant("alice"), &name("A")).await.is_err());
    assert_eq!(f.all_rows().await, before);
    assert_eq!(f.value(current("alice", "A")).await, "one");
    assert_eq!((notes.committed(), f.rows("audit").await), (3, 3));
    // Past the scribe the store is as it was.
    f.set("A", &["two"]).await;
    assert_eq!(f.rows("audit").await, 3);
}

fn head(position: u64) -> ChainHead {
    ChainHead {
        node: NODE,
        boot: BOOT,
        kind: ChainKind::Table,
        started_at: Micros(5),
        previous: Some((BootId::new([9; 16]), [8; 32])),
        end: Linked { position, link: [u8::try_from(position).unwrap(); 32] },
    }
}

pub(crate) async fn a_record_gets_its_place_once_and_the_head_goes_with_it(f: Fixture) {
    let f = f.with_key().await;
    let other = TrailRow { boot: BootId::new([1; 16]), ..row(4) };
    f.store.insert(&[row(0), row(1), row(2), other.clone()]).await.unwrap();
    assert_eq!(f.store.unlinked(NODE, None, 10).await.unwrap(), [other, row(0), row(1), row(2)]);
    let after = |boot: BootId, number| f.store.unlinked(NODE, Some((boot, number)), 2);
    assert_eq!(after(BootId::new([1; 16]), 4).await.unwrap(), [row(0), row(1)]);
    assert_eq!(after(BOOT, 1).await.unwrap(), [row(2)]);
    assert_eq!(f.store.unlinked(NodeId::new([3; 16]), None, 10).await.unwrap(), []);
    let places = [(0, head(1).end), (1, head(2).end)];
    f.store.link(&places, &head(2)).await.unwrap();
    assert_eq!(f.store.chains().await.unwrap(), [head(2)]);
    // Again, and one that is not there: nothing is changed.
    for places in [&places[..], &[(2, head(3).end), (9, head(4).end)]] {
        assert!(matches!(f.store.link(places, &head(3)).await, Err(StoreError::Refused(_))));
        assert_eq!(f.store.chains().await.unwrap(), [head(2)]);
    }
    assert_eq!(f.store.unlinked(NODE, None, 10).await.unwrap().len(), 2);
    f.store.link(&[(2, head(3).end)], &head(3)).await.unwrap();
    assert_eq!(f.store.chains().await.unwrap(), [head(3)]);
    let linked = TrailRow { place: Some(head(2).end), ..row(1) };
    assert_eq!(f.store.trail(NODE, BOOT, Some(0), 1).await.unwrap(), [linked]);
    assert_eq!(f.store.trail(NODE, BOOT, None, 9).await.unwrap().len(), 3);
    assert_eq!(f.store.starts().await.unwrap(), [(NODE, BootId::new([1; 16])), (NODE, BOOT)]);
    let file = ChainHead { kind: ChainKind::File, previous: None, ..head(1) };
    f.store.link(&[], &file).await.unwrap();
    assert_eq!(f.store.chains().await.unwrap(), [file, head(3)]);
}

pub(crate) async fn records_are_put_behind_the_head_that_there_is_and_behind_no_other(f: Fixture) {
    let f = f.with_key().await;
    f.store.insert(&[row(0)]).await.unwrap();
    f.store.link(&[(0, head(1).end)], &head(1)).await.unwrap();
    let placed = |number: u64| TrailRow { place: Some(head(number + 1).end), ..row(number) };
    f.store.append(&[placed(1), placed(2)], head(1).end, &head(3)).await.unwrap();
    assert_eq!(f.store.chains().await.unwrap(), [head(3)]);
    assert_eq!(f.store.unlinked(NODE, None, 10).await.unwrap(), []);
    let rows = f.store.trail(NODE, BOOT, Some(0), 9).await.unwrap();
    assert_eq!(rows, [placed(1), placed(2)]);
    // Another place, another link, a start that has no head: nothing is written. Nor where a row cannot be.
    let other_link = Linked { link: [9; 32], ..head(3).end };
    let other_start = ChainHead { boot: BootId::new([4; 16]), ..head(4) };
    for (from, to) in [(head(2).end, &head(4)), (other_link, &head(4)), (head(3).end, &other_start)] {
        let refused = f.store.append(&[placed(3)], from, to).await;
        assert!(matches!(refused, Err(StoreError::Refused(_))), "{refused:?}");
    }
    assert!(f.store.append(&[placed(3), placed(1)], head(3).end, &head(5)).await.is_err());
    assert_eq!(f.store.chains().await.unwrap(), [head(3)]);
    assert_eq!(f.rows("audit").await, 3);
}
