//! Listeners: opened, changed and closed while sessions stand; names and time; what the kernel leads here; and how a gateway
//! takes its leave so that nobody is refused.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::thread;

use tests::access::AccessLine;
use tests::hello::Hello;
use tests::loopback::{TLS_PORT, address};
use tests::netns::{End, Namespace, join};
use tests::nginx::Nginx;
use tests::process::{Process, finish, finish_with_input};
use tests::relays::{LINE_3, OUT, PROXY, Parts, Relay, authority_of, begin, end, go_through, host, read_head};
use tests::report::{NAMESPACES, Need, machine_has};
use tests::sensor::{Answer, Then, connect, dial, say, status};
use tests::sink::{ANSWER, Sink};
use tests::skyway::{Gateway, binary, executable_by_nobody};
use tests::tls::{Authority, Session, ask};
use tests::{HUB, replaced, seconds, wait_for};

fn sink() -> (Sink, String) {
    let own = address();
    (Sink::start(SocketAddr::new(own.into(), TLS_PORT)), host(HUB, own))
}

/// A session that has begun and goes on.
#[track_caller]
fn held(relay: &Relay) -> Answer {
    let mut answer = connect(relay.connect(), &authority_of(HUB));
    begin(&mut answer, HUB);
    answer
}

#[test]
fn a_reload_opens_changes_and_closes_listeners_beside_a_session_that_stands() {
    let (_sink, hub) = sink();
    let second = r#"{ name: second, kind: connect, listen: "OWN:3130" }"#;
    let parts = Parts { hosts: &[&hub], sensors: &[LINE_3], paths: &[OUT], listeners: &[PROXY, second], ..Parts::default() };
    let mut relay = Relay::start("relay", &parts);
    let with_second = replaced(second, "OWN", &relay.address.to_string());
    let mut standing = [held(&relay), connect(relay.at(3130), &authority_of(HUB))];
    let [_, on_second] = &mut standing;
    begin(on_second, HUB);

    // One more.
    let sni = format!("{with_second}\n    - {{ name: tls, kind: sni, listen: \"{}:4430\" }}", relay.address);
    relay.change(&with_second, &sni);
    let hello = Hello::for_name(HUB).stream();
    // The sink takes one after the other, and the two that stand are first.
    let mut by_name = dial(relay.at(4430));
    by_name.write_all(&hello).expect("the hello is sent");
    wait_for("three sessions are open", seconds(5), || relay.gateway.status()["relay"]["open"] == 3);

    // Another place: the old one is closed, the new one is open.
    relay.change(":3130", ":3131");
    wait_for("nobody is at the old place", seconds(5), || TcpStream::connect(relay.at(3130)).is_err());
    assert_eq!(connect(relay.at(3131), &authority_of(HUB)).status, 200);

    // Another kind at the same place.
    relay.change("name: second, kind: connect", "name: second, kind: sni");
    assert!(say(relay.at(3131), b"CONNECT a:1 HTTP/1.1\r\n\r\n", Then::Hold).first() != Some(&b'H'), "it speaks no HTTP any more");

    // One less. A place that is taken changes nothing.
    let moved = replaced(&replaced(&with_second, ":3130", ":3131"), "connect", "sni");
    relay.change(&format!("    - {moved}\n"), "");
    wait_for("nobody is there", seconds(5), || TcpStream::connect(relay.at(3131)).is_err());
    let taken = Sink::start(relay.at(3132));
    let generation = relay.gateway.generation();
    relay.gateway.write(&replaced(&relay.yaml, ":4430", ":3132"));
    let refused = relay.gateway.reload().failure(1);
    assert!(refused.contains("3132") && relay.gateway.generation() == generation, "{refused}");
    drop(taken);
    relay.gateway.write(&relay.yaml);

    // All that time nobody lost a session, the one whose listener is gone included.
    for session in &mut standing {
        assert_eq!(end(session), ANSWER);
    }
    by_name.shutdown(std::net::Shutdown::Write).expect("an end");
    let mut rest = Vec::new();
    by_name.read_to_end(&mut rest).expect("an answer");
    assert_eq!(rest, ANSWER);
    assert_eq!(connect(relay.connect(), &authority_of(HUB)).status, 200);
}

