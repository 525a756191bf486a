use super::*;

const CALLS: [(&str, &str); 4] = [
    ("add", "secretmanager.versions.add"),
    ("list", "secretmanager.versions.list"),
    ("access", "secretmanager.versions.access"),
    ("secret", "secretmanager.secrets.get"),
];

async fn call(client: &SecretManager, call: &str) -> Result<(), GcpError> {
    match call {
        "add" => client.add(&secret(), &image(&[7; 32])).await.map(drop),
        "list" => client.list(&secret()).await.map(drop),
        "access" => client.access(&secret(), number(1)).await.map(drop),
        _ => client.secret(&secret()).await.map(drop),
    }
}

/// The grants of the terraform module, and nothing beyond them.
#[tokio::test]
async fn each_identity_can_do_its_work_and_nothing_else() {
    let google = Google::start().await;
    google.add(SECRET, &[7; 32]).await;
    let may = [
        ("owner", &["add", "list", "access", "secret"][..]),
        ("daemon", &["add", "list", "secret"]),
        ("restore", &["list", "access"]),
        ("drill", &[]),
        ("nobody", &[]),
    ];
    for (identity, allowed) in may {
        for (name, permission) in CALLS {
            let outcome = call(&client(&google, identity), name).await;
            if allowed.contains(&name) {
                assert!(outcome.is_ok(), "{identity} {name}: {outcome:?}");
            } else {
                let denied = error(outcome);
                assert!(matches!(denied, GcpError::Denied { .. }), "{identity} {name}: {denied}");
                assert!(denied.to_string().contains(permission), "{denied}");
            }
        }
    }
}

#[tokio::test]
async fn the_drill_reads_the_offsite_copy_only() {
    let google = Google::start().await;
    let offsite = SecretPath::parse(crate::support::google::OFFSITE).unwrap();
    google.add(crate::support::google::OFFSITE, &[7; 32]).await;
    let drill = client(&google, "drill");
    assert_eq!(bytes(&drill.access(&offsite, number(1)).await.unwrap()), [7; 32]);
    assert!(matches!(error(drill.add(&offsite, &image(&[7; 32])).await), GcpError::Denied { .. }));
    assert!(matches!(error(drill.access(&secret(), number(1)).await), GcpError::Denied { .. }));
}

#[tokio::test]
async fn a_refusal_names_the_grant_that_mends_it_and_is_not_repeated() {
    let google = Google::start().await;
    let denied = error(client(&google, "restore").add(&secret(), &image(&[7; 32])).await).to_string();
    let command = "`gcloud secrets add-iam-policy-binding containarium-master --project=acme-prod --member=MEMBER \
                   --role=roles/secretmanager.secretVersionAdder`";
    assert!(denied.contains(command) && denied.contains("IAM_PERMISSION_DENIED"), "{denied}");
    assert_eq!(google.requests("add").await.len(), 1);
}
