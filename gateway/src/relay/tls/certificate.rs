//! What people are told of an X.509 certificate, and what a sensor is known by: subject, issuer, dates, DNS names.
//!
//! Whether a certificate is good is for rustls to say. This reads what rustls does not give: it names the authority
//! behind a certificate that was refused, and the client behind one that was not.
//!
//! The bytes may be a stranger's. Every length is held against what is there, nothing recurses, and what comes out is bounded:
//! [`MAX_TEXT_CHARS`], [`MAX_DNS_NAMES`]. Characters that could play tricks in a log are replaced.
//!
//! Left out: keys, signatures, every extension but the names.
//!
//! Source: RFC 5280 §4.1 (structure), §4.1.2.5 (dates), §4.2.1.6 (names); X.690 §8.1 and §10.1 (DER).

use std::fmt;
use std::time::Duration;

use rustls::pki_types::UnixTime;

/// X.520 allows 64 in a common name; what is longer is no name.
const MAX_TEXT_CHARS: usize = 256;
/// DNS names of one certificate that are read; the rest is passed over.
const MAX_DNS_NAMES: usize = 64;
/// RFC 1035 §2.3.4, without the root.
const MAX_DNS_NAME_BYTES: usize = 253;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Certificate {
    pub(super) subject: Name,
    pub(super) issuer: Name,
    pub(super) not_before: UnixTime,
    pub(super) not_after: UnixTime,
    /// Of the alternative names; lower case.
    pub(super) dns_names: Vec<String>,
}

/// A distinguished name; equal if its bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name {
    der: Vec<u8>,
    common_name: Option<String>,
    organization: Option<String>,
}

impl Certificate {
    /// None: it is no certificate.
    pub(super) fn parse(der: &[u8]) -> Option<Self> {
        let mut certificate = Der(Der(der).take(SEQUENCE)?);
        let mut body = Der(certificate.take(SEQUENCE)?);
        body.pass(VERSION);
        body.take(INTEGER)?; // serial number
        body.take(SEQUENCE)?; // signature algorithm
        let issuer = Name::parse(body.take(SEQUENCE)?);
        let mut validity = Der(body.take(SEQUENCE)?);
        let not_before = time(validity.element()?)?;
        let not_after = time(validity.element()?)?;
        let subject = Name::parse(body.take(SEQUENCE)?);
        body.take(SEQUENCE)?; // public key
        let mut dns_names = Vec::new();
        while let Some((tag, contents)) = body.element() {
            if tag == EXTENSIONS {
                dns_names = alternative_names(contents).unwrap_or_default();
            }
        }
        Some(Self { subject, issuer, not_before, not_after, dns_names })
    }

    /// What it may be known by: its DNS names, or else its common name; lower case.
    pub(super) fn names(self) -> Vec<String> {
        if self.dns_names.is_empty() {
            self.subject.common_name.map(|name| name.to_ascii_lowercase()).into_iter().collect()
        } else {
            self.dns_names
        }
    }

    pub(super) fn is_self_signed(&self) -> bool {
        self.issuer == self.subject
    }
}

impl Name {
    /// `der`: the relative names, each a set of attributes. What cannot be read is passed over.
    fn parse(der: &[u8]) -> Self {
        let mut name = Self { der: der.to_vec(), common_name: None, organization: None };
        let mut sets = Der(der);
        while let Some((SET, set)) = sets.element() {
            let mut attributes = Der(set);
            while let Some((SEQUENCE, attribute)) = attributes.element() {
                let mut attribute = Der(attribute);
                let (Some(kind), Some(value)) = (attribute.take(OBJECT_IDENTIFIER), attribute.element()) else { continue };
                // The last of a kind is the most specific.
                if kind == COMMON_NAME {
                    name.common_name = text(value).or(name.common_name);
                } else if kind == ORGANIZATION {
                    name.organization = text(value).or(name.organization);
                }
            }
        }
        name
    }
}

/// The common name, with the organization behind it: either alone often says nothing.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.common_name, &self.organization) {
            (Some(name), Some(organization)) if name != organization => write!(f, "{name} ({organization})"),
            (Some(name), _) | (None, Some(name)) => f.write_str(name),
            (None, None) => f.write_str("somebody without a name"),
        }
    }
}

