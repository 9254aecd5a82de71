//! Bytes both ways until both directions have ended, without a buffer while nothing moves.
//!
//! Each worker thread has one buffer. A direction borrows it for as long as a poll lasts: what is read is written at
//! once, and only a rest that the other side does not take is copied out and kept until it does. An idle session
//! holds no bytes at all. Half-close is kept: one side's end is passed on, the other direction goes on.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::ReadBuf;
use tokio::time::{Instant, Sleep, sleep_until};

use super::Stream;

/// 16 KiB is one TLS record; larger did not pay on two cores.
const BUFFER_BYTES: usize = 16 * 1024;

/// Buffers moved one way before the other way has its turn; well inside tokio's own budget for a task.
const ROUNDS: usize = 8;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER_BYTES].into_boxed_slice());
}

/// Who ended a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EndedBy {
    Downstream,
    Upstream,
    /// This relay: a limit, a refusal, a stop.
    Relay,
}

impl EndedBy {
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Downstream => "downstream",
            Self::Upstream => "upstream",
            Self::Relay => "relay",
        }
    }
}

/// How long a pumped session may be silent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Silence {
    pub(super) idle: Duration,
    pub(super) half_close: Duration,
    /// However busy it is.
    pub(super) until: Option<Instant>,
}

/// What a pump leaves. The byte counts stand whatever ended it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pumped {
    pub(super) bytes_up: u64,
    pub(super) bytes_down: u64,
    pub(super) ended_by: EndedBy,
    pub(super) reason: &'static str,
    /// When the upstream first sent something.
    pub(super) first_byte: Option<Instant>,
}

/// Bytes that were read before the pump began and belong to the other side.
#[derive(Debug, Default)]
pub(super) struct Early {
    pub(super) up: Vec<u8>,
    pub(super) down: Vec<u8>,
}

/// Pumps until both directions have ended, one fails, silence lasts too long, or `ended` says why it is to end.
pub(super) async fn pump(
    downstream: &mut dyn Stream,
    upstream: &mut dyn Stream,
    early: Early,
    silence: Silence,
    mut ended: Pin<&mut impl Future<Output = &'static str>>,
) -> Pumped {
    let mut up = Direction::new(early.up);
    let mut down = Direction::new(early.down);
    let mut first_end = None;
    let mut active = Instant::now();
    let mut timer = Box::pin(sleep_until(active + silence.idle));
    let mut first_byte = None;
    let (ended_by, reason) = poll_fn(|cx| {
        let before = (up.bytes, down.bytes, up.ended, down.ended);
        let upward = up.poll(cx, downstream, upstream);
        let downward = down.poll(cx, upstream, downstream);
        for (result, reader, writer) in
            [(upward, EndedBy::Downstream, EndedBy::Upstream), (downward, EndedBy::Upstream, EndedBy::Downstream)]
        {
            match result {
                Poll::Ready(Err(Failed::Reading(error))) => return Poll::Ready((reader, failure(&error))),
                Poll::Ready(Err(Failed::Writing(error))) => return Poll::Ready((writer, failure(&error))),
                Poll::Ready(Ok(())) => {
                    first_end.get_or_insert(reader);
                }
                Poll::Pending => {}
            }
        }
        if up.ended && down.ended {
            return Poll::Ready((first_end.unwrap_or(EndedBy::Downstream), "closed"));
        }
        if before != (up.bytes, down.bytes, up.ended, down.ended) {
            active = Instant::now();
            if down.bytes > 0 {
                first_byte.get_or_insert(active);
            }
        }
        let (limit, name) =
            if up.ended || down.ended { (silence.half_close, "half_close_timeout") } else { (silence.idle, "idle_timeout") };
        let (until, name) = match silence.until {
            Some(until) if until <= active + limit => (until, "lifetime"),
            Some(_) | None => (active + limit, name),
        };
        if poll_silence(&mut timer, cx, until).is_ready() {
            return Poll::Ready((EndedBy::Relay, name));
        }
        if let Poll::Ready(reason) = ended.as_mut().poll(cx) {
            return Poll::Ready((EndedBy::Relay, reason));
        }
        Poll::Pending
    })
    .await;
    Pumped { bytes_up: up.bytes, bytes_down: down.bytes, ended_by, reason, first_byte }
}

