//! Prometheus text. Every metric of the program is in this file, with its help.
//!
//! Labels are names from the YAML and words from the code, never what a sensor or the network sent.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use tunnel::PeerState;

use crate::relay::PathSnapshot;
use crate::relay::histogram::Histogram;
use crate::supervisor::Supervisor;

/// Escapes itself as a label's value.
struct Label<'a>(&'a str);

struct Text(String);

/// One figure of a peer, if it has one.
type PeerValue = fn(&tunnel::PeerSnapshot) -> Option<f64>;

pub(super) fn text(supervisor: &Supervisor) -> String {
    let mut text = Text(String::new());
    text.metric("skyway_build_info", "gauge", "Version of the running program.");
    text.sample("skyway_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    text.metric("skyway_start_time_seconds", "gauge", "When the gateway started, Unix time.");
    text.sample(
        "skyway_start_time_seconds",
        &[],
        supervisor.started_at.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64()),
    );
    text.metric("skyway_config_generation", "gauge", "Configurations applied since the start, the first included.");
    text.sample("skyway_config_generation", &[], supervisor.generation as f64);
    tunnels(&mut text, supervisor);
    relay(&mut text, supervisor);
    text.0
}

fn tunnels(text: &mut Text, supervisor: &Supervisor) {
    let snapshots: Vec<_> = supervisor.tunnels().iter().map(|tunnel| (tunnel.name.as_str(), tunnel.snapshots.borrow().clone())).collect();
    let per_peer: [(&str, &str, &str, PeerValue); 12] = [
        ("skyway_peer_up", "gauge", "1 if the peer has a session and answers.", |peer| {
            Some(f64::from(u8::from(peer.state == PeerState::Up)))
        }),
        ("skyway_peer_last_handshake_seconds", "gauge", "Unix time of the last handshake.", |peer| {
            peer.last_handshake.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).map(|since| since.as_secs_f64())
        }),
        ("skyway_peer_receive_bytes_total", "counter", "Authenticated datagrams, bytes of UDP payload.", |peer| {
            Some(peer.received_bytes as f64)
        }),
        ("skyway_peer_transmit_bytes_total", "counter", "Datagrams sent, bytes of UDP payload.", |peer| Some(peer.sent_bytes as f64)),
        ("skyway_peer_receive_packets_total", "counter", "Inner packets received.", |peer| Some(peer.received_packets as f64)),
        ("skyway_peer_transmit_packets_total", "counter", "Inner packets sent.", |peer| Some(peer.sent_packets as f64)),
        ("skyway_peer_probe_rtt_seconds", "gauge", "Round trip of the probes through the tunnel, smoothed.", |peer| {
            peer.probe.and_then(|probe| probe.rtt).map(|rtt| rtt.as_secs_f64())
        }),
        ("skyway_peer_probes_total", "counter", "Probes sent by the endpoint in use.", |peer| peer.probe.map(|probe| probe.sent as f64)),
        ("skyway_peer_probes_answered_total", "counter", "Probes that were answered.", |peer| {
            peer.probe.map(|probe| probe.answered as f64)
        }),
        ("skyway_peer_endpoint_switches_total", "counter", "Endpoints left by the probes' verdict, failovers and ways back.", |peer| {
            peer.probe.map(|probe| probe.switches as f64)
        }),
        ("skyway_peer_active_endpoint", "gauge", "Which of the configured endpoints is in use, from 0; -1: another address.", |peer| {
            Some(peer.active_endpoint.map_or(-1.0, |active| active as f64))
        }),
        ("skyway_peer_path_mtu_bytes", "gauge", "The largest inner packet seen to get through both ways.", |peer| {
            peer.path_mtu.map(f64::from)
        }),
    ];
    for (name, kind, help, value) in per_peer {
        text.metric(name, kind, help);
        for (tunnel, snapshot) in &snapshots {
            for peer in &snapshot.peers {
                if let Some(value) = value(peer) {
                    text.sample(name, &[("tunnel", tunnel), ("peer", &peer.name)], value);
                }
            }
        }
    }
    text.metric("skyway_tunnel_dropped_packets_total", "counter", "Packets and datagrams dropped, by reason.");
    for (tunnel, snapshot) in &snapshots {
        for (reason, count) in snapshot.drops.iter() {
            text.sample("skyway_tunnel_dropped_packets_total", &[("tunnel", tunnel), ("reason", reason.label())], count as f64);
        }
    }
    text.metric("skyway_lane_attached", "gauge", "1 if the lane carries packets.");
    for (tunnel, snapshot) in &snapshots {
        for lane in &snapshot.lanes {
            text.sample(
                "skyway_lane_attached",
                &[("tunnel", tunnel), ("lane", &lane.number.to_string())],
                f64::from(u8::from(lane.attached)),
            );
        }
    }
    text.metric("skyway_lane_refused_super_packets_total", "counter", "Super-packets that the kernel would not take after all.");
    for (tunnel, snapshot) in &snapshots {
        for lane in &snapshot.lanes {
            let labels = [("tunnel", *tunnel), ("lane", &lane.number.to_string())];
            text.sample("skyway_lane_refused_super_packets_total", &labels, lane.refused_super_packets as f64);
        }
    }
}

