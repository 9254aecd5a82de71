//! The namespaces that a pair of gateways stands in.
//!
//! ```text
//!  client ───────── near ═══════════════════ far ───────── server
//!     10.98.1.0/24       192.0.2.0/30             10.98.2.0/24
//!     fd98:1::/64        2001:db8:1::/64          fd98:2::/64
//!   .10         .1     .1 eth0       eth0 .2    .1        .10
//!
//!  with a router that polices each outer flow:
//!                   near ───────── router ───────── far
//!                     192.0.2.0/30        198.51.100.0/30
//!                   .1 eth0   west .2   east .2   eth0 .1
//! ```
//! Why the router drops and does not delay: so do the clouds, and a shaper's queue would be one more thing measured. The
//! rate counts bytes, because a veth pair hands on segmentation offload's packets of up to 64 KB as one.

use crate::netns::{End, Namespace, join};
use crate::process::finish_with_input;
use crate::seconds;

#[derive(Debug)]
pub struct Line {
    pub client: Namespace,
    pub near: Namespace,
    pub router: Option<Namespace>,
    pub far: Namespace,
    pub server: Namespace,
}

/// One gateway's own addresses and networks, IPv4 then IPv6.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Of the gateway inside the tunnel.
    pub inside: [&'static str; 2],
    /// The same with the lengths of their prefixes.
    pub inside_with_length: [&'static str; 2],
    /// The network behind it.
    pub lan: [&'static str; 2],
    /// The host there.
    pub host: [&'static str; 2],
}

pub const NEAR: Place = Place {
    inside: ["10.99.0.1", "fd99::1"],
    inside_with_length: ["10.99.0.1/30", "fd99::1/126"],
    lan: ["10.98.1.0/24", "fd98:1::/64"],
    host: ["10.98.1.10", "fd98:1::10"],
};

pub const FAR: Place = Place {
    inside: ["10.99.0.2", "fd99::2"],
    inside_with_length: ["10.99.0.2/30", "fd99::2/126"],
    lan: ["10.98.2.0/24", "fd98:2::/64"],
    host: ["10.98.2.10", "fd98:2::10"],
};

/// First of the gateways' UDP ports.
pub const PORT: u16 = 51820;

/// A rate at which the CPU is no limit, and a burst in which several of the largest packets fit.
const POLICER: &str = "table inet bench {
    set flows {
        type ipv4_addr . inet_service . inet_service
        size 1024
        flags dynamic,timeout
        timeout 1m
    }
    chain forward {
        type filter hook forward priority filter; policy accept;
        ip protocol udp update @flows { ip saddr . udp sport . udp dport limit rate over 12 mbytes/second burst 500 kbytes } drop
    }
}
";

impl Line {
    #[track_caller]
    pub fn build(limited: bool) -> Self {
        let [client, near, far, server] = std::array::from_fn(|_| Namespace::create());
        near.forward();
        far.forward();
        join(
            End { namespace: &client, interface: "eth0", addresses: &["10.98.1.10/24", "fd98:1::10/64"] },
            End { namespace: &near, interface: "lan", addresses: &["10.98.1.1/24", "fd98:1::1/64"] },
        );
        join(
            End { namespace: &far, interface: "lan", addresses: &["10.98.2.1/24", "fd98:2::1/64"] },
            End { namespace: &server, interface: "eth0", addresses: &["10.98.2.10/24", "fd98:2::10/64"] },
        );
        for (host, ipv4, ipv6) in [(&client, "10.98.1.1", "fd98:1::1"), (&server, "10.98.2.1", "fd98:2::1")] {
            host.ip(&format!("route add default via {ipv4}"));
            host.ip(&format!("-6 route add default via {ipv6}"));
        }
        let router = limited.then(|| router_between(&near, &far));
        if router.is_none() {
            join(
                End { namespace: &near, interface: "eth0", addresses: &["192.0.2.1/30", "2001:db8:1::1/64"] },
                End { namespace: &far, interface: "eth0", addresses: &["192.0.2.2/30", "2001:db8:1::2/64"] },
            );
        }
        Self { client, near, router, far, server }
    }

    /// Where the near and the far gateway are reached. IPv6 is there without a router only.
    pub fn outside(&self, ipv6: bool) -> [&'static str; 2] {
        match (&self.router, ipv6) {
            (None, false) => ["192.0.2.1:51820", "192.0.2.2:51820"],
            (None, true) => ["[2001:db8:1::1]:51820", "[2001:db8:1::2]:51820"],
            (Some(_), _) => ["192.0.2.1:51820", "198.51.100.1:51820"],
        }
    }
}

#[track_caller]
fn router_between(near: &Namespace, far: &Namespace) -> Namespace {
    let router = Namespace::create();
    router.forward();
    join(
        End { namespace: near, interface: "eth0", addresses: &["192.0.2.1/30"] },
        End { namespace: &router, interface: "west", addresses: &["192.0.2.2/30"] },
    );
    join(
        End { namespace: &router, interface: "east", addresses: &["198.51.100.2/30"] },
        End { namespace: far, interface: "eth0", addresses: &["198.51.100.1/30"] },
    );
    near.ip("route add default via 192.0.2.2");
    far.ip("route add default via 198.51.100.2");
    finish_with_input(&mut router.command(&["nft", "-f", "-"]), POLICER.as_bytes(), seconds(10)).success();
    router
}
