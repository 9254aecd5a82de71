//! Tells the sender of a packet that it is too large for the tunnel: ICMP "fragmentation needed", ICMPv6 "packet too big".
//!
//! Without the answer a sender that does path MTU discovery never learns why its packets vanish. The kernel answers
//! for packets over the device's MTU; this answers for those that the kernel let in, because the path turned out
//! smaller than the device, or because the packet came from another place than the device.
//!
//! The answer bears as its source the destination of the packet that it is about. A router would take an address of
//! its own, but the host that we hand the answer to is the one that owns our addresses, and it drops what claims to
//! come from itself (a martian). The sender looks at the quoted packet only, and the source is one that it talks to.
//!
//! Left out: RFC 4443 §2.4 (e.3) wants "packet too big" for multicast too; with our choice of source it would come from
//! a multicast address, so it is not sent. A directed broadcast cannot be told from a host here. What AH or ESP hides
//! is not looked into.
//!
//! Source: RFC 1191 §4, RFC 1122 §3.2.2, RFC 1812 §4.3.2 (IPv4); RFC 4443 §2.4 and §3.2, RFC 8201 (IPv6).

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use crate::offload::checksum;
use crate::packet::Header;

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const ICMP_HEADER_BYTES: usize = 8;
const TTL: u8 = 64;

const IPV4_BYTES: usize = 20;
/// Largest answer, IP header included (RFC 1812 §4.3.2.3).
const ICMP_ANSWER_BYTES: usize = 576;
/// Least MTU of a link that carries IPv4 (RFC 791 §3.2): what is told is never below.
const IPV4_LEAST_MTU: u32 = 68;
/// Precedence "internetwork control" (RFC 1812 §4.3.2.5).
const IPV4_TOS: u8 = 0xc0;
const DONT_FRAGMENT: u16 = 0x4000;
const FRAGMENT_OFFSET: u16 = 0x1fff;

const IPV6_BYTES: usize = 40;
/// Least MTU of a link that carries IPv6 (RFC 8200 §5): the largest answer (RFC 4443 §3.2), and what is told is never below.
const IPV6_LEAST_MTU: usize = 1280;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;
/// Extension headers walked before a packet goes unanswered: twice what RFC 8200 §4.1 recommends.
const EXTENSIONS: usize = 10;

/// Writes into `room` the ICMP answer to `packet`, of which no more than `largest` bytes fit; returns its length.
///
/// `packet` starts with a whole IP packet, `room` with the answer, IP header included: at most 576 bytes for IPv4 and
/// 1,280 for IPv6. None if there must not be an answer, or `room` is too short for it:
///
/// - IPv4 without DF, which may be fragmented instead, and any fragment but the first;
/// - an ICMP error (IPv6: any error, and a redirect);
/// - a source or destination that is multicast, broadcast, unspecified or loopback;
/// - a packet no longer than what would be told. Below 1,280 bytes that cannot be less for IPv6: there the tunnel has
///   to carry the packet all the same, in fragments of its own.
pub(crate) fn answer(packet: &[u8], largest: u32, room: &mut [u8]) -> Option<usize> {
    let header = Header::parse(packet)?;
    if !(is_one_host(header.source) && is_one_host(header.destination)) {
        return None;
    }
    let packet = packet.get(..header.length)?;
    match header.source {
        IpAddr::V4(_) => answer_v4(packet, largest, room),
        IpAddr::V6(_) => answer_v6(packet, largest, room),
    }
}

