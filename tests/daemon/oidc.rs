//! JWTs of issuers: what each opens and what it does not, over TLS, and how the daemon goes on when an issuer changes its keys, is away, or
//! misbehaves.

mod keys;

use std::process::{Command, Output};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::on_both_stores;
use super::tokens::{ask, start};
use crate::support::issuer::{Server, Serves, Signer, set};
use crate::support::site::{Daemon, PATIENCE, Site};

on_both_stores![
    jwts_of_kubernetes_and_github_open_what_their_rules_say_and_nothing_else,
    a_wrong_jwt_is_told_that_it_is_not_valid_and_no_more,
];

const GITHUB: &str = "https://token.actions.githubusercontent.com";
const CLUSTER: &str = "https://kubernetes.default.svc.cluster.local";

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// As GitHub makes them.
fn github(changes: &Value) -> Value {
    let mut claims = json!({
        "jti": "example-id", "iss": GITHUB, "aud": "containarium", "sub": "repo:acme/shop:ref:refs/heads/main",
        "ref": "refs/heads/main", "ref_type": "branch", "repository": "acme/shop", "repository_owner": "acme",
        "repository_id": "74", "run_attempt": "2", "event_name": "push", "actor": "octocat",
        "job_workflow_ref": "acme/shop/.github/workflows/deploy.yml@refs/heads/main",
        "iat": now(), "nbf": now() - 600, "exp": now() + 300,
    });
    change(&mut claims, changes);
    claims
}

/// As the API server of a cluster makes them for a projected volume.
fn kubernetes(account: &str) -> Value {
    json!({
        "iss": CLUSTER, "aud": ["containarium"], "sub": format!("system:serviceaccount:shop:{account}"),
        "iat": now(), "nbf": now(), "exp": now() + 3600, "jti": "ea28ed49-2e11-4280-9ec5-bc3d1d84661a",
        "kubernetes.io": {
            "namespace": "shop",
            "node": { "name": "node-1", "uid": "58456cb0" },
            "pod": { "name": "web-69cbdd798d-5pjtr", "uid": "5e0bd49b" },
            "serviceaccount": { "name": account, "uid": "14ee3fa4" },
        },
    })
}

fn change(claims: &mut Value, changes: &Value) {
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
            value => claims[name] = value.clone(),
        }
    }
}

/// GitHub by a URL, and a cluster by a file.
fn settings(site: &Site, github: &Server, cluster: &Signer) -> String {
    std::fs::write(site.path("cluster.json"), set(&[cluster])).unwrap();
    format!(
        r#"
[[oidc]]
issuer = "{GITHUB}"
audiences = ["containarium"]
jwks_url = "{}"
algorithms = ["RS256"]

[[oidc.rules]]
claims = {{ repository = "acme/shop", ref = "refs/heads/main" }}
tenants = ["shop"]
permissions = ["read"]
names = ["DEPLOY_*"]

[[oidc]]
issuer = "{CLUSTER}"
audiences = ["containarium"]
jwks_file = "cluster.json"
algorithms = ["ES256"]

[[oidc.rules]]
claims = {{ "/kubernetes.io/namespace" = "shop", "/kubernetes.io/serviceaccount/name" = "web" }}
tenants = ["shop"]
permissions = ["read", "list", "write"]
"#,
        github.url()
    )
}

