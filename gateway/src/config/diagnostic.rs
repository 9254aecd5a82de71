//! What is wrong with a configuration file, in words that say how to put it right.
//!
//! Reading goes on after a mistake, and every mistake becomes a [`Diagnostic`]: where it is, what
//! is written there, what may be written there, and the nearest name that exists. [`Diagnostics`]
//! gathers them and prints them as rustc does, or as JSON for machines.
//!
//! Excerpts and values come from a file that may hold anything, so control characters are escaped
//! before they reach a terminal, and a stretch that holds a secret ([`Diagnostics::conceal`]) is
//! masked wherever its line is shown.

use serde_json::{Value, json};
use strsim::{damerau_levenshtein, jaro_winkler};

/// The mistakes found in one file.
#[derive(Clone, Debug, Default)]
pub struct Diagnostics {
    list: Vec<Diagnostic>,
    concealed: Vec<Span>,
}

impl Diagnostics {
    pub fn push(&mut self, mut diagnostic: Diagnostic) {
        if self.is_concealed(diagnostic.span) {
            diagnostic.value = None;
        }
        self.list.push(diagnostic);
    }

    /// Pushes an error about what stands at `place`.
    pub fn error<'a>(&mut self, place: impl Into<Place<'a>>, message: impl Into<String>) {
        self.push(Diagnostic::error(place, message));
    }

    /// Pushes a warning about what stands at `place`.
    pub fn warning<'a>(&mut self, place: impl Into<Place<'a>>, message: impl Into<String>) {
        self.push(Diagnostic::warning(place, message));
    }

    /// Masks `span` in every excerpt and drops the values already taken from it: it holds a secret.
    pub fn conceal(&mut self, span: Span) {
        for diagnostic in self.list.iter_mut().filter(|other| other.span == span) {
            diagnostic.value = None;
        }
        self.concealed.push(span);
    }

    /// Orders by position, errors before warnings at the same place.
    pub fn sort(&mut self) {
        self.list.sort_by_key(Diagnostic::order);
    }

    pub fn iter(&self) -> impl Iterator<Item = &Diagnostic> {
        self.list.iter()
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub fn has_errors(&self) -> bool {
        self.errors() > 0
    }

    /// How many errors there are.
    pub fn errors(&self) -> usize {
        self.count(Severity::Error)
    }

    /// How many warnings there are.
    pub fn warnings(&self) -> usize {
        self.count(Severity::Warning)
    }

    pub fn is_concealed(&self, span: Span) -> bool {
        self.concealed.contains(&span)
    }

    /// All of them in order of position, each with its excerpt of `source`, and a last line that
    /// counts them; the empty string if there are none. `file` is the name to show.
    pub fn render(&self, file: &str, source: &str, color: bool) -> String {
        if self.is_empty() {
            return String::new();
        }
        let mut page = Page { file: escape(file), lines: lines(source), concealed: &self.concealed, color, text: String::new() };
        for diagnostic in self.sorted() {
            page.diagnostic(diagnostic);
        }
        page.summary(self.errors(), self.warnings());
        page.text
    }

    /// A list of objects in order of position; what is not known is `null`.
    pub fn to_json(&self) -> Value {
        self.sorted().into_iter().map(Diagnostic::to_json).collect()
    }

    fn count(&self, severity: Severity) -> usize {
        let alike = self.list.iter().filter(|other| other.severity == severity);
        alike.count()
    }

    fn sorted(&self) -> Vec<&Diagnostic> {
        let mut list: Vec<&Diagnostic> = self.list.iter().collect();
        list.sort_by_key(|diagnostic| diagnostic.order());
        list
    }
}

/// One mistake, or one thing worth a warning.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a diagnostic counts only once it is pushed"]
pub struct Diagnostic {
    pub severity: Severity,
    /// Keys from the top, `tunnels.azure.peers.vnet-a.public_key`; empty at the top.
    pub path: String,
    pub span: Span,
    /// What is wrong: lower case, no full stop.
    pub message: String,
    /// The offending text as written; never that of a secret.
    pub value: Option<String>,
    /// What may stand there: `one of auto, tun, userspace`.
    pub expected: Option<String>,
    /// The nearest name that exists.
    pub suggestion: Option<String>,
    /// What to do next, for example the exact command. May have several lines.
    pub help: Option<String>,
    /// Other places that matter, each with what it has to do with this one.
    pub related: Vec<(Span, String)>,
}

