//! Cutting and joining, against a slow splitter that is written apart from them, and against each other.

use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::*;
use crate::error::DropReason;

const ALL: [(bool, Transport); 4] = [(false, Transport::Tcp), (true, Transport::Tcp), (false, Transport::Udp), (true, Transport::Udp)];

proptest! {
    #[test]
    fn cuts_like_the_slow_splitter(
        flow in flow(),
        flags in any::<u8>(),
        payload in prop::collection::vec(any::<u8>(), 1..5_000),
        segment_bytes in 1u16..1_500,
        slack in 0usize..20,
    ) {
        let flow = Flow { flags, ..flow };
        let (header, packet) = flow.super_packet(&payload, segment_bytes);
        let packets = cut(header, &packet, slack).expect("it is described rightly");
        for packet in &packets {
            prop_assert!(is_valid(packet, flow.start(), flow.transport));
        }
        prop_assert_eq!(packets, slow_cut(&header, &packet));
    }

    #[test]
    fn joining_undoes_cutting(
        flow in flow(),
        push in any::<bool>(),
        payload in prop::collection::vec(any::<u8>(), 1..8_000),
        segment_bytes in 1u16..1_500,
    ) {
        let flow = Flow { flags: if push { ACK | PSH } else { ACK }, ..flow };
        let (header, packet) = flow.super_packet(&payload, segment_bytes);
        let packets = cut(header, &packet, 0).expect("it is described rightly");
        let joining = Joining::of(&packets);
        prop_assert_eq!(&joining.packets(), &packets);
        match flow.transport {
            Transport::Tcp if packets.len() > 1 => prop_assert_eq!(joining.written, [(header, packet)]),
            Transport::Tcp => prop_assert_eq!(joining.written.len(), 1),
            Transport::Udp => prop_assert_eq!(joining.written.len(), packets.len().div_ceil(64)),
        }
    }

    /// Flows mix, change while they run, and send broken packets.
    #[test]
    fn every_packet_comes_out_once_and_in_order(
        mut flows in prop::collection::vec(flow(), 1..3),
        steps in prop::collection::vec((0usize..40, 0usize..2, select(vec![0usize, 7, 100, 100, 100, 1_300])), 0..60),
        flipped in any::<Index>(),
    ) {
        let mut joining = Joining::new();
        let mut packets = Vec::new();
        let count = flows.len();
        for (step, which, payload_bytes) in steps {
            let flow = &mut flows[which % count];
            if let Some((_, change)) = CHANGES.get(step) {
                change(flow);
            }
            let mut packet = flow.packet(&vec![step as u8; payload_bytes]);
            *flow = flow.after(payload_bytes);
            match step {
                30 => joining.cancel(),
                31 => joining.flush(),
                32 | 33 => {
                    let at = flipped.index(packet.len());
                    packet[at] ^= 0x10;
                }
                _ => {}
            }
            joining.open(&packet);
            packets.push(packet);
        }
        joining.flush();
        prop_assert_eq!(without_free_identifications(joining.packets()), without_free_identifications(packets));
    }

    #[test]
    fn noise_is_written_as_it_came(
        packets in prop::collection::vec((prop::collection::vec(any::<u8>(), 1..200), select(vec![0x45u8, 0x46, 0x60, 0x6f, 0x00])), 0..20),
    ) {
        let packets: Vec<Vec<u8>> = packets.into_iter().map(|(mut packet, first)| { packet[0] = first; packet }).collect();
        let joining = Joining::of(&packets);
        let expected: Vec<_> = packets.into_iter().map(|packet| (VnetHeader::PLAIN, packet)).collect();
        prop_assert_eq!(joining.written, expected);
    }

    #[test]
    fn noise_is_cut_or_refused(header in any::<[u8; VNET_BYTES]>(), kind in 0u8..7, packet in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut header = header;
        header[1] = kind;
        if let Ok(header) = VnetHeader::parse(&header) {
            let _ = cut(header, &packet, 3);
        }
    }

    /// A super-packet whose description, or whose headers, are wrong in one byte.
    #[test]
    fn a_wrong_byte_is_refused_or_cut_into_valid_packets(
        flow in flow(),
        at in 0usize..VNET_BYTES + 100,
        value in any::<u8>(),
        segment_bytes in 1u16..300,
    ) {
        let (header, mut packet) = flow.super_packet(&[7; 900], segment_bytes);
        let mut header = header.to_bytes();
        match at.checked_sub(VNET_BYTES) {
            None => header[at] = value,
            Some(at) => packet[at] = value,
        }
        let Ok(header) = VnetHeader::parse(&header) else { return Ok(()) };
        if let Ok(packets) = cut(header, &packet, 15)
            && header.gso != Gso::None
        {
            for packet in packets {
                prop_assert!(is_valid(&packet, usize::from(header.checksum_start), flow.transport));
            }
        }
    }
}

