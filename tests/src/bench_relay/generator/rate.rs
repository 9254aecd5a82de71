//! A storm of new sessions: open, greet, be answered, close, and at once the next; so many side by side.
//!
//! A closed loop, because the question is how many the relay can do. Sessions are closed in order and not reset, as sensors
//! do: what that leaves in TIME-WAIT is why ports may be used again after a second.

use std::io;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::epoll::{Epoll, Interest};
use super::histogram::Histogram;
use super::session::{Session, Target, Via};
use super::{LOOK_EVERY, WARM_UP, answering_hosts};
use crate::bench_relay::usage::Window;

#[derive(Debug, Clone)]
pub struct Rate {
    pub via: Via,
    pub time: Duration,
    /// Sessions at once.
    pub concurrent: usize,
    /// The relay's processes.
    pub watched: Vec<u32>,
}

/// A place in which one session follows another.
struct Slot {
    session: Session,
    target: usize,
    since: Instant,
}

/// Whoever has waited so long at the end has lost its session: what the kernel tries again comes sooner.
const STUCK: Duration = Duration::from_secs(3);
/// So many failures, and more than successes, are no load.
const HOPELESS: u64 = 1000;

#[derive(Default)]
struct Counts {
    sessions: u64,
    failed: u64,
    first_failure: Option<io::Error>,
    times: Histogram,
}

impl Rate {
    pub fn run(&self) -> Result<Value> {
        let targets: Vec<Target> = answering_hosts().map(|host| Target::new(self.via, host)).collect();
        let (mut epoll, mut events) = (Epoll::new()?, Vec::new());
        let mut slots = Vec::with_capacity(self.concurrent);
        for number in 0..self.concurrent {
            slots.push(Slot::start(&epoll, &targets, number, number, Instant::now())?);
        }
        let measure_from = Instant::now() + WARM_UP;
        let (mut counts, mut window) = (Counts::default(), None);
        loop {
            let now = Instant::now();
            if window.is_none() && now >= measure_from {
                window = Some(Window::open(&self.watched)?);
                counts.restart();
            }
            if now >= measure_from + self.time {
                break;
            }
            epoll.wait(&mut events, LOOK_EVERY)?;
            let now = Instant::now();
            for event in &events {
                let number = usize::try_from(event.token)?;
                let Some(slot) = slots.get_mut(number) else { continue };
                let Some(target) = targets.get(slot.target) else { continue };
                match slot.session.advance(target, *event) {
                    Ok(false) => continue,
                    Ok(true) => counts.answered(now - slot.since),
                    Err(error) => counts.failed(error)?,
                }
                *slot = Slot::start(&epoll, &targets, number, slot.target + 1, now)?;
            }
        }
        let spent = window.context("the time is shorter than the warm-up")?.close()?;
        let stuck = slots.iter().filter(|slot| slot.since.elapsed() > STUCK).count();
        Ok(json!({
            "sessions": counts.sessions,
            "failed": counts.failed + stuck as u64,
            "first_failure": counts.first_failure.map(|error| error.to_string()),
            "p50_us": counts.times.quantile_us(0.5),
            "p99_us": counts.times.quantile_us(0.99),
            "seconds": spent.seconds,
            "busy": spent.busy,
            "cpu_seconds": spent.cpu_seconds,
        }))
    }
}

impl Slot {
    /// `target`: which of them, counted round and round.
    fn start(epoll: &Epoll, targets: &[Target], number: usize, target: usize, now: Instant) -> Result<Self> {
        let target = target % targets.len();
        let to = targets.get(target).context("there are targets")?;
        let session = Session::start(to, None).context("a new session")?;
        epoll.add(&session.socket, number as u64, Interest::Changes)?;
        Ok(Self { session, target, since: now })
    }
}

impl Counts {
    fn answered(&mut self, after: Duration) {
        self.sessions += 1;
        self.times.record(after);
    }

    /// Err: it makes no sense to go on.
    fn failed(&mut self, error: io::Error) -> Result<()> {
        self.failed += 1;
        if self.failed >= HOPELESS && self.failed > self.sessions {
            bail!("most sessions fail: {error}");
        }
        self.first_failure.get_or_insert(error);
        Ok(())
    }

    /// What has failed stays: it did so at any time.
    fn restart(&mut self) {
        self.sessions = 0;
        self.times.clear();
    }
}
