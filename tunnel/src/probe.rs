//! ICMP and ICMPv6 echoes that the lane crafts itself and whose answers it takes out of the tunnel.
//!
//! An answer says that the peer is there and that packets of that size get through both ways; nothing outside the
//! tunnel can say so. The lane does this without a socket, because in userspace mode there is none, and because the
//! answer must be told from that of a `ping` of somebody's: by the identifier and by eight random bytes, the magic,
//! at the head of the echo's data.
//!
//! ```text
//!   IPv4 20 or IPv6 40 │ type code checksum identifier sequence (8) │ magic (8) │ zeros up to the wanted length
//! ```
//!
//! Left out: when to probe and what an answer means (`failover`, `discovery`), fragments (an answer in pieces proves
//! nothing about its size and is not recognised), IPv6 extension headers, and ICMP errors.
//!
//! Sources: RFC 792 (echo), RFC 4443 §4 (ICMPv6 echo) and §2.3 (its checksum), RFC 8200 §8.1 (pseudo-header),
//! RFC 1071 (the sum may be taken in either byte order).

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

use crate::offload::checksum::{fold, sum, update};
use crate::packet::Header;

const IPV4_HEADER_BYTES: usize = 20;
const IPV6_HEADER_BYTES: usize = 40;
const ICMP_HEADER_BYTES: usize = 8;
const MAGIC_BYTES: usize = 8;
/// The first half of every magic: by it a skyway at the other end knows a probe, and answers it in the lane that it came by.
const MARK: [u8; 4] = *b"skyw";
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// TTL and hop limit: the target may lie behind the peer.
const HOPS: u8 = 64;
/// More fragments (0x2000) and the fragment's offset (0x1fff): both are zero in a whole packet.
const FRAGMENT: u16 = 0x3fff;

/// What all echoes to one target have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Echo {
    /// Our own address inside the tunnel, of the same family as `target`.
    pub(crate) source: IpAddr,
    pub(crate) target: IpAddr,
    pub(crate) identifier: u16,
    /// [`MARK`] and four random bytes: tells our echoes from others' with the same identifier.
    pub(crate) magic: [u8; 8],
}

/// Turns a probe of another skyway's, addressed to one of our `own` addresses, into its answer, in place; false, and nothing
/// touched, if `packet` is none.
///
/// The host would answer too, but by any lane: a lane's probe is to say how that lane is, both ways. IPv4 options and
/// fragments are left to the host.
pub(crate) fn answer(packet: &mut [u8], own: &[IpNet]) -> bool {
    let (start, kind, reply) = match packet.first() {
        Some(0x45) if packet.get(9) == Some(&ICMP) => (IPV4_HEADER_BYTES, 8, 0),
        Some(first) if first >> 4 == 6 && packet.get(6) == Some(&ICMPV6) => (IPV6_HEADER_BYTES, 128, 129),
        _ => return false,
    };
    let Some(header) = Header::parse(packet) else { return false };
    let Some(message) = packet.get(start..header.length) else { return false };
    let whole = start == IPV6_HEADER_BYTES || u16::from_be_bytes([packet[6], packet[7]]) & FRAGMENT == 0;
    let probe = message.get(..2) == Some(&[kind, 0]) && message.get(ICMP_HEADER_BYTES..ICMP_HEADER_BYTES + MARK.len()) == Some(&MARK);
    if !whole || !probe || !own.iter().any(|own| own.addr() == header.destination) {
        return false;
    }
    // Swapping the addresses changes neither the header's checksum nor that of ICMPv6, which covers them.
    let (source, destination) = if start == IPV4_HEADER_BYTES { (12..16, 16) } else { (8..24, 24) };
    let length = source.len();
    let (before, after) = packet.split_at_mut(destination);
    before[source].swap_with_slice(&mut after[..length]);
    packet[start] = reply;
    update(&mut packet[start + 2..start + 4], u16::from(kind) << 8, u16::from(reply) << 8);
    true
}

impl Echo {
    /// An echo to `target`, told from all others by `random`.
    pub(crate) fn new(source: IpAddr, target: IpAddr, random: u64) -> Self {
        let mut echo = Self { source, target, identifier: 0, magic: [0; MAGIC_BYTES] };
        echo.renew(random);
        echo
    }

    /// Answers to what was sent so far are not known any more.
    pub(crate) fn renew(&mut self, random: u64) {
        let random = random.to_be_bytes();
        self.identifier = u16::from_be_bytes([random[0], random[1]]);
        self.magic[..MARK.len()].copy_from_slice(&MARK);
        self.magic[MARK.len()..].copy_from_slice(&random[2..6]);
    }

