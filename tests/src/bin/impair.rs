//! A wire in user space that harms what it carries. What it can be told, and in which words: `tests::impairment`.
//!
//! `impair --seed=NUMBER A B` joins two interfaces of its namespace, which have no addresses and do not forward. Each has
//! a packet socket that takes every frame which comes in there and sends out what came in at the other.
//!
//! Senders on a veth leave the checksum to the receiver: a frame that is read here has none yet. Packet sockets tell by a
//! header in front of each frame (`PACKET_VNET_HDR`) what is still to be done, and take the same header back, so frames
//! pass as they came. Where we write to a datagram ourselves we make its checksums right and clear that header.
//!
//! One thread, no state but what is in [`Wire`]. Ends when its standard input does.
//!
//! Source: packet(7); linux/virtio_net.h.

#![expect(unsafe_code, reason = "packet sockets and poll(2) have no safe wrapper in the standard library")]

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::ffi::CString;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::json;
use socket2::{Domain, Socket, Type};
use tests::frame::Layout;
use tests::impairment::{Counters, Direction, PORTS, Replay, Settings};
use tests::random::Random;

/// Of `struct virtio_net_hdr`, in front of each frame.
const HEADER_BYTES: usize = 10;
/// Where in it the kind of a super-frame stands; zero: a frame like any other.
const GSO_TYPE: usize = 1;
/// A super-frame of 64 KiB with its headers still fits.
const BUFFER_BYTES: usize = HEADER_BYTES + 66_000;
/// Frames from one interface before the other is looked at.
const BURST: usize = 256;
/// How long a frame waits for others to overtake it if none come.
const HELD_AT_MOST: Duration = Duration::from_secs(1);
/// What a flow under a rate limit may send at once, in bytes of IP.
const RATE_BURST_BYTES: f64 = 30_000.0;
/// For bursts between two turns of the loop.
const SOCKET_BUFFER_BYTES: libc::c_int = 16 << 20;

fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [seed, a, b] = words.as_slice() else { anyhow::bail!("usage: impair --seed=NUMBER A B") };
    let seed = seed.strip_prefix("--seed=").and_then(|seed| seed.parse().ok()).context("--seed=NUMBER")?;
    let wire = Wire::new(Random::new(seed), [open(a).context(a.clone())?, open(b).context(b.clone())?]);
    wire.run()
}

/// A packet socket for all that comes in at `interface`, whoever it is for, and nothing that goes out there.
fn open(interface: &str) -> anyhow::Result<Socket> {
    // Of no protocol, so that it receives nothing before it is bound.
    let socket = Socket::new(Domain::PACKET, Type::RAW, None).context("a packet socket")?;
    socket.set_nonblocking(true)?;
    let name = CString::new(interface)?;
    // SAFETY: `name` is a string that ends with a zero and outlives the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    ensure!(index != 0, "no such interface");
    let index = libc::c_int::try_from(index)?;
    let on: libc::c_int = 1;
    set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &SOCKET_BUFFER_BYTES)?;
    set_option(&socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &SOCKET_BUFFER_BYTES)?;
    set_option(&socket, libc::SOL_PACKET, libc::PACKET_VNET_HDR, &on)?;
    set_option(&socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &on)?;

    // SAFETY: an all-zero sockaddr_ll is valid; it is plain data.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index;
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: `address` is a sockaddr_ll of `length` bytes and outlives the call.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    ensure!(result == 0, "bind: {}", io::Error::last_os_error());

    // SAFETY: an all-zero packet_mreq is valid; it is plain data.
    let mut membership: libc::packet_mreq = unsafe { mem::zeroed() };
    membership.mr_ifindex = index;
    membership.mr_type = libc::PACKET_MR_PROMISC as u16;
    set_option(&socket, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &membership)?;
    Ok(socket)
}

