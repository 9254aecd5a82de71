//! `relay.paths`: the ways out, the chains of proxies that they lead through, and what each is probed by.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use tunnel::{Mode, TunnelSettings};

use super::super::super::diagnostic::{Diagnostic, Place};
use super::super::super::field::{Field, ScalarOr};
use super::super::super::raw::{RawOnPathDown, RawParent, RawPath, RawPathProbe, RawRelay};
use super::super::super::settings::{PathSettings, RelaySettings, RouteSettings, Via};
use super::super::{Context, words};
use super::Around;
use crate::relay::catalogue::{Catalogue, HTTPS};
use crate::relay::chain::Level;
use crate::relay::health::HealthSettings;
use crate::relay::host::HostName;
use crate::relay::tls::{ClientTls, Roots};
use crate::relay::{OnPathDown, Parent, ParentHost, PathProbe};

/// Default of `probe.every`: three of them before `/readyz` misses one.
const PROBE_EVERY: Duration = Duration::from_secs(10);
/// `/readyz` wants a success that is no older.
const READY: Duration = Duration::from_secs(30);
/// A handshake each time: more often is a load.
const SHORTEST_EVERY: Duration = Duration::from_millis(100);
const PROBE_COUNTS: std::ops::RangeInclusive<u32> = 1..=60;

type RawHop = Field<ScalarOr<RawParent>>;

