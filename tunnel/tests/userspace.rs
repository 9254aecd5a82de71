//! Two tunnels in userspace mode, joined by real UDP on loopback: what the relay does inside a tunnel.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tunnel::io::{Lanes, LanesSettings, PreparedLane, PreparedPort, UdpSocket, Wake};
use tunnel::userspace::{DialError, Listener, Network, network};
use tunnel::{Cloud, Endpoint, EngineSettings, PeerChange, PeerSettings, PrivateKey, PublicKey};

const PATIENCE: Duration = Duration::from_secs(20);
/// For what moves much on a machine that does something else as well.
const LONG_PATIENCE: Duration = Duration::from_secs(180);

struct Side {
    // Dropped last: the network must not outlive its lane in a test.
    network: Network,
    _lanes: Lanes,
    addresses: Vec<IpAddr>,
}

fn peer(key: PublicKey, allowed: &[&str]) -> PeerSettings {
    PeerSettings {
        name: "other".into(),
        public_key: key,
        next_public_key: None,
        preshared_key: None,
        endpoints: Vec::new(),
        allowed_ips: allowed.iter().map(|prefix| prefix.parse().expect("a prefix")).collect(),
        keepalive: Some(Duration::from_secs(25)),
        roaming: true,
        cloud: Cloud::Other,
        probe: None,
    }
}

/// Two sides with 10.99.0.1 and fd99::1, 10.99.0.2 and fd99::2, over IPv4 or IPv6 outside.
fn pair(outer: &str) -> (Side, Side) {
    pair_by(outer, |far| far)
}

/// The same; the first side sends to whatever `way` makes of the other's address.
fn pair_by(outer: &str, way: impl FnOnce(SocketAddr) -> SocketAddr) -> (Side, Side) {
    let keys = [PrivateKey::generate(), PrivateKey::generate()];
    let sockets = [(); 2].map(|()| UdpSocket::bind(format!("{outer}:0").parse().expect("an address")).expect("bound"));
    let far = way(format!("{outer}:{}", sockets[1].port()).parse().expect("an address"));
    let mut sides = Vec::new();
    for (own, socket) in sockets.into_iter().enumerate() {
        let other = 1 - own;
        let wake = Wake::new().expect("an eventfd");
        let addresses: Vec<ipnet::IpNet> = vec![
            format!("10.99.0.{}/30", own + 1).parse().expect("an address"),
            format!("fd99::{}/64", own + 1).parse().expect("an address"),
        ];
        let inside = addresses.iter().map(ipnet::IpNet::addr).collect();
        let (network, stack) = network(addresses.clone(), 1340, wake.clone());
        let key = keys[other].public_key();
        let peers = vec![peer(key, &[&format!("10.99.0.{}/32", other + 1), &format!("fd99::{}/128", other + 1)])];
        let lanes = Lanes::start(LanesSettings {
            name: format!("side-{own}"),
            engine: EngineSettings { key: keys[own].clone(), addresses, mtu: 1340 },
            peers,
            lanes: vec![PreparedLane { socket, port: PreparedPort::Userspace(stack), wake }],
            cpus: Vec::new(),
        });
        let lanes = lanes.expect("a lane");
        if own == 0 {
            lanes.change(&PeerChange::Endpoints(key, vec![Endpoint { address: far, interface: None }]));
        }
        sides.push(Side { network, _lanes: lanes, addresses: inside });
    }
    let two = sides.pop().expect("two sides");
    (sides.pop().expect("two sides"), two)
}

/// A path that takes time: what comes to `address` leaves `delay` later, to the far end or to whoever was heard last.
struct Path {
    address: SocketAddr,
    over: Arc<AtomicBool>,
}