/// A point in time for people, to the minute.
pub(super) fn date(time: UnixTime) -> String {
    let (year, month, day) = civil(time.as_secs() / DAY_SECS);
    let minutes = time.as_secs() % DAY_SECS / 60;
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02} UTC", minutes / 60, minutes % 60)
}

/// Elements that stand one behind the other.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The next element: its tag and its contents. None at the end, and where there is no whole element.
    fn element(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        // Tags of several bytes do not occur in a certificate.
        if tag & 0x1f == 0x1f {
            return None;
        }
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = if first < 0x80 {
            (usize::from(first), rest)
        } else {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            if digits.is_empty() || digits.len() > MAX_LENGTH_BYTES {
                return None;
            }
            (digits.iter().fold(0usize, |length, digit| (length << 8) | usize::from(*digit)), rest)
        };
        let (contents, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, contents))
    }

    /// The contents of the next element, which must have this tag.
    fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        let (found, contents) = self.element()?;
        (found == tag).then_some(contents)
    }

    /// Passes over the next element if it has this tag.
    fn pass(&mut self, tag: u8) {
        if self.0.first() == Some(&tag) {
            let _passed = self.element();
        }
    }
}

/// The DNS names among the extensions; none if there are no alternative names.
fn alternative_names(extensions: &[u8]) -> Option<Vec<String>> {
    let mut extensions = Der(Der(extensions).take(SEQUENCE)?);
    while let Some((SEQUENCE, extension)) = extensions.element() {
        let mut extension = Der(extension);
        if extension.take(OBJECT_IDENTIFIER)? != SUBJECT_ALTERNATIVE_NAME {
            continue;
        }
        extension.pass(BOOLEAN); // whether it is critical
        let mut names = Der(Der(extension.take(OCTET_STRING)?).take(SEQUENCE)?);
        let names = std::iter::from_fn(|| names.element());
        return Some(names.filter_map(dns_name).take(MAX_DNS_NAMES).collect());
    }
    None
}

fn dns_name((tag, name): (u8, &[u8])) -> Option<String> {
    let good = tag == DNS_NAME && (1..=MAX_DNS_NAME_BYTES).contains(&name.len()) && name.iter().all(u8::is_ascii_graphic);
    let name = str::from_utf8(name).ok().filter(|_| good)?;
    Some(name.to_ascii_lowercase())
}

