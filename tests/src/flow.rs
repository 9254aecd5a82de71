//! A flow of numbered UDP packets from one namespace to another, and what became of them.
//!
//! Sender and receiver are threads of the test, so one clock times both ends. Packets leave on a schedule; one that the
//! kernel refuses (no route, no device) counts as sent and so as lost. What "reordered" means is RFC 4737 §3: a packet
//! that comes after one with a higher number.
//!
//! ```text
//!  Flow::start ─► sender ─── packet: magic, number, time ───► receiver ─► Flow::finish: Report
//!                                                                 └──────► Flow::wait_until_it_flows, while it runs
//! ```

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::inside::inside;
use crate::netns::Namespace;
use crate::{seconds, wait_for};

/// A flow that is to be.
#[derive(Debug, Clone, Copy)]
pub struct Course<'a> {
    pub from: &'a Namespace,
    pub to: &'a Namespace,
    pub target: SocketAddr,
    pub packets_per_second: u32,
    /// Of the UDP payload; at least [`HEADER_BYTES`].
    pub payload_bytes: usize,
}

/// A running flow. Dropping it ends both threads.
#[derive(Debug)]
pub struct Flow {
    shared: Arc<Shared>,
    sender: Option<JoinHandle<()>>,
    receiver: Option<JoinHandle<Report>>,
}

/// What became of the packets of a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub sent: u64,
    /// Different ones.
    pub received: u64,
    pub lost: u64,
    /// Packets that came although they had come before.
    pub duplicated: u64,
    pub reordered: u64,
    /// The longest time between two that came one after the other.
    pub longest_gap: Duration,
    /// From the sender's call to the receiver's, over all that came. Zero if none did.
    pub shortest_delay: Duration,
    pub median_delay: Duration,
}

#[derive(Debug, Default)]
struct Shared {
    /// To the sender: no more packets.
    stop: AtomicBool,
    /// To the receiver: what has not come by now will not come.
    give_up: AtomicBool,
    sent: AtomicU64,
    /// Different ones.
    received: AtomicU64,
    /// One more than the highest number that came.
    highest: AtomicU64,
}

/// What every packet begins with: a magic number, its own number, the time in nanoseconds since the flow's begin.
pub const HEADER_BYTES: usize = 24;
const MAGIC: [u8; 8] = *b"numbered";
/// A packet that is under way so long is lost. More than any delay that a test puts in.
const UNDER_WAY: Duration = seconds(2);
/// How often the receiver looks whether it is to end.
const LOOK_EVERY: Duration = Duration::from_millis(50);
const SOCKET_BUFFER_BYTES: usize = 4 << 20;

impl Flow {
    /// Starts sender and receiver. It runs until it is told to stop.
    #[track_caller]
    pub fn start(course: Course<'_>) -> Self {
        let Course { from, to, target, packets_per_second, payload_bytes } = course;
        assert!(payload_bytes >= HEADER_BYTES && packets_per_second > 0, "{course:?}");
        let any: IpAddr = if target.is_ipv4() { [0u8; 4].into() } else { [0u8; 16].into() };
        // Bound to no address of the tunnel, so that both outlive it.
        let bind = |namespace: &Namespace, port: u16| {
            let socket = inside(namespace, || UdpSocket::bind((any, port)));
            let socket = socket.unwrap_or_else(|error| panic!("UDP port {port} in {}: {error}", namespace.name()));
            let options = SockRef::from(&socket);
            // As much as the host allows; less only costs more under load.
            let _as_much_as_allowed = options.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
            let _as_much_as_allowed = options.set_send_buffer_size(SOCKET_BUFFER_BYTES);
            socket
        };
        let (sending, receiving) = (bind(from, 0), bind(to, target.port()));
        receiving.set_read_timeout(Some(LOOK_EVERY)).expect("a time limit");
        let shared = Arc::new(Shared::default());
        let begin = Instant::now();
        let receiver = thread::spawn({
            let shared = Arc::clone(&shared);
            move || receive(&receiving, &shared, begin)
        });
        let sender = thread::spawn({
            let shared = Arc::clone(&shared);
            let interval = Duration::from_secs(1) / packets_per_second;
            move || send(&sending, target, &shared, begin, interval, payload_bytes)
        });
        Self { shared, sender: Some(sender), receiver: Some(receiver) }
    }

    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// Different packets so far.
    pub fn received(&self) -> u64 {
        self.shared.received.load(Ordering::Relaxed)
    }

    /// Waits for a packet that is sent from now on; returns how long that took.
    #[track_caller]
    pub fn wait_until_it_flows(&self, within: Duration) -> Duration {
        let (asked, next) = (Instant::now(), self.sent());
        wait_for("a packet of the flow comes through", within, || self.shared.highest.load(Ordering::Relaxed) > next);
        asked.elapsed()
    }

    /// Waits until so many more packets have been sent.
    #[track_caller]
    pub fn wait_until_sent(&self, more: u64, within: Duration) {
        let enough = self.sent() + more;
        wait_for("the flow has sent enough", within, || self.sent() >= enough);
    }

