//! Paths: how the relay leaves, in order, and never otherwise.
//!
//! A path that its probes say is down is passed over while another is not. If all are down, all are tried in order: a
//! hold-down of the only way would be an outage of our own making. Nothing leaves by a way that the YAML does not name.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tracing::{debug, info, warn};

use super::address;
use super::catalogue::{Catalogue, Entry, ServiceTagRule};
use super::chain::Passage;
use super::connect_head::Authority;
use super::dial::{DialError, ResolveFault, Side};
use super::health::{HealthEvent, HealthSettings, HealthSnapshot, PathHealth, ProbeResult};
use super::host::HostName;
use super::parent::{Opened, Parent, ParentHost, walk};
use super::resolver::Resolver;
use super::service_tags::Pinned;
use super::tls::{ChainCheck, Roots, check_chain};
use super::{Dialer, Stream, Target};

/// For a probe's connection and handshake together.
const PROBE: Duration = Duration::from_secs(10);

/// What a path is made of.
pub struct PathParts {
    pub name: Arc<str>,
    pub dialer: Arc<dyn Dialer>,
    pub resolver: Resolver,
    /// In order of preference, each a chain, the nearest proxy first; empty: the target itself is dialled.
    pub parents: Vec<Vec<Parent>>,
    pub probe: Option<PathProbe>,
    pub on_down: OnPathDown,
    /// Who this relay is, for the parents that are told.
    pub gateway: Arc<str>,
    pub level: Option<super::chain::Level>,
}

/// How a path is looked after: a whole TLS handshake with a Defender host, through the path, every so often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathProbe {
    pub host: HostName,
    pub port: u16,
    pub health: HealthSettings,
    pub roots: Roots,
}

/// What becomes of a path's sessions when it goes down.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnPathDown {
    /// They stay: the path may come back, and what they stand on may still work.
    #[default]
    Keep,
    /// They end one after the other, over the drain's spread, and come back by another path.
    Drain,
    /// They end at once.
    Reset,
}

/// One way out.
pub struct Path {
    parts: PathParts,
    health: Mutex<PathHealth>,
    /// Whether the path is down, for the sessions that stand on it.
    down: watch::Sender<bool>,
    /// A session failed: the next probe comes sooner.
    doubted: Notify,
    /// Who carried the last session, as the parents said.
    via: Mutex<Vec<String>>,
}

/// A stream to the target, or to a parent that leads there.
pub(super) struct Connected {
    pub(super) stream: Box<dyn Stream>,
    pub(super) path: Arc<Path>,
    /// What a parent sent behind its answer; it goes downstream first.
    pub(super) early: Vec<u8>,
    pub(super) via: Vec<String>,
}

/// What is to be reached, and for whom.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) authority: &'a Authority,
    pub(super) entry: &'a Entry,
    pub(super) service_tags: Option<&'a ServiceTagRule>,
    pub(super) passage: &'a Passage,
}

/// What a path can tell about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathSnapshot {
    pub name: Arc<str>,
    pub health: HealthSnapshot,
    pub is_probed: bool,
    pub parents: Vec<Vec<String>>,
    /// The gateways that carried the last session, the nearest first.
    pub via: Vec<String>,
}

/// Tries `paths` until one brings a stream; the last error if none does.
///
/// Each gets an equal share of the time that is left, so that a dead first path leaves room for the second.
pub(super) async fn connect(
    paths: &[Arc<Path>],
    wanted: Wanted<'_>,
    deadline: Instant,
) -> Result<Connected, (Option<Arc<str>>, DialError)> {
    let mut failure = (None, DialError::NoPath);
    let order = in_order(paths, Instant::now());
    for (at, path) in order.iter().enumerate() {
        let share = share(deadline, order.len() - at);
        let result = path.connect(wanted, share).await;
        path.learn(result.as_ref().err());
        match result {
            Ok(Opened { stream, early, via }) => {
                if !path.parts.parents.is_empty() {
                    path.via.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&via);
                }
                return Ok(Connected { stream, path: Arc::clone(path), early, via });
            }
            Err(error) => {
                debug!(path = %path.parts.name, host = %wanted.authority.host, %error, "path failed");
                failure = (Some(Arc::clone(&path.parts.name)), error);
            }
        }
        // What a parent has refused for what it is, must not leave by another way.
        if is_final(&failure.1) {
            break;
        }
    }
    Err(failure)
}

