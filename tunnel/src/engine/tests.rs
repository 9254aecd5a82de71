//! Two or three engines over a network that is a `Vec`: what one seals, another opens.
//!
//! `Tunn` reads the clock itself, so what takes minutes (rekey, expiry) is not here: the suites wait for it.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::PresharedKey;
use crate::mtu::Cloud;

const MTU: u32 = 1340;

/// Engines by their outer address, and the datagrams between them.
struct Network {
    nodes: HashMap<SocketAddr, Node>,
}

struct Node {
    engine: Engine,
    batch: Batch,
    received: Vec<Vec<u8>>,
}

impl Network {
    fn new() -> Self {
        Self { nodes: HashMap::new() }
    }

    fn add(&mut self, address: SocketAddr, key: &PrivateKey) {
        let engine = Engine::new(EngineSettings { key: key.clone(), addresses: Vec::new(), mtu: MTU }, Instant::now());
        self.nodes.insert(address, Node { engine, batch: Batch::new(), received: Vec::new() });
    }

    fn node(&mut self, address: SocketAddr) -> &mut Node {
        self.nodes.get_mut(&address).expect("a node")
    }

    fn send(&mut self, from: SocketAddr, packet: &[u8]) -> Result<(), DropReason> {
        let mut room = packet.to_vec();
        room.resize(packet.len() + 16, 0xaa);
        let node = self.node(from);
        let sent = node.engine.handle_packet(&mut room, packet.len(), Instant::now(), &mut node.batch);
        assert_eq!(room[packet.len()..], [0xaa; 16], "what lies behind the packet is put back");
        sent
    }

    fn tick(&mut self) {
        for node in self.nodes.values_mut() {
            let due = node.engine.poll_timeout();
            node.engine.handle_timeout(due, &mut node.batch);
        }
    }

    /// Delivers until nothing moves; returns every datagram that was on the wire.
    fn run(&mut self) -> Vec<(SocketAddr, SocketAddr, Vec<u8>)> {
        let mut wire = Vec::new();
        loop {
            let mut moving = Vec::new();
            for (address, node) in &mut self.nodes {
                moving.extend(node.batch.iter().map(|(datagram, to)| (*address, to.address, datagram.to_vec())));
                node.batch.clear();
            }
            if moving.is_empty() {
                return wire;
            }
            for (from, to, datagram) in &moving {
                self.inject(*from, *to, datagram);
            }
            wire.extend(moving);
        }
    }

    fn inject(&mut self, from: SocketAddr, to: SocketAddr, datagram: &[u8]) -> Option<DropReason> {
        let node = self.nodes.get_mut(&to)?;
        let mut plain = vec![0u8; 65_535];
        match node.engine.handle_datagram(datagram, from, Instant::now(), &mut plain, &mut node.batch) {
            Received::Packet(packet) => {
                let packet = packet.to_vec();
                node.received.push(packet);
                None
            }
            Received::Quiet => None,
            Received::Dropped(reason) => Some(reason),
        }
    }
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn peer(name: &str, key: PublicKey, allowed: &[&str]) -> PeerSettings {
    PeerSettings {
        name: name.into(),
        public_key: key,
        next_public_key: None,
        preshared_key: None,
        endpoints: Vec::new(),
        allowed_ips: allowed.iter().map(|prefix| prefix.parse().expect("a prefix")).collect(),
        keepalive: None,
        roaming: true,
        cloud: Cloud::Azure,
        probe: None,
    }
}

fn ipv4(from: &str, to: &str, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0u8; 20];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&((20 + payload.len()) as u16).to_be_bytes());
    packet[12..16].copy_from_slice(&from.parse::<std::net::Ipv4Addr>().expect("ip").octets());
    packet[16..20].copy_from_slice(&to.parse::<std::net::Ipv4Addr>().expect("ip").octets());
    packet.extend_from_slice(payload);
    packet
}

fn reach(network: &mut Network, at: SocketAddr, change: PeerChange, key: PublicKey, endpoint: Option<SocketAddr>) {
    let node = network.node(at);
    let now = Instant::now();
    node.engine.apply(change, now);
    if let Some(address) = endpoint {
        node.engine.apply(PeerChange::Endpoints(key, vec![Endpoint { address, interface: None }]), now);
    }
}

