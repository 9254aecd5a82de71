//! Sealed datagrams on their way out, one behind the other in one buffer.
//!
//! The engine seals straight into the batch, so that the one copy that `Tunn` makes is the only one. A run of
//! equal length to one endpoint lies contiguous, ready to leave as one UDP-GSO send.

use std::net::SocketAddr;
use std::ops::Range;

/// Room for the largest thing sealed at once: 65,535 bytes of packet, 32 of WireGuard, and a handshake beside it.
const SLACK_BYTES: usize = 66_000;
/// Enough for a full super-packet of segments behind another.
const CAPACITY_BYTES: usize = 256 * 1024;

/// A peer's UDP address, and the interface to leave by where an underlay names one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Endpoint {
    pub address: SocketAddr,
    /// Kernel index of the interface of the underlay, if it names one.
    pub interface: Option<u32>,
}

/// One datagram to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    pub bytes: Range<usize>,
    pub endpoint: Endpoint,
}

#[derive(Debug)]
pub struct Batch {
    buffer: Vec<u8>,
    used: usize,
    transmits: Vec<Transmit>,
}

impl Batch {
    pub fn new() -> Self {
        Self { buffer: vec![0; CAPACITY_BYTES], used: 0, transmits: Vec::with_capacity(512) }
    }

    /// Whether it is time to send: little room is left, or as many datagrams wait as one flush takes.
    pub fn is_full(&self) -> bool {
        self.buffer.len() - self.used < SLACK_BYTES || self.transmits.len() >= 256
    }

    pub fn is_empty(&self) -> bool {
        self.transmits.is_empty()
    }

    pub fn clear(&mut self) {
        self.used = 0;
        self.transmits.clear();
    }

    /// The datagrams in the order in which they were sealed.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], Endpoint)> {
        self.transmits.iter().map(|transmit| (&self.buffer[transmit.bytes.clone()], transmit.endpoint))
    }

    /// Where the next datagram is to be written.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        &mut self.buffer[self.used..]
    }

    /// Whether a datagram of `length` bytes still fits (a handshake message needs 148).
    pub(crate) fn has_room(&self, length: usize) -> bool {
        self.buffer.len() - self.used >= length.max(148)
    }

    /// Takes the first `length` bytes of `space` as a datagram to `endpoint`.
    pub(crate) fn commit(&mut self, length: usize, endpoint: Endpoint) {
        let end = (self.used + length).min(self.buffer.len());
        self.transmits.push(Transmit { bytes: self.used..end, endpoint });
        self.used = end;
    }
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}
