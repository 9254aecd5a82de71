use std::time::Duration;

use super::*;
use crate::batch::Endpoint;
use crate::engine::Arrival;

const LOOPBACK: u32 = 1;

fn batch(to: SocketAddr, interface: Option<u32>, source: Option<IpAddr>, ecn: u8, lengths: &[usize]) -> Batch {
    let mut batch = Batch::new();
    for (number, length) in lengths.iter().enumerate() {
        batch.space()[..*length].fill(number as u8);
        batch.commit(*length, Outer { endpoint: Endpoint { address: to, interface }, source, ecn });
    }
    batch
}

#[track_caller]
fn send(socket: &mut UdpSocket, batch: &Batch) {
    socket.send(batch, |news| panic!("{news:?}"));
}

/// Waits for a message.
fn receive(socket: &UdpSocket, inbox: &mut Inbox) -> usize {
    let mut polled = libc::pollfd { fd: socket.fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd that outlives the call.
    assert_eq!(unsafe { libc::poll(&raw mut polled, 1, 5000) }, 1, "nothing came");
    socket.receive(inbox).expect("received")
}

/// Regression: sending IPv4 by a named interface from the dual socket was refused with EINVAL.
#[test]
fn sends_by_a_named_interface_over_ipv4_and_ipv6() {
    let mut socket = UdpSocket::bind("[::]:0".parse().expect("an address")).expect("bound");
    for own in ["127.0.0.1:0", "[::1]:0"] {
        let Ok(receiver) = std::net::UdpSocket::bind(own) else { continue };
        let to = receiver.local_addr().expect("an address");
        send(&mut socket, &batch(to, Some(LOOPBACK), None, 0, &[5]));
        receiver.set_read_timeout(Some(Duration::from_secs(5))).expect("set");
        assert_eq!(receiver.recv(&mut [0; 16]).expect("received"), 5, "{own}");
    }
}

#[test]
fn a_run_arrives_as_the_datagrams_that_it_was_made_of() {
    let mut sender = UdpSocket::bind("[::]:0".parse().expect("an address")).expect("bound");
    let receiver = std::net::UdpSocket::bind("127.0.0.1:0").expect("bound");
    receiver.set_read_timeout(Some(Duration::from_secs(5))).expect("set");
    send(&mut sender, &batch(receiver.local_addr().expect("an address"), None, None, 0, &[700, 700, 700, 30]));
    let mut room = [0; 2000];
    for (number, length) in [700, 700, 700, 30].into_iter().enumerate() {
        assert_eq!(receiver.recv(&mut room).expect("received"), length);
        assert!(room[..length].iter().all(|byte| *byte == number as u8));
    }
}

#[test]
fn source_and_ecn_go_out_and_come_in_over_both_families() {
    for (own, other) in [("127.0.0.1", "127.0.0.9"), ("::1", "::1")] {
        let mut sender = UdpSocket::bind("[::]:0".parse().expect("an address")).expect("bound");
        let receiver = UdpSocket::bind("[::]:0".parse().expect("an address")).expect("bound");
        let (own, other): (IpAddr, IpAddr) = (own.parse().expect("an address"), other.parse().expect("an address"));
        if own.is_ipv6() && std::net::UdpSocket::bind((own, 0)).is_err() {
            continue;
        }
        send(&mut sender, &batch(SocketAddr::new(own, receiver.port()), None, Some(other), 2, &[900, 900, 100]));
        let mut inbox = Inbox::new();
        let (mut datagrams, mut bytes) = (0, 0);
        while bytes < 1900 {
            receive(&receiver, &mut inbox);
            for run in inbox.runs() {
                assert_eq!(run.arrival, Arrival { from: SocketAddr::new(other, sender.port()), to: Some(own), ecn: 2 });
                datagrams += run.bytes.len().div_ceil(run.segment_bytes);
                bytes += run.bytes.len();
            }
        }
        assert_eq!((datagrams, bytes), (3, 1900));
    }
}

/// Regression of a class: a peer answered from an address that was taken away must not lose its datagrams.
#[test]
fn a_source_that_is_not_ours_is_given_up_and_said() {
    let mut sender = UdpSocket::bind("[::]:0".parse().expect("an address")).expect("bound");
    let receiver = std::net::UdpSocket::bind("127.0.0.1:0").expect("bound");
    receiver.set_read_timeout(Some(Duration::from_secs(5))).expect("set");
    let gone: IpAddr = "192.0.2.77".parse().expect("an address");
    let mut told = Vec::new();
    sender.send(&batch(receiver.local_addr().expect("an address"), None, Some(gone), 0, &[50, 50]), |news| match news {
        SendNews::SourceGone(source) => told.push(source),
        other @ (SendNews::Failed { .. } | SendNews::NoSegmentation(_)) => panic!("{other:?}"),
    });
    assert_eq!(told, [gone]);
    for _ in 0..2 {
        assert_eq!(receiver.recv(&mut [0; 100]).expect("received"), 50);
    }
}
