//! The API's edges: bad input, limits, problems, health, metrics, description.

use super::on_both_stores;
use crate::support::site::{Answer, Site};
use std::io::{Read, Write};

on_both_stores![
    each_kind_of_bad_input_gets_an_answer_of_its_own,
    a_value_of_65536_bytes_is_taken_and_of_65537_refused_by_every_way_in,
    names_that_break_the_rule_are_refused_on_every_route,
    what_a_route_does_not_take_is_refused_and_named_and_changes_nothing,
];

fn each_kind_of_bad_input_gets_an_answer_of_its_own(site: &Site) {
    let daemon = site.start();
    daemon.set("alice", "KEY", b"value");
    let post = |body: &str| daemon.request("POST", "/v1/secrets", body.as_bytes());
    let cases: Vec<(Answer, u16, &str)> = vec![
        (post(""), 400, "ends too early"),
        (post("[]"), 400, "wrong type"),
        (post("not json"), 400, "not JSON"),
        (post(r#"{"username":"alice","name":"KEY"}"#), 400, "`value` (UTF-8) or as `value_base64`"),
        (post(r#"{"username":"alice","name":"KEY","value":"a","value_base64":"YQ=="}"#), 400, "not both"),
        (post(r#"{"username":"alice","name":"KEY","value":"a","value":"b"}"#), 400, "given twice"),
        (post(r#"{"username":"alice","name":"KEY","value":"a","vaule":"b"}"#), 400, "unknown"),
        (post(r#"{"username":"alice","name":"KEY","value":7}"#), 400, "wrong type"),
        (post(r#"{"username":"alice","name":"KEY","value":"\ud800"}"#), 400, "could not be read"),
        (post(r#"{"username":"alice","name":"KEY","value_base64":"YQ"}"#), 400, "could not be read"),
        (post(r#"{"username":"alice","name":"KEY","value_base64":"_w=="}"#), 400, "could not be read"),
        (post(r#"{"username":"alice","name":"KEY","value":"a","delivery":"mail"}"#), 400, "env, file or compose"),
        (post(r#"{"username":"alice","name":"KEY","value":"a","cas":-1}"#), 400, "wrong type"),
        (post(r#"{"username":"alice","name":"my-key","value":"a"}"#), 400, "a secret's name is"),
        (post(r#"{"username":"ALICE","name":"KEY","value":"a"}"#), 400, "a tenant is"),
        (post(r#"{"username":"_system","name":"TOKEN_MAC","value":"a"}"#), 400, "a tenant is"),
        (post(&"[".repeat(200_000)), 400, "could not be read"),
        (daemon.get("/v1/secrets/_system/TOKEN_MAC"), 400, "a tenant is"),
        (daemon.get("/v1/secrets/alice/UNKNOWN"), 404, "tenant alice has no secret UNKNOWN"),
        (daemon.get("/v1/secrets/nobody/KEY"), 404, "tenant nobody is unknown"),
        (daemon.get("/v1/secrets/alice/KEY?version=7"), 404, "no version 7"),
        (daemon.get("/v1/secrets/alice/KEY?version=x"), 400, "query"),
        (daemon.get("/v1/secrets/alice/KEY?verison=1"), 400, "query"),
        (daemon.get("/nothing"), 404, "no such route"),
        (daemon.request("PATCH", "/v1/secrets/alice/KEY", b""), 405, "does not take this method"),
        (daemon.request("POST", "/v1/secrets/alice/KEY/rollback", b"{}"), 400, "missing"),
        (daemon.request("POST", "/v1/secrets/alice/KEY/rollback", br#"{"version":0}"#), 400, "a number from 1"),
        (daemon.request("POST", "/v1/secrets/alice/KEY/destroy", br#"{"versions":[]}"#), 400, "1 to 1000"),
        (daemon.request("POST", "/v1/secrets/alice/KEY/undelete", br#"{"version":1}"#), 400, "takes no body"),
        (daemon.request("POST", "/v1/admin/rotate", b""), 404, "no such route"),
        (daemon.request("POST", "/v1/admin/rotate-master", b""), 400, "ends too early"),
        (daemon.request("POST", "/v1/admin/rotate-master", br#"{"mode":"sideways"}"#), 400, "wrong type"),
        (
            daemon.request("POST", "/v1/admin/rotate-master", br#"{"mode":"start","withoutNodes":["x"]}"#),
            400,
            "32 hex digits, in lower case",
        ),
        (daemon.request("POST", "/v1/admin/rotate-master/destroy-old", br#"{"kid":"x"}"#), 400, "a kid is"),
        (daemon.get("/v1/admin/rotate-master"), 404, "since this daemon started"),
    ];
    for (answer, status, words) in cases {
        assert_eq!(answer.status, status, "{words}: {answer:?}");
        let detail = answer.problem();
        assert!(detail.contains(words), "{detail:?} says nothing of {words:?}");
    }
    assert_eq!(daemon.value("alice", "KEY").unwrap(), b"value", "nothing was stored");
    assert_eq!(daemon.get("/v1/admin/status").json()["counts"]["secrets"], 1);
}

fn a_value_of_65536_bytes_is_taken_and_of_65537_refused_by_every_way_in(site: &Site) {
    let daemon = site.start();
    let fits = "\u{1}".repeat(65_536);
    let body = serde_json::json!({ "username": "alice", "name": "KEY", "value": fits }).to_string();
    assert!(body.len() > 393_000, "the longest JSON of a legal value");
    assert_eq!(daemon.request("POST", "/v1/secrets", body.as_bytes()).status, 200);
    assert_eq!(daemon.value("alice", "KEY").unwrap(), fits.as_bytes());

    let over = vec![b'x'; 65_537];
    let answer = daemon.set("alice", "KEY", &over);
    assert_eq!(answer.status, 400);
    assert_eq!(answer.problem(), "a value has at most 65536 bytes; this one has 65537");
    let put = serde_json::json!({ "value": "x".repeat(65_537) }).to_string();
    assert_eq!(daemon.request("PUT", "/v1/secrets/alice/KEY", put.as_bytes()).status, 400);
    let batch = serde_json::json!({ "secrets": [{ "name": "KEY", "value": "x".repeat(65_537) }] }).to_string();
    assert_eq!(daemon.request("POST", "/v1/secrets/alice/batch-set", batch.as_bytes()).status, 400);
    let output = site.cli(["secrets", "set", "alice", "KEY"], &over);
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
    let huge = daemon.request("POST", "/v1/secrets", &vec![b' '; 409_601]);
    assert_eq!((huge.status, huge.json()["code"].as_u64()), (413, Some(3)));
    assert_eq!(daemon.value("alice", "KEY").unwrap(), fits.as_bytes());
}

fn names_that_break_the_rule_are_refused_on_every_route(site: &Site) {
    let daemon = site.start();
    daemon.set("alice", "KEY", b"value");
    let routes: [(&str, &str, &[u8]); 8] = [
        ("GET", "", b""),
        ("PUT", "", br#"{"value":"x"}"#),
        ("DELETE", "", b""),
        ("GET", "/versions", b""),
        ("POST", "/undelete", b""),
        ("POST", "/rollback", br#"{"version":1}"#),
        ("POST", "/destroy", br#"{"versions":[1]}"#),
        ("GET", "?version=1", b""),
    ];
    let names = [
        "my-key",
        "key",
        "%2F",
        "%252F",
        "%254BEY",
        "%2541",
        "A%2FB",
        "KEY%00",
        "%4BEY%20",
        "..%2FKEY",
        "KEY;x",
        "%C3%84",
        "%EF%BC%A1",
        "%41%CC%88",
        "%ff",
        "%",
        "%4",
        "%zz",
        "1KEY",
        "KEY%0A",
    ];
    for (method, rest, body) in routes {
        for name in names {
            let answer = daemon.request(method, &format!("/v1/secrets/alice/{name}{rest}"), body);
            assert_eq!(answer.status, 400, "{method} {name}{rest}: {answer:?}");
            let detail = answer.problem();
            assert!(detail.contains("name is 1 to 128") || detail.contains("UTF-8"), "{name}: {detail}");
        }
        for tenant in ["ALICE", "_system", "al%2Fice", "%2561lice", "a%00", "%2e%2e", ".", "..", ""] {
            let answer = daemon.request(method, &format!("/v1/secrets/{tenant}/KEY{rest}"), body);
            assert_eq!(answer.status, 400, "{method} {tenant:?} {rest}: {answer:?}");
        }
    }
    for path in
        ["/v1/secrets/alice/ALICE/../BOB", "/v1/secrets//KEY", "/v1//secrets/alice/KEY", "/v1/secrets/alice/./KEY"]
    {
        let answer = daemon.get(path);
        assert_eq!(answer.status, 400, "{path}: {answer:?}");
        let detail = answer.problem();
        assert!(detail.contains("segment") || detail.contains("a tenant is"), "{path}: {detail}");
    }
    // One decoding, and an encoded letter is that letter: A is there, so that %2541 decoded twice would be answered.
    daemon.set("alice", "A", b"value");
    assert_eq!(daemon.get("/v1/secrets/alice/%41").value(), b"value");
    assert_eq!(daemon.get("/v1/secrets/alice/%2541").status, 400);
    assert_eq!(daemon.get("/v1/secrets/%61lice/%4BEY").value(), b"value");
    assert_eq!(daemon.get("/v1/admin/status").json()["counts"]["secrets"], 2);
    let output = site.cli(["secrets", "get", "alice", "ALICE/../BOB"], b"");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("name is 1 to 128"), "{output:?}");
}

fn what_a_route_does_not_take_is_refused_and_named_and_changes_nothing(site: &Site) {
    let daemon = site.start();
    daemon.set("alice", "KEY", b"value");
    daemon.set("alice", "GONE", b"value");
    daemon.request("DELETE", "/v1/secrets/alice/GONE", b"");
    let before = daemon.get("/v1/secrets/alice/KEY/versions").json();
    let changes: [(&str, &str, &[u8]); 7] = [
        ("POST", "/v1/secrets", br#"{"username":"alice","name":"KEY","value":"new"}"#),
        ("POST", "/v1/secrets/alice/batch-set", br#"{"secrets":[{"name":"KEY","value":"new"}]}"#),
        ("DELETE", "/v1/secrets/alice/KEY", b""),
        ("POST", "/v1/secrets/alice/GONE/undelete", b""),
        ("POST", "/v1/secrets/alice/KEY/rollback", br#"{"version":1}"#),
        ("POST", "/v1/secrets/alice/KEY/destroy", br#"{"versions":[1]}"#),
        ("PUT", "/v1/secrets/alice/KEY", br#"{"value":"new"}"#),
    ];
    let reads: [(&str, &str, &[u8]); 9] = [
        ("GET", "/v1/secrets/alice/KEY", b""),
        ("GET", "/v1/secrets/alice", b""),
        ("GET", "/v1/secrets/alice/KEY/versions", b""),
        ("GET", "/v1/admin/tenants", b""),
        ("GET", "/v1/admin/status", b""),
        ("GET", "/livez", b""),
        ("GET", "/readyz", b""),
        ("GET", "/metrics", b""),
        ("GET", "/openapi.json", b""),
    ];
    let batch_get: (&str, &str, &[u8]) = ("POST", "/v1/secrets/alice/batch-get", b"");
    for (method, path, body) in changes.into_iter().chain(reads).chain([batch_get]) {
        for key in ["cas", "Version", "pagesize", "page%2DSize", "x", "if-match"] {
            let answer = daemon.request(method, &format!("{path}?{key}=1"), body);
            assert_eq!(answer.status, 400, "{method} {path}?{key}: {answer:?}");
            let detail = answer.problem();
            assert!(detail.contains(&format!("`{}`", key.replace("%2D", "-"))), "{key}: {detail}");
        }
        let date = "Tue, 24 Nov 2026 08:00:00 GMT";
        for (header, value) in [
            ("If-Match", "\"7\""),
            ("If-None-Match", "*"),
            ("If-Unmodified-Since", date),
            ("If-Modified-Since", date),
            ("If-Range", date),
        ] {
            let answer = daemon.request_with(method, path, &[(header, value)], body);
            match (method, header) {
                ("PUT", "If-Match" | "If-None-Match") => assert_eq!(answer.status, 412, "{header}"),
                ("GET", "If-None-Match" | "If-Modified-Since" | "If-Range") => {
                    assert_eq!(answer.status, 200, "{path}: {answer:?}");
                }
                _ => {
                    assert_eq!(answer.status, 400, "{method} {path} {header}: {answer:?}");
                    assert!(answer.problem().contains(&format!("does not take {header}")), "{answer:?}");
                }
            }
        }
    }
    assert_eq!(daemon.get("/v1/secrets/alice/KEY/versions").json(), before);
    assert_eq!(daemon.get("/v1/secrets/alice/GONE").status, 404);
    // As a parser of forms reads it, and a stray mark is no parameter.
    assert_eq!(daemon.get("/v1/secrets/alice/KEY?%76ersion=1&").value(), b"value");
    assert_eq!(daemon.get("/livez?").status, 200);
    assert_eq!(daemon.get("/v1/secrets/alice/KEY?version=1&version=1").status, 400);
    let stray = daemon.get("/v1/secrets/alice/KEY?canary-4711=1").problem();
    assert!(!stray.contains("4711"), "what may be a value is not repeated: {stray}");
}

#[test]
fn a_body_without_a_length_is_taken_and_an_endless_one_is_cut_off() {
    let site = Site::sqlite();
    let daemon = site.start();
    let json = r#"{"username":"alice","name":"KEY","value":"chunked"}"#;
    let head = "POST /v1/secrets HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
    let message = format!("{head}{:x}\r\n{json}\r\n0\r\n\r\n", json.len());
    assert_eq!(Answer::parse(&daemon.raw(message.as_bytes())).status, 200);
    assert_eq!(daemon.value("alice", "KEY").unwrap(), b"chunked");

    let mut stream = daemon.connect();
    stream.write_all(head.as_bytes()).unwrap();
    let chunk = format!("{:x}\r\n{}\r\n", 8192, " ".repeat(8192));
    for _ in 0..100 {
        if stream.write_all(chunk.as_bytes()).is_err() {
            break;
        }
    }
    let mut answer = Vec::new();
    let _reset = stream.read_to_end(&mut answer);
    assert_eq!(Answer::parse(&answer).status, 413);
    assert_eq!(daemon.value("alice", "KEY").unwrap(), b"chunked", "the daemon serves on");
}

#[test]
fn a_message_with_two_lengths_is_answered_once_and_closed() {
    let site = Site::sqlite();
    let daemon = site.start();
    let smuggled = "GET /v1/admin/tenants HTTP/1.1\r\nHost: x\r\n\r\n";
    for headers in [
        format!("Content-Length: {}\r\nTransfer-Encoding: chunked\r\n", 5 + smuggled.len()),
        format!("Transfer-Encoding: chunked\r\nContent-Length: {}\r\n", 5 + smuggled.len()),
    ] {
        let message =
            format!("POST /v1/secrets/alice/KEY/undelete HTTP/1.1\r\nHost: x\r\n{headers}\r\n0\r\n\r\n{smuggled}");
        let answer = daemon.raw(message.as_bytes());
        let text = String::from_utf8_lossy(&answer);
        assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "{text}");
        assert!(!text.contains("tenants"), "{text}");
    }
}

#[test]
fn a_slow_client_does_not_hold_up_another() {
    let site = Site::sqlite();
    let daemon = site.start();
    daemon.set("alice", "KEY", b"value");
    let mut slow: Vec<_> = (0..200).map(|_| daemon.connect()).collect();
    for stream in &mut slow {
        stream.write_all(b"POST /v1/secrets HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{").unwrap();
    }
    for _ in 0..50 {
        assert_eq!(daemon.value("alice", "KEY").unwrap(), b"value");
    }
}

#[test]
fn health_says_what_is_waited_for_and_metrics_name_no_tenant() {
    let site = Site::sqlite();
    let daemon = site.start();
    daemon.set("canarytenant", "CANARY_NAME", b"value");
    daemon.value("canarytenant", "CANARY_NAME");
    assert_eq!(daemon.get("/livez").json()["status"], "ok");
    assert_eq!(daemon.get("/readyz").json()["status"], "ok");
    daemon.get("/v1/nowhere/canarytenant");
    let answer = daemon.get("/metrics");
    let text = String::from_utf8(answer.body).unwrap();
    for line in [
        "containarium_keys_open 1",
        // The system's own DEK too, for the key of the audit.
        "containarium_dek_cache_hits_total 2",
        "containarium_dek_cache_misses_total 2",
        "containarium_dek_cache_entries 2",
        r#"containarium_http_requests_total{route="/v1/secrets/{username}/{name}",method="GET",status="200"} 1"#,
        r#"containarium_http_requests_total{route="none",method="GET",status="404"} 1"#,
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is missing:\n{text}");
    }
    assert!(!text.to_lowercase().contains("canary"), "{text}");
    assert_eq!(daemon.get("/openapi.json").json()["openapi"], "3.1.0");
}

#[test]
fn every_call_leaves_an_audit_record_and_every_secret_of_a_batch_one() {
    let site = Site::sqlite();
    let daemon = site.start();
    daemon.set("alice", "A", b"x");
    daemon.get("/v1/secrets/alice/A");
    daemon.get("/v1/secrets/alice/B");
    let batch = daemon.request("POST", "/v1/secrets/alice/batch-get", br#"{"names":["A","B"]}"#);
    daemon.get("/v1/admin/status");
    let records = site.audit();
    let shown: Vec<String> = records
        .iter()
        .map(|r| {
            format!(
                "{} {} {} {}",
                r["action"].as_str().unwrap(),
                r["name"],
                r["version"],
                r["outcome"].as_str().unwrap()
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            r#"secret.set "A" 1 ok"#,
            r#"secret.get "A" 1 ok"#,
            r#"secret.get "B" null not_found"#,
            r#"secret.batch-get "A" 1 ok"#,
            r#"secret.batch-get "B" null not_found"#,
            "admin.status null null ok",
        ]
    );
    assert_eq!(records[3]["requestId"], batch.headers["x-request-id"].as_str());
    assert_eq!(records[0]["tenant"], "alice");
    assert_eq!(records[0]["identity"], format!("uid:{}", rustix::process::geteuid().as_raw()));
}

#[test]
fn a_caller_who_hangs_up_does_not_stop_a_change_or_its_record() {
    let site = Site::sqlite();
    let daemon = site.start();
    daemon.set("alice", "FIRST", b"x");
    for number in 0..50 {
        let body = format!(r#"{{"username":"alice","name":"KEY_{number}","value":"x"}}"#);
        let mut stream = daemon.connect();
        let head = format!("POST /v1/secrets HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body.as_bytes()).unwrap();
        drop(stream);
    }
    assert_eq!(daemon.stop().code(), Some(0));
    let daemon = site.start();
    let stored = daemon.get("/v1/admin/status").json()["counts"]["secrets"].as_u64().unwrap();
    let recorded = site.audit().iter().filter(|record| record["action"] == "secret.set").count() as u64;
    assert_eq!(stored, recorded, "each change has its record");
}

#[test]
fn another_user_of_the_host_is_turned_away_and_recorded() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can become another user");
        return;
    }
    let site = Site::sqlite();
    let daemon = site.start();
    daemon.set("alice", "KEY", b"value");
    // The socket's mode keeps others out already; opened up, the peer's credentials still do.
    for path in [site.path(""), site.socket()] {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    }
    // Credentials are a thread's: this one becomes nobody, and connects.
    let ask = |path: &'static str| {
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| {
                let nobody = rustix::thread::Uid::from_raw(65_534);
                rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
                daemon.get(path)
            });
            asking.join().unwrap()
        })
    };
    for path in [
        "/v1/secrets/alice/KEY",
        "/v1/secrets/nobody/KEY",
        "/v1/secrets/alice",
        "/v1/admin/status",
        "/metrics",
        "/openapi.json",
    ] {
        let answer = ask(path);
        assert_eq!((answer.status, answer.json()["code"].as_u64()), (403, Some(7)), "{path}");
        assert!(answer.problem().contains("uid 65534"), "{answer:?}");
    }
    assert_eq!(ask("/livez").status, 200);
    let text = std::fs::read_to_string(site.data_dir().join("audit.jsonl")).unwrap();
    assert_eq!(
        text.lines().filter(|line| line.contains(r#""identity":"uid:65534""#) && line.contains("denied")).count(),
        4
    );
}
