//! `[[socket_users]]`: users of this host who are let in by their socket's peer credentials, and need no token.

use std::collections::HashMap;

use toml::de::{DeTable, DeValue};

use super::{ConfigError, Resolver, Setting, file::Reader};
use crate::model::{NamePattern, Names, Permission, Scope, Tenant};

/// What each may do, by uid.
pub type SocketUsers = HashMap<u32, Scope>;

impl Resolver<'_> {
    pub(super) fn socket_users(&mut self) -> Option<SocketUsers> {
        if self.layers.find(Setting::SocketUsers).is_none() {
            self.show(Setting::SocketUsers, None, super::Origin::Default);
            return Some(SocketUsers::new());
        }
        self.optional(Setting::SocketUsers, parse)
    }
}

/// One line for each: `UID: PERMISSIONS of TENANTS on NAMES`, which is also how `config show` prints it.
fn parse(lines: &str) -> Result<SocketUsers, String> {
    let mut users = SocketUsers::new();
    for line in lines.lines() {
        let (uid, scope) = user(line)?;
        if uid == 0 {
            return Err("uid 0 is root, who may do all: leave it out".to_owned());
        }
        if users.insert(uid, scope).is_some() {
            return Err(format!("uid {uid} is there twice: put all that it may do into one table"));
        }
    }
    Ok(users)
}

fn user(line: &str) -> Result<(u32, Scope), String> {
    let parts = || {
        let (uid, rest) = line.split_once(": ")?;
        let (permissions, rest) = rest.split_once(" of ")?;
        let (tenants, names) = rest.split_once(" on ")?;
        Some((uid, permissions, tenants, names))
    };
    let (uid, permissions, tenants, names) = parts().ok_or("each table needs uid, tenants and permissions")?;
    let uid: u32 = uid.parse().map_err(|_| "a uid is a number from 1 to 4294967294")?;
    if uid == u32::MAX {
        return Err("a uid is a number from 1 to 4294967294".to_owned());
    }
    let of = |why: &dyn std::fmt::Display| format!("uid {uid}: {why}");
    let words = |list: &str| list.split(',').filter(|word| !word.is_empty()).map(str::to_owned).collect::<Vec<_>>();
    let permissions: Result<Vec<_>, _> = words(permissions).iter().map(|word| Permission::parse(word)).collect();
    let tenants: Result<Vec<_>, _> = words(tenants).iter().map(|word| Tenant::parse(word)).collect();
    let names = match names {
        ANY => Names::Any,
        list => {
            let patterns: Result<_, _> = words(list).iter().map(|word| NamePattern::parse(word)).collect();
            Names::Like(patterns.map_err(|error| of(&error))?)
        }
    };
    let scope = Scope::new(tenants.map_err(|error| of(&error))?, permissions.map_err(|error| of(&error))?, names);
    Ok((uid, scope.map_err(|error| of(&error))?))
}

const ANY: &str = "every name";

/// The tables as one text, of which [`parse`] has the rules; `None` where something has not even the type that it must have, which is
/// an error by then.
pub(super) fn lines(reader: &mut Reader<'_>, tables: &[toml::Spanned<DeValue<'_>>]) -> Option<String> {
    let mut lines = Vec::with_capacity(tables.len());
    for table in tables {
        let DeValue::Table(fields) = table.get_ref() else {
            let found = table.get_ref().type_str();
            reader.wrong_type("socket_users".to_owned(), &table.span(), "a list of tables", found);
            return None;
        };
        lines.push(line(reader, fields)?);
    }
    Some(lines.join("\n"))
}

fn line(reader: &mut Reader<'_>, fields: &DeTable<'_>) -> Option<String> {
    let (mut uid, mut names) = (String::new(), ANY.to_owned());
    let (mut tenants, mut permissions) = (String::new(), String::new());
    let mut good = true;
    for (field, value) in fields {
        let key = format!("socket_users.{}", field.get_ref());
        let list = || match value.get_ref() {
            DeValue::Array(items) => words(items),
            _ => None,
        };
        let (to, found, expected) = match (field.get_ref().as_ref(), value.get_ref()) {
            ("uid", DeValue::Integer(number)) => (&mut uid, Some(number.as_str().to_owned()), "an integer"),
            ("uid", _) => (&mut uid, None, "an integer"),
            ("tenants", _) => (&mut tenants, list(), LIST),
            ("permissions", _) => (&mut permissions, list(), LIST),
            ("names", _) => (&mut names, list(), LIST),
            _ => {
                let path = reader.path.to_path_buf();
                reader.errors.push(ConfigError::UnknownKey { path, line: reader.line(&field.span()), key });
                good = false;
                continue;
            }
        };
        if let Some(text) = found {
            *to = text;
        } else {
            reader.wrong_type(key, &field.span(), expected, value.get_ref().type_str());
            good = false;
        }
    }
    good.then(|| format!("{uid}: {permissions} of {tenants} on {names}"))
}

const LIST: &str = "a list of strings without spaces, commas and line breaks";

fn words(items: &[toml::Spanned<DeValue<'_>>]) -> Option<String> {
    let words: Option<Vec<&str>> = items.iter().map(|item| item.get_ref().as_str()).collect();
    let words = words?;
    let plain = |word: &&str| !word.is_empty() && !word.contains([' ', ',', '\n', '\r']);
    words.iter().all(plain).then(|| words.join(","))
}
