//! What a tunnel can tell about itself, as plain values that leave the lane by copy.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;

use crate::error::Drops;
use crate::handshake::Trouble;
use crate::key::PublicKey;

/// How a peer is, in the words of `status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PeerState {
    /// A session stands.
    Up,
    /// No session, a handshake is under way.
    #[default]
    Connecting,
    /// No session, and nothing asks for one: the peer comes to us, or there is no traffic and no keepalive.
    Idle,
}

impl PeerState {
    pub const fn label(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Connecting => "connecting",
            Self::Idle => "idle",
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct PeerSnapshot {
    pub name: String,
    pub public_key: PublicKey,
    pub has_preshared_key: bool,
    pub endpoint: Option<SocketAddr>,
    /// The endpoint was learned from the peer's datagrams and is none of the configured ones.
    pub roamed: bool,
    pub allowed_ips: Arc<[IpNet]>,
    pub keepalive_secs: Option<u64>,
    pub state: PeerState,
    pub trouble: Option<Trouble>,
    pub last_handshake: Option<SystemTime>,
    /// Outer datagrams of this peer that authenticated, in bytes of UDP payload.
    pub received_bytes: u64,
    pub sent_bytes: u64,
    pub received_packets: u64,
    pub sent_packets: u64,
    pub queued_packets: usize,
    /// The announced next key is the one in use.
    pub uses_next_key: bool,
    /// Which of the endpoints is in use, from 0; None: one that was roamed to, or there is none.
    pub active_endpoint: Option<usize>,
    /// The largest inner packet that was seen to get through both ways; None: nothing was measured yet.
    pub path_mtu: Option<u32>,
    /// The path takes less than the tunnel's MTU.
    pub path_limited: bool,
    /// None: the peer is not probed.
    pub probe: Option<ProbeSnapshot>,
}

/// What probes tell of the path in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeSnapshot {
    /// Smoothed.
    pub rtt: Option<Duration>,
    pub sent: u64,
    pub answered: u64,
    /// In a row.
    pub misses: u32,
    /// As many were missed as make a verdict, and nothing was answered since.
    pub silent: bool,
    /// Endpoints left by our own verdict: failovers and ways back.
    pub switches: u64,
    /// The better endpoint that is being tried, from 0.
    pub on_trial: Option<usize>,
}

/// One lane beside its peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneSnapshot {
    /// From 0.
    pub number: u16,
    /// UDP.
    pub port: u16,
    /// The host gives packets to this lane.
    pub attached: bool,
    /// Datagrams leave in runs that the kernel segments.
    pub segmentation: bool,
    /// Packets are joined for the host.
    pub coalescing: bool,
    /// Super-packets that the kernel would not take after all.
    pub refused_super_packets: u64,
    /// Inner packets of all peers.
    pub sent_packets: u64,
    pub received_packets: u64,
    /// Peers that this lane reaches by another than their first endpoint.
    pub standby_peers: usize,
}

impl LaneSnapshot {
    pub const fn new(number: u16, port: u16) -> Self {
        Self {
            number,
            port,
            attached: number == 0,
            segmentation: true,
            coalescing: true,
            refused_super_packets: 0,
            sent_packets: 0,
            received_packets: 0,
            standby_peers: 0,
        }
    }
}

/// One tunnel at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    pub public_key: PublicKey,
    /// Of the first lane.
    pub listen_port: u16,
    pub lanes: Vec<LaneSnapshot>,
    pub mtu: u32,
    pub peers: Vec<PeerSnapshot>,
    pub drops: Drops,
    /// Handshake initiations from keys that are not configured: how many, and the last.
    pub unknown_initiations: u64,
    pub last_unknown: Option<(PublicKey, SocketAddr)>,
    /// The last came within the last minute.
    pub unknown_recently: bool,
    /// Who last sent a handshake that was made for another public key than ours, if it came from where no peer is known to be.
    pub last_misaddressed: Option<SocketAddr>,
    /// Open streams of the userspace stack; none in TUN mode.
    pub streams: Option<usize>,
}

impl Snapshot {
    /// All lanes of a tunnel as one: states of the first lane, counters of all.
    pub fn merge(mut lanes: impl Iterator<Item = Self>) -> Option<Self> {
        let mut merged = lanes.next()?;
        let at: HashMap<PublicKey, usize> = merged.peers.iter().enumerate().map(|(at, peer)| (peer.public_key, at)).collect();
        for lane in lanes {
            merged.lanes.extend(lane.lanes);
            merged.drops.add(&lane.drops);
            merged.unknown_initiations += lane.unknown_initiations;
            merged.last_unknown = merged.last_unknown.or(lane.last_unknown);
            merged.unknown_recently |= lane.unknown_recently;
            merged.last_misaddressed = merged.last_misaddressed.or(lane.last_misaddressed);
            for peer in lane.peers {
                let Some(first) = at.get(&peer.public_key).and_then(|at| merged.peers.get_mut(*at)) else { continue };
                first.received_bytes += peer.received_bytes;
                first.sent_bytes += peer.sent_bytes;
                first.received_packets += peer.received_packets;
                first.sent_packets += peer.sent_packets;
                first.queued_packets += peer.queued_packets;
                // What one lane cannot carry, the peer cannot be promised.
                first.path_mtu = first.path_mtu.zip(peer.path_mtu).map_or(first.path_mtu, |(one, other)| Some(one.min(other)));
                first.path_limited |= peer.path_limited;
                if let (Some(first), Some(probe)) = (&mut first.probe, peer.probe) {
                    first.sent += probe.sent;
                    first.answered += probe.answered;
                    first.switches += probe.switches;
                }
            }
        }
        Some(merged)
    }
}

/// Whether a lane may be given packets: it has a session that answers with a peer at least, and with every peer that the
/// first lane has one with. The first may always.
pub fn carries(first: &Snapshot, lane: &Snapshot) -> bool {
    let mut up = first.peers.iter().filter(|peer| peer.answers()).map(|peer| peer.public_key);
    let here: HashSet<PublicKey> = lane.peers.iter().filter(|peer| peer.answers()).map(|peer| peer.public_key).collect();
    !here.is_empty() && up.all(|peer| here.contains(&peer))
}

impl PeerSnapshot {
    /// A session stands, and probes, if there are any, do not say that it is of no use.
    pub fn answers(&self) -> bool {
        self.state == PeerState::Up && !self.is_silent()
    }

    /// Probes have met with silence.
    pub fn is_silent(&self) -> bool {
        self.probe.is_some_and(|probe| probe.silent)
    }
}