fn make_certificate(site: &Site) {
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"])
        .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout"])
        .arg(site.path("tls.key"))
        .arg("-out")
        .arg(site.path("tls.pem"))
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    std::fs::set_permissions(site.path("tls.key"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
}

/// A daemon that speaks TLS, and its URL.
fn start_tls(site: &Site) -> (Daemon, String) {
    make_certificate(site);
    let mut command = site.command(["daemon", "--listen", "127.0.0.1:0", "--tls-cert"]);
    command.arg(site.path("tls.pem")).arg("--tls-key").arg(site.path("tls.key"));
    let daemon = site.start_with(command);
    let log = site.log();
    let line = log.lines().rev().find(|line| line.contains("listening on https://")).unwrap();
    (daemon, format!("https://{}", line.split("://").nth(1).unwrap()))
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn jwts_of_kubernetes_and_github_open_what_their_rules_say_and_nothing_else(site: &Site) {
    let (runner, cluster) = (Signer::rsa("gh-1"), Signer::p256("k8s-1"));
    let server = Server::start(Serves::Text(set(&[&runner])));
    std::fs::write(site.config_file(), settings(site, &server, &cluster)).unwrap();
    let (daemon, url) = start_tls(site);
    for name in ["DEPLOY_KEY", "DB_URL"] {
        daemon.set("shop", name, name.as_bytes());
        daemon.set("other", name, name.as_bytes());
    }
    // With curl, as a job has it.
    let curl = |token: &str, method: &str, path: &str| {
        let mut command = Command::new("curl");
        command.args(["-sS", "--max-time", "60", "-X", method, "-H", &format!("Authorization: Bearer {token}")]);
        command.args(["-w", "\n%{http_code}", "--cacert"]).arg(site.path("tls.pem")).arg(format!("{url}{path}"));
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stdout.clone()).unwrap();
        let (body, status) = text.rsplit_once('\n').unwrap();
        (status.to_owned(), body.to_owned())
    };
    let job = runner.sign(&github(&json!({})));
    let (status, body) = curl(&job, "GET", "/v1/secrets/shop/DEPLOY_KEY");
    assert!(status == "200" && body.contains(r#""value":"DEPLOY_KEY""#), "{status} {body}\n{}", site.log());
    for (method, path, wanted) in [
        ("GET", "/v1/secrets/shop/DB_URL", "403"),
        ("GET", "/v1/secrets/other/DEPLOY_KEY", "403"),
        ("GET", "/v1/secrets/shop", "403"),
        ("DELETE", "/v1/secrets/shop/DEPLOY_KEY", "403"),
        ("GET", "/v1/secrets/_system/TOKEN_MAC", "400"),
        ("GET", "/v1/admin/status", "404"),
        ("POST", "/v1/admin/tokens", "404"),
    ] {
        assert_eq!(curl(&job, method, path).0, wanted, "{method} {path}");
    }
    let branch = runner.sign(&github(&json!({ "ref": "refs/heads/evil" })));
    assert_eq!(curl(&branch, "GET", "/v1/secrets/shop/DEPLOY_KEY").0, "401");
    // On the socket a JWT counts instead of root's own rights.
    let bearer = [("authorization", &*format!("Bearer {job}"))];
    assert_eq!(daemon.request_with("GET", "/v1/admin/status", &bearer, b"").status, 403);
    assert_eq!(daemon.request_with("GET", "/v1/secrets/shop/DEPLOY_KEY", &bearer, b"").value(), b"DEPLOY_KEY");

    // With the command line, as a pod has it: a file that the kubelet renews.
    let file = site.path("token");
    let pod = cluster.sign(&kubernetes("web"));
    std::fs::write(&file, &pod).unwrap();
    let run = |words: &[&str], from_variable: Option<&str>| {
        let mut command = site.command(["secrets"]);
        command.args(words).args(["--server", &url, "--ca-cert"]).arg(site.path("tls.pem"));
        match from_variable {
            Some(token) => command.env("CONTAINARIUM_TOKEN", token),
            None => command.arg("--token-file").arg(&file),
        };
        command.output().unwrap()
    };
    for from in [None, Some(&*pod)] {
        let output = run(&["get", "shop", "DB_URL"], from);
        assert_eq!((&*output.stdout, output.status.code()), (&b"DB_URL"[..], Some(0)), "{}", said(&output));
        let denied = run(&["get", "other", "DB_URL"], from);
        assert_eq!(denied.status.code(), Some(4), "{}", said(&denied));
    }
    let api = cluster.sign(&kubernetes("api"));
    let stranger = run(&["get", "shop", "DB_URL"], Some(&api));
    assert_eq!(stranger.status.code(), Some(4), "{}", said(&stranger));

    let audit = site.audit_text();
    for identity in [
        format!(r#""identity":"oidc:{GITHUB}#repo:acme/shop:ref:refs/heads/main""#),
        format!(r#""identity":"oidc:{CLUSTER}#system:serviceaccount:shop:web""#),
    ] {
        assert!(audit.contains(&identity), "{identity}");
    }
    let log = site.log();
    assert!(log.contains("no rule is for it; its subject is system:serviceaccount:shop:api"), "{log}");
    for token in [&job, &pod, &api, &branch] {
        let signature = token.rsplit_once('.').unwrap().1;
        assert!(!log.contains(signature) && !audit.contains(signature));
    }
    let records = site.texts("SELECT created_by FROM tokens");
    assert!(records.is_empty(), "nothing of it is stored: {records:?}");
}

fn a_wrong_jwt_is_told_that_it_is_not_valid_and_no_more(site: &Site) {
    let (runner, cluster) = (Signer::rsa("gh-1"), Signer::p256("k8s-1"));
    let server = Server::start(Serves::Text(set(&[&runner])));
    std::fs::write(site.config_file(), settings(site, &server, &cluster)).unwrap();
    let daemon = start(site);
    daemon.set("shop", "DEPLOY_KEY", b"1");
    let get = |token: &str| ask(site, token, "GET", "/v1/secrets/shop/DEPLOY_KEY", "");
    let signed = |changes: Value| runner.sign(&github(&changes));
    let good = signed(json!({}));
    assert_eq!(get(&good).value(), b"1");

    let (unsigned, signature) = good.rsplit_once('.').unwrap();
    let none = {
        let token = runner.sign_raw(r#"{"alg":"none","typ":"JWT"}"#, &github(&json!({})).to_string());
        format!("{}.", token.rsplit_once('.').unwrap().0)
    };
    let modulus = data_encoding::BASE64URL_NOPAD.decode(runner.jwk()["n"].as_str().unwrap().as_bytes()).unwrap();
    let of_header = |changes: Value| {
        let mut header = runner.header();
        change(&mut header, &changes);
        runner.sign_raw(&header.to_string(), &github(&json!({})).to_string())
    };
    let twice = github(&json!({})).to_string().replacen('{', r#"{"repository":"evil/shop","#, 1);
    let mut forged = signature.to_owned();
    forged.replace_range(..1, if signature.starts_with('A') { "B" } else { "A" });
    let cases = [
        ("expired", signed(json!({ "exp": now() - 31 }))),
        ("not yet good", signed(json!({ "nbf": now() + 300 }))),
        ("of another audience", signed(json!({ "aud": "sts.example" }))),
        ("of another issuer", signed(json!({ "iss": "https://stranger.example" }))),
        ("of the other issuer's name", signed(json!({ "iss": CLUSTER }))),
        ("of the other issuer's key", cluster.sign(&github(&json!({})))),
        ("of another algorithm", Signer::ed("gh-1").sign(&github(&json!({})))),
        ("of none", none),
        ("of HS256 with the public key", Signer::secret(&modulus).sign(&github(&json!({})))),
        ("without a key", of_header(json!({ "kid": null }))),
        ("with an extension", of_header(json!({ "crit": ["exp"] }))),
        ("forged", format!("{unsigned}.{forged}")),
        ("without a signature", format!("{unsigned}.")),
        ("without an end", signed(json!({ "exp": null }))),
        ("too long-lived", signed(json!({ "exp": now() + 3700 }))),
        ("with a claim twice", runner.sign_raw(&runner.header().to_string(), &twice)),
        ("of 17 KiB", signed(json!({ "x": "x".repeat(13 * 1024) }))),
        ("no JWT", "a.b.c".to_owned()),
    ];
    for (what, token) in &cases {
        let answer = get(token);
        assert_eq!((answer.status, &*answer.headers["www-authenticate"]), (401, "Bearer"), "{what}: {answer:?}");
        assert_eq!(answer.problem(), "the credential is not valid: it is unknown, expired or revoked", "{what}");
        let on_socket = [("authorization", &*format!("Bearer {token}"))];
        let answer = daemon.request_with("GET", "/v1/secrets/shop/DEPLOY_KEY", &on_socket, b"");
        assert_eq!(answer.status, 401, "{what}, as root: {answer:?}");
    }
    // Until it was looked for.
    let unknown = of_header(json!({ "kid": "gh-2" }));
    let begun = Instant::now();
    let answer = loop {
        let answer = get(&unknown);
        if answer.status == 401 {
            break answer;
        }
        assert!(answer.status == 503 && begun.elapsed() < PATIENCE, "{answer:?}\n{}", site.log());
    };
    assert_eq!(answer.problem(), "the credential is not valid: it is unknown, expired or revoked");
    let huge = get(&"x".repeat(1 << 20));
    assert!(matches!(huge.status, 401 | 431), "{huge:?}");
    assert_eq!(get(&good).value(), b"1");
    // Why is in the log, where it is not flooded with it.
    let begun = Instant::now();
    while !site.log().contains("refused without a line of their own") {
        assert!(begun.elapsed() < PATIENCE, "{}", site.log());
        assert_eq!(get(&cases[0].1).status, 401);
    }
    let log = site.log();
    assert!(log.contains("a JWT was refused: it has expired"), "{log}");
    for (what, token) in &cases {
        assert!(token.len() < 40 || !log.contains(&token[token.len() - 40..]), "{what}");
    }
    let audit = site.audit_text();
    assert!(!audit.contains("evil") && !audit.contains("stranger"), "who is not known leaves no record");
}

#[test]
fn a_jwts_requests_are_limited_by_its_subject() {
    let site = Site::sqlite();
    let runner = Signer::rsa("gh-1");
    let server = Server::start(Serves::Text(set(&[&runner])));
    let limits = "[limits]\nrequests_per_identity = 5\n".to_owned();
    std::fs::write(site.config_file(), limits + &settings(&site, &server, &Signer::p256("k8s-1"))).unwrap();
    let daemon = start(&site);
    daemon.set("shop", "DEPLOY_KEY", b"1");
    let of = |subject: &str| runner.sign(&github(&json!({ "sub": subject })));
    let get = |token: &str| ask(&site, token, "GET", "/v1/secrets/shop/DEPLOY_KEY", "");
    // Another token of the same subject has no rate of its own.
    let (noisy, again) = (of("one"), runner.sign(&github(&json!({ "sub": "one", "jti": "2" }))));
    let answers: Vec<_> = (0..20).map(|number| get(if number % 2 == 0 { &noisy } else { &again })).collect();
    let refused = answers.iter().find(|answer| answer.status == 429).expect("it asked too often");
    assert!(refused.problem().contains("this identity"), "{refused:?}");
    assert_eq!(get(&of("two")).status, 200);
}

#[test]
fn a_host_of_v1_keeps_its_secret_and_its_tokens() {
    let site = Site::sqlite();
    let secret = b"thirty-two bytes and a few more, of v1";
    std::fs::write(site.path("v1.secret"), secret).unwrap();
    let set_mode = |mode| {
        std::fs::set_permissions(site.path("v1.secret"), std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    };
    let settings = "[[oidc]]\nissuer = \"v1\"\naudiences = [\"containarium-api\"]\nalgorithms = [\"HS256\"]\nsecret_file = \"v1.secret\"\n\
                    max_lifetime = \"30d\"\n[[oidc.rules]]\nclaims = { username = \"alice\", tt = \"access\" }\ntenants = [\"alice\"]\npermissions = [\"read\"]\n";
    std::fs::write(site.config_file(), settings).unwrap();
    set_mode(0o440);
    let (code, log) = site.refused();
    assert!(
        code == Some(2) && log.contains("`oidc`: the keys of the issuer v1: ") && log.contains("chmod 0400"),
        "{log}"
    );
    set_mode(0o400);
    let daemon = start(&site);
    daemon.set("alice", "KEY", b"1");
    // As v1 makes them.
    let claims = |kind: &str| {
        json!({
            "username": "alice", "roles": ["user"], "tt": kind, "jti": "1", "iss": "v1", "aud": ["containarium-api"],
            "iat": now(), "nbf": now(), "exp": now() + 30 * 86_400
        })
    };
    let of = |header: &str, secret: &[u8]| Signer::secret(secret).sign_raw(header, &claims("access").to_string());
    let get = |token: &str| ask(&site, token, "GET", "/v1/secrets/alice/KEY", "").status;
    assert_eq!(get(&of(r#"{"alg":"HS256","typ":"JWT"}"#, secret)), 200);
    assert_eq!(get(&of(r#"{"alg":"HS256","typ":"JWT"}"#, b"thirty-two bytes and a few more, of v2")), 401);
    let refresh = Signer::secret(secret).sign_raw(r#"{"alg":"HS256","typ":"JWT"}"#, &claims("refresh").to_string());
    assert_eq!(get(&refresh), 401, "a token to get others with reads nothing");
    assert!(site.audit_lines().iter().any(|line| line.contains("oidc:v1#alice")));
}

#[test]
fn the_runbooks_examples_pass_config_check_and_let_a_pod_in() {
    let site = Site::sqlite();
    let cluster = Signer::rsa("k8s-1");
    std::fs::write(site.path("cluster.json"), set(&[&cluster])).unwrap();
    std::fs::write(site.path("v1-jwt.secret"), [b'x'; 32]).unwrap();
    std::fs::set_permissions(site.path("v1-jwt.secret"), std::os::unix::fs::PermissionsExt::from_mode(0o400)).unwrap();
    let runbook = include_str!("../../docs/OPERATIONS.md");
    let fragments = runbook.split("```toml oidc\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let here = format!("{}/", site.path("").to_str().unwrap().trim_end_matches('/'));
    let fragments: Vec<String> = fragments.map(|text| text.replace("/etc/containarium/", &here)).collect();
    assert_eq!(fragments.len(), 3);
    for text in fragments.iter().chain([&fragments.concat()]) {
        std::fs::write(site.config_file(), text).unwrap();
        let output = site.cli(["config", "check"], b"");
        assert!(output.status.success(), "{}\n{text}", said(&output));
    }
    std::fs::write(site.config_file(), &fragments[1]).unwrap();
    let daemon = start(&site);
    daemon.set("shop", "DB_URL", b"1");
    let get = |claims: &Value| ask(&site, &cluster.sign(claims), "GET", "/v1/secrets/shop/DB_URL", "").status;
    assert_eq!(get(&kubernetes("web")), 200);
    assert_eq!(get(&kubernetes("migrate-42")), 200);
    assert_eq!(get(&kubernetes("api")), 401);
}
