use std::collections::BTreeMap;
use std::io::Read;

use zeroize::Zeroizing;

use super::failure::{Deed, DeedKind};
use super::input::{Empty, Newline, accept, check_answer, read_bounded};
use super::output::{Reader, Table, plain, value_bytes};
use super::*;
use crate::client::ClientError;
use crate::config::Setting;
use crate::crypto::SecretValue;
use crate::model::{MAX_VALUE_BYTES, SecretName, Tenant};
use crate::wire::{
    CacheStatus, CountsStatus, KeysStatus, MasterKeyItem, SecretMetadata, StatusAnswer, StoreStatus, VersionItem,
    VersionsAnswer,
};

fn parses(line: &str) -> Result<(), clap::Error> {
    let words: Vec<OsString> = format!("containarium {line}").split(' ').map(OsString::from).collect();
    Arguments::try_parse_from(&words).map(|_| ()).map_err(|error| refusal::without_values(error, &words))
}

fn refused(line: &str) -> String {
    let error = parses(line).expect_err(line);
    assert_eq!(error.exit_code(), 2, "{line}");
    error.to_string()
}

#[test]
fn the_tree_is_sound() {
    Arguments::command().debug_assert();
}

#[test]
fn every_command_that_the_manual_names_is_taken() {
    for line in [
        "daemon",
        "daemon --config c --data-dir d --key-file k --socket s --log-format json --adopt-key",
        "daemon --listen [::1]:1 --metrics-listen 127.0.0.1:2 --tls-cert c --tls-key k --allow-plain-http",
        "secrets get alice KEY --server https://h:1 --ca-cert c",
        "daemon --adopt-key=false --database-url postgres://h/db",
        "secrets set alice KEY",
        "secrets set alice KEY value",
        "secrets set alice KEY -- -value",
        "secrets set alice KEY --from-file - --allow-empty --trim-newline --delivery file --cas 0",
        "secrets get alice KEY --version 2 -o json",
        "secrets --socket s -o json get alice KEY",
        "secrets list alice",
        "secrets delete alice KEY",
        "secrets undelete alice KEY",
        "secrets versions alice KEY",
        "secrets rollback alice KEY 3",
        "secrets destroy alice KEY 1 2 3 --yes",
        "admin tenants",
        "admin status --config c",
        "backup push -o json",
        "backup list --socket s",
        "backup verify --from - --identity i -o json",
        "backup restore --version 7 --secret projects/acme-a/secrets/s",
        "backup restore --kid 0123456789abcdef0123456789abcdef --data-dir d",
        "backup restore --from f --identity i",
        "backup export --age age1x age1y --kid 0123456789abcdef0123456789abcdef",
        "backup export --paper",
        "backup export --stdout-raw",
        "config show -o json",
        "config check --config c",
        "completions bash",
        "man --dir d",
    ] {
        assert!(parses(line).is_ok(), "{line}: {}", parses(line).unwrap_err());
    }
}

#[test]
fn a_name_that_breaks_the_rule_is_refused_with_the_rule_and_without_the_name() {
    for (line, rule) in [
        ("secrets get ALICE KEY", "a tenant is 1 to 64 of a-z"),
        ("secrets get _system KEY", "a tenant is 1 to 64 of a-z"),
        ("secrets list alice/../bob", "a tenant is 1 to 64 of a-z"),
        ("secrets set alice my-key", "a secret's name is 1 to 128 of A-Z"),
        ("secrets delete alice %2F", "a secret's name is 1 to 128 of A-Z"),
        ("secrets get alice sk-canary", "a secret's name is 1 to 128 of A-Z"),
    ] {
        let text = refused(line);
        assert!(text.contains(rule), "{text}");
        assert!(
            ["ALICE", "_system", "bob", "my-key", "%2F", "canary"].iter().all(|word| !text.contains(word)),
            "{text}"
        );
    }
}

