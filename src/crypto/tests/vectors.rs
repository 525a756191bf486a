use super::super::secret::Bytes32;
use super::super::*;
use serde_json::Value;

fn vector(name: &str) -> Vec<u8> {
    let all: Value = serde_json::from_str(include_str!("../../../tests/vectors/envelope.json")).unwrap();
    data_encoding::HEXLOWER.decode(all[name].as_str().unwrap().as_bytes()).unwrap()
}

fn bytes_32(name: &str) -> Bytes32 {
    let bytes = vector(name);
    Bytes32::filled(|out| out.copy_from_slice(&bytes))
}

#[test]
fn smoke() {
    let master = MasterKey(bytes_32("master"));
    assert_eq!(kid(&master).as_bytes().as_slice(), vector("kid"));
    let kek = derive_kek(&master);
    assert_eq!(kek.key.bytes().as_slice(), vector("kek"));
    let tenant = Tenant::parse("alice").unwrap();
    let name = SecretName::parse("OPENAI_API_KEY").unwrap();
    let place = DekPlace { tenant: &tenant, version: DekVersion::FIRST };
    let dek = envelope::derive_dek(&bytes_32("entropy"), place);
    assert_eq!(dek.0.bytes().as_slice(), vector("dek"));
    assert_eq!(dek_id(&dek).as_bytes().as_slice(), vector("dek_id"));
    assert_eq!(envelope::wrap(&kek, place, &dek, &[0xa5; 32]), vector("wrapped"));
    let secret = SecretPlace {
        tenant: &tenant,
        name: &name,
        dek_version: DekVersion::FIRST,
        version: SecretVersion::new(7).unwrap(),
    };
    let opened = open(&dek, secret, &vector("secret_version_7")).unwrap();
    assert_eq!(opened.expose(), b"sk-test-0001");
}