impl Diagnostic {
    pub fn error<'a>(place: impl Into<Place<'a>>, message: impl Into<String>) -> Self {
        Self::new(Severity::Error, place.into(), message.into())
    }

    pub fn warning<'a>(place: impl Into<Place<'a>>, message: impl Into<String>) -> Self {
        Self::new(Severity::Warning, place.into(), message.into())
    }

    /// An error about a key that `parent` must have and has not.
    pub fn missing<'a>(parent: impl Into<Place<'a>>, key: &str) -> Self {
        let parent = Place { written: None, ..parent.into() };
        Self::error(parent, format!("{} is missing", quote(key)))
    }

    pub fn value(mut self, value: impl Into<String>) -> Self {
        self.value = Some(value.into());
        self
    }

    pub fn expected(mut self, expected: impl Into<String>) -> Self {
        self.expected = Some(expected.into());
        self
    }

    pub fn suggestion(mut self, suggestion: Option<&str>) -> Self {
        self.suggestion = suggestion.map(str::to_owned);
        self
    }

    /// Says which `names` are allowed where `word` is written, and which of them is the nearest.
    pub fn one_of(self, word: &str, names: &[&str]) -> Self {
        self.expected(one_of(names)).suggestion(nearest(word, names.iter().copied()))
    }

    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    pub fn related(mut self, span: Span, message: impl Into<String>) -> Self {
        self.related.push((span, message.into()));
        self
    }

    fn new(severity: Severity, place: Place<'_>, message: String) -> Self {
        Self {
            severity,
            path: place.path.to_owned(),
            span: place.span,
            message,
            value: place.written.map(str::to_owned),
            expected: None,
            suggestion: None,
            help: None,
            related: Vec::new(),
        }
    }

    fn order(&self) -> (u32, u32, Severity) {
        (self.span.line, self.span.column, self.severity)
    }

    fn to_json(&self) -> Value {
        let related: Vec<Value> = self
            .related
            .iter()
            .map(|(span, message)| {
                json!({
                    "line": span.line,
                    "column": span.column,
                    "length": span.length,
                    "message": message,
                })
            })
            .collect();
        json!({
            "severity": self.severity.word(),
            "path": self.path,
            "line": self.span.line,
            "column": self.span.column,
            "length": self.span.length,
            "message": self.message,
            "value": self.value,
            "expected": self.expected,
            "suggestion": self.suggestion,
            "help": self.help,
            "related": related,
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The file cannot be used.
    Error,
    /// The file can be used, but probably says something that was not meant.
    Warning,
}

impl Severity {
    fn word(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// A stretch of one line of the file. Lines and columns count from 1, columns and length in
/// characters. All zero, the default, is the file as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    pub line: u32,
    pub column: u32,
    pub length: u32,
}

impl Span {
    pub fn new(line: u32, column: u32, length: u32) -> Self {
        Self { line, column, length }
    }
}

/// Where something stands in the file and what is written there: what a diagnostic is about.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    pub span: Span,
    /// As in [`Diagnostic::path`].
    pub path: &'a str,
    /// The scalar as written; `None` for mappings, sequences and secrets.
    pub written: Option<&'a str>,
}

impl Place<'static> {
    /// The file as a whole.
    pub const WHOLE_FILE: Self = Self { span: Span { line: 0, column: 0, length: 0 }, path: "", written: None };
}

/// The candidate that was probably meant by `word`, if one is plausibly close.
///
/// Case, `-` and `_` do not count, so `AllowedIPs` finds `allowed_ips`. Close is one edit, or one
/// edit in three characters of a longer word; of equally close ones the better beginning wins.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let folded = fold(word);
    let length = folded.chars().count();
    if length == 0 || length > LONGEST_NAME {
        return None;
    }
    let limit = (length / 3).max(1);
    candidates
        .into_iter()
        .filter(|candidate| *candidate != word && candidate.len() <= 4 * LONGEST_NAME)
        .map(|candidate| {
            let other = fold(candidate);
            let distance = damerau_levenshtein(&folded, &other);
            (distance, jaro_winkler(&folded, &other), candidate)
        })
        .filter(|(distance, _, _)| *distance <= limit && *distance < length)
        .min_by(|a, b| a.0.cmp(&b.0).then(b.1.total_cmp(&a.1)))
        .map(|(_, _, candidate)| candidate)
}

