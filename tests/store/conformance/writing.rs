use std::sync::Arc;

use containarium::model::{Delivery, MAX_VALUE_BYTES, VersionBody};
use containarium::store::{Expect, Found, Intent, Keep, Refusal, SealRefusal, StoreError, Together, WriteOutcome};
use tokio::task::JoinSet;

use crate::store::fakes::{AlwaysUnchanged, Seen, Values};
use crate::store::steps::{copy, current, delivering, expecting, intent, name, number, numbered, tenant};
use crate::support::stores::Fixture;

pub(crate) async fn a_write_creates_then_updates_then_leaves_alone(f: Fixture) {
    let f = f.with_alice().await;
    let first = f.write(intent("alice", "A"), "one").await.unwrap();
    assert_eq!((first.outcome, first.secret.current.get()), (WriteOutcome::Created, 1));
    assert_eq!((first.secret.tenant.as_str(), first.secret.name.as_str()), ("alice", "A"));
    assert_eq!((first.secret.delivery, first.secret.deleted_at), (Delivery::Env, None));
    assert_eq!(first.secret.created_at, first.secret.updated_at);
    // A time of this century: microseconds, not seconds or milliseconds.
    assert!(first.secret.created_at.0 > 1_500_000_000_000_000, "{:?}", first.secret.created_at);
    assert!(first.secret.created_at.0 < 10_000_000_000_000_000, "{:?}", first.secret.created_at);

    let second = f.write(intent("alice", "A"), "two").await.unwrap();
    assert_eq!((second.outcome, second.secret.current.get()), (WriteOutcome::Updated, 2));
    assert_eq!(second.secret.created_at, first.secret.created_at);
    assert!(second.secret.updated_at >= first.secret.updated_at);

    let third = f.write(intent("alice", "A"), "two").await.unwrap();
    assert_eq!((third.outcome, &third.secret), (WriteOutcome::Unchanged, &second.secret));
    assert_eq!(f.version_numbers("A").await, [2, 1]);
    // What a write answers is what a read answers.
    let (secret, version) = f.secret(current("alice", "A")).await;
    assert_eq!(secret, second.secret);
    assert_eq!(version.unwrap().created_at, second.secret.updated_at);
}

pub(crate) async fn a_sealer_is_given_its_place_and_what_lies_there(f: Fixture) {
    let f = f.with_alice().await;
    let dek = f.dek("alice").await;
    f.set("A", &["one", "two"]).await;
    f.set("GONE", &["one"]).await;
    f.delete("GONE").await;
    f.set("BURNT", &["one"]).await;
    f.destroy("BURNT", &[1]).await;

    let at = |version, current: Option<(u64, &str)>, source: Option<u64>| Seen {
        index: 0,
        version: number(version),
        dek: dek.version,
        current: current.map(|(version, value)| (number(version), value.as_bytes().to_vec(), Some(dek.id))),
        source: source.map(number),
    };
    let cases = [
        (intent("alice", "A"), at(3, Some((2, "two")), None)),
        (copy("alice", "A", 1), at(4, Some((3, "value")), Some(1))),
        (intent("alice", "NEW"), at(1, None, None)),
        // Of a deleted secret, and of one whose current version is destroyed, nothing is readable.
        (intent("alice", "GONE"), at(2, None, None)),
        (intent("alice", "BURNT"), at(2, None, None)),
    ];
    for (intent, expected) in cases {
        let values = Values::of(&["value"]);
        f.store.write(&[intent], Together::Each, &values).await.unwrap().remove(0).unwrap();
        assert_eq!(values.seen(), [expected]);
    }
    assert_eq!(f.value(current("alice", "A")).await, "one");
}

pub(crate) async fn values_of_no_bytes_and_of_the_most_bytes_come_back(f: Fixture) {
    let f = f.with_alice().await;
    let most = "m".repeat(MAX_VALUE_BYTES);
    f.set("EMPTY", &[""]).await;
    f.set("MOST", &[&most]).await;
    assert_eq!(f.value(current("alice", "EMPTY")).await, "");
    assert_eq!(f.value(current("alice", "MOST")).await, most);
}

