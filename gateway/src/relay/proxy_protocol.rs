//! The PROXY protocol, versions 1 and 2, read and written: how a sensor's address, and what else is known of it, gets
//! past a load balancer and on to the second relay.
//!
//! Whoever may send such a header may claim any address and any sensor. So nothing here finds out whether a stream
//! begins with one: the caller decides, by who dialled and before a byte is read. From the load balancers that the
//! settings name a header is demanded, and a stream without one is closed. From everybody else none is read, and one
//! that comes is garbage to whatever reads the stream instead.
//!
//! ```text
//! v1 | PROXY TCP4 192.0.2.7 198.51.100.1 40000 443 CR LF |
//! v2 | signature 12 | version, command 1 | family, transport 1 | length 2 | addresses 0, 12, 36 or 216 | TLVs |
//!      a TLV: | type 1 | length 2 | value |      most values are text; SSL holds five bytes and more TLVs
//! ```
//!
//! The whole header is checked to its last byte: a checksum if there is one, every length, and that nothing that we use
//! is said twice, for two readers would take two different ones of it. TLVs that we do not use are skipped. Left out are
//! UDP, the names of UNIX sockets and of network namespaces, and ALPN.
//!
//! It does no I/O and keeps no deadline; bytes behind a header are not looked at. Whether an address or a name is
//! believed is decided elsewhere.
//!
//! Source: HAProxy's doc/proxy-protocol.txt §2.1 (v1), §2.2 (v2); checksum: RFC 9260 appendix A, most significant byte
//! first as HAProxy and AWS send it. Types of the clouds: AWS, "Target groups for your Network Load Balancers: VPC
//! endpoint services"; Azure, "What is Azure Private Link service: TCP proxy v2"; Google, "About published services:
//! PROXY protocol".

use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use super::head_lines::HeadProgress;

/// Reads the PROXY header at the start of a stream that arrives in pieces, in either version.
///
/// Only for peers that are trusted to send one and never send anything else first.
#[derive(Debug, Default)]
pub struct ProxyHeaderReader {
    /// Once there is an answer it stays the answer.
    decision: Option<Result<ProxyHeader, ProxyHeaderError>>,
}

impl ProxyHeaderReader {
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads on. `received` is everything received since the start of the stream, each time.
    pub fn handle_bytes(&mut self, received: &[u8]) -> HeadProgress<ProxyHeader, ProxyHeaderError> {
        if self.decision.is_none() {
            self.decision = ProxyHeader::read(received).transpose();
        }
        HeadProgress::new(self.decision.as_ref())
    }

    /// How many bytes the header has at least beyond `received`: who reads no more takes nothing of what follows it.
    pub fn least_more(received: &[u8]) -> usize {
        const FIXED: usize = 16;
        match received.len() {
            length @ ..12 => SIGNATURE.len() - length,
            _ if !received.starts_with(SIGNATURE) => 1,
            length @ ..FIXED => FIXED - length,
            length => {
                let declared = received.get(14..FIXED).and_then(|bytes| bytes.try_into().ok()).map_or(0, u16::from_be_bytes);
                (FIXED + usize::from(declared)).saturating_sub(length).max(1)
            }
        }
    }
}

/// What a PROXY header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyHeader {
    /// Bytes of the header, at most [`MAX_HEADER_BYTES`]. What follows is the session's. Of no meaning to the writers.
    pub length: usize,
    pub command: Command,
    /// Who dialled the sender; IPv4 if it was IPv4-mapped. None if the header does not tell: then only the sender's own
    /// address is known, and that is no sensor's.
    pub source: Option<SocketAddr>,
    /// Whom they dialled, in the same form.
    pub destination: Option<SocketAddr>,
    pub attributes: Attributes,
}

impl ProxyHeader {
    /// For a stream that is the sender's own.
    pub fn local() -> Self {
        Self { length: 0, command: Command::Local, source: None, destination: None, attributes: Attributes::default() }
    }

    pub fn proxied(source: SocketAddr, destination: SocketAddr, attributes: Attributes) -> Self {
        Self { length: 0, command: Command::Proxied, source: Some(source), destination: Some(destination), attributes }
    }

