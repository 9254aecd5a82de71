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

use tokio::sync::{Mutex, Notify, watch};
use tracing::{info, warn};
use tunnel::io::{Lanes, LanesSettings, PreparedLane, PreparedPort, Tun, TunError, UdpError, UdpSocket, Wake};
use tunnel::userspace::{Network, network};
use tunnel::{EngineSettings, Mode, PeerChange, Snapshot, TunnelSettings};

use crate::config::{self, Diagnostics, Listen, ListenerAt, Loaded, ReadError, Settings, UnderlaySettings, Via};
use crate::endpoints::{Wanted, watch_endpoints};
use crate::host::{Host, HostError};
use crate::inherit::Inherited;
use crate::lanes::watch_lanes;
use crate::plan::{Change, NeedsRestart, Plan};
use crate::relay::{Policy, Relay, Resolver, ResolverError};
use crate::relaying::{self, Door, KnownPath};
use crate::secret::WatchedFiles;

/// The running gateway.
pub struct Supervisor {
    /// Where the configuration is read from at a reload.
    file: PathBuf,
    settings: Settings,
    /// The file as it was last taken, and the secrets that it names: they are read again when they change.
    text: String,
    secrets: WatchedFiles,
    /// A change of them that could not be taken into use, and is tried again.
    pending: bool,
    /// Why a restart would not come up with what is on disk now, as far as was seen.
    on_disk: Option<&'static str>,
    /// The settings as the file had them; what runs may differ by what `wg` changed.
    taken: Settings,
    tunnels: Vec<RunningTunnel>,
    /// Present if any tunnel has a TUN device.
    host: Option<Host>,
    relay: Option<Relay>,
    /// The relay's paths, which stay over reloads that do not change them.
    paths: Vec<KnownPath>,
    /// Notified when somebody asks the gateway to drain and end.
    leave: Arc<Notify>,
    leaving: bool,
    /// For what is of no path.
    resolver: Resolver,
    pub(crate) started: Instant,
    pub(crate) started_at: SystemTime,
    pub(crate) generation: u64,
}

