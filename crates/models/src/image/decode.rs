//! Decoding of pictures, guarded against hostile ones.

use std::panic::{AssertUnwindSafe, catch_unwind};

use image::ImageFormat;

use crate::error::{ErrorKind, ModelError};
use crate::image::fault::{FORMATS_HINT, cannot_decode};
use crate::image::orientation::Orientation;
use crate::image::resample::Picture;
use crate::image::{bmp, gif, jpeg, png, tiff, webp};

/// Bounds of a picture, checked before memory is taken for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageLimits {
    /// Largest encoded size.
    pub max_bytes: u64,
    /// Largest width times height, as the header declares them.
    pub max_pixels: u64,
}

/// What a file holds: pixels as they are stored, and how they are to be turned.
pub(super) struct Decoded {
    pub(super) picture: Picture,
    pub(super) orientation: Orientation,
}

impl Picture {
    /// Decodes an encoded picture to RGB with the results of transformers'
    /// `load_image` on Pillow: the first frame, turned upright, alpha dropped.
    ///
    /// Errors: [`ErrorKind::InvalidImage`], [`ErrorKind::ImageTooLarge`].
    pub fn decode(bytes: &[u8], limits: &ImageLimits) -> Result<Self, ModelError> {
        if bytes.is_empty() {
            return Err(ModelError::new(ErrorKind::InvalidImage, "image is empty")
                .with_detail("It has 0 bytes.")
                .with_hint(FORMATS_HINT));
        }
        let size = bytes.len() as u64;
        if size > limits.max_bytes {
            return Err(
                ModelError::new(ErrorKind::ImageTooLarge, "image is too large")
                    .with_detail(format!(
                        "It has {size} bytes, the limit is {}.",
                        limits.max_bytes
                    ))
                    .with_hint("Reduce the image, or raise the limit of bytes."),
            );
        }
        // Some decoders are not ours: a defect in one must not end the server.
        catch_unwind(AssertUnwindSafe(|| {
            let decoded = decode_format(bytes, limits)?;
            Ok(decoded.orientation.apply(decoded.picture))
        }))
        .unwrap_or_else(|_| Err(cannot_decode("Its decoder failed unexpectedly.")))
    }
}

fn decode_format(bytes: &[u8], limits: &ImageLimits) -> Result<Decoded, ModelError> {
    match image::guess_format(bytes) {
        Ok(ImageFormat::Jpeg) => jpeg::decode(bytes, limits),
        Ok(ImageFormat::Png) => png::decode(bytes, limits),
        Ok(ImageFormat::WebP) => webp::decode(bytes, limits),
        Ok(ImageFormat::Gif) => gif::decode(bytes, limits),
        Ok(ImageFormat::Tiff) => tiff::decode(bytes, limits),
        Ok(ImageFormat::Bmp) => bmp::decode(bytes, limits),
        _ => Err(cannot_decode(
            "Its first bytes are those of no supported format.",
        )),
    }
}
