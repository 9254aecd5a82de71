//! One case of one subject: starts the relay, loads it, and reads what that came to.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};

use super::case::{Case, Crowd, Figure};
use super::generator::bulk::Way;
use super::generator::hold::all_open;
use super::generator::session::Via;
use super::load::{Load, Report, Stage};
use super::options::Options;
use super::peers::Setup;
use super::subject::{Programs, Running, Subject};
use super::usage::Memory;
use crate::bench::load::until;
use crate::bench::usage::Watch;
use crate::seconds;

/// What all measurements of a turn share.
pub(super) struct Measurement<'a> {
    pub(super) subject: Subject,
    pub(super) stage: &'a Stage,
    pub(super) programs: &'a Programs,
    pub(super) options: &'a Options,
    /// How many a process may open.
    pub(super) open_files: usize,
}

/// What one case came to.
#[derive(Debug, Default)]
pub(super) struct Measured {
    pub(super) figures: Vec<(Figure, f64)>,
    /// How busy the load's processor was and how busy the relay's, where that matters.
    pub(super) busy: Option<[f64; 2]>,
    /// The share of the machine that others had meanwhile, 0 to 1.
    pub(super) disturbance: f64,
    /// Beside the figures, for whoever watches.
    pub(super) remark: Option<String>,
}

const CONCURRENT: &str = "64";
const STANDING: &str = "64";
const PINGS: &str = "2000";
const BULK_SESSIONS: &str = "8";
/// Opened and closed before memory is looked at: what a relay allocates once is not the sessions'.
const WARMING: usize = 64;
const RELOADS: u32 = 5;
/// A tenth of what the storm has, and a quarter of the pings: the relay has to do, and is not overwhelmed.
const RELOAD_CONCURRENT: &str = "6";
const RELOAD_PINGS: &str = "500";
const DRAINED: usize = 1000;
const DRAIN: Duration = Duration::from_secs(2);
/// Descriptors beside two a session.
const OTHER_FILES: usize = 512;
/// More than any case needs.
const MOST_SESSIONS: usize = 110_000;