    /// Appends the header in version 2, with a checksum: 16 to some 1,100 bytes.
    ///
    /// Two addresses of unlike families go as IPv6, an IPv4 one mapped into it. An attribute that the reader would
    /// refuse is left out; of a local stream nothing is said.
    pub fn encode_v2(&self, out: &mut Vec<u8>) {
        if self.command == Command::Local {
            out.extend_from_slice(SIGNATURE);
            out.extend_from_slice(&[(VERSION_2 << 4) | COMMAND_LOCAL, 0, 0, 0]);
            return;
        }
        let mut block = Vec::with_capacity(128); // enough for addresses, a sensor and its session
        let family = match self.address_pair() {
            None => (FAMILY_UNSPECIFIED << 4) | TRANSPORT_UNSPECIFIED,
            Some((source, destination)) => push_addresses(&mut block, source, destination),
        };
        self.attributes.encode(&mut block);
        block.extend_from_slice(&[TYPE_CRC32C, 0, 4]);

        let length = u16::try_from(block.len() + CHECKSUM_BYTES).expect("no attribute is written that is longer than its bound");
        let mut fixed = SIGNATURE.to_vec();
        fixed.extend_from_slice(&[(VERSION_2 << 4) | COMMAND_PROXY, family]);
        fixed.extend_from_slice(&length.to_be_bytes());
        let checksum = crc32c(&[&fixed, &block, &[0; CHECKSUM_BYTES]]);
        for part in [fixed.as_slice(), &block, &checksum.to_be_bytes()] {
            out.extend_from_slice(part);
        }
    }

    /// The header in version 1, with its CRLF: at most 104 bytes, without the attributes.
    ///
    /// Where no address is known, and for a local stream, it says `UNKNOWN`, which some receivers refuse.
    pub fn encode_v1(&self) -> String {
        let Some((source, destination)) = self.address_pair() else {
            return "PROXY UNKNOWN\r\n".to_owned();
        };
        let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
        format!("PROXY {family} {} {} {} {}\r\n", source.ip(), destination.ip(), source.port(), destination.port())
    }

    /// Source and destination in one family, with the unspecified address for one that is not known.
    fn address_pair(&self) -> Option<(SocketAddr, SocketAddr)> {
        const NOT_KNOWN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
        if self.command == Command::Local || (self.source.is_none() && self.destination.is_none()) {
            return None;
        }
        let source = canonical(self.source.unwrap_or(NOT_KNOWN));
        let destination = canonical(self.destination.unwrap_or(NOT_KNOWN));
        if source.is_ipv4() && destination.is_ipv4() { Some((source, destination)) } else { Some((as_ipv6(source), as_ipv6(destination))) }
    }

    /// None while more is needed. Whatever it decides, it decides the same with more bytes behind.
    fn read(received: &[u8]) -> Result<Option<Self>, ProxyHeaderError> {
        let begins = |start: &[u8]| start.starts_with(received.get(..start.len()).unwrap_or(received));
        if begins(SIGNATURE) {
            Self::read_v2(received)
        } else if begins(LINE_START) {
            Self::read_v1(received)
        } else {
            Err(ProxyHeaderError::Missing)
        }
    }

    fn read_v1(received: &[u8]) -> Result<Option<Self>, ProxyHeaderError> {
        let line = received.get(..MAX_LINE_BYTES).unwrap_or(received);
        let text_length = line.iter().position(|byte| matches!(byte, b'\r' | b'\n')).unwrap_or(line.len());
        let (text, end) = line.split_at(text_length);
        match end {
            [b'\r', b'\n', ..] => Self::parse_v1(text).map(Some),
            [] | [b'\r'] if line.len() == MAX_LINE_BYTES => Err(ProxyHeaderError::TooLong),
            [] | [b'\r'] => Ok(None),
            _ => Err(ProxyHeaderError::BadLine),
        }
    }

