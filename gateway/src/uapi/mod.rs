//! The WireGuard userspace interface of one tunnel: the socket that `wg` looks for, so that `wg show`, `wg set`, `wg setconf`
//! and the like work on it as on any WireGuard interface.
//!
//! ```text
//!  wg ─► /var/run/wireguard/NAME.sock ─► parse ─► get ─► format ◄── settings, snapshot
//!                                          └────► set ─► edit ─► Supervisor::set_tunnel ─► Plan ─► prepare ─► apply
//! ```
//! A `set` goes the way of a reload and is therefore bound by the same: what takes a restart is refused, as is what cannot
//! be prepared, and then nothing is changed. It lives until the next reload, for the YAML is the only source: a
//! reload undoes it and says so.
//!
//! The socket's mode (0600) is its access control. Whoever asks may go away at any time: a change is carried out whole all the
//! same. Connections, their requests and their patience are bounded; a request that is not understood changes nothing.
//!
//! Left out: secrets in answers (`format` says why), and the device itself: `wg` cannot make or remove a tunnel.
//!
//! Source: <https://www.wireguard.com/xplatform/>.

mod edit;
mod format;
mod parse;

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{debug, warn};
use zeroize::Zeroizing;

use crate::socket::{SocketError, SocketFile, bind_private};
use crate::supervisor::{SetError, Shared};
use edit::Refusal;
use parse::{Malformed, Request, RequestReader, SetRequest};

/// Where `wg` looks for sockets (its RUNSTATEDIR on Debian).
const FOLDER: &str = "/var/run/wireguard";
/// At once, for one tunnel. Whoever comes then waits in the backlog.
const MAX_CONNECTIONS: usize = 16;
/// How long a connection may stand without a request.
const IDLE: Duration = Duration::from_secs(60);
/// How long a request may take from its first byte to its last, and how long an answer may take to be read.
const PATIENCE: Duration = Duration::from_secs(10);
/// Read at once, in bytes.
const READ_BYTES: usize = 16 * 1024;
/// Before the next attempt if no connection can be taken, for want of descriptors.
const PAUSE: Duration = Duration::from_millis(200);

/// The socket of one tunnel, bound and not yet served.
pub struct Uapi {
    tunnel: String,
    socket: UnixListener,
    file: SocketFile,
}

#[derive(Debug, thiserror::Error)]
pub enum UapiError {
    #[error("{} is answered at already: another WireGuard program runs a tunnel of that name", path.display())]
    Running { path: PathBuf },
    #[error("the socket {} for `wg` cannot be made: {source}; without `uapi: true` the tunnel does without it", path.display())]
    Socket { path: PathBuf, source: io::Error },
}

/// Serves until it is dropped, which removes the socket file.
pub struct Served {
    task: JoinHandle<()>,
    _file: SocketFile,
}

/// Why a request was not carried out: for the answer, and for the log.
#[derive(Debug)]
struct Refused {
    /// Positive.
    errno: i32,
    reason: String,
}

impl Uapi {
    /// Binds the socket of the tunnel `name`, which is a good file name. A socket that nobody answers at is left over
    /// from a crash and taken over.
    ///
    /// Errors: `Running` if somebody answers there; `Socket` if the folder or the socket cannot be made, as without root's
    /// rights.
    pub async fn bind(name: &str) -> Result<Self, UapiError> {
        let path = Path::new(FOLDER).join(format!("{name}.sock"));
        let (socket, file) = bind_private(&path, 0o755).await.map_err(|error| match error {
            SocketError::Answered => UapiError::Running { path },
            SocketError::Io(source) => UapiError::Socket { path, source },
        })?;
        Ok(Self { tunnel: name.to_owned(), socket, file })
    }

    pub fn serve(self, supervisor: Shared) -> Served {
        let Self { tunnel, socket, file } = self;
        let task = tokio::spawn(accept(socket, tunnel.into(), supervisor));
        Served { task, _file: file }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // Connections end with it; a change that is being carried out does not.
        self.task.abort();
    }
}

async fn accept(socket: UnixListener, tunnel: Arc<str>, supervisor: Shared) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        while connections.len() >= MAX_CONNECTIONS {
            let _ended = connections.join_next().await;
        }
        match socket.accept().await {
            Ok((stream, _)) => {
                let (tunnel, supervisor) = (Arc::clone(&tunnel), Arc::clone(&supervisor));
                connections.spawn(async move { converse(stream, &tunnel, &supervisor).await });
            }
            Err(error) => {
                warn!(%tunnel, %error, "no connection of wg can be taken");
                sleep(PAUSE).await;
            }
        }
    }
}

/// Answers the requests of one connection, one after the other.
async fn converse(stream: UnixStream, tunnel: &Arc<str>, supervisor: &Shared) {
    let mut connection = Connection::new(stream);
    while let Some(request) = connection.request().await {
        let fatal = matches!(&request, Err(malformed) if malformed.is_fatal());
        let outcome = match request {
            Ok(Request::Get) => get(tunnel, supervisor).await,
            Ok(Request::Set(set)) => carry_out(tunnel, set, supervisor).await.map(|()| format::outcome(0)),
            Err(malformed) => Err(malformed.into()),
        };
        let answer = outcome.unwrap_or_else(|Refused { errno, reason }| {
            warn!(%tunnel, reason, "what wg asked for was refused; nothing was changed");
            format::outcome(errno)
        });
        if !connection.answer(&answer).await || fatal {
            return;
        }
    }
}