fn relay(text: &mut Text, supervisor: &Supervisor) {
    let Some(running) = supervisor.relay() else { return };
    let relay = running.snapshot();
    text.metric("skyway_relay_sessions", "gauge", "Sessions that stand.");
    text.sample("skyway_relay_sessions", &[], relay.open as f64);
    text.metric("skyway_relay_relayed_total", "counter", "Sessions that reached their upstream.");
    text.sample("skyway_relay_relayed_total", &[], relay.relayed as f64);
    text.metric("skyway_relay_ended_total", "counter", "Sessions that ended, by reason.");
    for (reason, count) in &relay.ended {
        text.sample("skyway_relay_ended_total", &[("reason", reason)], *count as f64);
    }
    text.metric("skyway_sensor_bytes_total", "counter", "Bytes relayed in ended sessions, by sensor and direction.");
    for (name, sensor) in &relay.sensors {
        text.sample("skyway_sensor_bytes_total", &[("sensor", name), ("direction", "up")], sensor.bytes_up as f64);
        text.sample("skyway_sensor_bytes_total", &[("sensor", name), ("direction", "down")], sensor.bytes_down as f64);
    }
    text.metric("skyway_sensor_sessions", "gauge", "Sessions that stand, by sensor.");
    for (name, sensor) in &relay.sensors {
        text.sample("skyway_sensor_sessions", &[("sensor", name)], sensor.open as f64);
    }
    text.metric("skyway_sensor_relayed_total", "counter", "Sessions that reached their upstream, by sensor.");
    for (name, sensor) in &relay.sensors {
        text.sample("skyway_sensor_relayed_total", &[("sensor", name)], sensor.relayed as f64);
    }
    text.metric("skyway_sensor_refused_total", "counter", "Sessions that did not, by sensor.");
    for (name, sensor) in &relay.sensors {
        text.sample("skyway_sensor_refused_total", &[("sensor", name)], sensor.refused as f64);
    }
    paths(text, &running.paths(), &relay.paths);
    text.metric("skyway_relay_questions_total", "counter", "Questions to dns and ntp listeners, by what became of them.");
    for ((listener, what), count) in &relay.questions {
        text.sample("skyway_relay_questions_total", &[("listener", listener), ("result", what)], *count as f64);
    }
    text.histogram("skyway_relay_hello_seconds", "From accept to a whole CONNECT head or ClientHello.", &relay.hello);
    text.histogram("skyway_relay_connect_seconds", "From that to an upstream stream.", &relay.connect);
    text.histogram("skyway_relay_first_byte_seconds", "From that to the upstream's first byte.", &relay.first_byte);
}

fn paths(text: &mut Text, paths: &[PathSnapshot], sessions: &BTreeMap<Arc<str>, u64>) {
    text.metric("skyway_path_up", "gauge", "1 if the path's probes reach Defender, 0 if not; absent if it is not probed.");
    for path in paths.iter().filter(|path| path.is_probed) {
        text.sample("skyway_path_up", &[("path", &path.name)], f64::from(u8::from(path.health.state == "up")));
    }
    text.metric("skyway_path_intercepted", "gauge", "1 if somebody on the path answers with certificates of their own.");
    for path in paths.iter().filter(|path| path.is_probed) {
        text.sample("skyway_path_intercepted", &[("path", &path.name)], f64::from(u8::from(path.health.intercepted_by.is_some())));
    }
    text.metric("skyway_path_probe_seconds", "gauge", "How long the last probe that succeeded took.");
    for path in paths {
        if let Some(took) = path.health.took {
            text.sample("skyway_path_probe_seconds", &[("path", &path.name)], took.as_secs_f64());
        }
    }
    text.metric("skyway_path_sessions_total", "counter", "Sessions that took the path.");
    for (path, count) in sessions {
        text.sample("skyway_path_sessions_total", &[("path", path)], *count as f64);
    }
}

impl Text {
    fn metric(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail.
        let _written = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.metric(name, "histogram", help);
        let bucket = format!("{name}_bucket");
        for (bound, count) in histogram.cumulative() {
            self.sample(&bucket, &[("le", &bound.to_string())], count as f64);
        }
        self.sample(&bucket, &[("le", "+Inf")], histogram.count() as f64);
        self.sample(&format!("{name}_sum"), &[], histogram.sum_seconds());
        self.sample(&format!("{name}_count"), &[], histogram.count() as f64);
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}=\"{}\"", Label(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _written = writeln!(self.0, "{name}{labels} {value}");
    }
}

impl std::fmt::Display for Label<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for c in self.0.chars() {
            match c {
                '\\' => f.write_str("\\\\")?,
                '"' => f.write_str("\\\"")?,
                '\n' => f.write_str("\\n")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}
