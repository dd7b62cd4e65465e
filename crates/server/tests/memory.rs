//! What the server keeps in memory: models and embeddings.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sight_protocol::{
    ErrorCode, GenerationOptions, ModelRef, Request, Response, ServerConfig, parse_embeddings,
};
use tempfile::TempDir;

mod support;
use support::{Client, Server, config, encoder, model};

/// A server with models of the same size in the directories `0`, `1`, ...
fn start(
    count: usize,
    change: impl FnOnce(&mut ServerConfig, &Path),
) -> (Server, Vec<ModelRef>, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let models = (0..count).map(|number| {
        let path: PathBuf = directory.path().join(number.to_string());
        encoder::write(&path);
        model(&path)
    });
    let models = models.collect();
    let mut config = config();
    change(&mut config, directory.path());
    (Server::start(directory.path(), &config), models, directory)
}

fn request(model: &ModelRef, texts: &[&str], prompt_name: Option<&str>) -> Request {
    Request::Embed {
        model: model.clone(),
        texts: texts.iter().map(|text| (*text).into()).collect(),
        prompt_name: prompt_name.map(Into::into),
    }
}

fn embed(client: &mut Client, model: &ModelRef, texts: &[&str]) -> Vec<Vec<f32>> {
    match client.ask(&request(model, texts, None), &[]) {
        (Response::Embeddings(batch), body) => parse_embeddings(batch, &body).unwrap(),
        (other, _) => panic!("{other:?}"),
    }
}

/// Numbers of the loaded models.
fn loaded(server: &Server) -> Vec<String> {
    let name = |directory: String| directory.rsplit('/').next().unwrap().to_owned();
    server.loaded().into_iter().map(name).collect()
}

#[test]
fn cached_vectors_are_those_that_were_computed() {
    let (server, models, _directory) = start(2, |config, _| config.embed_cache_bytes = 1 << 20);
    let mut client = server.connect();
    let first = embed(&mut client, &models[0], &["red shoe", "blue hat"]);
    assert_eq!(server.status().cached_embeddings, 2);
    assert!(server.status().cache_bytes > 2 * 128);
    // Partly cached, in another order, one of them twice.
    let texts = ["blue hat", "lamp", "red shoe", "blue hat"];
    let second = embed(&mut client, &models[0], &texts);
    assert_eq!((&second[0], &second[2]), (&first[1], &first[0]));
    assert_eq!(second[3], second[0]);
    let lamp = embed(&mut client, &models[0], &["lamp"]);
    assert_eq!(lamp[0], second[1]);
    assert_eq!(server.status().cached_embeddings, 3);
    // Another model has vectors of its own, and so have other files.
    embed(&mut client, &models[1], &["red shoe"]);
    assert_eq!(server.status().cached_embeddings, 4);
    let file = Path::new(&models[0].directory).join("config.json");
    let file = std::fs::File::options().write(true).open(file).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(100))
        .unwrap();
    embed(&mut client, &models[0], &["red shoe"]);
    assert_eq!(server.status().cached_embeddings, 5);
    // A prompt is part of the text.
    client.ask(&request(&models[0], &["red shoe"], Some("query")), &[]);
    assert_eq!(server.status().cached_embeddings, 6);
}

#[test]
fn errors_name_the_text_also_beside_cached_ones() {
    let (server, models, _directory) = start(1, |config, _| config.embed_cache_bytes = 1 << 20);
    let mut client = server.connect();
    embed(&mut client, &models[0], &["red", "blue"]);
    let unknown = request(&models[0], &["red", "blue"], Some("no such prompt"));
    let error = client.ask_error(&unknown, &[]);
    assert_eq!(error.code, ErrorCode::InvalidOption);
    assert_eq!(error.item, Some(0));
}

#[test]
fn a_cached_vector_needs_no_loaded_model() {
    let (server, models, _directory) = start(1, |config, _| config.embed_cache_bytes = 1 << 20);
    let mut client = server.connect();
    let vectors = embed(&mut client, &models[0], &["red"]);
    let model = models[0].clone();
    client.ask(&Request::Unload { model }, &[]);
    assert_eq!(embed(&mut client, &models[0], &["red"]), vectors);
    assert!(server.loaded().is_empty());
    // But its files must still be there.
    std::fs::remove_dir_all(&models[0].directory).unwrap();
    let error = client.ask_error(&request(&models[0], &["red"], None), &[]);
    assert_eq!(error.code, ErrorCode::ModelMissing);
}

#[test]
fn bulk_requests_do_not_fill_the_cache() {
    let (server, models, _directory) = start(1, |config, _| config.embed_cache_bytes = 1 << 20);
    let texts: Vec<String> = (0..100).map(|number| "red ".repeat(number + 1)).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    embed(&mut server.connect(), &models[0], &texts);
    assert_eq!(server.status().cached_embeddings, 0);
}

