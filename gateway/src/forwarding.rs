//! Joins the halves: what the tunnels carry becomes routes, kill switch and inward filter.
//!
//! Pure: what comes of it is put into the kernel by [`crate::host`].

use ipnet::IpNet;
use routing::{Fib, InvalidInterface, InwardFilter, NextHop, Protected, Route, Service, TunnelFilter};
use tunnel::TunnelSettings;

use crate::config::{Listen, RouteSettings, Settings};

/// Metric of the on-link prefixes: a tunnel's own addresses come before any route.
const ON_LINK_METRIC: u32 = 1;

/// The routes that shall be in the kernel for the tunnels that have a TUN device.
pub(crate) fn fib(settings: &Settings, tun: &[&TunnelSettings]) -> Fib {
    let on_link = tun.iter().flat_map(|tunnel| {
        tunnel.addresses.iter().map(|address| Route::new(*address, NextHop::Interface(tunnel.name.clone()), ON_LINK_METRIC))
    });
    let fixed = fixed(&settings.routes, tun);
    let routes: Vec<Route> = on_link.chain(fixed).collect();
    Fib::build(&routes, &protected(tun).collect::<Vec<_>>())
}

/// The kill switch alone, for the time before the tunnels are up.
pub(crate) fn kill_switch(settings: &Settings, tun: &[&TunnelSettings]) -> Fib {
    let routed = fixed(&settings.routes, tun).map(|route| {
        let interface = match route.next_hop() {
            NextHop::Interface(name) => name.clone(),
            NextHop::Unreachable => String::new(),
        };
        Protected { prefix: route.prefix(), interface }
    });
    Fib::build(&[], &routed.chain(protected(tun)).collect::<Vec<_>>())
}

/// What may be opened from the tunnels: `routes.inbound`, and the listeners that were put inside one.
pub(crate) fn inward_filter(settings: &Settings, tun: &[&TunnelSettings]) -> Result<InwardFilter, InvalidInterface> {
    let tunnels = tun.iter().map(|tunnel| TunnelFilter::new(&tunnel.name, &settings.routes.inbound, &services(settings, tunnel)));
    Ok(InwardFilter { tunnels: tunnels.collect::<Result<_, _>>()? })
}

fn fixed<'a>(routes: &'a RouteSettings, tun: &'a [&TunnelSettings]) -> impl Iterator<Item = Route> + 'a {
    let into_tun = routes.fixed.iter().filter(|route| tun.iter().any(|tunnel| tunnel.name == route.tunnel));
    into_tun.map(|route| Route::new(route.prefix, NextHop::Interface(route.tunnel.clone()), route.metric))
}

fn protected<'a>(tun: &'a [&TunnelSettings]) -> impl Iterator<Item = Protected> + 'a {
    tun.iter().flat_map(|tunnel| {
        let allowed = tunnel.peers.iter().flat_map(|peer| peer.allowed_ips.iter());
        let on_link = tunnel.addresses.iter().map(IpNet::trunc);
        allowed.copied().chain(on_link).map(|prefix| Protected { prefix, interface: tunnel.name.clone() })
    })
}

fn services(settings: &Settings, tunnel: &TunnelSettings) -> Vec<Service> {
    let listeners = settings.relay.iter().flat_map(|relay| &relay.listeners);
    let mut services = Vec::new();
    for listener in listeners {
        match &listener.listen {
            Listen::Tunnel { tunnel: name, address, port } if *name == tunnel.name => {
                let addresses = tunnel.addresses.iter().map(IpNet::addr).filter(|own| address.is_none_or(|only| only == *own));
                services.extend(addresses.map(|address| Service { address, port: *port }));
            }
            Listen::Tunnel { .. } | Listen::Host(_) => {}
        }
    }
    services
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Settings {
        let folder = tempfile::tempdir().expect("a folder");
        let key = folder.path().join("key");
        std::fs::write(&key, &*tunnel::PrivateKey::generate().to_base64()).expect("written");
        std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("mode");
        let text = format!(
            "version: 1
gateway: {{ name: a }}
tunnels:
  azure:
    private_key: {{ file: key }}
    listen: 51820
    addresses: [10.99.0.1/30]
    peers:
      vnet:
        public_key: {}
        allowed_ips: [10.99.0.2/32, 10.20.0.0/16, 10.30.0.0/16, 10.20.4.0/24]
routes: {{ static: [ {{ prefix: 10.20.0.0/16, via: {{ tunnel: azure }} }} ], inbound: [10.1.0.0/16] }}
relay:
  catalogue: {{ hosts: [a.example.net] }}
  paths: [ {{ name: out, via: direct }} ]
  listeners:
    - {{ name: inside, kind: connect, listen: {{ tunnel: azure, port: 3128 }} }}
    - {{ name: outside, kind: connect, listen: \"0.0.0.0:3129\" }}
",
            tunnel::PrivateKey::generate().public_key()
        );
        let loaded = crate::config::parse(text, folder.path());
        loaded.settings.unwrap_or_else(|| panic!("{}", loaded.diagnostics.render("example", &loaded.source, false)))
    }

    fn shown(fib: &Fib) -> Vec<String> {
        fib.routes().map(|route| format!("{} {}", route.prefix(), route.next_hop())).collect()
    }

    #[test]
    fn every_carried_prefix_has_a_kill_switch_and_none_shadows_a_live_route() {
        let settings = example();
        let tun: Vec<&TunnelSettings> = settings.tunnels.iter().collect();
        let fib = shown(&fib(&settings, &tun));
        for expected in [
            "10.20.0.0/16 dev azure",
            "10.20.0.0/16 unreachable",
            "10.30.0.0/16 unreachable",
            "10.99.0.0/30 dev azure",
            "10.99.0.0/30 unreachable",
        ] {
            assert!(fib.iter().any(|route| route == expected), "{expected} is not in {fib:?}");
        }
        for shadow in ["10.20.4.0/24 unreachable", "10.99.0.2/32 unreachable"] {
            assert!(!fib.iter().any(|route| route == shadow), "{shadow} would shadow a live route");
        }
    }

    #[test]
    fn before_the_tunnel_is_up_the_same_prefixes_are_unreachable() {
        let settings = example();
        let tun: Vec<&TunnelSettings> = settings.tunnels.iter().collect();
        let fib = shown(&kill_switch(&settings, &tun));
        assert!(fib.iter().all(|route| route.ends_with("unreachable")), "{fib:?}");
        assert!(fib.contains(&"10.20.0.0/16 unreachable".to_owned()) && fib.contains(&"10.99.0.2/32 unreachable".to_owned()), "{fib:?}");
    }

    #[test]
    fn only_listeners_inside_the_tunnel_are_opened_towards_it() {
        let settings = example();
        let tun: Vec<&TunnelSettings> = settings.tunnels.iter().collect();
        let filter = inward_filter(&settings, &tun).expect("a filter");
        let services: Vec<u16> = filter.tunnels[0].services().iter().map(|service| service.port).collect();
        assert_eq!(services, [3128]);
        assert_eq!(filter.tunnels[0].inbound().len(), 1);
    }
}
