//! One part of the packet path, run so many times, for a counter of instructions to watch.
//!
//! ```text
//!   seal      Engine::handle_packet into a Batch, which is cleared when it is full
//!   open      seal, and Engine::handle_datagram of each full batch: a counter opens only once, so what is opened has to
//!             be sealed first. Subtract `seal` for opening alone.
//!   split     Segments: 40 packets of each super-packet, over and over the same one
//!   coalesce  Coalescer: 40 packets to each super-packet; a copy of each stands for opening it
//! ```
//! Packets are TCP over IPv4, 1,400 bytes each. Usage: `packet_path NAME PACKETS`. Prints the line `NAME PACKETS` and
//! nothing else, once that many have been through. `tests/bench/tunnel --instructions` takes the difference of two
//! runs, which holds neither start nor handshake. Nothing is timed here, and contents are for the tests to verify.
#![expect(clippy::print_stdout, reason = "its output is what it is for")]

use std::error::Error;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Instant;

use ipnet::IpNet;
use tunnel::offload::{Coalescer, Gso, NEEDS_CSUM, Offloads, Segments, VnetHeader, checksum};
use tunnel::{
    Batch, Cloud, DropReason, Endpoint, Engine, EngineSettings, PADDING, PeerChange, PeerSettings, PrivateKey, PublicKey, Received,
};

type Outcome<T> = Result<T, Box<dyn Error>>;

const USAGE: &str = "usage: packet_path seal|open|split|coalesce PACKETS";
const MTU: u32 = 1420;
/// IPv4, and TCP with timestamps.
const HEADER_BYTES: usize = 20 + 32;
const PACKET_BYTES: usize = 1400;
const SEGMENT_BYTES: usize = PACKET_BYTES - HEADER_BYTES;
/// Packets in a super-packet.
const SEGMENTS: usize = 40;

const NEAR: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 51_820);
const FAR: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)), 51_820);

fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(name), Some(packets), None) = (arguments.next(), arguments.next(), arguments.next()) else { return Err(USAGE.into()) };
    let packets: usize = packets.parse()?;
    let done = match name.as_str() {
        "seal" => seal(packets)?,
        "open" => open(packets)?,
        "split" => split(packets)?,
        "coalesce" => coalesce(packets)?,
        _ => return Err(USAGE.into()),
    };
    if done != packets {
        return Err(format!("{done} of {packets} packets went through").into());
    }
    println!("{name} {packets}");
    Ok(())
}

fn seal(packets: usize) -> Outcome<usize> {
    let now = Instant::now();
    let (mut near, _far) = pair(now)?;
    pump(&mut near, packets, now, |near| {
        let sealed: usize = near.batch.transmits().iter().map(|run| run.segments).sum();
        black_box(near.batch.bytes());
        near.batch.clear();
        Ok(sealed)
    })
}

fn open(packets: usize) -> Outcome<usize> {
    let now = Instant::now();
    let (mut near, mut far) = pair(now)?;
    let mut plain = vec![0u8; 65_535];
    pump(&mut near, packets, now, |near| deliver(near, &mut far, now, &mut plain))
}

fn split(packets: usize) -> Outcome<usize> {
    let (header, mut room) = super_packet();
    room.resize(room.len() + PADDING, 0);
    let mut done = 0;
    while done < packets {
        let length = HEADER_BYTES + SEGMENTS.min(packets - done) * SEGMENT_BYTES;
        // The first segment's header now stands where the super-packet's did; the cut takes from it what is the same in both.
        let mut segments = Segments::new(header, black_box(room.as_mut_slice()), length).map_err(DropReason::label)?;
        while let Some((packet, length)) = segments.next() {
            black_box(&packet[..length]);
            done += 1;
        }
    }
    Ok(done)
}

fn coalesce(packets: usize) -> Outcome<usize> {
    let segments = segments()?;
    let mut coalescer = Coalescer::new(Offloads { tcp: true, udp: true });
    let mut writes = 0;
    let mut write = |bytes: &[u8]| {
        black_box(bytes);
        writes += 1;
    };
    for segment in segments.iter().cycle().take(packets) {
        let length = segment.len();
        coalescer.space(length + 32, &mut write)[..length].copy_from_slice(segment);
        coalescer.push(length, &mut write);
    }
    coalescer.flush(&mut write);
    if writes != packets.div_ceil(SEGMENTS) {
        return Err(format!("{writes} writes are not the super-packets of {packets} packets").into());
    }
    Ok(packets)
}

struct Side {
    address: SocketAddr,
    engine: Engine,
    batch: Batch,
}

impl Side {
    fn new(address: SocketAddr, key: PrivateKey, now: Instant) -> Self {
        Self { address, engine: Engine::new(EngineSettings { key, addresses: Vec::new(), mtu: MTU }, now), batch: Batch::new() }
    }

