//! From one read of the TUN device to the packets in it, in place.
//!
//! Payloads stay where the kernel put them. The header of a segment is written in front of its payload, over the tail
//! of the segment before, which has been sealed by then: one small copy a segment. Each header is made of the
//! super-packet's own, and each checksum is made new, with a sum over the whole segment.
//!
//! The kernel's description is checked against the packet before anything is written; `header_bytes` is not used at all.
//! The pseudo-header is made of the addresses in the IP header, so a super-packet with hops to go in a routing header is
//! refused. A home address option (RFC 6275), which changes the pseudo-header too, is not looked for.
//!
//! Source: virtio 1.2 §5.1.6.2; RFC 9293 §3.1; RFC 768; for the identification, RFC 6864 §4; for CWR, RFC 3168 §6.1.2.

use super::checksum::{self, fold, sum, word};
use super::vnet::{Gso, VnetHeader};
use super::{CWR, FIN, LARGEST_PACKET, PSH, Transport};
use crate::error::DropReason;

/// The longest headers of a super-packet that can be cut: IPv6 and TCP need 100 bytes, the rest is for extension headers.
const HEADER_BYTES: usize = 256;

/// The packets of one read, taken one after the other.
#[derive(Debug)]
pub struct Segments<'a> {
    room: &'a mut [u8],
    /// Of the super-packet, or of the only packet.
    length: usize,
    taken: usize,
    count: usize,
    /// None: there is one packet, and it is whole.
    cut: Option<Cut>,
}

/// How a super-packet is cut.
#[derive(Debug)]
struct Cut {
    transport: Transport,
    is_ipv6: bool,
    /// Length of IP and transport header together; where the payload begins.
    header_bytes: usize,
    /// Where the transport header begins.
    transport_start: usize,
    /// Payload of each segment but the last.
    segment_bytes: usize,
    /// The super-packet's headers. What is another value in each segment and lies under a checksum is zero.
    headers: [u8; HEADER_BYTES],
    identification: u16,
    sequence: u32,
    flags: u8,
    /// Of the IPv4 header, without length and identification.
    header_sum: u64,
    /// Of the pseudo-header, without length.
    pseudo_sum: u64,
}

impl<'a> Segments<'a> {
    /// Takes the packet or super-packet `room[..length]`, which `header` describes; `header` itself is not in `room`.
    ///
    /// `room` may reach further, for the padding of the last packet.
    /// Errors: `DropReason::NotIp` if there is nothing, or a super-packet is neither IPv4 nor IPv6;
    /// `DropReason::BadOffload` if `header` says what is not so. A packet that is no super-packet and needs no checksum
    /// passes unseen.
    pub fn new(header: VnetHeader, room: &'a mut [u8], length: usize) -> Result<Self, DropReason> {
        let packet = room.get_mut(..length).ok_or(DropReason::NotIp)?;
        if packet.is_empty() {
            return Err(DropReason::NotIp);
        }
        let cut = match header.gso {
            Gso::None => {
                if header.needs_checksum() {
                    complete(&header, packet)?;
                }
                None
            }
            Gso::Tcp4 | Gso::Tcp6 => Some(Cut::new(&header, Transport::Tcp, packet)?),
            Gso::Udp => Some(Cut::new(&header, Transport::Udp, packet)?),
        };
        let count = cut.as_ref().map_or(1, |cut| (length - cut.header_bytes).div_ceil(cut.segment_bytes).max(1));
        Ok(Self { room, length, taken: 0, count, cut })
    }

    /// The next packet and its length. The slice begins with the packet and reaches to the end of the room.
    ///
    /// What lies behind the packet are packets to come: whoever writes there puts it back before the next call.
    #[expect(clippy::should_implement_trait, reason = "each packet borrows the room, which an Iterator's items cannot")]
    pub fn next(&mut self) -> Option<(&mut [u8], usize)> {
        if self.taken == self.count {
            return None;
        }
        let index = self.taken;
        self.taken += 1;
        let Some(cut) = &self.cut else {
            return Some((&mut *self.room, self.length));
        };
        let start = index * cut.segment_bytes;
        let length = cut.header_bytes + cut.segment_bytes.min(self.length - cut.header_bytes - start);
        let packet = &mut self.room[start..];
        cut.write_headers(&mut packet[..length], index, self.taken == self.count);
        Some((packet, length))
    }
}

