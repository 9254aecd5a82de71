//! The harness: what a suite needs to run the real `skyway` between networks of its own.
//!
//! ```text
//!  report       what a test needs of the machine; a skip is said aloud
//!  process      a child with its output, which never outlives its test
//!  netns        network namespaces and the links between them
//!  skyway       one gateway: its YAML, its secrets, its running program (and access: its access lines)
//!    ├ topology   sensor ─ foreign gateway ─ router ─ VNET gateway ─ server, and the smaller pair
//!    ├ site       two gateways on that topology, in TUN mode
//!    ├ loopback   two gateways on 127.0.0.0/8, in userspace mode, for whoever is not root
//!    └ direct     one without a tunnel, for what only the relay has to do with
//!  wire         two gateways on wires that can be harmed
//!    ├ impairment the wire: loses, doubles, reorders, delays, corrupts, records (bin/impair, frame)
//!    ├ flow       numbered packets through it; transfer: bytes by TCP with their SHA-256
//!    └ reloads    many reloads under traffic
//!  inside       a piece of a test inside a namespace
//!  tls, nginx   servers as Defender's; sensor, hello: clients, well and ill behaved; sink: a server of raw bytes
//!  wireguard_go a peer written by others
//!  relays       one or several relays behind each other on loopback; raw_parent, squid: proxies by others;
//!                 client_authority: whose certificates sensors show
//!  bench        the tunnel bench: skyway beside other WireGuard programs
//!  bench_relay  the relay bench: skyway beside other relays, and its load generator
//!  counter      packets that left outside the tunnel
//! ```
//! A harness panics where a library would return: whatever goes wrong here fails the test, and says what and where.
//! Nothing sleeps to let something happen: [`wait_for`] looks until it has, and gives up after a while.

pub mod access;
pub mod bench;
pub mod bench_relay;
pub mod client_authority;
pub mod counter;
pub mod direct;
pub mod flow;
pub mod frame;
pub mod hello;
pub mod impairment;
pub mod inside;
pub mod keys;
pub mod loopback;
pub mod netns;
pub mod nginx;
pub mod process;
pub mod random;
pub mod raw_parent;
pub mod relays;
pub mod reloads;
pub mod report;
pub mod sensor;
pub mod sink;
pub mod site;
pub mod skyway;
pub mod squid;
pub mod tls;
pub mod topology;
pub mod transfer;
pub mod wire;
pub mod wireguard_go;

use std::thread;
use std::time::{Duration, Instant};

/// The names that the suites' sensors want, as in design.md §6.
pub const HUB: &str = "contoso-hub.azure-devices.net";
pub const BLOB: &str = "contososa.blob.core.windows.net";

/// How often a condition is looked at. Starting a program takes some milliseconds, so more often gains nothing.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Looks at `condition` until it holds. Panics with `what` once `within` has passed.
#[track_caller]
pub fn wait_for(what: &str, within: Duration, mut condition: impl FnMut() -> bool) {
    wait_for_some(what, within, || condition().then_some(()));
}

/// As [`wait_for`], for a condition that brings something.
#[track_caller]
pub fn wait_for_some<T>(what: &str, within: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + within;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {within:?} in vain: {what}");
        thread::sleep(LOOK_EVERY);
    }
}

/// So many seconds; tests are full of them.
pub const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// `text` with `from` replaced; `from` must be there, so that a changed fixture cannot make a test say nothing.
#[track_caller]
pub fn replaced(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "{from:?} is not in:\n{text}");
    text.replace(from, to)
}
