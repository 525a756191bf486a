//! Copies on paper: base64 in groups of four, twelve bytes a line, and a check after every line, so that what was mistyped years later
//! is named by its line.
//!
//! ```text
//! CONTAINARIUM MASTER KEY ON PAPER 1
//! - 32 bytes in base64; capital and small letters differ after the colons.
//! - Whoever reads this sheet has the key.
//! kid: 9d0c ce90 2a19 5948 9132 dfe7 8b11 6c68 # f539 6b35
//! bytes: 32 # 05d9 99bf
//! 1: BU6X 4Cly uwRN lt8o # 0ea2 f0a7
//! 2: cboD TJXe J3C5 AkuU # 13b3 5081
//! 3: 3SZv uAFK k9w # 7cfe 4f7b
//! ```
//!
//! A check is the CRC-32C of `containarium/paper/1`, what kind of line it is (`k`, `b`, `d`), the kid, the line's number (u64
//! big-endian; 0 for `kid` and `bytes`) and its bytes (of `bytes`: the length as u64): a line of another sheet or at another place
//! does not pass either. CRC-32C finds every error of at most 32 bits in a row (Castagnoli 1993), so every mistyped
//! character and every swapped pair is found for certain. It keeps nobody out; paper is in clear.
//!
//! The reader forgives what cannot mean two things: spaces anywhere, capital or small hexadecimal digits and words, O for 0 and l or I
//! for 1 in numbers and checks, empty lines. Of base64 it forgives nothing: there O and 0 both are digits.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use data_encoding::{BASE64_NOPAD, HEXLOWER};
use zeroize::Zeroizing;

use super::copy::KeyCopy;
use crate::crypto::KeyfileImage;
use crate::model::Kid;

/// What is wrong with a sheet as it was typed. Rows are counted from 1 as in the file, also empty ones; nothing of a row is repeated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PaperError {
    #[error(
        "row {row} is not one of a key on paper: `kid:`, `bytes:` or a number and a colon, then groups, then # and a check of eight digits"
    )]
    NotALine { row: usize },
    #[error("row {row} ({line}) does not match its check: compare it with the paper, the check too")]
    Check { row: usize, line: String },
    #[error("row {row} ({line}) has a character that does not belong there: compare it with the paper")]
    Character { row: usize, line: String },
    #[error("row {row} ({line}) is there twice")]
    Twice { row: usize, line: String },
    #[error("the line `{line}` is missing")]
    Missing { line: String },
    #[error("row {row} (line {line}) is one more than the key has")]
    TooMany { row: usize, line: usize },
    #[error("the sheet says {bytes} bytes; a key file has 1 to {limit}")]
    BadLength { bytes: usize, limit: usize },
    #[error(
        "the sheet's first line is not `CONTAINARIUM MASTER KEY ON PAPER 1`: compare it with the paper; if another number stands there, a \
         newer containarium reads it"
    )]
    OtherVersion,
    #[error(
        "it has rows of a key on paper, and not the line that such a sheet begins with: `CONTAINARIUM MASTER KEY ON PAPER 1`"
    )]
    NoTitle,
    #[error("it is no UTF-8 text: save what was typed as plain text in UTF-8")]
    NotText,
    #[error(
        "every line matches its check, but the key has kid {found} and the sheet says {written}: it was printed for another key"
    )]
    OtherKey { written: Kid, found: Kid },
}

const TITLE: &str = "containarium master key on paper";
const VERSION: &str = "1";
const BYTES_A_LINE: usize = 12;
/// What all checks begin with, so that a check of anything else is none of these.
const LABEL: &[u8] = b"containarium/paper/1";

/// The sheet for a key file's content; `kid` is the kid of the key in it.
#[must_use]
pub fn write(image: &KeyfileImage, kid: Kid) -> Zeroizing<String> {
    let lines = image.len().div_ceil(BYTES_A_LINE);
    let mut sheet = Zeroizing::new(String::with_capacity(400 + 48 * lines));
    push_lines(&mut sheet, image.key_bytes(), kid);
    sheet
}

