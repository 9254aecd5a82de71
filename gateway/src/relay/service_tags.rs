//! Microsoft's list of the prefixes that its services use ("Azure IP Ranges and Service Tags"): whether an address that
//! DNS gave for a catalogue host lies where that host's service is.
//!
//! A poisoned answer leads a session elsewhere, and nothing else in the relay would notice: the name is right, the address
//! is public, and TLS is not ours to check. Defender's documentation names a tag for three kinds of host (sensor
//! connection, "IP-based firewalls": AzureIoTHub, Storage, EventHub); the others are not pinned, because to refuse by
//! guesswork cuts sensors off.
//!
//! A tag without a region covers the whole cloud, and its regional ones (`Storage.WestEurope`) are parts of it, so only
//! those without are kept: of some 5 MB of text, a few thousand ranges. Deliberately not here: fetching the file, its age,
//! and what to do with an address outside.
//!
//! Source: the file itself, microsoft.com/download 56519 (public cloud) and 57063 (US Government), weekly; Microsoft
//! promises a week between a prefix's publication and its use.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::de::{Deserializer, SeqAccess, Visitor};

use super::catalogue::Role;

/// One issue of the file, as far as it pins anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceTags {
    /// Of the whole file; a newer issue has a higher one.
    pub change_number: u64,
    /// `Public`, or the name of another cloud.
    pub cloud: String,
    /// By tag: first and last address of each range, sorted and apart from one another.
    ranges: BTreeMap<&'static str, Vec<Range>>,
}

type Range = (IpAddr, IpAddr);

impl ServiceTags {
    /// Reads `text`, the whole JSON file, with or without a byte order mark.
    ///
    /// Every tag that [`tag_of`] can name must be there and hold a prefix: a file that was cut short would otherwise
    /// refuse a whole service. What other tags hold is not looked at.
    pub fn parse(text: &str) -> Result<Self, ServiceTagsError> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(ServiceTagsError::TooLarge);
        }
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let file: RawFile = serde_json::from_str(text).map_err(ServiceTagsError::Json)?;
        let mut ranges: BTreeMap<&'static str, Vec<Range>> = BTreeMap::new();
        for RawTag { name, properties } in file.values {
            let Some(tag) = known(&name) else { continue };
            let ranges = ranges.entry(tag).or_default();
            for prefix in &properties.address_prefixes {
                ranges.push(range(prefix).ok_or_else(|| ServiceTagsError::BadPrefix { tag, prefix: prefix.chars().take(64).collect() })?);
            }
        }
        for tag in Role::ALL.iter().flat_map(|role| tag_of(*role)).copied() {
            match ranges.get_mut(tag) {
                Some(ranges) if !ranges.is_empty() => merge(ranges),
                Some(_) | None => return Err(ServiceTagsError::MissingTag { tag }),
            }
        }
        Ok(Self { change_number: file.change_number, cloud: file.cloud, ranges })
    }

    /// Whether `address` is one that the service behind a host of this role uses. A private address never is: whoever
    /// lists it in the catalogue's `allow` has a private endpoint, and need not ask.
    pub fn covers(&self, role: Role, address: IpAddr) -> Pinned {
        let tags = tag_of(role);
        if tags.is_empty() {
            return Pinned::NotPinned;
        }
        let address = address.to_canonical();
        let holds = |tag: &&'static str| self.ranges.get(*tag).is_some_and(|ranges| contains(ranges, address));
        tags.iter().copied().find(|tag| holds(tag)).map_or(Pinned::Outside, |tag| Pinned::Inside { tag })
    }
}

/// What the list says of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pinned {
    Inside {
        tag: &'static str,
    },
    Outside,
    /// No tag is known for the role.
    NotPinned,
}

/// The tags whose prefixes hosts of a role have; none: not known, so not pinned.
///
/// Download Center is served by delivery networks, some of them not Microsoft's, and no Defender page gives it a tag; of
/// "Aria" not even the host names are published, so that no tag can be checked against them.
pub const fn tag_of(role: Role) -> &'static [&'static str] {
    match role {
        Role::IotHub => &["AzureIoTHub"],
        Role::Blob => &["Storage"],
        Role::EventHub => &["EventHub"],
        Role::Aria | Role::Download | Role::Other => &[],
    }
}

