//! Whether a path is fit for use: what its probes and the sessions by it tell, turned into one verdict.
//!
//! A next hop that answers proves nothing: a tunnel may be up, a parent may accept, and still nothing reaches Defender.
//! So a probe goes *through* the path, a whole TLS handshake with a Defender host, and what it brings is counted here.
//!
//! ```text
//!              a good probe
//!   Unknown ───────────────────► Up ◄───────────────────────────────────────┐
//!   (usable)                  (usable)                                      │ `successes` good probes in all:
//!      │                          │                                         │ CameBack, the ramp begins
//!      │ `failures` in a row      │ `failures` in a row                     │
//!      └────────────────────────► Down ──── a good probe, hold-down over ──► Returning
//!             WentDown             ▲                                        │
//!                                  └── a failure: the hold-down once more ──┘
//! ```
//!
//! Details that matter:
//! - **Unknown is usable**, so that a gateway serves at once; its first probe is due at once.
//! - **Sessions count too**: one that could not be opened is a failure, but at most one a second, or a storm would be
//!   a verdict; and the last strike is a probe's, which then comes at once: a session may have wanted a host that is dead. One that could is the end of a row of failures: the host that is probed may be the one that is dead.
//!   It does not bring a path back: a dial does not show who answers the TLS handshake.
//! - **In doubt the probes come quicker**: every 5 s unless the path is up and its last result was good.
//! - **Interception** (the chain leads to none of the roots) is a failure, unless `trust_interception` says that it is meant to be
//!   there. A session's success does not outweigh it.
//! - **Flaps are damped**: a fall within 5 minutes of a return doubles the hold-down, up to 10 minutes; 10 minutes up
//!   restore it.
//! - **Readmission is gradual**: a tenth of the new sessions at first, all of them after `ramp`. Which ones is counted, not
//!   thrown; where the count begins, and each probe's time, differ with the seed, so that a fleet does not move as one.
//!
//! It does no I/O and reads no clock. Left out: what a probe does, which path a session takes, and what happens to
//! the sessions of a path that goes down.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Between probes while a path is not up, or in doubt.
const EVERY_IN_DOUBT: Duration = Duration::from_secs(5);
/// An interval of zero would never let the prober rest.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);
/// Sessions that fail within this time are one failure.
const SESSION_FAILURES_APART: Duration = Duration::from_secs(1);
/// A fall this soon after a return is a flap.
const FLAP: Duration = Duration::from_secs(300);
const LONGEST_HOLD_DOWN: Duration = Duration::from_secs(600);
/// Up for this long, a path has the hold-down that was configured.
const QUIET: Duration = Duration::from_secs(600);
/// The whole of the new sessions, in thousandths.
const ALL: u32 = 1000;
/// The least share of them that a path on its ramp is given, in thousandths.
const LEAST: u32 = ALL / 10;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthSettings {
    /// In a row, until the path is down; 0 is taken for 1.
    pub failures: u32,
    /// Good probes that bring it back; 0 is taken for 1.
    pub successes: u32,
    /// How long a path that fell stays down, whatever its probes say.
    pub hold_down: Duration,
    /// Between probes while the path is up; in doubt 5 s, if that is less.
    pub every: Duration,
    /// How long after a return until all new sessions may take the path again.
    pub ramp: Duration,
    /// Somebody between here and Defender answers with certificates of its own, and that is meant to be so.
    pub trust_interception: bool,
}

impl Default for HealthSettings {
    fn default() -> Self {
        Self {
            failures: 3,
            successes: 2,
            hold_down: Duration::from_secs(30),
            every: Duration::from_secs(30),
            ramp: Duration::from_secs(10),
            trust_interception: false,
        }
    }
}

/// What one probe brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeResult {
    Good {
        took: Duration,
    },
    /// In words, and as one word for logs and metrics.
    Failed(String, &'static str),
    Intercepted {
        issuer: String,
    },
}

/// What the operator shall hear of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealthEvent {
    WentDown {
        why: String,
        reason: &'static str,
    },
    CameBack,
    /// Once for each issuer, not once for each probe.
    Intercepted {
        issuer: String,
    },
    NoLongerIntercepted,
}

