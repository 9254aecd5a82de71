//! Who dialled: a sensor is known by the prefix that it comes from, by the user that it gives the proxy, by the name in its
//! certificate, or by what a load balancer says of it. Whatever there is must name one sensor: two that disagree are refused.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::policy::Refusal;
use super::proxy_protocol::Attributes;
use super::tls::PeerName;
use crate::secret::Secret;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sensor {
    pub name: Arc<str>,
    pub from: Vec<IpNet>,
    pub proxy_user: Option<ProxyUser>,
    /// Names in client certificates that are this sensor's; compared without case.
    pub client_certificates: Vec<String>,
    /// What a load balancer's PROXY header says of this sensor.
    pub private_link: Option<PrivateLink>,
    /// Sessions at once; none: only the relay's limit.
    pub sessions: Option<usize>,
    /// Another skyway: the sensor that it names is told in the log, and its session's id is taken over.
    pub is_gateway: bool,
}

/// A cloud's private connection, by the id that its load balancer tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PrivateLink {
    /// For example `vpce-08d2bf15fac5001c9`.
    AwsVpcEndpoint(String),
    AzureLinkId(u32),
    GcpPscConnection(u64),
}

/// What is known of who dialled, before it has said anything.
#[derive(Debug, Clone, Copy)]
pub struct Evidence<'a> {
    /// None if a load balancer stands before it and did not say: its own address is no sensor's.
    pub source: Option<IpAddr>,
    pub certificate: Option<&'a PeerName>,
    pub attributes: Option<&'a Attributes>,
}

/// What a sensor's proxy settings hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyUser {
    pub name: String,
    pub password: Secret,
}

/// All sensors; a source address is the sensor's whose prefix is the most specific.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sensors(Vec<Sensor>);

impl Sensors {
    pub const fn new(sensors: Vec<Sensor>) -> Self {
        Self(sensors)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Sensor> {
        self.0.iter()
    }

    /// The sensor that `evidence` names; None if it names none.
    ///
    /// # Errors
    /// [`Refusal::IdentityMismatch`] if two pieces of it name different sensors, [`Refusal::UnknownCertificate`] and
    /// [`Refusal::UnknownPrivateLink`] if a certificate or a private link was shown that is no sensor's.
    pub fn identify(&self, evidence: Evidence<'_>) -> Result<Option<&Sensor>, Refusal> {
        let mut known = evidence.source.and_then(|source| self.by_source(source));
        if let Some(shown) = evidence.certificate {
            let sensor = self.0.iter().find(|sensor| sensor.client_certificates.iter().any(|name| shown.is(name)));
            // A certificate of an authority that the listener trusts says who it is; that it is nobody must not pass.
            known = agree(known, Some(sensor.ok_or(Refusal::UnknownCertificate)?))?;
        }
        if let Some(attributes) = evidence.attributes {
            let named = |sensor: &&Sensor| sensor.private_link.as_ref().is_some_and(|link| link.is_in(attributes));
            let sensor = self.0.iter().find(named);
            // Behind a private link addresses are its owner's to choose: one that is nobody's must not pass by its address.
            if sensor.is_none() && attributes.is_private_link() && self.0.iter().any(|sensor| sensor.private_link.is_some()) {
                return Err(Refusal::UnknownPrivateLink);
            }
            known = agree(known, sensor)?;
        }
        Ok(known)
    }

    fn by_source(&self, source: IpAddr) -> Option<&Sensor> {
        let source = source.to_canonical();
        self.0
            .iter()
            .flat_map(|sensor| sensor.from.iter().map(move |prefix| (prefix, sensor)))
            .filter(|(prefix, _)| prefix.contains(&source))
            .max_by_key(|(prefix, _)| prefix.prefix_len())
            .map(|(_, sensor)| sensor)
    }

    pub fn get(&self, name: &str) -> Option<&Sensor> {
        self.0.iter().find(|sensor| *sensor.name == *name)
    }

    /// Whether any sensor may be known by its proxy user.
    pub fn any_user(&self) -> bool {
        self.0.iter().any(|sensor| sensor.proxy_user.is_some())
    }

    /// The sensor whose proxy user this is. Every configured user is compared, in constant time.
    pub fn authenticate(&self, user: &str, password: &str) -> Option<&Sensor> {
        let given = Secret::new(password.to_owned());
        self.0.iter().fold(None, |found, sensor| match &sensor.proxy_user {
            Some(known) if (known.password == given) & (known.name == user) => Some(sensor),
            Some(_) | None => found,
        })
    }
}

impl Sensor {
    /// A sensor that nothing is known of yet.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            from: Vec::new(),
            proxy_user: None,
            client_certificates: Vec::new(),
            private_link: None,
            sessions: None,
            is_gateway: false,
        }
    }
}

