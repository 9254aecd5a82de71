//! What was measured, and what it comes to.

use serde_json::{Value, json};

use super::case::{Case, Figure};
use super::subject::Subject;
use crate::bench::results::Spread;
use crate::bench::usage::DISTURBED;

#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// From zero.
    pub round: usize,
    pub subject: Subject,
    pub figure: Figure,
    /// In the figure's unit.
    pub value: f64,
    /// How busy the load's processor was and how busy the relay's, 0 to 1.
    pub busy: Option<[f64; 2]>,
    /// The share of the machine that others had meanwhile, 0 to 1.
    pub disturbance: f64,
}

/// A measurement that came to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub round: usize,
    pub subject: Subject,
    pub case: Case,
    pub why: String,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Results {
    pub samples: Vec<Sample>,
    pub failures: Vec<Failure>,
}

/// What could do no more while a figure was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    Relay,
    /// The figure is the generator's, and the relay could have done more.
    Load,
    /// Both waited.
    Neither,
}

/// A processor that is busier than this can do no more.
const FULL: f64 = 0.9;

impl Results {
    /// Of all rounds; None: never measured.
    pub fn spread(&self, subject: Subject, figure: Figure) -> Option<Spread> {
        Spread::of(self.of(subject, figure).map(|sample| sample.value))
    }

    /// What `one` reached of the best of `others` in `figure`: the ratio of each round in which they were measured.
    ///
    /// By rounds, because all stood side by side in them; what slowed one round down is in all.
    pub fn ratio(&self, one: Subject, others: &[Subject], figure: Figure) -> Option<Spread> {
        let better = if figure.more_is_better() { f64::max } else { f64::min };
        let pairs = self.of(one, figure).filter_map(|sample| {
            let beside = others.iter().flat_map(|other| self.of(*other, figure)).filter(|beside| beside.round == sample.round);
            let best = beside.map(|beside| beside.value).reduce(better)?;
            // What is added may come out as nothing or less; nothing is a share of that.
            (best > 0.0).then_some(sample.value / best)
        });
        Spread::of(pairs)
    }

    /// Takes from what was measured through each relay in `round` what was measured without one.
    pub fn derive(&mut self, round: usize) {
        let mut derived = Vec::new();
        for figure in Figure::ALL {
            let Some(whole) = figure.added_to() else { continue };
            let of_round = self.samples.iter().filter(|sample| sample.round == round && sample.figure == whole);
            let Some(without) = of_round.clone().find(|sample| sample.subject == Subject::Direct) else { continue };
            let relays = of_round.filter(|sample| sample.subject != Subject::Direct);
            derived.extend(relays.map(|sample| Sample { figure, value: sample.value - without.value, ..sample.clone() }));
        }
        self.samples.extend(derived);
    }

    /// None: it does not matter to the figure, or there is no relay, or nothing was measured. By the medians.
    pub fn limit(&self, subject: Subject, figure: Figure) -> Option<Limit> {
        if !figure.wants_busy_relay() || subject == Subject::Direct {
            return None;
        }
        let median = |core: usize| {
            let shares = self.of(subject, figure).filter_map(|sample| sample.busy?.get(core).copied());
            Spread::of(shares).map(|spread| spread.median)
        };
        let (load, relay) = (median(0)?, median(1)?);
        Some(if load > FULL {
            Limit::Load
        } else if relay > FULL {
            Limit::Relay
        } else {
            Limit::Neither
        })
    }

    /// How busy the load's processor was and how busy the relay's, by the medians.
    pub fn busy(&self, subject: Subject, figure: Figure) -> Option<[Spread; 2]> {
        let of_core = |core: usize| Spread::of(self.of(subject, figure).filter_map(|sample| sample.busy?.get(core).copied()));
        Some([of_core(0)?, of_core(1)?])
    }

    /// Subjects of which anything was measured, in the order of [`Subject::ALL`].
    pub fn subjects(&self) -> Vec<Subject> {
        let all = Subject::ALL.into_iter();
        all.filter(|subject| self.samples.iter().any(|sample| sample.subject == *subject)).collect()
    }

    /// How many figures were measured on a disturbed machine, and the largest share of others.
    pub fn disturbed(&self) -> (usize, f64) {
        let shares = self.samples.iter().map(|sample| sample.disturbance);
        (shares.clone().filter(|share| *share > DISTURBED).count(), shares.fold(0.0, f64::max))
    }