    /// `text` is the line without its CRLF.
    fn parse_v1(text: &[u8]) -> Result<Self, ProxyHeaderError> {
        let length = text.len() + CRLF_BYTES;
        let text = text.strip_prefix(LINE_START).ok_or(ProxyHeaderError::Missing)?;
        // What follows that word is to be ignored, whatever it is.
        if text == UNKNOWN || text.strip_prefix(UNKNOWN).is_some_and(|rest| rest.starts_with(b" ")) {
            return Ok(Self { length, command: Command::Proxied, ..Self::local() });
        }
        let text = str::from_utf8(text).map_err(|_| ProxyHeaderError::BadLine)?;
        let words: Vec<&str> = text.split(' ').collect();
        let [family, source, destination, source_port, destination_port] = words[..] else {
            return Err(ProxyHeaderError::BadLine);
        };
        let parse_ip: fn(&str) -> Result<IpAddr, ProxyHeaderError> = match family {
            "TCP4" => parse_ip::<Ipv4Addr>,
            "TCP6" => parse_ip::<Ipv6Addr>,
            _ => return Err(ProxyHeaderError::BadFamily),
        };
        Ok(Self {
            length,
            command: Command::Proxied,
            source: known(parse_ip(source)?, parse_port(source_port)?),
            destination: known(parse_ip(destination)?, parse_port(destination_port)?),
            attributes: Attributes::default(),
        })
    }

    fn read_v2(received: &[u8]) -> Result<Option<Self>, ProxyHeaderError> {
        let Some(&byte) = received.get(SIGNATURE.len()) else { return Ok(None) };
        let command = Command::from_byte(byte)?;
        let Some(&byte) = received.get(SIGNATURE.len() + 1) else { return Ok(None) };
        let family = match command {
            // To be ignored with all that follows: AWS's health checks name TCP over IPv4 and send no addresses.
            Command::Local => None,
            Command::Proxied => Some(Family::from_byte(byte)?),
        };
        let Some(&[.., high, low]) = received.first_chunk::<FIXED_BYTES>() else { return Ok(None) };
        let block_length = usize::from(u16::from_be_bytes([high, low]));
        if block_length > MAX_BLOCK_BYTES {
            return Err(ProxyHeaderError::TooLong);
        }
        let Some(header) = received.get(..FIXED_BYTES + block_length) else { return Ok(None) };
        match family {
            None => Ok(Some(Self { length: header.len(), ..Self::local() })),
            Some(family) => Self::parse_v2(header, family).map(Some),
        }
    }

    fn parse_v2(header: &[u8], family: Family) -> Result<Self, ProxyHeaderError> {
        let block = header.get(FIXED_BYTES..).unwrap_or_default();
        let (addresses, tlvs) = block.split_at_checked(family.address_bytes()).ok_or(ProxyHeaderError::ShortAddresses)?;
        let (source, destination) = family.read_addresses(addresses).unwrap_or_default();
        check_checksum(header, Tlvs(tlvs))?;
        let attributes = Attributes::parse(Tlvs(tlvs))?;
        Ok(Self { length: header.len(), command: Command::Proxied, source, destination, attributes })
    }
}

/// Whose stream it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// The sender's own, mostly a health check: there is no sensor behind it. Version 1 cannot say so.
    Local,
    /// Somebody else's, for whom the sender relays.
    Proxied,
}

impl Command {
    fn from_byte(byte: u8) -> Result<Self, ProxyHeaderError> {
        match (byte >> 4, byte & 0x0f) {
            (VERSION_2, COMMAND_LOCAL) => Ok(Self::Local),
            (VERSION_2, COMMAND_PROXY) => Ok(Self::Proxied),
            (VERSION_2, _) => Err(ProxyHeaderError::BadCommand),
            _ => Err(ProxyHeaderError::BadVersion),
        }
    }
}

/// What a header says beside the addresses. Never empty text, and no control characters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// The name that the client asked the sender for, mostly by SNI: at most 255 bytes.
    pub authority: Option<String>,
    /// The sender's own mark for the stream, of 1 to 128 bytes of any value.
    pub unique_id: Option<Vec<u8>>,
    /// The AWS VPC endpoint that it came by, such as `vpce-08d2bf15fac5001c9`: letters, digits and `-`.
    pub aws_vpc_endpoint: Option<String>,
    /// The `linkIdentifier` of the Azure private endpoint that it came by.
    pub azure_link_id: Option<u32>,
    /// The `pscConnectionId` of Google's Private Service Connect.
    pub gcp_psc_connection: Option<u64>,
    /// The sensor, as the first skyway of two knows it, see [`is_sensor_name`]. Any other sender could claim it too:
    /// only to be believed of a skyway. Sent and received together with `session` or not at all.
    pub sensor: Option<String>,
    /// The first skyway's id of the session, by which both logs can be joined, see [`is_session_id`].
    pub session: Option<String>,
    /// Common name of the client's certificate; only if the sender says that it verified one.
    pub client_certificate_name: Option<String>,
}

