//! A deployment of its own for each test: directories, key file, socket and database, and the real binary in them.
#![expect(
    clippy::disallowed_methods,
    clippy::zombie_processes,
    reason = "a test waits for another process by a clock that nobody sets, gives it a PATH, and its guard reaps it"
)]

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use containarium::store::{PostgresStore, SqliteStore, Store};
use serde_json::Value;

use super::stores::Database;
use super::stores::postgres::PostgresDatabase;
use super::stores::sqlite::File;

/// How long a test waits for what should take milliseconds.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// What a deployment consists of. Its files and its database go away with it.
pub(crate) struct Site {
    dir: tempfile::TempDir,
    postgres: Option<Arc<PostgresDatabase>>,
    /// A server of the test's own, instead.
    server_url: Option<String>,
}

impl Site {
    pub(crate) fn sqlite() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), postgres: None, server_url: None }
    }

    pub(crate) fn postgres() -> Self {
        Self::on_database(wait_for(PostgresDatabase::create()))
    }

    pub(crate) fn on_database(database: Arc<PostgresDatabase>) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), postgres: Some(database), server_url: None }
    }

    pub(crate) fn on_server(url: String) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), postgres: None, server_url: Some(url) }
    }

    /// Another node's place on the same PostgreSQL.
    pub(crate) fn sharing(&self) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), postgres: self.postgres.clone(), server_url: self.server_url.clone() }
    }

    /// The database's store, beside a daemon that may have it open.
    pub(crate) async fn store(&self) -> Arc<dyn Store> {
        match self.database_url() {
            Some(url) => Arc::new(PostgresStore::open(url).await.unwrap()),
            None => Arc::new(SqliteStore::open(&self.data_dir().join("containarium.db")).await.unwrap()),
        }
    }

    /// Keeps the database as it is now; no daemon has it open.
    pub(crate) fn keep_copy(&self) {
        match &self.postgres {
            Some(database) => wait_for(database.keep_copy()),
            None => drop(std::fs::copy(self.data_dir().join("containarium.db"), self.path("copy.db")).unwrap()),
        }
    }

    /// Puts the database back as it was kept; on PostgreSQL daemons may have it open.
    pub(crate) fn put_copy_back(&self) {
        match &self.postgres {
            Some(database) => wait_for(database.put_copy_back()),
            None => drop(std::fs::copy(self.path("copy.db"), self.data_dir().join("containarium.db")).unwrap()),
        }
    }

    /// Puts the database back as it was kept, and keeps what it was until now; no daemon may have it open.
    pub(crate) fn swap_with_copy(&self) {
        let Some(database) = &self.postgres else {
            let (live, copy, aside) =
                (self.data_dir().join("containarium.db"), self.path("copy.db"), self.path("aside.db"));
            for (from, to) in [(&live, &aside), (&copy, &live), (&aside, &copy)] {
                std::fs::rename(from, to).unwrap();
            }
            return;
        };
        wait_for(database.swap_with_copy());
    }

    /// Runs a statement past the daemon, with every guard of the database on.
    pub(crate) fn run_sql(&self, sql: &str) {
        wait_for(self.database().run(sql)).unwrap();
    }

    /// Runs a statement past the daemon with foreign keys and CHECKs off; on PostgreSQL they stay off.
    pub(crate) fn damage_sql(&self, sql: &str) {
        wait_for(self.database().damage(sql));
    }

    pub(crate) fn number(&self, sql: &str) -> i64 {
        wait_for(self.database().number(sql))
    }

    pub(crate) fn texts(&self, sql: &str) -> Vec<String> {
        wait_for(self.database().texts(sql))
    }

    pub(crate) fn is_postgres(&self) -> bool {
        self.database_url().is_some()
    }

    pub(crate) fn sql_bytes(&self, bytes: &[u8]) -> String {
        self.database().bytes(bytes)
    }

    fn database(&self) -> Box<dyn Database> {
        match &self.postgres {
            Some(database) => Box::new(Arc::clone(database)),
            None => Box::new(File::at(self.data_dir().join("containarium.db"))),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn key_file(&self) -> PathBuf {
        self.path("etc/secrets.key")
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.path("data")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("s.sock")
    }

    /// Has reads and denials recorded in the file alone; on PostgreSQL the table comes first otherwise. To be called before the first start.
    pub(crate) fn record_in_the_file(&self) {
        std::fs::write(self.path("config.toml"), "[audit]\nsinks = [\"file\"]\n").unwrap();
    }

    /// The lines of the audit file, but for those that begin a chain.
    pub(crate) fn audit_lines(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.data_dir().join("audit.jsonl")).unwrap();
        let is_call =
            |line: &&str| !["start", "head"].iter().any(|of| line.contains(&format!(r#""action":"audit.{of}""#)));
        text.lines().filter(is_call).map(str::to_owned).collect()
    }

    /// Every record, in file and database, as it was written.
    pub(crate) fn audit_text(&self) -> String {
        [self.audit_rows(), self.audit_lines()].concat().join("\n")
    }

    /// What was recorded, in file and database, by time, but for what begins a chain and what holds chains together.
    pub(crate) fn audit(&self) -> Vec<Value> {
        let mut records: Vec<Value> = [self.audit_rows(), self.audit_lines()]
            .concat()
            .iter()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        records.sort_by_key(|record| record["time"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap());
        records
    }

    fn audit_rows(&self) -> Vec<String> {
        let text = if self.is_postgres() { "convert_from(record, 'UTF8')" } else { "CAST(record AS TEXT)" };
        let schema = if self.is_postgres() { "containarium." } else { "" };
        self.texts(&format!(
            "SELECT {text} FROM {schema}audit WHERE action NOT IN ('audit.start', 'audit.head') ORDER BY record_no"
        ))
    }

    /// Where the daemon's standard error goes, one start after the other.
    pub(crate) fn log_file(&self) -> PathBuf {
        self.path("daemon.log")
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// Waits until the log says this.
    pub(crate) fn logged(&self, text: &str) {
        let begun = Instant::now();
        while !self.log().contains(text) {
            assert!(begun.elapsed() < PATIENCE, "never logged {text:?}:\n{}", self.log());
            std::thread::yield_now();
        }
    }

    pub(crate) fn database_url(&self) -> Option<&str> {
        self.server_url.as_deref().or_else(|| self.postgres.as_ref().map(|database| database.url.as_str()))
    }

    /// The binary, in this site and in no other place of the machine.
    pub(crate) fn command<I: AsRef<std::ffi::OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_containarium"));
        command
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.dir.path())
            .env("CONTAINARIUM_CONFIG", self.config_file())
            .env("CONTAINARIUM_DATA_DIR", self.data_dir())
            .env("CONTAINARIUM_KEY_FILE", self.key_file())
            .env("CONTAINARIUM_SOCKET", self.socket());
        if let Some(url) = self.database_url() {
            command.env("CONTAINARIUM_DATABASE_URL", url);
        }
        command
    }

    /// An empty configuration file, where the test wrote none.
    pub(crate) fn config_file(&self) -> PathBuf {
        let path = self.path("config.toml");
        if !path.exists() {
            std::fs::write(&path, "").unwrap();
        }
        path
    }

    /// Runs a client command with this standard input.
    pub(crate) fn cli<I: AsRef<std::ffi::OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = I>,
        input: &[u8],
    ) -> Output {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A command that refuses its arguments does not read.
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let writer = std::thread::spawn(move || {
            let _refused = stdin.write_all(&input);
        });
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        output
    }

    /// Starts the daemon and waits until it says READY.
    pub(crate) fn start(&self) -> Daemon {
        self.start_with(self.command(["daemon"]))
    }

    pub(crate) fn start_with(&self, command: Command) -> Daemon {
        match self.try_start(command) {
            Ok(daemon) => daemon,
            Err(status) => panic!("the daemon ended with {status}:\n{}", self.log()),
        }
    }

    /// Starts the daemon; its exit status where it ends before it is ready.
    pub(crate) fn try_start(&self, mut command: Command) -> Result<Daemon, ExitStatus> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log_file()).unwrap();
        let notify = self.path("notify.sock");
        let _stale = std::fs::remove_file(&notify);
        let listener = UnixDatagram::bind(&notify).unwrap();
        // Whoever the daemon is run as.
        std::fs::set_permissions(&notify, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        listener.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let mut child = command
            .env("NOTIFY_SOCKET", &notify)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let begun = Instant::now();
        let mut messages = Vec::new();
        loop {
            if let Some(message) = received(&listener) {
                let ready = message.lines().any(|line| line == "READY=1");
                messages.push(message);
                if ready {
                    return Ok(Daemon { child: Some(child), socket: self.socket(), listener, messages });
                }
            } else if let Some(status) = child.try_wait().unwrap() {
                return Err(status);
            } else if begun.elapsed() > PATIENCE {
                let _gone = child.kill();
                panic!("the daemon is not ready after {PATIENCE:?}:\n{}", self.log());
            }
        }
    }

    /// Starts a daemon that must not become ready: its exit code and what it said.
    pub(crate) fn refused(&self) -> (Option<i32>, String) {
        self.refused_with(self.command(["daemon"]))
    }

    pub(crate) fn refused_with(&self, command: Command) -> (Option<i32>, String) {
        let before = self.log().len();
        match self.try_start(command) {
            Ok(_) => panic!("the daemon started:\n{}", self.log()),
            Err(status) => (status.code(), self.log()[before..].to_owned()),
        }
    }

    /// Every file of the site, by name, with its content.
    pub(crate) fn files(&self) -> HashMap<PathBuf, Vec<u8>> {
        let mut files = HashMap::new();
        collect(self.dir.path(), &mut files);
        files
    }
}

/// Tests of the binary are plain functions; what they share with the store's tests is not.
pub(crate) fn wait_for<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn received(listener: &UnixDatagram) -> Option<String> {
    let mut buffer = [0; 8192];
    match listener.recv(&mut buffer) {
        Ok(length) => Some(String::from_utf8_lossy(&buffer[..length]).into_owned()),
        // A wait with a timeout is not begun anew after a stop of the process (signal(7)); the callers' loops do that.
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn collect(dir: &Path, files: &mut HashMap<PathBuf, Vec<u8>>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            collect(&entry.path(), files);
        } else if kind.is_file() {
            files.insert(entry.path(), std::fs::read(entry.path()).unwrap());
        }
    }
}

/// A daemon that runs; killed when the test ends.
pub(crate) struct Daemon {
    child: Option<Child>,
    socket: PathBuf,
    listener: UnixDatagram,
    /// What it told the service manager.
    messages: Vec<String>,
}

impl Daemon {
    /// Waits for a message to the service manager that holds this text.
    pub(crate) fn told(&mut self, text: &str) -> String {
        let begun = Instant::now();
        loop {
            if let Some(found) = self.messages.iter().find(|message| message.contains(text)) {
                return found.clone();
            }
            assert!(begun.elapsed() < PATIENCE, "never told {text:?}: {:?}", self.messages);
            self.messages.extend(received(&self.listener));
        }
    }

    /// SIGTERM, and the exit status.
    pub(crate) fn stop(self) -> ExitStatus {
        self.signal(rustix::process::Signal::TERM);
        self.ended()
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(self.pid(), signal).unwrap();
    }

    pub(crate) fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(self.child.as_ref().unwrap())
    }

    /// Forgets what was told until now.
    pub(crate) fn hush(&mut self) {
        while received(&self.listener).is_some() {}
        self.messages.clear();
    }

    /// Waits until it ends, by itself or told to.
    pub(crate) fn ended(mut self) -> ExitStatus {
        let mut child = self.child.take().unwrap();
        let begun = Instant::now();
        loop {
            // What it tells on its way out is the event; the wait for it is bounded.
            received(&self.listener);
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "it goes on");
        }
    }

    /// How it ended, where it did.
    #[cfg(feature = "failpoints")]
    pub(crate) fn gone(&mut self) -> Option<ExitStatus> {
        let status = self.child.as_mut().and_then(|child| child.try_wait().unwrap());
        if status.is_some() {
            self.child = None;
        }
        status
    }

    /// Whether it stopped itself (SIGSTOP).
    #[cfg(feature = "failpoints")]
    pub(crate) fn is_stopped(&self) -> bool {
        let stat = format!("/proc/{}/stat", self.child.as_ref().unwrap().id());
        std::fs::read_to_string(&stat).is_ok_and(|text| text.contains(") T "))
    }

    #[cfg(feature = "failpoints")]
    /// Waits until it stopped itself (SIGSTOP).
    pub(crate) fn stopped(&self) {
        let begun = Instant::now();
        while !self.is_stopped() {
            assert!(begun.elapsed() < PATIENCE, "it goes on");
            std::thread::yield_now();
        }
    }

    #[cfg(feature = "failpoints")]
    /// SIGCONT.
    pub(crate) fn wake(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    /// SIGKILL: nothing is tidied up.
    pub(crate) fn kill(mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub(crate) fn request(&self, method: &str, path: &str, body: &[u8]) -> Answer {
        self.request_with(method, path, &[], body)
    }

    pub(crate) fn request_with(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
        for (name, value) in headers {
            write!(head, "{name}: {value}\r\n").unwrap();
        }
        write!(head, "Content-Length: {}\r\n\r\n", body.len()).unwrap();
        let mut message = head.into_bytes();
        message.extend_from_slice(body);
        Answer::parse(&self.raw(&message))
    }

    /// Sends bytes and reads until the daemon closes.
    pub(crate) fn raw(&self, message: &[u8]) -> Vec<u8> {
        let mut stream = self.connect();
        // The daemon may answer and close before it has read everything.
        let _closed = stream.write_all(message);
        let mut answer = Vec::new();
        let _reset = stream.read_to_end(&mut answer);
        answer
    }

    pub(crate) fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.request("GET", path, b"")
    }

    /// Sets a secret over HTTP and answers what came back.
    pub(crate) fn set(&self, tenant: &str, name: &str, value: &[u8]) -> Answer {
        let base64 = data_encoding::BASE64.encode(value);
        let body = serde_json::json!({ "username": tenant, "name": name, "value_base64": base64 });
        self.request("POST", "/v1/secrets", body.to_string().as_bytes())
    }

    /// A secret's value over HTTP; `None` unless the answer is 200.
    pub(crate) fn value(&self, tenant: &str, name: &str) -> Option<Vec<u8>> {
        let answer = self.get(&format!("/v1/secrets/{tenant}/{name}"));
        (answer.status == 200).then(|| answer.value())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _gone = child.kill();
            let _reaped = child.wait();
        }
    }
}

