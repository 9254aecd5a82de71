//! What networks, peers and clocks do to a tunnel, and that it carries on: each fault for some seconds. Those that take
//! minutes are in faults_long.rs; what people do is in hostile.rs.
//!
//! Expectations are those of reference/reliability-and-ux.md §1.7. Faults come from a wire in user space, by a seed
//! ([`tests::impairment`]).

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use tests::impairment::{Direction, Settings};
use tests::inside::inside;
use tests::netns::{End, Namespace, join};
use tests::process::{Process, finish, finish_with_input};
use tests::report::{NAMESPACES, Need, machine_has};
use tests::sensor::dial;
use tests::tls::{Authority, Session, TlsServer, answer, ask};
use tests::wire::{OUTSIDE, OUTSIDE_IPV6, SOON, Shape, Way, Wire};
use tests::{HUB, replaced, seconds, wait_for};
use tunnel::DropReason;

const MB: u64 = 1_000_000;
/// For a transfer to end. None takes a third of it unless something is wrong.
const TRANSFER: Duration = seconds(120);
/// Three probes without an answer, a second apart, and the handshake that follows.
const PROBED: Duration = seconds(4);

fn possible() -> bool {
    machine_has(NAMESPACES)
}

/// Both ways at once, because acknowledgements are lost too.
#[track_caller]
fn assert_transfer_survives(settings: Settings, bytes: u64) {
    let wire = Wire::up(Shape::PLAIN);
    wire.impairment().both(settings);
    wire.transfer(Way::HereToThere, bytes).finish(TRANSFER);
    wire.assert_wires_are_sound();
}

#[test]
fn a_transfer_over_a_wire_that_loses_one_in_a_hundred_arrives_whole() {
    if !possible() {
        return;
    }
    assert_transfer_survives(Settings { loss: 0.01, ..Settings::CLEAN }, 100 * MB);
}

#[test]
fn a_transfer_over_a_wire_that_loses_one_in_twenty_arrives_whole() {
    if !possible() {
        return;
    }
    assert_transfer_survives(Settings { loss: 0.05, ..Settings::CLEAN }, 20 * MB);
}

#[test]
fn a_transfer_over_a_wire_that_loses_one_in_five_arrives_whole() {
    if !possible() {
        return;
    }
    assert_transfer_survives(Settings { loss: 0.2, ..Settings::CLEAN }, 2 * MB);
}

#[test]
fn the_tunnel_loses_nothing_that_the_wire_did_not() {
    if !possible() {
        return;
    }
    let wire = Wire::up(Shape::PLAIN);
    wire.impairment().one_way(Direction::Ab, Settings { loss: 0.05, ..Settings::CLEAN });
    let flow = wire.flow(Way::HereToThere, 2000);
    flow.wait_until_sent(6000, SOON);
    let report = flow.finish();
    let lost = wire.impairment().counters(Direction::Ab).lost;
    // Probes and keepalives are lost as well, a few in these seconds.
    assert!(report.lost <= lost && report.lost + 60 >= lost, "the wire lost {lost}: {report:?}");
    assert!(report.lost > 150, "{report:?}");
    assert_eq!(report.duplicated, 0, "{report:?}");
    wire.assert_wires_are_sound();
}

#[test]
fn a_datagram_that_comes_twice_is_delivered_once_and_counted() {
    if !possible() {
        return;
    }
    let wire = Wire::up(Shape::PLAIN);
    let before = wire.there.drops(&[DropReason::Replay]);
    wire.impairment().one_way(Direction::Ab, Settings { duplicate: 0.5, ..Settings::CLEAN });
    let flow = wire.flow(Way::HereToThere, 2000);
    flow.wait_until_sent(6000, SOON);
    let report = flow.finish();
    wire.impairment().clean();
    assert_eq!((report.lost, report.duplicated), (0, 0), "{report:?}");
    let duplicated = wire.impairment().counters(Direction::Ab).duplicated;
    assert!(duplicated > 2000, "{duplicated}");
    wait_for("every copy is counted", seconds(10), || wire.there.drops(&[DropReason::Replay]) == before + duplicated);
    wire.impairment().both(Settings { duplicate: 1.0, ..Settings::CLEAN });
    wire.transfer(Way::HereToThere, 20 * MB).finish(TRANSFER);
    wire.assert_wires_are_sound();
}

