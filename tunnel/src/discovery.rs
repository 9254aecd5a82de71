//! The largest inner packet that gets through to a peer and back: path-MTU discovery by padded echoes.
//!
//! A path that swallows large datagrams without a word (an "MTU black hole") lets handshakes and pings through and
//! stalls everything else. ICMP errors do not tell: they are filtered, or they come to the wrong layer, or anybody can
//! forge them. So the size is proven by what arrives: an answer to an echo of `size` bytes proves `size`, both ways.
//!
//! ```text
//!  restart ─► Verify ───────── answered ───────────► Settled ◄──────────────┐
//!               ▲  one probe of the size in use;      │  │                  │
//!               │  800 ms, then once more             │  └─ every 10 min, if limited: raise
//!               │      │                              │                │    │
//!               │      └─ two unanswered ──► Search ◄─│────────────────┘    │
//!               │                              │      │                     │
//!               ├──────── every 4 s ───────────│──────┘                     │
//!               ├──────── small probes cease ──┤                            │
//!               └──────── nothing known fits ──┤                            │
//!                      the top is answered, or the bounds are 8 bytes apart ┘
//! ```
//!
//! A search knows a size that fits (`low`, proven in this search) and one that does not (`high`), and sends a ladder of
//! eight sizes between them at once, both bounds included, a round every 250 ms. After five rounds the largest answered
//! size is the new `low` and the next above it, unanswered five times, the new `high`; if `low` rose only in the last
//! round there is a sixth. From 552..=1420 three ladders lead to steps of 124, 18 and 3 bytes.
//!
//! **Time.** A hole appears just after a check: 4 s to the next, twice 0.8 s, three ladders of five rounds, 3.75 s:
//! 9.35 s, and 0.3 s for a driver that looks every 100 ms. That is why rounds are 250 ms apart and not more.
//!
//! **Loss is not a small MTU.** With 20 % lost each way an echo goes unanswered with p = 1 − 0.8² = 0.36. The size in
//! use (`top`) is part of every ladder, and one answer to it ends the search without change. To be lowered in error it
//! must fail twice in Verify and in all 15 rounds of three ladders: 0.36¹⁷ ≈ 3·10⁻⁸ for each check, once in four
//! years of checks every 4 s. (Two ladders, when the range is under 400 bytes: 0.36¹² ≈ 5·10⁻⁶, and the next raise
//! mends it.) `high` is asked again by the next ladder: a fitting size is taken for a bad one by both with
//! 0.36¹⁰ ≈ 4·10⁻⁵. In the last ladder the error is one step of 3 bytes.
//!
//! **An outage is not a small MTU.** Nothing is sent unless something was answered within the last 3 s; a round counts
//! only if anything, a small probe or a sized one, came back since it was sent; and a search that finds no size at all
//! changes nothing.
//!
//! Left out: the echo itself (`probe`), and padding. **A probe must leave as it is**: padded to 16 bytes as data is, it
//! would prove another size. What the far side pads on the way back is not ours: behind its WireGuard sizes may come in
//! steps of 16. After a change of path the caller should use another magic, so that late answers prove nothing.
//!
//! Source: the idea of RFC 4821 and RFC 8899 (probing without ICMP; confirm, search, raise after 600 s); the ladder in
//! place of their one probe at a time is for the 10 s.

use std::time::{Duration, Instant};

