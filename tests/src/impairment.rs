//! A wire between two namespaces that loses, doubles, reorders, delays, corrupts and records what it carries.
//!
//! ```text
//!  here eth0 ─── west  router: impair  east ─── eth0 there
//!                 a    ab ──────────►    b
//!                      ◄────────── ba
//! ```
//! The program `impair` (bin/impair.rs) copies frames between two interfaces, `a` and `b` for short; this is its other end: what it
//! can be told ([`Settings`], [`Replay`], flaps), what it has counted ([`Counters`]), and [`Impairment`], which starts it
//! and talks with it while it runs.
//!
//! Only UDP from or to the ports of a tunnel is impaired, each datagram by itself; all else passes, address resolution
//! above all. Everything follows from a seed. Which datagram meets which number still depends on
//! the order in which they come.
//!
//! One line to it, one line back, that begins with `ok` or `error`:
//!
//! | line | does |
//! |---|---|
//! | `both\|ab\|ba WORD…` | puts these settings, see [`Settings`], in the place of all that stood |
//! | `counters` | `ok {"ab":{…},"ba":{…},"flaps_left":0}` |
//! | `flap TIMES DOWN_MS UP_MS` | goes down for so long, then up for so long, so many times; answers at once |
//! | `record COUNT` | forgets what was recorded and records the next so many datagrams of each direction |
//! | `replay ab\|ba WORD…` | sends recorded datagrams of that direction again, see [`Replay`]; `ok COUNT` |

use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;
use std::{env, thread};

use serde_json::{Value, json};

use crate::netns::Namespace;
use crate::{seconds, wait_for};

/// Which way a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// In by `west`, out by `east`.
    Ab,
    Ba,
}

/// What happens to datagrams of one direction. Probabilities are from 0 to 1 and independent of each other.
///
/// As words: `loss=0.05 duplicate=0.1 reorder=0.1:16 corrupt=0.01 delay_ms=20 jitter_ms=5 drop_larger=1296 down=true
/// rate_bps_per_flow=8000000`; what is not named is off.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    pub loss: f64,
    pub duplicate: f64,
    /// To be held back until `depth` later ones have passed, or for a second.
    pub reorder: f64,
    pub depth: u64,
    /// To have one bit of its payload changed. Its checksum is made right again, so that it is delivered.
    pub corrupt: f64,
    pub delay: Duration,
    /// Up to so much more delay, evenly distributed; so later ones may overtake.
    pub jitter: Duration,
    /// Swallows what is longer, without a word to anybody: bytes of the IP packet, header included.
    pub drop_larger: Option<usize>,
    /// Swallows every frame, of whatever kind.
    pub down: bool,
    /// Bits per second of IP for each pair of addresses and ports; more is dropped.
    pub rate_bps_per_flow: Option<u64>,
}

/// What befell the frames of one direction so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// Datagrams of a tunnel that came in, by the type of the WireGuard message, 1 to 4.
    pub initiations: u64,
    pub responses: u64,
    pub cookies: u64,
    pub data: u64,
    /// Datagrams that went out, copies included.
    pub passed: u64,
    pub lost: u64,
    pub duplicated: u64,
    pub reordered: u64,
    pub corrupted: u64,
    pub too_large: u64,
    pub over_rate: u64,
    /// Frames of any kind while the wire was down.
    pub down: u64,
    /// Frames that are none of a tunnel's, and passed.
    pub other: u64,
    pub replayed: u64,
    /// The kernel did not take it. Should be zero, or the wire has a fault that nobody asked for.
    pub unsent: u64,
    /// Several datagrams in one frame. Should be zero: the interfaces forbid it.
    pub super_frames: u64,
}

/// Which of the recorded datagrams are sent again, and how. As words: `kind=4 times=200 at_most=1 from=192.0.2.77:4444
/// to_port=51821`; only `kind` must be there. None of the settings acts on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replay {
    /// Of the WireGuard message: 1 initiation, 2 response, 3 cookie, 4 data.
    pub kind: u8,
    pub times: u32,
    /// The first so many of them.
    pub at_most: usize,
    /// Another source than it had.
    pub from: Option<SocketAddr>,
    /// Another destination port than it had.
    pub to_port: Option<u16>,
}

