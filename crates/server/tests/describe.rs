//! Describing pictures, with the demo's captioner and its sample pictures.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sight_protocol::{
    Architecture, Counter, ErrorCode, GenerationOptions, ModelRef, ModelTask, Request, Response,
    ServerConfig,
};
use tempfile::TempDir;

mod support;
use support::{PATIENCE, Server, config, encoder, model};

/// Pictures and captions beyond all that a test could wait for.
const MANY: usize = 2000;

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../demo")
}

fn captioner() -> ModelRef {
    model(&demo().join("captioner"))
}

/// A sample picture and its caption.
struct Sample {
    picture: Vec<u8>,
    caption: String,
}

fn samples() -> Vec<Sample> {
    let samples = demo().join("samples");
    let index = std::fs::read_to_string(samples.join("samples.json")).unwrap();
    let index: serde_json::Value = serde_json::from_str(&index).unwrap();
    let items = index["items"].as_array().unwrap();
    assert!(items.len() > 20);
    items
        .iter()
        .map(|item| Sample {
            picture: std::fs::read(samples.join(item["file"].as_str().unwrap())).unwrap(),
            caption: item["greedy_text"].as_str().unwrap().into(),
        })
        .collect()
}

fn start(config: &ServerConfig) -> (Server, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    (Server::start(directory.path(), config), directory)
}

fn request(model: &ModelRef, pictures: &[&[u8]], prompts: &[&str]) -> Request {
    Request::Describe {
        model: model.clone(),
        image_bytes: pictures.iter().map(|bytes| bytes.len() as u32).collect(),
        prompts: prompts.iter().map(|prompt| (*prompt).into()).collect(),
        options: GenerationOptions::default(),
    }
}

fn describe(server: &Server, pictures: &[&[u8]], prompts: &[&str]) -> Vec<String> {
    match server.ask(&request(&captioner(), pictures, prompts), pictures) {
        (Response::Captions(captions), _) => captions,
        (other, _) => panic!("{other:?}"),
    }
}

/// A request that would take minutes.
fn endless(picture: &[u8]) -> (Request, Vec<&[u8]>) {
    let pictures = vec![picture; MANY];
    let prompts = vec!["a photo of"; 50];
    (request(&captioner(), &pictures, &prompts), pictures)
}

#[test]
fn samples_get_their_captions() {
    let (server, _directory) = start(&config());
    let samples = samples();
    let pictures: Vec<&[u8]> = samples.iter().map(|sample| &sample.picture[..]).collect();
    let captions = describe(&server, &pictures, &[]);
    let expected: Vec<&str> = samples.iter().map(|sample| &sample.caption[..]).collect();
    assert_eq!(captions, expected);
    assert_eq!(describe(&server, &pictures[3..4], &[]), expected[3..4]);
    assert!(describe(&server, &[], &[]).is_empty());
}

#[test]
fn prompts_are_answered_together() {
    let (server, _directory) = start(&config());
    let samples = samples();
    let pictures = [&samples[0].picture[..], &samples[1].picture];
    let first = describe(&server, &pictures, &["a photo of"]);
    let second = describe(&server, &pictures, &["a picture of"]);
    let both = describe(&server, &pictures, &["a photo of", "a picture of"]);
    for picture in 0..2 {
        let joined = format!("{} {}", first[picture], second[picture]);
        assert_eq!(both[picture], joined);
    }
    assert_eq!(first[0], format!("a photo of {}", samples[0].caption));
}

#[test]
fn clients_with_and_without_prompts_get_their_own_answers() {
    let (server, _directory) = start(&config());
    let samples = samples();
    std::thread::scope(|scope| {
        for (number, sample) in samples.iter().take(12).enumerate() {
            let server = &server;
            scope.spawn(move || {
                let (prompts, start) = match number % 2 {
                    0 => (vec![], ""),
                    _ => (vec!["a photo of"], "a photo of "),
                };
                for _ in 0..3 {
                    let captions = describe(server, &[&sample.picture], &prompts);
                    assert_eq!(captions, [format!("{start}{}", sample.caption)]);
                }
            });
        }
    });
}

