//! A flood of handshake initiations that look right: as many as a strong sender can make who knows nothing but the public
//! key of the gateway.
//!
//! `flood --interface eth0 --to ADDR:PORT --public-key BASE64 --rate 50000 --seconds S [--sources 10.66.0.0/16]
//! [--source ADDR]`: IPv4 only; the sources are spoofed, in turn from a prefix or always the same. Prints how many it sent.
//!
//! Each has a random ephemeral key, static and timestamp and a valid mac1 (whitepaper §5.4.4: keyed BLAKE2s over what
//! stands before it, with the key BLAKE2s-256("mac1----" ‖ public key)), and no mac2. So it costs the gateway mac1, and a
//! handshake if the gateway goes further before it asks for a cookie; it opens none. Messages are made beforehand and used
//! again and again, each time with another source; the gateway cannot know them by that.

#![expect(unsafe_code, reason = "raw sockets and sendmmsg(2) have no safe wrapper in the standard library")]

use std::collections::HashMap;
use std::io::{self, ErrorKind, Write};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};
use std::{mem, thread};

use anyhow::{Context, ensure};
use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput, KeyInit, Update};
use blake2::{Blake2s256, Blake2sMac, Digest};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tests::random::Random;
use tunnel::PublicKey;

const INITIATION_BYTES: usize = 148;
const MAC1_AT: usize = 116;
const IP_HEADER_BYTES: usize = 20;
const UDP_HEADER_BYTES: usize = 8;
const PACKET_BYTES: usize = IP_HEADER_BYTES + UDP_HEADER_BYTES + INITIATION_BYTES;
/// Different messages; more would only take longer to make.
const POOL: usize = 4096;
/// Handed to the kernel in one call; the pool is so many of them.
const BATCH: usize = 64;
/// Not made up for: a sender that was held up does not burst.
const BEHIND_AT_MOST: Duration = Duration::from_millis(20);

struct Options {
    interface: String,
    to: SocketAddrV4,
    public_key: PublicKey,
    rate: u64,
    seconds: u64,
    /// The first source and how many there are from it on.
    first_source: u32,
    sources: u32,
}

fn main() -> anyhow::Result<()> {
    let options = Options::read(std::env::args().skip(1))?;
    let mut pool = pool(&options);
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW))).context("a raw socket")?;
    socket.bind_device(Some(options.interface.as_bytes())).context("the interface")?;
    socket.connect(&SockAddr::from(options.to)).context("the target")?;

    let start = Instant::now();
    let end = start + Duration::from_secs(options.seconds);
    let interval = Duration::from_secs_f64(BATCH as f64 / options.rate as f64);
    let (mut due, mut sent, mut refused, mut source) = (start, 0u64, 0u64, 0u32);
    let mut next = 0;
    while Instant::now() < end {
        let batch = &mut pool[next..next + BATCH];
        next = (next + BATCH) % POOL;
        for packet in &mut *batch {
            let from = options.first_source.wrapping_add(source);
            source = (source + 1) % options.sources;
            packet[12..16].copy_from_slice(&from.to_be_bytes());
        }
        let taken = send(&socket, batch)?;
        sent += taken as u64;
        refused += (BATCH - taken) as u64;
        due = (due + interval).max(Instant::now().checked_sub(BEHIND_AT_MOST).unwrap_or(start));
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    let took = start.elapsed().as_secs_f64();
    writeln!(io::stdout(), "sent {sent} in {took:.1} s, {:.0} a second; the kernel refused {refused}", sent as f64 / took)?;
    Ok(())
}

impl Options {
    fn read(words: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let words: Vec<String> = words.collect();
        ensure!(words.len().is_multiple_of(2), "options come with a value each");
        let given: HashMap<&str, &str> =
            words.chunks_exact(2).filter_map(|pair| Some((pair.first()?.as_str(), pair.get(1)?.as_str()))).collect();
        let wanted = |name: &str| given.get(name).copied().with_context(|| format!("{name} is missing"));
        let (first_source, sources) = match (given.get("--source"), given.get("--sources")) {
            (Some(address), None) => (address.parse::<Ipv4Addr>()?.to_bits(), 1),
            (None, prefix) => addresses(prefix.copied().unwrap_or("10.66.0.0/16")).context("--sources ADDR/LENGTH")?,
            (Some(_), Some(_)) => anyhow::bail!("--source and --sources exclude each other"),
        };
        let rate: u64 = wanted("--rate")?.parse()?;
        ensure!(rate > 0, "--rate 0 is no flood");
        Ok(Self {
            interface: wanted("--interface")?.to_owned(),
            to: wanted("--to")?.parse()?,
            public_key: wanted("--public-key")?.parse()?,
            rate,
            seconds: wanted("--seconds")?.parse()?,
            first_source,
            sources,
        })
    }
}

