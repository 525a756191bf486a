//! Results on standard output: tables and JSON, and values as they are.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;

use clap::ValueEnum;
use serde::Serialize;
use tabwriter::TabWriter;
use zeroize::Zeroizing;

use crate::crypto::SecretValue;

use super::failure::{Exit, Failure};

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Table,
    Json,
}

/// What reads standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reader {
    /// It obeys control characters, so it gets none that somebody else wrote.
    Terminal,
    Program,
}

impl Reader {
    pub(super) fn of_stdout() -> Self {
        if std::io::stdout().is_terminal() { Self::Terminal } else { Self::Program }
    }
}

/// Writes to standard output without Rust's buffer for it, which would keep a copy of a value that nobody wipes.
pub(super) fn print(bytes: &[u8]) -> Result<(), Failure> {
    let stdout = std::io::stdout().as_fd().try_clone_to_owned().map(File::from);
    stdout.and_then(|mut stdout| stdout.write_all(bytes)).map_err(|error| Failure::of_output(&error))
}

/// One line on standard error.
pub(super) fn note(text: &str) {
    // Standard error may be closed; a note is then for nobody.
    let _ = writeln!(std::io::stderr().lock(), "{}", plain(text));
}

/// One line of JSON on standard output.
pub(super) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let json = serde_json::to_vec(value)
        .map(Zeroizing::new)
        .map_err(|error| Failure::new(Exit::Failed, format!("the answer cannot be written as JSON: {error}")))?;
    print_json_text(&json)
}

/// JSON that is written already.
pub(super) fn print_json_text(json: &[u8]) -> Result<(), Failure> {
    print(&json_line(json, Reader::of_stdout()))
}

/// The JSON and a newline, in one allocation that never grows: an escape has six bytes.
pub(super) fn json_line(json: &[u8], reader: Reader) -> Zeroizing<Vec<u8>> {
    let mut line = Zeroizing::new(Vec::with_capacity(json.len() * 6 + 1));
    for text in json.utf8_chunks() {
        match reader {
            Reader::Terminal => escape_json(text.valid(), &mut line),
            Reader::Program => line.extend_from_slice(text.valid().as_bytes()),
        }
    }
    line.push(b'\n');
    line
}

/// JSON escapes the C0 controls itself; DEL, the C1 controls and the direction marks it lets through. Only strings can hold them, so
/// their escapes are good JSON for the same text.
fn escape_json(json: &str, line: &mut Vec<u8>) {
    for c in json.chars() {
        if is_harmless(c) {
            line.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        } else {
            // All of them are in the basic plane: four digits.
            line.extend_from_slice(format!("\\u{:04x}", u32::from(c)).as_bytes());
        }
    }
}

/// A value's bytes as they are; for a terminal with a newline, and only where they are text that cannot command it.
pub(super) fn value_bytes(value: &SecretValue, reader: Reader) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let bytes = value.expose();
    let mut out = Zeroizing::new(Vec::with_capacity(bytes.len() + 1));
    out.extend_from_slice(bytes);
    if reader == Reader::Program {
        return Ok(out);
    }
    let printable = |text: &str| text.chars().all(|c| is_harmless(c) || matches!(c, '\n' | '\r' | '\t'));
    if !std::str::from_utf8(bytes).is_ok_and(printable) {
        let failure =
            Failure::new(Exit::Failed, "the value has bytes that could command this terminal; it was not printed");
        return Err(failure.mend("pipe it into its program or a file, or print it with `-o json`"));
    }
    if !bytes.ends_with(b"\n") {
        out.push(b'\n');
    }
    Ok(out)
}

/// Somebody else's text for a terminal or a table: control characters and direction marks as escapes.
pub(super) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        if is_harmless(c) {
            plain.push(c);
        } else {
            // Writing to a String does not fail.
            let _ = write!(plain, "{}", c.escape_unicode());
        }
    }
    plain
}

/// Control characters command a terminal; the direction marks make it show another text than it got (Unicode TR36, section 3.1).
fn is_harmless(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}' | '\u{061C}')
}

/// Rows in aligned columns.
pub(super) struct Table(Vec<u8>);

impl Table {
    pub(super) const fn new() -> Self {
        Self(Vec::new())
    }

    pub(super) fn row<'a>(&mut self, cells: impl IntoIterator<Item = &'a str>) {
        for (index, cell) in cells.into_iter().enumerate() {
            if index > 0 {
                self.0.push(b'\t');
            }
            self.0.extend_from_slice(plain(cell).as_bytes());
        }
        self.0.push(b'\n');
    }

    pub(super) fn print(self) -> Result<(), Failure> {
        print(self.render().map_err(|error| Failure::of_output(&error))?.as_bytes())
    }

    pub(super) fn render(self) -> std::io::Result<String> {
        let mut writer = TabWriter::new(Vec::new()).minwidth(0).padding(2);
        writer.write_all(&self.0)?;
        let bytes = writer.into_inner().map_err(|error| std::io::Error::other(error.to_string()))?;
        String::from_utf8(bytes).map_err(std::io::Error::other)
    }
}
