//! GIF: the first frame on its screen, as Pillow shows it.

use weezl::{BitOrder, LzwStatus};

use crate::error::ModelError;
use crate::image::decode::{Decoded, ImageLimits};
use crate::image::fault::{check_size, damaged};
use crate::image::orientation::Orientation;
use crate::image::resample::{CHANNELS, Picture};

const NAME: &str = "GIF";
const EXTENSION: u8 = b'!';
const FRAME: u8 = b',';
const END: u8 = b';';
const GRAPHIC_CONTROL: u8 = 0xf9;

/// What is left of the file.
struct Source<'a>(&'a [u8]);

impl<'a> Source<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], ModelError> {
        let (taken, rest) = self
            .0
            .split_at_checked(count)
            .ok_or_else(|| damaged(NAME, "it ends too early"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, ModelError> {
        self.take(1).map(|bytes| bytes[0])
    }

    /// A block of up to 255 bytes; none ends a series of blocks.
    fn block(&mut self) -> Result<&'a [u8], ModelError> {
        let length = self.byte()?;
        self.take(length.into())
    }

    /// The palette that flags of a screen or a frame announce.
    fn palette(&mut self, flags: u8) -> Result<Option<&'a [u8]>, ModelError> {
        if flags & 0x80 == 0 {
            return Ok(None);
        }
        self.take(3 << ((flags & 7) + 1)).map(Some)
    }
}

fn word(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

/// The first frame and what its pixels mean.
struct Frame<'a> {
    left: usize,
    top: usize,
    width: usize,
    height: usize,
    interlaced: bool,
    transparent: Option<u8>,
    palette: Option<&'a [u8]>,
}

pub(super) fn decode(bytes: &[u8], limits: &ImageLimits) -> Result<Decoded, ModelError> {
    let mut source = Source(bytes);
    let screen = source.take(13)?;
    let global = source.palette(screen[10])?;
    let frame = first_frame(&mut source, global)?;
    // A frame that is larger than the screen enlarges it.
    let width = word(screen, 6).max(frame.left + frame.width);
    let height = word(screen, 8).max(frame.top + frame.height);
    check_size(NAME, width as u64, height as u64, limits)?;
    let indices = frame_indices(&mut source, &frame)?;

    let color = |index: u8| match frame.palette {
        // Palettes may be shorter than the range of indices; what is beyond is black.
        Some(palette) => {
            let at = usize::from(index) * CHANNELS;
            palette
                .get(at..)
                .and_then(<[u8]>::first_chunk)
                .copied()
                .unwrap_or([0; CHANNELS])
        }
        None => [index; CHANNELS],
    };
    let around = color(frame.transparent.unwrap_or(0));
    let mut samples = around.repeat(width * height);
    if frame.width > 0 {
        for (number, row) in indices.chunks_exact(frame.width).enumerate() {
            let y = frame.top + row_of(number, &frame);
            let at = (y * width + frame.left) * CHANNELS;
            let target = samples[at..].as_chunks_mut::<CHANNELS>().0;
            for (pixel, index) in target.iter_mut().zip(row) {
                *pixel = color(*index);
            }
        }
    }
    Ok(Decoded {
        picture: Picture {
            width,
            height,
            samples,
        },
        orientation: Orientation::default(),
    })
}

/// Reads up to the data of the first frame.
fn first_frame<'a>(
    source: &mut Source<'a>,
    global: Option<&'a [u8]>,
) -> Result<Frame<'a>, ModelError> {
    let mut transparent = None;
    loop {
        match source.byte()? {
            EXTENSION => {
                let label = source.byte()?;
                let mut block = source.block()?;
                if let (GRAPHIC_CONTROL, [flags, _, _, index, ..]) = (label, block) {
                    transparent = (flags & 1 != 0).then_some(*index);
                }
                while !block.is_empty() {
                    block = source.block()?;
                }
            }
            FRAME => {
                let header = source.take(9)?;
                let local = source.palette(header[8])?;
                return Ok(Frame {
                    left: word(header, 0),
                    top: word(header, 2),
                    width: word(header, 4),
                    height: word(header, 6),
                    interlaced: header[8] & 0x40 != 0,
                    transparent,
                    palette: local.or(global),
                });
            }
            END => return Err(damaged(NAME, "it has no frame")),
            // Stray bytes between blocks.
            _ => {}
        }
    }
}

/// The indices of a frame's pixels, in the order of the file.
fn frame_indices(source: &mut Source, frame: &Frame) -> Result<Vec<u8>, ModelError> {
    let code_size = source.byte()?;
    if !(1..=11).contains(&code_size) {
        return Err(damaged(NAME, "its code size is impossible"));
    }
    // A file that ends after the last pixel is good enough.
    let mut data = Vec::new();
    while let Ok([first, rest @ ..]) = source.block() {
        data.push(*first);
        data.extend_from_slice(rest);
    }
    let mut decoder = weezl::decode::Decoder::new(BitOrder::Lsb, code_size);
    let mut indices = vec![0; frame.width * frame.height];
    let (mut used, mut filled) = (0, 0);
    while filled < indices.len() {
        let result = decoder.decode_bytes(&data[used..], &mut indices[filled..]);
        used += result.consumed_in;
        filled += result.consumed_out;
        let goes_on = match result.status {
            Ok(LzwStatus::Ok) => result.consumed_in + result.consumed_out > 0,
            Ok(LzwStatus::NoProgress | LzwStatus::Done) => false,
            Err(_) => return Err(damaged(NAME, "its data have an impossible code")),
        };
        if !goes_on && filled < indices.len() {
            return Err(damaged(NAME, "its data end too early"));
        }
    }
    Ok(indices)
}

/// Where a row of the file is in the frame: interlaced frames have every eighth
/// row first, then those between, in three further passes.
fn row_of(number: usize, frame: &Frame) -> usize {
    if !frame.interlaced {
        return number;
    }
    let mut before = 0;
    for (first, step) in [(0, 8), (4, 8), (2, 4)] {
        let rows = frame.height.saturating_sub(first).div_ceil(step);
        if number < before + rows {
            return first + (number - before) * step;
        }
        before += rows;
    }
    1 + (number - before) * 2
}
