//! The Internet checksum: the ones'-complement sum of 16-bit words.
//!
//! Each byte of payload is summed once on its way, so the loop is wide: it adds 32-bit halves of 64-bit words, which the
//! compiler turns into vector code on any x86-64. Words are summed in the machine's own byte order. The ones'-complement
//! sum does not mind (RFC 1071 §2(B)), as long as what comes out is stored in that order too: with `to_ne_bytes`.
//!
//! Source: RFC 1071; for changes, RFC 1624; the pseudo-headers, RFC 9293 §3.1 and RFC 8200 §8.1.

/// The sum of `bytes`, not folded: native-endian words, an odd last byte padded with zero.
///
/// Sums of pieces may be added if each piece begins at an even offset of the whole.
pub fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    // Two sums without carries between them: 2^32 words fit before either could overflow.
    let (mut low, mut high) = (0u64, 0u64);
    for word in words {
        let word = u64::from_ne_bytes(*word);
        low += word & 0xffff_ffff;
        high += word >> 32;
    }
    let mut last = [0u8; 8];
    last[..rest.len()].copy_from_slice(rest);
    let last = u64::from_ne_bytes(last);
    low + high + (last & 0xffff_ffff) + (last >> 32)
}

/// A sum as 16 bits, its carries added in again. Its complement is the checksum; store it with `to_ne_bytes`.
///
/// Over a packet that has its checksum in place the result is 0xffff.
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// The sum of the pseudo-header of the IPv4 or IPv6 packet that `packet` begins with.
///
/// `transport_bytes` counts transport header and payload. Taken is the destination in the IP header: for a packet that
/// still has hops to go in an IPv6 routing header that is the wrong one. The addresses of a packet that is too short to
/// have any count as zero.
pub fn pseudo_header(packet: &[u8], protocol: u8, transport_bytes: usize) -> u64 {
    let addresses = match packet.first().map(|first| first >> 4) {
        Some(6) => packet.get(8..40),
        _ => packet.get(12..20),
    };
    let length = transport_bytes as u32;
    addresses.map_or(0, sum) + word((length >> 16) as u16) + word(length as u16) + word(u16::from(protocol))
}

/// What a 16-bit number of a header adds to a sum.
pub(super) fn word(number: u16) -> u64 {
    u64::from(number.to_be())
}

/// Mends the checksum in `checksum_field` (2 bytes, else nothing happens) for a word under it that was `before` and is
/// now `after`.
///
/// The words are numbers as the header means them, big-endian, at even offsets of what the checksum covers. A UDP
/// checksum of zero means that there is none: do not mend it. Source: RFC 1624, equation 3.
pub fn update(checksum_field: &mut [u8], before: u16, after: u16) {
    if let [high, low] = checksum_field {
        let checksum = u16::from_be_bytes([*high, *low]);
        let sum = u64::from(!checksum) + u64::from(!before) + u64::from(after);
        [*high, *low] = (!fold(sum)).to_be_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offload::tests::slow_sum;
    use proptest::prelude::*;

    #[test]
    fn sums_the_example_of_rfc_1071() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(sum(&bytes)).to_ne_bytes(), [0xdd, 0xf2]);
    }

    #[test]
    fn carries_of_the_largest_sums_come_back_in() {
        assert_eq!(fold(u64::MAX), 0xffff);
        assert_eq!(fold(0xffff_ffff_0000_0001), 1);
        assert_eq!(fold(0x0001_0000), 1);
        assert_eq!(fold(0), 0);
        assert_eq!(fold(sum(&[0xff; 65_535])).to_ne_bytes(), slow_sum(&[0xff; 65_535]).to_be_bytes());
    }

    #[test]
    fn a_pseudo_header_of_too_little_has_no_addresses() {
        assert_eq!(fold(pseudo_header(&[], 6, 0)), fold(word(6)));
        assert_eq!(fold(pseudo_header(&[0x60; 39], 17, 8)), fold(word(17) + word(8)));
    }

    #[test]
    fn a_field_that_is_no_checksum_is_left() {
        let mut field = [1, 2, 3];
        update(&mut field, 4, 5);
        assert_eq!(field, [1, 2, 3]);
    }

    proptest! {
        #[test]
        fn equals_the_slow_sum(bytes in prop::collection::vec(any::<u8>(), 0..2_000)) {
            prop_assert_eq!(fold(sum(&bytes)).to_ne_bytes(), slow_sum(&bytes).to_be_bytes());
        }

        #[test]
        fn pieces_add_up(bytes in prop::collection::vec(any::<u8>(), 0..500), at in any::<prop::sample::Index>()) {
            let (first, second) = bytes.split_at(at.index(bytes.len() + 1) & !1);
            prop_assert_eq!(fold(sum(first) + sum(second)), fold(sum(&bytes)));
        }

        #[test]
        fn a_change_mends_the_checksum(
            mut bytes in prop::collection::vec(any::<u8>(), 20..60),
            at in any::<prop::sample::Index>(),
            after in any::<u16>(),
        ) {
            bytes[0] = 0x45; // A header is never all zero, where RFC 1624 and a new sum could differ.
            bytes[10..12].fill(0);
            let checksum = !fold(sum(&bytes));
            bytes[10..12].copy_from_slice(&checksum.to_ne_bytes());
            let at = 2 + 2 * at.index(4); // Words 1 to 4.
            let before = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
            bytes[at..at + 2].copy_from_slice(&after.to_be_bytes());
            update(&mut bytes[10..12], before, after);
            prop_assert_eq!(slow_sum(&bytes), 0xffff);
        }
    }
}
