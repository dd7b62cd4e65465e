//! The bias of MPNet's attention by the distance of two tokens, with the
//! buckets of T5 (Raffel et al. 2020): exact for near tokens, logarithmic for
//! those further away, and apart for either direction.

use candle_core::{Result, Tensor};

use crate::bert::config::DISTANCE_BUCKETS;
use crate::ops::DistanceBias;

/// The distance from which on all share a bucket.
const MAX_DISTANCE: f32 = 128.0;

/// The bias of up to `positions` tokens; `table` is (buckets, heads).
pub(super) fn distance_bias(table: &Tensor, positions: usize) -> Result<DistanceBias> {
    let last = positions as i64 - 1;
    let buckets: Vec<u32> = (-last..=last).map(bucket).collect();
    let buckets = Tensor::new(buckets, table.device())?;
    DistanceBias::new(
        &table.index_select(&buckets, 0)?.t()?.contiguous()?,
        positions,
    )
}

/// The bucket of a key that lies `distance` tokens after its query. In 32-bit
/// floats as in transformers, so that the bounds of the buckets are the same.
fn bucket(distance: i64) -> u32 {
    const ONE_WAY: usize = DISTANCE_BUCKETS / 2;
    const EXACT: usize = ONE_WAY / 2;
    let direction = if distance > 0 { ONE_WAY } else { 0 };
    let far = distance.unsigned_abs() as usize;
    let within = if far < EXACT {
        far
    } else {
        let exact = EXACT as f32;
        let octaves = (far as f32 / exact).ln() / (MAX_DISTANCE / exact).ln();
        let step = (octaves * (ONE_WAY - EXACT) as f32) as usize;
        (EXACT + step).min(ONE_WAY - 1)
    };
    (direction + within) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The least distance of each bucket, as transformers computes them.
    const BOUNDS: [i64; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91];

    #[test]
    fn buckets_are_those_of_transformers() {
        for far in 0..1000 {
            let expected = BOUNDS.iter().rposition(|bound| *bound <= far).unwrap();
            assert_eq!(bucket(-far), expected as u32, "distance -{far}");
            if far > 0 {
                assert_eq!(bucket(far), expected as u32 + 16, "distance {far}");
            }
        }
    }
}
