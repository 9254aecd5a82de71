//! Control messages beside a datagram: segment size, source and interface, ECN; written outward, read inward.
#![expect(unsafe_code, reason = "the layout of control messages is the C library's")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::batch::Outer;
use crate::engine::Arrival;

/// Room for the three that are written at once: 24 (UDP_SEGMENT), 40 (IPV6_PKTINFO), 24 (TOS) bytes; and those that are read.
const WORDS: usize = 16;

/// A buffer aligned as `cmsghdr` must be.
#[derive(Debug, Clone)]
#[repr(C, align(8))]
pub(super) struct Control {
    words: [u64; WORDS],
    used: usize,
}

impl Control {
    pub(super) const CAPACITY_BYTES: usize = WORDS * 8;

    pub(super) const fn new() -> Self {
        Self { words: [0; WORDS], used: 0 }
    }

    /// For a message to `address`, which is written as the socket wants it (IPv4 mapped, if the socket is dual).
    pub(super) fn outward(outer: &Outer, source: Option<IpAddr>, address: SocketAddr, segment_bytes: Option<u16>) -> Self {
        let mut control = Self::new();
        if let Some(bytes) = segment_bytes {
            control.push(libc::SOL_UDP, libc::UDP_SEGMENT, bytes);
        }
        let interface = outer.endpoint.interface.unwrap_or(0);
        let mapped = match address.ip() {
            IpAddr::V6(v6) => v6.to_ipv4_mapped().is_some(),
            IpAddr::V4(_) => false,
        };
        if interface != 0 || source.is_some() {
            if address.is_ipv6() {
                // For a mapped destination the kernel wants the source mapped too, even an unspecified one (ip_cmsg_send).
                let source = match source {
                    Some(IpAddr::V6(source)) if !mapped => source,
                    Some(IpAddr::V4(source)) if mapped => source.to_ipv6_mapped(),
                    _ if mapped => Ipv4Addr::UNSPECIFIED.to_ipv6_mapped(),
                    _ => Ipv6Addr::UNSPECIFIED,
                };
                let info = libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: source.octets() }, ipi6_ifindex: interface };
                control.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
            } else {
                let source = match source {
                    Some(IpAddr::V4(source)) => source,
                    _ => Ipv4Addr::UNSPECIFIED,
                };
                let info = libc::in_pktinfo {
                    ipi_ifindex: interface as libc::c_int,
                    ipi_spec_dst: libc::in_addr { s_addr: u32::from_ne_bytes(source.octets()) },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                control.push(libc::IPPROTO_IP, libc::IP_PKTINFO, info);
            }
        }
        if outer.ecn != 0 {
            let value = libc::c_int::from(outer.ecn);
            if address.is_ipv6() && !mapped {
                control.push(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, value);
            } else {
                control.push(libc::IPPROTO_IP, libc::IP_TOS, value);
            }
        }
        control
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Bytes in use.
    pub(super) const fn len(&self) -> usize {
        self.used
    }

    pub(super) const fn as_mut_ptr(&mut self) -> *mut libc::c_void {
        self.words.as_mut_ptr().cast()
    }

    /// Adds one message with `value`, plain data without padding at its end, as its data.
    fn push<T: Copy>(&mut self, level: libc::c_int, kind: libc::c_int, value: T) {
        // SAFETY: CMSG_SPACE and CMSG_LEN only calculate.
        let (space, length) = unsafe { (libc::CMSG_SPACE(size_of::<T>() as u32) as usize, libc::CMSG_LEN(size_of::<T>() as u32)) };
        if self.used + space > Self::CAPACITY_BYTES {
            debug_assert!(false, "no room for a control message");
            return;
        }
        // SAFETY: `used` is a sum of CMSG_SPACEs, so the place is aligned for a header and, as checked, header and data end
        // inside `words`; CMSG_DATA points behind the header in the same place.
        unsafe {
            let header = self.words.as_mut_ptr().cast::<u8>().add(self.used).cast::<libc::cmsghdr>();
            (*header).cmsg_level = level;
            (*header).cmsg_type = kind;
            (*header).cmsg_len = length as _;
            libc::CMSG_DATA(header).cast::<T>().write_unaligned(value);
        }
        self.used += space;
    }
}

/// What came beside a message: segment size (0 if it is one datagram), the address of ours that it came to, ECN.
///
/// # Safety
/// `header` is one that `recvmmsg` has filled, and its control buffer is still there.
pub(super) unsafe fn read(header: &libc::msghdr, arrival: &mut Arrival) -> usize {
    let mut segment_bytes = 0;
    // SAFETY: the caller's promise; CMSG_FIRSTHDR and CMSG_NXTHDR stay inside msg_controllen, and what is read of each
    // message is what the kernel writes for its kind.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        while !message.is_null() {
            let data = libc::CMSG_DATA(message);
            match ((*message).cmsg_level, (*message).cmsg_type) {
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    segment_bytes = usize::try_from(data.cast::<libc::c_int>().read_unaligned()).unwrap_or(0);
                }
                (libc::IPPROTO_IP, libc::IP_TOS) => arrival.ecn = data.read() & 0b11,
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => arrival.ecn = (data.cast::<libc::c_int>().read_unaligned() & 0b11) as u8,
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info = data.cast::<libc::in_pktinfo>().read_unaligned();
                    arrival.to = Some(IpAddr::V4(Ipv4Addr::from(info.ipi_spec_dst.s_addr.to_ne_bytes())));
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info = data.cast::<libc::in6_pktinfo>().read_unaligned();
                    arrival.to = Some(IpAddr::V6(Ipv6Addr::from(info.ipi6_addr.s6_addr)).to_canonical());
                }
                _ => {}
            }
            message = libc::CMSG_NXTHDR(header, message);
        }
    }
    segment_bytes
}
