//! Text encoders against sentence-transformers: a tiny BERT of random weights
//! that is committed, and all-MiniLM-L6-v2, whose directory the environment
//! variable `PG_SIGHT_MINILM` names.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sight_models::{
    Architecture, Device, ErrorKind, Model, Placement, Task, TextEncoder, Tokens, inspect, load,
};

const TOLERANCE: f32 = 1e-5;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn encoder(directory: &Path) -> TextEncoder {
    match load(directory, &Placement::default()).unwrap() {
        Model::Encoder(encoder) => encoder,
        Model::Captioner(_) => panic!("this is no captioner"),
    }
}

/// The directory of MiniLM; a test that needs it fails without it.
fn minilm() -> PathBuf {
    std::env::var_os("PG_SIGHT_MINILM")
        .map(PathBuf::from)
        .expect("PG_SIGHT_MINILM must name the directory of all-MiniLM-L6-v2")
}

fn floats(value: &Value) -> Vec<f32> {
    serde_json::from_value(value.clone()).unwrap()
}

fn assert_close(actual: &[f32], expected: &[f32], what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    let differences = actual.iter().zip(expected).map(|(a, b)| (a - b).abs());
    let worst = differences.fold(0.0, f32::max);
    assert!(worst < TOLERANCE, "{what}: components differ by {worst}");
}

fn embed(encoder: &TextEncoder, texts: &[&str]) -> Vec<Vec<f32>> {
    let tokens: Vec<Tokens> = texts
        .iter()
        .map(|t| encoder.tokenize(t, None).unwrap())
        .collect();
    encoder.encode(&tokens.iter().collect::<Vec<_>>()).unwrap()
}

/// Copies the tiny model, so that a test can change it.
fn copy_of_tiny() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let from = fixture("tiny-bert");
    fs::create_dir(folder.path().join("1_Pooling")).unwrap();
    for entry in fs::read_dir(&from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
    }
    let pooling = "1_Pooling/config.json";
    fs::copy(from.join(pooling), folder.path().join(pooling)).unwrap();
    folder
}

#[test]
fn the_tiny_model_is_recognised() {
    let summary = inspect(&fixture("tiny-bert")).unwrap();
    assert_eq!(summary.task, Task::Embed);
    assert_eq!(summary.architecture, Architecture::Bert);
    assert_eq!(summary.dimensions, Some(48));
    assert!(summary.parameters > 50_000);
}

#[test]
fn every_pooling_gives_what_sentence_transformers_gives() {
    let goldens = read_json(&fixture("tiny_bert_goldens.json"));
    let texts: Vec<String> = serde_json::from_value(goldens["texts"].clone()).unwrap();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let folder = copy_of_tiny();
    let poolings = goldens["embeddings"].as_object().unwrap();
    assert_eq!(poolings.len(), 6);
    for (mode, expected) in poolings {
        let mode: Value = serde_json::from_str(mode).unwrap();
        let config = json!({"embedding_dimension": 48, "pooling_mode": mode});
        fs::write(
            folder.path().join("1_Pooling/config.json"),
            config.to_string(),
        )
        .unwrap();
        let encoder = encoder(folder.path());
        let vectors = embed(&encoder, &texts);
        for (index, vector) in vectors.iter().enumerate() {
            assert_eq!(vector.len(), encoder.dimensions());
            assert_close(
                vector,
                &floats(&expected[index]),
                &format!("{mode} of text {index}"),
            );
        }
    }
}

#[test]
fn tokens_are_cut_at_the_limit_of_the_model() {
    let goldens = read_json(&fixture("tiny_bert_goldens.json"));
    let encoder = encoder(&fixture("tiny-bert"));
    assert_eq!(encoder.max_tokens(), 40);
    let texts = goldens["texts"].as_array().unwrap();
    let counts = goldens["tokens"].as_array().unwrap();
    for (text, count) in texts.iter().zip(counts) {
        let tokens = encoder.tokenize(text.as_str().unwrap(), None).unwrap();
        assert_eq!(tokens.len() as u64, count.as_u64().unwrap());
    }
    let length = |text: &str| encoder.tokenize(text, None).unwrap().len();
    assert_eq!(length(""), 2);
    assert_eq!(length(&"red ".repeat(25_000)), 40);
}

