use std::sync::Arc;

use containarium::model::{DekBody, DekVersion, Delivery, KeyMode, KeyPhase, KeyState, MasterKeyState, VersionBody};
use containarium::store::{FirstKeyOutcome, Survey};
use tokio::task::JoinSet;

use crate::store::fakes::{Key, OVERHEAD};
use crate::store::steps::{KID, current};
use crate::support::stores::Fixture;

pub(crate) async fn the_first_key_is_made_once(f: Fixture) {
    let expected = KeyState {
        db_id: [0xDB; 16],
        epoch: 1,
        generation: 1,
        active_kid: KID,
        mode: KeyMode::Normal,
        phase: KeyPhase::Idle,
        lease: None,
    };
    let made = f.store.first_key(&mut Key::numbered(1)).await.unwrap();
    assert_eq!(made, FirstKeyOutcome::Made(expected.clone()));

    let mut second = Key::numbered(2);
    assert_eq!(f.store.first_key(&mut second).await.unwrap(), FirstKeyOutcome::AlreadyHeld);
    assert_eq!(second.calls, 0, "the second maker is not even called");

    let survey = f.store.survey().await.unwrap();
    assert_eq!(survey.key_state, Some(expected));
    assert_eq!(survey.master_keys.len(), 1);
    assert_eq!((survey.master_keys[0].kid, survey.master_keys[0].state), (KID, MasterKeyState::Active));
    assert!(survey.holds_rows);
}

pub(crate) async fn of_many_first_starts_one_makes_the_key(f: Fixture) {
    let mut starts = JoinSet::new();
    for number in 1..=16 {
        let store = Arc::clone(&f.store);
        starts.spawn(async move {
            let mut key = Key::numbered(number);
            let outcome = store.first_key(&mut key).await.unwrap();
            (key, outcome)
        });
    }
    let mut made = Vec::new();
    for (key, outcome) in starts.join_all().await {
        match outcome {
            FirstKeyOutcome::Made(state) => made.push((key.kid, key.calls, state.active_kid)),
            FirstKeyOutcome::AlreadyHeld => assert_eq!(key.calls, 0),
            FirstKeyOutcome::NotMade(message) => panic!("{message}"),
        }
    }
    let state = f.store.survey().await.unwrap().key_state.unwrap();
    assert_eq!(made, [(state.active_kid, 1, state.active_kid)]);
    assert_eq!(f.rows("master_keys").await, 1);
}

pub(crate) async fn a_first_key_that_fails_changes_nothing(f: Fixture) {
    let before = f.store.survey().await.unwrap();
    let outcome = f.store.first_key(&mut Key::failing("the disk is full")).await.unwrap();
    assert_eq!(outcome, FirstKeyOutcome::NotMade("the disk is full".to_owned()));
    assert_eq!(f.store.survey().await.unwrap(), before);
    f.with_key().await;
}

pub(crate) async fn the_first_key_brings_the_system_tenant(f: Fixture) {
    let f = f.with_key().await;
    let (secret, version) = f.secret(current("_system", "TOKEN_MAC")).await;
    assert_eq!((secret.current.get(), secret.delivery, secret.deleted_at), (1, Delivery::Env, None));
    let VersionBody::Live { ciphertext, dek_version, dek } = version.unwrap().body else { panic!("destroyed") };
    assert_eq!(ciphertext, vec![b't'; OVERHEAD + 32]);
    assert_eq!(dek_version, DekVersion::FIRST);
    let DekBody::Active(wrapped) = dek.unwrap().body else { panic!("not active") };
    assert_eq!((wrapped.kid, wrapped.bytes), (KID, vec![0x5D; 132]));
    let (other, _) = f.secret(current("_system", "AUDIT_CHAIN")).await;
    assert_eq!(other.current.get(), 1);
}

pub(crate) async fn rows_without_a_key_state_never_get_a_new_key(f: Fixture) {
    f.database.run("INSERT INTO tenants (tenant, created_at) VALUES ('alice', 1)").await.unwrap();
    let survey = f.store.survey().await.unwrap();
    assert!(survey.key_state.is_none() && survey.holds_rows, "{survey:?}");
    let mut key = Key::numbered(1);
    assert_eq!(f.store.first_key(&mut key).await.unwrap(), FirstKeyOutcome::AlreadyHeld);
    assert_eq!((key.calls, f.rows("master_keys").await), (0, 0));
}