impl Attributes {
    /// Whether the connection came by a cloud's private link.
    pub const fn is_private_link(&self) -> bool {
        self.aws_vpc_endpoint.is_some() || self.azure_link_id.is_some() || self.gcp_psc_connection.is_some()
    }

    fn parse(mut tlvs: Tlvs<'_>) -> Result<Self, ProxyHeaderError> {
        let mut attributes = Self::default();
        let mut ssl_seen = false;
        while let Some(Tlv { kind, value }) = tlvs.next_tlv()? {
            match (kind, value) {
                // HAProxy sends an empty one where it has nothing to say.
                (_, []) => {}
                (TYPE_AUTHORITY, text) => set(&mut attributes.authority, read_text(text)?)?,
                (TYPE_UNIQUE_ID, id) if id.len() <= MAX_UNIQUE_ID_BYTES => set(&mut attributes.unique_id, id.to_vec())?,
                (TYPE_UNIQUE_ID, _) => return Err(ProxyHeaderError::BadAttribute),
                (TYPE_SSL, _) if mem::replace(&mut ssl_seen, true) => return Err(ProxyHeaderError::DuplicateAttribute),
                (TYPE_SSL, ssl) => attributes.client_certificate_name = verified_name(ssl)?,
                (TYPE_AWS, [SUBTYPE_AWS_VPC_ENDPOINT, id @ ..]) => set(&mut attributes.aws_vpc_endpoint, read_vpc_endpoint(id)?)?,
                (TYPE_AZURE, [SUBTYPE_AZURE_LINK_ID, id @ ..]) => {
                    let id = <[u8; 4]>::try_from(id).map_err(|_| ProxyHeaderError::BadAttribute)?;
                    set(&mut attributes.azure_link_id, u32::from_le_bytes(id))?;
                }
                // The first of the free types, so others use it too; Google's always has this length.
                (TYPE_GCP, &[a, b, c, d, e, f, g, h]) => {
                    set(&mut attributes.gcp_psc_connection, u64::from_be_bytes([a, b, c, d, e, f, g, h]))?;
                }
                (TYPE_SKYWAY, value) => {
                    let (sensor, session) = read_skyway(value).ok_or(ProxyHeaderError::BadAttribute)?;
                    set(&mut attributes.sensor, sensor.to_owned())?;
                    set(&mut attributes.session, session.to_owned())?;
                }
                _ => {}
            }
        }
        Ok(attributes)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        if let Some(authority) = self.authority.as_deref().filter(|text| is_text(text)) {
            push_tlv(out, TYPE_AUTHORITY, authority.as_bytes());
        }
        if let Some(id) = self.unique_id.as_deref().filter(|id| (1..=MAX_UNIQUE_ID_BYTES).contains(&id.len())) {
            push_tlv(out, TYPE_UNIQUE_ID, id);
        }
        if let Some(name) = self.client_certificate_name.as_deref().filter(|text| is_text(text)) {
            // The flag for TLS itself would promise the version, which is not kept. Four zeros: verified.
            let mut ssl = vec![CLIENT_CERT_SESS, 0, 0, 0, 0];
            push_tlv(&mut ssl, SUBTYPE_SSL_CN, name.as_bytes());
            push_tlv(out, TYPE_SSL, &ssl);
        }
        if let Some(id) = self.aws_vpc_endpoint.as_deref().filter(|id| is_vpc_endpoint(id)) {
            push_tlv(out, TYPE_AWS, &[&[SUBTYPE_AWS_VPC_ENDPOINT][..], id.as_bytes()].concat());
        }
        if let Some(id) = self.azure_link_id {
            push_tlv(out, TYPE_AZURE, &[&[SUBTYPE_AZURE_LINK_ID][..], &id.to_le_bytes()].concat());
        }
        if let Some(id) = self.gcp_psc_connection {
            push_tlv(out, TYPE_GCP, &id.to_be_bytes());
        }
        if let (Some(sensor), Some(session)) = (&self.sensor, &self.session)
            && is_sensor_name(sensor)
            && is_session_id(session)
        {
            let mut value = vec![SKYWAY_VERSION];
            for text in [sensor, session] {
                value.push(u8::try_from(text.len()).expect("neither is longer than 64 bytes"));
                value.extend_from_slice(text.as_bytes());
            }
            push_tlv(out, TYPE_SKYWAY, &value);
        }
    }
}

