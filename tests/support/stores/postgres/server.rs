//! A PostgreSQL server of a test's own, to be killed and started again.

use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::environment;

/// With fsync on: what is killed at a commit means nothing without.
pub(crate) struct Server {
    directory: TempDir,
    running: Option<Child>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        let directory = tempfile::Builder::new().prefix("containarium-pg.").tempdir_in("/tmp").unwrap();
        if let Some((uid, gid)) = server_user() {
            chown(directory.path(), Some(uid), Some(gid)).unwrap();
        }
        let mut server = Self { directory, running: None };
        let initdb = server
            .command("initdb")
            .args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync", "--no-instructions"])
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(initdb.success());
        server.run().await;
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("postgres:///postgres?host={}&user=postgres", self.directory.path().display())
    }

    /// Every connection breaks, as when the machine loses power.
    pub(crate) fn kill(&mut self) {
        let mut child = self.running.take().unwrap();
        kill_process(Pid::from_child(&child), Signal::QUIT).unwrap();
        child.wait().unwrap();
    }

    pub(crate) async fn run(&mut self) {
        let socket = format!("unix_socket_directories={}", self.directory.path().display());
        let child = self
            .command("postgres")
            .args(["-c", "listen_addresses=", "-c", &socket, "-c", "max_connections=200"])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.running = Some(child);
        // The eighth line of the pid file is all that a server says about being ready; pg_ctl polls it too.
        let pid_file = self.data().join("postmaster.pid");
        let ready = || {
            std::fs::read_to_string(&pid_file)
                .is_ok_and(|text| text.lines().nth(7).is_some_and(|l| l.starts_with("ready")))
        };
        for _ in 0..1000 {
            if ready() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the server did not start");
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// As the user that may run a server, and never outliving this process.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("setpriv");
        if let Some((uid, gid)) = server_user() {
            command.args(["--reuid", &uid.to_string(), "--regid", &gid.to_string(), "--clear-groups"]);
        }
        command.args(["--pdeathsig", "QUIT", "--"]).arg(PathBuf::from(environment("WITH_PG_BIN")).join(program));
        command.arg("-D").arg(self.data()).current_dir(self.directory.path()).stdin(Stdio::null());
        command
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.running.is_some() {
            self.kill();
        }
    }
}

/// For root, who may not run a server: the owner of the one that the tests run under.
fn server_user() -> Option<(u32, u32)> {
    use std::os::unix::fs::MetadataExt;

    let owner = std::fs::metadata(environment("WITH_PG_DIR")).unwrap();
    rustix::process::getuid().is_root().then(|| (owner.uid(), owner.gid()))
}
