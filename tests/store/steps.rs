//! The steps that most tests start with, in few words.

use std::sync::Arc;

use containarium::model::{
    DekRecord, Delivery, Kid, SecretName, SecretRecord, SecretVersion, Tenant, VersionBody, VersionRecord,
};
use containarium::store::{
    DekOutcome, Expect, FirstKeyOutcome, Found, Intent, Keep, Place, Reads, Refusal, Source, Together, Which, Written,
};

use super::fakes::{Deks, Key, Values, value_of};
use crate::support::stores::Fixture;

/// The kid of the key that [`Fixture::with_key`] makes.
pub(crate) const KID: Kid = Kid::new([1; 16]);

pub(crate) fn tenant(text: &str) -> Tenant {
    Tenant::from_row(text).unwrap()
}

pub(crate) fn name(text: &str) -> SecretName {
    SecretName::parse(text).unwrap()
}

pub(crate) fn number(number: u64) -> SecretVersion {
    SecretVersion::new(number).unwrap()
}

/// A plain write: of a value, whatever was there, keeping all versions.
pub(crate) fn intent(of: &str, named: &str) -> Intent {
    Intent {
        tenant: tenant(of),
        name: name(named),
        source: Source::Value,
        expect: Expect::Anything,
        delivery: None,
        keep: Keep::All,
    }
}

pub(crate) fn copy(of: &str, named: &str, version: u64) -> Intent {
    Intent { source: Source::CopyOf(number(version)), ..intent(of, named) }
}

pub(crate) fn expecting(expect: Expect) -> Intent {
    Intent { expect, ..intent("alice", "A") }
}

pub(crate) fn delivering(delivery: Delivery) -> Intent {
    Intent { delivery: Some(delivery), ..intent("alice", "A") }
}

pub(crate) fn current(of: &str, named: &str) -> Place {
    Place { tenant: tenant(of), name: name(named), which: Which::Current }
}

pub(crate) fn numbered(of: &str, named: &str, version: u64) -> Place {
    Place { which: Which::Number(number(version)), ..current(of, named) }
}

impl Fixture {
    /// The first key.
    pub(crate) async fn with_key(self) -> Self {
        let made = self.store.first_key(&mut Key::numbered(1)).await.unwrap();
        assert!(matches!(made, FirstKeyOutcome::Made(_)), "{made:?}");
        self
    }

    /// The first key, and tenant `alice` with her DEK.
    pub(crate) async fn with_alice(self) -> Self {
        let fixture = self.with_key().await;
        fixture.dek("alice").await;
        fixture
    }

    pub(crate) async fn dek(&self, of: &str) -> DekRecord {
        match self.store.create_dek(&tenant(of), &Deks::default()).await.unwrap() {
            DekOutcome::Active(dek) => dek,
            other => panic!("{other:?}"),
        }
    }

    /// One write of one value.
    pub(crate) async fn write(&self, intent: Intent, value: &str) -> Result<Written, Refusal> {
        let mut written = self.store.write(&[intent], Together::Each, &Values::of(&[value])).await.unwrap();
        assert_eq!(written.len(), 1);
        written.remove(0)
    }

    /// Sets secrets of alice, which must go well; answers the last version.
    pub(crate) async fn set(&self, named: &str, values: &[&str]) -> SecretVersion {
        let mut last = None;
        for value in values {
            last = Some(self.write(intent("alice", named), value).await.unwrap().secret.current);
        }
        last.unwrap()
    }

    /// As the service reads one secret: through the front that answers reads together.
    pub(crate) async fn found(&self, place: Place) -> Found {
        Reads::new(Arc::clone(&self.store)).read(place).await.unwrap()
    }

    pub(crate) async fn secret(&self, place: Place) -> (SecretRecord, Option<VersionRecord>) {
        match self.found(place).await {
            Found::Secret(secret, version) => (secret, version),
            other => panic!("{other:?}"),
        }
    }

    /// The live value at a place.
    pub(crate) async fn value(&self, place: Place) -> String {
        let (_, version) = self.secret(place).await;
        text(&version.unwrap())
    }

    pub(crate) async fn delete(&self, named: &str) {
        self.store.delete(&tenant("alice"), &name(named)).await.unwrap().unwrap();
    }

    pub(crate) async fn destroy(&self, named: &str, versions: &[u64]) {
        let versions: Vec<_> = versions.iter().map(|version| number(*version)).collect();
        self.store.destroy(&tenant("alice"), &name(named), &versions).await.unwrap().unwrap();
    }

    /// A shred of this tenant is pending from now on.
    pub(crate) async fn block(&self, of: &str) {
        let rows = self.database.run(&format!("UPDATE tenants SET shred_at = 1 WHERE tenant = '{of}'")).await.unwrap();
        assert_eq!(rows, 1);
    }

    pub(crate) async fn rows(&self, table: &str) -> i64 {
        self.database.number(&format!("SELECT count(*) FROM {table}")).await
    }

    /// Row counts of every table that a write or a new DEK touches.
    pub(crate) async fn all_rows(&self) -> [i64; 4] {
        [
            self.rows("tenants").await,
            self.rows("deks").await,
            self.rows("secrets").await,
            self.rows("secret_versions").await,
        ]
    }

    /// The numbers of the versions of alice's secret that have a row, newest first.
    pub(crate) async fn version_numbers(&self, named: &str) -> Vec<u64> {
        let (_, versions) = self.store.versions(&tenant("alice"), &name(named)).await.unwrap().unwrap();
        versions.iter().map(|version| version.version.get()).collect()
    }

    pub(crate) async fn names(&self) -> Vec<String> {
        let page = self.store.list(&tenant("alice"), None, 1000).await.unwrap().unwrap();
        assert!(!page.more);
        page.items.iter().map(|secret| secret.name.to_string()).collect()
    }
}

/// The live value of a version.
pub(crate) fn text(version: &VersionRecord) -> String {
    match &version.body {
        VersionBody::Live { ciphertext, .. } => String::from_utf8(value_of(ciphertext).to_vec()).unwrap(),
        VersionBody::Destroyed { .. } => panic!("version {} is destroyed", version.version),
    }
}
