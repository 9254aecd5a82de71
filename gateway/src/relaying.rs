//! What the supervisor does for the relay: its policy and paths out of the settings, its listeners bound and served.
//!
//! A path whose settings did not change stays the same object over reloads, with what is known of its health and the
//! sessions that stand on it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use rand_core::{OsRng, RngCore};

use crate::config::{Listen, ListenerAt, ListenerKind, PathSettings, RelaySettings, Settings, UnderlaySettings, Via};
use crate::inherit::Inherited;
use crate::inside::{TunnelAcceptor, TunnelDialer, Way};
use crate::relay::{
    Acceptor, Dialer, DirectDialer, DnsListener, Limits, Listener, ListenerSettings, Listening, NtpListener, Path, PathParts, Policy,
    Protocol, Redirection, Relay, Resolver, TcpAcceptor,
};
use crate::supervisor::{RunningTunnel, StartError};

/// Sockets that one listener accepts by at most; beyond, other things are the limit.
const MOST_SOCKETS: usize = 8;

/// A listener that is bound and not yet served.
pub(crate) enum Door {
    Sessions(Listener),
    Names(DnsListener),
    Time(NtpListener),
}

/// A path and everything that it was made of.
pub(crate) struct KnownPath {
    made_of: MadeOf,
    path: Arc<Path>,
}

#[derive(PartialEq)]
struct MadeOf {
    settings: PathSettings,
    underlay: Option<UnderlaySettings>,
    name_servers: Vec<SocketAddr>,
    tuning: crate::relay::Tuning,
    gateway: String,
    level: Option<crate::relay::chain::Level>,
}

/// The relay's policy as `settings` want it, and its paths, those in `known` kept where nothing has changed.
pub(crate) fn policy(
    settings: &Settings,
    relay: &RelaySettings,
    tunnels: &[RunningTunnel],
    known: &[KnownPath],
) -> Result<(Policy, Vec<KnownPath>), StartError> {
    let mut paths = Vec::new();
    for path in &relay.paths {
        let underlay = match &path.via {
            Via::Underlay(name) => settings.underlays.get(name).cloned(),
            Via::Direct | Via::Tunnel(_) => None,
        };
        let made_of = MadeOf {
            settings: path.clone(),
            underlay,
            name_servers: relay.name_servers.clone(),
            tuning: relay.limits.tuning,
            gateway: settings.gateway.name.clone(),
            level: settings.gateway.level,
        };
        if let Some(before) = known.iter().find(|before| before.made_of == made_of) {
            paths.push(KnownPath { made_of, path: Arc::clone(&before.path) });
        } else if let Some(path) = new_path(&made_of, tunnels)? {
            paths.push(KnownPath { made_of, path: Arc::new(path) });
        }
    }
    let policy = Policy {
        sensors: relay.sensors.clone(),
        catalogue: relay.catalogue.clone(),
        paths: paths.iter().map(|known| Arc::clone(&known.path)).collect(),
        limits: relay.limits.clone(),
        gateway: settings.gateway.name.as_str().into(),
        level: settings.gateway.level,
    };
    Ok((policy, paths))
}

fn new_path(made_of: &MadeOf, tunnels: &[RunningTunnel]) -> Result<Option<Path>, StartError> {
    let settings = &made_of.settings;
    let Some(dialer) = dialer(made_of, tunnels) else { return Ok(None) };
    let resolver = if settings.name_servers.is_empty() {
        Resolver::new(&made_of.name_servers)?
    } else {
        Resolver::through(&settings.name_servers, Arc::clone(&dialer))?
    };
    let parts = PathParts {
        name: settings.name.as_str().into(),
        dialer,
        resolver,
        parents: settings.parents.clone(),
        probe: settings.probe.clone(),
        on_down: settings.on_down,
        gateway: made_of.gateway.as_str().into(),
        level: made_of.level,
    };
    Ok(Some(Path::new(parts, OsRng.next_u64(), Instant::now())))
}

fn dialer(made_of: &MadeOf, tunnels: &[RunningTunnel]) -> Option<Arc<dyn Dialer>> {
    let plain = DirectDialer { tuning: made_of.tuning, ..DirectDialer::default() };
    match &made_of.settings.via {
        Via::Direct => Some(Arc::new(plain)),
        Via::Underlay(_) => {
            let UnderlaySettings { interface, source, mark } = made_of.underlay.clone()?;
            Some(Arc::new(DirectDialer { interface, source, mark, ..plain }))
        }
        Via::Tunnel(name) => {
            let running = tunnels.iter().find(|running| running.name == *name)?;
            let way = match &running.network {
                Some(network) => Way::Network(network.clone()),
                None => Way::Device(DirectDialer { interface: Some(name.clone()), ..plain }),
            };
            Some(Arc::new(TunnelDialer { tunnel: name.clone(), snapshots: running.snapshots.clone(), way }))
        }
    }
}