#[test]
fn a_bad_picture_is_named_and_harms_no_other() {
    let (server, _directory) = start(&config());
    let samples = samples();
    let good = &samples[0].picture[..];
    let cut = &good[..good.len() / 2];
    let bad: [&[u8]; 3] = [b"", b"just some text, no picture at all", &[0xff; 1000]];
    for (number, bad) in bad.into_iter().enumerate() {
        let pictures = [good, good, good, good, good, bad];
        let mut client = server.connect();
        let error = client.ask_error(&request(&captioner(), &pictures, &[]), &pictures);
        assert_eq!(
            (error.code, error.item),
            (ErrorCode::InvalidImage, Some(5)),
            "{number}"
        );
        assert!(error.detail.is_some() && error.hint.is_some());
    }
    let error = server
        .connect()
        .ask_error(&request(&captioner(), &[cut], &[]), &[cut]);
    assert_eq!((error.code, error.item), (ErrorCode::InvalidImage, Some(0)));
    assert_eq!(describe(&server, &[good], &[]), [&samples[0].caption[..]]);
}

#[test]
fn pictures_over_the_limits_are_refused() {
    let (server, _directory) = start(&config());
    let sample = &samples()[0];
    let pictures = [&sample.picture[..]];
    let mut few_bytes = captioner();
    few_bytes.limits.max_image_bytes = 1000;
    let mut few_pixels = captioner();
    few_pixels.limits.max_image_pixels = 100 * 100;
    for model in [few_bytes, few_pixels] {
        let error = server
            .connect()
            .ask_error(&request(&model, &pictures, &[]), &pictures);
        assert_eq!(
            (error.code, error.item),
            (ErrorCode::ImageTooLarge, Some(0))
        );
    }
}

#[test]
fn a_captioner_does_not_embed() {
    let (server, _directory) = start(&config());
    let request = Request::Embed {
        model: captioner(),
        texts: Vec::new(),
        prompt_name: None,
    };
    let error = server.connect().ask_error(&request, &[]);
    assert_eq!(error.code, ErrorCode::WrongTask);
    assert!(error.hint.unwrap().contains("blip_describe()"));
}

#[test]
fn inspecting_tells_about_the_captioner() {
    let (server, _directory) = start(&config());
    let request = Request::Inspect { model: captioner() };
    let (Response::Model(info), _) = server.ask(&request, &[]) else {
        panic!("no information");
    };
    assert_eq!(info.task, ModelTask::Describe);
    assert_eq!(info.architecture, Architecture::Blip);
    assert_eq!(info.dimensions, None);
    assert!(info.parameters > 1_000_000);
}

#[test]
fn a_client_that_goes_away_stops_the_work() {
    let (server, _directory) = start(&config());
    let samples = samples();
    describe(&server, &[&samples[0].picture], &[]);
    let (endless, pictures) = endless(&samples[0].picture);
    let mut client = server.connect();
    client.send(&endless, &pictures);
    server.wait_for_status(|status| status.requests == 2 && status.queued_requests == 0);
    drop(client);
    server.wait_until_at_rest(Duration::from_secs(10));
    let captions = describe(&server, &[&samples[1].picture], &[]);
    assert_eq!(captions, [&samples[1].caption[..]]);
}

#[test]
fn a_client_that_goes_away_stops_the_running_batch() {
    let (server, _directory) = start(&config());
    let samples = samples();
    let pictures = [&samples[0].picture[..]];
    // One batch that takes minutes.
    let prompts = vec!["a photo of"; 100_000];
    let mut client = server.connect();
    client.send(&request(&captioner(), &pictures, &prompts), &pictures);
    server.wait_for_status(|status| status.requests == 1 && status.queued_requests == 0);
    drop(client);
    server.wait_until_at_rest(Duration::from_secs(10));
    let captions = describe(&server, &[&samples[1].picture], &[]);
    assert_eq!(captions, [&samples[1].caption[..]]);
}

