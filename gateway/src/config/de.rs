//! From the YAML tree to serde structs, without stopping at the first mistake.
//!
//! Serde gives up at the first error, and an operator with five typos would start five times. Here
//! a struct's values are [`Field`]s: a mistake inside one is put down as a [`Diagnostic`] and
//! leaves that field empty, and reading goes on beside it. Keys that a struct does not know, and
//! keys used twice, are put down and skipped. Whoever resolves the structs finds in each field
//! where it stands, and tells an absent one from a broken one.
//!
//! ```text
//! struct RawPeer  ◄── Field<T> ◄── T          one Reader for each node; Field and ScalarOr ask
//!    ▲ Members       ▲ FieldParts             for themselves by a newtype name that no derived
//! Reader(mapping) ─► Reader(value)            type can have
//! ```
//!
//! Which keys must be there is not known here; nor what a string means. Lists whose elements are
//! not `Field`s stop at the first mistake in them, as do structs with plain values.

use std::{
    cell::RefCell,
    collections::HashMap,
    fmt::{self, Display},
    marker::PhantomData,
    mem, vec,
};

use serde::{
    Deserializer,
    de::{
        self, DeserializeOwned, DeserializeSeed, MapAccess, SeqAccess, Visitor,
        value::{StrDeserializer, StringDeserializer, U32Deserializer},
    },
    forward_to_deserialize_any,
};

use self::error::Error;
use super::{
    diagnostic::{Diagnostic, Diagnostics, Place, escape, one_of, quote, shorten},
    field::{FIELD, MAPPING, SCALAR_OR, STRING_OR_MAPPING},
    yaml::{Node, Value},
};

/// Reads `root` as a `T`, with every mistake put down in `diagnostics`.
///
/// `None` if not even the outermost struct could be made. `Some` says nothing about mistakes: see
/// [`Diagnostics::has_errors`].
pub(crate) fn read<T: DeserializeOwned>(root: &Node, diagnostics: &mut Diagnostics) -> Option<T> {
    let shared = RefCell::new(mem::take(diagnostics));
    let reader = Reader { node: root, path: Path::Top, diagnostics: &shared };
    let value = match reader.fetch(PhantomData::<T>) {
        Ok(value) => Some(value),
        Err(error) => {
            reader.report(*error.diagnostic);
            None
        }
    };
    *diagnostics = shared.into_inner();
    value
}

/// One node, about to be read.
#[derive(Clone, Copy)]
struct Reader<'a> {
    node: &'a Node,
    path: Path<'a>,
    diagnostics: &'a RefCell<Diagnostics>,
}

impl<'a> Reader<'a> {
    /// The same reader at a key or value of this node.
    fn at(self, node: &'a Node, path: Path<'a>) -> Self {
        Self { node, path, ..self }
    }

