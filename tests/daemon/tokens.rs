//! Tokens: what each opens and what it does not, over TCP and on the socket, and how soon one that was revoked opens nothing.

mod losing;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::Output;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::on_both_stores;
use crate::support::site::{Answer, Daemon, PATIENCE, Site};

on_both_stores![
    each_permission_opens_its_routes_for_its_tenant_and_no_others,
    names_are_held_to_their_patterns_wherever_they_stand,
    what_no_longer_holds_opens_no_route,
    a_token_is_no_administrator_anywhere,
    tokens_are_listed_as_they_are_and_revoked_in_every_way,
    a_revocation_outlives_a_restored_database,
    a_row_put_back_as_it_was_opens_nothing_where_its_revocation_is_remembered,
    after_a_compromise_tokens_hold_and_a_row_made_with_the_old_key_does_not,
    a_revocation_that_somebody_wrote_into_the_database_holds_only_as_long_as_it_stands_there,
    a_restored_database_that_cannot_be_looked_at_lets_no_token_in,
];

/// Each route that serves or changes secrets, with the permission that it takes. In the order in which each finds what it needs.
const ROUTES: [(&str, &str, &str, &str); 11] = [
    ("GET", "/v1/secrets/{}/KEY", "", "read"),
    ("POST", "/v1/secrets/{}/batch-get", r#"{"names":["KEY"]}"#, "read"),
    ("GET", "/v1/secrets/{}", "", "list"),
    ("GET", "/v1/secrets/{}/KEY/versions", "", "list"),
    ("POST", "/v1/secrets", r#"{"username":"{}","name":"KEY","value":"2"}"#, "write"),
    ("PUT", "/v1/secrets/{}/KEY", r#"{"value":"3"}"#, "write"),
    ("POST", "/v1/secrets/{}/batch-set", r#"{"secrets":[{"name":"KEY","value":"4"}]}"#, "write"),
    ("POST", "/v1/secrets/{}/KEY/rollback", r#"{"version":1}"#, "write"),
    ("DELETE", "/v1/secrets/{}/KEY", "", "delete"),
    ("POST", "/v1/secrets/{}/KEY/undelete", "", "delete"),
    ("POST", "/v1/secrets/{}/KEY/destroy", r#"{"versions":[1]}"#, "destroy"),
];
const PERMISSIONS: [&str; 5] = ["read", "list", "write", "delete", "destroy"];

/// A daemon on TCP too.
pub(super) fn start(site: &Site) -> Daemon {
    let mut command = site.command(["daemon"]);
    command.args(["--listen", "127.0.0.1:0"]);
    site.start_with(command)
}

pub(super) fn address(site: &Site) -> String {
    let log = site.log();
    let line = log.lines().rev().find(|line| line.contains("listening on http://")).unwrap();
    line.split("://").nth(1).unwrap().to_owned()
}

/// Asks over TCP, with this token.
pub(super) fn ask(site: &Site, token: &str, method: &str, path: &str, body: &str) -> Answer {
    let headers = format!("Authorization: Bearer {token}\r\n");
    ask_with(site, &headers, method, path, body)
}

fn ask_with(site: &Site, headers: &str, method: &str, path: &str, body: &str) -> Answer {
    let mut stream = TcpStream::connect(address(site)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let length = body.len();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}Content-Length: {length}");
    // A refusal may come, and the connection go, before the body is read.
    let _closed = stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes());
    let mut answer = Vec::new();
    let _reset = stream.read_to_end(&mut answer);
    Answer::parse(&answer)
}

/// Makes a token over the socket: the token and its id.
pub(super) fn make(daemon: &Daemon, order: &Value) -> (String, String) {
    let mut full = json!({ "name": "test", "tenants": ["alice"], "allow": ["read"] });
    full.as_object_mut().unwrap().extend(order.as_object().unwrap().clone());
    let answer = daemon.request("POST", "/v1/admin/tokens", full.to_string().as_bytes());
    assert_eq!(answer.status, 200, "{answer:?}");
    let made = answer.json();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    (text(&made["token"]), text(&made["details"]["id"]))
}

fn filled(template: &str, tenant: &str) -> String {
    template.replace("{}", tenant)
}

fn each_permission_opens_its_routes_for_its_tenant_and_no_others(site: &Site) {
    let daemon = start(site);
    for tenant in ["alice", "bob"] {
        daemon.set(tenant, "KEY", b"1");
    }
    for allowed in PERMISSIONS {
        let (token, id) = make(&daemon, &json!({ "allow": [allowed] }));
        for (method, path, body, permission) in ROUTES {
            // One that exists, one that does not, and the system's own, which is no tenant to anybody.
            for (tenant, status) in [("bob", 403), ("ghost", 403), ("_system", 400)] {
                let answer = ask(site, &token, method, &filled(path, tenant), &filled(body, tenant));
                assert_eq!(answer.status, status, "{allowed}: {method} {path} of {tenant}: {answer:?}");
            }
            let status = if permission == allowed { 200 } else { 403 };
            let answer = ask(site, &token, method, &filled(path, "alice"), &filled(body, "alice"));
            assert_eq!(answer.status, status, "{allowed}: {method} {path}: {answer:?}");
            if status == 403 {
                let why = answer.problem();
                assert!(why.starts_with(&format!("no right to {permission} this")), "{why}");
            }
        }
        let audit = site.audit_text();
        assert!(audit.contains(&format!("token:{id}")) && !audit.contains(&token), "records name the id alone");
    }
    assert_eq!(site.number("SELECT count(*) FROM tenants WHERE tenant = 'ghost'"), 0);
    assert_eq!(daemon.value("bob", "KEY").unwrap(), b"1");
    let (all, _) = make(&daemon, &json!({ "tenants": ["alice", "bob"], "allow": PERMISSIONS }));
    assert_eq!(ask(site, &all, "GET", "/v1/secrets/bob/KEY", "").value(), b"1");
    let on_socket =
        daemon.request_with("GET", "/v1/secrets/bob/KEY", &[("authorization", &format!("bearer {all}"))], b"");
    assert_eq!(on_socket.value(), b"1");
}

fn names_are_held_to_their_patterns_wherever_they_stand(site: &Site) {
    let daemon = start(site);
    for name in ["DB_URL", "DB_USER", "KEY"] {
        daemon.set("alice", name, name.as_bytes());
    }
    let (token, _) = make(&daemon, &json!({ "allow": PERMISSIONS, "names": ["DB_*"] }));
    let asked = |method: &str, path: &str, body: &str| ask(site, &token, method, path, body);
    for (method, path, body, _) in ROUTES {
        if !path.ends_with("{}") {
            let answer = asked(method, &filled(path, "alice"), &filled(body, "alice"));
            assert_eq!(answer.status, 403, "{method} {path}: {answer:?}");
        }
    }
    let both = r#"{"secrets":[{"name":"DB_URL","value":"x"},{"name":"KEY","value":"x"}]}"#;
    assert_eq!(asked("POST", "/v1/secrets/alice/batch-set", both).status, 403);
    assert_eq!(asked("POST", "/v1/secrets/alice/batch-get", r#"{"names":["DB_URL","KEY"]}"#).status, 403);
    assert_eq!(daemon.value("alice", "KEY").unwrap(), b"KEY");
    assert_eq!(daemon.value("alice", "DB_URL").unwrap(), b"DB_URL", "all or nothing");
    assert_eq!(asked("PUT", "/v1/secrets/alice/DB_NEW", r#"{"value":"new"}"#).status, 200);
    let names = |answer: &Answer| {
        let secrets = answer.json()["secrets"].as_array().unwrap().clone();
        let name = |item: &Value| {
            item.get("name").or_else(|| item["secret"].get("name")).unwrap().as_str().unwrap().to_owned()
        };
        secrets.iter().map(name).collect::<Vec<_>>()
    };
    let covered = ["DB_NEW", "DB_URL", "DB_USER"];
    assert_eq!(names(&asked("GET", "/v1/secrets/alice", "")), covered);
    assert_eq!(names(&asked("POST", "/v1/secrets/alice/batch-get", "")), covered);
    let page = asked("GET", "/v1/secrets/alice?pageSize=2", "");
    assert_eq!(names(&page), covered[..2]);
    let next = page.json()["nextPageToken"].as_str().unwrap().to_owned();
    let page = asked("GET", &format!("/v1/secrets/alice?pageSize=2&pageToken={next}"), "");
    assert_eq!((names(&page), page.json().get("nextPageToken")), (vec!["DB_USER".to_owned()], None));
}

fn what_no_longer_holds_opens_no_route(site: &Site) {
    let daemon = start(site);
    daemon.set("alice", "KEY", b"1");
    let all = json!({ "tenants": ["alice"], "allow": PERMISSIONS });
    let (revoked, id) = make(&daemon, &all);
    let (forged, forged_id) = make(&daemon, &all);
    let (widened, widened_id) = make(&daemon, &json!({ "allow": ["read"] }));
    let (expired, _) = make(&daemon, &json!({ "allow": PERMISSIONS, "ttlSeconds": 1 }));
    assert_eq!(ask(site, &revoked, "GET", "/v1/secrets/alice/KEY", "").value(), b"1");
    daemon.request("POST", "/v1/admin/tokens/revoke", json!({ "id": id }).to_string().as_bytes());
    site.run_sql(&format!("UPDATE tokens SET expires_at = 4000000000000000 WHERE id = '{forged_id}'"));
    site.run_sql(&format!("UPDATE tokens SET permissions = 'destroy,read' WHERE id = '{widened_id}'"));
    let begun = Instant::now();
    while ask(site, &expired, "GET", "/v1/secrets/alice/KEY", "").status == 200 {
        assert!(begun.elapsed() < PATIENCE, "it never ended");
    }
    let unknown = containarium::access::make_token().unwrap().text.to_string();
    let cut = revoked[..75].to_owned();
    for token in [&revoked, &forged, &widened, &expired, &unknown, &cut, &"x".to_owned(), &"a.b.c".to_owned()] {
        for (method, path, body, _) in ROUTES {
            let answer = ask(site, token, method, &filled(path, "alice"), &filled(body, "alice"));
            assert_eq!((answer.status, &*answer.headers["www-authenticate"]), (401, "Bearer"), "{answer:?}");
            assert_eq!(answer.problem(), "the credential is not valid: it is unknown, expired or revoked");
        }
        // Root on the socket would have all rights; with a credential it has the credential's.
        let headers = [("authorization", &*format!("Bearer {token}"))];
        assert_eq!(daemon.request_with("GET", "/v1/secrets/alice/KEY", &headers, b"").status, 401);
    }
    let twice = format!("Authorization: Bearer {revoked}\r\nAuthorization: Bearer {revoked}\r\n");
    for headers in
        ["", "Authorization: Basic eDp5\r\n", "Authorization: Bearer\r\n", "Authorization: Bearer a b\r\n", &twice]
    {
        assert_eq!(ask_with(site, headers, "GET", "/v1/secrets/alice/KEY", "").status, 401, "{headers}");
    }
    assert_eq!(daemon.value("alice", "KEY").unwrap(), b"1", "nothing was changed");
    assert!(site.log().contains("written or changed by somebody else"), "an alert line names the forged row");
}

fn a_token_is_no_administrator_anywhere(site: &Site) {
    let daemon = start(site);
    let (token, _) = make(&daemon, &json!({ "allow": PERMISSIONS }));
    let headers = [("authorization", &*format!("Bearer {token}"))];
    for (method, path) in [
        ("GET", "/v1/admin/status"),
        ("GET", "/v1/admin/tokens"),
        ("POST", "/v1/admin/tokens"),
        ("POST", "/v1/admin/tokens/revoke"),
        ("POST", "/v1/admin/rotate-master"),
        ("GET", "/metrics"),
        ("GET", "/openapi.json"),
    ] {
        assert_eq!(ask(site, &token, method, path, "{}").status, 404, "{path}");
        let answer = daemon.request_with(method, path, &headers, b"{}");
        assert_eq!(answer.status, 403, "{path}: {answer:?}");
    }
    assert_eq!(ask(site, &token, "GET", "/livez", "").status, 200);
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn listed(site: &Site) -> Vec<Value> {
    let output = site.cli(["admin", "token", "list", "-o", "json"], b"");
    assert!(output.status.success(), "{}", said(&output));
    let list: Value = serde_json::from_slice(&output.stdout).unwrap();
    list["tokens"].as_array().unwrap().clone()
}

fn tokens_are_listed_as_they_are_and_revoked_in_every_way(site: &Site) {
    let daemon = start(site);
    daemon.set("alice", "DB_URL", b"1");
    let create = |flags: &[&str]| {
        let mut command = vec!["admin", "token", "create", "--name", "app"];
        command.extend(flags);
        let output = site.cli(command, b"");
        assert!(output.status.success() && said(&output).contains("told this once"), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    };
    let flags =
        ["--tenant", "alice,bob", "--allow", "read,list", "--names", "DB_*,*_KEY", "--ttl", "90d", "--created-by"];
    let token = create(&[&flags[..], &["anna"]].concat());
    assert_eq!((token.len(), &token[..4]), (76, "ctn_"));
    let other = create(&["--tenant", "carol", "--allow", "read", "--created-by", "ben"]);
    create(&["--tenant", "bob", "--allow", "read"]);

    let shown = listed(site);
    let anna = shown.iter().find(|item| item["createdBy"] == "anna").unwrap();
    assert_eq!((&anna["state"], &anna["tenants"]), (&json!("good"), &json!(["alice", "bob"])));
    assert_eq!((&anna["allow"], &anna["names"]), (&json!(["read", "list"]), &json!(["*_KEY", "DB_*"])));
    let (id, no_use) = (anna["id"].as_str().unwrap(), anna.get("lastUsedAt"));
    assert!(token.contains(id) && anna["expiresAt"].is_string() && no_use.is_none(), "{anna}");
    let uid = format!("uid:{}", rustix::process::geteuid().as_raw());
    assert!(shown.iter().any(|item| item["createdBy"] == uid && item.get("expiresAt").is_none()), "{shown:?}");
    let table = String::from_utf8(site.cli(["admin", "token", "list"], b"").stdout).unwrap();
    for secret in [&token[27..], &other[27..]] {
        assert!(!table.contains(secret) && !Value::from(shown.clone()).to_string().contains(secret));
        assert!(!site.log().contains(secret));
    }

    assert_eq!(ask(site, &token, "GET", "/v1/secrets/alice/DB_URL", "").status, 200);
    let begun = Instant::now();
    while !listed(site).iter().any(|item| item["lastUsedAt"].is_string()) {
        assert!(begun.elapsed() < PATIENCE, "its use was never written down");
    }

    let unasked = site.cli(["admin", "token", "revoke", "--all"], b"");
    assert_eq!(unasked.status.code(), Some(2), "no terminal, no --yes: {}", said(&unasked));
    let whole = site.cli(["admin", "token", "revoke", &token], b"");
    assert!(
        whole.status.code() == Some(2) && said(&whole).contains("give the id and not the token"),
        "{}",
        said(&whole)
    );
    let missing = site.cli(["admin", "token", "revoke", &"0".repeat(22)], b"");
    assert_eq!(missing.status.code(), Some(3), "{}", said(&missing));
    let states = || {
        let mut states: Vec<String> =
            listed(site).iter().map(|item| item["state"].as_str().unwrap().to_owned()).collect();
        states.sort();
        states.join(" ")
    };
    for (flags, then) in [
        (&[id][..], "good good revoked"),
        (&["--created-by", "ben", "--yes"], "good revoked revoked"),
        (&["--tenant", "bob", "--yes"], "revoked revoked revoked"),
        (&["--all", "--yes"], "revoked revoked revoked"),
    ] {
        let output = site.cli(["admin", "token", "revoke"].iter().chain(flags), b"");
        assert!(output.status.success(), "{}", said(&output));
        assert_eq!(states(), then, "{flags:?}");
    }
    assert_eq!(ask(site, &token, "GET", "/v1/secrets/alice/DB_URL", "").status, 401);
    let (_, forged) = make(&daemon, &json!({}));
    site.run_sql(&format!("UPDATE tokens SET tenants = 'bob' WHERE id = '{forged}'"));
    assert_eq!(states(), "forged revoked revoked revoked");
    let output = site.cli(["admin", "token", "revoke", "--all", "--yes"], b"");
    assert!(said(&output).contains(&format!("{forged} was not revoked")), "{}", said(&output));
}

fn a_revocation_outlives_a_restored_database(site: &Site) {
    let daemon = start(site);
    daemon.set("alice", "KEY", b"1");
    let (kept, _) = make(&daemon, &json!({}));
    let (gone, id) = make(&daemon, &json!({}));
    assert!(daemon.stop().success());
    site.keep_copy();
    let daemon = start(site);
    let revoked = daemon.request("POST", "/v1/admin/tokens/revoke", json!({ "id": id }).to_string().as_bytes());
    assert_eq!(revoked.status, 200, "{revoked:?}");
    assert!(daemon.stop().success());
    site.put_copy_back();

    let daemon = start(site);
    for token in [&kept, &gone] {
        let answer = ask(site, token, "GET", "/v1/secrets/alice/KEY", "");
        assert_eq!(answer.status, 503, "{answer:?}");
        assert!(!answer.problem().contains("went back"), "what is wrong here is not told to strangers: {answer:?}");
    }
    let plan = daemon.get("/v1/admin/accept-restore").json();
    assert_eq!(plan["revokes"], json!([id]), "{plan}");
    let accepted = site.cli(["admin", "accept-restore", "--yes"], b"");
    assert!(accepted.status.success() && said(&accepted).contains("1 tokens that were revoked"), "{}", said(&accepted));
    let again: Vec<Value> = site
        .audit()
        .into_iter()
        .filter(|record| {
            record["action"] == "admin.accept-restore" && record["outcome"] == "ok" && record["token"] != Value::Null
        })
        .collect();
    assert!(again.len() == 1 && again[0]["token"] == *id, "the record of the revocation names it: {again:?}");
    assert_eq!(ask(site, &kept, "GET", "/v1/secrets/alice/KEY", "").status, 200);
    assert_eq!(ask(site, &gone, "GET", "/v1/secrets/alice/KEY", "").status, 401);
}

fn a_row_put_back_as_it_was_opens_nothing_where_its_revocation_is_remembered(site: &Site) {
    let daemon = start(site);
    daemon.set("alice", "KEY", b"1");
    let (token, id) = make(&daemon, &json!({}));
    site.run_sql("CREATE TABLE copied AS SELECT * FROM tokens");
    let revoked = daemon.request("POST", "/v1/admin/tokens/revoke", json!({ "id": id }).to_string().as_bytes());
    assert_eq!(revoked.status, 200, "{revoked:?}");
    site.run_sql("DELETE FROM tokens");
    site.run_sql("INSERT INTO tokens SELECT * FROM copied");
    let is_shut = || assert_eq!(ask(site, &token, "GET", "/v1/secrets/alice/KEY", "").status, 401);
    is_shut();
    assert!(daemon.stop().success());
    let _daemon = start(site);
    is_shut();
}

/// All at once, in the transaction of the new key.
fn after_a_compromise_tokens_hold_and_a_row_made_with_the_old_key_does_not(site: &Site) {
    let daemon = start(site);
    daemon.set("alice", "KEY", b"1");
    let (token, id) = make(&daemon, &json!({}));
    let (gone, revoked) = make(&daemon, &json!({}));
    let answer = daemon.request("POST", "/v1/admin/tokens/revoke", json!({ "id": revoked }).to_string().as_bytes());
    assert_eq!(answer.status, 200, "{answer:?}");
    let asked = |token: &str| ask(site, token, "GET", "/v1/secrets/alice/KEY", "").status;
    assert_eq!((asked(&token), asked(&gone)), (200, 401));
    let (forger, _) = make(&daemon, &json!({}));
    site.run_sql("CREATE TABLE copied AS SELECT * FROM tokens");
    let rotated =
        site.cli(["admin", "rotate-master", "--compromised", "--yes", "--escrow", "waive-off-host-copy"], b"");
    assert!(rotated.status.success(), "{}", said(&rotated));
    assert_eq!((asked(&token), asked(&gone), asked(&forger)), (200, 401, 200));
    let listed = site.cli(["admin", "token", "list", "-o", "json"], b"");
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(!listed.contains("forged"), "{listed}");
    let revoke = json!({ "id": id }).to_string();
    assert_eq!(daemon.request("POST", "/v1/admin/tokens/revoke", revoke.as_bytes()).status, 200);
    assert_eq!(asked(&token), 401);
    // As whoever has the old key would write it: a row under it, which was right before.
    site.run_sql("DELETE FROM tokens");
    site.run_sql("INSERT INTO tokens SELECT * FROM copied");
    let (another, _) = make(&daemon, &json!({}));
    assert_eq!((asked(&forger), asked(&another)), (401, 200));
    assert!(daemon.stop().success());
    let _daemon = start(site);
    assert_eq!((asked(&forger), asked(&another)), (401, 200));
}

/// What is remembered is never forgotten: else a restore from a good dump would not open the token again.
fn a_revocation_that_somebody_wrote_into_the_database_holds_only_as_long_as_it_stands_there(site: &Site) {
    let daemon = start(site);
    daemon.set("alice", "KEY", b"1");
    let (token, _) = make(&daemon, &json!({}));
    site.run_sql("UPDATE tokens SET revoked_at = 1");
    // The node looks at what is revoked when the state of the database moves on.
    let (_, other) = make(&daemon, &json!({}));
    let revoked = daemon.request("POST", "/v1/admin/tokens/revoke", json!({ "id": other }).to_string().as_bytes());
    assert_eq!(revoked.status, 200, "{revoked:?}");
    let asked = || ask(site, &token, "GET", "/v1/secrets/alice/KEY", "").status;
    assert_eq!(asked(), 401);
    let log = site.data_dir().join("critical.jsonl");
    let begun = std::time::Instant::now();
    while !std::fs::read_to_string(&log).unwrap_or_default().contains(&other) {
        assert!(begun.elapsed() < crate::support::site::PATIENCE, "{}", site.log());
        std::thread::yield_now();
    }
    site.run_sql("UPDATE tokens SET revoked_at = NULL WHERE revoked_at = 1");
    assert_eq!(asked(), 200);
    assert!(daemon.stop().success());
    let _daemon = start(site);
    assert_eq!(asked(), 200);
}

fn a_restored_database_that_cannot_be_looked_at_lets_no_token_in(site: &Site) {
    let daemon = start(site);
    daemon.set("alice", "KEY", b"1");
    let (token, id) = make(&daemon, &json!({}));
    assert!(daemon.stop().success());
    site.keep_copy();
    let daemon = start(site);
    let (_, other) = make(&daemon, &json!({}));
    let revoked = daemon.request("POST", "/v1/admin/tokens/revoke", json!({ "id": other }).to_string().as_bytes());
    assert_eq!(revoked.status, 200, "{id}: {revoked:?}");
    assert!(daemon.stop().success());
    site.put_copy_back();
    let daemon = start(site);
    let is_shut = || assert_eq!(ask(site, &token, "GET", "/v1/secrets/alice/KEY", "").status, 503);
    is_shut();
    // What a look at the database asks for and a token does not.
    site.run_sql("ALTER TABLE master_keys RENAME TO hidden");
    assert!(daemon.get("/v1/admin/accept-restore").status >= 500);
    is_shut();
}

/// Flags, and variables.
type Given<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)]);

#[test]
fn the_command_line_presents_a_token_from_a_file_or_a_variable_and_has_its_rights_alone() {
    let site = Site::sqlite();
    let daemon = start(&site);
    daemon.set("alice", "KEY", b"value");
    let (token, _) = make(&daemon, &json!({ "allow": ["read"] }));
    let file = site.path("token");
    std::fs::write(&file, format!("{token}\n")).unwrap();
    let server = format!("http://{}", address(&site));
    let run = |flags: &[&str], variables: &[(&str, &str)], words: &[&str]| {
        let mut command = site.command(["secrets"]);
        command.args(flags).args(words).envs(variables.iter().copied());
        command.output().unwrap()
    };
    let path = file.to_str().unwrap();
    let get = ["get", "alice", "KEY"];
    let good: [Given; 4] = [
        (&["--server", &server, "--token-file", path], &[]),
        (&["--server", &server], &[("CONTAINARIUM_TOKEN", &token)]),
        (&[], &[("CONTAINARIUM_SERVER", &server), ("CONTAINARIUM_TOKEN_FILE", path)]),
        (&["--token-file", path], &[("CONTAINARIUM_TOKEN", "the flag is stronger")]),
    ];
    for (flags, variables) in good {
        let output = run(flags, variables, &get);
        assert_eq!(
            (output.stdout.as_slice(), output.status.code()),
            (&b"value"[..], Some(0)),
            "{flags:?}: {}",
            said(&output)
        );
        let denied = run(flags, variables, &["list", "alice"]);
        assert!(denied.status.code() == Some(4) && said(&denied).contains("token create"), "{}", said(&denied));
    }
    let without = run(&["--server", &server], &[], &get);
    assert!(without.status.code() == Some(4) && said(&without).contains("--token-file"), "{}", said(&without));
    let bad: [Given; 3] = [
        (&["--token-file", "/nowhere"], &[]),
        (&[], &[("CONTAINARIUM_TOKEN", "two words")]),
        (&[], &[("CONTAINARIUM_TOKEN", &token), ("CONTAINARIUM_TOKEN_FILE", path)]),
    ];
    for (flags, variables) in bad {
        let output = run(flags, variables, &get);
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        assert!(!said(&output).contains(&token) && !said(&output).contains("two words"), "{}", said(&output));
    }
}

#[test]
fn a_tokens_requests_are_limited_and_another_ones_are_not() {
    let site = Site::sqlite();
    std::fs::write(site.config_file(), "[limits]\nrequests_per_identity = 5\n").unwrap();
    let daemon = start(&site);
    daemon.set("alice", "KEY", b"1");
    let ((noisy, _), (quiet, _)) = (make(&daemon, &json!({})), make(&daemon, &json!({})));
    let answers: Vec<Answer> = (0..20).map(|_| ask(&site, &noisy, "GET", "/v1/secrets/alice/KEY", "")).collect();
    let refused = answers.iter().find(|answer| answer.status == 429).expect("it asked too often");
    assert_eq!(refused.headers["retry-after"], "1");
    assert!(refused.problem().contains("this identity"), "{refused:?}");
    assert_eq!(ask(&site, &quiet, "GET", "/v1/secrets/alice/KEY", "").status, 200);
}

#[test]
fn a_user_of_the_settings_is_let_in_on_the_socket_without_a_token_and_others_are_not() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can become another user");
        return;
    }
    let site = Site::sqlite();
    let users = "[[socket_users]]\nuid = 65533\ntenants = [\"alice\"]\npermissions = [\"read\"]\nnames = [\"DB_*\"]\n";
    std::fs::write(site.config_file(), users).unwrap();
    let daemon = start(&site);
    daemon.set("alice", "DB_URL", b"1");
    std::fs::set_permissions(site.path(""), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let as_user = |uid: u32, method: &str, path: &str| {
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| {
                let uid = rustix::thread::Uid::from_raw(uid);
                rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
                daemon.request(method, path, b"")
            });
            asking.join().unwrap()
        })
    };
    assert_eq!(as_user(65_533, "GET", "/v1/secrets/alice/DB_URL").value(), b"1");
    for (method, path) in [
        ("GET", "/v1/secrets/alice/KEY"),
        ("GET", "/v1/secrets/bob/DB_URL"),
        ("GET", "/v1/secrets/alice"),
        ("DELETE", "/v1/secrets/alice/DB_URL"),
        ("GET", "/v1/admin/status"),
        ("GET", "/metrics"),
    ] {
        assert_eq!(as_user(65_533, method, path).status, 403, "{method} {path}");
    }
    let stranger = as_user(65_534, "GET", "/v1/secrets/alice/DB_URL");
    assert!(stranger.status == 403 && stranger.problem().contains("uid 65534 has no rights here"), "{stranger:?}");
    let audit = site.audit_text();
    assert!(audit.contains("uid:65533"));
}

#[test]
fn a_user_who_takes_all_connections_of_the_socket_keeps_neither_the_operator_nor_another_out() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can become another user");
        return;
    }
    let site = Site::sqlite();
    // With which the socket is open to every user of the host.
    let users = "[[socket_users]]\nuid = 65533\ntenants = [\"alice\"]\npermissions = [\"read\"]\n";
    std::fs::write(site.config_file(), users).unwrap();
    let daemon = start(&site);
    std::fs::set_permissions(site.path(""), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let connect_as = |uid: u32, count: usize| -> Vec<UnixStream> {
        std::thread::scope(|scope| {
            let connecting = scope.spawn(|| {
                let uid = rustix::thread::Uid::from_raw(uid);
                rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
                (0..count).map(|_| UnixStream::connect(site.socket()).unwrap()).collect()
            });
            connecting.join().unwrap()
        })
    };
    let greedy = connect_as(65_533, 300);
    let mut last = greedy.last().unwrap();
    assert_eq!(last.read(&mut [0]).unwrap(), 0, "one beyond the share is hung up on");
    let mut other = connect_as(65_534, 1).remove(0);
    other.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    other.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(daemon.get("/livez").status, 200);
    let open = |streams: &[UnixStream]| streams.iter().filter(|stream| is_open(stream)).count();
    assert_eq!(open(&greedy), 256);
    drop(greedy);
    // One user of the host can have many uids: those whom the settings do not name share one share.
    let nobodies: Vec<UnixStream> = [connect_as(65_532, 200), connect_as(65_534, 100)].into_iter().flatten().collect();
    let mut last = nobodies.last().unwrap();
    assert_eq!(last.read(&mut [0]).unwrap(), 0);
    assert_eq!(open(&nobodies), 256);
    assert!(is_open(&connect_as(65_533, 1)[0]));
}

fn is_open(stream: &UnixStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let mut stream = stream;
    matches!(stream.read(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}

/// As long as a revocation may take to hold elsewhere, and what a busy machine adds to it.
const SOON: Duration = Duration::from_secs(3);
