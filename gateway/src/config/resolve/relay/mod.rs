//! `relay`: who may reach what, by which way, and where they connect. Each part has its file; here they are held together.

mod catalogue;
mod limits;
mod listeners;
mod paths;
mod sensors;

use std::collections::BTreeMap;
use std::path::PathBuf;

use tunnel::{Cloud, TunnelSettings};

use super::super::diagnostic::{Diagnostic, Place};
use super::super::field::Field;
use super::super::raw::{RawRelay, RawSecret};
use super::super::settings::{RelaySettings, UnderlaySettings};
use super::{Context, words};
use crate::relay::chain::Level;
use crate::secret::Secret;

/// The rest of the file, as far as a relay is held against it.
#[derive(Clone, Copy)]
pub(super) struct Around<'a> {
    pub(super) tunnels: &'a [TunnelSettings],
    pub(super) underlays: &'a BTreeMap<String, UnderlaySettings>,
    pub(super) cloud: Cloud,
    pub(super) level: Option<Level>,
}

impl Context<'_> {
    pub(super) fn relay(&mut self, raw: &RawRelay, place: &Field<RawRelay>, around: Around<'_>) -> RelaySettings {
        let (catalogue, probed) = self.catalogue(raw, place);
        let sensors = self.sensors(raw);
        let paths = self.paths(raw, around, &catalogue, probed.as_ref());
        if raw.paths.get().is_none_or(Vec::is_empty) {
            self.report(
                Diagnostic::warning(place, "no path is configured: nothing can leave")
                    .help("for example paths: [{ name: out, via: direct }]"),
            );
        }
        let listeners = self.listeners(raw, around.tunnels);
        self.evidence_is_asked_for(raw);
        let limits = self.limits(raw, around, &paths);
        let name_servers = self.read_all(&raw.name_servers, words::name_server);
        RelaySettings { catalogue, sensors, paths, listeners, limits, name_servers }
    }

    /// What sensors are known by must be something that a listener gets to see.
    fn evidence_is_asked_for(&mut self, raw: &RawRelay) {
        let listeners = || raw.listeners.get().into_iter().flatten().filter_map(Field::get);
        let certificates = listeners().any(|listener| listener.tls.get().is_some_and(|tls| tls.client_ca.is_present()));
        let headers = listeners().any(|listener| listener.proxy_protocol.is_present());
        for sensor in raw.sensors.get().into_iter().flat_map(|entries| &entries.0).filter_map(|entry| entry.value.get()) {
            if sensor.client_certificate.is_present() && !certificates {
                self.report(
                    Diagnostic::warning(&sensor.client_certificate, "no listener asks for client certificates")
                        .help("give a connect listener tls: { certificate, key, client_ca }"),
                );
            }
            if sensor.private_link.is_present() && !headers {
                self.report(
                    Diagnostic::warning(&sensor.private_link, "no listener takes a PROXY header, which alone can tell this")
                        .help("give a connect or sni listener proxy_protocol: [PREFIX], the load balancer's addresses"),
                );
            }
        }
    }

    /// A certificate of our own and its key; `parent` is where both belong.
    fn certificate_and_key(&mut self, certificate: &Field<String>, key: &Field<RawSecret>, parent: Place<'_>) -> Option<(PathBuf, Secret)> {
        certificate.require("certificate", parent, self.diagnostics);
        let secret = key.require("key", parent, self.diagnostics).and_then(|secret| {
            self.secret(secret, key, "write the certificate's private key there as PEM, readable by its owner alone (mode 0600)")
        });
        let certificate = self.file(certificate);
        Some((certificate?, secret?))
    }

    /// Puts it down if a number that must be at least 1 is 0.
    fn is_at_least_one(&mut self, field: &Field<u32>, message: &str) {
        if field.get() == Some(&0) {
            self.report(Diagnostic::error(field, message).expected("1 or more"));
        }
    }
}
