//! What is known of the way to a peer: whether it works, which endpoint it uses, how large a packet it takes.
//!
//! Joins [`Failover`] and [`Discovery`] to the echoes that both live on ([`Echo`]): they decide what to send and what an
//! answer means, the peer seals and sends it. A small echo is a probe of the path, a padded one of its size; the length
//! tells which, so that no state is needed to tell them apart.
//!
//! A peer that is not probed has a path too: one that works until handshakes say otherwise and takes the tunnel's MTU.

use std::net::IpAddr;
use std::time::Instant;

use rand_core::{OsRng, RngCore};

use crate::discovery::Discovery;
use crate::failover::{Action, Failover, FailoverSettings};
use crate::probe::Echo;
use crate::settings::{PeerSettings, ProbeSettings};
use crate::stats::ProbeSnapshot;

/// The smallest size that discovery tries: what every IPv4 host takes is 576 (RFC 791 §3.2), less what a tunnel costs.
const FLOOR: u32 = 552;

pub(crate) struct Path {
    /// Our own addresses inside the tunnel, to ask from.
    own: Vec<IpAddr>,
    mtu: u32,
    probing: Option<Probing>,
}

struct Probing {
    echo: Echo,
    failover: Failover,
    discovery: Discovery,
    /// Of padded echoes.
    sequence: u16,
    session: bool,
}

/// What the peer is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Send an echo of so many bytes; by that endpoint, or by the one in use.
    Echo { by: Option<usize>, sequence: u16, length: usize },
    /// Everything goes to the endpoint of this index; `back`: because a better one works again.
    Move { to: usize, back: bool },
    /// Send a handshake initiation.
    Ask,
    /// The path takes packets of another size than was thought.
    Resized { from: u32, to: u32 },
}

impl Path {
    pub(crate) fn new(settings: &PeerSettings, own: &[IpAddr], mtu: u32, now: Instant) -> Self {
        let probing = settings.probe.as_ref().and_then(|probe| Probing::new(probe, own, mtu, now));
        Self { own: own.to_vec(), mtu, probing }
    }

    /// Takes edited settings. What is known of the path stays unless another target is asked.
    ///
    /// `active`: the endpoint in use; none if it is an address that was roamed to.
    pub(crate) fn edit(&mut self, settings: &PeerSettings, endpoints: usize, active: Option<usize>, now: Instant) {
        match (&settings.probe, &mut self.probing) {
            (Some(probe), Some(probing)) if probing.echo.target == probe.target => probing.failover.set_settings(failover_settings(probe)),
            (probe, probing) => {
                *probing = probe.as_ref().and_then(|probe| Probing::new(probe, &self.own, self.mtu, now));
                self.set_endpoints(endpoints, active, now);
            }
        }
    }

    pub(crate) fn set_mtu(&mut self, mtu: u32, now: Instant) {
        self.mtu = mtu;
        if let Some(probing) = &mut self.probing {
            probing.discovery.set_ceiling(mtu, FLOOR.min(mtu), now);
        }
    }

    /// `active`: as for [`Self::edit`].
    pub(crate) fn set_endpoints(&mut self, count: usize, active: Option<usize>, now: Instant) {
        if let Some(probing) = &mut self.probing {
            probing.failover.set_endpoints(count, active.unwrap_or(0), now);
            if active.is_none() {
                probing.failover.roamed();
            }
            probing.restart(now);
        }
    }

    /// The largest inner packet that gets through, as far as is known, in bytes.
    pub(crate) fn largest_packet(&self) -> usize {
        self.probing.as_ref().map_or(self.mtu, |probing| probing.discovery.effective()) as usize
    }

    pub(crate) const fn is_probed(&self) -> bool {
        self.probing.is_some()
    }

    /// A handshake was answered by the endpoint in use: it works, whatever becomes of probes.
    pub(crate) fn proven(&mut self) {
        if let Some(probing) = &mut self.probing {
            probing.failover.proven();
        }
    }

    /// Whether the peer may follow a datagram that came from the endpoint of this index.
    pub(crate) fn may_follow(&self, endpoint: usize, now: Instant) -> bool {
        self.probing.as_ref().is_none_or(|probing| probing.failover.may_follow(endpoint, now))
    }

    /// The peer is reached by another endpoint, not by our verdict; None: by an address that is none of them.
    pub(crate) fn followed(&mut self, endpoint: Option<usize>, now: Instant) {
        let Some(probing) = &mut self.probing else { return };
        match endpoint {
            Some(endpoint) => probing.failover.followed(endpoint, now),
            None => probing.failover.roamed(),
        }
        probing.restart(now);
    }

