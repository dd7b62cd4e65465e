//! Errors of requests. They are the protocol's own [`ErrorReply`]; this module
//! is the one place that makes them, and maps errors of models to them.

use std::panic::{AssertUnwindSafe, catch_unwind};

use sight_hub::{HubError, HubErrorKind};
use sight_models::{ErrorKind, ModelError};
use sight_protocol::{ErrorCode, ErrorReply, FrameError, ModelTask};

use crate::{log, process};

/// An error with a code and a message, and nothing else.
pub fn reply(code: ErrorCode, message: impl Into<String>) -> ErrorReply {
    ErrorReply {
        code,
        message: message.into(),
        detail: None,
        hint: None,
        item: None,
    }
}

/// The same error as one of the input at `item`, counted from 0.
pub fn at_item(error: ErrorReply, item: usize) -> ErrorReply {
    ErrorReply {
        item: Some(u32::try_from(item).unwrap_or(u32::MAX)),
        ..error
    }
}

pub fn from_hub(error: HubError) -> ErrorReply {
    let code = match error.kind {
        HubErrorKind::Invalid => ErrorCode::InvalidOption,
        HubErrorKind::Offline => ErrorCode::Offline,
        HubErrorKind::Download | HubErrorKind::Storage => ErrorCode::DownloadFailed,
    };
    ErrorReply {
        detail: error.detail,
        hint: error.hint,
        ..reply(code, error.message)
    }
}

pub fn from_model(error: ModelError) -> ErrorReply {
    let code = match error.kind {
        ErrorKind::InvalidImage => ErrorCode::InvalidImage,
        ErrorKind::ImageTooLarge => ErrorCode::ImageTooLarge,
        ErrorKind::InvalidOption => ErrorCode::InvalidOption,
        ErrorKind::NotSupported => ErrorCode::NotSupported,
        ErrorKind::ModelMissing => ErrorCode::ModelMissing,
        ErrorKind::ModelInvalid => ErrorCode::ModelInvalid,
        ErrorKind::OutOfDeviceMemory => ErrorCode::OutOfDeviceMemory,
        ErrorKind::DeviceFailed | ErrorKind::Internal => ErrorCode::Internal,
    };
    ErrorReply {
        code,
        message: error.message,
        detail: error.detail,
        hint: error.hint,
        item: None,
    }
}

/// The error of a computation. A device that has failed ends the process: it would fail
/// every further request, and is there again for the next process. Requests in flight
/// learn why from the supervisor.
pub fn from_computation(error: ModelError) -> ErrorReply {
    if error.kind == ErrorKind::DeviceFailed {
        log::error(&error);
        process::exit_now(1);
    }
    from_model(error)
}

pub fn from_frame(error: &FrameError) -> ErrorReply {
    let hint = matches!(error, FrameError::Version { .. }).then(|| {
        "The server and the extension are of different releases: \
         stop the server, and the next call starts the right one."
            .to_owned()
    });
    ErrorReply {
        hint,
        ..reply(ErrorCode::Protocol, error.to_string())
    }
}

pub fn protocol(message: impl Into<String>) -> ErrorReply {
    reply(ErrorCode::Protocol, message)
}

pub fn shutting_down() -> ErrorReply {
    ErrorReply {
        hint: Some("Try again: the next call starts a new server.".into()),
        ..reply(ErrorCode::ShuttingDown, "model server is shutting down")
    }
}

pub fn overloaded(waiting: usize) -> ErrorReply {
    ErrorReply {
        detail: Some(format!(
            "{waiting} requests wait already, which is the limit."
        )),
        hint: Some("Try again later, or allow more requests to wait.".into()),
        ..reply(ErrorCode::Overloaded, "model server is overloaded")
    }
}

pub fn text_too_large(bytes: usize, limit: u64) -> ErrorReply {
    ErrorReply {
        detail: Some(format!("It has {bytes} bytes; the limit is {limit} bytes.")),
        hint: Some("Shorten the text, or embed it in parts.".into()),
        ..reply(ErrorCode::TextTooLarge, "text is too large")
    }
}

/// More vectors than an answer can hold.
pub fn too_many_texts(texts: usize, limit: usize) -> ErrorReply {
    ErrorReply {
        detail: Some(format!(
            "There are {texts} texts; an answer holds at most {limit} vectors of this model."
        )),
        hint: Some("Embed fewer texts at a time.".into()),
        ..reply(ErrorCode::TextTooLarge, "too many texts for one request")
    }
}

/// `name` does `does`, but another task was asked of it.
pub fn wrong_task(name: &str, does: ModelTask) -> ErrorReply {
    let (message, hint) = match does {
        ModelTask::Describe => (
            "describes pictures and cannot embed texts",
            "Use blip_describe() with this model, or embed() with a text encoder.",
        ),
        ModelTask::Embed => (
            "embeds texts and cannot describe pictures",
            "Use embed() with this model, or blip_describe() with a captioner.",
        ),
    };
    ErrorReply {
        detail: Some("A model does one of the two; sight_models shows which.".into()),
        hint: Some(hint.into()),
        ..reply(ErrorCode::WrongTask, format!("model \"{name}\" {message}"))
    }
}

/// A model of `bytes` where all models may take `limit`.
pub fn model_too_large(bytes: u64, limit: u64) -> ErrorReply {
    ErrorReply {
        detail: Some(format!(
            "It takes {bytes} bytes; all models together may take {limit} bytes."
        )),
        hint: Some("The limit is the setting pg_sight.max_model_memory.".into()),
        ..reply(
            ErrorCode::OutOfDeviceMemory,
            "model is too large for the memory of models",
        )
    }
}

/// No room for a model of `bytes` beside those in use, where all may take `limit`.
pub fn no_room(bytes: u64, limit: u64) -> ErrorReply {
    ErrorReply {
        detail: Some(format!(
            "It takes {bytes} bytes; all models together may take {limit} bytes, \
             and requests still use others."
        )),
        hint: Some("Try again later, or raise pg_sight.max_model_memory.".into()),
        ..reply(
            ErrorCode::OutOfDeviceMemory,
            "no memory is left for the model",
        )
    }
}

pub fn internal(message: impl Into<String>) -> ErrorReply {
    reply(ErrorCode::Internal, message)
}

/// Runs `work`, and makes a panic in it an error.
pub fn guard<T>(work: impl FnOnce() -> Result<T, ErrorReply>) -> Result<T, ErrorReply> {
    // What a panic may leave half done are inputs that are dropped afterwards,
    // and models, which are not written to while they compute.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        Err(ErrorReply {
            detail: Some("The computation panicked; the server's log says where.".into()),
            ..internal("internal error in the model server")
        })
    })
}
