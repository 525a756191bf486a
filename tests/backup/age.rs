use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use containarium::backup::age::{AgeError, Identities, Recipient, export};
use containarium::backup::{BackupError, Form, Kind, read_copy};

use super::*;

/// An identity file as age-keygen writes it, and its recipient.
fn make_identity() -> (String, Recipient) {
    use ::age::secrecy::ExposeSecret as _;
    let identity = ::age::x25519::Identity::generate();
    let recipient = identity.to_public().to_string();
    let file = format!("# created: today\n# public key: {recipient}\n{}\n", identity.to_string().expose_secret());
    (file, recipient.parse().unwrap())
}

fn identities(file: &str) -> Identities {
    Identities::read(&mut file.as_bytes()).unwrap()
}

fn age_error(outcome: Result<ReadCopy, BackupError>) -> AgeError {
    match outcome.err().expect("an error") {
        BackupError::Age(error) => error,
        other => panic!("{other}"),
    }
}

fn recipient_error(text: &str) -> AgeError {
    text.parse::<Recipient>().err().expect("an error")
}

#[test]
fn a_copy_opens_with_each_identity_that_it_was_made_for_and_with_no_other() {
    let ((first, to_first), (second, to_second), (other, _)) = (make_identity(), make_identity(), make_identity());
    let (key, kid) = new_key();
    for content in [&key[..], WRAPPED] {
        let file = export(&image(content), &[to_first.clone(), to_second.clone()]).unwrap();
        assert!(file.starts_with("-----BEGIN AGE ENCRYPTED FILE-----\n"));
        for identity in [&first, &second, &format!("{other}{second}")] {
            let opened = read_copy(&mut file.as_bytes(), Some(&identities(identity))).unwrap();
            assert_eq!((opened.form, bytes(opened.copy.image())), (Form::Age, content.to_vec()));
        }
        let refused = age_error(read_copy(&mut file.as_bytes(), Some(&identities(&other))));
        assert!(matches!(refused, AgeError::NoMatch { count: 1 }), "{refused}");
    }
    let file = export(&image(&key), &[to_first]).unwrap();
    // As a password manager or an editor may give it back.
    let pasted = format!("\n  \n{}\r\n\n", file.trim_end().replace('\n', "\r\n"));
    let opened = read_copy(&mut pasted.as_bytes(), Some(&identities(&first))).unwrap();
    assert_eq!(opened.copy.kid(), Ok(kid));
}

#[test]
fn an_age_file_without_an_identity_asks_for_one() {
    let (_, to) = make_identity();
    let refused = refusal(export(&image(&[7; 32]), &[to]).unwrap().as_bytes());
    assert!(matches!(refused, BackupError::NeedsIdentity) && refused.kind() == Kind::Invalid, "{refused}");
}

#[test]
fn nobody_is_no_recipient() {
    assert!(matches!(export(&image(&[7; 32]), &[]), Err(AgeError::NoRecipients)));
    let (identity, to) = make_identity();
    let secret_half = identity.lines().last().unwrap();
    assert!(matches!(recipient_error(secret_half), AgeError::IdentityAsRecipient));
    let typo = to.to_string().replacen("age1q", "age1p", 1).replacen('7', "8", 1) + "x";
    for wrong in ["", "age1", "alice", &typo, "ssh-ed25519 AAAA", "age1yubikey1qqqq"] {
        assert!(matches!(recipient_error(wrong), AgeError::NotARecipient), "{wrong}");
    }
    assert_eq!(format!(" {to}\n").parse::<Recipient>().unwrap().to_string(), to.to_string());
}

