//! The portal's "endpoint details": the hosts that a subscription's Defender sensors need.
//!
//! Defender for IoT, *Sites and sensors > More actions > Download endpoint details* gives a JSON file whose shape is not
//! documented and has no reason to stay. So every string in it is looked at, and every key: what is a host name, a URL or
//! HOST:PORT is kept with its place in the file; names of services beside it or above it say what it is for when its
//! domain does not. A list with a host a line, and CSV, are read the same way.
//!
//! What is taken here ends in an allow list, so the doubtful is left out and told: addresses, wildcards (they would open
//! other tenants' names), names within sentences, names of files and types. A number is a port only where it is called
//! one, or stands behind a colon.
//!
//! Deliberately not here: reading files, and editing the YAML. [`difference()`] says what would change, and writes the list.

mod difference;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde_json::{Map, Value};

use super::{is_below, is_shared, shown};
use crate::relay::HostName;
use crate::relay::catalogue::Role;
use crate::relay::host::HostNameError;

pub use difference::{Configured, Difference, PortChange, difference};

/// Reads `text`: JSON if it begins with a brace or a bracket, else lines and commas.
///
/// No host at all is no error: the wildcards, and what was ignored and why, are told all the same. Of two equal keys in
/// one JSON object the last counts.
pub fn endpoints(text: &str) -> Result<Imported, ImportError> {
    if text.len() > MAX_TEXT_BYTES {
        return Err(ImportError::TooLarge);
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut collector = Collector::default();
    if text.trim_start().starts_with(['{', '[']) {
        measure(text)?;
        let root: Value = serde_json::from_str(text).map_err(ImportError::Json)?;
        collector.value(&root, &Context::default())?;
    } else {
        collector.lines(text)?;
    }
    Ok(collector.finish())
}

/// What a file names, sorted and each only once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Imported {
    pub hosts: Vec<ImportedHost>,
    /// A pattern, and why it is none of the hosts.
    pub wildcards: Vec<(String, String)>,
    /// The place of something that looked like a host, and why it is none. The first thousand.
    pub ignored: Vec<(String, String)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportedHost {
    pub host: HostName,
    pub role: Role,
    /// Sorted; empty if the file gives none, which means 443.
    pub ports: Vec<u16>,
    /// Where it stands first: `endpoints[0].fqdn` or `line 3`.
    pub place: String,
}

/// Why a text is not taken.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("the file is larger than {} MiB", MAX_TEXT_BYTES >> 20)]
    TooLarge,
    #[error("the JSON is nested more than {} deep", MAX_DEPTH)]
    TooDeep,
    #[error("the file holds more than {} values", MAX_VALUES)]
    TooManyValues,
    #[error("the file names more than {} hosts", MAX_HOSTS)]
    TooManyHosts,
    #[error("the file begins as JSON and is none: {0}")]
    Json(serde_json::Error),
}

impl ImportError {
    /// One word for logs and metrics; it does not change between releases.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::TooDeep => "too_deep",
            Self::TooManyValues => "too_many_values",
            Self::TooManyHosts => "too_many_hosts",
            Self::Json(_) => "not_json",
        }
    }
}

/// Counts values and depth before anything is built of them: a tree takes many times its text.
fn measure(json: &str) -> Result<(), ImportError> {
    let (mut depth, mut values) = (0_usize, 0_usize);
    let (mut in_text, mut escaped) = (false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            _ if in_text => {}
            b'{' | b'[' => {
                depth += 1;
                values += 1;
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b',' => values += 1,
            _ => {}
        }
        if depth > MAX_DEPTH {
            return Err(ImportError::TooDeep);
        }
        if values > MAX_VALUES {
            return Err(ImportError::TooManyValues);
        }
    }
    Ok(())
}

/// Walks a file and keeps what it finds.
#[derive(Default)]
struct Collector {
    /// Of what is being looked at.
    place: String,
    hosts: BTreeMap<HostName, ImportedHost>,
    wildcards: BTreeMap<String, String>,
    ignored: BTreeSet<(String, String)>,
}

impl Collector {
    fn value(&mut self, value: &Value, context: &Context) -> Result<(), ImportError> {
        match value {
            Value::String(text) => self.text(text, context),
            Value::Array(items) => self.array(items, context),
            Value::Object(entries) => self.object(entries, context),
            Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
        }
    }

