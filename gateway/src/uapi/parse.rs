//! What `wg` asks: bytes off the socket become one request, a line at a time.
//!
//! A request is lines of `key=value`, the first of them `get=1` or `set=1`, and ends with an empty line. Lines before the
//! first `public_key` are about the tunnel, those after it about that peer. A request is taken whole or not at all:
//! the first line that is not understood spoils it. What follows is then read up to the empty line, so that who writes first
//! and reads later gets an answer and not a broken pipe.
//!
//! A line is all that is held as bytes, in room that never grows and is wiped: private keys pass through here. For the
//! same reason no fault tells a value.
//!
//! Left out: what the requests mean for a tunnel, which is [`super::edit`]'s.
//!
//! Source: <https://www.wireguard.com/xplatform/>, "Configuration Protocol"; what `wg` 1.0.20210914 writes, and the `-` before
//! an allowed IP that later ones write.

use std::net::SocketAddr;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;
use tunnel::{PresharedKey, PrivateKey, PublicKey};
use zeroize::Zeroizing;

/// The longest line without its end, in bytes. The longest that means anything, a key, has 80.
pub(super) const MAX_LINE_BYTES: usize = 4096;
/// The longest request, in bytes: some 400,000 allowed IPs.
pub(super) const MAX_REQUEST_BYTES: usize = 16 * 1024 * 1024;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request {
    Get,
    Set(SetRequest),
}

/// One `set`. Nothing said of a thing leaves it as it is.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct SetRequest {
    /// Never all zeros: see [`SetRequest::read_line`].
    pub(super) private_key: Option<PrivateKey>,
    pub(super) listen_port: Option<u16>,
    pub(super) fwmark: Option<u32>,
    /// The peers that there are go first.
    pub(super) replace_peers: bool,
    /// In the order of the request, in which they take effect; a peer may be there twice.
    pub(super) peers: Vec<PeerEdit>,
}

/// What one `public_key` and the lines behind it say.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PeerEdit {
    pub(super) public_key: PublicKey,
    pub(super) remove: bool,
    /// Not to be made if it is not there.
    pub(super) update_only: bool,
    /// `Some(None)`: to have none from now on.
    pub(super) preshared_key: Option<Option<PresharedKey>>,
    pub(super) endpoint: Option<SocketAddr>,
    /// Zero: off.
    pub(super) keepalive_secs: Option<u16>,
    /// In the order in which they take effect.
    pub(super) allowed_ips: Vec<AllowedIpEdit>,
}

/// Prefixes have no host bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AllowedIpEdit {
    Add(IpNet),
    Remove(IpNet),
    RemoveAll,
}

