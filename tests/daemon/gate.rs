//! What every route has in common: who calls, whether the keys are open, what is recorded.

use super::on_both_stores;
use super::start::{lock, put_key};
use crate::support::site::{Answer, Daemon, Site};

on_both_stores![
    while_keys_are_locked_nothing_is_read_changed_or_destroyed,
    every_refusal_leaves_one_record_with_what_its_path_says,
    a_flood_of_refused_calls_is_counted_by_the_second,
];

/// Each route that serves or changes secrets, in an order in which none takes away what the next one needs.
const CALLS: [(&str, &str, &str); 12] = [
    ("GET", "/v1/secrets/alice/KEY", ""),
    ("GET", "/v1/secrets/alice", ""),
    ("GET", "/v1/secrets/alice/KEY/versions", ""),
    ("GET", "/v1/admin/tenants", ""),
    ("POST", "/v1/secrets/alice/batch-get", ""),
    ("POST", "/v1/secrets", r#"{"username":"alice","name":"KEY","value":"new"}"#),
    ("PUT", "/v1/secrets/alice/KEY", r#"{"value":"newer"}"#),
    ("POST", "/v1/secrets/alice/batch-set", r#"{"secrets":[{"name":"KEY","value":"newest"}]}"#),
    ("POST", "/v1/secrets/alice/KEY/rollback", r#"{"version":1}"#),
    ("DELETE", "/v1/secrets/alice/KEY", ""),
    ("POST", "/v1/secrets/alice/KEY/undelete", ""),
    ("POST", "/v1/secrets/alice/KEY/destroy", r#"{"versions":[1]}"#),
];

fn while_keys_are_locked_nothing_is_read_changed_or_destroyed(site: &Site) {
    let (mut daemon, key) = lock(site);
    let told = daemon.told("STATUS=Waiting for keys");
    assert_eq!(told.trim_end().lines().count(), 1, "a status has one line: {told}");
    let command = "install -m 0400 -o ";
    assert!(told.contains(command) && told.contains("(active), not found"), "{told}");
    let shown = String::from_utf8(site.cli(["admin", "status"], b"").stdout).unwrap();
    assert!(shown.lines().any(|line| line.trim().starts_with(command)), "each command is a line:\n{shown}");
    assert!(!shown.contains("\\u{"), "{shown}");
    let logged = site.log().len();
    for (method, path, body) in CALLS {
        let answer = daemon.request(method, path, body.as_bytes());
        assert_eq!((answer.status, answer.json()["code"].as_u64()), (503, Some(14)), "{method} {path}: {answer:?}");
        let why = answer.problem();
        assert!(why.starts_with("the keys are locked: a master key of this database is here, but not"), "{why}");
        assert!(why.ends_with("`containarium admin status` says what opens them"), "{why}");
    }
    for path in ["/livez", "/metrics", "/openapi.json", "/v1/admin/status"] {
        assert_eq!(daemon.get(path).status, 200, "{path}");
    }
    assert_eq!(daemon.get("/readyz").status, 503);
    assert_eq!(daemon.get("/nothing").status, 404);
    assert_eq!(&site.log()[logged..], "", "why they are locked was said once");
    put_key(site, &key);
    daemon.told("STATUS=Secrets store ready");
    assert_eq!(daemon.value("alice", "KEY").unwrap(), b"value");
    let versions = daemon.get("/v1/secrets/alice/KEY/versions").json();
    assert_eq!((versions["versions"].as_array().unwrap().len(), &versions["deleted"]), (1, &false.into()));
    for (method, path, body) in CALLS {
        assert_eq!(daemon.request(method, path, body.as_bytes()).status, 200, "{method} {path}");
    }
}

fn every_refusal_leaves_one_record_with_what_its_path_says(site: &Site) {
    const KEY: &str = r#""tenant":"alice","name":"KEY","#;
    site.record_in_the_file();
    let daemon = site.start();
    daemon.set("alice", "KEY", b"value");
    let huge = " ".repeat(409_601);
    let cas = r#"{"username":"alice","name":"KEY","value":"x","cas":7}"#;
    let delivery = r#"{"username":"alice","name":"KEY","value":"x","delivery":"mail"}"#;
    let twice = r#"{"names":["A","A"]}"#;
    let of_key = |action: &str, outcome: &str| format!(r#""{action}",{KEY}"outcome":"{outcome}""#);
    let cases: [(&str, &str, &str, u16, String); 17] = [
        ("GET", "/v1/secrets/ALICE/KEY", "", 400, r#"secret.get","name":"KEY","outcome":"invalid""#.into()),
        ("GET", "/v1/secrets/alice/my-key", "", 400, r#"secret.get","tenant":"alice","outcome":"invalid""#.into()),
        ("GET", "/v1/secrets/alice/%ff", "", 400, r#"secret.get","outcome":"invalid""#.into()),
        ("GET", "/v1/secrets/alice/KEY?x=1", "", 400, of_key("secret.get", "invalid")),
        ("GET", "/v1/secrets/alice/KEY?version=x", "", 400, of_key("secret.get", "invalid")),
        ("GET", "/v1/secrets/alice?pageToken=!", "", 400, r#"secret.list","tenant":"alice","outcome":"in"#.into()),
        ("GET", "/v1/admin/tenants?pageToken=!", "", 400, r#"admin.tenants","outcome":"invalid""#.into()),
        ("POST", "/v1/secrets", "not json", 400, r#"secret.set","outcome":"invalid""#.into()),
        ("POST", "/v1/secrets", delivery, 400, r#"secret.set","outcome":"invalid""#.into()),
        ("POST", "/v1/secrets", &huge, 413, r#"secret.set","outcome":"too_large""#.into()),
        ("POST", "/v1/secrets", cas, 412, of_key("secret.set", "precondition_failed")),
        ("PUT", "/v1/secrets/alice/KEY", "{}", 400, of_key("secret.set", "invalid")),
        ("DELETE", "/v1/secrets/alice/KEY", "x", 400, of_key("secret.delete", "invalid")),
        ("POST", "/v1/secrets/alice/KEY/destroy", "{}", 400, of_key("secret.destroy", "invalid")),
        ("POST", "/v1/secrets/alice/batch-get", twice, 400, r#"batch-get","tenant":"alice","outcome":"in"#.into()),
        ("PATCH", "/v1/secrets/alice/KEY", "", 405, of_key("unknown", "invalid")),
        ("GET", "/nothing", "", 404, r#""unknown","outcome":"not_found""#.into()),
    ];
    for (method, path, body, status, record) in cases {
        let before = site.audit_lines().len();
        let answer = daemon.request(method, path, body.as_bytes());
        assert_eq!(answer.status, status, "{method} {path}: {answer:?}");
        let new: Vec<String> = site.audit_lines().into_iter().skip(before).collect();
        assert!(new.len() == 1 && new[0].contains(&record), "{method} {path}: {record} is not {new:?}");
        assert!(new[0].contains(&answer.headers["x-request-id"]), "{method} {path}: {new:?}");
    }
    let before = site.audit_lines().len();
    daemon.request_with("DELETE", "/v1/secrets/alice/KEY", &[("If-Match", "\"1\"")], b"");
    daemon.request_with("PUT", "/v1/secrets/alice/KEY", &[("If-Match", "1")], br#"{"value":"x"}"#);
    assert_eq!(site.audit_lines().len(), before + 2);
    // Who asks whether it lives leaves none, right or wrong.
    for path in ["/livez?x=1", "/readyz", "/metrics?x=1", "/openapi.json"] {
        daemon.get(path);
    }
    assert_eq!(site.audit_lines().len(), before + 2);
}

/// Asks as a user without rights; `None` where this test cannot become one.
fn ask_as_a_stranger(site: &Site, daemon: &Daemon, method: &str, path: &str, body: &str) -> Option<Answer> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    // The socket's mode keeps others out already; opened up, the peer's credentials still do.
    for path in [site.path(""), site.socket()] {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    }
    std::thread::scope(|scope| {
        // Credentials are a thread's: this one becomes nobody, and connects.
        let asking = scope.spawn(|| {
            let nobody = rustix::thread::Uid::from_raw(65_534);
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            daemon.request(method, path, body.as_bytes())
        });
        Some(asking.join().unwrap())
    })
}

#[test]
fn a_caller_without_rights_is_turned_away_before_anything_they_said_is_looked_at() {
    let site = Site::sqlite();
    let daemon = site.start();
    let asked = [
        ("GET", "/v1/secrets/alice/KEY?x=1", "", r#""action":"secret.get","tenant":"alice","outcome":"denied""#),
        ("GET", "/v1/secrets/alice/my-key", "", r#""action":"secret.get","tenant":"alice","outcome":"denied""#),
        ("GET", "/v1/secrets/ALICE", "", r#""action":"secret.list","outcome":"denied""#),
        ("POST", "/v1/secrets", "not json", r#""action":"secret.set","outcome":"denied""#),
        ("PATCH", "/v1/secrets/alice", "", r#""action":"unknown","tenant":"alice","outcome":"denied""#),
        ("GET", "/nothing", "", r#""action":"unknown","outcome":"denied""#),
    ];
    for (method, path, body, _) in asked {
        let Some(answer) = ask_as_a_stranger(&site, &daemon, method, path, body) else {
            println!("skipped: only root can become another user");
            return;
        };
        assert_eq!(answer.status, 403, "{method} {path}: {answer:?}");
        assert!(answer.problem().contains("uid 65534"), "{answer:?}");
    }
    let lines = site.audit_lines();
    assert_eq!(lines.len(), asked.len(), "one record for each: {lines:?}");
    for (line, (_, path, _, record)) in lines.iter().zip(asked) {
        assert!(line.contains(record), "{path}: {line}");
    }
    for path in ["/metrics?x=1", "/openapi.json?x=1"] {
        assert_eq!(ask_as_a_stranger(&site, &daemon, "GET", path, "").unwrap().status, 403, "{path}");
    }
    assert_eq!(ask_as_a_stranger(&site, &daemon, "GET", "/livez", "").unwrap().status, 200);
}

fn a_flood_of_refused_calls_is_counted_by_the_second(site: &Site) {
    const CALLERS: u64 = 64;
    const CALLS_EACH: u64 = 4;
    site.record_in_the_file();
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can become another user");
        return;
    }
    let daemon = site.start();
    let begun = std::time::Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..CALLERS {
            scope.spawn(|| {
                for _ in 0..CALLS_EACH {
                    let answer = ask_as_a_stranger(site, &daemon, "GET", "/v1/secrets/alice/KEY", "").unwrap();
                    assert_eq!(answer.status, 403, "{answer:?}");
                }
            });
        }
    });
    // In a second the first four have records of their own, and the others share one.
    let most = 5 * (begun.elapsed().as_secs() + 2);
    let lines = site.audit_lines();
    let records: Vec<serde_json::Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(records.iter().all(|record| record["outcome"] == "denied" && record["identity"] == "uid:65534"));
    let counted: u64 = records.iter().map(|record| record["count"].as_u64().unwrap_or(1)).sum();
    assert_eq!(counted, CALLERS * CALLS_EACH, "each is counted: {lines:?}");
    assert!(lines.len() as u64 <= most, "{} lines, of which {most} would be enough: {lines:?}", lines.len());
    // A key below a directory that anybody may write is refused.
    std::fs::set_permissions(site.path(""), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let verified = site.cli(["audit", "verify"], b"");
    assert_eq!(verified.status.code(), Some(0), "{verified:?}");
}