pub(crate) async fn concurrent_writers_leave_no_gap_and_reuse_no_number(f: Fixture) {
    const WRITERS: u64 = 32;
    const WRITES: u64 = 4;
    let f = Arc::new(f.with_alice().await);
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let f = Arc::clone(&f);
        writers.spawn(async move {
            let mut made = Vec::new();
            for write in 0..WRITES {
                let value = format!("{writer} {write}");
                let written = f.write(intent("alice", "A"), &value).await.unwrap();
                made.push((written.secret.current.get(), written.outcome, value));
            }
            made
        });
    }
    let mut made: Vec<_> = writers.join_all().await.into_iter().flatten().collect();
    made.sort_by_key(|(version, ..)| *version);
    let numbers: Vec<u64> = made.iter().map(|(version, ..)| *version).collect();
    assert_eq!(numbers, (1..=WRITERS * WRITES).collect::<Vec<_>>());
    assert!(made.iter().all(|(version, outcome, _)| (*outcome == WriteOutcome::Created) == (*version == 1)));
    for (version, _, value) in &made {
        assert_eq!(f.value(numbered("alice", "A", *version)).await, *value);
    }
    assert_eq!(f.value(current("alice", "A")).await, made.last().unwrap().2);
}

pub(crate) async fn a_set_after_delete_continues_the_numbering(f: Fixture) {
    let f = f.with_alice().await;
    f.set("A", &["one", "two"]).await;
    f.delete("A").await;
    // The value of before the delete, too, makes a new version: it could not be read.
    let written = f.write(intent("alice", "A"), "two").await.unwrap();
    assert_eq!((written.outcome, written.secret.current.get()), (WriteOutcome::Updated, 3));
    assert_eq!(written.secret.deleted_at, None);
    assert_eq!(f.version_numbers("A").await, [3, 2, 1]);
    assert_eq!(f.names().await, ["A"]);
}

pub(crate) async fn a_number_is_never_used_twice_even_after_destroy(f: Fixture) {
    let f = f.with_alice().await;
    f.set("A", &["one", "two"]).await;
    f.destroy("A", &[1, 2]).await;
    let written = f.write(intent("alice", "A"), "two").await.unwrap();
    assert_eq!((written.outcome, written.secret.current.get()), (WriteOutcome::Updated, 3));
    // Nor where the rows themselves are pruned.
    f.destroy("A", &[3]).await;
    f.write(Intent { keep: Keep::Newest(1), ..intent("alice", "A") }, "four").await.unwrap();
    assert_eq!(f.version_numbers("A").await, [4]);
    assert_eq!(f.set("A", &["five"]).await.get(), 5);
}

pub(crate) async fn an_expected_absence_holds_for_what_cannot_be_read(f: Fixture) {
    let f = f.with_alice().await;
    let absent = || expecting(Expect::Absent);
    assert_eq!(f.write(absent(), "one").await.unwrap().outcome, WriteOutcome::Created);
    let live = Err(Refusal::Precondition { current: Some(number(1)) });
    assert_eq!(f.write(absent(), "two").await, live);
    assert_eq!(f.write(absent(), "one").await, live, "an equal value is no absence");
    f.delete("A").await;
    assert_eq!(f.write(absent(), "two").await.unwrap().secret.current.get(), 2);
    f.destroy("A", &[1]).await;
    assert_eq!(f.write(absent(), "three").await, Err(Refusal::Precondition { current: Some(number(2)) }));
    f.destroy("A", &[2]).await;
    assert_eq!(f.write(absent(), "three").await.unwrap().secret.current.get(), 3);
    assert_eq!(f.version_numbers("A").await, [3, 2, 1]);
}

pub(crate) async fn an_expected_version_must_be_current_and_readable(f: Fixture) {
    let f = f.with_alice().await;
    let at = |version| expecting(Expect::Current(number(version)));
    assert_eq!(f.write(at(1), "one").await, Err(Refusal::Precondition { current: None }));
    assert_eq!(f.rows("secrets WHERE tenant = 'alice'").await, 0, "a refused write leaves no placeholder");
    f.set("A", &["one"]).await;
    assert_eq!(f.write(at(1), "two").await.unwrap().secret.current.get(), 2);
    for other in [1, 3] {
        assert_eq!(f.write(at(other), "three").await, Err(Refusal::Precondition { current: Some(number(2)) }));
    }
    assert_eq!(f.write(at(2), "two").await.unwrap().outcome, WriteOutcome::Unchanged);
    f.delete("A").await;
    assert_eq!(f.write(at(2), "three").await, Err(Refusal::Precondition { current: None }), "deleted");
    assert_eq!(f.set("A", &["three"]).await.get(), 3);
    f.destroy("A", &[3]).await;
    assert_eq!(f.write(at(3), "four").await, Err(Refusal::Precondition { current: None }), "destroyed");
    assert_eq!(f.set("A", &["four"]).await.get(), 4);
}

