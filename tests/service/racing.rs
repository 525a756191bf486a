//! Writes, reads and rotations of one tenant's DEK at once, with real keys: what was acknowledged opens, under whichever DEK it fell.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use containarium::access::{Grant, Permission};
use containarium::compose;
use containarium::config::{self, Environment, Flags, Setting, User};
use containarium::crypto::SecretValue;
use containarium::model::{Action, Expect, SecretName, SecretVersion, Tenant, Which};
use containarium::service::deks::{Renewal, RotatedDeks, Whose};
use containarium::service::job::Stage;
use containarium::service::open::Opened;
use containarium::service::{NewSecret, Request, Service};
use tokio::task::JoinSet;
use zeroize::Zeroizing;

use crate::support::stores::postgres::PostgresDatabase;

const ROUNDS: u32 = 1000;
/// How often everything is re-encrypted, too.
const REENCRYPT_EVERY: u32 = 50;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_rotations_of_a_dek_beside_writes_on_sqlite() {
    race(None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_rotations_of_a_dek_beside_writes_at_read_committed() {
    race_at("read committed").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_rotations_of_a_dek_beside_writes_at_repeatable_read() {
    race_at("repeatable read").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_rotations_of_a_dek_beside_writes_at_serializable() {
    race_at("serializable").await;
}

async fn race_at(level: &str) {
    let database = PostgresDatabase::create().await;
    database.execute(&format!("ALTER DATABASE {{database}} SET default_transaction_isolation = '{level}'")).await;
    race(Some(&database.url)).await;
}

async fn race(database_url: Option<&str>) {
    let dir = tempfile::tempdir().unwrap();
    let composed = compose::daemon(&settings(dir.path(), database_url)).await.unwrap();
    composed.node.tick().await.unwrap();
    assert_eq!(composed.opener.open().await.unwrap(), Opened::Ready);
    let service = composed.service;
    set(&service, "FIRST", 1).await;

    let ended = Arc::new(AtomicBool::new(false));
    let mut users = JoinSet::new();
    for user in 0..3 {
        users.spawn(count_up(Arc::clone(&service), format!("COUNTER_{user}"), Arc::clone(&ended)));
    }
    for round in 1..=ROUNDS {
        let how = if round % REENCRYPT_EVERY == 0 { Renewal::RotateAndReencrypt } else { Renewal::Rotate };
        assert_eq!(rotate(&service, how).await.rotated, 1, "round {round}");
    }
    ended.store(true, Ordering::SeqCst);
    for (name, last) in users.join_all().await {
        assert!(last > 10, "{name} came to {last} only");
        for number in last.saturating_sub(9).max(1)..=last {
            assert_eq!(get(&service, &name, Which::Number(version(number))).await, number, "{name}");
        }
    }
    rotate(&service, Renewal::Reencrypt).await;
    let deks = composed.store.deks(&alice()).await.unwrap();
    assert_eq!(deks.len(), 1, "of {ROUNDS} old DEKs none is left");
    assert_eq!(get(&service, "FIRST", Which::Current).await, 1);
    service.stop_work().await;
    composed.store.close().await;
}

/// Sets a counter to its own version's number, and reads it, until told to stop; answers how far it came.
async fn count_up(service: Arc<Service>, name: String, ended: Arc<AtomicBool>) -> (String, u64) {
    let mut number = 0;
    while !ended.load(Ordering::SeqCst) {
        number += 1;
        assert_eq!(set(&service, &name, number).await, version(number), "no gap, no twin");
        assert_eq!(get(&service, &name, Which::Current).await, number);
        if number > 5 {
            // Under an older DEK, most likely.
            assert_eq!(get(&service, &name, Which::Number(version(number - 5))).await, number - 5);
        }
    }
    (name, number)
}

async fn rotate(service: &Arc<Service>, how: Renewal) -> RotatedDeks {
    let caller = service.socket_peer(0, None);
    let grant = service.authorize_admin(&request(), &caller, Action::RotateDek).await.unwrap();
    let mut watch = service.rotate_deks(request(), grant, Whose::Tenant(alice()), how).await.unwrap();
    loop {
        if let Stage::Ended(result) = watch.next().await.unwrap() {
            return result.unwrap();
        }
    }
}

async fn set(service: &Service, name: &str, number: u64) -> SecretVersion {
    let value = SecretValue::new(Zeroizing::new(number.to_string().into_bytes()));
    let new = NewSecret { name: SecretName::parse(name).unwrap(), value, expect: Expect::Anything, delivery: None };
    let grant = granted(service, Permission::Write, Action::Set).await;
    service.set(&request(), &grant, new).await.unwrap().secret.current
}

async fn get(service: &Service, name: &str, which: Which) -> u64 {
    let grant = granted(service, Permission::Read, Action::Get).await;
    let opened = service.get(&request(), &grant, &SecretName::parse(name).unwrap(), which).await.unwrap();
    std::str::from_utf8(opened.value.expose()).unwrap().parse().unwrap()
}

async fn granted(service: &Service, permission: Permission, action: Action) -> Grant {
    let caller = service.socket_peer(0, None);
    service.authorize(&request(), &caller, permission, action, (&alice(), None)).await.unwrap()
}

fn request() -> Request {
    Request::new("race".to_owned(), None)
}

fn alice() -> Tenant {
    Tenant::parse("alice").unwrap()
}

fn version(number: u64) -> SecretVersion {
    SecretVersion::new(number).unwrap()
}

fn settings(dir: &Path, database_url: Option<&str>) -> config::Config {
    let mut flags = Flags::default();
    let data_dir = dir.join("data");
    std::fs::create_dir(&data_dir).unwrap();
    std::fs::write(dir.join("config.toml"), "").unwrap();
    flags.give(Setting::Config, Some(dir.join("config.toml")));
    flags.give(Setting::DataDir, Some(data_dir));
    flags.give(Setting::KeyFile, Some(dir.join("etc/secrets.key")));
    flags.give(Setting::Socket, Some(dir.join("s.sock")));
    flags.give(Setting::DatabaseUrl, database_url);
    config::load(&flags, &Environment::new(User::Other, None, []))
        .map_err(|errors| format!("{errors:?}"))
        .unwrap()
        .config
}