#[test]
fn datagrams_out_of_order_by_five_hundred_are_all_delivered() {
    if !possible() {
        return;
    }
    let wire = Wire::up(Shape::PLAIN);
    let before = wire.there.refused();
    wire.impairment().one_way(Direction::Ab, Settings { reorder: 0.05, depth: 500, ..Settings::CLEAN });
    let flow = wire.flow(Way::HereToThere, 5000);
    flow.wait_until_sent(15_000, SOON);
    let report = flow.finish();
    assert_eq!((report.lost, report.duplicated), (0, 0), "{report:?}");
    assert!(report.reordered > 400, "{report:?}");
    assert_eq!(wire.there.refused(), before, "none was taken for a replay");
    wire.impairment().both(Settings { reorder: 0.05, depth: 20, ..Settings::CLEAN });
    wire.transfer(Way::HereToThere, 20 * MB).finish(TRANSFER);
    wire.assert_wires_are_sound();
}

#[test]
fn a_datagram_with_a_changed_bit_is_dropped_and_counted() {
    if !possible() {
        return;
    }
    let wire = Wire::up(Shape::PLAIN);
    let before = wire.there.refused();
    wire.impairment().one_way(Direction::Ab, Settings { corrupt: 0.01, ..Settings::CLEAN });
    let flow = wire.flow(Way::HereToThere, 5000);
    flow.wait_until_sent(20_000, SOON);
    let report = flow.finish();
    wire.impairment().clean();
    let corrupted = wire.impairment().counters(Direction::Ab).corrupted;
    assert!(corrupted > 100, "{corrupted}");
    wait_for("every changed datagram is counted", seconds(10), || wire.there.refused() == before + corrupted);
    assert!(report.lost > 0 && report.lost <= corrupted && report.duplicated == 0, "{corrupted} changed: {report:?}");
    assert_eq!(wire.there.peer()["state"], "up");

    wire.impairment().both(Settings { corrupt: 0.01, ..Settings::CLEAN });
    wire.transfer(Way::HereToThere, 20 * MB).finish(TRANSFER);
    wire.assert_wires_are_sound();
}

#[test]
fn the_tunnel_adds_little_to_the_delay_of_the_wire() {
    if !possible() {
        return;
    }
    const DELAY: Duration = Duration::from_millis(40);
    const JITTER: Duration = Duration::from_millis(10);
    /// Of both ways together.
    const ADDED: Duration = Duration::from_millis(20);
    let wire = Wire::up(Shape::PLAIN);
    wire.impairment().both(Settings { delay: DELAY, jitter: JITTER, ..Settings::CLEAN });
    let flows = [Way::HereToThere, Way::ThereToHere].map(|way| wire.flow(way, 200));
    flows[0].wait_until_sent(800, SOON);
    let [out, back] = flows.map(tests::flow::Flow::finish);
    assert_eq!((out.lost, back.lost), (0, 0), "{out:?} {back:?}");
    assert!(out.shortest_delay >= DELAY && back.shortest_delay >= DELAY, "{out:?} {back:?}");
    let there_and_back = out.median_delay + back.median_delay;
    assert!(there_and_back < 2 * (DELAY + JITTER) + ADDED, "{there_and_back:?}: {out:?} {back:?}");
    wire.transfer(Way::HereToThere, 20 * MB).finish(TRANSFER);
    wire.assert_wires_are_sound();
}