/// A text of one of the kinds that names are written in; None if it is empty, too long or of another kind.
fn text((tag, value): (u8, &[u8])) -> Option<String> {
    let text = match tag {
        UTF8_STRING | PRINTABLE_STRING | IA5_STRING => String::from_utf8_lossy(value).into_owned(),
        TELETEX_STRING => value.iter().copied().map(char::from).collect(),
        BMP_STRING => {
            let (pairs, _odd) = value.as_chunks::<2>();
            let characters = char::decode_utf16(pairs.iter().copied().map(u16::from_be_bytes));
            characters.map(|character| character.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
        }
        _ => return None,
    };
    if text.is_empty() || text.chars().nth(MAX_TEXT_CHARS).is_some() {
        return None;
    }
    let plain = |character: char| character.is_alphanumeric() || character.is_ascii_graphic() || character == ' ';
    Some(text.chars().map(|character| if plain(character) { character } else { '?' }).collect())
}

/// `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ`; what is before 1970 becomes 1970.
fn time((tag, text): (u8, &[u8])) -> Option<UnixTime> {
    let digits = text.strip_suffix(b"Z")?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let (year, rest) = match tag {
        UTC_TIME => {
            let (year, rest) = digits.split_at_checked(2)?;
            let year = number(year);
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        GENERALIZED_TIME => {
            let (year, rest) = digits.split_at_checked(4)?;
            (number(year), rest)
        }
        _ => return None,
    };
    let (pairs, []) = rest.as_chunks::<2>() else { return None };
    let [month, day, hour, minute, second] = pairs else { return None };
    let [month, day, hour, minute, second] = [month, day, hour, minute, second].map(|pair| number(pair));
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let seconds = days(year, month, day).saturating_mul(DAY_SECS) + hour * 3600 + minute * 60 + second;
    Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
}

/// `digits`: ASCII digits, few enough for the result.
fn number(digits: &[u8]) -> u64 {
    digits.iter().fold(0u64, |number, digit| number * 10 + u64::from(digit.saturating_sub(b'0')))
}

/// Days from 1970-01-01 to a day of the Gregorian calendar; 0 for what is before it.
fn days(year: u64, month: u64, day: u64) -> u64 {
    // With March as the first month the leap day is a year's last, and 153 days are five months everywhere.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year.saturating_sub(1), month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    days.saturating_sub(EPOCH_DAYS)
}

/// The day that many days after 1970-01-01: year, month, day.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + EPOCH_DAYS;
    let (cycle, day_of_cycle) = (days / CYCLE_DAYS, days % CYCLE_DAYS);
    // Takes the leap days out: one in 4 years, none in 100, one in 400.
    let year_of_cycle = (day_of_cycle - day_of_cycle / 1460 + day_of_cycle / 36_524 - day_of_cycle / 146_096) / 365;
    let day_of_year = day_of_cycle - (year_of_cycle * 365 + year_of_cycle / 4 - year_of_cycle / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let year = cycle * 400 + year_of_cycle;
    if month < 10 { (year, month + 3, day) } else { (year + 1, month - 9, day) }
}

const DAY_SECS: u64 = 86_400;
/// From 0000-03-01 to 1970-01-01.
const EPOCH_DAYS: u64 = 719_468;
/// In 400 years, after which the calendar repeats.
const CYCLE_DAYS: u64 = 146_097;

/// A length of more is more than a handshake carries.
const MAX_LENGTH_BYTES: usize = 3;

const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const OBJECT_IDENTIFIER: u8 = 0x06;
const UTF8_STRING: u8 = 0x0c;
const PRINTABLE_STRING: u8 = 0x13;
const TELETEX_STRING: u8 = 0x14;
const IA5_STRING: u8 = 0x16;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const BMP_STRING: u8 = 0x1e;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
/// `[0]` of the body.
const VERSION: u8 = 0xa0;
/// `[3]` of the body.
const EXTENSIONS: u8 = 0xa3;
/// `[2]` of a general name.
const DNS_NAME: u8 = 0x82;

/// 2.5.4.3
const COMMON_NAME: &[u8] = &[0x55, 4, 3];
/// 2.5.4.10
const ORGANIZATION: &[u8] = &[0x55, 4, 10];
/// 2.5.29.17
const SUBJECT_ALTERNATIVE_NAME: &[u8] = &[0x55, 29, 17];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType, DnValue, KeyPair, string};

    use super::*;

    #[test]
    fn reads_names_and_dates() {
        let certificate = Certificate::parse(&issued(&["Hub.Example", "10.0.0.1", "b.example"])).expect("a certificate");
        assert_eq!(certificate.dns_names, ["hub.example", "b.example"], "an address is no DNS name");
        assert_eq!(certificate.subject.to_string(), "Line 3 (Plant Ltd)");
        assert!(certificate.is_self_signed());
        assert_eq!(date(certificate.not_before), "2024-02-29 00:00 UTC");
        assert_eq!(date(certificate.not_after), "2051-12-31 00:00 UTC", "as GeneralizedTime");
        assert_eq!(certificate.names(), ["hub.example", "b.example"]);
    }

    #[test]
    fn without_a_dns_name_the_common_name_counts() {
        let certificate = Certificate::parse(&issued(&[])).expect("a certificate");
        assert_eq!(certificate.names(), ["line 3"]);
    }

    #[test]
    fn reads_every_kind_of_text_and_leaves_nothing_in_it_that_plays_tricks() {
        let bmp = string::BmpString::try_from("Zürich").expect("text");
        let printable = string::PrintableString::try_from("Plant CA").expect("text");
        for (value, expected) in [
            (DnValue::from("a\u{1b}[31m\r\nb\u{202e}c"), "a?[31m??b?c"),
            (DnValue::from("Überwachung"), "Überwachung"),
            (DnValue::BmpString(bmp), "Zürich"),
            (DnValue::PrintableString(printable), "Plant CA"),
            (DnValue::from("x".repeat(MAX_TEXT_CHARS + 1)), "somebody without a name"),
        ] {
            let mut params = CertificateParams::default();
            params.distinguished_name = DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, value);
            let der = params.self_signed(&KeyPair::generate().expect("a key")).expect("a certificate");
            let certificate = Certificate::parse(der.der()).expect("a certificate");
            assert_eq!(certificate.issuer.to_string(), expected);
        }
    }

    #[test]
    fn reads_times_and_refuses_what_is_none() {
        for (tag, text, expected) in [
            (UTC_TIME, "700101000000Z", Some("1970-01-01 00:00 UTC")),
            (UTC_TIME, "000229235959Z", Some("2000-02-29 23:59 UTC")),
            (UTC_TIME, "491231235959Z", Some("2049-12-31 23:59 UTC")),
            (UTC_TIME, "500101000000Z", Some("1970-01-01 00:00 UTC")),
            (GENERALIZED_TIME, "99991231235959Z", Some("9999-12-31 23:59 UTC")),
            (GENERALIZED_TIME, "00000101000000Z", Some("1970-01-01 00:00 UTC")),
            (UTC_TIME, "701301000000Z", None),
            (UTC_TIME, "700001000000Z", None),
            (UTC_TIME, "700100000000Z", None),
            (UTC_TIME, "700101240000Z", None),
            (UTC_TIME, "7001010000Z", None),
            (UTC_TIME, "70010100000Z", None),
            (UTC_TIME, "700101000000", None),
            (UTC_TIME, "7001010000+0Z", None),
            (UTC_TIME, "Z", None),
            (INTEGER, "700101000000Z", None),
        ] {
            assert_eq!(time((tag, text.as_bytes())).map(date).as_deref(), expected, "{tag:#x} {text}");
        }
    }

    #[test]
    fn a_certificate_cut_short_is_none() {
        let der = issued(&["hub.example"]);
        for length in 0..der.len() {
            assert_eq!(Certificate::parse(&der[..length]), None, "{length} bytes");
        }
    }

    #[test]
    fn refuses_lengths_that_lead_nowhere() {
        for element in [&[SEQUENCE][..], &[SEQUENCE, 1], &[SEQUENCE, 0x80, 0], &[SEQUENCE, 0x84, 0, 0, 0, 0], &[SEQUENCE, 0xff], &[0x3f, 0]]
        {
            assert_eq!(Der(element).element(), None, "{element:?}");
        }
        assert_eq!(Der(&[SEQUENCE, 0x82, 0, 1, 7, 9]).element(), Some((SEQUENCE, &[7][..])));
    }

    proptest! {
        #[test]
        fn a_day_is_the_day_that_it_was_made_from(day in 0u64..3_000_000) {
            let (year, month, day_of_month) = civil(day);
            prop_assert_eq!(days(year, month, day_of_month), day);
            prop_assert!((1..=12).contains(&month) && (1..=31).contains(&day_of_month));
        }

        #[test]
        fn any_bytes_are_a_certificate_or_none(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _answer = Certificate::parse(&bytes);
        }

        #[test]
        fn a_damaged_certificate_is_read_within_bounds(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        ) {
            let mut der = issued(&["hub.example", "b.example"]);
            for (at, byte) in changes {
                let at = at.index(der.len());
                der[at] = byte;
            }
            if let Some(certificate) = Certificate::parse(&der) {
                prop_assert!(certificate.subject.to_string().chars().count() <= 2 * MAX_TEXT_CHARS + 3);
                prop_assert!(certificate.dns_names.len() <= MAX_DNS_NAMES);
            }
        }
    }

    fn issued(names: &[&str]) -> Vec<u8> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        params.not_before = rcgen::date_time_ymd(2024, 2, 29);
        params.not_after = rcgen::date_time_ymd(2051, 12, 31);
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Plant Ltd");
        params.distinguished_name.push(DnType::CommonName, "Line 3");
        params.self_signed(&KeyPair::generate().expect("a key")).expect("a certificate").der().to_vec()
    }
}