/// What a path's health can tell about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthSnapshot {
    /// unknown, up, down, returning.
    pub state: &'static str,
    /// Since when it has been usable, or not.
    pub since: Instant,
    /// When a probe last succeeded.
    pub last_success: Option<Instant>,
    /// How long that probe took.
    pub took: Option<Duration>,
    /// Why the last probe or session that failed did.
    pub last_failure: Option<String>,
    /// Falls soon after a return, since the start.
    pub flaps: u64,
    /// How long the next fall will keep the path down at least.
    pub hold_down: Duration,
    /// Who issued the certificate that stands where Defender's should.
    pub intercepted_by: Option<String>,
}

/// The health of one path. The owner probes when [`Self::poll_timeout`] says so and hands in what came of it.
#[derive(Debug)]
pub struct PathHealth {
    settings: HealthSettings,
    state: State,
    since: Instant,
    /// Failures in a row.
    row: u32,
    next_probe: Instant,
    seed: u64,
    /// What is in force, flaps included.
    hold_down: Duration,
    /// When it last came back.
    returned: Option<Instant>,
    ramp: Option<Ramp>,
    last_session_failure: Option<Instant>,
    last_success: Option<Instant>,
    took: Option<Duration>,
    last_failure: Option<String>,
    flaps: u64,
    intercepted_by: Option<String>,
    events: VecDeque<HealthEvent>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Unknown,
    Up,
    /// `until`: the end of the hold-down.
    Down {
        until: Instant,
    },
    /// On trial: good probes so far.
    Returning {
        good: u32,
    },
}

#[derive(Debug, Clone, Copy)]
struct Ramp {
    from: Instant,
    /// What past sessions have left over, in thousandths of a session.
    credit: u32,
}

impl PathHealth {
    /// `seed` tells this path, on this gateway, from all others.
    pub fn new(settings: HealthSettings, seed: u64, now: Instant) -> Self {
        Self {
            state: State::Unknown,
            since: now,
            row: 0,
            next_probe: now,
            seed,
            hold_down: settings.hold_down,
            returned: None,
            ramp: None,
            last_session_failure: None,
            last_success: None,
            took: None,
            last_failure: None,
            flaps: 0,
            intercepted_by: None,
            events: VecDeque::new(),
            settings,
        }
    }

    /// Takes what a probe brought and sets the time of the next.
    pub fn handle_result(&mut self, result: ProbeResult, now: Instant) {
        match result {
            ProbeResult::Good { took } => {
                if self.intercepted_by.take().is_some() {
                    self.events.push_back(HealthEvent::NoLongerIntercepted);
                }
                self.took = Some(took);
                self.succeed(now);
            }
            ProbeResult::Failed(why, reason) => self.fail(why, reason, now),
            ProbeResult::Intercepted { issuer } => {
                if self.intercepted_by.as_deref() != Some(issuer.as_str()) {
                    self.events.push_back(HealthEvent::Intercepted { issuer: issuer.clone() });
                    self.intercepted_by = Some(issuer.clone());
                }
                if self.settings.trust_interception {
                    self.succeed(now);
                } else {
                    self.fail(format!("TLS is intercepted: {issuer} issued the certificate"), "intercepted", now);
                }
            }
        }
        self.next_probe = now + self.interval();
    }

    /// Takes whether a session could be opened by this path.
    ///
    /// `ok: false` is for failures of the way itself (the tunnel, a parent, silence). A target that refuses, and a name
    /// that does not resolve to what may be dialled, say nothing about the path. May make the next probe due earlier.
    pub fn handle_session(&mut self, ok: bool, now: Instant) {
        if ok {
            if self.intercepted_by.is_none() || self.settings.trust_interception {
                self.row = 0;
            }
            return;
        }
        if self.last_session_failure.is_some_and(|last| now.saturating_duration_since(last) < SESSION_FAILURES_APART) {
            return;
        }
        self.last_session_failure = Some(now);
        // The last strike is a probe's: the host that a session wanted may be the one that is dead.
        if self.row + 1 >= self.settings.failures.max(1) && self.is_usable() {
            self.next_probe = now;
            return;
        }
        self.fail("sessions could not be opened by this path".to_owned(), "sessions_failed", now);
        self.next_probe = self.next_probe.min(now + self.interval());
    }

    /// Whether a new session may take this path now, as far as the ramp after a return lets it. Each answer counts as a
    /// session.
    ///
    /// Where no other path is usable, ask [`Self::is_usable`] alone: a ramp is there to spare a path, not to refuse.
    pub fn admits(&mut self, now: Instant) -> bool {
        if !self.is_usable() {
            return false;
        }
        let Some(ramp) = &mut self.ramp else { return true };
        let share = share(now.saturating_duration_since(ramp.from), self.settings.ramp);
        if share >= ALL {
            self.ramp = None;
            return true;
        }
        ramp.credit += share;
        let admitted = ramp.credit >= ALL;
        if admitted {
            ramp.credit -= ALL;
        }
        admitted
    }

