//! The errors of pictures.

use std::fmt::Display;

use crate::error::{ErrorKind, ModelError};
use crate::image::decode::ImageLimits;

pub(super) const FORMATS_HINT: &str = "Supported formats are PNG, JPEG, WebP, GIF, BMP and TIFF.";

pub(super) fn cannot_decode(detail: impl Into<String>) -> ModelError {
    ModelError::new(ErrorKind::InvalidImage, "image cannot be decoded")
        .with_detail(detail)
        .with_hint(FORMATS_HINT)
}

/// `what` is a clause: "its data end too early".
pub(super) fn damaged(format: &str, what: impl Display) -> ModelError {
    cannot_decode(format!("It begins as {format}, but {what}."))
}

/// `form` says what the picture is: "JPEG with arithmetic coding".
pub(super) fn unsupported_form(form: impl Display) -> ModelError {
    cannot_decode(format!("It is a {form}, which is not supported."))
        .with_hint("Save the image in a common form, for example as an RGB JPEG or PNG.")
}

/// Checks a declared size before memory is taken for it.
pub(super) fn check_size(
    format: &str,
    width: u64,
    height: u64,
    limits: &ImageLimits,
) -> Result<(), ModelError> {
    if width == 0 || height == 0 {
        return Err(cannot_decode(format!(
            "It is a {format} whose size is {width} x {height}."
        )));
    }
    if width.saturating_mul(height) > limits.max_pixels {
        return Err(too_large(format!(
            "It is a {format} that declares {width} x {height} pixels, the limit is {} pixels.",
            limits.max_pixels
        )));
    }
    Ok(())
}

pub(super) fn too_large(detail: String) -> ModelError {
    ModelError::new(ErrorKind::ImageTooLarge, "image is too large")
        .with_detail(detail)
        .with_hint("Reduce the image, or raise the limit of pixels.")
}