    /// Reads this node; an error that has no place yet gets this one.
    fn fetch<'de, S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Error> {
        let result = seed.deserialize(self);
        result.map_err(|error| self.locate(error))
    }

    fn locate(self, error: Error) -> Error {
        if error.is_located {
            return error;
        }
        let mut diagnostic = *error.diagnostic;
        diagnostic.span = self.node.span;
        diagnostic.path = self.path.to_string();
        diagnostic.value = self.written().map(str::to_owned);
        Error::located(diagnostic)
    }

    fn report(self, diagnostic: Diagnostic) {
        self.diagnostics.borrow_mut().push(diagnostic);
    }

    /// Masks all that is written in and below `node`, except keys.
    fn conceal(self, node: &Node) {
        match &node.value {
            Value::Null => {}
            Value::Scalar { .. } => self.diagnostics.borrow_mut().conceal(node.span),
            Value::Sequence(elements) => {
                for element in elements {
                    self.conceal(element);
                }
            }
            Value::Mapping(members) => {
                for (_, value) in members {
                    self.conceal(value);
                }
            }
        }
    }

    fn written(self) -> Option<&'a str> {
        Some(self.node.text()).filter(|text| !text.is_empty())
    }

    fn error(self, message: impl Into<String>) -> Diagnostic {
        let path = self.path.to_string();
        let place = Place { span: self.node.span, path: &path, written: self.written() };
        Diagnostic::error(place, message)
    }

    /// An error about the text here, which `message` follows: `` `x` is not a whole number``.
    fn wrong(self, message: &str) -> Diagnostic {
        self.error(format!("{} {message}", quote(self.node.text())))
    }

    /// An error about a node that is not even of the right kind.
    fn mismatch(self, expected: &str) -> Error {
        let found = match &self.node.value {
            Value::Null => return self.missing(expected),
            Value::Scalar { plain: false, .. } => QUOTED,
            Value::Scalar { text, .. } if matches!(text.as_str(), "true" | "false") => "a boolean",
            Value::Scalar { text, .. } if parse_float(text).is_some() => "a number",
            Value::Scalar { .. } => "a string",
            Value::Sequence(_) => "a sequence",
            Value::Mapping(_) => "a mapping",
        };
        let diagnostic = self.error(format!("expected {expected}, found {found}"));
        let diagnostic = diagnostic.expected(expected);
        Error::located(match self.written() {
            Some(text) if expected == SEQUENCE => diagnostic.help(format!("write a list even for one: [ {} ]", escape(&shorten(text)))),
            Some(_) if found == QUOTED && expected != MAPPING => diagnostic.help("remove the quotes"),
            None | Some(_) => diagnostic,
        })
    }

    fn missing(self, expected: &str) -> Error {
        if matches!(self.path, Path::Top) {
            return Error::located(self.error("the file is empty").expected(expected));
        }
        let diagnostic = self.error("a value is missing").expected(expected);
        Error::located(match expected {
            MAPPING => diagnostic.help("an empty mapping is written { }"),
            SEQUENCE => diagnostic.help("an empty sequence is written [ ]"),
            _ => diagnostic,
        })
    }

    /// An error about what stands where only a reference to a secret may be: perhaps the secret.
    fn inline_secret(self) -> Error {
        self.conceal(self.node);
        let mut error = self.mismatch(MAPPING);
        error.diagnostic.value = None;
        error.diagnostic.help = Some("write where the secret is, not the secret: { file: PATH } or { env: NAME }".to_owned());
        error
    }

    /// Any scalar, quoted or not.
    fn text(self, expected: &str) -> Result<&'a str, Error> {
        match &self.node.value {
            Value::Scalar { text, .. } => Ok(text),
            Value::Null | Value::Sequence(_) | Value::Mapping(_) => Err(self.mismatch(expected)),
        }
    }

    /// A scalar that may mean something else than its characters: one without quotes.
    fn plain(self, expected: &str) -> Result<&'a str, Error> {
        match &self.node.value {
            Value::Scalar { text, plain: true } => Ok(text),
            Value::Scalar { plain: false, .. } | Value::Null | Value::Sequence(_) | Value::Mapping(_) => Err(self.mismatch(expected)),
        }
    }

    /// Decimal, without leading zeros: YAML 1.1 would take those for octal.
    fn integer<N: TryFrom<i128> + Display>(self, low: N, high: N) -> Result<N, Error> {
        let expected = format!("a whole number from {low} to {high}");
        let text = self.plain(&expected)?;
        let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
        let is_number =
            !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
        if !is_number {
            let diagnostic = self.wrong("is not a whole number").expected(expected);
            return Err(Error::located(diagnostic));
        }
        let number = text.parse::<i128>().ok();
        let number = number.and_then(|number| N::try_from(number).ok());
        number.ok_or_else(|| Error::located(self.wrong("is out of range").expected(expected)))
    }

    fn float(self) -> Result<f64, Error> {
        let text = self.plain(NUMBER)?;
        let wrong = || Error::located(self.wrong("is not a number").expected(NUMBER));
        parse_float(text).ok_or_else(wrong)
    }

    /// The members of a mapping, each key once: one used again is put down and left out.
    fn members(self, pairs: &'a [(Node, Node)]) -> Vec<(&'a Node, &'a Node)> {
        let mut first_uses = HashMap::with_capacity(pairs.len());
        let mut members = Vec::with_capacity(pairs.len());
        for (key, value) in pairs {
            let first = *first_uses.entry(key.text()).or_insert(key.span);
            if first == key.span {
                members.push((key, value));
                continue;
            }
            let message = format!("key {} appears twice", quote(key.text()));
            let diagnostic = self.error_at_key(key, message);
            self.report(diagnostic.related(first, "first used here"));
        }
        members
    }

    /// Puts down a key that is not among the `allowed` ones.
    fn refuse_key(self, key: &Node, allowed: &[&str]) {
        let mut allowed = allowed.to_vec();
        allowed.sort_unstable();
        let message = format!("unknown key {}", quote(key.text()));
        let diagnostic = self.error_at_key(key, message);
        self.report(diagnostic.one_of(key.text(), &allowed));
    }

    /// An error about a key of this mapping; its path is that of the mapping.
    fn error_at_key(self, key: &Node, message: String) -> Diagnostic {
        let path = self.path.to_string();
        let place = Place { span: key.span, path: &path, written: Some(key.text()) };
        Diagnostic::error(place, message)
    }
}

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = Error;

    /// For types that take what comes. Scalars are strings: we do not guess.
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Scalar { text, .. } => visitor.visit_str(text),
            Value::Sequence(_) => self.deserialize_seq(visitor),
            Value::Mapping(_) => self.deserialize_map(visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.plain(BOOLEAN)? {
            "true" => visitor.visit_bool(true),
            "false" => visitor.visit_bool(false),
            other => {
                let meant = match other.to_ascii_lowercase().as_str() {
                    "true" | "yes" | "on" | "y" | "1" => Some("true"),
                    "false" | "no" | "off" | "n" | "0" => Some("false"),
                    _ => None,
                };
                let diagnostic = self.wrong("is not a boolean").expected(BOOLEAN);
                Err(Error::located(diagnostic.suggestion(meant)))
            }
        }
    }

    fn deserialize_i8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_i8(self.integer(i8::MIN, i8::MAX)?)
    }

    fn deserialize_i16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_i16(self.integer(i16::MIN, i16::MAX)?)
    }

    fn deserialize_i32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_i32(self.integer(i32::MIN, i32::MAX)?)
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_i64(self.integer(i64::MIN, i64::MAX)?)
    }

    fn deserialize_u8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_u8(self.integer(u8::MIN, u8::MAX)?)
    }

    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_u16(self.integer(u16::MIN, u16::MAX)?)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_u32(self.integer(u32::MIN, u32::MAX)?)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_u64(self.integer(u64::MIN, u64::MAX)?)
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_f64(self.float()?)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_f64(self.float()?)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_str(self.text(STRING)?)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Null => visitor.visit_none(),
            Value::Scalar { .. } | Value::Sequence(_) | Value::Mapping(_) => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, Error> {
        match name {
            FIELD => visitor.visit_seq(FieldParts { reader: self, given: 0 }),
            SCALAR_OR => match &self.node.value {
                Value::Scalar { text, .. } => visitor.visit_str(text),
                Value::Mapping(_) => visitor.visit_newtype_struct(self),
                Value::Null | Value::Sequence(_) => Err(self.mismatch(STRING_OR_MAPPING)),
            },
            _ => visitor.visit_newtype_struct(self),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let Value::Sequence(elements) = &self.node.value else {
            return Err(self.mismatch(SEQUENCE));
        };
        visitor.visit_seq(Elements { parent: self, rest: elements, index: 0 })
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Error> {
        if let Value::Sequence(elements) = &self.node.value
            && elements.len() != len
        {
            let diagnostic = self.error(format!("found {} elements", elements.len()));
            let diagnostic = diagnostic.expected(format!("{len} elements"));
            return Err(Error::located(diagnostic));
        }
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(self, _name: &'static str, len: usize, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_tuple(len, visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let Value::Mapping(pairs) = &self.node.value else {
            return Err(self.mismatch(MAPPING));
        };
        visitor.visit_map(Members { parent: self, rest: self.members(pairs).into_iter(), pending: None })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let Value::Mapping(pairs) = &self.node.value else {
            return Err(if name == SECRET { self.inline_secret() } else { self.mismatch(MAPPING) });
        };
        let is_known = |key: &Node| fields.contains(&key.text());
        if name == SECRET {
            for (_, value) in pairs.iter().filter(|(key, _)| !is_known(key)) {
                self.conceal(value);
            }
        }
        let (known, unknown): (Vec<_>, Vec<_>) = self.members(pairs).into_iter().partition(|(key, _)| is_known(key));
        for (key, _) in unknown {
            self.refuse_key(key, fields);
        }
        visitor.visit_map(Members { parent: self, rest: known.into_iter(), pending: None })
    }

    /// Unit variants only; a choice with more to say is a [`ScalarOr`].
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let text = self.text(&one_of(variants))?;
        if !variants.contains(&text) {
            let diagnostic = self.error(format!("unknown value {}", quote(text)));
            return Err(Error::located(diagnostic.one_of(text, variants)));
        }
        visitor.visit_enum(StrDeserializer::<Error>::new(text))
    }

    forward_to_deserialize_any! { char bytes byte_buf unit unit_struct ignored_any }
}

