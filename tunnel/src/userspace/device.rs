//! The seam to smoltcp: packets in one at a time, packets out by a bounded queue, buffers used again.

use std::collections::VecDeque;

use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::time::Instant as StackInstant;

/// Packets that wait to be sealed; more are dropped, as by a full device queue.
const OUTBOX_PACKETS: usize = 1024;

/// Packets between the lane and smoltcp: one inward at a time, a bounded queue outward, buffers used again.
pub(super) struct Device {
    pub(super) mtu: usize,
    pub(super) inbox: Option<Vec<u8>>,
    pub(super) outbox: VecDeque<Vec<u8>>,
    pub(super) spare: Vec<Vec<u8>>,
}

pub(super) struct Received<'a> {
    packet: Vec<u8>,
    spare: &'a mut Vec<Vec<u8>>,
}

pub(super) struct Sending<'a> {
    outbox: &'a mut VecDeque<Vec<u8>>,
    buffer: Vec<u8>,
}

impl phy::Device for Device {
    type RxToken<'a> = Received<'a>;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: StackInstant) -> Option<(Received<'_>, Sending<'_>)> {
        let packet = self.inbox.take()?;
        let buffer = self.spare.pop().unwrap_or_default();
        Some((Received { packet, spare: &mut self.spare }, Sending { outbox: &mut self.outbox, buffer }))
    }

    fn transmit(&mut self, _: StackInstant) -> Option<Sending<'_>> {
        if self.outbox.len() >= OUTBOX_PACKETS {
            return None;
        }
        let buffer = self.spare.pop().unwrap_or_default();
        Some(Sending { outbox: &mut self.outbox, buffer })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        capabilities
    }
}

impl phy::RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        let result = f(&self.packet);
        if self.spare.len() < OUTBOX_PACKETS {
            self.spare.push(self.packet);
        }
        result
    }
}

impl phy::TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(mut self, length: usize, f: F) -> R {
        self.buffer.clear();
        self.buffer.resize(length, 0);
        let result = f(&mut self.buffer);
        self.outbox.push_back(self.buffer);
        result
    }
}
