//! Two stacks joined in memory, and one stack against packets made by hand. The clock is a number.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use smoltcp::wire::{TcpControl, TcpPacket, TcpRepr};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::super::segment::tests::{bare, packet};
use super::*;

const MTU: u32 = 1340;
const PORT: u16 = 80;
/// The large ring.
const RING: u32 = 65_535 << 4;

fn stack(address: &str, now: Instant) -> (Network, Stack) {
    let wake = Wake::new().expect("an eventfd");
    let (network, settings) = network(vec![address.parse().expect("an address")], MTU, wake.clone());
    (network, Stack::new(settings, wake, now))
}

fn listen(network: &Network, stack: &mut Stack, now: Instant) -> mpsc::Receiver<Accepted> {
    let (accepted, streams) = mpsc::channel(8);
    let (reply, mut answer) = oneshot::channel();
    network.requests.try_send(Request::Listen { port: PORT, accepted, reply }).expect("room");
    stack.handle_timeout(now);
    assert_eq!(answer.try_recv(), Ok(true));
    streams
}

/// Everything that wants out of `stack`, uncut.
fn take(stack: &mut Stack) -> Vec<Vec<u8>> {
    let mut room = vec![0; 65_535];
    std::iter::from_fn(|| stack.take_packet(&mut room).map(|(_, length)| room[..length].to_vec())).collect()
}

fn give(stack: &mut Stack, packets: &[Vec<u8>], now: Instant) {
    for packet in packets {
        stack.handle_packet(packet, now);
    }
    stack.handle_timeout(now);
}

/// A connection between two stacks, opened by the first.
fn connected(one: (&Network, &mut Stack), two: (&Network, &mut Stack), now: Instant) -> (Stream, Stream) {
    let mut streams = listen(two.0, two.1, now);
    let (reply, mut answer) = oneshot::channel();
    let to = SocketAddr::new(two.1.addresses[0].addr(), PORT);
    one.0.requests.try_send(Request::Dial { to, deadline: now + Duration::from_secs(5), reply }).expect("room");
    for _ in 0..3 {
        one.1.handle_timeout(now);
        give(two.1, &take(one.1), now);
        give(one.1, &take(two.1), now);
    }
    let dialled = answer.try_recv().expect("an answer").expect("dialled");
    (dialled, streams.try_recv().expect("accepted").stream)
}

/// What can be written now.
fn write(stream: &mut Stream, bytes: &[u8]) -> usize {
    match Pin::new(stream).poll_write(&mut Context::from_waker(Waker::noop()), bytes) {
        Poll::Ready(written) => written.expect("a stream"),
        Poll::Pending => 0,
    }
}

fn finish(stream: &mut Stream) {
    assert!(Pin::new(stream).poll_shutdown(&mut Context::from_waker(Waker::noop())).is_ready());
}

/// What can be read now; the end looks like nothing.
fn read(stream: &mut Stream) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let mut room = [0; 4096];
        let mut buffer = ReadBuf::new(&mut room);
        match Pin::new(&mut *stream).poll_read(&mut Context::from_waker(Waker::noop()), &mut buffer) {
            Poll::Ready(result) => result.expect("a stream"),
            Poll::Pending => return bytes,
        }
        if buffer.filled().is_empty() {
            return bytes;
        }
        bytes.extend_from_slice(buffer.filled());
    }
}

