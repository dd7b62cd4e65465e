//! BMP, through the image crate.

use std::io::Cursor;

use image::codecs::bmp::BmpDecoder;
use image::{DynamicImage, ImageDecoder, ImageError};

use crate::error::ModelError;
use crate::image::decode::{Decoded, ImageLimits};
use crate::image::fault::{check_size, damaged};
use crate::image::orientation::Orientation;
use crate::image::resample::{CHANNELS, Picture};

const NAME: &str = "BMP";
/// Where the header has its size, the bits of a pixel, the compression and the mask of
/// green.
const HEADER_SIZE: usize = 14;
const BITS: usize = 28;
const COMPRESSION: usize = 30;
const GREEN_MASK: usize = 58;
const BIT_FIELDS: u8 = 3;
/// The mask of a green of 6 bits, little-endian.
const SIX_BITS: [u8; 4] = [0xe0, 0x07, 0, 0];

fn failed(error: ImageError) -> ModelError {
    damaged(NAME, format_args!("its decoder says: {error}"))
}

pub(super) fn decode(bytes: &[u8], limits: &ImageLimits) -> Result<Decoded, ModelError> {
    let decoder = BmpDecoder::new(Cursor::new(bytes)).map_err(failed)?;
    let (width, height) = decoder.dimensions();
    check_size(NAME, width.into(), height.into(), limits)?;
    let image = DynamicImage::from_decoder(decoder).map_err(failed)?;
    let mut samples = image.into_rgb8().into_raw();
    if let Some(levels) = levels_of_16_bits(bytes) {
        for pixel in samples.chunks_exact_mut(CHANNELS) {
            for (sample, most) in pixel.iter_mut().zip(levels) {
                *sample = cut_off(*sample, most);
            }
        }
    }
    Ok(Decoded {
        picture: Picture {
            width: width as usize,
            height: height as usize,
            samples,
        },
        orientation: Orientation::default(),
    })
}

/// The largest values of the channels, if a pixel has 16 bits.
fn levels_of_16_bits(bytes: &[u8]) -> Option<[u32; CHANNELS]> {
    // Headers of 12 bytes have no such pixels, and other fields there.
    let has_16_bits = !bytes.get(HEADER_SIZE..)?.starts_with(&[12, 0, 0, 0])
        && bytes.get(BITS..)?.starts_with(&[16, 0]);
    let has_six = bytes.get(COMPRESSION..)?.starts_with(&[BIT_FIELDS])
        && bytes.get(GREEN_MASK..)?.starts_with(&SIX_BITS);
    has_16_bits.then_some([31, if has_six { 63 } else { 31 }, 31])
}

/// Pillow cuts off what the image crate rounds: the value of a channel, which is at
/// most `most`, as a share of 255.
fn cut_off(rounded: u8, most: u32) -> u8 {
    let value = (u32::from(rounded) * most + 127) / 255;
    (value * 255 / most) as u8
}
