//! Two gateways in TUN mode on wires that can be harmed.
//!
//! ```text
//!  here eth0 .1 ─── west  router 0 (impair)  east ─── eth0 .2 there      192.0.2.0/24      2001:db8:1::/64
//!       eth1 .1 ─── west  router 1 (impair)  east ─── eth1 .2            198.51.100.0/24   2001:db8:2::/64
//!            ╚═══════════ tunnel sky: 10.99.0.1, fd99::1 ══ 10.99.0.2, fd99::2 ═══════════╝
//! ```
//! Routers have no addresses and forward nothing: a program in user space carries the frames, see
//! [`impairment`](crate::impairment). Super-frames are off on all ends, so that what it sees are single datagrams.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use tunnel::DropReason;

use crate::flow::{Course, Flow};
use crate::impairment::{Direction, Impairment};
use crate::keys::{Keys, preshared};
use crate::netns::{End, Namespace, join};
use crate::process::finish;
use crate::seconds;
use crate::skyway::Gateway;
use crate::transfer::{Order, Transfer};

/// Both sides and what is between them. Its parts go in this order: the wires' programs, the gateways, the networks.
pub struct Wire {
    pub links: Vec<Link>,
    pub here: Side,
    pub there: Side,
    pub preshared_key: String,
}

/// One of the ways between the sides.
pub struct Link {
    pub impairment: Impairment,
    _router: Namespace,
}

/// A gateway with its tunnel `sky` and the namespace that it runs in.
pub struct Side {
    pub gateway: Gateway,
    pub namespace: Namespace,
    pub yaml: String,
    pub keys: Keys,
    /// How the other side calls it; so its peer is called as the other side is.
    pub name: &'static str,
    /// Inside the tunnel, IPv4 and IPv6.
    pub inside: [&'static str; 2],
}

/// What differs between the tests.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// 1 or 2.
    pub links: usize,
    pub lanes: u32,
    /// False: `there` has no endpoints and waits until it is spoken to.
    pub there_knows_here: bool,
    /// More lines of the peer's mapping, the same at both sides.
    pub peer: &'static str,
    pub seed: u64,
}

/// Which way packets go inside the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    HereToThere,
    ThereToHere,
}

/// What a running program takes of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    pub resident_kib: u64,
    pub descriptors: usize,
}

pub const PORT: u16 = 51820;
/// Of each link: `here` and `there`, outside.
pub const OUTSIDE: [[&str; 2]; 2] = [["192.0.2.1", "192.0.2.2"], ["198.51.100.1", "198.51.100.2"]];
pub const OUTSIDE_IPV6: [[&str; 2]; 2] = [["2001:db8:1::1", "2001:db8:1::2"], ["2001:db8:2::1", "2001:db8:2::2"]];
const INSIDE: [[&str; 2]; 2] = [["10.99.0.1", "fd99::1"], ["10.99.0.2", "fd99::2"]];
const INTERFACES: [&str; 2] = ["eth0", "eth1"];
/// Of UDP inside the tunnel, such that a packet is no longer than the smallest path of the suites takes.
pub const PAYLOAD_BYTES: usize = 1000;
/// All that a datagram which is not what its sender made, or is not new, may be dropped for.
const REFUSED: &[DropReason] = &[
    DropReason::Malformed,
    DropReason::BadMac1,
    DropReason::TooManyHandshakes,
    DropReason::UnderLoad,
    DropReason::UnknownKey,
    DropReason::HandshakeReplay,
    DropReason::HandshakeRefused,
    DropReason::UnknownIndex,
    DropReason::NoSession,
    DropReason::Replay,
    DropReason::BadTag,
];
const FLOW_PORT: u16 = 7000;
const TRANSFER_PORT: u16 = 5001;

const YAML: &str = r#"version: 1
gateway: { name: OWN_NAME, cloud: other, admin: FOLDER/admin.sock }
tunnels:
  sky:
    mode: tun
    private_key: { file: key }
    listen: 51820
    addresses: [OWN_IPV4/30, "OWN_IPV6/126"]
    lanes: LANES
    mtu: 1420
    peers:
      PEER_NAME:
        public_key: "PEER_KEY"
        preshared_key: { file: psk }
        endpoints: [ENDPOINTS]
        allowed_ips: [PEER_IPV4/32, "PEER_IPV6/128"]
        keepalive: 25s
        cloud: other
