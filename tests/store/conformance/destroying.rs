use containarium::model::VersionBody;
use containarium::store::Refusal;

use crate::store::steps::{current, name, number, numbered, tenant};
use crate::support::stores::Fixture;

pub(crate) async fn a_deleted_secret_comes_back_whole(f: Fixture) {
    let f = f.with_alice().await;
    f.set("A", &["one", "two"]).await;
    let (before, _) = f.secret(current("alice", "A")).await;
    let deleted = f.store.delete(&tenant("alice"), &name("A")).await.unwrap().unwrap();
    assert_eq!(deleted.deleted_at, Some(deleted.updated_at));
    assert!(deleted.updated_at >= before.updated_at);
    assert_eq!((deleted.current, deleted.created_at), (before.current, before.created_at));
    assert!(f.names().await.is_empty());
    let undeleted = f.store.undelete(&tenant("alice"), &name("A")).await.unwrap().unwrap();
    assert_eq!(undeleted.deleted_at, None);
    assert!(undeleted.updated_at >= deleted.updated_at);
    let (after, version) = f.secret(current("alice", "A")).await;
    assert_eq!((&after, version.unwrap().version.get()), (&undeleted, 2));
    assert_eq!(f.value(numbered("alice", "A", 1)).await, "one");
    assert_eq!(f.names().await, ["A"]);
}

pub(crate) async fn deleting_and_undeleting_are_refused_out_of_turn(f: Fixture) {
    let f = f.with_alice().await;
    let (nobody, alice, a) = (tenant("nobody"), tenant("alice"), name("A"));
    assert_eq!(f.store.delete(&nobody, &a).await.unwrap(), Err(Refusal::NoTenant));
    assert_eq!(f.store.undelete(&nobody, &a).await.unwrap(), Err(Refusal::NoTenant));
    assert_eq!(f.store.delete(&alice, &a).await.unwrap(), Err(Refusal::NoSecret));
    assert_eq!(f.store.undelete(&alice, &a).await.unwrap(), Err(Refusal::NoSecret));
    f.set("A", &["one"]).await;
    assert_eq!(f.store.undelete(&alice, &a).await.unwrap(), Err(Refusal::NotDeleted));
    f.delete("A").await;
    f.database.run("UPDATE secrets SET deleted_at = 5, updated_at = 5 WHERE tenant = 'alice'").await.unwrap();
    assert_eq!(f.store.delete(&alice, &a).await.unwrap(), Err(Refusal::Deleted));
    let (secret, _) = f.secret(current("alice", "A")).await;
    assert_eq!((secret.deleted_at.unwrap().0, secret.updated_at.0), (5, 5), "the first deletion stands");
}

pub(crate) async fn destroying_is_all_or_nothing(f: Fixture) {
    let f = f.with_alice().await;
    let (alice, a) = (tenant("alice"), name("A"));
    assert_eq!(f.store.destroy(&tenant("nobody"), &a, &[number(1)]).await.unwrap(), Err(Refusal::NoTenant));
    assert_eq!(f.store.destroy(&alice, &a, &[number(1)]).await.unwrap(), Err(Refusal::NoSecret));
    f.set("A", &["one", "two", "three"]).await;
    f.set("B", &["b"]).await;
    let versions = [number(1), number(9), number(2), number(8)];
    assert_eq!(f.store.destroy(&alice, &a, &versions).await.unwrap(), Err(Refusal::NoVersion(number(9))));
    assert_eq!(f.value(numbered("alice", "A", 1)).await, "one");
    assert_eq!(f.value(numbered("alice", "A", 2)).await, "two");

    let (before, _) = f.secret(current("alice", "A")).await;
    let secret = f.store.destroy(&alice, &a, &[number(2), number(1), number(2)]).await.unwrap().unwrap();
    assert_eq!(secret.current.get(), 3);
    assert!(secret.updated_at >= before.updated_at);
    assert_eq!(f.secret(current("alice", "A")).await.0, secret);
    let destroyed = "secret_versions WHERE state = 'destroyed' AND ciphertext IS NULL AND dek_version IS NULL";
    assert_eq!(f.rows(destroyed).await, 2);
    assert_eq!(f.value(current("alice", "A")).await, "three");
    assert_eq!(f.value(current("alice", "B")).await, "b");
    assert_eq!(f.version_numbers("A").await, [3, 2, 1]);
}

pub(crate) async fn what_is_destroyed_stays_as_it_is(f: Fixture) {
    let f = f.with_alice().await;
    f.set("A", &["one", "two"]).await;
    f.destroy("A", &[1]).await;
    f.database.run("UPDATE secret_versions SET destroyed_at = 5 WHERE state = 'destroyed'").await.unwrap();
    f.database.run("UPDATE secrets SET updated_at = 5 WHERE tenant = 'alice'").await.unwrap();
    let again = f.store.destroy(&tenant("alice"), &name("A"), &[number(1)]).await.unwrap().unwrap();
    assert_eq!(again.updated_at.0, 5, "nothing was destroyed");
    let both = f.store.destroy(&tenant("alice"), &name("A"), &[number(1), number(2)]).await.unwrap().unwrap();
    assert!(both.updated_at.0 > 5);
    let (_, version) = f.secret(numbered("alice", "A", 1)).await;
    let VersionBody::Destroyed { at } = version.unwrap().body else { panic!("live") };
    assert_eq!(at.0, 5, "the first destruction stands");
}

pub(crate) async fn versions_of_a_deleted_secret_can_be_destroyed(f: Fixture) {
    let f = f.with_alice().await;
    f.set("A", &["one", "two"]).await;
    f.delete("A").await;
    let secret = f.store.destroy(&tenant("alice"), &name("A"), &[number(2)]).await.unwrap().unwrap();
    assert!(secret.deleted_at.is_some());
    // Undeleted, it is there but not readable: its current version is destroyed.
    f.store.undelete(&tenant("alice"), &name("A")).await.unwrap().unwrap();
    assert!(f.names().await.is_empty());
    assert_eq!(f.value(numbered("alice", "A", 1)).await, "one");
}

pub(crate) async fn destroying_nothing_changes_nothing(f: Fixture) {
    let f = f.with_alice().await;
    f.set("A", &["one"]).await;
    let (before, _) = f.secret(current("alice", "A")).await;
    assert_eq!(f.store.destroy(&tenant("alice"), &name("A"), &[]).await.unwrap(), Ok(before));
    assert_eq!(f.value(current("alice", "A")).await, "one");
}
