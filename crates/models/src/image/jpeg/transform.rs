//! The inverse cosine transform of a block, with the results of libjpeg's
//! accurate integer method, which Pillow uses.
//!
//! The algorithm is that of C. Loeffler, A. Ligtenberg and G. Moschytz, "Practical
//! fast 1-D DCT algorithms with 11 multiplications" (ICASSP 1989), once over the
//! columns and once over the rows. Constants have 13 fractional bits and what is
//! between the passes has 2.

use crate::image::jpeg::markers::BLOCK;

const CONSTANT_BITS: u32 = 13;
const MIDDLE_BITS: u32 = 2;
const CENTER: i32 = 128;

const fn fixed(value: f64) -> i32 {
    (value * (1 << CONSTANT_BITS) as f64 + 0.5) as i32
}

// The products of rotations in the flow graph, each rounded on its own.
const EVEN: [i32; 3] = [
    fixed(0.541_196_100),
    fixed(1.847_759_065),
    fixed(0.765_366_865),
];
const ODD: [i32; 4] = [
    fixed(0.298_631_336),
    fixed(2.053_119_869),
    fixed(3.072_711_026),
    fixed(1.501_321_110),
];
const PAIRS: [i32; 4] = [
    fixed(0.899_976_223),
    fixed(2.562_915_447),
    fixed(1.961_570_560),
    fixed(0.390_180_644),
];
const ALL: i32 = fixed(1.175_875_602);

/// One transform of eight values; the results have `shift` bits less, rounded.
/// Sums wrap around: only damaged files come near the bounds.
#[inline(always)]
fn eight(x: [i32; 8], shift: u32) -> [i32; 8] {
    let add = i32::wrapping_add;
    let sub = i32::wrapping_sub;
    let mul = i32::wrapping_mul;

    let both = mul(add(x[2], x[6]), EVEN[0]);
    let low = sub(both, mul(x[6], EVEN[1]));
    let high = add(both, mul(x[2], EVEN[2]));
    let sum = add(x[0], x[4]) << CONSTANT_BITS;
    let difference = sub(x[0], x[4]) << CONSTANT_BITS;
    let even = [
        add(sum, high),
        add(difference, low),
        sub(difference, low),
        sub(sum, high),
    ];

    let third = add(x[7], x[3]);
    let fourth = add(x[5], x[1]);
    let all = mul(add(third, fourth), ALL);
    let first = mul(add(x[7], x[1]), PAIRS[0]);
    let second = mul(add(x[5], x[3]), PAIRS[1]);
    let third = sub(all, mul(third, PAIRS[2]));
    let fourth = sub(all, mul(fourth, PAIRS[3]));
    let odd = [
        add(sub(mul(x[1], ODD[3]), first), fourth),
        add(sub(mul(x[3], ODD[2]), second), third),
        add(sub(mul(x[5], ODD[1]), second), fourth),
        add(sub(mul(x[7], ODD[0]), first), third),
    ];

    let half = 1 << (shift - 1);
    std::array::from_fn(|index| {
        let value = if index < 4 {
            add(even[index], odd[index])
        } else {
            sub(even[7 - index], odd[7 - index])
        };
        add(value, half) >> shift
    })
}

/// Transforms quantised coefficients, rows behind each other, to samples at
/// `target`, whose rows are `stride` apart.
pub(super) fn block_to_samples(
    coefficients: &[i16; BLOCK],
    quantisation: &[u16; BLOCK],
    target: &mut [u8],
    stride: usize,
) {
    let value =
        |index: usize| i32::from(coefficients[index]).wrapping_mul(i32::from(quantisation[index]));
    if coefficients[1..]
        .iter()
        .all(|coefficient| *coefficient == 0)
    {
        let level = (value(0).wrapping_add(4) >> 3).wrapping_add(CENTER);
        let level = level.clamp(0, 255) as u8;
        for row in target.chunks_mut(stride).take(8) {
            row[..8].fill(level);
        }
        return;
    }
    let mut middle = [[0; 8]; 8];
    for column in 0..8 {
        let values = std::array::from_fn(|row| value(row * 8 + column));
        let results = eight(values, CONSTANT_BITS - MIDDLE_BITS);
        for (row, result) in middle.iter_mut().zip(results) {
            row[column] = result;
        }
    }
    for (values, row) in middle.into_iter().zip(target.chunks_mut(stride)) {
        let results = eight(values, CONSTANT_BITS + MIDDLE_BITS + 3);
        for (sample, result) in row[..8].iter_mut().zip(results) {
            *sample = result.wrapping_add(CENTER).clamp(0, 255) as u8;
        }
    }
}
