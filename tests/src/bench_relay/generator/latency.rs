//! Round trips through standing sessions at a fixed rate, whether or not answers come.
//!
//! An open loop: each ping has its time on a timetable, and its latency counts from there. So an answer that is late makes
//! the pings behind it late and not fewer, as it would in a closed loop (coordinated omission). What the generator itself is
//! late by is in the figures too, and told beside them.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::epoll::{Epoll, Event, Interest, Ticks};
use super::histogram::Histogram;
use super::session::{Session, Target, Via, read_some, write_whole};
use super::{LOOK_EVERY, OPENING, WARM_UP};
use crate::bench_relay::line::{Host, Serves};
use crate::bench_relay::usage::Window;

#[derive(Debug, Clone)]
pub struct Latency {
    pub via: Via,
    pub time: Duration,
    /// Standing sessions, which take turns.
    pub sessions: usize,
    /// Pings a second over all sessions.
    pub rate: u32,
    /// The relay's processes.
    pub watched: Vec<u32>,
}

struct Standing {
    session: Session,
    /// When each ping was due whose answer has not come whole, oldest first.
    unanswered: VecDeque<Instant>,
    /// Of the oldest one's answer.
    bytes: usize,
}

/// What is measured, from a certain time on.
struct Measure {
    from: Instant,
    round_trips: Histogram,
    lateness: Histogram,
}

const PING_BYTES: usize = 256;
/// After the last ping, for answers that are still on their way.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Not a session's.
const TICKS: u64 = u64::MAX;

impl Latency {
    pub fn run(&self) -> Result<Value> {
        ensure!(self.rate > 0 && self.sessions > 0, "no rate or no session is no load");
        let target = Target::new(self.via, Host::that(Serves::Echo));
        let (mut epoll, mut events) = (Epoll::new()?, Vec::new());
        let mut standing: Vec<Option<Standing>> = self.open(&target, &mut epoll)?.into_iter().map(Some).collect();
        let every = Duration::from_secs(1) / self.rate;
        let ticks = Ticks::every(every)?;
        epoll.add(&ticks, TICKS, Interest::Changes)?;

        let start = Instant::now();
        let mut measure = Measure { from: start + WARM_UP, round_trips: Histogram::default(), lateness: Histogram::default() };
        let end = measure.from + self.time;
        let (mut window, mut due, mut sent, mut lost) = (None, start, 0u64, 0u64);
        loop {
            let now = Instant::now();
            if window.is_none() && now >= measure.from {
                window = Some(Window::open(&self.watched)?);
            }
            if now >= end {
                break;
            }
            while due <= now {
                let turn = usize::try_from(sent)? % standing.len();
                if let Some(place) = standing.get_mut(turn)
                    && place.as_mut().is_some_and(|one| one.ping(due, now, &mut measure).is_err())
                {
                    *place = None;
                    lost += 1;
                }
                sent += 1;
                due += every;
            }
            epoll.wait(&mut events, LOOK_EVERY)?;
            lost += listen(&events, &mut standing, &ticks, &mut measure)?;
        }
        let spent = window.context("the time is shorter than the warm-up")?.close()?;
        let missing = |standing: &[Option<Standing>]| standing.iter().flatten().map(|one| one.unanswered.len()).sum::<usize>();
        while missing(&standing) > 0 && Instant::now() < end + LAST_WORDS {
            epoll.wait(&mut events, LOOK_EVERY)?;
            lost += listen(&events, &mut standing, &ticks, &mut measure)?;
        }
        Ok(json!({
            "answered": measure.round_trips.count(),
            "unanswered": missing(&standing),
            "lost": lost,
            "p50_us": measure.round_trips.quantile_us(0.5),
            "p99_us": measure.round_trips.quantile_us(0.99),
            "p999_us": measure.round_trips.quantile_us(0.999),
            "late_p50_us": measure.lateness.quantile_us(0.5),
            "late_p99_us": measure.lateness.quantile_us(0.99),
            "seconds": spent.seconds,
            "busy": spent.busy,
            "cpu_seconds": spent.cpu_seconds,
        }))
    }

    fn open(&self, target: &Target, epoll: &mut Epoll) -> Result<Vec<Standing>> {
        let mut opening = Vec::with_capacity(self.sessions);
        for number in 0..self.sessions {
            let session = Session::start(target, None)?;
            session.socket.set_tcp_nodelay(true)?;
            epoll.add(&session.socket, number as u64, Interest::Changes)?;
            opening.push(session);
        }
        let (mut open, mut events, deadline) = (0, Vec::new(), Instant::now() + OPENING);
        while open < self.sessions {
            epoll.wait(&mut events, LOOK_EVERY)?;
            for event in &events {
                let Some(session) = opening.get_mut(usize::try_from(event.token)?) else { continue };
                open += usize::from(session.advance(target, *event).context("a standing session")?);
            }
            if Instant::now() > deadline {
                bail!("only {open} of {} sessions were open after {OPENING:?}", self.sessions);
            }
        }
        Ok(opening.into_iter().map(|session| Standing { session, unanswered: VecDeque::new(), bytes: 0 }).collect())
    }
}

/// Takes what has come. Returns how many sessions were lost.
fn listen(events: &[Event], standing: &mut [Option<Standing>], ticks: &Ticks, measure: &mut Measure) -> Result<u64> {
    let mut lost = 0;
    for event in events {
        if event.token == TICKS {
            ticks.take();
            continue;
        }
        let Some(place) = standing.get_mut(usize::try_from(event.token)?) else { continue };
        if place.as_mut().is_some_and(|one| one.hear(measure).is_err()) {
            *place = None;
            lost += 1;
        }
    }
    Ok(lost)
}

impl Standing {
    /// `due`: when it should have been sent.
    fn ping(&mut self, due: Instant, now: Instant, measure: &mut Measure) -> io::Result<()> {
        write_whole(&self.session.socket, &[b'p'; PING_BYTES])?;
        self.unanswered.push_back(due);
        if due >= measure.from {
            measure.lateness.record(now - due);
        }
        Ok(())
    }

    /// Reads answers until there are no more.
    fn hear(&mut self, measure: &mut Measure) -> io::Result<()> {
        let mut answers = [0; 16 * PING_BYTES];
        while let Some(count) = read_some(&self.session.socket, &mut answers)? {
            let now = Instant::now();
            self.bytes += count;
            while self.bytes >= PING_BYTES {
                self.bytes -= PING_BYTES;
                let Some(due) = self.unanswered.pop_front() else { continue };
                if due >= measure.from {
                    measure.round_trips.record(now - due);
                }
            }
        }
        Ok(())
    }
}
