//! What goes wrong while a value is read, before it is known where.

use std::fmt::{self, Display};

use serde::de::{self, Expected, Unexpected};

use super::super::diagnostic::{Diagnostic, Place, one_of, quote};

/// A diagnostic on its way to the nearest [`Field`].
#[derive(Debug)]
pub(super) struct Error {
    pub(super) diagnostic: Box<Diagnostic>,
    /// Whether it has its place; what serde itself or a foreign `Deserialize` says has none.
    pub(super) is_located: bool,
}

impl Error {
    pub(super) fn located(diagnostic: Diagnostic) -> Self {
        Self { diagnostic: Box::new(diagnostic), is_located: true }
    }

    pub(super) fn unlocated(message: impl Into<String>) -> Self {
        Self { diagnostic: Box::new(Diagnostic::error(Place::WHOLE_FILE, message)), is_located: false }
    }

    pub(super) fn expected(mut self, expected: impl Display) -> Self {
        self.diagnostic.expected = Some(expected.to_string());
        self
    }
}

impl Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.diagnostic.message)
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<M: Display>(message: M) -> Self {
        Self::unlocated(message.to_string())
    }

    fn invalid_type(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::unlocated(format!("expected {expected}, found {unexpected}")).expected(expected)
    }

    fn invalid_value(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::unlocated(format!("{unexpected} is not allowed here")).expected(expected)
    }

    fn invalid_length(length: usize, expected: &dyn Expected) -> Self {
        Self::unlocated(format!("found {length} elements")).expected(expected)
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::unlocated(format!("unknown value {}", quote(variant))).expected(one_of(expected))
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self::unlocated(format!("unknown key {}", quote(field))).expected(one_of(expected))
    }

    fn missing_field(field: &'static str) -> Self {
        Self::unlocated(format!("{} is missing", quote(field)))
    }

    fn duplicate_field(field: &'static str) -> Self {
        Self::unlocated(format!("key {} appears twice", quote(field)))
    }
}
