//! Downloads of models from a Hugging Face hub, into the layout of the hub's own
//! cache, pinned to a commit. Nothing here knows of PostgreSQL, of the wire
//! protocol or of what the models compute.
//!
//! [`pull`] downloads the files that a model needs and no others. A file appears
//! in the cache when all of it is there and its hash is the one that the
//! repository's commit names; what a cut leaves behind is gone on with later.
#![forbid(unsafe_code)]

mod cache;
mod config;
mod content;
mod download;
mod error;
mod names;
mod progress;
mod pull;
mod select;

pub use config::HubConfig;
pub use error::{HubError, HubErrorKind};
pub use progress::{Phase, Progress, ProgressState};
pub use pull::{Pulled, pull};
