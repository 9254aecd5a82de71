//! Which of a peer's endpoints is active: probes, misses, failover and fail-back.
//!
//! The peer's state does not show that a path has died: WireGuard notices after 15 to 20 s, and only if there is
//! traffic. So the active endpoint is probed through the tunnel every `every`, and `misses` in a row move the peer to
//! the next endpoint (900 ms with the usual 300 ms and 3).
//!
//! ```text
//!   no session ──session_started──► Probing ◄───────────────────────────────────────┐
//!       ▲                             │  every `every`: Probe                       │
//!       └───── session_ended ─────────┤  answered since the last one: misses = 0    │
//!            (from anywhere)          │  else, once anything was answered: misses+1 │
//!                                     ▼                                             │
//!                    window missed: Move to the next endpoint, Ask for a handshake ─┤
//!                                     after a full cycle without an answer the      │
//!                                     window doubles, up to 10 s                    │
//!                                                                                   │
//!   active is not the first, it answers, hold-down over                             │
//!       ──► Trial of each better endpoint, the first one first:                     │
//!             three TrialProbes, one per `every`, while data stays where it is      │
//!             all three answered: Back ─────────────────────────────────────────────┤
//!             one not answered in time: the next better one, else hold down again ──┘
//! ```
//!
//! Details that matter:
//! - **A far end that never answers echoes moves nothing**: misses count only after one answer since the session began.
//! - **An answer counts for the path it was asked on.** What was sent before a move says nothing about where we are now.
//! - **Ask** goes one miss before the first verdict, and with each missed window, also with a single endpoint: the far side may have restarted, and then its
//!   answer to an initiation is the quickest news. As the window doubles, a dead far end is asked every 10 s at most.
//! - **Standbys are probed in a trial only**: an authenticated datagram makes the other end roam. The same goes for us:
//!   the answer to a trial probe may come from the endpoint on trial, and after a move late datagrams come from the one
//!   just left. [`Failover::may_follow`] says which the peer must not follow.
//! - **Flaps are damped**: the first failover within ten hold-downs after a fail-back doubles the hold-down, up to
//!   10 min; an hour without failover restores it. Only the first counts: one outage that goes round all endpoints is
//!   one flap.
//! - **A target that is down is not a path that is down**: the handshake that is asked for one miss before the verdict is
//!   answered then, which counts as an answer; the window doubles meanwhile, up to 10 s.
//! - **A roamed address** is probed like an endpoint; there is no trial while it stands, and a missed window leads back
//!   to endpoint 0.
//!
//! Left out: what a probe looks like (`probe`), addresses, and the clock. Nothing here allocates.

use std::time::{Duration, Instant};

/// Probes that may be under way at once; an answer later than that many intervals is not known any more.
const OUTSTANDING: usize = 64;
/// An interval of zero would never let `handle_timeout` come to an end.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(1);
/// The longest that a window grows to while nothing answers.
const LONGEST_WINDOW: Duration = Duration::from_secs(10);
/// Answers to trial probes that lead back. More would find more loss, and take longer.
const TRIAL_PROBES: usize = 3;
/// The least time in which a trial probe must be answered: a better path may well be a slower one.
const TRIAL_PATIENCE: Duration = Duration::from_secs(1);
/// A failover within this many hold-downs after a fail-back is a flap.
const FLAP_HOLD_DOWNS: u32 = 10;
const LONGEST_HOLD_DOWN: Duration = Duration::from_secs(600);
/// Without failover for this long, the hold-down is what was configured.
const CALM: Duration = Duration::from_secs(3600);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FailoverSettings {
    pub(crate) every: Duration,
    /// Probes in a row that must fail before the endpoint counts as dead; 0 is taken for 1.
    pub(crate) misses: u32,
    /// How long a better endpoint is left alone after a move.
    pub(crate) hold_down: Duration,
}

