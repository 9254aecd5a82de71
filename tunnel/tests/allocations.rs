//! Once warm, the packet path allocates nothing: from what one device's queue gives to what the other one's takes.
//!
//! ```text
//!   read ─► Segments ─► Engine::handle_packet ─► Batch ─► Engine::handle_datagram ─► Coalescer ─► write
//! ```
//! Two engines with a session, joined by hand, and this program's allocator, which counts. Counted are all allocations of
//! the thread, `boringtun`'s too; frees are not, since nothing can be freed that was not allocated. Timers run along, as
//! they do in a lane. What comes out is compared with what went in, so that nothing is counted that did not happen.
//!
//! Left out: the sockets and the device, packets that wait for a session (they are copied), fragments, probes, and a
//! handshake that falls into the traffic.
#![expect(unsafe_code, reason = "an allocator is unsafe to write")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use tunnel::offload::{Coalescer, Gso, NEEDS_CSUM, Offloads, Segments, VNET_BYTES, VnetHeader, checksum};
use tunnel::{Batch, Cloud, Endpoint, Engine, EngineSettings, PADDING, PeerChange, PeerSettings, PrivateKey, PublicKey, Received};

/// Largest inner packet in bytes.
const MTU: usize = 1420;
/// Packets that go through in a round.
const PACKETS_A_ROUND: usize = 40;
/// Packets that are counted.
const PACKETS: usize = 10_000;
const ROUNDS: usize = PACKETS / PACKETS_A_ROUND;
/// Rounds before it counts: buffers that grow have grown.
const WARM_UP_ROUNDS: usize = 20;
/// The time between two rounds, as the engines are told: each tenth one has a tick.
const ROUND: Duration = Duration::from_millis(10);

const NEAR: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 51_820);
const FAR: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)), 51_820);

#[test]
fn the_counter_counts() {
    let before = allocations();
    let mut bytes = black_box(Vec::<u8>::with_capacity(10));
    bytes.extend_from_slice(black_box(&[1u8; 1_000]));
    drop(black_box(bytes));
    drop(black_box(vec![0u8; 1_000]));
    assert_eq!(allocations() - before, 3, "one with capacity, grown once, and one of zeros");
}

#[test]
fn tcp_super_packets_allocate_nothing() {
    for is_ipv6 in [false, true] {
        let flow = Flow { is_ipv6, transport: Transport::Tcp };
        let whole = flow.super_packet();
        let case = Case { reads: vec![whole.clone()], writes: vec![whole] };
        assert_allocates_nothing(&case, &format!("{flow:?}"));
    }
}

#[test]
fn pure_acknowledgments_allocate_nothing() {
    for is_ipv6 in [false, true] {
        let flow = Flow { is_ipv6, transport: Transport::Tcp };
        let case = Case { reads: vec![flow.single(0); PACKETS_A_ROUND], writes: vec![flow.written_alone(0); PACKETS_A_ROUND] };
        assert_allocates_nothing(&case, &format!("{flow:?}"));
    }
}

#[test]
fn udp_super_packets_allocate_nothing() {
    for is_ipv6 in [false, true] {
        let flow = Flow { is_ipv6, transport: Transport::Udp };
        let whole = flow.super_packet();
        let case = Case { reads: vec![whole.clone()], writes: vec![whole] };
        assert_allocates_nothing(&case, &format!("{flow:?}"));
    }
}

#[test]
fn udp_datagrams_that_come_one_by_one_allocate_nothing() {
    for is_ipv6 in [false, true] {
        let flow = Flow { is_ipv6, transport: Transport::Udp };
        let case = Case { reads: vec![flow.single(flow.segment_bytes()); PACKETS_A_ROUND], writes: vec![flow.super_packet()] };
        assert_allocates_nothing(&case, &format!("{flow:?}"));
    }
}

/// What goes through in a round: what the device's queue gives, and what the other one's must take for it. Each begins
/// with a virtio-net header.
struct Case {
    reads: Vec<Vec<u8>>,
    writes: Vec<Vec<u8>>,
}

fn assert_allocates_nothing(case: &Case, what: &str) {
    let mut link = Link::new();
    let mut packets = 0;
    for _ in 0..WARM_UP_ROUNDS {
        packets += link.round(case);
    }
    assert_eq!(packets, WARM_UP_ROUNDS * PACKETS_A_ROUND, "{what}");
    let (before, mut packets) = (allocations(), 0);
    for _ in 0..ROUNDS {
        packets += link.round(case);
    }
    let made = allocations() - before;
    assert_eq!((packets, made), (PACKETS, 0), "packets and allocations of {what}");
}

/// Two engines with a session. Near has 10.1.0.0/16 and fd01::/16, far has 10.2.0.0/16 and fd02::/16.
struct Link {
    near: Side,
    far: Side,
    now: Instant,
}

struct Side {
    address: SocketAddr,
    engine: Engine,
    batch: Batch,
    coalescer: Coalescer,
    /// Where what the device gives is read to.
    room: Vec<u8>,
}