impl Path {
    fn new(far: SocketAddr, delay: Duration) -> Self {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("bound");
        socket2::SockRef::from(&socket).set_recv_buffer_size(8 << 20).expect("a buffer");
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
        let address = socket.local_addr().expect("an address");
        let out = socket.try_clone().expect("a second handle");
        let (queue, queued) = mpsc::channel::<(Instant, SocketAddr, Vec<u8>)>();
        let over = Arc::new(AtomicBool::new(false));
        std::thread::spawn({
            let over = Arc::clone(&over);
            move || {
                let (mut near, mut room) = (None, vec![0; 65_535]);
                while !over.load(Ordering::Relaxed) {
                    let Ok((length, from)) = socket.recv_from(&mut room) else { continue };
                    let to = if from == far {
                        near
                    } else {
                        near = Some(from);
                        Some(far)
                    };
                    let Some(to) = to else { continue };
                    if queue.send((Instant::now() + delay, to, room[..length].to_vec())).is_err() {
                        return;
                    }
                }
            }
        });
        std::thread::spawn(move || {
            for (due, to, bytes) in queued {
                // To wait is what it is there for.
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                let _lost = out.send_to(&bytes, to);
            }
        });
        Self { address, over }
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

fn deadline() -> Instant {
    Instant::now() + PATIENCE
}

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("in time")
}

#[tokio::test]
async fn streams_pass_both_ways_over_ipv4_and_ipv6_inside_and_outside() {
    for outer in ["127.0.0.1", "[::1]"] {
        let (one, two) = pair(outer);
        let mut listener = two.network.listen(3128).await.expect("asked").expect("free");
        for to in two.addresses.clone() {
            let sent: Vec<u8> = (0..300_000u32).map(|n| (n / 7) as u8).collect();
            let mut dialled = within(one.network.dial(SocketAddr::new(to, 3128), deadline())).await.expect("dialled");
            let accepted = within(listener.accept()).await.expect("accepted");
            assert!(one.addresses.contains(&accepted.from.ip()), "{}", accepted.from);
            let (mut read, mut write) = tokio::io::split(accepted.stream);
            let echo = tokio::spawn(async move {
                tokio::io::copy(&mut read, &mut write).await.expect("copied");
                write.shutdown().await.expect("shut down");
            });
            let (mut dialled_read, mut dialled_write) = tokio::io::split(&mut dialled);
            let mut back = Vec::new();
            within(async {
                let (wrote, read) = tokio::join!(
                    async {
                        dialled_write.write_all(&sent).await?;
                        dialled_write.shutdown().await
                    },
                    dialled_read.read_to_end(&mut back)
                );
                wrote.expect("written");
                read.expect("read");
            })
            .await;
            assert!(back == sent, "{} of {} bytes came back", back.len(), sent.len());
            echo.await.expect("ended");
        }
    }
}

#[tokio::test]
async fn a_half_closed_stream_still_carries_the_other_direction() {
    let (one, two) = pair("127.0.0.1");
    let mut listener = two.network.listen(80).await.expect("asked").expect("free");
    let mut dialled = within(one.network.dial(SocketAddr::new(two.addresses[0], 80), deadline())).await.expect("dialled");
    let mut accepted = within(listener.accept()).await.expect("accepted").stream;
    dialled.shutdown().await.expect("shut down");
    assert_eq!(within(accepted.read(&mut [0; 8])).await.expect("read"), 0, "the end arrived");
    accepted.write_all(b"late").await.expect("written");
    let mut late = [0; 4];
    within(dialled.read_exact(&mut late)).await.expect("read");
    assert_eq!(&late, b"late");
}

#[tokio::test]
async fn a_reset_arrives_as_an_error_and_not_as_an_end() {
    let (one, two) = pair("127.0.0.1");
    let mut listener = two.network.listen(80).await.expect("asked").expect("free");
    let mut dialled = within(one.network.dial(SocketAddr::new(two.addresses[0], 80), deadline())).await.expect("dialled");
    let accepted = within(listener.accept()).await.expect("accepted").stream;
    drop(accepted);
    // The other side has gone: what we send now is answered with a reset.
    let error = within(async {
        loop {
            if let Err(error) = dialled.write_all(&[0; 4096]).await {
                return error;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_port_without_a_listener_refuses() {
    let (one, two) = pair("127.0.0.1");
    let refused = within(one.network.dial(SocketAddr::new(two.addresses[0], 81), deadline())).await;
    assert_eq!(refused.expect_err("refused"), DialError::Refused);
}

#[tokio::test]
async fn a_dial_to_nobody_ends_at_its_deadline() {
    let (one, _two) = pair("127.0.0.1");
    let soon = Instant::now() + Duration::from_millis(300);
    let timed_out = within(one.network.dial("10.99.0.3:80".parse().expect("an address"), soon)).await;
    assert_eq!(timed_out.expect_err("timed out"), DialError::TimedOut);
}

#[tokio::test]
async fn a_port_is_one_listeners_until_it_is_dropped() {
    let (_one, two) = pair("127.0.0.1");
    let first = two.network.listen(80).await.expect("asked");
    assert!(first.is_some());
    assert!(two.network.listen(80).await.expect("asked").is_none());
    drop(first);
    assert!(two.network.listen(80).await.expect("asked").is_some());
}

#[tokio::test]
async fn a_reader_that_stops_holds_its_writer_back_and_nobody_else() {
    let (one, two) = pair("127.0.0.1");
    let mut listener = two.network.listen(80).await.expect("asked").expect("free");
    let to = SocketAddr::new(two.addresses[0], 80);
    let mut slow = within(one.network.dial(to, deadline())).await.expect("dialled");
    let _unread = within(listener.accept()).await.expect("accepted");
    // Far more than every buffer on the way together holds.
    let flood = tokio::time::timeout(Duration::from_secs(2), async { slow.write_all(&vec![1; 4 << 20]).await });
    let mut brisk = within(one.network.dial(to, deadline())).await.expect("dialled");
    let mut other = within(listener.accept()).await.expect("accepted").stream;
    let (flooded, ()) = tokio::join!(flood, async {
        for _ in 0..50 {
            brisk.write_all(b"ping").await.expect("written");
            let mut ping = [0; 4];
            within(other.read_exact(&mut ping)).await.expect("read");
        }
    });
    assert!(flooded.is_err(), "4 MiB were taken although nobody read");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_streams_at_once_each_get_their_own_bytes() {
    let (one, two) = pair("127.0.0.1");
    echo(two.network.listen(80).await.expect("asked").expect("free"));
    let to = SocketAddr::new(two.addresses[0], 80);
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..100u32 {
        let network = one.network.clone();
        tasks.spawn(async move {
            let mut stream = network.dial(to, deadline()).await.expect("dialled");
            let sent: Vec<u8> = (0..20_000u32).map(|n| (n * 31 + number) as u8).collect();
            stream.write_all(&sent).await.expect("written");
            let mut back = vec![0; sent.len()];
            stream.read_exact(&mut back).await.expect("read");
            assert!(back == sent, "stream {number}");
        });
    }
    within(async {
        while let Some(joined) = tasks.join_next().await {
            joined.expect("a stream")
        }
    })
    .await;
}

/// Sends every stream's bytes back.
fn echo(mut listener: Listener) {
    tokio::spawn(async move {
        while let Some(accepted) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = tokio::io::split(accepted.stream);
                let _ended = tokio::io::copy(&mut read, &mut write).await;
                let _ended = write.shutdown().await;
            });
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_streams_stand_at_once_and_each_gets_its_own_bytes() {
    const STREAMS: u32 = 1000;
    let (one, two) = pair("127.0.0.1");
    echo(two.network.listen(80).await.expect("asked").expect("free"));
    let to = SocketAddr::new(two.addresses[0], 80);
    let all_stand = Arc::new(tokio::sync::Barrier::new(STREAMS as usize));
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..STREAMS {
        let (network, all_stand) = (one.network.clone(), Arc::clone(&all_stand));
        tasks.spawn(async move {
            let mut stream = network.dial(to, Instant::now() + LONG_PATIENCE).await.expect("dialled");
            for round in 0..2u32 {
                let sent: Vec<u8> = (0..5_000u32).map(|n| (n * 31 + number * 7 + round) as u8).collect();
                stream.write_all(&sent).await.expect("written");
                let mut back = vec![0; sent.len()];
                stream.read_exact(&mut back).await.expect("read");
                assert!(back == sent, "stream {number}, round {round}");
                all_stand.wait().await;
            }
            stream.shutdown().await.expect("shut down");
            assert_eq!(stream.read(&mut [0; 8]).await.expect("read"), 0, "its end comes back too");
        });
    }
    let joined = async {
        while let Some(joined) = tasks.join_next().await {
            joined.expect("a stream");
        }
    };
    tokio::time::timeout(LONG_PATIENCE, joined).await.expect("in time");
}

/// FNV-1a over whatever pieces the bytes come in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Hash(u64);

impl Hash {
    const EMPTY: Self = Self(0xcbf2_9ce4_8422_2325);

    fn add(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    }
}

/// Sends `total` bytes from the one side to the other's address `inside`; both hashes must be equal.
async fn carries(one: &Side, two: &Side, inside: usize, total: usize) {
    let mut listener = two.network.listen(80).await.expect("asked").expect("free");
    let mut sender = within(one.network.dial(SocketAddr::new(two.addresses[inside], 80), deadline())).await.expect("dialled");
    let mut receiver = within(listener.accept()).await.expect("accepted").stream;
    let sending = tokio::spawn(async move {
        let (mut hash, mut left, mut state) = (Hash::EMPTY, total, 1u32);
        while left > 0 {
            let piece: Vec<u8> = (0..left.min(50_001))
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 24) as u8
                })
                .collect();
            hash.add(&piece);
            sender.write_all(&piece).await.expect("written");
            left -= piece.len();
        }
        sender.shutdown().await.expect("shut down");
        assert_eq!(sender.read(&mut [0; 8]).await.expect("read"), 0);
        hash
    });
    let receiving = async {
        let (mut hash, mut count, mut room) = (Hash::EMPTY, 0, vec![0; 30_000]);
        loop {
            let length = receiver.read(&mut room).await.expect("read");
            if length == 0 {
                receiver.shutdown().await.expect("shut down");
                return (hash, count);
            }
            hash.add(&room[..length]);
            count += length;
        }
    };
    let (received, count) = tokio::time::timeout(LONG_PATIENCE, receiving).await.expect("in time");
    assert_eq!(count, total);
    assert_eq!(received, within(sending).await.expect("sent"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_bytes_arrive_as_they_were_sent() {
    let (one, two) = pair("127.0.0.1");
    carries(&one, &two, 0, 64 << 20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_bytes_arrive_over_ipv6_inside() {
    let (one, two) = pair("[::1]");
    carries(&one, &two, 1, 16 << 20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_bytes_arrive_over_a_long_path() {
    let mut path = None;
    let (one, two) = pair_by("127.0.0.1", |far| path.insert(Path::new(far, Duration::from_millis(10))).address);
    carries(&one, &two, 0, 8 << 20).await;
}
