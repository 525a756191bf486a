//! The real binary, for all that needs no daemon, and against sockets where something else answers.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;

use tempfile::TempDir;

/// A home of its own, and nothing of the tester's environment.
struct Home(TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> String {
        fs::write(self.path(name), text).unwrap();
        self.path(name).to_string_lossy().into_owned()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_containarium"));
        command.env_clear().env("HOME", self.0.path()).current_dir(self.0.path()).args(arguments);
        // Root's defaults are the host's: the tests name a socket that nobody serves, unless they name another.
        command.env("CONTAINARIUM_SOCKET", self.path("nobody.sock"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, arguments: &[&str]) -> Done {
        Done::of(&self.command(arguments).output().unwrap())
    }

    fn run_with_input(&self, arguments: &[&str], input: &[u8]) -> Done {
        let mut child = self.command(arguments).stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // A command that has read enough may be gone.
        let _ = stdin.write_all(input);
        drop(stdin);
        Done::of(&child.wait_with_output().unwrap())
    }
}

#[derive(Debug)]
struct Done {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Done {
    fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }

    #[track_caller]
    fn fails(&self, code: i32, says: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert_eq!(self.stdout, "", "results alone go to standard output");
        for words in says {
            assert!(self.stderr.contains(words), "{words} is not in {}", self.stderr);
        }
    }

    #[track_caller]
    fn prints(&self) -> &str {
        assert_eq!((self.code, self.stderr.as_str()), (Some(0), ""), "{self:?}");
        &self.stdout
    }
}

/// Compares with a file in tests/snapshots; with UPDATE_SNAPSHOTS set it writes the file, and git shows the difference. A crate for
/// this would bring more than these lines.
#[track_caller]
#[expect(clippy::disallowed_methods, reason = "a switch for whoever runs the tests, not an input of the product")]
fn is_snapshot(name: &str, text: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots").join(name);
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, text).unwrap();
    }
    let expected = fs::read_to_string(&file).unwrap_or_default();
    assert!(expected == text, "{name} differs (UPDATE_SNAPSHOTS=1 writes it anew); it is now:\n{text}");
}

const COMMANDS: &[&str] = &[
    "",
    "daemon",
    "secrets",
    "secrets set",
    "secrets get",
    "secrets list",
    "secrets delete",
    "secrets undelete",
    "secrets versions",
    "secrets rollback",
    "secrets destroy",
    "admin",
    "admin tenants",
    "admin status",
    "admin rotate-dek",
    "admin rotate-master",
    "admin shred",
    "admin quarantine",
    "admin nodes",
    "admin token",
    "admin token create",
    "admin token list",
    "admin token revoke",
    "admin nodes forget",
    "admin install-key",
    "admin accept-restore",
    "admin doctor",
    "backup",
    "backup push",
    "backup list",
    "backup verify",
    "backup restore",
    "backup export",
    "backup database",
    "backup drill",
    "audit",
    "audit tail",
    "audit search",
    "audit verify",
    "kms",
    "kms wrap",
    "kms unwrap",
    "kms rewrap",
    "kms status",
    "config",
    "config show",
    "config check",
    "completions",
    "man",
];

#[test]
fn the_help_of_each_command_is_as_agreed() {
    let home = Home::new();
    for command in COMMANDS {
        let mut arguments: Vec<_> = command.split_whitespace().collect();
        arguments.push("--help");
        let done = home.run(&arguments);
        assert!(done.prints().contains("Examples:"), "{command} has no example");
        let name = if command.is_empty() { "containarium".to_owned() } else { command.replace(' ', "-") };
        is_snapshot(&format!("help/{name}.txt"), &done.stdout);
    }
}

#[test]
fn every_command_has_a_snapshot_of_its_help() {
    let home = Home::new();
    home.run(&["man", "--dir", "man"]).prints();
    let mut pages: Vec<_> =
        fs::read_dir(home.path("man")).unwrap().map(|page| page.unwrap().file_name().into_string().unwrap()).collect();
    pages.sort();
    let mut expected: Vec<_> = COMMANDS.iter().map(|command| format!("containarium {command}")).collect();
    for page in &mut expected {
        *page = format!("{}.1", page.trim_end().replace(' ', "-"));
    }
    expected.sort();
    assert_eq!(pages, expected);
}

#[test]
fn help_is_plain_text_where_no_terminal_reads_it() {
    assert!(!Home::new().run(&["--help"]).prints().contains('\u{1b}'));
    assert!(!Home::new().run(&["secrets", "gte"]).stderr.contains('\u{1b}'));
}

