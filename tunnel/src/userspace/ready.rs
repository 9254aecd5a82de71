//! Which flows have something to do: told by tokio's threads and by smoltcp on the lane itself.

use std::sync::{Arc, Mutex, PoisonError};

use smoltcp::iface::SocketHandle;

use crate::io::Wake;

/// Flows that have something to do. Pushed to by tokio's threads and by smoltcp on the lane itself.
pub(super) struct Ready {
    pub(super) handles: Mutex<Vec<SocketHandle>>,
    pub(super) wake: Wake,
}

impl Ready {
    pub(super) fn push(&self, handle: SocketHandle) {
        let mut handles = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
        if !handles.contains(&handle) {
            handles.push(handle);
        }
    }

    pub(super) fn take(&self, into: &mut Vec<SocketHandle>) {
        into.append(&mut self.handles.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

pub(super) struct FlowWaker {
    pub(super) handle: SocketHandle,
    pub(super) ready: Arc<Ready>,
}

impl std::task::Wake for FlowWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ready.push(self.handle);
        self.ready.wake.wake();
    }
}
