//! Several lanes: a flow stays in one of them and in order, a lane without a counterpart carries nothing and is named, and one
//! that falls silent gives its flows to the others until it answers again.
//!
//! In which lane a flow was is told by what each lane has counted. Answers to the other side's probes count as packets sent, so
//! where single packets matter neither side probes. Left out: how fast lanes are, which is the tunnel bench's to say, and lanes
//! under faults of the wire that hit all of them alike.

use std::fs;
use std::io::{self, Write};
use std::net::UdpSocket;

use serde_json::Value;
use tests::flow::Flow;
use tests::inside::inside;
use tests::netns::Namespace;
use tests::process::finish_with_input;
use tests::report::{NAMESPACES, Need, machine_has};
use tests::wire::{PORT, SOON, Shape, Side, Way, Wire};
use tests::wireguard_go::WireguardGo;
use tests::{replaced, seconds, wait_for, wait_for_some};

const MB: u64 = 1_000_000;
/// More than there are lanes: that all of them fall into one of two comes about once in 30,000 runs.
const FLOWS: u16 = 16;
const FIRST_PORT: u16 = 7000;
const BOTH_WAYS: [Way; 2] = [Way::HereToThere, Way::ThereToHere];

fn possible() -> bool {
    machine_has(NAMESPACES)
}

/// What a side's status says of each lane of its only tunnel.
#[track_caller]
fn lanes(side: &Side) -> Vec<Value> {
    side.gateway.status()["tunnels"][0]["lanes"].as_array().cloned().unwrap_or_default()
}

/// Of each lane, whether the host gives it packets.
#[track_caller]
fn attached(side: &Side) -> Vec<bool> {
    lanes(side).iter().map(|lane| lane["attached"].as_bool().expect("status says it of each lane")).collect()
}

/// Of each lane, how many inner packets it has sent.
#[track_caller]
fn sent(side: &Side) -> Vec<u64> {
    lanes(side).iter().map(|lane| lane["sent_packets"].as_u64().expect("status says it of each lane")).collect()
}

/// Whether one of the problems that a side's status names is that lane 1 carries nothing.
#[track_caller]
fn misses_lane_one(side: &Side) -> bool {
    let status = side.gateway.status();
    let mut problems = status["problems"].as_array().into_iter().flatten().filter_map(Value::as_str);
    problems.any(|problem| problem.contains("lane 1 ") && problem.contains("51821"))
}

/// Ten seconds for every lane of both sides to have its session and to be given packets.
#[track_caller]
fn wait_until_all_are_attached(wire: &Wire, count: usize) {
    for side in [&wire.here, &wire.there] {
        wait_for(&format!("{count} lanes of {} are attached", side.name), seconds(10), || attached(side) == vec![true; count]);
    }
}

/// Waits until a side has counted `packets` more than `before`; by how much each lane grew.
#[track_caller]
fn growth(side: &Side, before: &[u64], packets: u64) -> Vec<u64> {
    wait_for_some(&format!("{} counts {packets} packets more than {before:?}", side.name), SOON, || {
        let grown: Vec<u64> = sent(side).iter().zip(before).map(|(now, before)| now.saturating_sub(*before)).collect();
        (grown.iter().sum::<u64>() >= packets).then_some(grown)
    })
}

/// How often a flow has changed its lane, at least.
fn moves(grown: &[u64]) -> usize {
    grown.iter().filter(|packets| **packets > 0).count().saturating_sub(1)
}

/// As many flows as make it sure that every lane has some.
#[track_caller]
fn many_flows(wire: &Wire, way: Way, packets_per_second: u32) -> Vec<Flow> {
    (0..FLOWS).map(|number| wire.flow_to(way, FIRST_PORT + number, packets_per_second, 500)).collect()
}

