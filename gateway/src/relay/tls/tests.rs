//! Handshakes over pipes in memory, with authorities made for the occasion, and files with mistakes in them.

use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, date_time_ymd};
use rustls::ServerConfig;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_rustls::TlsAcceptor;

use super::super::Stream;
use super::super::host::HostName;
use super::*;

const HOST: &str = "hub.example";
const ALERT: u8 = 21;

/// Who issues certificates; with those above it, if any.
struct Authority {
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, as PEM.
struct Issued {
    certificate_pem: String,
    key_pem: String,
}

impl Authority {
    fn new(name: &str) -> Self {
        let (params, key) = Self::params(name);
        let certificate_pem = params.self_signed(&key).expect("a certificate").pem();
        Self { certificate_pem, issuer: Issuer::new(params, key) }
    }

    fn under(&self, name: &str) -> Self {
        let (params, key) = Self::params(name);
        let certificate_pem = params.signed_by(&key, &self.issuer).expect("a certificate").pem();
        Self { certificate_pem, issuer: Issuer::new(params, key) }
    }

    fn params(name: &str) -> (CertificateParams, KeyPair) {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        params.distinguished_name.push(DnType::OrganizationName, "Plant Ltd");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        (params, KeyPair::generate().expect("a key"))
    }

    fn issue(&self, names: &[&str]) -> Issued {
        self.issue_with(names, |_| {})
    }

    fn issue_with(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Issued {
        let (params, key) = leaf(names, change);
        let certificate_pem = params.signed_by(&key, &self.issuer).expect("a certificate").pem();
        Issued { certificate_pem, key_pem: key.serialize_pem() }
    }
}

impl Issued {
    fn self_signed(names: &[&str]) -> Self {
        let (params, key) = leaf(names, |_| {});
        Self { certificate_pem: params.self_signed(&key).expect("a certificate").pem(), key_pem: key.serialize_pem() }
    }

    fn secret(&self) -> Secret {
        Secret::new(self.key_pem.clone())
    }
}

fn leaf(names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> (CertificateParams, KeyPair) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("names");
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "Line 3");
    change(&mut params);
    (params, KeyPair::generate().expect("a key"))
}

/// A folder for files that TLS is configured with.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).expect("written");
        path
    }

    /// A listener with `issued`, which takes clients' certificates from `client_ca` if it is given.
    fn server(&self, issued: &Issued, client_ca: Option<&Authority>, client: ClientCertificates) -> ServerTls {
        let certificate = self.write("server.pem", &issued.certificate_pem);
        let client_ca = client_ca.map(|authority| self.write("clients.pem", &authority.certificate_pem));
        ServerTls::load(&certificate, &issued.secret(), client_ca.as_deref(), client).expect("good files")
    }

    fn client(&self, ca: &Authority, own: Option<&Issued>) -> ClientTls {
        let ca = self.write("ca.pem", &ca.certificate_pem);
        let own = own.map(|issued| (self.write("client.pem", &issued.certificate_pem), issued.secret()));
        ClientTls::load(Some(&ca), own.as_ref().map(|(path, key)| (path.as_path(), key))).expect("good files")
    }
}

type Accepted = Result<(Box<dyn Stream>, Option<PeerName>), TlsAcceptError>;
type Connected = Result<Box<dyn Stream>, TlsConnectError>;

/// Both sides' view of one handshake; `pipe`: bytes that may be on their way.
async fn meet(server: &ServerTls, client: &ClientTls, pipe: usize) -> (Accepted, Connected) {
    let (near, far) = duplex(pipe);
    tokio::join!(server.accept(Box::new(far), soon()), client.connect(Box::new(near), HOST, soon()))
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// Answers as a server of certificates that [`ServerTls`] would not take.
async fn answer(issued: &Issued, stream: DuplexStream) {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(issued.certificate_pem.as_bytes()).collect();
    let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).expect("a key");
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring has them")
        .with_no_client_auth()
        .with_single_cert(chain.expect("certificates"), key)
        .expect("they fit");
    if let Ok(mut tls) = TlsAcceptor::from(Arc::new(config)).accept(stream).await {
        let mut received = Vec::new();
        let _ended = tls.read_to_end(&mut received).await;
        assert!(received.is_empty(), "a probe sends nothing");
    }
}