#[test]
fn a_renewed_certificate_is_shown_from_the_next_handshake_on() {
    let (_sink, hub) = sink();
    let listener = r#"{ name: encrypted, kind: connect, listen: "OWN:3129", tls: { certificate: own.pem, key: { file: own.key } } }"#;
    let mut relay =
        Relay::build("relay", &Parts { hosts: &[&hub], sensors: &[LINE_3], paths: &[OUT], listeners: &[listener], ..Parts::default() });
    let name = relay.address.to_string();
    let (old, new) = (Authority::create(), Authority::create());
    give_certificate(&relay, &old);
    relay.gateway.start();
    let proxy = relay.at(3129);
    // The status of a CONNECT inside TLS that trusts this authority alone; None: no TLS.
    let granted = |authority: &Authority| {
        let mut session: Session = authority.session(dial(proxy), &name);
        session.write_all(format!("CONNECT {} HTTP/1.1\r\n\r\n", authority_of(HUB)).as_bytes()).ok()?;
        Some((status(&read_head(&mut session)), session))
    };
    let (said, mut standing) = granted(&old).expect("the first certificate is shown");
    assert_eq!(said, 200);
    assert!(granted(&new).is_none_or(|(status, _)| status == 0), "not yet");
    give_certificate(&relay, &new);
    wait_for("the new certificate is shown", seconds(10), || granted(&new).is_some_and(|(status, _)| status == 200));
    assert!(granted(&old).is_none_or(|(status, _)| status == 0), "and the old one is not");
    // Who came by the old one is not disturbed.
    assert_eq!(ask(&mut standing, &Hello::for_name(HUB).stream()).expect("an answer"), ANSWER);
}

/// Writes the relay's key and then its certificate, as whoever renews them does.
fn give_certificate(relay: &Relay, authority: &Authority) {
    let identity = authority.issue(&[&relay.address.to_string()]);
    relay.gateway.write_secret("own.key", &identity.key_pem);
    relay.gateway.write_file("own.pem", &identity.certificate_pem, 0o644);
}

/// A question for the IPv4 addresses of `name` (RFC 1035 §4.1).
fn question(id: u16, name: &str) -> Vec<u8> {
    let labels: Vec<u8> =
        name.split('.').flat_map(|label| [&[u8::try_from(label.len()).expect("a short label")][..], label.as_bytes()].concat()).collect();
    [&id.to_be_bytes()[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0], &labels, &[0, 0, 1, 0, 1]].concat()
}

/// A socket at `own` that asks `server` alone and waits some seconds.
#[track_caller]
fn asking(own: Ipv4Addr, server: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind((own, 0)).expect("a port");
    socket.connect(server).expect("a server");
    socket.set_read_timeout(Some(seconds(5))).expect("a time limit");
    socket
}

#[track_caller]
fn received(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = vec![0u8; 2048];
    let length = socket.recv(&mut buffer).expect("an answer");
    buffer.truncate(length);
    buffer
}

