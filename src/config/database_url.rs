//! The address of a PostgreSQL database, which may hold its password.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use zeroize::Zeroizing;

/// `postgres://…` or `postgresql://…`. Wiped when it goes; no `Debug`, no `Display`: [`DatabaseUrl::redacted`] is for showing.
pub struct DatabaseUrl(Zeroizing<String>);

const SCHEMES: &[&str] = &["postgres", "postgresql"];

/// More than any URL that a server or library takes.
const MAX_BYTES: usize = 16 * 1024;

/// Parameters that hold no secret; any other is shown without its value.
const SHOWN_PARAMETERS: &[&str] = &[
    "application_name",
    "dbname",
    "host",
    "hostaddr",
    "port",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "ssl-mode",
    "ssl-root-cert",
    "statement-cache-capacity",
    "user",
];

/// Parameters that libpq spells otherwise than sqlx, which takes both spellings.
const LIBPQ_SPELLINGS: &[(&str, &str)] = &[
    ("ssl-mode", "sslmode"),
    ("ssl-root-cert", "sslrootcert"),
    ("ssl-ca", "sslrootcert"),
    ("ssl-cert", "sslcert"),
    ("ssl-key", "sslkey"),
];

/// Parameters that are no business of other users of the host, who see command lines, and one that is sqlx's own.
const NOT_FOR_LIBPQ: &[&str] = &["password", "sslpassword", "statement-cache-capacity"];

impl DatabaseUrl {
    /// # Errors
    /// Why it is none, without a word of it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if text.starts_with("sqlite:") {
            return Err(
                "SQLite needs no URL: leave it out, and the database is a file in the data directory".to_owned()
            );
        }
        // A scheme is the same in any case (RFC 3986, 3.1), but not to libpq.
        let parts = text.split_once("://").map(|(scheme, rest)| (scheme.to_ascii_lowercase(), rest));
        let Some((scheme, rest)) = parts.filter(|(scheme, rest)| SCHEMES.contains(&&**scheme) && !rest.is_empty())
        else {
            return Err("it must start with postgres:// or postgresql:// and name a server".to_owned());
        };
        if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err("it holds a space or a control character: percent-encode it".to_owned());
        }
        Ok(Self(Zeroizing::new(format!("{scheme}://{rest}"))))
    }

    /// One line of a file that nobody but its owner can read. The checks are made on the open file, so that no swap gets between.
    ///
    /// # Errors
    /// Why it is not taken, without a word of its content.
    pub(super) fn from_file(path: &Path) -> Result<Self, String> {
        let name = path.display();
        // Without NONBLOCK a FIFO in the file's place would hang the start.
        let nonblock = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
        let file = OpenOptions::new().read(true).custom_flags(nonblock).open(path);
        let mut file = file.map_err(|error| format!("{name} cannot be opened: {error}"))?;
        let metadata = file.metadata().map_err(|error| format!("{name} cannot be read: {error}"))?;
        if !metadata.is_file() {
            return Err(format!("{name} is not a regular file"));
        }
        if metadata.mode() & 0o077 != 0 {
            let mode = metadata.mode() & 0o7777;
            return Err(format!("{name} has mode {mode:04o}, open to others than its owner: `chmod 0400 {name}`"));
        }
        let mut bytes = Zeroizing::new(vec![0; MAX_BYTES + 1]);
        let length = fill(&mut file, &mut bytes).map_err(|error| format!("{name} cannot be read: {error}"))?;
        if length > MAX_BYTES {
            return Err(format!("{name} has more than {MAX_BYTES} bytes"));
        }
        let text = bytes.get(..length).and_then(|bytes| std::str::from_utf8(bytes).ok());
        let text = text.ok_or_else(|| format!("{name} is not UTF-8"))?.trim_end_matches(['\r', '\n']);
        Self::parse(text).map_err(|why| format!("the URL in {name}: {why}"))
    }

    /// The URL with its password, for the connection alone.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.0
    }

    /// The URL as PostgreSQL's own programs take it from a command line, without a password.
    #[must_use]
    pub fn for_libpq(&self) -> String {
        let (scheme, rest) = self.0.split_once("://").unwrap_or_default();
        let (user, rest) = match rest.rsplit_once('@') {
            Some((userinfo, rest)) => (format!("{}@", userinfo.split(':').next().unwrap_or_default()), rest),
            None => (String::new(), rest),
        };
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let query: Vec<String> = query.split('&').filter_map(libpq_parameter).collect();
        let question = if query.is_empty() { "" } else { "?" };
        format!("{scheme}://{user}{}{question}{}", redacted_place(place), query.join("&"))
    }

    /// The URL for showing. What could be a password is `***`; in doubt more is hidden than needed: all before the last `@` belongs
    /// to user and password, since a password that was not percent-encoded may hold `/`, `?` or `@`.
    #[must_use]
    pub fn redacted(&self) -> String {
        let (scheme, rest) = self.0.split_once("://").unwrap_or_default();
        let (user, rest) = match rest.rsplit_once('@') {
            Some((userinfo, rest)) => (redacted_user(userinfo), rest),
            None => (String::new(), rest),
        };
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let query: Vec<_> = query.split('&').filter(|pair| !pair.is_empty()).map(redacted_parameter).collect();
        let question = if query.is_empty() { "" } else { "?" };
        format!("{scheme}://{user}{}{question}{}", redacted_place(place), query.join("&"))
    }
}

