//! packaging/alerts.yml: rules that a Prometheus takes, over metrics that the daemon has.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use super::{is_here, root, said};
use crate::support::issuer::{Signer, set};
use crate::support::site::Site;

fn rules() -> String {
    fs::read_to_string(root().join("packaging/alerts.yml")).unwrap()
}

/// The metrics that a text names: names of this product that end as metrics do.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ends =
        ["_seconds", "_total", "_info", "_open", "_failed", "_phase", "_entries", "_missing", "_unread", "_verdict"];
    words
        .filter(|word| word.starts_with("containarium_") && ends.iter().any(|end| word.ends_with(end)))
        .map(str::to_owned)
        .collect()
}

/// Each rule's lines.
fn each_rule(text: &str) -> Vec<&str> {
    text.split("\n      - alert: ").skip(1).collect()
}

#[test]
fn every_rule_says_how_bad_it_is_and_what_to_do() {
    let text = rules();
    let rules = each_rule(&text);
    assert!(rules.len() >= 8, "only {} rules", rules.len());
    for rule in rules {
        let name = rule.lines().next().unwrap();
        for part in ["\n        expr: ", "\n          severity: ", "\n          summary: ", "\n          description: "]
        {
            assert_eq!(rule.matches(part).count(), 1, "{name}: {part}");
        }
        let expr = rule.lines().find_map(|line| line.trim().strip_prefix("expr: ")).unwrap();
        assert_ne!(metrics_in(expr).len(), 0, "{name} watches nothing of ours: {expr}");
        assert_eq!(expr.matches('(').count(), expr.matches(')').count(), "{name}: {expr}");
        assert!(["severity: critical", "severity: warning"].iter().any(|how| rule.contains(how)), "{name}");
    }
}

#[test]
fn the_rules_are_yaml_of_prometheus() {
    let file = root().join("packaging/alerts.yml");
    if is_here("promtool", "the_rules_are_yaml_of_prometheus") {
        let checked = Command::new("promtool").args(["check", "rules"]).arg(&file).output().unwrap();
        assert_eq!(said(&checked).0, Some(0), "{}", said(&checked).1);
        return;
    }
    // Whoever has no promtool may have a parser.
    let script = "import sys, yaml\n\
        groups = yaml.safe_load(open(sys.argv[1]))['groups']\n\
        keys = {'alert', 'expr', 'for', 'labels', 'annotations'}\n\
        for rule in (rule for group in groups for rule in group['rules']):\n\
        \x20   assert set(rule) <= keys and isinstance(rule['expr'], str), rule\n";
    let has_yaml = Command::new("python3").args(["-c", "import yaml"]).output().is_ok_and(|done| done.status.success());
    if has_yaml {
        let parsed = Command::new("python3").args(["-c", script]).arg(&file).output().unwrap();
        assert_eq!(said(&parsed).0, Some(0), "{}", said(&parsed).1);
    } else {
        eprintln!("skipped: the_rules_are_yaml_of_prometheus: neither promtool nor python3's yaml is installed");
    }
}

#[test]
fn every_metric_that_is_watched_is_one_that_the_daemon_has() {
    let site = Site::sqlite();
    std::fs::write(site.path("keys.json"), set(&[&Signer::ed("1")])).unwrap();
    let issuer = "[[oidc]]\nissuer = \"example\"\naudiences = [\"containarium\"]\njwks_file = \"keys.json\"\nalgorithms = [\"EdDSA\"]\n\
                  [[oidc.rules]]\nclaims = { sub = \"one\" }\ntenants = [\"one\"]\npermissions = [\"read\"]\n";
    std::fs::write(site.config_file(), issuer).unwrap();
    let daemon = site.start();
    // A first request, so that requests have been counted.
    daemon.get("/livez");
    let text = String::from_utf8(daemon.get("/metrics").body).unwrap();
    let typed = |line: &str| line.strip_prefix("# TYPE ").and_then(|rest| rest.split(' ').next()).map(str::to_owned);
    let known: BTreeSet<String> = text.lines().filter_map(typed).collect();
    assert!(known.len() > 10, "{known:?}");
    let mut watched = metrics_in(&rules());
    // The alert over Google's monitoring.
    watched.insert("containarium_key_backup_verified_timestamp_seconds".to_owned());
    for file in tf_files(&root().join("terraform")) {
        watched.extend(metrics_in(&fs::read_to_string(file).unwrap()));
    }
    let unknown: Vec<_> = watched.difference(&known).collect();
    assert!(unknown.is_empty(), "the daemon has no {unknown:?}; it has {known:?}");
    assert!(watched.len() > 6, "{watched:?}");
}

/// The module's own files; none where it is not there yet.
fn tf_files(directory: &Path) -> Vec<std::path::PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "tf")).collect()
}
