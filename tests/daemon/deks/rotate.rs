//! `rotate-dek`: a new DEK, and how its answer streams.

use serde_json::json;

use super::super::on_both_stores;
use super::{audited, dek_count, ended, following, lines, post, reencrypt, rotate_dek, rotated, row, sealed_under};
use crate::support::site::{Answer, Site};

on_both_stores![
    a_new_dek_seals_from_now_on_and_the_old_one_opens,
    all_tenants_get_a_new_dek_and_the_system_too,
    what_cannot_be_rotated_is_told,
    hanging_up_stops_nothing_and_another_can_follow,
    a_daemon_that_stops_ends_a_rotation_which_goes_on_later,
];

fn a_new_dek_seals_from_now_on_and_the_old_one_opens(site: &Site) {
    let daemon = site.start();
    daemon.set("alice", "KEY", b"one");
    let (out, err) = ended(&site.cli(["admin", "rotate-dek", "alice"], b""), 0);
    assert_eq!(row(&out, "new DEKs"), "1");
    assert!(err.contains("--reencrypt"), "{err}");
    daemon.set("alice", "KEY", b"two");
    assert_eq!((sealed_under(site, "alice", 1), sealed_under(site, "alice", 2)), (1, 1));
    assert_eq!(daemon.value("alice", "KEY").unwrap(), b"two");
    assert_eq!(daemon.get("/v1/secrets/alice/KEY?version=1").value(), b"one");
    assert_eq!(daemon.get("/v1/admin/tenants").json()["tenants"][0]["dekVersion"], 2);
    assert_eq!(daemon.set("alice", "KEY", b"two").json()["message"], "secret unchanged at version 2");
    assert_eq!(audited(site, "admin.rotate-dek"), ["alice ok"]);
    let (out, _) = ended(&site.cli(["admin", "rotate-dek", "alice", "-o", "json"], b""), 0);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&json["rotated"], &json["reencrypted"], &json["removed"]), (&json!(1), &json!(0), &json!(0)));
    assert_eq!((dek_count(site, "alice", "active"), dek_count(site, "alice", "decrypt_only")), (1, 2));
}