/// A at 192.0.2.1 holds 10.0.0.1, B at 192.0.2.2 holds 10.0.0.2 and 10.2.0.0/16; A knows where B is.
fn pair() -> (Network, SocketAddr, SocketAddr, PublicKey, PublicKey) {
    let (a, b) = (address("192.0.2.1:51820"), address("192.0.2.2:51820"));
    let (key_a, key_b) = (PrivateKey::generate(), PrivateKey::generate());
    let mut network = Network::new();
    network.add(a, &key_a);
    network.add(b, &key_b);
    reach(&mut network, a, PeerChange::Add(peer("b", key_b.public_key(), &["10.0.0.2/32", "10.2.0.0/16"])), key_b.public_key(), Some(b));
    reach(&mut network, b, PeerChange::Add(peer("a", key_a.public_key(), &["10.0.0.1/32"])), key_a.public_key(), None);
    (network, a, b, key_a.public_key(), key_b.public_key())
}

fn drops(network: &mut Network, at: SocketAddr, reason: DropReason) -> u64 {
    network.node(at).engine.snapshot(Instant::now(), SystemTime::now(), LaneSnapshot::new(0, 0)).drops.get(reason)
}

#[test]
fn a_packet_without_a_session_waits_for_the_handshake() {
    let (mut network, a, b, _, _) = pair();
    let packet = ipv4("10.0.0.1", "10.2.0.9", b"hello");
    network.send(a, &packet).expect("queued");
    network.run();
    assert_eq!(network.node(b).received, [packet]);
    assert_eq!(
        network.node(b).engine.poll_event(),
        Some(Event::EndpointMoved { peer: network.node(a).engine.public_key(), from: None, to: a })
    );
}

#[test]
fn the_handshake_starts_without_traffic() {
    let (mut network, a, b, _, key_b) = pair();
    network.tick();
    network.run();
    let snapshot = network.node(a).engine.snapshot(Instant::now(), SystemTime::now(), LaneSnapshot::new(0, 0));
    assert_eq!(snapshot.peers[0].state, PeerState::Up);
    assert!(snapshot.peers[0].last_handshake.is_some());
    let events: Vec<Event> = std::iter::from_fn(|| network.node(a).engine.poll_event()).collect();
    assert!(events.contains(&Event::SessionUp { peer: key_b, endpoint: b }), "{events:?}");
}

#[test]
fn what_is_sealed_is_padded_to_sixteen_but_not_over_the_mtu() {
    let (mut network, a, _, _, _) = pair();
    network.tick();
    network.run();
    for (payload, sealed) in
        [(0usize, 32), (1, 32), (12, 32), (13, 48), (MTU as usize - 20, MTU as usize), (MTU as usize - 21, MTU as usize)]
    {
        network.send(a, &ipv4("10.0.0.1", "10.0.0.2", &vec![7; payload])).expect("sent");
        let wire = network.run();
        assert_eq!(wire[0].2.len() - 32, sealed, "payload of {payload}");
    }
}

#[test]
fn what_is_longer_than_the_mtu_is_fragmented_or_refused_as_its_sender_wants() {
    let (mut network, a, b, _, _) = pair();
    network.tick();
    network.run();
    let mut packet = ipv4("10.0.0.1", "10.0.0.2", &vec![7; MTU as usize - 19]);
    network.send(a, &packet).expect("sent in fragments");
    network.run();
    let received = std::mem::take(&mut network.node(b).received);
    assert_eq!(received.len(), 2);
    assert!(received.iter().all(|fragment| fragment.len() <= MTU as usize));
    let payload: usize = received.iter().map(|fragment| fragment.len() - 20).sum();
    assert_eq!(payload, MTU as usize - 19);

    packet[6] = 0x40; // don't fragment
    assert_eq!(network.send(a, &packet), Err(DropReason::TooBig));
    let mut answer = [0u8; 1280];
    let length = network.node(a).engine.answer_too_big(&packet, Instant::now(), &mut answer).expect("the sender is told");
    assert_eq!((answer[9], answer[20], answer[21], u16::from_be_bytes([answer[26], answer[27]])), (1, 3, 4, MTU as u16));
    assert_eq!(answer[16..20], [10, 0, 0, 1], "{length} bytes to the sender");
}

