//! Addresses of peers.

use std::net::{IpAddr, Ipv6Addr};

/// What counts as one place that is asked from. An IPv4 address, also where it comes mapped into IPv6; of an IPv6 address the first 64 bits,
/// since the rest is its host's own choice (RFC 4291, section 2.5.1, and RFC 8981: it changes by itself).
#[must_use]
pub fn network(address: IpAddr) -> IpAddr {
    const NETWORK: u128 = !0 << 64;
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & NETWORK)),
        address @ IpAddr::V4(_) => address,
    }
}
