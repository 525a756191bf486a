//! Reads that wait and are answered together.

use std::sync::Arc;

use containarium::store::{Found, Reads, StoreError};
use tokio::task::JoinSet;

use crate::store::steps::{current, numbered, text};
use crate::support::stores::Fixture;

pub(crate) async fn of_many_reads_at_once_each_gets_its_own_answer(f: Fixture) {
    let f = f.with_alice().await;
    for number in 0..10 {
        f.set(&format!("A_{number}"), &[&format!("old {number}"), &format!("new {number}")]).await;
    }
    let reads = Reads::new(Arc::clone(&f.store));
    let mut readers = JoinSet::new();
    for reader in 0..1000 {
        let (reads, number) = (reads.clone(), reader % 12);
        readers.spawn(async move {
            let place = match reader % 2 {
                0 => current("alice", &format!("A_{number}")),
                _ => numbered("alice", &format!("A_{number}"), 1),
            };
            (reader, reads.read(place).await.unwrap())
        });
    }
    let mut answered = 0;
    while let Some(read) = readers.join_next().await {
        let (reader, found) = read.unwrap();
        let (number, age) = (reader % 12, if reader % 2 == 0 { "new" } else { "old" });
        match found {
            Found::Secret(secret, Some(version)) => {
                assert_eq!(secret.name.as_str(), format!("A_{number}"));
                assert_eq!(text(&version), format!("{age} {number}"));
            }
            found => assert!(number >= 10 && found == Found::NoSecret, "{number}: {found:?}"),
        }
        answered += 1;
    }
    assert_eq!(answered, 1000);
}

pub(crate) async fn a_damaged_row_fails_those_who_read_it_and_nobody_else(f: Fixture) {
    let f = f.with_alice().await;
    f.set("A", &["one"]).await;
    f.set("B", &["two"]).await;
    f.database.damage("UPDATE secrets SET delivery = 'pigeon' WHERE name = 'A'").await;
    let reads = Reads::new(Arc::clone(&f.store));
    let mut readers = JoinSet::new();
    for reader in 0..200 {
        let reads = reads.clone();
        readers.spawn(async move {
            let named = if reader % 2 == 0 { "A" } else { "B" };
            (named, reads.read(current("alice", named)).await)
        });
    }
    while let Some(read) = readers.join_next().await {
        match read.unwrap() {
            ("A", Err(StoreError::Corrupt { table: "secrets", .. })) | ("B", Ok(Found::Secret(..))) => {}
            other => panic!("{other:?}"),
        }
    }
}

pub(crate) async fn a_reader_that_goes_away_takes_nobody_along(f: Fixture) {
    let f = f.with_alice().await;
    f.set("A", &["one"]).await;
    let reads = Reads::new(Arc::clone(&f.store));
    for _ in 0..50 {
        let mut readers = JoinSet::new();
        for _ in 0..20 {
            let reads = reads.clone();
            readers.spawn(async move { drop(reads.read(current("alice", "A")).await) });
        }
        let stays = tokio::spawn({
            let reads = reads.clone();
            async move { reads.read(current("alice", "A")).await }
        });
        readers.abort_all();
        assert!(matches!(stays.await.unwrap(), Ok(Found::Secret(..))));
    }
}

pub(crate) async fn reads_of_a_closed_store_are_told_so_and_nobody_hangs(f: Fixture) {
    let f = f.with_alice().await;
    let reads = Reads::new(Arc::clone(&f.store));
    f.store.close().await;
    let mut readers = JoinSet::new();
    for _ in 0..200 {
        let reads = reads.clone();
        readers.spawn(async move { reads.read(current("alice", "A")).await });
    }
    while let Some(read) = readers.join_next().await {
        assert!(matches!(read.unwrap(), Err(StoreError::Unavailable(_))));
    }
}