async fn get(tunnel: &str, supervisor: &Shared) -> Result<String, Refused> {
    let (settings, snapshot) = {
        let supervisor = supervisor.lock().await;
        (supervisor.settings().tunnel(tunnel).cloned(), supervisor.tunnel_snapshot(tunnel))
    };
    let (Some(settings), Some(snapshot)) = (settings, snapshot) else { return Err(gone()) };
    Ok(format::answer(&settings, &snapshot))
}

/// In a task of its own: whoever asked may hang up, and a change is carried out whole or not at all.
async fn carry_out(tunnel: &Arc<str>, set: SetRequest, supervisor: &Shared) -> Result<(), Refused> {
    let (tunnel, supervisor) = (Arc::clone(tunnel), Arc::clone(supervisor));
    let task = tokio::spawn(async move { change(&tunnel, &set, &supervisor).await });
    let broken = |_| Err(Refused { errno: libc::EIO, reason: "the change broke off; the log says why".to_owned() });
    task.await.unwrap_or_else(broken)
}

async fn change(tunnel: &str, set: &SetRequest, supervisor: &Shared) -> Result<(), Refused> {
    let mut supervisor = supervisor.lock().await;
    let running = supervisor.settings().tunnel(tunnel).ok_or_else(gone)?;
    let desired = edit::apply(running, set)?;
    if desired == *running {
        return Ok(());
    }
    supervisor.set_tunnel(desired).await?;
    Ok(())
}

/// The gateway is about to end.
fn gone() -> Refused {
    Refused { errno: libc::ENODEV, reason: "the tunnel is gone".to_owned() }
}

impl From<Malformed> for Refused {
    fn from(malformed: Malformed) -> Self {
        Self { errno: malformed.errno(), reason: malformed.to_string() }
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self { errno: refusal.errno(), reason: refusal.to_string() }
    }
}

impl From<SetError> for Refused {
    fn from(error: SetError) -> Self {
        let errno = match &error {
            SetError::NeedsRestart(_) => libc::EOPNOTSUPP,
            SetError::Prepare(_) => libc::EIO,
        };
        Self { errno, reason: error.to_string() }
    }
}

/// One connection, and what of it has been read and not yet been looked at.
struct Connection {
    stream: UnixStream,
    reader: RequestReader,
    /// Wiped in the end: private keys pass through here.
    buffer: Zeroizing<Vec<u8>>,
    unread: Range<usize>,
}

impl Connection {
    fn new(stream: UnixStream) -> Self {
        Self { stream, reader: RequestReader::new(), buffer: Zeroizing::new(vec![0; READ_BYTES]), unread: 0..0 }
    }

    /// The next request. None if there will be none: the other side has hung up, in the midst of one or not, or took too long.
    async fn request(&mut self) -> Option<Result<Request, Malformed>> {
        let mut deadline = Instant::now() + IDLE;
        let mut begun = false;
        loop {
            if let Some(unread) = self.buffer.get(self.unread.clone()).filter(|unread| !unread.is_empty()) {
                if !begun {
                    begun = true;
                    deadline = Instant::now() + PATIENCE;
                }
                let (taken, outcome) = self.reader.handle_bytes(unread);
                self.unread.start += taken;
                if outcome.is_some() {
                    return outcome;
                }
            }
            match timeout_at(deadline, self.stream.read(&mut self.buffer)).await {
                Ok(Ok(length)) if length > 0 => self.unread = 0..length,
                Ok(Ok(_)) => return None,
                Ok(Err(error)) => {
                    debug!(%error, "a connection of wg broke");
                    return None;
                }
                Err(_) => {
                    debug!(begun, "a connection of wg took too long");
                    return None;
                }
            }
        }
    }

    /// False if it cannot be told any more.
    async fn answer(&mut self, text: &str) -> bool {
        matches!(timeout(PATIENCE, self.stream.write_all(text.as_bytes())).await, Ok(Ok(())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn requests_follow_one_another_on_one_connection() {
        let (mut wg, stream) = UnixStream::pair().expect("a pair");
        let mut connection = Connection::new(stream);
        wg.write_all(b"get=1\n\nset=1\nreplace_peers=true\n\nset=1\nnonsense\n\nget=1\n\nset=1\nlisten_port=51820\n")
            .await
            .expect("written");
        drop(wg);
        assert_eq!(connection.request().await, Some(Ok(Request::Get)));
        let set = SetRequest { replace_peers: true, ..SetRequest::default() };
        assert_eq!(connection.request().await, Some(Ok(Request::Set(set))));
        assert!(matches!(connection.request().await, Some(Err(_))));
        assert_eq!(connection.request().await, Some(Ok(Request::Get)));
        assert_eq!(connection.request().await, None, "the last has no end, and so is none");
    }

    #[tokio::test(start_paused = true)]
    async fn patience_ends_sooner_once_a_request_has_begun() {
        let (mut wg, stream) = UnixStream::pair().expect("a pair");
        let mut connection = Connection::new(stream);
        let started = Instant::now();
        assert_eq!(connection.request().await, None);
        assert_eq!(started.elapsed().as_secs(), IDLE.as_secs());

        wg.write_all(b"set=1\n").await.expect("written");
        let started = Instant::now();
        assert_eq!(connection.request().await, None);
        assert_eq!(started.elapsed().as_secs(), PATIENCE.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_nobody_reads_is_given_up() {
        let (_wg, stream) = UnixStream::pair().expect("a pair");
        let mut connection = Connection::new(stream);
        assert!(!connection.answer(&"x".repeat(16 * 1024 * 1024)).await);
    }
}