/// The paths that may be taken now in their order, then those that are still on their ramp, then those that are down.
fn in_order(paths: &[Arc<Path>], now: Instant) -> Vec<&Arc<Path>> {
    let [only] = paths else {
        let mut order: Vec<(u8, &Arc<Path>)> = paths
            .iter()
            .map(|path| {
                let mut health = path.health();
                let rank = match (health.is_usable(), health.admits(now)) {
                    (true, true) => 0,
                    (true, false) => 1,
                    (false, _) => 2,
                };
                (rank, path)
            })
            .collect();
        order.sort_by_key(|(rank, _)| *rank);
        return order.into_iter().map(|(_, path)| path).collect();
    };
    vec![only]
}

impl Path {
    /// `seed` moves this path's probes in time, so that a fleet does not probe as one.
    pub fn new(parts: PathParts, seed: u64, now: Instant) -> Self {
        let settings = parts.probe.as_ref().map(|probe| probe.health.clone()).unwrap_or_default();
        Self {
            parts,
            health: Mutex::new(PathHealth::new(settings, seed, now)),
            down: watch::channel(false).0,
            doubted: Notify::new(),
            via: Mutex::default(),
        }
    }

    pub const fn name(&self) -> &Arc<str> {
        &self.parts.name
    }

    pub(super) const fn on_down(&self) -> OnPathDown {
        self.parts.on_down
    }

    /// Turns true when the path goes down.
    pub(super) fn watch(&self) -> watch::Receiver<bool> {
        self.down.subscribe()
    }

