//! Two lanes in userspace mode, joined by real UDP on loopback: what the relay does inside a tunnel.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tunnel::io::{Lane, LaneSettings, PreparedPort, UdpSocket, Wake};
use tunnel::userspace::{DialError, Network, network};
use tunnel::{Cloud, Endpoint, PeerChange, PeerSettings, PrivateKey, PublicKey};

const PATIENCE: Duration = Duration::from_secs(20);

struct Side {
    // Dropped last: the network must not outlive its lane in a test.
    network: Network,
    _lane: Lane,
    addresses: Vec<IpAddr>,
}

fn peer(key: PublicKey, allowed: &[&str]) -> PeerSettings {
    PeerSettings {
        name: "other".into(),
        public_key: key,
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
    let keys = [PrivateKey::generate(), PrivateKey::generate()];
    let sockets = [(); 2].map(|()| UdpSocket::bind(format!("{outer}:0").parse().expect("an address")).expect("bound"));
    let ports = [sockets[0].port(), sockets[1].port()];
    let mut sides = Vec::new();
    for (own, socket) in sockets.into_iter().enumerate() {
        let other = 1 - own;
        let wake = Wake::new().expect("an eventfd");
        let addresses = vec![
            format!("10.99.0.{}/30", own + 1).parse().expect("an address"),
            format!("fd99::{}/64", own + 1).parse().expect("an address"),
        ];
        let inside = addresses.iter().map(|address: &ipnet::IpNet| address.addr()).collect();
        let (network, stack) = network(addresses, 1340, wake.clone());
        let key = keys[other].public_key();
        let peers = vec![peer(key, &[&format!("10.99.0.{}/32", other + 1), &format!("fd99::{}/128", other + 1)])];
        let settings = LaneSettings {
            name: format!("lane-{own}"),
            key: keys[own].clone(),
            mtu: 1340,
            peers,
            socket,
            port: PreparedPort::Userspace(stack),
            wake,
        };
        let lane = Lane::start(settings).expect("a lane");
        if own == 0 {
            let address: SocketAddr = format!("{outer}:{}", ports[other]).parse().expect("an address");
            lane.change(PeerChange::Endpoints(key, vec![Endpoint { address, interface: None }]));
        }
        sides.push(Side { network, _lane: lane, addresses: inside });
    }
    let two = sides.pop().expect("two sides");
    (sides.pop().expect("two sides"), two)
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
    let mut listener = two.network.listen(80).await.expect("asked").expect("free");
    tokio::spawn(async move {
        while let Some(accepted) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = tokio::io::split(accepted.stream);
                let _ended = tokio::io::copy(&mut read, &mut write).await;
                let _ended = write.shutdown().await;
            });
        }
    });
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
