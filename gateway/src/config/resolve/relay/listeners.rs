//! `relay.listeners`: where sensors connect, what is spoken there, and that no two want the same place.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use tunnel::{Mode, TunnelSettings};

use super::super::super::diagnostic::{Diagnostic, Place};
use super::super::super::field::{Field, ScalarOr};
use super::super::super::raw::{
    RawClientCertificates, RawDns, RawKind, RawListener, RawNameRule, RawRedirection, RawRelay, RawTls, RawTransparent,
};
use super::super::super::settings::{Listen, ListenerAt, ListenerKind};
use super::super::{Context, words};
use crate::relay::catalogue::HTTPS;
use crate::relay::host::HostName;
use crate::relay::tls::{ClientCertificates, ServerTls};
use crate::relay::{DnsSettings, NameRule, NtpServer, NtpSettings, Protocol, Redirection};

/// Of NTP.
const NTP: u16 = 123;

impl Context<'_> {
    pub(super) fn listeners(&mut self, raw: &RawRelay, tunnels: &[TunnelSettings]) -> Vec<ListenerAt> {
        let mut listeners: Vec<ListenerAt> = Vec::new();
        for field in raw.listeners.get().into_iter().flatten() {
            let Some(listener) = field.get() else { continue };
            let name = listener.name.require("name", field, self.diagnostics).cloned();
            let kind = listener.kind.require("kind", field, self.diagnostics).copied();
            listener.listen.require("listen", field, self.diagnostics);
            let listen = self.listen(listener, tunnels);
            let kind = kind.and_then(|kind| {
                self.has_only_its_own(listener, kind);
                self.listener_kind(kind, listener, Place::from(field), listen.as_ref(), tunnels)
            });
            let (Some(name), Some(kind), Some(listen)) = (name, kind, listen) else { continue };
            if listeners.iter().any(|other| other.name == name) {
                self.report(Diagnostic::error(&listener.name, "two listeners have that name"));
            }
            let is_there = |other: &&ListenerAt| share_a_transport(&other.kind, &kind) && clash(&other.listen, &listen, tunnels);
            if let Some(other) = listeners.iter().find(is_there) {
                self.report(Diagnostic::error(&listener.listen, format!("the listener {} is there already", other.name)));
            }
            listeners.push(ListenerAt { name, listen, kind });
        }
        self.answers_lead_somewhere(raw, &listeners);
        listeners
    }

    /// Puts down what only listeners of another kind have.
    fn has_only_its_own(&mut self, raw: &RawListener, kind: RawKind) {
        let parts = [
            (raw.tls.is_present(), Place::from(&raw.tls), "connect", kind == RawKind::Connect),
            (
                raw.proxy_protocol.is_present(),
                Place::from(&raw.proxy_protocol),
                "connect and sni",
                matches!(kind, RawKind::Connect | RawKind::Sni),
            ),
            (raw.transparent.is_present(), Place::from(&raw.transparent), "transparent", kind == RawKind::Transparent),
            (raw.dns.is_present(), Place::from(&raw.dns), "dns", kind == RawKind::Dns),
            (raw.ntp.is_present(), Place::from(&raw.ntp), "ntp", kind == RawKind::Ntp),
        ];
        for (_, place, whose, _) in parts.into_iter().filter(|(is_present, _, _, is_its_own)| *is_present && !is_its_own) {
            self.report(Diagnostic::error(place, format!("only listeners of the kind {whose} have that")));
        }
    }

    fn listener_kind(
        &mut self,
        kind: RawKind,
        raw: &RawListener,
        place: Place<'_>,
        listen: Option<&Listen>,
        tunnels: &[TunnelSettings],
    ) -> Option<ListenerKind> {
        match kind {
            RawKind::Connect => {
                let proxy_protocol = self.load_balancers(&raw.proxy_protocol);
                let tls = if raw.tls.is_present() { Some(self.server_tls(raw.tls.get()?, &raw.tls)?) } else { None };
                Some(ListenerKind::Sessions { protocol: Protocol::Connect, proxy_protocol, tls })
            }
            RawKind::Sni => {
                let proxy_protocol = self.load_balancers(&raw.proxy_protocol);
                Some(ListenerKind::Sessions { protocol: Protocol::Sni, proxy_protocol, tls: None })
            }
            RawKind::Transparent => {
                if let Some(Listen::Tunnel { tunnel, .. }) = listen
                    && tunnels.iter().any(|known| known.name == *tunnel && known.mode == Mode::Userspace)
                {
                    self.report(Diagnostic::error(&raw.listen, "the kernel leads nothing into a tunnel in userspace mode"));
                }
                let protocol = transparent(raw.transparent.get());
                Some(ListenerKind::Sessions { protocol, proxy_protocol: Vec::new(), tls: None })
            }
            RawKind::Dns => {
                self.is_on_the_host(raw, listen, "dns");
                self.dns(raw, place, listen).map(ListenerKind::Dns)
            }
            RawKind::Ntp => {
                self.is_on_the_host(raw, listen, "ntp");
                self.ntp(raw, place).map(ListenerKind::Ntp)
            }
        }
    }

    fn is_on_the_host(&mut self, raw: &RawListener, listen: Option<&Listen>, kind: &str) {
        if let Some(Listen::Tunnel { .. }) = listen {
            self.report(Diagnostic::error(&raw.listen, format!("{kind} listeners are on the host's addresses alone, not in a tunnel")));
        }
    }

    fn load_balancers(&mut self, field: &Field<Vec<Field<String>>>) -> Vec<IpNet> {
        let prefixes = self.read_all(field, words::prefix);
        if prefixes.iter().any(|prefix| prefix.prefix_len() == 0) {
            self.report(
                Diagnostic::warning(field, "anybody can claim to be any sensor: a PROXY header is believed from everywhere")
                    .help("list the load balancer's own addresses"),
            );
        }
        prefixes
    }

    fn server_tls(&mut self, raw: &RawTls, place: &Field<RawTls>) -> Option<ServerTls> {
        let own = self.certificate_and_key(&raw.certificate, &raw.key, Place::from(place));
        let client_ca = self.file(&raw.client_ca);
        if raw.client_certificates.is_present() && client_ca.is_none() {
            self.report(
                Diagnostic::error(&raw.client_certificates, "no authority is named that could vouch for them").help("add client_ca: FILE"),
            );
        }
        let client = match raw.client_certificates.get() {
            Some(RawClientCertificates::Required) | None => ClientCertificates::Required,
            Some(RawClientCertificates::Optional) => ClientCertificates::Optional,
        };
        let (certificate, key) = own?;
        match ServerTls::load(&certificate, &key, client_ca.as_deref(), client) {
            Ok(tls) => Some(tls),
            Err(error) => {
                self.report(Diagnostic::error(place, error.to_string()));
                None
            }
        }
    }

    fn dns(&mut self, raw: &RawListener, place: Place<'_>, listen: Option<&Listen>) -> Option<DnsSettings> {
        let usual = RawDns::default();
        let dns = raw.dns.get().unwrap_or(&usual);
        let mut answers = self.read_all(&dns.answers, words::address);
        let own = match listen {
            Some(Listen::Host(address)) if !words::is_everywhere(address.ip()) => Some(address.ip()),
            Some(Listen::Host(_) | Listen::Tunnel { .. }) | None => None,
        };
        if !dns.answers.is_present() || dns.answers.get().is_some_and(Vec::is_empty) {
            answers.extend(own);
            if answers.is_empty() && matches!(listen, Some(Listen::Host(_))) {
                let place = if raw.dns.is_present() { Place::from(&raw.dns) } else { place };
                self.report(
                    Diagnostic::error(place, "on every address of the host: which one are sensors answered with?")
                        .expected("dns: { answers: [ADDRESS] }, where the sni listener is"),
                );
            }
        }
        if answers.iter().any(|answer| words::is_everywhere(*answer) || answer.is_multicast()) {
            self.report(
                Diagnostic::error(&dns.answers, "not an address that a sensor can connect to").expected("this gateway's own addresses"),
            );
        }
        let forward = self.read_all(&dns.forward, words::name_server);
        if let Some(Listen::Host(own)) = listen
            && forward.contains(own)
        {
            self.report(Diagnostic::error(&dns.forward, "that is this listener itself"));
        }
        let default = DnsSettings::default();
        let ttl = self.read(&dns.ttl, words::duration).unwrap_or(default.ttl);
        if ttl.subsec_nanos() != 0 {
            self.report(Diagnostic::error(&dns.ttl, "not whole seconds").expected("for example 60s"));
        }
        Some(DnsSettings { answers, ttl, forward })
    }

    fn ntp(&mut self, raw: &RawListener, place: Place<'_>) -> Option<NtpSettings> {
        let ntp = raw.ntp.require("ntp", place, self.diagnostics)?;
        ntp.servers.require("servers", &raw.ntp, self.diagnostics);
        if ntp.servers.get().is_some_and(Vec::is_empty) {
            self.report(
                Diagnostic::error(&ntp.servers, "no server: nobody would be answered").expected("names or addresses of time servers"),
            );
        }
        let servers = self.read_all(&ntp.servers, |text| words::host_with_usual_port(text, NTP));
        let servers = servers.into_iter().filter_map(|(host, port)| match host.parse::<IpAddr>() {
            Ok(address) => Some(NtpServer::Address(SocketAddr::new(address, port))),
            Err(_) => HostName::parse(&host).ok().map(|host| NtpServer::Name { host, port }),
        });
        Some(NtpSettings { servers: servers.collect() })
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

    /// What a `dns` listener answers, sensors connect to at port 443.
    fn answers_lead_somewhere(&mut self, raw: &RawRelay, listeners: &[ListenerAt]) {
        let takes_tls = |listener: &ListenerAt| match (&listener.kind, &listener.listen) {
            (ListenerKind::Sessions { protocol: Protocol::Sni | Protocol::Transparent { .. }, .. }, Listen::Host(address)) => {
                address.port() == HTTPS
            }
            (ListenerKind::Sessions { .. } | ListenerKind::Dns(_) | ListenerKind::Ntp(_), Listen::Host(_) | Listen::Tunnel { .. }) => false,
        };
        if listeners.iter().any(takes_tls) {
            return;
        }
        for field in raw.listeners.get().into_iter().flatten() {
            if field.get().is_some_and(|listener| listener.kind.get() == Some(&RawKind::Dns)) {
                self.report(
                    Diagnostic::warning(field, "no sni listener is on port 443 of the host: that is where sensors go with the answer")
                        .help("add { name: tls, kind: sni, listen: \"ADDRESS:443\" }"),
                );
            }
        }
    }
}

fn transparent(raw: Option<&RawTransparent>) -> Protocol {
    let by = match raw.and_then(|raw| raw.by.get()) {
        Some(RawRedirection::Redirect) | None => Redirection::Redirect,
        Some(RawRedirection::Tproxy) => Redirection::Tproxy,
    };
    let name = match raw.and_then(|raw| raw.sni.get()) {
        Some(RawNameRule::Require) | None => NameRule::Require,
        Some(RawNameRule::IfPresent) => NameRule::IfPresent,
    };
    Protocol::Transparent { by, name }
}

/// Whether two listeners want the same of TCP and UDP: time queries come by UDP alone, names by both.
const fn share_a_transport(one: &ListenerKind, other: &ListenerKind) -> bool {
    !matches!((one, other), (ListenerKind::Ntp(_), ListenerKind::Sessions { .. }) | (ListenerKind::Sessions { .. }, ListenerKind::Ntp(_)))
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