impl Link {
    fn new() -> Self {
        let now = Instant::now();
        let (near_key, far_key) = (PrivateKey::generate(), PrivateKey::generate());
        let (near_public, far_public) = (near_key.public_key(), far_key.public_key());
        let mut near = Side::new(NEAR, near_key, ["10.1.0.254/16", "fd01::fe/16"], now);
        let mut far = Side::new(FAR, far_key, ["10.2.0.254/16", "fd02::fe/16"], now);
        near.add(far_public, ["10.2.0.0/16", "fd02::/16"], now);
        far.add(near_public, ["10.1.0.0/16", "fd01::/16"], now);
        near.engine.apply(PeerChange::Endpoints(far_public, vec![Endpoint { address: FAR, interface: None }]), now);
        // Initiation, response, and the keepalive that confirms the session.
        let mut packets = 0;
        let mut write = |_: &[u8]| packets += 1;
        near.tick(now);
        deliver(&mut near, &mut far, now, &mut write);
        deliver(&mut far, &mut near, now, &mut write);
        deliver(&mut near, &mut far, now, &mut write);
        assert_eq!(packets, 0, "a handshake is nothing for a device");
        Self { near, far, now }
    }

    /// Sends what is read at near to far, and checks what is written there. How many packets were opened.
    fn round(&mut self, case: &Case) -> usize {
        self.now += ROUND;
        let Self { near, far, now } = self;
        for read in &case.reads {
            near.seal(read, *now);
        }
        near.tick(*now);
        far.tick(*now);
        let (mut written, mut unasked) = (0usize, 0usize);
        let opened = deliver(near, far, *now, &mut |bytes: &[u8]| {
            let expected = case.writes.get(written).map(Vec::as_slice);
            assert!(expected == Some(bytes), "write {written} of {} bytes is not what was sent", bytes.len());
            written += 1;
        });
        deliver(far, near, *now, &mut |_: &[u8]| unasked += 1);
        assert_eq!((written, unasked), (case.writes.len(), 0), "writes at far and near");
        opened
    }
}

impl Side {
    fn new(address: SocketAddr, key: PrivateKey, own: [&str; 2], now: Instant) -> Self {
        let addresses = own.iter().map(|own| own.parse().expect("an address with its prefix")).collect();
        Self {
            address,
            engine: Engine::new(EngineSettings { key, addresses, mtu: MTU as u32 }, now),
            batch: Batch::new(),
            coalescer: Coalescer::new(Offloads { tcp: true, udp: true }),
            room: vec![0; 65_535 + PADDING],
        }
    }

    fn add(&mut self, peer: PublicKey, allowed_ips: [&str; 2], now: Instant) {
        let settings = PeerSettings {
            name: "other".into(),
            public_key: peer,
            next_public_key: None,
            preshared_key: None,
            endpoints: Vec::new(),
            allowed_ips: allowed_ips.iter().map(|prefix| prefix.parse().expect("a prefix")).collect(),
            keepalive: None,
            roaming: true,
            cloud: Cloud::Other,
            probe: None,
        };
        self.engine.apply(PeerChange::Add(settings), now);
    }

    /// Seals what one read of the device brought, virtio-net header first.
    fn seal(&mut self, read: &[u8], now: Instant) {
        let header = VnetHeader::parse(read).expect("a header");
        let length = read.len() - VNET_BYTES;
        self.room[..length].copy_from_slice(&read[VNET_BYTES..]);
        let mut segments = Segments::new(header, &mut self.room, length).expect("described rightly");
        while let Some((packet, length)) = segments.next() {
            self.engine.handle_packet(packet, length, now, &mut self.batch).expect("sealed");
        }
    }

    fn tick(&mut self, now: Instant) {
        self.engine.handle_timeout(now, &mut self.batch);
        while self.engine.poll_event().is_some() {}
    }
}

/// Brings the datagrams that wait at `from` to `to`, which writes what they hold. How many packets that were.
fn deliver(from: &mut Side, to: &mut Side, now: Instant, write: &mut impl FnMut(&[u8])) -> usize {
    let mut packets = 0;
    for (datagram, _) in from.batch.iter() {
        let plain = to.coalescer.space(datagram.len(), write);
        match to.engine.handle_datagram(datagram, from.address, now, plain, &mut to.batch) {
            Received::Packet(packet) => {
                let length = packet.len();
                to.coalescer.push(length, write);
                packets += 1;
            }
            Received::Quiet => to.coalescer.cancel(),
            Received::Dropped(reason) => panic!("dropped: {reason}"),
        }
    }
    to.coalescer.flush(write);
    from.batch.clear();
    packets
}

#[derive(Debug, Clone, Copy)]
struct Flow {
    is_ipv6: bool,
    transport: Transport,
}

#[derive(Debug, Clone, Copy)]
enum Transport {
    Tcp,
    Udp,
}

impl Flow {
    /// As much payload as fits the MTU.
    fn segment_bytes(self) -> usize {
        MTU - self.header_bytes()
    }