/// What the peer shall do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Send an echo to where the peer is reached: `endpoint`, or the address that it roamed to.
    Probe { endpoint: usize, sequence: u16 },
    /// Send an echo by `endpoint`, which is not the active one; data stays where it is.
    TrialProbe { endpoint: usize, sequence: u16 },
    /// The active endpoint is dead: everything goes to this one.
    Move { to: usize },
    /// A better endpoint works again: everything goes to this one.
    Back { to: usize },
    /// Send a handshake initiation to the active endpoint.
    Ask,
}

/// Probes in numbers. `sent` and `answered` are those of active endpoints, without trials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct ProbeStats {
    /// Smoothed over about eight answers (RFC 6298 §2), of the path that is in use now.
    pub(crate) rtt: Option<Duration>,
    pub(crate) sent: u64,
    pub(crate) answered: u64,
    /// In a row, in this window.
    pub(crate) misses: u32,
    /// A whole window was missed, and nothing was answered since.
    pub(crate) silent: bool,
    /// Moves and ways back, by our own verdict.
    pub(crate) switches: u64,
    pub(crate) on_trial: Option<usize>,
    /// No better endpoint is tried before this; none if the first endpoint is active.
    pub(crate) hold_down_until: Option<Instant>,
}

/// Which endpoint is active. Knows endpoints by index only, in order of preference.
#[derive(Debug)]
pub(crate) struct Failover {
    settings: FailoverSettings,
    /// What the hold-down has grown to.
    hold_down: Duration,
    endpoints: usize,
    active: usize,
    roamed: bool,
    session: bool,
    /// Something was answered since the session began.
    heard: bool,
    next_probe: Instant,
    sequence: u16,
    /// Changes with the path: an answer counts for the path that its probe took.
    path: u64,
    /// By sequence number modulo `OUTSTANDING`.
    outstanding: [Option<Sent>; OUTSTANDING],
    /// A probe was sent on this path that the next one will judge.
    waiting: bool,
    /// The path has answered since the last probe.
    answered_since: bool,
    /// The path has answered at all.
    answers: bool,
    misses: u32,
    /// Windows missed in this cycle, and cycles in a row: both without any answer.
    missed_windows: usize,
    missed_cycles: u32,
    /// Windows that a handshake answered and no probe did, in a row: the target is down, and asking grows slower.
    proofs: u32,
    ask: bool,
    trial: Option<Trial>,
    hold_down_until: Option<Instant>,
    /// The endpoint that we left by our own verdict, not to be followed until then.
    left: Option<(usize, Instant)>,
    last_back: Option<Instant>,
    last_move: Option<Instant>,
    rtt: Option<Duration>,
    sent: u64,
    answered: u64,
    switches: u64,
}

#[derive(Debug, Clone, Copy)]
struct Sent {
    sequence: u16,
    at: Instant,
    path: u64,
}

/// A better endpoint and the probes it was sent.
#[derive(Debug, Clone, Copy)]
struct Trial {
    endpoint: usize,
    probes: [Option<TrialProbe>; TRIAL_PROBES],
    next: Instant,
}

#[derive(Debug, Clone, Copy)]
struct TrialProbe {
    sequence: u16,
    at: Instant,
    answered: Option<Instant>,
}

impl Failover {
    pub(crate) const fn new(settings: FailoverSettings, now: Instant) -> Self {
        Self {
            settings,
            hold_down: settings.hold_down,
            endpoints: 0,
            active: 0,
            roamed: false,
            session: false,
            heard: false,
            next_probe: now,
            sequence: 0,
            path: 0,
            outstanding: [None; OUTSTANDING],
            waiting: false,
            answered_since: false,
            answers: false,
            misses: 0,
            missed_windows: 0,
            missed_cycles: 0,
            proofs: 0,
            ask: false,
            trial: None,
            hold_down_until: None,
            left: None,
            last_back: None,
            last_move: None,
            rtt: None,
            sent: 0,
            answered: 0,
            switches: 0,
        }
    }

