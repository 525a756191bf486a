use std::sync::Arc;

use containarium::model::{DekBody, DekVersion};
use containarium::store::{DekOutcome, Refusal, SealRefusal, StoreError};
use tokio::task::JoinSet;

use crate::store::fakes::Deks;
use crate::store::steps::{KID, current, intent, tenant};
use crate::support::stores::Fixture;

pub(crate) async fn a_tenant_comes_with_its_dek(f: Fixture) {
    let f = f.with_key().await;
    let deks = Deks::default();
    let outcome = f.store.create_dek(&tenant("alice"), &deks).await.unwrap();
    let DekOutcome::Active(dek) = outcome else { panic!("{outcome:?}") };
    assert_eq!((dek.tenant.as_str(), dek.version), ("alice", DekVersion::FIRST));
    let DekBody::Active(wrapped) = &dek.body else { panic!("{dek:?}") };
    assert_eq!((wrapped.kid, wrapped.bytes.len()), (KID, 132));
    assert_eq!(deks.asked(), [(tenant("alice"), DekVersion::FIRST, KID)]);

    assert_eq!(f.store.create_dek(&tenant("alice"), &deks).await.unwrap(), DekOutcome::Active(dek), "found, not made");
    assert_eq!(deks.asked().len(), 1);
}

pub(crate) async fn concurrent_first_writes_of_a_tenant_make_one_dek(f: Fixture) {
    let f = f.with_key().await;
    let deks = Arc::new(Deks::default());
    let mut creators = JoinSet::new();
    for _ in 0..32 {
        let (store, deks) = (Arc::clone(&f.store), Arc::clone(&deks));
        creators.spawn(async move { store.create_dek(&tenant("alice"), &*deks).await.unwrap() });
    }
    let outcomes = creators.join_all().await;
    assert!(matches!(outcomes[0], DekOutcome::Active(_)), "{:?}", outcomes[0]);
    assert!(outcomes.iter().all(|outcome| *outcome == outcomes[0]));
    assert_eq!(deks.asked().len(), 1);
    assert_eq!(f.database.number("SELECT count(*) FROM deks WHERE tenant = 'alice'").await, 1);
}

pub(crate) async fn a_blocked_tenant_gets_no_dek(f: Fixture) {
    let f = f.with_key().await;
    f.database.run("INSERT INTO tenants (tenant, created_at, shred_at) VALUES ('alice', 1, 1)").await.unwrap();
    let deks = Deks::default();
    assert_eq!(f.store.create_dek(&tenant("alice"), &deks).await.unwrap(), DekOutcome::Blocked);
    assert!(deks.asked().is_empty());
    // Blocked also where a DEK is there.
    f.dek("bob").await;
    f.block("bob").await;
    assert_eq!(f.store.create_dek(&tenant("bob"), &deks).await.unwrap(), DekOutcome::Blocked);
}

pub(crate) async fn a_dek_is_never_made_over_orphans(f: Fixture) {
    let f = f.with_alice().await;
    f.set("A", &["one"]).await;
    f.database.run("CREATE TABLE saved_deks AS SELECT * FROM deks WHERE tenant = 'alice'").await.unwrap();
    f.database.damage("DELETE FROM deks WHERE tenant = 'alice'").await;
    let before = f.all_rows().await;

    let deks = Deks::default();
    let outcome = f.store.create_dek(&tenant("alice"), &deks).await.unwrap();
    assert_eq!(outcome, DekOutcome::Orphans { dek_version: DekVersion::FIRST });
    assert!(deks.asked().is_empty());
    assert_eq!(f.write(intent("alice", "B"), "two").await, Err(Refusal::NoActiveDek));
    assert_eq!(f.all_rows().await, before);

    // The row is put back: nothing was lost.
    f.database.run("INSERT INTO deks SELECT * FROM saved_deks").await.unwrap();
    assert_eq!(f.value(current("alice", "A")).await, "one");
    assert_eq!(f.set("A", &["two"]).await.get(), 2);
}

pub(crate) async fn destroyed_versions_are_no_orphans(f: Fixture) {
    let f = f.with_alice().await;
    f.set("A", &["one"]).await;
    f.destroy("A", &[1]).await;
    f.database.damage("DELETE FROM deks WHERE tenant = 'alice'").await;
    assert_eq!(f.dek("alice").await.version, DekVersion::FIRST);
    assert_eq!(f.set("A", &["two"]).await.get(), 2);
}

pub(crate) async fn a_new_dek_follows_the_highest_number(f: Fixture) {
    let f = f.with_alice().await;
    f.database.run("UPDATE deks SET state = 'decrypt_only' WHERE tenant = 'alice'").await.unwrap();
    let dek = f.dek("alice").await;
    assert_eq!((dek.version.get(), dek.body.state().as_str()), (2, "active"));
    let shred =
        "UPDATE deks SET state = 'shredded', kid = NULL, wrapped = NULL WHERE tenant = 'alice' AND dek_version = 2";
    f.database.run(shred).await.unwrap();
    assert_eq!(f.dek("alice").await.version.get(), 3);
}

pub(crate) async fn a_dek_that_is_refused_leaves_no_tenant(f: Fixture) {
    let f = f.with_key().await;
    let before = f.all_rows().await;
    let outcome = f.store.create_dek(&tenant("alice"), &Deks::refusing(SealRefusal::Locked)).await.unwrap();
    assert_eq!(outcome, DekOutcome::Refused(SealRefusal::Locked));
    assert_eq!(f.all_rows().await, before);
    f.dek("alice").await;
}

pub(crate) async fn without_a_first_key_there_is_no_dek(f: Fixture) {
    let deks = Deks::default();
    let outcome = f.store.create_dek(&tenant("alice"), &deks).await;
    assert!(matches!(outcome, Err(StoreError::Refused(_))), "{outcome:?}");
    assert!(deks.asked().is_empty());
    assert_eq!(f.all_rows().await, [0; 4]);
}