#[test]
fn the_version_is_the_packages() {
    assert_eq!(Home::new().run(&["--version"]).prints(), format!("containarium {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn each_shell_gets_a_completion_script_that_knows_the_commands() {
    let home = Home::new();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let done = home.run(&["completions", shell]);
        assert!(["rollback", "trim-newline"].iter().all(|word| done.prints().contains(word)), "{shell}");
    }
    let script = home.write("containarium.bash", &home.run(&["completions", "bash"]).stdout);
    let bash = Command::new("bash").arg("-n").arg(script).output().unwrap();
    assert!(bash.status.success(), "{bash:?}");
}

#[test]
fn the_manual_is_roff() {
    let home = Home::new();
    let done = home.run(&["man"]);
    assert!(done.prints().contains(".TH containarium 1"), "{}", done.stdout);
    fs::write(home.path("file"), "").unwrap();
    home.run(&["man", "--dir", "file/man"]).fails(1, &["cannot write the manual pages to file/man", "help:"]);
}

#[test]
fn config_show_tells_each_value_and_its_origin() {
    let home = Home::new();
    let config = home.write("c.toml", "log_format = 'json'\n[secrets]\nkeep_versions = 3\n");
    let arguments = ["config", "show", "--config", &config, "--data-dir", "/d", "--key-file", "/k"];
    let mut command = home.command(&arguments);
    let command = command.env("CONTAINARIUM_SOCKET", "/s").env("CONTAINARIUM_DATABASE_URL", "postgres://u:canary@h/db");
    let done = Done::of(&command.output().unwrap());
    let shown = done.prints().replace(&config, "c.toml");
    assert_eq!(
        // The file's path widens its column.
        shown.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>(),
        [
            "SETTING VALUE ORIGIN",
            "config c.toml flag --config",
            "data_dir /d flag --data-dir",
            "key_file /k flag --key-file",
            "socket /s environment CONTAINARIUM_SOCKET",
            "listen - default",
            "metrics_listen - default",
            "tls_cert - default",
            "tls_key - default",
            "allow_plain_http false default",
            "database_url postgres://u:***@h/db environment CONTAINARIUM_DATABASE_URL",
            "database_url_file - default",
            "log_format json c.toml:1",
            "adopt_key false default",
            "secrets.keep_versions 3 c.toml:3",
            "cache.max_entries 100000 default",
            "cache.max_age 1h default",
            "keys.retain_old 35d default",
            "keys.age_identity - default",
            "backup.database_retention - default",
            "backup.gcp.secrets - default",
            "backup.gcp.endpoint - default",
            "backup.gcp.push_on_first_start false default",
            "audit.journal false default",
            "audit.sinks table, file default",
            "audit.retention 400d default",
            "socket_users - default",
            "oidc - default",
            "limits.connections 1024 default",
            "limits.connections_per_address 256 default",
            "limits.requests_per_identity 1000 default",
            "limits.requests_per_address 2000 default",
            "limits.header_time 1m default",
            "limits.body_time 30s default",
            "kms.gcp.key - default",
            "kms.gcp.endpoint - default",
        ]
    );
    let done = Done::of(&command.args(["-o", "json"]).output().unwrap());
    let json: serde_json::Value = serde_json::from_str(done.prints()).unwrap();
    assert_eq!(json["settings"][3]["value"], "/s");
    assert_eq!(json["settings"][9]["value"], "postgres://u:***@h/db");
    assert_eq!(json["settings"][10]["value"], serde_json::Value::Null);
    assert_eq!(json["settings"][11]["origin"], format!("{config}:1"));
}

#[test]
fn config_check_says_ok_or_every_error() {
    let home = Home::new();
    let good = home.write("good.toml", "[cache]\nmax_entries = 0\n");
    assert_eq!(home.run(&["config", "check", "--config", &good]).prints(), format!("ok: {good}\n"));
    let bad = home.write("bad.toml", "log_format = 'canary'\nlisten_on = 'canary'\n[cache]\nmax_age = 1\n");
    let done = home.run(&["config", "check", "--config", &bad]);
    let (first, second) =
        (format!("error: {bad}:2: unknown key `listen_on`"), format!("error: `log_format` ({bad}:1): it must be"));
    done.fails(2, &[&first, &second, &format!("error: {bad}:4: `cache.max_age` must be a string")]);
    assert!(!done.stderr.contains("canary"), "{}", done.stderr);
    let done = home.run(&["config", "check", "-o", "json", "--config", &bad]);
    let json: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(
        (done.code, json["ok"].as_bool(), json["errors"].as_array().map(Vec::len)),
        (Some(2), Some(false), Some(3))
    );
    home.run(&["config", "check", "--config", "nowhere"]).fails(2, &["nowhere (flag --config) is not there"]);
}

#[test]
fn the_daemon_refuses_bad_settings_before_it_does_anything() {
    let home = Home::new();
    let bad = home.write("bad.toml", "foo = 1\n");
    home.run(&["daemon", "--config", &bad, "--data-dir", "d", "--key-file", "k"])
        .fails(2, &["unknown key `foo`", "help:"]);
    assert!(!home.path("d").exists());
}

#[test]
fn without_a_daemon_each_client_command_says_how_to_start_it() {
    let home = Home::new();
    for command in [
        "secrets get alice KEY",
        "secrets set alice KEY canary",
        "secrets list alice",
        "secrets delete alice KEY",
        "secrets undelete alice KEY",
        "secrets versions alice KEY",
        "secrets rollback alice KEY 1",
        "secrets destroy alice KEY 1 --yes",
        "admin tenants",
        "admin status",
    ] {
        let done = home.run(&command.split(' ').collect::<Vec<_>>());
        let socket = home.path("nobody.sock");
        done.fails(5, &[&format!("no daemon listens on {}", socket.display()), "`containarium daemon`"]);
        assert!(!done.stderr.contains("canary"), "{}", done.stderr);
    }
}

#[test]
fn the_socket_is_found_in_the_configuration_file() {
    let home = Home::new();
    let config = home.write("c.toml", "socket = 'mine.sock'\n");
    let arguments = ["secrets", "list", "alice", "--config", &config];
    let done = Done::of(&home.command(&arguments).env_remove("CONTAINARIUM_SOCKET").output().unwrap());
    done.fails(5, &[&home.path("mine.sock").to_string_lossy()]);
}

#[test]
fn wrong_usage_exits_2_and_names_the_rule() {
    let home = Home::new();
    home.run(&["secrets", "get", "alice"]).fails(2, &["<NAME>"]);
    home.run(&["secrets", "get", "alice", "my-key"]).fails(2, &["a secret's name is 1 to 128 of A-Z"]);
    home.run(&["secrets", "get", "ALICE/../BOB", "KEY"]).fails(2, &["a tenant is 1 to 64 of a-z"]);
    home.run(&["secrets", "rotate"]).fails(2, &["unrecognized subcommand"]);
    home.run(&[]).fails(2, &["Usage: containarium"]);
    home.run(&["secrets"]).fails(2, &["Usage: containarium secrets"]);
}

#[test]
fn a_value_that_is_missing_or_too_long_is_refused_before_anything_is_sent() {
    let home = Home::new();
    let set = ["secrets", "set", "alice", "KEY"];
    home.run(&set).fails(2, &["the value is empty", "--allow-empty"]);
    home.run_with_input(&set, b"").fails(2, &["the value is empty"]);
    home.run_with_input(&set, &vec![b'a'; 65_537]).fails(2, &["more than 65536 bytes"]);
    home.run_with_input(&set, &vec![b'a'; 1_000_000]).fails(2, &["more than 65536 bytes"]);
    home.write("empty", "");
    home.run(&["secrets", "set", "alice", "KEY", "--from-file", "empty"]).fails(2, &["the value is empty"]);
    home.run(&["secrets", "set", "alice", "KEY", "--from-file", "nowhere"]).fails(2, &["cannot read nowhere"]);
    home.run(&["secrets", "set", "alice", "KEY", ""]).fails(2, &["the value is empty"]);
}

#[test]
fn destroying_without_a_terminal_needs_yes() {
    let home = Home::new();
    let done = home.run_with_input(&["secrets", "destroy", "alice", "KEY", "1", "2"], b"KEY\n");
    done.fails(2, &["destroy version 1, 2 of alice/KEY", "nothing was done", "--yes"]);
}

#[test]
fn a_reader_that_hangs_up_is_not_a_failure_and_a_full_disk_is() {
    let home = Home::new();
    let mut child = home.command(&["completions", "zsh"]).stdout(closed_pipe()).spawn().unwrap();
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!((child.wait().unwrap().code(), stderr.as_str()), (Some(0), ""));
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let done = Done::of(&home.command(&["man"]).stdout(full).output().unwrap());
    done.fails(1, &["cannot write to standard output: No space left"]);
}

/// A pipe that nobody reads.
fn closed_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

/// Something on a socket that answers one connection after another with these bytes; returns what it was asked.
fn answering(home: &Home, answers: Vec<String>) -> thread::JoinHandle<Vec<String>> {
    let listener = UnixListener::bind(home.path("nobody.sock")).unwrap();
    thread::spawn(move || {
        let one = |answer: String| {
            let (mut stream, _) = listener.accept().unwrap();
            let request = read_request(&mut stream);
            let length = answer.len();
            let _ = write!(stream, "HTTP/1.1 {}\r\ncontent-length: {length}\r\n\r\n{answer}", status_of(&answer));
            request.lines().next().unwrap_or_default().to_owned()
        };
        answers.into_iter().map(one).collect()
    })
}

/// The head; the body is read and dropped, since a socket closed with something unread is a reset for the other side.
fn read_request(stream: &mut UnixStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() > 0 {
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).unwrap();
    head
}

fn status_of(answer: &str) -> &'static str {
    if answer.contains("about:blank") { "404 Not Found" } else { "200 OK" }
}

