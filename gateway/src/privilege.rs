//! What the process asks of the system for itself: enough descriptors, and no copy of its memory.

use rustix::process::{DumpableBehavior, Resource, getrlimit, set_dumpable_behavior, setrlimit};
use tracing::{debug, warn};

/// Beside two a session: listeners, tunnels, the admin interface, name look-ups.
const OTHER_DESCRIPTORS: u64 = 256;

/// Raises the limit on open descriptors as far as it may go, and says if that is not enough for `sessions`.
pub(crate) fn raise_descriptor_limit(sessions: usize) {
    let limit = getrlimit(Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        debug!(%error, "the limit on open descriptors stays as it is");
    }
    let wanted = (sessions as u64).saturating_mul(2).saturating_add(OTHER_DESCRIPTORS);
    if let Some(granted) = getrlimit(Resource::Nofile).current.filter(|granted| *granted < wanted) {
        warn!(
            granted,
            wanted,
            "too few file descriptors for so many sessions: raise the hard limit on open files (ulimit -Hn, LimitNOFILE=), or lower relay.limits.sessions"
        );
    }
}

/// Keeps the process out of core dumps and debuggers of other users: its memory holds keys.
pub(crate) fn forbid_dumps() {
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        warn!(%error, "the process may be dumped");
    }
}
