//! The meaning of the raw file: words become types, names are looked up, parts are held against each other.
//!
//! Each section has its file. A mistake is put down and the rest goes on, so that one run finds them all; a part
//! that has a mistake is left out of the settings, which are thrown away then anyway.

mod relay;
mod routes;
mod tunnels;
mod words;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tunnel::Cloud;

use super::Identity;
use super::diagnostic::{Diagnostic, Diagnostics, Place};
use super::field::Field;
use super::raw::{RawCloud, RawConfig, RawGateway, RawSecret, RawUnderlay};
use super::settings::{GatewaySettings, Settings, UnderlaySettings};
use crate::relay::chain::Level;
use crate::secret::{Secret, SecretSource, WatchedFiles};

/// Default of `gateway.metrics`: Prometheus text, on loopback alone.
const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9359);
const FOLDER: &str = "/run/skyway";

/// `secrets` receives the files that are named: of secrets, certificates and service tags.
pub(super) fn resolve(raw: &RawConfig, folder: &Path, diagnostics: &mut Diagnostics, secrets: &mut WatchedFiles) -> Option<Settings> {
    let names = raw.tunnels.get().iter().flat_map(|entries| &entries.0).map(|entry| entry.name.clone()).collect();
    let mut context = Context { diagnostics, folder, tunnel_names: names, incomplete: Vec::new(), secrets };
    match raw.version.require("version", Place::WHOLE_FILE, context.diagnostics) {
        Some(1) | None => {}
        Some(_) => context.report(Diagnostic::error(&raw.version, "this skyway does not know that version of the file").expected("1")),
    }
    let gateway =
        raw.gateway.require("gateway", Place::WHOLE_FILE, context.diagnostics).and_then(|gateway| context.gateway(gateway, &raw.gateway));
    let cloud = gateway.as_ref().map_or_else(Cloud::default, |gateway| gateway.cloud);
    let underlays = context.underlays(raw);
    let tunnels = context.tunnels(raw, cloud, &underlays);
    let routes = context.routes(raw, &tunnels);
    let level = gateway.as_ref().and_then(|gateway| gateway.level);
    let around = relay::Around { tunnels: &tunnels, underlays: &underlays, cloud, level };
    let relay = raw.relay.get().map(|relay| context.relay(relay, &raw.relay, around));
    if let (Some(written), Some(relay)) = (raw.relay.get(), &relay) {
        context.parents_are_routed(written, relay, &tunnels, &routes);
    }
    for entry in raw.peerings.get().iter().flat_map(|entries| &entries.0) {
        context.report(Diagnostic::error(entry, "peerings are not part of this version of skyway").help("leave `peerings: { }` empty"));
    }
    if tunnels.is_empty() && raw.relay.get().is_none() && !context.diagnostics.has_errors() {
        context.report(Diagnostic::error(Place::WHOLE_FILE, "there is nothing to do: neither a tunnel nor a relay is configured"));
    }
    Some(Settings { gateway: gateway?, underlays, tunnels, routes, relay })
}

/// The gateway's name and its admin socket, if the file says them.
pub(super) fn identity(raw: &RawConfig, folder: &Path) -> Option<Identity> {
    let gateway = raw.gateway.get()?;
    let name = gateway.name.get()?.clone();
    let socket = gateway.admin.get().map_or_else(|| default_admin(&name), |admin| folder.join(admin));
    Some(Identity { name, socket })
}

/// What every section needs: where mistakes go, and where relative paths start.
struct Context<'a> {
    diagnostics: &'a mut Diagnostics,
    folder: &'a Path,
    /// Of all tunnels of the file, also those that have mistakes: a name that is there is not reported as missing.
    tunnel_names: Vec<String>,
    /// Tunnels that lost a peer to a mistake: what they carry cannot be judged.
    incomplete: Vec<String>,
    /// Files that were named and are read here: of secrets, certificates and service tags.
    secrets: &'a mut WatchedFiles,
}

