//! An eventfd: how another thread wakes a lane out of its `poll`.
#![expect(unsafe_code, reason = "eventfd has no wrapper in std")]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::sync::Arc;

/// Cheap to clone; waking a lane that is awake costs it one turn of its loop.
#[derive(Debug, Clone)]
pub struct Wake(Arc<File>);

impl Wake {
    pub fn new() -> io::Result<Self> {
        // SAFETY: eventfd takes two integers and returns a new descriptor or -1.
        let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just opened and belongs to nobody else.
        Ok(Self(Arc::new(unsafe { File::from_raw_fd(fd) })))
    }

    pub fn wake(&self) {
        // The counter can only be full if billions of wake-ups are pending: the lane is awake then.
        let _full = (&*self.0).write(&1u64.to_ne_bytes());
    }

    pub(super) fn clear(&self) {
        let mut count = [0u8; 8];
        let _empty = (&*self.0).read(&mut count);
    }

    pub(super) fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
