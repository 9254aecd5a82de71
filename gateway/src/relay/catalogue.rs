//! Where to: the Defender hosts that may be reached. Exact names; a wildcard over a cloud's shared domain would let
//! a sensor reach every other tenant's storage.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::host::HostName;

/// What a host is for, as Defender's documentation groups them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Role {
    IotHub,
    Blob,
    EventHub,
    Aria,
    Download,
    #[default]
    Other,
}

/// One host of the catalogue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub role: Role,
    /// 443 unless said otherwise: Defender's sensors use no other.
    pub ports: Vec<u16>,
    /// Private prefixes that the name may resolve into.
    pub allow: Vec<IpNet>,
    /// Addresses to dial instead of asking a name server.
    pub addresses: Vec<IpAddr>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Catalogue(BTreeMap<HostName, Entry>);

impl Catalogue {
    pub const fn new(entries: BTreeMap<HostName, Entry>) -> Self {
        Self(entries)
    }

    pub fn get(&self, host: &HostName) -> Option<&Entry> {
        self.0.get(host)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&HostName, &Entry)> {
        self.0.iter()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Role {
    pub const ALL: &'static [Self] = &[Self::IotHub, Self::Blob, Self::EventHub, Self::Aria, Self::Download, Self::Other];

    pub const fn label(self) -> &'static str {
        match self {
            Self::IotHub => "iot-hub",
            Self::Blob => "blob",
            Self::EventHub => "event-hub",
            Self::Aria => "aria",
            Self::Download => "download",
            Self::Other => "other",
        }
    }
}
