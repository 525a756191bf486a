//! The main job: what was put in comes out, whatever happened between.

use super::on_both_stores;
use crate::support::site::Site;

const PEM: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ+DYvh6SEqVTm50DFtMDoQikTmiCqirVv9mWG9qfSnF\n-----END PRIVATE KEY-----\n";

on_both_stores![
    values_come_back_after_a_restart_as_they_were_put_in_over_http_and_the_command_line,
    versions_are_kept_listed_rolled_back_and_destroyed,
    the_newest_versions_stay_and_older_ones_are_pruned,
    a_deleted_secret_comes_back_whole,
    a_compare_and_set_that_fails_changes_nothing,
    a_batch_is_set_whole_or_not_at_all_and_read_at_once,
    tenants_and_secrets_are_listed_page_by_page,
    concurrent_first_writes_of_a_tenant_make_one_dek,
    every_route_shows_the_same_metadata_after_a_change_of_the_delivery_alone,
];

fn sizes() -> Vec<(&'static str, Vec<u8>)> {
    let mut random = vec![0; 65_536];
    getrandom::fill(&mut random).unwrap();
    vec![
        ("EMPTY", Vec::new()),
        ("ONE", vec![0]),
        ("PEM", PEM.as_bytes().to_vec()),
        ("CONTROL", "\0".repeat(65_536).into_bytes()),
        ("RANDOM", random),
    ]
}