fn answer_v4(packet: &[u8], largest: u32, room: &mut [u8]) -> Option<usize> {
    let mtu = u16::try_from(largest.max(IPV4_LEAST_MTU)).unwrap_or(u16::MAX);
    let fragmentation = u16::from_be_bytes(array(packet, 6)?);
    let may_be_answered = fragmentation & DONT_FRAGMENT != 0 && fragmentation & FRAGMENT_OFFSET == 0;
    if !may_be_answered || packet.len() <= usize::from(mtu) {
        return None;
    }
    let header_bytes = usize::from(*packet.first()? & 0x0f) * 4;
    if header_bytes < IPV4_BYTES {
        return None;
    }
    let &first_behind_header = packet.get(header_bytes)?;
    if *packet.get(9)? == ICMP && is_icmp_error(first_behind_header) {
        return None;
    }

    let quoted = packet.len().min(ICMP_ANSWER_BYTES - IPV4_BYTES - ICMP_HEADER_BYTES);
    let length = IPV4_BYTES + ICMP_HEADER_BYTES + quoted;
    let (ip, icmp) = room.get_mut(..length)?.split_at_mut(IPV4_BYTES);
    ip.fill(0);
    ip[0] = 0x45;
    ip[1] = IPV4_TOS;
    ip[2..4].copy_from_slice(&(length as u16).to_be_bytes());
    ip[6..8].copy_from_slice(&DONT_FRAGMENT.to_be_bytes());
    ip[8] = TTL;
    ip[9] = ICMP;
    ip[12..16].copy_from_slice(&packet[16..20]);
    ip[16..20].copy_from_slice(&packet[12..16]);
    let field = !checksum::fold(checksum::sum(ip));
    ip[10..12].copy_from_slice(&field.to_ne_bytes());

    // Destination unreachable (3), fragmentation needed (4): checksum, two bytes unused, next-hop MTU (RFC 1191 §4).
    icmp[..6].copy_from_slice(&[3, 4, 0, 0, 0, 0]);
    icmp[6..8].copy_from_slice(&mtu.to_be_bytes());
    icmp[ICMP_HEADER_BYTES..].copy_from_slice(&packet[..quoted]);
    let field = !checksum::fold(checksum::sum(icmp));
    icmp[2..4].copy_from_slice(&field.to_ne_bytes());
    Some(length)
}

fn answer_v6(packet: &[u8], largest: u32, room: &mut [u8]) -> Option<usize> {
    let mtu = largest.max(IPV6_LEAST_MTU as u32);
    if packet.len() <= mtu as usize {
        return None;
    }
    let (protocol, at) = upper_layer_v6(packet)?;
    if protocol == ICMPV6 && is_icmpv6_error_or_redirect(*packet.get(at)?) {
        return None;
    }

    let quoted = packet.len().min(IPV6_LEAST_MTU - IPV6_BYTES - ICMP_HEADER_BYTES);
    let icmp_bytes = ICMP_HEADER_BYTES + quoted;
    let length = IPV6_BYTES + icmp_bytes;
    let (ip, icmp) = room.get_mut(..length)?.split_at_mut(IPV6_BYTES);
    ip.fill(0);
    ip[0] = 0x60;
    ip[4..6].copy_from_slice(&(icmp_bytes as u16).to_be_bytes());
    ip[6] = ICMPV6;
    ip[7] = TTL;
    ip[8..24].copy_from_slice(&packet[24..40]);
    ip[24..40].copy_from_slice(&packet[8..24]);

    // Packet too big (2), code 0: checksum, MTU (RFC 4443 §3.2).
    icmp[..4].copy_from_slice(&[2, 0, 0, 0]);
    icmp[4..8].copy_from_slice(&mtu.to_be_bytes());
    icmp[ICMP_HEADER_BYTES..].copy_from_slice(&packet[..quoted]);
    let field = !checksum::fold(checksum::pseudo_header(ip, ICMPV6, icmp_bytes) + checksum::sum(icmp));
    icmp[2..4].copy_from_slice(&field.to_ne_bytes());
    Some(length)
}

/// The protocol of an IPv6 packet and where its header begins.
///
/// None for a fragment other than the first, and for a chain of extension headers that is cut off or too long.
fn upper_layer_v6(packet: &[u8]) -> Option<(u8, usize)> {
    let (mut next, mut at) = (*packet.get(6)?, IPV6_BYTES);
    for _ in 0..EXTENSIONS {
        let bytes = match next {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => (usize::from(*packet.get(at + 1)?) + 1) * 8,
            FRAGMENT => {
                let offset_and_flags = u16::from_be_bytes(array(packet, at + 2)?);
                if offset_and_flags >> 3 != 0 {
                    return None;
                }
                8
            }
            protocol => return Some((protocol, at)),
        };
        next = *packet.get(at)?;
        at += bytes;
    }
    None
}

/// Destination unreachable, source quench, redirect, time exceeded, parameter problem (RFC 1122 §3.2.2).
const fn is_icmp_error(kind: u8) -> bool {
    matches!(kind, 3 | 4 | 5 | 11 | 12)
}

/// Errors are the types below 128 (RFC 4443 §2.1); a redirect, 137, must not be answered either (§2.4 e.2).
const fn is_icmpv6_error_or_redirect(kind: u8) -> bool {
    kind < 128 || kind == 137
}

