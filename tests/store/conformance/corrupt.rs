use std::fmt::Debug;

use containarium::store::{Found, StoreError};

use crate::store::steps::{current, intent, name, tenant};
use crate::support::stores::Fixture;

/// The error names table and key.
fn names_row<T: Debug>(outcome: Result<T, StoreError>, expected: (&'static str, &str)) {
    match outcome {
        Err(StoreError::Corrupt { table, key, what }) => {
            assert_eq!((table, key.as_str()), expected);
            assert!(!what.is_empty());
        }
        other => panic!("{other:?}"),
    }
}

/// What a read of alice's A says; the query itself must go well.
async fn read_a(f: &Fixture) -> Result<Found, StoreError> {
    f.store.read(&[current("alice", "A")]).await.unwrap().remove(0)
}

async fn with_a(f: Fixture) -> Fixture {
    let f = f.with_alice().await;
    f.set("A", &["one"]).await;
    f
}

pub(crate) async fn a_dek_in_no_known_state_is_named(f: Fixture) {
    let f = with_a(f).await;
    f.database.damage("UPDATE deks SET state = 'lost' WHERE tenant = 'alice'").await;
    names_row(read_a(&f).await, ("deks", "alice/1"));
    names_row(f.store.read_tenant(&tenant("alice"), 10).await, ("deks", "alice/1"));
    names_row(f.store.counts().await, ("deks", "state 'lost'"));
}

pub(crate) async fn a_secret_with_no_known_delivery_is_named(f: Fixture) {
    let f = with_a(f).await;
    f.database.damage("UPDATE secrets SET delivery = 'pigeon' WHERE tenant = 'alice'").await;
    names_row(read_a(&f).await, ("secrets", "alice/A"));
    names_row(f.store.list(&tenant("alice"), None, 10).await, ("secrets", "alice/A"));
    names_row(f.store.versions(&tenant("alice"), &name("A")).await, ("secrets", "alice/A"));
    names_row(f.store.delete(&tenant("alice"), &name("A")).await, ("secrets", "alice/A"));
}

pub(crate) async fn a_secret_whose_current_version_is_zero_is_named(f: Fixture) {
    let f = with_a(f).await;
    f.database.run("UPDATE secrets SET current_version = 0 WHERE tenant = 'alice'").await.unwrap();
    names_row(read_a(&f).await, ("secrets", "alice/A"));
}

pub(crate) async fn a_secret_whose_current_version_is_missing_is_named(f: Fixture) {
    let f = with_a(f).await;
    f.database.run("DELETE FROM secret_versions WHERE tenant = 'alice'").await.unwrap();
    names_row(read_a(&f).await, ("secrets", "alice/A"));
    names_row(f.store.read_tenant(&tenant("alice"), 10).await, ("secrets", "alice/A"));
    assert_eq!(f.names().await, ["A"], "what is damaged is not hidden");
    let values = crate::store::fakes::Values::of(&["two"]);
    let written = f.store.write(&[intent("alice", "A")], containarium::store::Together::Each, &values).await;
    names_row(written, ("secrets", "alice/A"));
}

pub(crate) async fn a_live_version_without_bytes_is_named(f: Fixture) {
    let f = with_a(f).await;
    f.database.damage("UPDATE secret_versions SET ciphertext = NULL WHERE tenant = 'alice'").await;
    names_row(read_a(&f).await, ("secret_versions", "alice/A/1"));
}

pub(crate) async fn a_tenant_that_breaks_the_rule_is_named(f: Fixture) {
    let f = with_a(f).await;
    f.database.run("INSERT INTO tenants (tenant, created_at) VALUES ('Carol', 1)").await.unwrap();
    names_row(f.store.tenants(None, 10).await, ("tenants", "Carol"));
}

pub(crate) async fn a_secret_that_breaks_the_rule_is_named(f: Fixture) {
    let f = with_a(f).await;
    let insert = "INSERT INTO secrets (tenant, name, current_version, last_version, delivery, created_at, updated_at) \
                  VALUES ('alice', 'my-key', 1, 1, 'env', 1, 1)";
    f.database.run(insert).await.unwrap();
    names_row(f.store.list(&tenant("alice"), None, 10).await, ("secrets", "alice/my-key"));
}

pub(crate) async fn a_kid_of_fifteen_bytes_is_named(f: Fixture) {
    let f = with_a(f).await;
    let short = f.database.bytes(&[0xAB; 15]);
    f.database.damage(&format!("UPDATE master_keys SET kid = {short}")).await;
    names_row(f.store.survey().await, ("master_keys", &"ab".repeat(15)));
}

pub(crate) async fn a_key_state_in_no_known_phase_is_named(f: Fixture) {
    let f = with_a(f).await;
    f.database.damage("UPDATE key_state SET phase = 'eclipsed'").await;
    names_row(f.store.survey().await, ("key_state", "1"));
}

pub(crate) async fn damage_to_one_secret_leaves_the_others_readable(f: Fixture) {
    let f = with_a(f).await;
    f.set("B", &["two"]).await;
    f.database.damage("UPDATE secrets SET delivery = 'pigeon' WHERE name = 'A'").await;
    assert_eq!(f.value(current("alice", "B")).await, "two");
    assert_eq!(f.set("B", &["three"]).await.get(), 2);
}
