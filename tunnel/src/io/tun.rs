//! The kernel's TUN device: whole IP packets, one a read and one a write.
//!
//! Super-packets (`IFF_VNET_HDR`) and several queues are for later; addresses, MTU and routes are the routing
//! crate's business. The device goes when the last descriptor closes.
#![expect(unsafe_code, reason = "TUNSETIFF is an ioctl")]

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

const DEVICE: &str = "/dev/net/tun";

#[derive(Debug)]
pub struct Tun {
    file: File,
    name: String,
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
    /// Makes the device `name` (at most 15 bytes), down and without an address.
    pub fn create(name: &str) -> Result<Self, TunError> {
        let options = libc::O_NONBLOCK | libc::O_CLOEXEC;
        let opened = OpenOptions::new().read(true).write(true).custom_flags(options).open(DEVICE);
        let file = opened.map_err(|source| {
            if source.kind() == io::ErrorKind::PermissionDenied {
                TunError::Permission { name: name.to_owned() }
            } else {
                TunError::Open { source }
            }
        })?;
        // SAFETY: an all-zero ifreq is valid; it is plain data.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_TUN_EXCL) as libc::c_short;
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
        Ok(Self { file, name: name.to_owned() })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Length of the packet read into `buffer`, or None if there is none now.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match (&self.file).read(buffer) {
            Ok(length) => Ok(Some(length)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn send(&self, packet: &[u8]) -> io::Result<()> {
        (&self.file).write(packet).map(drop)
    }

    pub(super) fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}
