//! From opened packets to super-packets for one write each, in place.
//!
//! Packets are opened one behind the other, each so that its header lies over the tail of the payload before, which is
//! saved first. If the packet continues what stands, the tail is put back and the payloads lie side by side; the kernel
//! then takes many segments with one header, by the rules of its own GRO. If not, what stands is written and the
//! newcomer stands where it is. So packets leave in the order in which they came, each exactly once.
//!
//! What is joined must come out of the kernel's cut as it came in: every byte of the headers that the cut copies must be
//! equal, those it counts up must count up, PSH may only be on the last, and the checksums must have been right, since
//! the kernel makes new ones. A packet that does not fit this is written by itself, untouched. One thing is lost: the
//! identification of an IPv4 packet with DF set, which means nothing there (RFC 6864 §4.1) and need not count up.
//!
//! Nothing waits for time to pass: whoever drives this flushes when there is nothing more to open.
//!
//! Source: Linux `net/ipv4/tcp_offload.c`, `net/ipv4/udp_offload.c`, `net/core/gro.c`.

use std::ops::Range;

use super::checksum::{fold, pseudo_header, sum};
use super::vnet::{DATA_VALID, Gso, NEEDS_CSUM, VNET_BYTES, VnetHeader};
use super::{ACK, LARGEST_PACKET, PSH, Transport};

/// The longest headers that are joined: IPv6 without extension headers, and TCP.
const HEADER_BYTES: usize = 100;

/// Room for two super-packets of the largest size, so that one which begins in the first half has room to grow, and
/// behind them for whatever may be opened next.
const CAPACITY_BYTES: usize = 2 * 65_536 + 4_096;

/// Segments of one UDP super-packet: the kernel refuses more (`UDP_MAX_SEGMENTS`; 128 in newer ones).
const UDP_SEGMENTS: usize = 64;

/// Which super-packets the kernel takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offloads {
    pub tcp: bool,
    /// Needs USO: Linux 6.2.
    pub udp: bool,
}

/// Packets that were opened and are not written yet: none, or one run of a flow.
#[derive(Debug)]
pub struct Coalescer {
    offloads: Offloads,
    buffer: Vec<u8>,
    run: Option<Run>,
    /// The part of the run that lies under the space that was given out, at the space's beginning; empty without a run.
    /// None: no space is out.
    opening: Option<Range<usize>>,
    /// The bytes of that part.
    saved: [u8; HEADER_BYTES],
}

/// Segments that lie side by side behind one header.
#[derive(Debug)]
struct Run {
    /// Of the IP packet in the buffer. The virtio-net header goes in front.
    start: usize,
    end: usize,
    first: Segment,
    /// The first packet's headers: what is opened next may lie over those in the buffer.
    headers: [u8; HEADER_BYTES],
    segments: usize,
    next_sequence: u32,
    /// Of the last segment.
    push: bool,
}

/// What decides whether a packet can be a segment of a super-packet, and of which.
#[derive(Debug, Clone, Copy)]
struct Segment {
    is_ipv6: bool,
    transport: Transport,
    /// IP and transport header.
    header_bytes: usize,
    payload_bytes: usize,
    /// IPv4 without DF: where it has to count up.
    identification: Option<u16>,
    /// TCP; 0 for UDP.
    sequence: u32,
    push: bool,
}

impl Coalescer {
    pub fn new(offloads: Offloads) -> Self {
        Self { offloads, buffer: vec![0; CAPACITY_BYTES], run: None, opening: None, saved: [0; HEADER_BYTES] }
    }

    /// What the kernel takes from now on. A run that stands is still written as one: flush first.
    pub const fn set_offloads(&mut self, offloads: Offloads) {
        self.offloads = offloads;
    }

    /// Where the next packet is to be opened, followed by `push` or `cancel`. All of it may be written over.
    ///
    /// At least `at_least` bytes, which may be up to 66,000. What stands is written first if there is not that much room.
    pub fn space(&mut self, at_least: usize, write: &mut impl FnMut(&[u8])) -> &mut [u8] {
        self.cancel();
        if self.run.as_ref().is_some_and(|run| self.buffer.len() - run.next().start < at_least) {
            self.flush(write);
        }
        let under = self.run.as_ref().map_or(VNET_BYTES..VNET_BYTES, Run::next);
        let start = under.start;
        self.saved[..under.len()].copy_from_slice(&self.buffer[under.clone()]);
        self.opening = Some(under);
        &mut self.buffer[start..]
    }