/// Binds a listener on the host's addresses; None for one inside a tunnel, which needs the tunnel.
///
/// `ours`: the port may be held by a listener of this gateway that is about to go.
pub(crate) fn open_on_host(at: &ListenerAt, limits: &Limits, inherited: &mut Inherited, ours: bool) -> Result<Option<Door>, StartError> {
    let Listen::Host(address) = at.listen else { return Ok(None) };
    let failed = |source| bind_error(&at.name, address, source);
    Ok(Some(match &at.kind {
        ListenerKind::Sessions { protocol, .. } => {
            let redirection = redirection(*protocol);
            let acceptors: Vec<Box<dyn Acceptor>> = match inherited.take(&at.name) {
                Some(socket) => vec![Box::new(TcpAcceptor::of(socket, redirection, limits.tuning).map_err(failed)?)],
                None => {
                    let listening = Listening { address, late: false, shared: false, redirection, tuning: limits.tuning };
                    if !ours {
                        // Sockets that share a port share it with any of the same user: whether it is free is asked alone.
                        drop(TcpAcceptor::bind(listening).map_err(failed)?);
                    }
                    share(listening).map_err(failed)?
                }
            };
            Door::Sessions(Listener { settings: sessions(at), acceptors })
        }
        ListenerKind::Dns(_) => Door::Names(DnsListener::bind(address).map_err(failed)?),
        ListenerKind::Ntp(_) => Door::Time(NtpListener::bind(address).map_err(failed)?),
    }))
}

/// Binds a listener inside a tunnel; None for one on the host.
pub(crate) async fn open_inside(
    at: &ListenerAt,
    settings: &Settings,
    limits: &Limits,
    tunnels: &[RunningTunnel],
) -> Result<Option<Door>, StartError> {
    let Listen::Tunnel { tunnel, address, port } = &at.listen else { return Ok(None) };
    let running = tunnels.iter().find(|running| running.name == *tunnel);
    let (Some(running), Some(inside), ListenerKind::Sessions { protocol, .. }) = (running, settings.tunnel(tunnel), &at.kind) else {
        return Ok(None);
    };
    let acceptors: Vec<Box<dyn Acceptor>> = match &running.network {
        Some(network) => {
            let listener = network.listen(*port).await.ok().flatten();
            let taken = || StartError::InsideTaken { listener: at.name.clone(), tunnel: tunnel.clone(), port: *port };
            vec![Box::new(TunnelAcceptor(listener.ok_or_else(taken)?))]
        }
        None => {
            let own = inside.addresses.iter().map(ipnet::IpNet::addr).filter(|own| address.is_none_or(|only| only == *own));
            let mut acceptors = Vec::new();
            for own in own {
                let address = SocketAddr::new(own, *port);
                let listening =
                    Listening { address, late: true, shared: false, redirection: redirection(*protocol), tuning: limits.tuning };
                let failed = |source| bind_error(&at.name, address, source);
                drop(TcpAcceptor::bind(listening).map_err(failed)?);
                acceptors.extend(share(listening).map_err(failed)?);
            }
            acceptors
        }
    };
    Ok(Some(Door::Sessions(Listener { settings: sessions(at), acceptors })))
}

/// As many sockets on one port as there are processors to accept by.
fn share(listening: Listening) -> std::io::Result<Vec<Box<dyn Acceptor>>> {
    let sockets = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_SOCKETS);
    let listening = Listening { shared: true, ..listening };
    (0..sockets).map(|_| TcpAcceptor::bind(listening).map(|acceptor| Box::new(acceptor) as Box<dyn Acceptor>)).collect()
}

/// Serves what was bound.
pub(crate) fn serve(relay: &Relay, at: &ListenerAt, door: Door, resolver: &Resolver) {
    match (door, &at.kind) {
        (Door::Sessions(listener), _) => relay.serve(listener),
        (Door::Names(listener), ListenerKind::Dns(settings)) => relay.serve_names(&at.name, listener, settings.clone()),
        (Door::Time(listener), ListenerKind::Ntp(settings)) => relay.serve_time(&at.name, listener, settings.clone(), resolver.clone()),
        // Doors are opened as their kind says.
        (Door::Names(_) | Door::Time(_), _) => {}
    }
}

/// Gives a listener that stays where it is what it is to obey from now on.
pub(crate) fn change(relay: &Relay, at: &ListenerAt) {
    match &at.kind {
        ListenerKind::Sessions { .. } => relay.change_sessions(sessions(at)),
        ListenerKind::Dns(settings) => relay.change_names(&at.name, settings.clone()),
        ListenerKind::Ntp(settings) => relay.change_time(&at.name, settings.clone()),
    }
}

fn sessions(at: &ListenerAt) -> ListenerSettings {
    let (protocol, proxy_protocol, tls) = match &at.kind {
        ListenerKind::Sessions { protocol, proxy_protocol, tls } => (*protocol, proxy_protocol.clone(), tls.clone()),
        ListenerKind::Dns(_) | ListenerKind::Ntp(_) => (Protocol::Sni, Vec::new(), None),
    };
    ListenerSettings { name: at.name.clone(), protocol, proxy_protocol, tls }
}

const fn redirection(protocol: Protocol) -> Option<Redirection> {
    match protocol {
        Protocol::Transparent { by, .. } => Some(by),
        Protocol::Connect | Protocol::Sni => None,
    }
}

fn bind_error(listener: &str, address: SocketAddr, source: std::io::Error) -> StartError {
    let listener = listener.to_owned();
    if source.kind() == std::io::ErrorKind::AddrInUse {
        StartError::ListenerTaken { listener, address }
    } else {
        StartError::Listener { listener, address, source }
    }
}
