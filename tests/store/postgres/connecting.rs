use containarium::store::{Masters, PostgresStore, Store, StoreError, Together};

use crate::store::fakes::{Key, Values};
use crate::store::steps::intent;
use crate::support::stores::Database;
use crate::support::stores::postgres::PostgresDatabase;

/// Why a store cannot be opened.
async fn refusal(url: &str) -> StoreError {
    let outcome = PostgresStore::open(url).await.map(drop);
    let error = outcome.expect_err(url);
    for shown in [error.to_string(), format!("{error:?}")] {
        assert!(!shown.contains("canary"), "{shown}");
    }
    error
}

#[tokio::test]
async fn a_url_that_is_none_is_refused_without_repeating_it() {
    for url in [
        "",
        "canary",
        "mysql://user:canary@host/db",
        "postgres://user:can?ary-canary@host/db",
        "postgres://user:canary/canary@host:port/db",
        "postgres:///db?sslmode=canary",
        "postgres:///db?host=/nowhere&pasword=canary",
        "postgres:///db?host=/nowhere&canary",
    ] {
        assert!(matches!(refusal(url).await, StoreError::Refused(_)), "{url}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_said_to_be_so() {
    let nowhere = tempfile::tempdir().unwrap();
    let error = refusal(&format!("postgres://user:canary@localhost/db?host={}", nowhere.path().display())).await;
    assert!(matches!(&error, StoreError::Unavailable(why) if why.contains("socket")), "{error}");
    // A port that nobody listens on: it was given out and closed again.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let error = refusal(&format!("postgres://user:canary@127.0.0.1:{port}/db")).await;
    assert!(matches!(&error, StoreError::Unavailable(why) if why.contains("refused")), "{error}");
}

#[tokio::test]
async fn a_missing_database_and_a_missing_user_are_told_apart() {
    let database = PostgresDatabase::create().await;
    let error = refusal(&format!("{}&dbname=nowhere", database.url)).await;
    assert!(matches!(&error, StoreError::Unavailable(why) if why.contains("no such database")), "{error}");
    let error = refusal(&format!("{}&user=nobody_canary", database.url)).await;
    assert!(matches!(&error, StoreError::Unavailable(why) if why.contains("user or password")), "{error}");
}

#[tokio::test]
async fn a_read_only_server_is_named_as_that() {
    let database = PostgresDatabase::create().await;
    drop(database.fixture().await.with_alice().await);
    database.execute("ALTER DATABASE {database} SET default_transaction_read_only = on").await;
    let f = database.fixture().await;
    let outcome = f.store.write(&[intent("alice", "A")], Together::Each, &Values::of(&["one"])).await;
    assert!(matches!(&outcome, Err(StoreError::Unavailable(why)) if why.contains("read-only")), "{outcome:?}");
}

#[tokio::test]
async fn a_refusal_of_the_database_repeats_no_value() {
    let database = PostgresDatabase::create().await;
    let f = database.fixture().await.with_alice().await;
    let check = "ALTER TABLE containarium.secret_versions ADD CONSTRAINT no_birds CHECK (position('canary'::bytea IN ciphertext) = 0)";
    database.execute(check).await;
    let outcome = f.store.write(&[intent("alice", "A")], Together::Each, &Values::of(&["canary"])).await;
    let Err(StoreError::Refused(why)) = outcome else { panic!("{outcome:?}") };
    // PostgreSQL's detail shows the failing row, of a long column the first bytes only, in hex.
    let start = data_encoding::HEXLOWER.encode(b"alice/A/1");
    assert!(why.contains("no_birds") && !why.contains("canary") && !why.contains(&start), "{why}");
}

#[tokio::test]
async fn a_batch_that_names_a_place_twice_is_refused_whole() {
    let database = PostgresDatabase::create().await;
    let f = database.fixture().await.with_alice().await;
    let twice = [intent("alice", "A"), intent("alice", "B"), intent("alice", "A")];
    let outcome = f.store.write(&twice, Together::Each, &Values::of(&["one", "two", "three"])).await;
    assert!(matches!(&outcome, Err(StoreError::Refused(why)) if why.contains("alice/A")), "{outcome:?}");
    assert_eq!(f.rows("secrets WHERE tenant = 'alice'").await, 0);
}

#[tokio::test]
async fn a_database_opened_for_reading_is_read_beside_its_daemons_and_never_written() {
    let database = PostgresDatabase::create().await;
    let reading = async || PostgresStore::open_reading(&database.url).await;
    assert!(matches!(reading().await.map(drop), Err(StoreError::Unusable(_))), "it was never started on");
    assert_eq!(database.number("SELECT count(*) FROM pg_namespace WHERE nspname = 'containarium'").await, 0);
    let daemon = database.fixture().await.store;
    daemon.first_key(&mut Key::numbered(1)).await.unwrap();
    let reader = reading().await.unwrap();
    assert_eq!(reader.survey().await.unwrap(), daemon.survey().await.unwrap());
    assert!(reader.raise_generation().await.is_err());
    daemon.raise_generation().await.unwrap();
    assert_eq!(reader.survey().await.unwrap(), daemon.survey().await.unwrap(), "what came since is seen");
    reader.close().await;
    database.execute("DELETE FROM containarium._sqlx_migrations WHERE version = 20261124000003").await;
    assert!(matches!(reading().await.map(drop), Err(StoreError::Unusable(_))));
}
