//! The clock: against a time server, and against times that this host itself has shown before.
//!
//! A wrong clock hides behind other troubles: a sensor is not activated, good certificates seem to have expired, and a peer
//! takes handshakes for replays after the clock was set back. Whether the clock is right, only another clock can tell; so
//! a time server is asked once, as any simple client does (one query, one answer, no filtering: seconds matter here, not
//! milliseconds). What the clock must not do is go back, and that shows without anybody's help.
//!
//! Left out: NTP's authentication, and setting the clock.
//!
//! Source: RFC 5905 §6 (short form and timestamps), §7.3 (header), §7.4 (kiss-o'-death), §8 (offset), §14 (simple clients).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::net::UdpSocket;

use super::finding::{Finding, code};
use crate::admin::Status;
use crate::relay::{HostName, NtpServer, Resolver};

/// Asked where no `ntp` listener says otherwise: Windows asks it, so firewalls often let it pass.
const USUAL: &str = "time.windows.com";
const PORT: u16 = 123;
/// For one server: its name, and its answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// More servers than these are not asked: the first that answers is believed.
const MOST_SERVERS: usize = 3;

/// Worth a word: certificates and handshakes do not mind yet.
const OFF_MS: i64 = 5_000;
/// From here on it may be the reason for anything that has to do with certificates and tokens.
const WRONG_MS: i64 = 60_000;
/// A time that we wrote down ourselves must not lie this far ahead.
const AHEAD: Duration = Duration::from_secs(60);

const HEADER_BYTES: usize = 48;
/// Version 4, client.
const QUERY: u8 = (4 << 3) | 3;
const SERVER: u8 = 4;
/// Leap indicator of a server that has no time itself.
const UNSYNCHRONIZED: u8 = 3;
/// From 1900-01-01 to 1970-01-01.
const EPOCH_SECS: u64 = 2_208_988_800;

/// What a time server said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Measured {
    /// How far the server's clock is ahead of ours.
    Offset { server: String, offset_ms: i64 },
    /// Nobody could be asked, each with why.
    Unknown(Vec<String>),
}

/// Asks the first of `servers` that answers; none: the usual one.
pub(super) async fn measure(servers: Vec<NtpServer>, resolver: Resolver) -> Measured {
    let usual = || HostName::parse(USUAL).map(|host| NtpServer::Name { host, port: PORT });
    let servers = if servers.is_empty() { usual().into_iter().collect() } else { servers };
    let mut failures = Vec::new();
    for server in servers.iter().take(MOST_SERVERS) {
        let name = shown(server);
        match tokio::time::timeout(PATIENCE, ask(server, &resolver)).await {
            Ok(Ok(offset_ms)) => return Measured::Offset { server: name, offset_ms },
            Ok(Err(error)) => failures.push(format!("{name}: {error}")),
            Err(_) => failures.push(format!("{name}: no answer in {} s", PATIENCE.as_secs())),
        }
    }
    Measured::Unknown(failures)
}

/// What the answer says about the clock.
pub(super) fn judge(measured: &Measured) -> Finding {
    let subject = "clock";
    let next = "set the clock and keep it right (chrony, systemd-timesyncd; in a virtual machine also the hypervisor's)";
    match measured {
        Measured::Unknown(why) => Finding::note(
            code::CLOCK,
            subject,
            format!("whether it is right cannot be told: no time server answers ({})", why.join("; ")),
            "let UDP 123 pass to a time server, or name one with --ntp",
        ),
        Measured::Offset { server, offset_ms } if offset_ms.abs() > OFF_MS => {
            let direction = if *offset_ms > 0 { "behind" } else { "ahead of" };
            let what = format!("{} {direction} {server}", span(Duration::from_millis(offset_ms.unsigned_abs())));
            if offset_ms.abs() > WRONG_MS {
                let effects = "sensors are not activated, certificates are judged wrongly";
                Finding::problem(code::CLOCK, subject, format!("wrong: {what}; {effects}"), next)
            } else {
                Finding::warning(code::CLOCK, subject, format!("off: {what}"), next)
            }
        }
        Measured::Offset { server, offset_ms } => {
            Finding::good(code::CLOCK, subject, format!("right: {} ms off {server}", offset_ms.unsigned_abs()))
        }
    }
}