    fn array(&mut self, items: &[Value], context: &Context) -> Result<(), ImportError> {
        let context = context.beside(items.iter().filter_map(Value::as_str));
        for (index, item) in items.iter().enumerate() {
            let outer = self.place.len();
            self.place.push_str(&format!("[{index}]"));
            self.value(item, &context)?;
            self.place.truncate(outer);
        }
        Ok(())
    }

    fn object(&mut self, entries: &Map<String, Value>, context: &Context) -> Result<(), ImportError> {
        let context = context.within(entries);
        for (key, value) in entries {
            let outer = self.place.len();
            self.push_key(key);
            if is_about_the_file(key) && value.is_string() {
                if value.as_str().is_some_and(|text| is_host(text.trim())) {
                    self.ignore("describes the file and is no host that sensors need".to_owned());
                }
            } else {
                if let Value::Object(inner) = value {
                    self.word(key, &context.within(inner))?;
                } else {
                    self.word(key, &context)?;
                }
                self.value(value, &context.under(key))?;
            }
            self.place.truncate(outer);
        }
        Ok(())
    }

    fn push_key(&mut self, key: &str) {
        if !key.is_empty() && key.len() <= 64 && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte)) {
            if !self.place.is_empty() {
                self.place.push('.');
            }
            self.place.push_str(key);
        } else {
            self.place.push_str(&format!("[\"{}\"]", shown(key)));
        }
    }

    /// A list without JSON: hosts one a line, or in cells. A line that calls a cell "port" is a heading.
    fn lines(&mut self, text: &str) -> Result<(), ImportError> {
        if text.bytes().filter(|byte| b",;\t\n".contains(byte)).count() > MAX_VALUES {
            return Err(ImportError::TooManyValues);
        }
        let mut port_column = None;
        for (index, line) in text.lines().enumerate() {
            let line = line.split_once(" #").map_or(line, |(before, _comment)| before);
            if line.trim_start().starts_with('#') {
                continue;
            }
            self.place = format!("line {}", index + 1);
            let cells = cells(line);
            let mut context = Context::default().beside(cells.iter().copied());
            match cells.iter().filter(|cell| is_host(cell)).count() {
                0 => port_column = cells.iter().position(|cell| is_about_ports(cell)).or(port_column),
                1 => context.ports = port_column.and_then(|column| cells.get(column)).map_or_else(Vec::new, |cell| ports_in_text(cell)),
                _ => {}
            }
            for cell in cells {
                self.text(cell, &context)?;
            }
        }
        Ok(())
    }

    /// A text that is a host, or several with something between them. Any other word makes it a sentence.
    fn text(&mut self, text: &str, context: &Context) -> Result<(), ImportError> {
        let words = || text.split(|c: char| c.is_whitespace() || matches!(c, ',' | ';' | '|')).filter(|word| !word.is_empty());
        if words().all(|word| !is_plain(word)) {
            for word in words() {
                self.word(word, context)?;
            }
        } else if let Some(name) = words().map(|word| word.trim_end_matches(['.', ':', ')'])).find(|word| is_host(word)) {
            self.ignore(format!("{} is named in a sentence", shown(name)));
        }
        Ok(())
    }

    fn word(&mut self, text: &str, context: &Context) -> Result<(), ImportError> {
        match classify(text) {
            Word::Host(host, port) => self.host(host, port, context)?,
            Word::Wildcard(pattern) => {
                if self.hosts.len() + self.wildcards.len() >= MAX_HOSTS && !self.wildcards.contains_key(&pattern) {
                    return Err(ImportError::TooManyHosts);
                }
                let domain = pattern.trim_start_matches('*').trim_start_matches('.');
                let risk = if is_shared(domain) { ": whoever rents a name there could be reached" } else { "" };
                let why = format!("{}: exact names are needed, not all of {}{risk}", self.place, shown(&pattern));
                self.wildcards.entry(pattern).or_insert(why);
            }
            Word::Refused(why) => self.ignore(format!("{} {why}", shown(text))),
            Word::Secret => self.ignore("holds a user name or a password: not shown, and no host is taken from it".to_owned()),
            Word::Number | Word::Plain => {}
        }
        Ok(())
    }

    fn host(&mut self, host: HostName, port: Option<u16>, context: &Context) -> Result<(), ImportError> {
        if self.hosts.len() + self.wildcards.len() >= MAX_HOSTS && !self.hosts.contains_key(&host) {
            return Err(ImportError::TooManyHosts);
        }
        let guessed = Role::guess(&host);
        let role = if guessed == Role::Other { context.role.unwrap_or_default() } else { guessed };
        let found =
            self.hosts.entry(host.clone()).or_insert_with(|| ImportedHost { host, role, ports: Vec::new(), place: self.place.clone() });
        if found.role == Role::Other {
            found.role = role;
        }
        let ports = port.as_ref().map_or(context.ports.as_slice(), std::slice::from_ref);
        found.ports = bounded(found.ports.iter().chain(ports).copied());
        Ok(())
    }

    fn ignore(&mut self, why: String) {
        if self.ignored.len() < MAX_IGNORED {
            self.ignored.insert((self.place.clone(), why));
        }
    }

    fn finish(self) -> Imported {
        Imported {
            hosts: self.hosts.into_values().collect(),
            wildcards: self.wildcards.into_iter().collect(),
            ignored: self.ignored.into_iter().collect(),
        }
    }
}

