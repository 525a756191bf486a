//! The tables of docs/architecture.md, and what breaks them.

use super::source::{Found, Source};
use std::collections::BTreeMap;

pub(crate) struct Rules {
    /// For each room, the paths that it may use, each beginning with a room.
    pub(crate) doors: BTreeMap<String, Vec<Vec<String>>>,
    /// Paths for some modules only: the path, and the modules.
    pub(crate) reserved: Vec<(Vec<String>, Vec<Vec<String>>)>,
}

impl Rules {
    /// Reads the two tables under `## Doors`.
    pub(crate) fn read(document: &str) -> Self {
        let (_, section) = document.split_once("\n## Doors").expect("a section `## Doors`");
        let section = section.split("\n## ").next().unwrap_or_default();
        let mut rules = Self { doors: BTreeMap::new(), reserved: Vec::new() };
        let mut heading = String::new();
        for line in section.lines().map(str::trim) {
            let cells: Vec<String> =
                line.trim_matches('|').split('|').map(|cell| cell.trim().replace('`', "")).collect();
            match cells.as_slice() {
                [first, _] if first == "module" || first == "path" => heading.clone_from(first),
                [first, _] if first.starts_with('-') => {}
                [room, doors] if heading == "module" => {
                    rules.doors.insert(room.clone(), paths(doors));
                }
                [path, modules] if heading == "path" => {
                    rules.reserved.push((segments(path, "::"), modules.split(',').map(|m| segments(m, "/")).collect()));
                }
                _ => {}
            }
        }
        rules
    }
}

fn segments(path: &str, separator: &str) -> Vec<String> {
    path.trim().split(separator).map(|segment| segment.trim().to_owned()).collect()
}

/// A list such as `wire, crypto::SecretValue`; a dash is none.
fn paths(list: &str) -> Vec<Vec<String>> {
    list.split(',').filter(|entry| !matches!(entry.trim(), "" | "–" | "-")).map(|entry| segments(entry, "::")).collect()
}

/// What the sources do that the rules forbid, one line each.
pub(crate) fn check(sources: &[Source], rules: &Rules) -> Vec<String> {
    let tests: Vec<&Vec<String>> = sources.iter().flat_map(|source| &source.test_modules).collect();
    let free = |source: &Source| tests.iter().any(|test| source.module.starts_with(test));
    let mut problems = Vec::new();
    for source in sources.iter().filter(|source| !free(source)) {
        let room = source.room();
        if room != "lib" && !rules.doors.contains_key(room) {
            problems.push(format!("{}:1: {room} is no room of docs/architecture.md", source.file));
            continue;
        }
        let found = source.paths.iter().filter_map(|found| Some((found.line, problem(source, found, rules)?)));
        problems.extend(found.map(|(line, what)| format!("{}:{line}: {what}", source.file)));
    }
    problems
}

fn problem(source: &Source, found: &Found, rules: &Rules) -> Option<String> {
    if found.path == ["unsafe"] {
        return Some("unsafe".to_owned());
    }
    for (path, modules) in &rules.reserved {
        let uses = match path.as_slice() {
            // A method is called on a value as well as by its path.
            [_, method] if method.starts_with(char::is_lowercase) && path[0].starts_with(char::is_uppercase) => {
                found.path.last() == Some(method) && (found.is_method || found.path.len() > 1)
            }
            path => found.path.starts_with(path),
        };
        if uses && !modules.iter().any(|module| source.module.starts_with(module)) {
            let modules: Vec<String> = modules.iter().map(|module| module.join("/")).collect();
            return Some(format!("{} is for {} only", path.join("::"), modules.join(", ")));
        }
    }
    let target = found.in_crate.as_ref()?;
    let room = source.room();
    match target.first().map(String::as_str) {
        None | Some("*") => Some("the whole crate at once: name the room".to_owned()),
        Some(first) if first == room => None,
        Some(first) if !rules.doors.contains_key(first) => Some(format!("{first} is no room of docs/architecture.md")),
        Some(first) => {
            let doors = rules.doors.get(room).map_or(&[][..], Vec::as_slice);
            let name = target.join("::");
            if !doors.iter().any(|door| target.starts_with(door)) {
                Some(format!("{room} may not use {name}"))
            } else if found.is_re_export && first != "model" {
                Some(format!("{name} is re-exported, which opens a second door to it"))
            } else {
                None
            }
        }
    }
}
