//! The results as Markdown: medians with their spread, ratios, targets.

use super::case::Figure;
use super::machine::Machine;
use super::results::{Results, Spread};
use super::subject::Subject;
use super::targets::{TARGETS, Target, Verdict};
use super::usage::DISTURBED;

/// Ratios that stand beside the figures.
const RATIOS: [(Subject, Subject); 5] = [
    (Subject::Skyway1, Subject::WireguardGo),
    (Subject::Skyway2, Subject::WireguardGo),
    (Subject::Skyway1, Subject::BoringtunOneThread),
    (Subject::Skyway2, Subject::BoringtunOneThread),
    (Subject::Skyway4, Subject::Skyway1),
];

/// What stands where nothing was measured.
const NOTHING: &str = "–";

/// The whole report.
pub fn report(results: &Results, machine: &Machine, rounds: usize, seconds: u64) -> String {
    let mut text = format!(
        "# Tunnel bench\n\n{machine}.\n\n{rounds} rounds of {seconds} s a load, interleaved; every round with fresh processes. Median (min–max); \
         sender, receiver and both gateways share the machine. Ratios are medians of the rounds' own ratios.\n\n"
    );
    for (subject, why) in &machine.missing {
        text.push_str(&format!("Left out: {}: {why}.\n\n", subject.name()));
    }
    text.push_str(&figures(results));
    text.push_str("\n## Floors and aims\n\n");
    text.push_str(&targets(results));
    let (disturbed, most) = results.disturbed();
    if disturbed > 0 {
        text.push_str(&format!(
            "\nDISTURBED: during {disturbed} of {} measured figures others had more than {} of the machine, {} at most. Do it again on a quiet \
             one before you believe it.\n",
            results.samples.len(),
            percent(DISTURBED),
            percent(most),
        ));
    }
    if !results.failures.is_empty() {
        text.push_str("\n## Failed\n\n");
        for failure in &results.failures {
            let (round, subject, case) = (failure.round + 1, failure.subject.name(), failure.case.name());
            text.push_str(&format!("- round {round}, {subject}, {case}: {}\n", failure.why));
        }
    }
    text
}

fn figures(results: &Results) -> String {
    let subjects = results.subjects();
    let ratios = RATIOS.into_iter().filter(|(one, other)| Figure::ALL.iter().any(|figure| results.ratio(*one, *other, *figure).is_some()));
    let ratios: Vec<(Subject, Subject)> = ratios.collect();

    let mut head = vec!["figure".to_owned()];
    head.extend(subjects.iter().map(|subject| subject.name().to_owned()));
    head.extend(ratios.iter().map(|(one, other)| format!("{} ÷ {}", one.name(), other.name())));
    let mut text = row(&head) + &rule(head.len());
    for figure in Figure::ALL {
        if subjects.iter().all(|subject| results.spread(*subject, figure).is_none()) {
            continue;
        }
        let mut cells = vec![format!("{}, {}", figure.label(), figure.unit())];
        for subject in &subjects {
            cells.push(results.spread(*subject, figure).map_or_else(|| NOTHING.to_owned(), |spread| with_spread(figure, spread)));
        }
        for (one, other) in &ratios {
            let ratio = results.ratio(*one, *other, figure);
            cells.push(ratio.map_or_else(|| NOTHING.to_owned(), |Spread { median, .. }| format!("{median:.2}×")));
        }
        text.push_str(&row(&cells));
    }
    text
}

fn targets(results: &Results) -> String {
    let mut text = row(&["what", "reached", "floor", "aim", ""].map(str::to_owned));
    text.push_str(&rule(5));
    for target in TARGETS {
        let Target { figure, subject, against, floor, aim } = target;
        let (sign, unit) = (if figure.more_is_better() { "≥" } else { "≤" }, if against.is_some() { "×" } else { " MiB" });
        let what = match against {
            Some(against) => format!("{}, {} ÷ {}", figure.label(), subject.name(), against.name()),
            None => format!("{}, {}", figure.label(), subject.name()),
        };
        let reached = target
            .reached(results)
            .map_or_else(|| NOTHING.to_owned(), |Spread { median, min, max, .. }| format!("{median:.2}{unit} ({min:.2}–{max:.2})"));
        let verdict = target.verdict(results);
        let verdict = if verdict == Verdict::Missed { format!("**{}**", verdict.words()) } else { verdict.words().to_owned() };
        text.push_str(&row(&[what, reached, format!("{sign} {floor}{unit}"), format!("{sign} {aim}{unit}"), verdict]));
    }
    text
}

fn with_spread(figure: Figure, Spread { median, min, max, count }: Spread) -> String {
    if count == 1 {
        return figure.number(median);
    }
    format!("{} ({}–{})", figure.number(median), figure.number(min), figure.number(max))
}

fn row(cells: &[String]) -> String {
    format!("| {} |\n", cells.join(" | "))
}

/// What stands between a table's head and its body.
fn rule(columns: usize) -> String {
    format!("|{}\n", " --- |".repeat(columns))
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::case::Case;
    use super::super::results::Failure;
    use super::super::results::tests::rounds;
    use super::*;

    pub(crate) fn machine() -> Machine {
        Machine {
            processor: "Processor <A> & B".to_owned(),
            cores: 2,
            kernel: "6.1".to_owned(),
            commit: "abc".to_owned(),
            versions: vec!["skyway 0.1.0".to_owned()],
            missing: vec![(Subject::Gotatun, "not installed".to_owned())],
        }
    }

    #[test]
    fn the_report_tells_figures_ratios_targets_and_what_is_missing() {
        let mut samples = rounds(Subject::Skyway1, Figure::Tcp1, &[4.0, 4.5, 5.0]);
        samples.extend(rounds(Subject::WireguardGo, Figure::Tcp1, &[2.0, 3.0, 2.5]));
        samples[0].disturbance = 0.3;
        let failures = vec![Failure { round: 1, subject: Subject::Boringtun, case: Case::Tcp4, why: "no answer".to_owned() }];
        let text = report(&Results { samples, failures }, &machine(), 3, 4);
        for part in [
            "| figure | skyway-1 | wireguard-go | skyway-1 ÷ wireguard-go |\n| --- | --- | --- | --- |\n",
            "| TCP ×1, Gbit/s | 4.50 (4.00–5.00) | 2.50 (2.00–3.00) | 2.00× |\n",
            "| TCP ×1, skyway-1 ÷ wireguard-go | 2.00× (1.50–2.00) | ≥ 1.4× | ≥ 1.8× | aim met |\n",
            "| peak RSS, skyway-1 | – | ≤ 16 MiB | ≤ 6 MiB | not measured |\n",
            "Left out: gotatun: not installed.",
            "- round 2, boringtun, tcp4: no answer\n",
            "during 1 of 6 measured figures",
            "30 % at most",
        ] {
            assert!(text.contains(part), "{part:?} is not in:\n{text}");
        }
        // What nobody was measured in has no line.
        assert!(!text.contains("| UDP 64 B delivered, kpps"), "{text}");
    }
}
