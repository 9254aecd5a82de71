//! Opened packets, some of them segments of a flow: what is written, cut again, are the same packets in the same order.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tunnel::offload::{Coalescer, Offloads, Segments, VNET_BYTES, VnetHeader, checksum};

fuzz_target!(|data: &[u8]| {
    let mut coalescer = Coalescer::new(Offloads { tcp: true, udp: true });
    let (mut pushed, mut written) = (Vec::new(), Vec::new());
    let mut write = |bytes: &[u8]| written.push(bytes.to_vec());
    let (mut sequence, mut rest) = (0u32, data);
    // Each packet: what to do with it, its length, its bytes.
    while let [kind, length, behind @ ..] = rest {
        let (body, next) = behind.split_at(behind.len().min(usize::from(*length)));
        rest = next;
        let packet = match kind % 4 {
            0 => body.to_vec(),
            1 => tcp(sequence, kind >> 2, body),
            2 => udp(body),
            _ => {
                coalescer.space(300, &mut write)[..300].fill(0xee);
                coalescer.cancel();
                continue;
            }
        };
        if kind % 4 == 1 {
            sequence = sequence.wrapping_add(body.len() as u32);
        }
        let space = coalescer.space(packet.len() + 128, &mut write);
        space[..packet.len() + 128].fill(0xee);
        space[..packet.len()].copy_from_slice(&packet);
        coalescer.push(packet.len(), &mut write);
        if !packet.is_empty() {
            pushed.push(packet);
        }
    }
    coalescer.flush(&mut write);

    let mut cut = Vec::new();
    for mut write in written {
        let header = VnetHeader::parse(&write).expect("a header of ours");
        let room = &mut write[VNET_BYTES..];
        let length = room.len();
        let mut segments = Segments::new(header, room, length).expect("described rightly");
        while let Some((room, length)) = segments.next() {
            cut.push(room[..length].to_vec());
        }
    }
    cut.iter_mut().chain(&mut pushed).for_each(|packet| forget_free_identification(packet));
    assert_eq!(cut, pushed);
});

/// The next segment of one flow, with DF; `window` also says whether it has PSH.
fn tcp(sequence: u32, window: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = [0u8; 20];
    header[4..8].copy_from_slice(&sequence.to_be_bytes());
    header[12] = 0x50;
    header[13] = if window & 1 == 0 { 0x10 } else { 0x18 };
    header[14] = window >> 1;
    ipv4(6, 16, &[&header[..], payload].concat())
}

fn udp(payload: &[u8]) -> Vec<u8> {
    let mut header = [0u8; 8];
    header[4..6].copy_from_slice(&(8 + payload.len() as u16).to_be_bytes());
    ipv4(17, 6, &[&header[..], payload].concat())
}

fn ipv4(protocol: u8, checksum_offset: usize, behind: &[u8]) -> Vec<u8> {
    let mut header = [0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    header[2..4].copy_from_slice(&(20 + behind.len() as u16).to_be_bytes());
    let sum = !checksum::fold(checksum::sum(&header));
    header[10..12].copy_from_slice(&sum.to_ne_bytes());
    let mut packet = [&header[..], behind].concat();
    let sum = !checksum::fold(checksum::sum(behind) + checksum::pseudo_header(&packet, protocol, behind.len()));
    let sum = if sum == 0 && protocol == 17 { 0xffff } else { sum };
    packet[20 + checksum_offset..][..2].copy_from_slice(&sum.to_ne_bytes());
    packet
}

/// The kernel may renumber a whole IPv4 packet with DF.
fn forget_free_identification(packet: &mut [u8]) {
    let is_free =
        packet.len() >= 20 && packet[0] == 0x45 && packet[6..8] == [0x40, 0] && checksum::fold(checksum::sum(&packet[..20])) == 0xffff;
    if is_free {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
}
