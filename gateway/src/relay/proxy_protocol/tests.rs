//! Good and bad headers of both versions. Each is read at once, byte by byte and in two pieces at every place, and must
//! give the same answer each time. Checksums that are written out were computed by another program, or are a cloud's.

use std::iter;

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

const SOURCE: &str = "192.0.2.7:40000";
const DESTINATION: &str = "198.51.100.1:443";
/// The same two, as version 2 has them.
const IPV4_ADDRESSES: [u8; 12] = [192, 0, 2, 7, 198, 51, 100, 1, 0x9c, 0x40, 0x01, 0xbb];

const TCP4: u8 = 0x11;

#[test]
fn reads_version_1() {
    for (line, source, destination) in [
        ("PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\r\n", SOURCE, DESTINATION),
        ("PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", "255.255.255.255:65535", "255.255.255.255:65535"),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 0 0\r\n", "1.2.3.4:0", "5.6.7.8:0"),
        ("PROXY TCP6 2001:db8::7 2001:DB8:0:0:0:0:0:1 40000 443\r\n", "[2001:db8::7]:40000", "[2001:db8::1]:443"),
        ("PROXY TCP6 ::ffff:192.0.2.7 ::ffff:c633:6401 40000 443\r\n", SOURCE, DESTINATION),
        ("PROXY TCP6 ::ffff:192.0.2.7 2001:db8::1 40000 443\r\n", SOURCE, "[2001:db8::1]:443"),
    ] {
        let with_data = format!("{line}CONNECT hub.example:443 HTTP/1.1\r\n");
        let header = ProxyHeader::proxied(address(source), address(destination), Attributes::default());
        assert_eq!(complete(with_data.as_bytes()), ProxyHeader { length: line.len(), ..header }, "{line:?}");
    }
}

#[test]
fn takes_no_address_from_an_unknown_line() {
    for line in [
        &b"PROXY UNKNOWN\r\n"[..],
        b"PROXY UNKNOWN \r\n",
        b"PROXY UNKNOWN 192.0.2.7 198.51.100.1 40000 443\r\n",
        b"PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n",
        b"PROXY UNKNOWN \0\xff  anything\r\n",
    ] {
        assert_eq!(complete(line), ProxyHeader { length: line.len(), command: Command::Proxied, ..ProxyHeader::local() });
    }
}

#[test]
fn refuses_a_bad_line() {
    for (line, reason) in [
        ("PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\n", "proxy_header_bad_line"),
        ("PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\rX", "proxy_header_bad_line"),
        ("PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\r\r\n", "proxy_header_bad_line"),
        ("PROXY UNKNOWN\n", "proxy_header_bad_line"),
        ("PROXY \r\n", "proxy_header_bad_line"),
        ("PROXY TCP4\r\n", "proxy_header_bad_line"),
        ("PROXY UNKNOWNS\r\n", "proxy_header_bad_line"),
        ("PROXY TCP4 192.0.2.7 198.51.100.1 40000\r\n", "proxy_header_bad_line"),
        ("PROXY TCP4 192.0.2.7 198.51.100.1 40000 443 \r\n", "proxy_header_bad_line"),
        ("PROXY TCP4 192.0.2.7 198.51.100.1 40000 443 443\r\n", "proxy_header_bad_line"),
        ("PROXY  TCP4 192.0.2.7 198.51.100.1 40000 443\r\n", "proxy_header_bad_line"),
        ("PROXY TCP4\t192.0.2.7 198.51.100.1 40000 443\r\n", "proxy_header_bad_line"),
        ("PROXY UDP4 192.0.2.7 198.51.100.1 40000 443\r\n", "proxy_header_bad_family"),
        ("PROXY tcp4 192.0.2.7 198.51.100.1 40000 443\r\n", "proxy_header_bad_family"),
        ("PROXY TCP5 192.0.2.7 198.51.100.1 40000 443\r\n", "proxy_header_bad_family"),
    ] {
        assert_eq!(rejected(line.as_bytes()).reason(), reason, "{line:?}");
    }
    assert_eq!(rejected(b"PROXY TCP4 192.0.2.\xff 198.51.100.1 40000 443\r\n"), ProxyHeaderError::BadLine);
}

