//! TIFF, through the tiff crate.

use std::borrow::Cow;
use std::io::Cursor;

use tiff::ColorType;
use tiff::decoder::{Decoder, Limits};
use tiff::tags::{SampleFormat, Tag};
use tiff::{TiffError, TiffResult};

use crate::error::ModelError;
use crate::image::decode::{Decoded, ImageLimits};
use crate::image::fault::{check_size, damaged, too_large, unsupported_form};
use crate::image::orientation::Orientation;
use crate::image::pillow::{cmyk_to_rgb, cut_off, high_byte};
use crate::image::resample::{CHANNELS, Picture};

const NAME: &str = "TIFF";
/// Memory for what is not pixels.
const OVERHEAD_BYTES: usize = 64 << 20;
/// The most samples of a pixel, each of 16 bits.
const MOST_SAMPLES: usize = 5;
const SEPARATE_PLANES: u16 = 2;
const PREMULTIPLIED: u16 = 1;

fn failed(error: TiffError) -> ModelError {
    match error {
        TiffError::LimitsExceeded => too_large(format!(
            "It is a {NAME} whose decoding needs more memory than the limit allows."
        )),
        TiffError::UnsupportedError(kind) => unsupported_form(format_args!(
            "TIFF with something that its decoder lacks: {kind}"
        )),
        error => damaged(NAME, format_args!("its decoder says: {error}")),
    }
}

type Source<'a> = Decoder<Cursor<&'a [u8]>>;

pub(super) fn decode(bytes: &[u8], limits: &ImageLimits) -> Result<Decoded, ModelError> {
    let (bytes, has_palette) = indices_as_gray(bytes);
    let mut decoder = Decoder::new(Cursor::new(&*bytes)).map_err(failed)?;
    let (width, height) = decoder.dimensions().map_err(failed)?;
    check_size(NAME, width.into(), height.into(), limits)?;
    let pixels = width as usize * height as usize;
    let mut memory = Limits::default();
    memory.decoding_buffer_size = pixels * MOST_SAMPLES * 2 + OVERHEAD_BYTES;
    memory.intermediate_buffer_size = memory.decoding_buffer_size;
    let mut decoder = decoder.with_limits(memory);
    // A value that is no orientation, or is none of 16 bits, turns nothing.
    let orientation = number(&mut decoder, Tag::Orientation).ok().flatten();
    let samples = to_rgb(&mut decoder, width as usize, height as usize, has_palette)?;
    Ok(Decoded {
        picture: Picture {
            width: width as usize,
            height: height as usize,
            samples,
        },
        orientation: Orientation::from_value(orientation.unwrap_or(1).into()),
    })
}

/// The decoder knows no palettes: it is told that indices were gray, if they are
/// indices.
fn indices_as_gray(bytes: &[u8]) -> (Cow<'_, [u8]>, bool) {
    const PHOTOMETRIC: u32 = 262;
    const PALETTE: u32 = 3;
    const GRAY: u8 = 1;
    let big_endian = bytes.starts_with(b"MM");
    let number = |at: usize, size: usize| {
        let bytes = bytes.get(at..at.checked_add(size)?)?;
        let join = |number: u32, byte: &u8| number << 8 | u32::from(*byte);
        Some(if big_endian {
            bytes.iter().fold(0, join)
        } else {
            bytes.iter().rev().fold(0, join)
        })
    };
    let place = || {
        let directory = number(4, 4)? as usize;
        let entries = 0..number(directory, 2)? as usize;
        let mut values = entries.map(|index| directory + 2 + index * 12);
        let entry = values.find(|entry| number(*entry, 2) == Some(PHOTOMETRIC))?;
        (number(entry + 8, 2)? == PALETTE).then_some(entry + 8)
    };
    let Some(place) = place() else {
        return (Cow::Borrowed(bytes), false);
    };
    let mut bytes = bytes.to_vec();
    bytes[place + usize::from(big_endian)] = GRAY;
    (Cow::Owned(bytes), true)
}

fn number(decoder: &mut Source, tag: Tag) -> TiffResult<Option<u16>> {
    Ok(decoder
        .find_tag_unsigned_vec::<u16>(tag)?
        .and_then(|values| values.first().copied()))
}

/// The samples of each pixel behind each other, those below 8 bits packed as in
/// the file.
struct Raster {
    data: Vec<u8>,
    row_bytes: usize,
    bits: u8,
    /// Samples a pixel has.
    count: usize,
}

