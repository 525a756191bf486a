//! docs/OPERATIONS.md, followed command by command: what stands in its blocks is what runs here.

use std::collections::BTreeSet;

use super::super::on_both_stores;
use super::shell::{Shell, is_here, named, refusal};
use super::*;

on_both_stores![the_runbook_works_as_it_stands];

const DOCUMENT: &str = include_str!("../../../docs/OPERATIONS.md");
/// The secret that the document names.
const NAMED: &str = "projects/acme-prod/secrets/containarium-prod-secrets-master";
const RESTART: &str = "systemctl restart containarium.service";
const STOP: &str = "systemctl stop containarium.service";

/// The commands of a block of the document, one a line; `on` where it is for one store only.
struct Block {
    name: &'static str,
    on: Option<&'static str>,
    commands: Vec<&'static str>,
}

fn blocks() -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for line in DOCUMENT.lines().map(str::trim) {
        if let Some(mark) = line.strip_prefix("```sh runbook ") {
            let (name, on) = mark.split_once(' ').map_or((mark, None), |(name, on)| (name, Some(on)));
            open = Some(Block { name, on, commands: Vec::new() });
        } else if line == "```" {
            blocks.extend(open.take());
        } else if let Some(block) = &mut open {
            block.commands.push(line);
        }
    }
    blocks
}

struct Reader<'a> {
    site: &'a Site,
    shell: Shell<'a>,
    daemon: Option<Daemon>,
    /// What stands for the words that a reader fills in.
    filled_in: Vec<(&'static str, String)>,
    environment: Vec<(&'static str, String)>,
    followed: BTreeSet<&'static str>,
}

impl<'a> Reader<'a> {
    fn of(site: &'a Site) -> Self {
        let path = |name: &str| site.path(name).display().to_string();
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let filled_in = vec![
            ("/etc/containarium", path("etc")),
            ("/var/lib/containarium", path("data")),
            ("/backup/", path("backup/")),
            ("/root/database-url", path("database-url")),
            ("PROJECT", "acme-prod".to_owned()),
            ("root:root", format!("{uid}:{gid}")),
        ];
        std::fs::create_dir_all(site.path("backup")).unwrap();
        std::fs::write(site.path("database-url"), site.database_url().unwrap_or_default()).unwrap();
        let (shell, followed) = (Shell::at(site), BTreeSet::new());
        Self { site, shell, daemon: None, filled_in, environment: Vec::new(), followed }
    }

    fn store(&self) -> &'static str {
        if self.site.is_postgres() { "postgresql" } else { "sqlite" }
    }

    fn block(&mut self, name: &'static str) -> Vec<&'static str> {
        let store = self.store();
        let found = blocks().into_iter().find(|block| block.name == name && block.on.is_none_or(|on| on == store));
        self.followed.insert(name);
        found.unwrap_or_else(|| panic!("the document has no block {name}")).commands
    }

    /// A block from its first command to its last, with these settings: what each said.
    #[track_caller]
    fn follow(&mut self, config: &str, name: &'static str) -> Vec<String> {
        self.block(name).into_iter().map(|command| self.run(config, command)).collect()
    }

    #[track_caller]
    fn run(&mut self, config: &str, command: &str) -> String {
        if command == STOP {
            self.stop();
            return String::new();
        }
        if command == RESTART {
            self.stop();
            self.daemon = Some(self.site.start());
            return String::new();
        }
        let script = self.filled_in.iter().fold(command.to_owned(), |text, (word, with)| text.replace(word, with));
        let done = self.shell.run(config, &script, &self.environment);
        let all = [String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr)].concat();
        assert!(done.status.success(), "{script}\n{all}\n{}", self.site.log());
        all
    }

    fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().unwrap()
    }

    fn stop(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            assert_eq!(daemon.stop().code(), Some(0));
        }
    }

    #[track_caller]
    fn all_open(&mut self) {
        self.stop();
        opens(self.site);
    }
}

