//! A fake of Google for each test: the same one that `examples/fake_google.rs` runs, spoken to over HTTP only.

#[path = "../../examples/fake_google/fake.rs"]
mod fake;

use reqwest::{Client, Method};
use serde_json::{Value, json};

/// The secret that tests push to. It is there from the start.
pub(crate) const SECRET: &str = "projects/acme-prod/secrets/containarium-master";
/// One in a project that is for offsite copies.
pub(crate) const OFFSITE: &str = "projects/acme-offsite/secrets/containarium-master";

/// The KMS key that tests wrap with. It is there from the start, and so is another one.
pub(crate) const KMS_KEY: &str = "projects/acme-prod/locations/europe-west1/keyRings/containarium/cryptoKeys/wrap";
pub(crate) const OTHER_KMS_KEY: &str =
    "projects/acme-prod/locations/europe-west1/keyRings/containarium/cryptoKeys/wrap-2";

pub(crate) struct Google {
    fake: fake::Fake,
    http: Client,
}

impl Google {
    pub(crate) async fn start() -> Self {
        let google = Self { fake: fake::Fake::start(0).unwrap(), http: Client::builder().no_proxy().build().unwrap() };
        for secret in [SECRET, OFFSITE] {
            google.make(secret).await;
        }
        google.make_kms(KMS_KEY).await;
        google.make_key(OTHER_KMS_KEY).await;
        google
    }

    /// Makes a KMS key, and the key ring that it is in.
    pub(crate) async fn make_kms(&self, key: &str) {
        let (parent, ring) = key.split_once("/cryptoKeys/").unwrap().0.split_once("/keyRings/").unwrap();
        self.owner(Method::POST, &format!("{parent}/keyRings?keyRingId={ring}"), Some(json!({}))).await;
        self.make_key(key).await;
    }

    async fn make_key(&self, key: &str) {
        let (ring, id) = key.split_once("/cryptoKeys/").unwrap();
        let body = json!({"purpose": "ENCRYPT_DECRYPT"});
        self.owner(Method::POST, &format!("{ring}/cryptoKeys?cryptoKeyId={id}"), Some(body)).await;
    }

    /// Makes a further version of a KMS key its primary one: a rotation of that key.
    pub(crate) async fn rotate_kms(&self, key: &str) {
        let made = self.owner(Method::POST, &format!("{key}/cryptoKeyVersions"), Some(json!({}))).await;
        let id = made["name"].as_str().unwrap().rsplit_once('/').unwrap().1.to_owned();
        let body = json!({"cryptoKeyVersionId": id});
        self.owner(Method::POST, &format!("{key}:updatePrimaryVersion"), Some(body)).await;
    }

    /// ENABLED or DISABLED.
    pub(crate) async fn set_kms_state(&self, key: &str, number: u64, state: &str) {
        let path = format!("{key}/cryptoKeyVersions/{number}?updateMask=state");
        self.owner(Method::PATCH, &path, Some(json!({"state": state}))).await;
    }

    pub(crate) async fn destroy_kms(&self, key: &str, number: u64) {
        self.owner(Method::POST, &format!("{key}/cryptoKeyVersions/{number}:destroy"), Some(json!({}))).await;
    }

    /// Makes a secret, without versions.
    pub(crate) async fn make(&self, secret: &str) {
        let (parent, id) = secret.split_once("/secrets/").unwrap();
        let body = json!({"replication": {"automatic": {}}});
        self.owner(Method::POST, &format!("{parent}/secrets?secretId={id}"), Some(body)).await;
    }

    /// Where an identity asks.
    pub(crate) fn url(&self, identity: &str) -> String {
        let found = self.fake.addresses().iter().find(|(name, _)| *name == identity);
        format!("http://{}", found.unwrap_or_else(|| panic!("no identity {identity}")).1)
    }

    /// What only the owner may do, done past our client.
    pub(crate) async fn owner(&self, method: Method, resource: &str, body: Option<Value>) -> Value {
        let (status, answer) = self.request(method, &format!("{}/v1/{resource}", self.url("owner")), body).await;
        assert_eq!(status, 200, "{resource}: {answer}");
        answer
    }

    /// Adds versions past our client, each with these bytes.
    pub(crate) async fn add(&self, secret: &str, bytes: &[u8]) {
        let payload = json!({"data": data_encoding::BASE64.encode(bytes)});
        self.owner(Method::POST, &format!("{secret}:addVersion"), Some(json!({"payload": payload}))).await;
    }

    pub(crate) async fn set_state(&self, secret: &str, number: u64, verb: &str) {
        self.owner(Method::POST, &format!("{secret}/versions/{number}:{verb}"), Some(json!({}))).await;
    }

    /// Gives a secret a time to live, or takes its expiry away as `gcloud secrets update --remove-expiration` does.
    pub(crate) async fn expire(&self, secret: &str, ttl: Option<&str>) {
        let (mask, body) = ttl.map_or(("expire_time", json!({})), |ttl| ("ttl", json!({"ttl": ttl})));
        self.owner(Method::PATCH, &format!("{secret}?updateMask={mask}"), Some(body)).await;
    }

    /// From now on, for every request that it is for.
    pub(crate) async fn fault(&self, fault: &str, operation: &str) {
        self.rule(json!({"fault": fault, "operation": operation})).await;
    }

    /// For one identity alone.
    pub(crate) async fn fault_for(&self, fault: &str, operation: &str, identity: &str) {
        self.rule(json!({"fault": fault, "operation": operation, "identity": identity})).await;
    }

    pub(crate) async fn fault_once(&self, fault: &str, operation: &str) {
        self.rule(json!({"fault": fault, "operation": operation, "times": 1})).await;
    }

    /// From now on, whenever this version's payload is read.
    pub(crate) async fn fault_of_version(&self, fault: &str, secret: &str, number: u64) {
        let path = format!("/{secret}/versions/{number}:access");
        self.rule(json!({"fault": fault, "operation": "access", "path": path})).await;
    }

    /// From now on, whenever this KMS key is to decrypt.
    pub(crate) async fn fault_of_kms(&self, fault: &str, key: &str) {
        self.rule(json!({"fault": fault, "operation": "decrypt", "path": format!("/{key}:decrypt")})).await;
    }

    async fn rule(&self, rule: Value) {
        let (status, answer) = self.request(Method::POST, &format!("{}/faults", self.url("control")), Some(rule)).await;
        assert_eq!(status, 200, "{answer}");
    }

    pub(crate) async fn heal(&self) {
        self.request(Method::DELETE, &format!("{}/faults", self.url("control")), None).await;
    }

    /// The requests of this operation that came, oldest first.
    pub(crate) async fn requests(&self, operation: &str) -> Vec<Value> {
        let (_, all) = self.request(Method::GET, &format!("{}/requests", self.url("control")), None).await;
        all.as_array().unwrap().iter().filter(|request| request["operation"] == operation).cloned().collect()
    }

    async fn request(&self, method: Method, url: &str, body: Option<Value>) -> (u16, Value) {
        let request = self.http.request(method, url).body(body.map(|body| body.to_string()).unwrap_or_default());
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        (status, serde_json::from_slice(&response.bytes().await.unwrap()).unwrap())
    }
}
