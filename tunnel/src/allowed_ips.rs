//! Which peer a prefix belongs to: the route of a packet outward, and the check of its source inward.
//!
//! Both directions ask for the *most specific* prefix of the whole tunnel. The inward check must not merely ask
//! whether the peer's own list contains the address: a peer with 10.0.0.0/8 could then speak for another's
//! 10.1.0.0/16 (the cryptokey routing rule of the WireGuard paper, §2).

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;

/// A map from prefixes to `T`, with longest-prefix lookup. IPv4 and IPv6 are apart; a prefix has one owner.
#[derive(Debug)]
pub struct AllowedIps<T> {
    v4: PrefixMap<Ipv4Net, T>,
    v6: PrefixMap<Ipv6Net, T>,
}

impl<T: Copy + PartialEq> AllowedIps<T> {
    pub fn new() -> Self {
        Self { v4: PrefixMap::new(), v6: PrefixMap::new() }
    }

    /// Gives `prefix` to `owner`, whoever had it before. Host bits are ignored.
    pub fn insert(&mut self, prefix: IpNet, owner: T) {
        match prefix.trunc() {
            IpNet::V4(prefix) => drop(self.v4.insert(prefix, owner)),
            IpNet::V6(prefix) => drop(self.v6.insert(prefix, owner)),
        }
    }

    /// Takes `prefix` away from `owner`; leaves it alone if it is somebody else's by now.
    pub fn remove(&mut self, prefix: IpNet, owner: T) {
        match prefix.trunc() {
            IpNet::V4(prefix) if self.v4.get(&prefix) == Some(&owner) => drop(self.v4.remove(&prefix)),
            IpNet::V6(prefix) if self.v6.get(&prefix) == Some(&owner) => drop(self.v6.remove(&prefix)),
            IpNet::V4(_) | IpNet::V6(_) => {}
        }
    }

    /// The owner of the most specific prefix that contains `address`.
    pub fn lookup(&self, address: IpAddr) -> Option<T> {
        match address {
            IpAddr::V4(address) => self.v4.get_lpm(&Ipv4Net::from(address)).map(|(_, owner)| *owner),
            IpAddr::V6(address) => self.v6.get_lpm(&Ipv6Net::from(address)).map(|(_, owner)| *owner),
        }
    }
}

impl<T: Copy + PartialEq> Default for AllowedIps<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_most_specific_prefix_wins() {
        let mut ips = AllowedIps::new();
        ips.insert("10.0.0.0/8".parse().expect("prefix"), 1);
        ips.insert("10.1.0.0/16".parse().expect("prefix"), 2);
        ips.insert("::/0".parse().expect("prefix"), 3);
        assert_eq!(ips.lookup("10.1.2.3".parse().expect("address")), Some(2));
        assert_eq!(ips.lookup("10.2.2.3".parse().expect("address")), Some(1));
        assert_eq!(ips.lookup("11.0.0.1".parse().expect("address")), None);
        assert_eq!(ips.lookup("2001:db8::1".parse().expect("address")), Some(3));
    }

    #[test]
    fn a_prefix_that_moved_is_not_taken_from_its_new_owner() {
        let prefix: IpNet = "192.0.2.0/24".parse().expect("prefix");
        let mut ips = AllowedIps::new();
        ips.insert(prefix, 1);
        ips.insert(prefix, 2);
        ips.remove(prefix, 1);
        assert_eq!(ips.lookup("192.0.2.1".parse().expect("address")), Some(2));
    }

    fn prefix() -> impl Strategy<Value = IpNet> {
        // Few leading bits differ, so that prefixes really overlap.
        prop_oneof![
            (0u32..16, 0u8..=32)
                .prop_map(|(bits, len)| IpNet::V4(Ipv4Net::new((bits << 28 | bits << 12).into(), len).expect("length")).trunc()),
            (0u128..16, 0u8..=128)
                .prop_map(|(bits, len)| IpNet::V6(Ipv6Net::new((bits << 124 | bits << 60).into(), len).expect("length")).trunc()),
        ]
    }

    fn address() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            (0u32..16, 0u32..16).prop_map(|(high, low)| IpAddr::V4((high << 28 | low << 12).into())),
            (0u128..16, 0u128..16).prop_map(|(high, low)| IpAddr::V6((high << 124 | low << 60).into())),
        ]
    }

    proptest! {
        #[test]
        fn agrees_with_a_linear_scan(edits in prop::collection::vec((prefix(), 0u8..4, any::<bool>()), 0..60), asked in prop::collection::vec(address(), 1..40)) {
            let mut ips = AllowedIps::new();
            let mut plain: Vec<(IpNet, u8)> = Vec::new();
            for (prefix, owner, insert) in edits {
                if insert {
                    ips.insert(prefix, owner);
                    plain.retain(|(p, _)| *p != prefix);
                    plain.push((prefix, owner));
                } else {
                    ips.remove(prefix, owner);
                    plain.retain(|entry| *entry != (prefix, owner));
                }
            }
            for address in asked {
                let expected = plain.iter().filter(|(p, _)| p.contains(&address)).max_by_key(|(p, _)| p.prefix_len()).map(|(_, owner)| *owner);
                prop_assert_eq!(ips.lookup(address), expected);
            }
        }
    }
}
