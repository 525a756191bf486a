use std::sync::Arc;
use std::time::Duration;

use containarium::model::{Delivery, SecretVersion};
use containarium::store::{Expect, Intent, Refusal, SealRefusal, Together, WriteOutcome};
use tokio::task::JoinSet;

use crate::store::fakes::Values;
use crate::store::steps::{current, delivering, intent, number};
use crate::support::stores::Fixture;

fn absent(named: &str) -> Intent {
    Intent { expect: Expect::Absent, ..intent("alice", named) }
}

pub(crate) async fn each_intent_of_a_batch_has_its_own_outcome(f: Fixture) {
    let f = f.with_alice().await;
    f.set("OLD", &["one"]).await;
    f.set("TAKEN", &["one"]).await;
    let intents =
        [intent("alice", "NEW"), absent("TAKEN"), intent("nobody", "A"), intent("alice", "OLD"), intent("alice", "X")];
    let values = Values::of(&["n", "o", "a", "one", "x"]).refusing(4, SealRefusal::Quarantined);
    let outcomes = f.store.write(&intents, Together::Each, &values).await.unwrap();
    let said: Vec<_> = outcomes.iter().map(|outcome| outcome.as_ref().map(|written| written.outcome)).collect();
    assert_eq!(
        said,
        [
            Ok(WriteOutcome::Created),
            Err(&Refusal::Precondition { current: Some(number(1)) }),
            Err(&Refusal::NoActiveDek),
            Ok(WriteOutcome::Unchanged),
            Err(&Refusal::Seal(SealRefusal::Quarantined)),
        ]
    );
    let asked: Vec<usize> = values.seen().iter().map(|seen| seen.index).collect();
    assert_eq!(asked, [0, 3, 4], "a sealer is not asked for what is refused already");
    assert_eq!(f.names().await, ["NEW", "OLD", "TAKEN"]);
    assert_eq!(f.value(current("alice", "NEW")).await, "n");
}

pub(crate) async fn a_refusal_undoes_an_all_or_nothing_batch(f: Fixture) {
    let f = f.with_alice().await;
    f.set("A", &["one"]).await;
    f.set("OLD", &["one"]).await;
    let before = f.all_rows().await;
    let intents =
        [intent("alice", "NEW"), delivering(Delivery::File), intent("alice", "B"), absent("OLD"), intent("alice", "C")];
    let values = Values::of(&["n", "one", "b", "o", "c"]);
    let outcomes = f.store.write(&intents, Together::AllOrNothing, &values).await.unwrap();
    let batch = || Err(Refusal::Batch);
    let named = Err(Refusal::Precondition { current: Some(number(1)) });
    assert_eq!(outcomes, [batch(), batch(), batch(), named, batch()]);
    assert_eq!(f.all_rows().await, before, "not even a placeholder");
    let (secret, _) = f.secret(current("alice", "A")).await;
    assert_eq!((secret.current.get(), secret.delivery), (1, Delivery::Env));
    assert_eq!(f.set("NEW", &["n"]).await.get(), 1);
}

pub(crate) async fn an_all_or_nothing_batch_without_refusal_is_made(f: Fixture) {
    let f = f.with_alice().await;
    f.set("A", &["one"]).await;
    let intents = [intent("alice", "C"), intent("alice", "A"), intent("alice", "B")];
    let outcomes = f.store.write(&intents, Together::AllOrNothing, &Values::of(&["c", "two", "b"])).await.unwrap();
    let said: Vec<_> =
        outcomes.into_iter().map(|w| w.unwrap()).map(|w| (w.secret.name.to_string(), w.outcome)).collect();
    let expected = [("C", WriteOutcome::Created), ("A", WriteOutcome::Updated), ("B", WriteOutcome::Created)];
    assert_eq!(said, expected.map(|(name, outcome)| (name.to_owned(), outcome)));
    assert_eq!(f.value(current("alice", "A")).await, "two");
    assert_eq!(f.value(current("alice", "C")).await, "c");
}