#[test]
fn models_keep_to_their_memory() {
    let (server, models, _directory) = start(1, |_, _| {});
    server.ask(
        &Request::Load {
            model: models[0].clone(),
        },
        &[],
    );
    let bytes = server.status().loaded_models[0].memory_bytes;
    assert!(bytes > 10_000, "{bytes}");

    let room_for_two = |config: &mut ServerConfig, _: &Path| config.max_model_bytes = 2 * bytes;
    let (server, models, _directory) = start(3, room_for_two);
    let mut client = server.connect();
    for number in [0, 1, 0, 2] {
        embed(&mut client, &models[number], &["red"]);
    }
    assert_eq!(loaded(&server), ["0", "2"], "1 was not used for longest");
    embed(&mut client, &models[1], &["red"]);
    assert_eq!(loaded(&server), ["1", "2"]);

    let too_little = |config: &mut ServerConfig, _: &Path| config.max_model_bytes = bytes - 1;
    let (server, models, _directory) = start(1, too_little);
    let error = server
        .connect()
        .ask_error(&request(&models[0], &["red"], None), &[]);
    assert_eq!(error.code, ErrorCode::OutOfDeviceMemory);
    assert!(error.hint.unwrap().contains("pg_sight.max_model_memory"));
}

#[test]
fn models_are_there_from_the_start_where_that_is_wanted() {
    let preload = |config: &mut ServerConfig, directory: &Path| {
        let named = ["1", "missing", "0"].map(|name| directory.join(name).display().to_string());
        config.preload_models = named.to_vec();
    };
    let (server, _, _directory) = start(3, preload);
    let line = server.wait_for_log("WARNING: could not load model");
    assert!(line.contains("missing"), "{line}");
    server.wait_for_status(|status| status.loaded_models.len() == 2);
    assert_eq!(loaded(&server), ["0", "1"]);
    assert_eq!(server.status().requests, 0);
}

#[test]
fn a_replaced_model_does_not_disturb_running_requests() {
    let (server, models, _directory) = start(1, |_, _| {});
    let mut client = server.connect();
    let texts: Vec<String> = (0..30_000)
        .map(|number| "red shoe ".repeat(1 + number % 30))
        .collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    client.send(&request(&models[0], &texts, None), &[]);
    server.wait_for_status(|status| status.requests == 1 && status.queued_requests == 0);
    let file = Path::new(&models[0].directory).join("config.json");
    let file = std::fs::File::options().write(true).open(file).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(100))
        .unwrap();
    embed(&mut server.connect(), &models[0], &["red"]);
    let model = models[0].clone();
    server.ask(&Request::Unload { model }, &[]);
    assert!(server.loaded().is_empty());
    let (answer, _) = client.receive().unwrap();
    assert!(matches!(answer, Response::Embeddings(batch) if batch.rows == 30_000));
}

#[test]
fn large_requests_wait_for_room_and_are_answered() {
    let (server, models, _directory) = start(1, |config, _| config.max_queued_bytes = 1 << 20);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let text = "red ".repeat(150_000);
                assert_eq!(embed(&mut server.connect(), &models[0], &[&text]).len(), 1);
            });
        }
    });
}

/// The texts of a request, of mixed numbers and lengths: up to 300 texts, or a
/// single one of 200 kB.
fn mixed_texts(number: usize) -> Vec<String> {
    let (texts, words) = match number % 1000 {
        17 => (300, 40),
        500 => (1, 20_000),
        rest if rest % 50 == 3 => (20, rest % 60),
        rest => (1, rest % 40),
    };
    let text = |text| format!("{number} {text} {}", "red shoe ".repeat(words));
    (0..texts).map(text).collect()
}

/// One request of many; some clients go away before the answer.
fn ask_number(
    server: &Server,
    client: &mut Client,
    number: usize,
    models: &[ModelRef],
    picture: &[u8],
) {
    if number % 500 == 1 {
        let describe = Request::Describe {
            model: models[2].clone(),
            image_bytes: vec![picture.len() as u32],
            prompts: Vec::new(),
            options: GenerationOptions::default(),
        };
        client.ask(&describe, &[picture]);
        return;
    }
    let texts = mixed_texts(number);
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    embed(client, &models[number % 2], &texts);
    if number % 200 == 7 {
        let mut gone = server.connect();
        gone.send(&request(&models[0], &texts, None), &[]);
    }
}

/// Requests of mixed sizes, as many as `PG_SIGHT_REQUESTS` says.
#[test]
fn memory_stays_bounded_over_many_requests() {
    let count = std::env::var("PG_SIGHT_REQUESTS");
    let count: usize = count.map_or(8_000, |count| count.parse().unwrap());
    let cache = 1 << 20;
    let (server, mut models, _directory) = start(2, |config, _| config.embed_cache_bytes = cache);
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../demo");
    models.push(model(&demo.join("captioner")));
    let picture = std::fs::read(demo.join("samples/03_brown_sandal.jpg")).unwrap();
    let work = |numbers: std::ops::Range<usize>| {
        std::thread::scope(|scope| {
            for first in 0..4 {
                let (server, models, picture) = (&server, &models, &picture);
                let numbers = numbers.clone().skip(first).step_by(4);
                scope.spawn(move || {
                    let mut client = server.connect();
                    for number in numbers {
                        ask_number(server, &mut client, number, models, picture);
                    }
                });
            }
        });
        server.status()
    };
    let parts = 8;
    let mut megabytes = Vec::new();
    for part in 0..parts {
        let status = work(part * count / parts..(part + 1) * count / parts);
        assert!(status.cache_bytes <= cache);
        megabytes.push(status.memory_bytes >> 20);
    }
    println!("MB after each eighth of {count} requests: {megabytes:?}");
    assert!(server.status().requests as usize >= count);
    // The allocator keeps what large requests took at a time, but that is not
    // more and more.
    assert!(megabytes[parts - 1] < megabytes[1] + 24, "{megabytes:?}");
}
