//! The signs of vectors as codes, and the look-up tables that score them.

use crate::fast_scan::{ENTRIES, FastScan, Step};

/// Dimensions of a 4-bit sub-code.
const GROUP: usize = 4;

/// Each bit of the numbers of all entries.
const BITS: [[f32; ENTRIES]; GROUP] = {
    let mut bits = [[0.0; ENTRIES]; GROUP];
    let mut i = 0;
    while i < GROUP * ENTRIES {
        let (bit, entry) = (i / ENTRIES, i % ENTRIES);
        bits[bit][entry] = (entry >> bit & 1) as f32;
        i += 1;
    }
    bits
};

/// The signs that each byte of a code stands for.
static SIGNS: [[f32; 8]; 256] = {
    let mut signs = [[-1.0; 8]; 256];
    let mut i = 0;
    while i < 256 * 8 {
        let (byte, bit) = (i / 8, i % 8);
        if byte >> bit & 1 == 1 {
            signs[byte][bit] = 1.0;
        }
        i += 1;
    }
    signs
};

/// Sets the bits of the components of at least 0, and clears the others.
pub(crate) fn encode(vector: &[f32], code: &mut [u8]) {
    let bits = |components: &[f32]| {
        let bits = components.iter().enumerate();
        bits.fold(0, |byte, (i, &x)| byte | u8::from(x >= 0.0) << i)
    };
    // Whole groups by themselves, as the compiler has vectors of those.
    let (groups, rest) = vector.as_chunks::<8>();
    for (group, byte) in groups.iter().zip(&mut *code) {
        *byte = bits(group);
    }
    if let Some(byte) = code.get_mut(groups.len()) {
        *byte = bits(rest);
    }
}

/// Appends +1 and -1 for the bits of `dim` dimensions.
pub(crate) fn decode(code: &[u8], dim: usize, out: &mut Vec<f32>) {
    let end = out.len() + dim;
    for &byte in code {
        out.extend_from_slice(&SIGNS[usize::from(byte)]);
    }
    out.truncate(end);
}

/// Tables of the inner products of a query with signs. Entry `c` of the table of a
/// group of dimensions is the sum of its components, with the signs that the bits
/// of `c` say.
pub(crate) fn fast_scan(query: &[f32]) -> FastScan {
    let (mut total, mut widest) = (0.0, 0.0f64);
    for group in query.chunks(GROUP) {
        let length: f64 = group.iter().map(|&x| f64::from(x).abs()).sum();
        total += length;
        widest = widest.max(length);
    }
    let tables = query.len().div_ceil(GROUP);
    let step = Step::new(tables, -total, 2.0 * total, 2.0 * widest);
    let gain = |&x: &f32| (2.0 * f64::from(x) * step.inverse()) as f32;
    let mut groups = query.chunks(GROUP);
    FastScan::new(step, 0.0, |table| {
        let mut gains = [0.0; GROUP];
        for (to, x) in gains.iter_mut().zip(groups.next().unwrap_or_default()) {
            *to = gain(x);
        }
        fill(gains, table);
    })
}

/// Entries in steps above the least one: what each bit that is set gains, from where
/// the bits of exactly the negative components give 0.
fn fill(gains: [f32; GROUP], table: &mut [u8; ENTRIES]) {
    let least: f32 = gains.iter().map(|gain| gain.min(0.0)).sum();
    let mut entries = [-least; ENTRIES];
    // All entries side by side: sums of sums would be fewer operations, but not such
    // as the compiler turns into vectors.
    for (gain, bits) in gains.into_iter().zip(BITS) {
        for (entry, bit) in entries.iter_mut().zip(bits) {
            *entry += gain * bit;
        }
    }
    for (to, steps) in table.iter_mut().zip(entries) {
        // Entries are between 0 and 255. The compiler has vectors of such a
        // conversion, and none of one to 8 bits.
        *to = (steps + 0.5) as i32 as u8;
    }
}