#[test]
fn a_path_that_swallows_what_is_too_large_is_found_and_a_transfer_completes() {
    if !possible() {
        return;
    }
    // Measured between clouds: cilium/cilium issue 47176.
    for largest in [1368, 1296] {
        let wire = Wire::up(Shape::PLAIN);
        wire.impairment().both(Settings { drop_larger: Some(largest), ..Settings::CLEAN });
        let transfer = wire.transfer(Way::HereToThere, 10 * MB);
        let inner = largest as u64 - 60;
        wait_for("status tells the path's size", seconds(10), || {
            // Found in steps, and packets are padded to sixteen bytes.
            wire.here.peer()["path_mtu"].as_u64().is_some_and(|found| (inner - 24..=inner).contains(&found))
        });
        transfer.finish(TRANSFER);
        wire.transfer(Way::ThereToHere, 10 * MB).finish(TRANSFER);
        assert!(wire.impairment().counters(Direction::Ab).too_large > 0, "{largest}");
        wire.assert_wires_are_sound();
    }
}

#[test]
fn a_link_that_flaps_twenty_times_carries_again_within_two_seconds() {
    if !possible() {
        return;
    }
    let mut wire = Wire::up(Shape::PLAIN);
    let flows = [Way::HereToThere, Way::ThereToHere].map(|way| wire.flow(way, 500));
    wire.impairment().flap(20, Duration::from_millis(300), Duration::from_millis(300));
    wire.impairment().wait_until_flaps_are_over(seconds(40));
    for flow in flows {
        flow.wait_until_it_flows(seconds(2));
        let report = flow.finish();
        // Down for six of twelve seconds.
        assert!(report.lost > 1000 && report.received > 1000, "{report:?}");
    }
    assert!(wire.here.gateway.is_running() && wire.there.gateway.is_running());
}

#[test]
fn a_nat_that_gives_another_port_in_the_middle_of_a_transfer_breaks_nothing() {
    if !possible() {
        return;
    }
    // By a way of its own beside the wire: here ─ lan, wan ─ there, with masquerading to one port.
    let mut wire = Wire::build(Shape { there_knows_here: false, ..Shape::PLAIN });
    let nat = Namespace::create();
    nat.forward();
    join(
        End { namespace: &wire.here.namespace, interface: "inner", addresses: &["203.0.113.1/30"] },
        End { namespace: &nat, interface: "lan", addresses: &["203.0.113.2/30"] },
    );
    join(
        End { namespace: &nat, interface: "wan", addresses: &["203.0.113.6/30"] },
        End { namespace: &wire.there.namespace, interface: "outer", addresses: &["203.0.113.5/30"] },
    );
    wire.here.namespace.ip("route add 203.0.113.4/30 via 203.0.113.2");
    wire.here.gateway.write(&replaced(&wire.here.yaml, OUTSIDE[0][1], "203.0.113.5"));
    let masquerade = |port: u16| {
        let script = format!(
            "table ip nat {{ }}
            delete table ip nat
            table ip nat {{
                chain postrouting {{
                    type nat hook postrouting priority srcnat; policy accept;
                    oifname \"wan\" meta l4proto udp masquerade to :{port}
                }}
            }}"
        );
        finish_with_input(&mut nat.command(&["nft", "-f", "-"]), script.as_bytes(), seconds(10)).success();
    };
    masquerade(40_001);
    wire.start();
    let seen = |wire: &Wire| wire.there.peer()["endpoint"].as_str().unwrap_or("none").to_owned();
    assert_eq!(seen(&wire), "203.0.113.6:40001");

    // Some four seconds long, so that the change falls into it.
    let transfer = wire.paced_transfer(Way::HereToThere, 40 * MB, Some(10 * MB));
    transfer.wait_until_received(4 * MB, SOON);
    masquerade(40_002);
    // Masquerading forgets a flow when the address that it was given is gone.
    nat.ip("address del 203.0.113.6/30 dev wan");
    nat.ip("address add 203.0.113.6/30 dev wan");
    wait_for("the endpoint has followed", seconds(10), || seen(&wire) == "203.0.113.6:40002");
    assert!(transfer.is_under_way(), "the port changed in the middle of it");
    transfer.finish(TRANSFER);
    wire.transfer(Way::ThereToHere, 5 * MB).finish(TRANSFER);
}