pub const INITIATION: u8 = 1;
pub const RESPONSE: u8 = 2;
pub const COOKIE: u8 = 3;
pub const DATA: u8 = 4;

/// Ports whose datagrams are impaired: those of tunnels, lanes included.
pub const PORTS: std::ops::RangeInclusive<u16> = 51_820..=51_835;

/// The program answers at once, unless the machine is very busy.
const ANSWER: Duration = seconds(20);

/// A running `impair`. Dropping it ends the program and so cuts the wire.
#[derive(Debug)]
pub struct Impairment {
    child: Child,
    talk: Mutex<Talk>,
}

#[derive(Debug)]
struct Talk {
    questions: ChildStdin,
    answers: Receiver<String>,
}

impl Impairment {
    /// Starts it inside `router`, whose interfaces `west` and `east` are up. It harms nothing before it is told to.
    #[track_caller]
    pub fn start(router: &Namespace, seed: u64) -> Self {
        let program = own_program("impair");
        let mut command = router.command(&[]);
        command.arg(program).arg(format!("--seed={seed}")).args(["west", "east"]);
        // What it has to say in its last words goes to where the tests' own go.
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn();
        let mut child = child.unwrap_or_else(|error| panic!("impair does not start: {error}"));
        let questions = child.stdin.take().expect("a pipe was asked for");
        let output = child.stdout.take().expect("a pipe was asked for");
        let (sender, answers) = mpsc::channel();
        thread::spawn(move || {
            // Ends when the program does.
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let impairment = Self { child, talk: Mutex::new(Talk { questions, answers }) };
        // It reads lines once both sockets are open.
        impairment.ask("both");
        impairment
    }

    /// The same settings both ways.
    #[track_caller]
    pub fn both(&self, settings: Settings) {
        self.ask(&format!("both {settings}"));
    }

    #[track_caller]
    pub fn one_way(&self, direction: Direction, settings: Settings) {
        self.ask(&format!("{direction} {settings}"));
    }

    /// Nothing is harmed any more; what is held back or delayed still goes out.
    #[track_caller]
    pub fn clean(&self) {
        self.both(Settings::CLEAN);
    }

    #[track_caller]
    pub fn counters(&self, direction: Direction) -> Counters {
        Counters::of_json(&self.all_counters()[direction.to_string()])
    }

    /// Down for `down`, then up for `up`, `times` times, both ways. Returns at once.
    #[track_caller]
    pub fn flap(&self, times: u32, down: Duration, up: Duration) {
        self.ask(&format!("flap {times} {} {}", down.as_millis(), up.as_millis()));
    }

    /// Waits until the last flap is over and the wire is up.
    #[track_caller]
    pub fn wait_until_flaps_are_over(&self, within: Duration) {
        wait_for("the wire flaps no more", within, || self.all_counters()["flaps_left"] == 0);
    }

    /// Forgets what was recorded, and records up to `count` datagrams each way.
    #[track_caller]
    pub fn record(&self, count: usize) {
        self.ask(&format!("record {count}"));
    }

    /// Sends what was recorded in `direction` once more; returns how many that were.
    #[track_caller]
    pub fn replay(&self, direction: Direction, replay: Replay) -> u64 {
        let answer = self.ask(&format!("replay {direction} {replay}"));
        answer.parse().unwrap_or_else(|_| panic!("impair replays {answer:?}"))
    }

    #[track_caller]
    fn all_counters(&self) -> Value {
        let answer = self.ask("counters");
        serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{error}: {answer}"))
    }

    #[track_caller]
    fn ask(&self, line: &str) -> String {
        let mut talk = self.talk.lock().expect("no thread panics with it");
        // A program that has ended is found out by the answer that does not come.
        let _broken = writeln!(talk.questions, "{line}");
        let answer = talk.answers.recv_timeout(ANSWER);
        drop(talk);
        match answer.as_deref().map(|answer| answer.strip_prefix("ok")) {
            Ok(Some(answer)) => answer.trim().to_owned(),
            refused => panic!("impair on {line:?}: {refused:?} {answer:?}"),
        }
    }
}

impl Drop for Impairment {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _status = self.child.wait();
    }
}

/// A program of this crate (src/bin), which cargo builds together with the suites.
#[track_caller]
pub fn own_program(name: &str) -> PathBuf {
    let tests = env::current_exe().expect("the path of these tests");
    let beside = tests.parent().and_then(Path::parent).map(|folder| folder.join(name));
    let beside = beside.expect("cargo puts tests into target/PROFILE/deps");
    assert!(beside.is_file(), "{} is not there: run `cargo build -p tests --bins`", beside.display());
    beside
}

impl Direction {
    pub const BOTH: [Self; 2] = [Self::Ab, Self::Ba];