routes:
  inbound: [OWN_IPV4/32, "OWN_IPV6/128"]
"#;

impl Shape {
    pub const PLAIN: Self = Self { links: 1, lanes: 1, there_knows_here: true, peer: "", seed: 1 };
}

impl Wire {
    /// Networks and files. The wires carry what they are given; no gateway runs yet.
    #[track_caller]
    pub fn build(shape: Shape) -> Self {
        let (here, there) = (Namespace::create(), Namespace::create());
        let links = (0..shape.links).map(|number| Link::between(&here, &there, number, shape.seed)).collect();
        let (here_keys, there_keys, preshared_key) = (Keys::generate(), Keys::generate(), preshared());
        let yaml = |own: usize, peer: usize, names: [&str; 2], endpoints: &str, peer_key: &str| {
            let [own_name, peer_name] = names;
            let lines: String = shape.peer.lines().map(|line| format!("        {line}\n")).collect();
            YAML.replace("OWN_NAME", own_name)
                .replace("PEER_NAME", peer_name)
                .replace("OWN_IPV4", INSIDE[own][0])
                .replace("OWN_IPV6", INSIDE[own][1])
                .replace("PEER_IPV4", INSIDE[peer][0])
                .replace("PEER_IPV6", INSIDE[peer][1])
                .replace("LANES", &shape.lanes.to_string())
                .replace("        cloud: other\n", &format!("        cloud: other\n{lines}"))
                .replace("ENDPOINTS", endpoints)
                // Last: keys are base64 and may spell any word.
                .replace("PEER_KEY", peer_key)
        };
        let endpoints = |side: usize| {
            let each = OUTSIDE.iter().take(shape.links).map(|addresses| format!("\"{}:{PORT}\"", addresses[side]));
            each.collect::<Vec<String>>().join(", ")
        };
        let of_here = if shape.there_knows_here { endpoints(0) } else { String::new() };
        let here_yaml = yaml(0, 1, ["here", "there"], &endpoints(1), &there_keys.public);
        let there_yaml = yaml(1, 0, ["there", "here"], &of_here, &here_keys.public);
        let here = Side::prepare("here", INSIDE[0], here, here_yaml, here_keys, &preshared_key);
        let there = Side::prepare("there", INSIDE[1], there, there_yaml, there_keys, &preshared_key);
        Self { links, here, there, preshared_key }
    }

    /// [`Self::build`], with both gateways running and a session between them.
    #[track_caller]
    pub fn up(shape: Shape) -> Self {
        let mut wire = Self::build(shape);
        wire.start();
        wire
    }

    /// Starts both and waits for their session.
    #[track_caller]
    pub fn start(&mut self) {
        self.there.gateway.start();
        self.here.gateway.start();
        self.here.gateway.wait_until_up(seconds(15));
        self.there.gateway.wait_until_up(seconds(15));
    }

    /// The impairment of the first link, which most tests have to do with.
    pub fn impairment(&self) -> &Impairment {
        &self.links[0].impairment
    }

    /// Numbered packets through the tunnel, [`PAYLOAD_BYTES`] each.
    #[track_caller]
    pub fn flow(&self, way: Way, packets_per_second: u32) -> Flow {
        self.flow_to(way, FLOW_PORT, packets_per_second, PAYLOAD_BYTES)
    }

    /// The same to a port that no other flow of that way goes to, and with packets of another size.
    #[track_caller]
    pub fn flow_to(&self, way: Way, port: u16, packets_per_second: u32, payload_bytes: usize) -> Flow {
        let (from, to) = self.ends(way);
        let target = to.inside_address(port);
        Flow::start(Course { from: &from.namespace, to: &to.namespace, target, packets_per_second, payload_bytes })
    }

    /// So many bytes by TCP through the tunnel, as fast as they go.
    #[track_caller]
    pub fn transfer(&self, way: Way, bytes: u64) -> Transfer {
        self.paced_transfer(way, bytes, None)
    }

    #[track_caller]
    pub fn paced_transfer(&self, way: Way, bytes: u64, bytes_per_second: Option<u64>) -> Transfer {
        let (from, to) = self.ends(way);
        let target = to.inside_address(TRANSFER_PORT);
        Transfer::start(Order { from: &from.namespace, to: &to.namespace, target, bytes, bytes_per_second })
    }