    /// Takes the IP packet that the first `length` bytes of the space now are: nothing missing, and no padding.
    ///
    /// Each call of `write` gets a virtio-net header and behind it a packet or super-packet. Nothing happens if no space
    /// is out; with a length of 0 it is `cancel`.
    pub fn push(&mut self, length: usize, write: &mut impl FnMut(&[u8])) {
        let Some(under) = self.opening.clone() else { return };
        let at = under.start..self.buffer.len().min(under.start.saturating_add(length));
        if at.is_empty() {
            return self.cancel();
        }
        let packet = &self.buffer[at.clone()];
        let segment = Segment::read(packet, self.offloads);
        if let (Some(segment), Some(run)) = (&segment, &mut self.run)
            && run.takes(segment, packet)
        {
            let ended = run.add(segment);
            self.cancel(); // The end of the payload before comes back, over the header.
            if ended {
                self.flush(write);
            }
            return;
        }
        // The newcomer's first bytes step aside while the run, whose tail they lie over, is written.
        let mut aside = [0u8; HEADER_BYTES];
        let aside = &mut aside[..under.len()];
        aside.copy_from_slice(&self.buffer[under.clone()]);
        self.flush(write);
        self.buffer[under].copy_from_slice(aside);
        match segment {
            Some(segment) => self.stand(segment, at, write),
            None => self.emit(at, VnetHeader::PLAIN, write),
        }
    }

    /// Nothing came into the space: puts back what it lay over.
    pub fn cancel(&mut self) {
        if let Some(under) = self.opening.take() {
            let length = under.len();
            self.buffer[under].copy_from_slice(&self.saved[..length]);
        }
    }

    /// Writes what stands.
    pub fn flush(&mut self, write: &mut impl FnMut(&[u8])) {
        self.cancel();
        if let Some(run) = self.run.take() {
            let at = run.start..run.end;
            let header = run.finish(&mut self.buffer[at.clone()]);
            self.emit(at, header, write);
        }
    }

    /// Begins a run with the packet at `at`. No run stands.
    fn stand(&mut self, segment: Segment, at: Range<usize>, write: &mut impl FnMut(&[u8])) {
        let length = at.len();
        // It stays where it was opened, as long as it has room there to grow.
        let start = if at.start > CAPACITY_BYTES / 2 {
            self.buffer.copy_within(at, VNET_BYTES);
            VNET_BYTES
        } else {
            at.start
        };
        let mut headers = [0u8; HEADER_BYTES];
        headers[..segment.header_bytes].copy_from_slice(&self.buffer[start..start + segment.header_bytes]);
        self.run = Some(Run {
            start,
            end: start + length,
            first: segment,
            headers,
            segments: 1,
            next_sequence: segment.sequence.wrapping_add(segment.payload_bytes as u32),
            push: segment.push,
        });
        if segment.push {
            self.flush(write);
        }
    }

    /// Writes the packet at `at`, with `header` in front of it. Whatever stood there has been written.
    fn emit(&mut self, at: Range<usize>, header: VnetHeader, write: &mut impl FnMut(&[u8])) {
        let start = at.start - VNET_BYTES;
        self.buffer[start..at.start].copy_from_slice(&header.to_bytes());
        write(&self.buffer[start..at.end]);
    }
}

impl Run {
    /// The tail of the run that the next packet's header is to lie over: as long as that header, if the packet continues it.
    const fn next(&self) -> Range<usize> {
        self.end - self.first.header_bytes..self.end
    }