/// Why a stream from a peer that must send a PROXY header is closed: its sender's fault, never ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyHeaderError {
    #[error("expected a PROXY header at the start of the stream")]
    Missing,
    #[error("expected version 1 or 2 of the PROXY protocol")]
    BadVersion,
    #[error("expected the command LOCAL or PROXY")]
    BadCommand,
    #[error("expected addresses of TCP over IPv4 or IPv6, of a UNIX socket, or none")]
    BadFamily,
    #[error("a PROXY header for datagrams, where TCP is relayed")]
    Datagram,
    #[error("expected a PROXY header of at most {} bytes in version 1, {} in version 2", MAX_LINE_BYTES, MAX_HEADER_BYTES)]
    TooLong,
    #[error("expected a line like 'PROXY TCP4 192.0.2.7 198.51.100.1 40000 443' that ends in CRLF")]
    BadLine,
    #[error("expected two addresses of the announced family, without zone, and two ports")]
    BadAddress,
    #[error("the PROXY header is too short for the addresses that it announces")]
    ShortAddresses,
    #[error("a field of the PROXY header runs past its end")]
    BadTlv,
    #[error("the checksum of the PROXY header is wrong")]
    BadChecksum,
    #[error("a field of the PROXY header is there twice")]
    DuplicateAttribute,
    #[error("a field of the PROXY header has a value that it cannot have")]
    BadAttribute,
}

impl ProxyHeaderError {
    /// One word for logs and metrics; it does not change between releases.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing => "proxy_header_missing",
            Self::BadVersion => "proxy_header_bad_version",
            Self::BadCommand => "proxy_header_bad_command",
            Self::BadFamily => "proxy_header_bad_family",
            Self::Datagram => "proxy_header_datagram",
            Self::TooLong => "proxy_header_too_long",
            Self::BadLine => "proxy_header_bad_line",
            Self::BadAddress => "proxy_header_bad_address",
            Self::ShortAddresses => "proxy_header_short_addresses",
            Self::BadTlv => "proxy_header_bad_tlv",
            Self::BadChecksum => "proxy_header_bad_checksum",
            Self::DuplicateAttribute => "proxy_header_duplicate_attribute",
            Self::BadAttribute => "proxy_header_bad_attribute",
        }
    }
}

/// Whether a sensor's name can be sent to another skyway: 1 to 64 printable ASCII characters, no space.
pub fn is_sensor_name(text: &str) -> bool {
    (1..=MAX_SKYWAY_TEXT_BYTES).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Whether a session's id can be sent to another skyway: 1 to 64 ASCII letters, digits, `.`, `_` and `-`.
pub fn is_session_id(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=MAX_SKYWAY_TEXT_BYTES).contains(&text.len()) && text.bytes().all(allowed)
}

/// Longest header in either version.
pub const MAX_HEADER_BYTES: usize = FIXED_BYTES + MAX_BLOCK_BYTES;

/// What a version 2 header has in front of its TLVs.
#[derive(Clone, Copy)]
enum Family {
    Tcp4,
    Tcp6,
    /// Addresses of no use to us.
    Other {
        address_bytes: usize,
    },
}