#[test]
fn nothing_that_could_be_a_value_is_in_a_refusal() {
    for line in [
        "secrets set alice KEY a canary",
        "secrets set alice KEY canary canary",
        "secrets set alice KEY --canary",
        "secrets set alice KEY -canary",
        "secrets set alice KEY -----BEGIN-canary",
        "secrets set alice KEY --trim-newlines=canary",
        "secrets set alice KEY canary --from-file f",
        "secrets set alice KEY --from-file f canary",
        "secrets set alice KEY --cas canary",
        "secrets set alice KEY --delivery canary",
        "secrets set alice canary a",
        "secrets set canary! KEY a",
        "secrets get alice KEY canary",
        "secrets get alice KEY --version canary",
        "secrets rollback alice KEY canary",
        "secrets destroy alice KEY 1 canary",
        "secrets list alice canary",
        "secrets canary-0123456789-0123456789",
        "secrets list alice -o canary",
        "daemon canary",
        "daemon --log-format canary",
        "daemon --adopt-key=canary",
        "daemon --database-url postgres://h/db canary",
        "completions canary",
    ] {
        let text = refused(line);
        assert!(!text.contains("canary"), "{line}: {text}");
    }
}

#[test]
fn a_mistyped_command_or_flag_is_named_and_the_right_one_suggested() {
    let text = refused("secrts");
    assert!(text.contains("'secrts'") && text.contains("'secrets'"), "{text}");
    let text = refused("daemon --data-dri d");
    assert!(text.contains("'--data-dri'") && text.contains("'--data-dir'"), "{text}");
    let text = refused("secrets set alice KEY --trim-newlines");
    assert!(text.contains("'--trim-newline'"), "{text}");
}

#[test]
fn versions_count_from_one_and_something_must_be_destroyed() {
    for line in [
        "secrets get alice KEY --version 0",
        "secrets rollback alice KEY -1",
        "secrets rollback alice KEY",
        "secrets destroy alice KEY",
        "secrets destroy alice KEY 18446744073709551616",
    ] {
        refused(line);
    }
}

#[test]
fn the_daemons_flags_are_the_settings_and_name_their_variables() {
    let command = Arguments::command();
    let daemon = command.find_subcommand("daemon").unwrap();
    let flags: BTreeMap<_, _> = daemon
        .get_arguments()
        .map(|argument| (format!("--{}", argument.get_id().as_str().replace('_', "-")), argument))
        .collect();
    let settings: Vec<_> = Setting::ALL.iter().filter_map(|setting| setting.flag().zip(setting.variable())).collect();
    assert_eq!(flags.len(), settings.len(), "{:?}", flags.keys());
    for (flag, variable) in settings {
        let help = flags[&flag].get_help().unwrap().to_string();
        assert!(help.contains(&format!("[env: {variable}]")), "{flag}: {help}");
    }
}

fn read(bytes: &[u8], empty: Empty, newline: Newline) -> Result<(Vec<u8>, bool), u8> {
    let accepted = accept(Zeroizing::new(bytes.to_vec()), empty, newline);
    accepted.map(|(value, warning)| (value.expose().to_vec(), warning.is_some())).map_err(|failure| failure.code())
}

#[test]
fn an_empty_value_is_a_usage_error_unless_it_is_meant() {
    assert_eq!(read(b"", Empty::Refuse, Newline::Keep), Err(2));
    assert_eq!(read(b"\n", Empty::Refuse, Newline::Trim), Err(2));
    assert_eq!(read(b"", Empty::Allow, Newline::Keep), Ok((Vec::new(), false)));
    assert_eq!(read(b"\n", Empty::Allow, Newline::Trim), Ok((Vec::new(), false)));
}

