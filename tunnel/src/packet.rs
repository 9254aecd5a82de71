//! Just enough of IPv4 and IPv6 to route an inner packet: its addresses, its length and its padding.
//!
//! No transport header is read here, and extension headers are passed through unseen.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// WireGuard pads the inner packet to a multiple of this many bytes (whitepaper §5.4.6).
pub const PADDING: usize = 16;

/// What the engine needs to know of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// Length in bytes that the header claims, itself included; never more than the packet has.
    pub(crate) length: usize,
}

impl Header {
    /// None if `packet` is no whole IPv4 or IPv6 packet.
    pub(crate) fn parse(packet: &[u8]) -> Option<Self> {
        let header = match packet.first()? >> 4 {
            4 => Self {
                source: Ipv4Addr::from(array::<4>(packet, 12)?).into(),
                destination: Ipv4Addr::from(array::<4>(packet, 16)?).into(),
                length: usize::from(u16::from_be_bytes(array::<2>(packet, 2)?)),
            },
            6 => Self {
                source: Ipv6Addr::from(array::<16>(packet, 8)?).into(),
                destination: Ipv6Addr::from(array::<16>(packet, 24)?).into(),
                length: usize::from(u16::from_be_bytes(array::<2>(packet, 4)?)) + 40,
            },
            _ => return None,
        };
        let smallest = if header.source.is_ipv4() { 20 } else { 40 };
        (smallest..=packet.len()).contains(&header.length).then_some(header)
    }
}

/// The length that a packet of `length` bytes is padded to: the next multiple of 16, but never over `mtu`
/// (so that padding alone cannot make a datagram too large for the path).
pub(crate) fn padded_length(length: usize, mtu: usize) -> usize {
    length.next_multiple_of(PADDING).min(mtu.max(length))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_addresses_and_length() {
        let mut packet = vec![0u8; 28];
        packet[0] = 0x45;
        packet[3] = 28;
        packet[12..16].copy_from_slice(&[10, 0, 0, 1]);
        packet[16..20].copy_from_slice(&[10, 0, 0, 2]);
        let header = Header::parse(&packet).expect("a packet");
        assert_eq!(
            (header.source, header.destination, header.length),
            ("10.0.0.1".parse().expect("ip"), "10.0.0.2".parse().expect("ip"), 28)
        );
        assert_eq!(Header::parse(&packet[..27]), None, "shorter than it claims");
        packet[3] = 19;
        assert_eq!(Header::parse(&packet), None, "shorter than its own header");
    }

    #[test]
    fn padding_stops_at_the_mtu() {
        assert_eq!(padded_length(1, 1420), 16);
        assert_eq!(padded_length(16, 1420), 16);
        assert_eq!(padded_length(1419, 1420), 1420);
        assert_eq!(padded_length(1420, 1420), 1420);
    }

    proptest! {
        #[test]
        fn never_panics_and_never_claims_more_than_there_is(packet in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Some(header) = Header::parse(&packet) {
                prop_assert!(header.length <= packet.len());
            }
        }
    }
}
