//! What can go wrong in this crate.

use std::ffi::{CStr, c_int};

use crate::ffi;

/// An error of FAISS or of the arguments given to it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FaissError {
    /// The arguments do not fit together or hold a NaN or an infinity. Nothing
    /// was computed and nothing was written.
    #[error("{0}")]
    InvalidArgument(String),
    /// The caller's `interrupted` answered true; the partial result is dropped.
    #[error("computation interrupted")]
    Interrupted,
    /// An allocation failed, or no thread could be started.
    #[error("out of memory")]
    OutOfMemory,
    /// FAISS gave up; the text is its own.
    #[error("FAISS failed: {0}")]
    Faiss(String),
}

impl FaissError {
    /// Room for a message of the shim, its closing zero byte included.
    const MESSAGE_BYTES: usize = 512;

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        FaissError::InvalidArgument(message.into())
    }

    /// Runs one function of the shim, which is given a buffer for its message,
    /// and turns its status into a result.
    pub(crate) fn check(
        call: impl FnOnce(*mut std::ffi::c_char, usize) -> c_int,
    ) -> Result<(), FaissError> {
        let mut message = [0u8; Self::MESSAGE_BYTES];
        match call(message.as_mut_ptr().cast(), message.len()) {
            ffi::STATUS_OK => Ok(()),
            ffi::STATUS_OUT_OF_MEMORY => Err(FaissError::OutOfMemory),
            _ => {
                let text = CStr::from_bytes_until_nul(&message).unwrap_or_default();
                Err(FaissError::Faiss(text.to_string_lossy().into_owned()))
            }
        }
    }
}

impl From<faiss::error::Error> for FaissError {
    fn from(error: faiss::error::Error) -> Self {
        match error {
            // The C interface of FAISS gives the text of an exception, not its type.
            faiss::error::Error::Native(native) if native.msg().contains("bad_alloc") => {
                FaissError::OutOfMemory
            }
            faiss::error::Error::Native(native) => FaissError::Faiss(native.msg().to_owned()),
            other => FaissError::Faiss(other.to_string()),
        }
    }
}
