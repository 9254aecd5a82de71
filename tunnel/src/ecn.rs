//! Congestion marks across the tunnel (ECN).
//!
//! A router on the way that marks instead of dropping can only mark the outer header. Were it thrown away with the outer
//! header, the sender would never hear of the congestion. So the inner mark is copied outward when a packet is sealed
//! (normal mode), and what the outer header gathered is joined into the inner one when it is opened.
//!
//! Only the two ECN bits are looked at: DSCP is not copied either way. The combinations that RFC 6040 calls dangerous
//! are treated as its figure says, but not reported. Compatibility mode is left out: it is for old ends of a tunnel
//! that do not join the marks.
//!
//! Source: RFC 6040 §4.1 (outward, figure 3), §4.2 (inward, figure 4); the bits: RFC 3168 §5.

use crate::offload::checksum;

/// The transport does not understand marks.
pub(crate) const NOT_ECT: u8 = 0b00;
pub(crate) const ECT_1: u8 = 0b01;
pub(crate) const ECT_0: u8 = 0b10;
/// Congestion experienced.
pub(crate) const CE: u8 = 0b11;

const MASK: u8 = 0b11;

/// The ECN bits of an IP packet; `NOT_ECT` if it is none.
#[inline]
pub(crate) const fn of(packet: &[u8]) -> u8 {
    match packet {
        [0x40..=0x4f, tos, ..] => *tos & MASK,
        [0x60..=0x6f, class_and_label, ..] => (*class_and_label >> 4) & MASK,
        _ => NOT_ECT,
    }
}

/// The ECN bits of the outer header for a packet with `inner`: the same (RFC 6040 §4.1, normal mode).
#[inline]
pub(crate) const fn outward(inner: u8) -> u8 {
    inner & MASK
}

/// Joins the ECN bits `outer` of the datagram into the `packet` that it held; an IPv4 header checksum follows.
///
/// False if the packet must be dropped: it was marked on the way, and its transport would not understand the mark.
/// What is no IP packet is left as it is.
#[inline]
pub(crate) fn inward(packet: &mut [u8], outer: u8) -> bool {
    let inner = of(packet);
    let Some(joined) = join(inner, outer & MASK) else { return false };
    if joined != inner {
        set(packet, joined);
    }
    true
}

/// RFC 6040 figure 4. None: drop.
const fn join(inner: u8, outer: u8) -> Option<u8> {
    match (inner, outer) {
        (NOT_ECT, CE) => None,
        (ECT_0 | ECT_1, CE) => Some(CE),
        (ECT_0, ECT_1) => Some(ECT_1),
        _ => Some(inner),
    }
}

