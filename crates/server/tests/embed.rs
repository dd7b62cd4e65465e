//! Embedding texts, with a small encoder of arbitrary weights.

use std::fs;

use sight_protocol::{
    Architecture, ErrorCode, GenerationOptions, ModelRef, ModelTask, Request, Response,
    parse_embeddings,
};

use tempfile::TempDir;

mod support;
use support::encoder::{self, DIMENSIONS};
use support::{Client, PATIENCE, Server, config, model};

/// A server, its model, and the directory of both.
fn start() -> (Server, ModelRef, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let model_directory = directory.path().join("encoder");
    encoder::write(&model_directory);
    let server = Server::start(directory.path(), &config());
    (server, model(&model_directory), directory)
}

fn embed(client: &mut Client, model: &ModelRef, texts: &[String]) -> Vec<Vec<f32>> {
    let request = Request::Embed {
        model: model.clone(),
        texts: texts.to_vec(),
        prompt_name: None,
    };
    let (answer, body) = client.ask(&request, &[]);
    let Response::Embeddings(batch) = answer else {
        panic!("{answer:?}");
    };
    assert_eq!(batch.rows as usize, texts.len());
    assert_eq!(batch.dimensions as usize, DIMENSIONS);
    parse_embeddings(batch, &body).unwrap()
}

fn nearly_equal(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5)
}

/// Texts of different lengths, no two alike.
fn texts(count: usize, from: usize) -> Vec<String> {
    const WORDS: [&str; 8] = ["red", "blue", "green", "shoe", "hat", "lamp", "old", "new"];
    (from..from + count)
        .map(|number| {
            let digits = number % 40 + 1;
            let words = (0..digits).map(|digit| WORDS[(number >> (digit % 12)) % 8]);
            words.collect::<Vec<_>>().join(" ")
        })
        .collect()
}

#[test]
fn vectors_are_in_input_order_and_equal_those_of_single_texts() {
    let (server, model, _directory) = start();
    let mut client = server.connect();
    // More than one window and many batches.
    let texts = texts(1500, 0);
    let vectors = embed(&mut client, &model, &texts);
    for position in (0..texts.len()).step_by(97) {
        let single = embed(&mut client, &model, &texts[position..=position]);
        assert!(nearly_equal(&single[0], &vectors[position]), "{position}");
        let length: f32 = single[0].iter().map(|x| x * x).sum();
        assert!((length - 1.0).abs() < 1e-4);
    }
    assert!(!nearly_equal(&vectors[0], &vectors[1]));
}

#[test]
fn clients_share_batches_and_get_their_own_answers() {
    let (server, model, _directory) = start();
    let expected = embed(&mut server.connect(), &model, &texts(80, 0));
    std::thread::scope(|scope| {
        for client in 0..8 {
            let (server, model, expected) = (&server, &model, &expected);
            scope.spawn(move || {
                let mut connection = server.connect();
                for round in 0..10 {
                    let from = client * 10 + round;
                    let vectors = embed(&mut connection, model, &texts(1, from));
                    assert!(nearly_equal(&vectors[0], &expected[from]));
                }
            });
        }
    });
    let status = server.status();
    assert_eq!((status.requests, status.failed_requests), (81, 0));
    assert_eq!(status.queued_requests, 0);
    assert_eq!(server.loaded(), [model.directory]);
}

#[test]
fn odd_texts_have_vectors_too() {
    let (server, model, _directory) = start();
    let mut client = server.connect();
    assert!(embed(&mut client, &model, &[]).is_empty());
    let odd = ["", " ", "\0", "ünknown wörds", "\u{1f600}"].map(str::to_owned);
    let long = "red ".repeat(100_000);
    let vectors = embed(&mut client, &model, &[odd.to_vec(), vec![long]].concat());
    assert!(vectors.iter().flatten().all(|value| value.is_finite()));
}

