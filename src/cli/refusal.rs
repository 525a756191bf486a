//! What clap says of a command line that it does not take, without the words that may be a secret: an argument too many after
//! `secrets set` is most likely a value with a space in it, and a PEM file begins like a flag.

use std::ffi::OsString;

use clap::Error;
use clap::error::{ContextKind, ContextValue, ErrorKind};

/// Stands for what the operator typed.
const HIDDEN: &str = "…";

/// The error with every word of the operator's taken out that is not plainly a name of this command line.
pub(super) fn without_values(mut error: Error, arguments: &[OsString]) -> Error {
    hide(&mut error, ContextKind::InvalidValue, |_| false);
    hide(&mut error, ContextKind::InvalidSubcommand, is_word);
    // The other kinds name arguments that are declared, not given.
    if error.kind() == ErrorKind::UnknownArgument {
        let sets = arguments.iter().any(|argument| argument == "set");
        hide(&mut error, ContextKind::InvalidArg, |text| !sets && text.strip_prefix("--").is_some_and(is_word));
    }
    // "to pass '…' as a value": it repeats the argument, and would teach to put secrets on the command line.
    error.remove(ContextKind::Suggested);
    error.remove(ContextKind::TrailingArg);
    error
}

fn hide(error: &mut Error, kind: ContextKind, harmless: impl Fn(&str) -> bool) {
    let shown = match error.get(kind) {
        None => return,
        Some(ContextValue::String(text)) => harmless(text),
        Some(_) => false,
    };
    if !shown {
        error.insert(kind, ContextValue::String(HIDDEN.to_owned()));
    }
}

/// As commands and flags look; longer ones than any of ours are no typing errors.
fn is_word(text: &str) -> bool {
    text.len() <= 20 && text.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')
}
