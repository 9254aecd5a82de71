//! The sockets of a `dns` listener: queries by UDP and TCP, and those that go on to a name server. What a query is
//! answered with is decided in dns.rs.
//!
//! Only known sensors are answered. Whoever else asks gets not a byte, or the listener would be one more reflector for
//! traffic from invented addresses. What is under way at once is bounded, in all and for each sensor, so that one that
//! asks without end leaves room for the others. Every query ends in a counted word.
//!
//! A query goes on from a fresh port with an id of its own, by the host's own routing, and an answer is believed only if
//! it comes from the server that was asked and has that id and that question (RFC 5452).
//!
//! Deliberately not here: a cache (name servers have one), and answers by UDP from the address that was asked where a
//! listener has several: the kernel chooses it by the route back. So on a host with more than one address `listen`
//! should name one, or a sensor may throw away an answer that comes from another.
//!
//! Source: RFC 1035 §4.2, RFC 7766 (TCP), RFC 5452.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{debug, warn};

use super::dns::{self, DnsReply, DnsSettings};
use super::host::HostName;
use super::listener::{Listening, TcpAcceptor};
use super::policy::Tuning;
use super::{Accepted, Acceptor, Stream};

/// What a `dns` listener asks of its owner. Asked anew for each query, so that a reload holds at once.
pub trait NameService: Send + Sync {
    /// The sensor that a source address belongs to.
    fn sensor(&self, source: IpAddr) -> Option<Arc<str>>;
    /// Whether a name is answered with the gateway's own addresses.
    fn is_listed(&self, host: &HostName) -> bool;
    fn settings(&self) -> Arc<DnsSettings>;
    /// Counts what became of a query or of a connection; `sensor` is None if nobody knows it.
    fn count(&self, what: &'static str, sensor: Option<&Arc<str>>);
}

/// A UDP and a TCP socket that are bound to one address and not yet served.
pub struct DnsListener {
    udp: UdpSocket,
    tcp: TcpAcceptor,
}

impl DnsListener {
    /// Binds `address`; an unspecified IPv6 address takes IPv4 as well. Called inside a tokio runtime.
    ///
    /// Port 0 is any that is free for UDP; that it is taken for TCP is an error, as for any other.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let udp = bind_udp(address)?;
        let tcp = TcpAcceptor::bind(Listening {
            address: udp.local_addr()?,
            late: false,
            shared: false,
            redirection: None,
            tuning: Tuning::default(),
        })?;
        Ok(Self { udp, tcp })
    }

    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.udp.local_addr()
    }

    /// Answers until `stop` turns true. What is under way then is dropped: whoever asked asks again.
    pub async fn serve(self, who: Arc<dyn NameService>, stop: watch::Receiver<bool>) {
        let server = Arc::new(Server { who, forwards: Places::new(FORWARDS, FORWARDS_EACH) });
        tokio::join!(serve_udp(Arc::clone(&server), self.udp, stop.clone()), serve_tcp(server, self.tcp, stop));
    }
}

/// One task for all queries by UDP, and one more for each that goes on to a name server.
async fn serve_udp(server: Arc<Server>, socket: UdpSocket, mut stop: watch::Receiver<bool>) {
    let socket = Arc::new(socket);
    let mut forwards = JoinSet::new();
    // One byte more than is taken: what fills it was longer.
    let mut buffer = vec![0u8; dns::PAYLOAD_BYTES + 1];
    let mut failing = false;
    loop {
        while forwards.try_join_next().is_some() {}
        let received = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            received = socket.recv_from(&mut buffer) => received,
        };
        let (length, from) = match received {
            Ok(received) => received,
            Err(error) => {
                back_off(&mut failing, &error).await;
                continue;
            }
        };
        failing = false;
        let Some(sensor) = server.who.sensor(from.ip().to_canonical()) else {
            server.who.count("unknown_sensor", None);
            continue;
        };
        let Some(query) = buffer.get(..length).filter(|query| query.len() <= dns::PAYLOAD_BYTES) else {
            server.count("too_long", &sensor);
            continue;
        };
        let settings = server.who.settings();
        match server.reply(query, &settings, &sensor, true) {
            DnsReply::Answer(answer) => server.send(&socket, &answer, from, &sensor).await,
            DnsReply::Ignore(_) => {}
            DnsReply::Forward => {
                let Some(place) = server.forwards.take(&sensor) else {
                    if let Some(answer) = server.busy(query, &settings, &sensor) {
                        server.send(&socket, &answer, from, &sensor).await;
                    }
                    continue;
                };
                let (server, socket, query) = (Arc::clone(&server), Arc::clone(&socket), query.to_vec());
                forwards.spawn(async move {
                    if let Some(answer) = server.forward(place, &query, &settings, &sensor, true).await {
                        server.send(&socket, &answer, from, &sensor).await;
                    }
                });
            }
        }
    }
}

