//! Where to: the Defender hosts that may be reached. Exact names; a wildcard over a cloud's shared domain lets a sensor
//! reach every other tenant's storage, and stands here only where the YAML insists on it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::host::HostName;
use super::service_tags::ServiceTags;

/// The only port that Defender's sensors use.
pub const HTTPS: u16 = 443;

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
    /// A customer's own IoT hub, which sensors of version 10 use: who still does is remembered.
    pub legacy: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Catalogue {
    entries: BTreeMap<HostName, Entry>,
    /// By what follows the first label: `*.servicebus.windows.net` under `servicebus.windows.net`.
    wildcards: BTreeMap<HostName, Entry>,
    /// What a name's addresses are held against.
    pub service_tags: Option<ServiceTagRule>,
}

/// Whether a name's addresses must be the cloud service's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceTagRule {
    pub tags: Arc<ServiceTags>,
    /// Refuse what lies outside; else only say so.
    pub enforce: bool,
}

impl Catalogue {
    pub const fn new(entries: BTreeMap<HostName, Entry>, wildcards: BTreeMap<HostName, Entry>) -> Self {
        Self { entries, wildcards, service_tags: None }
    }

    /// The host's own entry, or that of the wildcard over its domain, which stands for one label.
    pub fn get(&self, host: &HostName) -> Option<&Entry> {
        self.entries.get(host).or_else(|| self.wildcards.get(&host.parent()?))
    }

    pub fn wildcards(&self) -> impl Iterator<Item = (&HostName, &Entry)> {
        self.wildcards.iter()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&HostName, &Entry)> {
        self.entries.iter()
    }

    pub fn len(&self) -> usize {
        self.entries.len() + self.wildcards.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.wildcards.is_empty()
    }
}

impl Entry {
    /// An entry as a bare name makes it: port 443, public addresses only.
    pub fn new(role: Role) -> Self {
        Self { role, ports: vec![HTTPS], allow: Vec::new(), addresses: Vec::new(), legacy: false }
    }
}

impl Role {
    /// What a host is for, by the domain that Azure gives it.
    pub fn guess(host: &HostName) -> Self {
        let name = host.as_str();
        if name.ends_with(".azure-devices.net") || name.ends_with(".azure-devices.us") {
            Self::IotHub
        } else if name.contains(".blob.core.") {
            Self::Blob
        } else if name.contains(".servicebus.") {
            Self::EventHub
        } else if name == "download.microsoft.com" || name.ends_with(".download.microsoft.com") {
            Self::Download
        } else {
            Self::Other
        }
    }

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
