//! A UDP datagram inside an Ethernet frame: where its parts stand, and how to change them so that the checksums are right
//! again.
//!
//! Sources: RFC 768, RFC 791, RFC 8200 §8.1, RFC 1071. Left out: VLAN tags, IPv4 fragments and IPv6 extension headers. A
//! frame that has one of these is not taken for a datagram.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;

/// Where the parts of a datagram stand in its frame. [`Self::of`] has checked that all of them are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    ipv6: bool,
    /// Where the UDP header begins.
    udp: usize,
    /// Where the datagram ends; padding of the frame may follow.
    end: usize,
}

/// Of the Ethernet header: where the IP header begins.
const IP: usize = 14;
const UDP_HEADER_BYTES: usize = 8;
const UDP: u8 = 17;
const ETHER_TYPE_IPV4: u16 = 0x0800;
const ETHER_TYPE_IPV6: u16 = 0x86dd;

impl Layout {
    /// None: it is no UDP, or not whole.
    pub fn of(frame: &[u8]) -> Option<Self> {
        let version = frame.get(IP)? >> 4;
        let (ipv6, protocol, udp, end) = match (u16_at(frame, 12)?, version) {
            (ETHER_TYPE_IPV4, 4) => {
                let header_bytes = usize::from(frame.get(IP)? & 0x0f) * 4;
                let is_fragment = u16_at(frame, IP + 6)? & 0x3fff != 0;
                if header_bytes < 20 || is_fragment {
                    return None;
                }
                (false, *frame.get(IP + 9)?, IP + header_bytes, IP + usize::from(u16_at(frame, IP + 2)?))
            }
            (ETHER_TYPE_IPV6, 6) => (true, *frame.get(IP + 6)?, IP + 40, IP + 40 + usize::from(u16_at(frame, IP + 4)?)),
            _ => return None,
        };
        let fits = end <= frame.len() && udp + UDP_HEADER_BYTES <= end;
        let whole = fits && protocol == UDP && usize::from(u16_at(frame, udp + 4)?) == end - udp;
        whole.then_some(Self { ipv6, udp, end })
    }

    /// Of the IP packet, header included.
    pub const fn ip_bytes(self) -> usize {
        self.end - IP
    }

    pub const fn payload(self) -> Range<usize> {
        self.udp + UDP_HEADER_BYTES..self.end
    }

    /// Addresses and ports, as they stand in the frame: the same for all datagrams of a flow.
    pub fn flow(self, frame: &[u8]) -> &[u8] {
        // Ports follow upon addresses, but for options of IPv4, which belong to the flow as well.
        &frame[self.addresses().start..self.udp + 4]
    }

    pub fn source_port(self, frame: &[u8]) -> u16 {
        u16::from_be_bytes([frame[self.udp], frame[self.udp + 1]])
    }

    pub fn destination_port(self, frame: &[u8]) -> u16 {
        u16::from_be_bytes([frame[self.udp + 2], frame[self.udp + 3]])
    }

    pub fn source(self, frame: &[u8]) -> SocketAddr {
        let addresses = &frame[self.addresses()];
        let address = if self.ipv6 {
            IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(&addresses[..16]).expect("sixteen bytes")))
        } else {
            IpAddr::from(Ipv4Addr::from(<[u8; 4]>::try_from(&addresses[..4]).expect("four bytes")))
        };
        SocketAddr::new(address, self.source_port(frame))
    }

    /// The checksums are right only after [`Self::write_checksums`]. False, and nothing done: the address is of the other
    /// IP version.
    pub fn set_source(self, frame: &mut [u8], source: SocketAddr) -> bool {
        let start = self.addresses().start;
        match (self.ipv6, source.ip()) {
            (false, IpAddr::V4(address)) => frame[start..start + 4].copy_from_slice(&address.octets()),
            (true, IpAddr::V6(address)) => frame[start..start + 16].copy_from_slice(&address.octets()),
            (false, IpAddr::V6(_)) | (true, IpAddr::V4(_)) => return false,
        }
        frame[self.udp..self.udp + 2].copy_from_slice(&source.port().to_be_bytes());
        true
    }

    /// The checksums are right only after [`Self::write_checksums`].
    pub fn set_destination_port(self, frame: &mut [u8], port: u16) {
        frame[self.udp + 2..self.udp + 4].copy_from_slice(&port.to_be_bytes());
    }

    /// Makes the checksums of the IPv4 header and of UDP right.
    pub fn write_checksums(self, frame: &mut [u8]) {
        if !self.ipv6 {
            frame[IP + 10..IP + 12].fill(0);
            let checksum = !fold(sum(&frame[IP..self.udp]));
            frame[IP + 10..IP + 12].copy_from_slice(&checksum.to_be_bytes());
        }
        frame[self.udp + 6..self.udp + 8].fill(0);
        // Zero would say that there is none.
        let checksum = match !fold(self.pseudo_header(frame) + sum(&frame[self.udp..self.end])) {
            0 => 0xffff,
            checksum => checksum,
        };
        frame[self.udp + 6..self.udp + 8].copy_from_slice(&checksum.to_be_bytes());
    }

    /// Whether UDP's checksum is right. One that is left for the network card to finish is not.
    pub fn is_intact(self, frame: &[u8]) -> bool {
        fold(self.pseudo_header(frame) + sum(&frame[self.udp..self.end])) == 0xffff
    }

    fn pseudo_header(self, frame: &[u8]) -> u64 {
        sum(&frame[self.addresses()]) + u64::from(UDP) + (self.end - self.udp) as u64
    }

    const fn addresses(self) -> Range<usize> {
        if self.ipv6 { IP + 8..IP + 40 } else { IP + 12..IP + 20 }
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let pair = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes([pair[0], pair[1]]))
}

