//! The reference implementation in Python shares no code with the product: a blob that both open was made to the written format.

use super::*;
use std::io::Write;
use std::process::{Command, Output, Stdio};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reference/envelope_ref.py");

/// Whether python3 can run the reference. In CI it must: a skip there would be a hole that nobody sees.
#[expect(clippy::disallowed_methods, reason = "whether this is CI is known by the environment only")]
fn python_can_run_it(test: &str) -> bool {
    let can = Command::new("python3")
        .args(["-c", "import cryptography.hazmat.primitives.ciphers.aead"])
        .output()
        .is_ok_and(|output| output.status.success());
    assert!(can || std::env::var_os("CI").is_none(), "python3 with `cryptography` must be there in CI");
    if !can {
        eprintln!("skipped: {test}: python3 lacks `cryptography` (apt-get install python3-cryptography)");
    }
    can
}

fn reference(arguments: &[&str], stdin: &[u8]) -> Output {
    let mut child = Command::new("python3")
        .arg(SCRIPT)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(stdin).unwrap();
    child.wait_with_output().unwrap()
}

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

/// What the reference gave, or the name of its refusal.
fn outcome(output: Output) -> Result<Vec<u8>, String> {
    if output.status.success() {
        return Ok(output.stdout);
    }
    let trace = String::from_utf8(output.stderr).unwrap();
    let last = trace.lines().last().unwrap_or_default();
    Err(last.split([':', '.']).rfind(|word| !word.trim().is_empty()).unwrap_or_default().trim().to_owned())
}

fn open_wrapped(master: &MasterKey, at: &At, blob: &[u8]) -> Result<Vec<u8>, String> {
    let (master, number) = (hex(master.0.bytes()), at.dek_version.to_string());
    outcome(reference(&["open-wrapped", &master, at.tenant.as_str(), &number, "-"], hex(blob).as_bytes()))
}

fn open_secret(dek: &Dek, at: &At, blob: &[u8]) -> Result<Vec<u8>, String> {
    let (dek, dek_number, number) = (hex(dek.0.bytes()), at.dek_version.to_string(), at.version.to_string());
    let arguments = ["open-secret", &dek, at.tenant.as_str(), at.name.as_str(), &dek_number, &number, "-"];
    outcome(reference(&arguments, hex(blob).as_bytes()))
}

#[test]
fn the_reference_opens_what_the_product_made() {
    if !python_can_run_it("the_reference_opens_what_the_product_made") {
        return;
    }
    let master = MasterKey::make_random().unwrap();
    let kek = derive_kek(&master);
    let longest = (0..=255_u8).cycle().take(crate::model::MAX_VALUE_BYTES).collect::<Vec<_>>();
    let places = [alice(), At::new("a.b-c_9", "_", u32::MAX, i64::MAX as u64)];
    for (at, bytes) in places.iter().zip([b"sk-\0\xFF-0001".as_slice(), &longest]) {
        let dek = make_dek(at.dek()).unwrap();
        let wrapped = wrap(&kek, at.dek(), &dek).unwrap();
        let opened = open_wrapped(&master, at, &wrapped).unwrap();
        assert_eq!(String::from_utf8(opened).unwrap().trim_end(), hex(dek.0.bytes()));
        let sealed = seal(&dek, at.secret(), &value(bytes)).unwrap();
        assert_eq!(open_secret(&dek, at, &sealed).as_deref(), Ok(bytes));
        let empty = seal(&dek, at.secret(), &value(b"")).unwrap();
        assert_eq!(open_secret(&dek, at, &empty).as_deref(), Ok(b"".as_slice()));
    }
}

#[test]
fn the_reference_and_the_product_refuse_by_the_same_name() {
    if !python_can_run_it("the_reference_and_the_product_refuse_by_the_same_name") {
        return;
    }
    let (at, bob) = (alice(), At { tenant: tenant("bob"), ..alice() });
    let [master, other] = [0; 2].map(|_| MasterKey::make_random().unwrap());
    let dek = make_dek(at.dek()).unwrap();
    let wrapped = wrap(&derive_kek(&master), at.dek(), &dek).unwrap();
    let cut = &wrapped[..131];
    for (master, at, blob) in [(&master, &at, cut), (&other, &at, &wrapped), (&master, &bob, &wrapped)] {
        let ours = unwrap(&derive_kek(master), at.dek(), blob).err().unwrap();
        assert_eq!(open_wrapped(master, at, blob), Err(format!("{ours:?}")));
    }
    let sealed = seal(&dek, at.secret(), &value(b"sk-test-0001")).unwrap();
    let next = At { version: version(8), ..alice() };
    let mut damaged = sealed.clone();
    *damaged.last_mut().unwrap() ^= 1;
    for (at, blob) in [(&next, &sealed), (&bob, &sealed), (&at, &damaged)] {
        let ours = open(&dek, at.secret(), blob).err().unwrap();
        assert_eq!(open_secret(&dek, at, blob), Err(format!("{ours:?}")));
    }
}

/// The vectors in the tree are the reference's own, and its negative cases hold.
#[test]
fn the_vectors_are_what_the_reference_prints() {
    if !python_can_run_it("the_vectors_are_what_the_reference_prints") {
        return;
    }
    let printed = outcome(reference(&[], b"")).unwrap();
    let vectors = include_bytes!("../../../tests/vectors/envelope.json");
    let read = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap();
    assert_eq!(read(&printed), read(vectors));
}
