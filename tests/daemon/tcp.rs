//! TCP, with and without TLS: what is there, who is served, and how much one may have.

mod floods;
mod tls;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;

use crate::support::site::{Answer, Daemon, PATIENCE, Site};

/// A daemon on TCP too, on a port that the kernel chose.
pub(super) struct Served {
    pub(super) daemon: Daemon,
    pub(super) site: Site,
}

pub(super) fn serve(config: &str, flags: &[&str]) -> Served {
    let site = Site::sqlite();
    std::fs::write(site.path("config.toml"), config).unwrap();
    let daemon = site.start_with(command(&site, flags));
    Served { daemon, site }
}

pub(super) fn command(site: &Site, flags: &[&str]) -> Command {
    let mut command = site.command(["daemon", "--listen", "127.0.0.1:0"]);
    command.args(flags);
    command
}

impl Served {
    /// Where it said that it listens, for this purpose.
    pub(super) fn address(&self, after: &str) -> String {
        let log = self.site.log();
        let line = |line: &&str| line.contains("listening on http") && line.ends_with(after);
        let line = log.lines().rev().find(|l| line(l) && (!after.is_empty() || !l.contains(" for metrics"))).unwrap();
        line.split("://").nth(1).unwrap().split(' ').next().unwrap().to_owned()
    }

    pub(super) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address("")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    pub(super) fn get(&self, path: &str, headers: &str) -> Answer {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n");
        Answer::parse(&exchange(self.connect(), request.as_bytes()))
    }

    /// The metric of this limit.
    pub(super) fn turned_away(&self, by: &str) -> u64 {
        let metrics = String::from_utf8(self.daemon.get("/metrics").body).unwrap();
        let name = format!("containarium_turned_away_total{{by=\"{by}\"}} ");
        metrics.lines().find_map(|line| line.strip_prefix(&name)).map_or(0, |count| count.parse().unwrap())
    }
}

pub(super) fn exchange(mut stream: impl Read + Write, request: &[u8]) -> Vec<u8> {
    let _closed = stream.write_all(request);
    let mut answer = Vec::new();
    let _reset = stream.read_to_end(&mut answer);
    answer
}

#[test]
fn administration_is_not_there_over_tcp_whatever_the_token_and_secrets_need_a_caller() {
    let served = serve("", &[]);
    let tokens = [
        "",
        "Authorization: Bearer x\r\n",
        "Authorization: Bearer ctn_0123_456789\r\n",
        "Authorization: Basic eDp5\r\n",
    ];
    let source = include_str!("../../src/http.rs");
    let admin: Vec<&str> = source.split('"').filter(|text| text.starts_with("/v1/admin/")).collect();
    assert!(admin.len() > 10);
    for token in tokens {
        for path in admin.iter().copied().chain(["/metrics", "/openapi.json", "/nothing"]) {
            let answer = served.get(path, token);
            assert_eq!(answer.status, 404, "{path}: {answer:?}");
            assert!(answer.problem().contains("socket only"), "{answer:?}");
        }
        assert_eq!(served.get("/v1/secrets/alice/KEY", token).status, 401);
    }
    assert_eq!(served.get("/livez", "").status, 200);
    assert_eq!(served.daemon.get("/v1/admin/status").status, 200, "it is on the socket");
}

#[test]
fn metrics_have_an_address_of_their_own_with_nothing_else_on_it() {
    let served = serve("", &["--metrics-listen", "127.0.0.1:0"]);
    let ask = |path: &str| {
        let stream = TcpStream::connect(served.address(" for metrics and health")).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        Answer::parse(&exchange(stream, request.as_bytes()))
    };
    let metrics = ask("/metrics");
    assert!(metrics.status == 200 && String::from_utf8_lossy(&metrics.body).contains("containarium_build_info"));
    for path in ["/livez", "/readyz"] {
        assert_eq!(ask(path).status, 200, "{path}");
    }
    for path in ["/v1/secrets/alice/KEY", "/v1/admin/status", "/openapi.json"] {
        assert_eq!(ask(path).status, 404, "{path}");
    }
}

