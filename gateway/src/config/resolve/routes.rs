//! `routes`: what is sent into which tunnel, and what tunnels may open towards this site.

use ipnet::IpNet;
use tunnel::{Mode, TunnelSettings};

use super::super::diagnostic::Diagnostic;
use super::super::raw::RawConfig;
use super::super::settings::{RouteSettings, StaticRoute};
use super::{Context, words};

/// Default of `metric`.
const METRIC: u32 = 100;

impl Context<'_> {
    pub(super) fn routes(&mut self, raw: &RawConfig, tunnels: &[TunnelSettings]) -> RouteSettings {
        let Some(raw) = raw.routes.get() else { return RouteSettings::default() };
        for entry in raw.bgp.get().iter().flat_map(|entries| &entries.0) {
            self.report(Diagnostic::error(entry, "BGP is not part of this version of skyway").help("leave `bgp: { }` empty"));
        }
        let mut fixed: Vec<StaticRoute> = Vec::new();
        for field in raw.fixed.get().into_iter().flatten() {
            let Some(route) = field.get() else { continue };
            route.prefix.require("prefix", field, self.diagnostics);
            let prefix = self.read(&route.prefix, words::prefix);
            let via = route.via.require("via", field, self.diagnostics);
            let name = via.and_then(|via| {
                via.tunnel.require("tunnel", &route.via, self.diagnostics);
                self.known_tunnel(&via.tunnel)
            });
            let metric = route.metric.get().copied().unwrap_or(METRIC);
            if metric == 0 || metric == u32::MAX {
                self.report(Diagnostic::error(&route.metric, "not a usable metric").expected(format!("1 to {}", u32::MAX - 1)));
            }
            let (Some(prefix), Some(name)) = (prefix, name) else { continue };
            if fixed.iter().any(|other| other.prefix == prefix && other.metric == metric) {
                self.report(
                    Diagnostic::error(&route.prefix, "there is a route with that prefix and metric already")
                        .help("give the second one a higher metric"),
                );
            }
            if tunnels.iter().any(|tunnel| tunnel.name == name && tunnel.mode == Mode::Userspace) {
                self.report(
                    Diagnostic::error(&route.via, format!("the tunnel {name} is in userspace mode: the kernel cannot route into it"))
                        .help("use mode: tun, or reach what is behind the tunnel by a relay path"),
                );
            }
            if let Some(tunnel) = tunnels.iter().find(|tunnel| tunnel.name == name)
                && !self.incomplete.contains(&name)
                && !carried(tunnel, &prefix)
            {
                self.report(
                    Diagnostic::error(&route.prefix, format!("no peer of the tunnel {name} has that prefix in its allowed_ips"))
                        .value(prefix.to_string())
                        .help(format!("add {prefix} to the allowed_ips of the peer that leads there")),
                );
            }
            fixed.push(StaticRoute { prefix, tunnel: name, metric });
        }
        RouteSettings { fixed, inbound: self.read_all(&raw.inbound, words::prefix) }
    }
}

/// Whether some peer takes at least a part of `prefix`.
fn carried(tunnel: &TunnelSettings, prefix: &IpNet) -> bool {
    let allowed = tunnel.peers.iter().flat_map(|peer| peer.allowed_ips.iter());
    { allowed }.any(|allowed| allowed.contains(prefix) || prefix.contains(allowed))
}