/// The first address of a prefix and how many it has.
fn addresses(prefix: &str) -> Option<(u32, u32)> {
    let (address, length) = prefix.split_once('/')?;
    let length: u32 = length.parse().ok()?;
    let count = 1u32.checked_shl(32u32.checked_sub(length)?)?;
    Some((address.parse::<Ipv4Addr>().ok()?.to_bits() & !(count - 1), count))
}

fn pool(options: &Options) -> Vec<[u8; PACKET_BYTES]> {
    let mut random = Random::new(1);
    let key = Blake2s256::new().chain_update(b"mac1----").chain_update(options.public_key.as_bytes()).finalize();
    let packets = (0..POOL).map(|_| {
        let mut packet = [0u8; PACKET_BYTES];
        // The kernel fills in length, identification and checksum (raw(7)).
        packet[0] = 0x45;
        packet[8] = 64;
        packet[9] = 17;
        packet[16..20].copy_from_slice(&options.to.ip().octets());
        let (_, udp) = packet.split_at_mut(IP_HEADER_BYTES);
        let source_port = 1024 + (random.number() % 60_000) as u16;
        udp[0..2].copy_from_slice(&source_port.to_be_bytes());
        udp[2..4].copy_from_slice(&options.to.port().to_be_bytes());
        udp[4..6].copy_from_slice(&((UDP_HEADER_BYTES + INITIATION_BYTES) as u16).to_be_bytes());
        // Over IPv4 a checksum of zero says that there is none.
        let (_, message) = udp.split_at_mut(UDP_HEADER_BYTES);
        message.copy_from_slice(&random.bytes(INITIATION_BYTES));
        message[..4].copy_from_slice(&[1, 0, 0, 0]);
        let mac1 = mac(&key, &message[..MAC1_AT]);
        message[MAC1_AT..MAC1_AT + 16].copy_from_slice(&mac1);
        message[MAC1_AT + 16..].fill(0);
        packet
    });
    packets.collect()
}

/// Keyed BLAKE2s with sixteen bytes of output.
fn mac(key: &[u8], message: &[u8]) -> [u8; 16] {
    let mut mac = Blake2sMac::<U16>::new_from_slice(key).expect("a key of 32 bytes is not too long");
    Update::update(&mut mac, message);
    mac.finalize_fixed().into()
}

/// How many of `packets` the kernel took. It copies them before it returns.
fn send(socket: &Socket, packets: &mut [[u8; PACKET_BYTES]]) -> io::Result<usize> {
    let mut vectors: Vec<libc::iovec> =
        packets.iter_mut().map(|packet| libc::iovec { iov_base: packet.as_mut_ptr().cast(), iov_len: PACKET_BYTES }).collect();
    let headers = vectors.iter_mut().map(|vector| {
        // SAFETY: an all-zero mmsghdr is valid; it is plain data.
        let mut header: libc::mmsghdr = unsafe { mem::zeroed() };
        header.msg_hdr.msg_iov = vector;
        header.msg_hdr.msg_iovlen = 1;
        header
    });
    let mut headers: Vec<libc::mmsghdr> = headers.collect();
    // SAFETY: `headers` holds as many entries as said; each points to one vector, which points to a packet of its length;
    // all of them outlive the call. The socket is connected, so no entry needs an address.
    let result = unsafe { libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), headers.len() as libc::c_uint, 0) };
    match usize::try_from(result) {
        Ok(taken) => Ok(taken),
        Err(_) => {
            let error = io::Error::last_os_error();
            // A full queue is what a flood is about.
            let full = error.raw_os_error() == Some(libc::ENOBUFS) || error.kind() == ErrorKind::WouldBlock;
            if full { Ok(0) } else { Err(error) }
        }
    }
}