/// The sum of 16-bit words; an odd last byte counts as the high half of one.
fn sum(bytes: &[u8]) -> u64 {
    let words = bytes.chunks(2).map(|pair| (u64::from(pair[0]) << 8) + pair.get(1).map_or(0, |low| u64::from(*low)));
    words.sum()
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame from 192.0.2.1:51820 to 192.0.2.2:51821, or the same over IPv6, without checksums.
    fn frame(ipv6: bool, payload: &[u8]) -> Vec<u8> {
        let udp_bytes = u16::try_from(8 + payload.len()).expect("short enough");
        let mut frame = vec![2u8; 12];
        if ipv6 {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(udp_bytes.to_be_bytes());
            frame.extend([UDP, 64]);
            frame.extend(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).octets());
            frame.extend(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2).octets());
        } else {
            frame.extend([8, 0, 0x45, 0]);
            frame.extend((20 + udp_bytes).to_be_bytes());
            frame.extend([0, 0, 0x40, 0, 64, UDP, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
        }
        frame.extend(51820u16.to_be_bytes());
        frame.extend(51821u16.to_be_bytes());
        frame.extend(udp_bytes.to_be_bytes());
        frame.extend([0, 0]);
        frame.extend(payload);
        frame
    }

    #[test]
    fn finds_a_datagram_and_makes_its_checksums_right() {
        for ipv6 in [false, true] {
            // Padding behind the datagram is no part of it.
            let mut frame = [frame(ipv6, b"datagram!").as_slice(), &[0xaa; 9]].concat();
            let layout = Layout::of(&frame).expect("a datagram");
            assert_eq!(&frame[layout.payload()], b"datagram!");
            assert_eq!(layout.ip_bytes(), if ipv6 { 57 } else { 37 });
            assert_eq!((layout.source_port(&frame), layout.destination_port(&frame)), (51820, 51821));
            assert!(!layout.is_intact(&frame));
            layout.write_checksums(&mut frame);
            assert!(layout.is_intact(&frame));
            frame[layout.payload().start] ^= 1;
            assert!(!layout.is_intact(&frame));
        }
    }

    #[test]
    fn a_changed_source_is_what_is_read_back() {
        let mut frame = frame(false, b"x");
        let layout = Layout::of(&frame).expect("a datagram");
        let elsewhere: SocketAddr = "192.0.2.77:4444".parse().expect("an address");
        assert!(layout.set_source(&mut frame, elsewhere));
        assert_eq!(layout.source(&frame), elsewhere);
        assert!(!layout.set_source(&mut frame, "[::1]:1".parse().expect("an address")));
        layout.set_destination_port(&mut frame, 7);
        assert_eq!(layout.destination_port(&frame), 7);
    }

    /// The worked example of many textbooks.
    #[test]
    fn the_checksum_is_that_of_a_known_header() {
        let header = [0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0, 0, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7];
        assert_eq!(!fold(sum(&header)), 0xb861);
    }

    #[test]
    fn what_is_not_whole_is_no_datagram() {
        let whole = frame(false, b"datagram!");
        for length in 0..whole.len() {
            assert_eq!(Layout::of(&whole[..length]), None, "{length} bytes");
        }
        let mut fragment = whole;
        fragment[IP + 6] = 0x20;
        assert_eq!(Layout::of(&fragment), None);
    }
}