#[test]
fn refuses_a_bad_address_in_a_line() {
    for (family, source) in [
        ("TCP4", "2001:db8::7"),
        ("TCP4", "192.0.2"),
        ("TCP4", "192.0.2.256"),
        ("TCP4", "192.0.02.7"),
        ("TCP4", "192.0.2.7."),
        ("TCP4", "3221225991"),
        ("TCP4", "sensor.example"),
        ("TCP4", ""),
        ("TCP6", "192.0.2.7"),
        ("TCP6", "fe80::1%eth0"),
        ("TCP6", "fe80::1%1"),
        ("TCP6", "[2001:db8::7]"),
        ("TCP6", "2001:db8:::7"),
        ("TCP6", "1:2:3:4:5:6:7"),
        ("TCP6", "1:2:3:4:5:6:7:8:9"),
        ("TCP6", "2001:db8::00007"),
    ] {
        let destination = if family == "TCP4" { "198.51.100.1" } else { "2001:db8::1" };
        for line in
            [format!("PROXY {family} {source} {destination} 40000 443\r\n"), format!("PROXY {family} {destination} {source} 40000 443\r\n")]
        {
            assert_eq!(rejected(line.as_bytes()), ProxyHeaderError::BadAddress, "{line:?}");
        }
    }
    for port in ["65536", "+443", "-1", "0443", "00", "https", "", "99999999999999999999"] {
        for line in
            [format!("PROXY TCP4 192.0.2.7 198.51.100.1 {port} 443\r\n"), format!("PROXY TCP4 192.0.2.7 198.51.100.1 40000 {port}\r\n")]
        {
            assert_eq!(rejected(line.as_bytes()), ProxyHeaderError::BadAddress, "{line:?}");
        }
    }
}

#[test]
fn bounds_a_line() {
    let line = |length: usize| format!("PROXY UNKNOWN {}\r\n", "x".repeat(length - "PROXY UNKNOWN \r\n".len()));
    assert_eq!(complete(line(107).as_bytes()).length, 107);
    assert_eq!(rejected(line(108).as_bytes()), ProxyHeaderError::TooLong);

    let endless = line(1_000);
    assert_eq!(read(&endless.as_bytes()[..106]), HeadProgress::NeedMore);
    assert_eq!(rejected(&endless.as_bytes()[..107]), ProxyHeaderError::TooLong);
}

#[test]
fn tells_a_missing_header_by_the_first_byte_that_is_not_its() {
    for stream in [
        &b"\x16\x03\x01\x02\x00\x01"[..],
        b"GET / HTTP/1.1\r\n",
        b"CONNECT hub.example:443 HTTP/1.1\r\n",
        b"PO",
        b"PU",
        b"PRI",
        b"PROP",
        b"proxy TCP4",
        b"PROXY\r\n",
        b"PROXY\t",
        b" PROXY",
        b"\n",
        b"\0",
        b"\r\n\r\nX",
        b"\r\n\r\n\0\r\nQUIT\r",
    ] {
        assert_eq!(rejected(stream).reason(), "proxy_header_missing", "{stream:?}");
    }
}

#[test]
fn reads_version_2() {
    let ipv6 = hex("20010db8000000000000000000000007 20010db8000000000000000000000001 9c40 01bb");
    let mapped = hex("00000000000000000000ffffc0000207 20010db8000000000000000000000001 9c40 01bb");
    for (family, addresses, source, destination) in [
        (TCP4, IPV4_ADDRESSES.to_vec(), SOURCE, DESTINATION),
        (0x21, ipv6, "[2001:db8::7]:40000", "[2001:db8::1]:443"),
        (0x21, mapped, SOURCE, "[2001:db8::1]:443"),
    ] {
        let stream = proxied(family, &addresses, &[]);
        let header = ProxyHeader::proxied(address(source), address(destination), Attributes::default());
        let expected = ProxyHeader { length: stream.len(), ..header };
        let with_data = [stream.as_slice(), b"\x16\x03\x01\x02\x00"].concat();
        assert_eq!(complete(&with_data), expected, "{source}");
    }
}

#[test]
fn takes_no_address_but_the_attributes_where_no_tcp_address_is() {
    let authority = tlv(TYPE_AUTHORITY, b"hub.example");
    for (family, address_bytes) in [(0x00, 0), (0x01, 0), (0x10, 12), (0x20, 36), (0x30, 216), (0x31, 216)] {
        let header = complete(&proxied(family, &vec![0x55; address_bytes], &authority));
        assert_eq!((header.command, header.source, header.destination), (Command::Proxied, None, None), "{family:#04x}");
        assert_eq!(header.attributes.authority.as_deref(), Some("hub.example"), "{family:#04x}");
    }
}

#[test]
fn takes_nothing_from_the_unspecified_address() {
    let header = complete(&proxied(TCP4, &[0, 0, 0, 0, 198, 51, 100, 1, 0x9c, 0x40, 0x01, 0xbb], &[]));
    assert_eq!((header.source, header.destination), (None, Some(address(DESTINATION))));
    assert_eq!(complete(b"PROXY TCP6 :: ::ffff:0.0.0.0 40000 443\r\n").source, None);
}

/// As an AWS load balancer was seen to send it before a health check: it names TCP over IPv4, and there are no
/// addresses but a checksum and padding (kubernetes/kubernetes#57250).
#[test]
fn reads_the_health_check_of_an_aws_load_balancer() {
    let mut stream = hex("0d0a0d0a000d0a515549540a 20 11 0054 03 0004 bce5951f 04 004a");
    stream.resize(100, 0);
    let with_data = [stream.as_slice(), b"GET / HTTP/1.1\r\n"].concat();
    assert_eq!(complete(&with_data), ProxyHeader { length: 100, ..ProxyHeader::local() });

    // Its checksum, although nothing of a local header is looked at, shows whose byte order ours has.
    stream[19..23].fill(0);
    assert_eq!(crc32c(&[&stream]), 0xbce5_951f);
}

