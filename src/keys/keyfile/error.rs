//! What can be wrong with a key file and the places around it: what failed, why it matters, and the shell command that mends it.
//!
//! The commands are run by tests as they are printed. BACKUP in them is the operator's copy of the key, wherever it is kept.

use std::fmt::{self, Write as _};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;

use crate::crypto::ImageError;
use crate::model::Kid;

/// Why a key file was not read or not written. No variant carries a byte of a key.
#[derive(Debug, thiserror::Error)]
pub enum KeyfileError {
    #[error("{} names no file; give the key file's full path, for example /etc/containarium/secrets.key", sh(.path))]
    NoFileName { path: PathBuf },

    // The file itself.
    #[error(
        "{p} is a symbolic link, and whoever can change the link or its target chooses the key. Put the key itself there: \
         `mv -T \"$(readlink -f {p})\" {p}`", p = sh(.path)
    )]
    IsSymlink { path: PathBuf },
    #[error("{} is a FIFO, not a key file. {}", sh(.path), Replace(.path))]
    IsFifo { path: PathBuf },
    #[error("{} is a directory, not a key file. {}", sh(.path), Replace(.path))]
    IsDirectory { path: PathBuf },
    #[error("{} is a socket, not a key file. {}", sh(.path), Replace(.path))]
    IsSocket { path: PathBuf },
    #[error("{} is a device, not a key file. {}", sh(.path), Replace(.path))]
    IsDevice { path: PathBuf },
    #[error(
        "{p} belongs to uid {owner}, who can replace the key; it must belong to root or to uid {euid}, as whom this runs: \
         `chown {}: {p}`", user(*.euid), p = sh(.path)
    )]
    WrongOwner { path: PathBuf, owner: u32, euid: u32 },
    #[error(
        "{p} has mode {mode:04o}; it must be exactly 0400, read by its owner and written by nobody: `chmod 0400 {p}`",
        p = sh(.path)
    )]
    WrongMode { path: PathBuf, mode: u32 },
    #[error(
        "{p} has {links} names (hard links), and the key can be read and changed through the others. \
         `find / -xdev -samefile {p}` lists them; remove them, or cut the key loose from them: \
         `cp -p {p} {p}.copy && mv -f {p}.copy {p}`", p = sh(.path)
    )]
    HardLinked { path: PathBuf, links: String },
    #[error("{} is not a master key: {damage}. {}", sh(.path), PutBack(.path))]
    Damaged { path: PathBuf, damage: ImageError },
    #[error(
        "{p} cannot be read by uid {euid}, as whom this runs; it belongs to uid {owner}: `chown {}: {p}`",
        user(*.euid), p = sh(.path)
    )]
    Unreadable { path: PathBuf, owner: u32, euid: u32 },
    #[error("{p} was replaced again and again while it was read; `ls -l {p}` and start once that has ended", p = sh(.path))]
    Unsteady { path: PathBuf },

    // The directories around it.
    #[error(
        "the key's directory {p} is a symbolic link; whoever can change the link chooses the key. Name the directory itself, \
         or put it there: `D=$(readlink -f {p}) && rm {p} && mv -T \"$D\" {p}`", p = sh(.path)
    )]
    DirectoryIsSymlink { path: PathBuf },
    #[error("{} is not a directory, so no key can lie in it. Move it away: `mv -nT {0} {0}.wrong`", sh(.path))]
    NotADirectory { path: PathBuf },
    #[error(
        "the key's directory {p} belongs to uid {owner}, who can replace every key in it; it must belong to root or to uid \
         {euid}: `chown {}: {p}`", user(*.euid), p = sh(.path)
    )]
    DirectoryOwner { path: PathBuf, owner: u32, euid: u32 },
    #[error(
        "the key's directory {p} has mode {mode:04o}: others than its owner can write to it and replace every key in it: \
         `chmod go-w {p}`", p = sh(.path)
    )]
    DirectoryWritable { path: PathBuf, mode: u32 },
    #[error(
        "{p}, above the key's directory, belongs to uid {owner}, who can put another directory in its place; it must belong to \
         root or to uid {euid}: `chown {}: {p}`", user(*.euid), p = sh(.path)
    )]
    AncestorOwner { path: PathBuf, owner: u32, euid: u32 },
    #[error(
        "{p}, above the key's directory, has mode {mode:04o}: others than its owner can put another directory in its place: \
         `chmod go-w {p}`", p = sh(.path)
    )]
    AncestorWritable { path: PathBuf, mode: u32 },
    #[error(
        "{p}, on the way to the key's directory, is a symbolic link of uid {owner}, who chooses where it leads; it must belong \
         to root or to uid {euid}: `chown -h {}: {p}`", user(*.euid), p = sh(.path)
    )]
    AncestorLink { path: PathBuf, owner: u32, euid: u32 },
    #[error("too many symbolic links on the way to {}; name the directory itself (`readlink -f {0}`)", sh(.path))]
    TooManyLinks { path: PathBuf },

    // The system's answers.
    #[error("no space left to {doing} {p}; nothing was changed. Make room (`df -h {d}` shows how much there is) and try again", p = sh(.path), d = sh(&parent(.path)))]
    NoSpace { doing: &'static str, path: PathBuf },
    #[error("cannot {doing} {p}: the file system is read-only; nothing was changed. `findmnt -T {d}` shows it; make it writable or use another --key-file", p = sh(.path), d = sh(&parent(.path)))]
    ReadOnly { doing: &'static str, path: PathBuf },
    #[error("uid {euid} may not {doing} {p}; `namei -l {p}` shows whose the directories on the way are", p = sh(.path))]
    Denied { doing: &'static str, path: PathBuf, euid: u32 },
    #[error("cannot {doing} {p}: {cause}; `ls -ld {d}` and `dmesg | tail` say more", p = sh(.path), d = sh(&parent(.path)))]
    Io { doing: &'static str, path: PathBuf, cause: io::Error },

    // The writers.
    #[error(
        "{} is the lock of another writer of key files{} and was not free within {}s; nothing was changed. Let that process \
         end (`fuser -v {0}` shows it), then try again", sh(.path), Holder(*.holder), .waited.as_secs()
    )]
    LockHeld { path: PathBuf, holder: Option<u32>, waited: Duration },
    #[error("{p} cannot serve as the lock of the key files: {why}. Remove it, it holds nothing: `rm -r {p}`", p = sh(.path))]
    LockUnusable { path: PathBuf, why: &'static str },
    #[error(
        "{} does not read back as it was written; the disk or its file system is failing (`dmesg | tail`). The key in use was \
         not touched", sh(.path)
    )]
    ReadBack { path: PathBuf },
    #[error(
        "{p} is the place of master key {kid}, but something else lies there, and nothing is written over it. Look at it, then \
         move it away: `mv -nT {p} {p}.moved`", p = sh(.path)
    )]
    NameTaken { path: PathBuf, kid: Kid },
    #[error("{} holds master key {kid}, which is not what its name says: `mv -n {0} {}`", sh(.path), sh(&parent(.path).join(kid.to_string())))]
    NameLies { path: PathBuf, kid: Kid },
    #[error("master key {kid} is not staged at {p}, so it cannot become the key in use. {}", PutBack(.path), p = sh(.path))]
    NotStaged { path: PathBuf, kid: Kid },
    #[error(
        "another key is not written over a key file that cannot be read, since it may be the only copy of what it holds. First \
         mend it: {cause}. Or move it away: `mv -nT {p} {p}.moved`", p = sh(.path)
    )]
    MainIsBad { path: PathBuf, cause: Box<KeyfileError> },
    #[error(
        "{} was changed by something that does not hold the key files' lock (it {}); nothing was written over it. Try again",
        sh(.path), Now(*.found)
    )]
    MainChanged { path: PathBuf, found: Option<Kid> },
    #[error(
        "{cause}. And what lay at {m} until then could not be put back: {undoing}. It is at {p}, whole: once nothing lies at {m} \
         (`ls -l {m}`), `mv -nT {p} {m}` puts it back", p = sh(.path), m = sh(.main)
    )]
    NotPutBack { path: PathBuf, main: PathBuf, cause: Box<KeyfileError>, undoing: Box<KeyfileError> },
    #[error("master key {kid} is the key in use ({}); its copy is not removed", sh(.path))]
    IsMain { path: PathBuf, kid: Kid },
}