/// Why a text is no list of service tags.
#[derive(Debug, thiserror::Error)]
pub enum ServiceTagsError {
    #[error("the file is larger than {} MiB", MAX_TEXT_BYTES >> 20)]
    TooLarge,
    #[error("not Microsoft's service tags in JSON: {0}")]
    Json(serde_json::Error),
    #[error("the file holds no prefixes of the tag {tag}: is it whole?")]
    MissingTag { tag: &'static str },
    #[error("{prefix:?} of the tag {tag} is not a prefix")]
    BadPrefix { tag: &'static str, prefix: String },
}

impl ServiceTagsError {
    /// One word for logs and metrics; it does not change between releases.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::Json(_) => "not_service_tags",
            Self::MissingTag { .. } => "missing_tag",
            Self::BadPrefix { .. } => "bad_prefix",
        }
    }
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawFile {
    change_number: u64,
    cloud: String,
    #[serde(deserialize_with = "known_tags")]
    values: Vec<RawTag>,
}

#[derive(serde::Deserialize)]
struct RawTag {
    name: String,
    properties: RawProperties,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawProperties {
    address_prefixes: Vec<String>,
}

/// Reads the thousands of tags one at a time and keeps the few that are known.
fn known_tags<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<RawTag>, D::Error> {
    struct KnownTags;

    impl<'de> Visitor<'de> for KnownTags {
        type Value = Vec<RawTag>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of service tags")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut tags: A) -> Result<Self::Value, A::Error> {
            let mut kept = Vec::new();
            while let Some(tag) = tags.next_element::<RawTag>()? {
                if known(&tag.name).is_some() {
                    kept.push(tag);
                }
            }
            Ok(kept)
        }
    }

    deserializer.deserialize_seq(KnownTags)
}

fn known(name: &str) -> Option<&'static str> {
    Role::ALL.iter().flat_map(|role| tag_of(*role)).copied().find(|tag| *tag == name)
}

fn range(prefix: &str) -> Option<Range> {
    let prefix: IpNet = prefix.parse().ok()?;
    Some((prefix.network(), prefix.broadcast()))
}

/// Sorts, and joins what overlaps: prefixes of one tag may lie in one another.
fn merge(ranges: &mut Vec<Range>) {
    ranges.sort_unstable();
    ranges.dedup_by(|next, kept| {
        let overlaps = next.0 <= kept.1;
        if overlaps {
            kept.1 = kept.1.max(next.1);
        }
        overlaps
    });
}

/// Every IPv4 address sorts below every IPv6 one, so that a range never reaches from one into the other.
fn contains(ranges: &[Range], address: IpAddr) -> bool {
    let begun = ranges.partition_point(|(first, _)| *first <= address);
    begun.checked_sub(1).and_then(|nearest| ranges.get(nearest)).is_some_and(|(_, last)| address <= *last)
}