/// Times of our own that lie ahead: when the file was written, and the last handshakes.
pub(super) fn went_back(file_written: Option<SystemTime>, status: Option<&Status>, now: SystemTime) -> Vec<Finding> {
    let ahead = |time: SystemTime| time.duration_since(now).ok().filter(|ahead| *ahead > AHEAD);
    let next = "find out what sets the clock; a peer refuses our handshakes until the clock has passed where it was, or until the peer's \
                WireGuard is restarted";
    let mut findings = Vec::new();
    if let Some(ahead) = file_written.and_then(ahead) {
        let what = format!("by it the configuration file was written {} from now: it was set back, or was ahead then", span(ahead));
        findings.push(Finding::warning(code::CLOCK_WENT_BACK, "clock", what, next));
    }
    for tunnel in status.iter().flat_map(|status| &status.tunnels) {
        for peer in &tunnel.peers {
            let Some(handshake) = peer.last_handshake_unix.map(|at| UNIX_EPOCH + Duration::from_secs(at)) else { continue };
            if let Some(ahead) = ahead(handshake) {
                let what = format!(
                    "by it the last handshake of the tunnel {} with {} was {} from now: it was set back since",
                    tunnel.name,
                    peer.name,
                    span(ahead)
                );
                findings.push(Finding::problem(code::CLOCK_WENT_BACK, "clock", what, next));
            }
        }
    }
    findings
}

