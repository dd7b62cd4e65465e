//! Errors of SQL functions, their SQLSTATEs, and the one way they reach
//! PostgreSQL.
//!
//! pgrx reports only SQLSTATEs that PostgreSQL itself defines (any other
//! becomes `internal_error` on its way through a Rust panic). The functions of
//! this extension therefore return [`SqlError`] as a value, and [`RaisedError`]
//! hands it to PostgreSQL in the outermost frame, where nothing is left to drop.

use std::ffi::{CString, c_char, c_int};

use pgrx::pg_sys;
use sight_protocol::{ErrorCode, ErrorReply, FrameError, OptionsError};

use crate::text::to_server_lossy;

/// Five characters of class PS (pg_sight), or of PostgreSQL's own classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SqlState(pub &'static [u8; 5]);

impl SqlState {
    pub const SERVER_UNAVAILABLE: Self = Self(b"PS001");
    pub const SERVER_LOST: Self = Self(b"PS002");
    pub const OVERLOADED: Self = Self(b"PS003");
    pub const TIMED_OUT: Self = Self(b"PS004");
    pub const OUT_OF_DEVICE_MEMORY: Self = Self(b"PS005");
    pub const MODEL_MISSING: Self = Self(b"PS010");
    pub const MODEL_INVALID: Self = Self(b"PS011");
    pub const WRONG_TASK: Self = Self(b"PS012");
    pub const DOWNLOAD_FAILED: Self = Self(b"PS013");
    pub const DOWNLOADS_OFF: Self = Self(b"PS014");
    pub const INVALID_IMAGE: Self = Self(b"PS020");
    pub const IMAGE_TOO_LARGE: Self = Self(b"PS021");
    pub const TEXT_TOO_LARGE: Self = Self(b"PS022");

    pub const FEATURE_NOT_SUPPORTED: Self = Self(b"0A000");
    pub const PROTOCOL_VIOLATION: Self = Self(b"08P01");
    pub const DATA_EXCEPTION: Self = Self(b"22000");
    pub const NULL_NOT_ALLOWED: Self = Self(b"22004");
    pub const INVALID_PARAMETER_VALUE: Self = Self(b"22023");
    pub const TRIGGER_PROTOCOL_VIOLATED: Self = Self(b"39P01");
    pub const UNDEFINED_COLUMN: Self = Self(b"42703");
    pub const DATATYPE_MISMATCH: Self = Self(b"42804");
    pub const CONFIGURATION_LIMIT_EXCEEDED: Self = Self(b"53400");
    pub const INTERNAL_ERROR: Self = Self(b"XX000");

    /// PostgreSQL's packing: six bits a character.
    fn encoded(self) -> c_int {
        self.0.iter().enumerate().fold(0, |code, (i, byte)| {
            code | (c_int::from((byte - b'0') & 0x3f) << (6 * i))
        })
    }
}

/// An error as PostgreSQL shows it: message in lower case without a full stop,
/// detail and hint as sentences.
#[derive(Debug, Clone)]
pub struct SqlError {
    pub state: SqlState,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
}

impl SqlError {
    pub fn new(state: SqlState, message: impl Into<String>) -> Self {
        Self {
            state,
            message: message.into(),
            detail: None,
            hint: None,
        }
    }

    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl From<ErrorReply> for SqlError {
    fn from(reply: ErrorReply) -> Self {
        let state = match reply.code {
            ErrorCode::InvalidImage => SqlState::INVALID_IMAGE,
            ErrorCode::ImageTooLarge => SqlState::IMAGE_TOO_LARGE,
            ErrorCode::TextTooLarge => SqlState::TEXT_TOO_LARGE,
            ErrorCode::InvalidOption => SqlState::INVALID_PARAMETER_VALUE,
            ErrorCode::NotSupported => SqlState::FEATURE_NOT_SUPPORTED,
            ErrorCode::ModelMissing => SqlState::MODEL_MISSING,
            ErrorCode::ModelInvalid => SqlState::MODEL_INVALID,
            ErrorCode::WrongTask => SqlState::WRONG_TASK,
            ErrorCode::Overloaded => SqlState::OVERLOADED,
            ErrorCode::OutOfDeviceMemory => SqlState::OUT_OF_DEVICE_MEMORY,
            ErrorCode::ShuttingDown => SqlState::SERVER_UNAVAILABLE,
            ErrorCode::Protocol => SqlState::PROTOCOL_VIOLATION,
            ErrorCode::Internal => SqlState::INTERNAL_ERROR,
            ErrorCode::DownloadFailed => SqlState::DOWNLOAD_FAILED,
            ErrorCode::Offline => SqlState::DOWNLOADS_OFF,
        };
        Self {
            state,
            message: reply.message,
            detail: reply.detail,
            hint: reply.hint,
        }
    }
}

impl From<FrameError> for SqlError {
    /// The error of a request that is to be sent, or of the message of an answer.
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::TooLarge { .. } => Self::new(
                SqlState(b"54000"),
                "request to the model server is too large",
            )
            .detail(format!("It would be a {error}."))
            .hint("Pass fewer items in one call."),
            _ => Self::of_answer(&error),
        }
    }
}