impl Context<'_> {
    fn report(&mut self, diagnostic: Diagnostic) {
        self.diagnostics.push(diagnostic);
    }

    fn gateway(&mut self, raw: &RawGateway, place: &Field<RawGateway>) -> Option<GatewaySettings> {
        let name = raw.name.require("name", place, self.diagnostics).cloned();
        let name = name.filter(|name| self.name_is_good(&raw.name, name, 64));
        let address = |this: &mut Self, field: &Field<String>, default: Option<SocketAddr>| match field.get().map(String::as_str) {
            None => default,
            Some("off") => None,
            Some(_) => this.read(field, words::address_and_port),
        };
        let metrics = address(self, &raw.metrics, Some(METRICS));
        let health = address(self, &raw.health, None);
        if let (Some(metrics), Some(health)) = (metrics, health)
            && metrics == health
        {
            self.report(Diagnostic::error(&raw.health, "metrics and health cannot share an address"));
        }
        let level = self.level(&raw.level);
        let name = name?;
        let admin = raw.admin.get().map_or_else(|| default_admin(&name), |admin| self.folder.join(admin));
        // sun_path holds 108 bytes with its end, and the socket is made beside its place first (unix(7)).
        if admin.as_os_str().len() > 103 || admin.file_name().is_none() {
            self.report(Diagnostic::error(&raw.admin, "not a usable place for a socket").expected("a path of at most 103 bytes"));
        }
        Some(GatewaySettings { site: raw.site.get().cloned(), cloud: cloud(&raw.cloud), admin, metrics, health, level, name })
    }

    fn underlays(&mut self, raw: &RawConfig) -> BTreeMap<String, UnderlaySettings> {
        let mut underlays = BTreeMap::new();
        for entry in raw.underlays.get().iter().flat_map(|entries| &entries.0) {
            let empty = RawUnderlay::default();
            let underlay = entry.value.get().unwrap_or(&empty);
            let interface = underlay.interface.get().cloned();
            if let Some(name) = &interface {
                self.interface_is_good(&underlay.interface, name);
            }
            let source = self.read(&underlay.source, words::address);
            underlays.insert(entry.name.clone(), UnderlaySettings { interface, source, mark: underlay.mark.get().copied() });
        }
        underlays
    }

    /// Reads the secret that `raw` refers to. A broken reference is put down at `place`.
    /// `make` says how a missing one comes to be.
    fn secret(&mut self, raw: &RawSecret, place: &Field<RawSecret>, make: &str) -> Option<Secret> {
        let source = match (raw.file.get(), raw.env.get()) {
            (Some(file), None) => SecretSource::File(self.folder.join(file)),
            (None, Some(name)) => SecretSource::Env(name.clone()),
            _ => {
                self.report(
                    Diagnostic::error(place, "a secret is referenced, never written here").expected("{ file: PATH } or { env: NAME }"),
                );
                return None;
            }
        };
        // Whoever writes the key itself where its file belongs must not see it in the log.
        if raw.file.get().is_some_and(|file| file.parse::<tunnel::PrivateKey>().is_ok()) {
            self.diagnostics.conceal(raw.file.span());
            self.report(
                Diagnostic::error(place, "that is a key, not the path of a file that holds one")
                    .expected("{ file: PATH } or { env: NAME }"),
            );
            return None;
        }
        if let SecretSource::File(path) = &source {
            self.secrets.watch(path);
        }
        match Secret::read(&source) {
            Ok(secret) => Some(secret),
            Err(error) => {
                let mut diagnostic = Diagnostic::error(place, error.to_string());
                if let Some(help) = error.help() {
                    diagnostic = diagnostic.help(help);
                } else if error.is_missing() {
                    diagnostic = diagnostic.help(make);
                }
                self.report(diagnostic);
                None
            }
        }
    }

    /// The path of a file that is not secret, from now on watched for change.
    fn file(&mut self, field: &Field<String>) -> Option<PathBuf> {
        let path = self.folder.join(field.get()?);
        self.secrets.watch(&path);
        Some(path)
    }

    fn level(&mut self, field: &Field<String>) -> Option<Level> {
        let text = field.get()?;
        let level = Level::parse(text);
        if level.is_none() {
            self.report(
                Diagnostic::error(field, "not a level of the Purdue model").value(text.clone()).expected("0, 1, 2, 3, 3.5, 4 or 5"),
            );
        }
        level
    }

    /// What `parse` makes of a scalar; what it expected is put down otherwise.
    fn read<T>(&mut self, field: &Field<String>, parse: impl FnOnce(&str) -> Result<T, words::Expected>) -> Option<T> {
        let text = field.get()?;
        match parse(text) {
            Ok(value) => Some(value),
            Err(expected) => {
                self.report(Diagnostic::error(field, expected.message).value(text.clone()).expected(expected.form));
                None
            }
        }
    }

    /// All elements of a list that parse.
    fn read_all<T>(&mut self, list: &Field<Vec<Field<String>>>, parse: impl Fn(&str) -> Result<T, words::Expected>) -> Vec<T> {
        list.get().iter().flat_map(|elements| elements.iter()).filter_map(|element| self.read(element, &parse)).collect()
    }

    fn name_is_good<'p>(&mut self, place: impl Into<Place<'p>>, name: &str, longest: usize) -> bool {
        let good = !name.is_empty()
            && name.len() <= longest
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            && !name.starts_with(['.', '-']);
        if !good {
            self.report(Diagnostic::error(place, "not a usable name").expected(format!("1 to {longest} letters, digits, `-`, `_` or `.`")));
        }
        good
    }

    fn interface_is_good<'p>(&mut self, place: impl Into<Place<'p>>, name: &str) -> bool {
        let good = !name.is_empty() && name.len() <= 15 && !name.contains(['/', ' ', ':']) && name != "." && name != "..";
        if !good {
            self.report(
                Diagnostic::error(place, "not the name of a network interface").expected("1 to 15 characters, as `ip link` shows it"),
            );
        }
        good
    }

    /// A name that must be a tunnel's.
    fn known_tunnel(&mut self, field: &Field<String>) -> Option<String> {
        let names = self.tunnel_names.clone();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        self.known(field, "tunnel", &names)
    }

    /// A name that must be one of `known`.
    fn known(&mut self, field: &Field<String>, what: &str, known: &[&str]) -> Option<String> {
        let name = field.get()?;
        if known.contains(&name.as_str()) {
            return Some(name.clone());
        }
        let diagnostic = Diagnostic::error(field, format!("no {what} has that name")).value(name.clone());
        self.report(if known.is_empty() { diagnostic.help(format!("no {what} is configured")) } else { diagnostic.one_of(name, known) });
        None
    }
}

fn cloud(field: &Field<RawCloud>) -> Cloud {
    match field.get() {
        Some(RawCloud::Aws) => Cloud::Aws,
        Some(RawCloud::Azure) => Cloud::Azure,
        Some(RawCloud::Gcp) => Cloud::Gcp,
        Some(RawCloud::Other) => Cloud::Other,
        None => Cloud::default(),
    }
}

/// `/run/skyway/NAME.sock` for root, else under `$XDG_RUNTIME_DIR`, else under `/tmp` by user.
fn default_admin(name: &str) -> PathBuf {
    let user = crate::secret::effective_user();
    let folder = if user == 0 {
        PathBuf::from(FOLDER)
    } else if let Some(runtime) = std::env::var_os("XDG_RUNTIME_DIR") {
        PathBuf::from(runtime).join("skyway")
    } else {
        std::env::temp_dir().join(format!("skyway-{user}"))
    };
    folder.join(format!("{name}.sock"))
}
