use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::model::{
    ClaimPattern, ClaimPlace, ClaimTest, IssuerKeys, KeySetPlace, Micros, NamePattern, Names, Permission,
    PublicAlgorithm, Scope, SecretName, Tenant, Wanted,
};

/// A clock that a test moves. Its wall time began a while ago.
#[derive(Default)]
pub(super) struct Hand(AtomicU64);

/// Seconds since 1970.
const NOW: i64 = 1_790_000_000;

impl Hand {
    pub(super) fn pass(&self, time: Duration) {
        self.0.fetch_add(u64::try_from(time.as_micros()).unwrap(), Ordering::Relaxed);
    }
}

impl Clock for Hand {
    fn wall(&self) -> Micros {
        Micros(NOW * 1_000_000 + i64::try_from(self.0.load(Ordering::Relaxed)).unwrap())
    }

    fn monotonic(&self) -> Duration {
        self.since_boot()
    }

    fn since_boot(&self) -> Duration {
        Duration::from_micros(self.0.load(Ordering::Relaxed))
    }
}

macro_rules! vector {
    ($name:literal) => {
        include_bytes!(concat!("../../../tests/vectors/jwt/", $name, ".der"))
    };
}

/// A key that signs, and its name.
struct Signer {
    kid: &'static str,
    algorithm: Algorithm,
    key: EncodingKey,
}

fn ed(number: u8) -> Signer {
    let (kid, der) = if number == 1 { ("ed-1", vector!("ed25519-1")) } else { ("ed-2", vector!("ed25519-2")) };
    Signer { kid, algorithm: Algorithm::EdDSA, key: EncodingKey::from_ed_der(der) }
}

fn p256() -> Signer {
    Signer { kid: "ec-1", algorithm: Algorithm::ES256, key: EncodingKey::from_ec_der(vector!("p256-1")) }
}

fn rsa() -> Signer {
    Signer { kid: "rsa-1", algorithm: Algorithm::RS256, key: EncodingKey::from_rsa_der(vector!("rsa-1")) }
}

impl Signer {
    fn jwk(&self) -> Value {
        let mut jwk = serde_json::to_value(Jwk::from_encoding_key(&self.key, self.algorithm).unwrap()).unwrap();
        jwk["kid"] = self.kid.into();
        jwk
    }

    fn header(&self) -> Header {
        Header { kid: Some(self.kid.to_owned()), ..Header::new(self.algorithm) }
    }

    fn sign(&self, claims: &Value) -> String {
        encode(&self.header(), claims, &self.key).unwrap()
    }

    /// Signs any bytes, as a header and as claims.
    fn sign_raw(&self, header: &str, claims: &str) -> String {
        let message =
            format!("{}.{}", BASE64URL_NOPAD.encode(header.as_bytes()), BASE64URL_NOPAD.encode(claims.as_bytes()));
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &self.key, self.algorithm).unwrap();
        format!("{message}.{signature}")
    }
}

fn set(signers: &[&Signer]) -> String {
    json!({ "keys": signers.iter().map(|signer| signer.jwk()).collect::<Vec<_>>() }).to_string()
}

const ISSUER: &str = "https://issuer.example";

/// What is right.
fn claims() -> Value {
    json!({
        "iss": ISSUER, "aud": ["other", "containarium"], "sub": "repo:acme/shop:ref:refs/heads/main",
        "iat": NOW - 10, "nbf": NOW - 10, "exp": NOW + 300, "repository": "acme/shop",
    })
}

fn with(changes: &Value) -> Value {
    let mut claims = claims();
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => _ = claims.as_object_mut().unwrap().remove(name),
            value => claims[name] = value.clone(),
        }
    }
    claims
}

fn like(place: &str, pattern: &str) -> ClaimTest {
    let wanted = Wanted::Like(ClaimPattern::parse(pattern).unwrap());
    ClaimTest { place: ClaimPlace::parse(place).unwrap(), wanted }
}

