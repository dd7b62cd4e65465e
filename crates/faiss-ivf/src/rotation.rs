//! A random rotation that takes d log d operations instead of the d² of a matrix: signs
//! are flipped at random, and Hadamard transforms mix what results, in several rounds
//! (Ailon and Chazelle, "The fast Johnson-Lindenstrauss transform and approximate nearest
//! neighbors", SIAM Journal on Computing 39, 2009).
//!
//! A Hadamard transform takes a power of two. So each round transforms as many components
//! as the largest power of two that there are of them: those in the middle, the first, the
//! last, and those in the middle again. All of these steps are orthogonal, and so is what
//! becomes of them.

use crate::error::FaissError;

/// With these, what becomes of unit vectors is close to normally distributed; 1000
/// dimensions, of which hardly any are transformed in two rounds that follow each other,
/// would take more of them if none were in the middle.
const ROUNDS: usize = 4;
/// Vectors have so many components at least that are transformed in registers.
const LANES: usize = 8;

/// A rotation of vectors of `dim` dimensions.
#[derive(Debug)]
pub(crate) struct Rotation {
    dim: usize,
    /// For each round and component 1 or -1, with which it is multiplied.
    signs: Vec<f32>,
}

/// Gives the same bits each time (SplitMix64 of Steele, Lea and Flood, "Fast splittable
/// pseudorandom number generators", OOPSLA 2014).
struct Bits(u64);

impl Iterator for Bits {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Some(((z ^ (z >> 31)) >> 56) as u8)
    }
}

impl Rotation {
    /// The rotation of this number of dimensions, at least one: always the same.
    pub fn new(dim: usize) -> Self {
        let signs: Vec<u8> = Bits(dim as u64).take(Self::signs_size(dim)).collect();
        Self::of_signs(dim, &signs)
    }

    /// Bytes of [`Self::state`].
    pub const fn state_size(dim: usize) -> usize {
        Self::signs_size(dim) + size_of::<u32>()
    }

    const fn signs_size(dim: usize) -> usize {
        ROUNDS * dim.div_ceil(8)
    }

    /// The signs, a bit each, the rounds one behind another in whole bytes; and a checksum,
    /// for any signs make a rotation.
    pub fn state(&self) -> Vec<u8> {
        let mut state = self.packed_signs();
        let sum = checksum(&state);
        state.extend(sum.to_ne_bytes());
        state
    }

    fn packed_signs(&self) -> Vec<u8> {
        let rounds = self.signs.chunks_exact(self.dim);
        rounds
            .flat_map(|round| round.chunks(8))
            .map(|signs| {
                let bits = signs.iter().enumerate();
                bits.fold(0, |byte, (bit, sign)| {
                    byte | u8::from(sign.is_sign_negative()) << bit
                })
            })
            .collect()
    }

    /// The rotation of which [`Self::state`] was taken.
    ///
    /// # Errors
    /// `InvalidArgument` when there are more bytes or fewer, or they are damaged.
    pub fn from_state(dim: usize, state: &[u8]) -> Result<Self, FaissError> {
        if state.len() != Self::state_size(dim) {
            return Err(FaissError::invalid(
                "the state of a rotation has another length",
            ));
        }
        let (signs, sum) = state.split_at(Self::signs_size(dim));
        if checksum(signs).to_ne_bytes() != sum {
            return Err(FaissError::invalid("the state of a rotation is damaged"));
        }
        Ok(Self::of_signs(dim, signs))
    }

    fn of_signs(dim: usize, signs: &[u8]) -> Self {
        let rounds = signs.chunks_exact(dim.div_ceil(8));
        let signs = rounds.flat_map(|signs| {
            let is_negative = |at: usize| signs[at / 8] >> (at % 8) & 1 == 1;
            (0..dim).map(move |at| if is_negative(at) { -1.0 } else { 1.0 })
        });
        Self {
            dim,
            signs: signs.collect(),
        }
    }

    /// Rotates vectors `(n, dim)` in place. Components whose sums a float cannot hold
    /// become infinite or not a number.
    pub fn apply(&self, vectors: &mut [f32]) {
        let window = 1 << self.dim.ilog2();
        let scale = 1.0 / (window as f32).sqrt();
        let last = self.dim - window;
        let begins: [usize; ROUNDS] = [last / 2, 0, last, last / 2];
        for vector in vectors.chunks_exact_mut(self.dim) {
            for (signs, begin) in self.signs.chunks_exact(self.dim).zip(begins) {
                for (value, sign) in vector.iter_mut().zip(signs) {
                    *value *= sign;
                }
                let window = &mut vector[begin..begin + window];
                // Before the sums, which may be too large otherwise.
                for value in &mut *window {
                    *value *= scale;
                }
                hadamard(window);
            }
        }
    }
}

