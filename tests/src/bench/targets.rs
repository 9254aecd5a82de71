//! The floors and aims of the tunnel's speed, as design.md §8 sets them, and whether they are met.
//!
//! Only what this bench measures. Lost packets over a rekey, reloads and all of the relay are proven elsewhere.

use super::case::Figure;
use super::results::{Results, Spread};
use super::subject::Subject;

/// One line of design.md §8.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Target {
    pub figure: Figure,
    pub subject: Subject,
    /// Whom it is a ratio to. None: the figure itself is held against the target.
    pub against: Option<Subject>,
    pub floor: f64,
    pub aim: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Better than or equal to the aim, and so to the floor.
    AimMet,
    FloorMet,
    Missed,
    /// One of both was not measured.
    Unknown,
}

pub const TARGETS: [Target; 7] = [
    ratio(Figure::Tcp1, Subject::Skyway1, Subject::WireguardGo, 1.4, 1.8),
    ratio(Figure::Tcp4, Subject::Skyway2, Subject::WireguardGo, 1.7, 2.1),
    ratio(Figure::Limited, Subject::Skyway4, Subject::Skyway1, 3.6, 3.9),
    ratio(Figure::Udp1392, Subject::Skyway1, Subject::WireguardGo, 3.0, 5.0),
    ratio(Figure::LatencyP50, Subject::Skyway1, Subject::BoringtunOneThread, 1.0, 0.6),
    Target { figure: Figure::PeakRss, subject: Subject::Skyway1, against: None, floor: 16.0, aim: 6.0 },
    Target { figure: Figure::PeakRss, subject: Subject::Skyway2, against: None, floor: 16.0, aim: 6.0 },
];

const fn ratio(figure: Figure, subject: Subject, against: Subject, floor: f64, aim: f64) -> Target {
    Target { figure, subject, against: Some(against), floor, aim }
}

impl Target {
    /// The ratio, or the figure in its unit. None: not measured.
    pub fn reached(&self, results: &Results) -> Option<Spread> {
        match self.against {
            Some(against) => results.ratio(self.subject, against, self.figure),
            None => results.spread(self.subject, self.figure),
        }
    }

    /// By the median.
    pub fn verdict(&self, results: &Results) -> Verdict {
        let Some(Spread { median, .. }) = self.reached(results) else { return Verdict::Unknown };
        let reaches = |target: f64| if self.figure.more_is_better() { median >= target } else { median <= target };
        if reaches(self.aim) {
            Verdict::AimMet
        } else if reaches(self.floor) {
            Verdict::FloorMet
        } else {
            Verdict::Missed
        }
    }
}

impl Verdict {
    pub const fn words(self) -> &'static str {
        match self {
            Self::AimMet => "aim met",
            Self::FloorMet => "floor met, aim missed",
            Self::Missed => "floor missed",
            Self::Unknown => "not measured",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::rounds;
    use super::*;

    fn verdict(target: Target, ours: f64, theirs: f64) -> Verdict {
        let mut samples = rounds(target.subject, target.figure, &[ours]);
        samples.extend(target.against.into_iter().flat_map(|against| rounds(against, target.figure, &[theirs])));
        target.verdict(&Results { samples, failures: Vec::new() })
    }

    #[test]
    fn more_is_better_for_throughput_and_less_for_latency_and_memory() {
        let [tcp, _, _, _, latency, memory, _] = TARGETS;
        assert_eq!(verdict(tcp, 3.6, 2.0), Verdict::AimMet);
        assert_eq!(verdict(tcp, 3.0, 2.0), Verdict::FloorMet);
        assert_eq!(verdict(tcp, 2.0, 2.0), Verdict::Missed);
        assert_eq!(verdict(latency, 90.0, 180.0), Verdict::AimMet);
        assert_eq!(verdict(latency, 180.0, 180.0), Verdict::FloorMet);
        assert_eq!(verdict(latency, 181.0, 180.0), Verdict::Missed);
        assert_eq!(verdict(memory, 17.0, 0.0), Verdict::Missed);
        assert_eq!(verdict(memory, 5.0, 0.0), Verdict::AimMet);
        assert_eq!(tcp.verdict(&Results::default()), Verdict::Unknown);
    }
}
