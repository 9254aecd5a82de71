//! A report for people: a line for each finding and what to do below it, the verdict last.
//!
//! What is the same of several subjects is said once; machines get the whole of it as JSON.

use std::fmt::Write;

use super::finding::{Finding, Report, Severity};

/// How good and bad are marked: never by colour alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marks {
    /// For a terminal.
    Symbols,
    /// ASCII, for files and pipes.
    Words,
}

/// Subjects that are named when the same is said of more.
const SUBJECTS_TOLD: usize = 4;

impl Marks {
    pub const fn of_terminal(is_terminal: bool) -> Self {
        if is_terminal { Self::Symbols } else { Self::Words }
    }

    pub(super) const fn step(self, ok: bool) -> &'static str {
        match (self, ok) {
            (Self::Symbols, true) => "✓",
            (Self::Symbols, false) => "✗",
            (Self::Words, true) => "ok",
            (Self::Words, false) => "no",
        }
    }

    /// All of one width.
    const fn severity(self, severity: Severity) -> &'static str {
        match (self, severity) {
            (Self::Symbols, Severity::Good) => "✓",
            (Self::Symbols, Severity::Note) => "·",
            (Self::Symbols, Severity::Warning) => "!",
            (Self::Symbols, Severity::Problem) => "✗",
            (Self::Words, Severity::Good) => "ok     ",
            (Self::Words, Severity::Note) => "note   ",
            (Self::Words, Severity::Warning) => "WARNING",
            (Self::Words, Severity::Problem) => "PROBLEM",
        }
    }

    const fn arrow(self) -> &'static str {
        match self {
            Self::Symbols => "→",
            Self::Words => "->",
        }
    }
}

/// The whole report.
pub fn text(report: &Report, marks: Marks) -> String {
    let mut text = String::new();
    for row in rows(&report.findings) {
        let Finding { code, severity, what, next, .. } = row.finding;
        let mark = marks.severity(*severity);
        // Writing to a string cannot fail.
        let _written = writeln!(text, "{mark} {code}  {}: {}", plain(&row.subjects()), plain(what));
        if !next.is_empty() {
            let indent = mark.chars().count() + code.len() + 3;
            let _written = writeln!(text, "{:indent$}{} {}", "", marks.arrow(), plain(next));
        }
    }
    let _written = writeln!(text, "{}", summary(report));
    text
}

fn summary(report: &Report) -> String {
    let counted = |severity, one: &str, many: &str| match report.count(severity) {
        0 => None,
        1 => Some(format!("1 {one}")),
        count => Some(format!("{count} {many}")),
    };
    let worst = [counted(Severity::Problem, "problem", "problems"), counted(Severity::Warning, "warning", "warnings")];
    let worst: Vec<String> = worst.into_iter().flatten().collect();
    let verdict = if worst.is_empty() { "nothing is wrong".to_owned() } else { worst.join(", ") };
    let rest = [counted(Severity::Note, "note", "notes"), counted(Severity::Good, "thing good", "things good")];
    let rest: String = rest.into_iter().flatten().map(|part| format!(", {part}")).collect();
    let gateway = report.gateway.as_deref().map(|name| format!("{}: ", plain(name))).unwrap_or_default();
    let seconds = report.took_ms as f64 / 1000.0;
    format!("{gateway}{verdict}{rest}, in {seconds:.1} s")
}

/// A finding, and all that it is said of.
struct Row<'a> {
    finding: &'a Finding,
    subjects: Vec<&'a str>,
}

impl Row<'_> {
    fn subjects(&self) -> String {
        match self.subjects.split_at_checked(SUBJECTS_TOLD) {
            Some((first, rest)) if !rest.is_empty() => format!("{}; and {} more", first.join("; "), rest.len()),
            Some(_) | None => self.subjects.join("; "),
        }
    }
}

fn rows(findings: &[Finding]) -> Vec<Row<'_>> {
    let mut rows: Vec<Row<'_>> = Vec::new();
    for finding in findings {
        let same = |row: &&mut Row<'_>| {
            let Finding { code, severity, what, next, .. } = row.finding;
            (code, severity, what, next) == (&finding.code, &finding.severity, &finding.what, &finding.next)
        };
        match rows.iter_mut().find(same) {
            Some(row) => row.subjects.push(&finding.subject),
            None => rows.push(Row { finding, subjects: vec![finding.subject.as_str()] }),
        }
    }
    rows
}

/// Without what a terminal would obey: parts of it come from others.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { '?' } else { character }).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::finding::code;
    use super::*;

    fn report(findings: Vec<Finding>) -> Report {
        Report::new(Some("aws-use1-a".into()), findings, Duration::from_millis(3200))
    }

    #[test]
    fn each_finding_has_its_line_and_the_verdict_is_last() {
        let report = report(vec![
            Finding::good(code::CLOCK, "clock", "right"),
            Finding::problem(code::PRESHARED_KEY, "tunnel azure, peer vnet-a", "the preshared keys differ", "make them equal"),
        ]);
        assert_eq!(
            text(&report, Marks::Words),
            "ok      SKY-C01  clock: right\n\
             PROBLEM SKY-T05  tunnel azure, peer vnet-a: the preshared keys differ\n\
             \x20                -> make them equal\n\
             aws-use1-a: 1 problem, 1 thing good, in 3.2 s\n"
        );
        assert!(
            text(&report, Marks::Symbols)
                .contains("✗ SKY-T05  tunnel azure, peer vnet-a: the preshared keys differ\n           → make them equal\n")
        );
    }

    #[test]
    fn what_is_the_same_is_said_once() {
        let of = |subject: &str| Finding::problem(code::NOT_CONNECTED, subject, "no connection", "open it");
        let shown = text(&report((0..6).map(|number| of(&format!("host {number}"))).collect()), Marks::Words);
        assert!(shown.starts_with("PROBLEM SKY-R03  host 0; host 1; host 2; host 3; and 2 more: no connection\n"), "{shown}");
        assert!(shown.ends_with("aws-use1-a: 6 problems, in 3.2 s\n"), "{shown}");
        let two = text(&report(vec![of("a"), Finding::good(code::CLOCK, "clock", "right"), of("b")]), Marks::Words);
        assert!(two.contains("a; b: no connection"), "{two}");
    }

    #[test]
    fn nothing_that_a_terminal_obeys_gets_through() {
        let shown = text(&report(vec![Finding::note(code::INTERCEPTED, "a\nb", "by \x1b[31mCA", "n\rext")]), Marks::Words);
        assert!(shown.contains("a?b: by ?[31mCA") && shown.contains("n?ext") && !shown.contains('\x1b'), "{shown}");
        assert!(shown.contains("nothing is wrong, 1 note"), "{shown}");
    }

    #[test]
    fn its_json_has_every_finding() {
        let of = |subject: &str| Finding::problem(code::NOT_CONNECTED, subject, "no connection", "open it");
        let json = serde_json::to_value(report(vec![of("a"), of("b")])).expect("JSON");
        assert_eq!(json["verdict"], "problem");
        assert_eq!(json["findings"].as_array().map(Vec::len), Some(2));
        assert_eq!(
            json["findings"][0],
            serde_json::json!({ "code": "SKY-R03", "severity": "problem", "subject": "a", "what": "no connection", "next": "open it" })
        );
    }
}
