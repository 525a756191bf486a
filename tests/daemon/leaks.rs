//! Values and keys are searched for wherever they must not be: as they are, in base64 at each alignment, and in hex.

use super::on_both_stores;
use crate::support::site::Site;

on_both_stores![no_value_and_no_key_is_readable_in_files_dump_or_logs];

/// Every form in which these bytes might have been written.
fn forms(secret: &[u8]) -> Vec<Vec<u8>> {
    let mut forms = vec![secret.to_vec()];
    for hex in [data_encoding::HEXLOWER, data_encoding::HEXUPPER] {
        forms.push(hex.encode(secret).into_bytes());
    }
    // In base64 the text depends on where in its group of three the secret begins; the first and last characters depend on
    // neighbours, so they are left out.
    for alignment in 0..3 {
        let mut padded = vec![0; alignment];
        padded.extend_from_slice(secret);
        for base64 in [data_encoding::BASE64_NOPAD, data_encoding::BASE64URL_NOPAD] {
            let text = base64.encode(&padded).into_bytes();
            forms.push(text[(alignment * 4).div_ceil(3) + 1..text.len() - 2].to_vec());
        }
    }
    forms
}

fn search(what: &str, secret: &[u8], haystacks: &[(String, Vec<u8>)]) {
    for form in forms(secret) {
        for (name, haystack) in haystacks {
            let found = haystack.windows(form.len()).any(|window| window == form);
            assert!(!found, "{what} is readable in {name}");
        }
    }
}

fn no_value_and_no_key_is_readable_in_files_dump_or_logs(site: &Site) {
    let canary = |number: u32| format!("canary-{number:04}-Zq7TfXw93nVb").into_bytes();
    let text = |number: u32| String::from_utf8(canary(number)).unwrap();
    let daemon = site.start();
    // Where a value belongs.
    daemon.set("alice", "KEY", &canary(1));
    daemon.set("alice", "KEY", &canary(2));
    daemon.request("PUT", "/v1/secrets/alice/PUT", format!(r#"{{"value":"{}"}}"#, text(3)).as_bytes());
    daemon.request(
        "POST",
        "/v1/secrets/alice/batch-set",
        format!(r#"{{"secrets":[{{"name":"B","value":"{}"}}]}}"#, text(4)).as_bytes(),
    );
    site.cli(["secrets", "set", "alice", "CLI"], &canary(5));
    assert_eq!(daemon.value("alice", "KEY").unwrap(), canary(2));
    // Where it does not: every other place of a body, a path, a query, a header, a command line.
    let wrong = [
        format!(r#"{{"username":"{0}","name":"A","value":"x"}}"#, text(6)),
        format!(r#"{{"username":"alice","name":"{0}","value":"x"}}"#, text(6)),
        format!(r#"{{"username":"alice","name":"A","value":{{"{0}":1}}}}"#, text(6)),
        format!(r#"{{"username":"alice","name":"A","value_base64":"{0}!"}}"#, text(6)),
        format!(r#"{{"username":"alice","name":"A","value":"x","{0}":1}}"#, text(6)),
        format!(r#"{{"username":"alice","name":"A","value":"x","delivery":"{0}"}}"#, text(6)),
        format!(r#"{{"username":"alice","name":"A","value":"x","cas":"{0}"}}"#, text(6)),
        format!("{} not json", text(6)),
        format!(r#"{{"username":"alice","name":"A","value":"{0}"#, text(6)),
    ];
    let mut said: Vec<(String, Vec<u8>)> = Vec::new();
    for body in wrong {
        let answer = daemon.request("POST", "/v1/secrets", body.as_bytes());
        assert_eq!(answer.status, 400, "{body}");
        said.push((format!("the answer to {body}"), answer.body));
    }
    let canary_6 = text(6);
    for path in [
        format!("/v1/secrets/alice/{canary_6}"),
        format!("/v1/secrets/{canary_6}/KEY"),
        format!("/v1/secrets/alice?pageToken={canary_6}"),
    ] {
        let answer = daemon.get(&path);
        assert!(answer.status >= 400, "{path}");
        said.push((format!("the answer to {path}"), answer.body));
    }
    daemon.request_with("GET", "/livez", &[("Authorization", &canary_6), ("Cookie", &canary_6)], b"");
    daemon.raw(format!("{canary_6}\r\n\r\n").as_bytes());
    for arguments in [
        vec!["secrets", "set", "alice", "A", &canary_6, "and-one-more"],
        vec!["secrets", "set", "alice", &canary_6],
        vec!["secrets", "get", &canary_6, "A"],
        vec!["secrets", "get", "alice", "A", "--version", &canary_6],
        vec!["secrets", "set", "alice", "A", "--cas", &canary_6],
        vec!["secrets", &canary_6],
        vec!["secrets", "set", "alice", "POSITIONAL", &canary_6],
    ] {
        let output = site.cli(&arguments, b"");
        said.push((format!("what {} said", arguments[..2].join(" ")), [output.stdout, output.stderr].concat()));
    }
    let metrics = daemon.get("/metrics").body;
    said.push(("the metrics".to_owned(), metrics));
    assert_eq!(daemon.stop().code(), Some(0));

    let key = std::fs::read(site.key_file()).unwrap();
    let mut haystacks: Vec<(String, Vec<u8>)> = site
        .files()
        .into_iter()
        .filter(|(path, _)| !path.starts_with(site.path("etc")))
        .map(|(path, content)| (path.display().to_string(), content))
        .collect();
    if let Some(url) = site.database_url() {
        let dump = std::process::Command::new("pg_dump").arg(url).output().unwrap();
        assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
        assert!(String::from_utf8_lossy(&dump.stdout).contains("alice"), "the dump holds the rows");
        haystacks.push(("the database dump".to_owned(), dump.stdout));
    }
    assert!(haystacks.iter().any(|(name, content)| name.ends_with("audit.jsonl") && !content.is_empty()));
    haystacks.extend(said);
    for number in 1..=6 {
        search(&format!("canary {number}"), &canary(number), &haystacks);
    }
    search("the master key", &key, &haystacks);
}

#[test]
fn the_search_finds_what_is_there() {
    let secret = b"canary-0001-Zq7TfXw93nVb";
    let mut haystacks = vec![b"before ".to_vec(), data_encoding::HEXLOWER.encode(secret).into_bytes()];
    haystacks[0].extend_from_slice(secret);
    for before in 0..3 {
        let text = [vec![b'x'; before], secret.to_vec(), b"yz".to_vec()].concat();
        haystacks.push(data_encoding::BASE64.encode(&text).into_bytes());
    }
    for haystack in haystacks {
        let named = [("here".to_owned(), haystack)];
        assert!(std::panic::catch_unwind(|| search("it", secret, &named)).is_err());
    }
}