fn pattern(count: usize) -> Vec<u8> {
    (0..count as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// Without acknowledgements in steps the window would grow by one segment a round trip: hundreds of them.
#[test]
fn fills_a_long_path_in_a_few_round_trips() {
    for addresses in [["10.99.0.1/30", "10.99.0.2/30"], ["fd99::1/64", "fd99::2/64"]] {
        let mut now = Instant::now();
        let (network_one, mut one) = stack(addresses[0], now);
        let (network_two, mut two) = stack(addresses[1], now);
        let (mut sender, mut receiver) = connected((&network_one, &mut one), (&network_two, &mut two), now);
        let sent = pattern(4 << 20);
        let (mut written, mut received, mut round_trips) = (0, Vec::new(), 0);
        while received.len() < sent.len() {
            round_trips += 1;
            assert!(round_trips <= 40, "{} of {} bytes", received.len(), sent.len());
            let mut flight = Vec::new();
            loop {
                written += write(&mut sender, &sent[written..]);
                one.handle_timeout(now);
                let packets = take(&mut one);
                if packets.is_empty() {
                    break;
                }
                flight.extend(packets);
            }
            now += Duration::from_millis(10);
            give(&mut two, &flight, now);
            loop {
                let bytes = read(&mut receiver);
                if bytes.is_empty() {
                    break;
                }
                received.extend(bytes);
                two.handle_timeout(now);
            }
            // The acknowledgement of a single segment waits.
            two.handle_timeout(now + Duration::from_millis(3));
            now += Duration::from_millis(10);
            give(&mut one, &take(&mut two), now);
        }
        assert!(received == sent, "other bytes came out");
    }
}

#[test]
fn super_packets_leave_over_ipv4_with_their_segments_size() {
    let mut now = Instant::now();
    let (network_one, mut one) = stack("10.99.0.1/30", now);
    let (network_two, mut two) = stack("10.99.0.2/30", now);
    let (mut sender, mut receiver) = connected((&network_one, &mut one), (&network_two, &mut two), now);
    let (mut room, mut largest, mut received) = (vec![0; 65_535], 0, 0);
    for _ in 0..12 {
        write(&mut sender, &[7; 65_536]);
        one.handle_timeout(now);
        while let Some((header, length)) = one.take_packet(&mut room) {
            assert_eq!(length > MTU as usize, header.segment_bytes > 0, "{header:?}");
            assert!(header.needs_checksum(), "{header:?}");
            if header.segment_bytes > 0 {
                assert_eq!((header.segment_bytes, header.checksum_start), (1300, 20));
            }
            largest = largest.max(length);
            two.handle_packet(&room[..length], now);
        }
        now += Duration::from_millis(3);
        two.handle_timeout(now);
        received += read(&mut receiver).len();
        give(&mut one, &take(&mut two), now);
    }
    assert!(largest > 10 * MTU as usize, "the largest had {largest} bytes");
    assert!(received > 100_000, "{received} bytes came");
}

/// A peer by hand that has opened a connection: its stream, and the next sequence number that we expect and that it expects.
struct Peer {
    us: SocketAddr,
    them: SocketAddr,
    /// Ours, as the peer acknowledges it.
    ours: u32,
    /// Theirs, of the first byte of payload.
    theirs: u32,
}

impl Peer {
    /// Sends SYN and takes the answer.
    fn opening(stack: &mut Stack, now: Instant) -> Self {
        let them: SocketAddr = "10.99.0.2:5000".parse().expect("an address");
        let us = SocketAddr::new(stack.addresses[0].addr(), PORT);
        let syn = TcpRepr { control: TcpControl::Syn, window_scale: Some(7), max_seg_size: Some(1300), ..bare(them, us, 1000, None) };
        give(stack, &[packet(them, us, &syn)], now);
        let answer = take(stack).pop().expect("an answer");
        let header = TcpPacket::new_checked(&answer[20..]).expect("TCP");
        assert!(header.syn() && header.ack() && !header.rst());
        Self { us, them, ours: (header.seq_number().0 as u32).wrapping_add(1), theirs: 1001 }
    }

    fn data(&self, offset: u32, payload: &[u8]) -> Vec<u8> {
        packet(self.them, self.us, &TcpRepr { payload, ..bare(self.them, self.us, self.theirs + offset, Some(self.ours)) })
    }

    fn acknowledgement(&self, count: u32, window: u16) -> Vec<u8> {
        let number = self.ours.wrapping_add(count);
        packet(self.them, self.us, &TcpRepr { window_len: window, ..bare(self.them, self.us, self.theirs, Some(number)) })
    }
}

/// smoltcp takes its SYN's window for a scaled one: what is behind the ring must not be taken, nor end the lane.
#[test]
fn bytes_behind_the_ring_right_after_the_syn_do_no_harm() {
    let now = Instant::now();
    let (network, mut stack) = stack("10.99.0.1/30", now);
    let mut streams = listen(&network, &mut stack, now);
    let peer = Peer::opening(&mut stack, now);
    for offset in [RING, RING + 1, 1_500_000, 2_000_000, 1 << 30] {
        give(&mut stack, &[peer.data(offset, &[0xff; 1000])], now);
    }
    let sent = pattern(2 * RING as usize);
    let (mut stream, mut received) = (None, Vec::new());
    for (index, chunk) in sent.chunks(1300).enumerate() {
        give(&mut stack, &[peer.data(index as u32 * 1300, chunk)], now);
        // And once more behind the end, while the window moves.
        let behind = (index as u32 + 1) * 1300 + RING;
        give(&mut stack, &[peer.data(behind, &[0xff; 1000])], now);
        let stream = stream.get_or_insert_with(|| streams.try_recv().expect("accepted").stream);
        received.extend(read(stream));
        stack.handle_timeout(now);
        let _acknowledgements = take(&mut stack);
    }
    received.extend(read(stream.as_mut().expect("a stream")));
    assert!(received == sent, "{} of {} bytes", received.len(), sent.len());
}

/// In FIN-WAIT-2 with a closed window smoltcp wants to be polled at once, again and again.
#[test]
fn a_peer_that_closes_its_window_under_our_fin_does_not_make_the_lane_spin() {
    let mut now = Instant::now();
    let (network, mut stack) = stack("10.99.0.1/30", now);
    let mut streams = listen(&network, &mut stack, now);
    let peer = Peer::opening(&mut stack, now);
    give(&mut stack, &[peer.acknowledgement(0, 1000)], now);
    let mut stream = streams.try_recv().expect("accepted").stream;
    assert_eq!(write(&mut stream, &[1; 100]), 100);
    finish(&mut stream);
    stack.handle_timeout(now);
    assert!(!take(&mut stack).is_empty(), "data and FIN");
    give(&mut stack, &[peer.acknowledgement(50, 0)], now);
    give(&mut stack, &[peer.acknowledgement(101, 0)], now);
    let _answers = take(&mut stack);
    let mut packets = 0;
    for _ in 0..100 {
        now += Duration::from_millis(50);
        stack.handle_timeout(now);
        packets += take(&mut stack).len();
        assert!(stack.poll_delay(now).is_some_and(|delay| delay > Duration::ZERO), "it may sleep");
    }
    assert!(packets <= 50, "{packets} packets in 5 seconds");
}

#[test]
fn an_opening_that_is_broken_off_leaves_nothing() {
    let now = Instant::now();
    let (network, mut stack) = stack("10.99.0.1/30", now);
    let _streams = listen(&network, &mut stack, now);
    let peer = Peer::opening(&mut stack, now);
    assert_eq!((stack.half_open, stack.by_tuple.len(), stack.large), (1, 1, 1));
    let reset = TcpRepr { control: TcpControl::Rst, ..bare(peer.them, peer.us, peer.theirs, None) };
    give(&mut stack, &[packet(peer.them, peer.us, &reset)], now);
    assert_eq!((stack.half_open, stack.by_tuple.len(), stack.large), (0, 0, 0));
    assert!(stack.timers.is_empty());
    let again = Peer::opening(&mut stack, now);
    give(&mut stack, &[again.acknowledgement(0, 1000)], now);
    assert_eq!((stack.half_open, stack.streams()), (0, 1));
}

#[test]
fn no_more_than_so_many_streams_are_half_open() {
    let now = Instant::now();
    let (network, mut stack) = stack("10.99.0.1/30", now);
    let _streams = listen(&network, &mut stack, now);
    let us = SocketAddr::new(stack.addresses[0].addr(), PORT);
    for port in 0..2 * MOST_HALF_OPEN as u16 {
        let them: SocketAddr = SocketAddr::new("10.99.0.2".parse().expect("an address"), 5000 + port);
        let syn = TcpRepr { control: TcpControl::Syn, ..bare(them, us, 1000, None) };
        give(&mut stack, &[packet(them, us, &syn)], now);
    }
    assert_eq!((stack.half_open, stack.streams(), stack.large), (MOST_HALF_OPEN, 0, LARGE_STREAMS));
    let late = now + Duration::from_secs(16);
    stack.handle_timeout(late);
    assert_eq!((stack.half_open, stack.by_tuple.len(), stack.large), (0, 0, 0));
}

#[test]
fn a_wrong_checksum_is_not_taken() {
    let now = Instant::now();
    let (network, mut stack) = stack("10.99.0.1/30", now);
    let mut streams = listen(&network, &mut stack, now);
    let peer = Peer::opening(&mut stack, now);
    let mut wrong = peer.data(0, b"wrong");
    let last = wrong.len() - 1;
    wrong[last] ^= 0x40;
    give(&mut stack, &[wrong], now);
    assert!(streams.try_recv().is_err(), "it did not even open the connection");
    give(&mut stack, &[peer.data(0, b"right")], now);
    assert_eq!(read(&mut streams.try_recv().expect("accepted").stream), b"right");
}
