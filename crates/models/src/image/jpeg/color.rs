//! From the planes of a JPEG to RGB, with the results of libjpeg and Pillow:
//! planes are brought to full size by interpolation, colours by fixed point.

use crate::image::jpeg::markers::{Component, Frame};
use crate::image::jpeg::scan::Plane;
use crate::image::pillow::cmyk_to_rgb;
use crate::image::resample::CHANNELS;

/// How the components are to be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Colors {
    Gray,
    Rgb,
    Ycc,
    /// Inverted CMYK, as all programs write it since Adobe's did.
    Cmyk,
    /// Inverted CMYK whose first three are coded as YCC.
    Ycck,
}

/// The first three samples that luminance and chrominance stand for.
#[inline(always)]
fn ycc_to_rgb(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    // 16 fractional bits of 1.402, 1.772, 0.71414 and 0.34414 (JFIF 1.02).
    const HALF: i32 = 1 << 15;
    let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
    let red = y + ((91_881 * cr + HALF) >> 16);
    let green = y + ((-22_554 * cb - 46_802 * cr + HALF) >> 16);
    let blue = y + ((116_130 * cb + HALF) >> 16);
    [red, green, blue].map(|value| value.clamp(0, 255) as u8)
}

/// All rows of the picture as RGB.
pub(super) fn to_rgb(frame: &Frame, planes: &[Plane], colors: Colors) -> Vec<u8> {
    let mut samples = Vec::with_capacity(frame.width * frame.height * CHANNELS);
    let mut rows: Vec<Row> = frame
        .components
        .iter()
        .map(|part| Row::new(frame, part))
        .collect();
    for y in 0..frame.height {
        for (row, plane) in rows.iter_mut().zip(planes) {
            row.fill(plane, y);
        }
        let row = |index: usize| rows[index].samples[..frame.width].iter().copied();
        let three = || row(0).zip(row(1)).zip(row(2));
        match colors {
            Colors::Gray => samples.extend(row(0).flat_map(|gray| [gray; CHANNELS])),
            Colors::Rgb => samples.extend(three().flat_map(|((r, g), b)| [r, g, b])),
            Colors::Ycc => samples.extend(three().flat_map(|((y, cb), cr)| ycc_to_rgb(y, cb, cr))),
            Colors::Cmyk => {
                samples.extend(three().zip(row(3)).flat_map(|(((c, m), y), k)| {
                    cmyk_to_rgb([c, m, y, k].map(|value| 255 - value))
                }))
            }
            Colors::Ycck => samples.extend(three().zip(row(3)).flat_map(|(((y, cb), cr), k)| {
                let [c, m, y] = ycc_to_rgb(y, cb, cr);
                cmyk_to_rgb([c, m, y, 255 - k])
            })),
        }
    }
    samples
}

/// A row of a component at the picture's size.
struct Row<'a> {
    component: &'a Component,
    /// Pixels of the picture across and down for each sample.
    across: usize,
    down: usize,
    samples: Vec<u8>,
    /// Samples of two rows, weighted, before they are spread.
    sums: Vec<u16>,
}

impl<'a> Row<'a> {
    fn new(frame: &Frame, component: &'a Component) -> Self {
        let across = frame.across / component.across;
        Self {
            component,
            across,
            down: frame.down / component.down,
            samples: vec![0; component.width * across],
            sums: vec![0; component.width],
        }
    }

    /// Interpolates where a size is doubled, as libjpeg does, and repeats samples
    /// for other factors.
    fn fill(&mut self, plane: &Plane, y: usize) {
        let width = self.component.width;
        let source = |row: usize| &plane.samples[row * plane.stride..][..width];
        let near = y / self.down;
        let last = self.component.height - 1;
        let far = if y.is_multiple_of(2) {
            near.saturating_sub(1)
        } else {
            (near + 1).min(last)
        };
        let weighted = source(near).iter().zip(source(far));
        let weighted = weighted.map(|(near, far)| 3 * u16::from(*near) + u16::from(*far));
        match (self.across, self.down) {
            (1, 1) => self.samples.copy_from_slice(source(near)),
            (1, 2) => {
                let bias = if y.is_multiple_of(2) { 1 } else { 2 };
                for (sample, sum) in self.samples.iter_mut().zip(weighted) {
                    *sample = ((sum + bias) >> 2) as u8;
                }
            }
            (2, 1) if width > 2 => {
                for (sum, sample) in self.sums.iter_mut().zip(source(near)) {
                    *sum = u16::from(*sample);
                }
                spread(&self.sums, &mut self.samples, 2, [1, 2]);
            }
            (2, 2) if width > 2 => {
                for (sum, value) in self.sums.iter_mut().zip(weighted) {
                    *sum = value;
                }
                spread(&self.sums, &mut self.samples, 4, [8, 7]);
            }
            (across, _) => {
                for (samples, sample) in self.samples.chunks_exact_mut(across).zip(source(near)) {
                    samples.fill(*sample);
                }
            }
        }
    }
}

/// Two samples for each sum: three parts of it and one of its neighbour. The
/// biases alternate, so that rounding does not favour one side.
fn spread(sums: &[u16], samples: &mut [u8], shift: u32, biases: [u16; 2]) {
    let last = sums.len() - 1;
    samples[0] = ((4 * sums[0] + biases[0]) >> shift) as u8;
    samples[2 * last + 1] = ((4 * sums[last] + biases[1]) >> shift) as u8;
    let between = samples[1..2 * last + 1].as_chunks_mut::<2>().0;
    for (pair, window) in between.iter_mut().zip(sums.windows(2)) {
        pair[0] = ((3 * window[0] + window[1] + biases[1]) >> shift) as u8;
        pair[1] = ((3 * window[1] + window[0] + biases[0]) >> shift) as u8;
    }
}
