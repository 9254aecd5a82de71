//! `tunnels`: keys, peers, addresses, and what must not be twice.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use tunnel::{
    Cloud, EndpointSettings, Mode, PeerSettings, PresharedKey, PrivateKey, ProbeSettings, PublicKey, TunnelSettings, default_mtu,
};

use super::super::diagnostic::{Diagnostic, Span};
use super::super::field::{Entry, Field, ScalarOr};
use super::super::raw::{RawConfig, RawEndpoint, RawMode, RawPeer, RawProbe, RawSwitch, RawTunnel};
use super::super::settings::UnderlaySettings;
use super::{Context, cloud, words};

/// Default of `peers.*.keepalive`: keeps NAT and firewall state alive everywhere (WireGuard's own recommendation).
const KEEPALIVE: Duration = Duration::from_secs(25);
/// IPv6 demands as much of every link (RFC 8200 §5); 65,535 is the longest packet less WireGuard's overhead.
const MTU: std::ops::RangeInclusive<u32> = 1280..=65_455;

const LANES: std::ops::RangeInclusive<u16> = 1..=16;
/// CPU_SETSIZE of the C library.
const MOST_CPUS: u32 = 1024;
/// The lane's timers run ten times a second.
const PROBE_EVERY: Duration = Duration::from_millis(100);
const PROBE_MISSES: std::ops::RangeInclusive<u32> = 1..=60;

