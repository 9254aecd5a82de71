//! What anybody on the path may do to a tunnel who has no key: send again what was recorded, and flood the gateway with
//! handshakes. Neither has an effect on those who have a key. Noise and messages made by hand: bad_datagrams.rs.

use std::net::SocketAddr;

use tests::impairment::{COOKIE, DATA, Direction, INITIATION, RESPONSE, Replay, own_program};
use tests::keys::Keys;
use tests::netns::{End, Namespace, join};
use tests::report::{NAMESPACES, machine_has};
use tests::skyway::Gateway;
use tests::wire::{SOON, Shape, Side, Way, Wire};
use tests::{replaced, seconds, wait_for};

fn possible() -> bool {
    machine_has(NAMESPACES)
}

/// What must stay as it is while somebody sends old datagrams: endpoint and session of both sides.
fn standing(wire: &Wire) -> Vec<serde_json::Value> {
    let names = ["state", "endpoint", "roamed", "last_handshake_unix"];
    [&wire.here, &wire.there].into_iter().flat_map(|side| names.map(|name| side.peer()[name].clone())).collect()
}

#[test]
fn a_message_that_was_recorded_has_no_effect_whatever_its_kind() {
    if !possible() {
        return;
    }
    const ELSEWHERE: &str = "192.0.2.77:4444";
    let mut wire = Wire::build(Shape { there_knows_here: false, ..Shape::PLAIN });
    wire.impairment().record(4000);
    wire.start();
    let flows = [Way::HereToThere, Way::ThereToHere].map(|way| wire.flow(way, 300));
    flows[0].wait_until_sent(300, SOON);
    let before = standing(&wire);
    let elsewhere: Option<SocketAddr> = Some(ELSEWHERE.parse().expect("an address"));

    // Under load the gateway answers with cookies. The load comes from many; the cookie that is recorded goes to a true one.
    for host in 100..200u8 {
        let from = Some(SocketAddr::from(([192, 0, 2, host], 4000)));
        wire.impairment().replay(Direction::Ab, Replay { times: 3, at_most: 1, from, ..Replay::of_kind(INITIATION) });
    }
    wire.impairment().replay(Direction::Ab, Replay { times: 5, at_most: 1, ..Replay::of_kind(INITIATION) });
    wait_for("a cookie came", seconds(10), || wire.impairment().counters(Direction::Ba).cookies > 0);

    // By the way that they took, and from elsewhere, to the side that they were for.
    for (direction, kind, times) in [
        (Direction::Ab, DATA, 1),
        (Direction::Ab, INITIATION, 10),
        (Direction::Ba, RESPONSE, 10),
        (Direction::Ba, COOKIE, 10),
        (Direction::Ba, DATA, 1),
    ] {
        let side = if direction == Direction::Ab { &wire.there } else { &wire.here };
        for from in [None, elsewhere] {
            let dropped = side.refused();
            let sent = wire.impairment().replay(direction, Replay { times, at_most: 200, from, ..Replay::of_kind(kind) });
            assert!(sent > 0, "messages of kind {kind} were recorded");
            // A cookie for the last handshake is a right one, however often it comes. And the initiation that the recorded cookie
            // brought forth found its sender's bucket empty: the first copy of it is late, and no replay.
            let late = u64::from(kind == INITIATION);
            if kind != COOKIE {
                let what = format!("each of {sent} of kind {kind} from {from:?} is counted, beside {dropped}");
                wait_for(&what, seconds(10), || side.refused() >= dropped + sent - late);
            }
        }
    }
    assert_eq!(standing(&wire), before);
    for flow in flows {
        flow.wait_until_it_flows(SOON);
        let report = flow.finish();
        assert_eq!((report.lost, report.duplicated), (0, 0), "{report:?}");
    }
    wire.assert_wires_are_sound();
}

#[test]
fn an_initiation_for_one_lane_changes_nothing_in_another() {
    if !possible() {
        return;
    }
    let mut wire = Wire::build(Shape { there_knows_here: false, lanes: 2, ..Shape::PLAIN });
    wire.impairment().record(4000);
    wire.start();
    // Several, so that both lanes have some.
    let flows: Vec<_> = (0..8).map(|flow| wire.flow_to(Way::HereToThere, 7000 + flow, 100, 500)).collect();
    for flow in &flows {
        flow.wait_until_it_flows(SOON);
    }
    let before = standing(&wire);
    let responses = wire.impairment().counters(Direction::Ba).responses;
    let mut replayed = 0;
    for port in [51820, 51821] {
        replayed += wire.impairment().replay(Direction::Ab, Replay { to_port: Some(port), ..Replay::of_kind(INITIATION) });
    }
    assert!(replayed >= 4, "both lanes have made a handshake: {replayed}");
    for flow in &flows {
        flow.wait_until_it_flows(SOON);
    }
    // Each lane got one that was for the other, which it may take for new, once.
    let answers = wire.impairment().counters(Direction::Ba).responses - responses;
    assert!(answers <= 2, "{answers} answers to {replayed} initiations");
    assert_eq!(standing(&wire), before);
    for flow in flows {
        let report = flow.finish();
        assert_eq!((report.lost, report.duplicated), (0, 0), "{report:?}");
    }
}