impl Family {
    fn from_byte(byte: u8) -> Result<Self, ProxyHeaderError> {
        match (byte >> 4, byte & 0x0f) {
            (FAMILY_IPV4, TRANSPORT_STREAM) => Ok(Self::Tcp4),
            (FAMILY_IPV6, TRANSPORT_STREAM) => Ok(Self::Tcp6),
            (FAMILY_UNSPECIFIED, TRANSPORT_UNSPECIFIED | TRANSPORT_STREAM) => Ok(Self::Other { address_bytes: 0 }),
            (FAMILY_IPV4, TRANSPORT_UNSPECIFIED) => Ok(Self::Other { address_bytes: IPV4_ADDRESS_BYTES }),
            (FAMILY_IPV6, TRANSPORT_UNSPECIFIED) => Ok(Self::Other { address_bytes: IPV6_ADDRESS_BYTES }),
            (FAMILY_UNIX, TRANSPORT_UNSPECIFIED | TRANSPORT_STREAM) => Ok(Self::Other { address_bytes: UNIX_ADDRESS_BYTES }),
            (FAMILY_UNSPECIFIED | FAMILY_IPV4 | FAMILY_IPV6 | FAMILY_UNIX, TRANSPORT_DATAGRAM) => Err(ProxyHeaderError::Datagram),
            _ => Err(ProxyHeaderError::BadFamily),
        }
    }

    fn address_bytes(self) -> usize {
        match self {
            Self::Tcp4 => IPV4_ADDRESS_BYTES,
            Self::Tcp6 => IPV6_ADDRESS_BYTES,
            Self::Other { address_bytes } => address_bytes,
        }
    }

    fn read_addresses(self, block: &[u8]) -> Option<Addresses> {
        match self {
            Self::Tcp4 => read_addresses::<4>(block),
            Self::Tcp6 => read_addresses::<16>(block),
            Self::Other { .. } => None,
        }
    }
}

/// Source and destination.
type Addresses = (Option<SocketAddr>, Option<SocketAddr>);

/// Two addresses of `N` bytes, then two ports.
fn read_addresses<const N: usize>(block: &[u8]) -> Option<Addresses>
where
    IpAddr: From<[u8; N]>,
{
    let (source, rest) = block.split_first_chunk::<N>()?;
    let (destination, rest) = rest.split_first_chunk::<N>()?;
    let (source_port, rest) = rest.split_first_chunk::<2>()?;
    let destination_port = rest.first_chunk::<2>()?;
    let source = known(IpAddr::from(*source), u16::from_be_bytes(*source_port));
    let destination = known(IpAddr::from(*destination), u16::from_be_bytes(*destination_port));
    Some((source, destination))
}

/// Appends both, which are of one family, and gives the byte that names it.
fn push_addresses(out: &mut Vec<u8>, source: SocketAddr, destination: SocketAddr) -> u8 {
    for address in [source, destination] {
        match address.ip() {
            IpAddr::V4(v4) => out.extend_from_slice(&v4.octets()),
            IpAddr::V6(v6) => out.extend_from_slice(&v6.octets()),
        }
    }
    for address in [source, destination] {
        out.extend_from_slice(&address.port().to_be_bytes());
    }
    let family = if source.is_ipv4() { FAMILY_IPV4 } else { FAMILY_IPV6 };
    (family << 4) | TRANSPORT_STREAM
}

/// The address in the form in which addresses are compared; the unspecified one says nothing.
fn known(ip: IpAddr, port: u16) -> Option<SocketAddr> {
    let ip = ip.to_canonical();
    if ip.is_unspecified() { None } else { Some(SocketAddr::new(ip, port)) }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn as_ipv6(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(v4) if v4.is_unspecified() => Ipv6Addr::UNSPECIFIED,
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    SocketAddr::new(IpAddr::V6(ip), address.port())
}

fn parse_ip<Ip: FromStr + Into<IpAddr>>(text: &str) -> Result<IpAddr, ProxyHeaderError> {
    text.parse::<Ip>().map(Into::into).map_err(|_| ProxyHeaderError::BadAddress)
}

/// A port in its one written form; zero is allowed.
fn parse_port(text: &str) -> Result<u16, ProxyHeaderError> {
    // u16's own parser would take "+443" and "0443".
    let canonical = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| canonical).ok_or(ProxyHeaderError::BadAddress)
}

/// The TLVs that are left to read.
struct Tlvs<'a>(&'a [u8]);

impl<'a> Tlvs<'a> {
    fn next_tlv(&mut self) -> Result<Option<Tlv<'a>>, ProxyHeaderError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let (&[kind, high, low], rest) = self.0.split_first_chunk::<TLV_HEADER_BYTES>().ok_or(ProxyHeaderError::BadTlv)?;
        let length = usize::from(u16::from_be_bytes([high, low]));
        let (value, rest) = rest.split_at_checked(length).ok_or(ProxyHeaderError::BadTlv)?;
        self.0 = rest;
        Ok(Some(Tlv { kind, value }))
    }
}