fn redacted_user(userinfo: &str) -> String {
    match userinfo.split_once(':') {
        Some((user, _)) => format!("{user}:***@"),
        None => format!("{userinfo}@"),
    }
}

/// `host:port/database`. What follows a colon and is no port is `user:password` whose `@` was forgotten.
fn redacted_place(place: &str) -> String {
    let (authority, path) = place.split_once('/').map_or((place, String::new()), |(a, p)| (a, format!("/{p}")));
    // `[::1]:5432`
    let host_end = authority.rfind(']').unwrap_or(0);
    let port = authority.get(host_end..).and_then(|tail| tail.split_once(':')).map_or("", |(_, port)| port);
    if port.bytes().all(|b| b.is_ascii_digit()) { format!("{authority}{path}") } else { "***".to_owned() }
}

fn redacted_parameter(pair: &str) -> String {
    match pair.split_once('=') {
        Some((name, _)) if !SHOWN_PARAMETERS.contains(&name) => format!("{name}=***"),
        Some(_) => pair.to_owned(),
        None => "***".to_owned(),
    }
}

fn libpq_parameter(pair: &str) -> Option<String> {
    let (name, value) = pair.split_once('=')?;
    // `options[NAME]=VALUE` is sqlx's own spelling of a setting.
    if let Some(setting) = name.strip_prefix("options[").and_then(|name| name.strip_suffix(']')) {
        return Some(format!("options=-c%20{setting}%3D{value}"));
    }
    let spelt = LIBPQ_SPELLINGS.iter().find(|(theirs, _)| *theirs == name).map_or(name, |(_, libpq)| libpq);
    (!NOT_FOR_LIBPQ.contains(&name)).then(|| format!("{spelt}={value}"))
}

/// Reads until the buffer is full or the file ends. `read_to_end` would grow a vector and leave what it outgrew unwiped.
fn fill(file: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut length = 0;
    while let Some(free) = buffer.get_mut(length..).filter(|free| !free.is_empty()) {
        match file.read(free) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_libpq_is_given_is_the_same_place_without_a_password() {
        for (url, given) in [
            ("postgres://u:p@h:5433/d", "postgres://u@h:5433/d"),
            ("Postgres://u@h/d", "postgres://u@h/d"),
            ("POSTGRESQL://h/d?password=p&sslpassword=q", "postgresql://h/d"),
            (
                "postgres://u@h/d?ssl-mode=verify-full&ssl-root-cert=/ca",
                "postgres://u@h/d?sslmode=verify-full&sslrootcert=/ca",
            ),
            ("postgres://h/d?ssl-ca=/ca&sslmode=require", "postgres://h/d?sslrootcert=/ca&sslmode=require"),
            (
                "postgres://h/d?connect_timeout=3&options=-c%20a%3Db",
                "postgres://h/d?connect_timeout=3&options=-c%20a%3Db",
            ),
            (
                "postgres://h/d?options[search_path]=x&statement-cache-capacity=0",
                "postgres://h/d?options=-c%20search_path%3Dx",
            ),
            ("postgres://u:a@b:c@[::1]:5/d", "postgres://u@[::1]:5/d"),
        ] {
            let parsed = DatabaseUrl::parse(url).unwrap_or_else(|why| panic!("{url}: {why}"));
            assert_eq!(parsed.for_libpq(), given);
        }
    }
}