#[test]
fn a_destination_of_no_peer_is_dropped() {
    let (mut network, a, _, _, _) = pair();
    assert_eq!(network.send(a, &ipv4("10.0.0.1", "10.3.0.1", b"")), Err(DropReason::NoPeer));
    assert_eq!(network.send(a, b"no packet"), Err(DropReason::NotIp));
}

#[test]
fn a_source_of_another_peer_is_dropped_though_a_wider_prefix_contains_it() {
    let (mut network, a, b, _, _) = pair();
    let other = PrivateKey::generate().public_key();
    // B may speak for 10.2.0.0/16, but 10.2.1.0/24 is another peer's.
    reach(&mut network, a, PeerChange::Add(peer("c", other, &["10.2.1.0/24"])), other, None);
    network.tick();
    network.run();
    network.send(b, &ipv4("10.2.1.1", "10.0.0.1", b"spoofed")).expect("sent");
    network.send(b, &ipv4("10.2.2.1", "10.0.0.1", b"honest")).expect("sent");
    network.run();
    assert_eq!(network.node(a).received, [ipv4("10.2.2.1", "10.0.0.1", b"honest")]);
    assert_eq!(drops(&mut network, a, DropReason::SourceNotAllowed), 1);
}

#[test]
fn replayed_data_is_dropped_and_moves_no_endpoint() {
    let (mut network, a, b, _, _) = pair();
    network.tick();
    network.run();
    network.send(a, &ipv4("10.0.0.1", "10.0.0.2", b"once")).expect("sent");
    let wire = network.run();
    let thief = address("203.0.113.9:1");
    assert_eq!(network.inject(thief, b, &wire[0].2), Some(DropReason::Replay));
    assert_eq!(network.node(b).received.len(), 1);
    assert_eq!(network.node(b).engine.snapshot(Instant::now(), SystemTime::now(), LaneSnapshot::new(0, 0)).peers[0].endpoint, Some(a));
}

#[test]
fn a_replayed_initiation_is_dropped() {
    let (mut network, a, b, _, _) = pair();
    network.tick();
    let initiation = network.node(a).batch.iter().map(|(datagram, _)| datagram.to_vec()).next().expect("an initiation");
    network.run();
    assert_eq!(network.inject(address("203.0.113.9:1"), b, &initiation), Some(DropReason::HandshakeReplay));
}

#[test]
fn an_authenticated_datagram_from_elsewhere_moves_the_endpoint() {
    let (mut network, a, b, key_a, _) = pair();
    network.node(b).engine.apply(PeerChange::Endpoints(key_a, vec![Endpoint { address: a, interface: None }]), Instant::now());
    network.tick();
    network.run();
    network.send(a, &ipv4("10.0.0.1", "10.0.0.2", b"moved")).expect("sent");
    let datagram = network.node(a).batch.iter().map(|(datagram, _)| datagram.to_vec()).next().expect("data");
    network.node(a).batch.clear();
    let elsewhere = address("198.51.100.7:4242");
    assert_eq!(network.inject(elsewhere, b, &datagram), None);
    let snapshot = network.node(b).engine.snapshot(Instant::now(), SystemTime::now(), LaneSnapshot::new(0, 0));
    assert_eq!((snapshot.peers[0].endpoint, snapshot.peers[0].roamed), (Some(elsewhere), true));
}

#[test]
fn a_pinned_peer_does_not_roam() {
    let (mut network, a, b, key_a, _) = pair();
    let mut pinned = peer("a", key_a, &["10.0.0.1/32"]);
    pinned.roaming = false;
    reach(&mut network, b, PeerChange::Edit(pinned), key_a, Some(a));
    network.tick();
    network.run();
    network.send(a, &ipv4("10.0.0.1", "10.0.0.2", b"x")).expect("sent");
    let datagram = network.node(a).batch.iter().map(|(datagram, _)| datagram.to_vec()).next().expect("data");
    network.inject(address("198.51.100.7:4242"), b, &datagram);
    assert_eq!(network.node(b).engine.snapshot(Instant::now(), SystemTime::now(), LaneSnapshot::new(0, 0)).peers[0].endpoint, Some(a));
}

