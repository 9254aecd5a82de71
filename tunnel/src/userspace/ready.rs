//! Which flows have something to do: told by tokio's threads and by smoltcp on the lane itself.
//!
//! Two costs are kept down. A flow is in the list once, by a flag of its own and not by a search. And the lane's eventfd is
//! written, which is a system call, only while the lane sleeps or is about to: a lane that is awake looks at the list
//! before it goes to sleep.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::io::Wake;

/// Flows that have something to do, by number.
pub(super) struct Ready {
    flows: Mutex<Vec<u32>>,
    /// The lane will look at `flows` before it sleeps.
    awake: AtomicBool,
    wake: Wake,
}

impl Ready {
    pub(super) fn new(wake: Wake) -> Self {
        Self { flows: Mutex::new(Vec::new()), awake: AtomicBool::new(true), wake }
    }

    /// The lane is at work.
    pub(super) fn stay_awake(&self) {
        self.awake.store(true, Ordering::Relaxed);
    }

    /// From here on the lane has to be woken. False if it must not sleep because something is ready.
    ///
    /// No wake-up is lost: whoever adds a flow does so under the lock and looks at `awake` afterwards. Either it took the
    /// lock before the look below, which then finds the flow; or after it, and then it sees `awake` as stored here.
    pub(super) fn fall_asleep(&self) -> bool {
        self.awake.store(false, Ordering::Relaxed);
        let nothing = self.is_empty();
        if !nothing {
            self.stay_awake();
        }
        nothing
    }

    pub(super) fn take(&self, into: &mut Vec<u32>) {
        into.append(&mut self.lock());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn add(&self, flow: u32) {
        self.lock().push(flow);
        if !self.awake.load(Ordering::Relaxed) {
            self.wake.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u32>> {
        self.flows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wakes one flow. It may outlive it: waking a number that nothing or something else bears does no harm.
pub(super) struct FlowWaker {
    flow: u32,
    /// In the list, or about to be.
    listed: AtomicBool,
    ready: Arc<Ready>,
}

impl FlowWaker {
    pub(super) const fn new(flow: u32, ready: Arc<Ready>) -> Self {
        Self { flow, listed: AtomicBool::new(false), ready }
    }

    /// The flow is about to be served: what happens from here on lists it again.
    pub(super) fn served(&self) {
        // An exchange and not a store, so that what was done before the last wake-up is seen.
        let _was = self.listed.swap(false, Ordering::AcqRel);
    }
}

impl std::task::Wake for FlowWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.listed.swap(true, Ordering::AcqRel) {
            self.ready.add(self.flow);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    fn taken(ready: &Ready) -> Vec<u32> {
        let mut flows = Vec::new();
        ready.take(&mut flows);
        flows
    }

    #[test]
    fn a_flow_is_listed_once_until_it_is_served() {
        let ready = Arc::new(Ready::new(Wake::new().expect("an eventfd")));
        let signal = Arc::new(FlowWaker::new(7, Arc::clone(&ready)));
        let waker = Waker::from(Arc::clone(&signal));
        waker.wake_by_ref();
        waker.wake_by_ref();
        assert_eq!(taken(&ready), [7]);
        waker.wake_by_ref();
        assert_eq!(taken(&ready), [0u32; 0], "taken, but not served yet");
        signal.served();
        waker.wake();
        assert_eq!(taken(&ready), [7]);
    }

    #[test]
    fn a_lane_with_something_ready_does_not_sleep() {
        let ready = Arc::new(Ready::new(Wake::new().expect("an eventfd")));
        assert!(ready.fall_asleep());
        ready.stay_awake();
        Waker::from(Arc::new(FlowWaker::new(1, Arc::clone(&ready)))).wake();
        assert!(!ready.fall_asleep());
        assert!(!ready.is_empty());
    }
}
