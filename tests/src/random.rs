//! Bytes that look random and are the same in every run, so that a failure can be had again.

/// xorshift64* (Vigna, 2016). Good enough to fill packets, and for nothing that must be secret.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// `seed`: any number, the same one for the same bytes.
    pub const fn new(seed: u64) -> Self {
        Self(seed ^ 0x9e37_79b9_7f4a_7c15)
    }

    pub const fn number(&mut self) -> u64 {
        // Zero would stay zero.
        if self.0 == 0 {
            self.0 = 1;
        }
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let words = std::iter::repeat_with(|| self.number().to_le_bytes());
        words.take(count.div_ceil(8)).flatten().take(count).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_its_bytes_again_and_another_seed_others() {
        assert_eq!(Random::new(1).bytes(1001), Random::new(1).bytes(1001));
        assert_ne!(Random::new(1).bytes(16), Random::new(2).bytes(16));
        assert_eq!(Random::new(3).bytes(13).len(), 13);
    }
}
