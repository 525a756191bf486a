use std::time::Duration;

use containarium::model::{DekVersion, Micros, TenantRecord};
use containarium::store::deks::{ShredOutcome, ShredWhen};
use containarium::store::{DekOutcome, Found, Refusal, StoreError};

use crate::store::fakes::Deks;
use crate::store::rotation::{MINUTE, NEW};
use crate::store::steps::{current, intent, tenant};
use crate::support::stores::Fixture;

fn done(outcome: ShredOutcome) -> (TenantRecord, u64) {
    match outcome {
        ShredOutcome::Done { tenant, generation } => (tenant, generation),
        other => panic!("{other:?}"),
    }
}

async fn record(f: &Fixture, of: &str) -> TenantRecord {
    let tenants = f.store.tenants(None, 100).await.unwrap().items;
    tenants.into_iter().find(|record| record.tenant.as_str() == of).unwrap()
}

async fn with_a_secret(f: Fixture) -> Fixture {
    let f = f.with_alice().await;
    f.set("A", &["one"]).await;
    f.dek("bob").await;
    f.write(intent("bob", "B"), "two").await.unwrap();
    f.store.rotate_dek(&tenant("alice"), DekVersion::FIRST, &Deks::default()).await.unwrap();
    f
}

pub(crate) async fn a_scheduled_shred_blocks_at_once_and_destroys_nothing(f: Fixture) {
    let f = with_a_secret(f).await;
    let alice = tenant("alice");
    assert_eq!(f.store.schedule_shred(&tenant("nobody"), MINUTE).await.unwrap(), ShredOutcome::NoTenant);
    let earlier = f.store.now().await.unwrap();
    let (scheduled, generation) = done(f.store.schedule_shred(&alice, MINUTE).await.unwrap());
    let later = f.store.now().await.unwrap();
    let at = scheduled.shred_at.unwrap();
    assert!(at >= Micros(earlier.0 + 60_000_000) && at <= Micros(later.0 + 60_000_000));
    assert_eq!((scheduled.shredded_at, generation, f.state().await.generation), (None, 2, 2));
    assert_eq!(scheduled, record(&f, "alice").await);

    assert_eq!(f.found(current("alice", "A")).await, Found::TenantBlocked);
    assert_eq!(f.write(intent("alice", "A"), "two").await, Err(Refusal::TenantBlocked));
    assert_eq!(f.store.create_dek(&alice, &Deks::default()).await.unwrap(), DekOutcome::Blocked);
    assert_eq!(f.dek_states("alice").await, [(1, "decrypt_only"), (2, "active")]);
    assert_eq!(f.value(current("bob", "B")).await, "two");
    // A pending one keeps its moment.
    let again = f.store.schedule_shred(&alice, Duration::ZERO).await.unwrap();
    assert_eq!(again, ShredOutcome::Elsewhere(scheduled));
    assert_eq!(f.state().await.generation, 2);
}

pub(crate) async fn a_cancelled_shred_gives_everything_back(f: Fixture) {
    let f = with_a_secret(f).await;
    let alice = tenant("alice");
    assert_eq!(f.store.cancel_shred(&tenant("nobody")).await.unwrap(), ShredOutcome::NoTenant);
    let none = record(&f, "alice").await;
    assert_eq!(f.store.cancel_shred(&alice).await.unwrap(), ShredOutcome::Elsewhere(none.clone()));
    assert_eq!(f.state().await.generation, 1);
    f.schedule_shred("alice", MINUTE).await;
    let (cancelled, generation) = done(f.store.cancel_shred(&alice).await.unwrap());
    assert_eq!((cancelled, generation, f.state().await.generation), (none, 3, 3));
    assert_eq!(f.value(current("alice", "A")).await, "one");
    f.set("A", &["two"]).await;
    assert_eq!(f.dek("alice").await.version.get(), 2);
    // And may be scheduled again.
    f.schedule_shred("alice", MINUTE).await;
}

pub(crate) async fn a_shred_leaves_no_wrapping_and_no_way_back(f: Fixture) {
    let f = with_a_secret(f).await;
    let alice = tenant("alice");
    let dek = f.dek_row("alice", 1).await;
    f.store.quarantine(&alice, dek.version, dek.wrapping().unwrap()).await.unwrap();
    f.schedule_shred("alice", MINUTE).await;
    let (shredded, generation) = done(f.store.shred(&alice, ShredWhen::Now).await.unwrap());
    assert!(shredded.shred_at.is_some() && shredded.shredded_at.is_some());
    assert!(shredded.shredded_at.unwrap() <= f.store.now().await.unwrap());
    assert_eq!((generation, f.state().await.generation, shredded.active_dek), (3, 3, None));
    assert_eq!(shredded, record(&f, "alice").await);
    assert_eq!(f.dek_states("alice").await, [(1, "shredded"), (2, "shredded")], "a quarantined one too");
    assert_eq!(f.rows("deks WHERE tenant = 'alice' AND kid IS NULL AND wrapped IS NULL").await, 2);
    assert_eq!(f.dek_states("bob").await, [(1, "active")]);

    assert_eq!(f.found(current("alice", "A")).await, Found::TenantBlocked);
    assert_eq!(f.write(intent("alice", "A"), "two").await, Err(Refusal::TenantBlocked));
    assert_eq!(f.store.create_dek(&alice, &Deks::default()).await.unwrap(), DekOutcome::Blocked, "reserved");
    for outcome in [
        f.store.cancel_shred(&alice).await,
        f.store.schedule_shred(&alice, MINUTE).await,
        f.store.shred(&alice, ShredWhen::Now).await,
        f.store.shred(&alice, ShredWhen::Due).await,
    ] {
        assert_eq!(outcome.unwrap(), ShredOutcome::Elsewhere(shredded.clone()));
    }
    assert_eq!(f.state().await.generation, 3);
}