/// Sends `count` packets from here to there, each once the one before has been answered.
#[track_caller]
fn ask_and_answer(wire: &Wire, port: u16, count: u64) {
    let bind = |side: &Side, port: u16| {
        let address = side.inside_address(port);
        let socket = inside(&side.namespace, || UdpSocket::bind(address)).unwrap_or_else(|error| panic!("{address}: {error}"));
        socket.set_read_timeout(Some(seconds(5))).expect("a time limit");
        socket
    };
    let (asks, answers) = (bind(&wire.here, 0), bind(&wire.there, port));
    let target = wire.there.inside_address(port);
    let mut buffer = [0u8; 64];
    for number in 0..count {
        asks.send_to(&number.to_be_bytes(), target).expect("a question sent");
        let (length, from) = answers.recv_from(&mut buffer).unwrap_or_else(|error| panic!("question {number} to {target}: {error}"));
        answers.send_to(&buffer[..length], from).expect("an answer sent");
        let (length, _) = asks.recv_from(&mut buffer).unwrap_or_else(|error| panic!("answer {number} of {target}: {error}"));
        assert_eq!(buffer[..length], number.to_be_bytes());
    }
}

/// Not by a macro: the test harness would keep to itself what a macro prints.
fn say(line: &str) {
    let _unheard = writeln!(io::stderr(), "{line}");
}

/// Drops every datagram to `port` before the gateway sees it.
#[track_caller]
fn close(namespace: &Namespace, port: u16) {
    let script = format!(
        "table inet closed {{
            chain input {{
                type filter hook input priority 0; policy accept;
                udp dport {port} drop
            }}
        }}"
    );
    finish_with_input(&mut namespace.command(&["nft", "-f", "-"]), script.as_bytes(), seconds(10)).success();
}

/// Undoes [`close`].
#[track_caller]
fn open(namespace: &Namespace) {
    namespace.exec(&["nft", "delete", "table", "inet", "closed"]).success();
}

#[test]
fn a_flow_stays_in_its_lane_and_in_order() {
    if !possible() {
        return;
    }
    const PACKETS: u64 = 100;
    // Without probes nothing but the flows is counted.
    let wire = Wire::up(Shape { lanes: 4, peer: "probe: off", ..Shape::PLAIN });
    wait_until_all_are_attached(&wire, 4);

    let mut one_way = Vec::new();
    for number in 0..FLOWS {
        let before = sent(&wire.here);
        let flow = wire.flow_to(Way::HereToThere, FIRST_PORT + number, 500, 500);
        flow.wait_until_sent(PACKETS, SOON);
        let report = flow.finish();
        assert_eq!((report.lost, report.duplicated, report.reordered), (0, 0, 0), "flow {number}: {report:?}");
        one_way.push(growth(&wire.here, &before, report.sent));
    }
    assert_eq!(one_way.iter().map(|grown| moves(grown)).sum::<usize>(), 0, "packets by lane, flow by flow: {one_way:?}");

    let mut answered = Vec::new();
    for number in 0..FLOWS {
        let before = [sent(&wire.here), sent(&wire.there)];
        ask_and_answer(&wire, FIRST_PORT + number, PACKETS);
        answered.push([growth(&wire.here, &before[0], PACKETS), growth(&wire.there, &before[1], PACKETS)]);
    }
    // The kernel gives a flow to the queue that last wrote one of its packets.
    for (number, [here, there]) in answered.iter().enumerate() {
        assert!(moves(here) <= 1 && moves(there) <= 1, "flow {number} with answers, packets by lane: {here:?} {there:?}");
    }
    let moved: usize = answered.iter().flatten().map(|grown| moves(grown)).sum();
    say(&format!("{FLOWS} flows with answers changed their lanes {moved} times, both sides together: {answered:?}"));

    let before = sent(&wire.here);
    let flows = many_flows(&wire, Way::HereToThere, 100);
    flows[0].wait_until_sent(300, SOON);
    let reports: Vec<_> = flows.into_iter().map(Flow::finish).collect();
    for (number, report) in reports.iter().enumerate() {
        assert_eq!((report.lost, report.duplicated, report.reordered), (0, 0, 0), "flow {number} of all at once: {report:?}");
    }
    let grown = growth(&wire.here, &before, reports.iter().map(|report| report.sent).sum());
    assert!(moves(&grown) >= 1, "the flows fall into more than one lane: {grown:?}");
    wire.assert_wires_are_sound();
}