/// Ready once `until` has passed. The timer is moved only when it fires or must fire earlier, not on every byte.
fn poll_silence(timer: &mut Pin<Box<Sleep>>, cx: &mut Context<'_>, until: Instant) -> Poll<()> {
    if timer.deadline() > until {
        timer.as_mut().reset(until);
    }
    while timer.as_mut().poll(cx).is_ready() {
        if Instant::now() >= until {
            return Poll::Ready(());
        }
        timer.as_mut().reset(until);
    }
    Poll::Pending
}

/// One direction of a session.
struct Direction {
    /// Read, and not yet taken by the writer.
    rest: Vec<u8>,
    written: usize,
    bytes: u64,
    closing: bool,
    ended: bool,
    /// Written to something that may still hold it, as TLS does.
    unflushed: bool,
}

enum Failed {
    Reading(io::Error),
    Writing(io::Error),
}

impl Direction {
    const fn new(rest: Vec<u8>) -> Self {
        Self { rest, written: 0, bytes: 0, closing: false, ended: false, unflushed: false }
    }

    /// Ready once the end has been passed on.
    fn poll(&mut self, cx: &mut Context<'_>, from: &mut dyn Stream, to: &mut dyn Stream) -> Poll<Result<(), Failed>> {
        if self.ended {
            return Poll::Ready(Ok(()));
        }
        BUFFER.with_borrow_mut(|buffer| {
            // A direction that never runs dry must leave time for the other one, and for the timer and the stop.
            for _ in 0..ROUNDS {
                while self.written < self.rest.len() {
                    let Some(rest) = self.rest.get(self.written..) else { break };
                    let length = ready(Pin::new(&mut *to).poll_write(cx, rest), Failed::Writing)?;
                    let Poll::Ready(length) = length else { return Poll::Pending };
                    if length == 0 {
                        return Poll::Ready(Err(Failed::Writing(io::ErrorKind::WriteZero.into())));
                    }
                    self.written += length;
                    self.bytes += length as u64;
                    self.unflushed = true;
                }
                self.rest = Vec::new();
                self.written = 0;
                if self.closing {
                    let Poll::Ready(()) = ready(Pin::new(&mut *to).poll_shutdown(cx), Failed::Writing)? else { return Poll::Pending };
                    self.ended = true;
                    return Poll::Ready(Ok(()));
                }
                let mut read = ReadBuf::new(buffer);
                let Poll::Ready(()) = ready(Pin::new(&mut *from).poll_read(cx, &mut read), Failed::Reading)? else {
                    // Nothing more to send with it: what was written must not wait.
                    if self.unflushed && ready(Pin::new(&mut *to).poll_flush(cx), Failed::Writing)?.is_ready() {
                        self.unflushed = false;
                    }
                    return Poll::Pending;
                };
                let filled = read.filled();
                if filled.is_empty() {
                    self.closing = true;
                    continue;
                }
                let length = match ready(Pin::new(&mut *to).poll_write(cx, filled), Failed::Writing)? {
                    Poll::Ready(length) => length,
                    Poll::Pending => 0,
                };
                self.bytes += length as u64;
                self.unflushed |= length > 0;
                if let Some(rest) = filled.get(length..).filter(|rest| !rest.is_empty()) {
                    self.rest = rest.to_vec();
                }
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
    }
}

/// Splits a polled result so that `?` takes the error and the caller decides about pending.
fn ready<T>(polled: Poll<io::Result<T>>, side: fn(io::Error) -> Failed) -> Result<Poll<T>, Failed> {
    match polled {
        Poll::Ready(Ok(value)) => Ok(Poll::Ready(value)),
        Poll::Ready(Err(error)) => Err(side(error)),
        Poll::Pending => Ok(Poll::Pending),
    }
}

fn failure(error: &io::Error) -> &'static str {
    let kind = error.kind();
    if matches!(kind, io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted) {
        "reset"
    } else if kind == io::ErrorKind::TimedOut {
        "user_timeout"
    } else {
        "io_error"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::sync::oneshot;

    impl Stream for DuplexStream {}

    const LONG: Silence = Silence { idle: Duration::from_secs(600), half_close: Duration::from_secs(600), until: None };

    /// Sensor's end, server's end, and the pump between them.
    fn session(
        pipe: usize,
        early: Early,
        silence: Silence,
    ) -> (DuplexStream, DuplexStream, tokio::task::JoinHandle<Pumped>, oneshot::Sender<&'static str>) {
        let (sensor, mut downstream) = duplex(pipe);
        let (mut upstream, server) = duplex(pipe);
        let (stop, stopped) = oneshot::channel();
        let ended = async { stopped.await.expect("the sender is kept") };
        let pumping = tokio::spawn(async move { pump(&mut downstream, &mut upstream, early, silence, std::pin::pin!(ended)).await });
        (sensor, server, pumping, stop)
    }

    #[tokio::test]
    async fn carries_more_than_any_buffer_both_ways_and_counts_it() {
        let early = Early { up: b"hello".to_vec(), down: b"early".to_vec() };
        let (mut sensor, mut server, pumping, _stop) = session(1000, early, LONG);
        let sent: Vec<u8> = (0..200_000u32).map(|n| n as u8).collect();
        let (mut sensor_read, mut sensor_write) = tokio::io::split(&mut sensor);
        let (mut server_read, mut server_write) = tokio::io::split(&mut server);
        let (mut at_server, mut at_sensor) = (Vec::new(), Vec::new());
        let moved = tokio::join!(
            async {
                sensor_write.write_all(&sent).await.expect("written");
                sensor_write.shutdown().await.expect("shut down");
            },
            async {
                server_write.write_all(&sent).await.expect("written");
                server_write.shutdown().await.expect("shut down");
            },
            server_read.read_to_end(&mut at_server),
            sensor_read.read_to_end(&mut at_sensor),
        );
        assert!(moved.2.is_ok() && moved.3.is_ok());
        assert!(at_server.starts_with(b"hello") && at_server[5..] == sent[..]);
        assert!(at_sensor.starts_with(b"early") && at_sensor[5..] == sent[..]);
        let pumped = pumping.await.expect("ended");
        assert_eq!((pumped.bytes_up, pumped.bytes_down, pumped.reason), (200_005, 200_005, "closed"));
    }

    #[tokio::test]
    async fn keeps_the_other_direction_open_after_a_half_close() {
        let (mut sensor, mut server, pumping, _stop) = session(64, Early::default(), LONG);
        sensor.shutdown().await.expect("shut down");
        assert_eq!(server.read(&mut [0; 8]).await.expect("read"), 0, "the end was passed on");
        server.write_all(b"late answer").await.expect("written");
        let mut answer = [0; 11];
        sensor.read_exact(&mut answer).await.expect("read");
        assert_eq!(&answer, b"late answer");
        drop(server);
        assert_eq!(pumping.await.expect("ended").ended_by, EndedBy::Downstream);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_a_session_and_is_named() {
        let silence = Silence { idle: Duration::from_secs(60), half_close: Duration::from_secs(5), until: None };
        let (mut sensor, _server, pumping, _stop) = session(64, Early::default(), silence);
        sensor.write_all(b"x").await.expect("written");
        assert_eq!(pumping.await.expect("ended").reason, "idle_timeout");
    }

    #[tokio::test]
    async fn a_stop_ends_a_session_with_its_counts() {
        let (mut sensor, mut server, pumping, stop) = session(64, Early::default(), LONG);
        sensor.write_all(b"12345").await.expect("written");
        server.read_exact(&mut [0; 5]).await.expect("read");
        stop.send("drained").expect("sent");
        let pumped = pumping.await.expect("ended");
        assert_eq!((pumped.bytes_up, pumped.ended_by, pumped.reason), (5, EndedBy::Relay, "drained"));
    }
}