pub(crate) async fn a_copy_makes_a_new_version_of_an_old_value(f: Fixture) {
    let f = f.with_alice().await;
    f.set("A", &["one", "two"]).await;
    let copied = f.write(copy("alice", "A", 1), "").await.unwrap();
    assert_eq!((copied.outcome, copied.secret.current.get()), (WriteOutcome::Updated, 3));
    assert_eq!(f.value(current("alice", "A")).await, "one");
    // Of the current version too: a copy always makes a version.
    assert_eq!(f.write(copy("alice", "A", 3), "").await.unwrap().secret.current.get(), 4);
    // And where the current version is destroyed.
    f.destroy("A", &[4]).await;
    assert_eq!(f.write(copy("alice", "A", 2), "").await.unwrap().secret.current.get(), 5);
    assert_eq!(f.value(current("alice", "A")).await, "two");
}

pub(crate) async fn a_copy_of_what_is_not_there_is_refused(f: Fixture) {
    let f = f.with_alice().await;
    let before = f.all_rows().await;
    assert_eq!(f.write(copy("nobody", "A", 1), "").await, Err(Refusal::NoTenant));
    assert_eq!(f.write(copy("alice", "A", 1), "").await, Err(Refusal::NoSecret));
    assert_eq!(f.all_rows().await, before);
    f.set("A", &["one", "two"]).await;
    assert_eq!(f.write(copy("alice", "A", 3), "").await, Err(Refusal::NoVersion(number(3))));
    f.destroy("A", &[1]).await;
    assert_eq!(f.write(copy("alice", "A", 1), "").await, Err(Refusal::Destroyed(number(1))));
    f.delete("A").await;
    assert_eq!(f.write(copy("alice", "A", 2), "").await, Err(Refusal::Deleted));
    assert_eq!(f.version_numbers("A").await, [2, 1]);
}

pub(crate) async fn a_copy_is_checked_before_the_expectation(f: Fixture) {
    let f = f.with_alice().await;
    f.set("A", &["one"]).await;
    let copying = |version| Intent { expect: Expect::Current(number(7)), ..copy("alice", "A", version) };
    assert_eq!(f.write(copying(2), "").await, Err(Refusal::NoVersion(number(2))));
    assert_eq!(f.write(copying(1), "").await, Err(Refusal::Precondition { current: Some(number(1)) }));
}

pub(crate) async fn older_versions_are_pruned_to_the_newest(f: Fixture) {
    let f = f.with_alice().await;
    f.set("A", &["one", "two", "three", "four"]).await;
    f.set("B", &["one", "two", "three"]).await;
    f.destroy("A", &[4]).await;
    f.write(Intent { keep: Keep::Newest(3), ..intent("alice", "A") }, "five").await.unwrap();
    assert_eq!(f.version_numbers("A").await, [5, 4, 3], "a destroyed version counts");
    f.write(Intent { keep: Keep::Newest(2), ..copy("alice", "A", 3) }, "").await.unwrap();
    assert_eq!(f.version_numbers("A").await, [6, 5], "what was copied may go");
    assert_eq!(f.value(current("alice", "A")).await, "three");
    f.write(Intent { keep: Keep::Newest(u32::MAX), ..intent("alice", "A") }, "seven").await.unwrap();
    f.write(Intent { keep: Keep::All, ..intent("alice", "A") }, "eight").await.unwrap();
    assert_eq!(f.version_numbers("A").await, [8, 7, 6, 5]);
    assert_eq!(f.version_numbers("B").await, [3, 2, 1], "another secret's versions");
}

pub(crate) async fn an_unchanged_write_prunes_nothing(f: Fixture) {
    let f = f.with_alice().await;
    f.set("A", &["one", "two"]).await;
    f.write(Intent { keep: Keep::Newest(1), ..intent("alice", "A") }, "two").await.unwrap();
    assert_eq!(f.version_numbers("A").await, [2, 1]);
}

