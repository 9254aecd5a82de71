//! The relay bench: skyway beside HAProxy, nginx and Squid, in one run, on one machine, interleaved.
//!
//! ```text
//!  options    what the command line asks for
//!  case       what is measured, and which figures it gives
//!  subject    who is measured: one relay, started anew for every case
//!   └ peers     everybody's configuration
//!  line       the namespaces: sensors, relay, hosts
//!  generator  sensors and hosts, in processes of their own (bin/relay_load)
//!  load       starts them and reads what they report
//!  measure    one case of one subject
//!   └ usage     processors, CPU time, memory of both sides of the system call
//!  results    samples, medians, spreads, what a relay adds, what was the limit
//!   ├ targets   the floors and aims, met or missed
//!   ├ table     Markdown
//!   └ plot      SVG
//!  about      machine, versions, conditions
//! ```
//! **One processor for the relay**, the other for sensors and hosts. A rate says something of the relay only if it was the
//! relay that could do no more: the report tells how busy both were, and marks what the load was the limit of.
//!
//! **One run**: in each round every subject has its turn, and the order is rotated, and reversed in every other round, so
//! that whatever drifts meets all of them alike. Ratios are taken round by round. `none` is the same path without a relay:
//! what a relay adds to latency and kernel memory is the difference to it, and its rate is the generator's own limit.
//!
//! Sensors and hosts speak no TLS beyond a canned ClientHello: a relay that does not decrypt cannot tell, and cryptography
//! would take the load's processor.
//!
//! Left out: more than one processor, loss and delay, chains, overload, real TLS. What a relay does with bad input is for
//! the suites.

pub mod about;
pub mod case;
pub mod generator;
pub mod line;
pub mod load;
mod measure;
pub mod options;
pub mod peers;
pub mod plot;
pub mod results;
pub mod subject;
pub mod table;
pub mod targets;
pub mod usage;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Duration;
use std::{fs, io};

use self::case::Case;
use self::load::Stage;
use self::measure::{Measured, Measurement, most_sessions};
use self::options::Options;
use self::peers::Setup;
use self::results::{Failure, Results, Sample};
use self::subject::{Programs, Subject, files};

/// Who is measured, and in what; the whole of a run in advance.
#[derive(Debug)]
pub struct Bench<'a> {
    options: &'a Options,
    programs: &'a Programs,
    /// How many a process may open.
    open_files: usize,
    subjects: Vec<Subject>,
}

/// To make the namespaces and take them down again, once a turn.
const STAGE: Duration = Duration::from_secs(1);

impl<'a> Bench<'a> {
    /// `programs`: a subject whose program is not among them is left out.
    pub fn new(options: &'a Options, programs: &'a Programs, open_files: usize) -> Self {
        let subjects = options.subjects.iter().copied().filter(|subject| programs.has(*subject)).collect();
        Self { options, programs, open_files, subjects }
    }

    pub fn subjects(&self) -> &[Subject] {
        &self.subjects
    }

    /// The cases that `subject` is measured in, in their order.
    fn cases(&self, subject: Subject) -> Vec<Case> {
        self.options.cases.iter().copied().filter(|case| subject.takes_part(*case)).collect()
    }

    /// How many measurements a whole run makes.
    pub fn measurements(&self) -> usize {
        self.subjects.iter().map(|subject| self.cases(*subject).len()).sum::<usize>() * self.options.rounds
    }

    /// How long a run will take, roughly.
    pub fn estimate(&self) -> Duration {
        let turns = self.subjects.iter().map(|subject| self.cases(*subject)).filter(|cases| !cases.is_empty());
        let one_round: Duration = turns.map(|cases| STAGE + cases.iter().map(|case| case.takes(self.options)).sum::<Duration>()).sum();
        one_round.saturating_mul(u32::try_from(self.options.rounds).unwrap_or(u32::MAX))
    }

    /// Measures everything. `progress` is told one line a measurement. What fails is put down and the rest goes on.
    pub fn run(&self, progress: &mut dyn FnMut(&str)) -> Results {
        let mut results = Results::default();
        let mut done = 0;
        for round in 0..self.options.rounds {
            for subject in self.order(round) {
                let cases = self.cases(subject);
                if cases.is_empty() {
                    continue;
                }
                let mut turn = Turn { bench: self, subject, round, done, results: &mut results, progress: &mut *progress };
                turn.take(&cases);
                done += cases.len();
            }
            results.derive(round);
        }
        results
    }

    /// Each subject is first in some round, and each pair stands in both orders.
    fn order(&self, round: usize) -> Vec<Subject> {
        let mut order = self.subjects.clone();
        let first = (round / 2).checked_rem(order.len()).unwrap_or(0);
        order.rotate_left(first);
        if !round.is_multiple_of(2) {
            order.reverse();
        }
        order
    }

