use containarium::model::{DekBody, DekState, VersionBody, WrappedDek};
use containarium::store::{Found, Intent, Keep};

use crate::store::steps::{KID, current, intent, numbered, text};
use crate::support::stores::Fixture;

pub(crate) async fn each_place_is_answered_in_its_order(f: Fixture) {
    let f = f.with_alice().await;
    f.set("A", &["one", "two"]).await;
    f.dek("blocked").await;
    f.block("blocked").await;
    let places = [
        numbered("alice", "A", 1),
        current("nobody", "A"),
        current("alice", "NONE"),
        current("blocked", "A"),
        current("alice", "A"),
        numbered("alice", "A", 9),
        numbered("alice", "A", u64::try_from(i64::MAX).unwrap()),
    ];
    let found = f.store.read(&places).await.unwrap();
    let said: Vec<String> = found
        .iter()
        .map(|found| match found.as_ref().unwrap() {
            Found::NoTenant => "no tenant".to_owned(),
            Found::TenantBlocked => "blocked".to_owned(),
            Found::NoSecret => "no secret".to_owned(),
            Found::Secret(secret, version) => {
                assert_eq!((secret.tenant.as_str(), secret.name.as_str(), secret.current.get()), ("alice", "A", 2));
                version.as_ref().map_or_else(|| "no version".to_owned(), |v| format!("{} {}", v.version, text(v)))
            }
        })
        .collect();
    assert_eq!(said, ["1 one", "no tenant", "no secret", "blocked", "2 two", "no version", "no version"]);
}

pub(crate) async fn the_same_place_twice_is_answered_twice(f: Fixture) {
    let f = f.with_alice().await;
    f.set("A", &["one"]).await;
    f.set("B", &["two"]).await;
    let places = [current("alice", "A"), current("alice", "B"), current("alice", "A"), numbered("alice", "A", 1)];
    let found = f.store.read(&places).await.unwrap();
    assert_eq!(found.len(), 4);
    assert_eq!(found[0], found[2]);
    assert_eq!(found[0], found[3]);
    assert_ne!(found[0], found[1]);
}

pub(crate) async fn a_deleted_secret_is_found_with_its_deletion(f: Fixture) {
    let f = f.with_alice().await;
    f.set("A", &["one"]).await;
    f.delete("A").await;
    let (secret, version) = f.secret(current("alice", "A")).await;
    assert!(secret.deleted_at.is_some());
    assert_eq!(text(&version.unwrap()), "one");
}

pub(crate) async fn a_version_that_never_was_or_was_pruned_is_absent(f: Fixture) {
    let f = f.with_alice().await;
    f.set("A", &["one"]).await;
    f.write(Intent { keep: Keep::Newest(1), ..intent("alice", "A") }, "two").await.unwrap();
    for version in [1, 3] {
        let (secret, version) = f.secret(numbered("alice", "A", version)).await;
        assert_eq!((secret.current.get(), version), (2, None));
    }
}

pub(crate) async fn a_destroyed_version_is_found_as_such(f: Fixture) {
    let f = f.with_alice().await;
    f.set("A", &["one"]).await;
    f.destroy("A", &[1]).await;
    for place in [current("alice", "A"), numbered("alice", "A", 1)] {
        let (secret, version) = f.secret(place).await;
        let version = version.unwrap();
        let VersionBody::Destroyed { at } = version.body else { panic!("live") };
        assert!(at >= version.created_at && secret.deleted_at.is_none());
    }
}

pub(crate) async fn a_missing_dek_row_is_absence_not_an_error(f: Fixture) {
    let f = f.with_alice().await;
    f.set("A", &["one"]).await;
    f.database.damage("DELETE FROM deks WHERE tenant = 'alice'").await;
    let (_, version) = f.secret(current("alice", "A")).await;
    let VersionBody::Live { ciphertext, dek_version, dek } = version.unwrap().body else { panic!("destroyed") };
    assert_eq!((ciphertext.len(), dek_version.get(), dek), (99, 1, None));
}

pub(crate) async fn dek_states_come_through(f: Fixture) {
    let f = f.with_alice().await;
    let made = f.dek("alice").await;
    f.set("A", &["one"]).await;
    let wrapped = || WrappedDek { kid: KID, bytes: vec![0; 132] };
    let states = [
        (DekState::Active, DekBody::Active(wrapped())),
        (DekState::DecryptOnly, DekBody::DecryptOnly(wrapped())),
        (DekState::Quarantined, DekBody::Quarantined(wrapped())),
        (DekState::Shredded, DekBody::Shredded),
    ];
    for (state, body) in states {
        let bytes = if state == DekState::Shredded { ", kid = NULL, wrapped = NULL" } else { "" };
        f.database.run(&format!("UPDATE deks SET state = '{state}'{bytes} WHERE tenant = 'alice'")).await.unwrap();
        let (_, version) = f.secret(current("alice", "A")).await;
        let VersionBody::Live { dek: Some(dek), .. } = version.unwrap().body else { panic!("no DEK") };
        assert_eq!((dek.id, dek.version, dek.body), (made.id, made.version, body));
    }
}

pub(crate) async fn no_places_are_no_answers(f: Fixture) {
    assert!(f.store.read(&[]).await.unwrap().is_empty());
}