pub(crate) async fn keeping_none_keeps_the_current_version(f: Fixture) {
    let f = f.with_alice().await;
    f.set("A", &["one"]).await;
    f.write(Intent { keep: Keep::Newest(0), ..intent("alice", "A") }, "two").await.unwrap();
    assert_eq!(f.version_numbers("A").await, [2]);
}

pub(crate) async fn delivery_is_kept_unless_given(f: Fixture) {
    let f = f.with_alice().await;
    let written = f.write(delivering(Delivery::File), "one").await.unwrap();
    assert_eq!(written.secret.delivery, Delivery::File);
    let kept = f.write(intent("alice", "A"), "two").await.unwrap();
    assert_eq!(kept.secret.delivery, Delivery::File);
    // The same value with another delivery: no version, but the delivery is stored.
    let changed = f.write(delivering(Delivery::Compose), "two").await.unwrap();
    assert_eq!((changed.outcome, changed.secret.delivery), (WriteOutcome::Unchanged, Delivery::Compose));
    assert_eq!(changed.secret.current.get(), 2);
    assert!(changed.secret.updated_at >= kept.secret.updated_at);
    let (secret, _) = f.secret(current("alice", "A")).await;
    assert_eq!(secret, changed.secret);
    // The same delivery and value: nothing is touched.
    f.database.run("UPDATE secrets SET updated_at = 7 WHERE tenant = 'alice'").await.unwrap();
    assert_eq!(f.write(delivering(Delivery::Compose), "two").await.unwrap().secret.updated_at.0, 7);
    assert!(f.write(delivering(Delivery::Env), "two").await.unwrap().secret.updated_at.0 > 7);
    // A rollback and a set after delete keep it too.
    f.write(delivering(Delivery::File), "two").await.unwrap();
    assert_eq!(f.write(copy("alice", "A", 1), "").await.unwrap().secret.delivery, Delivery::File);
    f.delete("A").await;
    assert_eq!(f.write(intent("alice", "A"), "four").await.unwrap().secret.delivery, Delivery::File);
}

pub(crate) async fn a_write_without_a_dek_is_refused_and_leaves_nothing(f: Fixture) {
    let f = f.with_key().await;
    f.database.run("INSERT INTO tenants (tenant, created_at) VALUES ('bare', 1)").await.unwrap();
    let before = f.all_rows().await;
    for of in ["unknown", "bare"] {
        assert_eq!(f.write(intent(of, "A"), "one").await, Err(Refusal::NoActiveDek), "{of}");
    }
    assert_eq!(f.all_rows().await, before);
    f.dek("unknown").await;
    f.dek("bare").await;
    for of in ["unknown", "bare"] {
        assert_eq!(f.write(intent(of, "A"), "one").await.unwrap().secret.current.get(), 1, "{of}");
    }
    // A tenant whose DEK only decrypts is as one without.
    f.database.run("UPDATE deks SET state = 'decrypt_only' WHERE tenant = 'bare'").await.unwrap();
    assert_eq!(f.write(intent("bare", "A"), "two").await, Err(Refusal::NoActiveDek));
    assert_eq!(f.value(current("bare", "A")).await, "one");
}

pub(crate) async fn a_refused_expectation_asks_for_no_dek(f: Fixture) {
    let f = f.with_key().await;
    f.database.run("INSERT INTO tenants (tenant, created_at) VALUES ('bare', 1)").await.unwrap();
    for of in ["unknown", "bare"] {
        let expecting = Intent { expect: Expect::Current(number(1)), ..intent(of, "A") };
        assert_eq!(f.write(expecting, "one").await, Err(Refusal::Precondition { current: None }), "{of}");
    }
}

pub(crate) async fn a_sealer_that_refuses_leaves_no_trace(f: Fixture) {
    let f = f.with_alice().await;
    let before = f.all_rows().await;
    for refusal in [SealRefusal::Locked, SealRefusal::DoesNotOpen, SealRefusal::NoRandom] {
        let values = Values::of(&["one"]).refusing(0, refusal.clone());
        let written = f.store.write(&[delivering(Delivery::File)], Together::Each, &values).await.unwrap();
        assert_eq!(written, [Err(Refusal::Seal(refusal))]);
    }
    assert_eq!(f.all_rows().await, before);
    assert_eq!(f.found(current("alice", "A")).await, Found::NoSecret);
    assert_eq!(f.set("A", &["one"]).await.get(), 1);
    let values = Values::of(&["two"]).refusing(0, SealRefusal::Locked);
    f.store.write(&[delivering(Delivery::File)], Together::Each, &values).await.unwrap().remove(0).unwrap_err();
    let (secret, _) = f.secret(current("alice", "A")).await;
    assert_eq!((secret.current.get(), secret.delivery), (1, Delivery::Env));
    assert_eq!(f.set("A", &["two"]).await.get(), 2, "no gap");
}