#[test]
fn a_large_request_does_not_hold_up_a_small_one() {
    let (server, _directory) = start(&config());
    let samples = samples();
    describe(&server, &[&samples[0].picture], &["a photo of"]);
    let (endless, pictures) = endless(&samples[0].picture);
    let mut bulk = server.connect();
    bulk.send(&endless, &pictures);
    server.wait_for_status(|status| status.requests == 2 && status.queued_requests == 0);
    for sample in &samples[..3] {
        let captions = describe(&server, &[&sample.picture], &[]);
        assert_eq!(captions, [&sample.caption[..]]);
    }
    bulk.stream.set_nonblocking(true).unwrap();
    let mut byte = [0u8];
    let early = std::io::Read::read(&mut bulk.stream, &mut byte);
    assert_eq!(early.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn more_requests_than_may_wait_are_refused() {
    let (server, _directory) = start(&ServerConfig {
        max_queued_requests: 1,
        ..config()
    });
    let samples = samples();
    let pictures = [&samples[0].picture[..]];
    describe(&server, &pictures, &[]);
    let (endless, many) = endless(&samples[0].picture);
    let mut running = server.connect();
    running.send(&endless, &many);
    server.wait_for_status(|status| status.requests == 2 && status.queued_requests == 0);
    // Its other prompts keep it out of the running batch.
    let mut waiting = server.connect();
    waiting.send(&request(&captioner(), &pictures, &[]), &pictures);
    server.wait_for_status(|status| status.requests == 3 && status.queued_requests == 1);
    let error = server
        .connect()
        .ask_error(&request(&captioner(), &pictures, &[]), &pictures);
    assert_eq!(error.code, ErrorCode::Overloaded);
    assert!(error.hint.is_some());
    let (answer, _) = waiting.receive().unwrap();
    assert_eq!(answer, Response::Captions(vec![samples[0].caption.clone()]));
}

#[test]
fn a_busy_server_ends_with_its_supervisor() {
    let (mut server, _directory) = start(&config());
    let samples = samples();
    let (endless, pictures) = endless(&samples[0].picture);
    let mut client = server.connect();
    client.send(&endless, &pictures);
    server.wait_for_status(|status| status.requests == 1 && status.queued_requests == 0);
    drop(server.stdin.take());
    let status = server.exit_within(Duration::from_secs(1));
    assert_eq!(status.code(), Some(0));
    assert!(client.receive().is_none());
}

#[test]
fn a_busy_server_ends_on_sigterm() {
    let (mut server, _directory) = start(&ServerConfig {
        max_queued_requests: 2,
        ..config()
    });
    let samples = samples();
    let pictures = [&samples[0].picture[..]];
    let (endless, many) = endless(&samples[0].picture);
    let mut running = server.connect();
    running.send(&endless, &many);
    server.wait_for_status(|status| status.requests == 1 && status.queued_requests == 0);
    let mut waiting = server.connect();
    waiting.send(&request(&captioner(), &pictures, &[]), &pictures);
    server.wait_for_status(|status| status.requests == 2);
    server.signal("TERM");
    assert_eq!(running.receive_error().code, ErrorCode::ShuttingDown);
    match waiting.receive().unwrap().0 {
        // It may just have been in the running batch.
        Response::Captions(captions) => assert_eq!(captions, [&samples[0].caption[..]]),
        Response::Error(error) => assert_eq!(error.code, ErrorCode::ShuttingDown),
        other => panic!("{other:?}"),
    }
    assert_eq!(server.exit_within(PATIENCE).code(), Some(0));
}

#[test]
fn texts_do_not_wait_for_the_end_of_a_description() {
    let directory = tempfile::tempdir().unwrap();
    let encoder_directory = directory.path().join("encoder");
    encoder::write(&encoder_directory);
    let server = Server::start(directory.path(), &config());
    let samples = samples();
    describe(&server, &[&samples[0].picture], &[]);
    let pictures = [&samples[0].picture[..]];
    let prompts = vec!["a photo of"; 100_000];
    let mut busy = server.connect();
    busy.send(&request(&captioner(), &pictures, &prompts), &pictures);
    server.wait_for_status(|status| status.requests == 2 && status.queued_requests == 0);
    let mut client = server.connect();
    for number in 0..20 {
        let embed = Request::Embed {
            model: model(&encoder_directory),
            texts: vec![format!("red shoe {number}")],
            prompt_name: None,
        };
        let (answer, _) = client.ask(&embed, &[]);
        assert!(matches!(answer, Response::Embeddings(_)), "{answer:?}");
    }
    // The description is not answered yet.
    busy.stream.set_nonblocking(true).unwrap();
    let waits = std::io::Read::read(&mut busy.stream, &mut [0]).unwrap_err();
    assert_eq!(waits.kind(), std::io::ErrorKind::WouldBlock);
}

fn fixture(path: &str) -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/fixtures");
    fixtures.join(path)
}

/// Copies a model, so that files may be put beside it.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The options under which instructions are given, as JSON.
const OPTIONS: &str =
    r#"{"num_beams": 10, "max_length": 52, "min_length": 16, "repetition_penalty": 1.5}"#;

/// Two instructions about a picture, as a user of InstructBLIP asks them.
fn instructed(model: &ModelRef, picture: &[u8]) -> Request {
    Request::Describe {
        model: model.clone(),
        image_bytes: vec![picture.len() as u32],
        prompts: INSTRUCTIONS.map(str::to_owned).to_vec(),
        options: serde_json::from_str(OPTIONS).unwrap(),
    }
}

const INSTRUCTIONS: [&str; 2] = [
    "describe this image in full detail",
    "create an extensive description of this image",
];

/// What transformers answers to these instructions about the first picture: its token ids
/// without those of the prompt, as a text.
fn answers(name: &str) -> String {
    let goldens = std::fs::read(fixture(&format!("instructblip/{name}.json"))).unwrap();
    let goldens: serde_json::Value = serde_json::from_slice(&goldens).unwrap();
    let options: serde_json::Value = serde_json::from_str(OPTIONS).unwrap();
    let directory = fixture(&format!("instructblip/{name}"));
    let tokenizer = tokenizers::Tokenizer::from_file(directory.join("tokenizer.json")).unwrap();
    let config = std::fs::read(directory.join("config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    let places = config["num_query_tokens"].as_u64().unwrap() as usize;
    let answer = |instruction: &str| {
        let cases = goldens["cases"].as_array().unwrap();
        let wanted =
            |case: &&serde_json::Value| case["prompt"] == instruction && case["options"] == options;
        let case = cases.iter().find(wanted).unwrap();
        let ids: Vec<u32> = serde_json::from_value(case["ids"][0].clone()).unwrap();
        let prompt = places + tokenizer.encode(instruction, true).unwrap().len();
        let text = tokenizer.decode(&ids[prompt..], true).unwrap();
        text.trim().to_owned()
    };
    INSTRUCTIONS.map(answer).join(" ")
}

#[test]
fn several_instructions_are_answered_together() {
    let (server, _directory) = start(&config());
    let directory = fixture("instructblip/a");
    let picture = std::fs::read(fixture("blip/pictures/0.png")).unwrap();
    let request = instructed(&model(&directory), &picture);
    let (Response::Captions(captions), _) = server.ask(&request, &[&picture]) else {
        panic!("no captions");
    };
    assert_eq!(captions, [answers("a")]);
    assert!(captions[0].len() > 20 && !captions[0].contains("full detail"));
    let inspect = Request::Inspect {
        model: model(&directory),
    };
    let (Response::Model(info), _) = server.ask(&inspect, &[]) else {
        panic!("no information");
    };
    assert_eq!(info.architecture, Architecture::InstructBlip);
}

#[test]
fn tokens_are_counted_while_they_are_generated() {
    let (server, _directory) = start(&config());
    let model = model(&fixture("instructblip/t"));
    let picture = std::fs::read(fixture("blip/pictures/0.png")).unwrap();
    let mut request = request(&model, &[&picture], &INSTRUCTIONS);
    let Request::Describe { options, .. } = &mut request else {
        panic!("no request to describe");
    };
    options.max_new_tokens = Some(2000);
    options.min_new_tokens = Some(2000);
    let mut client = server.connect();
    client.send(&request, &[&picture]);
    server.wait_for_status(|status| status.requests == 1);
    let mut seen = std::collections::BTreeSet::new();
    let until = Instant::now() + PATIENCE;
    loop {
        let counted = server.statistics();
        if counted[Counter::Items] > 0 {
            break;
        }
        seen.insert(counted[Counter::GeneratedTokens]);
        assert!(Instant::now() < until, "{seen:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
    let (Response::Captions(_), _) = client.receive().unwrap() else {
        panic!("no captions");
    };
    assert_eq!(server.statistics()[Counter::GeneratedTokens], 4000);
    let halfway = seen.iter().filter(|tokens| (1..4000).contains(*tokens));
    assert!(halfway.count() > 3, "{seen:?}");
}

#[test]
fn a_language_model_is_loaded_in_4_bits_where_the_setting_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("model");
    copy(&fixture("instructblip/q"), &directory);
    let picture = std::fs::read(fixture("blip/pictures/0.png")).unwrap();
    let request = instructed(&model(&directory), &picture);
    let in_4_bits = ServerConfig {
        load_in_4bit: true,
        ..config()
    };
    let file = directory.join(".pg_sight-4bit.safetensors");
    let mut sizes = Vec::new();
    let mut captions = Vec::new();
    for config in [&config(), &in_4_bits, &in_4_bits] {
        let made = file.exists();
        let (server, _directory) = start(config);
        let (Response::Captions(caption), _) = server.ask(&request, &[&picture]) else {
            panic!("no captions");
        };
        let (Response::Status(status), _) = server.ask(&Request::Status, &[]) else {
            panic!("no status");
        };
        sizes.push(status.loaded_models[0].memory_bytes);
        captions.push(caption);
        assert_eq!(file.exists(), config.load_in_4bit || made);
    }
    assert_ne!(captions[0], captions[1]);
    assert_eq!(captions[1], [answers("q")]);
    assert_eq!(captions[1], captions[2]);
    assert!(sizes[1] * 2 < sizes[0] && sizes[1] == sizes[2], "{sizes:?}");
}
