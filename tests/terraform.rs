//! What holds of terraform/ by reading it. What its code does is tested by terraform itself (terraform/tests).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use crate::support::site::Site;

/// Every kind of resource and data source that the module and its examples may have. None of them takes a key's bytes, prints them, or
/// keeps them in the state; what would (a secret's version, a service account's key, a KMS ciphertext, a local file, a provisioner)
/// is not here, and neither is a grant on a whole project.
const KINDS: [&str; 15] = [
    r#"data "google_project""#,
    r#"resource "google_kms_crypto_key""#,
    r#"resource "google_kms_crypto_key_iam_member""#,
    r#"resource "google_kms_key_ring""#,
    r#"resource "google_monitoring_alert_policy""#,
    r#"resource "google_monitoring_notification_channel""#,
    r#"resource "google_project_iam_audit_config""#,
    r#"resource "google_project_iam_custom_role""#,
    r#"resource "google_project_service""#,
    r#"resource "google_resource_manager_lien""#,
    r#"resource "google_secret_manager_secret""#,
    r#"resource "google_secret_manager_secret_iam_member""#,
    r#"resource "google_service_account""#,
    r#"resource "google_service_account_iam_member""#,
    r#"provider "google""#,
];

/// Arguments, functions and blocks by which a key's bytes could come in, whatever has them.
const WORDS: [&str; 16] = [
    "secret_data",
    "secret_version\"",
    "plaintext",
    "ciphertext",
    "private_key",
    "service_account_key",
    "random_",
    "tls_",
    "local_file",
    "sensitive_labels",
    "provisioner",
    "external",
    "ephemeral",
    "filebase64(",
    "file(",
    "templatefile(",
];

/// What a line of configuration has that it must not, and why.
fn trouble(line: &str) -> Option<String> {
    let code = line.split('#').next().unwrap_or_default().trim();
    if let Some(word) = WORDS.iter().find(|word| code.contains(**word)) {
        return Some(format!("{word} can bring key material into the configuration or the state"));
    }
    let block = ["resource ", "data ", "ephemeral ", "provider "].iter().any(|kind| code.starts_with(kind));
    let known = KINDS.iter().any(|kind| code.starts_with(&format!("{kind} ")));
    (block && !known).then(|| format!("{code}: not among the kinds that were looked at"))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("terraform")
}

