//! Owns every running part: prepares what can fail, applies what cannot, and takes it all down in order.
//!
//! ```text
//!  start:  prepare (sockets, devices, listeners, nft) ─► kill switch ─► inward filter ─► addresses ─► routes ─► lanes ─► relay
//!  reload: load ─► Plan::between ─► prepare ─► apply ─► generation + 1        any failure: nothing was changed
//!  stop:   drain the relay ─► lanes end, devices go ─► the kill switch stays
//! ```

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use routing::io::{Kernel, KernelError, nft};
use routing::{Fib, render};
use tokio::sync::{Mutex, watch};
use tracing::{error, info, warn};
use tunnel::io::{Lane, LaneSettings, PreparedPort, Tun, TunError, UdpError, UdpSocket, Wake};
use tunnel::userspace::{Network, network};
use tunnel::{Mode, PeerChange, Snapshot, TunnelSettings};

use crate::config::{self, Diagnostics, Listen, ListenerAt, ReadError, RelaySettings, Settings, UnderlaySettings, Via};
use crate::endpoints::{Wanted, watch_endpoints};
use crate::forwarding;
use crate::inside::{TunnelAcceptor, TunnelDialer, Way};
use crate::plan::{Change, NeedsRestart, Plan};
use crate::relay::{Acceptor, Dialer, DirectDialer, Listener, ListenerSettings, Path, Policy, Relay, Resolver, ResolverError, TcpAcceptor};

/// The running gateway.
pub struct Supervisor {
    /// Where the configuration is read from at a reload.
    file: PathBuf,
    settings: Settings,
    tunnels: Vec<RunningTunnel>,
    /// Present if any tunnel has a TUN device.
    kernel: Option<Kernel>,
    relay: Option<Relay>,
    pub(crate) started: Instant,
    pub(crate) started_at: SystemTime,
    pub(crate) generation: u64,
    /// Routes that wait for something, as the last reconciliation left them.
    pub(crate) waiting: Vec<routing::Route>,
}