#[test]
fn an_own_address_that_changes_is_followed_within_three_seconds() {
    if !possible() {
        return;
    }
    let wire = Wire::up(Shape::PLAIN);
    let flows = [Way::HereToThere, Way::ThereToHere].map(|way| wire.flow(way, 200));
    for flow in &flows {
        flow.wait_until_it_flows(SOON);
    }
    wire.here.namespace.ip("address del 192.0.2.1/24 dev eth0");
    wire.here.namespace.ip("address add 192.0.2.11/24 dev eth0");
    for flow in flows {
        flow.wait_until_it_flows(seconds(3));
        let report = flow.finish();
        assert!(report.longest_gap < seconds(4), "{report:?}");
    }
    assert_eq!(wire.there.peer()["endpoint"], "192.0.2.11:51820");
}

#[test]
fn a_restarted_peer_that_is_silent_is_found_by_probes() {
    if !possible() {
        return;
    }
    // It cannot speak first: it does not know where to.
    let mut wire = Wire::up(Shape { there_knows_here: false, ..Shape::PLAIN });
    let flow = wire.flow(Way::HereToThere, 200);
    flow.wait_until_it_flows(SOON);
    wire.there.gateway.kill();
    wire.there.gateway.start();
    flow.wait_until_it_flows(PROBED);
}

#[test]
fn a_restarted_peer_that_speaks_first_is_back_at_once() {
    if !possible() {
        return;
    }
    let mut wire = Wire::up(Shape::PLAIN);
    // From the restarted side alone.
    let flow = wire.flow(Way::ThereToHere, 200);
    flow.wait_until_it_flows(SOON);
    wire.there.gateway.kill();
    wire.there.gateway.start();
    flow.wait_until_it_flows(seconds(3));
}

#[test]
fn a_gateway_that_crashed_carries_again_within_two_seconds_of_its_start() {
    if !possible() {
        return;
    }
    let mut wire = Wire::up(Shape::PLAIN);
    let flows = [Way::HereToThere, Way::ThereToHere].map(|way| wire.flow(way, 200));
    for flow in &flows {
        flow.wait_until_it_flows(SOON);
    }
    for _ in 0..3 {
        wire.here.gateway.kill();
        wire.here.gateway.start();
        for flow in &flows {
            flow.wait_until_it_flows(seconds(2));
        }
    }
    wire.transfer(Way::HereToThere, 5 * MB).finish(TRANSFER);
}

/// A TLS server in a namespace. It is ended from inside, where it can be reached.
struct Inside<'a> {
    server: Option<TlsServer>,
    namespace: &'a Namespace,
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        let server = self.server.take();
        inside(self.namespace, || drop(server));
    }
}

