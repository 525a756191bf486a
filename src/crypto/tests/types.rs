//! Checked by the compiler: nothing that holds a key or a value can be copied, shown, written out or compared in variable time.

use super::super::secret::Bytes32;
use super::super::{Dek, Kek, KeyfileImage, MasterKey, SecretValue};
use static_assertions::{assert_impl_all, assert_not_impl_any};
use std::fmt::{Debug, Display, LowerHex, Pointer, UpperHex};

macro_rules! keeps_to_itself {
    ($($held:ty),+) => { $(
        assert_not_impl_any!($held: Clone, Copy, ToOwned, Debug, Display, LowerHex, UpperHex, Pointer);
        assert_not_impl_any!($held: serde::Serialize, serde::de::DeserializeOwned, utoipa::ToSchema);
        assert_not_impl_any!($held: PartialEq, Eq, PartialOrd, Ord, std::hash::Hash, Default);
        assert_not_impl_any!($held: AsRef<[u8]>, std::borrow::Borrow<[u8]>, std::ops::Deref, Into<Vec<u8>>);
        // A key cache and a sealer hold them across threads.
        assert_impl_all!($held: Send, Sync);
    )+ };
}
keeps_to_itself!(Bytes32, MasterKey, Kek, Dek, SecretValue, KeyfileImage);

/// A type that needs no drop is not wiped on drop.
#[test]
fn every_key_and_value_type_has_something_to_do_on_drop() {
    use std::mem::needs_drop;
    assert!(needs_drop::<Bytes32>() && needs_drop::<MasterKey>() && needs_drop::<Kek>() && needs_drop::<Dek>());
    assert!(needs_drop::<SecretValue>() && needs_drop::<KeyfileImage>());
}