#[test]
fn ignores_what_a_local_header_holds() {
    for (family, block) in [
        (0x00, &b""[..]),
        (TCP4, &IPV4_ADDRESSES),
        (0x12, &IPV4_ADDRESSES), // UDP
        (0xff, b"\x02"),
        (0x00, b"\x02\xff\xff"),
        (0x00, b"\x03\0\x04\x01\x02\x03\x04"), // a wrong checksum
    ] {
        let mut stream = proxied(family, block, &[]);
        stream[12] = 0x20;
        assert_eq!(complete(&stream), ProxyHeader { length: 16 + block.len(), ..ProxyHeader::local() }, "{stream:?}");
    }
}

#[test]
fn refuses_what_version_2_does_not_have() {
    for (rest, reason) in [
        (&[0x11][..], "proxy_header_bad_version"),
        (&[0x01], "proxy_header_bad_version"),
        (&[0x30], "proxy_header_bad_version"),
        (b"\r", "proxy_header_bad_version"),
        (&[0x22], "proxy_header_bad_command"),
        (&[0x2f], "proxy_header_bad_command"),
        (&[0x21, 0x02], "proxy_header_datagram"),
        (&[0x21, 0x12], "proxy_header_datagram"),
        (&[0x21, 0x22], "proxy_header_datagram"),
        (&[0x21, 0x32], "proxy_header_datagram"),
        (&[0x21, 0x03], "proxy_header_bad_family"),
        (&[0x21, 0x1f], "proxy_header_bad_family"),
        (&[0x21, 0x40], "proxy_header_bad_family"),
        (&[0x21, 0x41], "proxy_header_bad_family"),
        (&[0x21, 0x42], "proxy_header_bad_family"),
        (&[0x21, 0xf1], "proxy_header_bad_family"),
    ] {
        let stream = [SIGNATURE.as_slice(), rest].concat();
        assert_eq!(rejected(&stream).reason(), reason, "{rest:?}");
    }
}

#[test]
fn refuses_a_header_that_is_too_short_for_its_addresses() {
    for (family, address_bytes) in [(TCP4, 0), (TCP4, 11), (0x10, 11), (0x21, 12), (0x21, 35), (0x31, 215)] {
        let stream = proxied(family, &vec![1; address_bytes], &[]);
        let with_data = [stream.as_slice(), &[1; 300]].concat();
        assert_eq!(rejected(&with_data).reason(), "proxy_header_short_addresses", "{family:#04x} {address_bytes}");
    }
}

#[test]
fn bounds_version_2() {
    let padding = |length: usize| tlv(0x04, &vec![0; length - IPV4_ADDRESS_BYTES - TLV_HEADER_BYTES]);
    let longest = proxied(TCP4, &IPV4_ADDRESSES, &padding(216 + 2048));
    assert_eq!(complete(&longest).length, MAX_HEADER_BYTES);

    // Told by the length field, not by what comes after it.
    let too_long = proxied(TCP4, &IPV4_ADDRESSES, &padding(216 + 2049));
    let mut too_long = too_long[..FIXED_BYTES].to_vec();
    assert_eq!(rejected(&too_long).reason(), "proxy_header_too_long");
    too_long[12] = 0x20;
    assert_eq!(rejected(&too_long).reason(), "proxy_header_too_long");
}

#[test]
fn refuses_a_tlv_that_runs_past_the_end() {
    let ssl = |rest: &[u8]| tlv(TYPE_SSL, &[&[CLIENT_CERT_CONN, 0, 0, 0, 0][..], rest].concat());
    let name = tlv(SUBTYPE_SSL_CN, b"line-3");
    for tlvs in [
        vec![0x02],
        vec![0x02, 0],
        vec![0x02, 0, 1],
        vec![0x02, 0, 5, b'a', b'b', b'c', b'd'],
        vec![0x04, 0xff, 0xff],
        vec![0xf0, 1, 0],
        [tlv(TYPE_AUTHORITY, b"hub.example"), vec![0]].concat(),
        // SSL: not even its fixed part, and lengths inside that leave it though not the header.
        tlv(TYPE_SSL, &[CLIENT_CERT_CONN]),
        tlv(TYPE_SSL, &[CLIENT_CERT_CONN, 0, 0, 0]),
        ssl(&[SUBTYPE_SSL_CN]),
        ssl(&[SUBTYPE_SSL_CN, 0]),
        ssl(&[SUBTYPE_SSL_CN, 0, 7, b'l', b'i', b'n', b'e', b'-', b'3']),
        [ssl(&[SUBTYPE_SSL_CN, 0, 4, b'a']), tlv(TYPE_AUTHORITY, b"hub.example")].concat(),
        ssl(&[name.as_slice(), &[0x21]].concat()),
        ssl(&[0x21, 0xff, 0xff, b'T']),
    ] {
        let stream = proxied(TCP4, &IPV4_ADDRESSES, &tlvs);
        assert_eq!(rejected(&stream).reason(), "proxy_header_bad_tlv", "{tlvs:?}");
        // Nor may it run on into what follows the header.
        let with_data = [stream.as_slice(), b"more of the stream"].concat();
        assert_eq!(rejected(&with_data).reason(), "proxy_header_bad_tlv", "{tlvs:?}");
    }
}