pub(crate) async fn the_first_refusal_of_an_all_or_nothing_batch_is_the_one_named(f: Fixture) {
    let f = f.with_alice().await;
    f.set("OLD", &["one"]).await;
    f.set("OLDER", &["one", "two"]).await;
    let there = |number| Err(Refusal::Precondition { current: SecretVersion::new(number) });
    let batch = || Err(Refusal::Batch);
    let cases = [
        ([intent("alice", "Z"), absent("OLDER"), absent("OLD")], [batch(), there(2), batch()]),
        // A DEK would not help it.
        ([intent("alice", "Z"), intent("nobody", "A"), absent("OLD")], [batch(), batch(), there(1)]),
        (
            [intent("alice", "Z"), intent("nobody", "A"), intent("nobody", "B")],
            [batch(), Err(Refusal::NoActiveDek), batch()],
        ),
    ];
    for (intents, expected) in cases {
        let outcomes = f.store.write(&intents, Together::AllOrNothing, &Values::of(&["z", "a", "o"])).await.unwrap();
        assert_eq!(outcomes, expected);
    }
}

pub(crate) async fn a_batch_spans_tenants(f: Fixture) {
    let f = f.with_alice().await;
    f.dek("bob").await;
    let intents = [intent("bob", "A"), intent("alice", "A")];
    let outcomes = f.store.write(&intents, Together::AllOrNothing, &Values::of(&["of bob", "of alice"])).await.unwrap();
    assert!(outcomes.iter().all(Result::is_ok));
    assert_eq!(f.value(current("bob", "A")).await, "of bob");
    assert_eq!(f.value(current("alice", "A")).await, "of alice");
}

pub(crate) async fn batches_that_cross_each_other_both_come_through(f: Fixture) {
    const BATCHES: usize = 24;
    let f = Arc::new(f.with_alice().await);
    f.dek("bob").await;
    let mut batches = JoinSet::new();
    for batch in 0..BATCHES {
        let f = Arc::clone(&f);
        batches.spawn(async move {
            let mut intents = vec![
                intent("alice", "A"),
                intent("alice", "B"),
                intent("bob", "A"),
                intent("bob", "B"),
                intent("bob", "C"),
            ];
            if batch % 2 == 0 {
                intents.reverse();
            }
            let value = batch.to_string();
            let values = Values::of(&[value.as_str(); 5]);
            f.store.write(&intents, Together::AllOrNothing, &values).await.unwrap()
        });
    }
    for outcomes in batches.join_all().await {
        assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    }
    for place in [current("alice", "A"), current("alice", "B"), current("bob", "A"), current("bob", "C")] {
        let (secret, _) = f.secret(place).await;
        assert_eq!(secret.current.get(), u64::try_from(BATCHES).unwrap());
    }
}

pub(crate) async fn an_empty_batch_does_nothing(f: Fixture) {
    for together in [Together::Each, Together::AllOrNothing] {
        assert!(f.store.write(&[], together, &Values::of(&[])).await.unwrap().is_empty());
    }
}

pub(crate) async fn a_write_that_is_dropped_leaves_the_store_usable(f: Fixture) {
    let f = f.with_alice().await;
    // Polled once, twice, … and dropped: at whatever await it stood, the next write must come through and nothing be half there.
    for polls in 0..40_u32 {
        let values = Values::of(&["dropped"]);
        let intents = [intent("alice", "A")];
        let mut writing = f.store.write(&intents, Together::Each, &values);
        let mut polled = 0;
        std::future::poll_fn(|context| {
            polled += 1;
            match writing.as_mut().poll(context) {
                std::task::Poll::Pending if polled <= polls => std::task::Poll::Pending,
                _ => std::task::Poll::Ready(()),
            }
        })
        .await;
        drop(writing);
        let next =
            tokio::time::timeout(Duration::from_secs(10), f.write(intent("alice", "A"), &polls.to_string())).await;
        next.expect("a dropped write holds the writer").unwrap();
        let numbers = f.version_numbers("A").await;
        let expected: Vec<u64> = (1..=numbers[0]).rev().collect();
        assert_eq!(numbers, expected, "no gap");
    }
}