/// What the surroundings of a host say of it; the nearest counts.
#[derive(Clone, Default)]
struct Context {
    role: Option<Role>,
    ports: Vec<u16>,
}

impl Context {
    /// Of what stands in an object: `{ "service": …, "port": … }`.
    fn within(&self, entries: &Map<String, Value>) -> Self {
        let named = entries.iter().filter(|(key, _)| is_about_roles(key));
        let role = named.filter_map(|(_, value)| value.as_str()).find_map(role_in);
        let ports = bounded(entries.iter().filter(|(key, _)| is_about_ports(key)).flat_map(|(_, value)| ports_in(value)));
        Self { role: role.or(self.role), ports: if ports.is_empty() { self.ports.clone() } else { ports } }
    }

    /// Of what stands behind a key: `"iotHub": …`.
    fn under(&self, key: &str) -> Self {
        Self { role: role_in(key).or(self.role), ports: self.ports.clone() }
    }

    /// Of a single host in a row of a table. Of several it cannot be told which one the other cells are about.
    fn beside<'a>(&self, cells: impl Iterator<Item = &'a str> + Clone) -> Self {
        let role = match cells.clone().filter(|cell| is_host(cell)).count() {
            1 => cells.filter(|cell| is_plain(cell)).find_map(role_in),
            _ => None,
        };
        Self { role: role.or(self.role), ports: self.ports.clone() }
    }
}

