//! Just enough of TCP in an IP packet: whose it is, whether its checksum holds, and acknowledgements in steps.
//!
//! smoltcp looks for a packet's socket by asking every socket it was given, so the stack finds the flow itself, by the four
//! values of a [`Tuple`], and shows smoltcp that one alone.
//!
//! **Acknowledgements in steps.** smoltcp's congestion control grows its window by at most one segment for each
//! acknowledgement (`socket/tcp/congestion/cubic.rs`, `on_ack`: `len.min(self.mss)`), and starts at two. Receivers that join
//! segments, as Linux does and as this stack does, acknowledge dozens at once: growth would be linear and a path of 20 ms
//! would take seconds to fill. So one acknowledgement of much is shown as several of little. That is byte counting as in RFC
//! 3465, without its limit, as in Linux; the window itself stays smoltcp's to choose.
//!
//! Not followed: IPv6 extension headers and IPv4 fragments. TCP behind them finds no flow. Source: RFC 9293 §3.1, RFC 791
//! §3.1, RFC 8200 §3.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use smoltcp::wire::{IpAddress, IpProtocol, TcpPacket, checksum};

const TCP: u8 = 6;
const FIN_SYN_RST_PSH: u8 = 0x0f;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
/// The longest IPv4 header and the longest TCP header.
const HEADERS_BYTES: usize = 120;
/// Steps that one acknowledgement is shown in, at most.
const STEPS: u32 = 64;
/// An acknowledgement of more than any window here is none of ours.
const MOST_ACKNOWLEDGED: u32 = 1 << 21;

/// What a flow is found by, seen from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Tuple {
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
}

/// A packet that holds a TCP segment, whole.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment<'a> {
    /// The IP packet without anything behind it.
    packet: &'a [u8],
    source: IpAddr,
    destination: IpAddr,
    /// Where TCP's header begins and ends in `packet`.
    start: usize,
    payload: usize,
}

impl<'a> Segment<'a> {
    /// None if it is not TCP, not whole, or a fragment. Every offset is checked here.
    pub(super) fn parse(packet: &'a [u8]) -> Option<Self> {
        let (start, end, protocol, source, destination) = match packet.first()? >> 4 {
            4 => {
                let header: &[u8; 20] = packet.first_chunk()?;
                // More fragments, or an offset.
                if u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0 {
                    return None;
                }
                let address = |at: usize| IpAddr::V4(Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]));
                let end = usize::from(u16::from_be_bytes([header[2], header[3]]));
                (usize::from(header[0] & 0x0f) * 4, end, header[9], address(12), address(16))
            }
            6 => {
                let header: &[u8; 40] = packet.first_chunk()?;
                let address = |at: usize| {
                    let mut octets = [0; 16];
                    octets.copy_from_slice(&header[at..at + 16]);
                    IpAddr::V6(Ipv6Addr::from(octets))
                };
                (40, 40 + usize::from(u16::from_be_bytes([header[4], header[5]])), header[6], address(8), address(24))
            }
            _ => return None,
        };
        let packet = packet.get(..end)?;
        let header = packet.get(start..)?;
        if protocol != TCP || start < 20 || header.len() < 20 {
            return None;
        }
        let length = usize::from(header[12] >> 4) * 4;
        (20..=header.len()).contains(&length).then_some(Self { packet, source, destination, start, payload: start + length })
    }

    /// The flow that this segment came in for.
    pub(super) fn tuple(&self) -> Tuple {
        Tuple { local: SocketAddr::new(self.destination, self.word(2)), remote: SocketAddr::new(self.source, self.word(0)) }
    }

    /// SYN without ACK.
    pub(super) fn opens(&self) -> bool {
        self.flags() & (SYN | ACK) == SYN
    }

    pub(super) const fn payload_bytes(&self) -> usize {
        self.packet.len() - self.payload
    }

    /// The acknowledgement number, if it says something.
    pub(super) fn acknowledges(&self) -> Option<u32> {
        (self.flags() & ACK != 0).then(|| self.number(8))
    }

    /// Whether the checksum is right, or is the pseudo-header's alone: what joined verified segments leaves it so.
    pub(super) fn checksum_holds(&self) -> bool {
        let tcp = TcpPacket::new_unchecked(&self.packet[self.start..]);
        let (source, destination) = (IpAddress::from(self.source), IpAddress::from(self.destination));
        tcp.verify_partial_checksum(&source, &destination) || tcp.verify_checksum(&source, &destination)
    }

    /// The smaller acknowledgements that a bare acknowledgement is to be preceded by, if `before` was the last one. Each
    /// covers at least `step` bytes.
    pub(super) fn steps(&self, before: u32, step: u32) -> Option<Steps> {
        if self.payload_bytes() > 0 || self.flags() & FIN_SYN_RST_PSH != 0 || self.packet.len() > HEADERS_BYTES {
            return None;
        }
        let covered = self.acknowledges()?.wrapping_sub(before);
        let step = step.max(covered.div_ceil(STEPS)).max(1);
        if covered <= step || covered > MOST_ACKNOWLEDGED {
            return None;
        }
        let mut header = [0; HEADERS_BYTES];
        header[..self.packet.len()].copy_from_slice(self.packet);
        Some(Steps { header, length: self.packet.len(), field: self.start + 8, next: before, left: covered, step })
    }

    fn flags(&self) -> u8 {
        self.packet[self.start + 13]
    }

    /// The 16 bits at `at` in TCP's header.
    fn word(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.packet[self.start + at], self.packet[self.start + at + 1]])
    }

    /// The 32 bits at `at` in TCP's header.
    fn number(&self, at: usize) -> u32 {
        (u32::from(self.word(at)) << 16) | u32::from(self.word(at + 2))
    }
}