impl SqlError {
    /// The error of an answer that is no frame.
    pub fn of_answer(error: &FrameError) -> Self {
        let answer = Self::new(
            SqlState::PROTOCOL_VIOLATION,
            "model server broke the protocol",
        )
        .detail(format!("The {error}."));
        match error {
            FrameError::Version { .. } => answer.hint(
                "A model server of another version of pg_sight runs. Restart PostgreSQL to end it.",
            ),
            _ => answer,
        }
    }
}

impl From<OptionsError> for SqlError {
    fn from(error: OptionsError) -> Self {
        Self {
            state: SqlState::INVALID_PARAMETER_VALUE,
            message: error.to_string(),
            detail: error.detail(),
            hint: Some(error.hint()),
        }
    }
}

unsafe extern "C-unwind" {
    fn errstart(elevel: c_int, domain: *const c_char) -> bool;
    fn errcode(sqlerrcode: c_int) -> c_int;
    fn errmsg(format: *const c_char, ...) -> c_int;
    fn errdetail(format: *const c_char, ...) -> c_int;
    fn errhint(format: *const c_char, ...) -> c_int;
    fn errfinish(file: *const c_char, line: c_int, function: *const c_char);
}

/// An error in PostgreSQL's memory, which has nothing to drop.
#[derive(Clone, Copy)]
pub struct RaisedError {
    code: c_int,
    message: *const c_char,
    /// Null for none.
    detail: *const c_char,
    /// Null for none.
    hint: *const c_char,
}

/// A copy in PostgreSQL's memory, in the database's encoding; null for `None`.
fn palloc_string(text: Option<String>) -> *const c_char {
    // A NUL cannot be passed on; what follows it is lost, not the error.
    let text = text.map(|text| to_server_lossy(text.split('\0').next().unwrap_or_default()));
    let Some(text) = text.and_then(|text| CString::new(text).ok()) else {
        return std::ptr::null();
    };
    // SAFETY: pstrdup copies a NUL-terminated string into the current context.
    unsafe { pg_sys::pstrdup(text.as_ptr()) }
}

impl RaisedError {
    /// To be called where PostgreSQL's own errors are caught: it may lack memory.
    pub fn new(error: SqlError) -> Self {
        Self {
            code: error.state.encoded(),
            message: palloc_string(Some(error.message)),
            detail: palloc_string(error.detail),
            hint: palloc_string(error.hint),
        }
    }

    /// Raises the error in PostgreSQL.
    ///
    /// # Safety
    /// Must be called on the backend's main thread from a frame with nothing to
    /// drop, and with no such frame between it and PostgreSQL: this jumps.
    pub unsafe fn raise(self) -> ! {
        // SAFETY: the strings are NUL-terminated or null, and null ones are left
        // out; the frame has nothing to drop.
        unsafe {
            errstart(pgrx::PgLogLevel::ERROR as c_int, std::ptr::null());
            errcode(self.code);
            errmsg(c"%s".as_ptr(), self.message);
            if !self.detail.is_null() {
                errdetail(c"%s".as_ptr(), self.detail);
            }
            if !self.hint.is_null() {
                errhint(c"%s".as_ptr(), self.hint);
            }
            errfinish(c"pg_sight".as_ptr(), 0, std::ptr::null());
        }
        unreachable!("errfinish does not return from an ERROR")
    }
}
