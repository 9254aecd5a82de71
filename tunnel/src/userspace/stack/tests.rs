//! Two stacks joined in memory, and one stack against packets made by hand. The clock is a number.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use smoltcp::wire::{Ipv4Packet, TcpControl, TcpPacket, TcpRepr};
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

/// What one read gives; None if there is nothing now.
fn read_once(stream: &mut Stream) -> Option<std::io::Result<Vec<u8>>> {
    let mut room = [0; 4096];
    let mut buffer = ReadBuf::new(&mut room);
    match Pin::new(stream).poll_read(&mut Context::from_waker(Waker::noop()), &mut buffer) {
        Poll::Ready(result) => Some(result.map(|()| buffer.filled().to_vec())),
        Poll::Pending => None,
    }
}

/// Whether one of these packets, over IPv4 and without options, is as `is` says.
fn any(packets: &[Vec<u8>], is: impl Fn(&TcpPacket<&[u8]>) -> bool) -> bool {
    packets.iter().any(|packet| is(&TcpPacket::new_checked(&packet[20..]).expect("TCP")))
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

    /// Payload and FIN behind it.
    fn last_data(&self, offset: u32, payload: &[u8]) -> Vec<u8> {
        let last = bare(self.them, self.us, self.theirs + offset, Some(self.ours));
        packet(self.them, self.us, &TcpRepr { control: TcpControl::Fin, payload, ..last })
    }

    fn reset(&self, offset: u32) -> Vec<u8> {
        let last = bare(self.them, self.us, self.theirs + offset, None);
        packet(self.them, self.us, &TcpRepr { control: TcpControl::Rst, ..last })
    }

    fn syn(&self, sequence: u32) -> Vec<u8> {
        packet(self.them, self.us, &TcpRepr { control: TcpControl::Syn, ..bare(self.them, self.us, sequence, None) })
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
    give(&mut stack, &[peer.reset(0)], now);
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
    assert_eq!((stack.half_open, stack.streams(), stack.large), (MOST_HALF_OPEN, 0, LARGE_STREAMS / 2));
    let (reply, _answer) = oneshot::channel();
    let to = "10.99.0.2:80".parse().expect("an address");
    network.requests.try_send(Request::Dial { to, deadline: now + Duration::from_secs(5), reply }).expect("room");
    stack.handle_timeout(now);
    assert_eq!((stack.streams(), stack.large), (1, LARGE_STREAMS / 2 + 1), "a dial is still large");
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

/// A peer that has restarted knows nothing of the stream, and takes the number that we wait for to reset it.
#[test]
fn a_syn_for_a_stream_that_stands_is_challenged_once_a_second() {
    let mut now = Instant::now();
    let (network, mut stack) = stack("10.99.0.1/30", now);
    let mut streams = listen(&network, &mut stack, now);
    let peer = Peer::opening(&mut stack, now);
    give(&mut stack, &[peer.data(0, b"bytes")], now);
    let mut stream = streams.try_recv().expect("accepted").stream;
    now += Duration::from_millis(10);
    stack.handle_timeout(now);
    let _acknowledgement = take(&mut stack);
    // One number is in the window and the other is not.
    for (wait_ms, sequence, challenges) in [(0, 2000, 1), (0, 2000, 0), (999, 3_000_000_000, 0), (1, 3_000_000_000, 1)] {
        now += Duration::from_millis(wait_ms);
        give(&mut stack, &[peer.syn(sequence)], now);
        let sent = take(&mut stack);
        assert_eq!(sent.len(), challenges, "{wait_ms} ms later");
        for packet in sent {
            let header = TcpPacket::new_checked(&packet[20..]).expect("TCP");
            assert!(header.ack() && !header.syn() && !header.rst());
            assert_eq!((header.seq_number().0 as u32, header.ack_number().0 as u32), (peer.ours, peer.theirs + 5));
        }
    }
    give(&mut stack, &[peer.data(5, b" and more")], now);
    assert_eq!(read(&mut stream), b"bytes and more");
    give(&mut stack, &[peer.reset(14)], now);
    assert_eq!(stack.streams(), 0);
    Peer::opening(&mut stack, now);
}

#[test]
fn a_syn_in_time_wait_begins_a_new_stream() {
    let now = Instant::now();
    let (network, mut stack) = stack("10.99.0.1/30", now);
    let mut streams = listen(&network, &mut stack, now);
    let peer = Peer::opening(&mut stack, now);
    give(&mut stack, &[peer.acknowledgement(0, 1000)], now);
    let mut stream = streams.try_recv().expect("accepted").stream;
    finish(&mut stream);
    stack.handle_timeout(now);
    give(&mut stack, &[peer.acknowledgement(1, 1000)], now);
    let ended = bare(peer.them, peer.us, peer.theirs, Some(peer.ours.wrapping_add(1)));
    give(&mut stack, &[packet(peer.them, peer.us, &TcpRepr { control: TcpControl::Fin, ..ended })], now);
    assert_eq!((stack.half_open, stack.streams()), (0, 1), "it lingers");
    let _acknowledgement = take(&mut stack);
    let again = Peer::opening(&mut stack, now);
    assert_eq!((stack.half_open, stack.streams()), (1, 0));
    give(&mut stack, &[again.data(0, b"new")], now);
    assert_eq!(read(&mut streams.try_recv().expect("accepted").stream), b"new");
    assert!(read_once(&mut stream).is_some_and(|end| end.is_ok_and(|bytes| bytes.is_empty())), "the old one ended in order");
}

#[test]
fn a_fragment_is_neither_taken_nor_refused() {
    let now = Instant::now();
    let (network, mut stack) = stack("10.99.0.1/30", now);
    let mut streams = listen(&network, &mut stack, now);
    let peer = Peer::opening(&mut stack, now);
    for field in [[0x20, 0], [0, 8]] {
        let mut fragment = peer.data(0, b"a part");
        fragment[6..8].copy_from_slice(&field);
        Ipv4Packet::new_unchecked(&mut fragment[..]).fill_checksum();
        give(&mut stack, &[fragment], now);
        assert!(take(&mut stack).is_empty(), "it was answered");
        assert!(streams.try_recv().is_err(), "it was taken");
    }
    give(&mut stack, &[peer.data(0, b"whole")], now);
    assert_eq!(read(&mut streams.try_recv().expect("accepted").stream), b"whole");
}

/// smoltcp cuts off what its window does not hold, but not the FIN behind it.
#[test]
fn a_fin_behind_bytes_that_were_cut_off_is_not_believed() {
    let now = Instant::now();
    let (network, mut stack) = stack("10.99.0.1/30", now);
    let mut streams = listen(&network, &mut stack, now);
    let peer = Peer::opening(&mut stack, now);
    give(&mut stack, &[peer.acknowledgement(0, 1000)], now);
    let mut stream = streams.try_recv().expect("accepted").stream;
    let sent = pattern(RING as usize + 200);
    let (most, last) = sent.split_at(RING as usize - 100);
    // The stack does not serve in between, so that its ring fills.
    for (index, chunk) in most.chunks(1300).enumerate() {
        stack.handle_packet(&peer.data(index as u32 * 1300, chunk), now);
    }
    stack.handle_packet(&peer.last_data(RING - 100, last), now);
    let mut received = Vec::new();
    loop {
        stack.handle_timeout(now);
        let _acknowledgements = take(&mut stack);
        let bytes = read(&mut stream);
        if bytes.is_empty() {
            break;
        }
        received.extend(bytes);
    }
    assert_eq!(received.len(), RING as usize);
    assert!(read_once(&mut stream).is_none(), "it has not ended");
    give(&mut stack, &[peer.last_data(RING, &sent[RING as usize..])], now);
    received.extend(read(&mut stream));
    assert!(received == sent, "{} of {} bytes", received.len(), sent.len());
    assert!(read_once(&mut stream).is_some_and(|end| end.is_ok_and(|bytes| bytes.is_empty())), "now it has");
}

#[test]
fn a_reset_is_told_to_a_relay_that_does_not_read() {
    let now = Instant::now();
    let (network, mut stack) = stack("10.99.0.1/30", now);
    let mut streams = listen(&network, &mut stack, now);
    let peer = Peer::opening(&mut stack, now);
    // Twice what the pipe holds.
    let sent = pattern(260_000);
    let packets: Vec<_> = sent.chunks(1300).enumerate().map(|(index, chunk)| peer.data(index as u32 * 1300, chunk)).collect();
    give(&mut stack, &packets, now);
    let mut stream = streams.try_recv().expect("accepted").stream;
    give(&mut stack, &[peer.reset(260_000)], now);
    let written = Pin::new(&mut stream).poll_write(&mut Context::from_waker(Waker::noop()), b"too late");
    let told = |error: &std::io::Error| error.kind() == std::io::ErrorKind::ConnectionReset;
    assert!(matches!(&written, Poll::Ready(Err(error)) if told(error)), "{written:?}");
    let (mut received, mut error) = (Vec::new(), None);
    for _ in 0..1000 {
        match read_once(&mut stream) {
            Some(Ok(bytes)) => received.extend(bytes),
            Some(Err(last)) => {
                error = Some(last);
                break;
            }
            None => stack.handle_timeout(now),
        }
    }
    assert!(received == sent, "{} of {} bytes", received.len(), sent.len());
    assert!(error.as_ref().is_some_and(told), "{error:?}");
    stack.handle_timeout(now);
    assert_eq!(stack.by_tuple.len(), 0);
}

#[test]
fn a_stream_that_is_dropped_unread_is_reset_and_one_that_was_read_or_shut_down_is_not() {
    for (reads, finishes, resets) in [(false, false, true), (true, false, false), (false, true, false)] {
        let now = Instant::now();
        let (network, mut stack) = stack("10.99.0.1/30", now);
        let mut streams = listen(&network, &mut stack, now);
        let peer = Peer::opening(&mut stack, now);
        give(&mut stack, &[peer.data(0, b"bytes")], now);
        let mut stream = streams.try_recv().expect("accepted").stream;
        if reads {
            assert_eq!(read(&mut stream), b"bytes");
        }
        if finishes {
            finish(&mut stream);
        }
        drop(stream);
        stack.handle_timeout(now);
        let sent = take(&mut stack);
        assert_eq!((any(&sent, |packet| packet.rst()), any(&sent, |packet| packet.fin())), (resets, !resets), "{reads} {finishes}");
        assert_eq!(stack.streams(), usize::from(!resets));
    }
}

/// A stream whose relay wrote 4000 bytes and dropped its end, at `now`.
fn let_go(network: &Network, stack: &mut Stack, now: &mut Instant) -> Peer {
    let mut streams = listen(network, stack, *now);
    let peer = Peer::opening(stack, *now);
    give(stack, &[peer.acknowledgement(0, 1000)], *now);
    let mut stream = streams.try_recv().expect("accepted").stream;
    assert_eq!(write(&mut stream, &[1; 4000]), 4000);
    drop(stream);
    *now += EXPIRE_EVERY;
    stack.handle_timeout(*now);
    peer
}

#[test]
fn last_words_may_take_their_time_as_long_as_they_get_on() {
    let mut now = Instant::now();
    let (network, mut stack) = stack("10.99.0.1/30", now);
    let peer = let_go(&network, &mut stack, &mut now);
    for step in 1..=3 {
        now += Duration::from_secs(50);
        give(&mut stack, &[peer.acknowledgement(step * 100, 1000)], now);
    }
    now += Duration::from_secs(59);
    stack.handle_timeout(now);
    assert_eq!(stack.streams(), 1);
    let _retransmissions = take(&mut stack);
    now += Duration::from_secs(2);
    stack.handle_timeout(now);
    assert_eq!(stack.streams(), 0);
    assert!(any(&take(&mut stack), |packet| packet.rst()), "the other end is told");
}

#[test]
fn last_words_end_after_ten_minutes() {
    let mut now = Instant::now();
    let (network, mut stack) = stack("10.99.0.1/30", now);
    let peer = let_go(&network, &mut stack, &mut now);
    for step in 1..=12 {
        assert_eq!(stack.streams(), 1, "before step {step}");
        now += Duration::from_secs(50);
        give(&mut stack, &[peer.acknowledgement(step * 100, 1000)], now);
        let _retransmissions = take(&mut stack);
    }
    assert_eq!(stack.streams(), 0);
}

#[test]
fn what_was_never_sent_is_not_acknowledged() {
    let now = Instant::now();
    let (network, mut stack) = stack("10.99.0.1/30", now);
    let mut streams = listen(&network, &mut stack, now);
    let peer = Peer::opening(&mut stack, now);
    let acknowledged = |stack: &Stack| {
        let flow = stack.flows.first().and_then(Option::as_ref).expect("a flow");
        flow.acknowledged.map(|number| number.wrapping_sub(peer.ours))
    };
    assert_eq!(acknowledged(&stack), None);
    give(&mut stack, &[peer.acknowledgement(0, 1000)], now);
    assert_eq!(acknowledged(&stack), Some(0));
    let mut stream = streams.try_recv().expect("accepted").stream;
    assert_eq!(write(&mut stream, &[1; 100]), 100);
    stack.handle_timeout(now);
    for (count, noted) in [(100_000, 0), (101, 0), (u32::MAX, 0), (60, 60), (50, 60), (101, 60), (100, 100)] {
        give(&mut stack, &[peer.acknowledgement(count, 1000)], now);
        assert_eq!(acknowledged(&stack), Some(noted), "after {count}");
    }
    finish(&mut stream);
    stack.handle_timeout(now);
    give(&mut stack, &[peer.acknowledgement(102, 1000)], now);
    assert_eq!(acknowledged(&stack), Some(100));
    give(&mut stack, &[peer.acknowledgement(101, 1000)], now);
    assert_eq!(acknowledged(&stack), Some(101));
}