impl Context<'_> {
    pub(super) fn tunnels(&mut self, raw: &RawConfig, here: Cloud, underlays: &BTreeMap<String, UnderlaySettings>) -> Vec<TunnelSettings> {
        let entries = raw.tunnels.get().map_or(&[][..], |entries| &entries.0);
        let mut tunnels: Vec<(TunnelSettings, &Entry<RawTunnel>)> = Vec::new();
        for entry in entries {
            let Some(raw) = entry.value.get() else { continue };
            if let Some(tunnel) = self.tunnel(entry, raw, here, underlays) {
                self.apart(&tunnel, entry, raw, &tunnels);
                tunnels.push((tunnel, entry));
            }
        }
        tunnels.into_iter().map(|(tunnel, _)| tunnel).collect()
    }

    fn tunnel(
        &mut self,
        entry: &Entry<RawTunnel>,
        raw: &RawTunnel,
        here: Cloud,
        underlays: &BTreeMap<String, UnderlaySettings>,
    ) -> Option<TunnelSettings> {
        // The name is the TUN device's too.
        let named = self.name_is_good(entry, &entry.name, 15);
        let key = raw
            .private_key
            .require("private_key", entry, self.diagnostics)
            .and_then(|secret| self.secret(secret, &raw.private_key, "make one with: (umask 077 && skyway genkey > FILE)"));
        let key = key.and_then(|key| {
            let parsed = key.expose().parse::<PrivateKey>();
            if parsed.is_err() {
                self.report(
                    Diagnostic::error(&raw.private_key, "what is kept there is no WireGuard private key")
                        .help("make one with: skyway genkey"),
                );
            }
            parsed.ok()
        });
        raw.listen.require("listen", entry, self.diagnostics);
        let listen = self.read(&raw.listen, words::listen);
        raw.addresses.require("addresses", entry, self.diagnostics);
        let addresses = self.read_all(&raw.addresses, words::interface_address);
        if raw.addresses.get().is_some_and(Vec::is_empty) {
            self.report(Diagnostic::error(&raw.addresses, "a tunnel needs an address of its own").expected("for example [10.99.0.1/30]"));
        }
        if addresses.iter().any(|address| address.prefix_len() == 0) {
            self.report(
                Diagnostic::error(&raw.addresses, "everything would be on-link")
                    .expected("the length of the tunnel's own prefix, for example /30"),
            );
        }
        if entry.name == "lo" {
            self.report(Diagnostic::error(entry, "lo is the host's loopback device").expected("another name"));
        }
        if addresses.len() > 8 {
            self.report(Diagnostic::error(&raw.addresses, "too many addresses").expected("at most 8"));
        }
        let lanes = self.lanes(raw, listen);
        let cpus = self.cpus(raw);
        if raw.mtu.get().is_some_and(|mtu| !MTU.contains(mtu)) {
            self.report(Diagnostic::error(&raw.mtu, "not a usable MTU").expected(format!("{} to {}", MTU.start(), MTU.end())));
        }
        let peers = self.peers(raw, key.as_ref(), &addresses, underlays);
        self.lanes_fit(raw, lanes);
        if raw.peers.get().map_or(0, |entries| entries.0.len()) != peers.len() {
            self.incomplete.push(entry.name.clone());
        }
        let mtu = raw.mtu.get().copied().unwrap_or_else(|| smallest_mtu(here, &peers));
        let key = key?;
        Some(TunnelSettings {
            name: Some(entry.name.clone()).filter(|_| named)?,
            mode: match raw.mode.get() {
                Some(RawMode::Tun) => Mode::Tun,
                Some(RawMode::Userspace) => Mode::Userspace,
                Some(RawMode::Auto) | None => Mode::Auto,
            },
            private_key: key,
            listen: listen?,
            addresses,
            mtu,
            lanes,
            cpus,
            uapi: raw.uapi.get().copied().unwrap_or(false),
            peers,
        })
    }

    /// How many lanes, once it is known that their ports exist and their packets can be told apart.
    fn lanes(&mut self, raw: &RawTunnel, listen: Option<SocketAddr>) -> u16 {
        let wanted = raw.lanes.get().copied().unwrap_or(1);
        let lanes = match u16::try_from(wanted) {
            Ok(lanes) if LANES.contains(&lanes) => lanes,
            Ok(_) | Err(_) => {
                self.report(
                    Diagnostic::error(&raw.lanes, "not a number of lanes")
                        .value(wanted.to_string())
                        .expected(format!("{} to {}", LANES.start(), LANES.end()))
                        .help("a lane is a thread: no more of them than processors"),
                );
                return 1;
            }
        };
        if lanes > 1 && raw.mode.get() == Some(&RawMode::Userspace) {
            self.report(
                Diagnostic::error(&raw.lanes, "userspace mode has one lane")
                    .expected("1")
                    .help("the TCP/IP stack inside the process is one; several lanes take mode: tun"),
            );
        }
        if let Some(listen) = listen
            && lanes > 1
            && (listen.port() == 0 || listen.port().checked_add(lanes - 1).is_none())
        {
            self.report(
                Diagnostic::error(&raw.lanes, format!("each lane takes a UDP port of its own, from {} on", listen.port()))
                    .expected(format!("a `listen` port from 1 to {}", u16::MAX - (lanes - 1))),
            );
        }
        lanes
    }

    /// The peer's lanes listen on as many ports as ours: from each endpoint's port on, and apart from its other endpoints'.
    fn lanes_fit(&mut self, raw: &RawTunnel, lanes: u16) {
        if lanes == 1 {
            return;
        }
        for peer in raw.peers.get().iter().flat_map(|entries| &entries.0).filter_map(|entry| entry.value.get()) {
            if peer.keepalive.get().map(String::as_str) == Some("off") {
                self.report(
                    Diagnostic::warning(&peer.keepalive, "of several lanes, only the first asks for a session when there is traffic")
                        .help("leave `keepalive` on, and every lane keeps its session"),
                );
            }
            let mut known: Vec<(String, u16, Span)> = Vec::new();
            for field in peer.endpoints.get().into_iter().flatten() {
                let written = match field.get() {
                    Some(ScalarOr::Scalar(text)) => Some(text),
                    Some(ScalarOr::Mapping(mapping)) => mapping.address.get(),
                    None => None,
                };
                let Some((host, port)) = written.and_then(|text| words::host_and_port(text).ok()) else { continue };
                if port.checked_add(lanes - 1).is_none() {
                    self.report(
                        Diagnostic::error(field, format!("with {lanes} lanes its ports would reach beyond {}", u16::MAX))
                            .expected(format!("the port of the peer's first lane, at most {}", u16::MAX - (lanes - 1))),
                    );
                } else if let Some((_, _, first)) =
                    known.iter().find(|(other, first, _)| *other == host && first.abs_diff(port) < lanes && *first != port)
                {
                    self.report(
                        Diagnostic::error(field, format!("its {lanes} lanes' ports overlap those of another endpoint"))
                            .related(*first, "that endpoint")
                            .help("list the port of the peer's first lane alone: the others follow it"),
                    );
                }
                known.push((host, port, field.span()));
            }
        }
    }

    fn cpus(&mut self, raw: &RawTunnel) -> Vec<usize> {
        let mut cpus = Vec::new();
        for field in raw.cpus.get().into_iter().flatten() {
            match field.get() {
                Some(cpu) if *cpu < MOST_CPUS => cpus.push(*cpu as usize),
                Some(cpu) => self.report(
                    Diagnostic::error(field, "not the number of a processor")
                        .value(cpu.to_string())
                        .expected(format!("0 to {}", MOST_CPUS - 1)),
                ),
                None => {}
            }
        }
        cpus
    }

    fn peers(
        &mut self,
        raw: &RawTunnel,
        own: Option<&PrivateKey>,
        addresses: &[IpNet],
        underlays: &BTreeMap<String, UnderlaySettings>,
    ) -> Vec<PeerSettings> {
        let mut peers = Vec::new();
        let mut keys: Vec<(PublicKey, Span)> = Vec::new();
        let mut claimed: HashMap<IpNet, (Span, &str)> = HashMap::new();
        for entry in raw.peers.get().iter().flat_map(|entries| &entries.0) {
            let Some(raw) = entry.value.get() else { continue };
            for element in raw.allowed_ips.get().into_iter().flatten() {
                let Some(prefix) = element.get().and_then(|text| words::prefix(text).ok()) else { continue };
                if let Some((first, owner)) = claimed.get(&prefix) {
                    let message =
                        if **owner == entry.name { "listed twice".to_owned() } else { format!("already allowed for peer {owner}") };
                    self.report(
                        Diagnostic::error(element, message)
                            .value(prefix.to_string())
                            .related(*first, "first listed here")
                            .help("a prefix belongs to one peer; a more specific one may belong to another"),
                    );
                } else {
                    claimed.insert(prefix, (element.span(), &entry.name));
                }
            }
            let Some(peer) = self.peer(entry, raw, own, addresses, underlays) else { continue };
            let next = peer.next_public_key.map(|key| (key, &raw.next_public_key));
            for (key, field) in std::iter::once((peer.public_key, &raw.public_key)).chain(next) {
                if let Some((_, first)) = keys.iter().find(|(known, _)| *known == key) {
                    self.report(
                        Diagnostic::error(field, "the same public key twice")
                            .related(*first, "first used here")
                            .help("a key is a peer's identity: give one of them its own, or make them one peer"),
                    );
                }
                keys.push((key, field.span()));
            }
            peers.push(peer);
        }
        peers
    }

    fn peer(
        &mut self,
        entry: &Entry<RawPeer>,
        raw: &RawPeer,
        own: Option<&PrivateKey>,
        addresses: &[IpNet],
        underlays: &BTreeMap<String, UnderlaySettings>,
    ) -> Option<PeerSettings> {
        let named = self.name_is_good(entry, &entry.name, 64);
        raw.public_key.require("public_key", entry, self.diagnostics);
        let key = self.public_key(&raw.public_key, own);
        let next_public_key = self.public_key(&raw.next_public_key, own);
        let preshared = raw
            .preshared_key
            .get()
            .and_then(|secret| {
                self.secret(
                    secret,
                    &raw.preshared_key,
                    "copy the other side's, or make one for both with: (umask 077 && skyway genpsk > FILE)",
                )
            })
            .and_then(|secret| {
                let parsed = secret.expose().parse::<PresharedKey>();
                if parsed.is_err() {
                    self.report(
                        Diagnostic::error(&raw.preshared_key, "what is kept there is no preshared key").expected("44 characters of base64"),
                    );
                }
                parsed.ok()
            });
        let endpoints = raw.endpoints.get().into_iter().flatten().filter_map(|field| self.endpoint(field, underlays)).collect();
        raw.allowed_ips.require("allowed_ips", entry, self.diagnostics);
        let allowed_ips = self.read_all(&raw.allowed_ips, words::prefix);
        let keepalive = match raw.keepalive.get().map(String::as_str) {
            None => Some(KEEPALIVE),
            Some("off") => None,
            Some(_) => self.read(&raw.keepalive, words::duration),
        };
        if keepalive.is_some_and(|keepalive| keepalive < Duration::from_secs(1) || keepalive > Duration::from_secs(65_535)) {
            self.report(Diagnostic::error(&raw.keepalive, "not a usable keepalive").expected("1s to 65535s, or off"));
        }
        let probe = self.probe(raw, &allowed_ips, addresses);
        Some(PeerSettings {
            name: Some(entry.name.clone()).filter(|_| named)?,
            public_key: key?,
            next_public_key,
            preshared_key: preshared,
            endpoints,
            allowed_ips: allowed_ips.into(),
            keepalive,
            roaming: raw.roaming.get() != Some(&RawSwitch::Off),
            cloud: cloud(&raw.cloud),
            probe,
        })
    }

    fn endpoint(
        &mut self,
        field: &Field<ScalarOr<RawEndpoint>>,
        underlays: &BTreeMap<String, UnderlaySettings>,
    ) -> Option<EndpointSettings> {
        let written = match field.get()? {
            ScalarOr::Scalar(text) => match words::host_and_port(text) {
                Ok((host, port)) => return Some(EndpointSettings { underlay: None, host, port }),
                Err(expected) => {
                    self.report(Diagnostic::error(field, expected.message).value(text.clone()).expected(expected.form));
                    return None;
                }
            },
            ScalarOr::Mapping(written) => written,
        };
        written.address.require("address", field, self.diagnostics);
        let (host, port) = self.read(&written.address, words::host_and_port)?;
        let names: Vec<&str> = underlays.keys().map(String::as_str).collect();
        let underlay = self.known(&written.via, "underlay", &names);
        if underlay
            .as_ref()
            .and_then(|name| underlays.get(name))
            .is_some_and(|underlay| underlay.source.is_some() || underlay.mark.is_some())
        {
            self.report(Diagnostic::warning(
                &written.via,
                "of an underlay, peers use the interface alone; source and mark are for relay paths",
            ));
        }
        Some(EndpointSettings { underlay, host, port })
    }

    /// A peer's key, if one is written and it may be one.
    fn public_key(&mut self, field: &Field<String>, own: Option<&PrivateKey>) -> Option<PublicKey> {
        let key = match field.get()?.parse::<PublicKey>() {
            Ok(key) => key,
            Err(error) => {
                self.report(Diagnostic::error(field, error.to_string()));
                return None;
            }
        };
        let own = own?;
        if own.public_key() == key {
            self.report(
                Diagnostic::error(field, "that is this gateway's own public key")
                    .help("a peer's entry holds the public key of the other side"),
            );
        } else if !own.agrees_with(&key) {
            self.report(
                Diagnostic::error(field, "that is a low-order key: whoever used it would share its secrets with everybody")
                    .help("ask the other side for the output of `skyway pubkey`"),
            );
        }
        Some(key)
    }

    fn probe(&mut self, raw: &RawPeer, allowed_ips: &[IpNet], addresses: &[IpNet]) -> Option<ProbeSettings> {
        let usual = ProbeSettings::usual(allowed_ips, addresses);
        let probe: &RawProbe = match raw.probe.get() {
            None => return usual,
            Some(ScalarOr::Mapping(probe)) => probe,
            Some(ScalarOr::Scalar(word)) if word == "off" => return None,
            Some(ScalarOr::Scalar(_)) => {
                self.report(Diagnostic::error(&raw.probe, "not a probe").expected("{ target: ADDRESS, every: 300ms, misses: 3 } or off"));
                return None;
            }
        };
        let target = if probe.target.is_present() {
            self.read(&probe.target, words::address)?
        } else if let Some(usual) = &usual {
            usual.target
        } else {
            self.report(
                Diagnostic::error(
                    &raw.probe,
                    "there is nothing to ask: no single address among allowed_ips that an address of ours could ask",
                )
                .expected("`target`, an address behind the peer"),
            );
            return None;
        };
        if addresses.iter().any(|own| own.addr() == target) {
            self.report(
                Diagnostic::error(&probe.target, "that is this gateway's own address")
                    .value(target.to_string())
                    .expected("an address behind the peer"),
            );
        } else if !allowed_ips.iter().any(|prefix| prefix.contains(&target)) {
            self.report(
                Diagnostic::error(&probe.target, "not one of the peer's allowed_ips: its answers would be dropped")
                    .value(target.to_string()),
            );
        }
        if !addresses.iter().any(|own| own.addr().is_ipv4() == target.is_ipv4()) {
            let family = if target.is_ipv4() { "IPv4" } else { "IPv6" };
            self.report(
                Diagnostic::error(&probe.target, format!("the tunnel has no {family} address to ask from")).value(target.to_string()),
            );
        }
        let every = if probe.every.is_present() { self.read(&probe.every, words::duration)? } else { ProbeSettings::EVERY };
        if every < PROBE_EVERY {
            self.report(Diagnostic::error(&probe.every, "too often").expected("100ms or more"));
        }
        let misses = probe.misses.get().copied().unwrap_or(ProbeSettings::MISSES);
        if !PROBE_MISSES.contains(&misses) {
            self.report(Diagnostic::error(&probe.misses, "not a usable number of misses").expected("1 to 60"));
        }
        let hold_down = if probe.hold_down.is_present() { self.read(&probe.hold_down, words::duration)? } else { ProbeSettings::HOLD_DOWN };
        Some(ProbeSettings { target, every, misses, hold_down })
    }

    /// A tunnel must not share its port, its addresses or its prefixes with one before it.
    fn apart(
        &mut self,
        tunnel: &TunnelSettings,
        entry: &Entry<RawTunnel>,
        raw: &RawTunnel,
        others: &[(TunnelSettings, &Entry<RawTunnel>)],
    ) {
        for (other, first) in others {
            if ports(tunnel).any(|port| ports(other).any(|other| port == other)) && collide(tunnel.listen.ip(), other.listen.ip()) {
                let mut diagnostic = Diagnostic::error(&raw.listen, format!("the tunnel {} listens there already", other.name))
                    .related(first.name_span, "that tunnel");
                if tunnel.lanes > 1 || other.lanes > 1 {
                    diagnostic = diagnostic.help("a tunnel with several lanes takes as many ports, from its `listen` on");
                }
                self.report(diagnostic);
            }
            for (own, field) in tunnel.addresses.iter().zip(raw.addresses.get().into_iter().flatten()) {
                if let Some(theirs) = other.addresses.iter().find(|theirs| overlap(own, theirs)) {
                    self.report(
                        Diagnostic::error(field, format!("overlaps {theirs} of the tunnel {}", other.name))
                            .value(own.to_string())
                            .related(first.name_span, "that tunnel")
                            .help("give each tunnel its own small prefix, for example a /30"),
                    );
                }
            }
            if tunnel.private_key == other.private_key {
                self.report(
                    Diagnostic::warning(entry, format!("has the same private key as the tunnel {}", other.name))
                        .related(first.name_span, "that tunnel"),
                );
            }
        }
        for (at, own) in tunnel.addresses.iter().enumerate() {
            if let Some(twice) = tunnel.addresses.iter().take(at).find(|other| other.addr() == own.addr()) {
                self.report(Diagnostic::error(&raw.addresses, format!("the address {} is listed twice", twice.addr())));
            }
        }
    }
}

fn smallest_mtu(here: Cloud, peers: &[PeerSettings]) -> u32 {
    // A name may resolve to IPv6, whose header is 20 bytes longer; so may a peer come by it whose endpoint is not known.
    let ipv6 = |peer: &PeerSettings| {
        peer.endpoints.is_empty() || peer.endpoints.iter().any(|endpoint| !matches!(endpoint.host.parse(), Ok(IpAddr::V4(_))))
    };
    peers.iter().map(|peer| default_mtu(here, peer.cloud, ipv6(peer))).min().unwrap_or_else(|| default_mtu(here, Cloud::default(), false))
}

/// The UDP ports of all lanes.
fn ports(tunnel: &TunnelSettings) -> impl Iterator<Item = u16> + use<> {
    let first = tunnel.listen.port();
    (0..tunnel.lanes).filter(move |_| first != 0).map(move |lane| first.saturating_add(lane))
}

fn collide(one: IpAddr, other: IpAddr) -> bool {
    one == other || words::is_everywhere(one) || words::is_everywhere(other)
}

fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(&other.network()) || other.contains(&one.network())
}