#[test]
fn why_it_is_not_ready_is_for_the_socket_only() {
    let served = serve("", &[]);
    let audit = served.site.data_dir().join("audit.jsonl");
    drop(std::fs::remove_file(&audit));
    std::fs::create_dir(&audit).unwrap();
    served.daemon.get("/v1/secrets/alice/KEY");
    let there = served.get("/readyz", "");
    assert_eq!((there.status, there.json().get("waitingFor")), (503, None), "{there:?}");
    let here = served.daemon.get("/readyz");
    assert!(here.json()["waitingFor"][0].as_str().unwrap().starts_with("audit"), "{here:?}");
}

#[test]
fn plain_http_is_for_this_host_unless_it_is_asked_for_elsewhere() {
    let site = Site::sqlite();
    for flags in [["--listen", "0.0.0.0:0"], ["--metrics-listen", "[::]:0"]] {
        let mut command = site.command(["daemon"]);
        command.args(flags);
        let ended = command.output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(ended.status.code() == Some(2) && said.contains("--allow-plain-http"), "{flags:?}: {said}");
        let checked = site.cli(["config", "check"].into_iter().chain(flags), b"");
        assert_eq!(checked.status.code(), Some(2), "{checked:?}");
    }
    assert!(!site.data_dir().exists(), "nothing was made for a daemon that cannot be");
    let mut command = site.command(["daemon", "--allow-plain-http"]);
    command.args(["--listen", "0.0.0.0:0"]);
    assert!(site.start_with(command).stop().success());
}

#[test]
fn a_port_that_is_taken_is_named_at_the_start_and_by_config_check_but_not_against_the_daemon_that_has_it() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let site = Site::sqlite();
    let flags = ["--listen", address.as_str()];
    let mut command = site.command(["daemon"]);
    command.args(flags);
    let (code, said) = site.refused_with(command);
    assert!(code == Some(6) && said.contains(&format!("another process listens on {address}")), "{said}");
    assert!(!site.key_file().exists(), "no key was made for it");
    let check = || site.cli(["config", "check"].into_iter().chain(flags), b"");
    let checked = check();
    assert!(String::from_utf8_lossy(&checked.stderr).contains("another process listens on"), "{checked:?}");
    drop(taken);
    assert!(check().status.success());
    let mut command = site.command(["daemon"]);
    command.args(flags);
    let _daemon = site.start_with(command);
    assert!(check().status.success(), "the daemon has it");
}

#[test]
fn an_address_that_asks_too_often_is_told_when_to_come_back_and_leaves_no_record_and_the_socket_goes_on() {
    let served = serve("[limits]\nrequests_per_address = 3\n", &[]);
    let answers: Vec<Answer> = (0..10).map(|_| served.get("/livez", "")).collect();
    let refused = answers.iter().find(|answer| answer.status == 429).unwrap();
    assert_eq!(refused.headers["retry-after"], "1");
    assert!(refused.problem().contains("this address"), "{refused:?}");
    assert_eq!(refused.json()["code"], 8);
    assert!(served.turned_away("address") > 0);
    for _ in 0..100 {
        assert_eq!(served.daemon.get("/livez").status, 200);
    }
    assert!(
        !std::fs::read_to_string(served.site.data_dir().join("audit.jsonl")).unwrap_or_default().contains("unknown")
    );
}

#[test]
fn an_identity_without_rights_is_limited_on_the_socket_and_root_is_not() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can become another user");
        return;
    }
    let served = serve("[limits]\nrequests_per_identity = 2\n", &[]);
    for path in [served.site.path(""), served.site.socket()] {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    }
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let nobody = rustix::thread::Uid::from_raw(65_534);
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            (0..10).map(|_| served.daemon.get("/v1/secrets/alice").status).collect()
        });
        asking.join().unwrap()
    });
    assert!(statuses[..2] == [403, 403] && statuses.contains(&429), "{statuses:?}");
    assert!(served.turned_away("identity") > 0);
    for _ in 0..50 {
        assert_eq!(served.daemon.get("/v1/secrets/alice").status, 404, "an administrator is not limited");
    }
}