impl Context<'_> {
    /// `probed`: what paths are probed by unless they name another.
    pub(super) fn paths(
        &mut self,
        raw: &RawRelay,
        around: Around<'_>,
        catalogue: &Catalogue,
        probed: Option<&HostName>,
    ) -> Vec<PathSettings> {
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
            let via = self.via(path, around);
            // The other end of a tunnel is ours, unless said otherwise. Of a way out that is broken nothing is said.
            let is_ours = !matches!(via, Some(Via::Direct | Via::Underlay(_)));
            let parents: Vec<Vec<Parent>> =
                path.parents.get().into_iter().flatten().filter_map(|field| self.chain(field, is_ours, around.level)).collect();
            let name_servers = self.read_all(&path.name_servers, words::name_server);
            let probe = self.path_probe(path, catalogue, probed);
            let on_down = match path.on_path_down.get() {
                Some(RawOnPathDown::Keep) | None => OnPathDown::Keep,
                Some(RawOnPathDown::Drain) => OnPathDown::Drain,
                Some(RawOnPathDown::Reset) => OnPathDown::Reset,
            };
            if let (Some(name), Some(via)) = (name, via) {
                paths.push(PathSettings { name, via, parents, name_servers, probe, on_down });
            }
        }
        paths
    }

    fn via(&mut self, path: &RawPath, around: Around<'_>) -> Option<Via> {
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
                    let names: Vec<&str> = around.underlays.keys().map(String::as_str).collect();
                    self.known(&via.underlay, "underlay", &names).map(Via::Underlay)
                }
                (true, true) | (false, false) => {
                    self.report(Diagnostic::error(&path.via, "not one way out").expected(FORM));
                    None
                }
            },
        }
    }

    /// One element of `parents`: its proxies, the nearest first. `is_ours`: whether that is a skyway unless it says otherwise.
    fn chain(&mut self, field: &RawHop, is_ours: bool, level: Option<Level>) -> Option<Vec<Parent>> {
        let hops: Vec<&RawHop> = match field.get()? {
            ScalarOr::Mapping(parent) if parent.chain.is_present() => {
                if parent.is_more_than_a_chain() {
                    self.report(Diagnostic::error(field, "a chain has no settings of its own").help("write them at its proxies"));
                }
                if parent.chain.get().is_some_and(Vec::is_empty) {
                    self.report(Diagnostic::error(&parent.chain, "a chain without a proxy").expected("chain: [PROXY, PROXY, …]"));
                }
                parent.chain.get()?.iter().collect()
            }
            ScalarOr::Scalar(_) | ScalarOr::Mapping(_) => vec![field],
        };
        // All of them first, so that the mistakes of all are told.
        let parents: Vec<Option<Parent>> = hops.iter().enumerate().map(|(at, hop)| self.parent(hop, is_ours && at == 0)).collect();
        let parents: Vec<Parent> = parents.into_iter().collect::<Option<_>>()?;
        self.climbs(&hops, &parents, level);
        if parents.last().is_some_and(|last| !last.is_gateway) {
            self.report(
                Diagnostic::warning(field, "the last proxy is no skyway: it alone decides what a name leads to")
                    .help("if it is one, say gateway: true; if not, let it refuse private, link-local and metadata addresses"),
            );
        }
        Some(parents)
    }

    /// A chain climbs one level at a time, or goes across. A proxy without a level may stand on any between its neighbours'.
    fn climbs(&mut self, hops: &[&RawHop], parents: &[Parent], here: Option<Level>) {
        let mut below = here;
        let mut is_next = true;
        for (hop, parent) in hops.iter().copied().zip(parents) {
            let Some(level) = parent.level else {
                is_next = false;
                continue;
            };
            let place = match hop.get() {
                Some(ScalarOr::Mapping(written)) => Place::from(&written.level),
                Some(ScalarOr::Scalar(_)) | None => Place::from(hop),
            };
            match below {
                Some(from) if (is_next && !from.leads_to(level)) || level < from => self.report(
                    Diagnostic::error(place, format!("no chain leads from level {from} to level {level}"))
                        .help("one level up at a time, or across, never down; between 3 and 4 lies 3.5"),
                ),
                Some(_) => {}
                None if here.is_none() && is_next => self.report(
                    Diagnostic::warning(place, "whether this level may follow cannot be told: this gateway says none of its own")
                        .help("set gateway.level"),
                ),
                None => {}
            }
            below = Some(level);
            is_next = true;
        }
    }

    fn parent(&mut self, field: &RawHop, is_ours: bool) -> Option<Parent> {
        let bare = RawParent::default();
        let raw = match field.get()? {
            ScalarOr::Scalar(_) => &bare,
            ScalarOr::Mapping(parent) => parent,
        };
        if raw.chain.is_present() {
            self.report(Diagnostic::error(field, "a chain inside a chain").help("write all proxies into one, the nearest first"));
            return None;
        }
        let (url, place) = match field.get()? {
            ScalarOr::Scalar(url) => (url, Place::from(field)),
            ScalarOr::Mapping(parent) => (parent.url.require("url", field, self.diagnostics)?, Place::from(&parent.url)),
        };
        if url.contains('@') {
            self.diagnostics.conceal(place.span);
            self.report(
                Diagnostic::error(place, "credentials do not stand in a URL")
                    .help("{ url: URL, auth: { name: NAME, password: { file: FILE } } }"),
            );
            return None;
        }
        let (rest, is_encrypted) = match url.strip_prefix("https://") {
            Some(rest) => (Some(rest), true),
            None => (url.strip_prefix("http://"), false),
        };
        let parsed = rest.and_then(|rest| words::host_and_port(rest.trim_end_matches('/')).ok());
        let Some((host, port)) = parsed else {
            self.report(
                Diagnostic::error(place, "not a parent proxy")
                    .value(url.clone())
                    .expected("http://HOST:PORT or https://HOST:PORT such as http://10.99.0.2:3128"),
            );
            return None;
        };
        let host = match host.parse::<IpAddr>() {
            Ok(address) => ParentHost::Address(address),
            Err(_) => ParentHost::Name(HostName::parse(&host).ok()?),
        };
        let tls = if is_encrypted {
            Some(self.client_tls(raw, place)?)
        } else {
            let ca = raw.ca.is_present().then(|| Place::from(&raw.ca));
            let client_cert = raw.client_cert.is_present().then(|| Place::from(&raw.client_cert));
            for place in ca.into_iter().chain(client_cert) {
                self.report(Diagnostic::error(place, "that is for a parent that is reached by TLS").help("write its url with https://"));
            }
            None
        };
        let auth = raw.auth.get().and_then(|user| {
            self.proxy_user(user, &raw.auth, "write the parent's password there, readable by its owner alone (mode 0600)")
        });
        let is_gateway = raw.gateway.get().copied().unwrap_or(is_ours);
        let level = self.level(&raw.level);
        Some(Parent { url: url.clone(), host, port, tls, auth, is_gateway, level })
    }

    fn client_tls(&mut self, raw: &RawParent, url: Place<'_>) -> Option<ClientTls> {
        let ca = self.file(&raw.ca);
        let own = match raw.client_cert.get() {
            None => None,
            Some(own) => Some(self.certificate_and_key(&own.certificate, &own.key, Place::from(&raw.client_cert))?),
        };
        match ClientTls::load(ca.as_deref(), own.as_ref().map(|(certificate, key)| (certificate.as_path(), key))) {
            Ok(tls) => Some(tls),
            Err(error) => {
                let place = if own.is_some() {
                    Place::from(&raw.client_cert)
                } else if ca.is_some() {
                    Place::from(&raw.ca)
                } else {
                    url
                };
                self.report(Diagnostic::error(place, error.to_string()));
                None
            }
        }
    }

    fn path_probe(&mut self, path: &RawPath, catalogue: &Catalogue, probed: Option<&HostName>) -> Option<PathProbe> {
        let usual = RawPathProbe::default();
        let raw = match path.probe.get() {
            None if path.probe.is_present() => return None,
            None => &usual,
            Some(ScalarOr::Scalar(word)) if word == "off" => return None,
            Some(ScalarOr::Scalar(word)) => {
                self.report(
                    Diagnostic::error(&path.probe, "not a probe")
                        .value(word.clone())
                        .expected("off, or a mapping such as { host: contoso-hub.azure-devices.net, every: 10s }"),
                );
                return None;
            }
            Some(ScalarOr::Mapping(probe)) => probe,
        };
        let host = if raw.host.is_present() { self.probed_host(&raw.host, catalogue) } else { probed.cloned() };
        if host.is_none() && path.probe.is_present() && !raw.host.is_present() && catalogue.wildcards().next().is_some() {
            self.report(
                Diagnostic::error(&path.probe, "the catalogue has no exact host to probe")
                    .help("name one that its wildcard stands for: host: NAME"),
            );
        }
        let every = self.read(&raw.every, words::duration).unwrap_or(PROBE_EVERY);
        if every < SHORTEST_EVERY {
            self.report(Diagnostic::error(&raw.every, "too often").expected("100ms or more"));
        } else if every > READY {
            self.report(Diagnostic::warning(&raw.every, "longer than the 30 s within which /readyz wants a success"));
        }
        let default = HealthSettings::default();
        let health = HealthSettings {
            failures: self.probe_count(&raw.failures, default.failures),
            successes: self.probe_count(&raw.successes, default.successes),
            hold_down: self.read(&raw.hold_down, words::duration).unwrap_or(default.hold_down),
            every,
            trust_interception: raw.trust_interception.get() == Some(&true),
            ..default
        };
        let ca = self.file(&raw.ca);
        let roots = match Roots::load(ca.as_deref()) {
            Ok(roots) => roots,
            Err(error) => {
                self.report(Diagnostic::error(
                    if ca.is_some() { Place::from(&raw.ca) } else { Place::from(&path.probe) },
                    error.to_string(),
                ));
                return None;
            }
        };
        let host = host?;
        let port = catalogue.get(&host).and_then(|entry| entry.ports.first().copied()).unwrap_or(HTTPS);
        Some(PathProbe { host, port, health, roots })
    }

    /// A probe goes where sensors may go, and nowhere else.
    fn probed_host(&mut self, field: &Field<String>, catalogue: &Catalogue) -> Option<HostName> {
        let name = field.get()?;
        match HostName::parse(name) {
            Ok(host) if catalogue.get(&host).is_some() => Some(host),
            Ok(_) => {
                let known: Vec<&str> = catalogue.iter().map(|(host, _)| host.as_str()).collect();
                let diagnostic = Diagnostic::error(field, "the catalogue does not list that host").value(name.clone());
                self.report(if known.len() > MOST_TOLD { diagnostic } else { diagnostic.one_of(name, &known) });
                None
            }
            Err(error) => {
                self.report(Diagnostic::error(field, error.to_string()).value(name.clone()).expected("a host of the catalogue"));
                None
            }
        }
    }

    fn probe_count(&mut self, field: &Field<u32>, default: u32) -> u32 {
        let count = field.get().copied().unwrap_or(default);
        if !PROBE_COUNTS.contains(&count) {
            self.report(Diagnostic::error(field, "not a usable number of probes").expected(format!(
                "{} to {}",
                PROBE_COUNTS.start(),
                PROBE_COUNTS.end()
            )));
        }
        count
    }

    /// A parent behind a tunnel must be a peer's, and in TUN mode needs a route there: the kill switch answers otherwise.
    pub(in super::super) fn parents_are_routed(
        &mut self,
        raw: &RawRelay,
        relay: &RelaySettings,
        tunnels: &[TunnelSettings],
        routes: &RouteSettings,
    ) {
        for path in &relay.paths {
            let Via::Tunnel(name) = &path.via else { continue };
            let Some(tunnel) = tunnels.iter().find(|tunnel| tunnel.name == *name) else { continue };
            let allowed: Vec<IpNet> = tunnel.peers.iter().flat_map(|peer| peer.allowed_ips.iter().copied()).collect();
            let on_link = tunnel.addresses.iter().map(IpNet::trunc);
            let fixed = routes.fixed.iter().filter(|route| route.tunnel == *name).map(|route| route.prefix);
            let routed: Vec<IpNet> = on_link.chain(fixed).collect();
            let holds = |prefixes: &[IpNet], address: IpAddr| prefixes.iter().any(|prefix| prefix.contains(&address));
            // Only the nearest is dialled by us.
            let nearest = path.parents.iter().filter_map(|chain| chain.first());
            for (parent, address) in nearest.filter_map(|parent| Some((parent, parent.address()?.ip()))) {
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
}

/// Hosts that are told when a name is none of them.
const MOST_TOLD: usize = 12;

impl RawParent {
    fn is_more_than_a_chain(&self) -> bool {
        self.url.is_present()
            || self.auth.is_present()
            || self.ca.is_present()
            || self.client_cert.is_present()
            || self.gateway.is_present()
            || self.level.is_present()
    }
}

/// Where the nearest parent `url` of the path `name` stands in the file.
fn written<'a>(raw: &'a RawRelay, name: &str, url: &str) -> Option<Place<'a>> {
    let paths = raw.paths.get()?.iter().filter_map(Field::get);
    let path = paths.into_iter().find(|path| path.name.get().is_some_and(|written| written == name))?;
    path.parents.get()?.iter().find_map(|parent| {
        let chain = match parent.get()? {
            ScalarOr::Scalar(_) => None,
            ScalarOr::Mapping(written) => written.chain.get(),
        };
        let nearest = chain.map_or(Some(parent), |chain| chain.first())?;
        url_of(nearest).filter(|(written, _)| *written == url).map(|(_, place)| place)
    })
}

/// The URL of a proxy, and where it stands.
fn url_of(hop: &RawHop) -> Option<(&str, Place<'_>)> {
    match hop.get()? {
        ScalarOr::Scalar(url) => Some((url.as_str(), Place::from(hop))),
        ScalarOr::Mapping(parent) => Some((parent.url.get()?.as_str(), Place::from(&parent.url))),
    }
}
