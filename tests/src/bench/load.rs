//! What is sent through the tunnel, and what arrives: iperf3 and ping, each with a deadline.
//!
//! Only what the receiver counted is used. iperf3 3.12 reports it to the client as `end.sum_received`, for TCP and UDP
//! alike; with `--bidir` the way back is `end.sum_received_bidir_reverse`. For UDP `end.sum` is the sender's word.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::netns::Namespace;
use crate::process::{Finished, Process};
use crate::seconds;

/// One run of iperf3: the client in `from` sends to the server in `to`.
#[derive(Debug, Clone, Copy)]
pub struct Iperf<'a> {
    pub from: &'a Namespace,
    pub to: &'a Namespace,
    pub address: &'a str,
    pub seconds: u64,
}

/// What the client wrote with `-J`.
#[derive(Debug, Clone, PartialEq)]
pub struct Report(Value);

/// Round-trip times in microseconds, in ascending order, at least one.
#[derive(Debug, Clone, PartialEq)]
pub struct RoundTrips(Vec<f64>);

/// Between two echo requests.
pub(crate) const PING_EVERY: Duration = Duration::from_millis(2);

/// Beyond the time that a load takes by itself: a flood may hold up the connection by which iperf3 agrees on its end.
const GRACE: Duration = Duration::from_secs(20);
/// Seldom enough not to be noticed beside the load.
const LOOK_EVERY: Duration = Duration::from_millis(50);

impl Iperf<'_> {
    /// `words`: more options of the client.
    pub fn run(&self, words: &[&str]) -> Result<Report> {
        // Not as JSON: only so it says when it listens.
        let server = &mut self.to.command(&["iperf3", "-s", "-1", "-p", IPERF_PORT, "--forceflush"]);
        let mut server = Process::start("iperf3 server", server);
        let listens = until(seconds(5), || server.stdout().contains("Server listening") || !server.is_running());
        ensure!(listens && server.is_running(), "the iperf3 server does not listen: {}", server.stderr().trim());

        let time = self.seconds.to_string();
        let always = ["iperf3", "-c", self.address, "-p", IPERF_PORT, "-J", "-t", &time, "--connect-timeout", "5000"];
        let mut client = self.from.command(&[&always[..], words].concat());
        let finished = bounded("iperf3 client", &mut client, seconds(self.seconds) + GRACE)?;
        // It serves once. Its CPU time counts as ours when it has been waited for.
        until(seconds(5), || !server.is_running());
        Report::parse(&finished.stdout).with_context(|| format!("iperf3 ended with {:?}: {}", finished.code, finished.stderr.trim()))
    }
}

impl Report {
    fn parse(text: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(text).context("no JSON")?;
        if let Some(error) = value.get("error").and_then(Value::as_str) {
            bail!("{error}");
        }
        Ok(Self(value))
    }

    /// What arrived, in Gbit/s.
    pub fn gbit(&self) -> Result<f64> {
        Ok(self.received("sum_received", "bits_per_second")? / 1e9)
    }

    /// What arrived at both ends of a run with `--bidir`, in Gbit/s.
    pub fn gbit_both_ways(&self) -> Result<f64> {
        Ok(self.gbit()? + self.received("sum_received_bidir_reverse", "bits_per_second")? / 1e9)
    }

    /// What arrived, in bytes of payload.
    pub fn bytes(&self) -> Result<f64> {
        self.received("sum_received", "bytes")
    }

    /// Datagrams that arrived, each with `length` bytes of payload, in thousands a second.
    pub fn kpps(&self, length: u32) -> Result<f64> {
        let time = self.received("sum_received", "seconds")?;
        Ok(self.bytes()? / f64::from(length) / time / 1000.0)
    }

    /// A number above zero: nothing measured is not a measurement.
    fn received(&self, sum: &str, field: &str) -> Result<f64> {
        let number = self.0["end"][sum][field].as_f64();
        let number = number.with_context(|| format!("iperf3 reports no end.{sum}.{field}"))?;
        ensure!(number > 0.0, "nothing arrived (end.{sum}.{field} is {number})");
        Ok(number)
    }
}

