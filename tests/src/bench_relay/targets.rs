//! The floors and aims of the relay's speed, and whether they are met. Only what this bench measures.

use super::case::{Crowd, Figure};
use super::results::{Limit, Results};
use super::subject::Subject;
use crate::bench::results::Spread;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Target {
    pub figure: Figure,
    /// Whose best skyway's figure is a ratio to. Empty: the figure itself is held against the target.
    pub against: &'static [Subject],
    pub floor: f64,
    pub aim: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// As good as the aim or better, and so than the floor.
    AimMet,
    /// Met, and there is no aim beyond it.
    Met,
    FloorMet,
    Missed,
    /// Of one of them it was not the relay that could do no more.
    Unproven,
    /// One of them was not measured.
    Unknown,
}

const HAPROXY: &[Subject] = &[Subject::Haproxy];
const EITHER_HAPROXY: &[Subject] = &[Subject::Haproxy, Subject::HaproxySplice];

pub const TARGETS: [Target; 7] = [
    Target { figure: Figure::SniRate, against: HAPROXY, floor: 0.9, aim: Some(1.2) },
    Target { figure: Figure::ConnectRate, against: &[Subject::Squid], floor: 1.5, aim: None },
    Target { figure: Figure::AddedP99, against: HAPROXY, floor: 1.2, aim: None },
    Target { figure: Figure::UserMemory(Crowd::TenThousand), against: &[], floor: 2.5, aim: Some(1.5) },
    Target { figure: Figure::UpPerCpu, against: EITHER_HAPROXY, floor: 0.9, aim: Some(1.1) },
    Target { figure: Figure::DownPerCpu, against: EITHER_HAPROXY, floor: 0.9, aim: Some(1.1) },
    Target { figure: Figure::ReloadLost, against: &[], floor: 0.0, aim: None },
];

impl Target {
    /// The ratio, or the figure in its unit. None: not measured.
    pub fn reached(&self, results: &Results) -> Option<Spread> {
        if self.against.is_empty() {
            results.spread(Subject::Skyway, self.figure)
        } else {
            results.ratio(Subject::Skyway, self.against, self.figure)
        }
    }

    /// By the median; of sessions that must not be lost, by the worst round.
    pub fn verdict(&self, results: &Results) -> Verdict {
        let Some(Spread { median, max, .. }) = self.reached(results) else { return Verdict::Unknown };
        let mut limits = self.against.iter().chain(&[Subject::Skyway]).filter_map(|subject| results.limit(*subject, self.figure));
        if limits.any(|limit| limit != Limit::Relay) {
            return Verdict::Unproven;
        }
        let value = if self.figure == Figure::ReloadLost { max } else { median };
        let reaches = |target: f64| if self.figure.more_is_better() { value >= target } else { value <= target };
        match self.aim {
            Some(aim) if reaches(aim) => Verdict::AimMet,
            Some(_) if reaches(self.floor) => Verdict::FloorMet,
            None if reaches(self.floor) => Verdict::Met,
            None | Some(_) => Verdict::Missed,
        }
    }
}

impl Verdict {
    pub const fn words(self) -> &'static str {
        match self {
            Self::AimMet => "aim met",
            Self::Met => "met",
            Self::FloorMet => "floor met, aim missed",
            Self::Missed => "floor missed",
            Self::Unproven => "not proven: the relay was not the limit",
            Self::Unknown => "not measured",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::rounds;
    use super::*;

    fn verdict(target: Target, ours: &[f64], theirs: f64) -> Verdict {
        let mut samples = rounds(Subject::Skyway, target.figure, ours);
        samples.extend(target.against.iter().flat_map(|against| rounds(*against, target.figure, &vec![theirs; ours.len()])));
        target.verdict(&Results { samples, failures: Vec::new() })
    }

    #[test]
    fn more_is_better_for_rates_and_less_for_latency_and_memory() {
        let [sni, connect, added, memory, up, _, lost] = TARGETS;
        assert_eq!(verdict(sni, &[12.0], 10.0), Verdict::AimMet);
        assert_eq!(verdict(sni, &[9.5], 10.0), Verdict::FloorMet);
        assert_eq!(verdict(sni, &[8.0], 10.0), Verdict::Missed);
        assert_eq!(verdict(connect, &[15.0], 10.0), Verdict::Met);
        assert_eq!(verdict(added, &[12.0], 10.0), Verdict::Met);
        assert_eq!(verdict(added, &[12.1], 10.0), Verdict::Missed);
        assert_eq!(verdict(memory, &[1.4], 0.0), Verdict::AimMet);
        assert_eq!(verdict(memory, &[2.6], 0.0), Verdict::Missed);
        assert_eq!(verdict(up, &[10.0], 10.0), Verdict::FloorMet);
        assert_eq!(sni.verdict(&Results::default()), Verdict::Unknown);
        // A single lost session is one too many.
        assert_eq!(verdict(lost, &[0.0, 0.0, 1.0], 0.0), Verdict::Missed);
        assert_eq!(verdict(lost, &[0.0, 0.0], 0.0), Verdict::Met);
    }

    #[test]
    fn a_rate_that_the_load_set_proves_nothing() {
        let [sni, ..] = TARGETS;
        let mut samples = rounds(Subject::Skyway, Figure::SniRate, &[12.0]);
        samples.extend(rounds(Subject::Haproxy, Figure::SniRate, &[10.0]));
        samples[1].busy = Some([0.99, 0.97]);
        assert_eq!(sni.verdict(&Results { samples, failures: Vec::new() }), Verdict::Unproven);
    }
}