fn the_runbook_works_as_it_stands(site: &Site) {
    let cloud = Cloud::of(site);
    let (key, old) = populated(site);
    let mut reader = Reader::of(site);
    reader.filled_in.push(("age1…", make_age_identity(site)));
    reader.daemon = Some(site.start());

    let said = reader.follow("config.toml", "push");
    assert!(said[1].contains(&old) && said[1].contains("enabled"), "{said:?}");
    reader.follow("restore.toml", "verify");
    assert_eq!(cloud.requests("access"), 1);
    reader.follow("config.toml", "export");
    assert!(!std::fs::read(site.path("key.age")).unwrap().windows(32).any(|window| window == key));
    assert!(std::fs::read(site.path("safe/secrets.key")).unwrap() == key);
    reader.follow("config.toml", "prove");
    let status = reader.daemon().get("/v1/admin/status").json();
    assert!(!status["warnings"].to_string().contains("no backup of the master key"), "{status}");
    reader.follow("config.toml", "database");
    assert_eq!(site.number("SELECT count(*) FROM database_backups"), 1);
    let said = reader.follow("restore.toml", "drill");
    assert!(said[1].contains("3 DEKs opened, 0 did not"), "{said:?}");
    if !site.is_postgres() {
        assert!(reader.follow("config.toml", "drill-of-copy")[0].contains("3 DEKs opened, 0 did not"));
    }

    key_lost(&cloud, &mut reader, &key);
    database_lost(&mut reader, &key);

    reader.daemon = Some(site.start());
    rotated(&mut reader, &old);
    reader.all_open();

    let store = reader.store();
    let all = blocks().into_iter().filter(|block| block.on.is_none_or(|on| on == store)).map(|block| block.name);
    let mine: BTreeSet<&str> = all.filter(|name| !name.starts_with("gcloud-")).collect();
    assert_eq!(reader.followed, mine, "every block of the document is followed");
}

fn key_lost(cloud: &Cloud, reader: &mut Reader<'_>, key: &[u8]) {
    let site = reader.site;
    reader.stop();
    lose_keys(site);
    let named = named(&refusal(site), "containarium backup restore");
    assert!(reader.block("restore").contains(&&*named), "the daemon names what the runbook says: {named}");
    std::fs::remove_file(site.log_file()).unwrap();
    let said = reader.follow("restore.toml", "restore");
    assert!(said[2].contains("Secrets store ready (file-keyed, AES-256-GCM)"), "{said:?}");
    assert!(std::fs::read(site.key_file()).unwrap() == key);
    reader.all_open();

    cloud.make(NAMED);
    cloud.runtime.block_on(cloud.google.add(NAMED, key));
    for command in reader.block("restore-from-elsewhere") {
        lose_keys(site);
        reader.run("restore.toml", command);
        assert!(std::fs::read(site.key_file()).unwrap() == key, "{command}");
        reader.all_open();
    }
}

/// The database and the key, both.
fn database_lost(reader: &mut Reader<'_>, key: &[u8]) {
    let site = reader.site;
    lose_keys(site);
    if site.is_postgres() {
        site.run_sql("DROP SCHEMA containarium CASCADE");
    } else {
        // What a crash leaves: SQLite would play this log into whatever lies in the database's place.
        std::fs::remove_file(site.data_dir().join("containarium.db")).unwrap();
        std::fs::write(site.data_dir().join("containarium.db-wal"), "changes of the old database").unwrap();
    }
    reader.follow("restore.toml", "restore-database");
    assert!(std::fs::read(site.key_file()).unwrap() == key);
    reader.all_open();
}

fn rotated(reader: &mut Reader<'_>, old: &str) {
    reader.follow("config.toml", "rotation");
    let old = {
        let pushed = kid(reader.daemon());
        assert_ne!(pushed, old, "it goes on to the end by itself");
        pushed
    };
    for command in reader.block("rotation-with-your-copy") {
        let said = reader.run("config.toml", command);
        if command.contains("--escrow prove") {
            let mut words = said.split(|c: char| !c.is_ascii_hexdigit());
            let new = words.find(|word| word.len() == 32 && *word != old).unwrap();
            reader.filled_in.push(("NEW_KID", new.to_owned()));
        }
    }
    let new = &reader.filled_in.last().unwrap().1;
    assert_eq!(kid(reader.daemon()), *new);
    assert_eq!(reader.site.texts("SELECT phase FROM key_state"), ["idle"]);
}

/// Nothing of the old host is left: what it was lies in the two copies.
#[test]
fn a_host_that_is_lost_comes_back_on_another() {
    let (lost, host) = (Site::sqlite(), Site::sqlite());
    let cloud = Cloud::of(&lost);
    let (key, old) = populated(&lost);
    let mut reader = Reader::of(&lost);
    reader.daemon = Some(lost.start());
    reader.follow("config.toml", "push");
    reader.follow("config.toml", "database");
    reader.stop();
    let copy = std::fs::read(lost.path("backup/containarium.db")).unwrap();
    drop(reader);
    drop(lost);

    for identity in ["config.toml", "restore.toml"] {
        let name = if identity == "restore.toml" { "restore" } else { "daemon" };
        cloud.configure(&host, identity, name, &[SECRET], "");
    }
    let mut reader = Reader::of(&host);
    std::fs::write(host.path("backup/containarium.db"), copy).unwrap();
    reader.follow("restore.toml", "restore-database");
    assert!(std::fs::read(host.key_file()).unwrap() == key);
    assert_eq!(kid(reader.daemon()), old);
    reader.all_open();
}