/// What a text without spaces is.
enum Word {
    Host(HostName, Option<u16>),
    Wildcard(String),
    /// Something else in a host's clothes: what it is.
    Refused(&'static str),
    /// A URL or a mail address that may hold a password.
    Secret,
    Number,
    Plain,
}

fn classify(text: &str) -> Word {
    let (rest, is_url) = match text.split_once("://") {
        Some((scheme, rest)) if is_scheme(scheme) => (rest.split(['/', '?', '#']).next().unwrap_or_default(), true),
        Some(_) => return Word::Plain,
        None => (text.strip_suffix('/').unwrap_or(text), false),
    };
    if rest.is_empty() || rest.contains(char::is_whitespace) {
        return Word::Plain;
    }
    if !is_url && rest.bytes().all(|byte| byte.is_ascii_digit()) {
        return Word::Number;
    }
    if rest.contains('@') {
        return match (is_url || rest.contains(':'), rest.contains('.')) {
            (true, _) => Word::Secret,
            (false, true) => Word::Refused("is a mail address"),
            (false, false) => Word::Plain,
        };
    }
    if rest.parse::<IpAddr>().is_ok() || rest.parse::<SocketAddr>().is_ok() || rest.parse::<IpNet>().is_ok() {
        return Word::Refused("is an address: the catalogue holds names, because the addresses change weekly");
    }
    let (name, port) = rest.split_once(':').map_or((rest, None), |(name, port)| (name, Some(port)));
    let folded = name.replace(['*', '{', '}', '<', '>', '[', ']', '$', '%'], "x");
    let shape = folded.strip_prefix('.').unwrap_or(&folded);
    let shape = match HostName::parse(shape) {
        Ok(shape) if shape.as_str().contains('.') => shape,
        Err(HostNameError::AddressLiteral) if shape.contains('.') => return Word::Refused("is a version or a short form of an address"),
        Ok(_) | Err(_) => return if is_url { Word::Refused("holds no host name with a dot") } else { Word::Plain },
    };
    if let Some(why) = stranger(name, &shape, is_url) {
        return Word::Refused(why);
    }
    let port = match port.map(str::parse::<u16>) {
        None => None,
        Some(Ok(port)) if port != 0 => Some(port),
        Some(Ok(_) | Err(_)) => return Word::Refused("has something other than a port behind its colon"),
    };
    if name.contains('*') || name.starts_with('.') {
        return Word::Wildcard(name.trim_end_matches('.').to_ascii_lowercase());
    }
    // Equal unless something was replaced.
    match HostName::parse(name) {
        Ok(host) => Word::Host(host, port),
        Err(_) => Word::Refused("has a gap to fill in: write the real name"),
    }
}

/// Why something of a host name's shape is none all the same.
fn stranger(name: &str, shape: &HostName, is_url: bool) -> Option<&'static str> {
    let labels: Vec<&str> = shape.as_str().split('.').collect();
    let (last, others) = labels.split_last()?;
    let is_number = |label: &&str| {
        let digits = label.strip_prefix('v').unwrap_or(label);
        !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
    };
    if others.iter().all(is_number) {
        return Some("is a version");
    }
    if !is_url && FILE_ENDINGS.contains(last) {
        return Some("is the name of a file");
    }
    if last.len() < 2 || !(last.starts_with("xn--") || last.bytes().all(|byte| byte.is_ascii_alphabetic())) {
        return Some("does not end as a host name does");
    }
    let is_type = name.split('.').all(|label| {
        let mut letters = label.chars();
        letters.next().is_some_and(|first| first.is_ascii_uppercase()) && letters.any(|letter| letter.is_ascii_lowercase())
    });
    let is_provider = labels.first() == Some(&"microsoft") && labels.len() == 2 && *last != "com";
    if !is_url && (is_type && !matches!(*last, "com" | "net" | "us") || is_provider) {
        return Some("is the name of a type or of a resource provider");
    }
    None
}

fn is_scheme(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
}

fn is_host(text: &str) -> bool {
    matches!(classify(text), Word::Host(..))
}

fn is_plain(text: &str) -> bool {
    matches!(classify(text), Word::Plain)
}

/// The cells of one line of CSV, without their quotes. A quote within a cell, and a cell of several lines, are not known.
fn cells(line: &str) -> Vec<&str> {
    let mut in_quotes = false;
    let ends_cell = |character: char| {
        in_quotes ^= character == '"';
        !in_quotes && matches!(character, ',' | ';' | '\t')
    };
    line.split(ends_cell).map(|cell| cell.trim().trim_matches(['"', '\'']).trim()).collect()
}

fn ports_in(value: &Value) -> Vec<u16> {
    match value {
        Value::Number(number) => number.as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0).into_iter().collect(),
        Value::String(text) => ports_in_text(text),
        Value::Array(items) => bounded(items.iter().flat_map(ports_in)),
        Value::Null | Value::Bool(_) | Value::Object(_) => Vec::new(),
    }
}

/// `443`, `443, 8883`, `TCP/443`. A range opens too much to be meant: none of it is taken.
fn ports_in_text(text: &str) -> Vec<u16> {
    let words = text.split(|c: char| c.is_whitespace() || matches!(c, ',' | ';' | '/' | '|' | ':'));
    bounded(words.filter_map(|word| word.parse().ok()).filter(|port| *port != 0))
}

fn bounded(ports: impl Iterator<Item = u16>) -> Vec<u16> {
    let mut kept = BTreeSet::new();
    for port in ports {
        if kept.len() < MAX_PORTS {
            kept.insert(port);
        }
    }
    kept.into_iter().collect()
}