#[test]
fn what_is_no_identity_file_says_which_line() {
    let (good, to) = make_identity();
    let read = |text: &str| match Identities::read(&mut text.as_bytes()).err().expect("an error") {
        BackupError::Age(error) => error,
        other => panic!("{other}"),
    };
    let secret = good.lines().last().unwrap();
    let wrong = read(&format!("{good}\n{}\n", secret.replacen("KEY-1", "KEY-2", 1)));
    assert!(matches!(wrong, AgeError::NotAnIdentity { line: 5 }), "{wrong}");
    assert!(!wrong.to_string().contains(&secret[20..30]));
    for (text, line) in [("AGE-PLUGIN-YUBIKEY-1QQQ", 1), ("# x\n-----BEGIN OPENSSH PRIVATE KEY-----", 2)] {
        assert!(matches!(read(text), AgeError::NotAnIdentity { line: said } if said == line), "{text}");
    }
    assert!(matches!(read("# nothing\n\n"), AgeError::NoIdentities));
    assert!(matches!(read(&export(&image(good.as_bytes()), &[to]).unwrap()), AgeError::EncryptedIdentities));
    assert!(Identities::read(&mut good.replace('\n', "\r\n").as_bytes()).is_ok());
}

#[test]
fn a_passphrase_is_told_from_a_wrong_identity() {
    let mut to = ::age::scrypt::Recipient::new("correct horse".to_owned().into());
    to.set_work_factor(2);
    let file = ::age::encrypt(&to, &[7; 32]).unwrap();
    let (identity, _) = make_identity();
    let refused = age_error(read_copy(&mut file.as_slice(), Some(&identities(&identity))));
    assert!(matches!(refused, AgeError::Passphrase), "{refused}");
}

#[test]
fn every_damage_to_an_age_file_is_refused() {
    let (identity, to) = make_identity();
    let to: ::age::x25519::Recipient = to.to_string().parse().unwrap();
    let identity = identities(&identity);
    let file = ::age::encrypt(&to, &[7; 32]).unwrap();
    for at in 0..file.len() {
        let mut damaged = file.clone();
        damaged[at] ^= 1;
        let opened = read_copy(&mut damaged.as_slice(), Some(&identity));
        // In its first bytes it is no age file any more, and then a plain copy of the wrong length.
        assert!(
            opened.is_err() || opened.is_ok_and(|read| read.form == Form::Plain && read.copy.kid().is_err()),
            "{at}"
        );
        if at > 20 {
            assert!(read_copy(&mut &file[..at], Some(&identity)).is_err(), "cut at {at}");
        }
    }
}

#[test]
fn too_much_content_is_refused() {
    let (identity, to) = make_identity();
    let to: ::age::x25519::Recipient = to.to_string().parse().unwrap();
    let file = ::age::encrypt(&to, &vec![7; KeyfileImage::MAX_LEN + 1]).unwrap();
    let refused = age_error(read_copy(&mut file.as_slice(), Some(&identities(&identity))));
    assert!(matches!(refused, AgeError::ContentTooLong { .. }), "{refused}");
}

fn age(arguments: &[&str], directory: &Path, input: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut child = Command::new("age")
        .args(arguments)
        .current_dir(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "age {arguments:?}");
    output.stdout
}

/// Another implementation (in Go), both ways.
#[test]
fn the_age_command_opens_our_copies_and_we_open_its() {
    let there = Command::new("age").arg("--version").output().is_ok();
    #[expect(clippy::disallowed_methods, reason = "a test asks where it runs")]
    let in_ci = std::env::var_os("CI").is_some_and(|value| value == "true");
    assert!(there || !in_ci, "age is not installed, and in CI a skip is a failure");
    if !there {
        eprintln!("skipped: the_age_command_opens_our_copies_and_we_open_its: age is not installed");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let keygen = Command::new("age-keygen").output().unwrap();
    let identity = String::from_utf8(keygen.stdout).unwrap();
    fs::write(directory.path().join("identity"), &identity).unwrap();
    let to = identity.lines().find_map(|line| line.strip_prefix("# public key: ")).unwrap();
    let (key, _) = new_key();

    let ours = export(&image(&key), &[to.parse().unwrap()]).unwrap();
    assert_eq!(age(&["-d", "-i", "identity"], directory.path(), ours.as_bytes()), key);

    for theirs in [&["-r", to][..], &["-a", "-r", to]] {
        let file = age(theirs, directory.path(), &key);
        let opened = read_copy(&mut file.as_slice(), Some(&identities(&identity))).unwrap();
        assert_eq!((opened.form, bytes(opened.copy.image())), (Form::Age, key.clone()), "{theirs:?}");
    }
}