#[test]
fn sensors_are_led_by_name() {
    let (_sink, hub) = sink();
    let names = r#"{ name: names, kind: dns, listen: "OWN:5353", dns: { ttl: 7s } }"#;
    let parts = Parts { hosts: &[&hub], sensors: &[LINE_3], paths: &[OUT], listeners: &[PROXY, names], ..Parts::default() };
    let relay = Relay::start("relay", &parts);
    let (sensor, stranger) = (asking(Ipv4Addr::LOCALHOST, relay.at(5353)), asking(address(), relay.at(5353)));
    stranger.send(&question(1, HUB)).expect("sent");
    sensor.send(&question(2, HUB)).expect("sent");
    let answered = received(&sensor);
    assert_eq!((&answered[..2], answered[3] & 15, &answered[6..8]), (&[0, 2][..], 0, &[0, 1][..]), "{answered:?}");
    let record = [&[0, 0, 0, 7, 0, 4][..], &relay.address.octets()].concat();
    assert!(answered.windows(record.len()).any(|window| window == record), "the gateway's own address for 7 s: {answered:?}");
    // Case makes no difference; what is not listed is refused.
    sensor.send(&question(3, &HUB.to_ascii_uppercase())).expect("sent");
    assert_eq!(received(&sensor)[3] & 15, 0);
    for name in ["elsewhere.example", "azure-devices.net", "x.contoso-hub.azure-devices.net"] {
        sensor.send(&question(4, name)).expect("sent");
        let refused = received(&sensor);
        assert_eq!((refused[3] & 15, &refused[6..8]), (5, &[0, 0][..]), "{name}: {refused:?}");
    }
    // By TCP as well.
    let mut stream = dial(relay.at(5353));
    let asked = question(5, HUB);
    stream.write_all(&[&[0, u8::try_from(asked.len()).expect("short")][..], &asked].concat()).expect("sent");
    let mut length = [0u8; 2];
    stream.read_exact(&mut length).expect("an answer");
    let mut answered = vec![0u8; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answered).expect("a whole answer");
    assert!(answered.starts_with(&[0, 5]) && answered.ends_with(&relay.address.octets()), "{answered:?}");
    // The stranger asked before all of them.
    stranger.set_nonblocking(true).expect("no waiting");
    assert!(stranger.recv(&mut [0u8; 512]).is_err(), "a stranger hears nothing");
}

#[test]
fn the_time_is_asked_for_on_behalf_of_sensors() {
    let (_sink, hub) = sink();
    let (dead, alive) = (address(), address());
    let server = UdpSocket::bind((alive, 1123)).expect("a port");
    server.set_read_timeout(Some(seconds(10))).expect("a time limit");
    let listener = format!("{{ name: time, kind: ntp, listen: \"OWN:1123\", ntp: {{ servers: [\"{dead}:1123\", \"{alive}:1123\"] }} }}");
    let parts = Parts { hosts: &[&hub], sensors: &[LINE_3], paths: &[OUT], listeners: &[PROXY, &listener], ..Parts::default() };
    let relay = Relay::start("relay", &parts);
    let (sensor, stranger) = (asking(Ipv4Addr::LOCALHOST, relay.at(1123)), asking(address(), relay.at(1123)));
    // Version 4, client; its transmit time is what the answer must repeat (RFC 5905 §7.3).
    let mut query = vec![0u8; 48];
    query[0] = 0x23;
    query[40..].copy_from_slice(b"whenever");
    stranger.send(&query).expect("sent");
    sensor.send(&[&[0x26][..], &query[1..]].concat()).expect("a control message is sent");
    sensor.send(&query).expect("sent");
    let mut asked = [0u8; 512];
    let (length, from) = server.recv_from(&mut asked).expect("the query comes to the second server");
    assert_eq!(&asked[..length], &query, "byte by byte");
    let mut answer = vec![0u8; 48];
    answer[0] = 0x24;
    answer[1] = 2;
    answer[24..32].copy_from_slice(b"whenever");
    answer[40..].copy_from_slice(b"just now");
    server.send_to(&answer, from).expect("answered");
    assert_eq!(received(&sensor), answer);
    server.set_nonblocking(true).expect("no waiting");
    assert!(server.recv_from(&mut asked).is_err(), "neither the stranger's query nor the control message came on");
    stranger.set_nonblocking(true).expect("no waiting");
    assert!(stranger.recv(&mut asked).is_err(), "a stranger hears nothing");
}

const TRANSPARENT: &str = r#"version: 1
gateway: { name: router, admin: FOLDER/admin.sock, metrics: off }
relay:
  catalogue:
    hosts: [{ host: contoso-hub.azure-devices.net, addresses: [10.20.8.5], allow: [10.20.8.0/24] }]
  sensors: { line-1: { from: [10.3.1.0/24] } }
  paths: [{ name: out, via: direct, probe: off }]
  listeners: [{ name: led, kind: transparent, listen: "0.0.0.0:8443", transparent: { by: redirect, sni: require } }]
"#;