fn rule(claims: Vec<ClaimTest>, tenant: &str) -> Rule {
    let names = Names::Like([NamePattern::parse("DB_*").unwrap()].into());
    Rule::new(claims, Scope::new([Tenant::parse(tenant).unwrap()], [Permission::Read], names).unwrap()).unwrap()
}

struct Setup {
    dir: TempDir,
    hand: Arc<Hand>,
    issuers: Vec<Issuer>,
}

/// The keys of an issuer that has one, in a file that lies there as long as its directory.
pub(super) fn ring_of_one() -> (TempDir, Arc<Hand>, ring::Ring) {
    let setup = Setup::new(&[&ed(1)], &ALL);
    let ring = ring::Ring::new(&setup.issuers[0], Arc::clone(&setup.hand) as _);
    (setup.dir, setup.hand, ring)
}

impl Setup {
    /// An issuer with a set in a file, and another one beside it with a key of its own.
    fn new(signers: &[&Signer], algorithms: &[PublicAlgorithm]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut setup = Self { dir, hand: Arc::default(), issuers: Vec::new() };
        let keys = |file| IssuerKeys::Public {
            set: KeySetPlace::File(file),
            algorithms: algorithms.iter().copied().collect(),
        };
        let issuer = |name, keys| Issuer {
            name: IssuerName::parse(name).unwrap(),
            audiences: ["containarium".to_owned()].into(),
            keys,
            leeway: Duration::from_secs(30),
            max_lifetime: Duration::from_hours(1),
            refresh: Duration::from_mins(5),
            keep_keys: Duration::from_hours(1),
            rules: vec![rule(vec![like("repository", "acme/shop")], "alice")],
        };
        let (one, other) = (setup.file("set"), setup.file("other"));
        setup.issuers = vec![issuer(ISSUER, keys(one)), issuer("https://other.example", keys(other))];
        setup.write("set", &set(signers));
        setup.write("other", &set(&[&ed(2)]));
        setup
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.file(name), text).unwrap();
    }

    fn made(&self) -> Issuers {
        Issuers::new(self.issuers.clone(), Arc::clone(&self.hand) as _)
    }

    /// What the log would say, or who it is.
    async fn told(&self, text: &str) -> Result<String, Wrong> {
        let issuers = self.made();
        let known = issuers.issuer_of(text)?;
        match known.caller(text, &*self.hand).await {
            Ok(caller) => Ok(caller.identity().to_string()),
            Err(Refused::Wrong(wrong)) => Err(wrong),
            Err(Refused::NoKeys | Refused::TooSoon) => panic!("no keys"),
        }
    }
}

const ALL: [PublicAlgorithm; 3] = PublicAlgorithm::ALL;