impl Measurement<'_> {
    #[track_caller]
    pub(super) fn take(&self, case: Case) -> Result<Measured> {
        match case {
            Case::SniRate => self.rate(self.via(), Figure::SniRate, Figure::SniP99),
            Case::ConnectRate => self.rate(Via::Connect, Figure::ConnectRate, Figure::ConnectP99),
            Case::Latency => self.latency(),
            Case::BulkUp => self.bulk(Way::Up, [Figure::Up, Figure::UpPerCpu, Figure::UpPerCore]),
            Case::BulkDown => self.bulk(Way::Down, [Figure::Down, Figure::DownPerCpu, Figure::DownPerCore]),
            Case::Idle(crowd) => self.idle(crowd),
            Case::Reload => self.reload(),
            Case::Drain => self.drain(),
        }
    }

    fn rate(&self, via: Via, rate: Figure, p99: Figure) -> Result<Measured> {
        let (report, disturbance) = self.load(&["rate", "--via", via.name(), "--concurrent", CONCURRENT])?;
        let (sessions, failed) = (report.some("sessions")?, report.number("failed")?);
        ensure!(failed * 1000.0 <= sessions, "{failed} of {} sessions failed: {}", sessions + failed, report.first_failure());
        let figures = vec![(rate, sessions / report.some("seconds")?), (p99, report.number("p99_us")? / 1000.0)];
        Ok(Measured { figures, busy: Some(report.busy()?), disturbance, remark: None })
    }

    fn latency(&self) -> Result<Measured> {
        let (report, disturbance) = self.load(&["latency", "--via", self.via().name(), "--sessions", STANDING, "--rate", PINGS])?;
        ensure!(report.number("lost")? + report.number("unanswered")? == 0.0, "sessions broke, or pings were never answered");
        report.some("answered")?;
        let figures = vec![
            (Figure::LatencyP50, report.number("p50_us")?),
            (Figure::LatencyP99, report.number("p99_us")?),
            (Figure::LatencyP999, report.number("p999_us")?),
        ];
        let remark = format!("the generator itself late by {:.0} µs at p99", report.number("late_p99_us")?);
        Ok(Measured { figures, busy: Some(report.busy()?), disturbance, remark: Some(remark) })
    }

    fn bulk(&self, way: Way, [rate, per_cpu, per_core]: [Figure; 3]) -> Result<Measured> {
        let (report, disturbance) = self.load(&["bulk", "--via", self.via().name(), "--way", way.name(), "--sessions", BULK_SESSIONS])?;
        let (bytes, time, [load, relay]) = (report.some("bytes")?, report.some("seconds")?, report.busy()?);
        let mut figures = vec![(rate, bytes * 8.0 / 1e9 / time)];
        if self.subject != Subject::Direct {
            figures.push((per_cpu, bytes / 1e9 / report.some("cpu_seconds")?));
            figures.push((per_core, bytes / 1e9 / (relay * time)));
        }
        Ok(Measured { figures, busy: Some([load, relay]), disturbance, remark: None })
    }

    fn idle(&self, crowd: Crowd) -> Result<Measured> {
        let sessions = self.crowd(crowd)?;
        let relay = self.start(None)?;
        let processes = relay.processes();
        drop(self.hold(WARMING)?);
        let empty = Memory::settled(&processes)?;
        let _held = self.hold(sessions)?;
        let full = Memory::settled(&processes)?;
        let each = |full: u64, empty: u64| (full as f64 - empty as f64) / sessions as f64 / 1024.0;
        let mut figures =
            vec![(Figure::Slabs(crowd), each(full.slabs, empty.slabs)), (Figure::Reserved(crowd), each(full.reserved, empty.reserved))];
        if self.subject != Subject::Direct {
            figures.push((Figure::UserMemory(crowd), each(full.user, empty.user)));
        }
        let remark = (sessions < crowd.sessions()).then(|| format!("{sessions} sessions: a process may open {} files", self.open_files));
        Ok(Measured { figures, remark, ..Measured::default() })
    }

    fn reload(&self) -> Result<Measured> {
        let mut relay = self.start(None)?;
        let (line, via) = (&self.stage.line, self.via().name());
        // Long enough for the reloads themselves, which take a while each.
        let time = seconds(self.options.seconds + u64::from(RELOADS));
        let time_word = time.as_secs().to_string();
        let storm = ["rate", "--via", via, "--seconds", &time_word, "--concurrent", RELOAD_CONCURRENT];
        let pings = ["latency", "--via", via, "--seconds", &time_word, "--sessions", STANDING, "--rate", RELOAD_PINGS];
        let (mut storm, mut pings) = (Load::start(line, &storm)?, Load::start(line, &pings)?);
        for _ in 0..RELOADS {
            let ended = until(seconds(self.options.seconds) / RELOADS, || storm.has_ended() || pings.has_ended());
            ensure!(!ended, "the load ended before the reloads did");
            relay.reload()?;
        }
        let (storm, pings) = (storm.finish(time)?, pings.finish(time)?);
        let lost = storm.number("failed")? + pings.number("lost")?;
        let figures = vec![(Figure::ReloadLost, lost), (Figure::ReloadP99, pings.number("p99_us")?)];
        storm.some("sessions")?;
        let remark = (lost > 0.0).then(|| storm.first_failure().to_owned());
        Ok(Measured { figures, remark, ..Measured::default() })
    }

    fn drain(&self) -> Result<Measured> {
        let mut relay = self.start(Some(DRAIN))?;
        let held = self.hold(DRAINED)?;
        let asked = SystemTime::now();
        relay.stop()?;
        let report = held.finish(DRAIN)?;
        ensure!(until(DRAIN + seconds(10), || relay.has_ended()), "all sessions have ended, and the relay has not");
        let asked = asked.duration_since(SystemTime::UNIX_EPOCH).context("a clock before 1970")?.as_secs_f64();
        let took = report.some("last_end_unix_s")? - asked;
        let figures = vec![(Figure::DrainTime, took), (Figure::DrainBurst, report.some("burst")?)];
        Ok(Measured { figures, ..Measured::default() })
    }

    /// Starts the relay, and a load that says itself what it has measured.
    fn load(&self, words: &[&str]) -> Result<(Report, f64)> {
        let relay = self.start(None)?;
        let processes = relay.processes();
        let (watched, time) = (processes.iter().map(u32::to_string).collect::<Vec<String>>().join(","), self.options.seconds.to_string());
        let words = [words, &["--seconds", &time, "--watch", &watched]].concat();
        // Without a relay, a process that there never is.
        let watch = Watch::start([processes.first().copied().unwrap_or(0), self.stage.backend]);
        let report = Load::start(&self.stage.line, &words)?.finish(seconds(self.options.seconds))?;
        Ok((report, watch.disturbance()))
    }

    /// So many idle sessions, all open.
    fn hold(&self, sessions: usize) -> Result<Load> {
        let count = sessions.to_string();
        let mut load = Load::start(&self.stage.line, &["hold", "--via", self.via().name(), "--sessions", &count, "--seconds", "600"])?;
        load.wait_until_it_says(&all_open(sessions), seconds(30) + Duration::from_millis(2) * u32::try_from(sessions)?);
        Ok(load)
    }

    #[track_caller]
    fn start(&self, drain: Option<Duration>) -> Result<Running<'_>> {
        let setup = Setup { sessions: most_sessions(self.open_files), drain, logs: self.options.logs, changed: false };
        Running::start(self.subject, self.programs, &self.stage.line, setup, self.open_files)
    }

    const fn via(&self) -> Via {
        self.subject.via()
    }

    /// As many sessions as there should be, or a few less if no more can be.
    fn crowd(&self, crowd: Crowd) -> Result<usize> {
        let (wanted, most) = (crowd.sessions(), most_sessions(self.open_files));
        ensure!(most * 10 >= wanted * 9, "{wanted} sessions take {} open files, and a process may have {}", wanted * 2, self.open_files);
        Ok(wanted.min(most))
    }
}

/// That every subject can have at once, whatever it is told.
pub(super) fn most_sessions(open_files: usize) -> usize {
    (open_files.saturating_sub(OTHER_FILES) / 2).min(MOST_SESSIONS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_take_two_descriptors_each() {
        assert_eq!(most_sessions(20_000), 9744);
        assert_eq!(most_sessions(100), 0);
        assert_eq!(most_sessions(1_048_576), MOST_SESSIONS);
    }
}