#[test]
fn a_text_over_the_limit_is_refused_and_named() {
    let (server, mut model, _directory) = start();
    model.limits.max_text_bytes = 10;
    let mut client = server.connect();
    let request = Request::Embed {
        model: model.clone(),
        texts: vec!["0123456789".into(), "0123456789a".into()],
        prompt_name: None,
    };
    let error = client.ask_error(&request, &[]);
    assert_eq!((error.code, error.item), (ErrorCode::TextTooLarge, Some(1)));
    embed(&mut client, &model, &["0123456789".into()]);
}

#[test]
fn an_encoder_does_not_describe() {
    let (server, model, _directory) = start();
    let request = Request::Describe {
        model,
        image_bytes: Vec::new(),
        prompts: Vec::new(),
        options: GenerationOptions::default(),
    };
    let error = server.connect().ask_error(&request, &[]);
    assert_eq!(error.code, ErrorCode::WrongTask);
    assert!(error.hint.unwrap().contains("embed()"));
}

#[test]
fn inspecting_tells_about_a_model_without_loading_it() {
    let (server, model, _directory) = start();
    let inspect = Request::Inspect {
        model: model.clone(),
    };
    let (Response::Model(info), _) = server.ask(&inspect, &[]) else {
        panic!("no information");
    };
    assert_eq!(info.task, ModelTask::Embed);
    assert_eq!(info.architecture, Architecture::Bert);
    assert_eq!(info.dimensions, Some(DIMENSIONS as u32));
    assert!(info.parameters > 10_000);
    assert_eq!(server.loaded(), Vec::<String>::new());
    assert_eq!(server.ask(&inspect, &[]).0, Response::Model(info));
}

#[test]
fn models_are_loaded_and_freed_on_demand() {
    let (server, model, _directory) = start();
    let (load, unload) = (
        Request::Load {
            model: model.clone(),
        },
        Request::Unload {
            model: model.clone(),
        },
    );
    for _ in 0..2 {
        assert_eq!(server.ask(&load, &[]).0, Response::Done);
        assert_eq!(server.loaded(), std::slice::from_ref(&model.directory));
        assert_eq!(server.ask(&unload, &[]).0, Response::Done);
        assert_eq!(server.loaded(), Vec::<String>::new());
    }
    embed(&mut server.connect(), &model, &texts(1, 0));
}

#[test]
fn a_damaged_model_is_an_error_until_it_is_mended() {
    let (server, model, directory) = start();
    let mut client = server.connect();
    let expected = embed(&mut client, &model, &texts(3, 0));
    let weights = directory.path().join("encoder/model.safetensors");
    let whole = fs::read(&weights).unwrap();
    let request = Request::Embed {
        model: model.clone(),
        texts: texts(1, 0),
        prompt_name: None,
    };

    // Replaced by renaming, as a careful administrator does.
    let replace = |bytes: &[u8]| {
        let new = weights.with_extension("new");
        fs::write(&new, bytes).unwrap();
        fs::rename(&new, &weights).unwrap();
    };
    replace(&whole[..whole.len() / 2]);
    assert_eq!(
        client.ask_error(&request, &[]).code,
        ErrorCode::ModelInvalid
    );
    fs::remove_file(&weights).unwrap();
    assert_eq!(
        client.ask_error(&request, &[]).code,
        ErrorCode::ModelMissing
    );
    assert_eq!(server.loaded(), Vec::<String>::new());
    replace(&whole);
    let vectors = embed(&mut client, &model, &texts(3, 0));
    assert!(
        vectors
            .iter()
            .zip(&expected)
            .all(|(a, b)| nearly_equal(a, b))
    );
}

#[test]
fn a_busy_server_ends_in_order() {
    let (mut server, model, _directory) = start();
    let mut busy = server.connect();
    embed(&mut busy, &model, &texts(1, 0));
    let request = Request::Embed {
        model,
        texts: texts(200_000, 0),
        prompt_name: None,
    };
    busy.send(&request, &[]);
    server.wait_for_status(|status| status.requests == 2 && status.queued_requests == 0);
    let mut late = server.connect();
    late.ask(&Request::Status, &[]);
    server.signal("TERM");
    assert_eq!(busy.receive_error().code, ErrorCode::ShuttingDown);
    assert_eq!(server.exit_within(PATIENCE).code(), Some(0));
    assert!(late.receive().is_none());
}
