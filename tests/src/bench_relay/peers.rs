//! The configurations: skyway's and everybody else's, all for the same hosts, ports and limits.
//!
//! Each peer's is what its own documentation recommends for this job, with what makes it faster: HAProxy leaves out the
//! acknowledgements that it can (tcp-smart-accept, tcp-smart-connect), nginx accepts all that is there at once. One thread or
//! worker each, long timeouts, no health checks, no access log unless asked for. The word FOLDER stands for a folder of the
//! process's own.

use std::time::Duration;

use super::line::{CONNECT, HOST_PORT, HOSTS, SENSORS, SNI};

/// What differs from case to case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setup {
    /// The most at once.
    pub sessions: usize,
    /// How long sessions may run on after an orderly stop. None: for as long as the case takes.
    pub drain: Option<Duration>,
    /// An access line a session.
    pub logs: bool,
    /// A file like any other, but not the same: a reload of the same file does nothing.
    pub changed: bool,
}

/// Where Debian's package libnginx-mod-stream puts it.
pub const NGINX_STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

const HOSTS_PREFIX: &str = "10.61.2.0/24";
/// Of HAProxy's pipes: as many as the bulk loads can use, twice. By default a quarter of maxconn, in descriptors.
const PIPES: usize = 64;

const NGINX_LOG: &str = "    \
    log_format sessions '$remote_addr [$time_local] $status $bytes_sent $bytes_received $session_time $ssl_preread_server_name';
    access_log FOLDER/access.log sessions;
";

pub fn skyway(setup: Setup) -> String {
    let mut hosts = String::new();
    for host in &HOSTS {
        hosts.push_str(&format!("      - {{ host: {}, addresses: [{}], allow: [{HOSTS_PREFIX}] }}\n", host.name, host.address));
    }
    if setup.changed {
        hosts.push_str("      - spare.bench.azure-devices.net\n");
    }
    let drain = setup.drain.unwrap_or(Duration::from_secs(3600)).as_millis();
    // All of them are one sensor's, from a few addresses.
    let sessions = setup.sessions;
    format!(
        r#"version: 1
gateway: {{ name: bench, cloud: other, admin: FOLDER/admin.sock, metrics: off }}
relay:
  catalogue:
    hosts:
{hosts}  sensors: {{ line-3: {{ from: [{SENSORS}] }} }}
  paths:
    - {{ name: out, via: direct, probe: off }}
  listeners:
    - {{ name: proxy, kind: connect, listen: "{CONNECT}" }}
    - {{ name: tls, kind: sni, listen: "{SNI}" }}
  limits: {{ sessions: {sessions}, sessions_per_sensor: {sessions}, connections_per_source: {sessions}, drain: {drain}ms }}
"#
    )
}

/// Wants `names` ([`names`]) and `hosts.map` ([`haproxy_map`]) in its folder.
pub fn haproxy(setup: Setup, splice: bool) -> String {
    let hard_stop = setup.drain.map(|drain| format!("    hard-stop-after {}ms\n", drain.as_millis())).unwrap_or_default();
    let (log_target, log) =
        if setup.logs { ("    log stdout format raw daemon info\n", "    log global\n    option tcplog\n") } else { ("", "") };
    let splice = if splice { "    option splice-auto\n" } else { "" };
    let mut backends = String::new();
    for host in &HOSTS {
        backends.push_str(&format!("\nbackend {0}\n    server {0} {1}\n", label(host.name), host.place()));
    }
    format!(
        "\
global
    nbthread 1
    maxconn {}
    maxpipes {PIPES}
    stats socket FOLDER/haproxy.sock mode 600 level admin expose-fd listeners
{hard_stop}{log_target}
defaults
    mode tcp
    timeout connect 10s
    timeout client 1h
    timeout server 1h
    timeout client-fin 60s
    timeout server-fin 60s
    option tcp-smart-accept
    option tcp-smart-connect
{splice}{log}
frontend tls
    bind {SNI} backlog 4096
    tcp-request inspect-delay 10s
    tcp-request content accept if {{ req.ssl_hello_type 1 }} {{ req.ssl_sni -i -f FOLDER/names }}
    tcp-request content reject
    use_backend %[req.ssl_sni,lower,map_str(FOLDER/hosts.map)]
{backends}",
        setup.sessions
    )
}

