//! Why packets were dropped. A drop is a value to count, not an error to propagate.

use std::fmt;

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// Why a packet or datagram went no further. The text is the label in logs and metrics.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum DropReason { $($(#[$doc])* $name,)* }

        impl DropReason {
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

drop_reasons! {
    /// Outward: no whole IPv4 or IPv6 packet.
    NotIp = "not_ip",
    /// Outward: no peer's allowed IPs contain the destination.
    NoPeer = "no_peer",
    /// Outward: multicast of the host's own (neighbour discovery, router solicitation), which no peer carries.
    Multicast = "multicast",
    /// Outward: a super-packet that the kernel described wrongly.
    BadOffload = "bad_offload",
    /// Outward: longer than the tunnel's MTU, or than the peer's path takes.
    TooBig = "too_big",
    /// Outward: no session yet and the peer's queue is full.
    QueueFull = "queue_full",
    /// Outward: waited in the queue for a session that did not come.
    QueueExpired = "queue_expired",
    /// Outward: the peer's address is not known.
    NoEndpoint = "no_endpoint",
    /// Outward: the batch had no room; a bug in the driver if it ever counts.
    BatchFull = "batch_full",
    /// Outward: the kernel did not take the datagram.
    SendFailed = "send_failed",
    /// Inward: no WireGuard message.
    Malformed = "malformed",
    /// Inward: a handshake made for another public key than ours, or noise.
    BadMac1 = "bad_mac1",
    /// Inward: more handshakes from one sender than a peer needs.
    TooManyHandshakes = "too_many_handshakes",
    /// Inward: a handshake while under load; a cookie went back.
    UnderLoad = "under_load",
    /// Inward: a handshake from a key that is not configured.
    UnknownKey = "unknown_key",
    /// Inward: a handshake with a timestamp that is not newer than the last.
    HandshakeReplay = "handshake_replay",
    /// Inward: a handshake message that does not open (preshared key or key differ), or fits no handshake of ours.
    HandshakeRefused = "handshake_refused",
    /// Inward: an index that no session has.
    UnknownIndex = "unknown_index",
    /// Inward: the session it names is gone.
    NoSession = "no_session",
    /// Inward: a counter that was seen before, or is too old for the window.
    Replay = "replay",
    /// Inward: it does not authenticate.
    BadTag = "bad_tag",
    /// Inward: authenticated, but what is inside is no whole IP packet.
    NotIpInside = "not_ip_inside",
    /// Inward: marked as congested on the way, and what is inside cannot say so: dropped, as RFC 6040 §4.2 demands.
    Congested = "congested",
    /// Inward: the source address belongs to another peer, or to none.
    SourceNotAllowed = "source_not_allowed",
    /// Inward: the TUN device or the userspace stack did not take the packet.
    PortRefused = "port_refused",
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// How often each reason occurred.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drops([u64; DropReason::ALL.len()]);

impl Drops {
    pub const fn new() -> Self {
        Self([0; DropReason::ALL.len()])
    }

    pub const fn count(&mut self, reason: DropReason) {
        self.0[reason as usize] += 1;
    }

    pub const fn get(&self, reason: DropReason) -> u64 {
        self.0[reason as usize]
    }

    /// Adds what another lane counted.
    pub fn add(&mut self, other: &Self) {
        for (count, more) in self.0.iter_mut().zip(other.0) {
            *count += more;
        }
    }

    /// Every reason with its count, also those at zero.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> {
        DropReason::ALL.iter().map(|reason| (*reason, self.get(*reason)))
    }
}

impl Default for Drops {
    fn default() -> Self {
        Self::new()
    }
}
