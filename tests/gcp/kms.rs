//! Cloud KMS: the client, and the provider over it that opens and makes wrapped key files.

use std::process::Command;

use containarium::crypto::{self, MasterKey};
use containarium::gcp::{Kms, KmsError, KmsTrouble};
use containarium::keys::provider::{Attempt, NotWrapped, OpenedBy, Provider};
use containarium::model::{Kid, KmsKey, WrappedMaster};

use super::*;
use crate::support::google::{KMS_KEY, OTHER_KMS_KEY};

const AAD: &[u8] = b"what it belongs to";
const KEY: [u8; 32] = *b"a canary that must stay unheard!";

fn key() -> KmsKey {
    KmsKey::parse(KMS_KEY).unwrap()
}

fn kms(google: &Google, identity: &str, limits: Limits) -> Kms {
    Kms::connect(&Endpoint::parse(&google.url(identity)).unwrap(), limits, &key()).unwrap()
}

fn provider(google: &Google, identity: &str) -> Provider {
    Provider { kms_endpoint: Some(google.url(identity)), age_identity: None }
}

fn refused<T>(outcome: Result<T, KmsError>) -> KmsError {
    outcome.err().expect("an error")
}

#[tokio::test]
async fn a_key_comes_back_from_kms_as_it_was_and_both_ways_have_checksums() {
    let google = Google::start().await;
    let kms = kms(&google, "operator", Limits::default());
    let encrypted = kms.encrypt(&key(), &image(&KEY), AAD).await.unwrap();
    assert!(key().is_of_version(&encrypted.key_version) && encrypted.key_version.ends_with("/1"));
    assert!(!encrypted.ciphertext.windows(8).any(|window| window == &KEY[..8]));
    let decrypted = kms.decrypt(&key(), &encrypted.ciphertext, AAD).await.unwrap();
    assert_eq!((bytes(&decrypted.image), decrypted.used_primary), (KEY.to_vec(), true));
    google.rotate_kms(KMS_KEY).await;
    assert!(!kms.decrypt(&key(), &encrypted.ciphertext, AAD).await.unwrap().used_primary);
    // The fake confirms checksums only that came.
    let other = refused(kms.decrypt(&key(), &encrypted.ciphertext, b"what another belongs to").await);
    assert!(matches!(other, KmsError::DoesNotDecrypt { .. }), "{other:?}");
    let mut flipped = encrypted.ciphertext.clone();
    flipped[20] ^= 1;
    assert!(matches!(refused(kms.decrypt(&key(), &flipped, AAD).await), KmsError::DoesNotDecrypt { .. }));
}

#[tokio::test]
async fn what_passes_is_tried_again_with_kms_too() {
    for fault in ["429", "500", "503", "cut", "truncated", "lost-answer", "flipped-bit", "no-checksum", "slow", "drip"]
    {
        let google = Google::start().await;
        let limits = Limits { deadline: Duration::from_secs(10), attempt: Duration::from_millis(300) };
        let kms = kms(&google, "operator", limits);
        google.fault_once(fault, "encrypt").await;
        let encrypted = kms.encrypt(&key(), &image(&KEY), AAD).await.unwrap_or_else(|error| panic!("{fault}: {error}"));
        google.fault_once(fault, "decrypt").await;
        let decrypted = kms.decrypt(&key(), &encrypted.ciphertext, AAD).await;
        assert_eq!(bytes(&decrypted.unwrap_or_else(|error| panic!("{fault}: {error}")).image), KEY, "{fault}");
        assert_eq!((google.requests("encrypt").await.len(), google.requests("decrypt").await.len()), (2, 2), "{fault}");
    }
}

