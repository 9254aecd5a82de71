//! How a lane waits for its inputs: `epoll`, and a timer that is moved only when it must fire earlier.
//!
//! A timeout given to the wait itself would set and cancel a kernel timer for every packet, which on a virtual machine
//! costs more than to seal one. Here the timer stays where it is; if it fires before anything is due, the lane looks,
//! and sets it anew.
#![expect(unsafe_code, reason = "epoll and timerfd have no wrapper in std")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

/// One lane's inputs.
#[derive(Debug)]
pub(super) struct Sleep {
    epoll: OwnedFd,
    timer: OwnedFd,
    /// When the timer fires.
    armed: Option<Instant>,
    /// The port that is watched; a detached queue is not.
    port: Option<RawFd>,
}

/// Which inputs have something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Ready {
    pub(super) socket: bool,
    pub(super) wake: bool,
    pub(super) port: bool,
}

const SOCKET: u64 = 0;
const WAKE: u64 = 1;
const PORT: u64 = 2;
const TIMER: u64 = 3;

impl Sleep {
    /// Watches these descriptors, which must stay open for as long as they are waited for.
    pub(super) fn new(socket: RawFd, wake: RawFd) -> io::Result<Self> {
        // SAFETY: integers in; a new descriptor or -1 out.
        let epoll = unsafe { owned(libc::epoll_create1(libc::EPOLL_CLOEXEC))? };
        // SAFETY: the same.
        let timer = unsafe { owned(libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC))? };
        let sleep = Self { epoll, timer, armed: None, port: None };
        for (fd, name) in [(socket, SOCKET), (wake, WAKE), (sleep.timer.as_raw_fd(), TIMER)] {
            sleep.control(libc::EPOLL_CTL_ADD, fd, name)?;
        }
        Ok(sleep)
    }

    /// Watches `port` from now on, and no other.
    pub(super) fn watch_port(&mut self, port: Option<RawFd>) -> io::Result<()> {
        if self.port == port {
            return Ok(());
        }
        if let Some(before) = self.port.take() {
            self.control(libc::EPOLL_CTL_DEL, before, PORT)?;
        }
        if let Some(port) = port {
            self.control(libc::EPOLL_CTL_ADD, port, PORT)?;
        }
        self.port = port;
        Ok(())
    }

    fn control(&self, operation: libc::c_int, fd: RawFd, name: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: name };
        // SAFETY: the event outlives the call, which copies it.
        if unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), operation, fd, &raw mut event) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Waits until an input has something or `delay` has passed since `now`; perhaps less.
    pub(super) fn wait(&mut self, now: Instant, delay: Duration) -> io::Result<Ready> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 4];
        let until = now + delay;
        let timeout = if delay.is_zero() { 0 } else { -1 };
        if !delay.is_zero() && self.armed.is_none_or(|armed| armed > until) {
            self.arm(delay)?;
            self.armed = Some(until);
        }
        // SAFETY: the kernel fills at most as many events as it is told that there is room for.
        let count = unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), events.as_mut_ptr(), events.len() as libc::c_int, timeout) };
        let Ok(count) = usize::try_from(count) else {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(Ready::default()) } else { Err(error) };
        };
        let mut ready = Ready::default();
        for event in events.iter().take(count) {
            match event.u64 {
                SOCKET => ready.socket = true,
                WAKE => ready.wake = true,
                PORT => ready.port = true,
                _ => self.fired(),
            }
        }
        Ok(ready)
    }

    /// Sets the timer to `delay` from now, which is not zero: zero would turn it off.
    fn arm(&self, delay: Duration) -> io::Result<()> {
        let value = libc::timespec { tv_sec: delay.as_secs() as libc::time_t, tv_nsec: delay.subsec_nanos() as libc::c_long };
        let once = libc::itimerspec { it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        // SAFETY: the value outlives the call, and the old one is not asked for.
        let set = unsafe { libc::timerfd_settime(self.timer.as_raw_fd(), 0, &raw const once, std::ptr::null_mut()) };
        if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn fired(&mut self) {
        self.armed = None;
        let mut times = [0u8; 8];
        // SAFETY: the kernel writes at most eight bytes. What it says does not matter.
        let _times = unsafe { libc::read(self.timer.as_raw_fd(), times.as_mut_ptr().cast(), times.len()) };
    }
}

/// # Safety
/// `fd` is negative, or was just opened and belongs to nobody else.
unsafe fn owned(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as the caller says.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Wake;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn wakes_for_what_has_something_and_says_which() {
        let (socket, wake, port) = (Wake::new().expect("eventfd"), Wake::new().expect("eventfd"), Wake::new().expect("eventfd"));
        let mut sleep = Sleep::new(socket.fd(), wake.fd()).expect("epoll");
        sleep.watch_port(Some(port.fd())).expect("watched");
        assert_eq!(sleep.wait(Instant::now(), Duration::ZERO).expect("waited"), Ready::default());
        port.wake();
        let ready = Ready { port: true, ..Ready::default() };
        assert_eq!(sleep.wait(Instant::now(), LONG).expect("waited"), ready);
        assert_eq!(sleep.wait(Instant::now(), LONG).expect("waited"), ready, "until it is read");
        sleep.watch_port(None).expect("left alone");
        assert_eq!(sleep.wait(Instant::now(), Duration::ZERO).expect("waited"), Ready::default(), "not while nobody looks");
        sleep.watch_port(Some(port.fd())).expect("watched again");
        assert_eq!(sleep.wait(Instant::now(), LONG).expect("waited"), ready);
        port.clear();
        socket.wake();
        wake.wake();
        assert_eq!(sleep.wait(Instant::now(), LONG).expect("waited"), Ready { socket: true, wake: true, port: false });
    }

    #[test]
    fn a_later_deadline_leaves_the_timer_and_an_earlier_one_moves_it() {
        let (input, wake) = (Wake::new().expect("eventfd"), Wake::new().expect("eventfd"));
        let mut sleep = Sleep::new(input.fd(), wake.fd()).expect("epoll");
        input.wake();
        let now = Instant::now();
        for delay in [LONG, LONG * 2] {
            sleep.wait(now, delay).expect("waited");
            assert_eq!(sleep.armed, Some(now + LONG));
        }
        input.clear();
        assert_eq!(sleep.wait(now, Duration::from_millis(1)).expect("waited"), Ready::default());
        assert_eq!(sleep.armed, None, "it has fired");
        assert!(now.elapsed() < LONG);
    }
}