/// Why a request is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {fault}")]
pub(super) struct Malformed {
    /// Of the request, from 1.
    line: usize,
    fault: Fault,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum Fault {
    #[error("neither get=1 nor set=1")]
    Operation,
    #[error("longer than {MAX_LINE_BYTES} bytes")]
    LineTooLong,
    #[error("the request is longer than {MAX_REQUEST_BYTES} bytes")]
    RequestTooLong,
    #[error("get=1 is to be followed by an empty line")]
    NotEmpty,
    #[error("not key=value")]
    NoValue,
    #[error("a key that is not known here")]
    UnknownKey,
    #[error("{0} has a value that it cannot have")]
    Value(&'static str),
}

impl Malformed {
    /// For the answer, positive.
    pub(super) const fn errno(self) -> i32 {
        match self.fault {
            Fault::RequestTooLong => libc::E2BIG,
            Fault::Operation | Fault::LineTooLong | Fault::NotEmpty | Fault::NoValue | Fault::UnknownKey | Fault::Value(_) => libc::EINVAL,
        }
    }

    /// Where the next request starts is not known: there is nothing to do but to hang up.
    pub(super) const fn is_fatal(self) -> bool {
        matches!(self.fault, Fault::Operation | Fault::LineTooLong | Fault::RequestTooLong)
    }
}

/// Reads requests one after the other from a stream that arrives in pieces.
pub(super) struct RequestReader {
    /// The line so far. Its room is never exceeded and so never moves.
    line: Zeroizing<Vec<u8>>,
    draft: Draft,
}

/// The request so far.
#[derive(Default)]
struct Draft {
    bytes: usize,
    lines: usize,
    /// None: its first line is still to come.
    request: Option<Request>,
    fault: Option<Malformed>,
}

impl RequestReader {
    pub(super) fn new() -> Self {
        Self { line: Zeroizing::new(Vec::with_capacity(MAX_LINE_BYTES)), draft: Draft::default() }
    }

    /// Reads on in `bytes`, up to the end of a request at most. Returns how many bytes were taken, which is all of them if
    /// there is no outcome yet. After a fatal fault the stream is of no use any more.
    pub(super) fn handle_bytes(&mut self, bytes: &[u8]) -> (usize, Option<Result<Request, Malformed>>) {
        let mut taken = 0;
        while let Some(rest) = bytes.get(taken..).filter(|rest| !rest.is_empty()) {
            let end = rest.iter().position(|byte| *byte == b'\n');
            let piece = end.map_or(rest, |end| &rest[..end]);
            let length = piece.len() + usize::from(end.is_some());
            taken += length;
            self.draft.bytes += length;
            if self.line.len() + piece.len() > MAX_LINE_BYTES {
                return (taken, Some(Err(self.draft.fatal(Fault::LineTooLong))));
            }
            if self.draft.bytes > MAX_REQUEST_BYTES {
                return (taken, Some(Err(self.draft.fatal(Fault::RequestTooLong))));
            }
            self.line.extend_from_slice(piece);
            if end.is_some() {
                let outcome = self.draft.handle_line(&self.line);
                self.line.clear();
                if outcome.is_some() {
                    return (taken, outcome);
                }
            }
        }
        (taken, None)
    }
}

impl Draft {
    /// The outcome, if `line` is the last of its request.
    fn handle_line(&mut self, line: &[u8]) -> Option<Result<Request, Malformed>> {
        let Some(mut request) = self.request.take() else {
            self.request = match line {
                b"get=1" => Some(Request::Get),
                b"set=1" => Some(Request::Set(SetRequest::default())),
                _ => return Some(Err(self.fatal(Fault::Operation))),
            };
            self.lines += 1;
            return None;
        };
        if line.is_empty() {
            let fault = std::mem::take(self).fault;
            return Some(fault.map_or(Ok(request), Err));
        }
        self.lines += 1;
        if self.fault.is_none() {
            let read = match &mut request {
                Request::Get => Err(Fault::NotEmpty),
                Request::Set(set) => set.read_line(line),
            };
            self.fault = read.err().map(|fault| Malformed { line: self.lines, fault });
        }
        self.request = Some(request);
        None
    }

    /// A fault in the line that is being read.
    const fn fatal(&self, fault: Fault) -> Malformed {
        Malformed { line: self.lines + 1, fault }
    }
}

impl SetRequest {
    fn read_line(&mut self, line: &[u8]) -> Result<(), Fault> {
        let text = std::str::from_utf8(line).map_err(|_| Fault::NoValue)?;
        let (key, value) = text.split_once('=').ok_or(Fault::NoValue)?;
        if key == "public_key" {
            let bytes = key_bytes(value).ok_or(Fault::Value("public_key"))?;
            self.peers.push(PeerEdit::new(PublicKey::from_bytes(*bytes)));
            return Ok(());
        }
        match self.peers.last_mut() {
            Some(peer) => peer.read_value(key, value),
            None => self.read_value(key, value),
        }
    }

    fn read_value(&mut self, key: &str, value: &str) -> Result<(), Fault> {
        match key {
            "private_key" => {
                let bytes = key_bytes(value).ok_or(Fault::Value("private_key"))?;
                // All zeros: to have none, says the protocol. A gateway without a key is none, and `wg setconf` and `wg syncconf`
                // write them if their file has no PrivateKey. The file that `wg showconf` made here has none.
                self.private_key = if is_zero(&bytes) { None } else { Some(key_of(&bytes).ok_or(Fault::Value("private_key"))?) };
            }
            "listen_port" => self.listen_port = Some(number(value).ok_or(Fault::Value("listen_port"))?),
            "fwmark" => self.fwmark = Some(number(value).ok_or(Fault::Value("fwmark"))?),
            "replace_peers" => {
                the_word(value, "true", "replace_peers")?;
                self.replace_peers = true;
            }
            _ => return Err(Fault::UnknownKey),
        }
        Ok(())
    }
}

impl PeerEdit {
    pub(super) const fn new(public_key: PublicKey) -> Self {
        Self {
            public_key,
            remove: false,
            update_only: false,
            preshared_key: None,
            endpoint: None,
            keepalive_secs: None,
            allowed_ips: Vec::new(),
        }
    }

    fn read_value(&mut self, key: &str, value: &str) -> Result<(), Fault> {
        match key {
            "remove" => {
                the_word(value, "true", "remove")?;
                self.remove = true;
            }
            "update_only" => {
                the_word(value, "true", "update_only")?;
                self.update_only = true;
            }
            "preshared_key" => {
                let bytes = key_bytes(value).ok_or(Fault::Value("preshared_key"))?;
                let preshared = if is_zero(&bytes) { None } else { Some(key_of(&bytes).ok_or(Fault::Value("preshared_key"))?) };
                self.preshared_key = Some(preshared);
            }
            "endpoint" => self.endpoint = Some(endpoint(value).ok_or(Fault::Value("endpoint"))?),
            "persistent_keepalive_interval" => {
                self.keepalive_secs = Some(number(value).ok_or(Fault::Value("persistent_keepalive_interval"))?);
            }
            "replace_allowed_ips" => {
                the_word(value, "true", "replace_allowed_ips")?;
                self.allowed_ips.push(AllowedIpEdit::RemoveAll);
            }
            "allowed_ip" => self.allowed_ips.push(allowed_ip(value).ok_or(Fault::Value("allowed_ip"))?),
            "protocol_version" => the_word(value, "1", "protocol_version")?,
            _ => return Err(Fault::UnknownKey),
        }
        Ok(())
    }
}

/// Of some keys there is one value only.
fn the_word(value: &str, word: &str, key: &'static str) -> Result<(), Fault> {
    if value == word { Ok(()) } else { Err(Fault::Value(key)) }
}

/// Decimal, without a sign.
fn number<T: FromStr>(value: &str) -> Option<T> {
    let digits = value.bytes().all(|byte| byte.is_ascii_digit());
    if digits { value.parse().ok() } else { None }
}

/// 64 hexadecimal digits, of either case.
fn key_bytes(value: &str) -> Option<Zeroizing<[u8; 32]>> {
    let (pairs, rest) = value.as_bytes().as_chunks::<2>();
    let mut key = Zeroizing::new([0u8; 32]);
    if pairs.len() != key.len() || !rest.is_empty() {
        return None;
    }
    for (byte, [high, low]) in key.iter_mut().zip(pairs) {
        *byte = (nibble(*high)? << 4) | nibble(*low)?;
    }
    Some(key)
}

fn nibble(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

fn is_zero(bytes: &[u8; 32]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// Keys are made from their text alone.
fn key_of<K: FromStr>(bytes: &[u8; 32]) -> Option<K> {
    Zeroizing::new(STANDARD.encode(bytes)).parse().ok()
}

/// An address with its port, IPv6 in brackets. A scope cannot be kept by the settings and is not taken.
fn endpoint(value: &str) -> Option<SocketAddr> {
    let address: SocketAddr = value.parse().ok()?;
    let scoped = matches!(address, SocketAddr::V6(address) if address.scope_id() != 0);
    if scoped || address.port() == 0 {
        return None;
    }
    Some(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

/// Host bits are cut off, as the kernel does.
fn allowed_ip(value: &str) -> Option<AllowedIpEdit> {
    match value.strip_prefix('-') {
        Some(prefix) => prefix.parse::<IpNet>().ok().map(|prefix| AllowedIpEdit::Remove(prefix.trunc())),
        None => value.parse::<IpNet>().ok().map(|prefix| AllowedIpEdit::Add(prefix.trunc())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The outcomes of a whole stream, in pieces of `size` bytes. Nothing is read after a fatal fault.
    fn outcomes(stream: &[u8], size: usize) -> Vec<Result<Request, Malformed>> {
        let mut reader = RequestReader::new();
        let mut outcomes = Vec::new();
        for mut piece in stream.chunks(size) {
            while !piece.is_empty() {
                let (taken, outcome) = reader.handle_bytes(piece);
                assert!(taken > 0 && (outcome.is_some() || taken == piece.len()), "{taken} of {}", piece.len());
                piece = &piece[taken..];
                let Some(outcome) = outcome else { continue };
                let fatal = matches!(&outcome, Err(malformed) if malformed.is_fatal());
                outcomes.push(outcome);
                if fatal {
                    return outcomes;
                }
            }
        }
        outcomes
    }

    #[track_caller]
    fn one(text: &str) -> Result<Request, Malformed> {
        let mut outcomes = outcomes(text.as_bytes(), usize::MAX);
        assert_eq!(outcomes.len(), 1, "{outcomes:?}");
        outcomes.remove(0)
    }

    #[track_caller]
    fn set(lines: &str) -> SetRequest {
        match one(&format!("set=1\n{lines}\n")) {
            Ok(Request::Set(set)) => set,
            other => panic!("{lines:?}: {other:?}"),
        }
    }

    fn hex(byte: u8) -> String {
        format!("{byte:02x}").repeat(32)
    }

    fn prefix(text: &str) -> IpNet {
        text.parse().expect("a prefix")
    }

    #[test]
    fn get_is_two_lines() {
        assert_eq!(one("get=1\n\n"), Ok(Request::Get));
        assert_eq!(one("get=1\nlisten_port=1\n\n").expect_err("refused").fault, Fault::NotEmpty);
    }

    #[test]
    fn everything_that_wg_writes_is_read() {
        let request = set(&format!(
            "private_key={}\nlisten_port=51820\nfwmark=5359\nreplace_peers=true\n\
             public_key={}\nremove=true\n\
             public_key={}\nupdate_only=true\npreshared_key={}\nendpoint=192.0.2.1:51820\npersistent_keepalive_interval=25\n\
             replace_allowed_ips=true\nallowed_ip=10.1.2.3/16\nallowed_ip=-fd00::/8\nprotocol_version=1\n\
             public_key={}\npreshared_key={}\nendpoint=[2001:db8::1]:1\npersistent_keepalive_interval=0\n",
            hex(1),
            hex(2),
            hex(0xAB),
            hex(4),
            hex(5),
            hex(0),
        ));
        assert_eq!(request.private_key, key_of::<PrivateKey>(&[1; 32]));
        assert_eq!((request.listen_port, request.fwmark, request.replace_peers), (Some(51820), Some(5359), true));
        let mut first = PeerEdit::new(PublicKey::from_bytes([2; 32]));
        first.remove = true;
        let mut second = PeerEdit::new(PublicKey::from_bytes([0xAB; 32]));
        second.update_only = true;
        second.preshared_key = Some(key_of(&[4; 32]));
        second.endpoint = Some("192.0.2.1:51820".parse().expect("an address"));
        second.keepalive_secs = Some(25);
        second.allowed_ips =
            vec![AllowedIpEdit::RemoveAll, AllowedIpEdit::Add(prefix("10.1.0.0/16")), AllowedIpEdit::Remove(prefix("fd00::/8"))];
        let mut third = PeerEdit::new(PublicKey::from_bytes([5; 32]));
        third.preshared_key = Some(None);
        third.endpoint = Some("[2001:db8::1]:1".parse().expect("an address"));
        third.keepalive_secs = Some(0);
        assert_eq!(request.peers, [first, second, third]);
    }

    #[test]
    fn a_private_key_of_zeros_is_none_said() {
        assert_eq!(set(&format!("private_key={}\n", hex(0))), SetRequest::default());
    }

    #[test]
    fn keys_are_of_either_case_and_of_one_length() {
        assert_eq!(key_bytes(&"aB".repeat(32)).map(|key| *key), Some([0xAB; 32]));
        for bad in ["", "ab", &"g0".repeat(32), &"ab".repeat(33), &"ab".repeat(31), &format!("{}a", "ab".repeat(32))] {
            assert!(key_bytes(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn values_that_cannot_be_are_refused_by_line_and_key() {
        let key = hex(7);
        let cases = [
            ("listen_port=65536\n".to_owned(), 2, Fault::Value("listen_port")),
            ("listen_port=+1\n".to_owned(), 2, Fault::Value("listen_port")),
            ("listen_port=\n".to_owned(), 2, Fault::Value("listen_port")),
            ("fwmark=4294967296\n".to_owned(), 2, Fault::Value("fwmark")),
            ("fwmark=0x1\n".to_owned(), 2, Fault::Value("fwmark")),
            ("replace_peers=false\n".to_owned(), 2, Fault::Value("replace_peers")),
            ("private_key=00\n".to_owned(), 2, Fault::Value("private_key")),
            ("public_key=zz\n".to_owned(), 2, Fault::Value("public_key")),
            (format!("public_key={key}\nremove=yes\n"), 3, Fault::Value("remove")),
            (format!("public_key={key}\nendpoint=peer.example.net:51820\n"), 3, Fault::Value("endpoint")),
            (format!("public_key={key}\nendpoint=192.0.2.1:0\n"), 3, Fault::Value("endpoint")),
            (format!("public_key={key}\nendpoint=[fe80::1%2]:51820\n"), 3, Fault::Value("endpoint")),
            (format!("public_key={key}\nallowed_ip=10.0.0.0/33\n"), 3, Fault::Value("allowed_ip")),
            (format!("public_key={key}\nallowed_ip=10.0.0.0\n"), 3, Fault::Value("allowed_ip")),
            (format!("public_key={key}\nallowed_ip=--10.0.0.0/8\n"), 3, Fault::Value("allowed_ip")),
            (format!("public_key={key}\npersistent_keepalive_interval=off\n"), 3, Fault::Value("persistent_keepalive_interval")),
            (format!("public_key={key}\nprotocol_version=2\n"), 3, Fault::Value("protocol_version")),
            (format!("public_key={key}\nlisten_port=51820\n"), 3, Fault::UnknownKey),
            ("remove=true\n".to_owned(), 2, Fault::UnknownKey),
            ("errno=0\n".to_owned(), 2, Fault::UnknownKey),
            ("private_key\n".to_owned(), 2, Fault::NoValue),
            ("listen_port=51820\r\n".to_owned(), 2, Fault::Value("listen_port")),
        ];
        for (lines, line, fault) in cases {
            assert_eq!(one(&format!("set=1\n{lines}\n")), Err(Malformed { line, fault }), "{lines:?}");
        }
    }

    #[test]
    fn a_fault_tells_no_value() {
        let secret = hex(9);
        let told = one(&format!("set=1\nprivate_kye={secret}\nprivate_key={secret}0\n\n")).expect_err("refused").to_string();
        assert_eq!(told, "line 2: a key that is not known here");
    }

    #[test]
    fn after_a_fault_the_next_request_is_read() {
        let outcomes = outcomes(b"set=1\nnonsense\nlisten_port=1\n\nget=1\n\nset=1\n\n", 5);
        assert_eq!(
            outcomes,
            [Err(Malformed { line: 2, fault: Fault::NoValue }), Ok(Request::Get), Ok(Request::Set(SetRequest::default()))]
        );
    }

    #[test]
    fn an_unknown_operation_ends_the_conversation() {
        for stream in ["GET / HTTP/1.1\r\n\r\n", "\n", "get=2\n\n", "set=1 \n\n"] {
            let malformed = one(stream).expect_err("refused");
            assert_eq!(malformed, Malformed { line: 1, fault: Fault::Operation }, "{stream:?}");
            assert!(malformed.is_fatal());
        }
    }

    #[test]
    fn a_line_may_have_4096_bytes_and_no_more() {
        let unknown = |length: usize| one(&format!("set=1\n{}\n\n", "x".repeat(length))).expect_err("refused").fault;
        assert_eq!(unknown(MAX_LINE_BYTES), Fault::NoValue);
        assert_eq!(unknown(MAX_LINE_BYTES + 1), Fault::LineTooLong);
        // Also if its end never comes, and in pieces: the room is not exceeded.
        let endless = vec![b'x'; 1_000_000];
        let mut reader = RequestReader::new();
        let found = endless.chunks(1000).find_map(|piece| reader.handle_bytes(piece).1);
        assert_eq!(found, Some(Err(Malformed { line: 1, fault: Fault::LineTooLong })));
        assert_eq!(reader.line.capacity(), MAX_LINE_BYTES);
    }

    #[test]
    fn a_request_may_have_16_mib_and_no_more() {
        let line = b"listen_port=51820\n";
        let mut reader = RequestReader::new();
        assert_eq!(reader.handle_bytes(b"set=1\n"), (6, None));
        let mut bytes = 6;
        let malformed = loop {
            let (taken, outcome) = reader.handle_bytes(line);
            bytes += taken;
            match outcome {
                Some(outcome) => break outcome.expect_err("refused"),
                None => assert!(bytes <= MAX_REQUEST_BYTES, "{bytes} bytes were taken"),
            }
        };
        assert_eq!((malformed.fault, malformed.errno(), malformed.is_fatal()), (Fault::RequestTooLong, libc::E2BIG, true));
        assert!(bytes > MAX_REQUEST_BYTES && bytes <= MAX_REQUEST_BYTES + line.len());
    }

    proptest! {
        #[test]
        fn the_size_of_the_pieces_does_not_matter(
            lines in prop::collection::vec(
                prop_oneof![
                    Just("get=1"), Just("set=1"), Just(""), Just("listen_port=51820"), Just("replace_peers=true"), Just("nonsense"),
                    Just("public_key=0707070707070707070707070707070707070707070707070707070707070707"),
                    Just("allowed_ip=10.0.0.0/8"), Just("remove=true"), Just("protocol_version=2"),
                ],
                0..30,
            ),
            size in 1usize..40,
        ) {
            let stream: String = lines.iter().map(|line| format!("{line}\n")).collect();
            prop_assert_eq!(outcomes(stream.as_bytes(), size), outcomes(stream.as_bytes(), usize::MAX));
        }

        #[test]
        fn no_bytes_panic(stream in prop::collection::vec(any::<u8>(), 0..300), size in 1usize..50) {
            let mut told = b"set=1\n".to_vec();
            told.extend(&stream);
            let (_plain, _after_set) = (outcomes(&stream, size), outcomes(&told, size));
        }
    }
}