/// `one of auto, tun, userspace`.
pub fn one_of(names: &[&str]) -> String {
    match names {
        [] => "nothing".to_owned(),
        [only] => (*only).to_owned(),
        [..] => format!("one of {}", names.join(", ")),
    }
}

/// Text from the file in backticks, for a message: escaped, and shortened if long.
pub fn quote(text: &str) -> String {
    format!("`{}`", escape(&shorten(text)))
}

/// Replaces what a terminal would obey or hide by its escape sequence: `\n`, `\u{1b}`.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if is_printable(character) {
            escaped.push(character);
        } else {
            escaped.extend(character.escape_default());
        }
    }
    escaped
}

/// The first characters of a text too long for a message.
pub(super) fn shorten(text: &str) -> String {
    match text.char_indices().nth(LONGEST_NAME) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// The lines of a file as YAML counts them (ended by LF, CR LF or CR), without a byte order mark.
pub(super) fn lines(source: &str) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = source.trim_start_matches('\u{feff}');
    while let Some((line, after)) = rest.split_once(['\n', '\r']) {
        let ended_by_cr = rest.as_bytes().get(line.len()) == Some(&b'\r');
        lines.push(line);
        let after_lf = after.strip_prefix('\n').filter(|_| ended_by_cr);
        rest = after_lf.unwrap_or(after);
    }
    lines.push(rest);
    lines
}

/// The text that [`Diagnostics::render`] writes.
struct Page<'a> {
    file: String,
    lines: Vec<&'a str>,
    concealed: &'a [Span],
    color: bool,
    text: String,
}

