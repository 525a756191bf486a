//! The doors test: docs/architecture.md says which room may use which, and every path in `src/` keeps to it. The tables are read
//! from the document, so that the two cannot differ.
//!
//! A hand-made reader of tokens and not a parser of Rust: it also sees the paths inside macro calls, which a syntax tree keeps as
//! tokens, and needs no dependency.

mod rules;
mod source;

use rules::{Rules, check};
use source::Source;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rules() -> Rules {
    Rules::read(&fs::read_to_string(root().join("docs/architecture.md")).unwrap())
}

fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

fn problems_in(files: &[(&str, &str)]) -> Vec<String> {
    check(&files.iter().map(|(path, text)| Source::read(path, text)).collect::<Vec<_>>(), &rules())
}

#[test]
fn every_path_in_src_goes_through_a_door_of_the_architecture() {
    let src = root().join("src");
    let files = rust_files(&src);
    assert!(files.len() >= 10, "only {} files under src/", files.len());
    let read = |path: &PathBuf| {
        let name = path.strip_prefix(&src).unwrap().to_str().unwrap().to_owned();
        Source::read(&name, &fs::read_to_string(path).unwrap())
    };
    let sources: Vec<Source> = files.iter().map(read).collect();
    let paths: usize = sources.iter().map(|source| source.paths.len()).sum();
    assert!(paths > 500, "the reader saw only {paths} paths");
    let problems = check(&sources, &rules());
    assert!(problems.is_empty(), "docs/architecture.md, Doors:\n{}", problems.join("\n"));
}

#[test]
fn the_tables_name_rooms_only_and_are_whole() {
    let rules = rules();
    for room in ["main", "cli", "service", "keys", "crypto", "store", "model", "clock"] {
        assert!(rules.doors.contains_key(room), "{room} has no row");
    }
    for (room, doors) in &rules.doors {
        for door in doors {
            assert!(rules.doors.contains_key(&door[0]), "{room} may use {}, which is no room", door.join("::"));
            assert_ne!(&door[0], room, "a room needs no door to itself");
        }
    }
    let reserved: Vec<String> = rules.reserved.iter().map(|(word, _)| word.join("::")).collect();
    let values = ["sqlx", "std::env", "SecretValue::expose", "KeyfileImage::key_bytes"];
    let libraries = [
        "google_cloud_auth",
        "google_cloud_gax",
        "google_cloud_kms_v1",
        "google_cloud_secretmanager_v1",
        "reqwest",
        "jsonwebtoken",
        "rustls",
    ];
    assert_eq!(reserved, [&values[..], &libraries].concat());
}

#[test]
fn what_the_table_allows_is_taken() {
    let good = [
        ("main.rs", "use containarium::{cli, process}; fn main() { cli::run(); containarium::daemon::run() }"),
        ("lib.rs", "pub mod store; mod crypto;"),
        ("store.rs", "mod sqlite; use crate::model::{Tenant, Kid}; use sqlx::Row; pub use sqlite::Sqlite;"),
        ("store/sqlite.rs", "use super::Refusal; use crate::store::{self, Found}; fn f(_: ::sqlx::Pool) {}"),
        ("wire.rs", "use crate::crypto::SecretValue; fn f(v: &SecretValue) { v.expose(); }"),
        ("http.rs", "use crate::crypto::{SecretValue, random_id};"),
        ("http/secrets.rs", "fn f(v: V) -> &'static [u8] { v.expose() }"),
        ("config.rs", "use std::{env, fs}; fn f() { env::var(\"A\") }"),
        ("crypto.rs", "pub(crate) fn a() {} pub(in crate::crypto) fn b() {} mod tests_are_free {}"),
        (
            "clock.rs",
            "//! crate::store in words\n/* crate::store /* nested */ unsafe */ const A: &str = \"crate::store\"; \
                      const B: &[u8] = br#\"unsafe \" sqlx::\"#; const C: char = '\"'; const D: char = '\\''; fn f<'a>() {}",
        ),
        ("store.rs", "mod inner { use super::keys; mod deeper { use super::super::keys; } }"),
        ("keys.rs", "#[cfg(test)] mod tests { use crate::store::Store; fn f() { std::env::var(\"A\"); } }"),
        ("keys/cache.rs", "#[cfg(test)]\n#[path = \"x.rs\"]\nmod tests; fn f() {}"),
        ("keys/cache/tests.rs", "use crate::http::Router; mod deeper;"),
        ("keys/cache/tests/deeper.rs", "use crate::http::Router;"),
    ];
    assert_eq!(problems_in(&good), Vec::<String>::new());
}