/// One task that accepts, and one for each connection.
async fn serve_tcp(server: Arc<Server>, mut acceptor: TcpAcceptor, mut stop: watch::Receiver<bool>) {
    let places = Places::new(CONNECTIONS, CONNECTIONS_EACH);
    let mut connections = JoinSet::new();
    let mut failing = false;
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            accepted = acceptor.accept() => accepted,
        };
        let Accepted { mut stream, from, .. } = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                back_off(&mut failing, &error).await;
                continue;
            }
        };
        failing = false;
        let Some(sensor) = server.who.sensor(from.ip()) else {
            server.who.count("unknown_sensor", None);
            continue;
        };
        let Some(place) = places.take(&sensor) else {
            server.count("limit_connections", &sensor);
            continue;
        };
        let server = Arc::clone(&server);
        connections.spawn(async move {
            let ended = converse(&server, &mut *stream, &sensor).await;
            server.count(ended, &sensor);
            drop(place);
        });
    }
}

/// Answers the queries of one connection, one after the other. Returns why it ended.
async fn converse(server: &Server, stream: &mut dyn Stream, sensor: &Arc<str>) -> &'static str {
    for _ in 0..QUERIES_PER_CONNECTION {
        let query = match tokio::time::timeout(QUERY_TIME, read_message(stream, dns::PAYLOAD_BYTES)).await {
            Err(_) => return "query_timeout",
            Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => return "too_long",
            Ok(Err(_)) => return "closed",
            Ok(Ok(query)) => query,
        };
        let settings = server.who.settings();
        let answer = match server.reply(&query, &settings, sensor, false) {
            DnsReply::Answer(answer) => Some(answer),
            DnsReply::Ignore(_) => None,
            DnsReply::Forward => match server.forwards.take(sensor) {
                Some(place) => server.forward(place, &query, &settings, sensor, false).await,
                None => server.busy(&query, &settings, sensor),
            },
        };
        // By TCP nobody has invented its address, and a connection without an answer is of no use.
        let Some(answer) = answer else { return "unanswered" };
        match tokio::time::timeout(QUERY_TIME, write_message(stream, &answer)).await {
            Err(_) => return "answer_timeout",
            Ok(Err(_)) => return "send_failed",
            Ok(Ok(())) => {}
        }
    }
    "limit_queries"
}

/// What the tasks of a listener share.
struct Server {
    who: Arc<dyn NameService>,
    forwards: Arc<Places>,
}

impl Server {
    /// Decides on a query, and counts what is decided at once.
    fn reply(&self, query: &[u8], settings: &DnsSettings, sensor: &Arc<str>, over_udp: bool) -> DnsReply {
        let reply = dns::reply(query, &|host: &HostName| self.who.is_listed(host), settings, over_udp);
        match &reply {
            DnsReply::Answer(answer) => self.count(dns::outcome(answer), sensor),
            DnsReply::Ignore(why) => self.count(why, sensor),
            DnsReply::Forward => {}
        }
        reply
    }

    /// The answer to a query for whose forwarding there is no room.
    fn busy(&self, query: &[u8], settings: &DnsSettings, sensor: &Arc<str>) -> Option<Vec<u8>> {
        self.count("limit_forwards", sensor);
        dns::server_failure(query, settings)
    }