impl Page<'_> {
    fn diagnostic(&mut self, diagnostic: &Diagnostic) {
        let color = match diagnostic.severity {
            Severity::Error => RED,
            Severity::Warning => YELLOW,
        };
        let severity = self.paint(color, diagnostic.severity.word());
        let message = self.paint(BOLD, &format!(": {}", escape(&diagnostic.message)));
        self.line(&format!("{severity}{message}"));

        let last = diagnostic.related.iter().map(|(span, _)| span.line);
        let last = last.fold(diagnostic.span.line, u32::max);
        let gutter = " ".repeat(last.to_string().len());
        let label = match diagnostic.path.as_str() {
            "" => String::new(),
            path => format!("in {}", escape(path)),
        };
        let mark = Mark { span: diagnostic.span, arrow: "-->", sign: "^", color, label: &label };
        self.excerpt(&gutter, &mark);
        for (span, message) in &diagnostic.related {
            let mark = Mark { span: *span, arrow: ":::", sign: "-", color: BLUE, label: &escape(message) };
            self.excerpt(&gutter, &mark);
        }

        let shown = |text: &str| {
            let at = (diagnostic.span.line as usize).checked_sub(1);
            let line = at.and_then(|at| self.lines.get(at));
            diagnostic.message.contains(text) || line.is_some_and(|line| line.contains(text))
        };
        let found = diagnostic.value.as_deref().filter(|value| !shown(value));
        let expected = diagnostic.expected.as_deref();
        let expected = expected.filter(|expected| !diagnostic.message.contains(expected));
        let notes = [
            ("found", found.map(|found| escape(&shorten(found)))),
            ("expected", expected.map(escape)),
            ("did you mean", diagnostic.suggestion.as_deref().map(escape)),
            ("help", diagnostic.help.clone()),
        ];
        for (word, note) in notes {
            if let Some(note) = note {
                self.note(&gutter, word, &note);
            }
        }
        self.line("");
    }

    /// The place, the line it is in, and signs under the part that is meant.
    fn excerpt(&mut self, gutter: &str, mark: &Mark<'_>) {
        let Span { line, column, .. } = mark.span;
        let arrow = self.paint(BLUE, mark.arrow);
        let place = match line {
            0 => self.file.clone(),
            _ => format!("{}:{line}:{column}", self.file),
        };
        self.line(&format!("{gutter}{arrow} {place}"));
        let Some(view) = self.view(mark.span) else {
            if !mark.label.is_empty() {
                let sign = self.paint(BLUE, "=");
                self.line(&format!("{gutter} {sign} {}", mark.label));
            }
            return;
        };
        let bar = self.paint(BLUE, "|");
        let number = self.paint(BLUE, &format!("{line:<width$}", width = gutter.len()));
        let signs = format!("{} {}", mark.sign.repeat(view.length), mark.label);
        let signs = self.paint(mark.color, signs.trim_end());
        let indent = " ".repeat(view.indent);
        self.line(&format!("{gutter} {bar}"));
        self.line(&format!("{number} {bar} {}", view.text));
        self.line(&format!("{gutter} {bar} {indent}{signs}"));
    }

    fn note(&mut self, gutter: &str, word: &str, text: &str) {
        let sign = self.paint(BLUE, "=");
        let title = self.paint(BOLD, &format!("{word}:"));
        let mut before = format!("{gutter} {sign} {title} ");
        for line in text.split('\n') {
            self.line(&format!("{before}{}", escape(line)));
            before = " ".repeat(gutter.len() + word.len() + 5);
        }
    }

    fn summary(&mut self, errors: usize, warnings: usize) {
        let counts: Vec<String> = [(errors, "error"), (warnings, "warning")]
            .into_iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, word)| match count {
                1 => format!("1 {word}"),
                _ => format!("{count} {word}s"),
            })
            .collect();
        let summary = format!("{} in {}", counts.join(", "), self.file);
        self.line(&self.paint(BOLD, &summary));
    }

    /// The line of `span` as it can be shown, or `None` if the source has no such line.
    fn view(&self, span: Span) -> Option<View> {
        let at = (span.line as usize).checked_sub(1)?;
        let line = *self.lines.get(at)?;
        let count = line.chars().count();
        let start = (span.column as usize).saturating_sub(1).min(count);
        let skip = if count > EXCERPT_WIDTH { start.saturating_sub(EXCERPT_WIDTH / 3) } else { 0 };
        let end = count.min(skip + EXCERPT_WIDTH);

        let mut text = String::new();
        if skip > 0 {
            text.push('…');
        }
        for (at, character) in line.chars().enumerate().take(end).skip(skip) {
            text.push(match character {
                _ if self.hides(span.line, at) => '*',
                '\t' => ' ',
                _ if is_printable(character) => character,
                _ => char::REPLACEMENT_CHARACTER,
            });
        }
        if end < count {
            text.push('…');
        }
        Some(View {
            text,
            indent: start - skip + usize::from(skip > 0),
            length: (span.length as usize).min(end.saturating_sub(start)).max(1),
        })
    }

    /// Whether the character `at` (from 0) of `line` belongs to a secret.
    fn hides(&self, line: u32, at: usize) -> bool {
        self.concealed.iter().any(|span| {
            let start = (span.column as usize).saturating_sub(1);
            let end = start.saturating_add(span.length as usize);
            span.line == line && (start..end).contains(&at)
        })
    }

    fn paint(&self, color: &str, text: &str) -> String {
        if self.color && !text.is_empty() { format!("\u{1b}[{color}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    fn line(&mut self, line: &str) {
        self.text.push_str(line.trim_end());
        self.text.push('\n');
    }
}

/// How one place is pointed at.
struct Mark<'a> {
    span: Span,
    arrow: &'a str,
    sign: &'a str,
    color: &'a str,
    label: &'a str,
}

/// A line made fit for a terminal, one column for each character of the file.
struct View {
    text: String,
    /// Columns before the part that is meant.
    indent: usize,
    /// Columns of the part that is meant, at least 1.
    length: usize,
}

fn fold(name: &str) -> String {
    let name = name.chars().filter(|character| !matches!(character, '-' | '_'));
    name.flat_map(char::to_lowercase).collect()
}

/// False for control characters and for those that reorder or hide the text around them.
fn is_printable(character: char) -> bool {
    !character.is_control()
        && !matches!(
            character,
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
        )
}

/// Characters of a name or value that a message repeats; no key of ours is half as long.
const LONGEST_NAME: usize = 64;

/// Characters of a source line that an excerpt shows; of a longer one, the part around the mark.
const EXCERPT_WIDTH: usize = 120;

const RED: &str = "1;31";
const YELLOW: &str = "1;33";
const BLUE: &str = "1;34";
const BOLD: &str = "1";

#[cfg(test)]
mod tests;
