//! Squid as a proxy of a chain: software that knows nothing of ours.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;

use tempfile::TempDir;

use crate::process::Process;
use crate::skyway::{give_to_nobody, unprivileged};
use crate::{seconds, wait_for};

/// A Squid on port 3128 that lets everybody on loopback CONNECT to port 3128.
#[derive(Debug)]
pub struct Squid {
    pub address: SocketAddr,
    _process: Process,
    folder: TempDir,
}

/// Without a file of its process, which it would want to write to /run.
const CONFIG: &str = "\
http_port ADDRESS
visible_hostname squid
acl CONNECT method CONNECT
acl SSL_ports port 443 3128
acl near src 127.0.0.0/8
http_access deny !CONNECT
http_access deny !SSL_ports
http_access allow near
http_access deny all
cache deny all
cache_mem 8 MB
max_filedescriptors 1024
pinger_enable off
shutdown_lifetime 0 seconds
dns_nameservers 127.0.0.1
access_log stdio:FOLDER/access.log
cache_log FOLDER/cache.log
cache_store_log none
pid_filename none
coredump_dir none
";

impl Squid {
    /// Starts one, without privileges, and waits until it takes connections.
    #[track_caller]
    pub fn start(address: Ipv4Addr) -> Self {
        let folder = tempfile::tempdir().expect("a folder for Squid");
        let address = SocketAddr::new(address.into(), 3128);
        let path = folder.path().to_str().expect("a plain path");
        let config = folder.path().join("squid.conf");
        fs::write(&config, CONFIG.replace("ADDRESS", &address.to_string()).replace("FOLDER", path)).expect("Squid's file");
        give_to_nobody(folder.path());
        let config = config.to_str().expect("a plain path");
        let mut process = Process::start("Squid", &mut unprivileged(Path::new("squid"), &["-N", "-d", "1", "-f", config]));
        wait_for("Squid takes connections", seconds(20), || {
            assert!(process.is_running(), "Squid has ended");
            TcpStream::connect(address).is_ok()
        });
        Self { address, _process: process, folder }
    }

    /// Its access log so far. A tunnel is in it once it has ended.
    pub fn access_log(&self) -> String {
        fs::read_to_string(self.folder.path().join("access.log")).unwrap_or_default()
    }
}
