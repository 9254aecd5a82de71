//! The relay as its owner sees it: it is given listeners and a policy, tells its counters, and drains.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::Poll;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use rand_core::{OsRng, RngCore};
use tokio::sync::{Semaphore, watch};
use tracing::{info, warn};

use super::dns::DnsSettings;
use super::dns_server::{DnsListener, NameService};
use super::host::HostName;
use super::listener::{BACKLOG, Listener, ListenerSettings};
use super::ntp::{NtpListener, NtpSettings, TimeService};
use super::path::PathSnapshot;
use super::policy::Policy;
use super::resolver::Resolver;
use super::session::{Ending, Shared, run};
use super::stats::{RelaySnapshot, Stats};

/// Out of descriptors or memory, `accept` fails at once and would spin; the sessions that end meanwhile free some.
const BACK_OFF: Duration = Duration::from_millis(100);
/// Connections that may be told at once why they are turned away.
const TOLD_AT_ONCE: usize = 256;
/// How long sessions that were told to end may take to do so.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// The running relay: its listeners, its policy, its counters.
#[derive(Clone)]
pub struct Relay {
    shared: Arc<Shared>,
    /// What each listener stops at, by its name.
    listeners: Arc<Mutex<HashMap<String, Doors>>>,
}

/// What serves one listener.
struct Doors {
    stop: watch::Sender<bool>,
    settings: DoorSettings,
}

/// What it obeys; swapped by a reload.
enum DoorSettings {
    Sessions(watch::Sender<Arc<ListenerSettings>>),
    Names(Arc<ArcSwap<DnsSettings>>),
    Time(Arc<ArcSwap<NtpSettings>>),
}

impl Relay {
    pub fn new(policy: Policy) -> Self {
        let shared = Arc::new(Shared {
            policy: ArcSwap::from_pointee(policy),
            stats: Stats::default(),
            run: OsRng.next_u32(),
            next_session: AtomicU64::new(1),
            draining: watch::channel(false).0,
            stop: watch::channel(None).0,
            telling: Semaphore::new(TOLD_AT_ONCE),
        });
        let relay = Self { shared, listeners: Arc::default() };
        relay.look_after_paths(&relay.shared.policy.load());
        relay
    }

    /// Sessions that begin from now on obey `policy`; those that stand keep theirs.
    pub fn set_policy(&self, policy: Policy) {
        let before = self.shared.policy.swap(Arc::new(policy));
        let now = self.shared.policy.load();
        let is_new = |path: &&Arc<super::Path>| !before.paths.iter().any(|known| Arc::ptr_eq(known, path));
        for path in now.paths.iter().filter(is_new) {
            self.probe(path);
        }
    }

    fn look_after_paths(&self, policy: &Policy) {
        for path in &policy.paths {
            self.probe(path);
        }
    }

    fn probe(&self, path: &Arc<super::Path>) {
        let shared = Arc::downgrade(&self.shared);
        path.keep_probing(move || Weak::upgrade(&shared).map(|shared| shared.policy.load_full()));
    }

    /// The policy that sessions beginning now obey.
    pub fn policy(&self) -> Arc<Policy> {
        self.shared.policy.load_full()
    }

    /// Starts to accept, by every socket of the listener. It ends when the relay drains or the listener is closed.
    pub fn serve(&self, listener: Listener) {
        let Listener { settings, acceptors } = listener;
        let name = settings.name.clone();
        let (settings, stop) = (watch::channel(Arc::new(settings)).0, watch::channel(false).0);
        for acceptor in acceptors {
            tokio::spawn(accept_loop(Arc::clone(&self.shared), acceptor, settings.subscribe(), stop.subscribe()));
        }
        self.listeners().insert(name, Doors { stop, settings: DoorSettings::Sessions(settings) });
    }

    /// Answers sensors' questions for names.
    pub fn serve_names(&self, name: &str, listener: DnsListener, settings: DnsSettings) {
        let (settings, stop) = (Arc::new(ArcSwap::from_pointee(settings)), watch::channel(false).0);
        let asked = Asked { shared: Arc::clone(&self.shared), listener: name.into(), settings: Arc::clone(&settings) };
        tokio::spawn(listener.serve(Arc::new(asked), stop.subscribe()));
        self.listeners().insert(name.to_owned(), Doors { stop, settings: DoorSettings::Names(settings) });
    }

    /// Passes on sensors' questions for the time.
    pub fn serve_time(&self, name: &str, listener: NtpListener, settings: NtpSettings, resolver: Resolver) {
        let (settings, stop) = (Arc::new(ArcSwap::from_pointee(settings)), watch::channel(false).0);
        let asked = Asked { shared: Arc::clone(&self.shared), listener: name.into(), settings: Arc::clone(&settings) };
        tokio::spawn(listener.serve(Arc::new(AskedTime { asked, resolver }), stop.subscribe()));
        self.listeners().insert(name.to_owned(), Doors { stop, settings: DoorSettings::Time(settings) });
    }

    /// Sessions that the listener accepts from now on obey `settings`.
    pub fn change_sessions(&self, settings: ListenerSettings) {
        if let Some(Doors { settings: DoorSettings::Sessions(current), .. }) = self.listeners().get(&settings.name) {
            current.send_replace(Arc::new(settings));
        }
    }

    pub fn change_names(&self, name: &str, settings: DnsSettings) {
        if let Some(Doors { settings: DoorSettings::Names(current), .. }) = self.listeners().get(name) {
            current.store(Arc::new(settings));
        }
    }

    pub fn change_time(&self, name: &str, settings: NtpSettings) {
        if let Some(Doors { settings: DoorSettings::Time(current), .. }) = self.listeners().get(name) {
            current.store(Arc::new(settings));
        }
    }