impl KeyfileError {
    /// The file or directory that it is about.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::NoFileName { path }
            | Self::IsSymlink { path }
            | Self::IsFifo { path }
            | Self::IsDirectory { path }
            | Self::IsSocket { path }
            | Self::IsDevice { path }
            | Self::WrongOwner { path, .. }
            | Self::WrongMode { path, .. }
            | Self::HardLinked { path, .. }
            | Self::Damaged { path, .. }
            | Self::Unreadable { path, .. }
            | Self::Unsteady { path }
            | Self::DirectoryIsSymlink { path }
            | Self::NotADirectory { path }
            | Self::DirectoryOwner { path, .. }
            | Self::DirectoryWritable { path, .. }
            | Self::AncestorOwner { path, .. }
            | Self::AncestorWritable { path, .. }
            | Self::AncestorLink { path, .. }
            | Self::TooManyLinks { path }
            | Self::NoSpace { path, .. }
            | Self::ReadOnly { path, .. }
            | Self::Denied { path, .. }
            | Self::Io { path, .. }
            | Self::LockHeld { path, .. }
            | Self::LockUnusable { path, .. }
            | Self::ReadBack { path }
            | Self::NameTaken { path, .. }
            | Self::NameLies { path, .. }
            | Self::NotStaged { path, .. }
            | Self::MainIsBad { path, .. }
            | Self::MainChanged { path, .. }
            | Self::NotPutBack { path, .. }
            | Self::IsMain { path, .. } => path,
        }
    }

    /// Whether another user, or another path, would help. All else is of the disk or the place, and the error itself names what mends it.
    #[must_use]
    pub const fn is_of_the_user(&self) -> bool {
        matches!(
            self,
            Self::NoFileName { .. } | Self::Denied { .. } | Self::Unreadable { .. } | Self::WrongOwner { .. }
        )
    }

    /// What the system's answer to `doing` means.
    pub(super) fn from_system(doing: &'static str, path: PathBuf, errno: Errno) -> Self {
        match errno {
            Errno::NOSPC | Errno::DQUOT => Self::NoSpace { doing, path },
            Errno::ROFS => Self::ReadOnly { doing, path },
            Errno::ACCESS | Errno::PERM => Self::Denied { doing, path, euid: euid() },
            errno => Self::Io { doing, path, cause: errno.into() },
        }
    }

    /// As [`Self::from_system`], of what std's readers and writers answer.
    pub(super) fn from_io(doing: &'static str, path: PathBuf, cause: io::Error) -> Self {
        match Errno::from_io_error(&cause) {
            Some(errno) => Self::from_system(doing, path, errno),
            None => Self::Io { doing, path, cause },
        }
    }
}