#[test]
fn sessions_that_the_kernel_leads_here_go_where_they_were_meant_to() {
    if !machine_has(&[NAMESPACES, &[Need::Tool("nginx"), Need::Tool("curl")]].concat()) {
        return;
    }
    let [sensor, router, server] = std::array::from_fn(|_| Namespace::create());
    join(
        End { namespace: &sensor, interface: "eth0", addresses: &["10.3.1.7/24"] },
        End { namespace: &router, interface: "plant", addresses: &["10.3.1.1/24"] },
    );
    join(
        End { namespace: &router, interface: "out", addresses: &["10.20.8.1/24"] },
        End { namespace: &server, interface: "eth0", addresses: &["10.20.8.5/24"] },
    );
    // The server knows no way back to the sensor: what arrives comes from the relay.
    sensor.ip("route add default via 10.3.1.1");
    router.forward();
    sensor.set_hosts(&[("10.20.8.5", HUB)]);
    let authority = Authority::create();
    let _nginx = Nginx::start(&server, &authority);
    let mut gateway = Gateway::new("router").inside(&router);
    gateway.write(TRANSPARENT);
    gateway.write_file("authority.pem", &authority.pem, 0o644);
    gateway.start();
    let ca = gateway.folder().join("authority.pem").display().to_string();
    let fetch = |words: &[&str]| {
        let url = format!("https://{HUB}/");
        sensor.exec(&[&["curl", "-sS", "--max-time", "5", "--cacert", &ca, &url][..], words].concat())
    };
    assert_ne!(fetch(&["--max-time", "1"]).code, Some(0), "nothing leads there yet");

    let config = gateway.config().display().to_string();
    let rules = finish(&mut gateway.bare_command(&["render", "nft", "-c", &config]), seconds(10)).success();
    finish_with_input(&mut router.command(&["nft", "-f", "-"]), rules.as_bytes(), seconds(10)).success();
    let (fetched, line) = gateway.session(|| fetch(&[]));
    assert_eq!(fetched.success(), format!("{HUB}\n"));
    assert_eq!((line.field("listener"), line.field("sensor"), line.field("host")), ("led", "line-1", HUB), "{line:?}");
    assert!(line.field("downstream").starts_with("10.3.1.7:"), "{line:?}");
    // By another name, or by none, the same address is out of reach.
    let (refused, line) = gateway.session(|| sensor.exec(&["curl", "-sSk", "--max-time", "5", "https://10.20.8.5/"]));
    assert_ne!(refused.code, Some(0), "{refused}");
    assert_eq!(line.field("reason"), "no_server_name", "{line:?}");
    let elsewhere = ["curl", "-sSk", "--max-time", "5", "--connect-to", "::10.20.8.5:443", "https://elsewhere.example/"];
    let (refused, line) = gateway.session(|| sensor.exec(&elsewhere));
    assert_ne!(refused.code, Some(0), "{refused}");
    assert_eq!(line.field("reason"), "host_not_listed", "{line:?}");
}

#[test]
fn a_drain_tells_first_then_refuses_then_ends_sessions_one_by_one() {
    let (_sink, hub) = sink();
    let limits = "drain_notice: 1s, drain: 3s, drain_spread: 2s";
    let mut relay = Relay::start("relay", &Parts { hosts: &[&hub], sensors: &[LINE_3], paths: &[OUT], limits, ..Parts::default() });
    assert_eq!(relay.ready(), 200);
    let mut held: Vec<Answer> = (0..4).map(|_| held(&relay)).collect();
    let mut drain = Process::start("skyway drain", &mut relay.gateway.command(&["drain"]));
    wait_for("it is not ready any more", seconds(5), || relay.ready() == 503);
    let mut late = connect(relay.connect(), &authority_of(HUB));
    begin(&mut late, HUB);
    assert_eq!(relay.gateway.status()["relay"]["draining"], true);
    wait_for("nobody is taken any more", seconds(5), || TcpStream::connect(relay.connect()).is_err());
    assert!(relay.gateway.is_running() && drain.is_running(), "it waits for those that stand");
    // The sink takes them in their order: the first one may still end as it likes.
    assert_eq!(end(&mut held[0]), ANSWER);
    assert_eq!(relay.gateway.process().wait(seconds(15)).code(), Some(0));
    let told = drain.finish(seconds(5));
    assert!(told.code == Some(0) && told.stdout.contains("drained"), "{told}");
    let lines = relay.gateway.access_lines();
    assert_eq!(lines.iter().filter(|line| line.field("reason") == "closed").count(), 1, "{lines:?}");
    let cut: Vec<&AccessLine> = lines.iter().filter(|line| line.field("reason") == "drained").collect();
    assert!(cut.len() == 4 && cut.iter().all(|line| line.field("code") == "KD"), "{cut:?}");
    let mut ends: Vec<u64> = cut.iter().map(|line| line.number("duration_ms")).collect();
    ends.sort_unstable();
    // The shortest is the late one; the other three began together.
    assert!(ends[3] - ends[1] >= 300, "their ends are spread: {ends:?}");
}

