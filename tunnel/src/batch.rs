//! Sealed datagrams on their way out, one behind the other in one buffer.
//!
//! The engine seals straight into the batch, so that the one copy that `Tunn` makes is the only one. Datagrams of equal
//! length with the same outer header lie contiguous and form a run, which leaves as one UDP-GSO send; a shorter one may
//! end a run, as the kernel's segmentation leaves it.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

/// Room for the largest thing sealed at once: 65,535 bytes of packet, 32 of WireGuard, and a handshake beside it.
const SLACK_BYTES: usize = 66_000;
/// Enough for a full super-packet of segments behind another.
const CAPACITY_BYTES: usize = 256 * 1024;
/// Runs that wait before it is time to send.
const MOST_RUNS: usize = 256;
/// Datagrams in one UDP-GSO send: UDP_MAX_SEGMENTS of the kernels that have fewest (Linux 4.18 to 6.8).
const MOST_SEGMENTS: usize = 64;
/// Bytes of one UDP-GSO send: 65,535 less the largest IP and UDP headers, with some room.
const MOST_RUN_BYTES: usize = 65_000;

/// A peer's UDP address, and the interface to leave by where an underlay names one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Endpoint {
    pub address: SocketAddr,
    /// Kernel index of the interface of the underlay, if it names one.
    pub interface: Option<u32>,
}

/// What the outer header of a datagram says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Outer {
    pub endpoint: Endpoint,
    /// The address of ours that the peer last wrote to; None: the kernel picks one.
    pub source: Option<IpAddr>,
    /// The two ECN bits (RFC 3168 §5).
    pub ecn: u8,
}

/// A run of datagrams for one send. All are `segment_bytes` long but the last, which may be shorter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    pub bytes: Range<usize>,
    pub segment_bytes: usize,
    pub segments: usize,
    pub outer: Outer,
    /// Nothing may join it.
    closed: bool,
}

#[derive(Debug)]
pub struct Batch {
    buffer: Vec<u8>,
    used: usize,
    transmits: Vec<Transmit>,
}

impl Batch {
    pub fn new() -> Self {
        Self { buffer: vec![0; CAPACITY_BYTES], used: 0, transmits: Vec::with_capacity(2 * MOST_RUNS) }
    }

    /// Whether it is time to send: little room is left, or as many runs wait as one flush takes.
    pub fn is_full(&self) -> bool {
        self.buffer.len() - self.used < SLACK_BYTES || self.transmits.len() >= MOST_RUNS
    }

    pub fn is_empty(&self) -> bool {
        self.transmits.is_empty()
    }

    pub fn clear(&mut self) {
        self.used = 0;
        self.transmits.clear();
    }

    /// The runs in the order in which they were sealed.
    pub fn transmits(&self) -> &[Transmit] {
        &self.transmits
    }

    /// The bytes that the ranges of [`Self::transmits`] mean.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer
    }

    /// The datagrams one by one.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], Endpoint)> {
        self.transmits.iter().flat_map(|transmit| {
            let run = &self.buffer[transmit.bytes.clone()];
            run.chunks(transmit.segment_bytes.max(1)).map(|datagram| (datagram, transmit.outer.endpoint))
        })
    }

    /// Where the next datagram is to be written.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        &mut self.buffer[self.used..]
    }

    /// Whether a datagram of `length` bytes still fits (a handshake message needs 148).
    pub(crate) fn has_room(&self, length: usize) -> bool {
        self.buffer.len() - self.used >= length.max(148)
    }

    /// The next datagram begins a run, whatever it is.
    pub(crate) fn end_run(&mut self) {
        if let Some(run) = self.transmits.last_mut() {
            run.closed = true;
        }
    }

    /// Takes the first `length` bytes of `space` as a datagram.
    pub(crate) fn commit(&mut self, length: usize, outer: Outer) {
        let end = (self.used + length).min(self.buffer.len());
        match self.transmits.last_mut() {
            Some(run) if run.takes(length, &outer) => {
                run.bytes.end = end;
                run.segments += 1;
            }
            _ => self.transmits.push(Transmit { bytes: self.used..end, segment_bytes: length, segments: 1, outer, closed: false }),
        }
        self.used = end;
    }
}

impl Transmit {
    /// Whether a datagram of `length` bytes may be the run's next.
    fn takes(&self, length: usize, outer: &Outer) -> bool {
        let whole = self.bytes.len() == self.segments * self.segment_bytes;
        whole
            && !self.closed
            && length <= self.segment_bytes
            && length > 0
            && self.segments < MOST_SEGMENTS
            && self.bytes.len() + length <= MOST_RUN_BYTES
            && self.outer == *outer
    }
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outer(port: u16, ecn: u8) -> Outer {
        Outer { endpoint: Endpoint { address: SocketAddr::from(([192, 0, 2, 1], port)), interface: None }, source: None, ecn }
    }

    fn runs(batch: &Batch) -> Vec<(usize, usize)> {
        batch.transmits().iter().map(|run| (run.segments, run.bytes.len())).collect()
    }

    #[test]
    fn equal_lengths_form_a_run_which_a_shorter_one_ends() {
        let mut batch = Batch::new();
        for length in [1452, 1452, 1452, 100, 100] {
            batch.commit(length, outer(1, 0));
        }
        assert_eq!(runs(&batch), [(4, 3 * 1452 + 100), (1, 100)]);
        assert_eq!(batch.iter().map(|(datagram, _)| datagram.len()).collect::<Vec<_>>(), [1452, 1452, 1452, 100, 100]);
    }

    #[test]
    fn a_longer_one_another_endpoint_or_another_mark_of_congestion_begins_a_run() {
        let mut batch = Batch::new();
        batch.commit(100, outer(1, 0));
        batch.commit(200, outer(1, 0));
        batch.commit(200, outer(2, 0));
        batch.commit(200, outer(2, 3));
        assert_eq!(runs(&batch), [(1, 100), (1, 200), (1, 200), (1, 200)]);
    }

    #[test]
    fn a_run_has_no_more_than_the_kernel_takes() {
        let mut batch = Batch::new();
        for _ in 0..70 {
            batch.commit(32, outer(1, 0));
        }
        assert_eq!(runs(&batch), [(64, 64 * 32), (6, 6 * 32)]);
        batch.clear();
        for _ in 0..50 {
            batch.commit(1452, outer(1, 0));
        }
        assert_eq!(runs(&batch), [(44, 44 * 1452), (6, 6 * 1452)]);
    }
}