fn values_come_back_after_a_restart_as_they_were_put_in_over_http_and_the_command_line(site: &Site) {
    let values = sizes();
    let daemon = site.start();
    for (name, value) in &values {
        let answer = daemon.set("http", name, value);
        assert_eq!(answer.status, 200, "{name}: {answer:?}");
        assert_eq!(answer.json()["message"], "secret created");
        let output = site.cli(["secrets", "set", "--allow-empty", "cli", name], value);
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(daemon.stop().code(), Some(0));

    let daemon = site.start();
    for (name, value) in &values {
        for tenant in ["http", "cli"] {
            assert!(daemon.value(tenant, name).as_ref() == Some(value), "{tenant} {name} over HTTP");
            let output = site.cli(["secrets", "get", tenant, name], b"");
            assert!(output.status.success() && output.stdout == *value, "{tenant} {name} by the command line");
        }
    }
}

fn versions_are_kept_listed_rolled_back_and_destroyed(site: &Site) {
    let daemon = site.start();
    for (number, value) in [(1, "one"), (2, "two"), (3, "three")] {
        let answer = daemon.set("alice", "KEY", value.as_bytes());
        assert_eq!(answer.json()["secret"]["version"], number);
        assert_eq!(answer.headers["etag"], format!("\"{number}\""));
    }
    assert_eq!(daemon.set("alice", "KEY", b"three").json()["message"], "secret unchanged at version 3");
    assert_eq!(daemon.get("/v1/secrets/alice/KEY?version=2").value(), b"two");
    let rolled = daemon.request("POST", "/v1/secrets/alice/KEY/rollback", br#"{"version":1}"#);
    assert_eq!(rolled.json()["message"], "secret updated to version 4");
    assert_eq!(daemon.value("alice", "KEY").unwrap(), b"one");

    let destroyed = daemon.request("POST", "/v1/secrets/alice/KEY/destroy", br#"{"versions":[2,9]}"#);
    assert_eq!(destroyed.status, 404, "{destroyed:?}");
    assert_eq!(daemon.get("/v1/secrets/alice/KEY?version=2").value(), b"two", "all or nothing");
    let destroyed = daemon.request("POST", "/v1/secrets/alice/KEY/destroy", br#"{"versions":[2,4]}"#);
    assert_eq!(destroyed.status, 200, "{destroyed:?}");
    assert_eq!(
        daemon.get("/v1/secrets/alice/KEY?version=2").problem(),
        "version 2 of secret KEY of tenant alice is destroyed"
    );
    assert_eq!(
        daemon.get("/v1/secrets/alice/KEY").status,
        404,
        "the current version is destroyed; no older one takes its place"
    );
    assert_eq!(daemon.set("alice", "KEY", b"five").json()["secret"]["version"], 5, "a number is never used twice");

    let versions = daemon.get("/v1/secrets/alice/KEY/versions").json();
    let shown: Vec<(u64, &str)> = versions["versions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| (item["version"].as_u64().unwrap(), item["state"].as_str().unwrap()))
        .collect();
    assert_eq!(shown, [(5, "live"), (4, "destroyed"), (3, "live"), (2, "destroyed"), (1, "live")]);
    assert_eq!(
        daemon.get("/v1/secrets/alice/KEY?version=99").problem(),
        "secret KEY of tenant alice has no version 99"
    );
    assert_eq!(daemon.get("/v1/secrets/alice/KEY?version=0").status, 400);
}

fn the_newest_versions_stay_and_older_ones_are_pruned(site: &Site) {
    std::fs::write(site.config_file(), "[secrets]\nkeep_versions = 3\n").unwrap();
    let daemon = site.start();
    for number in 1..=5 {
        daemon.set("alice", "KEY", format!("value {number}").as_bytes());
    }
    assert_eq!(daemon.get("/v1/secrets/alice/KEY?version=2").status, 404);
    assert_eq!(daemon.get("/v1/secrets/alice/KEY?version=3").value(), b"value 3");
    let versions = daemon.get("/v1/secrets/alice/KEY/versions").json();
    assert_eq!(versions["versions"].as_array().unwrap().len(), 3);
}

fn a_deleted_secret_comes_back_whole(site: &Site) {
    let daemon = site.start();
    daemon.set("alice", "KEY", b"value");
    assert_eq!(daemon.request("DELETE", "/v1/secrets/alice/KEY", b"").json()["message"], "secret deleted");
    assert_eq!(
        daemon.get("/v1/secrets/alice/KEY").problem(),
        "secret KEY of tenant alice is deleted; undelete brings it back"
    );
    assert_eq!(daemon.get("/v1/secrets/alice/KEY?version=1").status, 404);
    assert_eq!(daemon.request("DELETE", "/v1/secrets/alice/KEY", b"").status, 404);
    assert_eq!(daemon.get("/v1/secrets/alice").json()["secrets"].as_array().unwrap().len(), 0);
    assert_eq!(daemon.get("/v1/secrets/alice/KEY/versions").json()["deleted"], true);
    let rollback = daemon.request("POST", "/v1/secrets/alice/KEY/rollback", br#"{"version":1}"#);
    assert_eq!(rollback.status, 404, "{rollback:?}");
    assert_eq!(daemon.request("POST", "/v1/secrets/alice/KEY/undelete", b"").status, 200);
    assert_eq!(daemon.request("POST", "/v1/secrets/alice/KEY/undelete", b"").status, 409);
    assert_eq!(daemon.value("alice", "KEY").unwrap(), b"value");

    daemon.request("DELETE", "/v1/secrets/alice/KEY", b"");
    let again = daemon.set("alice", "KEY", b"value");
    assert_eq!(again.json()["message"], "secret updated to version 2", "set after delete goes on counting");
}

fn a_compare_and_set_that_fails_changes_nothing(site: &Site) {
    let daemon = site.start();
    let post = |cas: u64, value: &str| {
        let body = serde_json::json!({ "username": "alice", "name": "KEY", "value": value, "cas": cas });
        daemon.request("POST", "/v1/secrets", body.to_string().as_bytes())
    };
    assert_eq!(post(3, "early").problem(), "the secret does not exist");
    assert_eq!(post(0, "one").status, 200);
    let failed = post(0, "two");
    assert_eq!((failed.status, failed.json()["code"].as_u64()), (412, Some(9)));
    assert_eq!(failed.problem(), "the current version is 1");
    assert_eq!(post(1, "two").json()["secret"]["version"], 2);

    let put = |headers: &[(&str, &str)], value: &str| {
        let body = serde_json::json!({ "value": value }).to_string();
        daemon.request_with("PUT", "/v1/secrets/alice/KEY", headers, body.as_bytes())
    };
    assert_eq!(put(&[("If-Match", "\"1\"")], "three").status, 412);
    assert_eq!(put(&[("If-None-Match", "*")], "three").status, 412);
    for wrong in ["3", "W/\"2\"", "\"2\", \"3\"", "*", "\"0\"", "\"-2\"", "\"+2\"", "\"\""] {
        assert_eq!(put(&[("If-Match", wrong)], "three").status, 400, "{wrong}");
    }
    assert_eq!(put(&[("If-Match", "\"2\""), ("If-None-Match", "*")], "three").status, 400);
    assert_eq!(daemon.value("alice", "KEY").unwrap(), b"two");
    let set = put(&[("If-Match", "\"2\"")], "three");
    assert_eq!((set.status, set.headers["etag"].as_str()), (200, "\"3\""));
    let output = site.cli(["secrets", "set", "alice", "KEY", "--cas", "1"], b"four");
    assert_eq!(output.status.code(), Some(6), "{output:?}");
}

fn a_batch_is_set_whole_or_not_at_all_and_read_at_once(site: &Site) {
    let daemon = site.start();
    let set = |body: &str| daemon.request("POST", "/v1/secrets/alice/batch-set", body.as_bytes());
    let answer = set(r#"{"secrets":[{"name":"B","value":"bee"},{"name":"A","value_base64":"/wA="}]}"#);
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()["results"][1]["secret"]["name"], "A");

    let failed = set(r#"{"secrets":[{"name":"C","value":"sea"},{"name":"A","value":"x","cas":7}]}"#);
    assert_eq!(failed.status, 412, "{failed:?}");
    assert_eq!(failed.problem(), "A: the current version is 1");
    assert_eq!(daemon.get("/v1/secrets/alice/C").status, 404, "nothing of a refused batch is there");
    let body = br#"{"secrets":[{"name":"C","value":"sea"},{"name":"A","value":"x","cas":7}]}"#;
    let failed = daemon.request("POST", "/v1/secrets/newcomer/batch-set", body);
    assert_eq!((failed.status, failed.problem().as_str()), (412, "A: the secret does not exist"));
    assert_eq!(daemon.get("/v1/secrets/newcomer").status, 404, "no tenant of it either");
    let body = br#"{"secrets":[{"name":"C","value":"sea"},{"name":"A","value":"x","cas":0}]}"#;
    assert_eq!(daemon.request("POST", "/v1/secrets/newcomer/batch-set", body).status, 200);
    for (wrong, said) in [
        ("", "secrets takes 1 to 1000"),
        (r#"{"name":"D","value":"1"},{"name":"D","value":"2"}"#, "D is named twice"),
        (r#"{"name":"D","value":"1"},{"name":"my-key","value":"2"}"#, "secrets[1]: a secret's name is 1 to 128"),
        (r#"{"name":"D"}"#, "secrets[0], D: give the value as `value` (UTF-8) or as `value_base64`"),
        (
            r#"{"name":"E","value":"1"},{"name":"F","value":"1"},{"name":"D","value":"1","value_base64":"MQ=="}"#,
            "secrets[2], D: give `value` or `value_base64`, not both",
        ),
        (r#"{"name":"D","value":"1","delivery":"mail"}"#, "secrets[0], D: delivery is env, file or compose"),
        (r#"{"name":"D","value":"1","cas":18446744073709551615}"#, "secrets[0], D: a version is a number from 1"),
        (r#"{"name":"my-key","delivery":"mail"}"#, "secrets[0]: a secret's name is 1 to 128"),
    ] {
        let answer = set(&format!(r#"{{"secrets":[{wrong}]}}"#));
        assert_eq!(answer.status, 400, "{wrong}");
        assert!(answer.problem().starts_with(said), "{said}: {answer:?}");
    }
    assert_eq!(daemon.get("/v1/secrets/alice/D").status, 404);

    let all = daemon.request("POST", "/v1/secrets/alice/batch-get", b"").json();
    let names: Vec<&str> =
        all["secrets"].as_array().unwrap().iter().map(|s| s["secret"]["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["A", "B"]);
    assert_eq!(all["secrets"][0]["value_base64"], "/wA=");
    let some = daemon.request("POST", "/v1/secrets/alice/batch-get", br#"{"names":["B","MISSING"]}"#).json();
    assert_eq!(some["secrets"][0]["value"], "bee");
    assert_eq!(some["missing"], serde_json::json!(["MISSING"]));
    assert_eq!(daemon.request("POST", "/v1/secrets/nobody/batch-get", b"").status, 404);
    assert_eq!(daemon.request("POST", "/v1/secrets/nobody/batch-get", br#"{"names":["B"]}"#).status, 404);
}

fn tenants_and_secrets_are_listed_page_by_page(site: &Site) {
    let daemon = site.start();
    for name in ["A", "B", "C", "D", "E"] {
        daemon.set("alice", name, b"x");
    }
    daemon.set("bob", "A", b"x");
    let mut seen = Vec::new();
    let mut token = String::new();
    loop {
        let page = daemon.get(&format!("/v1/secrets/alice?pageSize=2&pageToken={token}")).json();
        seen.extend(page["secrets"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap().to_owned()));
        match page.get("nextPageToken") {
            Some(next) => next.as_str().unwrap().clone_into(&mut token),
            None => break,
        }
    }
    assert_eq!(seen, ["A", "B", "C", "D", "E"]);
    assert_eq!(daemon.get("/v1/secrets/alice?pageToken=%21").status, 400);
    assert_eq!(daemon.get("/v1/secrets/alice?pagesize=2").status, 400, "an unknown key of the query is an error");
    assert_eq!(daemon.get("/v1/secrets/nobody").problem(), "the tenant is unknown");
    let tenants = daemon.get("/v1/admin/tenants").json();
    let shown: Vec<(&str, u64)> = tenants["tenants"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| (t["username"].as_str().unwrap(), t["secrets"].as_u64().unwrap()))
        .collect();
    assert_eq!(shown, [("alice", 5), ("bob", 1)], "the system's own tenant is not shown");
    let output = site.cli(["secrets", "list", "alice", "-o", "json"], b"");
    assert!(output.status.success());
    assert!(String::from_utf8(output.stdout).unwrap().contains("\"E\""));
}

fn concurrent_first_writes_of_a_tenant_make_one_dek(site: &Site) {
    let daemon = site.start();
    std::thread::scope(|scope| {
        for number in 0..16 {
            let daemon = &daemon;
            scope.spawn(move || {
                let answer = daemon.set("fresh", &format!("KEY_{number}"), b"value");
                assert_eq!(answer.status, 200, "{answer:?}");
            });
        }
    });
    let status = daemon.get("/v1/admin/status").json();
    assert_eq!(status["counts"]["deks"]["active"], 2, "one, and the system's: {status}");
    assert_eq!(status["counts"]["secrets"], 16);
}

fn every_route_shows_the_same_metadata_after_a_change_of_the_delivery_alone(site: &Site) {
    let daemon = site.start();
    let put = |value: &str, delivery: &str| {
        let body = serde_json::json!({ "value": value, "delivery": delivery }).to_string();
        daemon.request("PUT", "/v1/secrets/alice/KEY", body.as_bytes()).json()["secret"].clone()
    };
    put("old", "env");
    put("value", "env");
    // The stores' clocks may not tell two calls apart.
    site.run_sql("UPDATE secret_versions SET created_at = version");
    let changed = put("value", "file");
    assert_eq!((&changed["version"], &changed["delivery"]), (&2.into(), &"file".into()));
    assert_eq!(daemon.get("/v1/secrets/alice/KEY").json()["secret"], changed);
    assert_eq!(daemon.get("/v1/secrets/alice/KEY?version=2").json()["secret"], changed);
    assert_eq!(daemon.get("/v1/secrets/alice").json()["secrets"][0], changed);
    let batch = daemon.request("POST", "/v1/secrets/alice/batch-get", b"").json();
    assert_eq!(batch["secrets"][0]["secret"], changed);
    assert_eq!(daemon.get("/v1/secrets/alice/KEY/versions").json()["secret"], changed);
    let old = daemon.get("/v1/secrets/alice/KEY?version=1").json();
    assert_eq!(old["secret"]["updatedAt"], "1970-01-01T00:00:00.000001Z", "an old version keeps its own time");
}