#[test]
fn differing_preshared_keys_are_named_on_both_sides() {
    let (mut network, a, b, key_a, key_b) = pair();
    let mut with_key = peer("a", key_a, &["10.0.0.1/32"]);
    with_key.preshared_key = Some(PresharedKey::generate());
    reach(&mut network, b, PeerChange::Edit(with_key), key_a, None);
    for _ in 0..3 {
        // A new `Tunn` at A stands for the retransmission that would take five seconds.
        let mut again = peer("b", key_b, &["10.0.0.2/32"]);
        again.preshared_key = Some(PresharedKey::generate());
        reach(&mut network, a, PeerChange::Edit(again), key_b, None);
        network.tick();
        network.run();
    }
    let at_a = network.node(a).engine.snapshot(Instant::now(), SystemTime::now(), LaneSnapshot::new(0, 0));
    assert!(matches!(at_a.peers[0].trouble, Some(Trouble::AnswerDoesNotOpen { .. })), "{:?}", at_a.peers[0].trouble);
    let at_b = network.node(b).engine.snapshot(Instant::now(), SystemTime::now(), LaneSnapshot::new(0, 0));
    // B answers, and once it knows where A is it asks too: either way it can tell.
    assert!(
        matches!(at_b.peers[0].trouble, Some(Trouble::NotConfirmed { .. } | Trouble::AnswerDoesNotOpen { .. })),
        "{:?}",
        at_b.peers[0].trouble
    );
}

#[test]
fn answers_that_nobody_confirms_are_no_session() {
    let (mut network, a, b, _, key_b) = pair();
    // More than the ring of sessions that `Tunn` keeps, so that one lands in the slot of the current one.
    for _ in 0..20 {
        let mut other = peer("b", key_b, &["10.0.0.2/32"]);
        other.preshared_key = Some(PresharedKey::generate());
        reach(&mut network, a, PeerChange::Edit(other), key_b, None);
        network.tick();
        network.run();
        network.tick();
    }
    let at_b = network.node(b).engine.snapshot(Instant::now(), SystemTime::now(), LaneSnapshot::new(0, 0));
    assert_ne!(at_b.peers[0].state, PeerState::Up, "no session was ever confirmed");
    assert!(at_b.peers[0].trouble.is_some());
}

#[test]
fn a_queue_longer_than_a_batch_leaves_in_several() {
    let (mut network, a, b, _, _) = pair();
    for _ in 0..100 {
        network.send(a, &ipv4("10.0.0.1", "10.0.0.2", &[7; 1300])).expect("queued");
    }
    network.run();
    network.tick();
    network.run();
    assert_eq!(network.node(b).received.len(), 100);
}

#[test]
fn a_key_that_is_not_configured_is_named() {
    let (mut network, a, b, key_a, _) = pair();
    network.node(b).engine.apply(PeerChange::Remove(key_a), Instant::now());
    network.tick();
    network.run();
    let snapshot = network.node(b).engine.snapshot(Instant::now(), SystemTime::now(), LaneSnapshot::new(0, 0));
    assert_eq!(snapshot.last_unknown, Some((key_a, a)));
    assert_eq!(drops(&mut network, b, DropReason::UnknownKey), 1);
}

#[test]
fn a_handshake_for_another_key_is_named() {
    let (mut network, a, b, key_a, _) = pair();
    let wrong = PrivateKey::generate().public_key();
    reach(&mut network, b, PeerChange::Edit(peer("a", key_a, &["10.0.0.1/32"])), key_a, Some(a));
    reach(&mut network, a, PeerChange::Add(peer("wrong", wrong, &["10.9.0.0/16"])), wrong, Some(b));
    network.tick();
    let wire = network.run();
    assert!(wire.iter().any(|(from, ..)| *from == a));
    assert_eq!(drops(&mut network, b, DropReason::BadMac1), 1);
}