#[tokio::test]
async fn each_wrong_answer_of_kms_has_a_message_of_its_own() {
    let faults = [
        "401",
        "403",
        "404",
        "418",
        "429",
        "500",
        "cut",
        "truncated",
        "flipped-bit",
        "no-checksum",
        "slow",
        "drip",
        "oversized",
        "redirect",
        "garbage",
        "echo",
    ];
    let google = Google::start().await;
    let encrypted = kms(&google, "operator", Limits::default()).encrypt(&key(), &image(&KEY), AAD).await.unwrap();
    let mut said = Vec::new();
    for fault in faults {
        google.heal().await;
        google.fault(fault, "decrypt").await;
        let client = kms(&google, "daemon", Limits::within(SHORT));
        let error = refused(client.decrypt(&key(), &encrypted.ciphertext, AAD).await);
        let as_expected = match fault {
            "401" => matches!(error, KmsError::CredentialsRefused { .. }),
            "403" => matches!(error, KmsError::Denied { .. }),
            "404" => matches!(error, KmsError::NoSuchKey { .. }),
            "418" => matches!(error, KmsError::Refused { status: 418, .. }),
            "429" => matches!(error, KmsError::QuotaExceeded { .. }),
            "500" => matches!(error, KmsError::Unavailable { status: 500, .. }),
            "cut" | "truncated" => matches!(error, KmsError::Interrupted { .. }),
            "flipped-bit" => matches!(error, KmsError::BadChecksum { expected: Some(_), .. }),
            "no-checksum" => matches!(error, KmsError::BadChecksum { expected: None, .. }),
            "slow" | "drip" => matches!(error, KmsError::Deadline { limit: SHORT, .. }),
            "oversized" => matches!(error, KmsError::AnswerTooLong { .. }),
            "redirect" => matches!(error, KmsError::Redirected { status: 307, .. }),
            "garbage" => matches!(error, KmsError::NotUnderstood { .. }),
            "echo" => matches!(error, KmsError::DoesNotDecrypt { .. }),
            _ => false,
        };
        assert!(as_expected, "{fault}: {error:?}");
        let text = error.to_string();
        assert!(text.starts_with(&format!("decrypting with KMS key {KMS_KEY} ")), "{text}");
        assert!(!text.contains("canary"), "{text}");
        said.push(text);
    }
    google.heal().await;
    google.set_kms_state(KMS_KEY, 1, "DISABLED").await;
    let client = kms(&google, "daemon", Limits::default());
    let disabled = refused(client.decrypt(&key(), &encrypted.ciphertext, AAD).await);
    assert!(matches!(disabled, KmsError::VersionDisabled { .. }), "{disabled:?}");
    google.destroy_kms(KMS_KEY, 1).await;
    let destroyed = refused(client.decrypt(&key(), &encrypted.ciphertext, AAD).await);
    assert!(matches!(destroyed, KmsError::VersionDestroyed { .. }), "{destroyed:?}");
    assert_eq!(destroyed.trouble(), KmsTrouble::NotFound);
    said.extend([disabled, destroyed].map(|error| error.to_string()));
    let distinct: std::collections::BTreeSet<_> = said.iter().collect();
    // Cut and truncated, slow and drip are the same to whoever waits; the checksum's are told apart by what was promised.
    assert_eq!(distinct.len(), said.len() - 2, "{said:#?}");
}

#[tokio::test]
async fn what_kms_did_not_confirm_is_no_ciphertext() {
    let google = Google::start().await;
    let kms = kms(&google, "operator", Limits::within(SHORT));
    google.fault_once("unconfirmed", "encrypt").await;
    assert!(matches!(refused(kms.encrypt(&key(), &image(&KEY), AAD).await), KmsError::NotConfirmed { .. }));
    google.fault_once("other-version", "encrypt").await;
    assert!(matches!(refused(kms.encrypt(&key(), &image(&KEY), AAD).await), KmsError::NotUnderstood { .. }));
}

#[tokio::test]
async fn a_daemon_may_decrypt_and_not_encrypt_and_a_wrapper_the_other_way_round() {
    let google = Google::start().await;
    let limits = Limits::default();
    let encrypted = kms(&google, "wrapper", limits).encrypt(&key(), &image(&KEY), AAD).await.unwrap();
    kms(&google, "daemon", limits).decrypt(&key(), &encrypted.ciphertext, AAD).await.expect("the daemon decrypts");
    for (identity, words) in [("wrapper", "cryptoKeyVersions.useToDecrypt"), ("nobody", "cryptoKeyDecrypter")] {
        let denied = refused(kms(&google, identity, limits).decrypt(&key(), &encrypted.ciphertext, AAD).await);
        assert!(denied.to_string().contains(words), "{denied}");
    }
    let denied = refused(kms(&google, "daemon", limits).encrypt(&key(), &image(&KEY), AAD).await);
    assert!(
        matches!(&denied, KmsError::Denied { .. }) && denied.to_string().contains("cryptoKeyEncrypter"),
        "{denied}"
    );
}

/// A master key, wrapped with the KMS key.
async fn wrapped(google: &Google) -> (MasterKey, WrappedMaster) {
    let master = MasterKey::make_random().unwrap();
    let wrapped = provider(google, "operator").wrap(&master, &[key()], &[]).await.unwrap();
    (master, wrapped)
}