    /// Who sends and who receives.
    pub const fn ends(&self, way: Way) -> (&Side, &Side) {
        match way {
            Way::HereToThere => (&self.here, &self.there),
            Way::ThereToHere => (&self.there, &self.here),
        }
    }

    /// The wires did nothing that nobody asked for.
    #[track_caller]
    pub fn assert_wires_are_sound(&self) {
        for link in &self.links {
            for direction in Direction::BOTH {
                let counters = link.impairment.counters(direction);
                assert_eq!((counters.unsent, counters.super_frames), (0, 0), "{direction}: {counters:?}");
            }
        }
    }
}

impl Link {
    #[track_caller]
    fn between(here: &Namespace, there: &Namespace, number: usize, seed: u64) -> Self {
        let router = Namespace::create();
        // It has nothing to say itself.
        router.sysctl(&["net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1"]);
        let interface = INTERFACES[number];
        for (side, (end, port)) in [(here, "west"), (there, "east")].into_iter().enumerate() {
            let addresses = [format!("{}/24", OUTSIDE[number][side]), format!("{}/64", OUTSIDE_IPV6[number][side])];
            let addresses = addresses.each_ref().map(String::as_str);
            join(End { namespace: end, interface, addresses: &addresses }, End { namespace: &router, interface: port, addresses: &[] });
            end.ip(&format!("link set dev {interface} gso_max_segs 1"));
            router.ip(&format!("link set dev {port} gso_max_segs 1"));
        }
        let impairment = Impairment::start(&router, seed + number as u64);
        Self { impairment, _router: router }
    }
}

impl Side {
    fn prepare(name: &'static str, inside: [&'static str; 2], namespace: Namespace, yaml: String, keys: Keys, preshared_key: &str) -> Self {
        let gateway = Gateway::new(name).inside(&namespace);
        gateway.write_secret("key", &keys.private);
        gateway.write_secret("psk", preshared_key);
        gateway.write(&yaml);
        Self { gateway, namespace, yaml, keys, name, inside }
    }

    /// Inside the tunnel, IPv4.
    pub fn inside_address(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.inside[0].parse().expect("an address"), port)
    }

    /// What its status says of its peer.
    #[track_caller]
    pub fn peer(&self) -> serde_json::Value {
        self.gateway.peer(if self.name == "here" { "there" } else { "here" })
    }

    /// How many datagrams it has refused, other than for what was inside.
    #[track_caller]
    pub fn refused(&self) -> u64 {
        self.drops(REFUSED)
    }

    /// How many packets and datagrams it has dropped for any of `reasons`.
    #[track_caller]
    pub fn drops(&self, reasons: &[DropReason]) -> u64 {
        let status = self.gateway.status();
        let drops = &status["tunnels"][0]["drops"];
        // Reasons at zero are left out.
        reasons.iter().map(|reason| drops[reason.label()].as_u64().unwrap_or(0)).sum()
    }

    /// The running gateway: the only program in its namespace.
    #[track_caller]
    pub fn pid(&self) -> String {
        let listed = finish(Command::new("ip").args(["netns", "pids", self.namespace.name()]), seconds(10)).success();
        let mut pids = listed.split_whitespace();
        match (pids.next(), pids.next()) {
            (Some(pid), None) => pid.to_owned(),
            _ => panic!("one program in {} was expected: {listed:?}", self.name),
        }
    }

    /// Sends the running gateway a signal by its name, one that [`Signal`](crate::process::Signal) does not have.
    #[track_caller]
    pub fn signal(&self, name: &str) {
        finish(Command::new("kill").args(["-s", name, &self.pid()]), seconds(10)).success();
    }

    #[track_caller]
    pub fn footprint(&self) -> Footprint {
        let process = format!("/proc/{}", self.pid());
        let status = fs::read_to_string(format!("{process}/status")).expect("the gateway runs");
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok());
        let descriptors = fs::read_dir(format!("{process}/fd")).expect("the gateway runs").count();
        Footprint { resident_kib: resident.expect("the kernel tells the resident memory"), descriptors }
    }
}

/// For everything to be carried again that is not timed by itself; a slow machine takes longer.
pub const SOON: Duration = seconds(30);
