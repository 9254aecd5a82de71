//! The bench's side of the generator: starts `relay_load` in its namespaces, on its processor, and reads what it reports.

use std::env;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::generator::WARM_UP;
use super::generator::backend::LISTENING;
use super::line::{LOAD_CORE, Line};
use super::usage::processes_in;
use crate::bench::load::until;
use crate::netns::Namespace;
use crate::process::Process;
use crate::seconds;

/// The namespaces, and the hosts in them. Dropping it ends both.
pub struct Stage {
    pub backend: u32,
    _hosts: Process,
    pub line: Line,
}

/// A load that runs.
pub struct Load {
    name: String,
    process: Process,
}

/// What a load has measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Report(Value);

/// Beyond the time that a load takes by itself.
const GRACE: Duration = Duration::from_secs(25);

impl Stage {
    #[track_caller]
    pub fn build(steered: bool) -> Result<Self> {
        let line = Line::build(steered);
        let mut hosts = start(&line.backend, &["backend"])?;
        hosts.wait_for_line(LISTENING, seconds(10));
        let backend = processes_in(&line.backend).first().copied().context("the hosts run")?;
        Ok(Self { backend, _hosts: hosts, line })
    }
}

impl Load {
    /// `words`: for `relay_load`.
    #[track_caller]
    pub fn start(line: &Line, words: &[&str]) -> Result<Self> {
        Ok(Self { name: words.join(" "), process: start(&line.load, words)? })
    }

    /// Waits until it says `line` on stderr.
    #[track_caller]
    pub fn wait_until_it_says(&mut self, line: &str, within: Duration) {
        self.process.wait_for_line(line, within);
    }

    pub fn has_ended(&mut self) -> bool {
        !self.process.is_running()
    }

    /// Waits for its end. `time`: how long it measures.
    pub fn finish(mut self, time: Duration) -> Result<Report> {
        let within = time + WARM_UP + GRACE;
        if !until(within, || !self.process.is_running()) {
            bail!("relay_load {} did not end within {within:?}: {}", self.name, self.process.stderr().trim());
        }
        let finished = self.process.finish(seconds(1));
        ensure!(finished.code == Some(0), "relay_load {}: {}", self.name, finished.stderr.trim());
        Report::parse(&finished.stdout)
    }
}

impl Report {
    fn parse(text: &str) -> Result<Self> {
        Ok(Self(serde_json::from_str(text).context("relay_load prints no JSON")?))
    }

    pub fn number(&self, field: &str) -> Result<f64> {
        self.0[field].as_f64().with_context(|| format!("relay_load reports no {field}"))
    }

    /// As [`Self::number`], and above zero: nothing measured is not a measurement.
    pub fn some(&self, field: &str) -> Result<f64> {
        let number = self.number(field)?;
        ensure!(number > 0.0, "{field} is {number}");
        Ok(number)
    }

    /// How busy the load's processor was and how busy the relay's.
    pub fn busy(&self) -> Result<[f64; 2]> {
        let share = |index: usize| self.0["busy"][index].as_f64().context("relay_load does not report how busy the processors were");
        Ok([share(0)?, share(1)?])
    }

    /// In words, where something failed.
    pub fn first_failure(&self) -> &str {
        self.0["first_failure"].as_str().unwrap_or("they got no answer in time")
    }
}

#[track_caller]
fn start(namespace: &Namespace, words: &[&str]) -> Result<Process> {
    let (program, core) = (program()?, LOAD_CORE.to_string());
    let program = program.to_str().context("a plain path")?;
    let line = [&["taskset", "-c", core.as_str(), program][..], words].concat();
    Ok(Process::start(&format!("relay_load {}", words.join(" ")), &mut namespace.command(&line)))
}

/// Beside the bench.
fn program() -> Result<PathBuf> {
    let bench = env::current_exe().context("the path of the bench")?;
    let program = bench.with_file_name("relay_load");
    ensure!(program.is_file(), "{} is not there: cargo build -p tests --bin relay_load", program.display());
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_without_a_number_is_no_measurement() {
        let report = Report::parse(r#"{ "sessions": 12, "failed": 0, "busy": [0.5, 1.0] }"#).expect("a report");
        assert_eq!(report.some("sessions").expect("sessions"), 12.0);
        assert_eq!(report.busy().expect("busy"), [0.5, 1.0]);
        assert!(report.some("failed").is_err() && report.number("failed").is_ok() && report.number("bytes").is_err());
        assert!(Report::parse("").is_err() && Report::parse("{}").is_ok_and(|report| report.busy().is_err()));
    }
}
