//! What the database itself refuses, whoever writes to it.

use crate::store::rotation::NEW;
use crate::store::steps::KID;
use crate::support::stores::Fixture;

const UNIQUE: &str = "unique";
const CHECK: &str = "check constraint";

/// The statement is refused with this in the reason: a slip in the statement would be refused too, for another.
async fn refuses(f: &Fixture, sql: &str, reason: &str) {
    let refusal = f.database.run(sql).await.expect_err(sql);
    assert!(refusal.to_lowercase().contains(&reason.to_lowercase()), "{sql}: {refusal}");
}

/// Another master key, staged.
async fn staged(f: &Fixture) -> String {
    let kid = f.database.bytes(&[2; 16]);
    f.database
        .run(&format!("INSERT INTO master_keys (kid, state, created_at) VALUES ({kid}, 'staged', 1)"))
        .await
        .unwrap();
    kid
}

fn insert_dek(f: &Fixture, version: u32, kid: &str, state: &str) -> String {
    let (id, wrapped) = (f.database.bytes(&[7; 16]), f.database.bytes(&[7; 132]));
    format!(
        "INSERT INTO deks (tenant, dek_version, kid, dek_id, state, wrapped, created_at) \
         VALUES ('alice', {version}, {kid}, {id}, '{state}', {wrapped}, 1)"
    )
}

pub(crate) async fn a_dek_is_wrapped_by_the_active_key_only(f: Fixture) {
    let f = f.with_alice().await;
    let other = staged(&f).await;
    let reason = "a DEK must be wrapped by the active master key";
    refuses(&f, &insert_dek(&f, 2, &other, "decrypt_only"), reason).await;
    refuses(&f, &format!("UPDATE deks SET kid = {other} WHERE tenant = 'alice'"), reason).await;
    // Under the active one it is taken, and after the flip a rewrap is.
    let active = f.database.bytes(KID.as_bytes());
    f.database.run(&insert_dek(&f, 2, &active, "decrypt_only")).await.unwrap();
    f.database.run("UPDATE master_keys SET state = 'decrypt_only' WHERE state = 'active'").await.unwrap();
    f.database.run("UPDATE master_keys SET state = 'active' WHERE state = 'staged'").await.unwrap();
    f.database.run(&format!("UPDATE key_state SET active_kid = {other}, epoch = 2")).await.unwrap();
    f.database.run("UPDATE deks SET state = 'decrypt_only' WHERE tenant = 'alice'").await.unwrap();
    f.database.run(&format!("UPDATE deks SET kid = {other} WHERE tenant = 'alice'")).await.unwrap();
    refuses(&f, &format!("UPDATE deks SET kid = {active} WHERE tenant = 'alice'"), reason).await;
}

pub(crate) async fn the_identity_of_a_dek_is_fixed(f: Fixture) {
    let f = f.with_alice().await;
    let id = f.database.bytes(&[8; 16]);
    let reason = "the identity of a DEK does not change";
    refuses(&f, &format!("UPDATE deks SET dek_id = {id} WHERE tenant = 'alice'"), reason).await;
    refuses(&f, "UPDATE deks SET dek_version = 2 WHERE tenant = 'alice'", reason).await;
}

pub(crate) async fn a_master_key_in_use_cannot_be_retired(f: Fixture) {
    let f = f.with_alice().await;
    for dek_state in ["active", "decrypt_only"] {
        f.database.run(&format!("UPDATE deks SET state = '{dek_state}'")).await.unwrap();
        for state in ["retired", "destroyed", "aborted"] {
            let retire = format!("UPDATE master_keys SET state = '{state}'");
            refuses(&f, &retire, "a DEK in use is wrapped by this master key").await;
        }
    }
    f.database.run("UPDATE deks SET state = 'quarantined'").await.unwrap();
    f.database.run("UPDATE master_keys SET state = 'retired'").await.unwrap();
}

pub(crate) async fn the_counter_only_rises(f: Fixture) {
    let f = f.with_alice().await;
    f.set("A", &["one", "two"]).await;
    let lower = "UPDATE secrets SET current_version = 1, last_version = 1 WHERE name = 'A'";
    refuses(&f, lower, "a version number is never used twice").await;
    refuses(&f, "UPDATE secrets SET current_version = 3 WHERE name = 'A'", CHECK).await;
    f.database.run("UPDATE secrets SET last_version = 3 WHERE name = 'A'").await.unwrap();
}

pub(crate) async fn a_destroyed_version_cannot_come_back(f: Fixture) {
    let f = f.with_alice().await;
    f.set("A", &["one"]).await;
    f.destroy("A", &[1]).await;
    let bytes = f.database.bytes(&[1; 99]);
    let back = format!(
        "UPDATE secret_versions SET state = 'live', ciphertext = {bytes}, dek_version = 1, destroyed_at = NULL \
         WHERE tenant = 'alice'"
    );
    refuses(&f, &back, "a destroyed version stays destroyed").await;
}

