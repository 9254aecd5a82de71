//! Lowers the MSS that a TCP SYN offers to what fits through the tunnel.
//!
//! A host behind a gateway sees its own link's MTU and not the tunnel's. It learns of the difference by ICMP, which is
//! often filtered on the way. With the MSS lowered in both directions TCP never sends a segment that is too large.
//!
//! Only SYN and SYN-ACK carry the option, so almost every packet leaves after three comparisons: version, protocol, flag.
//! A SYN without the option is left as it is: the default of 536 (IPv6: 1220) fits. The MSS is the packet less the fixed
//! headers, 20 bytes of TCP and 20 or 40 of IP; options are not taken off (RFC 6691), that is the sender's part.
//! The checksum is updated and not made anew (RFC 1624), so a wrong one stays wrong.
//!
//! Left out: IPv6 fragments, and what stands behind extension headers other than hop-by-hop, routing and destination
//! options. Of several MSS options only the first is looked at. The checksum must be complete, which it is not yet in
//! what the kernel hands over with its checksum offloaded.
//!
//! Source: RFC 9293 §3.1 (header, options), §3.7.1 (MSS); RFC 6691; RFC 8200 §4 (extension headers).

use std::net::IpAddr;

use crate::offload::checksum;
use crate::packet::Header;

const TCP: u8 = 6;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const DESTINATION_OPTIONS: u8 = 60;
/// Extension headers walked before a packet passes unseen. RFC 8200 §4.1 has four of these kinds in a packet at most.
const EXTENSIONS: usize = 4;

/// Offsets in the TCP header, in bytes.
const DATA_OFFSET: usize = 12;
const FLAGS: usize = 13;
const CHECKSUM: usize = 16;
const OPTIONS: usize = 20;

const SYN: u8 = 0x02;
const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;
const MSS: u8 = 2;
/// Kind, length, and the value in two bytes.
const MSS_BYTES: usize = 4;

/// Lowers the MSS of `packet`, if it is a SYN that offers more than fits into `largest_packet` bytes of inner packet.
///
/// `packet` starts with a whole IP packet; what lies behind its length is not touched. True if it was changed.
#[inline]
pub(crate) fn clamp(packet: &mut [u8], largest_packet: usize) -> bool {
    let Some(start) = tcp_start(packet) else { return false };
    if packet.get(start + FLAGS).is_none_or(|flags| flags & SYN == 0) {
        return false;
    }
    lower(packet, start, largest_packet).is_some()
}

/// Where the TCP header begins. It is not certain yet that the packet is whole and no later fragment.
#[inline]
fn tcp_start(packet: &[u8]) -> Option<usize> {
    match *packet.first()? {
        first @ 0x45..=0x4f => (*packet.get(9)? == TCP).then_some(usize::from(first & 0x0f) * 4),
        0x60..=0x6f => match *packet.get(6)? {
            TCP => Some(40),
            next => tcp_behind_extensions(packet, next),
        },
        _ => None,
    }
}

fn tcp_behind_extensions(packet: &[u8], mut next: u8) -> Option<usize> {
    let mut at = 40;
    for _ in 0..EXTENSIONS {
        if !matches!(next, HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS) {
            return None;
        }
        next = *packet.get(at)?;
        at += (usize::from(*packet.get(at + 1)?) + 1) * 8;
        if next == TCP {
            return Some(at);
        }
    }
    None
}

/// None if nothing was changed.
#[cold]
fn lower(packet: &mut [u8], start: usize, largest_packet: usize) -> Option<()> {
    let header = Header::parse(packet)?;
    let fixed_headers = match header.source {
        IpAddr::V4(_) => {
            let fragment_offset = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x1fff;
            if fragment_offset > 0 {
                return None;
            }
            20 + OPTIONS
        }
        IpAddr::V6(_) => 40 + OPTIONS,
    };
    let largest = u16::try_from(largest_packet.saturating_sub(fixed_headers)).unwrap_or(u16::MAX);

    let tcp = packet.get_mut(start..header.length)?;
    let header_bytes = usize::from(*tcp.get(DATA_OFFSET)? >> 4) * 4;
    let at = OPTIONS + mss_value(tcp.get(OPTIONS..header_bytes)?)?;
    let before = [tcp[at], tcp[at + 1]];
    if u16::from_be_bytes(before) <= largest {
        return None;
    }
    let after = largest.to_be_bytes();
    tcp[at..at + 2].copy_from_slice(&after);
    checksum::update(&mut tcp[CHECKSUM..CHECKSUM + 2], summed_word(before, at), summed_word(after, at));
    Some(())
}

/// Where the value of the MSS option stands among `options`; both its bytes are inside.
fn mss_value(options: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match *options.get(at)? {
            END_OF_OPTIONS => return None,
            NO_OPERATION => at += 1,
            kind => {
                let length = usize::from(*options.get(at + 1)?);
                if kind == MSS {
                    return (length == MSS_BYTES && at + MSS_BYTES <= options.len()).then_some(at + 2);
                }
                if length < 2 {
                    return None;
                }
                at += length;
            }
        }
    }
}