/// How often the size in use is checked.
const VERIFY_EVERY: Duration = Duration::from_secs(4);
/// How long a check waits for its answer.
const PATIENCE: Duration = Duration::from_millis(800);
/// Checks in a row that must fail before a search begins.
const VERIFY_PROBES: u32 = 2;
const ROUND_EVERY: Duration = Duration::from_millis(250);
/// Rounds in which a size must go unanswered before it counts as too large; see the module's documentation.
const ROUNDS: u32 = 5;
/// Rounds of a ladder at most: one more if the largest answered size rose in the fifth.
const MOST_ROUNDS: u32 = 6;
/// Steps of a ladder: eight sizes have seven between them.
const STEPS: u32 = 7;
/// The eight sizes, and the top.
const LADDER: usize = STEPS as usize + 2;
/// Bounds this close, in bytes, are close enough.
const CLOSE: u32 = 8;
/// Nothing is sent if nothing was answered for this long.
const ALIVE: Duration = Duration::from_secs(3);
/// How often a limited path is asked for more (RFC 8899 §5.1.1, PMTU_RAISE_TIMER).
const RAISE_EVERY: Duration = Duration::from_secs(600);
/// After a search that found nothing: sized echoes are not answered at all, there is no hurry to ask again.
const PAUSE: Duration = Duration::from_secs(60);

/// Path-MTU discovery towards one peer. All sizes are inner packets in bytes, IP header included.
#[derive(Debug)]
pub(crate) struct Discovery {
    ceiling: u32,
    floor: u32,
    /// What packets may have: the ceiling until less is proven.
    size: u32,
    /// `size` was answered since the last restart.
    proven: bool,
    /// The size that the last change led to.
    told: u32,
    /// When anything was answered last.
    alive_at: Option<Instant>,
    /// When to ask for more; none if the ceiling is reached.
    raise_at: Option<Instant>,
    phase: Phase,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    /// `sent` probes of the size in use are out; the last one has until `deadline`.
    Verify {
        sent: u32,
        deadline: Option<Instant>,
    },
    Search(Search),
    Settled {
        verify_at: Instant,
    },
}

impl Phase {
    const VERIFY: Self = Self::Verify { sent: 0, deadline: None };
}

impl Discovery {
    /// `ceiling` is the tunnel's MTU, `floor` the smallest size that is tried (no more than the ceiling).
    pub(crate) const fn new(ceiling: u32, floor: u32) -> Self {
        let floor = if floor < ceiling { floor } else { ceiling };
        Self { ceiling, floor, size: ceiling, proven: false, told: ceiling, alive_at: None, raise_at: None, phase: Phase::VERIFY }
    }

    /// Another path, or another session: nothing is proven. The size in use stands until a probe says otherwise.
    ///
    /// Nothing is sent before `small_answered`.
    pub(crate) const fn restart(&mut self, now: Instant) {
        self.proven = false;
        self.alive_at = None;
        if self.limited() {
            self.raise_at = Some(now);
            self.phase = Phase::Settled { verify_at: now };
        } else {
            self.phase = Phase::VERIFY;
        }
    }

    /// The tunnel's MTU is another one. A limit that was found stands if it is below.
    pub(crate) fn set_ceiling(&mut self, ceiling: u32, floor: u32, now: Instant) {
        let size = if self.limited() { self.size.min(ceiling) } else { ceiling };
        *self = Self { size, told: size, ..Self::new(ceiling, floor) };
        self.restart(now);
    }

    /// A small echo came back: the path works, whatever its size.
    pub(crate) fn small_answered(&mut self, now: Instant) {
        let was_alive = self.is_alive(now);
        self.alive_at = Some(now);
        match &mut self.phase {
            Phase::Search(search) if was_alive => search.heard = true,
            // What went unanswered before the pause went down with everything else.
            Phase::Search(_) | Phase::Verify { .. } if !was_alive => self.phase = Phase::VERIFY,
            Phase::Search(_) | Phase::Verify { .. } | Phase::Settled { .. } => {}
        }
    }

    /// An echo of `size` bytes came back.
    pub(crate) fn handle_answer(&mut self, size: u32, now: Instant) {
        self.small_answered(now);
        match &mut self.phase {
            Phase::Verify { .. } if size == self.size => self.conclude(size, false, now),
            Phase::Search(search) => {
                if search.answered(size) {
                    let (top, raising) = (search.top, search.raising);
                    self.conclude(top, raising, now);
                }
            }
            Phase::Verify { .. } | Phase::Settled { .. } => {}
        }
    }

