//! An `ntp` listener: takes sensors' time queries to a time server, because a sensor whose clock drifts is not activated.
//!
//! A query goes on byte by byte and so does its answer: this gateway's clock has no part in it, and what the two have
//! agreed on (extension fields, authentication) still holds. Only known sensors are served, and only queries of clients
//! pass: the other modes change or tell of a server's state, and have been used to flood others. What is under way at
//! once is bounded, in all and for each sensor.
//!
//! A client takes half of the time that its query was under way for the way there, so waiting for a dead server before
//! asking the next falsifies that one answer, by up to half of the wait. So whichever server answered last is asked first.
//!
//! Deliberately not here: a clock of our own, NTP's control messages, symmetric and broadcast modes, spreading the load:
//! a time server sees all sensors as one client and may ask it to slow down, which is passed on. As with dns_server.rs,
//! `listen` should name an address on a host that has more than one.
//!
//! Source: RFC 5905 §7.3 (header), §8 and §9.2 (which answer belongs to which query).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{debug, warn};

use super::dns_server::{Place, Places, bind_udp, connect_udp};
use super::host::HostName;
use super::resolver::Resolver;

/// Where sensors' time queries go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NtpSettings {
    /// In order of preference; none: nobody is answered.
    pub servers: Vec<NtpServer>,
}

/// A time server; the port is 123 unless said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NtpServer {
    Address(SocketAddr),
    Name { host: HostName, port: u16 },
}

/// What an `ntp` listener asks of its owner. Asked anew for each query, so that a reload holds at once.
pub trait TimeService: Send + Sync {
    /// The sensor that a source address belongs to.
    fn sensor(&self, source: IpAddr) -> Option<Arc<str>>;
    fn settings(&self) -> Arc<NtpSettings>;
    /// Resolves the names of time servers.
    fn resolver(&self) -> Resolver;
    /// Counts what became of a query; `sensor` is None if nobody knows it.
    fn count(&self, what: &'static str, sensor: Option<&Arc<str>>);
}

/// A UDP socket that is bound and not yet served.
pub struct NtpListener(UdpSocket);

impl NtpListener {
    /// Binds `address`; an unspecified IPv6 address takes IPv4 as well. Called inside a tokio runtime.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        bind_udp(address).map(Self)
    }

    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Forwards until `stop` turns true. What is under way then is dropped: a sensor asks again.
    pub async fn serve(self, who: Arc<dyn TimeService>, mut stop: watch::Receiver<bool>) {
        let forwarder =
            Arc::new(Forwarder { who, socket: self.0, pending: Places::new(PENDING, PENDING_EACH), first: AtomicUsize::new(0) });
        let mut forwards = JoinSet::new();
        // One byte more than is taken: what fills it was longer.
        let mut buffer = vec![0u8; MAX_BYTES + 1];
        let mut failing = false;
        loop {
            while forwards.try_join_next().is_some() {}
            let received = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                received = forwarder.socket.recv_from(&mut buffer) => received,
            };
            match received {
                Ok((length, from)) => {
                    failing = false;
                    let query = buffer.get(..length).unwrap_or_default();
                    if let Some((sensor, place)) = forwarder.admit(query, from.ip().to_canonical()) {
                        forwards.spawn(Arc::clone(&forwarder).forward(place, query.to_vec(), from, sensor));
                    }
                }
                Err(error) => {
                    // Once a row: the same line ten times a second helps nobody.
                    if !std::mem::replace(&mut failing, true) {
                        warn!(%error, "cannot receive time queries; trying again");
                    }
                    tokio::time::sleep(BACK_OFF).await;
                }
            }
        }
    }
}

/// What the tasks of a listener share.
struct Forwarder {
    who: Arc<dyn TimeService>,
    socket: UdpSocket,
    pending: Arc<Places>,
    /// The place in the settings of the server that answered last.
    first: AtomicUsize,
}

