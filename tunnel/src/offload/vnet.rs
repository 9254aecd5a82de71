//! The virtio-net header that stands in front of each packet of a TUN device made with `IFF_VNET_HDR`.
//!
//! It says of one read or write whether it is a super-packet, how it is to be cut, and which checksum is not done yet.
//! On a TUN device its words are in the machine's byte order. Source: virtio 1.2 §5.1.6; Linux
//! `include/uapi/linux/virtio_net.h`.

use crate::error::DropReason;

/// Length of the header in bytes (`struct virtio_net_hdr`, the device's default).
pub const VNET_BYTES: usize = 10;

/// Flag: the checksum field holds the pseudo-header's sum only; the rest is to be done.
pub const NEEDS_CSUM: u8 = 1;
/// Flag: the transport checksum was verified.
pub const DATA_VALID: u8 = 2;

/// Beside the kind of a TCP super-packet: its first segment has CWR set.
const GSO_ECN: u8 = 0x80;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VnetHeader {
    /// [`NEEDS_CSUM`], [`DATA_VALID`].
    pub flags: u8,
    pub gso: Gso,
    /// IP and transport header; a hint only, which is not to be trusted.
    pub header_bytes: u16,
    /// Payload of each segment but the last, which may have less.
    pub segment_bytes: u16,
    /// Where the bytes under the checksum begin, counted from the IP header. They reach to the end of the packet.
    pub checksum_start: u16,
    /// Where the checksum stands, counted from `checksum_start`.
    pub checksum_offset: u16,
}

/// What kind of super-packet it is, by the kernel's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Gso {
    /// One packet.
    None = 0,
    Tcp4 = 1,
    Tcp6 = 4,
    /// UDP over IPv4 or IPv6 (`VIRTIO_NET_HDR_GSO_UDP_L4`).
    Udp = 5,
}

impl VnetHeader {
    /// One packet, of which nothing is said.
    pub const PLAIN: Self = Self { flags: 0, gso: Gso::None, header_bytes: 0, segment_bytes: 0, checksum_start: 0, checksum_offset: 0 };

    /// Reads the header that `bytes` begins with.
    ///
    /// Errors: `DropReason::BadOffload` if it is cut short, or of a kind that was not asked for (UFO is one).
    pub fn parse(bytes: &[u8]) -> Result<Self, DropReason> {
        let bytes: &[u8; VNET_BYTES] = bytes.first_chunk().ok_or(DropReason::BadOffload)?;
        let gso = match bytes[1] & !GSO_ECN {
            0 => Gso::None,
            1 => Gso::Tcp4,
            4 => Gso::Tcp6,
            5 => Gso::Udp,
            _ => return Err(DropReason::BadOffload),
        };
        let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Ok(Self { flags: bytes[0], gso, header_bytes: word(2), segment_bytes: word(4), checksum_start: word(6), checksum_offset: word(8) })
    }

    pub fn to_bytes(self) -> [u8; VNET_BYTES] {
        let mut bytes = [0; VNET_BYTES];
        bytes[0] = self.flags;
        bytes[1] = self.gso as u8;
        bytes[2..4].copy_from_slice(&self.header_bytes.to_ne_bytes());
        bytes[4..6].copy_from_slice(&self.segment_bytes.to_ne_bytes());
        bytes[6..8].copy_from_slice(&self.checksum_start.to_ne_bytes());
        bytes[8..10].copy_from_slice(&self.checksum_offset.to_ne_bytes());
        bytes
    }

    pub const fn needs_checksum(self) -> bool {
        self.flags & NEEDS_CSUM != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        for gso in [Gso::None, Gso::Tcp4, Gso::Tcp6, Gso::Udp] {
            let header =
                VnetHeader { flags: NEEDS_CSUM, gso, header_bytes: 54, segment_bytes: 1_348, checksum_start: 40, checksum_offset: 16 };
            let mut bytes = header.to_bytes();
            assert_eq!(VnetHeader::parse(&bytes), Ok(header));
            bytes[1] |= GSO_ECN;
            assert_eq!(VnetHeader::parse(&bytes), Ok(header), "the mark for CWR changes nothing");
        }
    }

    #[test]
    fn refuses_kinds_that_nobody_asked_for() {
        for kind in [2, 3, 6, 0x7f, 0x83] {
            let mut bytes = VnetHeader::PLAIN.to_bytes();
            bytes[1] = kind;
            assert_eq!(VnetHeader::parse(&bytes), Err(DropReason::BadOffload), "{kind}");
        }
        assert_eq!(VnetHeader::parse(&[0; VNET_BYTES - 1]), Err(DropReason::BadOffload));
    }
}