/// As whom this process acts on files.
pub(super) fn euid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// A user as `chown` takes it.
pub(in crate::keys) fn user(uid: u32) -> String {
    if uid == 0 { "root".to_owned() } else { uid.to_string() }
}

/// A path as a shell takes it, whatever bytes it has: also what a person reads, with no control character reaching a terminal.
pub(in crate::keys) fn sh(path: &Path) -> impl fmt::Display + '_ {
    Quoted(path)
}

struct Quoted<'a>(&'a Path);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0.as_os_str().as_bytes();
        let text = self.0.to_str().filter(|text| !text.chars().any(char::is_control));
        match text {
            Some(text) if !text.is_empty() && bytes.iter().all(|byte| is_plain(*byte)) => f.write_str(text),
            Some(text) => write!(f, "'{}'", text.replace('\'', r"'\''")),
            None => {
                f.write_str("$'")?;
                for byte in bytes {
                    if is_plain(*byte) { f.write_char(char::from(*byte))? } else { write!(f, "\\x{byte:02x}")? }
                }
                f.write_str("'")
            }
        }
    }
}

const fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'.' | b'_' | b'-' | b'+' | b',' | b':' | b'@' | b'%' | b'=')
}

fn parent(path: &Path) -> PathBuf {
    path.parent().unwrap_or(Path::new("/")).to_owned()
}

/// How a backup is put in the place of what is there.
struct PutBack<'a>(&'a Path);

impl fmt::Display for PutBack<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Put its backup there: `install -m 0400 -o {} BACKUP {}`", user(euid()), sh(self.0))
    }
}

/// The same for what `install` would not replace, or would fill.
struct Replace<'a>(&'a Path);

impl fmt::Display for Replace<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (owner, path) = (user(euid()), sh(self.0));
        write!(
            f,
            "Move it away and put the key's backup there: `mv -nT {path} {path}.wrong && install -m 0400 -o {owner} BACKUP {path}`"
        )
    }
}

struct Holder(Option<u32>);

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |pid| write!(f, " (process {pid})"))
    }
}

struct Now(Option<Kid>);

impl fmt::Display for Now {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(kid) => write!(f, "holds master key {kid} now"),
            None => f.write_str("is gone"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::process::Command;

    #[test]
    fn a_quoted_path_is_the_same_path_to_a_shell() {
        let paths: [&[u8]; 7] = [
            b"/etc/a.key",
            b"/a b",
            b"/it's",
            b"/a\nb\x1b[31m",
            b"/\xff\xfe'",
            "/schlüssel".as_bytes(),
            b"/$(id)`x`\\",
        ];
        for bytes in paths {
            let path = Path::new(OsStr::from_bytes(bytes));
            let script = format!("printf %s {}", sh(path));
            let shown = Command::new("bash").args(["-c", &script]).output().expect("bash runs");
            assert_eq!(shown.stdout, bytes, "{script}");
            assert!(!script.chars().any(char::is_control), "{script:?}");
        }
    }
}