#[test]
fn a_new_preshared_key_keeps_the_session_until_the_new_one_stands() {
    let (mut network, a, b, key_a, key_b) = pair();
    network.tick();
    network.run();
    let shared = PresharedKey::generate();
    let mut at_a = peer("b", key_b, &["10.0.0.2/32"]);
    at_a.preshared_key = Some(shared.clone());
    reach(&mut network, a, PeerChange::Edit(at_a), key_b, None);
    // A has the new key, B not yet: data still passes both ways by the old session.
    network.send(a, &ipv4("10.0.0.1", "10.0.0.2", b"up")).expect("sent");
    network.send(b, &ipv4("10.0.0.2", "10.0.0.1", b"down")).expect("sent");
    network.run();
    assert_eq!((network.node(a).received.len(), network.node(b).received.len()), (1, 1));
    let mut at_b = peer("a", key_a, &["10.0.0.1/32"]);
    at_b.preshared_key = Some(shared);
    reach(&mut network, b, PeerChange::Edit(at_b), key_a, None);
    network.tick();
    network.run();
    network.send(a, &ipv4("10.0.0.1", "10.0.0.2", b"new")).expect("sent");
    network.run();
    assert_eq!(network.node(b).received.len(), 2);
}

#[test]
fn what_the_old_session_sealed_still_opens_after_the_new_one_stands() {
    let (mut network, a, b, key_a, key_b) = pair();
    network.tick();
    network.run();
    // On its way while the keys change.
    network.send(b, &ipv4("10.0.0.2", "10.0.0.1", b"straggler")).expect("sent");
    let straggler = network.node(b).batch.iter().map(|(datagram, _)| datagram.to_vec()).next().expect("data");
    network.node(b).batch.clear();
    let shared = PresharedKey::generate();
    for (at, name, key, allowed) in [(b, "a", key_a, "10.0.0.1/32"), (a, "b", key_b, "10.0.0.2/32")] {
        let mut edited = peer(name, key, &[allowed]);
        edited.preshared_key = Some(shared.clone());
        reach(&mut network, at, PeerChange::Edit(edited), key, None);
    }
    network.tick();
    network.run();
    assert_eq!(network.inject(b, a, &straggler), None);
    assert_eq!(network.node(a).received.len(), 1);
}

#[test]
fn the_same_addresses_in_another_order_move_nothing_and_before_a_session_the_first_is_taken() {
    let (mut network, a, b, _, key_b) = pair();
    let [first, second] = ["203.0.113.1:1", "203.0.113.2:1"].map(|text| Endpoint { address: address(text), interface: None });
    let at = |network: &mut Network| {
        network.node(a).engine.snapshot(Instant::now(), SystemTime::now(), LaneSnapshot::new(0, 0)).peers[0].endpoint
    };
    // The literal address comes before the name has resolved; once it has, the name is preferred.
    network.node(a).engine.apply(PeerChange::Endpoints(key_b, vec![second]), Instant::now());
    network.node(a).engine.apply(PeerChange::Endpoints(key_b, vec![first, second]), Instant::now());
    assert_eq!(at(&mut network), Some(first.address));
    let here = Endpoint { address: b, interface: None };
    network.node(a).engine.apply(PeerChange::Endpoints(key_b, vec![here, second]), Instant::now());
    network.tick();
    network.run();
    network.node(a).engine.apply(PeerChange::Endpoints(key_b, vec![second, here]), Instant::now());
    assert_eq!(at(&mut network), Some(b), "a session keeps its endpoint");
}

#[test]
fn the_queue_is_bounded_and_counted() {
    let (mut network, a, _, _, key_b) = pair();
    reach(&mut network, a, PeerChange::Remove(key_b), key_b, None);
    reach(&mut network, a, PeerChange::Add(peer("b", key_b, &["10.0.0.2/32"])), key_b, None);
    let packet = ipv4("10.0.0.1", "10.0.0.2", b"");
    let outcomes: Vec<_> = (0..130).map(|_| network.send(a, &packet)).collect();
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 128);
    assert_eq!(drops(&mut network, a, DropReason::QueueFull), 2);
}

