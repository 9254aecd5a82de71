//! The results as Markdown: medians with their spread, what was the limit, ratios, targets.

use super::about::About;
use super::case::Figure;
use super::results::{Limit, Results};
use super::subject::Subject;
use super::targets::{TARGETS, Target, Verdict};
use crate::bench::results::Spread;
use crate::bench::usage::DISTURBED;

/// Ratios that stand beside the figures.
const RATIOS: [(Subject, Subject); 4] = [
    (Subject::Skyway, Subject::Haproxy),
    (Subject::Skyway, Subject::HaproxySplice),
    (Subject::Skyway, Subject::Nginx),
    (Subject::Skyway, Subject::Squid),
];

/// What stands where nothing was measured.
const NOTHING: &str = "–";

/// The whole report.
pub fn report(results: &Results, about: &About) -> String {
    let mut text = format!(
        "# Relay bench\n\n{about}.\n\n{} rounds of {} s a load, interleaved; every case with a fresh process. Median (min–max). The relay has \
         processor 1 for itself, sensors and hosts share processor 0. Ratios are medians of the rounds' own ratios.\n\n",
        about.rounds, about.seconds
    );
    for (subject, why) in &about.missing {
        text.push_str(&format!("Left out: {}: {why}.\n\n", subject.name()));
    }
    text.push_str(&figures(results));
    let limits = results.subjects().into_iter().flat_map(|subject| Figure::ALL.map(|figure| results.limit(subject, figure)));
    let limits: Vec<Limit> = limits.flatten().collect();
    if limits.contains(&Limit::Load) {
        text.push_str("\n† The load's processor was more than 90 % busy: the figure is the generator's, and says nothing of the relay.\n");
    }
    if limits.contains(&Limit::Neither) {
        text.push_str("\n‡ Neither processor was more than 90 % busy: both waited, and the relay may be able to do more.\n");
    }
    text.push_str("\n## How busy the processors were\n\n");
    text.push_str(&processors(results));
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
    let ratio = |(one, other): (Subject, Subject), figure: Figure| results.ratio(one, &[other], figure);
    let ratios = RATIOS.into_iter().filter(|pair| Figure::ALL.iter().any(|figure| ratio(*pair, *figure).is_some()));
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
            let mark = match results.limit(*subject, figure) {
                Some(Limit::Load) => " †",
                Some(Limit::Neither) => " ‡",
                Some(Limit::Relay) | None => "",
            };
            let spread = results.spread(*subject, figure);
            cells.push(spread.map_or_else(|| NOTHING.to_owned(), |spread| with_spread(figure, spread) + mark));
        }
        for pair in &ratios {
            cells.push(ratio(*pair, figure).map_or_else(|| NOTHING.to_owned(), |Spread { median, .. }| format!("{median:.2}×")));
        }
        text.push_str(&row(&cells));
    }
    text
}

/// Idle shares, because that is what is left.
fn processors(results: &Results) -> String {
    let subjects = results.subjects();
    let mut head = vec!["idle: load's / relay's".to_owned()];
    head.extend(subjects.iter().map(|subject| subject.name().to_owned()));
    let mut text = row(&head) + &rule(head.len());
    for figure in [Figure::SniRate, Figure::ConnectRate, Figure::LatencyP50, Figure::Up, Figure::Down] {
        let busy = |subject: &Subject| results.busy(*subject, figure);
        if subjects.iter().all(|subject| busy(subject).is_none()) {
            continue;
        }
        let mut cells = vec![figure.label().to_owned()];
        for subject in &subjects {
            let idle = |[load, relay]: [Spread; 2]| format!("{} / {}", percent(1.0 - load.median), percent(1.0 - relay.median));
            cells.push(busy(subject).map_or_else(|| NOTHING.to_owned(), idle));
        }
        text.push_str(&row(&cells));
    }
    text
}

fn targets(results: &Results) -> String {
    let mut text = row(&["what", "reached", "floor", "aim", ""].map(str::to_owned));
    text.push_str(&rule(5));
    for target in TARGETS {
        let Target { figure, against, floor, aim } = target;
        let names: Vec<&str> = against.iter().map(|subject| subject.name()).collect();
        let what = match names.as_slice() {
            [] => format!("{}, skyway", figure.label()),
            [one] => format!("{}, skyway ÷ {one}", figure.label()),
            several => format!("{}, skyway ÷ the better of {}", figure.label(), several.join(" and ")),
        };
        let (sign, unit) = (if figure.more_is_better() { "≥" } else { "≤" }, if names.is_empty() { figure.unit() } else { "×" });
        let reached = target
            .reached(results)
            .map_or_else(|| NOTHING.to_owned(), |Spread { median, min, max, .. }| format!("{median:.2} {unit} ({min:.2}–{max:.2})"));
        let verdict = target.verdict(results);
        let verdict = if verdict == Verdict::Missed { format!("**{}**", verdict.words()) } else { verdict.words().to_owned() };
        let aim = aim.map_or_else(|| NOTHING.to_owned(), |aim| format!("{sign} {aim} {unit}"));
        text.push_str(&row(&[what, reached, format!("{sign} {floor} {unit}"), aim, verdict]));
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
mod tests {
    use super::super::about::tests::about;
    use super::super::case::Case;
    use super::super::results::Failure;
    use super::super::results::tests::rounds;
    use super::*;

    #[test]
    fn the_report_tells_figures_limits_ratios_targets_and_what_is_missing() {
        let mut samples = rounds(Subject::Direct, Figure::SniRate, &[40_000.0]);
        samples.extend(rounds(Subject::Skyway, Figure::SniRate, &[12_000.0, 13_000.0, 14_000.0]));
        samples.extend(rounds(Subject::Haproxy, Figure::SniRate, &[10_000.0, 10_000.0, 10_000.0]));
        samples.extend(rounds(Subject::Nginx, Figure::SniRate, &[9000.0]));
        for sample in &mut samples {
            sample.busy = Some(if sample.subject == Subject::Nginx { [0.95, 0.9] } else { [0.6, 0.99] });
        }
        samples[0].disturbance = 0.3;
        let failures = vec![Failure { round: 1, subject: Subject::Squid, case: Case::Latency, why: "no answer".to_owned() }];
        let text = report(&Results { samples, failures }, &about());
        for part in [
            "| figure | none | skyway | haproxy | nginx | skyway ÷ haproxy | skyway ÷ nginx |\n",
            "| new sessions, SNI, /s | 40000 | 13000 (12000–14000) | 10000 (10000–10000) | 9000 † | 1.30× | 1.33× |\n",
            "† The load's processor",
            "| new sessions, SNI | 40 % / 1 % | 40 % / 1 % | 40 % / 1 % | 5 % / 10 % |\n",
            "| new sessions, SNI, skyway ÷ haproxy | 1.30 × (1.20–1.40) | ≥ 0.9 × | ≥ 1.2 × | aim met |\n",
            "| lost to 5 reloads under load, skyway | – | ≤ 0 sessions | – | not measured |\n",
            "skyway ÷ the better of haproxy and haproxy-splice",
            "Left out: squid: not installed.",
            "- round 2, squid, latency: no answer\n",
            "during 1 of 8 measured figures",
        ] {
            assert!(text.contains(part), "{part:?} is not in:\n{text}");
        }
        // Nobody waited, and what nobody was measured in has no line.
        assert!(!text.contains('‡') && !text.contains("| bulk up, Gbit/s"), "{text}");
    }
}