pub(crate) struct RunningTunnel {
    pub(crate) name: String,
    pub(crate) mode: Mode,
    lane: Arc<Lane>,
    pub(crate) snapshots: watch::Receiver<Snapshot>,
    network: Option<Network>,
    wanted: watch::Sender<Wanted>,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("tunnel {tunnel}: {source}")]
    Tun { tunnel: String, source: TunError },
    #[error("tunnel {tunnel}: {source}")]
    Udp { tunnel: String, source: UdpError },
    #[error("tunnel {tunnel}: {source}")]
    Lane { tunnel: String, source: std::io::Error },
    #[error(
        "tunnel {tunnel}: endpoint {endpoint} lies inside the prefixes that are routed into the tunnel, and its datagrams cannot be marked to skip that route; \
         grant CAP_NET_ADMIN, or leave {endpoint} out of allowed_ips and routes"
    )]
    Unmarked { tunnel: String, endpoint: String },
    #[error("listener {listener}: {address} is taken by another program: choose another `listen`, or stop what holds it (ss -tlpn)")]
    ListenerTaken { listener: String, address: SocketAddr },
    #[error("listener {listener}: {address} cannot be bound: {source}")]
    Listener { listener: String, address: SocketAddr, source: std::io::Error },
    #[error("listener {listener}: port {port} inside the tunnel {tunnel} is taken")]
    InsideTaken { listener: String, tunnel: String, port: u16 },
    #[error("routes: {0}")]
    Kernel(#[from] KernelError),
    #[error("inward filter: {0}")]
    Nft(#[from] nft::NftError),
    #[error("inward filter: {0}")]
    Filter(#[from] routing::InvalidInterface),
    #[error("{0}")]
    Resolver(#[from] ResolverError),
}

#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    #[error("{0}")]
    Read(#[from] ReadError),
    #[error("the file has errors; nothing was changed")]
    Invalid { diagnostics: Diagnostics, text: String },
    #[error("{0}")]
    NeedsRestart(#[from] NeedsRestart),
    #[error("{0}; nothing was changed")]
    Prepare(#[from] StartError),
}

/// What a reload did.
#[derive(Debug, Clone)]
pub struct Reloaded {
    pub changes: Vec<String>,
    pub generation: u64,
}

/// Everything that a start needs and that can fail.
struct Prepared {
    tunnels: Vec<PreparedTunnel>,
    kernel: Option<Kernel>,
    /// Listeners on the host's addresses, bound.
    host: Vec<(ListenerAt, TcpAcceptor)>,
    resolver: Resolver,
}

struct PreparedTunnel {
    settings: TunnelSettings,
    mode: Mode,
    socket: UdpSocket,
    port: PreparedPort,
    network: Option<Network>,
    wake: Wake,
}

impl Supervisor {
    /// Brings everything up, or nothing: what was made is taken down again if a later part fails.
    pub async fn start(file: PathBuf, settings: Settings) -> Result<Self, StartError> {
        let prepared = prepare(&settings).await?;
        let mut supervisor = Self {
            file,
            settings,
            tunnels: Vec::new(),
            kernel: prepared.kernel,
            relay: None,
            started: Instant::now(),
            started_at: SystemTime::now(),
            generation: 1,
            waiting: Vec::new(),
        };
        supervisor.open_kernel(&prepared.tunnels).await?;
        for tunnel in prepared.tunnels {
            let running = RunningTunnel::start(tunnel, &supervisor.settings.underlays, &prepared.resolver)?;
            supervisor.tunnels.push(running);
        }
        if let Some(relay) = supervisor.settings.relay.clone() {
            let policy = supervisor.policy(&relay)?;
            let running = Relay::new(policy);
            for listener in supervisor.listeners(&relay, prepared.host).await? {
                running.serve(listener);
            }
            supervisor.relay = Some(running);
        }
        Ok(supervisor)
    }

    /// Reads the file again and carries out the difference.
    pub async fn reload(&mut self) -> Result<Reloaded, ReloadError> {
        let loaded = config::load(&self.file)?;
        let Some(desired) = loaded.settings else {
            return Err(ReloadError::Invalid { diagnostics: loaded.diagnostics, text: loaded.source });
        };
        let plan = Plan::between(&self.settings, &desired)?;
        let changes: Vec<String> = plan.changes.iter().map(ToString::to_string).collect();
        if plan.is_empty() {
            return Ok(Reloaded { changes, generation: self.generation });
        }
        // All that can fail: the resolver's set-up, the filter's text and the rules of nft.
        let policy = desired.relay.as_ref().map(|relay| self.policy(relay)).transpose()?;
        self.apply_kernel(&desired).await?;
        self.apply(&plan, policy);
        self.settings = desired;
        self.settle().await;
        self.generation += 1;
        info!(generation = self.generation, changes = changes.len(), "reloaded");
        for change in &changes {
            info!(change, "changed");
        }
        Ok(Reloaded { changes, generation: self.generation })
    }

    /// Ends the relay's sessions in order, then the tunnels. The kill switch stays.
    pub async fn stop(&mut self) {
        if let Some(relay) = self.relay.take() {
            let cut = relay.drain().await;
            if cut > 0 {
                warn!(sessions = cut, "sessions were cut at the end of the drain");
            }
        }
        let tunnels = std::mem::take(&mut self.tunnels);
        // Lanes join their threads.
        let _ended = tokio::task::spawn_blocking(move || drop(tunnels)).await;
    }

    pub(crate) fn file(&self) -> &std::path::Path {
        &self.file
    }

    pub(crate) const fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(crate) fn tunnels(&self) -> &[RunningTunnel] {
        &self.tunnels
    }

    pub(crate) const fn relay(&self) -> Option<&Relay> {
        self.relay.as_ref()
    }

    /// A future that ends when a lane does: the gateway is then of no use.
    pub fn lane_ended(&self) -> impl Future<Output = String> + use<> {
        let watched: Vec<_> = self.tunnels.iter().map(|tunnel| (tunnel.name.clone(), tunnel.snapshots.clone())).collect();
        async move {
            let mut set = tokio::task::JoinSet::new();
            for (name, mut snapshots) in watched {
                set.spawn(async move {
                    while snapshots.changed().await.is_ok() {}
                    name
                });
            }
            match set.join_next().await {
                Some(Ok(name)) => name,
                Some(Err(_)) | None => std::future::pending().await,
            }
        }
    }

    /// Kill switch first, then the filter, then addresses and routes.
    async fn open_kernel(&mut self, prepared: &[PreparedTunnel]) -> Result<(), StartError> {
        let Some(kernel) = &self.kernel else { return Ok(()) };
        let tun: Vec<&TunnelSettings> = prepared.iter().filter(|tunnel| tunnel.mode == Mode::Tun).map(|tunnel| &tunnel.settings).collect();
        kernel.ensure_rules().await?;
        kernel.reconcile(&forwarding::kill_switch(&self.settings, &tun)).await?;
        let filter = forwarding::inward_filter(&self.settings, &tun)?;
        nft::apply(&render::nft::inward_filter_script(&self.settings.gateway.name, &filter)).await?;
        for tunnel in &tun {
            kernel.set_addresses(&tunnel.name, &tunnel.addresses).await?;
            kernel.set_up(&tunnel.name, tunnel.mtu).await?;
        }
        let report = kernel.reconcile(&forwarding::fib(&self.settings, &tun)).await?;
        self.waiting = report.waiting;
        warn_if_not_forwarding(&self.settings);
        Ok(())
    }

    /// The kernel's part of a reload that can fail: the filter, and the routes of both configurations together.
    async fn apply_kernel(&self, desired: &Settings) -> Result<(), StartError> {
        let Some(kernel) = &self.kernel else { return Ok(()) };
        let tun = self.tun(desired);
        let filter = forwarding::inward_filter(desired, &tun)?;
        let before = forwarding::inward_filter(&self.settings, &self.tun(&self.settings))?;
        if filter != before {
            nft::apply(&render::nft::inward_filter_script(&desired.gateway.name, &filter)).await?;
        }
        let fib = forwarding::fib(desired, &tun);
        if let Err(error) = kernel.reconcile(&fib).await {
            // Back to what was: a failed reload changes nothing.
            self.restore(kernel).await;
            return Err(error.into());
        }
        Ok(())
    }

    async fn restore(&self, kernel: &Kernel) {
        let tun = self.tun(&self.settings);
        let fib: Fib = forwarding::fib(&self.settings, &tun);
        if let Err(error) = kernel.reconcile(&fib).await {
            error!(%error, "the routes from before the reload cannot be restored");
        }
        if let Ok(filter) = forwarding::inward_filter(&self.settings, &tun)
            && let Err(error) = nft::apply(&render::nft::inward_filter_script(&self.settings.gateway.name, &filter)).await
        {
            error!(%error, "the inward filter from before the reload cannot be restored");
        }
    }

    /// The part of a reload that cannot fail.
    fn apply(&self, plan: &Plan, mut policy: Option<Policy>) {
        for change in &plan.changes {
            match change {
                Change::AddPeer { tunnel, peer } => self.change(tunnel, PeerChange::Add(peer.clone())),
                Change::EditPeer { tunnel, peer } => self.change(tunnel, PeerChange::Edit(peer.clone())),
                Change::RemovePeer { tunnel, key, .. } => self.change(tunnel, PeerChange::Remove(*key)),
                Change::SetMtu { tunnel, mtu } => {
                    if let Some(running) = self.tunnels.iter().find(|running| running.name == *tunnel) {
                        running.lane.set_mtu(*mtu);
                    }
                }
                // Underlays change how endpoints resolve and how paths leave.
                Change::SetUnderlays(_) | Change::SetPolicy(_) => {
                    if let (Some(relay), Some(policy)) = (&self.relay, policy.take()) {
                        relay.set_policy(policy);
                    }
                }
                Change::SetRoutes(_) | Change::OrderPeers { .. } => {}
            }
        }
    }

    /// After the settings have changed: what follows them by itself.
    async fn settle(&mut self) {
        for running in &self.tunnels {
            let Some(tunnel) = self.settings.tunnel(&running.name) else { continue };
            running.wanted.send_replace(Wanted { peers: tunnel.peers.clone(), underlays: self.settings.underlays.clone() });
        }
        let Some(kernel) = &self.kernel else { return };
        let tun = self.tun(&self.settings);
        for tunnel in &tun {
            if let Err(error) = kernel.set_up(&tunnel.name, tunnel.mtu).await {
                error!(%error, "MTU not set");
            }
        }
        match kernel.reconcile(&forwarding::fib(&self.settings, &tun)).await {
            Ok(report) => self.waiting = report.waiting,
            Err(error) => error!(%error, "routes are not as they should be"),
        }
    }

    fn change(&self, tunnel: &str, change: PeerChange) {
        if let Some(running) = self.tunnels.iter().find(|running| running.name == tunnel) {
            running.lane.change(change);
        }
    }

    /// The tunnels of `settings` that have a TUN device here.
    fn tun<'a>(&self, settings: &'a Settings) -> Vec<&'a TunnelSettings> {
        let is_tun = |tunnel: &&TunnelSettings| self.tunnels.iter().any(|running| running.name == tunnel.name && running.mode == Mode::Tun);
        settings.tunnels.iter().filter(is_tun).collect()
    }

    fn policy(&self, relay: &RelaySettings) -> Result<Policy, StartError> {
        let resolver = Resolver::new(&relay.name_servers)?;
        let mut paths = Vec::new();
        for path in &relay.paths {
            let Some(dialer) = self.dialer(&path.via) else { continue };
            paths.push(Arc::new(Path {
                name: path.name.as_str().into(),
                dialer,
                resolver: resolver.clone(),
                parents: path.parents.clone(),
            }));
        }
        Ok(Policy { sensors: relay.sensors.clone(), catalogue: relay.catalogue.clone(), paths, limits: relay.limits.clone() })
    }

    fn dialer(&self, via: &Via) -> Option<Arc<dyn Dialer>> {
        match via {
            Via::Direct => Some(Arc::new(DirectDialer::default())),
            Via::Underlay(name) => {
                let UnderlaySettings { interface, source, mark } = self.settings.underlays.get(name)?.clone();
                Some(Arc::new(DirectDialer { interface, source, mark }))
            }
            Via::Tunnel(name) => {
                let running = self.tunnels.iter().find(|running| running.name == *name)?;
                let way = match &running.network {
                    Some(network) => Way::Network(network.clone()),
                    None => Way::Device(DirectDialer { interface: Some(name.clone()), source: None, mark: None }),
                };
                Some(Arc::new(TunnelDialer { tunnel: name.clone(), snapshots: running.snapshots.clone(), way }))
            }
        }
    }

    async fn listeners(&self, relay: &RelaySettings, host: Vec<(ListenerAt, TcpAcceptor)>) -> Result<Vec<Listener>, StartError> {
        let open = |at: &ListenerAt, acceptor: Box<dyn Acceptor>| Listener {
            settings: ListenerSettings { name: at.name.clone(), protocol: at.protocol },
            acceptor,
        };
        let mut listeners: Vec<Listener> = host.into_iter().map(|(at, acceptor)| open(&at, Box::new(acceptor))).collect();
        for at in &relay.listeners {
            let Listen::Tunnel { tunnel, address, port } = &at.listen else { continue };
            let (Some(running), Some(settings)) =
                (self.tunnels.iter().find(|running| running.name == *tunnel), self.settings.tunnel(tunnel))
            else {
                continue;
            };
            match &running.network {
                Some(network) => {
                    let inside = network.listen(*port).await.ok().flatten();
                    let inside =
                        inside.ok_or_else(|| StartError::InsideTaken { listener: at.name.clone(), tunnel: tunnel.clone(), port: *port })?;
                    listeners.push(open(at, Box::new(TunnelAcceptor(inside))));
                }
                None => {
                    let own = settings.addresses.iter().map(ipnet::IpNet::addr).filter(|own| address.is_none_or(|only| only == *own));
                    for own in own {
                        listeners.push(open(at, Box::new(bind(&at.name, SocketAddr::new(own, *port), true)?)));
                    }
                }
            }
        }
        Ok(listeners)
    }
}

impl RunningTunnel {
    fn start(prepared: PreparedTunnel, underlays: &BTreeMap<String, UnderlaySettings>, resolver: &Resolver) -> Result<Self, StartError> {
        let PreparedTunnel { settings, mode, socket, port, network, wake } = prepared;
        let key = settings.private_key.clone();
        let lane = Lane::start(LaneSettings {
            name: settings.name.clone(),
            key,
            mtu: settings.mtu,
            peers: settings.peers.clone(),
            socket,
            port,
            wake,
        })
        .map_err(|source| StartError::Lane { tunnel: settings.name.clone(), source })?;
        let lane = Arc::new(lane);
        let snapshots = lane.snapshots();
        let (wanted, watched) = watch::channel(Wanted { peers: settings.peers, underlays: underlays.clone() });
        tokio::spawn(watch_endpoints(Arc::clone(&lane), resolver.clone(), watched, snapshots.clone()));
        Ok(Self { name: settings.name, mode, lane, snapshots, network, wanted })
    }
}

async fn prepare(settings: &Settings) -> Result<Prepared, StartError> {
    let mut tunnels = Vec::new();
    for tunnel in &settings.tunnels {
        tunnels.push(prepare_tunnel(settings, tunnel)?);
    }
    let kernel = if tunnels.iter().any(|tunnel| tunnel.mode == Mode::Tun) {
        // Whether the filter can be loaded at all is known before anything is changed.
        nft::apply("").await?;
        Some(Kernel::open()?)
    } else {
        None
    };
    let mut host = Vec::new();
    for at in settings.relay.iter().flat_map(|relay| &relay.listeners) {
        if let Listen::Host(address) = at.listen {
            host.push((at.clone(), bind(&at.name, address, false)?));
        }
    }
    Ok(Prepared { tunnels, kernel, host, resolver: Resolver::new(&[])? })
}

fn prepare_tunnel(settings: &Settings, tunnel: &TunnelSettings) -> Result<PreparedTunnel, StartError> {
    let name = || tunnel.name.clone();
    let socket = UdpSocket::bind(tunnel.listen).map_err(|source| StartError::Udp { tunnel: name(), source })?;
    let wake = Wake::new().map_err(|source| StartError::Lane { tunnel: name(), source })?;
    let needs_kernel = settings.routes.fixed.iter().any(|route| route.tunnel == tunnel.name) || !settings.routes.inbound.is_empty();
    let tun = match tunnel.mode {
        Mode::Userspace => None,
        Mode::Tun => Some(Tun::create(&tunnel.name).map_err(|source| StartError::Tun { tunnel: name(), source })?),
        Mode::Auto => match Tun::create(&tunnel.name) {
            Ok(tun) => Some(tun),
            Err(source) if needs_kernel => return Err(StartError::Tun { tunnel: name(), source }),
            Err(source) => {
                warn!(tunnel = tunnel.name, reason = %source, "no TUN device: running in userspace mode, for the relay alone");
                None
            }
        },
    };
    let (mode, port, network) = match tun {
        Some(tun) => (Mode::Tun, PreparedPort::Tun(tun), None),
        None => {
            let (network, stack) = network(tunnel.addresses.clone(), tunnel.mtu, wake.clone());
            (Mode::Userspace, PreparedPort::Userspace(stack), Some(network))
        }
    };
    if mode == Mode::Tun && !socket.is_marked() {
        let swallowed = |host: &str| {
            host.parse().is_ok_and(|address| {
                tunnel.peers.iter().flat_map(|peer| &peer.allowed_ips).any(|prefix| prefix.contains::<&std::net::IpAddr>(&address))
            })
        };
        if let Some(endpoint) = tunnel.peers.iter().flat_map(|peer| &peer.endpoints).find(|endpoint| swallowed(&endpoint.host)) {
            return Err(StartError::Unmarked { tunnel: name(), endpoint: endpoint.host.clone() });
        }
    }
    Ok(PreparedTunnel { settings: tunnel.clone(), mode, socket, port, network, wake })
}

fn bind(listener: &str, address: SocketAddr, late: bool) -> Result<TcpAcceptor, StartError> {
    let listener = listener.to_owned();
    TcpAcceptor::bind(address, late).map_err(|source| {
        if source.kind() == std::io::ErrorKind::AddrInUse {
            StartError::ListenerTaken { listener, address }
        } else {
            StartError::Listener { listener, address, source }
        }
    })
}

/// Routes that lead through this host need it to forward; it is the operator's switch, so it is only said.
fn warn_if_not_forwarding(settings: &Settings) {
    let off = |path: &str| std::fs::read_to_string(path).is_ok_and(|value| value.trim() == "0");
    let uses = |ipv4: bool| settings.routes.fixed.iter().any(|route| matches!(route.prefix, ipnet::IpNet::V4(_)) == ipv4);
    for (used, path, name) in [
        (uses(true), "/proc/sys/net/ipv4/ip_forward", "net.ipv4.ip_forward"),
        (uses(false), "/proc/sys/net/ipv6/conf/all/forwarding", "net.ipv6.conf.all.forwarding"),
    ] {
        if used && off(path) {
            warn!(setting = name, "this host does not forward packets: other hosts of the site cannot use the routes (sysctl -w {name}=1)");
        }
    }
}

/// The supervisor as the admin interface and the signals share it.
pub type Shared = Arc<Mutex<Supervisor>>;