fn examples() -> Vec<PathBuf> {
    let mut found: Vec<_> = fs::read_dir(root().join("examples")).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

/// The configuration, without the tests, which read files of their own.
fn configuration() -> Vec<(PathBuf, String)> {
    let directories = std::iter::once(root()).chain(examples());
    let files = directories.flat_map(|directory| fs::read_dir(directory).unwrap()).map(|entry| entry.unwrap().path());
    let files: Vec<_> = files.filter(|path| path.extension().is_some_and(|extension| extension == "tf")).collect();
    assert!(files.len() > 10, "{files:?}");
    files.into_iter().map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

#[test]
fn no_key_material_is_in_configuration_or_state() {
    for (path, text) in configuration() {
        for (number, line) in (1..).zip(text.lines()) {
            assert_eq!(trouble(line), None, "{}:{number}", path.display());
        }
    }
}

#[test]
fn whatever_could_hold_key_material_would_be_noticed() {
    for line in [
        r#"resource "google_secret_manager_secret_version" "key" {"#,
        r#"data "google_secret_manager_secret_version" "key" {"#,
        r#"ephemeral "google_secret_manager_secret_version" "key" {"#,
        r#"resource "google_kms_secret_ciphertext" "key" {"#,
        r#"data "google_kms_secret" "key" {"#,
        r#"resource "google_service_account_key" "daemon" {"#,
        r#"resource "google_project_iam_member" "daemon" {"#,
        r#"resource "google_secret_manager_secret_iam_binding" "daemon" {"#,
        r#"resource "random_bytes" "key" {"#,
        r#"resource "terraform_data" "key" {"#,
        r#"data "http" "key" {"#,
        r#"provider "random" {"#,
        r#"  provisioner "local-exec" {"#,
        "  secret_data = var.key",
        "  secret_data_wo = var.key",
        r#"  value = filebase64("/etc/containarium/secrets.key")"#,
        r#"  value = file("/etc/containarium/secrets.key") # harmless"#,
        "  plaintext = var.key",
    ] {
        assert!(trouble(line).is_some(), "{line}");
    }
    for line in
        [r#"resource "google_secret_manager_secret" "key" {"#, "  # file( in a comment", r#"provider "google" {}"#]
    {
        assert_eq!(trouble(line), None, "{line}");
    }
}

/// Every right that the module grants, and every role that it makes: a further one is to be looked at here, above all whether it leads a
/// daemon to a payload.
const GRANTS: [&str; 15] = [
    "google_kms_crypto_key_iam_member cmek",
    "google_kms_crypto_key_iam_member daemon",
    "google_kms_crypto_key_iam_member encrypter",
    "google_kms_crypto_key_iam_member operator",
    "google_project_iam_custom_role backup",
    "google_project_iam_custom_role restore",
    "google_secret_manager_secret_iam_member daemon_adds",
    "google_secret_manager_secret_iam_member daemon_sees",
    "google_secret_manager_secret_iam_member drill_reads",
    "google_secret_manager_secret_iam_member drill_sees",
    "google_secret_manager_secret_iam_member restore_reads",
    "google_secret_manager_secret_iam_member restore_sees",
    "google_service_account_iam_member drill",
    "google_service_account_iam_member restore",
    // What is logged, and no right.
    "google_project_iam_audit_config data_read",
];

#[test]
fn nobody_is_granted_more_than_was_looked_at() {
    let mut granted = Vec::new();
    for (path, text) in configuration() {
        for line in text.lines().filter(|line| line.starts_with("resource ") && line.contains("_iam_")) {
            let words: Vec<_> = line.split('"').collect();
            assert_eq!(path.parent().unwrap(), root(), "an example grants: {line}");
            granted.push(format!("{} {}", words[1], words[3]));
        }
    }
    granted.sort();
    let mut expected = GRANTS.map(str::to_owned);
    expected.sort();
    assert_eq!(granted, expected);
}

#[test]
fn nothing_makes_a_copy_expire_or_turn_over() {
    for (path, text) in configuration() {
        for line in text.lines().map(str::trim) {
            let is_set = ["expire_time", "ttl", "rotation"]
                .iter()
                .any(|word| line.strip_prefix(word).is_some_and(|rest| rest.trim_start().starts_with(['=', '{'])));
            assert!(!is_set, "{}: {line}", path.display());
        }
    }
}

#[test]
fn the_readmes_restore_works_with_each_example() {
    for directory in examples() {
        let text = fs::read_to_string(directory.join("main.tf")).unwrap();
        for part in ["variable \"restore_until\" {", "= var.restore_until\n", "output \"restore_accounts\" {"] {
            assert!(text.contains(part), "{}: {part}", directory.display());
        }
    }
}

#[test]
fn every_variable_and_output_has_a_description_and_every_variable_a_type() {
    for (path, text) in configuration() {
        for block in text.split("\n}\n") {
            let Some(start) = block.find("variable \"").or_else(|| block.find("output \"")) else { continue };
            let block = &block[start..];
            let named = format!("{}: {}", path.display(), block.lines().next().unwrap());
            assert!(block.contains("\n  description = "), "{named} has no description");
            assert!(block.starts_with("output") || block.contains("\n  type "), "{named} has no type");
        }
    }
}

#[test]
fn each_example_is_complete_and_the_readme_names_it() {
    let names: Vec<_> =
        examples().iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect();
    assert_eq!(names, ["cross-project", "kms", "minimal"]);
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    for (directory, name) in examples().iter().zip(&names) {
        for file in ["main.tf", "rendered.toml", "example.tftest.hcl"] {
            assert!(directory.join(file).is_file(), "{name} has no {file}");
        }
        assert!(readme.contains(&format!("(examples/{name})")), "{name} is not in the README");
    }
}

/// rendered.toml is what the example renders: terraform's own test of the example compares them.
#[test]
fn what_each_example_renders_is_what_the_daemon_reads() {
    for directory in examples() {
        let rendered = fs::read_to_string(directory.join("rendered.toml")).unwrap();
        // As the README says: appended to what is there.
        let shown = Read::of(&format!("log_format = \"json\"\n\n{rendered}")).accepted();
        for name in rendered.split('"').filter(|part| part.starts_with("projects/")) {
            assert!(shown.contains(name), "{}: {name} is not in: {shown}", directory.display());
        }
        let misspelt = Read::of(&rendered.replace("secrets = ", "secret = ")).refused();
        assert!(misspelt.contains("unknown key `backup.gcp.secret`"), "{}: {misspelt}", directory.display());
    }
}

/// A configuration file, read by the binary.
struct Read {
    checked: Output,
    shown: Output,
}

impl Read {
    fn of(text: &str) -> Self {
        let site = Site::sqlite();
        let file = site.path("config.toml");
        fs::write(&file, text).unwrap();
        let run = |words: &[&str]| site.command(words.iter().copied()).arg("--config").arg(&file).output().unwrap();
        Self { checked: run(&["config", "check"]), shown: run(&["config", "show"]) }
    }

    fn accepted(self) -> String {
        assert!(self.checked.status.success(), "{}", String::from_utf8_lossy(&self.checked.stderr));
        String::from_utf8(self.shown.stdout).unwrap()
    }

    fn refused(self) -> String {
        assert_eq!(self.checked.status.code(), Some(2));
        String::from_utf8(self.checked.stderr).unwrap()
    }
}
