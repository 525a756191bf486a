//! The fixed vectors, made by the reference implementation (`tests/reference/envelope_ref.py`), in both directions. They must never
//! break: a change of format is a new version byte and new vectors beside these.

use super::*;
use serde_json::{Map, Value};

/// What v1 wrote; the product does not open it.
const V1: [&str; 2] = ["v1_nonce", "v1_ciphertext"];
const INPUTS: [&str; 7] = ["master", "master_2", "entropy", "salt", "tenant", "name", "value"];
const OUTPUTS: [&str; 9] =
    ["kid", "kid_2", "kek", "dek", "dek_id", "wrapped", "wrapped_2", "secret_version_7", "secret_empty_version_8"];

struct Vectors(Map<String, Value>);

impl Vectors {
    fn load() -> Self {
        Self(serde_json::from_str(include_str!("../../../tests/vectors/envelope.json")).unwrap())
    }

    fn text(&self, field: &str) -> &str {
        self.0[field].as_str().unwrap()
    }

    fn bytes(&self, field: &str) -> Vec<u8> {
        data_encoding::HEXLOWER.decode(self.text(field).as_bytes()).unwrap()
    }

    fn key(&self, field: &str) -> Bytes32 {
        let bytes = self.bytes(field);
        Bytes32::filled(|out| out.copy_from_slice(&bytes))
    }

    fn salt(&self) -> [u8; 32] {
        self.bytes("salt").try_into().unwrap()
    }

    fn at(&self, number: u64) -> At {
        At::new(self.text("tenant"), self.text("name"), 1, number)
    }
}

#[test]
fn every_field_of_the_vectors_is_known_here() {
    let vectors = Vectors::load();
    let mut known: Vec<&str> = V1.into_iter().chain(INPUTS).chain(OUTPUTS).collect();
    known.sort_unstable();
    let mut found: Vec<&str> = vectors.0.keys().map(String::as_str).collect();
    found.sort_unstable();
    assert_eq!(found, known);
}

#[test]
fn keys_and_ids_derive_to_the_vectors() {
    let vectors = Vectors::load();
    let at = vectors.at(7);
    let masters = [("master", "kid"), ("master_2", "kid_2")].map(|(master, id)| (MasterKey(vectors.key(master)), id));
    for (master, id) in &masters {
        assert_eq!(kid(master).to_string(), vectors.text(id));
        assert_eq!(derive_kek(master).kid(), kid(master));
    }
    assert_eq!(derive_kek(&masters[0].0).key.bytes().as_slice(), vectors.bytes("kek"));
    let dek = envelope::derive_dek(&vectors.key("entropy"), at.dek());
    assert_eq!(dek.0.bytes().as_slice(), vectors.bytes("dek"));
    assert_eq!(dek_id(&dek).to_string(), vectors.text("dek_id"));
}

#[test]
fn a_dek_wraps_to_the_vectors_and_unwraps_from_them() {
    let vectors = Vectors::load();
    let at = vectors.at(7);
    let dek = Dek(vectors.key("dek"));
    for (master, wrapped) in [("master", "wrapped"), ("master_2", "wrapped_2")] {
        let kek = derive_kek(&MasterKey(vectors.key(master)));
        let expected = vectors.bytes(wrapped);
        assert_eq!(expected.len(), WRAPPED_LEN);
        assert_eq!(envelope::wrap(&kek, at.dek(), &dek, &vectors.salt()), expected, "{wrapped}");
        let opened = unwrap(&kek, at.dek(), &expected).unwrap();
        assert_eq!(opened.0.bytes().as_slice(), vectors.bytes("dek"), "{wrapped}");
    }
}

#[test]
fn a_value_seals_to_the_vectors_and_opens_from_them() {
    let vectors = Vectors::load();
    let dek = Dek(vectors.key("dek"));
    let cases = [("secret_version_7", 7, vectors.text("value")), ("secret_empty_version_8", 8, "")];
    for (field, number, text) in cases {
        let at = vectors.at(number);
        let expected = vectors.bytes(field);
        assert_eq!(expected.len(), SECRET_OVERHEAD + text.len());
        let sealed = envelope::seal(&dek, at.secret(), &value(text.as_bytes()), &vectors.salt());
        assert_eq!(sealed, expected, "{field}");
        assert_eq!(open(&dek, at.secret(), &expected).unwrap().expose(), text.as_bytes(), "{field}");
    }
}
