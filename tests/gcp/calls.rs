use containarium::gcp::VersionState;
use containarium::model::Micros;
use reqwest::Method;
use serde_json::json;

use super::*;

/// Bytes that no text mode, no URL-safe alphabet and no JSON string passes unharmed by luck.
const KEY: [u8; 32] = [0xFB; 32];

#[tokio::test]
async fn what_the_daemon_adds_the_restore_identity_reads_back_by_its_number() {
    let google = Google::start().await;
    let (daemon, restore) = (client(&google, "daemon"), client(&google, "restore"));
    for (at, content) in [KEY.to_vec(), vec![0], vec![0xFF; KeyfileImage::MAX_LEN]].iter().enumerate() {
        let added = daemon.add(&secret(), &image(content)).await.unwrap();
        assert_eq!(added, number(at as u64 + 1));
        assert_eq!(bytes(&restore.access(&secret(), added).await.unwrap()), *content);
    }
}

#[tokio::test]
async fn what_no_version_can_hold_is_not_sent() {
    let google = Google::start().await;
    let daemon = client(&google, "daemon");
    for length in [0, KeyfileImage::MAX_LEN + 1] {
        let refused = error(daemon.add(&secret(), &image(&vec![1; length])).await);
        assert!(matches!(refused, GcpError::BadLength { length: said, .. } if said == length), "{refused}");
    }
    assert!(google.requests("add").await.is_empty());
}

#[tokio::test]
async fn every_page_of_versions_is_listed_the_newest_first() {
    let google = Google::start().await;
    for _ in 0..501 {
        google.add(SECRET, &KEY).await;
    }
    let versions = client(&google, "daemon").list(&secret()).await.unwrap();
    let numbers: Vec<VersionNumber> = versions.iter().map(|version| version.number).collect();
    assert_eq!(numbers, (1..=501).rev().map(number).collect::<Vec<_>>());
    assert_eq!(google.requests("list").await.len(), 3);
}

#[tokio::test]
async fn a_version_is_listed_with_its_state_and_its_time() {
    let google = Google::start().await;
    for _ in 0..3 {
        google.add(SECRET, &KEY).await;
    }
    google.set_state(SECRET, 2, "disable").await;
    google.set_state(SECRET, 3, "destroy").await;
    let versions = client(&google, "restore").list(&secret()).await.unwrap();
    let states: Vec<VersionState> = versions.iter().map(|version| version.state).collect();
    assert_eq!(states, [VersionState::Destroyed, VersionState::Disabled, VersionState::Enabled]);
    let this_decade = Micros(1_750_000_000_000_000)..Micros(2_000_000_000_000_000);
    assert!(versions.iter().all(|version| version.created_at.is_some_and(|at| this_decade.contains(&at))));
}

#[tokio::test]
async fn an_empty_secret_has_no_versions() {
    let google = Google::start().await;
    assert_eq!(client(&google, "daemon").list(&secret()).await.unwrap(), []);
}

#[tokio::test]
async fn a_version_that_is_not_enabled_is_refused_by_its_state() {
    let google = Google::start().await;
    google.add(SECRET, &KEY).await;
    google.add(SECRET, &KEY).await;
    google.set_state(SECRET, 1, "disable").await;
    google.set_state(SECRET, 2, "destroy").await;
    let restore = client(&google, "restore");
    let disabled = error(restore.access(&secret(), number(1)).await);
    assert!(matches!(disabled, GcpError::VersionDisabled { .. }), "{disabled}");
    let command = "`gcloud secrets versions enable 1 --secret=containarium-master --project=acme-prod`";
    assert!(disabled.to_string().contains(command), "{disabled}");
    let destroyed = error(restore.access(&secret(), number(2)).await);
    assert!(matches!(destroyed, GcpError::VersionDestroyed { .. }), "{destroyed}");

    google.set_state(SECRET, 1, "enable").await;
    assert_eq!(bytes(&restore.access(&secret(), number(1)).await.unwrap()), KEY);
}

#[tokio::test]
async fn what_is_not_there_is_named() {
    let google = Google::start().await;
    let owner = client(&google, "owner");
    let missing = error(owner.access(&secret(), number(9)).await);
    assert!(matches!(missing, GcpError::NoSuchVersion { .. }), "{missing}");
    assert!(missing.to_string().starts_with(&format!("reading {SECRET}/versions/9 failed")), "{missing}");

    let other = SecretPath::parse("projects/acme-prod/secrets/another").unwrap();
    for missing in [
        error(owner.add(&other, &image(&KEY)).await),
        error(owner.list(&other).await),
        error(owner.secret(&other).await),
    ] {
        assert!(matches!(missing, GcpError::NoSuchSecret { .. }), "{missing}");
        assert!(missing.to_string().contains("`gcloud secrets create another --project=acme-prod"), "{missing}");
    }
}

#[tokio::test]
async fn a_secret_that_google_will_delete_is_known_as_such() {
    let google = Google::start().await;
    let daemon = client(&google, "daemon");
    assert!(!daemon.secret(&secret()).await.unwrap().expires);
    for (id, key, value) in [("until", "expireTime", "2099-01-01T00:00:00Z"), ("for", "ttl", "864000s")] {
        let body = json!({"replication": {"automatic": {}}, key: value});
        google.owner(Method::POST, &format!("projects/acme-prod/secrets?secretId={id}"), Some(body)).await;
        let path = SecretPath::parse(&format!("projects/acme-prod/secrets/{id}")).unwrap();
        assert!(daemon.secret(&path).await.unwrap().expires, "{id}");
    }
}

#[tokio::test]
async fn calls_can_be_made_from_any_task() {
    let google = Google::start().await;
    let daemon = client(&google, "daemon");
    let added = tokio::spawn(async move { daemon.add(&secret(), &image(&KEY)).await });
    assert_eq!(added.await.unwrap().unwrap(), number(1));
}
