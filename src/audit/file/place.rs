//! The file in its place: appended to, made durable, put aside when it is large.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::Deserialize;

use crate::audit::record::End;
use crate::crypto::Mac;
use crate::model::{BootId, Micros, NodeId};

/// A file of this size is put aside, and the chain goes on in a new one.
const LARGE: u64 = 64 * 1024 * 1024;
/// No line is nearly as long.
const LONGEST_LINE: u64 = 64 * 1024;

pub(super) struct Place {
    path: PathBuf,
    file: File,
    large: u64,
    /// Where the file is to be cut before anything else: what lies behind was not acknowledged.
    cut: Option<u64>,
}

impl Place {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = open(path).map_err(|error| named(path, &error))?;
        Ok(Self { path: path.to_owned(), file, large: LARGE, cut: None })
    }

    /// The last record of this node's that lies here: where the next chain goes on. What a crash left of a line is cut off: nobody was
    /// answered on it.
    pub(super) fn last_of(&mut self, node: NodeId) -> io::Result<Option<End>> {
        self.cut_torn_line().map_err(|error| named(&self.path, &error))?;
        let mut newest_first = vec![self.path.clone()];
        newest_first.extend(aside(&self.path)?.into_iter().rev().map(|(_, path)| path));
        for path in newest_first {
            if let Some(line) = last_line(&path).map_err(|error| named(&path, &error))? {
                return Ok(end_of(&line).filter(|(of, _)| *of == node).map(|(_, end)| end));
            }
        }
        Ok(None)
    }

    /// Appends all of it or none, durably: what a full disk cut short is taken back, so that the file always ends with a whole line.
    pub(super) fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        self.try_append(lines).map_err(|error| named(&self.path, &error))
    }

    /// So that what is kept for so long has a file that can be removed whole.
    pub(super) fn put_aside_begun_before(&mut self, before: Micros) -> io::Result<()> {
        #[derive(Deserialize)]
        struct First {
            time: jiff::Timestamp,
        }
        self.in_its_place()?;
        let mut line = Vec::new();
        BufReader::new(File::open(&self.path)?).take(LONGEST_LINE).read_until(b'\n', &mut line)?;
        let first = serde_json::from_slice::<First>(&line).ok();
        if first.is_some_and(|first| first.time.as_microsecond() < before.0) && self.cut.is_none() {
            self.put_aside()?;
        }
        Ok(())
    }

    fn try_append(&mut self, lines: &[u8]) -> io::Result<()> {
        let found = self.in_its_place()?;
        if let Some(length) = self.cut {
            self.file.set_len(length)?;
            self.cut = None;
        }
        let mut length = self.file.metadata().map_or(found.len(), |found| found.len());
        if length > 0 && length + lines.len() as u64 > self.large {
            match self.put_aside() {
                Ok(()) => length = 0,
                Err(error) => tracing::warn!("the audit file is large and could not be put aside: {error}"),
            }
        }
        let mut file = &self.file;
        let written = file.write_all(lines).and_then(|()| file.sync_data());
        written.inspect_err(|_| {
            // After a failed sync nobody knows what is on the disk; so it is written anew.
            if file.set_len(length).is_err() {
                self.cut = Some(length);
            }
        })
    }

    fn cut_torn_line(&mut self) -> io::Result<()> {
        let length = self.file.metadata()?.len();
        let mut tail = vec![0; usize::try_from(length.min(LONGEST_LINE)).unwrap_or(0)];
        let from = length - tail.len() as u64;
        self.file.read_exact_at(&mut tail, from)?;
        let whole = tail.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end as u64 + 1);
        if from + whole < length {
            self.file.set_len(from + whole)?;
            self.file.sync_all()?;
            tracing::warn!(
                "the last line of {} was cut off by a crash; nobody was answered on it",
                self.path.display()
            );
        }
        Ok(())
    }

    /// Renames the file to the next free number and begins a new one.
    fn put_aside(&mut self) -> io::Result<()> {
        let next = aside(&self.path)?.last().map_or(1, |(number, _)| number + 1);
        let to = aside_name(&self.path, next);
        std::fs::rename(&self.path, &to)?;
        self.file = open(&self.path)?;
        sync_directory(&self.path)
    }

    /// The open file's metadata, after opening the path anew where it names another file or none: what is written into a file that
    /// was moved away or removed is read by nobody.
    fn in_its_place(&mut self) -> io::Result<Metadata> {
        let open_file = self.file.metadata()?;
        let same = |found: &Metadata| (found.dev(), found.ino()) == (open_file.dev(), open_file.ino());
        match std::fs::symlink_metadata(&self.path) {
            Ok(found) if same(&found) => Ok(open_file),
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => {
                let file = open(&self.path)?;
                tracing::warn!(
                    "the audit file was moved away, removed or replaced; records go on in {}",
                    self.path.display()
                );
                self.file = file;
                self.cut = None;
                self.file.metadata()
            }
        }
    }
}

/// Nothing but a file: a pipe that nobody reads would take records and then block for good.
fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .append(true)
        .read(true)
        .create(true)
        .mode(0o600)
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    // A synced file that has no name is no record.
    sync_directory(path)?;
    Ok(file)
}

fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}

/// The files of a trail that are there, the oldest first.
pub(in crate::audit) fn files_beside(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths: Vec<PathBuf> = aside(path)?.into_iter().map(|(_, path)| path).collect();
    if path.try_exists()? {
        paths.push(path.to_owned());
    }
    Ok(paths)
}

/// The files that were put aside, by number: `audit.jsonl` becomes `audit-00000001.jsonl`.
fn aside(path: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?.path();
        let stem = entry.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let number = stem.rsplit_once('-').and_then(|(_, digits)| digits.parse().ok());
        if let Some(number) = number.filter(|number| aside_name(path, *number) == entry) {
            found.push((number, entry));
        }
    }
    found.sort();
    Ok(found)
}

fn aside_name(path: &Path, number: u64) -> PathBuf {
    let part = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
    path.with_file_name(format!("{}-{number:08}.{}", part(path.file_stem()), part(path.extension())))
}

fn last_line(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LONGEST_LINE)))?;
    let mut tail = Vec::new();
    file.take(LONGEST_LINE).read_to_end(&mut tail)?;
    Ok(tail.split(|byte| *byte == b'\n').rfind(|line| !line.is_empty()).map(<[u8]>::to_vec))
}

/// Whose a line is, and where it stands in its chain; `None` for one that has none, as earlier releases wrote them.
fn end_of(line: &[u8]) -> Option<(NodeId, End)> {
    #[derive(Deserialize)]
    struct Line {
        node: String,
        boot: String,
        n: u64,
        link: String,
    }
    let line: Line = serde_json::from_slice(line).ok()?;
    let end = End { boot: BootId::from_hex(&line.boot)?, n: line.n, link: Mac::from_hex(&line.link)? };
    Some((NodeId::from_hex(&line.node)?, end))
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
impl Place {
    pub(super) fn put_aside_at(&mut self, large: u64) {
        self.large = large;
    }
}