#[test]
fn flags_of_tcp_stand_where_they_belong() {
    for is_ipv6 in [false, true] {
        let flow = Flow { flags: CWR | ACK | PSH | FIN, ..Flow::new(is_ipv6, Transport::Tcp) };
        let (header, packet) = flow.super_packet(&[1; 250], 100);
        let packets = cut(header, &packet, 0).expect("it is described rightly");
        let flags: Vec<u8> = packets.iter().map(|packet| packet[flow.start() + 13]).collect();
        assert_eq!(flags, [CWR | ACK, ACK, ACK | PSH | FIN]);
    }
}

#[test]
fn the_identification_counts_up_and_wraps() {
    let flow = Flow { identification: 0xffff, ..Flow::new(false, Transport::Udp) };
    let (header, packet) = flow.super_packet(&[1; 300], 100);
    let packets = cut(header, &packet, 0).expect("it is described rightly");
    let identifications: Vec<u16> = packets.iter().map(|packet| u16::from_be_bytes([packet[4], packet[5]])).collect();
    assert_eq!(identifications, [0xffff, 0, 1]);
}

#[test]
fn a_header_may_be_longer_than_its_segment() {
    let flow = Flow { options: vec![1; 40], ..Flow::new(true, Transport::Tcp) };
    let (header, packet) = flow.super_packet(b"payload", 1);
    let packets = cut(header, &packet, 0).expect("it is described rightly");
    assert_eq!(packets.len(), 7);
    assert_eq!(packets, slow_cut(&header, &packet));
}

#[test]
fn the_checksum_of_a_single_packet_is_done() {
    for (is_ipv6, transport) in ALL {
        let flow = Flow::new(is_ipv6, transport);
        let whole = flow.packet(b"odd");
        let (header, packet) = flow.super_packet(b"odd", 100);
        let header = VnetHeader { gso: Gso::None, segment_bytes: 0, ..header };
        assert_ne!(packet, whole);
        assert_eq!(cut(header, &packet, 0), Ok(vec![whole.clone()]));
        assert_eq!(cut(VnetHeader::PLAIN, &whole, 0), Ok(vec![whole]), "nothing to do");
    }
}

#[test]
fn a_udp_checksum_of_zero_is_written_as_ones() {
    for is_ipv6 in [false, true] {
        let flow = Flow::new(is_ipv6, Transport::Udp);
        let field = flow.start() + 6..flow.start() + 8;
        // What a payload of zeros leaves to its complement, as payload, leaves zero.
        let payload = flow.packet(&[0, 0])[field.clone()].to_vec();
        let (header, packet) = flow.super_packet(&payload, 2);
        for header in [header, VnetHeader { gso: Gso::None, ..header }] {
            let packets = cut(header, &packet, 0).expect("it is described rightly");
            assert_eq!(packets[0][field.clone()], [0xff, 0xff]);
            assert!(is_valid(&packets[0], flow.start(), Transport::Udp));
        }
    }
}

