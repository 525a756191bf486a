//! What sealing promises: the same bytes back, nothing of them in sight, a salt of its own each time.

use super::*;
use crate::model::MAX_VALUE_BYTES;
use proptest::prelude::*;
use std::collections::HashSet;

/// Around the sizes where a block cipher, a length field or a limit begins anew.
fn sizes() -> impl Strategy<Value = usize> {
    prop_oneof![
        0..=33_usize,
        Just(255),
        Just(256),
        Just(4095),
        Just(4096),
        Just(4097),
        Just(65_535),
        Just(MAX_VALUE_BYTES),
        34..=MAX_VALUE_BYTES,
    ]
}

fn values() -> impl Strategy<Value = Vec<u8>> {
    // One seed, not a vector of 65,536 strategies: shrinking stays quick.
    (sizes(), any::<u8>(), 1..=251_u8).prop_map(|(length, first, step)| {
        std::iter::successors(Some(first), |byte| Some(byte.wrapping_mul(3).wrapping_add(step))).take(length).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_sealed_value_opens_to_the_same_bytes(
        bytes in values(),
        who in "[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?",
        name in "[A-Z_][A-Z0-9_]{0,127}",
        dek_number in 1..=u32::MAX,
        number in 1..=i64::MAX as u64,
    ) {
        let at = At::new(&who, &name, dek_number, number);
        let dek = make_dek(at.dek()).unwrap();
        let sealed = seal(&dek, at.secret(), &value(&bytes)).unwrap();
        prop_assert_eq!(sealed.len(), SECRET_OVERHEAD + bytes.len());
        let opened = open(&dek, at.secret(), &sealed).unwrap();
        prop_assert!(opened.expose() == bytes.as_slice());
        prop_assert_eq!((opened.len(), opened.is_empty()), (bytes.len(), bytes.is_empty()));
    }

    #[test]
    fn a_wrapped_dek_unwraps_to_the_same_key(
        who in "[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?",
        dek_number in 1..=u32::MAX,
    ) {
        let at = At::new(&who, "A", dek_number, 1);
        let kek = derive_kek(&MasterKey::make_random().unwrap());
        let dek = make_dek(at.dek()).unwrap();
        let wrapped = wrap(&kek, at.dek(), &dek).unwrap();
        prop_assert_eq!(wrapped.len(), WRAPPED_LEN);
        let opened = unwrap(&kek, at.dek(), &wrapped).unwrap();
        prop_assert!(opened.0.bytes() == dek.0.bytes());
        prop_assert_eq!(dek_id(&opened), dek_id(&dek));
    }
}

#[test]
fn every_size_to_four_kilobytes_comes_back() {
    let at = alice();
    let dek = make_dek(at.dek()).unwrap();
    for length in 0..=4096 {
        let bytes = vec![0xA5; length];
        let sealed = seal(&dek, at.secret(), &value(&bytes)).unwrap();
        assert_eq!(open(&dek, at.secret(), &sealed).unwrap().expose(), bytes, "{length} bytes");
    }
}

#[test]
fn the_system_tenant_seals_as_any_other() {
    let at = At { tenant: Tenant::system(), ..alice() };
    let dek = make_dek(at.dek()).unwrap();
    let sealed = seal(&dek, at.secret(), &value(b"chain key")).unwrap();
    assert_eq!(open(&dek, at.secret(), &sealed).unwrap().expose(), b"chain key");
}

#[test]
fn nothing_of_a_value_is_in_what_is_stored() {
    let at = alice();
    let dek = make_dek(at.dek()).unwrap();
    let text = b"sk-canary-sk-canary-sk-canary-sk";
    let sealed = seal(&dek, at.secret(), &value(&text.repeat(4))).unwrap();
    for piece in text.windows(6) {
        assert!(!sealed.windows(6).any(|seen| seen == piece));
    }
    let kek = derive_kek(&MasterKey::make_random().unwrap());
    let wrapped = wrap(&kek, at.dek(), &dek).unwrap();
    for piece in dek.0.bytes().windows(6) {
        assert!(!wrapped.windows(6).any(|seen| seen == piece));
    }
}

#[test]
fn two_seals_of_the_same_value_share_their_header_only() {
    let at = alice();
    let dek = make_dek(at.dek()).unwrap();
    let [first, second] = [0; 2].map(|_| seal(&dek, at.secret(), &value(b"the same value")).unwrap());
    assert_eq!(first[..16], second[..16]);
    // Salt, commitment, ciphertext and tag: none is shared.
    for part in [16..48, 48..80, 80..94, 94..110] {
        assert_ne!(first[part.clone()], second[part.clone()], "{part:?}");
    }
    let kek = derive_kek(&MasterKey::make_random().unwrap());
    let [first, second] = [0; 2].map(|_| wrap(&kek, at.dek(), &dek).unwrap());
    assert_eq!(first[..20], second[..20]);
    for part in [20..52, 52..84, 84..116, 116..132] {
        assert_ne!(first[part.clone()], second[part.clone()], "{part:?}");
    }
}

#[test]
fn a_salt_never_repeats() {
    let at = alice();
    let kek = derive_kek(&MasterKey::make_random().unwrap());
    let dek = make_dek(at.dek()).unwrap();
    let mut salts = HashSet::new();
    for _ in 0..4000 {
        let sealed = seal(&dek, at.secret(), &value(b"")).unwrap();
        let wrapped = wrap(&kek, at.dek(), &dek).unwrap();
        assert!(salts.insert(sealed[16..48].to_vec()), "a salt came twice");
        assert!(salts.insert(wrapped[20..52].to_vec()), "a salt came twice");
    }
    assert!(!salts.contains([0; 32].as_slice()));
}

#[test]
fn each_key_and_id_that_is_made_is_a_new_one() {
    let at = alice();
    let mut kids = HashSet::new();
    let mut deks = HashSet::new();
    let mut ids = HashSet::new();
    for _ in 0..1000 {
        assert!(kids.insert(kid(&MasterKey::make_random().unwrap())));
        assert!(deks.insert(dek_id(&make_dek(at.dek()).unwrap())));
        assert!(ids.insert(random_id().unwrap()));
    }
    assert!(ids.iter().all(|id| id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit())));
}

#[test]
fn the_same_entropy_gives_each_tenant_and_version_a_key_of_its_own() {
    let places = [("alice", 1), ("alice", 2), ("bob", 1), ("alice1", 1), ("a", 256)];
    let ids: HashSet<_> = places
        .map(|(who, number)| dek_id(&envelope::derive_dek(&fixed_32(0), At::new(who, "A", number, 1).dek())))
        .into_iter()
        .collect();
    assert_eq!(ids.len(), places.len());
}

/// A DEK that were a function of the master would still open everything after a rotation.
#[test]
fn a_rewrap_under_another_master_keeps_the_dek_and_its_secrets() {
    let at = alice();
    let [old, new] = [0; 2].map(|_| derive_kek(&MasterKey::make_random().unwrap()));
    let dek = make_dek(at.dek()).unwrap();
    let sealed = seal(&dek, at.secret(), &value(b"unmoved")).unwrap();
    let before = unwrap(&old, at.dek(), &wrap(&old, at.dek(), &dek).unwrap()).unwrap();
    let after = unwrap(&new, at.dek(), &wrap(&new, at.dek(), &before).unwrap()).unwrap();
    assert_eq!(dek_id(&after), dek_id(&dek));
    assert_eq!(open(&after, at.secret(), &sealed).unwrap().expose(), b"unmoved");
}

#[test]
fn values_are_the_same_only_when_every_byte_is() {
    assert!(same_value(&value(b""), &value(b"")));
    assert!(same_value(&value(b"abc"), &value(b"abc")));
    for other in [b"".as_slice(), b"ab", b"abd", b"abc\0", b"bbc"] {
        assert!(!same_value(&value(b"abc"), &value(other)));
    }
}
