//! What importing a file would change in a catalogue, for a person to read and for the YAML to paste.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::super::{host_entry, joined, push_list};
use super::{Imported, ImportedHost, matches_pattern};
use crate::relay::HostName;
use crate::relay::catalogue::{Catalogue, Entry, HTTPS, Role};

/// A host of the catalogue as it is; of a wildcard, the domain.
pub type Configured = (HostName, Entry);

/// A catalogue against a file. Every host of either stands in exactly one list, sorted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Difference {
    /// In the file alone, or so far only by a wildcard of the catalogue.
    pub added: Vec<ImportedHost>,
    /// Configured, and not in a file that names other hosts of the same role.
    pub removed: Vec<Configured>,
    pub kept: Vec<Configured>,
    /// In both, with ports in the file that are not the configured ones.
    pub ports: Vec<PortChange>,
    /// Configured, of a role that the file does not speak of: that it lacks them says nothing. So for every host of the
    /// role `other`, for old sensors' hubs, and for those that a wildcard of the file stands for.
    pub unspoken: Vec<Configured>,
    /// The catalogue's own.
    pub wildcards: Vec<Configured>,
    /// The file's: patterns, and why each is no host.
    pub not_exact: Vec<(String, String)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortChange {
    pub host: HostName,
    pub configured: Entry,
    /// The file's, sorted.
    pub ports: Vec<u16>,
}

/// Compares what a file names with what is configured. A file that gives a host no ports leaves them as they are.
pub fn difference(imported: &Imported, configured: &Catalogue) -> Difference {
    let mut difference = Difference {
        wildcards: configured.wildcards().map(|(domain, entry)| (domain.clone(), entry.clone())).collect(),
        not_exact: imported.wildcards.clone(),
        ..Difference::default()
    };
    let found: BTreeMap<&HostName, &ImportedHost> = imported.hosts.iter().map(|host| (&host.host, host)).collect();
    let speaks_of = |role: Role| role != Role::Other && imported.hosts.iter().any(|host| host.role == role);
    let roles: Vec<Role> = Role::ALL.iter().copied().filter(|role| speaks_of(*role)).collect();
    for (host, entry) in configured.iter() {
        let unchanged = (host.clone(), entry.clone());
        match found.get(host) {
            Some(found) if found.ports.is_empty() || same(&found.ports, &entry.ports) => difference.kept.push(unchanged),
            Some(found) => {
                let (host, configured) = unchanged;
                difference.ports.push(PortChange { host, configured, ports: found.ports.clone() });
            }
            None if entry.legacy || !roles.contains(&entry.role) => difference.unspoken.push(unchanged),
            None if imported.wildcards.iter().any(|(pattern, _)| matches_pattern(pattern, host)) => difference.unspoken.push(unchanged),
            None => difference.removed.push(unchanged),
        }
    }
    let exact: BTreeSet<&HostName> = configured.iter().map(|(host, _)| host).collect();
    difference.added = imported.hosts.iter().filter(|host| !exact.contains(&host.host)).cloned().collect();
    difference
}

fn same(sorted: &[u16], ports: &[u16]) -> bool {
    let mut ports = ports.to_vec();
    ports.sort_unstable();
    ports.dedup();
    sorted == ports
}

impl Difference {
    /// Whether the catalogue holds already what the file names.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.ports.is_empty()
    }

    /// The list `hosts:` of a catalogue that follows the file. What the file lacks and its role has is left in as a
    /// comment: to delete it is the operator's to decide. Old sensors' hubs stand in `legacy_hubs`, and not here.
    pub fn to_yaml(&self) -> String {
        let mut lines: BTreeMap<String, String> = BTreeMap::new();
        let mut add = |name: String, entry: &Entry| {
            let line = host_entry(&name, entry);
            lines.insert(name, line);
        };
        for host in &self.added {
            let new = Entry::new(host.role);
            let ports = if host.ports.is_empty() { new.ports.clone() } else { host.ports.clone() };
            add(host.host.to_string(), &Entry { ports, ..new });
        }
        for (host, entry) in self.kept.iter().chain(&self.unspoken).filter(|(_, entry)| !entry.legacy) {
            add(host.to_string(), entry);
        }
        for PortChange { host, configured, ports } in self.ports.iter().filter(|change| !change.configured.legacy) {
            add(host.to_string(), &Entry { ports: ports.clone(), ..configured.clone() });
        }
        for (domain, entry) in &self.wildcards {
            add(format!("*.{domain}"), entry);
        }
        let mut yaml = String::new();
        push_list(&mut yaml, 0, "hosts", lines.into_values());
        for (host, entry) in &self.removed {
            yaml.push_str(&format!("  # not in the file: - {}\n", host_entry(host.as_str(), entry)));
        }
        yaml
    }
}

/// What a person reads: a summary, then what changes, one host a line.
impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} new, {} gone from the file, {} with other ports, {} unchanged",
            self.added.len(),
            self.removed.len(),
            self.ports.len(),
            self.kept.len() + self.unspoken.len()
        )?;
        for host in &self.added {
            let ports = if host.ports.is_empty() { HTTPS.to_string() } else { joined(&host.ports) };
            write!(f, "\n+ {}  {}  port {ports}  at {}", host.host, host.role.label(), host.place)?;
        }
        for (host, entry) in &self.removed {
            write!(f, "\n- {host}  {}", entry.role.label())?;
        }
        for change in &self.ports {
            let configured = joined(&change.configured.ports);
            write!(f, "\n~ {}  port {configured} configured, {} in the file", change.host, joined(&change.ports))?;
        }
        for (pattern, why) in &self.not_exact {
            write!(f, "\n* {pattern}  {why}")?;
        }
        if self.removed.iter().any(|(_, entry)| entry.role == Role::IotHub) {
            f.write_str(
                "\nAn IoT hub of your own, which sensors of version 10 use, is never in the portal's file: \
                 list it under legacy_hubs while there are any.",
            )?;
        }
        Ok(())
    }
}
