//! The tunnel bench: skyway beside other WireGuard programs, in one run, on one machine, interleaved.
//!
//! ```text
//!  options    what the command line asks for
//!  case       what is measured, and which figures it gives
//!  subject    who is measured: a pair of gateways of one kind, started anew for every round
//!   └ line      the namespaces that the pair stands in
//!  load       iperf3 and ping, and what they report
//!  usage      CPU time and memory of the gateways, and what else the machine was doing
//!  results    samples, medians, spreads
//!   ├ targets   the floors and aims, met or missed
//!   ├ table     Markdown
//!   └ plot      SVG
//! ```
//! Why one run: two figures of two days say little about two programs. In each round every subject has its turn, and the
//! order is rotated, so that whatever drifts meets all of them alike. Sender, receiver and both gateways share the
//! machine, so a figure is the capacity of the whole path and not of one gateway; the ratios are what counts. A veth pair
//! passes UDP segmentation offload on unsegmented, as a network card with that offload would: this favours all who use it.
//!
//! Left out: WireGuard in the kernel, loss and delay on the way, many peers. What has targets elsewhere (the relay, rekeys,
//! reloads) is measured elsewhere.

pub mod case;
pub mod line;
pub mod load;
pub mod machine;
pub mod options;
pub mod plot;
pub mod results;
pub mod subject;
pub mod table;
pub mod targets;
pub mod usage;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use self::case::{Case, Figure, Setting};
use self::line::{FAR, Line};
use self::load::Iperf;
use self::options::Options;
use self::results::{Failure, Results, Sample};
use self::subject::{GatewayPair, Subject, Tools};
use self::usage::Watch;

/// Who is measured, and in what; the whole of a run in advance.
#[derive(Debug)]
pub struct Bench<'a> {
    options: &'a Options,
    tools: &'a Tools,
    subjects: Vec<Subject>,
}

/// To start a pair, to see the first answer through it, and to stop it.
const START: Duration = Duration::from_secs(3);

impl<'a> Bench<'a> {
    /// `tools`: a subject whose program is not among them is left out.
    pub fn new(options: &'a Options, tools: &'a Tools) -> Self {
        let subjects = options.subjects.iter().copied().filter(|subject| tools.has(*subject)).collect();
        Self { options, tools, subjects }
    }

    pub fn subjects(&self) -> &[Subject] {
        &self.subjects
    }

    /// The cases that `subject` is measured in within one setting, in their order.
    fn cases(&self, subject: Subject, setting: Setting) -> Vec<Case> {
        let wanted = self.options.cases.iter().copied();
        wanted.filter(|case| case.setting() == setting && subject.takes_part(*case)).collect()
    }

    /// How many measurements a whole run makes.
    pub fn measurements(&self) -> usize {
        let settings = Setting::ALL.into_iter();
        let one_round: usize =
            settings.flat_map(|setting| self.subjects.iter().map(move |subject| self.cases(*subject, setting).len())).sum();
        one_round * self.options.rounds
    }

    /// How long a run will take, roughly.
    pub fn estimate(&self) -> Duration {
        let mut one_round = Duration::ZERO;
        for setting in Setting::ALL {
            for subject in &self.subjects {
                let cases = self.cases(*subject, setting);
                if !cases.is_empty() {
                    one_round += START;
                }
                one_round += cases.iter().map(|case| case.takes(self.options)).sum::<Duration>();
            }
        }
        one_round.saturating_mul(u32::try_from(self.options.rounds).unwrap_or(u32::MAX))
    }

    /// Measures everything. `progress` is told one line a measurement. What fails is put down and the rest goes on.
    pub fn run(&self, progress: &mut dyn FnMut(&str)) -> Results {
        let mut results = Results::default();
        let mut done = 0;
        let all = self.measurements();
        for round in 0..self.options.rounds {
            let mut order = self.subjects.clone();
            let first = round.checked_rem(order.len()).unwrap_or(0);
            order.rotate_left(first);
            for setting in Setting::ALL {
                for subject in &order {
                    let cases = self.cases(*subject, setting);
                    if cases.is_empty() {
                        continue;
                    }
                    let mut turn = Turn { subject: *subject, round, done, all, results: &mut results, progress: &mut *progress };
                    turn.take(setting, &cases, self.options, self.tools);
                    done += cases.len();
                }
            }
        }
        results
    }
}

/// One subject's turn: its pair of gateways, fresh, through the cases of one setting.
struct Turn<'a> {
    subject: Subject,
    round: usize,
    done: usize,
    all: usize,
    results: &'a mut Results,
    progress: &'a mut dyn FnMut(&str),
}

