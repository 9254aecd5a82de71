//! What a tunnel can tell about itself, as plain values that leave the lane by copy.

use std::net::SocketAddr;
use std::time::SystemTime;

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
    pub allowed_ips: Vec<IpNet>,
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
}

/// One tunnel at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    pub public_key: PublicKey,
    pub listen_port: u16,
    pub mtu: u32,
    pub peers: Vec<PeerSnapshot>,
    pub drops: Drops,
    /// Handshake initiations from keys that are not configured: how many, and the last.
    pub unknown_initiations: u64,
    pub last_unknown: Option<(PublicKey, SocketAddr)>,
    /// Open streams of the userspace stack; none in TUN mode.
    pub streams: Option<usize>,
}