    fn add(&mut self, peer: PublicKey, allowed: IpNet, now: Instant) {
        let settings = PeerSettings {
            name: "other".into(),
            public_key: peer,
            next_public_key: None,
            preshared_key: None,
            endpoints: Vec::new(),
            allowed_ips: [allowed].into_iter().collect(),
            keepalive: None,
            roaming: true,
            cloud: Cloud::Other,
            probe: None,
        };
        self.engine.apply(PeerChange::Add(settings), now);
    }
}

/// Two sides with a session: near has 10.1.0.0/16, far has 10.2.0.0/16.
fn pair(now: Instant) -> Outcome<(Side, Side)> {
    let (near_key, far_key) = (PrivateKey::generate(), PrivateKey::generate());
    let (near_public, far_public) = (near_key.public_key(), far_key.public_key());
    let (mut near, mut far) = (Side::new(NEAR, near_key, now), Side::new(FAR, far_key, now));
    near.add(far_public, "10.2.0.0/16".parse()?, now);
    far.add(near_public, "10.1.0.0/16".parse()?, now);
    near.engine.apply(PeerChange::Endpoints(far_public, vec![Endpoint { address: FAR, interface: None }]), now);
    // Initiation, response, and the keepalive that confirms the session.
    let mut plain = vec![0u8; 65_535];
    near.engine.handle_timeout(now, &mut near.batch);
    deliver(&mut near, &mut far, now, &mut plain)?;
    deliver(&mut far, &mut near, now, &mut plain)?;
    deliver(&mut near, &mut far, now, &mut plain)?;
    Ok((near, far))
}

/// Seals the same packet again and again. `full` takes each batch, and says how many datagrams it has dealt with.
fn pump(near: &mut Side, packets: usize, now: Instant, mut full: impl FnMut(&mut Side) -> Outcome<usize>) -> Outcome<usize> {
    let mut room = segments()?.swap_remove(0);
    room.resize(PACKET_BYTES + PADDING, 0);
    let mut done = 0;
    for _ in 0..packets {
        near.engine.handle_packet(black_box(room.as_mut_slice()), PACKET_BYTES, now, &mut near.batch).map_err(DropReason::label)?;
        if near.batch.is_full() {
            done += full(near)?;
        }
    }
    done += full(near)?;
    Ok(done)
}

/// Brings the datagrams that wait at `from` to `to`. How many packets came out.
fn deliver(from: &mut Side, to: &mut Side, now: Instant, plain: &mut [u8]) -> Outcome<usize> {
    let mut packets = 0;
    for (datagram, _) in from.batch.iter() {
        match to.engine.handle_datagram(datagram, from.address, now, plain, &mut to.batch) {
            Received::Packet(packet) => {
                black_box(packet);
                packets += 1;
            }
            Received::Quiet => {}
            Received::Dropped(reason) => return Err(reason.label().into()),
        }
    }
    from.batch.clear();
    Ok(packets)
}

/// The packets that the super-packet is cut into.
fn segments() -> Outcome<Vec<Vec<u8>>> {
    let (header, mut room) = super_packet();
    let length = room.len();
    let mut segments = Segments::new(header, &mut room, length).map_err(DropReason::label)?;
    let mut packets = Vec::new();
    while let Some((packet, length)) = segments.next() {
        packets.push(packet[..length].to_vec());
    }
    Ok(packets)
}

/// A super-packet from 10.1.0.1 to 10.2.0.1 as the kernel hands it over, and how it is described.
fn super_packet() -> (VnetHeader, Vec<u8>) {
    let mut packet = vec![7u8; HEADER_BYTES + SEGMENTS * SEGMENT_BYTES];
    let length = packet.len() as u16;
    packet[..20].copy_from_slice(&[0x45, 0, 0, 0, 0x12, 0x34, 0x40, 0, 64, 6, 0, 0, 10, 1, 0, 1, 10, 2, 0, 1]);
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    let checksum = !checksum::fold(checksum::sum(&packet[..20]));
    packet[10..12].copy_from_slice(&checksum.to_ne_bytes());
    // Ports; sequence number; acknowledgment; length of the header, ACK and PSH; window; checksum; urgent pointer.
    packet[20..40].copy_from_slice(&[0x01, 0xbb, 0xc3, 0x50, 0, 0, 0x10, 0, 0, 0, 0x20, 0, 0x80, 0x18, 0x01, 0xf6, 0, 0, 0, 0]);
    packet[40..52].copy_from_slice(&[1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 8]); // Timestamps.
    let pseudo = checksum::fold(checksum::pseudo_header(&packet, 6, packet.len() - 20));
    packet[36..38].copy_from_slice(&pseudo.to_ne_bytes());
    let header = VnetHeader {
        flags: NEEDS_CSUM,
        gso: Gso::Tcp4,
        header_bytes: HEADER_BYTES as u16,
        segment_bytes: SEGMENT_BYTES as u16,
        checksum_start: 20,
        checksum_offset: 16,
    };
    (header, packet)
}