impl Cut {
    fn new(header: &VnetHeader, transport: Transport, packet: &[u8]) -> Result<Self, DropReason> {
        let start = usize::from(header.checksum_start);
        let (is_ipv6, found) = match (packet.first().map(|first| first >> 4), header.gso) {
            (Some(4), Gso::Tcp4 | Gso::Udp) => (false, transport_after_ipv4(packet, transport)),
            (Some(6), Gso::Tcp6 | Gso::Udp) => (true, transport_after_ipv6(packet, transport, start)),
            (Some(4 | 6), _) => return Err(DropReason::BadOffload),
            _ => return Err(DropReason::NotIp),
        };
        let transport_bytes = match transport {
            Transport::Tcp => packet.get(start + 12).map_or(0, |offset| usize::from(offset >> 4) * 4),
            Transport::Udp => 8,
        };
        let smallest = match transport {
            Transport::Tcp => 20,
            Transport::Udp => 8,
        };
        let header_bytes = start + transport_bytes;
        let segment_bytes = usize::from(header.segment_bytes);
        let described = header.needs_checksum()
            && found == Some(start)
            && usize::from(header.checksum_offset) == transport.checksum_offset()
            && transport_bytes >= smallest
            && header_bytes <= packet.len().min(HEADER_BYTES)
            && segment_bytes > 0;
        if !described || header_bytes + segment_bytes.min(packet.len() - header_bytes) > LARGEST_PACKET {
            return Err(DropReason::BadOffload);
        }
        let mut headers = [0u8; HEADER_BYTES];
        headers[..header_bytes].copy_from_slice(&packet[..header_bytes]);
        let identification = u16::from_be_bytes([headers[4], headers[5]]);
        if !is_ipv6 {
            headers[2..6].fill(0);
            headers[10..12].fill(0);
        }
        let sequence = u32::from_be_bytes([headers[start + 4], headers[start + 5], headers[start + 6], headers[start + 7]]);
        let flags = match transport {
            Transport::Tcp => headers[start + 13],
            Transport::Udp => 0,
        };
        headers[start + transport.checksum_offset()..][..2].fill(0);
        Ok(Self {
            transport,
            is_ipv6,
            header_bytes,
            transport_start: start,
            segment_bytes,
            identification,
            sequence,
            flags,
            header_sum: if is_ipv6 { 0 } else { sum(&headers[..start]) },
            pseudo_sum: checksum::pseudo_header(&headers[..header_bytes], transport.number(), 0),
            headers,
        })
    }

    /// Writes the headers of segment number `index`, which fills `packet`.
    fn write_headers(&self, packet: &mut [u8], index: usize, is_last: bool) {
        packet[..self.header_bytes].copy_from_slice(&self.headers[..self.header_bytes]);
        let length = packet.len() as u16;
        let (ip, transport) = packet.split_at_mut(self.transport_start);
        if self.is_ipv6 {
            ip[4..6].copy_from_slice(&(length - 40).to_be_bytes());
        } else {
            let identification = self.identification.wrapping_add(index as u16);
            ip[2..4].copy_from_slice(&length.to_be_bytes());
            ip[4..6].copy_from_slice(&identification.to_be_bytes());
            let checksum = !fold(self.header_sum + word(length) + word(identification));
            ip[10..12].copy_from_slice(&checksum.to_ne_bytes());
        }
        let transport_bytes = transport.len() as u16;
        match self.transport {
            Transport::Tcp => {
                let sequence = self.sequence.wrapping_add((index * self.segment_bytes) as u32);
                transport[4..8].copy_from_slice(&sequence.to_be_bytes());
                let not_first = if index > 0 { CWR } else { 0 };
                let not_last = if is_last { 0 } else { FIN | PSH };
                transport[13] = self.flags & !(not_first | not_last);
                let checksum = !fold(sum(transport) + self.pseudo_sum + word(transport_bytes));
                transport[16..18].copy_from_slice(&checksum.to_ne_bytes());
            }
            Transport::Udp => {
                transport[4..6].copy_from_slice(&transport_bytes.to_be_bytes());
                let checksum = !fold(sum(transport) + self.pseudo_sum + word(transport_bytes));
                transport[6..8].copy_from_slice(&not_zero(checksum).to_ne_bytes());
            }
        }
    }
}

/// Does the checksum of a single packet, whose field holds the sum of the pseudo-header.
fn complete(header: &VnetHeader, packet: &mut [u8]) -> Result<(), DropReason> {
    let covered = packet.get_mut(usize::from(header.checksum_start)..).ok_or(DropReason::BadOffload)?;
    let checksum = !fold(sum(covered));
    let offset = usize::from(header.checksum_offset);
    let field = covered.get_mut(offset..offset + 2).ok_or(DropReason::BadOffload)?;
    field.copy_from_slice(&not_zero(checksum).to_ne_bytes());
    Ok(())
}

/// Zero would say that a UDP datagram has no checksum; 0xffff is the same number in ones' complement (RFC 768).
const fn not_zero(checksum: u16) -> u16 {
    if checksum == 0 { 0xffff } else { checksum }
}

/// Where the transport header begins; None if it is another protocol's, or the packet is a fragment.
fn transport_after_ipv4(packet: &[u8], transport: Transport) -> Option<usize> {
    let header: &[u8; 20] = packet.first_chunk()?;
    let length = usize::from(header[0] & 0x0f) * 4;
    let is_fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
    (length >= 20 && !is_fragment && header[9] == transport.number()).then_some(length)
}

/// Where the extension headers end, at or past `until`; None if one is not understood, or another protocol follows.
fn transport_after_ipv6(packet: &[u8], transport: Transport, until: usize) -> Option<usize> {
    let mut next = *packet.get(6)?;
    let mut at = 40;
    while at < until {
        let &[following, units, _, segments_left] = packet.get(at..)?.first_chunk::<4>()?;
        match next {
            // Hop-by-hop options and destination options; a routing header that is done with.
            0 | 60 => {}
            43 if segments_left == 0 => {}
            _ => return None,
        }
        next = following;
        at += 8 * (usize::from(units) + 1);
    }
    (next == transport.number()).then_some(at)
}
