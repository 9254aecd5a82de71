//! Cuts an IPv4 packet that may be fragmented into pieces that fit through the tunnel.
//!
//! A router does this for packets without DF. The kernel does it for packets over the device's MTU; this does it where
//! the path turned out smaller than the device. IPv6 has no such thing: there the sender is told (see `too_big`).
//!
//! A packet that is a fragment already can be cut again: offsets go on from its own, and "more fragments" stays set on
//! the last piece if it was set before.
//!
//! Left out: packets with IP options, of which some must be copied into every piece and some into the first alone. They
//! are rare, and many networks drop them anyway.
//!
//! Source: RFC 791 §2.3 and §3.2 (the procedure).

use std::net::IpAddr;

use crate::offload::checksum;
use crate::packet::Header;

/// Version 4, header of five words: no options.
const VERSION_AND_LENGTH: u8 = 0x45;
const HEADER_BYTES: usize = 20;
/// Offsets count in this many bytes, so every piece but the last holds a multiple of it.
const UNIT_BYTES: usize = 8;
const LONGEST_PACKET_BYTES: usize = 65_535;

const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
const FRAGMENT_OFFSET: u16 = 0x1fff;

/// The pieces of one packet, first to last.
#[derive(Debug)]
pub(crate) struct Fragments<'a> {
    /// Without what may lie behind its length.
    packet: &'a [u8],
    /// Flags and fragment offset of `packet`.
    fragmentation: u16,
    /// Most bytes of payload in one piece.
    most: usize,
    /// Where in `packet` the next piece's payload begins. None when all are out.
    at: Option<usize>,
}

impl<'a> Fragments<'a> {
    /// Cuts the packet at the start of `packet` into pieces of at most `largest` bytes, IP header included.
    ///
    /// One that fits comes out as one piece, unchanged. None if it cannot be cut: no whole IPv4 packet, DF, IP options, a
    /// fragment that no packet can be made of (RFC 791: all but the last hold a multiple of 8 bytes, and none reaches
    /// beyond 65,535), or `largest` below 28.
    pub(crate) fn new(packet: &'a [u8], largest: usize) -> Option<Self> {
        let header = Header::parse(packet)?;
        let packet = packet.get(..header.length)?;
        let (IpAddr::V4(_), [VERSION_AND_LENGTH, _, _, _, _, _, high, low, ..]) = (header.source, packet) else { return None };
        let fragmentation = u16::from_be_bytes([*high, *low]);
        let payload = packet.len() - HEADER_BYTES;
        let end = usize::from(fragmentation & FRAGMENT_OFFSET) * UNIT_BYTES + payload;
        let is_cut_wrong = fragmentation & MORE_FRAGMENTS != 0 && !payload.is_multiple_of(UNIT_BYTES);
        if fragmentation & DONT_FRAGMENT != 0 || is_cut_wrong || HEADER_BYTES + end > LONGEST_PACKET_BYTES {
            return None;
        }
        let most = largest.checked_sub(HEADER_BYTES).filter(|most| *most >= UNIT_BYTES)?;
        Some(Self { packet, fragmentation, most, at: Some(HEADER_BYTES) })
    }