    /// Takes edited settings; what is known of the endpoints stays.
    pub(crate) fn set_settings(&mut self, settings: FailoverSettings) {
        if self.settings.hold_down != settings.hold_down {
            self.hold_down = settings.hold_down;
        }
        self.settings = settings;
    }

    /// The list of endpoints is another one: `count` of them, `active` in use from now on.
    pub(crate) fn set_endpoints(&mut self, count: usize, active: usize, now: Instant) {
        self.endpoints = count;
        self.left = None;
        self.forget_misses();
        self.use_endpoint(active.min(count.saturating_sub(1)), now);
    }

    /// The peer is reached by the endpoint `to` from now on, and that was not our verdict: the far side moved, or
    /// handshakes went unanswered. Nothing happens if it is the active one already.
    pub(crate) fn followed(&mut self, to: usize, now: Instant) {
        if to < self.endpoints && (to != self.active || self.roamed) {
            self.use_endpoint(to, now);
        }
    }

    /// The peer roamed to an address that is none of the endpoints.
    pub(crate) fn roamed(&mut self) {
        if !self.roamed {
            self.start_path();
            self.roamed = true;
            self.hold_down_until = None;
        }
    }

    /// A session stands. Nothing happens if one stood already: a renewed session is no new beginning.
    pub(crate) fn session_started(&mut self, now: Instant) {
        if self.session {
            return;
        }
        self.session = true;
        self.heard = false;
        self.forget_misses();
        self.start_path();
        self.hold_down(now);
        self.next_probe = now;
    }

    /// No session stands: nothing can be probed.
    pub(crate) fn session_ended(&mut self) {
        self.session = false;
        self.ask = false;
        self.start_path();
        self.hold_down_until = None;
    }

    /// Whether the peer may follow an authenticated datagram that came from the endpoint of this index.
    ///
    /// Not to the one on trial, whose answers are no reason to move data, and not within one window to the one that was
    /// just left, whose datagrams were on their way. A handshake initiation may always be followed.
    pub(crate) fn may_follow(&self, endpoint: usize, now: Instant) -> bool {
        let on_trial = self.trial.is_some_and(|trial| trial.endpoint == endpoint);
        let just_left = self.left.is_some_and(|(left, until)| left == endpoint && now < until);
        !on_trial && !just_left
    }