fn set(packet: &mut [u8], mark: u8) {
    match packet {
        [version_and_length @ 0x40..=0x4f, tos, _, _, _, _, _, _, _, _, checksum_0, checksum_1, ..] => {
            let before = u16::from_be_bytes([*version_and_length, *tos]);
            *tos = (*tos & !MASK) | mark;
            let after = u16::from_be_bytes([*version_and_length, *tos]);
            let mut field = [*checksum_0, *checksum_1];
            checksum::update(&mut field, before, after);
            [*checksum_0, *checksum_1] = field;
        }
        [0x60..=0x6f, class_and_label, ..] => *class_and_label = (*class_and_label & !(MASK << 4)) | (mark << 4),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 6040 figure 4: inner, outer, what goes on. None: dropped.
    const FIGURE_4: [(u8, u8, Option<u8>); 16] = [
        (NOT_ECT, NOT_ECT, Some(NOT_ECT)),
        (NOT_ECT, ECT_0, Some(NOT_ECT)),
        (NOT_ECT, ECT_1, Some(NOT_ECT)),
        (NOT_ECT, CE, None),
        (ECT_0, NOT_ECT, Some(ECT_0)),
        (ECT_0, ECT_0, Some(ECT_0)),
        (ECT_0, ECT_1, Some(ECT_1)),
        (ECT_0, CE, Some(CE)),
        (ECT_1, NOT_ECT, Some(ECT_1)),
        (ECT_1, ECT_0, Some(ECT_1)),
        (ECT_1, ECT_1, Some(ECT_1)),
        (ECT_1, CE, Some(CE)),
        (CE, NOT_ECT, Some(CE)),
        (CE, ECT_0, Some(CE)),
        (CE, ECT_1, Some(CE)),
        (CE, CE, Some(CE)),
    ];

    #[test]
    fn joins_as_figure_4_says() {
        for (inner, outer, joined) in FIGURE_4 {
            for mut packet in [v4(0xb8 | inner), v6(0xb8 | inner)] {
                let before = packet.clone();
                assert_eq!(inward(&mut packet, outer), joined.is_some(), "inner {inner:02b}, outer {outer:02b}");
                match joined {
                    Some(joined) => {
                        let expected = if before[0] == 0x45 { v4(0xb8 | joined) } else { v6(0xb8 | joined) };
                        assert_eq!(packet, expected, "inner {inner:02b}, outer {outer:02b}");
                    }
                    None => assert_eq!(packet, before, "what is dropped is not touched"),
                }
            }
        }
    }

    #[test]
    fn the_outer_mark_is_the_inner_one() {
        for mark in [NOT_ECT, ECT_0, ECT_1, CE] {
            assert_eq!(of(&v4(0xb8 | mark)), mark);
            assert_eq!(of(&v6(0xb8 | mark)), mark);
            assert_eq!(outward(mark), mark);
        }
    }

    #[test]
    fn only_the_two_bits_of_the_outer_field_count() {
        let mut packet = v4(ECT_0);
        assert!(inward(&mut packet, 0xb8 | CE));
        assert_eq!(packet, v4(CE));
        assert_eq!(outward(0xb8 | ECT_1), ECT_1);
    }

    proptest! {
        #[test]
        fn never_panics_and_changes_only_mark_and_checksum(mut packet in prop::collection::vec(any::<u8>(), 0..50), ipv4: bool, outer: u8) {
            if let Some(first) = packet.first_mut() {
                *first = if ipv4 { 0x45 } else { 0x60 };
            }
            let before = packet.clone();
            let inner = of(&before);
            if inward(&mut packet, outer) && packet.len() >= 20 {
                prop_assert_eq!(Some(of(&packet)), join(inner, outer & MASK));
            }
            for (at, (old, new)) in before.iter().zip(&packet).enumerate() {
                let may_differ = match (at, ipv4) {
                    (1, true) => MASK,
                    (1, false) => MASK << 4,
                    (10 | 11, true) => 0xff,
                    _ => 0,
                };
                prop_assert_eq!(old & !may_differ, new & !may_differ, "byte {}", at);
            }
        }

        #[test]
        fn a_right_checksum_stays_right(tos: u8, outer: u8, id: u16) {
            let mut packet = v4(tos);
            packet[4..6].copy_from_slice(&id.to_be_bytes());
            seal(&mut packet);
            prop_assert_eq!(header_sum(&packet), 0xffff);
            inward(&mut packet, outer);
            prop_assert_eq!(header_sum(&packet), 0xffff);
        }
    }

    fn v4(tos: u8) -> Vec<u8> {
        let mut packet = vec![0u8; 24];
        packet[0] = 0x45;
        packet[1] = tos;
        packet[3] = 24;
        packet[8] = 64;
        packet[9] = 17;
        packet[12..20].copy_from_slice(&[10, 1, 0, 1, 10, 2, 0, 1]);
        seal(&mut packet);
        packet
    }

    fn v6(class: u8) -> Vec<u8> {
        let mut packet = vec![0u8; 44];
        packet[0] = 0x60 | (class >> 4);
        packet[1] = (class << 4) | 0x0d;
        packet[5] = 4;
        packet[6] = 17;
        packet
    }

    fn seal(packet: &mut [u8]) {
        packet[10..12].fill(0);
        let field = !header_sum(packet);
        packet[10..12].copy_from_slice(&field.to_be_bytes());
    }

    fn header_sum(packet: &[u8]) -> u16 {
        let mut sum: u32 = packet[..20].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }
}