    /// Writes the configurations that everybody runs with below `folder`, for whoever wants to check or repeat.
    pub fn keep_configurations(&self, folder: &Path) -> io::Result<()> {
        let setup = Setup { sessions: most_sessions(self.open_files), drain: None, logs: self.options.logs, changed: false };
        for subject in &self.subjects {
            let below = folder.join(subject.name());
            for (file, content) in files(*subject, setup, self.open_files) {
                fs::create_dir_all(&below)?;
                fs::write(below.join(file), content)?;
            }
        }
        Ok(())
    }
}

/// One subject's turn: through all its cases, on namespaces of its own.
struct Turn<'a> {
    bench: &'a Bench<'a>,
    subject: Subject,
    round: usize,
    done: usize,
    results: &'a mut Results,
    progress: &'a mut dyn FnMut(&str),
}

impl Turn<'_> {
    fn take(&mut self, cases: &[Case]) {
        let Bench { options, programs, open_files, .. } = *self.bench;
        match caught(|| Stage::build(options.steered)) {
            Ok(stage) => {
                let measurement = Measurement { subject: self.subject, stage: &stage, programs, options, open_files };
                for case in cases {
                    match caught(|| measurement.take(*case)) {
                        Ok(measured) => self.put_down(*case, measured),
                        Err(why) => self.fail(*case, &why),
                    }
                }
            }
            Err(why) => cases.iter().for_each(|case| self.fail(*case, &why)),
        }
    }

    fn put_down(&mut self, case: Case, measured: Measured) {
        let Measured { figures, busy, disturbance, remark } = measured;
        let mut said: Vec<String> = figures.iter().map(|(figure, value)| figure.with_unit(*value)).collect();
        if let Some([load, relay]) = busy {
            said.push(format!("processors {:.0} % and {:.0} % busy", load * 100.0, relay * 100.0));
        }
        said.extend(remark);
        self.tell(case, &said.join(", "));
        let disturbance = if case.wants_quiet() { disturbance } else { 0.0 };
        let (subject, round) = (self.subject, self.round);
        let samples = figures.into_iter().map(|(figure, value)| Sample { round, subject, figure, value, busy, disturbance });
        self.results.samples.extend(samples);
    }

    fn fail(&mut self, case: Case, why: &str) {
        self.tell(case, &format!("FAILED: {why}"));
        self.results.failures.push(Failure { round: self.round, subject: self.subject, case, why: why.to_owned() });
    }

    fn tell(&mut self, case: Case, what: &str) {
        self.done += 1;
        let (all, round) = (self.bench.measurements(), self.round + 1);
        let line = format!("[{}/{all}] round {round} {} {}: {what}", self.done, self.subject.name(), case.name());
        (self.progress)(&line);
    }
}

/// The harness panics when something goes wrong, as a test should. Here that costs one measurement and not the whole run.
fn caught<T>(act: impl FnOnce() -> anyhow::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(act)) {
        Ok(done) => done.map_err(|error| format!("{error:#}")),
        Err(panic) => Err(words_of(&*panic)),
    }
}

/// What was said in a panic.
fn words_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&'static str>().copied());
    // The first line says what went wrong; below it come whole logs, which were shown when it happened.
    text.and_then(|text| text.lines().next()).unwrap_or("a panic without words").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(line: &str) -> Options {
        Options::parse(line.split_whitespace().map(str::to_owned)).expect("nothing wrong")
    }

    #[test]
    fn each_pair_of_subjects_stands_in_both_orders() {
        let (options, programs) = (options("--only none,skyway"), Programs::default());
        let bench = Bench::new(&options, &programs, 20_000);
        let orders: Vec<Vec<Subject>> = (0..4).map(|round| bench.order(round)).collect();
        let (there, back) = (vec![Subject::Direct, Subject::Skyway], vec![Subject::Skyway, Subject::Direct]);
        assert_eq!(orders, [there.clone(), back.clone(), back, there]);
    }

    #[test]
    fn who_is_not_here_is_not_measured() {
        let (options, programs) = (options("--rounds 2 --cases connect_rate,drain"), Programs::default());
        let bench = Bench::new(&options, &programs, 20_000);
        assert_eq!(bench.subjects(), [Subject::Direct, Subject::Skyway]);
        // Without a relay there is neither CONNECT nor a drain.
        assert_eq!(bench.measurements(), 4);
        assert!(bench.estimate() >= Duration::from_secs(2));
    }

    #[test]
    fn a_panic_and_an_error_are_both_told() {
        assert_eq!(caught(|| Ok(1)), Ok(1));
        assert_eq!(caught::<()>(|| anyhow::bail!("no answer")), Err("no answer".to_owned()));
        assert_eq!(caught::<()>(|| panic!("first line\nsecond")), Err("first line".to_owned()));
    }
}