#[tokio::test]
async fn a_wrapped_key_opens_to_the_key_that_its_kid_names_and_to_nothing_else() {
    let google = Google::start().await;
    let (master, good) = wrapped(&google).await;
    let (_, other) = wrapped(&google).await;
    let daemon = provider(&google, "daemon");
    let opened = daemon.open(&good).await.ok().unwrap();
    assert_eq!(crypto::kid(&opened.master), crypto::kid(&master));
    assert_eq!(opened.by, OpenedBy::Kms { key: key(), used_primary: true });
    let attempts = async |wrapped: WrappedMaster| daemon.open(&wrapped).await.err().expect("it does not open").attempts;
    // Another key's ciphertext, and another key's kid: what is sealed in says no.
    let exchanged = WrappedMaster { kid: good.kid, recipients: other.recipients.clone() };
    assert!(matches!(attempts(exchanged).await[..], [Attempt::Kms(KmsError::DoesNotDecrypt { .. })]));
    let renamed = WrappedMaster { kid: Kid::new([9; 16]), recipients: good.recipients.clone() };
    assert!(matches!(attempts(renamed).await[..], [Attempt::Kms(KmsError::DoesNotDecrypt { .. })]));
    // And a KMS that lies, with good checksums.
    google.fault_once("other-key", "decrypt").await;
    let another = attempts(good.clone()).await;
    assert!(matches!(another[..], [Attempt::AnotherKey { .. }]), "{another:?}");
    google.fault_once("short", "decrypt").await;
    let short = attempts(good.clone()).await;
    assert!(matches!(short[..], [Attempt::NotAKey { .. }]), "{short:?}");
    assert!(daemon.open(&good).await.is_ok());
}

#[tokio::test]
async fn what_was_just_wrapped_and_does_not_open_is_not_used() {
    let google = Google::start().await;
    let master = MasterKey::make_random().unwrap();
    google.fault("other-key", "decrypt").await;
    let outcome = provider(&google, "operator").wrap(&master, &[key()], &[]).await;
    assert!(matches!(outcome, Err(NotWrapped::NotProven(_))));
    assert!(matches!(provider(&google, "daemon").wrap(&master, &[], &[]).await, Err(NotWrapped::NoRecipients)));
}

#[tokio::test]
async fn any_of_two_kms_keys_opens_it_and_each_is_proven() {
    let google = Google::start().await;
    let master = MasterKey::make_random().unwrap();
    let keys = [key(), KmsKey::parse(OTHER_KMS_KEY).unwrap()];
    let wrapped = provider(&google, "operator").wrap(&master, &keys, &[]).await.unwrap();
    let daemon = provider(&google, "daemon");
    assert_eq!(daemon.prove_kms(&wrapped).await.unwrap().len(), 2);
    google.set_kms_state(KMS_KEY, 1, "DISABLED").await;
    let opened = daemon.open(&wrapped).await.ok().unwrap();
    assert!(matches!(opened.by, OpenedBy::Kms { key, .. } if key == keys[1]));
    let unproven = daemon.prove_kms(&wrapped).await.unwrap_err();
    assert!(matches!(unproven.attempts[..], [Attempt::Kms(KmsError::VersionDisabled { .. })]));
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "gcloud is found by the PATH of the test")]
async fn gcloud_decrypts_what_the_client_encrypted_and_the_other_way_round() {
    let google = Google::start().await;
    let home = tempfile::tempdir().unwrap();
    let shell = |script: &str| {
        Command::new("bash")
            .args(["-euc", script])
            .current_dir(home.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", home.path())
            .env("CLOUDSDK_CONFIG", home.path().join("gcloud"))
            .env("CLOUDSDK_CORE_PROJECT", "acme-prod")
            .env("CLOUDSDK_CORE_DISABLE_PROMPTS", "1")
            .env("CLOUDSDK_CORE_DISABLE_USAGE_REPORTING", "1")
            .env("CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK", "1")
            .env("CLOUDSDK_AUTH_DISABLE_CREDENTIALS", "1")
            .env("CLOUDSDK_API_ENDPOINT_OVERRIDES_CLOUDKMS", format!("{}/", google.url("operator")))
            .output()
            .unwrap()
    };
    if !shell("command -v gcloud").status.success() {
        return; // Not installed here.
    }
    let kms = kms(&google, "operator", Limits::default());
    let theirs = |verb: &str, of: &str| {
        let script = format!(
            "gcloud kms {verb} --key=wrap --keyring=containarium --location=europe-west1 --additional-authenticated-data-file=aad {of}"
        );
        let output = shell(&script);
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    };
    std::fs::write(home.path().join("aad"), AAD).unwrap();
    let encrypted = kms.encrypt(&key(), &image(&KEY), AAD).await.unwrap();
    std::fs::write(home.path().join("ours"), &encrypted.ciphertext).unwrap();
    theirs("decrypt", "--ciphertext-file=ours --plaintext-file=opened");
    assert_eq!(std::fs::read(home.path().join("opened")).unwrap(), KEY);

    std::fs::write(home.path().join("plain"), KEY).unwrap();
    theirs("encrypt", "--plaintext-file=plain --ciphertext-file=theirs");
    let decrypted = kms.decrypt(&key(), &std::fs::read(home.path().join("theirs")).unwrap(), AAD).await;
    assert_eq!(bytes(&decrypted.ok().unwrap().image), KEY);
}