impl PrivateLink {
    fn is_in(&self, attributes: &Attributes) -> bool {
        match self {
            Self::AwsVpcEndpoint(id) => attributes.aws_vpc_endpoint.as_ref() == Some(id),
            Self::AzureLinkId(id) => attributes.azure_link_id == Some(*id),
            Self::GcpPscConnection(id) => attributes.gcp_psc_connection == Some(*id),
        }
    }
}

/// One sensor out of two pieces of evidence.
pub(super) fn agree<'a>(one: Option<&'a Sensor>, other: Option<&'a Sensor>) -> Result<Option<&'a Sensor>, Refusal> {
    match (one, other) {
        (Some(one), Some(other)) if one.name != other.name => Err(Refusal::IdentityMismatch),
        (one, other) => Ok(other.or(one)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sensor(name: &str, from: &str) -> Sensor {
        Sensor { from: vec![from.parse().expect("a prefix")], ..Sensor::new(name) }
    }

    fn name(found: Result<Option<&Sensor>, Refusal>) -> Result<Option<&str>, Refusal> {
        found.map(|sensor| sensor.map(|sensor| &*sensor.name))
    }

    fn at(source: &str) -> Evidence<'static> {
        Evidence { source: Some(source.parse().expect("an address")), certificate: None, attributes: None }
    }

    #[test]
    fn the_most_specific_prefix_names_the_sensor() {
        let sensors = Sensors::new(vec![sensor("plant", "10.0.0.0/8"), sensor("line-3", "10.1.2.0/24")]);
        assert_eq!(name(sensors.identify(at("10.1.2.3"))), Ok(Some("line-3")));
        assert_eq!(name(sensors.identify(at("10.9.2.3"))), Ok(Some("plant")));
        assert_eq!(name(sensors.identify(at("::ffff:10.1.2.3"))), Ok(Some("line-3")));
        assert_eq!(name(sensors.identify(at("11.0.0.1"))), Ok(None));
    }

    #[test]
    fn a_proxy_user_names_the_sensor_only_with_its_own_password() {
        let user = |name: &str, password: &str| ProxyUser { name: name.into(), password: Secret::new(password.into()) };
        let sensors = Sensors::new(vec![
            Sensor { proxy_user: Some(user("a", "one")), ..sensor("line-1", "10.1.0.0/16") },
            Sensor { proxy_user: Some(user("b", "two")), ..sensor("line-2", "10.2.0.0/16") },
        ]);
        assert_eq!(sensors.authenticate("b", "two").map(|sensor| &*sensor.name), Some("line-2"));
        assert_eq!(sensors.authenticate("a", "two"), None);
        assert_eq!(sensors.authenticate("a", ""), None);
    }

    #[test]
    fn what_a_load_balancer_says_names_the_sensor_and_must_agree_with_its_address() {
        let sensors = Sensors::new(vec![
            Sensor { private_link: Some(PrivateLink::AzureLinkId(7)), ..Sensor::new("line-1") },
            Sensor { private_link: Some(PrivateLink::AwsVpcEndpoint("vpce-1".into())), ..sensor("line-2", "10.2.0.0/16") },
        ]);
        let azure = Attributes { azure_link_id: Some(7), ..Attributes::default() };
        let aws = Attributes { aws_vpc_endpoint: Some("vpce-1".into()), ..Attributes::default() };
        let other = Attributes { gcp_psc_connection: Some(7), ..Attributes::default() };
        assert_eq!(name(sensors.identify(Evidence { attributes: Some(&azure), ..at("192.0.2.1") })), Ok(Some("line-1")));
        assert_eq!(name(sensors.identify(Evidence { attributes: Some(&aws), ..at("10.2.0.1") })), Ok(Some("line-2")));
        for source in ["10.2.0.1", "192.0.2.1"] {
            let evidence = Evidence { attributes: Some(&other), ..at(source) };
            assert_eq!(name(sensors.identify(evidence)), Err(Refusal::UnknownPrivateLink), "{source}");
        }
        let nothing = Attributes::default();
        assert_eq!(name(sensors.identify(Evidence { attributes: Some(&nothing), ..at("10.2.0.1") })), Ok(Some("line-2")));
        assert_eq!(name(sensors.identify(Evidence { source: None, ..at("10.2.0.1") })), Ok(None), "the balancer's own address");
        assert_eq!(name(sensors.identify(Evidence { attributes: Some(&azure), ..at("10.2.0.1") })), Err(Refusal::IdentityMismatch));
    }
}
