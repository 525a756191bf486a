use containarium::model::{Counts, DekState, DekVersion, TenantRecord, VersionBody};
use containarium::store::{Page, Refusal};

use crate::store::steps::{current, intent, name, numbered, tenant, text};
use crate::support::stores::Fixture;

pub(crate) async fn a_tenant_is_read_whole(f: Fixture) {
    let f = f.with_alice().await;
    f.set("B", &["one", "two"]).await;
    f.set("A", &["a"]).await;
    f.set("GONE", &["one"]).await;
    f.delete("GONE").await;
    f.set("BURNT", &["one", "two"]).await;
    f.destroy("BURNT", &[2]).await;
    f.dek("bob").await;
    f.write(intent("bob", "C"), "of bob").await.unwrap();
    let page = f.store.read_tenant(&tenant("alice"), 10).await.unwrap().unwrap();
    let said: Vec<_> = page.items.iter().map(|(secret, version)| (secret.name.to_string(), text(version))).collect();
    assert_eq!(said, [("A", "a"), ("B", "two")].map(|(name, value)| (name.to_owned(), value.to_owned())));
    assert!(!page.more);
    // As a read of the place answers it.
    let (secret, version) = f.secret(current("alice", "B")).await;
    assert_eq!(page.items[1], (secret, version.unwrap()));
}

pub(crate) async fn a_tenant_is_read_up_to_the_limit(f: Fixture) {
    let f = f.with_alice().await;
    for named in ["A", "B", "C"] {
        f.set(named, &["one"]).await;
    }
    for (limit, items, more) in [(2, 2, true), (3, 3, false), (4, 3, false)] {
        let page = f.store.read_tenant(&tenant("alice"), limit).await.unwrap().unwrap();
        assert_eq!((page.items.len(), page.more), (items, more), "{limit}");
    }
    f.dek("bob").await;
    let empty = f.store.read_tenant(&tenant("bob"), 1).await.unwrap().unwrap();
    assert_eq!(empty, Page { items: Vec::new(), more: false });
}

pub(crate) async fn lists_come_in_pages_by_name(f: Fixture) {
    let f = f.with_alice().await;
    // In byte order, which no locale may change.
    let in_order = ["A", "A0", "AA", "A_", "B", "_A"];
    for named in ["_A", "B", "A_", "AA", "A0", "A"] {
        f.set(named, &["one"]).await;
    }
    assert_eq!(f.names().await, in_order);
    let mut names = Vec::new();
    let mut after = None;
    loop {
        let page = f.store.list(&tenant("alice"), after.as_ref(), 2).await.unwrap().unwrap();
        assert!(page.items.len() <= 2 && !page.items.is_empty());
        names.extend(page.items.iter().map(|secret| secret.name.to_string()));
        after = page.items.last().map(|secret| secret.name.clone());
        if !page.more {
            break;
        }
    }
    assert_eq!(names, in_order, "three full pages, and no empty one after");
    let past = f.store.list(&tenant("alice"), Some(&name("_Z")), 2).await.unwrap().unwrap();
    assert_eq!(past, Page { items: Vec::new(), more: false });
    let between = f.store.list(&tenant("alice"), Some(&name("AZ")), 1).await.unwrap().unwrap();
    assert_eq!((between.items[0].name.as_str(), between.more), ("A_", true));
    let (secret, _) = f.secret(current("alice", "A_")).await;
    assert_eq!(between.items[0], secret);
}

pub(crate) async fn what_cannot_be_read_is_not_listed(f: Fixture) {
    let f = f.with_alice().await;
    for named in ["DELETED", "DESTROYED", "OLD_DESTROYED", "PLAIN"] {
        f.set(named, &["one", "two"]).await;
    }
    f.delete("DELETED").await;
    f.destroy("DESTROYED", &[2]).await;
    f.destroy("OLD_DESTROYED", &[1]).await;
    assert_eq!(f.names().await, ["OLD_DESTROYED", "PLAIN"]);
    // Nor do they take room on a page.
    let page = f.store.list(&tenant("alice"), None, 2).await.unwrap().unwrap();
    assert_eq!((page.items.len(), page.more), (2, false));
    f.store.undelete(&tenant("alice"), &name("DELETED")).await.unwrap().unwrap();
    f.set("DESTROYED", &["three"]).await;
    assert_eq!(f.names().await, ["DELETED", "DESTROYED", "OLD_DESTROYED", "PLAIN"]);
}

