//! One read of the TUN device, virtio-net header and all: it is cut or refused, and the room behind it is left.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tunnel::offload::{Gso, Segments, VNET_BYTES, VnetHeader, checksum};

fuzz_target!(|data: &[u8]| {
    let Ok(header) = VnetHeader::parse(data) else { return };
    let packet = &data[VNET_BYTES..];
    let mut room = packet.to_vec();
    room.resize(packet.len() + 16, 0xaa);
    let Ok(mut segments) = Segments::new(header, &mut room, packet.len()) else { return };
    let mut payload_bytes = 0;
    while let Some((room, length)) = segments.next() {
        let packet = &room[..length];
        if header.gso != Gso::None {
            let start = usize::from(header.checksum_start);
            let protocol = if header.gso == Gso::Udp { 17 } else { 6 };
            let sum = checksum::sum(&packet[start..]) + checksum::pseudo_header(packet, protocol, length - start);
            assert_eq!(checksum::fold(sum), 0xffff, "a right checksum");
            let header_bytes = if protocol == 17 { start + 8 } else { start + usize::from(packet[start + 12] >> 4) * 4 };
            payload_bytes += length - header_bytes;
            assert!(payload_bytes <= data.len(), "no more payload than there was");
        }
        // As the engine pads.
        let padded = room.len().min(length + 15);
        let behind = room[length..padded].to_vec();
        room[length..padded].fill(0);
        room[length..padded].copy_from_slice(&behind);
    }
    assert_eq!(room[packet.len()..], [0xaa; 16]);
});