    /// The directions that a word of the line protocol names.
    pub fn of_word(word: &str) -> Option<&'static [Self]> {
        match word {
            "both" => Some(&Self::BOTH),
            "ab" => Some(&[Self::Ab]),
            "ba" => Some(&[Self::Ba]),
            _ => None,
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ab => "ab",
            Self::Ba => "ba",
        })
    }
}

impl Settings {
    pub const CLEAN: Self = Self {
        loss: 0.0,
        duplicate: 0.0,
        reorder: 0.0,
        depth: 1,
        corrupt: 0.0,
        delay: Duration::ZERO,
        jitter: Duration::ZERO,
        drop_larger: None,
        down: false,
        rate_bps_per_flow: None,
    };

    /// Reads words `name=value`. Err: the word that is none of them.
    pub fn of_words<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let mut settings = Self::CLEAN;
        for word in words {
            settings.read(word).ok_or_else(|| word.to_owned())?;
        }
        Ok(settings)
    }

    fn read(&mut self, word: &str) -> Option<()> {
        let (name, value) = word.split_once('=')?;
        match name {
            "loss" => self.loss = probability(value)?,
            "duplicate" => self.duplicate = probability(value)?,
            "reorder" => {
                let (share, depth) = value.split_once(':')?;
                (self.reorder, self.depth) = (probability(share)?, depth.parse().ok()?);
            }
            "corrupt" => self.corrupt = probability(value)?,
            "delay_ms" => self.delay = Duration::from_millis(value.parse().ok()?),
            "jitter_ms" => self.jitter = Duration::from_millis(value.parse().ok()?),
            "drop_larger" => self.drop_larger = Some(value.parse().ok()?),
            "down" => self.down = value.parse().ok()?,
            "rate_bps_per_flow" => self.rate_bps_per_flow = Some(value.parse().ok()?),
            _ => return None,
        }
        Some(())
    }
}

fn probability(text: &str) -> Option<f64> {
    text.parse().ok().filter(|value| (0.0..=1.0).contains(value))
}

/// The words that [`Settings::of_words`] reads.
impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { loss, duplicate, reorder, depth, corrupt, delay, jitter, drop_larger, down, rate_bps_per_flow } = self;
        write!(f, "loss={loss} duplicate={duplicate} reorder={reorder}:{depth} corrupt={corrupt}")?;
        write!(f, " delay_ms={} jitter_ms={} down={down}", delay.as_millis(), jitter.as_millis())?;
        if let Some(bytes) = drop_larger {
            write!(f, " drop_larger={bytes}")?;
        }
        if let Some(rate) = rate_bps_per_flow {
            write!(f, " rate_bps_per_flow={rate}")?;
        }
        Ok(())
    }
}

impl Replay {
    pub const fn of_kind(kind: u8) -> Self {
        Self { kind, times: 1, at_most: usize::MAX, from: None, to_port: None }
    }