fn list_page(names: &[&str], next: Option<&str>) -> String {
    let secret = |name: &&str| {
        serde_json::json!({"username": "alice", "name": name, "version": 1, "createdAt": "t1", "updatedAt": "t2",
            "delivery": "env", "deliveryMode": "SECRET_DELIVERY_ENV"})
    };
    let secrets: Vec<_> = names.iter().map(secret).collect();
    let mut page = serde_json::json!({"secrets": secrets});
    if let Some(next) = next {
        page["nextPageToken"] = next.into();
    }
    page.to_string()
}

#[test]
fn a_list_follows_its_pages_to_the_end() {
    let home = Home::new();
    let pages = || vec![list_page(&["A"], Some("t/1")), list_page(&["B"], Some("t2")), list_page(&["C"], None)];
    let server = answering(&home, pages());
    let done = home.run(&["secrets", "list", "alice"]);
    assert_eq!(
        server.join().unwrap(),
        [
            "GET /v1/secrets/alice HTTP/1.1",
            "GET /v1/secrets/alice?pageToken=t%2F1 HTTP/1.1",
            "GET /v1/secrets/alice?pageToken=t2 HTTP/1.1"
        ]
    );
    let names: Vec<_> = done.prints().lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(names, ["NAME", "A", "B", "C"]);

    fs::remove_file(home.path("nobody.sock")).unwrap();
    let server = answering(&home, pages());
    let done = home.run(&["secrets", "list", "alice", "-o", "json"]);
    server.join().unwrap();
    let json: serde_json::Value = serde_json::from_str(done.prints()).unwrap();
    assert_eq!(json["secrets"].as_array().unwrap().len(), 3);
    assert!(json.get("nextPageToken").is_none());
}