struct Tlv<'a> {
    kind: u8,
    value: &'a [u8],
}

/// `value` must be shorter than 64 KiB.
fn push_tlv(out: &mut Vec<u8>, kind: u8, value: &[u8]) {
    let length = u16::try_from(value.len()).expect("no attribute is written that is longer than its bound");
    out.push(kind);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(value);
}

/// Compares the checksum, if there is one, with that of `header` with zeros in its place. `tlvs` are the header's last
/// bytes.
fn check_checksum(header: &[u8], mut tlvs: Tlvs<'_>) -> Result<(), ProxyHeaderError> {
    let mut found = None;
    while let Some(Tlv { kind, value }) = tlvs.next_tlv()? {
        if kind == TYPE_CRC32C {
            let sent = <[u8; CHECKSUM_BYTES]>::try_from(value).map_err(|_| ProxyHeaderError::BadChecksum)?;
            set(&mut found, (u32::from_be_bytes(sent), tlvs.0))?;
        }
    }
    let Some((sent, behind)) = found else { return Ok(()) };
    let in_front = header.len().saturating_sub(behind.len() + CHECKSUM_BYTES);
    let in_front = header.get(..in_front).unwrap_or_default();
    if crc32c(&[in_front, &[0; CHECKSUM_BYTES], behind]) == sent { Ok(()) } else { Err(ProxyHeaderError::BadChecksum) }
}

/// The common name in an SSL TLV, if there was a certificate and the sender verified it. Without those two it is only
/// what the client likes to be called.
fn verified_name(ssl: &[u8]) -> Result<Option<String>, ProxyHeaderError> {
    let (&[client, verify @ ..], tlvs) = ssl.split_first_chunk::<SSL_FIXED_BYTES>().ok_or(ProxyHeaderError::BadTlv)?;
    let mut tlvs = Tlvs(tlvs);
    let mut name = None;
    while let Some(Tlv { kind, value }) = tlvs.next_tlv()? {
        if kind == SUBTYPE_SSL_CN && !value.is_empty() {
            set(&mut name, read_text(value)?)?;
        }
    }
    let verified = client & (CLIENT_CERT_CONN | CLIENT_CERT_SESS) != 0 && verify == [0; 4];
    Ok(name.filter(|_| verified))
}

/// Sensor and session out of our own TLV, or None if it is not what a skyway writes.
fn read_skyway(value: &[u8]) -> Option<(&str, &str)> {
    let (&version, rest) = value.split_first()?;
    let (sensor, rest) = split_text(rest)?;
    let (session, rest) = split_text(rest)?;
    let good = version == SKYWAY_VERSION && rest.is_empty() && is_sensor_name(sensor) && is_session_id(session);
    if good { Some((sensor, session)) } else { None }
}

/// Text with one byte of length in front, and what follows it.
fn split_text(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (&length, rest) = bytes.split_first()?;
    let (text, rest) = rest.split_at_checked(length.into())?;
    Some((str::from_utf8(text).ok()?, rest))
}

fn read_text(value: &[u8]) -> Result<String, ProxyHeaderError> {
    let text = str::from_utf8(value).ok().filter(|text| is_text(text));
    text.map(str::to_owned).ok_or(ProxyHeaderError::BadAttribute)
}

fn is_text(text: &str) -> bool {
    (1..=MAX_TEXT_BYTES).contains(&text.len()) && !text.chars().any(char::is_control)
}

fn read_vpc_endpoint(id: &[u8]) -> Result<String, ProxyHeaderError> {
    let id = str::from_utf8(id).ok().filter(|id| is_vpc_endpoint(id));
    id.map(str::to_owned).ok_or(ProxyHeaderError::BadAttribute)
}