    /// The next thing to do; to be called until there is none.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Option<Action> {
        if !self.session {
            return None;
        }
        if self.last_move.is_some_and(|at| now.saturating_duration_since(at) >= CALM) {
            self.hold_down = self.settings.hold_down;
        }
        if std::mem::take(&mut self.ask) {
            return Some(Action::Ask);
        }
        if let Some(trial) = self.trial
            && trial.won().is_some()
        {
            return Some(self.back(trial.endpoint, now));
        }
        if now >= self.next_probe {
            if std::mem::take(&mut self.waiting) && !self.answered_since && self.heard {
                self.misses += 1;
                if self.misses >= self.window() {
                    return Some(self.fail_over(now));
                }
                // One miss before the verdict: if the far side has restarted, its answer comes in time to change it.
                self.ask |= self.misses + 1 == self.window() && self.missed_windows == 0 && self.missed_cycles == 0;
            }
            return Some(self.probe(now));
        }
        self.handle_trial(now)
    }

    /// An echo came back that `probe::Echo` recognised. Returns its round-trip time, or None if no probe with this
    /// sequence number is outstanding (answered already, or long ago).
    pub(crate) fn handle_answer(&mut self, sequence: u16, now: Instant) -> Option<Duration> {
        if let Some(probe) = self.trial.as_mut().and_then(|trial| trial.probe(sequence)) {
            if probe.answered.is_some() {
                return None;
            }
            probe.answered = Some(now);
            return Some(now.saturating_duration_since(probe.at));
        }
        let sent = self.outstanding.get_mut(place(sequence))?.take_if(|sent| sent.sequence == sequence)?;
        let rtt = now.saturating_duration_since(sent.at);
        self.answered += 1;
        if sent.path == self.path {
            self.heard = true;
            self.answers = true;
            self.answered_since = true;
            self.forget_misses();
            self.rtt = Some(self.rtt.map_or(rtt, |smoothed| (smoothed * 7 + rtt) / 8));
        }
        Some(rtt)
    }

    /// The path works both ways, as an answered handshake says: misses so far are the target's, not the path's.
    pub(crate) fn proven(&mut self) {
        self.answered_since = true;
        if self.misses > 0 || self.missed_windows > 0 || self.missed_cycles > 0 {
            self.proofs = self.proofs.saturating_add(1);
        }
        self.misses = 0;
        self.missed_windows = 0;
        self.missed_cycles = 0;
    }

    /// The moment at which `handle_timeout` has something to do; None without a session.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        if !self.session {
            return None;
        }
        let trial = match &self.trial {
            Some(trial) => trial.won().or_else(|| trial.due(self.trial_patience())),
            None => self.hold_down_until.filter(|_| self.may_try()),
        };
        Some(trial.map_or(self.next_probe, |trial| trial.min(self.next_probe)))
    }

    pub(crate) fn snapshot(&self) -> ProbeStats {
        ProbeStats {
            rtt: self.rtt,
            sent: self.sent,
            answered: self.answered,
            misses: self.misses,
            silent: self.session && (self.missed_windows > 0 || self.missed_cycles > 0),
            switches: self.switches,
            on_trial: self.trial.map(|trial| trial.endpoint),
            hold_down_until: self.hold_down_until,
        }
    }

    /// How many misses in a row make a verdict: as configured, doubled for each cycle without any answer as long as
    /// that takes no more than `LONGEST_WINDOW`.
    fn window(&self) -> u32 {
        let misses = self.settings.misses.max(1);
        let longest = LONGEST_WINDOW.as_millis() / self.settings.every.as_millis().max(1);
        let longest = u32::try_from(longest).unwrap_or(u32::MAX);
        let doubled = misses.saturating_mul(1 << self.missed_cycles.saturating_add(self.proofs).min(16)).min(longest.max(misses));
        // With one miss there is no time to ask before the verdict; once a handshake has spoken for the path, there is.
        if self.proofs > 0 { doubled.max(2) } else { doubled }
    }

    fn probe(&mut self, now: Instant) -> Action {
        let sequence = self.next_sequence();
        if let Some(place) = self.outstanding.get_mut(place(sequence)) {
            *place = Some(Sent { sequence, at: now, path: self.path });
        }
        self.sent += 1;
        self.waiting = true;
        self.answered_since = false;
        // From now, not from when it was due: after a pause there is no burst, and no answer is expected too soon.
        self.next_probe = now + self.settings.every.max(SHORTEST_INTERVAL);
        Action::Probe { endpoint: self.active, sequence }
    }

    /// A window was missed. The next call asks for a handshake, the one after it probes the new path at once.
    fn fail_over(&mut self, now: Instant) -> Action {
        self.misses = 0;
        self.missed_windows += 1;
        if self.missed_windows >= self.endpoints.max(1) {
            self.missed_windows = 0;
            self.missed_cycles = self.missed_cycles.saturating_add(1);
        }
        let to = if self.roamed { 0 } else { (self.active + 1) % self.endpoints.max(1) };
        if self.endpoints == 0 || (to == self.active && !self.roamed) {
            return Action::Ask;
        }
        self.ask = true;
        if self.last_back.take().is_some_and(|back| now.saturating_duration_since(back) <= self.hold_down * FLAP_HOLD_DOWNS) {
            self.hold_down = (self.hold_down * 2).min(LONGEST_HOLD_DOWN.max(self.settings.hold_down));
        }
        self.last_move = Some(now);
        self.leave(now);
        self.use_endpoint(to, now);
        Action::Move { to }
    }

    /// The better endpoint `to` has won its trial.
    fn back(&mut self, to: usize, now: Instant) -> Action {
        self.last_back = Some(now);
        self.leave(now);
        self.forget_misses();
        self.use_endpoint(to, now);
        self.next_probe = now;
        Action::Back { to }
    }

    /// Counts a switch by our own verdict, away from the active endpoint.
    fn leave(&mut self, now: Instant) {
        self.switches += 1;
        self.left = (!self.roamed).then(|| (self.active, now + self.settings.every * self.settings.misses.max(1)));
    }

    fn use_endpoint(&mut self, to: usize, now: Instant) {
        self.start_path();
        self.active = to;
        self.roamed = false;
        self.hold_down(now);
    }

    /// Whatever was sent so far went another way.
    fn start_path(&mut self) {
        self.path += 1;
        self.waiting = false;
        self.answered_since = false;
        self.answers = false;
        self.misses = 0;
        self.rtt = None;
        self.trial = None;
    }

    fn forget_misses(&mut self) {
        self.misses = 0;
        self.missed_windows = 0;
        self.missed_cycles = 0;
        self.proofs = 0;
    }

    fn hold_down(&mut self, now: Instant) {
        self.hold_down_until = (self.active != 0 && !self.roamed).then(|| now + self.hold_down);
    }

    /// There is a better endpoint, and the active one works, so that there is no hurry.
    const fn may_try(&self) -> bool {
        self.active != 0 && !self.roamed && self.answers && self.misses == 0
    }

    fn trial_patience(&self) -> Duration {
        (self.settings.every * self.settings.misses.max(1)).max(TRIAL_PATIENCE)
    }

    fn handle_trial(&mut self, now: Instant) -> Option<Action> {
        let patience = self.trial_patience();
        let endpoint = match &self.trial {
            Some(trial) if trial.lost(patience, now) => trial.endpoint + 1,
            Some(trial) => trial.endpoint,
            None if self.may_try() && self.hold_down_until.is_some_and(|until| now >= until) => 0,
            None => return None,
        };
        if endpoint >= self.active {
            self.trial = None;
            self.hold_down(now);
            return None;
        }
        if self.trial.is_none_or(|trial| trial.endpoint != endpoint) {
            self.trial = Some(Trial { endpoint, probes: [None; TRIAL_PROBES], next: now });
        }
        if self.trial.is_none_or(|trial| !trial.may_send(now)) {
            return None;
        }
        let sequence = self.next_sequence();
        let every = self.settings.every;
        let trial = self.trial.as_mut()?;
        let place = trial.probes.iter_mut().find(|probe| probe.is_none())?;
        *place = Some(TrialProbe { sequence, at: now, answered: None });
        trial.next = now + every;
        Some(Action::TrialProbe { endpoint, sequence })
    }

    const fn next_sequence(&mut self) -> u16 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }
}

