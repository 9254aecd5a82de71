//! The namespaces that a relay stands between, and the hosts behind it.
//!
//! ```text
//!  load ──────────── relay ──────────── backend
//!       10.61.1.0/24       10.61.2.0/24
//!  .16–.23 eth0   .1 downstream
//!                     .1 upstream   .16–.22 eth0
//! ```
//! The relay's namespace forwards too, so that without a relay packets pass the same two links.
//!
//! The relay has a processor of its own, load and backend share the other one. Left alone, the kernel works off what
//! arrives on a veth on the sender's processor: half of the relay's TCP would be on the load's account, and the other way
//! round. So each namespace's packets are steered to its own processor (RPS), as a network card's interrupts would be.

use std::net::{Ipv4Addr, SocketAddrV4};

use crate::netns::{End, Namespace, join};

/// Three namespaces in a row, gone when dropped.
#[derive(Debug)]
pub struct Line {
    pub load: Namespace,
    pub relay: Namespace,
    pub backend: Namespace,
}

/// One host of the catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    pub name: &'static str,
    pub address: Ipv4Addr,
    pub serves: Serves,
}

/// What a host does once it has the whole ClientHello and has answered it with one byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serves {
    /// Nothing more.
    Answer,
    /// Sends back what comes.
    Echo,
    /// Throws away what comes.
    Sink,
    /// Sends as fast as it can.
    Source,
}

/// Several that only answer: each has ports of its own for the relay's connections, of which 100,000 must fit, and many
/// more must rest in TIME-WAIT.
pub const HOSTS: [Host; 7] = [
    Host { name: "hub-0.bench.azure-devices.net", address: Ipv4Addr::new(10, 61, 2, 16), serves: Serves::Answer },
    Host { name: "hub-1.bench.azure-devices.net", address: Ipv4Addr::new(10, 61, 2, 17), serves: Serves::Answer },
    Host { name: "hub-2.bench.azure-devices.net", address: Ipv4Addr::new(10, 61, 2, 18), serves: Serves::Answer },
    Host { name: "hub-3.bench.azure-devices.net", address: Ipv4Addr::new(10, 61, 2, 19), serves: Serves::Answer },
    Host { name: "echo.bench.azure-devices.net", address: Ipv4Addr::new(10, 61, 2, 20), serves: Serves::Echo },
    Host { name: "sink.bench.azure-devices.net", address: Ipv4Addr::new(10, 61, 2, 21), serves: Serves::Sink },
    Host { name: "source.bench.azure-devices.net", address: Ipv4Addr::new(10, 61, 2, 22), serves: Serves::Source },
];

/// Of every host.
pub const HOST_PORT: u16 = 443;

/// Where sensors reach the relay.
pub const RELAY: Ipv4Addr = Ipv4Addr::new(10, 61, 1, 1);
pub const SNI: SocketAddrV4 = SocketAddrV4::new(RELAY, 443);
pub const CONNECT: SocketAddrV4 = SocketAddrV4::new(RELAY, 3128);

/// The sensors' network and addresses. A relay's port takes at most 64,512 connections from each.
pub const SENSORS: &str = "10.61.1.0/24";
pub const SOURCES: [Ipv4Addr; 8] = [
    Ipv4Addr::new(10, 61, 1, 16),
    Ipv4Addr::new(10, 61, 1, 17),
    Ipv4Addr::new(10, 61, 1, 18),
    Ipv4Addr::new(10, 61, 1, 19),
    Ipv4Addr::new(10, 61, 1, 20),
    Ipv4Addr::new(10, 61, 1, 21),
    Ipv4Addr::new(10, 61, 1, 22),
    Ipv4Addr::new(10, 61, 1, 23),
];

/// Processors, as `taskset -c` counts them.
pub const LOAD_CORE: usize = 0;
pub const RELAY_CORE: usize = 1;

/// The same for all subjects. A port in TIME-WAIT may be used again after a second: a storm of new sessions leaves more of
/// them than there are ports.
const SYSCTLS: [&str; 4] =
    ["net.ipv4.ip_local_port_range=1024 65535", "net.ipv4.tcp_tw_reuse=1", "net.core.somaxconn=4096", "net.ipv4.tcp_max_syn_backlog=8192"];

impl Host {
    /// The first that does so.
    pub fn that(serves: Serves) -> &'static Self {
        HOSTS.iter().find(|host| host.serves == serves).expect("there is one of each kind")
    }

    pub const fn place(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.address, HOST_PORT)
    }
}

impl Line {
    /// `steered`: each namespace's packets go to its own processor.
    #[track_caller]
    pub fn build(steered: bool) -> Self {
        let [load, relay, backend] = std::array::from_fn(|_| Namespace::create());
        for namespace in [&load, &relay, &backend] {
            namespace.sysctl(&SYSCTLS);
        }
        relay.forward();
        let with_length = |address: &Ipv4Addr| format!("{address}/24");
        let (sources, hosts) = (SOURCES.each_ref().map(with_length), HOSTS.map(|host| with_length(&host.address)));
        join(
            End { namespace: &load, interface: "eth0", addresses: &sources.each_ref().map(String::as_str) },
            End { namespace: &relay, interface: "downstream", addresses: &["10.61.1.1/24"] },
        );
        join(
            End { namespace: &relay, interface: "upstream", addresses: &["10.61.2.1/24"] },
            End { namespace: &backend, interface: "eth0", addresses: &hosts.each_ref().map(String::as_str) },
        );
        load.ip("route add default via 10.61.1.1");
        backend.ip("route add default via 10.61.2.1");
        let names = HOSTS.map(|host| (host.address.to_string(), host.name));
        relay.set_hosts(&names.each_ref().map(|(address, name)| (address.as_str(), *name)));
        if steered {
            steer(&load, "eth0", LOAD_CORE);
            steer(&relay, "downstream", RELAY_CORE);
            steer(&relay, "upstream", RELAY_CORE);
            steer(&backend, "eth0", LOAD_CORE);
        }
        Self { load, relay, backend }
    }
}

/// What arrives on `interface` is worked off by processor `core` alone.
#[track_caller]
fn steer(namespace: &Namespace, interface: &str, core: usize) {
    let mask = 1u32 << core;
    let script = format!("for queue in /sys/class/net/{interface}/queues/rx-*; do echo {mask:x} >$queue/rps_cpus || exit 1; done");
    namespace.exec(&["sh", "-c", &script]).success();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_host_has_a_name_and_an_address_of_its_own() {
        for (index, host) in HOSTS.into_iter().enumerate() {
            assert_eq!(HOSTS.iter().position(|other| other.name == host.name), Some(index), "{host:?}");
            assert_eq!(HOSTS.iter().position(|other| other.address == host.address), Some(index), "{host:?}");
        }
        assert_eq!(Host::that(Serves::Sink).place().to_string(), "10.61.2.21:443");
    }
}
