//! YAML as a tree that knows where each node stands in the file.
//!
//! A configuration needs mappings, sequences and scalars, and nothing that makes one place of the
//! file change the meaning of another: anchors, aliases, merge keys, tags and further documents
//! are refused, each with what to write instead. So are files and nestings of a size that no
//! gateway has. What a scalar means is left to who asks for it; only `null` is told apart.
//!
//! saphyr-parser scans and nests; its marks count lines from 1 and columns from 0, in characters.

#![expect(clippy::result_large_err, reason = "one diagnostic ends the reading of a file; a box would only be in the way")]

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError};

use super::diagnostic::{Diagnostic, Place, Span, escape, lines, quote};

/// One value, or one key, of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    /// A scalar's text, quotes included, as far as its first line goes; the first character of a
    /// mapping or sequence; for `key:` with nothing behind it, the colon.
    pub(crate) span: Span,
    pub(crate) value: Value,
}

impl Node {
    /// The text of a scalar, empty for anything else. A key in a tree from [`parse`] is a scalar.
    pub(crate) fn text(&self) -> &str {
        match &self.value {
            Value::Scalar { text, .. } => text,
            Value::Null | Value::Sequence(_) | Value::Mapping(_) => "",
        }
    }
}

impl<'a> From<&'a Node> for Place<'a> {
    fn from(node: &'a Node) -> Self {
        Self { span: node.span, path: "", written: Some(node.text()).filter(|text| !text.is_empty()) }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    /// Nothing, `~` or `null`, without quotes.
    Null,
    /// `plain` is false for quoted text and for blocks (`|`, `>`).
    Scalar {
        text: String,
        plain: bool,
    },
    Sequence(Vec<Node>),
    /// In the order of the file; a key may appear more than once.
    Mapping(Vec<(Node, Node)>),
}

/// Reads `source` up to the first thing that is not YAML, or not the YAML of this program.
///
/// Keys used twice stay in the tree: [`super::de::read`] reports all of them, together with the
/// other mistakes.
pub(crate) fn parse(source: &str) -> Result<Node, Diagnostic> {
    if source.len() > MAX_BYTES {
        let message = format!("the file is too large: {} bytes", source.len());
        return Err(Diagnostic::error(Place::WHOLE_FILE, message).expected(format!("at most {MAX_BYTES} bytes")));
    }
    let text = Text::new(source);
    let mut tree = Tree { text: &text, open: Vec::new(), documents: 0, root: None };
    for event in Parser::new_from_str(source) {
        let (event, range) = event.map_err(|error| text.refuse(&error))?;
        tree.take(event, range.start, range.end)?;
    }
    Ok(tree.root.unwrap_or_else(|| Node { span: Span::new(1, 1, 1), value: Value::Null }))
}

/// Bytes; a gateway with a thousand peers and routes has a tenth of it.
const MAX_BYTES: usize = 1 << 20;

/// Mappings and sequences inside each other. What we read has ten levels; whoever walks the tree
/// may recurse.
const MAX_DEPTH: usize = 64;

/// The tree while its events arrive.
struct Tree<'a> {
    text: &'a Text<'a>,
    /// Mappings and sequences that have begun and not ended, outermost first.
    open: Vec<Open>,
    documents: usize,
    root: Option<Node>,
}

enum Open {
    Sequence {
        span: Span,
        elements: Vec<Node>,
    },
    Mapping {
        span: Span,
        members: Vec<(Node, Node)>,
        /// The key whose value is still to come.
        key: Option<Node>,
    },
}

