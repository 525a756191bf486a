//! The configuration file: TOML, every key known.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};
use zeroize::Zeroizing;

use super::layers::{Given, Kind, Layers, Reach};
use super::{ConfigError, Environment, Flags, Origin, Setting, oidc, places, socket_users, values};

const MAX_BYTES: u64 = 1024 * 1024;

/// What the file gave.
#[derive(Default)]
pub(super) struct FileLayer {
    /// `None` where there is no file.
    pub path: Option<PathBuf>,
    values: BTreeMap<Setting, (OsString, usize)>,
}

impl FileLayer {
    pub(super) fn find(&self, setting: Setting) -> Option<Given<'_>> {
        let (value, line) = self.values.get(&setting)?;
        Some(Given { value, origin: Origin::File { path: self.path.clone()?, line: *line } })
    }
}

/// Where the file is looked for.
pub(super) enum Place {
    /// Named by flag or environment: it must be there.
    Named(PathBuf, Origin),
    /// The default: it may be absent.
    Default(PathBuf),
    /// There is not even a default directory: settings come from flags and environment, and say themselves what they miss.
    Nowhere,
}

pub(super) fn find(flags: &Flags, environment: &Environment) -> Result<Place, ConfigError> {
    let none = FileLayer::default();
    let Some(given) = (Layers { flags, environment, file: &none }).find(Setting::Config) else {
        return Ok(places::config_file(environment).map_or(Place::Nowhere, Place::Default));
    };
    match values::path(given.value, environment.working_dir()) {
        Ok(path) => Ok(Place::Named(path, given.origin)),
        Err(why) => Err(ConfigError::Invalid { setting: Setting::Config, origin: given.origin, why }),
    }
}

/// Reads it, adding what is wrong inside to `errors`.
///
/// # Errors
/// Why there is nothing to read: [`ConfigError::NoFile`], [`ConfigError::Unreadable`] or [`ConfigError::Syntax`].
pub(super) fn read(place: Place, errors: &mut Vec<ConfigError>) -> Result<FileLayer, ConfigError> {
    let (path, named) = match place {
        Place::Named(path, origin) => (path, Some(origin)),
        Place::Default(path) => (path, None),
        Place::Nowhere => return Ok(FileLayer::default()),
    };
    let text = match (text(&path), named) {
        (Ok(text), _) => text,
        (Err(error), None) if error.kind() == ErrorKind::NotFound => return Ok(FileLayer::default()),
        (Err(error), Some(origin)) if error.kind() == ErrorKind::NotFound => {
            return Err(ConfigError::NoFile { path, origin });
        }
        (Err(error), _) => return Err(ConfigError::Unreadable { path, why: error.to_string() }),
    };
    parse(&path, &text, errors)
}

fn text(path: &Path) -> std::io::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    File::open(path)?.take(MAX_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(std::io::Error::new(ErrorKind::FileTooLarge, "it has more than 1 MiB"));
    }
    Ok(text)
}

fn parse(path: &Path, text: &str, errors: &mut Vec<ConfigError>) -> Result<FileLayer, ConfigError> {
    // The error's Display quotes the line, which can be the database's password; its message does not.
    let table = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
        path: path.to_path_buf(),
        line: error.span().map_or(1, |span| line_of(text, &span)),
        what: error.message().to_owned(),
    })?;
    let mut reader = Reader { path, text, errors, values: BTreeMap::new() };
    reader.table("", table.get_ref());
    Ok(FileLayer { path: Some(path.to_path_buf()), values: reader.values })
}

pub(super) struct Reader<'a> {
    pub(super) path: &'a Path,
    text: &'a str,
    pub(super) errors: &'a mut Vec<ConfigError>,
    values: BTreeMap<Setting, (OsString, usize)>,
}

impl Reader<'_> {
    fn table(&mut self, above: &str, table: &DeTable<'_>) {
        for (name, value) in table {
            let key = format!("{above}{}", name.get_ref());
            let line = line_of(self.text, &name.span());
            match value.get_ref() {
                DeValue::Table(inner) if is_table(&key) => self.table(&format!("{key}."), inner),
                found if is_table(&key) => self.mistyped(key, line, "a table", found.type_str()),
                found => self.setting(key, line, found),
            }
        }
    }

    fn setting(&mut self, key: String, line: usize, found: &DeValue<'_>) {
        let known = |setting: &&Setting| setting.key() == key && setting.reach() != Reach::NotInFile;
        let Some(setting) = Setting::ALL.iter().find(known) else {
            self.errors.push(ConfigError::UnknownKey { path: self.path.to_path_buf(), line, key });
            return;
        };
        let value = match (setting.kind(), found) {
            (Kind::Text, DeValue::String(text)) => OsStr::new(text.as_ref()).to_owned(),
            (Kind::Boolean, DeValue::Boolean(yes)) => yes.to_string().into(),
            // A number that no 128 bits hold stays as it is written, and its setting's rule refuses it.
            (Kind::Integer, DeValue::Integer(number)) => i128::from_str_radix(number.as_str(), number.radix())
                .map_or_else(|_| number.as_str().to_owned(), |number| number.to_string())
                .into(),
            (Kind::Lines, DeValue::Array(items)) if items.iter().all(is_line) => {
                items.iter().filter_map(|item| item.get_ref().as_str()).collect::<Vec<_>>().join("\n").into()
            }
            (Kind::Users, DeValue::Array(tables)) => match socket_users::lines(self, tables) {
                Some(lines) => lines.into(),
                None => return,
            },
            (Kind::Issuers, DeValue::Array(tables)) => match oidc::lines(self, tables) {
                Some(lines) => lines.into(),
                None => return,
            },
            (kind, found) => return self.mistyped(key, line, expected(kind), found.type_str()),
        };
        self.values.insert(*setting, (value, line));
    }

    pub(super) fn wrong_type(&mut self, key: String, at: &Range<usize>, expected: &'static str, found: &'static str) {
        let line = self.line(at);
        self.mistyped(key, line, expected, found);
    }

    fn mistyped(&mut self, key: String, line: usize, expected: &'static str, found: &'static str) {
        let path = self.path.to_path_buf();
        self.errors.push(ConfigError::WrongType { path, line, key, expected, found });
    }

    pub(super) fn line(&self, at: &Range<usize>) -> usize {
        line_of(self.text, at)
    }
}

fn is_table(key: &str) -> bool {
    let within = |setting: &Setting| setting.key().strip_prefix(key).is_some_and(|rest| rest.starts_with('.'));
    Setting::ALL.iter().any(within)
}

fn is_line(item: &Spanned<DeValue<'_>>) -> bool {
    item.get_ref().as_str().is_some_and(|text| !text.contains('\n'))
}

const fn expected(kind: Kind) -> &'static str {
    match kind {
        Kind::Text => "a string",
        Kind::Boolean => "true or false",
        Kind::Integer => "an integer",
        Kind::Lines => "a list of strings without line breaks",
        Kind::Users => "a list of tables, each under [[socket_users]]",
        Kind::Issuers => "a list of tables, each under [[oidc]]",
    }
}

/// From 1.
fn line_of(text: &str, span: &Range<usize>) -> usize {
    text.bytes().take(span.start).filter(|byte| *byte == b'\n').count() + 1
}
