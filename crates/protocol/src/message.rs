//! The messages.

use serde::{Deserialize, Serialize};

use crate::{FrameError, GenerationOptions, ServerStatus, Statistics};

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// Answered by [`Response::Status`].
    Status,
    /// Reads the configuration of a model directory and checks that its files
    /// are there, whole and of the right shapes. Answered by [`Response::Model`].
    Inspect { model: ModelRef },
    /// Embeds texts. Answered by [`Response::Embeddings`], in input order.
    Embed {
        model: ModelRef,
        texts: Vec<String>,
        /// The model's prompt to put before each text; `None` takes its default.
        prompt_name: Option<String>,
    },
    /// Describes pictures, each once for every prompt. Answered by
    /// [`Response::Captions`]: the answers of a picture joined by one space,
    /// in input order. The pictures follow each other in the body.
    Describe {
        model: ModelRef,
        /// Length of each picture in the body, in bytes.
        image_bytes: Vec<u32>,
        /// Empty for one caption without a prompt.
        prompts: Vec<String>,
        options: GenerationOptions,
    },
    /// Loads a model ahead of its first use. Answered by [`Response::Done`].
    Load { model: ModelRef },
    /// Frees a model when its running requests are done; one that is not
    /// loaded is left alone. Answered by [`Response::Done`].
    Unload { model: ModelRef },
    /// Downloads a model into the hub's cache on the server's host, and looks at
    /// it as [`Request::Inspect`] does. Answered by [`Response::Pulled`].
    Pull(PullRequest),
    /// How far the running downloads are. Answered by [`Response::Pulls`].
    Pulls,
    /// Sees whether the loaded models still compute: each that is not at work on
    /// requests makes a forward pass. Answered by [`Response::Done`], or not at all
    /// where one hangs.
    Probe,
    /// Answered by [`Response::Statistics`].
    Statistics,
    /// Sets all statistics to zero. Answered by [`Response::Done`].
    ResetStatistics,
}

/// A download from a hub. What is `None` comes from the server's environment, from
/// the variables of Hugging Face's tools.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullRequest {
    /// `owner/name` at the hub.
    pub repository: String,
    /// A branch, a tag, or the 40 digits of a commit.
    pub revision: String,
    /// URL of the hub, in place of HF_ENDPOINT.
    pub endpoint: Option<String>,
    /// Directory that holds the cache, in place of HF_HOME.
    pub home: Option<String>,
    /// Process that asks, for those who watch the progress.
    pub requester: u32,
}

/// A model as the database's administrator registered it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ModelRef {
    /// Name for messages.
    pub name: String,
    /// Directory on the database's host in Hugging Face's layout.
    pub directory: String,
    /// Bounds that apply to this request.
    pub limits: Limits,
}

/// Bounds on a single input; exceeding one is an error of that input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Limits {
    /// Longest text, in bytes of UTF-8.
    pub max_text_bytes: u64,
    /// Largest encoded picture, in bytes.
    pub max_image_bytes: u64,
    /// Largest decoded picture, in pixels.
    pub max_image_pixels: u64,
}

/// What the server answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Response {
    Status(ServerStatus),
    Model(ModelInfo),
    /// The body holds the vectors, see [`embeddings_body`].
    Embeddings(EmbeddingBatch),
    Captions(Vec<String>),
    Done,
    Error(ErrorReply),
    Pulled(PulledModel),
    Pulls(Vec<PullProgress>),
    Statistics(Statistics),
}

/// A model in the hub's cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PulledModel {
    /// Directory with its files.
    pub directory: String,
    /// The commit that the files are of.
    pub commit: String,
    pub info: ModelInfo,
}

/// What a download is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PullPhase {
    /// Asking the hub for the commit and its files.
    Resolving,
    /// Another download has the same file in work.
    Waiting,
    Downloading,
    Inspecting,
}

impl PullPhase {
    /// Name in SQL.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Resolving => "resolving",
            Self::Waiting => "waiting",
            Self::Downloading => "downloading",
            Self::Inspecting => "inspecting",
        }
    }
}

/// How far a download is; the totals are 0 until they are known. Files that are
/// in the cache already count as done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullProgress {
    /// Process that asked for it.
    pub requester: u32,
    pub repository: String,
    pub revision: String,
    pub phase: PullPhase,
    /// Path in the repository of the file in work.
    pub file: Option<String>,
    pub files_done: u32,
    pub files_total: u32,
    pub bytes_done: u64,
    pub bytes_total: u64,
}

/// Shape of the vectors in the body of [`Response::Embeddings`]: row-major
/// `(rows, dimensions)`, f32, little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EmbeddingBatch {
    pub rows: u32,
    pub dimensions: u32,
}

