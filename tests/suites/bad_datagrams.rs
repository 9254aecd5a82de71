//! What anybody may send to the UDP port: noise of every length, messages that look right, replays of messages that were.
//! Each is dropped and counted by its reason, the gateway lives, and its tunnel carries on.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tests::loopback::{LoopbackPair, TLS_PORT, address};
use tests::random::Random;
use tests::sensor::connect;
use tests::skyway::{Gateway, User};
use tests::tls::{answer, ask};
use tests::{HUB, replaced, seconds, wait_for};
use tunnel::DropReason;

/// The longest datagram that fits an Ethernet frame, headers aside.
const LONGEST: usize = 1500;
/// Sent before the gateway is given time to take them: its socket's buffer must not overflow, or none would be counted.
const BURST: usize = 64;

/// First bytes of WireGuard's messages, and their lengths (whitepaper §5.4).
const INITIATION: (u8, usize) = (1, 148);
const RESPONSE: (u8, usize) = (2, 92);
const COOKIE_REPLY: (u8, usize) = (3, 64);
const DATA: (u8, usize) = (4, 32);

/// Sends `datagrams` to the VNET gateway and waits until it has counted every one as dropped.
fn send_and_count(gateway: &Gateway, to: SocketAddr, socket: &UdpSocket, datagrams: &[Vec<u8>]) {
    for burst in datagrams.chunks(BURST) {
        let before = gateway.all_drops();
        for datagram in burst {
            socket.send_to(datagram, to).expect("a datagram sent");
        }
        let expected = before + burst.len() as u64;
        wait_for("every datagram of the burst is counted", seconds(10), || gateway.all_drops() == expected);
    }
}

#[track_caller]
fn assert_carries(pair: &LoopbackPair) {
    let opened = connect(pair.connect, &format!("{HUB}:{TLS_PORT}"));
    assert_eq!(opened.status, 200, "{}", opened.head);
    let answered = ask(&mut pair.authority.session(opened.stream, HUB), b"still here").expect("an answer");
    assert_eq!(answered, answer(HUB, b"still here"));
}

#[test]
fn noise_of_every_length_is_dropped_and_counted() {
    let mut pair = LoopbackPair::up(User::Nobody);
    let socket = UdpSocket::bind((address(), 0)).expect("a socket");
    let mut random = Random::new(2);
    let noise: Vec<Vec<u8>> = (0..=LONGEST).map(|length| random.bytes(length)).collect();
    send_and_count(&pair.vnet, pair.vnet_udp, &socket, &noise);
    // Every length again, each with the first four bytes of one of the four messages.
    let framed: Vec<Vec<u8>> = (4..=LONGEST)
        .map(|length| {
            let mut datagram = random.bytes(length);
            let kind = (length % 4) as u8 + 1;
            datagram[..4].copy_from_slice(&[kind, 0, 0, 0]);
            datagram
        })
        .collect();
    send_and_count(&pair.vnet, pair.vnet_udp, &socket, &framed);
    assert!(pair.vnet.is_running());
    assert_carries(&pair);
}

#[test]
fn messages_that_only_look_right_are_told_apart() {
    let mut pair = LoopbackPair::up(User::Nobody);
    let socket = UdpSocket::bind((address(), 0)).expect("a socket");
    let mut random = Random::new(3);
    let mut message = |(kind, length): (u8, usize)| {
        let mut datagram = random.bytes(length);
        datagram[..4].copy_from_slice(&[kind, 0, 0, 0]);
        datagram
    };
    for (what, shape, reason) in [
        ("an initiation for nobody", INITIATION, DropReason::BadMac1),
        ("a response for nobody", RESPONSE, DropReason::UnknownIndex),
        ("a cookie that nobody asked for", COOKIE_REPLY, DropReason::UnknownIndex),
        ("data of no session", DATA, DropReason::UnknownIndex),
        ("an unknown message", (5, 148), DropReason::Malformed),
        ("an initiation that is too short", (1, 147), DropReason::Malformed),
    ] {
        let before = pair.vnet.drops(reason);
        let datagrams: Vec<Vec<u8>> = (0..20).map(|_| message(shape)).collect();
        send_and_count(&pair.vnet, pair.vnet_udp, &socket, &datagrams);
        assert_eq!(pair.vnet.drops(reason), before + 20, "{what}");
    }
    assert!(pair.vnet.is_running());
    assert_carries(&pair);
}

