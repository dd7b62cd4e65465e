//! A frame of each message, as both ends send them.

use bytes::Bytes;
use sight_protocol::{
    Architecture, Counter, EarlyStopping, EmbeddingBatch, ErrorCode, ErrorReply, GenerationOptions,
    Limits, LoadedModel, ModelInfo, ModelRef, ModelStatistics, ModelTask, PullPhase, PullProgress,
    PullRequest, PulledModel, Request, Response, ServerStatus, Statistics, embeddings_body, encode,
};

/// What [`super::exercise`] takes, by name: a mode, and a frame.
pub type Seeds = Vec<(&'static str, Vec<u8>)>;

/// In pieces of so many bytes.
const PIECES: u8 = 64;

fn seed(name: &'static str, frame: &Bytes) -> (&'static str, Vec<u8>) {
    (name, [&[PIECES], &frame[..]].concat())
}

fn model() -> ModelRef {
    ModelRef {
        name: "all-mpnet-base-v2".into(),
        directory: "/models/all-mpnet-base-v2".into(),
        limits: Limits {
            max_text_bytes: 1 << 20,
            max_image_bytes: 1 << 25,
            max_image_pixels: 100_000_000,
        },
    }
}

fn options() -> GenerationOptions {
    GenerationOptions {
        max_length: Some(512),
        num_beams: Some(10),
        length_penalty: Some(-0.5),
        early_stopping: Some(EarlyStopping::Never),
        do_sample: Some(true),
        top_p: Some(0.9),
        seed: Some(u64::MAX),
        ..GenerationOptions::default()
    }
}

pub fn requests() -> Seeds {
    let of = |name, request: Request| seed(name, &encode(&request, &[]).expect("small"));
    let pull = PullRequest {
        repository: "owner/name".into(),
        revision: "main".into(),
        endpoint: Some("https://hub.example".into()),
        home: None,
        requester: 4711,
    };
    let describe = Request::Describe {
        model: model(),
        image_bytes: vec![3, 0, 5],
        prompts: vec!["a photo of".into(), String::new()],
        options: options(),
    };
    let embed = Request::Embed {
        model: model(),
        texts: vec!["red sneakers".into(), "é\u{1f600}\0".into(), String::new()],
        prompt_name: Some("query".into()),
    };
    let two = [
        encode(&Request::Status, &[]).expect("small"),
        encode(&embed, &[]).expect("small"),
    ];
    vec![
        of("status", Request::Status),
        of("inspect", Request::Inspect { model: model() }),
        of("embed", embed),
        seed(
            "describe",
            &encode(&describe, &[b"abc", b"defgh"]).expect("small"),
        ),
        of("load", Request::Load { model: model() }),
        of("unload", Request::Unload { model: model() }),
        of("pull", Request::Pull(pull)),
        of("pulls", Request::Pulls),
        of("probe", Request::Probe),
        of("statistics", Request::Statistics),
        of("reset_statistics", Request::ResetStatistics),
        seed("two_frames", &two.concat().into()),
    ]
}

fn info() -> ModelInfo {
    ModelInfo {
        task: ModelTask::Embed,
        architecture: Architecture::XlmRoberta,
        dimensions: Some(768),
        parameters: 109_486_464,
        revision: "0123456789abcdef".into(),
    }
}

fn status() -> ServerStatus {
    ServerStatus {
        pid: 4711,
        version: "0.1.0".into(),
        device: "cuda:0".into(),
        dtype: "bfloat16".into(),
        threads: 2,
        memory_bytes: 1 << 30,
        device_memory_used_bytes: Some(1 << 31),
        device_memory_bytes: Some(1 << 36),
        uptime_ms: 1000,
        requests: 10,
        failed_requests: 1,
        queued_requests: 2,
        cached_embeddings: 3,
        cache_bytes: 4096,
        loaded_models: vec![LoadedModel {
            directory: "/models/all-mpnet-base-v2".into(),
            memory_bytes: 1 << 28,
            unused_ms: 5,
        }],
    }
}

pub fn responses() -> Seeds {
    let of = |name, response: Response| seed(name, &encode(&response, &[]).expect("small"));
    let vectors = embeddings_body(&[1.0, -0.5, f32::NAN, f32::INFINITY, 0.0, f32::MIN_POSITIVE]);
    let batch = Response::Embeddings(EmbeddingBatch {
        rows: 2,
        dimensions: 3,
    });
    let error = ErrorReply {
        code: ErrorCode::InvalidImage,
        message: "image cannot be decoded".into(),
        detail: Some("It ends before its last pixel.".into()),
        hint: None,
        item: Some(3),
    };
    let pulled = PulledModel {
        directory: "/cache/models--owner--name".into(),
        commit: "0".repeat(40),
        info: info(),
    };
    let progress = PullProgress {
        requester: 4711,
        repository: "owner/name".into(),
        revision: "main".into(),
        phase: PullPhase::Downloading,
        file: Some("model.safetensors".into()),
        files_done: 1,
        files_total: 7,
        bytes_done: 1 << 20,
        bytes_total: 1 << 30,
    };
    let statistics = Statistics {
        since_ms: 1_700_000_000_000,
        models: vec![ModelStatistics {
            model: "all-mpnet-base-v2".into(),
            task: ModelTask::Embed,
            counts: std::array::from_fn(|number| 1 << (number * 63 / Counter::ALL.len())),
        }],
    };
    vec![
        of("status", Response::Status(status())),
        of("model", Response::Model(info())),
        seed("embeddings", &encode(&batch, &[&vectors]).expect("small")),
        of(
            "captions",
            Response::Captions(vec!["a red shoe".into(), String::new()]),
        ),
        of("done", Response::Done),
        of("error", Response::Error(error)),
        of("pulled", Response::Pulled(pulled)),
        of("pulls", Response::Pulls(vec![progress])),
        of("statistics", Response::Statistics(statistics)),
    ]
}