proptest! {
    #[test]
    fn noise_is_counted_and_delivers_nothing(datagrams in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..20), kind in 0u8..6) {
        let (mut network, a, b, _, _) = pair();
        network.tick();
        network.run();
        for mut datagram in datagrams {
            if let Some(head) = datagram.get_mut(..4) {
                head.copy_from_slice(&[kind, 0, 0, 0]);
            }
            prop_assert!(network.inject(a, b, &datagram).is_some());
        }
        prop_assert!(network.node(b).received.is_empty());
        // Still alive: a real packet passes.
        network.send(a, &ipv4("10.0.0.1", "10.0.0.2", b"alive")).expect("sent");
        network.run();
        prop_assert_eq!(network.node(b).received.len(), 1);
    }
}

/// Everything that waits to leave, taken off its way.
fn in_flight(network: &mut Network, at: SocketAddr) -> Vec<Vec<u8>> {
    let node = network.node(at);
    let taken = node.batch.iter().map(|(datagram, _)| datagram.to_vec()).collect();
    node.batch.clear();
    taken
}

/// Regression: over a way of more than a tick, two that ask each other at once threw away the handshake that was answered.
#[test]
fn handshakes_that_cross_on_a_long_way_come_to_an_end() {
    let (mut network, a, b, _, _) = pair();
    let key_a = network.node(a).engine.public_key();
    let now = Instant::now();
    network.node(b).engine.apply(PeerChange::Endpoints(key_a, vec![Endpoint { address: a, interface: None }]), now);
    network.tick();
    let (mut to_b, mut to_a) = (in_flight(&mut network, a), in_flight(&mut network, b));
    assert_eq!((to_b.len(), to_a.len()), (1, 1), "both ask at once");
    for _ in 0..4 {
        for datagram in to_b.drain(..) {
            network.inject(a, b, &datagram);
        }
        for datagram in to_a.drain(..) {
            network.inject(b, a, &datagram);
        }
        // Two ticks and traffic before what was sent arrives.
        for _ in 0..2 {
            network.tick();
            network.send(a, &ipv4("10.0.0.1", "10.0.0.2", b"up")).expect("queued or sent");
            network.send(b, &ipv4("10.0.0.2", "10.0.0.1", b"down")).expect("queued or sent");
        }
        (to_b, to_a) = (in_flight(&mut network, a), in_flight(&mut network, b));
    }
    for at in [a, b] {
        assert_eq!(snapshot(&mut network, at).peers[0].state, PeerState::Up);
        assert!(!network.node(at).received.is_empty());
    }
}

#[test]
fn a_private_key_that_changes_loses_no_packet_when_the_peer_knows_the_next() {
    let (mut network, a, b, key_a, _) = pair();
    network.tick();
    network.run();
    let next = PrivateKey::generate();
    let mut announced = peer("a", key_a, &["10.0.0.1/32"]);
    announced.next_public_key = Some(next.public_key());
    network.node(b).engine.apply(PeerChange::Edit(announced), Instant::now());
    network.node(a).engine.set_private_key(next.clone(), Instant::now());
    // Before the new session stands, the old one carries, both ways.
    network.send(a, &ipv4("10.0.0.1", "10.0.0.2", b"old")).expect("sent");
    network.send(b, &ipv4("10.0.0.2", "10.0.0.1", b"old")).expect("sent");
    network.run();
    assert_eq!((network.node(a).received.len(), network.node(b).received.len()), (1, 1));
    network.tick();
    network.run();
    assert!(snapshot(&mut network, b).peers[0].uses_next_key);
    network.send(a, &ipv4("10.0.0.1", "10.0.0.2", b"new")).expect("sent");
    network.send(b, &ipv4("10.0.0.2", "10.0.0.1", b"new")).expect("sent");
    network.run();
    assert_eq!((network.node(a).received.len(), network.node(b).received.len()), (2, 2));
    // What was announced becomes the key: the same peer, the same session.
    network.node(b).engine.apply(PeerChange::Edit(peer("a", next.public_key(), &["10.0.0.1/32"])), Instant::now());
    network.send(b, &ipv4("10.0.0.2", "10.0.0.1", b"kept")).expect("sent");
    network.run();
    assert_eq!(network.node(a).received.len(), 3);
    let told = snapshot(&mut network, b);
    assert_eq!((told.peers[0].public_key, told.peers[0].uses_next_key, told.peers[0].state), (next.public_key(), false, PeerState::Up));
}