/// An error of a whole request: nothing of it has been done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorReply {
    pub code: ErrorCode,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
    /// Position of the input at fault, from 0, where one is.
    pub item: Option<u32>,
}

/// Kinds of errors; the extension maps each to an SQLSTATE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ErrorCode {
    /// The bytes are not a picture that can be decoded.
    InvalidImage,
    /// More bytes or pixels than the limits allow.
    ImageTooLarge,
    /// More text than the limits allow.
    TextTooLarge,
    /// A generation option has no meaning for this model, or a wrong value; a
    /// repository, revision or hub has a name that cannot be one.
    InvalidOption,
    /// What was asked for exists in the interface but not in this release.
    NotSupported,
    /// The model's directory or one of its files is missing.
    ModelMissing,
    /// A file of the model is damaged or of a kind that is not known.
    ModelInvalid,
    /// The model does something else (a captioner was asked to embed).
    WrongTask,
    /// The queue is full.
    Overloaded,
    /// The device has too little memory.
    OutOfDeviceMemory,
    /// The server is shutting down.
    ShuttingDown,
    /// The peer broke the protocol.
    Protocol,
    /// Anything else; a bug.
    Internal,
    /// A hub refused, failed or cannot be reached, or the cache cannot be written.
    DownloadFailed,
    /// The hub may not be asked, and its cache does not hold the model.
    Offline,
}

/// What a model does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelTask {
    Embed,
    Describe,
}

impl ModelTask {
    /// Name in SQL.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Embed => "embed",
            Self::Describe => "describe",
        }
    }
}

/// Family of a model, after `model_type` of its configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Architecture {
    Bert,
    Blip,
    DistilBert,
    InstructBlip,
    MpNet,
    Roberta,
    #[serde(rename = "xlm-roberta")]
    XlmRoberta,
}

impl Architecture {
    /// Name in SQL and in Hugging Face's configurations.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bert => "bert",
            Self::Blip => "blip",
            Self::DistilBert => "distilbert",
            Self::InstructBlip => "instructblip",
            Self::MpNet => "mpnet",
            Self::Roberta => "roberta",
            Self::XlmRoberta => "xlm-roberta",
        }
    }
}

/// What is known of a model from its files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelInfo {
    pub task: ModelTask,
    pub architecture: Architecture,
    /// Length of the vectors; `None` for captioners.
    pub dimensions: Option<u32>,
    /// Number of parameters.
    pub parameters: u64,
    /// Identity of the model's files (sizes and modification times), which
    /// changes when they do.
    pub revision: String,
}

/// The body of [`Response::Embeddings`].
pub fn embeddings_body(vectors: &[f32]) -> Vec<u8> {
    vectors
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

/// Reads the body of [`Response::Embeddings`]: one vector of
/// `batch.dimensions` for each of `batch.rows`.
///
/// # Errors
/// [`FrameError::Message`] when the body's length is not rows x dimensions x 4.
pub fn parse_embeddings(batch: EmbeddingBatch, body: &[u8]) -> Result<Vec<Vec<f32>>, FrameError> {
    let dimensions = batch.dimensions as usize;
    let expected = (batch.rows as usize)
        .checked_mul(dimensions)
        .and_then(|values| values.checked_mul(size_of::<f32>()));
    if expected != Some(body.len()) || dimensions == 0 {
        return Err(FrameError::Message(format!(
            "{} bytes do not hold {} vectors of {dimensions} dimensions",
            body.len(),
            batch.rows
        )));
    }
    let vectors = body.chunks_exact(dimensions * size_of::<f32>()).map(|row| {
        row.as_chunks::<4>()
            .0
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes))
            .collect()
    });
    Ok(vectors.collect())
}

#[cfg(test)]
mod tests {
    use super::{EmbeddingBatch, embeddings_body, parse_embeddings};

    #[test]
    fn embeddings_round_trip_and_lengths_are_checked() {
        let body = embeddings_body(&[1.0, -2.5, 3.0, f32::MIN_POSITIVE]);
        let batch = EmbeddingBatch {
            rows: 2,
            dimensions: 2,
        };
        assert_eq!(
            parse_embeddings(batch, &body).unwrap(),
            vec![vec![1.0, -2.5], vec![3.0, f32::MIN_POSITIVE]]
        );
        assert!(parse_embeddings(batch, &body[1..]).is_err());
        let overflow = EmbeddingBatch {
            rows: u32::MAX,
            dimensions: u32::MAX,
        };
        assert!(parse_embeddings(overflow, &body).is_err());
        assert!(
            parse_embeddings(
                EmbeddingBatch {
                    rows: 0,
                    dimensions: 0
                },
                &[]
            )
            .is_err()
        );
    }
}