#[test]
fn a_replay_is_dropped_and_moves_no_endpoint() {
    let mut pair = LoopbackPair::build(User::Nobody);
    let wire = Wire::between(pair.vnet_udp);
    let yaml = replaced(&pair.foreign_yaml, &format!("\"{}\"]", pair.vnet_udp), &format!("\"{}\"]", wire.front));
    pair.foreign.write(&yaml);
    pair.start();
    assert_carries(&pair);
    let endpoint = pair.vnet.peer("foreign")["endpoint"].clone();
    assert_eq!(endpoint, wire.back.to_string(), "the VNET gateway sees the wire");

    let recorded = wire.recorded();
    let of_kind = |kind: u8, longer_than: usize| -> Vec<Vec<u8>> {
        recorded.iter().filter(|datagram| datagram[0] == kind && datagram.len() > longer_than).cloned().collect()
    };
    let initiations = of_kind(INITIATION.0, 0);
    let data = of_kind(DATA.0, DATA.1);
    assert!(!initiations.is_empty() && data.len() >= 4, "{} initiations, {} data", initiations.len(), data.len());

    let elsewhere = UdpSocket::bind((address(), 0)).expect("a socket");
    // Each replayed from another address: two hundred of one datagram, and all of them once.
    let before = pair.vnet.drops(DropReason::Replay);
    let replays: Vec<Vec<u8>> = vec![data[0].clone(); 200].into_iter().chain(data.iter().cloned()).collect();
    send_and_count(&pair.vnet, pair.vnet_udp, &elsewhere, &replays);
    assert_eq!(pair.vnet.drops(DropReason::Replay), before + replays.len() as u64);
    // One bit changed: it does not authenticate, and its counter is not taken for seen.
    let mut changed = data[data.len() - 1].clone();
    let last = changed.len() - 1;
    changed[last] ^= 1;
    // A counter that has not been seen, so that only the tag is wrong.
    changed[8..16].copy_from_slice(&1_000_000u64.to_le_bytes());
    let before = pair.vnet.drops(DropReason::BadTag);
    send_and_count(&pair.vnet, pair.vnet_udp, &elsewhere, &vec![changed; 20]);
    assert_eq!(pair.vnet.drops(DropReason::BadTag), before + 20);

    // A handshake again: refused for its timestamp, or told to show that it is where it says, because it asks too often.
    let refusals = |gateway: &Gateway| gateway.drops(DropReason::HandshakeReplay) + gateway.drops(DropReason::UnderLoad);
    let before = refusals(&pair.vnet);
    send_and_count(&pair.vnet, pair.vnet_udp, &elsewhere, &vec![initiations[0].clone(); 50]);
    assert_eq!(refusals(&pair.vnet), before + 50);

    assert_eq!(pair.vnet.peer("foreign")["endpoint"], endpoint, "what did not authenticate moved nothing");
    assert_eq!(pair.vnet.peer("foreign")["state"], "up");
    assert_carries(&pair);
}

#[test]
fn a_handshake_from_a_key_that_is_not_configured_is_counted_and_named() {
    let pair = LoopbackPair::up(User::Nobody);
    // A third gateway that takes itself for the foreign one, with a key of its own.
    let mut stranger = LoopbackPair::build(User::Nobody);
    let yaml = replaced(&stranger.foreign_yaml, &stranger.vnet_udp.to_string(), &pair.vnet_udp.to_string());
    let right = |yaml: &str| yaml.lines().find(|line| line.contains("public_key")).expect("a key").to_owned();
    let yaml = replaced(&yaml, &right(&yaml), &right(&pair.foreign_yaml));
    stranger.foreign.write(&yaml);
    stranger.foreign.launch();
    wait_for("the stranger's handshakes are counted", seconds(15), || pair.vnet.drops(DropReason::UnknownKey) > 0);
    wait_for("the stranger hears nothing", seconds(15), || stranger.foreign.peer("vnet-a")["trouble"] == "no_answer");
    assert_carries(&pair);
}

/// A network in between that keeps what goes towards `to`.
///
/// The sender knows `front`, the receiver sees `back`, as through a NAT.
struct Wire {
    front: SocketAddr,
    back: SocketAddr,
    recorded: Arc<Mutex<Vec<Vec<u8>>>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Wire {
    fn between(to: SocketAddr) -> Self {
        let bind = || {
            let socket = UdpSocket::bind((address(), 51820)).expect("a socket");
            socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a time limit");
            Arc::new(socket)
        };
        let (front, back) = (bind(), bind());
        let (recorded, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let sender: Arc<Mutex<Option<SocketAddr>>> = Arc::new(Mutex::new(None));
        let there = thread::spawn({
            let (front, back, sender) = (Arc::clone(&front), Arc::clone(&back), Arc::clone(&sender));
            let (recorded, stop) = (Arc::clone(&recorded), Arc::clone(&stop));
            move || {
                carry(&front, &stop, |datagram, from| {
                    *sender.lock().expect("no thread panics with it") = Some(from);
                    recorded.lock().expect("no thread panics with it").push(datagram.to_vec());
                    back.send_to(datagram, to)
                });
            }
        });
        let back_again = thread::spawn({
            let (front, back, stop) = (Arc::clone(&front), Arc::clone(&back), Arc::clone(&stop));
            move || {
                carry(&back, &stop, |datagram, _| match *sender.lock().expect("no thread panics with it") {
                    Some(sender) => front.send_to(datagram, sender),
                    None => Ok(0),
                });
            }
        });
        let local = |socket: &UdpSocket| socket.local_addr().expect("an address");
        Self { front: local(&front), back: local(&back), recorded, stop, threads: vec![there, back_again] }
    }

    fn recorded(&self) -> Vec<Vec<u8>> {
        self.recorded.lock().expect("no thread panics with it").clone()
    }
}

/// Hands on what comes to `socket` until it is told to stop. What cannot be sent is lost, as on any network.
fn carry(socket: &UdpSocket, stop: &AtomicBool, mut hand_on: impl FnMut(&[u8], SocketAddr) -> io::Result<usize>) {
    let mut buffer = vec![0u8; 65_535];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _lost = hand_on(&buffer[..length], from);
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ended = thread.join();
        }
    }
}