    /// The fewest bytes that [`Echo::write`] makes: headers and magic, 36 over IPv4 and 56 over IPv6.
    pub(crate) const fn smallest(&self) -> usize {
        let header = if self.target.is_ipv4() { IPV4_HEADER_BYTES } else { IPV6_HEADER_BYTES };
        header + ICMP_HEADER_BYTES + MAGIC_BYTES
    }

    /// Writes an echo request of exactly `length` bytes, IP header included, to the head of `room`; returns `length`.
    ///
    /// None, and `room` as it was, if `length` is less than [`Echo::smallest`], more than `room` holds or more than an
    /// IP header can say, or if source and target are not of one family.
    pub(crate) fn write(&self, sequence: u16, length: usize, room: &mut [u8]) -> Option<usize> {
        if length < self.smallest() {
            return None;
        }
        match (self.source, self.target) {
            (IpAddr::V4(source), IpAddr::V4(target)) => {
                let total = u16::try_from(length).ok()?;
                let (header, message) = room.get_mut(..length)?.split_at_mut(IPV4_HEADER_BYTES);
                header.fill(0);
                header[0] = 0x45;
                header[2..4].copy_from_slice(&total.to_be_bytes());
                header[6] = 0x40; // don't fragment
                header[8] = HOPS;
                header[9] = ICMP;
                header[12..16].copy_from_slice(&source.octets());
                header[16..20].copy_from_slice(&target.octets());
                let checksum = !fold(sum(header));
                header[10..12].copy_from_slice(&checksum.to_ne_bytes());
                self.write_message(8, sequence, message);
                let checksum = !fold(sum(message));
                message[2..4].copy_from_slice(&checksum.to_ne_bytes());
            }
            (IpAddr::V6(source), IpAddr::V6(target)) => {
                let payload = u16::try_from(length - IPV6_HEADER_BYTES).ok()?;
                let (header, message) = room.get_mut(..length)?.split_at_mut(IPV6_HEADER_BYTES);
                header.fill(0);
                header[0] = 0x60;
                header[4..6].copy_from_slice(&payload.to_be_bytes());
                header[6] = ICMPV6;
                header[7] = HOPS;
                header[8..24].copy_from_slice(&source.octets());
                header[24..40].copy_from_slice(&target.octets());
                self.write_message(128, sequence, message);
                let checksum = !icmpv6_sum(source, target, message);
                message[2..4].copy_from_slice(&checksum.to_ne_bytes());
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
        }
        Some(length)
    }

    /// The sequence number and the length in bytes, IP header included, of the answer to one of our echoes.
    ///
    /// None for everything else: another type, source, target, identifier or magic, a fragment, a packet cut short,
    /// a checksum that is wrong. What follows the packet in `packet` (WireGuard's padding) is not looked at.
    pub(crate) fn recognise(&self, packet: &[u8]) -> Option<(u16, usize)> {
        // Asked of every packet that comes in: the protocol settles it for nearly all of them.
        let icmp = match packet.first()? >> 4 {
            4 => *packet.get(9)? == ICMP,
            6 => *packet.get(6)? == ICMPV6,
            _ => false,
        };
        if !icmp {
            return None;
        }
        let header = Header::parse(packet)?;
        if header.source != self.target || header.destination != self.source {
            return None;
        }
        let packet = packet.get(..header.length)?;
        let (message, answer) = match (self.source, self.target) {
            (IpAddr::V4(_), IpAddr::V4(_)) => {
                let (header, message) = packet.split_at_checked(usize::from(packet.first()? & 0x0f) * 4)?;
                let fragment = u16::from_be_bytes(header.get(6..8)?.try_into().ok()?) & FRAGMENT;
                if header.len() < IPV4_HEADER_BYTES || fragment != 0 || fold(sum(header)) != u16::MAX {
                    return None;
                }
                if fold(sum(message)) != u16::MAX {
                    return None;
                }
                (message, 0)
            }
            (IpAddr::V6(source), IpAddr::V6(target)) => {
                let message = packet.get(IPV6_HEADER_BYTES..)?;
                if icmpv6_sum(target, source, message) != u16::MAX {
                    return None;
                }
                (message, 129)
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
        };
        let ours = message.get(..2)? == [answer, 0]
            && message.get(4..6)? == self.identifier.to_be_bytes()
            && message.get(ICMP_HEADER_BYTES..ICMP_HEADER_BYTES + MAGIC_BYTES)? == self.magic;
        let sequence = u16::from_be_bytes(message.get(6..8)?.try_into().ok()?);
        ours.then_some((sequence, header.length))
    }

    /// Everything but the checksum; `message` is at least 16 bytes long.
    fn write_message(&self, kind: u8, sequence: u16, message: &mut [u8]) {
        message.fill(0);
        message[0] = kind;
        message[4..6].copy_from_slice(&self.identifier.to_be_bytes());
        message[6..8].copy_from_slice(&sequence.to_be_bytes());
        message[ICMP_HEADER_BYTES..ICMP_HEADER_BYTES + MAGIC_BYTES].copy_from_slice(&self.magic);
    }
}

/// The folded sum, in native byte order, of an ICMPv6 message and its pseudo-header.
fn icmpv6_sum(source: Ipv6Addr, target: Ipv6Addr, message: &[u8]) -> u16 {
    let mut pseudo = [0u8; 40];
    pseudo[..16].copy_from_slice(&source.octets());
    pseudo[16..32].copy_from_slice(&target.octets());
    // At most 65,535: an IPv6 header cannot say more.
    pseudo[32..36].copy_from_slice(&(message.len() as u32).to_be_bytes());
    pseudo[39] = ICMPV6;
    // Folded before they are added: a partial sum may fill all 64 bits.
    fold(u64::from(fold(sum(&pseudo))) + u64::from(fold(sum(message))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_skyway_at_the_other_end_answers_in_place() {
        for (source, target) in [("10.99.0.1", "10.99.0.2"), ("fd99::1", "fd99::2")] {
            let own: Vec<IpNet> = vec!["10.99.0.2/30".parse().expect("a prefix"), "fd99::2/126".parse().expect("a prefix")];
            let echo = Echo::new(source.parse().expect("an address"), target.parse().expect("an address"), 0x1234_5678_9abc_def0);
            let mut room = [0u8; 1400];
            echo.write(7, 1301, &mut room).expect("written");
            assert!(!super::answer(&mut room[..1301].to_vec(), &[]), "not addressed to us");
            assert!(super::answer(&mut room[..1301], &own));
            assert_eq!(echo.recognise(&room[..1301]), Some((7, 1301)));
            assert!(!super::answer(&mut room[..1301], &own), "an answer is not answered");
        }
    }

    #[test]
    fn writes_a_whole_ipv4_echo_request() {
        let mut room = [0xffu8; 128];
        assert_eq!(ipv4().write(0x0102, 101, &mut room), Some(101));
        let packet = &room[..101];
        assert_eq!(packet[..10], [0x45, 0, 0, 101, 0, 0, 0x40, 0, 64, 1]);
        assert_eq!(packet[12..20], [10, 99, 0, 1, 10, 99, 0, 2]);
        assert_eq!(packet[20..22], [8, 0]);
        assert_eq!(packet[24..36], [0x12, 0x34, 1, 2, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert!(packet[36..].iter().all(|byte| *byte == 0), "filler");
        assert_eq!(room[101], 0xff, "nothing behind the packet is touched");
        assert_eq!(reference(&packet[..20]), 0xffff, "header checksum");
        assert_eq!(reference(&packet[20..]), 0xffff, "message checksum");
    }

    #[test]
    fn writes_a_whole_ipv6_echo_request() {
        let mut room = [0xffu8; 128];
        assert_eq!(ipv6().write(7, 57, &mut room), Some(57));
        let packet = &room[..57];
        assert_eq!(packet[..8], [0x60, 0, 0, 0, 0, 17, 58, 64]);
        assert_eq!(packet[40..42], [128, 0]);
        let mut covered = packet[8..40].to_vec();
        covered.extend([0, 0, 0, 17, 0, 0, 0, 58]);
        covered.extend(&packet[40..]);
        assert_eq!(reference(&covered), 0xffff, "checksum with pseudo-header");
    }

    #[test]
    fn recognises_the_answer_with_and_without_padding() {
        for (echo, lengths) in [(ipv4(), [36, 37, 552, 1420]), (ipv6(), [56, 57, 1279, 1420])] {
            for length in lengths {
                let mut packet = answer(&echo, 65_535, length);
                assert_eq!(echo.recognise(&packet), Some((65_535, length)), "{length} bytes");
                packet.extend([0; 15]);
                assert_eq!(echo.recognise(&packet), Some((65_535, length)), "{length} bytes, padded");
            }
        }
    }

    #[test]
    fn any_byte_that_matters_makes_it_another_packet() {
        for echo in [ipv4(), ipv6()] {
            let packet = answer(&echo, 9, echo.smallest() + 5);
            for at in 0..packet.len() {
                // The checksums cover the whole of ICMP, and the IPv4 header; of the IPv6 header they cover less:
                // traffic class, flow label and hop limit are anybody's to change.
                if echo.target.is_ipv6() && (at < 4 || at == 7) {
                    continue;
                }
                let mut changed = packet.clone();
                changed[at] ^= 0x10;
                assert_eq!(echo.recognise(&changed), None, "byte {at}");
            }
            for length in 0..packet.len() {
                assert_eq!(echo.recognise(&packet[..length]), None, "cut to {length}");
            }
        }
    }

    #[test]
    fn a_request_a_fragment_and_another_magic_are_not_ours() {
        let mut room = [0u8; 128];
        for echo in [ipv4(), ipv6()] {
            let length = echo.write(3, 80, &mut room).expect("fits");
            assert_eq!(echo.recognise(&room[..length]), None, "our own request");
            let other = Echo { magic: [9; 8], ..echo };
            assert_eq!(echo.recognise(&answer(&other, 3, 80)), None, "another magic");
        }
        let echo = ipv4();
        let mut fragment = answer(&echo, 3, 80);
        fragment[6] = 0x20;
        fragment[10..12].fill(0);
        let checksum = !reference(&fragment[..20]);
        fragment[10..12].copy_from_slice(&checksum.to_be_bytes());
        assert_eq!(reference(&fragment[..20]), 0xffff, "the checksum is right");
        assert_eq!(echo.recognise(&fragment), None, "more fragments follow");
    }

    #[test]
    fn what_cannot_be_written_is_refused() {
        let mut room = vec![0u8; 70_000];
        assert_eq!(ipv4().write(0, 35, &mut room), None, "no room for the magic");
        assert_eq!(ipv6().write(0, 55, &mut room), None, "no room for the magic");
        assert_eq!(ipv4().write(0, 65_536, &mut room), None, "more than the length field holds");
        assert_eq!(ipv6().write(0, 65_576, &mut room), None, "more than the length field holds");
        assert_eq!(ipv6().write(0, 65_575, &mut room), Some(65_575));
        assert_eq!(ipv4().write(0, 100, &mut room[..99]), None, "room too short");
        let mixed = Echo { source: ipv6().source, ..ipv4() };
        assert_eq!(mixed.write(0, 100, &mut room), None, "two families");
    }

    proptest! {
        #[test]
        fn never_panics(
            mut packet in prop::collection::vec(any::<u8>(), 0..100),
            first in prop::sample::select(vec![0x45u8, 0x40, 0x4f, 0x60]),
        ) {
            if packet.len() > 9 {
                packet[0] = first;
                packet[9] = ICMP;
                packet[6] = ICMPV6;
            }
            prop_assert_eq!(ipv4().recognise(&packet), None);
            prop_assert_eq!(ipv6().recognise(&packet), None);
        }

        #[test]
        fn never_panics_between_the_right_addresses(rest in prop::collection::vec(any::<u8>(), 0..80), options in 0u8..16) {
            let mut packet = vec![0x40 | options, 0, 0, 0, 0, 0, 0, 0, 64, ICMP, 0, 0, 10, 99, 0, 2, 10, 99, 0, 1];
            packet.extend(rest);
            packet[3] = packet.len() as u8;
            prop_assert_eq!(ipv4().recognise(&packet), None);
        }
    }

    fn ipv4() -> Echo {
        let (source, target) = ("10.99.0.1".parse().expect("ip"), "10.99.0.2".parse().expect("ip"));
        Echo { source, target, identifier: 0x1234, magic: [1, 2, 3, 4, 5, 6, 7, 8] }
    }

    fn ipv6() -> Echo {
        Echo { source: "fd00::1".parse().expect("ip"), target: "fd00::2".parse().expect("ip"), ..ipv4() }
    }

    /// What the target makes of our request: addresses swapped, another type, the checksum made anew.
    fn answer(echo: &Echo, sequence: u16, length: usize) -> Vec<u8> {
        let swapped = Echo { source: echo.target, target: echo.source, ..*echo };
        let mut packet = vec![0u8; length];
        swapped.write(sequence, length, &mut packet).expect("fits");
        let (at, kind, mut covered) = match (swapped.source, swapped.target) {
            (IpAddr::V6(source), IpAddr::V6(target)) => {
                let mut pseudo = [source.octets(), target.octets()].concat();
                pseudo.extend(((length - 40) as u32).to_be_bytes());
                pseudo.extend([0, 0, 0, 58]);
                (40, 129, pseudo)
            }
            (IpAddr::V4(_), _) | (IpAddr::V6(_), IpAddr::V4(_)) => (20, 0, Vec::new()),
        };
        packet[at] = kind;
        packet[at + 2..at + 4].fill(0);
        covered.extend(&packet[at..]);
        let checksum = !reference(&covered);
        packet[at + 2..at + 4].copy_from_slice(&checksum.to_be_bytes());
        packet
    }

    /// The folded sum in network byte order, the slow way.
    fn reference(bytes: &[u8]) -> u16 {
        let mut total = 0u32;
        for pair in bytes.chunks(2) {
            total += (u32::from(pair[0]) << 8) + pair.get(1).map_or(0, |low| u32::from(*low));
            total = (total & 0xffff) + (total >> 16);
        }
        total as u16
    }
}