    /// Takes an answer to an echo of ours; false if `packet` is none.
    pub(crate) fn is_answer(&mut self, packet: &[u8], now: Instant) -> bool {
        let Some(probing) = &mut self.probing else { return false };
        let Some((sequence, length)) = probing.echo.recognise(packet) else { return false };
        if length == probing.echo.smallest() {
            if probing.failover.handle_answer(sequence, now).is_some() {
                probing.discovery.small_answered(now);
            }
        } else {
            probing.discovery.handle_answer(length as u32, now);
        }
        true
    }

    /// The next thing to do; to be called until there is none. `session`: whether one stands.
    pub(crate) fn next_step(&mut self, session: bool, now: Instant) -> Option<Step> {
        let probing = self.probing.as_mut()?;
        if probing.session != session {
            probing.session = session;
            if session {
                probing.failover.session_started(now);
                probing.restart(now);
            } else {
                probing.failover.session_ended();
            }
        }
        if !session {
            return None;
        }
        let length = probing.echo.smallest();
        match probing.failover.handle_timeout(now) {
            Some(Action::Probe { sequence, .. }) => return Some(Step::Echo { by: None, sequence, length }),
            Some(Action::TrialProbe { endpoint, sequence }) => return Some(Step::Echo { by: Some(endpoint), sequence, length }),
            Some(Action::Move { to }) => {
                probing.restart(now);
                return Some(Step::Move { to, back: false });
            }
            Some(Action::Back { to }) => {
                probing.restart(now);
                return Some(Step::Move { to, back: true });
            }
            Some(Action::Ask) => return Some(Step::Ask),
            None => {}
        }
        if let Some((from, to)) = probing.discovery.take_change() {
            return Some(Step::Resized { from, to });
        }
        let size = probing.discovery.poll(now)?;
        probing.sequence = probing.sequence.wrapping_add(1);
        Some(Step::Echo { by: None, sequence: probing.sequence, length: size as usize })
    }

    /// Whether it was not yet told that a session came or went.
    pub(crate) fn is_behind(&self, session: bool) -> bool {
        self.probing.as_ref().is_some_and(|probing| probing.session != session)
    }

    /// When the next step is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let probing = self.probing.as_ref()?;
        let (failover, discovery) = (probing.failover.poll_timeout(), probing.discovery.poll_timeout());
        // Sizes are measured in a session alone.
        failover.map(|at| discovery.map_or(at, |discovery| at.min(discovery)))
    }

    /// Writes the echo of a step.
    pub(crate) fn write_echo(&self, sequence: u16, length: usize, room: &mut [u8]) -> Option<usize> {
        self.probing.as_ref()?.echo.write(sequence, length, room)
    }

    /// The largest size that was seen to get through.
    pub(crate) fn path_mtu(&self) -> Option<u32> {
        self.probing.as_ref()?.discovery.path_mtu()
    }

    pub(crate) fn is_limited(&self) -> bool {
        self.probing.as_ref().is_some_and(|probing| probing.discovery.limited())
    }

    pub(crate) fn snapshot(&self) -> Option<ProbeSnapshot> {
        let stats = self.probing.as_ref()?.failover.snapshot();
        Some(ProbeSnapshot {
            rtt: stats.rtt,
            sent: stats.sent,
            answered: stats.answered,
            misses: stats.misses,
            silent: stats.silent,
            switches: stats.switches,
            on_trial: stats.on_trial,
        })
    }
}

impl Probing {
    /// None if we have no address of the target's family to ask from.
    fn new(settings: &ProbeSettings, own: &[IpAddr], mtu: u32, now: Instant) -> Option<Self> {
        let source = own.iter().copied().find(|own| own.is_ipv4() == settings.target.is_ipv4())?;
        let echo = Echo::new(source, settings.target, OsRng.next_u64());
        let failover = Failover::new(failover_settings(settings), now);
        Some(Self { echo, failover, discovery: Discovery::new(mtu, FLOOR.min(mtu)), sequence: 0, session: false })
    }

    /// Another path: late answers say nothing about it, and its size is not known.
    fn restart(&mut self, now: Instant) {
        self.echo.renew(OsRng.next_u64());
        self.discovery.restart(now);
    }
}

const fn failover_settings(settings: &ProbeSettings) -> FailoverSettings {
    FailoverSettings { every: settings.every, misses: settings.misses, hold_down: settings.hold_down }
}