/// Whether an address can be that of one host, which an answer may go to and come from.
fn is_one_host(address: IpAddr) -> bool {
    !(address.is_multicast() || address.is_unspecified() || address.is_loopback() || address == IpAddr::V4(Ipv4Addr::BROADCAST))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

/// How many answers may be made: 50 at once, 100 a second in the long run.
///
/// A sender that does not listen would otherwise get an answer to each of its packets (RFC 1812 §4.3.2.8, RFC 4443 §2.4 f).
/// No loss to others: path MTU discovery needs one answer and asks again with its next packet.
#[derive(Debug)]
pub(crate) struct Budget {
    /// Each answer takes one `EVERY` from here on. A moment that lies ahead is what is owed; behind, the bucket is full.
    booked_until: Instant,
}

const ANSWERS_PER_SECOND: u64 = 100;
const ANSWERS_AT_ONCE: u64 = 50;
const EVERY: Duration = Duration::from_millis(1000 / ANSWERS_PER_SECOND);
/// What may be owed while one more answer is still allowed.
const MOST_OWED: Duration = Duration::from_millis((ANSWERS_AT_ONCE - 1) * 1000 / ANSWERS_PER_SECOND);

impl Budget {
    pub(crate) const fn new(now: Instant) -> Self {
        Self { booked_until: now }
    }

    /// Whether an answer may be made at `now`; if so, it is counted.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        let from = self.booked_until.max(now);
        if from.saturating_duration_since(now) > MOST_OWED {
            return false;
        }
        self.booked_until = from + EVERY;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UDP: u8 = 17;
    const TCP: u8 = 6;

    #[test]
    fn ipv4_is_told_that_fragmentation_is_needed() {
        let packet = v4(TCP, 1400);
        let mut room = [0xaau8; 2000];
        let length = answer(&packet, 1340, &mut room).expect("an answer");
        assert_eq!(length, 576);
        let (ip, icmp) = room[..length].split_at(20);
        assert_eq!(ip[..10], [0x45, 0xc0, 0x02, 0x40, 0, 0, 0x40, 0, 64, ICMP]);
        assert_eq!(ip[12..16], [10, 2, 0, 1], "from where the packet was going");
        assert_eq!(ip[16..20], [10, 1, 0, 1], "to where it came from");
        assert_eq!(folded(words(ip)), 0xffff);
        assert_eq!(icmp[..2], [3, 4]);
        assert_eq!(icmp[4..8], [0, 0, 0x05, 0x3c], "next-hop MTU");
        assert_eq!(icmp[8..], packet[..548]);
        assert_eq!(folded(words(icmp)), 0xffff);
        assert!(room[length..].iter().all(|byte| *byte == 0xaa), "nothing is written behind the answer");
    }

    #[test]
    fn ipv6_is_told_that_the_packet_is_too_big() {
        let packet = v6(UDP, &[], 1400);
        let mut room = [0xaau8; 2000];
        let length = answer(&packet, 1340, &mut room).expect("an answer");
        assert_eq!(length, 1280);
        let (ip, icmp) = room[..length].split_at(40);
        assert_eq!(ip[..8], [0x60, 0, 0, 0, 0x04, 0xd8, ICMPV6, 64]);
        assert_eq!(ip[8..24], packet[24..40]);
        assert_eq!(ip[24..40], packet[8..24]);
        assert_eq!(icmp[..2], [2, 0]);
        assert_eq!(icmp[4..8], 1340u32.to_be_bytes());
        assert_eq!(icmp[8..], packet[..1232]);
        assert_eq!(icmpv6_sum(&room[..length]), 0xffff);
        assert!(room[length..].iter().all(|byte| *byte == 0xaa), "nothing is written behind the answer");
    }

    #[test]
    fn a_small_packet_is_quoted_whole_and_its_padding_is_not() {
        let mut packet = v4(UDP, 101);
        packet.extend_from_slice(&[0; 11]);
        let mut room = [0u8; 576];
        let length = answer(&packet, 100, &mut room).expect("an answer");
        assert_eq!(length, 28 + 101);
        assert_eq!(room[28..length], packet[..101]);
        assert_eq!(folded(words(&room[20..length])), 0xffff);
    }

    #[test]
    fn never_tells_less_than_a_link_must_carry() {
        let mut room = [0u8; 1280];
        answer(&v6(UDP, &[], 1400), 1200, &mut room).expect("an answer");
        assert_eq!(room[44..48], 1280u32.to_be_bytes());
        assert_eq!(answer(&v6(UDP, &[], 1280), 1200, &mut room), None, "there is nothing smaller to ask for");
        answer(&v4(UDP, 1400), 0, &mut room).expect("an answer");
        assert_eq!(room[26..28], 68u16.to_be_bytes());
    }

    #[test]
    fn a_packet_that_fits_gets_no_answer() {
        let mut room = [0u8; 1280];
        assert_eq!(answer(&v4(UDP, 1340), 1340, &mut room), None);
        assert!(answer(&v4(UDP, 1341), 1340, &mut room).is_some());
        assert_eq!(answer(&v6(UDP, &[], 1340), 1340, &mut room), None);
        assert!(answer(&v6(UDP, &[], 1341), 1340, &mut room).is_some());
    }

    #[test]
    fn ipv4_that_may_be_fragmented_gets_no_answer() {
        let mut room = [0u8; 1280];
        for (flags, answered) in [(0x0000u16, false), (0x2000, false), (0x4000, true), (0x6000, true), (0x4001, false), (0x5fff, false)] {
            let mut packet = v4(UDP, 1400);
            packet[6..8].copy_from_slice(&flags.to_be_bytes());
            assert_eq!(answer(&packet, 1340, &mut room).is_some(), answered, "{flags:#06x}");
        }
    }

    #[test]
    fn only_the_first_fragment_of_ipv6_gets_an_answer() {
        let mut room = [0u8; 1280];
        for (offset_and_flags, answered) in [(0x0000u16, true), (0x0001, true), (0x0008, false), (0xfff9, false)] {
            let [high, low] = offset_and_flags.to_be_bytes();
            let packet = v6(FRAGMENT, &[UDP, 0, high, low, 0, 0, 0, 1], 1400);
            assert_eq!(answer(&packet, 1340, &mut room).is_some(), answered, "{offset_and_flags:#06x}");
        }
    }

    #[test]
    fn icmp_errors_get_no_answer() {
        let mut room = [0u8; 1280];
        for (kind, answered) in [(0, true), (8, true), (13, true), (3, false), (4, false), (5, false), (11, false), (12, false)] {
            let mut packet = v4(ICMP, 1400);
            packet[20] = kind;
            assert_eq!(answer(&packet, 1340, &mut room).is_some(), answered, "ICMP type {kind}");

            let mut with_options = v4(ICMP, 1400);
            with_options[0] = 0x46;
            with_options[20] = 8;
            with_options[24] = kind;
            assert_eq!(answer(&with_options, 1340, &mut room).is_some(), answered, "ICMP type {kind} behind options");
        }
        for (kind, answered) in [(128, true), (129, true), (135, true), (0, false), (1, false), (2, false), (127, false), (137, false)] {
            let mut packet = v6(ICMPV6, &[], 1400);
            packet[40] = kind;
            assert_eq!(answer(&packet, 1340, &mut room).is_some(), answered, "ICMPv6 type {kind}");

            let mut behind = v6(DESTINATION_OPTIONS, &[ICMPV6, 0, 1, 4, 0, 0, 0, 0], 1400);
            behind[48] = kind;
            assert_eq!(answer(&behind, 1340, &mut room).is_some(), answered, "ICMPv6 type {kind} behind options");
        }
    }

    #[test]
    fn only_single_hosts_get_and_give_answers() {
        let mut room = [0u8; 1280];
        for (address, answered) in
            [([192, 0, 2, 7], true), ([224, 0, 0, 1], false), ([255; 4], false), ([0; 4], false), ([127, 0, 0, 1], false)]
        {
            for at in [12, 16] {
                let mut packet = v4(UDP, 1400);
                packet[at..at + 4].copy_from_slice(&address);
                assert_eq!(answer(&packet, 1340, &mut room).is_some(), answered, "{address:?} at {at}");
            }
        }
        for (address, answered) in [("2001:db8::7", true), ("ff02::1", false), ("::", false), ("::1", false)] {
            let bytes = address.parse::<std::net::Ipv6Addr>().expect("an address").octets();
            for at in [8, 24] {
                let mut packet = v6(UDP, &[], 1400);
                packet[at..at + 16].copy_from_slice(&bytes);
                assert_eq!(answer(&packet, 1340, &mut room).is_some(), answered, "{address} at {at}");
            }
        }
    }

    #[test]
    fn too_little_room_is_no_answer() {
        assert_eq!(answer(&v4(UDP, 1400), 1340, &mut [0; 575]), None);
        assert_eq!(answer(&v4(UDP, 1400), 1340, &mut [0; 576]), Some(576));
        assert_eq!(answer(&v6(UDP, &[], 1400), 1340, &mut [0; 1279]), None);
        assert_eq!(answer(&v6(UDP, &[], 1400), 1340, &mut [0; 1280]), Some(1280));
    }

    #[test]
    fn the_budget_allows_a_burst_and_then_a_rate() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let taken = |budget: &mut Budget, now| (0..1000).take_while(|_| budget.take(now)).count();
        assert_eq!(taken(&mut budget, start), 50);
        assert_eq!(taken(&mut budget, start + Duration::from_millis(9)), 0);
        assert_eq!(taken(&mut budget, start + Duration::from_millis(10)), 1);
        assert_eq!(taken(&mut budget, start + Duration::from_millis(210)), 20);
        assert_eq!(taken(&mut budget, start + Duration::from_secs(3600)), 50, "never more than the burst");
        assert!(!budget.take(start), "a moment in the past earns nothing");
    }

    proptest! {
        #[test]
        fn never_panics_and_every_answer_is_right(
            mut packet in prop::collection::vec(any::<u8>(), 0..1600),
            over_ipv6: bool,
            largest: u32,
            small in 0u32..1500,
            take_small: bool,
        ) {
            // Most bytes are refused at once: lead them further in.
            if packet.len() > 48 {
                let length = packet.len();
                if over_ipv6 {
                    packet[0] = 0x60;
                    packet[4..6].copy_from_slice(&((length - 40) as u16).to_be_bytes());
                    packet[6] = [UDP, HOP_BY_HOP, FRAGMENT, ICMPV6][usize::from(packet[6] & 3)];
                } else {
                    packet[0] = 0x44 + (packet[0] & 3);
                    packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
                    packet[6..8].copy_from_slice(&[0x40, 0]);
                }
            }
            let largest = if take_small { small } else { largest };
            let mut room = [0u8; 1280];
            if let Some(length) = answer(&packet, largest, &mut room) {
                let header = Header::parse(&room).expect("an answer is a whole packet");
                prop_assert_eq!(header.length, length);
                let about = Header::parse(&packet).expect("only whole packets are answered");
                prop_assert_eq!((header.source, header.destination), (about.destination, about.source));
                if header.source.is_ipv4() {
                    prop_assert!((48..=576).contains(&length));
                    prop_assert_eq!(folded(words(&room[..20])), 0xffff);
                    prop_assert_eq!(folded(words(&room[20..length])), 0xffff);
                    prop_assert_eq!(answer(&room[..length], 0, &mut [0; 1280]), None, "an answer is not answered");
                } else {
                    prop_assert_eq!(length, 1280);
                    prop_assert_eq!(icmpv6_sum(&room[..length]), 0xffff);
                }
            }
        }

        #[test]
        fn the_budget_keeps_its_rate(steps in prop::collection::vec(0u64..40, 1..400)) {
            let start = Instant::now();
            let mut budget = Budget::new(start);
            let (mut at_ms, mut taken) = (0, 0);
            for step in steps {
                at_ms += step;
                taken += u64::from(budget.take(start + Duration::from_millis(at_ms)));
                prop_assert!(taken <= ANSWERS_AT_ONCE + at_ms * ANSWERS_PER_SECOND / 1000);
            }
        }
    }

    fn v4(protocol: u8, length: usize) -> Vec<u8> {
        let mut packet: Vec<u8> = (0..length).map(|at| at as u8).collect();
        packet[..12].copy_from_slice(&[0x45, 0, 0, 0, 0, 1, 0x40, 0, 63, protocol, 0, 0]);
        packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
        packet[12..20].copy_from_slice(&[10, 1, 0, 1, 10, 2, 0, 1]);
        packet
    }

    fn v6(next: u8, extensions: &[u8], length: usize) -> Vec<u8> {
        let mut packet: Vec<u8> = (0..length).map(|at| at as u8).collect();
        packet[..40].fill(0);
        packet[0] = 0x60;
        packet[4..6].copy_from_slice(&((length - 40) as u16).to_be_bytes());
        packet[6] = next;
        packet[7] = 63;
        packet[8] = 0xfd;
        packet[23] = 1;
        packet[24] = 0xfd;
        packet[39] = 2;
        packet[40..40 + extensions.len()].copy_from_slice(extensions);
        packet
    }

    /// The slow way: 0xffff if the checksum is right.
    fn icmpv6_sum(packet: &[u8]) -> u16 {
        let icmp = &packet[40..];
        folded(words(&packet[8..40]) + icmp.len() as u32 + u32::from(ICMPV6) + words(icmp))
    }

    fn words(bytes: &[u8]) -> u32 {
        bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]))).sum()
    }

    const fn folded(mut sum: u32) -> u16 {
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }
}
