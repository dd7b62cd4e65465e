//! Powers of two that bring values to where their squares are floats.

/// Magnitudes up to this, and down to its reciprocal, stay as they are.
pub(crate) const LARGEST: f64 = (1u32 << 20) as f64;

/// A power of two by which values of which `largest` is the largest magnitude can
/// be divided, so that squares of the quotients neither overflow nor vanish. It and
/// its reciprocal are floats of 32 bits, and it is 1 for usual magnitudes.
pub(crate) fn unit(largest: f64) -> f64 {
    if largest == 0.0 || (1.0 / LARGEST..=LARGEST).contains(&largest) {
        return 1.0;
    }
    largest.log2().floor().clamp(-126.0, 127.0).exp2()
}

/// The largest magnitude.
pub(crate) fn largest(values: &[f32]) -> f64 {
    let largest = values
        .iter()
        .fold(0.0f32, |largest, x| largest.max(x.abs()));
    f64::from(largest)
}

/// The values divided by a [`unit`].
pub(crate) fn divide(values: &[f32], unit: f64) -> Vec<f32> {
    let factor = 1.0 / unit;
    let divide = |&x: &f32| (f64::from(x) * factor) as f32;
    values.iter().map(divide).collect()
}