    /// Accepts no more there; its sessions go on.
    pub fn close_listener(&self, name: &str) {
        if let Some(doors) = self.listeners().remove(name) {
            doors.stop.send_replace(true);
        }
    }

    fn listeners(&self) -> std::sync::MutexGuard<'_, HashMap<String, Doors>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn snapshot(&self) -> RelaySnapshot {
        let mut snapshot = self.shared.stats.snapshot();
        snapshot.draining = *self.shared.draining.borrow();
        snapshot
    }

    pub fn is_draining(&self) -> bool {
        *self.shared.draining.borrow()
    }

    pub fn paths(&self) -> Vec<PathSnapshot> {
        self.shared.policy.load().paths.iter().map(|path| path.snapshot()).collect()
    }

    /// Tells load balancers by `/readyz` first, then stops accepting, lets sessions run on, and ends those that remain, one
    /// after the other. Returns how many did not end by themselves.
    pub async fn drain(&self) -> u64 {
        let drain = self.shared.policy.load().limits.drain;
        self.shared.draining.send_replace(true);
        if !drain.notice.is_zero() && !self.listeners().is_empty() {
            info!(seconds = drain.notice.as_secs(), "draining: not ready any more; connections are taken until it has been noticed");
            tokio::time::sleep(drain.notice).await;
        }
        for (_, doors) in self.listeners().drain() {
            doors.stop.send_replace(true);
        }
        let now = Instant::now();
        let spread = drain.spread.min(drain.limit);
        if self.until_empty(drain.limit - spread).await {
            return 0;
        }
        let left = self.open();
        if !spread.is_zero() {
            info!(sessions = left, seconds = spread.as_secs_f64(), "draining: the sessions that remain end one after the other");
        }
        self.shared.stop.send_replace(Some(Ending { from: now + (drain.limit - spread), spread }));
        self.until_empty(spread + LAST_WORDS).await;
        left
    }

    fn open(&self) -> u64 {
        self.shared.stats.with(|stats| stats.told.open)
    }

    async fn until_empty(&self, limit: Duration) -> bool {
        let empty = async {
            while self.open() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(limit, empty).await.is_ok()
    }
}

/// One task a socket, which never ends for what a single connection does. Accepts until `stop` turns true or the acceptor is gone.
async fn accept_loop(
    shared: Arc<Shared>,
    mut acceptor: Box<dyn super::Acceptor>,
    settings: watch::Receiver<Arc<ListenerSettings>>,
    mut stop: watch::Receiver<bool>,
) {
    let mut failing = false;
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => break,
            accepted = acceptor.accept() => accepted,
        };
        match accepted {
            Ok(accepted) => {
                failing = false;
                let settings = Arc::clone(&settings.borrow());
                tokio::spawn(run(Arc::clone(&shared), settings, accepted));
            }
            Err(error) if error.kind() == io::ErrorKind::NotConnected => break,
            Err(error) => {
                // Once a row: the same line ten times a second helps nobody.
                if !std::mem::replace(&mut failing, true) {
                    warn!(listener = settings.borrow().name, %error, "cannot accept connections; trying again");
                }
                tokio::time::sleep(BACK_OFF).await;
            }
        }
    }
    // What the kernel has accepted already is served: to close now would reset it. Not more than a full queue, or a storm of new
    // ones would keep the door open.
    for _ in 0..BACKLOG {
        let Poll::Ready(Ok(accepted)) = poll_once(acceptor.accept()).await else { break };
        let settings = Arc::clone(&settings.borrow());
        tokio::spawn(run(Arc::clone(&shared), settings, accepted));
    }
    let name = settings.borrow().name.clone();
    info!(listener = name, "listener closed");
}

/// Looks once, without waiting.
async fn poll_once<T>(mut future: super::BoxFuture<'_, T>) -> Poll<T> {
    std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
}

/// What a listener for questions asks the relay.
struct Asked<S> {
    shared: Arc<Shared>,
    listener: Arc<str>,
    settings: Arc<ArcSwap<S>>,
}

impl<S> Asked<S> {
    fn who(&self, source: IpAddr) -> Option<Arc<str>> {
        let policy = self.shared.policy.load();
        let evidence = super::Evidence { source: Some(source), certificate: None, attributes: None };
        policy.sensors.identify(evidence).ok().flatten().map(|sensor| Arc::clone(&sensor.name))
    }

    fn note(&self, what: &'static str) {
        self.shared.stats.with(|stats| *stats.told.questions.entry((Arc::clone(&self.listener), what)).or_default() += 1);
    }
}

impl NameService for Asked<DnsSettings> {
    fn sensor(&self, source: IpAddr) -> Option<Arc<str>> {
        self.who(source)
    }

    fn is_listed(&self, host: &HostName) -> bool {
        self.shared.policy.load().catalogue.get(host).is_some()
    }

    fn settings(&self) -> Arc<DnsSettings> {
        self.settings.load_full()
    }

    fn count(&self, what: &'static str, _sensor: Option<&Arc<str>>) {
        self.note(what);
    }
}

/// The same for the time, whose servers may have names.
struct AskedTime {
    asked: Asked<NtpSettings>,
    resolver: Resolver,
}

impl TimeService for AskedTime {
    fn sensor(&self, source: IpAddr) -> Option<Arc<str>> {
        self.asked.who(source)
    }

    fn settings(&self) -> Arc<NtpSettings> {
        self.asked.settings.load_full()
    }

    fn resolver(&self) -> Resolver {
        self.resolver.clone()
    }

    fn count(&self, what: &'static str, _sensor: Option<&Arc<str>>) {
        self.asked.note(what);
    }
}
