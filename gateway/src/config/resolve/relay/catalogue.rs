//! `relay.catalogue`: hosts, presets, the hubs of old sensors, wildcards, and the service tags that answers are held against.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::super::diagnostic::{Diagnostic, Place, Span};
use super::super::super::field::{Field, ScalarOr};
use super::super::super::raw::{RawCatalogue, RawHost, RawPreset, RawRelay, RawServiceTagMode, RawServiceTags};
use super::super::{Context, words};
use crate::relay::catalogue::{Catalogue, Entry, HTTPS, Role, ServiceTagRule};
use crate::relay::host::{HostName, HostNameError};
use crate::relay::service_tags::ServiceTags;

/// What every sensor of the public cloud reaches under the same name. The other hosts are a customer's own, and Microsoft
/// publishes no name for "Aria".
///
/// Source: Defender for IoT, "Connect your OT sensors": Download Center.
const PUBLIC: &[(&str, Role)] = &[("download.microsoft.com", Role::Download)];
/// No list is published for US Government. Azure's service tags for it are on the public Download Center, which is taken to
/// serve its sensors too.
const US_GOV: &[(&str, Role)] = PUBLIC;

/// The domain of IoT hubs that are named without one.
const HUB_DOMAIN: &str = "azure-devices.net";

/// The hosts found so far.
#[derive(Default)]
struct Found {
    entries: BTreeMap<HostName, Entry>,
    wildcards: BTreeMap<HostName, Entry>,
    /// Where each stands, and whether it is a wildcard.
    places: BTreeMap<(HostName, bool), Span>,
    /// In the order of the file.
    first: Option<HostName>,
    first_hub: Option<HostName>,
}