#[test]
fn a_hundred_tls_sessions_outlive_the_wire_that_they_began_on() {
    if !possible() {
        return;
    }
    let mut wire = Wire::up(Shape { links: 2, ..Shape::PLAIN });
    let authority = Authority::create();
    let identity = authority.issue(&[HUB]);
    let any: SocketAddr = "0.0.0.0:8443".parse().expect("an address");
    let server = inside(&wire.there.namespace, || TlsServer::start(any, &identity));
    let server = Inside { server: Some(server), namespace: &wire.there.namespace };
    let target = wire.there.inside_address(8443);
    let streams = inside(&wire.here.namespace, || (0..100).map(|_| dial(target)).collect::<Vec<_>>());
    let mut sessions: Vec<Session> = streams.into_iter().map(|stream| authority.session(stream, HUB)).collect();
    for session in &mut sessions {
        session.write_all(b"before, ").and_then(|()| session.flush()).expect("the first half is sent");
    }
    assert_eq!(wire.here.peer()["active_endpoint"], 0);

    let flow = wire.flow(Way::HereToThere, 200);
    flow.wait_until_it_flows(SOON);
    wire.links[0].impairment.both(Settings { down: true, ..Settings::CLEAN });
    wait_for("the other wire is used", seconds(10), || wire.here.peer()["active_endpoint"] == 1);
    flow.wait_until_it_flows(seconds(5));
    assert_eq!(wire.here.peer()["endpoint"], format!("{}:51820", OUTSIDE[1][1]));
    // Whichever side noticed first; the other followed.
    let switches = [&wire.here, &wire.there].map(|side| side.peer()["endpoint_switches"].as_u64().expect("a number"));
    assert!(switches.iter().sum::<u64>() >= 1, "{switches:?}");
    for (number, session) in sessions.iter_mut().enumerate() {
        let answered = ask(session, b"after").unwrap_or_else(|error| panic!("session {number}: {error}"));
        assert_eq!(answered, answer(HUB, b"before, after"), "session {number}");
    }
    let report = flow.finish();
    assert!(report.longest_gap < seconds(6), "{report:?}");
    drop(server);
    assert!(wire.here.gateway.is_running() && wire.there.gateway.is_running());
}

#[test]
fn two_hundred_reloads_under_traffic_lose_nothing_and_leave_nothing() {
    if !possible() {
        return;
    }
    tests::reloads::assert_reloads_leave_nothing(200);
}

#[test]
fn a_clock_that_jumps_by_hours_stops_neither_session_nor_handshake() {
    if !possible() || !machine_has(&[Need::Tool("faketime"), Need::Tool("printenv")]) {
        return;
    }
    let mut wire = Wire::build(Shape::PLAIN);
    wire.there.gateway.start();
    // The wrapper knows where its library is.
    let library = finish(Command::new("faketime").args(["-f", "+0d", "printenv", "LD_PRELOAD"]), seconds(10)).success();
    let clock = wire.here.gateway.folder().join("clock");
    let set_clock = |offset: &str| {
        // In one go, so that it is never read half written.
        let new = clock.with_extension("new");
        fs::write(&new, format!("{offset}\n")).expect("an offset written");
        fs::rename(&new, &clock).expect("the offset put in place");
    };
    set_clock("+0");
    let mut command = wire.here.gateway.command(&["run"]);
    command.env("LD_PRELOAD", library.trim()).env("FAKETIME_TIMESTAMP_FILE", &clock).env("FAKETIME_NO_CACHE", "1");
    // Wall-clock time jumps; monotonic time does not, as on a real host.
    command.env("DONT_FAKE_MONOTONIC", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    let mut here = Process::start("skyway with a clock of its own", &mut command);
    here.wait_for_line(" ready", seconds(20));
    wire.here.gateway.wait_until_up(seconds(15));
    wire.there.gateway.wait_until_up(seconds(15));

    let other_family = replaced(&wire.here.yaml, &format!("\"{}:51820\"", OUTSIDE[0][1]), &format!("\"[{}]:51820\"", OUTSIDE_IPV6[0][1]));
    for (offset, yaml) in [("+3600", &other_family), ("-3600", &wire.here.yaml)] {
        let flows = [Way::HereToThere, Way::ThereToHere].map(|way| wire.flow(way, 100));
        for flow in &flows {
            flow.wait_until_it_flows(SOON);
        }
        set_clock(offset);
        for flow in flows {
            flow.wait_until_sent(150, SOON);
            let report = flow.finish();
            assert_eq!(report.lost, 0, "{offset}: {report:?}");
        }
        // A new address of the peer makes a handshake at once, which the far side must not take for an old one.
        let handshake = || wire.there.peer()["last_handshake_unix"].as_u64();
        let before = handshake();
        wire.here.gateway.write(yaml);
        wire.here.gateway.reload().success();
        wait_for("a handshake after the jump", seconds(10), || handshake() > before);
        assert!(here.is_running(), "{offset}");
    }
}
