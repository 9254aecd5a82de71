//! What was measured, and what it comes to.

use serde_json::{Value, json};

use super::case::{Case, Figure};
use super::machine::Machine;
use super::subject::Subject;
use super::usage::DISTURBED;

#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// From zero.
    pub round: usize,
    pub subject: Subject,
    pub figure: Figure,
    /// In the figure's unit.
    pub value: f64,
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

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
    /// How many values there were, at least one.
    pub count: usize,
}

impl Spread {
    /// None: no values.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let count = values.len();
        // The same value twice if the count is odd.
        let median = f64::midpoint(*values.get((count - 1) / 2)?, *values.get(count / 2)?);
        Some(Self { median, min, max, count })
    }
}

impl Results {
    /// Of all rounds; None: never measured.
    pub fn spread(&self, subject: Subject, figure: Figure) -> Option<Spread> {
        Spread::of(self.of(subject, figure).map(|sample| sample.value))
    }

    /// What `one` reached of `other` in `figure`: the ratio of each round in which both were measured.
    ///
    /// By rounds, because the two stood side by side in them; what slowed one round down is in both.
    pub fn ratio(&self, one: Subject, other: Subject, figure: Figure) -> Option<Spread> {
        let pairs = self.of(one, figure).filter_map(|sample| {
            let beside = self.of(other, figure).find(|beside| beside.round == sample.round)?;
            Some(sample.value / beside.value)
        });
        Spread::of(pairs.filter(|ratio| ratio.is_finite()))
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

    /// Everything, for machines. Rounds count from one there as in the progress.
    pub fn to_json(&self, machine: &Machine, rounds: usize, seconds: u64) -> Value {
        let samples = self.samples.iter().map(|sample| {
            json!({
                "round": sample.round + 1,
                "subject": sample.subject.name(),
                "figure": sample.figure.key(),
                "value": sample.value,
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
            "machine": machine.to_json(),
            "rounds": rounds,
            "seconds": seconds,
            "medians": medians,
            "samples": samples.collect::<Vec<Value>>(),
            "failures": failures.collect::<Vec<Value>>(),
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// One sample for each value, a round each.
    pub(crate) fn rounds(subject: Subject, figure: Figure, values: &[f64]) -> Vec<Sample> {
        let samples = values.iter().enumerate();
        samples.map(|(round, value)| Sample { round, subject, figure, value: *value, disturbance: 0.0 }).collect()
    }

    #[test]
    fn a_spread_is_median_and_ends() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0, count: 3 }));
        assert_eq!(Spread::of([4.0, 1.0]), Some(Spread { median: 2.5, min: 1.0, max: 4.0, count: 2 }));
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        let mut samples = rounds(Subject::Skyway1, Figure::Tcp1, &[4.0, 2.0, 6.0]);
        // The third round of the other is missing, and must not be made up from another one.
        samples.extend(rounds(Subject::WireguardGo, Figure::Tcp1, &[2.0, 1.0]));
        let results = Results { samples, failures: Vec::new() };
        let ratio = results.ratio(Subject::Skyway1, Subject::WireguardGo, Figure::Tcp1);
        assert_eq!(ratio, Some(Spread { median: 2.0, min: 2.0, max: 2.0, count: 2 }));
        assert_eq!(results.ratio(Subject::Skyway1, Subject::Gotatun, Figure::Tcp1), None);
        assert_eq!(results.subjects(), [Subject::Skyway1, Subject::WireguardGo]);
    }

    #[test]
    fn disturbed_measurements_are_counted() {
        let mut samples = rounds(Subject::Skyway1, Figure::Tcp1, &[4.0, 2.0]);
        samples[1].disturbance = 0.4;
        assert_eq!(Results { samples, failures: Vec::new() }.disturbed(), (1, 0.4));
        assert_eq!(Results::default().disturbed(), (0, 0.0));
    }
}
