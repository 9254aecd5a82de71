//! Just enough of TCP in an IP packet: whose it is, whether its checksum holds, and in which other form smoltcp is to see it.
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
//! **FIN apart.** smoltcp cuts from a segment what lies behind its window and believes a FIN behind it all the same (0.14,
//! `socket/tcp.rs` 1774, 1869): the stream would end early, in order. So such a segment is shown without FIN, and then FIN
//! alone, which smoltcp believes only if nothing is missing before it.
//!
//! **Challenges.** smoltcp drops a SYN for a connection that stands without a word (line 1660), so that a peer that has
//! restarted would wait for our timeouts. RFC 5961 §4 wants a challenge ACK. smoltcp sends one for an acknowledgement of what
//! was never sent, at most one a second for each socket, and so the SYN is shown as that, whatever its sequence number.
//!
//! **Fragments** are recognized, so that the stack can drop them: smoltcp would take the first for a whole packet, as it is
//! built here. Inside the tunnel nobody has to fragment TCP.
//!
//! Not followed: IPv6 extension headers. TCP behind them finds no flow. Source: RFC 9293 §3.1, RFC 791 §3.1, RFC 8200 §3 and §4.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use smoltcp::wire::{IpAddress, IpProtocol, Ipv4Packet, TcpPacket, checksum};

