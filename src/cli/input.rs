//! What a command reads: a value, and a name typed again.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use clap::{Args, ValueHint};
use zeroize::Zeroizing;

use crate::crypto::SecretValue;
use crate::model::{MAX_VALUE_BYTES, SecretName, Tenant};

use super::failure::{Exit, Failure};
use super::output::{note, plain};

/// A value, the newline that `--trim-newline` takes off (CR LF), and one byte more to see that it is too long.
const BUFFER: usize = MAX_VALUE_BYTES + 2 + 1;

/// Where a value comes from, and what may be done to it.
#[derive(Args)]
pub(super) struct ValueArgs {
    /// The value; better given on standard input, since other users of the host can see a command line
    // An OsString: a value may be any bytes. What clap and the kernel keep of it cannot be wiped.
    #[arg(value_name = "VALUE", conflicts_with = "from_file")]
    value: Option<OsString>,
    /// Read the value from this file; - is standard input
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    from_file: Option<PathBuf>,
    /// Accept an empty value, which is otherwise taken for a broken pipeline
    #[arg(long)]
    allow_empty: bool,
    /// Take one newline (LF or CR LF) off the end
    #[arg(long)]
    trim_newline: bool,
}

impl ValueArgs {
    /// Reads the value. Warnings go to standard error.
    pub(super) fn read(self, tenant: &Tenant, name: &SecretName) -> Result<SecretValue, Failure> {
        let empty = if self.allow_empty { Empty::Allow } else { Empty::Refuse };
        let newline = if self.trim_newline { Newline::Trim } else { Newline::Keep };
        let bytes = match (self.value, self.from_file) {
            (Some(value), _) => {
                note(
                    "warning: other users of this host can see a value on the command line; give it on standard input",
                );
                Zeroizing::new(value.into_vec())
            }
            (None, Some(path)) if path == Path::new("-") => from_stdin()?,
            (None, Some(path)) => from_file(&path)?,
            (None, None) if std::io::stdin().is_terminal() => from_prompt(tenant, name)?,
            (None, None) => from_stdin()?,
        };
        let (value, warning) = accept(bytes, empty, newline)?;
        if let Some(warning) = warning {
            note(warning);
        }
        Ok(value)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Empty {
    Refuse,
    Allow,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Newline {
    Keep,
    Trim,
}

/// The rules of a value that was read, and what to warn of.
pub(super) fn accept(
    mut bytes: Zeroizing<Vec<u8>>,
    empty: Empty,
    newline: Newline,
) -> Result<(SecretValue, Option<&'static str>), Failure> {
    let content = bytes.strip_suffix(b"\r\n").or_else(|| bytes.strip_suffix(b"\n")).map(<[u8]>::len);
    let mut warning = None;
    match (newline, content) {
        (Newline::Trim, Some(length)) => bytes.truncate(length),
        // More lines than one are a text, such as PEM, and end in a newline by right.
        (Newline::Keep, Some(length)) if !bytes.iter().take(length).any(|byte| *byte == b'\n') => {
            warning = Some("warning: the value ends with a newline, which is kept; --trim-newline takes it off");
        }
        _ => {}
    }
    if bytes.len() > MAX_VALUE_BYTES {
        let failure = Failure::usage(format!("the value has more than {MAX_VALUE_BYTES} bytes; nothing was sent"));
        return Err(failure.mend("keep a larger file encrypted elsewhere, and its key here"));
    }
    if bytes.is_empty() && empty == Empty::Refuse {
        let failure = Failure::usage("the value is empty; nothing was sent");
        return Err(failure.mend("if it is meant to be empty, add --allow-empty; else see what should have written it"));
    }
    Ok((SecretValue::new(bytes), warning))
}

/// A hidden line from the terminal.
fn from_prompt(tenant: &Tenant, name: &SecretName) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let line = rpassword::prompt_password(format!("Value of {tenant}/{name} (hidden): "));
    line.map(|line| Zeroizing::new(line.into_bytes())).map_err(|error| {
        Failure::new(Exit::Failed, format!("cannot read from the terminal: {error}"))
            .mend("pipe the value in, or use --from-file")
    })
}

/// Standard input without Rust's buffer for it, which would keep a copy that nobody wipes.
fn from_stdin() -> Result<Zeroizing<Vec<u8>>, Failure> {
    let stdin = std::io::stdin().as_fd().try_clone_to_owned().map(File::from);
    stdin
        .and_then(|mut stdin| read_bounded(&mut stdin))
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot read standard input: {error}")))
}

fn from_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    File::open(path).and_then(|mut file| read_bounded(&mut file)).map_err(|error| {
        Failure::usage(format!("cannot read {}: {error}", path.display()))
            .mend("see with `ls -l` whether it is there and yours")
    })
}

/// At most [`BUFFER`] bytes, in one allocation that never grows.
pub(super) fn read_bounded(from: &mut impl Read) -> std::io::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(vec![0; BUFFER]);
    let mut length = 0;
    while let Some(free) = bytes.get_mut(length..).filter(|free| !free.is_empty()) {
        match from.read(free) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(length);
    Ok(bytes)
}

/// Whether the operator has agreed already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Consent {
    Given,
    Ask,
}

/// Lets the name be typed again before something is gone for good.
pub(super) fn confirm(what: &str, name: &str, consent: Consent) -> Result<(), Failure> {
    if consent == Consent::Given {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        let failure =
            Failure::usage(format!("this would {what}, and there is no terminal to ask on; nothing was done"));
        return Err(failure.mend("add --yes to do it without being asked"));
    }
    // Standard error may be closed; then nobody can read the question, and the answer will not fit.
    let _ = write!(std::io::stderr().lock(), "This will {}.\nType {name} to go on: ", plain(what));
    check_answer(&mut std::io::stdin().lock(), name)
}

pub(super) fn check_answer(from: &mut impl BufRead, name: &str) -> Result<(), Failure> {
    let mut line = String::new();
    // A name has at most 128 bytes: what is longer is not it.
    let read = from.take(256).read_line(&mut line);
    if read.is_ok() && line.trim_end_matches(['\r', '\n']) == name {
        return Ok(());
    }
    Err(Failure::usage("that is not the name; nothing was done").mend("type the name as it is shown, or add --yes"))
}
