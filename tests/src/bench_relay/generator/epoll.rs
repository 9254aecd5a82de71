//! What the generator asks of the kernel beside plain sockets: epoll, a precise timer, and many ports a source address.
//!
//! Why not a runtime: load and backend share one processor, and each of their sessions must cost less than the relay's own,
//! or the load is what is measured.

#![expect(unsafe_code, reason = "epoll(7), timerfd_create(2) and IP_BIND_ADDRESS_NO_PORT have no safe wrapper among our dependencies")]

use std::fs::File;
use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::time::Duration;

use socket2::{SockAddr, Socket};

/// A set of descriptors that are waited for. Closing one takes it out.
pub struct Epoll {
    descriptor: OwnedFd,
    ready: Vec<libc::epoll_event>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// Every change, once: whoever is told reads or writes until the kernel says that it would block.
    Changes,
    /// As long as there is something to read.
    Reading,
    /// As long as there is room to write.
    Writing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// As given to [`Epoll::add`].
    pub token: u64,
    pub readable: bool,
    pub writable: bool,
    /// The other side has ended its direction, or the connection is broken.
    pub ended: bool,
}

/// A descriptor that becomes readable at a fixed interval.
#[derive(Debug)]
pub struct Ticks(File);

/// Events taken at once.
const BATCH: usize = 256;

impl Epoll {
    pub fn new() -> io::Result<Self> {
        // SAFETY: epoll_create1 takes no pointer.
        let descriptor = owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        Ok(Self { descriptor, ready: vec![libc::epoll_event { events: 0, u64: 0 }; BATCH] })
    }

    pub fn add(&self, what: &impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, what, token, interest)
    }

    /// For what was added before.
    pub fn change(&self, what: &impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, what, token, interest)
    }

    fn control(&self, operation: libc::c_int, what: &impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        let events = match interest {
            Interest::Changes => libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET,
            Interest::Reading => libc::EPOLLIN | libc::EPOLLRDHUP,
            Interest::Writing => libc::EPOLLOUT | libc::EPOLLRDHUP,
        };
        let mut event = libc::epoll_event { events: events as u32, u64: token };
        // SAFETY: `event` outlives the call, which keeps no pointer to it; both descriptors are open, being borrowed.
        let result = unsafe { libc::epoll_ctl(self.descriptor.as_raw_fd(), operation, what.as_fd().as_raw_fd(), &raw mut event) };
        check(result)
    }

    /// Puts into `events` what has happened, in place of what was there; none if `within` passed or a signal came.
    pub fn wait(&mut self, events: &mut Vec<Event>, within: Duration) -> io::Result<()> {
        events.clear();
        // Rounded up, so that a short wait does not become a busy one.
        let milliseconds = libc::c_int::try_from(within.as_micros().div_ceil(1000)).unwrap_or(libc::c_int::MAX);
        let room = libc::c_int::try_from(self.ready.len()).unwrap_or(libc::c_int::MAX);
        // SAFETY: `ready` holds as many initialised events as `room` says, and outlives the call.
        let count = unsafe { libc::epoll_wait(self.descriptor.as_raw_fd(), self.ready.as_mut_ptr(), room, milliseconds) };
        let Ok(count) = usize::try_from(count) else {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) };
        };
        for event in self.ready.iter().take(count) {
            // Copied out: the struct is packed.
            let (flags, token) = (event.events as libc::c_int, event.u64);
            let any = |wanted: libc::c_int| flags & wanted != 0;
            events.push(Event {
                token,
                readable: any(libc::EPOLLIN),
                writable: any(libc::EPOLLOUT),
                ended: any(libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR),
            });
        }
        Ok(())
    }
}

impl Ticks {
    /// `interval`: above zero.
    pub fn every(interval: Duration) -> io::Result<Self> {
        // SAFETY: timerfd_create takes no pointer.
        let timer = owned(unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC) })?;
        let every = libc::timespec {
            tv_sec: libc::time_t::try_from(interval.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: libc::c_long::from(interval.subsec_nanos() as i32),
        };
        let setting = libc::itimerspec { it_interval: every, it_value: every };
        // SAFETY: `setting` outlives the call; what was set before is not asked for.
        let result = unsafe { libc::timerfd_settime(timer.as_raw_fd(), 0, &raw const setting, ptr::null_mut()) };
        check(result)?;
        Ok(Self(File::from(timer)))
    }

    /// Until this is called the timer does not go on. Whoever is told looks at the clock itself.
    pub fn take(&self) {
        let mut expirations = [0; 8];
        let _nothing_if_it_would_block = (&self.0).read_exact(&mut expirations);
    }
}

impl AsFd for Ticks {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Binds to `address` and leaves the port to connect(2), which then only has to be new together with the target.
pub fn bind_without_port(socket: &Socket, address: Ipv4Addr) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: `on` outlives the call and is as long as said.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    check(result)?;
    socket.bind(&SockAddr::from(SocketAddrV4::new(address, 0)))
}

fn owned(result: libc::c_int) -> io::Result<OwnedFd> {
    check(result)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(result) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn tells_what_can_be_read_and_that_the_other_side_has_ended() {
        let (here, mut there) = UnixStream::pair().expect("a pair of sockets");
        let (mut epoll, mut events) = (Epoll::new().expect("an epoll"), Vec::new());
        epoll.add(&here, 7, Interest::Reading).expect("added");
        epoll.wait(&mut events, Duration::ZERO).expect("asked");
        assert!(events.is_empty(), "{events:?}");
        there.write_all(b"x").expect("written");
        epoll.wait(&mut events, SOON).expect("asked");
        assert_eq!(events, [Event { token: 7, readable: true, writable: false, ended: false }]);
        drop(there);
        epoll.wait(&mut events, SOON).expect("asked");
        assert!(events.iter().all(|event| event.token == 7 && event.ended) && events.len() == 1, "{events:?}");
        epoll.change(&here, 8, Interest::Writing).expect("changed");
        epoll.wait(&mut events, SOON).expect("asked");
        assert!(events.iter().all(|event| event.token == 8) && events.len() == 1, "{events:?}");
    }

    #[test]
    fn a_timer_goes_on_once_it_is_taken() {
        let ticks = Ticks::every(Duration::from_millis(1)).expect("a timer");
        let (mut epoll, mut events) = (Epoll::new().expect("an epoll"), Vec::new());
        epoll.add(&ticks, 1, Interest::Changes).expect("added");
        for _ in 0..3 {
            epoll.wait(&mut events, SOON).expect("asked");
            assert_eq!(events.len(), 1);
            ticks.take();
        }
    }
}
