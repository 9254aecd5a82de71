//! Super-packets of the kernel's TUN device: cut into packets on the way out, made of packets on the way in.
//!
//! With a virtio-net header in front of each packet (`IFF_VNET_HDR`) one read or write of the device can carry up to
//! 64 KiB of one flow: one header, and behind it the payload of many segments. That saves a system call and a walk
//! through the kernel's stack for each packet, which is most of what a packet costs. It leaves two things to us: to cut
//! such a super-packet with correct headers and checksums, and to join only packets that come out of the kernel's own cut
//! as they went in. Both are done in place:
//!
//! ```text
//!  out  one read       [vnet][head│ payload 1 │ payload 2 │ payload 3]
//!       Segments       ······[head│ payload 1]···························  seal it, then
//!                      ··············[head│ payload 2]···················  over the tail of what is sealed, then
//!                      ··························[head│ payload 3]
//!
//!  in   Coalescer      [vnet][head│ payload 1]                              opened
//!                      [vnet][head│ payl[head│ payload 2]                   opened over the tail, which was saved
//!       one write      [vnet][head│ payload 1 │ payload 2]                  the tail is put back over the second header
//! ```
//!
//! [`checksum`] is the Internet checksum, [`VnetHeader`] what the kernel says of a super-packet. No I/O is here, and
//! nothing is allocated for a packet.
//!
//! Left out: UFO (whole UDP datagrams that the kernel would fragment), GSO of tunnels and of IP fragments, and packets
//! with IPv4 options or IPv6 extension headers on the way in: they are carried one by one.
//!
//! Source: virtio 1.2 §5.1.6; Linux `include/linux/virtio_net.h`, `net/ipv4/tcp_offload.c`, `net/ipv4/udp_offload.c`.

pub mod checksum;
mod coalesce;
mod split;
mod vnet;

#[cfg(test)]
mod tests;

pub use coalesce::{Coalescer, Offloads};
pub use split::Segments;
pub use vnet::{DATA_VALID, Gso, NEEDS_CSUM, VNET_BYTES, VnetHeader};

/// The longest packet, and so the longest super-packet, in bytes: what the length field of IPv4 can say.
const LARGEST_PACKET: usize = 65_535;

/// TCP flags (RFC 9293 §3.1).
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const CWR: u8 = 0x80;

/// The transport protocols that the kernel's offloads know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    /// As in IPv4's protocol field and IPv6's next header.
    const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    /// Where in its header the checksum stands.
    const fn checksum_offset(self) -> usize {
        match self {
            Self::Tcp => 16,
            Self::Udp => 6,
        }
    }
}