#[test]
fn extension_headers_are_passed_over_if_they_are_understood() {
    let flow = Flow::new(true, Transport::Tcp);
    let with = |kind: u8, segments_left: u8| {
        let (header, packet) = flow.super_packet(&[9; 250], 100);
        let mut packet = [&packet[..40], &[6, 0, 4, segments_left, 0, 0, 0, 0], &packet[40..]].concat();
        packet[6] = kind;
        (VnetHeader { checksum_start: 48, ..header }, packet)
    };
    for kind in [0, 43, 60] {
        let (header, packet) = with(kind, 0);
        let packets = cut(header, &packet, 0).expect("it is described rightly");
        assert_eq!(packets, slow_cut(&header, &packet));
        assert!(packets.iter().all(|packet| is_valid(packet, 48, Transport::Tcp)));
    }
    for (kind, segments_left) in [(43, 1), (44, 0), (51, 0), (6, 0), (17, 0)] {
        let (header, packet) = with(kind, segments_left);
        assert_eq!(cut(header, &packet, 0), Err(DropReason::BadOffload), "{kind}");
    }
    let (header, packet) = with(0, 0);
    for checksum_start in [0, 40, 44, 56] {
        assert_eq!(cut(VnetHeader { checksum_start, ..header }, &packet, 0), Err(DropReason::BadOffload), "{checksum_start}");
    }
}

#[test]
fn a_wrong_description_is_refused() {
    let (right, packet) = Flow::new(false, Transport::Tcp).super_packet(&[5; 300], 100);
    let (datagram_header, datagram) = Flow::new(false, Transport::Udp).super_packet(&[5; 300], 100);
    let single = VnetHeader { gso: Gso::None, ..right };
    let edited = |at: usize, value: u8| {
        let mut packet = packet.clone();
        packet[at] = value;
        packet
    };
    let cases = [
        ("segments of nothing", VnetHeader { segment_bytes: 0, ..right }, packet.clone()),
        ("no checksum to do", VnetHeader { flags: 0, ..right }, packet.clone()),
        ("IPv6", VnetHeader { gso: Gso::Tcp6, ..right }, packet.clone()),
        ("UDP", VnetHeader { gso: Gso::Udp, ..right }, packet.clone()),
        ("TCP", VnetHeader { gso: Gso::Tcp4, ..datagram_header }, datagram),
        ("a checksum elsewhere", VnetHeader { checksum_offset: 6, ..right }, packet.clone()),
        ("a start outside", VnetHeader { checksum_start: 4_000, ..right }, packet.clone()),
        ("a start inside the payload", VnetHeader { checksum_start: 60, ..right }, packet.clone()),
        ("a fragment", right, edited(6, 0x20)),
        ("IPv4 options that are not there", right, edited(0, 0x46)),
        ("half a TCP header", right, edited(32, 0x40)),
        ("more TCP header than there is", right, packet[..39].to_vec()),
        ("less than an IPv4 header", right, packet[..19].to_vec()),
        ("single: a start outside", VnetHeader { checksum_start: 400, ..single }, packet.clone()),
        ("single: a field half outside", VnetHeader { checksum_offset: 331, ..single }, packet.clone()),
        ("single: both at the limit", VnetHeader { checksum_start: u16::MAX, checksum_offset: u16::MAX, ..single }, packet.clone()),
    ];
    for (name, header, packet) in cases {
        assert_eq!(cut(header, &packet, 0), Err(DropReason::BadOffload), "{name}");
    }
    assert_eq!(cut(right, &edited(0, 0x55), 0), Err(DropReason::NotIp));
    assert_eq!(cut(VnetHeader::PLAIN, &[], 16), Err(DropReason::NotIp));
    assert_eq!(Segments::new(VnetHeader::PLAIN, &mut [0x45; 20], 21).map(drop), Err(DropReason::NotIp));
    assert!(cut(right, &packet, 0).is_ok());
}

#[test]
fn a_run_ends_with_a_shorter_segment_or_with_push() {
    for (is_ipv6, transport) in ALL {
        let mut flow = Flow::new(is_ipv6, transport);
        let mut packets = Vec::new();
        for payload_bytes in [100, 100, 60, 60, 80] {
            packets.push(flow.packet(&vec![1; payload_bytes]));
            flow = flow.after(payload_bytes);
        }
        let joining = Joining::of(&packets);
        assert_eq!(joining.counts(), [3, 1, 1], "60 ends the first run; 80 is longer than the 60 before it");
        assert_eq!(joining.packets(), packets);
    }
    let flow = Flow::new(false, Transport::Tcp);
    let pushed = Flow { flags: ACK | PSH, ..flow.after(100) };
    let joining = Joining::of(&[flow.packet(&[1; 100]), pushed.packet(&[2; 100]), flow.after(200).packet(&[3; 100])]);
    assert_eq!(joining.counts(), [2, 1]);
    assert_eq!(joining.written[0].1[33], ACK | PSH);
}

