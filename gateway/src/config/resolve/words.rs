//! Single words of the file: addresses, prefixes, durations, ports. Each says what it expected instead.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

/// What was expected in place of a word.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Expected {
    pub(super) message: &'static str,
    pub(super) form: &'static str,
}

const fn expected<T>(message: &'static str, form: &'static str) -> Result<T, Expected> {
    Err(Expected { message, form })
}

pub(super) fn address(text: &str) -> Result<IpAddr, Expected> {
    text.parse().or(expected("not an IP address", "an address such as 10.99.0.2 or 2001:db8::2"))
}

pub(super) fn address_and_port(text: &str) -> Result<SocketAddr, Expected> {
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 => Ok(address),
        Ok(_) | Err(_) => expected("not an address with a port", "ADDRESS:PORT such as 127.0.0.1:9359 or [::]:3128"),
    }
}

/// `51820`, or an address with a port. A port alone means every address of the host, IPv6 and IPv4.
pub(super) fn listen(text: &str) -> Result<SocketAddr, Expected> {
    match text.parse::<u16>() {
        Ok(port) if port != 0 => Ok(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port)),
        Ok(_) | Err(_) => address_and_port(text).or(expected("not a place to listen", "a port such as 51820, or ADDRESS:PORT")),
    }
}

/// A prefix without host bits; a bare address is a prefix of one.
pub(super) fn prefix(text: &str) -> Result<IpNet, Expected> {
    const FORM: &str = "a prefix such as 10.20.0.0/16 or 2001:db8::/32";
    let prefix = match text.parse::<IpNet>() {
        Ok(prefix) => prefix,
        Err(_) => match text.parse::<IpAddr>() {
            Ok(address) => IpNet::from(address),
            Err(_) => return expected("not a prefix", FORM),
        },
    };
    if prefix.trunc() == prefix {
        Ok(prefix)
    } else {
        expected("the prefix has bits set behind its length", "a network address: 10.20.0.0/16, not 10.20.0.1/16")
    }
}

/// An address with the length of its on-link prefix.
pub(super) fn interface_address(text: &str) -> Result<IpNet, Expected> {
    text.parse().or(expected("not an address with a prefix length", "ADDRESS/LENGTH such as 10.99.0.1/30 or fd00::1/64"))
}

/// A number with its unit: `300ms`, `25s`, `5m`, `1h`.
pub(super) fn duration(text: &str) -> Result<Duration, Expected> {
    const MESSAGE: &str = "not a length of time";
    const FORM: &str = "a whole number with its unit: 300ms, 25s, 5m or 1h";
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let Ok(number) = number.parse::<u64>() else { return expected(MESSAGE, FORM) };
    let milliseconds = match unit {
        "ms" => Some(number),
        "s" => number.checked_mul(1000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        _ => None,
    };
    match milliseconds {
        // Ten years: longer is a slip, and sums of durations must not overflow.
        Some(milliseconds @ 1..=315_360_000_000) => Ok(Duration::from_millis(milliseconds)),
        _ => expected(MESSAGE, FORM),
    }
}

/// `HOST:PORT`, the host a name or an address.
pub(super) fn host_and_port(text: &str) -> Result<(String, u16), Expected> {
    const MESSAGE: &str = "not a host with a port";
    const FORM: &str = "HOST:PORT such as 203.0.113.7:51820, [2001:db8::7]:51820 or vnet-a.example.net:51820";
    if let Ok(address) = text.parse::<SocketAddr>() {
        return if address.port() == 0 { expected(MESSAGE, FORM) } else { Ok((address.ip().to_string(), address.port())) };
    }
    let Some((host, port)) = text.rsplit_once(':') else { return expected(MESSAGE, FORM) };
    match (crate::relay::HostName::parse(host), port.parse::<u16>()) {
        (Ok(host), Ok(port)) if port != 0 => Ok((host.to_string(), port)),
        _ => expected(MESSAGE, FORM),
    }
}

/// A name server: an address, with port 53 unless another is said.
pub(super) fn name_server(text: &str) -> Result<SocketAddr, Expected> {
    match text.parse::<IpAddr>() {
        Ok(address) => Ok(SocketAddr::new(address, 53)),
        Err(_) => address_and_port(text).or(expected("not a name server", "an address such as 10.8.0.53, or ADDRESS:PORT")),
    }
}

/// `HOST`, with the `usual` port, or `HOST:PORT`; the host a name or an address.
pub(super) fn host_with_usual_port(text: &str, usual: u16) -> Result<(String, u16), Expected> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok((address.to_string(), usual));
    }
    match crate::relay::HostName::parse(text) {
        Ok(host) => Ok((host.to_string(), usual)),
        Err(_) => host_and_port(text).or(expected("not a host", "HOST or HOST:PORT such as 10.8.0.123 or time.example.net:123")),
    }
}

/// Whether `address` means every address of the host.
pub(super) fn is_everywhere(address: IpAddr) -> bool {
    address == IpAddr::V4(Ipv4Addr::UNSPECIFIED) || address == IpAddr::V6(Ipv6Addr::UNSPECIFIED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_want_a_unit() {
        assert_eq!(duration("300ms"), Ok(Duration::from_millis(300)));
        assert_eq!(duration("25s"), Ok(Duration::from_secs(25)));
        assert_eq!(duration("1h"), Ok(Duration::from_secs(3600)));
        for text in ["", "25", "s", "25 s", "-1s", "1d", "0s", "99999999999999999999s", "18446744073709551615h"] {
            assert!(duration(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn prefixes_have_no_host_bits() {
        assert!(prefix("10.20.0.0/16").is_ok());
        assert_eq!(prefix("10.20.0.1"), Ok("10.20.0.1/32".parse().expect("prefix")));
        assert_eq!(prefix("10.20.0.1/16").expect_err("refused").message, "the prefix has bits set behind its length");
        assert!(prefix("10.20.0.0/33").is_err());
    }

    #[test]
    fn endpoints_are_names_or_addresses() {
        assert_eq!(host_and_port("203.0.113.7:51820"), Ok(("203.0.113.7".into(), 51820)));
        assert_eq!(host_and_port("[2001:db8::7]:51820"), Ok(("2001:db8::7".into(), 51820)));
        assert_eq!(host_and_port("Vnet-A.example.net:51820"), Ok(("vnet-a.example.net".into(), 51820)));
        for text in ["203.0.113.7", "host:0", "host:99999", ":51820", "2001:db8::7:51820", "a b:1"] {
            assert!(host_and_port(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn servers_have_a_usual_port() {
        assert_eq!(name_server("10.8.0.53"), Ok(SocketAddr::new([10, 8, 0, 53].into(), 53)));
        assert_eq!(name_server("[2001:db8::53]:5353").map(|server| server.port()), Ok(5353));
        assert!(name_server("dns.example.net").is_err(), "who would resolve it?");
        for (text, host, port) in [
            ("10.8.0.123", "10.8.0.123", 123),
            ("2001:db8::7", "2001:db8::7", 123),
            ("Time.example.net", "time.example.net", 123),
            ("time.example.net:1123", "time.example.net", 1123),
            ("[2001:db8::7]:1123", "2001:db8::7", 1123),
        ] {
            assert_eq!(host_with_usual_port(text, 123), Ok((host.to_owned(), port)), "{text}");
        }
        for text in ["", "a b", "host:0", "[2001:db8::7]"] {
            assert!(host_with_usual_port(text, 123).is_err(), "{text:?}");
        }
    }
}
