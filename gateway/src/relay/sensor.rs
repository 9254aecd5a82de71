//! Who dialled: a sensor is known by the prefix that it comes from, or by the user that it gives the proxy.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::secret::Secret;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sensor {
    pub name: Arc<str>,
    pub from: Vec<IpNet>,
    pub proxy_user: Option<ProxyUser>,
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

    pub fn identify(&self, source: IpAddr) -> Option<Arc<str>> {
        let source = source.to_canonical();
        self.0
            .iter()
            .flat_map(|sensor| sensor.from.iter().map(move |prefix| (prefix, &sensor.name)))
            .filter(|(prefix, _)| prefix.contains(&source))
            .max_by_key(|(prefix, _)| prefix.prefix_len())
            .map(|(_, name)| Arc::clone(name))
    }

    /// Whether any sensor may be known by its proxy user.
    pub fn any_user(&self) -> bool {
        self.0.iter().any(|sensor| sensor.proxy_user.is_some())
    }

    /// The sensor whose proxy user this is. Every configured user is compared, in constant time.
    pub fn authenticate(&self, user: &str, password: &str) -> Option<Arc<str>> {
        let given = Secret::new(password.to_owned());
        self.0.iter().fold(None, |found, sensor| match &sensor.proxy_user {
            Some(known) if (known.password == given) & (known.name == user) => Some(Arc::clone(&sensor.name)),
            Some(_) | None => found,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sensor(name: &str, from: &str) -> Sensor {
        Sensor { name: name.into(), from: vec![from.parse().expect("a prefix")], proxy_user: None }
    }

    #[test]
    fn the_most_specific_prefix_names_the_sensor() {
        let sensors = Sensors::new(vec![sensor("plant", "10.0.0.0/8"), sensor("line-3", "10.1.2.0/24")]);
        assert_eq!(sensors.identify("10.1.2.3".parse().expect("ip")).as_deref(), Some("line-3"));
        assert_eq!(sensors.identify("10.9.2.3".parse().expect("ip")).as_deref(), Some("plant"));
        assert_eq!(sensors.identify("::ffff:10.1.2.3".parse().expect("ip")).as_deref(), Some("line-3"));
        assert_eq!(sensors.identify("11.0.0.1".parse().expect("ip")), None);
    }

    #[test]
    fn a_proxy_user_names_the_sensor_only_with_its_own_password() {
        let user = |name: &str, password: &str| ProxyUser { name: name.into(), password: Secret::new(password.into()) };
        let sensors = Sensors::new(vec![
            Sensor { proxy_user: Some(user("a", "one")), ..sensor("line-1", "10.1.0.0/16") },
            Sensor { proxy_user: Some(user("b", "two")), ..sensor("line-2", "10.2.0.0/16") },
        ]);
        assert_eq!(sensors.authenticate("b", "two").as_deref(), Some("line-2"));
        assert_eq!(sensors.authenticate("a", "two"), None);
        assert_eq!(sensors.authenticate("a", ""), None);
    }
}