fn all_tenants_get_a_new_dek_and_the_system_too(site: &Site) {
    let daemon = site.start();
    for tenant in ["alice", "bob", "carol"] {
        daemon.set(tenant, "KEY", tenant.as_bytes());
    }
    daemon.request("POST", "/v1/admin/shred", br#"{"username":"carol"}"#);
    let done = rotated(&daemon, &json!({ "all": true, "mode": "reencrypt" }));
    let counts =
        ["tenants", "rotated", "reencrypted", "removed", "quarantined", "blocked"].map(|name| done[name].as_u64());
    assert_eq!(counts, [4, 3, 4, 3, 0, 1].map(Some), "{done}");
    for tenant in ["alice", "bob", "_system"] {
        assert_eq!((dek_count(site, tenant, "active"), dek_count(site, tenant, "decrypt_only")), (1, 0), "{tenant}");
        assert_eq!(sealed_under(site, tenant, 1), 0, "{tenant}");
    }
    assert_eq!(sealed_under(site, "_system", 2), 2, "TOKEN_MAC and AUDIT_CHAIN");
    assert_eq!(sealed_under(site, "carol", 1), 1, "a blocked tenant is passed over");
    assert_eq!(audited(site, "admin.rotate-dek"), ["_system ok", "alice ok", "bob ok", "carol denied"]);
    assert_eq!(daemon.stop().code(), Some(0));
    let daemon = site.start();
    for tenant in ["alice", "bob"] {
        assert_eq!(daemon.value(tenant, "KEY").unwrap(), tenant.as_bytes());
    }
    // What is sealed for the system opens: it could not be sealed anew otherwise.
    assert_eq!(rotated(&daemon, &reencrypt("_system"))["reencrypted"], 2);
}

fn what_cannot_be_rotated_is_told(site: &Site) {
    let daemon = site.start();
    daemon.set("alice", "KEY", b"one");
    for body in [json!({}), json!({ "all": true, "username": "alice" }), json!({ "username": "Alice" })] {
        assert_eq!(daemon.request("POST", "/v1/admin/rotate-dek", body.to_string().as_bytes()).status, 400, "{body}");
    }
    assert_eq!(daemon.get("/v1/admin/rotate-dek").status, 404, "there was none");
    let (status, lines) = rotate_dek(&daemon, &json!({ "username": "nobody" }));
    assert_eq!((status, lines.last().unwrap()["problem"]["status"].as_u64()), (200, Some(404)), "{lines:?}");
    assert_eq!(site.number("SELECT count(*) FROM tenants WHERE tenant = 'nobody'"), 0, "no tenant was made of it");
    let (_, err) = ended(&site.cli(["admin", "rotate-dek", "nobody"], b""), 3);
    assert!(err.contains("tenant nobody is unknown") && err.contains("admin tenants"), "{err}");
    daemon.request("POST", "/v1/admin/shred", br#"{"username":"alice"}"#);
    let (_, err) = ended(&site.cli(["admin", "rotate-dek", "alice", "--reencrypt"], b""), 4);
    assert!(err.contains("tenant alice is blocked"), "{err}");
    assert_eq!(dek_count(site, "alice", "active"), 1);
}

fn hanging_up_stops_nothing_and_another_can_follow(site: &Site) {
    let daemon = site.start();
    super::reencrypt::many(&daemon, "alice", 640);
    let mut first = following(&daemon, &post("/v1/admin/rotate-dek", &reencrypt("alice")));
    assert_eq!(first.next().unwrap()["event"], "progress");
    drop(first);
    let again = daemon.request("POST", "/v1/admin/rotate-dek", reencrypt("alice").to_string().as_bytes());
    assert_eq!(again.status, 409, "{}", again.problem());
    assert!(again.problem().contains("under way"));
    let (_, err) = ended(&site.cli(["admin", "rotate-dek", "alice"], b""), 6);
    assert!(err.contains("under way"), "{err}");
    let followed: Vec<_> = following(&daemon, b"GET /v1/admin/rotate-dek HTTP/1.0\r\n\r\n").collect();
    let last = followed.last().unwrap();
    assert_eq!((&last["event"], &last["reencrypted"]), (&json!("done"), &json!(640)), "{followed:?}");
    assert!(followed.iter().any(|line| line["done"].as_u64() > Some(0) && line["total"] == 640), "{followed:?}");
    let after = lines(&Answer::parse(&daemon.raw(b"GET /v1/admin/rotate-dek HTTP/1.0\r\n\r\n")));
    assert_eq!(after, std::slice::from_ref(last), "who comes late sees the end");
    assert_eq!((sealed_under(site, "alice", 1), sealed_under(site, "alice", 2)), (0, 640));
}

fn a_daemon_that_stops_ends_a_rotation_which_goes_on_later(site: &Site) {
    let daemon = site.start();
    super::reencrypt::many(&daemon, "alice", 640);
    let mut lines = following(&daemon, &post("/v1/admin/rotate-dek", &reencrypt("alice")));
    assert!(lines.any(|line| line["done"].as_u64() > Some(0)));
    let stopping = std::thread::spawn(move || daemon.stop());
    let last = lines.last().unwrap();
    assert_eq!((&last["event"], &last["problem"]["status"]), (&json!("failed"), &json!(503)), "{last}");
    assert_eq!(stopping.join().unwrap().code(), Some(0));
    let left = sealed_under(site, "alice", 1);
    assert!((1..640).contains(&left), "{left}");
    let daemon = site.start();
    let done = rotated(&daemon, &json!({ "username": "alice", "mode": "resume" }));
    assert_eq!((done["rotated"].as_u64(), done["reencrypted"].as_i64()), (Some(0), Some(left)), "{done}");
    assert_eq!((sealed_under(site, "alice", 2), dek_count(site, "alice", "decrypt_only")), (640, 0));
}