pub(crate) async fn a_sealer_that_breaks_its_word_stores_nothing(f: Fixture) {
    let f = f.with_alice().await;
    f.set("A", &["one"]).await;
    let before = f.all_rows().await;
    for intents in [vec![intent("alice", "NEW")], vec![copy("alice", "A", 1)]] {
        let outcome = f.store.write(&intents, Together::Each, &AlwaysUnchanged).await;
        assert!(matches!(outcome, Err(StoreError::Refused(_))), "{outcome:?}");
    }
    assert_eq!(f.all_rows().await, before);
}

pub(crate) async fn a_blocked_tenant_is_refused_everywhere(f: Fixture) {
    let f = f.with_alice().await;
    f.set("A", &["one", "two"]).await;
    f.set("GONE", &["one"]).await;
    f.delete("GONE").await;
    f.block("alice").await;
    let (alice, a) = (tenant("alice"), name("A"));
    let blocked = Refusal::TenantBlocked;
    assert_eq!(f.write(intent("alice", "A"), "three").await.unwrap_err(), blocked);
    assert_eq!(f.write(copy("alice", "A", 1), "").await.unwrap_err(), blocked);
    assert_eq!(f.write(expecting(Expect::Absent), "three").await.unwrap_err(), blocked, "before the expectation");
    assert_eq!(f.found(current("alice", "A")).await, Found::TenantBlocked);
    assert_eq!(f.store.list(&alice, None, 10).await.unwrap().unwrap_err(), blocked);
    assert_eq!(f.store.read_tenant(&alice, 10).await.unwrap().unwrap_err(), blocked);
    assert_eq!(f.store.versions(&alice, &a).await.unwrap().unwrap_err(), blocked);
    assert_eq!(f.store.delete(&alice, &a).await.unwrap().unwrap_err(), blocked);
    assert_eq!(f.store.undelete(&alice, &name("GONE")).await.unwrap().unwrap_err(), blocked);
    assert_eq!(f.store.destroy(&alice, &a, &[number(1)]).await.unwrap().unwrap_err(), blocked);
    // The shred is cancelled: all is as it was.
    f.database.run("UPDATE tenants SET shred_at = NULL WHERE tenant = 'alice'").await.unwrap();
    assert_eq!(f.value(numbered("alice", "A", 1)).await, "one");
    assert_eq!(f.names().await, ["A"]);
}

pub(crate) async fn the_last_number_is_the_last(f: Fixture) {
    let f = f.with_alice().await;
    f.set("A", &["one"]).await;
    f.database.run("UPDATE secrets SET last_version = 9223372036854775806 WHERE name = 'A'").await.unwrap();
    assert_eq!(f.set("A", &["two"]).await.get(), u64::try_from(i64::MAX).unwrap());
    assert_eq!(f.write(intent("alice", "A"), "three").await, Err(Refusal::Exhausted));
    assert_eq!(f.value(current("alice", "A")).await, "two");
}

pub(crate) async fn a_new_dek_seals_and_the_old_one_still_opens(f: Fixture) {
    let f = f.with_alice().await;
    f.set("A", &["one"]).await;
    f.database.run("UPDATE deks SET state = 'decrypt_only' WHERE tenant = 'alice'").await.unwrap();
    let second = f.dek("alice").await;
    let values = Values::of(&["two"]);
    f.store.write(&[intent("alice", "A")], Together::Each, &values).await.unwrap().remove(0).unwrap();
    let seen = values.seen().remove(0);
    assert_eq!(seen.dek, second.version);
    assert_ne!(seen.current.unwrap().2, Some(second.id), "the current version comes with the DEK that it needs");
    for (version, dek_number) in [(1, 1), (2, 2)] {
        let (_, found) = f.secret(numbered("alice", "A", version)).await;
        let VersionBody::Live { dek_version, dek: Some(dek), .. } = found.unwrap().body else { panic!("no DEK") };
        assert_eq!((dek_version.get(), dek.version.get()), (dek_number, dek_number));
    }
}
