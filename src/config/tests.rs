use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use tempfile::TempDir;

use super::*;

mod oidc;

/// A user with a home, a configuration file of the test's and nothing else.
struct Setup {
    dir: TempDir,
    flags: Flags,
    user: User,
    variables: Vec<(OsString, OsString)>,
}

impl Setup {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut setup = Self { dir, flags: Flags::default(), user: User::Other, variables: Vec::new() };
        setup.set("HOME", &setup.path("home").to_string_lossy());
        setup
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn set(&mut self, variable: &str, value: &str) {
        self.variables.push((variable.into(), value.into()));
    }

    fn flag(&mut self, setting: Setting, value: &str) {
        self.flags.give(setting, Some(value));
    }

    fn file(&mut self, text: &str) {
        self.write("config.toml", text, 0o644);
        self.flag(Setting::Config, &self.path("config.toml").to_string_lossy());
    }

    fn write(&self, name: &str, text: &str, mode: u32) {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    fn environment(&self) -> Environment {
        Environment::new(self.user, Some(self.dir.path().to_path_buf()), self.variables.iter().cloned())
    }

    fn load(&self) -> Result<Effective, Vec<ConfigError>> {
        load(&self.flags, &self.environment())
    }

    fn good(&self) -> Effective {
        self.load().unwrap_or_else(|errors| panic!("{errors:?}"))
    }

    fn errors(&self) -> Vec<String> {
        self.load().err().unwrap().iter().map(ToString::to_string).collect()
    }

    fn error(&self) -> String {
        let errors = self.errors();
        assert_eq!(errors.len(), 1, "{errors:?}");
        errors.concat()
    }
}

fn shown(effective: &Effective, setting: Setting) -> &Shown {
    effective.settings.iter().find(|shown| shown.setting == setting).unwrap()
}

#[test]
fn a_flag_beats_the_environment_which_beats_the_file_which_beats_the_default() {
    let mut setup = Setup::new();
    setup.set("XDG_RUNTIME_DIR", "/run/user/7");
    setup.file("");
    let expect = |setup: &Setup, path: &str, origin: &str| {
        let effective = setup.good();
        assert_eq!(effective.config.socket, Path::new(path));
        let socket = shown(&effective, Setting::Socket);
        assert_eq!((socket.value.as_deref(), socket.origin.to_string().as_str()), (Some(path), origin));
    };
    expect(&setup, "/run/user/7/containarium/containarium.sock", "default");
    setup.file("# first\n\nsocket = '/file.sock'\n");
    expect(&setup, "/file.sock", &format!("{}:3", setup.path("config.toml").display()));
    setup.set("CONTAINARIUM_SOCKET", "/env.sock");
    expect(&setup, "/env.sock", "environment CONTAINARIUM_SOCKET");
    setup.flag(Setting::Socket, "/flag.sock");
    expect(&setup, "/flag.sock", "flag --socket");
}

#[test]
fn every_setting_can_be_given_in_the_file() {
    let mut setup = Setup::new();
    setup.file(
        "data_dir = '/d'\nkey_file = '/k'\nsocket = '/s'\ndatabase_url = 'postgres://u@h/db'\nlog_format = 'json'\n\
         adopt_key = true\nsecrets = { keep_versions = 0x03 }\n[cache]\nmax_entries = 0\nmax_age = '15m'\n\
         [backup]\ndatabase_retention = '5w'\n[audit]\njournal = true\nsinks = ['file', 'table']\n",
    );
    let config = setup.good().config;
    assert_eq!((config.data_dir, config.key_file, config.socket), ("/d".into(), "/k".into(), "/s".into()));
    assert!(matches!(config.database, Database::Postgres { url } if url.text() == "postgres://u@h/db"));
    assert_eq!((config.log_format, config.existing_key), (LogFormat::Json, ExistingKey::Adopt));
    assert_eq!(config.keep_versions.get(), 3);
    assert_eq!(config.cache, CacheSettings { max_entries: 0, max_age: Duration::from_mins(15) });
    assert_eq!(config.database_retention, Some(Duration::from_hours(35 * 24)));
    assert_eq!((config.audit_copies, config.audit_sinks), (AuditCopies::Journal, AuditSinks::FileThenTable));
}

#[test]
fn every_setting_but_the_files_own_can_be_given_as_a_variable() {
    let mut setup = Setup::new();
    for (variable, value) in [
        ("CONTAINARIUM_DATA_DIR", "/d"),
        ("CONTAINARIUM_KEY_FILE", "/k"),
        ("CONTAINARIUM_SOCKET", "/s"),
        ("CONTAINARIUM_DATABASE_URL", "postgresql://h/db"),
        ("CONTAINARIUM_LOG_FORMAT", "json"),
        ("CONTAINARIUM_ADOPT_KEY", "true"),
        ("CONTAINARIUM_SECRETS.KEEP_VERSIONS", "3"),
        ("CONTAINARIUM_KEEP_VERSIONS", "3"),
    ] {
        setup.set(variable, value);
    }
    let config = setup.good().config;
    assert_eq!((config.data_dir, config.key_file, config.socket), ("/d".into(), "/k".into(), "/s".into()));
    assert!(matches!(config.database, Database::Postgres { .. }));
    assert_eq!((config.log_format, config.existing_key), (LogFormat::Json, ExistingKey::Adopt));
    assert_eq!(config.keep_versions.get(), 10);
}

#[test]
fn defaults_are_the_hosts_for_root_and_xdg_for_others() {
    let mut setup = Setup::new();
    setup.user = User::Root;
    setup.flag(Setting::Config, "/dev/null");
    let root = setup.good().config;
    assert_eq!(root.key_file, Path::new("/etc/containarium/secrets.key"));
    assert_eq!(root.data_dir, Path::new("/var/lib/containarium"));
    assert_eq!(root.socket, Path::new("/run/containarium/containarium.sock"));
    assert!(
        matches!(root.database, Database::Sqlite { path } if path == Path::new("/var/lib/containarium/containarium.db"))
    );
    assert_eq!((root.log_format, root.existing_key), (LogFormat::Text, ExistingKey::Refuse));
    assert_eq!(root.keep_versions.get(), 10);
    assert_eq!(root.cache, CacheSettings { max_entries: 100_000, max_age: Duration::from_hours(1) });

    setup.user = User::Other;
    let other = setup.good().config;
    assert_eq!(other.key_file, setup.path("home/.config/containarium/secrets.key"));
    assert_eq!(other.data_dir, setup.path("home/.local/share/containarium"));
    assert_eq!(other.socket, setup.path("home/.local/share/containarium/containarium.sock"));

    setup.set("XDG_CONFIG_HOME", "/c");
    setup.set("XDG_DATA_HOME", "relative/is/ignored");
    setup.set("XDG_RUNTIME_DIR", "/r");
    let other = setup.good().config;
    assert_eq!(other.key_file, Path::new("/c/containarium/secrets.key"));
    assert_eq!(other.data_dir, setup.path("home/.local/share/containarium"));
    assert_eq!(other.socket, Path::new("/r/containarium/containarium.sock"));
}

#[test]
fn without_a_home_the_error_names_what_would_help() {
    let mut setup = Setup::new();
    setup.variables.clear();
    let errors = setup.errors();
    assert_eq!(errors.len(), 2, "{errors:?}");
    assert!(errors.iter().all(|error| error.contains("HOME")), "{errors:?}");
    setup.flag(Setting::DataDir, "/d");
    setup.flag(Setting::KeyFile, "/k");
    assert_eq!(setup.good().config.socket, Path::new("/d/containarium.sock"));
}

#[test]
fn a_named_file_must_be_there_and_the_default_one_need_not() {
    let mut setup = Setup::new();
    assert!(setup.good().file.is_none());
    setup.set("CONTAINARIUM_CONFIG", "nowhere.toml");
    let error = setup.error();
    assert!(error.contains("nowhere.toml (environment CONTAINARIUM_CONFIG) is not there"), "{error}");
    setup.variables.pop();
    fs::create_dir_all(setup.path("home/.config/containarium")).unwrap();
    setup.write("home/.config/containarium/config.toml", "log_format = 'json'", 0o600);
    assert_eq!(setup.good().config.log_format, LogFormat::Json);
}

#[test]
fn an_unknown_key_is_named_with_its_file_and_line() {
    for (text, key, line) in [
        ("\ndata_dri = 1\n", "data_dri", 2),
        ("config = '/x'\n", "config", 1),
        ("[secrets]\nkeep_versions = 1\nkeep = 1\n", "secrets.keep", 3),
        ("keep_versions = 1\n", "keep_versions", 1),
        ("[cache]\nmax_age = '1h'\n[tls]\ncert = 1\n", "tls", 3),
        ("listen_on = '127.0.0.1:1'\n", "listen_on", 1),
        ("[secrets.more]\nx = 1\n", "secrets.more", 1),
    ] {
        let mut setup = Setup::new();
        setup.file(text);
        let file = setup.path("config.toml");
        assert_eq!(setup.error(), format!("{}:{line}: unknown key `{key}`", file.display()), "{text}");
    }
}

#[test]
fn every_error_is_told_at_once() {
    let mut setup = Setup::new();
    setup.file("log_format = 'xml'\nfoo = 1\n[secrets]\nkeep_versions = 0\n");
    setup.set("CONTAINARIUM_ADOPT_KEY", "yes");
    let errors = setup.errors();
    assert_eq!(errors.len(), 4, "{errors:?}");
    assert!(errors.iter().any(|error| error.starts_with("`adopt_key` (environment CONTAINARIUM_ADOPT_KEY)")));
}

#[test]
fn a_value_of_the_wrong_type_is_refused() {
    for (text, message) in [
        ("socket = 1", "`socket` must be a string, and is integer"),
        ("adopt_key = 'true'", "`adopt_key` must be true or false, and is string"),
        ("[secrets]\nkeep_versions = '10'", "`secrets.keep_versions` must be an integer, and is string"),
        ("cache = 1", "`cache` must be a table, and is integer"),
    ] {
        let mut setup = Setup::new();
        setup.file(text);
        let error = setup.error();
        assert!(error.ends_with(message), "{error}");
    }
}

#[test]
fn a_value_outside_its_limits_is_refused_with_the_rule() {
    for (text, rule) in [
        ("[secrets]\nkeep_versions = 0", "a number from 1 to 4294967295"),
        ("[secrets]\nkeep_versions = -1", "a number from 1"),
        ("[secrets]\nkeep_versions = 4294967296", "a number from 1"),
        ("[secrets]\nkeep_versions = 999999999999999999999999999999999999999999", "a number from 1"),
        ("[cache]\nmax_entries = -1", "a number from 0"),
        ("[cache]\nmax_age = '0s'", "a duration"),
        ("[cache]\nmax_age = '-1h'", "a duration"),
        ("[cache]\nmax_age = '31d'", "a duration"),
        ("[cache]\nmax_age = '1'", "a duration"),
        ("[backup]\ndatabase_retention = '1mo'", "a duration"),
        ("[backup]\ndatabase_retention = '36501d'", "a duration"),
        ("log_format = 'JSON'", "text or json"),
        ("socket = ''", "it is empty"),
        ("socket = \"/a\\u0000\"", "NUL"),
        ("database_url = ''", "it is empty"),
        ("database_url = 'mysql://h/db'", "postgres://"),
        ("database_url = 'postgres://'", "postgres://"),
        ("database_url = 'postgres://h/d b'", "a space"),
        ("database_url = 'sqlite:///x.db'", "SQLite needs no URL"),
    ] {
        let mut setup = Setup::new();
        setup.file(text);
        let error = setup.error();
        assert!(error.contains(rule), "{text}: {error}");
    }
}

#[test]
fn an_empty_variable_is_an_error_and_not_the_default() {
    for variable in
        ["CONTAINARIUM_DATABASE_URL", "CONTAINARIUM_DATA_DIR", "CONTAINARIUM_LOG_FORMAT", "CONTAINARIUM_CONFIG"]
    {
        let mut setup = Setup::new();
        setup.set(variable, "");
        let error = setup.error();
        assert!(error.contains(variable) && error.contains("it is empty"), "{error}");
    }
}

#[test]
fn a_socket_path_may_have_107_bytes_and_no_more() {
    let mut setup = Setup::new();
    setup.flag(Setting::Socket, &format!("/{}", "s".repeat(106)));
    setup.good();
    setup.flag(Setting::Socket, &format!("/{}", "s".repeat(107)));
    assert!(setup.error().contains("108 bytes"), "{}", setup.error());
    assert!(client_socket(&setup.flags, &setup.environment()).is_err());
}

#[test]
fn a_relative_path_is_relative_to_its_file_or_the_working_directory() {
    let mut setup = Setup::new();
    fs::create_dir(setup.path("etc")).unwrap();
    setup.write("etc/c.toml", "data_dir = 'data'\nkey_file = './k'\n", 0o600);
    setup.flag(Setting::Config, "etc/c.toml");
    setup.flag(Setting::KeyFile, "./keys/k");
    let config = setup.good().config;
    assert_eq!(config.data_dir, setup.path("etc/data"));
    assert_eq!(config.key_file, setup.path("keys/k"));
}

#[test]
fn a_database_url_and_a_file_with_one_exclude_each_other() {
    let mut setup = Setup::new();
    setup.write("url", "postgres://h/db\n", 0o400);
    setup.file("database_url_file = 'url'\n");
    assert!(matches!(setup.good().config.database, Database::Postgres { url } if url.text() == "postgres://h/db"));
    setup.flag(Setting::DatabaseUrl, "postgres://other/db");
    let error = setup.error();
    assert!(error.contains("not both") && error.contains("flag --database-url"), "{error}");
}

#[test]
fn a_url_file_that_others_could_read_or_that_holds_no_url_is_refused() {
    let mut setup = Setup::new();
    setup.flag(Setting::DatabaseUrlFile, "url");
    assert!(setup.error().contains("cannot be opened"));
    for mode in [0o440, 0o404, 0o644, 0o420] {
        setup.write("url", "postgres://canary@h/db", mode);
        let error = setup.error();
        assert!(error.contains("chmod 0400"), "{mode:o}: {error}");
    }
    fs::remove_file(setup.path("url")).unwrap();
    for (text, why) in [("", "postgres://"), ("mysql://canary", "postgres://"), ("postgres://h/a\ncanary", "control")] {
        setup.write("url", text, 0o600);
        let error = setup.error();
        assert!(error.contains(why) && !error.contains("canary"), "{error}");
    }
    setup.write("url", &"a".repeat(20_000), 0o600);
    assert!(setup.error().contains("more than 16384 bytes"));
    fs::remove_file(setup.path("url")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, setup.path("url"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    assert!(setup.error().contains("not a regular file"));
}

#[test]
fn a_database_password_is_in_nothing_that_is_shown() {
    for (url, redacted) in [
        ("postgres://u:canary@h:5432/db", "postgres://u:***@h:5432/db"),
        ("postgresql://u@h/db", "postgresql://u@h/db"),
        ("postgres://h/db?sslmode=verify-full&password=canary", "postgres://h/db?sslmode=verify-full&password=***"),
        ("postgres:///db?host=/run/pg&user=me", "postgres:///db?host=/run/pg&user=me"),
        ("postgres://u:can/a?r@y-canary@h/db", "postgres://u:***@h/db"),
        ("postgres://u:canary/db", "postgres://***"),
        ("postgres://u:@[::1]:5432/db", "postgres://u:***@[::1]:5432/db"),
        ("postgres://h/db?canary", "postgres://h/db?***"),
        ("postgres://h/db?options=-c%20canary", "postgres://h/db?options=***"),
    ] {
        let mut setup = Setup::new();
        setup.set("CONTAINARIUM_DATABASE_URL", url);
        let effective = setup.good();
        assert_eq!(shown(&effective, Setting::DatabaseUrl).value.as_deref(), Some(redacted));
        assert!(!effective.settings.iter().any(|shown| format!("{shown:?}").contains("canary")));
    }
}

#[test]
fn an_error_repeats_no_value_that_could_be_a_password() {
    for text in [
        "database_url = 'canary'",
        "database_url = 'postgres://u:canary@h/d b'",
        "database_url = 'canary",
        "database_url = canary",
        "database_url = 'a'\ndatabase_url = 'canary'",
        "database_url = { canary = 1 }",
        "log_format = 'canary'",
        "[cache]\nmax_age = 'canary'",
    ] {
        let mut setup = Setup::new();
        setup.file(text);
        let errors = setup.errors().concat();
        assert!(!errors.contains("canary"), "{errors}");
    }
}

#[test]
fn a_syntax_error_names_its_line() {
    let mut setup = Setup::new();
    setup.file("socket = '/s'\n[cache\n");
    let error = setup.error();
    assert!(error.starts_with(&format!("{}:2: ", setup.path("config.toml").display())), "{error}");
}

#[test]
fn a_client_asks_flag_environment_and_file_for_the_socket_in_this_order() {
    let mut setup = Setup::new();
    setup.set("XDG_RUNTIME_DIR", "/r");
    let socket = |setup: &Setup| client_socket(&setup.flags, &setup.environment()).unwrap();
    assert_eq!(socket(&setup), Path::new("/r/containarium/containarium.sock"));
    setup.file("socket = '/file.sock'\ndatabase_url_file = '/not/read/by/a/client'\n");
    assert_eq!(socket(&setup), Path::new("/file.sock"));
    setup.file("foo = 1\n");
    assert!(client_socket(&setup.flags, &setup.environment()).is_err());
    setup.set("CONTAINARIUM_SOCKET", "/env.sock");
    assert_eq!(socket(&setup), Path::new("/env.sock"), "a bad file does not matter where it is not asked");
    setup.flag(Setting::Socket, "/flag.sock");
    assert_eq!(socket(&setup), Path::new("/flag.sock"));
}

#[test]
fn a_client_without_a_runtime_directory_looks_in_the_data_directory() {
    let mut setup = Setup::new();
    let socket = |setup: &Setup| client_socket(&setup.flags, &setup.environment());
    assert_eq!(socket(&setup).unwrap(), setup.path("home/.local/share/containarium/containarium.sock"));
    setup.set("CONTAINARIUM_DATA_DIR", "/d");
    assert_eq!(socket(&setup).unwrap(), Path::new("/d/containarium.sock"));
    setup.variables.clear();
    assert!(socket(&setup).err().unwrap().iter().any(|error| error.to_string().contains("HOME")));
}

#[test]
fn each_setting_is_shown_once_and_in_order() {
    let shown: Vec<_> = Setup::new().good().settings.iter().map(|shown| shown.setting).collect();
    assert_eq!(shown, Setting::ALL);
}

#[test]
fn googles_side_is_read_from_the_file_and_shown() {
    let mut setup = Setup::new();
    setup.file(
        "[backup.gcp]\nsecrets = [\"projects/acme-a/secrets/s\", \"projects/123/secrets/S_1\"]\npush_on_first_start = true\n\
         endpoint = \"http://127.0.0.1:4567/\"\n[kms.gcp]\n\
         key = \"projects/example.com:acme-b/locations/europe-west1/keyRings/r/cryptoKeys/k\"\nendpoint = \"https://kms.example\"\n\
         [keys]\nage_identity = \"identity.txt\"\n",
    );
    let effective = setup.good();
    let backup = effective.config.backup_gcp.as_ref().unwrap();
    let places: Vec<_> = backup.secrets.iter().map(ToString::to_string).collect();
    assert_eq!(places, ["projects/acme-a/secrets/s", "projects/123/secrets/S_1"]);
    assert_eq!(backup.first_start, FirstStart::Push);
    assert_eq!(backup.endpoint.as_ref().unwrap().as_str(), "http://127.0.0.1:4567");
    let kms = effective.config.kms_gcp.as_ref().unwrap();
    assert_eq!(kms.key.as_str(), "projects/example.com:acme-b/locations/europe-west1/keyRings/r/cryptoKeys/k");
    assert_eq!(kms.endpoint.as_ref().unwrap().to_string(), "https://kms.example");
    assert!(effective.config.age_identity.as_ref().unwrap().is_absolute());
    assert!(effective.config.age_identity.as_ref().unwrap().ends_with("identity.txt"));
    let secrets = shown(&effective, Setting::BackupGcpSecrets);
    assert_eq!(secrets.value.as_deref(), Some("projects/acme-a/secrets/s, projects/123/secrets/S_1"));
    assert!(matches!(secrets.origin, Origin::File { line: 2, .. }));
}

#[test]
fn without_googles_side_there_is_none() {
    let effective = Setup::new().good();
    assert!(effective.config.backup_gcp.is_none() && effective.config.kms_gcp.is_none());
    assert!(effective.config.age_identity.is_none());
    assert_eq!(shown(&effective, Setting::KmsGcpKey).value, None);
    assert_eq!(shown(&effective, Setting::BackupGcpSecrets).value, None);
    let mut setup = Setup::new();
    setup.file("[backup.gcp]\nsecrets = [\"projects/acme-a/secrets/s\"]\n");
    assert_eq!(setup.good().config.backup_gcp.unwrap().first_start, FirstStart::Warn);
}

#[test]
fn what_is_no_resource_of_googles_is_refused_with_its_rule() {
    for (text, words) in [
        ("[backup.gcp]\nsecrets = []", "it is empty"),
        ("[backup.gcp]\nsecrets = \"projects/acme-a/secrets/s\"", "must be a list of strings without line breaks"),
        ("[backup.gcp]\nsecrets = [7]", "must be a list of strings without line breaks"),
        ("[backup.gcp]\nsecrets = [\"projects/acme-a/secrets/s\\nprojects/acme-b/secrets/s\"]", "without line breaks"),
        (
            "[backup.gcp]\nsecrets = [\"projects/acme-a/secrets/s/versions/1\"]",
            "projects/PROJECT/secrets/SECRET, without",
        ),
        ("[backup.gcp]\nsecrets = [\"acme-a/s\"]", "projects/PROJECT/secrets/SECRET, without"),
        ("[backup.gcp]\nsecrets = [\"projects/Acme/secrets/s\"]", "projects/PROJECT/secrets/SECRET, without"),
        ("[backup.gcp]\nsecrets = [\"projects/acme-a/secrets/s.t\"]", "projects/PROJECT/secrets/SECRET, without"),
        ("[backup.gcp]\nsecrets = [\"projects/acme-a/secrets/s\", \"projects/acme-a/secrets/s\"]", "twice"),
        ("[backup.gcp]\npush_on_first_start = true", "it needs `backup.gcp.secrets` beside it"),
        ("[backup.gcp]\nendpoint = \"https://a.example\"", "it needs `backup.gcp.secrets` beside it"),
        ("[kms.gcp]\nkey = \"projects/acme-a/locations/x/keyRings/r\"", "cryptoKeys/KEY, without a version"),
        (
            "[kms.gcp]\nkey = \"projects/acme-a/locations/x/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1\"",
            "without a version",
        ),
        ("[kms.gcp]\nendpoint = \"https://a.example\"", "it needs `kms.gcp.key` beside it"),
        ("[kms.gcp]\nkeys = 1", "unknown key `kms.gcp.keys`"),
        ("[backup]\ngcp = 1", "`backup.gcp` must be a table"),
        ("[backup.gcp]\nkeys = 1", "unknown key `backup.gcp.keys`"),
    ] {
        let mut setup = Setup::new();
        setup.file(text);
        let error = setup.error();
        assert!(error.contains(words), "{text}: {error}");
    }
}

#[test]
fn an_endpoint_is_https_or_on_this_machine() {
    let accepted = |endpoint: &str| Endpoint::parse(endpoint).is_ok();
    for endpoint in
        ["https://a.example", "https://a.example:8443/", "http://127.0.0.1:1", "http://127.9.9.9:1", "http://[::1]:1"]
    {
        assert!(accepted(endpoint), "{endpoint}");
    }
    for endpoint in [
        "http://a.example",
        "http://10.0.0.1:1",
        "http://localhost:1",
        "http://127.0.0.1.example:1",
        "http://user@127.0.0.1:1",
        "http://127.0.0.1:1/path",
        "https://a.example/?q=1",
        "https://a.example/#f",
        "ftp://127.0.0.1",
        "127.0.0.1:1",
        "https://",
        "/a",
    ] {
        assert!(!accepted(endpoint), "{endpoint}");
    }
}

#[test]
fn socket_users_are_tables_each_of_a_uid_and_what_it_may_do() {
    let mut setup = Setup::new();
    let users = "[[socket_users]]\nuid = 33\ntenants = [\"bob\", \"alice\"]\npermissions = [\"read\", \"list\"]\nnames = [\"DB_*\"]\n\
                 [[socket_users]]\nuid = 34\ntenants = [\"alice\"]\npermissions = [\"write\"]\n";
    setup.file(users);
    let effective = setup.good();
    let scope = |uid| effective.config.socket_users[&uid].to_columns().join(" ");
    assert_eq!(effective.config.socket_users.len(), 2);
    assert_eq!((scope(33), scope(34)), ("alice,bob read,list DB_*".to_owned(), "alice write ".to_owned()));
    let told = shown(&effective, Setting::SocketUsers).value.clone().unwrap();
    assert_eq!(told, "33: read,list of bob,alice on DB_*, 34: write of alice on every name");
    setup.file("");
    assert!(setup.good().config.socket_users.is_empty());
}

#[test]
fn a_socket_user_that_breaks_a_rule_is_refused_by_its_name() {
    let good = [("uid", "33"), ("tenants", "[\"alice\"]"), ("permissions", "[\"read\"]"), ("names", "[\"DB_*\"]")];
    let user = |field: &str, value: &str| {
        let lines = good.iter().map(|(name, given)| (*name, if *name == field { value } else { given }));
        let lines = lines.filter(|(_, value)| !value.is_empty()).map(|(name, value)| format!("{name} = {value}\n"));
        format!("[[socket_users]]\n{}", lines.collect::<String>())
    };
    let refused = |text: &str, words: &str| {
        let mut setup = Setup::new();
        setup.file(text);
        let error = setup.error();
        assert!(error.contains(words), "{words}: {error}\n{text}");
    };
    for (field, value, words) in [
        ("uid", "", "a uid is a number"),
        ("uid", "-1", "a uid is a number"),
        ("uid", "4294967295", "a uid is a number"),
        ("uid", "0", "uid 0 is root"),
        ("uid", "\"33\"", "`socket_users.uid` must be an integer, and is string"),
        ("tenants", "[]", "uid 33: at least one tenant"),
        ("tenants", "", "uid 33: at least one tenant"),
        ("tenants", "[\"_system\"]", "uid 33: "),
        ("tenants", "[\"a,b\"]", "`socket_users.tenants` must be a list of strings without spaces, commas"),
        ("permissions", "[\"admin\"]", "uid 33: a permission is read, list"),
        ("permissions", "\"read\"", "`socket_users.permissions` must be a list"),
        ("names", "[]", "uid 33: a list of name patterns"),
        ("names", "[\"db\"]", "uid 33: a name pattern is"),
    ] {
        refused(&user(field, value), words);
    }
    refused(&format!("{}more = 1\n", user("", "")), "unknown key `socket_users.more`");
    refused(&user("", "").repeat(2), "uid 33 is there twice");
    refused("socket_users = 1\n", "`socket_users` must be a list of tables");
    refused("socket_users = [1]\n", "`socket_users` must be a list of tables");
}

#[test]
fn the_age_identity_is_named_by_flag_variable_and_file() {
    let setting = Setting::AgeIdentity;
    assert_eq!((setting.key(), setting.flag(), setting.variable()), {
        ("keys.age_identity", Some("--age-identity".to_owned()), Some("CONTAINARIUM_AGE_IDENTITY".to_owned()))
    });
    let mut setup = Setup::new();
    setup.file("[keys]\nage_identity = \"/from/file\"\n");
    assert_eq!(setup.good().config.age_identity.unwrap(), Path::new("/from/file"));
    setup.set("CONTAINARIUM_AGE_IDENTITY", "/from/variable");
    assert_eq!(setup.good().config.age_identity.unwrap(), Path::new("/from/variable"));
}

#[test]
fn of_the_environment_only_what_finds_googles_credentials_is_handed_on() {
    let mut setup = Setup::new();
    for (name, value) in [
        ("GOOGLE_APPLICATION_CREDENTIALS", "/etc/sa.json"),
        ("https_proxy", "http://proxy:3128"),
        ("CONTAINARIUM_LOG_FORMAT", "json"),
        ("XDG_DATA_HOME", "/data"),
        ("CREDENTIALS_DIRECTORY", "/run/credentials"),
        ("LD_PRELOAD", "/evil.so"),
    ] {
        setup.set(name, value);
    }
    let handed = setup.good().config.google_environment;
    let names: Vec<_> = handed.iter().map(|(name, _)| name.to_str().unwrap()).collect();
    assert_eq!(names, ["HOME", "GOOGLE_APPLICATION_CREDENTIALS", "https_proxy"]);
}
