//! Very many sessions that stand idle: opened a few at a time, then held until the other side ends them.
//!
//! They are reset when this process ends (SO_LINGER 0), for so many in TIME-WAIT would be in the way of what is measured
//! next.

use std::io::{self, Write};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::epoll::{Epoll, Interest};
use super::session::{Session, Target, Via, read_some};
use super::{LOOK_EVERY, OPENING, answering_hosts};
use crate::bench_relay::line::SOURCES;

#[derive(Debug, Clone)]
pub struct Hold {
    pub via: Via,
    pub sessions: usize,
    /// How long all of them may take to end. Whoever only looks at them kills this process before.
    pub time: Duration,
}

struct Held {
    session: Session,
    target: usize,
    open: bool,
}

/// Being opened at once: no backlog overflows.
const AT_ONCE: usize = 64;
/// In which a burst of ends is counted.
const BURST: Duration = Duration::from_millis(100);

impl Hold {
    pub fn run(&self) -> Result<Value> {
        let targets: Vec<Target> = answering_hosts().map(|host| Target::new(self.via, host)).collect();
        ensure!(!targets.is_empty(), "there are hosts");
        let (mut epoll, mut events) = (Epoll::new()?, Vec::new());
        let mut held: Vec<Option<Held>> = Vec::with_capacity(self.sessions);
        let (mut open, mut ends, mut last_progress) = (0, Vec::new(), Instant::now());
        while ends.len() < self.sessions {
            while held.len() < self.sessions && held.len() < open + AT_ONCE {
                held.push(Some(start(&epoll, &targets, held.len())?));
            }
            epoll.wait(&mut events, LOOK_EVERY)?;
            for event in &events {
                let Some(place) = held.get_mut(usize::try_from(event.token)?) else { continue };
                let Some(one) = place else { continue };
                if one.open {
                    // An answered session hears nothing but its end.
                    if read_some(&one.session.socket, &mut [0; 64]).is_err() {
                        *place = None;
                        ends.push(SystemTime::now());
                    }
                    continue;
                }
                let Some(target) = targets.get(one.target) else { continue };
                one.open = one.session.advance(target, *event).with_context(|| format!("with {open} sessions open"))?;
                if one.open {
                    open += 1;
                    last_progress = Instant::now();
                }
                if open == self.sessions && one.open {
                    writeln!(io::stderr(), "{}", all_open(open)).context("stderr")?;
                }
            }
            let patience = if open < self.sessions { OPENING } else { self.time };
            if last_progress.elapsed() > patience {
                bail!("{open} of {} sessions were opened, {} ended, and no more in {patience:?}", self.sessions, ends.len());
            }
        }
        Ok(json!({
            "sessions": open,
            "last_end_unix_s": ends.last().and_then(|end| end.duration_since(SystemTime::UNIX_EPOCH).ok()).map(|since| since.as_secs_f64()),
            "burst": largest_burst(&ends),
        }))
    }
}

/// Said on stderr once so many sessions are open.
pub fn all_open(sessions: usize) -> String {
    format!("{sessions} sessions are open")
}

fn start(epoll: &Epoll, targets: &[Target], number: usize) -> Result<Held> {
    let (target, source) = (number % targets.len(), SOURCES.get(number % SOURCES.len()));
    let session = Session::start(targets.get(target).context("there are targets")?, source.copied())?;
    session.socket.set_linger(Some(Duration::ZERO))?;
    epoll.add(&session.socket, number as u64, Interest::Changes)?;
    Ok(Held { session, target, open: false })
}

/// The most that ended within [`BURST`]. `ends`: in their order.
fn largest_burst(ends: &[SystemTime]) -> usize {
    let mut first = 0;
    let bursts = ends.iter().enumerate().map(|(index, end)| {
        while ends.get(first).is_some_and(|begin| end.duration_since(*begin).is_ok_and(|since| since > BURST)) {
            first += 1;
        }
        index + 1 - first
    });
    bursts.max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_what_ends_within_a_tenth_of_a_second() {
        let at = |milliseconds: &u64| SystemTime::UNIX_EPOCH + Duration::from_millis(*milliseconds);
        let ends: Vec<SystemTime> = [0, 90, 100, 101, 150, 400, 410].iter().map(at).collect();
        assert_eq!(largest_burst(&ends), 4);
        assert_eq!(largest_burst(&[]), 0);
    }
}