/// What the two bytes at `at` of a TCP header are worth in its checksum, as a big-endian word.
///
/// At an odd place they belong to two words: the first is the second byte of one, the second the first byte of the next.
/// The sum does not mind which word a byte stands in, but on which side of it (RFC 1071 §2 B), so they count swapped.
const fn summed_word(bytes: [u8; 2], at: usize) -> u16 {
    let word = u16::from_be_bytes(bytes);
    if at & 1 == 0 { word } else { word.swap_bytes() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ACK: u8 = 0x10;

    #[test]
    fn lowers_what_a_syn_and_a_syn_ack_offer() {
        for flags in [SYN, SYN | ACK] {
            let mut packet = v4(&segment(flags, &[2, 4, 0x05, 0xb4], b""));
            assert!(clamp(&mut packet, 1340));
            assert_eq!(packet[42..44], 1300u16.to_be_bytes());
            assert_eq!(transport_sum(&packet, 20), 0xffff);

            let mut packet = v6(TCP, &[], &segment(flags, &[2, 4, 0x05, 0xa0], b""));
            assert!(clamp(&mut packet, 1340));
            assert_eq!(packet[62..64], 1280u16.to_be_bytes());
            assert_eq!(transport_sum(&packet, 40), 0xffff);
        }
    }

    #[test]
    fn leaves_what_fits() {
        let packet = v4(&segment(SYN, &[2, 4, 0x05, 0x14], b""));
        assert_unchanged(&packet, 1340, "exactly what fits");
        assert_unchanged(&v4(&segment(SYN, &[], b"")), 100, "no option");
        let mut packet = packet;
        assert!(clamp(&mut packet, 1339), "one byte less does not");
    }

    #[test]
    fn an_option_at_an_odd_place_keeps_the_checksum_right() {
        let mut packet = v4(&segment(SYN, &[1, 2, 4, 0x05, 0xb4, 1, 1, 1], b""));
        assert_eq!(transport_sum(&packet, 20), 0xffff);
        assert!(clamp(&mut packet, 1340));
        assert_eq!(packet[43..45], 1300u16.to_be_bytes());
        assert_eq!(transport_sum(&packet, 20), 0xffff);
    }

    #[test]
    fn finds_the_option_behind_others_and_not_behind_the_end() {
        let mut packet = v4(&segment(SYN, &[4, 2, 3, 3, 7, 1, 2, 4, 0x23, 0x28], b""));
        assert!(clamp(&mut packet, 1340));
        assert_eq!(packet[48..50], 1300u16.to_be_bytes());
        assert_unchanged(&v4(&segment(SYN, &[0, 0, 0, 0, 2, 4, 0x23, 0x28], b"")), 1340, "behind the end of options");
        assert_unchanged(&v4(&segment(SYN, &[], &[2, 4, 0x23, 0x28])), 1340, "payload is no option");
        assert_unchanged(&v4(&segment(SYN, &[3, 0, 2, 4, 0x23, 0x28], b"")), 1340, "an option of no length");
        assert_unchanged(&v4(&segment(SYN, &[2, 3, 0x23, 0x28], b"")), 1340, "an MSS of another length");
    }

    #[test]
    fn walks_extension_headers_of_ipv6() {
        let mut extensions = [0u8; 32];
        extensions[0] = ROUTING;
        extensions[8..10].copy_from_slice(&[DESTINATION_OPTIONS, 1]);
        extensions[24] = TCP;
        let mut packet = v6(HOP_BY_HOP, &extensions, &segment(SYN, &[2, 4, 0x23, 0x28], b""));
        assert!(clamp(&mut packet, 1400));
        assert_eq!(packet[94..96], 1340u16.to_be_bytes());
        assert_eq!(transport_sum(&packet, 72), 0xffff);

        let fragment = [TCP, 0, 0, 0, 0, 0, 0, 1];
        assert_unchanged(&v6(44, &fragment, &segment(SYN, &[2, 4, 0x23, 0x28], b"")), 1400, "a fragment");
        let mut long = [HOP_BY_HOP, 0, 1, 4, 0, 0, 0, 0].repeat(EXTENSIONS + 1);
        long[8 * EXTENSIONS] = TCP;
        assert_unchanged(&v6(HOP_BY_HOP, &long, &segment(SYN, &[2, 4, 0x23, 0x28], b"")), 1400, "too many");
    }

    #[test]
    fn passes_what_is_no_syn() {
        assert_unchanged(&v4(&segment(ACK, &[2, 4, 0x23, 0x28], b"data")), 1340, "no SYN");
        let syn = v4(&segment(SYN, &[2, 4, 0x23, 0x28], b""));

        let mut later_fragment = syn.clone();
        later_fragment[6..8].copy_from_slice(&[0x20, 0x01]);
        assert_unchanged(&later_fragment, 1340, "a fragment with an offset");

        let mut udp = syn.clone();
        udp[9] = 17;
        assert_unchanged(&udp, 1340, "UDP");

        let mut cut = syn.clone();
        cut.truncate(43);
        assert_unchanged(&cut, 1340, "not whole");

        let mut short = syn;
        short[3] = 43;
        assert_unchanged(&short, 1340, "the option lies behind the packet's own end");
    }

    proptest! {
        #[test]
        fn never_offers_more_and_never_breaks_a_checksum(
            over_ipv6: bool,
            ack: bool,
            nops in 0usize..5,
            mss: u16,
            largest in 0usize..70_000,
            payload in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            let mut options = vec![NO_OPERATION; nops];
            options.extend_from_slice(&[MSS, 4]);
            options.extend_from_slice(&mss.to_be_bytes());
            let tcp = segment(if ack { SYN | ACK } else { SYN }, &options, &payload);
            let (before, start) = if over_ipv6 { (v6(TCP, &[], &tcp), 40) } else { (v4(&tcp), 20) };
            let mut after = before.clone();

            let changed = clamp(&mut after, largest);

            let fits = largest.saturating_sub(start + 20).min(usize::from(u16::MAX)) as u16;
            let at = start + 20 + nops + 2;
            prop_assert_eq!(changed, mss > fits);
            prop_assert_eq!(u16::from_be_bytes([after[at], after[at + 1]]), mss.min(fits));
            prop_assert_eq!(transport_sum(&after, start), 0xffff);
            after[at..at + 2].copy_from_slice(&before[at..at + 2]);
            after[start + 16..start + 18].copy_from_slice(&before[start + 16..start + 18]);
            prop_assert_eq!(after, before, "nothing else changes");
        }

        #[test]
        fn never_panics(mut packet in prop::collection::vec(any::<u8>(), 0..120), kind in 0u8..3, largest in 0usize..2000) {
            if packet.len() >= 40 {
                // Most bytes are refused at once: lead some of them further in.
                let length = packet.len();
                match kind {
                    0 => {
                        packet[0] = 0x45 + (packet[0] & 3);
                        packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
                        packet[6..8].fill(0);
                        packet[9] = TCP;
                    }
                    1 => {
                        packet[0] = 0x60;
                        packet[4..6].copy_from_slice(&((length - 40) as u16).to_be_bytes());
                        packet[6] = [TCP, HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS][usize::from(packet[6] & 3)];
                    }
                    _ => {}
                }
            }
            let length = packet.len();
            clamp(&mut packet, largest);
            prop_assert_eq!(packet.len(), length);
        }
    }

    fn assert_unchanged(packet: &[u8], largest: usize, why: &str) {
        let mut after = packet.to_vec();
        assert!(!clamp(&mut after, largest), "{why}");
        assert_eq!(after, packet, "{why}");
    }

    /// A TCP segment whose options are padded to whole words; its checksum is zero.
    fn segment(flags: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
        let mut tcp = vec![0u8; OPTIONS];
        tcp[..4].copy_from_slice(&[0x9c, 0x40, 0x01, 0xbb]);
        tcp[4..8].copy_from_slice(&[1, 2, 3, 4]);
        tcp[14..16].copy_from_slice(&[0xfa, 0xf0]);
        tcp.extend_from_slice(options);
        tcp.resize(tcp.len().next_multiple_of(4), 0);
        tcp[DATA_OFFSET] = ((tcp.len() / 4) as u8) << 4;
        tcp[FLAGS] = flags;
        tcp.extend_from_slice(payload);
        tcp
    }

    fn v4(tcp: &[u8]) -> Vec<u8> {
        let mut packet = vec![0u8; 20];
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&((20 + tcp.len()) as u16).to_be_bytes());
        packet[6] = 0x40;
        packet[8] = 64;
        packet[9] = TCP;
        packet[12..20].copy_from_slice(&[10, 1, 0, 1, 10, 2, 0, 1]);
        packet.extend_from_slice(tcp);
        with_checksum(packet, 20)
    }

    fn v6(next: u8, extensions: &[u8], tcp: &[u8]) -> Vec<u8> {
        let mut packet = vec![0u8; 40];
        packet[0] = 0x60;
        packet[4..6].copy_from_slice(&((extensions.len() + tcp.len()) as u16).to_be_bytes());
        packet[6] = next;
        packet[7] = 64;
        packet[8] = 0xfd;
        packet[23] = 1;
        packet[24] = 0xfd;
        packet[39] = 2;
        packet.extend_from_slice(extensions);
        packet.extend_from_slice(tcp);
        with_checksum(packet, 40 + extensions.len())
    }

    fn with_checksum(mut packet: Vec<u8>, start: usize) -> Vec<u8> {
        let field = !transport_sum(&packet, start);
        packet[start + CHECKSUM..start + CHECKSUM + 2].copy_from_slice(&field.to_be_bytes());
        packet
    }

    /// The slow way: all words of pseudo-header and segment, folded; 0xffff if the checksum is right.
    fn transport_sum(packet: &[u8], start: usize) -> u16 {
        let addresses = if packet[0] >> 4 == 4 { &packet[12..20] } else { &packet[8..40] };
        let segment = &packet[start..];
        let mut sum = words(addresses) + u32::from(TCP) + segment.len() as u32 + words(segment);
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    fn words(bytes: &[u8]) -> u32 {
        bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]))).sum()
    }
}
