//! `relay`: who may reach what, by which way, and where they connect.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use tunnel::{Mode, TunnelSettings};

use super::super::diagnostic::{Diagnostic, Span};
use super::super::field::{Field, ScalarOr};
use super::super::raw::{RawHost, RawKind, RawLimits, RawListener, RawPath, RawRelay, RawSensor};
use super::super::settings::{Listen, ListenerAt, PathSettings, RelaySettings, RouteSettings, UnderlaySettings, Via};
use super::{Context, words};
use crate::relay::catalogue::{Catalogue, Entry, Role};
use crate::relay::host::{HostName, HostNameError};
use crate::relay::{Limits, Parent, ParentHost, Protocol, ProxyUser, Sensor, Sensors};

/// The only port that Defender's sensors use.
const HTTPS: u16 = 443;

impl Context<'_> {
    pub(super) fn relay(
        &mut self,
        raw: &RawRelay,
        place: &Field<RawRelay>,
        tunnels: &[TunnelSettings],
        underlays: &BTreeMap<String, UnderlaySettings>,
    ) -> RelaySettings {
        let catalogue = self.catalogue(raw);
        if catalogue.is_empty() && raw.catalogue.get().is_none_or(|catalogue| catalogue.hosts.get().is_none_or(Vec::is_empty)) {
            self.report(
                Diagnostic::warning(place, "the catalogue is empty: no host can be reached")
                    .help("list the hosts of the portal's endpoint details"),
            );
        }
        let sensors = self.sensors(raw);
        let paths = self.paths(raw, underlays);
        if raw.paths.get().is_none_or(Vec::is_empty) {
            self.report(
                Diagnostic::warning(place, "no path is configured: nothing can leave")
                    .help("for example paths: [{ name: out, via: direct }]"),
            );
        }
        let listeners = self.listeners(raw, tunnels);
        let limits = raw.limits.get().map_or_else(Limits::default, |limits| self.limits(limits));
        let name_servers = self.read_all(&raw.name_servers, |text| match text.parse::<IpAddr>() {
            Ok(address) => Ok(SocketAddr::new(address, 53)),
            Err(_) => words::address_and_port(text),
        });
        RelaySettings { catalogue, sensors, paths, listeners, limits, name_servers }
    }

    fn catalogue(&mut self, raw: &RawRelay) -> Catalogue {
        let mut entries: BTreeMap<HostName, Entry> = BTreeMap::new();
        let mut places: BTreeMap<HostName, Span> = BTreeMap::new();
        let hosts = raw.catalogue.get().and_then(|catalogue| catalogue.hosts.get());
        for field in hosts.into_iter().flatten() {
            let (name, place, entry) = match field.get() {
                None => continue,
                Some(ScalarOr::Scalar(name)) => (
                    Some(name),
                    field.span(),
                    Entry { role: guess_role(name), ports: vec![HTTPS], allow: Vec::new(), addresses: Vec::new() },
                ),
                Some(ScalarOr::Mapping(host)) => {
                    let name = host.host.require("host", field, self.diagnostics);
                    (name, host.host.span(), self.entry(host))
                }
            };
            let Some(name) = name else { continue };
            match HostName::parse(name) {
                Ok(host) => {
                    if let Some(first) = places.get(&host) {
                        self.report(
                            Diagnostic::error(field, "the host is listed twice")
                                .value(host.to_string())
                                .related(*first, "first listed here"),
                        );
                    }
                    places.insert(host.clone(), place);
                    entries.insert(host, entry);
                }
                Err(error) => self.bad_host(field, name, &error),
            }
        }
        Catalogue::new(entries)
    }

    fn bad_host(&mut self, field: &Field<ScalarOr<RawHost>>, name: &str, error: &HostNameError) {
        let diagnostic = if name.contains('*') || name.starts_with('.') {
            Diagnostic::error(field, "wildcards are not part of this version of skyway")
                .help("list exact hosts: a wildcard over a cloud's shared domain opens every other tenant's storage to a sensor")
        } else {
            Diagnostic::error(field, error.to_string()).expected("a host name such as contoso-hub.azure-devices.net")
        };
        self.report(diagnostic.value(name.to_owned()));
    }

    fn entry(&mut self, raw: &RawHost) -> Entry {
        let role = match raw.role.get() {
            None => raw.host.get().map_or(Role::Other, |name| guess_role(name)),
            Some(word) => Role::ALL.iter().copied().find(|role| role.label() == word).unwrap_or_else(|| {
                let labels: Vec<&str> = Role::ALL.iter().map(|role| role.label()).collect();
                self.report(Diagnostic::error(&raw.role, "not a role").value(word.clone()).one_of(word, &labels));
                Role::Other
            }),
        };
        let ports: Vec<u16> = raw.ports.get().into_iter().flatten().filter_map(|port| port.get().copied()).collect();
        if ports.contains(&0) || raw.ports.get().is_some_and(Vec::is_empty) {
            self.report(Diagnostic::error(&raw.ports, "not a list of ports").expected("for example [443]"));
        }
        let ports = if ports.is_empty() { vec![HTTPS] } else { ports };
        Entry { role, ports, allow: self.read_all(&raw.allow, words::prefix), addresses: self.read_all(&raw.addresses, words::address) }
    }

    fn sensors(&mut self, raw: &RawRelay) -> Sensors {
        let mut sensors: Vec<Sensor> = Vec::new();
        let entries = raw.sensors.get().map_or(&[][..], |entries| &entries.0);
        for entry in entries {
            self.name_is_good(entry, &entry.name, 64);
            let Some(raw) = entry.value.get() else { continue };
            let from = self.read_all(&raw.from, words::prefix);
            let proxy_user = self.proxy_user(raw);
            if !raw.from.is_present() && !raw.proxy_user.is_present() {
                self.report(
                    Diagnostic::error(entry, "nothing says how this sensor is recognised")
                        .expected("from: [PREFIX, …], proxy_user: { name, password }, or both"),
                );
            }
            for prefix in &from {
                if let Some(other) = sensors.iter().find(|other| other.from.contains(prefix)) {
                    self.report(Diagnostic::error(&raw.from, format!("{prefix} is the sensor {}'s already", other.name)));
                }
            }
            if let Some(user) = &proxy_user
                && let Some(other) = sensors.iter().find(|other| other.proxy_user.as_ref().is_some_and(|known| known.name == user.name))
            {
                self.report(Diagnostic::error(
                    &raw.proxy_user,
                    format!("the proxy user {} is the sensor {}'s already", user.name, other.name),
                ));
            }
            sensors.push(Sensor { name: entry.name.as_str().into(), from, proxy_user });
        }
        Sensors::new(sensors)
    }

    fn proxy_user(&mut self, raw: &RawSensor) -> Option<ProxyUser> {
        let user = raw.proxy_user.get()?;
        let name = user.name.require("name", &raw.proxy_user, self.diagnostics).cloned();
        let password = user.password.require("password", &raw.proxy_user, self.diagnostics).and_then(|secret| {
            self.secret(secret, &user.password, "write the sensor's proxy password there, readable by its owner alone (mode 0600)")
        });
        if name.as_deref().is_some_and(|name| name.is_empty() || name.contains(':')) {
            self.report(
                Diagnostic::error(&user.name, "not a user name that Basic authentication can carry").expected("some text without a colon"),
            );
        }
        Some(ProxyUser { name: name?, password: password? })
    }

    fn paths(&mut self, raw: &RawRelay, underlays: &BTreeMap<String, UnderlaySettings>) -> Vec<PathSettings> {
        let mut paths: Vec<PathSettings> = Vec::new();
        for field in raw.paths.get().into_iter().flatten() {
            let Some(path) = field.get() else { continue };
            let name = path.name.require("name", field, self.diagnostics).cloned();
            if let Some(name) = &name
                && paths.iter().any(|other| other.name == *name)
            {
                self.report(Diagnostic::error(&path.name, "two paths have that name"));
            }
            path.via.require("via", field, self.diagnostics);
            let via = self.via(path, underlays);
            let parents: Vec<Parent> = path.parents.get().into_iter().flatten().filter_map(|field| self.parent(field)).collect();
            if let (Some(name), Some(via)) = (name, via) {
                paths.push(PathSettings { name, via, parents });
            }
        }
        paths
    }

    fn via(&mut self, path: &RawPath, underlays: &BTreeMap<String, UnderlaySettings>) -> Option<Via> {
        const FORM: &str = "direct, { tunnel: NAME } or { underlay: NAME }";
        match path.via.get()? {
            ScalarOr::Scalar(word) if word == "direct" => Some(Via::Direct),
            ScalarOr::Scalar(word) => {
                self.report(Diagnostic::error(&path.via, "not a way out").value(word.clone()).expected(FORM));
                None
            }
            ScalarOr::Mapping(via) => match (via.tunnel.is_present(), via.underlay.is_present()) {
                (true, false) => self.known_tunnel(&via.tunnel).map(Via::Tunnel),
                (false, true) => {
                    let names: Vec<&str> = underlays.keys().map(String::as_str).collect();
                    self.known(&via.underlay, "underlay", &names).map(Via::Underlay)
                }
                (true, true) | (false, false) => {
                    self.report(Diagnostic::error(&path.via, "not one way out").expected(FORM));
                    None
                }
            },
        }
    }

    fn parent(&mut self, field: &Field<String>) -> Option<Parent> {
        let url = field.get()?;
        if url.contains('@') {
            self.diagnostics.conceal(field.span());
        }
        let parsed = url.strip_prefix("http://").map(|rest| rest.trim_end_matches('/')).and_then(|rest| words::host_and_port(rest).ok());
        let Some((host, port)) = parsed else {
            self.report(
                Diagnostic::error(field, "not a parent proxy")
                    .value(url.clone())
                    .expected("http://HOST:PORT such as http://10.99.0.2:3128"),
            );
            return None;
        };
        let host = match host.parse::<IpAddr>() {
            Ok(address) => ParentHost::Address(address),
            Err(_) => ParentHost::Name(HostName::parse(&host).ok()?),
        };
        Some(Parent { url: url.clone(), host, port })
    }

    /// A parent behind a tunnel must be a peer's, and in TUN mode needs a route there: the kill switch answers otherwise.
    pub(super) fn parents_are_routed(&mut self, raw: &RawRelay, relay: &RelaySettings, tunnels: &[TunnelSettings], routes: &RouteSettings) {
        for path in &relay.paths {
            let Via::Tunnel(name) = &path.via else { continue };
            let Some(tunnel) = tunnels.iter().find(|tunnel| tunnel.name == *name) else { continue };
            let allowed: Vec<IpNet> = tunnel.peers.iter().flat_map(|peer| peer.allowed_ips.iter().copied()).collect();
            let on_link = tunnel.addresses.iter().map(IpNet::trunc);
            let fixed = routes.fixed.iter().filter(|route| route.tunnel == *name).map(|route| route.prefix);
            let routed: Vec<IpNet> = on_link.chain(fixed).collect();
            let holds = |prefixes: &[IpNet], address: IpAddr| prefixes.iter().any(|prefix| prefix.contains(&address));
            for (parent, address) in path.parents.iter().filter_map(|parent| Some((parent, parent.address()?.ip()))) {
                let Some(place) = written(raw, &path.name, &parent.url) else { continue };
                if !holds(&allowed, address) && !self.incomplete.contains(name) {
                    let message = format!("the parent lies in no peer's allowed_ips of the tunnel {name}");
                    self.report(Diagnostic::error(place, message).help("add its address to the allowed_ips of the peer that it is behind"));
                } else if !holds(&routed, address) && tunnel.mode != Mode::Userspace {
                    let help = format!("add to routes.static: {{ prefix: {}, via: {{ tunnel: {name} }} }}", IpNet::from(address));
                    let message = "no route leads to the parent: it can be reached in userspace mode alone";
                    self.report(Diagnostic::warning(place, message).help(help));
                }
            }
        }
    }

    fn listeners(&mut self, raw: &RawRelay, tunnels: &[TunnelSettings]) -> Vec<ListenerAt> {
        let mut listeners: Vec<ListenerAt> = Vec::new();
        for field in raw.listeners.get().into_iter().flatten() {
            let Some(listener) = field.get() else { continue };
            let name = listener.name.require("name", field, self.diagnostics).cloned();
            let kind = listener.kind.require("kind", field, self.diagnostics).copied();
            listener.listen.require("listen", field, self.diagnostics);
            let listen = self.listen(listener, tunnels);
            let (Some(name), Some(kind), Some(listen)) = (name, kind, listen) else { continue };
            if listeners.iter().any(|other| other.name == name) {
                self.report(Diagnostic::error(&listener.name, "two listeners have that name"));
            }
            if let Some(other) = listeners.iter().find(|other| clash(&other.listen, &listen, tunnels)) {
                self.report(Diagnostic::error(&listener.listen, format!("the listener {} is there already", other.name)));
            }
            let protocol = match kind {
                RawKind::Connect => Protocol::Connect,
                RawKind::Sni => Protocol::Sni,
            };
            listeners.push(ListenerAt { name, protocol, listen });
        }
        listeners
    }

    fn listen(&mut self, raw: &RawListener, tunnels: &[TunnelSettings]) -> Option<Listen> {
        match raw.listen.get()? {
            ScalarOr::Scalar(text) => match words::address_and_port(text) {
                Ok(address) => {
                    // An address of ours inside a tunnel is there only when the tunnel is.
                    let inside = tunnels.iter().find(|tunnel| tunnel.addresses.iter().any(|own| own.addr() == address.ip()));
                    Some(match inside {
                        Some(tunnel) => Listen::Tunnel { tunnel: tunnel.name.clone(), address: Some(address.ip()), port: address.port() },
                        None => Listen::Host(address),
                    })
                }
                Err(expected) => {
                    self.report(
                        Diagnostic::error(&raw.listen, expected.message)
                            .value(text.clone())
                            .expected("ADDRESS:PORT such as 0.0.0.0:3128, or { tunnel: NAME, port: 3128 }"),
                    );
                    None
                }
            },
            ScalarOr::Mapping(inside) => {
                inside.tunnel.require("tunnel", &raw.listen, self.diagnostics);
                let port = inside.port.require("port", &raw.listen, self.diagnostics).copied();
                if port == Some(0) {
                    self.report(Diagnostic::error(&inside.port, "not a usable port").expected("1 to 65535"));
                }
                let tunnel = self.known_tunnel(&inside.tunnel)?;
                Some(Listen::Tunnel { tunnel, address: None, port: port? })
            }
        }
    }

    fn limits(&mut self, raw: &RawLimits) -> Limits {
        let default = Limits::default();
        let mut time = |field: &Field<String>, default: Duration| {
            if field.is_present() { self.read(field, words::duration).unwrap_or(default) } else { default }
        };
        let limits = Limits {
            hello: time(&raw.hello, default.hello),
            connect: time(&raw.connect, default.connect),
            idle: time(&raw.idle, default.idle),
            half_close: time(&raw.half_close, default.half_close),
            drain: time(&raw.drain, default.drain),
            sessions: raw.sessions.get().map_or(default.sessions, |sessions| *sessions as usize),
        };
        if limits.sessions == 0 {
            self.report(Diagnostic::error(&raw.sessions, "no session could ever begin").expected("1 or more"));
        }
        limits
    }
}