fn push_lines(sheet: &mut String, bytes: &[u8], kid: Kid) {
    let length = bytes.len();
    sheet.push_str("CONTAINARIUM MASTER KEY ON PAPER 1\n");
    push(sheet, format_args!("- {length} bytes in base64; capital and small letters differ after the colons.\n"));
    push(sheet, format_args!("- Whoever reads this sheet has the key.\n"));
    push(
        sheet,
        format_args!("kid: {} # {}\n", Groups(&kid.to_string()), Groups(&hex(check(Line::Kid, kid, kid.as_bytes())))),
    );
    push(sheet, format_args!("bytes: {length} # {}\n", Groups(&hex(length_check(kid, length)))));
    for (number, chunk) in (1..).zip(bytes.chunks(BYTES_A_LINE)) {
        let mut text = Zeroizing::new(String::with_capacity(16));
        BASE64_NOPAD.encode_append(chunk, &mut text);
        let sum = hex(check(Line::Data(number), kid, chunk));
        push(sheet, format_args!("{number}: {} # {}\n", Groups(&text), Groups(&sum)));
    }
}

fn push(sheet: &mut String, line: std::fmt::Arguments<'_>) {
    let written = sheet.write_fmt(line);
    debug_assert!(written.is_ok(), "memory takes what is written");
}

/// In groups of four.
struct Groups<'a>(&'a str);

impl std::fmt::Display for Groups<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, c) in self.0.char_indices() {
            if at > 0 && at % 4 == 0 {
                f.write_char(' ')?;
            }
            f.write_char(c)?;
        }
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Line {
    Kid,
    Bytes,
    Data(usize),
}

impl Line {
    fn name(self) -> String {
        match self {
            Self::Kid => "kid".to_owned(),
            Self::Bytes => "bytes".to_owned(),
            Self::Data(number) => format!("line {number}"),
        }
    }
}

fn check(line: Line, kid: Kid, content: &[u8]) -> u32 {
    let (letter, number) = match line {
        Line::Kid => (b'k', 0),
        Line::Bytes => (b'b', 0),
        Line::Data(number) => (b'd', u64::try_from(number).unwrap_or(u64::MAX)),
    };
    let place = [LABEL, &[letter], kid.as_bytes(), &number.to_be_bytes()].concat();
    crc32c::crc32c_append(crc32c::crc32c(&place), content)
}

fn length_check(kid: Kid, length: usize) -> u32 {
    check(Line::Bytes, kid, &u64::try_from(length).unwrap_or(u64::MAX).to_be_bytes())
}

fn hex(check: u32) -> String {
    HEXLOWER.encode(&check.to_be_bytes())
}

/// What some editors put before UTF-8 text.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// Whether it is a sheet, in whatever version, or was meant to be one: it begins with the title, or has rows that nothing else has. A key
/// file's 32 bytes have no such rows but by a chance of less than 2^-64.
pub(super) fn is_paper(bytes: &[u8]) -> bool {
    has_title(bytes) || is_utf_16(bytes) || ["kid:", "bytes:", "1:"].iter().all(|row| has_row(bytes, row))
}

/// Windows' editors save text so; no key file begins with a mark and has a zero in every other byte.
fn is_utf_16(bytes: &[u8]) -> bool {
    let (mark, text) = bytes.split_at(bytes.len().min(2));
    let zeros = |from: usize| text.len() > 64 && text.iter().skip(from).step_by(2).take(32).all(|byte| *byte == 0);
    (mark == [0xff, 0xfe] && zeros(1)) || (mark == [0xfe, 0xff] && zeros(0))
}

fn has_row(bytes: &[u8], row: &str) -> bool {
    let begins = |line: &[u8]| line.trim_ascii().to_ascii_lowercase().starts_with(row.as_bytes());
    bytes.split(|byte| *byte == b'\n').any(begins)
}

fn has_title(bytes: &[u8]) -> bool {
    let most = bytes.get(..512).unwrap_or(bytes);
    let text = Zeroizing::new(String::from_utf8_lossy(most).into_owned());
    let words =
        text.trim_start_matches(BYTE_ORDER_MARK).chars().filter(|c| !c.is_whitespace()).map(|c| c.to_ascii_lowercase());
    TITLE.chars().filter(|c| *c != ' ').eq(words.take(TITLE.len() - TITLE.matches(' ').count()))
}

/// Reads a sheet as it was typed, or scanned.
///
/// # Errors
/// Each [`PaperError`], about the first row that is wrong.
pub(super) fn read(bytes: &[u8]) -> Result<KeyCopy, PaperError> {
    let text = std::str::from_utf8(bytes).map_err(|_| PaperError::NotText)?;
    let text = text.trim_start_matches(BYTE_ORDER_MARK);
    if !has_title(bytes) {
        return Err(PaperError::NoTitle);
    }
    let mut rows = (1..).zip(text.lines()).filter(|(_, row)| {
        let row = row.trim();
        !row.is_empty() && !row.starts_with('-')
    });
    let title = rows.next().map(|(_, row)| Zeroizing::new(squeeze(row))).unwrap_or_default();
    if title.to_ascii_lowercase() != format!("{}{VERSION}", TITLE.replace(' ', "")) {
        return Err(PaperError::OtherVersion);
    }

    let mut lines = BTreeMap::new();
    for (row, text) in rows {
        let typed = Typed::read(row, text)?;
        let (row, name) = (typed.row, typed.line.name());
        if lines.insert(typed.line, typed).is_some() {
            return Err(PaperError::Twice { row, line: name });
        }
    }
    assemble(&lines)
}