#[test]
fn what_differs_is_not_joined() {
    for (is_ipv6, transport) in ALL {
        let flow = Flow::new(is_ipv6, transport);
        let first = flow.packet(&[1; 100]);
        assert_eq!(Joining::of(&[first.clone(), flow.after(100).packet(&[2; 100])]).counts(), [2]);
        for (name, change) in CHANGES {
            let mut next = flow.after(100);
            change(&mut next);
            let second = next.packet(&[2; 100]);
            if second == flow.after(100).packet(&[2; 100]) {
                continue; // Not in this kind of header.
            }
            let joining = Joining::of(&[first.clone(), second.clone()]);
            assert_eq!(joining.counts(), [1, 1], "{name}");
            assert_eq!(joining.packets(), [first.clone(), second], "{name}");
        }
    }
}

#[test]
fn an_identification_that_means_nothing_need_not_count_up() {
    let first = Flow { dont_fragment: true, ..Flow::new(false, Transport::Tcp) };
    for identification in [first.identification, 0, first.identification.wrapping_add(7)] {
        let second = Flow { identification, ..first.after(100) };
        let packets = [first.packet(&[1; 100]), second.packet(&[2; 100])];
        let joining = Joining::of(&packets);
        assert_eq!(joining.counts(), [2]);
        assert_eq!(without_free_identifications(joining.packets()), without_free_identifications(packets.to_vec()));
    }
}

#[test]
fn what_is_broken_passes_untouched() {
    for (is_ipv6, transport) in ALL {
        let flow = Flow::new(is_ipv6, transport);
        let whole = flow.packet(&[1; 100]);
        let mut broken = vec![(flow.start() + 40, "payload"), (flow.start() + transport.checksum_offset(), "checksum")];
        if !is_ipv6 {
            broken.extend([(10, "header checksum"), (8, "header")]);
        }
        for (at, name) in broken {
            let mut second = flow.after(100).packet(&[2; 100]);
            second[at] ^= 1;
            let joining = Joining::of(&[whole.clone(), second.clone()]);
            let verified = VnetHeader { flags: DATA_VALID, ..VnetHeader::PLAIN };
            assert_eq!(joining.written, [(verified, whole.clone()), (VnetHeader::PLAIN, second)], "{name}");
        }
    }
}

#[test]
fn only_what_the_kernel_takes_is_joined() {
    for (is_ipv6, transport) in ALL {
        let flow = Flow::new(is_ipv6, transport);
        let packets = [flow.packet(&[1; 100]), flow.after(100).packet(&[2; 100])];
        for offloads in [Offloads { tcp: true, udp: false }, Offloads { tcp: false, udp: true }] {
            let mut joining = Joining::new();
            joining.coalescer.set_offloads(offloads);
            for packet in &packets {
                joining.open(packet);
            }
            joining.flush();
            let taken = if transport == Transport::Tcp { offloads.tcp } else { offloads.udp };
            assert_eq!(joining.counts().len(), if taken { 1 } else { 2 });
            assert_eq!(joining.packets(), packets);
        }
    }
}

#[test]
fn a_udp_datagram_without_a_checksum_is_not_joined() {
    let flow = Flow::new(false, Transport::Udp);
    let mut packets = [flow.packet(&[1; 100]), flow.after(100).packet(&[2; 100])];
    for packet in &mut packets {
        packet[26..28].fill(0);
    }
    assert_eq!(Joining::of(&packets).counts(), [1, 1]);
}

#[test]
fn what_was_lapped_over_comes_back() {
    for payload_bytes in [1, 100] {
        let flow = Flow::new(true, Transport::Tcp);
        let packets = [flow.packet(&vec![1; payload_bytes]), flow.after(payload_bytes).packet(&vec![2; payload_bytes])];
        let mut joining = Joining::new();
        joining.cancel();
        for packet in &packets {
            joining.open(packet);
            joining.cancel();
            joining.space(); // Given out and not taken back: the next one that is given out does that.
            joining.space();
        }
        joining.flush();
        joining.flush();
        assert_eq!(joining.counts(), [2]);
        assert_eq!(joining.packets(), packets);
    }
}

