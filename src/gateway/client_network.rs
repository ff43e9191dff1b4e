//! Unit in which the addresses of clients are limited.

use std::net::{IpAddr, Ipv6Addr};

/// Unit in which an address's limits are counted: the address itself, or an IPv6 address's /64,
/// since one machine can have a whole /64.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_address_counts_as_its_network() {
        for (address, counted) in [
            ("192.0.2.1", "192.0.2.1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ] {
            let counted: IpAddr = counted.parse().unwrap();
            assert_eq!(network(address.parse().unwrap()), counted, "{address}");
        }
    }
}
