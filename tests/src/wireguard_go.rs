//! wireguard-go as a peer, configured by `wg`: WireGuard as others wrote it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::{fs, process, thread};

use tempfile::TempDir;

use crate::netns::Namespace;
use crate::process::{Process, Signal};
use crate::{seconds, wait_for};

/// A running wireguard-go with its interface inside a namespace.
pub struct WireguardGo<'a> {
    process: Process,
    namespace: &'a Namespace,
    interface: String,
    folder: TempDir,
}

static NEXT: AtomicU32 = AtomicU32::new(1);

impl<'a> WireguardGo<'a> {
    /// Starts one and gives its interface `addresses`. It has no peer yet.
    #[track_caller]
    pub fn start(namespace: &'a Namespace, private_key: &str, listen_port: u16, addresses: &[&str]) -> Self {
        // Its socket lies in a folder that all namespaces share, so the name must be new on the whole host.
        let interface = format!("wg{}x{}", process::id() % 100_000, NEXT.fetch_add(1, Ordering::Relaxed));
        let process = Process::start("wireguard-go", &mut namespace.command(&["wireguard-go", "-f", &interface]));
        wait_for("wireguard-go listens for wg", seconds(10), || socket(&interface).exists());
        let folder = tempfile::tempdir().expect("a folder for keys");
        let peer = Self { process, namespace, interface, folder };
        let key = peer.key_file("private", private_key);
        peer.set(&["private-key", &key, "listen-port", &listen_port.to_string()]);
        let interface = &peer.interface;
        for address in addresses {
            namespace.ip(&format!("address add {address} dev {interface}"));
        }
        namespace.ip(&format!("link set {interface} mtu 1420 up"));
        peer
    }

    /// `wg set INTERFACE …`
    #[track_caller]
    pub fn set(&self, words: &[&str]) {
        self.namespace.exec(&[&["wg", "set", self.interface.as_str()][..], words].concat()).success();
    }

    /// `wg set INTERFACE peer KEY preshared-key … allowed-ips … …`
    #[track_caller]
    pub fn set_peer(&self, public_key: &str, preshared_key: &str, allowed_ips: &str, more: &[&str]) {
        let file = self.key_file("preshared", preshared_key);
        let words = ["peer", public_key, "preshared-key", &file, "allowed-ips", allowed_ips];
        self.set(&[&words[..], more].concat());
    }

    /// What `wg show INTERFACE` prints.
    #[track_caller]
    pub fn show(&self) -> String {
        self.namespace.exec(&["wg", "show", &self.interface]).success()
    }

    /// Bytes received and sent with its only peer.
    #[track_caller]
    pub fn transfer(&self) -> (u64, u64) {
        let line = self.namespace.exec(&["wg", "show", &self.interface, "transfer"]).success();
        let mut numbers = line.split_whitespace().skip(1).map(|word| word.parse().expect("wg writes numbers"));
        (numbers.next().expect("received"), numbers.next().expect("sent"))
    }

    pub fn interface(&self) -> &str {
        &self.interface
    }

    fn key_file(&self, name: &str, key: &str) -> String {
        let path = self.folder.path().join(name);
        fs::write(&path, format!("{key}\n")).expect("a key file");
        path.to_str().expect("a plain path").to_owned()
    }
}

impl Drop for WireguardGo<'_> {
    fn drop(&mut self) {
        // In order, because its socket would be left behind otherwise.
        if self.process.is_running() {
            self.process.signal(Signal::Terminate);
            if !thread::panicking() {
                self.process.wait(seconds(5));
            }
        }
        let _gone_already = fs::remove_file(socket(&self.interface));
    }
}

fn socket(interface: &str) -> PathBuf {
    PathBuf::from(format!("/var/run/wireguard/{interface}.sock"))
}
