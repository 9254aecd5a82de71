//! The lanes of one tunnel: as many WireGuard sessions with each peer, on as many consecutive UDP ports.
//!
//! A lane shares nothing with another. The first is plain WireGuard, which any peer speaks; the others find a counterpart
//! only at another skyway. Whoever owns the lanes looks at their snapshots and decides which of them may be given packets
//! ([`crate::stats::carries`]): a lane whose peer does not answer detaches its queue, and the kernel moves its flows.

use std::io;

use tokio::sync::watch;

use super::lane::{Command, Lane, LaneSettings, PreparedLane};
use crate::batch::Endpoint;
use crate::engine::{EngineSettings, PeerChange};
use crate::key::PrivateKey;
use crate::settings::PeerSettings;
use crate::stats::Snapshot;

/// What the lanes of a tunnel are made of.
pub struct LanesSettings {
    /// The tunnel's name.
    pub name: String,
    pub engine: EngineSettings,
    /// Those that there are from the start.
    pub peers: Vec<PeerSettings>,
    /// One or more, in the order of their UDP ports.
    pub lanes: Vec<PreparedLane>,
    /// Processors to bind the lanes to, in turn; none: the kernel decides.
    pub cpus: Vec<usize>,
}

/// The handle of the running lanes. Dropping it stops them and waits for their threads.
pub struct Lanes {
    lanes: Vec<Lane>,
}

impl Lanes {
    /// Starts a thread for each lane. Fails only if the system makes no more threads.
    pub fn start(settings: LanesSettings) -> io::Result<Self> {
        let LanesSettings { name, engine, peers, lanes, cpus } = settings;
        let lanes = lanes.into_iter().enumerate().map(|(number, prepared)| {
            let settings = LaneSettings {
                name: name.clone(),
                number: number as u16,
                engine: engine.clone(),
                peers: peers.clone(),
                cpu: cpus.get(number % cpus.len().max(1)).copied(),
            };
            Lane::start(settings, prepared)
        });
        Ok(Self { lanes: lanes.collect::<io::Result<_>>()? })
    }

    /// Queues an edit of the peers for every lane. False if one has ended.
    pub fn change(&self, change: &PeerChange) -> bool {
        self.each(|number| Command::Change(Box::new(for_lane(change.clone(), number))))
    }

    /// Queues a new MTU. False if a lane has ended.
    pub fn set_mtu(&self, mtu: u32) -> bool {
        self.each(|_| Command::SetMtu(mtu))
    }

    /// Queues a new private key; sessions that stand go on until they are replaced. False if a lane has ended.
    pub fn set_private_key(&self, key: &PrivateKey) -> bool {
        self.each(|_| Command::SetPrivateKey(key.clone()))
    }

    /// Whether the host gives packets to a lane.
    pub fn attach(&self, lane: usize, attached: bool) -> bool {
        self.lanes.get(lane).is_some_and(|lane| lane.command(Command::Attach(attached)))
    }

    /// The newest snapshot of each lane. A channel closes when its lane ends, for whatever reason.
    pub fn snapshots(&self) -> Vec<watch::Receiver<Snapshot>> {
        self.lanes.iter().map(Lane::snapshots).collect()
    }

    fn each(&self, command: impl Fn(u16) -> Command) -> bool {
        let told = self.lanes.iter().zip(0..).map(|(lane, number)| lane.command(command(number)));
        told.fold(true, |all, one| all & one)
    }
}

/// A peer's lane listens as many ports after its first as ours does.
fn for_lane(change: PeerChange, number: u16) -> PeerChange {
    match change {
        PeerChange::Endpoints(key, mut endpoints) => {
            // One that would have no port is none: another lane's would be answered by the wrong session.
            endpoints.retain_mut(|Endpoint { address, .. }| match address.port().checked_add(number) {
                Some(port) => {
                    address.set_port(port);
                    true
                }
                None => false,
            });
            PeerChange::Endpoints(key, endpoints)
        }
        PeerChange::Add(_) | PeerChange::Edit(_) | PeerChange::Remove(_) => change,
    }
}
