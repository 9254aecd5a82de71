//! What gateways of one chain tell each other about a session: its id, whose it is, and who has carried it so far.
//!
//! One field of a CONNECT, `Skyway-Session`, and one of its answer, `Skyway-Via`. With them both gateways' logs join on the
//! id, the second knows the sensor by name, and a chain that leads back to where it came from is found at its first turn.
//! Nobody but a configured gateway is believed; towards other proxies the field is not sent, since it names sensors.
//!
//! ```text
//!  Skyway-Session: 5f3a9c01-42; sensor=line-3; via=plant-a,site-b; level=3
//!  Skyway-Via: vnet-a,vnet-b                  (who answers, and whom it asked in turn)
//! ```

use std::fmt;

use super::proxy_protocol::{is_sensor_name, is_session_id};

/// The field of a CONNECT.
pub(super) const SESSION_FIELD: &str = "Skyway-Session";
/// The field of its answer.
pub(super) const VIA_FIELD: &str = "Skyway-Via";
/// Gateways in a chain; the Purdue model has seven levels.
const MOST_GATEWAYS: usize = 8;

/// A level of the Purdue model: 0 to 5, and 3.5 for the zone between plant and enterprise.
///
/// Source: ISA-99 / IEC 62443 reference model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Level(u8);

impl Level {
    /// In tenths, from the plant floor upwards.
    const ALL: [u8; 7] = [0, 10, 20, 30, 35, 40, 50];

    pub fn parse(text: &str) -> Option<Self> {
        let tenths = match text.split_once('.') {
            None => text.parse::<u8>().ok()?.checked_mul(10)?,
            Some((whole, tenth)) if tenth.len() == 1 => whole.parse::<u8>().ok()?.checked_mul(10)?.checked_add(tenth.parse().ok()?)?,
            Some(_) => return None,
        };
        Self::ALL.contains(&tenths).then_some(Self(tenths))
    }

    /// Whether a chain may lead from here to `next`: one level up, or across.
    pub fn leads_to(self, next: Self) -> bool {
        let at = |level: Self| Self::ALL.iter().position(|known| *known == level.0).unwrap_or_default();
        matches!(at(next).checked_sub(at(self)), Some(0 | 1))
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 % 10 {
            0 => write!(f, "{}", self.0 / 10),
            tenth => write!(f, "{}.{tenth}", self.0 / 10),
        }
    }
}

/// What one gateway tells the next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Passage {
    pub session: String,
    pub sensor: Option<String>,
    /// Gateways that have carried it, the first first.
    pub via: Vec<String>,
    pub level: Option<Level>,
}

impl Passage {
    /// Reads the field's value. None if it is not well formed: it is then as if there were none.
    pub(super) fn parse(value: &[u8]) -> Option<Self> {
        let mut parts = str::from_utf8(value).ok()?.split(';').map(str::trim);
        let session = parts.next().filter(|id| is_session_id(id))?.to_owned();
        let mut passage = Self { session, ..Self::default() };
        for part in parts {
            match part.split_once('=')? {
                ("sensor", name) if is_sensor_name(name) => passage.sensor = Some(name.to_owned()),
                ("via", names) => passage.via = parse_names(names)?,
                ("level", level) => passage.level = Some(Level::parse(level)?),
                ("sensor", _) => return None,
                // A later version may have more to say.
                _ => {}
            }
        }
        Some(passage)
    }
}

impl fmt::Display for Passage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.session)?;
        if let Some(sensor) = &self.sensor {
            write!(f, "; sensor={sensor}")?;
        }
        if !self.via.is_empty() {
            write!(f, "; via={}", self.via.join(","))?;
        }
        if let Some(level) = self.level {
            write!(f, "; level={level}")?;
        }
        Ok(())
    }
}

/// Names of gateways, separated by commas.
pub(super) fn parse_names(text: &str) -> Option<Vec<String>> {
    let names: Vec<String> = text.split(',').map(|name| name.trim().to_owned()).collect();
    (names.len() <= MOST_GATEWAYS && names.iter().all(|name| is_sensor_name(name))).then_some(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for passage in [
            Passage { session: "5f3a-1".into(), ..Passage::default() },
            Passage {
                session: "5f3a-2".into(),
                sensor: Some("line-3".into()),
                via: vec!["plant-a".into(), "site-b".into()],
                level: Level::parse("3.5"),
            },
        ] {
            assert_eq!(Passage::parse(passage.to_string().as_bytes()), Some(passage));
        }
    }

    #[test]
    fn a_field_that_is_not_well_formed_is_none() {
        let long = format!("id; via={}", ["a"; MOST_GATEWAYS + 1].join(","));
        for value in
            ["", ";", "two words", "id; sensor=", "id; sensor=a b", "id; via=,", "id; level=3.2", "id; level=9", "id; loose", &long]
        {
            assert_eq!(Passage::parse(value.as_bytes()), None, "{value:?}");
        }
        assert_eq!(Passage::parse(b"id; later=x").map(|passage| passage.session), Some("id".into()));
    }

    #[test]
    fn a_chain_climbs_one_level_at_a_time_and_never_down() {
        let level = |text| Level::parse(text).expect("a level");
        assert!(level("2").leads_to(level("3")) && level("3").leads_to(level("3.5")) && level("3.5").leads_to(level("4")));
        assert!(level("3").leads_to(level("3")));
        assert!(!level("3").leads_to(level("4")) && !level("4").leads_to(level("3.5")) && !level("2").leads_to(level("3.5")));
        assert_eq!(level("3.5").to_string(), "3.5");
        assert_eq!((Level::parse("6"), Level::parse("3.55"), Level::parse("-1"), Level::parse("25.6")), (None, None, None, None));
    }
}