/// A row, taken apart and not yet checked.
struct Typed {
    row: usize,
    line: Line,
    body: Zeroizing<String>,
    check: String,
}

impl Typed {
    fn read(row: usize, text: &str) -> Result<Self, PaperError> {
        let not_a_line = PaperError::NotALine { row };
        let Some((label, rest)) = text.split_once(':') else { return Err(not_a_line) };
        let Some((body, check)) = rest.split_once('#') else { return Err(not_a_line) };
        let label = squeeze(label).to_ascii_lowercase();
        let line = match label.as_str() {
            "kid" => Line::Kid,
            "bytes" => Line::Bytes,
            number => Line::Data(digits(number).parse().map_err(|_| not_a_line.clone())?),
        };
        let check = digits(&squeeze(check));
        if check.len() != 8 {
            return Err(not_a_line);
        }
        Ok(Self { row, line, body: Zeroizing::new(squeeze(body)), check })
    }

    /// The row's bytes, where they have the row's check.
    fn checked(&self, kid: Kid, content: &[u8]) -> Result<(), PaperError> {
        let is_right = self.check == hex(check(self.line, kid, content));
        if is_right { Ok(()) } else { Err(PaperError::Check { row: self.row, line: self.line.name() }) }
    }

    fn bad_character(&self) -> PaperError {
        PaperError::Character { row: self.row, line: self.line.name() }
    }
}

fn assemble(lines: &BTreeMap<Line, Typed>) -> Result<KeyCopy, PaperError> {
    let find = |line: Line| lines.get(&line).ok_or_else(|| PaperError::Missing { line: line.name() });

    let typed = find(Line::Kid)?;
    let kid = Kid::from_hex(&digits(&typed.body)).ok_or_else(|| typed.bad_character())?;
    typed.checked(kid, kid.as_bytes())?;

    let typed = find(Line::Bytes)?;
    let length: usize = digits(&typed.body).parse().map_err(|_| typed.bad_character())?;
    typed.checked(kid, &u64::try_from(length).unwrap_or(u64::MAX).to_be_bytes())?;
    if !(1..=KeyfileImage::MAX_LEN).contains(&length) {
        return Err(PaperError::BadLength { bytes: length, limit: KeyfileImage::MAX_LEN });
    }

    let mut bytes = Zeroizing::new(Vec::with_capacity(length));
    for number in 1..=length.div_ceil(BYTES_A_LINE) {
        let typed = find(Line::Data(number))?;
        let content = Zeroizing::new(BASE64_NOPAD.decode(typed.body.as_bytes()).map_err(|_| typed.bad_character())?);
        typed.checked(kid, &content)?;
        bytes.extend_from_slice(&content);
    }
    let last = lines.last_key_value().map(|(_, typed)| typed);
    if let Some(Typed { row, line: Line::Data(line), .. }) =
        last.filter(|typed| typed.line > Line::Data(length.div_ceil(BYTES_A_LINE)))
    {
        return Err(PaperError::TooMany { row: *row, line: *line });
    }
    // Fewer in a line than the sheet's lines have, each with its check: no printed sheet is so.
    if bytes.len() != length {
        return Err(PaperError::BadLength { bytes: bytes.len(), limit: KeyfileImage::MAX_LEN });
    }
    let copy = KeyCopy::new(KeyfileImage::new(bytes));
    match copy.kid() {
        Ok(found) if found != kid => Err(PaperError::OtherKey { written: kid, found }),
        _ => Ok(copy),
    }
}

/// Without spaces of any kind.
fn squeeze(text: &str) -> String {
    let mut squeezed = String::with_capacity(text.len());
    squeezed.extend(text.chars().filter(|c| !c.is_whitespace()));
    squeezed
}

/// Of decimal and hexadecimal digits: what can only be meant as one.
fn digits(text: &str) -> String {
    let digit = |c: char| match c.to_ascii_lowercase() {
        'o' => '0',
        'l' | 'i' => '1',
        c => c,
    };
    text.chars().map(digit).collect()
}
