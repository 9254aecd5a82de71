//! Which resolved addresses may be dialled. A name on the allow list must not become a way to this host, to the
//! cloud's metadata or into the private network.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Why an address may not be dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forbidden {
    /// Cloud metadata or a cloud's host agent. No `allow` opens it.
    CloudInternal,
    Unspecified,
    Multicast,
    LinkLocal,
    Reserved,
    Loopback,
    Private,
}

impl fmt::Display for Forbidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CloudInternal => "is cloud metadata or a cloud host agent and is never dialled",
            Self::Unspecified => "is unspecified and is never dialled",
            Self::Multicast => "is multicast or broadcast and is never dialled",
            Self::LinkLocal => "is link-local and is never dialled",
            Self::Reserved => "is in a reserved range and is never dialled",
            Self::Loopback => "is this host; list it in the catalogue entry's `allow` if that is meant",
            Self::Private => "is private; list its prefix in the catalogue entry's `allow` if that is meant",
        })
    }
}

/// Azure's host agent (probes, DNS, wire server): learn.microsoft.com, "What is IP address 168.63.129.16".
const AZURE_HOST: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);
/// EC2 and GCE instance metadata.
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const EC2_METADATA_IPV6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
/// Alibaba and Oracle have theirs in shared address space.
const SHARED_METADATA: Ipv4Addr = Ipv4Addr::new(100, 100, 100, 200);

/// Checks one answer for a catalogue entry whose `allow` lists prefixes that are meant to be private.
pub fn check(address: IpAddr, allow: &[IpNet]) -> Result<(), Forbidden> {
    let address = embedded_ipv4(address).map_or(address, IpAddr::V4);
    match class(address) {
        None => Ok(()),
        Some(Forbidden::Private | Forbidden::Loopback) if allow.iter().any(|prefix| prefix.contains(&address)) => Ok(()),
        Some(forbidden) => Err(forbidden),
    }
}

fn class(address: IpAddr) -> Option<Forbidden> {
    match address {
        IpAddr::V4(v4) => class_v4(v4),
        IpAddr::V6(v6) => class_v6(v6),
    }
}

fn class_v4(address: Ipv4Addr) -> Option<Forbidden> {
    let [first, second, third, _] = address.octets();
    if address == AZURE_HOST || address == METADATA || address == SHARED_METADATA {
        Some(Forbidden::CloudInternal)
    } else if first == 0 {
        Some(Forbidden::Unspecified)
    } else if address.is_loopback() {
        Some(Forbidden::Loopback)
    } else if address.is_link_local() {
        Some(Forbidden::LinkLocal)
    } else if address.is_private() || (first == 100 && second & 0xc0 == 64) {
        Some(Forbidden::Private)
    } else if address.is_multicast() || address.is_broadcast() {
        Some(Forbidden::Multicast)
    } else if first >= 240 || (first == 192 && second == 0 && third == 0) {
        Some(Forbidden::Reserved)
    } else if address.is_documentation() || (first == 198 && second & 0xfe == 18) {
        // Documentation and benchmarking: they stand in for real networks in manuals and laboratories.
        Some(Forbidden::Private)
    } else {
        None
    }
}

fn class_v6(address: Ipv6Addr) -> Option<Forbidden> {
    let segments = address.segments();
    if address == EC2_METADATA_IPV6 {
        Some(Forbidden::CloudInternal)
    } else if address.is_unspecified() {
        Some(Forbidden::Unspecified)
    } else if address.is_loopback() {
        Some(Forbidden::Loopback)
    } else if address.is_multicast() {
        Some(Forbidden::Multicast)
    } else if address.is_unicast_link_local() || segments[0] & 0xffc0 == 0xfec0 {
        Some(Forbidden::LinkLocal)
    } else if address.is_unique_local() || (segments[0] == 0x2001 && segments[1] == 0xdb8) {
        Some(Forbidden::Private)
    } else if segments[0] & 0xe000 != 0x2000 {
        Some(Forbidden::Reserved)
    } else {
        None
    }
}

/// The IPv4 address that an IPv6 one leads to: mapped, NAT64 (RFC 6052), 6to4 (RFC 3056) and Teredo (RFC 4380).
fn embedded_ipv4(address: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(v6) = address else { return None };
    let octets = v6.octets();
    let last = |bytes: [u8; 16]| Ipv4Addr::new(bytes[12], bytes[13], bytes[14], bytes[15]);
    if let Some(mapped) = v6.to_ipv4_mapped() {
        Some(mapped)
    } else if octets[..12] == [0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0] {
        Some(last(octets))
    } else if octets[..2] == [0x20, 0x02] {
        Some(Ipv4Addr::new(octets[2], octets[3], octets[4], octets[5]))
    } else if octets[..4] == [0x20, 0x01, 0, 0] {
        Some(last(octets.map(|octet| !octet)))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn public_addresses_pass() {
        for address in ["20.50.1.4", "8.8.8.8", "2603:1030::1", "172.32.0.1", "100.128.0.1"] {
            assert_eq!(check(ip(address), &[]), Ok(()), "{address}");
        }
    }

    #[test]
    fn each_kind_is_named() {
        for (address, why) in [
            ("127.0.0.1", Forbidden::Loopback),
            ("::1", Forbidden::Loopback),
            ("0.0.0.0", Forbidden::Unspecified),
            ("0.1.2.3", Forbidden::Unspecified),
            ("::", Forbidden::Unspecified),
            ("10.1.2.3", Forbidden::Private),
            ("172.16.0.1", Forbidden::Private),
            ("192.168.1.1", Forbidden::Private),
            ("100.64.0.1", Forbidden::Private),
            ("fd12::1", Forbidden::Private),
            ("169.254.1.1", Forbidden::LinkLocal),
            ("fe80::1", Forbidden::LinkLocal),
            ("169.254.169.254", Forbidden::CloudInternal),
            ("168.63.129.16", Forbidden::CloudInternal),
            ("fd00:ec2::254", Forbidden::CloudInternal),
            ("224.0.0.1", Forbidden::Multicast),
            ("255.255.255.255", Forbidden::Multicast),
            ("ff02::1", Forbidden::Multicast),
            ("240.0.0.1", Forbidden::Reserved),
            ("100::1", Forbidden::Reserved),
            // An IPv4 address in IPv6 clothes is what it leads to.
            ("::ffff:127.0.0.1", Forbidden::Loopback),
            ("64:ff9b::a9fe:a9fe", Forbidden::CloudInternal),
            ("2002:0a01:0203::1", Forbidden::Private),
            ("2001:0:1:2:3:4:f5fe:fdfc", Forbidden::Private),
        ] {
            assert_eq!(check(ip(address), &[]), Err(why), "{address}");
        }
    }

    #[test]
    fn allow_opens_private_and_loopback_and_nothing_else() {
        let everything: Vec<IpNet> = ["0.0.0.0/0", "::/0"].iter().map(|prefix| prefix.parse().expect("a prefix")).collect();
        for address in ["10.1.2.3", "127.0.0.1", "fd12::1", "::1", "::ffff:10.0.0.1"] {
            assert_eq!(check(ip(address), &everything), Ok(()), "{address}");
        }
        for address in ["169.254.169.254", "168.63.129.16", "fd00:ec2::254", "0.0.0.0", "224.0.0.1", "169.254.0.1"] {
            assert!(check(ip(address), &everything).is_err(), "{address}");
        }
        let other: Vec<IpNet> = vec!["10.9.0.0/16".parse().expect("a prefix")];
        assert_eq!(check(ip("10.1.2.3"), &other), Err(Forbidden::Private));
    }
}
