#![expect(clippy::disallowed_methods, reason = "a deadline is measured with a clock that nobody sets")]

use std::time::Instant;

use super::*;

const KEY: [u8; 32] = *b"a canary that must stay unheard!";

async fn with_a_version() -> Google {
    let google = Google::start().await;
    google.add(SECRET, &KEY).await;
    google
}

#[tokio::test]
async fn what_passes_is_tried_again() {
    let faults = ["429", "500", "502", "503", "504", "cut", "truncated", "flipped-bit", "no-checksum", "slow", "drip"];
    for fault in faults {
        let google = with_a_version().await;
        google.fault_once(fault, "access").await;
        let limits = Limits { deadline: Duration::from_secs(10), attempt: Duration::from_millis(300) };
        let read = client_at(&google.url("restore"), limits).access(&secret(), number(1)).await;
        assert_eq!(read.map(|image| bytes(&image)), Ok(KEY.to_vec()), "{fault}");
        assert_eq!(google.requests("access").await.len(), 2, "{fault}");
    }
}

#[tokio::test]
async fn what_does_not_pass_has_a_message_of_its_own() {
    for fault in [
        "401",
        "403",
        "404",
        "418",
        "429",
        "500",
        "503",
        "cut",
        "truncated",
        "flipped-bit",
        "no-checksum",
        "slow",
        "drip",
        "oversized",
        "redirect",
        "garbage",
        "other-version",
        "echo",
    ] {
        let google = with_a_version().await;
        google.fault(fault, "access").await;
        let said = error(hasty(&google, "restore").access(&secret(), number(1)).await);
        let as_expected = match fault {
            "401" => matches!(said, GcpError::CredentialsRefused { .. }),
            "403" => matches!(said, GcpError::Denied { .. }),
            "404" => matches!(said, GcpError::NoSuchVersion { .. }),
            "418" => matches!(said, GcpError::Refused { status: 418, .. }),
            "429" => matches!(said, GcpError::QuotaExceeded { .. }),
            "500" => matches!(said, GcpError::Unavailable { status: 500, .. }),
            "503" => matches!(said, GcpError::Unavailable { status: 503, .. }),
            "cut" | "truncated" => matches!(said, GcpError::Interrupted { .. }),
            "flipped-bit" => matches!(said, GcpError::BadChecksum { expected: Some(_), .. }),
            "no-checksum" => matches!(said, GcpError::BadChecksum { expected: None, .. }),
            "slow" | "drip" => matches!(said, GcpError::Deadline { limit: SHORT, .. }),
            "oversized" => matches!(said, GcpError::AnswerTooLong { .. }),
            "redirect" => matches!(said, GcpError::Redirected { status: 307, .. }),
            "garbage" | "other-version" => matches!(said, GcpError::NotUnderstood { .. }),
            "echo" => matches!(said, GcpError::Refused { status: 400, .. }),
            _ => false,
        };
        assert!(as_expected, "{fault}: {said:?}");
        assert!(said.to_string().starts_with(&format!("reading {SECRET}/versions/1 ")), "{said}");
    }
}

#[tokio::test]
async fn no_call_takes_longer_than_its_deadline() {
    let google = with_a_version().await;
    for fault in ["slow", "drip", "503"] {
        google.heal().await;
        for operation in ["add", "list", "access", "get"] {
            google.fault(fault, operation).await;
        }
        let (client, secret, key) = (hasty(&google, "owner"), secret(), image(&KEY));
        let started = Instant::now();
        let four = tokio::join!(
            client.add(&secret, &key),
            client.list(&secret),
            client.access(&secret, number(1)),
            client.secret(&secret)
        );
        let took = started.elapsed();
        assert!(four.0.is_err() && four.1.is_err() && four.2.is_err() && four.3.is_err(), "{fault}");
        assert!(took < SHORT + Duration::from_millis(500), "{fault}: {took:?}");
    }
}