#[test]
fn a_peer_with_one_lane_leaves_the_tunnel_with_the_first_which_is_said() {
    if !possible() {
        return;
    }
    let mut wire = Wire::build(Shape { lanes: 2, ..Shape::PLAIN });
    wire.there.gateway.write(&replaced(&wire.there.yaml, "lanes: 2\n", "lanes: 1\n"));
    wire.start();
    wait_for("the lane that carries nothing is named", seconds(10), || misses_lane_one(&wire.here));
    assert_eq!(wire.here.gateway.verdict(), "degraded");
    let told = wire.here.gateway.ask(&["status"]);
    assert_eq!(told.code, Some(1), "{told}");
    assert!(told.stdout.contains("1 of 2 lanes"), "{told}");
    assert_eq!(wire.there.gateway.verdict(), "up");

    for way in BOTH_WAYS {
        wire.transfer(way, 5 * MB).finish(seconds(60));
    }
    for flow in BOTH_WAYS.into_iter().flat_map(|way| many_flows(&wire, way, 50)).collect::<Vec<Flow>>() {
        flow.wait_until_sent(50, SOON);
        flow.wait_until_it_flows(SOON);
        let report = flow.finish();
        assert_eq!((report.lost, report.duplicated), (0, 0), "{report:?}");
    }
    assert_eq!(attached(&wire.here), [true, false]);
    let counted = wait_for_some("the first lane has counted", SOON, || Some(sent(&wire.here)).filter(|sent| sent[0] > 0));
    assert_eq!(counted[1], 0, "{counted:?}");
    assert!(misses_lane_one(&wire.here), "it is said as long as it is so");
}

#[test]
fn a_standard_peer_works_with_the_first_lane() {
    if !possible() || !machine_has(&[Need::Tool("wireguard-go"), Need::Tool("wg")]) {
        return;
    }
    let mut wire = Wire::build(Shape { lanes: 2, ..Shape::PLAIN });
    let peer = WireguardGo::start(&wire.there.namespace, &wire.there.keys.private, PORT, &["10.99.0.2/30", "fd99::2/126"]);
    let endpoint = ["endpoint", "192.0.2.1:51820"];
    peer.set_peer(&wire.here.keys.public, &wire.preshared_key, "10.99.0.1/32,fd99::1/128", &endpoint);
    wire.here.gateway.start();
    wire.here.gateway.wait_until_up(seconds(10));
    let flows = BOTH_WAYS.map(|way| many_flows(&wire, way, 50));
    for (from, to) in [(&wire.here, &wire.there), (&wire.there, &wire.here)] {
        for address in to.inside {
            assert_eq!(from.namespace.ping(address, 5, ""), 5, "{} to {address}", from.name);
        }
    }
    // As large as the MTU of 1420 allows, and answered as large.
    assert_eq!(wire.here.namespace.ping(wire.there.inside[0], 2, "-M do -s 1392"), 2);
    for flow in flows.into_iter().flatten() {
        flow.wait_until_it_flows(SOON);
        let report = flow.finish();
        assert_eq!((report.lost, report.duplicated), (0, 0), "{report:?}");
    }
    let (received, sent) = peer.transfer();
    assert!(received > 100_000 && sent > 100_000, "wg show counts {received} received, {sent} sent");
    assert_eq!(attached(&wire.here), [true, false]);
    assert!(misses_lane_one(&wire.here), "{:#}", wire.here.gateway.status());
}