pub(crate) async fn a_shred_is_due_when_its_moment_has_come(f: Fixture) {
    let f = with_a_secret(f).await;
    let alice = tenant("alice");
    assert_eq!(f.store.shred(&tenant("nobody"), ShredWhen::Now).await.unwrap(), ShredOutcome::NoTenant);
    for when in [ShredWhen::Now, ShredWhen::Due] {
        let not_pending = f.store.shred(&alice, when).await.unwrap();
        assert_eq!(not_pending, ShredOutcome::Elsewhere(record(&f, "alice").await));
    }
    f.schedule_shred("alice", MINUTE).await;
    let early = f.store.shred(&alice, ShredWhen::Due).await.unwrap();
    assert_eq!(early, ShredOutcome::Elsewhere(record(&f, "alice").await));
    assert!(f.store.due_shreds(10).await.unwrap().is_empty());
    assert_eq!(f.dek_states("alice").await, [(1, "decrypt_only"), (2, "active")]);
    f.database.run("UPDATE tenants SET shred_at = shred_at - 60000000 WHERE tenant = 'alice'").await.unwrap();
    assert_eq!(f.store.due_shreds(10).await.unwrap(), std::slice::from_ref(&alice));
    done(f.store.shred(&alice, ShredWhen::Due).await.unwrap());
    assert!(f.store.due_shreds(10).await.unwrap().is_empty());
}

pub(crate) async fn the_longest_due_shred_comes_first(f: Fixture) {
    let f = f.with_key().await;
    for (of, at) in [("alice", 30), ("bob", 10), ("carol", 20)] {
        f.dek(of).await;
        f.database.run(&format!("UPDATE tenants SET shred_at = {at} WHERE tenant = '{of}'")).await.unwrap();
    }
    let due = |limit| f.store.due_shreds(limit);
    assert_eq!(due(2).await.unwrap(), [tenant("bob"), tenant("carol")]);
    assert_eq!(due(9).await.unwrap(), [tenant("bob"), tenant("carol"), tenant("alice")]);
}

pub(crate) async fn blocked_tenants_come_in_pages_by_name(f: Fixture) {
    let f = f.with_key().await;
    for of in ["dave", "alice", "bob", "carol"] {
        f.dek(of).await;
    }
    assert!(f.store.blocked_tenants(None, 10).await.unwrap().is_empty());
    for of in ["dave", "alice", "carol"] {
        f.schedule_shred(of, MINUTE).await;
    }
    done(f.store.shred(&tenant("carol"), ShredWhen::Now).await.unwrap());
    let first = f.store.blocked_tenants(None, 2).await.unwrap();
    assert_eq!(first, [record(&f, "alice").await, record(&f, "carol").await]);
    let second = f.store.blocked_tenants(Some(&tenant("carol")), 2).await.unwrap();
    assert_eq!(second, [record(&f, "dave").await]);
}

pub(crate) async fn the_systems_tenant_is_never_shredded(f: Fixture) {
    let f = f.with_key().await;
    let system = tenant("_system");
    let refused = f.store.schedule_shred(&system, Duration::ZERO).await;
    assert!(matches!(refused, Err(StoreError::Refused(_))), "{refused:?}");
    // Not by way of its row either.
    f.block("_system").await;
    for when in [ShredWhen::Due, ShredWhen::Now] {
        let refused = f.store.shred(&system, when).await;
        assert!(matches!(refused, Err(StoreError::Refused(_))), "{refused:?}");
    }
    assert_eq!((f.dek_states("_system").await, f.state().await.generation), (vec![(1, "active")], 1));
}

pub(crate) async fn a_rotation_passes_over_what_is_shredded(f: Fixture) {
    let f = f.flipped().await;
    f.schedule_shred("alice", MINUTE).await;
    assert_eq!(f.rewrap_all().await, 3, "a pending one is rewrapped: it may be cancelled");
    done(f.store.cancel_shred(&tenant("alice")).await.unwrap());
    f.schedule_shred("bob", MINUTE).await;
    done(f.store.shred(&tenant("bob"), ShredWhen::Now).await.unwrap());
    let under = f.store.deks_under(NEW, None, 10).await.unwrap();
    assert_eq!(under.iter().map(|dek| dek.tenant.as_str()).collect::<Vec<_>>(), ["_system", "alice"]);
}