/// One host name a line.
pub fn names() -> String {
    HOSTS.map(|host| format!("{}\n", host.name)).concat()
}

/// Host name to backend.
pub fn haproxy_map() -> String {
    HOSTS.map(|host| format!("{} {}\n", host.name, label(host.name))).concat()
}

pub fn nginx(setup: Setup) -> String {
    let hosts = HOSTS.map(|host| format!("        {} {};\n", host.name, host.place())).concat();
    let log = if setup.logs { NGINX_LOG } else { "    access_log off;\n" };
    format!(
        "\
load_module {NGINX_STREAM_MODULE};
daemon off;
master_process off;
pid FOLDER/nginx.pid;
error_log stderr error;
events {{
    worker_connections {};
    multi_accept on;
}}
stream {{
{log}    tcp_nodelay on;
    preread_timeout 10s;
    proxy_connect_timeout 10s;
    proxy_timeout 1h;
    map $ssl_preread_server_name $upstream {{
{hosts}    }}
    server {{
        listen {SNI} backlog=4096 reuseport;
        ssl_preread on;
        proxy_pass $upstream;
    }}
}}
",
        // Two a session, and some for the rest.
        setup.sessions * 2 + 64
    )
}

/// Knows the hosts' addresses from /etc/hosts, which it reads at its start.
pub fn squid(setup: Setup, open_files: usize) -> String {
    let access_log = if setup.logs { "stdio:FOLDER/access.log" } else { "none" };
    let names = HOSTS.map(|host| host.name).join(" ");
    format!(
        "\
http_port {CONNECT}
visible_hostname relay
acl CONNECT method CONNECT
acl tls_port port {HOST_PORT}
acl sensors src {SENSORS}
acl catalogue dstdomain {names}
http_access deny !CONNECT
http_access deny !tls_port
http_access allow sensors catalogue
http_access deny all
cache deny all
cache_mem 8 MB
max_filedescriptors {open_files}
connect_timeout 10 seconds
read_timeout 1 hour
client_lifetime 1 day
shutdown_lifetime 0 seconds
dns_nameservers 127.0.0.1
access_log {access_log}
cache_log FOLDER/cache.log
cache_store_log none
coredump_dir FOLDER
pid_filename none
netdb_filename none
pinger_enable off
"
    )
}

/// The first part of a name.
fn label(name: &str) -> &str {
    name.split('.').next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETUP: Setup = Setup { sessions: 500, drain: None, logs: false, changed: false };

    #[test]
    fn everybody_knows_every_host() {
        let haproxy_knows = haproxy(SETUP, true) + &names() + &haproxy_map();
        for text in [skyway(SETUP), haproxy_knows, nginx(SETUP)] {
            for host in HOSTS {
                assert!(text.contains(host.name) && text.contains(&host.address.to_string()), "{host:?} is not in:\n{text}");
            }
        }
        assert!(HOSTS.iter().all(|host| squid(SETUP, 1000).contains(host.name)));
    }

    #[test]
    fn only_what_differs_differs() {
        assert_eq!(haproxy(SETUP, true).replace("    option splice-auto\n", ""), haproxy(SETUP, false));
        let changed = skyway(Setup { changed: true, ..SETUP });
        assert_eq!(changed.replace("      - spare.bench.azure-devices.net\n", ""), skyway(SETUP));
        let draining = Setup { drain: Some(Duration::from_secs(2)), ..SETUP };
        assert!(haproxy(draining, false).contains("hard-stop-after 2000ms") && !haproxy(SETUP, false).contains("hard-stop-after"));
        assert!(skyway(draining).contains("drain: 2000ms"));
        for text in [nginx(SETUP), squid(SETUP, 1000), haproxy(SETUP, false)] {
            assert!(!text.contains("access.log") && !text.contains("stdout"), "{text}");
        }
    }
}