fn is_vpc_endpoint(id: &str) -> bool {
    (1..=MAX_TEXT_BYTES).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// Fills a place that may be filled once.
fn set<T>(place: &mut Option<T>, value: T) -> Result<(), ProxyHeaderError> {
    if place.replace(value).is_some() { Err(ProxyHeaderError::DuplicateAttribute) } else { Ok(()) }
}

/// CRC32c (Castagnoli) of the parts as if they were one: "123456789" gives 0xe3069283.
fn crc32c(parts: &[&[u8]]) -> u32 {
    let bytes = parts.iter().copied().flatten();
    !bytes.fold(u32::MAX, |crc, byte| {
        let [low, ..] = crc.to_le_bytes();
        CRC32C_TABLE[usize::from(low ^ byte)] ^ (crc >> 8)
    })
}

/// The remainder of each byte, bits reversed.
static CRC32C_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < table.len() {
        let mut remainder = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            remainder = if remainder & 1 == 1 { (remainder >> 1) ^ CASTAGNOLI } else { remainder >> 1 };
            bit += 1;
        }
        table[byte] = remainder;
        byte += 1;
    }
    table
};

/// RFC 3720 §12.1's polynomial 0x1edc6f41, bits reversed.
const CASTAGNOLI: u32 = 0x82f6_3b78;

// §2.1: version 1.
const LINE_START: &[u8] = b"PROXY ";
const UNKNOWN: &[u8] = b"UNKNOWN";
/// With the CRLF: the longest that the standard allows, an UNKNOWN with two IPv6 addresses.
const MAX_LINE_BYTES: usize = 107;
const CRLF_BYTES: usize = 2;

// §2.2: version 2.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const FIXED_BYTES: usize = 16;
const VERSION_2: u8 = 2;
const COMMAND_LOCAL: u8 = 0;
const COMMAND_PROXY: u8 = 1;
const FAMILY_UNSPECIFIED: u8 = 0;
const FAMILY_IPV4: u8 = 1;
const FAMILY_IPV6: u8 = 2;
const FAMILY_UNIX: u8 = 3;
const TRANSPORT_UNSPECIFIED: u8 = 0;
const TRANSPORT_STREAM: u8 = 1;
const TRANSPORT_DATAGRAM: u8 = 2;
const IPV4_ADDRESS_BYTES: usize = 2 * (4 + 2);
const IPV6_ADDRESS_BYTES: usize = 2 * (16 + 2);
const UNIX_ADDRESS_BYTES: usize = 2 * 108;
/// The longest addresses, and 2 KiB of TLVs: load balancers send some 100 bytes of them, and a certificate's name and
/// an authority at their longest take 500. The length field could ask us to keep 64 KiB.
const MAX_BLOCK_BYTES: usize = UNIX_ADDRESS_BYTES + 2048;

// §2.2: TLVs.
const TLV_HEADER_BYTES: usize = 3;
const TYPE_AUTHORITY: u8 = 0x02;
const TYPE_CRC32C: u8 = 0x03;
const TYPE_UNIQUE_ID: u8 = 0x05;
const TYPE_SSL: u8 = 0x20;
const SUBTYPE_SSL_CN: u8 = 0x22;
/// The client showed a certificate on this connection, or once in this TLS session.
const CLIENT_CERT_CONN: u8 = 0x02;
const CLIENT_CERT_SESS: u8 = 0x04;
/// The flags of the client, and four bytes that are zero if its certificate was verified.
const SSL_FIXED_BYTES: usize = 5;
const CHECKSUM_BYTES: usize = 4;
const MAX_UNIQUE_ID_BYTES: usize = 128;
/// Of an authority or a common name: the longest host name (RFC 1035 §2.3.4), and HAProxy's limit.
const MAX_TEXT_BYTES: usize = 255;

// The range 0xe0 to 0xef is everybody's.
const TYPE_GCP: u8 = 0xe0;
const TYPE_AWS: u8 = 0xea;
const SUBTYPE_AWS_VPC_ENDPOINT: u8 = 0x01;
const TYPE_AZURE: u8 = 0xee;
const SUBTYPE_AZURE_LINK_ID: u8 = 0x01;
/// Ours: a version, then sensor and session, each with one byte of length in front.
const TYPE_SKYWAY: u8 = 0xe5;
const SKYWAY_VERSION: u8 = 1;
const MAX_SKYWAY_TEXT_BYTES: usize = 64;

#[cfg(test)]
mod tests;
