//! A host name in the one form in which names are compared: lower case, no trailing dot.
//!
//! The relay meets the same name in a ClientHello, in the authority of a CONNECT, in a `Host` field
//! and in the catalogue, and most of these are written by strangers. Folding and checking it once,
//! at the edge, means that a policy compares values and that no place forgets to. An address is
//! never a name: whoever could write one would pass by both the catalogue and the checks on what
//! the resolver answers.
//!
//! Deliberately not here: IDNA (names on the wire are already A-labels), public suffixes,
//! resolution. Underscores and hyphens may stand anywhere in a label: DNS allows them where
//! RFC 1123 does not, and clouds hand out such names.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// A valid host name, folded to lower case and without a trailing dot; one label is enough.
///
/// Cloning shares the text. Source: RFC 1035 §2.3.4 (lengths), RFC 2181 §11 (underscores).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostName(Arc<str>);

impl HostName {
    /// Checks and folds `name`: letters, digits, hyphens, underscores and dots, of which one at the
    /// end is dropped.
    ///
    /// Errors: `HostNameError::AddressLiteral` for every form that a resolver would take for an
    /// address: IPv4 dotted, short, octal or hexadecimal (`127.1`, `2130706433`, `0x7f.1`), and
    /// IPv6 with or without brackets or zone.
    pub fn parse(name: &str) -> Result<Self, HostNameError> {
        if is_written_address(name) {
            return Err(HostNameError::AddressLiteral);
        }
        let name = name.strip_suffix('.').unwrap_or(name);
        if name.is_empty() {
            return Err(HostNameError::Empty);
        }
        if let Some(stranger) = name.chars().find(|c| !is_name_character(*c)) {
            return Err(HostNameError::InvalidCharacter(stranger));
        }
        if name.len() > MAX_NAME_BYTES {
            return Err(HostNameError::TooLong);
        }
        if name.split('.').any(str::is_empty) {
            return Err(HostNameError::EmptyLabel);
        }
        if name.split('.').any(|label| label.len() > MAX_LABEL_BYTES) {
            return Err(HostNameError::LabelTooLong);
        }
        let name = name.to_ascii_lowercase();
        if name.split('.').all(is_number) {
            return Err(HostNameError::AddressLiteral);
        }
        Ok(Self(name.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What follows the first label; None for a name of one label.
    pub fn parent(&self) -> Option<Self> {
        self.0.split_once('.').map(|(_, rest)| Self(rest.into()))
    }
}

impl AsRef<str> for HostName {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a text is no host name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostNameError {
    #[error("the host name is empty")]
    Empty,
    #[error("an address stands where a host name is expected")]
    AddressLiteral,
    #[error("{0:?} cannot stand in a host name: only letters, digits, '-', '_' and '.' can")]
    InvalidCharacter(char),
    #[error("the host name is longer than {} characters", MAX_NAME_BYTES)]
    TooLong,
    #[error("a part of the host name between two dots is empty")]
    EmptyLabel,
    #[error("a part of the host name is longer than {} characters", MAX_LABEL_BYTES)]
    LabelTooLong,
}

fn is_written_address(text: &str) -> bool {
    let unbracketed = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let (address, _zone) = unbracketed.split_once('%').unwrap_or((unbracketed, ""));
    address.parse::<IpAddr>().is_ok()
}

fn is_name_character(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '-' | '_' | '.')
}

/// Whether `inet_aton` could take a (folded) label for a part of an address: decimal, octal or
/// hexadecimal, of any size.
fn is_number(label: &str) -> bool {
    match label.strip_prefix("0x") {
        Some(digits) => digits.bytes().all(|byte| byte.is_ascii_hexdigit()),
        None => label.bytes().all(|byte| byte.is_ascii_digit()),
    }
}

/// Characters of a name without its trailing dot: the 255 bytes that it may take on the wire, less
/// the first label's length and the root (RFC 1035 §2.3.4).
const MAX_NAME_BYTES: usize = 253;

/// Characters of one label (RFC 1035 §2.3.4).
const MAX_LABEL_BYTES: usize = 63;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn folds_case_and_drops_one_trailing_dot() {
        for (written, folded) in [
            ("Hub.Azure-Devices.NET", "hub.azure-devices.net"),
            ("hub.azure-devices.net.", "hub.azure-devices.net"),
            ("localhost", "localhost"),
            ("_sip._tcp.example", "_sip._tcp.example"),
            ("7-zip.example", "7-zip.example"),
            ("10.example", "10.example"),
            ("0xface.cafe", "0xface.cafe"),
        ] {
            let name = HostName::parse(written).map(|name| name.to_string());
            assert_eq!(name, Ok(folded.to_owned()), "{written}");
        }
    }

    #[test]
    fn refuses_every_form_of_an_address() {
        for address in [
            "10.0.0.1",
            "10.0.0.1.",
            "[10.0.0.1]",
            "127.1",
            "0177.0.0.1",
            "2130706433",
            "0x7f000001",
            "0X7F.0x1",
            "0x7f.0.0.1",
            "999.999.999.999",
            "1.2.3.4.5",
            "::1",
            "[::1]",
            "fe80::1%eth0",
            "[fe80::1%25eth0]",
            "::ffff:169.254.169.254",
        ] {
            let parsed = HostName::parse(address);
            assert_eq!(parsed, Err(HostNameError::AddressLiteral), "{address}");
        }
    }

    #[test]
    fn names_what_is_wrong() {
        let long_label = "a".repeat(64);
        let long_name = vec!["a".repeat(63); 4].join(".");
        for (name, error) in [
            ("", HostNameError::Empty),
            (".", HostNameError::Empty),
            ("a..b", HostNameError::EmptyLabel),
            (".a", HostNameError::EmptyLabel),
            ("a..", HostNameError::EmptyLabel),
            ("a b", HostNameError::InvalidCharacter(' ')),
            ("a\0b", HostNameError::InvalidCharacter('\0')),
            ("a:1", HostNameError::InvalidCharacter(':')),
            ("[a]", HostNameError::InvalidCharacter('[')),
            ("*.example", HostNameError::InvalidCharacter('*')),
            ("bücher.example", HostNameError::InvalidCharacter('ü')),
            (long_label.as_str(), HostNameError::LabelTooLong),
            (long_name.as_str(), HostNameError::TooLong),
        ] {
            assert_eq!(HostName::parse(name), Err(error), "{name:?}");
        }
    }

    #[test]
    fn takes_the_longest_name_and_label() {
        let longest = format!("{0}.{0}.{0}.{1}", "a".repeat(63), "b".repeat(61));
        assert_eq!(longest.len(), MAX_NAME_BYTES);
        assert!(HostName::parse(&longest).is_ok());
        assert!(HostName::parse(&format!("{longest}.")).is_ok());
    }

    proptest! {
        #[test]
        fn a_parsed_name_parses_to_itself(text in "[a-zA-Z0-9_.x-]{0,40}") {
            if let Ok(name) = HostName::parse(&text) {
                prop_assert_eq!(HostName::parse(name.as_str()), Ok(name));
            }
        }

        #[test]
        fn case_makes_no_difference(text in "[a-zA-Z0-9_.x-]{0,40}") {
            let shouted = text.to_ascii_uppercase();
            prop_assert_eq!(HostName::parse(&text), HostName::parse(&shouted));
        }

        #[test]
        fn any_text_is_a_name_or_an_error(text in any::<String>()) {
            if let Ok(name) = HostName::parse(&text) {
                prop_assert_eq!(name.as_str().to_ascii_lowercase(), name.as_str());
            }
        }
    }
}