impl Turn<'_> {
    /// The harness panics when something goes wrong, as a test should. Here that costs one turn and not the whole run.
    fn take(&mut self, setting: Setting, cases: &[Case], options: &Options, tools: &Tools) {
        let before = self.done;
        let finished = catch_unwind(AssertUnwindSafe(|| {
            let line = Line::build(setting == Setting::Limited);
            let pair = GatewayPair::start(self.subject, tools, &line, setting == Setting::Ipv6);
            for case in cases {
                self.measure(*case, &line, &pair, options);
            }
        }));
        if let Err(panic) = finished {
            let why = words_of(&*panic);
            let missing: Vec<Case> = cases.iter().copied().skip(self.done - before).collect();
            for case in &missing {
                self.fail(*case, &why);
            }
            // All was measured, and then it went wrong when the gateways were stopped.
            if missing.is_empty()
                && let Some(last) = cases.last()
            {
                self.results.failures.push(Failure { round: self.round, subject: self.subject, case: *last, why });
            }
        }
    }

    fn measure(&mut self, case: Case, line: &Line, pair: &GatewayPair<'_>, options: &Options) {
        let watch = Watch::start(pair.pids());
        let measured = figures(case, line, pair, options);
        let disturbance = watch.disturbance();
        match measured {
            Ok(figures) => {
                let said: Vec<String> = figures.iter().map(|(figure, value)| figure.with_unit(*value)).collect();
                self.tell(case, &said.join(", "));
                let (subject, round) = (self.subject, self.round);
                let samples = figures.into_iter().map(|(figure, value)| Sample { round, subject, figure, value, disturbance });
                self.results.samples.extend(samples);
            }
            Err(error) => self.fail(case, &format!("{error:#}")),
        }
    }

    fn fail(&mut self, case: Case, why: &str) {
        self.tell(case, &format!("FAILED: {why}"));
        self.results.failures.push(Failure { round: self.round, subject: self.subject, case, why: why.to_owned() });
    }

    fn tell(&mut self, case: Case, what: &str) {
        self.done += 1;
        let line = format!("[{}/{}] round {} {} {}: {what}", self.done, self.all, self.round + 1, self.subject.name(), case.name());
        (self.progress)(&line);
    }
}

/// Does one measurement.
fn figures(case: Case, line: &Line, pair: &GatewayPair<'_>, options: &Options) -> anyhow::Result<Vec<(Figure, f64)>> {
    let between_gateways =
        |words: &[&str]| Iperf { from: &line.near, to: &line.far, address: FAR.inside[0], seconds: options.seconds }.run(words);
    let between_hosts =
        |words: &[&str]| Iperf { from: &line.client, to: &line.server, address: FAR.host[0], seconds: options.seconds }.run(words);
    let figures = match case {
        Case::Latency => {
            let times = load::ping(&line.near, FAR.inside[0], options.pings)?;
            vec![(Figure::LatencyP50, times.quantile(0.5)), (Figure::LatencyP99, times.quantile(0.99))]
        }
        Case::Tcp1 => {
            let before = pair.cpu_seconds();
            let report = between_gateways(&[])?;
            let spent = pair.cpu_seconds() - before;
            vec![(Figure::Tcp1, report.gbit()?), (Figure::CpuPerGb, spent / (report.bytes()? / 1e9))]
        }
        Case::Tcp1Reverse => vec![(Figure::Tcp1Reverse, between_gateways(&["-R"])?.gbit()?)],
        Case::Tcp4 => vec![(Figure::Tcp4, between_gateways(&["-P", "4"])?.gbit()?)],
        Case::Tcp4Reverse => vec![(Figure::Tcp4Reverse, between_gateways(&["-P", "4", "-R"])?.gbit()?)],
        Case::Bidirectional => vec![(Figure::Bidirectional, between_gateways(&["--bidir"])?.gbit_both_ways()?)],
        Case::Forward1 => vec![(Figure::Forward1, between_hosts(&[])?.gbit()?)],
        Case::Forward4 => vec![(Figure::Forward4, between_hosts(&["-P", "4"])?.gbit()?)],
        Case::Udp1392 => vec![(Figure::Udp1392, between_gateways(&["-u", "-b", "0", "-l", "1392"])?.kpps(1392)?)],
        Case::Udp64 => vec![(Figure::Udp64, between_gateways(&["-u", "-b", "0", "-l", "64"])?.kpps(64)?)],
        Case::Memory => vec![(Figure::PeakRss, pair.peak_rss_mib())],
        Case::Ipv6 => {
            let iperf = Iperf { from: &line.near, to: &line.far, address: FAR.inside[1], seconds: options.seconds };
            vec![(Figure::Ipv6, iperf.run(&[])?.gbit()?)]
        }
        Case::Limited => {
            // 16, so that every lane very likely gets some.
            let iperf = Iperf { from: &line.near, to: &line.far, address: FAR.inside[0], seconds: options.seconds };
            vec![(Figure::Limited, iperf.run(&["-P", "16"])?.gbit()? * 1000.0)]
        }
    };
    Ok(figures)
}

/// What was said in a panic.
fn words_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&'static str>().copied());
    // The first line says what went wrong; below it come whole logs, which were shown when it happened.
    text.and_then(|text| text.lines().next()).unwrap_or("a panic without words").to_owned()
}