    pub fn poll_event(&mut self) -> Option<HealthEvent> {
        self.events.pop_front()
    }

    /// When the next probe is due.
    pub const fn poll_timeout(&self) -> Instant {
        self.next_probe
    }

    pub const fn is_usable(&self) -> bool {
        matches!(self.state, State::Unknown | State::Up)
    }

    pub fn snapshot(&self) -> HealthSnapshot {
        HealthSnapshot {
            state: self.state.label(),
            since: self.since,
            last_success: self.last_success,
            took: self.took,
            last_failure: self.last_failure.clone(),
            flaps: self.flaps,
            hold_down: self.hold_down,
            intercepted_by: self.intercepted_by.clone(),
        }
    }

    fn succeed(&mut self, now: Instant) {
        self.last_success = Some(now);
        self.row = 0;
        let good = match self.state {
            State::Up => return,
            State::Unknown => {
                self.state = State::Up;
                return;
            }
            State::Down { until } if now < until => return,
            State::Down { .. } => 1,
            State::Returning { good } => good.saturating_add(1),
        };
        if good < self.settings.successes {
            self.state = State::Returning { good };
        } else {
            self.come_back(now);
        }
    }

    fn fail(&mut self, why: String, reason: &'static str, now: Instant) {
        self.last_failure = Some(why.clone());
        self.row = self.row.saturating_add(1);
        match self.state {
            State::Unknown | State::Up => {
                if self.row >= self.settings.failures {
                    self.go_down(now);
                    self.events.push_back(HealthEvent::WentDown { why, reason });
                }
            }
            State::Returning { .. } => self.state = State::Down { until: now + self.hold_down },
            State::Down { .. } => {}
        }
    }

    fn go_down(&mut self, now: Instant) {
        if let Some(returned) = self.returned {
            let stood = now.saturating_duration_since(returned);
            if stood < FLAP {
                self.flaps += 1;
                let longest = LONGEST_HOLD_DOWN.max(self.settings.hold_down);
                self.hold_down = self.hold_down.saturating_mul(2).min(longest);
            } else if stood >= QUIET {
                self.hold_down = self.settings.hold_down;
            }
        }
        self.state = State::Down { until: now + self.hold_down };
        self.since = now;
        self.ramp = None;
    }

    fn come_back(&mut self, now: Instant) {
        self.state = State::Up;
        self.since = now;
        self.returned = Some(now);
        let credit = u32::try_from(self.draw() % u64::from(ALL)).unwrap_or_default();
        self.ramp = Some(Ramp { from: now, credit });
        self.events.push_back(HealthEvent::CameBack);
    }

    /// Until the next probe: a tenth more or less, so that gateways started together do not probe together for ever.
    fn interval(&mut self) -> Duration {
        let sure = self.state == State::Up && self.row == 0;
        let every = if sure { self.settings.every } else { self.settings.every.min(EVERY_IN_DOUBT) };
        let thousandths = u32::try_from(900 + self.draw() % 201).unwrap_or(1000);
        every.max(SHORTEST_INTERVAL).saturating_mul(thousandths) / 1000
    }

    /// The next of a row of numbers that the seed decides.
    fn draw(&mut self) -> u64 {
        // Weyl's sequence, its bits stirred: enough to spread, and the same in every run.
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let stirred = (self.seed ^ (self.seed >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        stirred ^ (stirred >> 32)
    }
}

impl State {
    const fn label(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Down { .. } => "down",
            Self::Returning { .. } => "returning",
        }
    }
}

/// Of all new sessions, in thousandths: a tenth for the first tenth of the ramp, then in a straight line to all.
fn share(elapsed: Duration, ramp: Duration) -> u32 {
    if elapsed >= ramp {
        return ALL;
    }
    // `ramp` is longer than `elapsed` here, so it is not zero.
    let thousandths = elapsed.as_nanos().saturating_mul(u128::from(ALL)) / ramp.as_nanos();
    u32::try_from(thousandths).unwrap_or(ALL).clamp(LEAST, ALL)
}

#[cfg(test)]
mod tests;