/// Each kind of trespass, each by the ways to write it.
#[test]
fn every_kind_of_trespass_is_found() {
    let bad = [
        ("store.rs", "use crate::crypto::seal;", "store.rs:1: store may not use crypto::seal"),
        (
            "store/sqlite.rs",
            "\n\nfn f() { crate::service::get() }",
            "store/sqlite.rs:3: store may not use service::get",
        ),
        ("store.rs", "use crate::{model::Kid, keys::{cache, Keys}};", "store.rs:1: store may not use keys::cache"),
        ("store/sqlite.rs", "use super::super::keys::Keys;", "store/sqlite.rs:1: store may not use keys::Keys"),
        ("store.rs", "mod inner { use super::super::keys::Keys; }", "store.rs:1: store may not use keys::Keys"),
        ("store.rs", "mod inner { mod deeper {} } use super::keys;", "store.rs:1: store may not use keys"),
        ("store.rs", "use self::super::keys;", "store.rs:1: store may not use keys"),
        ("store.rs", "use super::keys;", "store.rs:1: store may not use keys"),
        (
            "store.rs",
            "fn f() { assert!(matches!(x, crate::keys::Locked)) }",
            "store.rs:1: store may not use keys::Locked",
        ),
        ("store.rs", "macro_rules! m { () => { $crate::keys::f() } }", "store.rs:1: store may not use keys::f"),
        ("store.rs", "fn f<'a>(x: &'a str) -> <T as crate::keys::K>::X {}", "store.rs:1: store may not use keys::K"),
        ("store.rs", "const A: &str = \"\\\"\"; use crate::keys::K;", "store.rs:1: store may not use keys::K"),
        ("http.rs", "use crate::crypto::Dek;", "http.rs:1: http may not use crypto::Dek"),
        ("http.rs", "use crate::crypto;", "http.rs:1: http may not use crypto"),
        ("http.rs", "use crate::crypto::*;", "http.rs:1: http may not use crypto::*"),
        ("main.rs", "use containarium::store;", "main.rs:1: main may not use store"),
        ("lib.rs", "pub use model::Kid; use crate::model::Kid;", "lib.rs:1: lib may not use model::Kid"),
        ("model.rs", "use crate::nothing::X;", "model.rs:1: nothing is no room"),
        ("model.rs", "use crate::*;", "model.rs:1: the whole crate at once: name the room"),
        ("model.rs", "use crate as all;", "model.rs:1: the whole crate at once: name the room"),
        ("model.rs", "use crate::{self as all};", "model.rs:1: the whole crate at once: name the room"),
        ("model.rs", "use super::*;", "model.rs:1: the whole crate at once: name the room"),
        (
            "service.rs",
            "pub use crate::store::Store;",
            "service.rs:1: store::Store is re-exported, which opens a second door to it",
        ),
        ("vault.rs", "fn f() {}", "vault.rs:1: vault is no room"),
        ("keys.rs", "fn f(_: sqlx::Pool) {}", "keys.rs:1: sqlx is for store, compose only"),
        ("keys.rs", "use ::sqlx::Pool;", "keys.rs:1: sqlx is for store, compose only"),
        ("keys.rs", "fn f(x: X) { g(x as ::sqlx::Pool) }", "keys.rs:1: sqlx is for store, compose only"),
        ("keys.rs", "use std::{fs, env};", "keys.rs:1: std::env is for config, cli only"),
        ("keys.rs", "fn f() { std::env::var_os(\"A\"); }", "keys.rs:1: std::env is for config, cli only"),
        ("service.rs", "fn f() { value.expose(); }", "service.rs:1: SecretValue::expose is for"),
        ("service.rs", "fn f() { v.as_ref().map(SecretValue::expose) }", "service.rs:1: SecretValue::expose is for"),
        ("keys.rs", "fn f() { image.key_bytes(); }", "keys.rs:1: KeyfileImage::key_bytes is for"),
        ("gcp.rs", "use crate::crypto::MasterKey;", "gcp.rs:1: gcp may not use crypto::MasterKey"),
        ("backup.rs", "use google_cloud_gax::error::Error;", "backup.rs:1: google_cloud_gax is for gcp only"),
        ("http/admin.rs", "fn f() { value.expose(); }", "http/admin.rs:1: SecretValue::expose is for"),
        ("crypto/aead.rs", "fn f() { unsafe { g() } }", "crypto/aead.rs:1: unsafe"),
        (
            "keys.rs",
            "#[cfg(test)] fn f() {} mod tests { use crate::store::S; }",
            "keys.rs:1: keys may not use store::S",
        ),
        ("keys.rs", "#[cfg(test)] mod tests { } use crate::store::S;", "keys.rs:1: keys may not use store::S"),
    ];
    for (path, text, expected) in bad {
        let found = problems_in(&[(path, text)]);
        assert!(found.iter().any(|problem| problem.starts_with(expected)), "{path}: {text}\nfound {found:?}");
    }
}

#[test]
fn a_file_is_free_only_where_its_parent_declares_it_a_test() {
    let trespass = ("keys/tests.rs", "use crate::http::Router;");
    assert_eq!(problems_in(&[("keys.rs", "mod tests;"), trespass]).len(), 1);
    assert_eq!(problems_in(&[("keys.rs", "#[cfg(test)] mod tests;"), trespass]).len(), 0);
}