    /// The size of the next probe that is due; to be called until there is none.
    pub(crate) fn poll(&mut self, now: Instant) -> Option<u32> {
        if !self.is_alive(now) {
            return None;
        }
        loop {
            match &mut self.phase {
                Phase::Settled { verify_at } => {
                    if self.raise_at.is_some_and(|at| now >= at) {
                        self.phase = Phase::Search(Search::raise(self.size, self.ceiling, now));
                    } else if now >= *verify_at {
                        self.phase = Phase::VERIFY;
                    } else {
                        return None;
                    }
                }
                Phase::Verify { sent, deadline } => {
                    if deadline.is_some_and(|at| now < at) {
                        return None;
                    }
                    if *sent < VERIFY_PROBES {
                        *sent += 1;
                        *deadline = Some(now + PATIENCE);
                        return Some(self.size);
                    }
                    self.phase = Phase::Search(Search::lower(self.floor, self.size, now));
                }
                Phase::Search(search) => {
                    if let Some(size) = search.next_size() {
                        return Some(size);
                    }
                    if now < search.next_round {
                        return None;
                    }
                    let found = search.round(now);
                    let raising = search.raising;
                    match found {
                        Found::NotYet => {}
                        Found::Size(size) => self.conclude(size, raising, now),
                        Found::Nothing => self.phase = Phase::Settled { verify_at: now + PAUSE },
                        Found::Lost(size) => {
                            // What was known to fit fits no longer: a check tells within 1.6 s.
                            let proven = self.proven || size != self.size;
                            self.conclude(size, raising, now);
                            self.proven = proven;
                            self.phase = Phase::VERIFY;
                        }
                    }
                }
            }
        }
    }

    /// The moment at which `poll` has a probe to send or a verdict to make; none while nothing is answered.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let alive_at = self.alive_at?;
        let at = match &self.phase {
            Phase::Settled { verify_at } => self.raise_at.map_or(*verify_at, |raise_at| raise_at.min(*verify_at)),
            Phase::Verify { deadline, .. } => deadline.unwrap_or(alive_at),
            Phase::Search(search) if search.unsent > 0 => alive_at,
            Phase::Search(search) => search.next_round,
        };
        (at <= alive_at + ALIVE).then_some(at)
    }

    /// The size in use, once an answer has proven it.
    pub(crate) fn path_mtu(&self) -> Option<u32> {
        self.proven.then_some(self.size)
    }

    /// What packets to this peer may have.
    pub(crate) const fn effective(&self) -> u32 {
        self.size
    }

    /// The path takes less than the tunnel's MTU.
    pub(crate) const fn limited(&self) -> bool {
        self.size < self.ceiling
    }

    /// The effective size before and after, if it changed since the last call.
    pub(crate) fn take_change(&mut self) -> Option<(u32, u32)> {
        let from = std::mem::replace(&mut self.told, self.size);
        (from != self.size).then_some((from, self.size))
    }

    fn is_alive(&self, now: Instant) -> bool {
        self.alive_at.is_some_and(|at| now.saturating_duration_since(at) <= ALIVE)
    }

    /// `size` is proven. `raised`: more was asked for.
    fn conclude(&mut self, size: u32, raised: bool, now: Instant) {
        // A check, or a search that only loss had begun, must not put off the raise.
        if raised || size != self.size || self.raise_at.is_none() {
            self.raise_at = (size < self.ceiling).then(|| now + RAISE_EVERY);
        }
        self.size = size;
        self.proven = true;
        self.phase = Phase::Settled { verify_at: now + VERIFY_EVERY };
    }
}

/// One search between a size that fits and one that does not.
#[derive(Debug, Clone, Copy)]
struct Search {
    floor: u32,
    /// The largest size answered in this search; when raising, at first the size in use.
    low: Option<u32>,
    /// The smallest size taken for too large.
    high: u32,
    /// What would be best. Its answer ends the search.
    top: u32,
    raising: bool,
    /// The first `sizes` of these are the ladder, ascending.
    ladder: [u32; LADDER],
    sizes: usize,
    /// How many of them are to be sent in this round.
    unsent: usize,
    /// A round of this ladder was sent.
    begun: bool,
    /// Rounds of this ladder that count.
    rounds: u32,
    /// Anything was answered since the last round was sent.
    heard: bool,
    /// `low` rose since the last round was sent.
    rose: bool,
    /// A sized probe was answered since this ladder began.
    fits: bool,
    next_round: Instant,
}