pub(crate) async fn versions_are_listed_newest_first_without_their_bytes(f: Fixture) {
    let f = f.with_alice().await;
    f.set("A", &["one", "two", "three"]).await;
    f.destroy("A", &[2]).await;
    for deleted in [false, true] {
        if deleted {
            f.delete("A").await;
        }
        let (secret, versions) = f.store.versions(&tenant("alice"), &name("A")).await.unwrap().unwrap();
        assert_eq!((secret.current.get(), secret.deleted_at.is_some()), (3, deleted));
        let said: Vec<_> = versions
            .iter()
            .map(|version| match &version.body {
                VersionBody::Live { ciphertext, dek_version, dek } => {
                    assert!(ciphertext.is_empty() && dek.as_ref().unwrap().version == *dek_version);
                    (version.version.get(), "live")
                }
                VersionBody::Destroyed { at } => {
                    assert!(*at >= version.created_at);
                    (version.version.get(), "destroyed")
                }
            })
            .collect();
        assert_eq!(said, [(3, "live"), (2, "destroyed"), (1, "live")]);
    }
}

pub(crate) async fn tenants_come_in_pages_without_the_systems_own(f: Fixture) {
    let f = f.with_alice().await;
    f.set("A", &["one", "two"]).await;
    f.set("B", &["one"]).await;
    f.set("GONE", &["one"]).await;
    f.delete("GONE").await;
    f.set("BURNT", &["one"]).await;
    f.destroy("BURNT", &[1]).await;
    f.dek("bob").await;
    f.block("bob").await;
    f.database.run("INSERT INTO tenants (tenant, created_at) VALUES ('0bare', 5)").await.unwrap();
    let page = f.store.tenants(None, 10).await.unwrap();
    let said = |tenants: &[TenantRecord]| {
        let of = |t: &TenantRecord| {
            (t.tenant.to_string(), t.secrets, t.active_dek.map(DekVersion::get), t.shred_at.map(|at| at.0))
        };
        tenants.iter().map(of).collect::<Vec<_>>()
    };
    let (bare, alice, bob) = (
        ("0bare".to_owned(), 0, None, None),
        ("alice".to_owned(), 2, Some(1), None),
        ("bob".to_owned(), 0, Some(1), Some(1)),
    );
    assert_eq!(said(&page.items), [bare.clone(), alice.clone(), bob.clone()]);
    assert_eq!((page.more, page.items[0].created_at.0), (false, 5));
    let first = f.store.tenants(None, 2).await.unwrap();
    assert_eq!((said(&first.items), first.more), (vec![bare, alice], true));
    let rest = f.store.tenants(Some(&first.items[1].tenant), 2).await.unwrap();
    assert_eq!((said(&rest.items), rest.more), (vec![bob], false));
}

pub(crate) async fn listings_of_the_unknown_are_refused(f: Fixture) {
    let f = f.with_alice().await;
    let (nobody, alice, a) = (tenant("nobody"), tenant("alice"), name("A"));
    assert_eq!(f.store.list(&nobody, None, 1).await.unwrap(), Err(Refusal::NoTenant));
    assert_eq!(f.store.read_tenant(&nobody, 1).await.unwrap(), Err(Refusal::NoTenant));
    assert_eq!(f.store.versions(&nobody, &a).await.unwrap(), Err(Refusal::NoTenant));
    assert_eq!(f.store.versions(&alice, &a).await.unwrap(), Err(Refusal::NoSecret));
    assert_eq!(f.store.list(&alice, None, 1).await.unwrap(), Ok(Page { items: Vec::new(), more: false }));
}

pub(crate) async fn counts_add_up(f: Fixture) {
    let none = DekState::ALL.iter().map(|state| (*state, 0)).collect();
    assert_eq!(f.store.counts().await.unwrap(), Counts { deks: none, ..Counts::default() });
    let f = f.with_alice().await;
    f.set("A", &["one", "two", "three"]).await;
    f.destroy("A", &[1]).await;
    f.set("GONE", &["one"]).await;
    f.delete("GONE").await;
    f.set("BURNT", &["one"]).await;
    f.destroy("BURNT", &[1]).await;
    f.database.run("UPDATE deks SET state = 'decrypt_only' WHERE tenant = 'alice'").await.unwrap();
    f.dek("alice").await;
    f.dek("bob").await;
    f.database.run("UPDATE deks SET state = 'quarantined' WHERE tenant = 'bob'").await.unwrap();
    let deks = vec![
        // The system's own is one of them.
        (DekState::Active, 2),
        (DekState::DecryptOnly, 1),
        (DekState::Shredded, 0),
        (DekState::Quarantined, 1),
    ];
    assert_eq!(f.store.counts().await.unwrap(), Counts { tenants: 2, secrets: 1, versions: 3, deks });
}

pub(crate) async fn a_store_answers_a_ping(f: Fixture) {
    f.store.ping().await.unwrap();
    let f = f.with_alice().await;
    f.set("A", &["one"]).await;
    assert_eq!(f.value(numbered("alice", "A", 1)).await, "one");
    f.store.close().await;
    assert!(f.store.ping().await.is_err(), "closed is closed");
    assert!(f.store.read(&[current("alice", "A")]).await.is_err());
}