#[test]
fn a_lone_trailing_newline_is_kept_with_a_warning_and_trimmed_on_demand() {
    for (input, warned, trimmed) in [
        (b"value\n".as_slice(), true, b"value".as_slice()),
        (b"value\r\n", true, b"value"),
        (b"\n", true, b""),
        (b"value", false, b"value"),
        (b"value\r", false, b"value\r"),
        (b"value\n\n", false, b"value\n"),
        (b"-----BEGIN\nabc\n-----END\n", false, b"-----BEGIN\nabc\n-----END"),
    ] {
        assert_eq!(read(input, Empty::Allow, Newline::Keep), Ok((input.to_vec(), warned)), "{input:?}");
        assert_eq!(read(input, Empty::Allow, Newline::Trim), Ok((trimmed.to_vec(), false)), "{input:?}");
    }
    let (_, warning) = accept(Zeroizing::new(b"a\n".to_vec()), Empty::Refuse, Newline::Keep).unwrap();
    assert!(warning.unwrap().contains("--trim-newline"));
}

#[test]
fn a_value_may_have_65536_bytes_after_trimming_and_no_more() {
    let exactly = vec![b'a'; MAX_VALUE_BYTES];
    let with = |end: &str| [&exactly, end.as_bytes()].concat();
    assert!(read(&exactly, Empty::Refuse, Newline::Keep).is_ok());
    assert_eq!(read(&with("a"), Empty::Refuse, Newline::Keep), Err(2));
    assert_eq!(read(&with("\n"), Empty::Refuse, Newline::Keep), Err(2));
    for end in ["\n", "\r\n"] {
        assert_eq!(read(&with(end), Empty::Refuse, Newline::Trim), Ok((exactly.clone(), false)));
    }
    assert_eq!(read(&with("\n\n"), Empty::Refuse, Newline::Trim), Err(2));
}

#[test]
fn no_more_is_read_than_shows_that_it_is_too_much() {
    let mut endless = std::io::repeat(b'a');
    let bytes = read_bounded(&mut endless).unwrap();
    assert_eq!(bytes.len(), MAX_VALUE_BYTES + 3);
    assert_eq!(bytes.capacity(), bytes.len());
    assert_eq!(read(&bytes, Empty::Refuse, Newline::Trim), Err(2));
    let mut pieces = b"ab".chain(b"".as_slice()).chain(b"c".as_slice());
    assert_eq!(read_bounded(&mut pieces).unwrap().as_slice(), b"abc");
}

#[test]
fn only_the_name_itself_confirms() {
    for (answer, good) in [
        ("KEY\n", true),
        ("KEY", true),
        ("KEY\r\n", true),
        ("key\n", false),
        ("\n", false),
        ("", false),
        ("KEY KEY\n", false),
    ] {
        assert_eq!(check_answer(&mut answer.as_bytes(), "KEY").is_ok(), good, "{answer:?}");
    }
}

#[test]
fn each_failed_request_has_its_exit_code_and_a_mending_command() {
    let (tenant, name) = (Tenant::parse("alice").unwrap(), SecretName::parse("KEY").unwrap());
    let problem = |status, retry_after| ClientError::Problem {
        status,
        detail: "why".to_owned(),
        request_id: "r1".to_owned(),
        retry_after,
    };
    let socket = || "/s".into();
    for (error, code, mend) in [
        (problem(400, None), 1, ""),
        (problem(401, None), 4, "--token-file"),
        (problem(403, None), 4, "sudo"),
        (problem(404, None), 3, "containarium secrets list alice"),
        (problem(409, None), 6, "containarium secrets versions alice KEY"),
        (problem(412, None), 6, "containarium secrets versions alice KEY"),
        (problem(413, None), 1, ""),
        (problem(429, Some(7)), 5, "in 7 seconds"),
        (problem(500, None), 1, "grep r1"),
        (problem(503, None), 5, "containarium admin status"),
        (ClientError::NoDaemon { socket: socket() }, 5, "containarium daemon"),
        (ClientError::SocketDenied { socket: socket() }, 4, "sudo"),
        (ClientError::Broken, 5, "containarium secrets versions alice KEY"),
        (ClientError::Deadline { after: crate::client::DEADLINE }, 5, "containarium secrets versions alice KEY"),
        (ClientError::Unreadable { status: 200 }, 1, "containarium secrets versions alice KEY"),
        (ClientError::Unreadable { status: 503 }, 5, "containarium --version"),
    ] {
        let failure = Failure::of_request(&Deed::on_secret(DeedKind::Change, "set", &tenant, &name), &error);
        let text = failure.text();
        assert_eq!(failure.code(), code, "{text}");
        assert!(text.starts_with("error: cannot set alice/KEY: ") && text.contains(mend), "{text}");
        assert_eq!(text.contains("not known"), error.effect() == crate::client::Effect::Unknown, "{text}");
    }
}

