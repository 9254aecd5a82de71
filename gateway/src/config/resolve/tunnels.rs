//! `tunnels`: keys, peers, addresses, and what must not be twice.

use std::collections::BTreeMap;
use std::net::IpAddr;
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
        if raw.lanes.get().is_some_and(|lanes| *lanes != 1) {
            self.report(Diagnostic::error(&raw.lanes, "this version of skyway drives one lane a tunnel").expected("1"));
        }
        if raw.mtu.get().is_some_and(|mtu| !MTU.contains(mtu)) {
            self.report(Diagnostic::error(&raw.mtu, "not a usable MTU").expected(format!("{} to {}", MTU.start(), MTU.end())));
        }
        let peers = self.peers(raw, key.as_ref(), underlays);
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
            peers,
        })
    }

    fn peers(&mut self, raw: &RawTunnel, own: Option<&PrivateKey>, underlays: &BTreeMap<String, UnderlaySettings>) -> Vec<PeerSettings> {
        let mut peers = Vec::new();
        let mut keys: Vec<(PublicKey, Span)> = Vec::new();
        let mut claimed: Vec<(IpNet, Span, String)> = Vec::new();
        for entry in raw.peers.get().iter().flat_map(|entries| &entries.0) {
            let Some(raw) = entry.value.get() else { continue };
            for element in raw.allowed_ips.get().into_iter().flatten() {
                let Some(prefix) = element.get().and_then(|text| words::prefix(text).ok()) else { continue };
                if let Some((_, first, owner)) = claimed.iter().find(|(known, ..)| *known == prefix) {
                    let message =
                        if *owner == entry.name { "listed twice".to_owned() } else { format!("already allowed for peer {owner}") };
                    self.report(
                        Diagnostic::error(element, message)
                            .value(prefix.to_string())
                            .related(*first, "first listed here")
                            .help("a prefix belongs to one peer; a more specific one may belong to another"),
                    );
                } else {
                    claimed.push((prefix, element.span(), entry.name.clone()));
                }
            }
            let Some(peer) = self.peer(entry, raw, own, underlays) else { continue };
            if let Some((_, first)) = keys.iter().find(|(key, _)| *key == peer.public_key) {
                self.report(
                    Diagnostic::error(&raw.public_key, "two peers have the same public key")
                        .related(*first, "first used here")
                        .help("a key is a peer's identity: give one of them its own, or make them one peer"),
                );
            }
            keys.push((peer.public_key, raw.public_key.span()));
            peers.push(peer);
        }
        peers
    }

    fn peer(
        &mut self,
        entry: &Entry<RawPeer>,
        raw: &RawPeer,
        own: Option<&PrivateKey>,
        underlays: &BTreeMap<String, UnderlaySettings>,
    ) -> Option<PeerSettings> {
        let named = self.name_is_good(entry, &entry.name, 64);
        let key = raw.public_key.require("public_key", entry, self.diagnostics).and_then(|text| match text.parse::<PublicKey>() {
            Ok(key) => Some(key),
            Err(error) => {
                self.report(Diagnostic::error(&raw.public_key, error.to_string()));
                None
            }
        });
        if let (Some(key), Some(own)) = (key, own) {
            if own.public_key() == key {
                self.report(
                    Diagnostic::error(&raw.public_key, "that is this gateway's own public key")
                        .help("a peer's entry holds the public key of the other side"),
                );
            } else if !own.agrees_with(&key) {
                self.report(
                    Diagnostic::error(&raw.public_key, "that is a low-order key: whoever used it would share its secrets with everybody")
                        .help("ask the other side for the output of `skyway pubkey`"),
                );
            }
        }
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
        let probe = self.probe(raw);
        Some(PeerSettings {
            name: Some(entry.name.clone()).filter(|_| named)?,
            public_key: key?,
            preshared_key: preshared,
            endpoints,
            allowed_ips,
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

    fn probe(&mut self, raw: &RawPeer) -> Option<ProbeSettings> {
        let probe: &RawProbe = match raw.probe.get()? {
            ScalarOr::Mapping(probe) => probe,
            ScalarOr::Scalar(word) if word == "off" => return None,
            ScalarOr::Scalar(_) => {
                self.report(Diagnostic::error(&raw.probe, "not a probe").expected("{ target: ADDRESS, every: 300ms, misses: 3 } or off"));
                return None;
            }
        };
        probe.target.require("target", &raw.probe, self.diagnostics);
        let target = self.read(&probe.target, words::address);
        let every = if probe.every.is_present() { self.read(&probe.every, words::duration) } else { Some(Duration::from_secs(1)) };
        let misses = probe.misses.get().copied().unwrap_or(3);
        if misses == 0 {
            self.report(Diagnostic::error(&probe.misses, "a probe that may never miss would always fail").expected("1 or more"));
        }
        self.report(
            Diagnostic::warning(&raw.probe, "probes are checked but not sent by this version of skyway")
                .help("until then the next endpoint is tried after three handshakes without an answer, about 15 s"),
        );
        Some(ProbeSettings { target: target?, every: every?, misses })
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
            if tunnel.listen.port() == other.listen.port() && collide(tunnel.listen.ip(), other.listen.ip()) {
                self.report(
                    Diagnostic::error(&raw.listen, format!("the tunnel {} listens there already", other.name))
                        .related(first.name_span, "that tunnel"),
                );
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

fn collide(one: IpAddr, other: IpAddr) -> bool {
    one == other || words::is_everywhere(one) || words::is_everywhere(other)
}

fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(&other.network()) || other.contains(&one.network())
}