    /// Ends it; what is under way may still come.
    #[track_caller]
    pub fn finish(mut self) -> Report {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(sender) = self.sender.take() {
            sender.join().expect("the sender does not panic");
        }
        let (sent, ended) = (self.sent(), Instant::now());
        wait_for("all that is under way has come, or is lost", seconds(30), || self.received() == sent || ended.elapsed() > UNDER_WAY);
        self.shared.give_up.store(true, Ordering::Relaxed);
        let receiver = self.receiver.take().expect("only taken here and when dropped");
        receiver.join().expect("the receiver does not panic")
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.give_up.store(true, Ordering::Relaxed);
        if let Some(sender) = self.sender.take() {
            let _ended = sender.join();
        }
        if let Some(receiver) = self.receiver.take() {
            let _ended = receiver.join();
        }
    }
}

fn send(socket: &UdpSocket, target: SocketAddr, shared: &Shared, begin: Instant, interval: Duration, payload_bytes: usize) {
    let mut packet = vec![0u8; payload_bytes];
    packet[..8].copy_from_slice(&MAGIC);
    let mut due = Instant::now();
    let mut number = 0u64;
    while !shared.stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        if due > now {
            thread::sleep(due - now);
        } else if now - due > LOOK_EVERY {
            // Held up by the machine: does not make up for it by a burst.
            due = now;
        }
        due += interval;
        packet[8..16].copy_from_slice(&number.to_be_bytes());
        packet[16..24].copy_from_slice(&nanoseconds(begin.elapsed()).to_be_bytes());
        let _lost = socket.send_to(&packet, target);
        number += 1;
        shared.sent.store(number, Ordering::Relaxed);
    }
}

fn receive(socket: &UdpSocket, shared: &Shared, begin: Instant) -> Report {
    let mut buffer = vec![0u8; 65_536];
    let mut seen: Vec<bool> = Vec::new();
    let mut delays: Vec<u64> = Vec::new();
    let (mut received, mut duplicated, mut reordered, mut highest) = (0u64, 0u64, 0u64, 0u64);
    let (mut last, mut longest_gap) = (None, Duration::ZERO);
    while !shared.give_up.load(Ordering::Relaxed) {
        // The time limit, or an ICMP error of a packet that did not arrive.
        let Ok((length, _)) = socket.recv_from(&mut buffer) else { continue };
        let now = begin.elapsed();
        let Some((number, sent_at)) = parse(&buffer[..length]) else { continue };
        let index = usize::try_from(number).unwrap_or(usize::MAX);
        // The counter is stored after the packet has left, so it may lag behind by one.
        if number > shared.sent.load(Ordering::Relaxed) {
            continue;
        }
        if seen.len() <= index {
            seen.resize(index + 1, false);
        }
        if std::mem::replace(&mut seen[index], true) {
            duplicated += 1;
            continue;
        }
        received += 1;
        delays.push(nanoseconds(now).saturating_sub(sent_at));
        longest_gap = longest_gap.max(last.map_or(Duration::ZERO, |last| now.saturating_sub(last)));
        last = Some(now);
        if number < highest {
            reordered += 1;
        } else {
            highest = number + 1;
        }
        shared.received.store(received, Ordering::Relaxed);
        shared.highest.store(highest, Ordering::Relaxed);
    }
    delays.sort_unstable();
    let delay = |delay: Option<&u64>| Duration::from_nanos(delay.copied().unwrap_or(0));
    let sent = shared.sent.load(Ordering::Relaxed);
    Report {
        sent,
        received,
        lost: sent.saturating_sub(received),
        duplicated,
        reordered,
        longest_gap,
        shortest_delay: delay(delays.first()),
        median_delay: delay(delays.get(delays.len() / 2)),
    }
}

/// Number and time of a packet; None if it is none of ours.
fn parse(packet: &[u8]) -> Option<(u64, u64)> {
    let rest = packet.strip_prefix(&MAGIC)?;
    let (number, rest) = rest.split_first_chunk::<8>()?;
    let (sent_at, _) = rest.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*number), u64::from_be_bytes(*sent_at)))
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_its_own_packets_and_no_others() {
        let packet = [MAGIC, 7u64.to_be_bytes(), 9u64.to_be_bytes()].concat();
        assert_eq!(parse(&packet), Some((7, 9)));
        for length in 0..packet.len() {
            assert_eq!(parse(&packet[..length]), None, "{length} bytes");
        }
        assert_eq!(parse(&[0; 64]), None);
    }

    #[test]
    fn counts_what_is_lost_doubled_and_reordered() {
        let (sending, receiving) = (UdpSocket::bind("127.0.0.1:0").expect("a socket"), UdpSocket::bind("127.0.0.1:0").expect("a socket"));
        let to = receiving.local_addr().expect("an address");
        receiving.set_read_timeout(Some(LOOK_EVERY)).expect("a time limit");
        let shared = Arc::new(Shared::default());
        shared.sent.store(6, Ordering::Relaxed);
        let receiver = thread::spawn({
            let shared = Arc::clone(&shared);
            move || receive(&receiving, &shared, Instant::now())
        });
        // 4 and 5 do not come, 1 comes late and twice.
        for number in [0u64, 2, 1, 1, 3] {
            let packet = [MAGIC, number.to_be_bytes(), 0u64.to_be_bytes()].concat();
            sending.send_to(&packet, to).expect("sent");
        }
        wait_for("four have come", seconds(10), || shared.received.load(Ordering::Relaxed) == 4);
        shared.give_up.store(true, Ordering::Relaxed);
        let report = receiver.join().expect("no panic");
        assert_eq!((report.sent, report.received, report.lost), (6, 4, 2));
        assert_eq!((report.duplicated, report.reordered), (1, 1));
    }
}