    /// Whether `packet` continues the run.
    fn takes(&self, segment: &Segment, packet: &[u8]) -> bool {
        let first = &self.first;
        let continues = match first.transport {
            Transport::Tcp => segment.sequence == self.next_sequence,
            Transport::Udp => true, // A run is written as soon as it has all the segments that it may have.
        };
        let counts_up = match (first.identification, segment.identification) {
            (Some(first), Some(this)) => this == first.wrapping_add(self.segments as u16),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        segment.is_ipv6 == first.is_ipv6
            && segment.transport == first.transport
            && segment.header_bytes == first.header_bytes
            && segment.payload_bytes <= first.payload_bytes
            && self.end - self.start + segment.payload_bytes <= LARGEST_PACKET
            && continues
            && counts_up
            && segment.has_same_headers(&self.headers, packet)
    }

    /// Takes the payload that lies behind the run; true if nothing may follow.
    const fn add(&mut self, segment: &Segment) -> bool {
        self.end += segment.payload_bytes;
        self.segments += 1;
        self.next_sequence = self.next_sequence.wrapping_add(segment.payload_bytes as u32);
        self.push = segment.push;
        let is_full = matches!(self.first.transport, Transport::Udp) && self.segments >= UDP_SEGMENTS;
        segment.push || segment.payload_bytes < self.first.payload_bytes || is_full
    }

    /// Makes the first packet's headers those of all of `packet`, and says how the kernel is to cut it.
    fn finish(&self, packet: &mut [u8]) -> VnetHeader {
        if self.segments == 1 {
            return VnetHeader { flags: DATA_VALID, ..VnetHeader::PLAIN };
        }
        let Segment { is_ipv6, transport, header_bytes, payload_bytes, .. } = self.first;
        let start: usize = if is_ipv6 { 40 } else { 20 };
        let length = packet.len() as u16;
        let transport_length = length - start as u16;
        if is_ipv6 {
            packet[4..6].copy_from_slice(&transport_length.to_be_bytes());
        } else {
            packet[2..4].copy_from_slice(&length.to_be_bytes());
            packet[10..12].fill(0);
            let checksum = !fold(sum(&packet[..20]));
            packet[10..12].copy_from_slice(&checksum.to_ne_bytes());
        }
        match transport {
            Transport::Tcp if self.push => packet[start + 13] |= PSH,
            Transport::Tcp => {}
            Transport::Udp => packet[start + 4..start + 6].copy_from_slice(&transport_length.to_be_bytes()),
        }
        let pseudo = fold(pseudo_header(packet, transport.number(), usize::from(transport_length)));
        let field = start + transport.checksum_offset();
        packet[field..field + 2].copy_from_slice(&pseudo.to_ne_bytes());
        VnetHeader {
            flags: NEEDS_CSUM,
            gso: match (transport, is_ipv6) {
                (Transport::Tcp, false) => Gso::Tcp4,
                (Transport::Tcp, true) => Gso::Tcp6,
                (Transport::Udp, _) => Gso::Udp,
            },
            header_bytes: header_bytes as u16,
            segment_bytes: payload_bytes as u16,
            checksum_start: start as u16,
            checksum_offset: transport.checksum_offset() as u16,
        }
    }
}

impl Segment {
    /// None if `packet` can be in no super-packet: it is of a kind that is not joined or not taken by the kernel, has no
    /// payload, or a wrong checksum.
    fn read(packet: &[u8], offloads: Offloads) -> Option<Self> {
        let (is_ipv6, protocol, length, identification) = match packet.first()? {
            0x45 => {
                let header: &[u8; 20] = packet.first_chunk()?;
                let fragment = u16::from_be_bytes([header[6], header[7]]);
                // The kernel would make a right header checksum of a wrong one.
                if fragment & !DF != 0 || fold(sum(header)) != 0xffff {
                    return None;
                }
                let identification = u16::from_be_bytes([header[4], header[5]]);
                let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
                (false, header[9], length, (fragment & DF == 0).then_some(identification))
            }
            0x60..=0x6f => {
                let header: &[u8; 40] = packet.first_chunk()?;
                (true, header[6], usize::from(u16::from_be_bytes([header[4], header[5]])) + 40, None)
            }
            _ => return None,
        };
        let start: usize = if is_ipv6 { 40 } else { 20 };
        let behind = packet.get(start..)?;
        let (transport, transport_bytes, sequence, push) = match protocol {
            6 if offloads.tcp => {
                let header: &[u8; 20] = behind.first_chunk()?;
                // ACK, perhaps PSH, and no other flag, nor one of the reserved bits in front.
                if header[12] & 0x0f != 0 || header[13] & !PSH != ACK {
                    return None;
                }
                let sequence = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
                (Transport::Tcp, usize::from(header[12] >> 4) * 4, sequence, header[13] & PSH != 0)
            }
            17 if offloads.udp => {
                let header: &[u8; 8] = behind.first_chunk()?;
                let has_checksum = header[6..8] != [0, 0];
                if !has_checksum || usize::from(u16::from_be_bytes([header[4], header[5]])) != behind.len() {
                    return None;
                }
                (Transport::Udp, 8, 0, false)
            }
            _ => return None,
        };
        let smallest = match transport {
            Transport::Tcp => 20,
            Transport::Udp => 8,
        };
        let is_whole = length == packet.len() && transport_bytes >= smallest && behind.len() > transport_bytes;
        if !is_whole || fold(sum(behind) + pseudo_header(packet, protocol, behind.len())) != 0xffff {
            return None;
        }
        Some(Self {
            is_ipv6,
            transport,
            header_bytes: start + transport_bytes,
            payload_bytes: behind.len() - transport_bytes,
            identification,
            sequence,
            push,
        })
    }

    /// Whether the headers of `packet`, which this was read from, are those of a run of the same kind and header length,
    /// but for what is expected to differ: lengths, checksums, identification, sequence number, and PSH.
    fn has_same_headers(&self, headers: &[u8; HEADER_BYTES], packet: &[u8]) -> bool {
        let same = |part: Range<usize>| headers[part.clone()] == packet[part];
        // Traffic class and flow label; hop limit, addresses and ports. Or TOS; DF, TTL and protocol; addresses and ports.
        let start: usize = if self.is_ipv6 { 40 } else { 20 };
        let ip = if self.is_ipv6 { same(0..4) && same(6..44) } else { same(0..2) && same(6..10) && same(12..24) };
        ip && match self.transport {
            // Acknowledgment and data offset; window; urgent pointer and options.
            Transport::Tcp => same(start + 8..start + 13) && same(start + 14..start + 16) && same(start + 18..self.header_bytes),
            Transport::Udp => true,
        }
    }
}

/// The flag of IPv4 that forbids fragmentation, in the word that the fragment offset is in.
const DF: u16 = 0x4000;