    /// Asks the name servers in order, each for as long as it may take, until one has an answer. What the last of them
    /// had to say goes back if none has.
    async fn forward(&self, place: Place, query: &[u8], settings: &DnsSettings, sensor: &Arc<str>, over_udp: bool) -> Option<Vec<u8>> {
        let mut spoken = None;
        for server in &settings.forward {
            match ask(*server, query, over_udp).await {
                Ok(answer) => {
                    let failure = dns::is_failure(&answer);
                    spoken = Some(answer);
                    if !failure {
                        break;
                    }
                }
                Err(error) => debug!(%server, %error, "name server failed"),
            }
        }
        drop(place);
        self.count(if spoken.is_some() { "forwarded" } else { "forward_failed" }, sensor);
        spoken.or_else(|| dns::server_failure(query, settings))
    }

    async fn send(&self, socket: &UdpSocket, answer: &[u8], to: SocketAddr, sensor: &Arc<str>) {
        if let Err(error) = socket.send_to(answer, to).await {
            debug!(downstream = %to, %error, "cannot send an answer");
            self.count("send_failed", sensor);
        }
    }

    fn count(&self, what: &'static str, sensor: &Arc<str>) {
        self.who.count(what, Some(sensor));
    }
}

/// Asks one name server, by UDP and, for a sensor that can take it, by TCP if the answer was cut. The answer is as the
/// sensor asked for it.
async fn ask(server: SocketAddr, query: &[u8], over_udp: bool) -> io::Result<Vec<u8>> {
    let onward = dns::onward(query).ok_or(io::ErrorKind::InvalidData)?;
    let mut answer = in_time(ask_by_udp(server, &onward)).await?;
    if dns::is_truncated(&answer) && !over_udp {
        answer = in_time(ask_by_tcp(server, &onward)).await?;
    }
    dns::restore(&mut answer, query);
    Ok(answer)
}

async fn in_time<T>(asking: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match tokio::time::timeout(PATIENCE, asking).await {
        Ok(result) => result,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Waits for the answer, past whatever else comes: whoever guesses at it must not be able to end the waiting.
async fn ask_by_udp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let socket = connect_udp(server).await?;
    socket.send(query).await?;
    let mut buffer = vec![0u8; dns::PAYLOAD_BYTES + 1];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let received = buffer.get(..length).unwrap_or_default();
        if received.len() <= dns::PAYLOAD_BYTES && dns::is_answer(query, received) {
            return Ok(received.to_vec());
        }
    }
}

async fn ask_by_tcp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    write_message(&mut stream, query).await?;
    let answer = read_message(&mut stream, usize::from(u16::MAX)).await?;
    if dns::is_answer(query, &answer) { Ok(answer) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Reads one message of at most `limit` bytes with the length before it (RFC 1035 §4.2.2).
///
/// Errors: `io::ErrorKind::InvalidData` if it is longer.
async fn read_message(stream: &mut dyn Stream, limit: usize) -> io::Result<Vec<u8>> {
    let length = usize::from(stream.read_u16().await?);
    if length > limit {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

/// Writes length and message at once: in two segments some would take the first for the whole (RFC 7766 §8).
async fn write_message(stream: &mut dyn Stream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    let framed = [&length.to_be_bytes()[..], message].concat();
    stream.write_all(&framed).await
}

/// Out of descriptors or memory a socket fails at once and would spin.
async fn back_off(failing: &mut bool, error: &io::Error) {
    // Once a row: the same line ten times a second helps nobody.
    if !std::mem::replace(failing, true) {
        warn!(%error, "cannot receive queries; trying again");
    }
    tokio::time::sleep(BACK_OFF).await;
}

/// Binds a UDP socket that receives from anybody; an unspecified IPv6 address takes IPv4 as well.
pub(super) fn bind_udp(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}

/// A UDP socket on a port of its own that hears nobody but `server`.
pub(super) async fn connect_udp(server: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    socket.connect(server).await?;
    Ok(socket)
}

/// How much may be under way at once: in all, and for one sensor.
pub(super) struct Places {
    all: usize,
    each: usize,
    /// By sensor; one that has nothing under way is not in it.
    taken: Mutex<BTreeMap<Arc<str>, usize>>,
}

impl Places {
    pub(super) fn new(all: usize, each: usize) -> Arc<Self> {
        Arc::new(Self { all, each, taken: Mutex::default() })
    }

    /// None if the sensor has its share, or all are taken.
    pub(super) fn take(self: &Arc<Self>, sensor: &Arc<str>) -> Option<Place> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let of_sensor = taken.get(sensor).copied().unwrap_or_default();
        if of_sensor >= self.each || taken.values().sum::<usize>() >= self.all {
            return None;
        }
        taken.insert(Arc::clone(sensor), of_sensor + 1);
        Some(Place { places: Arc::clone(self), sensor: Arc::clone(sensor) })
    }
}

/// One of them. Given back when dropped, also by a panic.
pub(super) struct Place {
    places: Arc<Places>,
    sensor: Arc<str>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_sensor) = taken.get_mut(&self.sensor) {
            *of_sensor = of_sensor.saturating_sub(1);
            if *of_sensor == 0 {
                taken.remove(&self.sensor);
            }
        }
    }
}

