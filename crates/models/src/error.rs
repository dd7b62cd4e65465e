//! The error of this crate: a kind for the caller to act upon, and the parts of
//! a PostgreSQL message.

use std::fmt;

/// What went wrong, coarse enough to be mapped to an SQLSTATE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The bytes are no picture that can be decoded.
    InvalidImage,
    /// The picture exceeds a limit of bytes or pixels.
    ImageTooLarge,
    /// An option has a value that it cannot have.
    InvalidOption,
    /// The request or the model is valid, but not supported here.
    NotSupported,
    /// A model directory or one of its files does not exist.
    ModelMissing,
    /// A file of the model is damaged or contradicts another.
    ModelInvalid,
    /// The device has not enough memory left.
    OutOfDeviceMemory,
    /// A fault of the program or the device.
    Internal,
}

/// An error in the parts of a PostgreSQL report: the message begins in lower
/// case and has no full stop; detail and hint are full sentences.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ModelError {
    pub kind: ErrorKind,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
}

impl ModelError {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            detail: None,
            hint: None,
        }
    }

    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for ModelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(detail) = &self.detail {
            write!(f, ": {detail}")?;
        }
        Ok(())
    }
}

impl From<candle_core::Error> for ModelError {
    /// Errors of the tensor library while a model computes. Its drivers report
    /// exhausted memory only in the text of their errors.
    fn from(error: candle_core::Error) -> Self {
        let text = error.to_string();
        let lower = text.to_ascii_lowercase();
        if lower.contains("out of memory") || lower.contains("out_of_memory") {
            return Self::new(ErrorKind::OutOfDeviceMemory, "out of device memory")
                .with_detail(text)
                .with_hint(
                    "Reduce the batch size, or free memory that other programs use on the device.",
                );
        }
        Self::new(ErrorKind::Internal, "model computation failed").with_detail(text)
    }
}