/// What a service manager does: it holds the socket and starts the gateway, and starts it again when it has ended; in between
/// it says `gone` and waits to be told.
const MANAGER: &str = r#"
import ctypes, signal
import os, socket, sys
address, port, fifo, program, config = sys.argv[1:]
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind((address, int(port)))
listener.listen(64)
os.mkfifo(fifo)
for turn in range(2):
    child = os.fork()
    if child == 0:
        os.dup2(listener.fileno(), 3)
        os.set_inheritable(3, True)
        given = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "proxy"}
        # Whoever ends this manager ends what it started.
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        os.execve(program, [program, "run", "-c", config], {**os.environ, **given})
    os.waitpid(child, 0)
    print("gone", flush=True)
    if turn == 0:
        open(fifo).read()
"#;

#[test]
fn an_upgrade_with_a_socket_of_the_service_manager_refuses_nobody() {
    if !machine_has(&[Need::Tool("python3")]) {
        return;
    }
    let (_sink, hub) = sink();
    let parts = Parts { hosts: &[&hub], sensors: &[LINE_3], paths: &[OUT], limits: "drain: 2s", ..Parts::default() };
    let relay = Relay::build("relay", &parts);
    let folder = relay.gateway.folder();
    let (script, fifo) = (folder.join("manager.py"), folder.join("go"));
    fs::write(&script, MANAGER).expect("the manager written");
    let program = executable_by_nobody(&binary(), folder);
    let mut manager = Command::new("python3");
    manager.arg(&script).arg(relay.address.to_string()).arg("3128").arg(&fifo).arg(&program).arg(relay.gateway.config());
    let mut manager = Process::start("a service manager", manager.env_remove("RUST_LOG").current_dir(folder));
    manager.wait_for_line(" ready", seconds(20));
    let (mut first, authority) = (connect(relay.connect(), &authority_of(HUB)), authority_of(HUB));
    assert_eq!(go_through(&mut first, HUB), ANSWER);

    // As who runs the manager, whose socket it is.
    let drain = || finish(Command::new(&program).args(["drain", "-c"]).arg(relay.gateway.config()), seconds(15)).success();
    drain();
    wait_for("the first gateway is gone", seconds(10), || manager.stdout().contains("gone"));
    // Nobody is there to answer, and yet nobody is refused.
    let waiting: Vec<TcpStream> = (0..5).map(|_| dial(relay.connect())).collect();
    for mut stream in &waiting {
        write!(stream, "CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n").expect("the request is sent");
    }
    fs::write(&fifo, "go").expect("the manager is told");
    // All at once: the server takes one after the other, in an order that is not theirs.
    let ended: Vec<_> = waiting
        .into_iter()
        .map(|mut stream| {
            thread::spawn(move || {
                let head = read_head(&mut stream);
                let mut answer = Answer { status: status(&head), head: String::from_utf8_lossy(&head).into_owned(), stream };
                let kept = if answer.status == 200 { go_through(&mut answer, HUB) } else { Vec::new() };
                (answer.status, kept)
            })
        })
        .collect();
    for session in ended {
        assert_eq!(session.join().expect("no panic"), (200, ANSWER.to_vec()));
    }
    let lines = || AccessLine::all(&manager.stderr()).into_iter().filter(|line| line.field("reason") == "closed").count();
    wait_for("all sessions are logged", seconds(5), || lines() == 6);
    drain();
    assert_eq!(manager.wait(seconds(10)).code(), Some(0));
    assert!(!manager.stderr().contains("panicked"));
}
