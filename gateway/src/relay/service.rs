//! The relay as its owner sees it: it is given listeners and a policy, tells its counters, and drains.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{Semaphore, watch};
use tracing::{info, warn};

use super::listener::Listener;
use super::policy::Policy;
use super::session::{Shared, run};
use super::stats::{RelaySnapshot, Stats};

/// Out of descriptors or memory, `accept` fails at once and would spin; the sessions that end meanwhile free some.
const BACK_OFF: Duration = Duration::from_millis(100);
/// Connections that may be told at once why they are turned away.
const TOLD_AT_ONCE: usize = 256;
/// How long sessions that were told to end may take to do so.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// The running relay: its listeners, its policy, its counters.
#[derive(Clone)]
pub struct Relay(Arc<Shared>);

impl Relay {
    pub fn new(policy: Policy) -> Self {
        Self(Arc::new(Shared {
            policy: ArcSwap::from_pointee(policy),
            stats: Stats::default(),
            next_session: AtomicU64::new(1),
            draining: watch::channel(false).0,
            stop: watch::channel(false).0,
            telling: Semaphore::new(TOLD_AT_ONCE),
        }))
    }

    /// Sessions that begin from now on obey `policy`; those that stand keep theirs.
    pub fn set_policy(&self, policy: Policy) {
        self.0.policy.store(Arc::new(policy));
    }

    /// Starts to accept. The task ends when the relay drains.
    pub fn serve(&self, listener: Listener) -> tokio::task::JoinHandle<()> {
        tokio::spawn(accept_loop(Arc::clone(&self.0), listener, self.0.draining.subscribe()))
    }

    pub fn snapshot(&self) -> RelaySnapshot {
        let mut snapshot = self.0.stats.snapshot();
        snapshot.draining = *self.0.draining.borrow();
        snapshot
    }

    /// Stops accepting, lets sessions run on for the drain limit, then ends them. Returns how many were cut.
    pub async fn drain(&self) -> u64 {
        self.0.draining.send_replace(true);
        let limit = self.0.policy.load().limits.drain;
        let drained = self.until_empty(limit).await;
        if drained {
            return 0;
        }
        let cut = self.0.stats.with(|stats| stats.open);
        self.0.stop.send_replace(true);
        self.until_empty(LAST_WORDS).await;
        cut
    }

    async fn until_empty(&self, limit: Duration) -> bool {
        let empty = async {
            while self.0.stats.with(|stats| stats.open) > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(limit, empty).await.is_ok()
    }
}

/// One task a listener, which never ends for what a single connection does. Accepts until `stop` turns true or the acceptor is gone.
async fn accept_loop(shared: Arc<Shared>, mut listener: Listener, mut stop: watch::Receiver<bool>) {
    let settings = Arc::new(listener.settings);
    let mut failing = false;
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => break,
            accepted = listener.acceptor.accept() => accepted,
        };
        match accepted {
            Ok((stream, from)) => {
                failing = false;
                tokio::spawn(run(Arc::clone(&shared), Arc::clone(&settings), stream, from));
            }
            Err(error) if error.kind() == io::ErrorKind::NotConnected => break,
            Err(error) => {
                // Once a row: the same line ten times a second helps nobody.
                if !std::mem::replace(&mut failing, true) {
                    warn!(listener = settings.name, %error, "cannot accept connections; trying again");
                }
                tokio::time::sleep(BACK_OFF).await;
            }
        }
    }
    info!(listener = settings.name, "listener closed");
}