pub(crate) struct RunningTunnel {
    pub(crate) name: String,
    pub(crate) mode: Mode,
    lanes: Arc<Lanes>,
    pub(crate) snapshots: watch::Receiver<Snapshot>,
    /// The stack inside the process, in userspace mode.
    pub(crate) network: Option<Network>,
    wanted: watch::Sender<Wanted>,
    /// Endpoints that cannot be used: names that do not resolve, interfaces that are not there.
    pub(crate) endpoint_problems: watch::Receiver<Vec<String>>,
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
    #[error(transparent)]
    Host(#[from] HostError),
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

impl From<SetError> for ReloadError {
    fn from(error: SetError) -> Self {
        match error {
            SetError::NeedsRestart(error) => Self::NeedsRestart(error),
            SetError::Prepare(error) => Self::Prepare(error),
        }
    }
}

/// An inward filter by its name in the kernel.
#[derive(Debug)]
pub struct FilterName {
    gateway: String,
    tunnels: Vec<String>,
}

impl FilterName {
    /// Asks `nft`.
    pub async fn is_loaded(&self) -> bool {
        let tunnels: Vec<&str> = self.tunnels.iter().map(String::as_str).collect();
        routing::io::nft::is_loaded(&self.gateway, &tunnels).await
    }
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
    host: Option<Host>,
    /// Listeners on the host's addresses, bound.
    doors: Vec<(ListenerAt, Door)>,
    resolver: Resolver,
}

struct PreparedTunnel {
    settings: TunnelSettings,
    mode: Mode,
    lanes: Vec<PreparedLane>,
    network: Option<Network>,
}

/// Why `wg` could not change a tunnel. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum SetError {
    #[error("{0}")]
    NeedsRestart(#[from] NeedsRestart),
    #[error("{0}; nothing was changed")]
    Prepare(#[from] StartError),
}

impl Supervisor {
    /// Brings everything up. If a part fails, sockets, devices and lanes go again; the kill switch, if it was set, stays.
    ///
    /// `text` is what `file` held, `secrets` the files that it names.
    pub async fn start(file: PathBuf, text: String, secrets: WatchedFiles, settings: Settings) -> Result<Self, StartError> {
        let prepared = prepare(&settings).await?;
        let mut supervisor = Self {
            file,
            text,
            secrets,
            pending: false,
            on_disk: None,
            taken: settings.clone(),
            settings,
            tunnels: Vec::new(),
            host: prepared.host,
            relay: None,
            paths: Vec::new(),
            leave: Arc::default(),
            leaving: false,
            resolver: prepared.resolver.clone(),
            started: Instant::now(),
            started_at: SystemTime::now(),
            generation: 1,
        };
        if let Some(host) = &mut supervisor.host {
            let tun = prepared.tunnels.iter().filter(|tunnel| tunnel.mode == Mode::Tun).map(|tunnel| &tunnel.settings);
            host.open(&supervisor.settings, &tun.collect::<Vec<_>>()).await?;
        }
        for tunnel in prepared.tunnels {
            let running = RunningTunnel::start(tunnel, &supervisor.settings.underlays, &prepared.resolver)?;
            supervisor.tunnels.push(running);
        }
        if let Some(settings) = supervisor.settings.relay.clone() {
            let (policy, paths) = relaying::policy(&supervisor.settings, &settings, &supervisor.tunnels, &[])?;
            let mut doors = prepared.doors;
            for at in &settings.listeners {
                let door = relaying::open_inside(at, &supervisor.settings, &settings.limits, &supervisor.tunnels).await?;
                doors.extend(door.map(|door| (at.clone(), door)));
            }
            let relay = Relay::new(policy);
            for (at, door) in doors {
                relaying::serve(&relay, &at, door, &prepared.resolver);
            }
            supervisor.paths = paths;
            supervisor.relay = Some(relay);
        }
        Ok(supervisor)
    }

    /// Reads the file again and carries out the difference.
    pub async fn reload(&mut self) -> Result<Reloaded, ReloadError> {
        let loaded = config::load(&self.file)?;
        self.take(loaded).await
    }

    async fn take(&mut self, loaded: Loaded) -> Result<Reloaded, ReloadError> {
        let Loaded { settings, diagnostics, source, secrets } = loaded;
        let Some(desired) = settings else {
            self.on_disk = Some("the configuration file has errors, and the last reload was refused: a restart would fail");
            return Err(ReloadError::Invalid { diagnostics, text: source });
        };
        let what = if self.is_edited() { "undid a change by wg, or changed" } else { "changed" };
        let reloaded = self.change_to(desired.clone(), what).await?;
        self.text = source;
        self.secrets = secrets;
        self.taken = desired;
        self.on_disk = None;
        Ok(reloaded)
    }

    /// Carries out the difference between what runs and what is desired; all of it, or nothing.
    async fn change_to(&mut self, desired: Settings, what: &str) -> Result<Reloaded, SetError> {
        if self.leaving {
            return Err(NeedsRestart { what: "the gateway drains and ends; what".into() }.into());
        }
        let plan = Plan::between(&self.settings, &desired)?;
        let changes: Vec<String> = plan.changes.iter().map(ToString::to_string).collect();
        if plan.is_empty() {
            return Ok(Reloaded { changes, generation: self.generation });
        }
        self.kernel_is_there(&desired)?;
        // All that can fail: the resolver's set-up, the filter's text and the rules of nft.
        let policy = desired.relay.as_ref().map(|relay| relaying::policy(&desired, relay, &self.tunnels, &self.paths)).transpose()?;
        let doors = self.open(&plan, &desired).await?;
        let tun = (self.tun(&self.settings), self.tun(&desired));
        if let Some(host) = &mut self.host {
            host.change(&self.settings, &desired, (&tun.0, &tun.1)).await.map_err(StartError::Host)?;
        }
        self.apply(&plan, policy, doors).await;
        self.settings = desired;
        self.settle();
        self.generation += 1;
        info!(generation = self.generation, changes = changes.len(), "reloaded");
        for change in &changes {
            info!(change, "{what}");
        }
        Ok(Reloaded { changes, generation: self.generation })
    }

    /// Reads secrets again if one of their files has changed; the rest of the configuration stays as it was last taken.
    async fn renew_secrets(&mut self) {
        if !self.secrets.changed() && !self.pending {
            return;
        }
        let again = std::mem::take(&mut self.pending);
        let loaded = config::parse(self.text.clone(), config::folder_of(&self.file));
        let Some(settings) = &loaded.settings else {
            // A file that is bad waits for its next change.
            let shown = loaded.diagnostics.render(&self.file.display().to_string(), &loaded.source, false);
            warn!("a secret has changed and cannot be used; what it was before stays in use\n{shown}");
            self.on_disk =
                Some("a secret on disk has changed and cannot be used; what it was before stays in use, and a restart would fail");
            return;
        };
        if *settings == self.taken {
            // Rewritten, and the same.
            self.on_disk = None;
            return;
        }
        let edited = self.is_edited();
        match self.take(loaded).await {
            Ok(_) if edited => warn!("a secret has changed and is in use; what wg had changed is undone by it"),
            Ok(_) => info!("a secret has changed and is in use"),
            Err(error) => {
                self.pending = true;
                if !again {
                    warn!(%error, "a secret has changed and cannot be taken into use yet; trying again");
                }
            }
        }
    }

    /// Changes one tunnel, as `wg` asks. The file knows nothing of it: the next reload undoes it.
    pub async fn set_tunnel(&mut self, desired: TunnelSettings) -> Result<(), SetError> {
        let mut settings = self.settings.clone();
        if let Some(tunnel) = settings.tunnels.iter_mut().find(|tunnel| tunnel.name == desired.name) {
            *tunnel = desired;
        }
        self.change_to(settings, "changed by wg, until the next reload").await?;
        Ok(())
    }

    /// The newest snapshot of a tunnel.
    pub(crate) fn tunnel_snapshot(&self, name: &str) -> Option<Snapshot> {
        self.tunnels.iter().find(|running| running.name == name).map(|running| running.snapshots.borrow().clone())
    }

    /// Whether `wg` has changed a tunnel since the file was last taken.
    pub(crate) fn is_edited(&self) -> bool {
        self.settings.tunnels != self.taken.tunnels
    }

    /// A tunnel that fell back to userspace mode at the start cannot take what needs a device now.
    fn kernel_is_there(&self, desired: &Settings) -> Result<(), NeedsRestart> {
        for running in self.tunnels.iter().filter(|running| running.mode == Mode::Userspace) {
            if desired.routes.fixed.iter().any(|route| route.tunnel == running.name) {
                return Err(NeedsRestart { what: format!("the tunnel {} runs in userspace mode, and `routes.static`", running.name) });
            }
        }
        let inbound = &desired.routes.inbound;
        if self.host.is_none() && !self.tunnels.is_empty() && !inbound.is_empty() && *inbound != self.settings.routes.inbound {
            return Err(NeedsRestart { what: "all tunnels run in userspace mode, and `routes.inbound`".into() });
        }
        Ok(())
    }

    /// The inward filter to ask `nft` for, every so often: that takes a process, which nobody else should wait for.
    pub fn filter_to_look_at(&mut self) -> Option<FilterName> {
        let tunnels = self.tun(&self.settings).into_iter().map(|tunnel| tunnel.name.clone()).collect();
        let due = self.host.as_mut().is_some_and(Host::filter_to_look_at);
        due.then(|| FilterName { gateway: self.settings.gateway.name.clone(), tunnels })
    }

    /// Holds the kernel against the settings, and puts back what somebody else changed; takes secrets that changed.
    pub async fn maintain(&mut self, filter_gone: bool) {
        self.renew_secrets().await;
        let tun = self.tun(&self.settings);
        if let Some(host) = &mut self.host {
            host.maintain(&self.settings, &tun, filter_gone).await;
        }
    }

    /// Ends the tunnels, once the relay has drained. The kill switch stays.
    pub async fn stop(&mut self) {
        // What comes after this finds no kernel to change.
        let (tunnels, host) = (std::mem::take(&mut self.tunnels), self.host.take());
        self.relay = None;
        // Lanes join their threads.
        let _ended = tokio::task::spawn_blocking(move || drop(tunnels)).await;
        drop(host);
    }

    /// Somebody wants the gateway to drain and end.
    pub(crate) fn leave(&self) {
        self.leave.notify_one();
    }

    /// The gateway is about to end.
    pub(crate) const fn set_leaving(&mut self) {
        self.leaving = true;
    }

    pub(crate) const fn is_leaving(&self) -> bool {
        self.leaving
    }

    /// The tunnel that a path of the relay leaves by.
    pub(crate) fn tunnel_of(&self, path: &str) -> Option<&str> {
        let path = self.settings.relay.as_ref()?.paths.iter().find(|settings| settings.name == path)?;
        match &path.via {
            Via::Tunnel(name) => Some(name),
            Via::Direct | Via::Underlay(_) => None,
        }
    }

    /// Ready when somebody has asked the gateway to drain and end.
    pub fn asked_to_leave(&self) -> impl Future<Output = ()> + use<> {
        let leave = Arc::clone(&self.leave);
        async move { leave.notified().await }
    }

    pub(crate) const fn on_disk(&self) -> Option<&'static str> {
        self.on_disk
    }

    pub(crate) fn file(&self) -> &std::path::Path {
        &self.file
    }

    pub(crate) const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Routes that wait for their tunnel's device.
    pub(crate) fn waiting(&self) -> &[routing::Route] {
        self.host.as_ref().map_or(&[], Host::waiting)
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

    /// Binds the listeners that a plan opens; they are served when it is applied.
    async fn open(&self, plan: &Plan, desired: &Settings) -> Result<Vec<(ListenerAt, Door)>, StartError> {
        let mut doors = Vec::new();
        let Some(relay) = &desired.relay else { return Ok(doors) };
        for change in &plan.changes {
            let Change::OpenListener(at) = change else { continue };
            let door = match relaying::open_on_host(at, &relay.limits, &mut Inherited::none(), self.holds(&at.listen))? {
                Some(door) => Some(door),
                None => relaying::open_inside(at, desired, &relay.limits, &self.tunnels).await?,
            };
            doors.extend(door.map(|door| (at.clone(), door)));
        }
        Ok(doors)
    }

    /// Whether a listener of ours may have that port.
    fn holds(&self, listen: &Listen) -> bool {
        let port = |listen: &Listen| match listen {
            Listen::Host(address) => address.port(),
            Listen::Tunnel { port, .. } => *port,
        };
        self.settings.relay.iter().flat_map(|relay| &relay.listeners).any(|held| port(&held.listen) == port(listen))
    }

    /// The part of a reload that cannot fail.
    async fn apply(&mut self, plan: &Plan, mut policy: Option<(Policy, Vec<KnownPath>)>, mut doors: Vec<(ListenerAt, Door)>) {
        for change in &plan.changes {
            match change {
                Change::SetPrivateKey { tunnel, key } => {
                    if let Some(running) = self.tunnels.iter().find(|running| running.name == *tunnel) {
                        running.lanes.set_private_key(key);
                    }
                }
                Change::AddPeer { tunnel, peer } => self.change(tunnel, &PeerChange::Add(peer.clone())),
                Change::EditPeer { tunnel, peer, .. } => self.change(tunnel, &PeerChange::Edit(peer.clone())),
                Change::RemovePeer { tunnel, key, .. } => self.change(tunnel, &PeerChange::Remove(*key)),
                Change::SetMtu { tunnel, mtu } => {
                    if let Some(running) = self.tunnels.iter().find(|running| running.name == *tunnel) {
                        running.lanes.set_mtu(*mtu);
                        if let (Some(host), Mode::Tun) = (&self.host, running.mode) {
                            host.set_mtu(tunnel, *mtu).await;
                        }
                    }
                }
                // Underlays change how endpoints resolve and how paths leave.
                Change::SetUnderlays(_) | Change::SetPolicy(_) => {
                    if let (Some(relay), Some((policy, paths))) = (&self.relay, policy.take()) {
                        relay.set_policy(policy);
                        self.paths = paths;
                    }
                }
                Change::OpenListener(at) => {
                    let door = doors.iter().position(|(opened, _)| opened.name == at.name).map(|place| doors.swap_remove(place).1);
                    if let (Some(relay), Some(door)) = (&self.relay, door) {
                        relaying::serve(relay, at, door, &self.resolver);
                    }
                }
                Change::ChangeListener(at) => {
                    if let Some(relay) = &self.relay {
                        relaying::change(relay, at);
                    }
                }
                Change::CloseListener(at) => {
                    if let Some(relay) = &self.relay {
                        relay.close_listener(&at.name);
                    }
                }
                Change::SetRoutes(_) | Change::OrderPeers { .. } => {}
            }
        }
    }

    /// After the settings have changed: what follows them by itself.
    fn settle(&self) {
        for running in &self.tunnels {
            let Some(tunnel) = self.settings.tunnel(&running.name) else { continue };
            running.wanted.send_replace(Wanted { peers: tunnel.peers.clone(), underlays: self.settings.underlays.clone() });
        }
    }

    fn change(&self, tunnel: &str, change: &PeerChange) {
        if let Some(running) = self.tunnels.iter().find(|running| running.name == tunnel) {
            running.lanes.change(change);
        }
    }

    /// The tunnels of `settings` that have a TUN device here.
    fn tun<'a>(&self, settings: &'a Settings) -> Vec<&'a TunnelSettings> {
        let is_tun = |tunnel: &&TunnelSettings| self.tunnels.iter().any(|running| running.name == tunnel.name && running.mode == Mode::Tun);
        settings.tunnels.iter().filter(is_tun).collect()
    }
}

impl RunningTunnel {
    fn start(prepared: PreparedTunnel, underlays: &BTreeMap<String, UnderlaySettings>, resolver: &Resolver) -> Result<Self, StartError> {
        let PreparedTunnel { settings, mode, lanes, network } = prepared;
        let lanes = Lanes::start(LanesSettings {
            name: settings.name.clone(),
            engine: EngineSettings { key: settings.private_key.clone(), addresses: settings.addresses.clone(), mtu: settings.mtu },
            peers: settings.peers.clone(),
            lanes,
            cpus: settings.cpus.clone(),
        })
        .map_err(|source| StartError::Lane { tunnel: settings.name.clone(), source })?;
        let lanes = Arc::new(lanes);
        let snapshots = watch_lanes(&lanes);
        let (wanted, watched) = watch::channel(Wanted { peers: settings.peers, underlays: underlays.clone() });
        let (told, endpoint_problems) = watch::channel(Vec::new());
        tokio::spawn(watch_endpoints(Arc::clone(&lanes), resolver.clone(), watched, snapshots.clone(), told));
        Ok(Self { name: settings.name, mode, lanes, snapshots, network, wanted, endpoint_problems })
    }
}

async fn prepare(settings: &Settings) -> Result<Prepared, StartError> {
    let mut tunnels = Vec::new();
    for tunnel in &settings.tunnels {
        tunnels.push(prepare_tunnel(settings, tunnel)?);
    }
    let host = if tunnels.iter().any(|tunnel| tunnel.mode == Mode::Tun) { Some(Host::prepare().await?) } else { None };
    let mut doors = Vec::new();
    let mut inherited = Inherited::from_environment();
    if let Some(relay) = &settings.relay {
        for at in &relay.listeners {
            doors.extend(relaying::open_on_host(at, &relay.limits, &mut inherited, false)?.map(|door| (at.clone(), door)));
        }
    }
    inherited.close();
    Ok(Prepared { tunnels, host, doors, resolver: Resolver::new(&[])? })
}

fn prepare_tunnel(settings: &Settings, tunnel: &TunnelSettings) -> Result<PreparedTunnel, StartError> {
    let name = || tunnel.name.clone();
    let lane_error = |source| StartError::Lane { tunnel: name(), source };
    let needs_kernel = settings.routes.fixed.iter().any(|route| route.tunnel == tunnel.name) || !settings.routes.inbound.is_empty();
    let queues = match tunnel.mode {
        Mode::Userspace => None,
        Mode::Tun => Some(Tun::create(&tunnel.name, tunnel.lanes).map_err(|source| StartError::Tun { tunnel: name(), source })?),
        Mode::Auto => match Tun::create(&tunnel.name, tunnel.lanes) {
            Ok(queues) => Some(queues),
            Err(source) if needs_kernel => return Err(StartError::Tun { tunnel: name(), source }),
            Err(source) => {
                warn!(tunnel = tunnel.name, reason = %source, "no TUN device: running in userspace mode, for the relay alone");
                if tunnel.lanes > 1 {
                    warn!(tunnel = tunnel.name, lanes = tunnel.lanes, "userspace mode has one lane");
                }
                None
            }
        },
    };
    let bind = |lane: u16| {
        let listen = SocketAddr::new(tunnel.listen.ip(), tunnel.listen.port().saturating_add(lane));
        // A port that stands nowhere in the file is told with the lane that it is for.
        let tunnel = if lane == 0 { name() } else { format!("{}, lane {lane}", tunnel.name) };
        UdpSocket::bind(listen).map_err(|source| StartError::Udp { tunnel, source })
    };
    let mut lanes = Vec::new();
    let (mode, network) = match queues {
        Some(queues) => {
            for (queue, lane) in queues.into_iter().zip(0..) {
                lanes.push(PreparedLane { socket: bind(lane)?, port: PreparedPort::Tun(queue), wake: Wake::new().map_err(lane_error)? });
            }
            (Mode::Tun, None)
        }
        None => {
            let wake = Wake::new().map_err(lane_error)?;
            let (network, stack) = network(tunnel.addresses.clone(), tunnel.mtu, wake.clone());
            lanes.push(PreparedLane { socket: bind(0)?, port: PreparedPort::Userspace(stack), wake });
            (Mode::Userspace, Some(network))
        }
    };
    if mode == Mode::Tun && lanes.iter().any(|lane| !lane.socket.is_marked()) {
        let swallowed = |host: &str| {
            host.parse().is_ok_and(|address| {
                tunnel.peers.iter().flat_map(|peer| peer.allowed_ips.iter()).any(|prefix| prefix.contains::<&std::net::IpAddr>(&address))
            })
        };
        if let Some(endpoint) = tunnel.peers.iter().flat_map(|peer| &peer.endpoints).find(|endpoint| swallowed(&endpoint.host)) {
            return Err(StartError::Unmarked { tunnel: name(), endpoint: endpoint.host.clone() });
        }
    }
    Ok(PreparedTunnel { settings: tunnel.clone(), mode, lanes, network })
}

/// The supervisor as the admin interface and the signals share it.
pub type Shared = Arc<Mutex<Supervisor>>;
