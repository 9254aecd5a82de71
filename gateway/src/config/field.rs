//! What a raw struct is made of: values that remember where they stood, and that can be broken without breaking
//! what stands beside them. They read only from [`super::de::read`], which knows their names.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::diagnostic::{Diagnostic, Diagnostics, Place, Span};

/// A value of a struct or an element of a list, and where it stands.
///
/// The default is an absent one. Reads only from [`read`].
#[derive(Clone, Debug)]
pub(crate) struct Field<T> {
    /// `None` if absent, or if broken: then the diagnostic is already there.
    pub(crate) value: Option<T>,
    present: bool,
    span: Span,
    pub(super) path: String,
    /// The scalar as written; empty for mappings, sequences and secrets.
    written: String,
}

impl<T> Field<T> {
    pub(crate) fn get(&self) -> Option<&T> {
        self.value.as_ref()
    }

    /// Whether the key is in the file, with a good value or a bad one.
    pub(crate) fn is_present(&self) -> bool {
        self.present
    }

    /// The scalar, or the beginning of the mapping or sequence; nowhere if absent.
    pub(crate) fn span(&self) -> Span {
        self.span
    }

    /// The value of a key that must be there: if absent, an error at `parent` says so.
    pub(crate) fn require<'a>(&self, key: &str, parent: impl Into<Place<'a>>, diagnostics: &mut Diagnostics) -> Option<&T> {
        if !self.present {
            diagnostics.push(Diagnostic::missing(parent, key));
        }
        self.get()
    }
}

impl<T> Default for Field<T> {
    fn default() -> Self {
        Self { value: None, present: false, span: Span::default(), path: String::new(), written: String::new() }
    }
}

impl<'a, T> From<&'a Field<T>> for Place<'a> {
    fn from(field: &'a Field<T>) -> Self {
        Self { span: field.span, path: &field.path, written: Some(field.written.as_str()).filter(|written| !written.is_empty()) }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Field<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_newtype_struct(FIELD, FieldVisitor(PhantomData))
    }
}

/// A mapping whose keys are names that the operator chose, in the order of the file.
#[derive(Clone, Debug)]
pub(crate) struct Entries<T>(pub(crate) Vec<Entry<T>>);

#[derive(Clone, Debug)]
pub(crate) struct Entry<T> {
    pub(crate) name: String,
    pub(crate) name_span: Span,
    pub(crate) value: Field<T>,
}

impl<T> Default for Entries<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

/// The place of an entry is its name.
impl<'a, T> From<&'a Entry<T>> for Place<'a> {
    fn from(entry: &'a Entry<T>) -> Self {
        Self { span: entry.name_span, path: &entry.value.path, written: Some(&entry.name) }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Entries<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EntriesVisitor(PhantomData))
    }
}

/// A word, or a mapping where more has to be said: `via: direct` or `via: { tunnel: azure }`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ScalarOr<M> {
    Scalar(String),
    Mapping(M),
}

impl<'de, M: Deserialize<'de>> Deserialize<'de> for ScalarOr<M> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_newtype_struct(SCALAR_OR, ScalarOrVisitor(PhantomData))
    }
}

/// One text, or a list of them: `client_certificate: line-3` or `client_certificate: [line-3, line-4]`.
#[derive(Clone, Debug)]
pub(crate) enum OneOrMany {
    One(String),
    Many(Vec<Field<String>>),
}

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OneOrManyVisitor)
    }
}

struct FieldVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for FieldVisitor<T> {
    type Value = Field<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a node of skyway's own reader")
    }

    /// Takes the [`FieldParts`].
    fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Self::Value, A::Error> {
        let line = parts.next_element()?.unwrap_or_default();
        let column = parts.next_element()?.unwrap_or_default();
        let length = parts.next_element()?.unwrap_or_default();
        Ok(Field {
            span: Span::new(line, column, length),
            present: true,
            path: parts.next_element()?.unwrap_or_default(),
            value: parts.next_element()?,
            written: parts.next_element()?.unwrap_or_default(),
        })
    }
}

struct EntriesVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for EntriesVisitor<T> {
    type Value = Entries<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MAPPING)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
        let mut entries = Vec::new();
        while let Some((name, value)) = members.next_entry::<Field<String>, Field<T>>()? {
            entries.push(Entry { name_span: name.span, name: name.value.unwrap_or_default(), value });
        }
        Ok(Entries(entries))
    }
}

struct ScalarOrVisitor<M>(PhantomData<M>);

impl<'de, M: Deserialize<'de>> Visitor<'de> for ScalarOrVisitor<M> {
    type Value = ScalarOr<M>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(STRING_OR_MAPPING)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(ScalarOr::Scalar(text.to_owned()))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        M::deserialize(deserializer).map(ScalarOr::Mapping)
    }
}

struct OneOrManyVisitor;

impl<'de> Visitor<'de> for OneOrManyVisitor {
    type Value = OneOrMany;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or a list of strings")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(OneOrMany::One(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Self::Value, A::Error> {
        let mut texts = Vec::new();
        while let Some(text) = elements.next_element()? {
            texts.push(text);
        }
        Ok(OneOrMany::Many(texts))
    }
}

pub(super) const MAPPING: &str = "a mapping";
pub(super) const STRING_OR_MAPPING: &str = "a string or a mapping";

// Names by which these types ask the reader for more than serde's data model has.
pub(super) const FIELD: &str = "$skyway::Field";
pub(super) const SCALAR_OR: &str = "$skyway::ScalarOr";
