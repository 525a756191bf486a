//! Each direct dependency has its reason in docs/DEPENDENCIES.md.

use super::root;
use std::collections::BTreeSet;
use std::fs;

fn direct() -> BTreeSet<String> {
    let manifest: toml::Table = fs::read_to_string(root().join("Cargo.toml")).unwrap().parse().unwrap();
    ["dependencies", "dev-dependencies", "build-dependencies"]
        .iter()
        .filter_map(|section| manifest.get(*section)?.as_table())
        .flat_map(|section| section.keys().cloned())
        .collect()
}

/// The first cell of each row of its tables: a name in backticks.
fn documented() -> Vec<String> {
    let document = fs::read_to_string(root().join("docs/DEPENDENCIES.md")).unwrap();
    let rows = document.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.filter_map(|row| Some(row.split_once('`')?.0.to_owned())).collect()
}

#[test]
fn every_direct_dependency_has_its_reason_written_down_and_no_other() {
    let (direct, documented) = (direct(), documented());
    assert!(direct.len() > 20, "read only {direct:?}");
    let once: BTreeSet<String> = documented.iter().cloned().collect();
    assert_eq!(once.len(), documented.len(), "a dependency has two rows");
    let missing: Vec<_> = direct.difference(&once).collect();
    let gone: Vec<_> = once.difference(&direct).collect();
    assert!(missing.is_empty(), "add to docs/DEPENDENCIES.md: {missing:?}");
    assert!(gone.is_empty(), "no longer a dependency, but in docs/DEPENDENCIES.md: {gone:?}");
}

#[test]
fn every_reason_is_more_than_a_name() {
    let document = fs::read_to_string(root().join("docs/DEPENDENCIES.md")).unwrap();
    for row in document.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        assert!(cells.len() == 3 && cells[1].len() > 20, "{row}");
    }
}