impl Tree<'_> {
    fn take(&mut self, event: Event<'_>, start: Marker, end: Marker) -> Result<(), Diagnostic> {
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
            Event::DocumentStart(_) => self.begin_document(start, end),
            Event::Alias(_) => Err(self.text.refuse_property(start)),
            Event::Scalar(text, style, anchor, tag) => {
                self.refuse_properties(start, anchor, tag.is_some())?;
                let span = self.text.scalar_span(style, start, end);
                let plain = style == ScalarStyle::Plain;
                let is_null = matches!(&*text, "" | "~" | "null" | "Null" | "NULL");
                let value = if plain && is_null {
                    Value::Null
                } else {
                    let text = text.into_owned();
                    Value::Scalar { text, plain }
                };
                self.add(Node { span, value })
            }
            Event::SequenceStart(anchor, tag) => {
                self.refuse_properties(start, anchor, tag.is_some())?;
                self.begin(Open::Sequence { span: self.text.span(start, start), elements: Vec::new() })
            }
            Event::MappingStart(anchor, tag) => {
                self.refuse_properties(start, anchor, tag.is_some())?;
                self.begin(Open::Mapping { span: self.text.span(start, start), members: Vec::new(), key: None })
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(),
        }
    }

    fn begin_document(&mut self, start: Marker, end: Marker) -> Result<(), Diagnostic> {
        self.documents += 1;
        if self.documents == 1 {
            return Ok(());
        }
        let place = place(self.text.span(start, end));
        Err(Diagnostic::error(place, "several documents in one file")
            .expected("one document")
            .help("put what follows `---` into a file of its own"))
    }

    fn begin(&mut self, open: Open) -> Result<(), Diagnostic> {
        if self.open.len() >= MAX_DEPTH {
            let (Open::Sequence { span, .. } | Open::Mapping { span, .. }) = open;
            return Err(Diagnostic::error(place(span), too_deep()));
        }
        self.open.push(open);
        Ok(())
    }

    fn end(&mut self) -> Result<(), Diagnostic> {
        let (span, value) = match self.open.pop() {
            Some(Open::Sequence { span, elements }) => (span, Value::Sequence(elements)),
            Some(Open::Mapping { span, members, .. }) => (span, Value::Mapping(members)),
            None => return Ok(()),
        };
        self.add(Node { span, value })
    }

    fn add(&mut self, node: Node) -> Result<(), Diagnostic> {
        match self.open.last_mut() {
            Some(Open::Sequence { elements, .. }) => elements.push(node),
            Some(Open::Mapping { members, key, .. }) => match key.take() {
                Some(name) => members.push((name, node)),
                None => *key = Some(accept_key(node)?),
            },
            None => self.root = Some(node),
        }
        Ok(())
    }

    fn refuse_properties(&self, start: Marker, anchor: usize, has_tag: bool) -> Result<(), Diagnostic> {
        if anchor == 0 && !has_tag {
            return Ok(());
        }
        Err(self.text.refuse_property(start))
    }
}

/// The source by lines, to turn the parser's marks into spans that lie inside it.
struct Text<'a> {
    lines: Vec<&'a str>,
    /// Characters of each line.
    lengths: Vec<usize>,
}

impl<'a> Text<'a> {
    fn new(source: &'a str) -> Self {
        let lines = lines(source);
        let lengths = lines.iter().map(|line| line.chars().count()).collect();
        Self { lines, lengths }
    }

    /// From `start` to `end`, or to the end of the line where `start` is; at least 1 long.
    fn span(&self, start: Marker, end: Marker) -> Span {
        let (line, column) = self.position(start);
        let end = match self.position(end) {
            (end_line, end_column) if end_line == line => end_column,
            (_, _) => self.length(line),
        };
        span(line, column, end.saturating_sub(column))
    }

    fn scalar_span(&self, style: ScalarStyle, start: Marker, end: Marker) -> Span {
        let quote = match style {
            ScalarStyle::SingleQuoted => '\'',
            ScalarStyle::DoubleQuoted => '"',
            ScalarStyle::Plain | ScalarStyle::Literal | ScalarStyle::Folded => {
                return self.span(start, end);
            }
        };
        // The parser's end of quoted text lies behind the spaces and the comment that follow.
        match quoted_length(self.rest(start), quote) {
            Some(length) => {
                let (line, column) = self.position(start);
                span(line, column, length)
            }
            None => self.span(start, end),
        }
    }

    /// Line and column from 0. The parser puts the end of the stream on a line of its own.
    fn position(&self, mark: Marker) -> (usize, usize) {
        let last = self.lines.len().saturating_sub(1);
        let line = mark.line().saturating_sub(1);
        if line > last { (last, self.length(last)) } else { (line, mark.col().min(self.length(line))) }
    }