/// What [`FieldVisitor`] takes of a node: line, column, length, path, value, text as written. A
/// value that cannot be made is reported and not given.
struct FieldParts<'a> {
    reader: Reader<'a>,
    given: usize,
}

impl<'de> SeqAccess<'de> for FieldParts<'_> {
    type Error = Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Error> {
        let reader = self.reader;
        let node = reader.node;
        self.given += 1;
        match self.given {
            1 => seed.deserialize(U32Deserializer::<Error>::new(node.span.line)).map(Some),
            2 => seed.deserialize(U32Deserializer::<Error>::new(node.span.column)).map(Some),
            3 => seed.deserialize(U32Deserializer::<Error>::new(node.span.length)).map(Some),
            4 => {
                let path = reader.path.to_string();
                seed.deserialize(StringDeserializer::<Error>::new(path)).map(Some)
            }
            5 => match reader.fetch(seed) {
                Ok(value) => Ok(Some(value)),
                Err(error) => {
                    reader.report(*error.diagnostic);
                    Ok(None)
                }
            },
            6 => {
                // Only now is it known whether a secret was read here.
                let concealed = reader.diagnostics.borrow().is_concealed(node.span);
                let text = reader.written().filter(|_| !concealed).unwrap_or_default();
                seed.deserialize(StrDeserializer::<Error>::new(text)).map(Some)
            }
            _ => Ok(None),
        }
    }
}