async fn ask(server: &NtpServer, resolver: &Resolver) -> io::Result<i64> {
    let addresses = match server {
        NtpServer::Address(address) => vec![*address],
        NtpServer::Name { host, port } => {
            let resolved = resolver.resolve(host.as_str()).await.map_err(io::Error::other)?;
            resolved.into_iter().map(|address| SocketAddr::new(address, *port)).collect()
        }
    };
    let mut failure = io::Error::from(io::ErrorKind::NotFound);
    for address in addresses {
        match exchange(address).await {
            Ok(offset_ms) => return Ok(offset_ms),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

async fn exchange(server: SocketAddr) -> io::Result<i64> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    socket.connect(server).await?;
    // The clock may be set meanwhile; how long the answer took is told by another.
    let (sent, sent_at) = (timestamp(SystemTime::now()), Instant::now());
    socket.send(&query(sent)).await?;
    let mut answer = [0u8; 2 * HEADER_BYTES];
    loop {
        let length = socket.recv(&mut answer).await?;
        let took = fraction(sent_at.elapsed());
        match read(answer.get(..length).unwrap_or_default(), sent, sent.wrapping_add(took)) {
            Answer::Offset(offset_ms) => return Ok(offset_ms),
            Answer::Refused(why) => return Err(io::Error::other(why)),
            Answer::NotOurs => {}
        }
    }
}

fn query(sent: u64) -> [u8; HEADER_BYTES] {
    let mut query = [0u8; HEADER_BYTES];
    query[0] = QUERY;
    query[40..].copy_from_slice(&sent.to_be_bytes());
    query
}

#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// In milliseconds, how far the server is ahead.
    Offset(i64),
    Refused(&'static str),
    /// Somebody else's, or no answer at all.
    NotOurs,
}

/// `sent` and `received`: ours. All times in 2⁻³² s since 1900, whatever the era.
fn read(answer: &[u8], sent: u64, received: u64) -> Answer {
    let time = |at: usize| answer.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes);
    let (Some(&first), Some(&stratum)) = (answer.first(), answer.get(1)) else { return Answer::NotOurs };
    let (Some(origin), Some(arrived), Some(left)) = (time(24), time(32), time(40)) else { return Answer::NotOurs };
    if first & 0b111 != SERVER || origin != sent {
        return Answer::NotOurs;
    }
    if stratum == 0 {
        return Answer::Refused("it does not want to be asked (kiss-o'-death)");
    }
    if first >> 6 == UNSYNCHRONIZED || stratum > 15 || left == 0 {
        return Answer::Refused("it has no time itself");
    }
    // The difference of two times is right as long as they are less than 68 years apart.
    let there = i128::from(arrived.wrapping_sub(sent).cast_signed());
    let back = i128::from(left.wrapping_sub(received).cast_signed());
    let offset_ms = ((there + back) / 2 * 1000) >> 32;
    Answer::Offset(i64::try_from(offset_ms).unwrap_or(i64::MAX))
}

fn timestamp(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    (EPOCH_SECS << 32).wrapping_add(fraction(since))
}

/// In 2⁻³² s; what is more than 136 years is gone.
fn fraction(span: Duration) -> u64 {
    (span.as_secs() << 32) | ((u64::from(span.subsec_nanos()) << 32) / 1_000_000_000)
}

fn shown(server: &NtpServer) -> String {
    match server {
        NtpServer::Address(address) if address.port() == PORT => address.ip().to_string(),
        NtpServer::Address(address) => address.to_string(),
        NtpServer::Name { host, port: PORT } => host.to_string(),
        NtpServer::Name { host, port } => format!("{host}:{port}"),
    }
}

/// `2 d 4 h`, `1 h 0 min`, `12 s`: the two largest units.
fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Severity;
    use super::super::tunnels::tests::{peer, status, tunnel};
    use super::*;

    /// The answer of a server that is `ahead`, half a second each way.
    fn answer(sent: u64, ahead: i64) -> [u8; HEADER_BYTES] {
        let mut answer = [0u8; HEADER_BYTES];
        answer[0] = (4 << 3) | SERVER;
        answer[1] = 2;
        let there = sent.wrapping_add((ahead << 32).cast_unsigned()).wrapping_add(1 << 31);
        for (at, time) in [(24, sent), (32, there), (40, there)] {
            answer[at..at + 8].copy_from_slice(&time.to_be_bytes());
        }
        answer
    }

    #[test]
    fn tells_the_offset_in_either_direction_and_across_eras() {
        for sent in [timestamp(UNIX_EPOCH + Duration::from_secs(1_900_000_000)), u64::MAX - 5, 1 << 32] {
            for ahead in [0, 1, -1, 3600, -3600, 86_400 * 365] {
                let received = sent.wrapping_add(1 << 32);
                assert_eq!(read(&answer(sent, ahead), sent, received), Answer::Offset(ahead * 1000), "{sent} {ahead}");
            }
        }
    }

    #[test]
    fn believes_only_an_answer_to_its_query() {
        let good = answer(7, 0);
        assert_eq!(read(&good, 8, 9), Answer::NotOurs, "another query's");
        assert_eq!(read(&good[..47], 7, 9), Answer::NotOurs);
        assert_eq!(read(&[], 7, 9), Answer::NotOurs);
        assert_eq!(read(&query(7), 7, 9), Answer::NotOurs);
        let with = |at: usize, value: u8| {
            let mut answer = good;
            answer[at] = value;
            read(&answer, 7, 9)
        };
        assert!(matches!(with(1, 0), Answer::Refused(why) if why.contains("kiss")));
        assert!(matches!(with(1, 16), Answer::Refused(_)));
        assert!(matches!(with(0, 0b1110_0100), Answer::Refused(_)), "a server that has no time");
    }

    #[test]
    fn an_hour_is_a_problem_and_seconds_are_a_warning() {
        let of = |offset_ms| judge(&Measured::Offset { server: "time.example".into(), offset_ms });
        assert_eq!((of(4_999).severity, of(-4_999).severity), (Severity::Good, Severity::Good));
        assert_eq!((of(5_001).severity, of(-59_000).severity), (Severity::Warning, Severity::Warning));
        let behind = of(3_600_000);
        assert_eq!(behind.severity, Severity::Problem);
        assert!(behind.what.contains("1 h 0 min behind time.example"), "{}", behind.what);
        assert!(of(-3_600_000).what.contains("1 h 0 min ahead of time.example"));
        assert_eq!(judge(&Measured::Unknown(vec!["a: no answer in 3 s".into()])).severity, Severity::Note);
    }

    #[test]
    fn a_clock_that_went_back_shows_by_itself() {
        let now = UNIX_EPOCH + Duration::from_secs(1_900_000_000);
        assert!(went_back(Some(now), None, now).is_empty());
        assert!(went_back(Some(now + Duration::from_secs(59)), None, now).is_empty());
        let file = went_back(Some(now + Duration::from_secs(3600)), None, now);
        assert!(matches!(&file[..], [finding] if finding.what.contains("1 h 0 min from now")), "{file:?}");
        let mut peer = peer();
        peer.last_handshake_unix = Some(1_900_000_120);
        let status = status(vec![tunnel(vec![peer])]);
        let handshake = went_back(None, Some(&status), now);
        assert!(matches!(&handshake[..], [finding] if finding.severity == Severity::Problem), "{handshake:?}");
    }

    #[tokio::test]
    async fn asks_a_server_and_takes_the_next_if_one_is_silent() {
        let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bound");
        let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bound");
        let address = server.local_addr().expect("an address");
        let servers = vec![NtpServer::Address(silent.local_addr().expect("an address")), NtpServer::Address(address)];
        tokio::spawn(async move {
            let mut query = [0u8; 64];
            let (length, from) = server.recv_from(&mut query).await.expect("asked");
            assert_eq!((length, query[0]), (HEADER_BYTES, QUERY));
            let sent = u64::from_be_bytes(query[40..48].try_into().expect("eight bytes"));
            server.send_to(&answer(sent, 3600), from).await.expect("sent");
        });
        let resolver = Resolver::new(&[]).expect("a resolver");
        let measuring = tokio::spawn(measure(servers, resolver));
        silent.recv(&mut [0; 64]).await.expect("asked first");
        tokio::time::pause();
        tokio::time::advance(PATIENCE).await;
        tokio::time::resume();
        match measuring.await.expect("measured") {
            Measured::Offset { server, offset_ms } => {
                assert_eq!(server, address.to_string());
                // The answer's half second each way did not pass here.
                assert!((3_599_000..=3_602_000).contains(&offset_ms), "{offset_ms}");
            }
            Measured::Unknown(why) => panic!("{why:?}"),
        }
    }
}
