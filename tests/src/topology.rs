//! Networks to put gateways into, IPv4 and IPv6 on every link.
//!
//! ```text
//!  sensor ────────── foreign ─────────── router ─────────── vnet ────────── server
//!        10.1.2.0/24  gateway 192.0.2.0/30     198.51.100.0/30 gateway 10.20.0.0/24
//!        fd10:1:2::/64        2001:db8:1::/64  2001:db8:2::/64         fd20::/64
//!      .10 eth0   lan .1   ens6 .1   west .2 east .2   wan .1   lan .4    eth0 .10
//! ```
//! The router has no route to either site but for 10.20.0.4, the VNET gateway's private address, which is reached from
//! the foreign side as over ExpressRoute, although it lies in a prefix that is routed into the tunnel. Whatever a gateway
//! sends in the clear still comes to the router, by its default route, and can be counted there.

use crate::netns::{End, Namespace, join};
use crate::{BLOB, HUB};

/// Five namespaces in a row.
#[derive(Debug)]
pub struct Topology {
    pub sensor: Namespace,
    pub foreign: Namespace,
    pub router: Namespace,
    pub vnet: Namespace,
    pub server: Namespace,
}

/// Two namespaces with one link: ours and that of a peer written by others.
///
/// ```text
///  here eth0 ──────────────────── eth0 there
///   192.0.2.1/30              192.0.2.2/30
///   2001:db8::1/64          2001:db8::2/64
/// ```
#[derive(Debug)]
pub struct Pair {
    pub here: Namespace,
    pub there: Namespace,
}

impl Topology {
    #[track_caller]
    pub fn build() -> Self {
        let [sensor, foreign, router, vnet, server] = std::array::from_fn(|_| Namespace::create());
        for gateway in [&foreign, &router, &vnet] {
            gateway.forward();
        }
        join(
            End { namespace: &sensor, interface: "eth0", addresses: &["10.1.2.10/24", "fd10:1:2::10/64"] },
            End { namespace: &foreign, interface: "lan", addresses: &["10.1.2.1/24", "fd10:1:2::1/64"] },
        );
        join(
            End { namespace: &foreign, interface: "ens6", addresses: &["192.0.2.1/30", "2001:db8:1::1/64"] },
            End { namespace: &router, interface: "west", addresses: &["192.0.2.2/30", "2001:db8:1::2/64"] },
        );
        join(
            End { namespace: &router, interface: "east", addresses: &["198.51.100.2/30", "2001:db8:2::2/64"] },
            End { namespace: &vnet, interface: "wan", addresses: &["198.51.100.1/30", "2001:db8:2::1/64"] },
        );
        join(
            End { namespace: &vnet, interface: "lan", addresses: &["10.20.0.4/24", "fd20::4/64"] },
            End { namespace: &server, interface: "eth0", addresses: &["10.20.0.10/24", "fd20::10/64"] },
        );
        for (namespace, ipv4, ipv6) in [
            (&sensor, "10.1.2.1", "fd10:1:2::1"),
            (&foreign, "192.0.2.2", "2001:db8:1::2"),
            (&vnet, "198.51.100.2", "2001:db8:2::2"),
            (&server, "10.20.0.4", "fd20::4"),
        ] {
            namespace.ip(&format!("route add default via {ipv4}"));
            namespace.ip(&format!("-6 route add default via {ipv6}"));
        }
        // ExpressRoute, there and back.
        router.ip("route add 10.20.0.4/32 via 198.51.100.1");
        vnet.ip("route add 192.0.2.0/30 via 198.51.100.2 src 10.20.0.4");

        foreign.set_hosts(&[("198.51.100.1", "vnet-a.example.net")]);
        // One over IPv4 and one over IPv6, so that both are gone through.
        vnet.set_hosts(&[("10.20.0.10", HUB), ("fd20::10", BLOB)]);
        Self { sensor, foreign, router, vnet, server }
    }
}

impl Pair {
    #[track_caller]
    pub fn build() -> Self {
        let (here, there) = (Namespace::create(), Namespace::create());
        join(
            End { namespace: &here, interface: "eth0", addresses: &["192.0.2.1/30", "2001:db8::1/64"] },
            End { namespace: &there, interface: "eth0", addresses: &["192.0.2.2/30", "2001:db8::2/64"] },
        );
        Self { here, there }
    }
}
