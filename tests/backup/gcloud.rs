//! v1's runbook with the real gcloud, against the fake.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use containarium::crypto::ImageError;
use containarium::keys::keyfile::{KeyFiles, KeyfileError, MainFile};

use super::*;
use crate::support::google::Google;

/// A shell with gcloud as the runbook's reader has it, and KEY in a directory of its own.
struct Operator<'a> {
    google: &'a Google,
    home: tempfile::TempDir,
}

impl Operator<'_> {
    #[expect(clippy::disallowed_methods, reason = "gcloud is found by the PATH of the test")]
    fn shell(&self, script: &str) -> String {
        // With the slash at its end: gcloud appends `v1/…` to it as it is.
        let endpoint = format!("{}/", self.google.url("owner"));
        let output = Command::new("bash")
            .args(["-euc", script])
            .current_dir(self.home.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.home.path())
            .env("LANG", "C.UTF-8")
            .env("CLOUDSDK_CONFIG", self.home.path().join("gcloud"))
            .env("CLOUDSDK_CORE_PROJECT", "v1-project")
            .env("CLOUDSDK_AUTH_DISABLE_CREDENTIALS", "1")
            .env("CLOUDSDK_API_ENDPOINT_OVERRIDES_SECRETMANAGER", endpoint)
            .envs(
                ["CORE_DISABLE_PROMPTS", "CORE_DISABLE_USAGE_REPORTING"].map(|name| (format!("CLOUDSDK_{name}"), "1")),
            )
            .env("CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK", "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{script}\n{said}\n{}", String::from_utf8_lossy(&output.stderr));
        said
    }

    fn key_dir(&self) -> std::path::PathBuf {
        self.home.path().join("etc")
    }

    /// What a daemon makes of the key file.
    fn loads(&self) -> MainFile {
        KeyFiles::at(&self.key_dir().join("secrets.key")).unwrap().scan().main
    }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn gcloud_keeps_a_key_file_and_of_v1_s_two_restores_only_the_exact_one_loads() {
    if Command::new("gcloud").arg("--version").output().is_err() {
        eprintln!("skipped: gcloud_keeps_a_key_file_and_of_v1_s_two_restores_only_the_exact_one_loads: no gcloud here");
        return;
    }
    let google = Google::start().await;
    let operator = Operator { google: &google, home: tempfile::tempdir().unwrap() };
    let file = operator.key_dir().join("secrets.key");
    fs::create_dir(operator.key_dir()).unwrap();
    set_mode(&operator.key_dir(), 0o700);
    // Bytes that are not UTF-8, as most random keys have.
    let key: Vec<u8> = (0..32).map(|at| if at % 2 == 0 { 0xF0 } else { at }).collect();
    fs::write(&file, &key).unwrap();

    operator.shell("gcloud secrets create master --replication-policy=automatic");
    operator.shell("gcloud secrets versions add master --data-file=etc/secrets.key");
    let list = "gcloud secrets versions list master --limit=3 --format='table(name,state,createTime)'";
    assert!(operator.shell(list).to_uppercase().contains("ENABLED"));

    fs::remove_file(&file).unwrap();
    operator.shell("gcloud secrets versions access latest --secret=master | tee etc/secrets.key >/dev/null; chmod 0400 etc/secrets.key");
    match operator.loads() {
        MainFile::Bad(refusal @ KeyfileError::Damaged { damage: ImageError::TextModeCopy { .. }, .. }) => {
            assert!(refusal.to_string().contains("`--out-file=FILE` copies exactly"), "{refusal}");
        }
        MainFile::Bad(other) => panic!("{other}"),
        _ => panic!("a damaged key file was taken"),
    }
    assert_ne!(fs::read(&file).unwrap(), key);

    fs::remove_file(&file).unwrap();
    operator.shell(
        "gcloud secrets versions access 1 --secret=master --out-file=etc/secrets.key; chmod 0400 etc/secrets.key",
    );
    assert_eq!(fs::read(&file).unwrap(), key);
    assert!(matches!(operator.loads(), MainFile::Key(found) if found.kid == kid_of(&key)));
}