struct Elements<'a> {
    parent: Reader<'a>,
    rest: &'a [Node],
    index: usize,
}

impl<'de> SeqAccess<'de> for Elements<'_> {
    type Error = Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Error> {
        let Some((element, rest)) = self.rest.split_first() else {
            return Ok(None);
        };
        let path = Path::Index(&self.parent.path, self.index);
        let value = self.parent.at(element, path).fetch(seed)?;
        self.rest = rest;
        self.index += 1;
        Ok(Some(value))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.rest.len())
    }
}

struct Members<'a> {
    parent: Reader<'a>,
    rest: vec::IntoIter<(&'a Node, &'a Node)>,
    /// The member whose key was given and whose value was not.
    pending: Option<(&'a Node, &'a Node)>,
}

impl<'de> MapAccess<'de> for Members<'_> {
    type Error = Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Error> {
        self.pending = self.rest.next();
        let Some((key, _)) = self.pending else {
            return Ok(None);
        };
        let path = Path::Key(&self.parent.path, key.text());
        self.parent.at(key, path).fetch(seed).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Error> {
        let Some((key, value)) = self.pending.take() else {
            return Err(de::Error::custom("a value was asked for before its key"));
        };
        let path = Path::Key(&self.parent.path, key.text());
        self.parent.at(value, path).fetch(seed)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.rest.len())
    }
}

/// The keys and indices that lead to a node, innermost first.
#[derive(Clone, Copy)]
enum Path<'a> {
    Top,
    Key(&'a Self, &'a str),
    Index(&'a Self, usize),
}

impl Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Top => Ok(()),
            Self::Key(parent, key) => {
                let separator = match parent {
                    Self::Top => "",
                    Self::Key(..) | Self::Index(..) => ".",
                };
                let is_word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-');
                let key = escape(&shorten(key));
                if !key.is_empty() && key.chars().all(is_word) {
                    write!(f, "{parent}{separator}{key}")
                } else {
                    write!(f, "{parent}{separator}\"{key}\"")
                }
            }
            Self::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

/// Digits, a point and an exponent; what Rust reads besides (`inf`, `nan`) is not a number here.
fn parse_float(text: &str) -> Option<f64> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte));
    let number = text.parse::<f64>().ok();
    number.filter(|number| is_number && number.is_finite())
}

const SEQUENCE: &str = "a sequence";
const QUOTED: &str = "a quoted string";
const STRING: &str = "a string";
const NUMBER: &str = "a number";
const BOOLEAN: &str = "true or false";

/// The serde name of the struct that says where a secret is. If the secret itself stands in its place,
/// or under a key that it does not know, no diagnostic repeats it and every excerpt masks it.
const SECRET: &str = "RawSecret";

mod error;
#[cfg(test)]
mod tests;