const TCP: u8 = 6;
/// IPv6's headers that may stand before others, and the one of fragments (RFC 8200 §4).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;
const FIN_SYN_RST: u8 = 0x07;
const FIN_SYN_RST_PSH: u8 = 0x0f;
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
/// Where the numbers and the flags stand in TCP's header.
const SEQUENCE: usize = 4;
const ACKNOWLEDGEMENT: usize = 8;
const FLAGS: usize = 13;
/// The longest IPv4 header and the longest TCP header.
const HEADERS_BYTES: usize = 120;
/// Steps that one acknowledgement is shown in, at most.
const STEPS: u32 = 64;
/// Further ahead than any window: a number that was never sent.
const NEVER_SENT: u32 = 1 << 30;

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
        (self.flags() & ACK != 0).then(|| self.number(ACKNOWLEDGEMENT))
    }

    /// Whether the checksum is right, or is the pseudo-header's alone: what joined verified segments leaves it so.
    pub(super) fn checksum_holds(&self) -> bool {
        let tcp = TcpPacket::new_unchecked(&self.packet[self.start..]);
        let (source, destination) = (IpAddress::from(self.source), IpAddress::from(self.destination));
        tcp.verify_partial_checksum(&source, &destination) || tcp.verify_checksum(&source, &destination)
    }

    /// The smaller acknowledgements that a bare acknowledgement is to be preceded by, if `before` was the last one and
    /// `unacknowledged` numbers behind it may be acknowledged. Each covers at least `step` bytes.
    pub(super) fn steps(&self, before: u32, unacknowledged: u32, step: u32) -> Option<Steps> {
        if self.payload_bytes() > 0 || self.flags() & FIN_SYN_RST_PSH != 0 {
            return None;
        }
        let covered = self.acknowledges()?.wrapping_sub(before);
        let step = step.max(covered.div_ceil(STEPS)).max(1);
        if covered <= step || covered > unacknowledged {
            return None;
        }
        Some(Steps { bare: Bare::of(self), next: before, left: covered, step })
    }

    /// Whether it has to be shown in two parts, [`Self::put_without_fin`] and [`Self::fin_alone`].
    pub(super) fn ends_behind_payload(&self) -> bool {
        self.payload_bytes() > 0 && self.flags() & FIN_SYN_RST == FIN
    }

    /// Its first part, everything but FIN, a whole packet in place of what `room` held.
    pub(super) fn put_without_fin(&self, room: &mut Vec<u8>) {
        room.clear();
        room.extend_from_slice(self.packet);
        room[self.start + FLAGS] &= !FIN;
    }

    /// Its second part, FIN where it stands: behind the payload.
    pub(super) fn fin_alone(&self) -> Bare {
        let payload = u32::try_from(self.payload_bytes()).unwrap_or(u32::MAX);
        let mut bare = Bare::of(self);
        bare.set_number(SEQUENCE, self.number(SEQUENCE).wrapping_add(payload));
        bare
    }

    /// In place of a SYN: what smoltcp answers with a challenge ACK, if `acknowledged` was the last acknowledgement.
    pub(super) fn challenged(&self, acknowledged: u32) -> Bare {
        let mut bare = Bare::of(self);
        bare.set_number(ACKNOWLEDGEMENT, acknowledged.wrapping_add(NEVER_SENT));
        bare.bytes[bare.start + FLAGS] = ACK;
        bare
    }

    fn flags(&self) -> u8 {
        self.packet[self.start + FLAGS]
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

/// A segment's headers as a packet of their own. TCP's checksum is not mended: nobody looks at it again.
#[derive(Debug)]
pub(super) struct Bare {
    bytes: [u8; HEADERS_BYTES],
    length: usize,
    /// Where TCP's header begins.
    start: usize,
}

impl Bare {
    fn of(segment: &Segment<'_>) -> Self {
        let (start, length) = (segment.start, segment.payload);
        let mut bytes = [0; HEADERS_BYTES];
        // Neither of the two headers is longer than 60 bytes: their lengths have four bits.
        bytes[..length].copy_from_slice(&segment.packet[..length]);
        if segment.payload_bytes() > 0 {
            let word = |length: usize| u16::try_from(length).unwrap_or(u16::MAX);
            if segment.source.is_ipv4() {
                let mut header = Ipv4Packet::new_unchecked(&mut bytes[..]);
                header.set_total_len(word(length));
                header.fill_checksum();
            } else {
                bytes[4..6].copy_from_slice(&word(length - start).to_be_bytes());
            }
        }
        Self { bytes, length, start }
    }

    pub(super) fn packet(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// Writes the 32 bits at `at` in TCP's header.
    fn set_number(&mut self, at: usize, number: u32) {
        self.bytes[self.start + at..self.start + at + 4].copy_from_slice(&number.to_be_bytes());
    }
}

/// One acknowledgement in steps, the last one left out.
#[derive(Debug)]
pub(super) struct Steps {
    bare: Bare,
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
        self.bare.set_number(ACKNOWLEDGEMENT, self.next);
        Some(self.bare.packet())
    }
}

/// Whether `packet` is a fragment of one. What is too short to tell is none. Every offset is checked here.
pub(super) fn is_fragment(packet: &[u8]) -> bool {
    match packet.first().map(|first| first >> 4) {
        // More fragments, or an offset.
        Some(4) => packet.first_chunk::<8>().is_some_and(|header| u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0),
        Some(6) => has_fragment_header(packet).unwrap_or(false),
        _ => false,
    }
}

/// Whether the headers of an IPv6 packet lead to the one of fragments; None if the packet ends before.
fn has_fragment_header(packet: &[u8]) -> Option<bool> {
    let (mut kind, mut at) = (*packet.get(6)?, 40usize);
    while matches!(kind, HOP_BY_HOP | ROUTING | DESTINATION) {
        let header: &[u8; 2] = packet.get(at..)?.first_chunk()?;
        kind = header[0];
        at += (usize::from(header[1]) + 1) * 8;
    }
    Some(kind == FRAGMENT)
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
            let numbers = |before: u32, unacknowledged, step| {
                let mut steps = segment.steps(before, unacknowledged, step)?;
                let mut numbers = Vec::new();
                while let Some(bytes) = steps.next() {
                    numbers.push(Segment::parse(bytes).and_then(|segment| segment.acknowledges()).expect("a number"));
                }
                Some(numbers)
            };
            assert_eq!(numbers(6_500, 4_000, 1_300), Some(vec![7_800, 9_100, 10_400]));
            assert_eq!(numbers(6_500, 3_999, 1_300), None, "of what was never sent");
            assert_eq!(numbers(9_200, 4_000, 1_300), None, "one step");
            assert_eq!(numbers(10_501, 4_000, 1_300), None, "an old one");
            let before = 10_500u32.wrapping_sub(500_000);
            assert!(numbers(before, 500_000, 1_300).is_some_and(|numbers| numbers.len() < STEPS as usize));
        }
    }

    #[test]
    fn a_fin_behind_payload_comes_apart() {
        for (from, to) in ends() {
            let sequence = u32::MAX - 2;
            let plain = bare(from, to, sequence, Some(9));
            let bytes = packet(from, to, &TcpRepr { control: TcpControl::Fin, payload: b"seven b", ..plain });
            let segment = Segment::parse(&bytes).expect("a segment");
            assert!(segment.ends_behind_payload());
            let mut first = vec![1, 2, 3];
            segment.put_without_fin(&mut first);
            let first = Segment::parse(&first).expect("a segment");
            assert_eq!((first.flags(), first.number(SEQUENCE), first.payload_bytes()), (ACK, sequence, 7));
            let alone = segment.fin_alone();
            let second = Segment::parse(alone.packet()).expect("a segment");
            assert_eq!((second.flags(), second.number(SEQUENCE), second.payload_bytes()), (FIN | ACK, 4, 0));
            assert_eq!((second.packet.len(), second.tuple()), (alone.packet().len(), segment.tuple()));
            assert!(from.is_ipv6() || Ipv4Packet::new_unchecked(alone.packet()).verify_checksum());
            assert!(!second.ends_behind_payload());
            let reset = packet(from, to, &TcpRepr { control: TcpControl::Rst, payload: b"why", ..plain });
            assert!(!Segment::parse(&reset).expect("a segment").ends_behind_payload());
        }
    }

    #[test]
    fn a_syn_becomes_an_acknowledgement_of_what_was_never_sent() {
        for (from, to) in ends() {
            let bytes = packet(from, to, &TcpRepr { control: TcpControl::Syn, payload: b"early", ..bare(from, to, 5, None) });
            let challenged = Segment::parse(&bytes).expect("a segment").challenged(u32::MAX);
            let segment = Segment::parse(challenged.packet()).expect("a segment");
            assert_eq!((segment.flags(), segment.acknowledges(), segment.payload_bytes()), (ACK, Some(NEVER_SENT - 1), 0));
        }
    }

    #[test]
    fn knows_a_fragment_of_either_family() {
        let [four, six] = ends().map(|(from, to)| packet(from, to, &TcpRepr { payload: b"payload", ..bare(from, to, 5, Some(9)) }));
        assert!(!is_fragment(&four) && !is_fragment(&six));
        for (field, fragment) in [([0x40, 0], false), ([0x20, 0], true), ([0, 1], true), ([0x1f, 0xff], true)] {
            let mut bytes = four.clone();
            bytes[6..8].copy_from_slice(&field);
            assert_eq!(is_fragment(&bytes), fragment, "{field:?}");
        }
        let (fixed, rest) = six.split_at(40);
        let behind = |kinds: &[u8]| {
            let mut bytes = fixed.to_vec();
            bytes[6] = kinds[0];
            for next in kinds[1..].iter().chain(&[TCP]) {
                bytes.extend([*next, 0, 0, 0, 0, 0, 0, 0]);
            }
            bytes.extend_from_slice(rest);
            bytes
        };
        assert!(is_fragment(&behind(&[FRAGMENT])));
        assert!(is_fragment(&behind(&[HOP_BY_HOP, DESTINATION, ROUTING, FRAGMENT])));
        assert!(!is_fragment(&behind(&[HOP_BY_HOP, DESTINATION])));
        assert!(!is_fragment(&behind(&[HOP_BY_HOP, DESTINATION])[..48]), "it ends before");
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
                if let Some(mut steps) = segment.steps(0, u32::MAX, 100) {
                    while steps.next().is_some() {}
                }
                let _any = (segment.challenged(0), segment.fin_alone());
                segment.put_without_fin(&mut Vec::new());
            }
            let _any = (is_fragment(&bytes), prepare_checksum(&mut bytes));
        }
    }
}
