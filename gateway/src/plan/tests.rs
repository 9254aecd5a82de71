use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use tunnel::{Cloud, Mode, PrivateKey};

use super::*;
use crate::config::{GatewaySettings, PathSettings, StaticRoute, Via};
use crate::relay::catalogue::{Catalogue, Entry, Role};
use crate::relay::{HostName, Limits, OnPathDown, Sensor, Sensors};

fn key(seed: u8) -> PublicKey {
    PublicKey::from_bytes([seed; 32])
}

fn peer() -> impl Strategy<Value = PeerSettings> {
    // A key change is announced, has happened, or neither.
    let keys = prop_oneof![Just((0, None)), Just((0, Some(100))), Just((100, None))];
    (0u8..6, keys, 0u8..3, any::<bool>(), prop::option::of(1u64..60)).prop_map(|(seed, keys, net, roaming, keepalive)| PeerSettings {
        name: format!("peer-{seed}"),
        public_key: key(keys.0 + seed),
        next_public_key: keys.1.map(|next| key(next + seed)),
        preshared_key: None,
        endpoints: Vec::new(),
        allowed_ips: [format!("10.{seed}.{net}.0/24").parse().expect("a prefix")].into(),
        keepalive: keepalive.map(Duration::from_secs),
        roaming,
        cloud: Cloud::Azure,
        probe: None,
    })
}

fn peers() -> impl Strategy<Value = Vec<PeerSettings>> {
    prop::collection::vec(peer(), 0..6).prop_map(|mut peers| {
        let mut seen = Vec::new();
        peers.retain(|peer| {
            !seen.contains(&peer.name) && {
                seen.push(peer.name.clone());
                true
            }
        });
        peers
    })
}

fn routes() -> impl Strategy<Value = RouteSettings> {
    (prop::collection::vec((0u8..4, 1u32..4), 0..5), any::<bool>()).prop_map(|(fixed, inbound)| RouteSettings {
        fixed: fixed
            .into_iter()
            .map(|(net, metric)| StaticRoute {
                prefix: format!("10.{net}.0.0/16").parse().expect("a prefix"),
                tunnel: "azure".into(),
                metric,
            })
            .collect(),
        inbound: if inbound { vec!["10.1.0.0/16".parse().expect("a prefix")] } else { Vec::new() },
    })
}

fn relay() -> impl Strategy<Value = RelaySettings> {
    (0u8..4, 0u8..3, any::<bool>()).prop_map(|(hosts, sensors, direct)| RelaySettings {
        catalogue: Catalogue::new(
            (0..hosts).map(|n| (HostName::parse(&format!("host-{n}.example.net")).expect("a name"), Entry::new(Role::Other))).collect(),
            BTreeMap::new(),
        ),
        sensors: Sensors::new(
            (0..sensors)
                .map(|n| Sensor { from: vec![format!("10.1.{n}.0/24").parse().expect("a prefix")], ..Sensor::new(&format!("line-{n}")) })
                .collect(),
        ),
        paths: if direct { vec![path()] } else { vec![] },
        listeners: Vec::new(),
        limits: Limits::default(),
        name_servers: Vec::new(),
    })
}

fn path() -> PathSettings {
    PathSettings {
        name: "out".into(),
        via: Via::Direct,
        parents: Vec::new(),
        name_servers: Vec::new(),
        probe: None,
        on_down: OnPathDown::Keep,
    }
}

fn settings(key: PrivateKey) -> impl Strategy<Value = Settings> {
    (peers(), routes(), relay(), 1280u32..1500).prop_map(move |(peers, routes, relay, mtu)| Settings {
        gateway: GatewaySettings {
            name: "a".into(),
            site: None,
            cloud: Cloud::Aws,
            admin: "/run/a.sock".into(),
            metrics: None,
            health: None,
            level: None,
        },
        underlays: BTreeMap::new(),
        tunnels: vec![TunnelSettings {
            name: "azure".into(),
            mode: Mode::Tun,
            private_key: key.clone(),
            listen: SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 51820),
            addresses: vec!["10.99.0.1/30".parse().expect("an address")],
            mtu,
            lanes: 1,
            cpus: Vec::new(),
            uapi: false,
            peers,
        }],
        routes,
        relay: Some(relay),
    })
}

fn pair() -> impl Strategy<Value = (Settings, Settings)> {
    let (key, other) = (PrivateKey::generate(), PrivateKey::generate());
    any::<bool>().prop_flat_map(move |changed| (settings(key.clone()), settings(if changed { other.clone() } else { key.clone() })))
}

proptest! {
    #[test]
    fn the_plan_leads_from_one_to_the_other((running, desired) in pair()) {
        let plan = Plan::between(&running, &desired).expect("a plan");
        let mut after = running.clone();
        plan.apply_to(&mut after);
        prop_assert_eq!(&after, &desired);
        prop_assert!(Plan::between(&after, &desired).expect("a plan").is_empty());
        prop_assert_eq!(running == desired, plan.is_empty());
    }

    #[test]
    fn removals_come_last((running, desired) in pair()) {
        let plan = Plan::between(&running, &desired).expect("a plan");
        let is_removal = |change: &Change| matches!(change, Change::RemovePeer { .. } | Change::OrderPeers { .. });
        let first = plan.changes.iter().position(is_removal).unwrap_or(plan.changes.len());
        prop_assert!(plan.changes[first..].iter().all(is_removal));
    }
}

#[test]
fn a_peer_whose_next_key_has_become_its_key_is_edited_and_not_replaced() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut running = settings(PrivateKey::generate()).new_tree(&mut runner).expect("settings").current();
    let mut peer = peer().new_tree(&mut runner).expect("a peer").current();
    (peer.public_key, peer.next_public_key) = (key(1), Some(key(2)));
    running.tunnels[0].peers = vec![peer.clone()];
    let mut desired = running.clone();
    (peer.public_key, peer.next_public_key) = (key(2), None);
    desired.tunnels[0].peers = vec![peer.clone()];
    let plan = Plan::between(&running, &desired).expect("a plan");
    assert_eq!(plan.changes, [Change::EditPeer { tunnel: "azure".into(), key: key(1), peer }]);
}

#[test]
fn what_needs_a_restart_is_refused_by_name() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let running = settings(PrivateKey::generate()).new_tree(&mut runner).expect("settings").current();
    let refused = |edit: fn(&mut Settings)| {
        let mut desired = running.clone();
        edit(&mut desired);
        Plan::between(&running, &desired).expect_err("refused").to_string()
    };
    assert!(refused(|s| s.gateway.name = "b".into()).contains("`gateway`"));
    assert!(refused(|s| s.tunnels[0].listen = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 1)).contains("the tunnel azure itself"));
    assert!(refused(|s| s.tunnels[0].lanes = 2).contains("lanes"));
    assert!(refused(|s| s.tunnels[0].uapi = true).contains("uapi"));
    assert!(refused(|s| s.tunnels.clear()).contains("the tunnel azure is gone"));
    assert!(refused(|s| s.relay = None).contains("`relay`"));
}
