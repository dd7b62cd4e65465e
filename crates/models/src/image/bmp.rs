//! BMP, through the image crate.

use std::io::Cursor;

use image::codecs::bmp::BmpDecoder;
use image::{DynamicImage, ImageDecoder, ImageError};

use crate::error::ModelError;
use crate::image::decode::{Decoded, ImageLimits};
use crate::image::fault::{check_size, damaged};
use crate::image::orientation::Orientation;
use crate::image::resample::Picture;

const NAME: &str = "BMP";

fn failed(error: ImageError) -> ModelError {
    damaged(NAME, format_args!("its decoder says: {error}"))
}

pub(super) fn decode(bytes: &[u8], limits: &ImageLimits) -> Result<Decoded, ModelError> {
    let decoder = BmpDecoder::new(Cursor::new(bytes)).map_err(failed)?;
    let (width, height) = decoder.dimensions();
    check_size(NAME, width.into(), height.into(), limits)?;
    let image = DynamicImage::from_decoder(decoder).map_err(failed)?;
    Ok(Decoded {
        picture: Picture {
            width: width as usize,
            height: height as usize,
            samples: image.into_rgb8().into_raw(),
        },
        orientation: Orientation::default(),
    })
}