#[test]
fn a_push_of_nothing_is_a_cancel() {
    let flow = Flow::new(false, Transport::Tcp);
    let packet = flow.packet(&[1; 100]);
    let mut joining = Joining::new();
    joining.open(&packet);
    joining.open(&[]);
    let Joining { coalescer, written } = &mut joining;
    coalescer.push(50, &mut |bytes: &[u8]| written.push((VnetHeader::PLAIN, bytes.to_vec())));
    joining.flush();
    assert_eq!(joining.packets(), [packet]);
}

#[test]
fn a_super_packet_is_no_longer_than_a_packet_can_be() {
    for is_ipv6 in [false, true] {
        let mut flow = Flow::new(is_ipv6, Transport::Tcp);
        let mut packets = Vec::new();
        for number in 0..200u8 {
            packets.push(flow.packet(&[number; 1_300]));
            flow = flow.after(1_300);
        }
        let joining = Joining::of(&packets);
        assert_eq!(joining.counts(), [50, 50, 50, 50]);
        assert_eq!(joining.packets(), packets);
    }
}

/// Newcomers stand where they were opened, further and further back, until one has to move to the front.
#[test]
fn flows_that_alternate_go_round_the_buffer() {
    let mut flows = [Flow::new(false, Transport::Tcp), Flow::new(true, Transport::Tcp)];
    let mut packets = Vec::new();
    for number in 0..=255u8 {
        let flow = &mut flows[usize::from(number) % 2];
        packets.push(flow.packet(&[number; 1_300]));
        *flow = flow.after(1_300);
    }
    let joining = Joining::of(&packets);
    assert_eq!(joining.counts(), vec![1; 256]);
    assert_eq!(joining.packets(), packets);
}

