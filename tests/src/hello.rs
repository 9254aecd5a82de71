//! ClientHellos made by hand, right and wrong, as bytes: what no TLS library would send.
//!
//! Source: RFC 8446 §4.1.2, §5.1; RFC 6066 §3; the cases are those of reference/relay.md §4.2.

/// A ClientHello to be built; the fields are what the cases vary.
#[derive(Debug, Clone)]
pub struct Hello {
    pub session_id: Vec<u8>,
    pub cipher_suites: Vec<u8>,
    /// For each server_name extension, its names.
    pub server_names: Vec<Vec<Vec<u8>>>,
    /// Bytes of a padding extension in front of all others; none if zero.
    pub padding_bytes: usize,
    pub signature_algorithms: bool,
    pub encrypted_client_hello: bool,
    pub record_version: u16,
    /// Where in the message a new record begins.
    pub cuts: Vec<usize>,
}

pub const RECORD_HEADER_BYTES: usize = 5;
/// Of the content of a record (RFC 8446 §5.1).
const MAX_RECORD_BYTES: usize = 1 << 14;

impl Hello {
    pub fn for_name(name: &str) -> Self {
        Self {
            session_id: vec![7; 32],
            cipher_suites: vec![0x13, 0x01, 0x13, 0x02, 0xc0, 0x2f],
            server_names: vec![vec![name.into()]],
            padding_bytes: 0,
            signature_algorithms: true,
            encrypted_client_hello: false,
            record_version: 0x0301,
            cuts: vec![],
        }
    }

    /// A hello for `real` that seems to be for `decoy` to whoever takes the second record's header for content.
    ///
    /// That header lies in the session id and pushes its end, as misread, five bytes forward, onto cipher suites that
    /// hold what seems to follow: compression methods, the decoy's extension, and one that swallows the rest.
    pub fn with_decoy(decoy: &str, real: &str) -> Self {
        let mut hello = Self::for_name(real);
        hello.session_id = [&[7u8; 27][..], &[0, 6], &[7; 3]].concat();
        hello.cuts = vec![50];
        let decoy = server_name(&[decoy.into()]);
        let evenness = (1 + decoy.len()) % 2;
        let swallowed = evenness + 2 + 2 + hello.extensions().len() - RECORD_HEADER_BYTES;
        let seeming_extensions = decoy.len() + 4 + swallowed;
        hello.cipher_suites =
            [&[0u8][..], &[1, 0], &length16(seeming_extensions), &decoy, &[0, 21], &length16(swallowed), &[0][..evenness]].concat();
        hello
    }

    pub fn padded(mut self, bytes: usize) -> Self {
        self.padding_bytes = bytes;
        self
    }

    pub fn cut_at(mut self, cuts: &[usize]) -> Self {
        self.cuts = cuts.to_vec();
        self
    }

    /// Where in the message the first byte of `name` stands.
    pub fn offset_of(&self, name: &str) -> usize {
        let message = self.message();
        let mut windows = message.windows(name.len());
        windows.position(|window| window == name.as_bytes()).expect("the name is in the hello")
    }

    /// The records, as they go over the wire.
    pub fn stream(&self) -> Vec<u8> {
        let message = self.message();
        let mut stream = Vec::new();
        let mut start = 0;
        for &end in self.cuts.iter().chain(&[message.len()]) {
            for fragment in message[start..end].chunks(MAX_RECORD_BYTES) {
                stream.extend(record(self.record_version, fragment));
            }
            start = end;
        }
        stream
    }

    /// The handshake message, without record headers.
    pub fn message(&self) -> Vec<u8> {
        let body = [
            &[3u8, 3][..],
            &[9; 32],
            &vector8(&self.session_id),
            &vector16(&self.cipher_suites),
            &vector8(&[0]),
            &vector16(&self.extensions()),
        ]
        .concat();
        let [_, length @ ..] = u32::try_from(body.len()).expect("short enough").to_be_bytes();
        [&[1][..], &length, &body].concat()
    }

    fn extensions(&self) -> Vec<u8> {
        let mut extensions = Vec::new();
        if self.padding_bytes > 0 {
            extensions.extend(extension(21, &vec![0; self.padding_bytes]));
        }
        if self.signature_algorithms {
            extensions.extend(extension(13, &[0, 2, 4, 3]));
        }
        if self.encrypted_client_hello {
            extensions.extend(extension(0xfe0d, &[5; 64]));
        }
        for names in &self.server_names {
            extensions.extend(server_name(names));
        }
        extensions
    }
}

/// A handshake record around `fragment`.
pub fn record(version: u16, fragment: &[u8]) -> Vec<u8> {
    [&[22u8][..], &version.to_be_bytes(), &vector16(fragment)].concat()
}

/// The record of a fatal alert.
pub const fn alert(description: u8) -> [u8; 7] {
    [21, 3, 3, 0, 2, 2, description]
}

fn server_name(names: &[Vec<u8>]) -> Vec<u8> {
    let entries = names.iter().map(|name| [&[0u8][..], &vector16(name)].concat());
    let list: Vec<u8> = entries.flatten().collect();
    extension(0, &vector16(&list))
}

fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &vector16(content)].concat()
}

fn vector8(content: &[u8]) -> Vec<u8> {
    let length = u8::try_from(content.len()).expect("short enough");
    [&[length][..], content].concat()
}

fn vector16(content: &[u8]) -> Vec<u8> {
    [&length16(content.len())[..], content].concat()
}

fn length16(length: usize) -> [u8; 2] {
    u16::try_from(length).expect("short enough").to_be_bytes()
}
