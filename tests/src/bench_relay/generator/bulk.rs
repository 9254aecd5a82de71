//! As many bytes as will pass one way, over a few sessions.
//!
//! Bytes up are counted as they leave the sensor: what lies in buffers on the way is the same at both ends of the measured
//! time, and little.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::backend::{Payload, Scratch};
use super::epoll::{Epoll, Interest};
use super::session::{Session, Target, Via};
use super::{LOOK_EVERY, OPENING, WARM_UP};
use crate::bench_relay::line::{Host, Serves};
use crate::bench_relay::usage::Window;

#[derive(Debug, Clone)]
pub struct Bulk {
    pub via: Via,
    pub way: Way,
    pub time: Duration,
    pub sessions: usize,
    /// The relay's processes.
    pub watched: Vec<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the sensor to the host.
    Up,
    Down,
}

impl Way {
    pub fn from_name(name: &str) -> Result<Self> {
        match name {
            "up" => Ok(Self::Up),
            "down" => Ok(Self::Down),
            _ => bail!("{name:?} is neither up nor down"),
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

impl Bulk {
    pub fn run(&self) -> Result<Value> {
        let (serves, interest) = match self.way {
            Way::Up => (Serves::Sink, Interest::Writing),
            Way::Down => (Serves::Source, Interest::Reading),
        };
        let target = Target::new(self.via, Host::that(serves));
        let (mut epoll, mut events) = (Epoll::new()?, Vec::new());
        let mut sessions = Vec::with_capacity(self.sessions);
        for number in 0..self.sessions {
            let session = Session::start(&target, None)?;
            epoll.add(&session.socket, number as u64, Interest::Changes)?;
            sessions.push((session, false));
        }
        let (payload, mut scratch) = (Payload::new()?, Scratch::new());
        let deadline = Instant::now() + OPENING;
        let (mut bytes, mut measured_from, mut window) = (0, None, None);
        loop {
            let now = Instant::now();
            // From when all are open.
            if measured_from.is_none() && sessions.iter().all(|(_, open)| *open) {
                measured_from = Some(now + WARM_UP);
            }
            match measured_from {
                None if now > deadline => bail!("not all of {} sessions were open after {OPENING:?}", self.sessions),
                Some(from) if now >= from + self.time => break,
                Some(from) if now >= from && window.is_none() => {
                    window = Some(Window::open(&self.watched)?);
                    bytes = 0;
                }
                None | Some(_) => {}
            }
            epoll.wait(&mut events, LOOK_EVERY)?;
            for event in &events {
                let Some((session, open)) = sessions.get_mut(usize::try_from(event.token)?) else { continue };
                if !*open {
                    *open = session.advance(&target, *event).context("a session")?;
                    if *open {
                        epoll.change(&session.socket, event.token, interest)?;
                    }
                    continue;
                }
                let moved = match self.way {
                    Way::Up => payload.send(&session.socket),
                    Way::Down => scratch.receive(&session.socket),
                };
                bytes += moved.context("a session that was open")? as u64;
            }
        }
        let spent = window.context("nothing was measured")?.close()?;
        Ok(json!({
            "bytes": bytes,
            "seconds": spent.seconds,
            "busy": spent.busy,
            "cpu_seconds": spent.cpu_seconds,
        }))
    }
}
