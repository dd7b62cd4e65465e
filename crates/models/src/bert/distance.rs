//! The bias of MPNet's attention by the distance of two tokens, with the
//! buckets of T5 (Raffel et al. 2020): exact for near tokens, logarithmic for
//! those further away, and apart for either direction.

use candle_core::{Result, Tensor};

use crate::bert::config::DISTANCE_BUCKETS;
use crate::ops::DistanceBias;

/// The distance from which on all share a bucket.
const MAX_DISTANCE: usize = 128;

/// The bias of up to `positions` tokens; `table` is (buckets, heads).
pub(super) fn distance_bias(table: &Tensor, positions: usize) -> Result<DistanceBias> {
    let last = positions as i64 - 1;
    let bucket = |distance| distance_bucket(distance, DISTANCE_BUCKETS, MAX_DISTANCE, true);
    let buckets: Vec<u32> = (-last..=last).map(bucket).collect();
    let buckets = Tensor::new(buckets, table.device())?;
    DistanceBias::new(
        &table.index_select(&buckets, 0)?.t()?.contiguous()?,
        positions,
    )
}

/// The bucket, of `buckets`, of a key that lies `distance` tokens after its query;
/// from the distance `max` on all share one. `both_ways` is whether keys may lie after
/// their query: they then have half of the buckets. In 32-bit floats as in
/// transformers, so that the bounds of the buckets are the same.
pub(crate) fn distance_bucket(distance: i64, buckets: usize, max: usize, both_ways: bool) -> u32 {
    let one_way = if both_ways { buckets / 2 } else { buckets };
    let exact = one_way / 2;
    let direction = if both_ways && distance > 0 {
        one_way
    } else {
        0
    };
    let far = if both_ways {
        distance.abs()
    } else {
        -distance.min(0)
    } as usize;
    let within = if far < exact {
        far
    } else {
        let first = exact as f32;
        let octaves = (far as f32 / first).ln() / (max as f64 / exact as f64).ln() as f32;
        let step = (octaves * (one_way - exact) as f32) as usize;
        (exact + step).min(one_way - 1)
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
            let bucket = |distance| distance_bucket(distance, 32, 128, true);
            assert_eq!(bucket(-far), expected as u32, "distance -{far}");
            if far > 0 {
                assert_eq!(bucket(far), expected as u32 + 16, "distance {far}");
            }
        }
    }

    /// The same where all buckets are of one direction, as a decoder has them.
    const ONE_WAY_BOUNDS: [i64; 32] = [
        0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 19, 21, 24, 27, 31, 35, 40, 46,
        52, 59, 67, 77, 87, 99, 113,
    ];

    #[test]
    fn one_way_buckets_are_those_of_transformers() {
        for far in 0..1000 {
            let expected = ONE_WAY_BOUNDS
                .iter()
                .rposition(|bound| *bound <= far)
                .unwrap();
            let bucket = |distance| distance_bucket(distance, 32, 128, false);
            assert_eq!(bucket(-far), expected as u32, "distance -{far}");
            assert_eq!(bucket(far), 0, "what comes later is as near as can be");
        }
    }
}