    pub fn snapshot(&self) -> PathSnapshot {
        PathSnapshot {
            name: Arc::clone(&self.parts.name),
            health: self.health().snapshot(),
            is_probed: self.parts.probe.is_some(),
            parents: self.parts.parents.iter().map(|chain| chain.iter().map(|parent| parent.url.clone()).collect()).collect(),
            via: self.via.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    fn health(&self) -> std::sync::MutexGuard<'_, PathHealth> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of how a session's connection went.
    fn learn(&self, error: Option<&DialError>) {
        if error.is_none_or(DialError::blames_the_path) && self.parts.probe.is_some() {
            self.health().handle_session(error.is_none(), Instant::now());
            if error.is_some() {
                self.doubted.notify_one();
            }
            self.tell();
        }
    }

    /// Logs what has changed, and lets the sessions know.
    fn tell(&self) {
        let name = &self.parts.name;
        let mut events = Vec::new();
        let usable = {
            let mut health = self.health();
            while let Some(event) = health.poll_event() {
                events.push(event);
            }
            health.is_usable()
        };
        for event in events {
            match event {
                HealthEvent::WentDown { why, reason } => {
                    let sessions = match self.parts.on_down {
                        OnPathDown::Keep => "its sessions stay",
                        OnPathDown::Drain => "its sessions end over the drain's spread",
                        OnPathDown::Reset => "its sessions end",
                    };
                    warn!(path = %name, reason, why, sessions, "path down");
                }
                HealthEvent::CameBack => info!(path = %name, "path back"),
                HealthEvent::Intercepted { issuer } => {
                    warn!(path = %name, issuer, "somebody on this path answers with certificates of their own: TLS is intercepted");
                }
                HealthEvent::NoLongerIntercepted => info!(path = %name, "TLS is no longer intercepted"),
            }
        }
        self.down.send_if_modified(|down| std::mem::replace(down, !usable) == usable);
    }

    /// Probes for as long as the path is there. The catalogue is the one current at each probe.
    pub fn keep_probing(self: &Arc<Self>, catalogue: impl Fn() -> Option<Arc<super::Policy>> + Send + 'static) {
        let Some(probe) = self.parts.probe.clone() else { return };
        let path = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                {
                    let Some(path) = path.upgrade() else { return };
                    let due = path.health().poll_timeout();
                    tokio::select! {
                        () = tokio::time::sleep_until(due.into()) => {}
                        () = path.doubted.notified() => {}
                    }
                }
                let (Some(path), Some(policy)) = (path.upgrade(), catalogue()) else { return };
                // Sessions may stand on a path that a reload took away; nobody chooses it any more.
                if !policy.paths.iter().any(|known| Arc::ptr_eq(known, &path)) {
                    return;
                }
                // A session may have brought the next one forward or answered for it.
                if path.health().poll_timeout() > Instant::now() {
                    continue;
                }
                let result = path.probe(&probe, &policy.catalogue).await;
                path.health().handle_result(result, Instant::now());
                path.tell();
            }
        });
    }

    /// One probe: what a sensor does, up to the end of the handshake.
    async fn probe(&self, probe: &PathProbe, catalogue: &Catalogue) -> ProbeResult {
        let begun = Instant::now();
        let authority = Authority { host: probe.host.clone(), port: probe.port };
        if catalogue.get(&probe.host).is_none() {
            return ProbeResult::Failed(format!("{} is not in the catalogue", probe.host), "host_not_listed");
        }
        match self.examine(&authority, catalogue, &probe.roots, begun + PROBE).await {
            Ok(ChainCheck::Good { .. }) => ProbeResult::Good { took: begun.elapsed() },
            Ok(ChainCheck::Intercepted { issuer, .. }) => ProbeResult::Intercepted { issuer },
            Ok(ChainCheck::Failed(error)) => ProbeResult::Failed(format!("{}: {error}", probe.host), error.reason()),
            Err(error) => ProbeResult::Failed(error.to_string(), error.reason()),
        }
    }

    /// Goes the whole way to a host of the catalogue by this path alone, as a sensor would, up to the end of the handshake.
    pub async fn examine(
        &self,
        authority: &Authority,
        catalogue: &Catalogue,
        roots: &Roots,
        deadline: Instant,
    ) -> Result<ChainCheck, DialError> {
        let Some(entry) = catalogue.get(&authority.host) else { return Err(DialError::NoPath) };
        let passage = Passage { session: "probe".into(), ..Passage::default() };
        let wanted = Wanted { authority, entry, service_tags: catalogue.service_tags.as_ref(), passage: &passage };
        let opened = self.connect(wanted, deadline).await?;
        Ok(check_chain(opened.stream, &authority.host, roots, deadline).await)
    }

    /// What its probe trusts, if it has one.
    pub fn roots(&self) -> Option<&Roots> {
        self.parts.probe.as_ref().map(|probe| &probe.roots)
    }

    pub(super) async fn connect(&self, wanted: Wanted<'_>, deadline: Instant) -> Result<Opened, DialError> {
        let authority = wanted.authority;
        if self.parts.parents.is_empty() {
            // The last hop gives up first, so that its reason reaches the hops before it in time.
            let now = Instant::now();
            let deadline = now + deadline.saturating_duration_since(now) * 4 / 5;
            let addresses = self.resolve(wanted, deadline).await?;
            let stream = self.dial(authority.host.as_str(), &addresses, authority.port, deadline).await?;
            return Ok(Opened { stream, early: Vec::new(), via: Vec::new() });
        }
        let mut passage = wanted.passage.clone();
        passage.via.push(self.parts.gateway.to_string());
        // A gateway that says nothing of its level does not wipe out the one before it.
        passage.level = self.parts.level.or(passage.level);
        let mut failure = DialError::NoPath;
        for (at, chain) in self.parts.parents.iter().enumerate() {
            match self.connect_by(chain, authority, &passage, share(deadline, self.parts.parents.len() - at)).await {
                Ok(opened) => return Ok(opened),
                Err(error) => failure = error,
            }
            // A parent that speaks for the target has spoken; another would say the same.
            if is_final(&failure) {
                break;
            }
        }
        Err(failure)
    }

    async fn connect_by(&self, chain: &[Parent], authority: &Authority, passage: &Passage, deadline: Instant) -> Result<Opened, DialError> {
        let Some(first) = chain.first() else { return Err(DialError::NoPath) };
        let unreachable = |cause: DialError| match cause.side() {
            // The tunnel's trouble is the tunnel's, whoever is behind it.
            Side::Path => cause,
            Side::Gateway | Side::Resolver | Side::Parent | Side::Upstream => {
                DialError::ParentUnreachable { parent: first.url.clone(), cause: Box::new(cause) }
            }
        };
        let addresses = match &first.host {
            ParentHost::Address(address) => vec![*address],
            ParentHost::Name(name) => self.ask(name.as_str(), deadline).await.map_err(unreachable)?,
        };
        let stream = self.dial(&first.url, &addresses, first.port, deadline).await.map_err(unreachable)?;
        walk(chain, stream, authority, passage, deadline).await
    }

    /// The target's addresses, every one of them checked: a single bad answer condemns the name.
    async fn resolve(&self, wanted: Wanted<'_>, deadline: Instant) -> Result<Vec<IpAddr>, DialError> {
        let Wanted { authority, entry, service_tags, .. } = wanted;
        let fixed = !entry.addresses.is_empty();
        let answers = if fixed { entry.addresses.clone() } else { self.ask(authority.host.as_str(), deadline).await? };
        let addresses: Vec<IpAddr> = answers.iter().map(IpAddr::to_canonical).collect();
        for address in &addresses {
            address::check(*address, &entry.allow).map_err(|why| DialError::Forbidden { address: *address, why })?;
            // What the YAML itself names needs no second witness.
            let allowed = entry.allow.iter().any(|prefix| prefix.contains(address));
            if let Some(rule) = service_tags.filter(|_| !fixed && !allowed)
                && rule.tags.covers(entry.role, *address) == Pinned::Outside
            {
                if rule.enforce {
                    return Err(DialError::OutsideServiceTag { address: *address });
                }
                warn!(host = %authority.host, %address, "the name resolves to an address outside its service tag");
            }
        }
        Ok(addresses)
    }

    async fn ask(&self, name: &str, deadline: Instant) -> Result<Vec<IpAddr>, DialError> {
        match tokio::time::timeout_at(deadline.into(), self.parts.resolver.resolve(name)).await {
            Ok(answer) => answer,
            Err(_) => Err(DialError::Resolve { cause: ResolveFault::Silent("no answer in time".into()) }),
        }
    }

    /// Dials the addresses in order until one takes.
    async fn dial(&self, name: &str, addresses: &[IpAddr], port: u16, deadline: Instant) -> Result<Box<dyn Stream>, DialError> {
        let mut failure = DialError::Resolve { cause: ResolveFault::NoAddress };
        for (at, address) in addresses.iter().enumerate() {
            let target = Target { name: name.to_owned(), address: SocketAddr::new(*address, port) };
            match self.parts.dialer.dial(&target, share(deadline, addresses.len() - at)).await {
                Ok(stream) => return Ok(stream),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }
}

/// Whether a parent has spoken for the target, or found a loop.
const fn is_final(error: &DialError) -> bool {
    matches!(error, DialError::ParentRefused { status: 403 | 508, .. })
}

/// The moment by which the first of `attempts` must be done, so that each has an equal part of what is left.
fn share(deadline: Instant, attempts: usize) -> Instant {
    let now = Instant::now();
    let left = deadline.saturating_duration_since(now);
    now + left / u32::try_from(attempts.max(1)).unwrap_or(u32::MAX)
}