#[tokio::test]
async fn carries_bytes_both_ways_and_keeps_half_close() {
    let (files, authority) = (Files::new(), Authority::new("Plant CA"));
    let server = files.server(&authority.issue(&[HOST]), None, ClientCertificates::Optional);
    let (accepted, connected) = meet(&server, &files.client(&authority, None), 4096).await;
    let (mut far, name) = accepted.expect("accepted");
    let mut near = connected.expect("connected");
    assert_eq!(name, None, "nobody was asked");
    assert!(near.as_fd().is_none() && far.as_fd().is_none(), "no bytes may go by TLS's side");
    let sent: Vec<u8> = (0..200_000u32).map(|n| n as u8).collect();
    let mut at_far = Vec::new();
    let (back, ()) = tokio::join!(
        async {
            near.write_all(&sent).await.expect("written");
            near.shutdown().await.expect("shut down");
            let mut back = Vec::new();
            near.read_to_end(&mut back).await.expect("read");
            back
        },
        async {
            far.read_to_end(&mut at_far).await.expect("read");
            far.write_all(b"late answer").await.expect("written");
            far.shutdown().await.expect("shut down");
        }
    );
    assert_eq!(back, b"late answer");
    assert_eq!(at_far, sent);
}

#[tokio::test]
async fn what_was_written_goes_out_while_its_writer_only_reads() {
    let (files, authority) = (Files::new(), Authority::new("Plant CA"));
    let server = files.server(&authority.issue(&[HOST]), None, ClientCertificates::Optional);
    let (accepted, connected) = meet(&server, &files.client(&authority, None), 64).await;
    let (mut far, _) = accepted.expect("accepted");
    let mut near = connected.expect("connected");
    assert_eq!(near.write(&[7; 1000]).await.expect("written"), 1000, "more than the pipe takes");
    let exchange = async {
        let mut answer = [0; 4];
        let (read, ()) = tokio::join!(near.read_exact(&mut answer), async {
            let mut question = [0; 1000];
            far.read_exact(&mut question).await.expect("all of it");
            far.write_all(b"done").await.expect("written");
            far.flush().await.expect("flushed");
        });
        read.expect("an answer");
        answer
    };
    assert_eq!(&tokio::time::timeout_at(soon().into(), exchange).await.expect("nobody waits for ever"), b"done");
}

#[tokio::test]
async fn an_end_without_a_farewell_is_an_end() {
    let (files, authority) = (Files::new(), Authority::new("Plant CA"));
    let server = files.server(&authority.issue(&[HOST]), None, ClientCertificates::Optional);
    let (accepted, connected) = meet(&server, &files.client(&authority, None), 4096).await;
    let (mut far, _) = accepted.expect("accepted");
    drop(connected.expect("connected"));
    assert_eq!(far.read(&mut [0; 8]).await.expect("no error"), 0);
}

#[tokio::test]
async fn a_client_is_known_by_its_certificate() {
    let (files, authority, clients) = (Files::new(), Authority::new("Plant CA"), Authority::new("Sensors' CA"));
    let server = files.server(&authority.issue(&[HOST]), Some(&clients), ClientCertificates::Required);
    for (names, known) in [(&["Line-3.Plant.Example", "b.example"][..], "line-3.plant.example"), (&[][..], "LINE 3")] {
        let client = files.client(&authority, Some(&clients.issue(names)));
        let (accepted, connected) = meet(&server, &client, 4096).await;
        let (_, name) = accepted.expect("accepted");
        let name = name.expect("a certificate was shown");
        assert!(name.is(known) && !name.is("plant.example"), "{name:?}");
        assert!(connected.is_ok());
    }
}

#[tokio::test]
async fn a_client_certificate_may_be_optional_but_never_bad() {
    let (files, authority, clients) = (Files::new(), Authority::new("Plant CA"), Authority::new("Sensors' CA"));
    let (required, optional) = (ClientCertificates::Required, ClientCertificates::Optional);
    let stranger = Authority::new("Other CA").issue(&["line-3"]);
    for (client, own, reason) in [
        (required, None, "client_certificate_missing"),
        (required, Some(&stranger), "client_certificate_refused"),
        (optional, Some(&stranger), "client_certificate_refused"),
        (optional, None, ""),
    ] {
        let server = files.server(&authority.issue(&[HOST]), Some(&clients), client);
        let (accepted, connected) = meet(&server, &files.client(&authority, own), 4096).await;
        match accepted {
            Ok((_, name)) => assert_eq!((name, reason), (None, "")),
            Err(error) => {
                assert_eq!(error.reason(), reason, "{error}");
                // TLS 1.3: the client has its session, and hears of it when it reads.
                let error = connected.expect("connected").read(&mut [0; 8]).await.expect_err("refused");
                assert!(error.to_string().contains("alert"), "{error}");
            }
        }
    }
}