impl Trial {
    fn probe(&mut self, sequence: u16) -> Option<&mut TrialProbe> {
        self.probes.iter_mut().flatten().find(|probe| probe.sequence == sequence)
    }

    /// When the last answer came, if all probes are sent and answered.
    fn won(&self) -> Option<Instant> {
        let mut last: Option<Instant> = None;
        for probe in self.probes {
            last = last.max(Some(probe?.answered?));
        }
        last
    }

    fn lost(&self, patience: Duration, now: Instant) -> bool {
        self.oldest_unanswered().is_some_and(|at| now >= at + patience)
    }

    fn may_send(&self, now: Instant) -> bool {
        now >= self.next && self.probes.iter().any(Option::is_none)
    }

    /// When there is something to send or to give up.
    fn due(&self, patience: Duration) -> Option<Instant> {
        let send = self.probes.iter().any(Option::is_none).then_some(self.next);
        let lost = self.oldest_unanswered().map(|at| at + patience);
        send.into_iter().chain(lost).min()
    }

    fn oldest_unanswered(&self) -> Option<Instant> {
        self.probes.iter().flatten().filter(|probe| probe.answered.is_none()).map(|probe| probe.at).min()
    }
}

fn place(sequence: u16) -> usize {
    usize::from(sequence) % OUTSTANDING
}

#[cfg(test)]
mod tests;
