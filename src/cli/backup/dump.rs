//! A PostgreSQL dump that somebody else made, as far as a look at the file tells: whether it is one, whether it looks whole, and when it was
//! made. What pg_restore would make of it is for a drill to find out.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::model::Micros;

/// Why a file counts as no dump.
#[derive(Debug, thiserror::Error)]
pub(super) enum DumpError {
    #[error("{0}")]
    NotThere(io::Error),
    #[error("it cannot be read: {0}")]
    Unreadable(io::Error),
    #[error("it is no regular file")]
    NotAFile,
    #[error("it is empty")]
    Empty,
    #[error(
        "it begins neither as a dump of `pg_dump --format=custom` nor as one in plain SQL; record one before it is compressed or encrypted"
    )]
    NotADump,
    #[error("it lacks the line with which pg_dump ends: the dump was cut off, or is still being made")]
    Unfinished,
}

/// The first bytes of the custom format.
const CUSTOM: &[u8] = b"PGDMP";
/// Plain SQL begins and ends with comments that say so; newer releases have a line or two more after the last.
const PLAIN: &[u8] = b"-- PostgreSQL database dump";
const PLAIN_END: &[u8] = b"-- PostgreSQL database dump complete";
/// In which the comments are looked for, from either end.
const EDGE: u64 = 512;

/// When a dump was last written to: its state is that of a moment before. `cp` without `-p` makes a file young.
pub(super) fn made_at(path: &Path) -> Result<Micros, DumpError> {
    // Before it is opened: a FIFO would wait for a writer.
    let found = std::fs::metadata(path).map_err(DumpError::NotThere)?;
    if !found.is_file() {
        return Err(DumpError::NotAFile);
    }
    let mut file = File::open(path).map_err(DumpError::Unreadable)?;
    let length = file.metadata().map_err(DumpError::Unreadable)?.len();
    if length == 0 {
        return Err(DumpError::Empty);
    }
    let start = edge(&mut file, 0).map_err(DumpError::Unreadable)?;
    if !start.starts_with(CUSTOM) {
        if !holds(&start, PLAIN) {
            return Err(DumpError::NotADump);
        }
        let end = edge(&mut file, length.saturating_sub(EDGE)).map_err(DumpError::Unreadable)?;
        if !holds(&end, PLAIN_END) {
            return Err(DumpError::Unfinished);
        }
    }
    file.metadata().and_then(|metadata| metadata.modified()).map(micros).map_err(DumpError::Unreadable)
}

fn edge(file: &mut File, from: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(from))?;
    file.take(EDGE).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn holds(bytes: &[u8], words: &[u8]) -> bool {
    bytes.windows(words.len()).any(|window| window == words)
}

/// What was written before 1970 counts as written then: old, either way.
fn micros(at: SystemTime) -> Micros {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    Micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SQL: &str = "--\n-- PostgreSQL database dump\n--\n\n\\restrict x\n\nCREATE SCHEMA containarium;\n\n--\n-- PostgreSQL database \
                       dump complete\n--\n\n\\unrestrict x\n\n";

    #[test]
    fn a_dump_is_as_old_as_its_file_and_what_is_none_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dump");
        let look = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            File::options().write(true).open(&path).unwrap().set_modified(UNIX_EPOCH + Duration::from_secs(7)).unwrap();
            made_at(&path)
        };
        for good in [&b"PGDMP\x01\x0e\x00"[..], SQL.as_bytes()] {
            assert_eq!(look(good).unwrap(), Micros(7_000_000));
        }
        let half = SQL.split_once("CREATE").unwrap().0.as_bytes();
        assert!(matches!(look(half), Err(DumpError::Unfinished)));
        assert!(matches!(look(b""), Err(DumpError::Empty)));
        for other in [&b"PGDM"[..], b"SQLite format 3\0", b"\x1f\x8b\x08", b"pg_dump: error: connection failed"] {
            assert!(matches!(look(other), Err(DumpError::NotADump)), "{other:?}");
        }
        assert!(matches!(made_at(dir.path()), Err(DumpError::NotAFile)));
        assert!(matches!(made_at(&dir.path().join("none")), Err(DumpError::NotThere(_))));
    }
}
