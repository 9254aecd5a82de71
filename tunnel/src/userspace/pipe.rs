//! One direction of a stream between the relay and the lane: a ring of bytes with a waker at each end.
//!
//! The two ends are on different threads, so every wake-up is dear. A reader is woken by the first bytes, and a writer that
//! found the ring full only when half of it is free again: at full speed that is one wake-up for half a ring, whatever the
//! size of the pieces that pass. The ring's memory is zeroed by the allocator, so that what is never used is never touched.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};

/// Bytes one way. All of it may be called from either end.
pub(super) struct Pipe {
    half: Mutex<Half>,
}

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    /// So many bytes were taken: not zero, unless none were offered.
    Bytes(usize),
    /// No room; the writer will be woken.
    Full,
    /// Nobody reads any more, or the writer itself had ended the pipe.
    Deserted,
}

/// What became of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// So many bytes: not zero, unless there was no room for any.
    Bytes(usize),
    /// Nothing now; the reader will be woken.
    Empty,
    /// Nothing any more.
    Ended,
}

struct Half {
    ring: Box<[u8]>,
    start: usize,
    length: usize,
    /// The writer will write no more.
    ended: bool,
    /// The reader will read no more.
    deserted: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Pipe {
    /// A pipe that holds up to `bytes` bytes.
    pub(super) fn new(bytes: usize) -> Self {
        let ring = vec![0; bytes].into_boxed_slice();
        Self { half: Mutex::new(Half { ring, start: 0, length: 0, ended: false, deserted: false, reader: None, writer: None }) }
    }

    /// Writes as much of `bytes` as there is room for.
    pub(super) fn write(&self, bytes: &[u8], cx: &Context<'_>) -> Written {
        let mut half = self.lock();
        if half.deserted || half.ended {
            return Written::Deserted;
        }
        let count = half.put(bytes);
        if count == 0 && !bytes.is_empty() {
            register(&mut half.writer, cx);
            return Written::Full;
        }
        let waker = if count > 0 { half.reader.take() } else { None };
        drop(half);
        wake(waker);
        Written::Bytes(count)
    }

    /// Reads as much into `room` as there is.
    pub(super) fn read(&self, room: &mut [u8], cx: &Context<'_>) -> Taken {
        let mut half = self.lock();
        let count = half.get(room);
        if count == 0 && !room.is_empty() {
            if half.ended {
                return Taken::Ended;
            }
            register(&mut half.reader, cx);
            return Taken::Empty;
        }
        let roomy = half.ring.len() - half.length >= half.ring.len() / 2;
        let waker = if roomy { half.writer.take() } else { None };
        drop(half);
        wake(waker);
        Taken::Bytes(count)
    }

    /// The writer's last word: what was written can still be read, and then the end.
    pub(super) fn end(&self) {
        let mut half = self.lock();
        half.ended = true;
        let waker = half.reader.take();
        drop(half);
        wake(waker);
    }

    /// The reader has gone: what stands is lost, and the writer is told. Whether there was any.
    pub(super) fn desert(&self) -> bool {
        let mut half = self.lock();
        half.deserted = true;
        let (lost, waker) = (half.length > 0, half.writer.take());
        drop(half);
        wake(waker);
        lost
    }

    /// Bytes that were written and not read yet.
    pub(super) fn bytes(&self) -> usize {
        self.lock().length
    }

    fn lock(&self) -> MutexGuard<'_, Half> {
        self.half.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Half {
    fn put(&mut self, bytes: &[u8]) -> usize {
        let size = self.ring.len();
        if self.length == 0 {
            // Small messages stay in the first pages.
            self.start = 0;
        }
        let count = bytes.len().min(size - self.length);
        let end = self.start + self.length;
        let at = if end >= size { end - size } else { end };
        let first = count.min(size - at);
        self.ring[at..at + first].copy_from_slice(&bytes[..first]);
        self.ring[..count - first].copy_from_slice(&bytes[first..count]);
        self.length += count;
        count
    }

    fn get(&mut self, room: &mut [u8]) -> usize {
        let size = self.ring.len();
        let count = room.len().min(self.length);
        let first = count.min(size - self.start);
        room[..first].copy_from_slice(&self.ring[self.start..self.start + first]);
        room[first..count].copy_from_slice(&self.ring[..count - first]);
        let end = self.start + count;
        self.start = if end >= size { end - size } else { end };
        self.length -= count;
        count
    }
}

fn register(slot: &mut Option<Waker>, cx: &Context<'_>) {
    if !slot.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
        *slot = Some(cx.waker().clone());
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl std::task::Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Count {
        fn get(&self) -> usize {
            self.0.load(Ordering::Relaxed)
        }
    }

    proptest! {
        /// Whatever the sizes of writes and reads: bytes come out once, in order, and never more than fit are held.
        #[test]
        fn carries_every_byte_in_order(size in 1usize..64, moves in vec((any::<bool>(), 0usize..80), 1..200)) {
            let cx = Context::from_waker(Waker::noop());
            let (pipe, mut expected, mut next) = (Pipe::new(size), VecDeque::<u8>::new(), 0u8);
            for (writes, count) in moves {
                if writes {
                    let bytes: Vec<u8> = (0..count).map(|at| next.wrapping_add(at as u8)).collect();
                    match pipe.write(&bytes, &cx) {
                        Written::Bytes(taken) => {
                            expected.extend(&bytes[..taken]);
                            next = next.wrapping_add(taken as u8);
                        }
                        Written::Full => prop_assert_eq!(expected.len(), size),
                        Written::Deserted => return Err(TestCaseError::fail("nobody left")),
                    }
                } else {
                    let mut room = vec![0; count];
                    match pipe.read(&mut room, &cx) {
                        Taken::Bytes(taken) => {
                            prop_assert_eq!(taken, count.min(expected.len()));
                            prop_assert!(expected.drain(..taken).eq(room[..taken].iter().copied()));
                        }
                        Taken::Empty => prop_assert!(expected.is_empty()),
                        Taken::Ended => return Err(TestCaseError::fail("nobody ended it")),
                    }
                }
                prop_assert!(expected.len() <= size);
            }
        }
    }

    #[test]
    fn wakes_the_reader_at_once_and_the_writer_when_half_is_free() {
        let (reader, writer) = (Arc::new(Count::default()), Arc::new(Count::default()));
        let (reader_waker, writer_waker) = (Waker::from(Arc::clone(&reader)), Waker::from(Arc::clone(&writer)));
        let (reads, writes) = (Context::from_waker(&reader_waker), Context::from_waker(&writer_waker));
        let pipe = Pipe::new(8);
        assert_eq!(pipe.read(&mut [0; 4], &reads), Taken::Empty);
        assert_eq!(pipe.write(&[1; 10], &writes), Written::Bytes(8));
        assert_eq!(reader.get(), 1);
        assert_eq!(pipe.write(&[1], &writes), Written::Full);
        assert_eq!(pipe.read(&mut [0; 3], &reads), Taken::Bytes(3));
        assert_eq!(writer.get(), 0, "three of eight are not half");
        assert_eq!(pipe.read(&mut [0; 1], &reads), Taken::Bytes(1));
        assert_eq!(writer.get(), 1);
    }

    #[test]
    fn an_end_comes_after_the_bytes_and_a_desertion_at_once() {
        let cx = Context::from_waker(Waker::noop());
        let pipe = Pipe::new(8);
        assert_eq!(pipe.write(&[1, 2], &cx), Written::Bytes(2));
        pipe.end();
        assert_eq!(pipe.write(&[3], &cx), Written::Deserted);
        assert_eq!(pipe.read(&mut [0; 8], &cx), Taken::Bytes(2));
        assert_eq!(pipe.read(&mut [0; 8], &cx), Taken::Ended);
        let pipe = Pipe::new(8);
        assert!(!pipe.desert(), "nothing is lost");
        assert_eq!(pipe.write(&[1], &cx), Written::Deserted);
        let pipe = Pipe::new(8);
        assert_eq!(pipe.write(&[1, 2], &cx), Written::Bytes(2));
        assert_eq!(pipe.bytes(), 2);
        assert!(pipe.desert(), "two bytes are lost");
    }
}
