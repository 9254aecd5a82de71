//! Datagrams from anywhere: the engine drops or answers them, and delivers nothing.
//!
//! No input of a fuzzer opens or has a right mac1, so this is what a stranger without our public key can reach.
#![no_main]

use std::net::SocketAddr;
use std::time::Instant;

use libfuzzer_sys::fuzz_target;
use tunnel::{Batch, Engine, EngineSettings, PrivateKey, Received};

fuzz_target!(|data: &[u8]| {
    let key = PrivateKey::generate();
    let now = Instant::now();
    let mut engine = Engine::new(EngineSettings { key, addresses: Vec::new(), mtu: 1_340 }, now);
    let mut batch = Batch::new();
    let mut plain = vec![0u8; 65_535];
    let mut rest = data;
    // Each datagram: who sends it, its length, its bytes. One of the four message types more often than by chance.
    while let [who, length, behind @ ..] = rest {
        let (body, next) = behind.split_at(behind.len().min(usize::from(*length)));
        rest = next;
        let mut datagram = body.to_vec();
        if let Some(head) = datagram.get_mut(..4)
            && who & 0x80 != 0
        {
            head.copy_from_slice(&[1 + (who & 3), 0, 0, 0]);
        }
        let from = SocketAddr::from(([192, 0, 2, *who], 51_820));
        let received = engine.handle_datagram(&datagram, from, now, &mut plain, &mut batch);
        assert!(!matches!(received, Received::Packet(_)), "nothing of this opens");
        engine.handle_timeout(now, &mut batch);
        batch.clear();
    }
});