/// Where the parent `url` of the path `name` stands in the file.
fn written<'a>(raw: &'a RawRelay, name: &str, url: &str) -> Option<&'a Field<String>> {
    let paths = raw.paths.get()?.iter().filter_map(Field::get);
    let path = paths.into_iter().find(|path| path.name.get().is_some_and(|written| written == name))?;
    path.parents.get()?.iter().find(|parent| parent.get().is_some_and(|written| written == url))
}

/// What a host is for, by the domain that Azure gives it.
fn guess_role(name: &str) -> Role {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    if name.ends_with(".azure-devices.net") || name.ends_with(".azure-devices.us") {
        Role::IotHub
    } else if name.contains(".blob.core.") {
        Role::Blob
    } else if name.contains(".servicebus.") {
        Role::EventHub
    } else if name.ends_with("download.microsoft.com") {
        Role::Download
    } else {
        Role::Other
    }
}

/// Whether two listeners cannot both be. In userspace mode what is inside a tunnel is apart from the host.
fn clash(one: &Listen, other: &Listen, tunnels: &[TunnelSettings]) -> bool {
    match (one, other) {
        (Listen::Host(one), Listen::Host(other)) => {
            one.port() == other.port() && (one.ip() == other.ip() || words::is_everywhere(one.ip()) || words::is_everywhere(other.ip()))
        }
        (Listen::Tunnel { tunnel: one, port: a, .. }, Listen::Tunnel { tunnel: other, port: b, .. }) => one == other && a == b,
        (Listen::Host(host), Listen::Tunnel { tunnel, port, .. }) | (Listen::Tunnel { tunnel, port, .. }, Listen::Host(host)) => {
            let apart = tunnels.iter().any(|known| known.name == *tunnel && known.mode == Mode::Userspace);
            !apart && host.port() == *port && words::is_everywhere(host.ip())
        }
    }
}
