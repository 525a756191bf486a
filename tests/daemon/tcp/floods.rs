//! Who is slow, endless or many: they are cut off, cost little, and a good client is served meanwhile.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use super::{Served, exchange, serve};
use crate::support::site::{Answer, PATIENCE};

/// How much the daemon may grow under any of these. A connection costs some KiB, and a body at most 400 KiB.
const CEILING_KIB: u64 = 128 * 1024;

fn resident_kib(served: &Served) -> u64 {
    let pid = served.daemon.pid().as_raw_nonzero();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn open(served: &Served, many: usize, sent: &[u8]) -> Vec<TcpStream> {
    let mut streams: Vec<TcpStream> = (0..many).map(|_| served.connect()).collect();
    for stream in &mut streams {
        stream.write_all(sent).unwrap();
    }
    streams
}

/// What each of them was answered until it was closed.
fn closed(streams: Vec<TcpStream>) -> Vec<Vec<u8>> {
    let read = |mut stream: TcpStream| {
        let mut answer = Vec::new();
        let _reset = stream.read_to_end(&mut answer);
        answer
    };
    streams.into_iter().map(read).collect()
}

#[test]
fn heads_that_never_end_and_hellos_that_never_come_are_closed_while_a_good_client_is_served() {
    let served = serve("[limits]\nheader_time = \"2s\"\n", &[]);
    let before = resident_kib(&served);
    let slow = open(&served, 200, b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Slow: ");
    for _ in 0..20 {
        assert_eq!(served.get("/livez", "").status, 200);
    }
    assert!(resident_kib(&served) < before + CEILING_KIB);
    for answer in closed(slow) {
        assert!(!String::from_utf8_lossy(&answer).contains(" 200 "));
    }
}

/// Over the socket, since a body is read of a caller with rights only.
#[test]
fn a_body_that_drips_is_given_up_in_time_while_a_good_client_is_served() {
    let served = serve("[limits]\nbody_time = \"1s\"\n", &[]);
    let before = resident_kib(&served);
    let head = b"POST /v1/secrets HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 400000\r\n\r\n{";
    let mut slow: Vec<_> = (0..100).map(|_| served.daemon.connect()).collect();
    for stream in &mut slow {
        stream.write_all(head).unwrap();
    }
    assert_eq!(served.daemon.set("alice", "KEY", b"value").status, 200);
    assert!(resident_kib(&served) < before + CEILING_KIB);
    let begun = Instant::now();
    for mut stream in slow {
        let mut answer = Vec::new();
        let _reset = stream.read_to_end(&mut answer);
        let answer = Answer::parse(&answer);
        assert_eq!((answer.status, answer.problem().as_str()), (408, "the body did not arrive within 1 s"));
    }
    assert!(begun.elapsed() < PATIENCE);
}

#[test]
fn a_stranger_is_refused_before_a_byte_of_an_endless_body_is_read() {
    let served = serve("", &[]);
    let before = resident_kib(&served);
    let one = || {
        let mut stream = served.connect();
        stream.write_all(b"POST /v1/secrets HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
        let chunk = format!("{:x}\r\n{}\r\n", 65_536, " ".repeat(65_536));
        while stream.write_all(chunk.as_bytes()).is_ok() {}
        let mut answer = Vec::new();
        let _reset = stream.read_to_end(&mut answer);
        let text = String::from_utf8_lossy(&answer).into_owned();
        assert!(text.is_empty() || text.starts_with("HTTP/1.1 401"), "{text}");
    };
    // Together: the answers of a second's strangers wait for the record that counts them.
    std::thread::scope(|scope| (0..50).for_each(|_| drop(scope.spawn(one))));
    assert!(resident_kib(&served) < before + CEILING_KIB);
    assert_eq!(served.get("/livez", "").status, 200);
}

#[test]
fn chunk_extensions_without_end_are_cut_off() {
    let served = serve("", &[]);
    let before = resident_kib(&served);
    let mut stream = served.daemon.connect();
    stream.write_all(b"POST /v1/secrets HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;").unwrap();
    let extension = vec![b'x'; 65_536];
    let sent = (0..1024).take_while(|_| stream.write_all(&extension).is_ok()).count();
    assert!(sent < 1024, "64 MiB of it were taken");
    assert!(resident_kib(&served) < before + CEILING_KIB);
    assert_eq!(served.daemon.get("/livez").status, 200);
}

#[test]
fn json_that_nests_without_end_is_refused() {
    let served = serve("", &[]);
    for (open, status) in [("[", 400), (r#"{"x":"#, 400)] {
        let body = open.repeat(400_000 / open.len());
        assert_eq!(served.daemon.request("POST", "/v1/secrets", body.as_bytes()).status, status);
    }
    assert_eq!(served.daemon.get("/livez").status, 200);
}

#[test]
fn an_address_has_so_many_connections_and_no_more_and_gets_them_back() {
    let served = serve("[limits]\nconnections_per_address = 4\n", &[]);
    let held = open(&served, 4, b"GET /livez HTTP/1.1\r\n");
    assert!(exchange(served.connect(), b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").is_empty(), "closed unheard");
    assert_eq!(served.turned_away("connections"), 1);
    drop(held);
    let begun = Instant::now();
    while exchange(served.connect(), b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").is_empty() {
        assert!(begun.elapsed() < PATIENCE);
    }
}

#[test]
fn strangers_who_hold_every_connection_of_tcp_do_not_keep_the_operator_from_the_socket() {
    let served = serve("[limits]\nconnections = 8\n", &[]);
    let _held = open(&served, 16, b"GET /livez HTTP/1.1\r\n");
    assert_eq!(served.daemon.get("/v1/admin/status").status, 200);
}