#[test]
fn flows_leave_a_lane_that_falls_silent_and_come_back_to_it() {
    if !possible() {
        return;
    }
    /// More than the answers to probes can be meanwhile.
    const BUSY: u64 = 300;
    let wire = Wire::up(Shape { lanes: 2, ..Shape::PLAIN });
    wait_until_all_are_attached(&wire, 2);
    let sides = [&wire.here, &wire.there];
    let wait_until_lane_one_is_busy = || {
        for side in sides {
            let before = sent(side)[1];
            wait_for(&format!("lane 1 of {} carries flows", side.name), SOON, || sent(side)[1] >= before + BUSY);
        }
    };
    let flows: Vec<Flow> = BOTH_WAYS.iter().flat_map(|way| many_flows(&wire, *way, 50)).collect();
    wait_until_lane_one_is_busy();

    for side in sides {
        close(&side.namespace, PORT + 1);
    }
    for side in sides {
        wait_for(&format!("{} lets go of lane 1", side.name), seconds(10), || attached(side) == [true, false]);
        assert!(misses_lane_one(side), "{:#}", side.gateway.status());
        assert_eq!(side.gateway.verdict(), "degraded");
    }
    for flow in &flows {
        flow.wait_until_it_flows(seconds(10));
    }

    for side in sides {
        open(&side.namespace);
    }
    for side in sides {
        wait_for(&format!("{} takes lane 1 again", side.name), seconds(20), || attached(side) == [true, true]);
    }
    wait_until_lane_one_is_busy();
    for side in sides {
        wait_for(&format!("{} has no problem any more", side.name), SOON, || side.gateway.verdict() == "up");
    }
    let reports: Vec<_> = flows.into_iter().map(Flow::finish).collect();
    for report in &reports {
        assert!(report.duplicated == 0 && report.longest_gap < seconds(10), "{report:?}");
    }
    let whole = reports.iter().filter(|report| report.lost == 0).count();
    assert!(whole > 0 && whole < reports.len(), "the flows of lane 1 have a gap and those of lane 0 have none: {reports:#?}");
    wire.assert_wires_are_sound();
}

#[test]
fn a_stop_with_lanes_leaves_no_device_and_a_start_finds_none_in_its_way() {
    if !possible() {
        return;
    }
    // Names alone: each line also tells the namespace of the link's other end.
    let devices = |wire: &Wire| -> Vec<String> {
        let listed = wire.here.namespace.ip("-o link show");
        listed.lines().filter_map(|line| Some(line.split_whitespace().nth(1)?.trim_end_matches(':').to_owned())).collect()
    };
    let mut wire = Wire::up(Shape { lanes: 4, ..Shape::PLAIN });
    for _ in 0..2 {
        wait_until_all_are_attached(&wire, 4);
        assert!(devices(&wire).contains(&"sky".to_owned()), "{:?}", devices(&wire));
        assert_eq!(wire.here.gateway.stop().code(), Some(0));
        let left = devices(&wire);
        assert!(!left.iter().any(|device| device.starts_with("sky")), "{left:?}");
        wire.here.gateway.start();
    }
}

#[test]
fn cpus_bind_the_lanes_and_nothing_else() {
    if !possible() {
        return;
    }
    let mut wire = Wire::build(Shape { lanes: 2, ..Shape::PLAIN });
    wire.here.gateway.write(&replaced(&wire.here.yaml, "lanes: 2\n", "lanes: 2\n    cpus: [0]\n"));
    wire.start();
    wait_until_all_are_attached(&wire, 2);
    let allowed = |file: &str| -> Option<String> {
        let status = fs::read_to_string(file).ok()?;
        status.lines().find_map(|line| Some(line.strip_prefix("Cpus_allowed_list:")?.trim().to_owned()))
    };
    let threads = format!("/proc/{}/task", wire.here.pid());
    let threads: Vec<(String, String)> = fs::read_dir(threads)
        .expect("the gateway runs")
        // One that has ended meanwhile is none.
        .filter_map(|entry| {
            let thread = entry.ok()?.path();
            let name = fs::read_to_string(thread.join("comm")).ok()?;
            Some((name.trim().to_owned(), allowed(thread.join("status").to_str()?)?))
        })
        .collect();
    let (bound, others): (Vec<_>, Vec<_>) = threads.into_iter().partition(|(name, _)| name.starts_with("lane "));
    assert_eq!(bound.len(), 2, "{bound:?} {others:?}");
    for number in 0..2 {
        let prefix = format!("lane {number} ");
        assert!(bound.iter().any(|(name, cpus)| name.starts_with(&prefix) && cpus == "0"), "{bound:?}");
    }
    let own = allowed("/proc/self/status").expect("the kernel tells it");
    assert!(!others.is_empty() && others.iter().all(|(_, cpus)| *cpus == own), "{own}: {others:?}");
}