#[tokio::test]
async fn who_does_not_speak_tls_is_told_apart() {
    let (files, authority) = (Files::new(), Authority::new("Plant CA"));
    let server = files.server(&authority.issue(&[HOST]), None, ClientCertificates::Optional);
    for (sent, reason) in [
        (&b""[..], "no_data"),
        (&b"CONNECT hub.example:443 HTTP/1.1\r\n\r\n"[..], "not_tls"),
        (&[22, 3, 1, 2, 0, 1][..], "closed_in_tls"),
        (&[ALERT, 3, 3, 0, 2, 2, 48][..], "tls_alert"),
    ] {
        let (mut near, far) = duplex(4096);
        near.write_all(sent).await.expect("written");
        near.shutdown().await.expect("shut down");
        let error = server.accept(Box::new(far), soon()).await.err().expect("no session");
        assert_eq!(error.reason(), reason, "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn silence_is_not_waited_for() {
    let (files, authority) = (Files::new(), Authority::new("Plant CA"));
    let server = files.server(&authority.issue(&[HOST]), None, ClientCertificates::Optional);
    let (_near, far) = duplex(4096);
    assert_eq!(server.accept(Box::new(far), soon()).await.err(), Some(TlsAcceptError::TimedOut));
    let (near, _far) = duplex(4096);
    let connected = files.client(&authority, None).connect(Box::new(near), HOST, soon()).await;
    assert_eq!(connected.err(), Some(TlsConnectError::TimedOut));
}

#[tokio::test]
async fn a_parents_bad_certificate_is_told_apart() {
    let (files, authority) = (Files::new(), Authority::new("Plant CA"));
    let client = files.client(&authority, None);
    for (issued, reason, words) in [
        (authority.issue(&["other.example", "b.example"]), "name_mismatch", "is for other.example, b.example, not for hub.example"),
        (authority.issue(&[]), "name_mismatch", "is for no host name"),
        (authority.issue(&["a.x", "b.x", "c.x", "d.x", "e.x"]), "name_mismatch", "a.x, b.x, c.x, d.x and 1 more"),
        (
            authority.issue_with(&[HOST], |params| params.not_after = date_time_ymd(2020, 2, 29)),
            "certificate_expired",
            "expired on 2020-02-29 00:00 UTC",
        ),
        (
            authority.issue_with(&[HOST], |params| params.not_before = date_time_ymd(2090, 1, 1)),
            "certificate_not_yet_valid",
            "is not valid before 2090-01-01 00:00 UTC",
        ),
        (Authority::new("Inspection CA").issue(&[HOST]), "unknown_issuer", "issued by Inspection CA (Plant Ltd), comes from an authority"),
        (Issued::self_signed(&[HOST]), "self_signed", "is signed by itself"),
    ] {
        let (near, far) = duplex(4096);
        let connecting = async { client.connect(Box::new(near), HOST, soon()).await.map(drop) };
        let ((), connected) = tokio::join!(answer(&issued, far), connecting);
        let error = connected.expect_err("refused");
        assert_eq!(error.reason(), reason, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[tokio::test]
async fn a_parent_that_does_not_speak_tls_is_told_apart() {
    let (files, authority) = (Files::new(), Authority::new("Plant CA"));
    let client = files.client(&authority, None);
    for (answer, reason) in [
        (&b""[..], "closed_in_tls"),
        (&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], "not_tls"),
        (&[ALERT, 3, 3, 0, 2, 2, 70][..], "tls_version"),
        (&[ALERT, 3, 3, 0, 2, 2, 40][..], "tls_alert"),
    ] {
        let (near, mut far) = duplex(4096);
        far.write_all(answer).await.expect("written");
        far.shutdown().await.expect("shut down");
        let error = client.connect(Box::new(near), HOST, soon()).await.err().expect("no session");
        assert_eq!(error.reason(), reason, "{error}");
    }
    let (near, _far) = duplex(4096);
    let error = client.connect(Box::new(near), "a b", soon()).await.err().expect("no name");
    assert_eq!(error.reason(), "bad_name");
}

#[tokio::test]
async fn a_parent_may_be_named_by_its_address() {
    let (files, authority) = (Files::new(), Authority::new("Plant CA"));
    let issued = authority.issue(&["10.99.0.2"]);
    let (near, far) = duplex(4096);
    let client = files.client(&authority, None);
    let connecting = async { client.connect(Box::new(near), "10.99.0.2", soon()).await.map(drop) };
    let ((), connected) = tokio::join!(answer(&issued, far), connecting);
    assert_eq!(connected, Ok(()));
}

#[tokio::test]
async fn a_probe_tells_good_chains_from_intercepted_ones() {
    let (files, root) = (Files::new(), Authority::new("Defender Root"));
    let issuing = root.under("Defender Issuing CA 03");
    let roots = Roots::load(Some(&files.write("roots.pem", &root.certificate_pem))).expect("good roots");
    let host = HostName::parse(HOST).expect("a name");
    let mut good = issuing.issue_with(&[HOST], |params| params.not_after = date_time_ymd(2051, 1, 1));
    good.certificate_pem.push_str(&issuing.certificate_pem);
    let unchained = issuing.issue(&[HOST]);
    let proxied = Authority::new("Inspection CA").issue(&[HOST]);
    let elsewhere = root.issue(&["portal.example"]);
    let check = async |issued: &Issued| {
        let (near, far) = duplex(4096);
        let ((), checked) = tokio::join!(answer(issued, far), check_chain(Box::new(near), &host, &roots, soon()));
        checked
    };
    let ChainCheck::Good { issuer, not_after, version } = check(&good).await else { panic!("a good chain") };
    assert_eq!((issuer.as_str(), version), ("Defender Issuing CA 03 (Plant Ltd)", "TLS 1.3"));
    assert_eq!(date(not_after), "2051-01-01 00:00 UTC");
    for (issued, issuer, words) in [
        (&proxied, "Inspection CA (Plant Ltd)", "the certificate comes from an authority that is not trusted"),
        (&unchained, "Defender Issuing CA 03 (Plant Ltd)", "the certificate comes from an authority that is not trusted"),
        (&elsewhere, "Defender Root (Plant Ltd)", "the certificate is for portal.example, not for hub.example"),
    ] {
        let expected = ChainCheck::Intercepted { issuer: issuer.to_owned(), why: words.to_owned() };
        assert_eq!(check(issued).await, expected);
    }
    let (near, far) = duplex(4096);
    drop(far);
    let failed = check_chain(Box::new(near), &host, &roots, soon()).await;
    assert_eq!(failed, ChainCheck::Failed(TlsConnectError::Closed));
}

#[test]
fn files_with_mistakes_are_refused_and_say_what_was_expected() {
    let (files, root) = (Files::new(), Authority::new("Plant Root"));
    let issuing = root.under("Plant Issuing CA");
    let own = issuing.issue(&[HOST]);
    let other = issuing.issue(&[HOST]);
    let expired = issuing.issue_with(&[HOST], |params| params.not_after = date_time_ymd(2020, 1, 1));
    let early = issuing.issue_with(&[HOST], |params| params.not_before = date_time_ymd(2090, 1, 1));
    let chain = [own.certificate_pem.as_str(), &issuing.certificate_pem, &root.certificate_pem].concat();
    let reversed = [root.certificate_pem.as_str(), &issuing.certificate_pem, &own.certificate_pem].concat();
    let gap = [own.certificate_pem.as_str(), &root.certificate_pem].concat();
    let one_line = own.key_pem.replace('\n', " ");
    let encrypted = own.key_pem.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    let half = own.certificate_pem.split_at(100).0.to_owned();
    let no_x509 = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned();
    for (certificate, key, words) in [
        (&chain, &other.key_pem, "does not belong to the first certificate in"),
        (&reversed, &own.key_pem, "certificate 2 in"),
        (&gap, &own.key_pem, "is Plant Root (Plant Ltd)'s, but the one before it was issued by Plant Issuing CA (Plant Ltd)"),
        (&expired.certificate_pem, &expired.key_pem, "expired on 2020-01-01 00:00 UTC"),
        (&early.certificate_pem, &early.key_pem, "is not valid before 2090-01-01 00:00 UTC"),
        (&chain, &one_line, "expected PEM with its line breaks"),
        (&chain, &encrypted, "the private key is encrypted"),
        (&chain, &own.certificate_pem, "there is no private key"),
        (&own.key_pem, &own.key_pem, "holds no certificate"),
        (&half, &own.key_pem, "is broken PEM"),
        (&one_line, &own.key_pem, "is broken PEM"),
        (&no_x509, &own.key_pem, "it is no X.509 certificate"),
    ] {
        let path = files.write("server.pem", certificate);
        let error = ServerTls::load(&path, &Secret::new(key.clone()), None, ClientCertificates::Optional).expect_err("refused");
        let error = error.to_string();
        assert!(error.contains(words), "{error}");
        assert!(!own.key_pem.lines().any(|line| line.len() > 40 && error.contains(line)), "the key was told: {error}");
    }
    let path = files.write("server.pem", &chain);
    let good = ServerTls::load(&path, &own.secret(), None, ClientCertificates::Optional).expect("in order");
    assert_eq!(date(good.not_after()), "4096-01-01 00:00 UTC");
}

#[test]
fn missing_files_are_named() {
    let (files, authority) = (Files::new(), Authority::new("Plant CA"));
    let missing = files.0.path().join("missing.pem");
    let issued = authority.issue(&[HOST]);
    let certificate = files.write("server.pem", &issued.certificate_pem);
    for error in [
        ServerTls::load(&missing, &issued.secret(), None, ClientCertificates::Optional).err(),
        ServerTls::load(&certificate, &issued.secret(), Some(&missing), ClientCertificates::Required).err(),
        ClientTls::load(Some(&missing), None).err(),
        ClientTls::load(None, Some((missing.as_path(), &issued.secret()))).err(),
        Roots::load(Some(&missing)).err(),
    ] {
        let error = error.expect("refused").to_string();
        assert!(error.contains("missing.pem cannot be read"), "{error}");
    }
}