    /// Reads words `name=value`. Err: what is wrong with them.
    pub fn of_words<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let mut replay = Self::of_kind(0);
        for word in words {
            replay.read(word).ok_or_else(|| word.to_owned())?;
        }
        if replay.kind == 0 { Err("no kind".to_owned()) } else { Ok(replay) }
    }

    fn read(&mut self, word: &str) -> Option<()> {
        let (name, value) = word.split_once('=')?;
        match name {
            "kind" => self.kind = value.parse().ok()?,
            "times" => self.times = value.parse().ok()?,
            "at_most" => self.at_most = value.parse().ok()?,
            "from" => self.from = Some(value.parse().ok()?),
            "to_port" => self.to_port = Some(value.parse().ok()?),
            _ => return None,
        }
        Some(())
    }
}

/// The words that [`Replay::of_words`] reads.
impl fmt::Display for Replay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kind={} times={} at_most={}", self.kind, self.times, self.at_most)?;
        if let Some(from) = self.from {
            write!(f, " from={from}")?;
        }
        if let Some(port) = self.to_port {
            write!(f, " to_port={port}")?;
        }
        Ok(())
    }
}

impl Counters {
    pub fn to_json(&self) -> Value {
        json!({
            "initiations": self.initiations,
            "responses": self.responses,
            "cookies": self.cookies,
            "data": self.data,
            "passed": self.passed,
            "lost": self.lost,
            "duplicated": self.duplicated,
            "reordered": self.reordered,
            "corrupted": self.corrupted,
            "too_large": self.too_large,
            "over_rate": self.over_rate,
            "down": self.down,
            "other": self.other,
            "replayed": self.replayed,
            "unsent": self.unsent,
            "super_frames": self.super_frames,
        })
    }

    #[track_caller]
    pub fn of_json(json: &Value) -> Self {
        let read = |name: &str| json[name].as_u64().unwrap_or_else(|| panic!("no counter {name} in {json}"));
        Self {
            initiations: read("initiations"),
            responses: read("responses"),
            cookies: read("cookies"),
            data: read("data"),
            passed: read("passed"),
            lost: read("lost"),
            duplicated: read("duplicated"),
            reordered: read("reordered"),
            corrupted: read("corrupted"),
            too_large: read("too_large"),
            over_rate: read("over_rate"),
            down: read("down"),
            other: read("other"),
            replayed: read("replayed"),
            unsent: read("unsent"),
            super_frames: read("super_frames"),
        }
    }

    /// One more datagram came in, of this type of WireGuard message.
    pub const fn count_kind(&mut self, kind: u8) {
        match kind {
            INITIATION => self.initiations += 1,
            RESPONSE => self.responses += 1,
            COOKIE => self.cookies += 1,
            DATA => self.data += 1,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_as_they_are_written() {
        let settings = Settings {
            loss: 0.05,
            duplicate: 0.25,
            reorder: 0.1,
            depth: 16,
            corrupt: 0.01,
            delay: Duration::from_millis(20),
            jitter: Duration::from_millis(5),
            drop_larger: Some(1296),
            down: true,
            rate_bps_per_flow: Some(8_000_000),
        };
        for settings in [settings, Settings::CLEAN] {
            assert_eq!(Settings::of_words(settings.to_string().split(' ')), Ok(settings));
        }
    }

    #[test]
    fn a_word_that_means_nothing_is_named() {
        for word in ["los=0.1", "loss=2", "loss", "reorder=0.1", "down=1"] {
            assert_eq!(Settings::of_words(["delay_ms=1", word]), Err(word.to_owned()));
        }
    }

    #[test]
    fn a_replay_is_read_as_it_is_written() {
        let from = Some("192.0.2.77:4444".parse().expect("an address"));
        let replay = Replay { times: 200, at_most: 1, from, to_port: Some(51821), ..Replay::of_kind(DATA) };
        for replay in [replay, Replay::of_kind(INITIATION)] {
            assert_eq!(Replay::of_words(replay.to_string().split(' ')), Ok(replay));
        }
        assert!(Replay::of_words(["times=2"]).is_err());
    }

    #[test]
    fn counters_are_read_as_they_are_written() {
        let mut counters = Counters { lost: 3, super_frames: 1, ..Counters::default() };
        counters.count_kind(DATA);
        counters.count_kind(9);
        assert_eq!(Counters::of_json(&counters.to_json()), counters);
        assert_eq!(counters.data, 1);
    }
}
