//! What senders are told when the path takes less than the tunnel's MTU: by ICMP, and by the MSS of a SYN.
//!
//! The wire swallows what is longer than 1296 bytes, without a word to anybody. That the size is found and a transfer completes
//! is faults.rs. Left out: ICMPv6, because IPv6 packets of up to 1280 bytes are sent whatever the path takes, and this one takes
//! less.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};

use tests::impairment::Settings;
use tests::inside::inside;
use tests::netns::Namespace;
use tests::report::{NAMESPACES, Need, machine_has};
use tests::wire::{SOON, Shape, Side, Wire};
use tests::{seconds, wait_for_some};

/// Of IP on the wire, in bytes.
const LARGEST: usize = 1296;
/// Of IP, UDP and WireGuard around a packet, over IPv4.
const OVERHEAD: usize = 60;
/// Steps in which a size is searched, and padding: what was found may be so much less than what fits.
const STEP: u64 = 24;
/// IPv4 and ICMP before the payload of an echo.
const ECHO_HEADERS: u64 = 28;
const TCP_PORT: u16 = 5001;
/// Of TCP, if timestamps are on. They count as payload in an MSS that is offered (RFC 6691).
const TIMESTAMPS: u64 = 12;

fn possible() -> bool {
    machine_has(NAMESPACES)
}

/// Both gateways, once each has found what the wire takes.
#[track_caller]
fn with_a_black_hole() -> Wire {
    let wire = Wire::up(Shape::PLAIN);
    wire.impairment().both(Settings { drop_larger: Some(LARGEST), ..Settings::CLEAN });
    for side in [&wire.here, &wire.there] {
        path_mtu(side);
    }
    wire
}

/// The size that a side has found, at the latest when it must have found one.
#[track_caller]
fn path_mtu(side: &Side) -> u64 {
    let fits = (LARGEST - OVERHEAD) as u64;
    wait_for_some(&format!("{} has found the size of the path", side.name), SOON, || {
        side.peer()["path_mtu"].as_u64().filter(|found| (fits - STEP..=fits).contains(found))
    })
}

/// The numbers that follow the word MTU in what `ping` prints: of an ICMP error that came, and of the host's own refusal.
fn told_sizes(printed: &str) -> Vec<u64> {
    let size = |line: &str| -> Option<u64> {
        let (_, rest) = line.split_once("mtu")?;
        let digits: String = rest.chars().skip_while(|sign| !sign.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    };
    printed.lines().filter_map(size).collect()
}

/// The MSS that the established connection by [`TCP_PORT`] sends with, as the kernel in `namespace` has it.
#[track_caller]
fn mss(namespace: &Namespace) -> u64 {
    let filter = format!("( sport = :{TCP_PORT} or dport = :{TCP_PORT} )");
    let listed = namespace.exec(&["ss", "-H", "-t", "-i", "-n", "state", "established", &filter]).success();
    // Beside it stand rcvmss and advmss.
    let found: Vec<u64> = listed.split_whitespace().filter_map(|word| word.strip_prefix("mss:")?.parse().ok()).collect();
    assert_eq!(found.len(), 1, "one connection was expected: {listed}");
    found[0]
}

#[test]
fn a_sender_is_told_by_icmp_what_the_path_takes() {
    if !possible() {
        return;
    }
    let wire = with_a_black_hole();
    let (size, back) = (path_mtu(&wire.here), path_mtu(&wire.there));
    let to = wire.there.inside[0];
    // Less than the tunnel's MTU of 1420, so that it is not the device's that refuses it.
    let finished = wire.here.namespace.exec(&["ping", "-n", "-M", "do", "-s", "1350", "-c", "5", "-i", "0.2", "-W", "1", to]);
    assert_eq!(path_mtu(&wire.here), size, "the size stood meanwhile");
    assert_eq!(finished.code, Some(1), "none was answered: {finished}");
    assert!(finished.stdout.contains("Frag needed"), "{finished}");
    let told = told_sizes(&format!("{}\n{}", finished.stdout, finished.stderr));
    assert!(!told.is_empty() && told.iter().all(|told| *told == size), "{size} bytes, told {told:?}: {finished}");

    let fits = size.min(back) - ECHO_HEADERS;
    assert_eq!(wire.here.namespace.ping(to, 3, &format!("-M do -s {fits}")), 3, "{fits} bytes of payload");
    wire.assert_wires_are_sound();
}

#[test]
fn a_new_connection_has_an_mss_that_fits_the_path_at_both_ends() {
    if !possible() || !machine_has(&[Need::Tool("ss")]) {
        return;
    }
    let wire = with_a_black_hole();
    for (address, headers) in wire.there.inside.into_iter().zip([40, 60]) {
        let ip: IpAddr = address.parse().expect("an address");
        let target = SocketAddr::new(ip, TCP_PORT);
        let size = path_mtu(&wire.here).min(path_mtu(&wire.there));
        let listener = inside(&wire.there.namespace, || TcpListener::bind(target)).unwrap_or_else(|error| panic!("{target}: {error}"));
        let dialled = inside(&wire.here.namespace, || TcpStream::connect_timeout(&target, seconds(20)));
        let dialled = dialled.unwrap_or_else(|error| panic!("{target}: {error}"));
        let (accepted, _) = listener.accept().expect("the connection stands");
        // No data yet: what they have they have from the handshake, and not from ICMP.
        let offered = size - headers;
        for side in [&wire.here, &wire.there] {
            let mss = mss(&side.namespace);
            assert!((offered - TIMESTAMPS..=offered).contains(&mss), "{} to {target}: {mss}, path {size}", side.name);
        }
        drop((dialled, accepted));
    }
    wire.assert_wires_are_sound();
}
