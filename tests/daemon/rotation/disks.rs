//! Disks that take nothing while a key is staged. Each test plays in mounts of its own, which go away with its process.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::*;

/// Set in the process that has mounts of its own.
const MARK: &str = "CONTAINARIUM_TEST_HAS_MOUNTS";

#[test]
fn a_full_disk_stops_the_staging_and_nothing_happened_on_sqlite() {
    if has_own_mounts("a_full_disk_stops_the_staging_and_nothing_happened_on_sqlite") {
        a_full_disk_stops_the_staging(&Site::sqlite());
    }
}

#[test]
fn a_full_disk_stops_the_staging_and_nothing_happened_on_postgresql() {
    if has_own_mounts("a_full_disk_stops_the_staging_and_nothing_happened_on_postgresql") {
        a_full_disk_stops_the_staging(&Site::postgres());
    }
}

#[test]
fn a_read_only_directory_stops_the_staging_and_nothing_happened_on_sqlite() {
    if has_own_mounts("a_read_only_directory_stops_the_staging_and_nothing_happened_on_sqlite") {
        a_read_only_directory_stops_the_staging(&Site::sqlite());
    }
}

#[test]
fn a_read_only_directory_stops_the_staging_and_nothing_happened_on_postgresql() {
    if has_own_mounts("a_read_only_directory_stops_the_staging_and_nothing_happened_on_postgresql") {
        a_read_only_directory_stops_the_staging(&Site::postgres());
    }
}

fn a_full_disk_stops_the_staging(site: &Site) {
    let etc = small_disk(site);
    let daemon = site.start();
    fill(&daemon, 3);
    let before = State::of(site);
    let filler = etc.join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    drop(file);
    for arguments in [&WAIVE[..], &[]] {
        let (code, said) = refused(site, arguments);
        assert_eq!(code, Some(5), "{said}");
        for part in
            ["nothing happened", "no space left", "secrets.key.d", "Make room", "containarium admin rotate-master"]
        {
            assert!(said.contains(part), "{part}: {said}");
        }
        serves_as_before(site, &daemon, &before);
    }
    std::fs::remove_file(&filler).unwrap();
    assert_eq!(rotated(site, &WAIVE)["end"], "rotated");
    check(&daemon, 3);
    assert_eq!(daemon.stop().code(), Some(0));
    check(&site.start(), 3);
}

fn a_read_only_directory_stops_the_staging(site: &Site) {
    let etc = small_disk(site);
    let daemon = site.start();
    fill(&daemon, 3);
    let before = State::of(site);
    for directory in [etc.join("secrets.key.d"), etc] {
        let directory = directory.to_str().unwrap();
        mount(&["--bind", directory, directory]).unwrap();
        mount(&["-o", "remount,bind,ro", directory]).unwrap();
        let (code, said) = refused(site, &WAIVE);
        assert_eq!(code, Some(5), "{said}");
        for part in ["nothing happened", "read-only", directory, "containarium admin rotate-master"] {
            assert!(said.contains(part), "{part}: {said}");
        }
        serves_as_before(site, &daemon, &before);
        mount(&["-o", "remount,bind,rw", directory]).unwrap();
    }
    assert_eq!(rotated(site, &WAIVE)["end"], "rotated");
    check(&daemon, 3);
    assert_eq!(daemon.stop().code(), Some(0));
    check(&site.start(), 3);
}

/// What a rotation that did nothing leaves as it was.
#[derive(Debug, PartialEq, Eq)]
struct State {
    rows: Vec<String>,
    /// The key files: each with its content and its inode, the lock aside.
    files: Vec<(PathBuf, Vec<u8>, u64)>,
}

impl State {
    fn of(site: &Site) -> Self {
        let mut rows = site.texts(&format!("SELECT {} || state FROM master_keys ORDER BY 1", hex_of(site, "kid")));
        rows.extend(site.texts("SELECT phase || mode || epoch FROM key_state"));
        let mut files = key_files(site);
        files.retain(|path| !path.ends_with("filler"));
        let read = |path: PathBuf| {
            let (content, inode) = (std::fs::read(&path).unwrap(), path.metadata().unwrap().ino());
            (path, content, inode)
        };
        Self { rows, files: files.into_iter().map(read).collect() }
    }
}

fn serves_as_before(site: &Site, daemon: &Daemon, before: &State) {
    assert_eq!(State::of(site), *before);
    check(daemon, 3);
    assert_eq!(daemon.set("fresh", "KEY", b"value").status, 200);
    assert_eq!(not_under(site, &active(daemon)), 0);
}

/// The key files' directory on a disk of a few pages.
fn small_disk(site: &Site) -> PathBuf {
    let etc = site.path("etc");
    std::fs::create_dir(&etc).unwrap();
    mount(&["-t", "tmpfs", "-o", "size=64k,mode=0700", "tmpfs", etc.to_str().unwrap()]).unwrap();
    etc
}

fn mount(arguments: &[&str]) -> Result<(), String> {
    said_by(Command::new("mount").args(arguments))
}

fn said_by(command: &mut Command) -> Result<(), String> {
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(format!("{}: {error}", command.get_program().display())),
    }
}

/// Whether this process may mount, where nobody else sees it. Where not, the test is played again in one that may, if there can be one.
#[expect(clippy::disallowed_methods, reason = "a test's own process is told what it is")]
fn has_own_mounts(test: &str) -> bool {
    if std::env::var_os(MARK).is_some() {
        return true;
    }
    let with_mounts = |program: &Path| {
        let mut command = Command::new("unshare");
        // Who is not root becomes it in a user namespace of its own, and there it may mount what harms nobody.
        command.arg(if rustix::process::geteuid().is_root() { "-m" } else { "-rm" }).arg(program).env(MARK, "1");
        command
    };
    let place = tempfile::tempdir().unwrap();
    let mut probe = with_mounts(Path::new("mount"));
    if let Err(why) = said_by(probe.args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(place.path())) {
        println!(
            "skipped: {test}: no file system can be mounted here ({why}); run it as root with CAP_SYS_ADMIN, or allow user namespaces: \
             sysctl kernel.unprivileged_userns_clone=1 kernel.apparmor_restrict_unprivileged_userns=0"
        );
        return false;
    }
    let name = format!("daemon::rotation::disks::{test}");
    let output =
        with_mounts(&std::env::current_exe().unwrap()).args(["--exact", &name, "--nocapture"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("1 passed"), "the name is another: {said}");
    false
}
