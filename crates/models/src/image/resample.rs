//! Resizing with the results of Pillow's `Image.resize`, bit for bit: two passes
//! in fixed point, each rounded to 8 bits.
//!
//! The arithmetic is that of Pillow's Resample.c: weights are computed in double
//! precision, normalised, and rounded to 22 fractional bits.

use std::f64::consts::PI;

/// Samples of a pixel.
pub(crate) const CHANNELS: usize = 3;
const FRACTION_BITS: u32 = 22;

/// A picture of 8 bits: (height, width, 3), rows behind each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Picture {
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) samples: Vec<u8>,
}

/// A resampling filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filter {
    Lanczos,
    Bilinear,
    Bicubic,
}

impl Filter {
    /// The filter under its number in Pillow, as configurations give it.
    pub(crate) fn from_pillow(number: u64) -> Option<Self> {
        match number {
            1 => Some(Self::Lanczos),
            2 => Some(Self::Bilinear),
            3 => Some(Self::Bicubic),
            _ => None,
        }
    }

    /// Source pixels to each side that have weight when nothing is scaled down.
    fn support(self) -> f64 {
        match self {
            Self::Lanczos => 3.0,
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        let x = x.abs();
        if x >= self.support() {
            return 0.0;
        }
        match self {
            Self::Lanczos => sinc(x) * sinc(x / 3.0),
            Self::Bilinear => 1.0 - x,
            // Keys' cubic convolution with a = -1/2.
            Self::Bicubic if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
            Self::Bicubic => ((x - 5.0) * x + 8.0) * x * -0.5 + 2.0,
        }
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    (x * PI).sin() / (x * PI)
}

/// The source pixels of one target pixel: where they begin, and their weights.
struct Window {
    start: usize,
    weights: Vec<i32>,
}

fn windows(source: usize, target: usize, filter: Filter) -> Vec<Window> {
    let scale = source as f64 / target as f64;
    let stretch = scale.max(1.0);
    let support = filter.support() * stretch;
    (0..target)
        .map(|index| {
            let center = (index as f64 + 0.5) * scale;
            let start = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(source);
            let weights: Vec<f64> = (start..end)
                .map(|x| filter.weight((x as f64 - center + 0.5) * (1.0 / stretch)))
                .collect();
            let total: f64 = weights.iter().sum();
            let weights = weights.iter().map(|weight| fixed(weight / total)).collect();
            Window { start, weights }
        })
        .collect()
}

/// To fixed point, halves away from zero.
fn fixed(weight: f64) -> i32 {
    let scaled = weight * f64::from(1 << FRACTION_BITS);
    (scaled + 0.5_f64.copysign(weight)) as i32
}

fn to_sample(sum: i32) -> u8 {
    (sum >> FRACTION_BITS).clamp(0, 255) as u8
}

const HALF: i32 = 1 << (FRACTION_BITS - 1);

/// Resizes a picture; the sides of both sizes must not be zero.
pub(crate) fn resize(picture: Picture, width: usize, height: usize, filter: Filter) -> Picture {
    // Rounding between the passes shows which was first. The rule is that of Pillow
    // 13, found by comparing the results of both orders; versions before began
    // with the rows.
    let columns_lost = picture.height.saturating_sub(height);
    let rows_first = columns_lost <= 2 * picture.width.saturating_sub(width);
    if rows_first {
        resize_columns(resize_rows(picture, width, filter), height, filter)
    } else {
        resize_rows(resize_columns(picture, height, filter), width, filter)
    }
}

/// Changes the length of all rows.
fn resize_rows(picture: Picture, width: usize, filter: Filter) -> Picture {
    if picture.width == width {
        return picture;
    }
    let windows = windows(picture.width, width, filter);
    let mut samples = Vec::with_capacity(width * picture.height * CHANNELS);
    for row in picture.samples.chunks_exact(picture.width * CHANNELS) {
        for window in &windows {
            let mut sums = [HALF; CHANNELS];
            let pixels = row[window.start * CHANNELS..].chunks_exact(CHANNELS);
            for (pixel, weight) in pixels.zip(&window.weights) {
                for (sum, sample) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(*sample) * weight;
                }
            }
            samples.extend(sums.map(to_sample));
        }
    }
    Picture {
        width,
        height: picture.height,
        samples,
    }
}

/// Changes the length of all columns.
fn resize_columns(picture: Picture, height: usize, filter: Filter) -> Picture {
    if picture.height == height {
        return picture;
    }
    let stride = picture.width * CHANNELS;
    let mut samples = Vec::with_capacity(stride * height);
    let mut sums = vec![HALF; stride];
    for window in windows(picture.height, height, filter) {
        sums.fill(HALF);
        let rows = picture.samples[window.start * stride..].chunks_exact(stride);
        for (row, weight) in rows.zip(&window.weights) {
            for (sum, sample) in sums.iter_mut().zip(row) {
                *sum += i32::from(*sample) * weight;
            }
        }
        samples.extend(sums.iter().map(|sum| to_sample(*sum)));
    }
    Picture {
        width: picture.width,
        height,
        samples,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gray(width: usize, height: usize, values: &[u8]) -> Picture {
        Picture {
            width,
            height,
            samples: values.iter().flat_map(|v| [*v; CHANNELS]).collect(),
        }
    }

    fn first_channel(picture: &Picture) -> Vec<u8> {
        picture.samples.iter().step_by(CHANNELS).copied().collect()
    }

    const ORDERS: [(usize, usize, [u8; 16]); 4] = [
        (
            3,
            9,
            [
                71, 94, 94, 71, 94, 129, 151, 147, 116, 154, 152, 110, 146, 108, 118, 169,
            ],
        ),
        (
            6,
            9,
            [
                85, 82, 135, 140, 115, 146, 101, 141, 139, 130, 99, 113, 124, 133, 97, 139,
            ],
        ),
        (
            6,
            8,
            [
                77, 74, 133, 137, 114, 152, 113, 148, 150, 119, 82, 114, 91, 146, 127, 123,
            ],
        ),
        (
            9,
            3,
            [
                20, 106, 189, 50, 78, 99, 136, 103, 128, 126, 109, 117, 138, 171, 124, 82,
            ],
        ),
    ];

    #[test]
    fn one_pixel_becomes_a_plane() {
        let picture = resize(gray(1, 1, &[77]), 5, 4, Filter::Bicubic);
        assert_eq!((picture.width, picture.height), (5, 4));
        assert_eq!(picture.samples, [77; 60]);
    }

    #[test]
    fn the_same_size_changes_nothing() {
        let picture = gray(3, 2, &[1, 2, 3, 4, 5, 6]);
        assert_eq!(resize(picture.clone(), 3, 2, Filter::Lanczos), picture);
    }

    // As below; with the other order of passes each of these is different.
    #[test]
    fn the_order_of_passes_is_that_of_pillow() {
        for (width, height, expected) in ORDERS {
            let values: Vec<u8> = (0..height)
                .flat_map(|y| (0..width).map(move |x| ((x * 37 + y * 91 + x * y * 53) % 256) as u8))
                .collect();
            let picture = resize(gray(width, height, &values), 4, 4, Filter::Bicubic);
            assert_eq!(first_channel(&picture), expected, "{width} x {height}");
        }
    }

    // The expected values are Pillow's (13.0.0, Image.resize of mode L).
    #[test]
    fn values_are_those_of_pillow() {
        let source = [0, 255, 10, 200, 30, 90, 60, 250];
        for (filter, width, expected) in PILLOW {
            let picture = resize(gray(8, 1, &source), width, 1, filter);
            assert_eq!(first_channel(&picture), expected, "{filter:?} to {width}");
            let picture = resize(gray(1, 8, &source), 1, width, filter);
            assert_eq!(
                first_channel(&picture),
                expected,
                "{filter:?} down to {width}"
            );
        }
    }

    const PILLOW: [(Filter, usize, &[u8]); 12] = [
        (Filter::Bicubic, 3, &[114, 93, 125]),
        (Filter::Bicubic, 5, &[105, 116, 109, 59, 176]),
        (Filter::Bicubic, 8, &[0, 255, 10, 200, 30, 90, 60, 250]),
        (
            Filter::Bicubic,
            13,
            &[0, 108, 254, 82, 39, 192, 123, 27, 74, 78, 57, 177, 255],
        ),
        (Filter::Bilinear, 3, &[119, 95, 120]),
        (Filter::Bilinear, 5, &[104, 109, 110, 71, 172]),
        (Filter::Bilinear, 8, &[0, 255, 10, 200, 30, 90, 60, 250]),
        (
            Filter::Bilinear,
            13,
            &[0, 108, 246, 95, 61, 178, 115, 37, 74, 80, 61, 170, 250],
        ),
        (Filter::Lanczos, 3, &[117, 91, 124]),
        (Filter::Lanczos, 5, &[104, 130, 104, 49, 181]),
        (Filter::Lanczos, 8, &[0, 255, 10, 200, 30, 90, 60, 250]),
        (
            Filter::Lanczos,
            13,
            &[0, 118, 255, 83, 31, 189, 135, 22, 72, 74, 56, 177, 255],
        ),
    ];
}