/// Addresses, a checksum, the VPC endpoint, and padding to the length of AWS's headers.
fn from_aws() -> Vec<u8> {
    let mut stream = hex("0d0a0d0a000d0a515549540a 21 11 0054 0a000107 0a000209 9c40 0c38 03 0004 f9e4f41d
         ea 0017 01 76 70 63 65 2d 30 38 64 32 62 66 31 35 66 61 63 35 30 30 31 63 39 04 0024");
    stream.resize(100, 0);
    stream
}

#[test]
fn decodes_the_vpc_endpoint_of_aws() {
    let header = complete(&from_aws());
    let attributes = Attributes { aws_vpc_endpoint: Some("vpce-08d2bf15fac5001c9".to_owned()), ..Attributes::default() };
    let expected = ProxyHeader::proxied(address("10.0.1.7:40000"), address("10.0.2.9:3128"), attributes);
    assert_eq!(header, ProxyHeader { length: 100, ..expected });
}

/// The documentation gives the layout: 0x01, then the number with its least significant byte first.
#[test]
fn decodes_the_link_id_of_azure() {
    let stream = hex("0d0a0d0a000d0a515549540a 21 11 0014 0a010004 0a010005 c350 0c38 ee 0005 01 c1450021");
    let attributes = Attributes { azure_link_id: Some(0x2100_45c1), ..Attributes::default() };
    let expected = ProxyHeader::proxied(address("10.1.0.4:50000"), address("10.1.0.5:3128"), attributes);
    assert_eq!(complete(&stream), ProxyHeader { length: stream.len(), ..expected });
}

/// The capture in Google's codelab on Private Service Connect with an internal load balancer.
#[test]
fn decodes_the_connection_id_of_google() {
    let stream = hex("0d0a0d0a000d0a515549540a 21 11 0017 0a003c02 0a003c64 8138 0050 e0 0008 009b34d70a003c64");
    let attributes = Attributes { gcp_psc_connection: Some(43_686_719_580_552_292), ..Attributes::default() };
    let expected = ProxyHeader::proxied(address("10.0.60.2:33080"), address("10.0.60.100:80"), attributes);
    assert_eq!(complete(&stream), ProxyHeader { length: 39, ..expected });
}

#[test]
fn checks_the_checksum() {
    // Addresses, the checksum itself, the value of the endpoint, the padding.
    for at in (16..28).chain(31..35).chain(38..61).chain(64..100) {
        for bit in 0..8 {
            let mut stream = from_aws();
            stream[at] ^= 1 << bit;
            assert_eq!(rejected_at_once(&stream).reason(), "proxy_header_bad_checksum", "bit {bit} of byte {at}");
        }
    }
    for value in [&b""[..], &[0; 3], &[0; 5]] {
        let stream = proxied(TCP4, &IPV4_ADDRESSES, &tlv(TYPE_CRC32C, value));
        assert_eq!(rejected(&stream).reason(), "proxy_header_bad_checksum", "{value:?}");
    }
    assert_eq!(crc32c(&[b"123456789"]), 0xe306_9283);
    assert_eq!(crc32c(&[b"1234", b"", b"56789"]), 0xe306_9283);
    // RFC 3720 §B.4: zeros, ones, ascending bytes.
    let ascending: Vec<u8> = (0..32).collect();
    assert_eq!(crc32c(&[&[0; 32]]), 0x8a91_36aa);
    assert_eq!(crc32c(&[&[0xff; 32]]), 0x62a8_ab43);
    assert_eq!(crc32c(&[&ascending]), 0x46dd_794e);
}

#[test]
fn believes_only_a_verified_certificate() {
    for (client, verify, believed) in [
        (0x07u8, [0u8; 4], true),
        (0x03, [0; 4], true),
        (0x05, [0; 4], true),
        (0x01, [0; 4], false), // TLS without a certificate
        (0x00, [0; 4], false),
        (0x07, [0, 0, 0, 1], false),
        (0x07, [1, 0, 0, 0], false),
        (0x07, [0xff; 4], false),
    ] {
        let ssl = [&[client][..], &verify, &tlv(0x21, b"TLSv1.3"), &tlv(SUBTYPE_SSL_CN, b"line-3"), &tlv(0x23, b"")].concat();
        let header = complete(&proxied(TCP4, &IPV4_ADDRESSES, &tlv(TYPE_SSL, &ssl)));
        let expected = if believed { Some("line-3") } else { None };
        assert_eq!(header.attributes.client_certificate_name.as_deref(), expected, "{client:#04x} {verify:?}");
    }
    let nameless = tlv(TYPE_SSL, &[0x07, 0, 0, 0, 0]);
    assert_eq!(complete(&proxied(TCP4, &IPV4_ADDRESSES, &nameless)).attributes, Attributes::default());
}

#[test]
fn refuses_what_is_said_twice() {
    let name = tlv(SUBTYPE_SSL_CN, b"line-3");
    let ssl = [&[CLIENT_CERT_CONN, 0, 0, 0, 0][..], &name].concat();
    let unverified = [&[CLIENT_CERT_CONN, 0, 0, 0, 1][..], &name, &name].concat();
    for (first, second) in [
        (tlv(TYPE_AUTHORITY, b"hub.example"), tlv(TYPE_AUTHORITY, b"evil.example")),
        (tlv(TYPE_UNIQUE_ID, b"1"), tlv(TYPE_UNIQUE_ID, b"2")),
        (tlv(TYPE_CRC32C, &[0; 4]), tlv(TYPE_CRC32C, &[1; 4])),
        (tlv(TYPE_SSL, &ssl), tlv(TYPE_SSL, &ssl)),
        (tlv(TYPE_SSL, &[0; 5]), tlv(TYPE_SSL, &ssl)),
        (tlv(TYPE_SSL, &unverified), Vec::new()),
        (tlv(TYPE_AWS, b"\x01vpce-1"), tlv(TYPE_AWS, b"\x01vpce-2")),
        (tlv(TYPE_AZURE, &[1, 1, 0, 0, 0]), tlv(TYPE_AZURE, &[1, 2, 0, 0, 0])),
        (tlv(TYPE_GCP, &[0; 8]), tlv(TYPE_GCP, &[1; 8])),
        (tlv(TYPE_SKYWAY, b"\x01\x01a\x01b"), tlv(TYPE_SKYWAY, b"\x01\x01c\x01d")),
    ] {
        for tlvs in [[first.as_slice(), &second].concat(), [first.as_slice(), &tlv(0x04, b"\0"), &second].concat()] {
            let error = rejected(&proxied(TCP4, &IPV4_ADDRESSES, &tlvs));
            assert_eq!(error.reason(), "proxy_header_duplicate_attribute", "{tlvs:?}");
        }
    }
}

#[test]
fn refuses_impossible_values() {
    let bad_name = [&[CLIENT_CERT_CONN, 0, 0, 0, 0][..], &tlv(SUBTYPE_SSL_CN, b"line\n3")].concat();
    for (kind, value) in [
        (TYPE_AUTHORITY, &b"\xff"[..]),
        (TYPE_AUTHORITY, b"hub.example\0.evil.example"),
        (TYPE_AUTHORITY, b"hub.example\r\n"),
        (TYPE_AUTHORITY, &[b'a'; 256]),
        (TYPE_UNIQUE_ID, &[0; 129]),
        (TYPE_SSL, &bad_name),
        (TYPE_AWS, b"\x01"),
        (TYPE_AWS, b"\x01vpce_1"),
        (TYPE_AWS, b"\x01vpce-1\0"),
        (TYPE_AWS, b"\x01\xff"),
        (TYPE_AZURE, &[1, 1, 2, 3]),
        (TYPE_AZURE, &[1, 1, 2, 3, 4, 5]),
    ] {
        let error = rejected(&proxied(TCP4, &IPV4_ADDRESSES, &tlv(kind, value)));
        assert_eq!(error.reason(), "proxy_header_bad_attribute", "{kind:#04x} {value:?}");
    }
}

#[test]
fn reads_longest_values() {
    let tlvs = [
        tlv(TYPE_AUTHORITY, &[b'a'; 255]),
        tlv(TYPE_UNIQUE_ID, &[0xff; 128]),
        tlv(TYPE_SKYWAY, &[&[1, 64][..], &[b'~'; 64], &[64], &[b'_'; 64]].concat()),
    ];
    let attributes = complete(&proxied(TCP4, &IPV4_ADDRESSES, &tlvs.concat())).attributes;
    assert_eq!(attributes.authority, Some("a".repeat(255)));
    assert_eq!(attributes.unique_id, Some(vec![0xff; 128]));
    assert_eq!((attributes.sensor, attributes.session), (Some("~".repeat(64)), Some("_".repeat(64))));
}

#[test]
fn skips_what_is_not_ours_to_read() {
    for (kind, value) in [
        (0x01, &b"http/1.1"[..]), // ALPN
        (0x04, &[0; 300]),        // padding
        (0x30, b"blue"),          // network namespace
        (0x22, b"line-3"),        // a name outside of SSL
        (0xea, b"\x02\xff"),
        (0xee, &[2]),
        (0xe0, b"7 bytes"),
        (0xe0, b"and nine."),
        (0xe1, b"\xff"),
        (0xf0, b"experiment"),
        (0xff, b"future"),
        // HAProxy's way to say nothing.
        (TYPE_AUTHORITY, b""),
        (TYPE_UNIQUE_ID, b""),
        (TYPE_SSL, b""),
        (TYPE_AWS, b""),
        (TYPE_AZURE, b""),
        (TYPE_GCP, b""),
        (TYPE_SKYWAY, b""),
    ] {
        let tlvs = [tlv(kind, value), tlv(kind, value)].concat();
        let header = complete(&proxied(TCP4, &IPV4_ADDRESSES, &tlvs));
        assert_eq!(header.attributes, Attributes::default(), "{kind:#04x} {value:?}");
        assert_eq!(header.source, Some(address(SOURCE)), "{kind:#04x} {value:?}");
    }
}

#[test]
fn refuses_a_sensor_that_no_skyway_names() {
    let long_sensor = [&[1, 65][..], &[b'a'; 65], b"\x01b"].concat();
    let long_session = [b"\x01\x01a".as_slice(), &[65], &[b'b'; 65]].concat();
    for value in [
        &b"\x01"[..],
        b"\x01\x01a",
        b"\x01\x01a\x02b",
        b"\x01\x01a\x01b\0", // more behind
        b"\x02\x01a\x01b",   // another version
        b"\x01\0\x01b",
        b"\x01\x01a\0",
        b"\x01\x03a b\x01b",
        b"\x01\x02\xc3\xbc\x01b",
        b"\x01\x01\xff\x01b",
        b"\x01\x01\n\x01b",
        b"\x01\x01a\x01/",
        b"\x01\x01a\x01 ",
        &long_sensor,
        &long_session,
    ] {
        let error = rejected(&proxied(TCP4, &IPV4_ADDRESSES, &tlv(TYPE_SKYWAY, value)));
        assert_eq!(error.reason(), "proxy_header_bad_attribute", "{value:?}");
    }
}

#[test]
fn writes_version_2() {
    let mut out = b"before".to_vec();
    from_skyway().encode_v2(&mut out);
    let expected = hex("0d0a0d0a000d0a515549540a 21 11 0025 c0000207 c6336401 9c40 01bb
         e5 000f 01 06 6c696e652d33 06 61312e622d32 03 0004 580d0fe5");
    assert_eq!(out, [b"before".as_slice(), &expected].concat());
    assert_eq!(complete(&expected), ProxyHeader { length: expected.len(), ..from_skyway() });

    let mut out = Vec::new();
    ProxyHeader { command: Command::Local, ..from_skyway() }.encode_v2(&mut out);
    assert_eq!(out, hex("0d0a0d0a000d0a515549540a 20 00 0000"));
}

#[test]
fn writes_version_1() {
    let header = |source: Option<&str>, destination: Option<&str>| ProxyHeader {
        source: source.map(address),
        destination: destination.map(address),
        ..from_skyway()
    };
    for (header, line) in [
        (header(Some(SOURCE), Some(DESTINATION)), "PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\r\n"),
        (header(Some("[2001:db8::7]:1"), Some("[2001:db8::1]:0")), "PROXY TCP6 2001:db8::7 2001:db8::1 1 0\r\n"),
        (header(Some(SOURCE), Some("[2001:db8::1]:443")), "PROXY TCP6 ::ffff:192.0.2.7 2001:db8::1 40000 443\r\n"),
        (header(Some("[::ffff:192.0.2.7]:40000"), Some(DESTINATION)), "PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\r\n"),
        (header(Some(SOURCE), None), "PROXY TCP4 192.0.2.7 0.0.0.0 40000 0\r\n"),
        (header(Some("[2001:db8::7]:1"), None), "PROXY TCP6 2001:db8::7 :: 1 0\r\n"),
        (header(None, None), "PROXY UNKNOWN\r\n"),
        (ProxyHeader { command: Command::Local, ..from_skyway() }, "PROXY UNKNOWN\r\n"),
    ] {
        assert_eq!(header.encode_v1(), line);
    }
}

#[test]
fn leaves_out_what_no_reader_would_take() {
    let addresses = ProxyHeader { attributes: Attributes::default(), ..from_skyway() };
    let mut expected = Vec::new();
    addresses.encode_v2(&mut expected);
    for attributes in [
        Attributes { authority: Some("a".repeat(100_000)), ..Attributes::default() },
        Attributes { authority: Some("hub.example\0".to_owned()), ..Attributes::default() },
        Attributes { unique_id: Some(vec![0; 129]), ..Attributes::default() },
        Attributes { unique_id: Some(Vec::new()), ..Attributes::default() },
        Attributes { client_certificate_name: Some(String::new()), ..Attributes::default() },
        Attributes { aws_vpc_endpoint: Some("vpce 1".to_owned()), ..Attributes::default() },
        Attributes { sensor: Some("line-3".to_owned()), ..Attributes::default() },
        Attributes { session: Some("1".to_owned()), ..Attributes::default() },
        Attributes { sensor: Some("line 3".to_owned()), session: Some("1".to_owned()), ..Attributes::default() },
        Attributes { sensor: Some("line-3".to_owned()), session: Some("1".repeat(65)), ..Attributes::default() },
    ] {
        let mut out = Vec::new();
        ProxyHeader { attributes: attributes.clone(), ..addresses.clone() }.encode_v2(&mut out);
        assert_eq!(out, expected, "{attributes:?}");
    }
}

#[test]
fn needs_more_until_the_last_byte() {
    assert_eq!(read(b""), HeadProgress::NeedMore);
    for whole in [from_aws(), b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\r\n".to_vec(), proxied(0, b"", b"")] {
        for end in 0..whole.len() {
            assert_eq!(read_in_pieces(&whole[..end], iter::empty()), HeadProgress::NeedMore, "{end}");
        }
        assert_eq!(complete(&whole).length, whole.len());
    }
}

#[test]
fn stands_by_its_answer() {
    let mut reader = ProxyHeaderReader::new();
    let first = reader.handle_bytes(&from_aws());
    assert_eq!(reader.handle_bytes(b"PROXY UNKNOWN\r\n"), first);

    let mut reader = ProxyHeaderReader::new();
    assert_eq!(reader.handle_bytes(b"GET"), HeadProgress::Rejected(ProxyHeaderError::Missing));
    assert_eq!(reader.handle_bytes(&from_aws()), HeadProgress::Rejected(ProxyHeaderError::Missing));
}

proptest! {
    #[test]
    fn what_we_write_in_version_2_is_what_we_read(header in headers(), data in prop::collection::vec(any::<u8>(), 0..20)) {
        let mut stream = Vec::new();
        header.encode_v2(&mut stream);
        let length = stream.len();
        stream.extend_from_slice(&data);
        let expected = ProxyHeader {
            length,
            source: header.source.map(canonical),
            destination: header.destination.map(canonical),
            ..header
        };
        prop_assert_eq!(read_in_pieces(&stream, iter::empty()), HeadProgress::Complete(expected));
    }

    #[test]
    fn what_we_write_in_version_1_is_what_we_read(header in headers(), data in prop::collection::vec(any::<u8>(), 0..20)) {
        let line = header.encode_v1();
        prop_assert!(line.len() <= 104, "{}", line);
        let stream = [line.as_bytes(), &data].concat();
        let expected = ProxyHeader {
            length: line.len(),
            source: header.source.map(canonical),
            destination: header.destination.map(canonical),
            attributes: Attributes::default(),
            ..header
        };
        prop_assert_eq!(read_in_pieces(&stream, iter::empty()), HeadProgress::Complete(expected));
    }

    #[test]
    fn a_header_in_pieces_reads_as_the_whole(
        stream in prop_oneof![strange_headers(), damaged_headers()],
        ends in prop::collection::vec(any::<Index>(), 0..20),
    ) {
        let at_once = read_in_pieces(&stream, iter::empty());
        let mut ends: Vec<usize> = ends.iter().map(|index| index.index(stream.len() + 1)).collect();
        ends.sort_unstable();
        prop_assert_eq!(&read_in_pieces(&stream, ends), &at_once);
        prop_assert_eq!(read_in_pieces(&stream, 0..stream.len()), at_once);
    }
}

/// Proxied streams of which anything may be known, and all of that can be sent.
fn headers() -> impl Strategy<Value = ProxyHeader> {
    let addresses = (prop::option::of(addresses()), prop::option::of(addresses()));
    let attributes = (
        prop::option::of("[a-z0-9.-]{1,255}"),
        prop::option::of(prop::collection::vec(any::<u8>(), 1..=128)),
        prop::option::of("[A-Za-z0-9-]{1,40}"),
        any::<Option<u32>>(),
        any::<Option<u64>>(),
        prop::option::of(("[!-~]{1,64}", "[0-9A-Za-z._-]{1,64}")),
        prop::option::of("\\PC{1,60}"),
    );
    (addresses, attributes).prop_map(|((source, destination), attributes)| {
        let (authority, unique_id, aws_vpc_endpoint, azure_link_id, gcp_psc_connection, skyway, client_certificate_name) = attributes;
        let (sensor, session) = skyway.unzip();
        let attributes = Attributes {
            authority,
            unique_id,
            aws_vpc_endpoint,
            azure_link_id,
            gcp_psc_connection,
            sensor,
            session,
            client_certificate_name,
        };
        ProxyHeader { length: 0, command: Command::Proxied, source, destination, attributes }
    })
}

/// IPv4, IPv6, and IPv4 in IPv6.
fn addresses() -> impl Strategy<Value = SocketAddr> {
    let ip = prop_oneof![
        any::<[u8; 4]>().prop_map(|octets| IpAddr::V4(Ipv4Addr::from(octets))),
        any::<[u8; 16]>().prop_map(|octets| IpAddr::V6(Ipv6Addr::from(octets))),
        any::<[u8; 4]>().prop_map(|octets| IpAddr::V6(Ipv4Addr::from(octets).to_ipv6_mapped())),
    ];
    let specified = ip.prop_filter("the unspecified address says nothing", |ip| !ip.to_canonical().is_unspecified());
    (specified, any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip, port))
}

/// What we write, with one byte changed.
fn damaged_headers() -> impl Strategy<Value = Vec<u8>> {
    (headers(), any::<Index>(), 1..=u8::MAX).prop_map(|(header, at, change)| {
        let mut stream = Vec::new();
        header.encode_v2(&mut stream);
        let at = at.index(stream.len());
        stream[at] ^= change;
        stream
    })
}

/// Noise, and headers put together from pieces that mostly do not belong together.
fn strange_headers() -> impl Strategy<Value = Vec<u8>> {
    let noise = || prop::collection::vec(any::<u8>(), 0..8);
    let fixed = (any::<bool>(), prop::sample::select(FAMILIES), 0..80u8).prop_map(|(local, family, length)| {
        let command = if local { 0x20 } else { 0x21 };
        [SIGNATURE.as_slice(), &[command, family, 0, length]].concat()
    });
    let start = prop_oneof![
        1 => noise(),
        3 => Just(LINE_START.to_vec()),
        1 => Just(SIGNATURE.to_vec()),
        5 => fixed,
    ];
    let piece = prop_oneof![
        4 => prop::sample::select(PIECES).prop_map(|piece| piece.as_bytes().to_vec()),
        4 => (prop::sample::select(KINDS), noise()).prop_map(|(kind, value)| tlv(kind, &value)),
        1 => Just(IPV4_ADDRESSES.to_vec()),
        1 => noise(),
    ];
    let rest = prop::collection::vec(piece, 0..10);
    (start, rest).prop_map(|(start, rest)| [start, rest.concat()].concat())
}

const FAMILIES: &[u8] = &[0x00, 0x01, 0x11, 0x12, 0x21, 0x31, 0x41, 0xff];

const KINDS: &[u8] = &[TYPE_AUTHORITY, TYPE_CRC32C, 0x04, TYPE_UNIQUE_ID, TYPE_SSL, TYPE_GCP, TYPE_AWS, TYPE_AZURE, TYPE_SKYWAY];

const PIECES: &[&str] = &["TCP4", "TCP6", "UNKNOWN", " ", " 192.0.2.7", " 2001:db8::7", " 443", "\r\n", "\r", "\n", "\0", "%eth0"];

fn from_skyway() -> ProxyHeader {
    let attributes = Attributes { sensor: Some("line-3".to_owned()), session: Some("a1.b-2".to_owned()), ..Attributes::default() };
    ProxyHeader::proxied(address(SOURCE), address(DESTINATION), attributes)
}

/// A header of version 2 with the command PROXY.
fn proxied(family: u8, addresses: &[u8], tlvs: &[u8]) -> Vec<u8> {
    let length = u16::try_from(addresses.len() + tlvs.len()).expect("a short header");
    [SIGNATURE.as_slice(), &[0x21, family], &length.to_be_bytes(), addresses, tlvs].concat()
}

fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len()).expect("a short value");
    [&[kind][..], &length.to_be_bytes(), value].concat()
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
    let byte = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16).expect("two hexadecimal digits");
    digits.chunks(2).map(byte).collect()
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address and a port")
}

