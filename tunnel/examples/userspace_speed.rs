//! How fast streams are in userspace mode: two tunnels in one process, joined by UDP on loopback.
//!
//! ```text
//!   writer ─► Stream ─► lane ─► UDP ─┬─ at once ─────────┬─► lane ─► Stream ─► reader
//!                                    └─ 10 ms each way ──┘
//! ```
//! Both ends share the machine, so a figure is for all of it. Usage: `userspace_speed [SECONDS]`, for each case 5 unless told.
//! Prints one line a case: `NAME MEGABITS_PER_SECOND`. Nothing is verified here, the tests do that.
#![expect(clippy::print_stdout, reason = "its output is what it is for")]

use std::error::Error;
use std::net::{SocketAddr, UdpSocket as StdUdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tunnel::io::{Lanes, LanesSettings, PreparedLane, PreparedPort, UdpSocket, Wake};
use tunnel::userspace::{Network, network};
use tunnel::{Cloud, Endpoint, EngineSettings, PeerChange, PeerSettings, PrivateKey, PublicKey};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const MTU: u32 = 1420;
const PORT: u16 = 80;
/// Before the measurement: handshake and slow start.
const WARM_UP: Duration = Duration::from_secs(2);
const ONE_WAY: Duration = Duration::from_millis(10);

struct Case {
    name: &'static str,
    streams: usize,
    one_way: Option<Duration>,
    /// The peer's address inside.
    to: &'static str,
}

const CASES: [Case; 6] = [
    Case { name: "local_ipv4", streams: 1, one_way: None, to: "10.99.0.2" },
    Case { name: "local_ipv6", streams: 1, one_way: None, to: "fd99::2" },
    Case { name: "local_4_streams", streams: 4, one_way: None, to: "10.99.0.2" },
    Case { name: "local_1000_streams", streams: 1000, one_way: None, to: "10.99.0.2" },
    Case { name: "20ms_ipv4", streams: 1, one_way: Some(ONE_WAY), to: "10.99.0.2" },
    Case { name: "20ms_ipv6", streams: 1, one_way: Some(ONE_WAY), to: "fd99::2" },
];

fn main() -> Outcome<()> {
    let seconds = std::env::args().nth(1).map_or(Ok(5.0), |seconds| seconds.parse::<f64>())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    for case in &CASES {
        let megabits = runtime.block_on(measure(case, Duration::from_secs_f64(seconds)))?;
        println!("{} {megabits:.0}", case.name);
    }
    Ok(())
}

/// Megabits a second that arrive, over all streams of the case.
async fn measure(case: &Case, duration: Duration) -> Outcome<f64> {
    let keys = [PrivateKey::generate(), PrivateKey::generate()];
    let sockets = [UdpSocket::bind("127.0.0.1:0".parse()?)?, UdpSocket::bind("127.0.0.1:0".parse()?)?];
    let far: SocketAddr = format!("127.0.0.1:{}", sockets[1].port()).parse()?;
    let path = case.one_way.map(|delay| Path::new(far, delay)).transpose()?;
    let way = path.as_ref().map_or(far, |path| path.address);
    let [near_socket, far_socket] = sockets;
    let (_near, dialling) = side(1, &keys[0], keys[1].public_key(), near_socket, Some(way))?;
    let (_far, listening) = side(2, &keys[1], keys[0].public_key(), far_socket, None)?;

    let received = Arc::new(AtomicU64::new(0));
    let mut listener = listening.listen(PORT).await?.ok_or("the port is taken")?;
    let counting = tokio::spawn({
        let received = Arc::clone(&received);
        async move {
            let mut readers = tokio::task::JoinSet::new();
            while let Some(mut accepted) = listener.accept().await {
                let received = Arc::clone(&received);
                readers.spawn(async move {
                    let mut room = vec![0; 64 * 1024];
                    while let Ok(length @ 1..) = accepted.stream.read(&mut room).await {
                        received.fetch_add(length as u64, Ordering::Relaxed);
                    }
                });
            }
        }
    });
    let to = SocketAddr::new(case.to.parse()?, PORT);
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..case.streams {
        let mut stream = dialling.dial(to, Instant::now() + Duration::from_secs(10)).await?;
        writers.spawn(async move {
            let bytes = vec![7u8; 64 * 1024];
            while stream.write_all(&bytes).await.is_ok() {}
        });
    }
    tokio::time::sleep(WARM_UP).await;
    let (before, since) = (received.load(Ordering::Relaxed), Instant::now());
    tokio::time::sleep(duration).await;
    let bytes = received.load(Ordering::Relaxed) - before;
    let megabits = bytes as f64 * 8.0 / 1e6 / since.elapsed().as_secs_f64();
    writers.shutdown().await;
    counting.abort();
    Ok(megabits)
}

/// One tunnel, with 10.99.0.`number` and fd99::`number`.
fn side(number: u8, key: &PrivateKey, peer: PublicKey, socket: UdpSocket, way: Option<SocketAddr>) -> Outcome<(Lanes, Network)> {
    let wake = Wake::new()?;
    let addresses: Vec<ipnet::IpNet> = vec![format!("10.99.0.{number}/30").parse()?, format!("fd99::{number}/64").parse()?];
    let (network, stack) = network(addresses.clone(), MTU, wake.clone());
    let settings = PeerSettings {
        name: "other".into(),
        public_key: peer,
        next_public_key: None,
        preshared_key: None,
        endpoints: Vec::new(),
        allowed_ips: ["10.99.0.0/30".parse()?, "fd99::/64".parse()?].into_iter().collect(),
        keepalive: None,
        roaming: true,
        cloud: Cloud::Other,
        probe: None,
    };
    let lanes = Lanes::start(LanesSettings {
        name: format!("side-{number}"),
        engine: EngineSettings { key: key.clone(), addresses, mtu: MTU },
        peers: vec![settings],
        lanes: vec![PreparedLane { socket, port: PreparedPort::Userspace(stack), wake }],
        cpus: Vec::new(),
    })?;
    if let Some(address) = way {
        lanes.change(&PeerChange::Endpoints(peer, vec![Endpoint { address, interface: None }]));
    }
    Ok((lanes, network))
}

/// A path that takes time: what comes to `address` leaves `delay` later, to the far end or to whoever was heard last.
struct Path {
    address: SocketAddr,
    over: Arc<AtomicBool>,
}

impl Path {
    fn new(far: SocketAddr, delay: Duration) -> Outcome<Self> {
        let socket = StdUdpSocket::bind("127.0.0.1:0")?;
        socket2::SockRef::from(&socket).set_recv_buffer_size(8 << 20)?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let (address, out) = (socket.local_addr()?, socket.try_clone()?);
        let (queue, queued) = mpsc::channel::<(Instant, SocketAddr, Vec<u8>)>();
        let over = Arc::new(AtomicBool::new(false));
        thread::spawn({
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
        thread::spawn(move || {
            for (due, to, bytes) in queued {
                thread::sleep(due.saturating_duration_since(Instant::now()));
                let _lost = out.send_to(&bytes, to);
            }
        });
        Ok(Self { address, over })
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}
