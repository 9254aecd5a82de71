//! Packets outside the tunnel: how many that should have gone through it, or nowhere, came out in the clear.
//!
//! It counts where the foreign gateway's outside link ends, before anything there decides about a packet, so that a leak
//! counts even if nobody would have forwarded it.

use serde_json::Value;

use crate::netns::Namespace;
use crate::process::finish_with_input;
use crate::seconds;

/// A table of nftables that counts what comes in by one interface towards protected prefixes.
#[derive(Debug)]
pub struct Counter<'a> {
    namespace: &'a Namespace,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaked {
    pub ipv4: u64,
    pub ipv6: u64,
}

/// Nothing has leaked.
pub const NOTHING: Leaked = Leaked { ipv4: 0, ipv6: 0 };

impl<'a> Counter<'a> {
    /// `ipv4` and `ipv6`: the protected prefixes. WireGuard's own datagrams, UDP from and to `port`, are no leak: an
    /// endpoint may lie inside a protected prefix.
    #[track_caller]
    pub fn install(namespace: &'a Namespace, interface: &str, ipv4: &[&str], ipv6: &[&str], port: u16) -> Self {
        let script = format!(
            "table inet leaks {{
                counter ipv4 {{ }}
                counter ipv6 {{ }}
                chain ingress {{
                    type filter hook prerouting priority raw; policy accept;
                    iifname != \"{interface}\" accept
                    udp sport {port} udp dport {port} accept
                    ip daddr {{ {} }} counter name ipv4
                    ip6 daddr {{ {} }} counter name ipv6
                }}
            }}",
            ipv4.join(", "),
            ipv6.join(", "),
        );
        finish_with_input(&mut namespace.command(&["nft", "-f", "-"]), script.as_bytes(), seconds(10)).success();
        Self { namespace }
    }

    #[track_caller]
    pub fn read(&self) -> Leaked {
        let text = self.namespace.exec(&["nft", "-j", "list", "counters", "table", "inet", "leaks"]).success();
        let listed: Value = serde_json::from_str(&text).expect("nft writes JSON");
        let packets = |name: &str| {
            let mut objects = listed["nftables"].as_array().into_iter().flatten();
            let found = objects.find(|object| object["counter"]["name"] == name);
            found.and_then(|object| object["counter"]["packets"].as_u64()).expect("the counter is there")
        };
        Leaked { ipv4: packets("ipv4"), ipv6: packets("ipv6") }
    }
}
