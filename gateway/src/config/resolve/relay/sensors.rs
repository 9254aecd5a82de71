//! `relay.sensors`: what each sensor is known by, and that nothing makes two of them known.

use super::super::super::diagnostic::Diagnostic;
use super::super::super::field::{Field, OneOrMany};
use super::super::super::raw::{RawPrivateLink, RawProxyUser, RawRelay, RawSensor};
use super::super::{Context, words};
use crate::relay::{PrivateLink, ProxyUser, Sensor, Sensors};

impl Context<'_> {
    pub(super) fn sensors(&mut self, raw: &RawRelay) -> Sensors {
        let mut sensors: Vec<Sensor> = Vec::new();
        for entry in raw.sensors.get().into_iter().flat_map(|entries| &entries.0) {
            self.name_is_good(entry, &entry.name, 64);
            let Some(raw) = entry.value.get() else { continue };
            if !raw.from.is_present()
                && !raw.proxy_user.is_present()
                && !raw.client_certificate.is_present()
                && !raw.private_link.is_present()
            {
                self.report(
                    Diagnostic::error(entry, "nothing says how this sensor is recognised").expected(
                        "one or more of from: [PREFIX, …], proxy_user: { name, password }, client_certificate: NAME, private_link",
                    ),
                );
            }
            let sensor = Sensor {
                from: self.read_all(&raw.from, words::prefix),
                proxy_user: raw.proxy_user.get().and_then(|user| {
                    self.proxy_user(
                        user,
                        &raw.proxy_user,
                        "write the sensor's proxy password there, readable by its owner alone (mode 0600)",
                    )
                }),
                client_certificates: self.client_certificates(&raw.client_certificate),
                private_link: raw.private_link.get().and_then(|link| self.private_link(link, &raw.private_link)),
                sessions: raw.sessions.get().map(|sessions| *sessions as usize),
                is_gateway: raw.gateway.get() == Some(&true),
                ..Sensor::new(&entry.name)
            };
            self.is_at_least_one(&raw.sessions, "no session of this sensor could ever begin");
            if sensor.is_gateway && sensor.from.iter().any(|prefix| prefix.prefix_len() == 0) {
                self.report(
                    Diagnostic::error(&raw.from, "anybody could come as this gateway and name any sensor as its own")
                        .help("a gateway is believed: list its own address"),
                );
            }
            self.is_nobody_else(raw, &sensor, &sensors);
            sensors.push(sensor);
        }
        Sensors::new(sensors)
    }

    /// What a sensor is known by must be no other sensor's.
    fn is_nobody_else(&mut self, raw: &RawSensor, sensor: &Sensor, others: &[Sensor]) {
        for prefix in &sensor.from {
            if let Some(other) = others.iter().find(|other| other.from.contains(prefix)) {
                self.report(Diagnostic::error(&raw.from, format!("{prefix} is the sensor {}'s already", other.name)));
            }
        }
        if let Some(user) = &sensor.proxy_user
            && let Some(other) = others.iter().find(|other| other.proxy_user.as_ref().is_some_and(|known| known.name == user.name))
        {
            self.report(Diagnostic::error(&raw.proxy_user, format!("the proxy user {} is the sensor {}'s already", user.name, other.name)));
        }
        for name in &sensor.client_certificates {
            let has_it = |other: &&Sensor| other.client_certificates.iter().any(|known| known.eq_ignore_ascii_case(name));
            if let Some(other) = others.iter().find(has_it) {
                self.report(Diagnostic::error(
                    &raw.client_certificate,
                    format!("certificates for {name} are the sensor {}'s already", other.name),
                ));
            }
        }
        if let Some(link) = &sensor.private_link
            && let Some(other) = others.iter().find(|other| other.private_link.as_ref() == Some(link))
        {
            self.report(Diagnostic::error(&raw.private_link, format!("that is the sensor {}'s already", other.name)));
        }
    }

    /// `make` says how a missing password comes to be.
    pub(super) fn proxy_user(&mut self, raw: &RawProxyUser, place: &Field<RawProxyUser>, make: &str) -> Option<ProxyUser> {
        let name = raw.name.require("name", place, self.diagnostics).cloned();
        let password =
            raw.password.require("password", place, self.diagnostics).and_then(|secret| self.secret(secret, &raw.password, make));
        if name.as_deref().is_some_and(|name| name.is_empty() || name.contains(':')) {
            self.report(
                Diagnostic::error(&raw.name, "not a user name that Basic authentication can carry").expected("some text without a colon"),
            );
        }
        Some(ProxyUser { name: name?, password: password? })
    }

    fn client_certificates(&mut self, field: &Field<OneOrMany>) -> Vec<String> {
        let names: Vec<String> = match field.get() {
            None => return Vec::new(),
            Some(OneOrMany::One(name)) => vec![name.clone()],
            Some(OneOrMany::Many(names)) => names.iter().filter_map(Field::get).cloned().collect(),
        };
        if names.is_empty() || names.iter().any(String::is_empty) {
            self.report(
                Diagnostic::error(field, "not the name in a certificate").expected("a DNS name or a common name, or a list of them"),
            );
        }
        names
    }

    fn private_link(&mut self, raw: &RawPrivateLink, place: &Field<RawPrivateLink>) -> Option<PrivateLink> {
        let written = [raw.aws_vpc_endpoint.is_present(), raw.azure_link_id.is_present(), raw.gcp_psc_connection.is_present()];
        if written.into_iter().filter(|written| *written).count() != 1 {
            self.report(
                Diagnostic::error(place, "not one private connection")
                    .expected("{ aws_vpc_endpoint: vpce-… }, { azure_link_id: NUMBER } or { gcp_psc_connection: NUMBER }"),
            );
            return None;
        }
        if let Some(id) = raw.aws_vpc_endpoint.get()
            && id.strip_prefix("vpce-").is_none_or(|rest| rest.is_empty() || !rest.bytes().all(|byte| byte.is_ascii_alphanumeric()))
        {
            self.report(
                Diagnostic::error(&raw.aws_vpc_endpoint, "not the id of a VPC endpoint").expected("for example vpce-08d2bf15fac5001c9"),
            );
        }
        let links = [
            raw.aws_vpc_endpoint.get().cloned().map(PrivateLink::AwsVpcEndpoint),
            raw.azure_link_id.get().copied().map(PrivateLink::AzureLinkId),
            raw.gcp_psc_connection.get().copied().map(PrivateLink::GcpPscConnection),
        ];
        links.into_iter().flatten().next()
    }
}
