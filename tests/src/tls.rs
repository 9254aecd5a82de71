//! Certificates of an authority of our own, a server that answers what it is told, and the client that tells it.
//!
//! The server stands in for Defender's endpoints. It takes in a whole question, until the client ends its direction,
//! and only then answers: so an answer proves that everything arrived, and that half-close was kept on the way.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};

use crate::seconds;

/// A certification authority, trusted by nobody but the tests.
pub struct Authority {
    pub pem: String,
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// A server's certificate and its key.
pub struct Identity {
    pub certificate_pem: String,
    pub key_pem: String,
    certificate: CertificateDer<'static>,
    key: Vec<u8>,
}

/// A client's end of a TLS session.
pub type Session = StreamOwned<ClientConnection, TcpStream>;

impl Authority {
    pub fn create() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "skyway's tests");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        Self { pem: certificate.pem(), certificate: certificate.der().clone(), issuer: Issuer::new(params, key) }
    }

    pub fn issue(&self, names: &[&str]) -> Identity {
        let alternatives: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(alternatives).expect("host names");
        params.distinguished_name.push(DnType::CommonName, "a server of skyway's tests");
        params.use_authority_key_identifier_extension = true;
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        Identity {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            certificate: certificate.der().clone(),
            key: key.serialize_der(),
        }
    }

    /// A session with `name`, which must show a certificate of this authority, on a stream that leads there. The
    /// handshake is done when the first byte is sent.
    pub fn session(&self, stream: TcpStream, name: &str) -> Session {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).expect("our own certificate");
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring has them")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from(name.to_owned()).expect("a host name");
        let connection = ClientConnection::new(Arc::new(config), name).expect("a client");
        StreamOwned::new(connection, stream)
    }
}

/// Asks `question`, ends our direction, and returns what comes until the server ends its own.
pub fn ask(session: &mut Session, question: &[u8]) -> io::Result<Vec<u8>> {
    session.write_all(question)?;
    session.conn.send_close_notify();
    session.flush()?;
    session.sock.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    session.read_to_end(&mut answer)?;
    Ok(answer)
}

/// What [`TlsServer`] answers to `question` under `name`.
pub fn answer(name: &str, question: &[u8]) -> Vec<u8> {
    [format!("{name} took {} bytes: ", question.len()).as_bytes(), question].concat()
}

/// A server that sends each question back, with the name that it was asked by.
#[derive(Debug)]
pub struct TlsServer {
    pub address: SocketAddr,
    /// Who connected, oldest first.
    downstreams: Arc<Mutex<Vec<SocketAddr>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl TlsServer {
    #[track_caller]
    pub fn start(address: SocketAddr, identity: &Identity) -> Self {
        let listener = TcpListener::bind(address).unwrap_or_else(|error| panic!("{address}: {error}"));
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(identity.key.clone()));
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring has them")
            .with_no_client_auth()
            .with_single_cert(vec![identity.certificate.clone()], key)
            .expect("the key fits the certificate");
        let (config, downstreams, stop) = (Arc::new(config), Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let thread = thread::spawn({
            let (downstreams, stop) = (Arc::clone(&downstreams), Arc::clone(&stop));
            move || {
                while let Ok((stream, from)) = listener.accept() {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    downstreams.lock().expect("no thread panics with it").push(from);
                    let config = Arc::clone(&config);
                    // A session that breaks is the client's to notice.
                    thread::spawn(move || serve(stream, config));
                }
            }
        });
        Self { address, downstreams, stop, thread: Some(thread) }
    }

    pub fn downstreams(&self) -> Vec<SocketAddr> {
        self.downstreams.lock().expect("no thread panics with it").clone()
    }
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes it from `accept`.
        let _connected = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

fn serve(stream: TcpStream, config: Arc<ServerConfig>) -> io::Result<()> {
    stream.set_read_timeout(Some(seconds(60)))?;
    let connection = ServerConnection::new(config).map_err(io::Error::other)?;
    let mut session = StreamOwned::new(connection, stream);
    let mut question = Vec::new();
    let mut buffer = vec![0u8; 16 * 1024];
    loop {
        let length = session.read(&mut buffer)?;
        question.extend_from_slice(&buffer[..length]);
        // HTTP does not end its direction to say that it is done.
        if length == 0 || (question.starts_with(b"GET ") && question.ends_with(b"\r\n\r\n")) {
            break;
        }
    }
    let name = session.conn.server_name().unwrap_or("nobody").to_owned();
    if question.starts_with(b"GET ") {
        let body = format!("{name}\n");
        write!(session, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())?;
    } else {
        session.write_all(&answer(&name, &question))?;
    }
    session.conn.send_close_notify();
    session.flush()
}
