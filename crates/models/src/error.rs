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
    /// The device has failed: it computes nothing more for this process.
    DeviceFailed,
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

/// Errors of CUDA after which a process cannot use the device any more; see the
/// descriptions of `CUresult` in the documentation of CUDA's driver API.
const FATAL: [&str; 14] = [
    "CUDA_ERROR_ILLEGAL_ADDRESS",
    "CUDA_ERROR_ILLEGAL_INSTRUCTION",
    "CUDA_ERROR_INVALID_ADDRESS_SPACE",
    "CUDA_ERROR_INVALID_PC",
    "CUDA_ERROR_MISALIGNED_ADDRESS",
    "CUDA_ERROR_HARDWARE_STACK_ERROR",
    "CUDA_ERROR_LAUNCH_FAILED",
    "CUDA_ERROR_LAUNCH_TIMEOUT",
    "CUDA_ERROR_ASSERT",
    "CUDA_ERROR_ECC_UNCORRECTABLE",
    "CUDA_ERROR_NVLINK_UNCORRECTABLE",
    "CUDA_ERROR_CONTEXT_IS_DESTROYED",
    "CUDA_ERROR_DEVICE_UNAVAILABLE",
    "CUDA_ERROR_EXTERNAL_DEVICE",
];
/// What says that memory is exhausted: CUDA, cuBLAS, and other devices in words.
const EXHAUSTED: [&str; 3] = [
    "OUT_OF_MEMORY",
    "OUT OF MEMORY",
    "CUBLAS_STATUS_ALLOC_FAILED",
];

impl From<candle_core::Error> for ModelError {
    /// Errors of the tensor library while a model computes. Drivers tell what it is
    /// only in the text of their errors.
    fn from(error: candle_core::Error) -> Self {
        let text = error.to_string();
        let upper = text.to_ascii_uppercase();
        let says = |words: &[&str]| words.iter().any(|word| upper.contains(word));
        if says(&EXHAUSTED) {
            return Self::new(ErrorKind::OutOfDeviceMemory, "out of device memory")
                .with_detail(text)
                .with_hint(
                    "Reduce the batch size, or free memory that other programs use on the device.",
                );
        }
        if says(&FATAL) {
            return Self::new(ErrorKind::DeviceFailed, "device has failed").with_detail(text);
        }
        Self::new(ErrorKind::Internal, "model computation failed").with_detail(text)
    }
}

#[cfg(test)]
mod tests {
    use super::{ErrorKind, ModelError};

    #[test]
    fn errors_of_devices_are_told_apart_by_their_text() {
        for (text, kind) in [
            (
                "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")",
                ErrorKind::OutOfDeviceMemory,
            ),
            (
                "CublasError(CUBLAS_STATUS_ALLOC_FAILED)",
                ErrorKind::OutOfDeviceMemory,
            ),
            (
                "DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, \"an illegal memory access was encountered\")",
                ErrorKind::DeviceFailed,
            ),
            (
                "DriverError(CUDA_ERROR_INVALID_VALUE, \"invalid argument\")",
                ErrorKind::Internal,
            ),
            ("shape mismatch in matmul", ErrorKind::Internal),
        ] {
            let error = ModelError::from(candle_core::Error::Msg(text.into()));
            assert_eq!(error.kind, kind, "{text}");
        }
    }
}
