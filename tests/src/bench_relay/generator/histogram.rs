//! Times, counted in buckets of at most one part in 128 of their value: as many as there may be, in little memory.

use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram {
    counts: Vec<u64>,
    count: u64,
    longest: u64,
}

/// Each power of two has 128 buckets; below that each nanosecond has its own.
const BITS: u32 = 7;
const HALF: usize = 1 << BITS;
/// For every u64.
const BUCKETS: usize = (64 - BITS as usize + 1) * HALF;

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS], count: 0, longest: 0 }
    }
}

impl Histogram {
    pub fn record(&mut self, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        if let Some(count) = self.counts.get_mut(bucket(nanoseconds)) {
            *count += 1;
        }
        self.count += 1;
        self.longest = self.longest.max(nanoseconds);
    }

    /// How many times were recorded.
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// In microseconds: what at least the share `of`, 0 to 1, of all times do not exceed (nearest rank). Zero if there is none.
    pub fn quantile_us(&self, of: f64) -> f64 {
        let rank = ((of * self.count as f64).ceil() as u64).max(1);
        let mut below = 0;
        for (index, count) in self.counts.iter().enumerate() {
            below += count;
            if below >= rank {
                return largest_in(index).min(self.longest) as f64 / 1000.0;
            }
        }
        0.0
    }

    pub fn clear(&mut self) {
        self.counts.fill(0);
        (self.count, self.longest) = (0, 0);
    }
}

fn bucket(value: u64) -> usize {
    let bits = u64::BITS - value.leading_zeros();
    // How many bits are too fine to be kept.
    let shift = bits.saturating_sub(BITS + 1);
    // The kept bits of a large value run from HALF to twice that.
    shift as usize * HALF + (value >> shift) as usize
}

/// The largest value that falls into a bucket.
fn largest_in(bucket: usize) -> u64 {
    let shift = (bucket / HALF).saturating_sub(1);
    let kept = (bucket - shift * HALF) as u64;
    (kept << shift) | ((1 << shift) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_falls_into_a_bucket_near_it() {
        let powers = (0..64).flat_map(|power| [1u64 << power, (1 << power) + (1 << power) / 3, (1 << power) - 1]);
        for value in powers.chain([u64::MAX]) {
            let largest = largest_in(bucket(value));
            assert!(largest >= value && (largest - value) as f64 <= value as f64 / 128.0, "{value} {largest}");
            assert!(bucket(value) < BUCKETS, "{value}");
            assert_eq!(bucket(largest), bucket(value), "{value}");
            assert!(largest == u64::MAX || bucket(largest + 1) == bucket(value) + 1, "{value}");
        }
    }

    #[test]
    fn quantiles_are_those_of_the_times() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile_us(0.5), 0.0);
        for milliseconds in (1..=1000).rev() {
            histogram.record(Duration::from_millis(milliseconds));
        }
        for (of, expected) in [(0.5, 500_000.0), (0.99, 990_000.0), (0.999, 999_000.0), (0.0, 1000.0)] {
            let found = histogram.quantile_us(of);
            assert!(found >= expected && found <= expected * 1.008, "{of} {found}");
        }
        // Nothing is said to be longer than the longest.
        assert_eq!((histogram.quantile_us(1.0), histogram.count()), (1_000_000.0, 1000));
        histogram.clear();
        assert_eq!(histogram, Histogram::default());
    }
}