fn to_rgb(
    decoder: &mut Source,
    width: usize,
    height: usize,
    has_palette: bool,
) -> Result<Vec<u8>, ModelError> {
    let color = decoder.colortype().map_err(failed)?;
    let count = match color {
        ColorType::Gray(1 | 2 | 4 | 8 | 16) => 1,
        ColorType::GrayA(8) => 2,
        ColorType::Multiband {
            bit_depth: 8,
            num_samples: 2,
        } => 2,
        ColorType::RGB(8 | 16) => 3,
        ColorType::RGBA(8 | 16) | ColorType::CMYK(8 | 16) => 4,
        other => return Err(unsupported_form(format_args!("TIFF of kind {other:?}"))),
    };
    let raster = read(decoder, color.bit_depth(), count)?;
    if raster.bits == 16 && count == 1 && !has_palette {
        let gray = raster.words().flat_map(|word| [cut_off(word); CHANNELS]);
        return Ok(gray.collect());
    }
    let samples = raster.bytes(width, height);
    if samples.len() != width * height * count {
        return Err(damaged(NAME, "its data have another size"));
    }
    let premultiplied = number(decoder, Tag::ExtraSamples).map_err(failed)? == Some(PREMULTIPLIED);
    Ok(match color {
        ColorType::Gray(bits) if has_palette => {
            let map = decoder
                .find_tag_unsigned_vec::<u16>(Tag::ColorMap)
                .map_err(failed)?;
            let map = map.filter(|map| map.len() == CHANNELS << bits);
            let map = map.ok_or_else(|| damaged(NAME, "it has no palette"))?;
            let entries = map.len() / CHANNELS;
            let color = |index: &u8| {
                [0, 1, 2].map(|channel| high_byte(map[channel * entries + usize::from(*index)]))
            };
            samples.iter().flat_map(color).collect()
        }
        ColorType::Gray(bits) => {
            let most = if bits < 8 { (1_u16 << bits) - 1 } else { 255 };
            let spread = |sample: &u8| [(u16::from(*sample) * 255 / most) as u8; CHANNELS];
            samples.iter().flat_map(spread).collect()
        }
        ColorType::GrayA(_) | ColorType::Multiband { .. } if premultiplied => {
            return Err(unsupported_form(
                "TIFF of gray that is multiplied with its opacity",
            ));
        }
        ColorType::GrayA(_) | ColorType::Multiband { .. } => samples
            .iter()
            .step_by(2)
            .flat_map(|v| [*v; CHANNELS])
            .collect(),
        ColorType::CMYK(_) => samples
            .as_chunks()
            .0
            .iter()
            .copied()
            .flat_map(cmyk_to_rgb)
            .collect(),
        ColorType::RGBA(_) if premultiplied => samples
            .as_chunks()
            .0
            .iter()
            .copied()
            .flat_map(unmultiplied)
            .collect(),
        ColorType::RGBA(_) => samples
            .as_chunks()
            .0
            .iter()
            .flat_map(|[r, g, b, _]| [*r, *g, *b])
            .collect(),
        _ => samples,
    })
}

/// Colours that were multiplied with their opacity, as they were before.
fn unmultiplied([r, g, b, alpha]: [u8; 4]) -> [u8; CHANNELS] {
    match u32::from(alpha) {
        0 => [0; CHANNELS],
        alpha => [r, g, b].map(|sample| (u32::from(sample) * 255 / alpha).min(255) as u8),
    }
}

fn read(decoder: &mut Source, bits: u8, count: usize) -> Result<Raster, ModelError> {
    let formats = decoder
        .find_tag_unsigned_vec::<u16>(Tag::SampleFormat)
        .map_err(failed)?;
    if formats.is_some_and(|formats| formats.iter().any(|f| *f != SampleFormat::Uint.to_u16())) {
        return Err(unsupported_form("TIFF of signed or floating-point samples"));
    }
    if number(decoder, Tag::FillOrder)
        .map_err(failed)?
        .is_some_and(|order| order != 1)
    {
        return Err(unsupported_form("TIFF of reversed bits"));
    }
    let planar =
        number(decoder, Tag::PlanarConfiguration).map_err(failed)? == Some(SEPARATE_PLANES);
    let layout = decoder.image_buffer_layout().map_err(failed)?;
    if layout.complete_len > isize::MAX as usize / 2 {
        return Err(failed(TiffError::LimitsExceeded));
    }
    let mut data = vec![0; layout.complete_len];
    decoder.read_image_bytes(&mut data).map_err(failed)?;
    if let (true, Some(stride)) = (planar && count > 1, layout.plane_stride) {
        let planes: Vec<&[u8]> = data.chunks_exact(stride.get()).take(count).collect();
        let bytes = usize::from(bits).div_ceil(8);
        data = (0..stride.get() / bytes)
            .flat_map(|index| {
                planes
                    .iter()
                    .flat_map(move |plane| &plane[index * bytes..][..bytes])
            })
            .copied()
            .collect();
    }
    Ok(Raster {
        data,
        row_bytes: layout.row_stride.map_or(0, |stride| stride.get()),
        bits,
        count,
    })
}

impl Raster {
    fn words(&self) -> impl Iterator<Item = u16> {
        let (pairs, _) = self.data.as_chunks();
        pairs.iter().map(|pair| u16::from_ne_bytes(*pair))
    }

    /// One byte a sample: the high one of words, the number of packed bits.
    fn bytes(self, width: usize, height: usize) -> Vec<u8> {
        let bits = usize::from(self.bits);
        match bits {
            8 => self.data,
            16 => self.words().map(high_byte).collect(),
            _ => {
                let mask = (1 << bits) - 1;
                let rows = self.data.chunks(self.row_bytes.max(1)).take(height);
                rows.flat_map(|row| {
                    (0..width * self.count).filter_map(move |index| {
                        let byte = row.get(index * bits / 8)?;
                        Some(byte >> (8 - bits - index * bits % 8) & mask)
                    })
                })
                .collect()
            }
        }
    }
}