    fn length(&self, line: usize) -> usize {
        self.lengths.get(line).copied().unwrap_or_default()
    }

    /// The rest of the line that `mark` is in.
    fn rest(&self, mark: Marker) -> &'a str {
        let (line, column) = self.position(mark);
        let text = self.lines.get(line).copied().unwrap_or_default();
        let at = if text.is_ascii() { Some(column) } else { text.char_indices().nth(column).map(|(at, _)| at) };
        at.and_then(|at| text.get(at..)).unwrap_or_default()
    }

    /// What the parser will not read.
    fn refuse(&self, error: &ScanError) -> Diagnostic {
        let mark = *error.marker();
        let info = error.info();
        let is_property = match self.rest(mark).chars().next() {
            Some('*' | '&') => info.contains("anchor"),
            Some('!') => info.contains("tag") || info.contains("handle"),
            Some(_) | None => false,
        };
        if is_property {
            return self.refuse_property(mark);
        }
        let place = place(self.span(mark, mark));
        if info == "recursion limit exceeded" {
            return Diagnostic::error(place, too_deep());
        }
        let diagnostic = Diagnostic::error(place, info);
        match HINTS.iter().find(|(part, _)| info.contains(part)) {
            Some((_, help)) => diagnostic.help(*help),
            None => diagnostic,
        }
    }

    /// An alias (`*`), anchor (`&`) or tag (`!`), which most often is text that wants quotes.
    fn refuse_property(&self, mark: Marker) -> Diagnostic {
        let word: String =
            self.rest(mark).chars().take_while(|character| !character.is_whitespace() && !",[]{}".contains(*character)).collect();
        let what = match word.chars().next() {
            Some('*') => "alias",
            Some('&') => "anchor",
            Some(_) | None => "tag",
        };
        let (line, column) = self.position(mark);
        let place = place(span(line, column, word.chars().count()));
        Diagnostic::error(place, format!("{what} {} is not supported", quote(&word)))
            .help(format!("if it is text, put it into quotes: \"{}\"", escape(&word)))
            .value(word)
    }
}

/// What helps against some of the parser's messages, found by a part of them.
const HINTS: [(&str, &str); 5] = [
    ("unprintable", "remove the control character"),
    ("tab", "indent with spaces"),
    ("mapping values are not allowed", "text with `: ` in it needs quotes; otherwise check the indentation"),
    ("unexpected character", "text that begins with this character needs quotes"),
    ("simple key expect", "a key ends with `:` and a space"),
];

fn accept_key(key: Node) -> Result<Node, Diagnostic> {
    let message = match &key.value {
        Value::Scalar { text, plain: true } if text == "<<" => {
            return Err(Diagnostic::error(&key, "merge key `<<` is not supported").help("write the keys out"));
        }
        Value::Scalar { .. } => return Ok(key),
        Value::Null => "a key is missing",
        Value::Sequence(_) => "a key must be a name, not a sequence",
        Value::Mapping(_) => "a key must be a name, not a mapping",
    };
    Err(Diagnostic::error(&key, message))
}

/// Characters of the quoted text that `line` begins with, or `None` if it ends on another line.
fn quoted_length(line: &str, quote: char) -> Option<usize> {
    let mut characters = line.chars().enumerate().skip(1).peekable();
    while let Some((at, character)) = characters.next() {
        if character == '\\' && quote == '"' {
            characters.next();
        } else if character == quote {
            let doubled = characters.next_if(|(_, next)| quote == '\'' && *next == quote);
            if doubled.is_none() {
                return Some(at + 1);
            }
        }
    }
    None
}

/// A span from a line and column that count from 0.
fn span(line: usize, column: usize, length: usize) -> Span {
    let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    Span::new(number(line + 1), number(column + 1), number(length.max(1)))
}

fn place(span: Span) -> Place<'static> {
    Place { span, ..Place::WHOLE_FILE }
}

fn too_deep() -> String {
    format!("nested deeper than {MAX_DEPTH} levels")
}

#[cfg(test)]
mod tests;
