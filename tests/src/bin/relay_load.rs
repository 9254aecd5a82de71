//! The load of the relay bench, and the hosts behind the relay. Its addresses are those of the bench's namespaces.
//!
//! ```text
//! relay_load backend
//! relay_load rate    --via sni|connect|direct --seconds S --concurrent N [--watch PID,…]
//! relay_load latency --via … --seconds S --sessions N --rate PINGS_A_SECOND [--watch PID,…]
//! relay_load bulk    --via … --seconds S --sessions N --way up|down [--watch PID,…]
//! relay_load hold    --via … --seconds S --sessions N
//! ```
//! Each load prints what it has measured, a JSON object, with the CPU time that the watched processes took meanwhile.

use std::collections::HashMap;
use std::env;
use std::io::{self, Write};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tests::bench_relay::generator::backend::Backend;
use tests::bench_relay::generator::bulk::{Bulk, Way};
use tests::bench_relay::generator::hold::Hold;
use tests::bench_relay::generator::latency::Latency;
use tests::bench_relay::generator::rate::Rate;
use tests::bench_relay::generator::session::Via;

/// What follows the name of a load.
struct Words(HashMap<String, String>);

fn main() -> Result<()> {
    let mut words = env::args().skip(1);
    let load = words.next().context("which load? backend, rate, latency, bulk or hold")?;
    let words = Words::read(words)?;
    let report: Value = match load.as_str() {
        "backend" => return Backend::bind()?.run(),
        "rate" => {
            Rate { via: words.via()?, time: words.time()?, concurrent: words.number("--concurrent")?, watched: words.watched()? }.run()
        }
        "latency" => Latency {
            via: words.via()?,
            time: words.time()?,
            sessions: words.number("--sessions")?,
            rate: u32::try_from(words.number("--rate")?)?,
            watched: words.watched()?,
        }
        .run(),
        "bulk" => Bulk {
            via: words.via()?,
            way: Way::from_name(words.get("--way")?)?,
            time: words.time()?,
            sessions: words.number("--sessions")?,
            watched: words.watched()?,
        }
        .run(),
        "hold" => Hold { via: words.via()?, sessions: words.number("--sessions")?, time: words.time()? }.run(),
        _ => bail!("{load:?} is no load"),
    }?;
    writeln!(io::stdout(), "{report}").context("stdout")
}

impl Words {
    fn read(words: impl Iterator<Item = String>) -> Result<Self> {
        let words: Vec<String> = words.collect();
        let mut read = HashMap::new();
        for pair in words.chunks(2) {
            let [name, value] = pair else { bail!("{pair:?} has no value") };
            ensure!(name.starts_with("--"), "{name:?} is no option");
            read.insert(name.clone(), value.clone());
        }
        Ok(Self(read))
    }

    fn get(&self, name: &str) -> Result<&str> {
        self.0.get(name).map(String::as_str).with_context(|| format!("{name} is missing"))
    }

    fn via(&self) -> Result<Via> {
        Via::from_name(self.get("--via")?)
    }

    fn time(&self) -> Result<Duration> {
        Ok(Duration::from_secs(self.number("--seconds")? as u64))
    }

    fn number(&self, name: &str) -> Result<usize> {
        let number: usize = self.get(name)?.parse().with_context(|| name.to_owned())?;
        ensure!(number > 0, "{name} 0 is nothing");
        Ok(number)
    }

    /// None if there are none to watch.
    fn watched(&self) -> Result<Vec<u32>> {
        let listed = self.0.get("--watch").map_or("", String::as_str);
        listed.split(',').filter(|word| !word.is_empty()).map(|word| word.parse().context("--watch")).collect()
    }
}