/// What a search has come to.
enum Found {
    NotYet,
    /// The largest size that fits.
    Size(u32),
    /// Nothing fits, not even the floor, although small probes are answered.
    Nothing,
    /// This size was known to fit, and is not answered any more.
    Lost(u32),
}

impl Search {
    /// Down from `top`, which is not answered any more.
    fn lower(floor: u32, top: u32, now: Instant) -> Self {
        let mut search = Self {
            floor: floor.min(top),
            low: None,
            high: top,
            top,
            raising: false,
            ladder: [0; LADDER],
            sizes: 0,
            unsent: 0,
            begun: false,
            rounds: 0,
            heard: false,
            rose: false,
            fits: false,
            next_round: now,
        };
        search.lay();
        search
    }

    /// Up from `size`, which is in use.
    fn raise(size: u32, ceiling: u32, now: Instant) -> Self {
        let mut search = Self { low: Some(size), raising: true, ..Self::lower(size, ceiling, now) };
        search.lay();
        search
    }

    /// A new ladder between the bounds.
    fn lay(&mut self) {
        let low = self.low.unwrap_or(self.floor);
        let span = self.high.saturating_sub(low);
        self.sizes = 0;
        for step in 0..=STEPS {
            self.add(low + span * step / STEPS);
        }
        self.add(self.top);
        self.unsent = 0;
        self.begun = false;
        self.rounds = 0;
        self.fits = false;
    }

    /// Adds `size` to the ladder unless it is the last one.
    fn add(&mut self, size: u32) {
        let last = self.sizes.checked_sub(1).and_then(|last| self.ladder.get(last));
        if last == Some(&size) {
            return;
        }
        if let Some(place) = self.ladder.get_mut(self.sizes) {
            *place = size;
            self.sizes += 1;
        }
    }

    /// The largest size of this round that was not sent yet.
    fn next_size(&mut self) -> Option<u32> {
        self.unsent = self.unsent.checked_sub(1)?;
        self.ladder.get(self.unsent).copied()
    }

    /// Judges the rounds so far and, unless that ends the search, begins the next.
    fn round(&mut self, now: Instant) -> Found {
        if self.begun {
            self.rounds += u32::from(self.heard);
            let enough = self.rounds >= if self.rose { MOST_ROUNDS } else { ROUNDS };
            // Answered after all: the ladder was laid too low.
            let refuted = self.low.is_some_and(|low| low >= self.high);
            if enough || refuted {
                let low = match self.low {
                    Some(low) if self.fits => low,
                    Some(low) => return Found::Lost(low),
                    None => return Found::Nothing,
                };
                let larger = self.ladder.iter().take(self.sizes).find(|size| **size > low);
                self.high = larger.copied().unwrap_or(self.top);
                if self.high.saturating_sub(low) <= CLOSE {
                    return Found::Size(low);
                }
                self.lay();
            }
        }
        self.begun = true;
        self.heard = false;
        self.rose = false;
        self.unsent = self.sizes;
        // From when it was due, so that a driver's delays do not add up; from now after a pause.
        let next = self.next_round + ROUND_EVERY;
        self.next_round = if next > now { next } else { now + ROUND_EVERY };
        Found::NotYet
    }

    /// Whether `size` is the top, so that there is nothing left to search.
    fn answered(&mut self, size: u32) -> bool {
        if size > self.top {
            return false;
        }
        self.fits = true;
        if self.low.is_none_or(|low| size > low) {
            self.low = Some(size);
            self.rose = true;
        }
        size == self.top
    }
}

#[cfg(test)]
mod tests;
