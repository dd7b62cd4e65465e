//! PNG, through the png crate.

use std::borrow::Cow;
use std::io::Cursor;

use png::{ColorType, DecodingError, Info, Limits, Transformations};

use crate::error::ModelError;
use crate::image::decode::{Decoded, ImageLimits};
use crate::image::fault::{check_size, damaged, too_large};
use crate::image::orientation::Orientation;
use crate::image::pillow::{cut_off, high_byte};
use crate::image::resample::{CHANNELS, Picture};

const NAME: &str = "PNG";
/// Memory for what is not pixels: metadata, rows, decompression.
const OVERHEAD_BYTES: usize = 64 << 20;
/// Longest metadata that are searched for an orientation.
const LONGEST_TEXT: usize = 1 << 20;

fn failed(error: DecodingError) -> ModelError {
    match error {
        DecodingError::LimitsExceeded => too_large(format!(
            "It is a {NAME} whose decoding needs more memory than the limit allows."
        )),
        error => damaged(NAME, format_args!("its decoder says: {error}")),
    }
}

pub(super) fn decode(bytes: &[u8], limits: &ImageLimits) -> Result<Decoded, ModelError> {
    let bytes = with_end(bytes);
    let mut decoder = png::Decoder::new_with_limits(
        Cursor::new(&*bytes),
        Limits {
            bytes: OVERHEAD_BYTES,
        },
    );
    decoder.set_transformations(Transformations::IDENTITY);
    // A broken colour profile must not matter: none is applied.
    decoder.set_ignore_iccp_chunk(true);
    let info = decoder.read_header_info().map_err(failed)?;
    check_size(NAME, info.width.into(), info.height.into(), limits)?;
    let mut reader = decoder.read_info().map_err(failed)?;
    let size = reader.output_buffer_size();
    let size = size.ok_or_else(|| failed(DecodingError::LimitsExceeded))?;
    let mut data = vec![0; size];
    let frame = reader.next_frame(&mut data).map_err(failed)?;
    // What follows the pixels may hold metadata, and may be broken.
    let _ = reader.finish();
    if frame.color_type == ColorType::Indexed && reader.info().palette.is_none() {
        return Err(damaged(NAME, "it has no palette"));
    }
    let samples = to_rgb(data, frame.width as usize, frame.line_size, reader.info());
    let (width, height) = (frame.width as usize, frame.height as usize);
    if samples.len() != width * height * CHANNELS {
        return Err(damaged(NAME, "its first frame has another size"));
    }
    Ok(Decoded {
        picture: Picture {
            width,
            height,
            samples,
        },
        orientation: orientation(reader.info()),
    })
}

/// Adds the end chunk that some files lack. It does not make up for pixels.
fn with_end(bytes: &[u8]) -> Cow<'_, [u8]> {
    const END: &[u8] = b"\0\0\0\0IEND\xae\x42\x60\x82";
    if bytes.windows(8).rev().any(|window| *window == END[..8]) {
        return Cow::Borrowed(bytes);
    }
    Cow::Owned([bytes, END].concat())
}

/// `data` are rows of `row_bytes` as the file has them.
fn to_rgb(data: Vec<u8>, width: usize, row_bytes: usize, info: &Info) -> Vec<u8> {
    let bits = info.bit_depth as usize;
    let wide = bits == 16;
    let most = (1_u16 << bits.min(8)) - 1;
    let gray = |sample: u8| [(u16::from(sample) * 255 / most) as u8; CHANNELS];
    let word = |pair: &[u8]| u16::from_be_bytes([pair[0], pair[1]]);
    // High bytes of the first three samples.
    let high = |pixel: &[u8]| [0, 2, 4].map(|at| high_byte(word(&pixel[at..])));
    match (info.color_type, wide) {
        (ColorType::Rgb, false) => data,
        (ColorType::Rgb, true) => data.chunks_exact(6).flat_map(high).collect(),
        (ColorType::Rgba, false) => without_alpha(&data),
        (ColorType::Rgba, true) => data.chunks_exact(8).flat_map(high).collect(),
        (ColorType::Grayscale, false) => unpacked(&data, width, row_bytes, bits)
            .flat_map(gray)
            .collect(),
        (ColorType::Grayscale, true) => data
            .chunks_exact(2)
            .flat_map(|pair| [cut_off(word(pair)); CHANNELS])
            .collect(),
        (ColorType::GrayscaleAlpha, _) => {
            let step = if wide { 4 } else { 2 };
            data.iter()
                .step_by(step)
                .flat_map(|sample| [*sample; CHANNELS])
                .collect()
        }
        (ColorType::Indexed, _) => {
            // What is beyond a short palette is black.
            let palette = info.palette.as_deref().unwrap_or_default();
            let color = |index: u8| {
                let entry = palette.get(usize::from(index) * CHANNELS..);
                let entry = entry.and_then(<[u8]>::first_chunk::<CHANNELS>);
                entry.copied().unwrap_or_default()
            };
            unpacked(&data, width, row_bytes, bits)
                .flat_map(color)
                .collect()
        }
    }
}

/// Samples of up to 8 bits, of which rows have `width`.
fn unpacked(data: &[u8], width: usize, row_bytes: usize, bits: usize) -> impl Iterator<Item = u8> {
    let mask = ((1_u16 << bits) - 1) as u8;
    data.chunks_exact(row_bytes).flat_map(move |row| {
        (0..width).map(move |x| row[x * bits / 8] >> (8 - bits - x * bits % 8) & mask)
    })
}

/// RGB from RGBA.
pub(super) fn without_alpha(data: &[u8]) -> Vec<u8> {
    let (pixels, _) = data.as_chunks::<4>();
    pixels
        .iter()
        .flat_map(|[r, g, b, _]| [*r, *g, *b])
        .collect()
}

/// From an EXIF chunk, else from EXIF as ImageMagick writes it into a text, else
/// from XMP.
fn orientation(info: &Info) -> Orientation {
    let raw = || raw_profile(info);
    let exif = info
        .exif_metadata
        .as_deref()
        .map(<[u8]>::to_vec)
        .or_else(raw);
    let xmp = info
        .utf8_text
        .iter()
        .find(|text| text.keyword == "XML:com.adobe.xmp")
        // One only: many would take long to unpack.
        .and_then(|text| {
            let mut text = text.clone();
            text.decompress_text_with_limit(LONGEST_TEXT).ok()?;
            text.get_text().ok()
        });
    Orientation::from_metadata(exif.as_deref(), xmp.as_deref().map(str::as_bytes))
}

/// A text of lines: empty, "exif", the length, hexadecimal digits.
fn raw_profile(info: &Info) -> Option<Vec<u8>> {
    const KEYWORD: &str = "Raw profile type exif";
    let plain = info.uncompressed_latin1_text.iter();
    let plain = plain
        .filter(|text| text.keyword == KEYWORD)
        .map(|text| text.text.clone());
    let packed = info.compressed_latin1_text.iter();
    let packed = packed
        .filter(|text| text.keyword == KEYWORD)
        .take(1)
        .filter_map(|text| {
            let mut text = text.clone();
            text.decompress_text_with_limit(LONGEST_TEXT).ok()?;
            text.get_text().ok()
        });
    let text = plain.chain(packed).next()?;
    let digits: Vec<u8> = text
        .split('\n')
        .skip(3)
        .flat_map(str::bytes)
        .map(|digit| char::from(digit).to_digit(16).map(|value| value as u8))
        .collect::<Option<_>>()?;
    let (pairs, _) = digits.as_chunks::<2>();
    Some(pairs.iter().map(|[high, low]| high << 4 | low).collect())
}