impl Forwarder {
    /// Whose query it is, and a place for it; None if it goes nowhere, which is counted.
    fn admit(&self, query: &[u8], source: IpAddr) -> Option<(Arc<str>, Place)> {
        let Some(sensor) = self.who.sensor(source) else {
            self.who.count("unknown_sensor", None);
            return None;
        };
        if let Some(why) = refusal(query) {
            self.who.count(why, Some(&sensor));
            return None;
        }
        let Some(place) = self.pending.take(&sensor) else {
            self.who.count("limit_pending", Some(&sensor));
            return None;
        };
        Some((sensor, place))
    }

    /// Asks the servers until one answers, and gives the sensor its answer.
    async fn forward(self: Arc<Self>, place: Place, query: Vec<u8>, from: SocketAddr, sensor: Arc<str>) {
        let outcome = match self.ask(&query).await {
            Some(answer) => match self.socket.send_to(&answer, from).await {
                Ok(_) => "forwarded",
                Err(error) => {
                    debug!(downstream = %from, %error, "cannot send an answer");
                    "send_failed"
                }
            },
            None => "forward_failed",
        };
        drop(place);
        self.who.count(outcome, Some(&sensor));
    }

    async fn ask(&self, query: &[u8]) -> Option<Vec<u8>> {
        let settings = self.who.settings();
        let first = self.first.load(Ordering::Relaxed);
        // After a reload it may be past the end.
        let start = if first < settings.servers.len() { first } else { 0 };
        let (earlier, later) = settings.servers.split_at(start);
        for server in later.iter().chain(earlier) {
            match tokio::time::timeout(PATIENCE, self.ask_server(server, query)).await {
                Ok(Ok(answer)) => {
                    let at = settings.servers.iter().position(|other| other == server);
                    self.first.store(at.unwrap_or_default(), Ordering::Relaxed);
                    return Some(answer);
                }
                Ok(Err(error)) => debug!(?server, %error, "time server failed"),
                Err(_) => debug!(?server, "time server did not answer in time"),
            }
        }
        None
    }

    /// Asks the addresses of one server in order, the next only if the one before cannot be reached.
    async fn ask_server(&self, server: &NtpServer, query: &[u8]) -> io::Result<Vec<u8>> {
        let addresses = match server {
            NtpServer::Address(address) => vec![*address],
            NtpServer::Name { host, port } => {
                let resolved = self.who.resolver().resolve(host.as_str()).await.map_err(io::Error::other)?;
                resolved.into_iter().map(|address| SocketAddr::new(address, *port)).collect()
            }
        };
        let mut failure = io::Error::from(io::ErrorKind::NotFound);
        for address in addresses {
            match exchange(address, query).await {
                Ok(answer) => return Ok(answer),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }
}

/// Sends a query to one address and waits for its answer, past whatever else comes.
async fn exchange(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let socket = connect_udp(server).await?;
    socket.send(query).await?;
    let mut buffer = vec![0u8; MAX_BYTES + 1];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let received = buffer.get(..length).unwrap_or_default();
        if is_answer(query, received) {
            return Ok(received.to_vec());
        }
    }
}

/// Why a sensor's datagram does not go on, in a word for logs and metrics; None if it does.
fn refusal(query: &[u8]) -> Option<&'static str> {
    if !(HEADER_BYTES..=MAX_BYTES).contains(&query.len()) {
        return Some("bad_length");
    }
    let first = query.first().copied().unwrap_or_default();
    if mode(first) != CLIENT {
        return Some("bad_mode");
    }
    if !VERSIONS.contains(&version(first)) {
        return Some("bad_version");
    }
    None
}

/// Whether a datagram from the server is the answer to `query`: it repeats when that was sent, which only the server has seen.
fn is_answer(query: &[u8], answer: &[u8]) -> bool {
    let (Some(sent), Some(origin)) = (query.get(TRANSMIT), answer.get(ORIGIN)) else { return false };
    let first = answer.first().copied().unwrap_or_default();
    (HEADER_BYTES..=MAX_BYTES).contains(&answer.len()) && mode(first) == SERVER && origin == sent
}

const fn mode(first: u8) -> u8 {
    first & 0b111
}

const fn version(first: u8) -> u8 {
    (first >> 3) & 0b111
}

/// The header, with which every message begins (RFC 5905 §7.3).
const HEADER_BYTES: usize = 48;