/// A gateway beside the wire that is a peer of `here`, and the namespace that it runs in.
struct Other {
    gateway: Gateway,
    namespace: Namespace,
}

impl Other {
    /// `network`: three bytes of a /24 between the two; `inside`: its address in the tunnel.
    fn prepare(name: &'static str, keys: &Keys, here: &Side, network: &str, inside: &str) -> Self {
        let namespace = Namespace::create();
        let [one, other] = [1, 2].map(|host| format!("{network}.{host}/24"));
        join(
            End { namespace: &here.namespace, interface: name, addresses: &[one.as_str()] },
            End { namespace: &namespace, interface: "eth0", addresses: &[other.as_str()] },
        );
        let gateway = Gateway::new(name).inside(&namespace);
        gateway.write_secret("key", &keys.private);
        gateway.write(&format!(
            r#"version: 1
gateway: {{ name: {name}, cloud: other, admin: FOLDER/admin.sock }}
tunnels:
  sky:
    mode: tun
    private_key: {{ file: key }}
    listen: 51820
    addresses: [{inside}/16]
    mtu: 1420
    peers:
      here: {{ public_key: "{}", endpoints: ["{network}.1:51820"], allowed_ips: [10.99.0.1/32], keepalive: 25s, cloud: other }}
"#,
            here.keys.public
        ));
        Self { gateway, namespace }
    }
}

#[test]
fn a_flood_of_handshakes_keeps_nobody_out() {
    if !possible() {
        return;
    }
    // Packets of 1392 bytes: 100 Mbit/s.
    const PACKETS_PER_SECOND: u32 = 8980;
    const PAYLOAD_BYTES: usize = 1392 - 28;
    let mut wire = Wire::build(Shape::PLAIN);
    let (newcomer_keys, known_keys) = (Keys::generate(), Keys::generate());
    let mut newcomer = Other::prepare("newcomer", &newcomer_keys, &wire.here, "10.77.0", "10.99.9.2");
    let mut known = Other::prepare("known", &known_keys, &wire.here, "10.78.0", "10.99.10.2");
    let peer = |name: &str, key: &str, inside: &str, more: &str| {
        format!("      {name}: {{ public_key: \"{key}\", allowed_ips: [{inside}/32], keepalive: 25s, cloud: other{more} }}\n")
    };
    let peers = format!(
        "    peers:\n{}{}",
        peer("newcomer", &newcomer_keys.public, "10.99.9.2", ""),
        peer("known", &known_keys.public, "10.99.10.2", ", endpoints: [\"10.78.0.2:51820\"]"),
    );
    // On-link, so that answers to the others are routed into the tunnel too.
    let yaml = replaced(&wire.here.yaml, "addresses: [10.99.0.1/30", "addresses: [10.99.0.1/16");
    wire.here.gateway.write(&replaced(&yaml, "    peers:\n", &peers));

    // Spoofed sources are everybody's; answers to them go back to where the flood comes from, and no further.
    let flooder = Namespace::create();
    join(
        End { namespace: &wire.here.namespace, interface: "wild", addresses: &["203.0.113.1/24"] },
        End { namespace: &flooder, interface: "eth0", addresses: &["203.0.113.2/24"] },
    );
    wire.here.namespace.ip("route add default via 203.0.113.2");

    wire.there.gateway.start();
    wire.here.gateway.start();
    wire.there.gateway.wait_until_up(seconds(15));
    let program = own_program("flood");
    let program = program.to_str().expect("a plain path");
    let options = ["--interface", "eth0", "--to", "203.0.113.1:51820", "--public-key", &wire.here.keys.public];
    let strength = ["--rate", "50000", "--seconds", "60", "--sources", "10.66.0.0/16"];
    let mut flood = flooder.start(&[&[program][..], &options, &strength].concat());
    wait_for("the flood has come", SOON, || wire.here.gateway.all_drops() > 50_000);

    let flow = wire.flow_to(Way::ThereToHere, 7100, PACKETS_PER_SECOND, PAYLOAD_BYTES);
    newcomer.gateway.start();
    newcomer.gateway.wait_until_up(seconds(7));
    known.gateway.start();
    known.gateway.wait_until_up(seconds(2));
    let enough = 8 * u64::from(PACKETS_PER_SECOND);
    wait_for("eight seconds of the flow are sent", seconds(60), || flow.sent() >= enough);
    assert!(flood.is_running(), "it outlasts the flow");
    let report = flow.finish();
    assert!(report.received * 10 >= report.sent * 9, "{report:?}");
    drop(flood);
    assert_eq!(newcomer.namespace.ping("10.99.0.1", 5, ""), 5);
    assert_eq!(known.namespace.ping("10.99.0.1", 5, ""), 5);
}