/// What a packet can have that the one before it has not.
/// What is changed, and how.
type Change = (&'static str, fn(&mut Flow));

const CHANGES: [Change; 21] = [
    ("TOS or traffic class", |flow| flow.tos ^= 0x20),
    ("ECN", |flow| flow.tos ^= 1),
    ("TTL or hop limit", |flow| flow.hop_limit ^= 1),
    ("DF", |flow| flow.dont_fragment ^= true),
    ("flow label", |flow| flow.flow_label ^= 1),
    ("identification", |flow| flow.identification = flow.identification.wrapping_add(if flow.dont_fragment { 0 } else { 1 })),
    ("source port", |flow| flow.ports[0] ^= 1),
    ("destination port", |flow| flow.ports[1] ^= 1),
    ("sequence number", |flow| flow.sequence = flow.sequence.wrapping_add(1)),
    ("acknowledgment", |flow| flow.acknowledgment ^= 1),
    ("window", |flow| flow.window ^= 1),
    ("urgent pointer", |flow| flow.urgent ^= 1),
    ("option", |flow| flow.options.iter_mut().for_each(|byte| *byte ^= 1)),
    ("length of options", |flow| flow.options.truncate(4)),
    ("reserved bit", |flow| flow.reserved ^= 1),
    ("FIN", |flow| flow.flags ^= FIN),
    ("SYN", |flow| flow.flags ^= 0x02),
    ("ACK", |flow| flow.flags ^= ACK),
    ("URG", |flow| flow.flags ^= 0x20),
    ("ECE", |flow| flow.flags ^= 0x40),
    ("CWR", |flow| flow.flags ^= CWR),
];

/// The headers of a flow's next packet.
#[derive(Debug, Clone)]
struct Flow {
    is_ipv6: bool,
    transport: Transport,
    tos: u8,
    hop_limit: u8,
    dont_fragment: bool,
    flow_label: u32,
    identification: u16,
    ports: [u16; 2],
    sequence: u32,
    acknowledgment: u32,
    reserved: u8,
    flags: u8,
    window: u16,
    urgent: u16,
    /// A multiple of 4 bytes, at most 40.
    options: Vec<u8>,
}

fn flow() -> impl Strategy<Value = Flow> {
    let ip = (any::<bool>(), any::<bool>(), any::<u8>(), 1u8..=255, any::<bool>(), 0u32..1 << 20, any::<u16>());
    let transport = (any::<[u16; 2]>(), any::<u32>(), any::<u32>(), any::<u16>(), 0usize..=10);
    (ip, transport).prop_map(
        |(
            (is_ipv6, is_tcp, tos, hop_limit, dont_fragment, flow_label, identification),
            (ports, sequence, acknowledgment, window, words),
        )| {
            let transport = if is_tcp { Transport::Tcp } else { Transport::Udp };
            let options = vec![1; words * 4];
            Flow {
                tos,
                hop_limit,
                dont_fragment,
                flow_label,
                identification,
                ports,
                sequence,
                acknowledgment,
                window,
                options,
                ..Flow::new(is_ipv6, transport)
            }
        },
    )
}

impl Flow {
    fn new(is_ipv6: bool, transport: Transport) -> Self {
        Self {
            is_ipv6,
            transport,
            tos: 0x02,
            hop_limit: 64,
            dont_fragment: false,
            flow_label: 0x12345,
            identification: 0x4242,
            ports: [443, 50_000],
            sequence: 0xffff_ff80,
            acknowledgment: 0x0102_0304,
            reserved: 0,
            flags: ACK,
            window: 502,
            urgent: 0,
            options: vec![1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 8],
        }
    }

    /// Where the transport header begins.
    fn start(&self) -> usize {
        if self.is_ipv6 { 40 } else { 20 }
    }

    /// The flow behind a packet of `payload_bytes`.
    fn after(&self, payload_bytes: usize) -> Self {
        let mut next = self.clone();
        next.sequence = next.sequence.wrapping_add(payload_bytes as u32);
        next.identification = next.identification.wrapping_add(1);
        next
    }

    /// A packet with right checksums.
    fn packet(&self, payload: &[u8]) -> Vec<u8> {
        let mut packet = self.unsealed(payload);
        seal(&mut packet, self.start(), self.transport);
        packet
    }

    /// As the kernel hands it over.
    fn super_packet(&self, payload: &[u8], segment_bytes: u16) -> (VnetHeader, Vec<u8>) {
        let mut packet = self.unsealed(payload);
        let header_bytes = packet.len() - payload.len();
        seal(&mut packet, self.start(), self.transport);
        let sum = slow_sum(&pseudo(&packet, self.start(), self.transport));
        let field = self.start() + self.transport.checksum_offset();
        packet[field..field + 2].copy_from_slice(&sum.to_be_bytes());
        let header = VnetHeader {
            flags: NEEDS_CSUM,
            gso: match (self.transport, self.is_ipv6) {
                (Transport::Tcp, false) => Gso::Tcp4,
                (Transport::Tcp, true) => Gso::Tcp6,
                (Transport::Udp, _) => Gso::Udp,
            },
            header_bytes: header_bytes as u16,
            segment_bytes,
            checksum_start: self.start() as u16,
            checksum_offset: self.transport.checksum_offset() as u16,
        };
        (header, packet)
    }

    fn unsealed(&self, payload: &[u8]) -> Vec<u8> {
        let mut transport = self.ports.map(u16::to_be_bytes).concat();
        match self.transport {
            Transport::Tcp => {
                transport.extend(self.sequence.to_be_bytes());
                transport.extend(self.acknowledgment.to_be_bytes());
                transport.extend([(((20 + self.options.len()) as u8 / 4) << 4) | self.reserved, self.flags]);
                transport.extend(self.window.to_be_bytes());
                transport.extend([0, 0]);
                transport.extend(self.urgent.to_be_bytes());
                transport.extend(&self.options);
            }
            Transport::Udp => {
                transport.extend((8 + payload.len() as u16).to_be_bytes());
                transport.extend([0, 0]);
            }
        }
        transport.extend(payload);
        let length = transport.len() as u16;
        let mut packet = Vec::new();
        if self.is_ipv6 {
            packet.extend(((6 << 28) | (u32::from(self.tos) << 20) | self.flow_label).to_be_bytes());
            packet.extend(length.to_be_bytes());
            packet.extend([self.transport.number(), self.hop_limit]);
            packet.extend(0x20..0x40u8);
        } else {
            packet.extend([0x45, self.tos]);
            packet.extend((length + 20).to_be_bytes());
            packet.extend(self.identification.to_be_bytes());
            packet.extend([if self.dont_fragment { 0x40 } else { 0 }, 0, self.hop_limit, self.transport.number(), 0, 0]);
            packet.extend([10, 1, 2, 3, 10, 200, 201, 202]);
        }
        packet.extend(transport);
        packet
    }
}

/// A coalescer, and what it wrote.
struct Joining {
    coalescer: Coalescer,
    written: Vec<(VnetHeader, Vec<u8>)>,
}

impl Joining {
    fn new() -> Self {
        Self { coalescer: Coalescer::new(Offloads { tcp: true, udp: true }), written: Vec::new() }
    }

    fn of(packets: &[Vec<u8>]) -> Self {
        let mut joining = Self::new();
        for packet in packets {
            joining.open(packet);
        }
        joining.flush();
        joining
    }

    /// Opens a packet as the engine does: what lies behind it in the space is not as it was.
    fn open(&mut self, packet: &[u8]) {
        let Self { coalescer, written } = self;
        let mut write = |bytes: &[u8]| written.push(read(bytes));
        let space = coalescer.space(packet.len() + 128, &mut write);
        space[..packet.len() + 128].fill(0xee);
        space[..packet.len()].copy_from_slice(packet);
        coalescer.push(packet.len(), &mut write);
    }

    /// Lets something be opened that is no packet.
    fn space(&mut self) {
        let Self { coalescer, written } = self;
        coalescer.space(2_000, &mut |bytes: &[u8]| written.push(read(bytes)))[..2_000].fill(0xdd);
    }

    fn cancel(&mut self) {
        self.space();
        self.coalescer.cancel();
    }

    fn flush(&mut self) {
        let Self { coalescer, written } = self;
        coalescer.flush(&mut |bytes: &[u8]| written.push(read(bytes)));
    }

    /// How many packets each write brought.
    fn counts(&self) -> Vec<usize> {
        self.written.iter().map(|(header, packet)| slow_cut(header, packet).len()).collect()
    }

    /// The packets that the kernel would make of what was written.
    fn packets(&self) -> Vec<Vec<u8>> {
        self.written.iter().flat_map(|(header, packet)| slow_cut(header, packet)).collect()
    }
}

fn read(bytes: &[u8]) -> (VnetHeader, Vec<u8>) {
    (VnetHeader::parse(bytes).expect("a header"), bytes[VNET_BYTES..].to_vec())
}

/// All packets that [`Segments`] makes of one read, each treated as the engine does.
fn cut(header: VnetHeader, packet: &[u8], slack: usize) -> Result<Vec<Vec<u8>>, DropReason> {
    let mut room = packet.to_vec();
    room.resize(packet.len() + slack, 0xaa);
    let mut segments = Segments::new(header, &mut room, packet.len())?;
    let mut packets = Vec::new();
    while let Some((room, length)) = segments.next() {
        let padded = room.len().min(length + 15);
        let behind = room[length..padded].to_vec();
        room[length..padded].fill(0);
        packets.push(room[..length].to_vec());
        room[..length].fill(0xdd);
        room[length..padded].copy_from_slice(&behind);
    }
    assert_eq!(room[packet.len()..], vec![0xaa; slack], "what lies behind is left");
    Ok(packets)
}

/// What a kernel makes of a super-packet, written plainly and by copies.
fn slow_cut(header: &VnetHeader, packet: &[u8]) -> Vec<Vec<u8>> {
    if header.gso == Gso::None {
        return vec![packet.to_vec()];
    }
    let start = usize::from(header.checksum_start);
    let transport = if header.gso == Gso::Udp { Transport::Udp } else { Transport::Tcp };
    let field = start + usize::from(header.checksum_offset);
    assert_eq!(packet[field..field + 2], slow_sum(&pseudo(packet, start, transport)).to_be_bytes(), "the sum to begin with");
    let is_ipv6 = packet[0] >> 4 == 6;
    if !is_ipv6 {
        assert_eq!(slow_sum(&packet[..20]), 0xffff, "the header checksum");
    }
    let header_bytes = match transport {
        Transport::Tcp => start + usize::from(packet[start + 12] >> 4) * 4,
        Transport::Udp => start + 8,
    };
    assert_eq!(usize::from(header.header_bytes) + start, header_bytes + if is_ipv6 { 40 } else { 20 });
    let (headers, payload) = packet.split_at(header_bytes);
    let parts: Vec<&[u8]> = payload.chunks(usize::from(header.segment_bytes)).collect();
    let mut packets = Vec::new();
    for (number, part) in parts.iter().enumerate() {
        let mut packet = [headers, part].concat();
        let length = packet.len() as u16;
        if is_ipv6 {
            packet[4..6].copy_from_slice(&(length - 40).to_be_bytes());
        } else {
            let identification = u16::from_be_bytes([packet[4], packet[5]]).wrapping_add(number as u16);
            packet[2..4].copy_from_slice(&length.to_be_bytes());
            packet[4..6].copy_from_slice(&identification.to_be_bytes());
        }
        let tail = &mut packet[start..];
        match transport {
            Transport::Tcp => {
                let before: usize = parts[..number].iter().map(|part| part.len()).sum();
                let sequence = u32::from_be_bytes([tail[4], tail[5], tail[6], tail[7]]).wrapping_add(before as u32);
                tail[4..8].copy_from_slice(&sequence.to_be_bytes());
                if number > 0 {
                    tail[13] &= !CWR;
                }
                if number + 1 < parts.len() {
                    tail[13] &= !(FIN | PSH);
                }
            }
            Transport::Udp => {
                let length = tail.len() as u16;
                tail[4..6].copy_from_slice(&length.to_be_bytes());
            }
        }
        seal(&mut packet, start, transport);
        packets.push(packet);
    }
    packets
}

/// The checksum as RFC 1071 draws it: big-endian words, one after the other, each carry brought round at once.
pub(super) fn slow_sum(bytes: &[u8]) -> u16 {
    bytes.chunks(2).fold(0, |sum: u16, pair| {
        let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
        let (sum, carry) = sum.overflowing_add(word);
        sum + u16::from(carry)
    })
}

/// The pseudo-header of a packet whose transport header begins at `start`.
fn pseudo(packet: &[u8], start: usize, transport: Transport) -> Vec<u8> {
    let addresses = if packet[0] >> 4 == 6 { &packet[8..40] } else { &packet[12..20] };
    let length = (packet.len() - start) as u32;
    [addresses, &length.to_be_bytes(), &[0, transport.number()]].concat()
}

/// Makes the checksums right.
fn seal(packet: &mut [u8], start: usize, transport: Transport) {
    if packet[0] >> 4 == 4 {
        packet[10..12].fill(0);
        let checksum = !slow_sum(&packet[..20]);
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    }
    let field = start + transport.checksum_offset();
    packet[field..field + 2].fill(0);
    let checksum = !slow_sum(&[&pseudo(packet, start, transport)[..], &packet[start..]].concat());
    let checksum = if checksum == 0 && transport == Transport::Udp { 0xffff } else { checksum };
    packet[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// Whether lengths and checksums are right.
fn is_valid(packet: &[u8], start: usize, transport: Transport) -> bool {
    let number = |at: usize| usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
    let ip = if packet[0] >> 4 == 6 {
        number(4) + 40 == packet.len()
    } else {
        number(2) == packet.len() && slow_sum(&packet[..start]) == 0xffff
    };
    let length = transport == Transport::Tcp || (number(start + 4) == packet.len() - start && number(start + 6) != 0);
    ip && length && slow_sum(&[&pseudo(packet, start, transport)[..], &packet[start..]].concat()) == 0xffff
}

/// The packets, without what the kernel may renumber: the identification of a whole IPv4 packet with DF.
fn without_free_identifications(mut packets: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    for packet in &mut packets {
        if packet[0] == 0x45 && packet[6..8] == [0x40, 0] && slow_sum(&packet[..20]) == 0xffff {
            packet[4..6].fill(0);
            packet[10..12].fill(0);
        }
    }
    packets
}