#[test]
fn an_initiation_by_the_announced_key_takes_over_only_with_data() {
    let (mut network, a, b, key_a, key_b) = pair();
    network.tick();
    network.run();
    let next = PrivateKey::generate();
    let mut announced = peer("a", key_a, &["10.0.0.1/32"]);
    announced.next_public_key = Some(next.public_key());
    network.node(b).engine.apply(PeerChange::Edit(announced), Instant::now());
    // Somebody who recorded an initiation by the next key sends it, and goes on no further.
    let stranger = address("203.0.113.9:4000");
    network.add(stranger, &next);
    reach(&mut network, stranger, PeerChange::Add(peer("b", key_b, &["10.0.0.2/32"])), key_b, Some(b));
    network.tick();
    for datagram in in_flight(&mut network, stranger) {
        assert_eq!(network.inject(stranger, b, &datagram), None);
    }
    let answer = in_flight(&mut network, b);
    assert_eq!(answer.len(), 1, "it is answered");
    let told = snapshot(&mut network, b);
    assert_eq!((told.peers[0].uses_next_key, told.peers[0].endpoint), (false, Some(a)));
    network.send(b, &ipv4("10.0.0.2", "10.0.0.1", b"still")).expect("sent");
    network.send(a, &ipv4("10.0.0.1", "10.0.0.2", b"still")).expect("sent");
    network.run();
    assert_eq!((network.node(a).received.len(), network.node(b).received.len()), (1, 1));
}

/// Regression: a removal by a key that had become another peer's next took that one.
#[test]
fn a_key_that_moves_from_one_peer_to_another_takes_the_right_one_away() {
    let (mut network, a, _, _, key_b) = pair();
    let other = PrivateKey::generate().public_key();
    let engine = &mut network.node(a).engine;
    let now = Instant::now();
    let names = |engine: &Engine| -> Vec<String> {
        engine.snapshot(now, SystemTime::now(), LaneSnapshot::new(0, 0)).peers.into_iter().map(|peer| peer.name).collect()
    };
    engine.apply(PeerChange::Add(peer("b-new", other, &["10.3.0.0/16"])), now);
    let mut merged = peer("b", key_b, &["10.0.0.2/32"]);
    merged.next_public_key = Some(other);
    engine.apply(PeerChange::Edit(merged), now);
    engine.apply(PeerChange::Remove(other), now);
    assert_eq!(names(engine), ["b"]);
    // And apart again: the announced key becomes that of a peer of its own.
    engine.apply(PeerChange::Add(peer("c", other, &["10.3.0.0/16"])), now);
    engine.apply(PeerChange::Edit(peer("b", key_b, &["10.0.0.2/32"])), now);
    assert_eq!(names(engine), ["b", "c"]);
    let keys: Vec<PublicKey> =
        engine.snapshot(now, SystemTime::now(), LaneSnapshot::new(0, 0)).peers.iter().map(|peer| peer.public_key).collect();
    assert_eq!(keys, [key_b, other]);
}

/// Regression: boringtun keeps eight sessions, and answers that nobody confirms take places too.
#[test]
fn a_live_session_outlasts_any_number_of_unconfirmed_answers() {
    let (mut network, a, b, key_a, _) = pair();
    // So that A is no stranger, who may ask five times.
    network.node(b).engine.apply(PeerChange::Endpoints(key_a, vec![Endpoint { address: a, interface: None }]), Instant::now());
    network.tick();
    network.run();
    // A's preshared key is another now: it asks, and can confirm nothing. A fresh engine, so that each initiation is newer.
    let mut settings = peer("b", network.node(b).engine.public_key(), &["10.0.0.2/32", "10.2.0.0/16"]);
    for round in 0..12 {
        settings.preshared_key = Some(PresharedKey::generate());
        network.node(a).engine.apply(PeerChange::Edit(settings.clone()), Instant::now());
        network.tick();
        for datagram in in_flight(&mut network, a) {
            let refused = network.inject(a, b, &datagram);
            assert_eq!(refused, None, "initiation {round}");
        }
        in_flight(&mut network, b);
        std::thread::yield_now();
    }
    network.send(b, &ipv4("10.0.0.2", "10.0.0.1", b"alive")).expect("sent");
    network.run();
    assert_eq!(network.node(a).received.len(), 1, "{key_a}");
}