#[test]
fn pages_that_go_in_a_circle_are_a_failure_and_not_a_loop() {
    let home = Home::new();
    let server = answering(&home, vec![list_page(&["A"], Some("t")), list_page(&["A"], Some("t"))]);
    let done = home.run(&["secrets", "list", "alice", "-o", "json"]);
    server.join().unwrap();
    done.fails(1, &["the list is not complete"]);
}

#[test]
fn what_the_daemon_says_cannot_command_the_terminal() {
    let home = Home::new();
    let problem = serde_json::json!({"type": "about:blank", "title": "t", "status": 404, "detail": "no \u{1b}[2Jsuch\nsecret",
        "code": 5, "message": "m", "requestId": "r"});
    let server = answering(&home, vec![problem.to_string()]);
    let done = home.run(&["secrets", "get", "alice", "KEY"]);
    server.join().unwrap();
    done.fails(3, &["cannot get alice/KEY: no \\u{1b}[2Jsuch\\u{a}secret", "`containarium secrets list alice`"]);

    fs::remove_file(home.path("nobody.sock")).unwrap();
    let server = answering(&home, vec![list_page(&["A\u{1b}[2J"], None)]);
    let done = home.run(&["secrets", "list", "alice"]);
    server.join().unwrap();
    assert!(done.prints().contains("A\\u{1b}[2J"), "{}", done.stdout);
}

#[test]
fn a_value_on_the_command_line_is_taken_with_a_warning_that_does_not_repeat_it() {
    let home = Home::new();
    let secret = list_page(&["KEY"], None).replace("{\"secrets\":[", "").replace("]}", "");
    let server = answering(&home, vec![format!("{{\"message\":\"secret created\",\"secret\":{secret}}}")]);
    let done = home.run(&["secrets", "set", "alice", "KEY", "canary"]);
    server.join().unwrap();
    assert_eq!((done.code, done.stdout.as_str()), (Some(0), "alice/KEY: secret created\n"), "{done:?}");
    assert!(done.stderr.contains("warning: other users") && !done.stderr.contains("canary"), "{}", done.stderr);
}
