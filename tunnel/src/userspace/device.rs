//! The seam to smoltcp: one packet in at a time, where it lies; packets out by a bounded queue, buffers used again.
//!
//! **Segmentation.** Over IPv4 smoltcp hands out super-packets of up to 64 KiB, which the lane cuts while it seals. Over
//! IPv6 it does not: smoltcp 0.14 drops what is longer than the MTU there without asking whether it was to be cut
//! (`iface/interface/mod.rs`, `dispatch_ip`), so IPv6 leaves segment by segment.
//!
//! **Checksums.** smoltcp neither writes nor verifies those of TCP: outward whoever cuts the packet completes them, inward
//! the stack has verified them before ([`super::segment`]).

use std::collections::VecDeque;
use std::num::{NonZeroU16, NonZeroUsize};

use smoltcp::phy::{self, Checksum, DeviceCapabilities, Medium, PacketMeta};
use smoltcp::time::Instant as StackInstant;

use super::segment::{Layout, prepare_checksum};
use crate::offload::{Gso, NEEDS_CSUM, VnetHeader};

/// Bytes that wait to be sealed before flows have to wait themselves: eight super-packets.
const OUTBOX_BYTES: usize = 512 * 1024;
/// Answers to packets have no flow that could wait; beyond this they are dropped, as by a full device queue.
const MOST_OUTBOX_BYTES: usize = 2 * OUTBOX_BYTES;
/// Buffers that are kept to be used again, each of at most 64 KiB.
const SPARE_BUFFERS: usize = 64;
/// The longest headers that smoltcp writes: IPv6 and TCP with every option.
const HEADERS_BYTES: usize = 128;
/// The longest super-packet, by IPv4's length field.
const SUPER_PACKET_BYTES: NonZeroUsize = NonZeroUsize::new(65_535).expect("not zero");

/// Packets that want into the tunnel.
#[derive(Default)]
pub(super) struct Outbox {
    packets: VecDeque<Outgoing>,
    bytes: usize,
    spare: Vec<Vec<u8>>,
}

struct Outgoing {
    header: VnetHeader,
    /// TCP without payload, or not TCP.
    bare: bool,
    packet: Vec<u8>,
}

impl Outbox {
    /// Whether flows have to wait.
    pub(super) const fn is_full(&self) -> bool {
        self.bytes >= OUTBOX_BYTES
    }

    /// Whether the newest packet carries no payload.
    pub(super) fn ends_bare(&self) -> bool {
        self.packets.back().is_none_or(|outgoing| outgoing.bare)
    }

    /// Copies the oldest packet to the beginning of `room`: what it is, and its length. One that does not fit is dropped.
    pub(super) fn take(&mut self, room: &mut [u8]) -> Option<(VnetHeader, usize)> {
        loop {
            let Outgoing { header, packet, .. } = self.packets.pop_front()?;
            let length = packet.len();
            self.bytes -= length;
            let fits = room.get_mut(..length).map(|room| room.copy_from_slice(&packet));
            self.keep(packet);
            if fits.is_some() {
                return Some((header, length));
            }
        }
    }

    fn push(&mut self, outgoing: Outgoing) {
        self.bytes += outgoing.packet.len();
        self.packets.push_back(outgoing);
    }

    fn keep(&mut self, buffer: Vec<u8>) {
        if self.spare.len() < SPARE_BUFFERS {
            self.spare.push(buffer);
        }
    }
}

/// What smoltcp takes for a network device, made anew for each call.
pub(super) struct Port<'p> {
    pub(super) packet: Option<&'p [u8]>,
    pub(super) outbox: &'p mut Outbox,
    pub(super) mtu: usize,
    /// Send even if the outbox is full: a last word.
    pub(super) urgent: bool,
}

pub(super) struct Received<'a>(&'a [u8]);

pub(super) struct Sending<'a> {
    outbox: &'a mut Outbox,
    segment_bytes: Option<NonZeroU16>,
}

impl phy::Device for Port<'_> {
    type RxToken<'a>
        = Received<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Sending<'a>
    where
        Self: 'a;

    fn receive(&mut self, _: StackInstant) -> Option<(Received<'_>, Sending<'_>)> {
        let packet = self.packet.take()?;
        Some((Received(packet), Sending { outbox: &mut *self.outbox, segment_bytes: None }))
    }

    fn transmit(&mut self, _: StackInstant) -> Option<Sending<'_>> {
        (self.urgent || !self.outbox.is_full()).then_some(Sending { outbox: &mut *self.outbox, segment_bytes: None })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        capabilities.checksum.tcp = Checksum::None;
        capabilities.segmentation.tcpv4 = Some(SUPER_PACKET_BYTES);
        capabilities
    }
}

impl phy::RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl phy::TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut packet = self.outbox.spare.pop().unwrap_or_default();
        // What a buffer held before stays in it only where smoltcp copies payload over all of it.
        packet.resize(length, 0);
        let headers = length.min(HEADERS_BYTES);
        packet[..headers].fill(0);
        let result = f(&mut packet);
        if self.outbox.bytes < MOST_OUTBOX_BYTES {
            let layout = prepare_checksum(&mut packet);
            let header = layout.map_or(VnetHeader::PLAIN, |layout| header(layout, self.segment_bytes));
            let bare = layout.is_none_or(|layout| layout.header_bytes == length);
            self.outbox.push(Outgoing { header, bare, packet });
        } else {
            self.outbox.keep(packet);
        }
        result
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.segment_bytes = meta.segmentation_offload_size;
    }
}

/// The checksum of every TCP packet is still to be completed, and a super-packet is to be cut.
fn header(layout: Layout, segment_bytes: Option<NonZeroU16>) -> VnetHeader {
    // Headers are shorter than 128 bytes.
    let word = |bytes: usize| u16::try_from(bytes).unwrap_or(u16::MAX);
    VnetHeader {
        flags: NEEDS_CSUM,
        gso: if segment_bytes.is_some() { Gso::Tcp4 } else { Gso::None },
        header_bytes: word(layout.header_bytes),
        segment_bytes: segment_bytes.map_or(0, NonZeroU16::get),
        checksum_start: word(layout.ip_bytes),
        checksum_offset: 16,
    }
}