/// Longest file; today's have about 5 MB.
const MAX_TEXT_BYTES: usize = 32 << 20;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn tag(name: &str, prefixes: &[&str]) -> Value {
        json!({
            "name": name,
            "id": name,
            "properties": {
                "changeNumber": 7,
                "region": name.split_once('.').map_or("", |(_, region)| region),
                "regionId": 0,
                "platform": "Azure",
                "systemService": name.split('.').next(),
                "addressPrefixes": prefixes,
                "networkFeatures": ["API", "NSG", "UDR", "FW"],
            },
        })
    }

    /// A file in the shape of Microsoft's.
    fn file(values: &[Value]) -> String {
        json!({ "changeNumber": 345, "cloud": "Public", "values": values }).to_string()
    }

    fn sample() -> ServiceTags {
        let text = file(&[
            tag("ActionGroup", &["not read, so not checked"]),
            tag("AzureIoTHub", &["13.66.142.96/27", "2603:1000:4::10c/126"]),
            tag("AzureIoTHub.WestEurope", &["198.51.100.0/24"]),
            tag("Storage", &["20.60.0.0/16", "20.60.4.0/24", "20.61.0.0/16", "20.150.0.0/15", "2603:1061:180::/48"]),
            tag("Storage.WestEurope", &["20.60.4.0/24"]),
            tag("EventHub", &["13.64.195.117/32"]),
        ]);
        ServiceTags::parse(&text).expect("a good file")
    }

    #[test]
    fn an_address_is_inside_its_services_prefixes_or_outside() {
        let tags = sample();
        assert_eq!((tags.change_number, tags.cloud.as_str()), (345, "Public"));
        for (role, address, pinned) in [
            (Role::IotHub, "13.66.142.96", Pinned::Inside { tag: "AzureIoTHub" }),
            (Role::IotHub, "13.66.142.127", Pinned::Inside { tag: "AzureIoTHub" }),
            (Role::IotHub, "13.66.142.128", Pinned::Outside),
            (Role::IotHub, "13.66.142.95", Pinned::Outside),
            (Role::IotHub, "::ffff:13.66.142.100", Pinned::Inside { tag: "AzureIoTHub" }),
            (Role::IotHub, "2603:1000:4::10f", Pinned::Inside { tag: "AzureIoTHub" }),
            (Role::IotHub, "2603:1000:4::110", Pinned::Outside),
            (Role::IotHub, "20.60.4.1", Pinned::Outside),
            (Role::Blob, "20.60.200.1", Pinned::Inside { tag: "Storage" }),
            (Role::Blob, "20.151.255.255", Pinned::Inside { tag: "Storage" }),
            (Role::Blob, "20.152.0.0", Pinned::Outside),
            (Role::Blob, "0.0.0.0", Pinned::Outside),
            (Role::Blob, "::", Pinned::Outside),
            (Role::EventHub, "13.64.195.117", Pinned::Inside { tag: "EventHub" }),
            (Role::EventHub, "10.20.0.7", Pinned::Outside),
            (Role::Aria, "13.64.195.117", Pinned::NotPinned),
            (Role::Download, "23.1.2.3", Pinned::NotPinned),
            (Role::Other, "20.60.4.1", Pinned::NotPinned),
        ] {
            assert_eq!(tags.covers(role, ip(address)), pinned, "{role:?} {address}");
        }
    }

    #[test]
    fn a_region_alone_pins_nothing() {
        assert_eq!(sample().covers(Role::IotHub, ip("198.51.100.1")), Pinned::Outside);
    }

    #[test]
    fn a_byte_order_mark_is_no_mistake() {
        let text = file(&[tag("AzureIoTHub", &["1.0.0.0/8"]), tag("Storage", &["2.0.0.0/8"]), tag("EventHub", &["3.0.0.0/8"])]);
        assert_eq!(ServiceTags::parse(&format!("\u{feff}{text}")).expect("a good file"), ServiceTags::parse(&text).expect("a good file"));
    }

    #[test]
    fn what_would_refuse_a_whole_service_is_an_error() {
        let good = [tag("AzureIoTHub", &["1.0.0.0/8"]), tag("Storage", &["2.0.0.0/8"])];
        for (values, reason) in [
            (good.to_vec(), "missing_tag"),
            ([good.to_vec(), vec![tag("EventHub", &[])]].concat(), "missing_tag"),
            ([good.to_vec(), vec![tag("EventHub", &["3.0.0.0/33"])]].concat(), "bad_prefix"),
            ([good.to_vec(), vec![tag("EventHub", &["\u{1b}[2J"])]].concat(), "bad_prefix"),
            (vec![json!({ "name": "Storage" })], "not_service_tags"),
        ] {
            let error = ServiceTags::parse(&file(&values)).expect_err("a bad file");
            assert_eq!(error.reason(), reason, "{error}");
            assert!(!error.to_string().contains('\u{1b}'));
        }
        for text in ["", "[]", "{}", "<html>", r#"{"changeNumber": 1, "cloud": "Public", "values": {}}"#] {
            assert_eq!(ServiceTags::parse(text).expect_err("a bad file").reason(), "not_service_tags", "{text}");
        }
        assert_eq!(ServiceTags::parse(&" ".repeat(MAX_TEXT_BYTES + 1)).expect_err("too large").reason(), "too_large");
    }

    proptest! {
        #[test]
        fn the_search_finds_what_a_scan_finds(
            prefixes in proptest::collection::vec((any::<u32>(), 4_u8..=32), 1..40),
            addresses in proptest::collection::vec(any::<u32>(), 40),
        ) {
            let prefixes: Vec<IpNet> = prefixes
                .into_iter()
                .map(|(address, length)| IpNet::new(IpAddr::V4(address.into()), length).expect("a length").trunc())
                .collect();
            let mut ranges: Vec<Range> = prefixes.iter().map(|prefix| (prefix.network(), prefix.broadcast())).collect();
            merge(&mut ranges);
            let edges = prefixes.iter().flat_map(|prefix| [prefix.network(), prefix.broadcast()]);
            for address in addresses.into_iter().map(|address| IpAddr::V4(address.into())).chain(edges) {
                let scan = prefixes.iter().any(|prefix| prefix.contains(&address));
                prop_assert_eq!(contains(&ranges, address), scan, "{}", address);
            }
        }

        #[test]
        fn any_text_is_a_list_or_an_error(text in any::<String>()) {
            prop_assert!(ServiceTags::parse(&text).is_err());
        }
    }
}