#[test]
fn a_batch_gives_what_single_texts_give() {
    let encoder = encoder(&fixture("tiny-bert"));
    let long = "the small blue boots ".repeat(20);
    let texts = [
        "",
        "red",
        &long,
        "a lamp",
        "red",
        "the old picture of a bag",
    ];
    let batch = embed(&encoder, &texts);
    for (text, vector) in texts.iter().zip(&batch) {
        assert_close(&embed(&encoder, &[text])[0], vector, text);
    }
    assert_eq!(batch[1], batch[4]);
    assert!(encoder.encode(&[]).unwrap().is_empty());
}

#[test]
fn checkpoints_with_a_prefix_load_too() {
    let folder = copy_of_tiny();
    let weights = folder.path().join("model.safetensors");
    let tensors = candle_core::safetensors::load(&weights, &Device::Cpu).unwrap();
    let tensors = tensors
        .into_iter()
        .map(|(name, tensor)| (format!("bert.{name}"), tensor))
        .collect();
    candle_core::safetensors::save(&tensors, &weights).unwrap();
    let expected = embed(&encoder(&fixture("tiny-bert")), &["a red shoe"]);
    assert_eq!(embed(&encoder(folder.path()), &["a red shoe"]), expected);
}

#[test]
fn vectors_without_a_normalize_module_are_not_normalised() {
    let folder = copy_of_tiny();
    let path = folder.path().join("modules.json");
    let mut modules = read_json(&path);
    modules.as_array_mut().unwrap().pop();
    fs::write(&path, modules.to_string()).unwrap();
    let plain = embed(&encoder(folder.path()), &["a red shoe"]).remove(0);
    let length = plain.iter().map(|x| x * x).sum::<f32>().sqrt();
    assert!((length - 1.0).abs() > 0.1);
    let scaled: Vec<f32> = plain.iter().map(|x| x / length).collect();
    let expected = embed(&encoder(&fixture("tiny-bert")), &["a red shoe"]);
    assert_close(&scaled, &expected[0], "normalised by hand");
}

#[test]
fn lower_casing_follows_the_configuration() {
    let folder = copy_of_tiny();
    let config = folder.path().join("tokenizer_config.json");
    let mut cased = read_json(&config);
    cased["do_lower_case"] = json!(false);
    fs::write(&config, cased.to_string()).unwrap();
    let ids = |text: &str| {
        encoder(folder.path())
            .tokenize(text, None)
            .unwrap()
            .ids()
            .to_vec()
    };
    assert_ne!(ids("RED"), ids("red"));
    let transformer = json!({"max_seq_length": 40, "do_lower_case": true});
    let path = folder.path().join("sentence_bert_config.json");
    fs::write(path, transformer.to_string()).unwrap();
    assert_eq!(ids("RED"), ids("red"));
}

#[test]
fn unknown_modules_are_refused_by_name() {
    let folder = copy_of_tiny();
    let path = folder.path().join("modules.json");
    let mut modules = read_json(&path);
    modules[2]["type"] = json!("sentence_transformers.models.LayerNorm");
    fs::write(&path, modules.to_string()).unwrap();
    let error = inspect(folder.path()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotSupported);
    assert!(error.detail.unwrap().contains("LayerNorm"));
    fs::remove_file(&path).unwrap();
    let error = inspect(folder.path()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::ModelMissing);
    assert!(error.message.contains("modules.json"));
}

#[test]
fn minilm_gives_what_sentence_transformers_gives() {
    let directory = minilm();
    assert_eq!(inspect(&directory).unwrap().dimensions, Some(384));
    let encoder = encoder(&directory);
    assert_eq!(encoder.max_tokens(), 256);
    let goldens = read_json(&fixture("minilm_goldens.json"));
    let goldens = goldens.as_array().unwrap();
    assert!(goldens.len() >= 18);
    let mut batch = Vec::new();
    for golden in goldens {
        let repeat = golden["repeat"].as_u64().unwrap() as usize;
        let text = golden["text"].as_str().unwrap().repeat(repeat);
        let tokens = encoder.tokenize(&text, None).unwrap();
        let expected: Vec<u32> = serde_json::from_value(golden["ids"].clone()).unwrap();
        assert_eq!(tokens.ids(), expected, "tokens of {}", golden["text"]);
        let single = encoder.encode(&[&tokens]).unwrap().remove(0);
        assert_close(
            &single,
            &floats(&golden["embedding"]),
            &golden["text"].to_string(),
        );
        batch.push(tokens);
    }
    let vectors = encoder.encode(&batch.iter().collect::<Vec<_>>()).unwrap();
    for (vector, golden) in vectors.iter().zip(goldens) {
        assert_close(vector, &floats(&golden["embedding"]), "in a batch");
    }
}