pub(crate) async fn a_dek_comes_back_into_use_under_the_active_key_only(f: Fixture) {
    let f = f.flipped().await;
    let reason = "a DEK must be wrapped by the active master key";
    f.database.run("UPDATE deks SET state = 'decrypt_only' WHERE tenant = 'alice'").await.unwrap();
    f.database.run("UPDATE deks SET state = 'quarantined' WHERE tenant = 'alice'").await.unwrap();
    for state in ["active", "decrypt_only"] {
        refuses(&f, &format!("UPDATE deks SET state = '{state}' WHERE tenant = 'alice'"), reason).await;
    }
    let active = f.database.bytes(NEW.as_bytes());
    f.database.run(&format!("UPDATE deks SET state = 'active', kid = {active} WHERE tenant = 'alice'")).await.unwrap();
}

pub(crate) async fn a_shredded_dek_stays_shredded(f: Fixture) {
    let f = f.with_alice().await;
    let shred = "UPDATE deks SET state = 'shredded', kid = NULL, wrapped = NULL WHERE tenant = 'alice'";
    f.database.run(shred).await.unwrap();
    let (kid, wrapped) = (f.database.bytes(KID.as_bytes()), f.database.bytes(&[7; 132]));
    for state in ["active", "decrypt_only", "quarantined"] {
        let back =
            format!("UPDATE deks SET state = '{state}', kid = {kid}, wrapped = {wrapped} WHERE tenant = 'alice'");
        refuses(&f, &back, "a shredded DEK stays shredded").await;
    }
}

pub(crate) async fn a_shredded_dek_has_no_bytes(f: Fixture) {
    let f = f.with_alice().await;
    refuses(&f, "UPDATE deks SET state = 'shredded' WHERE tenant = 'alice'", CHECK).await;
    refuses(&f, "UPDATE deks SET state = 'shredded', kid = NULL WHERE tenant = 'alice'", CHECK).await;
    refuses(&f, "UPDATE deks SET kid = NULL, wrapped = NULL WHERE tenant = 'alice'", CHECK).await;
    let short = f.database.bytes(&[1; 131]);
    refuses(&f, &format!("UPDATE deks SET wrapped = {short} WHERE tenant = 'alice'"), CHECK).await;
}

pub(crate) async fn a_tenant_has_one_active_dek(f: Fixture) {
    let f = f.with_alice().await;
    let active = f.database.bytes(KID.as_bytes());
    refuses(&f, &insert_dek(&f, 2, &active, "active"), UNIQUE).await;
    f.database.run(&insert_dek(&f, 2, &active, "decrypt_only")).await.unwrap();
    refuses(&f, "UPDATE deks SET state = 'active' WHERE tenant = 'alice'", UNIQUE).await;
}

pub(crate) async fn a_database_has_one_active_master_key(f: Fixture) {
    let f = f.with_key().await;
    staged(&f).await;
    refuses(&f, "UPDATE master_keys SET state = 'active' WHERE state = 'staged'", UNIQUE).await;
    let third = f.database.bytes(&[3; 16]);
    let insert = format!("INSERT INTO master_keys (kid, state, created_at) VALUES ({third}, 'staged', 1)");
    refuses(&f, &insert, UNIQUE).await;
}

pub(crate) async fn a_live_version_has_its_bytes_and_its_dek(f: Fixture) {
    let f = f.with_alice().await;
    f.set("A", &["one"]).await;
    for change in
        ["ciphertext = NULL", "dek_version = NULL", "destroyed_at = 1", "state = 'destroyed'", "state = 'lost'"]
    {
        refuses(&f, &format!("UPDATE secret_versions SET {change} WHERE tenant = 'alice'"), CHECK).await;
    }
    refuses(&f, "UPDATE secret_versions SET dek_version = 2 WHERE tenant = 'alice'", "foreign key").await;
    refuses(&f, "DELETE FROM deks WHERE tenant = 'alice'", "foreign key").await;
    for length in [95, 65_633] {
        let bytes = f.database.bytes(&vec![1; length]);
        refuses(&f, &format!("UPDATE secret_versions SET ciphertext = {bytes} WHERE tenant = 'alice'"), CHECK).await;
    }
}

pub(crate) async fn there_is_one_key_state(f: Fixture) {
    let f = f.with_key().await;
    for (number, reason) in [(1, "unique"), (2, CHECK)] {
        let insert = format!(
            "INSERT INTO key_state (only_row, db_id, epoch, generation, active_kid, mode, phase) \
             SELECT {number}, db_id, epoch, generation, active_kid, mode, phase FROM key_state"
        );
        refuses(&f, &insert, reason).await;
    }
}
