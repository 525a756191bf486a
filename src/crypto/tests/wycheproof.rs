//! Google's Wycheproof vectors through our primitives. The counts are floors: a run that tested nothing must be red.

use super::super::aead::{aes_256_gcm_decrypt, aes_256_gcm_encrypt, hkdf_into};
use wycheproof::{aead, hkdf};

/// The keys, nonces and tags of the vectors that our types can hold: 256, 96 and 128 bits.
struct Gcm<'a> {
    key: &'a [u8; 32],
    nonce: &'a [u8; 12],
    tag: &'a [u8; 16],
}

fn gcm(test: &aead::Test) -> Option<Gcm<'_>> {
    let (key, nonce, tag): (&[u8], &[u8], &[u8]) = (&test.key, &test.nonce, &test.tag);
    Some(Gcm { key: key.try_into().ok()?, nonce: nonce.try_into().ok()?, tag: tag.try_into().ok()? })
}

#[test]
fn aes_256_gcm_agrees_with_wycheproof_in_both_directions() {
    let set = aead::TestSet::load(aead::TestName::AesGcm).unwrap();
    let groups = set.test_groups.iter().filter(|g| (g.key_size, g.nonce_size, g.tag_size) == (256, 96, 128));
    let (mut valid, mut invalid) = (0, 0);
    for test in groups.flat_map(|group| &group.tests) {
        let parts = gcm(test).unwrap();
        let mut text = test.ct.to_vec();
        let opened = aes_256_gcm_decrypt(parts.key, parts.nonce, &test.aad, &mut text, parts.tag);
        if test.result.must_fail() {
            invalid += 1;
            assert!(!opened, "tcId {} opened", test.tc_id);
            assert_eq!(text.as_slice(), &*test.ct, "tcId {}: unauthenticated plaintext was left behind", test.tc_id);
        } else {
            valid += 1;
            assert!(opened, "tcId {} was refused", test.tc_id);
            assert_eq!(text.as_slice(), &*test.pt, "tcId {}", test.tc_id);
            let tag = aes_256_gcm_encrypt(parts.key, parts.nonce, &test.aad, &mut text);
            assert_eq!((text.as_slice(), &tag), (test.ct.as_slice(), parts.tag), "tcId {}", test.tc_id);
        }
    }
    assert!(valid >= 35 && invalid >= 25 && valid + invalid >= 66, "ran {valid} valid and {invalid} invalid vectors");
}

#[test]
fn hkdf_sha_256_agrees_with_wycheproof() {
    let set = hkdf::TestSet::load(hkdf::TestName::HkdfSha256).unwrap();
    let (mut valid, mut invalid) = (0, 0);
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        let mut okm = vec![0; test.size];
        let derived = hkdf_into(&test.ikm, Some(&test.salt), &test.info, &mut okm);
        if test.result.must_fail() {
            invalid += 1;
            assert!(derived.is_err(), "tcId {}: {} bytes were given", test.tc_id, test.size);
        } else {
            valid += 1;
            assert!(derived.is_ok(), "tcId {} was refused", test.tc_id);
            assert_eq!(okm.as_slice(), &*test.okm, "tcId {}", test.tc_id);
        }
    }
    assert!(valid >= 80 && invalid >= 1 && valid + invalid >= 86, "ran {valid} valid and {invalid} invalid vectors");
}

/// RFC 5869, section 2.2: no salt is HashLen zeros, which Wycheproof's empty salt must equal as well.
#[test]
fn no_salt_is_the_rfcs_default() {
    let derive = |salt: Option<&[u8]>| {
        let mut out = [0; 42];
        hkdf_into(b"ikm", salt, b"info", &mut out).unwrap();
        out
    };
    assert_eq!(derive(None), derive(Some(&[0; 32])));
    assert_eq!(derive(None), derive(Some(b"")));
    assert_ne!(derive(None), derive(Some(b"salt")));
}