/// FNV-1a of 32 bits (Fowler, Noll and Vo).
fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |sum, byte| {
        (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    })
}

/// Sums and differences of two slices of the same length.
fn butterflies(left: &mut [f32], right: &mut [f32]) {
    for (left, right) in left.iter_mut().zip(right) {
        (*left, *right) = (*left + *right, *left - *right);
    }
}

/// Multiplies with the Hadamard matrix of Sylvester's order; the length is a power of two.
fn hadamard(vector: &mut [f32]) {
    let (chunks, _) = vector.as_chunks_mut::<LANES>();
    let mut width = 1;
    if !chunks.is_empty() {
        for chunk in chunks {
            hadamard_of_lanes(chunk);
        }
        width = LANES;
    }
    while width < vector.len() {
        for pair in vector.chunks_exact_mut(2 * width) {
            let (left, right) = pair.split_at_mut(width);
            butterflies(left, right);
        }
        width *= 2;
    }
}

/// As [`hadamard`]; written so that the compiler keeps it in one register.
fn hadamard_of_lanes(x: &mut [f32; LANES]) {
    let step = |x: [f32; LANES], width: usize| -> [f32; LANES] {
        std::array::from_fn(|lane| {
            let other = x[lane ^ width];
            if lane & width == 0 {
                other + x[lane]
            } else {
                other - x[lane]
            }
        })
    };
    *x = step(step(step(*x, 1), 2), 4);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rotated(dim: usize, vectors: &[f32]) -> Vec<f32> {
        let mut vectors = vectors.to_vec();
        Rotation::new(dim).apply(&mut vectors);
        vectors
    }

    #[test]
    fn a_hadamard_transform_is_sylvesters() {
        for length in [1, 2, 4, 8, 16, 64] {
            for at in 0..length {
                let mut vector = vec![0.0; length];
                vector[at] = 1.0;
                hadamard(&mut vector);
                for (row, value) in vector.iter().enumerate() {
                    let expected = if (row & at).count_ones() % 2 == 0 {
                        1.0
                    } else {
                        -1.0
                    };
                    assert_eq!(*value, expected, "{length}: {row}, {at}");
                }
            }
        }
    }

    #[test]
    fn unit_vectors_stay_at_right_angles_and_spread_over_all_components() {
        for dim in [64, 100, 129, 255, 384, 768, 1000] {
            let mut units = vec![0.0; dim * dim];
            for at in 0..dim {
                units[at * dim + at] = 1.0;
            }
            let rows = rotated(dim, &units);
            let rows: Vec<&[f32]> = rows.chunks_exact(dim).collect();
            // Each component of a row has the variance 1/dim; as a normal distribution has it,
            // none of dim² of them is six times as long, and fourth powers are 3/dim² on average: here nearly so.
            let mut fourth = 0.0;
            for (place, row) in rows.iter().enumerate() {
                let length: f64 = row.iter().map(|x| f64::from(*x).powi(2)).sum();
                assert!((length - 1.0).abs() < 1e-5, "{dim}: {length}");
                let other = rows[(place + 1) % dim];
                let product: f64 = row
                    .iter()
                    .zip(other)
                    .map(|(a, b)| f64::from(*a) * f64::from(*b))
                    .sum();
                assert!(product.abs() < 1e-5, "{dim}: {product}");
                let largest = row.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
                assert!(largest < 6.0 / (dim as f32).sqrt(), "{dim}: {largest}");
                fourth += row.iter().map(|x| f64::from(*x).powi(4)).sum::<f64>();
            }
            assert!((2.5..3.3).contains(&fourth), "{dim}: {fourth}");
        }
    }

    #[test]
    fn the_same_signs_make_the_same_rotation() {
        for dim in [1, 2, 3, 7, 8, 9, 100] {
            let vectors: Vec<f32> = (0..3 * dim).map(|i| (i as f32).sin()).collect();
            let rotation = Rotation::new(dim);
            let state = rotation.state();
            assert_eq!(state.len(), Rotation::state_size(dim));
            let again = Rotation::from_state(dim, &state).unwrap();
            let (mut a, mut b) = (vectors.clone(), vectors.clone());
            rotation.apply(&mut a);
            again.apply(&mut b);
            assert_eq!(a, b);
            assert_eq!(a, rotated(dim, &vectors));
            assert!(Rotation::from_state(dim, &state[1..]).is_err());
        }
    }
}
