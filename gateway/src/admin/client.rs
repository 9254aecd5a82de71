//! The command line's side of the admin socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

/// A reload may wait for netlink and nft; nothing takes longer than this.
const TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("no skyway answers at {}: is it running? (skyway run -c FILE)", path.display())]
    NotRunning { path: PathBuf },
    #[error("{} may not be opened by this user: it is its owner's alone; try sudo", path.display())]
    NotPermitted { path: PathBuf },
    #[error("{} cannot be asked: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("the answer from {} is broken: {detail}", path.display())]
    Broken { path: PathBuf, detail: String },
}

/// Asks the gateway behind `socket`; the status and the body of its answer.
pub async fn ask(socket: &Path, method: Method, resource: &str) -> Result<(StatusCode, Vec<u8>), ClientError> {
    let path = || socket.to_owned();
    let broken = |detail: String| ClientError::Broken { path: path(), detail };
    let stream = UnixStream::connect(socket).await.map_err(|source| {
        if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) {
            ClientError::NotRunning { path: path() }
        } else if source.kind() == io::ErrorKind::PermissionDenied {
            ClientError::NotPermitted { path: path() }
        } else {
            ClientError::Io { path: path(), source }
        }
    })?;
    let exchange = async {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(error.to_string()))?;
        tokio::spawn(connection);
        let request = Request::builder().method(method).uri(resource).header("host", "skyway").body(Empty::<Bytes>::new());
        let request = request.map_err(|error| broken(error.to_string()))?;
        let answer = sender.send_request(request).await.map_err(|error| broken(error.to_string()))?;
        let status = answer.status();
        let body = answer.into_body().collect().await.map_err(|error| broken(error.to_string()))?;
        Ok((status, body.to_bytes().to_vec()))
    };
    tokio::time::timeout(TIMEOUT, exchange).await.unwrap_or_else(|_| Err(broken("no answer in time".into())))
}