#[test]
fn who_asks_too_often_gets_a_cookie_and_comes_through_with_it() {
    let (mut network, a, b, _, _) = pair();
    // Somebody pretends to be at A's address and empties its bucket.
    let other = PrivateKey::generate();
    let forged = address("192.0.2.99:1");
    network.add(forged, &other);
    let key_b = network.node(b).engine.public_key();
    for _ in 0..5 {
        reach(&mut network, forged, PeerChange::Remove(key_b), key_b, None);
        reach(&mut network, forged, PeerChange::Add(peer("b", key_b, &["10.0.0.2/32"])), key_b, Some(b));
        network.node(forged).engine.handle_timeout(Instant::now() + TICK, &mut Batch::new());
        let node = network.node(forged);
        let due = node.engine.poll_timeout();
        node.engine.apply(PeerChange::Remove(key_b), due);
        node.engine.apply(PeerChange::Add(peer("b", key_b, &["10.0.0.2/32"])), due);
        node.engine.apply(PeerChange::Endpoints(key_b, vec![Endpoint { address: b, interface: None }]), due);
        node.engine.handle_timeout(due, &mut node.batch);
        for datagram in in_flight(&mut network, forged) {
            assert_eq!(network.inject(a, b, &datagram), Some(DropReason::UnknownKey));
        }
    }
    network.tick();
    network.run();
    assert!(drops(&mut network, b, DropReason::UnderLoad) > 0, "a cookie went back");
    assert_eq!(snapshot(&mut network, a).peers[0].state, PeerState::Up);
}

#[test]
fn congestion_that_the_way_marked_reaches_the_packet_inside() {
    let (mut network, a, b, _, _) = pair();
    network.tick();
    network.run();
    for (inner, outer, expected) in [(2u8, 3u8, Some(3u8)), (0, 0, Some(0)), (0, 3, None)] {
        let mut packet = ipv4("10.0.0.1", "10.0.0.2", b"ecn");
        packet[1] = inner;
        network.send(a, &packet).expect("sent");
        let node = network.node(a);
        assert_eq!(node.batch.transmits()[0].outer.ecn, inner, "copied outward");
        let datagram = in_flight(&mut network, a).remove(0);
        let node = network.node(b);
        let mut plain = vec![0u8; 2000];
        let arrival = Arrival { from: a, to: None, ecn: outer };
        match (node.engine.handle_datagram(&datagram, arrival, Instant::now(), &mut plain, &mut node.batch), expected) {
            (Received::Packet(packet), Some(expected)) => assert_eq!(packet[1], expected),
            (Received::Dropped(reason), None) => assert_eq!(reason, DropReason::Congested),
            (other, _) => panic!("{other:?}"),
        }
    }
}

fn snapshot(network: &mut Network, at: SocketAddr) -> Snapshot {
    network.node(at).engine.snapshot(Instant::now(), SystemTime::now(), LaneSnapshot::new(0, 0))
}

/// Found by ten thousand reloads: the memory of a removed peer was never used again.
#[test]
fn peers_that_come_and_go_leave_nothing() {
    let (mut network, a, b, _, _) = pair();
    for number in 0..50u8 {
        let key = PrivateKey::generate().public_key();
        let guest = peer("guest", key, &[&format!("10.77.{number}.0/24")]);
        reach(&mut network, a, PeerChange::Add(guest), key, Some(b));
        reach(&mut network, a, PeerChange::Remove(key), key, None);
    }
    let engine = &network.node(a).engine;
    assert_eq!((engine.peers.len(), engine.by_key.len(), engine.by_index.len()), (2, 1, 1));
    assert_eq!(network.send(a, &ipv4("10.0.0.1", "10.77.1.1", b"")), Err(DropReason::NoPeer));
    assert_eq!(network.send(a, &ipv4("10.0.0.1", "10.0.0.2", b"still there")), Ok(()));
}
