//! What a server is told when it starts, and what it tells of itself.

use std::ops::Index;

use serde::{Deserialize, Serialize};

use crate::ModelTask;

/// State of a running server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerStatus {
    pub pid: u32,
    pub version: String,
    /// `cpu` or `cuda:0`.
    pub device: String,
    /// `float32`, `float16` or `bfloat16`.
    pub dtype: String,
    /// Compute threads.
    pub threads: u32,
    /// Resident memory of the process, in bytes.
    pub memory_bytes: u64,
    /// Memory of the GPU that all programs together use, in bytes; `None` on a CPU.
    pub device_memory_used_bytes: Option<u64>,
    /// Memory of the GPU, in bytes.
    pub device_memory_bytes: Option<u64>,
    pub uptime_ms: u64,
    pub requests: u64,
    pub failed_requests: u64,
    /// Requests that wait for the device.
    pub queued_requests: u64,
    /// Embeddings in the cache.
    pub cached_embeddings: u64,
    /// What the cache takes, in bytes.
    pub cache_bytes: u64,
    /// In the order of their directories.
    pub loaded_models: Vec<LoadedModel>,
}

/// A model in the server's memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadedModel {
    pub directory: String,
    /// Size of its weights on the device, in bytes.
    pub memory_bytes: u64,
    /// Time since a request last asked for it, in milliseconds.
    pub unused_ms: u64,
}

/// What is counted for each model and task. Times are in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counter {
    /// All requests: those answered, failed, cancelled and rejected.
    Requests,
    Failed,
    /// Their clients went away before the answer.
    Cancelled,
    /// Refused as overloaded.
    Rejected,
    /// Texts or pictures of answered requests.
    Items,
    /// Texts of answered requests whose vectors were in the cache.
    CacheHits,
    /// Batches that were computed.
    Batches,
    /// Texts or pictures in these batches.
    BatchItems,
    /// The most texts or pictures in one batch.
    LargestBatch,
    /// Batches that were halved because the device had not enough memory.
    OomSplits,
    /// Tokens by which descriptions grew, one a step and picture: counted after each step.
    GeneratedTokens,
    /// From the first inputs being ready to their batch, summed over requests.
    QueueTime,
    /// Tokenizing, decoding and resizing, summed over the threads that did it.
    PreprocessTime,
    /// The model at work on batches.
    ComputeTime,
    /// Times the model was loaded.
    Loads,
    LoadTime,
}

impl Counter {
    /// In the order of their numbers.
    pub const ALL: [Self; 16] = [
        Self::Requests,
        Self::Failed,
        Self::Cancelled,
        Self::Rejected,
        Self::Items,
        Self::CacheHits,
        Self::Batches,
        Self::BatchItems,
        Self::LargestBatch,
        Self::OomSplits,
        Self::GeneratedTokens,
        Self::QueueTime,
        Self::PreprocessTime,
        Self::ComputeTime,
        Self::Loads,
        Self::LoadTime,
    ];

    /// Name in SQL.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Rejected => "rejected",
            Self::Items => "items",
            Self::CacheHits => "cache_hits",
            Self::Batches => "batches",
            Self::BatchItems => "batch_items",
            Self::LargestBatch => "largest_batch",
            Self::OomSplits => "oom_splits",
            Self::GeneratedTokens => "generated_tokens",
            Self::QueueTime => "queue_time",
            Self::PreprocessTime => "preprocess_time",
            Self::ComputeTime => "compute_time",
            Self::Loads => "loads",
            Self::LoadTime => "load_time",
        }
    }

    /// Whether it is a time, in microseconds.
    pub fn is_time(self) -> bool {
        matches!(
            self,
            Self::QueueTime | Self::PreprocessTime | Self::ComputeTime | Self::LoadTime
        )
    }
}

/// The statistics of a server, since they were last reset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistics {
    /// When they began, in milliseconds since 1970.
    pub since_ms: u64,
    /// In the order of names and tasks.
    pub models: Vec<ModelStatistics>,
}

/// The statistics of one model, by the name that clients used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelStatistics {
    pub model: String,
    pub task: ModelTask,
    /// By the numbers of [`Counter`].
    pub counts: [u64; Counter::ALL.len()],
}

impl Index<Counter> for ModelStatistics {
    type Output = u64;

    fn index(&self, counter: Counter) -> &u64 {
        &self.counts[counter as usize]
    }
}

/// What the supervisor hands to the server when it starts it, as JSON on its
/// standard input. Sizes in bytes, times in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerConfig {
    /// Path of the socket, relative to the data directory, in which the server
    /// is started.
    pub socket: String,
    /// File whose lock the server holds as long as it lives.
    pub lock_file: String,
    /// File that keeps the statistics, [`Statistics`] as JSON, while no server
    /// runs.
    pub statistics_file: String,
    /// `auto`, `cpu`, `cuda` or `cuda:N`.
    pub device: String,
    /// Numbers that models compute with: `auto`, `float32`, `float16` or
    /// `bfloat16`.
    pub dtype: String,
    /// Whether the linear layers of language models are quantized to 4 bits.
    pub load_in_4bit: bool,
    /// Compute threads; 0 takes one for each physical core.
    pub threads: u32,
    /// Without a request for so long the server exits; 0 never.
    pub idle_timeout_ms: u64,
    /// Requests that may wait; one more is refused as overloaded.
    pub max_queued_requests: u32,
    /// Memory for requests as they were received; further ones are read when
    /// there is room.
    pub max_queued_bytes: u64,
    /// Tokens in one batch of texts, padding not counted; 0 takes what suits
    /// the device.
    pub max_batch_tokens: u32,
    /// Pictures in one batch; 0 takes what suits the device.
    pub max_batch_images: u32,
    /// Memory for the weights of all models; 0 is no limit.
    pub max_model_bytes: u64,
    /// Memory for embeddings of texts that may come again; 0 keeps none.
    pub embed_cache_bytes: u64,
    /// Directories of models that are loaded at the start.
    pub preload_models: Vec<String>,
    /// Whether a model that is loaded ahead of its use computes a batch at once.
    pub warm_up: bool,
    /// Loopback address and port for metrics over HTTP; `None` for none.
    pub metrics_address: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::Counter;

    #[test]
    fn counters_are_in_the_order_of_their_numbers() {
        for (number, counter) in Counter::ALL.into_iter().enumerate() {
            assert_eq!(counter as usize, number);
        }
    }
}