/// An HTTP answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn parse(raw: &[u8]) -> Self {
        let end = raw.windows(4).position(|window| window == b"\r\n\r\n");
        let end = end.unwrap_or_else(|| panic!("no HTTP answer: {:?}", String::from_utf8_lossy(raw)));
        let head = std::str::from_utf8(&raw[..end]).unwrap();
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers = lines
            .map(|line| line.split_once(": ").unwrap())
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        Self { status, headers, body: raw[end + 4..].to_vec() }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|_| panic!("no JSON: {:?}", String::from_utf8_lossy(&self.body)))
    }

    /// The value in the answer.
    pub(crate) fn value(&self) -> Vec<u8> {
        let json = self.json();
        match (json.get("value"), json.get("value_base64")) {
            (Some(text), None) => text.as_str().unwrap().as_bytes().to_vec(),
            (None, Some(text)) => data_encoding::BASE64.decode(text.as_str().unwrap().as_bytes()).unwrap(),
            _ => panic!("no value: {json}"),
        }
    }

    /// A problem's detail, after its shape has been checked.
    pub(crate) fn problem(&self) -> String {
        assert_eq!(self.headers["content-type"], "application/problem+json");
        let json = self.json();
        assert_eq!(json["status"], self.status);
        assert_eq!(json["detail"], json["message"]);
        assert_eq!(json["requestId"], self.headers["x-request-id"].as_str());
        json["detail"].as_str().unwrap().to_owned()
    }
}