fn complete(stream: &[u8]) -> ProxyHeader {
    match read(stream) {
        HeadProgress::Complete(header) => header,
        other @ (HeadProgress::NeedMore | HeadProgress::Rejected(_)) => panic!("no header: {other:?}"),
    }
}

fn rejected(stream: &[u8]) -> ProxyHeaderError {
    match read(stream) {
        HeadProgress::Rejected(error) => error,
        other @ (HeadProgress::NeedMore | HeadProgress::Complete(_)) => panic!("not rejected: {other:?}"),
    }
}

fn rejected_at_once(stream: &[u8]) -> ProxyHeaderError {
    match read_in_pieces(stream, iter::empty()) {
        HeadProgress::Rejected(error) => error,
        other @ (HeadProgress::NeedMore | HeadProgress::Complete(_)) => panic!("not rejected: {other:?}"),
    }
}

/// Reads in all deliveries, which must agree.
fn read(stream: &[u8]) -> HeadProgress<ProxyHeader, ProxyHeaderError> {
    let at_once = read_in_pieces(stream, iter::empty());
    assert_eq!(read_in_pieces(stream, 0..stream.len()), at_once, "byte by byte");
    for split in 0..stream.len() {
        assert_eq!(read_in_pieces(stream, [split]), at_once, "in two pieces, cut at {split}");
    }
    at_once
}

/// `ends` are how much has been received each time, before all of it has.
fn read_in_pieces(stream: &[u8], ends: impl IntoIterator<Item = usize>) -> HeadProgress<ProxyHeader, ProxyHeaderError> {
    let mut reader = ProxyHeaderReader::new();
    let mut ends = ends.into_iter().chain([stream.len()]);
    ends.find_map(|end| match reader.handle_bytes(&stream[..end]) {
        HeadProgress::NeedMore => None,
        decided @ (HeadProgress::Complete(_) | HeadProgress::Rejected(_)) => Some(decided),
    })
    .unwrap_or(HeadProgress::NeedMore)
}