#[test]
fn an_unknown_tenant_is_not_looked_for_by_listing_it() {
    let (tenant, name) = (Tenant::parse("bob").unwrap(), SecretName::parse("KEY").unwrap());
    for detail in ["tenant bob is unknown", "the tenant is unknown"] {
        let error = ClientError::Problem {
            status: 404,
            detail: detail.to_owned(),
            request_id: "r1".to_owned(),
            retry_after: None,
        };
        let text = Failure::of_request(&Deed::on_secret(DeedKind::Read, "get", &tenant, &name), &error).text();
        assert!(text.contains("containarium admin tenants") && !text.contains("secrets list"), "{text}");
    }
}

#[test]
fn a_failed_read_does_not_speak_of_a_change() {
    let (tenant, name) = (Tenant::parse("alice").unwrap(), SecretName::parse("KEY").unwrap());
    let failure = Failure::of_request(&Deed::on_secret(DeedKind::Read, "get", &tenant, &name), &ClientError::Broken);
    assert!(!failure.text().contains("change") && failure.text().contains("admin status"), "{}", failure.text());
}

#[test]
fn a_reader_that_hangs_up_is_no_failure_and_a_full_disk_is() {
    let broken = Failure::of_output(&std::io::ErrorKind::BrokenPipe.into());
    assert_eq!((broken.code(), broken.text().as_str()), (0, ""));
    let full = Failure::of_output(&std::io::ErrorKind::StorageFull.into());
    assert_eq!(full.code(), 1);
}

#[test]
fn no_control_character_of_a_daemon_reaches_the_terminal() {
    assert_eq!(
        plain("a\u{1b}[2J\r\n\tb\u{7f}\u{9b}\u{202e}é"),
        "a\\u{1b}[2J\\u{d}\\u{a}\\u{9}b\\u{7f}\\u{9b}\\u{202e}é"
    );
    let failure = Failure::new(Exit::Failed, "a\u{1b}]0;x\u{7}\nerror: b").mend("\u{1b}c");
    assert_eq!(failure.text(), "error: a\\u{1b}]0;x\\u{7}\\u{a}error: b\n  help: \\u{1b}c\n");
    let mut table = Table::new();
    table.row(["a\tb\nc", "d"]);
    assert_eq!(table.render().unwrap(), "a\\u{9}b\\u{a}c  d\n");
}

#[test]
fn a_value_goes_to_a_program_as_it_is_and_to_a_terminal_only_as_text() {
    let print = |bytes: &[u8], reader| {
        let value = SecretValue::new(Zeroizing::new(bytes.to_vec()));
        value_bytes(&value, reader).map(|bytes| bytes.to_vec()).map_err(|failure| failure.text())
    };
    for bytes in [b"".as_slice(), b"a", b"a\n", b"\x1b[2J", b"\xFF\x00"] {
        assert_eq!(print(bytes, Reader::Program).as_deref(), Ok(bytes));
    }
    for (bytes, shown) in [
        (b"a".as_slice(), b"a\n".as_slice()),
        (b"a\n", b"a\n"),
        (b"", b"\n"),
        ("é\tb\r\n".as_bytes(), "é\tb\r\n".as_bytes()),
    ] {
        assert_eq!(print(bytes, Reader::Terminal).as_deref(), Ok(shown));
    }
    for bytes in [
        b"canary\x1b[2J".as_slice(),
        b"canary\xFF",
        b"canary\0",
        "canary\u{9b}".as_bytes(),
        "canary\u{202e}".as_bytes(),
    ] {
        let refused = print(bytes, Reader::Terminal).unwrap_err();
        assert!(refused.contains("-o json") && !refused.contains("canary"), "{refused}");
    }
}