fn set_option<T>(socket: &Socket, level: libc::c_int, name: libc::c_int, value: &T) -> anyhow::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` is readable for `length` bytes, and the kernel only reads it.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const *value).cast(), length) };
    ensure!(result == 0, "setsockopt {level} {name}: {}", io::Error::last_os_error());
    Ok(())
}

/// Both directions and what is under way.
struct Wire {
    /// Where the direction of the same index comes in; it goes out at the other.
    sockets: [Socket; 2],
    ways: [Way; 2],
    delayed: BinaryHeap<Reverse<Delayed>>,
    random: Random,
    flaps: Flaps,
    /// How many datagrams of each direction are recorded.
    record: usize,
    /// Counts frames, so that those of one moment keep their order.
    order: u64,
}

/// One direction.
struct Way {
    settings: Settings,
    counters: Counters,
    /// Datagrams that have not been held back, so far.
    overtaken_by: u64,
    held: VecDeque<Held>,
    flows: HashMap<Vec<u8>, Bucket>,
    recorded: Vec<Vec<u8>>,
}

/// A frame that waits until others have passed, or until `latest`.
struct Held {
    until: u64,
    latest: Instant,
    frame: Vec<u8>,
}

/// What a flow may still send, in bytes, as of `at`.
struct Bucket {
    bytes: f64,
    at: Instant,
}

/// A frame, with the header in front, that is sent when it is due. Compared by time and order alone.
struct Delayed {
    due: Instant,
    order: u64,
    way: usize,
    frame: Vec<u8>,
}

/// Times at which the wire goes down and comes back.
struct Flaps {
    left: u32,
    is_down: bool,
    next: Option<Instant>,
    down: Duration,
    up: Duration,
}

impl Wire {
    fn new(random: Random, sockets: [Socket; 2]) -> Self {
        let flaps = Flaps { left: 0, is_down: false, next: None, down: Duration::ZERO, up: Duration::ZERO };
        Self { sockets, ways: [Way::new(), Way::new()], delayed: BinaryHeap::new(), random, flaps, record: 0, order: 0 }
    }

    fn run(mut self) -> anyhow::Result<()> {
        let mut input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        let mut lines = Vec::new();
        let mut buffer = vec![0u8; BUFFER_BYTES];
        loop {
            let files = [self.sockets[0].as_raw_fd(), self.sockets[1].as_raw_fd(), input.as_raw_fd()];
            let [a, b, told] = wait(files, self.timeout())?;
            self.turn_flaps(Instant::now());
            for (way, has_frames) in [a, b].into_iter().enumerate() {
                if has_frames {
                    self.carry(way, &mut buffer);
                }
            }
            self.send_what_is_due(Instant::now());
            if told {
                let mut bytes = [0u8; 4096];
                let count = input.read(&mut bytes)?;
                if count == 0 {
                    return Ok(());
                }
                lines.extend_from_slice(&bytes[..count]);
                while let Some(end) = lines.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = lines.drain(..=end).collect();
                    let answer = self.obey(&String::from_utf8_lossy(&line)).unwrap_or_else(|error| format!("error {error:#}"));
                    let mut output = io::stdout().lock();
                    writeln!(output, "{answer}")?;
                    output.flush()?;
                }
            }
        }
    }

    /// Takes what has come in, up to a burst.
    fn carry(&mut self, way: usize, buffer: &mut [u8]) {
        for _ in 0..BURST {
            match self.sockets[way].read(buffer) {
                Ok(length) if length > HEADER_BYTES => self.handle(way, &mut buffer[..length], Instant::now()),
                Ok(_) => {}
                // Nothing more; or the interface is down, which is no end.
                Err(_) => return,
            }
        }
    }

    /// One frame, with the header in front.
    fn handle(&mut self, way: usize, frame: &mut [u8], now: Instant) {
        let Self { ways, random, .. } = self;
        let Way { settings, counters, flows, recorded, .. } = &mut ways[way];
        if settings.down || self.flaps.is_down {
            counters.down += 1;
            return;
        }
        if frame[GSO_TYPE] != 0 {
            counters.super_frames += 1;
        }
        let Some(layout) = tunnel_datagram(&frame[HEADER_BYTES..]) else {
            counters.other += 1;
            self.transmit(way, frame);
            return;
        };
        counters.count_kind(kind(layout, &frame[HEADER_BYTES..]));
        if recorded.len() < self.record {
            recorded.push(frame.to_vec());
        }
        if settings.drop_larger.is_some_and(|largest| layout.ip_bytes() > largest) {
            counters.too_large += 1;
            return;
        }
        if let Some(rate) = settings.rate_bps_per_flow
            && !within_rate(flows, layout.flow(&frame[HEADER_BYTES..]), layout.ip_bytes(), rate, now)
        {
            counters.over_rate += 1;
            return;
        }
        if meets(random, settings.loss) {
            counters.lost += 1;
            return;
        }
        if meets(random, settings.corrupt) {
            counters.corrupted += 1;
            flip_a_bit(random, layout, frame);
        }
        let copies = if meets(random, settings.duplicate) { 2 } else { 1 };
        counters.duplicated += copies - 1;
        for _ in 0..copies {
            self.reorder(way, frame, now);
        }
    }

    /// Holds a datagram back, or sends it on its way and after it those that it lets go.
    fn reorder(&mut self, way: usize, frame: &[u8], now: Instant) {
        let Way { settings, counters, overtaken_by, held, .. } = &mut self.ways[way];
        if meets(&mut self.random, settings.reorder) {
            counters.reordered += 1;
            held.push_back(Held { until: *overtaken_by + settings.depth, latest: now + HELD_AT_MOST, frame: frame.to_vec() });
            return;
        }
        *overtaken_by += 1;
        self.delay(way, frame, now);
        self.release(way, now);
    }

    /// Sends those on their way that have been held long enough.
    fn release(&mut self, way: usize, now: Instant) {
        loop {
            let Way { overtaken_by, held, .. } = &mut self.ways[way];
            let is_due = held.front().is_some_and(|first| first.until <= *overtaken_by || first.latest <= now);
            if !is_due {
                return;
            }
            let Some(first) = held.pop_front() else { return };
            self.delay(way, &first.frame, now);
        }
    }

    fn delay(&mut self, way: usize, frame: &[u8], now: Instant) {
        let settings = &self.ways[way].settings;
        let (delay, jitter) = (settings.delay, settings.jitter);
        self.ways[way].counters.passed += 1;
        if delay.is_zero() && jitter.is_zero() {
            self.transmit(way, frame);
            return;
        }
        let due = now + delay + jitter.mul_f64(share(&mut self.random));
        self.order += 1;
        self.delayed.push(Reverse(Delayed { due, order: self.order, way, frame: frame.to_vec() }));
    }

    fn transmit(&mut self, way: usize, frame: &[u8]) {
        if self.sockets[1 - way].send(frame).is_err() {
            self.ways[way].counters.unsent += 1;
        }
    }

    fn send_what_is_due(&mut self, now: Instant) {
        for way in 0..self.ways.len() {
            self.release(way, now);
        }
        while self.delayed.peek().is_some_and(|Reverse(first)| first.due <= now) {
            if let Some(Reverse(Delayed { way, frame, .. })) = self.delayed.pop() {
                self.transmit(way, &frame);
            }
        }
    }

    fn turn_flaps(&mut self, now: Instant) {
        let flaps = &mut self.flaps;
        while let Some(at) = flaps.next.filter(|at| *at <= now) {
            if flaps.is_down {
                flaps.is_down = false;
                flaps.left = flaps.left.saturating_sub(1);
                flaps.next = (flaps.left > 0).then_some(at + flaps.up);
            } else {
                flaps.is_down = true;
                flaps.next = Some(at + flaps.down);
            }
        }
    }

    /// Until there is something to do without anything coming in.
    fn timeout(&self) -> Option<Duration> {
        let held = self.ways.iter().filter_map(|way| way.held.front().map(|held| held.latest));
        let delayed = self.delayed.peek().map(|Reverse(first)| first.due);
        let first = held.chain(delayed).chain(self.flaps.next).min()?;
        Some(first.saturating_duration_since(Instant::now()))
    }

    /// Does what a line says, and answers it.
    fn obey(&mut self, line: &str) -> anyhow::Result<String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["counters"] => {
                let [ab, ba] = [0, 1].map(|way: usize| self.ways[way].counters.to_json());
                Ok(format!("ok {}", json!({ "ab": ab, "ba": ba, "flaps_left": self.flaps.left })))
            }
            ["flap", times, down, up] => {
                let (down, up) = (Duration::from_millis(down.parse()?), Duration::from_millis(up.parse()?));
                self.flaps = Flaps { left: times.parse()?, is_down: false, next: None, down, up };
                self.flaps.next = (self.flaps.left > 0).then(Instant::now);
                Ok("ok".into())
            }
            ["record", count] => {
                self.record = count.parse()?;
                for way in &mut self.ways {
                    way.recorded.clear();
                }
                Ok("ok".into())
            }
            ["replay", direction, rest @ ..] => {
                let replay = Replay::of_words(rest.iter().copied()).map_err(anyhow::Error::msg)?;
                let directions = Direction::of_word(direction).context("which direction?")?;
                let sent: u64 = directions.iter().map(|direction| self.replay(index(*direction), replay)).sum();
                Ok(format!("ok {sent}"))
            }
            [direction, rest @ ..] => {
                let directions = Direction::of_word(direction).context("no such command")?;
                let settings = Settings::of_words(rest.iter().copied()).map_err(anyhow::Error::msg)?;
                for direction in directions {
                    self.ways[index(*direction)].settings = settings;
                }
                Ok("ok".into())
            }
            [] => anyhow::bail!("an empty line"),
        }
    }

    /// How many datagrams were sent again.
    fn replay(&mut self, way: usize, replay: Replay) -> u64 {
        let is_of_kind = |frame: &[u8]| Layout::of(frame).is_some_and(|layout| kind(layout, frame) == replay.kind);
        let recorded = self.ways[way].recorded.iter().filter(|frame| is_of_kind(&frame[HEADER_BYTES..]));
        let mut frames: Vec<Vec<u8>> = recorded.take(replay.at_most).cloned().collect();
        for frame in &mut frames {
            let (header, frame) = frame.split_at_mut(HEADER_BYTES);
            let Some(layout) = Layout::of(frame) else { continue };
            let moved = replay.from.is_some_and(|from| layout.set_source(frame, from));
            if let Some(port) = replay.to_port {
                layout.set_destination_port(frame, port);
            }
            if moved || replay.to_port.is_some() {
                layout.write_checksums(frame);
                header.fill(0);
            }
        }
        let mut sent = 0;
        for _ in 0..replay.times {
            for frame in &frames {
                self.transmit(way, frame);
                sent += 1;
            }
        }
        self.ways[way].counters.replayed += sent;
        sent
    }
}

impl Way {
    fn new() -> Self {
        Self {
            settings: Settings::CLEAN,
            counters: Counters::default(),
            overtaken_by: 0,
            held: VecDeque::new(),
            flows: HashMap::new(),
            recorded: Vec::new(),
        }
    }
}

impl Ord for Delayed {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.order).cmp(&(other.due, other.order))
    }
}

impl PartialOrd for Delayed {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Delayed {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Delayed {}

const fn index(direction: Direction) -> usize {
    match direction {
        Direction::Ab => 0,
        Direction::Ba => 1,
    }
}

fn tunnel_datagram(frame: &[u8]) -> Option<Layout> {
    let layout = Layout::of(frame)?;
    let is_tunnel = PORTS.contains(&layout.source_port(frame)) || PORTS.contains(&layout.destination_port(frame));
    is_tunnel.then_some(layout)
}

/// The type of the WireGuard message; zero if there is nothing in the datagram.
fn kind(layout: Layout, frame: &[u8]) -> u8 {
    frame[layout.payload()].first().copied().unwrap_or(0)
}

/// Evenly distributed from 0 to 1, without 1.
fn share(random: &mut Random) -> f64 {
    (random.number() >> 11) as f64 / (1u64 << 53) as f64
}

/// Draws no number for what is off, so that what one setting does is the same whether others are on or off.
fn meets(random: &mut Random, probability: f64) -> bool {
    probability > 0.0 && share(random) < probability
}

/// Somewhere in the payload; then makes the checksums right, so that nobody but WireGuard can notice.
fn flip_a_bit(random: &mut Random, layout: Layout, frame: &mut [u8]) {
    let (header, frame) = frame.split_at_mut(HEADER_BYTES);
    let payload = layout.payload();
    let bits = payload.len() as u64 * 8;
    if bits > 0 {
        let bit = random.number() % bits;
        frame[payload.start + (bit / 8) as usize] ^= 1 << (bit % 8);
    }
    layout.write_checksums(frame);
    header.fill(0);
}

/// A token bucket for each flow.
fn within_rate(flows: &mut HashMap<Vec<u8>, Bucket>, flow: &[u8], bytes: usize, rate_bps: u64, now: Instant) -> bool {
    let bucket = flows.entry(flow.to_vec()).or_insert_with(|| Bucket { bytes: RATE_BURST_BYTES, at: now });
    let earned = now.duration_since(bucket.at).as_secs_f64() * rate_bps as f64 / 8.0;
    bucket.bytes = (bucket.bytes + earned).min(RATE_BURST_BYTES);
    bucket.at = now;
    let enough = bucket.bytes >= bytes as f64;
    if enough {
        bucket.bytes -= bytes as f64;
    }
    enough
}

/// Which of `files` have something to read, once one has or `timeout` has passed, rounded up to a millisecond.
fn wait<const COUNT: usize>(files: [RawFd; COUNT], timeout: Option<Duration>) -> io::Result<[bool; COUNT]> {
    let mut polled = files.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
    let milliseconds = timeout.map_or(-1, |timeout| timeout.as_micros().div_ceil(1000).try_into().unwrap_or(libc::c_int::MAX));
    // SAFETY: `polled` holds COUNT entries, and the kernel writes to these alone.
    let result = unsafe { libc::poll(polled.as_mut_ptr(), COUNT as libc::nfds_t, milliseconds) };
    if result < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == ErrorKind::Interrupted { Ok([false; COUNT]) } else { Err(error) };
    }
    Ok(polled.map(|file| file.revents != 0))
}
