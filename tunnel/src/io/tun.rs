//! The kernel's TUN device: packets and super-packets, by one queue or several.
//!
//! Every read and write begins with a virtio-net header ([`crate::offload::VnetHeader`]) that says what the packet is:
//! one packet, or up to 64 KiB of a flow that the other side is to cut up. What the kernel will hand over and take is
//! settled once, when the device is made ([`Offloads`]).
//!
//! A device with several queues spreads flows over those that are attached; Linux keeps a flow on the queue that last
//! wrote it. Addresses, MTU and routes are the routing crate's business. The device goes when the last descriptor closes.
#![expect(unsafe_code, reason = "TUNSETIFF and its kin are ioctls")]

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use crate::offload::{Offloads, VNET_BYTES, VnetHeader};

const DEVICE: &str = "/dev/net/tun";
/// Packets that wait in a queue of the device. The kernel's default, 500, drops the bursts of a few TCP flows.
const QUEUE_PACKETS: libc::c_int = 2000;

/// One queue of a device.
#[derive(Debug)]
pub struct Tun {
    file: File,
    name: String,
    offloads: Offloads,
    attached: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum TunError {
    #[error("{DEVICE} cannot be opened: {source}; in a container, pass the device in (--device {DEVICE}), or use mode: userspace")]
    Open { source: io::Error },
    #[error(
        "no permission to make the TUN device {name}: the process needs CAP_NET_ADMIN; run as root, grant the capability, or use mode: userspace"
    )]
    Permission { name: String },
    #[error("the TUN device {name} is in use: another program, or another skyway, holds it")]
    Busy { name: String },
    #[error("the TUN device {name} cannot be made: {source}")]
    Create { name: String, source: io::Error },
}

impl Tun {
    /// Makes the device `name` (at most 15 bytes), down and without an address, with `queues` queues. Only the first is
    /// attached: the others carry nothing until [`Self::attach`].
    pub fn create(name: &str, queues: u16) -> Result<Vec<Self>, TunError> {
        let several = if queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
        let mut made = Vec::new();
        for number in 0..queues {
            let exclusive = if number == 0 { libc::IFF_TUN_EXCL } else { 0 };
            let mut queue = Self::open(name, several | exclusive)?;
            let create = |source| TunError::Create { name: name.to_owned(), source };
            if number == 0 {
                queue.offloads = queue.settle_offloads();
                queue.lengthen_queue();
            } else {
                queue.offloads = made.first().map_or(queue.offloads, |first: &Self| first.offloads);
                queue.attach(false).map_err(create)?;
            }
            made.push(queue);
        }
        Ok(made)
    }

    fn open(name: &str, flags: libc::c_int) -> Result<Self, TunError> {
        let options = libc::O_NONBLOCK | libc::O_CLOEXEC;
        let opened = OpenOptions::new().read(true).write(true).custom_flags(options).open(DEVICE);
        let file = opened.map_err(|source| {
            if source.kind() == io::ErrorKind::PermissionDenied {
                TunError::Permission { name: name.to_owned() }
            } else {
                TunError::Open { source }
            }
        })?;
        let mut request = request(name);
        request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | flags) as libc::c_short;
        // SAFETY: the descriptor is open and `request` outlives the call, which reads and writes only it.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        if result < 0 {
            let source = io::Error::last_os_error();
            let name = name.to_owned();
            return Err(match source.raw_os_error() {
                Some(libc::EPERM) => TunError::Permission { name },
                Some(libc::EBUSY) => TunError::Busy { name },
                _ => TunError::Create { name, source },
            });
        }
        Ok(Self { file, name: name.to_owned(), offloads: Offloads { tcp: false, udp: false }, attached: true })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the kernel takes on write, as far as it says so; a refusal at run time comes on top.
    pub(super) const fn offloads(&self) -> Offloads {
        self.offloads
    }

    pub(super) const fn is_attached(&self) -> bool {
        self.attached
    }

    /// Has the kernel give packets to this queue, or no longer. Packets that wait in a detached queue are dropped.
    pub(super) fn attach(&mut self, attached: bool) -> io::Result<()> {
        if self.attached == attached {
            return Ok(());
        }
        let mut request = request("");
        let flag = if attached { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
        request.ifr_ifru.ifru_flags = flag as libc::c_short;
        // SAFETY: the descriptor is open and `request` outlives the call, which only reads it.
        if unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETQUEUE, &raw const request) } < 0 {
            return Err(io::Error::last_os_error());
        }
        self.attached = attached;
        Ok(())
    }

    /// Asks for super-packets, as many kinds as the kernel has: UDP's need Linux 6.2.
    fn settle_offloads(&self) -> Offloads {
        let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
        let kinds = [(tcp | libc::TUN_F_USO4 | libc::TUN_F_USO6, true, true), (tcp, true, false)];
        for (flags, tcp, udp) in kinds {
            // SAFETY: TUNSETOFFLOAD takes an integer by value.
            if unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) } >= 0 {
                return Offloads { tcp, udp };
            }
        }
        tracing::warn!(device = self.name, "this kernel hands over no super-packets: the tunnel works, and is slower");
        Offloads { tcp: false, udp: false }
    }

    /// Worth no failure: a short queue loses bursts.
    fn lengthen_queue(&self) {
        let Ok(socket) = std::net::UdpSocket::bind(("127.0.0.1", 0)) else { return };
        let mut request = request(&self.name);
        request.ifr_ifru.ifru_metric = QUEUE_PACKETS;
        // SAFETY: the descriptor is open and `request` outlives the call, which only reads it.
        if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFTXQLEN, &raw const request) } < 0 {
            tracing::debug!(error = %io::Error::last_os_error(), device = self.name, "queue length not set");
        }
    }

    /// Reads the next packet or super-packet into `buffer`: virtio-net header, then packet. None if there is none now.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<(VnetHeader, usize)>> {
        match (&self.file).read(buffer) {
            Ok(length) => {
                // A kind of super-packet that was never asked for becomes a packet without bytes, which is counted as none.
                let header = VnetHeader::parse(buffer.get(..length).unwrap_or_default());
                Ok(Some(header.map_or((VnetHeader::PLAIN, 0), |header| (header, length.saturating_sub(VNET_BYTES)))))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes a virtio-net header and its packet.
    pub(super) fn send(&self, packet: &[u8]) -> io::Result<()> {
        (&self.file).write(packet).map(drop)
    }

    pub(super) fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// An interface request for `name`.
fn request(name: &str) -> libc::ifreq {
    // SAFETY: an all-zero ifreq is valid; it is plain data.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}