#[tokio::test]
async fn a_token_of_each_algorithm_is_its_subject_with_its_rules_rights() {
    let setup = Setup::new(&[&ed(1), &p256(), &rsa()], &ALL);
    let issuers = setup.made();
    for signer in [ed(1), p256(), rsa()] {
        let caller = issuers.check(&signer.sign(&claims())).await.unwrap();
        let name = "oidc:https://issuer.example#repo:acme/shop:ref:refs/heads/main";
        assert_eq!(caller.identity().to_string(), name);
        assert_eq!(caller.rate_key().unwrap().0.as_ref(), name);
        let super::super::Rights::Some(scope) = &caller.rights else { panic!("{caller:?}") };
        assert!(scope.allows(Permission::Read, &Tenant::parse("alice").unwrap()));
        assert!(!scope.allows(Permission::Write, &Tenant::parse("alice").unwrap()));
        assert!(!scope.names().cover(&SecretName::parse("KEY").unwrap()));
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_token_lets_nobody_in() {
    let setup = Setup::new(&[&ed(1), &rsa()], &ALL);
    let good = ed(1);
    let signed = |changes: Value| good.sign(&with(&changes));
    let forged = {
        let token = signed(json!({}));
        let other = signed(json!({ "sub": "root" }));
        let (_, signature) = other.rsplit_once('.').unwrap();
        format!("{}.{signature}", token.rsplit_once('.').unwrap().0)
    };
    let of_header = |change: Value| {
        let mut header = serde_json::to_value(good.header()).unwrap();
        header.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        good.sign_raw(&header.to_string(), &claims().to_string())
    };
    let unsigned = |alg: &str| {
        let header = json!({ "alg": alg, "kid": "ed-1" }).to_string();
        let token = good.sign_raw(&header, &claims().to_string());
        format!("{}.", token.rsplit_once('.').unwrap().0)
    };
    let twice = claims().to_string().replacen('{', r#"{"sub":"root","#, 1);
    let deep_twice = with(&json!({ "x": 0 })).to_string().replace(r#""x":0"#, r#""x":[{"a":1,"a":2}]"#);
    let nested = format!("{}{}", "[".repeat(1000), "]".repeat(1000));
    let deep = with(&json!({ "x": 0 })).to_string().replace(r#""x":0"#, &format!(r#""x":{nested}"#));
    let header = serde_json::to_string(&good.header()).unwrap();
    // The public key of the issuer, as the secret of an HMAC: what a verifier that believes the header takes for good.
    let rsa_public = rsa().jwk()["n"].as_str().unwrap().to_owned();
    let confused = |bytes: &[u8], kid: &str| {
        let by_secret = Signer { kid: "", algorithm: Algorithm::HS256, key: EncodingKey::from_secret(bytes) };
        by_secret.sign_raw(&json!({ "alg": "HS256", "kid": kid }).to_string(), &claims().to_string())
    };
    let modulus = BASE64URL_NOPAD.decode(rsa_public.as_bytes()).unwrap();
    let under_another_name = Signer { kid: "ed-1", ..ed(2) };
    let cases = [
        (signed(json!({ "exp": NOW - 30 })), Wrong::Expired),
        (signed(json!({ "exp": null })), Wrong::Missing("exp")),
        (signed(json!({ "iat": null })), Wrong::Missing("iat")),
        (signed(json!({ "iat": null, "nbf": null, "exp": NOW + 60 })), Wrong::Missing("iat")),
        (signed(json!({ "exp": "4000000000" })), Wrong::Claims),
        (signed(json!({ "exp": -1 })), Wrong::Claims),
        (signed(json!({ "exp": 1e300 })), Wrong::Claims),
        (signed(json!({ "nbf": NOW + 31 })), Wrong::NotYet),
        (signed(json!({ "iat": NOW + 31 })), Wrong::NotYet),
        (signed(json!({ "iat": "now" })), Wrong::Claims),
        (signed(json!({ "iat": NOW, "exp": NOW + 3601 })), Wrong::TooLongLived),
        // In its last hour, and by a beginning that came after its issue.
        (signed(json!({ "iat": NOW - 3600, "nbf": NOW, "exp": NOW + 1 })), Wrong::TooLongLived),
        (signed(json!({ "aud": "other" })), Wrong::Audience),
        (signed(json!({ "aud": ["other", "containarium2"] })), Wrong::Audience),
        (signed(json!({ "aud": [] })), Wrong::Audience),
        (signed(json!({ "aud": null })), Wrong::Missing("aud")),
        (signed(json!({ "aud": 1 })), Wrong::Missing("aud")),
        (signed(json!({ "iss": "https://stranger.example" })), Wrong::UnknownIssuer),
        (signed(json!({ "iss": "https://issuer.example/" })), Wrong::UnknownIssuer),
        (signed(json!({ "iss": "HTTPS://issuer.example" })), Wrong::UnknownIssuer),
        (signed(json!({ "iss": [ISSUER] })), Wrong::Claims),
        (signed(json!({ "iss": null })), Wrong::Claims),
        (signed(json!({ "sub": null })), Wrong::Missing("sub")),
        (signed(json!({ "sub": "" })), Wrong::Subject),
        (signed(json!({ "sub": "x".repeat(256) })), Wrong::Subject),
        (
            signed(json!({ "repository": "acme/shop2" })),
            Wrong::NoRule { subject: claims()["sub"].as_str().unwrap().to_owned() },
        ),
        (signed(json!({ "repository": null, "sub": "a b" })), Wrong::NoRule { subject: "a%20b".to_owned() }),
        // The other issuer's key, by its own name and by this one's.
        (ed(2).sign(&claims()), Wrong::UnknownKid),
        (under_another_name.sign(&claims()), Wrong::Signature),
        (good.sign(&with(&json!({ "iss": "https://other.example" }))), Wrong::UnknownKid),
        (forged, Wrong::Signature),
        (unsigned("EdDSA"), Wrong::Signature),
        (unsigned("none"), Wrong::NoJwt),
        (unsigned("None"), Wrong::NoJwt),
        (unsigned("PS256"), Wrong::Algorithm),
        (unsigned("HS256"), Wrong::Algorithm),
        (confused(&modulus, "rsa-1"), Wrong::Algorithm),
        (confused(rsa_public.as_bytes(), "rsa-1"), Wrong::Algorithm),
        // A key of one algorithm under the name of another's.
        (of_header(json!({ "alg": "RS256" })), Wrong::UnknownKid),
        (of_header(json!({ "alg": "RS256", "kid": "rsa-1" })), Wrong::Signature),
        (of_header(json!({ "kid": null })), Wrong::NoKid),
        (of_header(json!({ "kid": "ed-9" })), Wrong::UnknownKid),
        (of_header(json!({ "kid": 1 })), Wrong::NoJwt),
        (of_header(json!({ "crit": ["b64"], "b64": false })), Wrong::Critical),
        (of_header(json!({ "crit": [] })), Wrong::Critical),
        (of_header(json!({ "kid": "ed-2", "jwk": ed(2).jwk(), "jku": "http://127.0.0.1:1" })), Wrong::UnknownKid),
        (good.sign_raw(&header.replacen('{', r#"{"alg":"none","#, 1), &claims().to_string()), Wrong::NoJwt),
        (good.sign_raw(&header, &twice), Wrong::Claims),
        (good.sign_raw(&header, &deep_twice), Wrong::Claims),
        (good.sign_raw(&header, &deep), Wrong::Claims),
        (good.sign_raw(&header, "[]"), Wrong::Claims),
        (good.sign_raw("[]", &claims().to_string()), Wrong::NoJwt),
        (signed(json!({ "x": "x".repeat(12 * 1024) })), Wrong::TooLong),
        ("x".repeat(1 << 20), Wrong::TooLong),
        (format!("{}.x", signed(json!({}))), Wrong::NoJwt),
        (format!("{}=", signed(json!({}))), Wrong::NoJwt),
        ("a.b".to_owned(), Wrong::NoJwt),
        ("a.b.c".to_owned(), Wrong::Claims),
        (String::new(), Wrong::NoJwt),
    ];
    for (number, (token, why)) in cases.into_iter().enumerate() {
        assert_eq!(setup.told(&token).await, Err(why), "{number}");
        assert_eq!(setup.made().check(&token).await, Err(Unauthenticated::Invalid), "{number}");
    }
    assert!(setup.told(&signed(json!({}))).await.is_ok());
}

#[tokio::test]
async fn an_algorithm_that_the_settings_do_not_name_is_refused_before_any_key_is_looked_for() {
    let setup = Setup::new(&[&ed(1), &rsa()], &[PublicAlgorithm::Rs256]);
    assert!(setup.told(&rsa().sign(&claims())).await.is_ok());
    assert_eq!(setup.told(&ed(1).sign(&claims())).await, Err(Wrong::Algorithm));
    assert_eq!(setup.told(&p256().sign(&claims())).await, Err(Wrong::Algorithm));
}

#[tokio::test]
async fn what_is_just_right_is_let_in() {
    let setup = Setup::new(&[&ed(1)], &[PublicAlgorithm::EdDsa]);
    for changes in [
        json!({ "aud": "containarium" }),
        json!({ "exp": NOW - 29 }),
        json!({ "exp": f64::from(u32::try_from(NOW).unwrap()) + 0.5 }),
        json!({ "nbf": NOW + 30, "iat": NOW + 30 }),
        json!({ "iat": NOW, "exp": NOW + 3600 }),
        json!({ "iat": NOW, "nbf": null, "exp": NOW + 3600 }),
        json!({ "sub": "x".repeat(255) }),
    ] {
        let told = setup.told(&ed(1).sign(&with(&changes))).await;
        assert!(told.is_ok(), "{changes}: {told:?}");
    }
}

#[tokio::test]
async fn a_subject_cannot_write_a_line_of_its_own_or_look_like_another() {
    let setup = Setup::new(&[&ed(1)], &[PublicAlgorithm::EdDsa]);
    for (subject, shown) in
        [("a\nb", "a%0Ab"), ("a%0Ab", "a%250Ab"), ("é", "%C3%A9"), ("\u{1b}[2J", "%1B[2J"), ("a#b", "a#b")]
    {
        let told = setup.told(&ed(1).sign(&with(&json!({ "sub": subject })))).await.unwrap();
        assert_eq!(told, format!("oidc:{ISSUER}#{shown}"));
    }
}

#[tokio::test]
async fn claims_are_found_in_their_depth_and_the_first_rule_that_fits_counts() {
    let mut setup = Setup::new(&[&ed(1)], &[PublicAlgorithm::EdDsa]);
    let verified = ClaimTest { place: ClaimPlace::parse("email_verified").unwrap(), wanted: Wanted::Is(true) };
    setup.issuers[0].rules = vec![
        rule(
            vec![like("/kubernetes.io/namespace", "shop"), like("/kubernetes.io/serviceaccount/name", "web-*")],
            "first",
        ),
        rule(vec![like("/kubernetes.io/namespace", "shop")], "second"),
        rule(vec![like("groups", "ops")], "third"),
        rule(vec![like("https://example.com/role", "admin"), verified], "fourth"),
        rule(vec![like("/a~1b/c~0d", "x")], "fifth"),
    ];
    let account = |name: &str| json!({ "kubernetes.io": { "namespace": "shop", "serviceaccount": { "name": name } } });
    for (changes, tenant) in [
        (account("web-1"), Some("first")),
        (account("api"), Some("second")),
        (json!({ "kubernetes.io": { "namespace": ["shop"] } }), Some("second")),
        (json!({ "kubernetes.io/namespace": "shop" }), None),
        (json!({ "kubernetes.io": [{ "namespace": "shop" }] }), None),
        (json!({ "kubernetes.io": { "namespace": { "shop": "shop" } } }), None),
        (json!({ "groups": ["dev", "ops"] }), Some("third")),
        (json!({ "groups": ["dev", ["ops"], 1] }), None),
        (json!({ "https://example.com/role": "admin", "email_verified": true }), Some("fourth")),
        (json!({ "https://example.com/role": "admin", "email_verified": "true" }), None),
        (json!({ "https://example.com/role": "admin" }), None),
        (json!({ "a/b": { "c~d": "x" } }), Some("fifth")),
    ] {
        let caller = setup.made().check(&ed(1).sign(&with(&changes))).await;
        let found = caller.ok().map(|caller| match &caller.rights {
            super::super::Rights::Some(scope) => scope.tenants().first().unwrap().to_string(),
            other => panic!("{other:?}"),
        });
        assert_eq!(found.as_deref(), tenant, "{changes}");
    }
}

#[tokio::test]
async fn a_secret_is_for_the_issuer_that_names_it_and_takes_no_public_key() {
    let mut setup = Setup::new(&[&rsa()], &[PublicAlgorithm::Rs256]);
    setup.write("secret", "0123456789abcdef0123456789abcdef\n");
    let read_only = std::os::unix::fs::PermissionsExt::from_mode(0o400);
    std::fs::set_permissions(setup.file("secret"), read_only).unwrap();
    setup.issuers[1].keys = IssuerKeys::Secret { file: setup.file("secret") };
    let signed = |secret: &[u8], issuer: &str| {
        let key = EncodingKey::from_secret(secret);
        encode(&Header::new(Algorithm::HS256), &with(&json!({ "iss": issuer })), &key).unwrap()
    };
    let (secret, other) = (b"0123456789abcdef0123456789abcdef", "https://other.example");
    assert!(setup.told(&signed(secret, other)).await.is_ok());
    assert_eq!(setup.told(&signed(secret, ISSUER)).await, Err(Wrong::Algorithm));
    assert_eq!(setup.told(&signed(b"another", other)).await, Err(Wrong::Signature));
    let by_rsa = rsa().sign(&with(&json!({ "iss": other })));
    assert_eq!(setup.told(&by_rsa).await, Err(Wrong::Algorithm));
    assert!(check_issuers(&setup.issuers).is_ok());
    let short = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&short, "0123456789abcdef0123456789abcde\n").unwrap();
    std::fs::set_permissions(&short, std::os::unix::fs::PermissionsExt::from_mode(0o400)).unwrap();
    setup.issuers[1].keys = IssuerKeys::Secret { file: short.path().into() };
    let error = check_issuers(&setup.issuers).unwrap_err().to_string();
    assert!(error.contains(other) && error.ends_with("holds a secret of less than 32 bytes"), "{error}");
}

#[test]
fn of_a_set_those_keys_count_that_are_named_and_for_signatures_of_a_kind_that_is_asked_for() {
    use keys::{Keys, KeysError};

    let changed = |signer: &Signer, changes: Value| {
        let mut jwk = signer.jwk();
        jwk.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        jwk.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        jwk
    };
    let parsed = |keys: Vec<Value>| Keys::of_set(json!({ "keys": keys }).to_string().as_bytes(), &ALL.into());
    let count = |keys: Vec<Value>| parsed(keys).map(|keys| keys.count());
    assert_eq!(count(vec![ed(1).jwk(), p256().jwk(), rsa().jwk()]), Ok(3));
    let small = BASE64URL_NOPAD.encode(&[0xff; 128]);
    for unusable in [
        json!({ "kty": "oct", "kid": "x", "alg": "HS256", "k": small }),
        json!({ "kty": "new", "kid": "x" }),
        json!("text"),
        changed(&rsa(), json!({ "kid": null })),
        changed(&rsa(), json!({ "kid": "" })),
        changed(&rsa(), json!({ "kid": "x".repeat(256) })),
        changed(&rsa(), json!({ "use": "enc" })),
        changed(&rsa(), json!({ "key_ops": ["encrypt"] })),
        changed(&rsa(), json!({ "alg": "PS256" })),
        changed(&rsa(), json!({ "n": small })),
        changed(&p256(), json!({ "crv": "P-384" })),
        changed(&p256(), json!({ "x": small })),
        changed(&ed(1), json!({ "crv": "X25519" })),
        changed(&ed(1), json!({ "x": small })),
    ] {
        assert_eq!(count(vec![unusable.clone()]), Err(KeysError::NoKey), "{unusable}");
        assert_eq!(count(vec![unusable.clone(), ed(2).jwk()]), Ok(1), "{unusable}");
    }
    for usable in [json!({ "use": "sig" }), json!({ "alg": null }), json!({ "key_ops": ["verify"] })] {
        assert_eq!(count(vec![changed(&rsa(), usable)]), Ok(1));
    }
    assert_eq!(count(vec![ed(1).jwk(), changed(&ed(2), json!({ "kid": "ed-1" }))]), Err(KeysError::Twice));
    let numbered = |number: usize| changed(&ed(1), json!({ "kid": number.to_string() }));
    assert_eq!(count((0..100).map(numbered).collect()), Ok(100));
    assert_eq!(count((0..101).map(numbered).collect()), Err(KeysError::TooMany));
    for no_set in ["", "[]", "{}", r#"{"keys":1}"#, "<html>"] {
        assert_eq!(Keys::of_set(no_set.as_bytes(), &ALL.into()).map(|_| ()), Err(KeysError::NoSet), "{no_set}");
    }
    let only = Keys::of_set(set(&[&ed(1)]).as_bytes(), &[PublicAlgorithm::Rs256].into());
    assert_eq!(only.map(|_| ()), Err(KeysError::NoKey));
}

#[tokio::test]
async fn a_new_key_is_found_when_a_token_names_it_but_not_more_often_than_each_five_seconds() {
    let setup = Setup::new(&[&ed(1)], &ALL);
    let issuers = setup.made();
    assert!(issuers.check(&ed(1).sign(&claims())).await.is_ok());
    setup.write("set", &set(&[&p256()]));
    let new = p256().sign(&claims());
    setup.hand.pass(Duration::from_millis(4_999));
    // 401 would be wrong, and for good: the issuer signs with it already.
    assert_eq!(issuers.check(&new).await, Err(Unauthenticated::Unavailable), "keys were looked for just now");
    assert!(issuers.check(&ed(1).sign(&claims())).await.is_ok(), "nothing was looked for: the old one is known");
    setup.hand.pass(Duration::from_millis(1));
    assert!(issuers.check(&ed(1).sign(&claims())).await.is_ok(), "nor is it later, for one that is known");
    assert!(issuers.check(&new).await.is_ok());
    assert_eq!(issuers.check(&ed(1).sign(&claims())).await, Err(Unauthenticated::Invalid), "it was withdrawn");
    setup.hand.pass(Duration::from_micros(1));
    assert_eq!(issuers.check(&ed(1).sign(&claims())).await, Err(Unauthenticated::Unavailable), "it may be back");
    setup.hand.pass(Duration::from_secs(5));
    assert_eq!(issuers.check(&ed(1).sign(&claims())).await, Err(Unauthenticated::Invalid), "it is not");
}

#[tokio::test]
async fn many_who_ask_for_a_new_key_at_once_have_it_looked_for_once() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let mut setup = Setup::new(&[&ed(1)], &ALL);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/keys", listener.local_addr().unwrap());
    setup.issuers[0].keys = IssuerKeys::Public { set: KeySetPlace::Url { url, ca: None }, algorithms: ALL.into() };
    let asked = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            let _head = stream.read(&mut [0; 4096]).await;
            let body = set(&[&ed(1)]);
            let answer =
                format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let issuers = Arc::new(setup.made());
    let mut asking = tokio::task::JoinSet::new();
    for number in 0..20 {
        let (issuers, signer) = (Arc::clone(&issuers), if number % 2 == 0 { ed(1) } else { p256() });
        asking.spawn(async move { issuers.check(&signer.sign(&claims())).await.is_ok() });
    }
    let good = asking.join_all().await.into_iter().filter(|good| *good).count();
    assert_eq!((good, asked.load(Ordering::Relaxed)), (10, 1));
}

#[tokio::test]
async fn keys_are_used_while_their_place_says_nothing_for_a_stated_time() {
    let setup = Setup::new(&[&ed(1)], &ALL);
    let issuers = setup.made();
    assert!(issuers.check(&ed(1).sign(&claims())).await.is_ok());
    setup.write("set", "");
    let known = issuers.known.get(&IssuerName::parse(ISSUER).unwrap()).unwrap();
    let good = || ed(1).sign(&with(&json!({ "iat": NOW, "nbf": null, "exp": NOW + 3_600 })));
    setup.hand.pass(Duration::from_hours(1));
    let away = Err(Unauthenticated::Unavailable);
    assert_eq!(issuers.check(&p256().sign(&claims())).await, away, "whether it has this key nobody can tell");
    assert!(issuers.check(&good()).await.is_ok());
    setup.hand.pass(Duration::from_micros(1));
    assert_eq!(issuers.check(&good()).await, away);
    setup.write("set", &set(&[&ed(1)]));
    assert_eq!(
        known.ring.key(Algorithm::EdDSA, Some("ed-1")).await.map(drop),
        Err(ring::NoKey::Away),
        "looked just now"
    );
    setup.hand.pass(Duration::from_secs(5));
    assert!(issuers.check(&good()).await.is_ok());
}

/// A file that is being replaced in place is empty for a moment, or half there.
#[tokio::test]
async fn what_is_no_set_leaves_the_keys_that_were_there() {
    let setup = Setup::new(&[&ed(1)], &ALL);
    let issuers = setup.made();
    let good = ed(1).sign(&claims());
    assert!(issuers.check(&good).await.is_ok());
    let whole = set(&[&ed(1)]);
    for garbage in ["", "<html>", "{}", &whole[..whole.len() - 1]] {
        setup.write("set", garbage);
        setup.hand.pass(Duration::from_secs(5));
        let unknown = issuers.check(&p256().sign(&claims())).await;
        assert!(matches!(unknown, Err(Unauthenticated::Unavailable)), "{garbage}: {unknown:?}");
        assert!(issuers.check(&good).await.is_ok(), "{garbage}");
    }
}

/// Kept for a day, a key that leaked would open for a day after its issuer took it back.
#[tokio::test]
async fn keys_that_were_taken_away_count_no_more_from_the_next_look() {
    use std::os::unix::fs::PermissionsExt as _;

    type Taking<'a> = (&'a str, &'a dyn Fn(&Setup));

    let good = ed(1).sign(&claims());
    let twice = set(&[&ed(1), &ed(1)]);
    let many = json!({ "keys": vec![ed(1).jwk(); 101] }).to_string();
    let takings: [Taking<'_>; 7] = [
        ("an empty set", &|setup| setup.write("set", r#"{"keys":[]}"#)),
        ("a set for others", &|setup| setup.write("set", r#"{"keys":[{"kty":"new","kid":"x"}]}"#)),
        ("a set that says a key twice", &|setup| setup.write("set", &twice)),
        ("a set without a bound", &|setup| setup.write("set", &many)),
        ("no file", &|setup| std::fs::remove_file(setup.file("set")).unwrap()),
        ("no directory", &|setup| std::fs::remove_dir_all(setup.dir.path()).unwrap()),
        ("a file that others can write", &|setup| {
            std::fs::set_permissions(setup.file("set"), std::fs::Permissions::from_mode(0o666)).unwrap();
        }),
    ];
    for (what, take) in takings {
        let setup = Setup::new(&[&ed(1)], &ALL);
        let issuers = setup.made();
        assert!(issuers.check(&good).await.is_ok());
        take(&setup);
        setup.hand.pass(Duration::from_secs(5));
        assert!(issuers.check(&good).await.is_ok(), "{what}: nobody has looked");
        assert_eq!(issuers.check(&p256().sign(&claims())).await, Err(Unauthenticated::Unavailable), "{what}");
        assert_eq!(issuers.check(&good).await, Err(Unauthenticated::Unavailable), "{what}");
        let states = issuers.states();
        let state = states.iter().find(|state| state.issuer.as_str() == ISSUER).unwrap();
        assert_eq!((state.usable, state.age), (0, None), "{what}");
    }
}

#[tokio::test]
async fn without_an_issuer_no_jwt_is_looked_at() {
    let issuers = Issuers::new(Vec::new(), Arc::new(Hand::default()));
    assert_eq!(issuers.check(&ed(1).sign(&claims())).await, Err(Unauthenticated::Invalid));
}