    fn of(&self, subject: Subject, figure: Figure) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(move |sample| sample.subject == subject && sample.figure == figure)
    }

    /// Everything, for machines, beside what `about` says of the run. Rounds count from one there as in the progress.
    pub fn to_json(&self, about: &Value) -> Value {
        let samples = self.samples.iter().map(|sample| {
            json!({
                "round": sample.round + 1,
                "subject": sample.subject.name(),
                "figure": sample.figure.key(),
                "value": sample.value,
                "load_core_busy": sample.busy.map(|[load, _]| load),
                "relay_core_busy": sample.busy.map(|[_, relay]| relay),
                "foreign_cpu_share": sample.disturbance,
            })
        });
        let failures = self.failures.iter().map(|failure| {
            json!({
                "round": failure.round + 1,
                "subject": failure.subject.name(),
                "case": failure.case.name(),
                "why": failure.why,
            })
        });
        let mut medians = Vec::new();
        for figure in Figure::ALL {
            for subject in Subject::ALL {
                if let Some(Spread { median, min, max, count }) = self.spread(subject, figure) {
                    let (subject, figure) = (subject.name(), figure.key());
                    medians.push(json!({ "subject": subject, "figure": figure, "median": median, "min": min, "max": max, "count": count }));
                }
            }
        }
        json!({
            "run": about,
            "medians": medians,
            "samples": samples.collect::<Vec<Value>>(),
            "failures": failures.collect::<Vec<Value>>(),
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// One sample for each value, a round each, measured while the relay could do no more.
    pub(in crate::bench_relay) fn rounds(subject: Subject, figure: Figure, values: &[f64]) -> Vec<Sample> {
        let samples = values.iter().enumerate();
        samples.map(|(round, value)| Sample { round, subject, figure, value: *value, busy: Some([0.5, 1.0]), disturbance: 0.0 }).collect()
    }

    #[test]
    fn ratios_are_taken_round_by_round_to_the_better_one() {
        let mut samples = rounds(Subject::Skyway, Figure::UpPerCpu, &[4.0, 2.0, 6.0]);
        samples.extend(rounds(Subject::Haproxy, Figure::UpPerCpu, &[2.0, 1.0]));
        samples.extend(rounds(Subject::HaproxySplice, Figure::UpPerCpu, &[1.0, 2.0]));
        let results = Results { samples, failures: Vec::new() };
        let both = [Subject::Haproxy, Subject::HaproxySplice];
        let ratio = results.ratio(Subject::Skyway, &both, Figure::UpPerCpu);
        assert_eq!(ratio, Some(Spread { median: 1.5, min: 1.0, max: 2.0, count: 2 }));
        assert_eq!(results.ratio(Subject::Skyway, &[Subject::Nginx], Figure::UpPerCpu), None);
    }

    #[test]
    fn the_better_one_is_the_smaller_one_where_less_is_better() {
        let mut samples = rounds(Subject::Skyway, Figure::AddedP99, &[30.0, 30.0]);
        samples.extend(rounds(Subject::Haproxy, Figure::AddedP99, &[60.0, -1.0]));
        samples.extend(rounds(Subject::Nginx, Figure::AddedP99, &[20.0, -2.0]));
        let results = Results { samples, failures: Vec::new() };
        let ratio = results.ratio(Subject::Skyway, &[Subject::Haproxy, Subject::Nginx], Figure::AddedP99);
        assert_eq!(ratio, Some(Spread { median: 1.5, min: 1.5, max: 1.5, count: 1 }));
    }

    #[test]
    fn what_is_added_is_what_is_more_than_without_a_relay_in_that_round() {
        let mut samples = rounds(Subject::Direct, Figure::LatencyP99, &[100.0, 90.0]);
        samples.extend(rounds(Subject::Skyway, Figure::LatencyP99, &[150.0, 130.0]));
        let mut results = Results { samples, failures: Vec::new() };
        results.derive(0);
        results.derive(1);
        let added = results.spread(Subject::Skyway, Figure::AddedP99);
        assert_eq!(added, Some(Spread { median: 45.0, min: 40.0, max: 50.0, count: 2 }));
        assert_eq!(results.spread(Subject::Direct, Figure::AddedP99), None);
        assert_eq!(results.spread(Subject::Skyway, Figure::AddedP50), None);
    }

    #[test]
    fn a_busy_load_is_a_limit() {
        let mut samples = rounds(Subject::Skyway, Figure::SniRate, &[10.0]);
        let limit = |samples: &[Sample]| {
            let results = Results { samples: samples.to_vec(), failures: Vec::new() };
            results.limit(Subject::Skyway, Figure::SniRate)
        };
        assert_eq!(limit(&samples), Some(Limit::Relay));
        samples[0].busy = Some([0.95, 1.0]);
        assert_eq!(limit(&samples), Some(Limit::Load));
        samples[0].busy = Some([0.5, 0.5]);
        assert_eq!(limit(&samples), Some(Limit::Neither));
        samples[0].busy = None;
        assert_eq!(limit(&samples), None);
    }
}
