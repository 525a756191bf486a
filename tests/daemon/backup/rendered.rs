//! What terraform/'s examples render, given to the daemon as terraform/README.md says: it starts, pushes, restores and drills with it.
//! rendered.toml is what each example renders, by terraform's own test of the example.

use reqwest::Method;

use super::*;

/// An example's settings, with Google where the fake is.
struct Rendered {
    name: String,
    text: String,
    /// The primary one first.
    secrets: Vec<String>,
}

fn examples() -> Vec<Rendered> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("terraform/examples");
    let mut found: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap()).collect();
    found.sort_by_key(std::fs::DirEntry::file_name);
    let rendered = found.iter().map(|example| {
        let text = std::fs::read_to_string(example.path().join("rendered.toml")).unwrap();
        let secrets = text.split('"').filter(|part| part.contains("/secrets/")).map(str::to_owned).collect();
        Rendered { name: example.file_name().into_string().unwrap(), text, secrets }
    });
    rendered.collect()
}

impl Rendered {
    /// The KMS key that the example makes, where it makes one.
    fn kms_key(&self) -> Option<&str> {
        self.text.split('"').find(|part| part.contains("/cryptoKeys/"))
    }

    #[track_caller]
    fn is_accepted(&self, site: &Site) {
        let file = site.path("rendered.toml");
        std::fs::write(&file, &self.text).unwrap();
        let checked = site.command(["config", "check", "--config"]).arg(&file).output().unwrap();
        assert!(checked.status.success(), "{}: {}", self.name, said(&checked));
    }

    /// What an operator of a fake adds: each table's endpoint.
    fn at(text: &str, url: &str) -> String {
        let endpoint = |table: &str| format!("{table}\nendpoint = \"{url}\"");
        text.replace("[backup.gcp]", &endpoint("[backup.gcp]")).replace("[kms.gcp]", &endpoint("[kms.gcp]"))
    }
}

#[test]
fn the_daemon_starts_pushes_restores_and_drills_from_what_each_example_renders() {
    let examples = examples();
    assert_eq!(examples.iter().map(|example| &*example.name).collect::<Vec<_>>(), ["cross-project", "kms", "minimal"]);
    for example in examples {
        let site = Site::sqlite();
        let cloud = Cloud::of(&site);
        for secret in &example.secrets {
            let (parent, id) = secret.split_once("/secrets/").unwrap();
            let body = serde_json::json!({"replication": {"automatic": {}}});
            let path = format!("{parent}/secrets?secretId={id}");
            cloud.runtime.block_on(cloud.google.owner(Method::POST, &path, Some(body)));
        }
        example.is_accepted(&site);
        for identity in ["daemon", "restore", "drill", "operator"] {
            let file = if identity == "daemon" { "config.toml".to_owned() } else { format!("{identity}.toml") };
            std::fs::write(site.path(&file), Rendered::at(&example.text, &cloud.google.url(identity))).unwrap();
        }

        // Pushed by the first start, as it renders; the command finds nothing left to push.
        let daemon = site.start();
        let kid = kid(&daemon);
        let pushed = answer(&site.cli(["backup", "push", "-o", "json"], b""));
        let locators: Vec<&str> =
            pushed["copies"].as_array().unwrap().iter().map(|copy| copy["locator"].as_str().unwrap()).collect();
        let expected: Vec<String> = example.secrets.iter().map(|secret| format!("{secret}/versions/1")).collect();
        assert_eq!(locators, expected, "{}", example.name);
        assert_eq!(cloud.requests("add"), example.secrets.len(), "{}", example.name);
        assert_eq!(daemon.stop().code(), Some(0));
        populated(&site);

        lose_keys(&site);
        let restored = answer(&as_restorer(&site, &["backup", "restore", "-o", "json"]));
        assert_eq!(
            (&restored["keys"][0]["kid"], &restored["keys"][0]["from"]),
            (&kid.into(), &expected[0].clone().into())
        );
        opens(&site);

        // And with the KMS key, once the operator wraps the master key with it; the copies stay as they are.
        if let Some(key) = example.kms_key() {
            cloud.runtime.block_on(cloud.google.make_kms(key));
            let config = site.path("operator.toml").display().to_string();
            let wrapped = site.cli(["kms", "wrap", "--config", &config], b"");
            assert!(wrapped.status.success(), "{}: {}", example.name, said(&wrapped));
        }
        let _daemon = site.start();
        let root = if example.kms_key().is_some() { "gcp-kms-keyed" } else { "file-keyed" };
        site.logged(&format!("Secrets store ready ({root}, AES-256-GCM)"));
        let config = site.path(if example.secrets.len() > 1 { "drill.toml" } else { "restore.toml" });
        let words = ["backup", "drill", "--record", "-o", "json", "--config", config.to_str().unwrap()];
        let drilled = answer(&site.cli(words, b""));
        assert_eq!(&drilled["keys"][0]["from"], expected.last().unwrap(), "{}: {drilled}", example.name);
        assert_eq!((&drilled["opens"], &drilled["recorded"]), (&true.into(), &true.into()), "{}", example.name);
    }
}