/// Longer ones do not occur: with NTS and eight cookies an answer has about 900.
const MAX_BYTES: usize = 1024;

/// Bytes of the header: when the client sent its query, as the server repeats it, and as the client says it.
const ORIGIN: Range<usize> = 24..32;
const TRANSMIT: Range<usize> = 40..48;

/// Modes (RFC 5905 §7.3, figure 10).
const CLIENT: u8 = 3;
const SERVER: u8 = 4;

/// NTPv4, and NTPv3, whose client mode is the same.
const VERSIONS: RangeInclusive<u8> = 3..=4;

/// Queries under way at once; each holds a socket.
const PENDING: usize = 128;
const PENDING_EACH: usize = 32;

/// For a server to be resolved and to answer.
const PATIENCE: Duration = Duration::from_secs(2);

const BACK_OFF: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::Mutex;

    use tokio::sync::mpsc;

    use super::*;
    use crate::relay::dns::DnsSettings;
    use crate::relay::dns_server::{DnsListener, NameService};

    /// Knows 127.0.0.1 as one sensor, or nobody.
    struct Service {
        known: bool,
        settings: Mutex<Arc<NtpSettings>>,
        resolver: Resolver,
        counts: mpsc::UnboundedSender<&'static str>,
    }

    impl TimeService for Service {
        fn sensor(&self, source: IpAddr) -> Option<Arc<str>> {
            (self.known && source == Ipv4Addr::LOCALHOST).then(|| "line-3".into())
        }

        fn settings(&self) -> Arc<NtpSettings> {
            Arc::clone(&self.settings.lock().expect("not poisoned"))
        }

        fn resolver(&self) -> Resolver {
            self.resolver.clone()
        }

        fn count(&self, what: &'static str, _sensor: Option<&Arc<str>>) {
            let _test_is_over = self.counts.send(what);
        }
    }

    struct Running {
        address: SocketAddr,
        service: Arc<Service>,
        counted: mpsc::UnboundedReceiver<&'static str>,
        _stop: watch::Sender<bool>,
    }

    impl Running {
        fn start(servers: Vec<NtpServer>) -> Self {
            Self::with(true, servers, loopback())
        }

        fn with(known: bool, servers: Vec<NtpServer>, name_server: SocketAddr) -> Self {
            let (counts, counted) = mpsc::unbounded_channel();
            let resolver = Resolver::new(&[name_server]).expect("a resolver");
            let settings = Mutex::new(Arc::new(NtpSettings { servers }));
            let service = Arc::new(Service { known, settings, resolver, counts });
            let listener = NtpListener::bind(loopback()).expect("bound");
            let address = listener.local_address().expect("an address");
            let (stop, stopped) = watch::channel(false);
            let who: Arc<dyn TimeService> = Arc::<Service>::clone(&service);
            tokio::spawn(listener.serve(who, stopped));
            Self { address, service, counted, _stop: stop }
        }

        async fn next_count(&mut self) -> &'static str {
            within(self.counted.recv()).await.expect("counted")
        }

        async fn sensor(&self) -> UdpSocket {
            connect_udp(self.address).await.expect("a socket")
        }
    }

    async fn within<T>(waiting: impl Future<Output = T>) -> T {
        tokio::time::timeout(Duration::from_secs(60), waiting).await.expect("in time")
    }

    fn loopback() -> SocketAddr {
        (Ipv4Addr::LOCALHOST, 0).into()
    }

    /// A query sent at the time `sent`, in a manner of speaking.
    fn query(sent: u8) -> Vec<u8> {
        let mut query = vec![0u8; HEADER_BYTES];
        query[0] = (4 << 3) | CLIENT;
        query[TRANSMIT].fill(sent);
        query
    }

    /// Its answer by the server `stratum`.
    fn answer(query: &[u8], stratum: u8) -> Vec<u8> {
        let mut answer = query.to_vec();
        answer[0] = (4 << 3) | SERVER;
        answer[1] = stratum;
        answer.copy_within(TRANSMIT, ORIGIN.start);
        answer[TRANSMIT].fill(0xee);
        answer
    }

    /// A time server on loopback: what it is asked becomes what it says, in order.
    fn time_server(says: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static) -> SocketAddr {
        let socket = bind_udp(loopback()).expect("bound");
        let address = socket.local_addr().expect("an address");
        tokio::spawn(async move {
            let mut buffer = [0; 2048];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                let said = says(&buffer[..length]);
                for answer in said {
                    socket.send_to(&answer, from).await.expect("sent");
                }
            }
        });
        address
    }

    async fn received(sensor: &UdpSocket) -> Vec<u8> {
        let mut buffer = [0; 2048];
        let length = within(sensor.recv(&mut buffer)).await.expect("received");
        buffer[..length].to_vec()
    }

    async fn asked(sensor: &UdpSocket, query: &[u8]) -> Vec<u8> {
        sensor.send(query).await.expect("sent");
        received(sensor).await
    }

    #[test]
    fn only_a_clients_query_goes_on() {
        let with = |first: u8, length: usize| {
            let mut query = vec![0u8; length];
            query[0] = first;
            refusal(&query)
        };
        assert_eq!(with((4 << 3) | CLIENT, 48), None);
        assert_eq!(with((3 << 6) | (3 << 3) | CLIENT, 1024), None, "a clock that is not set, version 3");
        assert_eq!(with((4 << 3) | CLIENT, 47), Some("bad_length"));
        assert_eq!(with((4 << 3) | CLIENT, 1025), Some("bad_length"));
        assert_eq!(refusal(&[]), Some("bad_length"));
        for mode in [0, 1, 2, 4, 5, 6, 7] {
            assert_eq!(with((4 << 3) | mode, 48), Some("bad_mode"), "{mode}");
        }
        for version in [0, 1, 2, 5, 6, 7] {
            assert_eq!(with((version << 3) | CLIENT, 48), Some("bad_version"), "{version}");
        }
    }

    #[test]
    fn an_answer_repeats_when_the_query_was_sent() {
        let query = query(7);
        let answer = answer(&query, 1);
        assert!(is_answer(&query, &answer));
        assert!(!is_answer(&query, &query), "a query is no answer");
        assert!(!is_answer(&query, &answer[..47]));
        assert!(!is_answer(&query, &[]));
        let mut long = answer.clone();
        long.resize(MAX_BYTES + 1, 0);
        assert!(!is_answer(&query, &long));
        let mut other = answer;
        other[ORIGIN.start] ^= 1;
        assert!(!is_answer(&query, &other));
    }

    #[tokio::test]
    async fn a_query_and_its_answer_pass_unchanged() {
        let (queries, mut seen) = mpsc::unbounded_channel();
        let server = time_server(move |query| {
            let _test_is_over = queries.send(query.to_vec());
            vec![answer(query, 1)]
        });
        let mut running = Running::start(vec![NtpServer::Address(server)]);
        let mut query = query(7);
        query.extend([0xab; 20]);
        assert_eq!(asked(&running.sensor().await, &query).await, answer(&query, 1));
        assert_eq!(seen.recv().await.expect("seen"), query);
        assert_eq!(running.next_count().await, "forwarded");
    }

    #[tokio::test]
    async fn believes_only_the_answer_to_the_query() {
        let server = time_server(|query| {
            let mut other_time = answer(query, 1);
            other_time[ORIGIN.start] ^= 1;
            let mut other_mode = answer(query, 2);
            other_mode[0] = (4 << 3) | 5;
            vec![other_time, other_mode, answer(query, 3)]
        });
        let running = Running::start(vec![NtpServer::Address(server)]);
        assert_eq!(asked(&running.sensor().await, &query(7)).await, answer(&query(7), 3));
    }

    #[tokio::test]
    async fn a_stranger_hears_nothing() {
        let server = time_server(|query| vec![answer(query, 1)]);
        let mut running = Running::with(false, vec![NtpServer::Address(server)], loopback());
        running.sensor().await.send(&query(7)).await.expect("sent");
        assert_eq!(running.next_count().await, "unknown_sensor");
    }

    #[tokio::test]
    async fn what_is_no_query_goes_nowhere() {
        let server = time_server(|query| vec![answer(query, 1)]);
        let mut running = Running::start(vec![NtpServer::Address(server)]);
        let sensor = running.sensor().await;
        sensor.send(&query(7)[..47]).await.expect("sent");
        assert_eq!(running.next_count().await, "bad_length");
        sensor.send(&[0; MAX_BYTES + 100]).await.expect("sent");
        assert_eq!(running.next_count().await, "bad_length");
        sensor.send(&answer(&query(7), 1)).await.expect("sent");
        assert_eq!(running.next_count().await, "bad_mode");
        assert_eq!(asked(&sensor, &query(8)).await, answer(&query(8), 1), "nothing came before it");
    }

    #[tokio::test]
    async fn the_server_that_answered_last_is_asked_first() {
        let silent = bind_udp(loopback()).expect("bound");
        let good = time_server(|query| vec![answer(query, 2)]);
        let servers = vec![NtpServer::Address(silent.local_addr().expect("an address")), NtpServer::Address(good)];
        let running = Running::start(servers);
        let sensor = running.sensor().await;
        sensor.send(&query(7)).await.expect("sent");
        within(silent.recv(&mut [0; 2048])).await.expect("asked");
        // The clock stands only while it is moved: held, it would run ahead of the sockets.
        tokio::time::pause();
        tokio::time::advance(PATIENCE).await;
        tokio::time::resume();
        assert_eq!(received(&sensor).await, answer(&query(7), 2));

        assert_eq!(asked(&sensor, &query(8)).await, answer(&query(8), 2));
        let nothing = silent.try_recv(&mut [0; 2048]).expect_err("nothing was sent there");
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);

        *running.service.settings.lock().expect("not poisoned") = Arc::new(NtpSettings { servers: vec![NtpServer::Address(good)] });
        assert_eq!(asked(&sensor, &query(9)).await, answer(&query(9), 2), "after a reload there are fewer");
    }

    #[tokio::test]
    async fn without_a_server_nobody_is_answered() {
        // No socket may send there unless it says that it wants to.
        let nowhere = NtpServer::Address((Ipv4Addr::BROADCAST, 123).into());
        for servers in [Vec::new(), vec![nowhere]] {
            let mut running = Running::start(servers);
            running.sensor().await.send(&query(7)).await.expect("sent");
            assert_eq!(running.next_count().await, "forward_failed");
        }
    }

    #[tokio::test]
    async fn a_sensor_that_asks_without_end_is_not_heard() {
        let silent = bind_udp(loopback()).expect("bound");
        let mut running = Running::start(vec![NtpServer::Address(silent.local_addr().expect("an address"))]);
        let sensor = running.sensor().await;
        for _ in 0..=PENDING_EACH {
            sensor.send(&query(7)).await.expect("sent");
        }
        assert_eq!(running.next_count().await, "limit_pending");
    }

    /// Answers every name with 127.0.0.1.
    struct Names;

    impl NameService for Names {
        fn sensor(&self, _source: IpAddr) -> Option<Arc<str>> {
            Some("gateway".into())
        }

        fn is_listed(&self, _host: &HostName) -> bool {
            true
        }

        fn settings(&self) -> Arc<DnsSettings> {
            Arc::new(DnsSettings { answers: vec![Ipv4Addr::LOCALHOST.into()], ..DnsSettings::default() })
        }

        fn count(&self, _what: &'static str, _sensor: Option<&Arc<str>>) {}
    }

    #[tokio::test]
    async fn a_server_may_have_a_name() {
        let names = (0..32).find_map(|_| DnsListener::bind(loopback()).ok()).expect("a port that is free for both");
        let name_server = names.local_address().expect("an address");
        let (_stop, stopped) = watch::channel(false);
        tokio::spawn(names.serve(Arc::new(Names), stopped));
        let server = time_server(|query| vec![answer(query, 1)]);
        let host = HostName::parse("time.example").expect("a name");
        let running = Running::with(true, vec![NtpServer::Name { host, port: server.port() }], name_server);
        assert_eq!(asked(&running.sensor().await, &query(7)).await, answer(&query(7), 1));
    }
}