/// An identity in identity.txt; its recipient.
fn make_age_identity(site: &Site) -> String {
    let identity = age::x25519::Identity::generate();
    let secret = age::secrecy::ExposeSecret::expose_secret(&identity.to_string()).to_owned();
    std::fs::write(site.path("identity.txt"), secret).unwrap();
    identity.to_public().to_string()
}

#[test]
fn the_runbook_has_the_chapters_of_v1_s_and_no_command_in_them_that_is_not_followed() {
    let chapters: Vec<&str> = DOCUMENT.split("\n## ").skip(1).collect();
    for heading in [
        "Why this matters",
        "Back up the key file off-host",
        "Restore: ",
        "Rotation",
        "Threat model: what a backup protects against",
        "Quick reference",
        "Drill, each month",
        "Back up the database",
    ] {
        let chapter =
            chapters.iter().find(|chapter| chapter.starts_with(heading)).unwrap_or_else(|| panic!("{heading}"));
        let unmarked =
            chapter.lines().find(|line| line.trim().starts_with("```sh") && !line.contains("```sh runbook "));
        assert_eq!(unmarked, None, "{heading}");
    }
    assert!(
        DOCUMENT.contains("\n### Self-hosters / non-GCP\n")
            && DOCUMENT.contains("\n### GCP Secret Manager (recommended")
    );
}

/// What v1's runbook says to type, and must not be typed.
const TEE: &str = "gcloud secrets versions access latest \
      --secret=containarium-prod-secrets-master \
      --project=PROJECT \
      | sudo tee /etc/containarium/secrets.key >/dev/null
    sudo chmod 0400 /etc/containarium/secrets.key";

#[test]
fn gcloud_keeps_a_key_file_and_of_v1_s_two_restores_only_the_exact_one_loads() {
    if !is_here("gcloud", "gcloud_keeps_a_key_file_and_of_v1_s_two_restores_only_the_exact_one_loads") {
        return;
    }
    let site = Site::sqlite();
    let cloud = Cloud::with(&site, &[NAMED], "");
    let (key, kid) = populated(&site);
    let mut reader = Reader::of(&site);
    reader.environment = gcloud_speaks_to(&cloud, &site);
    reader.daemon = Some(site.start());
    let said = reader.follow("config.toml", "gcloud-push");
    assert!(said[2].to_uppercase().contains("ENABLED"), "{said:?}");
    let verified = answer(&as_restorer(&site, &["backup", "verify", "-o", "json"]));
    assert_eq!((&verified["good"][0]["kid"], &verified["recorded"]), (&kid.into(), &true.into()));
    reader.stop();

    // A key of which every other byte is no UTF-8, as of most random ones: what `tee` made of it is refused by its cause.
    lose_keys(&site);
    put(&site.key_file(), b"");
    reader.run("config.toml", &format!("chmod 0600 /etc/containarium/secrets.key\n{TEE}"));
    assert_ne!(std::fs::read(site.key_file()).unwrap(), key);
    let said = refusal(&site);
    assert!(said.contains("`--out-file=FILE` copies exactly") && said.contains("text"), "{said}");
    assert!(said.contains("`containarium backup restore`"), "{said}");

    lose_keys(&site);
    reader.follow("config.toml", "gcloud-restore");
    assert!(std::fs::read(site.key_file()).unwrap() == key);
    reader.all_open();
}

/// gcloud as the runbook's reader has it, over the fake, and nothing of the machine's own configuration.
fn gcloud_speaks_to(cloud: &Cloud, site: &Site) -> Vec<(&'static str, String)> {
    let one = || "1".to_owned();
    vec![
        ("CLOUDSDK_CONFIG", site.path("gcloud").display().to_string()),
        ("CLOUDSDK_AUTH_DISABLE_CREDENTIALS", one()),
        // With the slash at its end: gcloud appends `v1/…` to it as it is.
        ("CLOUDSDK_API_ENDPOINT_OVERRIDES_SECRETMANAGER", format!("{}/", cloud.google.url("owner"))),
        ("CLOUDSDK_CORE_DISABLE_PROMPTS", one()),
        ("CLOUDSDK_CORE_DISABLE_USAGE_REPORTING", one()),
        ("CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK", one()),
    ]
}
