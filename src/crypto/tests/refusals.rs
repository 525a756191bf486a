//! What opening refuses, and by which of its four names: shape, then master, then commitment, then tag.

use super::*;
use OpenError::{Corrupted, Malformed, NotCommitted, WrongMaster};
use proptest::prelude::*;

/// Where each part of a blob begins.
struct Parts {
    salt: usize,
    text: usize,
}
const WRAPPED: Parts = Parts { salt: 20, text: 84 };
const SECRET: Parts = Parts { salt: 16, text: 80 };

impl Parts {
    /// The name under which a flipped bit of this byte is refused, after the header.
    fn refusal(&self, byte: usize) -> OpenError {
        assert!(byte >= self.salt);
        if byte < self.text { NotCommitted } else { Corrupted }
    }
}

struct Made {
    at: At,
    kek: Kek,
    dek: Dek,
    wrapped: Vec<u8>,
    sealed: Vec<u8>,
}

impl Made {
    fn new(bytes: &[u8]) -> Self {
        let at = alice();
        let kek = derive_kek(&MasterKey::make_random().unwrap());
        let dek = make_dek(at.dek()).unwrap();
        let wrapped = wrap(&kek, at.dek(), &dek).unwrap();
        let sealed = seal(&dek, at.secret(), &value(bytes)).unwrap();
        Self { at, kek, dek, wrapped, sealed }
    }

    fn unwrap(&self, blob: &[u8]) -> Option<OpenError> {
        unwrap(&self.kek, self.at.dek(), blob).err()
    }

    fn open(&self, blob: &[u8]) -> Option<OpenError> {
        open(&self.dek, self.at.secret(), blob).err()
    }
}

fn flipped(blob: &[u8], bit: usize) -> Vec<u8> {
    let mut blob = blob.to_vec();
    blob[bit / 8] ^= 1 << (bit % 8);
    blob
}

#[test]
fn every_flipped_bit_of_a_wrapped_dek_is_refused_by_its_name() {
    let made = Made::new(b"");
    assert_eq!(made.unwrap(&made.wrapped), None);
    for bit in 0..WRAPPED_LEN * 8 {
        let expected = match bit / 8 {
            0..4 => Malformed,
            4..20 => WrongMaster,
            byte => WRAPPED.refusal(byte),
        };
        assert_eq!(made.unwrap(&flipped(&made.wrapped, bit)), Some(expected), "bit {bit}");
    }
}