impl Context<'_> {
    /// With it the host that paths are probed by unless they name another: the file's first IoT hub, else its first host.
    pub(super) fn catalogue(&mut self, raw: &RawRelay, place: &Field<RawRelay>) -> (Catalogue, Option<HostName>) {
        let empty = RawCatalogue::default();
        let raw = raw.catalogue.get().unwrap_or(&empty);
        let mut found = Found::default();
        for field in raw.hosts.get().into_iter().flatten() {
            self.host(field, raw, &mut found);
        }
        for field in raw.legacy_hubs.get().into_iter().flatten() {
            self.legacy_hub(field, &mut found);
        }
        for field in raw.presets.get().into_iter().flatten() {
            self.preset(field, &mut found);
        }
        let says_nothing = raw.hosts.get().is_none_or(Vec::is_empty)
            && raw.legacy_hubs.get().is_none_or(Vec::is_empty)
            && raw.presets.get().is_none_or(Vec::is_empty);
        if found.places.is_empty() && found.entries.is_empty() && says_nothing {
            self.report(
                Diagnostic::warning(place, "the catalogue is empty: no host can be reached")
                    .help("list the hosts of the portal's endpoint details"),
            );
        }
        let mut catalogue = Catalogue::new(found.entries, found.wildcards);
        catalogue.service_tags = raw.service_tags.get().and_then(|tags| self.service_tags(tags, &raw.service_tags));
        (catalogue, found.first_hub.or(found.first))
    }

    fn host(&mut self, field: &Field<ScalarOr<RawHost>>, catalogue: &RawCatalogue, found: &mut Found) {
        let bare = RawHost::default();
        let (name, raw) = match field.get() {
            None => return,
            Some(ScalarOr::Scalar(name)) => (name, &bare),
            Some(ScalarOr::Mapping(host)) => match host.host.require("host", field, self.diagnostics) {
                Some(name) => (name, host),
                None => return,
            },
        };
        let place = if raw.host.is_present() { Place::from(&raw.host) } else { Place::from(field) };
        let domain = name.strip_prefix("*.");
        let host = match HostName::parse(domain.unwrap_or(name)) {
            Ok(host) => host,
            Err(error) => return self.bad_host(place, name, &error),
        };
        // What a wildcard is for, one of its hosts tells.
        let example = domain.and_then(|domain| HostName::parse(&format!("any.{domain}")).ok());
        let entry = self.entry(raw, Role::guess(example.as_ref().unwrap_or(&host)));
        if domain.is_some() && !self.wildcard(place, &host, raw, catalogue) {
            return;
        }
        self.add(place, host, domain.is_some(), entry, found);
    }

    fn add(&mut self, place: Place<'_>, host: HostName, is_wildcard: bool, entry: Entry, found: &mut Found) {
        let key = (host.clone(), is_wildcard);
        if let Some(first) = found.places.get(&key) {
            let diagnostic = Diagnostic::error(place, "the host is listed twice").value(host.to_string());
            self.report(diagnostic.related(*first, "first listed here"));
            return;
        }
        found.places.insert(key, place.span);
        if is_wildcard {
            found.wildcards.insert(host, entry);
            return;
        }
        if entry.role == Role::IotHub && found.first_hub.is_none() {
            found.first_hub = Some(host.clone());
        }
        found.first.get_or_insert_with(|| host.clone());
        found.entries.insert(host, entry);
    }

    fn bad_host(&mut self, place: Place<'_>, name: &str, error: &HostNameError) {
        let diagnostic = if name.contains('*') || name.starts_with('.') {
            Diagnostic::error(place, "neither an exact host nor a wildcard for one label")
                .expected("a host such as contoso-hub.azure-devices.net; with allow_tenant_wildcard: true also *.DOMAIN")
        } else {
            Diagnostic::error(place, error.to_string()).expected("a host name such as contoso-hub.azure-devices.net")
        };
        self.report(diagnostic.value(name.to_owned()));
    }

    /// Whether a wildcard over `domain` may stand there; it warns also then.
    fn wildcard(&mut self, place: Place<'_>, domain: &HostName, raw: &RawHost, catalogue: &RawCatalogue) -> bool {
        if catalogue.allow_tenant_wildcard.get() != Some(&true) {
            self.report(Diagnostic::error(place, "a wildcard takes allow_tenant_wildcard: true").help(
                "list exact hosts instead, those of the portal's endpoint details: \
                     a wildcard over a cloud's shared domain opens every other tenant's storage to a sensor",
            ));
            return false;
        }
        if domain.parent().is_none() {
            self.report(
                Diagnostic::error(place, "that would be every host of a top-level domain").expected("a domain of two labels or more"),
            );
            return false;
        }
        if raw.addresses.is_present() {
            self.report(
                Diagnostic::error(&raw.addresses, "one address for every host of a domain")
                    .help("list the hosts that are there, each with its addresses"),
            );
        }
        let enforced = catalogue.service_tags.get().is_some_and(|tags| tags.mode.get() == Some(&RawServiceTagMode::Enforce));
        let tags = if enforced { "\nservice_tags do not help: the other tenants' hosts lie in the same prefixes" } else { "" };
        let help = "whoever gets hold of a sensor can carry data out to a tenant of their own; list the portal's exact hosts instead";
        self.report(
            Diagnostic::warning(place, format!("every host of {domain} can be reached, those of other tenants too"))
                .help(format!("{help}{tags}")),
        );
        true
    }

    fn entry(&mut self, raw: &RawHost, guessed: Role) -> Entry {
        let role = match raw.role.get() {
            None => guessed,
            Some(word) => Role::ALL.iter().copied().find(|role| role.label() == word).unwrap_or_else(|| {
                let labels: Vec<&str> = Role::ALL.iter().map(|role| role.label()).collect();
                self.report(Diagnostic::error(&raw.role, "not a role").value(word.clone()).one_of(word, &labels));
                Role::Other
            }),
        };
        let ports: Vec<u16> = raw.ports.get().into_iter().flatten().filter_map(|port| port.get().copied()).collect();
        if ports.contains(&0) || raw.ports.get().is_some_and(Vec::is_empty) {
            self.report(Diagnostic::error(&raw.ports, "not a list of ports").expected("for example [443]"));
        }
        let ports = if ports.is_empty() { vec![HTTPS] } else { ports };
        let (allow, addresses) = (self.read_all(&raw.allow, words::prefix), self.read_all(&raw.addresses, words::address));
        Entry { ports, allow, addresses, ..Entry::new(role) }
    }

    /// A hub of the customer's own, which sensors of version 10 reach; its name is enough.
    fn legacy_hub(&mut self, field: &Field<String>, found: &mut Found) {
        let Some(name) = field.get() else { return };
        let full = if name.contains('.') { name.clone() } else { format!("{name}.{HUB_DOMAIN}") };
        match HostName::parse(&full) {
            Ok(host) if Role::guess(&host) == Role::IotHub => {
                let entry = Entry { legacy: true, ..Entry::new(Role::IotHub) };
                self.add(Place::from(field), host, false, entry, found);
            }
            Ok(_) | Err(_) => self.report(
                Diagnostic::error(field, "not an IoT hub")
                    .value(name.clone())
                    .expected(format!("its name such as contoso-hub, or contoso-hub.{HUB_DOMAIN}")),
            ),
        }
    }

    /// What the file says of a host itself stands.
    fn preset(&mut self, field: &Field<RawPreset>, found: &mut Found) {
        let hosts = match field.get() {
            None => return,
            Some(RawPreset::DefenderPublic) => PUBLIC,
            Some(RawPreset::DefenderUsGov) => {
                self.report(
                    Diagnostic::warning(field, "this preset is derived: Microsoft publishes no list for US Government")
                        .help("hold it against the endpoint details of your portal: skyway import endpoints FILE"),
                );
                US_GOV
            }
        };
        for (name, role) in hosts {
            let Ok(host) = HostName::parse(name) else { continue };
            found.first.get_or_insert_with(|| host.clone());
            found.entries.entry(host).or_insert_with(|| Entry::new(*role));
        }
    }

    fn service_tags(&mut self, raw: &RawServiceTags, place: &Field<RawServiceTags>) -> Option<ServiceTagRule> {
        let enforce = match raw.mode.get() {
            Some(RawServiceTagMode::Off) => return None,
            Some(RawServiceTagMode::Enforce) => true,
            Some(RawServiceTagMode::Warn) | None => false,
        };
        raw.file.require("file", place, self.diagnostics);
        let path = self.file(&raw.file)?;
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) => {
                self.report(
                    Diagnostic::error(&raw.file, format!("{} cannot be read: {error}", path.display()))
                        .help("it is Microsoft's ServiceTags_Public.json: www.microsoft.com/download/details.aspx?id=56519"),
                );
                return None;
            }
        };
        match ServiceTags::parse(&text) {
            Ok(tags) => Some(ServiceTagRule { tags: Arc::new(tags), enforce }),
            Err(error) => {
                self.report(Diagnostic::error(&raw.file, error.to_string()));
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_hold_exact_hosts() {
        for (name, _) in PUBLIC.iter().chain(US_GOV) {
            assert_eq!(HostName::parse(name).expect("a host name").as_str(), *name);
        }
    }
}
