//! The seam between a lane and where inner packets come from and go to.

use std::io;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use super::tun::Tun;
use super::wake::Wake;
use crate::offload::{Offloads, VNET_BYTES, VnetHeader};
use crate::userspace::{Stack, StackSettings};

/// A port that was made ready, with everything that can fail behind it, and is not driven yet.
#[derive(Debug)]
pub enum PreparedPort {
    Tun(Tun),
    Userspace(StackSettings),
}

/// Inner packets: to and from the kernel, or to and from the TCP/IP stack inside the process.
pub(super) enum PacketPort {
    Tun(Tun),
    Userspace(Box<Stack>),
}

impl PacketPort {
    pub(super) fn open(prepared: PreparedPort, wake: &Wake, now: Instant) -> Self {
        match prepared {
            PreparedPort::Tun(tun) => Self::Tun(tun),
            PreparedPort::Userspace(settings) => Self::Userspace(Box::new(Stack::new(settings, wake.clone(), now))),
        }
    }

    /// The descriptor to poll for packets; the userspace stack wakes the lane by its eventfd instead.
    pub(super) fn fd(&self) -> Option<RawFd> {
        match self {
            Self::Tun(tun) => tun.is_attached().then(|| tun.fd()),
            Self::Userspace(_) => None,
        }
    }

    /// Which super-packets may be delivered.
    pub(super) const fn offloads(&self) -> Offloads {
        match self {
            Self::Tun(tun) => tun.offloads(),
            Self::Userspace(_) => Stack::OFFLOADS,
        }
    }

    /// Gives an opened packet or super-packet, behind its virtio-net header, to the host.
    pub(super) fn deliver(&mut self, packet: &[u8], now: Instant) -> io::Result<()> {
        match self {
            Self::Tun(tun) => tun.send(packet),
            Self::Userspace(stack) => {
                stack.handle_packet(packet.get(VNET_BYTES..).unwrap_or_default(), now);
                Ok(())
            }
        }
    }

    /// Puts the next packet that wants out into `room`, behind [`VNET_BYTES`], and returns what it is and its length; None if
    /// there is none now.
    pub(super) fn take(&mut self, room: &mut [u8]) -> io::Result<Option<(VnetHeader, usize)>> {
        match self {
            Self::Tun(tun) if tun.is_attached() => tun.receive(room),
            Self::Tun(_) => Ok(None),
            Self::Userspace(stack) => Ok(room.get_mut(VNET_BYTES..).and_then(|room| stack.take_packet(room))),
        }
    }

    /// Serves streams and timers of the userspace stack.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        match self {
            Self::Tun(_) => {}
            Self::Userspace(stack) => stack.handle_timeout(now),
        }
    }

    pub(super) fn poll_delay(&mut self, now: Instant) -> Option<Duration> {
        match self {
            Self::Tun(_) => None,
            Self::Userspace(stack) => stack.poll_delay(now),
        }
    }

    /// Whether the host gives packets to this lane.
    pub(super) fn is_attached(&self) -> bool {
        match self {
            Self::Tun(tun) => tun.is_attached(),
            Self::Userspace(_) => true,
        }
    }

    pub(super) fn attach(&mut self, attached: bool) -> io::Result<()> {
        match self {
            Self::Tun(tun) => tun.attach(attached),
            Self::Userspace(_) => Ok(()),
        }
    }

    /// The TUN device's own MTU is the routing crate's to set.
    pub(super) fn set_mtu(&mut self, mtu: u32, now: Instant) {
        match self {
            Self::Tun(_) => {}
            Self::Userspace(stack) => stack.set_mtu(mtu, now),
        }
    }

    pub(super) fn streams(&self) -> Option<usize> {
        match self {
            Self::Tun(_) => None,
            Self::Userspace(stack) => Some(stack.streams()),
        }
    }
}