/// Queries that name servers are asked at once; each holds a socket.
const FORWARDS: usize = 256;
const FORWARDS_EACH: usize = 64;

/// Connections at once. Only answers that do not fit into a datagram need one.
const CONNECTIONS: usize = 64;
const CONNECTIONS_EACH: usize = 16;

const QUERIES_PER_CONNECTION: usize = 32;

/// For a sensor to send its next query, and to take an answer.
const QUERY_TIME: Duration = Duration::from_secs(5);

/// For a name server to answer by UDP, and once more by TCP.
const PATIENCE: Duration = Duration::from_secs(2);

const BACK_OFF: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use hickory_resolver::proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
    use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
    use tokio::sync::mpsc;
    use tokio::task::JoinHandle;

    use super::*;
    use crate::relay::Resolver;

    const LISTED: &str = "contoso-hub.azure-devices.net.";
    const OTHER: &str = "WWW.Example.com.";

    /// Knows everybody as one sensor, or nobody.
    struct Service {
        known: AtomicBool,
        settings: Arc<DnsSettings>,
        counts: mpsc::UnboundedSender<&'static str>,
    }

    impl NameService for Service {
        fn sensor(&self, _source: IpAddr) -> Option<Arc<str>> {
            self.known.load(Ordering::SeqCst).then(|| "line-3".into())
        }

        fn is_listed(&self, host: &HostName) -> bool {
            host.as_str() == "contoso-hub.azure-devices.net"
        }

        fn settings(&self) -> Arc<DnsSettings> {
            Arc::clone(&self.settings)
        }

        fn count(&self, what: &'static str, _sensor: Option<&Arc<str>>) {
            let _test_is_over = self.counts.send(what);
        }
    }

    /// A listener on loopback that answers with 127.0.0.1.
    struct Running {
        address: SocketAddr,
        service: Arc<Service>,
        counted: mpsc::UnboundedReceiver<&'static str>,
        stop: watch::Sender<bool>,
        serving: JoinHandle<()>,
    }

    impl Running {
        fn start(forward: Vec<SocketAddr>) -> Self {
            let (counts, counted) = mpsc::unbounded_channel();
            let settings = DnsSettings { answers: vec![Ipv4Addr::LOCALHOST.into()], forward, ..DnsSettings::default() };
            let service = Arc::new(Service { known: AtomicBool::new(true), settings: Arc::new(settings), counts });
            let listener = bind_both();
            let address = listener.local_address().expect("an address");
            let (stop, stopped) = watch::channel(false);
            let who: Arc<dyn NameService> = Arc::<Service>::clone(&service);
            let serving = tokio::spawn(listener.serve(who, stopped));
            Self { address, service, counted, stop, serving }
        }

        async fn next_count(&mut self) -> &'static str {
            within(self.counted.recv()).await.expect("counted")
        }

        /// Waits until something has been counted.
        async fn until_counted(&mut self, what: &str) {
            while self.next_count().await != what {}
        }

        async fn sensor(&self) -> UdpSocket {
            connect_udp(self.address).await.expect("a socket")
        }

        async fn connection(&self) -> TcpStream {
            within(TcpStream::connect(self.address)).await.expect("connected")
        }
    }

    async fn within<T>(waiting: impl Future<Output = T>) -> T {
        tokio::time::timeout(Duration::from_secs(60), waiting).await.expect("in time")
    }

    fn loopback() -> SocketAddr {
        (Ipv4Addr::LOCALHOST, 0).into()
    }

    fn bind_both() -> DnsListener {
        (0..32).find_map(|_| DnsListener::bind(loopback()).ok()).expect("a port that is free for both")
    }

    fn query(id: u16, name: &str) -> Vec<u8> {
        let mut query = Message::new(id, MessageType::Query, OpCode::Query);
        query.add_query(Query::query(Name::from_ascii(name).expect("a name"), RecordType::A));
        bytes(&query)
    }

    fn bytes(message: &Message) -> Vec<u8> {
        message.to_vec().expect("encoded")
    }

    fn message(bytes: &[u8]) -> Message {
        Message::from_vec(bytes).expect("a message")
    }

    fn addresses(answer: &Message) -> Vec<String> {
        answer.answers.iter().filter_map(|record| record.data.ip_addr()).map(|address| address.to_string()).collect()
    }

    async fn answer_by_udp(sensor: &UdpSocket) -> Message {
        let mut buffer = [0; 2048];
        let length = within(sensor.recv(&mut buffer)).await.expect("received");
        message(&buffer[..length])
    }

    async fn asked_by_udp(sensor: &UdpSocket, query: &[u8]) -> Message {
        sensor.send(query).await.expect("sent");
        answer_by_udp(sensor).await
    }

    async fn asked_by_tcp(sensor: &mut TcpStream, query: &[u8]) -> io::Result<Message> {
        write_message(sensor, query).await?;
        let answer = within(read_message(sensor, usize::from(u16::MAX))).await?;
        Ok(message(&answer))
    }

    /// A name server on loopback by UDP: what it is asked becomes what it says, in order.
    fn name_server(says: impl Fn(&Message) -> Vec<Message> + Send + 'static) -> SocketAddr {
        let socket = bind_udp(loopback()).expect("bound");
        let address = socket.local_addr().expect("an address");
        tokio::spawn(serve_name_server(socket, says));
        address
    }

    async fn serve_name_server(socket: UdpSocket, says: impl Fn(&Message) -> Vec<Message> + Send + 'static) {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            let said = says(&message(&buffer[..length]));
            for answer in said {
                socket.send_to(&bytes(&answer), from).await.expect("sent");
            }
        }
    }

    /// Answers with 192.0.2.`last`.
    fn answer(asked: &Message, last: u8) -> Message {
        let mut answer = asked.clone().into_response();
        let address = RData::from(IpAddr::from([192, 0, 2, last]));
        answer.add_answer(Record::from_rdata(asked.queries[0].name.clone(), 30, address));
        answer
    }

    fn failure(asked: &Message) -> Message {
        let mut answer = asked.clone().into_response();
        answer.metadata.response_code = ResponseCode::ServFail;
        answer
    }

    #[tokio::test]
    async fn answers_a_listed_name_by_udp_and_by_tcp() {
        let mut running = Running::start(Vec::new());
        let answer = asked_by_udp(&running.sensor().await, &query(7, LISTED)).await;
        assert_eq!((answer.metadata.id, addresses(&answer)), (7, vec!["127.0.0.1".to_owned()]));
        assert_eq!(running.next_count().await, "answered");

        let mut connection = running.connection().await;
        for id in [8, 9] {
            let answer = asked_by_tcp(&mut connection, &query(id, LISTED)).await.expect("answered");
            assert_eq!((answer.metadata.id, addresses(&answer)), (id, vec!["127.0.0.1".to_owned()]));
            assert_eq!(running.next_count().await, "answered");
        }
        drop(connection);
        assert_eq!(running.next_count().await, "closed");
    }

    #[tokio::test]
    async fn a_resolver_takes_the_answers() {
        let running = Running::start(Vec::new());
        let resolver = Resolver::new(&[running.address]).expect("a resolver");
        let addresses = within(resolver.resolve("contoso-hub.azure-devices.net")).await.expect("resolved");
        assert_eq!(addresses, [IpAddr::from(Ipv4Addr::LOCALHOST)]);
    }

    #[tokio::test]
    async fn a_stranger_hears_nothing() {
        let mut running = Running::start(Vec::new());
        running.service.known.store(false, Ordering::SeqCst);
        let stranger = running.sensor().await;
        stranger.send(&query(1, LISTED)).await.expect("sent");
        assert_eq!(running.next_count().await, "unknown_sensor");
        let mut connection = running.connection().await;
        assert_eq!(running.next_count().await, "unknown_sensor");
        assert!(asked_by_tcp(&mut connection, &query(2, LISTED)).await.is_err());

        running.service.known.store(true, Ordering::SeqCst);
        let first = asked_by_udp(&stranger, &query(3, LISTED)).await;
        assert_eq!(first.metadata.id, 3, "nothing came before it");
    }

    #[tokio::test]
    async fn takes_no_query_that_is_too_long() {
        let mut running = Running::start(Vec::new());
        running.sensor().await.send(&[0; dns::PAYLOAD_BYTES + 1]).await.expect("sent");
        assert_eq!(running.next_count().await, "too_long");
        let mut connection = running.connection().await;
        connection.write_all(&[0xff, 0xff]).await.expect("written");
        assert_eq!(running.next_count().await, "too_long");
        assert!(within(read_message(&mut connection, 2048)).await.is_err());
    }

    #[tokio::test]
    async fn a_query_goes_on_with_another_id_and_comes_back_with_its_own() {
        let (ids, mut seen) = mpsc::unbounded_channel();
        let server = name_server(move |asked| {
            let _test_is_over = ids.send(asked.metadata.id);
            vec![answer(asked, 1)]
        });
        let mut running = Running::start(vec![server]);
        let sensor = running.sensor().await;
        let mut others = 0;
        for _ in 0..3 {
            let answer = asked_by_udp(&sensor, &query(7, OTHER)).await;
            assert_eq!((answer.metadata.id, addresses(&answer)), (7, vec!["192.0.2.1".to_owned()]));
            assert_eq!(running.next_count().await, "forwarded");
            others += usize::from(seen.recv().await.expect("seen") != 7);
        }
        // Once in a long while chance brings the same.
        assert!(others > 0, "the sensor's id went on three times");
    }

    #[tokio::test]
    async fn believes_only_an_answer_to_what_was_asked() {
        let server = name_server(|asked| {
            let mut other_id = answer(asked, 1);
            other_id.metadata.id = other_id.metadata.id.wrapping_add(1);
            let mut other_name = answer(asked, 2);
            other_name.queries = vec![Query::query(Name::from_ascii("other.example.").expect("a name"), RecordType::A)];
            let mut lower_case = answer(asked, 3);
            lower_case.queries = vec![Query::query(Name::from_ascii("www.example.com.").expect("a name"), RecordType::A)];
            vec![other_id, other_name, lower_case]
        });
        let running = Running::start(vec![server]);
        let answer = asked_by_udp(&running.sensor().await, &query(7, OTHER)).await;
        assert_eq!(addresses(&answer), ["192.0.2.3"]);
        assert_eq!(answer.queries[0].name.to_ascii(), OTHER, "as it was asked");
    }

    #[tokio::test]
    async fn asks_the_next_server_when_one_is_silent_and_one_fails() {
        let silent = bind_udp(loopback()).expect("bound");
        let failing = name_server(|asked| vec![failure(asked)]);
        let good = name_server(|asked| vec![answer(asked, 1)]);
        let running = Running::start(vec![silent.local_addr().expect("an address"), failing, good]);
        let sensor = running.sensor().await;
        sensor.send(&query(7, OTHER)).await.expect("sent");
        within(silent.recv(&mut [0; 2048])).await.expect("asked");
        // The clock stands only while it is moved: held, it would run ahead of the sockets.
        tokio::time::pause();
        tokio::time::advance(PATIENCE).await;
        tokio::time::resume();
        assert_eq!(addresses(&answer_by_udp(&sensor).await), ["192.0.2.1"]);
    }

    #[tokio::test]
    async fn a_failure_comes_back_when_nobody_has_an_answer() {
        // No socket may send there unless it says that it wants to.
        let nowhere = SocketAddr::from((Ipv4Addr::BROADCAST, 53));
        let mut running = Running::start(vec![nowhere]);
        let answer = asked_by_udp(&running.sensor().await, &query(7, OTHER)).await;
        assert_eq!((answer.metadata.id, answer.metadata.response_code), (7, ResponseCode::ServFail));
        assert_eq!(running.next_count().await, "forward_failed");

        let mut running = Running::start(vec![name_server(|asked| vec![failure(asked)]), nowhere]);
        let answer = asked_by_udp(&running.sensor().await, &query(8, OTHER)).await;
        assert_eq!((answer.metadata.id, answer.metadata.response_code), (8, ResponseCode::ServFail));
        assert_eq!(running.next_count().await, "forwarded", "what a server said, it said");
    }

    #[tokio::test]
    async fn a_cut_answer_is_fetched_whole_for_who_asked_by_tcp() {
        let DnsListener { udp, tcp: mut acceptor } = bind_both();
        let server = udp.local_addr().expect("an address");
        tokio::spawn(serve_name_server(udp, |asked| {
            let mut cut = asked.clone().into_response();
            cut.metadata.truncation = true;
            vec![cut]
        }));
        tokio::spawn(async move {
            while let Ok(Accepted { mut stream, .. }) = acceptor.accept().await {
                let asked = message(&read_message(&mut *stream, 2048).await.expect("a query"));
                write_message(&mut *stream, &bytes(&answer(&asked, 1))).await.expect("written");
            }
        });
        let running = Running::start(vec![server]);
        let cut = asked_by_udp(&running.sensor().await, &query(7, OTHER)).await;
        assert!(cut.metadata.truncation && cut.answers.is_empty());
        let whole = asked_by_tcp(&mut running.connection().await, &query(8, OTHER)).await.expect("answered");
        assert_eq!((whole.metadata.id, addresses(&whole)), (8, vec!["192.0.2.1".to_owned()]));
    }

    #[tokio::test]
    async fn a_sensor_that_asks_without_end_is_told_to_wait() {
        let silent = bind_udp(loopback()).expect("bound");
        let mut running = Running::start(vec![silent.local_addr().expect("an address")]);
        let sensor = running.sensor().await;
        let last = u16::try_from(FORWARDS_EACH).expect("a small number");
        for id in 0..=last {
            sensor.send(&query(id, OTHER)).await.expect("sent");
        }
        let told = answer_by_udp(&sensor).await;
        assert_eq!((told.metadata.id, told.metadata.response_code), (last, ResponseCode::ServFail));
        assert_eq!(running.next_count().await, "limit_forwards");
    }

    #[tokio::test]
    async fn a_connection_ends_after_its_share_of_queries() {
        let mut running = Running::start(Vec::new());
        let mut connection = running.connection().await;
        for _ in 0..QUERIES_PER_CONNECTION {
            asked_by_tcp(&mut connection, &query(7, LISTED)).await.expect("answered");
        }
        running.until_counted("limit_queries").await;
        assert!(within(read_message(&mut connection, 2048)).await.is_err());
    }

    #[tokio::test]
    async fn a_sensor_has_only_so_many_connections() {
        let mut running = Running::start(Vec::new());
        let mut open = Vec::new();
        for _ in 0..CONNECTIONS_EACH {
            let mut connection = running.connection().await;
            asked_by_tcp(&mut connection, &query(7, LISTED)).await.expect("answered");
            open.push(connection);
        }
        let mut refused = running.connection().await;
        running.until_counted("limit_connections").await;
        assert!(asked_by_tcp(&mut refused, &query(7, LISTED)).await.is_err());

        open.pop();
        running.until_counted("closed").await;
        asked_by_tcp(&mut running.connection().await, &query(7, LISTED)).await.expect("answered");
    }

    #[tokio::test]
    async fn a_stop_gives_the_address_back() {
        let running = Running::start(Vec::new());
        asked_by_udp(&running.sensor().await, &query(7, LISTED)).await;
        running.stop.send(true).expect("sent");
        within(running.serving).await.expect("ended");
        assert!(DnsListener::bind(running.address).is_ok());
    }

    #[test]
    fn a_sensor_leaves_room_for_the_others() {
        let (one, two, three): (Arc<str>, Arc<str>, Arc<str>) = ("line-1".into(), "line-2".into(), "line-3".into());
        let places = Places::new(3, 2);
        let first = places.take(&one);
        let second = places.take(&one);
        assert!(first.is_some() && second.is_some());
        assert!(places.take(&one).is_none(), "it has its share");
        let third = places.take(&two);
        assert!(third.is_some());
        assert!(places.take(&three).is_none(), "all are taken");
        drop(first);
        assert!(places.take(&three).is_some());
        drop((second, third));
        assert!(places.taken.lock().expect("not poisoned").is_empty());
    }
}
