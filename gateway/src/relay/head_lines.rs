//! The lines of an HTTP/1.1 head, found by one scanner for requests and responses, with the rules that `httparse`
//! does not keep: every line ends in CRLF, none is folded, and there is a limit to their number and length.

use std::mem;

/// What the bytes received so far amount to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeadProgress<Head, Error> {
    NeedMore,
    Complete(Head),
    Rejected(Error),
}

impl<Head: Clone, Error: Copy> HeadProgress<Head, Error> {
    pub(super) fn new(decision: Option<&Result<Head, Error>>) -> Self {
        match decision {
            None => Self::NeedMore,
            Some(Ok(head)) => Self::Complete(head.clone()),
            Some(Err(error)) => Self::Rejected(*error),
        }
    }
}

/// What can be wrong with the lines of any head, request or response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadFault {
    #[error("expected the head to end within {} bytes", MAX_HEAD_BYTES)]
    TooLong,
    #[error("expected no more than {} fields in the head", MAX_FIELDS)]
    TooManyFields,
    #[error("expected a carriage return in front of every line feed")]
    BareLineFeed,
    #[error("expected a line feed behind every carriage return")]
    BareCarriageReturn,
    #[error("a NUL in the head")]
    NulByte,
    #[error("expected every field on one line, with no space in front")]
    FoldedLine,
    #[error("expected a name, a colon and a printable value in every field")]
    BadField,
}

impl HeadFault {
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TooLong => "head_too_long",
            Self::TooManyFields => "too_many_fields",
            Self::BareLineFeed => "bare_line_feed",
            Self::BareCarriageReturn => "bare_carriage_return",
            Self::NulByte => "nul_in_head",
            Self::FoldedLine => "folded_line",
            Self::BadField => "bad_field",
        }
    }

    pub(super) fn status(self) -> u16 {
        match self {
            Self::TooLong | Self::TooManyFields => 431,
            Self::BareLineFeed | Self::BareCarriageReturn | Self::NulByte | Self::FoldedLine | Self::BadField => 400,
        }
    }
}

/// Finds the lines of a head, looking at each byte once, and keeps the rules that `httparse` does
/// not: every line ends in CRLF, none is folded, and there is a limit to their number and length.
#[derive(Debug, Default)]
pub(super) struct LineScanner {
    /// Bytes of the stream that are scanned; after `Line::End`, the length of the head.
    pub(super) seen: usize,
    line_start: usize,
    after_carriage_return: bool,
    /// Length of the first line with its CRLF; zero until it is complete.
    first_line_length: usize,
    /// Field lines begun.
    fields: usize,
}

impl LineScanner {
    /// Scans up to the end of the next line; None if the rest of it is not there yet.
    pub(super) fn next_line(&mut self, received: &[u8]) -> Result<Option<Line>, HeadFault> {
        for &byte in received.get(self.seen..).unwrap_or_default() {
            if self.seen >= MAX_HEAD_BYTES {
                return Err(HeadFault::TooLong);
            }
            let begins_field = self.seen == self.line_start && self.first_line_length > 0;
            let after_carriage_return = mem::replace(&mut self.after_carriage_return, byte == b'\r');
            self.seen += 1;
            match byte {
                0 => return Err(HeadFault::NulByte),
                b'\n' if after_carriage_return => return Ok(Some(self.end_line())),
                b'\n' => return Err(HeadFault::BareLineFeed),
                _ if after_carriage_return => return Err(HeadFault::BareCarriageReturn),
                b' ' | b'\t' if begins_field => return Err(HeadFault::FoldedLine),
                b'\r' => {}
                _ if begins_field && self.fields == MAX_FIELDS => {
                    return Err(HeadFault::TooManyFields);
                }
                _ if begins_field => self.fields += 1,
                _ => {}
            }
        }
        Ok(None)
    }

    fn end_line(&mut self) -> Line {
        let is_blank = self.seen - self.line_start == CRLF_BYTES;
        self.line_start = self.seen;
        if is_blank {
            Line::End
        } else if self.first_line_length == 0 {
            self.first_line_length = self.seen;
            Line::First
        } else {
            Line::Field
        }
    }

    pub(super) fn first_line<'a>(&self, received: &'a [u8]) -> &'a [u8] {
        received.get(..self.first_line_length).unwrap_or_default()
    }

    /// What is scanned behind the first line, with the blank line once that is found.
    pub(super) fn field_lines<'a>(&self, received: &'a [u8]) -> &'a [u8] {
        let lines = received.get(self.first_line_length..self.seen);
        lines.unwrap_or_default()
    }
}

/// A line of a head, by its place.
pub(super) enum Line {
    First,
    Field,
    /// The blank line behind the last field.
    End,
}

pub(super) fn parse_fields<'h, 'b>(
    field_lines: &'b [u8],
    storage: &'h mut [httparse::Header<'b>; MAX_FIELDS],
) -> Result<&'h [httparse::Header<'b>], HeadFault> {
    match httparse::parse_headers(field_lines, storage) {
        Ok(httparse::Status::Complete((_, fields))) => Ok(fields),
        Ok(httparse::Status::Partial) | Err(_) => Err(HeadFault::BadField),
    }
}

/// Longest head, request or response. A CONNECT takes some 200 bytes, 2 KB with a large token; what
/// would need more than 8 KiB is not for us.
pub(super) const MAX_HEAD_BYTES: usize = 8192;

/// Most fields in a head; clients send about five.
pub(super) const MAX_FIELDS: usize = 64;

const CRLF_BYTES: usize = 2;