/// One acknowledgement in steps, the last one left out. Checksums are not mended: nobody looks at them again.
#[derive(Debug)]
pub(super) struct Steps {
    header: [u8; HEADERS_BYTES],
    length: usize,
    /// Where the acknowledgement number stands.
    field: usize,
    next: u32,
    left: u32,
    step: u32,
}

impl Steps {
    /// The next smaller acknowledgement, a whole packet.
    pub(super) fn next(&mut self) -> Option<&[u8]> {
        if self.left <= self.step {
            return None;
        }
        self.left -= self.step;
        self.next = self.next.wrapping_add(self.step);
        self.header[self.field..self.field + 4].copy_from_slice(&self.next.to_be_bytes());
        Some(&self.header[..self.length])
    }
}

/// What there is to say of a TCP packet that smoltcp wrote, for whoever completes its checksum or cuts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) ip_bytes: usize,
    /// IP and TCP.
    pub(super) header_bytes: usize,
}

/// Writes the pseudo-header's sum into the checksum field of a TCP packet of ours, as virtio has it. None if it is not TCP.
pub(super) fn prepare_checksum(packet: &mut [u8]) -> Option<Layout> {
    let segment = Segment::parse(packet)?;
    let layout = Layout { ip_bytes: segment.start, header_bytes: segment.payload };
    let length = u32::try_from(segment.packet.len() - segment.start).ok()?;
    let sum = checksum::pseudo_header(&segment.source.into(), &segment.destination.into(), IpProtocol::Tcp, length);
    packet[layout.ip_bytes + 16..layout.ip_bytes + 18].copy_from_slice(&sum.to_be_bytes());
    Some(layout)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use smoltcp::phy::ChecksumCapabilities;
    use smoltcp::wire::{IpRepr, TcpControl, TcpRepr, TcpSeqNumber};

    use super::*;

    /// A segment without options or payload.
    pub(in super::super) fn bare(
        source: SocketAddr,
        destination: SocketAddr,
        sequence: u32,
        acknowledged: Option<u32>,
    ) -> TcpRepr<'static> {
        TcpRepr {
            src_port: source.port(),
            dst_port: destination.port(),
            control: TcpControl::None,
            seq_number: TcpSeqNumber(sequence as i32),
            ack_number: acknowledged.map(|number| TcpSeqNumber(number as i32)),
            window_len: 65_535,
            window_scale: None,
            max_seg_size: None,
            sack_permitted: false,
            sack_ranges: [None, None, None],
            timestamp: None,
            payload: &[],
        }
    }

    /// As a whole IP packet, with right checksums.
    pub(in super::super) fn packet(source: SocketAddr, destination: SocketAddr, segment: &TcpRepr<'_>) -> Vec<u8> {
        let (from, to) = (IpAddress::from(source.ip()), IpAddress::from(destination.ip()));
        let ip = IpRepr::new(from, to, IpProtocol::Tcp, segment.buffer_len(), 64);
        let mut packet = vec![0; ip.buffer_len()];
        let checksums = ChecksumCapabilities::default();
        ip.emit(&mut packet[..], &checksums);
        segment.emit(&mut TcpPacket::new_unchecked(&mut packet[ip.header_len()..]), &from, &to, &checksums);
        packet
    }

    fn ends() -> [(SocketAddr, SocketAddr); 2] {
        ["10.0.0.1:1000 10.0.0.2:80", "[fd00::1]:1000 [fd00::2]:80"].map(|ends| {
            let (from, to) = ends.split_once(' ').expect("two");
            (from.parse().expect("an address"), to.parse().expect("an address"))
        })
    }

    #[test]
    fn finds_the_flow_and_checks_the_sum() {
        for (from, to) in ends() {
            let mut bytes = packet(from, to, &TcpRepr { payload: b"seven b", ..bare(from, to, 5, Some(9)) });
            let segment = Segment::parse(&bytes).expect("a segment");
            assert_eq!(segment.tuple(), Tuple { local: to, remote: from });
            assert_eq!((segment.payload_bytes(), segment.acknowledges(), segment.opens()), (7, Some(9), false));
            assert!(segment.checksum_holds());
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
            assert!(!Segment::parse(&bytes).expect("a segment").checksum_holds());
            prepare_checksum(&mut bytes).expect("TCP");
            assert!(Segment::parse(&bytes).expect("a segment").checksum_holds(), "the pseudo-header's sum alone");
            let syn = packet(from, to, &TcpRepr { control: TcpControl::Syn, ..bare(from, to, 5, None) });
            assert!(Segment::parse(&syn).expect("a segment").opens());
        }
    }

    #[test]
    fn a_large_acknowledgement_comes_in_steps() {
        for (from, to) in ends() {
            let bytes = packet(from, to, &bare(from, to, 5, Some(10_500)));
            let segment = Segment::parse(&bytes).expect("a segment");
            let numbers = |before: u32, step| {
                let mut steps = segment.steps(before, step)?;
                let mut numbers = Vec::new();
                while let Some(bytes) = steps.next() {
                    numbers.push(Segment::parse(bytes).and_then(|segment| segment.acknowledges()).expect("a number"));
                }
                Some(numbers)
            };
            assert_eq!(numbers(6_500, 1_300), Some(vec![7_800, 9_100, 10_400]));
            assert_eq!(numbers(9_200, 1_300), None, "one step");
            assert_eq!(numbers(10_501, 1_300), None, "an old one");
            let before = 10_500u32.wrapping_sub(500_000);
            assert!(numbers(before, 1_300).is_some_and(|numbers| numbers.len() < STEPS as usize));
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_no_harm(
            mut bytes in vec(any::<u8>(), 0..100),
            version in prop_oneof![Just(0x45u8), Just(0x4fu8), Just(0x60u8), any::<u8>()],
        ) {
            if let Some(first) = bytes.first_mut() {
                *first = version;
            }
            if bytes.len() > 9 {
                bytes[9] = TCP;
                bytes[2] = 0;
            }
            if let Some(segment) = Segment::parse(&bytes) {
                let _any = (segment.tuple(), segment.checksum_holds(), segment.payload_bytes());
                if let Some(mut steps) = segment.steps(0, 100) {
                    while steps.next().is_some() {}
                }
            }
            let _any = prepare_checksum(&mut bytes);
        }
    }
}