/// `count` echo requests, one every [`PING_EVERY`], through a path that carries nothing else.
pub fn ping(from: &Namespace, address: &str, count: u32) -> Result<RoundTrips> {
    let (every, count_word) = (PING_EVERY.as_secs_f64().to_string(), count.to_string());
    let mut command = from.command(&["ping", "-n", "-i", &every, "-c", &count_word, "-W", "1", address]);
    let finished = bounded("ping", &mut command, PING_EVERY * count + GRACE)?;
    let times = RoundTrips::parse(&finished.stdout).context("ping got no answer")?;
    // A late or lost answer is the tail of p99; more than a few say that something else is wrong.
    let enough = times.0.len() * 10 >= count as usize * 9;
    ensure!(enough, "only {} of {count} echo requests were answered", times.0.len());
    Ok(times)
}

impl RoundTrips {
    /// `64 bytes from 10.99.0.2: icmp_seq=1 ttl=64 time=0.190 ms`
    fn parse(text: &str) -> Option<Self> {
        let times = text.lines().filter_map(|line| line.rsplit_once(" time=")?.1.strip_suffix(" ms")?.parse::<f64>().ok());
        let mut times: Vec<f64> = times.map(|milliseconds| milliseconds * 1000.0).collect();
        times.sort_by(f64::total_cmp);
        (!times.is_empty()).then_some(Self(times))
    }

    /// The smallest time that at least the share `of`, 0 to 1, of all do not exceed (nearest rank).
    pub fn quantile(&self, of: f64) -> f64 {
        let rank = (of * self.0.len() as f64).ceil() as usize;
        let index = rank.clamp(1, self.0.len()) - 1;
        self.0[index]
    }
}

/// Runs a program to its end, or kills it when its time is over.
fn bounded(name: &str, command: &mut Command, within: Duration) -> Result<Finished> {
    let mut process = Process::start(name, command);
    if !until(within, || !process.is_running()) {
        bail!("{name} did not end within {within:?}: {}", process.stderr().trim());
    }
    Ok(process.finish(seconds(1)))
}

/// Whether `condition` came to hold in time.
pub(crate) fn until(within: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + within;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(LOOK_EVERY);
    }
}

const IPERF_PORT: &str = "5201";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_receiver_counted_is_used() {
        let text = r#"{ "start": {}, "end": {
            "sum": { "seconds": 4.0, "bytes": 999999, "bits_per_second": 1e12, "packets": 7 },
            "sum_sent": { "seconds": 4.0, "bytes": 999999, "bits_per_second": 1e12 },
            "sum_received": { "seconds": 2, "bytes": 640000, "bits_per_second": 2560000000.0 },
            "sum_received_bidir_reverse": { "seconds": 2, "bytes": 1, "bits_per_second": 440000000 } } }"#;
        let report = Report::parse(text).expect("a report");
        assert_eq!(report.gbit().expect("received"), 2.56);
        assert_eq!(report.gbit_both_ways().expect("received"), 3.0);
        assert_eq!(report.bytes().expect("received"), 640_000.0);
        assert_eq!(report.kpps(64).expect("received"), 5.0);
    }

    #[test]
    fn a_run_that_failed_is_no_measurement() {
        let refused = Report::parse(r#"{ "start": {}, "end": {}, "error": "unable to connect to server" }"#);
        assert_eq!(refused.expect_err("an error").to_string(), "unable to connect to server");
        assert!(Report::parse("").is_err());
        let nothing = Report::parse(r#"{ "end": { "sum_received": { "seconds": 4, "bytes": 0, "bits_per_second": 0 } } }"#).expect("JSON");
        assert!(nothing.gbit().is_err() && nothing.kpps(64).is_err());
        assert!(Report::parse("{}").expect("JSON").gbit().is_err());
    }

    #[test]
    fn quantiles_are_times_that_were_measured() {
        let lines: String = (1..=200).rev().map(|n| format!("64 bytes from 10.99.0.2: icmp_seq={n} ttl=64 time={n} ms\n")).collect();
        let times = RoundTrips::parse(&format!("PING 10.99.0.2 56(84) bytes of data.\n{lines}\n--- statistics ---\n")).expect("times");
        assert_eq!((times.quantile(0.5), times.quantile(0.99)), (100_000.0, 198_000.0));
        assert_eq!((times.quantile(0.0), times.quantile(1.0)), (1000.0, 200_000.0));
        assert_eq!(RoundTrips::parse("Request timeout\n"), None);
    }
}