#[test]
fn json_for_a_terminal_says_the_same_without_control_characters() {
    let text = "\u{1b}\u{7f}\u{9b}\u{202e}é\n\"";
    let json = serde_json::to_string(text).unwrap();
    let line = |reader| String::from_utf8(output::json_line(json.as_bytes(), reader).to_vec()).unwrap();
    assert_eq!(line(Reader::Program), format!("{json}\n"));
    let line = line(Reader::Terminal);
    assert_eq!(line, "\"\\u001b\\u007f\\u009b\\u202eé\\n\\\"\"\n");
    assert_eq!(serde_json::from_str::<String>(&line).unwrap(), text);
}

#[test]
fn versions_are_a_table() {
    let secret = SecretMetadata {
        username: "alice".to_owned(),
        name: "KEY".to_owned(),
        version: 2,
        created_at: "c".to_owned(),
        updated_at: "u".to_owned(),
        delivery: "env".to_owned(),
        delivery_mode: "SECRET_DELIVERY_ENV".to_owned(),
    };
    let item = |version, state: &str, destroyed_at: Option<&str>| VersionItem {
        version,
        state: state.to_owned(),
        created_at: "2025-11-24T16:00:00Z".to_owned(),
        destroyed_at: destroyed_at.map(str::to_owned),
    };
    let versions = vec![item(12, "live", None), item(1, "destroyed", Some("2025-11-25T16:00:00Z"))];
    let answer = VersionsAnswer { secret, deleted: false, versions };
    assert_eq!(
        secrets::versions_table(&answer).render().unwrap(),
        "VERSION  STATE      CREATED               DESTROYED\n\
         12       live       2025-11-24T16:00:00Z  -\n\
         1        destroyed  2025-11-24T16:00:00Z  2025-11-25T16:00:00Z\n"
    );
}

#[test]
fn the_status_tells_what_is_wrong() {
    let kid = "ab".repeat(16);
    let master = MasterKeyItem { kid: kid.clone(), state: "active".to_owned(), created_at: "t".to_owned() };
    let status = StatusAnswer {
        version: "2.0.0".to_owned(),
        ready: false,
        store: StoreStatus { kind: "sqlite".to_owned(), state: "reachable".to_owned() },
        keys: KeysStatus {
            state: "locked".to_owned(),
            reason: Some("no key file".to_owned()),
            loaded_kids: Vec::new(),
            active_kid: Some(kid.clone()),
            epoch: Some(1),
            generation: None,
            phase: Some("idle".to_owned()),
            master_keys: vec![master],
        },
        cache: CacheStatus { entries: 1, max_entries: 9, max_age_seconds: 60, hits: 5, misses: 1 },
        counts: Some(CountsStatus { tenants: 1, secrets: 2, versions: 3, deks: [("active".to_owned(), 4)].into() }),
        warnings: vec!["no proven backup of the master key".to_owned()],
    };
    assert_eq!(
        admin::status_table(&status).render().unwrap(),
        format!(
            "release      2.0.0\nready        no\nstore        sqlite, reachable\nkeys         locked: no key file\n\
             active kid   {kid}\nloaded kids  -\nepoch        1\ngeneration   -\nphase        idle\n\
             master key   {kid}, active, since t\ncache        1 of 9 entries, 60 s at most; 5 hits, 1 misses\n\
             tenants      1\nsecrets      2\nversions     3\nDEKs active  4\nWARNING      no proven backup of the master key\n"
        )
    );
}