    /// A round's packets as one read or write.
    fn super_packet(self) -> Vec<u8> {
        let gso = match (self.transport, self.is_ipv6) {
            (Transport::Tcp, false) => Gso::Tcp4,
            (Transport::Tcp, true) => Gso::Tcp6,
            (Transport::Udp, _) => Gso::Udp,
        };
        let (header_bytes, segment_bytes) = (self.header_bytes() as u16, self.segment_bytes() as u16);
        let header = VnetHeader { gso, header_bytes, segment_bytes, ..self.plain_header() };
        [&header.to_bytes()[..], &self.packet(PACKETS_A_ROUND * self.segment_bytes())].concat()
    }

    /// One packet as it is read: its checksum is not done yet.
    fn single(self, payload_bytes: usize) -> Vec<u8> {
        [&self.plain_header().to_bytes()[..], &self.packet(payload_bytes)].concat()
    }

    /// One packet as it is written that can be in no super-packet: its checksum is done.
    fn written_alone(self, payload_bytes: usize) -> Vec<u8> {
        let mut packet = self.packet(payload_bytes);
        let checksum = !checksum::fold(checksum::sum(&packet[self.start()..]));
        let field = self.start() + self.checksum_offset();
        packet[field..field + 2].copy_from_slice(&checksum.to_ne_bytes());
        [&VnetHeader::PLAIN.to_bytes()[..], &packet].concat()
    }

    fn plain_header(self) -> VnetHeader {
        VnetHeader {
            flags: NEEDS_CSUM,
            checksum_start: self.start() as u16,
            checksum_offset: self.checksum_offset() as u16,
            ..VnetHeader::PLAIN
        }
    }

    /// From 10.1.0.1 to 10.2.0.1 with DF, or from fd01::1 to fd02::1. Where the transport's checksum stands is the sum of
    /// the pseudo-header.
    fn packet(self, payload_bytes: usize) -> Vec<u8> {
        let mut behind = vec![0x01u8, 0xbb, 0xc3, 0x50]; // Ports 443 and 50,000.
        match self.transport {
            Transport::Tcp => {
                // Sequence number and acknowledgment; 32 bytes of header, ACK, with payload PSH; window; checksum; urgent.
                let flags = if payload_bytes == 0 { 0x10 } else { 0x18 };
                behind.extend([0xff, 0xff, 0xff, 0x80, 0, 0, 0x20, 0, 0x80, flags, 0x01, 0xf6, 0, 0, 0, 0]);
                behind.extend([1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 8]); // Timestamps.
            }
            Transport::Udp => {
                behind.extend(((8 + payload_bytes) as u16).to_be_bytes());
                behind.extend([0, 0]);
            }
        }
        behind.resize(behind.len() + payload_bytes, 7);
        let number = match self.transport {
            Transport::Tcp => 6,
            Transport::Udp => 17,
        };
        let length = behind.len() as u16;
        let mut packet: Vec<u8> = Vec::new();
        if self.is_ipv6 {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend(length.to_be_bytes());
            packet.extend([number, 64]);
            for site in [1u8, 2] {
                packet.extend([0xfd, site, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
            }
        } else {
            packet.extend([0x45, 0]);
            packet.extend((20 + length).to_be_bytes());
            packet.extend([0x12, 0x34, 0x40, 0, 64, number, 0, 0]);
            packet.extend([10, 1, 0, 1, 10, 2, 0, 1]);
            let checksum = !checksum::fold(checksum::sum(&packet));
            packet[10..12].copy_from_slice(&checksum.to_ne_bytes());
        }
        packet.extend(behind);
        let pseudo = checksum::fold(checksum::pseudo_header(&packet, number, usize::from(length)));
        let field = self.start() + self.checksum_offset();
        packet[field..field + 2].copy_from_slice(&pseudo.to_ne_bytes());
        packet
    }

    /// Where the transport header begins.
    const fn start(self) -> usize {
        if self.is_ipv6 { 40 } else { 20 }
    }

    const fn header_bytes(self) -> usize {
        let transport_bytes = match self.transport {
            Transport::Tcp => 32,
            Transport::Udp => 8,
        };
        self.start() + transport_bytes
    }

    const fn checksum_offset(self) -> usize {
        match self.transport {
            Transport::Tcp => 16,
            Transport::Udp => 6,
        }
    }
}

thread_local! {
    /// Each test has a thread of its own. Made at compile time and never dropped: to count is no allocation.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// What this thread has allocated or grown so far.
fn allocations() -> u64 {
    ALLOCATIONS.get()
}

fn count() {
    // A thread that is ending has nobody left to read it.
    let _gone = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
}

/// The system's allocator, counted.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: each call is the system allocator's with the same arguments, and so is what it returns. To count neither
// allocates nor panics.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `alloc`, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `alloc_zeroed`, which is the same.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: `memory` is the system allocator's, since all of ours is; the rest of the contract the caller keeps.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: `memory` is the system allocator's, since all of ours is; `layout` the caller gives as it was.
        unsafe { System.dealloc(memory, layout) }
    }
}
