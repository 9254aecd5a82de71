//! A piece of a test inside a network namespace, without a program of its own.
//!
//! A socket belongs for its whole life to the namespace of the thread that made it. So a thread goes into the namespace,
//! makes sockets there and hands them out, and may then be used by whoever holds them.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::{io, panic, thread};

use crate::netns::Namespace;

/// Does `act` on a thread inside `namespace`, and returns what it returns. A panic of `act` is the caller's.
pub fn inside<T: Send>(namespace: &Namespace, act: impl FnOnce() -> T + Send) -> T {
    let done = thread::scope(|scope| {
        let worker = scope.spawn(|| {
            enter(namespace);
            act()
        });
        worker.join()
    });
    done.unwrap_or_else(|panicked| panic::resume_unwind(panicked))
}

/// Moves the calling thread, and it alone, into `namespace` for good.
#[track_caller]
#[expect(unsafe_code, reason = "setns(2) has no safe wrapper in the standard library")]
fn enter(namespace: &Namespace) {
    let path = format!("/var/run/netns/{}", namespace.name());
    let file = File::open(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    // SAFETY: setns takes no pointer; the descriptor is open.
    let result = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
    assert_eq!(result, 0, "{path}: {}", io::Error::last_os_error());
}