pub(crate) async fn a_populated_database_that_lost_its_key_state_never_gets_a_new_key(f: Fixture) {
    let f = f.with_alice().await;
    f.set("A", &["one"]).await;
    f.database.damage("DELETE FROM key_state").await;
    let mut key = Key::numbered(2);
    assert_eq!(f.store.first_key(&mut key).await.unwrap(), FirstKeyOutcome::AlreadyHeld);
    // Only a master key's row is left of everything: still a database that held a key.
    for table in ["secret_versions", "secrets", "deks", "tenants"] {
        f.database.damage(&format!("DELETE FROM {table}")).await;
    }
    assert_eq!(f.store.first_key(&mut key).await.unwrap(), FirstKeyOutcome::AlreadyHeld);
    assert_eq!((key.calls, f.rows("key_state").await, f.rows("master_keys").await), (0, 0, 1));
}

pub(crate) async fn a_key_state_alone_is_a_key_that_was_held(f: Fixture) {
    let f = f.with_key().await;
    for table in ["secret_versions", "secrets", "deks", "tenants", "master_keys"] {
        f.database.damage(&format!("DELETE FROM {table}")).await;
    }
    let mut key = Key::numbered(2);
    assert_eq!(f.store.first_key(&mut key).await.unwrap(), FirstKeyOutcome::AlreadyHeld);
    assert_eq!((key.calls, f.rows("master_keys").await), (0, 0));
}

pub(crate) async fn an_empty_database_holds_nothing(f: Fixture) {
    let nothing = Survey { key_state: None, master_keys: Vec::new(), holds_rows: false, v1_table: false };
    assert_eq!(f.store.survey().await.unwrap(), nothing);
}

pub(crate) async fn a_master_key_in_use_says_so(f: Fixture) {
    let f = f.with_key().await;
    let staged = f.database.bytes(&[9; 16]);
    f.database
        .run(&format!("INSERT INTO master_keys (kid, state, created_at) VALUES ({staged}, 'staged', 9000000000000000)"))
        .await
        .unwrap();
    let in_use = |survey: Survey| survey.master_keys.iter().map(|key| (key.state, key.in_use)).collect::<Vec<_>>();
    let both = |first| vec![(MasterKeyState::Active, first), (MasterKeyState::Staged, false)];
    assert_eq!(in_use(f.store.survey().await.unwrap()), both(true));
    f.database.run("UPDATE deks SET state = 'decrypt_only'").await.unwrap();
    assert_eq!(in_use(f.store.survey().await.unwrap()), both(true), "a key that only decrypts is in use");
    f.database.run("UPDATE deks SET state = 'quarantined'").await.unwrap();
    assert_eq!(in_use(f.store.survey().await.unwrap()), both(false));
    f.database.run("UPDATE deks SET state = 'shredded', kid = NULL, wrapped = NULL").await.unwrap();
    assert_eq!(in_use(f.store.survey().await.unwrap()), both(false));
}

pub(crate) async fn only_a_confirmed_copy_is_an_escrow(f: Fixture) {
    let f = f.with_key().await;
    let (kid, sum) = (f.database.bytes(KID.as_bytes()), f.database.bytes(&[3; 32]));
    let insert = |id: &str, sum: &str, kind: &str, confirmed: &str| {
        format!(
            "INSERT INTO escrows (id, kid, target, content_sha256, kind, started_at, confirmed_at) \
             VALUES ('{id}', {kid}, 'age', {sum}, '{kind}', 1, {confirmed})"
        )
    };
    assert!(!f.store.has_confirmed_escrow(KID).await.unwrap());
    f.database.run(&insert("a", &sum, "copy", "NULL")).await.unwrap();
    assert!(!f.store.has_confirmed_escrow(KID).await.unwrap(), "begun is not proven");
    f.database.run(&insert("b", "NULL", "waiver", "1")).await.unwrap();
    assert!(!f.store.has_confirmed_escrow(KID).await.unwrap(), "a waiver is no copy");
    f.database.run("UPDATE escrows SET confirmed_at = 2 WHERE id = 'a'").await.unwrap();
    assert!(f.store.has_confirmed_escrow(KID).await.unwrap());
    assert!(!f.store.has_confirmed_escrow(Key::numbered(2).kid).await.unwrap(), "another key's copy");
}
