//! The wire format between the pg_sight extension (the client, in a PostgreSQL
//! backend) and `pg_sight_server`. `docs/protocol.md` gives the bytes.
//!
//! A connection carries one request at a time: the client writes a [`Request`]
//! frame, the server answers with one [`Response`] frame. A client that no
//! longer wants an answer closes the connection; the server then drops what it
//! has queued for it.

#![forbid(unsafe_code)]

mod frame;
mod message;
mod options;
mod state;

pub use frame::{Frame, FrameDecoder, FrameError, MAX_FRAME_BYTES, PROTOCOL_VERSION, encode};
pub use message::{
    Architecture, EmbeddingBatch, ErrorCode, ErrorReply, Limits, ModelInfo, ModelRef, ModelTask,
    PullPhase, PullProgress, PullRequest, PulledModel, Request, Response, embeddings_body,
    parse_embeddings,
};
pub use options::{EarlyStopping, GenerationOptions, OptionsError};
pub use state::{Counter, LoadedModel, ModelStatistics, ServerConfig, ServerStatus, Statistics};