#[tokio::test]
async fn a_list_has_one_deadline_for_all_its_pages() {
    let google = Google::start().await;
    for _ in 0..501 {
        google.add(SECRET, &KEY).await;
    }
    // Each page fails once and is waited for; together they take longer than the call may.
    google.fault("slow", "list").await;
    let started = Instant::now();
    error(hasty(&google, "daemon").list(&secret()).await);
    assert!(started.elapsed() < SHORT + Duration::from_millis(500));
}

#[tokio::test]
async fn nobody_there_is_told_as_such() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let client = client_at(&format!("http://{free}"), Limits::within(SHORT));
    let said = error(client.list(&secret()).await);
    assert!(matches!(said, GcpError::Unreachable { .. }), "{said:?}");
    assert!(said.to_string().contains(&free.to_string()) && said.to_string().contains("refused"), "{said}");
}

#[tokio::test]
async fn an_endless_answer_is_left_after_a_mebibyte() {
    let google = with_a_version().await;
    google.fault("oversized", "access").await;
    let said = error(client(&google, "restore").access(&secret(), number(1)).await);
    assert!(matches!(said, GcpError::AnswerTooLong { limit: 1_048_576, .. }), "{said:?}");
    let requests = google.requests("access").await;
    assert_eq!(requests.len(), 1, "not asked again");
    // What lies in the sockets' buffers was sent and not read.
    let sent = requests[0]["sentBytes"].as_u64().unwrap();
    assert!(sent < 16 << 20, "{sent} bytes were taken");
}

#[tokio::test]
async fn a_redirect_is_not_followed_neither_with_a_key_nor_for_one() {
    let google = with_a_version().await;
    for operation in ["add", "access"] {
        google.fault_once("redirect", operation).await;
    }
    let owner = client(&google, "owner");
    assert!(matches!(error(owner.add(&secret(), &image(&KEY)).await), GcpError::Redirected { .. }));
    assert!(matches!(error(owner.access(&secret(), number(1)).await), GcpError::Redirected { .. }));
    // The one with which the test began is the first.
    assert_eq!((google.requests("add").await.len(), google.requests("access").await.len()), (2, 1));
}

#[tokio::test]
async fn after_a_lost_answer_the_key_is_added_again_and_the_stray_is_harmless() {
    let google = Google::start().await;
    google.fault_once("lost-answer", "add").await;
    let daemon = client(&google, "daemon");
    assert_eq!(daemon.add(&secret(), &image(&KEY)).await.unwrap(), number(2));
    let versions = daemon.list(&secret()).await.unwrap();
    assert_eq!(versions.len(), 2);
}

#[tokio::test]
async fn an_unconfirmed_version_is_no_copy() {
    let google = Google::start().await;
    google.fault("unconfirmed", "add").await;
    let said = error(client(&google, "daemon").add(&secret(), &image(&KEY)).await);
    assert!(matches!(said, GcpError::NotConfirmed { number: n, .. } if n == number(1)), "{said:?}");
}

#[tokio::test]
async fn pages_that_do_not_end_are_left() {
    let google = with_a_version().await;
    google.add(SECRET, &KEY).await;
    for fault in ["same-page", "endless-pages"] {
        google.heal().await;
        google.fault(fault, "list").await;
        let said = error(client(&google, "daemon").list(&secret()).await);
        assert!(matches!(said, GcpError::NotUnderstood { .. }), "{fault}: {said:?}");
    }
    assert!(google.requests("list").await.len() < 110);
}

/// A server that refuses a request may quote it, and Google's does so for what it cannot decode.
#[tokio::test]
async fn no_error_repeats_what_was_sent() {
    let google = Google::start().await;
    google.fault("echo", "add").await;
    let said = error(client(&google, "daemon").add(&secret(), &image(&KEY)).await);
    let text = format!("{said} {said:?}");
    assert!(matches!(said, GcpError::Refused { status: 400, .. }), "{text}");
    for form in ["canary", &data_encoding::BASE64.encode(&KEY[..30]), "Invalid value"] {
        assert!(!text.contains(form), "{text}");
    }
}