    /// Writes the next piece to the start of `room` and returns its length in bytes.
    ///
    /// None when all are out, or if `room` is too short for the piece; as long as `largest` is always enough.
    pub(crate) fn next(&mut self, room: &mut [u8]) -> Option<usize> {
        let at = self.at?;
        let left = self.packet.len() - at;
        let is_last = left <= self.most;
        let taken = if is_last { left } else { self.most - self.most % UNIT_BYTES };
        let length = HEADER_BYTES + taken;
        let piece = room.get_mut(..length)?;
        let (header, payload) = piece.split_at_mut(HEADER_BYTES);

        // No overflow into the flags: `new` has seen that the end of the payload is within what offsets can name.
        let mut fragmentation = self.fragmentation + ((at - HEADER_BYTES) / UNIT_BYTES) as u16;
        if !is_last {
            fragmentation |= MORE_FRAGMENTS;
        }
        header.copy_from_slice(&self.packet[..HEADER_BYTES]);
        header[2..4].copy_from_slice(&(length as u16).to_be_bytes());
        header[6..8].copy_from_slice(&fragmentation.to_be_bytes());
        header[10..12].fill(0);
        let field = !checksum::fold(checksum::sum(header));
        header[10..12].copy_from_slice(&field.to_ne_bytes());
        payload.copy_from_slice(&self.packet[at..at + taken]);

        self.at = (!is_last).then_some(at + taken);
        Some(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn cuts_on_units_of_eight_bytes() {
        let packet = packet(0, &payload(50));
        let pieces = cut(&packet, 45).expect("may be cut");
        let shape: Vec<_> = pieces.iter().map(|piece| (piece.len(), fragmentation(piece))).collect();
        assert_eq!(shape, [(44, MORE_FRAGMENTS), (44, MORE_FRAGMENTS | 3), (22, 6)]);
    }

    #[test]
    fn a_packet_that_fits_comes_out_as_it_is() {
        for bytes in [0, 1, 7, 8, 25] {
            let packet = packet(0, &payload(bytes));
            assert_eq!(cut(&packet, 45), Some(vec![packet]));
        }
    }

    #[test]
    fn the_last_piece_may_fill_more_than_whole_units() {
        let packet = packet(0, &payload(24 + 25));
        let lengths: Vec<_> = cut(&packet, 45).expect("may be cut").iter().map(Vec::len).collect();
        assert_eq!(lengths, [44, 45]);
    }

    #[test]
    fn a_fragment_is_cut_again() {
        let middle = packet(MORE_FRAGMENTS | 100, &payload(48));
        let words: Vec<_> = cut(&middle, 45).expect("may be cut").iter().map(|piece| fragmentation(piece)).collect();
        assert_eq!(words, [MORE_FRAGMENTS | 100, MORE_FRAGMENTS | 103]);

        let last = packet(100, &payload(47));
        let words: Vec<_> = cut(&last, 45).expect("may be cut").iter().map(|piece| fragmentation(piece)).collect();
        assert_eq!(words, [MORE_FRAGMENTS | 100, 103]);
    }

    #[test]
    fn refuses_what_cannot_be_cut() {
        let good = packet(0, &payload(100));
        assert!(cut(&good, 28).is_some());
        assert!(cut(&good, 27).is_none(), "no room for a unit");
        assert!(cut(&good[..119], 60).is_none(), "not whole");
        assert!(cut(&packet(DONT_FRAGMENT, &payload(100)), 60).is_none(), "DF");
        assert!(cut(&packet(MORE_FRAGMENTS, &payload(100)), 60).is_none(), "more to come behind half a unit");
        assert!(cut(&packet(FRAGMENT_OFFSET, &payload(100)), 60).is_none(), "beyond the longest packet");
        let mut options = good.clone();
        options[0] = 0x46;
        assert!(cut(&options, 60).is_none(), "options");
        let mut ipv6 = good;
        ipv6[0] = 0x60;
        ipv6[4..6].copy_from_slice(&80u16.to_be_bytes());
        assert!(cut(&ipv6, 60).is_none(), "IPv6");
    }

    #[test]
    fn the_end_of_the_longest_packet_can_be_cut() {
        let offset = (LONGEST_PACKET_BYTES - HEADER_BYTES) / UNIT_BYTES - 12;
        let longest = LONGEST_PACKET_BYTES - HEADER_BYTES - offset * UNIT_BYTES;
        let packet_of = |bytes| packet(offset as u16, &payload(bytes));
        let pieces = cut(&packet_of(longest), 28).expect("may be cut");
        let last = pieces.last().expect("a piece");
        assert_eq!(usize::from(fragmentation(last)) * UNIT_BYTES + last.len(), LONGEST_PACKET_BYTES);
        assert!(cut(&packet_of(longest + 1), 28).is_none());
    }

    #[test]
    fn too_little_room_loses_nothing() {
        let packet = packet(0, &payload(50));
        let mut fragments = Fragments::new(&packet, 45).expect("may be cut");
        let mut room = [0xaau8; 45];
        assert_eq!(fragments.next(&mut room[..43]), None);
        assert_eq!(fragments.next(&mut room), Some(44));
        assert_eq!(fragmentation(&room), MORE_FRAGMENTS, "still the first");
        assert_eq!(room[44], 0xaa, "nothing is written behind the piece");
    }

    #[test]
    fn padding_is_left_behind() {
        let whole = packet(0, &payload(50));
        let mut padded = whole.clone();
        padded.extend_from_slice(&[0; 10]);
        assert_eq!(cut(&padded, 45), cut(&whole, 45));
    }

    proptest! {
        #[test]
        fn the_pieces_make_the_packet_again(bytes in 0usize..4000, largest in 28usize..1600, smaller in 28usize..1600) {
            let whole = packet(0, &payload(bytes));
            let once = cut(&whole, largest).expect("may be cut");
            prop_assert!(once.iter().all(|piece| piece.len() <= largest));
            prop_assert_eq!(&joined(&once)?, &whole);

            // And cut again on a second link.
            let twice: Vec<Vec<u8>> = once.iter().flat_map(|piece| cut(piece, smaller).expect("may be cut")).collect();
            prop_assert!(twice.iter().all(|piece| piece.len() <= smaller));
            prop_assert_eq!(&joined(&twice)?, &whole);
        }

        #[test]
        fn never_panics_and_always_ends(mut bytes in prop::collection::vec(any::<u8>(), 0..300), largest in 0usize..400) {
            if bytes.len() >= 20 {
                let length = bytes.len() as u16;
                bytes[0] = VERSION_AND_LENGTH;
                bytes[2..4].copy_from_slice(&length.to_be_bytes());
            }
            if let Some(pieces) = cut(&bytes, largest) {
                let payloads: usize = pieces.iter().map(|piece| piece.len() - HEADER_BYTES).sum();
                prop_assert_eq!(payloads + HEADER_BYTES, bytes.len());
            }
        }
    }

    fn cut(packet: &[u8], largest: usize) -> Option<Vec<Vec<u8>>> {
        let mut fragments = Fragments::new(packet, largest)?;
        let mut room = vec![0u8; largest];
        let mut pieces = Vec::new();
        while let Some(length) = fragments.next(&mut room) {
            pieces.push(room[..length].to_vec());
        }
        Some(pieces)
    }

    /// Puts the pieces of an unfragmented packet together, as their receiver would if they come in order.
    fn joined(pieces: &[Vec<u8>]) -> Result<Vec<u8>, TestCaseError> {
        let first = pieces.first().ok_or_else(|| TestCaseError::fail("no piece"))?;
        let mut payload = Vec::new();
        for (index, piece) in pieces.iter().enumerate() {
            let header = Header::parse(piece).ok_or_else(|| TestCaseError::fail("no whole packet"))?;
            prop_assert_eq!(header.length, piece.len());
            prop_assert_eq!(header_sum(piece), 0xffff);
            let more = if index + 1 < pieces.len() { MORE_FRAGMENTS } else { 0 };
            prop_assert!(payload.len().is_multiple_of(UNIT_BYTES));
            prop_assert_eq!(fragmentation(piece), more | (payload.len() / UNIT_BYTES) as u16);
            prop_assert_eq!(&piece[..2], &first[..2]);
            prop_assert_eq!(&piece[4..6], &first[4..6], "identification");
            prop_assert_eq!(&piece[8..10], &first[8..10]);
            prop_assert_eq!(&piece[12..20], &first[12..20]);
            payload.extend_from_slice(&piece[HEADER_BYTES..]);
        }
        Ok(packet(0, &payload))
    }

    fn packet(fragmentation: u16, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0u8; HEADER_BYTES];
        packet[..10].copy_from_slice(&[VERSION_AND_LENGTH, 0xb8, 0, 0, 0x12, 0x34, 0, 0, 63, 17]);
        packet[2..4].copy_from_slice(&((HEADER_BYTES + payload.len()) as u16).to_be_bytes());
        packet[6..8].copy_from_slice(&fragmentation.to_be_bytes());
        packet[12..20].copy_from_slice(&[10, 1, 0, 1, 10, 2, 0, 1]);
        let field = !header_sum(&packet);
        packet[10..12].copy_from_slice(&field.to_be_bytes());
        packet.extend_from_slice(payload);
        packet
    }

    /// Bytes that differ from their neighbours and from those one unit on.
    fn payload(bytes: usize) -> Vec<u8> {
        (0..bytes).map(|at| (at % 251) as u8).collect()
    }

    fn fragmentation(piece: &[u8]) -> u16 {
        u16::from_be_bytes([piece[6], piece[7]])
    }

    /// The slow way: 0xffff if the header's checksum is right.
    fn header_sum(packet: &[u8]) -> u16 {
        let mut sum: u32 = packet[..HEADER_BYTES].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }
}
