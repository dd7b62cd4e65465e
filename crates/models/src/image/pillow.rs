//! Conversions of samples with the rounding of Pillow's `Image.convert`.

/// From percentages of ink, 255 being full, to light.
pub(super) fn cmyk_to_rgb([c, m, y, k]: [u8; 4]) -> [u8; 3] {
    let light = 255 - k;
    [c, m, y].map(|ink| light - product(ink, light))
}

/// The product of two fractions of 255, rounded.
fn product(a: u8, b: u8) -> u8 {
    let value = u32::from(a) * u32::from(b) + 128;
    (((value >> 8) + value) >> 8) as u8
}

/// Colours of 16 bits keep their high byte.
pub(super) fn high_byte(sample: u16) -> u8 {
    (sample >> 8) as u8
}

/// Gray of 16 bits is cut off at white: Pillow takes it for a measurement, whose
/// values are not spread over the whole range.
pub(super) fn cut_off(sample: u16) -> u8 {
    sample.min(255) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_rounded() {
        for a in 0..=255_u8 {
            for b in 0..=255_u8 {
                let exact = (f64::from(a) * f64::from(b) / 255.0).round();
                assert_eq!(f64::from(product(a, b)), exact, "{a} {b}");
            }
        }
        assert_eq!(cmyk_to_rgb([0, 255, 128, 0]), [255, 0, 127]);
        assert_eq!(cmyk_to_rgb([0, 0, 0, 255]), [0; 3]);
    }
}