#[test]
fn every_flipped_bit_of_a_sealed_value_is_refused_by_its_name() {
    for text in [b"".as_slice(), b"s", b"sk-test-0001", &[0xA5; 100]] {
        let made = Made::new(text);
        assert_eq!(made.open(&made.sealed), None);
        for bit in 0..made.sealed.len() * 8 {
            let expected = match bit / 8 {
                0..16 => Malformed,
                byte => SECRET.refusal(byte),
            };
            assert_eq!(made.open(&flipped(&made.sealed, bit)), Some(expected), "bit {bit}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_flipped_bit_of_a_long_value_is_refused(length in 1000..=65_536_usize, places in prop::collection::vec(any::<prop::sample::Index>(), 16)) {
        let made = Made::new(&vec![0x5A; length]);
        for place in places {
            let bit = place.index(made.sealed.len() * 8);
            let expected = if bit / 8 < 16 { Malformed } else { SECRET.refusal(bit / 8) };
            prop_assert_eq!(made.open(&flipped(&made.sealed, bit)), Some(expected));
        }
    }

    #[test]
    fn a_long_value_cut_anywhere_is_refused(length in 1000..=65_536_usize, places in prop::collection::vec(any::<prop::sample::Index>(), 16)) {
        let made = Made::new(&vec![0x5A; length]);
        for place in places {
            let at = place.index(made.sealed.len());
            let expected = if at < SECRET_OVERHEAD { Malformed } else { Corrupted };
            prop_assert_eq!(made.open(&made.sealed[..at]), Some(expected));
        }
    }

    /// No input makes opening panic, and none opens.
    #[test]
    fn bytes_that_were_never_sealed_do_not_open(mut blob in prop::collection::vec(any::<u8>(), 0..300), header: bool) {
        let made = Made::new(b"");
        if header && blob.len() >= 20 {
            blob[..20].copy_from_slice(&made.wrapped[..20]);
        }
        prop_assert!(made.unwrap(&blob).is_some());
        if header && blob.len() >= 20 {
            blob[..16].copy_from_slice(&made.sealed[..16]);
        }
        prop_assert!(made.open(&blob).is_some());
    }
}

#[test]
fn a_wrapped_dek_of_any_other_length_is_malformed() {
    let made = Made::new(b"");
    let longer = [made.wrapped.as_slice(), &[0; 200]].concat();
    for length in (0..longer.len()).filter(|length| *length != WRAPPED_LEN) {
        assert_eq!(made.unwrap(&longer[..length]), Some(Malformed), "{length} bytes");
    }
    // Its length comes before its master: a cut blob of another master is malformed.
    let other = derive_kek(&MasterKey::make_random().unwrap());
    assert_eq!(unwrap(&other, made.at.dek(), &made.wrapped[..WRAPPED_LEN - 1]).err(), Some(Malformed));
}

#[test]
fn a_sealed_value_cut_or_grown_anywhere_is_refused() {
    let made = Made::new(b"sk-test-0001");
    for length in 0..made.sealed.len() {
        let expected = if length < SECRET_OVERHEAD { Malformed } else { Corrupted };
        assert_eq!(made.open(&made.sealed[..length]), Some(expected), "{length} bytes");
    }
    let mut longer = made.sealed.clone();
    for _ in 0..64 {
        longer.push(0);
        assert_eq!(made.open(&longer), Some(Corrupted), "{} bytes", longer.len());
    }
    // Cut from the front, it has no header.
    for from in 1..made.sealed.len() {
        assert_eq!(made.open(&made.sealed[from..]), Some(Malformed), "without the first {from}");
    }
}

#[test]
fn a_wrapped_dek_of_another_master_is_named_so_wherever_it_was_moved() {
    let made = Made::new(b"");
    let other = derive_kek(&MasterKey::make_random().unwrap());
    assert_eq!(unwrap(&other, made.at.dek(), &made.wrapped).err(), Some(WrongMaster));
    // Before the commitment: moved as well, and damaged as well, it is still another master's.
    let bob = At::new("bob", "A", 1, 1);
    let damaged = flipped(&made.wrapped, WRAPPED.salt * 8);
    assert_eq!(unwrap(&other, bob.dek(), &damaged).err(), Some(WrongMaster));
}

/// A kid is 16 public bytes that anyone can write into a header; the commitment is what holds.
#[test]
fn a_wrapped_dek_that_only_claims_our_master_is_not_committed() {
    let made = Made::new(b"");
    let other = derive_kek(&MasterKey::make_random().unwrap());
    let forger = Kek { key: other.key, kid: made.kek.kid(), raw_sha256: made.kek.raw_sha256() };
    let blob = wrap(&forger, made.at.dek(), &made.dek).unwrap();
    assert_eq!(made.unwrap(&blob), Some(NotCommitted));
}

#[test]
fn a_wrapped_dek_moved_to_another_tenant_or_version_is_not_committed() {
    let made = Made::new(b"");
    for (who, number) in [("bob", 1), ("alic", 1), ("alicea", 1), ("alice", 2), ("alice", 256), ("alice", 1 << 24)] {
        let elsewhere = At::new(who, "A", number, 1);
        assert_eq!(unwrap(&made.kek, elsewhere.dek(), &made.wrapped).err(), Some(NotCommitted), "{who} {number}");
    }
    let system = At { tenant: Tenant::system(), ..alice() };
    assert_eq!(unwrap(&made.kek, system.dek(), &made.wrapped).err(), Some(NotCommitted));
}

#[test]
fn a_sealed_value_moved_anywhere_is_refused_by_its_name() {
    let made = Made::new(b"sk-test-0001");
    let at = || made.at.clone();
    let moved = [
        // The header names both versions, so these are not the row's blob at all.
        (At { version: version(8), ..at() }, Malformed),
        (At { version: version(7 << 8), ..at() }, Malformed),
        (At { dek_version: dek_version(2), ..at() }, Malformed),
        (At { dek_version: dek_version(7), version: version(1), ..at() }, Malformed),
        (At { tenant: tenant("bob"), ..at() }, NotCommitted),
        (At { tenant: Tenant::system(), ..at() }, NotCommitted),
        (At { name: secret_name("OTHER"), ..at() }, NotCommitted),
        (At { name: secret_name("OPENAI_API_KEY_"), ..at() }, NotCommitted),
    ];
    for (elsewhere, expected) in moved {
        assert_eq!(open(&made.dek, elsewhere.secret(), &made.sealed).err(), Some(expected), "{}", elsewhere.name);
    }
}

/// The parts are length-prefixed, so no byte can cross from one into the next: `alice` + `OPENAI…` is never `aliceO` + `PENAI…`.
/// Tenants have no capitals and names no small letters, but both have digits and `_`; the format must hold by itself.
#[test]
fn a_byte_cannot_cross_from_the_tenant_into_the_name() {
    let joined = |who: &str, name: &str| At::new(who, name, 1, 7);
    let pairs = [
        (joined("a_1", "A"), joined("a", "_1A")),
        (joined("a0", "_9_X"), joined("a0_9", "_X")),
        (joined("a__1", "_"), joined("a", "__1_")),
    ];
    for (from, to) in pairs {
        assert_eq!(
            format!("{}{}", from.tenant, from.name),
            format!("{}{}", to.tenant, to.name),
            "a pair must join alike"
        );
        let dek = make_dek(from.dek()).unwrap();
        let sealed = seal(&dek, from.secret(), &value(b"sk-test-0001")).unwrap();
        assert!(open(&dek, from.secret(), &sealed).is_ok());
        assert_eq!(open(&dek, to.secret(), &sealed).err(), Some(NotCommitted), "{} to {}", from.tenant, to.tenant);
    }
    assert!(Tenant::parse("aliceO").is_err(), "the classic shift is not even a tenant");
}

#[test]
fn another_dek_does_not_open_it() {
    let made = Made::new(b"sk-test-0001");
    let other = make_dek(made.at.dek()).unwrap();
    assert_eq!(open(&other, made.at.secret(), &made.sealed).err(), Some(NotCommitted));
    // Shape before commitment, commitment before tag.
    assert_eq!(open(&other, made.at.secret(), &flipped(&made.sealed, 0)).err(), Some(Malformed));
    let last = made.sealed.len() * 8 - 1;
    assert_eq!(open(&other, made.at.secret(), &flipped(&made.sealed, last)).err(), Some(NotCommitted));
}

#[test]
fn a_wrapped_dek_is_no_secret_and_a_secret_no_wrapped_dek() {
    // A value of 36 bytes seals to a wrapped DEK's length: only the type tells them apart.
    let made = Made::new(&[0xA5; 36]);
    assert_eq!(made.sealed.len(), WRAPPED_LEN);
    assert_eq!(made.unwrap(&made.sealed), Some(Malformed));
    assert_eq!(made.open(&made.wrapped), Some(Malformed));
    // Nor where the KEK's or the DEK's bytes are used for the other's work.
    let kek_as_dek = Dek(Bytes32::filled(|out| out.copy_from_slice(made.kek.key.bytes())));
    let mut relabelled = made.wrapped.clone();
    relabelled[..16].copy_from_slice(&made.sealed[..16]);
    assert_eq!(open(&kek_as_dek, made.at.secret(), &relabelled).err(), Some(NotCommitted));
}

#[test]
fn a_refusal_says_nothing_of_key_or_value() {
    for error in [Malformed, WrongMaster, NotCommitted, Corrupted] {
        let text = format!("{error} {error:?}");
        assert!(text.is_ascii() && text.len() < 80, "{text}");
    }
}