/// The role that a few words name, if they name one alone.
fn role_in(text: &str) -> Option<Role> {
    let words = key_words(text);
    let has = |names: &[&str]| words.iter().any(|word| names.contains(&word.as_str()));
    let joined = words.concat();
    let roles = [
        (joined.contains("iothub"), Role::IotHub),
        (has(&["blob", "blobs", "storage"]), Role::Blob),
        (joined.contains("eventhub") || joined.contains("servicebus"), Role::EventHub),
        (has(&["aria"]), Role::Aria),
        (has(&["download", "downloads"]), Role::Download),
    ];
    let mut named = roles.into_iter().filter(|(is_named, _)| *is_named).map(|(_, role)| role);
    match (named.next(), named.next()) {
        (Some(role), None) => Some(role),
        _ => None,
    }
}

fn is_about_roles(key: &str) -> bool {
    const WORDS: &[&str] = &["category", "component", "group", "kind", "name", "purpose", "resource", "role", "service", "tag", "type"];
    key_words(key).iter().any(|word| WORDS.contains(&word.as_str()))
}

fn is_about_ports(key: &str) -> bool {
    key_words(key).iter().any(|word| word == "port" || word == "ports")
}

/// Keys whose value may be a URL that no sensor asks for.
fn is_about_the_file(key: &str) -> bool {
    const WORDS: &[&str] = &["doc", "docs", "documentation", "help", "learn", "schema"];
    key.starts_with(['$', '@']) || key_words(key).iter().any(|word| WORDS.contains(&word.as_str()))
}

/// The words of a key, in lower case: `iotHubPort`, `iot_hub_port`, `IoT Hub port`. Of a long text, none.
fn key_words(key: &str) -> Vec<String> {
    if key.len() > LONGEST_KEY_BYTES {
        return Vec::new();
    }
    let mut words: Vec<String> = Vec::new();
    let mut before = ' ';
    let mut characters = key.chars().peekable();
    while let Some(character) = characters.next() {
        let ends_capitals = before.is_uppercase() && characters.peek().is_some_and(|next| next.is_lowercase());
        let begins_word = !before.is_alphanumeric() || character.is_uppercase() && (!before.is_uppercase() || ends_capitals);
        if character.is_alphanumeric() {
            match words.last_mut() {
                Some(word) if !begins_word => word.extend(character.to_lowercase()),
                Some(_) | None => words.push(character.to_lowercase().collect()),
            }
        }
        before = character;
    }
    words
}

/// Whether the file's own `pattern` (`*.blob.core.windows.net`, `.example.net`, `hub-*.example.net`) stands for `host`.
fn matches_pattern(pattern: &str, host: &HostName) -> bool {
    match pattern.split_once('*') {
        None => is_below(host.as_str(), pattern.trim_start_matches('.')),
        Some((before, after)) => {
            let within = host.as_str().strip_prefix(before).and_then(|rest| rest.strip_suffix(after));
            within.is_some_and(|within| !within.is_empty() && !after.contains('*'))
        }
    }
}

/// Longest text. The portal's file has some kilobytes.
const MAX_TEXT_BYTES: usize = 8 << 20;

/// Most values in it; a tree of so many takes 200 MB at worst.
const MAX_VALUES: usize = 1 << 18;

/// Deepest nesting. The walk, and freeing the tree, take stack for each level.
const MAX_DEPTH: usize = 64;

/// Most hosts and wildcards. A subscription's sensors need some dozens.
const MAX_HOSTS: usize = 4096;

/// Most ports of one host.
const MAX_PORTS: usize = 64;

/// Most things told to be no hosts.
const MAX_IGNORED: usize = 1000;

/// Longer texts are sentences, which name services without being about one.
const LONGEST_KEY_BYTES: usize = 100;

/// What files are called; none of them is a top-level domain in which a sensor's host could lie.
const FILE_ENDINGS: &[&str] = &[
    "bin", "cer", "cfg", "conf", "crt", "css", "csv", "dat", "deb", "dll", "exe", "gz", "htm", "html", "ini", "iso", "jpeg", "jpg", "js",
    "json", "key", "log", "msi", "ova", "ovf", "pdf", "pem", "pfx", "png", "rpm", "svg", "tar", "tgz", "txt", "vhd", "vhdx", "xml", "yaml",
    "yml", "zip",
];

#[cfg(test)]
mod tests;
